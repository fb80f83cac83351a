//! What comes in from other nodes: judged, and put where it belongs. Called by the transport's threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::admin;
use crate::entry::Body;
use crate::found::format::FoundMessage;
use crate::net::codec;
use crate::net::frame::FrameKind;
use crate::net::handshake::{Hello, Judge, Purpose, Reject, Standing, Welcome};
use crate::net::{Caller, Inbound, Introduction};
use crate::pending::Decision;
use crate::raft::Role;
use crate::shared::{Hub, Input};
use crate::snapshot;
use crate::types::{ClusterId, Incarnation, Message, NodeId};

/// The node behind its door.
pub(crate) struct NodeInbound {
    hub: Hub,
    /// A thread is binding an incarnation.
    binding: Arc<AtomicBool>,
}

impl NodeInbound {
    pub(crate) fn new(hub: Hub) -> NodeInbound {
        NodeInbound { hub, binding: Arc::new(AtomicBool::new(false)) }
    }

    fn judge<T>(&self, act: impl FnOnce(&Judge<'_>) -> T) -> T {
        let catalogue = self.hub.catalogue.lock();
        let cluster = catalogue.as_ref().map(|catalogue| catalogue.cluster());
        act(&Judge { me: self.hub.id, speaks: self.hub.config.speaks, cluster, catalogue: catalogue.as_ref() })
    }

    /// A listed node that had not answered when the cluster was founded is here now, with its first data directory: the
    /// leader binds it by an entry, from which on its votes and acknowledgements count.
    fn bind(&self, node: NodeId, incarnation: Incarnation) {
        if self.hub.leadership().role != Role::Leader || self.binding.swap(true, Ordering::AcqRel) {
            return;
        }
        let (hub, binding) = (self.hub.clone(), self.binding.clone());
        let address = hub.with_catalogue(|catalogue| catalogue.member(node).map(|member| member.address.clone()));
        let Ok(Some(address)) = address else {
            binding.store(false, Ordering::Release);
            return;
        };
        // Proposing waits for a majority, which a transport's thread must not.
        let body = Body::BindIncarnation { node, incarnation, address };
        let spawned = std::thread::Builder::new().name("shoal-bind".to_string()).spawn(move || {
            let decision = hub.propose(body, None);
            match decision {
                Decision::Committed(index) => {
                    tracing::info!(
                        "bound the data directory of node {node}, which was listed and came later, by entry {index}"
                    );
                }
                // The next look at its connection proposes it again.
                _ => tracing::debug!(node = node.0, ?decision, "its data directory is not bound yet"),
            }
            binding.store(false, Ordering::Release);
        });
        if spawned.is_err() {
            self.binding.store(false, Ordering::Release);
        }
    }
}

impl Inbound for NodeInbound {
    fn introduction(&self) -> Introduction {
        self.hub.introduction()
    }

    fn check_hello(&self, hello: &Hello) -> Result<Standing, Reject> {
        let standing = self.judge(|judge| judge.hello(hello))?;
        if let Some(from) = hello.from.filter(|_| hello.purpose == Purpose::Peer) {
            self.hub.hear_version(from, hello.versions.1);
        }
        if let (Standing::Unbound, Some(from), Some(_)) = (standing, hello.from, hello.cluster) {
            self.bind(from, hello.incarnation);
        }
        if let (Standing::Member, Purpose::Peer, Some(from), Some(_)) =
            (standing, hello.purpose, hello.from, hello.cluster)
            && self.hub.is_news(from, &hello.address)
        {
            self.hub.post(Input::Heard { node: from, address: hello.address.clone() });
        }
        Ok(standing)
    }

    fn check_welcome(&self, meant: NodeId, welcome: &Welcome) -> Result<Standing, Reject> {
        let standing = self.judge(|judge| judge.welcome(meant, welcome))?;
        if standing == Standing::Unbound && welcome.cluster.is_some() {
            self.bind(meant, welcome.incarnation);
        }
        Ok(standing)
    }

    fn on_connected(&self, peer: NodeId, cluster: Option<ClusterId>) {
        self.hub.post(Input::Connected { peer, cluster });
    }

    fn on_message(&self, _: NodeId, message: Message) {
        let room = self.hub.inbox.wait(codec::size(&message));
        self.hub.deliver(Input::Message { message: Box::new(message), room });
    }

    fn on_found(&self, from: NodeId, message: FoundMessage) {
        let room = self.hub.inbox.wait(FrameKind::Found.limit());
        self.hub.post(Input::Found { from, message, room });
    }

    fn on_request(&self, from: Caller, body: Vec<u8>) -> Vec<u8> {
        let node = if let Caller::Node(node) = from { Some(node) } else { None };
        if body.first() == Some(&snapshot::object::MAGIC) {
            return snapshot::source::serve(&self.hub, node, &body);
        }
        match from {
            Caller::Node(_) | Caller::Program => admin::serve(&self.hub, node, &body),
            Caller::RemoteProgram(at) => admin::serve_remote(&self.hub, &at, &body),
        }
    }

    fn on_removed(&self, by: NodeId, text: &str) {
        let what = format!("node {by} says: {text}");
        self.hub.post(Input::Removed { what });
    }

    fn on_malformed(&self, who: &str, what: &str) {
        self.hub.note_malformed(who, "the port for nodes", what);
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.hub.is_member(node)
    }

    fn on_unreachable(&self, peer: NodeId) {
        self.hub.post(Input::Unreachable { peer });
    }
}

#[cfg(test)]
mod tests {
    use shoaldb_vfs::env::sim::SimFs;

    use super::*;
    use crate::every::tests::said;
    use crate::upkeep::tests::upkeep;

    /// A port that other machines reach took `drop` and `remove` from any of them: only the program looked whom it called.
    #[test]
    fn a_program_on_another_machine_is_answered_nothing_but_how_to_join() {
        let (upkeep, _) = upkeep(&SimFs::new(1));
        let inbound = NodeInbound::new(upkeep.hub().clone());
        let ask = |from, request: &str| {
            let answer = inbound.on_request(from, request.as_bytes().to_vec());
            String::from_utf8(answer).unwrap()
        };
        let words = "this came from 192.0.2.7; run the program there";
        let there = || Caller::RemoteProgram("192.0.2.7".to_string());
        for request in [
            r#"{"op":"status"}"#,
            r#"{"op":"health"}"#,
            r#"{"op":"drop","name":"nosuch"}"#,
            r#"{"op":"transfer","to":2}"#,
            r#"{"op":"remove","node":2}"#,
            r#"{"op":"directory"}"#,
            "nonsense",
        ] {
            let answer = ask(there(), request);
            assert!(answer.contains(words) && answer.contains("bad_input"), "{request}: {answer}");
            for from in [Caller::Program, Caller::Node(NodeId(2))] {
                assert!(!ask(from, request).contains(words), "{request}");
            }
        }
        let join = r#"{"op":"join","node":9,"incarnation":"9","address":"192.0.2.7:4001"}"#;
        assert!(!ask(there(), join).contains(words));
    }

    #[test]
    fn what_is_none_of_our_words_is_told_once_and_counted() {
        let (upkeep, _) = upkeep(&SimFs::new(1));
        let inbound = NodeInbound::new(upkeep.hub().clone());
        let heard = said(|| (0..3).for_each(|_| inbound.on_malformed("127.0.0.1", "frame type 47")));
        let told: Vec<_> = heard.iter().filter(|line| line.contains("that connection is ended")).collect();
        assert_eq!(told.len(), 1, "{heard:?}");
        let words = "127.0.0.1 said over the port for nodes what is not of shoal: frame type 47";
        assert!(told[0].starts_with(words), "{told:?}");
        assert_eq!(upkeep.hub().malformed(), 3);
    }
}
