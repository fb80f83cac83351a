//! How fast this node sends objects of snapshots, to all that fetch from it together: `snapshot_rate` bytes a second.
//!
//! ```text
//! may another object be made?   yes, once what was sent before is paid: each byte takes 1/rate of a second
//! not yet                       whoever asked is told how long to wait: nobody waits here, and no thread is held
//! ```
//!
//! An object is sent whole, and those that are made at the same moment do not know of each other's size: so it is the rate over
//! more than some objects that holds. Time in which nothing was asked for is not saved up.
//!
//! Deliberately absent: clocks. What time it is, is told.

use std::time::Duration;

use parking_lot::Mutex;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When everything that was sent is paid.
    paid: Mutex<Duration>,
}

impl Pace {
    /// How long it takes until another object may be made; nothing if one may be made now.
    pub(crate) fn wait(&self, now: Duration) -> Option<Duration> {
        let paid = *self.paid.lock();
        paid.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// So many bytes are sent, at `rate` bytes a second; 0 is no limit.
    pub(crate) fn sent(&self, now: Duration, bytes: usize, rate: u64) {
        if rate == 0 {
            return;
        }
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid = self.paid.lock();
        *paid = (*paid).max(now).saturating_add(takes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is asked for, and however often: over ten seconds no more is sent than ten times the rate and one object.
    #[test]
    fn what_is_sent_over_some_time_is_what_the_rate_allows() {
        const RATE: u64 = 1 << 20;
        let (pace, mut now, mut sent) = (Pace::default(), Duration::ZERO, 0);
        let objects = [2 << 20, 1, 700_000, 64 << 10, 0, 300_000];
        for bytes in objects.iter().cycle() {
            if now >= Duration::from_secs(10) {
                break;
            }
            match pace.wait(now) {
                Some(left) => now += left,
                None => {
                    sent += *bytes as u64;
                    pace.sent(now, *bytes, RATE);
                }
            }
        }
        assert!((10 * RATE..=12 * RATE).contains(&sent), "{sent}");
    }

    #[test]
    fn time_in_which_nothing_was_asked_for_is_not_saved_up() {
        let (pace, later) = (Pace::default(), Duration::from_secs(3600));
        pace.sent(Duration::ZERO, 1000, 1000);
        assert_eq!(pace.wait(Duration::from_millis(400)), Some(Duration::from_millis(600)));
        assert_eq!(pace.wait(Duration::from_secs(1)), None);
        pace.sent(later, 1000, 1000);
        assert_eq!(pace.wait(later), Some(Duration::from_secs(1)));
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let pace = Pace::default();
        pace.sent(Duration::ZERO, usize::MAX, 0);
        assert_eq!(pace.wait(Duration::ZERO), None);
        // One that is absurdly small ends nothing but patience.
        pace.sent(Duration::ZERO, usize::MAX, 1);
        assert!(pace.wait(Duration::ZERO).is_some());
    }
}
