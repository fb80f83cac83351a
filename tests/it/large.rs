//! Transactions that go through the log in parts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shoaldb::{Builder, Error, Node, Outcome, outcome, rusqlite};
use shoaldb_vfs::env::os::{OsClock, OsRng};
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};
use shoaldb_vfs::env::{Env, Fs};

use crate::cluster::{Cluster, LONG, PartsHeld, count};

const PART: usize = 64 << 10;
/// 20 MB that nothing packs: some three hundred parts.
const LARGE: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) \
                     INSERT INTO t SELECT randomblob(10000) FROM n";
/// Three times that, for a node to stop and start meanwhile.
const LARGER: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000) \
                      INSERT INTO t SELECT randomblob(10000) FROM n";

fn cluster() -> Cluster {
    let cluster = Cluster::start_with(3, |builder: Builder| builder.part_bytes(PART).busy_timeout(LONG));
    for name in ["app", "other"] {
        cluster.leader().write(name, |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
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
    let mut cluster = cluster();
    let (leader, restarted) = (cluster.leader().id(), cluster.follower().id());
    let db = cluster.node(leader).connect("app").unwrap();
    let other = cluster.node(leader).connect("other").unwrap();
    let before = cluster.node(leader).checksum("app").unwrap().0;
    std::thread::scope(|scope| {
        let held = PartsHeld::by(cluster.node(leader));
        let large = scope.spawn(|| {
            let result = db.execute(LARGER, []);
            (db, result)
        });
        until("no part came", || cluster.node(restarted).has_open_split());
        cluster.nodes[restarted as usize - 1] = None;
        other.execute("INSERT INTO t VALUES (1)", []).unwrap();
        assert_eq!(count(&cluster.node(leader).connect("app").unwrap()), 0, "nothing of it is shown");
        drop(held);
        cluster.start_node(restarted);
        let (db, result) = large.join().unwrap();
        assert_eq!(result.unwrap(), 6000);
        assert_eq!(count(&db), 6000);
    });
    let (app, other) =
        (cluster.node(leader).checksum("app").unwrap().0, cluster.node(leader).checksum("other").unwrap().0);
    assert!(before < other && other < app, "{before} {other} {app}");
    cluster.assert_equal("app");
    cluster.assert_equal("other");
    assert_nothing_is_kept(&cluster);
    // All over again, from the log.
    for id in 1..=3 {
        cluster.nodes[id as usize - 1] = None;
        cluster.start_node(id);
    }
    cluster.assert_equal("app");
    assert_eq!(count(&cluster.leader().connect("app").unwrap()), 6000);
}

/// Shows INV-23.
#[test]
fn leadership_lost_between_the_parts_is_certainly_not_committed() {
    for cut in [false, true] {
        let cluster = cluster();
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
                old.transfer_leadership(next).unwrap();
                drop(held);
            }
            large.join().unwrap().unwrap_err()
        });
        assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "{refused}");
        cluster.leader().write("app", |tx| Ok(tx.execute_batch("INSERT INTO t VALUES (1)")?)).unwrap();
        cluster.assert_equal("app");
        assert_nothing_is_kept(&cluster);
        let leader = cluster.leader();
        let db = leader.connect("app").unwrap();
        assert_eq!(count(&db), 1);
        db.execute(LARGE, []).unwrap();
        assert_eq!(count(&db), 2001);
        cluster.assert_equal("app");
    }
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
            .commit_timeout(Duration::from_millis(300))
            .start()?;
        node.wait_leader(LONG)?;
        Ok(node)
    };
    let node = start().unwrap();
    let db = node.connect("app").unwrap();
    db.execute_batch("CREATE TABLE t(x)").unwrap();
    fs.fail_at(Aim::At("log.write"), 7, Lasts::Once, Failure::ENOSPC);
    let refused: rusqlite::Error = db.execute(LARGE, []).unwrap_err();
    assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "its last part was never proposed: {refused}");
    assert_eq!(count(&db), 0);
    drop((db, node));
    let node = start().unwrap();
    let db = node.connect("app").unwrap();
    assert_eq!(count(&db), 0);
    db.execute(LARGE, []).unwrap();
    assert_eq!(count(&db), 2000);
}

#[test]
fn no_majority_for_a_part_is_not_committed_and_leaves_the_write_lock_free() {
    let cluster = Cluster::start_with(3, |builder| {
        builder.part_bytes(PART).election_timeout(Duration::from_secs(5)).commit_timeout(Duration::from_millis(300))
    });
    let leader = cluster.leader();
    leader.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    let db = leader.connect("app").unwrap();
    cluster.cut(leader.id(), true);
    // Two parts: were the second proposed as well, nobody could say what becomes of it.
    let refused = db.execute("INSERT INTO t VALUES (randomblob(90000))", []).unwrap_err();
    assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "{refused}");
    assert!(leader.is_leader(), "it has not noticed yet");
    cluster.cut(leader.id(), false);
    db.busy_timeout(LONG).unwrap();
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    assert_eq!(count(&db), 1);
    cluster.assert_equal("app");
    assert_nothing_is_kept(&cluster);
}
