//! Objects that were just made, for others that fetch from the same view at about the same time.
//!
//! ```text
//! asked for       it is there             its bytes
//!                 it is in the making     ask again in a moment; after MAKING it is made twice
//!                 neither                 make it; a mark says so until it is put here, or came to nothing
//! put             if PLACES are taken, or BYTES, the oldest go
//! kept            as long as at least two fetch from the view (`views.rs`)
//! ```
//!
//! Those who begin with nothing at the same time ask for the same objects one after another: what one of them has made is
//! what the others want next. It is of use only while they are close together: `views.rs` sees to that, too.
//!
//! Deliberately absent: waiting, and what time it is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::object::{ASKED_BYTES, Object, ViewId};

/// Bytes of objects that are kept, of all views together: a quarter of what a node that lends may grow by.
const BYTES: usize = 16 << 20;
/// Objects that are kept, of all views together: those are full if all are as large as they are asked for.
pub(crate) const PLACES: usize = BYTES / ASKED_BYTES;
/// How long an object may be in the making before it is made once more: reading it from a slow disk, or a thread that got stuck.
const MAKING: Duration = Duration::from_millis(100);

/// What there is of an object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    There(Arc<Vec<u8>>),
    InTheMaking,
    Missing,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    /// The oldest first.
    made: VecDeque<(ViewId, Object, Arc<Vec<u8>>)>,
    /// Since when. One for each thread that makes one, at most.
    making: Vec<(ViewId, Object, Duration)>,
}

impl Shelf {
    /// What there is of it.
    pub(crate) fn look(&self, view: ViewId, object: &Object, now: Duration) -> Found {
        if let Some((.., bytes)) = self.made.iter().find(|(of, name, _)| (*of, name) == (view, object)) {
            return Found::There(bytes.clone());
        }
        let is_it =
            |(of, name, since): &&(ViewId, Object, Duration)| (*of, name) == (view, object) && now < *since + MAKING;
        if self.making.iter().any(|it| is_it(&it)) { Found::InTheMaking } else { Found::Missing }
    }

    /// Somebody makes it from now on.
    pub(crate) fn mark(&mut self, view: ViewId, object: &Object, now: Duration) {
        self.unmark(view, object);
        self.making.push((view, object.clone(), now));
    }

    /// An object was made.
    pub(crate) fn put(&mut self, view: ViewId, object: &Object, bytes: Arc<Vec<u8>>) {
        self.unmark(view, object);
        self.made.retain(|(of, name, _)| (*of, name) != (view, object));
        let bytes_of =
            |made: &VecDeque<(ViewId, Object, Arc<Vec<u8>>)>| made.iter().map(|(.., it)| it.len()).sum::<usize>();
        while self.made.len() == PLACES || !self.made.is_empty() && bytes_of(&self.made) + bytes.len() > BYTES {
            self.made.pop_front();
        }
        self.made.push_back((view, object.clone(), bytes));
    }

    /// Nobody makes it any more.
    pub(crate) fn unmark(&mut self, view: ViewId, object: &Object) {
        self.making.retain(|(of, name, _)| (*of, name) != (view, object));
    }

    /// Drops what is of other views than those.
    pub(crate) fn keep(&mut self, is_shared: impl Fn(ViewId) -> bool) {
        self.made.retain(|(view, ..)| is_shared(*view));
    }

    /// How many objects are here.
    pub(crate) fn len(&self) -> usize {
        self.made.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::DatabaseId;

    const VIEW: ViewId = ViewId(7);
    const OTHER: ViewId = ViewId(8);

    fn object(first: u32) -> Object {
        Object::Ranges { database: DatabaseId(2), first, count: 1 }
    }

    fn bytes(first: u32) -> Arc<Vec<u8>> {
        Arc::new(vec![first as u8; 3])
    }

    #[test]
    fn an_object_is_made_by_one_and_the_others_get_what_that_one_made() {
        let (mut shelf, now, moment) = (Shelf::default(), Duration::from_secs(5), Duration::from_millis(1));
        assert_eq!(shelf.look(VIEW, &object(1), now), Found::Missing);
        shelf.mark(VIEW, &object(1), now);
        assert_eq!(shelf.look(VIEW, &object(1), now), Found::InTheMaking);
        assert_eq!(shelf.look(OTHER, &object(1), now), Found::Missing, "of another view it is another object");
        assert_eq!(shelf.look(VIEW, &object(2), now), Found::Missing);
        shelf.put(VIEW, &object(1), bytes(1));
        for _ in 0..2 {
            assert_eq!(shelf.look(VIEW, &object(1), now), Found::There(bytes(1)));
        }
        // One that came to nothing is made by the next one who asks; so is one that takes too long.
        shelf.mark(VIEW, &object(2), now);
        shelf.unmark(VIEW, &object(2));
        assert_eq!(shelf.look(VIEW, &object(2), now), Found::Missing);
        shelf.mark(VIEW, &object(2), now);
        assert_eq!(shelf.look(VIEW, &object(2), now + MAKING - moment), Found::InTheMaking);
        assert_eq!(shelf.look(VIEW, &object(2), now + MAKING), Found::Missing);
        shelf.mark(VIEW, &object(2), now + MAKING);
        assert_eq!(shelf.look(VIEW, &object(2), now + MAKING), Found::InTheMaking);
        // Both of them put it here.
        shelf.put(VIEW, &object(2), bytes(2));
        shelf.put(VIEW, &object(2), bytes(2));
        assert_eq!((shelf.len(), shelf.making.len()), (2, 0));
    }

    #[test]
    fn only_so_many_objects_are_kept_and_the_oldest_goes() {
        let mut shelf = Shelf::default();
        for (number, is) in (0..3 * PLACES as u32).zip((1..=PLACES).chain(std::iter::repeat(PLACES))) {
            shelf.put(if number % 2 == 0 { VIEW } else { OTHER }, &object(number), bytes(number));
            assert_eq!(shelf.len(), is);
        }
        let kept: Vec<u8> = shelf.made.iter().map(|(.., bytes)| bytes[0]).collect();
        assert_eq!(kept, (2 * PLACES as u8..3 * PLACES as u8).collect::<Vec<_>>());
        shelf.keep(|view| view == OTHER);
        assert!(shelf.made.iter().all(|(view, ..)| *view == OTHER) && shelf.len() == PLACES / 2);
        // Whoever asks for more at once finds room for fewer of them.
        for number in 0..20 {
            shelf.put(VIEW, &object(number), Arc::new(vec![0; 2 << 20]));
        }
        assert_eq!(shelf.len(), 8);
    }
}
