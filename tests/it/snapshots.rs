//! A node that lacks what the logs of the others no longer have gets the databases from one of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use shoaldb::{Event, Node, Status};

use crate::cluster::{Cluster, LONG, PartsHeld, fill, quick, retry, table, until};
use crate::wait::told;

pub(crate) fn with_blobs<'a>(leader: impl Fn() -> &'a Node, db: &str) {
    let create = "CREATE TABLE b(id INTEGER PRIMARY KEY, v)";
    retry(|| leader().write(db, |tx| Ok(tx.execute_batch(create)?))).unwrap();
}

/// Writes until the logs of all that run begin behind the entry after `index`: who has no more than that cannot go on by them.
pub(crate) fn outrun(cluster: &Cluster, db: &str, index: u64) {
    let started = Instant::now();
    while cluster.running().any(|node| node.status().first.0 <= index + 1) {
        assert!(started.elapsed() < LONG, "the logs are not compacted");
        fill(|| cluster.leader(), db, 20);
    }
}

/// Shows INV-31.
#[test]
fn a_node_that_was_away_for_too_long_gets_a_snapshot_and_goes_on() {
    let mut cluster = Cluster::start_with(3, quick);
    table(&cluster);
    with_blobs(|| cluster.leader(), "app");
    with_blobs(|| cluster.leader(), "gone");
    fill(|| cluster.leader(), "app", 200);
    let away = cluster.follower().id();
    cluster.assert_equal("app");
    let seen =
        until(cluster.node(away), "all is applied", |status| status.applied == cluster.leader().status().applied);
    cluster.nodes[away as usize - 1] = None;
    // Meanwhile a database goes, and one comes.
    retry(|| cluster.leader().drop_database("gone")).unwrap();
    with_blobs(|| cluster.leader(), "new");
    fill(|| cluster.leader(), "new", 10);
    outrun(&cluster, "app", seen.last.0);

    // Who is away is not heard of, and what the log knows of it is no more than it was.
    let of = |status: &Status| status.peers.iter().find(|peer| u64::from(peer.node.0) == away).cloned();
    cluster.until_leader("it is not heard of", |status| of(status).is_some_and(|peer| !peer.active));

    let others = cluster.stop_all();
    cluster.start_node(away);
    let events = cluster.node(away).events();
    others.into_iter().for_each(|id| cluster.start_node(id));
    let back = cluster.node(away);
    until(back, "it has everything", |status| status.applied >= cluster.leader().status().applied);
    cluster.until_leader("entries follow each other again", |status| {
        of(status).is_some_and(|peer| {
            peer.state == "replicate" && peer.next > peer.acknowledged && peer.active && peer.snapshot.is_none()
        })
    });
    for db in ["app", "new"] {
        cluster.assert_equal(db);
    }
    assert!(back.databases().unwrap().iter().all(|name| name != "gone"));
    // It is over when the log goes on behind it.
    fill(|| cluster.leader(), "app", 1);
    let mut told = Vec::new();
    while !matches!(told.last(), Some(Event::SnapshotFinished { .. })) {
        told.push(events.recv_timeout(LONG).expect("the end of the snapshot is told"));
    }
    cluster.assert_equal("app");
    told.extend(events.try_iter());
    let (mut installed, mut finished) = (0, 0);
    for event in &told {
        match event {
            Event::SnapshotInstalled { bytes, .. } => {
                installed += 1;
                assert!(*bytes > 0);
            }
            Event::SnapshotFinished { receiving: true, .. } => finished += 1,
            _ => {}
        }
    }
    assert!(installed == 1 && finished == 1, "{told:?}");
    // It is a member like any other: the cluster goes on with it alone beside the leader.
    let other = cluster.running().map(|node| node.id()).find(|id| *id != away && *id != cluster.leader().id()).unwrap();
    cluster.nodes[other as usize - 1] = None;
    fill(|| cluster.leader(), "app", 5);
    // And what it has survives its own restart.
    cluster.start_node(other);
    cluster.nodes[away as usize - 1] = None;
    cluster.start_node(away);
    cluster.assert_equal("app");
}

/// Connections of a node go on while the files under them are exchanged; a reader sees one state to its end.
#[test]
fn readers_of_a_node_that_gets_a_snapshot_see_one_state_and_then_the_next() {
    let mut cluster = Cluster::start_with(3, quick);
    table(&cluster);
    with_blobs(|| cluster.leader(), "app");
    fill(|| cluster.leader(), "app", 100);
    let away = cluster.follower().id();
    cluster.assert_equal("app");
    // What it shows by itself, when it comes back alone, is what it has checkpointed.
    let seen = until(cluster.node(away), "all is checkpointed", |status| {
        status.databases.iter().all(|db| db.checkpointed == db.position && status.anchored >= db.position)
    });
    let seen = seen.last;
    cluster.nodes[away as usize - 1] = None;
    outrun(&cluster, "app", seen.0);

    // It comes back without hearing of the others at first: as if they could not be reached.
    let others: Vec<u64> = cluster.running().map(|node| node.id()).collect();
    for other in &others {
        cluster.nodes[*other as usize - 1] = None;
    }
    cluster.start_node(away);
    let events = cluster.node(away).events();
    let reader = cluster.node(away).connect("app").unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let sum = || -> (i64, i64) {
        reader.query_row("SELECT count(*), sum(length(v)) FROM b", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let before = sum();
    for other in &others {
        cluster.start_node(*other);
    }
    until(cluster.node(away), "it has everything", |status| {
        status.applied > seen && status.applied >= cluster.leader().status().applied
    });
    assert_eq!(sum(), before, "a transaction reads one state");
    told(&events, |event| matches!(event, Event::SnapshotStarted { receiving: true, .. }));
    told(&events, |event| matches!(event, Event::SnapshotInstalled { .. }));
    reader.execute_batch("COMMIT").unwrap();
    assert!(sum().0 > before.0);
    cluster.assert_equal("app");
}

/// The leader goes on while it lends pages, and so does its log.
#[test]
fn a_snapshot_under_writers_ends_although_the_log_moves_on() {
    let mut cluster = Cluster::start_calm(3, quick);
    table(&cluster);
    with_blobs(|| cluster.leader(), "app");
    for _ in 0..20 {
        fill(|| cluster.leader(), "app", 100);
    }
    let away = cluster.follower().id();
    cluster.assert_equal("app");
    let seen = cluster.node(away).status().last;
    cluster.nodes[away as usize - 1] = None;
    outrun(&cluster, "app", seen.0);
    let stop = AtomicBool::new(false);
    let leader = cluster.leader().clone();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writes = 0;
            while !stop.load(Ordering::Relaxed) {
                fill(|| &leader, "app", 3);
                writes += 1;
            }
            writes
        });
        cluster.start_node(away);
        until(cluster.node(away), "it got behind the beginning of the log", |status| {
            status.applied > seen && status.applied >= leader.status().first
        });
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
    });
    // Nobody had the entries between any more: only a snapshot lets its log begin behind them.
    assert!(cluster.node(away).status().first.0 > seen.0 + 1);
    cluster.assert_equal("app");
}

/// A new node comes in although no log has the beginning any more. The databases are small: it gets them out of memory.
#[test]
fn a_node_that_joins_late_gets_a_snapshot_and_votes_in_the_end() {
    let mut cluster = Cluster::start_with(3, |builder| quick(builder).snapshot_chunk_max_size(16 << 20));
    table(&cluster);
    with_blobs(|| cluster.leader(), "app");
    outrun(&cluster, "app", 20);
    let doors: Vec<String> = cluster.list.iter().map(|member| member.address.clone()).collect();
    cluster.prepare_more(1);
    cluster.nodes[3] = Some(cluster.builder(4).bootstrap([]).join(doors).start().unwrap());
    for node in cluster.running() {
        until(node, "node 4 votes", |status| status.voters.iter().any(|voter| voter.0 == 4));
    }
    cluster.assert_equal("app");
    assert!(cluster.node(4).status().first.0 > 20);
}

/// The leader needs the node that needs a snapshot: for a majority, without which a transaction that is open in parts neither
/// goes on nor ends. Databases, a new one among them, were written behind its first part, and one is dropped there.
#[test]
fn a_disk_that_is_lost_in_the_middle_of_a_large_transaction_leaves_a_majority_that_goes_on() {
    const PART: usize = 64 << 10;
    let mut cluster = Cluster::start_with(3, |builder| quick(builder).part_bytes(PART).busy_timeout(LONG));
    table(&cluster);
    for db in ["app", "other", "gone"] {
        with_blobs(|| cluster.leader(), db);
    }
    cluster.assert_equal("app");
    let away = cluster.follower().id();
    let seen = cluster.node(away).status().last;
    cluster.nodes[away as usize - 1] = None;
    outrun(&cluster, "other", seen.0);
    let leader = cluster.leader().id();
    let lost = cluster.running().map(|node| node.id()).find(|id| *id != leader).unwrap();
    let (db, survivor) = (cluster.node(leader).connect("app").unwrap(), cluster.node(leader).clone());
    std::thread::scope(|scope| {
        let held = PartsHeld::by(&survivor);
        let large = scope.spawn(move || {
            db.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 130) \
                 INSERT INTO b(v) SELECT randomblob(10000) FROM n",
                [],
            )
        });
        until(&survivor, "no part came", |_| survivor.has_open_split());
        fill(|| &survivor, "other", 3);
        with_blobs(|| &survivor, "new");
        fill(|| &survivor, "new", 2);
        survivor.drop_database("gone").unwrap();
        cluster.cut(lost, true);
        cluster.nodes[lost as usize - 1] = None;
        assert!(survivor.has_open_split(), "it was over before the disk was lost");
        drop(held);
        cluster.start_node(away);
        fill(|| cluster.leader(), "other", 1);
        // Nobody had the entries between any more: only a snapshot lets its log begin behind them.
        assert!(cluster.node(away).status().first.0 > seen.0 + 1);
        // It was proposed to a majority that is no more; whether it ends well is not what this is about.
        let _ = large.join().unwrap();
    });
    for db in ["app", "other", "new"] {
        cluster.assert_equal(db);
    }
    // And what it has survives its own restart, from the log that the snapshot began.
    cluster.nodes[away as usize - 1] = None;
    cluster.start_node(away);
    fill(|| cluster.leader(), "app", 1);
    for db in ["app", "other", "new"] {
        cluster.assert_equal(db);
    }
    assert!(cluster.node(away).databases().unwrap().iter().all(|name| name != "gone"));
    assert!(cluster.running().all(|node| !node.has_open_split()));
}
