//! What nobody sees from outside.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::Node;
use crate::error::Error;
use crate::every::tests::said;

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

/// Four statements that met a rotten page were four lines in the log.
#[test]
fn a_rotten_page_is_told_of_once_however_often_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder(1, dir.path()).checkpoint_age(Duration::from_millis(100)).scrub_bytes(0).start().unwrap();
    node.wait_leader(Duration::from_secs(30)).unwrap();
    let fill = "CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(100000))";
    node.write("app", |tx| Ok(tx.execute_batch(fill)?)).unwrap();
    let id = loop {
        let db = &node.status().databases[0];
        if db.checkpointed == db.position {
            break db.id;
        }
        std::thread::yield_now();
    };
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join(format!("db/{id}-1.db"))).unwrap();
    file.write_all_at(&[0xa5; 9], 4096 * 10).unwrap();
    let db = node.connect("app").unwrap();
    let ask = || db.query_row("SELECT sum(length(x || 'a')) FROM t", [], |row| row.get::<_, i64>(0)).unwrap_err();
    let heard = said(|| (0..4).for_each(|_| assert!(Error::from(ask()).is_corrupt())));
    let told = heard.iter().filter(|line| line.contains("could not be read")).count();
    assert_eq!(told, 1, "{heard:?}");
    node.shutdown().unwrap();
}
