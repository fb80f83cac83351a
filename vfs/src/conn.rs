//! One open connection to one database: what SQLite's calls on its two files mean.
//!
//! A connection has a main file and, once it has read anything, a WAL file; both lead here. The rules of the seams:
//!
//! * **WRITE with a read lock held** is a wish to write: the replicator is asked, then the queue. *Without* one it is a
//!   reader that repairs a torn wal-index header, granted locally on every node.
//! * **The read barrier** of a linearizable connection runs in front of a read lock, since SQLite compares the header
//!   again behind it. Never while the connection holds WRITE: SQLite changes its read lock in the middle of a first
//!   write, and the barrier would wait for an applier that waits for WRITE. If the header moved during the barrier,
//!   SQLite will ask again at once, and that request skips it ([`SKIP_LIFETIME`]).
//! * **One replicated database per transaction.** SQLite commits several WAL databases one after the other, without
//!   atomicity. So one `sqlite3*` may hold WRITE in one database only; the second is refused.
//!
//! Deliberately absent: pointers. `ffi.rs` checks them and calls here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::database::{Database, Link, Mode};
use crate::env::Clock;
use crate::error::Refusal;
use crate::lock::{CHECKPOINT, FileId, READ_0, WRITE};
use crate::replicator::{Interrupted, Replicator};

/// How long "the barrier has just been passed" counts. SQLite's retry follows within microseconds; if it gave up
/// instead, a later read must not inherit the mark.
const SKIP_LIFETIME: Duration = Duration::from_millis(20);

static NEXT_FILE: AtomicU64 = AtomicU64::new(1);

/// Which file of which `sqlite3*` (as a number) holds WRITE, in this process.
static WRITERS: Mutex<BTreeMap<usize, FileId>> = Mutex::new(BTreeMap::new());

/// For so long nothing more is said of a page that cannot be read; whoever needs it asks for it again and again.
const SILENCE: Duration = Duration::from_secs(3600);
/// Pages of a database that are told of one by one. All others count as one.
const PAGES_TOLD: usize = 64;

/// Reads that failed, of all databases of this process.
static FAILED_READS: Mutex<FailedReads> = Mutex::new(FailedReads(Vec::new()));

struct FailedReads(Vec<FailedOf>);

struct FailedOf {
    db: Weak<Database>,
    /// When a page was told of, and how often it failed since.
    pages: BTreeMap<u64, (Duration, u64)>,
}

impl FailedReads {
    /// Counts one more. If it should be told: how many of this page were not.
    fn count(&mut self, db: &Arc<Database>, page: u64, now: Duration) -> Option<u64> {
        self.0.retain(|of| of.db.strong_count() > 0);
        let known = self.0.iter().position(|of| std::ptr::eq(of.db.as_ptr(), Arc::as_ptr(db)));
        let at = known.unwrap_or(self.0.len());
        if known.is_none() {
            self.0.push(FailedOf { db: Arc::downgrade(db), pages: BTreeMap::new() });
        }
        let pages = &mut self.0[at].pages;
        let page = if pages.len() < PAGES_TOLD || pages.contains_key(&page) { page } else { 0 };
        match pages.get_mut(&page) {
            Some((told, silent)) if now < *told + SILENCE => {
                *silent += 1;
                None
            }
            Some(again) => Some(std::mem::replace(again, (now, 0)).1),
            None => {
                pages.insert(page, (now, 0));
                Some(0)
            }
        }
    }
}

/// What the next sleep of this thread should rather wait for.
/// Weak, since a thread may never sleep again and must not keep a node's memory.
enum SleepFor {
    Turn(Weak<Database>, FileId),
    Writable(Weak<Database>, Weak<dyn Replicator>),
}

thread_local! {
    static SLEEP_FOR: RefCell<Option<SleepFor>> = const { RefCell::new(None) };
}

/// The connection; see the module's text.
pub(crate) struct Conn {
    id: FileId,
    db: Arc<Database>,
    link: Arc<Link>,
    replicator: Arc<dyn Replicator>,
    clock: Arc<dyn Clock>,
    linearizable: AtomicBool,
    powersafe_overwrite: AtomicBool,
    skip_barrier_until: Mutex<Option<Duration>>,
    /// The `sqlite3*` under which WRITE is registered in [`WRITERS`].
    registered: Mutex<Option<usize>>,
}

impl Conn {
    pub(crate) fn new(
        db: Arc<Database>,
        replicator: Arc<dyn Replicator>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Conn> {
        let id = FileId(NEXT_FILE.fetch_add(1, Ordering::Relaxed));
        let link = Arc::new(Link::new());
        db.attach_file(id, link.clone())?;
        Ok(Conn {
            id,
            db,
            link,
            replicator,
            clock,
            linearizable: AtomicBool::new(false),
            powersafe_overwrite: AtomicBool::new(true),
            skip_barrier_until: Mutex::new(None),
            registered: Mutex::new(None),
        })
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn db(&self) -> &Arc<Database> {
        &self.db
    }

    pub(crate) fn set_linearizable(&self, on: bool) {
        self.linearizable.store(on, Ordering::Relaxed);
    }

    pub(crate) fn is_linearizable(&self) -> bool {
        self.linearizable.load(Ordering::Relaxed)
    }

    /// Receipt of the last transaction that wished to write, as text.
    pub(crate) fn last_receipt(&self) -> String {
        self.link.receipt.text()
    }

    pub(crate) fn set_powersafe_overwrite(&self, on: bool) {
        self.powersafe_overwrite.store(on, Ordering::Relaxed);
    }

    pub(crate) fn powersafe_overwrite(&self) -> bool {
        self.powersafe_overwrite.load(Ordering::Relaxed)
    }

    pub(crate) fn read_main(&self, buf: &mut [u8], offset: u64) -> Result<usize, Refusal> {
        self.db.read_main(Some(&self.link), buf, offset).map_err(|error| {
            if let Some(refusal) = self.db.retired() {
                return refusal;
            }
            if self.link.mode() == Mode::Ended {
                return Refusal::ReaderEnded;
            }
            let page = offset / u64::from(self.db.geometry().page_size.bytes()) + 1;
            if let Some(silent) = FAILED_READS.lock().count(&self.db, page, self.clock.now()) {
                tracing::error!(database = self.db.name(), page, %error, silent, "the main file could not be read");
            }
            if error.kind() == std::io::ErrorKind::InvalidData { Refusal::Damaged } else { Refusal::Io }
        })
    }

    pub(crate) fn read_wal(&self, buf: &mut [u8], offset: u64) -> Result<usize, Refusal> {
        self.db.read_wal(self.id, &self.link, buf, offset)
    }

    pub(crate) fn write_wal(&self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.db.write_wal(self.id, &self.link, offset, bytes, &*self.replicator)
    }

    /// The WAL is in memory: there is nothing to sync, and after an accepted commit nothing may fail.
    pub(crate) fn sync_wal(&self) -> Result<(), Refusal> {
        if self.db.faulty("wal.sync") { Err(Refusal::Io) } else { Ok(()) }
    }

    pub(crate) fn lock_shared(&self, range: Range<usize>, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        // A new attempt: whatever this thread was to sleep for, and did not, is over.
        SLEEP_FOR.set(None);
        if range.start >= READ_0 && self.is_linearizable() && !self.db.believes_write(self.id) {
            self.pass_barrier(interrupted)?;
        }
        self.db.lock_shared(self.id, range)
    }

    fn pass_barrier(&self, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        let skip = self.skip_barrier_until.lock().take();
        if skip.is_some_and(|until| self.clock.now() < until) {
            return Ok(());
        }
        let before = self.db.change_counter();
        self.replicator.read_barrier(&self.db, interrupted).map_err(|refusal| match refusal {
            // SQLite would try for ten seconds, and then speak of a locking protocol.
            Refusal::Busy => Refusal::ReadUnconfirmed,
            other => other,
        })?;
        if self.db.change_counter() != before {
            *self.skip_barrier_until.lock() = Some(self.clock.now() + SKIP_LIFETIME);
        }
        Ok(())
    }

    /// `connection` is the `sqlite3*` as a number, 0 if unknown.
    pub(crate) fn lock_exclusive(
        &self,
        range: Range<usize>,
        connection: usize,
        interrupted: Interrupted<'_>,
    ) -> Result<(), Refusal> {
        if range == (WRITE..WRITE + 1) {
            return self.lock_write(connection, interrupted);
        }
        // CKPT alone is a checkpoint, which is ours to make; CKPT and RECOVER together rebuild the wal-index.
        if range == (CHECKPOINT..CHECKPOINT + 1) {
            return Err(Refusal::Busy);
        }
        self.db.lock_exclusive(self.id, range)
    }

    fn lock_write(&self, connection: usize, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        SLEEP_FOR.set(None);
        if !self.db.is_reader(self.id) {
            return self.db.lock_write(self.id);
        }
        // A new transaction: nobody must take the receipt of the one before for its own.
        self.link.receipt.set(None);
        // SQLite's busy handler never looks, and would come back until its time is up.
        if interrupted() {
            return Err(Refusal::Interrupted);
        }
        if WRITERS.lock().get(&connection).is_some_and(|holder| connection != 0 && *holder != self.id) {
            return Err(Refusal::SecondWriter);
        }
        if let Err(refusal) = self.replicator.acquire_write(&self.db, self.is_linearizable(), interrupted) {
            return Err(self.come_back_when_writable(refusal));
        }
        match self.db.lock_write(self.id) {
            Ok(()) => {
                if let Err(refusal) = self.replicator.is_open(&self.db) {
                    self.db.unlock_write(self.id);
                    return Err(self.come_back_when_writable(refusal));
                }
                if connection != 0 {
                    WRITERS.lock().insert(connection, self.id);
                    *self.registered.lock() = Some(connection);
                }
                Ok(())
            }
            Err(refusal) => {
                if refusal == Refusal::Busy {
                    SLEEP_FOR.set(Some(SleepFor::Turn(Arc::downgrade(&self.db), self.id)));
                }
                Err(refusal)
            }
        }
    }

    /// What SQLite's busy handler is going to sleep for, if it is asked to.
    fn come_back_when_writable(&self, refusal: Refusal) -> Refusal {
        if refusal == Refusal::Busy {
            SLEEP_FOR.set(Some(SleepFor::Writable(Arc::downgrade(&self.db), Arc::downgrade(&self.replicator))));
        }
        refusal
    }

    pub(crate) fn unlock(&self, range: Range<usize>, shared: bool) {
        if range == (WRITE..WRITE + 1) {
            if self.db.believes_write(self.id) {
                self.db.faulty("write.unlock");
            }
            if self.db.unlock_write(self.id) {
                SLEEP_FOR.set(Some(SleepFor::Turn(Arc::downgrade(&self.db), self.id)));
            }
            self.unregister();
            self.replicator.on_write_released();
        } else {
            self.db.unlock(self.id, range, shared);
        }
    }

    fn unregister(&self) {
        if let Some(connection) = self.registered.lock().take() {
            WRITERS.lock().remove(&connection);
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.db.forget_file(self.id);
        self.unregister();
    }
}

/// The sleep of SQLite's busy handler: waits for what this thread was last refused, at most `limit`.
pub(crate) fn sleep(limit: Duration) {
    let waited = match SLEEP_FOR.take() {
        Some(SleepFor::Turn(db, file)) => db.upgrade().map(|db| db.wait_turn(file, limit)),
        Some(SleepFor::Writable(db, replicator)) => {
            db.upgrade().zip(replicator.upgrade()).map(|(db, replicator)| replicator.wait_writable(&db, limit))
        }
        None => None,
    };
    if waited.is_none() {
        std::thread::sleep(limit);
    }
}

#[cfg(test)]
mod tests;
