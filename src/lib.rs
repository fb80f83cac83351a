//! Shoal: SQLite in your process, on three machines.
pub mod types;
