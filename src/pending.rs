//! Proposals of this process that are not decided yet.
//!
//! ```text
//! Waiting --entered the log as (index, term)--> Entered --applied as itself--------------------> Committed
//!    |                                             |------refused at apply (base position)-----> NotCommitted
//!    |                                             |------another entry committed at its index-> NotCommitted
//!    |                                             \------entry of a later term committed
//!    |                                                    at a lower index---------------------> NotCommitted
//!    |--never entered (not the leader, ...)--------------------------------------------------> NotCommitted
//!    \--given up before the engine took it---------------------------------------------------> NotCommitted
//! ```
//!
//! "Overwritten in my own log" is no decision: a later leader may bring the entry back. A caller that stops waiting
//! *withdraws* its proposal if the engine has not taken it yet. Otherwise it *abandons* it; it stays here until it is
//! decided, since a node that still leads must not grant the write lock of that database before, nor propose once more to create it.
//!
//! Deliberately absent: who proposes and who applies. Pure bookkeeping under one lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use shoaldb_vfs::database::{Database, SessionId};
use shoaldb_vfs::transaction::{Position, Transaction};

use crate::catalogue::DatabaseName;
use crate::signal::Signal;
use crate::types::{EntryId, LogIndex, Term};

/// What became of a proposal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// Committed and shown at this index.
    Committed(LogIndex),
    /// Committed, but it changed nothing, for this reason, on every node alike (a database that exists already, ...).
    Refused(String),
    /// No node will ever apply it.
    NotCommitted,
    /// The node stopped, or a snapshot took the place of its entries, before it was decided.
    Lost,
}

/// The write session behind a proposal, for transactions.
#[derive(Clone)]
pub(crate) struct Writing {
    pub(crate) db: Arc<Database>,
    pub(crate) session: SessionId,
    pub(crate) base: Position,
    /// All of it, if it is proposed in parts.
    pub(crate) parted: Option<Arc<Transaction>>,
}

struct Slot {
    writing: Option<Writing>,
    /// The database that it would create.
    creates: Option<DatabaseName>,
    /// The engine took it out of the mailbox: in this same turn it enters the log, or is decided.
    taken: bool,
    entry: Option<EntryId>,
    decision: Option<Decision>,
    abandoned: bool,
    signal: Arc<Signal>,
}

/// What a caller that stops waiting leaves behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum GivenUp {
    /// It was decided in this moment.
    Decided(Decision, Option<EntryId>),
    /// It never came to the log and never will.
    Withdrawn,
    /// The engine is about to let it in or to turn it down: ask again.
    Entering,
    /// It is in the log as this entry. It stays here until it is decided.
    Abandoned(EntryId),
}

#[derive(Default)]
struct Slots {
    by_number: HashMap<u64, Slot>,
    /// Proposals by the index at which they entered the log, until an entry of that index is applied.
    by_index: BTreeMap<LogIndex, Vec<u64>>,
    /// Term of the last entry that was applied.
    applied_term: Term,
    stopped: bool,
}

/// All undecided proposals of one node.
#[derive(Default)]
pub(crate) struct Pending {
    slots: Mutex<Slots>,
    next: AtomicU64,
}

impl Pending {
    /// A new proposal: its number, and what is signalled when it is decided.
    pub(crate) fn register(&self, writing: Option<Writing>) -> (u64, Arc<Signal>) {
        self.add(writing, None)
    }

    /// The same, for one that creates a database.
    pub(crate) fn register_create(&self, name: DatabaseName) -> (u64, Arc<Signal>) {
        self.add(None, Some(name))
    }

    fn add(&self, writing: Option<Writing>, creates: Option<DatabaseName>) -> (u64, Arc<Signal>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let signal = Arc::new(Signal::default());
        let mut slots = self.slots.lock();
        let decision = slots.stopped.then_some(Decision::Lost);
        let slot =
            Slot { writing, creates, taken: false, entry: None, decision, abandoned: false, signal: signal.clone() };
        slots.by_number.insert(number, slot);
        (number, signal)
    }

    /// The engine takes the proposal; `false` if its caller withdrew it: it must not enter the log.
    pub(crate) fn take_up(&self, number: u64) -> bool {
        let mut slots = self.slots.lock();
        slots.by_number.get_mut(&number).map(|slot| slot.taken = true).is_some()
    }

    /// The proposal entered the log.
    pub(crate) fn on_entered(&self, number: u64, entry: EntryId) {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.by_number.get_mut(&number) {
            slot.entry = Some(entry);
            slots.by_index.entry(entry.index).or_default().push(number);
        }
    }

    /// The write session of a proposal that is still undecided.
    pub(crate) fn writing(&self, number: u64) -> Option<Writing> {
        self.slots.lock().by_number.get(&number).and_then(|slot| slot.writing.clone())
    }

    /// A planted mistake: the proposal counts as committed as soon as it is in the log of its leader.
    pub(crate) fn accept_at_once(&self, number: u64, index: LogIndex) {
        if self.writing(number).is_some_and(|writing| writing.db.accept(writing.session, Position(index.0))) {
            self.decide(number, Decision::Committed(index));
        }
    }

    /// A planted mistake: what another leader's entry replaces in the log of this node counts as not committed.
    pub(crate) fn give_up_replaced(&self, by: EntryId) {
        let slots = self.slots.lock();
        let there = slots.by_index.range(by.index..).flat_map(|(_, numbers)| numbers);
        let replaced = |number: &u64| slots.entry(*number).is_some_and(|entry| entry.term < by.term);
        let replaced: Vec<u64> = there.copied().filter(replaced).collect();
        drop(slots);
        replaced.into_iter().for_each(|number| self.decide(number, Decision::NotCommitted));
    }

    /// Decides a proposal; the first decision stays.
    pub(crate) fn decide(&self, number: u64, decision: Decision) {
        let mut slots = self.slots.lock();
        if let Some(signal) = slots.decide(number, decision) {
            drop(slots);
            signal.notify();
        }
    }

    /// The entry `applied` was applied. Any other proposal that stood at its index is out of the world, and so is every
    /// proposal of an earlier term behind it: who leads from now on has `applied`, and terms never fall along a log.
    pub(crate) fn on_applied(&self, applied: EntryId) {
        let mut slots = self.slots.lock();
        let numbers = slots.by_index.remove(&applied.index).unwrap_or_default();
        let mut lost: Vec<u64> =
            numbers.into_iter().filter(|number| slots.entry(*number).is_some_and(|entry| entry != applied)).collect();
        if applied.term > slots.applied_term {
            slots.applied_term = applied.term;
            let behind = slots.by_index.values().flatten();
            lost.extend(behind.filter(|number| slots.entry(**number).is_some_and(|entry| entry.term < applied.term)));
        }
        let signals: Vec<_> =
            lost.into_iter().filter_map(|number| slots.decide(number, Decision::NotCommitted)).collect();
        drop(slots);
        signals.iter().for_each(|signal| signal.notify());
    }

    /// A snapshot took the place of the entries up to `at`: which of them were whose is not known here any more.
    pub(crate) fn on_skipped(&self, at: EntryId) {
        let mut slots = self.slots.lock();
        let later = slots.by_index.split_off(&at.index.next());
        let skipped: Vec<u64> = std::mem::replace(&mut slots.by_index, later).into_values().flatten().collect();
        let signals: Vec<_> = skipped.into_iter().filter_map(|number| slots.decide(number, Decision::Lost)).collect();
        drop(slots);
        signals.iter().for_each(|signal| signal.notify());
        self.on_applied(at);
    }

    /// The decision, if there is one, and the entry; the caller has its answer and the proposal is forgotten.
    pub(crate) fn take(&self, number: u64) -> Option<(Decision, Option<EntryId>)> {
        self.slots.lock().take(number)
    }

    /// The proposal was never handed over: forget it.
    pub(crate) fn abandon_unproposed(&self, number: u64) {
        self.slots.lock().by_number.remove(&number);
    }

    /// The caller stops waiting.
    pub(crate) fn give_up(&self, number: u64) -> GivenUp {
        // One look under one lock: a decision in between would be kept for nobody, and the write lock closed for ever.
        let mut slots = self.slots.lock();
        if let Some((decision, entry)) = slots.take(number) {
            return GivenUp::Decided(decision, entry);
        }
        match slots.by_number.get_mut(&number) {
            Some(Slot { entry: Some(entry), abandoned, .. }) => {
                *abandoned = true;
                GivenUp::Abandoned(*entry)
            }
            Some(Slot { taken: true, .. }) => GivenUp::Entering,
            _ => {
                slots.by_number.remove(&number);
                GivenUp::Withdrawn
            }
        }
    }

    /// The caller does not care any more, and lets the proposal go its way. If a decision came in the meantime, here it is.
    pub(crate) fn abandon(&self, number: u64) -> Option<Decision> {
        let mut slots = self.slots.lock();
        let decided = slots.take(number).map(|(decision, _)| decision);
        if decided.is_none()
            && let Some(slot) = slots.by_number.get_mut(&number)
        {
            slot.abandoned = true;
        }
        decided
    }

    /// Whether nobody waits for a decision. What was abandoned does not count.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.lock().by_number.values().all(|slot| slot.abandoned)
    }

    /// Whether an abandoned transaction of this database may still be committed; or, if there is no such database, whether an
    /// abandoned proposal may still create it.
    pub(crate) fn has_abandoned(&self, db: &Arc<Database>) -> bool {
        let absent = (!db.is_bound()).then(|| db.name());
        self.slots.lock().by_number.values().any(|slot| {
            let writes = || slot.writing.as_ref().is_some_and(|writing| Arc::ptr_eq(&writing.db, db));
            slot.abandoned && (writes() || absent.is_some_and(|name| slot.creates(name)))
        })
    }

    /// Whether an abandoned proposal may still create a database of this name.
    pub(crate) fn has_abandoned_create(&self, name: &DatabaseName) -> bool {
        self.slots.lock().by_number.values().any(|slot| slot.abandoned && slot.creates(name.as_str()))
    }

    /// The node stops: nobody will decide what is left.
    pub(crate) fn stop(&self) {
        let mut slots = self.slots.lock();
        slots.stopped = true;
        let numbers: Vec<u64> = slots.by_number.keys().copied().collect();
        let signals: Vec<_> = numbers.into_iter().filter_map(|n| slots.decide(n, Decision::Lost)).collect();
        drop(slots);
        signals.iter().for_each(|signal| signal.notify());
    }
}

impl Slot {
    fn creates(&self, name: &str) -> bool {
        self.creates.as_ref().is_some_and(|creates| creates.as_str() == name)
    }
}

impl Slots {
    fn entry(&self, number: u64) -> Option<EntryId> {
        self.by_number.get(&number)?.entry
    }

    fn take(&mut self, number: u64) -> Option<(Decision, Option<EntryId>)> {
        let slot = self.by_number.get(&number)?;
        let (decision, entry) = (slot.decision.clone()?, slot.entry);
        self.by_number.remove(&number);
        Some((decision, entry))
    }

    fn decide(&mut self, number: u64, decision: Decision) -> Option<Arc<Signal>> {
        let slot = self.by_number.get_mut(&number)?;
        if slot.decision.is_some() {
            return None;
        }
        if slot.abandoned {
            self.by_number.remove(&number);
            return None;
        }
        slot.decision = Some(decision);
        Some(slot.signal.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> EntryId {
        EntryId { index: LogIndex(index), term: Term(term) }
    }

    fn decision(pending: &Pending, number: u64) -> Option<Decision> {
        pending.take(number).map(|(decision, _)| decision)
    }

    /// Shows INV-11.
    #[test]
    fn another_entry_at_the_index_is_proof_but_only_once_it_is_committed() {
        let pending = Pending::default();
        let (mine, _) = pending.register(None);
        let (other, _) = pending.register(None);
        pending.on_entered(mine, entry(5, 2));
        pending.on_entered(other, entry(6, 3));
        assert_eq!(decision(&pending, mine), None, "overwritten or not, nothing is decided yet");
        pending.on_applied(entry(5, 3));
        assert_eq!(decision(&pending, mine), Some(Decision::NotCommitted));
        pending.on_applied(entry(6, 3));
        assert_eq!(decision(&pending, other), None, "its own entry is decided by whoever applies it");
        pending.decide(other, Decision::Committed(LogIndex(6)));
        pending.decide(other, Decision::NotCommitted);
        assert_eq!(decision(&pending, other), Some(Decision::Committed(LogIndex(6))));
    }

    #[test]
    fn one_index_may_have_had_several_proposals_of_ours() {
        let pending = Pending::default();
        let (first, _) = pending.register(None);
        let (second, _) = pending.register(None);
        pending.on_entered(first, entry(5, 2));
        pending.on_entered(second, entry(5, 4));
        pending.on_applied(entry(5, 4));
        assert_eq!(decision(&pending, first), Some(Decision::NotCommitted));
        assert_eq!(decision(&pending, second), None);
    }

    /// Shows INV-11.
    #[test]
    fn an_entry_of_a_later_term_that_is_applied_before_is_proof_too() {
        let pending = Pending::default();
        let (mine, _) = pending.register(None);
        let (later, _) = pending.register(None);
        pending.on_entered(mine, entry(7, 2));
        pending.on_entered(later, entry(8, 3));
        pending.on_applied(entry(5, 2));
        assert_eq!(decision(&pending, mine), None);
        // Whoever leads from now on has entry 6 of term 3, and behind it none of term 2. Nobody else may ever write an
        // entry 7, so it must not be waited for.
        pending.on_applied(entry(6, 3));
        assert_eq!(decision(&pending, mine), Some(Decision::NotCommitted));
        assert_eq!(decision(&pending, later), None, "of the same term");
    }

    #[test]
    fn a_decision_that_comes_while_the_caller_gives_up_is_not_left_behind() {
        for round in 0..2000 {
            let pending = Arc::new(Pending::default());
            let (number, _) = pending.register(None);
            assert!(pending.take_up(number));
            pending.on_entered(number, entry(5, 2));
            let decider = std::thread::spawn({
                let pending = pending.clone();
                move || pending.decide(number, Decision::NotCommitted)
            });
            pending.give_up(number);
            decider.join().unwrap();
            assert!(pending.slots.lock().by_number.is_empty(), "round {round}");
        }
    }

    #[test]
    fn what_the_engine_has_not_taken_is_withdrawn_and_never_enters_the_log() {
        let pending = Pending::default();
        let (withdrawn, _) = pending.register(None);
        assert_eq!(pending.give_up(withdrawn), GivenUp::Withdrawn);
        assert!(!pending.take_up(withdrawn), "the engine lets it into the log all the same");

        let (refused, _) = pending.register(None);
        assert!(pending.take_up(refused));
        assert_eq!(pending.give_up(refused), GivenUp::Entering, "whether it enters is not known yet");
        pending.decide(refused, Decision::NotCommitted);
        assert_eq!(pending.give_up(refused), GivenUp::Decided(Decision::NotCommitted, None));

        let (entered, _) = pending.register(None);
        assert!(pending.take_up(entered));
        pending.on_entered(entered, entry(5, 2));
        assert_eq!(pending.give_up(entered), GivenUp::Abandoned(entry(5, 2)));
        assert!(pending.is_idle());
    }

    #[test]
    fn stopping_leaves_nobody_waiting() {
        let pending = Pending::default();
        let (before, _) = pending.register(None);
        pending.stop();
        let (after, _) = pending.register(None);
        assert_eq!(decision(&pending, before), Some(Decision::Lost));
        assert_eq!(decision(&pending, after), Some(Decision::Lost));
    }
}
