//! Who comes and who goes: nodes that join, people who change the members, disks that are lost for good.
//!
//! ```text
//! what a person does              how
//! lets a node join                an empty node asks a door; it rises to be a voter
//! adds a learner, promotes it     two requests, to whatever node
//! removes a member                a voter, a learner, the leader
//! replaces a voter                a learner takes its place, in one joint change
//! loses a disk                    the node comes back empty under its old id, and is refused for ever; a new one joins, and the
//!                                 old id is removed or replaced
//! ```
//!
//! A person is careful in one thing only: a disk is lost while a majority of the voters keeps theirs, whatever comes of the
//! changes that are under way, and no healthy voter is removed while one is lost. That is what Shoal rests on.
//!
//! Answers are taken at their word: see [`State::check_members`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::calls::{Asker, Caller};
use super::excuses::Gives;
use super::load::id_of;
use super::node::Seat;
use super::world::{At, Ev, State};
use crate::admin::{self, Letter, Reply, Request};
use crate::error::ErrorKind;
use crate::net::RequestError;
use crate::node;
use crate::shared::Hub;
use crate::types::{LogIndex, Membership, NodeId};

/// Members at the same time.
const MOST: usize = 7;
/// How long a door is waited for.
const JOIN_PATIENCE: Duration = Duration::from_secs(3);

/// What a person asks for.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Learner(NodeId),
    Promote(NodeId),
    Remove(NodeId),
    Replace { old: NodeId, new: NodeId },
}

/// What people were told, by node.
#[derive(Default)]
pub(super) struct Answers {
    /// It was done.
    added: BTreeSet<NodeId>,
    removed: BTreeSet<NodeId>,
    /// It led when somebody asked that it go.
    led: BTreeSet<NodeId>,
    /// Requests to remove it that may have been done.
    perhaps_removed: BTreeSet<NodeId>,
    /// Members as of each index, as the first node had them that came there.
    at_index: BTreeMap<u64, (At, Membership)>,
    /// The index at which each node was looked at last.
    looked_at: BTreeMap<At, u64>,
}

impl Change {
    fn request(&self) -> Request {
        match self {
            Change::Learner(node) => Request::AddLearner { node: *node, address: format!("n{node}") },
            Change::Promote(node) => Request::Promote { node: *node },
            Change::Remove(node) => Request::Remove { node: *node },
            Change::Replace { old, new } => Request::Replace { old: *old, new: *new },
        }
    }

    fn removes(&self) -> Option<NodeId> {
        match self {
            Change::Remove(node) | Change::Replace { old: node, .. } => Some(*node),
            Change::Learner(_) | Change::Promote(_) => None,
        }
    }
}

fn at_of(node: NodeId) -> At {
    usize::from(node.0) - 1
}

impl State {
    /// The newest leader that has applied an entry of its own term, and the members as it has them.
    pub(super) fn newest_leader(&self) -> Option<(At, Membership)> {
        let leads = |(at, slot): (At, &super::node::Slot)| {
            let hub = slot.hub().filter(|hub| hub.is_ready_leader())?;
            let membership = hub.core_status.lock().as_ref()?.membership.clone();
            Some((hub.leadership().term, at, membership))
        };
        let newest = self.slots.iter().enumerate().filter_map(leads).max_by_key(|(term, ..)| *term)?;
        // Who was removed and knows it may be of a later term, and leads nobody.
        let hubs = self.slots.iter().filter_map(|slot| slot.hub()).filter(|hub| !hub.is_removed());
        let terms = hubs.map(|hub| hub.leadership().term);
        (terms.max() == Some(newest.0)).then_some((newest.1, newest.2))
    }

    /// Nodes that take part: members whose directory is the one that the others know.
    pub(super) fn participants(&self) -> Vec<At> {
        let Some((_, members)) = self.newest_leader() else { return Vec::new() };
        let all = 0..self.slots.len();
        all.filter(|at| members.names(self.slots[*at].id) && !self.is_out(*at)).collect()
    }

    /// Those of them that serve this database, or have none: of a damaged copy no majority can say what it should be (`bounds.rs`).
    pub(super) fn participants_that_serve(&self, name: &str) -> Vec<At> {
        let is_whole = |hub: &Hub| id_of(hub, name).is_none_or(|id| !hub.databases.all_damaged().contains(&id));
        let serves = |at: &At| self.slots[*at].hub().is_none_or(is_whole);
        self.participants().into_iter().filter(serves).collect()
    }

    /// A voter whose disk is gone, and which is not removed yet.
    fn lost_voter(&self, members: &Membership) -> Option<NodeId> {
        members.voters.iter().copied().find(|id| self.slots[at_of(*id)].wiped && self.is_out(at_of(*id)))
    }

    pub(super) fn on_person(&mut self) {
        if !self.stormy {
            return;
        }
        let wait = 100 + self.dice.below(2 * self.shape.changes);
        self.after_millis(wait, Ev::Person);
        if !self.strikes() {
            return;
        }
        let Some((leader, members)) = self.newest_leader() else { return };
        let pick =
            |state: &State, of: &[NodeId]| (!of.is_empty()).then(|| of[state.dice.below(of.len() as u64) as usize]);
        let lost = self.lost_voter(&members);
        if self.shape.crowds {
            return self.let_one_in(leader, &members);
        }
        let kind = self.dice.below(if self.is_late_for_a_change() { 4 } else { 12 });
        match kind {
            0..=3 => self.add_node(&members, kind < 2),
            4 => {
                let learners = members.learners.clone();
                if let Some(node) = pick(self, &learners) {
                    self.request_change(Change::Promote(node));
                }
            }
            5..=8 => {
                let whom =
                    if self.dice.below(3) == 0 { Some(self.slots[leader].id) } else { pick(self, &members.voters) };
                let learner = pick(self, &members.learners).filter(|_| self.dice.below(3) == 0);
                let old = lost.or(learner).or(whom.filter(|_| self.may_spare_a_voter(&members)));
                let new = pick(self, &members.learners);
                match (old, new) {
                    (Some(old), Some(new)) if kind < 7 && members.voters.contains(&old) => {
                        self.request_change(Change::Replace { old, new });
                    }
                    (Some(old), _) => self.request_change(Change::Remove(old)),
                    _ => {}
                }
            }
            9 => {
                let at = self.dice.below(self.slots.len() as u64) as usize;
                self.wipe(at);
            }
            _ => {}
        }
    }

    /// Lets a node in that needs a snapshot, once the one before it votes. Whether it may vote yet is asked all the time.
    fn let_one_in(&mut self, leader: At, members: &Membership) {
        let learner = members.learners.first().copied();
        if let Some(node) = learner.filter(|_| self.dice.below(2) == 0) {
            return self.request_change(Change::Promote(node));
        }
        let needed = self.slots[leader].hub().is_some_and(|hub| hub.core_start() > LogIndex(1));
        let comes = self.slots.iter().any(|slot| slot.started && !slot.wiped && !members.voters.contains(&slot.id));
        if self.is_late_for_a_change() || needed && !comes {
            let as_learner = self.dice.below(2) == 0;
            self.add_node(members, as_learner);
        }
    }

    /// Whether people can do without one of the voters.
    fn may_spare_a_voter(&self, members: &Membership) -> bool {
        let voters = members.voters.len();
        // Of two, no majority is left without the one that rots.
        voters > 3 || (voters == 3 && !self.shape.rots && self.dice.below(4) == 0)
    }

    /// Starts an empty node that is to become a member.
    fn add_node(&mut self, members: &Membership, as_learner: bool) {
        let count = members.voters.len() + members.learners.len();
        let Some(spare) = self.spares().first().copied().filter(|_| count < MOST) else { return };
        if self.shape.lends_long && count + 2 <= MOST {
            return self.add_two_learners();
        }
        if as_learner {
            self.add_learner(spare);
        }
        self.slots[spare].started = true;
        self.note(format_args!("n{} is started, and shall join", spare + 1));
        // Who was added first should be known when the node asks.
        let millis = if as_learner { 300 } else { 0 };
        self.after_millis(millis, Ev::Restart(spare));
    }

    pub(super) fn add_learner(&mut self, at: At) {
        if self.stormy {
            let node = self.slots[at].id;
            self.request_change(Change::Learner(node));
        }
    }

    /// A person at some node asks for a change.
    fn request_change(&mut self, change: Change) {
        let doors: Vec<At> = self.seated().collect();
        if doors.is_empty() {
            return;
        }
        let at = doors[self.dice.below(doors.len() as u64) as usize];
        self.note(format_args!("n{}: a person asks for {change:?}", at + 1));
        let leader = self.newest_leader().map(|(leader, _)| self.slots[leader].id);
        self.answers.led.extend(change.removes().filter(|node| leader == Some(*node)));
        let body = admin::encode(&change.request());
        self.serve(at, Caller::Person(change), None, body);
    }

    fn seated(&self) -> impl Iterator<Item = At> {
        let seated = |at: &At| self.slots[*at].running.as_ref().is_some_and(|running| running.seat.is_some());
        (0..self.slots.len()).filter(seated)
    }

    /// What a person was told; `None` if the node died over it.
    pub(super) fn settle_change(&mut self, at: At, change: &Change, answer: Option<&[u8]>) {
        let reply = answer.and_then(|answer| serde_json::from_slice::<Reply>(answer).ok());
        let result = reply.map(Reply::into_result);
        let words = match &result {
            None => "no answer".to_string(),
            Some(Ok(_)) => "done".to_string(),
            Some(Err(error)) => error.to_string(),
        };
        self.note(format_args!("n{}: {change:?}: {words}", at + 1));
        let answers = &mut self.answers;
        match &result {
            Some(Ok(_)) => {
                match change {
                    Change::Learner(node) => answers.added.insert(*node),
                    Change::Promote(_) => true,
                    Change::Remove(node) => answers.removed.insert(*node),
                    Change::Replace { old, new } => answers.removed.insert(*old) | answers.added.insert(*new),
                };
                answers.perhaps_removed.extend(change.removes());
                let led = change.removes().is_some_and(|node| answers.led.contains(&node));
                if led {
                    self.count("leaders removed");
                }
                self.count(match change {
                    Change::Learner(_) => "learners added",
                    Change::Promote(_) => "learners promoted",
                    Change::Remove(_) => "members removed",
                    Change::Replace { .. } => "voters replaced",
                });
            }
            Some(Err(error)) if error.kind() != ErrorKind::Unknown => self.count("changes of members not done"),
            _ => {
                answers.perhaps_removed.extend(change.removes());
                self.count("changes of members with unknown outcome");
            }
        }
    }

    /// A node that belongs to no cluster asks one of its doors.
    pub(super) fn on_join(&mut self, at: At, life: u64) {
        let pause = self.pause_left(at);
        let Some(running) = self.alive(at, life).filter(|running| running.joining.is_some()) else { return };
        let (node, incarnation) = (running.hub.id, running.hub.incarnation);
        if let Some(left) = pause {
            return self.at(left, Ev::Join(at, life));
        }
        let doors: Vec<At> = self.seated().collect();
        if doors.is_empty() {
            return self.after_millis(200, Ev::Join(at, life));
        }
        let door = doors[self.dice.below(doors.len() as u64) as usize];
        let request = Request::Join { node, incarnation, address: format!("n{node}") };
        self.ask(Asker::Joiner(at, life), at, door, None, admin::encode(&request), JOIN_PATIENCE);
    }

    /// What a door said.
    pub(super) fn on_letter(&mut self, at: At, life: u64, answer: Result<Vec<u8>, RequestError>) {
        let letter = answer.map_err(|error| error.to_string()).and_then(|body| {
            let reply: Reply = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
            reply.into_result().and_then(Letter::read).map_err(|error| error.to_string())
        });
        let Some(running) = self.alive(at, life) else { return };
        let Some(identity) = &mut running.joining else { return };
        let letter = match letter {
            Ok(letter) => letter,
            Err(why) => {
                self.note(format_args!("n{}: it may not join yet: {why}", at + 1));
                let millis = 200 + self.dice.below(300);
                return self.after_millis(millis, Ev::Join(at, life));
            }
        };
        let begun = node::let_in(&running.hub, &running.directory, identity, letter)
            .and_then(|opened| node::begin(&running.hub, opened, &running.directory));
        match begun {
            Ok((engine, log)) => {
                running.seat = Some(Seat::new(engine, log, &running.hub));
                running.joining = None;
                self.count("nodes joined");
                self.note(format_args!("n{} belongs to the cluster", at + 1));
                (0..self.slots.len()).for_each(|peer| self.transmit(at, peer, super::wire::Packet::Greeting));
            }
            Err(error) if self.slots[at].fs.is_down() => {
                self.note(format_args!("n{} crashed while it joined: {error}", at + 1));
                self.count("crashes while joining");
            }
            Err(error) => self.stopped(at, Gives::NoStart, format!("n{}: joining: {error}", at + 1)),
        }
    }

    /// Whether this is a moment at which a disk may be lost: nothing that changes the members is under way, or may come back.
    pub(super) fn may_lose_a_disk(&self, at: At, leader: At) -> bool {
        let Some((newest, members)) = self.newest_leader().filter(|(newest, _)| *newest == leader) else {
            return false;
        };
        let idle = self.slots[newest].hub().is_some_and(|hub| {
            let core = hub.core_status.lock();
            core.as_ref().is_some_and(|core| core.last == core.applied)
        });
        let asked = self.held.values().any(|held| held.serves());
        let joint = !members.voters_outgoing.is_empty();
        let left = members.voters.iter().filter(|id| **id != self.slots[at].id).count();
        let enough = left > members.voters.len() / 2 && members.names(self.slots[at].id);
        let others = members.voters.iter().filter(|id| **id != self.slots[at].id).map(|id| at_of(*id));
        let bound = self.know_they_are_bound(others);
        let whole = self.others_are_whole(at);
        idle && !asked && !joint && enough && bound && whole && self.lost_voter(&members).is_none()
    }

    /// Whether each of these has applied the entry that binds it: then its vote counts, also with those who have not.
    pub(super) fn know_they_are_bound(&self, nodes: impl IntoIterator<Item = At>) -> bool {
        nodes.into_iter().all(|at| {
            self.slots[at].hub().is_some_and(|hub| {
                hub.with_catalogue(|catalogue| catalogue.binds(hub.id, hub.incarnation)).unwrap_or(false)
            })
        })
    }

    /// Whether whoever was started is a member, whoever rises has risen, and no change is half done.
    pub(super) fn members_settled(&self) -> bool {
        self.unsettled().is_none()
    }

    /// Why the members are not what they will be.
    pub(super) fn unsettled(&self) -> Option<&'static str> {
        let leads = self.newest_leader().and_then(|(leader, members)| Some((self.slots[leader].hub()?, members)));
        let Some((hub, members)) = leads else { return Some("nobody leads") };
        let Some(catalogue) = hub.catalogue.lock().clone() else { return Some("the leader has no catalogue") };
        let rising = catalogue.members().any(|(id, member)| member.rises && !self.is_out(at_of(id)));
        let absent = self.slots.iter().enumerate().any(|(at, slot)| {
            let known = members.names(slot.id) || catalogue.was_removed(slot.id);
            slot.started && !known && !self.is_out(at)
        });
        // Who was removed and can be told knows it.
        let ignorant = |hub: &Hub| catalogue.was_removed(hub.id) && !hub.is_removed();
        let ignorant = self.seated().filter_map(|at| self.slots[at].hub()).any(ignorant);
        // What people asked for may still be done, as long as somebody is at it. Whoever was removed may ask to join for ever.
        let asked = self.held.values().any(|held| held.serves() && !self.is_for_a_joiner(held));
        let all = [
            (rising, "a learner is to be promoted"),
            (absent, "somebody was started and is no member"),
            (ignorant, "somebody was removed and does not know it"),
            (asked, "somebody is at what people asked for"),
            (!members.voters_outgoing.is_empty(), "the voters change"),
        ];
        all.into_iter().find_map(|(is, what)| is.then_some(what))
    }

    /// Members are the same at the same index, on every node.
    pub(super) fn observe_members(&mut self) -> Vec<String> {
        let (mut wrong, mut fresh) = (Vec::new(), false);
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(hub) = slot.hub() else { continue };
            let core = hub.core_status.lock();
            let Some(core) = core.as_ref() else { continue };
            let applied = core.applied.0;
            if self.answers.looked_at.insert(at, applied) == Some(applied) {
                continue;
            }
            fresh |= core.membership.voters.iter().any(|id| !self.known_voters.contains(id));
            let entry = self.answers.at_index.entry(applied).or_insert_with(|| (at, core.membership.clone()));
            if entry.1 != core.membership {
                wrong.push(format!(
                    "members as of entry {applied}: n{} has {:?}, n{} {:?}",
                    entry.0 + 1,
                    entry.1,
                    at + 1,
                    core.membership
                ));
            }
        }
        if fresh {
            self.welcome_voters();
        }
        wrong
    }

    /// At the end: what people were told of members is so.
    pub(super) fn check_members(&mut self) {
        let mut wrong = Vec::new();
        for at in self.participants() {
            let Some(hub) = self.slots[at].hub() else { continue };
            let Some(core) = hub.core_status.lock().clone() else { continue };
            let known = hub.with_catalogue(|catalogue| {
                let members: BTreeSet<NodeId> = catalogue.members().map(|(id, _)| id).collect();
                (members, catalogue.removed().collect::<BTreeSet<_>>())
            });
            let Ok((members, removed)) = known else { continue };
            let counted: BTreeSet<NodeId> =
                core.membership.voters.iter().chain(&core.membership.learners).copied().collect();
            if members != counted {
                wrong.push(format!("n{}: members in the catalogue {members:?}, in the core {counted:?}", at + 1));
            }
            for node in self.answers.removed.difference(&removed) {
                wrong.push(format!("n{node} was removed, they said; n{} does not know it as removed", at + 1));
            }
            for node in self.answers.added.iter().filter(|node| !members.contains(node) && !removed.contains(node)) {
                wrong.push(format!("n{node} was added, they said; n{} does not know it", at + 1));
            }
            for node in removed.difference(&self.answers.perhaps_removed) {
                wrong.push(format!(
                    "n{node} is removed on n{}, and whoever asked for it was told that it is not",
                    at + 1
                ));
            }
        }
        for what in wrong {
            self.fail(what);
        }
    }
}
