//! What travels when a node gets its databases from another one: asks and answers, as bytes.
//!
//! All integers are little-endian. An ask begins with the byte 0xB5, which no JSON text begins with, so that it may share a
//! door with administration.
//!
//! ```text
//! ask      0xB5, version u8 = 1, kind u8, then
//!   1 offer      term u64, start u64
//!   2 open       have u64
//!   3 fetch      view u64, object
//!   4 progress   view u64, phase u8, done u64, total u64
//!   5 done       view u64, outcome u8 (0 installed, 1 not needed, 2 given up), index u64
//!   6 open one   database u64, beyond u64
//!   7 sum        database u64, position u64
//!   8 open       have u64, shown u64, which is more
//!
//! object   kind u8, then
//!   0 manifest
//!   1 ranges     database u64, first u32, count u32
//!   2 hashes     database u64, count u32, that many range numbers u32
//!   3 pages      database u64, count u32, that many runs (first page u32, pages u32)
//!
//! answer   kind u8, then
//!   0 yes
//!   1 opened     view u64, index u64, term u64
//!   2 object     hash u128 (XXH3 of the bytes), bytes
//!   3 busy       milliseconds u32
//!   4 not needed
//!   5 gone       (no such view, or it is closed)
//!   6 no         length u16, text
//!   7 opened one hash u128 (XXH3 of what follows), view u64, index u64, term u64, database
//!   8 sum        hash u128 (XXH3 of what follows), position u64, checksum u128
//!   9 on its way hash u128 (XXH3 of what follows), index u64
//!
//! database id u64, page size u32, pages u32, position u64, checksum u128
//! manifest version u8 = 2, index u64, term u64, reach u64,
//!          voters, learners, outgoing voters, learners next: each count u32 and node ids u16; auto-leave u8,
//!          catalogue: length u32, bytes; count u32 of databases, each as above
//! ranges   one u128 for each: the XXH3 of the hashes of its pages (little-endian, in order)
//! hashes   one u128 for each page of each range named, in order
//! pages    the pages of each run, in order, nothing between
//! ```
//!
//! A *range* is [`RANGE_PAGES`] consecutive pages; range 0 begins with page 1. What an object is depends on the view and
//! its name alone: it may be asked for again, by anybody, in any order.
//!
//! Deliberately absent: where pages come from, and where they go.

use shoaldb_vfs::mapfile::Checkpointed;
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::planted::{self, Bug};
use shoaldb_vfs::transaction::Position;

use crate::catalogue::{Catalogue, DatabaseId};
use crate::fields::{Damaged, Reader, put_count, put_text};
use crate::types::{EntryId, LogIndex, Membership, NodeId, Term};

/// First byte of an ask.
pub(crate) const MAGIC: u8 = 0xB5;
const VERSION: u8 = 1;
const MANIFEST_VERSION: u8 = 2;
/// Pages whose hashes are hashed together.
pub(crate) const RANGE_PAGES: u32 = 64;
/// Bytes of content that an object has at most; larger asks are refused.
pub(crate) const OBJECT_BYTES: usize = 2 << 20;
/// Bytes of pages that are asked for at once. Each goes through a processor half a dozen times (socket, checksum, hashes, file), and
/// that is three times as quick as long as all of them fit into its cache.
pub(crate) const ASKED_BYTES: usize = 256 << 10;
const _: () = assert!(ASKED_BYTES <= OBJECT_BYTES);
/// Range hashes in one object, at most.
pub(crate) const RANGES_PER_OBJECT: u32 = 4096;
/// Ranges whose page hashes are in one object, at most.
pub(crate) const HASHED_RANGES: usize = 256;
/// Bytes of a reason.
const TEXT_BYTES: usize = 1024;
/// The kind of an answer that says: later.
const BUSY: u8 = 3;
/// Bytes of an answer before those of the object in it.
pub(crate) const OBJECT_HEAD: usize = 17;

/// A view that is lent: a random number, so that no view is ever taken for another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ViewId(pub(crate) u64);

/// How far the one who fetches is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Phase {
    Compare = 0,
    Fetch = 1,
    Verify = 2,
    Install = 3,
}

impl Phase {
    /// The phase in a word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Phase::Compare => "compare",
            Phase::Fetch => "fetch",
            Phase::Verify => "verify",
            Phase::Install => "install",
        }
    }
}

/// What became of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Outcome {
    Installed = 0,
    NotNeeded = 1,
    GivenUp = 2,
}

/// The name of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Object {
    Manifest,
    Ranges { database: DatabaseId, first: u32, count: u32 },
    Hashes { database: DatabaseId, ranges: Vec<u32> },
    Pages { database: DatabaseId, runs: Vec<(PageNo, u32)> },
}

/// What one node wants of another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// From the leader of `term`: your log ends before mine begins, behind `start`; open a view and fetch it.
    Offer {
        term: Term,
        start: LogIndex,
    },
    /// Lend me a view that goes beyond `have`. My databases show `shown`: where that is more than my log has, a snapshot brought it, and
    /// no reader may see it go back, so I'd keep such a database as it is. Of two views I like the one better that has as much.
    Open {
        have: LogIndex,
        shown: LogIndex,
    },
    Fetch {
        view: ViewId,
        object: Object,
    },
    Progress {
        view: ViewId,
        phase: Phase,
        done: u64,
        total: u64,
    },
    Done {
        view: ViewId,
        outcome: Outcome,
        index: LogIndex,
    },
    /// My copy of this database is damaged: lend me a view of yours, of entry `beyond` or a later one.
    OpenOne {
        database: DatabaseId,
        beyond: LogIndex,
    },
    /// What was the checksum of this database at that position?
    Sum {
        database: DatabaseId,
        at: Position,
    },
}

/// What the other one says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Yes,
    Opened {
        view: ViewId,
        at: EntryId,
    },
    Object {
        bytes: Vec<u8>,
    },
    Busy {
        millis: u32,
    },
    NotNeeded,
    Gone,
    No(String),
    /// A view of one database.
    OpenedOne {
        view: ViewId,
        at: EntryId,
        listed: Listed,
    },
    /// The checksum at the position that was asked for; or, if that is not known any more, at the one where the copy is now.
    Sum {
        position: Position,
        checksum: PageHash,
    },
    /// To an offer: yes, and a snapshot of this entry is being fetched or installed already. One that does not know this
    /// answer has made its offer all the same.
    OnItsWay {
        index: LogIndex,
    },
}

/// One database in a manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Listed {
    pub(crate) id: DatabaseId,
    pub(crate) page_size: PageSize,
    pub(crate) at: Checkpointed,
}

/// Object 0: everything that there is at one entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Manifest {
    /// The log begins behind this entry; members and catalogue are of it.
    pub(crate) at: EntryId,
    /// No page is of a later entry. The same, or a later one if a transaction is open in parts, or if main files are ahead of the
    /// log where this is lent.
    pub(crate) reach: LogIndex,
    pub(crate) membership: Membership,
    pub(crate) catalogue: Catalogue,
    /// Ascending by id; the ones of the catalogue but for those that are known to be dropped at or before `reach`.
    pub(crate) databases: Vec<Listed>,
}

/// How many ranges a database of this size has.
pub(crate) fn ranges_of(size: PageCount) -> u32 {
    size.0.div_ceil(RANGE_PAGES)
}

/// The pages of a range in a database of this size: the first, and how many.
pub(crate) fn pages_of(range: u32, size: PageCount) -> Option<(PageNo, u32)> {
    let before = range.checked_mul(RANGE_PAGES).filter(|before| *before < size.0)?;
    Some((PageNo::new(before + 1)?, RANGE_PAGES.min(size.0 - before)))
}

/// The hash of a range, from those of its pages.
pub(crate) fn range_hash(pages: &[PageHash]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(&hashes_as_bytes(pages))
}

/// Hashes as an object has them.
pub(crate) fn hashes_as_bytes(hashes: &[PageHash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0.to_le_bytes()).collect()
}

/// The numbers of an object that is nothing but 128-bit numbers.
pub(crate) fn numbers(bytes: &[u8]) -> Option<Vec<u128>> {
    let (numbers, rest) = bytes.as_chunks::<16>();
    rest.is_empty().then(|| numbers.iter().map(|number| u128::from_le_bytes(*number)).collect())
}

impl Object {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Object::Manifest => out.push(0),
            Object::Ranges { database, first, count } => {
                out.push(1);
                out.extend_from_slice(&database.0.to_le_bytes());
                out.extend_from_slice(&first.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
            }
            Object::Hashes { database, ranges } => {
                out.push(2);
                out.extend_from_slice(&database.0.to_le_bytes());
                put_count(out, ranges.len());
                ranges.iter().for_each(|range| out.extend_from_slice(&range.to_le_bytes()));
            }
            Object::Pages { database, runs } => {
                out.push(3);
                out.extend_from_slice(&database.0.to_le_bytes());
                put_count(out, runs.len());
                for (first, count) in runs {
                    out.extend_from_slice(&first.get().to_le_bytes());
                    out.extend_from_slice(&count.to_le_bytes());
                }
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Object, Damaged> {
        let kind = r.u8("object")?;
        if kind == 0 {
            return Ok(Object::Manifest);
        }
        let database = DatabaseId(r.u64("database")?);
        match kind {
            1 => Ok(Object::Ranges { database, first: r.u32("first range")?, count: r.u32("ranges")? }),
            2 => {
                let count = r.count(4, "ranges")?;
                let ranges = (0..count).map(|_| r.u32("range")).collect::<Result<_, _>>()?;
                Ok(Object::Hashes { database, ranges })
            }
            3 => {
                let count = r.count(8, "runs")?;
                let mut runs = Vec::with_capacity(count);
                for _ in 0..count {
                    runs.push((page(r, "first page")?, r.u32("pages")?));
                }
                Ok(Object::Pages { database, runs })
            }
            other => Err(r.damaged(format!("object of kind {other}"))),
        }
    }
}

fn page(r: &mut Reader<'_>, name: &str) -> Result<PageNo, Damaged> {
    let number = r.u32(name)?;
    PageNo::new(number).ok_or_else(|| r.damaged(format!("{name} is 0")))
}

impl Ask {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![MAGIC, VERSION];
        match self {
            Ask::Offer { term, start } => {
                out.push(1);
                out.extend_from_slice(&term.0.to_le_bytes());
                out.extend_from_slice(&start.0.to_le_bytes());
            }
            Ask::Open { have, shown } if shown <= have => {
                out.push(2);
                out.extend_from_slice(&have.0.to_le_bytes());
            }
            // Only where it says something: older programs do not know it.
            Ask::Open { have, shown } => {
                out.push(8);
                out.extend_from_slice(&have.0.to_le_bytes());
                out.extend_from_slice(&shown.0.to_le_bytes());
            }
            Ask::Fetch { view, object } => {
                out.push(3);
                out.extend_from_slice(&view.0.to_le_bytes());
                object.encode(&mut out);
            }
            Ask::Progress { view, phase, done, total } => {
                out.push(4);
                out.extend_from_slice(&view.0.to_le_bytes());
                out.push(*phase as u8);
                out.extend_from_slice(&done.to_le_bytes());
                out.extend_from_slice(&total.to_le_bytes());
            }
            Ask::Done { view, outcome, index } => {
                out.push(5);
                out.extend_from_slice(&view.0.to_le_bytes());
                out.push(*outcome as u8);
                out.extend_from_slice(&index.0.to_le_bytes());
            }
            Ask::OpenOne { database, beyond } => {
                out.push(6);
                out.extend_from_slice(&database.0.to_le_bytes());
                out.extend_from_slice(&beyond.0.to_le_bytes());
            }
            Ask::Sum { database, at } => {
                out.push(7);
                out.extend_from_slice(&database.0.to_le_bytes());
                out.extend_from_slice(&at.0.to_le_bytes());
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Ask, Damaged> {
        let mut r = Reader::new(bytes);
        let (magic, version) = (r.u8("magic")?, r.u8("version")?);
        if magic != MAGIC || version != VERSION {
            return Err(r.damaged(format!("version {version} of snapshots; this program speaks {VERSION}")));
        }
        let ask = match r.u8("kind")? {
            1 => Ask::Offer { term: Term(r.u64("term")?), start: LogIndex(r.u64("start")?) },
            2 => {
                let have = LogIndex(r.u64("have")?);
                Ask::Open { have, shown: have }
            }
            3 => Ask::Fetch { view: ViewId(r.u64("view")?), object: Object::decode(&mut r)? },
            4 => {
                let view = ViewId(r.u64("view")?);
                let phase = match r.u8("phase")? {
                    0 => Phase::Compare,
                    1 => Phase::Fetch,
                    2 => Phase::Verify,
                    3 => Phase::Install,
                    other => return Err(r.damaged(format!("phase {other}"))),
                };
                Ask::Progress { view, phase, done: r.u64("done")?, total: r.u64("total")? }
            }
            5 => {
                let view = ViewId(r.u64("view")?);
                let outcome = match r.u8("outcome")? {
                    0 => Outcome::Installed,
                    1 => Outcome::NotNeeded,
                    2 => Outcome::GivenUp,
                    other => return Err(r.damaged(format!("outcome {other}"))),
                };
                Ask::Done { view, outcome, index: LogIndex(r.u64("index")?) }
            }
            6 => Ask::OpenOne { database: DatabaseId(r.u64("database")?), beyond: LogIndex(r.u64("beyond")?) },
            7 => Ask::Sum { database: DatabaseId(r.u64("database")?), at: Position(r.u64("position")?) },
            8 => Ask::Open { have: LogIndex(r.u64("have")?), shown: LogIndex(r.u64("shown")?) },
            other => return Err(r.damaged(format!("ask of kind {other}"))),
        };
        r.end()?;
        Ok(ask)
    }
}

impl Answer {
    /// An object is moved in its buffer, not to another one, if that has room for [`OBJECT_HEAD`] bytes more.
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Answer::Yes => vec![0],
            Answer::Opened { view, at } => {
                let mut out = vec![1];
                for number in [view.0, at.index.0, at.term.0] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out
            }
            Answer::Object { bytes } => hashed(2, bytes),
            Answer::Busy { millis } => [&[BUSY][..], &millis.to_le_bytes()].concat(),
            Answer::NotNeeded => vec![4],
            Answer::Gone => vec![5],
            Answer::No(text) => {
                let mut out = vec![6];
                put_text(&mut out, &text, TEXT_BYTES);
                out
            }
            Answer::OpenedOne { view, at, listed } => {
                let mut body = Vec::new();
                for number in [view.0, at.index.0, at.term.0] {
                    body.extend_from_slice(&number.to_le_bytes());
                }
                listed.encode(&mut body);
                hashed(7, body)
            }
            Answer::Sum { position, checksum } => {
                hashed(8, [&position.0.to_le_bytes()[..], &checksum.0.to_le_bytes()].concat())
            }
            Answer::OnItsWay { index } => hashed(9, index.0.to_le_bytes().to_vec()),
        }
    }

    /// Whether these are the bytes of [`Answer::Busy`].
    pub(crate) fn is_later(bytes: &[u8]) -> bool {
        bytes.first() == Some(&BUSY)
    }

    /// An object whose bytes are not what was hashed is damaged. One that is right stays in its buffer.
    pub(crate) fn decode(mut bytes: Vec<u8>) -> Result<Answer, Damaged> {
        let mut r = Reader::new(&bytes);
        let answer = match r.u8("kind")? {
            0 => Answer::Yes,
            1 => {
                let view = ViewId(r.u64("view")?);
                let at = EntryId { index: LogIndex(r.u64("index")?), term: Term(r.u64("term")?) };
                Answer::Opened { view, at }
            }
            2 => {
                check_hash(&mut r, "object")?;
                bytes.drain(..OBJECT_HEAD);
                return Ok(Answer::Object { bytes });
            }
            BUSY => Answer::Busy { millis: r.u32("milliseconds")? },
            4 => Answer::NotNeeded,
            5 => Answer::Gone,
            6 => Answer::No(r.text(TEXT_BYTES, "reason")?.to_string()),
            7 => {
                r = Reader::new(check_hash(&mut r, "opened view")?);
                let view = ViewId(r.u64("view")?);
                let at = EntryId { index: LogIndex(r.u64("index")?), term: Term(r.u64("term")?) };
                let listed = Listed::decode(&mut r)?;
                if listed.at.position.0 > at.index.0 {
                    return Err(r.damaged(format!("database {} is not one of entry {}", listed.id, at.index)));
                }
                Answer::OpenedOne { view, at, listed }
            }
            8 => {
                r = Reader::new(check_hash(&mut r, "checksum")?);
                Answer::Sum { position: Position(r.u64("position")?), checksum: PageHash(r.u128("checksum")?) }
            }
            9 => {
                r = Reader::new(check_hash(&mut r, "entry")?);
                Answer::OnItsWay { index: LogIndex(r.u64("index")?) }
            }
            other => return Err(r.damaged(format!("answer of kind {other}"))),
        };
        r.end()?;
        Ok(answer)
    }
}

/// An answer of this kind whose bytes are vouched for by their hash.
fn hashed(kind: u8, mut bytes: Vec<u8>) -> Vec<u8> {
    let mut head = [kind; OBJECT_HEAD];
    head[1..].copy_from_slice(&xxhash_rust::xxh3::xxh3_128(&bytes).to_le_bytes());
    bytes.splice(..0, head);
    bytes
}

/// All that is left behind a hash, if it is what the hash says.
fn check_hash<'a>(r: &mut Reader<'a>, what: &str) -> Result<&'a [u8], Damaged> {
    let hash = r.u128("hash")?;
    let bytes = r.bytes(r.left(), what)?;
    let unverified = what == "object" && planted::is(Bug::InstallUnverified);
    match unverified || xxhash_rust::xxh3::xxh3_128(bytes) == hash {
        true => Ok(bytes),
        false => Err(r.damaged(format!("the {what} is not what its hash says"))),
    }
}

fn put_nodes(out: &mut Vec<u8>, nodes: &[NodeId]) {
    put_count(out, nodes.len());
    nodes.iter().for_each(|node| out.extend_from_slice(&node.0.to_le_bytes()));
}

fn nodes(r: &mut Reader<'_>, name: &str) -> Result<Vec<NodeId>, Damaged> {
    let count = r.count(2, name)?;
    (0..count).map(|_| r.node(name)).collect()
}

impl Listed {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.page_size.bytes().to_le_bytes());
        out.extend_from_slice(&self.at.size.0.to_le_bytes());
        out.extend_from_slice(&self.at.position.0.to_le_bytes());
        out.extend_from_slice(&self.at.checksum.0.to_le_bytes());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Listed, Damaged> {
        let id = DatabaseId(r.u64("database")?);
        let bytes = r.u32("page size")?;
        let page_size = PageSize::new(bytes).ok_or_else(|| r.damaged(format!("page size {bytes}")))?;
        let size = PageCount(r.u32("pages")?);
        if size.0 == 0 {
            return Err(r.damaged(format!("database {id} without a page")));
        }
        let position = Position(r.u64("position")?);
        let checksum = PageHash(r.u128("checksum")?);
        Ok(Listed { id, page_size, at: Checkpointed { position, size, checksum } })
    }
}

impl Manifest {
    /// Databases of the catalogue that are dropped at or before `reach`.
    pub(crate) fn gone(&self) -> Vec<DatabaseId> {
        let there = |id: &DatabaseId| self.databases.iter().any(|listed| listed.id == *id);
        self.catalogue.databases().map(|(id, _)| id).filter(|id| !there(id)).collect()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![MANIFEST_VERSION];
        out.extend_from_slice(&self.at.index.0.to_le_bytes());
        out.extend_from_slice(&self.at.term.0.to_le_bytes());
        out.extend_from_slice(&self.reach.0.to_le_bytes());
        let members = &self.membership;
        for list in [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next] {
            put_nodes(&mut out, list);
        }
        out.push(u8::from(members.auto_leave));
        let catalogue = self.catalogue.encode();
        put_count(&mut out, catalogue.len());
        out.extend_from_slice(&catalogue);
        put_count(&mut out, self.databases.len());
        self.databases.iter().for_each(|listed| listed.encode(&mut out));
        out
    }

    /// The manifest, if its databases are those of its catalogue.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, Damaged> {
        let mut r = Reader::new(bytes);
        let version = r.u8("version")?;
        if version != MANIFEST_VERSION {
            return Err(r.damaged(format!("version {version} of manifests")));
        }
        let at = EntryId { index: LogIndex(r.u64("index")?), term: Term(r.u64("term")?) };
        let reach = LogIndex(r.u64("reach")?);
        if reach < at.index {
            return Err(r.damaged(format!("pages of entry {reach} for a log that begins behind {}", at.index)));
        }
        let membership = Membership {
            voters: nodes(&mut r, "voters")?,
            learners: nodes(&mut r, "learners")?,
            voters_outgoing: nodes(&mut r, "outgoing voters")?,
            learners_next: nodes(&mut r, "learners next")?,
            auto_leave: r.bool("auto-leave")?,
        };
        let len = r.count(1, "catalogue")?;
        let catalogue =
            Catalogue::decode(r.bytes(len, "catalogue")?).map_err(|error| r.damaged(format!("catalogue: {error}")))?;
        let count = r.count(40, "databases")?;
        let mut databases = Vec::with_capacity(count);
        for _ in 0..count {
            databases.push(Listed::decode(&mut r)?);
        }
        r.end()?;
        // Those that are dropped between the log's beginning and the pages are not there any more.
        let gone = |id: DatabaseId| reach > at.index && databases.iter().all(|listed| listed.id != id);
        let named = catalogue.databases().filter(|(id, _)| !gone(*id)).map(|(id, info)| (id, info.page_size));
        if !named.eq(databases.iter().map(|listed| (listed.id, listed.page_size))) {
            return Err(r.damaged("the databases are not those of the catalogue"));
        }
        if let Some(beyond) = databases.iter().find(|listed| listed.at.position.0 > reach.0) {
            return Err(r.damaged(format!("database {} is not one of entry {reach}", beyond.id)));
        }
        Ok(Manifest { at, reach, membership, catalogue, databases })
    }
}

#[cfg(test)]
mod tests;
