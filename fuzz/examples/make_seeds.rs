//! Writes `seeds/`: one small, valid value per format, from which a fuzzer finds its way. `cargo run --example make_seeds`

use std::path::Path;

use bytes::Bytes;
use shoaldb::catalogue::{AutoVacuum, Catalogue, DatabaseId, DatabaseName};
use shoaldb::entry::{Body, Origin, Payload, encode};
use shoaldb::found::format::{Belongs, FoundMessage, Genesis, GenesisMember, Identity};
use shoaldb::fuzzed::Kind;
use shoaldb::net::codec;
use shoaldb::net::frame::{FrameKind, put};
use shoaldb::net::handshake::{Hello, Judge, PROTOCOL, Purpose, Welcome};
use shoaldb::raft::{ChangeKind, MembershipChange};
use shoaldb::registry::{self, Aftermath};
use shoaldb::types::{
    ClusterId, EntryClass, EntryId, Incarnation, LogEntry, LogIndex, Message, MessageKind, NodeId, Term,
};
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::transaction::{ChangedPage, Position, Transaction};
use shoaldb_vfs::wal::checksum::Checksum;
use shoaldb_vfs::wal::frame::seal;
use shoaldb_vfs::wal::header::WalHeader;
use xxhash_rust::xxh3::xxh3_128;

fn save(target: &str, name: &str, selector: Option<u8>, bytes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    std::fs::create_dir_all(&dir).unwrap();
    let mut all = Vec::from_iter(selector);
    all.extend_from_slice(bytes);
    std::fs::write(dir.join(name), all).unwrap();
}

fn page(number: u32, byte: u8) -> ChangedPage {
    let number = PageNo::new(number).unwrap();
    let mut image = vec![byte; 512];
    if byte > 100 {
        // Not compressible, so that both operations are among the seeds.
        image.iter_mut().enumerate().for_each(|(i, b)| *b = ((i * i * 7919) >> 3) as u8 ^ (i as u8).wrapping_mul(byte));
    }
    ChangedPage { number, hash: PageHash::of(number, &image), image: image.into() }
}

fn main() {
    let origin = Origin { node: NodeId(2), session: 0x1122_3344_5566_7788, number: 9 };
    let transaction = Transaction {
        base: Position(7),
        page_size: PageSize::new(512).unwrap(),
        size_after: PageCount(5),
        checksum_after: PageHash(0xfeed),
        pages: vec![page(1, 3), page(4, 201)],
    };
    let name = DatabaseName::new("app").unwrap();
    let bodies = [
        ("transaction", Body::Transaction { database: DatabaseId(2), transaction }),
        (
            "create",
            Body::CreateDatabase { name: name.clone(), page_size: PageSize::DEFAULT, auto_vacuum: AutoVacuum::Full },
        ),
        ("drop", Body::DropDatabase { database: DatabaseId(2) }),
        ("checkpoint", Body::Checkpoint),
        (
            "bind",
            Body::BindIncarnation { node: NodeId(3), incarnation: Incarnation(8), address: "127.0.0.1:4003".into() },
        ),
    ];
    for (name, body) in bodies {
        save("entry", name, None, &encode(&Payload { origin, body }).unwrap());
    }

    let entry = LogEntry {
        id: EntryId { index: LogIndex(6), term: Term(3) },
        class: EntryClass::Normal,
        data: Bytes::from_static(b"payload"),
    };
    let append = Message {
        kind: MessageKind::Append,
        from: NodeId(1),
        to: NodeId(2),
        term: Term(3),
        log_term: Term(2),
        index: LogIndex(5),
        commit: LogIndex(4),
        commit_term: Term(0),
        entries: vec![entry],
        reject: false,
        reject_hint: LogIndex(0),
        request_snapshot: LogIndex(0),
        priority: 0,
        context: Bytes::from_static(b"context"),
        snapshot: None,
    };
    let mut message = Vec::new();
    codec::encode(&append, &mut message);
    save("wire", "append", Some(1), &message);
    let mut framed = Vec::new();
    put(&mut framed, FrameKind::Message, |out| out.extend_from_slice(&message)).unwrap();
    save("wire", "frame", Some(0), &framed);
    let hello = Hello {
        versions: (PROTOCOL, PROTOCOL),
        purpose: Purpose::Bulk,
        cluster: Some(ClusterId(5)),
        from: Some(NodeId(1)),
        to: Some(NodeId(2)),
        incarnation: Incarnation(77),
        address: String::new(),
        bound: false,
    };
    let welcome =
        Welcome { version: PROTOCOL, node: NodeId(2), incarnation: Incarnation(78), cluster: Some(ClusterId(5)) };
    let mut bytes = Vec::new();
    hello.encode(&mut bytes);
    save("wire", "hello", Some(2), &bytes);
    bytes.clear();
    welcome.encode(&mut bytes);
    save("wire", "welcome", Some(3), &bytes);
    bytes.clear();
    Judge { me: NodeId(3), speaks: (PROTOCOL, PROTOCOL), cluster: None, catalogue: None }
        .hello(&hello)
        .unwrap_err()
        .encode(&mut bytes);
    save("wire", "reject", Some(4), &bytes);

    let member = |id: u16| GenesisMember {
        node: NodeId(id),
        address: format!("127.0.0.1:400{id}"),
        incarnation: (id < 3).then_some(Incarnation(u64::from(id))),
    };
    let genesis = Genesis { cluster: ClusterId(5), founder: NodeId(1), members: (1..=3).map(member).collect() };
    save("wire", "genesis", Some(5), &FoundMessage::Genesis { list: 4, genesis: genesis.clone() }.encode());

    let mut catalogue: Catalogue = genesis.catalogue();
    catalogue.apply_create(LogIndex(2), name, PageSize::DEFAULT, AutoVacuum::None).unwrap();
    save("files", "catalogue", Some(1), &catalogue.encode());
    let mut identity = Identity::new(NodeId(1), Incarnation(1));
    save("files", "identity-new", Some(0), &identity.encode());
    identity.belongs = Belongs::Founded(genesis);
    save("files", "identity-founded", Some(0), &identity.encode());
    let changes = vec![(ChangeKind::Learner, NodeId(4)), (ChangeKind::Removed, NodeId(2))];
    save("files", "membership", Some(2), &MembershipChange { changes, ..MembershipChange::default() }.encode());

    // Selector 1: edits of a good log. File, offset (2), kind (0 cut, 1 zeros, else xor), value.
    save("log", "flip", Some(1), &[0, 0, 3, 2, 0x40]);
    save("log", "torn-tail", Some(1), &[255, 0, 6, 1, 0]);
    save("log", "cut", Some(1), &[255, 0, 4, 0, 0, 1, 40, 0, 2, 1]);
    save("log", "raw", Some(0), &shoaldb_fuzz::first_segment());

    let size = PageSize::new(512).unwrap();
    let header = WalHeader::new(size, 1, [11, 22]);
    save("wal", "header", Some(0), &header.encode());
    let image = vec![9; 512];
    let (frame, _) = seal(PageNo::FIRST, Some(PageCount(1)), &image, header.salts, Checksum::default());
    save("wal", "frame", Some(1), &[&frame[..], &image[..]].concat());
    save("wal", "file", Some(2), &[0, 0, 20, 1, 32, 0, 8, 2, 56, 0, 171, 3, 100, 0, 0, 8, 0, 4, 9, 5]);
    save("wal", "index", Some(3), &[0, 64, 1, 0, 136, 0, 1, 0, 254, 66, 2, 0, 140, 0, 255, 255]);

    save(
        "files",
        "registry",
        Some(3),
        &registry::encode(&catalogue, &[(DatabaseId(2), 3)].into(), Aftermath::default()),
    );
    save("files", "receipt", Some(4), b"r1-00c0ffee00c0ffee-2-5-1047-3");

    messages(&catalogue);
    disk();

    // Scripts: what the bytes mean is up to the target; these reach many of its branches.
    let noise = |seed: u64, len: usize| {
        let step = |state: &mut u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            Some((*state >> 33) as u8)
        };
        std::iter::repeat(()).scan(seed, |state, ()| step(state)).take(len).collect::<Vec<u8>>()
    };
    save("cluster", "three", None, &[&[0], &noise(1, 400)[..]].concat());
    save("cluster", "five", None, &[&[1], &noise(2, 400)[..]].concat());
    for seed in 1..=2 {
        save("sql", &format!("noise-{seed}"), None, &noise(seed, 120));
    }
}

/// The kinds of `fuzzed.rs`, by their places there.
fn messages(catalogue: &Catalogue) {
    let numbers = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let save = |name: &str, kind: Kind, bytes: &[u8]| {
        let again = shoaldb::fuzzed::again(kind, bytes);
        assert_eq!(again.as_deref(), Some(bytes), "{name} is no seed");
        let selector = Kind::ALL.iter().position(|other| *other == kind).unwrap();
        save("messages", name, Some(selector as u8), bytes);
    };
    let ask = |kind: u8, fields: &[u64], rest: &[u8]| [&[0xb5, 1, kind][..], &numbers(fields), rest].concat();
    save("ask-offer", Kind::SnapshotAsk, &ask(1, &[3, 900], &[]));
    save("ask-open", Kind::SnapshotAsk, &ask(2, &[17], &[]));
    save("ask-manifest", Kind::SnapshotAsk, &ask(3, &[99], &[0]));
    let database = 2u64.to_le_bytes();
    save("ask-ranges", Kind::SnapshotAsk, &ask(3, &[99], &[&[1][..], &database, &[0, 0, 0, 0, 9, 0, 0, 0]].concat()));
    let ranges = [2, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0];
    save("ask-hashes", Kind::SnapshotAsk, &ask(3, &[99], &[&[2][..], &database, &ranges].concat()));
    let runs = [1, 0, 0, 0, 1, 0, 0, 0, 64, 0, 0, 0];
    save("ask-pages", Kind::SnapshotAsk, &ask(3, &[99], &[&[3][..], &database, &runs].concat()));
    save("ask-done", Kind::SnapshotAsk, &ask(5, &[99], &[&[0][..], &numbers(&[901])].concat()));
    save("answer-opened", Kind::SnapshotAnswer, &[&[1][..], &numbers(&[99, 901, 3])].concat());
    let object = b"an object";
    save("answer-object", Kind::SnapshotAnswer, &[&[2][..], &xxh3_128(object).to_le_bytes(), object].concat());
    save("answer-busy", Kind::SnapshotAnswer, &[3, 200, 0, 0, 0]);
    save("answer-no", Kind::SnapshotAnswer, &[6, 2, 0, b'n', b'o']);
    save("numbers", Kind::Numbers, &numbers(&[1, 2, 3, 4]));

    let bytes = catalogue.encode();
    let mut manifest = [&[1][..], &numbers(&[901, 3]), &[2, 0, 0, 0, 1, 0, 2, 0], &[0; 12], &[0]].concat();
    manifest.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    manifest.extend_from_slice(&bytes);
    manifest.extend_from_slice(&[1, 0, 0, 0]);
    for (id, info) in catalogue.databases() {
        manifest.extend_from_slice(&id.0.to_le_bytes());
        manifest.extend_from_slice(&info.page_size.bytes().to_le_bytes());
        manifest.extend_from_slice(&[5, 0, 0, 0]);
        manifest.extend_from_slice(&numbers(&[800, 77, 78]));
    }
    save("manifest", Kind::Manifest, &manifest);

    let mut history = [&b"SHrc"[..], &[1, 0, 0, 0], &numbers(&[40, 3]), &[2, 0, 0, 0]].concat();
    history.extend([&numbers(&[1, 1])[..], &[0], &numbers(&[9, 3]), &[2], &[1, 0, 0, 0], &numbers(&[2, 33])].concat());
    history.extend_from_slice(&crc32c::crc32c(&history).to_le_bytes());
    save("history", Kind::History, &[&history[..], b"registry"].concat());
    let context = [&[1, 2, 0][..], &numbers(&[5, 6]), &[1, 0, 0, 0, 4, 0, 3], &numbers(&[8]), &[3, 0], b"a:1"].concat();
    save("context", Kind::Context, &context);

    save("admin-frame", Kind::AdminFrame, b"\x0f\0\0\0{\"op\":\"status\"}");
    save("admin-create", Kind::AdminRequest, br#"{"op":"create","name":"app","page_size":4096,"auto_vacuum":0}"#);
    save(
        "admin-join",
        Kind::AdminRequest,
        br#"{"op":"join","node":4,"incarnation":"0000000000000008","address":"127.0.0.1:1"}"#,
    );
    save("admin-ok", Kind::AdminReply, br#"{"ok":{"a":[1,2.5,null]}}"#);
    save("admin-err", Kind::AdminReply, br#"{"err":{"kind":"busy","text":"later"}}"#);
    let run = br#"{"run":{"number":1,"sql":"SELECT ?1","rows":[[1,null,"t",{"r":"1.5"},{"b":"00ff"},{"t":"ff"}]]}}"#;
    save("session-run", Kind::SessionAsk, run);
    save("session-interrupt", Kind::SessionAsk, br#"{"interrupt":{"number":1}}"#);
    save("session-rows", Kind::SessionTell, br#"{"rows":[[1,"x"],[2,null]]}"#);
    save("session-ready", Kind::SessionTell, br#"{"ready":{"number":1,"in_transaction":false}}"#);
}

/// Files of a database, small ones.
fn disk() {
    save("disk", "map", Some(0), &shoaldb_fuzz::file_of_a_database(1));
    save("disk", "map-mended", Some(1), &shoaldb_fuzz::file_of_a_database(1)[..1100]);
    save("disk", "double-write", Some(2), &shoaldb_fuzz::file_of_a_database(2));
    save("disk", "double-write-mended", Some(3), &shoaldb_fuzz::file_of_a_database(2)[..200]);
    // Edits: which checkpoint, then file, offset (2), kind (0 cut, 1 zeros, else xor), value.
    save("disk", "flip", Some(4), &[0, 0, 7, 0, 2, 1]);
    save("disk", "record", Some(4), &[1, 1, 3, 2, 2, 1, 1, 8, 4, 2, 1]);
    save("disk", "torn-double-write", Some(4), &[1, 2, 100, 0, 0, 0, 0, 0, 2, 1, 9]);
}
