//! A mistake of ours in the applier ends in words, and in nobody's waiting for ever. A test of its own, since what it does is
//! done to a whole process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shoaldb::probe::{self, Phase};
use shoaldb::{ErrorKind, Event, Node, Outcome};

static ARMED: AtomicBool = AtomicBool::new(false);

#[test]
fn a_panic_in_the_applier_stops_the_node_in_words() {
    probe::watch(|phase, begins| {
        let now = phase == Phase::Publish && begins;
        assert!(!(now && ARMED.swap(false, Ordering::SeqCst)), "planted");
    });
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let node = Node::builder(1, dir.path()).commit_timeout(Duration::from_secs(2)).start().unwrap();
        node.wait_leader(Duration::from_secs(30)).unwrap();
        node
    };
    let node = start();
    let events = node.events();
    let insert = |node: &Node, value: i64| {
        node.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [value]).map(|_| ())?))
    };
    let values = |node: &Node| -> Vec<i64> {
        let db = node.connect("app").unwrap();
        let mut select = db.prepare("SELECT x FROM t ORDER BY x").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(&node, 1).unwrap();
    ARMED.store(true, Ordering::SeqCst);
    // It is committed, and the step that was to say so did not come to its end. Its caller hears of it all the same.
    let (tell, told) = std::sync::mpsc::channel();
    let caller = node.clone();
    let thread = std::thread::spawn(move || tell.send(insert(&caller, 2)));
    let result = told.recv_timeout(Duration::from_secs(30)).expect("the caller waits for ever");
    // Its node is a handle, too.
    thread.join().expect("no panic").expect("somebody listens");
    if let Err(error) = &result {
        assert_eq!(error.outcome(), Some(Outcome::Unknown), "{error}");
    }
    let error = insert(&node, 3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
    assert!(
        node.status().alarms.iter().any(|alarm| alarm.contains("its applier panicked")),
        "{:?}",
        node.status().alarms
    );
    assert!(events.try_iter().any(|event| matches!(event, Event::DiskTrouble { .. })));
    assert_eq!(values(&node)[0], 1, "it goes on reading");
    drop(node);
    assert_eq!(values(&start()), [1, 2]);
}
