//! How long a node takes to start, on databases of different sizes: after SIGKILL, with a part of the log behind the last
//! checkpoint, and after an end in order.
//!
//! ```text
//! cargo bench --bench restart -- [--megabytes 10,1000] [--rounds 5] [--dir DIR]
//! ```
//!
//! Another process fills each database, until the log is as long as it gets. In each round, size by size, a process
//! overwrites some megabytes, waits for the checkpoint of that, commits some small transactions behind it and is killed. This process then starts the node. It is a node alone: with others, the election comes on top.
//! The page cache is warm, as it is after a process that died; after a machine that did, reading the log comes on top.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Args, until_input_ends, wait};
use shoaldb::Node;

mod common;

/// Small transactions behind the last checkpoint.
const BEHIND: u64 = 200;
/// Bytes of log that are there at least; the limit is 256 MiB.
const LOG: u64 = 200 << 20;
/// Rows of a page each that a round overwrites: more than the WAL that a checkpoint waits for.
const ROWS: u64 = 2048;

fn main() {
    let args = Args::of_process();
    if let Some(dir) = args.value("--prepare") {
        return prepare(Path::new(dir), args.number("--size", 0));
    }
    let (sizes, rounds) = (args.value("--megabytes").unwrap_or("10,1000").split(','), args.number("--rounds", 5));
    let dir = args.directory();
    let sizes: Vec<(u64, PathBuf)> =
        sizes.map(|size| (size.parse().expect("--megabytes"), dir.path().join(size))).collect();
    let mut results: Vec<[Vec<Start>; 2]> = sizes.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for ((megabytes, dir), results) in sizes.iter().zip(&mut results) {
            kill_one(dir, *megabytes);
            results[0].push(Start::measure(dir));
            results[1].push(Start::measure(dir));
        }
    }
    println!(
        "{:>6} {:>10} {:>9} {:>10} {:>10} {:>12} {:>12} {:>12}",
        "MB", "ended", "entries", "log MB", "open ms", "read ms", "commit ms", "shutdown ms"
    );
    for ((megabytes, _), results) in sizes.iter().zip(&results) {
        for (ended, starts) in ["SIGKILL", "in order"].iter().zip(results) {
            let median = |of: fn(&Start) -> f64| common::median(starts.iter().map(of));
            println!(
                "{megabytes:>6} {ended:>10} {:>9.0} {:>10.0} {:>10.1} {:>12.1} {:>12.1} {:>12.1}",
                median(|start| start.entries as f64),
                median(|start| start.log_bytes as f64 / 1e6),
                median(|start| start.open),
                median(|start| start.read),
                median(|start| start.commit),
                median(|start| start.shutdown),
            );
        }
    }
}

/// One start, in milliseconds.
struct Start {
    /// Entries behind the last anchor.
    entries: u64,
    log_bytes: u64,
    open: f64,
    read: f64,
    commit: f64,
    shutdown: f64,
}

impl Start {
    fn measure(dir: &Path) -> Start {
        let mut begun = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            let millis = (now - std::mem::replace(&mut begun, now)).as_secs_f64() * 1e3;
            begun = Instant::now();
            millis
        };
        let node = Node::open(dir).expect("a start");
        let open = lap();
        let db = node.connect("app").expect("a connection");
        let _: i64 = db.query_row("SELECT length(v) FROM t WHERE id = 7", [], |row| row.get(0)).expect("a read");
        let read = lap();
        db.execute("UPDATE t SET v = randomblob(100) WHERE id = 7", []).expect("a commit");
        let commit = lap();
        let status = node.status();
        let entries = status.applied.0 - status.anchored.0;
        drop(db);
        lap();
        node.shutdown().expect("an end");
        Start { entries, log_bytes: status.log_bytes, open, read, commit, shutdown: lap() }
    }
}

/// Starts a process that prepares the directory, and kills it.
fn kill_one(dir: &Path, megabytes: u64) {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .arg("--prepare")
        .arg(dir)
        .args(["--size", &megabytes.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    assert_eq!(line.trim(), "ready");
    child.kill().expect("a signal");
    child.wait().expect("its end");
}

/// Fills the database if it is new, leaves some transactions behind its last checkpoint, says so, and waits for death.
fn prepare(dir: &Path, megabytes: u64) {
    let node = Node::builder(1, dir).checkpoint_age(Duration::from_secs(3600)).start().expect("a start");
    while node.wait_leader(common::LONG).is_err() {}
    let db = node.connect("app").expect("a connection");
    db.busy_timeout(common::LONG).expect("a timeout");
    common::fill_pages(&db, megabytes * 1_000_000 / 4096);
    // A start reads all of the log that is kept, which `log_limit` bounds: as much for each size.
    while node.status().log_bytes < LOG {
        db.execute_batch(&format!("UPDATE t SET v = randomblob(4000) WHERE id < {ROWS}")).expect("the change");
    }
    let made = || node.status().databases[0].checkpointed;
    let before = made();
    db.execute_batch(&format!("UPDATE t SET v = randomblob(4000) WHERE id < {ROWS}")).expect("the change");
    let position = node.status().databases[0].position;
    wait("the checkpoint", || made() >= position && made() > before);
    for row in 0..BEHIND {
        db.execute("UPDATE t SET v = randomblob(100) WHERE id = ?1", [row as i64]).expect("a commit");
    }
    println!("ready");
    until_input_ends();
}
