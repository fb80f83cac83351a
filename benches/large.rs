//! Memory of three node processes while one transaction is large, and what it costs small ones of another database.
//!
//! ```text
//! cargo bench --bench large -- [--megabytes 300] [--dir DIR]
//! ```
//!
//! The large transactions are an INSERT of that size and a VACUUM after it. Meanwhile a second connection commits small
//! INSERTs to another database, one after the other; before, it does so alone. Memory is the highest sum of `RssAnon` and
//! `RssShmem` that was seen in `/proc/PID/status`, every 20 ms: pages of files do not count, the kernel drops them when it
//! needs the room.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shoaldb::{Member, Node, rusqlite};

const LONG: Duration = Duration::from_secs(600);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--node") {
        return node_process(&args[at + 1..]);
    }
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let megabytes: u64 = value("--megabytes").map_or(300, |text| text.parse().expect("a number of megabytes"));
    let base = value("--dir").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = tempfile::tempdir_in(&base).expect("a directory for the bench");

    let held: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let list: Vec<String> = held.iter().map(|port| port.local_addr().expect("its address").to_string()).collect();
    drop(held);
    let others = Others([2, 3].map(|id| {
        Command::new(std::env::current_exe().expect("own path"))
            .args(["--node", &id.to_string()])
            .arg(dir.path().join(id.to_string()))
            .args(&list)
            .stdin(Stdio::piped())
            .spawn()
            .expect("node process")
    }));
    let node = start_node(1, &dir.path().join("1"), &list);
    lead(&node);
    let db = node.connect("app").expect("a connection");
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").expect("a table");
    let mut small = node.connect("small").expect("a connection");
    small.execute_batch("CREATE TABLE t(x)").expect("a table");
    for db in [&db, &small] {
        db.busy_timeout(LONG).expect("a timeout");
    }

    let processes = [std::process::id(), others.0[0].id(), others.0[1].id()];
    println!(
        "{:>28} {:>8} {:>26} {:>36}",
        "what", "seconds", "MB of nodes 1, 2, 3", "small commits: n, p50, p99, max us"
    );
    let rows = megabytes * 1024;
    let insert = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         INSERT INTO t(v) SELECT randomblob(1024) FROM n"
    );
    measure("nothing large", processes, &mut small, || std::thread::sleep(Duration::from_secs(3)));
    measure(&format!("INSERT of {megabytes} MB"), processes, &mut small, || {
        db.execute_batch(&insert).expect("the insert")
    });
    measure("VACUUM of it", processes, &mut small, || db.execute_batch("VACUUM").expect("the vacuum"));
    drop((db, small, others));
}

/// Runs `act` with small commits and a look at the memory of all nodes beside it.
fn measure(what: &str, processes: [u32; 3], small: &mut rusqlite::Connection, act: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let peaks = Mutex::new([0; 3]);
    let started = Instant::now();
    let stop = &done;
    let mut latencies = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (peak, process) in peaks.lock().expect("no panic").iter_mut().zip(processes) {
                    *peak = memory(process).max(*peak);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let small = scope.spawn(move || {
            let mut latencies = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                small.execute("INSERT INTO t VALUES (randomblob(100))", []).expect("a small commit");
                latencies.push(begun.elapsed().as_micros());
            }
            latencies
        });
        act();
        done.store(true, Ordering::Relaxed);
        small.join().expect("no panic")
    });
    latencies.sort_unstable();
    let at =
        |share: usize| latencies.get((latencies.len() * share / 1000).min(latencies.len() - 1)).copied().unwrap_or(0);
    println!(
        "{what:>28} {:>8.1} {:>26} {:>36}",
        started.elapsed().as_secs_f64(),
        format!("{:?}", peaks.lock().expect("no panic").map(|kilobytes| kilobytes / 1024)),
        format!("{}, {}, {}, {}", latencies.len(), at(500), at(990), at(1000)),
    );
}

/// `RssAnon` and `RssShmem` of a process, in kilobytes.
fn memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    of("RssAnon:") + of("RssShmem:")
}

fn start_node(id: u64, dir: &Path, list: &[String]) -> Node {
    let members = list.iter().zip(1..).map(|(address, id)| Member::new(id, address.clone()));
    let builder = Node::builder(id, dir).listen(list[id as usize - 1].clone()).bootstrap(members);
    builder.commit_timeout(LONG).start().expect("a node")
}

fn lead(node: &Node) {
    while !node.is_leader() {
        if node.wait_leader(LONG).expect("a leader") != node.id() {
            let _ = node.transfer_leadership(node.id());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A node, until standard input ends.
fn node_process(args: &[String]) {
    let _node = start_node(args[0].parse().expect("an id"), Path::new(&args[1]), &args[2..]);
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

struct Others([Child; 2]);

impl Drop for Others {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}
