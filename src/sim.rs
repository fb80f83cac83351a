//! Deterministic simulation of a cluster: real SQLite, VFS, log, core, engine and applier; simulated disk, network and
//! clock; one seed.
//!
//! Everything runs on one thread. A client's SQL call that must wait (a commit, a read barrier) moves the world on from
//! inside the call ([`Pump`](crate::signal::Pump)): peers, disks, this node's own engine and applier, and other clients,
//! whose calls then lie above it on the stack.
//!
//! ```text
//! file        what is in it
//! world.rs    the queue of events, the trace
//! budget.rs   how many events a run may take
//! wire.rs     the network
//! node.rs     one node: from directory to engine; crashes
//! work.rs     what its threads do: engine, log, applier, upkeep
//! strand.rs   calls that take their time, on threads that run only while the world waits
//! clock.rs    one node's clock
//! calls.rs    such calls, and questions that wait for an answer
//! transfers.rs  snapshots
//! members.rs  who comes and goes
//! plan.rs     what no run goes without
//! shape.rs    what the seed decides for the whole run: page size, time-outs, kind of adversary
//! load.rs     clients: transactions and reads
//! other.rs    clients of a second database, and what must hold of it
//! patient.rs  clients that keep transactions open
//! inside.rs   what happens in the middle of a call of the VFS
//! last.rs     the end of a run
//! faults.rs   what goes wrong, and when
//! excuses.rs  what a node may come to for that
//! duel.rs     two candidates, and a voter that loses power
//! aimed.rs    other faults with an aim
//! rot.rs      bits that change by themselves
//! upgrade.rs  programs of the next version
//! told.rs     what nodes tell their listeners
//! bounds.rs   what must stay bounded
//! counters.rs what runs must reach
//! turns.rs    every fault in turn, instead of those that the seed chooses
//! lists.rs    transactions on lists, and whether there is an order that explains them
//! check.rs    what must hold; knows nothing of the code under test but SQL results, positions and checksums
//! ```
//!
//! Which part of a run is decided by what:
//!
//! ```text
//! order of events, latencies, losses, faults, load     the seed
//! time                                                 the queue: it jumps to the next event
//! election timeouts, sessions, incarnations            each node's generator, seeded from the seed
//! what SQLite itself draws                             its generator, seeded from the seed
//! ```
//!
//! Deliberately absent:
//!
//! * sockets and handshakes (the standing of a sender is judged for each message instead), and with them changes of addresses;
//! * sleeps of SQLite's busy handler (connections have no busy timeout), and pools of connections;
//! * what happens in the middle of a checkpoint or of an install: each is one event. Its calls fail, and lose power; they do not
//!   take their time while others commit. Only the syncs of the log do;
//! * backup, restore and `recover`, which are no part of a node that runs. Each has tests of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

mod aimed;
mod bounds;
mod budget;
mod calls;
mod check;
mod clock;
mod counters;
mod duel;
mod excuses;
mod faults;
mod inside;
mod last;
mod lists;
mod load;
mod members;
mod node;
mod other;
mod patient;
mod plan;
mod rot;
mod shape;
mod strand;
mod told;
mod transfers;
mod turns;
mod upgrade;
mod wire;
mod work;
mod world;

pub use turns::{How, SCOUTED_FROM, Turn, take_turn, turns_of};
pub use world::run;

#[cfg(test)]
mod tests;

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides everything else.
    pub seed: u64,
    /// How many nodes found the cluster; others come and go later.
    pub nodes: u16,
    /// Simulated time with load and faults. The time for healing and the last checks comes on top.
    pub load_for: Duration,
    /// Events that a run may have: one with more goes round in a circle, and has failed.
    pub most_events: u64,
    /// Whether faults come as the seed says.
    pub storm: bool,
    /// The one fault of a run without such faults.
    pub turn: Option<Turn>,
    /// Whether each event is printed as it happens.
    pub verbose: bool,
}

impl Options {
    /// The default scenario.
    pub fn new(seed: u64) -> Options {
        let nodes = if seed.is_multiple_of(16) {
            7
        } else if seed.is_multiple_of(4) {
            5
        } else {
            3
        };
        let load_for = Duration::from_secs(30);
        Options { seed, nodes, load_for, most_events: budget::RUN, storm: true, turn: None, verbose: false }
    }
}

/// The commit of the source that this program was built from, as that is now, if it is still there to be asked.
fn commit() -> String {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(args).output();
        let text = output.ok().filter(|output| output.status.success())?.stdout;
        Some(String::from_utf8_lossy(&text).trim().to_string())
    };
    match (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit}, with changes"),
        (None, _) => "unknown: there is no git here".to_string(),
    }
}

/// Does something with each of these, on all processors.
pub fn each<T: Sync>(of: &[T], act: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(item) = of.get(next.fetch_add(1, Ordering::Relaxed)) {
                    act(item);
                }
            });
        }
    });
}

/// What a run was.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// The one fault that it had, if it was such a run.
    pub turn: Option<Turn>,
    /// Covers when there was which event and whose it was, all lines of the trace, and at the end all disks: what a read sees, and
    /// what a power cut leaves.
    pub hash: u64,
    /// How many events there were.
    pub events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// How often what matters happened.
    pub coverage: BTreeMap<&'static str, u64>,
    /// Labelled calls of the first node's disk, by its lives, in a run without a storm.
    pub calls: BTreeMap<(u64, &'static str), u64>,
    /// What did not hold, if anything.
    pub failure: Option<String>,
    /// The last events before that.
    pub last_events: Vec<String>,
}

impl Report {
    /// The last events of a run, and how to see it again.
    pub fn story(&self) -> String {
        format!("the last events:\n{}\n{}", self.last_events.join("\n"), how_to_replay(self.seed, self.turn))
    }
}

/// The commit of a run, and the command that shows it again.
pub fn how_to_replay(seed: u64, turn: Option<Turn>) -> String {
    let turn = turn.map_or(String::new(), |turn| format!(" --turn \"{turn}\""));
    let replay = format!("cargo run --release --features sim --example sim -- --seed {seed}{turn} --verbose");
    format!("commit: {}\nreplay: {replay}", commit())
}
