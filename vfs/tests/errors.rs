//! What a refusal means to the application: the code it sees, that nothing became visible, and that it can go on.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, MAIN_DB, ffi};
use shoaldb_vfs::error::{
    DAMAGED, DROPPED, NO_ROOM, NODE_STOPPED, NOT_COMMITTED, NOT_KEPT, READ_UNCONFIRMED, Refusal, SECOND_WRITER,
    TOO_LARGE, UNKNOWN, not_leader,
};
use support::{Stage, code, number, spill};

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

/// Every refusal as the answer to a commit, and what the application sees. A plain `SQLITE_BUSY` would keep the
/// transaction open with a broken chain of checksums, so that one is told in other words.
const VERDICTS: [(Refusal, i32); 16] = [
    (Refusal::Busy, NOT_COMMITTED),
    (Refusal::NotLeader(None), not_leader(0)),
    (Refusal::NotLeader(Some(7)), not_leader(7)),
    (Refusal::NotCommitted, NOT_COMMITTED),
    (Refusal::Unknown, UNKNOWN),
    (Refusal::TooLarge, TOO_LARGE),
    (Refusal::NoRoom, NO_ROOM),
    (Refusal::NotKept, NOT_KEPT),
    (Refusal::Damaged, DAMAGED),
    (Refusal::Dropped, DROPPED),
    (Refusal::NodeStopped, NODE_STOPPED),
    (Refusal::ReadUnconfirmed, READ_UNCONFIRMED),
    (Refusal::Interrupted, ffi::SQLITE_INTERRUPT),
    (Refusal::CannotOpen, ffi::SQLITE_CANTOPEN),
    (Refusal::SecondWriter, SECOND_WRITER),
    (Refusal::Io, ffi::SQLITE_IOERR),
];

/// Shows INV-17 and INV-V2.
#[test]
fn a_refused_commit_is_gone_and_the_connection_goes_on() {
    for (refusal, expected) in VERDICTS {
        let shapes = ["first", "autocommit", "explicit", "spilled", "padded"];
        for (shape, recovers) in shapes.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
            let what = format!("{refusal:?}, {shape}, {recovers}");
            let stage = Stage::new();
            let db = stage.connect_with("app", if shape == "padded" { "&psow=0" } else { "" });
            db.execute_batch("PRAGMA synchronous = FULL").unwrap();
            if shape == "first" {
                stage.refuse_next(refusal);
                assert_eq!(code(db.execute_batch(TABLE)), expected, "{what}");
            }
            db.execute_batch(TABLE).unwrap();
            db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
            let other = stage.connect("app");
            match shape {
                "explicit" => {
                    db.execute_batch("BEGIN; INSERT INTO t(v) VALUES (2); INSERT INTO t(v) VALUES (3)").unwrap()
                }
                "spilled" => {
                    db.execute_batch("BEGIN").unwrap();
                    spill(&db, 300);
                }
                _ => {}
            }
            stage.refuse_next(refusal);
            let sql = if db.is_autocommit() { "INSERT INTO t(v) VALUES (2)" } else { "COMMIT" };
            assert_eq!(code(db.execute_batch(sql)), expected, "{what}");
            assert!(db.is_autocommit(), "{what}");
            assert_eq!(number(&other, "SELECT count(*) FROM t"), 1, "{what}");
            assert_eq!(number(&db, "SELECT count(*) FROM t"), 1, "{what}");
            if recovers {
                // This lets the wal-index be made anew from the WAL.
                stage.compare("app");
                assert_eq!(number(&other, "SELECT count(*) FROM t"), 1, "after recovery, {what}");
            }
            db.execute("INSERT INTO t(v) VALUES (2)", []).unwrap();
            assert_eq!(stage.commits("app"), 3, "{what}");
            stage.compare("app");
        }
    }
}

#[test]
fn a_failed_schema_change_leaves_the_old_schema() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (1), (2)")).unwrap();
    for sql in [
        "CREATE TABLE u(x)",
        "ALTER TABLE t ADD COLUMN w DEFAULT 5",
        "CREATE INDEX tv ON t(v)",
        "DROP TABLE t",
        "VACUUM",
    ] {
        stage.refuse_next(Refusal::NotCommitted);
        assert_eq!(code(db.execute_batch(sql)), NOT_COMMITTED, "{sql}");
        assert_eq!(number(&db, "SELECT count(*) FROM sqlite_schema"), 1, "{sql}");
        assert_eq!(number(&db, "SELECT count(*) FROM pragma_table_info('t')"), 2, "{sql}");
        assert_eq!(number(&db, "SELECT sum(v) FROM t"), 3, "{sql}");
        stage.compare("app");
        db.execute_batch(sql).unwrap();
        if sql == "DROP TABLE t" {
            db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (1), (2)")).unwrap();
        }
        db.execute_batch("DROP TABLE IF EXISTS u; DROP INDEX IF EXISTS tv").unwrap();
        if sql.starts_with("ALTER") {
            db.execute_batch("ALTER TABLE t DROP COLUMN w").unwrap();
        }
    }
    stage.compare("app");
}

#[test]
fn an_open_select_runs_on_after_a_failed_commit() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    spill(&db, 500);
    for refusal in [Refusal::NotCommitted, Refusal::Unknown] {
        let mut select = db.prepare("SELECT id, length(v) FROM t ORDER BY id").unwrap();
        let mut rows = select.query([]).unwrap();
        rows.next().unwrap().unwrap();
        stage.refuse_next(refusal);
        assert_eq!(code(db.execute("INSERT INTO t(id, v) VALUES (100000, 2)", [])), refusal.code());
        let mut seen = 1;
        while let Some(row) = rows.next().unwrap() {
            assert_eq!(row.get::<_, i64>(1).unwrap(), 300);
            seen += 1;
        }
        assert_eq!(seen, 500);
    }
    stage.compare("app");
}

#[test]
fn a_blob_reports_a_commit_that_failed_when_it_is_closed() {
    use std::io::Write;
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (zeroblob(10000))")).unwrap();
    let mut blob = db.blob_open(MAIN_DB, "t", "v", 1, false).unwrap();
    blob.write_all(b"shoal").unwrap();
    stage.refuse_next(Refusal::NotCommitted);
    assert_eq!(code(blob.close()), NOT_COMMITTED);
    assert_eq!(number(&db, "SELECT v = zeroblob(10000) FROM t"), 1);
    stage.compare("app");
}

#[test]
fn a_release_that_fails_keeps_the_transaction_until_it_is_rolled_back() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; SAVEPOINT s; INSERT INTO t(v) VALUES (1)")).unwrap();
    stage.refuse_next(Refusal::NotCommitted);
    assert_eq!(code(db.execute_batch("RELEASE s")), NOT_COMMITTED);
    assert!(!db.is_autocommit());
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 0);
    db.execute_batch("ROLLBACK").unwrap();
    db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    stage.compare("app");
}

/// A refused RELEASE leaves a transaction open; whoever uses these types is left in none, and may go on at once.
#[test]
fn savepoints_and_transactions_of_rusqlite_leave_nothing_open_behind_a_refused_commit() {
    let stage = Stage::new();
    let mut db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    const INSERT: &str = "INSERT INTO t(v) VALUES (1)";
    for (round, refusal) in [Refusal::NotCommitted, Refusal::Unknown, Refusal::NoRoom].into_iter().enumerate() {
        let before = stage.commits("app");
        let savepoint = db.savepoint().unwrap();
        savepoint.execute_batch(INSERT).unwrap();
        stage.refuse_next(refusal);
        assert_eq!(code(savepoint.commit()), refusal.code(), "a savepoint, {refusal:?}");
        assert!(db.is_autocommit(), "a savepoint, {refusal:?}");

        let transaction = db.transaction().unwrap();
        transaction.execute_batch(INSERT).unwrap();
        stage.refuse_next(refusal);
        assert_eq!(code(transaction.commit()), refusal.code(), "a transaction, {refusal:?}");
        assert!(db.is_autocommit(), "a transaction, {refusal:?}");

        // One within the other: the inner one is committed with the outer one or not at all.
        let mut transaction = db.transaction().unwrap();
        let mut savepoint = transaction.savepoint().unwrap();
        let inner = savepoint.savepoint().unwrap();
        inner.execute_batch(INSERT).unwrap();
        inner.commit().unwrap();
        savepoint.execute_batch(INSERT).unwrap();
        savepoint.commit().unwrap();
        stage.refuse_next(refusal);
        assert_eq!(code(transaction.commit()), refusal.code(), "both, {refusal:?}");
        assert!(db.is_autocommit(), "both, {refusal:?}");

        assert_eq!(stage.commits("app"), before);
        assert_eq!(number(&db, "SELECT count(*) FROM t"), 2 * round as i64);
        assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 2 * round as i64);
        // Before anything else takes the place of what was refused.
        stage.compare("app");
        let mut savepoint = db.savepoint().unwrap();
        savepoint.execute_batch(INSERT).unwrap();
        savepoint.rollback().unwrap();
        savepoint.execute_batch(INSERT).unwrap();
        savepoint.commit().unwrap();
        db.execute(INSERT, []).unwrap();
        assert_eq!(stage.commits("app"), before + 2);
    }
    stage.compare("app");
}

fn counting_busy_handler(db: &mut Connection) -> Arc<AtomicU64> {
    static CALLS: std::sync::OnceLock<Arc<AtomicU64>> = std::sync::OnceLock::new();
    let calls = CALLS.get_or_init(Arc::default);
    db.busy_handler(Some(|count| {
        CALLS.get().unwrap().fetch_add(1, Ordering::Relaxed);
        count < 3
    }))
    .unwrap();
    calls.clone()
}

#[test]
fn a_write_lock_that_is_refused_asks_the_busy_handler_only_when_waiting_may_help() {
    let stage = Stage::new();
    let mut db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    let calls = counting_busy_handler(&mut db);
    let before = stage.commits("app");
    for (refusal, handled) in [
        (Refusal::NotLeader(Some(3)), 0),
        (Refusal::NotLeader(None), 0),
        (Refusal::Dropped, 0),
        (Refusal::NodeStopped, 0),
        (Refusal::Unknown, 0),
        (Refusal::Busy, 4),
    ] {
        *stage.replicator.refuse_write.lock() = Some(refusal);
        for sql in ["INSERT INTO t(v) VALUES (1)", "BEGIN IMMEDIATE", "BEGIN; INSERT INTO t(v) VALUES (1)"] {
            calls.store(0, Ordering::Relaxed);
            assert_eq!(code(db.execute_batch(sql)), refusal.code(), "{refusal:?}, {sql}");
            assert_eq!(calls.load(Ordering::Relaxed), handled, "{refusal:?}, {sql}");
            if !db.is_autocommit() {
                db.execute_batch("ROLLBACK").unwrap();
            }
        }
        assert_eq!(number(&db, "SELECT count(*) FROM t"), 0);
    }
    assert_eq!(stage.commits("app"), before);
    // Without a busy handler the answer comes at once.
    db.busy_timeout(Duration::ZERO).unwrap();
    *stage.replicator.refuse_write.lock() = Some(Refusal::Busy);
    let acquires = stage.replicator.acquires.load(Ordering::Relaxed);
    assert_eq!(code(db.execute("INSERT INTO t(v) VALUES (1)", [])), ffi::SQLITE_BUSY);
    assert_eq!(stage.replicator.acquires.load(Ordering::Relaxed), acquires + 1);
    *stage.replicator.refuse_write.lock() = None;
    db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    stage.compare("app");
}

#[test]
fn a_snapshot_that_is_too_old_to_write_says_so() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    db.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    let mut twin = stage.twin("app");
    twin.write_and_apply(&stage, "INSERT INTO t(v) VALUES (1)");
    assert_eq!(code(db.execute("INSERT INTO t(v) VALUES (2)", [])), ffi::SQLITE_BUSY_SNAPSHOT);
    db.execute_batch("ROLLBACK; INSERT INTO t(v) VALUES (2)").unwrap();
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 2);
    stage.compare("app");
}

#[test]
fn a_panic_of_the_replicator_is_an_error_of_the_statement() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    for sql in ["INSERT INTO t(v) VALUES (1)", "BEGIN; INSERT INTO t(v) VALUES (1); COMMIT"] {
        stage.answer_next(|_, _, _| panic!("a test wants this panic"));
        assert_eq!(code(db.execute_batch(sql)) & 0xff, ffi::SQLITE_IOERR);
        assert!(db.is_autocommit());
        assert_eq!(number(&db, "SELECT count(*) FROM t"), 0);
        // Nothing is left in the WAL that a recovery could find.
        stage.compare("app");
    }
    *stage.replicator.barrier.lock() = Some(Box::new(|_| panic!("a test wants this panic")));
    let reader = stage.connect_with("app", "&read=linearizable");
    assert_eq!(code(reader.query_row("SELECT count(*) FROM t", [], |_| Ok(()))) & 0xff, ffi::SQLITE_IOERR);
    drop(reader);
    db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    stage.compare("app");
}

#[test]
fn a_retired_database_says_why() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    let database = stage.database("app");
    db.execute_batch("BEGIN IMMEDIATE; INSERT INTO t(v) VALUES (1)").unwrap();
    database.retire(Refusal::Dropped);
    database.retire(Refusal::NodeStopped);
    assert_eq!(database.retired(), Some(Refusal::Dropped));
    assert_eq!(code(db.execute_batch("COMMIT")), DROPPED, "the first reason stays");
    assert_eq!(code(db.query_row("SELECT count(*) FROM t", [], |_| Ok(()))), DROPPED);
    assert_eq!(code(db.execute("INSERT INTO t(v) VALUES (1)", [])), DROPPED);
    assert_eq!(stage.commits("app"), 1);
}
