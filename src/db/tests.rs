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

/// A thread that calculates for a snapshot has no turn that a commit of the same machine waits for.
#[test]
fn the_threads_of_snapshots_give_way() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    node.connect("app").unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    // The 19th field of `stat`; the second one, in brackets, may have spaces.
    let nice = |task: &std::path::Path| {
        let stat = std::fs::read_to_string(task.join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(16)?.parse::<i32>().ok()
    };
    // Of all nodes that other tests of this process run; some begin, and some end.
    let of_snapshots = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok).map(|task| task.path());
        let theirs = |task: &std::path::PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("shoal-snapshot"))
        };
        tasks.filter(theirs).filter_map(|task| nice(&task)).collect::<Vec<_>>()
    };
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !of_snapshots().contains(&5) {
        assert!(std::time::Instant::now() < until, "{:?}", of_snapshots());
        std::thread::yield_now();
    }
    node.shutdown().unwrap();
}
