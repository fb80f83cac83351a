//! What every test has that lets writers run on processes while something is done to these: chance, writers, judgement.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::cluster::Cluster;
use crate::harness::ledger::{Ledger, Verdict};
use crate::harness::wire::Act;

/// A number from the environment.
pub(crate) fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")),
        Err(_) => default,
    }
}

/// SplitMix64: any seed is a good one.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// Some of the nodes: one, two or all.
    pub(crate) fn nodes(&mut self) -> Vec<u64> {
        let mut ids = vec![1, 2, 3];
        for _ in 0..self.below(3) {
            ids.swap_remove(self.below(ids.len() as u64) as usize);
        }
        ids
    }
}

/// Switches for the writers.
#[derive(Default)]
pub(crate) struct Writers {
    pub(crate) stop: AtomicBool,
    pub(crate) pause: AtomicBool,
}

/// One writer, until it is told to stop.
pub(crate) fn write(cluster: &Cluster, ledger: &Ledger, writers: &Writers, writer: u64) {
    while !writers.stop.load(Ordering::SeqCst) {
        let paused = writers.pause.load(Ordering::SeqCst);
        if paused || cluster.append(ledger, writer, Duration::from_millis(200)).is_err() {
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

/// Nobody does anything to the nodes any more: what was acknowledged is found on each, what was not committed on none,
/// all have the same content, and nobody ever found a copy damaged. Panics otherwise. What the ledger says of the last node.
pub(crate) fn judge(cluster: &Cluster, ledger: &Ledger, patience: Duration) -> Verdict {
    let fail = |text: String| -> ! { panic!("{text}\n{}", logs(cluster)) };
    // An entry of the last term: whatever came before it is decided.
    let until = Instant::now() + patience;
    while let Err(failure) = cluster.append(ledger, 0, patience) {
        if Instant::now() > until {
            fail(format!("nothing can be written any more: {failure:?}"));
        }
    }
    let damage = cluster.damage();
    if !damage.is_empty() {
        fail(format!("copies were damaged: {damage:?}"));
    }
    let sums_of_nodes = cluster.checksums(patience).unwrap_or_else(|text| fail(text));
    assert!(sums_of_nodes.iter().all(|(_, sum)| *sum == sums_of_nodes[0].1), "{sums_of_nodes:?}");
    let mut last = Verdict::default();
    for id in cluster.ids() {
        let integrity = cluster.integrity(id).unwrap_or_else(|failure| fail(failure.text));
        assert_eq!(integrity, "ok", "node {id}");
        let found = cluster.numbers(id).unwrap_or_else(|failure| fail(failure.text));
        last = ledger.judge(&found);
        if !last.is_good() {
            fail(format!("node {id}: {last:?}"));
        }
    }
    last
}

/// What the nodes are, and the last lines of what they said.
pub(crate) fn logs(cluster: &Cluster) -> String {
    let mut text = String::new();
    for id in cluster.ids() {
        let all = std::fs::read_to_string(cluster.log(id)).unwrap_or_default();
        let lines: Vec<&str> = all.lines().collect();
        let status = cluster.ask(id, &Act::Status);
        text.push_str(&format!("--- node {id}\n{status:?}\n{}\n", lines[lines.len().saturating_sub(20)..].join("\n")));
    }
    text
}
