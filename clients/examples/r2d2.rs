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
        for x in 0..8 {
            let pool = &pool;
            scope.spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                pool.get()?.execute("INSERT INTO t VALUES (?1)", [x])?;
                Ok(())
            });
        }
    });
    let rows: i64 = pool.get()?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    println!("{rows} rows, each on disk before its writer went on");
    drop(pool);
    node.shutdown()?;
    Ok(())
}
