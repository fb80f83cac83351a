//! A change of the members, as it stands in the log.
//!
//! ```text
//! offset size  field (big-endian)
//!      0    1  version: 1
//!      1    1  transition: 0 automatic, 1 joint and left by itself, 2 joint until told
//!      2    2  number of changes, n
//!      4   3n  per change: kind (0 voter, 1 learner, 2 removed), node (2 bytes, from 1)
//!  4 + 3n  ..  context
//! ```
//!
//! An empty payload is the change that leaves a joint configuration; the library writes that one by itself.
//!
//! The library has a protobuf of its own for this. It never reaches disk or network, because its parser is not to be
//! fed from there (RUSTSEC-2024-0437).

use bytes::{BufMut, Bytes, BytesMut};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use crate::types::NodeId;

const VERSION: u8 = 1;

/// What becomes of one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// It votes.
    Voter,
    /// It listens.
    Learner,
    /// It is no member any more.
    Removed,
}

/// How a change takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transition {
    /// At once if it changes one node, else joint and left by itself.
    #[default]
    Automatic,
    /// Through a joint configuration that is left by itself.
    JointThenLeave,
    /// Through a joint configuration that is left by [`MembershipChange::leave_joint`].
    JointUntilTold,
}

/// A change of the members: the payload of an entry of class membership.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MembershipChange {
    /// How it takes effect.
    pub transition: Transition,
    /// What becomes of whom. Empty: leave the joint configuration.
    pub changes: Vec<(ChangeKind, NodeId)>,
    /// Not Raft's business: what else must be replicated with the change.
    pub context: Bytes,
}

impl MembershipChange {
    /// The change that ends a joint configuration.
    pub fn leave_joint() -> MembershipChange {
        MembershipChange::default()
    }

    /// Whether it is that one.
    pub fn leaves_joint(&self) -> bool {
        self.changes.is_empty() && self.transition == Transition::Automatic
    }

    /// The bytes for the log. At most 65535 changes fit, which is all the nodes there can be.
    pub fn encode(&self) -> Bytes {
        if *self == MembershipChange::leave_joint() {
            return Bytes::new();
        }
        let count = self.changes.len().min(usize::from(u16::MAX));
        let mut bytes = BytesMut::with_capacity(4 + 3 * count + self.context.len());
        bytes.put_u8(VERSION);
        bytes.put_u8(self.transition as u8);
        bytes.put_u16(count as u16);
        for (kind, node) in &self.changes[..count] {
            bytes.put_u8(*kind as u8);
            bytes.put_u16(node.0);
        }
        bytes.put_slice(&self.context);
        bytes.freeze()
    }

    /// Reads the bytes from the log.
    pub fn decode(bytes: &Bytes) -> Result<MembershipChange, String> {
        if bytes.is_empty() {
            return Ok(MembershipChange::leave_joint());
        }
        let [version, transition, high, low, ..] = bytes[..] else {
            return Err(format!("membership change of {} bytes, its head has 4", bytes.len()));
        };
        if version != VERSION {
            return Err(format!("membership change of version {version}, this program knows {VERSION}"));
        }
        let transition = match transition {
            0 => Transition::Automatic,
            1 => Transition::JointThenLeave,
            2 => Transition::JointUntilTold,
            other => return Err(format!("membership change with transition {other}, known are 0 to 2")),
        };
        let count = usize::from(u16::from_be_bytes([high, low]));
        let end = 4 + 3 * count;
        let Some(body) = bytes.get(4..end) else {
            return Err(format!("membership change of {} bytes, {count} changes need {end}", bytes.len()));
        };
        let mut changes = Vec::with_capacity(count);
        for change in body.chunks_exact(3) {
            let kind = match change[0] {
                0 => ChangeKind::Voter,
                1 => ChangeKind::Learner,
                2 => ChangeKind::Removed,
                other => return Err(format!("membership change of kind {other}, known are 0 to 2")),
            };
            let node = u16::from_be_bytes([change[1], change[2]]);
            if node == 0 {
                return Err("membership change of node 0, nodes count from 1".to_owned());
            }
            changes.push((kind, NodeId(node)));
        }
        Ok(MembershipChange { transition, changes, context: bytes.slice(end..) })
    }

    /// The library's form of it.
    pub(super) fn to_raft(&self) -> ConfChangeV2 {
        let mut change = ConfChangeV2::default();
        change.set_transition(match self.transition {
            Transition::Automatic => ConfChangeTransition::Auto,
            Transition::JointThenLeave => ConfChangeTransition::Implicit,
            Transition::JointUntilTold => ConfChangeTransition::Explicit,
        });
        let singles = self.changes.iter().map(|(kind, node)| {
            let mut single = ConfChangeSingle { node_id: u64::from(node.0), ..ConfChangeSingle::default() };
            single.set_change_type(match kind {
                ChangeKind::Voter => ConfChangeType::AddNode,
                ChangeKind::Learner => ConfChangeType::AddLearnerNode,
                ChangeKind::Removed => ConfChangeType::RemoveNode,
            });
            single
        });
        change.set_changes(singles.collect::<Vec<_>>().into());
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swap() -> MembershipChange {
        MembershipChange {
            transition: Transition::JointThenLeave,
            changes: vec![(ChangeKind::Voter, NodeId(4)), (ChangeKind::Learner, NodeId(0x203))],
            context: Bytes::from_static(b"incarnations"),
        }
    }

    #[test]
    fn bytes_are_as_written_down() {
        let bytes = swap().encode();
        assert_eq!(bytes[..10], [1, 1, 0, 2, 0, 0, 4, 1, 2, 3]);
        assert_eq!(&bytes[10..], b"incarnations");
        assert!(MembershipChange::leave_joint().encode().is_empty());
    }

    #[test]
    fn every_change_comes_back() {
        for transition in [Transition::Automatic, Transition::JointThenLeave, Transition::JointUntilTold] {
            for n in 0..3 {
                for kind in [ChangeKind::Voter, ChangeKind::Learner, ChangeKind::Removed] {
                    let changes = (1..=n).map(|id| (kind, NodeId(id))).collect();
                    let change = MembershipChange { transition, changes, context: Bytes::from_static(b"c") };
                    assert_eq!(MembershipChange::decode(&change.encode()).as_ref(), Ok(&change));
                }
            }
        }
        let leave = MembershipChange::leave_joint();
        assert_eq!(MembershipChange::decode(&leave.encode()), Ok(leave));
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        let whole = swap().encode();
        for len in 1..10 {
            assert!(MembershipChange::decode(&whole.slice(..len)).is_err(), "{len} bytes");
        }
        for (at, bad) in [(0, 2), (1, 3), (4, 3)] {
            let mut bytes = whole.to_vec();
            bytes[at] = bad;
            assert!(MembershipChange::decode(&bytes.into()).is_err(), "{bad} at {at}");
        }
        assert!(MembershipChange::decode(&Bytes::from_static(&[1, 0, 0, 1, 0, 0, 0])).is_err(), "node 0");
    }
}
