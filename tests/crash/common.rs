//! What every test has that lets writers run on processes while something is done to these: chance, writers, what the processes
//! were doing, judgement.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::harness::cluster::{Cluster, Watcher};
use crate::harness::ledger::{Ledger, Verdict};
use crate::harness::wire::{Act, Told};

pub(crate) const SIGKILL: i32 = 9;
/// What a node notes of itself, in the order of the bytes (`src/bin/shoal/phases.rs`).
pub(crate) const PHASES: [&str; 8] =
    ["append", "sync", "apply", "publish", "recovery", "checkpoint", "compaction", "install"];

/// A number from the environment.
pub(crate) fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")),
        Err(_) => default,
    }
}

/// SplitMix64: any seed is a good one.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// Some of the nodes: one, two or all.
    pub(crate) fn nodes(&mut self) -> Vec<u64> {
        let mut ids = vec![1, 2, 3];
        for _ in 0..self.below(3) {
            ids.swap_remove(self.below(ids.len() as u64) as usize);
        }
        ids
    }
}

/// What was interrupted, and how often.
#[derive(Clone, Default, Debug)]
pub(crate) struct Buckets(pub(crate) BTreeMap<&'static str, u64>);

impl Buckets {
    /// Counts one interruption, of all that a node had noted; as `idle` if that was nothing.
    pub(crate) fn count(&mut self, notes: &[u8]) {
        let mut noted: Vec<_> =
            PHASES.iter().zip(notes).filter(|(_, note)| **note == 1).map(|(phase, _)| *phase).collect();
        if noted.is_empty() {
            noted.push("idle");
        }
        noted.into_iter().for_each(|phase| *self.0.entry(phase).or_default() += 1);
    }
}

/// What a node that runs is doing.
pub(crate) struct Notes(std::fs::File);

impl Notes {
    pub(crate) fn of(cluster: &Cluster, id: u64) -> Notes {
        Notes(std::fs::File::open(cluster.phases(id).unwrap()).unwrap())
    }

    pub(crate) fn now(&self) -> [u8; PHASES.len()] {
        let mut notes = [0; PHASES.len()];
        // Before a node has noted anything there is nothing to read.
        let _ = self.0.read_at(&mut notes, 0).unwrap();
        notes
    }

    /// Looks until the node is in that phase; whether it came to that.
    pub(crate) fn wait_for(&self, phase: &str, patience: Duration) -> bool {
        let at = PHASES.iter().position(|name| *name == phase).unwrap();
        let until = Instant::now() + patience;
        while self.now()[at] == 0 {
            if Instant::now() > until {
                return false;
            }
            // A file call with a sync in it takes many times that.
            std::thread::sleep(Duration::from_micros(50));
        }
        true
    }
}

/// What nobody may hear or see of a node to which nothing was done that explains it.
#[derive(Default)]
pub(crate) struct Troubles {
    told: Mutex<Vec<String>>,
    /// Nodes whose disks are harmed: these may say so.
    harmed: Mutex<Vec<u64>>,
    /// Nodes that could not start without one.
    could_not_start: Mutex<Vec<u64>>,
    /// Nodes are told to kill themselves.
    self_killers: bool,
}

/// What the error of a disk without power says.
const NO_DISK: &str = "Input/output error";
/// A worker's exit code then. That of a panic is another one.
const COULD_NOT_START: i32 = 1;

fn ended(cluster: &Cluster, id: u64) -> Option<ExitStatus> {
    cluster.child(id)?.ended_by_itself()
}

impl Troubles {
    /// Where nodes are told to kill themselves.
    pub(crate) fn with_self_killers() -> Troubles {
        Troubles { self_killers: true, ..Troubles::default() }
    }

    /// Notes what nodes tell. A disk that does not answer for a while is the affair of a busy machine.
    pub(crate) fn watcher(self: &Arc<Troubles>) -> Watcher {
        let troubles = Arc::clone(self);
        Arc::new(move |id, told| {
            let harmed = troubles.harmed.lock().contains(&id);
            let wrong = match &told {
                Told::Trouble { text } if text.contains("has not answered") => false,
                Told::Trouble { text } => !(harmed && text.starts_with("DiskTrouble")),
                // What cannot be read any more is no copy; what could be read and is wrong is always told of.
                Told::Damage { text } => !(harmed && text.contains(NO_DISK)),
                _ => false,
            };
            if wrong {
                troubles.told.lock().push(format!("node {id}: {told:?}"));
            }
        })
    }

    /// From now on the node may say that its disk does not work, and one that is just starting may end because of it.
    pub(crate) fn harm(&self, cluster: &Cluster, id: u64) {
        if let Some(ended) = ended(cluster, id) {
            self.told.lock().push(format!("node {id} had ended before its disk was harmed: {ended}"));
        }
        self.harmed.lock().push(id);
    }

    /// The node is gone, so that everything that it said has been heard; its disk works again.
    pub(crate) fn mend(&self, cluster: &Cluster, id: u64) {
        self.harmed.lock().retain(|harmed| *harmed != id);
        if ended(cluster, id).is_some_and(|ended| ended.code() == Some(COULD_NOT_START)) {
            self.could_not_start.lock().push(id);
        }
    }

    /// What there was until now: what nodes told, processes that ended by themselves, panics.
    pub(crate) fn all(&self, cluster: &Cluster) -> Vec<String> {
        let mut all = self.told.lock().clone();
        let mut could_not_start = self.could_not_start.lock().clone();
        for (id, ended) in cluster.ended_by_themselves() {
            let excuse = could_not_start.iter().position(|excused| *excused == id);
            if let (Some(excuse), Some(COULD_NOT_START)) = (excuse, ended.code()) {
                could_not_start.swap_remove(excuse);
            } else if !self.self_killers || ended.signal() != Some(SIGKILL) {
                all.push(format!("node {id} ended by itself: {ended}"));
            }
        }
        for id in cluster.ids() {
            let log = std::fs::read_to_string(cluster.log(id)).unwrap_or_default();
            all.extend(
                log.lines().filter(|line| line.contains("panicked at")).map(|line| format!("node {id}: {line}")),
            );
        }
        all
    }
}

/// Switches for the writers.
#[derive(Default)]
pub(crate) struct Writers {
    pub(crate) stop: AtomicBool,
    pub(crate) pause: AtomicBool,
}

/// One writer, until it is told to stop.
pub(crate) fn write(cluster: &Cluster, ledger: &Ledger, writers: &Writers, writer: u64) {
    while !writers.stop.load(Ordering::SeqCst) {
        let paused = writers.pause.load(Ordering::SeqCst);
        if paused || cluster.append(ledger, writer, Duration::from_millis(200)).is_err() {
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

/// Nobody does anything to the nodes any more: what was acknowledged is found on each, what was not committed on none,
/// all have the same content, and there was no trouble, which also is that a copy was found damaged at any time. Panics otherwise. What the ledger says
/// of the last node.
pub(crate) fn judge(cluster: &Cluster, ledger: &Ledger, troubles: &Troubles, patience: Duration) -> Verdict {
    let fail = |text: String| -> ! { panic!("{text}\n{}", logs(cluster)) };
    // An entry of the last term: whatever came before it is decided.
    let until = Instant::now() + patience;
    while let Err(failure) = cluster.append(ledger, 0, patience) {
        if Instant::now() > until {
            fail(format!("nothing can be written any more: {failure:?}"));
        }
    }
    let troubles = troubles.all(cluster);
    if !troubles.is_empty() {
        fail(format!("there was trouble: {troubles:?}"));
    }
    let sums_of_nodes = cluster.checksums(patience).unwrap_or_else(|text| fail(text));
    assert!(sums_of_nodes.iter().all(|(_, sum)| *sum == sums_of_nodes[0].1), "{sums_of_nodes:?}");
    let mut last = Verdict::default();
    for id in cluster.ids() {
        let integrity = cluster.integrity(id).unwrap_or_else(|failure| fail(failure.text));
        assert_eq!(integrity, "ok", "node {id}");
        let found = cluster.numbers(id).unwrap_or_else(|failure| fail(failure.text));
        last = ledger.judge(&found);
        if !last.is_good() {
            fail(format!("node {id}: {last:?}"));
        }
    }
    last
}

/// What the nodes are, and the last lines of what they said.
pub(crate) fn logs(cluster: &Cluster) -> String {
    let mut text = String::new();
    for id in cluster.ids() {
        let all = std::fs::read_to_string(cluster.log(id)).unwrap_or_default();
        let lines: Vec<&str> = all.lines().collect();
        let status = cluster.ask(id, &Act::Status);
        text.push_str(&format!("--- node {id}\n{status:?}\n{}\n", lines[lines.len().saturating_sub(20)..].join("\n")));
    }
    text
}
