//! What the parent says to a node process, and what it hears: one JSON value on each line.
//!
//! ```text
//! -> {"id":7,"job":{"write":{"db":"app1","writer":3,"slot":5,"number":91,"large":false,"plain":true}}}
//! <- {"id":7,"answer":{"ok":{"micros":812,"value":[17,90]}}}
//! <- {"id":8,"answer":{"err":{"fate":"not_committed","leader":2,"text":"..."}}}
//! ```
//!
//! Answers come in any order. A line without its end is none: a process was killed while it wrote it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) job: Job,
}

/// One thing to do. What it does in detail is in `node.rs`.
#[derive(Serialize, Deserialize, Debug, Clone)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job {
    /// The tables of a database, if they are not there.
    Prepare {
        db: String,
    },
    /// One transaction of a writer. Answers how many transactions of it the database has then, and what the slot held.
    Write {
        db: String,
        writer: u64,
        slot: u64,
        number: u64,
        large: bool,
        plain: bool,
    },
    /// A table comes, changes its shape, gets an index and goes, step by step.
    Shape {
        db: String,
        step: u64,
    },
    Vacuum {
        db: String,
    },
    /// A database that is created, filled and dropped.
    Passing {
        db: String,
    },
    /// For each writer, how many transactions of it there are.
    Totals {
        db: String,
        linearizable: bool,
    },
    /// For each writer and slot, the number that it holds.
    Slots {
        db: String,
    },
    /// A read transaction that stays open this long. Answers whether it saw one state from its beginning to its end.
    Hold {
        db: String,
        millis: u64,
    },
    /// Position and checksum.
    Checksum {
        db: String,
    },
    Integrity {
        db: String,
    },
    Status,
    Transfer {
        to: u64,
    },
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) id: u64,
    pub(crate) answer: Answer,
}

#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Done, and how long it took inside the node.
    Ok {
        micros: u64,
        value: Value,
    },
    Err(Failure),
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) fate: Fate,
    pub(crate) leader: Option<u64>,
    pub(crate) text: String,
}

/// What became of a transaction that failed.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fate {
    NotCommitted,
    Unknown,
    /// The error does not speak of an outcome. For a read this is an ordinary thing, for a transaction it is none.
    Unsaid,
}

impl Failure {
    pub(crate) fn new(fate: Fate, text: impl Into<String>) -> Failure {
        Failure { fate, leader: None, text: text.into() }
    }
}
