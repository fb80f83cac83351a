//! The public names and shapes that programs are written against. Most of it is checked by the compiler.

use std::time::Duration;

use shoaldb::{
    AutoVacuum, Builder, ConnectOptions, Connection, CreateOptions, DatabaseStatus, Error, ErrorKind, Event, Member,
    Node, Outcome, PeerStatus, ReadLevel, Receipt, ReceiptOutcome, Status, WriteTx, error, leader_hint, outcome,
    outcome_of_code, rusqlite,
};

use crate::cluster::{Cluster, LONG, administer, until};
use crate::wait::told;

const fn is_send<T: Send>() {}
const fn is_shared<T: Clone + Send + Sync>() {}
const _: () = is_shared::<Node>();
const _: () = is_send::<Connection>();
const _: () = is_send::<Status>();
const fn is_serde<T: serde::Serialize + serde::de::DeserializeOwned>() {}
const _: () = is_serde::<Status>();

#[test]
fn every_name_has_its_shape() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let node: Node = Node::builder(1, dir.path())
        .listen("127.0.0.1:0")
        .advertise("127.0.0.1:4001")
        .bootstrap([Member::new(1, "127.0.0.1:4001")])
        .heartbeat(Duration::from_millis(50))
        .election_timeout(Duration::from_millis(500))
        .commit_timeout(Duration::from_secs(10))
        .busy_timeout(Duration::from_secs(5))
        .wal_limit(64 << 20)
        .log_limit(256 << 20)
        .vfs_name("api")
        .allow_plaintext_remote(false)
        .start()?;
    let leader: u64 = node.wait_leader(Duration::from_secs(10))?;
    assert_eq!(leader, 1);
    let member: Option<Member> = node.leader();
    assert_eq!(member, Some(Member { id: 1, address: "127.0.0.1:4001".to_string() }));
    let events: crossbeam_channel::Receiver<Event> = node.events();
    assert!(events.try_iter().all(|event| !matches!(event, Event::Lagged(_))));

    let mut db: Connection = node.connect("app")?;
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)", [])?;
    let tx = db.transaction()?;
    tx.execute("INSERT INTO t(v) VALUES (?1)", ["x"])?;
    tx.commit()?;
    let name = "borrowed".to_string();
    let id: i64 = node.write("app", |tx: &WriteTx<'_>| {
        tx.execute("INSERT INTO t(v) VALUES (?1)", [&name])?;
        Ok(tx.last_insert_rowid())
    })?;
    assert_eq!(id, 2);
    db.set_read_level(ReadLevel::Linearizable);
    let rows: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    assert_eq!(rows, 2);
    let (index, sum): (u64, u128) = node.checksum("app")?;
    assert!(index > 0 && sum != 0);
    let refused: shoaldb::Result<()> = node.write("app", |tx| Ok(tx.execute_batch("COMMIT")?));
    assert!(refused.is_err(), "a closure does not end its transaction");
    db.execute("INSERT INTO t(v) VALUES ('receipt')", [])?;
    let receipt: Receipt = db.last_receipt().ok_or("no receipt")?;
    let settled: ReceiptOutcome = node.outcome_of(receipt)?;
    assert!(matches!(settled, ReceiptOutcome::Committed(index) if index == receipt.index()));

    let file = dir.path().join("out.db");
    node.backup("app", &file)?;
    node.restore("again", &file)?;
    let again: i64 = node.connect("again")?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    assert_eq!(again, 3);
    node.drop_database("again")?;

    node.create("other", CreateOptions { page_size: 1024, auto_vacuum: AutoVacuum::Full })?;
    let names: Vec<String> = node.databases()?;
    assert_eq!(names, ["app", "other"]);
    let options = ConnectOptions { read_level: ReadLevel::Linearizable, ..ConnectOptions::default() };
    let other: Connection = node.connect_with("other", options)?;
    let closed: Result<(), (Connection, Error)> = other.close();
    assert!(closed.is_ok());
    node.drop_database("other")?;

    let status: Status = node.status();
    serde_json::to_string(&status)?;
    assert_eq!((status.node.0, status.databases.len()), (1, 1));
    is_complete(&status);
    assert_eq!(node.id(), 1);
    let refused: Error = node.transfer_leadership(7).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    assert!(!refused.is_not_leader() && !refused.is_retryable() && !refused.is_corrupt());
    let _: Option<Outcome> = refused.outcome();
    let of: fn(&rusqlite::Error) -> Option<Outcome> = outcome;
    let of_code: fn(i32) -> Option<Outcome> = outcome_of_code;
    let hint: fn(&rusqlite::Error) -> Option<u64> = leader_hint;
    let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(8 | (0x10000 + 3) << 8), None);
    assert_eq!((of(&error), hint(&error)), (Some(Outcome::NotCommitted), Some(3)));
    assert_eq!(of_code(5 | 77 << 8), Some(Outcome::NotCommitted));
    assert_eq!(of_code(10 | 200 << 8), Some(Outcome::Unknown));
    assert!(Error::from(error).is_not_leader());

    let of_refused = [error::NOT_COMMITTED, error::UNKNOWN, error::not_leader_code(3)].map(outcome_of_code);
    assert_eq!(of_refused, [Some(Outcome::NotCommitted), Some(Outcome::Unknown), Some(Outcome::NotCommitted)]);

    let unmodified = rusqlite::Connection::open(format!("file:app?vfs={}", node.vfs_name()))?;
    unmodified.execute("INSERT INTO t(v) VALUES ('z')", [])?;
    node.clone().shutdown()?;
    node.shutdown()?;
    Ok(())
}

/// What a status tells, and of which kind.
fn is_complete(status: &Status) {
    let Status { incarnation, cluster, role, term, leader, voters, learners, .. } = status;
    let _: (u64, Option<u64>, &str, u64) = (incarnation.0, cluster.map(|id| id.0), role, term.0);
    let _: (Option<u16>, usize) = (leader.map(|id| id.0), voters.len() + learners.len());
    let _: [u64; 4] = [status.first.0, status.last.0, status.committed.0, status.applied.0];
    let _: (u64, &[String]) = (status.log_bytes, &status.alarms);
    for DatabaseStatus { id, name, pages, page_size, wal_frames, position, checkpointed, checksum, views, .. } in
        &status.databases
    {
        let _: (u64, &str, [u32; 3], [u64; 2], &str, u64) =
            (id.0, name, [*pages, *page_size, *wal_frames], [position.0, checkpointed.0], checksum, *views);
    }
    for PeerStatus { acknowledged, next, state, .. } in &status.peers {
        let _: (u64, u64, &str) = (acknowledged.0, next.0, state);
    }
}

/// Every variant that a listener is promised.
fn names(event: &Event) -> &'static str {
    match event {
        Event::LeaderChanged { term: _, leader: _ } => "leader",
        Event::MemberChanged { index: _, voters: _, learners: _ } => "members",
        Event::SnapshotStarted { peer: _, index: _, receiving: _ } => "snapshot started",
        Event::SnapshotProgress { peer: _, index: _, receiving: _, done: _, total: _ } => "snapshot progress",
        Event::SnapshotInstalled { index: _, bytes: _ } => "snapshot installed",
        Event::SnapshotFinished { peer: _, index: _, receiving: _ } => "snapshot finished",
        Event::CheckpointDone { database: _, position: _ } => "checkpoint",
        Event::DivergenceFound { database: _, what: _ } => "divergence found",
        Event::DivergenceRepaired { database: _, source: _, bytes: _ } => "divergence repaired",
        Event::DiskTrouble { what: _ } => "disk",
        Event::LogCompacted { through: _ } => "compaction",
        Event::Lagged(_) => "lagged",
        _ => "more",
    }
}

/// A fourth node joins, or is added, promoted and removed by the calls that any node takes.
#[test]
fn the_calls_for_members_have_their_shapes() -> Result<(), Box<dyn std::error::Error>> {
    let mut cluster = Cluster::start(3);
    cluster.prepare_more(2);
    let node: Node = cluster.leader().clone();
    let events = node.events();
    let follower = cluster.running().find(|other| other.id() != node.id()).ok_or("no follower")?.clone();

    let door = cluster.list[0].address.clone();
    let builder: Builder = cluster.builder(4).bootstrap([]).join([door]);
    let joined: Node = builder.start()?;
    assert!((1..=3).contains(&joined.wait_leader(LONG)?));
    until(&node, "four voters", |status| status.voters.len() == 4);
    let fifth: Member = cluster.list[4].clone();
    administer(|| follower.add_learner(fifth.clone()))?;
    let early: shoaldb::Result<()> = follower.promote(5);
    assert!(early.is_err(), "nobody has seen node 5");
    administer(|| follower.remove(5))?;
    told(&events, |event| names(event) == "members");
    administer(|| node.transfer_leadership(follower.id()))?;
    joined.shutdown()?;
    Ok(())
}
