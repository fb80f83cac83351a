//! What the log holds, in memory: where each entry lies, the hard state, the anchor. And the rules of what may follow.
//!
//! The same rules are asked before a batch is written and after one is read back, so that what an append accepted is what
//! opening accepts. 24 bytes per entry; bodies stay on disk.
//!
//! Invariant: entry `start + 1 + i` lies in slot `i`, segments of successive slots never fall, terms never fall.
//!
//! Deliberately absent: bytes and files.

use std::collections::VecDeque;

use super::record::MAX_HEAD;
use super::{Anchor, Batch, LogError};
use crate::types::{EntryId, HardState, LogIndex, Term};

/// Where one entry lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) term: Term,
    /// Number of the segment: below 2^32, which at 16 MiB each is more than a disk holds in its life.
    pub(super) segment: u32,
    /// Of its record in the segment.
    pub(super) offset: u32,
    /// Of its payload.
    pub(super) len: u32,
    /// Chain before its record.
    pub(super) chain: u32,
}

const _: () = assert!(size_of::<Slot>() == 24);

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    start: EntryId,
    slots: VecDeque<Slot>,
    hard_state: HardState,
    anchor: Anchor,
}

/// Why something must not follow, in words.
pub(super) type Refusal = String;

impl Contents {
    pub(super) fn new(start: EntryId, hard_state: HardState, anchor: Anchor) -> Contents {
        Contents { start, slots: VecDeque::new(), hard_state, anchor }
    }

    pub(super) fn start(&self) -> EntryId {
        self.start
    }

    pub(super) fn last(&self) -> EntryId {
        let index = LogIndex(self.start.index.0 + self.slots.len() as u64);
        EntryId { index, term: self.slots.back().map_or(self.start.term, |slot| slot.term) }
    }

    pub(super) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(super) fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// Where the entry lies; `None` if it is not in the log.
    pub(super) fn slot(&self, index: LogIndex) -> Option<Slot> {
        let from_start = index.0.checked_sub(self.start.index.0)?.checked_sub(1)?;
        self.slots.get(usize::try_from(from_start).ok()?).copied()
    }

    /// Term of an entry in the log, or of the one just before.
    pub(super) fn term(&self, index: LogIndex) -> Option<Term> {
        if index == self.start.index { Some(self.start.term) } else { self.slot(index).map(|slot| slot.term) }
    }

    /// Whether the batch may follow, and behind which entry the log must be truncated first.
    pub(super) fn check_batch(&self, batch: &Batch) -> Result<Option<EntryId>, LogError> {
        let mut last = self.last();
        let mut truncate = None;
        if let Some(first) = batch.entries.first()
            && first.id.index <= last.index
        {
            if first.id.index <= self.start.index {
                return Err(LogError::Compacted { index: first.id.index, start: self.start.index });
            }
            let index = LogIndex(first.id.index.0 - 1);
            // Between start and last, so its term is known.
            last = EntryId { index, term: self.term(index).unwrap_or_default() };
            self.check_truncate(last).map_err(LogError::Misuse)?;
            truncate = Some(last);
        }
        for entry in &batch.entries {
            check_follows(last, entry.id).map_err(LogError::Misuse)?;
            last = entry.id;
        }
        if let Some(new) = batch.hard_state {
            check_hard_state(self.hard_state, new).map_err(LogError::Misuse)?;
        }
        if let Some(new) = &batch.anchor {
            check_anchor(&self.anchor, new, last).map_err(LogError::Misuse)?;
        }
        Ok(truncate)
    }

    /// Up to here entries are committed, by what the log itself knows. Compaction stays below it too: heads cover no more
    /// than the anchor says.
    fn committed(&self) -> LogIndex {
        self.hard_state.commit.max(self.anchor.applied)
    }

    fn check_truncate(&self, to: EntryId) -> Result<(), Refusal> {
        let (last, committed) = (self.last().index, self.committed());
        if to.index >= last {
            return Err(format!("truncation behind entry {}, but the last is {last}", to.index));
        }
        if to.index < committed {
            return Err(format!("truncation behind entry {}, but up to {committed} it is committed", to.index));
        }
        match self.term(to.index) {
            Some(term) if term != to.term => {
                Err(format!("truncation behind entry {} of term {}, but its term is {term}", to.index, to.term))
            }
            _ => Ok(()),
        }
    }

    /// Drops all entries behind `to`. While a log is read, `to` may lie before its start: then the segment with the
    /// entries in between is gone already, and the log starts at `to`.
    pub(super) fn truncate(&mut self, to: EntryId) -> Result<(), Refusal> {
        self.check_truncate(to)?;
        match to.index.0.checked_sub(self.start.index.0) {
            Some(kept) => self.slots.truncate(kept as usize),
            None => *self = Contents::new(to, self.hard_state, std::mem::take(&mut self.anchor)),
        }
        Ok(())
    }

    pub(super) fn push(&mut self, id: EntryId, slot: Slot) -> Result<(), Refusal> {
        check_follows(self.last(), id)?;
        self.slots.push_back(slot);
        Ok(())
    }

    pub(super) fn set_hard_state(&mut self, new: HardState) -> Result<(), Refusal> {
        check_hard_state(self.hard_state, new)?;
        self.hard_state = new;
        Ok(())
    }

    pub(super) fn set_anchor(&mut self, new: Anchor) -> Result<(), Refusal> {
        check_anchor(&self.anchor, &new, self.last())?;
        self.anchor = new;
        Ok(())
    }

    /// The last entry that lies in this segment or an earlier one; `start` if there is none.
    pub(super) fn last_of_segment(&self, number: u32) -> LogIndex {
        let within = self.slots.partition_point(|slot| slot.segment <= number);
        LogIndex(self.start.index.0 + within as u64)
    }

    /// Forgets the entries up to the end of this segment.
    pub(super) fn drop_segment(&mut self, number: u32) {
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.segment <= number) {
            self.start = EntryId { index: self.start.index.next(), term: slot.term };
        }
    }
}

fn check_follows(last: EntryId, id: EntryId) -> Result<(), Refusal> {
    if id.index.0.checked_sub(1) != Some(last.index.0) {
        return Err(format!("entry {} does not follow entry {}", id.index, last.index));
    }
    if id.term < last.term {
        return Err(format!("entry {} has term {}, the one before it {}", id.index, id.term, last.term));
    }
    Ok(())
}

/// A term only grows, a vote stands for its whole term, what is committed stays so.
pub(super) fn check_hard_state(old: HardState, new: HardState) -> Result<(), Refusal> {
    if new.term < old.term {
        return Err(format!("hard state of term {} after one of term {}", new.term, old.term));
    }
    if new.term == old.term && old.vote.is_some() && new.vote != old.vote {
        let name =
            |vote: Option<_>| vote.map_or_else(|| "nobody".to_owned(), |id: crate::types::NodeId| id.to_string());
        return Err(format!("vote for {} in term {} after one for {}", name(new.vote), new.term, name(old.vote)));
    }
    if new.commit < old.commit {
        return Err(format!("committed index {} after {}", new.commit, old.commit));
    }
    Ok(())
}

/// A head has to hold it.
pub(super) fn check_anchor_size(anchor: &Anchor) -> Result<(), Refusal> {
    let (bytes, most) = (anchor.registry.len(), MAX_HEAD / 2);
    if bytes > most { Err(format!("a registry of {bytes} bytes, at most {most} fit")) } else { Ok(()) }
}

fn check_anchor(old: &Anchor, new: &Anchor, last: EntryId) -> Result<(), Refusal> {
    check_anchor_size(new)?;
    if new.applied < old.applied {
        return Err(format!("anchor at {} after one at {}", new.applied, old.applied));
    }
    if new.applied > last.index {
        return Err(format!("anchor at {}, but the last entry is {}", new.applied, last.index));
    }
    Ok(())
}
