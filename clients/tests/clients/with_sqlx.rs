//! sqlx on tokio, with its own pool.

use std::time::Duration;

use shoaldb::Node;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode, SqlitePoolOptions};
use sqlx::{Connection as _, Executor as _, SqlitePool};
use tokio::runtime::Runtime;

use crate::cluster::{Cluster, LONG};
use crate::{Client, End, Failure, promises};

struct Sqlx;

struct Pool {
    runtime: Runtime,
    pool: SqlitePool,
}

fn options(node: &Node) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename("app")
        .vfs(node.vfs_name().to_string())
        .create_if_missing(true)
        .busy_timeout(LONG)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

async fn failure(db: &mut SqliteConnection, error: sqlx::Error) -> Failure {
    let receipt = sqlx::query_scalar("PRAGMA shoal_last_receipt").fetch_one(db).await;
    Failure { text: error.to_string(), code: code(&error), receipt: receipt.unwrap() }
}

/// The pool has no connection to give: nothing was begun.
fn no_connection(error: &sqlx::Error) -> Failure {
    Failure { text: error.to_string(), code: code(error), receipt: String::new() }
}

impl Client for Sqlx {
    type Pool = Pool;

    fn pool(node: &Node, size: u32) -> Pool {
        let runtime = runtime();
        let options = options(node);
        let pool = SqlitePoolOptions::new().max_connections(size).acquire_timeout(LONG).connect_with(options);
        let pool = runtime.block_on(pool).unwrap();
        Pool { runtime, pool }
    }

    fn run(pool: &Pool, sql: &str) -> Result<(), Failure> {
        let sql = sqlx::AssertSqlSafe(sql.to_string());
        pool.runtime.block_on(async {
            let mut db = pool.pool.acquire().await.map_err(|error| no_connection(&error))?;
            match db.execute(sqlx::raw_sql(sql)).await {
                Ok(_) => Ok(()),
                Err(error) => Err(failure(&mut db, error).await),
            }
        })
    }

    fn insert(pool: &Pool, values: &[i64], end: End) -> Result<(), Failure> {
        async fn transaction(db: &mut SqliteConnection, values: &[i64], end: End) -> sqlx::Result<()> {
            let mut tx = db.begin().await?;
            for value in values {
                sqlx::query("INSERT INTO t(x) VALUES (?1)").bind(value).execute(&mut *tx).await?;
            }
            if end == End::Commit { tx.commit().await } else { tx.rollback().await }
        }
        pool.runtime.block_on(async {
            let mut db = pool.pool.acquire().await.map_err(|error| no_connection(&error))?;
            match transaction(&mut db, values, end).await {
                Ok(()) => Ok(()),
                Err(error) => Err(failure(&mut db, error).await),
            }
        })
    }

    fn values(pool: &Pool) -> Vec<i64> {
        pool.runtime.block_on(sqlx::query_scalar("SELECT x FROM t ORDER BY x").fetch_all(&pool.pool)).unwrap()
    }
}

#[test]
fn sqlx_reads_and_writes() {
    promises::reads_and_writes::<Sqlx>();
}

#[test]
fn sqlx_on_a_follower_reads_and_is_told_who_leads() {
    promises::followers_read_and_do_not_write::<Sqlx>(true);
}

#[test]
fn a_pool_of_sqlx_outlives_its_leader() {
    promises::a_pool_outlives_its_leader::<Sqlx>();
}

/// Its URLs, its migrations, and the options that a replicated database refuses, with our words.
#[test]
fn sqlx_opens_by_url_migrates_and_is_told_what_cannot_be() {
    let cluster = Cluster::start_with(3, |builder| builder.election_timeout(Duration::from_secs(2)));
    let leader = cluster.leader();
    runtime().block_on(async {
        let url = format!("sqlite:app?vfs={}&mode=rwc", leader.vfs_name());
        let mut db = SqliteConnection::connect(&url).await.unwrap();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("1_table.sql"), "CREATE TABLE t(x INTEGER PRIMARY KEY);").unwrap();
        std::fs::write(files.path().join("2_row.sql"), "INSERT INTO t VALUES (7);").unwrap();
        let migrator = sqlx::migrate::Migrator::new(files.path()).await.unwrap();
        migrator.run(&mut db).await.unwrap();
        migrator.run(&mut db).await.unwrap();
        let x: i64 = sqlx::query_scalar("SELECT x FROM t").fetch_one(&mut db).await.unwrap();
        assert_eq!(x, 7);

        let journal = options(leader).journal_mode(SqliteJournalMode::Delete);
        let refused = SqliteConnection::connect_with(&journal).await.unwrap_err();
        assert!(refused.to_string().contains("a replicated database is always in WAL mode"), "{refused}");
        let exclusive = options(leader).locking_mode(SqliteLockingMode::Exclusive);
        let refused = SqliteConnection::connect_with(&exclusive).await.unwrap_err();
        assert!(refused.to_string().contains("locking_mode"), "{refused}");
        let usual = options(leader).journal_mode(SqliteJournalMode::Wal);
        SqliteConnection::connect_with(&usual).await.unwrap().close().await.unwrap();
        db.close().await.unwrap();
    });
    cluster.assert_equal("app");
}
