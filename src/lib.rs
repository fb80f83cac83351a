//! Shoal: SQLite in your process, on three machines.
pub mod catalogue;
pub mod entry;
pub mod fields;
pub mod found;
pub mod identity;
pub mod net;
pub mod types;
