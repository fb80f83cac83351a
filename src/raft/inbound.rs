//! May this message reach the library?
//!
//! The library trusts what it is given: a message of term 0 is its own, an index beyond the log panics. Peers are
//! programs like this one, but bytes on a wire are bytes on a wire, so all that the library takes for granted is looked
//! at here first. One line per kind:
//!
//! ```text
//! kind             from           must hold, besides term >= 1 and positions below 2^56
//! Append           anyone         entries follow on `index`; terms rise from `log term` >= 1 up to the message's
//! Heartbeat        anyone         commit is in our log; else we lost entries that we acknowledged: stop
//! Vote, PreVote    anyone
//! TimeoutNow       anyone         this node may campaign
//! ReadIndexReply   anyone         one context
//! AppendReply      a member       no snapshot wanted; to a leader of this term: index and hint are in our log
//! HeartbeatReply   a member
//! (Pre)VoteReply   a member
//! ReadIndex        a member       one context; term 0; we lead
//! TransferLeader   a member       we lead
//! Snapshot                        never: see `raft.rs`
//! ```
//!
//! "Anyone": a node that lags may hear from a leader that it does not know as a member yet, and must obey it.

use super::Role;
use crate::types::{EntryClass, LogIndex, Message, MessageKind, NodeId, Term};

/// No log gets there: a million entries a second for two thousand years. Sums of two positions cannot overflow.
const MAX_POSITION: u64 = 1 << 56;

/// Where this node stands when a message comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) id: NodeId,
    pub(super) role: Role,
    pub(super) term: Term,
    pub(super) last: LogIndex,
    /// Whether the sender is a member, as far as we know.
    pub(super) member: bool,
    /// Whether we may campaign now.
    pub(super) may_campaign: bool,
}

/// What to do with a message.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Accept,
    /// Forget it, for this reason.
    Refuse(&'static str),
    /// It proves that this node is not fit to go on.
    Stop(String),
}

/// Judges a message.
pub(super) fn judge(message: &Message, at: &Standing) -> Verdict {
    match refusal(message, at) {
        Some(reason) => Verdict::Refuse(reason),
        None if message.kind == MessageKind::Heartbeat && message.term >= at.term && message.commit > at.last => {
            Verdict::Stop(format!(
                "leader {} of term {} knows this node to have entry {}, but its log ends at {}: it lost entries that \
                 it had acknowledged; remove this node, and let a new one, with an empty directory and a new id, take its \
                 place",
                message.from, message.term, message.commit, at.last
            ))
        }
        None => Verdict::Accept,
    }
}

fn refusal(message: &Message, at: &Standing) -> Option<&'static str> {
    if message.to != at.id {
        return Some("for another node");
    }
    if message.from == at.id || message.from.0 == 0 {
        return Some("from no peer");
    }
    if (message.term.0 == 0) != (message.kind == MessageKind::ReadIndex) {
        return Some("term 0 is for read indexes, and only for them");
    }
    let positions = [message.term.0, message.log_term.0, message.index.0, message.commit.0, message.commit_term.0];
    if positions.iter().chain([&message.reject_hint.0]).any(|position| *position >= MAX_POSITION) {
        return Some("position out of range");
    }
    let leads = at.role == Role::Leader;
    match message.kind {
        MessageKind::Append => broken_append(message),
        MessageKind::Heartbeat | MessageKind::Vote | MessageKind::PreVote => None,
        MessageKind::TimeoutNow if !at.may_campaign => Some("may not campaign now"),
        MessageKind::TimeoutNow => None,
        MessageKind::ReadIndexReply => no_context(message),
        MessageKind::Snapshot => Some("snapshot is not on disk yet"),
        _ if !at.member => Some("from a stranger"),
        MessageKind::AppendReply if message.request_snapshot.0 != 0 => Some("asks for a snapshot"),
        MessageKind::AppendReply if leads && message.term == at.term => beyond_our_log(message, at.last),
        MessageKind::AppendReply | MessageKind::HeartbeatReply | MessageKind::VoteReply | MessageKind::PreVoteReply => {
            None
        }
        MessageKind::ReadIndex | MessageKind::TransferLeader if !leads => Some("we do not lead"),
        MessageKind::ReadIndex => no_context(message),
        MessageKind::TransferLeader => None,
    }
}

fn broken_append(message: &Message) -> Option<&'static str> {
    if message.log_term.0 == 0 || message.index.0 == 0 {
        return Some("entries after no entry");
    }
    let mut before = (message.index, message.log_term);
    for entry in &message.entries {
        if entry.id.index != before.0.next() {
            return Some("entries with a gap");
        }
        if entry.id.term < before.1 || entry.id.term > message.term {
            return Some("entries with wrong terms");
        }
        before = (entry.id.index, entry.id.term);
    }
    None
}

fn no_context(message: &Message) -> Option<&'static str> {
    match &message.entries[..] {
        [context] if context.class == EntryClass::Normal && !context.data.is_empty() => None,
        _ => Some("not one context"),
    }
}

fn beyond_our_log(message: &Message, last: LogIndex) -> Option<&'static str> {
    (message.index > last || message.reject_hint > last).then_some("acknowledges what we never sent")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{EntryId, LogEntry};

    fn at(role: Role) -> Standing {
        Standing { id: NodeId(1), role, term: Term(5), last: LogIndex(10), member: true, may_campaign: true }
    }

    fn message(kind: MessageKind) -> Message {
        let context = LogEntry { id: EntryId::default(), class: EntryClass::Normal, data: Bytes::from_static(b"c") };
        let reads = matches!(kind, MessageKind::ReadIndex | MessageKind::ReadIndexReply);
        Message {
            term: Term(if kind == MessageKind::ReadIndex { 0 } else { 5 }),
            log_term: Term(4),
            index: LogIndex(10),
            commit: LogIndex(10),
            commit_term: Term(4),
            entries: if reads { vec![context] } else { Vec::new() },
            ..Message::blank(kind, NodeId(2), NodeId(1))
        }
    }

    fn accepted(message: &Message, at: &Standing) -> bool {
        judge(message, at) == Verdict::Accept
    }

    #[test]
    fn who_may_send_what() {
        for kind in MessageKind::ALL {
            let to_leader = matches!(kind, MessageKind::ReadIndex | MessageKind::TransferLeader);
            let announcement = kind == MessageKind::Snapshot;
            let reply = matches!(
                kind,
                MessageKind::AppendReply
                    | MessageKind::VoteReply
                    | MessageKind::PreVoteReply
                    | MessageKind::HeartbeatReply
            );
            assert_eq!(accepted(&message(kind), &at(Role::Leader)), !announcement, "{kind:?} to a leader");
            assert_eq!(accepted(&message(kind), &at(Role::Follower)), !to_leader && !announcement, "{kind:?}");
            let stranger = Standing { member: false, ..at(Role::Leader) };
            let expected = !to_leader && !reply && !announcement;
            assert_eq!(accepted(&message(kind), &stranger), expected, "{kind:?} from a stranger");
            for (from, to) in [(2, 3), (1, 1), (0, 1)] {
                let misdirected = Message { from: NodeId(from), to: NodeId(to), ..message(kind) };
                assert!(!accepted(&misdirected, &at(Role::Leader)), "{kind:?} from {from} to {to}");
            }
        }
    }

    #[test]
    fn term_zero_is_local_to_the_library() {
        for kind in MessageKind::ALL {
            let term = if kind == MessageKind::ReadIndex { 5 } else { 0 };
            assert!(!accepted(&Message { term: Term(term), ..message(kind) }, &at(Role::Leader)), "{kind:?}");
        }
    }

    #[test]
    fn positions_have_a_bound() {
        for (position, fits) in [(MAX_POSITION - 1, true), (MAX_POSITION, false), (u64::MAX, false)] {
            let vote = Message { term: Term(position), ..message(MessageKind::Vote) };
            assert_eq!(accepted(&vote, &at(Role::Follower)), fits, "{position}");
            let vote = Message { index: LogIndex(position), ..message(MessageKind::Vote) };
            assert_eq!(accepted(&vote, &at(Role::Follower)), fits, "{position}");
        }
    }

    #[test]
    fn entries_follow_on() {
        let append = |ids: &[(u64, u64)], log_term| {
            let entry = |(index, term): &(u64, u64)| LogEntry {
                id: EntryId { index: LogIndex(*index), term: Term(*term) },
                class: EntryClass::Normal,
                data: Bytes::new(),
            };
            let entries = ids.iter().map(entry).collect();
            let message = Message { entries, log_term: Term(log_term), ..message(MessageKind::Append) };
            accepted(&message, &at(Role::Follower))
        };
        assert!(append(&[(11, 4), (12, 5)], 4));
        assert!(append(&[], 4));
        for (ids, log_term) in [
            (&[(10, 4)][..], 4),
            (&[(12, 4)], 4),
            (&[(11, 4), (13, 4)], 4),
            (&[(11, 3)], 4),
            (&[(11, 5), (12, 4)], 4),
            (&[(11, 6)], 4),
            (&[(11, 4)], 0),
        ] {
            assert!(!append(ids, log_term), "{ids:?} after term {log_term}");
        }
    }

    #[test]
    fn a_heartbeat_that_commits_beyond_our_log_proves_a_loss() {
        for (commit, stops) in [(9, false), (10, false), (11, true)] {
            let heartbeat = Message { commit: LogIndex(commit), ..message(MessageKind::Heartbeat) };
            let verdict = judge(&heartbeat, &at(Role::Follower));
            assert_eq!(matches!(verdict, Verdict::Stop(_)), stops, "{commit}: {verdict:?}");
        }
        let old = Message { commit: LogIndex(11), term: Term(4), ..message(MessageKind::Heartbeat) };
        assert!(accepted(&old, &at(Role::Follower)), "what a deposed leader knew is no proof");
    }

    #[test]
    fn acknowledgements_stay_within_our_log() {
        for (index, hint, fits) in [(10, 0, true), (11, 0, false), (10, 10, true), (10, 11, false)] {
            let index = LogIndex(index);
            let reply = Message { index, reject_hint: LogIndex(hint), ..message(MessageKind::AppendReply) };
            assert_eq!(accepted(&reply, &at(Role::Leader)), fits, "{index} {hint}");
        }
        let wants = Message { request_snapshot: LogIndex(1), ..message(MessageKind::AppendReply) };
        assert!(!accepted(&wants, &at(Role::Leader)));
    }

    #[test]
    fn a_read_has_one_context() {
        for kind in [MessageKind::ReadIndex, MessageKind::ReadIndexReply] {
            let none = Message { entries: Vec::new(), ..message(kind) };
            let mut two = message(kind);
            two.entries.push(two.entries[0].clone());
            let mut empty = message(kind);
            empty.entries[0].data = Bytes::new();
            for bad in [none, two, empty] {
                assert!(!accepted(&bad, &at(Role::Leader)), "{bad:?}");
            }
        }
    }

    #[test]
    fn a_node_that_may_not_campaign_is_not_told_to() {
        let resting = Standing { may_campaign: false, ..at(Role::Follower) };
        assert!(!accepted(&message(MessageKind::TimeoutNow), &resting));
    }
}
