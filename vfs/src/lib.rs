//! The VFS of Shoal.
pub mod env;
pub mod page;
pub mod transaction;
