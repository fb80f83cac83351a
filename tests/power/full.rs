//! Disks that have no room left: of the leader, then of everybody. Nothing is acknowledged that is not there afterwards, and
//! with room all go on by themselves. And the disk that a backup is written to.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;
use shoaldb::Node;

use crate::common::{judge, logs};
use crate::disk::Disk;
use crate::harness::cluster::Cluster;
use crate::harness::ledger::Ledger;
use crate::harness::wire::Act;
use crate::{PATIENCE, alone, among_writers, assert_that_it_goes_on, cluster, found, program, skip};

const DISK_BYTES: u64 = 512 << 20;

/// Takes all room of a disk.
fn fill(disk: &Disk) {
    let mut ballast = std::fs::File::create(disk.mount().join("ballast")).unwrap();
    let zeros = vec![0u8; 1 << 20];
    let mut piece = zeros.len();
    while piece > 0 {
        // Smaller and smaller pieces, until not even a byte has room.
        match ballast.write(&zeros[..piece]) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => piece /= 2,
            Err(error) => panic!("ballast: {error}"),
        }
    }
}

/// Makes room again: a node goes on by itself.
fn make_room(disk: &Disk) {
    std::fs::remove_file(disk.mount().join("ballast")).unwrap();
}

/// Whether a node says that its log has no room.
fn log_is_full(cluster: &Cluster, id: u64) -> bool {
    let status = cluster.ask(id, &Act::Status).unwrap_or(Value::Null);
    status["alarms"].to_string().contains("the log cannot be written")
}

fn wait_for_room(cluster: &Cluster, id: u64) {
    let until = Instant::now() + PATIENCE;
    while log_is_full(cluster, id) {
        assert!(Instant::now() < until, "node {id} does not see that there is room\n{}", logs(cluster));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for_full_log(cluster: &Cluster, id: u64) {
    let until = Instant::now() + PATIENCE;
    while !log_is_full(cluster, id) {
        assert!(Instant::now() < until, "node {id} does not say that its log has no room\n{}", logs(cluster));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Either two logs are full, and there is no majority; or the leader has no room for the pages of a transaction, and refuses
/// it before it gets to the log.
fn wait_until_there_is_no_room(cluster: &Cluster, ledger: &Ledger) {
    let until = Instant::now() + PATIENCE;
    while cluster.ids().filter(|id| log_is_full(cluster, *id)).count() < 2 {
        let refused = cluster.append(ledger, 0, PATIENCE).is_err_and(|failure| failure.text.contains("room"));
        if refused {
            return;
        }
        assert!(Instant::now() < until, "full disks, and still there is room\n{}", logs(cluster));
    }
}

#[test]
fn full_disks_lose_nothing_and_all_go_on_when_there_is_room() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let disks = match Disk::three(dir.path(), DISK_BYTES) {
        Ok(disks) => disks,
        Err(why) => return skip("full disks", &why),
    };
    // A small log would soon lack what the node with the full disk needs, and its disk has no room for a second copy of the database.
    let (cluster, troubles) = cluster(dir.path(), program(), Vec::new(), false);
    let ledger = Ledger::default();
    cluster.ids().for_each(|id| troubles.harm(&cluster, id));
    cluster.ids().for_each(|id| cluster.start(id, None).unwrap());
    // Each row brings its own weight: the log needs new files all the time.
    let weight = "weight BLOB DEFAULT (randomblob(100000))";
    let sql =
        format!("CREATE TABLE IF NOT EXISTS shoal_demo(number INTEGER NOT NULL, writer INTEGER NOT NULL, {weight})");
    cluster.on_leader(&Act::Batch { sql }, PATIENCE).unwrap();
    among_writers(&cluster, &ledger, || {
        let leader = cluster.wait_leader(PATIENCE).unwrap();
        fill(&disks[leader as usize - 1]);
        wait_for_full_log(&cluster, leader);
        assert_that_it_goes_on(&cluster, &ledger, "one full disk");
        make_room(&disks[leader as usize - 1]);
        wait_for_room(&cluster, leader);

        disks.iter().for_each(fill);
        wait_until_there_is_no_room(&cluster, &ledger);
        disks.iter().for_each(make_room);
        cluster.ids().for_each(|id| wait_for_room(&cluster, id));
        assert_that_it_goes_on(&cluster, &ledger, "after all disks were full");
    });
    let verdict = judge(&cluster, &ledger, &troubles, PATIENCE);
    eprintln!("full disks: {} acknowledged, all found", verdict.acknowledged);
    drop(cluster);
}

/// A transaction of which no disk has room for all: nobody makes room from outside, and all nodes have it again, and go on.
#[test]
fn a_large_restore_that_fills_all_disks_makes_room_again_by_itself() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let disks = match Disk::three(dir.path(), DISK_BYTES / 2) {
        Ok(disks) => disks,
        Err(why) => return skip("a large transaction on small disks", &why),
    };
    let (cluster, troubles) = cluster(dir.path(), program(), Vec::new(), false);
    let ledger = Ledger::default();
    cluster.ids().for_each(|id| troubles.harm(&cluster, id));
    found(&cluster);
    let free = |disk: &Disk| {
        let room = rustix::fs::statvfs(disk.mount()).unwrap();
        room.f_bavail * room.f_frsize
    };
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) \
                INSERT INTO large SELECT randomblob(100000) FROM n";
    let sql = format!("CREATE TABLE large(x); {rows}");
    let failure = cluster.try_on_leader(&Act::Batch { sql }, PATIENCE).unwrap_err();
    assert!(!failure.text.contains("not known"), "{failure:?}\n{}", logs(&cluster));
    let until = Instant::now() + PATIENCE;
    while disks.iter().any(|disk| free(disk) < DISK_BYTES / 8) {
        let rooms: Vec<u64> = disks.iter().map(free).collect();
        assert!(Instant::now() < until, "no room again: {rooms:?}\n{}", logs(&cluster));
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.ids().for_each(|id| wait_for_room(&cluster, id));
    assert_that_it_goes_on(&cluster, &ledger, "after a transaction that was too large for all disks");
    judge(&cluster, &ledger, &troubles, PATIENCE);
}

#[test]
fn a_backup_that_finds_no_room_says_so_and_leaves_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let disk = match Disk::new(dir.path(), 1, DISK_BYTES) {
        Ok(disk) => disk,
        Err(why) => return skip("a backup on a full disk", &why),
    };
    let node = Node::open(dir.path().join("data")).unwrap();
    let db = node.connect("app").unwrap();
    db.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES (randomblob(1000000))").unwrap();
    let target = disk.mount().join("app.db");
    fill(&disk);
    let files = || {
        let names = std::fs::read_dir(disk.mount()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains("app")).collect::<Vec<_>>()
    };
    let error = node.backup("app", &target).unwrap_err();
    assert!(error.to_string().contains("no backup was written"), "{error}");
    assert!(error.to_string().contains("full"), "it does not say what is missing: {error}");
    assert!(files().is_empty(), "{:?}", files());
    // It was only room that was missing.
    std::fs::remove_file(disk.mount().join("ballast")).unwrap();
    node.backup("app", &target).unwrap();
    assert_eq!(files(), ["app.db"]);
    node.shutdown().unwrap();
}
