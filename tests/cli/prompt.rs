//! The prompt as a person has it: on a terminal, with its lines, its history and ctrl-c. The terminal is that of `script`, which
//! comes with util-linux; a machine without it says so and skips this.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use crate::user::{LONG, one_node, text, works};

/// What is typed, and what is seen.
pub(crate) struct Terminal {
    process: Child,
    keys: ChildStdin,
    screen: mpsc::Receiver<Vec<u8>>,
    /// Seen, and not looked at yet.
    seen: String,
}

impl Terminal {
    /// `shoal sql app` on a terminal of its own; none if there is no `script`.
    pub(crate) fn open(data: &str, history: &Path) -> Option<Terminal> {
        Terminal::run(&format!("sql app --data {data}"), history)
    }

    /// `shoal` with these arguments on a terminal.
    pub(crate) fn run(args: &str, history: &Path) -> Option<Terminal> {
        let line = format!("stty cols 120 rows 40; exec {} {args}", env!("CARGO_BIN_EXE_shoal"));
        let mut process = Command::new("script")
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHOAL_HISTORY", history)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let (keys, mut out) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (to, screen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(got @ 1..) = out.read(&mut bytes) {
                if to.send(bytes[..got].to_vec()).is_err() {
                    return;
                }
            }
        });
        Some(Terminal { process, keys, screen, seen: String::new() })
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this is seen, behind what was seen before.
    pub(crate) fn shows(&mut self, what: &str) {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(at) = self.seen.find(what) {
                self.seen.drain(..at + what.len());
                return;
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => {
                    let end = self.seen.len().saturating_sub(2000);
                    panic!("{what:?} is not seen; the end of what is: {:?}", self.seen.get(end..));
                }
            }
        }
    }

    /// Waits for the next prompt, and for the terminal to be the editor's: what is typed before may be a line of its own.
    pub(crate) fn asks(&mut self) {
        self.shows("app> ");
        self.shows("\u{1b}[?2026l");
    }

    /// The same within a transaction.
    pub(crate) fn asks_within(&mut self) {
        self.shows("app*> ");
        self.shows("\u{1b}[?2026l");
    }

    pub(crate) fn ended(mut self) -> Option<i32> {
        let code = self.process.wait().unwrap().code();
        self.seen.clear();
        code
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says that a test has no terminal.
pub(crate) fn skipped() {
    // Not `eprintln!`: what that says of a test that passes is not shown.
    let _ = writeln!(std::io::stderr(), "skipped: the prompt on a terminal: there is no `script`");
}

#[test]
fn a_person_has_lines_history_completion_and_ctrl_c_that_ends_a_statement_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let history = dir.path().join("history");
    let Some(mut terminal) = Terminal::open(&data, &history) else {
        return skipped();
    };
    terminal.asks();
    terminal.types("CREATE TABLE wanderers(x);\r");
    terminal.asks();
    // A name is completed, and a keyword in the case in which it was begun.
    terminal.types("INSERT INTO wand\t valu\t (41), (1);\r");
    terminal.shows("INSERT INTO wanderers values");
    terminal.asks();
    // A statement goes on over lines until its end.
    terminal.types("SELECT sum(x)\r");
    terminal.shows("...> ");
    terminal.types("FROM wanderers;\r");
    terminal.shows("42\r\n");
    terminal.asks();
    terminal.types("SELECT 7 * 191;\r");
    terminal.shows("1337\r\n");
    terminal.asks();
    terminal.types("\u{1b}[A\r");
    terminal.shows("1337\r\n");
    terminal.asks();

    // While it prints, ctrl-c is for the statement.
    terminal.types(".mode list\r");
    terminal.asks();
    terminal.types("BEGIN;\r");
    terminal.asks_within();
    terminal.types("INSERT INTO wanderers VALUES (500);\r");
    terminal.asks_within();
    terminal.types("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT 'row ' || n FROM c;\r");
    terminal.shows("row 1000\r\n");
    terminal.types("\u{3}");
    terminal.shows("error: interrupted");
    terminal.asks_within();
    // The session is the same one: its transaction is open.
    terminal.types("COMMIT;\r");
    terminal.asks();
    // At the prompt it drops what was typed, and no more.
    terminal.types("SELECT 'never'\u{3}");
    terminal.asks();
    terminal.types("SELECT sum(x) FROM wanderers;\r");
    terminal.shows("542\r\n");
    terminal.asks();
    terminal.types("\u{4}");
    assert_eq!(terminal.ended(), Some(0));
    let kept = std::fs::read_to_string(&history).unwrap();
    assert!(kept.contains("SELECT 7 * 191;") && !kept.contains("never"), "{kept}");

    // The next prompt knows what was typed at the last one.
    let mut terminal = Terminal::open(&data, &history).unwrap();
    terminal.asks();
    terminal.types("\u{1b}[A\r");
    terminal.shows("542\r\n");
    terminal.asks();
    terminal.types(".quit\r");
    assert_eq!(terminal.ended(), Some(0));

    // Leaving with a transaction open is told.
    for leave in [".quit\r", "\u{4}"] {
        let mut terminal = Terminal::open(&data, &history).unwrap();
        terminal.asks();
        terminal.types("BEGIN; DELETE FROM wanderers;\r");
        terminal.asks_within();
        terminal.types(leave);
        terminal.shows("note: the transaction that was open at the end is rolled back");
        assert_eq!(terminal.ended(), Some(0));
    }
}

/// Between two runs, of the statements of a file or the pieces of an import, ctrl-c once ended the whole prompt. Here the file is
/// a pipe, so that it comes while the shell waits for the next line.
#[test]
fn ctrl_c_between_two_runs_ends_what_they_belong_to_and_not_the_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let Some(mut terminal) = Terminal::open(&data, &dir.path().join("history")) else { return skipped() };
    terminal.asks();
    // More often than it takes signals for one and the same thing to end the program.
    for round in 0..4 {
        let pipe = dir.path().join(format!("pipe-{round}"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let import = round % 2 == 1;
        let path = text(&pipe);
        terminal.types(&if import { format!(".import {path} t\r") } else { format!(".read {path}\r") });
        // Opens when the shell reads it.
        let mut to = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        match import {
            true => writeln!(to, "1").unwrap(),
            false => {
                writeln!(to, "SELECT 'first of ' || {round};").unwrap();
                terminal.shows(&format!("first of {round}\r\n"));
            }
        }
        terminal.types("\u{3}");
        terminal.shows("^C");
        // Until nobody reads any more.
        while writeln!(to, "{}", if import { "2" } else { "SELECT 1;" }).is_ok() {}
        terminal.shows(if import { "error: interrupted; nothing was imported" } else { ": interrupted" });
        terminal.asks();
    }
    terminal.types("SELECT 'rows: ' || count(*) FROM t;\r");
    terminal.shows("rows: 0\r\n");
    terminal.asks();
    terminal.types(".quit\r");
    assert_eq!(terminal.ended(), Some(0));
}
