//! Election timeouts from a seed.
//!
//! The library draws them from the thread's random source whenever it resets itself. We draw our own when role, term
//! or leader changed or a timeout fired, and put ours in place after each event, so that a run can be repeated.
//!
//! Drawing anew after *every* event would be wrong: with a fresh draw at each tick the shortest timeout wins
//! everywhere, and candidates collide.

/// SplitMix64 (Steele, Lea, Flood 2014): one add, two multiplications, passes the usual tests; a whole generator of 64
/// bits of state is all that timeouts need.
#[derive(Clone, Debug)]
pub(super) struct Seeded(u64);

impl Seeded {
    pub(super) fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The timeout in force, and when to draw the next.
#[derive(Debug)]
pub(super) struct ElectionTimeout<S> {
    seeded: Seeded,
    ticks: u32,
    current: usize,
    seen: Option<S>,
}

impl<S: PartialEq> ElectionTimeout<S> {
    /// `ticks` is the shortest; the longest is one less than twice that.
    pub(super) fn new(seeded: Seeded, ticks: u32) -> ElectionTimeout<S> {
        ElectionTimeout { seeded, ticks, current: 0, seen: None }
    }

    /// The timeout after an event that left the node in `state`; `fired` if the last one ran out.
    pub(super) fn after(&mut self, state: S, fired: bool) -> usize {
        if fired || self.seen.as_ref() != Some(&state) {
            let spread = u64::from(self.ticks.max(1));
            self.current = (spread + self.seeded.next() % spread) as usize;
            self.seen = Some(state);
        }
        self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_stays_until_something_changes() {
        let mut timeout = ElectionTimeout::new(Seeded::new(7), 10);
        let first = timeout.after(1, false);
        assert!((10..20).contains(&first));
        assert!((0..50).all(|_| timeout.after(1, false) == first));
        let later: Vec<usize> = (2..50).map(|state| timeout.after(state, false)).collect();
        assert!(later.iter().all(|t| (10..20).contains(t)), "{later:?}");
        assert!((10..20).all(|t| later.contains(&t)), "all lengths occur: {later:?}");
        let fired: Vec<usize> = (0..20).map(|_| timeout.after(50, true)).collect();
        assert!(fired.iter().any(|t| *t != fired[0]), "a timeout that fired is drawn again: {fired:?}");
    }
}
