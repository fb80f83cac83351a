//! Read transactions that stay open until the node ends them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use shoaldb::error::READER_ENDED;
use shoaldb::{Builder, Connection, DatabaseStatus, ErrorKind, Node, Outcome, PageNo, outcome, rusqlite};

use crate::cluster::{Cluster, LONG, fill, quick, table, until};
use crate::snapshots::with_blobs;

const ROWS: &str = "SELECT count(*), sum(length(v)) FROM b";

fn app(node: &Node) -> DatabaseStatus {
    node.status().databases.into_iter().find(|db| db.name == "app").unwrap()
}

fn rows(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    // What is in the page cache is read without asking anybody.
    db.execute_batch("PRAGMA shrink_memory")?;
    db.query_row(ROWS, [], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Readers count as old after a tenth of a second.
fn impatient(builder: Builder) -> Builder {
    quick(builder).reader_patience(Duration::from_millis(100))
}

/// Somebody forgets a read transaction on a leader and on a follower, and others go on writing.
fn a_forgotten_reader(settings: fn(Builder) -> Builder) {
    let cluster = Cluster::start_with(3, settings);
    table(&cluster);
    with_blobs(|| cluster.leader(), "app");
    fill(|| cluster.leader(), "app", 5);
    cluster.assert_equal("app");
    let nodes = [cluster.leader(), cluster.follower()];
    let forgotten = nodes.map(|node| {
        let db = node.connect("app").unwrap();
        db.execute_batch("BEGIN").unwrap();
        let seen = rows(&db).unwrap();
        (node, db, seen)
    });
    for (node, db, seen) in &forgotten {
        until(node, "the status tells of it", |_| app(node).oldest_reader_ms.is_some());
        assert_eq!(rows(db).unwrap(), *seen);
    }
    for (node, ..) in &forgotten {
        until(node, "it is not ended", |_| {
            fill(|| cluster.leader(), "app", 5);
            app(node).readers_ended > 0
        });
    }
    for (node, db, seen) in forgotten {
        let error = rows(&db).unwrap_err();
        assert_eq!(error.sqlite_error().map(|error| error.extended_code), Some(READER_ENDED), "{error}");
        assert_eq!(outcome(&error), Some(Outcome::NotCommitted));
        let error = shoaldb::Error::from(error);
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains("reader_wal_pin_max"), "{error}");
        assert!(db.is_autocommit());
        assert!(rows(&db).unwrap().0 > seen.0);
        until(node, "its wal shrinks", |status| app(node).wal_frames < 64 && status.alarms.is_empty());
    }
    cluster.assert_equal("app");
}

/// A reader that is there when the last checkpoint ends keeps what nobody needs any more. Nobody writes afterwards, so it is the node
/// that lets it go.
#[test]
fn a_wal_whose_last_reader_leaves_after_its_checkpoint_is_given_back_although_nobody_writes() {
    let dir = tempfile::tempdir().unwrap();
    let node = quick(Node::builder(1, dir.path())).start().unwrap();
    node.wait_leader(LONG).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE b(id INTEGER PRIMARY KEY, v)")?)).unwrap();
    let no_checkpoint = node.read_view("app").unwrap();
    fill(|| &node, "app", 5);
    let reader = node.connect("app").unwrap();
    reader.execute_batch("BEGIN").unwrap();
    rows(&reader).unwrap();
    drop(no_checkpoint);
    until(&node, "all is in the main file", |_| app(&node).checkpointed == app(&node).position);
    assert!(app(&node).wal_frames > 0);
    reader.execute_batch("COMMIT").unwrap();
    until(&node, "its frames are gone", |_| app(&node).wal_frames == 0);
    assert_eq!(app(&node).wal.now, 0);
}

#[test]
fn a_reader_that_keeps_too_much_of_a_wal_is_ended() {
    a_forgotten_reader(|builder| impatient(builder).reader_wal_pin_max(256 << 10).log_limit(1 << 30));
}

/// A WAL of which many are small may hold the log as well.
#[test]
fn a_reader_that_holds_the_log_is_ended() {
    a_forgotten_reader(impatient);
}

#[test]
fn a_reader_that_keeps_little_is_left_in_peace() {
    let cluster = Cluster::start_with(3, impatient);
    table(&cluster);
    with_blobs(|| cluster.leader(), "app");
    let leader = cluster.leader();
    fill(|| cluster.leader(), "app", 5);
    let db = leader.connect("app").unwrap();
    db.execute_batch("BEGIN").unwrap();
    let seen = rows(&db).unwrap();
    fill(|| cluster.leader(), "app", 20);
    // Long enough that it counts as old, and that what was written would be checkpointed without it.
    until(leader, "it gets old", |_| app(leader).oldest_reader_ms.is_some_and(|age| age > 500));
    assert_eq!(rows(&db).unwrap(), seen);
    assert_eq!(app(leader).readers_ended, 0);
}

/// A reader younger than `reader_patience`, and a WAL beyond `reader_wal_pin_max`.
fn a_young_reader() -> (Cluster, Connection) {
    let cluster = Cluster::start_with(1, |builder| quick(builder).reader_wal_pin_max(PINS));
    table(&cluster);
    let leader = cluster.leader();
    with_blobs(|| cluster.leader(), "app");
    fill(|| cluster.leader(), "app", 5);
    let db = leader.connect("app").unwrap();
    db.execute_batch("BEGIN").unwrap();
    rows(&db).unwrap();
    while wal_bytes(leader) <= PINS {
        fill(|| cluster.leader(), "app", 1);
    }
    (cluster, db)
}

const PINS: u64 = 2 << 20;

fn wal_bytes(node: &Node) -> u64 {
    u64::from(app(node).wal_frames) * 4096
}

/// A short `checkpoint_age` says nothing of readers.
#[test]
fn a_young_reader_may_keep_more() {
    let (cluster, db) = a_young_reader();
    let leader = cluster.leader();
    let seen = rows(&db).unwrap();
    until(leader, "it is older than it may be with twice as much", |_| {
        app(leader).oldest_reader_ms.is_some_and(|age| age > 1500)
    });
    assert!((PINS..2 * PINS).contains(&wal_bytes(leader)));
    assert_eq!(rows(&db).unwrap(), seen);
    assert_eq!(app(leader).readers_ended, 0);
}

#[test]
fn a_young_reader_may_not_keep_twice_as_much() {
    let (cluster, db) = a_young_reader();
    let leader = cluster.leader();
    until(leader, "it is not ended", |_| {
        fill(|| cluster.leader(), "app", 5);
        app(leader).readers_ended > 0
    });
    let error = rows(&db).unwrap_err();
    assert_eq!(error.sqlite_error().map(|error| error.extended_code), Some(READER_ENDED), "{error}");
    until(leader, "its wal shrinks", |_| wal_bytes(leader) < PINS);
}

/// Readers none of which is old, but there is always one.
#[test]
fn readers_that_follow_each_other_do_not_keep_the_wal() {
    let settings = |builder| quick(builder).reader_patience(Duration::from_millis(1)).reader_wal_pin_max(256 << 10);
    let cluster = Cluster::start_with(1, settings);
    table(&cluster);
    let leader = cluster.leader();
    with_blobs(|| cluster.leader(), "app");
    fill(|| cluster.leader(), "app", 5);
    let readers = RefCell::new(VecDeque::new());
    until(leader, "no lap ends", |_| {
        let db = leader.connect("app").unwrap();
        db.execute_batch("BEGIN").unwrap();
        rows(&db).unwrap();
        fill(|| cluster.leader(), "app", 5);
        let mut readers = readers.borrow_mut();
        readers.push_back(db);
        if readers.len() > 4 {
            readers.pop_front();
        }
        app(leader).readers_ended > 0 && wal_bytes(leader) < 256 << 10
    });
}

/// A view that an application opened and forgot is closed, and says so.
fn a_forgotten_view(settings: fn(Builder) -> Builder) {
    let cluster = Cluster::start_with(1, settings);
    table(&cluster);
    let leader = cluster.leader();
    with_blobs(|| cluster.leader(), "app");
    fill(|| cluster.leader(), "app", 5);
    let view = leader.read_view("app").unwrap();
    let first = PageNo::new(1).unwrap();
    let lent = view.page(first).unwrap();
    let was = lent.to_vec();
    until(leader, "it is not closed", |_| {
        fill(|| cluster.leader(), "app", 5);
        !view.is_open()
    });
    assert!(view.page(first).unwrap_err().to_string().contains("open a new one"));
    assert_eq!(app(leader).views, 1, "a page is still lent");
    assert_eq!(&*lent, was);
    drop(lent);
    until(leader, "its wal shrinks", |status| app(leader).wal_frames < 64 && status.alarms.is_empty());
}

#[test]
fn a_forgotten_view_that_keeps_too_much_of_a_wal_is_closed() {
    a_forgotten_view(|builder| quick(builder).snapshot_wal_pin_max(256 << 10).log_limit(1 << 30));
}

#[test]
fn a_forgotten_view_that_holds_the_log_is_closed() {
    a_forgotten_view(quick);
}
