//! Consensus said yes, and then SQLite has no memory to finish: nothing is lost, and the VFS publishes the transaction.
//!
//! A process of its own, with one test, because SQLite takes its allocator before it does anything else and for all of
//! the process. Ours passes everything on to SQLite's own one; once a thread has armed it, it counts the allocations of
//! that thread and fails from the n-th on, or only that one. The test arms it in the moment in which the commit frame
//! is accepted, for each n, until a transaction comes through untouched.
#![allow(unsafe_code)]

mod support;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use rusqlite::{Connection, ffi};
use shoaldb_vfs::genesis::AutoVacuum;
use support::{Stage, code, number, spill};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Memory {
    /// There is enough.
    Plenty,
    /// So many allocations succeed; the next one fails, and with `for_good` all that follow.
    Ends { after: u32, for_good: bool },
}

thread_local! {
    static MEMORY: Cell<Memory> = const { Cell::new(Memory::Plenty) };
    static FAILED: Cell<u32> = const { Cell::new(0) };
}

type Allocate = unsafe extern "C" fn(c_int) -> *mut c_void;
type Reallocate = unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void;

/// What SQLite would have used.
static SQLITES_OWN: OnceLock<(Allocate, Reallocate)> = OnceLock::new();

/// Whether this allocation of this thread fails.
fn denied() -> bool {
    let Memory::Ends { after, for_good } = MEMORY.get() else { return false };
    if after > 0 {
        MEMORY.set(Memory::Ends { after: after - 1, for_good });
        return false;
    }
    if !for_good {
        MEMORY.set(Memory::Plenty);
    }
    FAILED.set(FAILED.get() + 1);
    true
}

unsafe extern "C" fn allocate(bytes: c_int) -> *mut c_void {
    match SQLITES_OWN.get() {
        // SAFETY: SQLite's own function, with the argument that SQLite gave.
        Some((own, _)) if !denied() => unsafe { own(bytes) },
        _ => std::ptr::null_mut(),
    }
}

unsafe extern "C" fn reallocate(old: *mut c_void, bytes: c_int) -> *mut c_void {
    match SQLITES_OWN.get() {
        // SAFETY: as above; `old` came from SQLite's own allocator, as everything does here.
        Some((_, own)) if !denied() => unsafe { own(old, bytes) },
        _ => std::ptr::null_mut(),
    }
}

/// Puts our allocator in front of SQLite's own, and takes away the reserve of each connection, which would serve small
/// requests without asking.
fn take_over_memory() {
    // SAFETY: called before anything else of SQLite in this process; the option's argument is a place for its methods.
    let own = unsafe {
        let mut own: ffi::sqlite3_mem_methods = std::mem::zeroed();
        assert_eq!(ffi::sqlite3_config(ffi::SQLITE_CONFIG_GETMALLOC, &raw mut own), ffi::SQLITE_OK);
        own
    };
    let ours = ffi::sqlite3_mem_methods { xMalloc: Some(allocate), xRealloc: Some(reallocate), ..own };
    assert!(SQLITES_OWN.set((own.xMalloc.unwrap(), own.xRealloc.unwrap())).is_ok());
    // SAFETY: as above; SQLite copies the methods.
    unsafe {
        assert_eq!(ffi::sqlite3_config(ffi::SQLITE_CONFIG_MALLOC, &raw const ours), ffi::SQLITE_OK);
        assert_eq!(ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOOKASIDE, 0 as c_int, 0 as c_int), ffi::SQLITE_OK);
    }
}

/// A transaction behind whose commit frame SQLite needs memory.
struct Shape {
    what: &'static str,
    page_size: u32,
    psow: u8,
    begin: fn(&Connection),
    rows: i64,
}

const SHAPES: [Shape; 3] = [
    Shape { what: "one row", page_size: 4096, psow: 1, begin: one_row, rows: 1 },
    // The checksums of rewritten frames are computed again, through a buffer.
    Shape { what: "spilled", page_size: 4096, psow: 0, begin: spilled, rows: 400 },
    // Frames enter the wal-index behind the commit frame; its second region is one more pointer to remember.
    Shape { what: "two regions", page_size: 512, psow: 1, begin: large, rows: 2500 },
];

fn one_row(db: &Connection) {
    db.execute_batch("BEGIN; INSERT INTO t(v) VALUES ('first')").unwrap();
}

fn spilled(db: &Connection) {
    db.execute_batch("BEGIN").unwrap();
    spill(db, 400);
}

fn large(db: &Connection) {
    db.execute_batch(
        "PRAGMA cache_size = 100000; PRAGMA cache_spill = OFF; BEGIN;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
         INSERT INTO t(v) SELECT randomblob(900) FROM n",
    )
    .unwrap();
}

#[test]
fn memory_that_ends_behind_the_commit_frame_loses_nothing() {
    take_over_memory();
    let mut healed = Vec::new();
    for shape in &SHAPES {
        for for_good in [false, true] {
            for after in 0.. {
                let what = format!("{}, allocation {after}, for good {for_good}", shape.what);
                let (result, failed, heals) = with_memory_ending(shape, Memory::Ends { after, for_good }, &what);
                if heals > 0 {
                    healed.push(shape.what);
                }
                if failed == 0 {
                    assert_eq!((result, heals), (0, 0), "{what}");
                    break;
                }
            }
        }
    }
    // Otherwise nothing was tested but statements that had succeeded already.
    for shape in &SHAPES[1..] {
        assert!(healed.contains(&shape.what), "{}: no allocation behind the commit frame, {healed:?}", shape.what);
    }
}

/// Returns the code of the COMMIT, how many allocations failed, and how often the VFS had to heal.
fn with_memory_ending(shape: &Shape, memory: Memory, what: &str) -> (i32, u32, u64) {
    let stage = Stage::with_geometry(shape.page_size, AutoVacuum::None);
    let db = stage.connect_with("app", &format!("&psow={}", shape.psow));
    let reader = stage.connect("app");
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); PRAGMA synchronous = FULL").unwrap();
    (shape.begin)(&db);
    let replicator = stage.replicator.clone();
    stage.answer_next(move |db, session, transaction| {
        let position = replicator.acknowledge(db, session, transaction);
        MEMORY.set(memory);
        Ok(position)
    });
    FAILED.set(0);
    let result = code(db.execute_batch("COMMIT"));
    MEMORY.set(Memory::Plenty);
    let failed = FAILED.get();
    let heals = stage.database("app").counters.heals.load(Ordering::Relaxed);

    assert!(result == 0 || [ffi::SQLITE_NOMEM, ffi::SQLITE_IOERR].contains(&(result & 0xff)), "{what}: code {result}");
    assert!(heals == 0 || result != 0, "{what}: SQLite said yes, and did not publish");
    assert!(db.is_autocommit(), "{what}");
    for connection in [&db, &reader, &stage.connect("app")] {
        assert_eq!(number(connection, "SELECT count(*) FROM t"), shape.rows, "{what}");
    }
    stage.compare("app");
    db.execute("INSERT INTO t(v) VALUES (2)", []).unwrap();
    reader.execute("INSERT INTO t(v) VALUES (3)", []).unwrap();
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), shape.rows + 2, "{what}");
    stage.compare("app");
    (result, failed, heals)
}
