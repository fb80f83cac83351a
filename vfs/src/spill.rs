//! How much of the virtual WALs is in memory, and where the rest is.
//!
//! Every page that enters a virtual WAL is *kept*: in memory as long as the databases of a node together have less there
//! than `wal_limit`, else in scratch room outside of it (`env.rs`), which the kernel can drop from memory. A page stays
//! where it was put; it leaves with its last reference, and only then does its room count as free.
//!
//! ```text
//! who puts a page           no room outside                     because
//! SQLite, in a transaction  its write fails: SQLITE_FULL or     nothing was proposed: the transaction is certainly
//!                           SQLITE_IOERR, rolled back           not committed, and nothing else is touched
//! SQLite, behind its        kept in memory, past the limit      the transaction may be committed: nothing may fail
//! commit frame                                                  any more
//! the applier               kept in memory, past the limit      the entry is committed: this node must not fall
//!                                                               behind the others because of a disk that is full
//! ```
//!
//! A page outside of memory is compared with its hash whenever it is read ([`PageImage::is_whole`]).
//!
//! Going past the limit is counted and makes an alarm: [`WalMemory::failures`].
//!
//! Deliberately absent: which pages are needed no more (a checkpoint decides), and files.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::env::{Fs, Label, Scratch};
use crate::page::PageSize;
use crate::transaction::{PageBytes, PageImage};

/// The label of every call for room outside of memory.
pub const LABEL: Label = "wal.spill";

/// What the virtual WALs of one node have in memory, together.
#[derive(Debug)]
pub struct WalMemory {
    limit: u64,
    used: AtomicU64,
    failures: AtomicU64,
    refused: AtomicU64,
}

impl WalMemory {
    /// Memory for `limit` bytes of pages.
    pub fn new(limit: u64) -> Arc<WalMemory> {
        Arc::new(WalMemory { limit, used: AtomicU64::new(0), failures: AtomicU64::new(0), refused: AtomicU64::new(0) })
    }

    /// Bytes of pages in memory now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes of pages that may be in memory.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many pages are, or were, in memory past the limit because there was no room outside.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How many pages of transactions could be kept neither in memory nor outside. Each ended its transaction.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn reserve(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// A page in memory that counts.
struct InMemory {
    bytes: Box<[u8]>,
    memory: Arc<WalMemory>,
}

impl PageBytes for InMemory {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn is_kept(&self) -> bool {
        true
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

/// A page outside of memory, with the hash of what was put there: only a page of a main file has one on disk, and nobody else
/// would notice that this one rotted before it got there.
struct Outside {
    piece: Arc<dyn PageBytes>,
    hash: u64,
}

impl PageBytes for Outside {
    fn bytes(&self) -> &[u8] {
        self.piece.bytes()
    }

    fn is_kept(&self) -> bool {
        true
    }

    fn is_whole(&self) -> bool {
        xxh3_64(self.piece.bytes()) == self.hash
    }
}

/// Where a node's databases keep the pages of their WALs.
#[derive(Clone, Debug)]
pub struct SpillTo {
    /// Shared by the databases of the node.
    pub memory: Arc<WalMemory>,
    /// Where the rest goes; without it everything is in memory.
    pub outside: Option<(Arc<dyn Fs>, PathBuf)>,
}

impl SpillTo {
    /// All in memory, without a limit: for databases that live in tests.
    pub fn nowhere() -> SpillTo {
        SpillTo { memory: WalMemory::new(u64::MAX), outside: None }
    }
}

/// Keeps the pages of one database's WAL.
#[derive(Debug)]
pub(crate) struct Spill {
    to: SpillTo,
    page_size: PageSize,
    /// Made when it is first needed.
    scratch: Mutex<Option<Arc<dyn Scratch>>>,
}

impl Spill {
    pub(crate) fn new(to: SpillTo, page_size: PageSize) -> Spill {
        Spill { to, page_size, scratch: Mutex::new(None) }
    }

    /// Keeps a page, or says why there is no room.
    pub(crate) fn keep(&self, bytes: &[u8]) -> io::Result<PageImage> {
        if self.to.memory.reserve(bytes.len() as u64) {
            return Ok(self.in_memory(bytes));
        }
        let piece = self.scratch()?.put(bytes, LABEL)?;
        Ok(PageImage::new(Arc::new(Outside { piece, hash: xxh3_64(bytes) })))
    }

    /// A page was not kept, and its transaction ends with that.
    pub(crate) fn note_refused(&self) {
        self.to.memory.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps a page that must be kept: in memory past the limit if there is no room outside.
    pub(crate) fn keep_at_any_price(&self, bytes: &[u8]) -> PageImage {
        self.keep(bytes).unwrap_or_else(|error| {
            if self.to.memory.failures.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::error!(
                    "no room outside of memory for pages of the wal, memory grows past wal_limit: {error}; make room on the disk"
                );
            }
            self.to.memory.used.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.in_memory(bytes)
        })
    }

    /// The image, kept if it was not.
    pub(crate) fn adopt(&self, image: PageImage) -> PageImage {
        if image.is_kept() { image } else { self.keep_at_any_price(&image) }
    }

    /// Bytes outside of memory.
    pub(crate) fn outside(&self) -> u64 {
        self.scratch.lock().as_ref().map_or(0, |scratch| scratch.used())
    }

    /// What the caller has reserved.
    fn in_memory(&self, bytes: &[u8]) -> PageImage {
        PageImage::new(Arc::new(InMemory { bytes: bytes.into(), memory: self.to.memory.clone() }))
    }

    fn scratch(&self) -> io::Result<Arc<dyn Scratch>> {
        let mut scratch = self.scratch.lock();
        if let Some(scratch) = &*scratch {
            return Ok(scratch.clone());
        }
        let Some((fs, dir)) = &self.to.outside else {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the memory for the wal is used up"));
        };
        let made = fs.scratch(dir, self.page_size.len(), LABEL)?;
        *scratch = Some(made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::env::sim::{Aim, Failure, Lasts, SimFs};

    const SIZE: PageSize = PageSize::new(512).unwrap();

    fn spill(limit: u64) -> (Spill, SimFs) {
        let fs = SimFs::new(1);
        let to = SpillTo {
            memory: WalMemory::new(limit),
            outside: Some((Arc::new(fs.clone()), Path::new("/").to_path_buf())),
        };
        (Spill::new(to, SIZE), fs)
    }

    #[test]
    fn memory_is_used_up_to_the_limit_and_again_when_it_is_free() {
        let (spill, fs) = spill(2 * 512 + 511);
        let kept: Vec<PageImage> = (0..4).map(|n| spill.keep(&[n; 512]).unwrap()).collect();
        assert_eq!((spill.to.memory.used(), spill.outside()), (1024, 1024));
        assert!(kept.iter().zip(0..).all(|(image, n)| image.is_kept() && **image == [n; 512]));
        let calls = fs.count(LABEL);
        let twice = kept[0].clone();
        drop(kept);
        assert_eq!((spill.to.memory.used(), spill.outside()), (512, 0), "a clone holds its page");
        drop(twice);
        let image = spill.keep(&[9; 512]).unwrap();
        assert_eq!((spill.to.memory.used(), fs.count(LABEL)), (512, calls));
        assert!(spill.adopt(image.clone()).is_same(&image));
    }

    #[test]
    fn without_room_a_page_is_refused_or_kept_in_memory_and_counted() {
        let (spill, fs) = spill(512);
        let first = spill.keep(&[1; 512]).unwrap();
        fs.fail_at(Aim::At(LABEL), 1, Lasts::ForGood, Failure::ENOSPC);
        assert_eq!(spill.keep(&[2; 512]).unwrap_err().raw_os_error(), Some(28));
        assert_eq!((spill.to.memory.used(), spill.to.memory.failures()), (512, 0));
        let forced = spill.adopt(vec![3; 512].into());
        assert_eq!((spill.to.memory.used(), spill.to.memory.failures()), (1024, 1));
        drop((first, forced));
        assert_eq!(spill.to.memory.used(), 0);
    }
}
