//! Linearizable reads: one barrier per read transaction, in front of the snapshot, never under the write lock.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use rusqlite::{Connection, ffi};
use shoaldb_vfs::error::{READ_UNCONFIRMED, Refusal};
use support::{Noon, Stage, code, number};

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

fn barriers(stage: &Stage) -> u64 {
    stage.replicator.barriers.load(Ordering::Relaxed)
}

fn linearizable(stage: &Stage) -> Connection {
    stage.connect_with("app", "&read=linearizable")
}

#[test]
fn each_read_transaction_passes_one_barrier_and_local_ones_none() {
    let stage = Stage::new();
    let local = stage.connect("app");
    local.execute_batch(TABLE).unwrap();
    number(&local, "SELECT count(*) FROM t");
    assert_eq!(barriers(&stage), 0);
    let db = linearizable(&stage);
    number(&db, "SELECT count(*) FROM t");
    for read in 1..5 {
        let before = barriers(&stage);
        number(&db, "SELECT count(*) FROM t");
        assert_eq!(barriers(&stage), before + 1, "read {read}");
    }
    let before = barriers(&stage);
    db.execute_batch("BEGIN; SELECT * FROM t; SELECT * FROM t; INSERT INTO t(v) VALUES (1); SELECT * FROM t; COMMIT")
        .unwrap();
    assert_eq!(barriers(&stage), before + 1);
    db.query_row("PRAGMA shoal_read_level = local", [], |_| Ok(())).unwrap();
    number(&db, "SELECT count(*) FROM t");
    assert_eq!(barriers(&stage), before + 1);
    local.query_row("PRAGMA shoal_read_level = linearizable", [], |_| Ok(())).unwrap();
    number(&local, "SELECT count(*) FROM t");
    assert_eq!(barriers(&stage), before + 2);
    stage.compare("app");
}

/// What the barrier waited for arrives during the barrier: SQLite notices that the header moved and asks again. However late
/// it does here: the clock stands still.
fn reads_during_barriers(before_each: impl Fn(&Stage)) {
    let stage = Stage::with_clock(Arc::new(Noon));
    stage.connect("app").execute_batch(TABLE).unwrap();
    let mut twin = stage.twin("app");
    let db = linearizable(&stage);
    number(&db, "SELECT count(*) FROM t");
    for read in 1..20 {
        before_each(&stage);
        let (transaction, position) = twin.write(&stage, "INSERT INTO t(v) VALUES (1)");
        let (database, before) = (stage.database("app"), barriers(&stage));
        *stage.replicator.barrier.lock() = Some(Box::new(move |_| {
            if database.position() < position {
                database.apply(&transaction, position).unwrap();
            }
            Ok(())
        }));
        assert_eq!(number(&db, "SELECT count(*) FROM t"), read);
        assert_eq!(barriers(&stage), before + 1, "read {read}");
    }
    *stage.replicator.barrier.lock() = None;
    stage.compare("app");
}

#[test]
fn a_read_sees_what_was_applied_during_its_barrier_and_asks_only_once() {
    reads_during_barriers(|_| {});
}

/// The same where nothing is in the WAL when the read begins: it would read the main file alone.
#[test]
fn a_read_of_the_main_file_alone_sees_what_was_applied_during_its_barrier() {
    reads_during_barriers(|stage| {
        stage.database("app").checkpoint().unwrap();
        assert_eq!(stage.database("app").status().wal_frames, 0);
    });
}

/// The first write on an empty WAL makes SQLite change its read lock while it holds WRITE. A barrier there would wait for
/// an applier that waits for WRITE.
#[test]
fn no_barrier_is_passed_under_the_write_lock() {
    let stage = Stage::new();
    let db = linearizable(&stage);
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    *stage.replicator.barrier.lock() = Some(Box::new(|_| Err(Refusal::ReadUnconfirmed)));
    db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (1); COMMIT")).unwrap();
    *stage.replicator.barrier.lock() = None;
    assert_eq!(number(&db, "SELECT count(*) FROM t"), 1);
    stage.compare("app");
}

#[test]
fn a_barrier_that_is_refused_fails_the_read_at_once() {
    let stage = Stage::new();
    let empty = linearizable(&stage);
    for written in [false, true] {
        for (refusal, expected) in [
            (Refusal::ReadUnconfirmed, READ_UNCONFIRMED),
            (Refusal::NodeStopped, Refusal::NodeStopped.code()),
            // Not allowed as an answer, since SQLite would try for ten seconds.
            (Refusal::Busy, READ_UNCONFIRMED),
        ] {
            *stage.replicator.barrier.lock() = Some(Box::new(move |_| Err(refusal)));
            let before = barriers(&stage);
            let read = empty.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
            assert_eq!(code(read), expected, "{refusal:?}, written {written}");
            assert_eq!(barriers(&stage), before + 1);
        }
        *stage.replicator.barrier.lock() = None;
        stage.connect("app").execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)").unwrap();
    }
    assert_eq!(number(&empty, "SELECT count(*) FROM sqlite_schema"), 1);
    stage.compare("app");
}

#[test]
fn a_read_that_waits_for_its_barrier_can_be_interrupted() {
    let stage = Stage::new();
    stage.connect("app").execute_batch(TABLE).unwrap();
    let db = linearizable(&stage);
    let handle = db.get_interrupt_handle();
    let (entered, has_entered) = mpsc::channel();
    *stage.replicator.barrier.lock() = Some(Box::new(move |interrupted| {
        entered.send(()).unwrap();
        while !interrupted() {
            std::thread::yield_now();
        }
        Err(Refusal::Interrupted)
    }));
    let reader = std::thread::spawn(move || code(db.query_row("SELECT count(*) FROM t", [], |_| Ok(()))));
    has_entered.recv().unwrap();
    handle.interrupt();
    assert_eq!(reader.join().unwrap(), ffi::SQLITE_INTERRUPT);
    *stage.replicator.barrier.lock() = None;
    stage.compare("app");
}
