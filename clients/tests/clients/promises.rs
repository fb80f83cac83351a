//! What must hold whatever the client is.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shoaldb::{Builder, Node, Outcome, Receipt, ReceiptOutcome};

use crate::cluster::{Cluster, LONG};
use crate::{Client, End};

/// Leadership does not move because the machine is busy.
fn steady(builder: Builder) -> Builder {
    builder.election_timeout(Duration::from_secs(2)).busy_timeout(LONG)
}

fn cluster() -> Cluster {
    let cluster = Cluster::start_with(3, steady);
    cluster.leader();
    cluster
}

pub(crate) fn reads_and_writes<C: Client>() {
    let cluster = cluster();
    let leader = C::pool(cluster.leader(), 2);
    C::run(&leader, "CREATE TABLE t(x INTEGER PRIMARY KEY)").unwrap();
    assert!(C::values(&leader).is_empty());
    C::insert(&leader, &[1], End::Commit).unwrap();
    C::insert(&leader, &[2, 3, 4], End::Commit).unwrap();
    C::insert(&leader, &[5, 6], End::Rollback).unwrap();
    assert_eq!(C::values(&leader), [1, 2, 3, 4]);
    // One that fails in the middle leaves nothing of it, and the connection is as good as before.
    C::insert(&leader, &[7, 1], End::Commit).unwrap_err();
    assert_eq!(C::values(&leader), [1, 2, 3, 4]);
    C::insert(&leader, &[7], End::Commit).unwrap();

    // Connections that were open before a change of the schema see it, on every node.
    cluster.assert_equal("app");
    let followers: Vec<_> = cluster.running().map(|node| C::pool(node, 2)).collect();
    for pool in &followers {
        assert_eq!(C::values(pool), [1, 2, 3, 4, 7]);
    }
    C::run(&leader, "ALTER TABLE t RENAME TO old; CREATE TABLE t(x INTEGER PRIMARY KEY, y DEFAULT 'new')").unwrap();
    C::run(&leader, "INSERT INTO t(x) SELECT x * 10 FROM old; DROP TABLE old").unwrap();
    cluster.assert_equal("app");
    for pool in followers.iter().chain([&leader]) {
        assert_eq!(C::values(pool), [10, 20, 30, 40, 70]);
    }
}

pub(crate) fn followers_read_and_do_not_write<C: Client>(shows_codes: bool) {
    let cluster = cluster();
    let leader = cluster.leader();
    let pool = C::pool(leader, 2);
    C::run(&pool, "CREATE TABLE t(x INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)").unwrap();
    cluster.assert_equal("app");
    let successor = cluster.follower();
    let follower = C::pool(successor, 2);
    assert_eq!(C::values(&follower), [1]);
    let refused = C::insert(&follower, &[2], End::Commit).unwrap_err();
    assert!(refused.text.contains("readonly"), "{refused:?}");
    assert_eq!(refused.receipt, "", "it never came to the log");
    if shows_codes {
        assert!(refused.is_not_leader(), "{refused:?}");
        assert_eq!((refused.leader(), refused.outcome()), (Some(leader.id()), Some(Outcome::NotCommitted)));
    }
    assert_eq!(C::values(&follower), [1], "the connection reads on");
    C::insert(&pool, &[3], End::Commit).unwrap();
    cluster.assert_equal("app");
    assert_eq!(C::values(&follower), [1, 3]);

    // Its connections, open all the while, write once their node leads, and those of the other pool do not any more.
    leader.transfer_leadership(successor.id()).unwrap();
    let started = Instant::now();
    while let Err(failure) = C::insert(&follower, &[4], End::Commit) {
        assert!(failure.text.contains("readonly") && started.elapsed() < LONG, "{failure:?}");
    }
    let refused = C::insert(&pool, &[5], End::Commit).unwrap_err();
    assert!(refused.text.contains("readonly"), "{refused:?}");
    cluster.assert_equal("app");
    for pool in [&pool, &follower] {
        assert_eq!(C::values(pool), [1, 3, 4]);
    }
}

/// What became of the transactions of the writers, as these were told.
#[derive(Default)]
struct Told {
    acknowledged: BTreeSet<i64>,
    not_committed: BTreeSet<i64>,
    unknown: BTreeSet<i64>,
}

/// A pool of eight connections under four writers; the leader is shut down among them, and they go on with a pool of the
/// next one.
pub(crate) fn a_pool_outlives_its_leader<C: Client>() {
    const WRITERS: usize = 4;
    const ROUNDS: usize = 15;
    let cluster = cluster();
    let old = cluster.leader();
    let pool = C::pool(old, 8);
    C::run(&pool, "CREATE TABLE t(x INTEGER PRIMARY KEY)").unwrap();
    let told = Mutex::new(Told::default());
    let next_value = AtomicI64::new(1);
    let acknowledged = AtomicUsize::new(0);
    let attempt = |pool: &C::Pool, judge: &Node| {
        // Each value is tried once, so that one that is found was committed by that one attempt.
        let value = next_value.fetch_add(1, Ordering::Relaxed);
        match C::insert(pool, &[value], End::Commit) {
            Ok(()) => {
                acknowledged.fetch_add(1, Ordering::Relaxed);
                told.lock().unwrap().acknowledged.insert(value);
                true
            }
            Err(failure) => {
                let outcome = failure.outcome().or_else(|| settle(judge, &failure.receipt));
                let mut told = told.lock().unwrap();
                match outcome {
                    Some(Outcome::NotCommitted) => told.not_committed.insert(value),
                    Some(Outcome::Unknown) | None => told.unknown.insert(value),
                };
                false
            }
        }
    };
    let successor = || {
        let started = Instant::now();
        loop {
            if let Some(node) = cluster.running().find(|node| node.id() != old.id() && node.is_leader()) {
                return node;
            }
            assert!(started.elapsed() < LONG, "nobody leads");
            std::thread::yield_now();
        }
    };
    let judge = cluster.running().find(|node| node.id() != old.id()).unwrap();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                scope.spawn(|| {
                    while attempt(&pool, judge) {}
                    // The pool of the next leader: it may not be that any more by the time.
                    let started = Instant::now();
                    let mut rounds = 0;
                    while rounds < ROUNDS {
                        let pool = C::pool(successor(), 8);
                        while rounds < ROUNDS && attempt(&pool, judge) {
                            rounds += 1;
                        }
                        assert!(started.elapsed() < 2 * LONG, "the next leader's pool does not work");
                    }
                })
            })
            .collect();
        let started = Instant::now();
        while acknowledged.load(Ordering::Relaxed) < WRITERS * ROUNDS {
            assert!(started.elapsed() < LONG, "the first leader's pool does not work");
            std::thread::yield_now();
        }
        old.shutdown().unwrap();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
    let told = told.into_inner().unwrap();
    let found: BTreeSet<i64> = C::values(&C::pool(successor(), 1)).into_iter().collect();
    let lost: Vec<_> = told.acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let risen: Vec<_> = told.not_committed.intersection(&found).collect();
    assert!(risen.is_empty(), "said to be not committed, and found: {risen:?}");
    let strangers: Vec<_> =
        found.difference(&told.acknowledged).filter(|value| !told.unknown.contains(value)).collect();
    assert!(strangers.is_empty(), "nobody was told of {strangers:?}");
}

/// For a client that shows no code: the receipt says what became of the transaction, on a node that is still there.
fn settle(judge: &Node, receipt: &str) -> Option<Outcome> {
    let Ok(receipt) = receipt.parse::<Receipt>() else { return Some(Outcome::NotCommitted) };
    let started = Instant::now();
    loop {
        match judge.outcome_of(receipt).unwrap() {
            ReceiptOutcome::NotCommitted => return Some(Outcome::NotCommitted),
            ReceiptOutcome::Committed(_) => return None,
            ReceiptOutcome::Unknown(why) => assert!(started.elapsed() < LONG, "{receipt}: {why}"),
        }
        std::thread::yield_now();
    }
}
