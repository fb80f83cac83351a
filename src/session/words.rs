//! What a SQL session and its caller say to each other, each as one JSON value in a frame (`admin/frame.rs`).
//!
//! ```text
//! caller                                              node
//! {"op":"session","name":"app",...}  (admin.rs)   ->
//!                                                 <-  {"opened":{"node":1}}         or failed, and the end
//! {"run":{"number":1,"sql":"...","rows":[]}}      ->
//!                                                 <-  {"columns":["id","v"]}        per statement that has any
//!                                                 <-  {"rows":[[1,"x"],[2,null]]}   as many of these as it takes
//!                                                 <-  {"done":{"changes":0}}        per statement
//! {"interrupt":{"number":1}}   at any time        ->
//!                                                 <-  {"failed":{...}}              instead: the statements behind it do not run
//!                                                 <-  {"ready":{"number":1,"in_transaction":false}}
//! (disconnects)                                   ->  what was not committed is rolled back
//!                                                 <-  {"ended":{...}}               at any time: the session is over
//! ```
//!
//! A run with `rows` is one statement that runs once for each of them, with its values as parameters. Cells keep SQLite's
//! types: `null`, a JSON number is an integer, a JSON string a text; the rest is tagged: `{"r":"1.5"}` a real (as text:
//! JSON has no infinity), `{"b":"00ff"}` a blob, `{"t":"ff"}` a text that is not UTF-8.
//!
//! Deliberately absent: who runs it (`session.rs`), and sockets.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Outcome;
use crate::receipt::Receipt;
use crate::types::NodeId;

/// One value of SQLite.
#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL.
    Real(f64),
    /// TEXT.
    Text(String),
    /// TEXT whose bytes are not UTF-8.
    Odd(Vec<u8>),
    /// BLOB.
    Blob(Vec<u8>),
}

/// What a caller says.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Ask {
    /// Run these statements.
    Run {
        /// Numbers of one session grow.
        number: u64,
        sql: String,
        /// If there are any: one statement, once per row.
        #[serde(default)]
        rows: Vec<Vec<Cell>>,
    },
    /// End the run of this number, and any before.
    Interrupt { number: u64 },
}

/// What a node says.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tell {
    Opened { node: NodeId },
    Columns(Vec<String>),
    Rows(Vec<Vec<Cell>>),
    Done { changes: u64 },
    Failed(Trouble),
    Ready { number: u64, in_transaction: bool },
    Ended(Trouble),
}

/// Why a statement, or a session, failed.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// As in a reply of the administration: `not_leader`, `unknown`, ...; `other` for what is not listed there.
    pub kind: String,
    /// In words.
    pub text: String,
    /// SQLite's extended code, if it comes from there.
    pub code: Option<i32>,
    /// What became of the transaction, if it is about one and says that.
    pub outcome: Option<Outcome>,
    /// What to ask by what became of it, if the outcome is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Box<Receipt>>,
    /// Who leads, if this node does not.
    pub leader: Option<NodeId>,
    /// Where others reach that one.
    pub address: Option<String>,
    /// Byte of the statement at which it is wrong.
    pub at: Option<usize>,
}

impl Trouble {
    pub(crate) fn new(kind: &str, text: impl Into<String>) -> Trouble {
        let text = text.into();
        Trouble {
            kind: kind.to_string(),
            text,
            code: None,
            outcome: None,
            receipt: None,
            leader: None,
            address: None,
            at: None,
        }
    }

    pub(crate) fn with_outcome(self, outcome: Outcome) -> Trouble {
        Trouble { outcome: Some(outcome), ..self }
    }
}

/// Cells that JSON has no form of its own for.
#[derive(Serialize, Deserialize)]
enum Tagged {
    #[serde(rename = "r")]
    Real(String),
    #[serde(rename = "b")]
    Blob(String),
    #[serde(rename = "t")]
    Odd(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Null(()),
    Integer(i64),
    Text(String),
    Tagged(Tagged),
}

/// Two digits per byte.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some((digit(high)? << 4 | digit(low)?) as u8)).collect();
    if rest.is_empty() { bytes } else { None }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Cell::Null => to.serialize_unit(),
            Cell::Integer(value) => to.serialize_i64(*value),
            Cell::Text(value) => to.serialize_str(value),
            Cell::Real(value) => Tagged::Real(value.to_string()).serialize(to),
            Cell::Blob(value) => Tagged::Blob(hex(value)).serialize(to),
            Cell::Odd(value) => Tagged::Odd(hex(value)).serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Cell, D::Error> {
        let bytes = |text: String| unhex(&text).ok_or_else(|| serde::de::Error::custom("not hexadecimal"));
        Ok(match Form::deserialize(from)? {
            Form::Null(()) => Cell::Null,
            Form::Integer(value) => Cell::Integer(value),
            Form::Text(value) => Cell::Text(value),
            Form::Tagged(Tagged::Real(text)) => {
                Cell::Real(text.parse().map_err(|_| serde::de::Error::custom("not a real number"))?)
            }
            Form::Tagged(Tagged::Blob(text)) => Cell::Blob(bytes(text)?),
            Form::Tagged(Tagged::Odd(text)) => Cell::Odd(bytes(text)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_comes_back_as_it_was() {
        let cells = vec![
            Cell::Null,
            Cell::Integer(i64::MIN),
            Cell::Integer(i64::MAX),
            Cell::Real(0.1 + 0.2),
            Cell::Real(-0.0),
            Cell::Real(1.0),
            Cell::Real(f64::INFINITY),
            Cell::Real(f64::MIN_POSITIVE),
            Cell::Text(String::new()),
            Cell::Text("\0\"\n\u{1f41f}".to_string()),
            Cell::Odd(vec![0xff, 0]),
            Cell::Blob(Vec::new()),
            Cell::Blob((0..=255).collect()),
        ];
        let json = serde_json::to_string(&cells).unwrap();
        assert!(
            json.starts_with(r#"[null,-9223372036854775808,9223372036854775807,{"r":"0.30000000000000004"}"#),
            "{json}"
        );
        let back: Vec<Cell> = serde_json::from_str(&json).unwrap();
        assert_eq!(format!("{back:?}"), format!("{cells:?}"));
        for wrong in [r#"{"b":"0"}"#, r#"{"b":"0g"}"#, r#"{"r":"x"}"#, "true", "[]", "18446744073709551615"] {
            assert!(serde_json::from_str::<Cell>(wrong).is_err(), "{wrong}");
        }
    }
}
