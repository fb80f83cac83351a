//! An async program without an async SQLite client: every call that may wait runs on a thread of its own.
//! `cargo run -p shoaldb-clients --example tokio`

use shoaldb::Node;
use tokio::task::{JoinSet, spawn_blocking};

/// A node is a handle that may be cloned; a clone goes to the thread.
async fn insert(node: &Node, x: i64) -> Result<i64, Box<dyn std::error::Error>> {
    let node = node.clone();
    let insert = move || {
        node.write("app", |tx| {
            tx.execute("INSERT INTO t VALUES (?1)", [x])?;
            Ok(tx.last_insert_rowid())
        })
    };
    Ok(spawn_blocking(insert).await??)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_path_buf();
    let node = spawn_blocking(move || Node::open(path)).await??;
    let create = node.clone();
    spawn_blocking(move || create.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x INTEGER PRIMARY KEY)")?)))
        .await??;
    println!("row {}", insert(&node, 1).await?);

    // A connection is `Send`: it may go to a thread and come back, and keeps what it prepared.
    let connect = node.clone();
    let mut db = spawn_blocking(move || connect.connect("app")).await??;
    for x in 2..5 {
        db = spawn_blocking(move || db.execute("INSERT INTO t VALUES (?1)", [x]).map(|_| db)).await??;
    }

    // Reads of many tasks run beside each other.
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let node = node.clone();
        readers.spawn_blocking(move || -> shoaldb::Result<i64> {
            Ok(node.connect("app")?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?)
        });
    }
    while let Some(rows) = readers.join_next().await {
        let rows = rows??;
        println!("{rows} rows");
        assert_eq!(rows, 4);
    }
    spawn_blocking(move || drop(db)).await?;
    spawn_blocking(move || node.shutdown()).await??;
    Ok(())
}

#[cfg(test)]
#[test]
fn it_runs() {
    main().unwrap();
}
