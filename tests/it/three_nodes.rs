//! Three nodes in one process, over real sockets.

use shoaldb::{ConnectOptions, Connection, CreateOptions, Error, ErrorKind, Node, ReadLevel};

use crate::cluster::{Cluster, Impatient, LONG, administer, count, insert, table};

#[test]
fn followers_show_what_the_leader_committed() {
    let cluster = Cluster::start(3);
    table(&cluster);
    for value in 0..100 {
        insert(&cluster, value).unwrap();
    }
    cluster.assert_equal("app");
    for node in cluster.running() {
        assert_eq!(count(&node.connect("app").unwrap()), 100);
    }
}

/// Shows INV-8.
#[test]
fn a_follower_refuses_writes_and_names_the_leader() {
    let cluster = Cluster::start_calm(3, |builder| builder);
    table(&cluster);
    let leader = cluster.leader().id();
    let follower = cluster.follower();
    follower.wait_applied(cluster.leader().checksum("app").unwrap().0, LONG);
    let db = follower.connect("app").unwrap();
    let known = follower.leader().unwrap();
    assert_eq!((known.id, known.address), (leader, cluster.leader().leader().unwrap().address));
    let error = db.execute("INSERT INTO t VALUES (1)", []).unwrap_err();
    assert_eq!(shoaldb::leader_hint(&error), Some(leader), "{error}");
    let error = Error::from(error);
    assert!(error.is_not_leader() && error.leader() == Some(leader));
    assert_eq!(count(&db), 0);
    follower.create("made-by-follower", CreateOptions::default()).unwrap();
    assert!(cluster.leader().databases().unwrap().contains(&"made-by-follower".to_string()));
}

#[test]
fn a_linearizable_read_sees_what_was_acknowledged_anywhere() {
    let cluster = Cluster::start(3);
    table(&cluster);
    let options = ConnectOptions { read_level: ReadLevel::Linearizable, ..ConnectOptions::default() };
    let readers: Vec<Connection> =
        cluster.running().map(|node| node.connect_with("app", options.clone()).unwrap()).collect();
    for value in 0..200 {
        insert(&cluster, value).unwrap();
        for reader in &readers {
            assert_eq!(count(reader), value + 1);
        }
    }
}

#[test]
fn leadership_is_handed_over_and_nothing_is_lost() {
    let cluster = Cluster::start_calm(3, |builder| builder);
    table(&cluster);
    for round in 0..6 {
        insert(&cluster, round).unwrap();
        let next = cluster.follower();
        administer(|| next.transfer_leadership(next.id())).unwrap();
        let next = next.id();
        assert_eq!(cluster.leader().id(), next);
    }
    assert_eq!(count(&cluster.leader().connect("app").unwrap()), 6);
    cluster.assert_equal("app");
    let missing = cluster.leader().transfer_leadership(9).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn any_node_may_stop_and_come_back() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    let mut value = 0;
    for id in [1, 2, 3, 1, 2, 3] {
        for _ in 0..5 {
            insert(&cluster, value).unwrap();
            value += 1;
        }
        cluster.nodes[id as usize - 1].take().unwrap().shutdown().unwrap();
        for _ in 0..5 {
            insert(&cluster, value).unwrap();
            value += 1;
        }
        cluster.start_node(id);
    }
    cluster.assert_equal("app");
    assert_eq!(count(&cluster.leader().connect("app").unwrap()), value);
}

#[test]
fn all_nodes_may_stop_and_come_back() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    for value in 0..20 {
        insert(&cluster, value).unwrap();
    }
    for id in 1..=3 {
        cluster.nodes[id - 1].take().unwrap().shutdown().unwrap();
    }
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.assert_equal("app");
    assert_eq!(count(&cluster.leader().connect("app").unwrap()), 20);
}

#[test]
fn a_listed_node_that_comes_late_is_bound_and_catches_up() {
    let mut cluster = Cluster::prepare(3);
    cluster.start_node(1);
    cluster.start_node(3);
    table(&cluster);
    for value in 0..20 {
        insert(&cluster, value).unwrap();
    }
    cluster.start_node(2);
    cluster.assert_equal("app");
    // Its vote counts now: it and one other are a majority.
    let leader = cluster.leader().id();
    let stopped = if leader == 2 { 1 } else { leader };
    cluster.nodes[stopped as usize - 1].take().unwrap().shutdown().unwrap();
    insert(&cluster, 100).unwrap();
    cluster.assert_equal("app");
}

/// Shows INV-9 and INV-11.
#[test]
fn a_leader_that_is_cut_off_is_replaced_and_learns_what_became_of_its_transactions() {
    let cluster = Cluster::start(3);
    table(&cluster);
    insert(&cluster, 0).unwrap();
    let old = cluster.leader().id();
    let db = cluster.node(old).connect("app").unwrap();
    for other in (1..=3).filter(|id| *id != old) {
        cluster.node(old).set_blocked(other, true);
    }
    // Proposed, and never to be committed: the majority elects another leader and commits something else there.
    let writer = std::thread::spawn(move || {
        let result = db.execute("INSERT INTO t VALUES (1000)", []);
        (db, result)
    });
    let majority: Vec<&Node> = cluster.running().filter(|node| node.id() != old).collect();
    let new = loop {
        let ids: Vec<u64> = majority.iter().map(|node| node.wait_leader(LONG).unwrap()).collect();
        if ids[0] == ids[1] && ids[0] != old && cluster.node(ids[0]).is_leader() {
            break cluster.node(ids[0]);
        }
    };
    new.write("app", |tx| Ok(tx.execute_batch("INSERT INTO t VALUES (1)")?)).unwrap();
    for other in (1..=3).filter(|id| *id != old) {
        cluster.node(old).set_blocked(other, false);
    }
    let (db, result) = writer.join().unwrap();
    let outcome = shoaldb::outcome(&result.unwrap_err());
    assert_eq!(outcome, Some(shoaldb::Outcome::NotCommitted));
    cluster.assert_equal("app");
    assert_eq!(count(&db), 2, "the connection is usable again, and shows the others' transaction");
    assert_eq!(count(&cluster.leader().connect("app").unwrap()), 2);
}

#[test]
fn a_minority_reads_locally_but_not_linearizably() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    insert(&cluster, 7).unwrap();
    cluster.assert_equal("app");
    for id in [1, 2] {
        cluster.nodes[id - 1].take().unwrap().shutdown().unwrap();
    }
    let db = cluster.node(3).connect("app").unwrap();
    assert_eq!(count(&db), 1);
    db.set_read_level(ReadLevel::Linearizable);
    let _impatient = Impatient::on(cluster.node(3));
    let error = Error::from(db.query_row("SELECT 1 FROM t", [], |_| Ok(())).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}
