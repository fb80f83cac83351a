//! What nobody sees from outside.

use super::Node;

/// Shows that names which come and go leave no connection behind, and so no database in memory.
#[test]
fn connections_to_dropped_databases_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    let write = |name: &str| {
        node.write(name, |tx| Ok(tx.execute_batch("CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (1)")?))
            .unwrap();
    };
    let kept = || {
        let mut names: Vec<_> = node.inner.pools.0.lock().keys().cloned().collect();
        names.sort_unstable();
        names
    };
    write("stays");
    for n in 0..3 {
        let name = format!("passing{n}");
        write(&name);
        assert_eq!(kept(), [name.as_str(), "stays"]);
        node.drop_database(&name).unwrap();
        assert_eq!(kept(), ["stays"]);
    }
    // Dropped by somebody else: the next write notices.
    write("passing");
    let id = node.inner.hub.databases.all().iter().find(|(_, db)| db.name() == "passing").unwrap().0;
    node.inner.hub.databases.drop(id, crate::types::LogIndex(1));
    write("stays");
    assert_eq!(kept(), ["stays"]);
    node.shutdown().unwrap();
}
