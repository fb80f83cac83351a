//! Three real processes on real disks and networks: the power goes, a process stands still, the network falls apart, a disk
//! fills up. The kill loop (`tests/crash`) is the model, and its writers and its judgement are used here:
//! acknowledged = found on every node, not committed = found nowhere, nothing twice, all nodes equal. So is what the nodes tell, and
//! how their processes end: only where a disk is harmed may one say so.
//!
//! | file | what is done | what it needs |
//! |---|---|---|
//! | `cuts.rs` | a file system is shut down under a running process, so that all that was not synced is gone; then the process is killed. At any moment, and in a checkpoint, a compaction, an install | root, loop devices, `mkfs.ext4`, `mount` |
//! | `full.rs` | disks of one node and of all nodes fill up | the same |
//! | `stops.rs` | SIGSTOP of one or two nodes, others are killed meanwhile, then SIGCONT | nothing |
//! | `nets.rs` | network namespaces on a bridge: a node is cut off, or two of them from each other, for some election timeouts | root, `ip netns`, veth, bridge |
//!
//! A machine that lacks something skips that file and says so on its standard error, also where the output of tests that
//! pass is hidden. With `SHOAL_POWER=required` that is an error. It lacks something if this is not root, a command is not there, or one
//! of those refuses that ask the kernel for what a container may not have: `mount -o loop`, `ip netns add`, a bridge, veth. They refuse
//! in many words, so any are taken for that but those that say that something is busy or there already. Whatever else fails in a set-up,
//! for root, fails the test. What is not told apart: a machine all of whose loop devices are taken, and one that has none.
//!
//! In `cargo test` each runs for some seconds. For longer, and with another sequence (but `full.rs`, which goes through its cases once):
//!
//! ```text
//! SHOAL_ROUNDS=500 SHOAL_SEED=7 SHOAL_POWER=required cargo test --release --test power -- --nocapture
//! ```
//!
//! **What this cannot see.** The loop files are in the page cache of this machine: a disk that lies about its own cache is
//! not tested, only what file system and processes do. netem is missing in many kernels: loss and delay are left to the
//! simulation.

mod cuts;
mod disk;
mod full;
mod nets;
mod stops;

#[allow(dead_code, reason = "shared with the kills, which use the rest")]
#[path = "../crash/common.rs"]
mod common;

#[allow(dead_code, reason = "shared with the program, which uses the rest")]
#[path = "../../src/bin/shoal/harness/mod.rs"]
mod harness;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::common::{Dice, Troubles, Writers, write};
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::ledger::Ledger;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Of a node that hears no leader; drawn anew each time, up to twice that.
pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(150);
const WRITERS: u64 = 4;

/// One test at a time: each has a cluster and writers that use the whole machine.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

/// Runs a command of the system. What it said, if it failed.
pub(crate) fn run(line: &str) -> Result<(), String> {
    run_if_there(line).unwrap_or_else(Err).map_err(|text| format!("{line}: {text}"))
}

/// The same; the outer error is that there is no such command.
fn run_if_there(line: &str) -> Result<Result<(), String>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    // What it says is looked at: not in the language of whoever runs this.
    match Command::new(words[0]).args(&words[1..]).env("LC_ALL", "C").output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(error.to_string()),
        Err(error) => Ok(Err(error.to_string())),
        Ok(output) if output.status.success() => Ok(Ok(())),
        Ok(output) => Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_string())),
    }
}

/// A command of a set-up that works on any machine that has it. The error is that there is no such command, or no root.
pub(crate) fn set_up(line: &str) -> Result<(), String> {
    set_up_or(line, |_| false)
}

/// One that the kernel may refuse. That is an error as well.
pub(crate) fn set_up_if_allowed(line: &str) -> Result<(), String> {
    set_up_or(line, is_refusal)
}

fn set_up_or(line: &str, lacks: impl Fn(&str) -> bool) -> Result<(), String> {
    let named = |text: String| format!("{line}: {text}");
    let Err(text) = run_if_there(line).map_err(named)? else { return Ok(()) };
    assert!(!rustix::process::geteuid().is_root() || lacks(&text), "the set-up fails: {line}: {text}");
    Err(named(text))
}

/// Whether these words are those of a kernel that does not let us, and not those about what somebody left behind, or uses.
fn is_refusal(text: &str) -> bool {
    !["busy", "File exists", "already mounted"].iter().any(|word| text.contains(word))
}

/// Says that a test does not run here, and why.
pub(crate) fn skip(test: &str, why: &str) {
    assert!(std::env::var("SHOAL_POWER").as_deref() != Ok("required"), "{test}: {why}");
    // Not `eprintln!`: what that says of a test that passes is not shown.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// Kinds of trouble, numbered from 0: in each lap each of them comes once, in an order that the dice say.
pub(crate) struct Turns {
    kinds: u64,
    left: Vec<u64>,
    taken: Vec<u64>,
}

impl Turns {
    pub(crate) fn of(kinds: u64) -> Turns {
        Turns { kinds, left: Vec::new(), taken: vec![0; kinds as usize] }
    }

    pub(crate) fn draw(&mut self, dice: &mut Dice) -> u64 {
        if self.left.is_empty() {
            self.left = (0..self.kinds).collect();
        }
        let kind = self.left.swap_remove(dice.below(self.left.len() as u64) as usize);
        self.taken[kind as usize] += 1;
        kind
    }

    /// How often each kind came. All did, or the test has not shown what it says.
    pub(crate) fn taken(&self) -> &[u64] {
        assert!(self.taken.iter().all(|taken| *taken > 0), "not every kind came, more rounds: {:?}", self.taken);
        &self.taken
    }
}

/// A cluster below `dir`, not started, and what troubles it. With the `small` limits checkpoints, compactions and snapshots go on all
/// the time, and the nodes note what they are doing, each in a file beside its disk.
pub(crate) fn cluster(dir: &Path, program: PathBuf, hosts: Vec<String>, small: bool) -> (Cluster, Arc<Troubles>) {
    let plan = Plan {
        program,
        dir: dir.to_path_buf(),
        nodes: 3,
        heartbeat: Duration::from_millis(30),
        election_timeout: ELECTION_TIMEOUT,
        phases: small,
        hosts,
    };
    let troubles = Arc::<Troubles>::default();
    (Cluster::new(&plan, troubles.watcher()).unwrap(), troubles)
}

pub(crate) fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_shoal"))
}

/// Starts all nodes and makes the table.
pub(crate) fn found(cluster: &Cluster) {
    cluster.ids().for_each(|id| cluster.start(id, None).unwrap());
    cluster.prepare(PATIENCE).unwrap_or_else(|failure| panic!("{failure:?}\n{}", common::logs(cluster)));
}

/// Lets writers write while `act` does something to the nodes.
pub(crate) fn among_writers(cluster: &Cluster, ledger: &Ledger, act: impl FnOnce()) {
    let writers = Writers::default();
    let result = std::thread::scope(|scope| {
        for writer in 1..=WRITERS {
            let writers = &writers;
            scope.spawn(move || write(cluster, ledger, writers, writer));
        }
        // A panic in here must not wait for writers that nobody stops.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        writers.stop.store(true, Ordering::SeqCst);
        if result.is_err() {
            eprintln!("{}", common::logs(cluster));
            // A writer may wait for a process that stands still.
            cluster.ids().for_each(|id| cluster.kill(id));
        }
        result
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Waits until something was acknowledged that was attempted from now on.
pub(crate) fn assert_that_it_goes_on(cluster: &Cluster, ledger: &Ledger, what: &str) {
    let until = Instant::now() + PATIENCE;
    while let Err(failure) = cluster.append(ledger, 0, PATIENCE) {
        assert!(Instant::now() < until, "{what}: nothing is acknowledged: {failure:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until somebody else than `old` is told to lead.
pub(crate) fn wait_replaced(cluster: &Cluster, old: u64) {
    let until = Instant::now() + PATIENCE;
    while cluster.leader().is_none_or(|leader| leader == old) {
        assert!(Instant::now() < until, "leader {old} does not answer and is not replaced");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Any failure of a set-up was a skip once, a leftover of another run as well.
#[test]
fn what_is_in_the_way_of_a_set_up_is_no_lack_of_the_machine() {
    for text in [
        "mount: /m: failed to setup loop device: Operation not permitted",
        "mount: /m: failed to setup loop device: No such file or directory",
        "mount: /m: permission denied.",
        "mount: /m: unknown filesystem type 'ext4'.",
        "mount --make-shared /run/netns failed: Operation not permitted",
        "Error: Unknown device type.",
    ] {
        assert!(is_refusal(text), "{text}");
    }
    for text in [
        "mount: /m: failed to setup loop device: Device or resource busy",
        "mount: /m: /dev/loop0 already mounted on /n.",
        "Cannot create namespace file \"/run/netns/shoal-1\": File exists",
    ] {
        assert!(!is_refusal(text), "{text}");
    }
    assert!(set_up("no-such-command").unwrap_err().contains("No such file"));
}

#[test]
fn every_kind_of_trouble_comes_whatever_the_dice_say() {
    for seed in 0..200 {
        let (mut turns, mut dice) = (Turns::of(3), Dice(seed));
        let drawn: Vec<u64> = (0..6).map(|_| turns.draw(&mut dice)).collect();
        assert_eq!(turns.taken(), [2, 2, 2], "seed {seed}: {drawn:?}");
    }
    let mut once = Turns::of(3);
    once.draw(&mut Dice(1));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| once.taken().len())).is_err());
}
