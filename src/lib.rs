#![doc = include_str!("../README.md")]
//!
//! # Where to go from here
//!
//! [`Node`] is the beginning, [`Connection`] what SQL runs on, [`Error`] and [`outcome`] what to ask when something fails.
//! The modules that are public besides are the inside: for tests, fuzzing and those who read the code. DESIGN.md
//! has the plan of them all, and is the module `design` of this documentation.
#![deny(unsafe_code)]

#[cfg(all(shoal_planted, not(any(test, feature = "sim"))))]
compile_error!("a program with planted mistakes is for the simulation only: it needs the feature `sim`");

mod admin;
mod appender;
mod apply;
mod backup;
mod boot;
pub mod catalogue;
#[doc(hidden)]
pub mod client;
mod commit_notice;
mod config;
mod connection;
mod databases;
mod db;
mod driver;
mod engine;
pub mod entry;
pub mod error;
mod events;
mod every;
pub mod fields;
pub mod found;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzzed;
mod heard;
mod history;
pub mod identity;
mod inbound;
mod inbox;
pub mod log;
mod malformed;
mod members;
mod moves;
pub mod net;
mod node;
mod pending;
#[doc(hidden)]
pub mod planted;
mod priority;
#[doc(hidden)]
pub mod probe;
pub mod raft;
mod receipt;
pub mod recover;
pub mod registry;
mod replicate;
mod session;
mod shared;
mod signal;
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub mod sim;
mod snapshot;
mod socket;
mod splits;
mod status;
pub mod types;
mod unended;
mod upkeep;

/// DESIGN.md: guarantees, the life of a write, invariants and their tests, the code map.
#[cfg(doc)]
pub mod design {
    #![doc = include_str!("../DESIGN.md")]
}

pub use rusqlite;
pub use shoaldb_vfs::give_back_freed_memory;
pub use shoaldb_vfs::page::PageNo;
pub use shoaldb_vfs::view::{LentPage, ReadView, ViewError};

pub use crate::connection::{ConnectOptions, Connection, ReadLevel, WriteTx};
pub use crate::db::{AutoVacuum, Builder, CreateOptions, Member, Node};
pub use crate::error::{Error, ErrorKind, Outcome, Result, leader_hint, outcome, outcome_of_code};
pub use crate::events::{Event, Phase, Progress};
pub use crate::receipt::{BadReceipt, Receipt, ReceiptOutcome, Unsettled};
pub use crate::status::{Bounded, DatabaseStatus, Lending, MemberStatus, PeerStatus, SnapshotStatus, Status};
pub use crate::types::Usage;
