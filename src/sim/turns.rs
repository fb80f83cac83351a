//! Every fault in turn: one node, one labelled call of it that fails once, fails from then on, or loses power, and nothing
//! else that goes wrong but one restart of that node.
//!
//! A run without a fault says which calls there are: in the node's first life, which begins with an empty directory, and in
//! its second. Then each has its turn.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoaldb_vfs::env::Label;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};

use super::world::run;
use super::{Options, Report};

/// Simulated time with load.
const LOAD: Duration = Duration::from_secs(4);
/// When the node is restarted.
pub(super) const RESTART_AT: Duration = Duration::from_secs(2);

/// What becomes of the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// It fails.
    FailsOnce,
    /// It fails, and so do all later ones of its label until the node is restarted.
    FailsForGood,
    /// The power fails in the middle of it.
    LosesPower,
}

/// A call of the first node, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// In which of the node's lives, from 1.
    pub life: u64,
    /// The call's label.
    pub label: Label,
    /// Which of the calls with this label in that life, from 1.
    pub nth: u64,
    /// What becomes of it.
    pub how: How,
}

impl Turn {
    pub(super) fn arm(&self, fs: &SimFs) {
        let aim = Aim::At(self.label);
        match self.how {
            How::FailsOnce => fs.fail_at(aim, self.nth, Lasts::Once, Failure::EIO),
            How::FailsForGood => fs.fail_at(aim, self.nth, Lasts::ForGood, Failure::EIO),
            How::LosesPower => fs.crash_at(aim, self.nth, self.nth),
        }
    }
}

/// Options of a run with this fault, or without any.
fn options(seed: u64, turn: Option<Turn>) -> Options {
    Options { nodes: 3, load_for: LOAD, storm: false, turn, ..Options::new(seed) }
}

/// Runs every turn of the first `calls` calls of each label, and tells of each. Returns the labels that there were.
pub fn every_fault(seed: u64, calls: u64, mut tell: impl FnMut(Option<Turn>, Report)) -> BTreeSet<Label> {
    let scouted = run(&options(seed, None));
    let mut counts: BTreeMap<(u64, Label), u64> = scouted.calls.clone();
    // The simulation's own look at the disk.
    counts.retain(|(_, label), _| !label.starts_with("sim."));
    tell(None, scouted);
    for ((life, label), count) in &counts {
        for nth in 1..=calls.min(*count) {
            for how in [How::FailsOnce, How::FailsForGood, How::LosesPower] {
                let turn = Turn { life: *life, label, nth, how };
                tell(Some(turn), run(&options(seed, Some(turn))));
            }
        }
    }
    counts.into_keys().map(|(_, label)| label).collect()
}
