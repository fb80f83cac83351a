//! What the VFS asks of whoever replicates: the seams for the commit, the write lock and the read barrier.
//!
//! The VFS holds no lock of its own while it is inside one of these calls.
//!
//! A commit passes through two parties. The connection's thread waits in [`Replicator::commit`]; the *applier* (the one
//! thread that applies committed entries of this database, in order) meets the entry and either *accepts* it for the
//! waiting connection (`Database::accept`, after which SQLite itself publishes) or, if that connection was detached or
//! gave up in the meantime, applies it like a foreign one (`Database::apply`). `commit` returns `Ok` only after one of
//! the two has happened.

use std::sync::Arc;
use std::time::Duration;

use crate::database::{Database, SessionId};
use crate::error::Refusal;
use crate::transaction::{Position, Transaction};

/// What the replicator calls a transaction that it proposed, for the application to ask about later. The VFS keeps it for
/// the connection and hands it out as text (`PRAGMA shoal_last_receipt`).
pub type Receipt = Arc<dyn std::fmt::Display + Send + Sync>;

/// Asked by long waits whether the connection was interrupted (`sqlite3_interrupt`).
pub type Interrupted<'a> = &'a dyn Fn() -> bool;

/// Implemented above the VFS; one per registered VFS.
pub trait Replicator: Send + Sync + 'static {
    /// The database called `name`. Without `create`, one that does not exist is [`Refusal::CannotOpen`]. With it, the
    /// answer may be a database that only its first write will create.
    fn open(&self, name: &str, create: bool) -> Result<Arc<Database>, Refusal>;

    /// May a local connection take the write lock of `db` now? Called without that lock. `Busy` lets SQLite's busy
    /// handler wait, which then calls [`Replicator::wait_writable`].
    ///
    /// With `confirm` (linearizable connections) a majority must have confirmed after this call began that this node
    /// leads, since a transaction that changes nothing never reaches the log.
    fn acquire_write(&self, db: &Arc<Database>, confirm: bool, interrupted: Interrupted<'_>) -> Result<(), Refusal>;

    /// A local connection was just granted the write lock, after `acquire_write`: may it keep it? In between the writer before
    /// it may have given up a commit that is undecided. Called in the commit path: no waiting here.
    fn is_open(&self, _: &Arc<Database>) -> Result<(), Refusal> {
        Ok(())
    }

    /// Sleeps up to `limit`, less if `acquire_write` has a chance to succeed earlier.
    fn wait_writable(&self, db: &Arc<Database>, limit: Duration);

    /// Makes `transaction` of write session `session` durable on a majority and waits until it is decided.
    /// `NotCommitted` needs proof that no node will ever apply it; when in doubt, `Unknown`. `receipt` is set if the
    /// transaction came so far that it has a name, whatever the answer.
    fn commit(
        &self,
        db: &Arc<Database>,
        session: SessionId,
        transaction: Transaction,
        receipt: &mut Option<Receipt>,
    ) -> Result<Position, Refusal>;

    /// A connection gave WRITE back, and what it committed is shown. Called in that connection's thread.
    fn on_write_released(&self) {}

    /// Waits until this node shows everything that any node had acknowledged when the call began. Never `Busy`: SQLite
    /// would retry for ten seconds and then report a locking protocol error.
    fn read_barrier(&self, db: &Arc<Database>, interrupted: Interrupted<'_>) -> Result<(), Refusal>;
}
