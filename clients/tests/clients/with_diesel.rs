//! diesel, with its own pool. It shows SQLite's text and no code, and sets no busy timeout by itself.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};
use diesel::result::Error;
use diesel::sql_types::Text;
use shoaldb::{Node, Receipt, ReceiptOutcome};

use crate::cluster::{Cluster, LONG};
use crate::{Client, End, Failure, promises};

diesel::table! {
    t (x) {
        x -> BigInt,
    }
}

fn receipt(db: &mut SqliteConnection) -> String {
    // By position: the name of a pragma's column is its value.
    diesel::dsl::sql::<Text>("PRAGMA shoal_last_receipt").get_result(db).unwrap()
}

/// What rusqlite and sqlx do without being asked.
#[derive(Debug)]
struct Patient;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for Patient {
    fn on_acquire(&self, db: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        let sql = format!("PRAGMA busy_timeout = {}", LONG.as_millis());
        db.batch_execute(&sql).map_err(diesel::r2d2::Error::QueryError)
    }
}

fn uri(node: &Node) -> String {
    format!("file:app?vfs={}", node.vfs_name())
}

struct Diesel;

impl Client for Diesel {
    type Pool = Pool<ConnectionManager<SqliteConnection>>;

    fn pool(node: &Node, size: u32) -> Self::Pool {
        let builder = Pool::builder().max_size(size).connection_timeout(LONG).connection_customizer(Box::new(Patient));
        builder.build(ConnectionManager::new(uri(node))).unwrap()
    }

    fn run(pool: &Self::Pool, sql: &str) -> Result<(), Failure> {
        let mut db = pool.get().map_err(|error| no_connection(&error))?;
        db.batch_execute(sql).map_err(|error| failure(&mut db, &error))
    }

    fn insert(pool: &Self::Pool, values: &[i64], end: End) -> Result<(), Failure> {
        let mut db = pool.get().map_err(|error| no_connection(&error))?;
        let done = db.transaction(|db| {
            for value in values {
                diesel::insert_into(t::table).values(t::x.eq(value)).execute(db)?;
            }
            if end == End::Commit { Ok(()) } else { Err(Error::RollbackTransaction) }
        });
        match done {
            Err(Error::RollbackTransaction) if end == End::Rollback => Ok(()),
            done => done.map_err(|error| failure(&mut db, &error)),
        }
    }

    fn values(pool: &Self::Pool) -> Vec<i64> {
        t::table.select(t::x).order(t::x).load(&mut pool.get().unwrap()).unwrap()
    }
}

fn failure(db: &mut SqliteConnection, error: &Error) -> Failure {
    Failure { text: error.to_string(), code: None, receipt: receipt(db) }
}

/// The pool has no connection to give: nothing was begun.
fn no_connection(error: &impl std::fmt::Display) -> Failure {
    Failure { text: error.to_string(), code: None, receipt: String::new() }
}

#[test]
fn diesel_reads_and_writes() {
    promises::reads_and_writes::<Diesel>();
}

#[test]
fn diesel_on_a_follower_reads_and_is_refused_in_words() {
    promises::followers_read_and_do_not_write::<Diesel>(false);
}

#[test]
fn a_pool_of_diesel_outlives_its_leader() {
    promises::a_pool_outlives_its_leader::<Diesel>();
}

/// The text of a commit that ran out of time is that of any failing disk. The receipt is what a user of diesel goes by.
#[test]
fn diesel_settles_an_unknown_by_its_receipt() {
    let cluster = Cluster::start_with(3, |builder| builder.election_timeout(std::time::Duration::from_secs(5)));
    let leader = cluster.leader();
    let mut db = SqliteConnection::establish(&uri(leader)).unwrap();
    db.batch_execute("PRAGMA busy_timeout = 30000; CREATE TABLE t(x INTEGER PRIMARY KEY)").unwrap();
    cluster.cut(leader.id(), true);
    // Only now: what comes before is to end well, however slow the disk.
    leader.set_commit_timeout(std::time::Duration::from_secs(1));
    let late = diesel::insert_into(t::table).values(t::x.eq(1)).execute(&mut db).unwrap_err();
    assert_eq!(late.to_string(), "disk I/O error");
    let receipt: Receipt = receipt(&mut db).parse().unwrap();
    cluster.cut(leader.id(), false);
    let committed = ReceiptOutcome::Committed(receipt.index());
    let started = std::time::Instant::now();
    while leader.outcome_of(receipt).unwrap() != committed {
        assert!(started.elapsed() < LONG, "{:?}", leader.outcome_of(receipt));
        std::thread::yield_now();
    }
    assert_eq!(t::table.select(t::x).load::<i64>(&mut db).unwrap(), [1]);
}

/// Without a busy timeout a second writer does not wait for its turn.
#[test]
fn diesel_without_a_busy_timeout_fails_at_once_where_others_wait() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    let [mut first, mut second] = [0, 1].map(|_| SqliteConnection::establish(&uri(&node)).unwrap());
    // The write that creates a database has nothing to wait for.
    first.batch_execute("CREATE TABLE t(x INTEGER PRIMARY KEY)").unwrap();
    first.batch_execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)").unwrap();
    let insert = |db: &mut SqliteConnection| diesel::insert_into(t::table).values(t::x.eq(2)).execute(db);
    assert_eq!(insert(&mut second).unwrap_err().to_string(), "database is locked");
    first.batch_execute("COMMIT").unwrap();
    assert_eq!(insert(&mut second), Ok(1));
}
