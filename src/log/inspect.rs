//! Looking at a log without opening it: nothing is written, locked, cut or removed.
//!
//! What is believed is what [`Log::open`](super::Log::open) would believe, by the same table (`recover.rs`); what it would cut
//! is told instead. A damaged log is read up to the damage. The node may run meanwhile: then the end of what is seen is
//! some moment's, and files may go while they are read, which is an error like any other. That the newest file is missing is
//! believed only if none came meanwhile.
//!
//! Deliberately absent: what entries mean.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use shoaldb_vfs::env::{Fs, Open};

use super::contents::Contents;
use super::recover::{Case, Replay};
use super::segment::{self, Directory, Listing};
use super::store::find_segments;
use super::{Anchor, Cut, LogError};
use crate::types::{ClusterId, EntryId, HardState, LogEntry, LogIndex};

/// How often a log that goes on while it is looked at is looked at again.
const LOOKS: u32 = 3;

/// One segment file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentView {
    /// Its file name.
    pub file: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Where its batches end.
    pub end: u64,
    /// The last entry before it.
    pub before: EntryId,
    /// Where its head's anchor stands.
    pub anchored: LogIndex,
}

/// What a log holds.
#[derive(Clone, Debug)]
pub struct LogView {
    /// Which cluster's log this is.
    pub cluster: ClusterId,
    /// The newest hard state.
    pub hard_state: HardState,
    /// The newest anchor.
    pub anchor: Anchor,
    /// The entry just before the first one.
    pub start: EntryId,
    /// The last entry; `start` if there is none.
    pub last: EntryId,
    /// Its segments, oldest first.
    pub segments: Vec<SegmentView>,
    /// Pre-written files.
    pub spares: usize,
    /// What a start of the node would cut off the end.
    pub cut: Option<Cut>,
    /// Why nothing behind `last` is known. A node refuses to start with such a log.
    pub damage: Option<LogError>,
}

/// A log that is looked at.
#[derive(Debug)]
pub struct Inspection {
    directory: Directory,
    contents: Contents,
    /// What is known without its entries.
    pub view: LogView,
}

impl Inspection {
    /// Reads the log in `dir`, all of it but for the entries.
    pub fn new(fs: Arc<dyn Fs>, dir: &Path) -> Result<Inspection, LogError> {
        let mut tries = 0..LOOKS;
        loop {
            let directory = Directory::new(fs.clone(), dir);
            let listing = directory.list()?;
            let newest = listing.segments.last().map(|(number, _)| *number);
            let seen = Inspection::of(directory, &listing)?;
            let lacks = |error: &LogError| matches!(error, LogError::Damage { case, .. } if *case == Case::SegmentMissing.label());
            let went_on = || Ok(seen.directory.list()?.segments.last().map(|(number, _)| *number) != newest);
            if !seen.view.damage.as_ref().is_some_and(lacks) || tries.next().is_none() || !went_on()? {
                return Ok(seen);
            }
        }
    }

    fn of(directory: Directory, listing: &Listing) -> Result<Inspection, LogError> {
        let (found, _) = find_segments(&directory, listing, Open::Read)?;
        let Some((_, _, first)) = found.first() else {
            return Err(LogError::Missing { dir: directory.display() });
        };
        let cluster = first.head.cluster;
        let mut replay = Replay::new(first);
        let (mut segments, mut cut, mut damage) = (Vec::new(), None, None);
        for (i, (_, file, named)) in found.iter().enumerate() {
            let before = replay.contents.last();
            let mut read = || {
                if i > 0 {
                    replay.enter(named)?;
                }
                let bytes = segment::read_all(&**file, &named.file)?;
                let sealed_at = found.get(i + 1).map(|(_, _, next)| next.head.previous_end);
                Ok((bytes.len() as u64, replay.segment(named, &bytes, sealed_at)?))
            };
            let (bytes, end) = match read() {
                Ok((bytes, end)) => {
                    cut = end.cut;
                    (bytes, end.offset)
                }
                Err(error) => {
                    damage = Some(error);
                    (segment::len(&**file, &named.file)?, 0)
                }
            };
            let (file, anchored) = (named.file.clone(), named.head.anchor.applied);
            segments.push(SegmentView { file, bytes, end, before, anchored });
            if damage.is_some() {
                break;
            }
        }
        let contents = replay.contents;
        let view = LogView {
            cluster,
            hard_state: contents.hard_state(),
            anchor: contents.anchor().clone(),
            start: contents.start(),
            last: contents.last(),
            segments,
            spares: listing.spares.len(),
            cut,
            damage,
        };
        Ok(Inspection { directory, contents, view })
    }

    /// Gives the entries from `from` on, in order, until `on` says that it has enough.
    pub fn entries(&self, from: LogIndex, on: &mut dyn FnMut(LogEntry) -> bool) -> Result<(), LogError> {
        // One segment at a time is in memory.
        let mut open: Option<(u32, Bytes)> = None;
        let first = from.max(self.view.start.index.next());
        for index in (first.0..=self.view.last.index.0).map(LogIndex) {
            let Some(slot) = self.contents.slot(index) else { continue };
            let bytes = match &open {
                Some((number, bytes)) if *number == slot.segment => bytes.clone(),
                _ => {
                    let name = segment::segment_name(slot.segment);
                    let file = self.directory.open(&name, Open::Read)?;
                    let bytes = Bytes::from(segment::read_all(&*file, &name)?);
                    open = Some((slot.segment, bytes.clone()));
                    bytes
                }
            };
            let entry = super::store::read_entry(&bytes, 0, index, slot, &segment::segment_name(slot.segment))?;
            if !on(entry) {
                break;
            }
        }
        Ok(())
    }
}
