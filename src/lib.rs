//! Shoal: SQLite in your process, on three machines.
pub mod catalogue;
pub mod entry;
pub mod fields;
pub mod found;
pub mod identity;
pub mod log;
pub mod net;
pub mod raft;
pub mod types;
