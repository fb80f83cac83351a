//! Pragmas: those of ours, and clear words for those that cannot work on a replicated database.
//!
//! ```text
//! PRAGMA shoal_read_level             local | linearizable: what reads of this connection see
//! PRAGMA shoal_read_level = X         sets it
//! PRAGMA shoal_position               index of the last log entry that this connection's node shows
//! PRAGMA shoal_last_receipt           receipt of this connection's last transaction that wished to write; empty if it
//!                                     was not proposed
//! ```
//!
//! A refused pragma would fail anyway (locks from RESERVED on are always busy); here it gets a text that says why.
//!
//! Deliberately absent: pragmas that SQLite itself handles well, which is most of them.

use crate::conn::Conn;

/// What becomes of a pragma.
pub(crate) enum Answer {
    /// SQLite handles it.
    NotOurs,
    /// One row with one text.
    Row(String),
    /// An error with this text.
    Refused(String),
}

/// Whether the word asks for linearizable reads; `None` if it is no read level.
pub(crate) fn parse_read_level(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "local" => Some(false),
        "linearizable" => Some(true),
        _ => None,
    }
}

pub(crate) fn on_pragma(name: &str, value: Option<&str>, conn: &Conn) -> Answer {
    match (name.to_ascii_lowercase().as_str(), value) {
        ("shoal_read_level", value) => {
            if let Some(word) = value {
                match parse_read_level(word) {
                    Some(linearizable) => conn.set_linearizable(linearizable),
                    None => {
                        return Answer::Refused(format!("shoal_read_level = {word}: use local or linearizable"));
                    }
                }
            }
            Answer::Row(if conn.is_linearizable() { "linearizable" } else { "local" }.to_string())
        }
        ("shoal_position", None) => Answer::Row(conn.db().position().to_string()),
        ("shoal_last_receipt", None) => Answer::Row(conn.last_receipt()),
        ("journal_mode", Some(mode)) if !mode.eq_ignore_ascii_case("wal") => {
            Answer::Refused(format!("journal_mode = {mode}: a replicated database is always in WAL mode"))
        }
        ("locking_mode", Some(mode)) if mode.eq_ignore_ascii_case("exclusive") => Answer::Refused(
            "locking_mode = exclusive: the node applies what other nodes commit, so no connection may lock it out"
                .to_string(),
        ),
        _ => Answer::NotOurs,
    }
}
