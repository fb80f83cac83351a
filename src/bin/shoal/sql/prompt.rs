//! The prompt for a person: lines with editing, history and completion.

use std::path::PathBuf;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use shoaldb::client::session::Cell;

use super::dot;
use super::shell::{After, Shell};
use super::split::Splitter;
use crate::{Failed, say};

/// Words that are completed besides names. Not all of SQLite's: those that one types.
const KEYWORDS: &str = "ABORT ALTER ANALYZE AND ASC ATTACH AUTOINCREMENT BEGIN BETWEEN BLOB BY CASCADE CASE CAST CHECK COLLATE \
    COLUMN COMMIT CONFLICT CONSTRAINT CREATE CROSS CURRENT_TIMESTAMP DEFAULT DELETE DESC DETACH DISTINCT DROP ELSE END ESCAPE \
    EXCEPT EXISTS EXPLAIN FOREIGN FROM FULL GLOB GROUP HAVING IGNORE IMMEDIATE IN INDEX INNER INSERT INTEGER INTERSECT INTO IS \
    ISNULL JOIN KEY LEFT LIKE LIMIT NATURAL NOT NOTNULL NULL OFFSET ON OR ORDER OUTER OVER PARTITION PLAN PRAGMA PRIMARY QUERY \
    REAL RECURSIVE REFERENCES REINDEX RELEASE RENAME REPLACE RETURNING ROLLBACK ROW ROWS SAVEPOINT SELECT SET STRICT TABLE TEMP \
    TEXT THEN TO TRANSACTION TRIGGER UNION UNIQUE UPDATE USING VACUUM VALUES VIEW VIRTUAL WHEN WHERE WINDOW WITH WITHOUT";
/// Names that completion knows, at most.
const NAMES: usize = 5000;

struct Words {
    names: Vec<String>,
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        Ok(complete(&self.names, line, at))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

/// Where the word begins, and what it may become.
fn complete(names: &[String], line: &str, at: usize) -> (usize, Vec<Pair>) {
    let wordy = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    let head = &line[..at];
    let begin = head.char_indices().rev().take_while(|(_, c)| wordy(*c)).last().map_or(at, |(begin, _)| begin);
    let pair = |text: String| Pair { display: text.clone(), replacement: text };
    if head.trim_start().starts_with('.') && !head.trim().contains(' ') {
        let begin = head.find('.').unwrap_or(0);
        let begun = &head[begin..];
        let known = dot::commands().iter().filter(|command| command.starts_with(begun));
        return (begin, known.map(|command| pair(command.to_string())).collect());
    }
    let begun = &head[begin..];
    if begun.is_empty() {
        return (begin, Vec::new());
    }
    let begins = |word: &str| word.get(..begun.len()).is_some_and(|part| part.eq_ignore_ascii_case(begun));
    let mut found: Vec<Pair> = names.iter().filter(|name| begins(name)).map(|name| pair(name.clone())).collect();
    // In the case in which it was begun.
    let lower = begun.chars().all(|c| !c.is_uppercase());
    let cased = |word: &str| if lower { word.to_lowercase() } else { word.to_string() };
    found.extend(KEYWORDS.split_whitespace().filter(|word| begins(word)).map(|word| pair(cased(word))));
    (begin, found)
}

fn history_file() -> Option<PathBuf> {
    let named = std::env::var_os("SHOAL_HISTORY").filter(|file| !file.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".shoal_history")))
}

fn names(shell: &mut Shell) -> Vec<String> {
    let sql = format!(
        "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
         UNION SELECT c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c WHERE t.type IN ('table', 'view') \
         LIMIT {NAMES}"
    );
    // Completion is a comfort: without names it still knows the keywords.
    let rows = shell.rows(&sql).unwrap_or_default();
    let text = |row: Vec<Cell>| match row.into_iter().next() {
        Some(Cell::Text(name)) => Some(name),
        _ => None,
    };
    rows.into_iter().filter_map(text).collect()
}

/// Reads lines from a person until they have enough. What fails is told, and the next line is asked for.
pub(crate) fn run(shell: &mut Shell, database: &str) -> Result<After, Failed> {
    let failed = |error: ReadlineError| Failed { code: 1, text: format!("the prompt: {error}") };
    let config = Config::builder()
        .history_ignore_space(true)
        .max_history_size(2000)
        .map_err(failed)?
        .completion_type(CompletionType::List)
        .build();
    let mut editor: Editor<Words, FileHistory> = Editor::with_config(config).map_err(failed)?;
    editor.set_helper(Some(Words { names: names(shell) }));
    let history = history_file();
    if let Some(file) = &history {
        // There is none the first time.
        let _ = editor.load_history(file);
    }
    let mut splitter = Splitter::default();
    let mut typed = String::new();
    loop {
        let mark = if shell.in_transaction() { "*" } else { "" };
        let prompt = match splitter.is_blank() {
            true => format!("{database}{mark}> "),
            false => format!("{:>width$}", "...> ", width = database.len() + mark.len() + 2),
        };
        let line = match editor.readline(&prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                // What was typed is dropped, as in a shell.
                (splitter, typed) = (Splitter::default(), String::new());
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(failed(error)),
        };
        typed = if typed.is_empty() { line.clone() } else { format!("{typed}\n{line}") };
        shell.current.forget();
        let after = shell.line(&mut splitter, &line);
        if splitter.is_blank() {
            // Not kept is no reason to stop.
            let _ = editor.add_history_entry(&typed);
            if let Some(file) = &history {
                let _ = editor.append_history(file);
            }
            let first = typed.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
            if matches!(first.as_str(), "create" | "drop" | "alter" | ".read" | ".import")
                && !shell.in_transaction()
                && let Some(words) = editor.helper_mut()
            {
                words.names = names(shell);
            }
            typed.clear();
        }
        match after {
            Ok(After::GoOn) => {}
            Ok(After::Quit(code)) => return Ok(After::Quit(code)),
            // Nothing that is asked here would be seen.
            Err(error) if error.is_reader_gone() => return Err(error),
            Err(error) => {
                // The statements behind the one that failed, on the same line, do not run.
                (splitter, typed) = (Splitter::default(), String::new());
                say::line(&format!("error: {}", error.text));
            }
        }
    }
    Ok(After::GoOn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keywords_and_commands_are_completed() {
        let names = ["users".to_string(), "Orders".to_string(), "größe".to_string()];
        let complete = |line: &str| {
            let (at, found) = complete(&names, line, line.len());
            (at, found.into_iter().map(|pair| pair.replacement).collect::<Vec<_>>())
        };
        assert_eq!(complete("sel"), (0, vec!["select".to_string()]));
        assert_eq!(complete("SELECT * FROM us"), (14, vec!["users".to_string(), "using".to_string()]));
        assert_eq!(complete("SELECT * FROM Ord").1, ["Orders", "ORDER"]);
        assert_eq!(complete("SELECT grö").1, ["größe"]);
        assert_eq!(complete("SELECT ").1, Vec::<String>::new());
        assert_eq!(complete(".ta"), (0, vec![".tables".to_string()]));
    }
}
