//! Lines in, results out: statements go to the session, lines that begin with a dot are for the shell itself.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use shoaldb::client::session::{Cell, Interrupter, Said, Session, Trouble};
use shoaldb::client::{Client, Seat};
use shoaldb::{ErrorKind, Outcome, ReadLevel};

use super::dot;
use super::show::{Mode, Printer};
use super::split::{Splitter, only_reads};
use crate::table::not_written;
use crate::{Failed, say};

/// What is said if a reader that is gone kept something from being done.
const GONE: &str = "standard output is closed";

/// How a session is opened, and opened again: then another node may be the leader.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) client: Client,
    pub(crate) database: String,
    pub(crate) level: ReadLevel,
}

/// What the signal handler and the shell know of each other.
#[derive(Clone, Default)]
pub(crate) struct Current(Arc<Mutex<Doing>>);

#[derive(Default)]
struct Doing {
    /// Of the session that is open.
    interrupter: Option<Interrupter>,
    /// A line that was taken in is not done with. It may be between two runs: those of a file, or the pieces of an import.
    busy: bool,
    /// Signals that came meanwhile. A script ends with the first, a prompt forgets them at the next line.
    signals: u32,
}

/// What a signal met.
pub(crate) enum Met {
    /// A run.
    Run,
    /// The shell, between two runs.
    Between,
    /// Nothing.
    Idle,
}

impl Current {
    /// Interrupts what is being done; with how many signals it has met by now.
    pub(crate) fn interrupt(&self) -> (Met, u32) {
        let mut doing = self.0.lock();
        doing.signals += 1;
        let met = match doing.interrupter.as_ref().and_then(Interrupter::interrupt) {
            Some(_) => Met::Run,
            None if doing.busy => Met::Between,
            None => Met::Idle,
        };
        (met, doing.signals)
    }

    /// What came before is over and done with.
    pub(crate) fn forget(&self) {
        self.0.lock().signals = 0;
    }

    /// For loops over what is more than one run.
    pub(crate) fn check(&self) -> Result<(), Failed> {
        match self.0.lock().signals {
            0 => Ok(()),
            _ => Err(Failed { code: 1, text: "interrupted".to_string() }),
        }
    }
}

/// See the module's text.
pub(crate) struct Shell {
    target: Target,
    /// Of the session that is open, or was the last one.
    seat: Seat,
    session: Option<Session>,
    pub(crate) current: Current,
    pub(crate) printer: Printer,
    pub(crate) timer: bool,
    /// Files that read each other.
    depth: usize,
}

/// Whether to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum After {
    GoOn,
    /// With this exit code, if nothing else went wrong or it is another one than 0.
    Quit(u8),
}

impl Shell {
    /// Opens the session.
    pub(crate) fn open(target: Target, printer: Printer, current: Current) -> Result<Shell, Failed> {
        let seat = target.client.seat()?;
        let mut shell = Shell { target, seat, session: None, current, printer, timer: false, depth: 0 };
        shell.enter()?;
        Ok(shell)
    }

    /// The node on which the session runs.
    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Opens a session where the seat is.
    fn enter(&mut self) -> Result<&mut Session, Failed> {
        let Target { database, level, .. } = &self.target;
        let opened =
            Session::open(&self.seat.directory, database, *level, true).map_err(|trouble| match trouble.kind() {
                Some(ErrorKind::BadInput) => Failed { code: Failed::USAGE, text: trouble.text },
                _ => self.failed(trouble),
            })?;
        self.current.0.lock().interrupter = Some(opened.interrupter());
        Ok(self.session.insert(opened))
    }

    /// The session; a new one if the last one is over.
    fn session(&mut self) -> Result<&mut Session, Failed> {
        match self.session.take() {
            Some(session) => Ok(self.session.insert(session)),
            None => {
                self.seat = self.target.client.seat()?;
                self.enter()
            }
        }
    }

    /// Ends the session. A transaction that is open is told: nobody would look for what it had written.
    pub(crate) fn end(&mut self) -> Result<(), Failed> {
        let open = self.in_transaction();
        self.session = None;
        match open {
            false => Ok(()),
            true => Err(Failed {
                code: 1,
                text: "the transaction that was open at the end is rolled back, nothing of it is committed; end it with COMMIT"
                    .to_string(),
            }),
        }
    }

    pub(crate) fn in_transaction(&self) -> bool {
        self.session.as_ref().is_some_and(Session::in_transaction)
    }

    /// Runs statements and gives what they say to `on`.
    pub(crate) fn run(
        &mut self,
        sql: &str,
        rows: Vec<Vec<Cell>>,
        on: &mut dyn FnMut(Said) -> io::Result<()>,
    ) -> Result<(), Failed> {
        let result = self.session()?.run(sql, rows, on);
        result.map_err(|trouble| self.after(trouble))
    }

    /// Runs a statement, once for each of these rows if there are any. What SQLite has against it is told with the place that is given
    /// for it, or for one of the rows.
    pub(crate) fn run_for(
        &mut self,
        sql: &str,
        rows: Vec<Vec<Cell>>,
        place: &dyn Fn(Option<u32>) -> String,
    ) -> Result<(), Failed> {
        let result = self.session()?.run(sql, rows, &mut |_| Ok(()));
        result.map_err(|mut trouble| {
            if matches!(trouble.kind.as_str(), "other" | "bad_input") {
                trouble.text.insert_str(0, &place(trouble.row));
            }
            self.after(trouble)
        })
    }

    /// Runs statements and prints what they say.
    pub(crate) fn run_and_print(&mut self, sql: &str) -> Result<(), Failed> {
        let begun = Instant::now();
        self.session()?;
        let Shell { session, printer, .. } = self;
        let mut lost = None;
        let mut on = |said| {
            printer.take(said).map_err(|error| {
                let kind = error.kind();
                lost = Some(error);
                kind.into()
            })
        };
        let result = session.as_mut().map_or(Ok(()), |session| session.run(sql, Vec::new(), &mut on));
        let rows_shown = printer.is_amid_rows();
        let lost = printer.end().err().or(lost);
        if self.timer {
            say::line(&format!("Run Time: real {:.3}", begun.elapsed().as_secs_f64()));
        }
        let done = match result {
            Err(trouble) if lost.is_some() && trouble.kind == "output" => Ok(()),
            // By us, since nobody sees what it says.
            Err(trouble) if lost.is_some() && trouble.kind == "interrupted" && self.current.check().is_ok() => {
                return Err(lost.map_or_else(Failed::reader_gone, |error| self.unseen(&error, sql, false)));
            }
            result => result,
        };
        done.map_err(|mut trouble| {
            // RETURNING: SQLite gives these before it commits.
            trouble.text += match trouble.kind() {
                Some(ErrorKind::NotCommitted) if rows_shown => "; the rows that were printed are not committed",
                Some(ErrorKind::Unknown) if rows_shown => "; the rows that were printed may not be committed",
                _ => "",
            };
            self.after(trouble)
        })?;
        lost.map_or(Ok(()), |error| Err(self.unseen(&error, sql, true)))
    }

    /// What a statement has printed did not arrive.
    fn unseen(&self, error: &io::Error, sql: &str, done: bool) -> Failed {
        let became = match (only_reads(sql), done) {
            (true, _) => "",
            // What becomes of a transaction that is open is told at its end.
            (false, true) if self.in_transaction() => "",
            (false, true) => "; the statement is done all the same",
            (false, false) => "; the statement was interrupted, and nothing of it is committed",
        };
        match error.kind() {
            io::ErrorKind::BrokenPipe if done || became.is_empty() => Failed::reader_gone(),
            io::ErrorKind::BrokenPipe => Failed { code: 1, text: format!("{GONE}{became}") },
            _ => Failed { code: 1, text: format!("{}{became}", not_written(error)) },
        }
    }

    fn after(&mut self, trouble: Trouble) -> Failed {
        // These two come when there is nobody any more at the other end.
        let gone = trouble.kind == "stopped" || trouble.kind == "unknown" && trouble.code.is_none();
        // A place for want of a better one: the next statement looks for the leader again.
        let leaderless = trouble.kind() == Some(ErrorKind::NotLeader) && self.seat.leaderless.is_some();
        let failed = self.failed(trouble);
        if gone || leaderless && !self.in_transaction() {
            self.session = None;
        }
        failed
    }

    /// The rows of one statement, as values.
    pub(crate) fn rows(&mut self, sql: &str) -> Result<Vec<Vec<Cell>>, Failed> {
        let mut all = Vec::new();
        self.run(sql, Vec::new(), &mut |said| {
            if let Said::Rows(rows) = said {
                all.extend(rows);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Takes one line in, and does what it says.
    pub(crate) fn line(&mut self, splitter: &mut Splitter, line: &str) -> Result<After, Failed> {
        // A line of a file belongs to the one that reads it.
        let was = std::mem::replace(&mut self.current.0.lock().busy, true);
        let after = self.take(splitter, line);
        self.current.0.lock().busy = was;
        after
    }

    fn take(&mut self, splitter: &mut Splitter, line: &str) -> Result<After, Failed> {
        if splitter.is_blank() && line.trim_start().starts_with('.') {
            return dot::run(self, line.trim());
        }
        splitter.push(line);
        splitter.push("\n");
        while let Some(statement) = splitter.next() {
            self.current.check()?;
            self.run_and_print(&statement)?;
        }
        Ok(After::GoOn)
    }

    /// Runs a script to its end, or to the first thing in it that fails; `name` is that of its file, if it has one.
    pub(crate) fn script(&mut self, name: &str, from: impl io::Read) -> Result<After, Failed> {
        let mut splitter = Splitter::default();
        let mut number = 0;
        let located = |number: usize, failed: Failed| match name {
            "" => failed,
            name => Failed { text: format!("{name}:{number}: {}", failed.text), ..failed },
        };
        let mut from = BufReader::new(from);
        let mut line = String::new();
        loop {
            line.clear();
            number += 1;
            let read = from.read_line(&mut line);
            let read = read.map_err(|error| located(number, Failed { code: 1, text: error.to_string() }))?;
            if read == 0 {
                break;
            }
            let text = line.trim_end_matches('\n').trim_end_matches('\r');
            self.current.check().map_err(|failed| located(number, failed))?;
            match self.line(&mut splitter, text) {
                Ok(After::GoOn) => {}
                Ok(After::Quit(code)) => return Ok(After::Quit(code)),
                Err(failed) if failed.is_reader_gone() => {
                    self.leave_out(&mut splitter, &mut from, &mut number).map_err(|failed| located(number, failed))?;
                    return Err(failed);
                }
                Err(failed) => return Err(located(number, failed)),
            }
        }
        if let Some(rest) = splitter.rest() {
            self.run_and_print(&rest).map_err(|failed| located(number, failed))?;
        }
        Ok(After::GoOn)
    }

    /// Nobody sees what the rest of a script says, and it is not run: a failure if anything in it would have done more than say
    /// something.
    fn leave_out(&self, splitter: &mut Splitter, from: &mut impl BufRead, number: &mut usize) -> Result<(), Failed> {
        let lacks = |what: &str| {
            let what: String = what.trim().chars().take(40).collect();
            let open = if self.in_transaction() { "; the transaction that was open is rolled back" } else { "" };
            Err(Failed { code: 1, text: format!("{GONE}; nothing is done from here on: {what}{open}") })
        };
        let mut line = String::new();
        loop {
            while let Some(statement) = splitter.next() {
                if !only_reads(&statement) {
                    return lacks(&statement);
                }
            }
            line.clear();
            *number += 1;
            let read = from.read_line(&mut line).map_err(|error| Failed { code: 1, text: error.to_string() })?;
            match dot::without(&line) {
                _ if read == 0 => break,
                dot::Without::Ends if splitter.is_blank() => return Ok(()),
                dot::Without::Lacks if splitter.is_blank() => return lacks(&line),
                dot::Without::Same if splitter.is_blank() && line.trim_start().starts_with('.') => {}
                _ => splitter.push(&line),
            }
        }
        match splitter.rest() {
            Some(rest) if !only_reads(&rest) => lacks(&rest),
            _ => Ok(()),
        }
    }

    /// Runs a file.
    pub(crate) fn read(&mut self, path: &Path) -> Result<After, Failed> {
        let name = path.display().to_string();
        if self.depth >= 16 {
            return Err(Failed { code: 1, text: format!("{name}: files that read each other, sixteen deep") });
        }
        let file = File::open(path).map_err(|error| Failed { code: 1, text: format!("{name}: {error}") })?;
        self.depth += 1;
        let after = self.script(&name, file);
        self.depth -= 1;
        after
    }

    /// In words for a person, with what to do.
    fn failed(&self, trouble: Trouble) -> Failed {
        let code = match trouble.kind() {
            Some(ErrorKind::Unknown) => Failed::UNKNOWN,
            Some(ErrorKind::NotLeader) if trouble.leader.is_none() => Failed::NO_LEADER,
            // A linearizable read that no majority confirmed.
            Some(ErrorKind::Timeout) => Failed::NO_LEADER,
            _ if trouble.outcome == Some(Outcome::Unknown) => Failed::UNKNOWN,
            _ => 1,
        };
        let dir = self.seat.directory.display();
        let text = match (trouble.leader, &trouble.address) {
            (leader, _) if trouble.kind() == Some(ErrorKind::NotLeader) && self.seat.leaderless.is_some() => {
                let why = self.seat.leaderless.as_deref().unwrap_or_default();
                let text = match leader {
                    Some(leader) => format!("node {leader}, which led, is not reached; nothing was written; {why}"),
                    None => format!("{}; {why}", trouble.text),
                };
                return Failed { code: Failed::NO_LEADER, text };
            }
            (Some(leader), address) => {
                let at = address.as_ref().filter(|address| !address.is_empty());
                let at = at.map_or_else(String::new, |address| format!(" (at {address})"));
                let database = &self.target.database;
                format!(
                    "{}; nothing was written. Node {leader}{at} takes writes: shoal sql {database} --data DIR, with the directory \
                     of node {leader}, on its machine; or make this node the leader: shoal transfer {} --data {dir}",
                    trouble.text, self.seat.node,
                )
            }
            (None, _) if code == Failed::NO_LEADER && trouble.kind() == Some(ErrorKind::NotLeader) => {
                format!("{}; `shoal health --data {dir}` says what is in the way", trouble.text)
            }
            _ => trouble.text,
        };
        let text = match trouble.receipt {
            Some(receipt) => {
                format!("{text}; its receipt is {receipt}, ask any node later: shoal outcome {receipt} --data {dir}")
            }
            None => text,
        };
        Failed { code, text }
    }
}

/// Writing to standard output failed.
pub(crate) fn output(error: io::Error) -> Failed {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failed::reader_gone(),
        _ => Failed { code: 1, text: not_written(&error) },
    }
}

/// As a string of SQL.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// As a name of SQL, in quotes only where it needs them.
pub(crate) fn identifier(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let reserved = RESERVED.split_whitespace().any(|word| word.eq_ignore_ascii_case(text));
    if begins && text.chars().all(plain) && !reserved { text.to_string() } else { name(text) }
}

/// Words that SQLite does not take for a name.
const RESERVED: &str = "ADD ALL ALTER AND AS AUTOINCREMENT BETWEEN CASE CHECK COLLATE COMMIT CONSTRAINT CREATE CROSS CURRENT_DATE \
    CURRENT_TIME CURRENT_TIMESTAMP DEFAULT DEFERRABLE DELETE DISTINCT DROP ELSE ESCAPE EXCEPT EXISTS FOREIGN FROM FULL GROUP HAVING \
    IN INDEX INNER INSERT INTERSECT INTO IS ISNULL JOIN LEFT LIMIT NATURAL NOT NOTHING NOTNULL NULL ON OR ORDER OUTER PRIMARY \
    REFERENCES RETURNING RIGHT SELECT SET TABLE THEN TO TRANSACTION UNION UNIQUE UPDATE USING VALUES WHEN WHERE";

/// As a name of SQL.
pub(crate) fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

impl Mode {
    pub(crate) fn words() -> String {
        use clap::ValueEnum;
        let names: Vec<String> = Mode::value_variants()
            .iter()
            .filter_map(|mode| Some(mode.to_possible_value()?.get_name().to_string()))
            .collect();
        names.join(", ")
    }
}
