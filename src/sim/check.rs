//! What must hold. Nothing here knows how the cluster works: it compares what clients were told with what they read, and
//! nodes with each other.
//!
//! ```text
//! promise                                                    checked
//! an acknowledged transaction is there, where it said        at each acknowledgement, at the end
//! NotCommitted is never there; Unknown is there or not       at the end
//! a transaction begins with all that was acknowledged        at each acknowledgement
//! a linearizable read sees all that was acknowledged or read at each such read
//! a read sees whole transactions (bank, counts, register)    at each read on every node
//! after equally many transactions there is the same content  at each read of all pages; the last transaction at each read
//! a local read never goes back in one process                at each read
//! equal checksums at equal positions of one database         after each event, over the whole run
//! positions never go back in one process                     after each event
//! members are the same at the same index                     after each event (members.rs)
//! what people were told of the members is so                 at the end (members.rs)
//! one leader per term                                        after each event
//! content equal to plain SQLite fed with the transactions    at the end, on every node
//! transactions on lists have an order (lists.rs)             at the end
//! a second database is what was told of it (other.rs)        at each read, at the end on every node
//! a receipt is answered the same everywhere, and truly       at any time, at the end
//! integrity_check                                            at the end, on every node
//! a majority goes on while others are switched off             after such a time (aimed.rs)
//! a cluster without faults is well again, its reads succeed  at the end (world.rs, last.rs)
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::world::{At, State};
use super::{lists, other, rot};
use shoaldb_vfs::error::Refusal;

use crate::raft::Role;
use crate::receipt::{Receipt, ReceiptOutcome};

/// Accounts, and what each starts with.
pub(super) const ACCOUNTS: u64 = 8;
pub(super) const BALANCE: i64 = 100;

/// What one read saw of the database: it is the state after `ord` transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    pub(super) ord: u64,
    pub(super) count: u64,
    pub(super) sum: i64,
    /// The unique number of the last transaction, as the register has it.
    pub(super) last: i64,
    pub(super) last_item: i64,
    /// How many notes there are, and a sum over them, if they were read.
    pub(super) notes: Option<(i64, i64)>,
}

#[derive(Default)]
pub(super) struct Checks {
    next: u64,
    /// Unique number -> place in the order of transactions, as the transaction itself read it.
    pub(super) acknowledged: BTreeMap<u64, u64>,
    pub(super) refused: BTreeSet<u64>,
    pub(super) unknown: BTreeSet<u64>,
    /// What each transaction did.
    pub(super) scripts: BTreeMap<u64, Vec<String>>,
    /// The furthest place that was acknowledged.
    pub(super) acknowledged_to: u64,
    /// The furthest place that any read showed.
    shown_to: u64,
    /// What the notes were after so many transactions.
    notes: BTreeMap<u64, (i64, i64)>,
    /// Which was the last of so many transactions.
    pub(super) lasts: BTreeMap<u64, i64>,
    shown: BTreeMap<At, u64>,
    checksums: BTreeMap<(u64, u64), (At, u128)>,
    positions: BTreeMap<(At, u64), u64>,
    leaders: BTreeMap<u64, At>,
    /// Transactions on lists.
    pub(super) lists: Vec<lists::Transaction>,
    /// Receipts of transactions, by unique number.
    receipts: BTreeMap<u64, Receipt>,
    /// What a node said about one, once it knew.
    settled: BTreeMap<u64, bool>,
    led: BTreeMap<At, u64>,
    /// Bytes of the largest entry so far.
    pub(super) largest_entry: u64,
    /// What was told of the second database.
    pub(super) other: other::Other,
    /// What has rotted so far.
    pub(super) rotten: Vec<rot::Rotten>,
}

impl Checks {
    /// A new unique number.
    pub(super) fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The furthest place that is committed, as far as clients know: acknowledged, or shown by a read on any node.
    pub(super) fn known_to(&self) -> u64 {
        self.acknowledged_to.max(self.shown_to)
    }

    pub(super) fn on_crash(&mut self, at: At) {
        self.shown.remove(&at);
        self.positions.retain(|(node, _), _| *node != at);
        self.led.remove(&at);
    }
}

impl State {
    /// A later moment than any before.
    pub(super) fn moment(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The receipt of a transaction that was acknowledged, or whose outcome is not known.
    pub(super) fn keep_receipt(&mut self, unique: u64, receipt: Option<Receipt>) {
        if let Some(receipt) = receipt.filter(|_| !self.checks.refused.contains(&unique)) {
            self.checks.receipts.insert(unique, receipt);
        }
    }

    /// Somebody asks a node what became of a transaction.
    pub(super) fn ask_about_a_receipt(&mut self, at: At) {
        let count = self.checks.receipts.len() as u64;
        let unsettled = self.checks.unknown.iter().filter(|unique| self.checks.receipts.contains_key(unique));
        let unsettled = unsettled.copied().nth(self.dice.below(8) as usize);
        let any = || self.checks.receipts.keys().copied().nth(self.dice.below(count) as usize);
        if let Some(unique) = unsettled.or_else(any) {
            self.settle_receipt(at, unique);
        }
    }

    /// Whether this node knew.
    fn settle_receipt(&mut self, at: At, unique: u64) -> bool {
        let receipt = self.checks.receipts.get(&unique).copied();
        let Some((receipt, hub)) = receipt.zip(self.slots[at].hub()) else { return false };
        let committed = match hub.outcome_of(receipt.entry) {
            ReceiptOutcome::Committed(_) => true,
            ReceiptOutcome::NotCommitted => false,
            ReceiptOutcome::Unknown(_) => return false,
        };
        self.count(if committed { "receipts of what is committed" } else { "receipts of what is not" });
        let first = *self.checks.settled.entry(unique).or_insert(committed);
        if first != committed {
            self.fail(format!("u{unique} {receipt}: committed {first}, they said; n{} says {committed}", at + 1));
        }
        if !committed && self.checks.acknowledged.contains_key(&unique) {
            self.fail(format!("u{unique} {receipt} was acknowledged; n{} says that it is not committed", at + 1));
        }
        true
    }

    /// At the end every node is asked about every receipt, and what was said is compared with what is there.
    pub(super) fn check_receipts(&mut self, there: &BTreeMap<u64, u64>) {
        // What came within a snapshot is not remembered, nor what a start could not try again; somebody knows everything else.
        let remembers = |at: &At| !self.slots[*at].got_snapshot;
        let nobody = !self.participants().iter().any(remembers);
        for unique in self.checks.receipts.keys().copied().collect::<Vec<_>>() {
            let knows: Vec<bool> = self.participants().into_iter().map(|at| self.settle_receipt(at, unique)).collect();
            if !nobody && !knows.contains(&true) {
                self.fail(format!("all nodes have applied all there is, and none knows what became of u{unique}"));
            }
        }
        let settled = self.checks.settled.clone();
        for (unique, _) in settled.iter().filter(|(unique, committed)| there.contains_key(unique) != **committed) {
            let is = if there.contains_key(unique) { "there" } else { "not there" };
            self.fail(format!("u{unique} is {is}, and its receipt says otherwise"));
        }
    }

    /// A transaction was acknowledged that read its own place, and began when `before` was acknowledged.
    pub(super) fn acknowledged(&mut self, unique: u64, ord: u64, before: u64) {
        if ord <= before {
            self.fail(format!(
                "acknowledged u{unique} at place {ord}, but place {before} was acknowledged before it began"
            ));
        }
        let other = self.checks.acknowledged.iter().find(|(_, place)| **place == ord).map(|(other, _)| *other);
        if let Some(other) = other {
            self.fail(format!("u{unique} and u{other} were both acknowledged at place {ord}"));
        }
        self.checks.acknowledged.insert(unique, ord);
        self.checks.acknowledged_to = self.checks.acknowledged_to.max(ord);
    }

    /// A whole read on one node.
    pub(super) fn saw(&mut self, at: At, life: u64, seen: Seen, how: &str) {
        if self.shows_rot(at) {
            self.count("reads of what rotted in use");
            return;
        }
        let Seen { ord, count, sum, last, last_item, notes } = seen;
        let whole = ACCOUNTS as i64 * BALANCE;
        if count != ord {
            self.fail(format!("{how} read on n{}: {count} transactions, the last has place {ord}", at + 1));
        }
        if sum != whole && ord > 0 {
            self.fail(format!("{how} read on n{}: the accounts hold {sum}, not {whole}", at + 1));
        }
        if last != last_item {
            self.fail(format!("{how} read on n{}: the register has u{last}, the last item is u{last_item}", at + 1));
        }
        let first = *self.checks.lasts.entry(ord).or_insert(last);
        if first != last {
            self.fail(format!(
                "{how} read on n{}: the last of {ord} transactions is u{last}, elsewhere u{first}",
                at + 1
            ));
        }
        if let Some(notes) = notes {
            let first = *self.checks.notes.entry(ord).or_insert(notes);
            if first != notes {
                self.fail(format!(
                    "{how} read on n{}: after {ord} transactions the notes are {notes:?}, elsewhere {first:?}",
                    at + 1
                ));
            }
        }
        self.checks.shown_to = self.checks.shown_to.max(ord);
        if self.slots[at].life != life {
            return;
        }
        let before = self.checks.shown.get(&at).copied().unwrap_or(0);
        if ord < before {
            self.fail(format!("{how} read on n{} shows {ord} transactions, an earlier one showed {before}", at + 1));
        }
        self.checks.shown.insert(at, before.max(ord));
    }

    /// Compares the nodes, after each event.
    pub(super) fn observe(&mut self) {
        let mut wrong = Vec::new();
        let mut leads = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(hub) = slot.hub() else { continue };
            let leadership = hub.leadership();
            if leadership.role == Role::Leader {
                let other = *self.checks.leaders.entry(leadership.term.0).or_insert(at);
                if other != at {
                    wrong.push(format!("n{} and n{} both lead term {}", other + 1, at + 1, leadership.term));
                }
                if self.checks.led.insert(at, leadership.term.0) != Some(leadership.term.0) {
                    leads.push((at, leadership.term));
                }
            }
            for (id, db) in hub.databases.all() {
                let retired = db.retired();
                // What a snapshot lacks since an entry that is still to come drops it is shown to nobody.
                if retired == Some(Refusal::Dropped) {
                    continue;
                }
                // It goes on where the copy is that is fetched in its place.
                if self.has_rotted(at) && retired.is_some() {
                    self.checks.positions.remove(&(at, id.0));
                    continue;
                }
                let (position, checksum) = db.checksum();
                // Also where it has not moved: its files may have been exchanged.
                let before = self.checks.positions.insert((at, id.0), position.0);
                if before.is_some_and(|before| before > position.0) {
                    wrong.push(format!("n{}: database {id} went back from {before:?} to {position}", at + 1));
                }
                let (first, expected) = *self.checks.checksums.entry((id.0, position.0)).or_insert((at, checksum.0));
                if expected != checksum.0 {
                    wrong.push(format!(
                        "database {id} at position {position}: n{} has checksum {expected:032x}, n{} {:032x}",
                        first + 1,
                        at + 1,
                        checksum.0
                    ));
                }
            }
        }
        wrong.extend(self.observe_members());
        let fetching = !leads.is_empty() && self.fetching();
        if fetching {
            self.count("leaders changed during a transfer");
        }
        for (at, term) in leads {
            self.note(format_args!("n{} leads term {term}", at + 1));
            self.count("leaderships");
            self.hunt(at);
        }
        for what in wrong {
            self.fail(what);
        }
    }
}
