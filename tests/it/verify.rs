//! What all nodes have, asked from outside.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use shoaldb::client::{Client, Doors, Verified};
use shoaldb::{ErrorKind, Node};

use crate::cluster::{Cluster, table};

fn client(cluster: &Cluster) -> Client {
    Client::new(Doors::Endpoints(cluster.list.iter().map(|member| member.address.clone()).collect()))
}

fn verify(cluster: &Cluster, deep: bool) -> Verified {
    let mut all = client(cluster).verify(Some("app"), deep).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn fill(node: &Node) {
    node.write("app", |tx| {
        for _ in 0..50 {
            tx.execute("INSERT INTO t VALUES (randomblob(3000))", [])?;
        }
        Ok(())
    })
    .unwrap();
}

/// Writes and checkpoints go on: all nodes are compared at one index nevertheless.
#[test]
fn nodes_are_compared_at_one_index_while_writes_go_on() {
    let cluster = Cluster::start_calm(3, |builder| builder.checkpoint_bytes(256 << 10));
    table(&cluster);
    // Whoever is asked has the database.
    cluster.assert_equal("app");
    let leader = cluster.leader();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                fill(leader);
            }
        });
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _over = Over(&over);
        let mut last = 0;
        for round in 0..10 {
            let verified = verify(&cluster, round % 2 == 1);
            assert!(verified.same && verified.nodes.len() == 3, "{verified:#?}");
            assert!(verified.position.0 >= last);
            last = verified.position.0;
            fill(leader);
        }
    });
    let all = client(&cluster).verify(None, true).unwrap();
    assert!(all[0].same && all[0].nodes.iter().all(|node| node.read > Some(50 * 3000)), "{all:#?}");
    assert_eq!(client(&cluster).verify(Some("none"), false).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_page_that_rotted_is_found_by_a_deep_look_and_a_node_that_is_away_is_named() {
    let mut cluster = Cluster::start_calm(3, |builder| builder.scrub_bytes(0));
    table(&cluster);
    fill(cluster.leader());
    cluster.assert_equal("app");
    // What a deep look reads back is in the main files then.
    assert!(verify(&cluster, true).same);
    let victim = cluster.follower().id();
    let id = cluster.node(victim).status().databases[0].id;
    let main = cluster.dirs[victim as usize - 1].path().join(format!("db/{id}-1.db"));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(main).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4096 * 6 + 1000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 4096 * 6 + 1000).unwrap();

    assert!(verify(&cluster, false).same, "its books are in order");
    let verified = verify(&cluster, true);
    assert!(!verified.same);
    for node in &verified.nodes {
        let expected: &[u32] = if u64::from(node.node.0) == victim { &[7] } else { &[] };
        assert_eq!(node.damaged, expected, "{verified:#?}");
    }

    cluster.nodes[victim as usize - 1] = None;
    let verified = verify(&cluster, false);
    assert!(!verified.same);
    for node in &verified.nodes {
        assert_eq!(node.problem.is_some(), u64::from(node.node.0) == victim, "{verified:#?}");
    }
}
