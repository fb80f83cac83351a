//! The caller's side of a SQL session, over the admin socket of a node on this machine.
//!
//! Deliberately absent: output, and when a statement is whole.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::admin::{self, Reply, Request, frame};
use crate::connection::ReadLevel;
use crate::error::{ErrorKind, Outcome};
use crate::session::words::{self, Ask, Tell};
pub use crate::session::words::{Cell, Trouble, hex};
use crate::session::{MAX_ASK, MAX_TELL};
use crate::socket;

/// A node that does not take a request for this long, or does not open a session, is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a run gives, as it comes.
#[derive(Debug)]
pub enum Said {
    /// The next statement has these columns.
    Columns(Vec<String>),
    /// Rows of it.
    Rows(Vec<Vec<Cell>>),
    /// It came to its end, with so many rows changed.
    Done(u64),
}

/// Where a run is, for whoever interrupts it.
struct Running {
    stream: UnixStream,
    /// The run that is on.
    number: Option<u64>,
}

/// A session. Dropping it ends it; what was not committed is rolled back.
pub struct Session {
    from: BufReader<UnixStream>,
    running: Arc<Mutex<Running>>,
    next: u64,
    in_transaction: bool,
    node: u16,
}

/// Interrupts what runs in a session, from another thread.
#[derive(Clone)]
pub struct Interrupter(Arc<Mutex<Running>>);

impl Interrupter {
    /// Interrupts what runs, and gives its number; `None` if nothing does.
    pub fn interrupt(&self) -> Option<u64> {
        let mut running = self.0.lock();
        let number = running.number?;
        // If the node is gone, the run has ended already.
        let _ = frame::write(&mut running.stream, &admin::encode(&Ask::Interrupt { number }));
        Some(number)
    }
}

impl Trouble {
    /// What it is about; `None` for what has no kind of its own, such as an error in a statement.
    pub fn kind(&self) -> Option<ErrorKind> {
        Some(admin::kind_of_word(&self.kind)).filter(|kind| *kind != ErrorKind::Io)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Session {
    /// Opens a session on the node that runs in `dir`. With `create`, a database that does not exist is created by the
    /// first write.
    pub fn open(dir: &Path, name: &str, level: ReadLevel, create: bool) -> Result<Session, Trouble> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Trouble::new("not_leader", format!("{}: no node runs in this directory", dir.display()))
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Trouble::new(
                "other",
                format!("{}: the node hung up: it has too many callers, or is another user's", dir.display()),
            ),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Trouble::new(
                "other",
                format!(
                    "{}: the node in this directory opened no session within {} s",
                    dir.display(),
                    PATIENCE.as_secs()
                ),
            ),
            _ => Trouble::new("other", format!("{}: {error}", dir.display())),
        };
        let mut stream = socket::connect(dir).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let request = Request::Session { name: name.to_string(), level: level.as_str().to_string(), create };
        let written = frame::write(&mut stream, &admin::encode(&request));
        let mut from = BufReader::new(stream.try_clone().map_err(failed)?);
        let heard = match written.as_ref().map_err(io::Error::kind) {
            // Whoever is turned away unheard is told so all the same.
            Ok(()) | Err(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                frame::read(&mut from, MAX_TELL)
            }
            Err(kind) => Err(kind.into()),
        };
        let heard = heard.or_else(|unheard| written.and(Err(unheard))).and_then(|json| first_word(&json));
        let node = match heard.map_err(failed)? {
            Tell::Opened { node } => node.0,
            Tell::Failed(trouble) | Tell::Ended(trouble) => return Err(trouble),
            other => return Err(unexpected(&other)),
        };
        // A statement takes as long as it takes.
        stream.set_read_timeout(None).map_err(failed)?;
        let running = Arc::new(Mutex::new(Running { stream, number: None }));
        Ok(Session { from, running, next: 1, in_transaction: false, node })
    }

    /// The node on which it runs.
    pub fn node(&self) -> u16 {
        self.node
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// For another thread.
    pub fn interrupter(&self) -> Interrupter {
        Interrupter(self.running.clone())
    }

    /// Runs statements one after another, or one statement once per row of values, and tells what comes. Ends at the
    /// first that fails. If `on` fails, it is not asked again, and the run is interrupted. The answer is an error then, and says what
    /// became of the run: its kind is `output` if everything was done before the interruption came.
    pub fn run(
        &mut self,
        sql: &str,
        rows: Vec<Vec<Cell>>,
        on: &mut dyn FnMut(Said) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        let number = self.next;
        self.next += 1;
        let weight = words::weight(&rows);
        if weight > words::MAX_ROWS_WEIGHT {
            let text = format!(
                "{} rows that take {weight} bytes of memory are more than a node takes at once, limit {}; nothing was done",
                rows.len(),
                words::MAX_ROWS_WEIGHT
            );
            return Err(Trouble::new("bad_input", text).with_outcome(Outcome::NotCommitted));
        }
        let ask = admin::encode(&Ask::Run { number, sql: sql.to_string(), rows });
        if ask.len() > MAX_ASK {
            let text =
                format!("{} bytes are more than a node takes at once, limit {MAX_ASK}; nothing was done", ask.len());
            return Err(Trouble::new("bad_input", text).with_outcome(Outcome::NotCommitted));
        }
        let sent = {
            let mut running = self.running.lock();
            running.number = Some(number);
            frame::write(&mut running.stream, &ask)
        };
        let result = self.follow(number, sent.is_ok(), on);
        self.running.lock().number = None;
        result
    }

    fn follow(&mut self, number: u64, sent: bool, on: &mut dyn FnMut(Said) -> io::Result<()>) -> Result<(), Trouble> {
        let mut failed = None;
        let mut unheard = None;
        loop {
            let told = read(&mut self.from).map_err(|_| match sent {
                true => Trouble::new(
                    "unknown",
                    "the node went away before it had answered; the statement may have been done",
                )
                .with_outcome(Outcome::Unknown),
                // A part of a request is none.
                false => Trouble::new("stopped", "the node went away; the statement was not done")
                    .with_outcome(Outcome::NotCommitted),
            })?;
            let said = match told {
                Tell::Columns(names) => Said::Columns(names),
                Tell::Rows(rows) => Said::Rows(rows),
                Tell::Done { changes } => Said::Done(changes),
                Tell::Failed(trouble) => {
                    failed.get_or_insert(trouble);
                    continue;
                }
                Tell::Ready { number: done, in_transaction } if done == number => {
                    self.in_transaction = in_transaction;
                    return failed.or(unheard).map_or(Ok(()), Err);
                }
                Tell::Ended(trouble) => return Err(trouble),
                other => return Err(unexpected(&other)),
            };
            if unheard.is_none()
                && let Err(error) = on(said)
            {
                unheard = Some(Trouble::new("output", error.to_string()));
                self.interrupter().interrupt();
            }
        }
    }
}

/// What a node says first. It does not listen to one caller too many by far, and so says in the words of a call that it is one.
fn first_word(json: &[u8]) -> io::Result<Tell> {
    match (serde_json::from_slice(json), serde_json::from_slice(json)) {
        (Err(_), Ok(Reply::Err { kind, text, .. })) => Ok(Tell::Failed(Trouble::new(&kind, text))),
        (told, _) => told.map_err(io::Error::other),
    }
}

fn read(from: &mut BufReader<UnixStream>) -> io::Result<Tell> {
    serde_json::from_slice(&frame::read(from, MAX_TELL)?).map_err(io::Error::other)
}

fn unexpected(told: &Tell) -> Trouble {
    Trouble::new("other", format!("the node said what it should not: {told:?}"))
}
