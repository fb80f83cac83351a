//! What goes to standard error besides the log.
//!
//! It is never a reason to stop: a disk that is full takes no message, and the program goes on. `eprintln!` panics there.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::layer::SubscriberExt;

/// With `--log-format json`: words are objects, as the lines of the log are.
static JSON: AtomicBool = AtomicBool::new(false);

/// How lines look from here on.
pub(crate) fn set_json(json: bool) {
    JSON.store(json, Ordering::Relaxed);
}

/// Whether they are objects.
pub(crate) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// A line for a person, whatever the log looks like.
pub(crate) fn line(text: &str) {
    part(&format!("{text}\n"));
}

/// The same without its end: a question.
pub(crate) fn part(text: &str) {
    // There is nobody to tell that nobody can be told.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Why something failed.
pub(crate) fn failed(text: &str) {
    match is_json() {
        true => object(|| tracing::error!("{text}")),
        false => line(&format!("shoal: {text}")),
    }
}

/// What one should know, and no failure.
pub(crate) fn note(text: &str) {
    match is_json() {
        true => object(|| tracing::info!("{text}")),
        false => line(&format!("note: {text}")),
    }
}

/// As a line of the log; but however little of that is wanted.
fn object(say: impl FnOnce()) {
    let lines = tracing_subscriber::fmt::layer().json().with_writer(io::stderr).with_target(false);
    let all = tracing_subscriber::registry().with(lines.log_internal_errors(false));
    tracing::subscriber::with_default(all, say);
}
