//! Shoal: SQLite in your process, on three machines.
#![deny(unsafe_code)]

mod admin;
mod apply;
mod boot;
pub mod catalogue;
mod config;
mod connection;
mod databases;
mod db;
mod engine;
pub mod entry;
pub mod error;
mod events;
pub mod fields;
pub mod found;
pub mod identity;
mod inbound;
pub mod log;
pub mod net;
mod node;
mod pending;
pub mod raft;
mod replicate;
mod shared;
mod signal;
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub mod sim;
mod status;
pub mod types;

pub use rusqlite;

pub use crate::connection::{ConnectOptions, Connection, ReadLevel, WriteTx};
pub use crate::db::{AutoVacuum, Builder, CreateOptions, Member, Node};
pub use crate::error::{Error, ErrorKind, Outcome, Result, leader_hint, outcome, outcome_of_code};
pub use crate::events::Event;
pub use crate::status::{DatabaseStatus, PeerStatus, Status};
