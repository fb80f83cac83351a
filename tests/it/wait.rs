//! Waiting for what is told.

use std::time::Instant;

use crossbeam_channel::Receiver;
use shoaldb::Event;

use crate::cluster::LONG;

/// Waits for such an event: what it is about may be seen in the status before it is told.
pub(crate) fn told(events: &Receiver<Event>, wanted: impl Fn(&Event) -> bool) {
    let until = Instant::now() + LONG;
    let mut all = std::iter::from_fn(|| events.recv_timeout(until.saturating_duration_since(Instant::now())).ok());
    assert!(all.any(|event| wanted(&event)), "an event that is owed was not told");
}
