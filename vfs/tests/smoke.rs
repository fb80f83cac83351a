//! The thinnest path: SQL in, transactions out, a copy built from them.

mod support;

use support::Stage;

#[test]
fn what_is_captured_is_the_database() {
    let stage = Stage::new();
    let mut db = stage.connect("app");
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX tv ON t(v);").unwrap();
    for round in 0..50 {
        let tx = db.transaction().unwrap();
        for i in 0..20 {
            tx.execute("INSERT INTO t(v) VALUES (?1)", [format!("{round}-{i}-{}", "x".repeat(i * 40))]).unwrap();
        }
        tx.commit().unwrap();
    }
    db.execute("DELETE FROM t WHERE id % 3 = 0", []).unwrap();
    let count: i64 = stage.connect("app").query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 667);
    stage.compare("app");
}
