//! How much from other nodes waits for the engine, in bytes; and how much of large messages is being read meanwhile
//! (`net/tcp.rs` has one of its own for that, since a body is read before it waits here).
//!
//! The engine's mailbox itself has no limit: whoever of this node puts something in must not wait for a turn, which may need
//! what he holds. Messages of peers come on threads that hold nothing. They wait here until there is room, meanwhile read
//! nothing from their connections, and so make the sender wait by TCP's own means. A peer that sends within Raft's windows
//! hardly ever gets there; one that does not takes this much memory and no more.
//!
//! Deliberately absent: fairness between peers, and what the simulation delivers, which has one thread and no turn to wait for.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// What is being read, of large messages.
const READING: usize = 32 << 20;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Messages beyond that many bytes wait, but one of any size has room.
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default, Debug)]
struct State {
    held: usize,
    waiting: usize,
    /// Nobody waits any more.
    closed: bool,
}

impl State {
    fn has_room(&self, bytes: usize, limit: usize) -> bool {
        self.closed || self.held == 0 || self.held.saturating_add(bytes) <= limit
    }
}

/// The room of one message, given back when this goes.
#[derive(Debug)]
pub(crate) struct Room {
    inbox: Arc<Inbox>,
    bytes: usize,
}

impl Inbox {
    /// One with room for `limit` bytes.
    pub(crate) fn of(limit: u64) -> Arc<Inbox> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Arc::new(Inbox { limit, state: Mutex::default(), changed: Condvar::new() })
    }

    /// One for bodies that are being read.
    pub(crate) fn for_reading() -> Arc<Inbox> {
        Inbox::of(READING as u64)
    }

    /// Room for a message, now, for the simulation.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Room {
        self.state.lock().held += bytes;
        Room { inbox: self.clone(), bytes }
    }

    /// Room for a message. Blocks until there is some, or until [`Inbox::close`].
    pub(crate) fn wait(self: &Arc<Self>, bytes: usize) -> Room {
        let mut state = self.state.lock();
        state.waiting += 1;
        while !state.has_room(bytes, self.limit) {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
        state.held += bytes;
        Room { inbox: self.clone(), bytes }
    }

    /// Bytes that are held, and how many wait.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.held, state.waiting)
    }

    /// Bytes that wait, and how many may.
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.state.lock().held, self.limit)
    }

    /// The node is on its way down: nobody waits from here on, since nobody may be left who makes room.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.inbox.state.lock().held -= self.bytes;
        self.inbox.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: usize = 1 << 20;

    fn has_room(inbox: &Inbox, bytes: usize) -> bool {
        inbox.state.lock().has_room(bytes, inbox.limit)
    }

    /// Asks for room on a thread of its own, and says so when it has it.
    fn ask(inbox: &Arc<Inbox>, bytes: usize) -> mpsc::Receiver<Room> {
        let (to, rooms) = mpsc::channel();
        let inbox = inbox.clone();
        std::thread::spawn(move || to.send(inbox.wait(bytes)));
        rooms
    }

    /// Shows INV-20.
    #[test]
    fn messages_of_peers_wait_for_room_but_one_of_any_size_has_it() {
        let inbox = Inbox::of(LIMIT as u64);
        let large = inbox.wait(2 * LIMIT);
        let waiting = ask(&inbox, 1);
        assert!(!has_room(&inbox, 1));
        drop(large);
        let small = waiting.recv().unwrap();
        let rest = inbox.wait(LIMIT - 1);
        let waiting = ask(&inbox, 1);
        assert!(!has_room(&inbox, 1));
        drop(small);
        drop((waiting.recv().unwrap(), rest));
        assert_eq!(inbox.state.lock().held, 0);
        drop(inbox.take(2 * LIMIT));
        assert!(has_room(&inbox, 2 * LIMIT));
    }

    #[test]
    fn nobody_waits_for_a_node_that_goes_down() {
        let inbox = Inbox::of(LIMIT as u64);
        let _room = inbox.wait(LIMIT);
        let waiting = ask(&inbox, 1);
        inbox.close();
        waiting.recv().unwrap();
        inbox.wait(LIMIT);
    }
}
