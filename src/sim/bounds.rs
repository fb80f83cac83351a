//! What must stay bounded, and what must not go while somebody needs it. Looked at whenever a node looks after its files.
//!
//! ```text
//! memory of the virtual WALs   within `wal_limit`, and the pages that the disk has refused since it was that, which is told
//! queues                       within their limits, and one entry or message more where that is said of them; the newest
//!                              entries in memory, as soon as the disk has them
//! a database's WAL             at the end, with nobody who reads, writes, or was lent a view, it is checkpointed, or an alarm
//!                              says why it cannot be, and a call of one has failed
//! proposals                    at the end nobody waits for a decision
//! the log                      beyond twice `log_limit` an alarm says why; at the end it is not that long
//! copies                       at the end all are whole, if a majority of the voters can say what they should be
//! files                        at the end those of the log, whatever it says, are no longer than it may be, but for spare segments; those
//!                              of databases are of databases that there are
//! views that are lent          the log of whoever leads reaches back to each of them, until it has four times `log_limit`;
//!                              looked at after each answer about them, too
//! ```
//!
//! "At the end" is a condition for being well: a cluster that does not come to it within the time for healing has failed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shoaldb_vfs::Database;

use super::world::{At, State};
use crate::catalogue::DatabaseId;
use crate::config::Config;
use crate::shared::Hub;
use crate::status::{self, Bounded, Status};
use crate::types::{LogIndex, NodeId, Usage};

/// A log with more than this many times its limit need not keep what views need (DESIGN.md, INV-25).
const LENT_FACTOR: u64 = 4;

/// What an entry counts for beside its data, at the most.
const ENTRY_BYTES: u64 = 128;

/// How much later than `checkpoint_age` a checkpoint may be: one that failed is tried again after 5 s.
const GRACE: Duration = Duration::from_secs(8);
/// How many segments a log may have on the disk that are none of it any more, or not yet, and the one that is written.
const SPARE_SEGMENTS: u64 = 5;
/// How often in a row a log may be found too large before it must have been said why: its files go some steps after the core
/// has let go of their entries.
const LOOKS: u32 = 10;

/// What was seen of one process the last time.
#[derive(Default)]
pub(super) struct Seen {
    /// How often in a row its log was beyond twice its limit, and no alarm said so.
    unexplained: u32,
    /// How many pages the disk had refused when the virtual WALs were within their limit, and the size of the largest pages.
    failures: u64,
    page_size: u64,
    /// In which term it led, if it did.
    led: Option<u64>,
    /// The last snapshot that it installed. Views of before that can be of use with the logs of others only.
    pub(super) installed: LogIndex,
}

fn is_large(bytes: u64, config: &Config) -> bool {
    bytes > 2 * config.log_limit + config.segment_bytes
}

/// Which queues are longer than they may be: each has its limit, and what may be beyond it.
fn beyond_their_limits(status: &Status, largest_entry: u64, tail: u64) -> Vec<String> {
    // Any one entry may go, whatever its size; a message is what fits, or one entry.
    let one = largest_entry + ENTRY_BYTES;
    let mut all = vec![
        ("inbox".to_string(), status.inbox, 0),
        ("tail_cache".to_string(), status.tail_cache, tail),
        ("uncommitted".to_string(), status.uncommitted, one),
        ("to_apply".to_string(), status.to_apply, one),
        ("open_splits".to_string(), status.open_splits, 0),
        ("sessions".to_string(), status.sessions, 0),
    ];
    all.extend(
        status
            .peers
            .iter()
            .map(|peer| (format!("in_flight to n{}", peer.node), peer.in_flight, Config::MESSAGE.max(one))),
    );
    let other = |usage: &Usage| (usage.name.clone(), Bounded { now: usage.now, limit: usage.limit }, 0);
    all.extend(status.bounds.iter().map(other));
    let beyond = all.into_iter().filter(|(_, it, more)| it.now > it.limit.saturating_add(*more));
    beyond.map(|(name, it, _)| format!("{name}: {} of {}", it.now, it.limit)).collect()
}

impl State {
    /// A node has just looked after its files.
    pub(super) fn observe_bounds(&mut self, at: At) {
        let mut wrong = Vec::new();
        let Some(running) = self.slots[at].running.as_deref_mut() else { return };
        if running.crippled || running.seat.as_ref().is_none_or(|seat| seat.engine_over) {
            return;
        }
        let (hub, seen) = (running.hub.clone(), &mut running.bounds);
        let status = status::of(&hub);
        let page_size = status.databases.iter().map(|db| u64::from(db.page_size)).max().unwrap_or(0);
        seen.page_size = seen.page_size.max(page_size);
        let failures = hub.databases.memory().failures();
        let beyond = status.wal_memory.saturating_sub(status.wal_limit);
        if beyond == 0 {
            seen.failures = failures;
        } else if beyond > (failures - seen.failures) * seen.page_size {
            wrong.push(format!(
                "{} bytes of WAL in memory, wal_limit is {}, and the disk has refused {} pages of at most {} bytes since it was \
                 within that",
                status.wal_memory,
                status.wal_limit,
                failures - seen.failures,
                seen.page_size
            ));
        }
        // What the disk does not have is in memory, however much it is.
        let persisted = hub.core_status.lock().as_ref().is_some_and(|core| core.persisted == core.last);
        wrong.extend(beyond_their_limits(&status, self.checks.largest_entry, if persisted { 0 } else { u64::MAX }));
        let told = status.alarms.iter().any(|alarm| alarm.contains("log_limit") || alarm.contains("the log cannot be"));
        seen.unexplained = if is_large(status.log_bytes, &hub.config) && !told { seen.unexplained + 1 } else { 0 };
        if seen.unexplained > LOOKS {
            let (bytes, limit) = (status.log_bytes, status.log_limit);
            wrong.push(format!("its log has {bytes} bytes, log_limit is {limit}, and no alarm says why"));
        }
        seen.led = (status.leader == Some(hub.id)).then_some(status.term.0);
        for what in wrong {
            self.fail(format!("n{}: {what}", at + 1));
        }
        self.observe_lent(at);
    }

    /// Whether a WAL or the log is longer than who reads may keep it, and the oldest read may be ended for that.
    pub(super) fn readers_may_be_ended(&self, at: At) -> bool {
        let Some(hub) = self.slots[at].hub() else { return false };
        let config = &hub.config;
        let keeps_much = |(_, db): &(DatabaseId, Arc<Database>)| {
            u64::from(db.status().wal_frames) * u64::from(db.geometry().page_size.bytes()) > config.reader_wal_pin_max
        };
        hub.log_extent().1 > LENT_FACTOR * config.log_limit || hub.databases.all().iter().any(keeps_much)
    }

    /// Whoever fetches a view from a leader can go on from it with the leader's log.
    pub(super) fn observe_lent(&mut self, at: At) {
        let Some(running) = self.slots[at].running.as_deref() else { return };
        let (hub, led, installed) = (&running.hub, running.bounds.led, running.bounds.installed);
        let leadership = hub.leadership();
        let leads = (leadership.leader == Some(hub.id)).then_some(leadership.term.0);
        let kept = hub.log_extent().1 <= LENT_FACTOR * hub.config.log_limit;
        let held = hub.snapshots.views.floor().filter(|_| kept && leads.is_some() && led == leads);
        let start = hub.core_start();
        if let Some(floor) = held.filter(|floor| *floor < start && *floor >= installed) {
            self.fail(format!(
                "n{}: it lends a view of entry {floor}, and its log begins behind entry {start}",
                at + 1
            ));
        }
    }

    /// Whether the voters that have all their copies are a majority, which can say what a copy should be.
    fn can_be_repaired(&self) -> bool {
        let Some((_, members)) = self.newest_leader() else { return false };
        let is_whole = |id: &&NodeId| {
            let at = usize::from(id.0) - 1;
            !self.is_out(at) && self.slots[at].hub().is_some_and(|hub| hub.databases.all_damaged().is_empty())
        };
        2 * members.voters.iter().filter(is_whole).count() > members.voters.len()
    }

    /// What is larger on this node than it should be with nobody at work; `None` if all is well.
    pub(super) fn unbounded(&self, at: At) -> Option<String> {
        let hub = self.slots[at].hub()?;
        if !hub.pending.is_idle() {
            return Some("somebody waits for a decision".to_string());
        }
        if let Some(id) = hub.databases.all_damaged().first() {
            // What is not served keeps the log until a person has decided.
            let what = format!("database {id:?} is damaged, and nobody has repaired it");
            return self.can_be_repaired().then_some(what);
        }
        // Only a checkpoint that was to fail has failed; without it no anchor goes on, so the log stays, and so do dropped files.
        if self.checkpoint_has_failed(at) && has_disk_that_failed(hub) {
            return None;
        }
        if let Some(what) = self.leftovers(at, hub) {
            return Some(what);
        }
        let config = &hub.config;
        let (_, bytes) = hub.log_extent();
        // Whoever fetches a view takes its time; it ends by itself.
        let lends = hub.snapshots.views.counts().0 > 0;
        let alarms = status::alarms(hub);
        // Some files could not go, and that is tried again at the next start only.
        let stays = self.files_may_stay(at) && has_log_that_stays(hub);
        let is_large =
            if lends { bytes > LENT_FACTOR * config.log_limit + config.segment_bytes } else { is_large(bytes, config) };
        if is_large && !stays {
            return Some(format!("its log has {bytes} bytes, log_limit is {}: {alarms:?}", config.log_limit));
        }
        let late = |(_, db): &(DatabaseId, Arc<Database>)| {
            let status = db.status();
            let bytes = u64::from(status.pending_frames) * u64::from(db.geometry().page_size.bytes());
            let old = status.dirty_for.is_some_and(|age| age > config.checkpoint_age + GRACE);
            !lends && db.retired().is_none() && status.dirty_for.is_some() && (bytes >= config.checkpoint_bytes || old)
        };
        let (_, db) = hub.databases.all().into_iter().find(late)?;
        let status = db.status();
        Some(format!(
            "database {} has {} frames that are not checkpointed, {} views, dirty for {:?}",
            db.name(),
            status.pending_frames,
            status.views,
            status.dirty_for
        ))
    }
}

impl State {
    /// What lies on this node's disk, whatever the node says of it, and should not; nobody is at work.
    fn leftovers(&self, at: At, hub: &Hub) -> Option<String> {
        let (fs, config) = (&self.slots[at].fs, &hub.config);
        let lends = hub.snapshots.views.counts().0 > 0;
        let there: u64 = fs.sizes(Path::new("/n/log")).values().sum();
        let may = if lends { LENT_FACTOR } else { 2 } * config.log_limit + SPARE_SEGMENTS * config.segment_bytes;
        if there > may && !self.files_may_stay(at) {
            return Some(format!("the files of its log have {there} bytes, log_limit is {}", config.log_limit));
        }
        // A view that is lent keeps the anchor, for which the files of what was dropped wait. So does a transaction that was open in
        // parts when its node was removed: its end does not come there any more.
        if lends || hub.is_removed() && hub.progress().settled() < hub.applied().index {
            return None;
        }
        let known: Vec<u64> = hub.databases.all().into_iter().map(|(id, _)| id.0).collect();
        let of = |name: &str| name.split_once('-').and_then(|(id, _)| id.parse::<u64>().ok());
        let is_lost = |name: &String| of(name).is_none_or(|id| !known.contains(&id));
        let lost = fs.sizes(Path::new("/n/db")).into_keys().find(is_lost)?;
        (!self.database_files_may_stay(at)).then(|| format!("{lost} is on its disk, and of no database that there is"))
    }
}

/// Whether a node's log becomes no shorter before its next start: that is told.
pub(super) fn has_log_that_stays(hub: &Hub) -> bool {
    status::alarms(hub).iter().any(|alarm| alarm.contains("cannot be compacted until"))
}

/// Whether a node makes no checkpoint of some database any more: that is told, and is for a person to look after.
pub(super) fn has_disk_that_failed(hub: &Hub) -> bool {
    status::alarms(hub).iter().any(|alarm| alarm.contains("no checkpoint"))
}
