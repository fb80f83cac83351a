//! sqlx on tokio. `cargo run -p shoaldb-clients --example sqlx`

use shoaldb::{Node, outcome_of_code};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    // Starting and shutting down a node waits for disks and other nodes: not on a thread of the runtime.
    let path = dir.path().to_path_buf();
    let node = tokio::task::spawn_blocking(move || Node::open(path)).await??;

    let vfs = node.vfs_name().to_string();
    let pool =
        SqlitePool::connect_with(SqliteConnectOptions::new().filename("app").vfs(vfs).create_if_missing(true)).await?;
    sqlx::query("CREATE TABLE t(x INTEGER PRIMARY KEY)").execute(&pool).await?;
    let mut tx = pool.begin().await?;
    sqlx::query("INSERT INTO t VALUES (1), (2)").execute(&mut *tx).await?;
    tx.commit().await?;

    // sqlx shows SQLite's extended code, which says what became of a transaction that failed.
    if let Err(error) = sqlx::query("INSERT INTO t VALUES (1)").execute(&pool).await {
        let code = error.as_database_error().and_then(|error| error.code()?.parse().ok());
        println!("{error}; the cluster's part in it: {:?}", code.and_then(outcome_of_code));
    }
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&pool).await?;
    println!("{rows} rows");
    assert_eq!(rows, 2);
    pool.close().await;
    tokio::task::spawn_blocking(move || node.shutdown()).await??;
    Ok(())
}

#[cfg(test)]
#[test]
fn it_runs() {
    main().unwrap();
}
