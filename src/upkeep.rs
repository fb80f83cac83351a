//! What keeps a node's memory and disk bounded: checkpoints, anchors, compaction, and a slow look at every page.
//!
//! ```text
//! checkpoint   a database whose WAL has `checkpoint_bytes`, or something older than `checkpoint_age`, or that pins
//!              the log
//! floor        the last entry such that everything up to it is in the main files: min over the databases that have
//!              something in the WAL of their checkpointed position; the applied entry if none has, or the one before
//!              the first part of a transaction of which more may come
//! anchor       members and catalogue as of the floor, and what receipts need, written to the log: a start begins behind it
//! compaction   when the log has more than `log_limit`: up to the anchor, and not beyond what every member has; beyond what the
//!              slow ones have, too, when it has four times as much
//! scrub        pages of main files against their hashes, `scrub_bytes` a second
//! damage       a copy with a page that is not what was written is not served; one that was repaired is put in its place
//! ```
//!
//! **The anchor's catalogue** must be what it was at the floor, and only the newest one is known. So the anchor waits until
//! the floor has passed the last change of catalogue and members; databases that hold it back are checkpointed.
//!
//! **Compaction** has two halves, since the core must not ask for an entry that is gone: first the engine moves the core's
//! start, then the files go.
//!
//! **What every member has** the leader knows. Others ask it, since one of them may lead tomorrow and must then have what a
//! slow member lacks.
//!
//! Nothing here is waited for by a commit. Deliberately absent: the thread (`node.rs`), and what a checkpoint is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shoaldb_vfs::Database;
use shoaldb_vfs::database::{Checkpoint, CheckpointError, DatabaseStatus};
use shoaldb_vfs::env::{MORE_FILES, is_out_of_files};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::files::WriteError;
use shoaldb_vfs::page::PageNo;

use crate::admin;
use crate::catalogue::DatabaseId;
use crate::databases::{Damage, Help};
use crate::events::Event;
use crate::log::{Anchor, Batch, Log, LogError};
use crate::planted::{self, Bug};
use crate::raft::Role;
use crate::registry::{self, Aftermath, Finishing};
use crate::shared::{Hub, Input};
use crate::snapshot::mend::{self, Outcome};
use crate::snapshot::repair;
use crate::snapshot::views::Limits;
use crate::types::{LogIndex, NodeId};

/// Time between two steps: short enough that a WAL does not grow far beyond its threshold, long enough to cost nothing.
pub(crate) const STEP: Duration = Duration::from_millis(200);
/// Time between two anchors, if nothing presses.
const ANCHOR_EVERY: Duration = Duration::from_secs(1);
/// Entries that an anchor saves a start at least, if nothing presses.
const ANCHOR_ENTRIES: u64 = 256;
/// A WAL with this many times `checkpoint_bytes` is one that readers, or writers without a pause, keep from beginning anew: writers
/// are held off.
const RESTART_FACTOR: u64 = 4;
/// How long writers are held off, and how long they are left alone afterwards.
const RESTART_PATIENCE: Duration = Duration::from_millis(50);
const RESTART_PAUSE: Duration = Duration::from_millis(250);
/// Time until a checkpoint that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// A member that was not heard of for so many election timeouts is away.
const AWAY_AFTER: u32 = 3;
/// A log with more than this many times `log_limit` is not held back by views that are lent: who fetches one will need
/// another one, but not the pages that it has. Nor by a member that is there and does not keep up: it gets a snapshot.
const LENT_FACTOR: u64 = 4;
/// A WAL of so many times `reader_wal_pin_max` ends readers that are older than [`SHORT_PATIENCE`].
const READER_FACTOR: u64 = 2;
const SHORT_PATIENCE: Duration = Duration::from_secs(1);
/// Time between two questions to the leader.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How long a leader with a rotten page serves what is whole of that database, so that another one can take over first.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(5);
const HAND_OVER_EVERY: Duration = Duration::from_secs(2);
/// How long people are told of a disk that did not take the pages of a transaction.
const REFUSED_FOR: Duration = Duration::from_secs(60);
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// See the module's text.
pub(crate) struct Upkeep {
    hub: Hub,
    log: Arc<Log>,
    anchored: LogIndex,
    next_anchor: Duration,
    per_database: BTreeMap<DatabaseId, Chores>,
    /// What every member has, as far as this node was told.
    cluster_floor: LogIndex,
    next_question: Duration,
    /// When each member was last heard of, while this node leads.
    seen: BTreeMap<NodeId, Duration>,
    scrub_at: (DatabaseId, PageNo),
    scrubbed_at: Duration,
    /// Bytes that the scrubber may read now.
    scrub_credit: u64,
    /// When leadership was last to go because of a damaged database, or of a disk that takes no pages.
    handed_over: Option<Duration>,
    /// How many pages of transactions the disk had not taken at the last look, and when there were more than before.
    refused: u64,
    refused_at: Option<Duration>,
}

#[derive(Default)]
struct Chores {
    not_before: Duration,
    next_restart: Duration,
    /// The hashes of its main file were added up, and make its checksum.
    books_fit: bool,
    /// Since when it is known to be damaged.
    damaged_since: Option<Duration>,
    told_failed: bool,
}

/// The name of the alarm about rotten pages that nobody can repair.
fn rotten_about(id: DatabaseId) -> String {
    format!("rotten {id}")
}

/// The name of the alarm about page hashes that cannot be read.
fn hashes_about(id: DatabaseId) -> String {
    format!("hashes {id}")
}

/// The name of the alarm about a checkpoint that could not be made.
fn checkpoint_about(id: DatabaseId) -> String {
    format!("checkpoint {id}")
}

/// The name of the alarm about a main file that cannot be read.
fn scrub_about(id: DatabaseId) -> String {
    format!("scrub {id}")
}

impl Upkeep {
    /// `anchored` is the index that the log's newest anchor has.
    pub(crate) fn new(hub: Hub, log: Arc<Log>, anchored: LogIndex) -> Upkeep {
        let now = hub.waiting.clock.now();
        let refused = hub.databases.memory().refused();
        Upkeep {
            hub,
            log,
            anchored,
            next_anchor: now,
            per_database: BTreeMap::new(),
            cluster_floor: LogIndex(0),
            next_question: now,
            seen: BTreeMap::new(),
            scrub_at: (DatabaseId(0), PageNo::FIRST),
            scrubbed_at: now,
            scrub_credit: 0,
            handed_over: None,
            refused,
            refused_at: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// A snapshot took the place of the log, or did not: what is known of log and databases is found again.
    pub(crate) fn begin_anew(&mut self) {
        self.anchored = self.hub.findings.lock().anchored;
        let all = self.hub.databases.all();
        self.forget_dropped(&all);
        // What is still wrong with a file is found again.
        for (id, _) in all {
            self.forget_alarms(id);
        }
        self.per_database.clear();
        self.hub.snapshots.views.drop_pins_before(self.hub.core_start());
        self.finish_snapshot();
    }

    /// Does what is due now. Blocks for as long as the disk takes.
    pub(crate) fn step(&mut self) {
        self.close_views();
        self.learn_members();
        self.hub.tell_of_splits_again();
        if self.hub.snapshots.has_ended() {
            // What this process knows may not be what its disk says: log and files are for the next start.
            return;
        }
        self.mend();
        self.look_at_room();
        if let Some(start) = self.hub.take_compacted() {
            self.drop_segments(start);
        }
        let all = self.hub.databases.all();
        self.forget_dropped(&all);
        let pressed = self.log.bytes() > self.hub.config.log_limit;
        for (id, db) in &all {
            self.look_after(*id, db, pressed);
        }
        self.finish_snapshot();
        self.write_anchor(pressed);
        self.compact(pressed);
        self.scrub(&all);
    }

    /// Nobody can mend what is wrong with a database that was dropped.
    fn forget_dropped(&mut self, all: &[(DatabaseId, Arc<Database>)]) {
        let is_dropped = |id: &DatabaseId| all.iter().all(|(known, _)| known != id);
        let dropped: Vec<DatabaseId> = self.per_database.keys().copied().filter(is_dropped).collect();
        for id in dropped {
            self.per_database.remove(&id);
            self.forget_alarms(id);
            self.alarm(&repair::alarm_about(id), None);
        }
    }

    fn forget_alarms(&self, id: DatabaseId) {
        for about in [rotten_about(id), hashes_about(id), checkpoint_about(id), scrub_about(id)] {
            self.alarm(&about, None);
        }
    }

    fn now(&self) -> Duration {
        self.hub.waiting.clock.now()
    }

    fn alarm(&self, about: &str, what: Option<String>) {
        let mut findings = self.hub.findings.lock();
        match what {
            Some(what) => _ = findings.alarms.insert(about.to_string(), what),
            None => _ = findings.alarms.remove(about),
        }
    }

    /// Raises an alarm about the disk. Who listens, and the log, are told when it is new.
    fn disk_trouble(&self, about: &str, what: String) {
        if !self.hub.findings.lock().alarms.contains_key(about) {
            tracing::error!(node = self.hub.id.0, "{what}");
            self.hub.events.tell(&Event::DiskTrouble { what: what.clone() });
        }
        self.alarm(about, Some(what));
    }

    /// Adds up the hashes of a main file: false if they do not make its checksum. Hashes that cannot be read say nothing of
    /// what is written: somebody hears of it, and they are read again.
    fn add_up(&mut self, id: DatabaseId, db: &Database) -> bool {
        let about = hashes_about(id);
        match db.books_fit() {
            Ok(fit) => {
                self.per_database.entry(id).or_default().books_fit = fit;
                self.alarm(&about, None);
                fit
            }
            Err(error) => {
                let advice = if is_out_of_files(&error) { MORE_FILES } else { "check the disk" };
                let what = format!("database {}: its page hashes could not be read: {error}; {advice}", db.name());
                self.disk_trouble(&about, what);
                true
            }
        }
    }

    /// A copy that was fetched takes the place of a damaged one, once this node has come to the entry that it is of.
    fn mend(&mut self) {
        let Some(mended) = self.hub.snapshots.take_mended(self.hub.applied().index) else { return };
        let id = mended.database;
        match mend::mend(&self.hub, &self.log, mended) {
            ended @ (Outcome::Repaired | Outcome::NotNeeded) => {
                if matches!(ended, Outcome::NotNeeded) {
                    self.hub.databases.delete_leftovers(|left| left == id);
                }
                self.per_database.remove(&id);
                // They were about the copy that was.
                self.forget_alarms(id);
            }
            Outcome::Later(mended) => self.hub.snapshots.set_mended(mended),
            Outcome::NoRoom(mended, what) => {
                self.hub.snapshots.set_mended(mended);
                self.not_repaired(id, &what);
            }
            Outcome::Failed(what) => self.not_repaired(id, &what),
        }
        self.hub.snapshots.end_mend();
    }

    /// The log of the node has it once.
    fn not_repaired(&mut self, id: DatabaseId, why: &str) {
        let what = format!("database {id} was not repaired: {why}; it is tried again");
        let told = self.hub.findings.lock().alarms.insert(repair::alarm_about(id), what.clone());
        if told.as_ref() != Some(&what) {
            tracing::error!(node = self.hub.id.0, "{what}");
        }
    }

    /// Whoever has better disks should lead.
    fn hand_over(&mut self) {
        let now = self.now();
        if self.handed_over.is_none_or(|at| now >= at + HAND_OVER_EVERY) {
            self.handed_over = Some(now);
            self.hub.post(Input::HandOver);
        }
    }

    /// Transactions failed because the disk did not take their pages. Somebody else's disk may, so a leader hands over. Nothing
    /// says when there is room again but the next such transaction, so people are told for a while.
    fn look_at_room(&mut self) {
        const ABOUT: &str = "wal without room";
        let (now, refused) = (self.now(), self.hub.databases.memory().refused());
        if refused > std::mem::replace(&mut self.refused, refused) {
            if self.refused_at.replace(now).is_none() {
                let what =
                    "the disk does not take the pages of transactions that are larger than wal_limit; they are rolled \
                            back; make room on it, or check it"
                        .to_string();
                tracing::error!(node = self.hub.id.0, "{what}");
                self.hub.events.tell(&Event::DiskTrouble { what: what.clone() });
                self.alarm(ABOUT, Some(what));
            }
            if self.hub.leadership().role == Role::Leader {
                self.hand_over();
            }
        }
        if self.refused_at.take_if(|at| now >= *at + REFUSED_FOR).is_some() {
            self.alarm(ABOUT, None);
        }
    }

    /// A damaged copy: whoever has a whole one should lead, and then it is not served any more. The only voter there is goes
    /// on serving what is whole of it.
    fn look_at_damage(&mut self, id: DatabaseId, db: &Arc<Database>) {
        let (now, retired) = (self.now(), db.retired());
        let rotten: Vec<u32> = db.status().rotten.iter().map(|page| page.get()).collect();
        if retired.is_some() {
            self.alarm(&hashes_about(id), None);
        }
        let known = self.per_database.get(&id).is_some_and(|chores| chores.books_fit) || retired.is_some();
        // Once, soon after the files were opened.
        let fits = known || self.add_up(id, db);
        let chores = self.per_database.entry(id).or_default();
        if rotten.is_empty() && fits && retired != Some(Refusal::Damaged) {
            if chores.damaged_since.take().is_some() {
                self.alarm(&rotten_about(id), None);
            }
            return;
        }
        let Some(core) = self.hub.core_status.lock().clone() else { return };
        let first = chores.damaged_since.is_none();
        let since = *chores.damaged_since.get_or_insert(now);
        let help = Help::of(self.hub.id, &core.membership);
        let alone = help != Help::Voters;
        let what = match (rotten.is_empty(), fits) {
            (false, _) => format!("database {}: pages {rotten:?} of it are not what was written", db.name()),
            (_, false) => format!("database {}: the page hashes of its main file do not make its checksum", db.name()),
            _ => format!("database {}: what it would show is not what was committed; see the log", db.name()),
        };
        if first && !rotten.is_empty() {
            tracing::error!("{what}");
            self.hub.events.tell(&Event::DiskTrouble { what: what.clone() });
        }
        if first && self.hub.databases.damage(id) == Some(Damage::Unopened) {
            // Nobody could listen when it was found.
            self.hub.diverged(id, format!("database {}: its files could not be opened", db.name()));
        }
        let leads = self.hub.leadership().role == Role::Leader;
        if leads && !alone {
            self.hand_over();
        }
        let damage = if rotten.is_empty() { Damage::Diverged } else { Damage::Rotten };
        if retired.is_none() {
            if alone {
                let advice = help.advice(damage).unwrap_or_default();
                self.alarm(&rotten_about(id), Some(format!("{what}; what is damaged is not served, and {advice}")));
                return;
            }
            if leads && now < since + HAND_OVER_PATIENCE {
                return;
            }
        }
        if self.hub.databases.convict(id, damage, what.clone()) {
            self.alarm(&rotten_about(id), None);
            self.hub.diverged(id, what);
        }
    }

    /// Checkpoints a database, if it is time.
    fn look_after(&mut self, id: DatabaseId, db: &Arc<Database>, pressed: bool) {
        self.look_at_damage(id, db);
        if db.retired().is_some() {
            return;
        }
        let (now, config) = (self.now(), &self.hub.config);
        let status = db.status();
        let page = u64::from(db.geometry().page_size.bytes());
        let (pending, wal) = (u64::from(status.pending_frames) * page, u64::from(status.wal_frames) * page);
        let Some(dirty_for) = status.dirty_for else {
            // Who still read when the last checkpoint ended kept its frames from going, and there may be no writer for a long time.
            if status.wal_frames > 0 {
                db.restart();
            }
            // `verify` makes checkpoints, too.
            let failed = self.per_database.get_mut(&id).is_some_and(|chores| std::mem::take(&mut chores.told_failed));
            if failed {
                self.alarm(&checkpoint_about(id), None);
            }
            return;
        };
        if status.gated {
            self.close_forgotten_views(db, &status, pending);
        } else {
            self.end_readers(db, &status, wal);
        }
        let chores = self.per_database.entry(id).or_default();
        let pins = pressed || self.hub.changed_at().0 > status.checkpointed.0;
        if now < chores.not_before
            || !(pending >= config.checkpoint_bytes || dirty_for >= config.checkpoint_age || pins)
        {
            return;
        }
        let crowded = wal >= RESTART_FACTOR * config.checkpoint_bytes && now >= chores.next_restart;
        // A simulated world does not move on while somebody sleeps.
        let may_wait = self.hub.waiting.pump.is_none();
        let patience = if crowded && may_wait { RESTART_PATIENCE } else { Duration::ZERO };
        if crowded {
            chores.next_restart = now + RESTART_PAUSE;
        }
        let about = checkpoint_about(id);
        // Readers of which each is there for a while, but always one of them, keep a lap from ending as one does that stays.
        let end_after = self.old_reader(wal).filter(|_| crowded);
        let readers_ended = || db.counters.readers_ended.load(Ordering::Relaxed);
        let before = readers_ended();
        let made = db.checkpoint_and_restart(patience, end_after);
        warn_of_ended(db, readers_ended() - before, wal);
        match made {
            Ok(Checkpoint::Done { from, to, pages }) => {
                tracing::debug!(database = db.name(), "checkpoint from {from} to {to}, {pages} pages");
                self.alarm(&about, None);
                self.per_database.entry(id).or_default().told_failed = false;
                let position = LogIndex(to.0);
                self.hub.events.tell(&Event::CheckpointDone { database: db.name().to_string(), position });
            }
            // A read view is somebody at work, like a reader: it ends, and then the checkpoint is made.
            Ok(Checkpoint::Nothing | Checkpoint::Blocked | Checkpoint::Gated) => {}
            Err(error) => {
                let advice: String = match &error {
                    CheckpointError::Write(WriteError::Failed(_)) => "check the disk, then start the node again".into(),
                    CheckpointError::Write(WriteError::Nothing(error)) if is_out_of_files(error) => {
                        format!("{MORE_FILES}; it is tried again by itself")
                    }
                    CheckpointError::Write(_) => "make room on the disk; it is tried again by itself".into(),
                    _ => "see the log".into(),
                };
                let what =
                    format!("database {}: no checkpoint, its WAL and the log grow: {error}; {advice}", db.name());
                let chores = self.per_database.entry(id).or_default();
                chores.not_before = now + RETRY;
                if !std::mem::replace(&mut chores.told_failed, true) {
                    tracing::error!("{what}");
                    self.hub.events.tell(&Event::DiskTrouble { what: what.clone() });
                }
                self.alarm(&about, Some(what));
            }
        }
    }

    /// How old a read transaction must be to be ended for a WAL of `wal` bytes, if it is to be ended for that at all. One huge
    /// transaction is no reason to end whoever reads at that moment; a WAL that goes on growing is.
    fn old_reader(&self, wal: u64) -> Option<Duration> {
        let config = &self.hub.config;
        if wal > READER_FACTOR * config.reader_wal_pin_max {
            Some(config.reader_patience.min(SHORT_PATIENCE))
        } else {
            (wal > config.reader_wal_pin_max).then_some(config.reader_patience)
        }
    }

    /// Whether the log is too long, and this database is what holds it.
    fn holds_log(&self, status: &DatabaseStatus) -> bool {
        self.log.bytes() > LENT_FACTOR * self.hub.config.log_limit && LogIndex(status.checkpointed.0) <= self.floor()
    }

    /// Ends the oldest read transactions of a database, if they keep too much of its WAL, or of the log, for too long.
    fn end_readers(&self, db: &Database, status: &DatabaseStatus, wal: u64) {
        let patience = self.hub.config.reader_patience;
        let age = self.old_reader(wal).or_else(|| self.holds_log(status).then_some(patience));
        if let Some(age) = age.filter(|age| status.oldest_reader.is_some_and(|oldest| oldest >= *age)) {
            warn_of_ended(db, db.end_oldest_readers(age) as u64, wal);
        }
    }

    /// Closes the read views of a database that keep too much of its WAL, or of the log: also those that an application opened and
    /// forgot. A view of all databases that is lent to another node stays: the bound of their WALs is one of the log, too. Of one
    /// database that is lent for a repair the WAL may stay small, whatever else is written: it is lent anew.
    fn close_forgotten_views(&self, db: &Database, status: &DatabaseStatus, pending: u64) {
        let lent = self.hub.snapshots.views.lends_all_files();
        if pending > self.hub.config.snapshot_wal_pin_max || !lent && self.holds_log(status) {
            let closed = db.close_views();
            // None if all of them are closed and a page of one is still lent.
            if closed > 0 {
                tracing::warn!(
                    database = db.name(),
                    "{closed} read views are closed: they kept {pending} bytes of WAL from being checkpointed, and the log; see \
                     snapshot_wal_pin_max and log_limit"
                );
            }
        }
    }

    /// The last entry such that everything up to it is in the main files.
    fn floor(&self) -> LogIndex {
        // Before the databases are looked at: what is applied by now is in a WAL or in a main file.
        let mut floor = self.hub.progress().settled();
        for (_, db) in self.hub.databases.all() {
            let status = db.status();
            // A copy that is not served any more holds its place, too: the next start must find again what is wrong with
            // it, and one that was retired because the node stops is as good as any.
            if (db.retired().is_some() || status.dirty_for.is_some()) && !planted::is(Bug::AnchorTooFar) {
                floor = floor.min(LogIndex(status.checkpointed.0));
            }
        }
        floor
    }

    /// That a snapshot was installed, and that it is over, is told when it is on record that it was: once, whatever comes in
    /// between (INV-42).
    fn finish_snapshot(&mut self) {
        let (now, last) = (self.now(), self.log.last().index);
        let due = self.hub.snapshots.to_tell(last, now, self.hub.events.has_listeners());
        let Some((finishing, left)) = due else { return };
        let told = match mend::rewritten(self.log.anchor(), |known| known.aftermath.finishing = finishing.with(left)) {
            Ok(anchor) => Batch { anchor: Some(anchor), ..Batch::default() },
            Err(what) => {
                tracing::error!(node = self.hub.id.0, "the anchor of the log: {what}");
                return self.hub.snapshots.set_finishing(None, self.now());
            }
        };
        match self.log.append(&told) {
            Ok(()) => {
                self.hub.snapshots.note_told(|known| (known.install, known.end) = (left.install, left.end));
                let Finishing { source: peer, index, left: before } = finishing;
                if let Some(bytes) = before.install {
                    self.hub.events.tell(&Event::SnapshotInstalled { index, bytes });
                }
                if before.end == left.end {
                    return;
                }
                for _ in 0..if planted::is(Bug::FinishedTwice) { 2 } else { 1 } {
                    self.hub.events.tell(&Event::SnapshotFinished { peer, index, receiving: true });
                }
            }
            Err(error) => self.log_failed("anchor", &error),
        }
    }

    fn write_anchor(&mut self, pressed: bool) {
        let now = self.now();
        let floor = self.floor();
        let worth = pressed || floor.0 >= self.anchored.0 + ANCHOR_ENTRIES || self.hub.changed_at() > self.anchored;
        if now < self.next_anchor || floor <= self.anchored || !worth {
            return;
        }
        // The anchor that a snapshot wrote says how far its pages are ahead of the log; a later one does not.
        if self.hub.applied().index < self.hub.reach() {
            return;
        }
        let Some(core) = self.hub.core_status.lock().clone() else { return };
        // The core hears later than the catalogue changes; an anchor has both of one moment.
        if core.applied < floor {
            return;
        }
        let catalogue = {
            let catalogue = self.hub.catalogue.lock();
            // Under the lock: the applier changes both under it.
            if self.hub.changed_at() > floor {
                return;
            }
            let Some(catalogue) = catalogue.as_ref() else { return };
            let aftermath = Aftermath { reach: LogIndex(0), finishing: self.hub.snapshots.finishing() };
            registry::encode(catalogue, &self.hub.databases.generations(), aftermath)
        };
        self.next_anchor = now + ANCHOR_EVERY;
        let anchor = Anchor { applied: floor, membership: core.membership, registry: self.hub.registry(&catalogue) };
        match self.log.append(&Batch { anchor: Some(anchor), ..Batch::default() }) {
            Ok(()) => {
                self.anchored = floor;
                self.hub.databases.delete_dropped(floor);
                let mut findings = self.hub.findings.lock();
                findings.anchored = floor;
                findings.anchors += 1;
                drop(findings);
                self.alarm("anchor", None);
            }
            Err(error) => self.log_failed("anchor", &error),
        }
    }

    /// Without room nothing is lost but that the log grows; any other failure is the end of it.
    fn log_failed(&self, about: &str, error: &LogError) {
        if !error.can_be_tried_again() {
            return self.hub.post(Input::Failed { what: error.in_words() });
        }
        let what =
            format!("the log cannot be made shorter: {error}; make room on the disk, it is tried again by itself");
        // No event: whoever appends finds no room either, and tells of it.
        self.alarm(about, Some(what));
    }

    fn compact(&mut self, pressed: bool) {
        if !pressed {
            self.alarm("log", None);
            return;
        }
        self.ask_floor();
        let limit = self.hub.config.log_limit;
        // The core hears of what was applied later than this thread does, and goes on from there.
        let core = self.hub.core_status.lock().as_ref().map_or(LogIndex(0), |core| core.applied);
        let mut through = self.anchored.min(core);
        if self.waits_for_others() {
            through = through.min(self.cluster_floor);
            if !planted::is(Bug::CompactPastView) {
                // What was learned of the members may be older than a view that was lent since.
                through = self.hub.snapshots.views.floor().map_or(through, |lent| through.min(lent));
            }
        }
        if let Err(error) = self.log.seal_for(through) {
            return self.log_failed("segment", &error);
        }
        self.alarm("segment", None);
        let start = self.log.compaction_start(through, limit);
        // Files may stay where the log does not begin any more, and what others need may be more by now: that is gone. And
        // what has no entry is nothing to anybody.
        let begun = self.hub.core_start();
        if begun > self.log.start().index || self.log.has_empty_segments() {
            self.drop_segments(begun);
        }
        if start.index > self.log.start().index && start.index >= begun {
            // Before anybody is lent one of them once more.
            if !planted::is(Bug::CompactPastView) && !planted::is(Bug::ReuseStaleView) {
                self.hub.snapshots.views.close_before(start.index);
            }
            self.hub.post(Input::Compact { start });
        } else if self.log.bytes() > 2 * limit {
            let what = self.what_pins();
            self.alarm("log", Some(what));
        } else {
            self.alarm("log", None);
        }
    }

    /// Whether the log is short enough to be kept for other nodes, and not only for what this one needs of it.
    fn waits_for_others(&self) -> bool {
        self.log.bytes() <= LENT_FACTOR * self.hub.config.log_limit
    }

    fn what_pins(&self) -> String {
        let (bytes, limit) = (self.log.bytes(), self.hub.config.log_limit);
        let why = if self.waits_for_others() && self.cluster_floor < self.anchored {
            let start = self.hub.core_start();
            let core = self.hub.core_status.lock().clone();
            // Who is behind the log already needs a snapshot, and nothing of the log.
            let slowest = core.and_then(|core| {
                let counted = core.peers.iter().filter(|peer| peer.has_of(start).is_some());
                counted.min_by_key(|peer| peer.acknowledged).copied()
            });
            let slow = |who: String| {
                format!(
                    "{who} has not got further than entry {}; it gets a snapshot when the log has {} bytes, if nothing makes \
                     it faster",
                    self.cluster_floor,
                    LENT_FACTOR * limit
                )
            };
            match slowest {
                Some(peer) if peer.acknowledged < start => {
                    format!("node {} has not said yet what it has; it is asked again by itself", peer.id)
                }
                Some(peer) => slow(format!("node {}", peer.id)),
                None if self.cluster_floor == LogIndex(0) => {
                    "the leader has not said yet what every member has; it is asked again by itself".to_string()
                }
                None => slow("a member".to_string()),
            }
        } else {
            let pins =
                |(_, db): &(DatabaseId, Arc<Database>)| db.retired().is_some() || db.status().dirty_for.is_some();
            let pinning = self.hub.databases.all().into_iter().filter(pins);
            let pinning = pinning.min_by_key(|(_, db)| db.status().checkpointed);
            match pinning {
                Some((_, db)) if db.retired().is_some() => {
                    format!("database {} is not served on this node until it is repaired, and needs it", db.name())
                }
                Some((_, db)) if db.status().views > 0 => {
                    format!("database {} is not checkpointed while a read view of it is open; close it", db.name())
                }
                Some((_, db)) => {
                    format!("database {} cannot be checkpointed; if a long read transaction is open, end it", db.name())
                }
                None => "the newest anchor is not in a later segment yet".to_string(),
            }
        };
        format!("the log has {bytes} bytes, log_limit is {limit}: {why}")
    }

    /// Closes views that this node lent and nobody needs.
    fn close_views(&self) {
        let config = &self.hub.config;
        let is_pressed = self.log.bytes() > config.log_limit;
        let (age, pinned_bytes) = (config.snapshot_read_view_close_timeout, config.snapshot_wal_pin_max);
        let limits = Limits { is_pressed, age, pinned_bytes };
        let core = self.hub.core_status.lock().clone();
        let is_member = |node| core.as_ref().is_some_and(|core| core.membership.names(node));
        let closed = self.hub.snapshots.views.sweep(self.now(), limits, is_member);
        if closed > 0 {
            let (capped, outgrown) = (self.hub.snapshots.views.capped(), self.hub.snapshots.views.outgrown());
            tracing::debug!(node = self.hub.id.0, closed, capped, outgrown, "closed views that were lent");
        }
    }

    /// A leader finds out what every member has that is not away. Who is away, or needs a snapshot anyhow, holds back
    /// nothing but what a snapshot lets it go on from, while one is on its way to it: the log keeps `log_limit` bytes for it,
    /// and no more.
    fn learn_members(&mut self) {
        let core = self.hub.core_status.lock().clone();
        let Some(core) = core.filter(|core| core.role.role == Role::Leader) else {
            self.seen.clear();
            self.hub.findings.lock().members_floor = None;
            return;
        };
        let (now, start) = (self.now(), self.hub.core_start());
        let away = AWAY_AFTER * self.hub.config.election_timeout;
        let mut floor = core.persisted;
        for peer in core.peers.iter().filter(|peer| core.membership.names(peer.id)) {
            let seen = self.seen.entry(peer.id).or_insert(now);
            if peer.active {
                *seen = now;
            }
            if now < *seen + away {
                floor = peer.has_of(start).map_or(floor, |has| floor.min(has));
            }
            self.hub.snapshots.views.on_acknowledged(peer.id, peer.acknowledged);
        }
        let lent_counts = !planted::is(Bug::CompactPastView);
        if lent_counts && self.waits_for_others() {
            floor = self.hub.snapshots.views.floor().map_or(floor, |lent| floor.min(lent));
        }
        self.hub.findings.lock().members_floor = Some(floor);
        self.learn_floor(floor);
    }

    /// Every member has the log up to here that counts now: one that is back, or has installed a snapshot, has less than what was
    /// known without it.
    pub(crate) fn learn_floor(&mut self, floor: LogIndex) {
        self.cluster_floor = floor;
    }

    /// Learns what every member has.
    fn ask_floor(&mut self) {
        let leadership = self.hub.leadership();
        if leadership.role == Role::Leader {
            return;
        }
        let now = self.now();
        let Some((leader, transport)) = leadership.leader.zip(self.hub.transport()) else { return };
        if now < self.next_question {
            return;
        }
        self.next_question = now + ASK_EVERY;
        let answer = transport.request(leader, admin::encode(&admin::Request::Floor), ASK_LIMIT);
        let reply = answer.ok().and_then(|bytes| serde_json::from_slice::<admin::Reply>(&bytes).ok());
        if let Some(floor) = reply.and_then(|reply| reply.into_result().ok()).and_then(|value| value.as_u64()) {
            self.learn_floor(LogIndex(floor));
        }
    }

    fn drop_segments(&self, start: LogIndex) {
        let before = self.log.start();
        match self.log.compact(start) {
            // No entry went.
            Ok(start) if start == before => {}
            Ok(start) => {
                tracing::debug!(node = self.hub.id.0, "the log begins after entry {}", start.index);
                self.hub.findings.lock().compactions += 1;
                self.hub.events.tell(&Event::LogCompacted { through: start.index });
            }
            Err(error) => {
                let what = format!(
                    "the log cannot be compacted until the next start, and grows: {error}; check the disk and the rights \
                     on its directory, then start the node again"
                );
                self.disk_trouble("compaction", what);
            }
        }
    }

    /// Reads on where the last step ended, one database after the other.
    fn scrub(&mut self, all: &[(DatabaseId, Arc<Database>)]) {
        let now = self.now();
        let since = now.saturating_sub(self.scrubbed_at);
        self.scrubbed_at = now;
        let rate = self.hub.config.scrub_bytes;
        let earned = (since.as_millis() as u64).saturating_mul(rate) / 1000;
        // A node that was busy does not catch up: the scrubber must never be what makes it busy.
        self.scrub_credit = (self.scrub_credit + earned).min(rate);
        let (id, page) = self.scrub_at;
        let Some((id, db)) = all.iter().find(|(known, _)| *known >= id).or_else(|| all.first()) else { return };
        let page = if *id == self.scrub_at.0 { page } else { PageNo::FIRST };
        let bytes = u64::from(db.geometry().page_size.bytes());
        let count = u32::try_from(self.scrub_credit / bytes).unwrap_or(u32::MAX);
        if count == 0 {
            return;
        }
        self.scrub_credit -= u64::from(count) * bytes;
        let scrubbed = if db.retired().is_some() { Ok(None) } else { db.scrub(page, count) };
        self.scrub_at = match scrubbed {
            Ok(Some(next)) => (*id, next),
            Ok(None) => {
                self.alarm(&scrub_about(*id), None);
                (DatabaseId(id.0 + 1), PageNo::FIRST)
            }
            Err(error) => {
                let advice = if is_out_of_files(&error) { MORE_FILES } else { "check the disk" };
                let what = format!("database {}: its main file cannot be read: {error}; {advice}", db.name());
                self.disk_trouble(&scrub_about(*id), what);
                (DatabaseId(id.0 + 1), PageNo::FIRST)
            }
        };
    }
}

fn warn_of_ended(db: &Database, ended: u64, wal: u64) {
    if ended > 0 {
        tracing::warn!(
            database = db.name(),
            "{ended} read transactions were ended: they kept {wal} bytes of WAL, and the log; see reader_wal_pin_max and log_limit"
        );
    }
}

#[cfg(test)]
pub(crate) mod tests;
