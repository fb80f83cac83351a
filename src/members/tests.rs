//! The table of refusals, line by line, and what a change does to the catalogue.

use proptest::prelude::*;

use super::*;
use crate::types::ClusterId;

fn ids<const N: usize>(ids: [u16; N]) -> Vec<NodeId> {
    ids.map(NodeId).to_vec()
}

/// Node 1 leads 1, 2, 3; 4 listens; 5 was removed; 6 listens and is not bound. The log is committed up to 5000.
struct World {
    membership: Membership,
    pending: bool,
    start: LogIndex,
    peers: Vec<PeerStatus>,
    catalogue: Catalogue,
}

fn world() -> World {
    let mut catalogue = Catalogue::new(ClusterId(1));
    for id in 1..=6 {
        let incarnation = (id != 6).then_some(Incarnation(id.into()));
        catalogue.put_member(NodeId(id), incarnation, &format!("a:{id}")).unwrap();
    }
    catalogue.remove_member(NodeId(5)).unwrap();
    let peer = |id| PeerStatus {
        id: NodeId(id),
        acknowledged: LogIndex(5000),
        next: LogIndex(5001),
        in_flight: (0, 0),
        streams: true,
        active: true,
    };
    let membership = Membership { voters: ids([1, 2, 3]), learners: ids([4, 6]), ..Membership::default() };
    World { membership, pending: false, start: LogIndex(1), peers: [2, 3, 4, 6].map(peer).to_vec(), catalogue }
}

impl World {
    fn at(&self) -> Situation<'_> {
        Situation {
            leader: NodeId(1),
            membership: &self.membership,
            pending: self.pending,
            committed: LogIndex(5000),
            start: self.start,
            peers: &self.peers,
            catalogue: &self.catalogue,
        }
    }

    fn judge(&self, operation: Operation) -> Result<Vec<(ChangeKind, u16)>, Refusal> {
        let change = judge(&operation, &self.at())?;
        Ok(change.changes.into_iter().map(|(kind, node)| (kind, node.0)).collect())
    }

    fn silent(mut self, silent: &[u16]) -> World {
        self.peers.iter_mut().filter(|peer| silent.contains(&peer.id.0)).for_each(|peer| peer.active = false);
        self
    }

    /// The leader's log has the entries behind this one.
    fn starts(mut self, start: u64) -> World {
        self.start = LogIndex(start);
        self
    }

    fn has(mut self, node: u16, index: u64) -> World {
        self.peers.iter_mut().filter(|peer| peer.id.0 == node).for_each(|peer| peer.acknowledged = LogIndex(index));
        self
    }
}

fn add(node: u16, address: &str) -> Operation {
    Operation::AddLearner { node: NodeId(node), address: address.to_string(), incarnation: None, rises: false }
}

fn promote(node: u16) -> Operation {
    Operation::Promote { node: NodeId(node) }
}

fn remove(node: u16) -> Operation {
    Operation::Remove { node: NodeId(node) }
}

fn replace(old: u16, new: u16) -> Operation {
    Operation::Replace { old: NodeId(old), new: NodeId(new) }
}

fn quorum<const V: usize, const A: usize>(voters: [u16; V], active: [u16; A], needed: usize) -> Refusal {
    Refusal::Quorum { voters: voters.to_vec(), active: active.to_vec(), needed }
}

/// Without node 2, node 3 would have to do its part, and has so much.
fn lags(has: u64) -> Refusal {
    let (has, committed) = (LogIndex(has), LogIndex(5000));
    Refusal::Lags { voters: vec![1, 3], needed: 2, node: NodeId(3), has, committed }
}

#[test]
fn what_nothing_speaks_against_is_proposed() {
    use ChangeKind::*;
    let world = world();
    assert_eq!(world.judge(add(7, "a:7")), Ok(vec![(Learner, 7)]));
    assert_eq!(world.judge(promote(4)), Ok(vec![(Voter, 4)]));
    assert_eq!(world.judge(remove(3)), Ok(vec![(Removed, 3)]));
    assert_eq!(world.judge(remove(4)), Ok(vec![(Removed, 4)]));
    assert_eq!(world.judge(replace(3, 4)), Ok(vec![(Voter, 4), (Removed, 3)]));
    assert_eq!(world.starts(4990).has(4, 4990).judge(promote(4)), Ok(vec![(Voter, 4)]));
    let world = self::world();
    assert_eq!(judge(&remove(3), &world.at()).unwrap().transition, Transition::Automatic);
    assert_eq!(judge(&replace(3, 4), &world.at()).unwrap().transition, Transition::JointThenLeave);
}

/// Shows INV-34.
#[test]
fn each_line_of_the_table_refuses() {
    let no_member = |node| Refusal::Catalogue(Refused::NoSuchMember(NodeId(node)));
    let gone = |node| Refusal::Catalogue(Refused::RemovedMember(NodeId(node)));
    let long = "a".repeat(MAX_ADDRESS + 1);
    let len = long.len();
    let taken = Refusal::AddressTaken { address: "a:2".to_string(), other: NodeId(2) };
    let behind = Refusal::Behind { node: NodeId(4), has: LogIndex(3975), committed: LogIndex(5000) };
    let needs_snapshot = Refusal::Behind { node: NodeId(4), has: LogIndex(4989), committed: LogIndex(5000) };
    let rows = [
        (world(), add(4, "a:9"), Refusal::Member(NodeId(4))),
        (world(), add(5, "a:9"), gone(5)),
        (world(), add(7, ""), Refusal::NoAddress(NodeId(7))),
        (world(), add(7, &long), Refusal::Catalogue(Refused::LongAddress { node: NodeId(7), len })),
        (world(), add(7, "a:2"), taken),
        (world(), promote(7), no_member(7)),
        (world(), promote(5), gone(5)),
        (world(), promote(2), Refusal::Voter(NodeId(2))),
        (world(), promote(6), Refusal::Unbound(NodeId(6))),
        (world().silent(&[4]), promote(4), Refusal::Silent(NodeId(4))),
        (world().has(4, 5000 - CAUGHT_UP - 1), promote(4), behind.clone()),
        (world().has(4, 5000 - CAUGHT_UP - 1), replace(3, 4), behind),
        (world().starts(4990).has(4, 4989), promote(4), needs_snapshot),
        (world(), remove(7), no_member(7)),
        (world(), remove(5), gone(5)),
        (world(), remove(1), Refusal::Leader(NodeId(1))),
        (world(), replace(4, 4), Refusal::NoVoter(NodeId(4))),
        (world(), replace(3, 2), Refusal::Voter(NodeId(2))),
        (world(), replace(1, 4), Refusal::Leader(NodeId(1))),
        (world().silent(&[3]), remove(2), quorum([1, 3], [1], 2)),
        (world().starts(4990).has(3, 100), remove(2), lags(100)),
        (world().has(3, 5000 - CAUGHT_UP - 1), remove(2), lags(5000 - CAUGHT_UP - 1)),
        (world().starts(4990).has(3, 4989), remove(2), lags(4989)),
        (world().silent(&[2, 3]), promote(4), quorum([1, 2, 3, 4], [1, 4], 3)),
    ];
    for (world, operation, refusal) in rows {
        assert_eq!(world.judge(operation.clone()), Err(refusal), "{operation:?}");
    }
    // Exactly as far as may be.
    assert!(world().has(4, 5000 - CAUGHT_UP).judge(promote(4)).is_ok());
    assert!(world().has(3, 5000 - CAUGHT_UP).judge(remove(2)).is_ok());
    // With it gone those that are left have a quorum as before.
    assert!(world().starts(4990).has(3, 100).judge(remove(3)).is_ok());
    assert!(world().starts(4990).has(3, 100).judge(replace(3, 4)).is_ok());
    // Who does not vote may go whatever else is silent.
    assert!(world().silent(&[2, 3, 4]).judge(remove(4)).is_ok());
    assert!(world().silent(&[2]).judge(remove(2)).is_ok());
    let mut alone = world();
    alone.membership.voters = ids([1]);
    assert_eq!(alone.judge(remove(1)), Err(Refusal::LastVoter(NodeId(1))));
}

/// Shows INV-33.
#[test]
fn a_second_change_is_refused_whatever_it_is() {
    let mut pending = world();
    pending.pending = true;
    let mut joint = world();
    joint.membership.voters_outgoing = ids([1, 2]);
    for world in [pending, joint] {
        for operation in [add(7, "a:7"), promote(4), remove(3), replace(3, 4)] {
            assert_eq!(world.judge(operation), Err(Refusal::Pending));
        }
    }
}

#[test]
fn leadership_goes_to_nobody_who_cannot_take_it() {
    let to = |world: World, node| judge_transfer(NodeId(node), &world.at());
    assert_eq!(to(world(), 2), Ok(()));
    assert_eq!(to(world(), 7), Err(Refused::NoSuchMember(NodeId(7)).into()));
    assert_eq!(to(world(), 5), Err(Refused::RemovedMember(NodeId(5)).into()));
    assert_eq!(to(world(), 4), Err(Refusal::Learner(NodeId(4))));
    assert_eq!(to(world().silent(&[2]), 2), Err(Refusal::Silent(NodeId(2))));
    assert!(matches!(to(world().has(2, 5), 2), Err(Refusal::Behind { .. })));
}

fn change(changes: Vec<(ChangeKind, NodeId)>) -> MembershipChange {
    let transition = if changes.len() > 1 { Transition::JointThenLeave } else { Transition::Automatic };
    MembershipChange { transition, changes, context: Bytes::new() }
}

/// Shows INV-35.
#[test]
fn who_leaves_through_a_joint_configuration_is_a_member_until_it_is_left() {
    let mut catalogue = world().catalogue;
    apply(&mut catalogue, &change(vec![(ChangeKind::Voter, NodeId(4)), (ChangeKind::Removed, NodeId(3))]), &[])
        .unwrap();
    assert!(catalogue.member(NodeId(3)).unwrap().leaving && !catalogue.was_removed(NodeId(3)));
    // A restart in between: the catalogue is read from the log.
    let mut catalogue = Catalogue::decode(&catalogue.encode()).unwrap();
    apply(&mut catalogue, &MembershipChange::leave_joint(), &[]).unwrap();
    assert!(catalogue.member(NodeId(3)).is_none() && catalogue.was_removed(NodeId(3)));
    apply(&mut catalogue, &change(vec![(ChangeKind::Removed, NodeId(2))]), &[]).unwrap();
    assert!(catalogue.was_removed(NodeId(2)), "one alone goes at once");
}

#[test]
fn a_refused_change_leaves_the_catalogue_as_it_was() {
    let newcomer = |node, rises| Newcomer { node: NodeId(node), address: "a:7".to_string(), incarnation: None, rises };
    let mut catalogue = world().catalogue;
    let before = catalogue.clone();
    let learner = |node| change(vec![(ChangeKind::Learner, NodeId(node))]);
    assert!(apply(&mut catalogue, &learner(5), &[newcomer(5, true)]).is_err(), "removed");
    assert!(apply(&mut catalogue, &learner(2), &[newcomer(2, true)]).is_err(), "a member");
    assert!(apply(&mut catalogue, &learner(9), &[]).is_err(), "nobody said where it is");
    let two = change(vec![(ChangeKind::Removed, NodeId(2)), (ChangeKind::Removed, NodeId(9))]);
    assert!(apply(&mut catalogue, &two, &[]).is_err());
    assert_eq!(catalogue, before);
    apply(&mut catalogue, &learner(7), &[newcomer(7, true)]).unwrap();
    assert!(catalogue.member(NodeId(7)).unwrap().rises);
    apply(&mut catalogue, &change(vec![(ChangeKind::Voter, NodeId(7))]), &[]).unwrap();
    assert!(!catalogue.member(NodeId(7)).unwrap().rises, "it rises once");
}

fn context() -> Context {
    let origin = Origin { node: NodeId(1), session: 2, number: 3 };
    let operation = Operation::AddLearner {
        node: NodeId(4),
        address: "a:4".to_string(),
        incarnation: Some(Incarnation(0x44)),
        rises: true,
    };
    Context::of(&operation, origin)
}

#[test]
fn a_context_is_as_written_down() {
    let mut expected = vec![1, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    expected.extend_from_slice(&[4, 0, 3, 0x44, 0, 0, 0, 0, 0, 0, 0, 3, 0, b'a', b':', b'4']);
    assert_eq!(context().encode()[..], expected[..]);
    assert_eq!(Context::decode(&expected), Ok(context()));
    for len in 0..expected.len() {
        assert!(Context::decode(&expected[..len]).is_err(), "{len} bytes");
    }
    for (at, bad) in [(0, 2), (25, 4)] {
        let mut bytes = expected.clone();
        bytes[at] = bad;
        assert!(Context::decode(&bytes).is_err(), "{bad} at {at}");
    }
}

proptest! {
    #[test]
    fn bytes_of_a_context_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(context) = Context::decode(&bytes) {
            prop_assert_eq!(&context.encode()[..], &bytes[..]);
        }
    }
}
