//! A WAL that is larger than the memory for it: what is read back, and what a disk without room does to whom.

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::ffi;
use shoaldb_vfs::env::os::OsFs;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};
use shoaldb_vfs::error::{NO_ROOM, NOT_KEPT};
use shoaldb_vfs::genesis::{AutoVacuum, Geometry};
use shoaldb_vfs::page::PageSize;
use shoaldb_vfs::spill::{LABEL, SpillTo, WalMemory};
use support::{Stage, code, number, spill};

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

/// Databases with `limit` bytes of memory, and a simulated disk.
fn on_sim(limit: u64) -> (Stage, SimFs, Arc<WalMemory>) {
    let (stage, fs, memory) = (Stage::new(), SimFs::new(1), WalMemory::new(limit));
    *stage.replicator.spill.lock() =
        SpillTo { memory: memory.clone(), outside: Some((Arc::new(fs.clone()), PathBuf::from("/"))) };
    (stage, fs, memory)
}

#[test]
fn a_wal_larger_than_its_memory_reads_the_same() {
    for page_size in [512, 4096, 65536] {
        let dir = tempfile::tempdir().unwrap();
        let memory = WalMemory::new(20 * u64::from(page_size));
        let stage = Stage::with_geometry(page_size, AutoVacuum::None);
        *stage.replicator.spill.lock() =
            SpillTo { memory: memory.clone(), outside: Some((Arc::new(OsFs), dir.path().to_path_buf())) };
        let db = stage.connect("app");
        db.execute_batch(TABLE).unwrap();
        for _ in 0..3 {
            db.execute_batch("BEGIN").unwrap();
            spill(&db, 400);
            db.execute_batch("SAVEPOINT s; DELETE FROM t WHERE id % 3 = 0; ROLLBACK TO s; COMMIT").unwrap();
            db.execute_batch("BEGIN; DELETE FROM t WHERE id % 2 = 0; ROLLBACK").unwrap();
        }
        db.execute_batch("VACUUM").unwrap();
        let status = stage.database("app").status();
        assert!(status.wal_spilled > 0 && memory.used() <= memory.limit(), "{status:?} {memory:?}");
        assert_eq!(memory.failures(), 0);
        assert_eq!(number(&db, "SELECT count(*) FROM t"), 1200);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // The copy that is built from the transactions has memory without a limit.
        stage.compare("app");
    }
}

/// Each call for room in turn, once and for good.
#[test]
fn a_transaction_without_room_is_rolled_back_and_nothing_is_lost() {
    for (failure, expected) in [(Failure::ENOSPC, NO_ROOM), (Failure::EIO, NOT_KEPT)] {
        for lasts in [Lasts::Once, Lasts::ForGood] {
            for nth in [1, 2, 3, 10, 40, 100] {
                let (stage, fs, _) = on_sim(8 * 4096);
                let db = stage.connect("app");
                db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES ('kept')")).unwrap();
                let before = stage.commits("app");
                fs.fail_at(Aim::At(LABEL), nth, lasts, failure);
                db.execute_batch("PRAGMA cache_size = 5; PRAGMA cache_spill = 5; BEGIN").unwrap();
                let mut failed = 0;
                for _ in 0..600 {
                    failed = code(db.execute("INSERT INTO t(v) VALUES (randomblob(900))", []));
                    if failed != 0 {
                        break;
                    }
                }
                let what = format!("{failure:?} {lasts:?} {nth}");
                assert_eq!(failed, expected, "{what}");
                assert!(db.is_autocommit(), "{what}: SQLite rolls such a transaction back");
                assert_eq!(stage.commits("app"), before, "{what}: nothing was proposed");
                assert_eq!(number(&db, "SELECT count(*) FROM t"), 1, "{what}");
                fs.clear_faults();
                db.execute_batch("BEGIN").unwrap();
                spill(&db, 300);
                db.execute_batch("COMMIT").unwrap();
                assert_eq!(number(&db, "SELECT count(*) FROM t"), 301, "{what}");
                stage.compare("app");
            }
        }
    }
}

#[test]
fn the_commit_frame_itself_may_find_no_room() {
    let (stage, fs, _) = on_sim(8 * 4096);
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (zeroblob(40000))")).unwrap();
    let before = stage.commits("app");
    for left in 1.. {
        fs.clear_faults();
        fs.fail_at(Aim::At(LABEL), left, Lasts::Once, Failure::ENOSPC);
        let code = code(db.execute("UPDATE t SET v = zeroblob(40001) || id", []));
        if code == 0 {
            assert!(left > 5, "the update did not need room");
            break;
        }
        assert_eq!((code, stage.commits("app")), (NO_ROOM, before));
    }
    fs.clear_faults();
    stage.compare("app");
}

/// Frames that fill a sector come behind the commit frame: consensus has said yes, so a full disk must not matter.
#[test]
fn behind_the_commit_frame_a_full_disk_is_no_failure() {
    let (stage, fs, memory) = on_sim(0);
    // Small pages: several of them fill a sector.
    *stage.replicator.geometry.lock() =
        Geometry { page_size: PageSize::new(512).unwrap(), auto_vacuum: AutoVacuum::None };
    let db = stage.connect_with("app", "&psow=0");
    db.execute_batch(&format!("PRAGMA synchronous = FULL; {TABLE}")).unwrap();
    let (replicator, disk) = (stage.replicator.clone(), fs.clone());
    stage.answer_next(move |db, session, transaction| {
        let position = replicator.acknowledge(db, session, transaction);
        disk.fail_at(Aim::At(LABEL), 1, Lasts::ForGood, Failure::ENOSPC);
        Ok(position)
    });
    assert_eq!(code(db.execute("INSERT INTO t(v) VALUES (1)", [])), ffi::SQLITE_OK);
    assert!(memory.failures() > 0, "no frame came behind the commit frame");
    fs.clear_faults();
    stage.compare("app");
}

#[test]
fn an_applier_without_room_goes_on_in_memory_and_counts_it() {
    let (stage, fs, memory) = on_sim(8 * 4096);
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    let mut twin = stage.twin("app");
    let mut apply = |bytes: u32| {
        let (mut transaction, position) = twin.write(&stage, &format!("INSERT INTO t(v) VALUES (zeroblob({bytes}))"));
        // As they come from a log: nobody has counted them yet.
        transaction.pages.iter_mut().for_each(|page| page.image = page.image.to_vec().into());
        stage.database("app").apply(&transaction, position).unwrap();
    };
    apply(100_000);
    assert_eq!(memory.failures(), 0);
    assert!(stage.database("app").status().wal_spilled > 64_000);
    fs.fail_at(Aim::At(LABEL), 1, Lasts::ForGood, Failure::ENOSPC);
    apply(200_000);
    assert!(memory.failures() >= 48 && memory.used() > memory.limit());
    assert_eq!(number(&db, "SELECT sum(length(v)) FROM t"), 300_000);
    stage.compare("app");
}
