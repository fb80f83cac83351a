//! A disk that is full, fails or does not answer: what the node does, what people are told, how it comes back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use shoaldb::client::{Client, Doors};
use shoaldb::entry::{self, Body};
use shoaldb::log::inspect::Inspection;
use shoaldb::types::LogIndex;
use shoaldb::{Builder, CreateOptions, Error, ErrorKind, Event, Node, Outcome, Status, outcome, rusqlite};
use shoaldb_vfs::env::os::{OsClock, OsRng};
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};
use shoaldb_vfs::env::{Env, Fs};

use crate::cluster::{self, Cluster, Impatient, LONG, PartsHeld, administer, count, quick, table};
use crate::snapshots::{outrun, with_blobs};
use crate::wait::told;

const PART: usize = 64 << 10;
/// 1.3 MB that nothing packs: some twenty parts.
const LARGE: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 130) \
                     INSERT INTO t SELECT randomblob(10000) FROM n";
const LARGE_ROWS: i64 = 130;
/// The node whose disk is the simulated one.
const SICK: u64 = 1;

fn on(fs: &SimFs, builder: Builder) -> Builder {
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    builder.env(Env { fs, clock: Arc::new(OsClock), rng: Arc::new(OsRng) })
}

fn alone(fs: &SimFs, settings: impl FnOnce(Builder) -> Builder) -> Node {
    let builder = Node::builder(1, Path::new("/node")).segment_bytes(1 << 20).heartbeat(Duration::from_millis(50));
    let builder = builder.election_timeout(Duration::from_millis(200)).busy_timeout(LONG);
    let node = on(fs, settings(builder)).start().unwrap();
    node.wait_leader(LONG).unwrap();
    node
}

/// Three nodes. The first has the simulated disk, and leads.
fn three(fs: &SimFs) -> Cluster {
    three_with(fs, |builder| builder)
}

/// The same, with settings of the first node's own.
fn three_with(fs: &SimFs, settings: impl FnOnce(Builder) -> Builder) -> Cluster {
    let mut cluster = Cluster::prepare(3);
    start_sick_with(&mut cluster, fs, settings);
    for id in 2..=3 {
        cluster.nodes[id - 1] = Some(cluster.builder(id as u64).part_bytes(PART).start().unwrap());
    }
    cluster.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    let first = cluster.node(SICK);
    administer(|| first.transfer_leadership(SICK).and_then(|()| insert(first, 0))).unwrap();
    until("the first leads", || first.is_leader());
    cluster
}

fn start_sick(cluster: &mut Cluster, fs: &SimFs) {
    start_sick_with(cluster, fs, |builder| builder);
}

fn start_sick_with(cluster: &mut Cluster, fs: &SimFs, settings: impl FnOnce(Builder) -> Builder) {
    let builder = cluster.builder(SICK).part_bytes(PART).segment_bytes(1 << 20);
    let builder = builder.checkpoint_age(Duration::from_secs(3600));
    cluster.nodes[SICK as usize - 1] = Some(on(fs, settings(builder)).start().unwrap());
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

fn status(node: &Node, what: &str, wanted: impl Fn(&Status) -> bool) {
    cluster::until(node, what, wanted);
}

fn has_alarm(status: &Status, word: &str) -> bool {
    status.alarms.iter().any(|alarm| alarm.contains(word))
}

fn insert(node: &Node, value: i64) -> Result<(), Error> {
    node.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [value]).map(|_| ())?))
}

/// Trouble with the disk, but for a write of the log that was late: that is the affair of a busy machine.
fn is_trouble(event: &Event) -> bool {
    matches!(event, Event::DiskTrouble { what } if !what.contains("has not answered a write of the log"))
}

/// Until some node takes it.
fn insert_somewhere(cluster: &Cluster, value: i64) {
    until("nobody takes it", || cluster.running().any(|node| node.is_leader() && insert(node, value).is_ok()));
}

/// Whether the value is there; each at most once.
fn has(node: &Node, value: i64) -> bool {
    let db = node.connect("app").unwrap();
    let rows: i64 = db.query_row("SELECT count(*) FROM t WHERE x = ?1", [value], |row| row.get(0)).unwrap();
    assert!(rows <= 1);
    rows == 1
}

/// A door that calls wait at.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn at(fs: &SimFs, label: &'static str) -> Arc<Gate> {
        let gate = Arc::new(Gate { closed: Mutex::new(true), opened: Condvar::new() });
        fs.on_call(label, {
            let gate = gate.clone();
            move || {
                let mut closed = gate.closed.lock();
                gate.opened.wait_while(&mut closed, |closed| *closed);
            }
        });
        gate
    }

    fn open(&self) {
        *self.closed.lock() = false;
        self.opened.notify_all();
    }
}

/// Opens it also when the test has failed, so that the node can end.
struct Opens(Arc<Gate>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// What the sick node answers to `health`.
fn unwell(cluster: &Cluster) -> String {
    let doors = Doors::Endpoints(vec![cluster.list[SICK as usize - 1].address.clone()]);
    Client::new(doors).health().remove(0).1.unwrap_err().to_string()
}

#[test]
fn a_leader_whose_log_fails_hands_over_and_goes_on_reading() {
    for (label, failure, advice) in [
        ("log.write", Failure::EIO, "check the disk, then start the node again"),
        ("log.sync", Failure::ENOSPC, "make room on the disk and start the node again"),
        ("log.sync", Failure::EIO, "check the disk, then start the node again"),
    ] {
        let fs = SimFs::new(3);
        let mut cluster = three(&fs);
        let sick = cluster.node(SICK);
        let events = sick.events();
        fs.fail_at(Aim::At(label), 1, Lasts::ForGood, failure);
        let impatient = Impatient::on(sick);
        let first = insert(sick, 1);
        drop(impatient);
        until("another leads", || cluster.running().any(|node| node.id() != SICK && node.is_leader()));
        status(sick, "it knows who", |status| status.leader.is_some_and(|leader| u64::from(leader.0) != SICK));
        assert!(has_alarm(&sick.status(), advice), "{:?}", sick.status().alarms);
        assert!(unwell(&cluster).contains(advice), "{}", unwell(&cluster));
        told(&events, is_trouble);
        assert!(has(sick, 0), "it goes on reading");
        let refused = insert(sick, 2).unwrap_err();
        assert!(refused.is_not_leader() && refused.leader().is_some(), "{refused}");
        insert_somewhere(&cluster, 3);
        if let Err(error) = &first {
            assert_eq!(error.outcome(), Some(Outcome::Unknown), "{label}: {error}");
        }
        // What became of the failed call is for the next start to find out.
        fs.clear_faults();
        cluster.nodes[SICK as usize - 1] = None;
        start_sick(&mut cluster, &fs);
        cluster.assert_equal("app");
        assert!(first.is_err() || has(cluster.node(SICK), 1));
        assert!(has(cluster.node(SICK), 3) && !has(cluster.node(SICK), 2));
    }
}

/// Whatever the log was about to do: nothing is acknowledged that is not on disk, another one leads, and with room again the
/// node goes on, without a start.
#[test]
fn a_leader_whose_log_has_no_room_hands_over_and_goes_on_by_itself_when_there_is_room() {
    for (label, seed) in [("log.write", 21), ("log.create", 22), ("log.head.write", 23)] {
        let fs = SimFs::new(seed);
        let cluster = three(&fs);
        let sick = cluster.node(SICK);
        let events = sick.events();
        // Also no room for new files, so that it does not find a way at once.
        fs.fail_at(Aim::At("log.spare.write"), 1, Lasts::ForGood, Failure::ENOSPC);
        fs.fail_at(Aim::At("log.create"), 1, Lasts::ForGood, Failure::ENOSPC);
        fs.fail_at(Aim::At(label), 1, Lasts::ForGood, Failure::ENOSPC);
        let advice = "make room on the disk, it is tried again by itself";
        let impatient = Impatient::on(sick);
        let mut outcomes = vec![(0, Ok(()))];
        let began = Instant::now();
        for value in 1.. {
            let result = insert(sick, value);
            let failed = result.is_err();
            outcomes.push((value, result));
            if failed && has_alarm(&sick.status(), advice) {
                break;
            }
            assert!(began.elapsed() < 4 * LONG, "{label}: its log is not full after {value} writes");
            if failed {
                // It was late, and there is room: it goes on as the leader. Refused as long as nobody knows who leads.
                let _ = sick.transfer_leadership(SICK);
            }
        }
        drop(impatient);
        until("another leads", || cluster.running().any(|node| node.id() != SICK && node.is_leader()));
        status(sick, "it says so", |status| has_alarm(status, advice));
        // It follows the new leader, and yet is not well.
        assert!(unwell(&cluster).contains(advice), "{}", unwell(&cluster));
        told(&events, is_trouble);
        assert!(has(sick, 0), "it goes on reading");
        insert_somewhere(&cluster, -1);
        fs.clear_faults();
        status(sick, "no alarm is left", |status| status.alarms.is_empty() && status.leader.is_some());
        cluster.assert_equal("app");
        for (value, result) in &outcomes {
            match result {
                Ok(()) => assert!(has(sick, *value), "{label}: {value} was acknowledged"),
                Err(error) if error.outcome() == Some(Outcome::Unknown) => {}
                Err(error) => assert!(!has(sick, *value), "{label}: {value}: {error}"),
            }
        }
        assert!(has(sick, -1));
        let again = events.try_iter().filter(is_trouble).count();
        assert_eq!(again, 0, "{label}: people are told once");
        administer(|| sick.transfer_leadership(SICK)).unwrap();
        until("it leads again", || sick.is_leader());
        insert(sick, -2).unwrap();
        cluster.assert_equal("app");
    }
}

#[test]
fn a_follower_without_room_in_the_middle_of_a_large_transaction_keeps_nobody_from_it() {
    let fs = SimFs::new(4);
    let cluster = three(&fs);
    administer(|| cluster.node(SICK).transfer_leadership(2)).unwrap();
    until("the second leads", || cluster.node(2).is_leader());
    let db = cluster.node(2).connect("app").unwrap();
    insert(cluster.node(2), 1).unwrap();
    let sick = cluster.node(SICK);
    std::thread::scope(|scope| {
        let held = PartsHeld::by(cluster.node(2));
        let large = scope.spawn(move || db.execute(LARGE, []));
        until("no part came", || sick.has_open_split());
        fs.fail_at(Aim::At("log.write"), 1, Lasts::ForGood, Failure::ENOSPC);
        drop(held);
        large.join().unwrap().unwrap();
    });
    status(sick, "it says so", |status| has_alarm(status, "make room on the disk, it is tried again by itself"));
    let rows = count(&sick.connect("app").unwrap());
    assert!(rows == 2 && sick.has_open_split(), "all of it or nothing, and it never had all: {rows}");
    fs.clear_faults();
    cluster.assert_equal("app");
    assert_eq!(count(&cluster.node(SICK).connect("app").unwrap()), 2 + LARGE_ROWS);
    status(sick, "no alarm is left", |status| status.alarms.is_empty());
    until("no part is left", || !cluster.running().any(Node::has_open_split));
}

#[test]
fn a_leader_whose_disk_does_not_answer_hands_over_and_comes_back_by_itself() {
    let fs = SimFs::new(5);
    let cluster = three(&fs);
    let sick = cluster.node(SICK);
    std::thread::scope(|scope| {
        let opens = Opens(Gate::at(&fs, "log.sync"));
        let first = scope.spawn(|| insert(sick, 1));
        until("another leads", || cluster.running().any(|node| node.id() != SICK && node.is_leader()));
        status(sick, "it says so", |status| has_alarm(status, "the disk has not answered"));
        assert!(has(sick, 0), "it goes on reading");
        insert_somewhere(&cluster, 2);
        drop(opens);
        status(sick, "it is well again", |status| status.alarms.is_empty() && status.leader.is_some());
        let first = first.join().unwrap();
        cluster.assert_equal("app");
        match first {
            Ok(()) => assert!(has(sick, 1)),
            Err(error) if error.outcome() == Some(Outcome::NotCommitted) => assert!(!has(sick, 1)),
            Err(error) => assert_eq!(error.outcome(), Some(Outcome::Unknown), "{error}"),
        }
    });
    administer(|| sick.transfer_leadership(SICK)).unwrap();
    insert_somewhere(&cluster, 3);
    cluster.assert_equal("app");
}

/// Nobody can take over: it stops leading all the same, so that nobody's transaction waits for an answer that it cannot give.
#[test]
fn a_node_alone_whose_disk_does_not_answer_stops_leading_until_it_does() {
    let fs = SimFs::new(6);
    let node = alone(&fs, |builder| builder.commit_timeout(LONG));
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(&node, 0).unwrap();
    std::thread::scope(|scope| {
        let opens = Opens(Gate::at(&fs, "log.sync"));
        let first = scope.spawn(|| insert(&node, 1));
        until("it does not lead any more", || !node.is_leader());
        status(&node, "it says so", |status| has_alarm(status, "the disk has not answered"));
        assert!(has(&node, 0));
        let other = node.connect("other").unwrap();
        other.busy_timeout(Duration::from_millis(100)).unwrap();
        let refused = other.execute_batch("CREATE TABLE t(x)").unwrap_err();
        assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "at once, and for certain: {refused}");
        drop(opens);
        until("it leads again", || node.is_leader());
        first.join().unwrap().unwrap();
        status(&node, "no alarm is left", |status| status.alarms.is_empty());
        other.busy_timeout(LONG).unwrap();
        other.execute_batch("CREATE TABLE t(x)").unwrap();
    });
    assert!(has(&node, 1));
    insert(&node, 2).unwrap();
}

#[test]
fn a_checkpoint_without_room_is_told_and_made_when_there_is_room() {
    std::thread::scope(|scope| {
        for label in ["dw.create", "dw.write", "ckpt.page", "ckpt.hash"] {
            scope.spawn(move || {
                let fs = SimFs::new(8);
                let node = alone(&fs, |builder| builder.checkpoint_age(Duration::from_millis(50)));
                fs.fail_at(Aim::At(label), 1, Lasts::ForGood, Failure::ENOSPC);
                node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
                insert(&node, 1).unwrap();
                status(&node, label, |status| has_alarm(status, "make room on the disk; it is tried again by itself"));
                insert(&node, 2).unwrap();
                assert!(has(&node, 1) && has(&node, 2), "nobody waits for a checkpoint");
                fs.clear_faults();
                status(&node, label, |status| {
                    let app = &status.databases[0];
                    status.alarms.is_empty() && app.checkpointed == app.position
                });
                assert!(has(&node, 1) && has(&node, 2));
            });
        }
    });
}

/// A disk that hangs says nothing, and the thread that makes checkpoints hangs with it.
#[test]
fn a_checkpoint_that_the_disk_does_not_answer_is_told_while_it_lasts_and_commits_go_on() {
    const WORDS: &str = "the disk has not answered a call for the files of database app";
    std::thread::scope(|scope| {
        for label in ["dw.write", "dw.sync", "ckpt.page", "ckpt.sync", "ckpt.record_sync"] {
            scope.spawn(move || {
                let fs = SimFs::new(31);
                let node = alone(&fs, |builder| builder.checkpoint_age(Duration::from_millis(50)));
                let events = node.events();
                let opens = Opens(Gate::at(&fs, label));
                node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
                status(&node, label, |status| has_alarm(status, WORDS) && has_alarm(status, label));
                assert!(has_alarm(&node.status(), "check the disk"), "{:?}", node.status().alarms);
                told(&events, |event| matches!(event, Event::DiskTrouble { what } if what.starts_with(WORDS)));
                let before = node.status().databases[0].checkpointed;
                for value in 1..=100 {
                    insert(&node, value).unwrap();
                }
                assert!(node.is_leader() && has(&node, 1), "it is the checkpoint alone that waits");
                assert_eq!(node.status().databases[0].checkpointed, before);
                drop(opens);
                status(&node, label, |status| {
                    let app = &status.databases[0];
                    status.alarms.is_empty() && app.checkpointed == app.position
                });
                let again = events.try_iter().filter(is_trouble).count();
                assert_eq!(again, 0, "people are told once");
            });
        }
    });
}

#[test]
fn a_checkpoint_that_failed_is_told_and_the_database_goes_on() {
    for label in ["dw.sync", "ckpt.page", "ckpt.sync", "ckpt.record"] {
        let fs = SimFs::new(9);
        let quick = |builder: Builder| builder.checkpoint_age(Duration::from_millis(50));
        let node = alone(&fs, quick);
        fs.fail_at(Aim::At(label), 1, Lasts::Once, Failure::EIO);
        node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
        insert(&node, 1).unwrap();
        status(&node, label, |status| has_alarm(status, "no checkpoint, its WAL and the log grow"));
        insert(&node, 2).unwrap();
        assert!(has(&node, 1) && has(&node, 2));
        drop(node);
        let node = alone(&fs, quick);
        assert!(has(&node, 1) && has(&node, 2));
        status(&node, label, |status| status.alarms.is_empty() && status.databases[0].checkpointed.0 > 0);
    }
}

/// Its disk does all again: nothing is left of the trouble, and it may lead.
fn is_well_again(fs: &SimFs, cluster: &Cluster) {
    let sick = cluster.node(SICK);
    fs.clear_faults();
    status(sick, "no alarm is left", |status| status.alarms.is_empty());
    for database in ["app", "other"] {
        cluster.assert_equal(database);
    }
    administer(|| sick.transfer_leadership(SICK)).unwrap();
    until("it leads again", || sick.is_leader());
}

/// Whatever call it is that finds no room for the files of a new database: the node goes on when there is some, and whoever has
/// room leads until then.
#[test]
fn a_database_is_created_when_there_is_room_for_its_files() {
    for (label, seed) in [("db.create", 16), ("map.create", 17)] {
        let fs = SimFs::new(seed);
        let cluster = three(&fs);
        let sick = cluster.node(SICK);
        let events = sick.events();
        fs.fail_at(Aim::At(label), 1, Lasts::ForGood, Failure::ENOSPC);
        let create = |node: &Node| node.write("other", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?));
        let impatient = Impatient::on(sick);
        until("it is created", || cluster.running().any(|node| node.is_leader() && create(node).is_ok()));
        drop(impatient);
        status(sick, "it says so", |status| has_alarm(status, "database other could not be created"));
        told(&events, |event| matches!(event, Event::DiskTrouble { what } if what.contains("make room on the disk")));
        until("another leads", || cluster.running().any(|node| node.id() != SICK && node.is_leader()));
        insert_somewhere(&cluster, 1);
        assert!(has(sick, 0), "it goes on reading");
        is_well_again(&fs, &cluster);
        insert(sick, 2).unwrap();
        cluster.assert_equal("app");
        let again = events.try_iter().filter(is_trouble).count();
        assert_eq!(again, 0, "people are told once");
    }
}

/// Alone nobody else can lead, and who writes waits: for one proposal, and as long as a writer wants to wait. What was given up
/// is not proposed again as long as it may still take effect; each time it would fill the log of a disk that is full.
#[test]
fn alone_a_new_database_without_room_is_proposed_once_and_writers_are_told_why() {
    let (fs, dir) = (SimFs::new(32), tempfile::tempdir().unwrap());
    let file = plain_file(dir.path());
    let brief = Duration::from_millis(300);
    let node = alone(&fs, |builder| builder.commit_timeout(brief).busy_timeout(brief));
    insert_first(&node);
    fs.fail_at(Aim::At("db.create"), 1, Lasts::ForGood, Failure::ENOSPC);
    let create = || node.write("other", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?));
    for _ in 0..3 {
        let refused = create().unwrap_err();
        assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Busy, Some(Outcome::NotCommitted)), "{refused}");
        let text = refused.to_string();
        assert!(
            text.contains("database other could not be created") && text.contains("make room on the disk"),
            "{text}"
        );
    }
    let plain = node.connect("other").unwrap();
    assert_eq!(outcome(&plain.execute_batch("CREATE TABLE t(x)").unwrap_err()), Some(Outcome::NotCommitted));
    let refused = node.restore("other", &file).unwrap_err();
    assert_eq!(refused.outcome(), Some(Outcome::NotCommitted), "{refused}");
    assert!(refused.to_string().contains("make room on the disk"), "{refused}");
    for _ in 0..2 {
        let refused = node.create("other", CreateOptions::default()).unwrap_err();
        assert_eq!(refused.outcome(), Some(Outcome::Unknown), "{refused}");
        assert!(refused.to_string().contains("make room on the disk"), "{refused}");
    }
    assert_eq!(creations(&fs), ["app", "other"]);
    fs.clear_faults();
    until("it is created", || create().is_ok());
    status(&node, "no alarm is left", |status| status.alarms.is_empty());
    assert_eq!(creations(&fs), ["app", "other"]);
    node.restore("other", &file).unwrap();
}

fn insert_first(node: &Node) {
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(node, 0).unwrap();
}

/// The databases that entries of the log create.
fn creations(fs: &SimFs) -> Vec<String> {
    let mut names = Vec::new();
    let log = Inspection::new(Arc::new(fs.clone()), Path::new("/node/log")).unwrap();
    let read = log.entries(LogIndex(0), &mut |entry| {
        let body = entry::decode(&entry.data).map(|payload| payload.body);
        if let Ok(Body::CreateDatabase { name, .. }) = body {
            names.push(name.as_str().to_string());
        }
        true
    });
    read.unwrap();
    names
}

/// A disk that takes no files of a new database: that one is repaired from the others once it does, and nothing else waits.
#[test]
fn a_database_whose_files_cannot_be_made_is_damaged_here_and_everything_else_goes_on() {
    for (label, seed) in [("db.create", 18), ("map.create", 19)] {
        let fs = SimFs::new(seed);
        let cluster = three(&fs);
        let sick = cluster.node(SICK);
        let events = sick.events();
        fs.fail_at(Aim::At(label), 1, Lasts::ForGood, Failure::EIO);
        // So that it cannot be repaired before this test has looked.
        fs.fail_at(Aim::At("stage.begin"), 1, Lasts::ForGood, Failure::EIO);
        let create = |node: &Node| node.write("other", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?));
        until("it is created", || cluster.running().any(|node| node.is_leader() && create(node).is_ok()));
        status(sick, "it says so", |status| has_alarm(status, "database other could not be created"));
        let what = "check the disk; it is not served on this node until it is repaired from the others";
        assert!(has_alarm(&sick.status(), what), "{:?}", sick.status().alarms);
        told(&events, |event| matches!(event, Event::DivergenceFound { database, .. } if database == "other"));
        until("another leads", || cluster.running().any(|node| node.id() != SICK && node.is_leader()));
        insert_somewhere(&cluster, 1);
        until("the other one is applied here", || has(sick, 1));
        is_well_again(&fs, &cluster);
        sick.write("other", |tx| Ok(tx.execute("INSERT INTO t VALUES (1)", [])?)).unwrap();
        cluster.assert_equal("other");
    }
}

/// Nobody can repair it from another node: a start makes its files, and what the log has of it is applied.
#[test]
fn alone_a_database_whose_files_could_not_be_made_is_there_after_a_start() {
    let fs = SimFs::new(20);
    let node = alone(&fs, |builder| builder);
    fs.fail_at(Aim::At("db.create"), 1, Lasts::ForGood, Failure::EIO);
    let refused = node.write("other", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap_err();
    assert!(refused.to_string().contains("check the disk"), "{refused}");
    status(&node, "it says so", |status| has_alarm(status, "there is no other node to repair it from"));
    fs.clear_faults();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    drop(node);
    let node = alone(&fs, |builder| builder);
    node.write("other", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(&node, 1).unwrap();
    status(&node, "no alarm is left", |status| status.alarms.is_empty());
}

#[test]
fn a_start_that_finds_no_room_to_end_a_checkpoint_says_so_and_damages_nothing() {
    let fs = SimFs::new(15);
    let quick = |builder: Builder| builder.checkpoint_age(Duration::from_millis(50));
    let node = alone(&fs, quick);
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    status(&node, "the log knows the database", |status| {
        status.databases.iter().all(|db| db.checkpointed == db.position && status.anchored >= db.position)
    });
    // All of the next checkpoint is in the double-write when the power goes, and nothing in the main file.
    fs.crash_at(Aim::At("ckpt.page"), 1, 15);
    let _ = insert(&node, 1);
    let acknowledged = insert(&node, 2).is_ok();
    until("the power goes in a checkpoint", || fs.is_down());
    drop(node);
    fs.restart();
    fs.fail_at(Aim::At("ckpt.page"), 1, Lasts::ForGood, Failure::ENOSPC);
    for _ in 0..2 {
        let builder = on(&fs, Node::builder(1, Path::new("/node")).segment_bytes(1 << 20));
        let error = builder.start().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("app") && error.contains("make room on the disk and start the node again"), "{error}");
    }
    fs.clear_faults();
    let node = alone(&fs, quick);
    insert(&node, 3).unwrap();
    assert!(has(&node, 3) && (has(&node, 2) || !acknowledged));
    status(&node, "no alarm", |status| status.alarms.is_empty() && status.databases[0].checkpointed.0 > 0);
}

#[test]
fn a_transaction_that_finds_no_room_to_spill_fails_alone() {
    for (failure, code) in
        [(Failure::ENOSPC, rusqlite::ErrorCode::DiskFull), (Failure::EIO, rusqlite::ErrorCode::SystemIoFailure)]
    {
        let fs = SimFs::new(10);
        let node = alone(&fs, |builder| builder.wal_limit(64 << 10));
        let (app, other) = (node.connect("app").unwrap(), node.connect("other").unwrap());
        for db in [&app, &other] {
            db.execute_batch("CREATE TABLE t(x); PRAGMA cache_size = 10").unwrap();
        }
        fs.fail_at(Aim::At("wal.spill"), 1, Lasts::Once, failure);
        let large = "INSERT INTO t SELECT zeroblob(2000) FROM (VALUES(1),(2),(3),(4),(5),(6),(7),(8)) a, \
                     (VALUES(1),(2),(3),(4),(5),(6),(7),(8)) b";
        let refused = app.execute(large, []).unwrap_err();
        assert_eq!(refused.sqlite_error_code(), Some(code), "{refused}");
        assert_eq!(outcome(&refused), Some(Outcome::NotCommitted));
        other.execute("INSERT INTO t VALUES (1)", []).unwrap();
        assert_eq!((count(&app), count(&other)), (0, 1));
        app.execute(large, []).unwrap();
        assert_eq!(count(&app), 64);
        until("it leads", || node.is_leader());
    }
}

/// Bytes of pages outside of memory.
fn spilled(node: &Node) -> u64 {
    node.status().databases.iter().map(|db| db.wal_spilled).sum()
}

/// A plain SQLite file of some megabytes.
fn plain_file(dir: &Path) -> std::path::PathBuf {
    let file = dir.join("in.db");
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600) \
                INSERT INTO t SELECT randomblob(10000) FROM n";
    rusqlite::Connection::open(&file).unwrap().execute_batch(&format!("CREATE TABLE t(x); {rows}")).unwrap();
    file
}

/// What a transaction that failed had taken of the disk is given back while the log has still no room, so that the entry that
/// ends it finds some; and once that is in the log, its parts are dropped like everything else.
#[test]
fn a_large_restore_that_fills_the_disk_keeps_none_of_it() {
    let (fs, dir) = (SimFs::new(18), tempfile::tempdir().unwrap());
    let file = plain_file(dir.path());
    let limit = 1 << 20;
    let node = alone(&fs, |builder| {
        let builder = builder.segment_bytes(256 << 10).log_limit(limit).part_bytes(PART).wal_limit(64 << 10);
        builder.checkpoint_age(Duration::from_millis(50))
    });
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(&node, 1).unwrap();
    // Some hundred parts come, and three of them at most in one write: this is in their middle, behind more than the limit.
    for label in ["log.write", "log.create", "log.head.write", "log.spare.write"] {
        fs.fail_at(Aim::At(label), 20, Lasts::ForGood, Failure::ENOSPC);
    }
    let impatient = Impatient::after(Duration::from_secs(1), &node);
    let error = node.restore("app", &file).unwrap_err();
    drop(impatient);
    assert_eq!(error.outcome(), Some(Outcome::NotCommitted), "{error}");
    status(&node, "it says so", |status| has_alarm(status, "the log cannot be written"));
    until("its pages are given back", || spilled(&node) == 0);
    assert!(node.status().log_bytes > limit, "its parts are in the log: {}", node.status().log_bytes);
    fs.clear_faults();
    until("it leads again", || node.is_leader());
    let mut last = 1;
    until("it takes a write", || {
        last += 1;
        insert(&node, last).is_ok()
    });
    status(&node, "the log shrinks", |status| status.log_bytes <= limit && status.alarms.is_empty());
    assert!(!node.has_open_split());
    assert!(has(&node, 1) && has(&node, last));
    node.restore("app", &file).unwrap();
    assert_eq!(count(&node.connect("app").unwrap()), 600);
}

/// The same on a follower, whose log may lack just the room that it keeps the parts in. It has them in its log as well.
#[test]
fn a_follower_whose_log_has_no_room_lets_go_of_the_parts_that_came() {
    let fs = SimFs::new(19);
    let cluster = three_with(&fs, |builder| builder.wal_limit(64 << 10));
    administer(|| cluster.node(SICK).transfer_leadership(2)).unwrap();
    until("the second leads", || cluster.node(2).is_leader());
    let (db, sick) = (cluster.node(2).connect("app").unwrap(), cluster.node(SICK));
    std::thread::scope(|scope| {
        // Those that are not held are three times what a WAL may have in memory.
        let held = PartsHeld::by(cluster.node(2));
        let large = scope.spawn(move || db.execute(LARGE, []));
        until("it keeps some of it outside of memory", || spilled(sick) > 0);
        fs.fail_at(Aim::At("log.write"), 1, Lasts::ForGood, Failure::ENOSPC);
        fs.fail_at(Aim::At("log.create"), 1, Lasts::ForGood, Failure::ENOSPC);
        drop(held);
        large.join().unwrap().unwrap();
    });
    status(sick, "it says so", |status| has_alarm(status, "make room on the disk, it is tried again by itself"));
    assert!(sick.has_open_split());
    until("its pages are given back", || spilled(sick) == 0);
    fs.clear_faults();
    cluster.assert_equal("app");
    assert_eq!(count(&sick.connect("app").unwrap()), 1 + LARGE_ROWS);
    status(sick, "no alarm is left", |status| status.alarms.is_empty());
}

#[test]
fn a_restore_that_fails_leaves_no_database_behind_that_was_not_there() {
    let (fs, dir) = (SimFs::new(20), tempfile::tempdir().unwrap());
    let file = plain_file(dir.path());
    // A restore waits as long as any writer for the place of one, also where nobody leads.
    let brief = Duration::from_secs(1);
    let node = alone(&fs, |builder| builder.wal_limit(64 << 10).part_bytes(PART).busy_timeout(brief));
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(&node, 1).unwrap();
    fs.fail_at(Aim::At("wal.spill"), 1, Lasts::ForGood, Failure::ENOSPC);
    let error = node.restore("new", &file).unwrap_err();
    assert!(error.to_string().contains("there was no database new before, and there is none now"), "{error}");
    let error = node.restore("app", &file).unwrap_err();
    assert!(!error.to_string().contains("there is none now"), "{error}");
    let names = |node: &Node| node.status().databases.into_iter().map(|db| db.name).collect::<Vec<_>>();
    assert_eq!(names(&node), ["app"]);
    assert!(has(&node, 1));
    fs.clear_faults();
    // Where nothing can be decided, it cannot be dropped either, and the words say so.
    fs.fail_at(Aim::At("log.write"), 20, Lasts::ForGood, Failure::ENOSPC);
    fs.fail_at(Aim::At("log.create"), 2, Lasts::ForGood, Failure::ENOSPC);
    let impatient = Impatient::after(brief, &node);
    let error = node.restore("new", &file).unwrap_err();
    drop(impatient);
    assert!(error.to_string().contains("an empty database new is left"), "{error}");
    fs.clear_faults();
    // It may lead still, and be about to notice that its log wrote nothing.
    until("it is restored", || node.restore("new", &file).is_ok());
    assert_eq!(names(&node), ["app", "new"]);
}

/// Whoever has room for large transactions should lead.
#[test]
fn a_leader_whose_disk_takes_no_pages_of_a_wal_hands_over() {
    let fs = SimFs::new(13);
    let cluster = three_with(&fs, |builder| builder.wal_limit(64 << 10));
    let sick = cluster.node(SICK);
    let events = sick.events();
    fs.fail_at(Aim::At("wal.spill"), 1, Lasts::ForGood, Failure::ENOSPC);
    let large = |node: &Node| {
        let db = node.connect("app").unwrap();
        db.execute_batch("PRAGMA cache_size = 10").unwrap();
        db.execute(
            "INSERT INTO t SELECT zeroblob(2000) FROM (VALUES(1),(2),(3),(4),(5),(6),(7),(8)) a, \
             (VALUES(1),(2),(3),(4),(5),(6),(7),(8)) b",
            [],
        )
    };
    let refused = large(sick).unwrap_err();
    assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "{refused}");
    until("another leads", || cluster.running().any(|node| node.id() != SICK && node.is_leader()));
    told(&events, |event| matches!(event, Event::DiskTrouble { what } if what.contains("pages of transactions")));
    status(sick, "it says so", |status| has_alarm(status, "pages of transactions"));
    until("it is taken where there is room", || {
        cluster.running().find(|node| node.id() != SICK && node.is_leader()).is_some_and(|node| large(node).is_ok())
    });
    // What is committed is kept all the same, and whoever has no room follows.
    cluster.assert_equal("app");
    insert_somewhere(&cluster, 1);
    assert!(has(cluster.leader(), 0) && has(cluster.leader(), 1));
}

/// Everything of a snapshot is there but its record, for which there is no room: the node goes on as it was, and installs when
/// there is some.
#[test]
fn a_snapshot_whose_record_finds_no_room_is_installed_when_there_is_some() {
    let fs = SimFs::new(14);
    let mut cluster = Cluster::prepare_with(3, quick);
    start_sick_with(&mut cluster, &fs, quick);
    for id in 2..=3 {
        cluster.start_node(id);
    }
    table(&cluster);
    with_blobs(|| cluster.leader(), "app");
    // A new term would have to be written first of all, and finds no room: then it waits for that. So nobody is to be missed
    // from here on. Who is started again does not lead.
    cluster.calm = true;
    for (id, other) in [(2, 3), (3, 2)] {
        administer(|| cluster.leader().transfer_leadership(other)).unwrap();
        cluster.nodes[id as usize - 1] = None;
        cluster.start_node(id);
    }
    let seen = loop {
        if cluster.leader().id() == SICK {
            administer(|| cluster.node(SICK).transfer_leadership(2)).unwrap();
        }
        cluster.assert_equal("app");
        let Status { last, term, role, .. } = cluster.node(SICK).status();
        cluster.nodes[SICK as usize - 1] = None;
        outrun(&cluster, "app", last.0);
        if role == "follower" && cluster.leader().status().term == term {
            break last.0;
        }
        start_sick_with(&mut cluster, &fs, quick);
    };
    // Without room for a new segment there is none for an entry either, once the one that is there is full; nothing comes.
    fs.fail_at(Aim::At("log.create"), 1, Lasts::ForGood, Failure::ENOSPC);
    fs.fail_at(Aim::At("log.head.write"), 1, Lasts::ForGood, Failure::ENOSPC);
    fs.fail_at(Aim::At("log.spare.write"), 1, Lasts::ForGood, Failure::ENOSPC);
    start_sick_with(&mut cluster, &fs, quick);
    let sick = cluster.node(SICK);
    let events = sick.events();
    status(sick, "it waits", |status| has_alarm(status, "waits to be installed"));
    told(&events, |event| matches!(event, Event::DiskTrouble { what } if what.contains("waits to be installed")));
    let tries = || fs.count("log.head.write") + fs.count("log.create");
    let (before, began) = (tries(), Instant::now());
    until("it is tried again", || tries() > before + 40);
    let (more, seconds) = (tries() - before, began.elapsed().as_secs_f64());
    assert!((more as f64) < 20.0 + 25.0 * seconds, "{more} times in {seconds} s: without a pause");
    assert!(sick.status().last.0 <= seen, "the log is the old one");
    assert_eq!(count(&sick.connect("app").unwrap()), 0, "it goes on reading");
    let again = events.try_iter().filter(is_trouble).count();
    assert_eq!(again, 0, "people are told once");
    fs.clear_faults();
    status(sick, "it has everything", |status| {
        status.applied >= cluster.leader().status().applied && status.alarms.is_empty()
    });
    cluster.assert_equal("app");
    told(&events, |event| matches!(event, Event::SnapshotInstalled { .. }));
    let again = events.try_iter().filter(|event| matches!(event, Event::SnapshotInstalled { .. })).count();
    assert_eq!(again, 0);
}

/// No promise depends on a spare segment, so nobody notices; and a disk that is full is not asked again with every append.
#[test]
fn without_room_for_a_spare_segment_the_log_goes_on_and_seldom_tries_again() {
    let fs = SimFs::new(12);
    fs.fail_at(Aim::At("log.spare.write"), 1, Lasts::ForGood, Failure::ENOSPC);
    let began = Instant::now();
    let node = alone(&fs, |builder| builder);
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    for value in 0..50 {
        insert(&node, value).unwrap();
    }
    for _ in 0..4 {
        // A segment has 1 MiB: these are files that grow.
        node.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (randomblob(700000))", []).map(|_| ())?)).unwrap();
    }
    // One attempt a second, and less often from then on. It is made beside the log.
    until("it is tried", || fs.count("log.spare.write") > 0);
    let tries = fs.count("log.spare.write");
    assert!((1..=1 + began.elapsed().as_secs()).contains(&tries), "{tries} in {:?}", began.elapsed());
    status(&node, "nobody notices", |status| status.alarms.is_empty());
    let spares = || fs.count("log.spare.sync");
    assert_eq!(spares(), 0);
    fs.clear_faults();
    until("there is a spare, since there is room", || spares() > 0);
    insert(&node, 50).unwrap();
}

/// A mistake of ours in the thread that writes the log ends in words, and in nobody's waiting for ever.
#[test]
fn a_panic_while_the_log_is_written_stops_the_node_in_words() {
    let fs = SimFs::new(11);
    let node = alone(&fs, |builder| builder);
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(&node, 0).unwrap();
    let armed = AtomicBool::new(true);
    fs.on_call("log.write", move || assert!(!armed.swap(false, Ordering::SeqCst), "planted"));
    let impatient = Impatient::on(&node);
    let error = insert(&node, 1).unwrap_err();
    drop(impatient);
    assert_eq!(error.outcome(), Some(Outcome::Unknown), "{error}");
    let error = insert(&node, 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
    assert!(has_alarm(&node.status(), "panicked"), "{:?}", node.status().alarms);
    assert!(has(&node, 0));
}

/// What fails under a map ends the process. So no more is mapped than the design says: pages of WALs that have no room in memory, and
/// the main file of a view.
#[test]
fn nothing_is_mapped_but_pages_that_spilled_and_what_a_view_lends() {
    let dir = tempfile::tempdir().unwrap();
    let mapped = || -> Vec<String> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ours =
            maps.lines().filter_map(|line| line.find(dir.path().to_str().unwrap()).map(|at| line[at..].to_string()));
        let mut ours: Vec<String> = ours.collect();
        ours.dedup();
        ours
    };
    let limit = 256 << 10;
    let node = Node::builder(1, dir.path()).wal_limit(limit).checkpoint_age(Duration::from_millis(50)).start().unwrap();
    node.wait_leader(LONG).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(200000))")?))
        .unwrap();
    let in_file = |status: &Status| status.databases.iter().all(|db| db.checkpointed == db.position);
    status(&node, "all is in the main file", in_file);
    let db = node.connect("app").unwrap();
    let sum = || db.query_row("SELECT sum(length(x)) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(sum(), 200_000);
    assert!(mapped().is_empty(), "what is read is not mapped: {:?}", mapped());

    let view = node.read_view("app").unwrap();
    let of_view = mapped();
    assert!(of_view.len() == 1 && of_view[0].ends_with(".db"), "{of_view:?}");
    // It keeps the WAL, too, which does not fit.
    db.execute("INSERT INTO t VALUES (randomblob(1000000))", []).unwrap();
    let with_spilled = mapped();
    let (spilled, others): (Vec<_>, Vec<_>) = with_spilled.iter().partition(|name| name.ends_with(" (deleted)"));
    assert!(node.status().databases[0].wal_spilled > 0 && !spilled.is_empty(), "{with_spilled:?}");
    assert!(others.iter().all(|name| of_view.contains(name)), "{with_spilled:?}");
    drop(view);
    status(&node, "all is in the main file again", in_file);
    assert_eq!(sum(), 1_200_000);
    until("nothing is mapped", || mapped().is_empty());
}
