//! Ids, terms, log entries and messages as plain values: the words that all layers share.
//!
//! They mirror what Raft needs, but name no Raft library: `raft/core.rs` is the one place that converts, `log/` puts
//! them on disk, `net/codec.rs` on the wire.
//!
//! Deliberately absent: any bytes-on-disk or bytes-on-wire layout.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The newest protocol version that this program speaks, and the oldest. It covers what travels between nodes and which kinds
/// of entries a log may have.
pub const PROTOCOL: u16 = 1;

/// Something of which there may be only so much, whatever the settings are: how much there is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// What it is.
    pub name: String,
    /// How much there is.
    pub now: u64,
    /// How much there may be.
    pub limit: u64,
    /// Whether that is bytes; else it is a number of them.
    pub bytes: bool,
}

impl Usage {
    /// Some of so many.
    pub(crate) fn count(name: impl Into<String>, (now, limit): (usize, usize)) -> Usage {
        Usage { name: name.into(), now: now as u64, limit: limit as u64, bytes: false }
    }

    /// The same in bytes.
    pub(crate) fn bytes(name: impl Into<String>, usage: (usize, usize)) -> Usage {
        Usage { bytes: true, ..Usage::count(name, usage) }
    }
}

/// Id of a node within its cluster, 1..=65535. Never used again for another disk (see [`Incarnation`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u16);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Random name of one data directory. A wiped disk gets another one, so that it cannot vote as its former self. In JSON it is
/// a string of hexadecimal digits: readers of JSON round numbers of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Incarnation(pub u64);

impl From<Incarnation> for String {
    fn from(id: Incarnation) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for Incarnation {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Incarnation, Self::Error> {
        u64::from_str_radix(&text, 16).map(Incarnation)
    }
}

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Random name of a cluster, fixed when it is founded. In JSON a string, as [`Incarnation`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ClusterId(pub u64);

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for ClusterId {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<ClusterId, Self::Error> {
        u64::from_str_radix(&text, 16).map(ClusterId)
    }
}

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Index of a log entry, counted from 1. The genesis of a cluster stands at index 1, so the first real entry has index 2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The index after this one.
    pub fn next(self) -> LogIndex {
        LogIndex(self.0 + 1)
    }
}

impl std::fmt::Display for LogIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Term of a leader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Index and term: names one entry of one leader for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct EntryId {
    /// Where in the log.
    pub index: LogIndex,
    /// By which leader.
    pub term: Term,
}

/// Index and term of the genesis: the state before the first entry, which a cluster's founder writes.
pub const GENESIS: EntryId = EntryId { index: LogIndex(1), term: Term(1) };

/// What an entry is to Raft.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryClass {
    /// Ours: the payload of `entry.rs`, or empty (a leader's first entry of its term).
    Normal,
    /// A change of the members (joint consensus); opaque outside `raft/`.
    Membership,
}

/// One entry of the Raft log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// Index and term.
    pub id: EntryId,
    /// How Raft sees it.
    pub class: EntryClass,
    /// The payload.
    pub data: Bytes,
}

/// What a node must never forget: Raft's hard state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// Current term.
    pub term: Term,
    /// Who got this node's vote in that term.
    pub vote: Option<NodeId>,
    /// Highest index known to be committed. May lag behind after a crash.
    pub commit: LogIndex,
}

/// Who votes and who listens: Raft's configuration, joint while it changes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Membership {
    /// Voters (the incoming half while joint), ascending.
    pub voters: Vec<NodeId>,
    /// Learners, ascending.
    pub learners: Vec<NodeId>,
    /// The outgoing voters while the configuration is joint, else empty.
    pub voters_outgoing: Vec<NodeId>,
    /// Voters that become learners when the joint configuration is left.
    pub learners_next: Vec<NodeId>,
    /// Whether the joint configuration is left automatically.
    pub auto_leave: bool,
}

impl Membership {
    /// Whether a node is in it, in whatever part.
    pub fn names(&self, node: NodeId) -> bool {
        let Membership { voters, learners, voters_outgoing, learners_next, .. } = self;
        [voters, learners, voters_outgoing, learners_next].into_iter().any(|list| list.contains(&node))
    }
}

/// Kind of a Raft message. Only what travels between nodes: no local messages, and no forwarded proposals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageKind {
    /// Entries (or none) for a follower.
    Append,
    /// Answer to `Append`.
    AppendReply,
    /// "I want your vote."
    Vote,
    /// Answer to `Vote`.
    VoteReply,
    /// "Would you vote for me?"
    PreVote,
    /// Answer to `PreVote`.
    PreVoteReply,
    /// "I am the leader."
    Heartbeat,
    /// Answer to `Heartbeat`.
    HeartbeatReply,
    /// The announcement of a snapshot (its bytes travel elsewhere).
    Snapshot,
    /// A follower asks for a read index.
    ReadIndex,
    /// The read index.
    ReadIndexReply,
    /// "Campaign now": the last step of a transfer of leadership.
    TimeoutNow,
    /// A follower asks its leader to hand over to it.
    TransferLeader,
}

impl MessageKind {
    /// Every kind.
    pub const ALL: [MessageKind; 13] = [
        MessageKind::Append,
        MessageKind::AppendReply,
        MessageKind::Vote,
        MessageKind::VoteReply,
        MessageKind::PreVote,
        MessageKind::PreVoteReply,
        MessageKind::Heartbeat,
        MessageKind::HeartbeatReply,
        MessageKind::Snapshot,
        MessageKind::ReadIndex,
        MessageKind::ReadIndexReply,
        MessageKind::TimeoutNow,
        MessageKind::TransferLeader,
    ];
}

/// One Raft message between two nodes, with Raft's own field meanings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// What it is.
    pub kind: MessageKind,
    /// Sender.
    pub from: NodeId,
    /// Receiver.
    pub to: NodeId,
    /// Sender's term (0 where Raft leaves it out).
    pub term: Term,
    /// Term of the entry at `index`, where that matters.
    pub log_term: Term,
    /// Index the message is about.
    pub index: LogIndex,
    /// Leader's committed index.
    pub commit: LogIndex,
    /// Term of the entry at `commit`.
    pub commit_term: Term,
    /// Entries of an `Append`; of a `ReadIndex` and its reply the contexts.
    pub entries: Vec<LogEntry>,
    /// Whether the reply says no.
    pub reject: bool,
    /// A hint where to look next after a rejected `Append`.
    pub reject_hint: LogIndex,
    /// First index the follower wants a snapshot to cover, 0 for none.
    pub request_snapshot: LogIndex,
    /// Priority of a candidate.
    pub priority: i64,
    /// Free bytes: the context of reads, the mark of a transfer campaign.
    pub context: Bytes,
    /// Index, term and membership of an announced snapshot, with its ticket.
    pub snapshot: Option<SnapshotTicket>,
}

#[cfg(test)]
impl Message {
    /// A message that says nothing besides its kind; tests fill in what they are about.
    pub(crate) fn blank(kind: MessageKind, from: NodeId, to: NodeId) -> Message {
        Message {
            kind,
            from,
            to,
            term: Term(0),
            log_term: Term(0),
            index: LogIndex(0),
            commit: LogIndex(0),
            commit_term: Term(0),
            entries: Vec::new(),
            reject: false,
            reject_hint: LogIndex(0),
            request_snapshot: LogIndex(0),
            priority: 0,
            context: Bytes::new(),
            snapshot: None,
        }
    }
}

/// The Raft part of an announced snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotTicket {
    /// The state after this entry.
    pub id: EntryId,
    /// Members at that entry.
    pub membership: Membership,
    /// Opaque to Raft.
    pub data: Bytes,
}
