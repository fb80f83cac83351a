//! A small cluster of cores whose every message, sync, crash and restart is a byte.

use crate::harness::Dice;
use crate::schedule::schedule;

/// More bytes than this make a run long, not different.
const STEPS: usize = 2000;

/// The first byte: three nodes or five. The rest: what happens.
pub fn cluster(data: &[u8]) {
    let Some((selector, script)) = data.split_first() else { return };
    let n = if selector % 2 == 0 { 3 } else { 5 };
    schedule(n, u64::from(*selector), Dice::script(script.to_vec()), STEPS);
}
