//! The Raft log on disk: the only thing that a commit waits for.
//!
//! ```text
//! DIR/0000000000000001.seg   head | batch | batch | ...                        sealed, synced
//! DIR/0000000000000002.seg   head | batch | batch | torn? | zeros or an old lap   appended to
//! DIR/spare-0000000000000007 pre-written, for the next switch
//! ```
//!
//! A *batch* is what one call of [`Log::append`] makes durable: one write, one sync, all of it or nothing of it. It holds
//! entries, a hard state, an anchor, or a record that truncates a conflicting suffix. Bytes once synced are never
//! overwritten while their segment counts: the log only moves forward. A *segment* is a file of a fixed size; its *head*
//! repeats everything that earlier segments said apart from entries, so that those can go. `record.rs` has the byte layouts,
//! `recover.rs` the table of what is believed when a log is opened.
//!
//! # What holds
//!
//! * A batch is written only when everything before it is synced. So a batch that is found says that what precedes it
//!   was on disk; a bad record in front of it is damage, and one behind which nothing follows is a torn write.
//! * A file gets the name of a segment only when its head is synced, and its first batch only when that name is, and when the
//!   segment before says that the log goes on: so the newest file cannot be lost unnoticed. Where there is no room for that
//!   word it is left out until the next start.
//! * A segment is dropped only when a later head's anchor covers its last entry, oldest first, one at a time.
//! * After the first failure of a write or a sync every later append returns that same error: nothing is known about
//!   what is on disk until the log is opened again. Reads go on.
//! * Opening writes the last batch once more and syncs it before anything is reported: after a killed process it may be
//!   in the page cache only, and after a failed sync the kernel may call it clean without having written it.
//! * `start <= last`; the terms of entries never fall; a hard state never loses a term, a vote or a commit; nothing at
//!   or below the committed index or the anchor is truncated. An append that would break one of these is refused before
//!   a byte is written.
//!
//! # Limits
//!
//! * Damage inside the very last batch looks like a torn write and is cut. It is the only batch nothing vouches for.
//! * The log does not know which process owns its directory: lock that (`Fs::lock_dir`) before opening.
//!
//! Entries that left the core's cache are read with `pread`: a memory map would save 0.6 us per entry on a path no
//! commit waits for, and a bad block under it is a signal instead of an error.
//!
//! Deliberately absent: a cache of entry bodies (the core keeps the tail), what an entry or the registry mean, retries,
//! and threads (`prepare_spare` and `compact` are for the caller's own).

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use shoaldb_vfs::env::{MORE_FILES, is_no_room, is_out_of_files};

use crate::types::{ClusterId, EntryId, HardState, LogEntry, LogIndex, Membership};

mod contents;
pub mod inspect;
mod record;
mod recover;
mod segment;
mod store;

pub use store::Log;

#[cfg(test)]
mod tests;

/// Limits of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// Size of a segment file in bytes, default 16 MiB: thousands of small batches between two switches, and small enough
    /// that compaction, which frees whole segments, follows its floor closely. A batch that does not fit an empty segment
    /// gets one of its own size. A multiple of 512, from 4 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// How many pre-written segments [`Log::prepare_spare`] keeps, default 2: one to switch to, one while the next is
    /// being written. Segments that compaction drops are kept up to this number too.
    pub spares: usize,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { segment_bytes: 16 << 20, spares: 2 }
    }
}

/// What a segment's head carries besides the hard state, so that earlier segments can go. Opaque to the log but for the
/// index.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Anchor {
    /// The rest holds as of this entry.
    pub applied: LogIndex,
    /// Members at `applied`.
    pub membership: Membership,
    /// Incarnations, catalogue and what else is replicated beside the databases, at `applied`.
    pub registry: Bytes,
}

/// What one append makes durable, all or nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// They follow on from each other, and from the log or from an entry in it: then the log is truncated
    /// before the first of these.
    pub entries: Vec<LogEntry>,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// A newer anchor. Pass one when members or registry changed, and every few MiB of entries besides: heads take it
    /// along, and compaction gets as far as heads do.
    pub anchor: Option<Anchor>,
}

/// What a log held when it was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Which cluster's log this is.
    pub cluster: ClusterId,
    /// The newest hard state.
    pub hard_state: HardState,
    /// The newest anchor.
    pub anchor: Anchor,
    /// The entry just before the first one in the log.
    pub start: EntryId,
    /// The last entry; `start` if there is none.
    pub last: EntryId,
    /// What was cut off the end, if anything was.
    pub cut: Option<Cut>,
}

/// A torn write that was cut off when the log was opened. None of it was ever acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// File name of the segment.
    pub file: String,
    /// Where its good part ends.
    pub offset: u64,
    /// What was found there.
    pub why: String,
}

/// Why a log cannot do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// There is no log in this directory.
    #[error("{dir}: no log here")]
    Missing {
        /// The directory.
        dir: String,
    },
    /// There is a log already.
    #[error("{dir}: there is a log here already ({file})")]
    Exists {
        /// The directory.
        dir: String,
        /// One of its segments.
        file: String,
    },
    /// Bytes that were once synced are not what they were.
    #[error("{file}: offset {offset}: damaged ({case}): {what}")]
    Damage {
        /// File name of the segment.
        file: String,
        /// Where in it.
        offset: u64,
        /// Label of the case; the table is in `log/recover.rs`.
        case: &'static str,
        /// Both values.
        what: String,
    },
    /// Written by a program with another format.
    #[error("{file}: log format version {found}; this program reads version {known}")]
    Version {
        /// File name of the segment.
        file: String,
        /// The version it names.
        found: u32,
        /// The version this program knows.
        known: u32,
    },
    /// The entry was compacted.
    #[error("entry {index} was compacted: the log starts after {start}")]
    Compacted {
        /// Wanted.
        index: LogIndex,
        /// What there is.
        start: LogIndex,
    },
    /// The entry is not there yet.
    #[error("entry {index} is beyond the log's last, {last}")]
    Beyond {
        /// Wanted.
        index: LogIndex,
        /// What there is.
        last: LogIndex,
    },
    /// The disk is full.
    #[error("{label}: {file}: no space left")]
    NoSpace {
        /// Which call.
        label: &'static str,
        /// File name.
        file: String,
    },
    /// The process, or the system, has too many files open.
    #[error("{label}: {file}: too many open files; {}", MORE_FILES)]
    TooManyFiles {
        /// Which call.
        label: &'static str,
        /// File name.
        file: String,
    },
    /// The file system failed otherwise.
    #[error("{label}: {file}: {error}")]
    Io {
        /// Which call.
        label: &'static str,
        /// File name.
        file: String,
        /// Its answer.
        error: Arc<io::Error>,
    },
    /// The caller broke a rule. Nothing was written, and the log can go on.
    #[error("log misused: {0}")]
    Misuse(String),
}

impl LogError {
    fn io(label: &'static str, file: &str, error: io::Error) -> LogError {
        let file = file.to_owned();
        match (is_no_room(&error), is_out_of_files(&error)) {
            (true, _) => LogError::NoSpace { label, file },
            (_, true) => LogError::TooManyFiles { label, file },
            _ => LogError::Io { label, file, error: Arc::new(error) },
        }
    }

    fn damage(file: &str, offset: u64, case: recover::Case, what: impl fmt::Display) -> LogError {
        LogError::Damage { file: file.to_owned(), offset, case: case.label(), what: what.to_string() }
    }

    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, LogError::NoSpace { .. })
    }

    /// Whether an append that failed may be tried again: a write or a new file found no room, or no new file could be opened.
    /// What was written of it counts for nothing, and the next attempt goes elsewhere. Not after a sync, whatever it said: what
    /// it left on the disk is not known.
    pub fn can_be_tried_again(&self) -> bool {
        matches!(
            self,
            LogError::NoSpace { label: "log.create" | "log.head.write" | "log.write", .. }
                | LogError::TooManyFiles { label: "log.create", .. }
        )
    }

    /// What is to be done, behind what happened.
    fn advice(&self) -> &'static str {
        match self {
            LogError::NoSpace { .. } => "; make room on the disk",
            // It says so itself.
            LogError::TooManyFiles { .. } => "",
            _ => "; check the disk",
        }
    }

    /// What happened, to what can be tried again, and what makes the next attempt succeed.
    pub(crate) fn for_now(&self) -> String {
        format!("{self}{}, it is tried again by itself", self.advice())
    }

    /// What an append that will be tried again means for its node, and what to do.
    pub(crate) fn in_words_for_now(&self) -> String {
        format!("the log cannot be written, nothing is acknowledged: {}", self.for_now())
    }

    /// What a failed append means for its node, and what to do.
    pub(crate) fn in_words(&self) -> String {
        let then = match self {
            LogError::NoSpace { .. } | LogError::TooManyFiles { .. } => " and",
            _ => ", then",
        };
        let advice = self.advice();
        format!(
            "the log cannot be written, nothing is acknowledged any more: {self}{advice}{then} start the node again"
        )
    }

    /// Whether bytes on disk are not what was once synced.
    pub fn is_damage(&self) -> bool {
        matches!(self, LogError::Damage { .. })
    }
}
