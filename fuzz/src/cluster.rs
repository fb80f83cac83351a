//! A small cluster of cores whose every message, sync, crash and restart is a byte.

use crate::harness::Dice;
use crate::schedule::schedule;

/// More bytes than this make a run long, not different.
const STEPS: usize = 2000;

/// The first byte: three nodes or five. The rest: what happens. Whether anything was agreed on.
pub fn cluster(data: &[u8]) -> bool {
    let Some((selector, script)) = data.split_first() else { return false };
    let n = if selector % 2 == 0 { 3 } else { 5 };
    let (entries, _) = schedule(n, u64::from(*selector), Dice::script(script.to_vec()), STEPS);
    entries > 0
}
