//! A whole SQLite file, through SQL: what the demo loads.
//!
//! The file is attached to a connection of the replicated database with SQLite's own VFS, and rows are copied in
//! transactions of some thousand, by rowid, so that a copy that was interrupted goes on after the last row it knows of.
//! Rows are inserted under their old rowid and `OR IGNORE`: a batch whose outcome is unknown is copied again without
//! harm. Counting both sides shows that nothing was ignored that should not have been, and digests of both at the very end
//! that it is still there, unchanged.
//!
//! Deliberately absent: virtual tables and their shadow tables (they are named and left out), and the order of foreign
//! keys: enforcement is off while rows are copied, as in `sqlite3 .dump`.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};
use shoaldb::rusqlite::types::ValueRef;
use shoaldb::rusqlite::{self, OpenFlags, OptionalExtension};
use shoaldb::{Connection, Error, Node};

use crate::harness::wire::DATABASE;

/// What is in a file.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Tables with their number of rows.
    pub(crate) tables: Vec<(String, u64)>,
    /// Statements that create the tables.
    pub(crate) create: Vec<String>,
    /// Statements that create indexes, views and triggers.
    pub(crate) afterwards: Vec<String>,
    /// Virtual tables, which are left out.
    pub(crate) left_out: Vec<String>,
}

/// Looks into a file.
pub(crate) fn contents(file: &str) -> rusqlite::Result<Contents> {
    let db = rusqlite::Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut contents = Contents { tables: vec![], create: vec![], afterwards: vec![], left_out: vec![] };
    let mut list = db.prepare("SELECT name, type FROM pragma_table_list WHERE schema = 'main' AND type <> 'view'")?;
    let kinds =
        list.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<Vec<(String, String)>, _>>()?;
    let kind_of = |table: &str| kinds.iter().find(|(name, _)| name == table).map_or("table", |(_, kind)| kind.as_str());
    let mut schema =
        db.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")?;
    let mut rows = schema.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name, table, sql): (String, String, String, String) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        match (kind.as_str(), kind_of(&table)) {
            (_, "shadow") => {}
            ("table", "virtual") => contents.left_out.push(name),
            // SQLite makes these by itself.
            ("table", _) if name.starts_with("sqlite_") => {}
            ("table", _) => {
                let count = format!("SELECT count(*) FROM {}", quoted(&name));
                let rows: i64 = db.query_row(&count, [], |row| row.get(0))?;
                contents.tables.push((name, rows.unsigned_abs()));
                contents.create.push(sql);
            }
            _ => contents.afterwards.push(sql),
        }
    }
    Ok(contents)
}

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Rows of a table, and a digest of them: the sum of the rows' hashes, so that their order does not matter. Comparable within
/// one build of this program.
pub(crate) fn digest(db: &rusqlite::Connection, table: &str) -> rusqlite::Result<Value> {
    let mut statement = db.prepare(&format!("SELECT * FROM {}", quoted(table)))?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let (mut count, mut sum) = (0_u64, 0_u64);
    while let Some(row) = rows.next()? {
        let mut hash = DefaultHasher::new();
        for at in 0..columns {
            match row.get_ref(at)? {
                ValueRef::Null => 0_u8.hash(&mut hash),
                ValueRef::Integer(number) => (1_u8, number).hash(&mut hash),
                ValueRef::Real(number) => (2_u8, number.to_bits()).hash(&mut hash),
                ValueRef::Text(text) => (3_u8, text).hash(&mut hash),
                ValueRef::Blob(bytes) => (4_u8, bytes).hash(&mut hash),
            }
        }
        count += 1;
        sum = sum.wrapping_add(hash.finish());
    }
    Ok(json!({ "rows": count, "digest": format!("{sum:016x}") }))
}

/// The digests of a file's tables.
pub(crate) fn digests(file: &str, contents: &Contents) -> rusqlite::Result<Vec<(String, Value)>> {
    let db = rusqlite::Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    contents.tables.iter().map(|(table, _)| Ok((table.clone(), digest(&db, table)?))).collect()
}

/// A connection that can copy from `file`.
pub(crate) fn attach(node: &Node, file: &str) -> Result<Connection, Error> {
    let db = node.connect(DATABASE)?;
    db.pragma_update(None, "foreign_keys", false)?;
    let mut uri = String::from("file:");
    for byte in std::path::absolute(file)?.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?vfs=unix&mode=ro");
    db.execute("ATTACH ?1 AS source", [&uri])?;
    Ok(db)
}

/// Copies the next rows of a table, from rowid `from` on: `{"rows":n,"next":rowid}`, no `next` when there are no more.
pub(crate) fn copy(db: &mut Connection, table: &str, from: Option<i64>, limit: u32) -> Result<Value, Error> {
    let name = quoted(table);
    let mut columns: Vec<String> = db
        .prepare("SELECT name FROM pragma_table_xinfo(?1, 'source') WHERE hidden = 0")?
        .query_map([table], |row| row.get::<_, String>(0))?
        .map(|column| column.map(|column| quoted(&column)))
        .collect::<Result<_, _>>()?;
    let without_rowid: bool = db
        .prepare("SELECT wr FROM pragma_table_list(?1) WHERE schema = 'source'")?
        .query_row([table], |row| row.get(0))?;
    let tx = db.transaction()?;
    if without_rowid {
        let list = columns.join(",");
        let rows =
            tx.execute(&format!("INSERT OR IGNORE INTO main.{name}({list}) SELECT {list} FROM source.{name}"), [])?;
        tx.commit()?;
        return Ok(json!({ "rows": rows }));
    }
    let alias: Option<String> = tx
        .prepare("SELECT name FROM pragma_table_xinfo(?1, 'source') WHERE lower(name) = 'rowid'")?
        .query_row([table], |row| row.get(0))
        .optional()?;
    if alias.is_none() {
        // The rowid, also where a column is its alias: both say the same.
        columns.insert(0, "rowid".to_string());
    }
    let list = columns.join(",");
    let first = from.unwrap_or(i64::MIN);
    let bounds = format!("FROM source.{name} WHERE _rowid_ >= ?1 ORDER BY _rowid_ LIMIT ?2");
    let count = format!("SELECT count(*), max(r) FROM (SELECT _rowid_ AS r {bounds})");
    let (rows, last): (u32, Option<i64>) =
        tx.query_row(&count, (first, limit), |row| Ok((row.get(0)?, row.get(1)?)))?;
    tx.execute(&format!("INSERT OR IGNORE INTO main.{name}({list}) SELECT {list} {bounds}"), (first, limit))?;
    tx.commit()?;
    let next = last.filter(|_| rows == limit).and_then(|last| last.checked_add(1));
    Ok(json!({ "rows": rows, "next": next }))
}
