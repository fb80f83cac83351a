//! Two program versions in one cluster. The newer one is this one with a hidden setting: it speaks protocol 1 and 2, and
//! knows one more kind of entry, which does nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use shoaldb::{Builder, ErrorKind, Node};

use crate::cluster::{Cluster, LONG, count, insert, table, until};

fn newer(builder: Builder) -> Builder {
    builder.speaks(1, 2)
}

/// Stops a node and starts it again with another program.
fn exchange(cluster: &mut Cluster, id: u64, program: fn(Builder) -> Builder) {
    let at = id as usize - 1;
    cluster.nodes[at] = None;
    cluster.nodes[at] = Some(program(cluster.builder(id)).start().unwrap());
}

/// Waits until a node's alarms have these words.
fn alarm(node: &Node, words: &str) -> String {
    let end = std::time::Instant::now() + LONG;
    loop {
        let alarms = node.status().alarms;
        if let Some(alarm) = alarms.iter().find(|alarm| alarm.contains(words)) {
            return alarm.clone();
        }
        assert!(std::time::Instant::now() < end, "node {}: no alarm has {words:?}: {alarms:?}", node.id());
        std::thread::yield_now();
    }
}

/// What a leader says that may not write the new kind.
fn refused(cluster: &Cluster) -> String {
    loop {
        match cluster.leader().rehearse() {
            Ok(()) => panic!("it was written although somebody does not know it"),
            Err(error) if error.kind() == ErrorKind::Busy => return error.to_string(),
            // Leadership moved just then.
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
}

/// Writes a row on whichever running node takes it; one may be on its way down, and its place empty.
fn write_somewhere(cluster: &Cluster, value: i64) {
    let end = std::time::Instant::now() + LONG;
    for node in cluster.nodes.iter().flatten().cycle() {
        match node.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [value])?)) {
            Ok(_) => return,
            Err(error) => assert!(error.is_retryable() && std::time::Instant::now() < end, "{error}"),
        }
    }
}

/// The leader's refusals until it may write the new kind, which it does.
fn rehearse(cluster: &Cluster) {
    let end = std::time::Instant::now() + LONG;
    while let Err(error) = cluster.leader().rehearse() {
        assert!(error.is_retryable() && std::time::Instant::now() < end, "{error}");
        std::thread::yield_now();
    }
}

/// Shows INV-41.
#[test]
fn a_new_kind_is_written_only_when_the_last_node_knows_it() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    let mut rows = 0;
    let mut order: Vec<u64> = cluster.running().map(Node::id).collect();
    // The leader last, as one upgrades.
    let leader = cluster.leader().id();
    order.sort_by_key(|id| *id == leader);
    for id in &order {
        for to in 1..=3 {
            // Whoever leads, old or new: somebody does not know it yet.
            let _ = cluster.leader().transfer_leadership(to);
            let text = refused(&cluster);
            assert!(text.contains("speaks protocol 1") || text.contains("has not said"), "{text}");
        }
        // Under writes.
        let stop = AtomicBool::new(false);
        let at = *id as usize - 1;
        let node = cluster.nodes[at].take();
        let builder = newer(cluster.builder(*id));
        let (written, started) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut written = 0;
                while !stop.load(Ordering::SeqCst) || written < 5 {
                    write_somewhere(&cluster, 1_000_000 * *id as i64 + written);
                    written += 1;
                }
                written
            });
            drop(node);
            let started = builder.start();
            stop.store(true, Ordering::SeqCst);
            (writer.join().unwrap(), started)
        });
        cluster.nodes[at] = Some(started.unwrap());
        rows += written;
        cluster.assert_equal("app");
    }
    rehearse(&cluster);
    insert(&cluster, -1).unwrap();
    cluster.assert_equal("app");
    for node in cluster.running() {
        assert_eq!(count(&node.connect("app").unwrap()), rows + 1, "node {}", node.id());
        until(node, "nothing needs attention", |status| status.alarms.is_empty());
    }
}

/// Shows INV-16.
#[test]
fn an_old_program_stops_before_what_it_does_not_know_and_goes_on_as_a_newer_one() {
    let mut cluster = Cluster::start_with(3, newer);
    table(&cluster);
    cluster.assert_equal("app");
    let late = cluster.follower().id();
    // It announced protocol 2, and is away when it is used.
    cluster.nodes[late as usize - 1] = None;
    insert(&cluster, 1).unwrap();
    rehearse(&cluster);
    insert(&cluster, 2).unwrap();

    let old: fn(Builder) -> Builder = |builder| builder.speaks(1, 1);
    exchange(&mut cluster, late, old);
    let node = cluster.node(late);
    let said = alarm(node, "cannot apply");
    assert!(said.contains("kind 255") && said.contains("start the newer version of shoal"), "{said}");
    let db = node.connect("app").unwrap();
    assert_eq!(count(&db), 1, "what came before is shown, and nothing that came after");
    drop(db);
    // The others do not need it.
    insert(&cluster, 3).unwrap();

    exchange(&mut cluster, late, newer);
    cluster.assert_equal("app");
    assert_eq!(count(&cluster.node(late).connect("app").unwrap()), 3);
}

#[test]
fn a_node_that_is_too_new_or_too_old_is_told_both_versions() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    cluster.assert_equal("app");
    let id = cluster.follower().id();
    let too_new: fn(Builder) -> Builder = |builder| builder.speaks(2, 3);
    exchange(&mut cluster, id, too_new);
    let other = cluster.running().find(|node| node.id() != id).unwrap();
    let words = format!("node {id} speaks protocol 2 to 3, node {} speaks 1", other.id());
    let said = alarm(cluster.node(id), &words);
    assert!(said.contains(&format!("start a newer version of shoal on node {}", other.id())), "{said}");
    // And where the old one dials.
    let words = format!("node {} speaks protocol 1, node {id} speaks 2 to 3", other.id());
    let said = alarm(other, &words);
    assert!(said.contains(&format!("start a newer version of shoal on node {}", other.id())), "{said}");
    insert(cluster_without(&mut cluster, id), 1).unwrap();
}

/// The cluster without a node, which is stopped.
fn cluster_without(cluster: &mut Cluster, id: u64) -> &Cluster {
    cluster.nodes[id as usize - 1] = None;
    cluster
}
