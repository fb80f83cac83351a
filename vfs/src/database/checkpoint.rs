//! Checkpoints: from the virtual WAL to the main file, one position at a time.
//!
//! SQLite's own checkpoint skips a page whose newest frame lies behind the oldest reader's mark, so that its file is the
//! state of no commit. Ours takes one commit position y that every reader allows, and for it the newest frame <= y of every
//! page. What it leaves is the database at exactly y, and a replay of the log behind y finds what it was built on.
//!
//! ```text
//! 1  CKPT; for each read mark: nobody holds it, and it is raised, or somebody does, and it limits y
//! 2  READ_LOCK(0), exclusively: nobody reads the main file alone, without the WAL
//! 3  y: the last transaction that ends at or before the limit, and behind what is backfilled
//! 4  the files, as files.rs says: double-write, pages, hashes, record
//! 5  backfill is raised; the locks go back
//! 6  if all frames are backfilled and nobody reads from the WAL, a new lap begins and its memory is free
//! ```
//!
//! While this goes on, readers read and writers write: nobody needs the main file's version of a page that is being
//! written, since whoever may read it has a frame of it in the WAL, up to its mark and thus up to y. Frames up to y do not
//! change, and no new lap begins before step 5.
//!
//! *Checked on the way*: the hashes of the pages that are written must turn the checksum that the main file has into the
//! one that the database had at y. If not, memory or our books are wrong; nothing is written and this copy is not served
//! any more.
//!
//! *The gate.* While a read view of the database is there, no checkpoint begins and no new lap: the view reads the main
//! file without any lock of SQLite's (`view.rs`).
//!
//! Deliberately absent: when it is time for a checkpoint, and its thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;

use super::session::Owner;
use super::{Database, Main, MainFile, Published, State};
use crate::capture;
use crate::doublewrite::{Listed, Plan};
use crate::error::Refusal;
use crate::files::{DatabaseFiles, WriteError};
use crate::lock::{CHECKPOINT, FileId, READ_0};
use crate::mapfile::Checkpointed;
use crate::page::{PageCount, PageHash, PageNo};
use crate::planted::{self, Bug};
use crate::transaction::Position;
use crate::wal::frame::FrameNo;
use crate::wal::header::WalHeader;
use crate::wal::index::{self, IndexHeader, READ_MARKS};

/// The checkpointer's name in the lock table; connections are numbered from 1.
pub(super) const CHECKPOINTER: FileId = FileId(0);

/// How often a checkpointer that waits for readers looks whether they are gone.
const DRAIN_POLL: Duration = Duration::from_millis(1);

/// What became of a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checkpoint {
    /// The main file has everything already, or there is none.
    Nothing,
    /// A reader, a recovery of the wal-index or the end of the database is in the way. Try again later.
    Blocked,
    /// A read view is open, or has lent a page that was not given back.
    Gated,
    /// The main file is at another position now.
    Done {
        /// Where it was.
        from: Position,
        /// Where it is.
        to: Position,
        /// Pages that were written.
        pages: usize,
    },
}

/// Why a checkpoint failed.
#[derive(Debug)]
pub enum CheckpointError {
    /// The files could not be written.
    Write(WriteError),
    /// What would be written is not what was committed; the database is retired.
    Diverged {
        /// The checksum that the database had.
        expected: PageHash,
        /// The one that the main file would have.
        found: PageHash,
    },
    /// The page-hash map could not be read.
    Map(std::io::Error),
}

impl std::fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CheckpointError::Write(error) => error.fmt(f),
            CheckpointError::Diverged { expected, found } => {
                write!(f, "the pages have checksum {found}, the database had {expected}")
            }
            CheckpointError::Map(error) => write!(f, "page-hash map: {error}"),
        }
    }
}

impl std::error::Error for CheckpointError {}

impl Database {
    /// Books a transaction that has just become visible: it ends with the last frame that readers see.
    pub(super) fn on_published(&self, state: &mut State, position: Position) {
        let last_frame = state.live_header().map_or(0, |header| header.max_frame);
        let at = Checkpointed { position, size: state.hashes.size(), checksum: state.hashes.checksum() };
        state.published.push_back(Published { last_frame, at });
        state.dirty_since.get_or_insert_with(|| self.clock.now());
        state.position = position;
    }

    /// Moves what readers allow from the WAL to the main file. Blocks for as long as the disk takes; one at a time.
    pub fn checkpoint(&self) -> Result<Checkpoint, CheckpointError> {
        let mut slot = self.files.lock();
        let Some(files) = slot.as_mut() else { return Ok(Checkpoint::Nothing) };
        let mut state = self.state.lock();
        let begun = self.begin(&mut state, files.unfinished());
        drop(state);
        let (from, target) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                // With the gate shut this does nothing, either.
                if why == Checkpoint::Nothing {
                    self.restart_if_possible(&mut self.state.lock());
                }
                return Ok(why);
            }
        };
        let written = self.write_files(files, from, target);
        let mut state = self.state.lock();
        if let Ok(pages) = &written {
            self.finish(&mut state, files, target, pages);
        }
        state.locks.unlock_exclusive(CHECKPOINTER, CHECKPOINT..CHECKPOINT + 1);
        state.locks.unlock_exclusive(CHECKPOINTER, READ_0..READ_0 + 1);
        match written {
            Ok(pages) => {
                self.restart_if_possible(&mut state);
                Ok(Checkpoint::Done { from: from.position, to: target.at.position, pages: pages.len() })
            }
            Err(error) => {
                if matches!(error, CheckpointError::Diverged { .. }) {
                    tracing::error!(database = self.name, %error, "nothing was written, and this copy is not served any more");
                    state.retired.get_or_insert(Refusal::Damaged);
                    self.changed.notify_all();
                }
                Err(error)
            }
        }
    }

    /// [`Database::checkpoint`], and then a new lap of the WAL even if there are always readers, or writers: for up to `patience`
    /// it waits for whoever writes, before all others that want to; and for as long again nobody may write. Meanwhile new
    /// readers find everything in the main file and read it alone, and the others come to their ends. A writer and a reader
    /// that outlive `patience` are left in peace: then there is no new lap. With `end_after` such a reader is ended
    /// (`readers.rs`) if it is that old. The applier of this database waits for this.
    pub fn checkpoint_and_restart(
        &self,
        patience: Duration,
        mut end_after: Option<Duration>,
    ) -> Result<Checkpoint, CheckpointError> {
        if patience.is_zero() && end_after.is_none() {
            return self.checkpoint();
        }
        // A WAL that is so long is moved while others may write; what comes meanwhile is little.
        let first = self.checkpoint()?;
        if !self.wait_write_for_checkpoint(&mut self.state.lock(), patience) {
            return Ok(first);
        }
        let deadline = self.clock.now() + patience;
        let mut last = Ok(first);
        loop {
            match self.checkpoint() {
                Ok(Checkpoint::Nothing | Checkpoint::Blocked | Checkpoint::Gated)
                    if matches!(last, Ok(Checkpoint::Done { .. })) => {}
                other => last = other,
            }
            let mut state = self.state.lock();
            let over = state.live_header().is_none_or(|header| header.max_frame == 0)
                || state.alive().is_err()
                || state.views.shut()
                || last.is_err();
            let late = self.clock.now() >= deadline;
            if !over
                && late
                && let Some(age) = end_after.take()
                && self.end_readers_of_lap(&mut state, age) > 0
            {
                continue;
            }
            if over || late {
                self.release_ours(&mut state, Owner::Checkpointer);
                return last;
            }
            // A reader that ends tells nobody.
            self.changed.wait_for(&mut state, DRAIN_POLL);
        }
    }

    /// Begins a new lap of the WAL if the main file has all of this one and nobody reads from it; else does nothing. Then what its
    /// frames took is free, although nobody writes. Does not wait for the disk.
    pub fn restart(&self) {
        let mut state = self.state.lock();
        if state.alive().is_ok() {
            self.restart_if_possible(&mut state);
        }
    }

    /// Steps 1 to 3: the locks are held if this is `Ok`.
    fn begin(
        &self,
        state: &mut MutexGuard<'_, State>,
        unfinished: Option<Position>,
    ) -> Result<(Checkpointed, Published), Checkpoint> {
        if state.alive().is_err() {
            return Err(Checkpoint::Blocked);
        }
        let from = state.checkpointed.ok_or(Checkpoint::Nothing)?;
        if state.published.is_empty() {
            return Err(Checkpoint::Nothing);
        }
        if state.views.shut() {
            return Err(Checkpoint::Gated);
        }
        let header = state.live_header().ok_or(Checkpoint::Blocked)?;
        let checkpoint = CHECKPOINT..CHECKPOINT + 1;
        if !state.locks.try_exclusive(CHECKPOINTER, checkpoint.clone()) {
            return Err(Checkpoint::Blocked);
        }
        let limit = raise_marks(state, header.max_frame);
        let zero = READ_0..READ_0 + 1;
        let target = match unfinished {
            // Marks only rise, so what readers allowed then they allow now.
            Some(position) => state.published.iter().find(|published| published.at.position == position),
            None => state.published.iter().rfind(|published| published.last_frame <= limit),
        };
        match target.copied() {
            Some(target) if state.locks.try_exclusive(CHECKPOINTER, zero) => {
                index::set_backfill_attempted(&state.view, target.last_frame);
                Ok((from, target))
            }
            _ => {
                state.locks.unlock_exclusive(CHECKPOINTER, checkpoint);
                Err(Checkpoint::Blocked)
            }
        }
    }

    /// Step 4.
    fn write_files(
        &self,
        files: &mut DatabaseFiles,
        from: Checkpointed,
        target: Published,
    ) -> Result<Vec<Listed>, CheckpointError> {
        let frames = self.frames_to_move(target);
        let mut pages = Vec::with_capacity(frames.len());
        for (page, frame) in &frames {
            let image = self.wal.read().image(*frame).ok_or_else(|| lost_frame(*frame))?;
            pages.push((*page, PageHash::of(*page, &image)));
        }
        // One that is to be ended was checked when it began; by now the map may have some of its hashes.
        if files.unfinished().is_none() {
            let found = checksum_after(files, from, target.at.size, &pages).map_err(CheckpointError::Map)?;
            if found != target.at.checksum {
                return Err(CheckpointError::Diverged { expected: target.at.checksum, found });
            }
        }
        let by_page: BTreeMap<PageNo, FrameNo> = frames.into_iter().collect();
        let plan = Plan { from: from.position, to: target.at, pages };
        self.writing.lock().pages = plan.pages.iter().map(|(page, _)| *page).collect();
        files.keep_doublewrite(self.doublewrite_keep.load(Ordering::Relaxed));
        let written = files.checkpoint(&plan, &mut |page, out| {
            let frame = by_page.get(&page).ok_or_else(|| std::io::Error::other("a page without a frame"))?;
            let image = self.wal.read().image(*frame).ok_or_else(|| std::io::Error::other("a frame is gone"))?;
            out.extend_from_slice(&image);
            Ok(())
        });
        self.doublewrite_bytes.store(files.doublewrite_bytes(), Ordering::Relaxed);
        if written.is_ok() || files.unfinished().is_none() {
            let mut writing = self.writing.lock();
            writing.pages = Vec::new();
            writing.done += 1;
        }
        written.map_err(CheckpointError::Write)?;
        Ok(plan.pages)
    }

    /// The newest frame up to the target of every page within its size. What is backfilled already is the main file's.
    fn frames_to_move(&self, target: Published) -> Vec<(PageNo, FrameNo)> {
        let first = index::backfill(&self.state.lock().view) + 1;
        let wal = self.wal.read();
        let lock_page = self.geometry.page_size.lock_page();
        let frames = (first..=target.last_frame).filter_map(|number| {
            let frame = FrameNo::new(number)?;
            Some((frame, wal.frame_header(frame)?.page)).filter(|(_, page)| *page != lock_page)
        });
        capture::final_frames(frames, target.at.size)
    }

    /// Step 5, but for the locks.
    fn finish(&self, state: &mut State, files: &DatabaseFiles, target: Published, pages: &[Listed]) {
        {
            let mut main = self.main.write();
            let mut new = MainFile::new(files);
            if let Main::File(old) = &**main {
                // What was looked at and not written stays looked at.
                for (new, old) in new.checked.iter_mut().zip(&old.checked) {
                    *new.get_mut() = old.load(Ordering::Relaxed);
                }
            }
            let mut rotten = self.rotten.lock();
            for (page, _) in pages {
                if let Some((word, bit)) = new.bit(*page) {
                    word.fetch_and(!bit, Ordering::Relaxed);
                }
                rotten.remove(page);
            }
            rotten.retain(|page| target.at.size.contains(*page));
            *main = Arc::new(Main::File(new));
        }
        index::set_backfill(&state.view, target.last_frame);
        while state.published.front().is_some_and(|first| first.at.position <= target.at.position) {
            state.published.pop_front();
        }
        state.dirty_since = if state.published.is_empty() { None } else { Some(self.clock.now()) };
        state.checkpointed = Some(target.at);
        state.hashes.on_checkpoint(target.at.position);
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
    }

    /// Step 6: begins a new lap of the WAL if nothing of this one is needed any more. A writer that is under way does that
    /// itself.
    pub(super) fn restart_if_possible(&self, state: &mut State) {
        let Some(header) = state.live_header() else { return };
        let needed = header.max_frame == 0 || index::backfill(&state.view) < header.max_frame;
        let marks = READ_0 + 1..READ_0 + READ_MARKS;
        if needed
            || state.views.shut()
            || state.writer.as_ref().is_some_and(|writer| !writer.is(Owner::Checkpointer))
            || !state.published.is_empty()
            || !state.locks.try_exclusive(CHECKPOINTER, marks.clone())
        {
            return;
        }
        let salts = next_salts(header.salts);
        let wal_header = WalHeader::new(self.geometry.page_size, 0, salts);
        let publisher = self.publisher.lock();
        let restarted = IndexHeader {
            page_size: Some(self.geometry.page_size),
            max_frame: 0,
            frame_checksum: wal_header.checksum(),
            order: wal_header.order,
            salts,
            ..header
        };
        index::restart(&*publisher, &restarted);
        let mut wal = self.wal.write();
        wal.truncate_to(0);
        wal.set_header(wal_header.encode());
        self.counters.restarts.fetch_add(1, Ordering::Relaxed);
        drop(wal);
        drop(publisher);
        state.locks.unlock_exclusive(CHECKPOINTER, marks);
    }

    /// Compares `count` pages of the main file from `first` on with their hashes, whether they were looked at before or
    /// not. Returns the page to go on with, `None` at the end, and notes what it finds. A checkpoint waits meanwhile.
    pub fn scrub(&self, first: PageNo, count: u32) -> std::io::Result<Option<PageNo>> {
        let slot = self.files.lock();
        let Some(files) = slot.as_ref() else { return Ok(None) };
        // What a failed checkpoint left is a mixture that is known: pages and hashes of two positions, but no rot. It is ended
        // when there is room, or at the next start.
        if files.unfinished().is_some() || files.failed().is_some() {
            return Ok(None);
        }
        let size = files.at().size;
        let mut next = Some(first).filter(|first| size.contains(*first));
        let end = first.get().saturating_add(count);
        while let Some(page) = next.filter(|page| page.get() < end) {
            match files.verify(page, end - page.get())? {
                Some(rotten) => {
                    self.note_rotten_now(rotten);
                    next = PageNo::new(rotten.get() + 1);
                }
                None => next = PageNo::new(end),
            }
        }
        Ok(next.filter(|page| size.contains(*page)))
    }

    /// Whether the hashes of the main file make its checksum; see [`DatabaseFiles::books_fit`]. A checkpoint waits meanwhile.
    pub fn books_fit(&self) -> std::io::Result<bool> {
        match self.files.lock().as_ref() {
            // What a failed checkpoint left is a mixture that is known, and ended at the next start.
            Some(files) if files.unfinished().is_none() && files.failed().is_none() => files.books_fit(),
            _ => Ok(true),
        }
    }

    /// Why no checkpoint is made any more until the node starts again, if so.
    pub fn checkpoint_failed(&self) -> Option<Arc<std::io::Error>> {
        self.files.lock().as_ref().and_then(DatabaseFiles::failed)
    }
}

/// Raises the read marks that nobody holds; returns how far a checkpoint may go because of the others.
fn raise_marks(state: &mut State, max_frame: u32) -> u32 {
    let mut limit = max_frame;
    for mark in 1..READ_MARKS {
        let Some(frames) = index::read_mark(&state.view, mark).filter(|frames| *frames < limit) else { continue };
        let lock = READ_0 + mark..READ_0 + mark + 1;
        if state.locks.try_exclusive(CHECKPOINTER, lock.clone()) {
            index::set_read_mark(&state.view, mark, (mark == 1).then_some(max_frame));
            state.locks.unlock_exclusive(CHECKPOINTER, lock);
        } else if !planted::is(Bug::CheckpointBeyondReader) {
            limit = frames;
        }
    }
    limit
}

/// The checksum of the main file once these pages are written and its size is `size`.
fn checksum_after(
    files: &DatabaseFiles,
    from: Checkpointed,
    size: PageCount,
    pages: &[Listed],
) -> std::io::Result<PageHash> {
    let map = files.map();
    let lock_page = files.owner().page_size.lock_page();
    let mut checksum = from.checksum;
    for (page, hash) in pages {
        if from.size.contains(*page) {
            checksum = checksum.toggle(map.hash(*page)?);
        }
        checksum = checksum.toggle(*hash);
    }
    for page in (size.0 + 1..=from.size.0).filter_map(PageNo::new).filter(|page| *page != lock_page) {
        checksum = checksum.toggle(map.hash(page)?);
    }
    Ok(checksum)
}

fn lost_frame(frame: FrameNo) -> CheckpointError {
    CheckpointError::Map(std::io::Error::other(format!("frame {frame} is not in the WAL")))
}

/// Salts of the next lap. They must differ from those of this lap, so that none of its frames is taken for a new one; nobody
/// has to be unable to guess them.
pub(super) fn next_salts([first, second]: [u32; 2]) -> [u32; 2] {
    let mixed = xxhash_rust::xxh3::xxh3_64_with_seed(&second.to_le_bytes(), first.into());
    [first.wrapping_add(1), mixed as u32]
}
