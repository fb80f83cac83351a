//! Checkpoints, the place where a start begins, compaction, and what a person is told about them.

use shoaldb::{Builder, CreateOptions, Event, Node};

use crate::cluster::{self, Cluster, LONG, count, fill, insert, table, until};
use crate::wait::told;

fn quick(builder: Builder) -> Builder {
    cluster::quick(builder).log_limit(512 << 10)
}

/// Shows INV-24.
#[test]
fn a_start_begins_where_the_checkpoints_ended_and_shows_everything() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let node = quick(Node::builder(1, dir.path())).start().unwrap();
        node.wait_leader(LONG).unwrap();
        node
    };
    let node = start();
    let events = node.events();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE b(id INTEGER PRIMARY KEY, v); CREATE TABLE t(x)")?))
        .unwrap();
    for _ in 0..20 {
        fill(|| &node, "app", 30);
    }
    // A few entries are not worth an anchor, unless the log is long; a change of the catalogue always is.
    node.create("mark", CreateOptions::default()).unwrap();
    let status = until(&node, "all is checkpointed and the start moved on", |status| {
        let app = status.databases.iter().find(|db| db.name == "app").unwrap();
        app.checkpointed == app.position && app.wal_frames == 0 && status.anchored >= app.position
    });
    told(&events, |event| matches!(event, Event::CheckpointDone { .. }));
    let sum = node.checksum("app").unwrap();
    node.shutdown().unwrap();
    // What the checkpoint left is a database of stock SQLite, of just that state. A copy: SQLite would put a WAL beside it.
    let stock = tempfile::tempdir().unwrap();
    let mut rows_in_files = Vec::new();
    for file in std::fs::read_dir(dir.path().join("db")).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|kind| kind == "db") {
            let copy = stock.path().join(file.file_name().unwrap());
            std::fs::copy(&file, &copy).unwrap();
            let db = rusqlite::Connection::open(&copy).unwrap();
            let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(verdict, "ok", "{}", file.display());
            rows_in_files.extend(db.query_row("SELECT count(*) FROM b", [], |row| row.get::<_, i64>(0)).ok());
        }
    }
    assert_eq!(rows_in_files, [600]);

    let node = start();
    assert_eq!(node.checksum("app").unwrap(), sum);
    assert!(node.status().anchored >= status.anchored);
    let db = node.connect("app").unwrap();
    let rows: i64 = db.query_row("SELECT count(*) FROM b", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 600);
    // And what came behind the last checkpoint.
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    drop(db);
    drop(node);
    let node = start();
    assert_eq!(count(&node.connect("app").unwrap()), 1);
}

/// Shows INV-25.
#[test]
fn the_log_stays_within_its_limit_on_every_node() {
    let mut cluster = Cluster::start_with(3, quick);
    table(&cluster);
    cluster.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE b(id INTEGER PRIMARY KEY, v)")?)).unwrap();
    for round in 0..30 {
        fill(|| cluster.leader(), "app", 30);
        insert(&cluster, round).unwrap();
    }
    for node in cluster.running() {
        until(node, "the log is compacted", |status| status.log_bytes <= 1 << 20 && status.first.0 > 2);
    }
    // A node that is away holds back nothing: when it is back, a snapshot brings it what the logs do not have any more.
    let away = cluster.follower().id();
    cluster.nodes[away as usize - 1] = None;
    let before = cluster.leader().status().first;
    for _ in 0..30 {
        fill(|| cluster.leader(), "app", 30);
    }
    for node in cluster.running() {
        until(node, "the log is compacted without the node that is away", |status| {
            status.log_bytes <= 1 << 20 && status.first > before && status.alarms.is_empty()
        });
    }
    cluster.start_node(away);
    for node in cluster.running() {
        until(node, "the log is compacted with it", |status| status.log_bytes <= 1 << 20 && status.alarms.is_empty());
    }
    cluster.assert_equal("app");
}

#[test]
fn a_database_that_is_damaged_is_not_served_and_the_others_are() {
    // Cut short, and gone.
    for (end, there) in [("db", true), ("map", true), ("db", false), ("map", false)] {
        let dir = tempfile::tempdir().unwrap();
        let node = quick(Node::builder(1, dir.path())).start().unwrap();
        node.wait_leader(LONG).unwrap();
        for name in ["good", "bad"] {
            node.write(name, |tx| Ok(tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")?)).unwrap();
        }
        let status = until(&node, "all is checkpointed", |status| {
            // The anchor must know both databases. It need not have what was written to the second one.
            status.databases.len() == 2
                && status.databases.iter().all(|db| db.checkpointed == db.position && status.anchored.0 >= db.id.0)
        });
        let id = status.databases.iter().find(|db| db.name == "bad").unwrap().id;
        node.shutdown().unwrap();
        let path = dir.path().join("db").join(format!("{id}-1.{end}"));
        let bytes = std::fs::read(&path).unwrap();
        if there {
            std::fs::write(&path, &bytes[..40]).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }

        let node = quick(Node::builder(1, dir.path())).start().unwrap();
        node.wait_leader(LONG).unwrap();
        let alarms = node.status().alarms;
        let named = |alarm: &String| alarm.contains("database bad") && alarm.contains(&format!("/{id}-1.{end}"));
        // Nobody else has a copy, so nobody is said to repair it.
        let helps = |alarm: &String| alarm.contains("restore a backup") && !alarm.contains("from the others");
        assert!(alarms.iter().any(|alarm| named(alarm) && helps(alarm)), "{alarms:?}");
        let error = node.connect("bad").unwrap_err();
        assert!(error.is_corrupt() && named(&error.to_string()), "{error}");
        let good = node.connect("good").unwrap();
        good.execute("INSERT INTO t VALUES (2)", []).unwrap();
        assert_eq!(count(&good), 2);
        // Nothing was taken from the file that might still help somebody.
        assert_eq!(std::fs::read(&path).map(|left| left.len()).ok(), there.then_some(40));
    }
}

/// A view outlives what comes after it, then it is closed, and the checkpoint that waited is made. What it has lent
/// outlives the node.
#[test]
fn a_read_view_is_counted_and_keeps_checkpoints_away_until_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let node = quick(Node::builder(1, dir.path())).start().unwrap();
    node.wait_leader(LONG).unwrap();
    assert_eq!(node.read_view("app").unwrap_err().kind(), shoaldb::ErrorKind::NotFound);
    for name in ["app", "other"] {
        node.write(name, |tx| Ok(tx.execute_batch("CREATE TABLE b(id INTEGER PRIMARY KEY, v)")?)).unwrap();
    }
    fill(|| &node, "app", 10);
    let view = node.read_view("app").unwrap();
    let sum = node.checksum("app").unwrap();
    assert_eq!((view.at().position.0, view.at().checksum.0), sum);
    fill(|| &node, "app", 30);
    // The upkeep looks at one database after the other: when the second one is done, it has met the gate of the first.
    node.write("other", |tx| Ok(tx.execute_batch("INSERT INTO b VALUES (1, 1)")?)).unwrap();
    let status = until(&node, "the other database is checkpointed", |status| {
        status.databases[1].checkpointed == status.databases[1].position
    });
    assert_eq!((status.databases[0].views, status.databases[1].views), (1, 0));
    assert!(status.databases[0].checkpointed.0 <= sum.0 && view.wal_bytes() > 0);
    let last = shoaldb::PageNo::new(view.at().size.0).unwrap();
    let (lent, hash) = (view.page(last).unwrap(), view.hash(last).unwrap());
    view.close();
    assert_eq!(node.status().databases[0].views, 1, "a page is lent");
    drop(view);
    let other = node.read_view("app").unwrap();
    drop(lent);
    other.close();
    until(&node, "the gate is open", |status| {
        status.databases[0].checkpointed == status.databases[0].position && status.databases[0].views == 0
    });
    let view = node.read_view("app").unwrap();
    let lent = view.page(last).unwrap();
    node.shutdown().unwrap();
    assert!(!view.is_open());
    assert_eq!(node.read_view("app").unwrap_err().kind(), shoaldb::ErrorKind::Stopped);
    drop(node);
    assert_eq!(shoaldb_vfs::page::PageHash::of(last, &lent), hash);
}
