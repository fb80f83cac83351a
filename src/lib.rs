//! Shoal: SQLite in your process, on three machines.
pub mod log;
pub mod types;
