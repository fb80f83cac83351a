//! The founding as values and bytes: identity, genesis, messages.
//!
//! ```text
//! message (little-endian)                genesis
//!      1  kind                               8 cluster id
//!         1 ask      8 list hash,            2 founder
//!                    8 incarnation           4 number of members; then for each, ids ascending:
//!         2 promise  8 list hash,              2 id, 1 bound, 8 incarnation, 2 length of address, address
//!                    8 incarnation,
//!                    2 founder, 8 its incarnation
//!         3 refuse   1 reason (1 promised, 2 another list, 3 joined), 2 node or 0, 8 cluster id or 0
//!         4 release  8 incarnation
//!         5 genesis  8 list hash, genesis
//!
//! identity
//!      0    4  magic "SHid"
//!      4    2  format version, 1
//!      6    2  node id
//!      8    8  incarnation
//!     16    2  founder promised to, 0 for none
//!     18    8  founder's incarnation
//!     26    1  0 no cluster, 1 founded: genesis follows, 2 joined: genesis of its cluster follows
//!      …    4  CRC32C of everything before
//! ```
//!
//! A promise names list, both nodes and both data directories, so that it counts for one life of one founder only.
//!
//! Deliberately absent: what a node does with them (`found.rs`), files (`identity.rs`).

use crate::catalogue::{Catalogue, MAX_ADDRESS};
use crate::fields::{Damaged, Reader, put_checksum, put_count, put_text, verified};
use crate::types::{ClusterId, Incarnation, NodeId};

/// Most nodes in a list. A genesis then fits its frame with room to spare.
pub const MAX_LIST: usize = 255;

const MAGIC: [u8; 4] = *b"SHid";
const VERSION: u16 = 1;

/// A member of the genesis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GenesisMember {
    /// Its id.
    pub node: NodeId,
    /// Where the others reach it.
    pub address: String,
    /// Its data directory, if it promised itself to the founder.
    pub incarnation: Option<Incarnation>,
}

/// The state before the first entry of a cluster's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Genesis {
    /// Random name of the cluster.
    pub cluster: ClusterId,
    /// Who drew it.
    pub founder: NodeId,
    /// The list, ids ascending; all of them voters.
    pub members: Vec<GenesisMember>,
}

impl Genesis {
    /// The catalogue that a cluster starts with.
    pub fn catalogue(&self) -> Catalogue {
        let mut catalogue = Catalogue::new(self.cluster);
        for member in &self.members {
            // Cannot be refused: ids are unique and addresses short, checked where the genesis was made or read.
            let _ = catalogue.put_member(member.node, member.incarnation, &member.address);
        }
        catalogue
    }

    /// As bytes; the module's text has the layout.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// Reads what [`Genesis::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Genesis, Damaged> {
        let mut fields = Reader::new(bytes);
        let genesis = Genesis::read(&mut fields)?;
        fields.end()?;
        Ok(genesis)
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cluster.0.to_le_bytes());
        out.extend_from_slice(&self.founder.0.to_le_bytes());
        put_count(out, self.members.len());
        for member in &self.members {
            out.extend_from_slice(&member.node.0.to_le_bytes());
            out.push(u8::from(member.incarnation.is_some()));
            out.extend_from_slice(&member.incarnation.map_or(0, |i| i.0).to_le_bytes());
            put_text(out, &member.address, MAX_ADDRESS);
        }
    }

    fn read(fields: &mut Reader<'_>) -> Result<Genesis, Damaged> {
        let cluster = ClusterId(fields.u64("cluster id")?);
        let founder = fields.node("founder")?;
        let count = fields.count(13, "number of members")?;
        if count > MAX_LIST {
            return Err(fields.damaged(format!("{count} members, a list has {MAX_LIST} at most")));
        }
        let mut members: Vec<GenesisMember> = Vec::with_capacity(count);
        for _ in 0..count {
            let node = fields.node("member id")?;
            if let Some(last) = members.last()
                && last.node >= node
            {
                return Err(fields.damaged(format!("member {node} after {}: ids must ascend", last.node)));
            }
            let bound = fields.bool("bound")?;
            let incarnation = Incarnation(fields.u64("incarnation")?);
            let address = fields.text(MAX_ADDRESS, "address")?.to_string();
            members.push(GenesisMember { node, address, incarnation: bound.then_some(incarnation) });
        }
        Ok(Genesis { cluster, founder, members })
    }
}

/// To which life of which founder a node promised itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promise {
    /// The founder.
    pub founder: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
}

/// Which cluster a data directory belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Belongs {
    /// None yet.
    Nowhere,
    /// To the one that this genesis began.
    Founded(Genesis),
    /// To one that existed before it came in.
    Joined(Genesis),
}

/// Who a data directory is. The durable state of the founding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The node's id.
    pub node: NodeId,
    /// Random name of the directory.
    pub incarnation: Incarnation,
    /// Who may count this node for a genesis.
    pub promised: Option<Promise>,
    /// Its cluster.
    pub belongs: Belongs,
}

impl Identity {
    /// Of an empty directory; `incarnation` is drawn from the random door.
    pub fn new(node: NodeId, incarnation: Incarnation) -> Identity {
        Identity { node, incarnation, promised: None, belongs: Belongs::Nowhere }
    }

    /// The cluster, if there is one.
    pub fn cluster(&self) -> Option<ClusterId> {
        match &self.belongs {
            Belongs::Nowhere => None,
            Belongs::Founded(genesis) | Belongs::Joined(genesis) => Some(genesis.cluster),
        }
    }

    /// As bytes; the module's text has the layout.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.promised.map_or(0, |p| p.founder.0).to_le_bytes());
        out.extend_from_slice(&self.promised.map_or(0, |p| p.incarnation.0).to_le_bytes());
        match &self.belongs {
            Belongs::Nowhere => out.push(0),
            Belongs::Founded(genesis) => {
                out.push(1);
                genesis.put(&mut out);
            }
            Belongs::Joined(genesis) => {
                out.push(2);
                genesis.put(&mut out);
            }
        }
        put_checksum(&mut out);
        out
    }

    /// Reads what [`Identity::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Identity, Damaged> {
        let mut head = Reader::new(bytes);
        let magic = head.bytes(4, "magic")?;
        if magic != MAGIC {
            return Err(Damaged { at: 0, what: format!("magic {magic:02x?}, expected {MAGIC:02x?}") });
        }
        let version = head.u16("version")?;
        if version != VERSION {
            return Err(head.damaged(format!("format version {version}, this program knows {VERSION}")));
        }
        let mut fields = Reader::new(verified(bytes)?);
        fields.bytes(6, "head")?;
        let node = fields.node("node id")?;
        let incarnation = Incarnation(fields.u64("incarnation")?);
        let founder = fields.u16("founder")?;
        let promise =
            Promise { founder: NodeId(founder), incarnation: Incarnation(fields.u64("founder's incarnation")?) };
        let belongs = match fields.u8("cluster kind")? {
            0 => Belongs::Nowhere,
            1 => Belongs::Founded(Genesis::read(&mut fields)?),
            2 => Belongs::Joined(Genesis::read(&mut fields)?),
            other => return Err(fields.damaged(format!("cluster kind {other}, known are 0, 1 and 2"))),
        };
        fields.end()?;
        Ok(Identity { node, incarnation, promised: (founder != 0).then_some(promise), belongs })
    }
}

/// Why a node does not promise itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefuseReason {
    /// It is promised to this founder.
    Promised(NodeId),
    /// It was started with another list.
    OtherList,
    /// It came into this cluster by joining.
    Joined(ClusterId),
}

/// What nodes say to each other while a cluster is founded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FoundMessage {
    /// "Promise yourself to me."
    Ask {
        /// Hash of the asker's list.
        list: u64,
        /// The asker's data directory.
        incarnation: Incarnation,
    },
    /// "I have, durably."
    Promise {
        /// Hash of the sender's list.
        list: u64,
        /// The sender's data directory.
        incarnation: Incarnation,
        /// The founder, and the life of it, that the promise is for.
        to: Promise,
    },
    /// "I cannot."
    Refuse(RefuseReason),
    /// "I gave up; you are free for founders below me."
    Release {
        /// The sender's data directory: the one that the promise was for.
        incarnation: Incarnation,
    },
    /// "This is our cluster."
    Genesis {
        /// Hash of the sender's list.
        list: u64,
        /// The cluster.
        genesis: Genesis,
    },
}

impl FoundMessage {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            FoundMessage::Ask { list, incarnation } => {
                out.push(1);
                out.extend_from_slice(&list.to_le_bytes());
                out.extend_from_slice(&incarnation.0.to_le_bytes());
            }
            FoundMessage::Promise { list, incarnation, to } => {
                out.push(2);
                out.extend_from_slice(&list.to_le_bytes());
                out.extend_from_slice(&incarnation.0.to_le_bytes());
                out.extend_from_slice(&to.founder.0.to_le_bytes());
                out.extend_from_slice(&to.incarnation.0.to_le_bytes());
            }
            FoundMessage::Refuse(reason) => {
                let (number, node, cluster) = match reason {
                    RefuseReason::Promised(node) => (1, node.0, 0),
                    RefuseReason::OtherList => (2, 0, 0),
                    RefuseReason::Joined(cluster) => (3, 0, cluster.0),
                };
                out.extend_from_slice(&[3, number]);
                out.extend_from_slice(&node.to_le_bytes());
                out.extend_from_slice(&cluster.to_le_bytes());
            }
            FoundMessage::Release { incarnation } => {
                out.push(4);
                out.extend_from_slice(&incarnation.0.to_le_bytes());
            }
            FoundMessage::Genesis { list, genesis } => {
                out.push(5);
                out.extend_from_slice(&list.to_le_bytes());
                genesis.put(&mut out);
            }
        }
        out
    }

    /// Reads what [`FoundMessage::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<FoundMessage, Damaged> {
        let mut fields = Reader::new(bytes);
        let message = match fields.u8("kind")? {
            1 => FoundMessage::Ask {
                list: fields.u64("list hash")?,
                incarnation: Incarnation(fields.u64("incarnation")?),
            },
            2 => FoundMessage::Promise {
                list: fields.u64("list hash")?,
                incarnation: Incarnation(fields.u64("incarnation")?),
                to: Promise {
                    founder: fields.node("founder")?,
                    incarnation: Incarnation(fields.u64("founder's incarnation")?),
                },
            },
            3 => {
                let reason = fields.u8("reason")?;
                let node = NodeId(fields.u16("node")?);
                let cluster = ClusterId(fields.u64("cluster id")?);
                FoundMessage::Refuse(match reason {
                    1 => RefuseReason::Promised(node),
                    2 => RefuseReason::OtherList,
                    3 => RefuseReason::Joined(cluster),
                    other => return Err(fields.damaged(format!("reason {other}, known are 1, 2 and 3"))),
                })
            }
            4 => FoundMessage::Release { incarnation: Incarnation(fields.u64("incarnation")?) },
            5 => FoundMessage::Genesis { list: fields.u64("list hash")?, genesis: Genesis::read(&mut fields)? },
            other => return Err(fields.damaged(format!("founding message {other}, known are 1 to 5"))),
        };
        fields.end()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests;
