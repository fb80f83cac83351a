//! What every fuzz target does with its bytes. Each is a plain function, so that `cargo test` can run it over the seeds
//! without a fuzzer, and a crash that the fuzzer found becomes a test by copying one file into `seeds/`.
//!
//! ```text
//! target    first byte selects                             what must hold besides "no panic"
//! entry     (nothing)                                      what decodes encodes, and comes back the same
//! wire      frame, message, hello, welcome, reject, found  the same
//! messages  snapshots, administration, SQL sessions,       the same, after one round
//!           receipts, context of a change (`fuzzed.rs`)
//! log       raw segment, or edits of a good log            an opened log has no entry that was not written, takes another
//!                                                          one, and opens again with it
//! files     identity, catalogue, membership change,        what decodes encodes, and comes back the same; a receipt is one
//!           registry, receipt                              text
//! disk      map, double-write, all files of a database     a whole plan has its hashes; what opens is what its record says,
//!                                                          and opens again as the same
//! wal       WAL header, frame, virtual WAL, wal-index      a file is a file; a search of a damaged index ends
//! sql       (structured: `arbitrary`)                      two connections to a node answer like two to a plain file
//! cluster   three or five cores                            Raft's promises, after each step (tests/cluster/schedule.rs)
//! ```
//!
//! Formats with a checksum would refuse nearly everything that a fuzzer makes. So every second selector means that the
//! checksum is put right first: then what lies behind it is reached.

mod cluster;
mod disk;
mod sql;

#[allow(dead_code, reason = "shared with the cluster tests, which use the rest")]
#[path = "../../tests/cluster/harness.rs"]
mod harness;

#[path = "../../tests/cluster/schedule.rs"]
mod schedule;

pub use cluster::cluster;
pub use disk::{disk, file_of_a_database};
pub use sql::sql;

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use shoaldb::catalogue::Catalogue;
use shoaldb::entry::{self, Body};
use shoaldb::found::format::{FoundMessage, Identity};
use shoaldb::fuzzed;
use shoaldb::log::{Anchor, Batch, Log, LogOptions};
use shoaldb::net::codec;
use shoaldb::net::frame::{self, Head};
use shoaldb::net::handshake::{Hello, Reject, Welcome};
use shoaldb::raft::MembershipChange;
use shoaldb::registry;
use shoaldb::types::{
    ClusterId, EntryClass, EntryId, GENESIS, HardState, LogEntry, LogIndex, Membership, NodeId, Term,
};
use shoaldb_vfs::env::Fs;
use shoaldb_vfs::env::sim::SimFs;
use shoaldb_vfs::page::{PageNo, PageSize};
use shoaldb_vfs::wal::checksum::{ByteOrder, Checksum};
use shoaldb_vfs::wal::frame::{FrameHeader, FrameNo};
use shoaldb_vfs::wal::header::WalHeader;
use shoaldb_vfs::wal::index::{self, IndexMemory, REGION_BYTES};
use shoaldb_vfs::wal::store::VirtualWal;

/// The payload of a log entry.
pub fn entry(data: &[u8]) {
    let _ = entry::peek(data);
    let _ = entry::split::peek(data);
    let Ok(payload) = entry::decode(data) else { return };
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
}

/// What comes from the network.
pub fn wire(data: &[u8]) {
    let Some((selector, body)) = data.split_first() else { return };
    match selector % 7 {
        0 => {
            let Some((head, body)) = body.split_first_chunk::<{ frame::HEAD }>() else { return };
            let Ok(head) = Head::parse(head) else { return };
            assert!(head.len <= head.kind.limit());
            if head.check(body).is_ok() {
                let mut out = Vec::new();
                frame::put(&mut out, head.kind, |out| out.extend_from_slice(body)).expect("within the limit");
                assert_eq!(out, data[1..]);
            }
        }
        1 => {
            let Ok(message) = codec::decode(&Bytes::copy_from_slice(body)) else { return };
            let mut out = Vec::new();
            codec::encode(&message, &mut out);
            assert!(out.len() <= codec::size(&message));
            assert_eq!(codec::decode(&out.into()), Ok(message));
        }
        2 => {
            let Ok(hello) = Hello::decode(body) else { return };
            let mut out = Vec::new();
            hello.encode(&mut out);
            assert_eq!(Hello::decode(&out), Ok(hello));
        }
        3 => {
            let Ok(welcome) = Welcome::decode(body) else { return };
            let mut out = Vec::new();
            welcome.encode(&mut out);
            assert_eq!(Welcome::decode(&out), Ok(welcome));
        }
        4 => {
            let Ok(reject) = Reject::decode(body) else { return };
            let mut out = Vec::new();
            reject.encode(&mut out);
            assert_eq!(Reject::decode(&out), Ok(reject));
        }
        _ => {
            let Ok(message) = FoundMessage::decode(body) else { return };
            assert_eq!(FoundMessage::decode(&message.encode()), Ok(message));
        }
    }
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

/// A log of [`WRITTEN`] entries, on a disk of its own.
fn written_log() -> (SimFs, Vec<String>) {
    let fs = SimFs::new(1);
    let membership = Membership { voters: vec![NodeId(1)], ..Membership::default() };
    let anchor = Anchor { applied: GENESIS.index, membership, registry: Bytes::from_static(b"registry") };
    let hard_state = HardState { term: GENESIS.term, vote: None, commit: GENESIS.index };
    let door: Arc<dyn Fs> = Arc::new(fs.clone());
    let log = Log::create(door, Path::new(DIR), ClusterId(7), OPTIONS, GENESIS, anchor, hard_state).expect("create");
    for index in (2..WRITTEN).step_by(2) {
        let entries = vec![log_entry(index), log_entry(index + 1)];
        let hard_state = HardState { term: entries[1].id.term, vote: Some(NodeId(1)), commit: LogIndex(index - 1) };
        log.append(&Batch { entries, hard_state: Some(hard_state), anchor: None }).expect("append");
    }
    drop(log);
    let files = fs.list(Path::new(DIR), "fuzz.list").expect("list");
    (fs, files.into_iter().filter(|name| name.ends_with(".seg")).collect())
}

/// The bytes of a good segment, as a seed.
pub fn first_segment() -> Vec<u8> {
    let (fs, files) = written_log();
    fs.peek(&Path::new(DIR).join(&files[0])).expect("a log has a segment")
}

/// Recovery of a log over bytes that are not what was written.
pub fn log(data: &[u8]) {
    let Some((selector, rest)) = data.split_first() else { return };
    let fs;
    if selector % 2 == 0 {
        // The file of a first segment, as it comes.
        fs = SimFs::new(1);
        fs.create_dir_all(Path::new(DIR), "fuzz.dir").expect("directory");
        let path = Path::new(DIR).join("0000000000000001.seg");
        let file = fs.open(&path, shoaldb_vfs::env::Open::CreateNew, "fuzz.create").expect("create");
        file.write_at(rest, 0, "fuzz.write").expect("write");
    } else {
        // Edits of a good log: which file, where, what; or a cut at that place.
        let (disk, files) = written_log();
        for edit in rest.chunks_exact(5).take(64) {
            let file = &files[edit[0] as usize % files.len()];
            disk.edit(&Path::new(DIR).join(file), |bytes| {
                edit_bytes(bytes, edit);
            });
        }
        fs = disk;
    }
    let door: Arc<dyn Fs> = Arc::new(fs.clone());
    let Ok((log, recovered)) = Log::open(door.clone(), Path::new(DIR), OPTIONS) else { return };
    assert!(recovered.start <= recovered.last);
    let mut index = recovered.start.index.next();
    while index <= recovered.last.index {
        let entries =
            log.entries(index, recovered.last.index.next(), 1 << 16).expect("what opening accepted reads back");
        assert!(!entries.is_empty());
        if selector % 2 == 1 {
            for entry in &entries {
                assert_eq!(*entry, log_entry(entry.id.index.0), "an entry that nobody wrote");
            }
        }
        index = entries.last().expect("not empty").id.index.next();
    }
    // What was accepted can be built on, and is still there afterwards.
    let Some(next) = recovered.last.index.0.checked_add(1).filter(|next| *next < 1 << 60) else { return };
    let id = EntryId { index: LogIndex(next), term: recovered.last.term };
    let more = LogEntry { id, class: EntryClass::Normal, data: Bytes::from_static(b"more") };
    if log.append(&Batch { entries: vec![more], ..Batch::default() }).is_err() {
        return;
    }
    drop(log);
    let (_, again) = Log::open(door, Path::new(DIR), OPTIONS).expect("what was appended to opens");
    assert_eq!(again.last, id);
}

/// The bytes, their last four being the CRC32C of the others.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let end = bytes.len().saturating_sub(4);
    bytes.truncate(end);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// Small files and values that hold a node's memory of itself.
pub fn files(data: &[u8]) {
    let Some((selector, body)) = data.split_first() else { return };
    let body = &if *selector >= 128 { sealed(body) } else { body.to_vec() }[..];
    match selector % 128 % 5 {
        0 => {
            let Ok(identity) = Identity::decode(body) else { return };
            assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
        }
        1 => {
            let Ok(catalogue) = Catalogue::decode(body) else { return };
            assert_eq!(Catalogue::decode(&catalogue.encode()).as_ref().ok(), Some(&catalogue));
        }
        2 => {
            let Ok(change) = MembershipChange::decode(&Bytes::copy_from_slice(body)) else { return };
            assert_eq!(MembershipChange::decode(&change.encode()), Ok(change));
        }
        3 => {
            let Ok(read) = registry::decode(body) else { return };
            let again = registry::decode(&registry::encode(&read.catalogue, &read.generations, read.aftermath))
                .expect("as it was written");
            assert_eq!(again.catalogue, read.catalogue);
            let listed = |registry: &registry::Registry| {
                let listed =
                    registry.generations.iter().filter(|(_, generation)| **generation != registry::FIRST_GENERATION);
                listed.map(|(id, generation)| (*id, *generation)).collect::<Vec<_>>()
            };
            assert_eq!(listed(&again), listed(&read));
        }
        _ => {
            let Ok(text) = std::str::from_utf8(body) else { return };
            let Ok(receipt) = text.parse::<shoaldb::Receipt>() else { return };
            assert_eq!(receipt.to_string(), text, "one receipt, one text");
        }
    }
}

/// What nodes, programs and people say to each other, and small values that go with it.
pub fn messages(data: &[u8]) {
    let Some((selector, body)) = data.split_first() else { return };
    let kind = fuzzed::Kind::ALL[usize::from(*selector) % 128 % fuzzed::Kind::ALL.len()];
    let body = &if *selector >= 128 { sealed(body) } else { body.to_vec() }[..];
    let Some(once) = fuzzed::again(kind, body) else { return };
    if kind == fuzzed::Kind::AdminReply && once.iter().any(|byte| matches!(byte, b'.' | b'e')) {
        // An answer may hold any JSON; a real in it comes back within one unit of its last place only.
        return;
    }
    let twice = fuzzed::again(kind, &once);
    assert!(twice.as_ref() == Some(&once), "{kind:?}: {once:x?}, then {twice:x?}");
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
pub fn wal(data: &[u8]) {
    let Some((selector, body)) = data.split_first() else { return };
    match selector % 4 {
        0 => {
            if let Ok(header) = WalHeader::decode(body) {
                assert_eq!(WalHeader::decode(&header.encode()), Ok(header));
            }
        }
        1 => {
            let Ok(header) = FrameHeader::decode(body) else { return };
            assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
            let image = &body[header.encode().len()..];
            let _ = header.verify(image, header.salts, ByteOrder::NATIVE, Checksum::default());
        }
        2 => virtual_wal(body),
        _ => damaged_index(body),
    }
}

/// Writes, reads and cuts of a virtual WAL do what they do to a file.
fn virtual_wal(script: &[u8]) {
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
}

/// A wal-index whose bytes somebody damaged: every search ends, every append succeeds or says why not.
fn damaged_index(body: &[u8]) {
    let mut memory = Memory(vec![RefCell::new(vec![0; REGION_BYTES])]);
    for place in body.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([place[0], place[1]])) % (REGION_BYTES - 1);
        memory.0[0].borrow_mut()[at..at + 2].copy_from_slice(&place[2..]);
    }
    let _ = index::read_header(&memory);
    for number in [1, 2, 383, u32::MAX] {
        let page = PageNo::new(number).expect("not 0");
        for max_frame in [0, 1, 4062, 4063, u32::MAX] {
            let found = index::find(&memory, page, max_frame);
            assert!(found.is_none_or(|frame| frame.get() <= max_frame));
        }
        let _ = index::append(&mut memory, FrameNo::FIRST, page);
    }
    index::cleanup(&mut memory, 17);
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
