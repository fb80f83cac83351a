//! What writers were told, and whether it was true.
//!
//! ```text
//! told             found in the end      verdict
//! acknowledged     once                  kept
//! acknowledged     never                 LOST
//! not committed    never                 kept
//! not committed    at all                RISEN: it was to be safe to run it again
//! untried          as not committed      never sent, or the statement itself was refused: no node gave its word
//! unknown          once or never         kept
//! anything         more than once        DOUBLED
//! never written    at all                STRANGE
//! ```
//!
//! Each attempt to write has a number of its own, also when it repeats one that failed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::wire::Fate;

/// What one attempt was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Acknowledged,
    NotCommitted,
    Untried,
    Unknown,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Ledger {
    next: AtomicU64,
    acknowledged: AtomicU64,
    told: Mutex<HashMap<u64, Told>>,
}

/// The judgement, with the numbers of what went wrong.
#[derive(Default, Debug)]
pub(crate) struct Verdict {
    pub(crate) acknowledged: usize,
    pub(crate) found: usize,
    /// Attempts of which a node said so.
    pub(crate) not_committed: usize,
    pub(crate) untried: usize,
    pub(crate) unknown: usize,
    pub(crate) unknown_found: usize,
    pub(crate) lost: Vec<u64>,
    pub(crate) risen: Vec<u64>,
    pub(crate) doubled: Vec<u64>,
    pub(crate) strange: Vec<u64>,
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.lost.is_empty() && self.risen.is_empty() && self.doubled.is_empty() && self.strange.is_empty()
    }
}

impl Ledger {
    /// A number that was never used. Until something is told about it, it is unknown.
    pub(crate) fn begin(&self) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.told.lock().insert(number, Told::Unknown);
        number
    }

    pub(crate) fn acknowledged(&self, number: u64) {
        self.told.lock().insert(number, Told::Acknowledged);
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, number: u64, outcome: Fate) {
        let told = match outcome {
            Fate::NotCommitted => Told::NotCommitted,
            Fate::NotSent | Fate::Refused => Told::Untried,
            Fate::Unknown => return,
        };
        self.told.lock().insert(number, told);
    }

    /// How many were acknowledged so far.
    pub(crate) fn count(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Judges what a node has.
    pub(crate) fn judge(&self, found: &[u64]) -> Verdict {
        let told = self.told.lock();
        let mut times: HashMap<u64, u32> = HashMap::new();
        for number in found {
            *times.entry(*number).or_default() += 1;
        }
        let mut verdict = Verdict::default();
        for (number, told) in told.iter() {
            let found = times.remove(number).unwrap_or(0);
            match told {
                Told::Acknowledged => verdict.acknowledged += 1,
                Told::NotCommitted => verdict.not_committed += 1,
                Told::Untried => verdict.untried += 1,
                Told::Unknown => verdict.unknown += 1,
            }
            match (told, found) {
                (_, 2..) => verdict.doubled.push(*number),
                (Told::Acknowledged, 1) => verdict.found += 1,
                (Told::Acknowledged, 0) => verdict.lost.push(*number),
                (Told::NotCommitted | Told::Untried, 1) => verdict.risen.push(*number),
                (Told::Unknown, 1) => verdict.unknown_found += 1,
                (Told::NotCommitted | Told::Untried | Told::Unknown, 0) => {}
            }
        }
        verdict.strange = times.into_keys().collect();
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        let ledger = Ledger::default();
        let numbers: Vec<u64> = (0..10).map(|_| ledger.begin()).collect();
        numbers[..3].iter().for_each(|n| ledger.acknowledged(*n));
        numbers[3..5].iter().for_each(|n| ledger.failed(*n, Fate::NotCommitted));
        numbers[5..8].iter().for_each(|n| ledger.failed(*n, Fate::Unknown));
        numbers[8..].iter().for_each(|n| ledger.failed(*n, Fate::NotSent));
        let mut verdict = ledger.judge(&[1, 2, 2, 4, 6, 9, 99]);
        assert_eq!((verdict.acknowledged, verdict.found, verdict.not_committed), (3, 1, 2));
        assert_eq!((verdict.unknown, verdict.unknown_found, verdict.untried), (3, 1, 2));
        verdict.risen.sort_unstable();
        assert_eq!((verdict.lost, verdict.risen), (vec![3], vec![4, 9]));
        assert_eq!((verdict.doubled, verdict.strange), (vec![2], vec![99]));
        assert!(ledger.judge(&[1, 2, 3]).is_good());
        assert!(!ledger.judge(&[1, 2]).is_good());
    }
}
