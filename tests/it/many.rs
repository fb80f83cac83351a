//! Many of everything: databases, connections.

use std::time::Instant;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::cluster::{Cluster, LONG, count};

/// What each database may take in memory on each node, about; 76 KiB were seen.
const BYTES_PER_DATABASE: u64 = 128 << 10;

/// `RssAnon` + `RssShmem` of this process, which has all nodes, in bytes; and its open files.
fn usage() -> (u64, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    };
    (of("RssAnon:") + of("RssShmem:"), std::fs::read_dir("/proc/self/fd").unwrap().count())
}

/// Lets this process have so many open files.
fn allow_files(wanted: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        // Who may do anything may raise that, too.
        limit.maximum = limit.maximum.map(|most| most.max(wanted));
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            let has = getrlimit(Resource::Nofile);
            panic!(
                "this test needs {wanted} open files, and may have {has:?}: {error}; raise the limit (`ulimit -Hn`)"
            );
        }
    }
}

/// Each takes a write, is the same everywhere, and is there after a restart of any node. In a process of its own: what it has
/// in memory and open is that of these nodes, and no other test runs out of files.
#[test]
fn a_thousand_databases_are_the_same_on_all_nodes_and_there_after_a_restart() {
    const INSIDE: &str = "SHOAL_TEST_A_THOUSAND_DATABASES";
    if std::env::var_os(INSIDE).is_some() {
        allow_files(16_000);
        return many_databases(1000);
    }
    let itself = std::env::current_exe().unwrap();
    let name = "many::a_thousand_databases_are_the_same_on_all_nodes_and_there_after_a_restart";
    let mut command = std::process::Command::new(itself);
    let output = command.args([name, "--exact", "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    println!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

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
    let same = |cluster: &Cluster, when: &str| {
        for id in 1..=3 {
            assert!(cluster.node(id).wait_applied(last, LONG));
            assert_eq!(sums(cluster, id), first, "node {id} {when}");
            let db = cluster.node(id).connect(&format!("db{}", n - 1)).unwrap();
            assert_eq!(count(&db), 2, "node {id} {when}");
        }
        let full = usage();
        let each = full.0.saturating_sub(empty.0) / (3 * n);
        println!("{when}: {} MiB, {} files, {each} bytes for each database on each node", full.0 >> 20, full.1);
        assert!(each < BYTES_PER_DATABASE, "{when}: {empty:?} before, {full:?} with {n} databases");
    };
    same(&cluster, "once they are made");
    for id in 1..=3 {
        cluster.nodes[id as usize - 1] = None;
        let began = Instant::now();
        cluster.start_node(id);
        println!("node {id} started in {:.2} s", began.elapsed().as_secs_f64());
        same(&cluster, &format!("after a restart of node {id}"));
    }
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
