//! Logs that were written as a log is, record by record, but by nobody who keeps its rules: heads, batches and records with
//! valid checksums and chains, and any content.
//!
//! Most numbers are said as what is to be *added* to the one that would be right there, so that a script of zeros is a good
//! log, and one that is changed in few places nearly one. Beside the bytes it is noted what the records say, without
//! any rule: a log that opens has exactly that in it. And it does not open if something is in it that no rule allows.

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use shoaldb::log::{Anchor, Recovered};
use shoaldb::types::{ClusterId, EntryClass, EntryId, HardState, LogEntry, LogIndex, Membership, NodeId, Term};

use crate::mended::{lap, sealed};

const SECTOR: usize = 512;
/// Steps of one script, at most.
const STEPS: usize = 200;

/// What the log begins with: behind which entry, and in which state.
#[derive(Arbitrary, Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "fields of the head, see `log/record.rs`")]
pub struct Start {
    pub number: u8,
    pub fresh: bool,
    pub index: u16,
    pub term: u8,
    pub vote: u8,
    pub commit: u16,
}

/// What is wrong with the head of a further segment.
#[derive(Arbitrary, Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "fields of the head, see `log/record.rs`")]
pub enum Twist {
    None,
    Chain,
    Last,
    HardState,
    Anchor,
    PreviousEnd,
    Number,
    Cluster,
    /// Nothing: it says that nothing before it counts.
    Fresh,
    /// Nothing: the segment before does not say that there is this one.
    Unsaid,
}

/// One record, or the end of something.
#[derive(Arbitrary, Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "fields of the records, see `log/record.rs`")]
pub enum Step {
    Entry {
        index: i8,
        term: i8,
        membership: bool,
        len: u8,
    },
    /// `back`: how many entries go.
    Truncate {
        back: u8,
        term: i8,
    },
    HardState {
        term: i8,
        vote: u8,
        commit: i8,
    },
    Anchor {
        applied: i8,
        voters: u8,
        registry: u8,
    },
    /// In the middle, or as the last word of the log.
    Sealed {
        next: i8,
    },
    /// A kind that there is not, or a payload that does not fit its kind.
    Unknown {
        kind: u8,
        payload: u8,
    },
    Batch {
        synced: i8,
    },
    Segment {
        twist: Twist,
    },
}

/// What the records say.
struct Said {
    start: EntryId,
    hard_state: HardState,
    anchor: Anchor,
    entries: Vec<LogEntry>,
}

impl Said {
    fn last(&self) -> EntryId {
        self.entries.last().map_or(self.start, |entry| entry.id)
    }
}

struct Writer {
    cluster: u64,
    number: u64,
    files: Vec<(String, Vec<u8>)>,
    segment: Vec<u8>,
    /// The records of the open batch, with what a checksum is put into.
    records: Vec<Vec<u8>>,
    chain: u32,
    said: Said,
    /// Something is in it that must not be.
    refused: bool,
}

fn membership(voters: u8) -> Membership {
    Membership { voters: (1..=u16::from(voters % 8)).map(NodeId).collect(), ..Membership::default() }
}

fn put_anchor(out: &mut Vec<u8>, anchor: &Anchor) {
    let members = &anchor.membership;
    for ids in [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next] {
        out.extend_from_slice(&(ids.len() as u16).to_le_bytes());
        ids.iter().for_each(|id| out.extend_from_slice(&id.0.to_le_bytes()));
    }
    out.push(u8::from(members.auto_leave));
    out.extend_from_slice(&(anchor.registry.len() as u32).to_le_bytes());
    out.extend_from_slice(&anchor.registry);
}

fn vote(vote: Option<NodeId>) -> [u8; 2] {
    vote.map_or(0, |node| node.0).to_le_bytes()
}

fn added(to: u64, value: i8) -> u64 {
    to.wrapping_add_signed(value.into())
}

impl Writer {
    fn new(start: Start) -> Writer {
        let id = EntryId { index: LogIndex(start.index.into()), term: Term(start.term.into()) };
        let hard_state = HardState {
            term: Term(start.term.into()),
            vote: Some(NodeId(start.vote.into())).filter(|node| node.0 != 0),
            commit: LogIndex(start.commit.into()),
        };
        let anchor = Anchor { applied: id.index, membership: membership(3), registry: Bytes::new() };
        let said = Said { start: id, hard_state, anchor, entries: Vec::new() };
        let number = u64::from(start.number) + 1;
        let (files, segment, records) = Default::default();
        let mut writer = Writer { cluster: 7, number, files, segment, records, chain: 0, said, refused: false };
        writer.head(0, if start.fresh { Twist::Fresh } else { Twist::None });
        writer
    }

    fn head(&mut self, previous_end: u64, twist: Twist) {
        let one = |wrong: Twist| u64::from(twist == wrong);
        let (cluster, number) = (self.cluster ^ one(Twist::Cluster), self.number ^ one(Twist::Number));
        let said = &self.said;
        let mut out = [&b"SHOALLOG"[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
        for field in [cluster, lap(cluster, number), number, previous_end ^ one(Twist::PreviousEnd)] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&(self.chain ^ one(Twist::Chain) as u32).to_le_bytes());
        out.extend_from_slice(&(one(Twist::Fresh) as u32).to_le_bytes());
        let (last, hard_state) = (said.last(), said.hard_state);
        let commit = hard_state.commit.0 ^ one(Twist::HardState);
        for field in [last.index.0 ^ one(Twist::Last), last.term.0, hard_state.term.0, commit] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&vote(hard_state.vote));
        out.extend_from_slice(&(said.anchor.applied.0 ^ one(Twist::Anchor)).to_le_bytes());
        put_anchor(&mut out, &said.anchor);
        out.extend_from_slice(&[0; 4]);
        let len = out.len();
        out[12..16].copy_from_slice(&(len as u32).to_le_bytes());
        sealed(&mut out);
        self.chain = crc32c::crc32c(&out[..len - 4]);
        out.resize(len.next_multiple_of(SECTOR), 0);
        self.segment = out;
    }

    /// A record of the open batch; its checksum follows when the batch ends.
    fn record(&mut self, kind: u64, index: u64, term: u64, payload: &[u8]) {
        let mut record = vec![0; 4];
        record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        [kind, index, term].iter().for_each(|field| record.extend_from_slice(&field.to_le_bytes()));
        record.extend_from_slice(payload);
        self.records.push(record);
    }

    fn end_batch(&mut self, synced: i8) {
        if self.records.is_empty() {
            return;
        }
        let offset = self.segment.len();
        let len: usize = self.records.iter().map(|record| record.len().next_multiple_of(8)).sum();
        let mut header = [&b"BTCH"[..], &[0; 4]].concat();
        for field in [lap(self.cluster, self.number), offset as u64, added(offset as u64, synced)] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        header.extend_from_slice(&self.chain.to_le_bytes());
        header.extend_from_slice(&(len as u32).to_le_bytes());
        self.chain = crc32c::crc32c(&header[8..]);
        header[4..8].copy_from_slice(&self.chain.to_le_bytes());
        self.segment.extend_from_slice(&header);
        for mut record in std::mem::take(&mut self.records) {
            self.chain = crc32c::crc32c_append(self.chain, &record[4..]);
            record[..4].copy_from_slice(&self.chain.to_le_bytes());
            record.resize(record.len().next_multiple_of(8), 0);
            self.segment.extend_from_slice(&record);
        }
        self.segment.resize(self.segment.len().next_multiple_of(SECTOR), 0);
    }

    fn end_segment(&mut self, twist: Option<Twist>) {
        self.end_batch(0);
        let (end, chain) = (self.segment.len() as u64, self.chain);
        if twist.is_some_and(|twist| twist != Twist::Unsaid) {
            self.record(6, self.number + 1, 0, &[]);
            self.end_batch(0);
            self.chain = chain;
        }
        self.files.push((format!("{:016x}.seg", self.number), std::mem::take(&mut self.segment)));
        let Some(twist) = twist else { return };
        self.number += 1;
        if twist == Twist::Fresh {
            // It says itself where it begins.
            self.said.start = self.said.last();
            self.said.entries.clear();
            self.chain = 0;
        }
        self.head(if twist == Twist::Fresh { 0 } else { end }, twist);
        self.refused = match twist {
            Twist::None | Twist::Unsaid => self.refused,
            Twist::Fresh => false,
            _ => true,
        };
    }

    fn step(&mut self, step: &Step) {
        let last = self.said.last();
        match *step {
            Step::Entry { index, term, membership, len } => {
                let index = added(last.index.0 + 1, index);
                let term = added(last.term.0.max(self.said.hard_state.term.0), term);
                let data = vec![len ^ 0x55; len.into()];
                self.record(if membership { 2 } else { 1 }, index, term, &data);
                let class = if membership { EntryClass::Membership } else { EntryClass::Normal };
                let id = EntryId { index: LogIndex(index), term: Term(term) };
                self.refused |= index != last.index.0 + 1 || id.term < last.term;
                self.said.entries.push(LogEntry { id, class, data: data.into() });
            }
            Step::Truncate { back, term } => {
                let index = last.index.0.wrapping_sub(u64::from(back));
                let known = self.said.entries.iter().find(|entry| entry.id.index.0 == index);
                let known = known.map_or(self.said.start.term, |entry| entry.id.term);
                let to = EntryId { index: LogIndex(index), term: Term(added(known.0, term)) };
                self.record(3, to.index.0, to.term.0, &[]);
                self.said.entries.retain(|entry| entry.id.index <= to.index);
                if to.index < self.said.start.index {
                    self.said.start = to;
                }
            }
            Step::HardState { term, vote: node, commit } => {
                let old = self.said.hard_state;
                let node = Some(NodeId(node.into())).filter(|node| node.0 != 0);
                let state = HardState {
                    term: Term(added(old.term.0, term)),
                    vote: node,
                    commit: LogIndex(added(old.commit.0, commit)),
                };
                self.record(4, state.commit.0, state.term.0, &vote(node));
                let voted = state.term == old.term && old.vote.is_some() && state.vote != old.vote;
                self.refused |= voted || state.term < old.term || state.commit < old.commit;
                self.said.hard_state = state;
            }
            Step::Anchor { applied, voters, registry } => {
                let applied = LogIndex(added(self.said.anchor.applied.0, applied));
                let registry = Bytes::from(vec![registry; registry.into()]);
                let anchor = Anchor { applied, membership: membership(voters), registry };
                let mut payload = Vec::new();
                put_anchor(&mut payload, &anchor);
                self.record(5, applied.0, 0, &payload);
                self.refused |= applied > last.index || applied < self.said.anchor.applied;
                self.said.anchor = anchor;
            }
            Step::Sealed { next } => {
                self.record(6, added(self.number + 1, next), 0, &[]);
                self.refused = true;
            }
            Step::Unknown { kind, payload } => {
                let index = last.index.0;
                match kind % 8 {
                    // None of them has so many bytes.
                    kind @ 3..=6 => self.record(kind.into(), index, last.term.0, &vec![0xff; 3 + usize::from(payload)]),
                    0 => self.record(0, index, last.term.0, &[payload]),
                    other => self.record(u64::from(other) << 3, index, last.term.0, &[payload]),
                }
                self.refused = true;
            }
            Step::Batch { synced } => self.end_batch(synced),
            Step::Segment { twist } => self.end_segment(Some(twist)),
        }
    }
}

/// See the module's text.
pub(crate) fn log(data: &[u8]) -> bool {
    let mut bytes = Unstructured::new(data);
    let Ok(start) = Start::arbitrary(&mut bytes) else { return false };
    let mut writer = Writer::new(start);
    for _ in 0..STEPS {
        let Ok(step) = Step::arbitrary(&mut bytes) else { break };
        writer.step(&step);
        if bytes.is_empty() {
            break;
        }
    }
    writer.end_segment(None);
    let Writer { files, said, refused, .. } = writer;
    crate::opened(files, |recovered, entries| {
        assert!(!refused, "a log that breaks a rule was taken: {recovered:?}");
        let told = Recovered {
            cluster: ClusterId(7),
            hard_state: said.hard_state,
            anchor: said.anchor.clone(),
            start: said.start,
            last: said.last(),
            cut: None,
        };
        assert_eq!(*recovered, told);
        assert_eq!(*entries, said.entries);
    })
}

/// The bytes of a script.
pub fn written(start: Start, steps: &[Step]) -> Vec<u8> {
    let mut bytes = vec![start.number, u8::from(start.fresh)];
    bytes.extend_from_slice(&start.index.to_le_bytes());
    bytes.extend_from_slice(&[start.term, start.vote]);
    bytes.extend_from_slice(&start.commit.to_le_bytes());
    // As `arbitrary` chooses one of so many.
    let chosen = |number: u64, of: u64| ((number << 32).div_ceil(of) as u32).to_le_bytes();
    for step in steps {
        let (number, fields) = match *step {
            Step::Entry { index, term, membership, len } => (0, vec![index as u8, term as u8, membership.into(), len]),
            Step::Truncate { back, term } => (1, vec![back, term as u8]),
            Step::HardState { term, vote, commit } => (2, vec![term as u8, vote, commit as u8]),
            Step::Anchor { applied, voters, registry } => (3, vec![applied as u8, voters, registry]),
            Step::Sealed { next } => (4, vec![next as u8]),
            Step::Unknown { kind, payload } => (5, vec![kind, payload]),
            Step::Batch { synced } => (6, vec![synced as u8]),
            Step::Segment { twist } => (7, chosen(twist as u64, 10).to_vec()),
        };
        bytes.extend_from_slice(&chosen(number, 8));
        bytes.extend_from_slice(&fields);
    }
    let mut again = Unstructured::new(&bytes);
    assert_eq!(Start::arbitrary(&mut again), Ok(start));
    for step in steps {
        assert_eq!(Step::arbitrary(&mut again).as_ref(), Ok(step));
    }
    bytes
}
