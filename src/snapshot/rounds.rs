//! What a node does about snapshots by itself: a leader offers, a node that was offered one fetches, and says when it is done;
//! a node with a damaged copy repairs it.
//!
//! An offer is repeated as long as Raft wants it, so nothing here need be remembered: a transfer that ended badly begins
//! anew with the next offer, and finds what the one before left.
//!
//! Deliberately absent: the thread (`node.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::ask::{AskNode, Source};
use super::fetch::BUSY;
use super::object::{Answer, Ask};
use super::repair::Repairs;
use super::{ALARM, Stop, UNSENT, fetch};
use crate::events::Event;
use crate::raft::Role;
use crate::shared::Hub;
use crate::types::{LogIndex, NodeId};

/// Time between two offers to one node; from the end of one that it did not answer.
const OFFER_EVERY: Duration = Duration::from_secs(1);
/// Time between two words about a snapshot that waits to be installed.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// Time until a transfer begins anew that another view will not mend by itself.
const AFTER_GIVING_UP: Duration = Duration::from_secs(5);

/// See the module's text.
#[derive(Default)]
pub(crate) struct Rounds {
    offered: BTreeMap<NodeId, Duration>,
    not_before: Duration,
    /// When the source was last told that a snapshot waits to be installed.
    kept: Duration,
    /// Who failed since a snapshot was last whole or the log last went on; the one that failed last is the last of them.
    failed: Vec<Failure>,
    /// How far the log was when people were told that there is no snapshot: once it goes on, none is needed.
    told_at: Option<LogIndex>,
    repairs: Repairs,
}

/// A source that sent nothing.
struct Failure {
    source: NodeId,
    why: String,
    /// How far the log was: once it goes on, this says nothing of what is needed next.
    at: LogIndex,
}

impl Rounds {
    /// Does what is due. Blocks for as long as a transfer takes.
    pub(crate) fn step(&mut self, hub: &Hub, ask: &mut dyn AskNode) {
        // Nothing that is fetched could count.
        if hub.trouble().is_some() || hub.snapshots.has_ended() {
            return;
        }
        self.offer(hub, ask);
        self.report(hub, ask);
        self.keep(hub, ask);
        let committed = hub.committed();
        self.failed.retain(|failure| failure.at >= committed);
        if self.told_at.is_some_and(|at| committed > at) {
            self.is_over(hub);
        }
        if let Some(source) = hub.snapshots.take_offer() {
            self.fetch(hub, source, ask);
        }
        self.repairs.step(hub, ask);
        Self::tidy(hub);
    }

    /// Whether some database was being repaired when this was stepped last: it may be repaired by now, or dropped.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn has_patients(&self) -> bool {
        self.repairs.has_patients()
    }

    /// An attempt may end without a snapshot, and the log may get further meanwhile, also beyond entries that drop databases of which
    /// something was fetched.
    fn tidy(hub: &Hub) {
        // Repairs go on with what was fetched for them, and clean up themselves.
        if hub.snapshots.is_in_hand() || hub.snapshots.has_mended() || !hub.databases.all_damaged().is_empty() {
            return;
        }
        if let Some(passed) = hub.snapshots.take_passed(hub.applied().index) {
            hub.snapshots.parts.lock().clear();
            hub.databases.delete_leftovers(|id| id.0 <= passed.0);
        }
    }

    fn offer(&mut self, hub: &Hub, ask: &mut dyn AskNode) {
        for peer in hub.snapshots.take_wanted() {
            // One that does not answer takes its time, and much may be otherwise by then.
            let leadership = hub.leadership();
            if leadership.role != Role::Leader || hub.is_stopped() {
                return;
            }
            let now = hub.waiting.clock.now();
            if self.offered.get(&peer).is_some_and(|at| now < *at + OFFER_EVERY) {
                continue;
            }
            self.offered.insert(peer, now);
            let offer = Ask::Offer { term: leadership.term, start: hub.core_start() };
            match ask.ask(peer, &offer) {
                // It may be from another node, as after a change of the leader; it is this log that it will go on by.
                Ok(Answer::OnItsWay { index }) => hub.pin(peer, index),
                Ok(_) => {}
                Err(why) => {
                    // Else its turn would have come again already, before that of the others.
                    self.offered.insert(peer, hub.waiting.clock.now());
                    tracing::debug!(node = hub.id.0, peer = peer.0, "a snapshot could not be offered: {why}");
                }
            }
        }
    }

    /// Tells the source of a snapshot that this node is done with its view. The lease would end by itself, but who listens over
    /// there is told of the end only once this is heard: so it is told until it is, also after a restart.
    fn report(&mut self, hub: &Hub, ask: &mut dyn AskNode) {
        let membership = hub.core_status.lock().as_ref().map(|core| core.membership.clone());
        for done in hub.snapshots.due_reports(hub.waiting.clock.now()) {
            if membership.as_ref().is_some_and(|membership| !membership.names(done.source)) {
                hub.snapshots.on_reported(done);
                continue;
            }
            let question = Ask::Done { view: done.view, outcome: done.outcome, index: done.index };
            match ask.ask(done.source, &question) {
                Ok(_) => hub.snapshots.on_reported(done),
                Err(_) => hub.snapshots.on_unreported(done, hub.waiting.clock.now()),
            }
        }
    }

    /// A snapshot that waits to be installed, as for room, would be useless if its source let go of the log behind it.
    fn keep(&mut self, hub: &Hub, ask: &mut dyn AskNode) {
        let now = hub.waiting.clock.now();
        let Some((transfer, view)) = hub.snapshots.waiting().filter(|_| now >= self.kept + KEEP_EVERY) else { return };
        self.kept = now;
        hub.events.tell(&transfer.event());
        // One that gets lost does no harm.
        let _ = ask.ask(transfer.source, &transfer.progress(view));
    }

    fn fetch(&mut self, hub: &Hub, offered_by: NodeId, ask: &mut dyn AskNode) {
        let now = hub.waiting.clock.now();
        if hub.snapshots.is_in_hand() || now < self.not_before {
            return;
        }
        // A snapshot has every database whole, and without it the log might never come to where that copy counts.
        if !hub.snapshots.drop_mended() {
            return;
        }
        let (mut refused, mut in_vain) = (None, BTreeMap::new());
        let sources = self.sources(hub, offered_by);
        for (at, source) in sources.iter().copied().enumerate() {
            match fetch::fetch(hub, source, &mut Source(source, ask)) {
                Ok(staged) => {
                    self.is_over(hub);
                    hub.snapshots.set_staged(staged);
                    return hub.upkeep.notify();
                }
                Err(Stop::NotNeeded) if source == offered_by => return self.is_over(hub),
                // Its log would do, and this node goes on by the leader's.
                Err(Stop::NotNeeded) => _ = in_vain.insert(source, "it has none to lend".to_string()),
                Err(Stop::Again(_)) => return,
                Err(Stop::Lost(why)) => {
                    self.put_last(hub, source, why);
                    // Those that did not fail come first.
                    if sources[at + 1..].iter().all(|next| self.failed.iter().any(|failure| failure.source == *next)) {
                        self.tell_of_all(hub, in_vain);
                    }
                    return;
                }
                Err(Stop::Refused(why)) => {
                    in_vain.insert(source, why.clone());
                    refused.get_or_insert_with(|| format!("no snapshot from node {source}: {why}"));
                }
                Err(Stop::GivenUp(_)) if hub.is_stopped() => return,
                Err(Stop::Wrong(why)) => {
                    self.put_last(hub, source, why.clone());
                    return self.give_up(hub, format!("no snapshot from node {source}: {why}; it is tried again"));
                }
                Err(Stop::GivenUp(why)) => {
                    return self.give_up(hub, format!("no snapshot from node {source}: {why}; it is tried again"));
                }
            }
        }
        if let Some(why) = refused {
            self.give_up(hub, format!("{why}; nor has any other node one; it is tried again"));
        }
    }

    /// Who may have a snapshot: the one who offered it; but a single damaged page keeps it from serving any, and then whoever is
    /// far enough will do. One that failed comes behind those that did not, and behind those that did before: one that is
    /// down takes its time, and one that fails each time would be the only one that is ever asked. Whose view was closed,
    /// or who had something for which there is no room here, is the right one to ask again.
    fn sources(&self, hub: &Hub, offered_by: NodeId) -> Vec<NodeId> {
        let core = hub.core_status.lock();
        let all = core.iter().flat_map(|core| core.membership.voters.iter().chain(&core.membership.learners)).copied();
        let others = all.filter(|id| *id != offered_by && *id != hub.id);
        let mut sources: Vec<NodeId> = std::iter::once(offered_by).chain(others).collect();
        sources.sort_by_key(|source| self.failed.iter().position(|failure| failure.source == *source));
        sources
    }

    fn put_last(&mut self, hub: &Hub, source: NodeId, why: String) {
        self.failed.retain(|failure| failure.source != source);
        self.failed.push(Failure { source, why, at: hub.committed() });
    }

    /// A snapshot is whole, or none is needed.
    fn is_over(&mut self, hub: &Hub) {
        self.failed.clear();
        self.told_at = None;
        let mut findings = hub.findings.lock();
        findings.alarms.remove(ALARM);
        findings.alarms.remove(UNSENT);
    }

    /// All were asked in vain, some of them in this round and not put last for it.
    fn tell_of_all(&mut self, hub: &Hub, mut in_vain: BTreeMap<NodeId, String>) {
        for Failure { source, why, .. } in &self.failed {
            in_vain.entry(*source).or_insert_with(|| why.clone());
        }
        // It runs and is reached: there is nothing to be done about it, and it may take its time.
        let advice = match in_vain.values().all(|why| why == BUSY) {
            true => {
                "each of them is busy, with a large transaction that is under way, say, and lends when that is over"
            }
            false => "see whether they run and can be reached from here",
        };
        let all: Vec<String> = in_vain.iter().map(|(source, why)| format!("node {source}: {why}")).collect();
        let what = format!(
            "no snapshot from {}; this node stays behind until one of them sends it one, and asks them again in turn; {advice}",
            all.join("; ")
        );
        self.told_at = Some(hub.committed());
        if hub.findings.lock().alarms.insert(UNSENT.to_string(), what.clone()).is_none() {
            tracing::warn!(node = hub.id.0, "{what}");
        }
    }

    fn give_up(&mut self, hub: &Hub, what: String) {
        tracing::error!(node = hub.id.0, "{what}");
        hub.events.tell(&Event::DiskTrouble { what: what.clone() });
        hub.findings.lock().alarms.insert(ALARM.to_string(), what);
        self.told_at = Some(hub.committed());
        self.not_before = hub.waiting.clock.now() + AFTER_GIVING_UP;
    }
}

#[cfg(test)]
mod tests;
