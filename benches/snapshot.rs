//! A node that lacks what the log no longer has: how long it takes, how much travels, what it costs the others.
//!
//! ```text
//! cargo bench --bench snapshot -- [--megabytes 200] [--dir DIR]
//! ```
//!
//! Three node processes; the one that leads is this one. Node 3 is away while the database grows, and comes back; then it is
//! away while one page in a hundred changes, at random places and at one place, and comes back each time. Beside it, in turns:
//! `cp` and `fsync` of the leader's main file. Memory is the highest sum of `RssAnon` and `RssShmem` in `/proc/PID/status`,
//! every 20 ms. Small commits of 16 writers to another database go on all the time.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shoaldb::{Event, Member, Node};

const LONG: Duration = Duration::from_secs(600);
const LOG_LIMIT: u64 = 32 << 20;
const WRITERS: usize = 16;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--node") {
        return node_process(&args[at + 1..]);
    }
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let megabytes: u64 = value("--megabytes").map_or(200, |text| text.parse().expect("a number of megabytes"));
    let base = value("--dir").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = tempfile::tempdir_in(&base).expect("a directory for the bench");

    let held: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let list: Vec<String> = held.iter().map(|port| port.local_addr().expect("its address").to_string()).collect();
    drop(held);
    let start = |id: u64| Other::start(id, &dir.path().join(id.to_string()), &list);
    let _second = start(2);
    let third = start(3);
    let node = start_node(1, &dir.path().join("1"), &list);
    lead(&node);
    let db = node.connect("app").expect("a connection");
    db.busy_timeout(LONG).expect("a timeout");
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").expect("a table");
    let small = node.connect("small").expect("a connection");
    small.execute_batch("CREATE TABLE t(x)").expect("a table");
    wait(|| node.status().peers.iter().all(|peer| peer.acknowledged >= node.status().committed), "all have it");
    drop(third);

    let rows = megabytes * 256;
    for _ in 0..16 {
        db.execute_batch(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
             INSERT INTO t(v) SELECT randomblob(4040) FROM n",
            rows / 16
        ))
        .expect("the rows");
    }
    let checkpointed = || {
        let status = node.status();
        let app = status.databases.iter().find(|db| db.name == "app").expect("app");
        app.checkpointed == app.position && status.log_bytes <= 2 * LOG_LIMIT
    };
    wait(checkpointed, "the leader has it in its main file");
    let outrun = |third: u64| {
        let behind = || {
            node.status()
                .peers
                .iter()
                .all(|peer| peer.node.to_string() != third.to_string() || peer.acknowledged < node.status().first)
        };
        while !behind() {
            small.execute("INSERT INTO t VALUES (zeroblob(100000) || randomblob(400000))", []).expect("a large row");
        }
    };
    outrun(3);
    println!(
        "{:>22} {:>8} {:>10} {:>8} {:>10} {:>9} {:>9} {:>30}",
        "what",
        "seconds",
        "sent MB",
        "of it",
        "cp seconds",
        "leader MB",
        "node 3 MB",
        "small commits: n, p50, p99.9 us"
    );
    measure("nothing", &node, megabytes, dir.path(), || {
        std::thread::sleep(Duration::from_secs(3));
        (0, None)
    });
    let mut third = None;
    measure("from nothing", &node, megabytes, dir.path(), || {
        let other = third.insert(start(3));
        (other.installed(), Some(other.id()))
    });
    for (what, change) in [
        ("1 % at random", "UPDATE t SET v = randomblob(4040) WHERE id % 100 = 7"),
        ("1 % at one place", "UPDATE t SET v = randomblob(4040) WHERE id <= (SELECT max(id) FROM t) / 100"),
    ] {
        wait(|| node.status().peers.iter().all(|peer| peer.acknowledged >= node.status().committed), "all have it");
        drop(third.take());
        db.execute_batch(change).expect("the change");
        outrun(3);
        measure(what, &node, megabytes, dir.path(), || {
            let other = third.insert(start(3));
            (other.installed(), Some(other.id()))
        });
    }
}

fn wait(done: impl Fn() -> bool, what: &str) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `act`, which tells how many bytes came and which process got them, beside small commits and a look at memory.
fn measure(what: &str, node: &Node, megabytes: u64, dir: &Path, act: impl FnOnce() -> (u64, Option<u32>)) {
    let (done, peak_here, peak_there) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let before = memory(std::process::id());
    let (mut latencies, sent, seconds) = std::thread::scope(|scope| {
        let done = &done;
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak_here.fetch_max(memory(std::process::id()), Ordering::Relaxed);
                peak_there.fetch_max(youngest_child().map_or(0, memory), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let db = node.connect("small").expect("a connection");
                db.busy_timeout(LONG).expect("a timeout");
                scope.spawn(move || {
                    let mut latencies = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        db.execute("INSERT INTO t VALUES (randomblob(100))", []).expect("a small commit");
                        latencies.push(begun.elapsed().as_micros());
                    }
                    latencies
                })
            })
            .collect();
        let begun = Instant::now();
        let (sent, _) = act();
        let seconds = begun.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        let latencies: Vec<u128> = writers.into_iter().flat_map(|writer| writer.join().expect("no panic")).collect();
        (latencies, sent, seconds)
    });
    let copied = copy(dir);
    latencies.sort_unstable();
    let at =
        |share: usize| latencies.get((latencies.len() * share / 1000).min(latencies.len() - 1)).copied().unwrap_or(0);
    println!(
        "{what:>22} {seconds:>8.2} {:>10.1} {:>8.3} {copied:>10.2} {:>9} {:>9} {:>30}",
        sent as f64 / 1e6,
        sent as f64 / (megabytes << 20) as f64,
        peak_here.load(Ordering::Relaxed).saturating_sub(before) / 1024,
        peak_there.load(Ordering::Relaxed) / 1024,
        format!("{}, {}, {}", latencies.len(), at(500), at(999)),
    );
}

/// Seconds that a copy and a sync of the leader's largest main file take.
fn copy(dir: &Path) -> f64 {
    let files = std::fs::read_dir(dir.join("1/db")).expect("the leader's databases").filter_map(Result::ok);
    let largest = files
        .filter(|file| file.path().extension().is_some_and(|end| end == "db"))
        .max_by_key(|file| file.metadata().map_or(0, |metadata| metadata.len()))
        .expect("a main file");
    let to = dir.join("copy");
    let begun = Instant::now();
    std::fs::copy(largest.path(), &to).expect("a copy");
    std::fs::File::open(&to).and_then(|file| file.sync_all()).expect("a sync");
    let seconds = begun.elapsed().as_secs_f64();
    std::fs::remove_file(&to).expect("the copy goes");
    seconds
}

fn youngest_child() -> Option<u32> {
    let me = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{me}/task/{me}/children")).ok()?;
    children.split_whitespace().filter_map(|child| child.parse().ok()).max()
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
    builder.log_limit(LOG_LIMIT).segment_bytes(4 << 20).commit_timeout(LONG).start().expect("a node")
}

fn lead(node: &Node) {
    while !node.is_leader() {
        if node.wait_leader(LONG).expect("a leader") != node.id() {
            let _ = node.transfer_leadership(node.id());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A node, until standard input ends. Says what snapshots it gets.
fn node_process(args: &[String]) {
    let node = start_node(args[0].parse().expect("an id"), Path::new(&args[1]), &args[2..]);
    let events = node.events();
    std::thread::spawn(move || {
        for event in events {
            if let Event::SnapshotInstalled { bytes, .. } = event {
                println!("{bytes}");
            }
        }
    });
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

struct Other {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Other {
    fn start(id: u64, dir: &Path, list: &[String]) -> Other {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--node", &id.to_string()])
            .arg(dir)
            .args(list)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node process");
        let said = BufReader::new(child.stdout.take().expect("its output"));
        Other { child, said }
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has a snapshot, and tells how many bytes came.
    fn installed(&mut self) -> u64 {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a line");
        line.trim().parse().expect("a number of bytes")
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
