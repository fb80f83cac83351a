//! Messages that wait for the disk.
//!
//! ```text
//! sent by      waits until                             because
//! a leader     its term and vote are on disk           else a restart could use the same term for other entries
//! all others   everything written before is on disk    a vote or an acknowledgement is a promise about the disk
//! ```
//!
//! A leader's entries thus travel while its own disk still writes them. What has nothing to wait for leaves at once,
//! even past older messages that wait; Raft does not mind the order.

use crate::planted::{self, Bug};

/// Batches that must be synced, and the messages held back for them.
///
/// Invariant: `vote <= sync`, and both are numbers of batches that were handed to the disk; `held` contains only what
/// waits for a batch beyond `persisted`.
#[derive(Debug)]
pub(super) struct Outbox<M> {
    persisted: u64,
    sync: u64,
    vote: u64,
    held: Vec<(u64, Vec<M>)>,
}

impl<M> Outbox<M> {
    pub(super) fn new() -> Outbox<M> {
        Outbox { persisted: 0, sync: 0, vote: 0, held: Vec::new() }
    }

    /// A batch that must be synced goes to the disk; `term_or_vote` says whether it changes one of these.
    pub(super) fn on_batch(&mut self, batch: u64, term_or_vote: bool) {
        let early = if term_or_vote { Bug::VoteBeforeSync } else { Bug::AckBeforeSync };
        if planted::is(early) {
            return;
        }
        self.sync = batch;
        if term_or_vote {
            self.vote = batch;
        }
    }

    /// Takes messages in; returns those that may leave at once.
    pub(super) fn put(&mut self, leader: bool, messages: Vec<M>) -> Vec<M> {
        let after = if leader { self.vote } else { self.sync };
        if after <= self.persisted {
            return messages;
        }
        if !messages.is_empty() {
            self.held.push((after, messages));
        }
        Vec::new()
    }

    /// All batches up to this one are on disk; returns what waited for them.
    pub(super) fn on_persisted(&mut self, batch: u64) -> Vec<M> {
        self.persisted = self.persisted.max(batch);
        let (free, held) = std::mem::take(&mut self.held).into_iter().partition(|(after, _)| *after <= self.persisted);
        self.held = held;
        let free: Vec<(u64, Vec<M>)> = free;
        free.into_iter().flat_map(|(_, messages)| messages).collect()
    }

    /// Whether the disk has all that it must have synced.
    pub(super) fn is_synced(&self) -> bool {
        self.sync <= self.persisted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_waits_for_everything_a_leader_for_its_term() {
        let mut outbox = Outbox::new();
        assert_eq!(outbox.put(false, vec!["a"]), ["a"]);
        outbox.on_batch(3, true);
        outbox.on_batch(4, false);
        assert!(outbox.put(true, vec!["leader"]).is_empty());
        assert!(outbox.put(false, vec!["follower"]).is_empty());
        assert!(outbox.on_persisted(2).is_empty());
        assert_eq!(outbox.on_persisted(3), ["leader"]);
        assert_eq!(outbox.put(true, vec!["more"]), ["more"]);
        assert!(!outbox.is_synced());
        assert_eq!(outbox.on_persisted(4), ["follower"]);
        assert!(outbox.is_synced());
    }
}
