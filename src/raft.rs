//! Consensus as a value: events in, effects out.
//!
//! [`Core`] holds one node's view of the Raft protocol (the crate `raft`, which is named nowhere else) and nothing of
//! the world around it: it reads no clock, file or socket and draws no random number but from its own seed. The same
//! events give the same effects, always. A shell with threads turns them around:
//!
//! ```text
//! loop {
//!     for each event that waits    core.on_event(event)
//!     effects = core.take_effects()          one *turn*
//!     hand effects.persist to the disk  ──►  Event::Persisted { batch } when it is synced
//!     send effects.send                      at once; it waits for nothing
//!     hand effects.apply to the applier ──►  Event::Applied { index } when it is applied
//!     answer effects.proposed and effects.reads
//! }
//! ```
//!
//! What must not happen early cannot: a message that is a promise about this node's disk (a vote, an acknowledgement,
//! the first words of a new leader) stays inside until the batch it depends on was reported by [`Event::Persisted`],
//! and only then comes out in [`Effects::send`]. The disk, in turn, writes batches in the order of their numbers.
//!
//! Events of one turn share their costs: any number of proposals makes one batch for the disk and one message per
//! follower, any number of reads one round of heartbeats.
//!
//! After [`Effects::fatal`] the core does nothing any more. It stops when the log cannot be read, when a peer proves
//! that this node lost what it had acknowledged, when the shell breaks the contract above, and when the library
//! underneath panics: each is a reason to be opened again from the disk, none to go on.
//!
//! Deliberately absent: time (a [`Event::Tick`] is whatever the shell says), leases (a read always asks a majority),
//! forwarded proposals (only a leader takes them), and the transfer of snapshots: an announcement that arrives is not
//! for the core until its bytes are on disk, and a peer that needs one is named in [`Effects::snapshot_wanted`].

mod convert;
mod core;
mod inbound;
mod member;
mod outbox;
mod read;
mod storage;
mod timeout;
mod trace;
mod window;

use std::io;

use bytes::Bytes;

pub use self::core::Core;
pub use self::member::{ChangeKind, MembershipChange, Transition};
use crate::types::{EntryId, HardState, LogEntry, LogIndex, Membership, Message, NodeId, Term};

/// Limits and identity of one core.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This node.
    pub id: NodeId,
    /// Source of election timeouts and of the names of read rounds. Must differ at every start of a node, so that an
    /// answer to a read of its former life is not taken for an answer to a new one.
    pub seed: u64,
    /// Ticks without a leader before a node campaigns; the timeout is drawn from this up to twice this.
    pub election_ticks: u32,
    /// Ticks between heartbeats of a leader.
    pub heartbeat_ticks: u32,
    /// Payload bytes after which an append message is closed. One entry always fits.
    pub max_message_bytes: u64,
    /// Append messages a follower may have unacknowledged.
    pub max_inflight: usize,
    /// Payload bytes that a follower may have unacknowledged, beyond one message; within one turn half of it is read from the
    /// disk for all of them together.
    pub max_inflight_bytes: u64,
    /// Payload bytes of one proposal. Raft itself knows no such limit.
    pub max_entry_bytes: u64,
    /// Payload bytes of proposals that are not committed yet; beyond it proposals are refused.
    pub max_uncommitted_bytes: u64,
    /// Bytes of entries (with about 100 for each besides its payload) that may be handed out in [`Effects::apply`] and
    /// not yet be applied. One entry always may.
    pub max_apply_bytes: u64,
    /// Bytes of persisted entries kept in memory, so that followers are served without reading the disk.
    pub tail_cache_bytes: u64,
}

impl CoreConfig {
    /// Limits for a cluster on one local network; a tick is meant to be 50 ms.
    pub fn new(id: NodeId, seed: u64) -> CoreConfig {
        CoreConfig {
            id,
            seed,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_message_bytes: 1 << 20,
            max_inflight: 256,
            max_inflight_bytes: 16 << 20,
            max_entry_bytes: 8 << 20,
            max_uncommitted_bytes: 64 << 20,
            max_apply_bytes: 32 << 20,
            tail_cache_bytes: 32 << 20,
        }
    }
}

/// What recovery of the log found.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The last hard state. Its commit index may lag behind `applied`, because it is written without a sync.
    pub hard_state: HardState,
    /// The members as of `applied`.
    pub membership: Membership,
    /// The entry before the first one in the log: the genesis, or what the log was compacted to.
    pub start: EntryId,
    /// The last entry of the log; `start` if there is none.
    pub last: EntryId,
    /// The last entry whose effects the databases and the membership hold.
    pub applied: LogIndex,
}

/// Reads entries that left the core's memory. Asked only for entries in `start..=` the last one reported persisted.
pub trait EntryReader: Send + Sync {
    /// Entries from `lo` up to but not including `hi`, in order, as many as fit `max_bytes` but at least one.
    fn entries(&self, lo: LogIndex, hi: LogIndex, max_bytes: u64) -> io::Result<Vec<LogEntry>>;

    /// Term of one entry. `None` stops the core: it asks only for what must be there.
    fn term(&self, index: LogIndex) -> Option<Term>;
}

/// What happened.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all events are messages: a box would be an allocation for each")]
pub enum Event {
    /// Time passed.
    Tick,
    /// A message came from a peer.
    Message(Message),
    /// Append this payload to the log, if this node leads. Answered in [`Effects::proposed`].
    Propose {
        /// The caller's name for it.
        proposal: u64,
        /// The payload; never empty.
        data: Bytes,
    },
    /// Append a change of the members, if this node leads. Answered in [`Effects::proposed`].
    ChangeMembership {
        /// The caller's name for it.
        proposal: u64,
        /// The change.
        change: MembershipChange,
    },
    /// Which index must be applied here for a read to be linearizable? Answered in [`Effects::reads`], as late as it
    /// takes: the core asks again until it knows.
    ReadIndex {
        /// The caller's name for it.
        request: u64,
    },
    /// The caller gave up on a read; it will not be answered.
    CancelRead {
        /// The name it had.
        request: u64,
    },
    /// The batch of this number, and all before it, are written and (where they must be) synced.
    Persisted {
        /// [`PersistBatch::number`].
        batch: u64,
    },
    /// The change of the members in this entry, which is about to be reported applied, has no effect: what is replicated
    /// with it refused it, on every node alike.
    ChangeRefused {
        /// Its entry.
        index: LogIndex,
    },
    /// Entries up to this one are applied.
    Applied {
        /// At most the last one of [`Effects::apply`].
        index: LogIndex,
    },
    /// Tell the followers, if this node leads, what is committed ([`Core::has_untold_commit`]). Otherwise they learn it with the
    /// next entries or the next heartbeat.
    TellCommit,
    /// Tell the leader, if this node follows one, up to where its log agrees with this one: up to what is committed here. A
    /// leader whose log begins behind what it knows of this one cannot find out by itself.
    Announce,
    /// The log dropped its entries up to this one, which was applied.
    Compacted {
        /// The new entry before the first one.
        start: EntryId,
    },
    /// Hand leadership to this node. A follower that names itself asks its leader for it.
    Transfer {
        /// The next leader.
        to: NodeId,
    },
    /// Campaign now, without waiting for an election timeout. A single voter becomes leader by this alone.
    Campaign,
    /// A message to this peer could not be sent.
    Unreachable {
        /// The peer.
        peer: NodeId,
    },
    /// Stop leading, although nobody else was told to lead: this disk does not answer. Whatever else this node may do it
    /// still may, campaigning included once its log is on disk again.
    StepDown,
    /// The disk is dead or stalled: stop leading, never campaign again, refuse reads. Lasts until the core is opened
    /// again. What a working disk allows is still done: votes and acknowledgements follow [`Event::Persisted`].
    Silence,
}

/// What the shell must do now. The order in which it does the parts is free, but for what the fields say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effects {
    /// Write this to the log, after the batches before it.
    pub persist: Option<PersistBatch>,
    /// Send these now. Messages to one peer are in order; the network may lose, repeat and reorder them.
    pub send: Vec<Message>,
    /// Committed entries, each once, in order, exactly as agreed. Entries with empty data and those of class
    /// membership count too: they are applied by taking note of their index.
    pub apply: Vec<LogEntry>,
    /// Members from these entries on; each was reported by [`Event::Applied`] before. A change that the rules refuse
    /// leaves the members as they were, on every node alike, and is reported too.
    pub membership: Vec<(LogIndex, Membership)>,
    /// Answers to proposals. An entry id is no promise that it will be committed: the term may lose it.
    pub proposed: Vec<(u64, Result<EntryId, NotProposed>)>,
    /// Answers to reads: once this index is applied here, the read sees all that was committed when it asked.
    pub reads: Vec<(u64, Result<LogIndex, ReadFailed>)>,
    /// Set when it changed. What happened and passed within one turn is not reported.
    pub role: Option<RoleChange>,
    /// Set once per leadership: the first entry of this leader's own term is committed. Once it is applied, this node
    /// has applied all that any leader before it committed, and may grant write locks.
    pub ready_to_write: Option<EntryId>,
    /// Peers that lack entries which this log no longer has.
    pub snapshot_wanted: Vec<NodeId>,
    /// The core stopped, for this reason. All other fields are empty then, now and ever after, and what became of
    /// proposals is not known.
    pub fatal: Option<String>,
}

impl Effects {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Effects::default()
    }
}

/// What goes to the log in one piece. Entries first, hard state after them: its commit index may name them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PersistBatch {
    /// Grows from batch to batch, not always by one.
    pub number: u64,
    /// Consecutive entries. The first may have the index of one written before: it and all after it are replaced.
    pub entries: Vec<LogEntry>,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Whether it must be synced before it is reported persisted. False if only the commit index is new.
    pub must_sync: bool,
}

/// What a node is in its term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would get votes; its term did not change.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// A new role, term or leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoleChange {
    /// This node's role.
    pub role: Role,
    /// This node's term.
    pub term: Term,
    /// The leader of this term, as far as known.
    pub leader: Option<NodeId>,
}

/// Why a proposal did not enter the log. It never will: all of these are safe to try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotProposed {
    /// Only a leader takes proposals.
    #[error("this node is not the leader")]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<NodeId>,
    },
    /// Leadership is being handed over. Ends within one election timeout, whatever becomes of it.
    #[error("leadership is being handed over")]
    Transferring,
    /// [`CoreConfig::max_uncommitted_bytes`] are waiting already.
    #[error("too many bytes wait to be committed")]
    Backlog,
    /// Larger than [`CoreConfig::max_entry_bytes`].
    #[error("entry of {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Nothing to propose. Empty entries are Raft's own.
    #[error("a proposal must have a payload")]
    Empty,
    /// Another change of the members is under way, or none is there to be left.
    #[error("another change of the members is not finished")]
    MembershipBusy,
}

/// Why a read will not be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadFailed {
    /// This node was silenced ([`Event::Silence`]).
    #[error("this node stopped serving because of its disk")]
    Silenced,
}

/// Why a core could not be opened: what recovery found does not fit together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The log starts before the genesis.
    #[error("log starts after entry {0}@{1}: both must be at least 1", .start.index, .start.term)]
    NoGenesis {
        /// Start of the log.
        start: EntryId,
    },
    /// The log ends before it starts.
    #[error("log ends at {}@{} before its start {}@{}", .last.index, .last.term, .start.index, .start.term)]
    Backwards {
        /// Start of the log.
        start: EntryId,
        /// End of the log.
        last: EntryId,
    },
    /// Applied entries are not in the log: this node needs a snapshot.
    #[error("applied {applied} is outside the log, {start} to {last}")]
    AppliedOutside {
        /// Applied index.
        applied: LogIndex,
        /// Start of the log.
        start: LogIndex,
        /// End of the log.
        last: LogIndex,
    },
    /// Committed entries are gone.
    #[error("hard state commits {commit}, the log ends at {last}")]
    CommitOutside {
        /// Committed index.
        commit: LogIndex,
        /// End of the log.
        last: LogIndex,
    },
    /// The hard state is older than the log: it was lost.
    #[error("hard state is of term {hard_state}, the log of term {log}")]
    TermBehind {
        /// Term of the hard state.
        hard_state: Term,
        /// Term of the last entry.
        log: Term,
    },
    /// Raft refused the configuration or the members.
    #[error("{0}")]
    Refused(String),
}

/// How this node stands, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoreStatus {
    /// Role, term and leader.
    pub role: RoleChange,
    /// Last entry of the log, persisted or not.
    pub last: LogIndex,
    /// Last entry known to be on this disk.
    pub persisted: LogIndex,
    /// Last entry known to be committed.
    pub committed: LogIndex,
    /// Last entry applied.
    pub applied: LogIndex,
    /// Members, as far as applied.
    pub membership: Membership,
    /// Messages that were refused because they were not for us or made no sense.
    pub refused_messages: u64,
    /// Bytes of entries that are in memory because they are the newest, and how many the disk may have as well.
    pub tail: (u64, u64),
    /// Bytes of proposals that are not committed yet, and how many there may be.
    pub uncommitted: (u64, u64),
    /// Bytes of entries that are handed out and not applied, and how many there may be.
    pub handed_out: (u64, u64),
    /// What a leader knows of the other members, ascending; empty on others.
    pub peers: Vec<PeerStatus>,
}

#[cfg(test)]
impl CoreStatus {
    /// A follower that has applied all that there is.
    pub(crate) fn of_follower(at: EntryId, leader: NodeId, membership: Membership) -> CoreStatus {
        CoreStatus {
            role: RoleChange { role: Role::Follower, term: at.term, leader: Some(leader) },
            last: at.index,
            persisted: at.index,
            committed: at.index,
            applied: at.index,
            membership,
            refused_messages: 0,
            tail: (0, 0),
            uncommitted: (0, 0),
            handed_out: (0, 0),
            peers: Vec::new(),
        }
    }
}

/// What a leader knows of one other member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    /// The member.
    pub id: NodeId,
    /// Last entry it acknowledged.
    pub acknowledged: LogIndex,
    /// The entry that it is sent next.
    pub next: LogIndex,
    /// Whether entries follow each other without waiting for its answers. If not, this leader is finding out where the two
    /// logs agree, or has no entries for it.
    pub streams: bool,
    /// Bytes of entries on their way to it, and how many there may be.
    pub in_flight: (u64, u64),
    /// Whether it was heard of lately.
    pub active: bool,
}

impl PeerStatus {
    /// What it has of a log that begins at `start`: that entry at least, or nothing if it needs a snapshot. A new leader
    /// knows of no acknowledgement, and takes everybody for one that has all until told otherwise.
    pub fn has_of(&self, start: LogIndex) -> Option<LogIndex> {
        (self.acknowledged >= start || self.next > start).then(|| self.acknowledged.max(start))
    }
}
