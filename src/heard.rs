//! What nodes say of themselves when they dial: where they are reached, and which protocol they speak. Known to this process
//! only, and newer than the catalogue.
//!
//! A node that is no member may be one that this node's catalogue does not know yet, perhaps the leader who will tell, so it
//! is dialed, too. But anybody who reaches the port can name any id. So what *strangers* say has a bound, and ends: only so
//! many are dialed, each until it was not reached for a while; members, and nodes that a member told of, are not counted
//! and never make room for a stranger. What is forgotten comes back when connections are judged again.
//!
//! Deliberately absent: connections, and the catalogue; the caller says who is a member.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::NodeId;

/// Strangers that are dialed at the same time, each with two threads.
pub(crate) const MAX_STRANGERS: usize = 16;
/// Strangers whose protocol version is remembered: a bootstrap list has at most 255 nodes, which are no members before the
/// founding.
pub(crate) const MAX_STRANGE_VERSIONS: usize = 256;
/// A stranger that was not reached for so long is not dialed any more.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module's text.
///
/// Invariant: `strangers` are among the `addresses`, at most [`MAX_STRANGERS`].
#[derive(Default, Debug)]
pub(crate) struct Heard {
    addresses: BTreeMap<NodeId, String>,
    /// Those whom nobody but themselves told of, and since when each was not reached.
    strangers: BTreeMap<NodeId, Option<Duration>>,
    versions: BTreeMap<NodeId, u16>,
}

impl Heard {
    /// A member said where that node is reached, or it is what this one says of itself.
    pub(crate) fn vouch(&mut self, node: NodeId, address: String) {
        self.strangers.remove(&node);
        self.addresses.insert(node, address);
    }

    /// A node said where it is reached itself. `false` if it is a stranger, and there are too many of them.
    pub(crate) fn introduce(&mut self, node: NodeId, address: String, member: bool) -> bool {
        if member {
            self.strangers.remove(&node);
        } else if !self.addresses.contains_key(&node) {
            if self.strangers.len() >= MAX_STRANGERS {
                return false;
            }
            self.strangers.insert(node, None);
        }
        self.addresses.insert(node, address);
        true
    }

    /// Where a node said that it is reached.
    pub(crate) fn address(&self, node: NodeId) -> Option<&str> {
        self.addresses.get(&node).map(String::as_str)
    }

    /// All of them.
    pub(crate) fn addresses(&self) -> &BTreeMap<NodeId, String> {
        &self.addresses
    }

    /// How many of those who are no members are dialed, and how many versions are remembered of such.
    pub(crate) fn usage(&self, member: impl Fn(NodeId) -> bool) -> [(usize, usize); 2] {
        let versions = self.versions.keys().filter(|known| !member(**known)).count();
        [(self.strangers.len(), MAX_STRANGERS), (versions, MAX_STRANGE_VERSIONS)]
    }

    /// Nodes that nobody but themselves told of.
    pub(crate) fn strangers(&self) -> Vec<NodeId> {
        self.strangers.keys().copied().collect()
    }

    /// These need not be known here any more: the catalogue has the same, or they were removed.
    pub(crate) fn forget(&mut self, known: impl Fn(NodeId, &str) -> bool) {
        self.addresses.retain(|node, address| !known(*node, address));
        self.strangers.retain(|node, _| self.addresses.contains_key(node));
    }

    /// These are members now, and those are not any more.
    pub(crate) fn on_members(&mut self, member: impl Fn(NodeId) -> bool, removed: impl Fn(NodeId) -> bool) {
        self.forget(|node, _| removed(node));
        self.strangers.retain(|node, _| !member(*node));
        let addresses = &self.addresses;
        let strangers = &self.strangers;
        self.versions.retain(|node, _| {
            member(*node) || (addresses.contains_key(node) && !strangers.contains_key(node) && !removed(*node))
        });
    }

    /// Strangers that were not reached for too long, which are forgotten with this.
    pub(crate) fn take_unreached(&mut self, now: Duration, reached: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let mut gone = Vec::new();
        for (node, since) in &mut self.strangers {
            match since {
                _ if reached(*node) => *since = None,
                None => *since = Some(now),
                Some(since) if now.saturating_sub(*since) >= PATIENCE => gone.push(*node),
                Some(_) => {}
            }
        }
        self.forget(|node, _| gone.contains(&node));
        gone
    }

    /// A node said which is the newest protocol version that it speaks. One stranger too many is not listened to.
    pub(crate) fn speaks(&mut self, node: NodeId, newest: u16, member: impl Fn(NodeId) -> bool) {
        if let Some(known) = self.versions.get_mut(&node) {
            *known = newest;
        } else if member(node) || self.versions.keys().filter(|known| !member(**known)).count() < MAX_STRANGE_VERSIONS {
            self.versions.insert(node, newest);
        }
    }

    /// The newest version that a node said it speaks.
    pub(crate) fn version(&self, node: NodeId) -> Option<u16> {
        self.versions.get(&node).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(node: u16) -> String {
        format!("a:{node}")
    }

    /// Shows INV-20. Every made-up id that said hello was dialed for ever, by two threads.
    #[test]
    fn strangers_are_bounded_and_members_are_not_crowded_out_by_them() {
        let mut heard = Heard::default();
        let max = MAX_STRANGERS as u16;
        heard.vouch(NodeId(500), at(500));
        let taken = (1000..1000 + max + 2).filter(|node| heard.introduce(NodeId(*node), at(*node), false)).count();
        assert_eq!(taken, MAX_STRANGERS, "n - 1, n, n + 1");
        assert!(heard.introduce(NodeId(1000), "b:1".to_string(), false), "who is known may move");
        assert_eq!(heard.address(NodeId(1000)), Some("b:1"));
        assert!(heard.introduce(NodeId(2), at(2), true), "a member always has its place");
        assert_eq!(heard.addresses().len(), MAX_STRANGERS + 2);

        // One becomes a member, one is removed: two may come.
        heard.on_members(|node| node == NodeId(2) || node == NodeId(1000), |node| node == NodeId(1001));
        let taken = (2000..2009).filter(|node| heard.introduce(NodeId(*node), at(*node), false)).count();
        assert_eq!((taken, heard.address(NodeId(1001))), (2, None));
    }

    /// Shows INV-20.
    #[test]
    fn a_stranger_that_is_not_reached_is_forgotten_and_makes_room() {
        let mut heard = Heard::default();
        heard.introduce(NodeId(2), at(2), true);
        for node in 1000..1000 + MAX_STRANGERS as u16 {
            heard.introduce(NodeId(node), at(node), false);
        }
        let reached = |node| node == NodeId(1000);
        let long = Duration::from_secs(100);
        assert_eq!(heard.take_unreached(long, reached), []);
        assert_eq!(heard.take_unreached(long + PATIENCE - Duration::from_nanos(1), reached), []);
        assert_eq!(heard.take_unreached(long + PATIENCE, reached).len(), MAX_STRANGERS - 1);
        assert_eq!(heard.addresses().keys().collect::<Vec<_>>(), [&NodeId(2), &NodeId(1000)]);
        assert!(heard.introduce(NodeId(3000), at(3000), false));
        // From when it is not reached any more, not from when it was heard of.
        assert_eq!(heard.take_unreached(10 * long, |_| false), []);
        assert_eq!(heard.take_unreached(10 * long + PATIENCE, |_| false), [NodeId(1000), NodeId(3000)]);
    }

    /// Shows INV-20.
    #[test]
    fn versions_of_strangers_are_bounded_and_those_of_members_are_kept() {
        let mut heard = Heard::default();
        let member = |node: NodeId| node.0 < 10;
        for node in 1000..1000 + 2 * MAX_STRANGE_VERSIONS as u16 {
            heard.speaks(NodeId(node), 1, member);
        }
        heard.speaks(NodeId(2), 1, member);
        heard.speaks(NodeId(1000), 2, member);
        assert_eq!((heard.version(NodeId(2)), heard.version(NodeId(1000))), (Some(1), Some(2)));
        assert_eq!(heard.versions.len(), MAX_STRANGE_VERSIONS + 1);
        heard.on_members(member, |_| false);
        assert_eq!((heard.version(NodeId(2)), heard.versions.len()), (Some(1), 1));
    }
}
