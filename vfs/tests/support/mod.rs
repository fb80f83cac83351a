#![allow(unreachable_pub, dead_code, reason = "shared by several test programs, each uses a part")]
//! A replicator without consensus: every commit is acknowledged at once, or as the test says, and kept, so that a second
//! copy can be built from nothing but the captured transactions and be compared with the first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use shoaldb_vfs::Registration;
use shoaldb_vfs::database::{Database, SessionId};
use shoaldb_vfs::doublewrite::Plan;
use shoaldb_vfs::env::os::{OsClock, OsFs, OsRng};
use shoaldb_vfs::env::{Clock, Fs};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::files::DatabaseFiles;
use shoaldb_vfs::genesis::{AutoVacuum, Geometry};
use shoaldb_vfs::mapfile::{Checkpointed, Owner};
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::replicator::{Interrupted, Receipt, Replicator};
use shoaldb_vfs::spill::SpillTo;
use shoaldb_vfs::transaction::{Position, Transaction};

/// What the next commit is answered with, instead of yes.
pub type Verdict = Box<dyn FnOnce(&Arc<Database>, SessionId, &Transaction) -> Result<Position, Refusal> + Send>;

/// What a read barrier, or a request for the write lock, does instead of saying yes.
pub type Barrier = Box<dyn Fn(Interrupted<'_>) -> Result<(), Refusal> + Send>;

/// The replicator of one test.
pub struct TestReplicator {
    dir: tempfile::TempDir,
    fs: Arc<dyn Fs>,
    next_file: AtomicU64,
    owners: Mutex<HashMap<String, Owner>>,
    databases: Mutex<HashMap<String, Arc<Database>>>,
    next_position: AtomicU64,
    /// Every transaction that was acknowledged: database name, position, pages.
    pub captured: Mutex<Vec<(String, Position, Transaction)>>,
    /// Answers for the next commits; when empty, yes.
    pub verdicts: Mutex<VecDeque<Verdict>>,
    /// What `acquire_write` answers; `Ok` if `None`.
    pub refuse_write: Mutex<Option<Refusal>>,
    /// What `acquire_write` does before it says yes.
    pub acquire: Mutex<Option<Barrier>>,
    /// What a read barrier does.
    pub barrier: Mutex<Option<Barrier>>,
    pub barriers: AtomicU64,
    pub acquires: AtomicU64,
    /// Geometry of databases that `open` creates.
    pub geometry: Mutex<Geometry>,
    /// Where they keep their WALs.
    pub spill: Mutex<SpillTo>,
    /// The clock of databases that `open` creates.
    pub clock: Mutex<Arc<dyn Clock>>,
    /// Answers every commit for which there is no verdict, instead of yes.
    pub handler: Mutex<Option<Handler>>,
    /// Position at which each database began.
    origins: Mutex<HashMap<String, Position>>,
}

/// Answers commits; see [`TestReplicator::handler`].
pub type Handler = Arc<dyn Fn(&Arc<Database>, SessionId, &Transaction) -> Result<Position, Refusal> + Send + Sync>;

impl TestReplicator {
    pub fn database(&self, name: &str) -> Arc<Database> {
        self.database_with(name, *self.geometry.lock())
    }

    pub fn database_with(&self, name: &str, geometry: Geometry) -> Arc<Database> {
        let mut databases = self.databases.lock();
        databases
            .entry(name.to_string())
            .or_insert_with(|| {
                let (clock, spill) = (self.clock.lock().clone(), self.spill.lock().clone());
                let db = Database::new(name, geometry, clock, &OsRng, spill).unwrap();
                let position = Position(self.next_position.fetch_add(1, Ordering::Relaxed));
                self.bind(&db, name, geometry, position);
                db
            })
            .clone()
    }

    /// Another copy of `name` that stands where `original` began.
    pub fn copy_of(&self, original: &TestReplicator, name: &str) -> Arc<Database> {
        let geometry = original.database(name).geometry();
        let copy = self.database_with(name, geometry);
        self.bind(&copy, name, geometry, original.origins.lock()[name]);
        copy
    }

    fn bind(&self, db: &Database, name: &str, geometry: Geometry, position: Position) {
        let database = self.next_file.fetch_add(1, Ordering::Relaxed);
        let owner = Owner { database, generation: 1, page_size: geometry.page_size };
        let files = DatabaseFiles::create(self.fs.clone(), self.dir.path(), owner, geometry, position).unwrap();
        db.bind(files).unwrap();
        self.origins.lock().insert(name.to_string(), position);
        self.owners.lock().insert(name.to_string(), owner);
    }

    /// Which files belong to a database.
    pub fn owner(&self, name: &str) -> Owner {
        self.owners.lock()[name]
    }

    /// The directory with the files of all databases.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn record(&self, name: &str, position: Position, transaction: &Transaction) {
        self.captured.lock().push((name.to_string(), position, transaction.clone()));
    }

    pub fn next_position(&self) -> Position {
        Position(self.next_position.fetch_add(1, Ordering::Relaxed))
    }

    /// Says yes as a node's applier would: accepts for the waiting session.
    pub fn acknowledge(&self, db: &Arc<Database>, session: SessionId, transaction: &Transaction) -> Position {
        let position = self.next_position();
        self.record(db.name(), position, transaction);
        if !db.accept(session, position) {
            db.apply(transaction, position).unwrap();
        }
        position
    }
}

impl Replicator for TestReplicator {
    fn open(&self, name: &str, create: bool) -> Result<Arc<Database>, Refusal> {
        let known = self.databases.lock().contains_key(name);
        if name.contains('/') || (!known && !create) { Err(Refusal::CannotOpen) } else { Ok(self.database(name)) }
    }

    fn acquire_write(&self, _: &Arc<Database>, _: bool, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        self.acquires.fetch_add(1, Ordering::Relaxed);
        self.acquire.lock().as_ref().map_or(Ok(()), |acquire| acquire(interrupted))?;
        self.refuse_write.lock().map_or(Ok(()), Err)
    }

    fn wait_writable(&self, _: &Arc<Database>, limit: Duration) {
        std::thread::sleep(limit);
    }

    fn commit(
        &self,
        db: &Arc<Database>,
        session: SessionId,
        transaction: Transaction,
        _: &mut Option<Receipt>,
    ) -> Result<Position, Refusal> {
        transaction.check().unwrap();
        let verdict = self.verdicts.lock().pop_front();
        let handler = self.handler.lock().clone();
        match (verdict, handler) {
            (Some(verdict), _) => verdict(db, session, &transaction),
            (None, Some(handler)) => handler(db, session, &transaction),
            (None, None) => Ok(self.acknowledge(db, session, &transaction)),
        }
    }

    fn read_barrier(&self, _: &Arc<Database>, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        self.barriers.fetch_add(1, Ordering::Relaxed);
        self.barrier.lock().as_ref().map_or(Ok(()), |barrier| barrier(interrupted))
    }
}

/// A registered VFS with its replicator.
pub struct Stage {
    pub replicator: Arc<TestReplicator>,
    registration: Registration,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A clock that stands still: nothing lapses because a thread of a busy machine comes late.
#[derive(Debug)]
pub struct Noon;

impl Clock for Noon {
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl Stage {
    pub fn new() -> Stage {
        Stage::with_clock(Arc::new(OsClock))
    }

    /// A stage whose databases and connections go by this clock.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Stage {
        let replicator = Arc::new(TestReplicator {
            dir: tempfile::tempdir().unwrap(),
            fs: Arc::new(OsFs),
            next_file: AtomicU64::new(1),
            owners: Mutex::default(),
            databases: Mutex::default(),
            next_position: AtomicU64::new(1),
            captured: Mutex::default(),
            verdicts: Mutex::default(),
            refuse_write: Mutex::default(),
            acquire: Mutex::default(),
            barrier: Mutex::default(),
            barriers: AtomicU64::new(0),
            acquires: AtomicU64::new(0),
            geometry: Mutex::default(),
            spill: Mutex::new(SpillTo::nowhere()),
            clock: Mutex::new(clock.clone()),
            handler: Mutex::default(),
            origins: Mutex::default(),
        });
        let name = format!("stage-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let registration = Registration::new(&name, replicator.clone(), clock).unwrap();
        Stage { replicator, registration }
    }

    pub fn vfs(&self) -> &str {
        self.registration.name()
    }

    pub fn uri(&self, name: &str, parameters: &str) -> String {
        format!("file:{name}?vfs={}{parameters}", self.registration.name())
    }

    pub fn connect(&self, name: &str) -> Connection {
        self.connect_with(name, "")
    }

    pub fn connect_with(&self, name: &str, parameters: &str) -> Connection {
        self.try_connect(name, parameters).unwrap()
    }

    pub fn try_connect(&self, name: &str, parameters: &str) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(self.uri(name, parameters), flags)
    }

    /// A stage whose databases have this geometry.
    pub fn with_geometry(page_size: u32, auto_vacuum: AutoVacuum) -> Stage {
        let stage = Stage::new();
        let page_size = PageSize::new(page_size).unwrap();
        *stage.replicator.geometry.lock() = Geometry { page_size, auto_vacuum };
        stage
    }

    pub fn database(&self, name: &str) -> Arc<Database> {
        self.replicator.database(name)
    }

    /// Where the main file of `name` is.
    pub fn main_path(&self, name: &str) -> std::path::PathBuf {
        let owner = self.replicator.owner(name);
        self.replicator.dir.path().join(&shoaldb_vfs::files::names(owner.database, owner.generation)[0])
    }

    /// The bytes of the main file of `name`.
    pub fn main_file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.main_path(name)).unwrap()
    }

    /// How many transactions of `name` were acknowledged.
    pub fn commits(&self, name: &str) -> usize {
        self.replicator.captured.lock().iter().filter(|(db, _, _)| db == name).count()
    }

    /// The last acknowledged transaction.
    pub fn last_transaction(&self) -> Transaction {
        self.replicator.captured.lock().last().unwrap().2.clone()
    }

    /// The answer to the next commit that has none yet.
    pub fn answer_next(
        &self,
        verdict: impl FnOnce(&Arc<Database>, SessionId, &Transaction) -> Result<Position, Refusal> + Send + 'static,
    ) {
        self.replicator.verdicts.lock().push_back(Box::new(verdict));
    }

    pub fn refuse_next(&self, refusal: Refusal) {
        self.answer_next(move |_, _, _| Err(refusal));
    }

    /// Counts the writes on the WAL of `name` from now on.
    pub fn count_writes(&self, name: &str) -> Arc<AtomicU64> {
        let count = Arc::new(AtomicU64::new(0));
        let counter = count.clone();
        self.database(name).set_fault(Some(Arc::new(move |label| {
            counter.fetch_add(u64::from(label == "wal.write"), Ordering::Relaxed);
            false
        })));
        count
    }

    /// Another node's copy of `name`; see [`Twin`].
    pub fn twin(&self, name: &str) -> Twin {
        let stage = Stage::new();
        stage.replicator.copy_of(&self.replicator, name);
        let connection = stage.connect(name);
        Twin { stage, name: name.to_string(), applied: 0, connection }
    }

    /// Builds a second copy of `name` from the captured transactions alone, and compares: same position, checksum, size
    /// and pages, and `integrity_check` is happy with both. Then both indexes are recovered from their WALs, as SQLite
    /// does it, and compared again: the chains of frames are whole, and nothing that was refused comes back.
    pub fn compare(&self, name: &str) {
        let first = self.database(name);
        let copy_stage = Stage::new();
        let copy = copy_stage.replicator.copy_of(&self.replicator, name);
        let captured: Vec<_> =
            self.replicator.captured.lock().iter().filter(|(db, _, _)| db == name).cloned().collect();
        for (_, position, transaction) in &captured {
            copy.apply(transaction, *position).unwrap();
        }
        same_content(&first, &copy);
        for db in [&first, &copy] {
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            // Each comparison damages it once, at its end, and sees it built anew once.
            let (recoveries, damages) = (count(&db.counters.recoveries), count(&db.counters.damages));
            assert!(
                recoveries <= damages,
                "SQLite built a wal-index anew that was whole: {recoveries} times, {damages} damaged"
            );
        }
        for (stage, db) in [(self, &first), (&copy_stage, &copy)] {
            stage.check_integrity(name);
            db.damage_index();
            stage.check_integrity(name);
            assert!(db.counters.recoveries.load(Ordering::Relaxed) > 0, "a damaged index is built anew, and counted");
        }
        same_content(&first, &copy);
    }

    pub fn check_integrity(&self, name: &str) {
        let verdict: String = self.connect(name).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");
    }
}

/// Both databases are the same, byte for byte, and what their checksums say.
pub fn same_content(a: &Database, b: &Database) {
    let (one, two) = (a.status(), b.status());
    assert_eq!((one.pages, one.position, one.checksum), (two.pages, two.position, two.checksum));
    let mut checksum = PageHash::default();
    for number in 1..=one.pages.0 {
        let number = PageNo::new(number).unwrap();
        let (page, other) = (a.page(number).unwrap(), b.page(number).unwrap());
        assert!(page == other, "page {} of {} differs", number.get(), a.name());
        if number != a.geometry().page_size.lock_page() {
            checksum = checksum.toggle(PageHash::of(number, &page.unwrap()));
        }
    }
    assert_eq!(checksum, one.checksum, "the pages are not what the checksum says");
}

/// Another node: it makes transactions that the first one has to apply.
pub struct Twin {
    pub stage: Stage,
    name: String,
    applied: usize,
    connection: Connection,
}

impl Twin {
    /// Catches up with the transactions that `original` has captured.
    pub fn catch_up(&mut self, original: &Stage) {
        let captured = original.replicator.captured.lock();
        let mine = captured.iter().filter(|(db, _, _)| *db == self.name);
        for (_, position, transaction) in mine.clone().skip(self.applied) {
            self.stage.database(&self.name).apply(transaction, *position).unwrap();
        }
        self.applied = mine.count();
    }

    /// Runs `sql` as one transaction here, as if this node were the leader now, and records it as the next of `original`, which
    /// has to apply it.
    pub fn write(&mut self, original: &Stage, sql: &str) -> (Transaction, Position) {
        self.catch_up(original);
        let replicator = original.replicator.clone();
        self.stage.answer_next(move |db, session, transaction| {
            let position = replicator.next_position();
            replicator.record(db.name(), position, transaction);
            assert!(db.accept(session, position));
            Ok(position)
        });
        self.connection.execute_batch(&format!("BEGIN; {sql}; COMMIT")).unwrap();
        self.applied += 1;
        let captured = original.replicator.captured.lock();
        assert_eq!(captured.iter().filter(|(db, _, _)| *db == self.name).count(), self.applied, "nothing was written");
        let (_, position, transaction) = captured.last().unwrap();
        (transaction.clone(), *position)
    }

    /// [`Twin::write`], applied to `original`.
    pub fn write_and_apply(&mut self, original: &Stage, sql: &str) {
        let (transaction, position) = self.write(original, sql);
        original.database(&self.name).apply(&transaction, position).unwrap();
    }
}

/// The extended code of a failure.
pub fn code<T>(result: rusqlite::Result<T>) -> i32 {
    match result {
        Err(rusqlite::Error::SqliteFailure(error, _)) => error.extended_code,
        Err(other) => panic!("no SQLite failure: {other}"),
        Ok(_) => 0,
    }
}

/// One number from one row.
pub fn number(db: &Connection, sql: &str) -> i64 {
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Runs a statement to its end, whatever rows it has.
pub fn run(db: &Connection, sql: &str) {
    let mut statement = db.prepare(sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    while rows.next().unwrap().is_some() {}
}

/// Fills `t(id INTEGER PRIMARY KEY, v)` so that pages are spilled to the WAL before the transaction ends, some of them
/// again and again.
pub fn spill(db: &Connection, rows: u32) {
    db.execute_batch("PRAGMA cache_size = 5; PRAGMA cache_spill = 5").unwrap();
    let mut insert = db.prepare("INSERT INTO t(v) VALUES (randomblob(300))").unwrap();
    for row in 0..rows {
        insert.execute([]).unwrap();
        if row % 50 == 0 {
            db.execute("UPDATE t SET v = randomblob(300) WHERE id % 17 = ?1 % 17", [row]).unwrap();
        }
    }
}

/// A small generator of choices; the same seed makes the same ones.
pub struct Choices(pub u64);

impl Choices {
    pub fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// The files of a database that ends just before the lock page, made by hand and sparse, at position 2.
pub fn files_up_to_the_lock_page(dir: &std::path::Path, page_size: PageSize) -> DatabaseFiles {
    let geometry = Geometry { page_size, auto_vacuum: AutoVacuum::None };
    let size = page_size.lock_page().get() - 2;
    let owner = Owner { database: 77, generation: 1, page_size };
    let mut files = DatabaseFiles::create(Arc::new(OsFs), dir, owner, geometry, Position(1)).unwrap();
    let mut first = geometry.first_page();
    first[28..32].copy_from_slice(&size.to_be_bytes());
    let zeros = vec![0; page_size.len()];
    let mut hashes = vec![PageHash::of(PageNo::FIRST, &first)];
    hashes.extend((2..=size).map(|n| PageHash::of(PageNo::new(n).unwrap(), &zeros)));
    files.map().write_hashes(PageNo::FIRST, &hashes, "test").unwrap();
    let checksum = hashes.iter().copied().fold(PageHash::default(), PageHash::toggle);
    let to = Checkpointed { position: Position(2), size: PageCount(size), checksum };
    let plan = Plan { from: Position(1), to, pages: vec![(PageNo::FIRST, hashes[0])] };
    files
        .checkpoint(&plan, &mut |_, out| {
            out.extend_from_slice(&first);
            Ok(())
        })
        .unwrap();
    files
}
