//! Checkpoints: the main file is the database at one position, whatever readers and writers do meanwhile.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use shoaldb_vfs::database::{ApplyError, Checkpoint, Database};
use shoaldb_vfs::env::os::{OsClock, OsFs, OsRng};
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};
use shoaldb_vfs::env::{Fs, Open};
use shoaldb_vfs::error::{DAMAGED, NOT_COMMITTED, Refusal};
use shoaldb_vfs::files::{self, DatabaseFiles};
use shoaldb_vfs::genesis::{AutoVacuum, Geometry};
use shoaldb_vfs::mapfile::Owner;
use shoaldb_vfs::page::{PageNo, PageSize};
use shoaldb_vfs::spill::SpillTo;
use shoaldb_vfs::transaction::Position;
use support::{Choices, Stage, code, files_up_to_the_lock_page, number, run, spill};

/// The main file is, byte for byte, the state of the position that it claims, and stock SQLite is happy with it.
fn assert_file_is_its_position(stage: &Stage, name: &str) {
    let db = stage.database(name);
    let position = db.status().checkpointed;
    let twin = Stage::new();
    let copy = twin.replicator.copy_of(&stage.replicator, name);
    for (of, at, transaction) in stage.replicator.captured.lock().iter() {
        if of == name && *at <= position {
            copy.apply(transaction, *at).unwrap();
        }
    }
    assert_eq!(copy.position(), position);
    let size = db.geometry().page_size;
    let bytes = stage.main_file(name);
    assert_eq!(bytes.len(), copy.status().pages.0 as usize * size.len());
    for (at, page) in bytes.chunks(size.len()).enumerate() {
        let page_no = PageNo::new(at as u32 + 1).unwrap();
        assert!(copy.page(page_no).unwrap().unwrap()[..] == *page, "page {} at position {position}", at + 1);
    }
    let plain = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(plain.path(), &bytes).unwrap();
    let stock = Connection::open(plain.path()).unwrap();
    assert_eq!(stock.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
}

fn done(db: &Database) -> Position {
    match db.checkpoint().unwrap() {
        Checkpoint::Done { to, .. } => to,
        other => panic!("{other:?}"),
    }
}

fn stage() -> (Stage, Connection) {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(x)").unwrap();
    (stage, db)
}

#[test]
fn a_checkpoint_moves_everything_and_the_wal_begins_anew() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    spill(&db, 300);
    assert!(shared.status().wal_frames > 50 && shared.status().dirty_for.is_some());
    let to = done(&shared);
    assert_eq!((to, shared.status().checkpointed), (shared.position(), shared.position()));
    assert_eq!((shared.status().wal_frames, shared.status().dirty_for), (0, None));
    assert_eq!(shared.counters.restarts.load(Ordering::Relaxed), 1);
    assert_file_is_its_position(&stage, "app");
    assert_eq!(shared.checkpoint().unwrap(), Checkpoint::Nothing);
    // Readers and writers go on, from the main file and in the new lap.
    assert_eq!(number(&db, "SELECT count(*) FROM t"), 300);
    db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    assert!(shared.status().wal_frames > 0);
    done(&shared);
    assert_file_is_its_position(&stage, "app");
    stage.compare("app");
}

#[test]
fn checksums_are_known_back_to_the_checkpoint() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    let mut seen = vec![shared.checksum()];
    let write = |seen: &mut Vec<_>| {
        db.execute("INSERT INTO t(v) VALUES (randomblob(500))", []).unwrap();
        seen.push(shared.checksum());
    };
    (0..5).for_each(|_| write(&mut seen));
    let position = done(&shared);
    (0..5).for_each(|_| write(&mut seen));
    for (at, sum) in seen {
        let expected = (at >= position).then_some(sum);
        assert_eq!(shared.checksum_at(at), expected, "{at}");
    }
    assert_eq!(shared.checksum_at(Position(shared.position().0 + 1)), None);
    stage.compare("app");
}

/// Shows INV-27.
#[test]
fn a_reader_limits_a_checkpoint_to_what_it_sees() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    let mut seen = vec![];
    // A reader at every mark, and one more than there are marks.
    for n in 0..6 {
        db.execute("INSERT INTO u VALUES (?1)", [n]).unwrap();
        let reader = stage.connect("app");
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(number(&reader, "SELECT count(*) FROM u"), n + 1);
        seen.push((reader, shared.position()));
    }
    db.execute("INSERT INTO u VALUES (100)", []).unwrap();
    assert_eq!(done(&shared), seen[0].1);
    assert_eq!(shared.checkpoint().unwrap(), Checkpoint::Blocked);
    assert_file_is_its_position(&stage, "app");
    while !seen.is_empty() {
        for (at, (reader, _)) in seen.iter().enumerate() {
            assert_eq!(number(reader, "SELECT count(*) FROM u"), 7 - seen.len() as i64 + at as i64);
        }
        drop(seen.remove(0));
        if let Checkpoint::Done { to, .. } = shared.checkpoint().unwrap() {
            assert!(seen.first().is_none_or(|(_, first)| to <= *first), "beyond what a reader sees");
            assert_file_is_its_position(&stage, "app");
        }
    }
    assert_eq!(shared.status().checkpointed, shared.position());
    stage.compare("app");
}

/// A reader that found nothing in the WAL reads the main file alone: nothing may be written under it.
/// Shows INV-27.
#[test]
fn a_reader_of_the_main_file_alone_blocks_a_checkpoint() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    done(&shared);
    let reader = stage.connect("app");
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(number(&reader, "SELECT count(*) FROM u"), 0);
    db.execute("INSERT INTO u VALUES (1)", []).unwrap();
    assert_eq!(shared.checkpoint().unwrap(), Checkpoint::Blocked);
    assert_eq!(number(&reader, "SELECT count(*) FROM u"), 0);
    reader.execute_batch("COMMIT").unwrap();
    done(&shared);
    assert_file_is_its_position(&stage, "app");
}

/// The writer's SQLite begins the new lap itself, in the middle of its first write.
#[test]
fn sqlite_may_begin_the_new_lap_and_its_commit_may_fail_then() {
    for refuse in [false, true] {
        let (stage, db) = stage();
        let shared = stage.database("app");
        let reader = stage.connect("app");
        reader.execute_batch("BEGIN; SELECT * FROM u").unwrap();
        run(&reader, "SELECT * FROM t");
        done(&shared);
        assert!(shared.status().wal_frames > 0, "the reader holds the lap");
        drop(reader);
        let before = shared.counters.restarts.load(Ordering::Relaxed);
        if refuse {
            stage.refuse_next(Refusal::NotCommitted);
            assert_eq!(code(db.execute("INSERT INTO u VALUES (1)", [])), NOT_COMMITTED);
        }
        db.execute("INSERT INTO u VALUES (2)", []).unwrap();
        assert_eq!(shared.counters.restarts.load(Ordering::Relaxed), before + 1);
        assert!(shared.status().wal_frames < 4, "{}", shared.status().wal_frames);
        assert_eq!(number(&db, "SELECT sum(x) FROM u"), 2);
        // A transaction that is rolled back leaves the lap usable, too.
        done(&shared);
        db.execute_batch("BEGIN; INSERT INTO u VALUES (3); ROLLBACK; INSERT INTO u VALUES (4)").unwrap();
        assert_eq!(number(&db, "SELECT sum(x) FROM u"), 6);
        done(&shared);
        assert_file_is_its_position(&stage, "app");
        stage.compare("app");
    }
}

#[test]
fn a_database_that_shrinks_under_readers_is_truncated_at_its_position() {
    for (page_size, auto_vacuum) in
        [(512, AutoVacuum::None), (4096, AutoVacuum::Full), (65536, AutoVacuum::Incremental)]
    {
        let stage = Stage::with_geometry(page_size, auto_vacuum);
        let db = stage.connect("app");
        db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(x)").unwrap();
        spill(&db, 400);
        let shared = stage.database("app");
        done(&shared);
        let large = std::fs::metadata(stage.main_path("app")).unwrap().len();
        db.execute_batch("INSERT INTO u VALUES (1)").unwrap();
        let reader = stage.connect("app");
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(number(&reader, "SELECT count(*) FROM t"), 400);
        db.execute_batch("DELETE FROM t WHERE id > 20; VACUUM").unwrap();
        done(&shared);
        assert!(std::fs::metadata(stage.main_path("app")).unwrap().len() >= large, "the reader needs it");
        assert_eq!(number(&reader, "SELECT count(*) + sum(length(v)) FROM t"), 400 + 400 * 300);
        drop(reader);
        done(&shared);
        assert!(std::fs::metadata(stage.main_path("app")).unwrap().len() < large);
        assert_file_is_its_position(&stage, "app");
        // It grows again, over what was cut off.
        spill(&db, 100);
        done(&shared);
        assert_file_is_its_position(&stage, "app");
        stage.compare("app");
    }
}

/// What one process left, another finds: position, content, and a place to go on from.
#[test]
fn a_database_is_found_again_where_its_checkpoint_left_it() {
    let (stage, db) = stage();
    spill(&db, 200);
    let shared = stage.database("app");
    let to = done(&shared);
    let sum = shared.checksum().1;
    db.execute("INSERT INTO u VALUES (1)", []).unwrap();
    let owner = stage.replicator.owner("app");
    // The first process is still there, and its lock on the file would keep out a second opener: its files are copied.
    let dir = tempfile::tempdir().unwrap();
    for name in files::names(owner.database, owner.generation) {
        std::fs::copy(stage.replicator.dir().join(&name), dir.path().join(&name)).unwrap();
    }
    let files = DatabaseFiles::open(Arc::new(OsFs), dir.path(), owner).unwrap();
    let found = Database::new("app", shared.geometry(), Arc::new(OsClock), &OsRng, SpillTo::nowhere()).unwrap();
    found.bind(files).unwrap();
    assert_eq!(found.checksum(), (to, sum));
    for (_, position, transaction) in stage.replicator.captured.lock().iter().filter(|(_, at, _)| *at > to) {
        found.apply(transaction, *position).unwrap();
    }
    support::same_content(&shared, &found);
}

/// Another node's copy of the database, as its checkpoint left it.
fn copy_on_another_node(stage: &Stage) -> (SimFs, Arc<Database>) {
    let owner = stage.replicator.owner("app");
    let (fs, dir) = (SimFs::new(1), std::path::Path::new("/db"));
    fs.create_dir_all(dir, "test").unwrap();
    for name in files::names(owner.database, owner.generation) {
        let bytes = std::fs::read(stage.replicator.dir().join(&name)).unwrap();
        fs.open(&dir.join(&name), Open::CreateNew, "test").unwrap().write_at(&bytes, 0, "test").unwrap();
    }
    let geometry = stage.database("app").geometry();
    let copy = Database::new("app", geometry, Arc::new(OsClock), &OsRng, SpillTo::nowhere()).unwrap();
    copy.bind(DatabaseFiles::open(Arc::new(fs.clone()), dir, owner).unwrap()).unwrap();
    (fs, copy)
}

/// The copy was given up for damaged, and fetched from another node.
#[test]
fn a_hash_that_cannot_be_read_for_a_moment_is_read_again() {
    let (stage, db) = stage();
    spill(&db, 300);
    let shared = stage.database("app");
    done(&shared);
    let (fs, copy) = copy_on_another_node(&stage);
    db.execute("UPDATE t SET v = randomblob(length(v))", []).unwrap();
    let (_, position, transaction) = stage.replicator.captured.lock().last().cloned().unwrap();
    fs.fail_at(Aim::At("map.read"), 1, Lasts::ForGood, Failure::EIO);
    let given_up = copy.apply(&transaction, position).unwrap_err();
    assert!(matches!(given_up, ApplyError::Map(_)), "{given_up}");
    fs.clear_faults();
    fs.fail_at(Aim::At("map.read"), 1, Lasts::Once, Failure::EIO);
    copy.apply(&transaction, position).unwrap();
    support::same_content(&shared, &copy);
}

/// A follower whose pages nobody has read for long applies as fast as one that has them in memory: that needs no prefetching.
#[test]
fn an_entry_is_applied_with_a_read_of_one_hash_for_each_page_and_none_of_the_main_file() {
    let (stage, db) = stage();
    spill(&db, 300);
    let shared = stage.database("app");
    done(&shared);
    let (fs, cold) = copy_on_another_node(&stage);
    let mut moved = Vec::new();
    for _ in 0..2 {
        db.execute("UPDATE t SET v = randomblob(length(v))", []).unwrap();
        let (_, position, transaction) = stage.replicator.captured.lock().last().cloned().unwrap();
        let (calls, reads, bytes) = (fs.counts(), fs.count("map.read"), fs.bytes_moved());
        cold.apply(&transaction, position).unwrap();
        let labels: Vec<_> = fs.counts().into_iter().filter(|(label, count)| calls.get(label) != Some(count)).collect();
        assert!(labels.iter().all(|(label, _)| *label == "map.read"), "{labels:?}");
        let pages = transaction.pages.len() as u64;
        assert!(pages > 20 && fs.count("map.read") - reads <= pages, "{labels:?} for {pages} pages");
        moved.push((fs.bytes_moved() - bytes, pages));
    }
    // Those that are in the WAL by then are known.
    assert_eq!((moved[0].0, moved[1].0), (16 * moved[0].1, 0), "{moved:?}");
    support::same_content(&shared, &cold);
}

/// What it is for needs all of its room, whatever it may keep; a start finds it as it was left.
#[test]
fn a_double_write_keeps_what_it_may_and_says_how_large_it_is() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    spill(&db, 300);
    done(&shared);
    let owner = stage.replicator.owner("app");
    let [_, _, name] = files::names(owner.database, owner.generation);
    let on_disk = || std::fs::metadata(stage.replicator.dir().join(&name)).unwrap().len();
    // Each moves the same pages.
    let again = || {
        db.execute("UPDATE t SET v = randomblob(length(v))", []).unwrap();
        done(&shared);
        assert_eq!(shared.status().doublewrite.0, on_disk());
        on_disk()
    };
    let pages = shared.status().pages.0;
    assert_eq!(shared.status().doublewrite.1, 64 << 20, "the default");
    // What the first one left, which moved more.
    shared.keep_doublewrite(0);
    assert_eq!(again(), 0);
    shared.keep_doublewrite(u64::MAX);
    let whole = again();
    assert!(whole > 4096 * u64::from(pages / 2), "{whole} bytes for {pages} pages");
    for (keep, stays) in [(0, 0), (whole - 1, 0), (whole, whole), (whole + 1, whole), (whole - 1, 0)] {
        shared.keep_doublewrite(keep);
        assert_eq!((again(), shared.status().doublewrite.1), (stays, keep), "of {whole}");
    }
    shared.keep_doublewrite(whole);
    assert_eq!(again(), whole);
    // A smaller one leaves the rest of a larger one behind it.
    db.execute("INSERT INTO u VALUES (1)", []).unwrap();
    done(&shared);
    assert_eq!((shared.status().doublewrite.0, on_disk()), (whole, whole));
    let dir = tempfile::tempdir().unwrap();
    for name in files::names(owner.database, owner.generation) {
        std::fs::copy(stage.replicator.dir().join(&name), dir.path().join(&name)).unwrap();
    }
    assert_eq!(DatabaseFiles::open(Arc::new(OsFs), dir.path(), owner).unwrap().doublewrite_bytes(), whole);
    stage.compare("app");
}

/// Shows INV-28.
#[test]
fn a_rotten_page_is_found_at_its_first_use_and_by_the_scrubber_and_never_served() {
    let (stage, db) = stage();
    spill(&db, 200);
    let shared = stage.database("app");
    done(&shared);
    drop(db);
    let pages = shared.status().pages.0;
    assert_eq!(scrub(&shared, 7), Vec::<u32>::new());
    // Byte 10 of the last but one page, on the disk, behind everybody's back.
    let victim = pages - 1;
    let path = stage.main_path("app");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[(victim as usize - 1) * 4096 + 10] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let reader = stage.connect("app");
    let walk = || code(reader.query_row("SELECT sum(length(v)) FROM t", [], |row| row.get::<_, i64>(0)));
    assert_eq!(walk(), DAMAGED);
    assert_eq!(walk(), DAMAGED);
    assert_eq!(shared.status().rotten, [PageNo::new(victim).unwrap()]);
    assert_eq!(scrub(&shared, 7), [victim]);
    // The page is written anew: what was rotten is gone.
    let db = stage.connect("app");
    stage.database("app");
    bytes[(victim as usize - 1) * 4096 + 10] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    db.execute("UPDATE t SET v = randomblob(300)", []).unwrap();
    done(&shared);
    assert_eq!(walk(), 0);
    assert_eq!(scrub(&shared, 1000), Vec::<u32>::new());
}

fn scrub(db: &Database, step: u32) -> Vec<u32> {
    let mut next = Some(PageNo::FIRST);
    while let Some(page) = next {
        next = db.scrub(page, step).unwrap();
    }
    db.status().rotten.iter().map(|page| page.get()).collect()
}

/// A database that ends just before the lock page, made by hand and sparse; SQLite then grows over it.
#[test]
fn the_lock_page_is_in_no_checkpoint() {
    let page_size = PageSize::new(65536).unwrap();
    let lock = page_size.lock_page().get();
    let stage = Stage::with_geometry(65536, AutoVacuum::None);
    let dir = tempfile::tempdir().unwrap();
    let shared = stage.database("app");
    shared.bind(files_up_to_the_lock_page(dir.path(), page_size)).unwrap();
    stage.replicator.next_position();
    stage.replicator.next_position();

    let db = stage.connect("app");
    db.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES (randomblob(1000000))").unwrap();
    let pages = shared.status().pages.0;
    assert!(pages > lock + 2, "it grew over the lock page");
    done(&shared);
    let path = dir.path().join("77-1.db");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), u64::from(pages) * 65536);
    let files = {
        let copy = tempfile::tempdir().unwrap();
        for name in files::names(77, 1) {
            let status = std::process::Command::new("cp")
                .args(["--sparse=always".as_ref(), dir.path().join(&name).as_os_str(), copy.path().as_os_str()])
                .status()
                .unwrap();
            assert!(status.success());
        }
        let owner = Owner { database: 77, generation: 1, page_size };
        let files = DatabaseFiles::open(Arc::new(OsFs), copy.path(), owner).unwrap();
        assert_eq!(files.verify(PageNo::new(lock - 5).unwrap(), 1000).unwrap(), None);
        let stock = Connection::open(copy.path().join("77-1.db")).unwrap();
        drop(files);
        assert_eq!(number(&stock, "SELECT length(v) FROM t"), 1_000_000);
        copy
    };
    drop(files);
    db.execute_batch("DELETE FROM t; INSERT INTO t VALUES (randomblob(3000000))").unwrap();
    done(&shared);
    assert_eq!(number(&stage.connect("app"), "SELECT length(v) FROM t"), 3_000_000);
}

/// Everything at once: a writer that takes turns with the applier, readers that stay for a while, a checkpointer.
/// Shows INV-27.
#[test]
fn checkpoints_among_readers_writers_and_applies_lose_nothing() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(
        "CREATE TABLE bank(id INTEGER PRIMARY KEY, balance, pad);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
         INSERT INTO bank SELECT i, 100, zeroblob(200) FROM n;",
    )
    .unwrap();
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
    let over = AtomicBool::new(false);
    let (reads, checkpoints) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..3u64 {
            let (stage, over, reads) = (&stage, &over, &reads);
            scope.spawn(move || {
                let mut dice = Choices(seed);
                while !over.load(Ordering::Relaxed) {
                    let reader = stage.connect("app");
                    reader.execute_batch("BEGIN").unwrap();
                    let first = number(&reader, "SELECT sum(balance) FROM bank");
                    let count = number(&reader, "SELECT count(*) FROM t");
                    for _ in 0..dice.below(20) {
                        assert_eq!(number(&reader, "SELECT sum(balance) FROM bank"), first);
                        assert_eq!(number(&reader, "SELECT count(*) FROM t"), count);
                        std::thread::yield_now();
                    }
                    assert_eq!(first, 4000);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (shared, over_flag, made) = (stage.database("app"), &over, &checkpoints);
        scope.spawn(move || {
            // Readers are always there: without patience the WAL would hardly ever begin anew.
            let patience = [Duration::ZERO, Duration::ZERO, Duration::from_millis(50)];
            for patience in patience.iter().cycle() {
                if over_flag.load(Ordering::Relaxed) {
                    break;
                }
                if matches!(shared.checkpoint_and_restart(*patience, None).unwrap(), Checkpoint::Done { .. }) {
                    made.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut dice = Choices(99);
        let mut twin = stage.twin("app");
        db.execute_batch("PRAGMA cache_size = 5; PRAGMA cache_spill = 5").unwrap();
        // As many rounds as it takes: how often who gets to run is the machine's business.
        let counters = stage.database("app");
        let restarts = || counters.counters.restarts.load(Ordering::Relaxed);
        let enough =
            || reads.load(Ordering::Relaxed) > 10 && checkpoints.load(Ordering::Relaxed) > 10 && restarts() > 2;
        for round in 0.. {
            if round >= 400 && enough() {
                break;
            }
            let (a, b) = (dice.below(40) + 1, dice.below(40) + 1);
            let sql = format!(
                "UPDATE bank SET balance = balance - 1 WHERE id = {a}; UPDATE bank SET balance = balance + 1 WHERE id = {b}"
            );
            match dice.below(8) {
                0 => twin.write_and_apply(&stage, &format!("{sql}; INSERT INTO t(v) VALUES (randomblob(3000))")),
                1 => db.execute_batch("BEGIN; DELETE FROM t WHERE id % 3 = 0; ROLLBACK").unwrap(),
                2 if round % 50 == 0 => db.execute_batch("VACUUM").unwrap(),
                3 => db.execute_batch("DELETE FROM t WHERE id % 5 = 0").unwrap(),
                4 => db
                    .execute_batch(&format!("BEGIN; {sql}; INSERT INTO t(v) VALUES (randomblob(90000)); COMMIT"))
                    .unwrap(),
                _ => db.execute_batch(&format!("BEGIN; {sql}; COMMIT")).unwrap(),
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let shared = stage.database("app");
    while shared.status().checkpointed < shared.position() {
        done(&shared);
    }
    assert_file_is_its_position(&stage, "app");
    stage.compare("app");
}

/// Writers and the applier wait for a checkpointer that waits for readers, and only as long as its patience.
#[test]
fn a_checkpointer_that_waits_for_readers_holds_writers_off_for_a_while() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    let mut twin = stage.twin("app");
    db.busy_timeout(Duration::ZERO).unwrap();
    let reader = stage.connect("app");
    reader.execute_batch("BEGIN; SELECT * FROM u").unwrap();
    run(&reader, "SELECT * FROM t");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| shared.checkpoint_and_restart(Duration::from_secs(3600), None));
        // The checkpoint is made at once; then the checkpointer has WRITE and waits for the reader. As long as it only waits for its
        // turn, a writer is refused as well, but the applier, which asks for none, would come first.
        while shared.status().checkpointed < shared.position()
            || code(db.execute_batch("BEGIN IMMEDIATE")) == 0
            || shared.status().writers_waiting > 0
        {
            let _ = db.execute_batch("ROLLBACK");
        }
        assert!(shared.status().wal_frames > 0);
        let applied = scope.spawn(move || twin.write_and_apply(&stage, "INSERT INTO u VALUES (1)"));
        drop(reader);
        assert!(matches!(waiting.join().unwrap().unwrap(), Checkpoint::Done { .. }));
        applied.join().unwrap();
    });
    assert_eq!(shared.counters.restarts.load(Ordering::Relaxed), 1);
    assert_eq!(number(&db, "SELECT count(*) FROM u"), 1);
    let reader = db;
    reader.execute_batch("BEGIN; SELECT * FROM u").unwrap();
    run(&reader, "SELECT * FROM u");
    shared.checkpoint_and_restart(Duration::from_millis(1), None).unwrap();
    assert_eq!(shared.counters.restarts.load(Ordering::Relaxed), 1, "it does not wait for ever");
}

/// Writers of which each waits for the one before it leave WRITE free for moments only, which nobody meets who looks now and then:
/// as long as they came, a WAL did not begin anew, and its files filled the disk.
#[test]
fn a_checkpointer_comes_before_writers_that_wait_so_that_a_new_lap_begins() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    let next = stage.connect("app");
    next.busy_timeout(Duration::from_secs(3600)).unwrap();
    db.execute_batch("BEGIN IMMEDIATE; INSERT INTO u VALUES (1)").unwrap();
    let waiting = || shared.status().writers_waiting;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || next.execute_batch("INSERT INTO u VALUES (2)").unwrap());
        while waiting() < 1 {
            std::thread::yield_now();
        }
        let checkpointer = scope.spawn(|| shared.checkpoint_and_restart(Duration::from_secs(3600), None));
        while waiting() < 2 && !checkpointer.is_finished() {
            std::thread::yield_now();
        }
        db.execute_batch("COMMIT").unwrap();
        assert!(matches!(checkpointer.join().unwrap().unwrap(), Checkpoint::Done { .. }));
        writer.join().unwrap();
    });
    assert_eq!(shared.counters.restarts.load(Ordering::Relaxed), 1);
    assert_eq!(number(&db, "SELECT count(*) FROM u"), 2);
    // One that does not come to its end is left in peace.
    db.execute_batch("BEGIN IMMEDIATE; INSERT INTO u VALUES (3)").unwrap();
    shared.checkpoint_and_restart(Duration::from_millis(1), None).unwrap();
    db.execute_batch("COMMIT").unwrap();
    assert_eq!((shared.counters.restarts.load(Ordering::Relaxed), waiting()), (1, 0));
}

#[test]
fn a_read_only_connection_reads_what_was_checkpointed() {
    let (stage, db) = stage();
    db.execute("INSERT INTO u VALUES (5)", []).unwrap();
    done(&stage.database("app"));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let reader = Connection::open_with_flags(stage.uri("app", "&mode=ro"), flags).unwrap();
    assert_eq!(number(&reader, "SELECT x FROM u"), 5);
}

/// What broke: after a checkpoint had failed half way, the map had some of its hashes. The next one compared with them, found
/// a difference, called it a divergence and took the database out of service. Found by the simulation. And the scrubber called
/// it rot, after which the database was not served any more: on a disk that was full. Found by full disks under real processes.
#[test]
fn a_checkpoint_that_failed_half_way_is_no_divergence() {
    for (label, nth) in [("ckpt.page", 1), ("ckpt.hash", 1), ("ckpt.sync", 1), ("ckpt.record", 1)] {
        for failure in [Failure::EIO, Failure::ENOSPC] {
            let fs = SimFs::new(7);
            let dir = std::path::Path::new("/db");
            fs.create_dir_all(dir, "test").unwrap();
            let geometry = Geometry::default();
            let owner = Owner { database: 3, generation: 1, page_size: geometry.page_size };
            let open = || Database::new("app", geometry, Arc::new(OsClock), &OsRng, SpillTo::nowhere()).unwrap();
            let db = open();
            let files = DatabaseFiles::create(Arc::new(fs.clone()), dir, owner, geometry, Position(3)).unwrap();
            db.bind(files).unwrap();
            let stage = Stage::new();
            let source = stage.connect("app");
            source.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE gap(x)").unwrap();
            spill(&source, 30);
            source.execute_batch("UPDATE t SET v = zeroblob(5000) WHERE id IN (3, 17)").unwrap();
            let captured = stage.replicator.captured.lock();
            let mut at = Position(3);
            let mut apply = |count: usize, from: usize| {
                for (_, _, transaction) in captured.iter().skip(from).take(count) {
                    let next = Position(at.0 + 1);
                    let mut transaction = transaction.clone();
                    transaction.base = at;
                    db.apply(&transaction, next).unwrap();
                    at = next;
                }
            };
            let half = captured.len() - 2;
            apply(half, 0);
            fs.fail_at(Aim::At(label), nth, Lasts::Once, failure);
            assert!(db.checkpoint().is_err(), "{label}");
            assert_eq!(scrub(&db, 1000), Vec::<u32>::new(), "{label}: a mixture that is known is no rot");
            apply(2, half);
            let again = db.checkpoint();
            assert_eq!(db.retired(), None, "{label} {failure:?}");
            // For lack of room nothing is over: first the same checkpoint again, then the next one.
            if failure == Failure::ENOSPC && matches!(label, "ckpt.page" | "ckpt.hash") {
                assert!(matches!(again.unwrap(), Checkpoint::Done { .. }));
                done(&db);
                assert_eq!(db.status().checkpointed, db.position());
            } else {
                assert!(again.is_err());
            }
            let (position, checksum) = db.checksum();
            db.close_files();
            let found = open();
            found.bind(DatabaseFiles::open(Arc::new(fs.clone()), dir, owner).unwrap()).unwrap();
            assert!(found.position() > Position(3), "what was begun is ended");
            if found.position() == position {
                assert_eq!(found.checksum().1, checksum);
            }
        }
    }
}
