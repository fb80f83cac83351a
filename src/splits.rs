//! Transactions whose parts are still coming: which of them a part continues, and what ends one.
//!
//! ```text
//! committed entry                                        the open split of that database
//! part 0                                                 begins; another one that was open is dropped
//! next part: same origin, split, term; number and chain  goes on; with the last part it takes effect
//! any other part                                         is dropped, and the part has no effect
//! given up, of this very split                           is dropped
//! transaction, drop                                      is dropped
//! any entry of a newer term                              all are dropped
//! ```
//!
//! Only what is committed is looked at, in order, so all nodes decide alike: also a node that was started in between, as
//! long as it applies again from the first part of every split that is open, [`Splits::floor`]. A part whose beginning is
//! not known has no effect; that is right for one that was dropped before the entry at which a start begins.
//!
//! Where the pages of the parts that came are:
//!
//! ```text
//! came   kept here, as those of a WAL are kept
//! own    of a connection that waits in this process, for as long as that transaction may be committed; not a second time here
//! log    nowhere else: the log has no room, and what is kept here may be what it lacks; or the own transaction is given up
//! ```
//!
//! What is in the log alone is read from there when the last part comes. It is there: no start may begin behind the first
//! part of an open split, so nothing behind it is dropped.
//!
//! Deliberately absent: databases, reading the log, and where pages are kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use shoaldb_vfs::page::PageSize;
use shoaldb_vfs::transaction::{ChangedPage, Transaction};

use crate::catalogue::DatabaseId;
use crate::entry::Origin;
use crate::entry::split::{End, PartHead, chain_after};
use crate::types::{EntryId, LogIndex, NodeId};

/// The pages that came, or all pages of a transaction of this process. See the module's text.
pub(crate) enum Pages {
    /// As they came.
    Came(Vec<ChangedPage>),
    /// Of the connection that waits. Whoever gave the transaction up has let go of it, and of its room on the disk.
    Own(Weak<Transaction>),
    /// In the parts.
    InLog,
}

/// A split that has come to its end.
pub(crate) struct Whole {
    /// The index of its first part.
    pub(crate) first: LogIndex,
    pub(crate) pages: Pages,
}

/// What the parts of a split have in common, and what the next one must say.
struct Open {
    first: EntryId,
    proposer: (NodeId, u64),
    split: u64,
    page_size: PageSize,
    next: u32,
    chain: u128,
    pages: Pages,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Splits {
    open: BTreeMap<DatabaseId, Open>,
}

impl Splits {
    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Before every entry: a split of an older term is over.
    pub(crate) fn on_entry(&mut self, entry: EntryId) {
        self.open.retain(|_, open| open.first.term == entry.term);
    }

    /// An entry of this database that is no part: its split is over.
    pub(crate) fn end(&mut self, database: DatabaseId) {
        self.open.remove(&database);
    }

    /// The word of its proposer that this split is given up: it may come late, and more than once.
    pub(crate) fn give_up(&mut self, database: DatabaseId, origin: Origin, split: u64) {
        let is_this = |open: &Open| open.split == split && open.proposer == (origin.node, origin.session);
        if self.open.get(&database).is_some_and(is_this) {
            self.open.remove(&database);
        }
    }

    /// Whether this part begins a split or continues the open one. If not, it has no effect, and the open one is over.
    /// `own` is asked for the transaction if the part begins one.
    pub(crate) fn join(
        &mut self,
        entry: EntryId,
        origin: Origin,
        head: &PartHead,
        payload: &[u8],
        own: impl FnOnce() -> Option<Arc<Transaction>>,
    ) -> bool {
        let proposer = (origin.node, origin.session);
        let open = self.open.remove(&head.database);
        let open = match open {
            _ if head.number == 0 => Some(Open {
                first: entry,
                proposer,
                split: head.split,
                page_size: head.page_size,
                next: 0,
                chain: 0,
                pages: own().map_or_else(|| Pages::Came(Vec::new()), |own| Pages::Own(Arc::downgrade(&own))),
            }),
            open => open,
        };
        let goes_on = open.filter(|open| {
            (open.proposer, open.split, open.page_size) == (proposer, head.split, head.page_size)
                && (open.next, open.chain) == (head.number, head.chain)
                && open.first.term == entry.term
        });
        let Some(mut open) = goes_on else { return false };
        open.next = open.next.saturating_add(1);
        open.chain = chain_after(payload);
        self.open.insert(head.database, open);
        true
    }

    /// Where the pages of the part that just joined go, if they are needed.
    pub(crate) fn wanted(&mut self, database: DatabaseId) -> Option<&mut Vec<ChangedPage>> {
        match &mut self.open.get_mut(&database)?.pages {
            Pages::Came(pages) => Some(pages),
            Pages::Own(_) | Pages::InLog => None,
        }
    }

    /// Whether the split is one of a connection that waits in this process.
    pub(crate) fn is_own(&self, database: DatabaseId) -> bool {
        self.open.get(&database).is_some_and(|open| matches!(open.pages, Pages::Own(_)))
    }

    /// Lets go of all pages that came: the log has them, too. Whether there were any.
    pub(crate) fn leave_to_log(&mut self) -> bool {
        let came = self.open.values_mut().filter(|open| matches!(open.pages, Pages::Came(_)));
        came.map(|open| open.pages = Pages::InLog).count() > 0
    }

    /// The split has come to its end.
    pub(crate) fn take(&mut self, database: DatabaseId) -> Option<Whole> {
        self.open.remove(&database).map(|open| Whole { first: open.first.index, pages: open.pages })
    }

    /// Index of the first part of any open split: a node that starts must apply again from there on.
    pub(crate) fn floor(&self) -> Option<LogIndex> {
        self.open.values().map(|open| open.first.index).min()
    }
}

/// The transaction that these pages and the end of the last part make.
pub(crate) fn whole(pages: Vec<ChangedPage>, page_size: PageSize, end: End) -> Transaction {
    let End { base, size_after, checksum_after } = end;
    Transaction { base, page_size, size_after, checksum_after, pages }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Term;

    const ORIGIN: Origin = Origin { node: NodeId(1), session: 8, number: 1 };
    const APP: DatabaseId = DatabaseId(2);

    fn at(index: u64, term: u64) -> EntryId {
        EntryId { index: LogIndex(index), term: Term(term) }
    }

    fn head(number: u32, chain: u128) -> PartHead {
        PartHead { database: APP, split: 5, number, chain, page_size: PageSize::DEFAULT, last: false }
    }

    fn join(splits: &mut Splits, entry: EntryId, origin: Origin, head: PartHead) -> bool {
        splits.on_entry(entry);
        splits.join(entry, origin, &head, &[head.number as u8], || None)
    }

    /// With parts 0 and 1 at 10 and 12, in term 3.
    fn two_parts() -> Splits {
        let mut splits = Splits::default();
        assert!(join(&mut splits, at(10, 3), ORIGIN, head(0, 0)));
        assert!(join(&mut splits, at(12, 3), Origin { number: 2, ..ORIGIN }, head(1, chain_after(&[0]))));
        assert_eq!(splits.floor(), Some(LogIndex(10)));
        splits
    }

    /// Its proposer says it again until it is applied, and may have begun another one by then.
    /// Shows INV-23.
    #[test]
    fn a_split_is_given_up_by_a_word_about_this_very_one() {
        let other = Origin { session: 9, ..ORIGIN };
        for (database, origin, split, ends) in
            [(APP, ORIGIN, 4, false), (APP, other, 5, false), (DatabaseId(3), ORIGIN, 5, false), (APP, ORIGIN, 5, true)]
        {
            let mut splits = two_parts();
            splits.give_up(database, Origin { number: 70, ..origin }, split);
            assert_eq!(splits.floor().is_none(), ends, "{database:?} {origin:?} {split}");
        }
    }

    /// Shows INV-23.
    #[test]
    fn the_next_part_goes_on_and_any_other_ends_the_split() {
        let next = head(2, chain_after(&[1]));
        assert!(join(&mut two_parts(), at(13, 3), ORIGIN, next));
        for (what, entry, origin, other) in [
            ("another number", at(13, 3), ORIGIN, PartHead { number: 3, ..next }),
            ("a part again", at(13, 3), ORIGIN, head(1, chain_after(&[0]))),
            ("another chain", at(13, 3), ORIGIN, PartHead { chain: 1, ..next }),
            ("another split", at(13, 3), ORIGIN, PartHead { split: 6, ..next }),
            ("another page size", at(13, 3), ORIGIN, PartHead { page_size: PageSize::new(512).unwrap(), ..next }),
            ("another life of the node", at(13, 3), Origin { session: 9, ..ORIGIN }, next),
            ("another node", at(13, 3), Origin { node: NodeId(2), ..ORIGIN }, next),
            ("another term", at(13, 4), ORIGIN, next),
        ] {
            let mut splits = two_parts();
            assert!(!join(&mut splits, entry, origin, other), "{what}");
            assert_eq!(splits.floor(), None, "{what}: the split is over");
            assert!(!join(&mut splits, entry, ORIGIN, next), "{what}: it cannot be taken up again");
        }
    }

    #[test]
    fn an_entry_of_a_newer_term_or_of_the_database_ends_a_split_and_no_other_does() {
        let mut splits = two_parts();
        splits.on_entry(at(13, 3));
        splits.end(DatabaseId(3));
        assert_eq!(splits.floor(), Some(LogIndex(10)));
        splits.end(APP);
        assert_eq!(splits.floor(), None);
        let mut splits = two_parts();
        splits.on_entry(at(13, 4));
        assert_eq!(splits.floor(), None);
    }

    #[test]
    fn part_0_begins_anew_and_a_part_without_its_beginning_is_nothing() {
        let mut splits = two_parts();
        assert!(join(&mut splits, at(14, 3), ORIGIN, PartHead { split: 7, ..head(0, 0) }));
        assert_eq!(splits.floor(), Some(LogIndex(14)));
        assert!(!join(&mut Splits::default(), at(12, 3), ORIGIN, head(1, chain_after(&[0]))));
        assert!(!join(&mut Splits::default(), at(12, 3), ORIGIN, head(0, 1)), "nothing is before part 0");
    }
}
