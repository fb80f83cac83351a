//! What other nodes say of themselves: where they are reached and what they speak, for the transport and for the core.
//!
//! Members are reached where the catalogue says, unless they said something else of themselves since; who is no member is dialed as
//! long as it is reached (`heard.rs`).
//!
//! Deliberately absent: who may say so (`net/handshake.rs`), and when the catalogue takes it over (`moves.rs`).

use std::collections::{BTreeMap, BTreeSet};

use super::Shared;
use crate::catalogue::Catalogue;
use crate::types::{Incarnation, NodeId};

impl Shared {
    /// Where members may be, if they are not where the catalogue has them.
    pub(crate) fn set_hints(&self, hints: BTreeMap<NodeId, String>) {
        *self.hints.lock() = hints;
    }

    /// A node said which protocol version it speaks.
    pub(crate) fn hear_version(&self, node: NodeId, newest: u16) {
        let members = self.with_catalogue(|catalogue| catalogue.members().map(|(id, _)| id).collect::<BTreeSet<_>>());
        let members = members.unwrap_or_default();
        self.heard.lock().speaks(node, newest, |id| members.contains(&id));
    }

    /// A member that has not announced that it speaks this protocol version, in words; `None` if all have. A member that is away
    /// counts by what it said last, and one that never dialed this process has said nothing.
    pub(crate) fn who_does_not_know(&self, protocol: u16) -> Option<String> {
        if self.config.speaks.1 < protocol {
            return Some(format!("node {} speaks protocol {}", self.id, self.config.speaks.1));
        }
        let members = self.with_catalogue(|catalogue| catalogue.members().map(|(id, _)| id).collect::<Vec<_>>());
        let heard = self.heard.lock();
        let others = members.unwrap_or_default().into_iter().filter(|id| *id != self.id);
        let lacks = |id: NodeId| match heard.version(id) {
            Some(newest) if newest >= protocol => None,
            Some(newest) => Some(format!("node {id} speaks protocol {newest}")),
            None => Some(format!("node {id} has not said which protocol it speaks")),
        };
        others.into_iter().find_map(lacks)
    }

    /// A member said where that node is reached, or it is what this one says of itself.
    pub(crate) fn hear_address(&self, node: NodeId, address: String) {
        self.heard.lock().vouch(node, address);
    }

    /// A node said where it is reached itself. `false` if it is no member, and there are too many such.
    pub(crate) fn introduce(&self, node: NodeId, address: String) -> bool {
        let member = self.is_member(node);
        self.heard.lock().introduce(node, address, member)
    }

    /// Whether this is another address of a node than it is reached at so far.
    pub(crate) fn is_news(&self, node: NodeId, address: &str) -> bool {
        if address.is_empty() {
            return false;
        }
        if let Some(heard) = self.heard.lock().address(node) {
            return heard != address;
        }
        let known = |catalogue: &mut Catalogue| catalogue.member(node).is_some_and(|member| member.address == address);
        self.with_catalogue(known) != Ok(true)
    }

    /// Members that are reached elsewhere than the catalogue says, with their data directories. What both know is
    /// forgotten.
    pub(crate) fn moved(&self) -> Vec<(NodeId, Incarnation, String)> {
        let heard = self.heard.lock().addresses().clone();
        let moved = self.with_catalogue(|catalogue| {
            let same = heard
                .iter()
                .filter(|(id, address)| catalogue.member(**id).is_some_and(|member| member.address == **address));
            let same = same.map(|(id, _)| *id).collect::<BTreeSet<_>>();
            let moved = heard
                .iter()
                .filter(|(id, _)| !same.contains(id))
                .filter_map(|(id, address)| Some((*id, catalogue.member(*id)?.incarnation?, address.clone())));
            (moved.collect::<Vec<_>>(), same)
        });
        let (moved, same) = moved.unwrap_or_default();
        self.heard.lock().forget(|id, _| same.contains(&id));
        moved
    }

    /// Nodes that are no members and are not reached are not dialed for ever.
    pub(crate) fn forget_unreached(&self) {
        let Some(transport) = self.transport() else { return };
        let strangers = self.heard.lock().strangers();
        let reached: BTreeSet<NodeId> = strangers.into_iter().filter(|id| transport.is_connected(*id)).collect();
        let gone = self.heard.lock().take_unreached(self.waiting.clock.now(), |id| reached.contains(&id));
        if gone.is_empty() {
            return;
        }
        let names: Vec<String> = gone.iter().map(ToString::to_string).collect();
        tracing::info!("nodes {} are no members and are not reached: not dialed any more", names.join(", "));
        gone.iter().for_each(|id| transport.forget_peer(*id));
        // One may have become a member just now, and must be dialed.
        if gone.into_iter().any(|id| self.is_member(id)) {
            self.members_changed();
        }
        // Others, who are connected to this node, may have waited for a place.
        transport.recheck();
    }

    /// Members or their incarnations changed: connections are judged again, new members are dialed.
    pub(crate) fn members_changed(&self) {
        let Some(transport) = self.transport() else { return };
        let members = self.with_catalogue(|catalogue| {
            let members = catalogue.members().map(|(id, member)| (id, member.address.clone())).collect::<Vec<_>>();
            (members, catalogue.removed().collect::<Vec<_>>())
        });
        let (members, removed) = members.unwrap_or_default();
        let mut heard = {
            let mut heard = self.heard.lock();
            heard.on_members(|id| members.iter().any(|(member, _)| *member == id), |id| removed.contains(&id));
            heard.addresses().clone()
        };
        for (id, address) in members {
            transport.set_peer(id, heard.get(&id).unwrap_or(&address));
            heard.remove(&id);
        }
        let hints = self.hints.lock().clone();
        hints.iter().for_each(|(id, address)| transport.hint_peer(*id, address));
        // Members of which this node's catalogue does not know yet: one of them may be the leader who will tell.
        heard.iter().for_each(|(id, address)| transport.set_peer(*id, address));
        removed.into_iter().for_each(|id| transport.remove_peer(id));
        transport.recheck();
    }

    /// While a listed node is not bound to a data directory: looks again at who is connected, so that this leader binds
    /// it. A proposal to bind can be lost like any other, and a connection made before this node led was not looked at.
    pub(crate) fn recheck_unbound(&self) {
        let unbound = |catalogue: &mut Catalogue| catalogue.members().any(|(_, member)| member.incarnation.is_none());
        if self.with_catalogue(unbound) == Ok(true)
            && let Some(transport) = self.transport()
        {
            transport.recheck();
        }
    }

    /// What is in use of what there may be of nodes that are no members.
    pub(crate) fn strangers(&self) -> [(usize, usize); 2] {
        let members = self.with_catalogue(|catalogue| catalogue.members().map(|(id, _)| id).collect::<BTreeSet<_>>());
        let members = members.unwrap_or_default();
        self.heard.lock().usage(|id| members.contains(&id))
    }
}
