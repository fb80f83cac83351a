//! Calls of the operating system that no safe crate of ours offers. One file per call, each a small unsafe room.

pub(crate) mod heap;
pub(crate) mod ofd;
pub(crate) mod writeback;
