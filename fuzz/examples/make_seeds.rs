//! Writes `seeds/`: a small, valid value of each kind, from which a fuzzer finds its way. `cargo run --example make_seeds`
//!
//! A name that begins with `refused-` says that a target does not take the bytes. What a fuzzer found is not made here: its
//! name begins with `crash-`, and it stays.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use shoaldb::catalogue::{AutoVacuum, Catalogue, DatabaseId, DatabaseName};
use shoaldb::entry::split::{End, Part, PartHead};
use shoaldb::entry::{Body, Origin, Payload, encode};
use shoaldb::found::format::{Belongs, FoundMessage, Genesis, GenesisMember, Identity, Promise, RefuseReason};
use shoaldb::fuzzed::Kind;
use shoaldb::net::codec;
use shoaldb::net::frame::{FrameKind, put};
use shoaldb::net::handshake::{Hello, Judge, PROTOCOL, Purpose, Welcome};
use shoaldb::raft::{ChangeKind, MembershipChange};
use shoaldb::registry::{self, Aftermath, Finishing, Left};
use shoaldb::types::{
    ClusterId, EntryClass, EntryId, Incarnation, LogEntry, LogIndex, Message, MessageKind, NodeId, Term,
};
use shoaldb_fuzz::{Op, Start, Step, Twist};
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::transaction::{ChangedPage, Position, Transaction};
use shoaldb_vfs::wal::checksum::{ByteOrder, Checksum};
use shoaldb_vfs::wal::frame::seal;
use shoaldb_vfs::wal::header::WalHeader;
use shoaldb_vfs::wal::index::IndexHeader;
use xxhash_rust::xxh3::xxh3_128;

/// By target and name.
#[derive(Default)]
pub(crate) struct Seeds(pub(crate) BTreeMap<(&'static str, String), Vec<u8>>);

impl Seeds {
    fn save(&mut self, target: &'static str, name: &str, selector: Option<u8>, bytes: &[u8]) {
        let mut all = Vec::from_iter(selector);
        all.extend_from_slice(bytes);
        assert!(self.0.insert((target, name.to_string()), all).is_none(), "{target}/{name} twice");
    }
}

fn main() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for entry in std::fs::read_dir(&seeds).unwrap().flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap()) {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().starts_with("crash-") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    for ((target, name), bytes) in all().0 {
        std::fs::create_dir_all(seeds.join(target)).unwrap();
        std::fs::write(seeds.join(target).join(name), bytes).unwrap();
    }
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

/// All that are made here.
pub(crate) fn all() -> Seeds {
    let mut seeds = Seeds::default();
    let all = &mut seeds;
    let catalogue = values(all);
    messages(all, &catalogue);
    log(all);
    disk(all);
    sql(all);
    cluster(all);
    seeds
}

/// Entries, frames, files and parts of a WAL. Returns a catalogue.
fn values(all: &mut Seeds) -> Catalogue {
    let origin = Origin { node: NodeId(2), session: 0x1122_3344_5566_7788, number: 9 };
    let transaction = Transaction {
        base: Position(7),
        page_size: PageSize::new(512).unwrap(),
        size_after: PageCount(5),
        checksum_after: PageHash(0xfeed),
        pages: vec![page(1, 3), page(4, 201)],
    };
    let checksum_after = transaction.checksum_after;
    let part = |end: Option<End>| {
        let head = PartHead {
            database: DatabaseId(2),
            split: 11,
            number: 1,
            chain: 0xabcd,
            page_size: transaction.page_size,
            last: end.is_some(),
        };
        Part { head, pages: vec![page(2, 5), page(6, 202)], end }
    };
    let name = DatabaseName::new("app").unwrap();
    let bodies = [
        ("transaction", Body::Transaction { database: DatabaseId(2), transaction: transaction.clone() }),
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
        ("part", Body::Part(part(None))),
        ("part-last", Body::Part(part(Some(End { base: Position(7), size_after: PageCount(5), checksum_after })))),
        ("part-given-up", Body::GivenUp { database: DatabaseId(2), split: 11 }),
    ];
    for (name, body) in bodies {
        all.save("entry", name, None, &encode(&Payload { origin, body }).unwrap());
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
    all.save("wire", "append", Some(1), &message);
    let mut framed = Vec::new();
    put(&mut framed, FrameKind::Message, |out| out.extend_from_slice(&message)).unwrap();
    all.save("wire", "frame", Some(0), &framed);
    framed[..8].fill(0);
    all.save("wire", "frame-mended", Some(128), &framed);
    all.save("wire", "refused-frame", Some(0), &framed);
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
    all.save("wire", "hello", Some(2), &bytes);
    for (name, bound) in [("hello-address", false), ("hello-bound", true)] {
        bytes.clear();
        Hello { purpose: Purpose::Peer, address: "127.0.0.1:4001".into(), bound, ..hello.clone() }.encode(&mut bytes);
        all.save("wire", name, Some(2), &bytes);
    }
    bytes.clear();
    let program = Hello { purpose: Purpose::Client, cluster: None, from: None, to: None, ..hello.clone() };
    program.encode(&mut bytes);
    all.save("wire", "hello-client", Some(2), &bytes);
    framed.clear();
    put(&mut framed, FrameKind::Hello, |out| out.extend_from_slice(&bytes)).unwrap();
    all.save("wire", "frame-hello", Some(128), &framed);
    bytes.clear();
    welcome.encode(&mut bytes);
    all.save("wire", "welcome", Some(3), &bytes);
    bytes.clear();
    Judge { me: NodeId(3), speaks: (PROTOCOL, PROTOCOL), cluster: None, catalogue: None }
        .hello(&hello)
        .unwrap_err()
        .encode(&mut bytes);
    all.save("wire", "reject", Some(4), &bytes);

    let member = |id: u16| GenesisMember {
        node: NodeId(id),
        address: format!("127.0.0.1:400{id}"),
        incarnation: (id < 3).then_some(Incarnation(u64::from(id))),
    };
    let genesis = Genesis { cluster: ClusterId(5), founder: NodeId(1), members: (1..=3).map(member).collect() };
    let (incarnation, founder) = (Incarnation(2), NodeId(1));
    let to = Promise { founder, incarnation: Incarnation(1) };
    let found = [
        ("found-ask", FoundMessage::Ask { list: 4, incarnation }),
        ("found-promise", FoundMessage::Promise { list: 4, incarnation, to }),
        ("found-refuse-promised", FoundMessage::Refuse(RefuseReason::Promised(founder))),
        ("found-refuse-list", FoundMessage::Refuse(RefuseReason::OtherList)),
        ("found-refuse-joined", FoundMessage::Refuse(RefuseReason::Joined(ClusterId(5)))),
        ("found-release", FoundMessage::Release { incarnation }),
        ("genesis", FoundMessage::Genesis { list: 4, genesis: genesis.clone() }),
    ];
    for (name, message) in &found {
        all.save("wire", name, Some(5), &message.encode());
    }
    framed.clear();
    put(&mut framed, FrameKind::Found, |out| out.extend_from_slice(&found[1].1.encode())).unwrap();
    all.save("wire", "frame-found", Some(128), &framed);

    let mut catalogue: Catalogue = genesis.catalogue();
    catalogue.apply_create(LogIndex(2), name, PageSize::DEFAULT, AutoVacuum::None).unwrap();
    all.save("files", "catalogue", Some(1), &catalogue.encode());
    let mut identity = Identity::new(NodeId(1), Incarnation(1));
    all.save("files", "identity-new", Some(0), &identity.encode());
    identity.promised = Some(to);
    all.save("files", "identity-promised", Some(0), &identity.encode());
    let unsealed = |mut bytes: Vec<u8>| {
        bytes.split_last_chunk_mut::<4>().unwrap().1.fill(0);
        bytes
    };
    all.save("files", "identity-mended", Some(128), &unsealed(identity.encode()));
    all.save("files", "catalogue-mended", Some(129), &unsealed(catalogue.encode()));
    identity.belongs = Belongs::Founded(genesis);
    all.save("files", "identity-founded", Some(0), &identity.encode());
    let changes = vec![(ChangeKind::Learner, NodeId(4)), (ChangeKind::Removed, NodeId(2))];
    all.save("files", "membership", Some(2), &MembershipChange { changes, ..MembershipChange::default() }.encode());

    let size = PageSize::new(512).unwrap();
    let header = WalHeader::new(size, 1, [11, 22]);
    all.save("wal", "header", Some(0), &header.encode());
    let image = vec![9; 512];
    let (frame, _) = seal(PageNo::FIRST, Some(PageCount(1)), &image, header.salts, Checksum::default());
    all.save("wal", "frame", Some(1), &[&frame[..], &image[..]].concat());
    let zeroed = |bytes: &[u8], from: usize| [&bytes[..from], &vec![0; bytes.len() - from]].concat();
    all.save("wal", "header-mended", Some(128), &zeroed(&header.encode(), 24));
    all.save("wal", "refused-header", Some(0), &zeroed(&header.encode(), 24));
    all.save("wal", "frame-mended", Some(129), &[&zeroed(&frame, 16)[..], &image[..99]].concat());
    all.save("wal", "refused-frame", Some(1), &[&zeroed(&frame, 16)[..], &image[..]].concat());
    all.save("wal", "file", Some(2), &[0, 0, 20, 1, 32, 0, 8, 2, 56, 0, 171, 3, 100, 0, 0, 8, 0, 4, 9, 5]);
    all.save("wal", "index", Some(3), &[0, 64, 1, 0, 136, 0, 1, 0, 254, 66, 2, 0, 140, 0, 255, 255]);
    let header = IndexHeader {
        change_counter: 7,
        order: ByteOrder::NATIVE,
        page_size: Some(size),
        max_frame: 5,
        page_count: PageCount(9),
        frame_checksum: Checksum(1, 2),
        salts: [11, 22],
    };
    // As edits: offset (2), two bytes.
    let edits = |bytes: &[u8]| {
        let (pairs, _) = bytes.as_chunks::<2>();
        (0u16..).step_by(2).zip(pairs).flat_map(|(at, pair)| [at.to_le_bytes(), *pair].concat()).collect::<Vec<u8>>()
    };
    // With what a mend makes of it left out: its checksum, and the other copy.
    all.save("wal", "index-header-mended", Some(131), &edits(&header.encode()[..40]));
    let no_size = IndexHeader { page_size: None, max_frame: 0, ..header };
    all.save("wal", "index-header-empty-mended", Some(131), &edits(&no_size.encode()[..40]));
    let largest = IndexHeader { page_size: PageSize::new(65536), max_frame: u32::MAX, ..header };
    all.save("wal", "index-header-large-mended", Some(131), &edits(&largest.encode()[..40]));
    let mut odd = header.encode();
    odd[14] = 3;
    all.save("wal", "refused-index-page-size-mended", Some(131), &edits(&odd[..40]));

    let registry = registry::encode(&catalogue, &[(DatabaseId(2), 3)].into(), Aftermath::default());
    all.save("files", "registry", Some(3), &registry);
    // The catalogue in it has a checksum of its own.
    let mut registry = unsealed(registry);
    let end = 12 + catalogue.encode().len();
    registry[end - 4..end].fill(0);
    all.save("files", "registry-mended", Some(131), &registry);
    let left = Left { install: Some(9), end: true, source: Some(4) };
    let finishing = Some(Finishing { source: NodeId(2), index: LogIndex(7), left });
    let aftermath = Aftermath { reach: LogIndex(12), finishing };
    all.save("files", "registry-aftermath", Some(3), &registry::encode(&catalogue, &[].into(), aftermath));
    all.save("files", "receipt", Some(4), b"r1-00c0ffee00c0ffee-2-5-1047-3");

    catalogue
}

/// The kinds of `fuzzed.rs`, by their places there.
fn messages(all: &mut Seeds, catalogue: &Catalogue) {
    let numbers = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let selector = |kind: Kind| Kind::ALL.iter().position(|other| *other == kind).unwrap() as u8;
    let mut save = |name: &str, kind: Kind, bytes: &[u8]| {
        let again = shoaldb::fuzzed::again(kind, bytes);
        assert_eq!(again.as_deref(), Some(bytes), "{name} is no seed");
        all.save("messages", name, Some(selector(kind)), bytes);
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
    save("ask-open-shown", Kind::SnapshotAsk, &ask(8, &[17, 18], &[]));
    save("ask-progress", Kind::SnapshotAsk, &ask(4, &[99], &[&[1][..], &numbers(&[3, 9])].concat()));
    save("ask-open-one", Kind::SnapshotAsk, &ask(6, &[2, 800], &[]));
    save("ask-sum", Kind::SnapshotAsk, &ask(7, &[2, 800], &[]));
    save("ask-done", Kind::SnapshotAsk, &ask(5, &[99], &[&[0][..], &numbers(&[901])].concat()));
    save("answer-opened", Kind::SnapshotAnswer, &[&[1][..], &numbers(&[99, 901, 3])].concat());
    let object = b"an object";
    save("answer-object", Kind::SnapshotAnswer, &[&[2][..], &xxh3_128(object).to_le_bytes(), object].concat());
    let hashed = |kind: u8, bytes: &[u8]| [&[kind][..], &xxh3_128(bytes).to_le_bytes(), bytes].concat();
    let listed = |id: u64, page_size: u32| {
        let sizes = [page_size, 5].map(u32::to_le_bytes).concat();
        [&id.to_le_bytes()[..], &sizes, &numbers(&[800, 77, 78])].concat()
    };
    let one = hashed(7, &[numbers(&[99, 901, 3]), listed(2, 4096)].concat());
    save("answer-opened-one", Kind::SnapshotAnswer, &one);
    save("answer-sum", Kind::SnapshotAnswer, &hashed(8, &numbers(&[800, 77, 78])));
    save("answer-on-its-way", Kind::SnapshotAnswer, &hashed(9, &numbers(&[905])));
    save("answer-yes", Kind::SnapshotAnswer, &[0]);
    save("answer-not-needed", Kind::SnapshotAnswer, &[4]);
    save("answer-gone", Kind::SnapshotAnswer, &[5]);
    save("answer-busy", Kind::SnapshotAnswer, &[3, 200, 0, 0, 0]);
    save("answer-no", Kind::SnapshotAnswer, &[6, 2, 0, b'n', b'o']);
    save("numbers", Kind::Numbers, &numbers(&[1, 2, 3, 4]));

    let bytes = catalogue.encode();
    let mut manifest = [&[2][..], &numbers(&[901, 3, 905]), &[2, 0, 0, 0, 1, 0, 2, 0], &[0; 12], &[0]].concat();
    manifest.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    manifest.extend_from_slice(&bytes);
    manifest.extend_from_slice(&[1, 0, 0, 0]);
    for (id, info) in catalogue.databases() {
        manifest.extend_from_slice(&listed(id.0, info.page_size.bytes()));
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

    // Hashes and checksums that are not there; behind 128 they are put right.
    let mut zeroed = |name: &str, kind: Kind, bytes: &[u8], sum: std::ops::Range<usize>| {
        let mut bytes = bytes.to_vec();
        bytes[sum].fill(0);
        all.save("messages", &format!("{name}-mended"), Some(128 + selector(kind)), &bytes);
        all.save("messages", &format!("refused-{name}"), Some(selector(kind)), &bytes);
    };
    zeroed("answer-opened-one", Kind::SnapshotAnswer, &one, 1..17);
    let end = manifest.len() - 4 - 40;
    zeroed("manifest", Kind::Manifest, &manifest, end - 4..end);
    let end = history.len();
    zeroed("history", Kind::History, &[&history[..], b"registry"].concat(), end - 4..end);
}

/// Edits of a good log: file, offset (2), kind (0 cut, 1 zeros, else xor), value; and logs of records.
fn log(all: &mut Seeds) {
    let edits: [(&str, &[u8]); 5] = [
        ("torn-tail", &[6, 88, 2, 1, 0]),
        ("cut", &[6, 0xe8, 3, 0, 0]),
        ("refused-flip", &[0, 0, 3, 2, 0x40]),
        ("refused-torn-middle", &[3, 0, 6, 1, 0]),
        ("refused-cut-middle", &[3, 0, 4, 0, 0, 1, 40, 0, 2, 1]),
    ];
    for (name, edits) in edits {
        all.save("log", name, Some(1), edits);
    }
    // A byte of the first entry, its kind; a length, behind which no record begins.
    all.save("log", "flip-mended", Some(129), &[0, 110, 2, 2, 0x40]);
    all.save("log", "refused-length-mended", Some(129), &[1, 44, 2, 2, 0x08, 2, 36, 2, 2, 0x08]);
    all.save("log", "kind-mended", Some(129), &[0, 48, 2, 2, 3]);
    let segment = shoaldb_fuzz::first_segment();
    all.save("log", "raw", Some(0), &segment);
    let mut changed = segment.clone();
    changed[600..616].fill(9);
    all.save("log", "raw-mended", Some(128), &changed);
    all.save("log", "refused-raw", Some(0), &changed);

    let start = Start { number: 0, fresh: true, index: 1, term: 1, vote: 0, commit: 1 };
    let entry = |len| Step::Entry { index: 0, term: 0, membership: false, len };
    let batch = Step::Batch { synced: 0 };
    let segment = |twist| Step::Segment { twist };
    let vote = |term, vote| Step::HardState { term, vote, commit: 0 };
    let grows =
        [entry(3), vote(1, 2), batch.clone(), entry(200), Step::Entry { index: 0, term: 0, membership: true, len: 7 }];
    let commits = [
        Step::HardState { term: 0, vote: 2, commit: 2 },
        Step::Anchor { applied: 1, voters: 3, registry: 30 },
        batch.clone(),
    ];
    let goes_on = [&grows[..], &commits, &[entry(9), entry(0), batch.clone()]].concat();
    let replaced = [Step::Truncate { back: 2, term: 0 }, vote(1, 3), entry(44), batch.clone()];
    let refused = |step| [&goes_on[..], &[step]].concat();
    let logs = [
        ("records", goes_on.clone()),
        ("records-truncated", [&goes_on[..], &replaced].concat()),
        (
            "records-segments",
            [&goes_on[..], &[segment(Twist::None)], &replaced, &[segment(Twist::Unsaid), entry(1), batch.clone()]]
                .concat(),
        ),
        ("records-fresh", [&goes_on[..], &[segment(Twist::Fresh)], &grows].concat()),
        ("refused-records-gap", refused(Step::Entry { index: 1, term: 0, membership: false, len: 1 })),
        ("refused-records-term", refused(Step::HardState { term: -1, vote: 0, commit: 0 })),
        ("refused-records-vote", refused(vote(0, 1))),
        ("refused-records-anchor", refused(Step::Anchor { applied: 9, voters: 1, registry: 0 })),
        ("refused-records-committed", refused(Step::Truncate { back: 5, term: 0 })),
        ("refused-records-sealed", refused(Step::Sealed { next: 0 })),
        ("refused-records-unknown", refused(Step::Unknown { kind: 7, payload: 1 })),
        ("refused-records-head", [&refused(segment(Twist::Chain))[..], &grows].concat()),
    ];
    for (name, steps) in logs {
        all.save("log", name, Some(2), &shoaldb_fuzz::records(start, &steps));
    }
    // As compaction leaves it: the first segment that is there is not the first.
    let later = Start { number: 4, fresh: false, index: 300, term: 6, vote: 3, commit: 299 };
    all.save("log", "records-compacted", Some(2), &shoaldb_fuzz::records(later, &[&grows[..], &replaced].concat()));
}

/// Files of a database, small ones.
fn disk(all: &mut Seeds) {
    all.save("disk", "map", Some(0), &shoaldb_fuzz::file_of_a_database(1));
    all.save("disk", "map-mended", Some(1), &shoaldb_fuzz::file_of_a_database(1)[..1100]);
    all.save("disk", "double-write", Some(2), &shoaldb_fuzz::file_of_a_database(2));
    let mut unhashed = shoaldb_fuzz::file_of_a_database(2);
    unhashed[72..88].fill(0);
    all.save("disk", "double-write-mended", Some(3), &unhashed);
    all.save("disk", "refused-double-write", Some(2), &unhashed);
    // Edits: which checkpoint, then file, offset (2), kind (0 cut, 1 zeros, else xor), value.
    all.save("disk", "flip", Some(4), &[0, 0, 7, 0, 2, 1]);
    all.save("disk", "refused-record", Some(4), &[1, 1, 3, 2, 2, 1, 1, 8, 4, 2, 1]);
    all.save("disk", "torn-double-write", Some(4), &[1, 2, 100, 0, 0, 0, 0, 0, 2, 1, 9]);
}

/// Two connections, here with `true` for the second one.
fn sql(all: &mut Seeds) {
    let create = |table| Op::Create { table, without_rowid: false, unique: false };
    let insert = |key, bytes| Op::Insert { table: 0, key, bytes, or_replace: false };
    let many = |rows| Op::InsertMany { table: 0, rows };
    let (read, count) = (|| Op::Read { table: 0 }, || Op::Count { table: 0 });
    let begin = |kind| Op::Begin { kind };
    let scripts = [
        (
            "transaction",
            vec![
                (false, create(0)),
                (false, begin(1)),
                (false, insert(1, 10)),
                (false, many(20)),
                (true, count()),
                (false, Op::Savepoint { name: 0 }),
                (false, Op::Update { table: 0, key: 1, bytes: 3000 }),
                (false, Op::RollbackTo { name: 0 }),
                (false, Op::Release { name: 0 }),
                (false, Op::Commit),
                (true, read()),
                (true, Op::Delete { table: 0, below: 9 }),
                (false, Op::Integrity),
            ],
        ),
        (
            "schema",
            vec![
                (false, Op::Create { table: 0, without_rowid: true, unique: true }),
                (false, insert(3, 5)),
                (true, read()),
                (false, Op::Index { table: 0 }),
                (false, Op::AddColumn { table: 0 }),
                (true, insert(4, 6)),
                (true, create(1)),
                (false, Op::Trigger { table: 0, other: 1 }),
                (true, Op::Rename { table: 0, to: 2 }),
                (false, read()),
                (false, Op::DropIndex { table: 0 }),
                (true, Op::Drop { table: 1 }),
                (false, Op::ForeignSchema { version: 7 }),
                (true, Op::Read { table: 2 }),
            ],
        ),
        (
            "vacuum",
            vec![
                (false, Op::AutoVacuum { mode: 2 }),
                (false, create(0)),
                (false, many(60)),
                (false, Op::Delete { table: 0, below: 200 }),
                (false, Op::IncrementalVacuum),
                (true, count()),
                (false, Op::Vacuum),
                (true, Op::AutoVacuum { mode: 0 }),
                (true, Op::Vacuum),
                (false, read()),
            ],
        ),
        (
            "rollback",
            vec![
                (false, create(0)),
                (false, Op::CacheSize { pages: 0 }),
                (false, many(3)),
                (false, begin(0)),
                (false, many(90)),
                (false, Op::Update { table: 0, key: 2, bytes: 8000 }),
                (false, count()),
                (false, Op::Rollback),
                (true, count()),
                (false, begin(2)),
                (false, many(50)),
                (false, Op::Reopen),
                (false, read()),
            ],
        ),
        (
            "two-writers",
            vec![
                (false, create(0)),
                (false, begin(0)),
                (false, read()),
                (true, insert(1, 1)),
                (false, insert(2, 2)),
                (false, Op::Rollback),
                (true, begin(1)),
                (false, begin(1)),
                (true, insert(3, 19_999)),
                (false, read()),
                (true, Op::Commit),
                (false, Op::Insert { table: 0, key: 3, bytes: 4, or_replace: true }),
                (true, read()),
            ],
        ),
    ];
    for (name, ops) in scripts {
        all.save("sql", name, None, &shoaldb_fuzz::script(&ops));
    }
    for seed in 1..=2 {
        all.save("sql", &format!("noise-{seed}"), None, &noise(seed, 120));
    }
}

/// Bytes that mean whatever they mean.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let step = |state: &mut u64| {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        Some((*state >> 33) as u8)
    };
    std::iter::repeat(()).scan(seed, |state, ()| step(state)).take(len).collect()
}

/// What tests/cluster/schedule.rs makes of bytes: which node, then (as two bytes) what, then what that needs.
struct Schedule {
    nodes: u8,
    bytes: Vec<u8>,
}

impl Schedule {
    /// The core's caches are large.
    fn new(nodes: u8) -> Schedule {
        Schedule { nodes, bytes: vec![if nodes == 3 { 0 } else { 1 }, 2, 2] }
    }

    fn step(&mut self, node: u8, what: u16, rest: &[u8]) {
        self.bytes.push(node - 1);
        self.bytes.extend_from_slice(&what.to_be_bytes());
        self.bytes.extend_from_slice(rest);
    }

    /// The oldest message arrives. Where there is none, the leader is told to hand over to itself, which changes nothing.
    fn deliver(&mut self, leader: u8) {
        let oldest = (1..=u8::MAX).find(|byte| byte % 4 != 0 && byte % self.nodes == leader - 1).unwrap();
        self.step(leader, 0, &[oldest, 3]);
    }

    fn tick(&mut self, node: u8) {
        self.step(node, 780, &[]);
    }

    /// So long that these two believe in no leader any more, and the first one stands for it.
    fn replace(&mut self, first: u8, second: u8) {
        self.settle(first);
        (0..5).for_each(|_| self.tick(second));
        self.campaign(first);
        self.settle(first);
    }

    fn propose(&mut self, node: u8) {
        self.step(node, 820, &[0, 0, 0, 0, node]);
    }

    fn read(&mut self, node: u8) {
        self.step(node, 940, &[]);
    }

    /// Without what is not synced, of which there is some or none.
    fn crash(&mut self, node: u8, unsynced: bool) {
        self.step(node, 980, if unsynced { &[1, 0] } else { &[1] });
    }

    fn restart(&mut self, node: u8) {
        self.step(node, 985, &[]);
    }

    /// Nothing of the one comes to the other.
    fn cut(&mut self, from: u8, to: u8) {
        self.step(from, 995, &[to - 1, 0]);
    }

    fn heal(&mut self) {
        self.step(1, 995, &[0, 1]);
    }

    fn campaign(&mut self, node: u8) {
        self.step(node, 998, &[0, 0]);
    }

    fn transfer(&mut self, from: u8, to: u8) {
        self.step(from, 998, &[to - 1, 1]);
    }

    /// All sync, apply and hear each other, some rounds long.
    fn settle(&mut self, leader: u8) {
        for _ in 0..4 {
            for node in 1..=self.nodes {
                self.step(node, 550, &[]);
                self.step(node, 700, &[]);
            }
            (0..=self.nodes).for_each(|_| self.deliver(leader));
        }
    }
}

fn cluster(all: &mut Seeds) {
    let mut transfer = Schedule::new(3);
    transfer.campaign(1);
    transfer.settle(1);
    transfer.propose(1);
    transfer.settle(1);
    transfer.transfer(1, 2);
    transfer.settle(2);
    transfer.propose(2);
    transfer.read(3);
    transfer.settle(2);

    // The leader loses what it has not synced, and another one takes its place.
    let mut crash = Schedule::new(3);
    crash.campaign(1);
    crash.settle(1);
    crash.propose(1);
    crash.settle(1);
    crash.propose(1);
    crash.crash(1, true);
    crash.replace(2, 3);
    crash.propose(2);
    crash.restart(1);
    crash.tick(2);
    crash.settle(2);
    crash.crash(3, false);
    crash.propose(2);
    crash.settle(2);

    // The leader hears nobody and goes on proposing; the others go on without it.
    let mut partition = Schedule::new(3);
    partition.campaign(1);
    partition.settle(1);
    for other in [2, 3] {
        partition.cut(1, other);
        partition.cut(other, 1);
    }
    partition.propose(1);
    partition.replace(2, 3);
    partition.propose(2);
    partition.read(2);
    partition.settle(2);
    partition.heal();
    partition.tick(2);
    partition.settle(2);

    for (name, script) in [("transfer", transfer), ("crash", crash), ("partition", partition)] {
        all.save("cluster", name, None, &script.bytes);
    }
    all.save("cluster", "three", None, &[&[0], &noise(1, 400)[..]].concat());
    all.save("cluster", "five", None, &[&[1], &noise(2, 400)[..]].concat());
}
