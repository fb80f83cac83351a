//! The format of sqllogictest: bytes of a file in, records out, and what an answer must look like. No SQLite here.
//!
//! ```text
//! statement ok|error                 the next lines, up to an empty one, are SQL
//! query TYPES [SORT [LABEL]]         SQL up to `----`, then the answer, up to an empty line
//! skipif NAME, onlyif NAME           before a record: not for, or only for, that engine. We are `sqlite`
//! halt                               the rest of the file does not count; conditions apply to it, too
//! hash-threshold N                   longer answers stand there as their hash. Redundant: the answer says which it is
//! ```
//!
//! TYPES has a letter per column: `I`nteger, `R`eal with three digits, `T`ext. NULL is `NULL`, an empty text `(empty)`, and
//! what cannot be printed is `@`. SORT is `nosort`, `rowsort` (rows, as texts) or `valuesort` (all values). The answer has one
//! value a line, or `N values hashing to MD5`, which is that of the values with a line feed behind each. Queries with the same
//! LABEL have the same answer.

use std::collections::HashMap;

use md5::{Digest, Md5};

/// How many records held, did not, or were not for us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ok: usize,
    pub(crate) bad: usize,
    pub(crate) skipped: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    None,
    Rows,
    Values,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Statement { succeeds: bool },
    Query { types: String, sort: Sort, label: Option<String>, answer: Vec<String> },
}

#[derive(Debug)]
pub(crate) struct Record {
    /// Line of its first word, from 1.
    pub(crate) line: usize,
    pub(crate) sql: String,
    pub(crate) kind: Kind,
}

/// The records for SQLite, in order.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) records: Vec<Record>,
    pub(crate) skipped: usize,
}

impl File {
    /// Panics on what the format does not have: a file that is only half understood proves nothing.
    pub(crate) fn parse(text: &str) -> File {
        let mut file = File::default();
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim_end())).peekable();
        let mut ours = true;
        while let Some((line, text)) = lines.next() {
            let mut words = text.split('#').next().unwrap_or("").split_whitespace();
            let Some(word) = words.next() else { continue };
            match word {
                "skipif" => ours &= words.next() != Some("sqlite"),
                "onlyif" => ours &= words.next() == Some("sqlite"),
                "hash-threshold" => {}
                "halt" if ours => break,
                "halt" => ours = true,
                "statement" | "query" => {
                    let mut sql = Vec::new();
                    let mut answer = Vec::new();
                    let mut behind_dashes = false;
                    while let Some((_, text)) = lines.next_if(|(_, text)| !text.is_empty()) {
                        match text {
                            "----" if !behind_dashes => behind_dashes = true,
                            text if behind_dashes => answer.push(text.to_string()),
                            text => sql.push(text),
                        }
                    }
                    let kind = match (word, words.next()) {
                        ("statement", Some("ok")) => Kind::Statement { succeeds: true },
                        ("statement", Some("error")) => Kind::Statement { succeeds: false },
                        ("query", Some(types)) => {
                            let sort = match words.next() {
                                None | Some("nosort") => Sort::None,
                                Some("rowsort") => Sort::Rows,
                                Some("valuesort") => Sort::Values,
                                Some(other) => panic!("line {line}: sort {other:?}"),
                            };
                            Kind::Query { types: types.to_string(), sort, label: words.next().map(Into::into), answer }
                        }
                        other => panic!("line {line}: {other:?}"),
                    };
                    match std::mem::replace(&mut ours, true) {
                        true => file.records.push(Record { line, sql: sql.join("\n"), kind }),
                        false => file.skipped += 1,
                    }
                }
                other => panic!("line {line}: {other:?} is not known"),
            }
        }
        file
    }
}

/// A value as SQLite gives it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
}

impl Value {
    /// As the format shows it in a column of this type.
    fn show(&self, kind: char) -> String {
        match (kind, self) {
            (_, Value::Null) => "NULL".to_string(),
            ('I', Value::Integer(n)) => n.to_string(),
            ('I', Value::Real(x)) => (*x as i64).to_string(),
            ('I', Value::Text(text)) => leading_integer(text).to_string(),
            ('R', Value::Integer(n)) => three_digits(*n as f64),
            ('R', Value::Real(x)) => three_digits(*x),
            ('R', Value::Text(text)) => three_digits(text.parse().unwrap_or(0.0)),
            ('T', Value::Text(text)) if text.is_empty() => "(empty)".to_string(),
            ('T', Value::Text(text)) => text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '@' }).collect(),
            ('T', Value::Integer(n)) => n.to_string(),
            ('T', Value::Real(x)) => format!("{x:?}"),
            (kind, _) => panic!("type {kind:?} is not known"),
        }
    }
}

/// SQLite's `%.3f`: no more than 16 digits that count, then zeros.
fn three_digits(x: f64) -> String {
    if x.abs() < 1e12 {
        return format!("{x:.3}");
    }
    let rounded: f64 = format!("{x:.15e}").parse().unwrap_or(x);
    let text = format!("{:.15e}", rounded.abs());
    let (digits, exponent) = text.split_once('e').expect("written like this");
    let digits = digits.replace('.', "");
    let exponent: usize = exponent.parse().expect("written like this");
    let whole = format!("{digits:0<width$}", width = exponent + 1);
    let (whole, rest) = whole.split_at(exponent + 1);
    format!("{}{whole}.{:0<3}", if x < 0.0 { "-" } else { "" }, &rest[..rest.len().min(3)])
}

/// What SQLite makes of a text where it needs an integer.
fn leading_integer(text: &str) -> i64 {
    let text = text.trim_start();
    let digits = text.strip_prefix('-').unwrap_or(text);
    let end = text.len() - digits.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    text[..end].parse().unwrap_or(0)
}

/// An answer as a file has it: one value a line.
pub(crate) fn shown(types: &str, sort: Sort, rows: &[Vec<Value>]) -> Vec<String> {
    let mut rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().zip(types.chars()).map(|(value, kind)| value.show(kind)).collect()).collect();
    if sort == Sort::Rows {
        rows.sort_unstable();
    }
    let mut values = rows.concat();
    if sort == Sort::Values {
        values.sort_unstable();
    }
    values
}

/// Labels that were seen, and the answer that they stand for.
#[derive(Default)]
pub(crate) struct Labels(HashMap<String, Vec<String>>);

impl Labels {
    /// Whether the answer `got` is the one that the file has, and the one that its label had before.
    pub(crate) fn judge(&mut self, label: Option<&String>, answer: &[String], got: &[String]) -> Result<(), String> {
        let hashed = answer.first().is_some_and(|line| line.contains(" values hashing to "));
        let matches = match hashed {
            true => answer == [hash(got)],
            false => answer == got,
        };
        if !matches {
            return Err(format!("{got:?} (that is {}), not {answer:?}", hash(got)));
        }
        match label {
            Some(label) if self.0.entry(label.clone()).or_insert_with(|| got.to_vec()) != got => {
                Err(format!("{got:?}, but label {label} was {:?}", self.0[label]))
            }
            _ => Ok(()),
        }
    }
}

fn hash(values: &[String]) -> String {
    let mut md5 = Md5::new();
    for value in values {
        md5.update(value);
        md5.update("\n");
    }
    let hex: String = md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} values hashing to {hex}", values.len())
}

#[test]
fn a_file_is_understood() {
    let file = File::parse(
        "hash-threshold 8\n\nonlyif mssql\nhalt\n\nstatement ok\nCREATE TABLE t(x)\n\n# words\nskipif mysql # why\n\
         onlyif sqlite\nquery IT rowsort label-1\nSELECT 1,\n2\n----\n2\nb\n\nskipif sqlite\nstatement error\nNONSENSE\n\n\
         onlyif sqlite\nhalt\n\nstatement error\nnever\n",
    );
    assert_eq!((file.records.len(), file.skipped), (2, 1));
    assert_eq!((file.records[1].line, file.records[1].sql.as_str()), (12, "SELECT 1,\n2"));
    let Kind::Query { types, sort: Sort::Rows, label: Some(label), answer } = &file.records[1].kind else { panic!() };
    assert_eq!((types.as_str(), label.as_str(), answer.join("|").as_str()), ("IT", "label-1", "2|b"));
}

#[test]
fn an_answer_is_right_only_if_every_value_is() {
    let text = |text: &str| Value::Text(text.to_string());
    let rows =
        [vec![Value::Integer(9), text("b\u{1}")], vec![Value::Real(10.9), text("")], vec![text("-3x"), Value::Null]];
    let got = shown("IT", Sort::Rows, &rows);
    assert_eq!(got, ["-3", "NULL", "10", "(empty)", "9", "b@"]);
    assert_eq!(shown("R", Sort::None, &[vec![Value::Integer(1)], vec![Value::Real(0.0625)]]), ["1.000", "0.062"]);
    assert_eq!(
        shown("R", Sort::None, &[vec![Value::Integer(i64::MIN)], vec![Value::Real(-9e14 - 0.25)]]),
        ["-9223372036854776000.000", "-900000000000000.200"]
    );
    let mut labels = Labels::default();
    let label = Some("l".to_string());
    labels.judge(label.as_ref(), &got, &got).unwrap();
    labels.judge(None, &["6 values hashing to 7b0f8b1a6d6f8b6c8ab6a3e7a1f2f1f5".to_string()], &got).unwrap_err();
    labels.judge(None, &[hash(&got)], &got).unwrap();
    labels.judge(None, &got[..5], &got).unwrap_err();
    labels.judge(label.as_ref(), &got[..2], &got[..2]).unwrap_err();
}
