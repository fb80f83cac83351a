//! The log as its users see it: one appender, many readers, a compactor.
//!
//! Locks, in the order in which they are taken: `writer` (an append, its sync included), `maintenance` (compaction and
//! pre-writing, their file operations included), `spares`, `index`. The last two are held for moments only, never across
//! a file operation: so a reader waits for no sync, and an append for no pre-writing.
//!
//! A new entry shows in the index when it is synced. What a reader found there stays readable: records are not
//! overwritten while their segment counts, and a segment somebody still reads is removed instead of recycled.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use shoaldb_vfs::env::{File, Fs, Open};

use super::contents::{Contents, Slot, check_anchor_size, check_hard_state};
use super::record::{BATCH_HEADER, BatchHeader, HEAD_PREFIX, Head, Meaning, RawRecord, Record, SECTOR};
use super::record::{RECORD_HEADER, lap, record_size, sector_up};
use super::recover::{Case, End, NamedHead, Replay, bad_head};
use super::segment::{self, Directory, Listing, SEAL, Segment, Spare};
use super::{Anchor, Batch, LogError, LogOptions, Recovered};
use crate::config::SEGMENT_BYTES;
use crate::planted::{self, Bug};
use crate::types::{ClusterId, EntryId, HardState, LogEntry, LogIndex, Term};

/// Two records with at most this many bytes between them are read in one go: the headers of small batches.
const READ_GAP: u64 = 4096;
/// Bytes of a head that are read first; more only if it is longer.
const HEAD_READ: usize = 4096;

/// See the [module's text](super).
#[derive(Debug)]
pub struct Log {
    directory: Directory,
    options: LogOptions,
    cluster: ClusterId,
    writer: Mutex<Writer>,
    maintenance: Mutex<Maintenance>,
    spares: Mutex<Vec<Spare>>,
    index: RwLock<Index>,
}

#[derive(Debug)]
struct Writer {
    active: Arc<Segment>,
    /// Where the next batch goes. Everything before it is synced.
    end: u64,
    chain: u32,
    /// A batch is built here.
    buffer: Vec<u8>,
    /// A write at `end` found no room. A part of it may be there, so nothing more is written to this segment: the next one
    /// says where this one ends, and recovery never looks behind that.
    spoiled: bool,
    /// The first failure that is final; from then on nothing is written.
    failed: Option<LogError>,
}

#[derive(Debug, Default)]
struct Maintenance {
    /// The first failure of a retirement; from then on no segment is dropped, so that no gap can arise.
    failed: Option<LogError>,
}

#[derive(Debug)]
struct Index {
    contents: Contents,
    /// Successive numbers; the last is the active one.
    segments: VecDeque<Arc<Segment>>,
}

impl Index {
    fn segment(&self, number: u32) -> Option<&Arc<Segment>> {
        let first = self.segments.front()?.number;
        self.segments.get(number.checked_sub(first)? as usize)
    }

    /// Whether a later head's anchor covers what is in the segment at this place, which ends with entry `last`.
    fn is_covered(&self, at: usize, last: LogIndex) -> bool {
        self.segments.iter().skip(at + 1).any(|later| later.applied >= last)
    }

    /// Whether the log may do without its oldest segment, if it may do without the entries up to `through`.
    fn oldest_may_go(&self, through: LogIndex) -> bool {
        let Some(oldest) = self.segments.front() else { return false };
        let last = self.contents.last_of_segment(oldest.number);
        last <= through && self.is_covered(0, last)
    }

    fn bytes(&self) -> u64 {
        let sealed = self.segments.len().saturating_sub(1);
        let of_sealed: u64 = self.segments.iter().take(sealed).map(|segment| segment.sealed_len()).sum();
        of_sealed + self.segments.back().map_or(0, |active| active.end.load(Ordering::Relaxed))
    }
}

/// What a batch adds to the index once it is synced.
struct Written {
    slots: Vec<Slot>,
    end: u64,
    chain: u32,
}

impl Log {
    /// Makes a log that starts behind `start`. There must be none in `dir`; an interrupted attempt does not count.
    pub fn create(
        fs: Arc<dyn Fs>,
        dir: &Path,
        cluster: ClusterId,
        options: LogOptions,
        start: EntryId,
        anchor: Anchor,
        hard_state: HardState,
    ) -> Result<Log, LogError> {
        check_options(options)?;
        check_anchor_size(&anchor).map_err(LogError::Misuse)?;
        let directory = Directory::new(fs, dir);
        directory.create()?;
        let Listing { segments, spares } = directory.list()?;
        if let Some((_, file)) = segments.into_iter().next() {
            return Err(LogError::Exists { dir: directory.display(), file });
        }
        for spare in spares {
            directory.remove(&spare)?;
        }
        let head = Head {
            cluster,
            number: 1,
            previous_end: 0,
            chain: 0,
            fresh: true,
            last: start,
            hard_state,
            anchor: anchor.clone(),
        };
        let (active, end, chain) =
            open_segment(&directory, directory.create_spare()?, &head, options.segment_bytes, 0)?;
        let segments = VecDeque::from([active]);
        let contents = Contents::new(start, hard_state, anchor);
        Ok(Log::assemble(directory, options, cluster, Index { contents, segments }, (end, chain), Vec::new()))
    }

    /// Opens the log in `dir` and says what it holds; all of that is on disk when this returns.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, options: LogOptions) -> Result<(Log, Recovered), LogError> {
        Log::open_and_tell(fs, dir, options, &mut |_, _| ())
    }

    /// The same, and tells of how many files the first ones are read.
    pub(crate) fn open_and_tell(
        fs: Arc<dyn Fs>,
        dir: &Path,
        options: LogOptions,
        told: &mut dyn FnMut(usize, usize),
    ) -> Result<(Log, Recovered), LogError> {
        check_options(options)?;
        let directory = Directory::new(fs, dir);
        let listing = directory.list()?;
        let (segments, obsolete) = find_segments(&directory, &listing, Open::Write)?;
        let Some((_, _, first)) = segments.first() else {
            return Err(LogError::Missing { dir: directory.display() });
        };
        let cluster = first.head.cluster;
        let mut replay = Replay::new(first);
        let mut opened = VecDeque::new();
        let mut cut = None;
        let mut last_end = 0;
        let mut unsaid = None;
        for (i, (number, file, named)) in segments.iter().enumerate() {
            if i > 0 {
                replay.enter(named)?;
            }
            let bytes = segment::read_all(&**file, &named.file)?;
            let sealed_at = segments.get(i + 1).map(|(_, _, next)| next.head.previous_end);
            let end = replay.segment(named, &bytes, sealed_at)?;
            if sealed_at.is_none() && !planted::is(Bug::SkipSettle) {
                settle(&**file, &named.file, &bytes, &end)?;
            }
            opened.push_back(Arc::new(Segment {
                number: *number,
                name: named.file.clone(),
                file: file.clone(),
                capacity: options.segment_bytes.max(bytes.len() as u64),
                applied: named.head.anchor.applied,
                end: AtomicU64::new(end.offset),
                written: bytes.len() as u64,
            }));
            if let (Some(next), Some(segment)) = (segments.get(i + 1), opened.back().cloned()) {
                let sealed = Sealed { segment, end: end.offset, chain: replay.chain, next: next.0 };
                let found = bytes.get(end.offset as usize..).and_then(|rest| rest.get(..SEAL as usize));
                unsaid = Some(sealed).filter(|sealed| found != Some(&sealed.bytes(cluster)));
            }
            last_end = end.offset;
            cut = end.cut;
            told(i + 1, segments.len());
        }
        directory.sync("log.open.sync")?;
        // Only now is the name of the last segment sure to stay.
        unsaid.map_or(Ok(()), |sealed| sealed.write(cluster))?;
        for name in &obsolete {
            directory.remove(name)?;
        }
        let spares = adopt_spares(&directory, &listing, options)?;
        directory.sync("log.open.sync")?;

        let Replay { contents, chain } = replay;
        let recovered = Recovered {
            cluster,
            hard_state: contents.hard_state(),
            anchor: contents.anchor().clone(),
            start: contents.start(),
            last: contents.last(),
            cut,
        };
        let index = Index { contents, segments: opened };
        Ok((Log::assemble(directory, options, cluster, index, (last_end, chain), spares), recovered))
    }

    fn assemble(
        directory: Directory,
        options: LogOptions,
        cluster: ClusterId,
        index: Index,
        (end, chain): (u64, u32),
        spares: Vec<Spare>,
    ) -> Log {
        let active = index.segments.back().expect("a log has an active segment").clone();
        Log {
            directory,
            options,
            cluster,
            writer: Mutex::new(Writer { active, end, chain, buffer: Vec::new(), spoiled: false, failed: None }),
            maintenance: Mutex::default(),
            spares: Mutex::new(spares),
            index: RwLock::new(index),
        }
    }

    /// Makes a batch durable: one write and one sync (a switch to another segment has its own). All of it is on disk when
    /// this returns `Ok`; after an error of the file system, all of it or nothing may be, and every later append returns
    /// the same error. There is one exception: a write that found no room ([`LogError::can_be_tried_again`]). The same batch
    /// may be appended again then, and nothing else may be before it.
    pub fn append(&self, batch: &Batch) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        if let Some(failed) = &writer.failed {
            return Err(failed.clone());
        }
        // What it allows stays allowed until it is published: besides appends only compaction changes the contents, and
        // that stays at or below what this check calls committed.
        let truncate = self.index.read().contents.check_batch(batch)?;
        if planted::is(Bug::OverwriteInPlace) {
            self.overwrite(truncate)?;
        }
        let one = u64::from(planted::is(Bug::TruncateTooMuch));
        let named = truncate.map(|to| EntryId { index: LogIndex(to.index.0 - one), ..to });
        let records = Vec::from_iter(
            (named.map(Record::Truncate).into_iter())
                .chain(batch.entries.iter().map(Record::Entry))
                .chain(batch.hard_state.filter(|_| !forgets(batch)).map(Record::HardState))
                .chain(batch.anchor.as_ref().map(Record::Anchor)),
        );
        if records.is_empty() {
            return Ok(());
        }
        let body = records.iter().map(|record| record_size(record.payload_len())).sum::<usize>();
        // Half of what an offset reaches leaves room for any head in front.
        if body > (u32::MAX / 2) as usize {
            return Err(LogError::Misuse(format!("a batch of {body} bytes, at most {} fit", u32::MAX / 2)));
        }
        match self.write(&mut writer, &records, body) {
            Ok(written) => {
                self.publish(&mut writer, batch, truncate, written);
                Ok(())
            }
            Err(error) => {
                if !error.can_be_tried_again() {
                    writer.failed = Some(error.clone());
                }
                Err(error)
            }
        }
    }

    /// A planted mistake: zeros over the first entry behind `to`.
    fn overwrite(&self, to: Option<EntryId>) -> Result<(), LogError> {
        let index = self.index.read();
        let slot = to.and_then(|to| index.contents.slot(to.index.next()));
        let Some((slot, segment)) = slot.and_then(|slot| Some((slot, index.segment(slot.segment)?))) else {
            return Ok(());
        };
        segment::write(&*segment.file, &segment.name, &[0; 64], u64::from(slot.offset), "log.write")
    }

    fn write(&self, writer: &mut Writer, records: &[Record<'_>], body: usize) -> Result<Written, LogError> {
        let size = sector_up((BATCH_HEADER + body) as u64);
        // A log begins with a file that grows, since filling one takes time; it leaves it as soon as there is a filled one.
        let spare_is_better = !writer.active.is_filled() && !self.spares.lock().is_empty();
        if writer.end + size + SEAL > writer.active.capacity || spare_is_better || writer.spoiled {
            self.switch(writer, size)?;
        }
        let Writer { active, end, chain, buffer, spoiled, .. } = writer;
        let header = BatchHeader {
            lap: lap(self.cluster, u64::from(active.number)),
            offset: *end,
            synced: *end,
            chain: *chain,
            len: body as u32,
        };
        let (bytes, mut chain) = header.encode();
        buffer.clear();
        buffer.reserve(size as usize);
        buffer.extend_from_slice(&bytes);
        let mut slots = Vec::new();
        for record in records {
            if let Record::Entry(entry) = record {
                slots.push(Slot {
                    term: entry.id.term,
                    segment: active.number,
                    offset: (*end + buffer.len() as u64) as u32,
                    len: entry.data.len() as u32,
                    chain,
                });
            }
            chain = record.encode(chain, buffer);
        }
        assert_eq!(buffer.len(), BATCH_HEADER + body);
        // Whole sectors: no disk has to read one in order to change a part of it.
        buffer.resize(size as usize, 0);
        if let Err(error) = segment::write(&*active.file, &active.name, buffer, *end, "log.write") {
            *spoiled = error.is_no_space();
            return Err(error);
        }
        if !planted::is(Bug::SkipLogSync) {
            let synced = segment::sync(&*active.file, &active.name, "log.sync");
            if !planted::is(Bug::IgnoreFailedSync) {
                synced?;
            }
        }
        Ok(Written { slots, end: *end + size, chain })
    }

    fn publish(&self, writer: &mut Writer, batch: &Batch, truncate: Option<EntryId>, written: Written) {
        writer.end = written.end;
        writer.chain = written.chain;
        writer.active.end.store(written.end, Ordering::Relaxed);
        // One huge batch must not keep its memory for ever.
        if writer.buffer.capacity() as u64 > self.options.segment_bytes {
            writer.buffer = Vec::new();
        }
        let contents = &mut self.index.write().contents;
        let checked = "check_batch allowed it";
        if let Some(to) = truncate {
            contents.truncate(to).expect(checked);
        }
        for (entry, slot) in batch.entries.iter().zip(written.slots) {
            contents.push(entry.id, slot).expect(checked);
        }
        if let Some(hard_state) = batch.hard_state {
            contents.set_hard_state(hard_state).expect(checked);
        }
        if let Some(anchor) = &batch.anchor {
            contents.set_anchor(anchor.clone()).expect(checked);
        }
    }

    /// Goes on in a new segment that has room for a batch of `size` bytes. The old one needs no sync: each of its batches
    /// had one, or we would not be here.
    fn switch(&self, writer: &mut Writer, size: u64) -> Result<(), LogError> {
        let head = {
            let contents = &self.index.read().contents;
            Head {
                cluster: self.cluster,
                number: u64::from(writer.active.number) + 1,
                previous_end: writer.end,
                chain: writer.chain,
                fresh: false,
                last: contents.last(),
                hard_state: contents.hard_state(),
                anchor: contents.anchor().clone(),
            }
        };
        let segment = self.start_segment(writer, &head, size)?;
        self.index.write().segments.push_back(segment);
        Ok(())
    }

    /// Makes the segment of this head the active one.
    fn start_segment(&self, writer: &mut Writer, head: &Head, size: u64) -> Result<Arc<Segment>, LogError> {
        let head_size = sector_up((HEAD_FIXED + Record::Anchor(&head.anchor).payload_len()) as u64);
        let capacity = self.options.segment_bytes.max(head_size + size + SEAL);
        let spare = if capacity == self.options.segment_bytes { self.spares.lock().pop() } else { None };
        let written = if spare.is_some() { capacity } else { 0 };
        let spare = spare.map_or_else(|| self.directory.create_spare(), Ok)?;
        let name = spare.name.clone();
        let opened = open_segment(&self.directory, spare, head, capacity, written);
        if let Err(error) = &opened
            && error.can_be_tried_again()
        {
            // It counts for nothing, but it takes room. If it stays, the next open removes it.
            let _ = self.directory.remove(&name);
        }
        let (segment, end, chain) = opened?;
        let old = Sealed { segment: writer.active.clone(), end: writer.end, chain: writer.chain, next: segment.number };
        old.write(self.cluster)?;
        writer.spoiled = false;
        writer.active = segment.clone();
        writer.end = end;
        writer.chain = chain;
        Ok(segment)
    }

    /// Replaces the whole log by an empty one that starts behind `start`: a snapshot was installed. Atomic: after a crash
    /// the log is the old one or the new one. Where it [can be tried again](LogError::can_be_tried_again), it is the old one.
    pub fn reset(&self, start: EntryId, anchor: Anchor, hard_state: HardState) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        if let Some(failed) = &writer.failed {
            return Err(failed.clone());
        }
        check_hard_state(self.index.read().contents.hard_state(), hard_state).map_err(LogError::Misuse)?;
        check_anchor_size(&anchor).map_err(LogError::Misuse)?;
        let head = Head {
            cluster: self.cluster,
            number: u64::from(writer.active.number) + 1,
            previous_end: 0,
            chain: 0,
            fresh: true,
            last: start,
            hard_state,
            anchor,
        };
        let segment = self.start_segment(&mut writer, &head, 0).inspect_err(|error| {
            if !error.can_be_tried_again() {
                writer.failed = Some(error.clone());
            }
        })?;
        let old = {
            let mut index = self.index.write();
            index.contents = Contents::new(start, hard_state, head.anchor);
            std::mem::replace(&mut index.segments, VecDeque::from([segment]))
        };
        drop(writer);
        // The new log stands. What cannot be removed now is removed by the next open; compaction reports it.
        let mut maintenance = self.maintenance.lock();
        let _ = old.into_iter().try_for_each(|segment| self.retire(&mut maintenance, segment));
        Ok(())
    }

    /// The entries `lo..hi`, as many as `max_bytes` of payload allow, but at least one if there is any. Both bounds must
    /// lie within the log (`hi` may be one behind the last entry).
    pub fn entries(&self, lo: LogIndex, hi: LogIndex, max_bytes: u64) -> Result<Vec<LogEntry>, LogError> {
        let runs = self.locate(lo, hi, max_bytes)?;
        let mut entries = Vec::new();
        for run in &runs {
            run.read(&mut entries)?;
        }
        Ok(entries)
    }

    /// Finds the entries under the lock, so that they can be read without it.
    fn locate(&self, lo: LogIndex, hi: LogIndex, max_bytes: u64) -> Result<Vec<Run>, LogError> {
        let index = self.index.read();
        let contents = &index.contents;
        let (start, last) = (contents.start().index, contents.last().index);
        if lo <= start {
            return Err(LogError::Compacted { index: lo, start });
        }
        if hi > last.next() {
            return Err(LogError::Beyond { index: LogIndex(hi.0 - 1), last });
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut bytes = 0;
        for entry in (lo.0..hi.0).map(LogIndex) {
            let Some(slot) = contents.slot(entry) else { break };
            bytes += u64::from(slot.len);
            if entry != lo && bytes > max_bytes {
                break;
            }
            match runs.last_mut() {
                Some(run) if run.takes(slot) => run.slots.push(slot),
                _ => {
                    // An entry in the index lies in a segment that counts.
                    let Some(segment) = index.segment(slot.segment) else { break };
                    runs.push(Run { first: entry, slots: vec![slot], segment: segment.clone() });
                }
            }
        }
        Ok(runs)
    }

    /// Term of an entry in the log, or of the one just before its start.
    pub fn term(&self, index: LogIndex) -> Option<Term> {
        self.index.read().contents.term(index)
    }

    /// The entry just before the first one.
    pub fn start(&self) -> EntryId {
        self.index.read().contents.start()
    }

    /// The last entry, or `start` if there is none.
    pub fn last(&self) -> EntryId {
        self.index.read().contents.last()
    }

    /// Bytes that the files of all segments take that count, without what is pre-written of the last one.
    pub fn bytes(&self) -> u64 {
        self.index.read().bytes()
    }

    /// The newest anchor.
    pub fn anchor(&self) -> Anchor {
        self.index.read().contents.anchor().clone()
    }

    /// Term, vote and commit index as the log has them.
    pub fn hard_state(&self) -> HardState {
        self.index.read().contents.hard_state()
    }

    /// Whether [`Log::prepare_spare`] has something to do.
    pub fn wants_spare(&self) -> bool {
        self.spares.lock().len() < self.options.spares
    }

    /// Pre-writes segments until `LogOptions::spares` are there. For a thread beside the appender: an append that finds
    /// one is faster, one that does not works all the same. A failure harms nothing, and a full disk shows here first.
    pub fn prepare_spare(&self) -> Result<(), LogError> {
        let _maintenance = self.maintenance.lock();
        while self.spares.lock().len() < self.options.spares {
            let spare = self.directory.create_spare()?;
            if let Err(error) = self.directory.fill(&spare, self.options.segment_bytes) {
                // Half a spare only takes space. If this fails too, the next open removes it.
                let _ = self.directory.remove(&spare.name);
                return Err(error);
            }
            self.spares.lock().push(spare);
        }
        Ok(())
    }

    /// Where the log would begin if it dropped its oldest segments one after the other, until it has at most `keep` bytes, as
    /// far as [`Log::compact`] may with `through`.
    pub fn compaction_start(&self, through: LogIndex, keep: u64) -> EntryId {
        let index = self.index.read();
        let mut bytes = index.bytes();
        let mut start = index.contents.start().index;
        for (at, segment) in index.segments.iter().enumerate() {
            let last = index.contents.last_of_segment(segment.number);
            if bytes <= keep || last > through || !index.is_covered(at, last) {
                break;
            }
            bytes -= segment.sealed_len();
            start = start.max(last);
        }
        let term = index.contents.term(start).unwrap_or_else(|| index.contents.start().term);
        EntryId { index: start, term }
    }

    /// Whether [`Log::compact`] has something to drop without an entry in it: the log begins at the same one then.
    pub fn has_empty_segments(&self) -> bool {
        let index = self.index.read();
        index.oldest_may_go(index.contents.start().index)
    }

    /// Begins a new segment if that lets [`Log::compact`] drop the oldest one that has entries: its head takes the newest
    /// anchor along. A log that is not written to would keep what nobody needs.
    pub fn seal_for(&self, through: LogIndex) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        if let Some(failed) = &writer.failed {
            return Err(failed.clone());
        }
        let helps = {
            let index = self.index.read();
            let (start, sealed) = (index.contents.start().index, index.segments.len() - 1);
            let last_of = |at: usize| index.contents.last_of_segment(index.segments[at].number);
            // One without entries needs no head for its sake.
            (0..sealed).find(|at| last_of(*at) > start).is_some_and(|oldest| {
                let last = last_of(oldest);
                last <= through && !index.is_covered(oldest, last) && index.contents.anchor().applied >= last
            })
        };
        if !helps {
            return Ok(());
        }
        self.switch(&mut writer, 0).inspect_err(|error| {
            if !error.can_be_tried_again() {
                writer.failed = Some(error.clone());
            }
        })
    }

    /// Drops whole segments whose entries all lie at or before `through`, as far as a later head's anchor covers them.
    /// Returns the new start.
    pub fn compact(&self, through: LogIndex) -> Result<EntryId, LogError> {
        let mut maintenance = self.maintenance.lock();
        if let Some(failed) = &maintenance.failed {
            return Err(failed.clone());
        }
        while let Some(segment) = self.drop_oldest(through) {
            self.retire(&mut maintenance, segment)?;
        }
        Ok(self.start())
    }

    /// Takes the oldest segment out of the index, if it may go.
    fn drop_oldest(&self, through: LogIndex) -> Option<Arc<Segment>> {
        let mut index = self.index.write();
        if !index.oldest_may_go(through) {
            return None;
        }
        let oldest = index.segments.pop_front()?;
        index.contents.drop_segment(oldest.number);
        Some(oldest)
    }

    /// Takes a segment's file away. Nobody can find it any more; somebody may still read it.
    fn retire(&self, maintenance: &mut Maintenance, segment: Arc<Segment>) -> Result<(), LogError> {
        if let Some(failed) = &maintenance.failed {
            return Err(failed.clone());
        }
        let name = segment.name.clone();
        let wanted = self.spares.lock().len() < self.options.spares;
        // Only a file that was filled to its end saves anything as a spare, and only one that nobody still reads may be.
        let full = |segment: &Segment| {
            let len = segment::len(&*segment.file, &segment.name);
            len.is_ok_and(|len| len == self.options.segment_bytes)
        };
        let unread = Arc::try_unwrap(segment).ok();
        let recycle = unread.filter(|segment| wanted && full(segment)).map(|segment| segment.file);
        match self.directory.retire(&name, recycle) {
            Ok(spare) => {
                self.spares.lock().extend(spare);
                Ok(())
            }
            Err(error) => {
                maintenance.failed = Some(error.clone());
                Err(error)
            }
        }
    }
}

/// A planted mistake: the hard state of a batch with entries is not written.
fn forgets(batch: &Batch) -> bool {
    planted::is(Bug::ForgetVote) && !batch.entries.is_empty()
}

/// Bytes of a head without what [`Record::payload_len`] counts of its anchor.
const HEAD_FIXED: usize = 102;

fn check_options(options: LogOptions) -> Result<(), LogError> {
    let bytes = options.segment_bytes;
    if !SEGMENT_BYTES.contains(&bytes) || !bytes.is_multiple_of(SECTOR) {
        return Err(LogError::Misuse(format!("segments of {bytes} bytes: must be a multiple of 512, 4 KiB to 1 GiB")));
    }
    Ok(())
}

/// A segment that has a successor. Whoever finds it without one knows that a file is lost, with what was acknowledged from it.
struct Sealed {
    segment: Arc<Segment>,
    end: u64,
    chain: u32,
    next: u32,
}

impl Sealed {
    /// Says behind the end of the segment that there is more: when the successor has its name, and before anything in it
    /// counts. Where there is no room for that, it is left out: nothing else rests on it, and the next open tries again.
    fn write(&self, cluster: ClusterId) -> Result<(), LogError> {
        let Segment { file, name, .. } = &*self.segment;
        match segment::write(&**file, name, &self.bytes(cluster), self.end, "log.seal") {
            Ok(()) => segment::sync(&**file, name, "log.seal.sync"),
            Err(error) if error.is_no_space() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn bytes(&self, cluster: ClusterId) -> Vec<u8> {
        let header = BatchHeader {
            lap: lap(cluster, u64::from(self.segment.number)),
            offset: self.end,
            synced: self.end,
            chain: self.chain,
            len: RECORD_HEADER as u32,
        };
        let (header, chain) = header.encode();
        let mut bytes = header.to_vec();
        Record::Sealed(self.next).encode(chain, &mut bytes);
        bytes.resize(SEAL as usize, 0);
        bytes
    }
}

/// Turns a spare into the segment of this head: synced first, named then. Returns it, where its first batch goes, and the
/// chain.
fn open_segment(
    directory: &Directory,
    spare: Spare,
    head: &Head,
    capacity: u64,
    written: u64,
) -> Result<(Arc<Segment>, u64, u32), LogError> {
    let number = u32::try_from(head.number);
    let number = number.map_err(|_| LogError::Misuse("segment numbers are used up".to_owned()))?;
    let mut bytes = Vec::new();
    let chain = head.encode(&mut bytes);
    segment::write(&*spare.file, &spare.name, &bytes, 0, "log.head.write")?;
    segment::sync(&*spare.file, &spare.name, "log.head.sync")?;
    let name = directory.promote(&spare, number)?;
    let end = bytes.len() as u64;
    let applied = head.anchor.applied;
    let segment = Segment { number, name, file: spare.file, capacity, applied, end: AtomicU64::new(end), written };
    Ok((Arc::new(segment), end, chain))
}

type Found = (u32, Arc<dyn File>, NamedHead);

/// The segments that count, ascending, and the names of those that a fresh head made obsolete.
pub(super) fn find_segments(
    directory: &Directory,
    listing: &Listing,
    how: Open,
) -> Result<(Vec<Found>, Vec<String>), LogError> {
    let mut segments: Vec<Found> = Vec::new();
    let mut obsolete = Vec::new();
    for (number, name) in listing.segments.iter().rev() {
        let newer = segments.last().map(|(_, _, named)| named);
        if newer.is_some_and(|newer| newer.head.fresh) {
            obsolete.push(name.clone());
            continue;
        }
        let file = directory.open(name, how)?;
        let named = NamedHead::read(name, *number, &read_head(&*file, name)?, newer)?;
        segments.push((*number, file, named));
    }
    segments.reverse();
    obsolete.reverse();
    Ok((segments, obsolete))
}

fn read_head(file: &dyn File, name: &str) -> Result<Vec<u8>, LogError> {
    let bytes = segment::read(file, name, 0, HEAD_READ)?;
    let prefix = bytes.get(..HEAD_PREFIX).unwrap_or(&bytes);
    let len = Head::length(prefix).map_err(|bad| bad_head(name, bad))?;
    if len <= bytes.len() { Ok(bytes) } else { segment::read(file, name, 0, len) }
}

/// Makes the end of the last segment sure before anybody builds on it: headers of cut batches are wiped; what no later
/// batch vouches for is written once more (see the module's text on failed syncs), with the bytes it has; then a sync.
fn settle(file: &dyn File, name: &str, bytes: &[u8], end: &End) -> Result<(), LogError> {
    for offset in &end.wipe {
        segment::write(file, name, &[0; SECTOR as usize], *offset, "log.wipe")?;
    }
    let to = (end.offset as usize).min(bytes.len());
    if let Some(unsure) = bytes.get(end.mark as usize..to) {
        segment::write(file, name, unsure, end.mark, "log.rewrite")?;
    }
    segment::sync(file, name, "log.open.sync")
}

/// Spares of earlier runs: whole ones are kept, others go.
fn adopt_spares(directory: &Directory, listing: &Listing, options: LogOptions) -> Result<Vec<Spare>, LogError> {
    let mut spares = Vec::new();
    for name in &listing.spares {
        let file = directory.open(name, Open::Write)?;
        let whole = segment::len(&*file, name)? == options.segment_bytes;
        if whole && spares.len() < options.spares {
            spares.push(Spare { name: name.clone(), file });
        } else {
            directory.remove(name)?;
        }
    }
    Ok(spares)
}

/// The entry of a slot, from bytes that begin at offset `from` of its segment.
pub(super) fn read_entry(
    bytes: &Bytes,
    from: u32,
    index: LogIndex,
    slot: Slot,
    file: &str,
) -> Result<LogEntry, LogError> {
    let id = EntryId { index, term: slot.term };
    let at = (slot.offset - from) as usize;
    let record = bytes.get(at..).and_then(|rest| RawRecord::decode(rest, slot.chain));
    let Some(Meaning::Entry(_, class)) = record
        .and_then(|record| record.meaning())
        .filter(|meaning| matches!(meaning, Meaning::Entry(found, _) if *found == id))
    else {
        let what = format!("entry {index} of term {} does not read back", slot.term);
        return Err(LogError::damage(file, u64::from(slot.offset), Case::ReadBack, what));
    };
    let data = bytes.slice(at + RECORD_HEADER..at + RECORD_HEADER + slot.len as usize);
    Ok(LogEntry { id, class, data })
}

/// Entries that follow each other, and lie close to each other in one segment.
struct Run {
    first: LogIndex,
    slots: Vec<Slot>,
    /// Keeps the file from being recycled.
    segment: Arc<Segment>,
}

fn record_end(slot: Slot) -> u64 {
    u64::from(slot.offset) + record_size(slot.len as usize) as u64
}

impl Run {
    fn takes(&self, next: Slot) -> bool {
        let near = |last: &Slot| record_end(*last) + READ_GAP >= u64::from(next.offset);
        self.segment.number == next.segment && self.slots.last().is_some_and(near)
    }

    fn read(&self, entries: &mut Vec<LogEntry>) -> Result<(), LogError> {
        let (Some(first), Some(last)) = (self.slots.first(), self.slots.last()) else { return Ok(()) };
        let from = u64::from(first.offset);
        let name = &self.segment.name;
        let bytes = segment::read_shared(&*self.segment.file, name, from, (record_end(*last) - from) as usize)?;
        for (i, slot) in self.slots.iter().enumerate() {
            let index = LogIndex(self.first.0 + i as u64);
            entries.push(read_entry(&bytes, first.offset, index, *slot, name)?);
        }
        Ok(())
    }
}
