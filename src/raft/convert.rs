//! Our words to the library's and back.
//!
//! Everything of ours has a form there. The other way, the library can say things that we have no word for (its local
//! messages, forwarded proposals, node ids beyond 16 bits); that is an error, and would be a mistake of ours.
//!
//! A change of the members has two payloads: the library's protobuf, which it looks at when a leader proposes, and
//! ours (see `member.rs`), which alone leaves this folder. A leader's fresh entry carries ours beside the other, as
//! its `context`; everywhere else ours is the `data`, at which the library never looks again.

use bytes::Bytes;
use raft::StateRole;
use raft::eraftpb::{self, EntryType, MessageType, Snapshot};

use super::Role;
use crate::types::{
    EntryClass, EntryId, HardState, LogEntry, LogIndex, Membership, Message, MessageKind, NodeId, SnapshotTicket, Term,
};

/// A node id, which the library has as a u64.
pub(super) fn node_from_raft(id: u64) -> Result<NodeId, String> {
    u16::try_from(id).map(NodeId).map_err(|_| format!("node id {id}, the largest is {}", u16::MAX))
}

/// A node id, or none where the library says 0.
pub(super) fn maybe_node_from_raft(id: u64) -> Result<Option<NodeId>, String> {
    if id == raft::INVALID_ID { Ok(None) } else { node_from_raft(id).map(Some) }
}

pub(super) fn role_from_raft(state: StateRole) -> Role {
    match state {
        StateRole::Follower => Role::Follower,
        StateRole::PreCandidate => Role::PreCandidate,
        StateRole::Candidate => Role::Candidate,
        StateRole::Leader => Role::Leader,
    }
}

pub(super) fn entry_to_raft(entry: &LogEntry) -> eraftpb::Entry {
    let mut raft = eraftpb::Entry::default();
    raft.set_entry_type(match entry.class {
        EntryClass::Normal => EntryType::EntryNormal,
        EntryClass::Membership => EntryType::EntryConfChangeV2,
    });
    raft.term = entry.id.term.0;
    raft.index = entry.id.index.0;
    raft.data = entry.data.clone();
    raft
}

pub(super) fn entry_from_raft(entry: &eraftpb::Entry) -> Result<LogEntry, String> {
    let id = EntryId { index: LogIndex(entry.index), term: Term(entry.term) };
    let (class, data) = match entry.get_entry_type() {
        EntryType::EntryNormal => (EntryClass::Normal, &entry.data),
        EntryType::EntryConfChangeV2 if entry.context.is_empty() => (EntryClass::Membership, &entry.data),
        EntryType::EntryConfChangeV2 => (EntryClass::Membership, &entry.context),
        EntryType::EntryConfChange => return Err(format!("entry {} has the old form of membership change", id.index)),
    };
    Ok(LogEntry { id, class, data: data.clone() })
}

pub(super) fn entries_from_raft(entries: &[eraftpb::Entry]) -> Result<Vec<LogEntry>, String> {
    entries.iter().map(entry_from_raft).collect()
}

pub(super) fn hard_state_to_raft(state: &HardState) -> eraftpb::HardState {
    let mut raft = eraftpb::HardState::default();
    raft.term = state.term.0;
    raft.vote = state.vote.map_or(raft::INVALID_ID, |node| u64::from(node.0));
    raft.commit = state.commit.0;
    raft
}

pub(super) fn hard_state_from_raft(state: &eraftpb::HardState) -> Result<HardState, String> {
    Ok(HardState { term: Term(state.term), vote: maybe_node_from_raft(state.vote)?, commit: LogIndex(state.commit) })
}

pub(super) fn membership_to_raft(membership: &Membership) -> eraftpb::ConfState {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| u64::from(node.0)).collect::<Vec<u64>>();
    let mut raft = eraftpb::ConfState::default();
    raft.set_voters(ids(&membership.voters));
    raft.set_learners(ids(&membership.learners));
    raft.set_voters_outgoing(ids(&membership.voters_outgoing));
    raft.set_learners_next(ids(&membership.learners_next));
    raft.auto_leave = membership.auto_leave;
    raft
}

pub(super) fn membership_from_raft(state: &eraftpb::ConfState) -> Result<Membership, String> {
    let nodes = |ids: &[u64]| {
        let mut nodes = ids.iter().map(|id| node_from_raft(*id)).collect::<Result<Vec<NodeId>, String>>()?;
        nodes.sort_unstable();
        Ok::<_, String>(nodes)
    };
    Ok(Membership {
        voters: nodes(state.get_voters())?,
        learners: nodes(state.get_learners())?,
        voters_outgoing: nodes(state.get_voters_outgoing())?,
        learners_next: nodes(state.get_learners_next())?,
        auto_leave: state.auto_leave,
    })
}

fn kind_to_raft(kind: MessageKind) -> MessageType {
    match kind {
        MessageKind::Append => MessageType::MsgAppend,
        MessageKind::AppendReply => MessageType::MsgAppendResponse,
        MessageKind::Vote => MessageType::MsgRequestVote,
        MessageKind::VoteReply => MessageType::MsgRequestVoteResponse,
        MessageKind::PreVote => MessageType::MsgRequestPreVote,
        MessageKind::PreVoteReply => MessageType::MsgRequestPreVoteResponse,
        MessageKind::Heartbeat => MessageType::MsgHeartbeat,
        MessageKind::HeartbeatReply => MessageType::MsgHeartbeatResponse,
        MessageKind::Snapshot => MessageType::MsgSnapshot,
        MessageKind::ReadIndex => MessageType::MsgReadIndex,
        MessageKind::ReadIndexReply => MessageType::MsgReadIndexResp,
        MessageKind::TimeoutNow => MessageType::MsgTimeoutNow,
        MessageKind::TransferLeader => MessageType::MsgTransferLeader,
    }
}

fn kind_from_raft(kind: MessageType) -> Result<MessageKind, String> {
    let ours = MessageKind::ALL.into_iter().find(|ours| kind_to_raft(*ours) == kind);
    ours.ok_or_else(|| format!("message {kind:?} does not travel"))
}

pub(super) fn message_to_raft(message: Message) -> eraftpb::Message {
    let mut raft = eraftpb::Message::default();
    raft.set_msg_type(kind_to_raft(message.kind));
    raft.from = u64::from(message.from.0);
    raft.to = u64::from(message.to.0);
    raft.term = message.term.0;
    raft.log_term = message.log_term.0;
    raft.index = message.index.0;
    raft.commit = message.commit.0;
    raft.commit_term = message.commit_term.0;
    raft.set_entries(message.entries.iter().map(entry_to_raft).collect::<Vec<_>>().into());
    raft.reject = message.reject;
    raft.reject_hint = message.reject_hint.0;
    raft.request_snapshot = message.request_snapshot.0;
    raft.priority = message.priority;
    raft.context = message.context;
    if let Some(ticket) = message.snapshot {
        raft.set_snapshot(ticket_to_raft(ticket));
    }
    raft
}

pub(super) fn message_from_raft(mut raft: eraftpb::Message) -> Result<Message, String> {
    let snapshot = if raft.has_snapshot() { Some(ticket_from_raft(raft.take_snapshot())?) } else { None };
    Ok(Message {
        kind: kind_from_raft(raft.get_msg_type())?,
        from: node_from_raft(raft.from)?,
        to: node_from_raft(raft.to)?,
        term: Term(raft.term),
        log_term: Term(raft.log_term),
        index: LogIndex(raft.index),
        commit: LogIndex(raft.commit),
        commit_term: Term(raft.commit_term),
        entries: entries_from_raft(raft.get_entries())?,
        reject: raft.reject,
        reject_hint: LogIndex(raft.reject_hint),
        request_snapshot: LogIndex(raft.request_snapshot),
        priority: raft.priority,
        context: std::mem::take(&mut raft.context),
        snapshot,
    })
}

fn ticket_to_raft(ticket: SnapshotTicket) -> Snapshot {
    let mut raft = Snapshot { data: ticket.data, ..Snapshot::default() };
    let metadata = raft.mut_metadata();
    metadata.index = ticket.id.index.0;
    metadata.term = ticket.id.term.0;
    metadata.set_conf_state(membership_to_raft(&ticket.membership));
    raft
}

fn ticket_from_raft(mut raft: Snapshot) -> Result<SnapshotTicket, String> {
    let metadata = raft.get_metadata();
    Ok(SnapshotTicket {
        id: EntryId { index: LogIndex(metadata.index), term: Term(metadata.term) },
        membership: membership_from_raft(metadata.get_conf_state())?,
        data: std::mem::take(&mut raft.data),
    })
}

/// Cuts an append message into several that carry at most `max_bytes` of payload each, or one entry.
///
/// The library joins what it has for a follower without regard to size. To Raft the pieces are the messages that it
/// might have sent instead: each begins where the one before it ends.
pub(super) fn split_append(message: Message, max_bytes: u64) -> Vec<Message> {
    let size = |entry: &LogEntry| entry.data.len() as u64;
    let fits = message.entries.iter().map(size).sum::<u64>() <= max_bytes;
    if message.kind != MessageKind::Append || fits || message.entries.len() == 1 {
        return vec![message];
    }
    let mut head = message;
    let entries = std::mem::take(&mut head.entries);
    let mut pieces: Vec<Message> = Vec::new();
    let (mut piece, mut bytes) = (head.clone(), 0);
    for entry in entries {
        if !piece.entries.is_empty() && bytes + size(&entry) > max_bytes {
            let previous = piece.entries.last().map_or(head.index, |last| last.id.index);
            let log_term = piece.entries.last().map_or(head.log_term, |last| last.id.term);
            let next = Message { index: previous, log_term, ..head.clone() };
            pieces.push(std::mem::replace(&mut piece, next));
            bytes = 0;
        }
        bytes += size(&entry);
        piece.entries.push(entry);
    }
    pieces.push(piece);
    pieces
}

/// An empty payload, for entries of which only the class is asked.
pub(super) fn without_payload(mut entry: eraftpb::Entry) -> eraftpb::Entry {
    entry.data = Bytes::new();
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, class: EntryClass, data: &'static [u8]) -> LogEntry {
        LogEntry { id: EntryId { index: LogIndex(index), term: Term(term) }, class, data: Bytes::from_static(data) }
    }

    fn message(kind: MessageKind) -> Message {
        Message {
            kind,
            from: NodeId(1),
            to: NodeId(u16::MAX),
            term: Term(3),
            log_term: Term(4),
            index: LogIndex(5),
            commit: LogIndex(6),
            commit_term: Term(7),
            entries: vec![entry(8, 9, EntryClass::Normal, b"ten"), entry(11, 12, EntryClass::Membership, b"")],
            reject: true,
            reject_hint: LogIndex(13),
            request_snapshot: LogIndex(14),
            priority: -15,
            context: Bytes::from_static(b"sixteen"),
            snapshot: Some(SnapshotTicket {
                id: EntryId { index: LogIndex(17), term: Term(18) },
                membership: membership(),
                data: Bytes::from_static(b"nineteen"),
            }),
        }
    }

    fn membership() -> Membership {
        Membership {
            voters: vec![NodeId(1), NodeId(2)],
            learners: vec![NodeId(3)],
            voters_outgoing: vec![NodeId(2), NodeId(4)],
            learners_next: vec![NodeId(4)],
            auto_leave: true,
        }
    }

    #[test]
    fn every_message_comes_back() {
        for kind in MessageKind::ALL {
            let whole = message(kind);
            assert_eq!(message_from_raft(message_to_raft(whole.clone())), Ok(whole));
            let bare = Message { entries: Vec::new(), reject: false, snapshot: None, ..message(kind) };
            assert_eq!(message_from_raft(message_to_raft(bare.clone())), Ok(bare));
        }
    }

    #[test]
    fn hard_states_and_members_come_back() {
        for vote in [None, Some(NodeId(1)), Some(NodeId(u16::MAX))] {
            let state = HardState { term: Term(2), vote, commit: LogIndex(3) };
            assert_eq!(hard_state_from_raft(&hard_state_to_raft(&state)), Ok(state));
        }
        assert_eq!(membership_from_raft(&membership_to_raft(&membership())), Ok(membership()));
        let mut shuffled = membership_to_raft(&membership());
        shuffled.set_voters(vec![2, 1]);
        assert_eq!(membership_from_raft(&shuffled), Ok(membership()), "ascending");
    }

    #[test]
    fn what_has_no_word_is_an_error() {
        for kind in [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgCheckQuorum] {
            let mut raft = message_to_raft(message(MessageKind::Append));
            raft.set_msg_type(kind);
            assert!(message_from_raft(raft).is_err(), "{kind:?}");
        }
        for (id, fits) in [(65534, true), (65535, true), (65536, false)] {
            assert_eq!(node_from_raft(id).is_ok(), fits, "{id}");
        }
        let mut old = entry_to_raft(&entry(1, 1, EntryClass::Membership, b""));
        old.set_entry_type(EntryType::EntryConfChange);
        assert!(entry_from_raft(&old).is_err());
    }

    #[test]
    fn our_payload_wins_over_the_library_s() {
        let mut fresh = entry_to_raft(&entry(5, 2, EntryClass::Membership, b"protobuf"));
        fresh.context = Bytes::from_static(b"ours");
        assert_eq!(entry_from_raft(&fresh), Ok(entry(5, 2, EntryClass::Membership, b"ours")));
    }

    #[test]
    fn a_large_append_is_cut_between_entries() {
        let mut whole = message(MessageKind::Append);
        whole.entries = (6..=9).map(|index| entry(index, 4, EntryClass::Normal, b"12345")).collect();
        let cut = |max_bytes| -> Vec<(u64, u64, usize)> {
            split_append(whole.clone(), max_bytes).iter().map(|m| (m.index.0, m.log_term.0, m.entries.len())).collect()
        };
        assert_eq!(cut(20), [(5, 4, 4)]);
        assert_eq!(cut(19), [(5, 4, 3), (8, 4, 1)]);
        assert_eq!(cut(10), [(5, 4, 2), (7, 4, 2)]);
        assert_eq!(cut(0), [(5, 4, 1), (6, 4, 1), (7, 4, 1), (8, 4, 1)]);
    }
}
