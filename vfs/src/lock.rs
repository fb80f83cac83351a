//! Who holds which lock of one database: the table behind `xShmLock`, and the queue in front of the write lock.
//!
//! SQLite's wal-index has eight locks; all connections live in this process, so a table in memory is enough:
//!
//! ```text
//! 0 WRITE   1 CKPT   2 RECOVER   3..=7 READ_LOCK(0..=4)
//! ```
//!
//! The WRITE lock is not in the table: it belongs to a *write session* (see `database.rs`), since a fence can take it
//! away from its holder. What is here for it is the [`WriteQueue`].
//!
//! **The queue.** With SQLite's own busy handler, writers sleep for random times and race for the lock when they wake;
//! some starve for seconds. Here a writer that finds the lock taken gets a *ticket* and `SQLITE_BUSY`. SQLite calls the
//! busy handler, whose sleep comes to our `xSleep`: there the thread waits until its ticket is first and the lock is
//! free, or until the sleep is over. Then SQLite tries again, with a new snapshot, and finds the lock kept for it. A
//! connection without a busy handler never sleeps: its user gets `SQLITE_BUSY` at once, as in stock SQLite. So a ticket
//! keeps its place from the moment it is drawn, but it holds others off only once it was slept on: else a user who was
//! refused and went away would keep a free lock from everybody. Between two sleeps it is honoured for a short grace
//! ([`GRACE`], [`RESERVATION`]).
//!
//! Pure: time comes in as a value, threads are the caller's business. Deliberately absent: waiting.

use std::collections::VecDeque;
use std::time::Duration;

/// Number of locks in a wal-index.
pub const LOCKS: usize = 8;
/// Lock of the one writer.
pub const WRITE: usize = 0;
/// Lock of the one checkpointer.
pub const CHECKPOINT: usize = 1;
/// Lock of whoever builds the wal-index anew from the WAL.
pub const RECOVER: usize = 2;
/// First read lock.
pub const READ_0: usize = 3;

/// How long a ticket is kept that nobody sleeps on: a thread is on its way from `SQLITE_BUSY` to the busy handler.
pub const GRACE: Duration = Duration::from_millis(20);
/// How long a free write lock is kept for the first ticket while its thread is on the way back to take it.
pub const RESERVATION: Duration = Duration::from_millis(3);

/// One open connection to one database.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u64);

#[derive(Default, Debug)]
struct Slot {
    shared: Vec<FileId>,
    exclusive: Option<FileId>,
}

/// The locks other than WRITE. Invariant: a lock is held by any number of files shared, or by one exclusively.
#[derive(Default, Debug)]
pub struct LockTable {
    slots: [Slot; LOCKS],
}

impl LockTable {
    /// Takes the locks `range` shared; all or none.
    pub fn try_shared(&mut self, file: FileId, range: std::ops::Range<usize>) -> bool {
        if self.slots[range.clone()].iter().any(|slot| slot.exclusive.is_some_and(|holder| holder != file)) {
            return false;
        }
        for slot in &mut self.slots[range] {
            slot.shared.push(file);
        }
        true
    }

    /// Takes the locks `range` exclusively; all or none.
    pub fn try_exclusive(&mut self, file: FileId, range: std::ops::Range<usize>) -> bool {
        let free = |slot: &Slot| {
            slot.exclusive.is_none_or(|holder| holder == file) && slot.shared.iter().all(|holder| *holder == file)
        };
        if !self.slots[range.clone()].iter().all(free) {
            return false;
        }
        for slot in &mut self.slots[range] {
            slot.exclusive = Some(file);
        }
        true
    }

    /// Gives back shared locks; those not held are left alone.
    pub fn unlock_shared(&mut self, file: FileId, range: std::ops::Range<usize>) {
        for slot in &mut self.slots[range] {
            if let Some(at) = slot.shared.iter().position(|holder| *holder == file) {
                slot.shared.swap_remove(at);
            }
        }
    }

    /// Gives back exclusive locks; those not held are left alone.
    pub fn unlock_exclusive(&mut self, file: FileId, range: std::ops::Range<usize>) {
        for slot in &mut self.slots[range] {
            if slot.exclusive == Some(file) {
                slot.exclusive = None;
            }
        }
    }

    /// Whether the file holds any read lock.
    pub fn is_reader(&self, file: FileId) -> bool {
        self.read_mark(file).is_some()
    }

    /// Which read lock the file holds, if any: the number of its mark.
    pub fn read_mark(&self, file: FileId) -> Option<usize> {
        self.slots[READ_0..].iter().position(|slot| slot.shared.contains(&file))
    }

    /// The file holds nothing any more: it is closed, or its read transaction was ended.
    pub fn forget(&mut self, file: FileId) {
        for slot in &mut self.slots {
            slot.shared.retain(|holder| *holder != file);
            if slot.exclusive == Some(file) {
                slot.exclusive = None;
            }
        }
    }
}

/// One writer in the queue.
#[derive(Debug)]
struct Ticket {
    file: FileId,
    /// The thread that sleeps on the ticket; `None` while it is on its way.
    sleeper: Option<std::thread::Thread>,
    /// Somebody sleeps on it, or did: there is a busy handler that will come back. Only then it holds others off.
    slept: bool,
    /// Until when the ticket counts without a sleeper.
    honoured_until: Duration,
}

/// Writers in order of arrival.
#[derive(Default, Debug)]
pub struct WriteQueue {
    tickets: VecDeque<Ticket>,
}

impl WriteQueue {
    /// Whether `file` may take a free lock at time `now`: nobody whose ticket holds others off is before it.
    pub fn may_take(&mut self, file: FileId, now: Duration) -> bool {
        self.drop_lapsed(now);
        self.tickets.iter().find(|ticket| ticket.slept || ticket.file == file).is_none_or(|first| first.file == file)
    }

    /// `file` found the lock taken: it queues, or keeps its place.
    pub fn enqueue(&mut self, file: FileId, now: Duration) {
        match self.tickets.iter_mut().find(|ticket| ticket.file == file) {
            Some(ticket) => ticket.honoured_until = now + GRACE,
            None => self.tickets.push_back(Ticket { file, sleeper: None, slept: false, honoured_until: now + GRACE }),
        }
    }

    /// `file` goes first, for as long as a reservation lasts: it had its turn, but its snapshot was too old to write.
    pub fn put_first(&mut self, file: FileId, now: Duration) {
        self.leave(file);
        self.tickets.push_front(Ticket { file, sleeper: None, slept: false, honoured_until: now + RESERVATION });
    }

    /// `file` took the lock, or gave up.
    pub fn leave(&mut self, file: FileId) {
        self.tickets.retain(|ticket| ticket.file != file);
    }

    /// The thread of `file` sleeps from now on (`Some`), or woke (`None`).
    pub fn set_sleeper(&mut self, file: FileId, sleeper: Option<std::thread::Thread>, now: Duration) {
        if let Some(ticket) = self.tickets.iter_mut().find(|ticket| ticket.file == file) {
            ticket.slept = true;
            ticket.sleeper = sleeper;
            ticket.honoured_until = now + GRACE;
        }
    }

    /// The lock became free at `now`. A first ticket without a sleeper has its grace cut to a reservation.
    pub fn on_free(&mut self, now: Duration) {
        self.drop_lapsed(now);
        if let Some(first) = self.tickets.iter_mut().find(|ticket| ticket.slept) {
            first.honoured_until = first.honoured_until.min(now + RESERVATION);
        }
        if let Some(sleeper) = self.tickets.iter().find_map(|ticket| ticket.sleeper.as_ref()) {
            sleeper.unpark();
        }
    }

    /// When the ticket before everybody else lapses, if nobody sleeps on it.
    pub fn first_lapses_at(&self) -> Option<Duration> {
        let first = self.tickets.iter().find(|ticket| ticket.slept)?;
        first.sleeper.is_none().then_some(first.honoured_until)
    }

    /// Whether `file` has a ticket.
    pub fn contains(&self, file: FileId) -> bool {
        self.tickets.iter().any(|ticket| ticket.file == file)
    }

    /// How many sleep until it is their turn.
    pub fn sleepers(&self) -> usize {
        self.tickets.iter().filter(|ticket| ticket.sleeper.is_some()).count()
    }

    fn drop_lapsed(&mut self, now: Duration) {
        self.tickets.retain(|ticket| ticket.sleeper.is_some() || now < ticket.honoured_until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: FileId = FileId(1);
    const B: FileId = FileId(2);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn shared_locks_exclude_only_the_exclusive_one() {
        let mut table = LockTable::default();
        assert!(table.try_shared(A, 3..4) && table.try_shared(B, 3..4));
        assert!(!table.try_exclusive(A, 3..4));
        table.unlock_shared(B, 3..4);
        assert!(table.try_exclusive(A, 3..4), "one's own shared lock is no obstacle");
        assert!(!table.try_shared(B, 3..4));
        table.unlock_exclusive(A, 3..4);
        assert!(table.try_shared(B, 3..4));
    }

    #[test]
    fn a_range_is_taken_whole_or_not_at_all() {
        let mut table = LockTable::default();
        assert!(table.try_shared(B, 5..6));
        assert!(!table.try_exclusive(A, 3..8));
        assert!(table.try_exclusive(B, 3..4), "nothing of the failed range was kept");
        table.forget(B);
        assert!(table.try_exclusive(A, 3..8));
    }

    /// `file` drew a ticket, slept on it, and is on its way back.
    fn woken(queue: &mut WriteQueue, file: FileId, now: Duration) {
        queue.enqueue(file, now);
        queue.set_sleeper(file, Some(std::thread::current()), now);
        queue.set_sleeper(file, None, now);
    }

    #[test]
    fn writers_get_the_lock_in_order_of_arrival() {
        let mut queue = WriteQueue::default();
        assert!(queue.may_take(A, at(0)));
        woken(&mut queue, A, at(0));
        woken(&mut queue, B, at(1));
        assert!(!queue.may_take(B, at(2)) && queue.may_take(A, at(2)));
        queue.enqueue(A, at(3));
        assert!(!queue.may_take(B, at(4)), "asking again keeps the place");
        queue.leave(A);
        assert!(queue.may_take(B, at(5)));
    }

    #[test]
    fn a_ticket_keeps_its_place_but_holds_others_off_only_once_it_was_slept_on() {
        let mut queue = WriteQueue::default();
        queue.enqueue(A, at(0));
        assert!(queue.may_take(B, at(0)), "A may have gone away");
        woken(&mut queue, B, at(0));
        assert!(queue.may_take(A, at(1)) && queue.may_take(B, at(1)));
        queue.set_sleeper(A, Some(std::thread::current()), at(1));
        assert!(queue.may_take(A, at(2)) && !queue.may_take(B, at(2)));
    }

    #[test]
    fn a_ticket_that_nobody_sleeps_on_lapses() {
        let mut queue = WriteQueue::default();
        woken(&mut queue, A, at(0));
        queue.enqueue(B, at(0));
        queue.set_sleeper(B, Some(std::thread::current()), at(0));
        assert!(!queue.may_take(B, at(19)));
        assert!(queue.may_take(B, at(20)));
        queue.put_first(A, at(30));
        assert!(queue.may_take(B, at(31)), "whose snapshot was too old may have gone away");
        queue.set_sleeper(A, Some(std::thread::current()), at(31));
        assert!(!queue.may_take(B, at(32)) && queue.may_take(A, at(32)));
    }

    #[test]
    fn a_free_lock_is_kept_for_the_first_ticket_only_briefly() {
        let mut queue = WriteQueue::default();
        woken(&mut queue, A, at(0));
        queue.enqueue(B, at(0));
        queue.set_sleeper(B, Some(std::thread::current()), at(0));
        queue.on_free(at(1));
        assert_eq!(queue.first_lapses_at(), Some(at(4)));
        assert!(!queue.may_take(B, at(3)) && queue.may_take(B, at(4)));
    }
}
