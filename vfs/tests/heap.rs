//! What the heap of a process keeps of what was freed. A process of its own, since this is of the process, and the test is alone
//! in it.
#![cfg(target_env = "gnu")]

use std::hint::black_box;
use std::sync::Barrier;

const MIB: usize = 1 << 20;
/// glibc reserves this much for each heap but the first, at a multiple of it.
const HEAP: u64 = 64 << 20;

fn anonymous_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Heaps beside the first.
fn heaps() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let starts_one = |line: &&str| {
        let start = line.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok());
        line.contains(" rw-p ") && start.is_some_and(|start| start % HEAP == 0)
    };
    maps.lines().filter(starts_one).count()
}

#[test]
fn what_is_freed_goes_back_and_threads_share_heaps() {
    for name in ["MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX"] {
        assert!(std::env::var_os(name).is_none(), "the environment wins over what is tested here: unset {name}");
    }
    shoaldb_vfs::give_back_freed_memory();
    let before = anonymous_kib();
    // Twice: what was mapped and freed once is what glibc takes from the heap from then on, and keeps.
    for _ in 0..2 {
        drop(black_box(vec![1_u8; 20 * MIB]));
    }
    let kept = anonymous_kib() - before;
    assert!(kept < 10 << 10, "{kept} KiB are kept");

    // All are there at the same time, each with something of its own.
    let all = Barrier::new(8);
    std::thread::scope(|scope| {
        let wait = || {
            let own = black_box(vec![1_u8; 1000]);
            all.wait();
            let heaps = heaps();
            all.wait();
            drop(own);
            heaps
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(wait)).collect();
        for thread in threads {
            let heaps = thread.join().unwrap();
            assert!(heaps <= 2, "{heaps} heaps beside the first");
        }
    });
}
