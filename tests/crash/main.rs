//! Nodes as processes that are killed.

mod common;
mod kills;
mod steps;

#[allow(dead_code, reason = "shared with the program, which uses the rest")]
#[path = "../../src/bin/shoal/harness/mod.rs"]
mod harness;
