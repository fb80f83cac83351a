//! What every fuzz target does with its bytes. Each is a plain function, so that `cargo test` can run it over the seeds
//! without a fuzzer, and a crash that the fuzzer found becomes a test by copying one file into `seeds/`.
//!
//! ```text
//! target    first byte selects                             what must hold besides "no panic"
//! entry     (nothing)                                      what decodes encodes, and comes back the same
//! wire      frame, message, hello, welcome, reject, found  the same
//! messages  snapshots, administration, SQL sessions,       the same, after one round
//!           receipts, context of a change (`fuzzed.rs`)
//! log       raw segment, edits of a good log, records      an opened log has no entry that was not written, takes another
//!           (`records.rs`)                                 one, and opens again with it
//! files     identity, catalogue, membership change,        what decodes encodes, and comes back the same; a receipt is one
//!           registry, receipt                              text
//! disk      map, double-write, all files of a database     a whole plan has its hashes; what opens is what its record says,
//!                                                          and opens again as the same
//! wal       WAL header, frame, virtual WAL, wal-index      a file is a file; a search of a damaged index ends; a header of
//!           (its header too, from 128 on)                  it comes back the same
//! sql       (structured: `arbitrary`)                      two connections to a node answer like two to a plain file
//! cluster   three or five cores                            Raft's promises, after each step (tests/cluster/schedule.rs)
//! ```
//!
//! Formats with a checksum would refuse nearly everything that a fuzzer makes. So a selector of 128 or more means that the
//! checksums are put right first (`mended.rs`), and the bytes are then read as the selector less 128 says: what lies behind the
//! checksums is reached. `disk` has selectors of its own for that, and of `log` the records are never without. Only
//! `entry` does without: behind the hash of a page there is nothing but the page.
//!
//! Each returns whether the bytes were taken, of a script whether it did something: what is no seed any more is
//! missed (`tests/seeds.rs`).

mod cluster;
mod disk;
mod mended;
mod records;
mod sql;

#[allow(dead_code, reason = "shared with the cluster tests, which use the rest")]
#[path = "../../tests/cluster/harness.rs"]
mod harness;

#[path = "../../tests/cluster/schedule.rs"]
mod schedule;

pub use cluster::cluster;
pub use disk::{disk, file_of_a_database};
pub use records::{Start, Step, Twist, written as records};
pub use sql::{Op, script, sql};

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use shoaldb::catalogue::Catalogue;
use shoaldb::entry::{self, Body};
use shoaldb::found::format::{FoundMessage, Identity};
use shoaldb::fuzzed;
use shoaldb::log::{Anchor, Batch, Log, LogOptions, Recovered};
use shoaldb::net::codec;
use shoaldb::net::frame::{self, FrameKind, Head};
use shoaldb::net::handshake::{Hello, Reject, Welcome};
use shoaldb::raft::MembershipChange;
use shoaldb::registry;
use shoaldb::types::{
    ClusterId, EntryClass, EntryId, GENESIS, HardState, LogEntry, LogIndex, Membership, NodeId, Term,
};
use shoaldb_vfs::env::sim::SimFs;
use shoaldb_vfs::env::{Fs, Open};
use shoaldb_vfs::page::{PageNo, PageSize};
use shoaldb_vfs::wal::checksum::{ByteOrder, Checksum};
use shoaldb_vfs::wal::frame::{FrameHeader, FrameNo};
use shoaldb_vfs::wal::header::WalHeader;
use shoaldb_vfs::wal::index::{self, IndexHeader, IndexMemory, REGION_BYTES};
use shoaldb_vfs::wal::store::VirtualWal;

/// The payload of a log entry.
pub fn entry(data: &[u8]) -> bool {
    let _ = entry::peek(data);
    let _ = entry::split::peek(data);
    let Ok(payload) = entry::decode(data) else { return false };
    // A checkpoint of another version may carry anything, which nobody keeps.
    let again = entry::encode(&payload).expect("what was decoded fits an entry");
    assert_eq!(entry::decode(&again).as_ref(), Ok(&payload));
    if let Body::Transaction { transaction, .. } = &payload.body {
        transaction.check().expect("a decoded transaction keeps its invariant");
        entry::check_hashes(&transaction.pages).expect("a decoded page has its hash");
    }
    if let Body::Part(part) = &payload.body {
        assert_eq!(part.head.last, part.end.is_some());
        entry::check_hashes(&part.pages).expect("a decoded page has its hash");
    }
    true
}

/// Splits off the selector: what it selects, and the bytes, put right if it says so.
fn selected(data: &[u8], mend: impl Fn(u8, &mut Vec<u8>)) -> Option<(u8, Vec<u8>)> {
    let (selector, body) = data.split_first()?;
    let (selector, mut body) = (*selector, body.to_vec());
    if selector >= 128 {
        mend(selector - 128, &mut body);
    }
    Some((selector % 128, body))
}

/// What comes from the network.
pub fn wire(data: &[u8]) -> bool {
    let mend = |selector: u8, body: &mut Vec<u8>| {
        if selector.is_multiple_of(7) {
            mended::frame(body);
        }
    };
    let Some((selector, body)) = selected(data, mend) else { return false };
    match selector % 7 {
        0 => framed(&body),
        1 => in_frame(FrameKind::Message, &body),
        2 => in_frame(FrameKind::Hello, &body),
        3 => in_frame(FrameKind::Welcome, &body),
        4 => in_frame(FrameKind::Reject, &body),
        _ => in_frame(FrameKind::Found, &body),
    }
}

fn framed(bytes: &[u8]) -> bool {
    let Some((head, body)) = bytes.split_first_chunk::<{ frame::HEAD }>() else { return false };
    let Ok(head) = Head::parse(head) else { return false };
    assert!(head.len <= head.kind.limit());
    if head.check(body).is_err() {
        return false;
    }
    let mut out = Vec::new();
    frame::put(&mut out, head.kind, |out| out.extend_from_slice(body)).expect("within the limit");
    assert_eq!(out, bytes);
    in_frame(head.kind, body)
}

/// The body of a frame.
fn in_frame(kind: FrameKind, body: &[u8]) -> bool {
    let mut out = Vec::new();
    match kind {
        FrameKind::Message => {
            let Ok(message) = codec::decode(&Bytes::copy_from_slice(body)) else { return false };
            codec::encode(&message, &mut out);
            assert!(out.len() <= codec::size(&message));
            assert_eq!(codec::decode(&out.into()), Ok(message));
        }
        FrameKind::Hello => {
            let Ok(hello) = Hello::decode(body) else { return false };
            hello.encode(&mut out);
            assert_eq!(Hello::decode(&out), Ok(hello));
        }
        FrameKind::Welcome => {
            let Ok(welcome) = Welcome::decode(body) else { return false };
            welcome.encode(&mut out);
            assert_eq!(Welcome::decode(&out), Ok(welcome));
        }
        FrameKind::Reject => {
            let Ok(reject) = Reject::decode(body) else { return false };
            reject.encode(&mut out);
            assert_eq!(Reject::decode(&out), Ok(reject));
        }
        FrameKind::Found => {
            let Ok(message) = FoundMessage::decode(body) else { return false };
            assert_eq!(FoundMessage::decode(&message.encode()), Ok(message));
        }
        // A number, and what the target `messages` has.
        FrameKind::Request | FrameKind::Response => return body.len() >= 8,
    }
    true
}

const DIR: &str = "/log";
const OPTIONS: LogOptions = LogOptions { segment_bytes: 4096, spares: 1 };
/// Entries that are appended before the damage, in batches of two: some segments' worth.
const WRITTEN: u64 = 40;

fn log_entry(index: u64) -> LogEntry {
    let id = EntryId { index: LogIndex(index), term: Term(1 + index / 16) };
    let data = (0..200).map(|i| (index as u8).wrapping_mul(31).wrapping_add(i)).collect::<Vec<u8>>();
    LogEntry { id, class: EntryClass::Normal, data: data.into() }
}

/// The files of a log of so many entries, in order.
fn written_log(entries: u64) -> Vec<(String, Vec<u8>)> {
    let fs = SimFs::new(1);
    let membership = Membership { voters: vec![NodeId(1)], ..Membership::default() };
    let anchor = Anchor { applied: GENESIS.index, membership, registry: Bytes::from_static(b"registry") };
    let hard_state = HardState { term: GENESIS.term, vote: None, commit: GENESIS.index };
    let door: Arc<dyn Fs> = Arc::new(fs.clone());
    let log = Log::create(door, Path::new(DIR), ClusterId(7), OPTIONS, GENESIS, anchor, hard_state).expect("create");
    for index in (2..entries).step_by(2) {
        let entries = vec![log_entry(index), log_entry(index + 1)];
        let hard_state = HardState { term: entries[1].id.term, vote: Some(NodeId(1)), commit: LogIndex(index - 1) };
        log.append(&Batch { entries, hard_state: Some(hard_state), anchor: None }).expect("append");
    }
    drop(log);
    let files = fs.list(Path::new(DIR), "fuzz.list").expect("list").into_iter().filter(|name| name.ends_with(".seg"));
    let bytes = |name: &str| fs.peek(&Path::new(DIR).join(name)).expect("it was listed");
    files.map(|name| (name.clone(), bytes(&name))).collect()
}

/// The bytes of a good segment, as a seed.
pub fn first_segment() -> Vec<u8> {
    // No other one follows: the log would not be whole without it.
    let files = written_log(7);
    assert_eq!(files.len(), 1);
    files.into_iter().next().expect("a log has a segment").1
}

/// Recovery of a log over bytes that are not what was written.
pub fn log(data: &[u8]) -> bool {
    let Some((selector, rest)) = data.split_first() else { return false };
    let mend = *selector >= 128;
    let files = match selector % 128 % 3 {
        // The file of a first segment, as it comes.
        0 => {
            let mut bytes = rest.to_vec();
            if mend {
                mended::segments([&mut bytes]);
            }
            vec![("0000000000000001.seg".to_string(), bytes)]
        }
        // Edits of a good log: which file, where, what; or a cut at that place.
        1 => {
            let mut files = written_log(WRITTEN);
            for edit in rest.chunks_exact(5).take(64) {
                let at = edit[0] as usize % files.len();
                edit_bytes(&mut files[at].1, edit);
            }
            if mend {
                mended::segments(files.iter_mut().map(|(_, bytes)| bytes));
            }
            files
        }
        _ => return records::log(rest),
    };
    let written = selector % 128 % 3 == 1 && !mend;
    opened(files, |_, entries| {
        for entry in entries.iter().filter(|_| written) {
            assert_eq!(*entry, log_entry(entry.id.index.0), "an entry that nobody wrote");
        }
    })
}

/// Opens a log of these files, shows what is in it, and builds on it. Returns whether it opened.
fn opened(files: Vec<(String, Vec<u8>)>, look: impl FnOnce(&Recovered, &[LogEntry])) -> bool {
    let fs = SimFs::new(1);
    fs.create_dir_all(Path::new(DIR), "fuzz.dir").expect("directory");
    for (name, bytes) in files {
        let file = fs.open(&Path::new(DIR).join(name), Open::CreateNew, "fuzz.create").expect("create");
        file.write_at(&bytes, 0, "fuzz.write").expect("write");
    }
    let door: Arc<dyn Fs> = Arc::new(fs);
    let Ok((log, recovered)) = Log::open(door.clone(), Path::new(DIR), OPTIONS) else { return false };
    assert!(recovered.start <= recovered.last);
    let mut entries: Vec<LogEntry> = Vec::new();
    let mut index = recovered.start.index.next();
    while index <= recovered.last.index {
        let more = log.entries(index, recovered.last.index.next(), 1 << 16).expect("what opening accepted reads back");
        entries.extend(more);
        index = entries.last().expect("not empty").id.index.next();
    }
    assert!(entries.is_sorted_by_key(|entry| entry.id.term));
    look(&recovered, &entries);
    // What was accepted can be built on, and is still there afterwards.
    let mut id = EntryId { index: recovered.last.index.next(), term: recovered.last.term };
    let entry = |id| LogEntry { id, class: EntryClass::Normal, data: Bytes::from_static(b"more") };
    log.append(&Batch { entries: vec![entry(id)], ..Batch::default() }).expect("what was accepted can be built on");
    drop(log);
    let (log, again) = Log::open(door.clone(), Path::new(DIR), OPTIONS).expect("what was appended to opens");
    assert_eq!(again, Recovered { last: id, cut: None, ..recovered.clone() });
    // So can its middle, if that is not committed.
    let committed = recovered.hard_state.commit.max(recovered.anchor.applied);
    id = EntryId {
        index: LogIndex(recovered.start.index.0.midpoint(id.index.0) + 1),
        term: Term(id.term.0.saturating_add(1)),
    };
    let replaced = log.append(&Batch { entries: vec![entry(id)], ..Batch::default() });
    assert_eq!(replaced.is_ok(), id.index > committed, "{replaced:?}");
    drop(log);
    let (_, last) = Log::open(door, Path::new(DIR), OPTIONS).expect("what was appended to opens");
    assert_eq!(last.last, if replaced.is_ok() { id } else { again.last });
    true
}

/// Small files and values that hold a node's memory of itself.
pub fn files(data: &[u8]) -> bool {
    let mend = |selector: u8, body: &mut Vec<u8>| match selector % 5 {
        0 | 1 => mended::sealed(body),
        3 => mended::registry(body),
        _ => {}
    };
    let Some((selector, body)) = selected(data, mend) else { return false };
    let body = &body[..];
    match selector % 5 {
        0 => {
            let Ok(identity) = Identity::decode(body) else { return false };
            assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
        }
        1 => {
            let Ok(catalogue) = Catalogue::decode(body) else { return false };
            assert_eq!(Catalogue::decode(&catalogue.encode()).as_ref().ok(), Some(&catalogue));
        }
        2 => {
            let Ok(change) = MembershipChange::decode(&Bytes::copy_from_slice(body)) else { return false };
            assert_eq!(MembershipChange::decode(&change.encode()), Ok(change));
        }
        3 => {
            let Ok(read) = registry::decode(body) else { return false };
            let again = registry::decode(&registry::encode(&read.catalogue, &read.generations, read.aftermath))
                .expect("as it was written");
            assert_eq!(again.catalogue, read.catalogue);
            let listed = |registry: &registry::Registry| {
                let listed =
                    registry.generations.iter().filter(|(_, generation)| **generation != registry::FIRST_GENERATION);
                listed.map(|(id, generation)| (*id, *generation)).collect::<Vec<_>>()
            };
            assert_eq!(listed(&again), listed(&read));
            assert_eq!(again.aftermath, read.aftermath);
        }
        _ => {
            let Ok(text) = std::str::from_utf8(body) else { return false };
            let Ok(receipt) = text.parse::<shoaldb::Receipt>() else { return false };
            assert_eq!(receipt.to_string(), text, "one receipt, one text");
        }
    }
    true
}

/// What nodes, programs and people say to each other, and small values that go with it.
pub fn messages(data: &[u8]) -> bool {
    let kind = |selector: u8| fuzzed::Kind::ALL[usize::from(selector) % fuzzed::Kind::ALL.len()];
    let Some((selector, body)) = selected(data, |selector, body| mended::message(kind(selector), body)) else {
        return false;
    };
    let kind = kind(selector);
    let Some(once) = fuzzed::again(kind, &body) else { return false };
    if kind == fuzzed::Kind::AdminReply && serde_json::from_slice(&once).is_ok_and(|reply| has_real(&reply)) {
        // An answer may hold any JSON; a real in it comes back within one unit of its last place only.
        return true;
    }
    let twice = fuzzed::again(kind, &once);
    assert!(twice.as_ref() == Some(&once), "{kind:?}: {once:x?}, then {twice:x?}");
    true
}

/// Whether there is a number in it that is no integer.
fn has_real(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_real),
        Value::Object(fields) => fields.values().any(has_real),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// A wal-index in plain memory, with whatever bytes.
struct Memory(Vec<RefCell<Vec<u8>>>);

impl IndexMemory for Memory {
    fn regions(&self) -> usize {
        self.0.len()
    }

    fn extend_to(&mut self, regions: usize) -> io::Result<()> {
        if regions > 4 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        while self.0.len() < regions {
            self.0.push(RefCell::new(vec![0; REGION_BYTES]));
        }
        Ok(())
    }

    fn load_u32(&self, region: usize, offset: usize) -> u32 {
        let region = self.0[region].borrow();
        let bytes = &region[offset..offset + 4];
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn store_u32(&self, region: usize, offset: usize, value: u32) {
        self.0[region].borrow_mut()[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn load_u16(&self, region: usize, offset: usize) -> u16 {
        let region = self.0[region].borrow();
        u16::from_ne_bytes([region[offset], region[offset + 1]])
    }

    fn store_u16(&self, region: usize, offset: usize, value: u16) {
        self.0[region].borrow_mut()[offset..offset + 2].copy_from_slice(&value.to_ne_bytes());
    }
}

/// What SQLite and we write into the WAL and its index.
pub fn wal(data: &[u8]) -> bool {
    let mend = |selector: u8, body: &mut Vec<u8>| match selector % 4 {
        0 => mended::wal_header(body),
        1 => mended::wal_frame(body),
        _ => {}
    };
    let Some((selector, body)) = selected(data, mend) else { return false };
    match selector % 4 {
        0 => {
            let Ok(header) = WalHeader::decode(&body) else { return false };
            assert_eq!(WalHeader::decode(&header.encode()), Ok(header));
            true
        }
        1 => {
            let Ok(header) = FrameHeader::decode(&body) else { return false };
            assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
            let image = &body[header.encode().len()..];
            let verified = header.verify(image, header.salts, ByteOrder::NATIVE, Checksum::default());
            assert!(verified.is_err() || verified == Ok(header.checksum));
            verified.is_ok()
        }
        2 => virtual_wal(&body),
        _ => damaged_index(&body, data[0] >= 128),
    }
}

/// Writes, reads and cuts of a virtual WAL do what they do to a file.
fn virtual_wal(script: &[u8]) -> bool {
    let mut wal = VirtualWal::new(PageSize::new(512).expect("a page size"));
    let mut file: Vec<u8> = Vec::new();
    for step in script.chunks_exact(4) {
        let offset = usize::from(u16::from_le_bytes([step[0], step[1]])) % 8192;
        let len = usize::from(step[2]) * 3;
        if step[3] % 8 == 0 {
            wal.truncate(offset as u64);
            file.truncate(offset);
            continue;
        }
        let bytes = vec![step[3]; len];
        wal.write_bytes(offset as u64, &bytes).expect("within the numbers");
        if len > 0 {
            file.resize(file.len().max(offset + len), 0);
            file[offset..offset + len].copy_from_slice(&bytes);
        }
    }
    assert_eq!(wal.size(), file.len() as u64);
    let mut read = vec![0; file.len() + 10];
    assert_eq!(wal.read(&mut read, 0), file.len());
    assert_eq!(read[..file.len()], file);
    script.len() >= 4
}

/// A wal-index whose bytes somebody damaged: every search ends, every append succeeds or says why not. With `mend`, its header is
/// what copy `[0]` says, and taken only if that is one.
fn damaged_index(body: &[u8], mend: bool) -> bool {
    let mut memory = Memory(vec![RefCell::new(vec![0; REGION_BYTES])]);
    for place in body.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([place[0], place[1]])) % (REGION_BYTES - 1);
        memory.0[0].borrow_mut()[at..at + 2].copy_from_slice(&place[2..]);
    }
    if mend {
        mended::index_header(&mut memory.0[0].borrow_mut());
    }
    let header = index::read_header(&memory);
    if let Some(header) = header {
        assert_eq!(IndexHeader::decode(&header.encode()), Some(header));
        index::publish_header(&memory, &header);
        assert_eq!(index::read_header(&memory), Some(header));
    }
    for number in [1, 2, 383, u32::MAX] {
        let page = PageNo::new(number).expect("not 0");
        for max_frame in [0, 1, 4062, 4063, u32::MAX].into_iter().chain(header.map(|header| header.max_frame)) {
            let found = index::find(&memory, page, max_frame);
            assert!(found.is_none_or(|frame| frame.get() <= max_frame));
        }
        let _ = index::append(&mut memory, FrameNo::FIRST, page);
    }
    index::cleanup(&mut memory, 17);
    if mend { header.is_some() } else { body.len() >= 4 }
}

/// One edit of a file, as a fuzzer chooses it: of five bytes, two are the offset, one the kind (0 cuts, 1 zeros, all others
/// change a bit or more), one the value.
fn edit_bytes(bytes: &mut Vec<u8>, edit: &[u8]) {
    let at = usize::from(u16::from_le_bytes([edit[1], edit[2]])) % bytes.len().max(1);
    match edit[3] {
        0 => bytes.truncate(at),
        1 => bytes[at..].fill(0),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= edit[4];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every error and most answers were excused once, for a point or an `e` anywhere in them.
    #[test]
    fn only_real_numbers_are_excused() {
        let excused = |text: &str| has_real(&serde_json::from_str(text).unwrap());
        for text in [r#"{"err":{"kind":"busy","text":"1.5e3"}}"#, r#"{"ok":[1,null,true,{"e.":-2}]}"#] {
            assert!(!excused(text), "{text}");
        }
        for text in [r#"{"ok":1.0}"#, r#"{"ok":{"a":[1,{"b":4e43}]}}"#, "18446744073709551616"] {
            assert!(excused(text), "{text}");
        }
    }
}
