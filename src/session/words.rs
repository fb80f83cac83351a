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

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
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
        #[serde(default, deserialize_with = "rows_within_bounds")]
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
    /// Of a run with rows: the one, counted from 0, with which it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<u32>,
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
            row: None,
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
        from.deserialize_any(OneCell)
    }
}

/// Decides by what comes. An untagged enum would first keep all of it, whatever it is: lists in lists, many times as large as
/// their JSON.
struct OneCell;

impl<'de> Visitor<'de> for OneCell {
    type Value = Cell;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a value of SQLite")
    }

    fn visit_unit<E: Error>(self) -> Result<Cell, E> {
        Ok(Cell::Null)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Cell, E> {
        Ok(Cell::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Cell, E> {
        i64::try_from(value).map(Cell::Integer).map_err(|_| E::custom("an integer beyond 64 bits"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Cell, E> {
        Ok(Cell::Text(text.to_string()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Cell, E> {
        Ok(Cell::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Cell, A::Error> {
        let bytes = |text: String| unhex(&text).ok_or_else(|| A::Error::custom("not hexadecimal"));
        Ok(match Tagged::deserialize(MapAccessDeserializer::new(map))? {
            Tagged::Real(text) => Cell::Real(text.parse().map_err(|_| A::Error::custom("not a real number"))?),
            Tagged::Blob(text) => Cell::Blob(bytes(text)?),
            Tagged::Odd(text) => Cell::Odd(bytes(text)?),
        })
    }
}

/// Most that the rows of one run may take in memory. Their JSON alone is no bound: `[0],` takes twenty times as much.
pub(crate) const MAX_ROWS_WEIGHT: usize = 2 * super::MAX_ASK;
/// What a row and a cell take besides bytes of texts and blobs, with what the allocator needs for them.
const ROW_WEIGHT: usize = 64;
const CELL_WEIGHT: usize = 32;
const _: () = assert!(size_of::<Cell>() <= CELL_WEIGHT && 2 * size_of::<Vec<Cell>>() + 16 <= ROW_WEIGHT);

fn weight_of(cell: &Cell) -> usize {
    CELL_WEIGHT
        + match cell {
            Cell::Null | Cell::Integer(_) | Cell::Real(_) => 0,
            Cell::Text(text) => text.len(),
            Cell::Odd(bytes) | Cell::Blob(bytes) => bytes.len(),
        }
}

/// About how much memory rows take.
pub(crate) fn weight(rows: &[Vec<Cell>]) -> usize {
    rows.iter().map(|row| ROW_WEIGHT + row.iter().map(weight_of).sum::<usize>()).sum()
}

fn rows_within_bounds<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<Cell>>, D::Error> {
    from.deserialize_seq(Rows { left: MAX_ROWS_WEIGHT })
}

/// What may still come.
struct Rows {
    left: usize,
}

impl Rows {
    fn take<E: Error>(&mut self, weight: usize) -> Result<(), E> {
        let left = self.left.checked_sub(weight);
        self.left = left.ok_or_else(|| E::custom("more rows than a run may have"))?;
        Ok(())
    }
}

impl<'de> Visitor<'de> for Rows {
    type Value = Vec<Vec<Cell>>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("rows of values")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut rows = Vec::new();
        while let Some(row) = from.next_element_seed(Row(&mut self))? {
            rows.push(row);
        }
        Ok(rows)
    }
}

struct Row<'a>(&'a mut Rows);

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = Vec<Cell>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Vec<Cell>, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = Vec<Cell>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a row of values")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<Cell>, A::Error> {
        self.0.take(ROW_WEIGHT)?;
        let mut row = Vec::new();
        while let Some(cell) = from.next_element()? {
            self.0.take(weight_of(&cell))?;
            row.push(cell);
        }
        // The first push makes room for four.
        row.shrink_to_fit();
        Ok(row)
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
        for wrong in
            [r#"{"b":"0"}"#, r#"{"b":"0g"}"#, r#"{"r":"x"}"#, "true", "[]", "18446744073709551615", "1.5", "{}"]
        {
            assert!(serde_json::from_str::<Cell>(wrong).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Cell>(r#"{"b":"00","t":"00"}"#).is_err());
    }

    #[test]
    fn rows_are_bounded_by_the_memory_that_they_take() {
        let ask = |rows: &str| {
            let json = format!(r#"{{"run":{{"number":1,"sql":"","rows":[{rows}]}}}}"#);
            assert!(json.len() <= super::super::MAX_ASK);
            serde_json::from_str::<Ask>(&json)
        };
        let many = |what: &str, count: usize| vec![what; count].join(",");
        let rows = MAX_ROWS_WEIGHT / (ROW_WEIGHT + CELL_WEIGHT);
        let Ok(Ask::Run { rows: got, .. }) = ask(&many("[0]", rows)) else { panic!("within the bound") };
        assert_eq!((got.len(), weight(&got)), (rows, rows * (ROW_WEIGHT + CELL_WEIGHT)));
        // What is estimated is what is there.
        let held = got.iter().map(|row| row.capacity() * size_of::<Cell>()).sum::<usize>();
        assert!(held + got.capacity() * size_of::<Vec<Cell>>() <= weight(&got), "{held} {}", got.capacity());
        drop(got);
        let too_much = |rows: &str| ask(rows).unwrap_err().to_string();
        assert!(too_much(&many("[0]", rows + 1)).contains("more rows than a run may have"));
        assert!(too_much(&many("[]", MAX_ROWS_WEIGHT / ROW_WEIGHT + 1)).contains("more rows than a run may have"));
        let wide = format!("[{}]", many("0", MAX_ROWS_WEIGHT / CELL_WEIGHT));
        assert!(too_much(&wide).contains("more rows than a run may have"));
        // A list in the place of a value is not taken in to be thrown away.
        let endless = format!("[[{}", "0,".repeat(10));
        assert!(too_much(&endless).contains("invalid type: sequence"));
        // One text that is as long as an ask can be is none too many.
        let text = format!("[\"{}\"]", "x".repeat(super::super::MAX_ASK - 100));
        assert!(ask(&text).is_ok());
    }
}
