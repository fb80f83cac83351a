//! Walks the table of `recover.rs`: one row per case, and the code must name that case.

use bytes::Bytes;

use super::*;
use crate::log::Anchor;
use crate::log::record::Record;
use crate::types::{ClusterId, EntryClass, EntryId, GENESIS, HardState, LogEntry, LogIndex, NodeId, Term};

const CLUSTER: ClusterId = ClusterId(0xc1);

/// Builds the bytes of segments with the real encoder.
#[derive(Clone)]
struct Builder {
    number: u32,
    bytes: Vec<u8>,
    chain: u32,
    last: EntryId,
    hard_state: HardState,
}

fn head(number: u64, fresh: bool) -> Head {
    Head {
        cluster: CLUSTER,
        number,
        previous_end: 0,
        chain: 0,
        fresh,
        last: GENESIS,
        hard_state: HardState { term: Term(1), vote: None, commit: LogIndex(1) },
        anchor: Anchor { applied: LogIndex(1), ..Anchor::default() },
    }
}

impl Builder {
    fn new(head: Head) -> Builder {
        let mut bytes = Vec::new();
        let chain = head.encode(&mut bytes);
        Builder { number: head.number as u32, bytes, chain, last: head.last, hard_state: head.hard_state }
    }

    fn first() -> Builder {
        Builder::new(head(1, true))
    }

    /// The head of the segment after this one.
    fn next_head(&self) -> Head {
        let fresh = head(u64::from(self.number) + 1, false);
        let (previous_end, chain) = (self.bytes.len() as u64, self.chain);
        Head { previous_end, chain, last: self.last, hard_state: self.hard_state, ..fresh }
    }

    /// A batch with a record, saying that everything before `synced` is on disk.
    fn batch_of(mut self, record: &Record<'_>, synced: u64) -> Builder {
        let mut body = Vec::new();
        record.encode(0, &mut body);
        let lap = lap(CLUSTER, u64::from(self.number));
        let offset = self.bytes.len() as u64;
        let header = BatchHeader { lap, offset, synced, chain: self.chain, len: body.len() as u32 };
        let (bytes, chain) = header.encode();
        self.bytes.extend(bytes);
        self.chain = record.encode(chain, &mut self.bytes);
        self.bytes.resize(sector_up(self.bytes.len() as u64) as usize, 0);
        self
    }

    /// A batch with the next entry, of 600 bytes so that it takes two sectors, everything before it synced.
    fn batch(mut self) -> Builder {
        let entry = self.next_entry();
        self.last = entry.id;
        let synced = self.bytes.len() as u64;
        self.batch_of(&Record::Entry(&entry), synced)
    }

    fn next_entry(&self) -> LogEntry {
        let id = EntryId { index: self.last.index.next(), term: Term(2) };
        LogEntry { id, class: EntryClass::Normal, data: Bytes::from(vec![7; 600]) }
    }

    fn zeros(mut self) -> Builder {
        self.bytes.resize(self.bytes.len() + 2048, 0);
        self
    }

    fn flip(mut self, at: usize) -> Builder {
        self.bytes[at] ^= 0x10;
        self
    }
}

/// What opening does, without files. The label of the case, and the last entry where there is one.
fn walk(segments: &[Builder]) -> (&'static str, u64) {
    match try_walk(segments) {
        Ok((case, last)) => (case.label(), last),
        Err(LogError::Damage { case, .. }) => (case, 0),
        Err(LogError::Version { .. }) => ("version", 0),
        Err(other) => panic!("{other}"),
    }
}

fn try_walk(segments: &[Builder]) -> Result<(Case, u64), LogError> {
    let mut heads: Vec<NamedHead> = Vec::new();
    for segment in segments.iter().rev() {
        if heads.last().is_some_and(|newer| newer.head.fresh) {
            break;
        }
        heads.push(NamedHead::read("file", segment.number, &segment.bytes, heads.last())?);
    }
    heads.reverse();
    let segments = &segments[segments.len() - heads.len()..];
    let mut replay = Replay::new(&heads[0]);
    let mut case = Case::CleanEnd;
    for (i, named) in heads.iter().enumerate() {
        if i > 0 {
            replay.enter(named)?;
        }
        let sealed_at = heads.get(i + 1).map(|next| next.head.previous_end);
        let end = replay.segment(named, &segments[i].bytes, sealed_at)?;
        assert_eq!(end.case == Case::SealedEnd, sealed_at.is_some());
        assert_eq!(end.cut.is_some(), matches!(end.case, Case::TornBatch | Case::TornRun));
        assert_eq!(end.wipe.is_empty(), end.cut.is_none());
        case = end.case;
    }
    Ok((case, replay.contents.last().index.0))
}

/// Shows INV-4.
#[test]
fn every_case_of_the_table() {
    let one = Builder::first().batch();
    let head_end = Builder::first().bytes.len();
    let one_end = one.bytes.len();
    let body = head_end + 512 + 100;
    let entry = |index, term| LogEntry {
        id: EntryId { index: LogIndex(index), term: Term(term) },
        class: EntryClass::Normal,
        data: Bytes::new(),
    };
    let second = |builder: &Builder| Builder::new(builder.next_head());
    let with_head = |change: &dyn Fn(&mut Head)| {
        let mut head = one.next_head();
        change(&mut head);
        vec![one.clone(), Builder::new(head)]
    };
    // The third batch says that only the head is synced: a run of two that tore together.
    let run = {
        let third = Builder::first().batch().next_entry();
        Builder::first().batch().batch_of(&Record::Entry(&third), head_end as u64)
    };
    let mut old_lap = Builder::first();
    let tail = Builder::new(Head { number: 9, ..head(1, true) }).batch().batch().batch();
    old_lap.bytes.extend(&tail.bytes[head_end..]);
    let mut forked = one.clone();
    forked.chain ^= 1;
    let forked = forked.batch();
    let mut renamed = Builder::first();
    renamed.number = 2;
    let mut foreign = one.next_head();
    foreign.cluster = ClusterId(1);
    let mut missing = one.next_head();
    missing.number = 3;
    let mut short = one.clone().batch();
    short.bytes.truncate(one_end + 600);
    let unknown = {
        let mut segment = Builder::first();
        let mut body = Vec::new();
        Record::Truncate(GENESIS).encode(0, &mut body);
        let offset = head_end as u64;
        let lap = lap(CLUSTER, 1);
        let header = BatchHeader { lap, offset, synced: offset, chain: segment.chain, len: 32 };
        let (bytes, chain) = header.encode();
        body[8] = 99;
        let crc = crc32c::crc32c_append(chain, &body[4..]);
        body[..4].copy_from_slice(&crc.to_le_bytes());
        segment.bytes.extend(bytes);
        segment.bytes.extend(body);
        segment
    };
    // A payload that holds a copy of the first batch's header where a header could be.
    let copied = {
        let mut data = vec![0; 1000];
        data[512 - BATCH_HEADER - RECORD_HEADER..][..BATCH_HEADER]
            .copy_from_slice(&one.bytes[head_end..][..BATCH_HEADER]);
        let entry = LogEntry { data: data.into(), ..one.next_entry() };
        one.clone().batch_of(&Record::Entry(&entry), one_end as u64)
    };
    assert_eq!(copied.bytes[one_end + 512..][..4], *b"BTCH");
    let then = |record: &Record<'_>| vec![one.clone().batch_of(record, one_end as u64)];
    let sealed = one.clone().batch_of(&Record::Sealed(2), one_end as u64);
    let vote = |term, vote| HardState { term: Term(term), vote: Some(NodeId(vote)), commit: LogIndex(1) };

    let rows: Vec<(&str, &str, Vec<Builder>, u64)> = vec![
        ("a head flipped", "head-broken", vec![Builder::first().flip(60)], 0),
        ("magic flipped", "head-broken", vec![Builder::first().flip(0)], 0),
        ("an empty file", "head-broken", vec![Builder { bytes: Vec::new(), ..Builder::first() }], 0),
        ("another version", "version", vec![Builder::first().flip(8)], 0),
        ("a file renamed", "head-misnamed", vec![renamed], 0),
        ("segment of another cluster", "head-foreign", vec![one.clone(), Builder::new(foreign)], 0),
        ("a segment lost", "segment-missing", vec![one.clone(), Builder::new(missing)], 0),
        ("the newest segment lost", "segment-missing", vec![sealed.clone()], 0),
        ("only a head", "clean-end", vec![Builder::first()], 1),
        ("only a head, pre-written", "clean-end", vec![Builder::first().zeros()], 1),
        ("a batch", "clean-end", vec![one.clone()], 2),
        ("two batches, pre-written", "clean-end", vec![one.clone().batch().zeros()], 3),
        ("batches of an old lap behind", "clean-end", vec![old_lap], 1),
        ("last header torn", "clean-end", vec![one.clone().flip(head_end + 9).zeros()], 1),
        ("last record torn", "torn-batch", vec![one.clone().flip(body).zeros()], 1),
        ("file ends in the last record", "torn-batch", vec![short], 2),
        ("a batch copied into a torn payload", "torn-batch", vec![copied.flip(one_end + 100)], 2),
        ("two batches torn, neither synced", "torn-run", vec![run.clone().flip(body)], 1),
        ("first header of such two torn", "torn-run", vec![run.flip(head_end + 9)], 1),
        ("a record below a mark", "below-mark", vec![one.clone().batch().flip(body)], 0),
        ("a header below a mark", "below-mark", vec![one.clone().batch().flip(head_end + 9)], 0),
        ("a batch of another history", "forked", vec![forked], 0),
        ("an entry that skips one", "meaningless", then(&Record::Entry(&entry(4, 2))), 0),
        ("an entry of an older term", "meaningless", then(&Record::Entry(&entry(3, 1))), 0),
        ("a truncation of nothing", "meaningless", then(&Record::Truncate(one.last)), 0),
        ("a truncation below commit", "meaningless", then(&Record::Truncate(EntryId::default())), 0),
        ("a truncation", "clean-end", then(&Record::Truncate(GENESIS)), 1),
        ("a hard state that goes back", "meaningless", then(&Record::HardState(vote(0, 1))), 0),
        ("a hard state", "clean-end", then(&Record::HardState(vote(2, 1))), 2),
        (
            "an anchor beyond the last",
            "meaningless",
            then(&Record::Anchor(&Anchor { applied: LogIndex(3), ..Anchor::default() })),
            0,
        ),
        ("a kind not known", "meaningless", vec![unknown], 0),
        ("a successor", "clean-end", vec![one.clone(), second(&one).batch()], 3),
        ("a successor, and it is said", "clean-end", vec![sealed.clone(), second(&one)], 2),
        ("sealed in the middle", "meaningless", vec![sealed.clone(), second(&sealed)], 0),
        ("a successor, junk behind the end", "clean-end", vec![one.clone().zeros().flip(one_end + 9), second(&one)], 2),
        ("a fresh successor", "clean-end", vec![one.clone().flip(0), Builder::new(head(2, true)).batch()], 2),
        ("a sealed record flipped", "sealed-broken", vec![one.clone().flip(body), second(&one)], 0),
        ("a sealed header flipped", "sealed-broken", vec![one.clone().flip(head_end + 9), second(&one)], 0),
        ("sealed too short", "sealed-broken", with_head(&|head| head.previous_end += 512), 0),
        ("sealed within a batch", "sealed-overrun", with_head(&|head| head.previous_end -= 512), 0),
        ("a successor of another history", "head-disagrees", with_head(&|head| head.chain ^= 1), 0),
        ("a successor of another entry", "head-disagrees", with_head(&|head| head.last.index.0 += 1), 0),
        ("a successor with another vote", "head-disagrees", with_head(&|head| head.hard_state = vote(1, 2)), 0),
        ("a successor with another anchor", "head-disagrees", with_head(&|head| head.anchor.applied.0 = 2), 0),
    ];
    for (name, case, segments, last) in &rows {
        assert_eq!(walk(segments), (*case, *last), "{name}");
    }
    assert!(ALL.iter().enumerate().all(|(i, case)| *case as usize == i) && ALL.len() == Case::ReadBack as usize + 1);
    // `sealed-end` and `batch` are on the way of the rows with a successor; `read-back` is none of opening.
    for case in ALL.iter().filter(|case| !matches!(case, Case::SealedEnd | Case::ReadBack)) {
        assert!(rows.iter().any(|(_, label, ..)| *label == case.label()), "no row for {}", case.label());
    }
}

const ALL: [Case; 15] = [
    Case::HeadBroken,
    Case::HeadMisnamed,
    Case::HeadForeign,
    Case::SegmentMissing,
    Case::HeadDisagrees,
    Case::SealedEnd,
    Case::SealedBroken,
    Case::SealedOverrun,
    Case::CleanEnd,
    Case::TornBatch,
    Case::TornRun,
    Case::BelowMark,
    Case::Forked,
    Case::Meaningless,
    Case::ReadBack,
];
