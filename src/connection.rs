//! Connections, and transactions as closures.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{OpenFlags, TransactionBehavior};

use crate::error::{DROPPED, Error, ErrorKind, Result};
use crate::receipt::Receipt;
use crate::shared::Hub;
use crate::status;

/// What a read of one connection sees.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ReadLevel {
    /// What this node shows: some state that was committed, whole, and never an older one than before on this node.
    #[default]
    Local,
    /// At least everything that any node had acknowledged when the read began. Costs one round to a majority; fails when
    /// there is none.
    Linearizable,
}

impl ReadLevel {
    /// As in `?read=` and `PRAGMA shoal_read_level`.
    pub fn as_str(self) -> &'static str {
        match self {
            ReadLevel::Local => "local",
            ReadLevel::Linearizable => "linearizable",
        }
    }
}

/// How a connection is opened.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// What its reads see; default [`ReadLevel::Local`].
    pub read_level: ReadLevel,
    /// Whether it may only read; default `false`.
    pub read_only: bool,
    /// Whether a database that does not exist may be opened, to be created by the first write; default `true`.
    pub create: bool,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions { read_level: ReadLevel::Local, read_only: false, create: true }
    }
}

/// A connection to one replicated database: a [`rusqlite::Connection`] that knows its node.
///
/// A `COMMIT` returns once a majority of the nodes has the transaction on disk and this node shows it. An error says
/// what became of the transaction: see [`crate::outcome`].
#[derive(Debug)]
pub struct Connection {
    inner: rusqlite::Connection,
    /// A closure of `write` left something behind that is not in the database.
    altered: Arc<AtomicBool>,
}

impl Connection {
    pub(crate) fn open(hub: &Hub, vfs: &str, name: &str, options: &ConnectOptions) -> Result<Connection> {
        if let Err(error) = crate::catalogue::DatabaseName::new(name) {
            return Err(Error::new(ErrorKind::BadInput, error.to_string()));
        }
        // SQLite would find out when it reads, and by a code that cannot say why.
        if let Some(known) = status::unserved(hub, name) {
            return Err(known);
        }
        let mut flags = OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        flags |= match options.read_only {
            true => OpenFlags::SQLITE_OPEN_READ_ONLY,
            false => OpenFlags::SQLITE_OPEN_READ_WRITE,
        };
        if options.create && !options.read_only {
            flags |= OpenFlags::SQLITE_OPEN_CREATE;
        }
        // Names need no escaping: letters, digits, and three signs that mean nothing in a URI.
        let uri = format!("file:{name}?vfs={vfs}&read={}", options.read_level.as_str());
        let inner = rusqlite::Connection::open_with_flags(uri, flags)?;
        inner.busy_timeout(hub.config.busy_timeout)?;
        Ok(Connection { inner, altered: Arc::default() })
    }

    /// What reads of this connection see from now on, in all replicated databases that are attached to it. Takes effect
    /// with the next transaction. A database that is attached later has the level of its own URI (`?read=linearizable`).
    pub fn set_read_level(&self, level: ReadLevel) {
        let set = self.set_level_everywhere(level);
        // The VFS answers this pragma itself, whatever state the connection is in.
        debug_assert!(set.is_ok(), "{set:?}");
    }

    fn set_level_everywhere(&self, level: ReadLevel) -> rusqlite::Result<()> {
        self.inner.pragma_update(Some("main"), "shoal_read_level", level.as_str())?;
        let mut list = self.inner.prepare("PRAGMA database_list")?;
        let names = list.query_map([], |row| row.get::<_, String>(1))?.collect::<rusqlite::Result<Vec<_>>>()?;
        // In an ordinary file, and in temp, the pragma is one that nobody knows: it does nothing.
        for name in names.iter().filter(|name| *name != "main") {
            self.inner.pragma_update(Some(name.as_str()), "shoal_read_level", level.as_str())?;
        }
        Ok(())
    }

    /// The receipt of the last transaction of this connection that wished to write to its database; `None` if it did not
    /// come as far as the log: nothing changed, or the write was refused before. After an `Unknown` it settles what became
    /// of it: [`crate::Node::outcome_of`].
    ///
    /// The same as text, for clients that know nothing of Shoal, is the row of `PRAGMA shoal_last_receipt`; for an attached
    /// database it is `PRAGMA name.shoal_last_receipt`.
    pub fn last_receipt(&self) -> Option<Receipt> {
        let main = Some("main");
        let text = self.inner.pragma_query_value(main, "shoal_last_receipt", |row| row.get::<_, String>(0));
        text.ok()?.parse::<Receipt>().ok()
    }

    /// Whether another caller may use this connection as if it were new.
    pub(crate) fn is_as_new(&self) -> bool {
        !self.altered.load(Ordering::Relaxed)
    }

    /// Closes the connection. On failure (a statement is still in use) it is handed back with the reason.
    #[allow(clippy::result_large_err, reason = "the shape that rusqlite's users know")]
    pub fn close(self) -> std::result::Result<(), (Connection, Error)> {
        let altered = self.altered;
        self.inner.close().map_err(|(inner, error)| (Connection { inner, altered }, error.into()))
    }

    /// Runs `act` as one transaction. `Ok(None)`: the database is not this one any more, and `act` was not run.
    pub(crate) fn write<T>(&mut self, hub: &Hub, act: &mut dyn FnMut(&WriteTx<'_>) -> Result<T>) -> Result<Option<T>> {
        let tx = match self.inner.transaction_with_behavior(TransactionBehavior::Immediate) {
            Err(error) if error.sqlite_error().is_some_and(|e| e.extended_code == DROPPED) => return Ok(None),
            begun => begun.map_err(|error| {
                let error = Error::from(error);
                let busy = error.kind() == ErrorKind::Busy;
                match busy.then(|| status::why_busy(hub)).flatten() {
                    Some(why) => error.with_words(why),
                    None => error,
                }
            })?,
        };
        let value = {
            let guarded = WriteTx::new(&tx, self.altered.clone())?;
            act(&guarded)?
        };
        // An error, or a panic, has left through here already: dropping the transaction rolls it back.
        if tx.is_autocommit() {
            return Err(Error::new(
                ErrorKind::Sqlite,
                "the transaction was rolled back by a statement of the closure (OR ROLLBACK, or an error that was not \
                 passed on); nothing of it is committed",
            ));
        }
        let committed = tx.commit();
        committed.map_err(|error| Error::from(error).with_receipt(self.last_receipt()))?;
        Ok(Some(value))
    }
}

impl Deref for Connection {
    type Target = rusqlite::Connection;

    fn deref(&self) -> &rusqlite::Connection {
        &self.inner
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut rusqlite::Connection {
        &mut self.inner
    }
}

/// A transaction inside [`crate::Node::write`]. It derefs to [`rusqlite::Connection`], on which `BEGIN`, `COMMIT`,
/// `ROLLBACK`, `ATTACH` and `DETACH` are refused ("not authorized"): the node begins and commits. Savepoints are fine.
/// If a statement rolls the whole transaction back (`INSERT OR ROLLBACK`), later ones fail: they would be committed alone.
#[derive(Debug)]
pub struct WriteTx<'a> {
    connection: &'a rusqlite::Connection,
}

impl<'a> WriteTx<'a> {
    fn new(connection: &'a rusqlite::Connection, altered: Arc<AtomicBool>) -> Result<WriteTx<'a>> {
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            // A table in temp would swallow the writes of later closures to one of the same name; a pragma changes what
            // their statements mean.
            let setting = matches!(context.action, AuthAction::Pragma { pragma_value: Some(_), .. });
            if setting || context.database_name == Some("temp") {
                altered.store(true, Ordering::Relaxed);
            }
            match context.action {
                AuthAction::Transaction { .. } | AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
                    Authorization::Deny
                }
                _ => Authorization::Allow,
            }
        }))?;
        let guarded = WriteTx { connection };
        // Called only outside of our transaction, which nobody can commit while this is set; `true` makes it a rollback.
        connection.commit_hook(Some(|| true))?;
        Ok(guarded)
    }
}

impl Drop for WriteTx<'_> {
    fn drop(&mut self) {
        let none: Option<fn(AuthContext<'_>) -> Authorization> = None;
        // Fails only for connections that rusqlite does not own.
        let _ = self.connection.authorizer(none);
        let none: Option<fn() -> bool> = None;
        let _ = self.connection.commit_hook(none);
    }
}

impl Deref for WriteTx<'_> {
    type Target = rusqlite::Connection;

    fn deref(&self) -> &rusqlite::Connection {
        self.connection
    }
}
