//! A kill in every labelled step: three real processes, one of which kills itself in the file call that is meant.
//!
//! The kill loop meets what comes often. What a checkpoint, a new file of the log, a compaction, a start behind a kill and the install
//! of a snapshot do in a few calls, each of which leaves something else behind, it meets by chance. Here each label under which one of
//! these changes what is on the disk is aimed at once, and the process dies before the first such call, or with half of what it
//! writes. (Dead behind a call is dead before the next one.) Then it is started again, and goes on. In the end all is judged as in the
//! kill loop.
//!
//! So that a checkpoint makes a main file shorter (`ckpt.len`), the large rows go now and then, and a VACUUM follows; it runs on a
//! connection of its own, since there is none within a transaction. So that it gives room back (`dw.shrink`), a worker keeps little for
//! the double-write.
//!
//! Left out is
//!
//! * what changes nothing: files that are there are opened, listed, measured, locked, mapped and read (`stage.room`, `stage.read`,
//!   `stage.verify`, `log.read`, `db.open` and others). Dead before such a call is dead behind the last one that changed something;
//! * what this load does not come to: `stage.sync_some` (4 MiB at once), and `stage.remove` and `stage.empty`, which are for a part
//!   that nobody needs or whose sync failed. `tests/layers.rs` names tests that make these fail;
//! * what a start does by chance: `log.wipe`, for a batch that was cut in the middle (a test is named there, too), and `map.create`, for
//!   what a power cut took, which is the simulation's;
//! * a founding and the creation of a database (`identity.write`, `log.mkdir`, `db.create` and others). The kill loop kills in the first,
//!   and the simulation in both.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::common::{PHASES, SIGKILL, Writers, judge, logs, write};
use crate::harness::cluster::Cluster;
use crate::harness::ledger::Ledger;
use crate::harness::wire::Act;
use crate::kills::{PATIENCE, three_nodes};

const WRITERS: u64 = 2;

/// Once in the life of a database's files: when its first checkpoint begins.
const FIRST: &str = "dw.create";

/// In the order in which they come, each on the next node.
const RUNNING: [&str; 22] = [
    // A checkpoint: the table in vfs/src/files.rs.
    "dw.write",
    "dw.sync",
    "ckpt.page",
    "ckpt.hash",
    "ckpt.len",
    "ckpt.sync",
    "ckpt.map_sync",
    "ckpt.record",
    "ckpt.record_sync",
    "dw.shrink",
    // The next file of the log.
    "log.seal",
    "log.seal.sync",
    "log.create",
    "log.spare.write",
    "log.spare.sync",
    "log.head.write",
    "log.head.sync",
    "log.promote",
    "log.promote.sync",
    // A compaction.
    "log.retire",
    "log.remove",
    "log.retire.sync",
];

/// Starts, behind a kill that leaves them something to do. Each start finds what the one before it left.
const STARTING: [(&str, &[&str]); 4] = [
    // A spare that is not whole.
    ("log.spare.write", &["log.rewrite", "log.open.sync", "log.remove"]),
    // A file of the log that does not say that another one follows. Half of what says so is all of it but zeros.
    ("log.promote.sync", &["log.seal"]),
    ("log.promote.sync", &["log.seal.sync"]),
    // A checkpoint that is done again.
    (
        "ckpt.page",
        &[
            "dw.write",
            "dw.sync",
            "ckpt.page",
            "ckpt.hash",
            "ckpt.sync",
            "ckpt.map_sync",
            "ckpt.record",
            "ckpt.record_sync",
        ],
    ),
];

/// A snapshot, up to the moment from which on it counts: the table in src/snapshot/install.rs. Each attempt finds what the one
/// before it left.
const COMING: [&str; 12] = [
    "stage.begin",
    "stage.write",
    "stage.len",
    "stage.adopt",
    "stage.map",
    "stage.sync",
    "stage.map_sync",
    "stage.rename",
    "stage.sync_dir",
    "stage.sync_dir>log.head.write",
    "stage.sync_dir>log.head.sync",
    "stage.sync_dir>log.promote",
];

/// From then on: each needs a snapshot of its own. And the start behind it removes what it left, where that has a label.
const COUNTS: [(&str, Option<&str>); 5] = [
    ("stage.sync_dir>log.promote.sync", Some("log.remove")),
    ("stage.sync_dir>log.retire", None),
    ("stage.sync_dir>log.remove", None),
    ("stage.sync_dir>log.retire.sync", None),
    ("db.drop", Some("db.orphan")),
];

/// A node has died in this step, and nowhere else.
fn has_died(cluster: &Cluster, id: u64, step: &str) {
    let child = cluster.child(id).unwrap();
    if !child.wait_gone(PATIENCE) {
        panic!("node {id} does not come to {step}\n{}", logs(cluster));
    }
    let ended = child.status();
    assert_eq!(ended.and_then(|status| status.signal()), Some(SIGKILL), "{step}: {ended:?}\n{}", logs(cluster));
    let notes = std::fs::read(cluster.phases(id).unwrap()).unwrap();
    let label = notes.get(PHASES.len()..).map(String::from_utf8_lossy);
    let meant = step.rsplit('>').next();
    assert_eq!(label.as_deref(), meant, "{}", logs(cluster));
    // Whoever looks for the leader looks elsewhere.
    cluster.kill(id);
}

fn dies_running(cluster: &Cluster, id: u64, step: &str) {
    // It may come to that step before it has answered. One that was not told does not die there.
    let _ = cluster.ask(id, &Act::DieAt { phase: step.to_string(), nth: 1 });
    has_died(cluster, id, step);
}

fn dies_starting(cluster: &Cluster, id: u64, step: &str) {
    cluster.start(id, Some(format!("{step}:1"))).unwrap();
    has_died(cluster, id, step);
}

/// The same, before it was started: a node that runs comes to most of these steps as well.
fn dies_in_its_start(cluster: &Cluster, id: u64, step: &str) {
    dies_starting(cluster, id, step);
    let recovery = PHASES.iter().position(|phase| *phase == "recovery").unwrap();
    let notes = std::fs::read(cluster.phases(id).unwrap()).unwrap();
    assert_eq!(notes[recovery], 1, "{step}: the start was over");
}

/// Kills one that follows, and leaves it away until the logs of the others have lost what it needs.
fn outrun(cluster: &Cluster) -> u64 {
    ready(cluster);
    let Some(leader) = cluster.wait_leader(PATIENCE) else { panic!("no leader\n{}", logs(cluster)) };
    let victim = 1 + leader % 3;
    let index = |id: u64, name: &str| cluster.ask(id, &Act::Status).ok().and_then(|status| status[name].as_u64());
    let last = index(victim, "last").unwrap();
    cluster.kill(victim);
    let deadline = Instant::now() + PATIENCE;
    // Either of them may be asked for a snapshot.
    let lost = |id: u64| id == victim || index(id, "first").is_some_and(|first| first > last + 1);
    while !cluster.ids().all(lost) {
        assert!(Instant::now() < deadline, "the log does not lose entry {last}\n{}", logs(cluster));
        std::thread::sleep(Duration::from_millis(10));
    }
    victim
}

fn ready(cluster: &Cluster) {
    if !cluster.wait_ready(&[1, 2, 3], PATIENCE) {
        panic!("not all nodes came back; leader {:?}\n{}", cluster.leader(), logs(cluster));
    }
}

/// Rows that are large, so that log and databases move on; a bounded number of them, which go at times.
fn move_on(cluster: &Cluster, writers: &Writers) {
    let fill = "CREATE TABLE IF NOT EXISTS filler(id INTEGER PRIMARY KEY, v); \
                INSERT OR REPLACE INTO filler VALUES (abs(random()) % 30, randomblob(15000))";
    for round in 1u64.. {
        if writers.stop.load(Ordering::SeqCst) {
            return;
        }
        let act = match round % 60 {
            58 => Act::Batch { sql: "DELETE FROM filler".to_string() },
            // The one request that has no transaction around its statement.
            59 => Act::Read { sql: "VACUUM".to_string(), linearizable: false },
            _ => Act::Batch { sql: fill.to_string() },
        };
        if cluster.try_on_leader(&act, Duration::from_millis(200)).is_err() {
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

fn every_step(cluster: &Cluster) {
    for (step, id) in RUNNING.into_iter().zip(cluster.ids().cycle()) {
        dies_running(cluster, id, step);
        cluster.start(id, None).unwrap();
    }
    for ((before, steps), id) in STARTING.into_iter().zip(cluster.ids().cycle()) {
        ready(cluster);
        dies_running(cluster, id, before);
        for step in steps {
            dies_in_its_start(cluster, id, step);
        }
        cluster.start(id, None).unwrap();
    }
    let victim = outrun(cluster);
    COMING.into_iter().for_each(|step| dies_starting(cluster, victim, step));
    cluster.start(victim, None).unwrap();
    for (step, left) in COUNTS {
        let victim = outrun(cluster);
        dies_starting(cluster, victim, step);
        left.into_iter().for_each(|step| dies_in_its_start(cluster, victim, step));
        cluster.start(victim, None).unwrap();
    }
    ready(cluster);
}

#[test]
fn a_kill_in_every_labelled_step_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, troubles) = three_nodes(dir.path());
    let ledger = Ledger::default();
    cluster.ids().for_each(|id| cluster.start(id, None).unwrap());
    ready(&cluster);
    // Before there is a database.
    cluster.ask(1, &Act::DieAt { phase: FIRST.to_string(), nth: 1 }).unwrap();
    cluster.prepare(PATIENCE).unwrap_or_else(|failure| panic!("{failure:?}\n{}", logs(&cluster)));
    let writers = Writers::default();
    let result = std::thread::scope(|scope| {
        for writer in 1..=WRITERS {
            let (cluster, ledger, writers) = (&cluster, &ledger, &writers);
            scope.spawn(move || write(cluster, ledger, writers, writer));
        }
        scope.spawn(|| move_on(&cluster, &writers));
        // A panic in here must not wait for writers that nobody stops.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            has_died(&cluster, 1, FIRST);
            cluster.start(1, None).unwrap();
            every_step(&cluster);
        }));
        writers.stop.store(true, Ordering::SeqCst);
        result
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    judge(&cluster, &ledger, &troubles, PATIENCE);
}
