//! What is believed when a log is opened: one table, and the code that walks it.
//!
//! Heads first, newest to oldest, until a *fresh* one (nothing before it counts):
//!
//! | case | found | verdict |
//! |---|---|---|
//! | `head-broken` | a segment whose head does not read | refuse: a segment gets its name only with a synced head |
//! | (version) | a head of another format version | refuse, naming the version |
//! | `head-misnamed` | its number is not that of the file name | refuse |
//! | `head-foreign` | its cluster is not that of the segment after it | refuse |
//! | `segment-missing` | a gap in the numbers, or the newest is sealed | refuse: segments are dropped oldest first |
//!
//! Then the batches, from the oldest segment that counts. A *sealed* segment is one with a successor, whose head says
//! where it ends; everything in it was synced. Behind that end it says itself that it has a successor, so that one that
//! is lost is missed (`Record::Sealed`, written before anything counts that is in the successor).
//!
//! | case | at an offset where a batch may start | verdict |
//! |---|---|---|
//! | `batch` | header and records good, they continue the chain | accept, go on behind it |
//! | `sealed-end` | the end that the next head names | this segment is done |
//! | `sealed-broken` | sealed, before its end, and no good batch | refuse: it was synced |
//! | `sealed-overrun` | sealed, and the batch reaches beyond the end | refuse |
//! | `clean-end` | no header, and no header of this lap behind it | the log ends here |
//! | `torn-batch` | header good, a record not, no header of this lap behind it | cut |
//! | `torn-run` | no good batch, and all headers of this lap behind it say that less was synced | cut |
//! | `below-mark` | no good batch, but one behind it says that this was synced | refuse |
//! | `forked` | header good, but it continues another chain | refuse: no writer leaves that behind |
//! | `meaningless` | all checksums good, but the content must not follow or is unknown | refuse: a bug or a newer program |
//! | `head-disagrees` | the next head does not repeat what was read | refuse |
//!
//! Cut means: the batch and all behind it never happened. Their headers are wiped, so that no later torn write can bring
//! one back. Deliberately absent: any file access.

use super::contents::{Contents, Slot};
use super::record::{BATCH_HEADER, BadHead, BatchHeader, Head, Meaning, RECORD_HEADER, RawRecord, SECTOR, VERSION};
use super::record::{lap, sector_up};
use super::{Cut, LogError};

/// One line of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Case {
    HeadBroken,
    HeadMisnamed,
    HeadForeign,
    SegmentMissing,
    HeadDisagrees,
    SealedEnd,
    SealedBroken,
    SealedOverrun,
    CleanEnd,
    TornBatch,
    TornRun,
    BelowMark,
    Forked,
    Meaningless,
    /// Not of the table: an entry that was good when the log was opened or written no longer is.
    ReadBack,
}

impl Case {
    pub(super) fn label(self) -> &'static str {
        match self {
            Case::HeadBroken => "head-broken",
            Case::HeadMisnamed => "head-misnamed",
            Case::HeadForeign => "head-foreign",
            Case::SegmentMissing => "segment-missing",
            Case::HeadDisagrees => "head-disagrees",
            Case::SealedEnd => "sealed-end",
            Case::SealedBroken => "sealed-broken",
            Case::SealedOverrun => "sealed-overrun",
            Case::CleanEnd => "clean-end",
            Case::TornBatch => "torn-batch",
            Case::TornRun => "torn-run",
            Case::BelowMark => "below-mark",
            Case::Forked => "forked",
            Case::Meaningless => "meaningless",
            Case::ReadBack => "read-back",
        }
    }
}

/// The head of a segment file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NamedHead {
    pub(super) file: String,
    pub(super) head: Head,
    /// Chain after the head.
    pub(super) chain: u32,
}

impl NamedHead {
    /// Reads the head of segment file `file`, whose name says `number`. `newer` is the head of the segment after it.
    pub(super) fn read(
        file: &str,
        number: u32,
        bytes: &[u8],
        newer: Option<&NamedHead>,
    ) -> Result<NamedHead, LogError> {
        let (head, chain) = Head::decode(bytes).map_err(|bad| bad_head(file, bad))?;
        if head.number != u64::from(number) {
            return Err(LogError::damage(
                file,
                32,
                Case::HeadMisnamed,
                format!("its head says segment {}", head.number),
            ));
        }
        if let Some(newer) = newer {
            if head.cluster != newer.head.cluster {
                let what = format!("cluster {}, but {} is of cluster {}", head.cluster, newer.file, newer.head.cluster);
                return Err(LogError::damage(file, 16, Case::HeadForeign, what));
            }
            if head.number + 1 != newer.head.number {
                let what = format!("segment {}, but the one before it is {number}", newer.head.number);
                return Err(LogError::damage(&newer.file, 0, Case::SegmentMissing, what));
            }
        }
        Ok(NamedHead { file: file.to_owned(), head, chain })
    }
}

pub(super) fn bad_head(file: &str, bad: BadHead) -> LogError {
    match bad {
        BadHead::Version(found) => LogError::Version { file: file.to_owned(), found, known: VERSION },
        BadHead::Broken(what) => LogError::damage(file, 0, Case::HeadBroken, what),
    }
}

/// Where a segment ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct End {
    pub(super) case: Case,
    /// Where the next batch goes.
    pub(super) offset: u64,
    /// Nothing vouches for the bytes from here to `offset` being on disk.
    pub(super) mark: u64,
    /// Headers of batches that were cut.
    pub(super) wipe: Vec<u64>,
    pub(super) cut: Option<Cut>,
}

/// Walks the segments in order and collects what they say.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) contents: Contents,
    pub(super) chain: u32,
}

/// A batch that reads well.
struct GoodBatch {
    header: BatchHeader,
    chain: u32,
    records: Vec<(Meaning, Slot)>,
}

/// What stands where a batch may start.
enum AtOffset {
    Good(GoodBatch),
    NoHeader,
    BadRecord { header: BatchHeader, at: u64 },
    Fork { expected: u32, found: u32 },
    Unknown { at: u64 },
}

impl Replay {
    /// Starts at the oldest head that counts.
    pub(super) fn new(first: &NamedHead) -> Replay {
        let head = &first.head;
        Replay { contents: Contents::new(head.last, head.hard_state, head.anchor.clone()), chain: first.chain }
    }

    /// Goes on to the next segment: its head must repeat what was read.
    pub(super) fn enter(&mut self, next: &NamedHead) -> Result<(), LogError> {
        let (head, contents) = (&next.head, &self.contents);
        let disagree = |what: String| Err(LogError::damage(&next.file, 0, Case::HeadDisagrees, what));
        if head.chain != self.chain {
            return disagree(format!(
                "it continues chain {:08x}, the segment before ends with {:08x}",
                head.chain, self.chain
            ));
        }
        if head.last != contents.last() {
            return disagree(format!(
                "it continues entry {:?}, the segment before ends with {:?}",
                head.last,
                contents.last()
            ));
        }
        if head.hard_state != contents.hard_state() || head.anchor != *contents.anchor() {
            return disagree(format!(
                "hard state {:?} and anchor at {}, the segment before ends with {:?} and {}",
                head.hard_state,
                head.anchor.applied,
                contents.hard_state(),
                contents.anchor().applied
            ));
        }
        self.chain = next.chain;
        Ok(())
    }

    /// Reads the batches of one segment. `sealed_at` is its end as the next head names it, `None` for the last one.
    pub(super) fn segment(&mut self, named: &NamedHead, bytes: &[u8], sealed_at: Option<u64>) -> Result<End, LogError> {
        let file = &named.file;
        let lap = lap(named.head.cluster, named.head.number);
        // The head was read from these bytes, so its length is good.
        let mut offset = Head::length(bytes).map(|len| sector_up(len as u64)).map_err(|bad| bad_head(file, bad))?;
        let mut mark = 0;
        loop {
            if sealed_at == Some(offset) {
                return Ok(End { case: Case::SealedEnd, offset, mark, wipe: Vec::new(), cut: None });
            }
            let found = self.read_batch(bytes, offset, lap, named.head.number as u32);
            let (at, header, what) = match found {
                AtOffset::Good(batch) => {
                    if let (None, [(Meaning::Sealed(next), _)]) = (sealed_at, &batch.records[..]) {
                        let what =
                            format!("the log goes on in segment {next}, which is not there; what was in it is lost");
                        return Err(LogError::damage(file, offset, Case::SegmentMissing, what));
                    }
                    let end = sector_up(batch.header.end());
                    if let Some(sealed_at) = sealed_at.filter(|sealed_at| end > *sealed_at) {
                        let what = format!("a batch up to {end}, but the segment ends at {sealed_at}");
                        return Err(LogError::damage(file, offset, Case::SealedOverrun, what));
                    }
                    mark = batch.header.synced.min(offset);
                    self.chain = batch.chain;
                    self.accept(batch.records)
                        .map_err(|what| LogError::damage(file, offset, Case::Meaningless, what))?;
                    offset = end;
                    continue;
                }
                AtOffset::Fork { expected, found } => {
                    let what =
                        format!("a batch that continues chain {found:08x}, but the one before is {expected:08x}");
                    return Err(LogError::damage(file, offset, Case::Forked, what));
                }
                AtOffset::Unknown { at } => {
                    return Err(LogError::damage(
                        file,
                        at,
                        Case::Meaningless,
                        "a record of a kind this program does not know",
                    ));
                }
                AtOffset::NoHeader => (offset, None, "no batch header".to_owned()),
                AtOffset::BadRecord { header, at } => {
                    (at, Some(header), format!("a bad record in the batch {}..{}", header.offset, header.end()))
                }
            };
            if let Some(sealed_at) = sealed_at {
                let what = format!("{what}, but the segment was synced up to {sealed_at}");
                return Err(LogError::damage(file, at, Case::SealedBroken, what));
            }
            return self.tail(file, bytes, lap, Tail { offset, at, header, what, mark });
        }
    }

    /// The last segment has no good batch at `tail.offset`: torn, or damaged?
    fn tail(&self, file: &str, bytes: &[u8], lap: u64, tail: Tail) -> Result<End, LogError> {
        let Tail { offset, at, header, what, mark } = tail;
        let mut wipe = Vec::from_iter(header.map(|header| header.offset));
        let later = (offset + SECTOR..bytes.len() as u64).step_by(SECTOR as usize);
        for (header, _) in later.filter_map(|later| BatchHeader::decode(bytes, later, lap)) {
            if header.synced > offset {
                let what = format!(
                    "{what}, but the batch at {} says that it was synced up to {}",
                    header.offset, header.synced
                );
                return Err(LogError::damage(file, at, Case::BelowMark, what));
            }
            wipe.push(header.offset);
        }
        let case = match (header, wipe.len()) {
            (_, 0) => Case::CleanEnd,
            (Some(_), 1) => Case::TornBatch,
            _ => Case::TornRun,
        };
        let cut = (case != Case::CleanEnd).then(|| Cut {
            file: file.to_owned(),
            offset,
            why: format!("{}: {what} at {at}", case.label()),
        });
        Ok(End { case, offset, mark, wipe, cut })
    }

    fn read_batch(&self, bytes: &[u8], offset: u64, lap: u64, segment: u32) -> AtOffset {
        let Some((header, mut chain)) = BatchHeader::decode(bytes, offset, lap) else {
            return AtOffset::NoHeader;
        };
        if header.chain != self.chain {
            return AtOffset::Fork { expected: self.chain, found: header.chain };
        }
        let mut at = offset + BATCH_HEADER as u64;
        let mut records = Vec::new();
        let Some(body) = usize::try_from(header.end()).ok().and_then(|end| bytes.get(..end)) else {
            return AtOffset::BadRecord { header, at };
        };
        while at < header.end() {
            let Some(record) = body.get(at as usize..).and_then(|rest| RawRecord::decode(rest, chain)) else {
                return AtOffset::BadRecord { header, at };
            };
            let Some(meaning) = record.meaning() else { return AtOffset::Unknown { at } };
            let slot = Slot { term: record.term, segment, offset: at as u32, len: record.payload.len() as u32, chain };
            records.push((meaning, slot));
            chain = record.chain;
            at += record.size as u64;
        }
        AtOffset::Good(GoodBatch { header, chain, records })
    }

    fn accept(&mut self, records: Vec<(Meaning, Slot)>) -> Result<(), String> {
        for (meaning, slot) in records {
            match meaning {
                Meaning::Entry(id, _) => self.contents.push(id, slot)?,
                Meaning::Truncate(to) => self.contents.truncate(to)?,
                Meaning::HardState(state) => self.contents.set_hard_state(state)?,
                Meaning::Anchor(anchor) => self.contents.set_anchor(anchor)?,
                Meaning::Sealed(next) => return Err(format!("the log goes on in segment {next} in front of the end")),
            }
        }
        Ok(())
    }
}

/// Where reading stopped, and why.
struct Tail {
    /// Of the batch.
    offset: u64,
    /// Of what is bad in it.
    at: u64,
    header: Option<BatchHeader>,
    what: String,
    mark: u64,
}

const _: () = assert!(RECORD_HEADER.is_multiple_of(8) && BATCH_HEADER.is_multiple_of(8));

#[cfg(test)]
mod tests;
