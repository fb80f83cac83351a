//! Views that are lent to other nodes: which there are, to whom, and for how long.
//!
//! ```text
//! a lease     one node may fetch from one view; renewed by whatever it asks of it, over LEASE after the last time
//! reuse       a view is lent to another node as well if that node could go on from it with the log: it is not older than
//!             where the log begins, goes beyond what the node has and shows, and knows the node as a member
//! closing     a view without a lease goes when there is a newer one, or after IDLE, or when the log is beyond `log_limit`: what
//!             cannot be checkpointed while it is open cannot leave the log either. It goes at once when the last one that had it
//!             has given it up: that one asks for a view again soon, and if it were lent this one each time, it would be idle
//!             never, and nothing checkpointed. Any view goes when it is
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
//! **Several that fetch from one view** at about the same time want the same objects, in the same order if they began with nothing.
//! What one of them was sent stays on a shelf for the others (`shelf.rs`), which has room for 16 MiB. So they are kept together:
//! one that was sent AHEAD objects more than another one is told to wait a moment, if that other one has asked a moment ago. What
//! this may cost is bounded: HELD_AT_FIRST, and HELD_FOR_EACH object that was taken from the shelf. So one that is slow for good,
//! or needs other things, is soon left behind, and nobody waits for who does not ask.
//!
//! Leases are kept by node, not counted, so that one that is given back twice, or never, counts once.
//!
//! **A transfer** is one node and one entry, as it is on the other side (`fetch.rs`). Who comes back to the same entry, after its
//! lease ended, it gave up or it was started again, goes on with what it has: the same transfer, and its beginning was told. It is over
//! when that node has installed it. One that needs the same entry again after that, since it lost its disk, begins another one.
//!
//! Deliberately absent: how a view is opened, and what is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shoaldb_vfs::view::ReadView;

use super::object::{Listed, Object, Outcome, ViewId};
use super::shelf::{Found, PLACES, Shelf};
use crate::catalogue::DatabaseId;
use crate::planted::{self, Bug};
use crate::types::{EntryId, LogIndex, NodeId};

/// How long a node may be silent before its lease ends.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
/// How long a view without a lease stays, for others that may need it.
const IDLE: Duration = Duration::from_secs(60);
/// Objects that are made at the same time, for all nodes together.
const SENDERS: usize = 4;
/// How many objects more than another one a node may be sent. What that one wants next is still on the shelf then: there is room
/// for as many again, for what others are sent that it does not want, and for those that were asked for ahead of time, which come in
/// another order when one of them has to wait.
const AHEAD: u64 = PLACES as u64 / 2;
/// Who is further behind is not waited for: it has a way of its own to go before it finds anything on the shelf.
const FAR: u64 = 4 * PLACES as u64;
/// Who did not ask for that long is not waited for: it is writing to a slow disk, or has what it needs.
const ASKED: Duration = Duration::from_millis(600);
/// How long one that is ahead waits before it asks again.
const HOLD: Duration = Duration::from_millis(5);
/// How long it does so in all before anything came of it: as long as some tens of objects take, by which the others began later.
const HELD_AT_FIRST: Duration = Duration::from_millis(500);
/// How long it does so for one object: so that one that asks on and is not served for that does not stop the other altogether.
const HELD_FOR_ONE: Duration = Duration::from_millis(600);
/// And more for each object that was taken from the shelf: about as long as an object takes.
const HELD_FOR_EACH: Duration = Duration::from_millis(2);
/// When one should ask again for an object that somebody makes.
const MADE_SOON: Duration = Duration::from_millis(2);

/// What a view consists of.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) at: EntryId,
    /// The last entry that its databases may have: `at`, or later if a transaction was open in parts, or if the files of the node that
    /// lends were ahead of what it knew to be committed.
    pub(crate) reach: LogIndex,
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
    /// What those who fetch were sent.
    fetchers: BTreeMap<NodeId, Fetcher>,
    /// How many objects of it were taken from the shelf.
    from_shelf: u32,
    opened: Duration,
    used: Duration,
}

/// One node that fetches from one view.
#[derive(Clone, Copy, Default, Debug)]
struct Fetcher {
    /// Objects that it was sent.
    objects: u64,
    /// When it asked for the last one.
    asked: Duration,
    /// How long it was told to wait for others, in all, and for the object that it wants now.
    held: Duration,
    held_for_this: Duration,
    /// Up to when that is counted already. It has several questions on their way, and what they are all told to wait passes once: a
    /// question that comes before this moment is told to wait as well, and nothing is added for it.
    held_until: Duration,
}

/// What becomes of a question for an object.
#[derive(Debug)]
pub(crate) enum Turn<'a> {
    /// It was made for another one.
    There(Arc<Vec<u8>>),
    /// It is to be asked again.
    Wait(Duration),
    /// It is to be made, and put on the shelf if there is a place for it.
    Make(Option<Place<'a>>),
}

/// A place on the shelf for an object that is made now. Without an object it comes to nothing when it is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    views: &'a Views,
    view: ViewId,
    object: &'a Object,
}

impl Place<'_> {
    /// It was made.
    pub(crate) fn put(self, object: &[u8]) {
        let bytes = Arc::new(object.to_vec());
        let mut books = self.views.books.lock();
        if books.all.iter().any(|lent| lent.id == self.view && lent.is_shared()) {
            books.shelf.put(self.view, self.object, bytes);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.views.books.lock().shelf.unmark(self.view, self.object);
    }
}

/// When views are closed that somebody uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The log is beyond its limit.
    pub(crate) is_pressed: bool,
    pub(crate) age: Duration,
    pub(crate) pinned_bytes: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Views {
    books: Mutex<Books>,
    sending: AtomicUsize,
    opened: AtomicU64,
    capped: AtomicU64,
    outgrown: AtomicU64,
    made: AtomicU64,
    sent: AtomicU64,
}

#[derive(Debug, Default)]
struct Books {
    all: Vec<Lent>,
    /// The last view of everything whose lease a node lost, by silence or with the view: it may have installed it all the same.
    lost: BTreeMap<NodeId, (ViewId, EntryId)>,
    /// Transfers that were told of and are not over: entries that nothing can be lent of any more are none of them.
    begun: BTreeMap<NodeId, BTreeSet<LogIndex>>,
    /// The entry that a node goes on behind, and until when it is believed to.
    pins: BTreeMap<NodeId, (LogIndex, Duration)>,
    /// Where the log begins, or is about to: a pin before it would keep nothing.
    start: LogIndex,
    /// Objects of views that several fetch from.
    shelf: Shelf,
}

impl Books {
    /// Leases end that were not given back.
    fn lose(&mut self, leases: Vec<(NodeId, ViewId, EntryId)>) {
        self.lost.extend(leases.into_iter().map(|(peer, view, at)| (peer, (view, at))));
    }

    /// Views or leases went, and with them what is on the shelf for nobody any more.
    fn tidy(&mut self) {
        let all = &self.all;
        self.shelf.keep(|view| all.iter().any(|lent| lent.id == view && lent.is_shared()));
    }
}

/// The right to make one object.
pub(crate) struct Sending<'a>(&'a AtomicUsize);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Views {
    /// Lends `to`, whose log has `have`, a view that is there already, if one will do: one that goes beyond that, and shows `least`.
    pub(crate) fn reuse(
        &self,
        to: NodeId,
        (have, least): (LogIndex, LogIndex),
        log_start: LogIndex,
        now: Duration,
    ) -> Option<(ViewId, EntryId)> {
        let all = &mut self.books.lock().all;
        let fits = |lent: &&mut Lent| {
            let at = lent.cut.at.index;
            let whole = lent.cut.only.is_none();
            let further = at > have && lent.cut.reach >= least;
            let suits = whole && further && lent.cut.members.contains(&to) && lent.is_open();
            let outgrown = suits && at < log_start;
            self.outgrown.fetch_add(u64::from(outgrown), Ordering::Relaxed);
            suits && (!outgrown || planted::is(Bug::ReuseStaleView))
        };
        // The newest: it is the last one that was opened.
        let lent = all.iter_mut().rev().find(fits)?;
        lent.leases.insert(to, now + LEASE);
        lent.fetchers.remove(&to);
        lent.used = now;
        Some((lent.id, lent.cut.at))
    }

    /// Lends `to` a view of one database that is there already, if it is of `beyond` or a later entry.
    pub(crate) fn reuse_one(
        &self,
        to: NodeId,
        database: DatabaseId,
        beyond: LogIndex,
        now: Duration,
    ) -> Option<(ViewId, EntryId, Listed)> {
        let all = &mut self.books.lock().all;
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
        let all = &mut self.books.lock().all;
        all.retain(|lent| !lent.leases.is_empty());
        let leases = BTreeMap::from([(to, now + LEASE)]);
        let (progress, fetchers) = (BTreeMap::new(), BTreeMap::new());
        all.push(Lent { id, cut: Arc::new(cut), leases, progress, fetchers, from_shelf: 0, opened: now, used: now });
        id
    }

    /// `peer` was lent a view of this entry: whether another transfer begins with that.
    pub(crate) fn begins(&self, peer: NodeId, index: LogIndex) -> bool {
        self.books.lock().begun.entry(peer).or_default().insert(index)
    }

    /// A view that `peer` has a lease of, which is renewed.
    pub(crate) fn renew(&self, id: ViewId, peer: NodeId, now: Duration) -> Option<Arc<Cut>> {
        let all = &mut self.books.lock().all;
        let lent = all.iter_mut().find(|lent| lent.id == id && lent.is_open())?;
        let lease = lent.leases.get_mut(&peer)?;
        *lease = now + LEASE;
        lent.used = now;
        Some(lent.cut.clone())
    }

    /// `peer`, which has a lease, asks for an object.
    pub(crate) fn turn<'a>(&'a self, id: ViewId, peer: NodeId, object: &'a Object, now: Duration) -> Turn<'a> {
        let books = &mut *self.books.lock();
        let Some(lent) = books.all.iter_mut().find(|lent| lent.id == id) else { return Turn::Make(None) };
        let mut fetcher = lent.fetchers.get(&peer).copied().unwrap_or_default();
        fetcher.asked = now;
        // The manifest is in memory as it is.
        let shared = lent.is_shared() && *object != Object::Manifest;
        let turn = match shared.then(|| books.shelf.look(id, object, now)) {
            None => Turn::Make(None),
            Some(Found::There(answer)) => {
                lent.from_shelf = lent.from_shelf.saturating_add(1);
                Turn::There(answer)
            }
            Some(Found::InTheMaking) => Turn::Wait(MADE_SOON),
            Some(Found::Missing) if lent.is_ahead(peer, fetcher, now) => {
                // What it asked for at the same time waits at the same time.
                if now >= fetcher.held_until {
                    fetcher.held += HOLD;
                    fetcher.held_for_this += HOLD;
                    fetcher.held_until = now + HOLD;
                }
                Turn::Wait(HOLD)
            }
            Some(Found::Missing) => {
                books.shelf.mark(id, object, now);
                Turn::Make(Some(Place { views: self, view: id, object }))
            }
        };
        if !matches!(turn, Turn::Wait(_)) {
            fetcher.objects += 1;
            fetcher.held_for_this = Duration::ZERO;
        }
        lent.fetchers.insert(peer, fetcher);
        turn
    }

    /// `peer` says how far it is.
    pub(crate) fn note_progress(&self, id: ViewId, peer: NodeId, progress: (u64, u64)) {
        if let Some(lent) = self.books.lock().all.iter_mut().find(|lent| lent.id == id) {
            lent.progress.insert(peer, progress);
        }
    }

    /// How far a node said that it is with what it fetches from here: bytes that are in place, bytes in all.
    pub(crate) fn progress(&self, peer: NodeId) -> Option<(u64, u64)> {
        let all = &self.books.lock().all;
        let lent = all.iter().rev().find(|lent| lent.leases.contains_key(&peer))?;
        lent.progress.get(&peer).copied()
    }

    /// `peer` installs a snapshot of this entry, or has: the log is kept from there on, if it has not begun behind it.
    pub(crate) fn pin(&self, peer: NodeId, index: LogIndex, now: Duration) {
        let mut books = self.books.lock();
        if index >= books.start {
            books.pins.insert(peer, (index, now + LEASE));
        }
    }

    /// The log begins at `start`, or is about to: nothing before is kept.
    pub(crate) fn drop_pins_before(&self, start: LogIndex) {
        let mut books = self.books.lock();
        books.start = books.start.max(start);
        books.pins.retain(|_, (index, _)| *index >= start);
        books.begun.values_mut().for_each(|entries| entries.retain(|index| *index >= start));
    }

    /// `peer` has said to this leader that its log goes so far. What it needs from there on, it keeps by saying so.
    pub(crate) fn on_acknowledged(&self, peer: NodeId, index: LogIndex) {
        let mut books = self.books.lock();
        if books.pins.get(&peer).is_some_and(|(pinned, _)| *pinned <= index) {
            books.pins.remove(&peer);
        }
    }

    /// `peer` is done with a view. The entry that it is of, if it is one of everything that was lent to it: the first time only.
    pub(crate) fn give_back(&self, id: ViewId, peer: NodeId, outcome: Outcome, now: Duration) -> Option<EntryId> {
        let mut books = self.books.lock();
        let lost = books.lost.remove(&peer);
        let mut there = lost.filter(|(view, _)| *view == id).map(|(_, at)| at);
        if there.is_none() {
            books.lost.extend(lost.map(|lost| (peer, lost)));
        }
        let all = &mut books.all;
        let newest = newest(all);
        if let Some(lent) = all.iter_mut().find(|lent| lent.id == id) {
            let lease = lent.leases.remove(&peer).filter(|_| lent.cut.only.is_none());
            there = there.or(lease.map(|_| lent.cut.at));
            lent.progress.remove(&peer);
            lent.fetchers.remove(&peer);
            let given_up = there.is_some() && outcome == Outcome::GivenUp;
            let idles = |lent: &Lent| Some(lent.id) == newest && !(given_up && lent.id == id);
            all.retain(|lent| !lent.leases.is_empty() || idles(lent));
        }
        books.tidy();
        if let Some(at) = there.filter(|_| outcome == Outcome::Installed)
            && let Some(entries) = books.begun.get_mut(&peer)
        {
            entries.retain(|index| *index > at.index);
        }
        // Its log goes on behind it, and what says so to Raft may be late or lost.
        if let Some(at) = there.filter(|at| outcome == Outcome::Installed && at.index >= books.start) {
            books.pins.insert(peer, (at.index, now + LEASE));
        }
        there
    }

    /// Closes what is over; how many.
    pub(crate) fn sweep(&self, now: Duration, limits: Limits, is_member: impl Fn(NodeId) -> bool) -> usize {
        let mut books = self.books.lock();
        books.pins.retain(|peer, (_, ends)| *ends > now && is_member(*peer));
        let all = &mut books.all;
        let (before, newest, mut lost) = (all.len(), newest(all), Vec::new());
        all.retain_mut(|lent| {
            let over = |peer: &NodeId, ends: &Duration| *ends <= now || !is_member(*peer);
            let silent: Vec<NodeId> =
                lent.leases.iter().filter(|(peer, ends)| over(peer, ends)).map(|(peer, _)| *peer).collect();
            for peer in &silent {
                lent.leases.remove(peer);
                lent.fetchers.remove(peer);
            }
            lost.extend(lent.named(silent.iter()));
            let pinned: u64 = lent.cut.databases.values().map(ReadView::wal_bytes).sum();
            let useless = limits.is_pressed || Some(lent.id) != newest || now >= lent.used + IDLE;
            let unused = lent.leases.is_empty() && useless;
            let capped = now >= lent.opened + limits.age || pinned > limits.pinned_bytes;
            self.capped.fetch_add(u64::from(capped && !lent.leases.is_empty()), Ordering::Relaxed);
            let stays = lent.is_open() && !unused && !capped;
            if !stays {
                lost.extend(lent.named(lent.leases.keys()));
            }
            stays
        });
        let closed = before - all.len();
        books.tidy();
        books.lose(lost);
        books.lost.retain(|peer, _| is_member(*peer));
        books.begun.retain(|peer, entries| is_member(*peer) && !entries.is_empty());
        closed
    }

    /// Closes the views of entries before `start`, where the log is about to begin: nobody could go on from them.
    pub(crate) fn close_before(&self, start: LogIndex) {
        self.drop_pins_before(start);
        let mut books = self.books.lock();
        let mut lost = Vec::new();
        books.all.retain(|lent| {
            let passed = lent.cut.only.is_none() && lent.cut.at.index < start;
            self.capped.fetch_add(u64::from(passed && !lent.leases.is_empty()), Ordering::Relaxed);
            if passed {
                lost.extend(lent.named(lent.leases.keys()));
            }
            !passed
        });
        books.tidy();
        books.lose(lost);
    }

    /// The first entry of those that lent views are of, or that are pinned: whoever fetches or installs one needs the log from
    /// there on.
    pub(crate) fn floor(&self) -> Option<LogIndex> {
        let books = self.books.lock();
        let held = |lent: &&Lent| !lent.leases.is_empty() && lent.cut.only.is_none();
        let lent = books.all.iter().filter(held).map(|lent| lent.cut.at.index);
        lent.chain(books.pins.values().map(|(index, _)| *index)).min()
    }

    /// How many views were opened in this life of the node.
    #[cfg(test)]
    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Whether anybody is lent pages of the main files of all databases. What was copied for it needs no files, and one
    /// database, lent for a repair, is not all.
    pub(crate) fn lends_all_files(&self) -> bool {
        let lends = |lent: &Lent| {
            lent.cut.only.is_none() && lent.is_open() && lent.cut.databases.values().any(ReadView::keeps_gate_shut)
        };
        self.books.lock().all.iter().any(lends)
    }

    /// How many views are open, and how many leases of them there are.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let all = &self.books.lock().all;
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

    /// An object was sent, and made for that or not.
    pub(crate) fn note_sent(&self, bytes: usize, made: bool) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.made.fetch_add(if made { bytes as u64 } else { 0 }, Ordering::Relaxed);
    }

    /// Objects that are kept for others, and how many may be.
    pub(crate) fn shelved(&self) -> (usize, usize) {
        (self.books.lock().shelf.len(), PLACES)
    }

    /// Bytes of objects that were made, and that were sent.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.made.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    /// Closes all of them: the node stops.
    pub(crate) fn close_all(&self) {
        *self.books.lock() = Books::default();
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
    /// This view with each of those, if it is one of everything.
    fn named<'a>(&'a self, peers: impl Iterator<Item = &'a NodeId>) -> impl Iterator<Item = (NodeId, ViewId, EntryId)> {
        let whole = self.cut.only.is_none();
        peers.filter(move |_| whole).map(|peer| (*peer, self.id, self.cut.at))
    }

    fn is_open(&self) -> bool {
        self.cut.databases.values().all(ReadView::is_open)
    }

    /// Whether what one asks for may be what another one wants next.
    fn is_shared(&self) -> bool {
        self.leases.len() > 1
    }

    /// Whether this one should wait until another one has come closer.
    fn is_ahead(&self, peer: NodeId, fetcher: Fetcher, now: Duration) -> bool {
        let may_be_held = HELD_AT_FIRST + HELD_FOR_EACH * self.from_shelf;
        let is_near = |it: &Fetcher| now < it.asked + ASKED && fetcher.objects < it.objects + FAR;
        let others = self.fetchers.iter().filter(|(other, it)| **other != peer && is_near(it));
        let behind = others.map(|(_, it)| it.objects).min();
        let held_enough = fetcher.held >= may_be_held || fetcher.held_for_this >= HELD_FOR_ONE;
        !held_enough && behind.is_some_and(|objects| fetcher.objects >= objects + AHEAD)
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
