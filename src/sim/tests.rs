//! A fixed budget of seeds, the replay of one, and what they must reach.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::counters::COUNTERS;
use super::{Options, Report, SCOUTED_FROM, Turn, each, run, take_turn, turns_of};

/// Calls of clients lie above each other on the stack, each with SQLite below it: more than a test's thread has.
fn on_a_large_stack<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(scope, act).expect("a thread");
        thread.join().expect("no panic")
    })
}

fn assert_sound(report: Report) -> Report {
    if let Some(what) = &report.failure {
        panic!("seed {}: {what}\n{}", report.seed, report.story());
    }
    report
}

/// Seeds beyond the first that found a mistake of ours; DESIGN.md has a table of them.
const FOUND: [u64; 17] =
    [222, 241, 1011, 1028, 1619, 1956, 2190, 2273, 2856, 10944, 11247, 14686, 19045, 24735, 42183, 78366, 87354];

/// Seeds beyond the first that reach what few do.
const REACH: [u64; 2] = [582, 890];

/// Shows INV-24.
#[test]
fn all_promises_hold_under_all_faults_and_everything_that_matters_is_reached() {
    let reached: Mutex<BTreeMap<String, u64>> = Mutex::default();
    each(&(1..=200).chain(FOUND).chain(REACH).collect::<Vec<_>>(), |seed| {
        let (_, coverage) = run_alone(*seed);
        let mut reached = reached.lock();
        coverage.into_iter().for_each(|(what, count)| *reached.entry(what).or_default() += count);
    });
    let reached = reached.into_inner();
    for wanted in COUNTERS {
        assert!(reached.get(wanted).is_some_and(|count| *count > 0), "no seed reached: {wanted}");
    }
    // What excuses a stand-still must stay the exception.
    let times = |what: &str| reached.get(what).copied().unwrap_or(0);
    let lulls = times("minorities switched off") + times("voters switched off for new ones");
    assert!(10 * times("lulls without a verdict") <= lulls, "of {lulls} lulls too many have no verdict");
}

/// Calls that the turns must reach; `tests/layers.rs` looks for others in the source.
const LABELS: [&str; 70] = [
    "ckpt.hash",
    "ckpt.len",
    "ckpt.map_sync",
    "ckpt.page",
    "ckpt.record",
    "ckpt.record_sync",
    "ckpt.sync",
    "db.create",
    "db.dir",
    "db.drop",
    "db.list",
    "db.lock",
    "db.open",
    "db.orphan",
    "db.read",
    "db.verify",
    "dir.create",
    "dw.create",
    "dw.open",
    "dw.read",
    "dw.shrink",
    "dw.sync",
    "dw.write",
    "identity.create",
    "identity.len",
    "identity.open",
    "identity.read",
    "identity.remove",
    "identity.rename",
    "identity.sync",
    "identity.sync_dir",
    "identity.write",
    "log.create",
    "log.dir",
    "log.head.sync",
    "log.head.write",
    "log.len",
    "log.list",
    "log.mkdir",
    "log.open",
    "log.open.sync",
    "log.promote",
    "log.promote.sync",
    "log.read",
    "log.remove",
    "log.retire",
    "log.retire.sync",
    "log.rewrite",
    "log.seal",
    "log.seal.sync",
    "log.spare.sync",
    "log.spare.write",
    "log.sync",
    "log.write",
    "map.create",
    "map.open",
    "map.read",
    "stage.begin",
    "stage.len",
    "stage.map",
    "stage.map_sync",
    "stage.rename",
    "stage.room",
    "stage.sync",
    "stage.sync_dir",
    "stage.verify",
    "stage.write",
    "view.map",
    "view.pages",
    "wal.spill",
];

/// Each of the first calls of every label fails once, fails for good, has no room, loses power, and is the last one of its process.
#[test]
fn every_fault_in_turn_and_no_label_is_left_out() {
    let lines = SCOUTED_FROM.map(|from| alone("turns_of_one_seed", OF_TURNS, Some(&from.to_string()))).concat();
    let turns: Vec<String> = lines.iter().filter_map(|line| Some(line.split_once(REACHED)?.1.to_string())).collect();
    let labels: BTreeSet<&str> = turns.iter().filter_map(|turn| turn.split(' ').nth(1)).collect();
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), LABELS);
    each(&turns, |turn| _ = alone("one_turn", OF_TURNS, Some(turn)));
    // One that found a mistake of ours.
    alone("one_turn", 6, Some("3 log.seal 1 FailsOnce"));
}

/// Some seed whose node makes all of these calls.
const OF_TURNS: u64 = 5;

/// A third of the turns came to nothing once, since the life in which they were to strike began when the load was over.
#[test]
fn a_fault_that_does_not_come_fails_its_run() {
    alone("turns_that_do_not_come", OF_TURNS, None);
}

#[test]
#[ignore = "one half of another test, which starts it in a process of its own"]
fn turns_that_do_not_come() {
    for turn in ["1 no.such 1 FailsOnce", "2 no.such 1 FailsForGood", "3 no.such 1 LosesPower"] {
        let turn = Turn::parse(turn).expect("a turn");
        let report = on_a_large_stack(|| take_turn(seed(), turn, false));
        assert_eq!(report.failure.as_deref(), Some("the fault of this turn has not come"), "{turn}");
    }
}

/// Prints the turns that there are in the lives from some one on.
#[test]
#[ignore = "one half of another test, which starts it in a process of its own"]
fn turns_of_one_seed() {
    let from = std::env::var(TURN).ok().and_then(|from| from.parse().ok()).expect("a life");
    let turns = on_a_large_stack(|| turns_of(seed(), CALLS, from));
    turns.expect("runs without a fault").iter().for_each(|turn| println!("{REACHED}{turn}"));
}

#[test]
#[ignore = "one half of another test, which starts it in a process of its own"]
fn one_turn() {
    let turn = std::env::var(TURN).ok().and_then(|turn| Turn::parse(&turn)).expect("a turn");
    on_a_large_stack(|| assert_sound(take_turn(seed(), turn, false)));
}

/// So many calls of each label have their turn.
const CALLS: u64 = 1;

/// Prints what one run of a seed came to, for the tests that start it in a process of its own.
#[test]
#[ignore = "one half of other tests, which start it in a process of its own"]
fn one_run_to_compare() {
    let report = on_a_large_stack(|| assert_sound(run(&Options::new(seed()))));
    report.coverage.iter().for_each(|(what, count)| println!("{REACHED}{count} {what}"));
    println!("{RUN}{} {} {:?}", report.hash, report.events, report.simulated);
}

const SEED: &str = "SHOAL_SIM_SEED";
const TURN: &str = "SHOAL_SIM_TURN";
const RUN: &str = "the run: ";
const REACHED: &str = "reached: ";

/// One simulation per process: SQLite leaves what its memory held in the unused parts of pages, and a test beside this one
/// would have its hand in that. So the C library fills memory with one byte here, and nothing else runs. Nor may a run meet
/// another one in the directory of temporary files, which has seen nothing in the end.
fn alone(test: &str, seed: u64, turn: Option<&str>) -> Vec<String> {
    let temporary = tempfile::tempdir().expect("a directory");
    let changed = || std::fs::metadata(temporary.path()).and_then(|found| found.modified()).expect("its time");
    let before = changed();
    let output = std::process::Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", &format!("sim::tests::{test}"), "--ignored", "--nocapture"])
        .env(SEED, seed.to_string())
        .env(TURN, turn.unwrap_or_default())
        .env("MALLOC_PERTURB_", "85")
        .env("SQLITE_TMPDIR", temporary.path())
        .output()
        .expect("a process of its own");
    let text = String::from_utf8_lossy(&output.stdout);
    // A name that no test has runs none, and well.
    let ran = output.status.success() && text.contains("1 passed");
    assert!(ran, "{test} of seed {seed}, {turn:?}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        changed(),
        before,
        "{test} of seed {seed}, {turn:?}: there was a file in the directory of temporary files"
    );
    text.lines().map(str::to_string).collect()
}

/// The seed that [`alone`] gave to this process.
fn seed() -> u64 {
    std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).expect("a seed")
}

/// What a run of this seed came to, and what it reached how often.
fn run_alone(seed: u64) -> (String, Vec<(String, u64)>) {
    let lines = alone("one_run_to_compare", seed, None);
    let run = lines.iter().find_map(|line| line.split_once(RUN)).map(|(_, run)| run.to_string()).expect("a run");
    let reached = lines.iter().filter_map(|line| line.split_once(REACHED)?.1.split_once(' '));
    (run, reached.filter_map(|(count, what)| Some((what.to_string(), count.parse().ok()?))).collect())
}

#[test]
fn one_seed_is_one_run() {
    // Three nodes, five, seven, one whose disk rots, and programs of two versions.
    let seeds = [42, 44, 48, 5, 14, 12, 13];
    let (hashes, reached) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
    each(&seeds, |seed| {
        let run = run_alone(*seed);
        assert_eq!(run, run_alone(*seed), "seed {seed}");
        hashes.lock().insert(run.0);
        reached.lock().extend(run.1.into_iter().filter(|(_, count)| *count > 0).map(|(what, _)| what));
    });
    assert_eq!(hashes.into_inner().len(), seeds.len());
    let reached = reached.into_inner();
    assert!(
        ["maps rotten", "upgrades", "snapshots installed"].iter().all(|what| reached.contains(*what)),
        "{reached:?}"
    );
}

/// Runs were seen that had no end but the patience of whoever waited for them.
#[test]
fn a_run_with_too_many_events_ends_and_says_what_there_was_most_of() {
    alone("a_run_with_too_many_events", 1, None);
}

#[test]
#[ignore = "one half of another test, which starts it in a process of its own"]
fn a_run_with_too_many_events() {
    let options = Options { nodes: 3, most_events: 4000, storm: false, ..Options::new(seed()) };
    let report = on_a_large_stack(|| run(&options));
    let what = report.failure.unwrap_or_default();
    assert!(what.contains("no end: 4000 events; of the last 4001 events"), "{what}");
    assert_eq!(report.events, 4001, "after the verdict only time passes");
}
