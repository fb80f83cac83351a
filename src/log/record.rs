//! Heads, batches and records of the log: values to bytes and back. All numbers are little-endian.
//!
//! ```text
//! head, at the start of a segment          batch header, at a multiple of 512
//! offset size field                        offset size field
//!      0    8  magic "SHOALLOG"                 0    4  magic "BTCH"
//!      8    4  format version                   4    4  CRC32C of the 32 bytes after it
//!     12    4  length of the head               8    8  lap of the segment
//!     16    8  cluster id                      16    8  offset of this batch in the segment
//!     24    8  lap                             24    8  offset below which this segment was
//!     32    8  segment number                           synced when this was written
//!     40    8  where the segment before        32    4  chain before this batch
//!              this one ends, 0 if none        36    4  length of the records that follow
//!     48    4  chain before this head
//!     52    4  flags; 1: nothing before    record, at a multiple of 8
//!              this head counts            offset size field
//!     56   16  last entry before: index,        0    4  CRC32C of the rest and the payload,
//!              term                                     seeded with the chain before it
//!     72   18  hard state: term, commit,        4    4  length of the payload
//!              vote (2 bytes, 0 none)           8    8  kind
//!     90       anchor (below)                  16    8  index
//!    end   -4  CRC32C of all before it         24    8  term
//!                                              32       payload, zeros up to a multiple of 8
//!
//! kind            index           term             payload
//! 1 entry         its index       its term         its data; class normal
//! 2 membership    its index       its term         its data; class membership
//! 3 truncate      new last index  that one's term  none: all entries behind that one are void
//! 4 hard state    commit          term             vote, 2 bytes, 0 none
//! 5 anchor        applied         0                the anchor's other fields
//! 6 sealed        next segment    0                none: this is the last record of its segment
//!
//! anchor: applied 8; voters, learners, outgoing voters, next learners, each a count (2) and ids (2);
//! auto-leave (1); length of the registry (4) and its bytes
//! ```
//!
//! The *chain* is the checksum of the latest head, batch header or record; each new one covers it, so that a record
//! counts only behind the very bytes it was written behind. The *lap* is drawn from the cluster id and the segment
//! number, and no number is used twice: what an earlier life of a recycled file left never validates, and as the lap and
//! the offset are in the batch header, neither does a batch that was copied into a payload.
//!
//! Deliberately absent: any file access, and any opinion about what a broken record means (`recover.rs`).

use bytes::Bytes;

use super::Anchor;
use crate::types::{ClusterId, EntryClass, EntryId, HardState, LogEntry, LogIndex, Membership, NodeId, Term};

/// The format this program reads and writes.
pub(super) const VERSION: u32 = 1;
/// Batches start at multiples of this: what a disk writes whole.
pub(super) const SECTOR: u64 = 512;
pub(super) const BATCH_HEADER: usize = 40;
pub(super) const RECORD_HEADER: usize = 32;
/// No head is longer: the registry of thousands of databases fits, and a damaged length does not ask for all memory.
pub(super) const MAX_HEAD: usize = 64 << 20;
/// Bytes of a head that hold its magic, version and length.
pub(super) const HEAD_PREFIX: usize = 16;

const HEAD_MAGIC: &[u8; 8] = b"SHOALLOG";
const BATCH_MAGIC: &[u8; 4] = b"BTCH";
/// Head flag: nothing before this head counts.
const FRESH: u32 = 1;

const ENTRY: u64 = 1;
const MEMBERSHIP: u64 = 2;
const TRUNCATE: u64 = 3;
const HARD_STATE: u64 = 4;
const ANCHOR: u64 = 5;
const SEALED: u64 = 6;

/// The next multiple of the sector size.
pub(super) fn sector_up(offset: u64) -> u64 {
    offset.next_multiple_of(SECTOR)
}

/// The lap of a segment: differs for all numbers of one cluster (each step can be undone), and is no number that a
/// payload contains by chance.
pub(super) fn lap(cluster: ClusterId, number: u64) -> u64 {
    let x = (cluster.0 ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a segment starts with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) cluster: ClusterId,
    pub(super) number: u64,
    /// Where the segment before this one ends; 0 for the first and for a fresh one.
    pub(super) previous_end: u64,
    pub(super) chain: u32,
    /// Nothing before this head counts: the log was created or replaced here.
    pub(super) fresh: bool,
    /// The last entry before this segment.
    pub(super) last: EntryId,
    pub(super) hard_state: HardState,
    pub(super) anchor: Anchor,
}

/// Why bytes are no head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHead {
    Version(u32),
    Broken(&'static str),
}

impl Head {
    /// Appends the head to `out`, padded to whole sectors, and returns the chain after it.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> u32 {
        let from = out.len();
        out.extend_from_slice(HEAD_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for number in [self.cluster.0, lap(self.cluster, self.number), self.number, self.previous_end] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.chain.to_le_bytes());
        out.extend_from_slice(&(if self.fresh { FRESH } else { 0 }).to_le_bytes());
        for number in [self.last.index.0, self.last.term.0, self.hard_state.term.0, self.hard_state.commit.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&encode_vote(self.hard_state.vote));
        out.extend_from_slice(&self.anchor.applied.0.to_le_bytes());
        encode_anchor(&self.anchor, out);
        let len = (out.len() - from + 4) as u32;
        out[from + 12..from + 16].copy_from_slice(&len.to_le_bytes());
        let crc = crc32c::crc32c(&out[from..]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(from + sector_up(u64::from(len)) as usize, 0);
        crc
    }

    /// Length of the head whose first [`HEAD_PREFIX`] bytes these are.
    pub(super) fn length(prefix: &[u8]) -> Result<usize, BadHead> {
        let mut at = Reader(prefix);
        if at.take(8) != Some(HEAD_MAGIC) {
            return Err(BadHead::Broken("no segment head: the magic bytes differ"));
        }
        match at.u32() {
            Some(VERSION) => {}
            Some(other) => return Err(BadHead::Version(other)),
            None => return Err(BadHead::Broken("the file is shorter than a head")),
        }
        match at.u32().map(|len| len as usize) {
            Some(len) if (HEAD_PREFIX + 4..=MAX_HEAD).contains(&len) => Ok(len),
            _ => Err(BadHead::Broken("the head's length cannot be")),
        }
    }

    /// Reads a head: it, and the chain after it.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Head, u32), BadHead> {
        let len = Head::length(bytes)?;
        let Some((content, crc)) = bytes.get(..len).and_then(|head| head.split_last_chunk::<4>()) else {
            return Err(BadHead::Broken("the file is shorter than its head"));
        };
        let crc = u32::from_le_bytes(*crc);
        if crc != crc32c::crc32c(content) {
            return Err(BadHead::Broken("the head's checksum differs"));
        }
        let mut at = Reader(&content[HEAD_PREFIX..]);
        let head = Head::fields(&mut at).filter(|_| at.0.is_empty());
        head.map(|head| (head, crc)).ok_or(BadHead::Broken("the head's fields cannot be"))
    }

    fn fields(at: &mut Reader<'_>) -> Option<Head> {
        let cluster = ClusterId(at.u64()?);
        let (found_lap, number, previous_end) = (at.u64()?, at.u64()?, at.u64()?);
        let (chain, flags) = (at.u32()?, at.u32()?);
        let last = EntryId { index: LogIndex(at.u64()?), term: Term(at.u64()?) };
        let hard_state = HardState { term: Term(at.u64()?), commit: LogIndex(at.u64()?), vote: decode_vote(at.u16()?) };
        let anchor = decode_anchor(LogIndex(at.u64()?), at)?;
        if found_lap != lap(cluster, number) || flags & !FRESH != 0 || last.index.0 > LARGEST_INDEX {
            return None;
        }
        Some(Head { cluster, number, previous_end, chain, fresh: flags == FRESH, last, hard_state, anchor })
    }
}

/// No log comes that far. Behind a larger index there might be none for what comes next.
const LARGEST_INDEX: u64 = 1 << 62;

/// What a batch starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BatchHeader {
    pub(super) lap: u64,
    pub(super) offset: u64,
    pub(super) synced: u64,
    pub(super) chain: u32,
    pub(super) len: u32,
}

impl BatchHeader {
    /// The header's bytes and the chain after it.
    pub(super) fn encode(&self) -> ([u8; BATCH_HEADER], u32) {
        let mut bytes = [0; BATCH_HEADER];
        bytes[..4].copy_from_slice(BATCH_MAGIC);
        bytes[8..16].copy_from_slice(&self.lap.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.synced.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.chain.to_le_bytes());
        bytes[36..].copy_from_slice(&self.len.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// The header of this lap at `offset` of the segment, and the chain after it; `None` if there is none.
    pub(super) fn decode(segment: &[u8], offset: u64, lap: u64) -> Option<(BatchHeader, u32)> {
        let bytes = segment.get(usize::try_from(offset).ok()?..)?.get(..BATCH_HEADER)?;
        let mut at = Reader(bytes);
        if at.take(4)? != BATCH_MAGIC {
            return None;
        }
        let crc = at.u32()?;
        let header =
            BatchHeader { lap: at.u64()?, offset: at.u64()?, synced: at.u64()?, chain: at.u32()?, len: at.u32()? };
        let genuine = header.lap == lap && header.offset == offset && crc == crc32c::crc32c(&bytes[8..]);
        genuine.then_some((header, crc))
    }

    /// Where the records end.
    pub(super) fn end(&self) -> u64 {
        self.offset + BATCH_HEADER as u64 + u64::from(self.len)
    }
}

/// One record, as it is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Record<'a> {
    Entry(&'a LogEntry),
    Truncate(EntryId),
    HardState(HardState),
    Anchor(&'a Anchor),
    /// The log goes on in the segment of this number.
    Sealed(u32),
}

/// One record, as it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RawRecord<'a> {
    kind: u64,
    index: LogIndex,
    pub(super) term: Term,
    pub(super) payload: &'a [u8],
    /// The chain after it.
    pub(super) chain: u32,
    /// Its length with the padding.
    pub(super) size: usize,
}

/// What a record says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// The payload is the data.
    Entry(EntryId, EntryClass),
    Truncate(EntryId),
    HardState(HardState),
    Anchor(Anchor),
    Sealed(u64),
}

/// Bytes that a record with this much payload takes.
pub(super) fn record_size(payload: usize) -> usize {
    RECORD_HEADER + payload.next_multiple_of(8)
}

impl Record<'_> {
    /// Bytes of the payload.
    pub(super) fn payload_len(&self) -> usize {
        match self {
            Record::Entry(entry) => entry.data.len(),
            Record::Truncate(_) | Record::Sealed(_) => 0,
            Record::HardState(_) => 2,
            Record::Anchor(anchor) => {
                let members = &anchor.membership;
                let lists = [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next];
                lists.iter().map(|ids| 2 + 2 * ids.len()).sum::<usize>() + 1 + 4 + anchor.registry.len()
            }
        }
    }

    /// Appends the record to `out` and returns the chain after it.
    pub(super) fn encode(&self, chain: u32, out: &mut Vec<u8>) -> u32 {
        let from = out.len();
        let (kind, index, term) = match self {
            Record::Entry(entry) => (class_kind(entry.class), entry.id.index, entry.id.term),
            Record::Truncate(last) => (TRUNCATE, last.index, last.term),
            Record::HardState(state) => (HARD_STATE, state.commit, state.term),
            Record::Anchor(anchor) => (ANCHOR, anchor.applied, Term(0)),
            Record::Sealed(next) => (SEALED, LogIndex(u64::from(*next)), Term(0)),
        };
        let payload = self.payload_len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(payload as u32).to_le_bytes());
        for number in [kind, index.0, term.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        match self {
            Record::Entry(entry) => out.extend_from_slice(&entry.data),
            Record::Truncate(_) | Record::Sealed(_) => {}
            Record::HardState(state) => out.extend_from_slice(&encode_vote(state.vote)),
            Record::Anchor(anchor) => encode_anchor(anchor, out),
        }
        assert_eq!(out.len() - from, RECORD_HEADER + payload);
        let crc = crc32c::crc32c_append(chain, &out[from + 4..]);
        out[from..from + 4].copy_from_slice(&crc.to_le_bytes());
        out.resize(from + record_size(payload), 0);
        crc
    }
}

impl<'a> RawRecord<'a> {
    /// The record that starts with these bytes, if it is whole and continues the chain.
    pub(super) fn decode(bytes: &'a [u8], chain: u32) -> Option<RawRecord<'a>> {
        let mut at = Reader(bytes);
        let (crc, len, kind) = (at.u32()?, at.u32()? as usize, at.u64()?);
        let (index, term) = (LogIndex(at.u64()?), Term(at.u64()?));
        let payload = at.take(len)?;
        let size = record_size(len);
        let whole = bytes.len() >= size && crc == crc32c::crc32c_append(chain, &bytes[4..RECORD_HEADER + len]);
        whole.then_some(RawRecord { kind, index, term, payload, chain: crc, size })
    }

    /// What the record says; `None` if this program does not know.
    pub(super) fn meaning(&self) -> Option<Meaning> {
        let id = EntryId { index: self.index, term: self.term };
        let mut at = Reader(self.payload);
        let meaning = match self.kind {
            ENTRY => return Some(Meaning::Entry(id, EntryClass::Normal)),
            MEMBERSHIP => return Some(Meaning::Entry(id, EntryClass::Membership)),
            TRUNCATE => Meaning::Truncate(id),
            HARD_STATE => {
                let vote = decode_vote(at.u16()?);
                Meaning::HardState(HardState { term: self.term, vote, commit: self.index })
            }
            ANCHOR => Meaning::Anchor(decode_anchor(self.index, &mut at)?),
            SEALED => Meaning::Sealed(self.index.0),
            _ => return None,
        };
        at.0.is_empty().then_some(meaning)
    }
}

fn class_kind(class: EntryClass) -> u64 {
    match class {
        EntryClass::Normal => ENTRY,
        EntryClass::Membership => MEMBERSHIP,
    }
}

fn encode_vote(vote: Option<NodeId>) -> [u8; 2] {
    vote.map_or(0, |node| node.0).to_le_bytes()
}

fn decode_vote(vote: u16) -> Option<NodeId> {
    (vote != 0).then_some(NodeId(vote))
}

/// The fields of an anchor but `applied`, which stands before them in a head and in the record's own header.
fn encode_anchor(anchor: &Anchor, out: &mut Vec<u8>) {
    let members = &anchor.membership;
    for ids in [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next] {
        // Node ids are 16 bits, each at most once in a list.
        out.extend_from_slice(&(ids.len() as u16).to_le_bytes());
        for id in ids {
            out.extend_from_slice(&id.0.to_le_bytes());
        }
    }
    out.push(u8::from(members.auto_leave));
    out.extend_from_slice(&(anchor.registry.len() as u32).to_le_bytes());
    out.extend_from_slice(&anchor.registry);
}

fn decode_anchor(applied: LogIndex, at: &mut Reader<'_>) -> Option<Anchor> {
    let membership = Membership {
        voters: at.ids()?,
        learners: at.ids()?,
        voters_outgoing: at.ids()?,
        learners_next: at.ids()?,
        auto_leave: match at.take(1)? {
            [0] => false,
            [1] => true,
            _ => return None,
        },
    };
    let len = at.u32()? as usize;
    let registry = Bytes::copy_from_slice(at.take(len)?);
    Some(Anchor { applied, membership, registry })
}

/// Takes values off the front of bytes; `None` where they end too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn ids(&mut self) -> Option<Vec<NodeId>> {
        let n = self.u16()?;
        (0..n).map(|_| self.u16().map(NodeId)).collect()
    }
}
