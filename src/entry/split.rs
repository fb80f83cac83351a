//! A transaction that is larger than one entry: its parts, kind 6.
//!
//! ```text
//! offset size  field (little-endian), behind the head of every payload (entry.rs)
//!     22    8  database id
//!     30    8  split: the origin's number of the last part; with the origin's node and session it names the transaction
//!     38    1  form: 0 a part, 1 the last part, 2 given up (nothing follows)
//!     39    4  number of the part, from 0
//!     43   16  chain: XXH3-128 of the whole payload of the part before; 0 in the first
//!     59    4  page size
//!     63    4  number of pages; then the pages, as in a transaction. Their numbers ascend through all parts
//!              form 1 only, behind the pages:
//!           8  base position
//!           4  database size afterwards, in pages
//!          16  database checksum afterwards
//! ```
//!
//! The parts of one transaction are entries of one term, in order, with entries of other databases in between. They take
//! effect together, with the last one, as one transaction at its index. Whether they do is decided at apply, the same
//! on every node (`splits.rs`): an entry of a newer term ends an open split, and so does any other entry of its database.
//! *Given up* says that no further part will come, so that nobody keeps the others.
//!
//! A part is closed when its bytes reach the size of a part, or when its pages have twice as much content: a page that
//! packs well is still a page for whoever unpacks it.
//!
//! Deliberately absent: who waits for what (`replicate/large.rs`), and what is done with pages that came.

use shoaldb_vfs::page::{PageCount, PageHash, PageSize};
use shoaldb_vfs::transaction::{ChangedPage, Position, Transaction};
use xxhash_rust::xxh3::xxh3_128;

use super::page_ops::PageEncoder;
use super::{
    EntryError, HEAD, Kind, Origin, PAGE_HEAD, put_head, put_page, read_head, read_page_size, read_pages,
    refuse_wrong_hashes,
};
use crate::catalogue::DatabaseId;
use crate::fields::{Damaged, Reader, put_count};

/// Offset of the form.
const FORM: usize = HEAD + 16;
/// Bytes before the pages.
const PART_HEAD: usize = FORM + 29;
const END: usize = 28;

/// Content of the pages of one part, in sizes of a part.
const CONTENT: usize = 2;

/// What a part says besides its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartHead {
    /// Of which database.
    pub database: DatabaseId,
    /// Names the transaction, with the origin.
    pub split: u64,
    /// From 0.
    pub number: u32,
    /// Of the payload before.
    pub chain: u128,
    /// Size of one page.
    pub page_size: PageSize,
    /// Whether it is the last one.
    pub last: bool,
}

/// What the last part says of the whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Position that the transaction was built on.
    pub base: Position,
    /// Size of the database afterwards.
    pub size_after: PageCount,
    /// Checksum of the database afterwards.
    pub checksum_after: PageHash,
}

/// One part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Which. Its `last` is whether there is an `end`.
    pub head: PartHead,
    /// Its pages.
    pub pages: Vec<ChangedPage>,
    /// In the last part.
    pub end: Option<End>,
}

impl End {
    /// What the last part of `transaction` says.
    pub fn of(transaction: &Transaction) -> End {
        let Transaction { base, size_after, checksum_after, .. } = *transaction;
        End { base, size_after, checksum_after }
    }
}

/// The chain value of the part that follows the one with this payload.
pub fn chain_after(payload: &[u8]) -> u128 {
    xxh3_128(payload)
}

/// Writes the next part of `transaction`, with its pages from `from` on, in the place of what is in `out`. Returns the page
/// with which the one after it begins. It is the last part if that is their number; then it goes by the number of the split, because who
/// waits for the transaction waits for that. `head.last` is not looked at.
pub fn encode_next(
    origin: Origin,
    head: &PartHead,
    transaction: &Transaction,
    from: usize,
    part_bytes: usize,
    out: &mut Vec<u8>,
) -> usize {
    let page_bytes = transaction.page_size.len();
    let left = transaction.pages.len() - from;
    let room = part_bytes.min(PART_HEAD + END + left * (PAGE_HEAD + page_bytes));
    out.clear();
    out.reserve(room + PAGE_HEAD + END + page_bytes + PageEncoder::slack(transaction.page_size));
    put_part_head(out, origin, head);
    let mut encoder = PageEncoder::default();
    let mut next = from;
    for page in &transaction.pages[from..] {
        let full = out.len() + PAGE_HEAD + page_bytes + END > part_bytes
            || (next - from + 1) * page_bytes > CONTENT * part_bytes;
        if full && next > from {
            break;
        }
        put_page(out, &mut encoder, page);
        next += 1;
    }
    let last = next == transaction.pages.len();
    if last {
        out[HEAD - 8..HEAD].copy_from_slice(&head.split.to_le_bytes());
    }
    close(out, next - from, last.then(|| End::of(transaction)));
    next
}

/// Writes a part.
pub(super) fn encode(origin: Origin, part: &Part) -> Vec<u8> {
    let mut out = Vec::new();
    put_part_head(&mut out, origin, &part.head);
    let mut encoder = PageEncoder::default();
    for page in &part.pages {
        put_page(&mut out, &mut encoder, page);
    }
    close(&mut out, part.pages.len(), part.end);
    out
}

/// Writes that a split is given up.
pub(super) fn encode_given_up(origin: Origin, database: DatabaseId, split: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(FORM + 1);
    put_head(&mut out, Kind::Part, origin);
    out.extend_from_slice(&database.0.to_le_bytes());
    out.extend_from_slice(&split.to_le_bytes());
    out.push(2);
    out
}

fn put_part_head(out: &mut Vec<u8>, origin: Origin, head: &PartHead) {
    put_head(out, Kind::Part, origin);
    out.extend_from_slice(&head.database.0.to_le_bytes());
    out.extend_from_slice(&head.split.to_le_bytes());
    out.push(0);
    out.extend_from_slice(&head.number.to_le_bytes());
    out.extend_from_slice(&head.chain.to_le_bytes());
    out.extend_from_slice(&head.page_size.bytes().to_le_bytes());
    put_count(out, 0);
}

/// Fills in what is known only behind the pages.
fn close(out: &mut Vec<u8>, pages: usize, end: Option<End>) {
    out[PART_HEAD - 4..PART_HEAD].copy_from_slice(&(pages as u32).to_le_bytes());
    if let Some(end) = end {
        out[FORM] = 1;
        out.extend_from_slice(&end.base.0.to_le_bytes());
        out.extend_from_slice(&end.size_after.0.to_le_bytes());
        out.extend_from_slice(&end.checksum_after.0.to_le_bytes());
    }
}

/// What a payload of kind 6 says, without its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A part.
    Part(PartHead),
    /// The split is given up.
    GivenUp {
        /// Of which database.
        database: DatabaseId,
        /// Which.
        split: u64,
    },
}

/// Reads what a payload of kind 6 says, without a look at its pages.
pub fn peek(bytes: &[u8]) -> Result<Form, EntryError> {
    let mut fields = Reader::new(bytes);
    read_head(&mut fields)?;
    read_form(&mut fields)
}

pub(super) fn read_form(fields: &mut Reader<'_>) -> Result<Form, EntryError> {
    let database = DatabaseId(fields.u64("database id")?);
    let split = fields.u64("split")?;
    let at = fields.at();
    let last = match fields.u8("form of a part")? {
        0 => false,
        1 => true,
        2 => return Ok(Form::GivenUp { database, split }),
        other => return Err(EntryError::Unknown { what: "form of a part", value: other.into(), at }),
    };
    let number = fields.u32("number of the part")?;
    let chain = fields.u128("chain")?;
    Ok(Form::Part(PartHead { database, split, number, chain, page_size: read_page_size(fields)?, last }))
}

/// Reads the rest of a part, with every page checked against its hash.
pub(super) fn read_rest(fields: &mut Reader<'_>, head: PartHead) -> Result<Part, EntryError> {
    let pages = read_pages(fields, head.page_size)?;
    check_order(&pages, head.page_size).map_err(|broken| fields.damaged(broken))?;
    refuse_wrong_hashes(fields, &pages)?;
    let end = match head.last {
        true => Some(read_end(fields)?),
        false => None,
    };
    Ok(Part { head, pages, end })
}

fn read_end(fields: &mut Reader<'_>) -> Result<End, Damaged> {
    let base = Position(fields.u64("base position")?);
    let size_after = PageCount(fields.u32("database size")?);
    Ok(End { base, size_after, checksum_after: PageHash(fields.u128("database checksum")?) })
}

/// What [`Transaction::check`] says of a whole one, as far as a part shows it.
fn check_order(pages: &[ChangedPage], page_size: PageSize) -> Result<(), String> {
    let mut previous = 0;
    for page in pages {
        let number = page.number.get();
        if number <= previous {
            return Err(format!("page {number} after page {previous}: pages must ascend"));
        }
        if page.number == page_size.lock_page() {
            return Err(format!("page {number} is the lock page"));
        }
        previous = number;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Body, Payload, decode, tests::*};
    use super::*;
    use crate::types::NodeId;

    const SPLIT: u64 = 77;
    const PAGE: PageSize = PageSize::new(512).unwrap();

    fn transaction(pages: u32) -> Transaction {
        let pages = (1..=pages).map(|n| page(n, noise())).collect();
        Transaction {
            base: Position(41),
            page_size: PAGE,
            size_after: PageCount(1000),
            checksum_after: PageHash(0xfeed),
            pages,
        }
    }

    fn head() -> PartHead {
        PartHead { database: DatabaseId(7), split: SPLIT, number: 0, chain: 0, page_size: PAGE, last: false }
    }

    /// All parts of a transaction.
    fn parts_of(transaction: &Transaction, part_bytes: usize) -> Vec<Vec<u8>> {
        let mut head = head();
        let (mut parts, mut from) = (Vec::new(), 0);
        while from < transaction.pages.len() {
            let mut part = Vec::new();
            let next = encode_next(ORIGIN, &head, transaction, from, part_bytes, &mut part);
            assert!(next > from);
            head = PartHead { number: head.number + 1, chain: chain_after(&part), ..head };
            from = next;
            parts.push(part);
        }
        parts
    }

    #[test]
    fn parts_hold_every_page_once_and_no_part_is_too_large() {
        for pages in [1, 2, 7, 8, 9, 100] {
            let whole = transaction(pages);
            for part_bytes in [1, 700, 2000, 4096, 1 << 20] {
                let parts = parts_of(&whole, part_bytes);
                let mut found = Vec::new();
                for (number, bytes) in parts.iter().enumerate() {
                    assert!(bytes.len() <= part_bytes.max(PART_HEAD + PAGE_HEAD + 512 + END), "{part_bytes}");
                    let Payload { origin, body: Body::Part(part) } = decode(bytes).unwrap() else { panic!("no part") };
                    let waits = if number + 1 == parts.len() { SPLIT } else { ORIGIN.number };
                    assert_eq!(origin, Origin { number: waits, ..ORIGIN });
                    assert_eq!(part.head.number as usize, number);
                    assert_eq!(part.end.is_some(), number + 1 == parts.len());
                    assert_eq!(peek(bytes), Ok(Form::Part(part.head)));
                    if let Some(end) = part.end {
                        assert_eq!(end, End::of(&whole));
                    }
                    found.extend(part.pages);
                }
                assert_eq!(found, whole.pages, "{pages} pages in parts of {part_bytes}");
            }
        }
    }

    #[test]
    fn pages_that_pack_well_are_no_endless_part() {
        let mut whole = transaction(0);
        whole.pages = (1..=100).map(|n| page(n, vec![0; 512])).collect();
        let parts = parts_of(&whole, 5120);
        assert!(parts.iter().all(|part| part.len() < 2000), "they pack");
        assert_eq!(parts.len(), 5, "but 20 of them are enough for one part");
    }

    #[test]
    fn parts_of_format_version_1_stay_readable() {
        let origin = "0300 0807060504030201 0900000000000000";
        let start = format!("01060000 {origin} 0700000000000000 4d00000000000000");
        assert_eq!(hex(&encode_given_up(ORIGIN, DatabaseId(7), SPLIT)), format!("{start}02").replace(' ', ""));

        let hash = PageHash::of(page(2, noise()).number, &noise());
        let end = End { base: Position(41), size_after: PageCount(8), checksum_after: PageHash(0xfeed) };
        for (form, end) in [("00", None), ("01", Some(end))] {
            let mut golden = unhex(&format!("{start} {form} 05000000"));
            golden.extend_from_slice(&0xabcdu128.to_le_bytes());
            golden.extend_from_slice(&unhex("00020000 01000000 02000000 00"));
            golden.extend_from_slice(&hash.0.to_le_bytes());
            golden.extend_from_slice(&512u32.to_le_bytes());
            golden.extend_from_slice(&noise());
            if end.is_some() {
                golden.extend_from_slice(&unhex("2900000000000000 08000000"));
                golden.extend_from_slice(&0xfeedu128.to_le_bytes());
            }
            let head = PartHead { number: 5, chain: 0xabcd, last: end.is_some(), ..head() };
            let part = Part { head, pages: vec![page(2, noise())], end };
            assert_eq!(encode(ORIGIN, &part), golden);
            assert_eq!(decode(&golden), Ok(Payload { origin: ORIGIN, body: Body::Part(part) }));
        }
    }

    #[test]
    fn a_form_of_a_later_version_is_unknown() {
        let mut bytes = encode_given_up(ORIGIN, DatabaseId(7), 9);
        bytes[FORM] = 3;
        for found in [decode(&bytes).map(|_| ()), peek(&bytes).map(|_| ())] {
            assert_eq!(found, Err(EntryError::Unknown { what: "form of a part", value: 3, at: FORM }));
        }
    }

    #[test]
    fn a_part_is_checked_before_anybody_sees_it() {
        let refused = |change: fn(&mut Part)| {
            let mut part = Part { head: head(), pages: transaction(3).pages, end: None };
            change(&mut part);
            damaged(&encode(ORIGIN, &part))
        };
        assert!(refused(|part| part.pages.swap(0, 1)).contains("ascend"));
        assert!(refused(|part| part.pages[1].hash = PageHash(1)).contains("hash"));
        assert!(refused(|part| part.pages[2].image = vec![0; 511].into()).contains("page size is 512"));
        // The last part without what it says of the whole.
        let mut bytes = encode(ORIGIN, &Part { head: head(), pages: Vec::new(), end: None });
        bytes[FORM] = 1;
        assert!(damaged(&bytes).contains("base position"));
        assert_eq!(ORIGIN.node, NodeId(3));
    }
}
