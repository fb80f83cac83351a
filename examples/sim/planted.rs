//! Which planted mistakes the simulation notices, and how soon.
//!
//! A mistake is planted for a whole process, and each seed is a process of its own, as without mistakes. What comes of it:
//!
//! | the process | what that says |
//! |---|---|
//! | ends with 0 | nothing was noticed |
//! | ends with 1 | noticed: the seed failed; also by a panic of the code under test, which the run catches |
//! | dies of SIGSEGV, SIGBUS or SIGABRT | noticed: whoever runs a cluster would notice it |
//! | takes too long, or ends in another way, as one that is killed for want of memory | nothing, and the command fails |
//!
//! The same seeds must hold without a mistake.
//!
//! `noticed.txt` has a seed for each mistake with which it is noticed: `--planted --known` runs only those, and others for those
//! that have moved.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command as Process, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use shoaldb::sim::each;

use super::{Command, fail};

/// Mistakes, and a seed that notices each.
const NOTICED: &str = include_str!("noticed.txt");

/// A seed that takes longer hangs, which is a mistake of the simulation: the slowest take a few seconds.
const HANGS: Duration = Duration::from_secs(120);

/// Seeds that are tried for a mistake whose own seed has moved.
const BUDGET: Range<u64> = 1..151;

/// The name that plants nothing.
const NONE: &str = "none";

/// How a process says that a seed failed.
pub(super) fn failed_line(seed: u64, what: &str) -> String {
    format!("seed {seed} FAILED: {what}")
}

/// Plants a mistake in this process.
#[cfg(shoal_planted)]
pub(super) fn plant(name: &str) {
    let known = name == NONE || shoaldb::planted::select(name) || shoaldb_vfs::planted::select(name);
    if !known {
        fail(&format!("there is no mistake of the name {name}; --planted lists them all"));
    }
}

/// There is nothing to plant in this build.
#[cfg(not(shoal_planted))]
pub(super) fn plant(_: &str) {
    fail(
        "this build has no mistakes to plant; make one that has: RUSTC_WORKSPACE_WRAPPER=$PWD/.ci/planted cargo run --features sim --example sim -- --planted",
    );
}

/// Every mistake with what is wrong: those of both crates.
fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    shoaldb_vfs::planted::ALL.iter().chain(shoaldb::planted::ALL).copied()
}

/// The seeds of `noticed.txt`.
fn known() -> BTreeMap<&'static str, u64> {
    let lines = NOTICED.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let line = |line: &'static str| {
        let (name, seed) = line.split_once(' ').unwrap_or_default();
        let seed = seed.trim().parse();
        (name, seed.unwrap_or_else(|_| fail(&format!("noticed.txt: what is {line}?"))))
    };
    lines.map(line).collect()
}

/// Runs the seeds with each mistake until it is noticed, and prints the table. The process ends with 1 if one was not noticed, or
/// if a seed did not hold without a mistake or came to no verdict.
pub(super) fn search(command: &Command) {
    plant(NONE);
    let wanted = |(name, _): &(&str, &str)| command.bug.as_ref().is_none_or(|only| only == name);
    let mut bugs: Vec<_> = all().filter(wanted).collect();
    if bugs.is_empty() {
        fail("there is no mistake of that name");
    }
    bugs.insert(0, (NONE, "no mistake: every seed must hold"));
    let (missed, undecided) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    println!("| mistake | what is wrong | first seed | noticed by |\n|---|---|---|---|");
    each(&bugs, |&(name, what)| {
        let begun = Instant::now();
        let found = command.seeds.clone().find_map(|seed| match notice(name, seed) {
            Verdict::Holds => None,
            Verdict::Noticed(by) => Some((seed, by)),
            Verdict::None(why) => {
                undecided.lock().expect("no panic").push(format!("seed {seed} with {name}: {why}"));
                None
            }
        });
        eprintln!("{name}: {:.0} s", begun.elapsed().as_secs_f64());
        if found.is_none() != (name == NONE) {
            missed.lock().expect("no panic").push(name);
        }
        let (seed, by) = match found {
            Some((seed, by)) => (seed.to_string(), short(&by)),
            None => ("none".to_string(), "-".to_string()),
        };
        println!("| `{name}` | {} | {seed} | {by} |", what.trim());
    });
    end(&missed.into_inner().expect("no panic"), &undecided.into_inner().expect("no panic"));
}

/// Runs each mistake with the seed that notices it, and that seed without a mistake. Whatever changes what the simulation does
/// also moves seeds: if that one has nothing to say any more, others are tried, as many as [`BUDGET`]. The process ends with 1 if a
/// mistake is not noticed within that, or if a seed fails without one.
pub(super) fn repeat() {
    plant(NONE);
    let known = known();
    let begun = Instant::now();
    let without: BTreeSet<&str> = known.iter().filter(|(_, seed)| **seed == 0).map(|(name, _)| *name).collect();
    let bugs: Vec<_> = all().map(|(name, _)| name).filter(|name| !without.contains(name)).collect();
    let (missed, undecided) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let (holds, runs) = (Mutex::new(BTreeSet::new()), AtomicUsize::new(0));
    let ask = |name: &str, seed: u64| {
        runs.fetch_add(1, Ordering::Relaxed);
        let verdict = notice(name, seed);
        if let Verdict::None(why) = &verdict {
            undecided.lock().expect("no panic").push(format!("seed {seed} with {name}: {why}"));
        }
        verdict
    };
    each(&bugs, |&name| {
        let written = known.get(name).copied();
        let found = written.into_iter().chain(BUDGET).find(|seed| matches!(ask(name, *seed), Verdict::Noticed(_)));
        let Some(seed) = found else {
            println!("{name}: not noticed by its seed, and by no other one of {BUDGET:?}");
            return missed.lock().expect("no panic").push(name);
        };
        if written != Some(seed) {
            println!("{name}: noticed by seed {seed}, and not by {written:?}; write it into noticed.txt");
        }
        if !holds.lock().expect("no panic").insert(seed) {
            return;
        }
        if let Verdict::Noticed(what) = ask(NONE, seed) {
            println!("seed {seed} without a mistake: {what}");
            missed.lock().expect("no panic").push(NONE);
        }
    });
    let runs = runs.into_inner();
    println!("{runs} runs, {:.0} s; no seed is known for {without:?}", begun.elapsed().as_secs_f64());
    end(&missed.into_inner().expect("no panic"), &undecided.into_inner().expect("no panic"));
}

fn end(missed: &[&str], undecided: &[String]) {
    if !undecided.is_empty() {
        println!("\nno verdict: {}", undecided.join("; "));
    }
    if !missed.is_empty() {
        println!("\nnot as they should be: {}", missed.join(", "));
    }
    if !missed.is_empty() || !undecided.is_empty() {
        std::process::exit(1);
    }
}

/// What came of a run.
#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    Holds,
    Noticed(String),
    /// There is none, and why.
    None(String),
}

/// Signals by which a program ends itself, by what is wrong in it.
const OF_ITS_OWN: [Signal; 3] = [Signal::SEGV, Signal::BUS, Signal::ABORT];

/// What the end of a process says of its seed, with what it printed: the table above.
fn verdict(status: ExitStatus, text: &str) -> Verdict {
    let failed = || text.lines().find_map(|line| line.split_once(" FAILED: ")).map(|(_, what)| what.to_string());
    match (status.code(), status.signal()) {
        (Some(0), _) => Verdict::Holds,
        (Some(1), _) => {
            failed().map_or_else(|| Verdict::None("it failed and does not say why".to_string()), Verdict::Noticed)
        }
        (_, Some(signal)) if OF_ITS_OWN.iter().any(|of| of.as_raw() == signal) => {
            Verdict::Noticed(format!("the process died: {status}"))
        }
        _ => Verdict::None(format!("the process ended: {status}")),
    }
}

/// What comes of a seed with a mistake.
fn notice(name: &str, seed: u64) -> Verdict {
    let own = std::env::current_exe().unwrap_or_else(|error| fail(&format!("own path: {error}")));
    let mut process = Process::new(own)
        .args(["--bug", name, "--seed", &seed.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| fail(&format!("a process for {name}: {error}")));
    // Read while it runs: a pipe that is full would stop it.
    let out = process.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.map(|mut out| out.read_to_string(&mut text));
        text
    });
    let begun = Instant::now();
    let status = loop {
        match process.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if begun.elapsed() > HANGS => break None,
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => fail(&format!("the process for {name}: {error}")),
        }
    };
    let Some(status) = status else {
        let _ = process.kill();
        let _ = process.wait();
        return Verdict::None(format!("none within {HANGS:?}"));
    };
    verdict(status, &reader.join().unwrap_or_default())
}

/// A failure in the cell of a table.
fn short(what: &str) -> String {
    // Neither the end of a cell nor a link.
    let what = what.replace('|', "/").replace('[', "(").replace(']', ")");
    let what = what.split(": n1 ").next().unwrap_or_default();
    if what.chars().count() <= 110 { what.to_string() } else { what.chars().take(107).chain("...".chars()).collect() }
}

#[test]
fn only_a_failed_seed_and_a_process_that_ends_itself_count_as_noticed() {
    let failed = failed_line(7, "a row is gone");
    let noticed = |raw: i32, text: &str| match verdict(ExitStatus::from_raw(raw), text) {
        Verdict::Holds => "holds",
        Verdict::Noticed(_) => "noticed",
        Verdict::None(_) => "none",
    };
    let (code, signal) = (|code: i32| code << 8, Signal::as_raw);
    for (raw, text, said) in [
        (code(0), "", "holds"),
        (code(1), failed.as_str(), "noticed"),
        (code(1), "", "none"),
        (code(2), "", "none"),
        (code(101), "", "none"),
        (signal(Signal::SEGV), "", "noticed"),
        (signal(Signal::BUS), "", "noticed"),
        (signal(Signal::ABORT), "", "noticed"),
        (signal(Signal::KILL), "", "none"),
        (signal(Signal::TERM), failed.as_str(), "none"),
    ] {
        assert_eq!(noticed(raw, text), said, "{}", ExitStatus::from_raw(raw));
    }
}
