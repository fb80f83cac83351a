//! Who said over a port what is none of our words: each is told of once, all are counted.
//!
//! Anybody may reach a port and say anything, as often as they like: what is remembered of them is bounded, and so is what is told.
//!
//! Deliberately absent: ports, and what our words are.

use std::collections::BTreeSet;

/// So many are told of, and no more in this life of the node: who comes from a new address each time fills no log.
const TOLD: usize = 64;

/// See the module's text.
#[derive(Default, Debug)]
pub(crate) struct Malformed {
    count: u64,
    told: BTreeSet<String>,
}

/// Whether people are to hear of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tell {
    /// They have heard of this one, or of too many.
    No,
    /// They have not.
    Yes,
    /// They have not, and from now on they hear of nobody any more.
    Last,
}

impl Malformed {
    /// Somebody did.
    pub(crate) fn note(&mut self, who: &str) -> Tell {
        self.count += 1;
        if self.told.len() >= TOLD || !self.told.insert(who.to_string()) {
            return Tell::No;
        }
        if self.told.len() == TOLD { Tell::Last } else { Tell::Yes }
    }

    /// How often somebody did.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_of_once_and_not_too_many() {
        let mut book = Malformed::default();
        let who = |n: usize| n.to_string();
        assert_eq!((book.note("a"), book.note("a"), book.note("b")), (Tell::Yes, Tell::No, Tell::Yes));
        let rest: Vec<Tell> = (3..=TOLD + 3).map(|n| book.note(&who(n))).collect();
        let (last, after) = (TOLD - 3, TOLD - 2);
        assert!(rest[..last].iter().all(|tell| *tell == Tell::Yes));
        assert_eq!((rest[last], rest[after]), (Tell::Last, Tell::No));
        assert_eq!((book.note(&who(3)), book.told.len()), (Tell::No, TOLD));
        assert_eq!(book.count(), 3 + rest.len() as u64 + 1);
    }
}
