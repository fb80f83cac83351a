//! The log as the Raft library sees it: the tail in memory, the rest through an [`EntryReader`].
//!
//! ```text
//!        start        tail begins           durable            last
//!          │               │                   │                 │
//!  gone ───┤ on disk only  │ memory and disk   │ memory only     │
//! ```
//!
//! The tail loses its oldest entries when it has more bytes than its budget, but never one beyond `durable`, because
//! the disk does not have it yet.
//!
//! The library cannot be told that a disk failed: most errors are a panic to it. So a failure here is noted, the
//! library gets an answer that it takes without harm (no entries, term 0), and the core looks at the note after every
//! call and stops before any of it takes effect.
//!
//! The library asks for entries with three purposes, which want different limits:
//!
//! ```text
//! to send      up to its own limit, as long as little was read from the disk in this turn
//! to apply     up to the budget that the core sets for the turn
//! to look for  changes of members: all of them, so they come without their payload, page by page
//! ```
//!
//! Deliberately absent: snapshots. Who needs one is noted by name.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use raft::eraftpb;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::convert::{entry_to_raft, hard_state_to_raft, membership_to_raft, without_payload};
use super::{EntryReader, Restored};
use crate::types::{EntryId, HardState, LogEntry, LogIndex, Term};

/// What an entry costs besides its payload: its record in the queue and the owner of its bytes.
const ENTRY_BYTES: u64 = 96;

/// How much is read at a time when only the classes of entries matter.
const SCAN_BYTES: u64 = 1 << 20;

/// Bytes of memory that an entry takes, about.
pub(super) fn bytes_of(entry: &LogEntry) -> u64 {
    entry.data.len() as u64 + ENTRY_BYTES
}

/// The log.
///
/// Invariant: `start <= last`, `durable <= last`; `tail` is consecutive and ends at `last`, or is empty; every entry in
/// `(durable, last]` is in `tail`; `tail_bytes` is the sum over `tail`.
pub(super) struct LogStore {
    reader: Arc<dyn EntryReader>,
    initial: RaftState,
    start: EntryId,
    last: EntryId,
    tail: VecDeque<LogEntry>,
    tail_bytes: u64,
    tail_budget: u64,
    durable: LogIndex,
    unsynced: VecDeque<Unsynced>,
    apply_budget: Cell<Option<Budget>>,
    /// Bytes that may still be read from the disk to be sent, in this turn.
    send_budget: Cell<u64>,
    wanted: RefCell<BTreeSet<u64>>,
    failure: RefCell<Option<String>>,
}

/// How much may be read at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) bytes: u64,
    /// Whether one entry is taken even if it alone is too large.
    pub(super) at_least_one: bool,
}

/// A batch of entries on its way to the disk.
struct Unsynced {
    batch: u64,
    first: LogIndex,
    last: LogIndex,
}

impl LogStore {
    /// `hard_state` is the one to begin with: `restored`'s with its commit index brought up to date.
    pub(super) fn new(
        restored: &Restored,
        hard_state: &HardState,
        reader: Arc<dyn EntryReader>,
        tail_budget: u64,
    ) -> LogStore {
        LogStore {
            reader,
            initial: RaftState::new(hard_state_to_raft(hard_state), membership_to_raft(&restored.membership)),
            start: restored.start,
            last: restored.last,
            tail: VecDeque::new(),
            tail_bytes: 0,
            tail_budget,
            durable: restored.last.index,
            unsynced: VecDeque::new(),
            apply_budget: Cell::new(None),
            send_budget: Cell::new(u64::MAX),
            wanted: RefCell::new(BTreeSet::new()),
            failure: RefCell::new(None),
        }
    }

    /// Appends what goes to the disk as `batch`, replacing what it overwrites.
    pub(super) fn append(&mut self, batch: u64, entries: &[LogEntry]) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        let first = first.id.index;
        if first <= self.start.index || first > self.last.index.next() {
            let (start, end) = (self.start.index, self.last.index);
            self.fail(format!("entry {first} cannot be appended to a log of ({start}, {end}]"));
            return;
        }
        while let Some(overwritten) = self.tail.pop_back_if(|entry| entry.id.index >= first) {
            self.tail_bytes -= bytes_of(&overwritten);
        }
        self.durable = self.durable.min(LogIndex(first.0 - 1));
        self.tail_bytes += entries.iter().map(bytes_of).sum::<u64>();
        self.tail.extend(entries.iter().cloned());
        self.last = last.id;
        self.unsynced.push_back(Unsynced { batch, first, last: last.id.index });
        self.check();
    }

    /// Bytes of entries in memory.
    pub(super) fn tail_bytes(&self) -> u64 {
        self.tail_bytes
    }

    /// The disk has all batches up to this one.
    pub(super) fn on_persisted(&mut self, batch: u64) {
        while let Some(done) = self.unsynced.pop_front_if(|unsynced| unsynced.batch <= batch) {
            self.durable = done.last;
        }
        for waiting in &self.unsynced {
            self.durable = self.durable.min(LogIndex(waiting.first.0 - 1));
        }
        self.evict();
        self.check();
    }

    /// The log dropped its entries up to `start`.
    pub(super) fn compact(&mut self, start: EntryId) -> Result<(), String> {
        if start.index < self.start.index || start.index > self.durable {
            return Err(format!("log of ({}, {}] compacted to {}", self.start.index, self.durable, start.index));
        }
        let term = self.term_of(start.index);
        if term != Some(start.term) {
            let known = term.map_or(0, |term| term.0);
            return Err(format!("log compacted to {}@{}, that entry is of term {known}", start.index, start.term));
        }
        self.start = start;
        while let Some(dropped) = self.tail.pop_front_if(|entry| entry.id.index <= start.index) {
            self.tail_bytes -= bytes_of(&dropped);
        }
        self.check();
        Ok(())
    }

    /// Until the next call with `None`, entries are read to be applied.
    pub(super) fn set_apply_budget(&self, budget: Option<Budget>) {
        self.apply_budget.set(budget);
    }

    /// A turn begins, in which so many bytes may be read from the disk to be sent, and what is read last. Whoever gets nothing
    /// then asks again with its next answer.
    pub(super) fn set_send_budget(&self, bytes: u64) {
        self.send_budget.set(bytes);
    }

    fn collect_to_send(&self, lo: LogIndex, hi: LogIndex, max_size: u64) -> raft::Result<Vec<eraftpb::Entry>> {
        let (left, in_memory) = (self.send_budget.get(), self.tail_begin());
        if lo < in_memory && left == 0 {
            return Err(StorageError::LogTemporarilyUnavailable.into());
        }
        let found = self.collect(lo, hi, Budget { bytes: max_size, at_least_one: true });
        let found = found.unwrap_or_else(|why| {
            self.fail(why);
            Vec::new()
        });
        let read = found.iter().filter(|entry| entry.index < in_memory.0).map(|entry| entry.data.len() as u64).sum();
        self.send_budget.set(left.saturating_sub(read));
        Ok(found)
    }

    /// Who needed a snapshot since the last call.
    pub(super) fn take_wanted(&self) -> BTreeSet<u64> {
        self.wanted.take()
    }

    /// What went wrong, if anything did.
    pub(super) fn take_failure(&self) -> Option<String> {
        self.failure.take()
    }

    fn fail(&self, why: String) {
        self.failure.borrow_mut().get_or_insert(why);
    }

    fn check(&self) {
        assert!(self.start.index <= self.last.index);
        assert!(self.durable <= self.last.index);
        assert!(self.tail.back().is_none_or(|entry| entry.id == self.last));
        assert!(self.tail_begin() <= self.durable.next());
    }

    fn tail_begin(&self) -> LogIndex {
        self.tail.front().map_or(self.last.index.next(), |entry| entry.id.index)
    }

    fn evict(&mut self) {
        let durable = self.durable;
        while self.tail_bytes > self.tail_budget {
            let Some(evicted) = self.tail.pop_front_if(|entry| entry.id.index <= durable) else { break };
            self.tail_bytes -= bytes_of(&evicted);
        }
    }

    /// Term of an entry in `start..=last`, or none if the disk does not know.
    fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        if index == self.last.index {
            return Some(self.last.term);
        }
        match index.0.checked_sub(self.tail_begin().0) {
            Some(at) => self.tail.get(at as usize).map(|entry| entry.id.term),
            None => self.reader.term(index),
        }
    }

    /// Calls `take` with the entries of `[lo, hi)` in order until it returns false.
    fn walk(
        &self,
        lo: LogIndex,
        hi: LogIndex,
        page: u64,
        mut take: impl FnMut(&LogEntry) -> bool,
    ) -> Result<(), String> {
        let mut at = lo;
        let in_memory = self.tail_begin();
        while at < hi && at < in_memory {
            for entry in self.read_page(at, hi.min(in_memory), page)? {
                if !take(&entry) {
                    return Ok(());
                }
                at = at.next();
            }
        }
        let skip = at.0.saturating_sub(in_memory.0) as usize;
        let _ = self.tail.iter().skip(skip).take((hi.0 - at.0) as usize).all(take);
        Ok(())
    }

    fn read_page(&self, lo: LogIndex, hi: LogIndex, max_bytes: u64) -> Result<Vec<LogEntry>, String> {
        let entries = self
            .reader
            .entries(lo, hi, max_bytes)
            .map_err(|error| format!("entries {lo} to {hi} cannot be read: {error}"))?;
        if entries.is_empty() {
            return Err(format!("entries {lo} to {hi} cannot be read: none there"));
        }
        for (expected, entry) in (lo.0..).zip(&entries) {
            if entry.id.index.0 != expected || entry.id.index >= hi {
                return Err(format!("entries {lo} to {hi}: found {} in the place of {expected}", entry.id.index));
            }
        }
        Ok(entries)
    }

    fn collect(&self, lo: LogIndex, hi: LogIndex, budget: Budget) -> Result<Vec<eraftpb::Entry>, String> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        self.walk(lo, hi, budget.bytes, |entry| {
            bytes += bytes_of(entry);
            let fits = bytes <= budget.bytes || (budget.at_least_one && entries.is_empty());
            if fits {
                entries.push(entry_to_raft(entry));
            }
            fits
        })?;
        Ok(entries)
    }

    fn collect_classes(&self, lo: LogIndex, hi: LogIndex) -> Result<Vec<eraftpb::Entry>, String> {
        let mut entries = Vec::new();
        self.walk(lo, hi, SCAN_BYTES, |entry| {
            entries.push(without_payload(entry_to_raft(entry)));
            true
        })?;
        Ok(entries)
    }
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        let (lo, hi) = (LogIndex(low), LogIndex(high));
        if lo <= self.start.index {
            return Err(StorageError::Compacted.into());
        }
        let found = match self.apply_budget.get() {
            Some(budget) => self.collect(lo, hi, budget),
            None if context.can_async() => {
                return self.collect_to_send(lo, hi, max_size.into().unwrap_or(u64::MAX));
            }
            None => self.collect_classes(lo, hi),
        };
        Ok(found.unwrap_or_else(|why| {
            self.fail(why);
            Vec::new()
        }))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let index = LogIndex(index);
        if index < self.start.index {
            return Err(StorageError::Compacted.into());
        }
        if index > self.last.index {
            return Err(StorageError::Unavailable.into());
        }
        let term = self.term_of(index).unwrap_or_else(|| {
            self.fail(format!("term of entry {index} cannot be read"));
            Term(0)
        });
        Ok(term.0)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start.index.next().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.index.0)
    }

    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<eraftpb::Snapshot> {
        self.wanted.borrow_mut().insert(to);
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use bytes::Bytes;

    use super::*;
    use crate::types::{EntryClass, GENESIS, Membership};

    /// The log on disk, and the sizes of the pages that were asked for.
    #[derive(Default)]
    struct OnDisk {
        entries: Mutex<Vec<LogEntry>>,
        pages: Mutex<Vec<u64>>,
        lies: bool,
    }

    impl EntryReader for OnDisk {
        fn entries(&self, lo: LogIndex, hi: LogIndex, max_bytes: u64) -> io::Result<Vec<LogEntry>> {
            self.pages.lock().unwrap().push(max_bytes);
            let shift = if self.lies { 1 } else { 0 };
            let entries = self.entries.lock().unwrap();
            let wanted = entries.iter().filter(|entry| (lo.0 + shift..hi.0 + shift).contains(&entry.id.index.0));
            Ok(wanted.take(2).cloned().collect())
        }

        fn term(&self, index: LogIndex) -> Option<Term> {
            self.entries.lock().unwrap().iter().find(|entry| entry.id.index == index).map(|entry| entry.id.term)
        }
    }

    fn entry(index: u64, term: u64) -> LogEntry {
        let id = EntryId { index: LogIndex(index), term: Term(term) };
        LogEntry { id, class: EntryClass::Normal, data: Bytes::from(vec![b'x'; 4]) }
    }

    const ENTRY: u64 = ENTRY_BYTES + 4;

    /// A log with entries 2..=last of term 1 on disk and nothing in memory.
    fn store(last: u64, tail_budget: u64, disk: OnDisk) -> (LogStore, Arc<OnDisk>) {
        *disk.entries.lock().unwrap() = (2..=last).map(|index| entry(index, 1)).collect();
        let disk = Arc::new(disk);
        let restored = Restored {
            hard_state: HardState::default(),
            membership: Membership::default(),
            start: GENESIS,
            last: EntryId { index: LogIndex(last), term: Term(1) },
            applied: GENESIS.index,
        };
        (LogStore::new(&restored, &restored.hard_state, disk.clone(), tail_budget), disk)
    }

    fn ids(found: raft::Result<Vec<eraftpb::Entry>>) -> Vec<(u64, u64)> {
        found.unwrap().iter().map(|entry| (entry.index, entry.term)).collect()
    }

    fn send() -> GetEntriesContext {
        GetEntriesContext::empty(true)
    }

    #[test]
    fn entries_come_from_disk_and_memory_as_one_log() {
        let (mut log, _) = store(6, 10 * ENTRY, OnDisk::default());
        log.append(1, &[entry(7, 2), entry(8, 2)]);
        assert_eq!(ids(log.entries(5, 9, None, send())), [(5, 1), (6, 1), (7, 2), (8, 2)]);
        assert_eq!(ids(log.entries(8, 9, None, send())), [(8, 2)]);
        assert_eq!(ids(log.entries(3, 5, None, send())), [(3, 1), (4, 1)]);
        for (budget, count) in [(0, 1), (2 * ENTRY - 1, 1), (2 * ENTRY, 2), (2 * ENTRY + 1, 2)] {
            assert_eq!(ids(log.entries(5, 9, budget, send())).len(), count, "{budget} bytes");
        }
        let terms: Vec<u64> = (1..=8).map(|index| log.term(index).unwrap()).collect();
        assert_eq!(terms, [1, 1, 1, 1, 1, 1, 2, 2]);
        assert!(log.term(0).is_err() && log.term(9).is_err());
        assert!(log.entries(1, 3, None, send()).is_err());
        assert_eq!(log.take_failure(), None);
    }

    #[test]
    fn a_turn_reads_no_more_from_the_disk_to_send_than_it_may() {
        let (mut log, _) = store(6, 10 * ENTRY, OnDisk::default());
        log.append(1, &[entry(7, 1)]);
        log.set_send_budget(5);
        assert_eq!(ids(log.entries(2, 8, ENTRY, send())), [(2, 1)]);
        assert_eq!(ids(log.entries(3, 8, ENTRY, send())), [(3, 1)], "the last may be larger than what is left");
        let refused = log.entries(4, 8, ENTRY, send());
        assert!(matches!(refused, Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))));
        assert_eq!(ids(log.entries(7, 8, ENTRY, send())), [(7, 1)], "what is in memory costs nothing");
        log.set_send_budget(5);
        assert_eq!(ids(log.entries(4, 8, ENTRY, send())), [(4, 1)]);
        assert_eq!(log.take_failure(), None);
    }

    #[test]
    fn only_what_the_disk_has_leaves_memory() {
        let (mut log, disk) = store(1, 0, OnDisk::default());
        log.append(1, &[entry(2, 1), entry(3, 1), entry(4, 1)]);
        log.append(2, &[entry(4, 2), entry(5, 2)]);
        log.append(3, &[entry(6, 2)]);
        assert_eq!(log.tail.len(), 5);
        // Batch 1 wrote an entry 4 that batch 2 replaces: on disk it is the wrong one until then.
        log.on_persisted(1);
        assert_eq!((log.durable, log.tail_begin()), (LogIndex(3), LogIndex(4)));
        log.on_persisted(2);
        assert_eq!((log.durable, log.tail_begin()), (LogIndex(5), LogIndex(6)));
        log.on_persisted(3);
        assert_eq!((log.tail.len(), log.tail_bytes), (0, 0));
        *disk.entries.lock().unwrap() = [(2, 1), (3, 1), (4, 2), (5, 2), (6, 2)].map(|(i, t)| entry(i, t)).to_vec();
        assert_eq!(ids(log.entries(3, 6, None, send())), [(3, 1), (4, 2), (5, 2)]);
    }

    /// Shows INV-20.
    #[test]
    fn memory_keeps_as_much_as_its_budget() {
        for (budget, kept) in [(3 * ENTRY - 1, 2), (3 * ENTRY, 3), (3 * ENTRY + 1, 3)] {
            let (mut log, _) = store(1, budget, OnDisk::default());
            log.append(1, &(2..9).map(|index| entry(index, 1)).collect::<Vec<_>>());
            log.on_persisted(1);
            assert_eq!(log.tail.len(), kept, "{budget} bytes");
        }
    }

    #[test]
    fn an_overwrite_may_reach_below_what_is_in_memory() {
        let (mut log, _) = store(6, 10 * ENTRY, OnDisk::default());
        log.append(1, &[entry(7, 1)]);
        log.append(2, &[entry(4, 2), entry(5, 2)]);
        assert_eq!(log.last_index().unwrap(), 5);
        assert_eq!(ids(log.entries(2, 6, None, send())), [(2, 1), (3, 1), (4, 2), (5, 2)]);
    }

    #[test]
    fn to_apply_follows_the_budget_of_the_turn() {
        let (log, _) = store(6, 0, OnDisk::default());
        let read = |bytes, at_least_one| {
            log.set_apply_budget(Some(Budget { bytes, at_least_one }));
            let found = log.entries(2, 7, None, GetEntriesContext::empty(false)).unwrap();
            log.set_apply_budget(None);
            assert!(found.iter().all(|entry| entry.data.len() == 4));
            found.len()
        };
        assert_eq!(read(0, false), 0);
        assert_eq!(read(0, true), 1);
        assert_eq!(read(3 * ENTRY, false), 3);
    }

    #[test]
    fn trap_17_looking_for_changes_of_members_loads_no_payload() {
        let (log, disk) = store(9, 0, OnDisk::default());
        let found = log.entries(2, 10, None, GetEntriesContext::empty(false)).unwrap();
        assert_eq!(found.len(), 8);
        assert!(found.iter().all(|entry| entry.data.is_empty()));
        assert!(disk.pages.lock().unwrap().iter().all(|bytes| *bytes <= SCAN_BYTES));
    }

    #[test]
    fn what_the_disk_should_not_say_is_a_failure() {
        let (log, disk) = store(6, 0, OnDisk { lies: true, ..OnDisk::default() });
        assert_eq!(ids(log.entries(3, 5, None, send())), []);
        assert_eq!(log.take_failure().unwrap(), "entries 3 to 5: found 4 in the place of 3");
        disk.entries.lock().unwrap().clear();
        assert_eq!(ids(log.entries(3, 5, None, send())), []);
        assert!(log.take_failure().unwrap().contains("none there"));
        assert_eq!(log.term(3).unwrap(), 0);
        assert_eq!(log.take_failure().unwrap(), "term of entry 3 cannot be read");
    }

    #[test]
    fn compaction_moves_the_start() {
        let (mut log, _) = store(6, 10 * ENTRY, OnDisk::default());
        log.append(1, &[entry(7, 2), entry(8, 2)]);
        let to = |index, term| EntryId { index: LogIndex(index), term: Term(term) };
        assert!(log.compact(to(7, 2)).is_err(), "not on disk yet");
        log.on_persisted(1);
        assert!(log.compact(to(7, 1)).is_err(), "another term");
        log.compact(to(7, 2)).unwrap();
        assert_eq!((log.first_index().unwrap(), log.term(7).unwrap(), log.tail.len()), (8, 2, 1));
        assert!(log.compact(to(6, 1)).is_err(), "backwards");
        assert!(matches!(log.term(6), Err(raft::Error::Store(StorageError::Compacted))));
        assert!(log.snapshot(0, 3).is_err());
        assert_eq!(log.take_wanted(), BTreeSet::from([3]));
    }
}
