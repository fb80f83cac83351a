//! Time that moves when it is told to, and random numbers that a seed decides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::env::{Clock, Rng};

/// A clock that moves when it is told to.
#[derive(Debug, Default)]
pub struct SimClock {
    nanos: AtomicU64,
}

impl SimClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.nanos.fetch_add(nanos(by), Ordering::SeqCst);
    }

    /// Sets the clock. It does not go back: an earlier moment changes nothing.
    pub fn set(&self, now: Duration) {
        self.nanos.fetch_max(nanos(now), Ordering::SeqCst);
    }
}

/// 64 bits of nanoseconds last for 584 years; a run is shorter.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::SeqCst))
    }
}

/// Random numbers that a seed decides.
#[derive(Debug)]
pub struct SimRng {
    dice: Mutex<Xoshiro>,
}

impl SimRng {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> SimRng {
        SimRng { dice: Mutex::new(Xoshiro::new(seed)) }
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&self, n: u64) -> u64 {
        self.dice.lock().below(n)
    }
}

impl Rng for SimRng {
    fn next_u64(&self) -> u64 {
        self.dice.lock().next()
    }
}

/// xoshiro256** (Blackman and Vigna), its state filled by splitmix64: small, fast, good enough for dice.
#[derive(Clone, Debug)]
pub(super) struct Xoshiro([u64; 4]);

impl Xoshiro {
    pub(super) fn new(seed: u64) -> Xoshiro {
        let mut x = seed;
        Xoshiro(std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    pub(super) fn next(&mut self) -> u64 {
        let [a, b, c, d] = self.0;
        let (c, d) = (c ^ a, d ^ b);
        self.0 = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        b.wrapping_mul(5).rotate_left(7).wrapping_mul(9)
    }

    /// Not quite uniform for an `n` near 2^64; ours are small.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next().checked_rem(n).unwrap_or(0)
    }
}
