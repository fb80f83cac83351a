//! How frames become visible without SQLite: foreign transactions, the heal, and pages that nobody wrote.
//!
//! All three do what SQLite's writer does, in its order: frames into the WAL, their entries into the hash table, then
//! the header in its two copies. The change counter moves, so that every connection drops its page cache.

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::session::{Owner, Prepared};
use super::{Database, State};
use crate::error::Refusal;
use crate::page::{PageCount, PageHash, PageNo};
use crate::planted::{self, Bug};
use crate::shm::ShmView;
use crate::transaction::{PageImage, Position, Transaction};
use crate::wal::frame::{self, FrameNo};
use crate::wal::header::WalHeader;
use crate::wal::index;

/// Frames that are put into the WAL under one lock: readers get in between.
const FRAMES_PER_LOCK: usize = 64;

/// Why a transaction was not applied. Nothing has changed then.
#[derive(Debug)]
pub enum ApplyError {
    /// It was built on another position: refused, on every node alike.
    WrongBase {
        /// The base it names.
        base: Position,
        /// Where the database is.
        position: Position,
    },
    /// Applying it would not give the checksum that it promises: this copy, or its author's, is not what it should be.
    Diverged {
        /// What the entry says.
        expected: PageHash,
        /// What this copy would have.
        found: PageHash,
    },
    /// The transaction breaks its own rules.
    Malformed(String),
    /// The database was retired.
    Retired(Refusal),
    /// The page-hash map could not be read: this copy is damaged.
    Map(std::io::Error),
    /// Memory could not be mapped or extended.
    Io(std::io::Error),
}

impl std::fmt::Display for ApplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ApplyError::WrongBase { base, position } => {
                write!(f, "transaction built on position {base}, the database is at {position}")
            }
            ApplyError::Diverged { expected, found } => {
                write!(f, "checksum after the transaction: expected {expected}, this copy has {found}")
            }
            ApplyError::Malformed(what) => write!(f, "malformed transaction: {what}"),
            ApplyError::Retired(why) => write!(f, "the database was retired: {why:?}"),
            ApplyError::Map(error) => write!(f, "page-hash map: {error}"),
            ApplyError::Io(error) => write!(f, "wal-index: {error}"),
        }
    }
}

impl std::error::Error for ApplyError {}

impl Database {
    /// Whether a transaction built on `base` may be the next one.
    pub fn check_base(&self, base: Position) -> Result<(), ApplyError> {
        let position = self.position();
        if base == position || planted::is(Bug::SkipBase) {
            Ok(())
        } else {
            Err(ApplyError::WrongBase { base, position })
        }
    }

    /// Applies a committed transaction and shows it at `position`. Takes WRITE from whoever has it, without waiting for
    /// a local transaction. Readers see all of it or nothing. A transaction that is refused takes WRITE from nobody.
    pub fn apply(&self, transaction: &Transaction, position: Position) -> Result<(), ApplyError> {
        self.apply_if(transaction, position, |state| state.alive())
    }

    /// [`Database::apply`] to a database that is not served because it was damaged: its files were replaced, and it is to
    /// catch up before it is served again.
    pub fn apply_to_damaged(&self, transaction: &Transaction, position: Position) -> Result<(), ApplyError> {
        self.apply_if(transaction, position, |state| match state.retired {
            Some(Refusal::Damaged) => Ok(()),
            other => Err(other.unwrap_or(Refusal::Busy)),
        })
    }

    fn apply_if(
        &self,
        transaction: &Transaction,
        position: Position,
        allowed: impl Fn(&State) -> Result<(), Refusal>,
    ) -> Result<(), ApplyError> {
        transaction.check().map_err(ApplyError::Malformed)?;
        if transaction.page_size != self.geometry.page_size {
            return Err(ApplyError::Malformed(format!(
                "page size {}, the database has {}",
                transaction.page_size.bytes(),
                self.geometry.page_size.bytes()
            )));
        }
        let mut state = self.state.lock();
        self.wait_published(&mut state);
        // Not earlier: a publication that failed retires the database, one that succeeded moves the position.
        allowed(&state).map_err(ApplyError::Retired)?;
        let checksum = check_applicable(&state, transaction).inspect_err(|error| {
            let passed_by = matches!(error, ApplyError::WrongBase { base, position } if base < position);
            self.counters.passed_by.fetch_add(u64::from(passed_by), Ordering::Relaxed);
        })?;
        self.take_write_for_apply(&mut state).map_err(ApplyError::Io)?;
        // The state lock is free meanwhile: readers come and go, and WRITE is ours.
        let pages = transaction.pages.iter().map(|page| (page.number, page.image.clone()));
        let result = MutexGuard::unlocked(&mut state, || {
            self.publish_pages(&mut self.publisher.lock(), pages, transaction.size_after)
        });
        if result.is_ok() {
            let changes = transaction.pages.iter().map(|page| (page.number, page.hash));
            state.hashes.install(changes, transaction.size_after, checksum, position);
            self.on_published(&mut state, position);
            self.counters.applied.fetch_add(1, Ordering::Relaxed);
        }
        self.release_ours(&mut state, Owner::Applier);
        result.map_err(ApplyError::Io)
    }

    /// Appends `pages` as one SQLite commit and publishes it.
    fn publish_pages(
        &self,
        view: &mut ShmView,
        pages: impl ExactSizeIterator<Item = (PageNo, PageImage)>,
        size_after: PageCount,
    ) -> std::io::Result<()> {
        let mut header = index::read_header(view).ok_or_else(header_lost)?;
        if header.max_frame == 0 {
            // Frame 1 of a WAL continues the checksum of its header; a writer that failed may have left another one.
            let [first, second] = header.salts;
            let salts = if planted::is(Bug::WrongSalt) { [first, !second] } else { header.salts };
            let wal_header = WalHeader::new(self.geometry.page_size, 0, salts);
            self.wal.write().set_header(wal_header.encode());
            header.frame_checksum = wal_header.checksum();
        }
        // SQLite knows no page size if it recovered the index from an empty WAL.
        header.page_size = Some(self.geometry.page_size);
        let count = pages.len();
        let mut pages = pages.map(|(page, image)| (page, self.spill.adopt(image))).enumerate();
        loop {
            let some: Vec<_> = pages.by_ref().take(FRAMES_PER_LOCK).collect();
            if some.is_empty() {
                break;
            }
            let mut wal = self.wal.write();
            for (at, (page, image)) in some {
                let frame = FrameNo::new(header.max_frame + 1).ok_or_else(header_lost)?;
                let commit_size = (at + 1 == count).then_some(size_after);
                let (bytes, checksum) = frame::seal(page, commit_size, &image, header.salts, header.frame_checksum);
                wal.put_image(frame, image);
                wal.put_header(frame, bytes);
                index::append(view, frame, page)?;
                header.max_frame = frame.get();
                header.frame_checksum = checksum;
            }
        }
        if self.faulty("apply.publish") {
            return Err(std::io::Error::other("a test wants this apply to fail"));
        }
        header.page_count = size_after;
        header.change_counter = header.change_counter.wrapping_add(1);
        index::publish_header(view, &header);
        Ok(())
    }

    /// The heal: publishes the frames that a session wrote and SQLite did not publish.
    pub(super) fn publish_written(&self, view: &mut ShmView, start: u32, prepared: &Prepared) -> std::io::Result<()> {
        let mut header = index::read_header(view).ok_or_else(header_lost)?;
        let mut wal = self.wal.write();
        if start == 0 {
            let wal_header = wal.header().map_err(std::io::Error::other)?;
            header.salts = wal_header.salts;
            header.frame_checksum = wal_header.checksum();
        }
        header.page_size = Some(self.geometry.page_size);
        for number in start + 1..=prepared.last_frame.get() {
            let frame = FrameNo::new(number).ok_or_else(header_lost)?;
            let page = wal.frame_header(frame).ok_or_else(header_lost)?.page;
            let image = wal.image(frame).ok_or_else(header_lost)?;
            let commit_size = (frame == prepared.last_frame).then_some(prepared.size_after);
            let (bytes, checksum) = frame::seal(page, commit_size, &image, header.salts, header.frame_checksum);
            wal.put_header(frame, bytes);
            index::append(view, frame, page)?;
            header.frame_checksum = checksum;
        }
        header.max_frame = prepared.last_frame.get();
        header.page_count = prepared.size_after;
        header.change_counter = header.change_counter.wrapping_add(1);
        index::publish_header(view, &header);
        Ok(())
    }

    /// Pages that a database has grown over without writing them are zeros on every node. On the node whose SQLite
    /// committed, an older frame of such a page may still be found: it is covered by one of zeros.
    pub(super) fn publish_holes(&self, view: &mut ShmView, holes: &[PageNo], size: PageCount) -> std::io::Result<()> {
        let zeros: PageImage = vec![0; self.geometry.page_size.len()].into();
        self.publish_pages(view, holes.iter().map(|page| (*page, zeros.clone())), size)
    }
}

/// Whether the transaction is the next one, and what the checksum will be.
fn check_applicable(state: &State, transaction: &Transaction) -> Result<PageHash, ApplyError> {
    if transaction.base != state.position && !planted::is(Bug::SkipBase) {
        return Err(ApplyError::WrongBase { base: transaction.base, position: state.position });
    }
    let numbers: Vec<PageNo> = transaction.pages.iter().map(|page| page.number).collect();
    if let Some(hole) = state.hashes.holes(&numbers, transaction.size_after).first() {
        return Err(ApplyError::Malformed(format!("new page {} is missing", hole.get())));
    }
    let changes = transaction.pages.iter().map(|page| (page.number, page.hash));
    let found = state.hashes.prepare(changes, transaction.size_after).map_err(ApplyError::Map)?;
    if found != transaction.checksum_after {
        return Err(ApplyError::Diverged { expected: transaction.checksum_after, found });
    }
    Ok(found)
}

pub(super) fn header_lost() -> std::io::Error {
    std::io::Error::other("the wal-index header is damaged")
}
