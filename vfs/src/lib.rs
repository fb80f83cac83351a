//! The VFS of Shoal: SQLite's file interface, with the transactions of a database handed to a replicator.
//!
//! SQLite asks a VFS for files, locks and shared memory. This one gives it, for each database, a main file that it may
//! only read, a `-wal` that exists in memory, and a wal-index shared by the connections of this process. When SQLite
//! writes the page of a commit frame, the whole transaction goes to a [`replicator::Replicator`], and the write returns
//! once that has decided. Transactions that other nodes committed come in through [`database::Database::apply`].
//!
//! ```text
//! pure                                            shared state                  SQLite's side
//! page, transaction, error, genesis, capture,     shm, spill, hashmap, database       conn, pragma, ffi
//! lock, wal/{header,frame,checksum,index,store}
//! ```
//!
//! What we promise to SQLite: reads see one commit, whole; a commit that failed left nothing behind; a commit that
//! succeeded is published. What we promise to the replicator: every commit is captured, with its base position and the
//! checksum that the database will have; nothing is published that was not accepted.
//!
//! `unsafe` is in `ffi.rs` (SQLite's pointers), `shm.rs` (the mapping of the wal-index), `map.rs` (maps of files) and `ext/`
//! (calls of the system that no safe crate offers), nowhere else.
//!
//! Deliberately absent: consensus, the log, the network. `tests/layers.rs` holds that no file here names a crate of those.

#[cfg(all(shoal_planted, not(any(test, feature = "sim"))))]
compile_error!("a VFS with planted mistakes is for the simulation only: it needs the feature `sim`");

pub mod buffer;
pub mod capture;
mod conn;
pub mod database;
pub mod doublewrite;
pub mod env;
pub mod error;
mod ext;
pub mod ffi;
pub mod files;
pub mod genesis;
pub mod hashmap;
pub mod lock;
mod map;
pub mod mapfile;
pub mod page;
#[doc(hidden)]
pub mod planted;
mod pragma;
pub mod replicator;
pub mod shm;
pub mod spill;
pub mod staging;
pub mod transaction;
pub mod view;
pub mod wal;

pub use database::Database;
pub use ext::heap::give_back_freed_memory;
pub use ffi::Registration;
