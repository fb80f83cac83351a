//! Read transactions that stay open until the node ends them.

use std::time::Duration;

use shoaldb::error::READER_ENDED;
use shoaldb::{Builder, Connection, DatabaseStatus, ErrorKind, Node, Outcome, outcome, rusqlite};

use crate::cluster::{Cluster, fill, quick, table, until};
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
    with_blobs(cluster.leader(), "app");
    fill(cluster.leader(), "app", 5);
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
            fill(cluster.leader(), "app", 5);
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
    with_blobs(cluster.leader(), "app");
    let leader = cluster.leader();
    fill(leader, "app", 5);
    let db = leader.connect("app").unwrap();
    db.execute_batch("BEGIN").unwrap();
    let seen = rows(&db).unwrap();
    fill(leader, "app", 20);
    // Long enough that it counts as old, and that what was written would be checkpointed without it.
    until(leader, "it gets old", |_| app(leader).oldest_reader_ms.is_some_and(|age| age > 500));
    assert_eq!(rows(&db).unwrap(), seen);
    assert_eq!(app(leader).readers_ended, 0);
}

/// A short `checkpoint_age` says nothing of readers.
#[test]
fn a_young_reader_is_left_in_peace_whatever_it_keeps() {
    let cluster = Cluster::start_with(1, |builder| quick(builder).reader_wal_pin_max(64 << 10));
    table(&cluster);
    let leader = cluster.leader();
    with_blobs(leader, "app");
    fill(leader, "app", 5);
    let db = leader.connect("app").unwrap();
    db.execute_batch("BEGIN").unwrap();
    let seen = rows(&db).unwrap();
    until(leader, "the log is far beyond its limit, and its checkpoints are old", |status| {
        fill(leader, "app", 20);
        status.log_bytes > 2 << 20 && app(leader).oldest_reader_ms.is_some_and(|age| age > 500)
    });
    assert_eq!(rows(&db).unwrap(), seen);
    assert_eq!(app(leader).readers_ended, 0);
}
