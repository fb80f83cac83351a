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
use shoaldb_vfs::env::os::{OsClock, OsFs, OsRng};
use shoaldb_vfs::env::{Fs, Open};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::genesis::Geometry;
use shoaldb_vfs::page::PageNo;
use shoaldb_vfs::replicator::{Interrupted, Replicator};
use shoaldb_vfs::transaction::{Position, Transaction};

/// What the next commit is answered with, instead of yes.
pub type Verdict = Box<dyn FnOnce(&Arc<Database>, SessionId, &Transaction) -> Result<Position, Refusal> + Send>;

/// The replicator of one test.
pub struct TestReplicator {
    dir: tempfile::TempDir,
    databases: Mutex<HashMap<String, Arc<Database>>>,
    next_position: AtomicU64,
    /// Every transaction that was acknowledged: database name, position, pages.
    pub captured: Mutex<Vec<(String, Position, Transaction)>>,
    /// Answers for the next commits; when empty, yes.
    pub verdicts: Mutex<VecDeque<Verdict>>,
    /// What `acquire_write` answers; `Ok` if `None`.
    pub refuse_write: Mutex<Option<Refusal>>,
    /// What a read barrier does.
    pub barrier: Mutex<Option<Box<dyn Fn(Interrupted<'_>) -> Result<(), Refusal> + Send>>>,
    pub barriers: AtomicU64,
    pub acquires: AtomicU64,
    /// Geometry of databases that `open` creates.
    pub geometry: Mutex<Geometry>,
}

impl TestReplicator {
    pub fn database(&self, name: &str) -> Arc<Database> {
        self.database_with(name, *self.geometry.lock())
    }

    pub fn database_with(&self, name: &str, geometry: Geometry) -> Arc<Database> {
        let mut databases = self.databases.lock();
        databases
            .entry(name.to_string())
            .or_insert_with(|| {
                let db = Database::new(name, geometry, Arc::new(OsClock), &OsRng).unwrap();
                let fs = OsFs;
                let file = fs.open(&self.dir.path().join(format!("{name}.db")), Open::CreateNew, "test").unwrap();
                file.write_at(&geometry.first_page(), 0, "test").unwrap();
                let position = Position(self.next_position.fetch_add(1, Ordering::Relaxed));
                db.bind(position, file).unwrap();
                db
            })
            .clone()
    }

    pub fn next_position(&self) -> Position {
        Position(self.next_position.fetch_add(1, Ordering::Relaxed))
    }

    /// Says yes as a node's applier would: accepts for the waiting session.
    pub fn acknowledge(&self, db: &Arc<Database>, session: SessionId, transaction: &Transaction) -> Position {
        let position = self.next_position();
        self.captured.lock().push((db.name().to_string(), position, transaction.clone()));
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

    fn acquire_write(&self, _: &Arc<Database>, _: bool, _: Interrupted<'_>) -> Result<(), Refusal> {
        self.acquires.fetch_add(1, Ordering::Relaxed);
        self.refuse_write.lock().map_or(Ok(()), Err)
    }

    fn wait_writable(&self, _: &Arc<Database>, limit: Duration) {
        std::thread::sleep(limit);
    }

    fn commit(&self, db: &Arc<Database>, session: SessionId, transaction: Transaction) -> Result<Position, Refusal> {
        transaction.check().unwrap();
        let verdict = self.verdicts.lock().pop_front();
        match verdict {
            Some(verdict) => verdict(db, session, &transaction),
            None => Ok(self.acknowledge(db, session, &transaction)),
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

impl Stage {
    pub fn new() -> Stage {
        let replicator = Arc::new(TestReplicator {
            dir: tempfile::tempdir().unwrap(),
            databases: Mutex::default(),
            next_position: AtomicU64::new(1),
            captured: Mutex::default(),
            verdicts: Mutex::default(),
            refuse_write: Mutex::default(),
            barrier: Mutex::default(),
            barriers: AtomicU64::new(0),
            acquires: AtomicU64::new(0),
            geometry: Mutex::default(),
        });
        let name = format!("stage-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let registration = Registration::new(&name, replicator.clone(), Arc::new(OsClock)).unwrap();
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

    /// Builds a second copy of `name` from the captured transactions alone, and compares: same position, checksum, size
    /// and pages, and `integrity_check` is happy with both.
    pub fn compare(&self, name: &str) {
        let first = self.replicator.database(name);
        let copy_stage = Stage::new();
        let copy = copy_stage.replicator.database_with(name, first.geometry());
        let captured: Vec<_> =
            self.replicator.captured.lock().iter().filter(|(db, _, _)| db == name).cloned().collect();
        // The copy's genesis stands where the first transaction was built.
        if let Some((_, _, transaction)) = captured.first() {
            let file = OsFs.open(&copy_stage.replicator.dir.path().join(format!("{name}.db")), Open::Read, "test");
            copy.bind(transaction.base, file.unwrap()).unwrap();
        }
        for (_, position, transaction) in &captured {
            copy.apply(transaction, *position).unwrap();
        }
        let (a, b) = (first.status(), copy.status());
        assert_eq!(a.pages, b.pages);
        if !captured.is_empty() {
            assert_eq!((a.position, a.checksum), (b.position, b.checksum));
        }
        for number in 1..=a.pages.0 {
            let page = PageNo::new(number).unwrap();
            assert!(first.page(page).unwrap() == copy.page(page).unwrap(), "page {number} of {name} differs");
        }
        for stage in [self, &copy_stage] {
            let db = stage.connect(name);
            let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(verdict, "ok");
        }
    }
}
