//! `.import`: the lines of a file become rows, all of them or none. They are comma-separated values, or have another separator.
//!
//! It is a transaction of its own, or, within one that is open, a savepoint: what was open before stays as it was. A line
//! with more or fewer values than the table has columns ends it, and nothing is imported: guessing what was meant would be
//! found out late.

use std::fs::File;
use std::path::Path;

use csv::StringRecord;
use shoaldb::client::session::Cell;

use super::shell::{Shell, name, quoted};
use crate::Failed;

/// What goes to the node at once, in bytes: far below what it takes, far above the price of a call.
const PIECE: usize = 256 << 10;
/// What a value takes besides its bytes: quotes and a comma on the way, and its place in memory here and at the node. A file
/// may have next to nothing in it but commas.
const VALUE: usize = size_of::<Cell>();

/// How a file is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    /// What stands between values.
    pub(crate) column: u8,
    /// What ends a row; `None` is the end of a line, however that is written.
    pub(crate) row: Option<u8>,
    /// A value in quotes may have both.
    pub(crate) quotes: bool,
}

impl Format {
    pub(crate) const CSV: Format = Format { column: b',', row: None, quotes: true };
    pub(crate) const ASCII: Format = Format { column: 0x1f, row: Some(0x1e), quotes: false };

    /// With these separators, each of which must be one byte.
    pub(crate) fn new((column, row): (&str, &str)) -> Result<Format, Failed> {
        let one = |what: &str, text: &str| match text.as_bytes() {
            [byte] if *byte != b'"' => Ok(*byte),
            _ => Err(Failed {
                code: 1,
                text: format!(
                    ".import: the separator of {what} is {text:?}, and must be one character of ASCII, not a quote"
                ),
            }),
        };
        let column = one("columns", column)?;
        let row = if matches!(row, "\n" | "\r\n") { None } else { Some(one("rows", row)?) };
        let format = Format { column, row, quotes: true };
        if (column, row) == (Format::ASCII.column, Format::ASCII.row) { Ok(Format::ASCII) } else { Ok(format) }
    }
}

/// Imports; see the module's text.
pub(crate) fn run(shell: &mut Shell, path: &Path, table: &str, format: Format, skip: usize) -> Result<(), Failed> {
    let failed = |text: String| Failed { code: 1, text: format!("{}: {text}", path.display()) };
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut lines = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(format.column)
        .terminator(format.row.map_or(csv::Terminator::CRLF, csv::Terminator::Any))
        .quoting(format.quotes)
        .from_reader(file);
    let mut record = StringRecord::new();
    let mut next = |record: &mut StringRecord| lines.read_record(record).map_err(|error| failed(error.to_string()));
    for _ in 0..skip {
        next(&mut record)?;
    }
    // Not a savepoint in both cases: one that begins a transaction would take the write lock late, and could not wait for it.
    let own = !shell.in_transaction();
    let (begin, end, undo) = match own {
        true => ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"),
        false => ("SAVEPOINT shoal_import", "RELEASE shoal_import", "ROLLBACK TO shoal_import; RELEASE shoal_import"),
    };
    quiet(shell, begin).map_err(|failed| with(failed, "nothing was imported"))?;
    let inserted = (|| {
        let mut columns = shell.rows(&format!("SELECT 1 FROM pragma_table_info({})", quoted(table)))?.len();
        if columns == 0 {
            if !next(&mut record)? {
                return Err(failed("has no line to name the columns".to_string()));
            }
            let named: Vec<String> = record.iter().map(|column| format!("{} TEXT", name(column))).collect();
            quiet(shell, &format!("CREATE TABLE {}({})", name(table), named.join(", ")))?;
            columns = named.len();
        }
        let insert = format!("INSERT INTO {} VALUES ({})", name(table), vec!["?"; columns].join(", "));
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while next(&mut record)? {
            shell.current.check()?;
            if record.len() != columns {
                let place = match format.row {
                    None => format!("line {}", record.position().map_or(0, csv::Position::line)),
                    Some(_) => format!("row {}", record.position().map_or(0, csv::Position::record) + 1),
                };
                return Err(failed(format!("{place}: {} values for {columns} columns", record.len())));
            }
            bytes += record.as_slice().len() + VALUE * record.len();
            rows.push(record.iter().map(|value| Cell::Text(value.to_string())).collect());
            if bytes >= PIECE {
                shell.run(&insert, std::mem::take(&mut rows), &mut |_| Ok(()))?;
                bytes = 0;
            }
        }
        if !rows.is_empty() {
            shell.run(&insert, rows, &mut |_| Ok(()))?;
        }
        shell.current.check()
    })();
    let Err(failed) = inserted else {
        let ended = quiet(shell, end);
        if ended.is_err() && own && shell.in_transaction() {
            // What went wrong before is the reason that counts.
            let _ = quiet(shell, undo);
        }
        return ended;
    };
    Err(match shell.in_transaction() {
        true => match quiet(shell, undo) {
            Ok(()) => with(failed, "nothing was imported"),
            Err(second) => with(failed, &format!("what was imported could not be taken back: {}", second.text)),
        },
        // SQLite has rolled it back, as for a constraint with ON CONFLICT ROLLBACK or an interrupted INSERT; or the session
        // is over, which does so as well.
        false if own => with(failed, "nothing was imported"),
        false => with(failed, "nothing was imported, and the transaction that was open is rolled back"),
    })
}

fn with(failed: Failed, what: &str) -> Failed {
    Failed { text: format!("{}; {what}", failed.text), ..failed }
}

fn quiet(shell: &mut Shell, sql: &str) -> Result<(), Failed> {
    shell.run(sql, Vec::new(), &mut |_| Ok(()))
}
