//! `shoal demo`: a cluster of real processes on this machine, and what is left of it after its leader was killed.
//!
//! 1. Three workers start in a temporary directory (with `--nodes 1` one).
//! 2. Data is loaded through SQL: a file of the user's, or generated rows.
//! 3. Writers append numbers to a table, each in a transaction of its own; readers on every node check that a node never
//!    goes back, and that a linearizable read misses nothing that was acknowledged before it began.
//! 4. Meanwhile the process that leads is killed with SIGKILL, and later started again; and again, until time is up.
//! 5. In the end all nodes run, and every node's table is compared with what the writers were told (`ledger.rs`), the
//!    nodes with each other by the checksum of the whole database, each with `PRAGMA integrity_check`, and each loaded table
//!    with what it was loaded from. A node that found its own copy damaged fails the demo, repaired or not.
//!
//! What a kill shows: nothing that was acknowledged lived in that process's memory only. What it cannot show: that
//! nothing lived in the page cache only. That takes a power cut, or a simulated disk.

mod data;
mod show;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::Failed;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::ledger::{Ledger, Verdict};
use crate::harness::wire::{Act, Failure, Told};
use crate::say;
use crate::table::print;
use show::Show;

/// Appends that wait at the same time.
const WRITERS: u64 = 6;
/// How long the cluster runs undisturbed before a kill, and how long the killed node stays away.
const CALM: Duration = Duration::from_millis(1500);
const AWAY: Duration = Duration::from_millis(700);
/// Longest wait for anything before the demo calls itself failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kill a cluster's leader while it is written to, and count what is lost.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal demo
  shoal demo --file my.sqlite --seconds 60
  shoal demo --nodes 1

Exit code: 0 only if nothing that was acknowledged is lost, nothing else came up, and all nodes are equal.")]
pub(crate) struct DemoArgs {
    /// A SQLite file to load; it is only read. Default: generated rows.
    #[arg(long, value_name = "DB.sqlite")]
    file: Option<PathBuf>,
    /// How long the writers run.
    #[arg(long, default_value_t = 10, value_parser = seconds)]
    seconds: u64,
    /// Three nodes, or one that is killed in a loop.
    #[arg(long, default_value_t = 3, value_parser = one_or_three)]
    nodes: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    let seconds = text.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.ok_or_else(|| "write a number of seconds from 1 to 86400".to_string())
}

fn one_or_three(text: &str) -> Result<u64, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("use 1 or 3".to_string()),
    }
}

fn failed(text: impl Into<String>) -> Failed {
    Failed { code: 1, text: text.into() }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        failed(failure.text)
    }
}

/// What writers and readers count while they run.
#[derive(Default)]
struct Counters {
    stop: AtomicBool,
    reads: AtomicU64,
    /// Reads that showed less than they had to.
    stale: AtomicU64,
    /// When the leader was killed last, and the first append after that which began later and was acknowledged.
    outage: Mutex<Outage>,
    back: parking_lot::Condvar,
}

#[derive(Default)]
struct Outage {
    killed: Option<Instant>,
    back: Option<Instant>,
}

/// `shoal demo`.
pub(crate) fn run(args: &DemoArgs) -> Result<(), Failed> {
    let source = match &args.file {
        Some(file) => data::Source::file(file)?,
        None => data::Source::Generated,
    };
    let dir = tempfile::Builder::new().prefix("shoal-demo-").tempdir().map_err(|e| failed(e.to_string()))?;
    let result = run_in(args, &source, dir.path());
    if result.is_err() {
        let kept = dir.keep();
        say::failed(&format!("the nodes' directories and logs are kept in {}", kept.display()));
    }
    result
}

fn run_in(args: &DemoArgs, source: &data::Source, dir: &Path) -> Result<(), Failed> {
    let show = Arc::new(Show::new());
    let interrupted = Arc::new(AtomicBool::new(false));
    ctrlc::set_handler({
        let interrupted = interrupted.clone();
        // The second time ends it at once; the workers follow.
        move || {
            if interrupted.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        }
    })
    .map_err(|error| failed(format!("signal handler: {error}")))?;
    let plan = Plan {
        program: std::env::current_exe().map_err(|error| failed(format!("this program's own path: {error}")))?,
        dir: dir.to_path_buf(),
        nodes: args.nodes,
        heartbeat: Duration::from_millis(100),
        election_timeout: Duration::from_millis(500),
        phases: false,
        hosts: Vec::new(),
    };
    let cluster = Cluster::new(&plan, watcher(&show)).map_err(|error| failed(error.to_string()))?;
    show.say(&format!("{} in {}", nodes(args.nodes), dir.display()));
    cluster.ids().try_for_each(|id| start(&cluster, id))?;
    cluster.wait_leader(PATIENCE).ok_or_else(|| failed(first_error(&cluster)))?;
    let loaded = source.load(&cluster, &show)?;
    cluster.prepare(PATIENCE)?;

    let (ledger, counters) = (Ledger::default(), Counters::default());
    let began = Instant::now();
    let outages = std::thread::scope(|scope| {
        (1..=WRITERS).for_each(|writer| {
            let (cluster, ledger, counters) = (&cluster, &ledger, &counters);
            scope.spawn(move || write(cluster, ledger, counters, writer));
        });
        cluster.ids().for_each(|id| {
            let (cluster, ledger, counters) = (&cluster, &ledger, &counters);
            scope.spawn(move || read(cluster, ledger, counters, id));
        });
        let limit = Duration::from_secs(args.seconds);
        let outages = kill_loop(&cluster, &ledger, &counters, &show, limit, &interrupted);
        counters.stop.store(true, Ordering::SeqCst);
        outages
    })?;
    let seconds = began.elapsed().as_secs_f64();
    show.say("writers and readers have stopped; every node's table is compared with what they were told");
    let verdicts = judge(&cluster, &ledger)?;
    show.say("what was loaded is compared with where it came from");
    for id in cluster.ids() {
        loaded.compare(&cluster, id)?;
    }
    show.end();
    report(&ledger, &counters, &outages, seconds, &verdicts, &loaded, args.json)
}

fn nodes(n: u64) -> String {
    if n == 1 { "one node process".to_string() } else { format!("{n} node processes") }
}

/// Shows each change of leadership once, whoever tells it first.
fn watcher(show: &Arc<Show>) -> crate::harness::cluster::Watcher {
    let (show, seen) = (show.clone(), Mutex::new(0));
    Arc::new(move |id, told| match told {
        Told::Started => show.say(&format!("node {id} runs")),
        Told::Ready => show.say(&format!("node {id} has replayed its log and follows")),
        Told::Leader { leader: Some(leader), term } => {
            let mut seen = seen.lock();
            if term > *seen {
                *seen = term;
                show.say(&format!("node {leader} leads (term {term})"));
            }
        }
        Told::Leader { leader: None, .. } => {}
        Told::Damage { text } | Told::Trouble { text } => show.say(&format!("node {id}: {text}")),
    })
}

fn start(cluster: &Cluster, id: u64) -> Result<(), Failed> {
    cluster.start(id, None).map_err(|error| failed(format!("node {id} could not be started: {error}")))
}

/// What a node that never came up said last.
fn first_error(cluster: &Cluster) -> String {
    let said = cluster.ids().find_map(|id| {
        let text = std::fs::read_to_string(cluster.log(id)).ok()?;
        text.lines().last().map(|line| format!("; node {id} said: {line}"))
    });
    format!("no leader within {PATIENCE:?}{}", said.unwrap_or_default())
}

fn write(cluster: &Cluster, ledger: &Ledger, counters: &Counters, writer: u64) {
    while !counters.stop.load(Ordering::SeqCst) {
        let began = Instant::now();
        match cluster.append(ledger, writer, Duration::from_millis(500)) {
            Ok(acknowledged) => {
                let mut outage = counters.outage.lock();
                if outage.back.is_none() && outage.killed.is_some_and(|killed| began > killed) {
                    outage.back = Some(acknowledged);
                    counters.back.notify_all();
                }
            }
            // An application would try again, and so does the next turn, under a new number.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Reads of one node. The table only grows, so the last rowid is the number of rows.
fn read(cluster: &Cluster, ledger: &Ledger, counters: &Counters, id: u64) {
    let act =
        |linearizable| Act::Read { sql: "SELECT coalesce(max(rowid), 0) FROM shoal_demo".to_string(), linearizable };
    let (mut process, mut seen) = (None, 0);
    while !counters.stop.load(Ordering::SeqCst) {
        let child = cluster.child(id).filter(|child| !child.is_gone());
        let Some(child) = child else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let same = process.as_ref().is_some_and(|process| Arc::ptr_eq(process, &child));
        if !same {
            // A node that was just started replays its log, and shows less at first.
            (process, seen) = (Some(child.clone()), 0);
        }
        let rows = |value: Value| value.pointer("/0/0").and_then(Value::as_u64);
        if let Ok(Some(now)) = child.call(&act(false), Duration::from_secs(15)).map(rows) {
            counters.reads.fetch_add(1, Ordering::Relaxed);
            if now < seen {
                counters.stale.fetch_add(1, Ordering::Relaxed);
            }
            seen = now;
        }
        let before = ledger.count();
        if let Ok(Some(now)) = child.call(&act(true), Duration::from_secs(15)).map(rows) {
            counters.reads.fetch_add(1, Ordering::Relaxed);
            if now < before {
                counters.stale.fetch_add(1, Ordering::Relaxed);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills the leader until time is up, at least once. How long nobody could write, each time.
fn kill_loop(
    cluster: &Cluster,
    ledger: &Ledger,
    counters: &Counters,
    show: &Show,
    limit: Duration,
    interrupted: &AtomicBool,
) -> Result<Vec<Duration>, Failed> {
    let began = Instant::now();
    let mut outages = Vec::new();
    let done = || began.elapsed() >= limit || interrupted.load(Ordering::SeqCst);
    show.begin("writing", limit.as_millis() as u64);
    let calm = |until: Duration| {
        let end = Instant::now() + until;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            let now = began.elapsed().min(limit).as_millis() as u64;
            let (acknowledged, reads) = (ledger.count(), counters.reads.load(Ordering::Relaxed));
            show.progress(now, &format!("{acknowledged} acknowledged, {reads} reads"));
        }
    };
    loop {
        calm(CALM.min(limit / 2));
        let leader = cluster.wait_leader(PATIENCE).ok_or_else(|| failed(first_error(cluster)))?;
        let before = ledger.count();
        show.say(&format!("SIGKILL to node {leader}, which leads; {before} transactions are acknowledged"));
        let killed = Instant::now();
        *counters.outage.lock() = Outage { killed: Some(killed), back: None };
        cluster.kill(leader);
        if cluster.ids().count() == 1 {
            start(cluster, leader)?;
        }
        let mut outage = counters.outage.lock();
        while outage.back.is_none() {
            if counters.back.wait_for(&mut outage, PATIENCE).timed_out() {
                return Err(failed(format!("nothing was acknowledged for {PATIENCE:?} after the kill")));
            }
        }
        let away = outage.back.map_or(Duration::ZERO, |back| back - killed);
        drop(outage);
        outages.push(away);
        show.say(&format!("writes are acknowledged again, {} ms after the kill", away.as_millis()));
        if cluster.ids().count() > 1 {
            calm(AWAY);
            start(cluster, leader)?;
        }
        if !cluster.wait_ready(&[leader], PATIENCE) {
            return Err(failed(format!("node {leader} did not come back within {PATIENCE:?}")));
        }
        if done() {
            return Ok(outages);
        }
    }
}

/// One verdict per node.
fn judge(cluster: &Cluster, ledger: &Ledger) -> Result<Vec<(u64, Verdict)>, Failed> {
    // An entry of the last term: whatever came before it is decided.
    let until = Instant::now() + PATIENCE;
    while let Err(failure) = cluster.append(ledger, 0, PATIENCE) {
        if Instant::now() > until {
            return Err(failure.into());
        }
    }
    let damage = cluster.damage();
    if !damage.is_empty() {
        return Err(failed(format!("copies were damaged: {damage:?}")));
    }
    let sums = cluster.checksums(PATIENCE).map_err(failed)?;
    if sums.iter().any(|(_, sum)| *sum != sums[0].1) {
        return Err(failed(format!("the nodes differ: {sums:?}")));
    }
    let mut verdicts = Vec::new();
    for id in cluster.ids() {
        let integrity = cluster.integrity(id)?;
        if integrity != "ok" {
            return Err(failed(format!("node {id}: integrity_check says: {integrity}")));
        }
        verdicts.push((id, ledger.judge(&cluster.numbers(id)?)));
    }
    Ok(verdicts)
}

/// The one in the middle, or what lies between the two that are.
fn median(sorted: &[u128]) -> u128 {
    let at = |place: usize| sorted.get(place).copied().unwrap_or(0);
    (at(sorted.len().saturating_sub(1) / 2) + at(sorted.len() / 2)) / 2
}

fn report(
    ledger: &Ledger,
    counters: &Counters,
    outages: &[Duration],
    seconds: f64,
    verdicts: &[(u64, Verdict)],
    loaded: &data::Loaded,
    json: bool,
) -> Result<(), Failed> {
    let most = |of: fn(&Verdict) -> usize| verdicts.iter().map(|(_, verdict)| of(verdict)).max().unwrap_or(0);
    let least = |of: fn(&Verdict) -> usize| verdicts.iter().map(|(_, verdict)| of(verdict)).min().unwrap_or(0);
    let (reads, stale) = (counters.reads.load(Ordering::Relaxed), counters.stale.load(Ordering::Relaxed));
    let mut millis: Vec<u128> = outages.iter().map(Duration::as_millis).collect();
    millis.sort_unstable();
    let middle = median(&millis);
    let (found, lost) = (least(|verdict| verdict.found), most(|verdict| verdict.lost.len()));
    let (refused, risen) = (most(|v| v.not_committed), most(|verdict| verdict.risen.len()));
    let untried = most(|verdict| verdict.untried);
    let (unknown, unknown_found) = (most(|verdict| verdict.unknown), most(|verdict| verdict.unknown_found));
    let wrong = most(|v| v.doubled.len() + v.strange.len());
    let (kills, longest) = (outages.len(), millis.last().copied().unwrap_or(0));
    if json {
        let report = json!({
            "kills": kills, "outage_ms": { "median": middle as u64, "longest": longest as u64 },
            "acknowledged": ledger.count(), "seconds": seconds, "found": found, "lost": lost,
            "not_committed": refused, "not_committed_found": risen, "untried": untried, "unknown": unknown, "unknown_found": unknown_found,
            "found_twice_or_never_written": wrong, "reads": reads, "reads_too_old": stale, "nodes_equal": verdicts.len(),
            "tables_as_loaded": loaded.tables(),
        });
        print(&format!("{report:#}"));
    } else {
        let row = |name: &str, value: String| print(&format!("{name:<46}{value}"));
        row("kills of the leader (SIGKILL)", kills.to_string());
        row("until writes went on, median / longest", format!("{middle} / {longest} ms"));
        row("acknowledged", format!("{} ({:.0} per second)", ledger.count(), ledger.count() as f64 / seconds));
        row("found on every node", found.to_string());
        row("told not committed", refused.to_string());
        row("  of these found", risen.to_string());
        row("never tried", untried.to_string());
        row("told nothing (unknown)", unknown.to_string());
        row("  of these found", unknown_found.to_string());
        row("found twice, or never written", wrong.to_string());
        row("reads, local and linearizable", reads.to_string());
        row("  of these too old", stale.to_string());
        row("nodes with equal content", format!("{0} of {0}, integrity_check ok", verdicts.len()));
        row("loaded tables found unchanged on every node", format!("{0} of {0}", loaded.tables()));
        print(&format!("\nlost: {lost}"));
    }
    if verdicts.iter().all(|(_, verdict)| verdict.is_good()) && stale == 0 {
        return Ok(());
    }
    let words: Vec<String> = verdicts
        .iter()
        .filter(|(_, verdict)| !verdict.is_good())
        .map(|(id, verdict)| format!("node {id}: {verdict:?}"))
        .collect();
    Err(failed(format!("promises were broken: {stale} reads too old; {}", words.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!([&[][..], &[7], &[1, 9], &[1, 2, 9], &[1, 2, 4, 9]].map(median), [0, 7, 5, 2, 3]);
    }
}
