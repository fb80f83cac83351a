//! The end of a read transaction that stays open for too long.
//!
//! A reader holds a mark in the WAL: no checkpoint goes beyond it, so WAL and log grow as long as it stays. In a process that
//! runs for a month somebody forgets one. SQLite knows no end for it; this is one.
//!
//! SQLite is not told. Its connection keeps what it believes to have, and everything that it asks for fails with
//! `READER_ENDED`: an I/O error, so SQLite rolls back and forgets its page cache. When it gives the read lock back, the
//! connection is an ordinary one again, and its next transaction reads the present state. In order:
//!
//! ```text
//! 1  its wal-index goes private: it is read without asking anybody, and what is there belongs to another lap soon
//! 2  from now on its reads and writes fail
//! 3  those that had begun before are waited for: each holds the lock of what it reads
//! 4  its lock goes: the next checkpoint passes its mark
//! ```
//!
//! What SQLite has in its page cache is its own copy (it gets no pointers into the main file: there is no `xFetch`), and a
//! statement that needs nothing else still ends well, with the old state.
//!
//! Until SQLite has noticed it may ask for another read lock: a writer that reads the main file alone does, before it begins a
//! new lap of the WAL. It gets none: nobody would end it again.
//!
//! Deliberately absent: when it is time for this.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Database, Mode, State};
use crate::error::Refusal;
use crate::lock::{FileId, READ_0};
use crate::planted::{self, Bug};
use crate::wal::index;

impl State {
    /// Since when the oldest read transaction has been open.
    pub(super) fn oldest_reader(&self) -> Option<Duration> {
        self.files.values().filter(|file| file.link.mode() != Mode::Ended).filter_map(|file| file.reading_since).min()
    }

    /// A read transaction that was ended gets no read lock before SQLite has noticed.
    pub(super) fn check_not_ended(&self, file: FileId, range: &Range<usize>) -> Result<(), Refusal> {
        let ended = self.files.get(&file).is_some_and(|file| file.link.mode() == Mode::Ended);
        if ended && range.end > READ_0 { Err(Refusal::ReaderEnded) } else { Ok(()) }
    }

    /// Read transactions that may be ended and are older than `age`: the number of the mark that each holds, and the frames
    /// that it stands for.
    fn old_readers(&self, age: Duration, now: Duration) -> Vec<(FileId, usize, u32)> {
        let mut old = Vec::new();
        for (id, file) in &self.files {
            let Some(mark) = self.locks.read_mark(*id) else { continue };
            let may_end = match file.link.mode() {
                Mode::Normal => !file.believes_write,
                Mode::Fenced => true,
                Mode::Detached | Mode::Ended => false,
            };
            if !may_end || file.reading_since.is_none_or(|since| now.saturating_sub(since) < age) {
                continue;
            }
            // Who reads the main file alone needs it as it is.
            let frames = if mark == 0 { Some(0) } else { index::read_mark(&self.view, mark) };
            old.push((*id, mark, frames.unwrap_or(0)));
        }
        old
    }
}

impl Database {
    /// Ends those read transactions, among the ones that are older than `age`, that hold back the most of the WAL; and
    /// how many they were. Fenced ones are among them, and one that holds WRITE is not: its commit ends it, or the applier.
    pub fn end_oldest_readers(&self, age: Duration) -> usize {
        let mut state = self.state.lock();
        let old = state.old_readers(age, self.clock.now());
        let Some(oldest) = old.iter().map(|(_, _, frames)| *frames).min() else { return 0 };
        let mut ended = 0;
        for (id, ..) in old.into_iter().filter(|(_, _, frames)| *frames == oldest) {
            ended += usize::from(self.end_reader(&mut state, id));
        }
        ended
    }

    /// Ends those older than `age` that read from the WAL, so that a new lap can begin; and how many they were. Who reads the
    /// main file alone is no obstacle.
    pub(super) fn end_readers_of_lap(&self, state: &mut State, age: Duration) -> usize {
        let mut ended = 0;
        for (id, ..) in state.old_readers(age, self.clock.now()).into_iter().filter(|(_, mark, _)| *mark > 0) {
            ended += usize::from(self.end_reader(state, id));
        }
        ended
    }

    /// Steps 1 to 4 of the module's text; `false` if this one stays.
    fn end_reader(&self, state: &mut State, id: FileId) -> bool {
        let Some(entry) = state.files.get_mut(&id) else { return false };
        if let Err(error) = entry.view.detach() {
            tracing::error!(database = self.name, %error, "a read transaction that is open for too long could not be ended");
            return false;
        }
        if !planted::is(Bug::KeepEndedReader) {
            entry.link.set_mode(Mode::Ended);
        }
        drop(self.main.write());
        drop(self.wal.write());
        *entry.link.overlay.lock() = None;
        state.locks.forget(id);
        self.counters.readers_ended.fetch_add(1, Ordering::Relaxed);
        true
    }
}
