//! What a node tells those who listen. Listeners are never waited for.

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::types::{LogIndex, NodeId, Term};

/// How many events a slow listener may be behind before it loses some.
const QUEUE: usize = 1024;

/// Something happened on this node or in its cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Another leader, or none for the moment.
    LeaderChanged {
        /// The term.
        term: Term,
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// This copy of a database is not what the others have, or not what was written; it is not served on this node until it
    /// is repaired.
    DivergenceFound {
        /// Name of the database.
        database: String,
        /// The difference in words.
        what: String,
    },
    /// A copy that was not what the others have was repaired from one of them; it is served again.
    DivergenceRepaired {
        /// Name of the database.
        database: String,
        /// The node that it was repaired from.
        source: NodeId,
        /// Bytes that this node sent for it: what was whole here did not travel.
        bytes: u64,
    },
    /// The main file of a database is at a newer position on this node.
    CheckpointDone {
        /// Name of the database.
        database: String,
        /// The position.
        position: LogIndex,
    },
    /// A snapshot is on its way: from this node (it lends a view of its databases) or to it. Told once on each side for
    /// the other node and an entry, however often the transfer is interrupted; once more by a node that was started
    /// again meanwhile. If it goes on with a view of a later entry, or from another node, that is another snapshot,
    /// which is told of as well.
    SnapshotStarted {
        /// The other node.
        peer: NodeId,
        /// The entry that it is of.
        index: LogIndex,
        /// Whether this node is the one that receives.
        receiving: bool,
    },
    /// How far a snapshot is, or the copy of one database for a repair. Told once a second on both sides, while it lasts.
    SnapshotProgress {
        /// The other node.
        peer: NodeId,
        /// The entry that it is of.
        index: LogIndex,
        /// Whether this node is the one that receives.
        receiving: bool,
        /// Bytes of pages that are in place.
        done: u64,
        /// All bytes.
        total: u64,
    },
    /// The databases of this node are what they were at this entry on another node, durably. Told once, if this process ends
    /// before that by the next one.
    SnapshotInstalled {
        /// The entry.
        index: LogIndex,
        /// Bytes that the other node sent for it, in this attempt: what was here already did not travel.
        bytes: u64,
    },
    /// The transfer of a snapshot came to its good end. On the node that lent it: the other one has installed it, and can go on by
    /// this node's log. On the one that received it: the log goes on behind it, or has had nothing new for ten seconds; that may be
    /// after a restart. Told once on each side.
    SnapshotFinished {
        /// The other node.
        peer: NodeId,
        /// The entry that it was of.
        index: LogIndex,
        /// Whether this node is the one that received.
        receiving: bool,
    },
    /// The log of this node dropped its oldest entries.
    LogCompacted {
        /// The last one of them.
        through: LogIndex,
    },
    /// The members changed: who votes and who listens from this entry on. While a change of several is under way, the
    /// voters are those of its end.
    MemberChanged {
        /// The entry.
        index: LogIndex,
        /// Voting members.
        voters: Vec<NodeId>,
        /// Members that listen only.
        learners: Vec<NodeId>,
    },
    /// This node was removed from its cluster, or asked to be let in with an id that was; it stopped. Who begins to
    /// listen later hears this first.
    Removed {
        /// What happened, in words.
        what: String,
    },
    /// The disk refused or lost something; this node stopped acknowledging.
    DiskTrouble {
        /// What happened, in words.
        what: String,
    },
    /// The listener was too slow and lost this many events.
    Lagged(u64),
}

/// What a backup or a restore is doing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// The file is checked before anything is changed.
    Checking,
    /// Pages are copied.
    Copying,
    /// The copy is made durable: the backup is synced, the restored pages go through the log.
    Committing,
}

/// How far a backup or a restore is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes that were copied.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

struct Listener {
    to: Sender<Event>,
    lost: u64,
}

/// All listeners of one node.
#[derive(Default)]
pub(crate) struct Events {
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    all: Vec<Listener>,
    ended: bool,
    /// [`Event::Removed`], once it was told: it stays true, and a node may hear of it before its owner can listen.
    removed: Option<Event>,
}

impl Events {
    pub(crate) fn listen(&self) -> Receiver<Event> {
        let (to, from) = crossbeam_channel::bounded(QUEUE);
        let mut listeners = self.listeners.lock();
        if let Some(removed) = &listeners.removed {
            // Nothing is in the queue yet.
            let _ = to.try_send(removed.clone());
        }
        if !listeners.ended {
            listeners.all.push(Listener { to, lost: 0 });
        }
        from
    }

    /// How many events the slowest listener has not taken, and how many it may leave before it loses some.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let slowest = self.listeners.lock().all.iter().map(|listener| listener.to.len()).max();
        (slowest.unwrap_or(0), QUEUE)
    }

    /// Whether there is anybody to tell.
    pub(crate) fn has_listeners(&self) -> bool {
        !self.listeners.lock().all.is_empty()
    }

    /// The node has ended: receivers are disconnected, so that a loop over one ends, too.
    pub(crate) fn end(&self) {
        let mut listeners = self.listeners.lock();
        listeners.ended = true;
        listeners.all.clear();
    }

    /// Tells everybody; drops who has gone, counts what a full queue loses.
    pub(crate) fn tell(&self, event: &Event) {
        let mut listeners = self.listeners.lock();
        if matches!(event, Event::Removed { .. }) {
            listeners.removed = Some(event.clone());
        }
        listeners.all.retain_mut(|listener| {
            if listener.lost > 0 && listener.to.try_send(Event::Lagged(listener.lost)).is_ok() {
                listener.lost = 0;
            }
            match listener.to.try_send(event.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    listener.lost += 1;
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that was removed while it was down hears of it before `Node::start` returns.
    #[test]
    fn who_listens_after_a_removal_is_told_of_it() {
        let events = Events::default();
        let before = events.listen();
        let removed = Event::Removed { what: "node 3 was removed".to_string() };
        events.tell(&Event::LeaderChanged { term: Term(1), leader: None });
        events.tell(&removed);
        let after = events.listen();
        assert_eq!(before.try_iter().last().as_ref(), Some(&removed));
        assert_eq!(after.try_iter().collect::<Vec<_>>(), [removed]);
    }

    #[test]
    fn a_slow_listener_loses_events_and_is_told_how_many() {
        let events = Events::default();
        let slow = events.listen();
        for term in 0..QUEUE as u64 + 3 {
            events.tell(&Event::LeaderChanged { term: Term(term), leader: None });
        }
        for _ in 0..2 {
            slow.recv().unwrap();
        }
        events.tell(&Event::LeaderChanged { term: Term(9999), leader: None });
        let all: Vec<Event> = slow.try_iter().collect();
        assert_eq!(all[all.len() - 2..], [Event::Lagged(3), Event::LeaderChanged { term: Term(9999), leader: None }]);
    }
}
