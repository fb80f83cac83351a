//! How results look: the modes of SQLite's own shell.
//!
//! Rows are printed as they come. `column` and `table` need to know how wide they are, and go by the first
//! [`LOOK_AHEAD`] rows; what is wider later stands out. So memory is bounded whatever the result.
//!
//! A blob is printed as `x'00ff'`, in JSON as a string of hexadecimal digits. On a terminal control characters are printed
//! as `^X`: what somebody stored must not move somebody else's cursor.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use shoaldb::client::session::{Cell, Said, hex};

/// Rows that `column` and `table` look at for their widths.
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
}

/// Prints what a session says.
pub(crate) struct Printer {
    out: BufWriter<Stdout>,
    pub(crate) mode: Mode,
    pub(crate) headers: bool,
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
        Printer { out, mode, headers, to_terminal, columns, waiting, widths, printed: 0, open: false }
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
                Mode::Column | Mode::Table => {
                    self.lay_out()?;
                    if self.mode == Mode::Table && self.printed > 0 {
                        self.rule()?;
                    }
                }
                Mode::List | Mode::Csv | Mode::Line => {}
            }
        }
        self.out.flush()
    }

    fn header_at_once(&mut self) -> io::Result<()> {
        match self.mode {
            Mode::List => writeln!(self.out, "{}", self.columns.join("|")),
            Mode::Csv => csv_line(&mut self.out, self.columns.iter().map(String::as_str)),
            Mode::Column | Mode::Json | Mode::Line | Mode::Table => Ok(()),
        }
    }

    fn row(&mut self, row: &[Cell]) -> io::Result<()> {
        match self.mode {
            Mode::Json => self.json(row)?,
            Mode::Csv => {
                let values: Vec<String> = row.iter().map(plain).collect();
                csv_line(&mut self.out, values.iter().map(String::as_str))?;
            }
            Mode::List => {
                let values: Vec<String> = row.iter().map(|cell| self.shown(cell)).collect();
                writeln!(self.out, "{}", values.join("|"))?;
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
            Mode::Column | Mode::Table => {
                let values = row.iter().map(|cell| self.shown(cell).replace('\n', "\\n")).collect();
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
        let named = self.headers || self.mode == Mode::Table;
        self.widths = self.columns.iter().map(|name| if named { name.chars().count() } else { 1 }).collect();
        for row in &waiting {
            for (width, value) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(value.chars().count());
            }
        }
        if named {
            self.laid_out_header()?;
        }
        for row in &waiting {
            self.laid_out(row)?;
            self.printed += 1;
        }
        Ok(())
    }

    fn laid_out_header(&mut self) -> io::Result<()> {
        if self.mode == Mode::Table {
            self.rule()?;
            self.laid_out(&self.columns.clone())?;
            return self.rule();
        }
        self.laid_out(&self.columns.clone())?;
        let dashes: Vec<String> = self.widths.iter().map(|width| "-".repeat(*width)).collect();
        writeln!(self.out, "{}", dashes.join("  "))
    }

    fn laid_out(&mut self, values: &[String]) -> io::Result<()> {
        let padded = values.iter().zip(&self.widths).map(|(value, width)| format!("{value:<width$}"));
        let padded: Vec<String> = padded.collect();
        match self.mode {
            Mode::Table => writeln!(self.out, "| {} |", padded.join(" | ")),
            _ => writeln!(self.out, "{}", padded.join("  ").trim_end()),
        }
    }

    fn rule(&mut self) -> io::Result<()> {
        let parts: Vec<String> = self.widths.iter().map(|width| "-".repeat(width + 2)).collect();
        writeln!(self.out, "+{}+", parts.join("+"))
    }

    fn shown(&self, cell: &Cell) -> String {
        let text = plain(cell);
        if !self.to_terminal || !text.chars().any(|c| c.is_control()) {
            return text;
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

fn csv_line<'a>(out: &mut impl Write, values: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let mut line = csv::Writer::from_writer(out);
    line.write_record(values)?;
    line.flush()
}
