//! The first two frames of a connection: who are you, and may you speak?
//!
//! ```text
//! hello, from the dialer (little-endian)
//!      0    4  magic "SHwp"
//!      4    2  oldest protocol version the dialer speaks
//!      6    2  newest
//!      8    1  purpose: 1 peer (small messages), 2 bulk (large appends), 3 client (requests)
//!      9    1  1 if the dialer belongs to a cluster
//!     10    8  its cluster id, else 0
//!     18    2  dialer's node id, 0 for a program that is no node
//!     20    2  node that is meant to answer, 0 for whoever it is
//!     22    8  dialer's incarnation
//!     30       2 length of address, address at which others reach the dialer
//!              1 if the dialer has applied the entry that binds its id to its incarnation; both are left out if there is
//!              nothing to tell, and the second one by older programs
//!              then what later versions add; not read
//!
//! welcome
//!      0    2  protocol version of this connection: the newest that both speak
//!      2    2  node id
//!      4    8  incarnation
//!     12    1  1 if it belongs to a cluster
//!     13    8  its cluster id, else 0
//!     21       what later versions add; not read
//!
//! reject
//!      0    1  reason, see RejectReason
//!      1    2  length of the text, at most 1024
//!      3       text: what, where, and what to do
//! ```
//!
//! **Versions.** Each side speaks a range of protocol versions; the connection has the newest that both speak, and without one
//! there is no connection, and both sides say why. What a dialer calls its newest is also its *announcement*: it knows every
//! kind of entry that came up to that version. A leader writes a kind of a later version than 1 only when every member has
//! announced it (`Shared::who_does_not_know`).
//!
//! Who may say what on a connection is a [`Standing`]. A node's id is bound to the incarnation of its data directory: the
//! same id with another incarnation is a wiped disk, and refused. A listed member that is *not bound yet* may lead and
//! send, but its votes and acknowledgements do not count: it could be the second life of one that voted already. If it says
//! that it has applied its own binding, it is believed: that entry is committed, and names one incarnation for ever, so we
//! are behind; and it may be that nobody can tell us what we lack but a leader for whom our vote, or its own, has to count.
//! A node that the catalogue does not know at all is accepted: we may be behind, and it may be the leader who will tell us; it
//! is in no quorum of ours.
//!
//! Deliberately absent: sockets, and secrets. This keeps honest nodes from harming each other by mistake; it does not
//! keep out an attacker (see `allow_plaintext_remote`).

use crate::catalogue::{Catalogue, MAX_ADDRESS};
use crate::fields::{Damaged, Reader, put_text};
use crate::planted::{self, Bug};
pub use crate::types::PROTOCOL;
use crate::types::{ClusterId, Incarnation, MessageKind, NodeId};

const MAGIC: [u8; 4] = *b"SHwp";
const MAX_TEXT: usize = 1024;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Small messages from one node to another.
    Peer,
    /// Appends with much data, so that small messages do not wait behind them.
    Bulk,
    /// Requests, from a node or a program.
    Client,
}

/// The dialer's first frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest and newest protocol version it speaks.
    pub versions: (u16, u16),
    /// What the connection is for.
    pub purpose: Purpose,
    /// The dialer's cluster, once it has one.
    pub cluster: Option<ClusterId>,
    /// The dialer; `None` for a program that is no node.
    pub from: Option<NodeId>,
    /// Who is meant to answer; `None` for whoever it is.
    pub to: Option<NodeId>,
    /// The dialer's data directory (0 for a program).
    pub incarnation: Incarnation,
    /// Where others reach the dialer; empty if it does not say.
    pub address: String,
    /// The dialer has applied the entry that binds its id to this incarnation.
    pub bound: bool,
}

/// The answer that opens a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// Protocol version of the connection.
    pub version: u16,
    /// Who answers.
    pub node: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Its cluster, once it has one.
    pub cluster: Option<ClusterId>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RejectReason {
    /// No common protocol version (1).
    Version,
    /// Another cluster (2).
    WrongCluster,
    /// Another node answers at this address (3).
    WrongNode,
    /// A known id with another data directory (4).
    WrongIncarnation,
    /// An id that was removed (5).
    Removed,
    /// Too many connections (6).
    Busy,
    /// Anything else, or a reason of a later version.
    Other(u8),
}

impl RejectReason {
    fn number(self) -> u8 {
        match self {
            RejectReason::Version => 1,
            RejectReason::WrongCluster => 2,
            RejectReason::WrongNode => 3,
            RejectReason::WrongIncarnation => 4,
            RejectReason::Removed => 5,
            RejectReason::Busy => 6,
            RejectReason::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> RejectReason {
        match number {
            1 => RejectReason::Version,
            2 => RejectReason::WrongCluster,
            3 => RejectReason::WrongNode,
            4 => RejectReason::WrongIncarnation,
            5 => RejectReason::Removed,
            6 => RejectReason::Busy,
            other => RejectReason::Other(other),
        }
    }
}

/// The answer that refuses a connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Reject {
    /// For programs.
    pub reason: RejectReason,
    /// For people: what, where, and what to do.
    pub text: String,
}

impl Reject {
    fn new(reason: RejectReason, text: String) -> Reject {
        Reject { reason, text }
    }
}

/// What the other side of a connection may say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Everything.
    Member,
    /// A member whose incarnation is not bound yet: its votes and acknowledgements do not count.
    Unbound,
    /// One of the two sides has no cluster yet: founding and requests only.
    Founding,
}

impl Standing {
    /// Whether a Raft message of this kind is let through.
    pub fn admits(self, kind: MessageKind) -> bool {
        match self {
            Standing::Member => true,
            Standing::Unbound if planted::is(Bug::UnboundVotes) => true,
            Standing::Founding => false,
            Standing::Unbound => match kind {
                MessageKind::Append
                | MessageKind::Heartbeat
                | MessageKind::Snapshot
                | MessageKind::TimeoutNow
                | MessageKind::ReadIndex
                | MessageKind::ReadIndexReply => true,
                // A candidate counts its own vote: granting it ours would make its vote count.
                MessageKind::Vote
                | MessageKind::PreVote
                | MessageKind::VoteReply
                | MessageKind::PreVoteReply
                | MessageKind::AppendReply
                | MessageKind::HeartbeatReply
                | MessageKind::TransferLeader => false,
            },
        }
    }
}

/// What a node knows when it judges a handshake.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// This node.
    pub me: NodeId,
    /// Oldest and newest protocol version that it speaks.
    pub speaks: (u16, u16),
    /// Its cluster, once it has one.
    pub cluster: Option<ClusterId>,
    /// Its catalogue, once it has a cluster.
    pub catalogue: Option<&'a Catalogue>,
}

impl Judge<'_> {
    /// Whether the dialer may connect, and what it may say.
    pub fn hello(&self, hello: &Hello) -> Result<Standing, Reject> {
        let me = self.me;
        if self.common_version(hello.versions).is_none() {
            let dialer = hello.from.map_or("the caller".to_string(), |from| format!("node {from}"));
            let older = if hello.versions.1 < self.speaks.0 { dialer.clone() } else { format!("node {me}") };
            let text = format!(
                "{dialer} speaks protocol {}, node {me} speaks {}; start a newer version of shoal on {older}",
                range(hello.versions),
                range(self.speaks)
            );
            return Err(Reject::new(RejectReason::Version, text));
        }
        if let Some(to) = hello.to
            && to != me
        {
            let text = format!("this is node {me}, not node {to}; correct the address of node {to} in the member list");
            return Err(Reject::new(RejectReason::WrongNode, text));
        }
        if hello.purpose == Purpose::Client {
            self.same_cluster("the caller", hello.cluster)?;
            return Ok(Standing::Member);
        }
        let Some(from) = hello.from else {
            let text = "a connection between nodes needs the dialer's node id".to_string();
            return Err(Reject::new(RejectReason::WrongNode, text));
        };
        if from == me {
            let text = format!(
                "node {me} is already running here; give the other process its own id, or correct the address of node {me}"
            );
            return Err(Reject::new(RejectReason::WrongNode, text));
        }
        match self.peer(from, hello.cluster, hello.incarnation)? {
            Standing::Unbound if hello.bound => Ok(Standing::Member),
            standing => Ok(standing),
        }
    }

    /// The protocol version of a connection with somebody who speaks these.
    pub fn common_version(&self, (oldest, newest): (u16, u16)) -> Option<u16> {
        Some(newest.min(self.speaks.1)).filter(|version| *version >= oldest.max(self.speaks.0))
    }

    /// Whether the one who answered is the one we meant, and what we may expect of it.
    pub fn welcome(&self, meant: NodeId, welcome: &Welcome) -> Result<Standing, Reject> {
        if !(self.speaks.0..=self.speaks.1).contains(&welcome.version) {
            let text = format!("node {meant} chose protocol {}, we speak {}", welcome.version, range(self.speaks));
            return Err(Reject::new(RejectReason::Version, text));
        }
        if welcome.node != meant {
            let node = welcome.node;
            let text = format!("node {node} answers where node {meant} should; correct the address of node {meant}");
            return Err(Reject::new(RejectReason::WrongNode, text));
        }
        self.peer(meant, welcome.cluster, welcome.incarnation)
    }

    fn same_cluster(&self, who: &str, theirs: Option<ClusterId>) -> Result<(), Reject> {
        match (self.cluster, theirs) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let text = format!(
                    "{who} belongs to cluster {theirs}, node {} to cluster {ours}; check addresses and data directories: nodes of two clusters cannot be mixed",
                    self.me
                );
                Err(Reject::new(RejectReason::WrongCluster, text))
            }
            _ => Ok(()),
        }
    }

    fn peer(&self, node: NodeId, cluster: Option<ClusterId>, incarnation: Incarnation) -> Result<Standing, Reject> {
        self.same_cluster(&format!("node {node}"), cluster)?;
        if let Some(catalogue) = self.catalogue {
            if catalogue.was_removed(node) && !planted::is(Bug::RemovedLetIn) {
                let text = format!(
                    "node {node} was removed from cluster {}; to bring the machine back, join it with an empty data directory under a new id",
                    catalogue.cluster()
                );
                return Err(Reject::new(RejectReason::Removed, text));
            }
            if let Some(bound) = catalogue.member(node).and_then(|member| member.incarnation)
                && bound != incarnation
                && !planted::is(Bug::WipedVoter)
            {
                let text = format!(
                    "node {node} is known with data directory {bound}, this one is {incarnation}: its disk was wiped or replaced, or this is a second directory, to start with another id; only if the first one is gone, remove node {node} and join it again under a new id"
                );
                return Err(Reject::new(RejectReason::WrongIncarnation, text));
            }
        }
        let (Some(_), Some(_), Some(catalogue)) = (self.cluster, cluster, self.catalogue) else {
            return Ok(Standing::Founding);
        };
        match catalogue.member(node) {
            Some(member) if member.incarnation.is_none() => Ok(Standing::Unbound),
            Some(_) | None => Ok(Standing::Member),
        }
    }
}

fn range((oldest, newest): (u16, u16)) -> String {
    if oldest == newest { newest.to_string() } else { format!("{oldest} to {newest}") }
}

impl Hello {
    /// Appends the body of the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.versions.0.to_le_bytes());
        out.extend_from_slice(&self.versions.1.to_le_bytes());
        out.push(match self.purpose {
            Purpose::Peer => 1,
            Purpose::Bulk => 2,
            Purpose::Client => 3,
        });
        put_cluster(out, self.cluster);
        out.extend_from_slice(&self.from.map_or(0, |id| id.0).to_le_bytes());
        out.extend_from_slice(&self.to.map_or(0, |id| id.0).to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        if !self.address.is_empty() || self.bound {
            put_text(out, &self.address, MAX_ADDRESS);
        }
        if self.bound {
            out.push(1);
        }
    }

    /// Reads the body of the frame.
    pub fn decode(body: &[u8]) -> Result<Hello, Damaged> {
        let mut fields = Reader::new(body);
        let magic = fields.bytes(4, "magic")?;
        if magic != MAGIC {
            return Err(Damaged { at: 0, what: format!("magic {magic:02x?}, expected {MAGIC:02x?}") });
        }
        let versions = (fields.u16("oldest version")?, fields.u16("newest version")?);
        let purpose = match fields.u8("purpose")? {
            1 => Purpose::Peer,
            2 => Purpose::Bulk,
            3 => Purpose::Client,
            other => return Err(fields.damaged(format!("purpose {other}, known are 1, 2 and 3"))),
        };
        let cluster = read_cluster(&mut fields)?;
        let some = |id| if id == 0 { None } else { Some(NodeId(id)) };
        let from = some(fields.u16("from")?);
        let to = some(fields.u16("to")?);
        let incarnation = Incarnation(fields.u64("incarnation")?);
        let address = match fields.left() {
            0 => String::new(),
            _ => fields.text(MAX_ADDRESS, "address")?.to_string(),
        };
        let bound = fields.left() > 0 && fields.bool("whether it is bound")?;
        Ok(Hello { versions, purpose, cluster, from, to, incarnation, address, bound })
    }
}

impl Welcome {
    /// Appends the body of the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        put_cluster(out, self.cluster);
    }

    /// Reads the body of the frame.
    pub fn decode(body: &[u8]) -> Result<Welcome, Damaged> {
        let mut fields = Reader::new(body);
        let version = fields.u16("version")?;
        let node = fields.node("node")?;
        let incarnation = Incarnation(fields.u64("incarnation")?);
        Ok(Welcome { version, node, incarnation, cluster: read_cluster(&mut fields)? })
    }
}

impl Reject {
    /// Appends the body of the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.reason.number());
        put_text(out, &self.text, MAX_TEXT);
    }

    /// Reads the body of the frame.
    pub fn decode(body: &[u8]) -> Result<Reject, Damaged> {
        let mut fields = Reader::new(body);
        let reason = RejectReason::from_number(fields.u8("reason")?);
        Ok(Reject { reason, text: fields.text(MAX_TEXT, "text")?.to_string() })
    }
}

fn put_cluster(out: &mut Vec<u8>, cluster: Option<ClusterId>) {
    out.push(u8::from(cluster.is_some()));
    out.extend_from_slice(&cluster.map_or(0, |id| id.0).to_le_bytes());
}

fn read_cluster(fields: &mut Reader<'_>) -> Result<Option<ClusterId>, Damaged> {
    let present = fields.bool("cluster flag")?;
    let id = fields.u64("cluster id")?;
    Ok(present.then_some(ClusterId(id)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: ClusterId = ClusterId(0xc1);

    fn hello(from: u16, cluster: Option<ClusterId>, incarnation: u64) -> Hello {
        Hello {
            versions: (1, 1),
            purpose: Purpose::Peer,
            cluster,
            from: Some(NodeId(from)),
            to: Some(NodeId(1)),
            incarnation: Incarnation(incarnation),
            address: String::new(),
            bound: false,
        }
    }

    fn catalogue() -> Catalogue {
        let mut catalogue = Catalogue::new(OURS);
        catalogue.put_member(NodeId(1), Some(Incarnation(11)), "a:1").unwrap();
        catalogue.put_member(NodeId(2), Some(Incarnation(22)), "a:2").unwrap();
        catalogue.put_member(NodeId(3), None, "a:3").unwrap();
        catalogue.put_member(NodeId(4), None, "a:4").unwrap();
        catalogue.remove_member(NodeId(4)).unwrap();
        catalogue
    }

    #[test]
    fn who_may_connect_and_say_what() {
        let catalogue = catalogue();
        let judge = Judge { me: NodeId(1), speaks: (1, 1), cluster: Some(OURS), catalogue: Some(&catalogue) };
        let reason = |hello: Hello| judge.hello(&hello).map_err(|reject| reject.reason);
        let ours = Some(OURS);
        // The table: one line per case.
        assert_eq!(reason(hello(2, ours, 22)), Ok(Standing::Member), "bound, same directory");
        assert_eq!(reason(hello(2, ours, 23)), Err(RejectReason::WrongIncarnation), "bound, wiped disk");
        assert_eq!(reason(hello(2, None, 23)), Err(RejectReason::WrongIncarnation), "bound, wiped and empty");
        assert_eq!(reason(hello(2, None, 22)), Ok(Standing::Founding), "promised, but without the genesis yet");
        assert_eq!(reason(hello(3, ours, 33)), Ok(Standing::Unbound), "listed, not bound");
        assert_eq!(reason(hello(3, None, 33)), Ok(Standing::Founding), "listed, empty");
        assert_eq!(reason(hello(9, ours, 99)), Ok(Standing::Member), "unknown here: we may be behind");
        assert_eq!(reason(hello(4, ours, 44)), Err(RejectReason::Removed), "removed");
        assert_eq!(reason(hello(2, Some(ClusterId(7)), 22)), Err(RejectReason::WrongCluster), "other cluster");
        assert_eq!(reason(hello(1, ours, 11)), Err(RejectReason::WrongNode), "our own id");
        assert_eq!(reason(Hello { to: Some(NodeId(5)), ..hello(2, ours, 22) }), Err(RejectReason::WrongNode));
        assert_eq!(reason(Hello { from: None, ..hello(2, ours, 22) }), Err(RejectReason::WrongNode));
        let client = Hello { purpose: Purpose::Client, from: None, to: None, ..hello(2, None, 0) };
        assert_eq!(reason(client), Ok(Standing::Member), "a program");
        for (versions, ok) in [((0, 0), false), ((0, 1), true), ((1, 2), true), ((2, 3), false)] {
            assert_eq!(reason(Hello { versions, ..hello(2, ours, 22) }).is_ok(), ok, "{versions:?}");
        }
    }

    /// Shows INV-13.
    #[test]
    fn who_has_applied_its_own_binding_is_believed_by_who_lags() {
        let catalogue = catalogue();
        let judge = Judge { me: NodeId(1), speaks: (1, 1), cluster: Some(OURS), catalogue: Some(&catalogue) };
        let reason = |hello: Hello| judge.hello(&Hello { bound: true, ..hello }).map_err(|reject| reject.reason);
        let ours = Some(OURS);
        assert_eq!(reason(hello(3, ours, 33)), Ok(Standing::Member), "listed, not bound yet as far as we know");
        assert_eq!(reason(hello(2, ours, 23)), Err(RejectReason::WrongIncarnation), "we know better");
        assert_eq!(reason(hello(3, Some(ClusterId(7)), 33)), Err(RejectReason::WrongCluster), "in another cluster");
        assert_eq!(reason(hello(3, None, 33)), Ok(Standing::Founding), "without a cluster it cannot be bound");
    }

    #[test]
    fn versions_are_compared_and_whoever_is_too_old_is_named() {
        let said = |speaks, versions| {
            let judge = Judge { me: NodeId(1), speaks, cluster: None, catalogue: None };
            let text = judge.hello(&Hello { versions, ..hello(2, None, 22) }).map_err(|reject| reject.text);
            (judge.common_version(versions), text.err())
        };
        for (ours, theirs, common) in
            [((1, 1), (1, 2), 1), ((1, 2), (1, 1), 1), ((1, 3), (2, 4), 3), ((2, 3), (1, 2), 2)]
        {
            assert_eq!(said(ours, theirs), (Some(common), None));
        }
        let (none, text) = said((2, 3), (1, 1));
        let old = "node 2 speaks protocol 1, node 1 speaks 2 to 3; start a newer version of shoal on node 2";
        assert_eq!((none, text.as_deref()), (None, Some(old)));
        let (none, text) = said((1, 1), (2, 2));
        let new = "node 2 speaks protocol 2, node 1 speaks 1; start a newer version of shoal on node 1";
        assert_eq!((none, text.as_deref()), (None, Some(new)));
    }

    /// Shows INV-13.
    #[test]
    fn a_wiped_disk_is_told_what_to_do() {
        let catalogue = catalogue();
        let judge = Judge { me: NodeId(1), speaks: (1, 1), cluster: Some(OURS), catalogue: Some(&catalogue) };
        let text = judge.hello(&hello(2, Some(OURS), 23)).unwrap_err().to_string();
        assert!(text.contains("remove node 2 and join it again under a new id"), "{text}");
        let welcome = Welcome { version: 1, node: NodeId(2), incarnation: Incarnation(23), cluster: Some(OURS) };
        assert_eq!(judge.welcome(NodeId(2), &welcome).unwrap_err().text, text);
        let wrong = judge.welcome(NodeId(3), &welcome).unwrap_err();
        assert!(wrong.text.contains("node 2 answers where node 3 should"), "{wrong}");
    }

    #[test]
    fn votes_and_acknowledgements_of_an_unbound_member_do_not_count() {
        use MessageKind::*;
        for kind in [Vote, PreVote, VoteReply, PreVoteReply, AppendReply, HeartbeatReply] {
            assert!(!Standing::Unbound.admits(kind) && Standing::Member.admits(kind), "{kind:?}");
        }
        assert!(Standing::Unbound.admits(Append) && Standing::Unbound.admits(Heartbeat));
        assert!(!Standing::Founding.admits(Append));
    }

    #[test]
    fn protocol_1_handshakes_look_like_this() {
        let mut out = Vec::new();
        let hello = Hello { cluster: Some(ClusterId(0xaa)), ..hello(2, None, 0xbb) };
        hello.encode(&mut out);
        let golden =
            [&b"SHwp"[..], &[1, 0, 1, 0, 1, 1, 0xaa, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 1, 0, 0xbb, 0, 0, 0, 0, 0, 0, 0]];
        assert_eq!(out, golden.concat());
        assert_eq!(Hello::decode(&out).as_ref(), Ok(&hello));
        out.extend_from_slice(&[3, 0]);
        out.extend_from_slice(b"a:1");
        let told = Hello { address: "a:1".to_string(), ..hello };
        let mut again = Vec::new();
        told.encode(&mut again);
        assert_eq!(out, again);
        let bound = Hello { bound: true, ..told.clone() };
        let mut again = Vec::new();
        bound.encode(&mut again);
        out.push(1);
        assert_eq!(out, again);
        out.extend_from_slice(b"of a later version");
        assert_eq!(Hello::decode(&out), Ok(bound));
        let without_address = Hello { address: String::new(), bound: true, ..told };
        let mut out = Vec::new();
        without_address.encode(&mut out);
        assert_eq!(Hello::decode(&out), Ok(without_address));

        let mut out = Vec::new();
        let welcome = Welcome { version: 1, node: NodeId(2), incarnation: Incarnation(3), cluster: None };
        welcome.encode(&mut out);
        assert_eq!(out, [1, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Welcome::decode(&out), Ok(welcome));

        let mut out = Vec::new();
        let reject = Reject { reason: RejectReason::Other(77), text: "no".to_string() };
        reject.encode(&mut out);
        assert_eq!(out, [77, 2, 0, b'n', b'o']);
        assert_eq!(Reject::decode(&out), Ok(reject));
    }

    proptest! {
        /// Shows INV-15.
        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..60), magic: bool) {
            if magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            let _ = Hello::decode(&bytes);
            let _ = Welcome::decode(&bytes);
            let _ = Reject::decode(&bytes);
        }
    }
}
