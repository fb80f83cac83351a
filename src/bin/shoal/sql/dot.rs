//! Commands of the shell: lines that begin with a dot, as in SQLite's own.

use std::path::Path;

use clap::ValueEnum;
use shoaldb::client::session::Cell;

use super::import::{self, Format};
use super::shell::{After, Shell, output, quoted};
use super::show::Mode;
use crate::Failed;

/// What `.help` prints.
pub(crate) const HELP: &str = "\
.exit [CODE]            end, with an exit code from 0 to 255
.headers on|off         print the names of columns
.help                   this text
.import [--csv|--ascii] [--skip N] FILE TABLE
                        insert the lines of a file of comma-separated values, or of values with the separator
                        of .separator or .mode tabs or ascii; all of them or none.
                        A table that does not exist is created, with the first line for its columns
.mode MODE [TABLE]      how results look: list, column, csv, json, line, table, box, markdown, quote, tabs, ascii, or
                        insert: INSERT statements for TABLE
.quit                   end
.read FILE              run the statements and commands of a file
.schema [NAME]          the statements that made the tables, indexes, views and triggers
.separator COLUMN [ROW] what stands between values, and behind a row, in list and csv mode and for .import:
                        \\t, \\n, \\r, \\\\ and \\x1f are such characters
.tables [PATTERN]       names of tables and views; the pattern is that of LIKE
.timer on|off           say how long each run took
Statements end with a semicolon. Ctrl-C interrupts what runs, or drops what was typed; ctrl-D ends.";

const COMMANDS: [&str; 11] =
    [".exit", ".headers", ".help", ".import", ".mode", ".quit", ".read", ".schema", ".separator", ".tables", ".timer"];

/// For completion.
pub(crate) fn commands() -> &'static [&'static str] {
    &COMMANDS
}

fn wrong(text: impl Into<String>) -> Failed {
    Failed { code: 1, text: text.into() }
}

/// Words with blanks between them; quotes keep blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(first) = chars.next() {
        match first {
            quote @ ('\'' | '"') => words.push(chars.by_ref().take_while(|c| *c != quote).collect()),
            blank if blank.is_whitespace() => {}
            first => {
                let mut word = first.to_string();
                while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
    words
}

/// A separator as it is typed.
fn unescaped(text: &str) -> Result<String, Failed> {
    let unknown =
        || wrong(format!(".separator: {text:?}: behind a backslash stands t, n, r, a second one, or x and two digits"));
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        plain.push(match chars.next() {
            Some('t') => '\t',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('\\') => '\\',
            Some('x') => {
                let code: String = chars.by_ref().take(2).collect();
                let two = code.len() == 2 && code.chars().all(|digit| digit.is_ascii_hexdigit());
                let code = u8::from_str_radix(&code, 16).ok().filter(|code| two && code.is_ascii() && *code != 0);
                char::from(code.ok_or_else(unknown)?)
            }
            _ => return Err(unknown()),
        });
    }
    Ok(plain)
}

fn switch(name: &str, word: Option<&String>) -> Result<bool, Failed> {
    match word.map(String::as_str) {
        Some("on" | "yes" | "1") => Ok(true),
        Some("off" | "no" | "0") => Ok(false),
        _ => Err(wrong(format!("{name}: write {name} on, or {name} off"))),
    }
}

/// The command that a word means: as in SQLite's shell the beginning of a name is enough, if only one begins so.
fn meant(word: &str) -> Option<&'static str> {
    let known: Vec<&str> = COMMANDS.into_iter().filter(|known| known.starts_with(word)).collect();
    match known[..] {
        [one] if word.len() > 1 => Some(one),
        _ => COMMANDS.into_iter().find(|known| *known == word),
    }
}

/// What becomes of a script if this command in it does not run.
pub(crate) fn without(line: &str) -> Without {
    match words(line).first().map(|word| meant(word)) {
        Some(Some(".quit" | ".exit")) => Without::Ends,
        Some(Some(".import" | ".read")) => Without::Lacks,
        _ => Without::Same,
    }
}

/// See [`without`].
pub(crate) enum Without {
    /// It would have ended here.
    Ends,
    /// Something is not done.
    Lacks,
    /// It is about what is printed.
    Same,
}

/// Runs one command.
pub(crate) fn run(shell: &mut Shell, line: &str) -> Result<After, Failed> {
    let words = words(line);
    let (command, rest) = words.split_first().ok_or_else(|| wrong("an empty command"))?;
    let command = meant(command).ok_or_else(|| wrong(format!("{command}: no such command; .help lists them")))?;
    match command {
        ".quit" | ".exit" => {
            let code = match rest {
                [] => Some(0),
                [code] if command == ".exit" => code.parse().ok(),
                _ => None,
            };
            let code = code.ok_or_else(|| wrong("write .exit, or .exit CODE with a number from 0 to 255, or .quit"))?;
            return Ok(After::Quit(code));
        }
        ".help" => shell.printer.line(HELP).map_err(output)?,
        ".headers" => shell.printer.headers = switch(".headers", rest.first())?,
        ".timer" => shell.timer = switch(".timer", rest.first())?,
        ".mode" => {
            let mode = rest.first().and_then(|word| Mode::from_str(word, true).ok());
            let mode = mode.ok_or_else(|| wrong(format!(".mode: one of {}", Mode::words())))?;
            match (rest.get(1), mode) {
                (Some(table), Mode::Insert) => shell.printer.set_mode(mode, Some(table)),
                (None, _) => shell.printer.set_mode(mode, None),
                (Some(more), _) => return Err(wrong(format!(".mode: only insert has a table, {more:?} is too much"))),
            }
        }
        ".separator" => match rest {
            [column] => shell.printer.set_separators(&unescaped(column)?, None),
            [column, row] => shell.printer.set_separators(&unescaped(column)?, Some(&unescaped(row)?)),
            _ => return Err(wrong(".separator: write .separator COLUMN, or .separator COLUMN ROW")),
        },
        ".read" => {
            let file = rest.first().ok_or_else(|| wrong(".read: which file?"))?;
            return shell.read(Path::new(file));
        }
        ".import" => {
            let (mut skip, mut said, mut plain) = (0, None, Vec::new());
            let mut rest = rest.iter();
            while let Some(word) = rest.next() {
                match word.as_str() {
                    "--csv" => said = Some(Format::CSV),
                    "--ascii" => said = Some(Format::ASCII),
                    "--skip" => {
                        let lines = rest.next().and_then(|lines| lines.parse().ok());
                        skip = lines.ok_or_else(|| wrong(".import --skip: how many lines?"))?;
                    }
                    _ => plain.push(word),
                }
            }
            let [file, table] = plain[..] else { return Err(wrong(".import: write .import FILE TABLE")) };
            let format = match (said, shell.printer.said_separators()) {
                (Some(said), _) => said,
                (None, Some(separators)) => Format::new(separators)?,
                (None, None) => Format::CSV,
            };
            import::run(shell, Path::new(file), table, format, skip)?;
        }
        ".schema" => {
            let named = rest.first().map_or_else(String::new, |name| {
                let name = quoted(name);
                format!("AND (name LIKE {name} OR tbl_name LIKE {name})")
            });
            let sql = format!("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL {named} ORDER BY rowid");
            for text in texts(shell.rows(&sql)?) {
                shell.printer.line(&format!("{text};")).map_err(output)?;
            }
        }
        ".tables" => {
            let like = rest.first().map_or_else(String::new, |pattern| format!("AND name LIKE {}", quoted(pattern)));
            let sql = format!(
                "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
                 {like} ORDER BY name"
            );
            let names = texts(shell.rows(&sql)?);
            for line in side_by_side(&names) {
                shell.printer.line(&line).map_err(output)?;
            }
        }
        other => return Err(wrong(format!("{other}: no such command; .help lists them"))),
    }
    Ok(After::GoOn)
}

fn texts(rows: Vec<Vec<Cell>>) -> Vec<String> {
    let text = |row: Vec<Cell>| match row.into_iter().next() {
        Some(Cell::Text(text)) => Some(text),
        _ => None,
    };
    rows.into_iter().filter_map(text).collect()
}

/// Names in as many columns as fit 80 characters, downwards.
fn side_by_side(names: &[String]) -> Vec<String> {
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let columns = (80 / (width + 2)).max(1);
    let lines = names.len().div_ceil(columns);
    let line = |at: usize| {
        let cells: Vec<String> = names.iter().skip(at).step_by(lines).map(|name| format!("{name:<width$}")).collect();
        cells.join("  ").trim_end().to_string()
    };
    (0..lines).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_typed_with_backslashes() {
        for (typed, meant) in
            [("|", "|"), ("", ""), (r"\t", "\t"), (r", \\\n\r", ", \\\n\r"), (r"\x1f\x1E", "\x1f\x1e"), ("ü", "ü")]
        {
            assert_eq!(unescaped(typed).unwrap(), meant);
        }
        for wrong in [r"\", r"\q", r"\x", r"\x1", r"\xzz", r"\x00", r"\xff", r"\xü"] {
            assert!(unescaped(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn commands_are_split_into_words_and_names_into_columns() {
        assert_eq!(words(".import 'a b.csv'  \"t u\" x"), [".import", "a b.csv", "t u", "x"]);
        let names: Vec<String> = ["a", "b", "c"].map(|name| format!("{name:_<30}")).to_vec();
        assert_eq!(side_by_side(&names).len(), 2);
        assert_eq!(side_by_side(&["a".to_string(), "b".to_string()]), ["a  b"]);
        assert!(side_by_side(&[]).is_empty());
        assert!(COMMANDS.iter().all(|command| HELP.contains(command)));
    }
}
