//! Databases are created and dropped while others do the same, write, or lose their leader.

use std::sync::Barrier;

use shoaldb::{CreateOptions, Error, ErrorKind, Node};

use crate::cluster::{Cluster, LONG, table};

#[test]
fn of_many_who_create_one_name_exactly_one_has_created_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    for round in 0..20 {
        let (node, barrier, name) = (&node, &Barrier::new(4), &format!("app{round}"));
        let results: Vec<_> = std::thread::scope(|scope| {
            let create = || {
                barrier.wait();
                node.create(name, CreateOptions::default()).map(|_| ()).map_err(|error| error.kind())
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(create)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(ErrorKind::Exists))), "{results:?}");
    }
}

/// The writers hold connections to what is dropped: their transactions count or are refused, and then it is gone.
#[test]
fn a_database_may_be_dropped_while_connections_write_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    node.connect("app").unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    let ready = Barrier::new(3);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let db = node.connect("app").unwrap();
            let ready = &ready;
            scope.spawn(move || {
                db.execute("INSERT INTO t VALUES (0)", []).unwrap();
                ready.wait();
                let insert = || db.execute("INSERT INTO t VALUES (1)", []).map_err(Error::from);
                let mut error = loop {
                    if let Err(error) = insert() {
                        break error;
                    }
                };
                // The one transaction that was on its way behind the drop.
                if error.kind() == ErrorKind::NotCommitted {
                    error = insert().unwrap_err();
                }
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            });
        }
        ready.wait();
        node.drop_database("app").unwrap();
    });
    assert!(node.databases().unwrap().is_empty());
}

#[test]
fn a_leader_of_this_moment_may_drop_what_its_predecessor_created() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    cluster.assert_equal("app");
    let old = cluster.node(1).wait_leader(LONG).unwrap();
    cluster.nodes[old as usize - 1].take();
    cluster.leader().drop_database("app").unwrap();
    let leader = cluster.leader();
    assert_eq!(leader.drop_database("app").unwrap_err().kind(), ErrorKind::NotFound);
    leader.create("app", CreateOptions::default()).unwrap();
}
