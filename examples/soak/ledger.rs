//! What one writer was told about its transactions on one database, and whether it is true.
//!
//! Every transaction adds 1 to the writer's total and writes its number, which is never used again, into one of its slots.
//! A writer has one transaction at a time, so what its next acknowledged one saw settles all that were unknown:
//!
//! ```text
//! told             the total afterwards           the slot
//! acknowledged     grows by 1, else it is LOST    holds its number until another one is written
//! not committed    stays, else it has RISEN       never holds its number
//! unknown          either, at most 1 for each     either, until an acknowledged one was written
//! ```
//!
//! So the account is checked with every transaction, and has the size of the writer's slots however long it is kept.

use std::collections::BTreeMap;

use crate::wire::Fate;

#[derive(Default)]
pub(crate) struct Account {
    /// Transactions that are certainly committed.
    certain: u64,
    /// Transactions since then of which nobody knows.
    unknown: u64,
    slots: BTreeMap<u64, Claim>,
    last_number: u64,
}

/// What a slot may hold.
#[derive(Default, Clone)]
struct Claim {
    certain: Option<u64>,
    perhaps: Vec<u64>,
}

impl Account {
    /// How many transactions are certainly committed.
    pub(crate) fn certain(&self) -> u64 {
        self.certain
    }

    /// A number for the next attempt.
    pub(crate) fn begin(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// `total` is what the transaction made it, `before` what the slot held until then.
    pub(crate) fn acknowledged(
        &mut self,
        slot: u64,
        number: u64,
        total: u64,
        before: Option<u64>,
    ) -> Result<(), String> {
        self.check_total(total.saturating_sub(1))?;
        self.check_slot(slot, before)?;
        (self.certain, self.unknown) = (total, 0);
        self.slots.insert(slot, Claim { certain: Some(number), perhaps: Vec::new() });
        Ok(())
    }

    pub(crate) fn failed(&mut self, slot: u64, number: u64, fate: Fate) {
        if fate != Fate::NotCommitted {
            self.unknown += 1;
            self.slots.entry(slot).or_default().perhaps.push(number);
        }
    }

    /// What a node has in the end.
    pub(crate) fn judge(&self, total: u64, slots: &BTreeMap<u64, u64>) -> Result<(), String> {
        self.check_total(total)?;
        let all = self.slots.keys().chain(slots.keys());
        all.into_iter().try_for_each(|slot| self.check_slot(*slot, slots.get(slot).copied()))
    }

    fn check_total(&self, found: u64) -> Result<(), String> {
        let Account { certain, unknown, .. } = self;
        if found < *certain {
            return Err(format!("LOST: {certain} transactions are certain, {found} are there"));
        }
        if found > certain + unknown {
            return Err(format!("RISEN: {certain} transactions are certain and {unknown} unknown, {found} are there"));
        }
        Ok(())
    }

    fn check_slot(&self, slot: u64, found: Option<u64>) -> Result<(), String> {
        let claim = self.slots.get(&slot).cloned().unwrap_or_default();
        if found == claim.certain || found.is_some_and(|number| claim.perhaps.contains(&number)) {
            return Ok(());
        }
        Err(format!("slot {slot} holds {found:?}; it was to hold {:?} or one of {:?}", claim.certain, claim.perhaps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An account with one acknowledged transaction, and then one of each of these fates.
    fn account(fates: &[Fate]) -> Account {
        let mut account = Account::default();
        let number = account.begin();
        account.acknowledged(5, number, 1, None).unwrap();
        for fate in fates {
            let number = account.begin();
            account.failed(5, number, *fate);
        }
        account
    }

    fn judge(account: &Account, total: u64, slot: u64) -> bool {
        account.judge(total, &BTreeMap::from([(5, slot)])).is_ok()
    }

    #[test]
    fn every_row_of_the_table() {
        let acknowledged = account(&[]);
        assert!(judge(&acknowledged, 1, 1));
        assert!(!judge(&acknowledged, 0, 1), "lost");
        assert!(acknowledged.judge(1, &BTreeMap::new()).is_err(), "its slot is empty");
        let refused = account(&[Fate::NotCommitted]);
        assert!(judge(&refused, 1, 1));
        assert!(!judge(&refused, 2, 1), "risen");
        assert!(!judge(&refused, 1, 2), "risen in its slot");
        let unknown = account(&[Fate::Unknown, Fate::Unknown]);
        for (total, slot, good) in [(1, 1, true), (2, 2, true), (3, 3, true), (4, 3, false), (3, 4, false)] {
            assert_eq!(judge(&unknown, total, slot), good, "{total} {slot}");
        }
    }

    #[test]
    fn the_next_acknowledged_one_settles_what_was_unknown() {
        let mut account = account(&[Fate::Unknown]);
        let number = account.begin();
        account.acknowledged(5, number, 3, Some(2)).unwrap();
        assert!(judge(&account, 3, 3) && !judge(&account, 2, 3) && !judge(&account, 4, 3) && !judge(&account, 3, 2));
        let number = account.begin();
        assert!(account.acknowledged(5, number, 3, Some(3)).is_err(), "lost meanwhile");
        assert!(account.acknowledged(5, number, 5, Some(3)).is_err(), "risen meanwhile");
        assert!(account.acknowledged(5, number, 4, Some(1)).is_err(), "the slot went back");
        account.acknowledged(5, number, 4, Some(3)).unwrap();
    }
}
