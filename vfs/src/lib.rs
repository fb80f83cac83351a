//! The VFS of Shoal.
pub mod env;
pub mod page;
pub mod shm;
pub mod transaction;
pub mod wal;
