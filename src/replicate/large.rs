//! Proposing a transaction in parts.
//!
//! At most [`WINDOW`] parts are on their way at a time, so that neither the mailbox nor what Raft keeps of uncommitted
//! entries grows with the transaction, and entries of other databases get in between. A part that is applied makes room
//! for the next.
//!
//! The last part is proposed when all others are applied, under the number of the transaction. So a failure before is
//! certain: without its last part no node will ever apply it. From then on it is a proposal like any other.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use shoaldb_vfs::buffer::Buffer;
use shoaldb_vfs::transaction::Transaction;

use super::{NodeReplicator, POLL};
use crate::catalogue::DatabaseId;
use crate::entry::split::{self, PartHead};
use crate::pending::Decision;
use crate::shared::Input;
use crate::signal::Signal;

/// Parts on their way: one on the disks while the next is being packed, and one more.
const WINDOW: usize = 3;

/// The parts before the last one.
#[derive(Default)]
struct Parts {
    /// Not applied yet, as far as is known here; oldest first.
    flying: VecDeque<(u64, Arc<Signal>)>,
    /// Some are in the log, or may get there.
    kept: bool,
}

/// How far a transaction in parts came.
pub(super) enum Proposed {
    /// Its last part is a proposal like any other now. Whether parts are in the log before it.
    Whole { parted: bool },
    /// Its last part never will be one.
    GivenUp,
}

impl NodeReplicator {
    /// Proposes all parts.
    pub(super) fn propose_parts(&self, number: u64, database: DatabaseId, transaction: &Transaction) -> Proposed {
        let mut parts = Parts::default();
        if self.propose_each(number, database, transaction, &mut parts) {
            return Proposed::Whole { parted: parts.kept };
        }
        for (part, _) in parts.flying {
            parts.kept |= self.hub.pending.abandon(part) != Some(Decision::NotCommitted);
        }
        // A leader that is about to hand over refuses the first one, and whoever tries again is refused again: an entry for each would
        // be all that comes of it.
        if parts.kept {
            self.hub.give_split_up(number, database);
        }
        Proposed::GivenUp
    }

    fn propose_each(&self, number: u64, database: DatabaseId, transaction: &Transaction, parts: &mut Parts) -> bool {
        let page_size = transaction.page_size;
        let mut head = PartHead { database, split: number, number: 0, chain: 0, page_size, last: false };
        let mut from = 0;
        let mut packed = Vec::new();
        loop {
            if parts.flying.len() >= WINDOW {
                self.hub.await_parts_free();
                if !self.await_one(parts) {
                    return false;
                }
            }
            let (part, signal) = self.hub.pending.register(None);
            let bytes = self.hub.config.part_bytes;
            let next = split::encode_next(self.origin(part), &head, transaction, from, bytes, &mut packed);
            let data = Bytes::from_owner(Buffer::copy_of(&packed));
            if next == transaction.pages.len() {
                self.hub.pending.abandon_unproposed(part);
                while !parts.flying.is_empty() {
                    if !self.await_one(parts) {
                        return false;
                    }
                }
                self.hub.deliver(Input::Propose { number, data });
                return true;
            }
            head = PartHead { number: head.number + 1, chain: split::chain_after(&data), ..head };
            from = next;
            self.hub.deliver(Input::Propose { number: part, data });
            parts.flying.push_back((part, signal));
        }
    }

    /// Waits for the oldest part; whether it has its place.
    fn await_one(&self, parts: &mut Parts) -> bool {
        let Some((part, signal)) = parts.flying.pop_front() else { return true };
        let deadline = self.hub.deadline(self.hub.commit_timeout());
        let decision = signal.wait(&self.hub.waiting, deadline, POLL, || self.hub.pending.take(part));
        let decision = decision.map(|(decision, _)| decision).or_else(|| self.hub.pending.abandon(part));
        parts.kept |= decision != Some(Decision::NotCommitted);
        matches!(decision, Some(Decision::Committed(_)))
    }
}
