//! SQL sessions: a connection on the node for somebody outside of it, as long as they stay connected.
//!
//! Two threads serve a session. The *reader* takes in what the caller says, so that an interruption and a disconnect are
//! noticed while a statement runs; the *runner* runs statements, one after another, and writes what comes out. Rows leave
//! in frames of some ten kilobytes; a caller that does not read them stops the runner in its write, and with it SQLite's
//! next step: nothing is queued. What the caller said is bounded by [`MAX_ASK`], what it becomes in memory by
//! [`words::MAX_ROWS_WEIGHT`], and both by one run at a time.
//!
//! An interruption names a run, so that one that comes late ends nothing else. It ends SQLite's steps (a progress
//! handler looks at the number) and what waits inside of one, such as for the write lock; a transaction that was handed
//! over waits for its outcome.
//!
//! A session ends with its connection to the caller, by itself when nothing is asked of it for `session_idle` (a tenth of
//! that inside of a transaction, since it may keep others from writing), and with its node. It also ends when its caller takes
//! nothing of an answer for so long; while it keeps others from writing, all waits for that together have the tenth, so that one who
//! reads a little now and then gets no more. What it had not committed is rolled back, and then, if the caller reads on, they are told.
//!
//! Deliberately absent: who may connect (`socket.rs`), and statements that are put together: the caller sends whole ones.

pub(crate) mod words;

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::{Condvar, Mutex};
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::{Null, ToSqlOutput, ValueRef};
use rusqlite::{InterruptHandle, Statement, ToSql, TransactionState};

use crate::admin::{self, frame};
use crate::catalogue::DatabaseName;
use crate::config::MAX_SESSIONS;
use crate::connection::{ConnectOptions, Connection};
use crate::error::{self, Error, ErrorKind, Outcome};
use crate::shared::Hub;
use crate::status;
use words::{Ask, Cell, Tell, Trouble};

/// Largest thing a caller may say: one statement, or some rows for it.
pub(crate) const MAX_ASK: usize = 16 << 20;
/// Largest row, as JSON: a frame that both sides can hold.
const MAX_ROW: usize = 32 << 20;
/// Largest frame that a caller must take: a row, after less than [`BATCH`] of others.
pub(crate) const MAX_TELL: usize = 64 << 20;
/// Rows leave when this many bytes of them wait: enough to make a frame worth its price.
const BATCH: usize = 32 << 10;
/// Rows leave when the first of them waits for this long: a slow query is seen to move.
const BATCH_AGE: Duration = Duration::from_millis(50);
/// Steps of SQLite between two looks at whether the run was interrupted: some ten microseconds.
const STEPS: i32 = 1000;
/// The kind of trouble of a run that was interrupted.
const INTERRUPTED: &str = "interrupted";
/// What a caller hears whose session ends with its node.
const ENDED: &str = "this node is shutting down: the statement was interrupted or refused, and what was not committed is rolled back; use another node, or try again";
/// Whoever did not read is told why the session ended if they read on within this time, or `session_idle` if that is longer.
const AFTERWARDS: Duration = Duration::from_secs(60);
/// How long the node's end waits for sessions to end. They do at once, but for a step of SQLite that takes long. In the tests
/// there is none, and their threads may be stopped for longer.
const LAST_WORDS: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 2 });

/// A caller's connection to this node, as a socket has it.
pub(crate) trait Line: Read + Write + Send {
    /// Another handle of the same connection.
    fn again(&self) -> io::Result<Box<dyn Line>>;
    /// A write that moves nothing for so long fails; reads wait.
    fn set_patience(&self, limit: Duration) -> io::Result<()>;
    /// Nothing more comes in: whoever reads finds the end.
    fn stop_listening(&self);
    /// Ends the connection in both directions, whoever uses it.
    fn hang_up(&self);
}

/// All sessions of a node.
#[derive(Default)]
pub(crate) struct Sessions {
    open: Mutex<Open>,
    fewer: Condvar,
}

#[derive(Default)]
struct Open {
    ended: bool,
    next: u64,
    lines: HashMap<u64, Box<dyn Line>>,
}

/// A session's place among them.
struct Place<'a> {
    sessions: &'a Sessions,
    number: u64,
    /// How many there are, for the status.
    count: &'a AtomicU64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.sessions.open.lock().lines.remove(&self.number);
        self.sessions.fewer.notify_all();
    }
}

impl Sessions {
    fn enter<'a>(&'a self, line: &dyn Line, count: &'a AtomicU64) -> io::Result<Result<Place<'a>, Trouble>> {
        let mut open = self.open.lock();
        if open.ended {
            return Ok(Err(Trouble::new("stopped", "this node is shutting down")));
        }
        if open.lines.len() >= MAX_SESSIONS {
            let text = format!("this node has {MAX_SESSIONS} sessions already; end one, or use another node");
            return Ok(Err(Trouble::new("busy", text)));
        }
        open.next += 1;
        let number = open.next;
        open.lines.insert(number, line.again()?);
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Ok(Place { sessions: self, number, count }))
    }

    /// Ends all sessions, and lets none begin. What runs is interrupted, and its caller is told what became of it.
    pub(crate) fn end(&self) {
        let mut open = self.open.lock();
        open.ended = true;
        open.lines.values().for_each(|line| line.stop_listening());
        let deadline = Instant::now() + LAST_WORDS;
        while !open.lines.is_empty() && !self.fewer.wait_until(&mut open, deadline).timed_out() {}
        open.lines.values().for_each(|line| line.hang_up());
        while !open.lines.is_empty() && !self.fewer.wait_until(&mut open, deadline + LAST_WORDS).timed_out() {}
    }

    fn have_ended(&self) -> bool {
        self.open.lock().ended
    }
}

/// Which run is on, and which shall end. Numbers of runs grow.
#[derive(Default)]
struct Stop {
    running: AtomicU64,
    interrupted: AtomicU64,
}

impl Stop {
    /// For good: the caller is gone.
    const ALL: u64 = u64::MAX;

    fn is_asked_for(&self) -> bool {
        self.interrupted.load(Ordering::Acquire) >= self.running.load(Ordering::Acquire)
    }

    fn ask(&self, number: u64, handle: &InterruptHandle) {
        self.interrupted.fetch_max(number, Ordering::AcqRel);
        // It counts for what runs now and for nothing later: SQLite forgets it when no statement is running.
        if self.is_asked_for() {
            handle.interrupt();
        }
    }
}

/// Tells a caller that there will be no session.
pub(crate) fn refuse(line: &mut dyn Line, kind: &str, why: &str) -> io::Result<()> {
    tell(line, &Tell::Failed(Trouble::new(kind, why)))
}

/// Serves a session until it ends.
pub(crate) fn serve(
    hub: &Hub,
    vfs: &str,
    sessions: &Sessions,
    (name, options): (&str, &ConnectOptions),
    mut stream: Box<dyn Line>,
) -> io::Result<()> {
    let idle = hub.config.session_idle;
    stream.set_patience(idle)?;
    let place = match sessions.enter(&*stream, &hub.sessions)? {
        Ok(place) => place,
        Err(trouble) => return tell(&mut *stream, &Tell::Failed(trouble)),
    };
    let opened = match (hub.is_closing(), DatabaseName::new(name)) {
        (true, _) => Err(Error::new(ErrorKind::Stopped, "this node is shutting down")),
        (false, Err(rule)) => Err(Error::new(ErrorKind::BadInput, rule.to_string())),
        (false, Ok(_)) => Connection::open(hub, vfs, name, options),
    };
    let connection = match opened {
        Ok(connection) => connection,
        Err(error) => return tell(&mut *stream, &Tell::Failed(trouble(hub, &error))),
    };
    let stop = Arc::new(Stop::default());
    let handler = {
        let stop = stop.clone();
        move || stop.is_asked_for()
    };
    connection.progress_handler(STEPS, Some(handler)).map_err(io::Error::other)?;
    tell(&mut *stream, &Tell::Opened { node: hub.id })?;
    let (handle, own_handle) = (connection.get_interrupt_handle(), connection.get_interrupt_handle());
    let from = stream.again()?;
    let stop = &*stop;
    let (to, asked) = crossbeam_channel::bounded(1);
    let mut voice = Voice::new(stream, idle);
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().name("shoal-session".to_string());
        reader.spawn_scoped(scope, move || {
            listen(hub, BufReader::new(from), &to, stop, &handle);
            // What runs has nobody to answer any more.
            stop.ask(Stop::ALL, &handle);
        })?;
        let mut runner = Runner { hub, connection, voice: &mut voice, stop, handle: own_handle, sessions };
        let ended = runner.serve(&asked);
        let open = !runner.connection.is_autocommit();
        // What it had not committed is rolled back before anybody is waited for.
        drop(runner);
        let ended = match ended {
            Err(error) if is_over_time(&error) => {
                let why = voice.why_it_ended(open);
                tracing::warn!("a SQL session on database {name} was ended: {}", why.text);
                voice.afterwards(why)
            }
            ended => ended,
        };
        // Lets the reader go.
        voice.line.hang_up();
        ended
    })?;
    drop(place);
    Ok(())
}

/// Hands over what the caller says until they are gone, or do not keep to the words.
fn listen(hub: &Hub, mut from: BufReader<Box<dyn Line>>, to: &Sender<Ask>, stop: &Stop, handle: &InterruptHandle) {
    loop {
        let json = match frame::read(&mut from, MAX_ASK) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return note_malformed(hub, &error),
            // They are gone.
            Err(_) => return,
        };
        match serde_json::from_slice(&json) {
            Ok(Ask::Interrupt { number }) => stop.ask(number, handle),
            Ok(run) => {
                if to.try_send(run).is_err() {
                    tracing::debug!("a session's caller did not wait for its answer");
                    return;
                }
            }
            Err(error) => return note_malformed(hub, &error),
        }
    }
}

fn note_malformed(hub: &Hub, error: &dyn std::fmt::Display) {
    hub.note_malformed(admin::OF_THIS_USER, "the admin socket", &format!("in a session: {error}"));
}

fn tell(stream: &mut dyn Line, what: &Tell) -> io::Result<()> {
    frame::write(stream, &admin::encode(what))
}

fn is_over_time(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What is said to the caller, and how long that may take.
struct Voice {
    line: Box<dyn Line>,
    idle: Duration,
    /// While others are kept from writing: how long the caller may still be waited for.
    left: Option<Duration>,
    /// What the caller did not take of a frame of which they have the beginning.
    rest: Vec<u8>,
}

impl Voice {
    fn new(line: Box<dyn Line>, idle: Duration) -> Voice {
        Voice { line, idle, left: None, rest: Vec::new() }
    }

    /// Says something in the middle of whatever the connection does.
    fn say(&mut self, connection: &Connection, json: &[u8]) -> io::Result<()> {
        let writes = connection.transaction_state(None::<&str>).is_ok_and(|state| state == TransactionState::Write);
        let left = self.left.unwrap_or(self.idle / 10);
        self.left = writes.then_some(left);
        self.push(json)
    }

    fn push(&mut self, json: &[u8]) -> io::Result<()> {
        let mut whole = Vec::with_capacity(json.len() + 8);
        frame::write(&mut whole, json)?;
        let mut said = 0;
        while said < whole.len() {
            match self.write(&whole[said..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => said += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.rest = whole.split_off(said);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left else {
            self.line.set_patience(self.idle)?;
            return self.line.write(bytes);
        };
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.line.set_patience(left)?;
        let begun = Instant::now();
        let written = self.line.write(bytes);
        self.left = Some(left.saturating_sub(begun.elapsed()));
        written
    }

    /// The caller was waited for in vain.
    fn why_it_ended(&self, open: bool) -> Trouble {
        match self.left {
            Some(_) => {
                let text = format!(
                    "the session ended: others waited to write for {:?} in all until its answer would be read; its transaction is \
                     rolled back",
                    self.idle / 10
                );
                Trouble::new("stopped", text).with_outcome(Outcome::NotCommitted)
            }
            None => {
                let open = if open { "; its transaction is rolled back" } else { "" };
                let text = format!("the session ended: nothing of its answer was read for {:?}{open}", self.idle);
                Trouble::new("stopped", text)
            }
        }
    }

    /// Says it to a caller who may read on after all.
    fn afterwards(&mut self, why: Trouble) -> io::Result<()> {
        self.line.set_patience(self.idle.max(AFTERWARDS))?;
        self.line.write_all(&std::mem::take(&mut self.rest))?;
        tell(&mut *self.line, &Tell::Ended(why))
    }
}

/// Why a run did not come to its end.
enum Fault {
    /// Say so, and go on with the next.
    Failed(Trouble),
    /// The caller is gone.
    Gone(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Gone(error)
    }
}

struct Runner<'a> {
    hub: &'a Hub,
    connection: Connection,
    voice: &'a mut Voice,
    stop: &'a Stop,
    handle: InterruptHandle,
    sessions: &'a Sessions,
}

impl Runner<'_> {
    fn tell(&mut self, what: &Tell) -> io::Result<()> {
        self.voice.say(&self.connection, &admin::encode(what))
    }

    fn serve(&mut self, asked: &Receiver<Ask>) -> io::Result<()> {
        loop {
            let in_transaction = !self.connection.is_autocommit();
            let idle = self.hub.config.session_idle;
            let patience = if in_transaction { idle / 10 } else { idle };
            match asked.recv_timeout(patience) {
                Ok(Ask::Run { number, sql, rows }) => self.run(number, &sql, &rows)?,
                Ok(Ask::Interrupt { .. }) => {}
                Err(RecvTimeoutError::Disconnected) if self.sessions.have_ended() => {
                    let ended = Trouble::new("stopped", ENDED).with_outcome(Outcome::NotCommitted);
                    return self.tell(&Tell::Ended(ended));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    let open = if in_transaction { "; its transaction is rolled back" } else { "" };
                    let text = format!("the session ended: nothing was asked of it for {patience:?}{open}");
                    return self.tell(&Tell::Ended(Trouble::new("stopped", text).with_outcome(Outcome::NotCommitted)));
                }
            }
        }
    }

    fn run(&mut self, number: u64, sql: &str, rows: &[Vec<Cell>]) -> io::Result<()> {
        self.stop.running.store(number, Ordering::Release);
        let ran = match sql.bytes().position(|byte| byte == 0) {
            Some(at) => {
                let text = format!(
                    "byte {at} of the statement is a zero, behind which SQLite reads nothing; write char(0); nothing was done"
                );
                Err(Fault::Failed(Trouble::new("bad_input", text).with_outcome(Outcome::NotCommitted)))
            }
            None if rows.is_empty() => self.run_each(sql),
            None => self.run_rows(sql, rows),
        };
        match ran {
            Ok(()) => {}
            Err(Fault::Failed(trouble)) if trouble.kind == INTERRUPTED && self.sessions.have_ended() => {
                let ended = Trouble { kind: "stopped".to_string(), text: ENDED.to_string(), ..trouble };
                self.tell(&Tell::Failed(ended.with_outcome(Outcome::NotCommitted)))?;
            }
            Err(Fault::Failed(mut trouble)) => {
                if trouble.outcome == Some(Outcome::Unknown) {
                    // With the session its receipt would be gone. With other databases attached it need not be this one's.
                    let alone = "SELECT count(*) = 0 FROM pragma_database_list WHERE name NOT IN ('main', 'temp')";
                    let alone = self.connection.query_row(alone, [], |row| row.get(0)).unwrap_or(false);
                    trouble.receipt = self.connection.last_receipt().filter(|_| alone).map(Box::new);
                }
                self.tell(&Tell::Failed(trouble))?;
            }
            Err(Fault::Gone(error)) => return Err(error),
        }
        let in_transaction = !self.connection.is_autocommit();
        self.tell(&Tell::Ready { number, in_transaction })
    }

    fn run_each(&mut self, sql: &str) -> Result<(), Fault> {
        let Runner { hub, connection, voice, stop, handle, .. } = self;
        let mut batch = rusqlite::Batch::new(connection, sql);
        let failed = |error: rusqlite::Error| Fault::Failed(trouble_of_sqlite(hub, error));
        while let Some(mut statement) = batch.next().map_err(failed)? {
            if stop.is_asked_for() {
                return Err(Fault::Failed(interrupted()));
            }
            let before = connection.total_changes();
            if statement.column_count() > 0 {
                voice.say(connection, &columns(&statement)?)?;
            }
            let give_up = || stop.ask(Stop::ALL, handle);
            send_rows(hub, &mut statement, &mut |json| voice.say(connection, json).inspect_err(|_| give_up()))?;
            let changes = connection.total_changes() - before;
            voice.say(connection, &admin::encode(&Tell::Done { changes }))?;
        }
        Ok(())
    }

    fn run_rows(&mut self, sql: &str, rows: &[Vec<Cell>]) -> Result<(), Fault> {
        let Runner { hub, connection, voice, stop, .. } = self;
        let failed = |error: rusqlite::Error| Fault::Failed(trouble_of_sqlite(hub, error));
        let mut statement = connection.prepare(sql).map_err(failed)?;
        let before = connection.total_changes();
        for (number, row) in rows.iter().enumerate() {
            let failed = |error| {
                let trouble = Trouble { row: u32::try_from(number).ok(), ..trouble_of_sqlite(hub, error) };
                Fault::Failed(trouble)
            };
            if stop.is_asked_for() {
                return Err(Fault::Failed(interrupted()));
            }
            if row.len() != statement.parameter_count() {
                let text = format!("{} values for {} parameters", row.len(), statement.parameter_count());
                return Err(Fault::Failed(Trouble::new("bad_input", text)));
            }
            for (at, cell) in row.iter().enumerate() {
                statement.raw_bind_parameter(at + 1, cell).map_err(failed)?;
            }
            statement.raw_execute().map_err(failed)?;
        }
        let changes = connection.total_changes() - before;
        Ok(voice.say(connection, &admin::encode(&Tell::Done { changes }))?)
    }
}

impl ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Cell::Null => Null.into(),
            Cell::Integer(value) => (*value).into(),
            Cell::Real(value) => (*value).into(),
            Cell::Text(value) => ToSqlOutput::Borrowed(ValueRef::Text(value.as_bytes())),
            Cell::Odd(value) => ToSqlOutput::Borrowed(ValueRef::Text(value)),
            Cell::Blob(value) => ToSqlOutput::Borrowed(ValueRef::Blob(value)),
        })
    }
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(value) => Cell::Integer(value),
        ValueRef::Real(value) => Cell::Real(value),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Cell::Text(text.to_string()),
            Err(_) => Cell::Odd(bytes.to_vec()),
        },
        ValueRef::Blob(bytes) => Cell::Blob(bytes.to_vec()),
    }
}

/// Rows as `{"rows":[...]}`, built as they come.
struct Batch {
    json: Vec<u8>,
    rows: usize,
    since: Instant,
}

impl Batch {
    const HEAD: &'static [u8] = b"{\"rows\":[";

    fn new() -> Batch {
        Batch { json: Batch::HEAD.to_vec(), rows: 0, since: Instant::now() }
    }

    fn send(&mut self, say: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        if self.rows > 0 {
            self.json.extend_from_slice(b"]}");
            say(&self.json)?;
            self.json.truncate(Batch::HEAD.len());
            // One large row is no reason to keep its memory.
            self.json.shrink_to(2 * BATCH);
            self.rows = 0;
        }
        self.since = Instant::now();
        Ok(())
    }
}

/// The names of the columns. The same long one may be there two thousand times, so they are bounded as a row is.
fn columns(statement: &Statement<'_>) -> Result<Vec<u8>, Fault> {
    let mut json = b"{\"columns\":[".to_vec();
    for (at, name) in statement.column_names().into_iter().enumerate() {
        if name.len() <= MAX_ROW {
            json.extend_from_slice(if at > 0 { b"," } else { b"" });
            json.extend_from_slice(&admin::encode(&name));
        }
        let size = json.len().max(name.len());
        if size > MAX_ROW {
            let text =
                format!("names of columns of {size} bytes or more, limit {MAX_ROW}: give them shorter ones, with AS");
            return Err(Fault::Failed(Trouble::new("bad_input", text)));
        }
    }
    json.extend_from_slice(b"]}");
    Ok(json)
}

/// Steps a statement to its end. If `say` fails, it has interrupted it.
fn send_rows(
    hub: &Hub,
    statement: &mut Statement<'_>,
    say: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Fault> {
    let failed = |error: rusqlite::Error| Fault::Failed(trouble_of_sqlite(hub, error));
    let columns = statement.column_count();
    let mut rows = statement.raw_query();
    // PRAGMA incremental_vacuum: such rows are its steps, and no result.
    if columns == 0 {
        while rows.next().map_err(failed)?.is_some() {}
        return Ok(());
    }
    let mut batch = Batch::new();
    let mut first = true;
    let ended = loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => break Ok(()),
            Err(error) => break Err(failed(error)),
        };
        let start = batch.json.len();
        batch.json.extend_from_slice(if batch.rows > 0 { b",[" } else { b"[" });
        let mut large = None;
        for at in 0..columns {
            let value = row.get_ref(at).map_err(failed)?;
            let bytes = value.as_bytes().map_or(0, <[u8]>::len);
            if bytes <= MAX_ROW {
                batch.json.extend_from_slice(if at > 0 { b"," } else { b"" });
                batch.json.extend_from_slice(&admin::encode(&cell(value)));
            }
            let size = (batch.json.len() - start).max(bytes);
            if size > MAX_ROW {
                large = Some(size);
                break;
            }
        }
        if let Some(size) = large {
            batch.json.truncate(start);
            let text = format!("a row of {size} bytes or more, limit {MAX_ROW}: select parts of it, with substr()");
            break Err(Fault::Failed(Trouble::new("bad_input", text)));
        }
        batch.json.push(b']');
        batch.rows += 1;
        // The first row goes at once: it says that there are any.
        if first || batch.json.len() >= BATCH || batch.since.elapsed() >= BATCH_AGE {
            if let Err(error) = batch.send(say) {
                // SQLite commits a statement that is left before its end, and that was not interrupted: INSERT ... RETURNING has
                // written all its rows before it gives the first.
                let _ = rows.next();
                return Err(error.into());
            }
            first = false;
        }
    };
    batch.send(say)?;
    ended
}

fn interrupted() -> Trouble {
    Trouble { code: Some(rusqlite::ffi::SQLITE_INTERRUPT), ..Trouble::new(INTERRUPTED, "interrupted") }
}

fn trouble_of_sqlite(hub: &Hub, error: rusqlite::Error) -> Trouble {
    // The sentence alone: the caller has the statement.
    let words = match &error {
        rusqlite::Error::SqlInputError { msg, offset, .. } => Some((msg.clone(), usize::try_from(*offset).ok())),
        rusqlite::Error::SqliteFailure(_, Some(text)) => Some((text.clone(), None)),
        _ => None,
    };
    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) {
        return interrupted();
    }
    let error = Error::from(error);
    let mut trouble = trouble(hub, &error);
    if let Some((text, at)) = words.filter(|_| trouble.kind == "other") {
        (trouble.text, trouble.at) = (error::with_hint(text), at);
    }
    trouble
}

fn trouble(hub: &Hub, error: &Error) -> Trouble {
    let mut trouble = Trouble::new(admin::word_of_kind(error.kind()), error.to_string());
    trouble.code = error.sqlite().and_then(|error| match error {
        rusqlite::Error::SqliteFailure(failure, _) => Some(failure.extended_code),
        rusqlite::Error::SqlInputError { error, .. } => Some(error.extended_code),
        _ => None,
    });
    trouble.outcome = error.outcome();
    let leader = error.sqlite().and_then(error::leader_hint).and_then(|id| u16::try_from(id).ok());
    trouble.leader = leader.map(crate::types::NodeId);
    if let Some(leader) = trouble.leader {
        let address = hub.with_catalogue(|catalogue| catalogue.member(leader).map(|member| member.address.clone()));
        trouble.address = address.ok().flatten();
    }
    let leaderless = match error.kind() {
        ErrorKind::NotLeader => trouble.leader.is_none(),
        ErrorKind::Busy => hub.leadership().leader.is_none(),
        _ => false,
    };
    if (leaderless || error.kind() == ErrorKind::Stopped) && hub.is_closing() {
        // Of a node that ends it is no news that it does not lead, nor what anybody has to look into. Stopped is what a statement
        // hears that waited for a lock until then, and by SQLite it is a "disk I/O error"; what is Unknown stays that.
        (trouble.kind, trouble.text) = ("stopped".to_string(), ENDED.to_string());
        trouble.outcome = Some(Outcome::NotCommitted);
    } else if leaderless && error.kind() == ErrorKind::Busy {
        // SQLite's word for it is that the database is locked; what a person needs to know is why.
        trouble.kind = admin::word_of_kind(ErrorKind::NotLeader).to_string();
        trouble.text = "there is no leader at the moment; nothing was written; try again".to_string();
    }
    if error.kind() == ErrorKind::Busy
        && !hub.is_closing()
        && let Some(why) = status::why_busy(hub)
    {
        trouble.text = why;
    }
    trouble
}
