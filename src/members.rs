//! Changes of the members: what is asked for, what is refused and why, and what the entry carries.
//!
//! A change is one entry of Raft's own class. Its payload ([`MembershipChange`]) says who votes and who listens; its
//! *context*, written down here, says where a newcomer is reached and which data directory it is. Both take effect at the
//! same index, so there is never a voter without an address, or an address without a member.
//!
//! ```text
//! offset size  field (little-endian)
//!      0    1  version: 1
//!      1    2  proposing node
//!      3    8  its session
//!     11    8  number of the proposal, 0 if nobody waits for it
//!     19    4  number of newcomers; then for each:
//!              2 id, 1 flags (1 bound, 2 becomes a voter by itself), 8 incarnation (0 if not bound),
//!              2 length of address, address
//! ```
//!
//! [`judge`] is asked by the leader before it proposes, in the order of this table; the first line that fits decides:
//!
//! ```text
//! asked for              refused if
//! anything               a change is under way, or its entry is not applied yet
//! add a learner          the id is a member's; it was one once (never again); the address is missing, too long, or another
//!                        member's
//! promote, replace by    no member; a voter already; not bound to a data directory; not heard of lately; it lacks more
//!                        than CAUGHT_UP entries, or one that this leader does not have any more
//! remove, replace        no member; (replace) no voter; the leader itself
//! a change of voters     of the voters after the change, fewer than a majority were heard of lately, or fewer have caught up
//!                        (as above): what was committed by others would be on too few disks, and nothing be committed
//! transfer               no member; no voter; not bound; not heard of lately; not caught up
//! ```
//!
//! A removal through a joint configuration takes the member out of the catalogue when the joint configuration is *left*:
//! until then its acknowledgements count in the outgoing half, so it must be let in.
//!
//! Deliberately absent: who asks (`admin.rs`), and when the core changes (`engine.rs`).

use bytes::Bytes;

use crate::catalogue::{Catalogue, MAX_ADDRESS, Refused};
use crate::entry::Origin;
use crate::error::ErrorKind;
use crate::fields::{Damaged, Reader, put_count, put_text};
use crate::planted::{self, Bug};
use crate::raft::{ChangeKind, MembershipChange, PeerStatus, Transition};
use crate::types::{Incarnation, LogIndex, Membership, NodeId};

/// Entries that a node may lack and still become a voter, or the leader: what a fast log has on its way at any moment.
pub(crate) const CAUGHT_UP: u64 = 1024;

const VERSION: u8 = 1;

/// A change that somebody asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// A new member that listens. Without an incarnation it is bound when it comes.
    AddLearner { node: NodeId, address: String, incarnation: Option<Incarnation>, rises: bool },
    /// A learner becomes a voter.
    Promote { node: NodeId },
    /// A member goes, for ever.
    Remove { node: NodeId },
    /// A learner takes the place of a voter, in one step.
    Replace { old: NodeId, new: NodeId },
}

/// What the leader knows when it judges.
pub(crate) struct Situation<'a> {
    pub(crate) leader: NodeId,
    pub(crate) membership: &'a Membership,
    /// A change is in the log and not applied.
    pub(crate) pending: bool,
    pub(crate) committed: LogIndex,
    /// The entry before the first one that the leader still has: who has less needs a snapshot.
    pub(crate) start: LogIndex,
    pub(crate) peers: &'a [PeerStatus],
    pub(crate) catalogue: &'a Catalogue,
}

/// Why a change is refused. Nothing was proposed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("another change of the members is under way; try again when it is done")]
    Pending,
    #[error("node {0} is a member already")]
    Member(NodeId),
    #[error("{0}")]
    Catalogue(#[from] Refused),
    #[error("node {0} needs an address at which the others reach it")]
    NoAddress(NodeId),
    #[error("address {address} is that of node {other}; give each member its own")]
    AddressTaken { address: String, other: NodeId },
    #[error("node {0} is a voter already")]
    Voter(NodeId),
    #[error("node {0} does not vote; remove it, and promote the new one")]
    NoVoter(NodeId),
    #[error("node {0} does not vote; promote it first")]
    Learner(NodeId),
    #[error("node {0} is not bound to a data directory yet; start it, and try again when it is connected")]
    Unbound(NodeId),
    #[error("node {0} was not heard of lately; start it, or see why it is not reached")]
    Silent(NodeId),
    #[error("node {node} has the log up to entry {has} of {committed}; try again when it has caught up")]
    Behind { node: NodeId, has: LogIndex, committed: LogIndex },
    #[error("node {0} leads; transfer leadership first")]
    Leader(NodeId),
    #[error("node {0} is the last voter; a cluster needs one")]
    LastVoter(NodeId),
    #[error(
        "the cluster would lose its quorum: of the voters {voters:?} after the change, only {active:?} were heard of lately, and {needed} are needed; bring the others back, or remove them first"
    )]
    Quorum { voters: Vec<u16>, active: Vec<u16>, needed: usize },
    #[error(
        "the cluster would lose its quorum: of the voters {voters:?} after the change {needed} must have caught up, and node {node} has the log up to entry {has} of {committed}; try again when it has caught up"
    )]
    Lags { voters: Vec<u16>, needed: usize, node: NodeId, has: LogIndex, committed: LogIndex },
}

impl Refusal {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Refusal::Pending | Refusal::Behind { .. } | Refusal::Leader(_) => ErrorKind::Busy,
            Refusal::Quorum { .. } | Refusal::Lags { .. } => ErrorKind::Busy,
            // Like the quorum: with another voter it can be done.
            Refusal::LastVoter(_) => ErrorKind::Busy,
            Refusal::Silent(_) | Refusal::Unbound(_) => ErrorKind::Timeout,
            Refusal::Member(_) | Refusal::Voter(_) | Refusal::AddressTaken { .. } => ErrorKind::Exists,
            Refusal::Catalogue(Refused::NoSuchMember(_)) | Refusal::NoVoter(_) | Refusal::Learner(_) => {
                ErrorKind::NotFound
            }
            Refusal::Catalogue(Refused::RemovedMember(_)) => ErrorKind::Removed,
            Refusal::Catalogue(Refused::MemberAlready(_) | Refused::OtherIncarnation { .. }) => ErrorKind::Exists,
            // What no state of the cluster makes right.
            Refusal::Catalogue(_) | Refusal::NoAddress(_) => ErrorKind::BadInput,
        }
    }

    /// Whether waiting for a moment may help: who is heard of is known once per heartbeat, and a new leader hears then what each
    /// has.
    pub(crate) fn may_pass(&self) -> bool {
        use Refusal::{Behind, Lags, Pending, Quorum, Silent, Unbound};
        match self {
            Pending | Silent(_) | Unbound(_) | Quorum { .. } | Lags { .. } => true,
            // It has nothing, or this leader has just begun.
            Behind { has, .. } => has.0 == 0,
            _ => false,
        }
    }
}

/// May this be done now? The change to propose, without its context; see the module's table.
pub(crate) fn judge(operation: &Operation, at: &Situation<'_>) -> Result<MembershipChange, Refusal> {
    if at.pending || !at.membership.voters_outgoing.is_empty() {
        return Err(Refusal::Pending);
    }
    let changes = match operation {
        Operation::AddLearner { node, address, .. } => {
            at.newcomer(*node, address)?;
            vec![(ChangeKind::Learner, *node)]
        }
        Operation::Promote { node } => {
            at.candidate(*node)?;
            vec![(ChangeKind::Voter, *node)]
        }
        Operation::Remove { node } => {
            at.leaver(*node)?;
            vec![(ChangeKind::Removed, *node)]
        }
        Operation::Replace { old, new } => {
            at.leaver(*old)?;
            if !at.membership.voters.contains(old) {
                return Err(Refusal::NoVoter(*old));
            }
            at.candidate(*new)?;
            vec![(ChangeKind::Voter, *new), (ChangeKind::Removed, *old)]
        }
    };
    at.keeps_quorum(&changes)?;
    let transition = if changes.len() > 1 { Transition::JointThenLeave } else { Transition::Automatic };
    Ok(MembershipChange { transition, changes, context: Bytes::new() })
}

/// May leadership go to this node now?
pub(crate) fn judge_transfer(to: NodeId, at: &Situation<'_>) -> Result<(), Refusal> {
    at.member(to)?;
    if !at.membership.voters.contains(&to) {
        return Err(Refusal::Learner(to));
    }
    at.fit(to)
}

impl Situation<'_> {
    fn member(&self, node: NodeId) -> Result<(), Refusal> {
        if self.catalogue.was_removed(node) {
            return Err(Refused::RemovedMember(node).into());
        }
        if self.catalogue.member(node).is_none() {
            return Err(Refused::NoSuchMember(node).into());
        }
        Ok(())
    }

    fn newcomer(&self, node: NodeId, address: &str) -> Result<(), Refusal> {
        if self.catalogue.was_removed(node) {
            return Err(Refused::RemovedMember(node).into());
        }
        if self.catalogue.member(node).is_some() {
            return Err(Refusal::Member(node));
        }
        if address.is_empty() {
            return Err(Refusal::NoAddress(node));
        }
        if address.len() > MAX_ADDRESS {
            return Err(Refused::LongAddress { node, len: address.len() }.into());
        }
        if let Some((other, _)) = self.catalogue.members().find(|(_, member)| member.address == address) {
            return Err(Refusal::AddressTaken { address: address.to_string(), other });
        }
        Ok(())
    }

    fn candidate(&self, node: NodeId) -> Result<(), Refusal> {
        self.member(node)?;
        if self.membership.voters.contains(&node) {
            return Err(Refusal::Voter(node));
        }
        self.fit(node)
    }

    /// Bound, heard of, and not far behind.
    fn fit(&self, node: NodeId) -> Result<(), Refusal> {
        if self.catalogue.member(node).is_some_and(|member| member.incarnation.is_none()) {
            return Err(Refusal::Unbound(node));
        }
        let Some(peer) = self.peers.iter().find(|peer| peer.id == node && peer.active) else {
            return Err(Refusal::Silent(node));
        };
        if !self.has_caught_up(peer) {
            return Err(Refusal::Behind { node, has: peer.acknowledged, committed: self.committed });
        }
        Ok(())
    }

    /// It can acknowledge what is proposed now: it lacks little, and this leader has that.
    fn has_caught_up(&self, peer: &PeerStatus) -> bool {
        // However few entries it lacks: if they are gone, its vote would count in every majority long before it can be one.
        planted::is(Bug::PromotedEarly)
            || peer.acknowledged >= self.start && peer.acknowledged.0.saturating_add(CAUGHT_UP) >= self.committed.0
    }

    fn leaver(&self, node: NodeId) -> Result<(), Refusal> {
        self.member(node)?;
        if self.membership.voters == [node] {
            return Err(Refusal::LastVoter(node));
        }
        if node == self.leader {
            return Err(Refusal::Leader(node));
        }
        Ok(())
    }

    fn keeps_quorum(&self, changes: &[(ChangeKind, NodeId)]) -> Result<(), Refusal> {
        let mut voters = self.membership.voters.clone();
        for (kind, node) in changes {
            voters.retain(|voter| voter != node);
            if *kind == ChangeKind::Voter {
                voters.push(*node);
            }
        }
        voters.sort_unstable();
        if voters == self.membership.voters {
            // Who votes stays the same: a cluster that works goes on working.
            return Ok(());
        }
        let heard = self.peers.iter().filter(|peer| peer.active && voters.contains(&peer.id));
        let (able, lag): (Vec<&PeerStatus>, Vec<&PeerStatus>) = heard.partition(|peer| self.has_caught_up(peer));
        let itself = usize::from(voters.contains(&self.leader));
        let needed = voters.len() / 2 + 1;
        if itself + able.len() >= needed {
            return Ok(());
        }
        let is_active = |node: &NodeId| *node == self.leader || able.iter().chain(&lag).any(|peer| peer.id == *node);
        let active: Vec<u16> = voters.iter().filter(|node| is_active(node)).map(|node| node.0).collect();
        let voters = voters.iter().map(|node| node.0).collect();
        // Whoever is nearest is the first one that will do.
        match lag.iter().max_by_key(|peer| peer.acknowledged) {
            Some(peer) if active.len() >= needed => {
                let (node, has, committed) = (peer.id, peer.acknowledged, self.committed);
                Err(Refusal::Lags { voters, needed, node, has, committed })
            }
            _ => Err(Refusal::Quorum { voters, active, needed }),
        }
    }
}

/// A member that a change brings in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Newcomer {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) incarnation: Option<Incarnation>,
    /// It becomes a voter by itself, once it has caught up.
    pub(crate) rises: bool,
}

/// What is replicated with a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Context {
    pub(crate) origin: Origin,
    pub(crate) newcomers: Vec<Newcomer>,
}

impl Context {
    /// What goes with this operation.
    pub(crate) fn of(operation: &Operation, origin: Origin) -> Context {
        let newcomers = match operation {
            Operation::AddLearner { node, address, incarnation, rises } => {
                vec![Newcomer { node: *node, address: address.clone(), incarnation: *incarnation, rises: *rises }]
            }
            Operation::Promote { .. } | Operation::Remove { .. } | Operation::Replace { .. } => Vec::new(),
        };
        Context { origin, newcomers }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.origin.node.0.to_le_bytes());
        out.extend_from_slice(&self.origin.session.to_le_bytes());
        out.extend_from_slice(&self.origin.number.to_le_bytes());
        put_count(&mut out, self.newcomers.len());
        for newcomer in &self.newcomers {
            out.extend_from_slice(&newcomer.node.0.to_le_bytes());
            out.push(u8::from(newcomer.incarnation.is_some()) | u8::from(newcomer.rises) << 1);
            out.extend_from_slice(&newcomer.incarnation.map_or(0, |incarnation| incarnation.0).to_le_bytes());
            put_text(&mut out, &newcomer.address, MAX_ADDRESS);
        }
        out.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Context, Damaged> {
        let mut fields = Reader::new(bytes);
        let version = fields.u8("version")?;
        if version != VERSION {
            return Err(fields.damaged(format!("context of version {version}, this program knows {VERSION}")));
        }
        let node = fields.node("proposing node")?;
        let origin = Origin { node, session: fields.u64("session")?, number: fields.u64("number")? };
        let count = fields.count(13, "number of newcomers")?;
        let mut newcomers = Vec::with_capacity(count);
        for _ in 0..count {
            let node = fields.node("newcomer")?;
            let flags = fields.u8("flags")?;
            if flags > 3 {
                return Err(fields.damaged(format!("flags {flags}, known are 0 to 3")));
            }
            let incarnation = Incarnation(fields.u64("incarnation")?);
            let address = fields.text(MAX_ADDRESS, "address")?.to_string();
            let incarnation = (flags & 1 != 0).then_some(incarnation);
            newcomers.push(Newcomer { node, address, incarnation, rises: flags & 2 != 0 });
        }
        fields.end()?;
        Ok(Context { origin, newcomers })
    }
}

/// The entry's effect on the catalogue: all of it or, if it is refused, nothing.
pub(crate) fn apply(
    catalogue: &mut Catalogue,
    change: &MembershipChange,
    newcomers: &[Newcomer],
) -> Result<(), Refused> {
    let mut after = catalogue.clone();
    if change.leaves_joint() {
        after.end_leaving();
    }
    let joint = change.transition != Transition::Automatic || change.changes.len() > 1;
    for newcomer in newcomers {
        if after.member(newcomer.node).is_some() {
            return Err(Refused::MemberAlready(newcomer.node));
        }
        after.put_member(newcomer.node, newcomer.incarnation, &newcomer.address)?;
        after.set_rises(newcomer.node, newcomer.rises)?;
    }
    for (kind, node) in &change.changes {
        match kind {
            ChangeKind::Learner => after.require(*node)?,
            ChangeKind::Voter => after.set_rises(*node, false)?,
            ChangeKind::Removed if joint => after.set_leaving(*node)?,
            ChangeKind::Removed => _ = after.remove_member(*node)?,
        }
    }
    *catalogue = after;
    Ok(())
}

#[cfg(test)]
mod tests;
