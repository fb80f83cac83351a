//! Views that are lent to other nodes: which there are, to whom, and for how long.
//!
//! ```text
//! a lease     one node may fetch from one view; renewed by whatever it asks of it, over LEASE after the last time
//! reuse       a view is lent to another node as well if that node could go on from it with the log: it is not older than
//!             where the log begins, goes beyond what the node has, and knows the node as a member
//! closing     a view without a lease goes when there is a newer one, or after IDLE; any view goes when it is
//!             `snapshot_read_view_close_timeout` old, or when the WALs that it keeps from being checkpointed have more than
//!             `snapshot_wal_pin_max` bytes, or when the log is dropped beyond its entry
//! ```
//!
//! **Pins.** Who has installed a snapshot still needs the log behind it, until it has said to the leader that its log goes so
//! far: between its last word about the view and that answer there is no lease. And who fetches from another node has no lease
//! here, although it is this log that it will go on by. For both the entry is *pinned*, over LEASE after the last thing that was
//! heard of it, and until the leader has its acknowledgement. One pin for a node: it installs one snapshot.
//!
//! A view may be of one database only, for a node whose copy of it is damaged. It is lent to such nodes and goes with its
//! last lease; it holds back no log, since they have theirs.
//!
//! Closing costs nothing but time: whoever fetched keeps what it has, and goes on with another view.
//!
//! Leases are kept by node, not counted, so that one that is given back twice, or never, counts once.
//!
//! Deliberately absent: how a view is opened, and what is sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shoaldb_vfs::view::ReadView;

use super::object::{Listed, ViewId};
use crate::catalogue::DatabaseId;
use crate::planted::{self, Bug};
use crate::types::{EntryId, LogIndex, NodeId};

/// How long a node may be silent before its lease ends.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
/// How long a view without a lease stays, for others that may need it.
const IDLE: Duration = Duration::from_secs(60);
/// Objects that are made at the same time, for all nodes together.
const SENDERS: usize = 4;

/// What a view consists of.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) at: EntryId,
    /// Everybody who is named in its membership.
    pub(crate) members: Vec<NodeId>,
    /// Object 0.
    pub(crate) manifest: Vec<u8>,
    pub(crate) databases: BTreeMap<DatabaseId, ReadView>,
    /// If it is of one database only, for a node whose copy is damaged: which, and what it is.
    pub(crate) only: Option<Listed>,
}

#[derive(Debug)]
struct Lent {
    id: ViewId,
    cut: Arc<Cut>,
    leases: BTreeMap<NodeId, Duration>,
    /// What those who fetch say of their progress: bytes that are in place, bytes in all.
    progress: BTreeMap<NodeId, (u64, u64)>,
    opened: Duration,
    used: Duration,
}

/// When views are closed that somebody uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) age: Duration,
    pub(crate) pinned_bytes: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Views {
    all: Mutex<Vec<Lent>>,
    pins: Mutex<Pins>,
    sending: AtomicUsize,
    opened: AtomicU64,
    capped: AtomicU64,
    outgrown: AtomicU64,
}

/// Entries that the log is kept from although nobody has a lease of them. No other lock is taken under theirs.
#[derive(Debug, Default)]
struct Pins {
    /// The entry that a node goes on behind, and until when it is believed to.
    of: BTreeMap<NodeId, (LogIndex, Duration)>,
    /// Where the log begins, or is about to: a pin before it would keep nothing.
    start: LogIndex,
}

/// The right to make one object.
pub(crate) struct Sending<'a>(&'a AtomicUsize);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Views {
    /// Lends `to` a view that is there already, if one will do; with `true` if it did not have that one.
    pub(crate) fn reuse(
        &self,
        to: NodeId,
        have: LogIndex,
        log_start: LogIndex,
        now: Duration,
    ) -> Option<(ViewId, EntryId, bool)> {
        let mut all = self.all.lock();
        let fits = |lent: &&mut Lent| {
            let at = lent.cut.at.index;
            let whole = lent.cut.only.is_none();
            let suits = whole && at > have && lent.cut.members.contains(&to) && lent.is_open();
            let outgrown = suits && at < log_start;
            self.outgrown.fetch_add(u64::from(outgrown), Ordering::Relaxed);
            suits && (!outgrown || planted::is(Bug::ReuseStaleView))
        };
        // The newest: it is the last one that was opened.
        let lent = all.iter_mut().rev().find(fits)?;
        let is_new = lent.leases.insert(to, now + LEASE).is_none();
        lent.used = now;
        Some((lent.id, lent.cut.at, is_new))
    }

    /// Lends `to` a view of one database that is there already, if it is of `beyond` or a later entry.
    pub(crate) fn reuse_one(
        &self,
        to: NodeId,
        database: DatabaseId,
        beyond: LogIndex,
        now: Duration,
    ) -> Option<(ViewId, EntryId, Listed)> {
        let mut all = self.all.lock();
        let fits = |lent: &&mut Lent| {
            let of_it = lent.cut.only.as_ref().is_some_and(|only| only.id == database);
            of_it && lent.cut.at.index >= beyond && lent.cut.members.contains(&to) && lent.is_open()
        };
        let lent = all.iter_mut().rev().find(fits)?;
        let listed = lent.cut.only.clone()?;
        lent.leases.insert(to, now + LEASE);
        lent.used = now;
        Some((lent.id, lent.cut.at, listed))
    }

    /// Lends `to` a view that was just opened. Older ones that nobody uses are closed. `session` is random for each start of
    /// the node.
    pub(crate) fn lend(&self, session: u64, cut: Cut, to: NodeId, now: Duration) -> ViewId {
        let id = ViewId(session.wrapping_add(self.opened.fetch_add(1, Ordering::Relaxed)));
        let mut all = self.all.lock();
        all.retain(|lent| !lent.leases.is_empty());
        let leases = BTreeMap::from([(to, now + LEASE)]);
        all.push(Lent { id, cut: Arc::new(cut), leases, progress: BTreeMap::new(), opened: now, used: now });
        id
    }

    /// A view that `peer` has a lease of, which is renewed.
    pub(crate) fn renew(&self, id: ViewId, peer: NodeId, now: Duration) -> Option<Arc<Cut>> {
        let mut all = self.all.lock();
        let lent = all.iter_mut().find(|lent| lent.id == id && lent.is_open())?;
        let lease = lent.leases.get_mut(&peer)?;
        *lease = now + LEASE;
        lent.used = now;
        Some(lent.cut.clone())
    }

    /// `peer` says how far it is.
    pub(crate) fn note_progress(&self, id: ViewId, peer: NodeId, progress: (u64, u64)) {
        if let Some(lent) = self.all.lock().iter_mut().find(|lent| lent.id == id) {
            lent.progress.insert(peer, progress);
        }
    }

    /// How far a node said that it is with what it fetches from here: bytes that are in place, bytes in all.
    pub(crate) fn progress(&self, peer: NodeId) -> Option<(u64, u64)> {
        let all = self.all.lock();
        let lent = all.iter().rev().find(|lent| lent.leases.contains_key(&peer))?;
        lent.progress.get(&peer).copied()
    }

    /// The entry of a view of everything that `peer` has a lease of.
    pub(crate) fn leased(&self, id: ViewId, peer: NodeId) -> Option<EntryId> {
        let all = self.all.lock();
        let lent = all.iter().find(|lent| lent.id == id && lent.cut.only.is_none())?;
        lent.leases.contains_key(&peer).then_some(lent.cut.at)
    }

    /// `peer` installs a snapshot of this entry, or has: the log is kept from there on, if it has not begun behind it.
    pub(crate) fn pin(&self, peer: NodeId, index: LogIndex, now: Duration) {
        let mut pins = self.pins.lock();
        if index >= pins.start {
            pins.of.insert(peer, (index, now + LEASE));
        }
    }

    /// The log begins at `start`, or is about to: nothing before is kept.
    pub(crate) fn drop_pins_before(&self, start: LogIndex) {
        let mut pins = self.pins.lock();
        pins.start = pins.start.max(start);
        pins.of.retain(|_, (index, _)| *index >= start);
    }

    /// `peer` has said to this leader that its log goes so far. What it needs from there on, it keeps by saying so.
    pub(crate) fn on_acknowledged(&self, peer: NodeId, index: LogIndex) {
        let mut pins = self.pins.lock();
        if pins.of.get(&peer).is_some_and(|(pinned, _)| *pinned <= index) {
            pins.of.remove(&peer);
        }
    }

    /// `peer` is done with a view. The entry that it is of, if there was such a lease of a view of everything.
    pub(crate) fn give_back(&self, id: ViewId, peer: NodeId) -> Option<EntryId> {
        let mut all = self.all.lock();
        let newest = newest(&all);
        let at = all.iter_mut().find(|lent| lent.id == id)?;
        let there = at.leases.remove(&peer).filter(|_| at.cut.only.is_none()).map(|_| at.cut.at);
        at.progress.remove(&peer);
        all.retain(|lent| !lent.leases.is_empty() || Some(lent.id) == newest);
        there
    }

    /// Closes what is over; how many.
    pub(crate) fn sweep(&self, now: Duration, limits: Limits, is_member: impl Fn(NodeId) -> bool) -> usize {
        self.pins.lock().of.retain(|peer, (_, ends)| *ends > now && is_member(*peer));
        let mut all = self.all.lock();
        let (before, newest) = (all.len(), newest(&all));
        all.retain_mut(|lent| {
            lent.leases.retain(|peer, ends| *ends > now && is_member(*peer));
            let pinned: u64 = lent.cut.databases.values().map(ReadView::wal_bytes).sum();
            let unused = lent.leases.is_empty() && (Some(lent.id) != newest || now >= lent.used + IDLE);
            let capped = now >= lent.opened + limits.age || pinned > limits.pinned_bytes;
            self.capped.fetch_add(u64::from(capped && !lent.leases.is_empty()), Ordering::Relaxed);
            lent.is_open() && !unused && !capped
        });
        before - all.len()
    }

    /// Closes the views of entries before `start`, where the log is about to begin: nobody could go on from them.
    pub(crate) fn close_before(&self, start: LogIndex) {
        self.drop_pins_before(start);
        self.all.lock().retain(|lent| {
            let passed = lent.cut.only.is_none() && lent.cut.at.index < start;
            self.capped.fetch_add(u64::from(passed && !lent.leases.is_empty()), Ordering::Relaxed);
            !passed
        });
    }

    /// The first entry of those that lent views are of, or that are pinned: whoever fetches or installs one needs the log from
    /// there on.
    pub(crate) fn floor(&self) -> Option<LogIndex> {
        let held = |lent: &&Lent| !lent.leases.is_empty() && lent.cut.only.is_none();
        // Leases first: a node that gives one back is pinned before.
        let lent = self.all.lock().iter().filter(held).map(|lent| lent.cut.at.index).min();
        let pinned = self.pins.lock().of.values().map(|(index, _)| *index).min();
        lent.into_iter().chain(pinned).min()
    }

    /// How many views were opened in this life of the node.
    #[cfg(test)]
    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// How many views are open, and how many leases of them there are.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let all = self.all.lock();
        (all.len(), all.iter().map(|lent| lent.leases.len()).sum())
    }

    /// How many views were closed over their age or what they pinned, although somebody fetched from them.
    pub(crate) fn capped(&self) -> u64 {
        self.capped.load(Ordering::Relaxed)
    }

    /// How often a view was not lent to a node that it would have suited, because the log begins behind it.
    pub(crate) fn outgrown(&self) -> u64 {
        self.outgrown.load(Ordering::Relaxed)
    }

    /// Closes all of them: the node stops.
    pub(crate) fn close_all(&self) {
        self.all.lock().clear();
        self.pins.lock().of.clear();
    }

    /// May an object be made now?
    pub(crate) fn begin_sending(&self) -> Option<Sending<'_>> {
        if self.sending.fetch_add(1, Ordering::AcqRel) >= SENDERS {
            self.sending.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Sending(&self.sending))
    }
}

/// The view that stays although nobody uses it. One of a single database is of use to nobody else.
fn newest(all: &[Lent]) -> Option<ViewId> {
    all.iter().rev().find(|lent| lent.cut.only.is_none()).map(|lent| lent.id)
}

impl Lent {
    fn is_open(&self) -> bool {
        self.cut.databases.values().all(ReadView::is_open)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if planted::is(Bug::SkipFinalize) {
            std::mem::forget(std::mem::take(&mut self.databases));
        }
        // Others may have clones of a view; what this node lent ends here.
        self.databases.values().for_each(ReadView::close);
    }
}

#[cfg(test)]
mod tests;
