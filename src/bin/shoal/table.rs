//! What goes to standard output.

use std::io::Write;

use comfy_table::{Table, presets};

/// A table without lines: columns that a person reads and `awk` splits.
pub(crate) fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Prints a result. A reader that has gone (`| head`) wanted no more.
pub(crate) fn print(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}
