//! The simulation as a command: `cargo run --release --features sim --example sim -- --seeds 1..300`, or
//! `-- --seed 17 --verbose` to read what happened. `-- --every-fault 3 --seed 5` gives each of the first three calls of every
//! label of one node's disk its faults, one in each run; `-- --seed 5 --turn "2 log.sync 1 FailsOnce"` repeats one of them.
//!
//! A build with `RUSTC_WORKSPACE_WRAPPER=$PWD/.ci/planted` also takes `--planted`, which shows
//! how soon each planted mistake is noticed, `--planted --known`, which repeats only the runs that are known to notice them, and
//! `--bug NAME`, which plants one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shoaldb::sim::{Options, SCOUTED_FROM, Turn, each, how_to_replay, run, take_turn, turns_of};

mod planted;

/// What the command line says.
struct Command {
    seeds: Range<u64>,
    verbose: bool,
    keep_going: bool,
    planted: bool,
    /// Of the planted mistakes only those runs in which they are known to be noticed.
    known: bool,
    /// So many calls of each label get their fault in turn.
    every_fault: Option<u64>,
    /// Only say which turns there are, in the lives that begin with this one.
    scout: Option<u64>,
    bug: Option<String>,
    /// The one fault of the run.
    turn: Option<Turn>,
}

fn main() {
    fill_memory();
    let mut command = Command {
        seeds: 1..101,
        verbose: false,
        keep_going: false,
        planted: false,
        known: false,
        every_fault: None,
        scout: None,
        bug: None,
        turn: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--verbose" => command.verbose = true,
            "--keep-going" => command.keep_going = true,
            "--every-fault" => command.every_fault = Some(number(args.next())),
            "--planted" => command.planted = true,
            "--known" => command.known = true,
            "--scout" => command.scout = Some(number(args.next())),
            "--bug" => command.bug = Some(args.next().unwrap_or_else(|| fail("--bug takes the name of a mistake"))),
            "--turn" => {
                let text = args.next().unwrap_or_default();
                let turn = Turn::parse(&text);
                command.turn =
                    turn.or_else(|| fail(&format!("{text:?} is no turn; one is \"2 log.sync 1 FailsOnce\"")));
            }
            "--seed" => {
                let seed = number(args.next());
                command.seeds = seed..seed + 1;
            }
            "--seeds" => {
                let range = args.next().unwrap_or_default();
                let (from, to) = range.split_once("..").unwrap_or((&range, ""));
                command.seeds = number(Some(from.to_string()))..number(Some(to.to_string()));
            }
            other => fail(&format!(
                "what is {other}? Use --seeds A..B, --seed N, --verbose, --keep-going, --every-fault N, --turn T, --planted, --known, --bug NAME"
            )),
        }
    }
    if command.planted && command.known {
        return planted::repeat();
    }
    if command.planted {
        return planted::search(&command);
    }
    if let Some(name) = &command.bug {
        planted::plant(name);
    }
    if let Some(calls) = command.every_fault {
        return match command.scout {
            Some(life) => scout(&command, calls, life),
            None => take_turns(&command, calls),
        };
    }
    if command.bug.is_none() && command.seeds.end - command.seeds.start > 1 {
        return simulate_apart(&command);
    }
    simulate(command);
}

/// Each of the first `calls` calls of every label of one node's disk gets its fault in turn, each in a process of its own.
fn take_turns(command: &Command, calls: u64) {
    let (runs, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    for seed in command.seeds.clone() {
        let turns: Vec<Turn> = SCOUTED_FROM.into_iter().flat_map(|life| scouted(seed, calls, life)).collect();
        each(&turns, |turn| {
            let (seed, turn) = (seed.to_string(), turn.to_string());
            let output = own_process(&["--seed", &seed, "--turn", &turn]);
            runs.fetch_add(1, Ordering::Relaxed);
            if !output.status.success() {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("seed {seed}, turn {turn}: {}", output.status);
                println!("{}", String::from_utf8_lossy(&output.stdout).trim_end());
            }
        });
        let labels: BTreeSet<_> = turns.iter().map(|turn| turn.label).collect();
        println!("seed {seed}: {} labels: {labels:?}", labels.len());
    }
    let (runs, failed) = (runs.into_inner(), failed.into_inner());
    println!("{runs} runs, {failed} failed");
    if failed > 0 {
        std::process::exit(1);
    }
}

/// Prints the turns of the lives that begin with this one, for [`scouted`].
fn scout(command: &Command, calls: u64, life: u64) {
    let seed = command.seeds.start;
    match turns_of(seed, calls, life) {
        Ok(turns) => turns.iter().for_each(|turn| println!("{SCOUTED}{turn}")),
        Err(report) => {
            println!("{}", planted::failed_line(seed, report.failure.as_deref().unwrap_or_default()));
            std::process::exit(1);
        }
    }
}

/// Which turns there are, of a process of its own, as the turns are.
fn scouted(seed: u64, calls: u64, life: u64) -> Vec<Turn> {
    let [seed, calls, life] = [seed, calls, life].map(|number| number.to_string());
    let output = own_process(&["--seed", &seed, "--every-fault", &calls, "--scout", &life]);
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        println!("{}", text.trim_end());
        std::process::exit(1);
    }
    text.lines().filter_map(|line| Turn::parse(line.strip_prefix(SCOUTED)?)).collect()
}

const SCOUTED: &str = "turn: ";

/// This command in a process of its own.
fn own_process(args: &[&str]) -> Output {
    let own = std::env::current_exe().unwrap_or_else(|error| fail(&format!("own path: {error}")));
    let output = std::process::Command::new(own).args(args).output();
    output.unwrap_or_else(|error| fail(&format!("a process for {args:?}: {error}")))
}

/// Makes sure that memory which nobody has written to holds the same bytes in every run: SQLite leaves them in the unused
/// parts of pages, so a run depends on them. The C library fills it, if it is told so before the process begins.
fn fill_memory() {
    if std::env::var_os(FILL).is_some() {
        return;
    }
    let own = std::env::current_exe().unwrap_or_else(|error| fail(&format!("own path: {error}")));
    let error = std::process::Command::new(own).args(std::env::args_os().skip(1)).env(FILL, "85").exec();
    fail(&format!("it could not be started again: {error}"));
}

const FILL: &str = "MALLOC_PERTURB_";

/// Runs each seed in a process of its own, several at once: what a seed does must not depend on those before it.
fn simulate_apart(command: &Command) {
    let begun = Instant::now();
    let (done, failed, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let hash = AtomicU64::new(0);
    let coverage: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let run = |seed: u64| {
        let output = own_process(&["--seed", &seed.to_string()]);
        done.fetch_add(1, Ordering::Relaxed);
        let text = String::from_utf8_lossy(&output.stdout);
        let mut coverage = coverage.lock().expect("no panic");
        if !output.status.success() {
            failed.fetch_add(1, Ordering::Relaxed);
            over.store(!command.keep_going, Ordering::Relaxed);
            println!("{}", text.trim_end());
            if output.status.code() != Some(1) {
                println!("seed {seed} FAILED: the process ended: {}\n{}", output.status, how_to_replay(seed, None));
            }
            return;
        }
        let of_seed = text.lines().find_map(|line| line.strip_prefix(HASH));
        let of_seed = of_seed.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        hash.fetch_xor(of_seed.unwrap_or_else(|| fail(&format!("seed {seed} has no hash"))), Ordering::Relaxed);
        for (count, what) in text.lines().filter_map(|line| line.trim_start().split_once(' ')) {
            if let (Ok(count), false) = (count.parse::<u64>(), what.starts_with("seeds,")) {
                *coverage.entry(what.to_string()).or_insert(0) += count;
            }
        }
    };
    each(&command.seeds.clone().collect::<Vec<_>>(), |seed| {
        if !over.load(Ordering::Relaxed) {
            run(*seed);
        }
    });
    let coverage = coverage.into_inner().expect("no panic");
    for (what, count) in &coverage {
        println!("{count:>10} {what}");
    }
    let (done, failed) = (done.into_inner(), failed.into_inner());
    let millis = coverage.get(MILLIS).copied().unwrap_or(0);
    println!("{HASH}{:016x}", hash.into_inner());
    print_sum(done, failed, Duration::from_millis(millis), begun);
    if failed > 0 {
        std::process::exit(1);
    }
}

fn simulate(command: Command) {
    let begun = Instant::now();
    let (mut runs, mut failed, mut simulated, mut hash) = (0, 0, Duration::ZERO, 0);
    let mut coverage: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in command.seeds {
        let report = match &command.turn {
            Some(turn) => take_turn(seed, *turn, command.verbose),
            None => run(&Options { verbose: command.verbose, ..Options::new(seed) }),
        };
        runs += 1;
        simulated += report.simulated;
        hash ^= report.hash;
        for (what, count) in &report.coverage {
            *coverage.entry(what).or_insert(0) += count;
        }
        *coverage.entry("events").or_insert(0) += report.events;
        *coverage.entry(MILLIS).or_insert(0) += report.simulated.as_millis() as u64;
        if let Some(what) = &report.failure {
            failed += 1;
            println!("{}", planted::failed_line(seed, what));
            if !command.keep_going {
                println!("{}", report.story());
                break;
            }
        }
    }
    for (what, count) in coverage {
        println!("{count:>10} {what}");
    }
    println!("{HASH}{hash:016x}");
    print_sum(runs, failed, simulated, begun);
    if failed > 0 {
        std::process::exit(1);
    }
}

/// What runs came to: how long one is, in simulated time, and how many there are in a minute of this machine.
fn print_sum(runs: u64, failed: u64, simulated: Duration, begun: Instant) {
    let (seconds, minutes) = (simulated.as_secs_f64(), begun.elapsed().as_secs_f64() / 60.0);
    println!(
        "{runs} seeds, {failed} failed, {:.2} simulated hours ({:.1} s a seed), {:.0} seeds a minute",
        seconds / 3600.0,
        seconds / runs.max(1) as f64,
        runs as f64 / minutes
    );
}

/// What a run did, byte by byte; that of several runs is the exclusive or of theirs. The same seeds of the same program have the
/// same one.
const HASH: &str = "hash of the traces: ";
const MILLIS: &str = "simulated milliseconds";

fn number(text: Option<String>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_else(|| fail("a number is missing"))
}

fn fail(what: &str) -> ! {
    eprintln!("{what}");
    std::process::exit(2);
}
