//! The public names and shapes that programs are written against. Most of it is checked by the compiler.

use std::time::Duration;

use shoaldb::{
    AutoVacuum, ConnectOptions, Connection, CreateOptions, Error, ErrorKind, Event, Member, Node, Outcome, ReadLevel,
    Status, WriteTx, leader_hint, outcome, outcome_of_code, rusqlite,
};

const fn is_send<T: Send>() {}
const fn is_shared<T: Clone + Send + Sync>() {}
const _: () = is_shared::<Node>();
const _: () = is_send::<Connection>();
const _: () = is_send::<Status>();

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

    let unmodified = rusqlite::Connection::open(format!("file:app?vfs={}", node.vfs_name()))?;
    unmodified.execute("INSERT INTO t(v) VALUES ('z')", [])?;
    node.clone().shutdown()?;
    node.shutdown()?;
    Ok(())
}
