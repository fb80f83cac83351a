//! One door: a node that is reached by its address, or by its admin socket.
//!
//! A node that runs says its first word at once, whatever else it does: over TCP that is the handshake; over the admin socket,
//! which has none, a question before the request. One that is frozen, or on a machine that hangs, is given up there, *before* the
//! request is sent, so that it is certain that nothing was done.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::admin::{self, Reply, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{RequestError, tcp};
use crate::socket;
use crate::status::Status;

/// How long an answer may take of a node that has said its first word. A change of the members waits for two commits.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a node may work on one answer: whoever asked may end it.
const LONG_PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) enum Door {
    Endpoint(String),
    Directory(PathBuf),
}

impl Door {
    pub(super) fn name(&self) -> String {
        match self {
            Door::Endpoint(address) => address.clone(),
            Door::Directory(dir) => dir.display().to_string(),
        }
    }

    /// Not reached is `NotLeader`: as far as this door goes, there is nobody who could do it.
    pub(super) fn ask(&self, request: &Request, first_word: Duration) -> Result<serde_json::Value> {
        let body = admin::encode(request);
        let patience = match request {
            // As long as it takes; if the node ends, so does the connection.
            Request::Backup { .. } | Request::Restore { .. } | Request::Verify { .. } => LONG_PATIENCE,
            _ => PATIENCE,
        };
        let answer = match self {
            Door::Endpoint(address) => {
                tcp::call_within(address, &body, (first_word, patience), false).map_err(|error| match error {
                    RequestError::NotSent(what) => Error::new(ErrorKind::NotLeader, what),
                    RequestError::Lost(what) => lost(request, &what),
                })?
            }
            Door::Directory(_) if is_short(request) => self.call(request, &body, first_word)?,
            Door::Directory(_) => {
                let status = admin::encode(&Request::Status);
                self.call(&Request::Status, &status, first_word)?;
                self.call(request, &body, patience)?
            }
        };
        let reply: Reply = serde_json::from_slice(&answer)
            .map_err(|error| Error::new(ErrorKind::Io, format!("{}: answer: {error}", self.name())))?;
        reply.into_result()
    }

    /// One call over the admin socket.
    fn call(&self, request: &Request, body: &[u8], patience: Duration) -> Result<Vec<u8>> {
        let Door::Directory(dir) = self else { return Err(lost(request, "no admin socket")) };
        let at = dir.display();
        let silent = || format!("{at}: the node in this directory did not answer within {} s", patience.as_secs());
        socket::call(dir, body, patience).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::new(ErrorKind::NotLeader, format!("{at}: no node runs in this directory"))
            }
            io::ErrorKind::PermissionDenied => {
                Error::new(ErrorKind::Io, format!("{at}: the node in this directory is another user's"))
            }
            // What it would have said is of no use later.
            io::ErrorKind::TimedOut if is_short(request) => {
                let what = format!("{}; its process is stopped, or its machine hangs", silent());
                Error::new(ErrorKind::NotLeader, what)
            }
            io::ErrorKind::TimedOut => lost(request, &silent()),
            io::ErrorKind::UnexpectedEof => {
                lost(request, &format!("{at}: the node hung up: it ended, has too many callers, or is another user's"))
            }
            _ => lost(request, &format!("{at}: {error}")),
        })
    }
}

/// What a node answers at once, and without doing anything.
fn is_short(request: &Request) -> bool {
    matches!(request, Request::Status | Request::Progress { .. } | Request::Directory)
}

/// What became of a request whose answer did not come.
fn lost(request: &Request, what: &str) -> Error {
    match request {
        Request::Status
        | Request::Health
        | Request::Verify { .. }
        | Request::Progress { .. }
        | Request::Directory
        | Request::Outcome { .. }
        | Request::Backup { .. } => Error::new(ErrorKind::Io, what),
        _ => Error::new(ErrorKind::Unknown, format!("{what}; it may have been done")),
    }
}

/// The answer to [`Request::Status`].
pub(super) fn status(value: serde_json::Value) -> Result<Status> {
    serde_json::from_value(value).map_err(|error| Error::new(ErrorKind::Io, format!("its status: {error}")))
}

/// What is asked behind several doors at once: which one, and what came back.
pub(super) type Answers<T> = Sender<(usize, Result<T>)>;

/// Asks on a thread of its own, which nobody waits for: it ends when a node has said its first word too late.
pub(super) fn on_a_thread<T: Send + 'static>(
    to: &Answers<T>,
    at: usize,
    ask: impl FnOnce(&Answers<T>) + Send + 'static,
) {
    let answers = to.clone();
    let spawned = std::thread::Builder::new().name("shoal-ask".to_string()).spawn(move || ask(&answers));
    if let Err(error) = spawned {
        // The receiver is there as long as its caller asks.
        let _ = to.send((at, Err(error.into())));
    }
}
