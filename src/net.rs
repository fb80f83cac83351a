//! Between nodes: the door for messages, and what stands behind it.
//!
//! A [`Transport`] carries three things. *Messages* of Raft: sent and forgotten, lost at any time, because Raft sends
//! again. *Founding messages*: the same. *Requests*: a call with an answer and a deadline, for administration and for
//! whatever one node fetches from another. What comes in goes to an [`Inbound`], which also judges who may connect.
//!
//! [`tcp`] is the real one. A simulation has its own, with the same promises: nothing is delivered twice on one
//! connection, but messages may be lost or overtake each other.
//!
//! Deliberately absent: retries of messages, and any knowledge of what is in a request.

pub mod codec;
pub mod frame;
pub mod handshake;
pub mod tcp;

use std::time::Duration;

use crate::found::format::FoundMessage;
use crate::types::{ClusterId, Incarnation, Message, NodeId, Usage};
use handshake::{Hello, Reject, Standing, Welcome};

/// The door to the other nodes.
pub trait Transport: Send + Sync {
    /// Sends a message to `message.to`. Never blocks; dropped if that node is not known or its queue is full.
    fn send(&self, message: Message);
    /// Sends a founding message, under the same terms.
    fn send_found(&self, to: NodeId, message: FoundMessage);
    /// Calls a node and waits for the answer.
    fn request(&self, to: NodeId, body: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, RequestError>;
    /// Opens a connection for calls that follow each other; `None` if this transport has only [`Transport::request`].
    fn calls(&self, to: NodeId, timeout: Duration) -> Option<Result<Box<dyn Calls>, RequestError>> {
        let _ = (to, timeout);
        None
    }
    /// Tells where a node is reached; connects to it, or anew if the address is another one.
    fn set_peer(&self, node: NodeId, address: &str);
    /// Where a node may be, if it is not where it should be: dialed by turns.
    fn hint_peer(&self, node: NodeId, address: &str) {
        let _ = (node, address);
    }
    /// Nodes that this one does not speak with because one of the two refuses the other: who, where, and what to do. None
    /// of these ends by itself.
    fn refusals(&self) -> Vec<String> {
        Vec::new()
    }
    /// Nodes that this one dials and does not reach, and whose two sides do not refuse each other.
    fn unreached(&self) -> Vec<Unreached> {
        Vec::new()
    }
    /// Connections that others opened to this node, and how many there may be; none where there are no connections.
    fn connections(&self) -> Option<(usize, usize)> {
        None
    }
    /// Its other bounds, and what is in use of them.
    fn bounds(&self) -> Vec<Usage> {
        Vec::new()
    }
    /// Forgets a node and ends the connections with it.
    fn remove_peer(&self, node: NodeId);
    /// Whether messages to this node go out. One that cannot tell says yes.
    fn is_connected(&self, node: NodeId) -> bool {
        let _ = node;
        true
    }
    /// Dials a node no more; connections that it opened stay.
    fn forget_peer(&self, node: NodeId) {
        let _ = node;
    }
    /// Asks [`Inbound`] again about every connection: after this node's cluster, or what it knows of the members, changed.
    /// The caller holds no lock that the two checks take.
    fn recheck(&self);
}

/// A node that is dialed and not reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreached {
    /// The node.
    pub node: NodeId,
    /// Where it was dialed last.
    pub address: String,
    /// How long it has not been reached.
    pub age: Duration,
    /// What the last attempt came to, and what helps.
    pub why: String,
}

/// Calls to one node over one connection. After an error it is of no more use: what still came on it would be the answer to
/// something else.
pub trait Calls: Send {
    /// Sends a call. Several may be sent before an answer is taken: answers come in the order of the calls.
    fn send(&mut self, body: &[u8]) -> Result<(), RequestError>;
    /// Waits for the next answer.
    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, RequestError>;
    /// The memory of an answer that nobody needs any more, for the next one.
    fn reuse(&mut self, _answer: Vec<u8>) {}
}

/// Who this node is by now, for its side of a handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Introduction {
    /// Its cluster, once it has one.
    pub cluster: Option<ClusterId>,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// It has applied the entry that binds its id to this directory.
    pub bound: bool,
}

/// Who asks something of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A node, as it says.
    Node(NodeId),
    /// A program that is no node, on this machine.
    Program,
    /// One on another machine, at this address, as far as anybody can tell.
    RemoteProgram(String),
}

/// The node behind the door. Called from the transport's threads, several at once.
///
/// The two checks are called under the transport's lock: they answer from what the node knows and do not call back.
pub trait Inbound: Send + Sync {
    /// Who this node is.
    fn introduction(&self) -> Introduction;
    /// Whether the dialer may connect, and what it may say; [`handshake::Judge`] decides it.
    fn check_hello(&self, hello: &Hello) -> Result<Standing, Reject>;
    /// Whether the node that answered is the one that was meant.
    fn check_welcome(&self, meant: NodeId, welcome: &Welcome) -> Result<Standing, Reject>;
    /// A connection to `peer` was opened.
    fn on_connected(&self, peer: NodeId, cluster: Option<ClusterId>);
    /// A message arrived that its sender may send.
    fn on_message(&self, from: NodeId, message: Message);
    /// A founding message arrived.
    fn on_found(&self, from: NodeId, message: FoundMessage);
    /// A request arrived; the result is the answer.
    fn on_request(&self, from: Caller, body: Vec<u8>) -> Vec<u8>;
    /// Whether this is a member, as far as this node knows.
    fn is_member(&self, node: NodeId) -> bool;
    /// `by` refused a connection, because this node was removed from the cluster; in words.
    fn on_removed(&self, by: NodeId, text: &str) {
        let _ = (by, text);
    }
    /// A connection was ended since what came over it is none of our frames, for this reason. `who` says where it came from, and
    /// which node it said to be.
    fn on_malformed(&self, who: &str, what: &str) {
        let _ = (who, what);
    }
    /// Messages to `peer` were lost: it was not reached, its connection ended, or its queue was full.
    fn on_unreachable(&self, peer: NodeId);
}

/// Why a request has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// It never reached the other side: nothing happened.
    #[error("{0}")]
    NotSent(String),
    /// It may have been carried out, but no answer came.
    #[error("{0}")]
    Lost(String),
}
