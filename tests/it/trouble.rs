//! Disks that fail, on a node with real threads and a simulated file system. A node that cannot write its disk stops
//! acknowledging; it never pretends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Impatient, LONG, until};
use crate::wait::told;
use shoaldb::{Builder, Error, ErrorKind, Event, Node, Outcome, rusqlite};
use shoaldb_vfs::env::os::{OsClock, OsRng};
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs, assert_failed};
use shoaldb_vfs::env::{Env, Fs, Open};

const DIR: &str = "/node";

fn start(fs: &SimFs) -> Node {
    try_start(fs).unwrap()
}

fn try_start(fs: &SimFs) -> Result<Node, Error> {
    try_start_with(fs, |builder| builder)
}

fn try_start_with(fs: &SimFs, settings: impl FnOnce(Builder) -> Builder) -> Result<Node, Error> {
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    let builder =
        Node::builder(1, DIR).env(Env { fs, clock: Arc::new(OsClock), rng: Arc::new(OsRng) }).segment_bytes(64 << 10);
    let node = settings(builder).start()?;
    node.wait_leader(LONG)?;
    Ok(node)
}

fn insert(node: &Node, value: i64) -> Result<(), Error> {
    node.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [value]).map(|_| ())?))
}

fn values(node: &Node) -> Vec<i64> {
    let db = node.connect("app").unwrap();
    let mut select = db.prepare("SELECT x FROM t ORDER BY x").unwrap();
    select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_failed_sync_or_write_ends_acknowledging_but_not_reading() {
    for (label, failure) in [("log.sync", Failure::EIO), ("log.write", Failure::EIO), ("log.sync", Failure::ENOSPC)] {
        let fs = SimFs::new(7);
        let node = start(&fs);
        node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
        insert(&node, 1).unwrap();
        let events = node.events();
        fs.fail_at(Aim::At(label), 1, Lasts::Once, failure);
        let impatient = Impatient::on(&node);
        let error = insert(&node, 2).unwrap_err();
        drop(impatient);
        assert_eq!(error.outcome(), Some(Outcome::Unknown), "{label}: {error}");
        // The disk would work again; but what became of the failed sync nobody knows, so nothing is tried a second time.
        let syncs = fs.count("log.sync");
        let error = insert(&node, 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped, "{label}: {error}");
        assert_eq!(fs.count("log.sync"), syncs, "a failed sync is never retried");
        assert_eq!(values(&node), [1]);
        told(&events, |event| matches!(event, Event::DiskTrouble { .. }));
        let status = node.status();
        assert!(status.alarms.iter().any(|alarm| alarm.contains("nothing is acknowledged")), "{:?}", status.alarms);
        drop(node);
        // What was acknowledged is there after a power cut; what was not may be there or not, and never in part.
        fs.crash(3);
        fs.restart();
        let found = values(&start(&fs));
        assert!(found == [1] || found == [1, 2], "{label}: {found:?}");
    }
}

/// A node alone: what found no room is Unknown when its patience is over, and there when the next attempt found some.
#[test]
fn a_transaction_without_room_in_the_log_is_committed_when_there_is_room() {
    let fs = SimFs::new(8);
    let node = start(&fs);
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(&node, 1).unwrap();
    fs.fail_at(Aim::At("log.write"), 1, Lasts::ForGood, Failure::ENOSPC);
    let impatient = Impatient::on(&node);
    let error = insert(&node, 2).unwrap_err();
    drop(impatient);
    assert_eq!(error.outcome(), Some(Outcome::Unknown), "{error}");
    assert_eq!(values(&node), [1]);
    until(&node, "it says so", |status| status.alarms.iter().any(|alarm| alarm.contains("it is tried again")));
    fs.clear_faults();
    let started = Instant::now();
    while let Err(error) = insert(&node, 3) {
        assert_eq!(error.outcome(), Some(Outcome::NotCommitted), "{error}");
        assert!(started.elapsed() < LONG, "{error}");
    }
    assert_eq!(values(&node), [1, 2, 3]);
    until(&node, "no alarm is left", |status| status.alarms.is_empty());
    drop(node);
    fs.crash(3);
    fs.restart();
    assert_eq!(values(&start(&fs)), [1, 2, 3]);
}

#[test]
fn a_power_cut_at_any_call_loses_nothing_that_was_acknowledged() {
    // First a run without faults, to learn how many calls there are.
    let calls = {
        let fs = SimFs::new(1);
        assert_eq!(run_until_crash(&fs, patient), 8);
        fs.calls()
    };
    assert!(calls > 30, "{calls}");
    cut_power_at_each(calls, run_until_crash);
}

/// What a node does until the power goes: it takes the file system and settings, and gives the last value that was acknowledged.
type Life = fn(&SimFs, fn(Builder) -> Builder) -> i64;

fn patient(builder: Builder) -> Builder {
    builder.commit_timeout(LONG).busy_timeout(LONG)
}

/// Without power nobody answers. What runs out of time before is only not acknowledged.
fn impatient(builder: Builder) -> Builder {
    builder.commit_timeout(Duration::from_millis(300)).busy_timeout(Duration::from_millis(100))
}

/// Most of a life is waiting, for threads that end or make checkpoints: several live at a time.
fn cut_power_at_each(calls: u64, life: Life) {
    let next = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let turn = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|nth| *nth <= calls);
                std::iter::from_fn(turn).for_each(|nth| cut_power_at(nth, life));
            });
        }
    });
}

/// Lets `life` run until call `nth`, where the power goes; judges what there is when it comes back.
fn cut_power_at(nth: u64, life: Life) {
    let fs = SimFs::new(nth);
    fs.crash_at(Aim::Any, nth, nth);
    let acknowledged = life(&fs, impatient);
    fs.crash(nth + 1000);
    fs.restart();
    let node = try_start(&fs).unwrap_or_else(|error| panic!("crash at call {nth}: {error}"));
    let connected = node.connect("app");
    let db = connected.unwrap_or_else(|error| panic!("crash at call {nth}: {error}, {:#?}", node.status()));
    let found: Vec<i64> = match db.prepare("SELECT x FROM t ORDER BY x") {
        Ok(mut select) => select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect(),
        Err(_) => Vec::new(),
    };
    let expected: Vec<i64> = (1..=found.len() as i64).collect();
    assert_eq!(found, expected, "crash at call {nth}");
    assert!(found.len() as i64 >= acknowledged, "crash at call {nth}: {acknowledged} acknowledged, {found:?} found");
}

/// Starts a node and writes 1, 2, 3 ... 8; the last value that was acknowledged.
fn run_until_crash(fs: &SimFs, settings: fn(Builder) -> Builder) -> i64 {
    let Ok(node) = try_start_with(fs, settings) else { return 0 };
    if node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).is_err() {
        return 0;
    }
    (1..=8).take_while(|value| insert(&node, *value).is_ok()).last().unwrap_or(0)
}

/// Starts a node that writes 1, 2 and 3, and moves each to the main file before the next; the last value that was
/// acknowledged.
fn checkpoint_until_crash(fs: &SimFs, settings: fn(Builder) -> Builder) -> i64 {
    let quick = |builder: Builder| settings(builder).checkpoint_age(Duration::from_millis(1));
    let Ok(node) = try_start_with(fs, quick) else { return 0 };
    let mut acknowledged = 0;
    if node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).is_err() {
        return 0;
    }
    while acknowledged < 3 && insert(&node, acknowledged + 1).is_ok() {
        acknowledged += 1;
        let all_is_in_the_main_file =
            || node.status().databases.iter().all(|database| database.checkpointed == database.position);
        let started = Instant::now();
        while !all_is_in_the_main_file() && !fs.is_down() {
            assert!(started.elapsed() < LONG, "no checkpoint: {:#?}", node.status());
            std::thread::yield_now();
        }
    }
    acknowledged
}

/// The same with checkpoints in between, whose calls come from another thread than the log's.
#[test]
fn a_power_cut_at_any_call_of_log_or_checkpoint_loses_nothing_that_was_acknowledged() {
    let calls = {
        let fs = SimFs::new(1);
        assert_eq!(checkpoint_until_crash(&fs, patient), 3);
        fs.calls()
    };
    cut_power_at_each(calls, checkpoint_until_crash);
}

#[test]
fn damage_below_what_was_synced_is_refused_with_its_place() {
    let fs = SimFs::new(11);
    let node = start(&fs);
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    (1..=20).for_each(|value| insert(&node, value).unwrap());
    drop(node);
    let dir = Path::new(DIR).join("log");
    let used = |name: &String| {
        let mut used = 0;
        fs.edit(&dir.join(name), |bytes| used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0));
        used
    };
    // The first one has nothing but its head and its seal if a spare was ready before the first entry.
    let segments = fs.list(&dir, "test").unwrap().into_iter().filter(|name| name.ends_with(".seg"));
    let segment = segments.max_by_key(used).unwrap();
    fs.edit(&dir.join(&segment), |bytes| {
        let middle = bytes.iter().rposition(|byte| *byte != 0).unwrap() / 2;
        let at = (middle..).find(|at| bytes[*at] != 0).unwrap();
        bytes[at] ^= 1;
    });
    let error = try_start(&fs).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(&segment) && error.to_string().contains("offset"), "{error}");
}

/// Nothing but the start fails, and it says which directory it is.
#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    let mut failed = BTreeSet::new();
    for (label, errno) in [("dir.lock", 30), ("dir.lock", 13), ("db.dir", 30), ("dir.create", 13)] {
        let fs = SimFs::new(6);
        fs.fail_at(Aim::At(label), 1, Lasts::Once, Failure::Errno(errno));
        let error = try_start(&fs).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{label}: {error}");
        assert!(error.to_string().starts_with(&format!("{DIR}: ")), "{label}: {error}");
        assert!(
            error.to_string().contains(if label == "dir.create" { "data directory" } else { "may write to" }),
            "{error}"
        );
        failed.extend(fs.failed());
        start(&fs);
    }
    assert_failed(&failed, &["dir.lock", "db.dir", "dir.create"]);
}

/// What may be in it would be somebody else's. Such a look was passed over once: a node began in a directory
/// that it had not seen.
#[test]
fn a_directory_that_cannot_be_looked_into_is_not_taken_for_an_empty_one() {
    for lasts in [Lasts::Once, Lasts::ForGood] {
        let fs = SimFs::new(6);
        let foreign = Path::new(DIR).join("letters");
        fs.create_dir_all(Path::new(DIR), "test").unwrap();
        fs.open(&foreign, Open::CreateNew, "test").unwrap();
        fs.fail_at(Aim::At("dir.look"), 1, lasts, Failure::EIO);
        for _ in 0..if lasts == Lasts::Once { 1 } else { 3 } {
            let error = try_start(&fs).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            assert!(
                error.to_string().starts_with(&format!("{DIR}: whether this directory is somebody else's")),
                "{error}"
            );
            assert!(error.to_string().contains("nput/output error"), "{error}");
        }
        assert_failed(&fs.failed(), &["dir.look"]);
        fs.clear_faults();
        let error = try_start(&fs).unwrap_err();
        assert!(error.kind() == ErrorKind::BadInput && error.to_string().contains("letters"), "{error}");
        assert_eq!(fs.list(Path::new(DIR), "test").unwrap(), ["letters"]);
        fs.remove(&foreign, "test").unwrap();
        start(&fs);
    }
}

/// All files of a node that is not running.
fn files(fs: &SimFs) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for dir in [Path::new(DIR).to_path_buf(), Path::new(DIR).join("log"), Path::new(DIR).join("db")] {
        let names = fs.list(&dir, "test").unwrap().into_iter().map(|name| dir.join(name));
        all.extend(names.filter_map(|path| Some((path.clone(), fs.peek(&path)?))));
    }
    all
}

#[test]
fn a_directory_that_lost_its_log_or_its_identity_does_not_come_back_as_another() {
    for lost in ["identity", "log"] {
        let fs = SimFs::new(5);
        let node = start(&fs);
        node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
        drop(node);
        if lost == "identity" {
            fs.remove(&Path::new(DIR).join("identity"), "test").unwrap();
        } else {
            let dir = Path::new(DIR).join("log");
            for name in fs.list(&dir, "test").unwrap() {
                fs.remove(&dir.join(name), "test").unwrap();
            }
        }
        let before = files(&fs);
        let error = try_start(&fs).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{lost}: {error}");
        let parts = match lost {
            "identity" => {
                ["/node: ", "there is a log but no identity", "restore the file `identity`, or remove node 1"]
            }
            _ => [
                "/node/log: ",
                "the log of node 1 is gone",
                "if it was moved away, bring it back; else remove this node",
            ],
        };
        assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        assert!(files(&fs) == before, "{lost}: nothing is changed");
    }
}

/// One that is not needed is not missed. One that says of another position than the rest that it is to follow on it shows that
/// something was lost or exchanged: the main file is left as it is.
#[test]
fn a_damaged_double_write_is_named_with_what_to_do_and_the_main_file_stays() {
    let fs = SimFs::new(8);
    let quick = |builder: Builder| builder.checkpoint_age(Duration::from_millis(1));
    let start = || try_start_with(&fs, quick).unwrap();
    let checkpointed = |node: &Node| {
        until(node, "all is checkpointed", |status| {
            status.databases.iter().all(|db| db.checkpointed == db.position && status.anchored.0 >= db.id.0)
        })
    };
    let node = start();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(&node, 1).unwrap();
    let id = checkpointed(&node).databases[0].id;
    node.shutdown().unwrap();
    let path = |end: &str| Path::new(DIR).join("db").join(format!("{id}-1.{end}"));
    let (map, doublewrite) = (fs.peek(&path("map")).unwrap(), path("dw"));
    fs.edit(&doublewrite, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 0xff));

    let node = start();
    assert_eq!((values(&node), node.status().alarms), (vec![1], vec![]));
    for value in [2, 3] {
        insert(&node, value).unwrap();
        checkpointed(&node);
    }
    node.shutdown().unwrap();
    fs.edit(&path("map"), |bytes| *bytes = map);
    let main = fs.peek(&path("db"));

    let node = start();
    let alarms = node.status().alarms;
    let parts = [
        "database app",
        doublewrite.to_str().unwrap(),
        "double-write from position",
        "drop the database, then restore a backup",
    ];
    assert!(alarms.iter().any(|alarm| parts.iter().all(|part| alarm.contains(part))), "{alarms:?}");
    let error = node.connect("app").unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains("double-write from position"), "{error}");
    node.shutdown().unwrap();
    assert!(fs.peek(&path("db")) == main, "the main file is unchanged");
}

#[test]
fn a_transaction_beyond_the_limit_is_refused_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder(1, dir.path()).transaction_limit(100_000).start().unwrap();
    node.wait_leader(Duration::from_secs(10)).unwrap();
    let db = node.connect("app").unwrap();
    db.execute_batch("CREATE TABLE t(x)").unwrap();
    let error = db.execute("INSERT INTO t VALUES (randomblob(200000))", []).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull), "{error}");
    db.execute("INSERT INTO t VALUES (randomblob(20000))", []).unwrap();
    let rows: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
}
