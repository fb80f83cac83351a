//! The network between the nodes: what travels, and who is let in.
//!
//! Messages may be lost, come twice, late, and in another order. A question or its answer comes once or not at all; who asked
//! hears soon that a connection has ended, or, now and then, nothing until its patience is over. Of questions that follow each other
//! over one connection each takes its own time; their answers are told in their order, and when one gets lost the connection has
//! ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::calls::Asker;
use super::strand;
use super::world::{At, Ev, State};
use crate::found::format::FoundMessage;
use crate::net::codec;
use crate::net::frame::FrameKind;
use crate::net::handshake::{Hello, Judge, PROTOCOL, Purpose, Reject, RejectReason, Standing, Welcome};
use crate::net::{Calls, RequestError, Transport};
use crate::shared::{Hub, Input};
use crate::snapshot::object::{Answer, Ask};
use crate::types::{ClusterId, Message, MessageKind, NodeId};

/// What travels.
#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "nearly all packets are messages")]
pub(super) enum Packet {
    Raft(Message),
    Found(FoundMessage),
    /// A connection was opened; sent now and then, as if connections came and went.
    Greeting,
    /// From a node, or from a program (`None`). Whoever has the ticket gets the answer.
    Question {
        ticket: u64,
        from: Option<NodeId>,
        body: Vec<u8>,
    },
    Answer {
        ticket: u64,
        body: Vec<u8>,
    },
}

impl Packet {
    fn asks_for_a_vote(&self) -> bool {
        matches!(self, Packet::Raft(message) if message.kind == MessageKind::Vote)
    }

    /// An offer of a snapshot, or what can be answered to one.
    fn is_an_offer(&self) -> bool {
        match self {
            Packet::Question { body, .. } => matches!(Ask::decode(body), Ok(Ask::Offer { .. })),
            Packet::Answer { body, .. } => matches!(
                Answer::decode(body.clone()),
                Ok(Answer::Yes | Answer::NotNeeded | Answer::OnItsWay { .. } | Answer::No(_))
            ),
            Packet::Raft(_) | Packet::Found(_) | Packet::Greeting => false,
        }
    }

    fn ticket(&self) -> Option<u64> {
        match self {
            Packet::Question { ticket, .. } | Packet::Answer { ticket, .. } => Some(*ticket),
            Packet::Raft(_) | Packet::Found(_) | Packet::Greeting => None,
        }
    }
}

/// The sending half of the network, as the code under test sees it.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) out: Mutex<Vec<(NodeId, Packet)>>,
    pub(super) recheck: AtomicBool,
}

impl Transport for Wire {
    fn send(&self, message: Message) {
        self.out.lock().push((message.to, Packet::Raft(message)));
    }
    fn send_found(&self, to: NodeId, message: FoundMessage) {
        self.out.lock().push((to, Packet::Found(message)));
    }
    fn request(&self, to: NodeId, body: Vec<u8>, limit: Duration) -> Result<Vec<u8>, RequestError> {
        // What is one event here asks nobody: the upkeep learns from `State::floor_from_leader`.
        let in_an_event = || Err(RequestError::NotSent("there are no questions in the middle of an event".to_string()));
        strand::ask(to, body, limit).unwrap_or_else(in_an_event)
    }
    fn calls(&self, to: NodeId, _: Duration) -> Option<Result<Box<dyn Calls>, RequestError>> {
        // That it leads nowhere shows with the first question.
        strand::open(to).map(|line| Ok(Box::new(line) as Box<dyn Calls>))
    }
    fn set_peer(&self, _: NodeId, _: &str) {}
    fn remove_peer(&self, _: NodeId) {}
    fn recheck(&self) {
        self.recheck.store(true, Ordering::Relaxed);
    }
}

impl State {
    /// Puts a packet on the wire.
    pub(super) fn transmit(&mut self, from: At, to: At, packet: Packet) {
        if to >= self.slots.len() || from == to || self.slots[from].running.is_none() {
            return self.lose(&packet);
        }
        let from_life = self.slots[from].life;
        self.spring_ambush(from, &packet);
        let cut = self.net.cut[from][to];
        if cut || self.chance(self.net.loss) {
            self.count(if cut { "messages over a cut link" } else { "messages lost" });
            return self.lose(&packet);
        }
        let twice = packet.ticket().is_none() && self.chance(self.net.twice);
        if twice {
            self.count("messages that came twice");
        }
        for _ in 0..if twice { 2 } else { 1 } {
            let mut micros =
                50 + self.dice.below(self.net.delay) + self.net.slow[from][to] + self.held_by_duel(from, to, &packet);
            if packet.asks_for_a_vote() && self.strikes() && self.chance(self.shape.late_votes) {
                micros += self.dice.below(1_500_000);
            }
            if packet.ticket().is_some() && self.stormy && self.chance(self.shape.slow_answers) {
                micros += self.dice.below(800_000);
            }
            if self.shape.crowds && self.stormy && self.is_on_a_line(&packet) {
                micros += 300_000 + self.dice.below(500_000);
            }
            // Whoever needs a snapshot then has none before it is over. Who has one already says so when it is offered another.
            if packet.ticket().is_some() && self.lull.is_some() && !packet.is_an_offer() {
                micros += 1_500_000 + self.dice.below(1_500_000);
            }
            self.after_micros(micros, Ev::Deliver { from, from_life, to, packet: packet.clone() });
        }
    }

    /// Whether this is about a snapshot.
    fn is_on_a_line(&self, packet: &Packet) -> bool {
        let ticket = packet.ticket().and_then(|ticket| self.tickets.get(&ticket));
        ticket.is_some_and(|ticket| matches!(ticket.asker(), Asker::Line { .. }))
    }

    /// A question or an answer got lost.
    fn lose(&mut self, packet: &Packet) {
        let Some(ticket) = packet.ticket() else { return };
        if self.chance(750) {
            let micros = 100 + self.dice.below(50_000);
            let arrived = matches!(packet, Packet::Answer { .. });
            self.after_micros(micros, Ev::NoAnswer { ticket, arrived });
        }
    }

    /// Whether `to` lets a packet of `from` in, as a connection's handshake would have it. `None` if one of them is down.
    pub(super) fn standing(&self, from: At, to: At) -> Option<Result<(Standing, Option<ClusterId>), Reject>> {
        let sender = self.slots[from].running.as_ref()?;
        let receiver = self.slots[to].running.as_ref()?;
        let said = sender.hub.introduction();
        let cluster = said.cluster;
        let hello = Hello {
            versions: (PROTOCOL, self.slots[from].speaks_now),
            purpose: Purpose::Peer,
            cluster,
            from: Some(self.slots[from].id),
            to: Some(self.slots[to].id),
            incarnation: said.incarnation,
            address: String::new(),
            bound: said.bound,
        };
        let mine = receiver.hub.introduction().cluster;
        let catalogue = receiver.hub.catalogue.lock();
        let speaks = (PROTOCOL, self.slots[to].speaks_now);
        let judge = Judge { me: self.slots[to].id, speaks, cluster: mine, catalogue: catalogue.as_ref() };
        Some(judge.hello(&hello).map(|standing| (standing, cluster)))
    }

    /// Whether `from` lets a connection to `to` stand, by what that one answers to its hello. Not asked if one of them is down.
    fn welcomes(&self, from: At, to: At) -> bool {
        let Some((sender, receiver)) = self.slots[from].running.as_ref().zip(self.slots[to].running.as_ref()) else {
            return true;
        };
        let cluster_of = |hub: &Hub| hub.catalogue.lock().as_ref().map(|catalogue| catalogue.cluster());
        let version = self.slots[from].speaks_now.min(self.slots[to].speaks_now);
        let (node, incarnation) = (self.slots[to].id, receiver.hub.incarnation);
        let welcome = Welcome { version, node, cluster: cluster_of(&receiver.hub), incarnation };
        let cluster = cluster_of(&sender.hub);
        let catalogue = sender.hub.catalogue.lock();
        let speaks = (PROTOCOL, self.slots[from].speaks_now);
        let judge = Judge { me: self.slots[from].id, speaks, cluster, catalogue: catalogue.as_ref() };
        judge.welcome(node, &welcome).is_ok()
    }

    pub(super) fn on_deliver(&mut self, from: At, from_life: u64, to: At, packet: Packet) {
        // A process that ended took its connections along.
        if self.slots[from].life != from_life || self.slots[from].running.is_none() {
            return self.lose(&packet);
        }
        if let Some(left) = self.pause_left(to) {
            let micros = self.dice.below(1000);
            self.at(left + Duration::from_micros(micros), Ev::Deliver { from, from_life, to, packet });
            return;
        }
        let Some(judged) = self.standing(from, to) else { return self.lose(&packet) };
        let packet = match packet {
            // Whoever comes as a program is not judged, and an answer comes over the asker's own connection.
            Packet::Question { ticket, from: None, body } => return self.on_question(from, to, None, ticket, body),
            Packet::Answer { ticket, body } => return self.answered(ticket, Ok(body)),
            other => other,
        };
        self.watch_duel(from, to, &packet);
        let (standing, cluster) = match judged {
            Ok(judged) => judged,
            Err(reject) => {
                self.refused(from, to, reject);
                return self.lose(&packet);
            }
        };
        if !self.welcomes(from, to) {
            self.count("welcomes of wiped or removed nodes refused");
            return self.lose(&packet);
        }
        let (sender, Some(hub)) = (self.slots[from].id, self.slots[to].hub().cloned()) else { return };
        match packet {
            Packet::Raft(message) => {
                if !standing.admits(message.kind) {
                    self.count("messages of unbound nodes refused");
                    return;
                }
                let room = hub.inbox.take(codec::size(&message));
                hub.post(Input::Message { message: Box::new(message), room });
            }
            Packet::Found(message) => {
                let room = hub.inbox.take(FrameKind::Found.limit());
                hub.post(Input::Found { from: sender, message, room });
            }
            Packet::Greeting => {
                self.hear_version(from, &hub);
                hub.post(Input::Connected { peer: sender, cluster });
                if standing == Standing::Unbound && cluster.is_some() {
                    self.bind_unbound(to);
                }
            }
            Packet::Question { ticket, body, .. } => self.on_question(from, to, Some(sender), ticket, body),
            Packet::Answer { .. } => {}
        }
        self.turn_soon(to);
    }

    /// `to` refused a connection of `from`, which hears why if it is reached.
    fn refused(&mut self, from: At, to: At, reject: Reject) {
        match reject.reason {
            RejectReason::WrongIncarnation => self.count("wiped nodes refused"),
            RejectReason::Removed if !self.net.cut[to][from] => {
                let what = format!("node {} says: {}", self.slots[to].id, reject.text);
                let Some(hub) = self.slots[from].hub() else { return };
                hub.post(Input::Removed { what });
                self.turn_soon(from);
                self.count("removed nodes told");
            }
            _ => {}
        }
    }
}
