//! Small commits, memory, processor time and the leader's counters, beside whatever is measured; and the rows of the table.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shoaldb::Connection;

use crate::cluster::{Came, Cluster};
use crate::common::{at, cpu, memory};

/// What is seen while something is measured.
#[derive(Default)]
pub(crate) struct Watch {
    done: AtomicBool,
    learner: AtomicU32,
    peak_here: AtomicU64,
    peak_there: AtomicU64,
}

impl Watch {
    /// This process is the learner.
    pub(crate) fn learner(&self, process: u32) {
        self.learner.store(process, Ordering::Relaxed);
    }
}

pub(crate) fn head() {
    println!(
        "| what | writers | seconds | transfer | `cp` and `fsync` | of its rate | sent MB | of it | read of it | leader MB | learner MB | cpu | commits | p50 | p99.9 |"
    );
    println!("|{}", "---|".repeat(15));
}

/// Runs `act` beside so many writers, and prints a row. `expected` are the bytes that it takes at the least.
pub(crate) fn row(cluster: &Cluster, what: &str, writers: usize, expected: u64, act: impl FnOnce(&Watch) -> Came) {
    cluster.rest();
    let (watch, this) = (Watch::default(), std::process::id());
    let (idle, used, before) = (memory(this), cpu(this), cluster.node.status());
    let (mut latencies, came, seconds, used) = std::thread::scope(|scope| {
        let watch = &watch;
        scope.spawn(|| {
            while !watch.done.load(Ordering::Relaxed) {
                watch.peak_here.fetch_max(memory(this), Ordering::Relaxed);
                let there = watch.learner.load(Ordering::Relaxed);
                watch.peak_there.fetch_max(memory(there), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let connections: Vec<_> = (0..writers).map(|_| cluster.node.connect("small").expect("a connection")).collect();
        let writers: Vec<_> =
            connections.into_iter().map(|db| scope.spawn(move || commit_until(&db, &watch.done))).collect();
        let begun = Instant::now();
        let came = act(watch);
        let seconds = begun.elapsed().as_secs_f64();
        watch.done.store(true, Ordering::Relaxed);
        let used = (cpu(this) - used, cpu(watch.learner.load(Ordering::Relaxed)));
        let latencies: Vec<u128> = writers.into_iter().flat_map(|writer| writer.join().expect("no panic")).collect();
        (latencies, came, seconds, used)
    });
    cluster.rest();
    let (copied, after) = (cluster.copy(), cluster.node.status().lending);
    latencies.sort_unstable();
    // Only what another process sent is known from its learner alone.
    let sent = if before.leader == Some(before.node) { after.sent - before.lending.sent } else { came.bytes };
    let part = |bytes: u64| bytes as f64 / expected.max(1) as f64;
    println!(
        "| {what} | {writers} | {seconds:.2} | {:.2} | {copied:.2} | {:.2} | {:.1} | {:.3} | {:.3} | {} | {} | {:.2}, {:.2} | {} | {} | {} |",
        came.millis as f64 / 1e3,
        copied / seconds,
        sent as f64 / 1e6,
        part(sent),
        part(after.read - before.lending.read),
        watch.peak_here.into_inner().saturating_sub(idle) / 1024,
        watch.peak_there.into_inner() / 1024,
        used.0,
        used.1,
        latencies.len(),
        at(&latencies, 500),
        at(&latencies, 999),
    );
}

/// Small commits, one after the other, and how many microseconds each took.
fn commit_until(db: &Connection, done: &AtomicBool) -> Vec<u128> {
    let mut latencies = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        db.execute("INSERT INTO t VALUES (randomblob(100))", []).expect("a small commit");
        latencies.push(begun.elapsed().as_micros());
    }
    latencies
}
