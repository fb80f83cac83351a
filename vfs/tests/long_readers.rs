//! Read transactions that stay open for too long are ended: the WAL goes on without them, and they never see two states.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use shoaldb_vfs::database::Checkpoint;
use shoaldb_vfs::error::{NOT_COMMITTED, READER_ENDED};
use shoaldb_vfs::spill::{SpillTo, WalMemory};
use support::{Stage, code, number};

const ANY: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);
const ROWS: i64 = 300;
const SUM: &str = "SELECT sum(length(v)) FROM t";

/// `t` has more pages than a reader keeps in its cache.
fn stage() -> (Stage, Connection) {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(x);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO t SELECT i, randomblob(300) FROM n"
    ))
    .unwrap();
    (stage, db)
}

/// Begins a read transaction.
fn reader(stage: &Stage) -> Connection {
    let db = stage.connect("app");
    db.execute_batch("BEGIN").unwrap();
    number(&db, SUM);
    db
}

/// The code of a read of all pages. What the connection has in its cache it would have without asking.
fn read(db: &Connection) -> i32 {
    db.execute_batch("PRAGMA shrink_memory").unwrap();
    code(db.query_row(SUM, [], |row| row.get::<_, i64>(0)))
}

fn checkpointed(stage: &Stage) -> bool {
    let db = stage.database("app");
    db.checkpoint().unwrap();
    db.status().pending_frames == 0
}

/// One page written again and again is as many frames as there were writes, of which nobody can reach but two.
#[test]
fn a_reader_keeps_each_frame_since_it_began_and_all_of_them_go_with_it() {
    let stage = Stage::new();
    let memory = WalMemory::new(u64::MAX);
    *stage.replicator.spill.lock() = SpillTo { memory: memory.clone(), outside: None };
    let db = stage.connect("app");
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 0)").unwrap();
    let shared = stage.database("app");
    // What a test notes of each transaction is no WAL.
    let used = || {
        stage.replicator.captured.lock().clear();
        memory.used()
    };
    assert!(checkpointed(&stage));
    assert_eq!((shared.status().wal_frames, used()), (0, 0));
    let old = reader(&stage);
    for n in 1..=100u32 {
        db.execute("UPDATE t SET v = ?1", [n]).unwrap();
        // Whatever is tried meanwhile.
        shared.checkpoint().unwrap();
        let frames = shared.status().wal_frames;
        assert!((n..=n + 1).contains(&frames), "{frames} frames after {n} writes");
        assert_eq!(used(), u64::from(frames) * 4096);
    }
    assert_eq!((number(&old, SUM), number(&db, SUM)), (1, 3));
    drop(old);
    assert!(checkpointed(&stage));
    assert_eq!((shared.status().wal_frames, used()), (0, 0));
    assert_eq!(number(&db, "SELECT v FROM t"), 100);
}

#[test]
fn a_reader_that_is_ended_lets_the_wal_go_and_its_connection_goes_on() {
    let (stage, db) = stage();
    let old = reader(&stage);
    db.execute("UPDATE t SET v = randomblob(301)", []).unwrap();
    assert!(!checkpointed(&stage), "the reader is in the way");
    let shared = stage.database("app");
    assert!(shared.status().oldest_reader.is_some());
    assert_eq!(shared.end_oldest_readers(ANY), 1);
    assert_eq!((shared.status().oldest_reader, shared.status().readers_ended), (None, 1));
    assert_eq!(shared.end_oldest_readers(ANY), 0, "it has nothing to give any more");
    assert!(checkpointed(&stage));
    assert_eq!(shared.status().wal_frames, 0, "a new lap begins");
    db.execute("UPDATE t SET v = randomblob(302)", []).unwrap();

    assert_eq!(read(&old), READER_ENDED);
    assert!(old.is_autocommit(), "SQLite rolled it back");
    assert_eq!(number(&old, SUM), 302 * ROWS);
    old.execute("INSERT INTO u VALUES (1)", []).unwrap();
    stage.compare("app");
}

/// Shows INV-V8.
#[test]
fn a_statement_in_the_middle_shows_its_old_state_or_fails() {
    let (stage, db) = stage();
    let old = stage.connect("app");
    old.execute_batch("BEGIN").unwrap();
    let mut select = old.prepare("SELECT length(v) FROM t ORDER BY id").unwrap();
    let mut rows = select.query([]).unwrap();
    rows.next().unwrap().unwrap();
    db.execute("UPDATE t SET v = randomblob(301)", []).unwrap();
    old.execute_batch("PRAGMA shrink_memory").unwrap();
    assert_eq!(stage.database("app").end_oldest_readers(ANY), 1);
    for length in [302, 303] {
        assert!(checkpointed(&stage));
        db.execute("UPDATE t SET v = randomblob(?1)", [length]).unwrap();
    }
    let mut seen = 1;
    let end = loop {
        match rows.next() {
            Ok(Some(row)) => assert_eq!(row.get::<_, i64>(0).unwrap(), 300),
            Ok(None) => panic!("nobody has all of its pages"),
            Err(error) => break code(Err::<(), _>(error)),
        }
        seen += 1;
    };
    assert_eq!(end, READER_ENDED, "after row {seen}");
    drop(rows);
    drop(select);
    assert_eq!(number(&old, SUM), 303 * ROWS);
    stage.compare("app");
}

#[test]
fn the_oldest_are_ended_and_only_when_they_are_old() {
    let (stage, db) = stage();
    let first = reader(&stage);
    db.execute("UPDATE t SET v = randomblob(301)", []).unwrap();
    let second = reader(&stage);
    db.execute("UPDATE t SET v = randomblob(302)", []).unwrap();
    let shared = stage.database("app");
    assert_eq!(shared.end_oldest_readers(HOUR), 0);
    assert_eq!(number(&first, SUM), 300 * ROWS);
    assert_eq!(shared.end_oldest_readers(ANY), 1);
    assert!(matches!(shared.checkpoint().unwrap(), Checkpoint::Done { .. }), "up to the second");
    assert_eq!(read(&first), READER_ENDED);
    assert_eq!(number(&second, SUM), 301 * ROWS);
    assert_eq!(shared.end_oldest_readers(ANY), 1);
    assert!(checkpointed(&stage));
    assert_eq!(read(&second), READER_ENDED);
    stage.compare("app");
}

/// Each of them stays for a while only, but there is always one: no lap of the WAL would ever end.
#[test]
fn readers_that_follow_each_other_let_a_new_lap_begin() {
    let (stage, db) = stage();
    let shared = stage.database("app");
    db.execute("UPDATE t SET v = randomblob(301)", []).unwrap();
    let readers = [reader(&stage), reader(&stage)];
    assert!(checkpointed(&stage), "they have seen everything");
    let alone = reader(&stage);
    shared.checkpoint_and_restart(ANY, Some(HOUR)).unwrap();
    shared.checkpoint_and_restart(ANY, None).unwrap();
    assert!(shared.status().wal_frames > 0, "they are in the way");
    for reader in &readers {
        assert_eq!(number(reader, SUM), 301 * ROWS);
    }
    shared.checkpoint_and_restart(ANY, Some(ANY)).unwrap();
    assert_eq!((shared.status().wal_frames, shared.status().readers_ended), (0, 2));
    for reader in &readers {
        assert_eq!(read(reader), READER_ENDED);
    }
    db.execute("INSERT INTO u VALUES (1)", []).unwrap();
    alone.execute_batch("PRAGMA shrink_memory").unwrap();
    assert_eq!(number(&alone, SUM), 301 * ROWS, "who reads the main file alone is no obstacle");
    drop(alone);
    stage.compare("app");
}

/// SQLite asks for another read lock when a writer that reads the main file alone writes its first frame.
#[test]
fn who_was_ended_gets_no_other_read_lock() {
    let (stage, _) = stage();
    let mut twin = stage.twin("app");
    assert!(checkpointed(&stage));
    let other = stage.connect("app");
    // The pages stay in its cache until the commit.
    other.execute_batch("BEGIN; UPDATE t SET v = randomblob(900) WHERE id < 5").unwrap();
    twin.write_and_apply(&stage, "UPDATE t SET v = randomblob(301)");
    let shared = stage.database("app");
    assert_eq!(shared.counters.fences.load(Ordering::Relaxed), 1);
    assert_eq!(shared.end_oldest_readers(ANY), 1);
    assert_eq!(code(other.execute_batch("COMMIT")), READER_ENDED);
    twin.write_and_apply(&stage, "UPDATE t SET v = randomblob(302)");
    assert!(checkpointed(&stage), "it holds nothing");
    assert!(other.is_autocommit(), "SQLite rolled it back");
    assert_eq!(number(&other, SUM), 302 * ROWS);
    stage.compare("app");
}

/// A statement that was begun before keeps the transaction that it was begun in.
#[test]
fn the_next_transaction_of_an_ended_reader_begins_when_its_statements_are_reset() {
    let (stage, db) = stage();
    let old = stage.connect("app");
    let mut first = old.prepare("SELECT length(v) FROM t ORDER BY id").unwrap();
    let mut rows = first.query([]).unwrap();
    rows.next().unwrap().unwrap();
    db.execute("UPDATE t SET v = randomblob(301)", []).unwrap();
    assert_eq!(stage.database("app").end_oldest_readers(ANY), 1);
    assert!(checkpointed(&stage));
    assert_eq!(read(&old), READER_ENDED);
    assert_eq!(read(&old), READER_ENDED, "the first statement is still in the middle of its transaction");
    drop(rows);
    drop(first);
    assert_eq!(number(&old, SUM), 301 * ROWS);
    stage.compare("app");
}

/// It holds no mark in the WAL, and no page of the main file may be written before it has ended.
#[test]
fn who_reads_the_main_file_alone_is_ended_too() {
    let (stage, db) = stage();
    assert!(checkpointed(&stage));
    let old = reader(&stage);
    db.execute("UPDATE t SET v = randomblob(301)", []).unwrap();
    let shared = stage.database("app");
    assert_eq!(shared.checkpoint().unwrap(), Checkpoint::Blocked);
    assert_eq!(shared.end_oldest_readers(ANY), 1);
    assert!(checkpointed(&stage));
    assert_eq!(read(&old), READER_ENDED);
    assert_eq!(number(&old, SUM), 301 * ROWS);
    stage.compare("app");
}

/// Shows INV-V8.
#[test]
fn who_holds_the_write_lock_is_left_in_peace_and_who_was_ended_does_not_get_it() {
    let (stage, db) = stage();
    db.execute_batch("BEGIN IMMEDIATE; INSERT INTO u VALUES (1)").unwrap();
    let old = reader(&stage);
    let shared = stage.database("app");
    assert_eq!(shared.end_oldest_readers(ANY), 1);
    db.execute_batch("COMMIT").unwrap();
    // The state that it has read is the newest, and still it must not write on it.
    let other = reader(&stage);
    assert_eq!(shared.end_oldest_readers(ANY), 1);
    for ended in [&old, &other] {
        assert_eq!(code(ended.execute("INSERT INTO u VALUES (2)", [])), READER_ENDED);
        assert!(ended.is_autocommit());
        ended.execute("INSERT INTO u VALUES (3)", []).unwrap();
    }
    assert_eq!(number(&db, "SELECT sum(x) FROM u"), 7);
    stage.compare("app");
}

/// A fence takes WRITE alone: its snapshot stays, and with it all of the WAL.
#[test]
fn a_writer_that_was_fenced_is_ended_like_a_reader() {
    for rolled_back in [false, true] {
        let (stage, db) = stage();
        let mut twin = stage.twin("app");
        let other = stage.connect("app");
        other.execute_batch("BEGIN; UPDATE t SET v = randomblob(900) WHERE id < 20").unwrap();
        twin.write_and_apply(&stage, "UPDATE t SET v = randomblob(301)");
        let shared = stage.database("app");
        assert_eq!(shared.counters.fences.load(Ordering::Relaxed), 1);
        assert!(!checkpointed(&stage));
        assert_eq!(shared.end_oldest_readers(ANY), 1);
        assert!(checkpointed(&stage));
        twin.write_and_apply(&stage, "UPDATE t SET v = randomblob(302)");
        if !rolled_back {
            let refused = code(other.execute_batch("UPDATE t SET v = randomblob(901); COMMIT"));
            assert!([READER_ENDED, NOT_COMMITTED].contains(&refused), "{refused}");
        }
        if !other.is_autocommit() {
            other.execute_batch("ROLLBACK").unwrap();
        }
        assert_eq!(number(&other, SUM), 302 * ROWS);
        drop(other);
        db.execute("INSERT INTO u VALUES (1)", []).unwrap();
        stage.compare("app");
    }
}

/// Reads of every page, checkpoints, new laps and ends at any moment: each sum is that of one state.
///
/// Shows INV-V8.
#[test]
fn readers_that_are_ended_at_any_moment_see_one_state_or_an_error() {
    let (stage, db) = stage();
    let (ended, whole) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for _ in 0..2 {
            let reader = stage.connect("app");
            let (over, ended, whole) = (&over, &ended, &whole);
            readers.push(scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    reader.execute_batch("BEGIN").unwrap();
                    for _ in 0..3 {
                        reader.execute_batch("PRAGMA shrink_memory").unwrap();
                        let lengths = "SELECT min(length(v)), max(length(v)), count(*) FROM t";
                        match reader.query_row(lengths, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))) {
                            Ok((low, high, rows)) => {
                                let (low, high, rows): (i64, i64, i64) = (low, high, rows);
                                assert_eq!((low, rows), (high, ROWS), "of two states");
                                whole.fetch_add(1, Ordering::Relaxed);
                            }
                            error => {
                                assert_eq!(code(error), READER_ENDED);
                                ended.fetch_add(1, Ordering::Relaxed);
                                break;
                            }
                        }
                    }
                    if !reader.is_autocommit() {
                        reader.execute_batch("ROLLBACK").unwrap();
                    }
                }
            }));
        }
        let shared = stage.database("app");
        let mut length = 300;
        let enough = || ended.load(Ordering::Relaxed) >= 50 && whole.load(Ordering::Relaxed) >= 50;
        while !enough() && readers.iter().all(|reader| !reader.is_finished()) {
            length += 1;
            db.execute("UPDATE t SET v = randomblob(?1)", [300 + length % 50]).unwrap();
            shared.end_oldest_readers(ANY);
            shared.checkpoint().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    stage.compare("app");
}
