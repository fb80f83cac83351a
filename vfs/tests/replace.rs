//! Other files in the place of a database's files, under the eyes of its connections.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rusqlite::Connection;
use shoaldb_vfs::database::{Checkpoint, Database, ReplaceError};
use shoaldb_vfs::env::os::OsFs;
use shoaldb_vfs::error::{DAMAGED, NOT_COMMITTED, Refusal};
use shoaldb_vfs::files::{self, DatabaseFiles};
use shoaldb_vfs::genesis::{AutoVacuum, Geometry};
use shoaldb_vfs::mapfile::Owner;
use shoaldb_vfs::page::{PageNo, PageSize};
use shoaldb_vfs::staging::Staging;
use shoaldb_vfs::transaction::Position;
use support::{Choices, Stage, code, number, run, spill};

/// Files with the content of `source` as it is now, in `dir`.
fn files_in(dir: &Path, owner: Owner, source: &Arc<Database>) -> DatabaseFiles {
    let view = source.read_view().unwrap();
    let mut staging = Staging::begin(Arc::new(OsFs), dir, owner, view.at()).unwrap();
    for page in (1..=view.at().size.0).filter_map(PageNo::new) {
        staging.write(page, &view.page(page).unwrap()).unwrap();
    }
    staging.finish(&mut |first, count| Ok(view.hashes(first, count).unwrap())).unwrap()
}

/// The next generation of `app`, as `source` is.
fn generation(stage: &Stage, generation: u64, source: &Arc<Database>) -> DatabaseFiles {
    files_in(stage.replicator.dir(), Owner { generation, ..stage.replicator.owner("app") }, source)
}

fn stage() -> (Stage, Connection) {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(x); CREATE INDEX tv ON t(v)").unwrap();
    spill(&db, 300);
    (stage, db)
}

/// Everything in `t`, in a form that can be compared; read through the table and through the index.
fn content(db: &Connection) -> (i64, String) {
    let all = "SELECT count(*), group_concat(id || ':' || hex(substr(v, 1, 4))) FROM (SELECT * FROM t ORDER BY id)";
    let table = db.query_row(all, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(number(db, "SELECT count(*) FROM (SELECT v FROM t INDEXED BY tv ORDER BY v)"), table.0);
    table
}

fn integrity(db: &Connection) {
    assert_eq!(db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
}

/// Shows INV-V7.
#[test]
fn open_transactions_keep_their_state_and_the_next_ones_see_the_new_files() {
    for checkpointed in [false, true] {
        let (stage, db) = stage();
        let shared = stage.database("app");
        if checkpointed {
            shared.checkpoint().unwrap();
        }
        let mut twin = stage.twin("app");
        let old = content(&db);
        // In the middle of a scan; in a transaction that has read a little; between two transactions, with pages cached.
        let scanning = stage.connect("app");
        let mut scan = scanning.prepare("SELECT id, v FROM t ORDER BY id").unwrap();
        let mut rows = scan.query([]).unwrap();
        let mut seen = 0;
        for _ in 0..10 {
            rows.next().unwrap().unwrap();
            seen += 1;
        }
        let reading = stage.connect("app");
        reading.execute_batch("PRAGMA cache_size = 5; BEGIN").unwrap();
        number(&reading, "SELECT count(*) FROM u");
        let between = stage.connect("app");
        assert_eq!(content(&between), old);
        let mut prepared = between.prepare("SELECT count(*) FROM t WHERE v >= x'00'").unwrap();
        assert_eq!(prepared.query_row([], |row| row.get::<_, i64>(0)).unwrap(), 300);
        // In the middle of a write, of which some pages are in the WAL.
        db.execute_batch("BEGIN IMMEDIATE; DELETE FROM t WHERE id % 2 = 0").unwrap();
        spill(&db, 60);
        // Else SQLite would want to write changed pages to the WAL in order to have room to read others.
        db.execute_batch("PRAGMA cache_size = 10000").unwrap();
        let mine = content(&db);

        for _ in 0..5 {
            twin.write(&stage, "DELETE FROM t WHERE id % 3 = 0; UPDATE t SET v = randomblob(1200) WHERE id % 5 = 0");
        }
        twin.write(&stage, "CREATE TABLE later(x); INSERT INTO later VALUES (7)");
        let target = twin.stage.database("app");
        shared.replace(generation(&stage, 2, &target)).unwrap();
        // Nobody needs their names any more.
        let owner = stage.replicator.owner("app");
        for name in files::names(owner.database, 1) {
            let _ = std::fs::remove_file(stage.replicator.dir().join(name));
        }
        assert_eq!(shared.checksum(), target.checksum());
        support::same_content(&shared, &target);
        let status = shared.status();
        assert_eq!((status.checkpointed, status.wal_frames, status.dirty_for), (status.position, 0, None));

        let new = content(&between);
        assert!(new.0 < 300);
        assert_eq!(prepared.query_row([], |row| row.get::<_, i64>(0)).unwrap(), new.0);
        assert_eq!(number(&between, "SELECT x FROM later"), 7);
        assert_eq!(content(&stage.connect("app")), new);
        while rows.next().unwrap().is_some() {
            seen += 1;
        }
        assert_eq!(seen, 300);
        for _ in 0..2 {
            assert_eq!(content(&reading), old);
        }
        integrity(&reading);
        // It reads again what it has not changed since.
        run(&db, "PRAGMA shrink_memory");
        assert_eq!(content(&db), mine);
        assert_eq!(code(db.execute_batch("COMMIT")), NOT_COMMITTED);
        let _ = db.execute_batch("ROLLBACK");
        // A reader in its old state does not get to write either; in its next transaction it does.
        assert_ne!(code(reading.execute("INSERT INTO u VALUES (1)", [])), 0);
        reading.execute_batch("ROLLBACK").unwrap();
        drop(rows);
        for connection in [&scanning, &reading, &between, &db] {
            assert_eq!(content(connection), new);
            connection.execute("INSERT INTO u VALUES (1)", []).unwrap();
        }
        twin.write_and_apply(&stage, "INSERT INTO u VALUES (2)");
        assert_eq!(number(&db, "SELECT count(*) FROM u"), 5);
        stage.check_integrity("app");
        shared.damage_index();
        stage.check_integrity("app");
        support::same_content(&shared, &target);
        assert!(matches!(shared.checkpoint().unwrap(), Checkpoint::Done { .. }));
        let file = std::fs::read(stage.replicator.dir().join(&files::names(owner.database, 2)[0])).unwrap();
        for (n, page) in (1..).filter_map(PageNo::new).zip(file.chunks(4096)) {
            assert!(*page == *target.page(n).unwrap().unwrap(), "page {}", n.get());
        }
    }
}

/// Forward, back and forward again, to smaller and to larger states.
#[test]
fn a_database_may_go_back_and_shrink_and_grow() {
    for page_size in [512, 65536] {
        let stage = Stage::with_geometry(page_size, AutoVacuum::None);
        let db = stage.connect("app");
        db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(x); CREATE INDEX tv ON t(v)")
            .unwrap();
        spill(&db, 100);
        let shared = stage.database("app");
        let mut twin = stage.twin("app");
        twin.catch_up(&stage);
        let elsewhere = tempfile::tempdir().unwrap();
        let owner = |generation| Owner { generation, ..stage.replicator.owner("app") };
        let mut states = Vec::new();
        let reader = stage.connect("app");
        for (n, sql) in [
            "INSERT INTO u VALUES (1)",
            "DELETE FROM t WHERE id > 10",
            "INSERT INTO t(v) VALUES (randomblob(400000)); DELETE FROM u",
        ]
        .iter()
        .enumerate()
        {
            twin.write(&stage, sql);
            let source = twin.stage.database("app");
            states
                .push((files_in(elsewhere.path(), owner(10 + n as u64), &source), content(&twin.stage.connect("app"))));
        }
        for at in [2, 0, 1].map(|at| at as usize) {
            // Each set of files is used once, so each is taken out as it comes.
            let (files, expected) = {
                let place = states.iter().position(|(files, _)| files.owner().generation == 10 + at as u64).unwrap();
                states.remove(place)
            };
            let to = files.at();
            shared.replace(files).unwrap();
            assert_eq!((shared.position(), shared.status().pages), (to.position, to.size));
            for connection in [&reader, &db] {
                assert_eq!(content(connection), expected);
                integrity(connection);
            }
            // It may write there, and a checkpoint may move that.
            db.execute("INSERT INTO u VALUES (3)", []).unwrap();
            shared.checkpoint().unwrap();
            assert_eq!(content(&reader), expected);
        }
    }
}

/// Shows INV-V7.
#[test]
fn a_reader_keeps_its_state_over_two_replacements() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    let mut twin = stage.twin("app");
    let old = content(&db);
    let first = stage.connect("app");
    first.execute_batch("PRAGMA cache_size = 5; BEGIN").unwrap();
    number(&first, "SELECT count(*) FROM u");
    // One that was fenced before: it has frames of its own, and the rest of the WAL is everybody's.
    db.execute_batch("BEGIN IMMEDIATE; DELETE FROM t WHERE id % 2 = 0").unwrap();
    spill(&db, 60);
    db.execute_batch("PRAGMA cache_size = 10000").unwrap();
    let mine = content(&db);
    twin.write_and_apply(&stage, "INSERT INTO u VALUES (1)");
    assert_eq!(shared.counters.fences.load(Ordering::Relaxed), 1);
    twin.write(&stage, "DELETE FROM t WHERE id > 30");
    shared.replace(generation(&stage, 2, &twin.stage.database("app"))).unwrap();
    let second = stage.connect("app");
    second.execute_batch("PRAGMA cache_size = 5; BEGIN").unwrap();
    assert_eq!(number(&second, "SELECT count(*) FROM t"), 30);
    twin.write(&stage, "DELETE FROM t WHERE id > 20; INSERT INTO t(v) VALUES (randomblob(100000))");
    shared.replace(generation(&stage, 3, &twin.stage.database("app"))).unwrap();
    let third = stage.connect("app");
    for _ in 0..2 {
        assert_eq!(content(&first), old);
        run(&db, "PRAGMA shrink_memory");
        assert_eq!(content(&db), mine);
        assert_eq!(content(&second).0, 30);
        assert_eq!(content(&third).0, 21);
        run(&third, "PRAGMA integrity_check");
    }
    for connection in [&first, &second, &db] {
        let _ = connection.execute_batch("ROLLBACK");
        assert_eq!(content(connection).0, 21);
    }
    db.execute("INSERT INTO u VALUES (9)", []).unwrap();
    stage.check_integrity("app");
}

/// The commit waits in the replicator while the files are replaced: it only reports.
#[test]
fn a_proposed_transaction_is_detached_and_reports_what_it_is_told() {
    for committed in [false, true] {
        let (stage, db) = stage();
        let mut twin = stage.twin("app");
        twin.write(&stage, "DELETE FROM t WHERE id > 30");
        let files = generation(&stage, 2, &twin.stage.database("app"));
        stage.answer_next(move |db, _, _| {
            db.replace(files).unwrap();
            if committed { Ok(db.position()) } else { Err(Refusal::NotCommitted) }
        });
        let result = db.execute("INSERT INTO u VALUES (5)", []);
        assert_eq!(code(result), if committed { 0 } else { NOT_COMMITTED });
        assert_eq!(stage.database("app").counters.detaches.load(Ordering::Relaxed), 1);
        assert_eq!((number(&db, "SELECT count(*) FROM t"), number(&db, "SELECT count(*) FROM u")), (30, 0));
        db.execute("INSERT INTO u VALUES (6)", []).unwrap();
        stage.check_integrity("app");
    }
}

/// Nobody reads a database that is not served, so nobody makes its index anew either.
#[test]
fn files_may_be_replaced_when_the_wal_index_is_damaged() {
    for retired in [false, true] {
        let (stage, db) = stage();
        let shared = stage.database("app");
        let mut twin = stage.twin("app");
        twin.catch_up(&stage);
        let before = content(&db);
        twin.write(&stage, "DELETE FROM t WHERE id > 30");
        if retired {
            shared.retire(Refusal::Damaged);
        }
        shared.damage_index();
        shared.replace(generation(&stage, 2, &twin.stage.database("app"))).unwrap();
        assert_ne!(before.0, 30);
        for connection in [&db, &stage.connect("app")] {
            assert_eq!(content(connection).0, 30);
            connection.execute("INSERT INTO u VALUES (1)", []).unwrap();
            integrity(connection);
        }
        twin.write_and_apply(&stage, "INSERT INTO u VALUES (2)");
        assert_eq!(number(&db, "SELECT count(*) FROM u"), 3);
        stage.check_integrity("app");
    }
}

#[test]
fn a_damaged_database_is_usable_again_for_the_connections_that_it_had() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    let mut twin = stage.twin("app");
    let open = stage.connect("app");
    open.execute_batch("BEGIN").unwrap();
    let old = content(&open);
    shared.retire(Refusal::Damaged);
    assert_eq!(code(db.execute("INSERT INTO u VALUES (1)", [])), DAMAGED);
    twin.write(&stage, "DELETE FROM t WHERE id > 30");
    shared.replace(generation(&stage, 2, &twin.stage.database("app"))).unwrap();
    assert_eq!(shared.retired(), None);
    assert_eq!(content(&open), old);
    open.execute_batch("COMMIT").unwrap();
    for connection in [&db, &open, &stage.connect("app")] {
        assert_eq!(content(connection).0, 30);
        connection.execute("INSERT INTO u VALUES (1)", []).unwrap();
    }
    // One that could not be opened at all, so that it never had files.
    let shape = Database::new(
        "app",
        Geometry::default(),
        Arc::new(shoaldb_vfs::env::os::OsClock),
        &shoaldb_vfs::env::os::OsRng,
        shoaldb_vfs::spill::SpillTo::nowhere(),
    )
    .unwrap();
    shape.retire(Refusal::Damaged);
    shape.replace(generation(&stage, 3, &shared)).unwrap();
    assert!(shape.is_bound() && shape.retired().is_none());
    support::same_content(&shape, &shared);
    // No files mend these.
    for reason in [Refusal::Dropped, Refusal::NodeStopped] {
        let (stage, _db) = self::stage();
        let shared = stage.database("app");
        shared.retire(reason);
        let files = generation(&stage, 2, &twin.stage.database("app"));
        assert!(matches!(shared.replace(files), Err(ReplaceError::Retired(found)) if found == reason));
        assert_eq!(shared.retired(), Some(reason));
    }
}

#[test]
fn files_with_other_pages_are_refused_and_rot_goes_with_the_file_that_has_it() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    let geometry = Geometry { page_size: PageSize::new(8192).unwrap(), auto_vacuum: AutoVacuum::None };
    let owner = Owner { generation: 2, page_size: geometry.page_size, ..stage.replicator.owner("app") };
    let dir = tempfile::tempdir().unwrap();
    let files = DatabaseFiles::create(Arc::new(OsFs), dir.path(), owner, geometry, Position(900)).unwrap();
    let before = shared.checksum();
    assert!(matches!(shared.replace(files), Err(ReplaceError::PageSize { found: 8192, expected: 4096 })));
    assert_eq!(shared.checksum(), before);

    let mut twin = stage.twin("app");
    twin.catch_up(&stage);
    shared.checkpoint().unwrap();
    let mut bytes = stage.main_file("app");
    bytes[4096 * 5 + 7] ^= 1;
    std::fs::write(stage.main_path("app"), bytes).unwrap();
    shared.scrub(PageNo::FIRST, 1000).unwrap();
    assert_eq!(shared.status().rotten, [PageNo::new(6).unwrap()]);
    shared.replace(generation(&stage, 2, &twin.stage.database("app"))).unwrap();
    assert!(shared.status().rotten.is_empty());
    assert_eq!(shared.scrub(PageNo::FIRST, 1000).unwrap(), None);
    assert!(shared.status().rotten.is_empty());
    integrity(&db);
}

/// Pages are compared at their first use. One that rots later is found by the scrubber; a reader who kept the files when they were
/// replaced was shown it all the same (found by the simulation).
#[test]
fn what_is_known_to_be_rotten_is_not_shown_to_who_keeps_the_old_files() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    let mut twin = stage.twin("app");
    twin.catch_up(&stage);
    assert!(matches!(shared.checkpoint_and_restart(std::time::Duration::ZERO, None), Ok(Checkpoint::Done { .. })));
    let (open, well) = (stage.connect("app"), content(&db));
    open.execute_batch("BEGIN; SELECT count(*) FROM u").unwrap();
    let mut bytes = stage.main_file("app");
    // A page of the index, of which nobody reads more than the others are read.
    let rotten = bytes.len() / 4096 - 1;
    bytes[4096 * rotten + 2000..][..64].iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(stage.main_path("app"), bytes).unwrap();
    shared.scrub(PageNo::FIRST, u32::MAX).unwrap();
    assert_eq!(shared.status().rotten.len(), 1);
    shared.retire(Refusal::Damaged);
    shared.replace(generation(&stage, 2, &twin.stage.database("app"))).unwrap();
    assert_eq!(content(&db), well);
    let read = open.query_row("SELECT count(*), max(v) FROM (SELECT v FROM t INDEXED BY tv ORDER BY v)", [], |row| {
        row.get::<_, i64>(0)
    });
    let table = open.query_row("SELECT count(*), max(hex(v)) FROM t NOT INDEXED", [], |row| row.get::<_, i64>(0));
    assert!([code(read.map(drop)), code(table.map(drop))].contains(&DAMAGED));
}

#[test]
fn views_of_the_old_files_live_on_and_gate_nothing() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    shared.checkpoint().unwrap();
    db.execute_batch("UPDATE t SET v = randomblob(500) WHERE id % 9 = 0").unwrap();
    let mut twin = stage.twin("app");
    let view = shared.read_view().unwrap();
    twin.write(&stage, "DELETE FROM t WHERE id > 30");
    shared.replace(generation(&stage, 2, &twin.stage.database("app"))).unwrap();
    assert!(view.is_open() && shared.status().views == 1 && view.wal_bytes() == 0);
    let newer = shared.read_view().unwrap();
    db.execute("INSERT INTO u VALUES (1)", []).unwrap();
    assert_eq!(shared.checkpoint().unwrap(), Checkpoint::Gated);
    assert!(newer.wal_bytes() > 0);
    drop(newer);
    assert!(matches!(shared.checkpoint().unwrap(), Checkpoint::Done { .. }));
    let mut checksum = shoaldb_vfs::page::PageHash::default();
    for page in (1..=view.at().size.0).filter_map(PageNo::new) {
        checksum = checksum.toggle(shoaldb_vfs::page::PageHash::of(page, &view.page(page).unwrap()));
    }
    assert_eq!(checksum, view.at().checksum);
    let lent = view.page(PageNo::FIRST).unwrap();
    view.close();
    assert_eq!(shared.status().views, 1);
    drop(lent);
    assert_eq!(shared.status().views, 0);
}

struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Each state says of itself how many rows it has. Eight connections read, two of them in long transactions, one more writes.
/// Shows INV-V7.
#[test]
fn eight_connections_see_whole_states_while_files_are_replaced() {
    let (stage, db) = stage();
    db.execute_batch("CREATE TABLE says(n); INSERT INTO says SELECT count(*) FROM t").unwrap();
    let shared = stage.database("app");
    let mut twin = stage.twin("app");
    twin.catch_up(&stage);
    let elsewhere = tempfile::tempdir().unwrap();
    let owner = |generation| Owner { generation, ..stage.replicator.owner("app") };
    let over = AtomicBool::new(false);
    let rounds: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
    let count = |db: &Connection| {
        let said = number(db, "SELECT n FROM says");
        assert_eq!(number(db, "SELECT count(*) FROM t"), said);
        assert_eq!(number(db, "SELECT count(*) FROM t INDEXED BY tv WHERE v IS NOT NULL"), said);
        said
    };
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for seed in 0..8u64 {
            let (stage, over, rounds, count) = (&stage, &over, &rounds[seed as usize], &count);
            readers.push(scope.spawn(move || {
                let mut dice = Choices(seed);
                let reader = stage.connect("app");
                if seed % 2 == 0 {
                    reader.execute_batch("PRAGMA cache_size = 3").unwrap();
                }
                while !over.load(Ordering::Relaxed) {
                    reader.execute_batch("BEGIN").unwrap();
                    let first = count(&reader);
                    for _ in 0..dice.below(if seed < 2 { 30 } else { 3 }) {
                        assert_eq!(count(&reader), first);
                    }
                    if dice.below(20) == 0 {
                        integrity(&reader);
                    }
                    reader.execute_batch("COMMIT").unwrap();
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        // However this ends, the readers do.
        let _end = AtEnd(&over);
        let mut seen = BTreeSet::new();
        let more = || {
            let begun = |(reader, rounds): (&std::thread::ScopedJoinHandle<'_, ()>, &AtomicU64)| {
                reader.is_finished() || rounds.load(Ordering::Relaxed) >= 5
            };
            !readers.iter().zip(&rounds).all(begun)
        };
        for generation in 100u64.. {
            if generation > 160 && !more() {
                break;
            }
            // A transaction that is open when the files go, or was committed before.
            db.execute_batch(
                "BEGIN IMMEDIATE; DELETE FROM t WHERE id = (SELECT max(id) FROM t); UPDATE says SET n = n - 1",
            )
            .unwrap();
            if generation.is_multiple_of(3) {
                db.execute_batch("COMMIT").unwrap();
            }
            twin_step(&twin, generation);
            shared.replace(files_in(elsewhere.path(), owner(generation), &twin.stage.database("app"))).unwrap();
            for name in files::names(owner(generation).database, generation) {
                let _ = std::fs::remove_file(elsewhere.path().join(name));
            }
            if !generation.is_multiple_of(3) {
                db.execute_batch("ROLLBACK").unwrap();
            }
            seen.insert(count(&db));
            if generation.is_multiple_of(7) {
                shared.checkpoint().unwrap();
            }
        }
        assert!(seen.len() > 5);
    });
    support::same_content(&shared, &twin.stage.database("app"));
    stage.check_integrity("app");
    db.execute("INSERT INTO u VALUES (1)", []).unwrap();
    assert!(matches!(shared.checkpoint().unwrap(), Checkpoint::Done { .. }));
}

/// The other copy goes its own way; its positions need not follow those of the first.
fn twin_step(twin: &support::Twin, generation: u64) {
    let db = twin.stage.connect("app");
    let sql = match generation % 4 {
        0 => "DELETE FROM t WHERE id % 3 = 0",
        1 => "INSERT INTO t(v) SELECT randomblob(700) FROM t LIMIT 60",
        2 => "INSERT INTO t(v) VALUES (randomblob(90000))",
        _ => "UPDATE t SET v = randomblob(600) WHERE id % 4 = 0",
    };
    db.execute_batch(&format!("BEGIN; {sql}; UPDATE says SET n = (SELECT count(*) FROM t); COMMIT")).unwrap();
    if generation.is_multiple_of(10) {
        db.execute_batch("VACUUM").unwrap();
    }
}
