//! The lines between a worker and its parent: one JSON value each.
//!
//! ```text
//! -> {"id":7,"do":"write","sql":"INSERT INTO t VALUES (?1)","params":[1]}
//! <- {"id":7,"ok":null}      or      {"id":7,"err":{"outcome":"not_committed","leader":2,"text":"..."}}
//! <- {"event":{"leader":2,"term":5}}
//! ```
//!
//! Replies come in any order. A line without its end is not a line: what a killed worker left half-written is ignored.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Name of the database that requests are about.
pub(crate) const DATABASE: &str = "demo";

/// A request.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Request {
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) act: Act,
}

/// What a worker is asked for.
#[derive(Serialize, Deserialize, Debug, Clone)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Act {
    /// One statement as one transaction.
    Write { sql: String, params: Vec<Value> },
    /// Several statements as one transaction, without parameters.
    Batch { sql: String },
    /// Rows of numbers and texts.
    Read { sql: String, linearizable: bool },
    /// Copies rows of a table of another file; answers how many, and where the next ones begin.
    Load { file: String, table: String, from: Option<i64>, limit: u32 },
    /// Number of rows of a table and a digest of them, whatever their order.
    Digest { table: String },
    /// Position and checksum of the database.
    Checksum,
    /// The node's status.
    Status,
    /// Lets nothing through to another node or from it, or everything again.
    Block { other: u64, blocked: bool },
    /// Dies by SIGKILL in the n-th such phase from now on.
    DieAt { phase: String, nth: u32 },
}

/// What a worker says.
#[derive(Serialize, Deserialize, Debug)]
#[serde(untagged)]
pub(crate) enum Line {
    Reply(Reply),
    Event { event: Told },
}

/// A reply.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Reply {
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) answer: Answer,
}

/// Done, or not.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Ok(Value),
    Err(Failure),
}

/// Why a request failed.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) outcome: Fate,
    pub(crate) leader: Option<u64>,
    pub(crate) text: String,
}

/// What became of the transaction.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fate {
    NotCommitted,
    /// It was asked of no node, which is not for a node to say: it certainly never was.
    NotSent,
    Unknown,
    /// The error says nothing about it: the statement itself was refused.
    Refused,
}

/// What a worker tells without being asked.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// The node has started.
    Started,
    /// All that it had before is replayed, and it knows a leader.
    Ready,
    /// Who leads, as this node sees it.
    Leader { leader: Option<u64>, term: u64 },
    /// The node's copy of a database was not what it should be, or was repaired. However a process and its machine end, what
    /// is on the disk stays whole, so nobody may hear this who has only ended processes and machines.
    Damage { text: String },
    /// Anything else, in words.
    Trouble { text: String },
}
