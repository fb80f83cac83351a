//! Memory of three node processes while one transaction is large, and what it costs small ones of another database.
//!
//! ```text
//! cargo bench --bench large -- [--megabytes 300] [--dir DIR]
//! ```
//!
//! The large transactions are an INSERT of that size and a VACUUM after it. Meanwhile a second connection commits small
//! INSERTs to another database, one after the other; before, it does so alone. Memory is the highest sum of `RssAnon` and
//! `RssShmem` that was seen in `/proc/PID/status`, every 20 ms: pages of files do not count, the kernel drops them when it
//! needs the room. The bench fails if any node had 400 MB or more, whatever the size; for 300 MB there is a test of that, too
//! (`tests/cli/memory.rs`).

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Args, LONG, Process, Seat, at, lead, memory, until_input_ends};
use shoaldb::rusqlite;

mod common;

/// What a node may have in memory at any time, in bytes.
const BOUND: u64 = 400_000_000;

fn main() -> ExitCode {
    shoaldb::give_back_freed_memory();
    let args = Args::of_process();
    let start = |seat: &Seat| seat.start(|builder| builder.commit_timeout(LONG));
    if let Some(seat) = args.seat() {
        let _node = start(&seat);
        until_input_ends();
        return ExitCode::SUCCESS;
    }
    let megabytes: u64 = args.number("--megabytes", 300);
    let dir = args.directory();

    let seats = Seat::all((dir.path(), 3), (dir.path(), 0));
    let others: Vec<Process> = seats[1..].iter().map(Seat::spawn).collect();
    let node = start(&seats[0]);
    lead(&node, 1);
    let db = node.connect("app").expect("a connection");
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").expect("a table");
    let mut small = node.connect("small").expect("a connection");
    small.execute_batch("CREATE TABLE t(x)").expect("a table");
    for db in [&db, &small] {
        db.busy_timeout(LONG).expect("a timeout");
    }

    let processes = [std::process::id(), others[0].id(), others[1].id()];
    println!(
        "{:>28} {:>8} {:>26} {:>36}",
        "what", "seconds", "MB of nodes 1, 2, 3", "small commits: n, p50, p99, max us"
    );
    let rows = megabytes * 1024;
    let insert = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         INSERT INTO t(v) SELECT randomblob(1024) FROM n"
    );
    let nothing = || std::thread::sleep(Duration::from_secs(3));
    let mut most = measure("nothing large", processes, &mut small, nothing);
    let what = format!("INSERT of {megabytes} MB");
    most = most.max(measure(&what, processes, &mut small, || db.execute_batch(&insert).expect("the insert")));
    let vacuum = || db.execute_batch("VACUUM").expect("the vacuum");
    most = most.max(measure("VACUUM of it", processes, &mut small, vacuum));
    drop((db, small, others));
    if most < BOUND {
        return ExitCode::SUCCESS;
    }
    eprintln!("{most} bytes were in memory of one node; it must stay below {BOUND}");
    ExitCode::FAILURE
}

/// Runs `act` with small commits and a look at the memory of all nodes beside it: the most that any of them had, in bytes.
fn measure(what: &str, processes: [u32; 3], small: &mut rusqlite::Connection, act: impl FnOnce()) -> u64 {
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
    let at = |share| at(&latencies, share);
    let peaks = peaks.into_inner().expect("no panic").map(|kilobytes| kilobytes << 10);
    println!(
        "{what:>28} {:>8.1} {:>26} {:>36}",
        started.elapsed().as_secs_f64(),
        format!("{:?}", peaks.map(|bytes| bytes / 1_000_000)),
        format!("{}, {}, {}, {}", latencies.len(), at(500), at(990), at(1000)),
    );
    peaks.into_iter().max().unwrap_or(0)
}
