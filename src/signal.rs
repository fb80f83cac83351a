//! Waiting for something that another thread does.
//!
//! A [`Signal`] wakes whoever waits on it; what they wait for is a condition that each checks itself. It replaces a bare
//! condition variable for one reason: in the simulation nothing runs in parallel, so a wait must move the world on
//! instead of sleeping. That is what a [`Pump`] does.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use shoaldb_vfs::env::Clock;

/// Moves a simulated world on by one step.
pub(crate) trait Pump: Send + Sync {
    /// One step; simulated time may pass.
    fn step(&self);
}

/// How waits of one node are done.
#[derive(Clone)]
pub(crate) struct Waiting {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) pump: Option<Arc<dyn Pump>>,
}

/// Something changed.
#[derive(Default)]
pub(crate) struct Signal {
    generation: Mutex<u64>,
    changed: Condvar,
}

impl Signal {
    /// Wakes all who wait. Call it after the change, without a lock that a condition takes.
    pub(crate) fn notify(&self) {
        *self.generation.lock() += 1;
        self.changed.notify_all();
    }

    /// Waits until `check` returns `Some`, or until `deadline` of the clock; `None` then. `check` also runs about every
    /// `poll`, for conditions that nobody signals.
    pub(crate) fn wait<T>(
        &self,
        waiting: &Waiting,
        deadline: Duration,
        poll: Duration,
        mut check: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        loop {
            let seen = *self.generation.lock();
            if let Some(value) = check() {
                return Some(value);
            }
            let now = waiting.clock.now();
            if now >= deadline {
                return None;
            }
            if let Some(pump) = &waiting.pump {
                pump.step();
                continue;
            }
            let mut generation = self.generation.lock();
            if *generation == seen {
                self.changed.wait_for(&mut generation, poll.min(deadline - now));
            }
        }
    }
}
