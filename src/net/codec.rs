//! Raft messages as bytes: our own format, so that no protobuf is ever parsed from the network.
//!
//! ```text
//! offset size  field (little-endian)
//!      0    1  kind: 1 append, 2 append reply, 3 vote, 4 vote reply, 5 pre-vote, 6 pre-vote reply, 7 heartbeat,
//!              8 heartbeat reply, 9 snapshot, 10 read index, 11 read index reply, 12 timeout now, 13 transfer leader
//!      1    1  flags: 1 reject, 2 snapshot ticket follows
//!      2    2  from
//!      4    2  to
//!      6    8  term
//!     14    8  log term
//!     22    8  index
//!     30    8  commit
//!     38    8  commit term
//!     46    8  reject hint
//!     54    8  request snapshot
//!     62    8  priority
//!     70    4  length of context, context
//!           4  number of entries; then for each: 8 term, 8 index, 1 class (0 normal, 1 membership), 4 length, data
//!              ticket, if flagged: 8 term, 8 index, membership, 4 length, data
//!
//! membership   voters, learners, outgoing voters, next learners: each 4 count, 2 per id, ascending; 1 auto leave
//! ```
//!
//! There is no kind for proposals: a leader takes them from its own process only.
//!
//! Refused besides wrong lengths is what would be an error of the sender and could break an invariant of the receiver's
//! Raft: entries of an append that do not follow its index one by one or whose terms fall, entries or a ticket on a kind
//! that has none, ids that are 0 or do not ascend, indexes beyond 2^62.
//!
//! Deliberately absent: whether the sender may say this (`handshake.rs`), and the meaning of membership entries' data.

use bytes::Bytes;

use crate::fields::{Damaged, Reader, put_count};
use crate::types::{
    EntryClass, EntryId, LogEntry, LogIndex, Membership, Message, MessageKind, NodeId, SnapshotTicket, Term,
};

const REJECT: u8 = 1;
const TICKET: u8 = 2;
/// Bytes of an entry without its data.
const ENTRY_HEAD: usize = 21;
/// No honest index or term comes near, and one more never overflows.
const MAX_INDEX: u64 = 1 << 62;

/// Bytes of entry data in a message.
pub fn entry_bytes(message: &Message) -> usize {
    message.entries.iter().map(|entry| entry.data.len()).sum()
}

/// About how many bytes [`encode`] will append; never less.
pub fn size(message: &Message) -> usize {
    let ticket = message.snapshot.as_ref().map_or(0, |ticket| {
        let m = &ticket.membership;
        let ids = m.voters.len() + m.learners.len() + m.voters_outgoing.len() + m.learners_next.len();
        48 + 2 * ids + ticket.data.len()
    });
    80 + message.context.len() + message.entries.len() * ENTRY_HEAD + entry_bytes(message) + ticket
}

/// Appends a message.
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    out.reserve(size(message));
    out.push(kind_number(message.kind));
    let ticket = if message.snapshot.is_some() { TICKET } else { 0 };
    out.push(ticket | if message.reject { REJECT } else { 0 });
    out.extend_from_slice(&message.from.0.to_le_bytes());
    out.extend_from_slice(&message.to.0.to_le_bytes());
    for field in [
        message.term.0,
        message.log_term.0,
        message.index.0,
        message.commit.0,
        message.commit_term.0,
        message.reject_hint.0,
        message.request_snapshot.0,
    ] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&message.priority.to_le_bytes());
    put_bytes(out, &message.context);
    put_count(out, message.entries.len());
    for entry in &message.entries {
        put_id(out, entry.id);
        out.push(match entry.class {
            EntryClass::Normal => 0,
            EntryClass::Membership => 1,
        });
        put_bytes(out, &entry.data);
    }
    if let Some(ticket) = &message.snapshot {
        put_id(out, ticket.id);
        let m = &ticket.membership;
        for ids in [&m.voters, &m.learners, &m.voters_outgoing, &m.learners_next] {
            put_count(out, ids.len());
            for id in ids {
                out.extend_from_slice(&id.0.to_le_bytes());
            }
        }
        out.push(u8::from(m.auto_leave));
        put_bytes(out, &ticket.data);
    }
}

fn put_id(out: &mut Vec<u8>, id: EntryId) {
    out.extend_from_slice(&id.term.0.to_le_bytes());
    out.extend_from_slice(&id.index.0.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn kind_number(kind: MessageKind) -> u8 {
    match kind {
        MessageKind::Append => 1,
        MessageKind::AppendReply => 2,
        MessageKind::Vote => 3,
        MessageKind::VoteReply => 4,
        MessageKind::PreVote => 5,
        MessageKind::PreVoteReply => 6,
        MessageKind::Heartbeat => 7,
        MessageKind::HeartbeatReply => 8,
        MessageKind::Snapshot => 9,
        MessageKind::ReadIndex => 10,
        MessageKind::ReadIndexReply => 11,
        MessageKind::TimeoutNow => 12,
        MessageKind::TransferLeader => 13,
    }
}

fn kind_of(number: u8) -> Option<MessageKind> {
    Some(match number {
        1 => MessageKind::Append,
        2 => MessageKind::AppendReply,
        3 => MessageKind::Vote,
        4 => MessageKind::VoteReply,
        5 => MessageKind::PreVote,
        6 => MessageKind::PreVoteReply,
        7 => MessageKind::Heartbeat,
        8 => MessageKind::HeartbeatReply,
        9 => MessageKind::Snapshot,
        10 => MessageKind::ReadIndex,
        11 => MessageKind::ReadIndexReply,
        12 => MessageKind::TimeoutNow,
        13 => MessageKind::TransferLeader,
        _ => return None,
    })
}

/// Reads what [`encode`] wrote. The data of entries stays where it is: slices of `body`.
pub fn decode(body: &Bytes) -> Result<Message, Damaged> {
    let mut fields = Reader::new(body);
    let kind = fields.u8("kind")?;
    let kind = kind_of(kind).ok_or_else(|| fields.damaged(format!("message kind {kind}, known are 1 to 13")))?;
    let flags = fields.u8("flags")?;
    if flags & !(REJECT | TICKET) != 0 {
        return Err(fields.damaged(format!("flags {flags:#04x}, known are 1 and 2")));
    }
    let mut message = Message {
        kind,
        from: fields.node("from")?,
        to: fields.node("to")?,
        term: Term(number(&mut fields, "term")?),
        log_term: Term(number(&mut fields, "log term")?),
        index: LogIndex(number(&mut fields, "index")?),
        commit: LogIndex(number(&mut fields, "commit")?),
        commit_term: Term(number(&mut fields, "commit term")?),
        entries: Vec::new(),
        reject: flags & REJECT != 0,
        reject_hint: LogIndex(number(&mut fields, "reject hint")?),
        request_snapshot: LogIndex(number(&mut fields, "request snapshot")?),
        priority: fields.u64("priority")?.cast_signed(),
        context: Bytes::new(),
        snapshot: None,
    };
    message.context = data(&mut fields, body, "context")?;
    message.entries = entries(&mut fields, body, &message)?;
    if (flags & TICKET != 0) != (kind == MessageKind::Snapshot) {
        return Err(fields.damaged(format!("{kind:?} with flags {flags:#04x}: a snapshot and only it has a ticket")));
    }
    if flags & TICKET != 0 {
        let id = entry_id(&mut fields)?;
        let membership = Membership {
            voters: ids(&mut fields, "voters")?,
            learners: ids(&mut fields, "learners")?,
            voters_outgoing: ids(&mut fields, "outgoing voters")?,
            learners_next: ids(&mut fields, "next learners")?,
            auto_leave: fields.bool("auto leave")?,
        };
        if membership.voters.is_empty() {
            return Err(fields.damaged("a ticket without voters"));
        }
        message.snapshot = Some(SnapshotTicket { id, membership, data: data(&mut fields, body, "ticket data")? });
    }
    fields.end()?;
    Ok(message)
}

fn entries(fields: &mut Reader<'_>, body: &Bytes, message: &Message) -> Result<Vec<LogEntry>, Damaged> {
    let count = fields.count(ENTRY_HEAD, "number of entries")?;
    let kind = message.kind;
    if count > 0 && !matches!(kind, MessageKind::Append | MessageKind::ReadIndex | MessageKind::ReadIndexReply) {
        return Err(fields.damaged(format!("{kind:?} with {count} entries")));
    }
    let mut entries = Vec::with_capacity(count);
    let mut previous = EntryId { index: message.index, term: message.log_term };
    for _ in 0..count {
        let id = entry_id(fields)?;
        let class = match fields.u8("class")? {
            0 => EntryClass::Normal,
            1 => EntryClass::Membership,
            other => return Err(fields.damaged(format!("entry class {other}, known are 0 and 1"))),
        };
        if kind == MessageKind::Append {
            if id.index != previous.index.next() || id.term < previous.term || id.term > message.term {
                return Err(fields.damaged(format!(
                    "entry {} of term {} after entry {} of term {} in an append of term {}",
                    id.index, id.term, previous.index, previous.term, message.term
                )));
            }
            previous = id;
        }
        entries.push(LogEntry { id, class, data: data(fields, body, "entry data")? });
    }
    Ok(entries)
}

fn number(fields: &mut Reader<'_>, name: &str) -> Result<u64, Damaged> {
    match fields.u64(name)? {
        value if value <= MAX_INDEX => Ok(value),
        value => Err(fields.damaged(format!("{name} {value} beyond 2^62"))),
    }
}

fn entry_id(fields: &mut Reader<'_>) -> Result<EntryId, Damaged> {
    let term = Term(number(fields, "entry term")?);
    Ok(EntryId { term, index: LogIndex(number(fields, "entry index")?) })
}

fn data(fields: &mut Reader<'_>, body: &Bytes, name: &str) -> Result<Bytes, Damaged> {
    let len = fields.count(1, name)?;
    let start = fields.at();
    fields.bytes(len, name)?;
    Ok(body.slice(start..start + len))
}

fn ids(fields: &mut Reader<'_>, name: &str) -> Result<Vec<NodeId>, Damaged> {
    let count = fields.count(2, name)?;
    let mut ids: Vec<NodeId> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = fields.node(name)?;
        if let Some(last) = ids.last()
            && *last >= id
        {
            return Err(fields.damaged(format!("{name}: {id} after {last}, ids must ascend")));
        }
        ids.push(id);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests;
