//! Write sessions: who holds WRITE, what became of its commit, and how it is taken away.
//!
//! The table of states is in the header of `database.rs`. Two rules carry the rest:
//!
//! * *Decide once.* Under the state lock a proposed session becomes Accepted, Refused or detached, whichever comes
//!   first; the others find that out and adapt. So a fence never lands between "consensus said yes" and publication.
//! * *Never fail after yes.* SQLite may still fail after its commit frame was accepted (a header rewrite, a sync, an
//!   allocation); it then rolls back locally and gives WRITE back with `mxFrame` where it was. `give_back` publishes the
//!   frames itself: the *heal*. The user sees an error for a transaction that is committed.
//!
//! **The fence.** The applier must never wait for a local transaction. It takes WRITE from a session that has not been
//! accepted. SQLite does not know, and its rollback will clean the shared hash table without asking anybody, so the
//! connection's mapping of the wal-index is made private first (`ShmView::detach`). It keeps its own frames, too: a
//! rollback reads pages again, and SQLite trusts its page cache after a rollback that could not (unless that failed with
//! an I/O error). So a fenced transaction reads its own snapshot; what it cannot do is write.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;

use super::apply::header_lost;
use super::checkpoint::CHECKPOINTER;
use super::{Database, FileState, Link, Main, Mode, Overlay, State, Verdict};
use crate::capture::{self, Capture, CommitFrame};
use crate::env::{in_words, is_no_room};
use crate::error::Refusal;
use crate::hashmap::read_again;
use crate::lock::{FileId, READ_0, RECOVER};
use crate::page::{PageCount, PageHash, PageNo};
use crate::planted::{self, Bug};
use crate::replicator::Replicator;
use crate::shm::ShmView;
use crate::transaction::{ChangedPage, PageImage, Position, Transaction};
use crate::wal::frame::{FRAME_HEADER_BYTES, FrameNo, frame_bytes};
use crate::wal::header::WAL_HEADER_BYTES;
use crate::wal::index::READ_MARKS;
use crate::wal::store::VirtualWal;

/// The locks under which a new lap of the WAL begins.
const NEW_LAP: Range<usize> = READ_0 + 1..READ_0 + READ_MARKS;

/// One grant of the write lock; unique within a database's life in this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// Who holds WRITE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// A connection that may write.
    Writer(FileId),
    /// A connection that repairs the wal-index header before it reads; it holds no read lock and writes no frame.
    Repairer(FileId),
    /// The thread that applies committed entries.
    Applier,
    /// A checkpointer that lets nobody write until the WAL has begun anew, for a limited time.
    Checkpointer,
}

/// What the accepted transaction will change in our books when it is published.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(super) last_frame: FrameNo,
    pub(super) size_after: PageCount,
    checksum_after: PageHash,
    changes: Vec<(PageNo, PageHash)>,
    holes: Vec<PageNo>,
}

#[derive(Debug)]
enum Phase {
    Open,
    Proposed(Prepared),
    Accepted(Prepared, Position),
    Refused,
}

/// The session that holds WRITE.
#[derive(Debug)]
pub(crate) struct Writer {
    session: SessionId,
    owner: Owner,
    phase: Phase,
    capture: Capture,
    /// `mxFrame` when the session began: its frames start behind it.
    start_frame: u32,
    /// The connection's snapshot is older than the session: SQLite will notice, give WRITE back and try again.
    stale: bool,
}

impl Writer {
    /// WRITE in hands other than SQLite's.
    pub(super) fn ours(owner: Owner, session: SessionId, start_frame: u32) -> Writer {
        Writer { session, owner, phase: Phase::Open, capture: Capture::new(), start_frame, stale: false }
    }

    pub(super) fn is_accepted(&self) -> bool {
        matches!(self.phase, Phase::Accepted(..))
    }

    pub(super) fn is(&self, owner: Owner) -> bool {
        self.owner == owner
    }
}

impl Database {
    /// A new connection, with its own mapping of the wal-index.
    pub(crate) fn attach_file(&self, file: FileId, link: Arc<Link>) -> std::io::Result<()> {
        let view = ShmView::new(self.shm.clone())?;
        let state = FileState { view, link, believes_write: false, read_change: 0, reading_since: None };
        self.state.lock().files.insert(file, state);
        Ok(())
    }

    /// The connection is gone: whatever it held is free.
    pub(crate) fn forget_file(&self, file: FileId) {
        self.unlock_write(file);
        let mut state = self.state.lock();
        state.locks.forget(file);
        state.queue.leave(file);
        state.files.remove(&file);
    }

    /// Runs `act` on the connection's mapping of the wal-index.
    pub(crate) fn with_view<T>(&self, file: FileId, act: impl FnOnce(&mut ShmView) -> T) -> Option<T> {
        self.state.lock().files.get_mut(&file).map(|file| act(&mut file.view))
    }

    /// Whether a read lock is held, that is, whether a request for WRITE is one to write (rather than to repair).
    pub(crate) fn is_reader(&self, file: FileId) -> bool {
        self.state.lock().locks.is_reader(file)
    }

    /// Whether SQLite believes that this connection holds WRITE.
    pub(crate) fn believes_write(&self, file: FileId) -> bool {
        self.state.lock().files.get(&file).is_some_and(|file| file.believes_write)
    }

    /// Change counter of the published header.
    pub(crate) fn change_counter(&self) -> u32 {
        self.state.lock().live_header().map_or(0, |header| header.change_counter)
    }

    /// Locks other than WRITE, shared.
    pub(crate) fn lock_shared(&self, file: FileId, range: std::ops::Range<usize>) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        state.alive()?;
        state.check_not_ended(file, &range)?;
        let change = state.live_header().map_or(0, |header| header.change_counter);
        if !state.locks.try_shared(file, range.clone()) {
            return Err(Refusal::Busy);
        }
        if let Some(file) = state.files.get_mut(&file) {
            file.read_change = change;
            if range.start >= READ_0 {
                file.reading_since = Some(self.clock.now());
            }
        }
        Ok(())
    }

    /// Locks other than WRITE, exclusively.
    pub(crate) fn lock_exclusive(&self, file: FileId, range: std::ops::Range<usize>) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        state.check_not_ended(file, &range)?;
        // SQLite takes all of these at once for one thing only, a new lap of the WAL, and goes on in this one if it cannot.
        if range == NEW_LAP && state.views.shut() {
            return Err(Refusal::Busy);
        }
        let recovers = range.contains(&RECOVER);
        if !state.locks.try_exclusive(file, range) {
            return Err(Refusal::Busy);
        }
        if recovers {
            self.counters.recoveries.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives back locks other than WRITE. When a connection that is fenced, detached or ended has given back its last one, it
    /// is an ordinary connection again.
    pub(crate) fn unlock(&self, file: FileId, range: std::ops::Range<usize>, shared: bool) {
        let mut state = self.state.lock();
        if shared {
            state.locks.unlock_shared(file, range.clone());
            if let Some(entry) = state.files.get_mut(&file).filter(|_| range.start >= READ_0) {
                entry.reading_since = None;
            }
        } else {
            state.locks.unlock_exclusive(file, range);
        }
        self.rejoin(&mut state, file);
    }

    /// Ends a fence, a detachment or the end of a reader once the connection's transaction is over: for SQLite it has no read
    /// lock, and no WRITE (in the middle of a transaction SQLite may change its read lock).
    fn rejoin(&self, state: &mut State, file: FileId) {
        let Some(entry) = state.files.get_mut(&file) else { return };
        if entry.reading_since.is_some() || entry.believes_write || entry.link.mode() == Mode::Normal {
            return;
        }
        match entry.view.attach() {
            Ok(()) => {
                *entry.link.overlay.lock() = None;
                entry.link.set_mode(Mode::Normal);
            }
            // The connection stays fenced: its reads fail, nothing is damaged. Mapping memory that was mapped before
            // fails only when the process is out of everything.
            Err(error) => {
                tracing::error!(database = self.name, %error, "a connection could not map the wal-index again")
            }
        }
    }

    /// Takes WRITE for a connection. The replicator has already agreed, if the connection is a writer.
    pub(crate) fn lock_write(&self, file: FileId) -> Result<(), Refusal> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.alive()?;
        let reader = state.locks.is_reader(file);
        let Some(entry) = state.files.get(&file) else { return Err(Refusal::NodeStopped) };
        match entry.link.mode() {
            Mode::Normal => {}
            Mode::Ended => return Err(Refusal::ReaderEnded),
            Mode::Fenced | Mode::Detached => return Err(Refusal::NotCommitted),
        }
        let read_change = entry.read_change;
        if !reader {
            if state.writer.is_some() {
                return Err(Refusal::Busy);
            }
            let session = self.next_session();
            state.writer = Some(Writer {
                session,
                owner: Owner::Repairer(file),
                phase: Phase::Open,
                capture: Capture::new(),
                start_frame: 0,
                stale: false,
            });
            return Ok(());
        }
        if state.writer.is_some() || !state.queue.may_take(file, now) {
            state.queue.enqueue(file, now);
            return Err(Refusal::Busy);
        }
        let header = state.live_header().ok_or(Refusal::Busy)?;
        state.queue.leave(file);
        state.writer = Some(Writer {
            session: self.next_session(),
            owner: Owner::Writer(file),
            phase: Phase::Open,
            capture: Capture::new(),
            start_frame: header.max_frame,
            stale: header.change_counter != read_change,
        });
        if let Some(entry) = state.files.get_mut(&file) {
            entry.believes_write = true;
        }
        Ok(())
    }

    /// Sleeps until it is the turn of `file` to take WRITE, at most `limit`.
    pub(crate) fn wait_turn(&self, file: FileId, limit: Duration) {
        let deadline = self.clock.now() + limit;
        let mut state = self.state.lock();
        if !state.queue.contains(file) {
            return;
        }
        state.queue.set_sleeper(file, Some(std::thread::current()), self.clock.now());
        loop {
            let now = self.clock.now();
            let free = state.writer.is_none();
            if now >= deadline || state.retired.is_some() || (free && state.queue.may_take(file, now)) {
                break;
            }
            let mut until = deadline;
            if free && let Some(lapse) = state.queue.first_lapses_at() {
                until = until.min(lapse);
            }
            MutexGuard::unlocked(&mut state, || std::thread::park_timeout(until.saturating_sub(now)));
        }
        state.queue.set_sleeper(file, None, self.clock.now());
    }

    /// SQLite gives WRITE back. A session that was taken away in the meantime has nothing to give. `true`: the snapshot
    /// was too old to write, SQLite may try again at once, and its place in the queue is the first.
    pub(crate) fn unlock_write(&self, file: FileId) -> bool {
        let mut state = self.state.lock();
        let mut again = false;
        if let Some(entry) = state.files.get_mut(&file) {
            entry.believes_write = false;
        }
        let mine = |writer: &mut Writer| matches!(writer.owner, Owner::Writer(f) | Owner::Repairer(f) if f == file);
        if let Some(writer) = state.writer.take_if(mine) {
            again = writer.stale;
            self.give_back(&mut state, file, writer);
            let now = self.clock.now();
            state.queue.on_free(now);
            self.changed.notify_all();
        }
        self.rejoin(&mut state, file);
        again
    }

    fn give_back(&self, state: &mut State, file: FileId, writer: Writer) {
        if matches!(writer.owner, Owner::Repairer(_)) {
            return;
        }
        let mut view = self.publisher.lock();
        let max_frame = state.live_header().map(|header| header.max_frame);
        match writer.phase {
            Phase::Accepted(prepared, position) => {
                let published = max_frame.is_some_and(|max_frame| max_frame >= prepared.last_frame.get());
                let mut result = Ok(());
                if !published && !planted::is(Bug::SkipHeal) {
                    self.counters.heals.fetch_add(1, Ordering::Relaxed);
                    result = self.publish_written(&mut view, writer.start_frame, &prepared);
                }
                if result.is_ok() && !prepared.holes.is_empty() {
                    result = self.publish_holes(&mut view, &prepared.holes, prepared.size_after);
                }
                if let Err(error) = result {
                    // The log has the transaction, this process cannot show it: nothing here may be served any more.
                    tracing::error!(database = self.name, %error, "a committed transaction could not be published");
                    state.retired.get_or_insert(Refusal::Damaged);
                    return;
                }
                let Prepared { changes, size_after, checksum_after, .. } = prepared;
                state.hashes.install(changes.into_iter(), size_after, checksum_after, position);
                self.on_published(state, position);
                self.counters.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Phase::Open | Phase::Refused | Phase::Proposed(_) => {
                // SQLite may have begun the WAL anew before it wrote the first frame, and then have given up.
                let restarted = max_frame == Some(0) && state.published.is_empty();
                if !restarted && max_frame.is_some_and(|max_frame| max_frame != writer.start_frame) {
                    // INV-V2. SQLite published what no majority has: better no database than a wrong one.
                    tracing::error!(
                        database = self.name,
                        "frames up to {max_frame:?} were published without a commit that was captured, expected {}",
                        writer.start_frame
                    );
                    state.retired.get_or_insert(Refusal::Damaged);
                    return;
                }
                // Recovery of the wal-index trusts any unbroken chain of frames, up to a commit frame: what was refused
                // or rolled back must not come back that way.
                self.wal.write().truncate_to(if restarted { 0 } else { writer.start_frame });
                if writer.stale {
                    state.queue.put_first(file, self.clock.now());
                }
            }
        }
    }

    pub(super) fn next_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed))
    }

    /// SQLite wrote into the WAL. Returns what the write means for the caller of xWrite.
    pub(crate) fn write_wal(
        self: &Arc<Self>,
        file: FileId,
        link: &Link,
        offset: u64,
        bytes: &[u8],
        replicator: &dyn Replicator,
    ) -> Result<(), Refusal> {
        if self.faulty("wal.write") {
            return Err(Refusal::Io);
        }
        let place = FrameNo::containing(offset, self.geometry.page_size);
        let whole_page = place
            .filter(|(_, at)| *at == FRAME_HEADER_BYTES && bytes.len() == self.geometry.page_size.len())
            .map(|(frame, _)| frame);
        // Before the lock: this may be a write to a disk.
        let kept = whole_page.map(|_| self.spill.keep(bytes));
        let mut state = self.state.lock();
        match link.mode() {
            Mode::Normal => {}
            Mode::Fenced | Mode::Ended => return Err(Refusal::NotCommitted),
            Mode::Detached => {
                self.write_overlay(link, offset, bytes);
                return Ok(());
            }
        }
        let Some(writer) = state.writer.as_mut().filter(|writer| writer.owner == Owner::Writer(file)) else {
            return Err(Refusal::NotCommitted);
        };
        let Some((frame, kept)) = whole_page.zip(kept) else {
            let mut wal = self.wal.write();
            wal.write_bytes(offset, bytes).map_err(|_| Refusal::TooLarge)?;
            if offset == 0 {
                // A new lap: all of the last one is in the main file, and nobody reads it from the WAL any more. SQLite
                // made sure of that, with the locks of all read marks.
                self.counters.restarts.fetch_add(u64::from(writer.start_frame > 0), Ordering::Relaxed);
                writer.start_frame = 0;
                wal.truncate_to(0);
            }
            if let Some((frame, at)) = place
                && at >= FRAME_HEADER_BYTES
                && let Some(image) = wal.image(frame)
            {
                // SQLite cuts a page in two where it syncs within it, in frames that fill a sector behind a commit.
                wal.move_image(frame, self.spill.adopt(image));
            }
            drop(wal);
            if let Some((frame, 0)) = place
                && bytes.len() == FRAME_HEADER_BYTES
            {
                writer.capture.on_header(frame, u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]));
            }
            return Ok(());
        };
        let image = match kept {
            Ok(image) => image,
            // Behind the commit frame nothing may fail any more: the transaction may be committed.
            Err(_) if writer.capture.has_fired() => self.spill.keep_at_any_price(bytes),
            Err(error) => {
                self.spill.note_refused();
                let why = in_words(&error);
                tracing::warn!(database = self.name, "no room for a page of a transaction, it is rolled back: {why}");
                return Err(no_room(&error));
            }
        };
        self.wal.write().put_image(frame, image);
        match writer.capture.on_page(frame) {
            None => Ok(()),
            Some(commit) => {
                let session = writer.session;
                let start = writer.start_frame;
                drop(state);
                self.commit(session, start, commit, link, replicator)
            }
        }
    }

    fn commit(
        self: &Arc<Self>,
        session: SessionId,
        start: u32,
        commit: CommitFrame,
        link: &Link,
        replicator: &dyn Replicator,
    ) -> Result<(), Refusal> {
        // Hashing happens without the state lock: a large transaction must not stop readers from getting their locks.
        let pages = self.captured_pages(start, commit)?;
        self.check_base_pages(&pages, commit.size)?;
        let transaction = {
            let mut state = self.state.lock();
            state.alive()?;
            let numbers: Vec<PageNo> = pages.iter().map(|page| page.number).collect();
            let holes = state.hashes.holes(&numbers, commit.size);
            let pages = self.with_zero_pages(pages, &holes);
            let changes: Vec<_> = pages.iter().map(|page| (page.number, page.hash)).collect();
            let checksum_after = state.hashes.prepare(changes.iter().copied(), commit.size).map_err(|error| {
                tracing::error!(database = self.name, %error, "the page-hash map could not be read");
                Refusal::Damaged
            })?;
            let base = state.position;
            let Some(writer) = state.writer.as_mut().filter(|writer| writer.session == session) else {
                return Err(Refusal::NotCommitted);
            };
            writer.phase = Phase::Proposed(Prepared {
                last_frame: commit.frame,
                size_after: commit.size,
                checksum_after,
                changes,
                holes,
            });
            let page_size = self.geometry.page_size;
            Transaction { base, page_size, size_after: commit.size, checksum_after, pages }
        };
        let mut receipt = None;
        let answer = replicator.commit(self, session, transaction, &mut receipt);
        link.receipt.set(receipt);

        let mut state = self.state.lock();
        let Some(writer) = state.writer.as_mut().filter(|writer| writer.session == session) else {
            // Detached: the applier published it, or never will. Fenced: that was after it had been given up. Either way
            // the answer is the replicator's.
            return answer.map(|_| ()).map_err(as_verdict);
        };
        if matches!(writer.phase, Phase::Accepted(..)) {
            return Ok(());
        }
        writer.phase = Phase::Refused;
        match answer {
            // "Committed", but not through this session: nothing was published, so the truth is not known here.
            Ok(_) => Err(Refusal::Unknown),
            Err(refusal) => Err(as_verdict(refusal)),
        }
    }

    /// The checksum that is proposed is made from the hashes of what the transaction overwrites or cuts off. One of them that
    /// rotted in the map would convict every node that has the right one: so each is compared with the page that it is of.
    fn check_base_pages(&self, pages: &[ChangedPage], size_after: PageCount) -> Result<(), Refusal> {
        let old: Vec<PageNo> = {
            let state = self.state.lock();
            let cut_off = (size_after.0 + 1..=state.hashes.size().0).filter_map(PageNo::new);
            let all = pages.iter().map(|page| page.number).chain(cut_off);
            all.filter(|page| state.hashes.is_of_file(*page)).collect()
        };
        for page in old {
            let main = self.main.read().clone();
            let Main::File(file) = &*main else { return Ok(()) };
            match read_again(|| file.verify(page, &self.writing)) {
                Ok(Verdict::Whole | Verdict::Written) => {}
                Ok(Verdict::Rotten) => {
                    tracing::error!(
                        database = self.name,
                        page = page.get(),
                        "the base of a transaction is not what was written"
                    );
                    self.note_rotten(&main, page);
                    return Err(Refusal::Damaged);
                }
                Err(error) => {
                    tracing::error!(database = self.name, %error, "the base of a transaction could not be read");
                    return Err(Refusal::Damaged);
                }
            }
        }
        Ok(())
    }

    /// The pages of a transaction, in their last versions. A frame that is not there refuses it: what is left would be another
    /// transaction.
    pub(crate) fn captured_pages(&self, start: u32, commit: CommitFrame) -> Result<Vec<ChangedPage>, Refusal> {
        let wal = self.wal.read();
        let lost = u32::from(planted::is(Bug::LoseSpilledFrame) && commit.frame.get() - start > 12);
        let mut frames = Vec::new();
        for number in start + 1 + lost..=commit.frame.get() {
            let frame = FrameNo::new(number).ok_or(Refusal::NotCommitted)?;
            let header = wal.frame_header(frame).ok_or_else(|| self.lost_frame(frame))?;
            frames.push((frame, header.page));
        }
        let mut finals: Vec<(PageNo, PageImage)> = Vec::new();
        for (page, frame) in capture::final_frames(frames.into_iter(), commit.size) {
            let image = wal.image(frame).ok_or_else(|| self.lost_frame(frame))?;
            if !image.is_whole() {
                return Err(self.rotten_frame(&wal, frame));
            }
            finals.push((page, image));
        }
        drop(wal);
        let changed = |(number, image): (PageNo, PageImage)| {
            let hash = PageHash::of(number, &image);
            ChangedPage { number, hash, image }
        };
        Ok(finals.into_iter().map(changed).collect())
    }

    fn with_zero_pages(&self, mut pages: Vec<ChangedPage>, holes: &[PageNo]) -> Vec<ChangedPage> {
        if holes.is_empty() {
            return pages;
        }
        let zeros: PageImage = vec![0; self.geometry.page_size.len()].into();
        pages.extend(holes.iter().map(|number| ChangedPage {
            number: *number,
            image: zeros.clone(),
            hash: PageHash::of(*number, &zeros),
        }));
        pages.sort_unstable_by_key(|page| page.number);
        pages
    }

    /// The applier met the entry that write session `session` proposed: if that session still waits for it, SQLite
    /// will publish it. `false`: the session was detached, gave up or never was; apply the transaction instead.
    pub fn accept(&self, session: SessionId, position: Position) -> bool {
        let mut state = self.state.lock();
        if state.retired.is_some() {
            return false;
        }
        let Some(writer) = state.writer.as_mut().filter(|writer| writer.session == session) else { return false };
        match std::mem::replace(&mut writer.phase, Phase::Refused) {
            Phase::Proposed(prepared) => {
                writer.phase = Phase::Accepted(prepared, position);
                true
            }
            other => {
                writer.phase = other;
                matches!(writer.phase, Phase::Refused) && planted::is(Bug::AcceptAfterGiveUp)
            }
        }
    }

    /// The waiting commit of `session` stops waiting: from now on it cannot be accepted any more. `false` if it was
    /// accepted before.
    pub fn give_up(&self, session: SessionId) -> bool {
        let mut state = self.state.lock();
        let Some(writer) = state.writer.as_mut().filter(|writer| writer.session == session) else { return true };
        match writer.phase {
            Phase::Accepted(..) => false,
            _ => {
                writer.phase = Phase::Refused;
                true
            }
        }
    }

    /// Waits for what ends by itself: a publication, a repair. Then a writer is a connection without an accepted commit.
    pub(super) fn wait_published(&self, state: &mut MutexGuard<'_, State>) {
        while let Some(writer) = state.writer.as_ref() {
            match (&writer.owner, &writer.phase) {
                (Owner::Repairer(_) | Owner::Applier | Owner::Checkpointer, _) | (_, Phase::Accepted(..)) => {
                    // Where there is one thread nobody ends this wait: whoever simulates hears of it.
                    self.faulty("publish.wait");
                    self.changed.wait(state);
                }
                (Owner::Writer(_), Phase::Open | Phase::Refused | Phase::Proposed(_)) => return,
            }
        }
    }

    /// Takes WRITE for the applier, after [`Database::wait_published`] under the same lock.
    pub(super) fn take_write_for_apply(&self, state: &mut State) -> std::io::Result<()> {
        self.take_from_writer(state)?;
        self.restart_if_possible(state);
        let start_frame = state.live_header().ok_or_else(header_lost)?.max_frame;
        self.take_as_applier(state, start_frame);
        Ok(())
    }

    /// The same for files that take the place of others: the wal-index need not be whole, since it begins anew with them.
    pub(super) fn take_write_for_replacing(&self, state: &mut State) -> std::io::Result<()> {
        self.take_from_writer(state)?;
        let start_frame = state.live_header().map_or_else(|| self.wal.read().len(), |header| header.max_frame);
        self.take_as_applier(state, start_frame);
        Ok(())
    }

    fn take_from_writer(&self, state: &mut State) -> std::io::Result<()> {
        let Some(Writer { owner: Owner::Writer(file), phase, .. }) = &state.writer else { return Ok(()) };
        let mode = if matches!(phase, Phase::Proposed(_)) { Mode::Detached } else { Mode::Fenced };
        self.take_away(state, *file, mode)
    }

    fn take_as_applier(&self, state: &mut State, start_frame: u32) {
        state.writer = Some(Writer::ours(Owner::Applier, self.next_session(), start_frame));
        // What a revoked or rolled back session left behind must not be taken for a continuation by a recovery.
        self.wal.write().truncate_to(start_frame);
    }

    /// Takes WRITE for the checkpointer, if nobody has it.
    pub(super) fn take_write_for_checkpoint(&self, state: &mut State) -> bool {
        let Some(header) = state.live_header().filter(|_| state.writer.is_none()) else { return false };
        state.writer = Some(Writer::ours(Owner::Checkpointer, self.next_session(), header.max_frame));
        true
    }

    /// The same; if somebody has it, it is waited for, at most for `patience`, and whoever else waits for it comes later. Writers
    /// that follow each other leave it free for moments only, which nobody meets who looks now and then.
    pub(super) fn wait_write_for_checkpoint(&self, state: &mut MutexGuard<'_, State>, patience: Duration) -> bool {
        let begun = self.clock.now();
        if state.writer.is_some() && !patience.is_zero() {
            state.queue.put_first(CHECKPOINTER, begun);
            state.queue.set_sleeper(CHECKPOINTER, Some(std::thread::current()), begun);
            while state.writer.is_some() && state.retired.is_none() {
                let waited = self.clock.now().saturating_sub(begun);
                let Some(left) = patience.checked_sub(waited).filter(|left| !left.is_zero()) else { break };
                MutexGuard::unlocked(state, || std::thread::park_timeout(left));
            }
            state.queue.leave(CHECKPOINTER);
        }
        let taken = self.take_write_for_checkpoint(state);
        if !taken {
            state.queue.on_free(self.clock.now());
        }
        taken
    }

    /// Gives WRITE back after applying, or after a checkpoint.
    pub(super) fn release_ours(&self, state: &mut State, owner: Owner) {
        state.writer.take_if(|writer| writer.owner == owner);
        state.queue.on_free(self.clock.now());
        self.changed.notify_all();
    }

    fn take_away(&self, state: &mut State, file: FileId, mode: Mode) -> std::io::Result<()> {
        let Some(writer) = state.writer.as_ref() else { return Ok(()) };
        let start = writer.start_frame;
        if let Some(entry) = state.files.get_mut(&file) {
            let frames = self.frames_behind(start);
            *entry.link.overlay.lock() = Some(Overlay { first: start + 1, frames, main: None });
            // Before anything shared changes, and before WRITE passes on: SQLite in the connection's thread may touch
            // its mapping at any moment without asking.
            if !planted::is(Bug::SkipDetach) {
                entry.view.detach()?;
            }
            if !planted::is(Bug::SkipFence) {
                entry.link.set_mode(mode);
            }
        }
        match mode {
            Mode::Detached => self.counters.detaches.fetch_add(1, Ordering::Relaxed),
            _ => self.counters.fences.fetch_add(1, Ordering::Relaxed),
        };
        state.writer = None;
        Ok(())
    }

    fn write_overlay(&self, link: &Link, offset: u64, bytes: &[u8]) {
        if let Some(overlay) = link.overlay.lock().as_mut()
            && let Some(offset) = self.overlay_offset(overlay, offset)
        {
            // Too far to be numbered is too far for the shared WAL as well; SQLite never gets there.
            let _ = overlay.frames.write_bytes(offset, bytes);
        }
    }

    fn frames_behind(&self, start: u32) -> VirtualWal {
        let wal = self.wal.read();
        let mut copy = VirtualWal::new(self.geometry.page_size);
        for number in start + 1..=wal.len() {
            let Some((from, to)) = FrameNo::new(number).zip(FrameNo::new(number - start)) else { continue };
            if let Some((header, image)) = wal.frame_header_bytes(from).zip(wal.image(from)) {
                copy.put_header(to, header);
                copy.put_image(to, image);
            }
        }
        copy
    }

    /// Where a byte of the WAL is in an overlay; `None` before its first frame.
    pub(crate) fn overlay_offset(&self, overlay: &Overlay, offset: u64) -> Option<u64> {
        if overlay.main.is_some() {
            return Some(offset);
        }
        let skipped = u64::from(overlay.first - 1) * frame_bytes(self.geometry.page_size);
        offset.checked_sub(skipped).filter(|offset| *offset >= WAL_HEADER_BYTES as u64)
    }

    /// Reads the WAL as a connection sees it; returns how many bytes there were.
    pub(crate) fn read_wal(&self, file: FileId, link: &Link, buf: &mut [u8], offset: u64) -> Result<usize, Refusal> {
        let wal = self.wal.read();
        if link.mode() == Mode::Ended {
            return Err(Refusal::ReaderEnded);
        }
        if link.mode() != Mode::Normal {
            let overlay = link.overlay.lock();
            if let Some((overlay, offset)) = overlay.as_ref().and_then(|o| Some((o, self.overlay_offset(o, offset)?))) {
                return Ok(overlay.frames.read(buf, offset));
            }
        }
        if buf.len() >= self.geometry.page_size.len()
            && let Some(frame) = wal.first_rotten(offset, buf.len())
        {
            let refusal = self.rotten_frame(&wal, frame);
            drop(wal);
            return Err(if self.may_be_committed(file, link) { Refusal::Io } else { refusal });
        }
        Ok(wal.read(buf, offset))
    }

    /// Whether the transaction of this connection left its hands: SQLite reads frames back behind the commit frame, and what
    /// it is told there must not say that nothing was committed.
    fn may_be_committed(&self, file: FileId, link: &Link) -> bool {
        let state = self.state.lock();
        let is_own =
            |writer: &Writer| writer.is(Owner::Writer(file)) && !matches!(writer.phase, Phase::Open | Phase::Refused);
        link.mode() == Mode::Detached || state.writer.as_ref().is_some_and(is_own)
    }

    /// A page of the WAL is not what was put there. It is noted like one of the main file.
    fn rotten_frame(&self, wal: &VirtualWal, frame: FrameNo) -> Refusal {
        let page = wal.frame_header(frame).map(|header| header.page);
        tracing::error!(database = self.name, %frame, ?page, "a page of the wal outside of memory is not what was written");
        self.rotten.lock().extend(page);
        Refusal::Damaged
    }

    fn lost_frame(&self, frame: FrameNo) -> Refusal {
        tracing::error!(database = self.name, %frame, "a frame of a transaction is not in the wal; it is not proposed");
        Refusal::NotCommitted
    }

    /// Size of the WAL file as SQLite sees it.
    pub(crate) fn wal_len(&self) -> u64 {
        self.wal.read().size()
    }
}

/// Why a page of a transaction that was not proposed could not be kept.
fn no_room(error: &std::io::Error) -> Refusal {
    if is_no_room(error) { Refusal::NoRoom } else { Refusal::NotKept }
}

/// A refusal as the answer to a commit frame, where plain `SQLITE_BUSY` must not be given (see `error.rs`).
fn as_verdict(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Busy => Refusal::NotCommitted,
        other => other,
    }
}
