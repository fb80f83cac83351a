//! Segment files and spares: names, opening, pre-writing, retiring. Every error names the call and the file.
//!
//! A file changes its role by its name only: `spare-<16 hex digits>` is nobody's, `<16 hex digits>.seg` counts. A rename
//! follows the sync of what the new name promises, and a sync of the directory follows the rename.
//!
//! Deliberately absent: what is in a segment behind its head.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use shoaldb_vfs::buffer::Buffer;
use shoaldb_vfs::env::{File, Fs, Label, Open};

use super::LogError;
use super::record::SECTOR;
use super::recover::Case;
use crate::planted::{self, Bug};
use crate::types::LogIndex;

/// Zeros are written in pieces of this size: large enough for the disk, small beside a segment.
const ZEROS: usize = 1 << 20;
/// Room at the end of a segment for the batch that says where the log goes on.
pub(super) const SEAL: u64 = SECTOR;
const SPARE: &str = "spare-";
const SEGMENT: &str = ".seg";

/// One segment that counts.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) file: Arc<dyn File>,
    /// A batch may reach up to here.
    pub(super) capacity: u64,
    /// Where its head's anchor stands.
    pub(super) applied: LogIndex,
    /// Where its batches end.
    pub(super) end: AtomicU64,
    /// Its file was so long before its first batch, or when it was opened.
    pub(super) written: u64,
}

impl Segment {
    /// Its file was written to its end beforehand: a sync of a batch then has no length and no blocks to record.
    pub(super) fn is_filled(&self) -> bool {
        self.written >= self.capacity
    }

    /// What its file takes once nothing but its seal follows: all that was written beforehand, however little is in it.
    pub(super) fn sealed_len(&self) -> u64 {
        self.written.max(self.end.load(Ordering::Relaxed) + SEAL)
    }
}

/// A file of a segment's size that is nobody's.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Arc<dyn File>,
}

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Ascending.
    pub(super) segments: Vec<(u32, String)>,
    pub(super) spares: Vec<String>,
}

/// The log's directory.
#[derive(Debug)]
pub(super) struct Directory {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    next_spare: AtomicU64,
}

pub(super) fn segment_name(number: u32) -> String {
    format!("{number:016x}{SEGMENT}")
}

fn segment_number(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name.strip_suffix(SEGMENT)?, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

impl Directory {
    pub(super) fn new(fs: Arc<dyn Fs>, path: &Path) -> Directory {
        Directory { fs, path: path.to_owned(), next_spare: AtomicU64::new(1) }
    }

    pub(super) fn display(&self) -> String {
        self.path.display().to_string()
    }

    /// Creates the directory so that it survives.
    pub(super) fn create(&self) -> Result<(), LogError> {
        let failed = |error| LogError::io("log.mkdir", &self.display(), error);
        self.fs.create_dir_all(&self.path, "log.mkdir").map_err(failed)?;
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.fs.sync_dir(parent, "log.mkdir").map_err(failed),
            _ => Ok(()),
        }
    }

    pub(super) fn list(&self) -> Result<Listing, LogError> {
        let failed = |error| LogError::io("log.list", &self.display(), error);
        let mut listing = Listing::default();
        for name in self.fs.list(&self.path, "log.list").map_err(failed)? {
            if let Some(number) = segment_number(&name) {
                listing.segments.push((number, name));
            } else if let Some(number) = name.strip_prefix(SPARE) {
                let number = u64::from_str_radix(number, 16).unwrap_or(0);
                self.next_spare.fetch_max(number.saturating_add(1), Ordering::Relaxed);
                listing.spares.push(name);
            }
        }
        listing.segments.sort();
        Ok(listing)
    }

    pub(super) fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>, LogError> {
        self.fs.open(&self.path.join(name), how, "log.open").map_err(|e| LogError::io("log.open", name, e))
    }

    /// A new, empty file with the name of a spare.
    pub(super) fn create_spare(&self) -> Result<Spare, LogError> {
        let name = self.spare_name();
        let opened = self.fs.open(&self.path.join(&name), Open::CreateNew, "log.create");
        let file = opened.map_err(|e| LogError::io("log.create", &name, e))?;
        Ok(Spare { name, file })
    }

    /// Writes zeros up to `len`, so that later writes change no metadata, and syncs them.
    pub(super) fn fill(&self, spare: &Spare, len: u64) -> Result<(), LogError> {
        let zeros = vec![0; ZEROS.min(len as usize)];
        let mut at = 0;
        while at < len {
            let piece = &zeros[..zeros.len().min((len - at) as usize)];
            write(&*spare.file, &spare.name, piece, at, "log.spare.write")?;
            at += piece.len() as u64;
        }
        sync(&*spare.file, &spare.name, "log.spare.sync")
    }

    /// Gives a spare whose head is synced the name of a segment.
    pub(super) fn promote(&self, spare: &Spare, number: u32) -> Result<String, LogError> {
        let name = segment_name(number);
        self.rename(&spare.name, &name, "log.promote")?;
        if !planted::is(Bug::SkipSegmentDirSync) {
            self.sync("log.promote.sync")?;
        }
        Ok(name)
    }

    /// Takes a segment's name away, durably. Its file becomes a spare if it is given, else it is removed.
    pub(super) fn retire(&self, name: &str, recycle: Option<Arc<dyn File>>) -> Result<Option<Spare>, LogError> {
        let spare = match recycle {
            Some(file) => {
                let spare = Spare { name: self.spare_name(), file };
                self.rename(name, &spare.name, "log.retire")?;
                Some(spare)
            }
            None => {
                self.remove(name)?;
                None
            }
        };
        self.sync("log.retire.sync")?;
        Ok(spare)
    }

    fn spare_name(&self) -> String {
        format!("{SPARE}{:016x}", self.next_spare.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), LogError> {
        self.fs.remove(&self.path.join(name), "log.remove").map_err(|e| LogError::io("log.remove", name, e))
    }

    fn rename(&self, from: &str, to: &str, label: Label) -> Result<(), LogError> {
        let renamed = self.fs.rename(&self.path.join(from), &self.path.join(to), label);
        renamed.map_err(|e| LogError::io(label, from, e))
    }

    pub(super) fn sync(&self, label: Label) -> Result<(), LogError> {
        self.fs.sync_dir(&self.path, label).map_err(|e| LogError::io(label, &self.display(), e))
    }
}

pub(super) fn write(file: &dyn File, name: &str, bytes: &[u8], at: u64, label: Label) -> Result<(), LogError> {
    file.write_at(bytes, at, label).map_err(|e| LogError::io(label, name, e))
}

pub(super) fn sync(file: &dyn File, name: &str, label: Label) -> Result<(), LogError> {
    file.sync_data(label).map_err(|e| LogError::io(label, name, e))
}

pub(super) fn len(file: &dyn File, name: &str) -> Result<u64, LogError> {
    file.len("log.len").map_err(|e| LogError::io("log.len", name, e))
}

/// [`read`] of bytes that many may come to hold, each as much of them as it needs.
pub(super) fn read_shared(file: &dyn File, name: &str, at: u64, len: usize) -> Result<Bytes, LogError> {
    let mut buffer = Buffer::zeroed(len);
    let n = file.read_at(buffer.as_mut(), at, "log.read").map_err(|e| LogError::io("log.read", name, e))?;
    let mut bytes = Bytes::from_owner(buffer);
    bytes.truncate(n);
    Ok(bytes)
}

/// `len` bytes from `at`, fewer where the file ends.
pub(super) fn read(file: &dyn File, name: &str, at: u64, len: usize) -> Result<Vec<u8>, LogError> {
    let mut bytes = vec![0; len];
    let n = file.read_at(&mut bytes, at, "log.read").map_err(|e| LogError::io("log.read", name, e))?;
    bytes.truncate(n);
    Ok(bytes)
}

/// The whole file, which must not be longer than offsets in a segment reach.
pub(super) fn read_all(file: &dyn File, name: &str) -> Result<Vec<u8>, LogError> {
    let len = len(file, name)?;
    if u32::try_from(len).is_err() {
        let what = format!("the file has {len} bytes, a segment fewer than {}", u32::MAX);
        return Err(LogError::damage(name, 0, Case::HeadBroken, what));
    }
    read(file, name, 0, len as usize)
}
