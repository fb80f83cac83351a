//! The simulation as a command: `cargo run --release --features sim --example sim -- --seeds 1..300`, or
//! `-- --seed 17 --verbose` to read what happened.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shoaldb::sim::{Options, run};

fn main() {
    let mut seeds = 1..101;
    let mut verbose = false;
    let mut keep_going = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--verbose" => verbose = true,
            "--keep-going" => keep_going = true,
            "--seed" => {
                let seed = number(args.next());
                seeds = seed..seed + 1;
            }
            "--seeds" => {
                let range = args.next().unwrap_or_default();
                let (from, to) = range.split_once("..").unwrap_or((&range, ""));
                seeds = number(Some(from.to_string()))..number(Some(to.to_string()));
            }
            other => fail(&format!("what is {other}? Use --seeds A..B, --seed N, --verbose, --keep-going")),
        }
    }
    let begun = Instant::now();
    let (mut runs, mut failed, mut events, mut simulated) = (0_u32, 0, 0, Duration::ZERO);
    let mut coverage: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seeds {
        let report = run(&Options { verbose, ..Options::new(seed) });
        runs += 1;
        events += report.events;
        simulated += report.simulated;
        for (what, count) in report.coverage {
            *coverage.entry(what).or_insert(0) += count;
        }
        if let Some(what) = report.failure {
            failed += 1;
            println!("seed {seed} FAILED: {what}");
            if !keep_going {
                println!("the last events:");
                report.last_events.iter().for_each(|line| println!("{line}"));
                println!("replay: cargo run --release --features sim --example sim -- --seed {seed} --verbose");
                break;
            }
        }
    }
    for (what, count) in coverage {
        println!("{count:>10} {what}");
    }
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let hours = simulated.as_secs_f64() / 3600.0;
    println!(
        "{runs} seeds, {failed} failed, {events} events, {hours:.2} simulated hours, {:.0} seeds a minute",
        f64::from(runs) / minutes
    );
    if failed > 0 {
        std::process::exit(1);
    }
}

fn number(text: Option<String>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_else(|| fail("a number is missing"))
}

fn fail(what: &str) -> ! {
    eprintln!("{what}");
    std::process::exit(2);
}
