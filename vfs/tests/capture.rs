//! Every way in which SQLite writes a transaction into its WAL is captured: once, whole, and nothing else.

mod support;

use std::sync::atomic::Ordering;

use rusqlite::backup::Backup;
use rusqlite::{Connection, MAIN_DB, OpenFlags, ffi};
use shoaldb_vfs::genesis::AutoVacuum;
use shoaldb_vfs::page::PageCount;
use support::{Stage, code, number, run, spill};

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

fn frames(stage: &Stage) -> usize {
    stage.database("app").status().wal_frames as usize
}

fn pages(stage: &Stage) -> u32 {
    stage.database("app").status().pages.0
}

#[test]
fn each_transaction_is_captured_once_whatever_is_synced_and_padded() {
    for synchronous in ["OFF", "NORMAL", "FULL", "EXTRA"] {
        for (psow, page_size) in [(0, 512), (0, 4096), (1, 512), (1, 4096)] {
            let what = format!("synchronous {synchronous}, psow {psow}, page size {page_size}");
            let stage = Stage::with_geometry(page_size, AutoVacuum::None);
            let db = stage.connect_with("app", &format!("&psow={psow}"));
            db.execute_batch(&format!("PRAGMA synchronous = {synchronous}; {TABLE}")).unwrap();
            for _ in 0..24 {
                db.execute("INSERT INTO t(v) VALUES (randomblob(100))", []).unwrap();
            }
            assert_eq!(stage.commits("app"), 25, "{what}");
            // Frames are padded to the end of a 4096-byte sector. One that reaches beyond it is written in two pieces:
            // of frames with 4096 bytes of page that is the only one, of small ones many are written whole, with the
            // mark of a commit on each.
            let shipped: usize = stage.replicator.captured.lock().iter().map(|(_, _, t)| t.pages.len()).sum();
            let padding = frames(&stage) - shipped;
            match (psow, page_size, synchronous) {
                (1, _, _) | (_, _, "OFF" | "NORMAL") => assert_eq!(padding, 0, "{what}"),
                (_, 512, _) => assert!(padding > 2 * 25, "{padding}, {what}"),
                (_, _, _) => assert!(padding > 0, "{what}"),
            }
            stage.compare("app");
        }
    }
}

#[test]
fn spilled_and_rewritten_pages_are_captured_in_their_last_version() {
    for psow in [0, 1] {
        let stage = Stage::new();
        let db = stage.connect_with("app", &format!("&psow={psow}"));
        db.execute_batch(TABLE).unwrap();
        let before = frames(&stage);
        let writes = stage.count_writes("app");
        db.execute_batch("BEGIN").unwrap();
        spill(&db, 1000);
        // The last page is spilled too, and changed once more: the page of the commit frame is always a new frame.
        db.execute("UPDATE t SET v = randomblob(300) WHERE id < 900", []).unwrap();
        db.execute("UPDATE t SET v = randomblob(300) WHERE id = 1000", []).unwrap();
        assert!(writes.load(Ordering::Relaxed) > 100, "nothing was spilled");
        db.execute_batch("COMMIT").unwrap();
        let written = frames(&stage) - before;
        assert!(writes.load(Ordering::Relaxed) as usize > 3 * written, "nothing was rewritten in place");
        assert!(written > stage.last_transaction().pages.len(), "no page is there twice");
        assert_eq!(stage.commits("app"), 2);
        assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 1000);
        stage.compare("app");
    }
}

#[test]
fn savepoints_that_were_rolled_back_leave_nothing_in_the_transaction() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    db.execute_batch("BEGIN").unwrap();
    spill(&db, 100);
    db.execute_batch("SAVEPOINT a").unwrap();
    spill(&db, 400);
    db.execute_batch("SAVEPOINT b").unwrap();
    spill(&db, 400);
    db.execute_batch("ROLLBACK TO b; RELEASE b; INSERT INTO t(v) VALUES (1); ROLLBACK TO a").unwrap();
    spill(&db, 50);
    db.execute_batch("RELEASE a; COMMIT").unwrap();
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 150);
    assert_eq!(stage.commits("app"), 2);
    stage.compare("app");
}

#[test]
fn a_spilled_transaction_that_is_rolled_back_leaves_nothing() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    for _ in 0..3 {
        db.execute_batch("BEGIN").unwrap();
        spill(&db, 500);
        db.execute_batch("ROLLBACK").unwrap();
    }
    db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    assert_eq!(stage.commits("app"), 2);
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 1);
    stage.compare("app");
}

#[test]
fn spilled_pages_beyond_the_committed_size_are_left_out() {
    let stage = Stage::with_geometry(4096, AutoVacuum::Full);
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    let before = frames(&stage);
    db.execute_batch("BEGIN").unwrap();
    spill(&db, 2000);
    db.execute_batch("DELETE FROM t WHERE id > 20; COMMIT").unwrap();
    let transaction = stage.last_transaction();
    assert!(transaction.size_after < PageCount(20), "nothing was given back");
    assert!(frames(&stage) - before > transaction.pages.len() + 50, "no page beyond the end was ever written");
    stage.compare("app");
    // The database grows over these pages again.
    db.execute_batch("BEGIN").unwrap();
    spill(&db, 2000);
    db.execute_batch("COMMIT").unwrap();
    stage.compare("app");
}

#[test]
fn vacuum_is_one_transaction_and_turns_auto_vacuum_on_and_off() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    spill(&db, 500);
    db.execute_batch("DELETE FROM t WHERE id % 2").unwrap();
    let (commits, size) = (stage.commits("app"), pages(&stage));
    db.execute_batch("PRAGMA auto_vacuum = 2; VACUUM").unwrap();
    assert_eq!(stage.commits("app"), commits + 1);
    assert!(pages(&stage) < size);
    assert_eq!(stage.last_transaction().pages.len(), pages(&stage) as usize, "the whole database");
    assert_eq!(number(&db, "PRAGMA auto_vacuum"), 2);
    stage.compare("app");
    db.execute_batch("DELETE FROM t").unwrap();
    let size = pages(&stage);
    run(&db, "PRAGMA incremental_vacuum(3)");
    assert_eq!(pages(&stage), size - 3);
    stage.compare("app");
    spill(&db, 200);
    let commits = stage.commits("app");
    db.execute_batch("PRAGMA auto_vacuum = 0; VACUUM").unwrap();
    assert_eq!(stage.commits("app"), commits + 1);
    assert_eq!(number(&db, "PRAGMA auto_vacuum"), 0);
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 200);
    // Without the pages that say where each page is pointed to.
    db.execute("DELETE FROM t", []).unwrap();
    assert!(number(&db, "PRAGMA freelist_count") > 0);
    run(&db, "PRAGMA incremental_vacuum");
    assert!(number(&db, "PRAGMA freelist_count") > 0, "nothing gives pages back any more");
    stage.compare("app");
}

#[test]
fn auto_vacuum_gives_pages_back_in_the_same_transaction() {
    for (mode, auto_vacuum) in [(1, AutoVacuum::Full), (2, AutoVacuum::Incremental)] {
        let stage = Stage::with_geometry(1024, auto_vacuum);
        let db = stage.connect("app");
        db.execute_batch(TABLE).unwrap();
        assert_eq!(number(&db, "PRAGMA auto_vacuum"), mode);
        for round in 0..5 {
            db.execute_batch("BEGIN").unwrap();
            spill(&db, 200);
            db.execute_batch("COMMIT").unwrap();
            let size = pages(&stage);
            db.execute("DELETE FROM t WHERE id % 5 <> ?1", [round]).unwrap();
            if mode == 2 {
                run(&db, "PRAGMA incremental_vacuum");
            }
            assert!(pages(&stage) < size);
        }
        stage.compare("app");
    }
}

#[test]
fn schema_changes_are_ordinary_transactions() {
    let stage = Stage::new();
    let db = stage.connect("app");
    let other = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    spill(&db, 100);
    for sql in [
        "ALTER TABLE t ADD COLUMN extra TEXT DEFAULT 'x'",
        "UPDATE t SET extra = id",
        "ALTER TABLE t RENAME COLUMN extra TO more",
        "CREATE INDEX tm ON t(more)",
        "DROP INDEX tm",
        "ALTER TABLE t DROP COLUMN v",
        "ALTER TABLE t RENAME TO u",
        "CREATE VIEW w AS SELECT more FROM u",
        "CREATE TRIGGER g AFTER INSERT ON u BEGIN UPDATE u SET more = 'g' WHERE id = new.id; END",
        "INSERT INTO u DEFAULT VALUES",
        "ANALYZE",
        "REINDEX",
    ] {
        let before = stage.commits("app");
        db.execute_batch(sql).unwrap();
        // REINDEX without an index changes nothing.
        assert_eq!(stage.commits("app") - before, usize::from(sql != "REINDEX"), "{sql}");
    }
    assert_eq!(number(&other, "SELECT count(*) FROM w WHERE more = 'g'"), 1);
    stage.compare("app");
}

#[test]
fn every_page_size_works() {
    for shift in 9..=16 {
        let stage = Stage::with_geometry(1 << shift, AutoVacuum::None);
        let db = stage.connect("app");
        assert_eq!(number(&db, "PRAGMA page_size"), 1 << shift);
        db.execute_batch(TABLE).unwrap();
        db.execute_batch("BEGIN").unwrap();
        spill(&db, 500);
        db.execute_batch("COMMIT; DELETE FROM t WHERE id % 3 = 0; PRAGMA page_size = 2048; VACUUM").unwrap();
        assert_eq!(number(&db, "PRAGMA page_size"), 1 << shift, "fixed when the database was created");
        stage.compare("app");
    }
}

#[test]
fn a_wal_of_many_index_regions_is_captured_and_applied() {
    let stage = Stage::with_geometry(512, AutoVacuum::None);
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    for _ in 0..8 {
        db.execute_batch("BEGIN").unwrap();
        spill(&db, 800);
        db.execute_batch("COMMIT").unwrap();
    }
    assert!(frames(&stage) > 4062 + 4096, "two regions are not enough");
    stage.compare("app");
}

#[test]
fn the_encoding_is_chosen_by_the_first_writer() {
    for encoding in ["UTF-8", "UTF-16le", "UTF-16be"] {
        let stage = Stage::new();
        let db = stage.connect("app");
        db.execute_batch(&format!("PRAGMA encoding = '{encoding}'; {TABLE}; INSERT INTO t(v) VALUES ('grün')"))
            .unwrap();
        let found: String = stage.connect("app").query_row("PRAGMA encoding", [], |row| row.get(0)).unwrap();
        assert_eq!(found, encoding);
        assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t WHERE v = 'grün'"), 1);
        stage.compare("app");
    }
}

#[test]
fn full_text_search_and_r_trees_are_tables_like_others() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch("CREATE VIRTUAL TABLE f USING fts5(body); CREATE VIRTUAL TABLE r USING rtree(id, x0, x1)")
        .unwrap();
    for i in 0..300 {
        db.execute("INSERT INTO f VALUES (?1)", [format!("word{} shoal fish {}", i % 7, "filler ".repeat(i % 50))])
            .unwrap();
        db.execute("INSERT INTO r VALUES (?1, ?1, ?1 + 3)", [i as i64]).unwrap();
    }
    db.execute_batch("INSERT INTO f(f) VALUES ('optimize'); DELETE FROM r WHERE id % 3 = 0").unwrap();
    let other = stage.connect("app");
    assert_eq!(number(&other, "SELECT count(*) FROM f WHERE f MATCH 'word3'"), 43);
    assert_eq!(number(&other, "SELECT count(*) FROM r WHERE x0 < 100"), 66);
    stage.compare("app");
}

#[test]
fn blobs_are_written_in_place_and_may_be_large() {
    use std::io::{Read, Seek, SeekFrom, Write};
    const LARGE: usize = 20_000_000;
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (zeroblob({LARGE})), (zeroblob(9000))")).unwrap();
    let before = stage.commits("app");
    for (row, size) in [(1, LARGE), (2, 9000)] {
        let mut blob = db.blob_open(MAIN_DB, "t", "v", row, false).unwrap();
        blob.seek(SeekFrom::Start(size as u64 / 2)).unwrap();
        blob.write_all(b"shoal").unwrap();
        blob.close().unwrap();
    }
    assert_eq!(stage.commits("app"), before + 2);
    let other = stage.connect("app");
    let mut blob = other.blob_open(MAIN_DB, "t", "v", 1, true).unwrap();
    let mut bytes = vec![];
    blob.read_to_end(&mut bytes).unwrap();
    drop(blob);
    assert_eq!(bytes.len(), LARGE);
    assert_eq!(&bytes[LARGE / 2..LARGE / 2 + 5], b"shoal");
    db.execute("UPDATE t SET v = randomblob(?1)", [LARGE as i64]).unwrap();
    stage.compare("app");
}

fn ordinary(page_size: u32) -> Connection {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(&format!("PRAGMA page_size = {page_size}; {TABLE}")).unwrap();
    spill(&db, 700);
    db
}

#[test]
fn a_backup_comes_in_as_one_transaction() {
    let stage = Stage::new();
    let mut db = stage.connect("app");
    db.execute_batch("CREATE TABLE gone(x); INSERT INTO gone VALUES (1)").unwrap();
    let before = stage.commits("app");
    let source = ordinary(4096);
    let backup = Backup::new(&source, &mut db).unwrap();
    backup.run_to_completion(17, std::time::Duration::ZERO, None).unwrap();
    drop(backup);
    assert_eq!(stage.commits("app"), before + 1);
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 700);
    stage.compare("app");

    let source = ordinary(1024);
    let backup = Backup::new(&source, &mut db).unwrap();
    assert_eq!(code(backup.run_to_completion(17, std::time::Duration::ZERO, None)), ffi::SQLITE_READONLY);
    drop(backup);
    assert_eq!(stage.commits("app"), before + 1);
    stage.compare("app");
}

#[test]
fn a_backup_goes_out_while_writes_go_on() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    spill(&db, 700);
    let mut copy = Connection::open_in_memory().unwrap();
    let backup = Backup::new(&db, &mut copy).unwrap();
    backup.step(5).unwrap();
    db.execute("UPDATE t SET v = 'new' WHERE id = 1", []).unwrap();
    stage.connect("app").execute("UPDATE t SET v = 'new' WHERE id = 2", []).unwrap();
    backup.run_to_completion(50, std::time::Duration::ZERO, None).unwrap();
    drop(backup);
    assert_eq!(number(&copy, "SELECT count(*) FROM t WHERE v = 'new'"), 2);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    db.execute("VACUUM INTO ?1", [format!("file:{}?vfs=unix", path.display())]).unwrap();
    assert_eq!(number(&Connection::open(path).unwrap(), "SELECT count(*) FROM t"), 700);
    stage.compare("app");
}

#[test]
fn temporary_tables_and_sorters_are_none_of_our_business() {
    for store in ["FILE", "MEMORY"] {
        let stage = Stage::new();
        let db = stage.connect("app");
        db.execute_batch(&format!("PRAGMA temp_store = {store}; {TABLE}")).unwrap();
        spill(&db, 3000);
        let before = stage.commits("app");
        db.execute_batch(
            "PRAGMA temp.cache_size = 5; CREATE TEMP TABLE s AS SELECT * FROM t ORDER BY v;
             CREATE INDEX temp.sv ON s(v); UPDATE s SET v = v || 'x'; BEGIN; DELETE FROM s; ROLLBACK",
        )
        .unwrap();
        assert_eq!(number(&db, "SELECT count(*) FROM (SELECT DISTINCT v FROM s ORDER BY v DESC)"), 3000);
        assert_eq!(stage.commits("app"), before);
        db.execute_batch("INSERT INTO t(v) SELECT v FROM s WHERE id < 10").unwrap();
        assert_eq!(stage.commits("app"), before + 1);
        stage.compare("app");
    }
    // A connection to nothing but temporary files.
    let stage = Stage::new();
    let db = Connection::open_with_flags(format!("file:?vfs={}", stage.vfs()), OpenFlags::default()).unwrap();
    db.execute_batch(TABLE).unwrap();
    spill(&db, 1000);
    let memory = Connection::open_with_flags(stage.uri(":memory:", ""), OpenFlags::default()).unwrap();
    memory.execute_batch(TABLE).unwrap();
    assert_eq!(stage.replicator.captured.lock().len(), 0);
}

#[test]
fn a_connection_may_be_read_only() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let by_flag = Connection::open_with_flags(stage.uri("app", ""), flags).unwrap();
    for reader in [by_flag, stage.connect_with("app", "&mode=ro")] {
        let rows = number(&reader, "SELECT count(*) FROM t");
        db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
        assert_eq!(number(&reader, "SELECT count(*) FROM t"), rows + 1);
        assert_eq!(code(reader.execute("INSERT INTO t(v) VALUES (1)", [])), ffi::SQLITE_READONLY);
    }
    stage.compare("app");
}

#[test]
fn connections_may_share_a_cache() {
    let stage = Stage::new();
    let (a, b) = (stage.connect_with("app", "&cache=shared"), stage.connect_with("app", "&cache=shared"));
    a.execute_batch(TABLE).unwrap();
    for _ in 0..20 {
        a.execute("INSERT INTO t(v) VALUES (randomblob(500))", []).unwrap();
        b.execute("INSERT INTO t(v) VALUES (randomblob(500))", []).unwrap();
    }
    a.execute_batch("BEGIN; DELETE FROM t WHERE id < 10").unwrap();
    assert_eq!(code(b.execute("INSERT INTO t(v) VALUES (1)", [])), ffi::SQLITE_LOCKED_SHAREDCACHE);
    a.execute_batch("ROLLBACK").unwrap();
    assert_eq!(stage.commits("app"), 41);
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 40);
    stage.compare("app");
}

#[test]
fn transactions_that_change_nothing_are_none() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    let before = stage.commits("app");
    for sql in [
        "BEGIN; COMMIT",
        "BEGIN IMMEDIATE; COMMIT",
        "BEGIN EXCLUSIVE; COMMIT",
        "BEGIN; SELECT * FROM t; COMMIT",
        "BEGIN IMMEDIATE; SELECT * FROM t; ROLLBACK",
        "SAVEPOINT a; RELEASE a",
        "DELETE FROM t WHERE id = 77",
        "BEGIN; INSERT INTO t(v) VALUES (1); ROLLBACK",
        "PRAGMA user_version",
        "CREATE TABLE IF NOT EXISTS t(x)",
    ] {
        db.execute_batch(sql).unwrap();
        assert_eq!(stage.commits("app"), before, "{sql}");
    }
    stage.compare("app");
}

/// A value that is deleted again leaves pages that are free from the moment they come into being. A rollback journal
/// would leave them unwritten; in WAL mode SQLite writes what they happened to contain.
fn grow_by_free_pages(db: &Connection, pages: u32) {
    db.execute_batch("BEGIN").unwrap();
    db.execute("INSERT INTO t(id, v) VALUES (-1, randomblob(?1))", [pages * 4092]).unwrap();
    db.execute_batch("DELETE FROM t WHERE id = -1; COMMIT").unwrap();
}

#[test]
fn pages_that_were_never_in_use_are_the_same_everywhere() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    let old = pages(&stage);
    grow_by_free_pages(&db, 200);
    assert!(pages(&stage) > old + 190);
    stage.compare("app");
    spill(&db, 500);
    stage.compare("app");
}

/// A page was in use, the database shrank, and grew over the page again without using it. Frames of its former life are
/// still in the WAL.
#[test]
fn pages_grown_over_again_do_not_show_their_former_life() {
    let stage = Stage::with_geometry(4096, AutoVacuum::Incremental);
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    db.execute("INSERT INTO t(id, v) VALUES (1, randomblob(?1))", [100 * 4092]).unwrap();
    let large = pages(&stage);
    db.execute_batch("DELETE FROM t").unwrap();
    run(&db, "PRAGMA incremental_vacuum");
    assert!(pages(&stage) < large - 90);
    stage.compare("app");
    grow_by_free_pages(&db, 100);
    assert!(pages(&stage) >= large - 2);
    stage.compare("app");
    spill(&db, 500);
    stage.compare("app");
}
