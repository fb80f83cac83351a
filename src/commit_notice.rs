//! When a leader tells its followers what is committed.
//!
//! They learn it with the next entries, and with the next heartbeat. A message of its own costs each of them a wake-up, an
//! answer, and the leader another wake-up for that: with one writer half of all messages. So after a commit that comes alone
//! they are told at once, and while commits follow one another the next entries do it, or this after [`SOON`].
//!
//! Nothing but the age of what followers show hangs on this: an entry counts when a majority has it, not when it is told.
//!
//! Deliberately absent: the message, and who waits for the time.

use std::time::Duration;

/// How long followers may wait for entries that tell them by the way: a few commits on a quick disk, and nothing that a
/// reader of a follower would notice.
const SOON: Duration = Duration::from_millis(1);

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct CommitNotice {
    /// Since when something is committed that they were not told.
    since: Option<Duration>,
    /// When that last began.
    last: Option<Duration>,
}

impl CommitNotice {
    /// Whether to tell them now. To be asked in every turn; `untold`: there is something to tell.
    pub(crate) fn is_due(&mut self, now: Duration, untold: bool) -> bool {
        if !untold {
            self.since = None;
            return false;
        }
        let due = match self.since {
            Some(since) => now.saturating_sub(since) >= SOON,
            None => self.last.replace(now).is_none_or(|last| now.saturating_sub(last) > SOON),
        };
        self.since = if due { None } else { self.since.or(Some(now)) };
        due
    }

    /// When they are to be told at the latest.
    pub(crate) fn due_at(&self) -> Option<Duration> {
        Some(self.since? + SOON)
    }

    /// Until when another commit would follow the last one closely.
    pub(crate) fn busy_until(&self) -> Option<Duration> {
        Some(self.last? + SOON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// A commit that comes alone is told at once, also the first one of all.
    #[test]
    fn a_lonely_commit_is_told_at_once() {
        let mut notice = CommitNotice::default();
        for start in [0, 5_000, 90_000] {
            assert!(!notice.is_due(at(start), false));
            assert!(notice.is_due(at(start + 300), true));
            assert_eq!(notice.due_at(), None);
        }
    }

    /// While commits follow one another they wait for the next entries, and the last of them not for longer than `SOON`.
    #[test]
    fn commits_that_follow_one_another_are_told_with_entries() {
        let mut notice = CommitNotice::default();
        assert!(notice.is_due(at(0), true));
        for step in 1..10 {
            assert!(!notice.is_due(at(step * 300), true), "{step}");
            assert_eq!(notice.due_at(), Some(at(step * 300) + SOON));
            // The next entries went, and told it.
            assert!(!notice.is_due(at(step * 300 + 50), false));
            assert_eq!(notice.due_at(), None);
        }
        assert!(!notice.is_due(at(3_000), true));
        // What is committed meanwhile does not make the first one wait longer.
        assert!(!notice.is_due(at(3_900), true));
        assert!(notice.is_due(at(4_000), true));
    }
}
