//! The thinnest path: SQL in, transactions out, a copy built from them; and whether SQLite is the one that was asked for.

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

/// The tests run once more against a SQLite that checks itself. A flag that did not come through would leave them green, and
/// nobody would know that nothing was checked.
#[test]
fn what_sqlite_was_to_be_built_with_is_in_it() {
    let stage = Stage::new();
    let db = stage.connect("app");
    let built_with: Vec<String> = {
        let mut statement = db.prepare("PRAGMA compile_options").unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    assert!(built_with.iter().any(|option| option.starts_with("THREADSAFE=")), "{built_with:?}");
    for flag in std::env::var("LIBSQLITE3_FLAGS").unwrap_or_default().split_whitespace() {
        let option = flag.strip_prefix("-DSQLITE_").unwrap_or_else(|| panic!("{flag}: no option of SQLite"));
        assert!(built_with.iter().any(|have| have == option), "{option} is not among {built_with:?}");
    }
}
