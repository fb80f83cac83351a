//! Every fault in turn: one node, one labelled call of it that fails once, fails from then on, loses power or is not come to, and nothing
//! else that goes wrong but that this node has three lives.
//!
//! ```text
//! life   begins with                                        and the run has
//! 1      an empty directory                                 a short load
//! 2      what the first one left                            the same
//! 3      what the second one left; it was away until the    a load as long as that takes
//!        others' logs began later: it needs a snapshot
//! ```
//!
//! Runs without a fault say which calls there are in each. Then each has its turn.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoaldb_vfs::env::Label;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, Leaves, SimFs};
use xxhash_rust::xxh3::xxh3_64;

use super::faults::Mend;
use super::node::Slot;
use super::world::{Ev, State, run};
use super::{Options, Report};

/// Simulated time with load, for a fault in the first two lives, and in the third.
const LOAD: Duration = Duration::from_secs(5);
const LONG_LOAD: Duration = Duration::from_secs(16);
/// When the node is restarted, and when it goes away for its third life, if the load goes on for so long.
pub(super) const RESTART_AT: Duration = Duration::from_secs(2);
pub(super) const LEAVES_AT: Duration = Duration::from_secs(5);
/// How often it is looked whether something has come about.
const LOOK_MILLIS: u64 = 50;

/// What becomes of the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// It fails.
    FailsOnce,
    /// It fails, and so do all later ones of its label until the node is restarted.
    FailsForGood,
    /// There is no room for it.
    HasNoRoom,
    /// There is no room for it, nor for any later one of its label until the node is restarted.
    HasNoRoomForGood,
    /// The power fails in the middle of it, and nothing stays that was not synced.
    LosesPower,
    /// The power fails in the middle of it, and of what was not synced some stays.
    LosesSome,
    /// The process is killed before it, and its machine loses power when the load is over.
    IsKilled,
}

const HOWS: [How; 7] = [
    How::FailsOnce,
    How::FailsForGood,
    How::HasNoRoom,
    How::HasNoRoomForGood,
    How::LosesPower,
    How::LosesSome,
    How::IsKilled,
];

/// A call of the first node, and what becomes of it. As text: `2 log.sync 1 FailsOnce`.
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

impl std::fmt::Display for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {:?}", self.life, self.label, self.nth, self.how)
    }
}

impl Turn {
    /// From its text. For a command that ends after one run: the label stays in memory.
    pub fn parse(text: &str) -> Option<Turn> {
        let mut words = text.split(' ');
        let (life, label, nth, how) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let how = HOWS.into_iter().find(|known| format!("{known:?}") == how)?;
        let label = label.to_string().leak();
        Some(Turn { life: life.parse().ok()?, label, nth: nth.parse().ok()?, how })
    }

    /// Whether it has come, on this disk, which has no other faults.
    pub(super) fn has_struck(&self, fs: &SimFs) -> bool {
        match self.how {
            How::LosesPower | How::LosesSome | How::IsKilled => fs.has_crashed(self.label),
            How::FailsOnce | How::FailsForGood | How::HasNoRoom | How::HasNoRoomForGood => fs.has_failed(self.label),
        }
    }

    /// Whether it is over once it has struck.
    pub(super) fn strikes_once(&self) -> bool {
        matches!(self.how, How::FailsOnce | How::HasNoRoom)
    }

    pub(super) fn arm(&self, fs: &SimFs) {
        let aim = Aim::At(self.label);
        match self.how {
            How::FailsOnce => fs.fail_at(aim, self.nth, Lasts::Once, Failure::EIO),
            How::FailsForGood => fs.fail_at(aim, self.nth, Lasts::ForGood, Failure::EIO),
            How::HasNoRoom => fs.fail_at(aim, self.nth, Lasts::Once, Failure::ENOSPC),
            How::HasNoRoomForGood => fs.fail_at(aim, self.nth, Lasts::ForGood, Failure::ENOSPC),
            How::LosesPower => fs.cut_at(aim, self.nth, Leaves::Nothing),
            How::LosesSome => fs.cut_at(aim, self.nth, Leaves::Some(self.life ^ xxh3_64(self.label.as_bytes()))),
            How::IsKilled => fs.kill_at(aim, self.nth),
        }
    }
}

impl State {
    /// The first node's life ends, as people would end it.
    pub(super) fn end_life(&mut self) {
        self.note_calls();
        self.crash(0, false);
    }

    /// Until now calls of the first node belong to the life that it has.
    pub(super) fn note_calls(&mut self) {
        self.calls_of_lives.push((self.slots[0].life, self.slots[0].fs.counts()));
    }

    pub(super) fn leave(&mut self) {
        if !self.stormy {
            return;
        }
        let core = |slot: &Slot| slot.hub().and_then(|hub| hub.core_status.lock().clone());
        let Some(core) = core(&self.slots[0]) else {
            return self.after_millis(LOOK_MILLIS, Ev::Mend(Mend::Leave));
        };
        self.away_with = Some(core.last);
        self.end_life();
        self.after_millis(LOOK_MILLIS, Ev::Mend(Mend::Return));
    }

    /// It is back as soon as nobody can send it the entries that it lacks.
    pub(super) fn return_behind_the_logs(&mut self) {
        let Some(last) = self.away_with else { return };
        let begins_later = |slot: &Slot| slot.hub().is_some_and(|hub| hub.core_start() > last);
        if !self.slots[1..].iter().all(begins_later) {
            return self.after_millis(LOOK_MILLIS, Ev::Mend(Mend::Return));
        }
        self.away_with = None;
        self.after_millis(1, Ev::Restart(0));
    }

    /// Labelled calls of the first node in each of its lives, as long as there was load.
    pub(super) fn calls_of_first_node(&self) -> BTreeMap<(u64, Label), u64> {
        let mut before: BTreeMap<Label, u64> = BTreeMap::new();
        let mut calls = BTreeMap::new();
        for (life, counts) in &self.calls_of_lives {
            for (label, count) in counts {
                let more = count - before.get(label).copied().unwrap_or(0);
                if more > 0 {
                    calls.insert((*life, *label), more);
                }
            }
            before.clone_from(counts);
        }
        calls
    }
}

/// Options of a run with a fault in this life.
fn options(seed: u64, life: u64, turn: Option<Turn>, verbose: bool) -> Options {
    let load_for = if life < 3 { LOAD } else { LONG_LOAD };
    Options { nodes: 3, load_for, storm: false, turn, verbose, ..Options::new(seed) }
}

/// The lives in which turns are taken, by the first of those that one run has: of two lives, and of the third.
pub const SCOUTED_FROM: [u64; 2] = [1, 3];

/// The turns of the first `calls` calls of each label, in the lives from this one of [`SCOUTED_FROM`] on. For a process that runs nothing else,
/// as its turns are: what one run leaves in memory shows in the next. Fails with the report of a run without a fault that failed.
pub fn turns_of(seed: u64, calls: u64, from: u64) -> Result<Vec<Turn>, Box<Report>> {
    let lives = if from < 3 { 1..3 } else { 3..4 };
    let mut scouted = run(&options(seed, lives.start, None, false));
    let had: BTreeSet<u64> = scouted.calls.keys().map(|(life, _)| *life).collect();
    if scouted.failure.is_none() && !had.iter().copied().eq(1..lives.end) {
        scouted.failure = Some(format!("the first node has had the lives {had:?}, not 1 to {}", lives.end - 1));
    }
    if scouted.failure.is_some() {
        return Err(Box::new(scouted));
    }
    // The simulation's own look at the disk is none of the node's.
    let is_ours = |(life, label): &(u64, Label)| lives.contains(life) && !label.starts_with("sim.");
    let of_call = |((life, label), count): ((u64, Label), u64)| {
        let all = (1..=calls.min(count)).flat_map(move |nth| HOWS.map(|how| Turn { life, label, nth, how }));
        all.collect::<Vec<_>>()
    };
    Ok(scouted.calls.into_iter().filter(|(call, _)| is_ours(call)).flat_map(of_call).collect())
}

/// The run in which this is the only fault; `verbose` prints each event as it happens.
pub fn take_turn(seed: u64, turn: Turn, verbose: bool) -> Report {
    run(&options(seed, turn.life, Some(turn), verbose))
}
