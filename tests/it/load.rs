//! Many threads at once.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use shoaldb::{Node, Outcome, ReadLevel, rusqlite};

use crate::cluster::{Cluster, LONG, count, table};

/// How long a client that was refused stays away, so that the machine is left to the others.
const PAUSE: Duration = Duration::from_millis(2);

#[test]
fn many_writers_of_both_kinds_on_two_databases_all_get_their_turn() {
    const EACH: i64 = 15;
    let cluster = Cluster::start_calm(3, |builder| builder.busy_timeout(LONG));
    let leader = cluster.leader();
    for name in ["app", "other"] {
        leader.write(name, |tx| Ok(tx.execute_batch("CREATE TABLE t(x UNIQUE)")?)).unwrap();
    }
    let slowest = AtomicI64::new(0);
    std::thread::scope(|scope| {
        for writer in 0..32 {
            let (leader, slowest) = (&leader, &slowest);
            let name = if writer % 4 < 2 { "app" } else { "other" };
            scope.spawn(move || {
                let db = rusqlite::Connection::open(format!("file:{name}?vfs={}", leader.vfs_name())).unwrap();
                db.busy_timeout(LONG).unwrap();
                for round in 0..EACH {
                    let value = writer * 1000 + round;
                    let started = Instant::now();
                    match writer % 2 {
                        0 => drop(db.execute("INSERT INTO t VALUES (?1)", [value]).unwrap()),
                        _ => drop(
                            leader.write(name, |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [value])?)).unwrap(),
                        ),
                    }
                    slowest.fetch_max(started.elapsed().as_millis() as i64, Ordering::Relaxed);
                }
            });
        }
    });
    for name in ["app", "other"] {
        cluster.assert_equal(name);
        assert_eq!(count(&leader.connect(name).unwrap()), 16 * EACH);
    }
    println!("slowest of {} transactions: {} ms", 32 * EACH, slowest.into_inner());
}

#[test]
fn a_long_read_on_a_follower_sees_one_state_while_thousands_of_entries_are_applied() {
    let cluster = Cluster::start_calm(3, |builder| builder.busy_timeout(LONG));
    table(&cluster);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let open: Vec<_> = (0..12)
        .map(|round| {
            leader.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [round])?)).unwrap();
            assert!(follower.wait_applied(leader.checksum("app").unwrap().0, LONG));
            let db = follower.connect("app").unwrap();
            db.execute_batch("BEGIN").unwrap();
            assert_eq!(count(&db), round + 1);
            db
        })
        .collect();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            scope.spawn(move || {
                for round in 0..300 {
                    let value = 1_000_000 * (writer + 1) + round;
                    leader.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [value])?)).unwrap();
                }
            });
        }
    });
    assert!(follower.wait_applied(leader.checksum("app").unwrap().0, LONG), "the applier waited for a reader");
    for (round, db) in open.iter().enumerate() {
        assert_eq!(count(db), round as i64 + 1);
        db.execute_batch("COMMIT").unwrap();
        assert_eq!(count(db), 12 + 2400);
    }
    cluster.assert_equal("app");
}

/// One number that only grows. Whoever reads it linearizably, wherever, must see at least what anybody had seen or been
/// acknowledged when the read began.
#[test]
fn a_linearizable_read_is_never_stale_while_leaders_change() {
    let cluster = Cluster::start(3);
    cluster.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (0)")?)).unwrap();
    cluster.assert_equal("app");
    let known = AtomicI64::new(0);
    let (done, reads, writes) = (AtomicBool::new(false), AtomicI64::new(0), AtomicI64::new(0));
    std::thread::scope(|scope| {
        let going = || !done.load(Ordering::Relaxed);
        for node in cluster.running() {
            let (known, reads, writes) = (&known, &reads, &writes);
            scope.spawn(move || {
                while going() {
                    let value = node.write("app", |tx| {
                        tx.execute("UPDATE t SET x = x + 1", [])?;
                        Ok(tx.query_row("SELECT x FROM t", [], |row| row.get::<_, i64>(0))?)
                    });
                    match value {
                        Ok(value) => {
                            known.fetch_max(value, Ordering::SeqCst);
                            writes.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            assert_ne!(error.outcome(), Some(Outcome::Unknown), "{error}");
                            std::thread::sleep(PAUSE);
                        }
                    }
                }
            });
            for begin in ["BEGIN", "BEGIN IMMEDIATE"] {
                scope.spawn(move || {
                    let db = node.connect("app").unwrap();
                    db.set_read_level(ReadLevel::Linearizable);
                    while going() {
                        let before = known.load(Ordering::SeqCst);
                        if db.execute_batch(begin).is_err() {
                            std::thread::sleep(PAUSE);
                            continue;
                        }
                        if let Ok(value) = db.query_row("SELECT x FROM t", [], |row| row.get::<_, i64>(0)) {
                            assert!(value >= before, "node {}, {begin}: read {value} after {before}", node.id());
                            known.fetch_max(value, Ordering::SeqCst);
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                        db.execute_batch("ROLLBACK").unwrap();
                    }
                });
            }
        }
        let started = Instant::now();
        let (mut next, mut cuts) = (1, false);
        let enough = || reads.load(Ordering::Relaxed) > 20 && writes.load(Ordering::Relaxed) > 20;
        while started.elapsed() < Duration::from_secs(4) || !enough() && started.elapsed() < LONG {
            let leader: &Node = cluster.leader();
            next = next % 3 + 1;
            if next == leader.id() {
                continue;
            }
            cuts = !cuts;
            if cuts {
                // It goes on as a leader for a while, and so do its readers.
                cluster.cut(leader.id(), true);
                let replaced = || cluster.running().any(|node| node.id() != leader.id() && node.is_leader());
                while !replaced() && started.elapsed() < LONG {
                    std::thread::sleep(PAUSE);
                }
                std::thread::sleep(10 * PAUSE);
                cluster.cut(leader.id(), false);
            } else {
                // May fail, if the other one is behind; then there is another round.
                let _ = leader.transfer_leadership(next);
            }
            let seen = writes.load(Ordering::Relaxed);
            while writes.load(Ordering::Relaxed) < seen + 20 && started.elapsed() < LONG {
                std::thread::sleep(PAUSE);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let (reads, writes) = (reads.into_inner(), writes.into_inner());
    println!("{reads} reads, {writes} writes");
    assert!(reads > 20 && writes > 20, "{reads} reads, {writes} writes");
    cluster.assert_equal("app");
}
