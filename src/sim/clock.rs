//! The clock of one node: it runs at a rate of its own, and jumps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shoaldb_vfs::env::Clock;
use shoaldb_vfs::env::sim::SimClock;

/// What the world's clock is multiplied by, in thousandths, for one that goes right.
pub(super) const RIGHT: u64 = 1000;

/// See the module's text.
#[derive(Debug)]
pub(super) struct NodeClock {
    world: Arc<SimClock>,
    rate: u64,
    /// Nanoseconds that it has jumped forward.
    jumped: AtomicU64,
}

impl NodeClock {
    /// A clock that takes `rate` thousandths of each second of the world for one.
    pub(super) fn new(world: Arc<SimClock>, rate: u64) -> NodeClock {
        NodeClock { world, rate, jumped: AtomicU64::new(0) }
    }

    /// All of a sudden it is later: the machine slept.
    pub(super) fn jump(&self, by: Duration) {
        self.jumped.fetch_add(by.as_nanos().try_into().unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// How long the world waits until so much has passed here.
    pub(super) fn in_the_world(&self, wait: Duration) -> Duration {
        wait * RIGHT as u32 / self.rate as u32
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Duration {
        self.world.now() * self.rate as u32 / RIGHT as u32 + Duration::from_nanos(self.jumped.load(Ordering::SeqCst))
    }
}
