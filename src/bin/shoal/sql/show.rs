//! How results look: the modes of SQLite's own shell.
//!
//! Rows are printed as they come. `column`, `table`, `box` and `markdown` need to know how wide they are, and go by the first
//! [`LOOK_AHEAD`] rows; what is wider later stands out. So memory is bounded whatever the result.
//!
//! A blob is printed as `x'00ff'`, in JSON as a string of hexadecimal digits. On a terminal control characters are printed
//! as `^X`: what somebody stored must not move somebody else's cursor.
//!
//! `quote` and `insert` print literals of SQL, which give the same value again. A text that a literal cannot have, or that would
//! move the cursor, is a cast of its bytes. Here these two, and `markdown`, go beyond SQLite's shell, which prints what it cannot
//! read again (`Inf`, the beginning of a text up to its first zero, a `|` that ends a column).

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use shoaldb::client::session::{Cell, Said, hex};

use super::shell::{identifier, quoted};

/// Rows that are looked at for widths.
const LOOK_AHEAD: usize = 1000;

/// See the module's text.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Values with `|` between them.
    List,
    /// Columns for a person.
    Column,
    /// Comma-separated values.
    Csv,
    /// An array of objects per statement.
    Json,
    /// One value per line.
    Line,
    /// Columns with lines around them.
    Table,
    /// The same, with characters that are lines.
    Box,
    /// A table of Markdown.
    Markdown,
    /// Literals of SQL with commas between them.
    Quote,
    /// INSERT statements; for a table that `.mode insert TABLE` names.
    Insert,
    /// Values with tabs between them.
    Tabs,
    /// Values and rows with the separators of ASCII (0x1f and 0x1e) behind them.
    Ascii,
}

impl Mode {
    fn is_laid_out(self) -> bool {
        matches!(self, Mode::Column | Mode::Table | Mode::Box | Mode::Markdown)
    }

    /// What stands between values, and behind a row, if nothing else was said.
    pub(crate) fn separators(self) -> (&'static str, &'static str) {
        match self {
            Mode::Csv | Mode::Quote => (",", "\n"),
            Mode::Tabs => ("\t", "\n"),
            Mode::Ascii => ("\x1f", "\x1e"),
            _ => ("|", "\n"),
        }
    }
}

/// Where in a table a line is.
#[derive(Clone, Copy)]
enum Rule {
    Top,
    BelowHeader,
    Bottom,
}

/// The table of `.mode insert`, if none is named: that of SQLite's shell.
const TABLE: &str = "table";

/// Prints what a session says.
pub(crate) struct Printer {
    out: BufWriter<Stdout>,
    pub(crate) mode: Mode,
    pub(crate) headers: bool,
    /// Of `.mode insert`.
    table: String,
    /// Of `.separator`: between values, and behind a row.
    separators: Option<(String, String)>,
    to_terminal: bool,
    columns: Vec<String>,
    /// Rows that wait until the widths are known.
    waiting: Vec<Vec<String>>,
    widths: Vec<usize>,
    printed: usize,
    /// A statement with columns is on.
    open: bool,
}

impl Printer {
    pub(crate) fn new(mode: Mode, headers: bool) -> Printer {
        let out = BufWriter::new(io::stdout());
        let to_terminal = io::stdout().is_terminal();
        let (columns, waiting, widths) = Default::default();
        let (table, separators) = (TABLE.to_string(), None);
        Printer {
            out,
            mode,
            headers,
            table,
            separators,
            to_terminal,
            columns,
            waiting,
            widths,
            printed: 0,
            open: false,
        }
    }

    /// Another mode; with separators, and a table, of its own.
    pub(crate) fn set_mode(&mut self, mode: Mode, table: Option<&str>) {
        self.mode = mode;
        self.separators = None;
        self.table = table.unwrap_or(TABLE).to_string();
    }

    /// Other separators than those of the mode; that of rows may stay.
    pub(crate) fn set_separators(&mut self, column: &str, row: Option<&str>) {
        let row = row.unwrap_or_else(|| self.separators().1).to_string();
        self.separators = Some((column.to_string(), row));
    }

    /// What stands between values, and behind a row.
    fn separators(&self) -> (&str, &str) {
        match &self.separators {
            Some((column, row)) => (column, row),
            None => self.mode.separators(),
        }
    }

    /// What was said of separators, by `.separator` or by a mode that is about them.
    pub(crate) fn said_separators(&self) -> Option<(&str, &str)> {
        let is_about_them = matches!(self.mode, Mode::Csv | Mode::Tabs | Mode::Ascii);
        (is_about_them || self.separators.is_some()).then(|| self.separators())
    }

    /// Prints a line of our own among the results.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Takes the next piece of a result.
    pub(crate) fn take(&mut self, said: Said) -> io::Result<()> {
        match said {
            Said::Columns(names) => {
                self.columns = names;
                self.printed = 0;
                self.widths.clear();
                self.open = true;
                if self.headers {
                    self.header_at_once()?;
                }
                Ok(())
            }
            Said::Rows(rows) => {
                rows.iter().try_for_each(|row| self.row(row))?;
                // What is there is shown: the next row may take its time.
                self.out.flush()
            }
            Said::Done(_) => self.end(),
        }
    }

    /// Whether a statement that has not come to its end has given rows.
    pub(crate) fn is_amid_rows(&self) -> bool {
        self.open && (self.printed > 0 || !self.waiting.is_empty())
    }

    /// The statement is over, in whatever way.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.open) {
            match self.mode {
                Mode::Json if self.printed == 0 => writeln!(self.out, "[]")?,
                Mode::Json => writeln!(self.out, "]")?,
                mode if mode.is_laid_out() => {
                    self.lay_out()?;
                    if self.printed > 0 {
                        self.rule(Rule::Bottom)?;
                    }
                }
                _ => {}
            }
        }
        self.out.flush()
    }

    fn header_at_once(&mut self) -> io::Result<()> {
        match self.mode {
            Mode::List | Mode::Csv | Mode::Tabs | Mode::Ascii => self.separated(&self.columns.clone()),
            Mode::Quote => {
                let names: Vec<String> = self.columns.iter().map(|name| quoted(name)).collect();
                self.separated(&names)
            }
            // With the rows, or never.
            _ => Ok(()),
        }
    }

    fn row(&mut self, row: &[Cell]) -> io::Result<()> {
        match self.mode {
            Mode::Json => self.json(row)?,
            Mode::Csv => self.separated(&row.iter().map(plain).collect::<Vec<_>>())?,
            Mode::Quote => self.separated(&row.iter().map(literal).collect::<Vec<_>>())?,
            Mode::List | Mode::Tabs | Mode::Ascii => {
                let values: Vec<String> = row.iter().map(|cell| self.shown(cell)).collect();
                self.separated(&values)?;
            }
            Mode::Insert => {
                let values: Vec<String> = row.iter().map(literal).collect();
                let names: Vec<String> = self.columns.iter().map(|name| identifier(name)).collect();
                let names = if self.headers { format!("({})", names.join(",")) } else { String::new() };
                writeln!(self.out, "INSERT INTO {}{names} VALUES({});", identifier(&self.table), values.join(","))?;
            }
            Mode::Line => {
                if self.printed > 0 {
                    writeln!(self.out)?;
                }
                let width = self.columns.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
                for (name, cell) in self.columns.iter().zip(row) {
                    let value = self.shown(cell);
                    writeln!(self.out, "{name:>width$} = {value}")?;
                }
            }
            Mode::Column | Mode::Table | Mode::Box | Mode::Markdown => {
                let values = row.iter().map(|cell| self.in_a_cell(&self.shown(cell))).collect();
                if self.widths.is_empty() {
                    self.waiting.push(values);
                    if self.waiting.len() >= LOOK_AHEAD {
                        self.lay_out()?;
                    }
                    return Ok(());
                }
                self.laid_out(&values)?;
            }
        }
        self.printed += 1;
        Ok(())
    }

    /// One line, or whatever a row is; as in CSV with quotes where they are needed.
    fn separated(&mut self, values: &[String]) -> io::Result<()> {
        let (column, row) = self.separators();
        let line = match self.mode {
            Mode::Csv => {
                let only = values.len() == 1;
                values.iter().map(|value| csv_value(value, (column, row), only)).collect::<Vec<_>>().join(column)
            }
            _ => values.join(column),
        } + row;
        self.out.write_all(line.as_bytes())
    }

    /// A value without what would end a cell of a table.
    fn in_a_cell(&self, value: &str) -> String {
        let value = value.replace('\n', "\\n");
        if self.mode == Mode::Markdown { value.replace('|', "\\|") } else { value }
    }

    fn json(&mut self, row: &[Cell]) -> io::Result<()> {
        self.out.write_all(if self.printed > 0 { b",\n{" } else { b"[{" })?;
        for (at, (name, cell)) in self.columns.iter().zip(row).enumerate() {
            if at > 0 {
                self.out.write_all(b",")?;
            }
            serde_json::to_writer(&mut self.out, name)?;
            self.out.write_all(b":")?;
            match cell {
                Cell::Null => self.out.write_all(b"null")?,
                Cell::Integer(value) => write!(self.out, "{value}")?,
                // The way in which SQLite writes what JSON has no number for.
                Cell::Real(value) if value.is_infinite() => {
                    write!(self.out, "{}1e999", if *value < 0.0 { "-" } else { "" })?
                }
                Cell::Real(value) => write!(self.out, "{value:?}")?,
                Cell::Text(value) => serde_json::to_writer(&mut self.out, value)?,
                Cell::Odd(value) => serde_json::to_writer(&mut self.out, &String::from_utf8_lossy(value))?,
                Cell::Blob(value) => write!(self.out, "\"{}\"", hex(value))?,
            }
        }
        self.out.write_all(b"}")
    }

    /// Prints the rows that waited, now that widths are decided.
    fn lay_out(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        let named = self.headers || self.mode != Mode::Column;
        let names: Vec<String> = self.columns.iter().map(|name| self.in_a_cell(&self.visible(name))).collect();
        self.widths = names.iter().map(|name| if named { name.chars().count() } else { 1 }).collect();
        for row in &waiting {
            for (width, value) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(value.chars().count());
            }
        }
        if named {
            self.laid_out_header(names)?;
        }
        for row in &waiting {
            self.laid_out(row)?;
            self.printed += 1;
        }
        Ok(())
    }

    fn laid_out_header(&mut self, names: Vec<String>) -> io::Result<()> {
        if self.mode == Mode::Column {
            self.laid_out(&names)?;
            let dashes: Vec<String> = self.widths.iter().map(|width| "-".repeat(*width)).collect();
            return writeln!(self.out, "{}", dashes.join("  "));
        }
        self.rule(Rule::Top)?;
        let centred: Vec<String> =
            names.iter().zip(&self.widths).map(|(name, width)| format!("{name:^width$}")).collect();
        self.laid_out(&centred)?;
        self.rule(Rule::BelowHeader)
    }

    fn laid_out(&mut self, values: &[String]) -> io::Result<()> {
        let padded = values.iter().zip(&self.widths).map(|(value, width)| format!("{value:<width$}"));
        let padded: Vec<String> = padded.collect();
        match self.mode {
            Mode::Column => writeln!(self.out, "{}", padded.join("  ").trim_end()),
            Mode::Box => writeln!(self.out, "│ {} │", padded.join(" │ ")),
            _ => writeln!(self.out, "| {} |", padded.join(" | ")),
        }
    }

    fn rule(&mut self, rule: Rule) -> io::Result<()> {
        let (begin, line, cross, end) = match (self.mode, rule) {
            (Mode::Box, Rule::Top) => ("┌", "─", "┬", "┐"),
            (Mode::Box, Rule::BelowHeader) => ("├", "─", "┼", "┤"),
            (Mode::Box, Rule::Bottom) => ("└", "─", "┴", "┘"),
            (Mode::Markdown, Rule::BelowHeader) => ("|", "-", "|", "|"),
            (Mode::Table, _) => ("+", "-", "+", "+"),
            _ => return Ok(()),
        };
        let parts: Vec<String> = self.widths.iter().map(|width| line.repeat(width + 2)).collect();
        writeln!(self.out, "{begin}{}{end}", parts.join(cross))
    }

    fn shown(&self, cell: &Cell) -> String {
        self.visible(&plain(cell))
    }

    /// On a terminal, without what would move its cursor.
    fn visible(&self, text: &str) -> String {
        if !self.to_terminal || !text.chars().any(|c| c.is_control()) {
            return text.to_string();
        }
        let visible = |c: char| match c {
            '\n' | '\t' => c.to_string(),
            // 0x40 turns a control character into its letter, and back.
            c if c.is_ascii_control() => format!("^{}", char::from(c as u8 ^ 0x40)),
            c if c.is_control() => "?".to_string(),
            c => c.to_string(),
        };
        text.chars().map(visible).collect()
    }
}

/// A value as text.
fn plain(cell: &Cell) -> String {
    match cell {
        Cell::Null => String::new(),
        Cell::Integer(value) => value.to_string(),
        Cell::Real(value) if value.is_infinite() => if *value < 0.0 { "-Inf" } else { "Inf" }.to_string(),
        Cell::Real(value) => format!("{value:?}"),
        Cell::Text(value) => value.clone(),
        Cell::Odd(value) => String::from_utf8_lossy(value).into_owned(),
        Cell::Blob(value) => format!("x'{}'", hex(value)),
    }
}

/// A value of a line of CSV: in quotes, if it has what would end it, or the line. `only`: an empty one would be no line at all.
fn csv_value(value: &str, (column, row): (&str, &str), only: bool) -> String {
    let has = |separator: &str| !separator.is_empty() && value.contains(separator);
    if value.contains(['"', '\n', '\r']) || has(column) || has(row) || only && value.is_empty() {
        return format!("\"{}\"", value.replace('"', "\"\""));
    }
    value.to_string()
}

/// A value as SQL writes it.
fn literal(cell: &Cell) -> String {
    match cell {
        Cell::Null => "NULL".to_string(),
        // What is behind the largest number is read as infinite.
        Cell::Real(value) if value.is_infinite() => if *value < 0.0 { "-9e999" } else { "9e999" }.to_string(),
        Cell::Text(value) if value.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')) => quoted(value),
        Cell::Text(value) => format!("CAST(X'{}' AS TEXT)", hex(value.as_bytes())),
        Cell::Odd(value) => format!("CAST(X'{}' AS TEXT)", hex(value)),
        Cell::Blob(value) => format!("X'{}'", hex(value)),
        Cell::Integer(_) | Cell::Real(_) => plain(cell),
    }
}
