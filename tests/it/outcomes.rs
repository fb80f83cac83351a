//! What a failed commit means, when leadership is lost at a bad moment or a majority is away.

use std::time::{Duration, Instant};

use shoaldb::{Error, ErrorKind, Node, Outcome, ReadLevel, error, outcome, outcome_of_code, rusqlite};

use crate::cluster::{Cluster, Impatient, LONG, administer, count, table};

/// Waits until a node other than `old` leads and may write.
pub(crate) fn new_leader(cluster: &Cluster, old: u64) -> &Node {
    let started = Instant::now();
    loop {
        if let Some(node) = cluster.running().find(|node| node.id() != old && node.is_leader()) {
            return node;
        }
        assert!(started.elapsed() < LONG, "nobody but node {old} leads");
        std::thread::yield_now();
    }
}

#[test]
fn an_unknown_commit_keeps_the_write_lock_closed_until_it_is_decided() {
    let cluster = Cluster::start_calm(3, |builder| builder.busy_timeout(Duration::from_millis(200)));
    table(&cluster);
    let leader = cluster.leader();
    let db = leader.connect("app").unwrap();
    cluster.cut(leader.id(), true);
    let impatient = Impatient::on(leader);
    let late = db.execute("INSERT INTO t VALUES (1)", []).unwrap_err();
    assert_eq!(outcome(&late), Some(Outcome::Unknown), "{late}");
    assert!(leader.is_leader(), "it has not noticed yet");
    assert_eq!(count(&db), 0, "what is not decided is not shown");
    // Another transaction would be built on a state that the undecided one may still change.
    for error in [
        Error::from(db.execute("INSERT INTO t VALUES (2)", []).unwrap_err()),
        leader.write("app", |tx| Ok(tx.execute_batch("INSERT INTO t VALUES (2)")?)).unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Some(Outcome::NotCommitted)), "{error}");
    }
    // Other databases do not mind: they wait for the majority themselves.
    let other = leader.connect("other").unwrap().execute("CREATE TABLE t(x)", []).unwrap_err();
    assert!(outcome(&other).is_some(), "{other}");
    drop(impatient);
    cluster.cut(leader.id(), false);
    db.busy_timeout(LONG).unwrap();
    db.execute("INSERT INTO t VALUES (3)", []).unwrap();
    assert_eq!(count(&db), 2, "the late one was committed, and is shown once");
    cluster.assert_equal("app");
}

#[test]
fn an_idle_transaction_of_a_deposed_leader_is_fenced_and_nobody_waits_for_it() {
    let cluster = Cluster::start(3);
    table(&cluster);
    let old = cluster.leader();
    let db = old.connect("app").unwrap();
    db.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)").unwrap();
    cluster.cut(old.id(), true);
    let new = new_leader(&cluster, old.id());
    new.write("app", |tx| Ok(tx.execute_batch("INSERT INTO t VALUES (2)")?)).unwrap();
    cluster.cut(old.id(), false);
    let index = new.checksum("app").unwrap().0;
    assert!(old.wait_applied(index, LONG), "the applier waited for an idle transaction");
    assert_eq!(old.checksum("app").unwrap(), new.checksum("app").unwrap());
    assert_eq!(count(&db), 1, "inside, its own snapshot and its own row");
    let refused = db.execute_batch("INSERT INTO t VALUES (3); COMMIT").unwrap_err();
    assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "{refused}");
    if !db.is_autocommit() {
        db.execute_batch("ROLLBACK").unwrap();
    }
    assert_eq!(count(&db), 1);
    cluster.assert_equal("app");
    match db.execute("INSERT INTO t VALUES (4)", []).map_err(Error::from) {
        // On a busy machine it may be elected again.
        Ok(_) => assert!(old.is_leader(), "a node that does not lead took a write"),
        Err(refused) => assert!(refused.is_not_leader() || refused.kind() == ErrorKind::Busy, "{refused}"),
    }
}

#[test]
fn a_commit_after_leadership_was_handed_over_is_not_committed() {
    let cluster = Cluster::start_calm(3, |builder| builder);
    table(&cluster);
    let old = cluster.leader();
    let mut db = old.connect("app").unwrap();
    let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    tx.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let next = cluster.running().find(|node| node.id() != old.id()).unwrap().id();
    administer(|| old.transfer_leadership(next)).unwrap();
    let refused = tx.commit().unwrap_err();
    assert_eq!(outcome(&refused), Some(Outcome::NotCommitted), "{refused}");
    assert!(db.is_autocommit());
    assert_eq!(count(&db), 0);
    cluster.node(next).wait_leader(LONG).unwrap();
    administer(|| old.transfer_leadership(old.id())).unwrap();
    cluster.leader();
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    cluster.assert_equal("app");
}

#[test]
fn transactions_that_a_new_leader_never_heard_of_are_decided_although_it_writes_nothing() {
    let cluster = Cluster::start(3);
    table(&cluster);
    let old = cluster.leader();
    let names = ["app", "b", "c", "d"];
    for name in &names[1..] {
        old.write(name, |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    }
    cluster.assert_equal("d");
    cluster.cut(old.id(), true);
    std::thread::scope(|scope| {
        let started = Instant::now();
        let writers: Vec<_> = names
            .iter()
            .map(|name| {
                let db = old.connect(name).unwrap();
                scope.spawn(move || db.execute("INSERT INTO t VALUES (1)", []).unwrap_err())
            })
            .collect();
        // Its only new entry is the empty one of its term: it replaces the first of the four.
        new_leader(&cluster, old.id());
        cluster.cut(old.id(), false);
        for writer in writers {
            let error = writer.join().unwrap();
            assert_eq!(outcome(&error), Some(Outcome::NotCommitted), "after {:?}: {error}", started.elapsed());
        }
    });
    cluster.assert_equal("d");
}

/// A transaction that changes nothing never reaches the log, so nothing else would notice that this leader was replaced.
#[test]
fn a_linearizable_write_lock_asks_the_majority_even_if_nothing_will_be_written() {
    let cluster = Cluster::start_calm(3, |builder| builder);
    table(&cluster);
    let leader = cluster.leader();
    let db = leader.connect("app").unwrap();
    db.set_read_level(ReadLevel::Linearizable);
    db.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&db), 0);
    cluster.cut(leader.id(), true);
    let impatient = Impatient::on(leader);
    let error = Error::from(db.execute("DELETE FROM t WHERE x = 7", []).unwrap_err());
    drop(impatient);
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Some(Outcome::NotCommitted)), "{error}");
    cluster.cut(leader.id(), false);
    if !db.is_autocommit() {
        db.execute_batch("ROLLBACK").unwrap();
    }
    let started = Instant::now();
    while let Err(error) = db.execute("DELETE FROM t WHERE x = 7", []) {
        assert!(started.elapsed() < LONG, "{error}");
    }
}

/// SQLite refuses this one itself, and leaves the transaction open. As long as nobody rolls it back it may be committed.
#[test]
fn a_commit_that_is_refused_while_a_statement_runs_leaves_the_transaction_open_until_it_is_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    let db = node.connect("app").unwrap();
    db.execute_batch("CREATE TABLE t(x)").unwrap();
    for (end, rows) in [("ROLLBACK", 0), ("COMMIT", 2)] {
        db.execute_batch("BEGIN").unwrap();
        let mut insert = db.prepare("INSERT INTO t VALUES (1), (2) RETURNING x").unwrap();
        let mut running = insert.query([]).unwrap();
        running.next().unwrap().unwrap();
        let error = db.execute_batch("COMMIT").unwrap_err();
        assert_eq!(outcome(&error), Some(Outcome::NotCommitted), "{error}");
        assert_eq!(count(&node.connect("app").unwrap()), 0, "nobody has it");
        assert!(!db.is_autocommit(), "but it can be committed");
        drop(running);
        drop(insert);
        db.execute_batch(end).unwrap();
        assert_eq!(count(&node.connect("app").unwrap()), rows, "{end}");
    }
}

#[test]
fn codes_say_what_became_of_the_transaction() {
    use rusqlite::ffi;
    let not_committed = [
        ffi::SQLITE_BUSY,
        ffi::SQLITE_BUSY_SNAPSHOT,
        ffi::SQLITE_BUSY_RECOVERY,
        error::NOT_COMMITTED,
        error::SECOND_WRITER,
        error::TOO_LARGE,
        error::DROPPED,
        error::NODE_STOPPED,
        error::READ_UNCONFIRMED,
        error::not_leader_code(0),
        error::not_leader_code(3),
    ];
    for code in not_committed {
        assert_eq!(outcome_of_code(code), Some(Outcome::NotCommitted), "{code}");
    }
    // Plain I/O errors and a full disk may also be those of an attached ordinary file, after the replicated part of the
    // transaction was committed; a violated constraint leaves the transaction open.
    for code in [ffi::SQLITE_IOERR, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_FULL, ffi::SQLITE_CONSTRAINT, ffi::SQLITE_OK] {
        assert_eq!(outcome_of_code(code), None, "{code}");
    }
    assert_eq!(outcome_of_code(error::UNKNOWN), Some(Outcome::Unknown));
}

#[test]
fn a_transaction_that_the_closure_lost_is_not_committed_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x UNIQUE); INSERT INTO t VALUES (1)")?)).unwrap();
    let result = node.write("app", |tx| {
        tx.execute("INSERT INTO t VALUES (2)", [])?;
        // Rolls the whole transaction back; a closure that does not look goes on outside of any.
        let _ = tx.execute("INSERT OR ROLLBACK INTO t VALUES (1)", []);
        let _ = tx.execute("INSERT INTO t VALUES (3)", []);
        Ok(())
    });
    let error = result.unwrap_err();
    assert!(error.to_string().contains("rolled back"), "{error}");
    let db = node.connect("app").unwrap();
    assert_eq!(count(&db), 1, "all or nothing");
    node.write("app", |tx| Ok(tx.execute_batch("SAVEPOINT a; INSERT INTO t VALUES (4); ROLLBACK TO a; SAVEPOINT b")?))
        .unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("SAVEPOINT a; INSERT INTO t VALUES (5); RELEASE a")?)).unwrap();
    assert_eq!(count(&db), 2);
}

#[test]
fn what_a_closure_does_to_its_connection_does_not_reach_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    // A temporary table of the same name would swallow what the next closure writes, acknowledged and gone.
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TEMP TABLE t(x); INSERT INTO t VALUES (1)")?)).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("INSERT INTO t VALUES (2)")?)).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("PRAGMA query_only = ON")?)).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("INSERT INTO t VALUES (3)")?)).unwrap();
    assert_eq!(count(&node.connect("app").unwrap()), 2);
}

#[test]
fn write_survives_a_database_that_was_dropped_and_created_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    for round in 0..3 {
        let id = node.write("app", |tx| {
            tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")?;
            Ok(tx.last_insert_rowid())
        });
        assert_eq!(id.unwrap(), 1, "round {round}");
        node.drop_database("app").unwrap();
    }
}
