//! The wal-index: which frame holds the newest version of a page.
//!
//! Memory that all connections of a database share, in regions of 32 KiB, in the byte order of the machine.
//!
//! ```text
//! region 0                                    every later region
//!     0   48  header, copy [0]                    0  16384  page numbers of 4096 frames
//!    48   48  header, copy [1]                16384  16384  hash table: 8192 slots of 2 bytes
//!    96    4  frames backfilled
//!   100   20  five read marks
//!   120    8  lock bytes (locks of ours live elsewhere)
//!   128    4  frames a checkpoint began to backfill
//!   132    4  unused
//!   136 16248 page numbers of 4062 frames
//! 16384 16384 hash table: 8192 slots of 2 bytes
//!
//! header
//!  0  4  format version 3007000           20  4  size of the database in pages
//!  4  4  unused                           24  8  running checksum of frame max_frame
//!  8  4  change counter                   32  8  salts, the very bytes of the WAL header (big-endian)
//! 12  1  1 once initialised               40  8  checksum of the 40 bytes before, machine order
//! 13  1  1: WAL sums big-endian words
//! 14  2  page size; 1 is 65536, 0 unknown
//! 16  4  max_frame: frames readers may see
//! ```
//!
//! *Look-up.* Page p starts at slot (p * 383) mod 8192 and goes on to the next slot until an empty one; each slot is the
//! 1-based place of a frame in this region's list. The newest wins; regions are searched from the newest to the oldest.
//! Readers ignore what lies beyond the `max_frame` they started with, so a writer may append under their eyes: entries
//! go in behind what readers know, and the header that makes them count is written last.
//!
//! *Header.* The writer fills copy `[1]`, then copy `[0]`, with a fence between; readers go the other way round and take
//! only two equal copies with a right checksum. A reader notices a new transaction by comparing the whole header with
//! the one it remembers, so everyone who publishes must bump the change counter, else page caches stay stale.
//!
//! *Leftovers.* A rolled-back transaction leaves entries beyond max_frame. They are removed before such a place is used
//! again: the first frame of a region clears the region, any other clears what lies behind it. Removing entries newer
//! than all readers cannot break a reader's chain: an older entry never lies behind a newer one's slot.
//!
//! All changes need the WRITE lock (read marks: the READ_LOCK of that mark), and none is taken here. Deliberately absent
//! besides locks: WAL recovery, since the index is never lost while the WAL is there, and the memory itself (`shm.rs`).

use std::io;
use std::sync::atomic::{Ordering, fence};

use crate::page::{PageCount, PageNo, PageSize};
use crate::wal::checksum::{ByteOrder, Checksum};
use crate::wal::frame::FrameNo;
use crate::wal::header::Salts;

/// Length of one region in bytes: what SQLite asks xShmMap for.
pub const REGION_BYTES: usize = 32768;
/// Length of one header copy in bytes.
pub const INDEX_HEADER_BYTES: usize = 48;
/// Number of read marks. Mark 0 stands for "reads nothing from the WAL" and is always 0.
pub const READ_MARKS: usize = 5;

const VERSION: u32 = 3_007_000;
const SUMMED_BYTES: usize = 40;
const BACKFILL: usize = 2 * INDEX_HEADER_BYTES;
const READ_MARK: usize = 100;
const BACKFILL_ATTEMPTED: usize = 128;
const FIRST_LIST: usize = 136;
const HASH: usize = 16384;
const SLOTS: u32 = 8192;
const FRAMES_FIRST: u32 = 4062;
const FRAMES_LATER: u32 = 4096;
const UNUSED_MARK: u32 = u32::MAX;

const _: () = assert!(FIRST_LIST + 4 * FRAMES_FIRST as usize == HASH);
const _: () = assert!(4 * FRAMES_LATER as usize == HASH && HASH + 2 * SLOTS as usize == REGION_BYTES);

/// The memory of a wal-index. Every access is one atomic load or store (relaxed is enough: this module puts the fences),
/// because SQLite's connections read and write the same memory at any time. Asking for a region that is not there is a
/// mistake of the caller.
pub trait IndexMemory {
    /// How many regions there are.
    fn regions(&self) -> usize;
    /// Makes sure that there are at least `regions`; new ones are zero.
    fn extend_to(&mut self, regions: usize) -> io::Result<()>;
    /// The 4 bytes at `offset` (a multiple of 4) of `region`.
    fn load_u32(&self, region: usize, offset: usize) -> u32;
    /// Changes the 4 bytes at `offset` (a multiple of 4) of `region`.
    fn store_u32(&self, region: usize, offset: usize, value: u32);
    /// The 2 bytes at `offset` (a multiple of 2) of `region`.
    fn load_u16(&self, region: usize, offset: usize) -> u16;
    /// Changes the 2 bytes at `offset` (a multiple of 2) of `region`.
    fn store_u16(&self, region: usize, offset: usize, value: u16);
}

/// The wal-index header, decoded: what one reader sees of the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexHeader {
    /// Changes with every transaction.
    pub change_counter: u32,
    /// Byte order of the WAL's checksums.
    pub order: ByteOrder,
    /// Page size; `None` if SQLite recovered an empty WAL and has written nothing since.
    pub page_size: Option<PageSize>,
    /// How many frames of the WAL readers may see.
    pub max_frame: u32,
    /// Size of the database.
    pub page_count: PageCount,
    /// The running checksum of the last of these frames; before the first one, of the WAL header.
    pub frame_checksum: Checksum,
    /// Salts of the WAL.
    pub salts: Salts,
}

impl IndexHeader {
    /// The bytes of one copy.
    pub fn encode(&self) -> [u8; INDEX_HEADER_BYTES] {
        let mut bytes = [0; INDEX_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&VERSION.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.change_counter.to_ne_bytes());
        bytes[12] = 1;
        bytes[13] = u8::from(self.order == ByteOrder::Big);
        bytes[14..16].copy_from_slice(&page_size_code(self.page_size).to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.max_frame.to_ne_bytes());
        bytes[20..24].copy_from_slice(&self.page_count.0.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.frame_checksum.0.to_ne_bytes());
        bytes[28..32].copy_from_slice(&self.frame_checksum.1.to_ne_bytes());
        bytes[32..36].copy_from_slice(&self.salts[0].to_be_bytes());
        bytes[36..40].copy_from_slice(&self.salts[1].to_be_bytes());
        let Checksum(s0, s1) = Checksum::default().update(&bytes[..SUMMED_BYTES], ByteOrder::NATIVE);
        bytes[40..44].copy_from_slice(&s0.to_ne_bytes());
        bytes[44..48].copy_from_slice(&s1.to_ne_bytes());
        bytes
    }

    /// Reads one copy; `None` unless it is initialised, of our version and has its checksum.
    pub fn decode(bytes: &[u8; INDEX_HEADER_BYTES]) -> Option<IndexHeader> {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |i: usize| u32::from_ne_bytes(words[i]);
        let computed = Checksum::default().update(&bytes[..SUMMED_BYTES], ByteOrder::NATIVE);
        if bytes[12] == 0 || word(0) != VERSION || computed != Checksum(word(10), word(11)) {
            return None;
        }
        Some(IndexHeader {
            change_counter: word(2),
            order: if bytes[13] == 0 { ByteOrder::Little } else { ByteOrder::Big },
            page_size: page_size_of_code(u16::from_ne_bytes([bytes[14], bytes[15]]))?,
            max_frame: word(4),
            page_count: PageCount(word(5)),
            frame_checksum: Checksum(word(6), word(7)),
            salts: [u32::from_be_bytes(words[8]), u32::from_be_bytes(words[9])],
        })
    }
}

/// 65536 does not fit into 16 bits; its lowest bit is free, as page sizes are even.
fn page_size_code(size: Option<PageSize>) -> u16 {
    size.map_or(0, |size| ((size.bytes() & 0xff00) | (size.bytes() >> 16)) as u16)
}

fn page_size_of_code(code: u16) -> Option<Option<PageSize>> {
    match code {
        0 => Some(None),
        1 => PageSize::new(65536).map(Some),
        code => PageSize::new(u32::from(code)).map(Some),
    }
}

/// The header, if both copies agree and are valid. `None` for an index that is not initialised and while the header is
/// being written.
pub fn read_header<M: IndexMemory + ?Sized>(memory: &M) -> Option<IndexHeader> {
    if memory.regions() == 0 {
        return None;
    }
    let first = load_copy(memory, 0);
    fence(Ordering::SeqCst);
    let second = load_copy(memory, 1);
    // What the caller reads next through this header must not be read before it.
    fence(Ordering::Acquire);
    if first == second { IndexHeader::decode(&first) } else { None }
}

/// Makes `header` what readers see. Needs WRITE; the entries that it counts must be appended already.
pub fn publish_header<M: IndexMemory + ?Sized>(memory: &M, header: &IndexHeader) {
    let bytes = header.encode();
    fence(Ordering::Release);
    store_copy(memory, 1, &bytes);
    fence(Ordering::SeqCst);
    store_copy(memory, 0, &bytes);
}

/// Makes both copies invalid. For tests of what happens then.
pub(crate) fn damage_header<M: IndexMemory + ?Sized>(memory: &M) {
    store_copy(memory, 0, &[0; INDEX_HEADER_BYTES]);
    store_copy(memory, 1, &[0; INDEX_HEADER_BYTES]);
}

fn load_copy<M: IndexMemory + ?Sized>(memory: &M, copy: usize) -> [u8; INDEX_HEADER_BYTES] {
    let mut bytes = [0; INDEX_HEADER_BYTES];
    for (i, place) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *place = memory.load_u32(0, copy * INDEX_HEADER_BYTES + 4 * i).to_ne_bytes();
    }
    bytes
}

fn store_copy<M: IndexMemory + ?Sized>(memory: &M, copy: usize, bytes: &[u8; INDEX_HEADER_BYTES]) {
    for (i, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
        memory.store_u32(0, copy * INDEX_HEADER_BYTES + 4 * i, u32::from_ne_bytes(*word));
    }
}

/// Makes a valid index in fresh memory, before the first connection looks at it, so that SQLite never recovers one: no
/// frame backfilled, no read mark in use.
pub fn init<M: IndexMemory + ?Sized>(memory: &mut M, header: &IndexHeader) -> io::Result<()> {
    memory.extend_to(1)?;
    set_backfill(memory, 0);
    set_backfill_attempted(memory, 0);
    set_read_mark(memory, 0, Some(0));
    for mark in 1..READ_MARKS {
        set_read_mark(memory, mark, None);
    }
    publish_header(memory, header);
    Ok(())
}

/// Starts a new lap: `header` (with max_frame 0, the new salts and the same change counter) is published and the
/// checkpoint info forgets the old lap. Needs WRITE and the exclusive READ_LOCKs of all marks but 0, so that nobody
/// reads from the WAL. The hash tables stay as they are: the first frame of a region clears it.
pub fn restart<M: IndexMemory + ?Sized>(memory: &M, header: &IndexHeader) {
    publish_header(memory, header);
    set_backfill(memory, 0);
    set_backfill_attempted(memory, 0);
    set_read_mark(memory, 1, Some(0));
    for mark in 2..READ_MARKS {
        set_read_mark(memory, mark, None);
    }
}

/// Enters that `frame` holds `page`. Readers do not see it until a header that counts it is published. What the index
/// knew of `frame` and those behind it is forgotten. Needs WRITE. Fails if there is no memory for another region, and on
/// a hash table that others have damaged.
pub fn append<M: IndexMemory + ?Sized>(memory: &mut M, frame: FrameNo, page: PageNo) -> io::Result<()> {
    let (region, place) = place_of(frame);
    if region >= memory.regions() {
        memory.extend_to(region + 1)?;
    }
    if place == 1 || memory.load_u32(region, list_offset(region, place)) != 0 {
        forget_behind(memory, region, place - 1);
    }
    let mut slot = first_slot(page);
    // At most place - 1 slots are taken; meeting more means that the table is not what it should be.
    for _ in 0..place {
        if memory.load_u16(region, slot_offset(slot)) == 0 {
            memory.store_u32(region, list_offset(region, place), page.get());
            memory.store_u16(region, slot_offset(slot), place as u16);
            return Ok(());
        }
        slot = (slot + 1) % SLOTS;
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("wal-index region {region}: no free slot for page {} of frame {frame} in {place} steps", page.get()),
    ))
}

/// Forgets the frames behind `max_frame`, after a rollback. Needs WRITE. Only the region of `max_frame` is touched;
/// later ones are cleared when their first frame comes, and so is everything if `max_frame` is 0.
pub fn cleanup<M: IndexMemory + ?Sized>(memory: &mut M, max_frame: u32) {
    let Some(frame) = FrameNo::new(max_frame) else { return };
    let (region, place) = place_of(frame);
    if region < memory.regions() {
        forget_behind(memory, region, place);
    }
}

/// The newest frame of `page` among the first `max_frame` frames.
pub fn find<M: IndexMemory + ?Sized>(memory: &M, page: PageNo, max_frame: u32) -> Option<FrameNo> {
    let (newest_region, _) = place_of(FrameNo::new(max_frame)?);
    (0..memory.regions().min(newest_region + 1)).rev().find_map(|region| find_in(memory, region, page, max_frame))
}

fn find_in<M: IndexMemory + ?Sized>(memory: &M, region: usize, page: PageNo, max_frame: u32) -> Option<FrameNo> {
    let mut newest = None;
    let mut slot = first_slot(page);
    for _ in 0..SLOTS {
        let place = u32::from(memory.load_u16(region, slot_offset(slot)));
        if place == 0 {
            break;
        }
        // A slot that is just being written may hold anything, so it is used only after these comparisons.
        let frame = frames_before(region).saturating_add(place);
        if place <= frames_in(region)
            && frame <= max_frame
            && memory.load_u32(region, list_offset(region, place)) == page.get()
        {
            newest = newest.max(FrameNo::new(frame));
        }
        slot = (slot + 1) % SLOTS;
    }
    newest
}

/// Frames `..=backfill` are in the database file.
pub fn backfill<M: IndexMemory + ?Sized>(memory: &M) -> u32 {
    memory.load_u32(0, BACKFILL)
}

/// See [`backfill`]. Needs CKPT to raise it, WRITE to set it to 0.
pub fn set_backfill<M: IndexMemory + ?Sized>(memory: &M, frames: u32) {
    memory.store_u32(0, BACKFILL, frames);
}

/// Frames `..=backfill_attempted` may be in the database file.
pub fn backfill_attempted<M: IndexMemory + ?Sized>(memory: &M) -> u32 {
    memory.load_u32(0, BACKFILL_ATTEMPTED)
}

/// See [`backfill_attempted`]. Needs CKPT.
pub fn set_backfill_attempted<M: IndexMemory + ?Sized>(memory: &M, frames: u32) {
    memory.store_u32(0, BACKFILL_ATTEMPTED, frames);
}

/// Read mark `mark`: readers that hold its READ_LOCK see at least this many frames. `None` if it is not in use.
pub fn read_mark<M: IndexMemory + ?Sized>(memory: &M, mark: usize) -> Option<u32> {
    assert!(mark < READ_MARKS, "read mark {mark}");
    Some(memory.load_u32(0, READ_MARK + 4 * mark)).filter(|&frames| frames != UNUSED_MARK)
}

/// See [`read_mark`]. Needs the exclusive READ_LOCK of `mark`.
pub fn set_read_mark<M: IndexMemory + ?Sized>(memory: &M, mark: usize, frames: Option<u32>) {
    assert!(mark < READ_MARKS, "read mark {mark}");
    memory.store_u32(0, READ_MARK + 4 * mark, frames.unwrap_or(UNUSED_MARK));
}

/// Region of a frame, and its place in the region's list, counted from 1.
fn place_of(frame: FrameNo) -> (usize, u32) {
    match frame.get().checked_sub(FRAMES_FIRST + 1) {
        None => (0, frame.get()),
        Some(later) => (1 + (later / FRAMES_LATER) as usize, later % FRAMES_LATER + 1),
    }
}

/// How many frames are listed in the regions before this one.
fn frames_before(region: usize) -> u32 {
    if region == 0 { 0 } else { FRAMES_FIRST + (region as u32 - 1) * FRAMES_LATER }
}

fn frames_in(region: usize) -> u32 {
    if region == 0 { FRAMES_FIRST } else { FRAMES_LATER }
}

fn list_offset(region: usize, place: u32) -> usize {
    (if region == 0 { FIRST_LIST } else { 0 }) + 4 * (place as usize - 1)
}

fn first_slot(page: PageNo) -> u32 {
    page.get().wrapping_mul(383) % SLOTS
}

fn slot_offset(slot: u32) -> usize {
    HASH + 2 * slot as usize
}

/// Clears list and hash table of a region behind its first `places` frames.
fn forget_behind<M: IndexMemory + ?Sized>(memory: &M, region: usize, places: u32) {
    for offset in (0..SLOTS).map(slot_offset) {
        if u32::from(memory.load_u16(region, offset)) > places {
            memory.store_u16(region, offset, 0);
        }
    }
    for place in places + 1..=frames_in(region) {
        memory.store_u32(region, list_offset(region, place), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    /// Regions in plain memory. New ones are full of rubbish at first use, as after an earlier lap.
    #[derive(Default)]
    struct Heap {
        bytes: RefCell<Vec<u8>>,
        rubbish: u8,
        limit: Option<usize>,
        /// Offsets of all 4-byte stores, in order.
        stores: RefCell<Vec<usize>>,
    }

    impl IndexMemory for Heap {
        fn regions(&self) -> usize {
            self.bytes.borrow().len() / REGION_BYTES
        }
        fn extend_to(&mut self, regions: usize) -> io::Result<()> {
            if self.limit.is_some_and(|limit| regions > limit) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let mut bytes = self.bytes.borrow_mut();
            if bytes.len() < regions * REGION_BYTES {
                bytes.resize(regions * REGION_BYTES, self.rubbish);
            }
            Ok(())
        }
        fn load_u32(&self, region: usize, offset: usize) -> u32 {
            let at = region * REGION_BYTES + offset;
            u32::from_ne_bytes(self.bytes.borrow()[at..at + 4].try_into().unwrap())
        }
        fn store_u32(&self, region: usize, offset: usize, value: u32) {
            let at = region * REGION_BYTES + offset;
            self.stores.borrow_mut().push(at);
            self.bytes.borrow_mut()[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        fn load_u16(&self, region: usize, offset: usize) -> u16 {
            let at = region * REGION_BYTES + offset;
            u16::from_ne_bytes(self.bytes.borrow()[at..at + 2].try_into().unwrap())
        }
        fn store_u16(&self, region: usize, offset: usize, value: u16) {
            let at = region * REGION_BYTES + offset;
            self.bytes.borrow_mut()[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
    }

    fn header() -> IndexHeader {
        IndexHeader {
            change_counter: 7,
            order: ByteOrder::NATIVE,
            page_size: Some(PageSize::DEFAULT),
            max_frame: 5,
            page_count: PageCount(9),
            frame_checksum: Checksum(0x0102_0304, 0x0506_0708),
            salts: [0x1122_3344, 0x5566_7788],
        }
    }

    /// What the index is to answer, the slow way.
    fn find_slowly(pages: &[u32], page: PageNo, max_frame: u32) -> Option<FrameNo> {
        let visible = &pages[..pages.len().min(max_frame as usize)];
        let at = visible.iter().rposition(|&number| number == page.get())?;
        FrameNo::new(at as u32 + 1)
    }

    /// Lists and hash tables hold exactly `pages`: as many slots are taken as frames are listed, and each is found.
    fn assert_holds(memory: &Heap, pages: &[u32]) {
        let Some(last) = FrameNo::new(pages.len() as u32) else { return };
        for region in 0..=place_of(last).0 {
            let taken = (0..SLOTS).filter(|&slot| memory.load_u16(region, slot_offset(slot)) != 0).count() as u32;
            assert_eq!(taken, (pages.len() as u32 - frames_before(region)).min(frames_in(region)), "region {region}");
        }
        for (i, &page) in pages.iter().enumerate() {
            let frame = i as u32 + 1;
            assert_eq!(find(memory, PageNo::new(page).unwrap(), frame), FrameNo::new(frame), "frame {frame}");
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        /// Append frames of pages in a narrow range, so that versions and collisions pile up.
        Append(Vec<u32>),
        /// Roll so many frames back, with or without a cleanup (a writer that vanished leaves its entries behind).
        RollBack(usize, bool),
        Restart,
    }

    fn page() -> impl Strategy<Value = u32> {
        // 8192 pages apart means the same first slot; the largest page number makes the product wrap.
        prop_oneof![1..40u32, (1..4u32).prop_map(|n| 1 + n * SLOTS), Just(u32::MAX), Just(u32::MAX - 1)]
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => prop::collection::vec(page(), 1..30).prop_map(Op::Append),
            4 => (1..40usize, any::<bool>()).prop_map(|(by, clean)| Op::RollBack(by, clean)),
            1 => Just(Op::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
        #[test]
        fn answers_as_a_list_of_pages_does(
            start in prop_oneof![Just(0usize), 4050..4064usize, 8146..8160usize],
            ops in prop::collection::vec(op(), 1..20),
            asked in prop::collection::vec((page(), 0..40u32), 1..60),
            rubbish in prop_oneof![Just(0u8), Just(0xab)],
        ) {
            let mut memory = Heap { rubbish, ..Heap::default() };
            let mut pages: Vec<u32> = Vec::new();
            let append_all = |memory: &mut Heap, pages: &mut Vec<u32>, new: &[u32]| {
                for &number in new {
                    pages.push(number);
                    append(memory, FrameNo::new(pages.len() as u32).unwrap(), PageNo::new(number).unwrap()).unwrap();
                }
            };
            append_all(&mut memory, &mut pages, &(0..start as u32).map(|i| 1 + i % 3000).collect::<Vec<_>>());
            for op in ops {
                match op {
                    Op::Append(new) => {
                        append_all(&mut memory, &mut pages, &new);
                        assert_holds(&memory, &pages);
                    }
                    Op::RollBack(by, clean) => {
                        pages.truncate(pages.len().saturating_sub(by));
                        if clean {
                            cleanup(&mut memory, pages.len() as u32);
                            assert_holds(&memory, &pages);
                        }
                    }
                    Op::Restart => pages.clear(),
                }
                for &(number, below) in &asked {
                    let page = PageNo::new(number).unwrap();
                    let max_frame = (pages.len() as u32).saturating_sub(below);
                    prop_assert_eq!(find(&memory, page, max_frame), find_slowly(&pages, page, max_frame));
                }
            }
        }
    }

    #[test]
    fn regions_begin_where_sqlite_says() {
        for (frame, place) in [
            (1, (0, 1)),
            (4061, (0, 4061)),
            (4062, (0, 4062)),
            (4063, (1, 1)),
            (8157, (1, 4095)),
            (8158, (1, 4096)),
            (8159, (2, 1)),
            (u32::MAX, (1_048_576, 33)),
        ] {
            let no = FrameNo::new(frame).unwrap();
            assert_eq!(place_of(no), place, "frame {frame}");
            assert_eq!(frames_before(place.0) + place.1, frame);
        }
        assert_eq!((list_offset(0, 1), list_offset(0, 4062), slot_offset(0)), (136, 16380, 16384));
        assert_eq!((list_offset(1, 1), list_offset(1, 4096), slot_offset(8191)), (0, 16380, 32766));
    }

    #[test]
    fn each_region_boundary_is_crossed_and_rolled_back() {
        for boundary in [4062u32, 8158] {
            for end in boundary - 1..=boundary + 1 {
                let mut memory = Heap { rubbish: 0xcd, ..Heap::default() };
                let pages: Vec<u32> = (0..end).map(|i| 1 + i % 500).collect();
                for (i, &number) in pages.iter().enumerate() {
                    append(&mut memory, FrameNo::new(i as u32 + 1).unwrap(), PageNo::new(number).unwrap()).unwrap();
                }
                assert_holds(&memory, &pages);
                for kept in (boundary - 1..=end).rev() {
                    cleanup(&mut memory, kept);
                    assert_holds(&memory, &pages[..kept as usize]);
                }
            }
        }
    }

    #[test]
    fn without_frames_nothing_is_found() {
        let mut memory = Heap::default();
        assert_eq!(find(&memory, PageNo::FIRST, 0), None);
        assert_eq!(find(&memory, PageNo::FIRST, 1), None, "no memory at all");
        assert_eq!(read_header(&memory), None);
        cleanup(&mut memory, 4063);
        append(&mut memory, FrameNo::FIRST, PageNo::FIRST).unwrap();
        assert_eq!(find(&memory, PageNo::FIRST, 0), None);
        assert_eq!(find(&memory, PageNo::FIRST, u32::MAX), Some(FrameNo::FIRST));
        cleanup(&mut memory, 0);
    }

    #[test]
    fn no_memory_for_another_region_is_an_error() {
        let mut memory = Heap { limit: Some(1), ..Heap::default() };
        append(&mut memory, FrameNo::new(4062).unwrap(), PageNo::FIRST).unwrap();
        assert!(append(&mut memory, FrameNo::new(4063).unwrap(), PageNo::FIRST).is_err());
    }

    #[test]
    fn a_damaged_hash_table_ends_every_search() {
        let mut memory = Heap::default();
        append(&mut memory, FrameNo::FIRST, PageNo::FIRST).unwrap();
        for slot in 0..SLOTS {
            memory.store_u16(0, slot_offset(slot), u16::MAX);
        }
        assert_eq!(find(&memory, PageNo::FIRST, u32::MAX), None);
        let error = append(&mut memory, FrameNo::new(2).unwrap(), PageNo::FIRST).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_header_survives_its_bytes_and_every_flipped_bit_is_noticed() {
        for page_size in [None, PageSize::new(512), PageSize::new(32768), PageSize::new(65536)] {
            for order in [ByteOrder::Little, ByteOrder::Big] {
                let header = IndexHeader { page_size, order, ..header() };
                assert_eq!(IndexHeader::decode(&header.encode()), Some(header));
            }
        }
        let good = header().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(IndexHeader::decode(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn two_headers_that_differ_are_none() {
        let mut memory = Heap::default();
        init(&mut memory, &header()).unwrap();
        assert_eq!(read_header(&memory), Some(header()));
        let next = IndexHeader { change_counter: 8, ..header() };
        store_copy(&memory, 1, &next.encode());
        assert_eq!(read_header(&memory), None, "between the two writes");
        memory.stores.borrow_mut().clear();
        publish_header(&memory, &next);
        assert_eq!(read_header(&memory), Some(next));
        let order: Vec<usize> = (48..96).step_by(4).chain((0..48).step_by(4)).collect();
        assert_eq!(*memory.stores.borrow(), order, "copy [1] before copy [0]");
    }

    #[test]
    fn checkpoint_info_starts_empty_and_a_restart_resets_it() {
        let mut memory = Heap { rubbish: 0xab, ..Heap::default() };
        init(&mut memory, &header()).unwrap();
        let marks = |memory: &Heap| [0, 1, 2, 3, 4].map(|mark| read_mark(memory, mark));
        assert_eq!((backfill(&memory), backfill_attempted(&memory)), (0, 0));
        assert_eq!(marks(&memory), [Some(0), None, None, None, None]);
        set_backfill_attempted(&memory, 5);
        set_backfill(&memory, 4);
        set_read_mark(&memory, 4, Some(3));
        assert_eq!((backfill(&memory), backfill_attempted(&memory)), (4, 5));
        assert_eq!(marks(&memory), [Some(0), None, None, None, Some(3)]);
        let fresh = IndexHeader { max_frame: 0, salts: [1, 2], ..header() };
        restart(&memory, &fresh);
        assert_eq!(read_header(&memory), Some(fresh));
        assert_eq!((backfill(&memory), backfill_attempted(&memory)), (0, 0));
        assert_eq!(marks(&memory), [Some(0), Some(0), None, None, None]);
    }
}
