//! Batches of the core to the log, everything that waits in one write and one sync.
//!
//! A batch that only moves the commit index costs no write: it goes along with the next one. The commit index need not
//! survive a crash.
//!
//! A batch that finds no room on the disk waits here, before all that come after it.
//!
//! Deliberately absent: who calls this and when again, and what happens when the log has failed.

use std::collections::VecDeque;

use crate::log::{Batch, Log, LogError};
use crate::raft::PersistBatch;
use crate::types::HardState;

/// See the module's text.
#[derive(Default)]
pub(crate) struct Appender {
    unwritten: Option<HardState>,
    /// In order, what is not in the log yet. Empty unless there was no room.
    waiting: VecDeque<PersistBatch>,
}

impl Appender {
    /// Whether a batch has something for the disk.
    pub(crate) fn needs_write(batch: &PersistBatch) -> bool {
        batch.must_sync || !batch.entries.is_empty()
    }

    /// Whether something waits for room.
    pub(crate) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes the batches in order, behind those that wait, and calls `persisted` with the number of each that is on disk, or
    /// of the last of several.
    ///
    /// After an error nothing may be appended any more, since what is on disk is not known; unless
    /// [`LogError::can_be_tried_again`]: what is not in the log waits for the next call.
    pub(crate) fn append(
        &mut self,
        log: &Log,
        batches: impl IntoIterator<Item = PersistBatch>,
        persisted: &mut dyn FnMut(u64),
    ) -> Result<(), LogError> {
        self.waiting.extend(batches);
        while let Some(first) = self.waiting.pop_front() {
            let (mut number, mut must_sync) = (first.number, first.must_sync);
            let hard_state = first.hard_state.or(self.unwritten.take());
            let mut batch = Batch { entries: first.entries, hard_state, anchor: None };
            // One batch of the log has consecutive entries.
            while let Some(next) =
                self.waiting.pop_front_if(|next| match (batch.entries.last(), next.entries.first()) {
                    (Some(last), Some(first)) => first.id.index == last.id.index.next(),
                    _ => true,
                })
            {
                number = next.number;
                must_sync |= next.must_sync;
                batch.entries.extend(next.entries);
                batch.hard_state = next.hard_state.or(batch.hard_state);
            }
            if !must_sync && batch.entries.is_empty() {
                self.unwritten = batch.hard_state;
            } else if let Err(error) = log.append(&batch) {
                if error.can_be_tried_again() {
                    let Batch { entries, hard_state, .. } = batch;
                    self.waiting.push_front(PersistBatch { number, entries, hard_state, must_sync });
                }
                return Err(error);
            }
            persisted(number);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use shoaldb_vfs::env::sim::SimFs;

    use super::*;
    use crate::log::{Anchor, LogOptions};
    use crate::types::{ClusterId, EntryClass, EntryId, GENESIS, LogEntry, LogIndex, Term};

    fn batch(number: u64) -> PersistBatch {
        let id = EntryId { index: LogIndex(number), term: Term(1) };
        let entries = vec![LogEntry { id, class: EntryClass::Normal, data: b"of one database".as_slice().into() }];
        let hard_state = Some(HardState { term: Term(1), vote: None, commit: LogIndex(number - 1) });
        PersistBatch { number, entries, hard_state, must_sync: true }
    }

    /// Transactions of any number of databases that came while the disk was busy share one write and one sync; and one that
    /// does not follow the entries before it has its own.
    #[test]
    fn what_waits_goes_to_the_disk_in_one_write_and_one_sync() {
        let fs = SimFs::new(1);
        let options = LogOptions { segment_bytes: 64 << 10, spares: 1 };
        let (start, hard_state) = (GENESIS, HardState::default());
        let dir = Path::new("/node/log");
        let log = Log::create(Arc::new(fs.clone()), dir, ClusterId(1), options, start, Anchor::default(), hard_state);
        let (log, mut appender, mut told) = (log.unwrap(), Appender::default(), Vec::new());
        let calls = || (fs.count("log.write"), fs.count("log.sync"));
        let before = calls();
        appender.append(&log, (2..=9).map(batch), &mut |number| told.push(number)).unwrap();
        assert_eq!(calls(), (before.0 + 1, before.1 + 1));
        assert_eq!((told.as_slice(), log.last().index), ([9].as_slice(), LogIndex(9)));

        appender.append(&log, [batch(10), batch(10), batch(11)], &mut |number| told.push(number)).unwrap();
        assert_eq!(calls(), (before.0 + 3, before.1 + 3));
        assert_eq!((told, log.last().index), (vec![9, 10, 11], LogIndex(11)));
    }
}
