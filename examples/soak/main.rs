//! Three node processes under a mixed load, killed and restarted all the time, for as long as wanted.
//!
//! ```text
//! cargo run --release --example soak -- --minutes 60 [--dir DIR] [--seed S] [--steady ID]
//! ```
//!
//! The program starts itself three more times (`node.rs`) and tells these processes what to do (`load.rs`): small and large
//! transactions on several databases, reads at both levels, read transactions that stay open, changes of the schema, VACUUM,
//! databases that come and go, transfers of leadership; and SIGKILL, to the leader more often than to others, sometimes to
//! all at once, or, with `--steady`, to all but one, whose memory is then told by minute. Data stays small, so whatever grows
//! should not.
//!
//! Every acknowledged transaction is checked when the same writer writes again, every read when it comes (`ledger.rs`). In
//! the end all nodes run, and then: what was acknowledged is there, on each of them, and what was said to be not committed is
//! not; their checksums are equal at one position; `integrity_check` is content; there is no alarm. No node may say that
//! something is an error, ever, and no process may end that was not killed. Memory and disk are judged by the rule in
//! `watch.rs`. One line is printed for each minute. Exit code 0 only if nothing is wrong; else the nodes' directories and
//! logs are kept, and it says where.
//!
//! A kill leaves the page cache alone: that something acknowledged was on *disk* is for the simulation to show.

mod cluster;
mod ledger;
mod load;
mod node;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use cluster::{Cluster, NODES};
use load::{DATABASES, Soak, WRITERS};
use watch::{MIB, Minute, Usage};
use wire::{Failure, Fate, Job};

/// Longest wait for anything at the beginning and at the end, and for the next acknowledged transaction in between.
const PATIENCE: Duration = Duration::from_secs(120);
/// After its last minute, a soak that still goes on hangs itself: more than all that it may wait for in the end.
const OVERTIME: Duration = Duration::from_secs(1200);

const HELP: &str = "Three node processes under a mixed load, killed and restarted all the time. Exit code 0: nothing was lost, nothing grew.

Usage: soak [--minutes N] [--dir DIR] [--seed S] [--steady ID]

  --minutes N   how long; 2 by default, too few to tell growth
  --dir DIR     where the nodes' directories go; they stay if something is wrong
  --seed S      of the order of what is done
  --steady ID   a node, 1 to 3, that is never killed; its memory is told by minute";

struct Args {
    minutes: u64,
    seed: u64,
    dir: PathBuf,
    /// A node that is never killed.
    steady: Option<u64>,
}

fn main() {
    shoaldb::give_back_freed_memory();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|word| word == "--help" || word == "-h") {
        return println!("{HELP}");
    }
    let result = match args.split_first() {
        Some((first, rest)) if first == "--node" => node::run(rest).map_err(|error| error.to_string()),
        _ => parse(&args).and_then(|args| soak(&args)),
    };
    if let Err(what) = result {
        eprintln!("soak: {what}");
        std::process::exit(1);
    }
}

fn parse(args: &[String]) -> Result<Args, String> {
    let mut parsed = Args { minutes: 2, seed: 1, dir: std::env::temp_dir(), steady: None };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: &String| text.parse::<u64>().map_err(|_| format!("{word} {text}: not a number"));
        match word.as_str() {
            "--minutes" => parsed.minutes = number(value?)?,
            "--seed" => parsed.seed = number(value?)?,
            "--dir" => parsed.dir = PathBuf::from(value?),
            "--steady" => parsed.steady = Some(number(value?)?).filter(|id| NODES.contains(id)),
            other => return Err(format!("what is {other}? Use --help")),
        }
    }
    Ok(parsed)
}

fn soak(args: &Args) -> Result<(), String> {
    std::fs::create_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let dir = tempfile::Builder::new().prefix("soak-").tempdir_in(&args.dir).map_err(|error| error.to_string())?;
    // The nodes' open files are recognised by their path.
    let path = dir.path().canonicalize().map_err(|error| error.to_string())?;
    end_if_it_hangs(Duration::from_secs(60 * args.minutes) + OVERTIME, args.seed, &path);
    let result = soak_in(args, &path);
    if result.is_err() {
        eprintln!("soak: seed {}; the nodes' directories and logs are kept in {}", args.seed, dir.keep().display());
    }
    result
}

/// Whatever waits for this program should hear that it will not end, and it can't be asked any more then. The nodes end with it.
fn end_if_it_hangs(limit: Duration, seed: u64, dir: &Path) {
    let words = format!(
        "soak: seed {seed}; it has not ended within {limit:?} and hangs; the nodes' directories and logs are kept in {}",
        dir.display()
    );
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        eprintln!("{words}");
        std::process::exit(1);
    });
}

fn soak_in(args: &Args, dir: &Path) -> Result<(), String> {
    let cluster = Cluster::new(dir).map_err(|error| error.to_string())?;
    println!("three nodes in {}, seed {}, for {} minutes", dir.display(), args.seed, args.minutes);
    NODES.into_iter().try_for_each(|id| cluster.start(id)).map_err(|error| error.to_string())?;
    let notes = std::fs::File::create(dir.join("notes")).map_err(|error| error.to_string())?;
    let soak = Soak::new(cluster, args.seed, args.steady, notes);
    for db in DATABASES {
        until_done(|| soak.cluster.on_leader(&Job::Prepare { db: db.to_string() }))?;
    }
    let mut minutes = Vec::new();
    soak.run(|| minutes = watch(&soak, args.minutes));
    if let Some(what) = soak.finding() {
        return Err(what);
    }
    let settled = settle(&soak);
    // It would explain whatever else is wrong.
    if let Some(what) = soak.cluster.ended_by_itself() {
        return Err(what);
    }
    settled?;
    for id in NODES {
        let of_node: Vec<Minute> = minutes.iter().map(|minute| minute[id as usize - 1]).collect();
        watch::judge(id, &of_node)?;
        if args.steady == Some(id) {
            watch::judge_steady(id, &of_node)?;
        }
    }
    report(&soak, args)
}

/// Prints a line a minute, and ends the load. Answers what each node used, minute by minute.
fn watch(soak: &Soak, minutes: u64) -> Vec<[Minute; 3]> {
    println!(
        "{:>6} {:>7} {:>5} {:>26} {:>8} {:>15} {:>15} {:>15} {:>15} {:>15}",
        "minute",
        "commits",
        "kills",
        "p50, p99, max ms",
        "gap ms",
        "memory MiB",
        "log MiB",
        "databases MiB",
        "spilled MiB",
        "least disk MiB"
    );
    let began = Instant::now();
    let (mut all, mut now) = (Vec::new(), [Minute::default(); 3]);
    let mut logs = NODES.map(|id| Log { path: soak.cluster.log(id), read: 0 });
    loop {
        let stops = soak.stops_within(Duration::from_millis(500));
        for (id, minute) in NODES.into_iter().zip(&mut now) {
            minute.see(Usage::of(soak.cluster.child(id).map(|child| child.pid), &soak.cluster.data(id)));
        }
        if let Some(error) = logs.iter_mut().find_map(Log::next_error) {
            soak.found(format!("a node says: {error}"));
        }
        if let Some(what) = soak.cluster.ended_by_itself() {
            soak.found(what);
        }
        if soak.last_commit.lock().elapsed() > PATIENCE {
            soak.found(format!("nothing was acknowledged for {PATIENCE:?}"));
        }
        if stops || began.elapsed() >= Duration::from_secs(60) * (all.len() as u32 + 1) {
            line(soak, all.len() + 1, &now);
            all.push(std::mem::take(&mut now));
        }
        if stops {
            return all;
        }
        if all.len() as u64 == minutes {
            soak.stop();
            return all;
        }
    }
}

/// What a node says while it runs. Nobody harms its disk, so nothing may be an error to it, but what it tries again, and a
/// disk that others of the machine keep from answering.
struct Log {
    path: PathBuf,
    read: u64,
}

impl Log {
    fn next_error(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut file = std::fs::File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(self.read)).ok()?;
        file.read_to_string(&mut text).ok()?;
        // A line that is not whole yet is for the next time.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        let passes = |line: &str| line.contains("tried again") || line.contains("the disk has not answered");
        let error = |line: &&str| (line.contains(" ERROR ") && !passes(line)) || line.contains("panicked at");
        text[..whole].lines().find(error).map(str::to_string)
    }
}

fn line(soak: &Soak, minute: usize, of_nodes: &[Minute; 3]) {
    let mut counted = std::mem::take(&mut *soak.minute.lock());
    counted.micros.sort_unstable();
    let millis = |share: usize| {
        let at = (counted.micros.len() * share / 1000).min(counted.micros.len().saturating_sub(1));
        counted.micros.get(at).copied().unwrap_or(0) as f64 / 1000.0
    };
    let of_minutes = |of: &dyn Fn(&Minute) -> u64| {
        of_nodes.iter().map(|minute| (of(minute) / MIB).to_string()).collect::<Vec<_>>().join("/")
    };
    let of = |of: fn(&Usage) -> u64| of_minutes(&|minute| of(&minute.most));
    println!(
        "{minute:>6} {:>7} {:>5} {:>26} {:>8} {:>15} {:>15} {:>15} {:>15} {:>15}",
        counted.micros.len(),
        counted.kills,
        format!("{:.1}, {:.1}, {:.0}", millis(500), millis(990), millis(1000)),
        counted.gap.as_millis(),
        of(|usage| usage.memory),
        of(|usage| usage.log),
        of(|usage| usage.databases),
        of(|usage| usage.spilled),
        of_minutes(&|minute| minute.least_disk),
    );
}

/// Again until it works; only for what may be done twice.
fn until_done<T>(act: impl Fn() -> Result<T, Failure>) -> Result<T, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        match act() {
            Ok(value) => return Ok(value),
            Err(failure) if failure.fate == Fate::Unsaid || Instant::now() > until => return Err(failure.text),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The end: everybody is there again, and everything is compared.
fn settle(soak: &Soak) -> Result<(), String> {
    for (at, _) in DATABASES.iter().enumerate() {
        for writer in 0..WRITERS {
            // One more of each settles what is unknown.
            until_done(|| soak.attempt(at, writer, 0, false, false))?;
        }
    }
    for change in soak.never_made() {
        until_done(|| soak.make(&change))?;
    }
    if let Some(what) = soak.finding() {
        return Err(what);
    }
    for (at, db) in DATABASES.iter().enumerate() {
        let name = || db.to_string();
        equal(soak, db)?;
        for id in NODES {
            let ask = |job: Job| until_done(|| soak.cluster.ask(id, &job)).map(|(_, value)| value);
            let said = ask(Job::Integrity { db: name() })?;
            if said != "ok" {
                return Err(format!("node {id}, {db}: integrity_check says {said}"));
            }
            let totals = load::pairs(&ask(Job::Totals { db: name(), linearizable: false })?);
            let mut slots: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
            for row in ask(Job::Slots { db: name() })?.as_array().into_iter().flatten() {
                if let [Some(writer), Some(slot), Some(number)] =
                    [0, 1, 2].map(|at| row.get(at).and_then(Value::as_u64))
                {
                    slots.entry(writer).or_default().insert(slot, number);
                }
            }
            for writer in 0..WRITERS {
                let total = totals.get(&writer).copied().unwrap_or(0);
                let judged =
                    soak.accounts[at][writer as usize].lock().judge(total, &slots.remove(&writer).unwrap_or_default());
                judged.map_err(|what| format!("node {id}, {db}, writer {writer}: {what}"))?;
            }
        }
    }
    for id in NODES {
        let calm = || {
            let (_, status) = soak.cluster.ask(id, &Job::Status)?;
            match status["alarms"].as_array().filter(|alarms| alarms.is_empty()) {
                Some(_) => Ok(()),
                None => Err(Failure::new(Fate::NotCommitted, format!("node {id} has alarms: {}", status["alarms"]))),
            }
        };
        until_done(calm)?;
    }
    Ok(())
}

/// Waits until all nodes are at one position of a database, and compares.
fn equal(soak: &Soak, db: &str) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut sums = Vec::new();
        for id in NODES {
            let job = Job::Checksum { db: db.to_string() };
            sums.push(until_done(|| soak.cluster.ask(id, &job)).map(|(_, value)| value)?);
        }
        if sums.iter().all(|sum| *sum == sums[0]) {
            return Ok(());
        }
        let one_position = sums.iter().all(|sum| sum[0] == sums[0][0]);
        if one_position || Instant::now() > until {
            return Err(format!("{db}: the nodes differ: {sums:?}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn report(soak: &Soak, args: &Args) -> Result<(), String> {
    let certain: u64 = soak.accounts.iter().flatten().map(|account| account.lock().certain()).sum();
    let jobs = soak.jobs.lock();
    for (job, done) in &*jobs {
        println!("{done:>9} {job}");
        let failures = soak.failures.lock();
        for ((_, what), times) in failures.iter().filter(|((failed, _), _)| failed == job) {
            println!("{:>9} times not: {what}", format!("({times})"));
        }
    }
    let unknown = soak.unknown.load(std::sync::atomic::Ordering::Relaxed);
    println!("{certain} transactions are certain, {unknown} were unknown at first; all nodes have the same, lost: 0");
    // A kind of load that never worked was not tested.
    match jobs.iter().find(|(_, done)| **done == 0) {
        Some((job, _)) if args.minutes > 1 => Err(format!("no success at all: {job}")),
        _ => Ok(()),
    }
}
