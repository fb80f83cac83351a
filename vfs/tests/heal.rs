//! Consensus said yes, and then SQLite fails: the VFS publishes the transaction itself.

mod support;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rusqlite::{Connection, ffi};
use shoaldb_vfs::env::os::OsFs;
use shoaldb_vfs::spill::{SpillTo, WalMemory};
use support::{Stage, code, number, spill};

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

fn heals(stage: &Stage) -> u64 {
    stage.database("app").counters.heals.load(Ordering::Relaxed)
}

/// The next commit is accepted, and from then on each labelled call fails until the returned flag is taken down.
fn fail_after_yes(stage: &Stage, label: &'static str) -> Arc<AtomicBool> {
    let armed = Arc::new(AtomicBool::new(false));
    let hook = armed.clone();
    stage.database("app").set_fault(Some(Arc::new(move |at| at == label && hook.load(Ordering::Relaxed))));
    let (replicator, arm) = (stage.replicator.clone(), armed.clone());
    stage.answer_next(move |db, session, transaction| {
        let position = replicator.acknowledge(db, session, transaction);
        arm.store(true, Ordering::Relaxed);
        Ok(position)
    });
    armed
}

fn transaction(stage: &Stage, db: &Connection, spilled: bool) {
    db.execute_batch("PRAGMA synchronous = FULL; BEGIN; INSERT INTO t(v) VALUES ('first')").unwrap();
    if spilled {
        spill(db, 400);
    }
    assert!(stage.commits("app") > 0);
}

/// Shows INV-V4.
#[test]
fn a_commit_that_sqlite_fails_to_finish_is_published_all_the_same() {
    for (label, spilled, psow) in [
        ("wal.sync", false, 1),
        ("wal.sync", false, 0),
        ("wal.sync", true, 1),
        ("wal.sync", true, 0),
        // Padding.
        ("wal.write", false, 0),
        // Checksums of rewritten frames.
        ("wal.write", true, 1),
        ("wal.write", true, 0),
    ] {
        for first in [false, true] {
            let what = format!("{label}, spilled {spilled}, psow {psow}, first {first}");
            let stage = Stage::new();
            let db = stage.connect_with("app", &format!("&psow={psow}"));
            let reader = stage.connect("app");
            let armed = if first && !spilled {
                // The very first transaction of a WAL: its header was written by the one that failed.
                db.execute_batch(&format!(
                    "PRAGMA synchronous = FULL; BEGIN; {TABLE}; INSERT INTO t(v) VALUES ('first')"
                ))
                .unwrap();
                fail_after_yes(&stage, label)
            } else {
                db.execute_batch(TABLE).unwrap();
                transaction(&stage, &db, spilled);
                fail_after_yes(&stage, label)
            };
            // A padding write exists only if the commit does not end with a sector by chance.
            assert_eq!(code(db.execute_batch("COMMIT")) & 0xff, ffi::SQLITE_IOERR, "{what}");
            armed.store(false, Ordering::Relaxed);
            assert_eq!(heals(&stage), 1, "{what}");
            assert!(db.is_autocommit(), "{what}");
            let rows = if spilled { 401 } else { 1 };
            for connection in [&db, &reader, &stage.connect("app")] {
                assert_eq!(number(connection, "SELECT count(*) FROM t"), rows, "{what}");
            }
            stage.compare("app");
            db.execute("INSERT INTO t(v) VALUES (2)", []).unwrap();
            reader.execute("INSERT INTO t(v) VALUES (3)", []).unwrap();
            assert_eq!(number(&db, "SELECT count(*) FROM t"), rows + 2, "{what}");
            assert_eq!(heals(&stage), 1, "{what}");
            stage.compare("app");
        }
    }
}

/// Pages of the WAL outside of memory that are not what was written are what SQLite gets to see when it makes the checksums
/// of rewritten frames anew, behind the commit frame. Shows INV-V4.
#[test]
fn rot_that_is_found_behind_the_commit_frame_does_not_say_that_nothing_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().canonicalize().unwrap();
    let stage = Stage::new();
    let spill_to = SpillTo { memory: WalMemory::new(0), outside: Some((Arc::new(OsFs), outside.clone())) };
    *stage.replicator.spill.lock() = spill_to;
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    transaction(&stage, &db, true);
    let rot = Arc::new(Mutex::new(Vec::new()));
    let (replicator, rots) = (stage.replicator.clone(), rot.clone());
    stage.answer_next(move |db, session, transaction| {
        let position = replicator.acknowledge(db, session, transaction);
        let pages = nameless_files(&outside).into_iter().map(|file| (file.metadata().unwrap().len(), file));
        rots.lock().extend(pages);
        rots.lock().iter().for_each(|(len, file)| flip_every_page(file, *len));
        Ok(position)
    });
    let error = db.execute_batch("COMMIT").unwrap_err();
    assert_eq!(error.sqlite_error().map(|error| error.extended_code), Some(ffi::SQLITE_IOERR), "{error}");
    assert!(!rot.lock().is_empty(), "pages were outside of memory");
    rot.lock().iter().for_each(|(len, file)| flip_every_page(file, *len));
    assert_eq!(heals(&stage), 1);
    assert!(db.is_autocommit());
    for connection in [&db, &stage.connect("app")] {
        assert_eq!(number(connection, "SELECT count(*) FROM t"), 401);
    }
    // No comparison with a recovered index: the chain of checksums is over what was found in the frames.
    stage.check_integrity("app");
}

/// Files below `dir` that this process has open and that have no name.
fn nameless_files(dir: &Path) -> Vec<File> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let target = std::fs::read_link(&path).ok()?;
        (target.starts_with(dir) && target.to_str()?.ends_with("(deleted)")).then_some((target, path))
    });
    // Each once, and listed before any is opened: a list that is read on shows what was opened meanwhile, too.
    let each: BTreeMap<PathBuf, PathBuf> = all.collect();
    each.into_values().map(|path| OpenOptions::new().read(true).write(true).open(path).unwrap()).collect()
}

/// Of what the file had when it was so long.
fn flip_every_page(file: &File, len: u64) {
    for at in (100..len).step_by(4096) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
}

#[test]
fn a_statement_that_is_open_during_a_heal_keeps_its_snapshot() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; PRAGMA synchronous = FULL; PRAGMA cache_size = 5")).unwrap();
    spill(&db, 300);
    let reader = stage.connect("app");
    reader.execute_batch("PRAGMA cache_size = 5").unwrap();
    let mut select = reader.prepare("SELECT length(v) FROM t").unwrap();
    let mut rows = select.query([]).unwrap();
    rows.next().unwrap().unwrap();
    let armed = fail_after_yes(&stage, "wal.sync");
    assert_eq!(code(db.execute("UPDATE t SET v = 'short'", [])) & 0xff, ffi::SQLITE_IOERR);
    armed.store(false, Ordering::Relaxed);
    let mut seen = 1;
    while let Some(row) = rows.next().unwrap() {
        assert_eq!(row.get::<_, i64>(0).unwrap(), 300);
        seen += 1;
    }
    assert_eq!((seen, heals(&stage)), (300, 1));
    drop(rows);
    drop(select);
    assert_eq!(number(&reader, "SELECT count(*) FROM t WHERE v = 'short'"), 300);
    stage.compare("app");
}

/// Every write after the commit frame in turn, until a transaction comes through untouched.
/// Shows INV-V4.
#[test]
fn each_write_behind_the_commit_frame_may_fail() {
    for psow in [0, 1] {
        for nth in 0.. {
            let stage = Stage::new();
            let db = stage.connect_with("app", &format!("&psow={psow}"));
            db.execute_batch(TABLE).unwrap();
            transaction(&stage, &db, true);
            let left = Arc::new(AtomicU64::new(u64::MAX));
            let count = left.clone();
            stage.database("app").set_fault(Some(Arc::new(move |label| {
                label == "wal.write"
                    && count.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)) == Ok(1)
            })));
            let replicator = stage.replicator.clone();
            // Growing steps: a spilled transaction rewrites many headers.
            let target = nth * nth;
            stage.answer_next(move |db, session, transaction| {
                let position = replicator.acknowledge(db, session, transaction);
                left.store(target + 1, Ordering::Relaxed);
                Ok(position)
            });
            let result = code(db.execute_batch("COMMIT"));
            assert_eq!(heals(&stage), u64::from(result != 0), "write {target}, psow {psow}");
            assert_eq!(number(&db, "SELECT count(*) FROM t"), 401, "write {target}, psow {psow}");
            stage.database("app").set_fault(None);
            stage.compare("app");
            if result == 0 {
                assert!(nth > 1, "no write came behind the commit frame");
                break;
            }
        }
    }
}
