//! The payload of a log entry: what the cluster agrees on, as bytes.
//!
//! ```text
//! offset size  field (little-endian)
//!      0    1  format version, 1
//!      1    1  kind, see below
//!      2    2  flags, 0; a set bit is something this version does not know
//!      4    2  origin: the node that proposed it
//!      6    8  origin: session, random for each start of a process
//!     14    8  origin: number within the session
//!     22       body
//!
//! kind  body
//!    1  transaction     8 database id
//!                       8 base position
//!                       4 page size
//!                       4 database size afterwards, in pages
//!                      16 database checksum afterwards
//!                       4 number of pages; then for each, page numbers ascending:
//!                         4 page number
//!                         1 operation (page_ops.rs)
//!                        16 hash of the page
//!                         4 length n
//!                         n bytes of the operation
//!    2  create database 4 page size, 1 auto_vacuum (0 none, 1 full, 2 incremental), 2 length of name, name
//!    3  drop database   8 database id
//!    4  checkpoint      anything: nobody reads it
//!    5  bind incarnation 2 node, 8 incarnation, 2 length of address, address
//!    6  part            of a transaction that is larger than one entry: entry/split.rs
//!  255  rehearsal       of protocol 2: nothing. Tests of upgrades write it, in place of what the next version brings
//! ```
//!
//! A kind that is added later belongs to a protocol version, `protocol_of`. The leader's engine lets no entry into the log
//! of which a member has not announced that it knows its version.
//!
//! The origin lets the node that proposed an entry find its waiting caller again when the entry is committed.
//!
//! Two kinds of trouble are kept apart. *Unknown*: a version, kind, flag or operation of a later program; the node stops
//! before it applies the entry and says so, it never guesses. *Damaged*: what no version writes. A checkpoint is a no-op
//! here: every node checkpoints on its own. It exists because a leader of another version may still write it.
//!
//! The empty payload (a leader's first entry of its term) is no entry of ours: it is skipped before it comes here.
//!
//! Deliberately absent: whether an entry *applies* (base position, catalogue): that is `apply.rs`. Checked here is only
//! that it is whole: lengths, [`Transaction::check`], and every page against its hash.

pub(crate) mod page_ops;
pub mod split;

use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::transaction::{ChangedPage, Position, Transaction};

use crate::catalogue::{AutoVacuum, DatabaseId, DatabaseName, MAX_ADDRESS, MAX_NAME};
use crate::fields::{Damaged, Reader, put_count, put_text};
use crate::types::{Incarnation, NodeId};
use page_ops::{PageEncoder, PageError};
use split::{Form, Part};

/// Longest payload, and most page content of one entry, in bytes. Lengths stay far from 2^32, and a small hostile entry
/// cannot unpack to more memory than an honest one takes.
pub const MAX_ENTRY: usize = 1 << 30;

/// Bytes of the head of every payload.
pub const HEAD: usize = 22;

const VERSION: u8 = 1;
const TRANSACTION_HEAD: usize = 44;
const PAGE_HEAD: usize = 25;

/// Who proposed an entry: the node, a random number of its process, a counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Origin {
    /// The node.
    pub node: NodeId,
    /// Random for each start of the process, so that a restarted node does not take old entries for its own.
    pub session: u64,
    /// Counts the proposals of the session.
    pub number: u64,
}

/// Kind of an entry, as its byte says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Pages of one SQLite commit.
    Transaction = 1,
    /// A new database.
    CreateDatabase = 2,
    /// The end of a database.
    DropDatabase = 3,
    /// Nothing.
    Checkpoint = 4,
    /// A member's id bound to its data directory.
    BindIncarnation = 5,
    /// A part of a transaction that is larger than one entry.
    Part = 6,
}

/// The kind that no program writes but for tests of upgrades. To this version it is as unknown as any later one.
const REHEARSAL: u8 = 255;

/// What an entry says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Pages of one SQLite commit.
    Transaction {
        /// Of which database.
        database: DatabaseId,
        /// The pages.
        transaction: Transaction,
    },
    /// A new database; its id is the index of this entry.
    CreateDatabase {
        /// Its name.
        name: DatabaseName,
        /// Its page size.
        page_size: PageSize,
        /// Its `auto_vacuum`.
        auto_vacuum: AutoVacuum,
    },
    /// The end of a database.
    DropDatabase {
        /// Which.
        database: DatabaseId,
    },
    /// Nothing: see the module's text.
    Checkpoint,
    /// A member's id is bound to a data directory.
    BindIncarnation {
        /// Whose id.
        node: NodeId,
        /// The directory.
        incarnation: Incarnation,
        /// Where the others reach it.
        address: String,
    },
    /// A part of a transaction that is larger than one entry.
    Part(Part),
    /// No further part of this transaction will come.
    GivenUp {
        /// Of which database.
        database: DatabaseId,
        /// Which transaction; see [`split`].
        split: u64,
    },
}

/// A decoded payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    /// Who proposed it.
    pub origin: Origin,
    /// What it says.
    pub body: Body,
}

/// Why bytes are no payload.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EntryError {
    /// Of a later program: stop before applying it.
    #[error(
        "entry with {what} {value}, which this program (entry format {VERSION}) does not know; start the newer version of shoal on this node"
    )]
    Unknown {
        /// Which field: "format version", "kind", "flags", "page operation".
        what: &'static str,
        /// Its value.
        value: u64,
        /// Where it stands.
        at: usize,
    },
    /// What no program writes.
    #[error("entry damaged: {0}")]
    Damaged(#[from] Damaged),
}

/// A payload that would be longer than [`MAX_ENTRY`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("transaction of {bytes} bytes in {pages} pages: one entry holds {MAX_ENTRY} bytes at most")]
pub struct TooLarge {
    /// Its size.
    pub bytes: u64,
    /// Its pages.
    pub pages: usize,
}

/// A page that is not what its hash says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("page {}: its content has hash {computed}, the entry says {stated}", number.get())]
pub struct WrongHash {
    /// Which page.
    pub number: PageNo,
    /// What the entry says.
    pub stated: PageHash,
    /// What the content has.
    pub computed: PageHash,
}

/// Most bytes that [`encode_transaction`] makes of this transaction.
pub fn longest(transaction: &Transaction) -> u64 {
    let page = (PAGE_HEAD + transaction.page_size.len()) as u64;
    (HEAD + TRANSACTION_HEAD) as u64 + page * transaction.pages.len() as u64
}

/// Writes a transaction's payload: one pass into one allocation.
pub fn encode_transaction(
    origin: Origin,
    database: DatabaseId,
    transaction: &Transaction,
) -> Result<Vec<u8>, TooLarge> {
    let bytes = longest(transaction);
    if bytes > MAX_ENTRY as u64 {
        return Err(TooLarge { bytes, pages: transaction.pages.len() });
    }
    let mut out = Vec::with_capacity(bytes as usize + PageEncoder::slack(transaction.page_size));
    put_head(&mut out, Kind::Transaction, origin);
    out.extend_from_slice(&database.0.to_le_bytes());
    out.extend_from_slice(&transaction.base.0.to_le_bytes());
    out.extend_from_slice(&transaction.page_size.bytes().to_le_bytes());
    out.extend_from_slice(&transaction.size_after.0.to_le_bytes());
    out.extend_from_slice(&transaction.checksum_after.0.to_le_bytes());
    put_count(&mut out, transaction.pages.len());
    let mut encoder = PageEncoder::default();
    for page in &transaction.pages {
        put_page(&mut out, &mut encoder, page);
    }
    Ok(out)
}

fn put_page(out: &mut Vec<u8>, encoder: &mut PageEncoder, page: &ChangedPage) {
    let head = out.len();
    out.extend_from_slice(&page.number.get().to_le_bytes());
    out.push(0);
    out.extend_from_slice(&page.hash.0.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out[head + 4] = encoder.put(out, &page.image);
    let len = (out.len() - head - PAGE_HEAD) as u32;
    out[head + 21..head + PAGE_HEAD].copy_from_slice(&len.to_le_bytes());
}

/// Writes any payload.
pub fn encode(payload: &Payload) -> Result<Vec<u8>, TooLarge> {
    let mut out = Vec::new();
    let origin = payload.origin;
    match &payload.body {
        Body::Transaction { database, transaction } => return encode_transaction(origin, *database, transaction),
        Body::CreateDatabase { name, page_size, auto_vacuum } => {
            put_head(&mut out, Kind::CreateDatabase, origin);
            out.extend_from_slice(&page_size.bytes().to_le_bytes());
            out.push(auto_vacuum.number());
            put_text(&mut out, name.as_str(), MAX_NAME);
        }
        Body::DropDatabase { database } => {
            put_head(&mut out, Kind::DropDatabase, origin);
            out.extend_from_slice(&database.0.to_le_bytes());
        }
        Body::Checkpoint => put_head(&mut out, Kind::Checkpoint, origin),
        Body::BindIncarnation { node, incarnation, address } => {
            put_head(&mut out, Kind::BindIncarnation, origin);
            out.extend_from_slice(&node.0.to_le_bytes());
            out.extend_from_slice(&incarnation.0.to_le_bytes());
            put_text(&mut out, address, MAX_ADDRESS);
        }
        Body::Part(part) => return Ok(split::encode(origin, part)),
        Body::GivenUp { database, split } => return Ok(split::encode_given_up(origin, *database, *split)),
    }
    Ok(out)
}

fn put_head(out: &mut Vec<u8>, kind: Kind, origin: Origin) {
    out.extend_from_slice(&[VERSION, kind as u8, 0, 0]);
    out.extend_from_slice(&origin.node.0.to_le_bytes());
    out.extend_from_slice(&origin.session.to_le_bytes());
    out.extend_from_slice(&origin.number.to_le_bytes());
}

/// An entry of the next version, for tests of upgrades.
pub(crate) fn rehearsal(origin: Origin) -> Vec<u8> {
    let mut out = Vec::new();
    put_head(&mut out, Kind::Checkpoint, origin);
    out[1] = REHEARSAL;
    out
}

/// The protocol version that a node must speak to apply this entry.
pub(crate) fn protocol_of(bytes: &[u8]) -> u16 {
    if bytes.get(1) == Some(&REHEARSAL) { 2 } else { 1 }
}

/// Who proposed an entry of a later version, as a node that speaks it reads it.
pub(crate) fn origin_of_later(bytes: &[u8]) -> Result<Origin, EntryError> {
    let mut fields = Reader::new(bytes);
    fields.bytes(4, "head")?;
    let node = fields.node("origin node")?;
    let session = fields.u64("origin session")?;
    Ok(Origin { node, session, number: fields.u64("origin number")? })
}

/// Kind and origin of a payload, without a look at its body.
pub fn peek(bytes: &[u8]) -> Result<(Kind, Origin), EntryError> {
    read_head(&mut Reader::new(bytes))
}

/// The database that a transaction, a part of one, or a drop is about, without a look at the rest.
pub fn database_of(bytes: &[u8]) -> Result<DatabaseId, EntryError> {
    let mut fields = Reader::new(bytes);
    read_head(&mut fields)?;
    Ok(DatabaseId(fields.u64("database id")?))
}

fn read_head(fields: &mut Reader<'_>) -> Result<(Kind, Origin), EntryError> {
    let unknown = |what, value, at| Err(EntryError::Unknown { what, value, at });
    let version = fields.u8("format version")?;
    if version == 0 {
        return Err(Damaged { at: 0, what: "format version 0".to_string() }.into());
    }
    if version != VERSION {
        return unknown("format version", version.into(), 0);
    }
    let kind = match fields.u8("kind")? {
        1 => Kind::Transaction,
        2 => Kind::CreateDatabase,
        3 => Kind::DropDatabase,
        4 => Kind::Checkpoint,
        5 => Kind::BindIncarnation,
        6 => Kind::Part,
        other => return unknown("kind", other.into(), 1),
    };
    let flags = fields.u16("flags")?;
    if flags != 0 {
        return unknown("flags", flags.into(), 2);
    }
    let node = fields.node("origin node")?;
    let session = fields.u64("origin session")?;
    Ok((kind, Origin { node, session, number: fields.u64("origin number")? }))
}

/// Reads what [`encode`] wrote, with every page checked against its hash.
pub fn decode(bytes: &[u8]) -> Result<Payload, EntryError> {
    if bytes.len() > MAX_ENTRY {
        let what = format!("{} bytes, an entry has {MAX_ENTRY} at most", bytes.len());
        return Err(Damaged { at: 0, what }.into());
    }
    let mut fields = Reader::new(bytes);
    let (kind, origin) = read_head(&mut fields)?;
    let body = match kind {
        Kind::Transaction => read_transaction(&mut fields)?,
        Kind::CreateDatabase => {
            let page_size = read_page_size(&mut fields)?;
            let number = fields.u8("auto_vacuum")?;
            let auto_vacuum = AutoVacuum::from_number(number)
                .ok_or_else(|| fields.damaged(format!("auto_vacuum {number}, not 0, 1 or 2")))?;
            let name = fields.text(MAX_NAME, "database name")?;
            let name = DatabaseName::new(name).map_err(|bad| fields.damaged(bad.to_string()))?;
            Body::CreateDatabase { name, page_size, auto_vacuum }
        }
        Kind::DropDatabase => Body::DropDatabase { database: DatabaseId(fields.u64("database id")?) },
        Kind::Checkpoint => return Ok(Payload { origin, body: Body::Checkpoint }),
        Kind::BindIncarnation => {
            let node = fields.node("node")?;
            let incarnation = Incarnation(fields.u64("incarnation")?);
            Body::BindIncarnation { node, incarnation, address: fields.text(MAX_ADDRESS, "address")?.to_string() }
        }
        Kind::Part => match split::read_form(&mut fields)? {
            Form::Part(head) => Body::Part(split::read_rest(&mut fields, head)?),
            Form::GivenUp { database, split } => Body::GivenUp { database, split },
        },
    };
    fields.end()?;
    Ok(Payload { origin, body })
}

fn read_page_size(fields: &mut Reader<'_>) -> Result<PageSize, Damaged> {
    let bytes = fields.u32("page size")?;
    PageSize::new(bytes)
        .ok_or_else(|| fields.damaged(format!("page size {bytes}, not a power of two from 512 to 65536")))
}

fn read_transaction(fields: &mut Reader<'_>) -> Result<Body, EntryError> {
    let database = DatabaseId(fields.u64("database id")?);
    let base = Position(fields.u64("base position")?);
    let page_size = read_page_size(fields)?;
    let size_after = PageCount(fields.u32("database size")?);
    let checksum_after = PageHash(fields.u128("database checksum")?);
    let pages = read_pages(fields, page_size)?;
    let transaction = Transaction { base, page_size, size_after, checksum_after, pages };
    transaction.check().map_err(|broken| fields.damaged(broken))?;
    refuse_wrong_hashes(fields, &transaction.pages)?;
    Ok(Body::Transaction { database, transaction })
}

fn read_pages(fields: &mut Reader<'_>, page_size: PageSize) -> Result<Vec<ChangedPage>, EntryError> {
    let count = fields.count(PAGE_HEAD, "number of pages")?;
    if count > MAX_ENTRY / page_size.len() {
        let what = format!("{count} pages of {} bytes, one entry holds {MAX_ENTRY} bytes", page_size.bytes());
        return Err(fields.damaged(what).into());
    }
    let mut pages = Vec::with_capacity(count);
    for _ in 0..count {
        pages.push(read_page(fields, page_size)?);
    }
    Ok(pages)
}

fn read_page(fields: &mut Reader<'_>, page_size: PageSize) -> Result<ChangedPage, EntryError> {
    let number = fields.u32("page number")?;
    let number = PageNo::new(number).ok_or_else(|| fields.damaged("page number 0"))?;
    let at = fields.at();
    let operation = fields.u8("page operation")?;
    let hash = PageHash(fields.u128("page hash")?);
    let len = fields.u32("page length")? as usize;
    let bytes = fields.bytes(len, "page content")?;
    let image = page_ops::read(operation, bytes, page_size).map_err(|error| match error {
        PageError::UnknownOperation(value) => EntryError::Unknown { what: "page operation", value: value.into(), at },
        PageError::Damaged(what) => EntryError::Damaged(Damaged { at, what: format!("page {}: {what}", number.get()) }),
    })?;
    Ok(ChangedPage { number, image, hash })
}

/// Checks every page against its hash. [`decode`] has done so; this is for those who hold a transaction longer.
pub fn check_hashes(pages: &[ChangedPage]) -> Result<(), WrongHash> {
    for page in pages {
        let computed = PageHash::of(page.number, &page.image);
        if computed != page.hash {
            return Err(WrongHash { number: page.number, stated: page.hash, computed });
        }
    }
    Ok(())
}

fn refuse_wrong_hashes(fields: &Reader<'_>, pages: &[ChangedPage]) -> Result<(), EntryError> {
    Ok(check_hashes(pages).map_err(|wrong| fields.damaged(wrong.to_string()))?)
}

#[cfg(test)]
mod tests;
