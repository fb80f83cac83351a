//! What readers see: one SQLite commit, whole, for as long as their transaction lasts.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use rusqlite::Connection;
use shoaldb_vfs::genesis::AutoVacuum;
use support::{Choices, Stage, number, same_content, spill};

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
/// Money that moves and never appears or disappears, on enough pages to be torn if anything tears.
const ACCOUNTS: &str = "CREATE TABLE account(id INTEGER PRIMARY KEY, money INTEGER, filler);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
    INSERT INTO account SELECT i, 100, randomblob(400) FROM n";
const SUM: &str = "SELECT sum(money) FROM account";

#[test]
fn readers_go_on_while_a_commit_is_blocked() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (1)")).unwrap();
    let (blocked, is_blocked) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let replicator = stage.replicator.clone();
    stage.answer_next(move |db, session, transaction| {
        blocked.send(()).unwrap();
        may_go_on.recv().unwrap();
        Ok(replicator.acknowledge(db, session, transaction))
    });
    let writer = std::thread::spawn(move || db.execute("INSERT INTO t(v) VALUES (2)", []).map(|_| ()));
    is_blocked.recv().unwrap();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let db = stage.connect("app");
            std::thread::spawn(move || (0..200).for_each(|_| assert_eq!(number(&db, "SELECT sum(v) FROM t"), 1)))
        })
        .collect();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    go_on.send(()).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(number(&stage.connect("app"), "SELECT sum(v) FROM t"), 3);
    stage.compare("app");
}

#[test]
fn a_read_transaction_does_not_see_what_is_applied_meanwhile() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    spill(&db, 300);
    let mut twin = stage.twin("app");
    for cache in [5, 2000] {
        let reader = stage.connect("app");
        reader.execute_batch(&format!("PRAGMA cache_size = {cache}; BEGIN")).unwrap();
        let before = number(&reader, "SELECT sum(length(v)) FROM t");
        let rows = number(&reader, "SELECT count(*) FROM t");
        for sql in
            ["UPDATE t SET v = randomblob(10)", "DELETE FROM t WHERE id % 2", "CREATE TABLE IF NOT EXISTS new(x)"]
        {
            twin.write_and_apply(&stage, &format!("{sql}; UPDATE t SET v = randomblob(9) WHERE id = 2"));
            assert_eq!(number(&reader, "SELECT sum(length(v)) FROM t"), before, "{sql}");
        }
        assert_eq!(number(&reader, "SELECT count(*) FROM t"), rows);
        reader.execute_batch("COMMIT").unwrap();
        assert_ne!(number(&reader, "SELECT sum(length(v)) FROM t"), before);
        spill(&db, 100);
    }
    stage.compare("app");
}

/// The change counter moves with every apply, else SQLite would go on with the pages in its cache.
#[test]
fn the_page_cache_is_dropped_after_an_apply() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (0)")).unwrap();
    let mut twin = stage.twin("app");
    for round in 1..50 {
        assert_eq!(number(&db, "SELECT v FROM t"), round - 1);
        twin.write_and_apply(&stage, "UPDATE t SET v = v + 1");
        assert_eq!(number(&db, "SELECT v FROM t"), round);
    }
    db.execute_batch("UPDATE t SET v = v + 1").unwrap();
    assert_eq!(number(&stage.connect("app"), "SELECT v FROM t"), 50);
    stage.compare("app");
}

#[test]
fn a_recovered_index_shows_the_same_rows() {
    let stage = Stage::with_geometry(512, AutoVacuum::None);
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    for round in 0..6 {
        db.execute_batch("BEGIN").unwrap();
        spill(&db, 400);
        db.execute_batch(if round % 2 == 0 { "COMMIT" } else { "ROLLBACK" }).unwrap();
        stage.database("app").damage_index();
        let fresh = stage.connect("app");
        let rows = 400 * (round / 2 + 1);
        for reader in [&db, &fresh] {
            assert_eq!(number(reader, "SELECT count(*) FROM t"), rows);
        }
        // Both kinds of writer go on behind what was recovered.
        stage.twin("app").write_and_apply(&stage, "UPDATE t SET v = randomblob(300) WHERE id % 3 = 0");
        fresh.execute("UPDATE t SET v = randomblob(300) WHERE id % 3 = 1", []).unwrap();
    }
    stage.compare("app");
}

/// SQLite knows no page size after it recovered an empty WAL; a published header without one made readers fail.
#[test]
fn an_empty_wal_may_be_recovered_before_the_first_transaction() {
    for local in [false, true] {
        let stage = Stage::with_geometry(1024, AutoVacuum::None);
        let db = stage.connect("app");
        let mut twin = stage.twin("app");
        stage.database("app").damage_index();
        assert_eq!(number(&db, "SELECT count(*) FROM sqlite_schema"), 0);
        if local {
            db.execute_batch(TABLE).unwrap();
        } else {
            twin.write_and_apply(&stage, TABLE);
        }
        assert_eq!(number(&db, "SELECT count(*) FROM t"), 0);
        db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
        assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 1);
        stage.compare("app");
    }
}

/// Threads that check the sum until told to stop; returns how often they did.
struct Auditors {
    stop: Arc<AtomicBool>,
    checks: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Auditors {
    fn watch(stages: &[&Stage], each: u64) -> Auditors {
        let (stop, checks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = vec![];
        for stage in stages {
            for reader in 0..each {
                let db = stage.connect("app");
                let (stop, checks) = (stop.clone(), checks.clone());
                threads.push(std::thread::spawn(move || {
                    db.execute_batch(&format!("PRAGMA cache_size = {}", if reader % 2 == 0 { 5 } else { 500 }))
                        .unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        db.execute_batch("BEGIN").unwrap();
                        let count = number(&db, "SELECT count(*) FROM account");
                        for _ in 0..2 {
                            assert_eq!(number(&db, SUM), 20_000);
                            assert_eq!(number(&db, "SELECT count(*) FROM account"), count);
                        }
                        db.execute_batch("COMMIT").unwrap();
                        checks.fetch_add(1, Ordering::Relaxed);
                    }
                }));
            }
        }
        Auditors { stop, checks, threads }
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.checks.load(Ordering::Relaxed)
    }
}

fn move_money(db: &Connection, choices: &mut Choices) {
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..1 + choices.below(30) {
        let (from, to) = (1 + choices.below(200) as i64, 1 + choices.below(200) as i64);
        db.execute(
            "UPDATE account SET money = money - 7, filler = randomblob(abs(random() % 900)) WHERE id = ?1",
            [from],
        )
        .unwrap();
        db.execute("UPDATE account SET money = money + 7 WHERE id = ?1", [to]).unwrap();
    }
    match choices.below(8) {
        0 => {
            db.execute_batch("SAVEPOINT s; DELETE FROM account WHERE id % 2; ROLLBACK TO s; RELEASE s; COMMIT").unwrap()
        }
        1 => db.execute_batch("UPDATE account SET filler = randomblob(700); ROLLBACK").unwrap(),
        2 => db.execute_batch("UPDATE account SET filler = randomblob(abs(random() % 2000)); COMMIT").unwrap(),
        _ => db.execute_batch("COMMIT").unwrap(),
    }
}

/// The applying side writes pages behind SQLite's back, so nobody is told of rows: who wants that on every node asks there.
#[test]
fn hooks_fire_where_the_sql_runs_and_nowhere_else() {
    let nodes = [Stage::new(), Stage::new()];
    let writer = nodes[0].connect("app");
    writer.execute_batch(TABLE).unwrap();
    nodes[1].replicator.copy_of(&nodes[0].replicator, "app");
    let mut applied = 0;
    let mut catch_up = || {
        let captured = nodes[0].replicator.captured.lock().clone();
        for (name, position, transaction) in &captured[applied..] {
            nodes[1].database(name).apply(transaction, *position).unwrap();
        }
        applied = captured.len();
    };
    catch_up();
    let reader = nodes[1].connect("app");
    let told: [Arc<AtomicU64>; 2] = Default::default();
    for (db, told) in [&writer, &reader].into_iter().zip(&told) {
        let (updates, commits) = (told.clone(), told.clone());
        let row = move |_, _: &str, _: &str, _| {
            updates.fetch_add(1, Ordering::Relaxed);
        };
        db.update_hook(Some(row)).unwrap();
        db.commit_hook(Some(move || commits.fetch_add(1000, Ordering::Relaxed) == u64::MAX)).unwrap();
    }
    for rows in 1..=10 {
        writer.execute("INSERT INTO t(v) VALUES (1), (2), (3)", []).unwrap();
        catch_up();
        assert_eq!(number(&reader, "SELECT count(*) FROM t"), 3 * rows);
    }
    assert_eq!(told.each_ref().map(|told| told.load(Ordering::Relaxed)), [10_030, 0]);
    same_content(&nodes[0].database("app"), &nodes[1].database("app"));
    nodes[1].check_integrity("app");
    nodes[0].compare("app");
}

/// Two nodes take turns at random as the one that writes and the one that applies, so that each WAL is a mixture of
/// SQLite's frames and ours. Readers watch both.
/// Shows INV-V3.
#[test]
fn two_nodes_that_swap_their_roles_stay_the_same() {
    for (seed, page_size, auto_vacuum) in [(1, 512, AutoVacuum::Full), (2, 4096, AutoVacuum::None)] {
        let nodes = [Stage::with_geometry(page_size, auto_vacuum), Stage::new()];
        let first = nodes[0].connect("app");
        let origin = nodes[0].database("app");
        nodes[1].replicator.copy_of(&nodes[0].replicator, "app");
        first.execute_batch(&format!("BEGIN; {ACCOUNTS}; COMMIT")).unwrap();
        let transaction = nodes[0].last_transaction();
        nodes[1].database("app").apply(&transaction, origin.position()).unwrap();
        let connections = [first, nodes[1].connect("app")];
        for (at, db) in connections.iter().enumerate() {
            db.execute_batch(&format!("PRAGMA cache_size = {}", if at == 0 { 5 } else { 12 })).unwrap();
        }
        let auditors = Auditors::watch(&[&nodes[0], &nodes[1]], 3);
        let mut choices = Choices(seed);
        for _ in 0..150 {
            let writer = choices.below(2) as usize;
            let (here, there) = (&nodes[writer], &nodes[1 - writer]);
            let before = here.commits("app");
            // Positions are the log's, whoever writes.
            let log = nodes[0].replicator.clone();
            here.answer_next(move |db, session, transaction| {
                let position = log.next_position();
                log.record("app", position, transaction);
                assert!(db.accept(session, position));
                Ok(position)
            });
            let recorded = nodes[0].commits("app");
            move_money(&connections[writer], &mut choices);
            here.replicator.verdicts.lock().clear();
            assert!(writer == 0 || here.commits("app") == before);
            if nodes[0].commits("app") > recorded {
                let (_, position, transaction) = nodes[0].replicator.captured.lock().last().unwrap().clone();
                there.database("app").apply(&transaction, position).unwrap();
            }
        }
        assert!(auditors.finish() > 0);
        same_content(&nodes[0].database("app"), &nodes[1].database("app"));
        nodes[1].check_integrity("app");
        nodes[0].compare("app");
    }
}

#[test]
fn many_readers_see_a_constant_sum_while_applies_go_on() {
    let stage = Stage::new();
    stage.connect("app").execute_batch(&format!("BEGIN; {ACCOUNTS}; COMMIT")).unwrap();
    let mut twin = stage.twin("app");
    let auditors = Auditors::watch(&[&stage], 8);
    for round in 0..200 {
        let (a, b) = (1 + round % 200, 1 + (round * 7) % 200);
        twin.write_and_apply(
            &stage,
            &format!(
                "UPDATE account SET money = money - 5, filler = randomblob(400) WHERE id = {a};
                 UPDATE account SET money = money + 5 WHERE id = {b}"
            ),
        );
    }
    assert!(auditors.finish() > 0);
    stage.compare("app");
}
