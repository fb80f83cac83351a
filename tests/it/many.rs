//! Many of everything: databases, connections. The long version of a test prints what it takes:
//! `cargo test --release --test it -- --ignored --nocapture a_thousand_databases`

use std::time::Instant;

use crate::cluster::{Cluster, LONG, count};

/// `RssAnon` + `RssShmem` of this process, which has all nodes, in MiB; and its open files.
fn usage() -> (u64, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    ((of("RssAnon:") + of("RssShmem:")) >> 10, std::fs::read_dir("/proc/self/fd").unwrap().count())
}

/// So many databases on three nodes: each takes a write, is the same everywhere, and is there after a restart of any node.
fn many_databases(n: u64) {
    const THREADS: u64 = 8;
    let mut cluster = Cluster::start_calm(3, |builder| builder);
    let empty = usage();
    let began = Instant::now();
    let leader = cluster.leader();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for at in (thread..n).step_by(THREADS as usize) {
                    leader
                        .write(&format!("db{at}"), |tx| {
                            tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")?;
                            Ok(tx.execute("INSERT INTO t VALUES (?1)", [at as i64])?)
                        })
                        .unwrap();
                }
            });
        }
    });
    println!("{n} databases made in {:.1} s", began.elapsed().as_secs_f64());
    let sums = |cluster: &Cluster, id: u64| -> Vec<_> {
        let node = cluster.node(id);
        (0..n).map(|at| node.checksum(&format!("db{at}")).unwrap()).collect()
    };
    let leader = cluster.leader().id();
    let first = sums(&cluster, leader);
    // What is shown may be ahead of what the status says for a moment.
    let last = first.iter().map(|(position, _)| *position).max().unwrap();
    for id in 1..=3 {
        assert!(cluster.node(id).wait_applied(last, LONG));
        assert_eq!(sums(&cluster, id), first, "node {id}");
    }
    let full = usage();
    println!("three nodes in one process: {empty:?} MiB and files before, {full:?} with them");
    for id in 1..=3 {
        cluster.nodes[id as usize - 1] = None;
        let began = Instant::now();
        cluster.start_node(id);
        println!("node {id} started in {:.2} s", began.elapsed().as_secs_f64());
        assert!(cluster.node(id).wait_applied(last, LONG));
        assert_eq!(sums(&cluster, id), first, "node {id} after its restart");
        assert_eq!(count(&cluster.node(id).connect(&format!("db{}", n - 1)).unwrap()), 2);
    }
}

#[test]
fn many_databases_are_the_same_on_all_nodes_and_there_after_a_restart() {
    many_databases(60);
}

#[test]
#[ignore = "a minute; it prints memory, open files and the time of a start"]
fn a_thousand_databases() {
    many_databases(1000);
}

#[test]
fn two_hundred_connections_write_and_read_and_none_is_left_out() {
    const CONNECTIONS: i64 = 200;
    let cluster = Cluster::start_calm(3, |builder| builder.busy_timeout(LONG));
    let leader = cluster.leader();
    leader.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x UNIQUE)")?)).unwrap();
    let open: Vec<_> = (0..CONNECTIONS).map(|_| leader.connect("app").unwrap()).collect();
    // All of them wait for one write lock.
    std::thread::scope(|scope| {
        for (at, db) in open.into_iter().enumerate() {
            scope.spawn(move || {
                db.execute("INSERT INTO t VALUES (?1)", [at as i64]).unwrap();
                assert!(count(&db) > 0);
            });
        }
    });
    assert_eq!(count(&leader.connect("app").unwrap()), CONNECTIONS);
    cluster.assert_equal("app");
}
