//! `.import`: the lines of a file of comma-separated values become rows, in one transaction.
//!
//! A line with more or fewer values than the table has columns ends it, and nothing is imported: guessing what was meant
//! would be found out late.

use std::fs::File;
use std::path::Path;

use csv::StringRecord;
use shoaldb::client::session::Cell;

use super::shell::{Shell, name, quoted};
use crate::Failed;

/// Values that go to the node at once, in bytes: far below what it takes, far above the price of a call.
const PIECE: usize = 256 << 10;

/// Imports; see the module's text.
pub(crate) fn run(shell: &mut Shell, path: &Path, table: &str, skip: usize) -> Result<(), Failed> {
    let failed = |text: String| Failed { code: 1, text: format!("{}: {text}", path.display()) };
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut lines = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(file);
    let mut record = StringRecord::new();
    let mut next = |record: &mut StringRecord| lines.read_record(record).map_err(|error| failed(error.to_string()));
    for _ in 0..skip {
        next(&mut record)?;
    }
    let own = !shell.in_transaction();
    if own {
        quiet(shell, "BEGIN IMMEDIATE")?;
    }
    let result = (|| {
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
            if record.len() != columns {
                let line = record.position().map_or(0, csv::Position::line);
                let text = format!("line {line}: {} values for {columns} columns; nothing was imported", record.len());
                return Err(failed(text));
            }
            bytes += record.as_slice().len();
            rows.push(record.iter().map(|value| Cell::Text(value.to_string())).collect());
            if bytes >= PIECE {
                shell.run(&insert, std::mem::take(&mut rows), &mut |_| Ok(()))?;
                bytes = 0;
            }
        }
        if !rows.is_empty() {
            shell.run(&insert, rows, &mut |_| Ok(()))?;
        }
        if own { quiet(shell, "COMMIT") } else { Ok(()) }
    })();
    if result.is_err() && own && shell.in_transaction() {
        // What went wrong before is the reason that counts. Without a session it is rolled back already.
        let _ = quiet(shell, "ROLLBACK");
    }
    result
}

fn quiet(shell: &mut Shell, sql: &str) -> Result<(), Failed> {
    shell.run(sql, Vec::new(), &mut |_| Ok(()))
}
