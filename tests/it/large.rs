//! Transactions that go through the log in parts.

use std::path::Path;
use std::sync::Arc;

use shoaldb::{Builder, Error, Node, Outcome, outcome, rusqlite};
use shoaldb_vfs::env::os::{OsClock, OsRng};
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};
use shoaldb_vfs::env::{Env, Fs};

use crate::cluster::{Cluster, Impatient, LONG, PartsHeld, administer, count, until as until_status};

const PART: usize = 64 << 10;
/// 1.3 MB that nothing packs: some twenty parts, far more than are on their way at a time.
const LARGE: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 130) \
                     INSERT INTO t SELECT randomblob(10000) FROM n";
const ROWS: i64 = 130;

fn cluster(calm: bool) -> Cluster {
    let start = if calm { Cluster::start_calm } else { Cluster::start_with };
    let cluster = start(3, |builder: Builder| builder.part_bytes(PART).busy_timeout(LONG));
    for name in ["app", "other"] {
        cluster.write(name, |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    }
    cluster
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + LONG;
    while !is() {
        assert!(std::time::Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

fn assert_nothing_is_kept(cluster: &Cluster) {
    until("parts of a transaction that is over are kept", || !cluster.running().any(Node::has_open_split));
}

/// Shows INV-23.
#[test]
fn other_databases_commit_between_the_parts_and_nodes_may_restart_there() {
    let mut cluster = cluster(true);
    let (leader, restarted) = (cluster.leader().id(), cluster.follower().id());
    let db = cluster.node(leader).connect("app").unwrap();
    let other = cluster.node(leader).connect("other").unwrap();
    let before = cluster.node(leader).checksum("app").unwrap().0;
    std::thread::scope(|scope| {
        let held = PartsHeld::by(cluster.node(leader));
        let large = scope.spawn(|| {
            let result = db.execute(LARGE, []);
            (db, result)
        });
        until("no part came", || cluster.node(restarted).has_open_split());
        cluster.nodes[restarted as usize - 1] = None;
        other.execute("INSERT INTO t VALUES (1)", []).unwrap();
        assert_eq!(count(&cluster.node(leader).connect("app").unwrap()), 0, "nothing of it is shown");
        drop(held);
        cluster.start_node(restarted);
        let (db, result) = large.join().unwrap();
        assert_eq!(result.unwrap() as i64, ROWS);
        assert_eq!(count(&db), ROWS);
    });
    let (app, other) =
        (cluster.node(leader).checksum("app").unwrap().0, cluster.node(leader).checksum("other").unwrap().0);
    assert!(before < other && other < app, "{before} {other} {app}");
    cluster.assert_equal("app");
    cluster.assert_equal("other");
    assert_nothing_is_kept(&cluster);
    // All over again, from the log.
    cluster.calm = false;
    cluster.stop_all();
    (1..=3).for_each(|id| cluster.start_node(id));
    cluster.assert_equal("app");
    assert_eq!(count(&cluster.leader().connect("app").unwrap()), ROWS);
}

/// Shows INV-23.
#[test]
fn leadership_lost_between_the_parts_is_certainly_not_committed() {
    for cut in [false, true] {
        let cluster = cluster(!cut);
        let old = cluster.leader();
        let db = old.connect("app").unwrap();
        let next = cluster.follower().id();
        let refused = std::thread::scope(|scope| {
            let held = PartsHeld::by(old);
            let large = scope.spawn(|| db.execute(LARGE, []).map(|_| db));
            until("no part came", || cluster.node(next).has_open_split());
            if cut {
                cluster.cut(old.id(), true);
                drop(held);
                until("no other leads", || cluster.running().any(|node| node.id() != old.id() && node.is_leader()));
                cluster.cut(old.id(), false);
            } else {
                administer(|| old.transfer_leadership(next)).unwrap();
                drop(held);
            }
            large.join().unwrap().unwrap_err()
        });
        assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "{refused}");
        cluster.write("app", |tx| Ok(tx.execute_batch("INSERT INTO t VALUES (1)")?)).unwrap();
        cluster.assert_equal("app");
        assert_nothing_is_kept(&cluster);
        let leader = cluster.leader();
        let db = leader.connect("app").unwrap();
        assert_eq!(count(&db), 1);
        db.execute(LARGE, []).unwrap();
        assert_eq!(count(&db), 1 + ROWS);
        cluster.assert_equal("app");
    }
}

/// With parts of 22 MiB and more a second one was refused as one too many that no majority has, and no large transaction could
/// ever be committed. Here one part is more than several of the queues take.
#[test]
fn the_queues_have_the_sizes_that_are_set_and_a_large_transaction_goes_through_them() {
    // Three of them are more than may be uncommitted.
    const PART: u64 = 400 << 10;
    let cluster = Cluster::start_calm(3, |builder| {
        let builder =
            builder.part_bytes(PART as usize).busy_timeout(LONG).tail_cache_limit(3 * PART).uncommitted_limit(1 << 20);
        builder.inflight_limit(64 << 10).apply_limit(64 << 10).inbox_limit(2 * PART)
    });
    let leader = cluster.leader();
    leader.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    leader.connect("app").unwrap().execute(LARGE, []).unwrap();
    cluster.assert_equal("app");
    for node in cluster.running() {
        let status = until_status(node, "more is in memory than may be", |status| {
            status.tail_cache.now <= status.tail_cache.limit && status.uncommitted.now + status.to_apply.now == 0
        });
        assert!(status.tail_cache.now > 0, "{status:#?}");
        let limits = [status.tail_cache, status.uncommitted, status.to_apply, status.inbox].map(|queue| queue.limit);
        assert_eq!(limits, [3 * PART, 4 * PART, 64 << 10, 2 * PART]);
        assert!(status.peers.iter().all(|peer| peer.in_flight.limit == 64 << 10), "{status:#?}");
        assert_eq!(status.peers.len(), if node.id() == leader.id() { 2 } else { 0 });
    }
}

/// A row of DESIGN.md's table of queues, and where the status has it: a field, or a bound by the beginning of its name. Nowhere what
/// is the size of one thing, or has no bound of its own.
const QUEUES: [(&str, &[&str]); 26] = [
    ("mailbox of the Raft thread", &["/inbox"]),
    (
        "bodies of messages that are being read",
        &["large messages that are being read, of members", "large messages that are being read, of others"],
    ),
    ("proposals not yet committed", &["/uncommitted"]),
    ("raft → log", &[]),
    ("raft → apply", &["/to_apply"]),
    ("tail cache of the core", &["/tail_cache"]),
    ("entries on their way to a follower", &["/peers/0/in_flight"]),
    ("a lane to a peer", &["small messages to node ", "large messages to node "]),
    ("requests from anybody", &[]),
    ("accepted connections", &["/connections", "connections that have not said hello"]),
    ("connections of programs that are no node", &["connections of programs that are no node"]),
    ("callers of the admin socket", &["callers of the admin socket"]),
    (
        "nodes that are dialed without being members",
        &["nodes that are dialed and no members", "nodes that are no members and whose version is known"],
    ),
    ("SQL sessions", &["/sessions"]),
    ("writers of a database", &["/databases/0/writers_waiting"]),
    ("events of a listener", &["events that the slowest listener has not taken"]),
    ("pages of virtual WALs in memory", &["/wal_memory", "/wal_limit"]),
    ("virtual WAL of a database", &["/databases/0/wal"]),
    ("large transactions of which some parts are applied", &["/open_splits"]),
    ("lists of a virtual WAL", &[]),
    ("where the transactions in a WAL end", &[]),
    ("objects of a view", &["objects of snapshots that are kept for several nodes"]),
    ("connections of `Node::write`", &["connections of write that are kept, of one database"]),
    ("log on disk", &["/log_bytes", "/log_limit"]),
    // Sizes of files and of one transaction: what the disk has room for is their bound.
    ("double-write of a database", &[]),
    ("room of a large transaction on the disk", &[]),
];

/// Whoever adds a queue finds this test red: it needs a place in the status, or a reason why not.
#[test]
fn every_queue_of_the_design_is_in_the_status_with_its_bound() {
    let design = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("DESIGN.md")).unwrap();
    let (_, table) = design.split_once("| queue | bound | when full |\n|---|---|---|\n").unwrap();
    let rows: Vec<Vec<&str>> =
        table.lines().map_while(|line| line.strip_prefix("| ")).map(|line| line.split(" | ").collect()).collect();
    let cluster = Cluster::start_calm(3, |builder| builder.busy_timeout(LONG));
    let leader = cluster.leader();
    leader.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    cluster.assert_equal("app");
    let status = until_status(leader, "one connection is kept", |status| {
        status.bounds.iter().any(|bound| bound.name.contains("of write") && bound.now == 1)
    });
    let json = serde_json::to_value(&status).unwrap();
    for (queue, places) in QUEUES {
        let row = rows.iter().find(|row| row[0].starts_with(queue)).unwrap_or_else(|| panic!("DESIGN.md: {queue}"));
        for place in places {
            if place.starts_with('/') {
                assert!(json.pointer(place).is_some_and(|value| !value.is_null()), "{queue}: {place}");
                continue;
            }
            let bound = status.bounds.iter().find(|bound| bound.name.starts_with(place));
            let bound = bound.unwrap_or_else(|| panic!("{queue}: {place}: {:#?}", status.bounds));
            let limit = if bound.bytes { format!("{} MiB", bound.limit >> 20) } else { bound.limit.to_string() };
            assert!(row[1].contains(&limit), "{queue}: {} is {limit}, and DESIGN.md says {}", bound.name, row[1]);
        }
    }
    let known = |row: &&Vec<&str>| QUEUES.iter().any(|(queue, _)| row[0].starts_with(queue));
    assert_eq!(rows.iter().find(|row| !known(row)), None, "it has no place in this test");
    let shown = QUEUES.iter().flat_map(|(_, places)| *places).filter(|place| !place.starts_with('/'));
    let listed = |bound: &&shoaldb::Usage| shown.clone().any(|name| bound.name.starts_with(name));
    assert_eq!(status.bounds.iter().find(|bound| !listed(bound)), None, "DESIGN.md has no row for it");
    assert_eq!((status.open_splits.limit, status.databases[0].wal.limit), (1, 1 << 30));
}

/// The same with the sizes that it was seen with, and queues as they are by default: each part is more than a third of what may be
/// uncommitted, and more than may be on its way to a follower.
#[test]
fn parts_of_24_mib_go_through_the_queues_of_every_node() {
    const PART: usize = 24 << 20;
    const ROWS: i64 = 94;
    let cluster = Cluster::start_calm(3, |builder| builder.part_bytes(PART).busy_timeout(LONG).commit_timeout(LONG));
    let leader = cluster.leader();
    leader.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    let db = leader.connect("app").unwrap();
    let before = leader.status().last;
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
                INSERT INTO t SELECT randomblob(1 << 20) FROM n";
    assert_eq!(db.execute(rows, [ROWS]).unwrap() as i64, ROWS);
    assert_eq!(count(&db), ROWS);
    // It went as four parts, three of which are on their way at a time, and not as one or as many.
    let entries = leader.status().last.0 - before.0;
    assert!((4..=6).contains(&entries), "{entries} entries");
    cluster.assert_equal("app");
    assert_nothing_is_kept(&cluster);
}

#[test]
fn a_disk_that_fills_up_between_the_parts_leaves_nothing_of_them() {
    let fs = SimFs::new(5);
    let start = || -> Result<Node, Error> {
        let doors: Arc<dyn Fs> = Arc::new(fs.clone());
        let node = Node::builder(1, Path::new("/node"))
            .env(Env { fs: doors, clock: Arc::new(OsClock), rng: Arc::new(OsRng) })
            .part_bytes(PART)
            .segment_bytes(1 << 20)
            .start()?;
        node.wait_leader(LONG)?;
        Ok(node)
    };
    let node = start().unwrap();
    let db = node.connect("app").unwrap();
    db.execute_batch("CREATE TABLE t(x)").unwrap();
    let refused: rusqlite::Error = std::thread::scope(|scope| {
        let held = PartsHeld::by(&node);
        let large = scope.spawn(|| db.execute(LARGE, []).map(|_| db));
        until("no part came", || node.has_open_split());
        fs.fail_at(Aim::At("log.write"), 1, Lasts::ForGood, Failure::ENOSPC);
        let _impatient = Impatient::on(&node);
        drop(held);
        large.join().unwrap().unwrap_err()
    });
    assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "its last part was never proposed: {refused}");
    assert_eq!(count(&node.connect("app").unwrap()), 0);
    drop(node);
    fs.clear_faults();
    let node = start().unwrap();
    let db = node.connect("app").unwrap();
    assert_eq!(count(&db), 0);
    db.execute(LARGE, []).unwrap();
    assert_eq!(count(&db), ROWS);
}

#[test]
fn no_majority_for_a_part_is_not_committed_and_leaves_the_write_lock_free() {
    let cluster = Cluster::start_calm(3, |builder| builder.part_bytes(PART));
    let leader = cluster.leader();
    leader.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    let db = leader.connect("app").unwrap();
    cluster.cut(leader.id(), true);
    // Two parts: were the second proposed as well, nobody could say what becomes of it.
    let impatient = Impatient::on(leader);
    let refused = db.execute("INSERT INTO t VALUES (randomblob(90000))", []).unwrap_err();
    drop(impatient);
    assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "{refused}");
    assert!(leader.is_leader(), "it has not noticed yet");
    cluster.cut(leader.id(), false);
    db.busy_timeout(LONG).unwrap();
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    assert_eq!(count(&db), 1);
    cluster.assert_equal("app");
    assert_nothing_is_kept(&cluster);
}
