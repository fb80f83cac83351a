//! What a node may come to for calls of its disk that have failed, and for nothing else (DESIGN.md, "Disk trouble").
//!
//! ```text
//! what comes of it                                   which calls of this process must have failed
//! it acknowledges nothing more, and says so          of the log
//! its engine or its applier stops                    of the log, or those that make or open files, as a checkpoint has them
//! it does not start, found a cluster or join one     any
//! an install failed                                  any
//! a copy is not served                               those that make or open files of a database; those that read one, as often
//!                                                    as they are tried; any of a start that is for files of databases, with another
//!                                                    error than for want of room; in a run of one fault, a call for good that is none of the log
//! no checkpoint is made, and what waits for one      those of a checkpoint
//! a transaction finds no room, or is not kept        the spill of its pages
//! SQL ends with an I/O error that says no more       any, or one of SQLite's calls, which fail on purpose (`inside.rs`): while
//!                                                    the client's call went on, and not before
//! files of the log, or of a dropped database, stay   their removal
//! a read transaction is ended                        none: a WAL or the log must have been longer than readers may keep them
//! ```

use shoaldb_vfs::env::Label;
use shoaldb_vfs::env::sim::Failure;

use super::turns::How;
use super::world::{At, State};
use crate::databases::Help;

/// Calls that make the files of a database, or that open them at a start.
const MAKES_OR_OPENS_FILES: [Label; 9] =
    ["db.create", "db.dir", "db.lock", "db.open", "dw.create", "dw.open", "dw.read", "map.create", "map.open"];

/// Calls that take files of the log away.
const TAKES_LOGS_AWAY: [Label; 3] = ["log.remove", "log.retire", "log.retire.sync"];

/// Calls that read pages and hashes of a copy, and how often one is read before the copy is given up.
const READS_COPIES: [Label; 3] = ["db.read", "db.verify", "map.read"];
const READ_AGAIN: u64 = 3;

/// The calls of a checkpoint, in their order.
pub(super) const CHECKPOINT_STEPS: [Label; 9] = [
    "dw.write",
    "dw.sync",
    "ckpt.page",
    "ckpt.hash",
    "ckpt.len",
    "ckpt.sync",
    "ckpt.map_sync",
    "ckpt.record",
    "ckpt.record_sync",
];

/// Where a node stands when it gives up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gives {
    /// It does not start, found a cluster or join one.
    NoStart,
    /// Its engine or its applier stops.
    Stop,
    /// It promises nothing more.
    Trouble,
    /// It does not get what a snapshot brings.
    NoInstall,
}

impl State {
    /// Whether such a call of this process has failed by a fault.
    fn has_failed(&self, at: At, which: impl Fn(Label, Failure) -> bool) -> bool {
        self.slots[at].fs.failed_since_restart().keys().any(|(label, failure)| which(label, *failure))
    }

    /// Whether calls that failed explain that this node gives up.
    pub(super) fn is_excused(&self, at: At, gives: Gives) -> bool {
        let of_log = |label: Label| label.starts_with("log.");
        self.has_failed(at, |label, _| match gives {
            Gives::NoStart | Gives::NoInstall => true,
            Gives::Stop => of_log(label) || MAKES_OR_OPENS_FILES.contains(&label) || CHECKPOINT_STEPS.contains(&label),
            Gives::Trouble => of_log(label),
        })
    }

    /// Whether no other node has lost its disk or copies of databases.
    pub(super) fn others_are_whole(&self, at: At) -> bool {
        let is_whole = |other: At| {
            let slot = &self.slots[other];
            let damaged = slot.hub().is_some_and(|hub| !hub.databases.all_damaged().is_empty());
            !slot.wiped && !slot.opened_badly && !damaged && !self.has_rotted(other)
        };
        (0..self.slots.len()).filter(|other| *other != at).all(is_whole)
    }

    /// Whether the one fault of this run has come, on this node.
    pub(super) fn turn_has_struck(&self, at: At) -> bool {
        self.options.turn.is_some_and(|turn| at == 0 && turn.has_struck(&self.slots[at].fs))
    }

    /// Whether a call of this node's disk that failed may have made a copy of a database useless: files that could not be made or
    /// opened, or what cannot be read for good. A copy that was given up is so in later lives, too, until one of them has all.
    pub(super) fn disk_may_have_damaged(&self, at: At) -> bool {
        let turn = self.options.turn.filter(|turn| self.turn_has_struck(at) && !turn.how.ends_the_process());
        turn.is_some_and(|turn| !turn.strikes_once() && !turn.label.starts_with("log."))
            || self.slots[at].came_damaged
            || self.calls_may_have_damaged(at)
            || self.only_lacks_new_files(at)
    }

    /// The same, of the calls of this process.
    pub(super) fn calls_may_have_damaged(&self, at: At) -> bool {
        let failures = |which: Label| {
            let failed = self.slots[at].fs.failed_since_restart();
            failed.iter().filter(|((label, _), _)| *label == which).map(|(_, times)| times).sum::<u64>()
        };
        self.slots[at].opened_badly
            || self.has_failed(at, |label, _| MAKES_OR_OPENS_FILES.contains(&label))
            || READS_COPIES.iter().any(|label| failures(label) >= READ_AGAIN)
    }

    /// Whether all copies that are not served here are new databases whose files could not be made: that makes the calls of a
    /// checkpoint, too.
    fn only_lacks_new_files(&self, at: At) -> bool {
        let fails = self.checkpoint_has_failed(at);
        let damaged = self.slots[at].hub().map(|hub| hub.databases.damaged(&Help::Voters)).unwrap_or_default();
        fails && !damaged.is_empty() && damaged.iter().all(|what| what.contains("could not be created"))
    }

    /// Whether a call of a checkpoint failed in this process.
    pub(super) fn checkpoint_has_failed(&self, at: At) -> bool {
        self.has_failed(at, |label, _| CHECKPOINT_STEPS.contains(&label))
    }

    /// Whether the disk has refused pages of a transaction.
    pub(super) fn spill_has_failed(&self, at: At) -> bool {
        self.has_failed(at, |label, _| label == "wal.spill")
    }

    /// Whether any call has failed.
    pub(super) fn a_call_has_failed(&self, at: At) -> bool {
        self.has_failed(at, |_, _| true)
    }

    /// Whether files of databases that were dropped may stay, until it is started again.
    pub(super) fn database_files_may_stay(&self, at: At) -> bool {
        self.has_failed(at, |label, _| ["db.drop", "db.orphan", "db.list"].contains(&label))
    }

    /// Whether files of this node's log may stay that should go, until it is started again.
    pub(super) fn files_may_stay(&self, at: At) -> bool {
        self.has_failed(at, |label, _| TAKES_LOGS_AWAY.contains(&label))
    }
}

impl How {
    /// Whether the process ends in that call, which does not fail otherwise.
    pub(super) fn ends_the_process(self) -> bool {
        matches!(self, How::LosesPower | How::LosesSome | How::IsKilled)
    }
}
