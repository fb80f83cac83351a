//! A node that lacks what the log no longer has: how long it takes, how much travels, and what it costs the others.
//!
//! ```text
//! cargo bench --bench snapshot -- [--megabytes 200] [--dir DIR] [--rounds 0] [--writers 16]
//! ```
//!
//! With `--rounds` only a learner with nothing, so often, and then three at once: enough to see what a change brings.
//!
//! Two voters, of which the leader is this process, and learners that come and go, each a process of its own. Sixteen
//! writers, or so many as one says, commit small transactions to another database all the time. In turns: a learner with
//! nothing; the same one after one page in a hundred changed while it was away, at random places and at one place; three that are killed when they have a
//! fifth, a half and nine tenths, and started again; three with nothing at once.
//!
//! What was sent is told in parts of the database, or of what changed of it. Memory is what `RssAnon` and `RssShmem` grew by
//! at the most in the leader and were at the most in the learner, seen every 20 ms. "cpu secs" are what
//! leader and learner used of it. "transfer" is how long it was, at the most, from the learner's first question until the snapshot
//! counts there. Beside each: `cp` and `fsync` of the main file. A learner is caught up when the leader knows that it has all that was committed when the learner was started.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Args, LONG, Process, Seat, at, cpu, lead, memory, until_input_ends, wait};
use shoaldb::{Builder, Connection, Event, Node};

mod common;

const LOG_LIMIT: u64 = 32 << 20;
const FIRST_LEARNER: usize = 2;

fn main() {
    let args = Args::of_process();
    if let Some(seat) = args.seat() {
        return learner(&seat);
    }
    let dir = args.directory();
    let rounds = args.number("--rounds", 0);
    let mut bench = Bench::start(dir.path(), args.number("--megabytes", 200), rounds);
    bench.writers = args.number("--writers", bench.writers);
    bench.lent();
    println!(
        "{:>18} {:>8} {:>8} {:>8} {:>9} {:>6} {:>8} {:>8} {:>8} {:>12} {:>30}",
        "what",
        "seconds",
        "transfer",
        "cp secs",
        "sent MB",
        "of it",
        "leader",
        "learner",
        "idle",
        "cpu secs",
        "small commits: n, p50, p99.9 us"
    );
    bench.measure("nothing", 0, |_, _| {
        std::thread::sleep(Duration::from_secs(5));
        0
    });
    // What it costs the others that somebody writes as much to the same disk.
    bench.measure("cp and fsync", 0, |bench, _| {
        bench.copy();
        0
    });

    let all = bench.bytes;
    for number in (FIRST_LEARNER + 7..).take(rounds) {
        bench.node.add_learner(bench.seats[number].member()).expect("a learner");
        bench.outrun(number);
        let mut process = None;
        bench.measure("from nothing", all, |bench, watch| bench.join(number, watch, &mut process));
        bench.leave(number, process.take());
    }
    if rounds == 0 {
        bench.changed_and_killed();
    }
    bench.three_at_once();
}

fn settings(builder: Builder) -> Builder {
    builder.log_limit(LOG_LIMIT).segment_bytes(4 << 20).commit_timeout(LONG).busy_timeout(LONG)
}

/// A node in a process of its own. Says how a snapshot goes on, and how many bytes came for one that it has.
fn learner(seat: &Seat) {
    let node = seat.start(settings);
    let (events, told) = (node.events(), node.clone());
    std::thread::spawn(move || {
        let mut begun = Instant::now();
        for event in events {
            match event {
                Event::SnapshotStarted { .. } => begun = Instant::now(),
                Event::SnapshotInstalled { bytes, .. } => {
                    println!("installed {bytes} {}", begun.elapsed().as_millis());
                }
                _ => {}
            }
        }
    });
    std::thread::spawn(move || {
        let mut last = 0;
        loop {
            if let Some(snapshot) = told.status().snapshot
                && snapshot.done * 100 >= (last + 2) * snapshot.total
                && snapshot.total > 0
            {
                last = snapshot.done * 100 / snapshot.total;
                println!("{last} {}", snapshot.done);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    until_input_ends();
}

struct Bench {
    node: Node,
    seats: Vec<Seat>,
    _second: Process,
    /// Of pages in the database.
    bytes: u64,
    /// How many commit small transactions meanwhile.
    writers: usize,
}

/// What is seen while something is measured.
#[derive(Default)]
struct Watch {
    done: AtomicBool,
    learner: AtomicU32,
    /// Milliseconds from the first question to where the snapshot counts.
    transfer: AtomicU64,
    peak_here: AtomicU64,
    peak_there: AtomicU64,
}

impl Bench {
    fn start(dir: &Path, megabytes: u64, rounds: usize) -> Bench {
        let seats = Seat::all(dir, 2, 7 + rounds as u64);
        let second = seats[1].spawn();
        let node = seats[0].start(settings);
        lead(&node, 1);
        let app = node.connect("app").expect("a connection");
        app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").expect("a table");
        // One row to a page, and not all in one transaction.
        for _ in 0..16 {
            app.execute_batch(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
                 INSERT INTO t(v) SELECT randomblob(4040) FROM n",
                megabytes * 16
            ))
            .expect("the rows");
        }
        let small = node.connect("small").expect("a connection");
        small.execute_batch("CREATE TABLE t(x); CREATE TABLE one(id PRIMARY KEY, v)").expect("tables");
        let bench = Bench { node, seats, _second: second, bytes: megabytes << 20, writers: 16 };
        bench.checkpointed();
        bench
    }

    /// One learner that comes back, and some that are killed on their way.
    fn changed_and_killed(&mut self) {
        let all = self.bytes;
        self.node.add_learner(self.seats[FIRST_LEARNER].member()).expect("a learner");
        let mut process = None;
        self.outrun(FIRST_LEARNER);
        self.measure("from nothing", all, |bench, watch| bench.join(FIRST_LEARNER, watch, &mut process));
        for (what, which) in
            [("1 % at random", "id % 100 = 7"), ("1 % at one place", "id <= (SELECT max(id) FROM t) / 100")]
        {
            self.all_have_it();
            drop(process.take());
            self.app().execute_batch(&format!("UPDATE t SET v = randomblob(4040) WHERE {which}")).expect("the change");
            self.outrun(FIRST_LEARNER);
            self.measure(what, all / 100, |bench, watch| bench.join(FIRST_LEARNER, watch, &mut process));
        }
        self.leave(FIRST_LEARNER, process.take());

        for (number, percent) in (FIRST_LEARNER + 1..).zip([20, 50, 90]) {
            self.node.add_learner(self.seats[number].member()).expect("a learner");
            self.outrun(number);
            let mut process = None;
            self.measure(&format!("killed at {percent} %"), all, |bench, watch| {
                let mut first = bench.seats[number].spawn();
                let had = loop {
                    let line = first.line();
                    let (at, had) = line.split_once(' ').expect("two words");
                    if at.parse::<u64>().expect("it is not installed yet") >= percent {
                        break had.parse::<u64>().expect("a number of bytes");
                    }
                };
                first.kill();
                had + bench.join(number, watch, &mut process)
            });
            self.leave(number, process.take());
        }
    }

    /// Three with nothing.
    fn three_at_once(&mut self) {
        let all = self.bytes;
        let three = FIRST_LEARNER + 4..FIRST_LEARNER + 7;
        for number in three.clone() {
            self.node.add_learner(self.seats[number].member()).expect("a learner");
            self.outrun(number);
        }
        let mut processes: Vec<Option<Process>> = vec![None, None, None];
        self.measure("three at once", 3 * all, |bench, watch| {
            std::thread::scope(|scope| {
                let join = |(number, process)| scope.spawn(move || bench.join(number, watch, process));
                let joins: Vec<_> = three.zip(&mut processes).map(join).collect();
                joins.into_iter().map(|join| join.join().expect("no panic")).sum()
            })
        });
    }

    /// Waits until the leader has everything in its main file.
    fn checkpointed(&self) {
        wait("a checkpoint", || {
            let status = self.node.status();
            status.databases.iter().all(|db| db.name != "app" || db.checkpointed == db.position)
        });
    }

    fn app(&self) -> Connection {
        self.node.connect("app").expect("a connection")
    }

    fn all_have_it(&self) {
        let committed = self.node.status().committed;
        wait("all have it", || self.node.status().peers.iter().all(|peer| peer.acknowledged >= committed));
    }

    /// How long it takes to be lent a view while the WAL has four megabytes.
    fn lent(&self) {
        let (app, mut micros) = (self.app(), Vec::new());
        for _ in 0..30 {
            app.execute_batch("UPDATE t SET v = randomblob(4040) WHERE id <= 1000").expect("four megabytes");
            let begun = Instant::now();
            let view = self.node.read_view("app").expect("a view");
            micros.push(begun.elapsed().as_micros());
            view.close();
        }
        micros.sort_unstable();
        println!("a view is lent after {} us, median of 30; {} us at the most", at(&micros, 500), at(&micros, 1000));
    }

    /// Writes until the log no longer has what a learner needs next. The database stays small.
    fn outrun(&self, number: usize) {
        let small = self.node.connect("small").expect("a connection");
        let id = self.seats[number].member().id;
        let behind = || {
            let status = self.node.status();
            status.peers.iter().all(|peer| u64::from(peer.node.0) != id || peer.acknowledged < status.first)
        };
        while !behind() || self.node.status().first.0 <= 1 {
            small.execute("INSERT OR REPLACE INTO one VALUES (1, randomblob(500000))", []).expect("a large row");
        }
        self.checkpointed();
    }

    /// Starts a learner, waits until it is caught up, and tells how many bytes came.
    fn join(&self, number: usize, watch: &Watch, process: &mut Option<Process>) -> u64 {
        let (id, committed) = (self.seats[number].member().id, self.node.status().committed);
        let process = process.insert(self.seats[number].spawn());
        watch.learner.store(process.id(), Ordering::Relaxed);
        let bytes = loop {
            if let Some((bytes, millis)) = process.line().strip_prefix("installed ").and_then(|it| it.split_once(' ')) {
                watch.transfer.fetch_max(millis.parse().expect("a number"), Ordering::Relaxed);
                break bytes.parse().expect("a number of bytes");
            }
        };
        wait("it is caught up", || {
            self.node.status().peers.iter().any(|peer| u64::from(peer.node.0) == id && peer.acknowledged >= committed)
        });
        bytes
    }

    /// A learner that is no longer needed.
    fn leave(&self, number: usize, process: Option<Process>) {
        self.node.remove(self.seats[number].member().id).expect("it is removed");
        drop(process);
        std::fs::remove_dir_all(self.seats[number].dir()).expect("its directory goes");
    }

    /// Runs `act`, which tells how many bytes came, beside small commits and a look at memory.
    fn measure(&mut self, what: &str, expected: u64, act: impl FnOnce(&Bench, &Watch) -> u64) {
        let watch = Watch::default();
        let (idle, used) = (memory(std::process::id()), cpu(std::process::id()));
        let (mut latencies, sent, seconds, used) = std::thread::scope(|scope| {
            let watch = &watch;
            scope.spawn(|| {
                while !watch.done.load(Ordering::Relaxed) {
                    watch.peak_here.fetch_max(memory(std::process::id()), Ordering::Relaxed);
                    let there = watch.learner.load(Ordering::Relaxed);
                    watch.peak_there.fetch_max(memory(there), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let writers: Vec<_> =
                (0..self.writers).map(|_| self.node.connect("small").expect("a connection")).collect();
            let writers: Vec<_> =
                writers.into_iter().map(|db| scope.spawn(move || commit_until(&db, &watch.done))).collect();
            let begun = Instant::now();
            let sent = act(self, watch);
            let seconds = begun.elapsed().as_secs_f64();
            watch.done.store(true, Ordering::Relaxed);
            let used = (cpu(std::process::id()) - used, cpu(watch.learner.load(Ordering::Relaxed)));
            let latencies: Vec<u128> =
                writers.into_iter().flat_map(|writer| writer.join().expect("no panic")).collect();
            (latencies, sent, seconds, used)
        });
        let copied = self.copy();
        latencies.sort_unstable();
        println!(
            "{what:>18} {seconds:>8.2} {:>8.2} {copied:>8.2} {:>9.1} {:>6.3} {:>8} {:>8} {:>8} {:>12} {:>30}",
            watch.transfer.into_inner() as f64 / 1e3,
            sent as f64 / 1e6,
            sent as f64 / expected.max(1) as f64,
            watch.peak_here.into_inner().saturating_sub(idle) / 1024,
            watch.peak_there.into_inner() / 1024,
            idle / 1024,
            format!("{:.2}, {:.2}", used.0, used.1),
            format!("{}, {}, {}", latencies.len(), at(&latencies, 500), at(&latencies, 999)),
        );
    }

    /// Seconds that a copy and a sync of the leader's largest main file take.
    fn copy(&self) -> f64 {
        let dir = self.seats[0].dir();
        let files = std::fs::read_dir(dir.join("db")).expect("the leader's databases").filter_map(Result::ok);
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
