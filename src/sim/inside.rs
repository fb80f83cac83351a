//! What happens inside a call of the VFS: it fails, or others go on in the middle of it.
//!
//! ```text
//! label           what may happen there
//! wal.write       the call fails; the world moves on
//! wal.sync        the call fails, behind the commit frame
//! write.unlock    the world moves on between the end of a transaction and the return of WRITE
//! apply.publish   writers that keep their transactions open roll back while an apply is half done
//! publish.wait    the run has failed: entries are handed to the applier when all before them is shown, and an event in which
//!                 one waits for that never ends
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use shoaldb_vfs::database::FaultHook;

use super::patient::OpenWriter;
use super::world::{Pumper, World};
use crate::signal::Pump;

/// Interruptions that may lie above each other.
const DEPTH: u64 = 2;
/// The longest interruption, in events.
const EVENTS: u64 = 100;

/// What one node's calls inside the VFS meet. Outside the world's lock: such calls come under it and without it.
#[derive(Default)]
pub(super) struct Inside {
    /// Open transactions of patient writers.
    pub(super) writers: Mutex<Vec<OpenWriter>>,
    /// The next apply ends these transactions half way.
    pub(super) disturb_apply: AtomicBool,
    /// Writers that were ended so; nobody was told of it yet.
    pub(super) rolled_back: Mutex<Vec<u64>>,
    pub(super) fail_sync: AtomicBool,
    /// Writes until one fails; 0: none does.
    pub(super) fail_write: AtomicU64,
    /// How many calls have failed for these two.
    struck: AtomicU64,
    depth: AtomicU64,
}

/// The hook of one node's databases.
pub(super) fn hook(world: &Weak<World>, inside: &Arc<Inside>) -> FaultHook {
    let (world, inside) = (world.clone(), inside.clone());
    Arc::new(move |label| match label {
        "wal.sync" => inside.strikes(inside.fail_sync.load(Ordering::Relaxed)),
        "wal.write" => {
            interrupt(&world, &inside, 1);
            inside.strikes(inside.is_write_to_fail())
        }
        "write.unlock" => {
            // Once in a transaction, so oftener.
            interrupt(&world, &inside, 8);
            false
        }
        "apply.publish" => {
            inside.roll_back();
            false
        }
        // Caught where the event began, and a failure of the run.
        "publish.wait" => panic!("the applier came to an entry before a transaction that was accepted here is shown"),
        _ => false,
    })
}

impl Inside {
    /// How many calls of SQLite's have failed in this process, since they were made to.
    pub(super) fn failures(&self) -> u64 {
        self.struck.load(Ordering::Relaxed)
    }

    fn strikes(&self, fails: bool) -> bool {
        self.struck.fetch_add(u64::from(fails), Ordering::Relaxed);
        fails
    }

    fn is_write_to_fail(&self) -> bool {
        let left = self.fail_write.load(Ordering::Relaxed);
        self.fail_write.store(left.saturating_sub(1), Ordering::Relaxed);
        left == 1
    }

    fn roll_back(&self) {
        if !self.disturb_apply.swap(false, Ordering::Relaxed) {
            return;
        }
        let writers = std::mem::take(&mut *self.writers.lock());
        for writer in writers {
            let unique = writer.roll_back();
            self.rolled_back.lock().push(unique);
        }
    }
}

/// Others go on, in the middle of a call. Not while the world's lock is taken: then this call is a part of an event.
fn interrupt(world: &Weak<World>, inside: &Inside, times: u64) {
    let Some(alive) = world.upgrade() else { return };
    let events = match alive.state.try_lock() {
        Some(mut state) if inside.depth.load(Ordering::Relaxed) < DEPTH => {
            let interruptions = state.shape.interruptions * times;
            if !state.stormy || !state.chance(interruptions) {
                return;
            }
            state.count("calls interrupted by others");
            1 + state.dice.below(EVENTS)
        }
        _ => return,
    };
    inside.depth.fetch_add(1, Ordering::Relaxed);
    (0..events).for_each(|_| Pumper(world.clone()).step());
    inside.depth.fetch_sub(1, Ordering::Relaxed);
}
