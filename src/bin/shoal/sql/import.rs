//! `.import`: the lines of a file become rows, all of them or none. They are comma-separated values, or have another separator.
//!
//! It is a transaction of its own, or, within one that is open, a savepoint: what was open before stays as it was. A line
//! with more or fewer values than the table has columns ends it, and nothing is imported: guessing what was meant would be
//! found out late.

use std::fs::File;
use std::io::{self, Read};
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

const NOTHING: &str = "nothing was imported";

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

/// A row of more bytes is more than a node takes at once. A quote that is not closed makes one of all that follows.
const LARGEST: u64 = 16 << 20;

/// The bytes of a file, with a row of our own behind them, and what ends a row on both sides of it. If that does not come as a
/// row, a quote in the last one was not closed: the reader of CSV takes such a file for whole.
struct Whole {
    file: File,
    /// The only value of our row: a letter that is no separator.
    ours: &'static str,
    /// What is left of the row.
    behind: Vec<u8>,
    /// Bytes that were given.
    given: u64,
    /// How many the file has, once that is known.
    end: Option<u64>,
    /// Where the row that is read begins.
    row: u64,
    /// The last piece that was given, and the byte before it.
    piece: Vec<u8>,
    before: u8,
}

impl Whole {
    fn new(file: File, format: Format) -> Whole {
        let ends = format.row.unwrap_or(b'\n');
        let is_other = |letter: &&str| ![ends, format.column].contains(&letter.as_bytes()[0]);
        let ours = ["x", "y", "z"].into_iter().find(is_other).unwrap_or("x");
        let behind = [&[ends], ours.as_bytes(), &[ends]].concat();
        Whole { file, ours, behind, given: 0, end: None, row: 0, piece: Vec::new(), before: 0 }
    }

    /// The byte before this one, which is in the last piece, or the first behind it.
    fn before(&self, at: u64) -> u8 {
        let start = self.given - self.piece.len() as u64;
        let within = at.checked_sub(start + 1).and_then(|within| usize::try_from(within).ok());
        within.and_then(|within| self.piece.get(within)).copied().unwrap_or(self.before)
    }
}

impl Read for Whole {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.end.is_none() && self.given - self.row > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut length = if self.end.is_none() { self.file.read(to)? } else { 0 };
        if length == 0 {
            self.end.get_or_insert(self.given);
            length = self.behind.as_slice().read(to)?;
            self.behind.drain(..length);
        }
        self.before = self.piece.last().copied().unwrap_or(self.before);
        self.piece.clear();
        self.piece.extend_from_slice(&to[..length]);
        self.given += length as u64;
        Ok(length)
    }
}

/// The rows of a file, one after another.
struct Rows {
    /// Of the file.
    name: String,
    lines: csv::Reader<Whole>,
    format: Format,
    record: StringRecord,
    /// Where the next one begins, blank lines before it counted in.
    next_line: u64,
}

impl Rows {
    fn new(path: &Path, format: Format) -> Result<Rows, Failed> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| Failed { code: 1, text: format!("{name}: {error}") })?;
        let lines = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(format.column)
            .terminator(format.row.map_or(csv::Terminator::CRLF, csv::Terminator::Any))
            .quoting(format.quotes)
            .from_reader(Whole::new(file, format));
        Ok(Rows { name, lines, format, record: StringRecord::new(), next_line: 1 })
    }

    /// The number of the row that was read, as a person finds it: that of the line at which it begins, if rows are lines.
    fn number(&self) -> u64 {
        match self.format.row {
            // Blank lines before it are none of it, and every line that ends within it does so in a value.
            None => self.next_line.saturating_sub(1 + lines_in(self.record.as_slice())),
            Some(_) => self.record.position().map_or(0, csv::Position::record) + 1,
        }
    }

    fn place(&self, number: u64) -> String {
        let what = if self.format.row.is_none() { "line" } else { "row" };
        format!("{}: {what} {number}: ", self.name)
    }

    /// Reads the next row; false if there is none.
    fn next(&mut self) -> Result<bool, Failed> {
        let (start, record) = (self.lines.position().byte(), self.lines.position().record());
        self.lines.get_mut().row = start;
        let more = self.lines.read_record(&mut self.record);
        let more = more.map_err(|error| match error.kind() {
            csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let place = self.place(if self.format.row.is_none() { self.next_line } else { record + 1 });
                failed(&place, &format!("a row of more than {LARGEST} bytes; is a quote in it not closed?"))
            }
            _ => failed(&format!("{}: ", self.name), &error.to_string()),
        })?;
        let (at, whole) = (self.lines.position(), self.lines.get_ref());
        // Of an end of two bytes the second is read with the next row.
        self.next_line = at.line() + u64::from(whole.before(at.byte()) == b'\r');
        if !more || whole.end.is_none_or(|end| at.byte() <= end + 1) {
            return Ok(more);
        }
        if self.record.iter().eq([whole.ours]) {
            return Ok(false);
        }
        let value = self.record.iter().next_back().unwrap_or_default();
        let number = if self.format.row.is_none() { at.line() - lines_in(value) } else { record + 1 };
        Err(failed(&self.place(number), "a quote that begins here is not closed"))
    }
}

fn failed(place: &str, text: &str) -> Failed {
    Failed { code: 1, text: format!("{place}{text}") }
}

fn lines_in(text: &str) -> u64 {
    text.bytes().filter(|byte| *byte == b'\n').count() as u64
}

/// Imports; see the module's text.
pub(crate) fn run(shell: &mut Shell, path: &Path, table: &str, format: Format, skip: usize) -> Result<(), Failed> {
    let mut file = Rows::new(path, format)?;
    for _ in 0..skip {
        file.next().map_err(|failed| with(failed, NOTHING))?;
    }
    // Not a savepoint in both cases: one that begins a transaction would take the write lock late, and could not wait for it.
    let own = !shell.in_transaction();
    let (begin, end, undo) = match own {
        true => ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"),
        false => ("SAVEPOINT shoal_import", "RELEASE shoal_import", "ROLLBACK TO shoal_import; RELEASE shoal_import"),
    };
    quiet(shell, begin).map_err(|failed| with(failed, NOTHING))?;
    let inserted = (|| {
        let mut columns = shell.rows(&format!("SELECT 1 FROM pragma_table_info({})", quoted(table)))?.len();
        if columns == 0 {
            if !file.next()? {
                return Err(failed(&format!("{}: ", file.name), "has no line to name the columns"));
            }
            let named: Vec<String> = file.record.iter().map(|column| format!("{} TEXT", name(column))).collect();
            let create = format!("CREATE TABLE {}({})", name(table), named.join(", "));
            shell.run_for(&create, Vec::new(), &|_| file.place(file.number()))?;
            columns = named.len();
        }
        let insert = format!("INSERT INTO {} VALUES ({})", name(table), vec!["?"; columns].join(", "));
        let (mut rows, mut numbers, mut bytes) = (Vec::new(), Vec::new(), 0);
        loop {
            let more = file.next()?;
            if bytes >= PIECE || !more && !rows.is_empty() {
                let place = |row: Option<u32>| match row.and_then(|row| numbers.get(row as usize)) {
                    Some(number) => file.place(*number),
                    None => format!("{}: ", file.name),
                };
                shell.run_for(&insert, std::mem::take(&mut rows), &place)?;
                numbers.clear();
                bytes = 0;
            }
            shell.current.check()?;
            if !more {
                return Ok(());
            }
            let record = &file.record;
            if record.len() != columns {
                let text = format!("{} values for {columns} columns", record.len());
                return Err(failed(&file.place(file.number()), &text));
            }
            bytes += record.as_slice().len() + VALUE * record.len();
            rows.push(record.iter().map(|value| Cell::Text(value.to_string())).collect());
            numbers.push(file.number());
        }
    })();
    let Err(failed) = inserted else {
        let ended = shell.run_for(end, Vec::new(), &|_| format!("{}: ", file.name));
        if ended.is_err() && own && shell.in_transaction() {
            // What went wrong before is the reason that counts.
            let _ = quiet(shell, undo);
        }
        return ended;
    };
    Err(match shell.in_transaction() {
        true => match quiet(shell, undo) {
            Ok(()) => with(failed, NOTHING),
            Err(second) => with(failed, &format!("what was imported could not be taken back: {}", second.text)),
        },
        // SQLite has rolled it back, as for a constraint with ON CONFLICT ROLLBACK or an interrupted INSERT; or the session
        // is over, which does so as well.
        false if own => with(failed, NOTHING),
        false => with(failed, "nothing was imported, and the transaction that was open is rolled back"),
    })
}

fn with(failed: Failed, what: &str) -> Failed {
    Failed { text: format!("{}; {what}", failed.text), ..failed }
}

fn quiet(shell: &mut Shell, sql: &str) -> Result<(), Failed> {
    shell.run(sql, Vec::new(), &mut |_| Ok(()))
}
