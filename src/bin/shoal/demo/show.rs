//! What the demo shows while it runs, on standard error: lines with the time, and a progress bar below them if a person
//! looks at it.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use crate::say;

/// See the module's text.
pub(crate) struct Show {
    began: Instant,
    terminal: bool,
    bar: Mutex<Option<ProgressBar>>,
    /// How much of the bar the last plain line told of, in tenths.
    tenths: Mutex<u64>,
}

impl Show {
    pub(crate) fn new() -> Show {
        Show {
            began: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
            bar: Mutex::new(None),
            tenths: Mutex::new(0),
        }
    }

    /// A line with the time.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("{:7.2}s  {text}", self.began.elapsed().as_secs_f64());
        match &*self.bar.lock() {
            Some(bar) => bar.suspend(|| say::line(&line)),
            None => say::line(&line),
        }
    }

    /// A new bar of this length.
    pub(crate) fn begin(&self, what: &'static str, length: u64) {
        self.end();
        *self.tenths.lock() = 0;
        let bar = if self.terminal { ProgressBar::new(length) } else { ProgressBar::hidden() };
        bar.set_length(length);
        if let Ok(style) = ProgressStyle::with_template("          {prefix} {bar:40} {percent:>3}%  {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        *self.bar.lock() = Some(bar);
    }

    /// How far it is.
    pub(crate) fn progress(&self, at: u64, text: &str) {
        let tenths = match &*self.bar.lock() {
            Some(bar) => {
                bar.set_position(at);
                bar.set_message(text.to_string());
                at * 10 / bar.length().unwrap_or(1).max(1)
            }
            None => return,
        };
        // Without a terminal a line now and then does it.
        if !self.terminal && std::mem::replace(&mut *self.tenths.lock(), tenths) != tenths {
            self.say(&format!("{} %: {text}", tenths * 10));
        }
    }

    /// The bar goes.
    pub(crate) fn end(&self) {
        if let Some(bar) = self.bar.lock().take() {
            bar.finish_and_clear();
        }
    }
}
