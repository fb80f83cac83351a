//! rusqlite in an r2d2 pool.

use r2d2_sqlite::SqliteConnectionManager;
use shoaldb::{Node, rusqlite};

use crate::cluster::LONG;
use crate::{Client, End, Failure, promises};

struct R2d2;

fn failure(db: &rusqlite::Connection, error: &rusqlite::Error) -> Failure {
    Failure {
        text: error.to_string(),
        code: error.sqlite_error().map(|error| error.extended_code),
        receipt: db.query_row("PRAGMA shoal_last_receipt", [], |row| row.get(0)).unwrap(),
    }
}

/// The pool has no connection to give: nothing was begun.
fn no_connection(error: &r2d2::Error) -> Failure {
    Failure { text: error.to_string(), code: None, receipt: String::new() }
}

fn transaction(db: &mut rusqlite::Connection, values: &[i64], end: End) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    for value in values {
        tx.execute("INSERT INTO t(x) VALUES (?1)", [value])?;
    }
    if end == End::Commit { tx.commit() } else { tx.rollback() }
}

impl Client for R2d2 {
    type Pool = r2d2::Pool<SqliteConnectionManager>;

    fn pool(node: &Node, size: u32) -> Self::Pool {
        let manager = SqliteConnectionManager::file(format!("file:app?vfs={}", node.vfs_name()))
            .with_init(|db| db.busy_timeout(LONG));
        r2d2::Pool::builder().max_size(size).connection_timeout(LONG).build(manager).unwrap()
    }

    fn run(pool: &Self::Pool, sql: &str) -> Result<(), Failure> {
        let db = pool.get().map_err(|error| no_connection(&error))?;
        db.execute_batch(sql).map_err(|error| failure(&db, &error))
    }

    fn insert(pool: &Self::Pool, values: &[i64], end: End) -> Result<(), Failure> {
        let mut db = pool.get().map_err(|error| no_connection(&error))?;
        let done = transaction(&mut db, values, end);
        done.map_err(|error| failure(&db, &error))
    }

    fn values(pool: &Self::Pool) -> Vec<i64> {
        let db = pool.get().unwrap();
        let mut select = db.prepare("SELECT x FROM t ORDER BY x").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }
}

#[test]
fn r2d2_reads_and_writes() {
    promises::reads_and_writes::<R2d2>();
}

#[test]
fn r2d2_on_a_follower_reads_and_is_told_who_leads() {
    promises::followers_read_and_do_not_write::<R2d2>(true);
}

#[test]
fn a_pool_of_r2d2_outlives_its_leader() {
    promises::a_pool_outlives_its_leader::<R2d2>();
}
