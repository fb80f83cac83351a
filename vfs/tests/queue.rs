//! Writers of one database: in order of arrival, and readers that repair do not count among them.

mod support;

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ffi};
use shoaldb_vfs::error::Refusal;
use support::{Noon, Stage, code, number};

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

/// Not only fair shares: nobody is overtaken by whoever came later, not even by who finds the lock free.
#[test]
fn writers_come_in_order_of_arrival_and_newcomers_behind_them() {
    const WRITERS: i64 = 6;
    let stage = Stage::with_clock(Arc::new(Noon));
    let holder = stage.connect("app");
    holder.execute_batch(TABLE).unwrap();
    holder.busy_timeout(Duration::from_secs(60)).unwrap();
    for _ in 0..10 {
        holder.execute_batch("DELETE FROM t; BEGIN IMMEDIATE").unwrap();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let db = stage.connect("app");
                db.busy_timeout(Duration::from_secs(60)).unwrap();
                scope.spawn(move || db.execute("INSERT INTO t(v) VALUES (?1)", [writer]).unwrap());
                while (stage.database("app").status().writers_waiting as i64) <= writer {
                    std::thread::yield_now();
                }
            }
            holder.execute_batch("COMMIT").unwrap();
            holder.execute("INSERT INTO t(v) VALUES (?1)", [WRITERS]).unwrap();
        });
        let mut rows = holder.prepare("SELECT v FROM t ORDER BY id").unwrap();
        let order: Vec<i64> = rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(order, (0..=WRITERS).collect::<Vec<_>>());
    }
    assert_eq!(stage.database("app").status().writers_waiting, 0);
    stage.compare("app");
}

#[test]
fn every_writer_gets_its_share() {
    const THREADS: usize = 8;
    let stage = Stage::with_clock(Arc::new(Noon));
    stage.connect("app").execute_batch(TABLE).unwrap();
    let (start, stop) = (Arc::new(Barrier::new(THREADS)), Arc::new(AtomicBool::new(false)));
    let (replicator, over) = (stage.replicator.clone(), stop.clone());
    *stage.replicator.handler.lock() = Some(Arc::new(move |db, session, transaction| {
        // A commit takes until all others wait for their turn: no thread that the system did not let run has less for that.
        while db.status().writers_waiting < THREADS - 1 && !over.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        Ok(replicator.acknowledge(db, session, transaction))
    }));
    let total = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let db = stage.connect("app");
            let (start, stop, total) = (start.clone(), stop.clone(), total.clone());
            std::thread::spawn(move || {
                start.wait();
                let mut mine = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
                    mine += 1;
                    if total.fetch_add(1, Ordering::Relaxed) >= 800 {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                mine
            })
        })
        .collect();
    let shares: Vec<u64> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let average = shares.iter().sum::<u64>() / THREADS as u64;
    assert!(shares.iter().all(|share| *share >= average / 4), "{shares:?}");
    stage.compare("app");
}

#[test]
fn a_busy_timeout_ends_while_another_connection_writes() {
    let stage = Stage::new();
    let (a, b) = (stage.connect("app"), stage.connect("app"));
    a.execute_batch(TABLE).unwrap();
    a.execute_batch("BEGIN IMMEDIATE").unwrap();
    b.busy_timeout(Duration::from_millis(150)).unwrap();
    let start = Instant::now();
    assert_eq!(code(b.execute("INSERT INTO t(v) VALUES (1)", [])), ffi::SQLITE_BUSY);
    assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
    b.busy_timeout(Duration::ZERO).unwrap();
    assert_eq!(code(b.execute("INSERT INTO t(v) VALUES (1)", [])), ffi::SQLITE_BUSY);
    a.execute_batch("COMMIT").unwrap();
    b.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    stage.compare("app");
}

/// Which VFS [`sleeps_long`] sleeps through.
static SLEEPS_THROUGH: OnceLock<CString> = OnceLock::new();

/// A busy handler like SQLite's own, which sleeps for a tenth of a second at most, and looks again: a writer that nobody
/// wakes comes late and is not missed. This one sleeps for half an hour.
#[allow(unsafe_code)]
fn sleeps_long(_: i32) -> bool {
    const HALF_AN_HOUR: i32 = 1_800_000_000;
    let name = SLEEPS_THROUGH.get().expect("set before the first sleep");
    // SAFETY: the name is zero-terminated; a VFS that was found stays where it is, and its xSleep is one of SQLite's contract.
    unsafe {
        let vfs = ffi::sqlite3_vfs_find(name.as_ptr());
        (*vfs).xSleep.expect("a VFS sleeps")(vfs, HALF_AN_HOUR);
    }
    true
}

#[test]
fn a_waiting_writer_is_woken_when_the_lock_is_free() {
    let stage = Stage::new();
    SLEEPS_THROUGH.set(CString::new(stage.vfs()).unwrap()).unwrap();
    let (a, mut b) = (stage.connect("app"), stage.connect("app"));
    a.execute_batch(TABLE).unwrap();
    b.busy_handler(Some(sleeps_long)).unwrap();
    for _ in 0..20 {
        a.execute_batch("BEGIN IMMEDIATE; INSERT INTO t(v) VALUES (1)").unwrap();
        let (tell, told) = mpsc::channel();
        // On a thread that nobody joins: who is not woken sleeps on.
        std::thread::spawn(move || {
            let inserted = b.execute("INSERT INTO t(v) VALUES (2)", []).map(|_| ());
            tell.send((b, inserted)).unwrap();
        });
        while stage.database("app").status().writers_waiting == 0 {
            std::thread::yield_now();
        }
        a.execute_batch("COMMIT").unwrap();
        let (back, inserted) = told.recv_timeout(Duration::from_secs(60)).expect("nobody woke the writer that waits");
        inserted.unwrap();
        b = back;
    }
    assert_eq!(number(&a, "SELECT count(*) FROM t"), 40);
    stage.compare("app");
}

/// A connection without a busy handler was refused and went away; its ticket kept the free lock for it, and another
/// connection without one was told "database is locked" although nobody held the lock.
#[test]
fn a_lock_that_nobody_holds_or_waits_for_is_free() {
    let stage = Stage::new();
    let (a, b) = (stage.connect("app"), stage.connect("app"));
    a.execute_batch(TABLE).unwrap();
    for db in [&a, &b] {
        db.busy_timeout(Duration::ZERO).unwrap();
    }
    for _ in 0..50 {
        a.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(code(b.execute_batch("BEGIN IMMEDIATE")), ffi::SQLITE_BUSY);
        a.execute_batch("COMMIT; BEGIN IMMEDIATE; INSERT INTO t(v) VALUES (1); COMMIT").unwrap();
    }
    // The same after a snapshot that was too old: the application got its answer, nobody tries again by itself.
    let mut twin = stage.twin("app");
    b.execute_batch("BEGIN").unwrap();
    number(&b, "SELECT count(*) FROM t");
    twin.write_and_apply(&stage, "INSERT INTO t(v) VALUES (2)");
    assert_eq!(code(b.execute("INSERT INTO t(v) VALUES (3)", [])), ffi::SQLITE_BUSY_SNAPSHOT);
    a.execute("INSERT INTO t(v) VALUES (4)", []).unwrap();
    b.execute_batch("ROLLBACK").unwrap();
    stage.compare("app");
}

/// A reader that finds a torn wal-index header asks for WRITE to repair it. That is no wish to write: on a follower it
/// would be refused, and reading would be impossible.
#[test]
fn a_reader_that_repairs_does_not_ask_the_replicator() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    *stage.replicator.refuse_write.lock() = Some(shoaldb_vfs::error::Refusal::NotLeader(Some(2)));
    let acquires = stage.replicator.acquires.load(Ordering::Relaxed);
    for _ in 0..5 {
        stage.database("app").damage_index();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let db = stage.connect("app");
                scope.spawn(move || assert_eq!(number(&db, "SELECT count(*) FROM t"), 1));
            }
        });
    }
    assert_eq!(stage.replicator.acquires.load(Ordering::Relaxed), acquires);
    *stage.replicator.refuse_write.lock() = None;
    stage.compare("app");
}

/// What to interrupt is told by a channel: the call that waits has begun.
fn interrupted_once_it_waits(db: Connection, waits: &mpsc::Receiver<()>, sql: &'static str) -> (Connection, i32) {
    let handle = db.get_interrupt_handle();
    let writer = std::thread::spawn(move || {
        let result = code(db.execute_batch(sql));
        (db, result)
    });
    waits.recv().unwrap();
    handle.interrupt();
    writer.join().unwrap()
}

#[test]
fn a_write_that_waits_for_permission_can_be_interrupted() {
    let stage = Stage::new();
    stage.connect("app").execute_batch(TABLE).unwrap();
    for sql in ["INSERT INTO t(v) VALUES (1)", "BEGIN IMMEDIATE", "BEGIN; INSERT INTO t(v) VALUES (1)"] {
        let (asks, has_asked) = mpsc::channel();
        *stage.replicator.acquire.lock() = Some(Box::new(move |interrupted| {
            asks.send(()).unwrap();
            let patience = Instant::now() + Duration::from_secs(60);
            while !interrupted() {
                if Instant::now() > patience {
                    return Err(Refusal::Unknown);
                }
                std::thread::yield_now();
            }
            Err(Refusal::Interrupted)
        }));
        let (db, result) = interrupted_once_it_waits(stage.connect("app"), &has_asked, sql);
        assert_eq!(result, ffi::SQLITE_INTERRUPT, "{sql}");
        *stage.replicator.acquire.lock() = None;
        if !db.is_autocommit() {
            db.execute_batch("ROLLBACK").unwrap();
        }
        db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    }
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 3);
    stage.compare("app");
}

/// SQLite's busy handler does not look at the interrupt by itself: the writer stayed in the queue until its time was up.
#[test]
fn a_writer_in_the_queue_can_be_interrupted() {
    let stage = Stage::new();
    let holder = stage.connect("app");
    holder.execute_batch(&format!("{TABLE}; BEGIN IMMEDIATE; INSERT INTO t(v) VALUES (1)")).unwrap();
    for sql in ["INSERT INTO t(v) VALUES (2)", "BEGIN IMMEDIATE"] {
        let db = stage.connect("app");
        // Far beyond what the test takes; when it is over, the answer is "busy".
        db.busy_timeout(Duration::from_secs(60)).unwrap();
        let (asks, has_asked) = mpsc::channel();
        let times = AtomicU64::new(0);
        *stage.replicator.acquire.lock() = Some(Box::new(move |_| {
            // The second request is the first that comes from the busy handler: there is a ticket in the queue.
            if times.fetch_add(1, Ordering::Relaxed) == 1 {
                asks.send(()).unwrap();
            }
            Ok(())
        }));
        let (db, result) = interrupted_once_it_waits(db, &has_asked, sql);
        assert_eq!(result, ffi::SQLITE_INTERRUPT, "{sql}");
        assert!(db.is_autocommit());
        *stage.replicator.acquire.lock() = None;
    }
    // It left the queue: nobody is held off by it, and the holder was never concerned.
    holder.execute_batch("COMMIT").unwrap();
    stage.connect("app").execute("INSERT INTO t(v) VALUES (3)", []).unwrap();
    assert_eq!(number(&holder, "SELECT sum(v) FROM t"), 4);
    stage.compare("app");
}

/// Whether a proposed transaction is committed is not ours to say: the interrupt waits for the outcome, and the outcome
/// is what is answered.
#[test]
fn an_interrupt_does_not_end_a_commit_that_waits() {
    let stage = Stage::new();
    stage.connect("app").execute_batch(TABLE).unwrap();
    for (round, refusal) in [None, Some(Refusal::NotCommitted), Some(Refusal::Unknown)].into_iter().enumerate() {
        for sql in ["INSERT INTO t(v) VALUES (1)", "BEGIN; INSERT INTO t(v) VALUES (1); COMMIT"] {
            let db = stage.connect("app");
            let handle = db.get_interrupt_handle();
            let replicator = stage.replicator.clone();
            let (proposed, is_proposed) = mpsc::channel();
            let (go_on, may_go_on) = mpsc::channel::<()>();
            stage.answer_next(move |db, session, transaction| {
                proposed.send(()).unwrap();
                may_go_on.recv().unwrap();
                match refusal {
                    None => Ok(replicator.acknowledge(db, session, transaction)),
                    Some(refusal) => Err(refusal),
                }
            });
            let before = stage.commits("app");
            let writer = std::thread::spawn(move || {
                let result = code(db.execute_batch(sql));
                (db, result)
            });
            is_proposed.recv().unwrap();
            handle.interrupt();
            go_on.send(()).unwrap();
            let (db, result) = writer.join().unwrap();
            assert_eq!(result, refusal.map_or(0, Refusal::code), "round {round}, {sql}");
            assert!(db.is_autocommit());
            assert_eq!(stage.commits("app") - before, usize::from(refusal.is_none()));
            // The interrupt ended with the statement that it met.
            assert_eq!(number(&db, "SELECT count(*) FROM t"), stage.commits("app") as i64 - 1);
        }
    }
    stage.compare("app");
}
