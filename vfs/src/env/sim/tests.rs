//! What the simulated disk promises to the tests that stand on it.

use std::time::Duration;

use super::*;
use crate::env::{Clock, Rng};

fn create(fs: &SimFs, path: &str) -> Arc<dyn File> {
    fs.open(Path::new(path), Open::CreateNew, "create").unwrap()
}

fn seen(fs: &SimFs, path: &str) -> Option<Vec<u8>> {
    fs.peek(Path::new(path))
}

/// A file `/f` whose first 4 sectors are durably 1, overwritten by 2 and then 3 without a sync.
fn overwritten() -> (SimFs, Arc<dyn File>) {
    let fs = SimFs::new(1);
    let file = create(&fs, "/f");
    file.write_at(&[1; 2048], 0, "w").unwrap();
    file.sync_data("sync").unwrap();
    fs.sync_dir(Path::new("/"), "dir").unwrap();
    file.write_at(&[2; 2048], 0, "w").unwrap();
    file.write_at(&[3; 2048], 0, "w").unwrap();
    (fs, file)
}

#[test]
fn synced_bytes_survive_every_crash() {
    for seed in 0..50 {
        let (fs, file) = overwritten();
        file.sync_data("sync").unwrap();
        fs.crash(seed);
        fs.restart();
        assert_eq!(seen(&fs, "/f").unwrap(), [3; 2048], "seed {seed}");
    }
}

#[test]
fn unsynced_sectors_end_in_any_state_they_had_and_only_whole() {
    let mut states = BTreeSet::new();
    for seed in 0..300 {
        let (fs, _file) = overwritten();
        fs.crash(seed);
        fs.restart();
        let bytes = seen(&fs, "/f").unwrap();
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0] && (1..=3).contains(byte)), "seed {seed}");
        }
        states.insert(sectors);
    }
    assert!(states.contains(&vec![1; 4]), "all dropped");
    assert!(states.contains(&vec![3; 4]), "all kept");
    assert!(states.iter().any(|s| s[0] < s[1]) && states.iter().any(|s| s[0] > s[1]), "reordered");
    assert!(states.len() > 20, "only {} different outcomes", states.len());
}

#[test]
fn lengths_and_cut_bytes_are_changes_like_others() {
    let mut lengths = BTreeSet::new();
    for seed in 0..100 {
        let (fs, file) = overwritten();
        file.set_len(100, "len").unwrap();
        file.set_len(1000, "len").unwrap();
        let mut buf = [9; 10];
        file.read_at(&mut buf, 500, "r").unwrap();
        assert_eq!(buf, [0; 10], "what was cut reads as zeros");
        fs.crash(seed);
        fs.restart();
        lengths.insert(seen(&fs, "/f").unwrap().len());
    }
    assert_eq!(lengths, BTreeSet::from([100, 1000, 2048]));
}

#[test]
fn names_are_durable_only_after_a_directory_sync() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let fs = SimFs::new(1);
        for name in ["/keep", "/old"] {
            create(&fs, name);
        }
        fs.sync_dir(Path::new("/"), "dir").unwrap();
        create(&fs, "/new");
        fs.rename(Path::new("/old"), Path::new("/moved"), "mv").unwrap();
        fs.crash(seed);
        fs.restart();
        let names = fs.list(Path::new("/"), "ls").unwrap();
        assert!(names.contains(&"keep".to_owned()));
        assert_ne!(names.contains(&"old".to_owned()), names.contains(&"moved".to_owned()), "a rename is whole");
        outcomes.insert(names);
    }
    assert_eq!(outcomes.len(), 4, "created or not, times renamed or not");
}

#[test]
fn a_crash_kills_handles_and_releases_locks_until_restart() {
    let fs = SimFs::new(1);
    let file = create(&fs, "/f");
    let lock = fs.lock_dir(Path::new("/"), "lock").unwrap();
    assert_eq!(fs.lock_dir(Path::new("/"), "lock").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    fs.sync_dir(Path::new("/"), "dir").unwrap();
    fs.crash(1);
    assert!(fs.is_down());
    assert!(fs.list(Path::new("/"), "ls").is_err());
    fs.restart();
    assert!(file.len("len").is_err(), "a handle of an earlier life stays dead");
    let second = fs.lock_dir(Path::new("/"), "lock").unwrap();
    drop(lock);
    assert!(fs.lock_dir(Path::new("/"), "lock").is_err(), "the dead guard's drop does not free the new lock");
    drop(second);
    fs.lock_dir(Path::new("/"), "lock").unwrap();
}

#[test]
fn the_nth_call_of_a_label_fails_once_or_for_good() {
    for (lasts, expected) in [(Lasts::Once, [true, false, true, true]), (Lasts::ForGood, [true, false, false, false])] {
        let fs = SimFs::new(1);
        let file = create(&fs, "/f");
        fs.fail_at(Aim::At("w"), 2, lasts, Failure::ENOSPC);
        let results = [0; 4].map(|_| {
            file.len("other").unwrap();
            file.write_at(b"x", 0, "w")
        });
        assert_eq!([0, 1, 2, 3].map(|i| results[i].is_ok()), expected);
        assert_eq!(results[1].as_ref().unwrap_err().raw_os_error(), Some(28));
        fs.clear_faults();
        file.write_at(b"x", 0, "w").unwrap();
        assert_eq!((fs.count("w"), fs.count("other"), fs.calls()), (5, 4, 10));
    }
}

/// What a test says it has made fail has failed: neither another call, nor one that a fault only waits for.
#[test]
fn a_test_that_missed_its_call_is_told() {
    let fs = SimFs::new(1);
    let file = create(&fs, "/f");
    fs.fail_at(Aim::At("lock"), 2, Lasts::Once, Failure::EIO);
    let missed = |labels: &[Label]| {
        let failed = fs.failed();
        std::panic::catch_unwind(|| assert_failed(&failed, labels)).is_err()
    };
    file.lock(0, 1, "lock").unwrap();
    assert!(missed(&["lock"]) && !missed(&[]));
    assert_eq!(file.lock(0, 1, "lock").unwrap_err().raw_os_error(), Some(5));
    assert!(!missed(&["lock"]) && missed(&["lock", "create"]));
    fs.crash(1);
    fs.restart();
    assert!(file.lock(0, 1, "lock").is_err(), "the handle is of another life");
    assert_eq!(fs.count("lock"), 3);
}

#[test]
fn a_planned_crash_comes_at_its_call_and_that_call_may_have_happened() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let (fs, file) = overwritten();
        file.sync_data("sync").unwrap();
        fs.crash_at(Aim::Any, 2, seed);
        file.len("len").unwrap();
        assert!(file.write_at(&[4; 512], 0, "w").is_err());
        assert!(fs.is_down() && file.len("len").is_err());
        fs.restart();
        outcomes.insert(seen(&fs, "/f").unwrap()[0]);
    }
    assert_eq!(outcomes, BTreeSet::from([3, 4]));
}

#[test]
fn after_a_failed_sync_the_next_one_lies() {
    let mut lost = 0;
    for seed in 0..40 {
        let fs = SimFs::new(seed);
        let file = create(&fs, "/f");
        fs.sync_dir(Path::new("/"), "dir").unwrap();
        file.write_at(&[1; 4096], 0, "w").unwrap();
        fs.fail_at(Aim::At("sync"), 1, Lasts::Once, Failure::EIO);
        assert_eq!(file.sync_data("sync").unwrap_err().raw_os_error(), Some(5));
        file.sync_data("sync").unwrap();
        assert_eq!(seen(&fs, "/f").unwrap(), [1; 4096], "reads show what is not on disk");
        fs.crash(seed);
        fs.restart();
        lost += u32::from(seen(&fs, "/f").unwrap() != [1; 4096]);
    }
    assert!((10..40).contains(&lost), "{lost} of 40 lost something");
}

#[test]
fn one_seed_one_history() {
    let run = |seed| {
        let (fs, file) = overwritten();
        fs.fail_at(Aim::At("w"), 1, Lasts::Once, Failure::Kind(io::ErrorKind::Other));
        file.write_at(&[5; 3000], 0, "w").unwrap_err();
        fs.crash(seed);
        fs.restart();
        seen(&fs, "/f")
    };
    assert_eq!(run(7), run(7));
    assert!((0..20).any(|seed| run(seed) != run(7)));
}

#[test]
fn the_clock_and_the_dice_obey() {
    let clock = SimClock::default();
    clock.advance(Duration::from_secs(5));
    clock.set(Duration::from_secs(3));
    assert_eq!(clock.now(), Duration::from_secs(5));
    let (a, b, c) = (SimRng::new(1), SimRng::new(1), SimRng::new(2));
    let first = a.next_u64();
    assert_eq!(first, b.next_u64());
    assert_ne!(first, c.next_u64());
    assert_eq!(a.below(0), 0);
    assert!((0..100).all(|_| a.below(3) < 3));
}
