//! Every target over its seeds, and over what is near them: each prefix and each flipped bit. No fuzzer is needed, so
//! this runs on plain stable.

use std::path::Path;

fn around_seeds(target: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut seeds = 0;
    for seed in std::fs::read_dir(dir).unwrap() {
        let seed = std::fs::read(seed.unwrap().path()).unwrap();
        run(&seed);
        seeds += 1;
        // A long seed costs a whole recovery per change: look at some of its places.
        let step = seed.len() / 512 + 1;
        for at in (0..seed.len()).step_by(step) {
            run(&seed[..at]);
            let mut changed = seed.clone();
            changed[at] ^= 1 << (at % 8);
            run(&changed);
        }
    }
    assert!(seeds > 0, "no seeds for {target}");
}

#[test]
fn entry() {
    around_seeds("entry", shoaldb_fuzz::entry);
}

#[test]
fn wire() {
    around_seeds("wire", shoaldb_fuzz::wire);
}

#[test]
fn log() {
    around_seeds("log", shoaldb_fuzz::log);
}

#[test]
fn files() {
    around_seeds("files", shoaldb_fuzz::files);
}

#[test]
fn wal() {
    around_seeds("wal", shoaldb_fuzz::wal);
}

#[test]
fn messages() {
    around_seeds("messages", shoaldb_fuzz::messages);
}

#[test]
fn disk() {
    around_seeds("disk", shoaldb_fuzz::disk);
}

#[test]
fn sql() {
    around_seeds("sql", shoaldb_fuzz::sql);
}

#[test]
fn cluster() {
    around_seeds("cluster", shoaldb_fuzz::cluster);
}
