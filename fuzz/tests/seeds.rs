//! Every target over its seeds, and over a sample of what is near them: prefixes, and one flipped bit of a byte, at every place of a
//! small seed and at places spread over a large one. No fuzzer is needed, so this runs on plain stable.

#[allow(dead_code, reason = "it is a program, too")]
#[path = "../examples/make_seeds.rs"]
mod make_seeds;

use std::collections::BTreeMap;
use std::path::Path;

/// By name.
fn seeds(target: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())).collect()
}

/// In a seed with more bytes only so many are cut at and changed.
const PLACES: usize = 512;
/// The same where each of them costs databases.
const SQL_PLACES: usize = 32;

fn around_seeds(target: &str, places: usize, run: fn(&[u8]) -> bool) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "no seeds for {target}");
    for (name, seed) in seeds {
        let taken = run(&seed);
        assert!(name.starts_with("crash-") || taken != name.starts_with("refused-"), "{target}/{name}: taken: {taken}");
        let step = seed.len() / places + 1;
        for at in (0..seed.len()).step_by(step) {
            run(&seed[..at]);
            let mut changed = seed.clone();
            changed[at] ^= 1 << (at % 8);
            run(&changed);
        }
    }
}

#[test]
fn the_seeds_are_those_that_are_made() {
    let mut made: BTreeMap<&str, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    for ((target, name), bytes) in make_seeds::all().0 {
        made.entry(target).or_default().insert(name, bytes);
    }
    for (target, made) in made {
        let mut there = seeds(target);
        there.retain(|name, _| !name.starts_with("crash-"));
        for name in made.keys().chain(there.keys()) {
            let same = made.get(name) == there.get(name);
            assert!(same, "{target}/{name}: run `cargo run --example make_seeds` in fuzz/");
        }
    }
}

#[test]
fn entry() {
    around_seeds("entry", PLACES, shoaldb_fuzz::entry);
}

#[test]
fn wire() {
    around_seeds("wire", PLACES, shoaldb_fuzz::wire);
}

#[test]
fn log() {
    around_seeds("log", PLACES, shoaldb_fuzz::log);
}

#[test]
fn files() {
    around_seeds("files", PLACES, shoaldb_fuzz::files);
}

#[test]
fn wal() {
    around_seeds("wal", PLACES, shoaldb_fuzz::wal);
}

#[test]
fn messages() {
    around_seeds("messages", PLACES, shoaldb_fuzz::messages);
}

#[test]
fn disk() {
    around_seeds("disk", PLACES, shoaldb_fuzz::disk);
}

#[test]
fn sql() {
    around_seeds("sql", SQL_PLACES, shoaldb_fuzz::sql);
}

#[test]
fn cluster() {
    around_seeds("cluster", PLACES, shoaldb_fuzz::cluster);
}
