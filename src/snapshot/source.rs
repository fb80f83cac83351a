//! The answers: opening a view, and making objects out of it.
//!
//! A view is cut between two applied entries, when everything that is committed up to there is shown. Nothing waits for it but
//! the applier, for moments: opening a view of a database reads nothing of it.
//!
//! What is small enough (`snapshot_chunk_max_size`) is copied into memory at once, and the views are closed: then no checkpoint
//! waits for the one who fetches, however slow that is. Objects are the same.
//!
//! Whoever takes it goes on behind that entry by the log. While a transaction is open in parts that would be too late, since
//! its first parts are in no database yet. Then the log of the snapshot begins where this node's own start would begin, at
//! the newest anchor, with the members and the catalogue of that entry; what the pages have already is skipped, as it is
//! after a start. The leader must not depend on the end of that transaction: it may need just the one who fetches for a majority.
//! Main files may also be ahead of a view in which nothing is open; see [`cut_here`].
//!
//! Any node that is a member answers, whatever it is in Raft: what it has applied is committed.
//!
//! Deliberately absent: who asks, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use shoaldb_vfs::page::{PageNo, PageSize};
use shoaldb_vfs::transaction::Position;
use shoaldb_vfs::view::{ReadView, ViewError};

use super::ALARM;
use super::object::{
    self, Answer, Ask, HASHED_RANGES, Listed, Manifest, OBJECT_BYTES, Object, Outcome, RANGES_PER_OBJECT, ViewId,
};
use super::views::{Cut, Turn};
use crate::catalogue::{Catalogue, DatabaseId};
use crate::databases::Damage;
use crate::events::Event;
use crate::history::History;
use crate::planted::{self, Bug};
use crate::registry::{self, GONE};
use crate::shared::{Hub, Input};
use crate::types::{EntryId, LogIndex, Membership, NodeId};

/// When one should ask again that came at a bad moment.
const SOON_MILLIS: u32 = 20;
/// When one should ask again while others are served.
const LATER_MILLIS: u32 = 50;

/// Answers an ask that came as bytes from a node.
pub(crate) fn serve(hub: &Hub, from: Option<NodeId>, body: &[u8]) -> Vec<u8> {
    let answer = match (from, Ask::decode(body)) {
        (None, _) => Answer::No("snapshots are for nodes of the cluster".to_string()),
        (_, Err(damaged)) => Answer::No(format!("not a question about snapshots: {damaged}")),
        (Some(from), Ok(ask)) => answer(hub, from, ask),
    };
    answer.encode()
}

fn answer(hub: &Hub, from: NodeId, ask: Ask) -> Answer {
    let now = hub.waiting.clock.now();
    match ask {
        Ask::Offer { term, start } => {
            let leadership = hub.leadership();
            if (leadership.term, leadership.leader) != (term, Some(from)) {
                return Answer::No(format!("node {from} does not lead in term {}", leadership.term));
            }
            let committed = hub.core_status.lock().as_ref().map(|core| core.committed);
            if committed.is_some_and(|committed| committed >= start) {
                // It only does not know yet.
                hub.post(Input::Announce);
                return Answer::NotNeeded;
            }
            if hub.snapshots.drop_outdated(start) {
                hub.findings.lock().alarms.remove(ALARM);
                tracing::info!(
                    node = hub.id.0,
                    "a snapshot that waited is dropped: the log of the leader begins behind {start}"
                );
            }
            hub.snapshots.offer(from);
            match hub.snapshots.coming() {
                Some(index) => Answer::OnItsWay { index },
                None => Answer::Yes,
            }
        }
        Ask::Open { have, shown } => {
            let log_start = hub.core_start();
            if have >= log_start && log_start.0 > 0 {
                return Answer::NotNeeded;
            }
            // One that is there will do if a new one would hardly show more.
            let least = shown.min(hub.applied().index.max(hub.reach()));
            if let Some((view, at)) = hub.snapshots.views.reuse(from, (have, least), log_start, now) {
                return lent(hub, from, view, at);
            }
            // This node may know less to be committed than the other one shows, and need it for knowing more.
            match cut(hub, from, None) {
                Ok(cut) => {
                    let at = cut.at;
                    let view = hub.snapshots.views.lend(hub.session, cut, from, now);
                    lent(hub, from, view, at)
                }
                Err(answer) => answer,
            }
        }
        Ask::OpenOne { database, beyond } => {
            if let Some((view, at, listed)) = hub.snapshots.views.reuse_one(from, database, beyond, now) {
                return Answer::OpenedOne { view, at, listed };
            }
            if hub.applied().index < beyond {
                return Answer::Busy { millis: LATER_MILLIS };
            }
            match cut(hub, from, Some(database)) {
                Ok(Cut { only: None, .. }) => Answer::No(format!("there is no database {database}")),
                Ok(cut) => {
                    let (at, listed) = (cut.at, cut.only.clone());
                    let view = hub.snapshots.views.lend(hub.session, cut, from, now);
                    match listed {
                        Some(listed) => Answer::OpenedOne { view, at, listed },
                        None => Answer::Gone,
                    }
                }
                Err(answer) => answer,
            }
        }
        Ask::Sum { database, at } => sum(hub, database, at),
        Ask::Fetch { view, object } => fetch(hub, from, view, &object),
        Ask::Progress { view, done, total, .. } => match hub.snapshots.views.renew(view, from, now) {
            Some(cut) => {
                hub.snapshots.views.note_progress(view, from, (done, total));
                let index = cut.at.index;
                hub.events.tell(&Event::SnapshotProgress { peer: from, index, receiving: false, done, total });
                Answer::Yes
            }
            None => Answer::Gone,
        },
        Ask::Done { view, outcome, .. } => {
            // The first time only: the answer may have been lost, and is asked for again.
            if let Some(at) = hub.snapshots.views.give_back(view, from, outcome, now)
                && outcome == Outcome::Installed
                && at.index >= hub.core_start()
            {
                // Else the log here begins behind it already, and another one follows.
                hub.events.tell(&Event::SnapshotFinished { peer: from, index: at.index, receiving: false });
            }
            Answer::Yes
        }
    }
}

/// A view of everything was lent. Who listens here is told once for a transfer: one that asks again has lost the answer, or its
/// lease, or gave up and goes on.
fn lent(hub: &Hub, to: NodeId, view: ViewId, at: EntryId) -> Answer {
    if hub.snapshots.views.begins(to, at.index) {
        hub.events.tell(&Event::SnapshotStarted { peer: to, index: at.index, receiving: false });
    }
    Answer::Opened { view, at }
}

/// Everybody who is named.
fn named(membership: &Membership) -> Vec<NodeId> {
    let Membership { voters, learners, voters_outgoing, learners_next, .. } = membership;
    [voters, learners, voters_outgoing, learners_next].into_iter().flatten().copied().collect()
}

/// What the books of this node say. Rotten pages are no reason to keep silent: they differ from the books.
fn sum(hub: &Hub, database: DatabaseId, at: Position) -> Answer {
    let Some(db) = hub.databases.get(database) else { return Answer::No(format!("there is no database {database}")) };
    if hub.databases.damage(database).is_some_and(|damage| damage != Damage::Rotten) {
        return Answer::No(format!("database {database} is damaged on node {}, too", hub.id));
    }
    if let Some(checksum) = db.checksum_at(at) {
        return Answer::Sum { position: at, checksum };
    }
    match db.checksum() {
        (position, _) if position < at => Answer::Busy { millis: LATER_MILLIS },
        (position, checksum) => Answer::Sum { position, checksum },
    }
}

fn cut(hub: &Hub, to: NodeId, only: Option<DatabaseId>) -> Result<Cut, Answer> {
    // While as many objects are made as may be, nothing of a new view could be sent, and its databases would wait for that with
    // their checkpoints. Copying one into memory is work like making an object.
    let Some(_sending) = hub.snapshots.views.begin_sending() else { return Err(Answer::Busy { millis: LATER_MILLIS }) };
    let mut made = Err(Answer::Busy { millis: SOON_MILLIS });
    hub.between_entries(&mut || made = cut_here(hub, to, only));
    let mut cut = made?;
    let bytes = |view: &ReadView| u64::from(view.at().size.0) * u64::from(view.geometry().page_size.bytes());
    if cut.databases.values().map(bytes).sum::<u64>() <= hub.config.snapshot_chunk_max_size {
        // The gates are open again when this is done.
        for view in cut.databases.values_mut() {
            let copy = view.copied().map_err(|error| Answer::No(format!("a database cannot be lent: {error}")))?;
            std::mem::replace(view, copy).close();
        }
    }
    Ok(cut)
}

/// The caller sees to it that nothing is applied meanwhile.
fn cut_here(hub: &Hub, to: NodeId, only: Option<DatabaseId>) -> Result<Cut, Answer> {
    let soon = || Answer::Busy { millis: SOON_MILLIS };
    let at = hub.applied();
    let Some(core) = hub.core_status.lock().clone() else { return Err(soon()) };
    // Members as of this entry are known once the core has heard that it is applied.
    if core.applied != at.index {
        return Err(soon());
    }
    let current = hub.catalogue.lock().clone().ok_or_else(soon)?;
    let settled = hub.progress().settled() == at.index || planted::is(Bug::ViewOfOpenSplit);
    let start = match (settled, only) {
        (true, _) => Start { at, membership: core.membership.clone(), catalogue: current.clone() },
        (false, None) => beginning(hub).ok_or_else(soon)?,
        // A copy is mended behind the transaction; nobody needs it for a majority.
        (false, Some(_)) => return Err(soon()),
    };
    let members = named(&start.membership);
    if !members.contains(&to) {
        // An anchor may be from before this node was told of; the next one is not.
        let no = || Answer::No(format!("node {to} is no member as of entry {}", at.index));
        return Err(if core.membership.names(to) { soon() } else { no() });
    }
    let (mut databases, mut listed) = (BTreeMap::new(), Vec::new());
    // What a snapshot brought is ahead of the log, and lacks what is dropped behind it. A copy is mended by the log, and waits.
    let mut reach = if only.is_some() { at.index } else { at.index.max(hub.reach()) };
    let wanted = |id: DatabaseId| {
        only.is_none_or(|only| only == id)
            && start.catalogue.database(id).is_some()
            && hub.databases.generation(id) != GONE
    };
    for (id, info) in current.databases().filter(|(id, _)| wanted(*id)) {
        let db = hub.databases.get(id).ok_or_else(soon)?;
        let view = db.read_view().map_err(|error| {
            Answer::No(format!("database {} cannot be lent: {error}; ask another node", info.name.as_str()))
        })?;
        let found = view.at();
        // A transaction of this node that is accepted shows before the applier has passed it. What is in a main file is ahead of
        // that after a start, until more is known to be committed; which may wait for this very view.
        if found.position.0 > reach.0 {
            if only.is_some() || found.position > db.status().checkpointed {
                return Err(soon());
            }
            reach = LogIndex(found.position.0);
        }
        listed.push(Listed { id, page_size: info.page_size, at: found });
        databases.insert(id, view);
    }
    if only.is_some() {
        return Ok(Cut { at, reach, members, manifest: Vec::new(), databases, only: listed.pop() });
    }
    let Start { at: start, membership, catalogue } = start;
    let manifest = Manifest { at: start, reach, membership, catalogue, databases: listed }.encode();
    Ok(Cut { at: start, reach, members, manifest, databases, only: None })
}

/// What the log of a snapshot begins with.
struct Start {
    at: EntryId,
    membership: Membership,
    catalogue: Catalogue,
}

/// What a start of this node would begin with. It is at or before what is settled, and the log has everything behind it.
fn beginning(hub: &Hub) -> Option<Start> {
    let (at, anchor) = hub.anchor()?;
    let (_, registry) = History::split(&anchor.registry).ok()?;
    let catalogue = registry::decode(registry).ok()?.catalogue;
    Some(Start { at, membership: anchor.membership, catalogue })
}

/// An object that is made for this one, or was a moment ago for another one that fetches from the same view.
fn fetch(hub: &Hub, from: NodeId, view: ViewId, object: &Object) -> Answer {
    let (now, views) = (hub.waiting.clock.now(), &hub.snapshots.views);
    let again = |left: Duration| Answer::Busy { millis: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1) };
    let Some(cut) = views.renew(view, from, now) else { return Answer::Gone };
    if let Some(left) = hub.snapshots.pace.wait(now) {
        return again(left);
    }
    let Some(_sending) = views.begin_sending() else { return Answer::Busy { millis: LATER_MILLIS } };
    let (bytes, was_made) = match views.turn(view, from, object, now) {
        Turn::Wait(left) => return again(left),
        Turn::There(made) => (with_room(&made), false),
        Turn::Make(place) => match make(&cut, object) {
            Ok(bytes) => {
                if let Some(place) = place {
                    place.put(&bytes);
                }
                (bytes, true)
            }
            Err(Unmade::Closed) => return Answer::Gone,
            Err(Unmade::No(why)) => return Answer::No(why),
        },
    };
    hub.snapshots.pace.sent(now, bytes.len(), hub.config.snapshot_rate);
    views.note_sent(bytes.len(), was_made);
    Answer::Object { bytes }
}

/// A copy with room for what comes before it in the answer, so that it is not moved to another place then.
fn with_room(bytes: &[u8]) -> Vec<u8> {
    let mut copy = Vec::with_capacity(bytes.len() + object::OBJECT_HEAD);
    copy.extend_from_slice(bytes);
    copy
}

fn make(cut: &Cut, object: &Object) -> Result<Vec<u8>, Unmade> {
    let no_such = || Unmade::No("no such object in this view".to_string());
    let view = |database: &DatabaseId| cut.databases.get(database).ok_or_else(no_such);
    match object {
        Object::Manifest if cut.only.is_some() => Err(no_such()),
        Object::Manifest => Ok(cut.manifest.clone()),
        Object::Ranges { database, first, count } => ranges(view(database)?, *first, *count),
        Object::Hashes { database, ranges } => hashes(view(database)?, ranges),
        Object::Pages { database, runs } => pages(view(database)?, runs),
    }
}

enum Unmade {
    Closed,
    No(String),
}

impl From<ViewError> for Unmade {
    fn from(error: ViewError) -> Unmade {
        match error {
            ViewError::Closed => Unmade::Closed,
            other => Unmade::No(other.to_string()),
        }
    }
}

fn outside(what: &str) -> Unmade {
    Unmade::No(format!("{what} are not in this view, or are too many for one object"))
}

fn ranges(view: &ReadView, first: u32, count: u32) -> Result<Vec<u8>, Unmade> {
    let size = view.at().size;
    if count > RANGES_PER_OBJECT || first.checked_add(count).is_none_or(|end| end > object::ranges_of(size)) {
        return Err(outside("these ranges"));
    }
    let mut bytes = Vec::with_capacity(count as usize * 16);
    for range in first..first + count {
        let (first, count) = object::pages_of(range, size).ok_or_else(|| outside("these ranges"))?;
        bytes.extend_from_slice(&object::range_hash(&view.hashes(first, count)?).to_le_bytes());
    }
    Ok(bytes)
}

fn hashes(view: &ReadView, ranges: &[u32]) -> Result<Vec<u8>, Unmade> {
    if ranges.len() > HASHED_RANGES {
        return Err(outside("these ranges"));
    }
    let mut bytes = Vec::new();
    for range in ranges {
        let (first, count) = object::pages_of(*range, view.at().size).ok_or_else(|| outside("these ranges"))?;
        bytes.extend_from_slice(&object::hashes_as_bytes(&view.hashes(first, count)?));
    }
    Ok(bytes)
}

fn pages(view: &ReadView, runs: &[(PageNo, u32)]) -> Result<Vec<u8>, Unmade> {
    let page_size: PageSize = view.geometry().page_size;
    let count: u64 = runs.iter().map(|(_, count)| u64::from(*count)).sum();
    let len = count * u64::from(page_size.bytes());
    if len > OBJECT_BYTES as u64 {
        return Err(outside("these pages"));
    }
    // With room for what comes before it in the answer, so that it is not moved to another place then.
    let mut bytes = Vec::with_capacity(len as usize + object::OBJECT_HEAD);
    for (first, count) in runs {
        let end = u64::from(first.get()) + u64::from(*count);
        if end > u64::from(view.at().size.0) + 1 {
            return Err(outside("these pages"));
        }
        view.append_pages(*first, *count, &mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
