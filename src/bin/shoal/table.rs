//! What goes to standard output.
//!
//! Nothing is written behind the first error. A reader that has gone (`| head`) wanted no more: the command does what it was asked, and
//! ends as it would have ended. Any other error, such as a full disk, is a failure: what was asked for is not there.

use std::io::{self, Write};
use std::sync::OnceLock;

use comfy_table::{Table, presets};

use crate::Failed;

/// The first error of standard output.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// A table without lines: columns that a person reads and `awk` splits.
pub(crate) fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Prints a result.
pub(crate) fn print(text: &str) {
    if !is_lost() {
        note(writeln!(io::stdout(), "{text}"));
    }
}

/// Takes in what came of writing to standard output.
pub(crate) fn note(written: io::Result<()>) {
    if let Err(error) = written {
        // The first one counts.
        let _ = LOST.set(error);
    }
}

/// Whether nobody will see what is printed from here on.
pub(crate) fn is_lost() -> bool {
    LOST.get().is_some()
}

/// What a command that did what it was asked ends with: whether its result is where it should be.
pub(crate) fn written() -> Result<(), Failed> {
    match LOST.get() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failed { code: 1, text: not_written(error) }),
        _ => Ok(()),
    }
}

/// Why a result is not where it should be.
pub(crate) fn not_written(error: &io::Error) -> String {
    format!("standard output: {error}")
}
