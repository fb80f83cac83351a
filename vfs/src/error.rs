//! What can go wrong towards SQLite, and the one place that maps it to result codes.
//!
//! SQLite prints a fixed text per primary code, but hands the whole extended code to the application. So the extended
//! codes below carry what became of a transaction:
//!
//! ```text
//! code                                        meaning                                    busy handler called?
//! SQLITE_READONLY | (0x10000 + leader) << 8   this node is not the leader                no
//! SQLITE_READONLY | 79 << 8                   second replicated database in one          no
//!                                             transaction
//! SQLITE_BUSY                                 another writer, or no leader at the moment yes
//! SQLITE_BUSY     | 77 << 8                   certainly not committed                    no (the statement has run)
//! SQLITE_IOERR    | 200 << 8                  outcome unknown                            no
//! SQLITE_IOERR    | 201 << 8                  the database was dropped                   no
//! SQLITE_IOERR    | 202 << 8                  the node is shut down, or failed           no
//! SQLITE_IOERR    | 203 << 8                  a linearizable read found no quorum        no
//! SQLITE_IOERR    | 206 << 8                  this node's disk did not take its pages:   no
//!                                             certainly not committed
//! SQLITE_IOERR    | 204 << 8                  a page on this node's disk is damaged; if   no
//!                                             it was a transaction: certainly not
//!                                             committed
//! SQLITE_IOERR    | 207 << 8                  the transaction only read, for too long: it was   no
//!                                             ended; certainly not committed
//! SQLITE_FULL     | 77 << 8                   the transaction is too large, and so       no
//!                                             certainly not committed
//! SQLITE_FULL     | 78 << 8                   this node's disk has no room for its       no
//!                                             pages: certainly not committed
//! ```
//!
//! A failed commit frame never answers plain `SQLITE_BUSY`: SQLite would keep the transaction open although the running
//! checksum of its WAL has already moved on.

use libsqlite3_sys as sql;

/// Certainly not committed: no node will ever apply the transaction. Safe to run again.
pub const NOT_COMMITTED: i32 = sql::SQLITE_BUSY | (77 << 8);
/// The transaction exceeds what one log entry may hold; certainly not committed.
pub const TOO_LARGE: i32 = sql::SQLITE_FULL | (77 << 8);
/// This node's disk has no room for the pages of the transaction; certainly not committed.
pub const NO_ROOM: i32 = sql::SQLITE_FULL | (78 << 8);
/// This node's disk did not take the pages of the transaction; certainly not committed.
pub const NOT_KEPT: i32 = sql::SQLITE_IOERR | (206 << 8);
/// Nobody knows yet what became of the transaction.
pub const UNKNOWN: i32 = sql::SQLITE_IOERR | (200 << 8);
/// The database was dropped while this connection was open.
pub const DROPPED: i32 = sql::SQLITE_IOERR | (201 << 8);
/// The node was shut down, or stopped because it could not go on safely.
pub const NODE_STOPPED: i32 = sql::SQLITE_IOERR | (202 << 8);
/// A linearizable read could not be confirmed by a majority in time.
pub const READ_UNCONFIRMED: i32 = sql::SQLITE_IOERR | (203 << 8);
/// A page of this node's main file, or its hash, is not what was written: it is not served. Or one that a transaction is built on
/// could not be read. A transaction that met it is certainly not committed.
pub const DAMAGED: i32 = sql::SQLITE_IOERR | (204 << 8);
/// The transaction only read, and kept so much of the WAL from the main file that it was ended. Nothing was written; the next
/// one reads the present state.
pub const READER_ENDED: i32 = sql::SQLITE_IOERR | (207 << 8);
/// One transaction may write to one replicated database.
pub const SECOND_WRITER: i32 = sql::SQLITE_READONLY | (79 << 8);

/// The lowest extended part of "not the leader".
const NOT_LEADER_BASE: i32 = 0x10000;

/// Code of "this node is not the leader"; `leader` is 0 only if this node can learn of none.
pub const fn not_leader(leader: u16) -> i32 {
    sql::SQLITE_READONLY | ((NOT_LEADER_BASE + leader as i32) << 8)
}

/// The leader that a code made by [`not_leader`] names; `None` for any other code.
pub const fn leader_of_code(code: i32) -> Option<u16> {
    let extended = code >> 8;
    if code & 0xff == sql::SQLITE_READONLY && extended >= NOT_LEADER_BASE && extended <= NOT_LEADER_BASE + 0xffff {
        Some((extended - NOT_LEADER_BASE) as u16)
    } else {
        None
    }
}

/// Why a connection may not go on: the private error type behind the codes of this module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Not now; a busy handler may wait.
    Busy,
    /// Another node leads (`Some`), or this node can learn of no leader ever (`None`).
    NotLeader(Option<u16>),
    /// No node will ever apply the transaction.
    NotCommitted,
    /// The answer did not come in time.
    Unknown,
    /// The transaction exceeds what one entry may hold.
    TooLarge,
    /// There is no room on this node's disk for the pages of the transaction.
    NoRoom,
    /// This node's disk did not take the pages of the transaction.
    NotKept,
    /// The database was dropped.
    Dropped,
    /// The node was shut down or failed.
    NodeStopped,
    /// No majority confirmed the read in time.
    ReadUnconfirmed,
    /// `sqlite3_interrupt` was called.
    Interrupted,
    /// There is no such database and the connection may not create one, or its name is not allowed.
    CannotOpen,
    /// A second replicated database in one transaction.
    SecondWriter,
    /// A page on this node's disk, or its hash, is not what was written, or a transaction is built on it and it could not be read.
    Damaged,
    /// The read transaction kept too much of the WAL for too long.
    ReaderEnded,
    /// A read or write of a file failed.
    Io,
}

impl Refusal {
    /// The SQLite result code.
    pub const fn code(self) -> i32 {
        match self {
            Refusal::Busy => sql::SQLITE_BUSY,
            Refusal::NotLeader(leader) => not_leader(match leader {
                Some(id) => id,
                None => 0,
            }),
            Refusal::NotCommitted => NOT_COMMITTED,
            Refusal::Unknown => UNKNOWN,
            Refusal::TooLarge => TOO_LARGE,
            Refusal::NoRoom => NO_ROOM,
            Refusal::NotKept => NOT_KEPT,
            Refusal::Dropped => DROPPED,
            Refusal::NodeStopped => NODE_STOPPED,
            Refusal::ReadUnconfirmed => READ_UNCONFIRMED,
            Refusal::Interrupted => sql::SQLITE_INTERRUPT,
            Refusal::CannotOpen => sql::SQLITE_CANTOPEN,
            Refusal::SecondWriter => SECOND_WRITER,
            Refusal::Damaged => DAMAGED,
            Refusal::ReaderEnded => READER_ENDED,
            Refusal::Io => sql::SQLITE_IOERR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_survives_the_way_through_a_code() {
        for leader in [0u16, 1, 2, 65534, 65535] {
            assert_eq!(leader_of_code(not_leader(leader)), Some(leader));
        }
        for other in [0, sql::SQLITE_READONLY, SECOND_WRITER, NOT_COMMITTED, UNKNOWN, sql::SQLITE_READONLY | (6 << 8)] {
            assert_eq!(leader_of_code(other), None, "{other}");
        }
    }

    #[test]
    fn the_public_codes_are_what_clients_were_told() {
        assert_eq!(NOT_COMMITTED, 19717);
        assert_eq!(UNKNOWN, 51210);
    }
}
