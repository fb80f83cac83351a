//! Clients that know nothing of Shoal, unmodified, on a cluster of three: r2d2_sqlite, diesel, sqlx.
//!
//! Each says in its own words how it opens, writes and reads ([`Client`]); what must hold is the same for all of them
//! (`promises.rs`). What only one of them does, or shows differently, is beside its words.

#[path = "../../../tests/it/cluster.rs"]
#[allow(dead_code, reason = "the helper of the library's own tests; not all of it is needed here")]
mod cluster;
mod promises;
mod with_diesel;
mod with_r2d2;
mod with_sqlx;

use shoaldb::{Error, Node, Outcome, leader_hint, outcome_of_code, rusqlite};

/// What a client does, in its own words, on table `t(x INTEGER PRIMARY KEY)` of database `app`.
pub(crate) trait Client {
    type Pool: Send + Sync;

    /// Connections to the databases of `node`.
    fn pool(node: &Node, size: u32) -> Self::Pool;
    /// Statements without a result.
    fn run(pool: &Self::Pool, sql: &str) -> Result<(), Failure>;
    /// Inserts all of them in one transaction, and ends it.
    fn insert(pool: &Self::Pool, values: &[i64], end: End) -> Result<(), Failure>;
    /// All values, ascending.
    fn values(pool: &Self::Pool) -> Vec<i64>;
}

/// How a transaction ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    Rollback,
}

/// What a user of a client can learn of a failure.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    /// SQLite's extended code, if the client shows it.
    pub(crate) code: Option<i32>,
    /// The row of `PRAGMA shoal_last_receipt` afterwards.
    pub(crate) receipt: String,
}

impl Failure {
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        outcome_of_code(self.code?)
    }

    fn as_rusqlite(&self) -> Option<rusqlite::Error> {
        Some(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(self.code?), None))
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        leader_hint(&self.as_rusqlite()?)
    }

    pub(crate) fn is_not_leader(&self) -> bool {
        self.as_rusqlite().is_some_and(|error| Error::from(error).is_not_leader())
    }
}
