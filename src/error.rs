//! What goes wrong, in words, and what it means for the transaction.
//!
//! Applications see SQLite's result codes through rusqlite, diesel or sqlx. The codes that carry more than SQLite's own
//! meaning are defined in `shoaldb_vfs::error` and explained here in words.

use rusqlite::ffi;
use serde::{Deserialize, Serialize};
use shoaldb_vfs::env::in_words;
pub use shoaldb_vfs::error::{
    DAMAGED, DROPPED, NO_ROOM, NODE_STOPPED, NOT_COMMITTED, NOT_KEPT, READ_UNCONFIRMED, READER_ENDED, SECOND_WRITER,
    TOO_LARGE, UNKNOWN,
};
use shoaldb_vfs::error::{leader_of_code, not_leader};

use crate::receipt::{BadReceipt, Receipt};

/// What became of a transaction that failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// What was tried to commit is in no node, and none will ever apply it. Safe to run again, after a `ROLLBACK` if the
    /// connection is still in the transaction (`!is_autocommit()`): SQLite leaves it open after some errors, and what is run
    /// then comes on top of it.
    NotCommitted,
    /// The answer was lost: it may be committed, now or later. Read first, then decide.
    Unknown,
}

/// What an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// This node is not the leader; see [`Error::leader`].
    NotLeader,
    /// The transaction is certainly not committed.
    NotCommitted,
    /// Whether the transaction is committed is not known.
    Unknown,
    /// Another writer, or no leader at the moment, for longer than the caller wanted to wait.
    Busy,
    /// Something did not happen in time.
    Timeout,
    /// An argument cannot be what it is.
    BadInput,
    /// What was to be created exists.
    Exists,
    /// What was asked for does not exist.
    NotFound,
    /// The id is that of a node that was removed from the cluster, and is never used again.
    Removed,
    /// Bytes on disk are not what was written.
    Corrupt,
    /// The operating system refused something.
    Io,
    /// The node was shut down, or stopped because it could not go on safely.
    Stopped,
    /// Anything else that SQLite reports; see [`Error::sqlite`].
    Sqlite,
}

/// Any failure of this library. Opaque: ask it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    receipt: Option<Receipt>,
}

/// `Result` with our [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None, receipt: None }
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error { kind, message: message.into(), source: Some(source.into()), receipt: None }
    }

    pub(crate) fn with_receipt(self, receipt: Option<Receipt>) -> Error {
        Error { receipt, ..self }
    }

    /// The same error, for people who are to know more.
    pub(crate) fn with_words(self, message: String) -> Error {
        Error { message, ..self }
    }

    /// What it is about.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What became of the transaction; `None` if the error is not about one, or says nothing about it.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.kind {
            ErrorKind::NotCommitted | ErrorKind::NotLeader | ErrorKind::Busy => Some(Outcome::NotCommitted),
            ErrorKind::Unknown => Some(Outcome::Unknown),
            _ => self.sqlite().and_then(outcome),
        }
    }

    /// The receipt of the transaction of [`crate::Node::write`] that failed, if it came as far as the log. With it an
    /// `Unknown` is settled later: [`crate::Node::outcome_of`].
    pub fn receipt(&self) -> Option<Receipt> {
        self.receipt
    }

    /// Whether the same call on the leader may work; see [`Error::leader`].
    pub fn is_not_leader(&self) -> bool {
        self.kind == ErrorKind::NotLeader
    }

    /// Whether the same call may work later, without any risk of doing it twice.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::NotLeader | ErrorKind::NotCommitted | ErrorKind::Busy)
    }

    /// Whether bytes on disk are not what was written.
    pub fn is_corrupt(&self) -> bool {
        self.kind == ErrorKind::Corrupt
    }

    /// The leader's node id, if the error is "not the leader" and this node knows it.
    pub fn leader(&self) -> Option<u64> {
        self.sqlite().and_then(leader_hint)
    }

    /// The error of rusqlite behind this one.
    pub fn sqlite(&self) -> Option<&rusqlite::Error> {
        self.source.as_ref()?.downcast_ref::<rusqlite::Error>()
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

impl From<BadReceipt> for Error {
    fn from(error: BadReceipt) -> Error {
        Error::caused(ErrorKind::BadInput, error.to_string(), error)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        let code = extended_code(&error);
        let (kind, words) = match code {
            Some(NOT_COMMITTED) => (
                ErrorKind::NotCommitted,
                "the transaction is not committed and never will be; it is safe to run it again",
            ),
            Some(UNKNOWN) => (
                ErrorKind::Unknown,
                "whether the transaction is committed is not known: no answer before the deadline; read before you retry",
            ),
            Some(TOO_LARGE) => (
                ErrorKind::Io,
                "the transaction is not committed: it has more pages than `transaction_limit` allows; split it, or raise the limit",
            ),
            Some(NO_ROOM) => (
                ErrorKind::Io,
                "the transaction is not committed: the disk of this node has no room for its pages; make room and run it again",
            ),
            Some(NOT_KEPT) => (
                ErrorKind::Io,
                "the transaction is not committed: the disk of this node did not take its pages; see the log of the node, which says why",
            ),
            Some(DAMAGED) => (
                ErrorKind::Corrupt,
                "a page on this node's disk is not what was written; nothing was committed; use another node until this one has repaired it, or where there is no other drop the database and restore a backup; and check the disk",
            ),
            Some(READER_ENDED) => (
                ErrorKind::Timeout,
                "the read transaction was ended: it was open for so long that what was written since filled `reader_wal_pin_max`; read again",
            ),
            Some(DROPPED) => (
                ErrorKind::NotFound,
                "the database was dropped, or created with another page size; close this connection",
            ),
            Some(NODE_STOPPED) => (ErrorKind::Stopped, "this node is shut down or had to stop; see its log"),
            Some(READ_UNCONFIRMED) => {
                (ErrorKind::Timeout, "no majority confirmed the linearizable read in time; try again or read locally")
            }
            Some(SECOND_WRITER) => (
                ErrorKind::BadInput,
                "one transaction may write to one replicated database; commit the first, then write",
            ),
            Some(code) if leader_of_code(code).is_some() => {
                let message = match leader_of_code(code) {
                    Some(leader) if leader > 0 => format!("this node is not the leader; node {leader} is"),
                    _ => "this node is not the leader and knows of none".to_string(),
                };
                return Error::caused(ErrorKind::NotLeader, message, error);
            }
            Some(code) => match code & 0xff {
                ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => (ErrorKind::Busy, ""),
                ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => (ErrorKind::Corrupt, ""),
                ffi::SQLITE_CANTOPEN => (ErrorKind::NotFound, ""),
                ffi::SQLITE_IOERR | ffi::SQLITE_FULL => (ErrorKind::Io, ""),
                _ => (ErrorKind::Sqlite, ""),
            },
            None => (ErrorKind::Sqlite, ""),
        };
        let message = if words.is_empty() { with_hint(error.to_string()) } else { words.to_string() };
        Error::caused(kind, message, error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::caused(ErrorKind::Io, in_words(&error), error)
    }
}

/// What SQLite says of a name in `ATTACH` or `VACUUM INTO`, and what to write for an ordinary file: it does not know that there are
/// two kinds of names.
pub(crate) fn with_hint(text: String) -> String {
    match text.strip_prefix("unable to open database: ") {
        Some(path) if path.contains('/') && !path.starts_with("file:") => format!(
            "{text}; databases of the cluster have plain names; an ordinary file on the node's machine is 'file:{path}?vfs=unix'"
        ),
        None if text == "output file already exists" => format!(
            "{text}; a plain name is that of a database of the cluster; an ordinary file on the node's machine, which must not exist, is \
             'file:/DIR/FILE?vfs=unix'"
        ),
        _ => text,
    }
}

pub(crate) fn extended_code(error: &rusqlite::Error) -> Option<i32> {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => Some(failure.extended_code),
        rusqlite::Error::SqlInputError { error, .. } => Some(error.extended_code),
        _ => None,
    }
}

/// What became of the transaction that failed with `error`; `None` if the error says nothing about it.
///
/// ```
/// use shoaldb::{rusqlite, outcome, Outcome};
/// let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(shoaldb::error::UNKNOWN), None);
/// assert_eq!(outcome(&error), Some(Outcome::Unknown));
/// ```
pub fn outcome(error: &rusqlite::Error) -> Option<Outcome> {
    extended_code(error).and_then(outcome_of_code)
}

/// As [`outcome`], for an extended result code.
///
/// `NotCommitted` for our own codes but `UNKNOWN`: the node gives them before it proposes anything, or with proof; and
/// for every kind of `SQLITE_BUSY`, which SQLite and the node give only before. Such a one may leave the transaction open, so
/// that a later `COMMIT` commits it: a `COMMIT` while a statement that writes is not finished, for one. `None` for SQLite's other codes: a
/// violated constraint leaves the transaction open, and an I/O error or a full disk may be that of an ordinary file which
/// is attached, after the replicated database was committed.
pub fn outcome_of_code(code: i32) -> Option<Outcome> {
    match code {
        NOT_COMMITTED | SECOND_WRITER | TOO_LARGE | NO_ROOM | NOT_KEPT | DROPPED | NODE_STOPPED | READ_UNCONFIRMED
        | DAMAGED | READER_ENDED => Some(Outcome::NotCommitted),
        UNKNOWN => Some(Outcome::Unknown),
        code if leader_of_code(code).is_some() || code & 0xff == ffi::SQLITE_BUSY => Some(Outcome::NotCommitted),
        _ => None,
    }
}

/// The node id of the leader that a refused write names; `None` for other errors, and when the node knew of no leader.
pub fn leader_hint(error: &rusqlite::Error) -> Option<u64> {
    extended_code(error).and_then(leader_of_code).filter(|leader| *leader > 0).map(u64::from)
}

/// The extended code of "this node is not the leader"; `leader` is 0 if the node can learn of none.
pub const fn not_leader_code(leader: u16) -> i32 {
    not_leader(leader)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
    }

    #[test]
    fn codes_become_outcomes_and_words() {
        assert_eq!(outcome(&failure(NOT_COMMITTED)), Some(Outcome::NotCommitted));
        assert_eq!(outcome(&failure(UNKNOWN)), Some(Outcome::Unknown));
        for refused in [NO_ROOM, NOT_KEPT, TOO_LARGE, DAMAGED, READER_ENDED] {
            assert_eq!(outcome(&failure(refused)), Some(Outcome::NotCommitted));
        }
        assert_eq!(outcome(&failure(ffi::SQLITE_CONSTRAINT)), None);
        let error = Error::from(failure(not_leader_code(3)));
        assert!(error.is_not_leader() && error.is_retryable() && error.leader() == Some(3));
        assert_eq!(error.to_string(), "this node is not the leader; node 3 is");
        assert_eq!(leader_hint(&failure(not_leader_code(0))), None);
        assert_eq!(Error::from(failure(UNKNOWN)).outcome(), Some(Outcome::Unknown));
        assert!(!Error::from(failure(UNKNOWN)).is_retryable());
    }
}
