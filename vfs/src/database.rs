//! One database as all its connections and the applier share it.
//!
//! ```text
//! what             where                     changed by
//! main file        files.rs                  a checkpoint, and nobody else
//! virtual WAL      frames, see spill.rs      SQLite through xWrite while it holds WRITE; the applier
//! wal-index        memfd, mapped per         SQLite through its own mapping; the applier and the heal
//!                  connection                through ours
//! page hashes      memory: what changed      publication of a transaction; a checkpoint moves them to the map
//!                  since the checkpoint;
//!                  else the map file
//! position         memory                    publication of a transaction
//! ```
//!
//! **Publication.** A transaction is visible once the wal-index header covers its frames. For a local transaction that
//! was accepted SQLite writes the header; for a foreign one the applier does. Position, checksum and page hashes advance
//! when the write lock is given back, in one step under the state lock, so a position is never ahead of what a reader
//! sees.
//!
//! **Write sessions** (`database/session.rs`). Each grant of WRITE is a session. What a session may do is decided once,
//! under the state lock:
//!
//! ```text
//! Open --commit frame--> Proposed --accept--> Accepted --UNLOCK--> published (healed if SQLite failed)
//!  |                        |  \--refused, gave up--> Refused --UNLOCK--> nothing
//!  \--applier--> fenced     \--applier--> detached (the applier publishes; the waiting commit only reports)
//! ```
//!
//! Lock order: `files`, then `state`, then `main`, then `publisher`, then `wal`, then a connection's `overlay`; `writing` and
//! `rotten` come last and are never held together. None is held during a call to the replicator. `files` is held for as long as a checkpoint takes, and by nobody who serves SQLite.
//!
//! Invariants, checked where they are named:
//! * INV-V1 only the holder of WRITE changes frames beyond `mxFrame`, and nobody changes frames up to it;
//! * INV-V2 a session whose commit was not accepted leaves `mxFrame` where it was (`session::give_back`);
//! * INV-V3 `position` grows with every published transaction, and changes with nothing else but other files.
//!
//! Deliberately absent: SQLite's C interface (`ffi.rs`), consensus.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::env::{Clock, File, Label, Rng};
use crate::error::Refusal;
use crate::files::{self, DatabaseFiles};
use crate::genesis::Geometry;
use crate::hashmap::PageHashes;
use crate::lock::{FileId, LockTable, WriteQueue};
use crate::mapfile::{Checkpointed, MapFile};
use crate::page::{PageCount, PageHash, PageNo};
use crate::replicator::Receipt;
use crate::shm::{ShmFile, ShmView};
use crate::spill::{Spill, SpillTo};
use crate::transaction::{PageImage, Position};
use crate::view::{LeftViews, ViewRef};
use crate::wal::header::WalHeader;
use crate::wal::index::{self, IndexHeader};
use crate::wal::store::VirtualWal;

mod apply;
mod checkpoint;
mod readers;
mod replace;
mod session;
mod view;

pub use apply::ApplyError;
pub use checkpoint::{Checkpoint, CheckpointError};
pub use replace::ReplaceError;
pub use session::SessionId;
use session::Writer;

/// Size of the main file's genesis state in pages.
const GENESIS_PAGES: PageCount = PageCount(1);

/// Where the pages of the main file come from.
#[derive(Debug)]
enum Main {
    /// The database has no file yet: it is the genesis page.
    Genesis(Vec<u8>),
    /// A real file.
    File(MainFile),
    /// There was one of this length; this process does not use it any more. SQLite takes a length of 0 for a database
    /// that was never in WAL mode, and would read an empty one.
    Closed { len: u64 },
}

/// The main file as it is read. Its pages are compared with their hashes at their first use, since a disk may have lost
/// them in all the time that nobody asked.
#[derive(Debug)]
struct MainFile {
    file: Arc<dyn File>,
    map: MapFile,
    /// Size in bytes; tracked, since only we change it.
    len: u64,
    /// One bit per page: it was what its hash says, since the file was opened or the page was written.
    checked: Vec<AtomicU64>,
}

impl MainFile {
    fn new(files: &DatabaseFiles) -> MainFile {
        let words = files.at().size.0.div_ceil(64) as usize;
        let checked = (0..words).map(|_| AtomicU64::new(0)).collect();
        MainFile { file: files.main(), map: files.map().clone(), len: files.bytes(), checked }
    }

    fn bit(&self, page: PageNo) -> Option<(&AtomicU64, u64)> {
        let place = page.get() as usize - 1;
        self.checked.get(place / 64).map(|word| (word, 1 << (place % 64)))
    }

    /// The first page of these bytes that is not what it should be. Pages that were looked at before are not looked at.
    fn first_rotten(&self, offset: u64, len: usize, writing: &Mutex<Writing>) -> std::io::Result<Option<PageNo>> {
        let page_size = self.map.owner().page_size;
        let end = (offset + len as u64).min(self.len);
        if offset >= end {
            return Ok(None);
        }
        let number = |byte: u64| byte / u64::from(page_size.bytes()) + 1;
        for page in (number(offset)..=number(end - 1)).filter_map(|n| PageNo::new(u32::try_from(n).ok()?)) {
            let Some((word, bit)) = self.bit(page) else { continue };
            if word.load(Ordering::Relaxed) & bit != 0 || page == page_size.lock_page() {
                continue;
            }
            match self.verify(page, writing)? {
                Verdict::Whole => _ = word.fetch_or(bit, Ordering::Relaxed),
                Verdict::Written => {}
                Verdict::Rotten => return Ok(Some(page)),
            }
        }
        Ok(None)
    }

    /// Compares a page with its hash, whether it was looked at before or not.
    fn verify(&self, page: PageNo, writing: &Mutex<Writing>) -> std::io::Result<Verdict> {
        let mut content = vec![0; self.map.owner().page_size.len()];
        loop {
            let before = writing.lock().done;
            if files::verify_page(&*self.file, &self.map, page, &mut content)? {
                return Ok(Verdict::Whole);
            }
            let now = writing.lock();
            if now.pages.binary_search(&page).is_ok() {
                return Ok(Verdict::Written);
            }
            if now.done == before {
                return Ok(Verdict::Rotten);
            }
        }
    }
}

/// What a look at a page of the main file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// It is what was written.
    Whole,
    /// A checkpoint is writing it at this moment.
    Written,
    /// It is not what was written, or its hash is not.
    Rotten,
}

/// The pages that a checkpoint is writing at this moment. Nobody who follows the locks needs their content in the main
/// file; but SQLite looks at the head of page 1 when it opens a file, before it takes any. Such a page is no proof of rot.
#[derive(Default, Debug)]
struct Writing {
    /// Ascending.
    pages: Vec<PageNo>,
    /// How many checkpoints have come to an end.
    done: u64,
}

/// How a connection's reads and writes are treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Shared WAL, shared wal-index.
    Normal = 0,
    /// Its transaction was revoked before it was proposed: private wal-index, own frames, and every write fails, until the
    /// transaction ends.
    Fenced = 1,
    /// Its proposed transaction goes on without it: private wal-index, own frames, until the transaction ends.
    Detached = 2,
    /// Its read transaction was ended, and its snapshot is gone: private wal-index, and every read and write fails, until
    /// SQLite has noticed.
    Ended = 3,
}

/// The receipt of a connection's last transaction.
#[derive(Default)]
pub(crate) struct Receipts(Mutex<Option<Receipt>>);

impl Receipts {
    pub(crate) fn set(&self, receipt: Option<Receipt>) {
        *self.0.lock() = receipt;
    }

    /// As text; empty if there is none.
    pub(crate) fn text(&self) -> String {
        self.0.lock().as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

impl std::fmt::Debug for Receipts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

/// The part of a connection that the applier must reach: read on every page read, hence atomic.
#[derive(Debug)]
pub(crate) struct Link {
    mode: AtomicU8,
    /// Only of a fenced or detached connection.
    pub(crate) overlay: Mutex<Option<Overlay>>,
    /// Of the last transaction that wished to write; `None` if it was not proposed.
    pub(crate) receipt: Receipts,
}

impl Link {
    pub(crate) fn new() -> Link {
        Link { mode: AtomicU8::new(Mode::Normal as u8), overlay: Mutex::new(None), receipt: Receipts::default() }
    }

    /// Must be read while the WAL's lock is held: whoever overwrites a session's frames set the mode before that.
    pub(crate) fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Acquire) {
            0 => Mode::Normal,
            1 => Mode::Fenced,
            2 => Mode::Detached,
            _ => Mode::Ended,
        }
    }

    /// The main file of a generation that was replaced under this connection's transaction. Must be asked for while the
    /// lock of the main file is held.
    fn own_main(&self) -> Option<Arc<Main>> {
        match self.mode() {
            Mode::Normal | Mode::Ended => None,
            Mode::Fenced | Mode::Detached => self.overlay.lock().as_ref().and_then(|overlay| overlay.main.clone()),
        }
    }

    fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Release);
    }
}

/// What a fenced or detached connection has for itself; frame 1 of `frames` is frame `first` of its WAL. At first these are
/// the frames that it wrote. If the files were replaced under it, they are the whole WAL of its generation, with the header.
#[derive(Debug)]
pub(crate) struct Overlay {
    pub(crate) first: u32,
    pub(crate) frames: VirtualWal,
    /// The main file of its generation, if that is not the database's any more.
    main: Option<Arc<Main>>,
}

/// What the database keeps for each connection.
#[derive(Debug)]
pub(crate) struct FileState {
    pub(crate) view: ShmView,
    link: Arc<Link>,
    /// SQLite believes that this connection holds WRITE (a fence does not tell it).
    believes_write: bool,
    /// Change counter of the wal-index when the connection last got a read lock.
    read_change: u32,
    /// Since when SQLite believes that this connection holds a read lock (the end of a reader does not tell it).
    reading_since: Option<Duration>,
}

/// Everything behind the state lock.
#[derive(Debug)]
struct State {
    /// Our own mapping of the wal-index, for a look at its header.
    view: ShmView,
    locks: LockTable,
    queue: WriteQueue,
    writer: Option<Writer>,
    files: HashMap<FileId, FileState>,
    position: Position,
    hashes: PageHashes,
    /// The transactions in the WAL that no checkpoint has moved to the main file, oldest first: where each ends, and
    /// what the database was then.
    published: VecDeque<Published>,
    /// What the main file is; `None` while there is none.
    checkpointed: Option<Checkpointed>,
    /// Since when the WAL has something that the main file has not.
    dirty_since: Option<Duration>,
    /// Whether a log entry created this database; before that it is an empty shape that a first write may create.
    bound: bool,
    retired: Option<Refusal>,
    /// Read views, which keep checkpoints away.
    views: view::Views,
}

/// The end of one transaction in the WAL.
#[derive(Clone, Copy, Debug)]
struct Published {
    last_frame: u32,
    at: Checkpointed,
}

impl State {
    fn alive(&self) -> Result<(), Refusal> {
        self.retired.map_or(Ok(()), Err)
    }

    /// The published header. `None` only while a connection repairs it.
    fn live_header(&self) -> Option<IndexHeader> {
        index::read_header(&self.view)
    }

    fn wal_frames(&self) -> u32 {
        self.live_header().map_or(0, |header| header.max_frame)
    }

    /// Frames that are not in the main file.
    fn pending_frames(&self) -> u32 {
        self.wal_frames().saturating_sub(index::backfill(&self.view))
    }
}

/// What happened to a database, for tests and status.
#[derive(Default, Debug)]
pub struct Counters {
    /// Transactions that SQLite failed to publish after they were accepted, and the VFS published.
    pub heals: AtomicU64,
    /// Local transactions that were revoked before they were proposed.
    pub fences: AtomicU64,
    /// Local transactions that were detached after they were proposed.
    pub detaches: AtomicU64,
    /// Transactions that the applier published.
    pub applied: AtomicU64,
    /// Transactions that were refused: the database had moved on from the position that they were built on.
    pub passed_by: AtomicU64,
    /// Local transactions that were accepted and published.
    pub accepted: AtomicU64,
    /// Read transactions that were ended, since they kept too much of the WAL.
    pub readers_ended: AtomicU64,
    /// Checkpoints that were made.
    pub checkpoints: AtomicU64,
    /// Times that the WAL began anew, by us or by SQLite.
    pub restarts: AtomicU64,
    /// Times that the files were replaced.
    pub replaced: AtomicU64,
    /// Times that SQLite was let build the wal-index anew from the WAL. It never does, unless the index was damaged.
    pub recoveries: AtomicU64,
    /// Times that a test damaged the wal-index.
    pub damages: AtomicU64,
}

/// A snapshot of what a database is.
#[derive(Clone, Debug)]
pub struct DatabaseStatus {
    /// Size in pages.
    pub pages: PageCount,
    /// Frames in the virtual WAL.
    pub wal_frames: u32,
    /// Frames of it that are not in the main file.
    pub pending_frames: u32,
    /// Bytes of its pages that are outside of memory.
    pub wal_spilled: u64,
    /// Bytes of the double-write file, and beyond how many it gives its room back when its checkpoint is done.
    pub doublewrite: (u64, u64),
    /// Position shown.
    pub position: Position,
    /// Checksum of the content at that position.
    pub checksum: PageHash,
    /// Position of the main file: what a stock SQLite would find in it.
    pub checkpointed: Position,
    /// How long the WAL has had something that the main file has not.
    pub dirty_for: Option<Duration>,
    /// Connections that sleep until it is their turn to write.
    pub writers_waiting: usize,
    /// How long the oldest read transaction has been open.
    pub oldest_reader: Option<Duration>,
    /// Read transactions that were ended, since they kept too much of the WAL.
    pub readers_ended: u64,
    /// Read views: open ones, and closed ones of which a page is still lent.
    pub views: usize,
    /// Whether one of them is of the files as they are now: then nothing is checkpointed. Those of files that were replaced keep
    /// nothing away.
    pub gated: bool,
    /// Pages of the main file that are not what was written.
    pub rotten: Vec<PageNo>,
}

/// Decides which labelled call fails; see [`Database::set_fault`].
pub type FaultHook = Arc<dyn Fn(Label) -> bool + Send + Sync>;

/// One replicated database; see the module's text.
pub struct Database {
    name: String,
    geometry: Geometry,
    clock: Arc<dyn Clock>,
    shm: Arc<ShmFile>,
    /// Locked by whoever writes the files: a checkpoint. `None` until a log entry has created the database.
    files: Mutex<Option<DatabaseFiles>>,
    main: RwLock<Arc<Main>>,
    writing: Mutex<Writing>,
    /// Pages of the main file that were found to be something else than what was written.
    rotten: Mutex<BTreeSet<PageNo>>,
    wal: RwLock<VirtualWal>,
    /// Where the pages of the WAL are. They are put there without any lock: it may take as long as a disk takes.
    spill: Spill,
    /// How large its double-write file may stay between two checkpoints, and how large it is.
    doublewrite_keep: AtomicU64,
    doublewrite_bytes: AtomicU64,
    state: Mutex<State>,
    /// The mapping through which frames are published, with WRITE held. Locked for as long as that takes.
    publisher: Mutex<ShmView>,
    sessions: AtomicU64,
    /// Position advanced, WRITE given back, or retired.
    changed: Condvar,
    fault: RwLock<Option<FaultHook>>,
    /// What happened so far.
    pub counters: Counters,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("name", &self.name).field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Database {
    /// An empty database that no log entry has created yet: page 1 of `geometry` at position 0. Its WAL is kept where
    /// `spill` says.
    pub fn new(
        name: &str,
        geometry: Geometry,
        clock: Arc<dyn Clock>,
        rng: &dyn Rng,
        spill: SpillTo,
    ) -> std::io::Result<Arc<Database>> {
        let shm = Arc::new(ShmFile::new()?);
        let mut publisher = ShmView::new(shm.clone())?;
        let page = geometry.first_page();

        let salt = rng.next_u64();
        let header = WalHeader::new(geometry.page_size, 0, [(salt >> 32) as u32, salt as u32]);
        let mut wal = VirtualWal::new(geometry.page_size);
        wal.set_header(header.encode());
        let empty = IndexHeader {
            change_counter: 0,
            order: header.order,
            page_size: Some(geometry.page_size),
            max_frame: 0,
            page_count: GENESIS_PAGES,
            frame_checksum: header.checksum(),
            salts: header.salts,
        };
        index::init(&mut publisher, &empty)?;
        let view = ShmView::new(shm.clone())?;

        let mut hashes = PageHashes::new(geometry.page_size);
        let first = [(PageNo::FIRST, PageHash::of(PageNo::FIRST, &page))];
        let checksum = hashes.prepare(first.into_iter(), GENESIS_PAGES)?;
        hashes.install(first.into_iter(), GENESIS_PAGES, checksum, Position(0));

        Ok(Arc::new(Database {
            name: name.to_string(),
            geometry,
            clock,
            shm,
            files: Mutex::new(None),
            main: RwLock::new(Arc::new(Main::Genesis(page))),
            writing: Mutex::default(),
            rotten: Mutex::default(),
            wal: RwLock::new(wal),
            spill: Spill::new(spill, geometry.page_size),
            doublewrite_keep: AtomicU64::new(files::DOUBLEWRITE_BYTES),
            doublewrite_bytes: AtomicU64::new(0),
            state: Mutex::new(State {
                view,
                locks: LockTable::default(),
                queue: WriteQueue::default(),
                writer: None,
                files: HashMap::new(),
                position: Position(0),
                hashes,
                published: VecDeque::new(),
                checkpointed: None,
                dirty_since: None,
                bound: false,
                retired: None,
                views: view::Views::default(),
            }),
            publisher: Mutex::new(publisher),
            sessions: AtomicU64::new(1),
            changed: Condvar::new(),
            fault: RwLock::new(None),
            counters: Counters::default(),
        }))
    }

    /// A log entry created this database, or this process found it: from now on it is what its files say. If that is what it
    /// shows already, nobody need look again: a connection whose write created the database goes on with its snapshot.
    pub fn bind(&self, files: DatabaseFiles) -> std::io::Result<()> {
        let at = files.at();
        let mut slot = self.files.lock();
        let mut state = self.state.lock();
        *self.main.write() = Arc::new(Main::File(MainFile::new(&files)));
        let publisher = self.publisher.lock();
        let mut header = state.live_header().ok_or_else(apply::header_lost)?;
        let (size, checksum) = (state.hashes.size(), state.hashes.checksum());
        if (size, checksum) != (at.size, at.checksum) {
            header.page_count = at.size;
            header.change_counter = header.change_counter.wrapping_add(1);
            index::publish_header(&*publisher, &header);
        }
        state.hashes = PageHashes::of_file(files.map().clone(), at.size, at.checksum);
        state.checkpointed = Some(at);
        state.bound = true;
        state.position = at.position;
        self.doublewrite_bytes.store(files.doublewrite_bytes(), Ordering::Relaxed);
        *slot = Some(files);
        self.changed.notify_all();
        Ok(())
    }

    /// A double-write file that is larger gives its room back when its checkpoint is done, from the next one on. For files that
    /// are bound later: [`DatabaseFiles::keep_doublewrite`].
    pub fn keep_doublewrite(&self, bytes: u64) {
        self.doublewrite_keep.store(bytes, Ordering::Relaxed);
    }

    /// Whether a log entry has created this database.
    pub fn is_bound(&self) -> bool {
        self.state.lock().bound
    }

    /// The name that connections use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Page size and auto_vacuum at creation.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Index of the last log entry that this database shows.
    pub fn position(&self) -> Position {
        self.state.lock().position
    }

    /// Position and checksum of one state.
    pub fn checksum(&self) -> (Position, PageHash) {
        let state = self.state.lock();
        (state.position, state.hashes.checksum())
    }

    /// Checksum of the content at `position`, as far back as the main file: what a checkpoint has passed is not known any
    /// more.
    pub fn checksum_at(&self, position: Position) -> Option<PageHash> {
        let state = self.state.lock();
        if state.position == position {
            return Some(state.hashes.checksum());
        }
        let mut past = state.published.iter().map(|published| published.at).chain(state.checkpointed);
        past.find(|at| at.position == position).map(|at| at.checksum)
    }

    /// Sizes, position and checksum of one state.
    pub fn status(&self) -> DatabaseStatus {
        let state = self.state.lock();
        DatabaseStatus {
            pages: state.hashes.size(),
            wal_frames: state.wal_frames(),
            pending_frames: state.pending_frames(),
            wal_spilled: self.spill.outside(),
            doublewrite: (
                self.doublewrite_bytes.load(Ordering::Relaxed),
                self.doublewrite_keep.load(Ordering::Relaxed),
            ),
            position: state.position,
            checksum: state.hashes.checksum(),
            checkpointed: state.checkpointed.map_or(Position(0), |at| at.position),
            dirty_for: state.dirty_since.map(|since| self.clock.now().saturating_sub(since)),
            writers_waiting: state.queue.sleepers(),
            oldest_reader: state.oldest_reader().map(|since| self.clock.now().saturating_sub(since)),
            readers_ended: self.counters.readers_ended.load(Ordering::Relaxed),
            views: state.views.count(),
            gated: state.views.shut(),
            rotten: self.rotten.lock().iter().copied().collect(),
        }
    }

    /// Waits until the transaction that was accepted for `position` is shown, or cannot be any more, at most `limit`. `false`
    /// when time is up. A database that is retired meanwhile ends this no earlier: its connection is still inside its commit.
    pub fn wait_shown(&self, position: Position, limit: Duration) -> bool {
        let deadline = self.clock.now() + limit;
        let mut state = self.state.lock();
        while state.position < position && state.writer.as_ref().is_some_and(Writer::is_accepted) {
            let now = self.clock.now();
            if now >= deadline {
                return false;
            }
            self.changed.wait_for(&mut state, deadline - now);
        }
        true
    }

    /// Nothing may use this database any more, for the given reason: new transactions are refused with it, and waits for
    /// WRITE end. The first reason stays. Read views are closed, but for those [of damaged databases](Database::view_of_damaged)
    /// of one that is found to be just that.
    pub fn retire(&self, reason: Refusal) {
        let mut state = self.state.lock();
        self.retire_in(&mut state, reason);
        let views = state.views.take_for(reason);
        drop(state);
        views.iter().for_each(ViewRef::close);
    }

    /// [`Database::retire`] for a database that a log entry dropped. Its read views go on, and are not its own any more: neither
    /// [`Database::close_files`] closes them nor its end.
    pub fn retire_as_dropped(&self) -> LeftViews {
        let mut state = self.state.lock();
        self.retire_in(&mut state, Refusal::Dropped);
        state.views.leave()
    }

    fn retire_in(&self, state: &mut State, reason: Refusal) {
        state.retired.get_or_insert(reason);
        state.queue.on_free(self.clock.now());
        self.changed.notify_all();
    }

    /// Gives the files back, so that they can be opened again although connections are still open. Waits for a checkpoint
    /// that is under way. The database must be retired. A page that a read view has lent keeps the file in use, and with it
    /// its lock, until it is given back.
    pub fn close_files(&self) {
        self.close_views();
        drop(self.files.lock().take());
        let len = self.main_len();
        *self.main.write() = Arc::new(Main::Closed { len });
        self.state.lock().hashes.close_file();
    }

    /// A database that was retired as damaged is served again: what its files and its WAL show is whole. Any other reason
    /// stays.
    pub fn serve_again(&self) {
        let mut state = self.state.lock();
        state.retired.take_if(|reason| *reason == Refusal::Damaged);
        self.changed.notify_all();
    }

    /// Why nothing may use this database any more, if so.
    pub fn retired(&self) -> Option<Refusal> {
        self.state.lock().retired
    }

    /// Whether a transaction was accepted that SQLite has not shown yet. It ends by itself.
    pub fn is_showing(&self) -> bool {
        self.state.lock().writer.as_ref().is_some_and(Writer::is_accepted)
    }

    /// Number of open connections.
    pub fn connections(&self) -> usize {
        self.state.lock().files.len()
    }

    /// Content of one page at the present position; zeros for the lock page. `None` beyond the end. For comparisons.
    pub fn page(&self, page: PageNo) -> std::io::Result<Option<PageImage>> {
        let state = self.state.lock();
        if !state.hashes.size().contains(page) {
            return Ok(None);
        }
        let mx = state.live_header().map_or(0, |header| header.max_frame);
        if let Some(image) =
            index::find(&*self.publisher.lock(), page, mx).and_then(|frame| self.wal.read().image(frame))
        {
            return Ok(Some(image));
        }
        let mut content = vec![0; self.geometry.page_size.len()];
        self.read_main(None, &mut content, page.offset(self.geometry.page_size))?;
        Ok(Some(content.into()))
    }

    /// Makes labelled calls inside the VFS fail, for tests of what happens then: the hook is asked for each of
    /// `"wal.sync"` and `"wal.write"`, and `true` makes the call return `SQLITE_IOERR`; and for `"apply.publish"`, when the
    /// entries of an apply are in the index and its header is not: `true` makes the apply fail. It also hears of
    /// `"write.unlock"`, before a writer gives WRITE back, which cannot fail. `None` removes it.
    #[doc(hidden)]
    pub fn set_fault(&self, hook: Option<FaultHook>) {
        *self.fault.write() = hook;
    }

    /// Damages the wal-index header, so that the next reader recovers the index from the WAL. For tests; no transaction
    /// may be open.
    #[doc(hidden)]
    pub fn damage_index(&self) {
        self.counters.damages.fetch_add(1, Ordering::Relaxed);
        index::damage_header(&*self.publisher.lock());
    }

    /// Keeps a page of a transaction that is being received, as `spill.rs` says.
    pub fn keep_page(&self, bytes: &[u8]) -> PageImage {
        self.spill.keep_at_any_price(bytes)
    }

    pub(crate) fn faulty(&self, label: Label) -> bool {
        // The hook may come back here, or replace itself.
        let hook = self.fault.read().clone();
        hook.is_some_and(|hook| hook(label))
    }

    /// A page of these files was looked at again, and is not what it should be. Its next use looks, too, also that of a reader who
    /// keeps them when they are replaced: no statement is shown what is known to be rotten. Of files that are replaced by now nobody
    /// else has to hear.
    fn note_rotten(&self, of: &Arc<Main>, page: PageNo) {
        if let Main::File(main) = &**of
            && let Some((word, bit)) = main.bit(page)
        {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
        let current = self.main.read();
        if Arc::ptr_eq(&current, of) {
            self.rotten.lock().insert(page);
        }
    }

    /// The same of the files that there are.
    fn note_rotten_now(&self, page: PageNo) {
        let main = self.main.read().clone();
        self.note_rotten(&main, page);
    }

    /// Reads the main file as a connection sees it; returns how many bytes there were. The rest of `buf` is zeroed.
    pub(crate) fn read_main(&self, link: Option<&Link>, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        // Held while it is read: whoever replaces the files gives the old one to those who need it under this lock, and who
        // ends a reader waits for it.
        let current = self.main.read();
        if link.is_some_and(|link| link.mode() == Mode::Ended) {
            return Err(std::io::Error::other("the read transaction was ended"));
        }
        let own = link.and_then(Link::own_main);
        let got = match &**own.as_ref().unwrap_or(&current) {
            Main::Genesis(page) => {
                let start = (offset as usize).min(page.len());
                let got = buf.len().min(page.len() - start);
                buf[..got].copy_from_slice(&page[start..start + got]);
                got
            }
            Main::File(main) => {
                // Nobody writes to files that were replaced.
                let nothing = Mutex::new(Writing::default());
                let writing = if own.is_some() { &nothing } else { &self.writing };
                if let Some(page) = main.first_rotten(offset, buf.len(), writing)? {
                    if own.is_none() {
                        self.rotten.lock().insert(page);
                    }
                    return Err(std::io::Error::new(
                        std::io::ErrorKind::InvalidData,
                        format!("page {} of database {} is not what was written", page.get(), self.name),
                    ));
                }
                main.file.read_at(buf, offset, "db.read")?
            }
            Main::Closed { .. } => return Err(std::io::Error::other("the files of the database are closed")),
        };
        buf[got..].fill(0);
        Ok(got)
    }

    /// Length of the main file in bytes.
    pub(crate) fn main_len(&self) -> u64 {
        match &**self.main.read() {
            Main::Genesis(page) => page.len() as u64,
            Main::File(main) => main.len,
            Main::Closed { len } => *len,
        }
    }
}
