//! Writes `seeds/`: one small, valid value per format, from which a fuzzer finds its way. `cargo run --example make_seeds`

use std::path::Path;

use bytes::Bytes;
use shoaldb::catalogue::{AutoVacuum, Catalogue, DatabaseName};
use shoaldb::entry::{Body, Origin, Payload, encode};
use shoaldb::found::format::{Belongs, FoundMessage, Genesis, GenesisMember, Identity};
use shoaldb::net::codec;
use shoaldb::net::frame::{FrameKind, put};
use shoaldb::net::handshake::{Hello, Judge, PROTOCOL, Purpose, Welcome};
use shoaldb::raft::{ChangeKind, MembershipChange};
use shoaldb::types::{
    ClusterId, EntryClass, EntryId, Incarnation, LogEntry, LogIndex, Message, MessageKind, NodeId, Term,
};
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::transaction::{ChangedPage, Position, Transaction};
use shoaldb_vfs::wal::checksum::Checksum;
use shoaldb_vfs::wal::frame::seal;
use shoaldb_vfs::wal::header::WalHeader;

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
        image.iter_mut().enumerate().for_each(|(i, b)| *b = (i * i * 7919 >> 3) as u8 ^ (i as u8).wrapping_mul(byte));
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
        ("transaction", Body::Transaction { database: shoaldb::catalogue::DatabaseId(2), transaction }),
        (
            "create",
            Body::CreateDatabase { name: name.clone(), page_size: PageSize::DEFAULT, auto_vacuum: AutoVacuum::Full },
        ),
        ("drop", Body::DropDatabase { database: shoaldb::catalogue::DatabaseId(2) }),
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
    Judge { me: NodeId(3), speaks: (PROTOCOL, PROTOCOL), cluster: None, catalogue: None }.hello(&hello).unwrap_err().encode(&mut bytes);
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
}
