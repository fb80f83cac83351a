//! Random schedules (`schedule.rs`), each from its seed.

use crate::harness::Dice;
use crate::schedule::schedule;

fn schedules(n: u16, seeds: std::ops::Range<u64>) {
    let (mut entries, mut reads) = (0, 0);
    for seed in seeds {
        let run = std::panic::catch_unwind(|| schedule(n, seed, Dice::of(seed), 600 * usize::from(n)));
        let Ok(counts) = run else { panic!("{n} nodes, seed {seed}: see above") };
        entries += counts.0;
        reads += counts.1;
    }
    eprintln!("{n} nodes: {entries} entries, {reads} reads");
    assert!(entries > 1000 && reads > 100, "the schedules do too little: {entries} entries, {reads} reads");
}

/// Shows INV-7.
#[test]
fn random_schedules_of_three_nodes() {
    schedules(3, 0..150);
}

/// Shows INV-7.
#[test]
fn random_schedules_of_five_nodes() {
    schedules(5, 0..100);
}
