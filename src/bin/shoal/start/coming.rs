//! A snapshot on its way to this node, or the copy of a database for a repair, as `shoal start` shows it: at a terminal as a
//! bar, else as a line of the log now and then.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, tick};
use indicatif::{ProgressBar, ProgressStyle};
use shoaldb::{Node, SnapshotStatus};

use crate::progress::{of_snapshot, percent, set_shown};

/// How often the node is asked how far it is, as long as something comes.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// When the log has a line: after so much time, or so much more.
const LINE_EVERY: Duration = Duration::from_secs(10);
const LINE_PERCENT: u64 = 10;

/// What comes, if anything does.
pub(crate) struct Coming {
    shown: Option<Shown>,
    never: Receiver<Instant>,
}

struct Shown {
    looks: Receiver<Instant>,
    bar: Option<Bar>,
    lines: Lines,
}

impl Coming {
    pub(crate) fn new() -> Coming {
        Coming { shown: None, never: never() }
    }

    /// When to look again: never, if nothing comes.
    pub(crate) fn looks(&self) -> &Receiver<Instant> {
        self.shown.as_ref().map_or(&self.never, |shown| &shown.looks)
    }

    /// Something comes, or its end: what the node says of it is shown.
    pub(crate) fn look(&mut self, node: &Node) {
        let Some(now) = node.status().snapshot else {
            self.shown = None;
            return;
        };
        let shown = self.shown.get_or_insert_with(|| Shown {
            looks: tick(LOOK_EVERY),
            bar: io::stderr().is_terminal().then(Bar::new),
            lines: Lines::default(),
        });
        match &shown.bar {
            Some(bar) => bar.show(&now),
            None if shown.lines.is_due(Instant::now(), percent(now.done, now.total)) => {
                let (index, source) = (now.index, now.source);
                tracing::info!(
                    node = node.id(),
                    "a snapshot of entry {index} from node {source}: {}",
                    of_snapshot(&now)
                );
            }
            None => {}
        }
    }
}

/// Which lines of a log there are.
#[derive(Default)]
struct Lines {
    last: Option<(Instant, u64)>,
}

impl Lines {
    /// Whether there is one now. That it begins is told already; less than before is a transfer that began anew.
    fn is_due(&mut self, now: Instant, percent: u64) -> bool {
        let (at, told) = *self.last.get_or_insert((now, 0));
        let is_due = now >= at + LINE_EVERY || percent >= told + LINE_PERCENT || percent < told;
        if is_due {
            self.last = Some((now, percent));
        }
        is_due
    }
}

/// The last line of the terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Bar {
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template(
            "{spinner} {msg} {bar:30} {percent} % {bytes}/{total_bytes} {binary_bytes_per_sec}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(DRAW_EVERY);
        set_shown(true);
        Bar(bar)
    }

    fn show(&self, now: &SnapshotStatus) {
        self.0.set_message(format!("snapshot from node {}: {:8}", now.source, now.phase));
        if now.total > 0 {
            self.0.set_length(now.total);
            self.0.set_position(now.done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        set_shown(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_a_line_every_ten_percent_or_ten_seconds() {
        let begun = Instant::now();
        let mut lines = Lines::default();
        let said: Vec<(u64, u64)> = [
            (0, 0),
            (1, 9),
            (2, 10),
            (3, 19),
            (4, 35),
            (5, 44),
            (6, 45),
            // Nothing moves, and that is told, too.
            (15, 45),
            (16, 45),
            (26, 45),
            // From another node, from the beginning.
            (27, 3),
            (28, 12),
            (29, 13),
        ]
        .into_iter()
        .filter(|(second, percent)| lines.is_due(begun + Duration::from_secs(*second), *percent))
        .collect();
        assert_eq!(said, [(2, 10), (4, 35), (6, 45), (16, 45), (26, 45), (27, 3), (29, 13)]);
    }
}
