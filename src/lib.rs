//! Shoal: SQLite in your process, on three machines.
pub mod raft;
pub mod types;
