//! Databases are created and dropped while others do the same, write, or lose their leader.

use std::net::{IpAddr, UdpSocket};
use std::sync::Barrier;

use shoaldb::net::tcp;
use shoaldb::{CreateOptions, Error, ErrorKind, Member, Node};

use crate::cluster::{Cluster, LONG, free_ports, retry, table, until};

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
    retry(|| cluster.leader().drop_database("app")).unwrap();
    let leader = cluster.leader();
    assert_eq!(leader.drop_database("app").unwrap_err().kind(), ErrorKind::NotFound);
    leader.create("app", CreateOptions::default()).unwrap();
}

/// An address of this machine that is no loopback, if it has one. Nothing is sent for that.
fn address_on_a_network() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

/// `shoal db drop` through a relay on another machine dropped a database: with `allow_plaintext_remote` a node took every request
/// from anywhere. What nodes ask of each other goes the same way, and goes on: commands that a follower passes on, verify, join.
#[test]
fn nodes_on_a_network_are_administered_by_loopback_alone() {
    let Some(ip) = address_on_a_network() else {
        println!("this machine has no network; src/inbound.rs has the decision alone");
        return;
    };
    let (dirs, ports) = ([0; 4].map(|_| tempfile::tempdir().unwrap()), free_ports(4));
    let member = |at: usize| Member::new(at as u64 + 1, format!("{ip}:{}", ports[at]));
    let builder = |at: usize| {
        let builder = Node::builder(at as u64 + 1, dirs[at].path()).listen(format!("0.0.0.0:{}", ports[at]));
        builder.advertise(member(at).address).allow_plaintext_remote(true)
    };
    let list = [0, 1, 2].map(member);
    let nodes = [0, 1, 2].map(|at| builder(at).bootstrap(list.clone()).start().unwrap());
    let leader = nodes[0].wait_leader(LONG).unwrap();
    nodes[leader as usize - 1].create("app", CreateOptions::default()).unwrap();
    // A follower may be asked before it has the entry.
    for node in &nodes {
        until(node, "it has the database", |status| status.databases.len() == 1);
    }
    let ask = |host: &str, at: usize, request: &str| {
        let answer = tcp::call(&format!("{host}:{}", ports[at]), request.as_bytes(), LONG, true).unwrap();
        String::from_utf8(answer).unwrap()
    };
    for at in 0..3 {
        let answer = ask(&ip.to_string(), at, r#"{"op":"drop","name":"app"}"#);
        assert!(answer.contains("bad_input") && answer.contains(&format!("this came from {ip}")), "{answer}");
    }
    let follower = (0..3).find(|at| *at as u64 + 1 != leader).unwrap();
    let answer = ask("127.0.0.1", follower, r#"{"op":"verify","name":"app","deep":false}"#);
    assert_eq!(answer.matches("\"checksum\":\"").count(), 3, "{answer}");
    assert_eq!(ask("127.0.0.1", follower, r#"{"op":"drop","name":"app"}"#), r#"{"ok":null}"#);
    let fourth = builder(3).join([member(follower).address]).start().unwrap();
    until(&fourth, "it came in", |status| !status.voters.is_empty());
    nodes.iter().chain([&fourth]).for_each(Node::shutdown_at_once);
}
