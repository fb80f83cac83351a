//! How much is on its way to each follower, in bytes.
//!
//! The library counts messages, and lets a follower have hundreds unacknowledged. An entry may be a part of a large
//! transaction, so for one that falls behind that would be all of the transaction: read from the log at once, and kept in
//! the queue of its connection until it has gone.
//!
//! ```text
//! sent to a follower       counted, until an answer says that it has it
//! as much as the limit     the follower's window is shut: the library sends it heartbeats only
//! an answer                counted off; below the limit the window is open, before the library hears of the answer and goes on
//! it says no, it cannot be reached, another term   nothing is counted: what is sent again is counted again
//! an answered heartbeat    with nothing else since the one before: the oldest message counts as lost
//! ```
//!
//! The last line is for a connection that lost messages and told nobody: the next message is then refused, and Raft goes back
//! to where the follower is.
//!
//! Deliberately absent: how a window is shut (`core.rs`), and what is read from the disk within one turn (`storage.rs`).

use std::collections::{BTreeMap, VecDeque};

use crate::types::{LogIndex, Message, MessageKind};

/// See the module's text. Followers go by the library's numbers.
#[derive(Debug)]
pub(super) struct Windows {
    limit: u64,
    followers: BTreeMap<u64, Window>,
}

/// Invariant: `bytes` is the sum over `sent`, whose indices ascend.
#[derive(Default, Debug)]
struct Window {
    /// The last entry of each message, and its bytes.
    sent: VecDeque<(LogIndex, u64)>,
    bytes: u64,
    shut: bool,
    /// It answered a heartbeat, and has acknowledged nothing since.
    quiet: bool,
}

impl Window {
    fn forget_first(&mut self) {
        if let Some((_, bytes)) = self.sent.pop_front() {
            self.bytes -= bytes;
        }
    }

    fn forget(&mut self) {
        self.sent.clear();
        self.bytes = 0;
    }
}

impl Windows {
    /// Windows of `limit` bytes.
    pub(super) fn new(limit: u64) -> Windows {
        Windows { limit, followers: BTreeMap::new() }
    }

    /// Bytes on their way to a follower.
    pub(super) fn on_their_way(&self, follower: u64) -> u64 {
        self.followers.get(&follower).map_or(0, |window| window.bytes)
    }

    /// A message leaves for its follower.
    pub(super) fn on_sent(&mut self, message: &Message) {
        let Some(last) = message.entries.last().filter(|_| message.kind == MessageKind::Append) else { return };
        let bytes = message.entries.iter().map(|entry| entry.data.len() as u64).sum();
        let window = self.followers.entry(message.to.0.into()).or_default();
        // What goes out once more has not arrived the first time.
        while let Some((_, again)) = window.sent.pop_back_if(|(index, _)| *index >= last.id.index) {
            window.bytes -= again;
        }
        window.sent.push_back((last.id.index, bytes));
        window.bytes += bytes;
    }

    /// What a follower says, before the library hears it.
    pub(super) fn on_answer(&mut self, message: &Message) {
        let Some(window) = self.followers.get_mut(&u64::from(message.from.0)) else { return };
        match message.kind {
            MessageKind::AppendReply if message.reject => window.forget(),
            MessageKind::AppendReply => {
                window.quiet = false;
                while window.sent.front().is_some_and(|(index, _)| *index <= message.index) {
                    window.forget_first();
                }
            }
            MessageKind::HeartbeatReply => {
                let was_quiet = std::mem::replace(&mut window.quiet, true);
                if was_quiet {
                    window.forget_first();
                }
            }
            _ => {}
        }
    }

    /// What was on its way to a follower is lost.
    pub(super) fn on_unreachable(&mut self, follower: u64) {
        if let Some(window) = self.followers.get_mut(&follower) {
            window.forget();
        }
    }

    /// The node has another part in the consensus, or another term: all windows are open.
    pub(super) fn forget_all(&mut self) {
        self.followers.values_mut().for_each(Window::forget);
    }

    /// The windows to shut (true) or open (false) since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<(u64, bool)> {
        let mut changes = Vec::new();
        for (follower, window) in &mut self.followers {
            let full = window.bytes >= self.limit;
            if std::mem::replace(&mut window.shut, full) != full {
                changes.push((*follower, full));
            }
        }
        self.followers.retain(|_, window| window.shut || !window.sent.is_empty());
        changes
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{EntryClass, EntryId, LogEntry, NodeId, Term};

    const FOLLOWER: u64 = 2;

    fn entry(index: u64, bytes: usize) -> LogEntry {
        let id = EntryId { index: LogIndex(index), term: Term(1) };
        LogEntry { id, class: EntryClass::Normal, data: Bytes::from(vec![1; bytes]) }
    }

    fn message(kind: MessageKind, from: u64, to: u64) -> Message {
        Message::blank(kind, NodeId(from as u16), NodeId(to as u16))
    }

    fn append(index: u64, bytes: usize) -> Message {
        Message { entries: vec![entry(index, bytes)], ..message(MessageKind::Append, 1, FOLLOWER) }
    }

    fn answer(kind: MessageKind, index: u64, reject: bool) -> Message {
        Message { index: LogIndex(index), reject, ..message(kind, FOLLOWER, 1) }
    }

    /// With entries 5, 6 and 7 of 40 bytes each on their way, and room for 100.
    fn full() -> Windows {
        let mut windows = Windows::new(100);
        for index in 5..=7 {
            windows.on_sent(&append(index, 40));
        }
        assert_eq!(windows.take_changes(), [(FOLLOWER, true)]);
        assert_eq!(windows.take_changes(), []);
        windows
    }

    #[test]
    fn a_window_is_shut_from_its_limit_on_and_open_below() {
        let mut windows = Windows::new(100);
        windows.on_sent(&append(5, 99));
        assert_eq!(windows.take_changes(), []);
        windows.on_sent(&append(6, 1));
        assert_eq!(windows.take_changes(), [(FOLLOWER, true)]);
        let mut windows = full();
        windows.on_answer(&answer(MessageKind::AppendReply, 4, false));
        assert_eq!(windows.take_changes(), []);
        windows.on_answer(&answer(MessageKind::AppendReply, 5, false));
        assert_eq!(windows.take_changes(), [(FOLLOWER, false)]);
    }

    #[test]
    fn what_is_lost_does_not_count() {
        let no = answer(MessageKind::AppendReply, 7, true);
        for what in ["it says no", "it cannot be reached", "another term"] {
            let mut windows = full();
            match what {
                "it says no" => windows.on_answer(&no),
                "it cannot be reached" => windows.on_unreachable(FOLLOWER),
                _ => windows.forget_all(),
            }
            assert_eq!(windows.take_changes(), [(FOLLOWER, false)], "{what}");
            assert!(windows.followers.is_empty(), "{what}");
        }
    }

    #[test]
    fn what_is_sent_again_counts_once() {
        let mut windows = full();
        windows.on_sent(&append(5, 40));
        assert_eq!(windows.take_changes(), [(FOLLOWER, false)]);
        windows.on_sent(&append(6, 40));
        assert_eq!(windows.followers[&FOLLOWER].bytes, 80);
    }

    /// A connection may lose everything and tell nobody: a window that stayed shut would never hear of it.
    #[test]
    fn heartbeats_open_the_window_of_a_follower_that_acknowledges_nothing() {
        let mut windows = full();
        let heartbeat = answer(MessageKind::HeartbeatReply, 0, false);
        windows.on_answer(&heartbeat);
        assert_eq!(windows.take_changes(), [], "the first one says nothing: it may be from before");
        windows.on_answer(&heartbeat);
        assert_eq!(windows.take_changes(), [(FOLLOWER, false)]);

        let mut windows = full();
        windows.on_answer(&heartbeat);
        windows.on_answer(&answer(MessageKind::AppendReply, 4, false));
        windows.on_answer(&heartbeat);
        assert_eq!(windows.take_changes(), [], "it acknowledges, it is only slow");
    }
}
