//! Kill loop: three real processes, killed one, two or all at a time, while writers run.
//!
//! A life is one cluster from its founding to its judgement; each has some rounds. A round lets writers run, kills, and
//! starts the killed nodes again. Kills come in three ways, drawn from a seed:
//!
//! * from outside, at a random moment: SIGKILL to one, two or all nodes;
//! * all of them in the append of the same entry, which is the hardest moment for a promise;
//! * from inside: a node is told to kill itself when it begins its n-th append, sync, apply, publish, or file call of its
//!   recovery, of a checkpoint or of a compaction (`src/bin/shoal/phases.rs`), so that short phases are hit, too;
//! * the same in a file call for the files that a snapshot brings, after the node was away until the others' logs had lost what
//!   it needs. Logs are small, so that this takes a second or two.
//!
//! Each kill is counted for the phases that the process was in, as it noted them itself; for `idle` if for none. While a
//! bucket is empty, lives go on beyond the number that was asked for; one that stays empty fails the test: then it did not test
//! what it says (of snapshots from [`LONG_RUN`] kills on: there are few). What a checkpoint, a compaction, a start and an install do
//! in single steps is what `steps.rs` is for. A process that ended in another way than by SIGKILL fails it, too, and so does a panic.
//!
//! Kills seldom make a node say "not committed", since who could say it is dead. So each life ends with a leader that is cut
//! off while writers wait for it, and lives: another one is elected, and what the first had proposed was never committed.
//!
//! After each life: acknowledged = found on every node, not committed = found nowhere, unknown = either, nothing twice;
//! all nodes have the same checksum at the same position; `integrity_check` is ok. And no node has found its own copy of the
//! database damaged at any time: it would have repaired that from the others before anybody looked.
//!
//! **What this cannot see.** SIGKILL ends a process, not the machine: what was written stays in the page cache, synced or
//! not. A node that acknowledges before its sync passes here. The simulated disk, which forgets unsynced bytes, is what
//! tests that.
//!
//! `SHOAL_KILLS=1000 SHOAL_SEED=7 cargo test --release --test crash kill_loop -- --nocapture` runs more, or another
//! sequence. A seed fixes what is done, not how the processes are scheduled.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::common::{Buckets, Dice, PHASES, SIGKILL, Troubles, Writers, judge, logs, number, write};
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::ledger::Ledger;
use crate::harness::wire::{Act, Told};
use rustix::process::{Pid, Signal, kill_process};

/// Kills of one run, unless `SHOAL_KILLS` says otherwise.
const KILLS: u64 = 240;
/// Where machines are slow, fewer kills come at the moment that was meant: so many times the kills are tried at the most, until
/// each phase was interrupted.
const AT_MOST: u64 = 4;
/// Kills of one life: enough for a log with many terms, few enough that replay stays short.
const KILLS_PER_LIFE: u64 = 35;
const WRITERS: u64 = 4;
/// Far beyond what anything takes; nothing waits so long unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// From so many kills on a snapshot must have been interrupted, too.
const LONG_RUN: u64 = 1000;

#[derive(Default)]
struct Sums {
    kills: u64,
    buckets: Buckets,
    acknowledged: usize,
    unknown: usize,
    not_committed: usize,
    untried: usize,
}

impl Sums {
    /// Reads what a dead node noted.
    fn count(&mut self, cluster: &Cluster, id: u64) {
        let ended = cluster.child(id).and_then(|child| child.status());
        let by_kill = ended.is_some_and(|status| status.signal() == Some(SIGKILL));
        assert!(by_kill, "node {id} ended by itself: {ended:?}\n{}", logs(cluster));
        self.kills += 1;
        let path = cluster.phases(id).unwrap();
        // One that died before it could note anything counts for nothing, and not as what its life before did.
        let Ok(notes) = std::fs::read(path) else { return };
        std::fs::remove_file(path).unwrap();
        self.buckets.count(&notes);
    }
}

#[test]
fn kill_loop() {
    let (kills, seed) = (number("SHOAL_KILLS", KILLS), number("SHOAL_SEED", 1));
    eprintln!("SHOAL_KILLS={kills} SHOAL_SEED={seed}");
    let (began, mut dice, mut sums) = (Instant::now(), Dice(seed), Sums::default());
    let wanted = || PHASES.iter().chain(&["idle"]).filter(|bucket| **bucket != "install" || kills >= LONG_RUN);
    // "Certainly not committed" is a promise of the nodes: if none ever said it, nothing was tested about it.
    let lacks = |sums: &Sums| {
        let judged = sums.not_committed > 0 && sums.unknown > 0;
        wanted().any(|bucket| !sums.buckets.0.contains_key(bucket)) || !judged
    };
    while sums.kills < kills || (sums.kills < AT_MOST * kills && lacks(&sums)) {
        // Beyond that, in whole lives.
        let left = if sums.kills < kills { kills - sums.kills } else { KILLS_PER_LIFE };
        let target = sums.kills + KILLS_PER_LIFE.min(left);
        life(&mut dice, &mut sums, target);
        eprintln!("{:4} kills, {:.0} s, {:?}", sums.kills, began.elapsed().as_secs_f64(), sums.buckets.0);
    }
    eprintln!(
        "{} kills in {:.0} s; {} acknowledged, all found; {} not committed as nodes said, and {} not tried, none found; \
         {} unknown",
        sums.kills,
        began.elapsed().as_secs_f64(),
        sums.acknowledged,
        sums.not_committed,
        sums.untried,
        sums.unknown
    );
    assert!(sums.not_committed > 0 && sums.unknown > 0, "no node said what is to be judged");
    for bucket in wanted() {
        assert!(sums.buckets.0.contains_key(bucket), "no kill interrupted: {bucket}; {:?}", sums.buckets);
    }
}

/// Three nodes that note what they do, with short timeouts, none of them started; and what troubles them.
pub(crate) fn three_nodes(dir: &Path) -> (Cluster, Arc<Troubles>) {
    let plan = Plan {
        program: PathBuf::from(env!("CARGO_BIN_EXE_shoal")),
        dir: dir.to_path_buf(),
        nodes: 3,
        heartbeat: Duration::from_millis(30),
        election_timeout: Duration::from_millis(150),
        phases: true,
        hosts: Vec::new(),
    };
    let troubles = Arc::new(Troubles::with_self_killers());
    (Cluster::new(&plan, troubles.watcher()).unwrap(), troubles)
}

fn life(dice: &mut Dice, sums: &mut Sums, target: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, troubles) = three_nodes(dir.path());
    let ledger = Ledger::default();
    // The founding is killed, too, and its kills are in no bucket: what opens there is no log yet.
    let buckets = sums.buckets.clone();
    for id in cluster.ids() {
        let die_at = (dice.below(2) == 0).then(|| format!("recovery:{}", 1 + dice.below(30)));
        start(&cluster, sums, id, die_at);
    }
    sums.buckets = buckets;
    cluster.prepare(PATIENCE).unwrap_or_else(|failure| panic!("{failure:?}\n{}", logs(&cluster)));
    let writers = Writers::default();
    let result = std::thread::scope(|scope| {
        for writer in 1..=WRITERS {
            let (cluster, ledger, writers) = (&cluster, &ledger, &writers);
            scope.spawn(move || write(cluster, ledger, writers, writer));
        }
        // A panic in here must not wait for writers that nobody stops.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while sums.kills < target {
                round(dice, sums, &cluster, &writers);
            }
            cut_off_a_leader(&cluster, &ledger);
        }));
        writers.stop.store(true, Ordering::SeqCst);
        result
    });
    if let Err(panic) = result {
        eprintln!("{}", logs(&cluster));
        std::panic::resume_unwind(panic);
    }
    let verdict = judge(&cluster, &ledger, &troubles, PATIENCE);
    sums.acknowledged += verdict.acknowledged;
    sums.unknown += verdict.unknown;
    sums.not_committed += verdict.not_committed;
    sums.untried += verdict.untried;
}

/// Cuts the leader off from the others while writers wait for it, until one of the others leads and has committed; then it
/// hears of that, and has to tell its writers what became of theirs.
fn cut_off_a_leader(cluster: &Cluster, ledger: &Ledger) {
    assert!(cluster.wait_ready(&[1, 2, 3], PATIENCE), "not all nodes came back; leader {:?}", cluster.leader());
    let Some(leader) = cluster.wait_leader(PATIENCE) else { panic!("no leader\n{}", logs(cluster)) };
    let block = |blocked| {
        for other in cluster.ids().filter(|id| *id != leader) {
            cluster.ask(leader, &Act::Block { other, blocked }).unwrap();
        }
    };
    block(true);
    let deadline = Instant::now() + PATIENCE;
    while cluster.leader().is_none_or(|now| now == leader) || cluster.append(ledger, 0, PATIENCE).is_err() {
        assert!(Instant::now() < deadline, "nobody took over from node {leader}\n{}", logs(cluster));
        std::thread::sleep(Duration::from_millis(5));
    }
    block(false);
}

/// Starts a node, which may die by itself on the way; then once more, until it stays.
fn start(cluster: &Cluster, sums: &mut Sums, id: u64, die_at: Option<String>) {
    let dies = die_at.is_some();
    cluster.start(id, die_at).unwrap();
    if !dies {
        return;
    }
    // It dies early, or its start needs fewer file calls than that: then it shall live.
    let child = cluster.child(id).unwrap();
    let disarm = Act::DieAt { phase: "recovery".to_string(), nth: 0 };
    if child.wait_gone(Duration::from_millis(150)) || cluster.ask(id, &disarm).is_err() {
        // Its pipes close somewhat before it has ended.
        child.wait_gone(PATIENCE);
        sums.count(cluster, id);
        cluster.kill(id);
        cluster.start(id, None).unwrap();
    }
}

fn round(dice: &mut Dice, sums: &mut Sums, cluster: &Cluster, writers: &Writers) {
    std::thread::sleep(Duration::from_millis(20 + dice.below(150)));
    let victims = dice.nodes();
    let how = dice.below(8);
    if how == 7 {
        // Seldom: it takes as long as some other rounds.
        if dice.below(4) == 0 {
            interrupt_a_snapshot(dice, sums, cluster);
        }
        return;
    }
    if how == 6 {
        // From inside, in what each node does by itself.
        for id in &victims {
            let phase = ["checkpoint", "compaction"][dice.below(2) as usize];
            let nth = 1 + dice.below(if phase == "checkpoint" { 14 } else { 4 }) as u32;
            let _ = cluster.ask(*id, &Act::DieAt { phase: phase.to_string(), nth });
        }
        let until = Instant::now() + Duration::from_millis(1500);
        for id in &victims {
            let child = cluster.child(*id).unwrap();
            child.wait_gone(until.saturating_duration_since(Instant::now()));
        }
    } else if how == 0 {
        // The same entry: nobody writes, a majority is told to die in its next append, and then there is one.
        writers.pause.store(true, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(60));
        for id in &victims {
            let _ = cluster.ask(*id, &Act::DieAt { phase: "append".to_string(), nth: 1 });
        }
        writers.pause.store(false, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(60));
    } else if how < 4 {
        // From inside: each has a phase of its own in which it dies. Only a leader publishes, only others apply.
        let leader = cluster.wait_leader(PATIENCE);
        for id in &victims {
            let memory = if leader == Some(*id) { "publish" } else { "apply" };
            let phase = ["append", "sync", memory, memory][dice.below(4) as usize];
            // Soon for who publishes: once a majority is dead, nothing is published any more.
            let nth = if phase == "publish" { 1 } else { 1 + dice.below(5) as u32 };
            let _ = cluster.ask(*id, &Act::DieAt { phase: phase.to_string(), nth });
        }
        let until = Instant::now() + Duration::from_millis(400);
        for id in &victims {
            let child = cluster.child(*id).unwrap();
            child.wait_gone(until.saturating_duration_since(Instant::now()));
        }
    } else if dice.below(4) == 0 {
        // While nobody writes.
        writers.pause.store(true, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(60));
    }
    // Who still lives did not come to its phase, or was meant to be killed from outside.
    for id in &victims {
        cluster.kill(*id);
        sums.count(cluster, *id);
    }
    writers.pause.store(false, Ordering::SeqCst);
    if dice.below(2) == 0 {
        std::thread::sleep(Duration::from_millis(dice.below(200)));
    }
    for id in &victims {
        let die_at = (dice.below(4) == 0).then(|| format!("recovery:{}", 1 + dice.below(40)));
        start(cluster, sums, *id, die_at);
    }
    // Every second time the next kill meets nodes that have not caught up.
    if dice.below(2) == 0 && !cluster.wait_ready(&[1, 2, 3], PATIENCE) {
        panic!("not all nodes came back within {PATIENCE:?}; leader {:?}", cluster.leader());
    }
}

/// One that follows is killed, is away until it needs a snapshot, and dies while it gets it.
fn interrupt_a_snapshot(dice: &mut Dice, sums: &mut Sums, cluster: &Cluster) {
    if !cluster.wait_ready(&[1, 2, 3], PATIENCE) {
        panic!("not all nodes came back within {PATIENCE:?}; leader {:?}\n{}", cluster.leader(), logs(cluster));
    }
    let Some(leader) = cluster.wait_leader(PATIENCE) else { panic!("no leader\n{}", logs(cluster)) };
    let victim = 1 + (leader + dice.below(2)) % 3;
    let index = |id: u64, name: &str| cluster.ask(id, &Act::Status).ok().and_then(|status| status[name].as_u64());
    let Some(last) = index(victim, "last") else { return };
    cluster.kill(victim);
    sums.count(cluster, victim);
    let deadline = Instant::now() + PATIENCE;
    while cluster.leader().and_then(|leader| index(leader, "first")).is_none_or(|first| first <= last + 1) {
        assert!(Instant::now() < deadline, "the log does not lose entry {last}\n{}", logs(cluster));
        std::thread::sleep(Duration::from_millis(10));
    }
    cluster.start(victim, Some(format!("install:{}", 1 + dice.below(12)))).unwrap();
    // It may have needed fewer calls, or the snapshot is still to come. Nobody would start it again if it died later: it goes now.
    cluster.child(victim).unwrap().wait_gone(Duration::from_secs(5));
    cluster.kill(victim);
    sums.count(cluster, victim);
    cluster.start(victim, None).unwrap();
}

/// A node that dies as if by a mistake of its own, by an error in C or of the system's doing, was once started again as if it had
/// been killed; and nobody heard what the nodes of the power tests told.
#[test]
fn what_nobody_did_to_a_node_is_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, with_self_killers) = three_nodes(dir.path());
    let troubles = Arc::new(Troubles::default());
    let counts = || [&*with_self_killers, &*troubles].map(|troubles| troubles.all(&cluster).len());
    cluster.ids().for_each(|id| cluster.start(id, None).unwrap());
    cluster.kill(1);
    cluster.start(1, None).unwrap();
    assert_eq!(counts(), [0, 0], "{:?}", troubles.all(&cluster));
    for (id, signal, counted) in [(2, Signal::KILL, [0, 1]), (3, Signal::ABORT, [1, 2])] {
        let child = cluster.child(id).unwrap();
        kill_process(Pid::from_raw(child.pid() as i32).unwrap(), signal).unwrap();
        assert!(child.wait_gone(PATIENCE));
        assert_eq!(counts(), counted);
        cluster.kill(id);
        cluster.start(id, None).unwrap();
        assert_eq!(counts(), counted, "forgotten with the next start");
    }
    let tell = troubles.watcher();
    tell(1, Told::Trouble { text: "DiskTrouble { .. }".to_string() });
    assert_eq!(counts(), [1, 3]);
    troubles.harm(&cluster, 1);
    tell(1, Told::Trouble { text: "DiskTrouble { .. }".to_string() });
    assert_eq!(counts(), [1, 3], "its disk is harmed");
    tell(2, Told::Trouble { text: "DiskTrouble { .. }".to_string() });
    tell(1, Told::Trouble { text: "Removed { .. }".to_string() });
    cluster.kill(1);
    let damage = |text: &str| Told::Damage { text: text.to_string() };
    tell(1, damage("DivergenceFound: Input/output error"));
    assert_eq!(counts(), [1, 5], "its disk is harmed");
    tell(1, damage("DivergenceFound: a checksum"));
    troubles.mend(&cluster, 1);
    tell(1, damage("DivergenceFound: Input/output error"));
    tell(1, Told::Trouble { text: "DiskTrouble { .. }".to_string() });
    assert_eq!(counts(), [1, 8]);
    // A start that finds no directory ends with an error: allowed where the disk is harmed, and only once for each time.
    // It was killed as soon as it was started: only one that answers has surely made one. There may be no cluster yet, for as long as
    // the first one is dead.
    cluster.ask(2, &Act::Status).unwrap();
    cluster.kill(2);
    std::fs::remove_dir_all(dir.path().join("node-2")).unwrap();
    std::fs::write(dir.path().join("node-2"), "").unwrap();
    let fails = || {
        cluster.start(2, None).unwrap();
        assert!(cluster.child(2).unwrap().wait_gone(PATIENCE));
    };
    troubles.harm(&cluster, 2);
    fails();
    troubles.mend(&cluster, 2);
    assert_eq!(counts(), [2, 8]);
    fails();
    assert_eq!(counts(), [3, 9]);
    troubles.harm(&cluster, 2);
    assert_eq!(counts(), [3, 10], "it had ended before");
    let mut log = std::fs::File::options().append(true).open(cluster.log(1)).unwrap();
    log.write_all(b"thread 'engine' panicked at somewhere\n").unwrap();
    assert_eq!(counts(), [4, 11]);
}
