//! What checkpoints cost those who commit: one writer on a node alone, with checkpoints as usual and without any, beside
//! plain SQLite (WAL, `synchronous=FULL`) with its automatic checkpoints and without; interleaved on one disk.
//!
//! ```text
//! cargo bench --bench checkpoint -- [--megabytes 200] [--rounds 5] [--millis 3000] [--dir DIR]
//! ```
//!
//! One transaction overwrites four rows at random places, each on a page of its own, which is the worst that a checkpoint
//! meets: hardly a page is overwritten twice between two of them. "Written" is what the disk was given for one byte
//! of changed pages, whoever gave it, so the machine has to be quiet: log, double-write and main file; of plain SQLite WAL and
//! main file; of both what the file system adds. The node without checkpoints does what plain SQLite never may: its WAL grows until the round ends.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Args, at};
use shoaldb::{Node, rusqlite};

mod common;

/// Rows of one transaction.
const ROWS: u64 = 4;
const NEVER: u64 = 1 << 40;

fn main() {
    let args = Args::of_process();
    let (rounds, millis) = (args.number("--rounds", 5), args.number("--millis", 3000));
    let rows = args.number("--megabytes", 200u64) * 1_000_000 / 4096;
    let dir = args.directory();
    let device = rustix::fs::stat(dir.path()).expect("stat").st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let disk = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
    let node = |name: &str, bytes| {
        let builder = Node::builder(1, dir.path().join(name)).checkpoint_bytes(bytes);
        let node = builder.checkpoint_age(Duration::from_secs(3600)).start().expect("a node");
        while node.wait_leader(common::LONG).is_err() {}
        node
    };
    let with = node("with", 4 << 20);
    let without = node("without", NEVER);
    let connect = |node: &Node| {
        let uri = format!("file:app?vfs={}", node.vfs_name());
        rusqlite::Connection::open(uri).expect("a connection")
    };
    let programs: [(&str, rusqlite::Connection); 4] = [
        ("plain", plain(&dir.path().join("with.db"), 1000)),
        ("plain, no checkpoints", plain(&dir.path().join("without.db"), 0)),
        ("node", connect(&with)),
        ("node, no checkpoints", connect(&without)),
    ];
    for (_, db) in &programs {
        db.busy_timeout(common::LONG).expect("a timeout");
        common::fill_pages(db, rows);
    }
    // What filled it is in the main file.
    common::wait("the checkpoint", || with.status().databases.iter().all(|db| db.wal_frames < 2000));
    let mut results: Vec<Vec<Round>> = programs.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for ((what, db), results) in programs.iter().zip(&mut results) {
            results.push(Round::run(db, rows, Duration::from_millis(millis), &disk));
            if *what == "plain, no checkpoints" {
                db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("a checkpoint");
            }
        }
    }
    println!(
        "{:>22} {:>9} {:>8} {:>9} {:>9} {:>9} {:>9}",
        "what", "tx/s", "ratio", "p50 us", "p99 us", "max us", "written"
    );
    let median = |rounds: &[Round], of: fn(&Round) -> f64| common::median(rounds.iter().map(of));
    let base = median(&results[0], |round| round.per_second);
    for ((what, _), rounds) in programs.iter().zip(&results) {
        let per_second = median(rounds, |round| round.per_second);
        println!(
            "{what:>22} {per_second:>9.0} {:>8.2} {:>9.0} {:>9.0} {:>9.0} {:>9.1}",
            per_second / base,
            median(rounds, |round| round.p50),
            median(rounds, |round| round.p99),
            median(rounds, |round| round.longest),
            median(rounds, |round| round.written),
        );
    }
}

fn plain(path: &Path, pages: u32) -> rusqlite::Connection {
    let db = rusqlite::Connection::open(path).expect("plain");
    let mode: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).expect("wal");
    assert_eq!(mode, "wal");
    db.execute_batch("PRAGMA synchronous=FULL").expect("synchronous");
    db.pragma_update(None, "wal_autocheckpoint", pages).expect("autocheckpoint");
    db
}

struct Round {
    per_second: f64,
    p50: f64,
    p99: f64,
    longest: f64,
    written: f64,
}

impl Round {
    fn run(db: &rusqlite::Connection, rows: u64, limit: Duration, disk: &Path) -> Round {
        // The seventh number is sectors of 512 bytes.
        let written = || {
            let text = std::fs::read_to_string(disk).unwrap_or_default();
            text.split_whitespace().nth(6).and_then(|sectors| sectors.parse::<f64>().ok()).unwrap_or(f64::NAN) * 512.0
        };
        let sql = "UPDATE t SET v = randomblob(4000) WHERE id IN (?1, ?2, ?3, ?4)";
        let mut update = db.prepare(sql).expect("a statement");
        let (before, begun, mut times, mut next) = (written(), Instant::now(), Vec::new(), 0u64);
        while begun.elapsed() < limit {
            let mut at = || {
                next += 1;
                (next.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % rows
            };
            let ids = [at() as i64, at() as i64, at() as i64, at() as i64];
            let start = Instant::now();
            update.execute(ids).expect("a commit");
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        let changed = (times.len() as u64 * ROWS * 4096) as f64;
        let (per_second, written) =
            (times.len() as f64 / begun.elapsed().as_secs_f64(), (written() - before) / changed);
        times.sort_by(f64::total_cmp);
        Round { per_second, p50: at(&times, 500), p99: at(&times, 990), longest: at(&times, 1000), written }
    }
}
