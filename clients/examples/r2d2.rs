//! rusqlite in an r2d2 pool. `cargo run -p shoaldb-clients --example r2d2`

use r2d2_sqlite::SqliteConnectionManager;
use shoaldb::Node;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let node = Node::open(dir.path())?;
    // All that is particular is the URI. A process with one node may say `vfs=shoal`.
    let manager = SqliteConnectionManager::file(format!("file:app?vfs={}", node.vfs_name()));
    let pool = r2d2::Pool::new(manager)?;
    pool.get()?.execute("CREATE TABLE t(x INTEGER PRIMARY KEY)", [])?;
    std::thread::scope(|scope| {
        let insert = |x: i64| {
            let pool = &pool;
            scope.spawn(move || -> Result<(), String> {
                let db = pool.get().map_err(|error| error.to_string())?;
                db.execute("INSERT INTO t VALUES (?1)", [x]).map(drop).map_err(|error| error.to_string())
            })
        };
        let writers: Vec<_> = (0..8).map(insert).collect();
        writers.into_iter().try_for_each(|writer| writer.join().unwrap_or_else(|_| Err("it panicked".to_string())))
    })?;
    let rows: i64 = pool.get()?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    println!("{rows} rows, each on disk before its writer went on");
    assert_eq!(rows, 8);
    drop(pool);
    node.shutdown()?;
    Ok(())
}

#[cfg(test)]
#[test]
fn it_runs() {
    main().unwrap();
}
