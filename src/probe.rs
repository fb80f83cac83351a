//! Moments of a node's work that leave no trace outside its memory, told to whoever wants to kill it there, or to let a
//! mistake happen there.
//!
//! Appends, syncs and recovery are file calls with labels, which a test watches through its own `Env`. Applying and
//! publishing touch no file: they are told here. Without a watcher this costs one load each.
//!
//! Deliberately absent: any influence on the node. A watcher that does not return ends the process; one that panics is a mistake
//! of whoever called it, and a test of what a node does about that.

use std::sync::OnceLock;

/// What the node is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// A transaction of another node, or of an earlier life, is applied.
    Apply,
    /// A transaction of this process is committed by Raft, and SQLite has not shown it yet.
    Publish,
    /// A turn of the engine that let proposals of this process into the log: they are on their way to the disk, and nobody
    /// has been told.
    Enter,
}

static WATCHER: OnceLock<fn(Phase, bool)> = OnceLock::new();

/// From now on `watcher(phase, true)` is called when a phase begins, `watcher(phase, false)` when it has ended. The first
/// watcher of a process stays.
pub fn watch(watcher: fn(Phase, bool)) {
    let _ = WATCHER.set(watcher);
}

pub(crate) fn begin(phase: Phase) {
    if let Some(watcher) = WATCHER.get() {
        watcher(phase, true);
    }
}

pub(crate) fn end(phase: Phase) {
    if let Some(watcher) = WATCHER.get() {
        watcher(phase, false);
    }
}
