//! About once a second while something takes long: how far a start is, in the log of the program.
//!
//! Deliberately absent: what is said.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoaldb_vfs::env::Clock;

const SECOND: Duration = Duration::from_secs(1);

/// Says when it is time to say something; any thread may ask.
pub(crate) struct Every {
    clock: Arc<dyn Clock>,
    next: Mutex<Duration>,
}

impl Every {
    /// From now on. What takes less than a second needs no words.
    pub(crate) fn second(clock: Arc<dyn Clock>) -> Every {
        let next = Mutex::new(clock.now() + SECOND);
        Every { clock, next }
    }

    /// Whether it is time, to one of those who ask.
    pub(crate) fn is_due(&self) -> bool {
        let mut next = self.next.lock();
        let now = self.clock.now();
        let due = now >= *next;
        if due {
            *next = now + SECOND;
        }
        due
    }
}

#[cfg(test)]
pub(crate) mod tests;
