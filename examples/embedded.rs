//! The embedded default: one node, no socket. `cargo run --example embedded`

use shoaldb::Node;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "data".to_string());
    let node = Node::open(dir)?;
    let db = node.connect("app")?;
    db.execute("CREATE TABLE IF NOT EXISTS visits(id INTEGER PRIMARY KEY, at TEXT)", [])?;
    db.execute("INSERT INTO visits(at) VALUES (datetime('now'))", [])?;
    let visits: i64 = db.query_row("SELECT count(*) FROM visits", [], |row| row.get(0))?;
    println!("visit number {visits}; kill -9 this process as often as you like, it counts on");
    drop(db);
    node.shutdown()?;
    Ok(())
}
