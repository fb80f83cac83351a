//! Transactions in parts that were given up, until the entry that says so is applied: it is proposed again and again.
//!
//! As long as a split is open on the nodes, they keep its parts, the log is kept from its first part on, and a snapshot begins before
//! it. Whoever proposed the parts led then, and an entry of a later term ends the split by itself; so this is for as long as
//! this node leads. A leader that is about to hand over refuses everything, and may lead on afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::catalogue::DatabaseId;

/// How long the entry has to be applied before it is proposed once more.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Splits of this node that were given up.
#[derive(Default)]
pub(crate) struct Unended {
    splits: Mutex<BTreeMap<u64, Split>>,
}

struct Split {
    database: DatabaseId,
    /// When the entry is due the next time.
    due: Duration,
}

impl Unended {
    /// This split is given up, and the entry that says so is proposed now.
    pub(crate) fn add(&self, split: u64, database: DatabaseId, now: Duration) {
        self.splits.lock().insert(split, Split { database, due: now + AGAIN_AFTER });
    }

    /// The entry is applied.
    pub(crate) fn ended(&self, split: u64) {
        self.splits.lock().remove(&split);
    }

    /// Those whose entry is to be proposed again now.
    pub(crate) fn due(&self, now: Duration) -> Vec<(u64, DatabaseId)> {
        let mut splits = self.splits.lock();
        let due = splits.iter_mut().filter(|(_, split)| split.due <= now);
        due.map(|(number, split)| {
            split.due = now + AGAIN_AFTER;
            (*number, split.database)
        })
        .collect()
    }

    /// This node does not lead any more.
    pub(crate) fn clear(&self) {
        self.splits.lock().clear();
    }
}
