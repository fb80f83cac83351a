//! Which planted mistakes the simulation notices, and how soon.
//!
//! A mistake is planted for a whole process, so each gets processes of its own, which run seeds until a check fails. A
//! process that dies of a signal, or that is at one seed for too long, has been noticed as well: whoever runs a cluster
//! would notice it. Before the mistakes, a process without one goes through the same seeds and must pass.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Command as Process, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{Command, fail};

/// A seed that takes longer hangs: the slowest take a few seconds.
const HANGS: Duration = Duration::from_secs(120);

/// The name that plants nothing.
const NONE: &str = "none";

/// How a process says that a seed failed.
pub(super) fn failed_line(seed: u64, what: &str) -> String {
    format!("seed {seed} FAILED: {what}")
}

/// How a process says that a seed did not fail.
pub(super) fn held_line(seed: u64) -> String {
    format!("seed {seed} held")
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
        "this build has no mistakes to plant; make one that has: RUSTFLAGS=\"--cfg shoal_planted\" cargo run --release --features sim --example sim --target-dir target/planted -- --planted",
    );
}

/// What became of one mistake.
enum Found {
    /// After so many seeds, by this.
    After(u64, String),
    Never,
}

/// Runs the seeds with each mistake and prints the table. The process ends with 1 if one was not noticed.
pub(super) fn search(command: &Command) {
    plant(NONE);
    let all = shoaldb_vfs::planted::ALL.iter().chain(shoaldb::planted::ALL);
    let wanted = |name: &str| command.bug.as_ref().is_none_or(|only| only == name);
    let mut bugs: Vec<_> = all.filter(|(name, _)| wanted(name)).copied().collect();
    if bugs.is_empty() {
        fail("there is no mistake of that name");
    }
    bugs.insert(0, (NONE, "no mistake: every seed must hold"));
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    println!("| mistake | what is wrong | seeds | noticed by |\n|---|---|---|---|");
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((name, what)) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let found = search_one(name, command);
                    eprintln!("{name}: {:.0} s", begun.elapsed().as_secs_f64());
                    let good = matches!(found, Found::Never) == (*name == NONE);
                    if !good {
                        missed.lock().expect("no panic").push(*name);
                    }
                    let (seeds, by) = match found {
                        Found::After(seeds, by) => (seeds.to_string(), by),
                        Found::Never => (format!("> {}", command.seeds.end - command.seeds.start), "-".to_string()),
                    };
                    println!("| `{name}` | {} | {seeds} | {by} |", what.trim());
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no panic");
    if !missed.is_empty() {
        println!("\nnot as they should be: {}", missed.join(", "));
        std::process::exit(1);
    }
}

fn search_one(name: &str, command: &Command) -> Found {
    let own = std::env::current_exe().unwrap_or_else(|error| fail(&format!("own path: {error}")));
    let seeds = format!("{}..{}", command.seeds.start, command.seeds.end);
    let process =
        Process::new(own).args(["--bug", name, "--seeds", &seeds]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut process = process.unwrap_or_else(|error| fail(&format!("a process for {name}: {error}")));
    let lines = lines(process.stdout.take());
    let mut done = 0;
    let found = loop {
        match lines.recv_timeout(HANGS) {
            Ok(line) if line.starts_with("seed ") => match line.split_once(" FAILED: ") {
                Some((_, what)) => break Found::After(done + 1, short(what)),
                None => done += 1,
            },
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                break Found::After(done + 1, format!("one seed takes more than {HANGS:?}"));
            }
            Err(RecvTimeoutError::Disconnected) => match process.wait() {
                Ok(status) if status.success() => break Found::Never,
                Ok(status) => break Found::After(done + 1, format!("the process died: {status}")),
                Err(error) => fail(&format!("the process for {name}: {error}")),
            },
        }
    };
    let _ = process.kill();
    let _ = process.wait();
    found
}

/// A failure in the cell of a table.
fn short(what: &str) -> String {
    let what = what.replace('|', "/");
    let what = what.split(": n1 ").next().unwrap_or_default();
    if what.chars().count() <= 110 { what.to_string() } else { what.chars().take(107).chain("...".chars()).collect() }
}

/// The lines of a process, so that they can be waited for with a limit.
fn lines(out: Option<ChildStdout>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in out.map(BufReader::new).into_iter().flat_map(BufRead::lines) {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
