//! Nodes as processes that are killed.

#[allow(dead_code, reason = "shared with the power tests, which use the rest")]
mod common;
mod kills;
mod steps;

#[allow(dead_code, reason = "shared with the program, which uses the rest")]
#[path = "../../src/bin/shoal/harness/mod.rs"]
mod harness;
