//! Founding: how empty nodes that were given the same list become one cluster, and never two.
//!
//! Each empty node durably *promises* itself, with the incarnation of its data directory, to one *founder*. The founder
//! that holds the promises of a majority of the list, its own among them, draws the cluster id and writes the *genesis*.
//! Everybody else receives it. A listed node that had not promised is in the genesis without an incarnation; a replicated
//! entry binds it later, and until then its votes do not count.
//!
//! ```text
//! an empty node                                       what it does
//! is the lowest of the list                           promises itself to itself at once
//! is another, no lower node asks for its patience     promises itself to itself
//! is asked by a founder not above itself, is free     promises itself to it
//! promised itself to itself, is asked by a lower one  moves its promise to that one, releases those it has
//! promised itself to X, X says it gave up             is free for founders below X
//! holds its own promise and a majority's              draws the id, writes the genesis, tells everybody
//! is told the genesis                                 keeps it
//! ```
//!
//! # Why never two
//!
//! Let X and Y both have founded, each with the promises of a majority. The majorities share a node Z. Z's promise is one
//! durable field, so it went to one of them first, say X, and moved to Y later. A promise moves only to a *lower id*, and
//! only when it was Z's own (Z = X), or when X told Z that X gave up. X gives up only by moving its own promise away,
//! durably and while it has no genesis; ids fall, so it never comes back to X, and without its own promise X never
//! founds. In both cases X has not founded before the move and cannot after it. A promise names the founder's
//! incarnation, so a founder whose disk was wiped cannot use it a second time: only the first life can release it.
//! The identity, with promise and genesis, is one small file that is replaced as a whole (`identity.rs`), and every
//! message is sent after what it speaks of is durable.
//!
//! What this cannot survive is a majority of the list losing its disks: those who are left empty cannot know. If a
//! majority has the genesis (or promised to its founder) on intact disks, no second cluster comes to be.
//!
//! # Why it ends
//!
//! With all nodes up, every promise is the lowest node's, or its own holder's, or leads from holder to holder downwards
//! to one of these. The lowest node asks everybody until it is answered; who is free or stands for itself says yes; who
//! gave up releases who waits for it. If a founder dies between the promises and its genesis, those who promised wait
//! for it: `stuck_on` names it.
//!
//! Deliberately absent: bytes (`found/format.rs`), files (`identity.rs`), clocks (a *tick* is what the shell says it is), and joining a cluster
//! that exists.

pub mod format;

use std::collections::{BTreeMap, BTreeSet};

use crate::catalogue::MAX_ADDRESS;
use crate::fields::put_text;
use crate::types::{ClusterId, Incarnation, NodeId};
use format::{Belongs, FoundMessage, Genesis, GenesisMember, Identity, MAX_LIST, Promise, RefuseReason};

/// Ticks for which a node waits for each lower node of the list before it stands for itself.
pub const PATIENCE: u32 = 10;
/// Ticks after which a peer that belongs to a cluster should have told of it. One that is of this founding does so at once.
const GENESIS_PATIENCE: u32 = 20;
/// Ticks after which a peer that is not in the list, and asked as if it were, counts as gone.
const SILENCE: u32 = 20;
/// Peers of which it is remembered what is wrong with them: those of the longest list, and one more.
const MAX_COMPLAINTS: usize = MAX_LIST + 1;

/// What is wrong with a peer.
struct Complaint {
    text: String,
    /// Ticks since it was found last.
    ticks: u32,
}

/// A list that no cluster can be founded with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadList {
    /// The node itself is not in it.
    #[error("the bootstrap list does not name node {0}, the node that is given it; add it, or join instead")]
    NotListed(NodeId),
    /// An id is there twice.
    #[error("the bootstrap list names node {0} twice; give each node its own id")]
    Twice(NodeId),
    /// Id 0.
    #[error("the bootstrap list names node 0; ids are 1 to 65535")]
    Zero,
    /// Too many.
    #[error("the bootstrap list has {0} nodes; found the cluster with {MAX_LIST} at most and add the others")]
    TooLong(usize),
    /// An address is too long.
    #[error("the address of node {0} has {1} bytes; the limit is {MAX_ADDRESS}")]
    LongAddress(NodeId, usize),
}

/// What happens to the state machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Time went on. Ten a second is a good pace.
    Tick,
    /// A connection to this node was opened; it belongs to this cluster.
    Connected(NodeId, Option<ClusterId>),
    /// A node said something.
    Message(NodeId, FoundMessage),
}

/// What the shell must do, in this order: `persist`, then `send`. If persisting fails, the node ends.
#[derive(Default, Debug)]
pub struct Effects {
    /// Replace the stored identity, durably. If it now belongs to a cluster, the founding is over for this node.
    pub persist: Option<Identity>,
    /// Then send these.
    pub send: Vec<(NodeId, FoundMessage)>,
    /// Tell a person; each text once.
    pub warn: Vec<String>,
}

/// The founding as one node sees it. See the module's text.
///
/// Invariant: `promises` is empty unless the node's own promise is its own; the promised founder's id never rises.
pub struct Founding {
    identity: Identity,
    /// The list, ids ascending, as every genesis of this node will have it.
    list: BTreeMap<NodeId, String>,
    list_hash: u64,
    /// Promises received, this node's own among them once it stands for itself.
    promises: BTreeMap<NodeId, Incarnation>,
    /// The founder that this node promised itself to gave up.
    released: bool,
    /// Ticks until this node stands for itself, if nobody below asks.
    patience: u32,
    /// Peers that belong to a cluster and have not told of it, with the ticks since they said so.
    foreign: BTreeMap<NodeId, (ClusterId, u32)>,
    /// What keeps this node from founding with a peer, until that changes.
    complaints: BTreeMap<NodeId, Complaint>,
    warned: BTreeSet<String>,
    effects: Effects,
}

impl Founding {
    /// Of one node with its stored identity and the list it was started with.
    pub fn new(identity: Identity, list: &[(NodeId, String)]) -> Result<Founding, BadList> {
        if list.len() > MAX_LIST {
            return Err(BadList::TooLong(list.len()));
        }
        let mut sorted = BTreeMap::new();
        for (node, address) in list {
            if node.0 == 0 {
                return Err(BadList::Zero);
            }
            if address.len() > MAX_ADDRESS {
                return Err(BadList::LongAddress(*node, address.len()));
            }
            if sorted.insert(*node, address.clone()).is_some() {
                return Err(BadList::Twice(*node));
            }
        }
        if !sorted.contains_key(&identity.node) {
            return Err(BadList::NotListed(identity.node));
        }
        let below = sorted.range(..identity.node).count() as u32;
        let mut promises = BTreeMap::new();
        if identity.promised.is_some_and(|promise| promise.founder == identity.node) {
            promises.insert(identity.node, identity.incarnation);
        }
        Ok(Founding {
            list_hash: hash_of(&sorted),
            list: sorted,
            promises,
            released: false,
            patience: below * PATIENCE,
            foreign: BTreeMap::new(),
            complaints: BTreeMap::new(),
            warned: BTreeSet::new(),
            effects: Effects::default(),
            identity,
        })
    }

    /// Who this node is by now. Durable once the effects were carried out.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whom this node waits for, if it promised itself to another one and has no cluster.
    pub fn stuck_on(&self) -> Option<NodeId> {
        let promise = self.identity.promised?;
        let waits = self.identity.belongs == Belongs::Nowhere && promise.founder != self.identity.node;
        (waits && !self.released).then_some(promise.founder)
    }

    /// What keeps this node from founding a cluster, as far as it knows more than that others are missing; in words.
    pub fn obstacles(&self) -> Vec<String> {
        let mut all: Vec<String> = self.complaints.values().map(|complaint| complaint.text.clone()).collect();
        if let Some(founder) = self.stuck_on() {
            let at = self.list.get(&founder).map_or("", String::as_str);
            all.push(format!(
                "node {} promised itself to node {founder} at {at} and waits for its answer; start that one, with the data directory it had",
                self.identity.node
            ));
        }
        all
    }

    /// Takes one event. Needs a random number in case this node founds.
    pub fn on_event(&mut self, event: Event, random: u64) {
        let promised_before = self.identity.promised;
        match event {
            Event::Tick => self.on_tick(),
            Event::Connected(peer, cluster) if self.is_other(peer) => self.on_connected(peer, cluster),
            Event::Message(peer, message) if self.is_other(peer) => self.on_message(peer, message),
            // Whoever asks for a promise thinks that it founds with this node.
            Event::Message(peer, FoundMessage::Ask { .. } | FoundMessage::Promise { .. })
                if peer != self.identity.node && self.identity.belongs == Belongs::Nowhere =>
            {
                self.warn_other_list(peer);
            }
            Event::Connected(..) | Event::Message(..) => {}
        }
        self.found(random);
        self.check(promised_before);
    }

    /// What the shell must do now.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    fn check(&self, before: Option<Promise>) {
        if let Some(before) = before {
            let now = self.identity.promised.map(|promise| promise.founder);
            assert!(now.is_some(), "a promise is never forgotten");
            assert!(now <= Some(before.founder), "a promise moves to a lower id only");
        }
        assert!(self.promises.is_empty() || self.stands(), "only who stands for itself collects promises");
    }

    fn is_other(&self, peer: NodeId) -> bool {
        peer != self.identity.node && self.list.contains_key(&peer)
    }

    /// Whether this node's promise is its own.
    fn stands(&self) -> bool {
        self.identity.promised.is_some_and(|promise| promise.founder == self.identity.node)
    }

    fn others(&self) -> Vec<NodeId> {
        self.list.keys().copied().filter(|node| *node != self.identity.node).collect()
    }

    fn send(&mut self, to: NodeId, message: FoundMessage) {
        self.effects.send.push((to, message));
    }

    /// Something is wrong with `peer`.
    fn complain(&mut self, peer: NodeId, text: String) {
        if self.complaints.len() >= MAX_COMPLAINTS && !self.complaints.contains_key(&peer) {
            return;
        }
        self.complaints.insert(peer, Complaint { text: text.clone(), ticks: 0 });
        if self.warned.len() >= MAX_COMPLAINTS {
            self.warned.clear();
        }
        if self.warned.insert(text.clone()) {
            self.effects.warn.push(text);
        }
    }

    fn promise_to(&mut self, founder: NodeId, incarnation: Incarnation) {
        self.identity.promised = Some(Promise { founder, incarnation });
        self.released = false;
        self.effects.persist = Some(self.identity.clone());
    }

    /// Sends `peer` whatever this node has to say to it now.
    fn speak_to(&mut self, peer: NodeId) {
        let (list, incarnation) = (self.list_hash, self.identity.incarnation);
        if let Belongs::Founded(genesis) = &self.identity.belongs {
            let genesis = genesis.clone();
            self.send(peer, FoundMessage::Genesis { list, genesis });
        } else if self.identity.belongs == Belongs::Nowhere {
            match self.identity.promised {
                Some(promise) if promise.founder == self.identity.node => {
                    self.send(peer, FoundMessage::Ask { list, incarnation });
                }
                // To everybody: the founder counts it, one who has the genesis answers with it, all others ignore it.
                Some(to) => self.send(peer, FoundMessage::Promise { list, incarnation, to }),
                None => {}
            }
        }
    }

    fn on_tick(&mut self) {
        if self.identity.belongs != Belongs::Nowhere {
            return;
        }
        self.look_at_foreign();
        // Whom this node does not list asks with every tick, or has stopped to.
        let list = &self.list;
        self.complaints.retain(|peer, complaint| {
            complaint.ticks += 1;
            list.contains_key(peer) || complaint.ticks < SILENCE
        });
        if self.identity.promised.is_none() {
            if self.patience > 0 {
                self.patience -= 1;
                return;
            }
            self.promise_to(self.identity.node, self.identity.incarnation);
            self.promises.insert(self.identity.node, self.identity.incarnation);
        }
        for peer in self.others() {
            self.speak_to(peer);
        }
    }

    fn on_connected(&mut self, peer: NodeId, cluster: Option<ClusterId>) {
        match cluster {
            None => {
                self.foreign.remove(&peer);
                self.complaints.remove(&peer);
                self.speak_to(peer);
            }
            Some(cluster) => _ = self.foreign.insert(peer, (cluster, 0)),
        }
    }

    /// A peer of another founding does not answer at all: it does not know this node, and has no connection to it.
    fn look_at_foreign(&mut self) {
        let mut silent = Vec::new();
        for (peer, (cluster, ticks)) in &mut self.foreign {
            *ticks += 1;
            if *ticks >= GENESIS_PATIENCE {
                silent.push((*peer, *cluster));
            }
        }
        for (peer, cluster) in silent {
            self.foreign.remove(&peer);
            if !self.complaints.contains_key(&peer) {
                self.complain_of_cluster(peer, cluster);
            }
        }
    }

    fn complain_of_cluster(&mut self, peer: NodeId, cluster: ClusterId) {
        let at = self.list.get(&peer).cloned().unwrap_or_default();
        self.complain(
            peer,
            format!(
                "node {peer} at {at} belongs to cluster {cluster} already, which does not know node {}; to enter that one, start this node with --join {at} instead of the bootstrap list",
                self.identity.node
            ),
        );
    }

    fn on_message(&mut self, peer: NodeId, message: FoundMessage) {
        match message {
            FoundMessage::Ask { list, incarnation } => self.on_ask(peer, list, incarnation),
            FoundMessage::Promise { list, incarnation, to } => self.on_promise(peer, list, incarnation, to),
            FoundMessage::Refuse(reason) => self.on_refuse(peer, reason),
            FoundMessage::Release { incarnation } => {
                self.released |= self.stuck_on() == Some(peer)
                    && self.identity.promised == Some(Promise { founder: peer, incarnation });
            }
            FoundMessage::Genesis { list, genesis } => self.on_genesis(peer, list, genesis),
        }
    }

    fn on_ask(&mut self, founder: NodeId, list: u64, incarnation: Incarnation) {
        let me = self.identity.node;
        match &self.identity.belongs {
            Belongs::Founded(_) => return self.speak_to(founder),
            Belongs::Joined(genesis) => {
                let refuse = FoundMessage::Refuse(RefuseReason::Joined(genesis.cluster));
                return self.send(founder, refuse);
            }
            Belongs::Nowhere => {}
        }
        if list != self.list_hash {
            self.warn_other_list(founder);
            return self.send(founder, FoundMessage::Refuse(RefuseReason::OtherList));
        }
        self.complaints.remove(&founder);
        let Some(promise) = self.identity.promised else {
            // Nobody is promised upwards: the lower node will stand for itself.
            if founder < me {
                self.promise_to(founder, incarnation);
                self.speak_to(founder);
            }
            return;
        };
        if promise == (Promise { founder, incarnation }) {
            return self.speak_to(founder);
        }
        if promise.founder == founder {
            let text = format!(
                "node {me} promised itself to node {founder} with data directory {}, which now has {incarnation}: its disk was wiped while the cluster was founded; if no node of the list has data, empty the data directories of all and start again",
                promise.incarnation
            );
            self.complain(founder, text);
        }
        if founder < promise.founder && (promise.founder == me || self.released) {
            let given_up = std::mem::take(&mut self.promises);
            self.promise_to(founder, incarnation);
            for node in given_up.into_keys().filter(|node| *node != me) {
                self.send(node, FoundMessage::Release { incarnation: self.identity.incarnation });
            }
            return self.speak_to(founder);
        }
        self.send(founder, FoundMessage::Refuse(RefuseReason::Promised(promise.founder)));
    }

    fn on_promise(&mut self, peer: NodeId, list: u64, incarnation: Incarnation, to: Promise) {
        if self.identity.belongs != Belongs::Nowhere {
            return self.speak_to(peer);
        }
        if to != (Promise { founder: self.identity.node, incarnation: self.identity.incarnation }) {
            // For another founder; or for a former life of this directory, which may have founded: only that one could
            // release.
            return;
        }
        if list != self.list_hash {
            self.warn_other_list(peer);
            self.send(peer, FoundMessage::Refuse(RefuseReason::OtherList));
        } else if self.stands() {
            self.complaints.remove(&peer);
            self.promises.insert(peer, incarnation);
        } else {
            // A promise that was asked for before this node gave up.
            self.send(peer, FoundMessage::Release { incarnation: self.identity.incarnation });
        }
    }

    fn on_refuse(&mut self, peer: NodeId, reason: RefuseReason) {
        match reason {
            RefuseReason::Promised(_) => {}
            RefuseReason::OtherList => self.warn_other_list(peer),
            RefuseReason::Joined(cluster) => self.complain_of_cluster(peer, cluster),
        }
    }

    fn warn_other_list(&mut self, peer: NodeId) {
        let text = format!(
            "node {peer} was started with another bootstrap list than node {}; give every node the same list",
            self.identity.node
        );
        self.complain(peer, text);
    }

    fn on_genesis(&mut self, peer: NodeId, list: u64, genesis: Genesis) {
        if self.identity.belongs != Belongs::Nowhere {
            return;
        }
        let me = self.identity.node;
        self.foreign.remove(&peer);
        if list != self.list_hash {
            return self.warn_other_list(peer);
        }
        match genesis.members.iter().find(|member| member.node == me).map(|member| member.incarnation) {
            None => {
                let text = format!("the cluster {} that node {peer} tells of has no node {me}", genesis.cluster);
                self.complain(peer, text);
            }
            Some(Some(bound)) if bound != self.identity.incarnation => {
                let text = format!(
                    "cluster {} knows node {me} with data directory {bound}, this one is {}: start this directory with another id; only if that one is gone, remove node {me} and join it again under a new id",
                    genesis.cluster, self.identity.incarnation
                );
                self.complain(peer, text);
            }
            Some(_) => self.belong(genesis),
        }
    }

    fn belong(&mut self, genesis: Genesis) {
        self.identity.belongs = Belongs::Founded(genesis);
        self.effects.persist = Some(self.identity.clone());
    }

    /// Draws the cluster if the promises suffice.
    fn found(&mut self, random: u64) {
        let majority = self.list.len() / 2 + 1;
        if self.identity.belongs != Belongs::Nowhere || !self.stands() || self.promises.len() < majority {
            return;
        }
        let member = |(node, address): (&NodeId, &String)| GenesisMember {
            node: *node,
            address: address.clone(),
            incarnation: self.promises.get(node).copied(),
        };
        let members = self.list.iter().map(member).collect();
        self.belong(Genesis { cluster: ClusterId(random), founder: self.identity.node, members });
        for peer in self.others() {
            self.speak_to(peer);
        }
    }
}

/// The same for the same list, whatever its order.
fn hash_of(list: &BTreeMap<NodeId, String>) -> u64 {
    let mut bytes = Vec::new();
    for (node, address) in list {
        bytes.extend_from_slice(&node.0.to_le_bytes());
        put_text(&mut bytes, address, MAX_ADDRESS);
    }
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

#[cfg(test)]
mod tests;
