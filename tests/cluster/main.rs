//! Clusters of cores in memory: transcripts to read, one test per known trap of the library underneath, and random
//! schedules checked against Raft's promises.
//!
//! Deliberately absent: threads, clocks, sockets and files. Whatever happens here is in the test's text or its seed.

mod harness;
mod random;
mod schedule;
mod transcript;
mod traps;
