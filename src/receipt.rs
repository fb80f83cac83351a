//! Receipts: names of transactions, to ask about later.
//!
//! A receipt names the log entry in which a transaction was proposed; of one that goes through the log in parts, the last
//! part. Raft never has two entries of one index and one term, so that pair names it for ever, on every node:
//!
//! ```text
//! r1-00c0ffee00c0ffee-2-5-1047-3      as text
//!  |        |         | |   |   \---- term of the leader that proposed it
//!  |        |         | |   \-------- index in the log
//!  |        |         | \------------ id of the database
//!  |        |         \-------------- node that proposed it
//!  |        \------------------------ id of the cluster, 16 hexadecimal digits
//!  \--------------------------------- version of this text
//! ```
//!
//! Deliberately absent: what a node remembers in order to answer (`history.rs`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, EntryId, LogIndex, NodeId, Term};

/// Version of the text.
const PREFIX: &str = "r1";

/// Names one transaction of one cluster, to ask about it later: [`crate::Node::outcome_of`].
///
/// It is plain data. Keep it as text ([`std::fmt::Display`], [`FromStr`], serde) where it outlives the process: any node of
/// the cluster can be asked.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shoaldb::{Node, Receipt, ReceiptOutcome};
/// # let dir = tempfile::tempdir()?;
/// let node = Node::open(dir.path())?;
/// let db = node.connect("app")?;
/// db.execute("CREATE TABLE t(v)", [])?;
/// let receipt: Receipt = db.last_receipt().ok_or("it was proposed")?;
/// let kept: String = receipt.to_string();
/// assert!(matches!(node.outcome_of(kept.parse::<Receipt>()?)?, ReceiptOutcome::Committed(_)));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Receipt {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) database: u64,
    pub(crate) entry: EntryId,
}

impl Receipt {
    /// The node that proposed the transaction.
    pub fn node(&self) -> u64 {
        u64::from(self.node.0)
    }

    /// Index of its entry in the log. It is committed only if no other entry takes that place.
    pub fn index(&self) -> u64 {
        self.entry.index.0
    }

    /// Term of the leader that proposed it.
    pub fn term(&self) -> u64 {
        self.entry.term.0
    }
}

impl std::fmt::Display for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Receipt { cluster, node, database, entry } = self;
        write!(f, "{PREFIX}-{cluster}-{node}-{database}-{}-{}", entry.index, entry.term)
    }
}

impl FromStr for Receipt {
    type Err = BadReceipt;

    fn from_str(text: &str) -> Result<Receipt, BadReceipt> {
        let read = || {
            let mut parts = text.split('-');
            if parts.next()? != PREFIX {
                return None;
            }
            let cluster = u64::from_str_radix(parts.next().filter(|hex| hex.len() == 16)?, 16).ok()?;
            let receipt = Receipt {
                cluster: ClusterId(cluster),
                node: NodeId(parts.next()?.parse().ok()?),
                database: parts.next()?.parse().ok()?,
                entry: EntryId {
                    index: LogIndex(parts.next()?.parse().ok()?),
                    term: Term(parts.next()?.parse().ok()?),
                },
            };
            // One receipt, one text: a sign or a leading zero is nothing that we wrote.
            (parts.next().is_none() && receipt.to_string() == text).then_some(receipt)
        };
        read().ok_or_else(|| BadReceipt { text: text.chars().take(100).collect() })
    }
}

/// A text that is no receipt.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no receipt: one looks like r1-00c0ffee00c0ffee-2-5-1047-3")]
pub struct BadReceipt {
    text: String,
}

impl From<Receipt> for String {
    fn from(receipt: Receipt) -> String {
        receipt.to_string()
    }
}

impl TryFrom<String> for Receipt {
    type Error = BadReceipt;

    fn try_from(text: String) -> Result<Receipt, BadReceipt> {
        text.parse()
    }
}

/// What became of the transaction that a [`Receipt`] names, as far as one node can prove it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptOutcome {
    /// It is committed, at this index of the log, and the node that was asked shows it.
    Committed(u64),
    /// No node will ever apply it. Safe to run again.
    NotCommitted,
    /// This node has no proof of either.
    Unknown(Unsettled),
}

/// Why a node cannot say what became of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unsettled {
    /// The node has not applied the log that far. Ask again once it has: it needs a majority.
    Undecided,
    /// The node has applied the log that far, but does not remember this entry: there were too many refusals and changes of
    /// leadership since, or it got its data from another node later. Another node may remember. If none does, read the
    /// database.
    Forgotten,
}

impl std::fmt::Display for Unsettled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Unsettled::Undecided => "not decided yet as far as this node knows; ask again later",
            Unsettled::Forgotten => {
                "this node does not remember: it is too long ago, or came here within a snapshot; ask another node, or read the \
                 database"
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt() -> Receipt {
        Receipt {
            cluster: ClusterId(0x00c0_ffee_00c0_ffee),
            node: NodeId(2),
            database: 5,
            entry: EntryId { index: LogIndex(1047), term: Term(3) },
        }
    }

    #[test]
    fn version_1_stays_readable() {
        let text = "r1-00c0ffee00c0ffee-2-5-1047-3";
        assert_eq!(receipt().to_string(), text);
        assert_eq!(text.parse::<Receipt>().unwrap(), receipt());
        let json = format!("{text:?}");
        assert_eq!(serde_json::to_string(&receipt()).unwrap(), json);
        assert_eq!(serde_json::from_str::<Receipt>(&json).unwrap(), receipt());
        assert_eq!((receipt().node(), receipt().index(), receipt().term()), (2, 1047, 3));
    }

    /// A node that had got a snapshot said of a minute ago that it was too long ago.
    #[test]
    fn a_node_that_does_not_remember_says_why_and_whom_to_ask() {
        let words = Unsettled::Forgotten.to_string();
        assert!(words.contains("within a snapshot") && words.contains("ask another node"), "{words}");
    }

    #[test]
    fn what_is_no_receipt_is_refused_in_words() {
        let good = receipt().to_string();
        let cut = (0..good.len()).map(|len| good[..len].to_string()).filter(|text| !text.ends_with("-1047-"));
        let bad = [
            "r2-00c0ffee00c0ffee-2-5-1047-3",
            "r1-00c0ffee00c0ffee-2-5-1047-3-",
            "r1-c0ffee00c0ffee-2-5-1047-3",
            "r1-00C0FFEE00c0ffee-2-5-1047-3",
            "r1-00c0ffee00c0ffee-65536-5-1047-3",
            "r1-00c0ffee00c0ffee-2-5-+1047-3",
            "r1-00c0ffee00c0ffee-2-5-01047-3",
            "r1-00c0ffee00c0ffee-2-5-18446744073709551616-3",
            " r1-00c0ffee00c0ffee-2-5-1047-3",
        ];
        for text in cut.chain(bad.map(str::to_string)) {
            let error = text.parse::<Receipt>().unwrap_err();
            assert!(error.to_string().contains("is no receipt"), "{error}");
            assert!(serde_json::from_str::<Receipt>(&format!("{text:?}")).is_err());
        }
    }
}
