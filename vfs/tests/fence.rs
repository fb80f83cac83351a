//! The applier never waits for a local transaction: it takes the write lock away, before and after the proposal.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rusqlite::Connection;
use shoaldb_vfs::database::ApplyError;
use shoaldb_vfs::error::{NOT_COMMITTED, Refusal, UNKNOWN};
use shoaldb_vfs::transaction::Position;
use support::{Stage, Twin, code, number, run, spill};

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

/// Tells a run of these tests, in a build with `--cfg shoal_planted`, which mistake it has.
#[cfg(shoal_planted)]
const PLANT: &str = "SHOAL_PLANT";

fn stage() -> (Stage, Connection, Twin) {
    #[cfg(shoal_planted)]
    if let Ok(mistake) = std::env::var(PLANT) {
        assert!(shoaldb_vfs::planted::select(&mistake), "no such mistake: {mistake}");
    }
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; CREATE TABLE u(v)")).unwrap();
    spill(&db, 300);
    let twin = stage.twin("app");
    (stage, db, twin)
}

fn fences(stage: &Stage) -> u64 {
    stage.database("app").counters.fences.load(Ordering::Relaxed)
}

fn detaches(stage: &Stage) -> u64 {
    stage.database("app").counters.detaches.load(Ordering::Relaxed)
}

#[test]
fn an_idle_write_transaction_does_not_stop_the_applier() {
    let (stage, db, mut twin) = stage();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    twin.write_and_apply(&stage, "INSERT INTO u VALUES (1)");
    assert_eq!(fences(&stage), 1);
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM u"), 1, "visible while the zombie is still open");
    assert_eq!(code(db.execute_batch("INSERT INTO t(v) VALUES (1); COMMIT")), NOT_COMMITTED);
    if !db.is_autocommit() {
        db.execute_batch("ROLLBACK").unwrap();
    }
    assert_eq!(number(&db, "SELECT count(*) FROM u"), 1);
    db.execute("INSERT INTO u VALUES (2)", []).unwrap();
    stage.compare("app");
}

/// SQLite's rollback clears entries of the hash table that it believes to be its own, without asking anybody: when only
/// the lock was taken away, it cleared those of the applier, and the copies differed although each was consistent. The
/// foreign transactions have other pages than the local one, and the last one comes in while the zombie is still open.
/// Shows INV-V1.
#[test]
fn the_rollback_of_a_fenced_writer_damages_nothing() {
    for spilled in [false, true] {
        for end in ["ROLLBACK", "COMMIT"] {
            let (stage, db, mut twin) = stage();
            db.execute_batch("BEGIN").unwrap();
            db.execute("UPDATE t SET v = randomblob(300) WHERE id < 20", []).unwrap();
            if spilled {
                spill(&db, 500);
            }
            for _ in 0..2 {
                twin.write_and_apply(&stage, "UPDATE t SET v = randomblob(300) WHERE id % 7 = 1");
            }
            assert_eq!(fences(&stage), 1);
            assert_eq!(code(db.execute_batch(end)), if end == "COMMIT" { NOT_COMMITTED } else { 0 });
            assert!(db.is_autocommit());
            assert_eq!(number(&db, "SELECT count(*) FROM t"), 300, "spilled {spilled}, {end}");
            stage.compare("app");
            db.execute_batch("BEGIN").unwrap();
            spill(&db, 300);
            db.execute_batch("COMMIT").unwrap();
            twin.write_and_apply(&stage, "DELETE FROM t WHERE id % 3 = 0");
            stage.compare("app");
        }
    }
}

/// The moment at which a rollback could hurt is in the middle of an apply: entries are in the hash table, the header does
/// not count them yet. Fence and rollback run against each other in two threads here.
/// Shows INV-V1.
#[test]
fn a_rollback_in_the_middle_of_an_apply_damages_nothing() {
    let (stage, db, mut twin) = stage();
    let mut db = Some(db);
    for round in 0..60 {
        let (transaction, position) = twin.write(&stage, "UPDATE t SET v = randomblob(300)");
        let local = db.take().unwrap();
        local.execute_batch("BEGIN").unwrap();
        if round % 2 == 0 {
            spill(&local, 200);
        } else {
            local.execute("UPDATE t SET v = 1 WHERE id = 1", []).unwrap();
        }
        let database = stage.database("app");
        let zombie = {
            let database = database.clone();
            let fenced = fences(&stage);
            std::thread::spawn(move || {
                while database.counters.fences.load(Ordering::Relaxed) == fenced {
                    std::hint::spin_loop();
                }
                local.execute_batch("ROLLBACK").unwrap();
                local
            })
        };
        database.apply(&transaction, position).unwrap();
        db = Some(zombie.join().unwrap());
    }
    stage.compare("app");
}

/// The same without a race: the rollback comes in exactly that moment. With a shared wal-index it clears what the applier
/// has just entered, and the copies differ although each is consistent.
/// Shows INV-V5.
#[test]
fn a_rollback_between_the_entries_of_an_apply_and_its_header_damages_nothing() {
    for spilled in [false, true] {
        for end in ["ROLLBACK", "COMMIT"] {
            let (stage, db, mut twin) = stage();
            db.execute_batch("BEGIN; INSERT INTO u VALUES (1)").unwrap();
            if spilled {
                spill(&db, 500);
            }
            let (transaction, position) = twin.write(&stage, "UPDATE t SET v = randomblob(300)");
            let zombie = Arc::new(Mutex::new(Some(db)));
            let hook = zombie.clone();
            stage.database("app").set_fault(Some(Arc::new(move |label| {
                if label == "apply.publish"
                    && let Some(db) = hook.lock().take()
                {
                    assert_eq!(code(db.execute_batch(end)), if end == "COMMIT" { NOT_COMMITTED } else { 0 });
                    assert!(db.is_autocommit());
                }
                false
            })));
            stage.database("app").apply(&transaction, position).unwrap();
            stage.database("app").set_fault(None);
            assert!(zombie.lock().is_none(), "the moment never came");
            assert_eq!(fences(&stage), 1);
            stage.compare("app");
        }
    }
}

/// A rollback reads pages again. When these reads failed for a fenced connection, SQLite trusted its page cache all the
/// same (it does not only after I/O errors; a debug build stops there): a statement that was open went on with pages of
/// the transaction that had been rolled back.
#[test]
fn a_fenced_transaction_reads_its_snapshot_and_writes_nothing() {
    for (rolled_back, spilled) in [(false, false), (false, true), (true, false), (true, true)] {
        let (stage, db, mut twin) = stage();
        db.execute_batch("PRAGMA cache_size = 5; BEGIN; INSERT INTO u VALUES (5)").unwrap();
        let mut select = db.prepare("SELECT length(v) FROM t ORDER BY id").unwrap();
        let mut rows = select.query([]).unwrap();
        rows.next().unwrap().unwrap();
        db.execute("UPDATE t SET v = randomblob(200) WHERE id > 280 OR id < 20", []).unwrap();
        if spilled {
            db.execute("UPDATE t SET v = randomblob(200)", []).unwrap();
        }
        twin.write_and_apply(&stage, "DELETE FROM t");
        if rolled_back {
            db.execute_batch("ROLLBACK").unwrap();
        }
        let mut seen = 1;
        let end = loop {
            match rows.next() {
                Ok(None) => break 0,
                // To make room in its cache SQLite may have to write a changed page.
                Err(error) => break code(Err::<(), _>(error)),
                Ok(Some(row)) => {
                    seen += 1;
                    let changed = !rolled_back && (spilled || !(20..=280).contains(&seen));
                    let expected = if changed { 200 } else { 300 };
                    assert_eq!(row.get::<_, i64>(0).unwrap(), expected, "row {seen}, spilled {spilled}");
                }
            }
        };
        assert!((end, seen) == (0, 300) || (!rolled_back && end == NOT_COMMITTED), "code {end} after row {seen}");
        drop(rows);
        drop(select);
        if !rolled_back {
            assert_eq!(code(db.execute_batch("UPDATE t SET v = randomblob(900); COMMIT")), NOT_COMMITTED);
            if !db.is_autocommit() {
                db.execute_batch("ROLLBACK").unwrap();
            }
        }
        assert_eq!(number(&db, "SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM u)"), 0);
        stage.compare("app");
    }
}

#[test]
fn savepoints_of_a_fenced_transaction_roll_back_in_private() {
    let (stage, db, mut twin) = stage();
    db.execute_batch("BEGIN").unwrap();
    spill(&db, 100);
    db.execute_batch("SAVEPOINT s").unwrap();
    spill(&db, 200);
    twin.write_and_apply(&stage, "UPDATE t SET v = 7");
    // Whether it can be rolled back depends on what the page cache still has; that it damages nothing does not.
    let _ = db.execute_batch("ROLLBACK TO s");
    twin.write_and_apply(&stage, "UPDATE t SET v = 8 WHERE id > 50");
    db.execute_batch("ROLLBACK").unwrap();
    assert_eq!(number(&db, "SELECT sum(v) FROM t"), 50 * 7 + 250 * 8);
    stage.compare("app");
}

/// With and without spilled pages, with and without padding.
fn shapes() -> impl Iterator<Item = (bool, &'static str)> {
    [false, true].into_iter().flat_map(|spilled| ["&psow=1", "&psow=0"].map(|psow| (spilled, psow)))
}

fn proposal(stage: &Stage, parameters: &str, spilled: bool) -> Connection {
    let db = stage.connect_with("app", parameters);
    db.execute_batch("PRAGMA synchronous = EXTRA; BEGIN; INSERT INTO u VALUES (1)").unwrap();
    if spilled {
        spill(&db, 300);
    }
    db
}

#[test]
fn a_detached_proposal_that_is_committed_is_published_by_the_applier() {
    for (spilled, psow) in shapes() {
        let (stage, _, mut twin) = stage();
        let db = proposal(&stage, psow, spilled);
        let replicator = stage.replicator.clone();
        stage.answer_next(move |db, session, transaction| {
            let position = replicator.next_position();
            replicator.record("app", position, transaction);
            db.apply(transaction, position).unwrap();
            assert!(!db.accept(session, position), "too late");
            assert!(db.give_up(session), "nothing to take back");
            Ok(position)
        });
        db.execute_batch("COMMIT").unwrap();
        let counters = &stage.database("app").counters;
        assert_eq!((detaches(&stage), fences(&stage), counters.heals.load(Ordering::Relaxed)), (1, 0, 0));
        let rows = if spilled { 600 } else { 300 };
        for reader in [&db, &stage.connect("app")] {
            assert_eq!(number(reader, "SELECT count(*) FROM t"), rows);
            assert_eq!(number(reader, "SELECT count(*) FROM u"), 1);
        }
        stage.compare("app");
        twin.write_and_apply(&stage, "INSERT INTO u VALUES (2)");
        db.execute("INSERT INTO u VALUES (3)", []).unwrap();
        assert_eq!(number(&db, "SELECT sum(v) FROM u"), 6);
        stage.compare("app");
    }
}

#[test]
fn a_detached_proposal_that_lost_reports_what_it_is_told() {
    for (spilled, psow) in shapes() {
        for refusal in [Refusal::NotCommitted, Refusal::Unknown, Refusal::Busy] {
            let (stage, _, mut twin) = stage();
            let db = proposal(&stage, psow, spilled);
            let (foreign, position) = twin.write(&stage, "INSERT INTO u VALUES (10)");
            stage.answer_next(move |db, _, _| {
                db.apply(&foreign, position).unwrap();
                Err(refusal)
            });
            let expected = if refusal == Refusal::Unknown { UNKNOWN } else { NOT_COMMITTED };
            assert_eq!(code(db.execute_batch("COMMIT")), expected);
            assert_eq!(detaches(&stage), 1);
            assert!(db.is_autocommit());
            for reader in [&db, &stage.connect("app")] {
                assert_eq!(number(reader, "SELECT sum(v) FROM u"), 10);
                assert_eq!(number(reader, "SELECT count(*) FROM t"), 300);
            }
            db.execute("INSERT INTO u VALUES (3)", []).unwrap();
            stage.compare("app");
        }
    }
}

/// The waiting commit's time was up (it said so), and only then the applier came: a debug build stopped there with a
/// failed assertion, so that the application saw a plain I/O error instead of "unknown".
/// Shows INV-12.
#[test]
fn a_proposal_that_was_given_up_may_be_fenced_and_still_be_committed() {
    let (stage, db, _) = stage();
    let replicator = stage.replicator.clone();
    stage.answer_next(move |db, session, transaction| {
        assert!(db.give_up(session));
        let position = replicator.next_position();
        assert!(!db.accept(session, position), "given up is given up");
        replicator.record("app", position, transaction);
        db.apply(transaction, position).unwrap();
        Err(Refusal::Unknown)
    });
    assert_eq!(code(db.execute("INSERT INTO u VALUES (1)", [])), UNKNOWN);
    assert_eq!(number(&db, "SELECT count(*) FROM u"), 1);
    stage.compare("app");
}

#[test]
fn a_statement_that_is_still_open_reads_its_own_snapshot_after_a_detached_commit() {
    let (stage, db, mut twin) = stage();
    db.execute_batch("PRAGMA cache_size = 5").unwrap();
    let mut select = db.prepare("SELECT v FROM t ORDER BY id").unwrap();
    let mut rows = select.query([]).unwrap();
    rows.next().unwrap().unwrap();
    let replicator = stage.replicator.clone();
    stage.answer_next(move |db, _, transaction| {
        let position = replicator.next_position();
        replicator.record("app", position, transaction);
        db.apply(transaction, position).unwrap();
        Ok(position)
    });
    // Many frames more than there are pages: the private WAL is longer than the one that the applier makes.
    db.execute_batch("BEGIN; UPDATE t SET v = randomblob(300); UPDATE u SET v = 0; INSERT INTO u VALUES (0)").unwrap();
    for divisor in 2..9 {
        db.execute("UPDATE t SET v = randomblob(300) WHERE id % ?1 = 0", [divisor]).unwrap();
    }
    db.execute_batch("INSERT INTO t(v) SELECT v FROM t; DELETE FROM t WHERE id > 300").unwrap();
    db.execute_batch("UPDATE t SET v = 'mine'; COMMIT").unwrap();
    twin.write_and_apply(&stage, "UPDATE t SET v = 'foreign'");
    let mut seen = 1;
    while let Some(row) = rows.next().unwrap() {
        assert_eq!(row.get::<_, String>(0).unwrap(), "mine");
        seen += 1;
    }
    assert_eq!(seen, 300);
    drop(rows);
    drop(select);
    assert_eq!(number(&db, "SELECT count(*) FROM t WHERE v = 'foreign'"), 300);
    stage.compare("app");
}

/// An entry that is refused everywhere alike (a duplicate, a proposal of a deposed leader) changes nothing, so the local
/// writer has no reason to lose its transaction.
/// Shows INV-9 and INV-10.
#[test]
fn an_entry_that_is_refused_fences_nobody() {
    let (stage, db, mut twin) = stage();
    let (old, position) = twin.write(&stage, "INSERT INTO u VALUES (1)");
    stage.database("app").apply(&old, position).unwrap();
    db.execute_batch("BEGIN; INSERT INTO u VALUES (2)").unwrap();
    let again = stage.database("app").apply(&old, Position(position.0 + 1000));
    assert!(matches!(again, Err(ApplyError::WrongBase { .. })), "{again:?}");
    assert_eq!(stage.database("app").counters.passed_by.load(Ordering::Relaxed), 1);
    let mut diverged = old.clone();
    diverged.base = position;
    diverged.checksum_after.0 ^= 1;
    let diverged = stage.database("app").apply(&diverged, Position(position.0 + 1000));
    assert!(matches!(diverged, Err(ApplyError::Diverged { .. })), "{diverged:?}");
    db.execute_batch("COMMIT").unwrap();
    assert_eq!(number(&db, "SELECT sum(v) FROM u"), 3);
    stage.compare("app");
}

/// Foreign entries, local proposals and their fences against each other. The log is a queue here; its applier decides
/// at random, as elections would.
/// Shows INV-12 and INV-V5.
#[test]
fn fences_race_with_commits() {
    let met = (1..=4u64).map(|seed| race(seed, 500)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(met.0 > 0 && met.1 > 0, "(fences, detachments): {met:?}");
}

/// Returns how many local transactions were fenced, and how many detached.
fn race(seed: u64, rounds: u32) -> (u64, u64) {
    use std::sync::mpsc;
    let (stage, _, mut twin) = stage();
    let (log, proposals) = mpsc::channel();
    *stage.replicator.handler.lock() = Some(Arc::new(move |_, session, transaction| {
        let (reply, answer) = mpsc::channel();
        log.send((session, transaction.clone(), reply)).map_err(|_| Refusal::NodeStopped)?;
        answer.recv().unwrap_or(Err(Refusal::NodeStopped))
    }));
    let committed = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..2u64)
        .map(|thread| {
            let db = stage.connect_with("app", if thread == 0 { "" } else { "&psow=0" });
            let (committed, stop) = (committed.clone(), stop.clone());
            std::thread::spawn(move || {
                db.execute_batch("PRAGMA synchronous = FULL").unwrap();
                let mut choices = support::Choices(seed * 100 + thread);
                while !stop.load(Ordering::Relaxed) {
                    let result = match choices.below(4) {
                        0 => db.execute_batch("INSERT INTO u VALUES (1)"),
                        1 => db.execute_batch("BEGIN IMMEDIATE; INSERT INTO u VALUES (1); COMMIT"),
                        2 => db.execute_batch("BEGIN; INSERT INTO u VALUES (1); UPDATE t SET v = randomblob(300) WHERE id % 5 = 1; COMMIT"),
                        _ => db.execute_batch(
                            "PRAGMA cache_size = 5; BEGIN IMMEDIATE; INSERT INTO u VALUES (1);
                             UPDATE t SET v = randomblob(300); SELECT sum(length(v)) FROM t; COMMIT",
                        ),
                    };
                    match code(result) {
                        0 => _ = committed.fetch_add(1, Ordering::Relaxed),
                        5 | 517 | NOT_COMMITTED => {}
                        other => assert!(stop.load(Ordering::Relaxed), "code {other}"),
                    }
                    if !db.is_autocommit() {
                        db.execute_batch("ROLLBACK").unwrap();
                    }
                }
            })
        })
        .collect();
    let database = stage.database("app");
    let mut choices = support::Choices(seed);
    for _ in 0..rounds {
        if choices.below(3) == 0 {
            twin.write_and_apply(
                &stage,
                "INSERT INTO u VALUES (1000000); UPDATE t SET v = randomblob(300) WHERE id % 11 = 3",
            );
            continue;
        }
        let (session, transaction, reply) = proposals.recv().unwrap();
        if choices.below(8) == 0 {
            // Another entry overtakes the proposal.
            twin.write_and_apply(&stage, "INSERT INTO u VALUES (1000000)");
        }
        let position = stage.replicator.next_position();
        let accepted =
            transaction.base == database.position() && choices.below(4) > 0 && database.accept(session, position);
        let answer = if accepted {
            stage.replicator.record("app", position, &transaction);
            Ok(position)
        } else {
            match database.apply(&transaction, position) {
                Ok(()) => {
                    stage.replicator.record("app", position, &transaction);
                    Ok(position)
                }
                Err(ApplyError::WrongBase { .. }) => Err(Refusal::NotCommitted),
                Err(other) => panic!("seed {seed}: {other}"),
            }
        };
        // The next entry is ready before the writers go on, and meets them anywhere in their next transaction.
        let next =
            (choices.below(2) == 0).then(|| twin.write(&stage, "UPDATE t SET v = randomblob(300) WHERE id % 3 = 1"));
        reply.send(answer).unwrap();
        if let Some((transaction, position)) = next {
            let longest = 1 << choices.below(20);
            (0..choices.below(longest)).for_each(|_| std::hint::spin_loop());
            database.apply(&transaction, position).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    drop(proposals);
    *stage.replicator.handler.lock() = Some(Arc::new(|_, _, _| Err(Refusal::NodeStopped)));
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let db = stage.connect("app");
    let local = number(&db, "SELECT count(*) FROM u WHERE v = 1");
    assert_eq!(local as u64, committed.load(Ordering::Relaxed), "seed {seed}: acknowledged and found");
    assert_eq!(database.counters.heals.load(Ordering::Relaxed), 0);
    run(&db, "PRAGMA quick_check");
    stage.compare("app");
    (fences(&stage), detaches(&stage))
}

/// Each test in a process of its own, with the mistake that it is there to notice, and without.
#[cfg(shoal_planted)]
#[test]
fn the_mistakes_of_a_fence_are_noticed() {
    for (mistake, test) in [
        ("SkipDetach", "a_rollback_between_the_entries_of_an_apply_and_its_header_damages_nothing"),
        ("SkipDetach", "a_fenced_transaction_reads_its_snapshot_and_writes_nothing"),
        ("SkipDetach", "a_detached_proposal_that_is_committed_is_published_by_the_applier"),
        ("SkipDetach", "a_statement_that_is_still_open_reads_its_own_snapshot_after_a_detached_commit"),
        ("SkipFence", "the_rollback_of_a_fenced_writer_damages_nothing"),
    ] {
        let run = |plant: Option<&str>| {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", test]).env_remove(PLANT).envs(plant.map(|mistake| (PLANT, mistake)));
            let output = command.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("running 1 test\n"), "{test}: {text}");
            (output.status.success(), text)
        };
        let (green, text) = run(None);
        assert!(green, "{test}: {text}");
        let (green, text) = run(Some(mistake));
        assert!(!green && text.contains(&format!("{test} ... FAILED")), "{test} does not notice {mistake}: {text}");
    }
}
