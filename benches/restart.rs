//! How long a node takes to start, on databases and logs of different sizes: after SIGKILL, with a part of the log behind the last
//! checkpoint, after an end in order, and after that with nothing of the directory in the page cache.
//!
//! ```text
//! cargo bench --bench restart -- [--megabytes 10,1000] [--log 8,512] [--small] [--rounds 5] [--dir DIR]
//! ```
//!
//! Another process fills each database, until the log is as long as it gets (`--log`: its limit in MiB). It does that by large
//! transactions, or with `--small` by such of one row, which makes the most entries of a log. In each round, size by size, a process
//! overwrites some megabytes, waits for the checkpoint of that, commits some small transactions behind it and is killed. This process
//! then starts the node. It is a node alone: with others, the election comes on top.
//!
//! "log": opening that log alone, once more in the same state of the cache, when the node has ended: what of the start is due to it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Args, until_input_ends, wait};
use shoaldb::log::{Log, LogOptions};
use shoaldb::{Builder, Node};
use shoaldb_vfs::env::Env;

mod common;

/// Small transactions behind the last checkpoint.
const BEHIND: u64 = 200;
/// Rows of a page each that a round overwrites: more than the WAL that a checkpoint waits for.
const ROWS: u64 = 2048;
/// How a node ended before it starts.
const ENDED: [&str; 3] = ["SIGKILL", "in order", "cold"];

/// What is varied.
struct Case {
    megabytes: u64,
    /// `log_limit` in MiB.
    log: u64,
    small: bool,
    dir: PathBuf,
}

impl Case {
    fn node(&self) -> Builder {
        Node::builder(1, &self.dir).log_limit(self.log << 20).segment_bytes(self.segment())
    }

    /// Some files of the log at least, however short it is.
    fn segment(&self) -> u64 {
        (16 << 20).min(self.log << 17)
    }

    /// Nothing of its files is in memory any more.
    fn forget(&self) {
        for folder in ["log", "db"] {
            for file in std::fs::read_dir(self.dir.join(folder)).expect("a directory") {
                let file = std::fs::File::open(file.expect("a file").path()).expect("a file");
                file.sync_all().expect("a sync");
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("the kernel forgets");
            }
        }
    }
}

fn main() {
    let args = Args::of_process();
    let small = std::env::args().any(|arg| arg == "--small");
    if let Some(dir) = args.value("--prepare") {
        let (megabytes, log) = (args.number("--size", 0), args.number("--log", 0));
        return prepare(&Case { megabytes, log, small, dir: dir.into() });
    }
    let numbers = |name: &str, or: &str| -> Vec<u64> {
        args.value(name).unwrap_or(or).split(',').map(|text| text.parse().expect(name)).collect()
    };
    let (sizes, logs, rounds) =
        (numbers("--megabytes", "10,1000"), numbers("--log", "8,512"), args.number("--rounds", 5));
    let dir = args.directory();
    let case = |megabytes, log| Case { megabytes, log, small, dir: dir.path().join(format!("{megabytes}-{log}")) };
    let cases: Vec<Case> = logs.iter().flat_map(|log| sizes.iter().map(|size| case(*size, *log))).collect();
    let mut results: Vec<[Vec<Start>; ENDED.len()]> = cases.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for (case, results) in cases.iter().zip(&mut results) {
            kill_one(case);
            for (at, results) in results.iter_mut().enumerate() {
                results.push(Start::measure(case, ENDED[at] == "cold"));
            }
        }
    }
    println!(
        "{:>6} {:>9} {:>9} {:>8} {:>8} {:>9} {:>9} {:>9} {:>8} {:>10} {:>12}",
        "MB",
        "ended",
        "log MB",
        "entries",
        "behind",
        "open ms",
        "log ms",
        "of it",
        "read ms",
        "commit ms",
        "shutdown ms"
    );
    for (case, results) in cases.iter().zip(&results) {
        for (ended, starts) in ENDED.iter().zip(results) {
            let median = |of: fn(&Start) -> f64| common::median(starts.iter().map(of));
            println!(
                "{:>6} {ended:>9} {:>9.1} {:>8.0} {:>8.0} {:>9.1} {:>9.1} {:>7.0} % {:>8.1} {:>10.1} {:>12.1}",
                case.megabytes,
                median(|start| start.log_bytes as f64 / 1e6),
                median(|start| start.entries as f64),
                median(|start| start.behind as f64),
                median(|start| start.open),
                median(|start| start.log),
                median(|start| 100.0 * start.log / start.open),
                median(|start| start.read),
                median(|start| start.commit),
                median(|start| start.shutdown),
            );
        }
    }
}

/// One start, in milliseconds.
struct Start {
    /// Entries of the log, and those of them behind the last anchor.
    entries: u64,
    behind: u64,
    log_bytes: u64,
    open: f64,
    log: f64,
    read: f64,
    commit: f64,
    shutdown: f64,
}

impl Start {
    fn measure(case: &Case, cold: bool) -> Start {
        let forget = || {
            if cold {
                case.forget()
            }
        };
        forget();
        let mut begun = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            let millis = (now - std::mem::replace(&mut begun, now)).as_secs_f64() * 1e3;
            begun = Instant::now();
            millis
        };
        let node = case.node().start().expect("a start");
        node.wait_leader(common::LONG).expect("a leader");
        let open = lap();
        let db = node.connect("app").expect("a connection");
        let _: i64 = db.query_row("SELECT length(v) FROM t WHERE id = 7", [], |row| row.get(0)).expect("a read");
        let read = lap();
        db.execute("UPDATE t SET v = randomblob(100) WHERE id = 7", []).expect("a commit");
        let commit = lap();
        let status = node.status();
        let (entries, behind) = (status.last.0 + 1 - status.first.0, status.applied.0 - status.anchored.0);
        drop(db);
        lap();
        node.shutdown().expect("an end");
        let shutdown = lap();
        drop(node);
        forget();
        lap();
        let options = LogOptions { segment_bytes: case.segment(), ..LogOptions::default() };
        Log::open(Env::os().fs, &case.dir.join("log"), options).expect("its log");
        Start { entries, behind, log_bytes: status.log_bytes, open, log: lap(), read, commit, shutdown }
    }
}

/// Starts a process that prepares the directory, and kills it.
fn kill_one(case: &Case) {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .arg("--prepare")
        .arg(&case.dir)
        .args(["--size", &case.megabytes.to_string(), "--log", &case.log.to_string()])
        .args(case.small.then_some("--small"))
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
fn prepare(case: &Case) {
    let node = case.node().checkpoint_age(Duration::from_secs(3600)).start().expect("a start");
    while node.wait_leader(common::LONG).is_err() {}
    let db = node.connect("app").expect("a connection");
    db.busy_timeout(common::LONG).expect("a timeout");
    common::fill_pages(&db, case.megabytes * 1_000_000 / 4096);
    // A start reads all of the log that is kept, which `log_limit` bounds: as much for each size of a database.
    let enough = (case.log << 20) / 4 * 3;
    let large =
        || db.execute_batch(&format!("UPDATE t SET v = randomblob(4000) WHERE id < {ROWS}")).expect("the change");
    let (first, mut row) = (node.status().last.0, 0);
    // What filled the database is not what the log is to be made of.
    while node.status().log_bytes < enough || case.small && node.status().first.0 <= first {
        match case.small {
            true => {
                _ = db.execute("UPDATE t SET v = randomblob(4000) WHERE id = ?1", [row % 2000]).expect("the change")
            }
            false => large(),
        }
        row += 1;
    }
    let made = || node.status().databases[0].checkpointed;
    let before = made();
    large();
    let position = node.status().databases[0].position;
    wait("the checkpoint", || made() >= position && made() > before);
    for row in 0..BEHIND {
        db.execute("UPDATE t SET v = randomblob(100) WHERE id = ?1", [row as i64]).expect("a commit");
    }
    println!("ready");
    until_input_ends();
}
