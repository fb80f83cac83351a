//! The questions: from an offer to new generations of files, complete and synced.
//!
//! For each database of the manifest:
//!
//! ```text
//! kept             this node shows a later state of it, or knows that it is dropped then: a snapshot brought that, and it stays
//! nothing to do    this node's files are at exactly that state, with nothing in the WAL
//! ranges           their hashes are compared with those of this node's own copy, seen through a view, and of what came before
//! a range equal    its pages are copied from here, or are in the new file already
//! a range differs  the hashes of its pages are asked for; a page that is in an earlier attempt's file stays, one that the own
//!                  copy has is copied, all others are asked for
//! finish           every page of the new file is read back and compared, then all of it is synced and named
//! ```
//!
//! **It may end anywhere.** What is in the new file stays there and counts the next time by its hashes, whatever view and
//! whichever node that is about (`copy.rs`). Once every page is in place the view is of no more use, and its end is none of
//! this.
//!
//! Memory: the hashes of ranges that differ (1 KiB each: 4 MiB for each GiB of 4-KiB pages, if all of it does), and one object,
//! or as many more as may be on their way (`ask.rs`).
//!
//! Nothing is begun for which there is no room on the disk: whoever fetches keeps what it has, says how much it wants, and
//! tries again later.
//!
//! A database that is damaged on this node is fetched in the same way, alone ([`fetch_one`]).
//!
//! Deliberately absent: retries after a failure (`rounds.rs`), the thread (`node.rs`), and making it count
//! (`install.rs`).

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use shoaldb_vfs::Database;
use shoaldb_vfs::files::DatabaseFiles;
use shoaldb_vfs::mapfile::Checkpointed;
use shoaldb_vfs::page::{PageHash, PageNo};
use shoaldb_vfs::planted::{self, Bug};

use super::ask::{AHEAD, AskSource};
use super::copy::{Copy, disk, runs_of};
use super::object::{
    self, ASKED_BYTES, Answer, Ask, HASHED_RANGES, Listed, Manifest, Object, Outcome, Phase, RANGES_PER_OBJECT, ViewId,
};
use super::{Staged, Stop, Transfer, UNSENT};
use crate::catalogue::DatabaseId;
use crate::events::Event;
use crate::registry::GONE;
use crate::shared::Hub;
use crate::types::{EntryId, LogIndex, NodeId};

/// How often a question is asked before the other node counts as lost.
const TRIES: usize = 3;
/// How long a node may be busy, from the first time that it said so to one question until that is answered. It says so for the
/// milliseconds in which an object is made, and for as many seconds as `snapshot_rate` has others served before; who is never
/// served is better off with another node.
const BUSY_FOR: Duration = Duration::from_secs(60);
/// The same until a view is lent: nothing is lost yet if another node is asked for one, and whatever else the thread has
/// to do waits.
const OPEN_BUSY_FOR: Duration = Duration::from_secs(5);
/// How long this node lets itself be told to wait: an answer is only bytes from the network. And how long it waits at least, so
/// that time passes.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// The other node hears of this one at least this often, so that it keeps the view.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Why nothing came from a node that runs and is reached.
pub(super) const BUSY: &str = "it is busy all the time";
const STOPPED: &str = "this node is shutting down";

struct Fetch<'a> {
    hub: &'a Hub,
    source: NodeId,
    ask: &'a mut dyn AskSource,
    view: ViewId,
    at: EntryId,
    reported: Duration,
    transfer: Transfer,
    received: u64,
}

/// Fetches what `source` has beyond the entries that this node has. Blocks for as long as it takes.
pub(crate) fn fetch(hub: &Hub, source: NodeId, ask: &mut dyn AskSource) -> Result<Staged, Stop> {
    let have = hub.committed();
    let asked = hub.waiting.clock.now();
    let (view, at) = open(hub, have, ask).inspect_err(|stop| note_lost(hub, source, 0, stop))?;
    let micros = (hub.waiting.clock.now() - asked).as_micros() as u64;
    tracing::info!(node = hub.id.0, source = source.0, index = at.index.0, micros, "a view was lent");
    let began = hub.waiting.clock.now();
    let transfer = Transfer { source, index: at.index, phase: Phase::Compare, done: 0, total: 0, began };
    // Whoever is told that it begins finds it in the status.
    *hub.snapshots.transfer.lock() = Some(transfer);
    if hub.snapshots.begins((source, at.index), have) {
        hub.events.tell(&Event::SnapshotStarted { peer: source, index: at.index, receiving: true });
    }
    let mut fetch = Fetch { hub, source, ask, view, at, reported: began, transfer, received: 0 };
    hub.snapshots.set_coming(at.index);
    let mut staged = fetch.run(have);
    fetch.remember(&staged);
    // A view that is gone before anything came of it is as good as none.
    if let Err(Stop::Again(why)) = &staged
        && fetch.received == 0
    {
        staged = Err(Stop::Lost(why.clone()));
    }
    match &staged {
        // The files are whole. A view that is closed by now is not needed any more.
        Ok(_) => _ = fetch.tell(Phase::Install),
        Err(stop) => {
            note_lost(hub, source, fetch.received, stop);
            hub.snapshots.set_over();
            // If it does not arrive, the lease ends by itself.
            let _ = fetch.ask.ask(&Ask::Done { view, outcome: Outcome::GivenUp, index: at.index });
        }
    }
    staged
}

/// That an attempt was lost is nothing that anybody has to do something about; how much travelled for it is of interest.
fn note_lost(hub: &Hub, source: NodeId, received: u64, stop: &Stop) {
    if let Stop::Again(why) | Stop::Lost(why) = stop {
        tracing::info!(node = hub.id.0, source = source.0, received, "a snapshot was interrupted: {why}");
    }
}

/// Fetches one database, as it is in a view that was opened for that. Blocks for as long as it takes. The files, and how many
/// bytes came for them.
pub(crate) fn fetch_one(
    hub: &Hub,
    source: NodeId,
    (view, at): (ViewId, EntryId),
    listed: &Listed,
    ask: &mut dyn AskSource,
) -> Result<(DatabaseFiles, u64), Stop> {
    let total = u64::from(listed.at.size.0) * u64::from(listed.page_size.bytes());
    check_room(hub, [(listed.id, total)])?;
    let began = hub.waiting.clock.now();
    let transfer = Transfer { source, index: at.index, phase: Phase::Compare, done: 0, total, began };
    let mut fetch = Fetch { hub, source, ask, view, at, reported: began, transfer, received: 0 };
    let files = fetch.copy(listed);
    fetch.remember(&files);
    *hub.snapshots.transfer.lock() = None;
    Ok((files?, fetch.received))
}

/// Whether there is room for new generations of so many bytes each: the old ones stay until the new ones count.
fn check_room(hub: &Hub, wanted: impl IntoIterator<Item = (DatabaseId, u64)>) -> Result<(), Stop> {
    // Beside the pages there are their hashes: 16 bytes for 512 at most.
    let missing = |(id, bytes): (DatabaseId, u64)| bytes.saturating_sub(hub.databases.staged(id)) + bytes / 32;
    let wanted: u64 = wanted.into_iter().map(missing).sum();
    match hub.databases.room() {
        Some(room) if room < wanted => {
            Err(Stop::GivenUp(format!("it wants {wanted} bytes on this disk, which has room for {room}; make room")))
        }
        _ => Ok(()),
    }
}

fn open(hub: &Hub, have: LogIndex, ask: &mut dyn AskSource) -> Result<(ViewId, EntryId), Stop> {
    let shown = shown(hub).max(have);
    let mut patience = Patience::of(OPEN_BUSY_FOR);
    loop {
        match ask.ask(&Ask::Open { have, shown }).map_err(Stop::Lost)? {
            Answer::Opened { view, at } if at.index > have => return Ok((view, at)),
            Answer::Opened { .. } | Answer::NotNeeded => return Err(Stop::NotNeeded),
            Answer::Busy { millis } => patience.pause(hub, millis)?,
            Answer::No(why) => return Err(Stop::Refused(why)),
            other => return Err(Stop::Wrong(format!("an answer that makes no sense: {other:?}"))),
        }
    }
}

/// With a node that is busy, about one question.
struct Patience {
    limit: Duration,
    ends: Option<Duration>,
}

impl Patience {
    fn of(limit: Duration) -> Patience {
        Patience { limit, ends: None }
    }

    /// Waits as the other node wishes, if it has not been busy for too long.
    fn pause(&mut self, hub: &Hub, millis: u32) -> Result<(), Stop> {
        if hub.waiting.clock.now() >= *self.ends.get_or_insert_with(|| hub.deadline(self.limit)) {
            return Err(Stop::Lost(BUSY.to_string()));
        }
        pause(hub, millis)
    }
}

/// Waits as the other node wishes, but not for long, and not if this one ends.
fn pause(hub: &Hub, millis: u32) -> Result<(), Stop> {
    let limit = Duration::from_millis(u64::from(millis)).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    let stopped = hub.upkeep.wait(&hub.waiting, hub.deadline(limit), limit, || hub.is_stopped().then_some(()));
    if stopped.is_some() { Err(Stop::GivenUp(STOPPED.to_string())) } else { Ok(()) }
}

/// A database that readers see here, if there is one.
fn shown_here(hub: &Hub, database: DatabaseId) -> Option<Arc<Database>> {
    hub.databases.get(database).filter(|db| db.retired().is_none())
}

/// The last entry that any database shows here.
fn shown(hub: &Hub) -> LogIndex {
    let ids = hub.with_catalogue(|catalogue| catalogue.databases().map(|(id, _)| id).collect::<Vec<_>>());
    let positions = ids.unwrap_or_default().into_iter().filter_map(|id| shown_here(hub, id));
    LogIndex(positions.map(|db| db.position().0).max().unwrap_or(0))
}

impl Fetch<'_> {
    fn run(&mut self, have: LogIndex) -> Result<Staged, Stop> {
        let bytes = self.object(&self.asking_for(Object::Manifest), &[])?;
        // It sends what it lends: not all of them fail.
        self.hub.findings.lock().alarms.remove(UNSENT);
        let mut manifest = Manifest::decode(&bytes).map_err(|damaged| Stop::Wrong(format!("manifest: {damaged}")))?;
        if manifest.at != self.at || manifest.at.index <= have {
            return Err(Stop::Wrong(format!("a manifest of {:?} in a view of {:?}", manifest.at, self.at)));
        }
        let kept = self.keep_what_is_further(&mut manifest)?;
        let size = |listed: &Listed| u64::from(listed.at.size.0) * u64::from(listed.page_size.bytes());
        self.transfer.total = manifest.databases.iter().map(size).sum();
        let wanted =
            manifest.databases.iter().filter(|listed| !self.is_here(listed)).map(|listed| (listed.id, size(listed)));
        check_room(self.hub, wanted)?;
        let mut files = Vec::new();
        for listed in &manifest.databases {
            if let Some(staged) = self.database(listed, kept.contains(&listed.id))? {
                files.push((listed.id, staged));
            }
        }
        Ok(Staged { source: self.source, view: self.view, manifest, files, received: self.received })
    }

    fn asking_for(&self, object: Object) -> Ask {
        Ask::Fetch { view: self.view, object }
    }

    /// One object, asked for until it comes whole. Those that are next are on their way while this one is put in place.
    fn object(&mut self, ask: &Ask, next: &[Ask]) -> Result<Vec<u8>, Stop> {
        if !next.is_empty() {
            self.ask.ahead(ask);
        }
        next.iter().for_each(|next| self.ask.ahead(next));
        let (mut patience, mut failures) = (Patience::of(BUSY_FOR), Vec::new());
        while failures.len() < TRIES {
            match self.ask.ask(ask) {
                Ok(Answer::Object { bytes }) => {
                    self.received += bytes.len() as u64;
                    return Ok(bytes);
                }
                Ok(Answer::Busy { millis }) => patience.pause(self.hub, millis)?,
                Ok(Answer::Gone) => return Err(Stop::Again("the view is closed".to_string())),
                Ok(Answer::No(why)) => return Err(Stop::Refused(why)),
                Ok(other) => failures.push(format!("{other:?}")),
                Err(why) => failures.push(why),
            }
            if self.hub.is_stopped() {
                return Err(Stop::GivenUp(STOPPED.to_string()));
            }
        }
        Err(Stop::Lost(failures.pop().unwrap_or_default()))
    }

    /// What came is remembered by its hashes as long as the transfer goes on.
    fn remember<T>(&self, came: &Result<T, Stop>) {
        if !matches!(came, Err(Stop::Again(_) | Stop::Lost(_) | Stop::Refused(_))) {
            self.hub.snapshots.parts.lock().clear();
        }
    }

    /// So many bytes are in place. The other node hears of it now and then.
    fn report(&mut self, phase: Phase, done: u64) -> Result<(), Stop> {
        if self.hub.is_stopped() {
            return Err(Stop::GivenUp(STOPPED.to_string()));
        }
        self.transfer.done += done;
        if self.hub.waiting.clock.now() < self.reported + REPORT_EVERY {
            self.transfer.phase = phase;
            *self.hub.snapshots.transfer.lock() = Some(self.transfer);
            return Ok(());
        }
        self.tell(phase)
    }

    /// The same, and the other node hears of it now.
    fn tell(&mut self, phase: Phase) -> Result<(), Stop> {
        self.transfer.phase = phase;
        *self.hub.snapshots.transfer.lock() = Some(self.transfer);
        self.reported = self.hub.waiting.clock.now();
        self.hub.events.tell(&self.transfer.event());
        match self.ask.ask(&self.transfer.progress(self.view)) {
            Ok(Answer::Gone) if phase != Phase::Verify => Err(Stop::Again("the view is closed".to_string())),
            // One report that gets lost does no harm.
            _ => Ok(()),
        }
    }

    /// The new files of a database; `None` if the ones that are there will do.
    fn database(&mut self, listed: &Listed, is_kept: bool) -> Result<Option<DatabaseFiles>, Stop> {
        if self.is_here(listed) {
            self.report(Phase::Compare, u64::from(listed.at.size.0) * u64::from(listed.page_size.bytes()))?;
            return Ok(None);
        }
        if is_kept {
            // Nobody could be asked for that state of it.
            return Err(Stop::Again(format!("database {} is not here any more as it was", listed.id)));
        }
        self.copy(listed).map(Some)
    }

    /// What is here may be ahead of the log, if a snapshot brought it, and ahead of the view, too; no reader may see it go back. What
    /// was shown was committed: so it stays, and the new log skips what it has. To wait for a view of as much would be to wait
    /// for ever where nobody but this node knows that so much is committed, and nothing is without it. Which ones are kept.
    fn keep_what_is_further(&self, manifest: &mut Manifest) -> Result<BTreeSet<DatabaseId>, Stop> {
        let gone = |listed: &Listed| self.hub.databases.generation(listed.id) == GONE;
        if manifest.databases.iter().any(gone) {
            manifest.databases.retain(|listed| !gone(listed));
            manifest.reach = manifest.reach.max(self.hub.reach());
        }
        let mut kept = BTreeSet::new();
        for listed in &mut manifest.databases {
            let Some(here) = shown_here(self.hub, listed.id).map(|db| db.status()) else { continue };
            if here.position <= listed.at.position {
                continue;
            }
            // The log goes on meanwhile, and is beyond the view already: none may be needed any more.
            if here.checkpointed != here.position {
                let (id, at) = (listed.id, manifest.at.index);
                let what = format!("database {id} is further by the log here than in a view of entry {at}");
                return Err(Stop::Again(what));
            }
            kept.insert(listed.id);
            listed.at = Checkpointed { position: here.position, size: here.pages, checksum: here.checksum };
            manifest.reach = manifest.reach.max(LogIndex(here.position.0));
        }
        Ok(kept)
    }

    /// Whether the files of a database are just that. The main file alone counts: what is in the WAL would come again from
    /// a log that will be gone.
    fn is_here(&self, listed: &Listed) -> bool {
        shown_here(self.hub, listed.id).is_some_and(|db| {
            let status = db.status();
            status.dirty_for.is_none()
                && status.checkpointed == listed.at.position
                && db.checksum().1 == listed.at.checksum
        })
    }

    /// The new files of a database. What is whole of the own copy is of use, also if that is damaged: every page counts by
    /// its hash.
    fn copy(&mut self, listed: &Listed) -> Result<DatabaseFiles, Stop> {
        let here = self.hub.databases.get(listed.id);
        let local =
            here.and_then(|db| db.view_of_damaged().ok()).filter(|view| view.geometry().page_size == listed.page_size);
        let staging = self.hub.databases.stage(listed.id, listed.page_size, listed.at).map_err(begun)?;
        let mut copy = Copy::new(listed.clone(), local, staging, &mut self.hub.snapshots.parts.lock());
        match self.bring(&mut copy) {
            Ok(()) => self.finish(copy),
            Err(stop) => {
                copy.keep(&mut self.hub.snapshots.parts.lock());
                Err(stop)
            }
        }
    }

    /// Puts every page in place.
    fn bring(&mut self, copy: &mut Copy) -> Result<(), Stop> {
        let differing = self.compare(copy)?;
        let mut groups = differing.chunks(HASHED_RANGES).peekable();
        while let Some(ranges) = groups.next() {
            self.differing(copy, ranges, groups.peek().copied())?;
        }
        Ok(())
    }

    /// Copies the ranges that are the same here, and returns those that have to come.
    fn compare(&mut self, copy: &mut Copy) -> Result<Vec<u32>, Stop> {
        let (size, database) = (copy.listed.at.size, copy.listed.id);
        let mut differing = Vec::new();
        let (mut first, all) = (0, object::ranges_of(size));
        while first < all {
            let count = RANGES_PER_OBJECT.min(all - first);
            let bytes = self.object(&self.asking_for(Object::Ranges { database, first, count }), &[])?;
            let hashes = object::numbers(&bytes).filter(|hashes| hashes.len() == count as usize);
            let hashes = hashes.ok_or_else(|| Stop::Wrong(format!("{} bytes for {count} ranges", bytes.len())))?;
            for (range, hash) in (first..).zip(hashes) {
                if !self.is_there(copy, range, hash)? {
                    differing.push(range);
                }
            }
            first += count;
        }
        Ok(differing)
    }

    /// Whether a range is in the new file now, copied from here or since before.
    fn is_there(&mut self, copy: &mut Copy, range: u32, hash: u128) -> Result<bool, Stop> {
        if !copy.same_here(range, hash)? && !copy.was_fetched(range, hash) {
            return Ok(false);
        }
        let count = object::pages_of(range, copy.listed.at.size).map_or(0, |(_, count)| count);
        self.report(Phase::Compare, u64::from(count) * u64::from(copy.listed.page_size.bytes()))?;
        Ok(true)
    }

    /// The pages of some ranges; `then` are those whose turn is next.
    fn differing(&mut self, copy: &mut Copy, ranges: &[u32], then: Option<&[u32]>) -> Result<(), Stop> {
        let (size, database) = (copy.listed.at.size, copy.listed.id);
        let hashes_of = |ranges: &[u32]| Object::Hashes { database, ranges: ranges.to_vec() };
        let bytes = self.object(&self.asking_for(hashes_of(ranges)), &[])?;
        let wrong = || Stop::Wrong(format!("{} bytes for the pages of {} ranges", bytes.len(), ranges.len()));
        let mut hashes = object::numbers(&bytes).ok_or_else(wrong)?.into_iter().map(PageHash);
        let mut missing = Vec::new();
        for range in ranges {
            let (first, count) = object::pages_of(*range, size).ok_or_else(wrong)?;
            let of_range: Vec<PageHash> = hashes.by_ref().take(count as usize).collect();
            if of_range.len() != count as usize {
                return Err(wrong());
            }
            missing.extend(copy.lacks(*range, first, of_range)?);
            let here = missing.iter().rev().take_while(|page| **page >= first).count() as u64;
            self.report(Phase::Fetch, (u64::from(count) - here) * u64::from(copy.listed.page_size.bytes()))?;
        }
        let per_object = (ASKED_BYTES / copy.listed.page_size.len()).max(1);
        let objects = missing.chunks(per_object).map(|pages| Object::Pages { database, runs: runs_of(pages) });
        let asks: Vec<Ask> = objects.chain(then.map(hashes_of)).map(|object| self.asking_for(object)).collect();
        for (at, pages) in missing.chunks(per_object).enumerate() {
            let next = &asks[at + 1..];
            self.pages(copy, pages, &asks[at], &next[..next.len().min(AHEAD - 1)])?;
        }
        Ok(())
    }

    /// Asks for pages, ascending, until each is what its hash says.
    fn pages(&mut self, copy: &mut Copy, pages: &[PageNo], ask: &Ask, next: &[Ask]) -> Result<(), Stop> {
        let (database, len) = (copy.listed.id, copy.listed.page_size.len());
        for _ in 0..TRIES {
            let bytes = self.object(ask, next)?;
            let unverified = planted::is(Bug::InstallUnverified);
            let right = bytes.len() == pages.len() * len
                && pages.iter().zip(bytes.chunks(len)).all(|(page, content)| {
                    copy.hash_to_come(*page).is_some_and(|hash| unverified || PageHash::of(*page, content) == hash)
                });
            if !right {
                continue;
            }
            let mut rest = &bytes[..];
            for (first, count) in runs_of(pages) {
                let (run, after) = rest.split_at(count as usize * len);
                copy.write(first, run)?;
                rest = after;
            }
            let done = bytes.len() as u64;
            self.ask.reuse(bytes);
            return self.report(Phase::Fetch, done);
        }
        Err(Stop::Wrong(format!("pages of database {database} came wrong {TRIES} times")))
    }

    /// Nothing is asked for any more.
    fn finish(&mut self, copy: Copy) -> Result<DatabaseFiles, Stop> {
        let (staging, complete) = copy.complete();
        let mut stop = None;
        let finished = staging.finish(&mut |first, count| {
            if let Err(why) = self.report(Phase::Verify, 0) {
                stop = Some(why);
                return Err(std::io::Error::other("the transfer ended"));
            }
            let hashes = (first.get()..first.get() + count).map(|number| complete.hash(number));
            hashes.collect::<Result<Vec<_>, Stop>>().map_err(|why| {
                stop = Some(why);
                std::io::Error::other("a hash is gone")
            })
        });
        let files = finished.map_err(|error| stop.unwrap_or_else(|| disk(error)))?;
        complete.keep(&mut self.hub.snapshots.parts.lock());
        Ok(files)
    }
}

/// Why no new files were begun. Whoever began before may still have them in its hands, for as long as one call takes: no fault
/// of the disk, and nothing that people could do anything about.
fn begun(error: std::io::Error) -> Stop {
    match error.kind() {
        ErrorKind::WouldBlock => Stop::Again("the attempt before has not let go of the new files yet".to_string()),
        _ => disk(error),
    }
}

#[cfg(test)]
mod tests;
