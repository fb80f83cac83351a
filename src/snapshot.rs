//! How a node that lacks what the logs of the others no longer have gets the databases from one of them.
//!
//! ```text
//! leader                                        follower
//! a peer needs entries that are gone: offer  ->
//!                                            <- open: lend me a view beyond what I have
//! a view between two applied entries         ->
//!                                            <- fetch: manifest, hashes of ranges, hashes of pages, pages
//! objects, each a function of view and name  ->    what it has already, here or from an earlier attempt, it does not ask for
//!                                                  new generations of files, whole and synced
//!                                                  one record: the log begins behind the view's entry, these generations count
//!                                            <- done; and Raft's own answer: my log agrees with yours up to there
//! ```
//!
//! **The follower drives.** It chooses what to ask for and asks again for whatever did not come; the other side keeps nothing
//! per transfer but a lease. Raft's own snapshot message and the state that waits for it are not used: a leader that
//! cannot send entries goes on with heartbeats, and learns from an ordinary answer to an append that the follower's log
//! matches. So there is no state to be stuck in, and no report to be lost.
//!
//! **What it has already** are the pages of its own copy, read through a view of its own, and of the generation that an
//! earlier attempt began, whatever view that was of: pages count by their hashes.
//!
//! **One record makes it count** (INV-31): the head of a new segment of the log, which says where the log begins now, which
//! members there are, and which generation of each database's files is the one. Before it nothing has changed; after it a
//! start finds everything in place. It is written only when the files are complete and synced.
//!
//! The files under `snapshot/` have the parts: `object.rs` the bytes, `views.rs` what is lent, `source.rs` the answers,
//! `pace.rs` how
//! fast, `shelf.rs` what several want at once, `fetch.rs` the questions, `copy.rs` what is in place already, `ask.rs` how they get
//! there, `install.rs` the change, `rounds.rs` what is done when. `repair.rs` and `mend.rs` do the same for one database whose
//! copy is damaged, outside of what Raft knows. Here is what they share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shoaldb_vfs::files::DatabaseFiles;

pub(crate) mod ask;
pub(crate) mod copy;
pub(crate) mod fetch;
pub(crate) mod install;
pub(crate) mod mend;
pub(crate) mod object;
pub(crate) mod pace;
pub(crate) mod repair;
pub(crate) mod rounds;
pub(crate) mod shelf;
pub(crate) mod source;
pub(crate) mod views;

use crate::catalogue::DatabaseId;
use crate::events::Event;
use crate::registry::{Finishing, Left};
use crate::signal::Signal;
use crate::types::{EntryId, LogIndex, NodeId};
use copy::Parts;
use object::{Ask, Manifest, Outcome, Phase, ViewId};
use pace::Pace;
use views::Views;

/// The name of the alarm about a snapshot that this node cannot fetch or install.
pub(crate) const ALARM: &str = "snapshot";
/// The name of the one about a snapshot that nobody sends; it ends when a view is lent.
pub(crate) const UNSENT: &str = "snapshot that nobody sends";

/// Ends that sources are still to be told of, at most: one of a snapshot, others of copies of single databases.
const MOST_REPORTS: usize = 16;
/// Time until a source that did not answer is told again; then after twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Time after which an installed snapshot counts as finished although no entry has come behind it.
const FINISHED_WHEN_IDLE: Duration = Duration::from_secs(10);

/// Where a transfer is, for `Status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Transfer {
    pub(crate) source: NodeId,
    pub(crate) index: LogIndex,
    pub(crate) phase: Phase,
    /// Bytes of pages that are in place.
    pub(crate) done: u64,
    pub(crate) total: u64,
    /// When it began, by this node's clock.
    pub(crate) began: Duration,
}

impl Transfer {
    /// What those who listen here are told.
    fn event(self) -> Event {
        let Transfer { source: peer, index, done, total, .. } = self;
        Event::SnapshotProgress { peer, index, receiving: true, done, total }
    }

    /// What the source is told, so that it keeps its view and the log behind it.
    fn progress(self, view: ViewId) -> Ask {
        Ask::Progress { view, phase: self.phase, done: self.done, total: self.total }
    }
}

/// A snapshot that is complete on this node's disk.
pub(crate) struct Staged {
    pub(crate) source: NodeId,
    pub(crate) view: ViewId,
    pub(crate) manifest: Manifest,
    /// New generations. Databases that are not among them keep their files.
    pub(crate) files: Vec<(DatabaseId, DatabaseFiles)>,
    /// Bytes that came for it.
    pub(crate) received: u64,
}

impl Staged {
    /// What its source is told in the end.
    pub(crate) fn done(&self) -> Done {
        Done { source: self.source, view: self.view, index: self.manifest.at.index, outcome: Outcome::Installed }
    }
}

/// A copy of one database that is complete on this node's disk, to take the place of a damaged one.
pub(crate) struct Mended {
    pub(crate) source: NodeId,
    pub(crate) view: ViewId,
    pub(crate) at: EntryId,
    pub(crate) database: DatabaseId,
    pub(crate) files: DatabaseFiles,
    /// Bytes that came for it.
    pub(crate) received: u64,
    /// Its record was written, and the log has said that it has no room. It may be on the disk all the same until the next one is.
    pub(crate) tried: bool,
}

/// A snapshot that was installed, or had become needless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Done {
    pub(crate) source: NodeId,
    pub(crate) view: ViewId,
    pub(crate) index: LogIndex,
    pub(crate) outcome: Outcome,
}

/// An end that its source does not know of yet.
struct Report {
    done: Done,
    /// When it is told for the next time.
    at: Duration,
    pause: Duration,
}

/// Why a transfer ended before its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The log will do.
    NotNeeded,
    /// Nobody failed: the view is closed, or something of this node's own passes by itself. Begin anew with another view
    /// of the same node.
    Again(String),
    /// The other node does not answer, or is busy all the time: begin anew with a view of another one.
    Lost(String),
    /// The other node cannot serve it; yet another one may.
    Refused(String),
    /// What the other node sent is of no use.
    Wrong(String),
    /// Something on this node, as want of room, that no other view will change.
    GivenUp(String),
}

/// What the threads of a node share about snapshots.
#[derive(Default)]
pub(crate) struct Snapshots {
    /// Lent by this node.
    pub(crate) views: Views,
    /// How fast objects of them are sent.
    pub(crate) pace: Pace,
    /// Peers that need more than this leader's log has.
    wanted: Mutex<BTreeSet<NodeId>>,
    /// Who offered a snapshot to this node.
    offered: Mutex<Option<NodeId>>,
    /// What is in place of a transfer that was interrupted.
    pub(crate) parts: Mutex<Parts>,
    /// What was fetched and waits to be installed.
    staged: Mutex<Option<Box<Staged>>>,
    /// Set before it is taken for that, and until what came of it shows everywhere.
    installing: AtomicBool,
    /// A copy of a damaged database that waits to take its place.
    mended: Mutex<Option<Box<Mended>>>,
    /// Set before it is taken for that, and until what came of it shows everywhere.
    mending: AtomicBool,
    /// This process fetches nothing any more.
    ended: AtomicBool,
    /// Over, and their sources not told yet.
    done: Mutex<Vec<Report>>,
    /// Installed, and not all told of it yet; and since when that is known in this life.
    finishing: Mutex<Option<(Finishing, Duration)>>,
    pub(crate) transfer: Mutex<Option<Transfer>>,
    /// The entry of a snapshot that is fetched, or waits to be installed.
    coming: Mutex<Option<LogIndex>>,
    /// Transfers to this node that were told of: where from, and of which entry. None that its log has passed. What a process
    /// before this one left is from node 0.
    begun: Mutex<BTreeSet<(NodeId, LogIndex)>>,
    /// Something of the above is there.
    pub(crate) signal: Signal,
}

impl Snapshots {
    pub(crate) fn want(&self, peer: NodeId) {
        if self.wanted.lock().insert(peer) {
            self.signal.notify();
        }
    }

    pub(crate) fn take_wanted(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.wanted.lock())
    }

    pub(crate) fn offer(&self, from: NodeId) {
        *self.offered.lock() = Some(from);
        self.signal.notify();
    }

    pub(crate) fn take_offer(&self) -> Option<NodeId> {
        self.offered.lock().take()
    }

    /// The entry of a snapshot that is on its way to this node and not installed yet.
    pub(crate) fn coming(&self) -> Option<LogIndex> {
        *self.coming.lock()
    }

    pub(crate) fn set_coming(&self, index: LogIndex) {
        *self.coming.lock() = Some(index);
    }

    /// A view was lent to this node, whose log has `have`: whether another transfer begins with that. One that is opened again, for
    /// whatever reason, is the same one if its source and its entry are.
    pub(crate) fn begins(&self, transfer: (NodeId, LogIndex), have: LogIndex) -> bool {
        let mut begun = self.begun.lock();
        begun.retain(|(_, index)| *index > have);
        begun.insert(transfer)
    }

    /// A process before this one fetched something, up to a database of this id, and its log ended at `last`: as long as nothing comes
    /// behind that, whoever leads may have no log for this node.
    pub(crate) fn note_parts(&self, id: DatabaseId, last: LogIndex) {
        self.begun.lock().insert((NodeId(0), last.next().max(LogIndex(id.0))));
    }

    /// The last entry of which a transfer to this node began, if the node has applied it by now: what came of them, and did not get to
    /// count, is needed by nobody.
    pub(crate) fn passed(&self, applied: LogIndex) -> Option<LogIndex> {
        let last = self.begun.lock().iter().map(|(_, index)| *index).max();
        last.filter(|last| *last <= applied)
    }

    /// The same, once.
    pub(crate) fn take_passed(&self, applied: LogIndex) -> Option<LogIndex> {
        let passed = self.passed(applied)?;
        self.begun.lock().retain(|(_, index)| *index > passed);
        Some(passed)
    }

    /// It is installed, or came to nothing.
    pub(crate) fn set_over(&self) {
        *self.coming.lock() = None;
        *self.transfer.lock() = None;
    }

    /// What waits to be installed, and where it came from.
    fn waiting(&self) -> Option<(Transfer, ViewId)> {
        let view = self.staged.lock().as_ref()?.view;
        Some(((*self.transfer.lock())?, view))
    }

    /// The source is told, at once and until it has heard.
    pub(crate) fn set_done(&self, done: Done) {
        let mut reports = self.done.lock();
        reports.retain(|report| report.done.view != done.view);
        // Sources that are gone for long would be told of ends that nobody remembers.
        if reports.len() == MOST_REPORTS {
            reports.remove(0);
        }
        reports.push(Report { done, at: Duration::ZERO, pause: FIRST_PAUSE });
        drop(reports);
        self.signal.notify();
    }

    /// What sources are to be told now.
    pub(crate) fn due_reports(&self, now: Duration) -> Vec<Done> {
        self.done.lock().iter().filter(|report| report.at <= now).map(|report| report.done).collect()
    }

    /// A source has heard of this end, or never will.
    pub(crate) fn on_reported(&self, done: Done) {
        self.done.lock().retain(|report| report.done != done);
        self.note_told(|left| _ = left.source.take_if(|view| *view == done.view.0));
    }

    /// A source did not answer. What was not installed here is of no interest there.
    pub(crate) fn on_unreported(&self, done: Done, now: Duration) {
        if done.outcome != Outcome::Installed {
            return self.on_reported(done);
        }
        if let Some(report) = self.done.lock().iter_mut().find(|report| report.done == done) {
            report.at = now + report.pause;
            report.pause = (2 * report.pause).min(LONGEST_PAUSE);
        }
    }

    pub(crate) fn is_due(&self, now: Duration) -> bool {
        let due =
            || !self.wanted.lock().is_empty() || self.offered.lock().is_some() || !self.due_reports(now).is_empty();
        !self.has_ended() && due()
    }

    pub(crate) fn set_staged(&self, staged: Staged) {
        *self.staged.lock() = Some(Box::new(staged));
    }

    /// A snapshot that could not be installed yet waits again.
    pub(crate) fn put_back(&self, staged: Box<Staged>) {
        *self.staged.lock() = Some(staged);
    }

    /// The leader's log begins behind entry `start`: drops the snapshot that waits to be installed if that is of an earlier one, since
    /// nobody could go on from it. Its files are free for the next attempt, which goes on with them. Whether there was one.
    pub(crate) fn drop_outdated(&self, start: LogIndex) -> bool {
        let mut waiting = self.staged.lock();
        // From one of that entry this node goes on with the first one that the log has.
        let Some(staged) = waiting.take_if(|staged| staged.manifest.at.index < start) else { return false };
        let done = Done { outcome: Outcome::GivenUp, ..staged.done() };
        drop(staged);
        self.set_over();
        // From here on something else may be fetched.
        drop(waiting);
        self.set_done(done);
        true
    }

    /// For [`Snapshots::end_install`] to follow.
    pub(crate) fn take_staged(&self) -> Option<Box<Staged>> {
        let mut staged = self.staged.lock();
        self.installing.store(staged.is_some(), Ordering::SeqCst);
        staged.take()
    }

    /// It counts, or is not needed, or waits again; and this node knows how far it is.
    pub(crate) fn end_install(&self) {
        self.installing.store(false, Ordering::SeqCst);
    }

    pub(crate) fn set_finishing(&self, finishing: Option<Finishing>, now: Duration) {
        *self.finishing.lock() = finishing.map(|finishing| (finishing, now));
    }

    /// The snapshot of which something is still to be told.
    pub(crate) fn finishing(&self) -> Option<Finishing> {
        self.finishing.lock().map(|(finishing, _)| finishing)
    }

    /// Something of it was told.
    pub(crate) fn note_told(&self, told: impl FnOnce(&mut Left)) {
        let mut finishing = self.finishing.lock();
        *finishing = finishing.and_then(|(it, since)| {
            let mut left = it.left;
            told(&mut left);
            it.with(left).map(|it| (it, since))
        });
    }

    /// What is to be told of it now to those who listen, and what is left then. The log ends at `last`: the snapshot is over when
    /// that goes on behind it, or when nothing has come for a while. Of what is left of an earlier process somebody is to hear,
    /// too, and nobody can listen yet when a process begins: so it waits for whoever listens, but not for ever.
    pub(crate) fn to_tell(&self, last: LogIndex, now: Duration, has_listeners: bool) -> Option<(Finishing, Left)> {
        let (it, since) = (*self.finishing.lock())?;
        let idle = now >= since + FINISHED_WHEN_IDLE;
        let Left { install, end, source } = it.left;
        let ends = end && (idle || last > it.index);
        let due = (ends || install.is_some()) && (idle || has_listeners);
        due.then_some((it, Left { install: None, end: end && !ends, source }))
    }

    pub(crate) fn set_mended(&self, mended: Box<Mended>) {
        *self.mended.lock() = Some(mended);
    }

    /// The copy that waits, once this node has applied the entry that it is of. For [`Snapshots::end_mend`] to follow.
    pub(crate) fn take_mended(&self, applied: LogIndex) -> Option<Box<Mended>> {
        let mut waiting = self.mended.lock();
        let mended = waiting.take_if(|mended| mended.at.index <= applied);
        self.mending.store(mended.is_some(), Ordering::SeqCst);
        mended
    }

    /// It counts, or does not, or waits again; and the next one is built in another place than one that counts.
    pub(crate) fn end_mend(&self) {
        self.mending.store(false, Ordering::SeqCst);
    }

    /// Something else would make the copy needless: a snapshot of everything. `false` if it has to wait, since the newest record of the
    /// log may name these files already.
    pub(crate) fn drop_mended(&self) -> bool {
        let mut waiting = self.mended.lock();
        drop(waiting.take_if(|mended| !mended.tried));
        waiting.is_none() && !self.mending.load(Ordering::SeqCst)
    }

    /// Whether a copy waits, or is about to count: nothing else is built meanwhile.
    pub(crate) fn has_mended(&self) -> bool {
        let waiting = self.mended.lock();
        waiting.is_some() || self.mending.load(Ordering::SeqCst)
    }

    /// Nothing is fetched by this process from now on, and nothing else made to count: the log fails, or nobody knows whether its
    /// newest record is on the disk. What that names must stay as it is for the next start.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// See [`Snapshots::end`].
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether a snapshot waits to be installed.
    pub(crate) fn has_staged(&self) -> bool {
        self.staged.lock().is_some()
    }

    /// Fetched, and not over yet: nothing else is fetched meanwhile. What is being installed would be lent once more, and given
    /// back in its place.
    pub(crate) fn is_in_hand(&self) -> bool {
        let staged = self.staged.lock();
        staged.is_some() || self.installing.load(Ordering::SeqCst)
    }
}

/// How long a question may take that the other node has to read from its disk for, or to let its applier stand still.
const LONG_ASK: Duration = Duration::from_secs(10);
/// How long one may take that is answered out of memory: the thread that asks has others to ask, too, and asks again.
const SHORT_ASK: Duration = Duration::from_secs(1);

impl Ask {
    /// How long this may take, from the first packet of a connection to the last one of the answer.
    pub(crate) fn limit(&self) -> Duration {
        match self {
            Ask::Open { .. } | Ask::OpenOne { .. } | Ask::Fetch { .. } => LONG_ASK,
            Ask::Offer { .. } | Ask::Progress { .. } | Ask::Done { .. } | Ask::Sum { .. } => SHORT_ASK,
        }
    }
}
