//! A fixed budget of seeds, the replay of one, and what they must reach.

use std::collections::BTreeMap;

use super::{Options, Report, run};

/// Calls of clients lie above each other on the stack, each with SQLite below it: more than a test's thread has.
fn on_a_large_stack<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(scope, act).expect("a thread");
        thread.join().expect("no panic")
    })
}

fn sound(options: &Options) -> Report {
    let report = run(options);
    if let Some(what) = &report.failure {
        let seed = report.seed;
        panic!(
            "seed {seed}: {what}\nthe last events:\n{}\nreplay: cargo run --release --features sim --example sim -- --seed {seed} --verbose",
            report.last_events.join("\n")
        );
    }
    report
}

#[test]
fn all_promises_hold_under_all_faults_and_everything_that_matters_is_reached() {
    let reports = on_a_large_stack(|| (1..=120).map(|seed| sound(&Options::new(seed))).collect::<Vec<_>>());
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    for (what, count) in reports.into_iter().flat_map(|report| report.coverage) {
        *reached.entry(what).or_default() += count;
    }
    for wanted in [
        "acknowledged",
        "not committed",
        "unknown outcomes",
        "unknown, and there",
        "fences",
        "detaches",
        "heals",
        "truncations",
        "leaderships",
        "transfers asked for",
        "late nodes bound",
        "messages of unbound nodes refused",
        "crashes during founding",
        "crashes while starting",
        "crashes in a write or sync",
        "crashes under a call",
        "power lost by all",
        "log failures",
        "databases dropped",
        "linearizable reads",
        "patient reads",
        "writes to another database",
    ] {
        assert!(reached.get(wanted).is_some_and(|count| *count > 0), "no seed reached: {wanted}");
    }
}

#[test]
fn one_seed_is_one_run() {
    let (first, again, other) = on_a_large_stack(|| {
        let options = Options::new(42);
        (sound(&options), sound(&options), sound(&Options::new(43)))
    });
    assert_eq!((first.hash, first.events, first.simulated), (again.hash, again.events, again.simulated));
    assert_ne!(first.hash, other.hash);
}
