//! How far something is, for a person: as words that a result has, and what messages do while a bar is at the terminal.
//!
//! A bar takes the last line of the terminal, and draws it again some ten times a second. A message in between takes that line
//! away first, so that none is written behind half a bar.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use shoaldb::SnapshotStatus;

use crate::units::bytes;

/// Characters of a bar between its ends.
const WIDTH: u64 = 20;

/// A bar is at the terminal.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// Says whether there is a bar.
pub(crate) fn set_shown(shown: bool) {
    SHOWN.store(shown, Ordering::Relaxed);
}

/// Standard error, for messages: whole lines, each in one call.
pub(crate) struct Messages;

impl Write for Messages {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !SHOWN.load(Ordering::Relaxed) {
            return io::stderr().write(line);
        }
        // To the beginning of the line, and without what is on it; in one call, so that the bar is not drawn in between.
        let whole = [b"\r\x1b[2K", line].concat();
        io::stderr().write_all(&whole).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// How much of it there is, in percent; of nothing, none.
pub(crate) fn percent(done: u64, total: u64) -> u64 {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    u64::try_from(percent).unwrap_or(u64::MAX).min(100)
}

/// `[########------------] 43 %, 4.3 GiB/10 GiB`
pub(crate) fn share(done: u64, total: u64) -> String {
    let percent = percent(done, total);
    let full = (percent * WIDTH / 100) as usize;
    let (full, rest) = ("#".repeat(full), "-".repeat(WIDTH as usize - full));
    format!("[{full}{rest}] {percent} %, {}/{}", bytes(done), bytes(total))
}

/// What is done of a snapshot, in words: its phase, and behind it the bar, and so many bytes a second over the whole time.
pub(crate) fn of_snapshot(snapshot: &SnapshotStatus) -> String {
    let phase = &snapshot.phase;
    if snapshot.total == 0 {
        // The other node has not said yet how much it is.
        return phase.clone();
    }
    let share = share(snapshot.done, snapshot.total);
    let rate = u128::from(snapshot.done) * 1000 / u128::from(snapshot.elapsed_ms.max(1));
    format!("{phase} {share}, {}/s", bytes(u64::try_from(rate).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use shoaldb::types::{LogIndex, NodeId};

    use super::*;

    #[test]
    fn a_share_is_a_bar_with_numbers() {
        for (done, total, told) in [
            (0, 0, "[--------------------] 0 %, 0 B/0 B"),
            (0, 100, "[--------------------] 0 %, 0 B/100 B"),
            (4, 100, "[--------------------] 4 %, 4 B/100 B"),
            (5, 100, "[#-------------------] 5 %, 5 B/100 B"),
            (43 << 20, 100 << 20, "[########------------] 43 %, 43 MiB/100 MiB"),
            (99_999, 100_000, "[###################-] 99 %, 97.7 KiB/97.7 KiB"),
            (7, 7, "[####################] 100 %, 7 B/7 B"),
            // More than all there is, and numbers whose product has no place in 64 bits.
            (9, 7, "[####################] 100 %, 9 B/7 B"),
            (u64::MAX, u64::MAX, "[####################] 100 %, 17179869184.0 GiB/17179869184.0 GiB"),
        ] {
            assert_eq!(share(done, total), told);
        }
    }

    #[test]
    fn a_snapshot_is_told_with_its_phase_its_bar_and_its_rate() {
        let snapshot = |phase: &str, done, total, elapsed_ms| -> SnapshotStatus {
            let (source, index) = (NodeId(2), LogIndex(812));
            let value = serde_json::json!({
                "source": source, "index": index, "phase": phase, "done": done, "total": total, "elapsed_ms": elapsed_ms,
            });
            serde_json::from_value(value).unwrap()
        };
        assert_eq!(of_snapshot(&snapshot("compare", 0u64, 0u64, 0u64)), "compare");
        let told = "fetch [#####---------------] 25 %, 256 MiB/1 GiB, 64 MiB/s";
        assert_eq!(of_snapshot(&snapshot("fetch", 256u64 << 20, 1u64 << 30, 4000u64)), told);
        // So early that no time is over.
        let told = "fetch [----------] 1 %".replace("----------", "--------------------");
        assert!(of_snapshot(&snapshot("fetch", 1u64, 100u64, 0u64)).starts_with(&told));
        assert!(of_snapshot(&snapshot("install", u64::MAX, u64::MAX, 1u64)).starts_with("install [####"));
    }
}
