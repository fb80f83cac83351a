//! What a node does about its damaged copies of databases: which of the others has the right one, and fetching it.
//!
//! One database after the other, until it is whole:
//!
//! ```text
//! 1 open     a view of it on another voter, of an entry that is not before what this node had applied when it first asked. One that
//!            is busy, or has not come so far, is asked again for a while, and then the next one. If there is no other one it is asked
//!            on, and an alarm says so
//! 2 agree    every other voter is asked for its checksum of the database at the position of that view. Who is not there yet,
//!            or does not answer, is asked again; who has passed it cannot say any more
//! 3 fetch    once a majority of the voters has the checksum of the view: pages by their hashes, what is whole here is copied
//! 4 mend     `mend.rs`
//! ```
//!
//! **Agreement** (INV-39). One rotten copy must not become everybody's, so the lender alone is not believed. A majority of the
//! voters, in a joint configuration one of each half, must have had the same checksum at the same position. The lender is one
//! of them. This node is one if only bytes on its disk are wrong: its books then have a checksum of some position, and the
//! lender is asked whether it had the same. It is none if its books differ, or are gone.
//!
//! If no majority agrees with the lender the next one is tried; if with nobody, nothing is repaired, and an alarm says so:
//! then a person has to decide which copy is right. Where no other node votes there is nobody to ask, and people are told which
//! learners may have it.
//!
//! Everything may be lost at any moment, and costs an attempt. Nothing of this is known to Raft.
//!
//! Deliberately absent: how damage is found (`apply.rs`, `upkeep.rs`), the thread, and making the copy count (`mend.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Mended;
use super::ask::{AskNode, Source};
use super::object::{Answer, Ask, Listed, Outcome, ViewId};
use super::{Stop, fetch};
use crate::catalogue::DatabaseId;
use crate::databases::{Damage, Help};
use crate::shared::Hub;
use crate::types::{EntryId, LogIndex, Membership, NodeId};

/// How long the voters may take to agree about one view.
const AGREE_WITHIN: Duration = Duration::from_secs(10);
/// Time until the next attempt after one that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a lender may be busy, or not far enough, until the next one is asked, or somebody is told that there is none.
const BUSY_FOR: Duration = Duration::from_secs(5);

/// A view that was opened, and who has the same.
struct Attempt {
    source: NodeId,
    view: ViewId,
    at: EntryId,
    listed: Listed,
    same: BTreeSet<NodeId>,
    /// Who has something else, or cannot say any more.
    other: BTreeSet<NodeId>,
    until: Duration,
}

/// One damaged database.
#[derive(Default)]
struct Patient {
    attempt: Option<Attempt>,
    /// How many lenders were tried.
    tried: usize,
    /// Since when the one whose turn it is has been busy.
    busy: Option<Duration>,
    /// Whether what people are told is that the only lender is busy.
    told_of_busy: bool,
    /// The entry that a view is to be of at least, from the first question until one is lent. If it went along with what is applied
    /// here, a lender that is always a little behind would be one that is busy for ever.
    beyond: Option<LogIndex>,
    not_before: Duration,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Repairs {
    patients: BTreeMap<DatabaseId, Patient>,
}

/// Whether these nodes are a majority, in each half of a joint configuration.
fn is_majority(membership: &Membership, nodes: &BTreeSet<NodeId>) -> bool {
    let of = |voters: &[NodeId]| 2 * voters.iter().filter(|voter| nodes.contains(voter)).count() > voters.len();
    let Membership { voters, voters_outgoing, .. } = membership;
    of(voters) && (voters_outgoing.is_empty() || of(voters_outgoing))
}

/// The name of the alarm about a database that is not repaired yet.
pub(crate) fn alarm_about(id: DatabaseId) -> String {
    format!("repair {id}")
}

impl Repairs {
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn has_patients(&self) -> bool {
        !self.patients.is_empty()
    }

    /// Does what is due. Blocks for as long as a transfer takes.
    pub(crate) fn step(&mut self, hub: &Hub, ask: &mut dyn AskNode) {
        let damaged = hub.databases.all_damaged();
        let cured: Vec<DatabaseId> = self.patients.keys().filter(|id| !damaged.contains(id)).copied().collect();
        for id in cured {
            let patient = self.patients.remove(&id);
            if let Some(attempt) = patient.and_then(|patient| patient.attempt) {
                give_back(&attempt, ask);
            }
            hub.findings.lock().alarms.remove(&alarm_about(id));
            // What was fetched for it, and nobody goes on with: nor is it remembered as being in place. Whoever installs a snapshot
            // does the same afterwards.
            if !hub.snapshots.is_in_hand() {
                hub.snapshots.parts.lock().clear();
                hub.databases.delete_leftovers(|left| left == id);
            }
        }
        // One new generation at a time waits to count.
        if hub.snapshots.is_in_hand() || hub.snapshots.has_mended() {
            return;
        }
        let Some(core) = hub.core_status.lock().clone() else { return };
        for id in damaged {
            let now = hub.waiting.clock.now();
            let patient = self.patients.entry(id).or_default();
            if now < patient.not_before {
                continue;
            }
            match treat(hub, id, patient, &core.membership, ask) {
                Ok(Some(mended)) => return hub.snapshots.set_mended(Box::new(mended)),
                Ok(None) => {}
                Err(why) => {
                    if let Some(attempt) = patient.attempt.take() {
                        give_back(&attempt, ask);
                    }
                    patient.tried += 1;
                    patient.busy = None;
                    patient.told_of_busy = false;
                    patient.not_before = now + PAUSE;
                    alarm(hub, id, &why);
                }
            }
        }
    }
}

/// Why a database is not repaired yet: the log has it once.
fn alarm(hub: &Hub, id: DatabaseId, why: &str) {
    let what = format!("database {} is not repaired yet: {why}", name_of(hub, id));
    let told = hub.findings.lock().alarms.insert(alarm_about(id), what.clone());
    if told.as_ref() != Some(&what) {
        tracing::warn!(node = hub.id.0, "{what}");
    }
}

fn name_of(hub: &Hub, id: DatabaseId) -> String {
    hub.databases.get(id).map_or_else(|| id.to_string(), |db| db.name().to_string())
}

fn give_back(attempt: &Attempt, ask: &mut dyn AskNode) {
    // If it does not arrive, the lease ends by itself.
    let done = Ask::Done { view: attempt.view, outcome: Outcome::GivenUp, index: attempt.at.index };
    let _ = ask.ask(attempt.source, &done);
}

/// The next thing for one database: the copy, or nothing yet, or why this attempt came to nothing.
fn treat(
    hub: &Hub,
    id: DatabaseId,
    patient: &mut Patient,
    membership: &Membership,
    ask: &mut dyn AskNode,
) -> Result<Option<Mended>, String> {
    if patient.attempt.is_none() {
        let Some(attempt) = open(hub, id, patient, membership, ask)? else { return Ok(None) };
        // What comes of it or not, the next one is to be a newer one: of an old one the others cannot tell the checksum any more.
        (patient.attempt, patient.beyond) = (Some(attempt), None);
        patient.busy = None;
        if std::mem::take(&mut patient.told_of_busy) {
            hub.findings.lock().alarms.remove(&alarm_about(id));
        }
    }
    let Some(attempt) = &mut patient.attempt else { return Ok(None) };
    if !agree(hub, id, attempt, membership, ask)? {
        return Ok(None);
    }
    let Attempt { source, view, at, listed, .. } = attempt;
    let (source, view, at) = (*source, *view, *at);
    match fetch::fetch_one(hub, source, (view, at), listed, &mut Source(source, ask)) {
        Ok((files, received)) => {
            // The view is given back once the copy counts. If it does not come to that, it is somebody else's turn.
            patient.attempt = None;
            patient.tried += 1;
            patient.not_before = hub.waiting.clock.now() + PAUSE;
            Ok(Some(Mended { source, view, at, database: id, files, received, tried: false }))
        }
        Err(Stop::Again(why) | Stop::Lost(why) | Stop::Refused(why) | Stop::Wrong(why) | Stop::GivenUp(why)) => {
            Err(format!("node {source}: {why}"))
        }
        Err(Stop::NotNeeded) => Err(format!("node {source} has nothing to offer")),
    }
}

/// A view on the voter whose turn it is: those that do not lead come first, since a leader has enough to do.
fn open(
    hub: &Hub,
    id: DatabaseId,
    patient: &mut Patient,
    membership: &Membership,
    ask: &mut dyn AskNode,
) -> Result<Option<Attempt>, String> {
    let leader = hub.leadership().leader;
    let mut lenders: Vec<NodeId> = membership.voters.iter().copied().filter(|voter| *voter != hub.id).collect();
    lenders.sort_unstable_by_key(|voter| (Some(*voter) == leader, *voter));
    if lenders.is_empty() {
        let advice = hub.databases.damage(id).and_then(|damage| Help::of(hub.id, membership).advice(damage));
        return Err(format!("there is no other voter; {}", advice.unwrap_or_else(|| "see `shoal status`".to_string())));
    }
    let source = lenders[patient.tried % lenders.len()];
    // The log here keeps what is behind it: it begins at an anchor, which a database that is not served keeps from moving. A snapshot
    // may have taken its place since, and left the database as damaged as it was.
    let first = *patient.beyond.get_or_insert(hub.applied().index);
    let beyond = first.max(hub.core_start()).max(LogIndex(1));
    let from = |why: String| format!("node {source}: {why}");
    match ask.ask(source, &Ask::OpenOne { database: id, beyond }).map_err(from)? {
        Answer::OpenedOne { view, at, listed } if at.index >= beyond && listed.id == id => {
            let until = hub.waiting.clock.now() + AGREE_WITHIN;
            let (same, other) = (BTreeSet::from([source]), BTreeSet::new());
            Ok(Some(Attempt { source, view, at, listed, same, other, until }))
        }
        // It is asked again at the next step.
        Answer::Busy { .. } => {
            let now = hub.waiting.clock.now();
            if now < *patient.busy.get_or_insert(now) + BUSY_FOR {
                return Ok(None);
            }
            let why = from(format!("it is busy, or not at entry {beyond} yet"));
            if lenders.len() > 1 {
                return Err(why);
            }
            let advice = "see there what `shoal status` says, and why that node does not get on";
            alarm(hub, id, &format!("{why}, and there is no other voter to ask; it is asked again; {advice}"));
            patient.told_of_busy = true;
            Ok(None)
        }
        Answer::No(why) => Err(from(why)),
        answer => Err(from(format!("an answer that makes no sense: {answer:?}"))),
    }
}

/// Whether a majority has what the view has. An error if there will be none.
fn agree(
    hub: &Hub,
    id: DatabaseId,
    attempt: &mut Attempt,
    membership: &Membership,
    ask: &mut dyn AskNode,
) -> Result<bool, String> {
    let (position, checksum) = (attempt.listed.at.position, attempt.listed.at.checksum);
    let all: BTreeSet<NodeId> = membership.voters.iter().chain(&membership.voters_outgoing).copied().collect();
    for voter in all {
        if attempt.same.contains(&voter) || attempt.other.contains(&voter) {
            continue;
        }
        let same = if voter == hub.id {
            own_books(hub, id, attempt.source, ask)
        } else {
            match ask.ask(voter, &Ask::Sum { database: id, at: position }) {
                Ok(Answer::Sum { position: found, checksum: sum }) => Some(found == position && sum == checksum),
                Ok(Answer::No(_)) => Some(false),
                _ => None,
            }
        };
        match same {
            Some(true) => _ = attempt.same.insert(voter),
            Some(false) => _ = attempt.other.insert(voter),
            None => {}
        }
    }
    if is_majority(membership, &attempt.same) {
        return Ok(true);
    }
    let everybody = |node: &NodeId| attempt.other.contains(node);
    let rest: BTreeSet<NodeId> = (membership.voters.iter().chain(&membership.voters_outgoing))
        .copied()
        .filter(|node| !everybody(node))
        .collect();
    if !is_majority(membership, &rest) || hub.waiting.clock.now() >= attempt.until {
        let (same, other) = (&attempt.same, &attempt.other);
        return Err(format!(
            "no majority has what node {} has at position {position}: the same {same:?}, not the same or not known any more {other:?}",
            attempt.source
        ));
    }
    Ok(false)
}

/// Whether the lender had what this node's books say, of the position that they speak of.
fn own_books(hub: &Hub, id: DatabaseId, source: NodeId, ask: &mut dyn AskNode) -> Option<bool> {
    let Some(db) = hub.databases.get(id).filter(|_| hub.databases.damage(id) == Some(Damage::Rotten)) else {
        return Some(false);
    };
    let (position, checksum) = db.checksum();
    match ask.ask(source, &Ask::Sum { database: id, at: position }) {
        Ok(Answer::Sum { position: found, checksum: sum }) => Some(found == position && sum == checksum),
        Ok(Answer::No(_)) => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
