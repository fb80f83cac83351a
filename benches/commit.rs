//! Latency and throughput of small transactions: plain SQLite (WAL, `synchronous=FULL`) beside one node and beside three
//! node processes, interleaved round by round on the same disk, so that what the machine does meanwhile hits all of
//! them. Reported as ratios of medians.
//!
//! ```text
//! cargo bench --bench commit -- [--rounds 7] [--millis 700] [--writers 1,16,64] [--only WHAT] [--dir DIR]
//! ```
//!
//! One transaction is one INSERT of 100 bytes into a table with one index. Each writer has a connection of its own with a
//! busy timeout. The three nodes are this process, which leads, and two others.
//!
//! With one writer there is a fourth program, which is no database (`common/bare.rs`): a record goes to the files of three
//! processes, and counts when this process and one other have synced it. Three nodes cannot be faster on this machine; what
//! is between the two is ours to answer for.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bare::Bare;
use common::{Args, Process, Seat, lead, median, until_input_ends};
use shoaldb::{Node, rusqlite};

#[path = "common/bare.rs"]
mod bare;
mod common;

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, k INTEGER, v TEXT); \
                      CREATE INDEX IF NOT EXISTS tk ON t(k)";

fn main() {
    let args = Args::of_process();
    if bare::is_process(&args) {
        return;
    }
    if let Some(seat) = args.seat() {
        let _node = seat.start(|builder| builder);
        return until_input_ends();
    }
    let (rounds, millis) = (args.number("--rounds", 7usize), args.number("--millis", 700));
    let writers = args.value("--writers").unwrap_or("1,16,64").split(',');
    let writers: Vec<usize> = writers.map(|part| part.parse().expect("--writers")).collect();
    // For a profiler: one of the four alone, by the name it has in the table. Nothing to form a ratio with then.
    let only = args.value("--only");
    let dir = args.directory();

    let plain = Plain::open(&dir.path().join("plain.db"));
    let one = Node::open(dir.path().join("one")).expect("one node");
    one.write("app", |tx| Ok(tx.execute_batch(SCHEMA)?)).expect("schema");
    let alone = idle(std::process::id());
    let mut bare = Bare::start(dir.path());
    // Clients of an embedded database live in the leader's process.
    let seats = Seat::all((dir.path(), 3), (dir.path(), 0));
    let others: Vec<Process> = seats[1..].iter().map(Seat::spawn).collect();
    let leader = seats[0].start(|builder| builder);
    lead(&leader, 1);
    leader.write("app", |tx| Ok(tx.execute_batch(SCHEMA)?)).expect("schema");
    println!("{:>8} {:>14} {:>12} {:>12} {:>9} {:>9}", "writers", "what", "tx/s", "p50 us", "ratio", "p99 us");
    for writers in writers {
        let mut samples: Vec<(&str, Vec<Sample>)> =
            vec![("plain", vec![]), ("one node", vec![]), ("three nodes", vec![]), ("no database", vec![])];
        samples.truncate(if writers == 1 { 4 } else { 3 });
        for _ in 0..rounds {
            let limit = Duration::from_millis(millis);
            for (what, samples) in samples.iter_mut().filter(|(what, _)| only.is_none_or(|only| *what == only)) {
                samples.push(match *what {
                    "plain" => run(writers, limit, || plain.connect()),
                    "one node" => run(writers, limit, || connect(&one)),
                    "three nodes" => run(writers, limit, || connect(&leader)),
                    _ => run_bare(&mut bare, limit),
                });
            }
        }
        samples.retain(|(_, samples)| !samples.is_empty());
        let base = median(samples[0].1.iter().map(|sample| sample.per_second));
        for (what, samples) in &samples {
            let rate = median(samples.iter().map(|sample| sample.per_second));
            let p50 = median(samples.iter().map(|sample| sample.p50));
            let p99 = median(samples.iter().map(|sample| sample.p99));
            println!("{writers:>8} {what:>14} {rate:>12.0} {p50:>12.0} {:>9.2} {p99:>9.0}", rate / base);
        }
    }
    let both = idle(std::process::id());
    let follower = idle(others[0].id());
    println!("idle, % of a core: one node {alone:.2}, leader of three {:.2}, follower {follower:.2}", both - alone);
}

/// The share of a core, in percent, that a process takes while nobody asks it for anything.
fn idle(process: u32) -> f64 {
    // Nanoseconds of each thread: what `stat` says comes in hundredths of a second, half of what is looked for here.
    let cpu = || -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("the threads of a process");
        let times = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
        let spent = times.filter_map(|text| text.split_whitespace().next().and_then(|first| first.parse::<f64>().ok()));
        spent.sum::<f64>() / 1e9
    };
    // What was begun before may end.
    std::thread::sleep(Duration::from_secs(3));
    let (before, start) = (cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    (cpu() - before) / start.elapsed().as_secs_f64() * 100.0
}

fn connect(node: &Node) -> rusqlite::Connection {
    let uri = format!("file:app?vfs={}", node.vfs_name());
    let db = rusqlite::Connection::open(uri).expect("connect");
    db.busy_timeout(Duration::from_secs(30)).expect("busy timeout");
    db
}

struct Sample {
    per_second: f64,
    p50: f64,
    p99: f64,
}

/// Each writer inserts until the time is over.
fn run(writers: usize, limit: Duration, connect: impl Fn() -> rusqlite::Connection) -> Sample {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let connections: Vec<_> = (0..writers).map(|_| connect()).collect();
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let times: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> = connections
            .into_iter()
            .map(|db| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut times = Vec::new();
                    let mut insert = db.prepare("INSERT INTO t(k, v) VALUES (?1, ?2)").expect("prepare");
                    while !stop.load(Ordering::Relaxed) {
                        let key = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9) % 1_000_003;
                        let begun = Instant::now();
                        insert.execute((key as i64, "x".repeat(100))).expect("insert");
                        times.push(begun.elapsed().as_secs_f64() * 1e6);
                    }
                    times
                })
            })
            .collect();
        std::thread::sleep(limit);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().expect("writer")).collect()
    });
    sample(times, start.elapsed().as_secs_f64())
}

/// One record after the other until the time is over.
fn run_bare(bare: &mut Bare, limit: Duration) -> Sample {
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < limit {
        let begun = Instant::now();
        bare.append();
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    sample(times, start.elapsed().as_secs_f64())
}

fn sample(mut times: Vec<f64>, elapsed: f64) -> Sample {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get(((times.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(f64::NAN);
    Sample { per_second: times.len() as f64 / elapsed, p50: at(0.5), p99: at(0.99) }
}

struct Plain {
    path: PathBuf,
}

impl Plain {
    fn open(path: &Path) -> Plain {
        let plain = Plain { path: path.to_path_buf() };
        plain.connect().execute_batch(SCHEMA).expect("schema");
        plain
    }

    fn connect(&self) -> rusqlite::Connection {
        let db = rusqlite::Connection::open(&self.path).expect("plain");
        db.busy_timeout(Duration::from_secs(30)).expect("busy timeout");
        let mode: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).expect("wal");
        assert_eq!(mode, "wal");
        db.execute_batch("PRAGMA synchronous=FULL").expect("synchronous");
        db
    }
}
