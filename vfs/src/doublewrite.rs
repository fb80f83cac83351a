//! The double-write file of one database: what a checkpoint is about to write, made durable before it touches the main
//! file.
//!
//! A checkpoint overwrites pages of the main file in place. A crash in the middle leaves some old, some new, some torn:
//! the state of no position. So everything that a checkpoint will write goes here first and is synced; whoever opens the
//! database after a crash finds it complete and does it again, or finds it torn and knows that the main file was not
//! touched yet.
//!
//! ```text
//! offset size  field (little-endian)
//!      0    8  "SHOALDBW"
//!      8    4  version: 1
//!     12    4  page size
//!     16    8  id of the database
//!     24    8  generation
//!     32    8  from: position of the main file before
//!     40    8  position of the main file afterwards
//!     48    4  size afterwards, in pages
//!     52    4  number of pages that follow
//!     56   16  checksum of the database afterwards
//!     72    8  XXH3-64 of the list that follows
//!     80    8  XXH3-64 of the 80 bytes before
//!     88  24n  list: page number (4), zero (4), page hash (16), for each page, ascending
//!   88+24n     the pages, in the same order
//! ```
//!
//! It is complete if the head and the list have their hashes and each page has the hash that the list gives it. What lies
//! behind is left over from a larger one. The file is written again only when the position record of `mapfile.rs` says
//! that its work is done.
//!
//! Deliberately absent: what to do with it (`files.rs`).

use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::env::File;
use crate::mapfile::{Checkpointed, Owner};
use crate::page::{PageCount, PageHash, PageNo, PageSize};
use crate::transaction::Position;

const MAGIC: &[u8; 8] = b"SHOALDBW";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 88;
const LISTED_BYTES: usize = 24;
/// Pages go to the file in pieces of about this many bytes: large enough that a call costs nothing beside the copying.
const PIECE_BYTES: usize = 1 << 20;

/// One page of a checkpoint: which, and the hash of its content.
pub type Listed = (PageNo, PageHash);

/// What one checkpoint is about to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Position of the main file before it.
    pub from: Position,
    /// What the main file will be.
    pub to: Checkpointed,
    /// The pages that it writes, ascending, all within the size.
    pub pages: Vec<Listed>,
}

/// Writes the plan and its pages; `content` gives the pages in order. The caller syncs. Returns how many bytes that are.
pub fn write(
    file: &dyn File,
    owner: Owner,
    plan: &Plan,
    mut content: impl FnMut(PageNo, &mut Vec<u8>) -> io::Result<()>,
) -> io::Result<u64> {
    let mut bytes = encode_head(owner, plan);
    for (page, hash) in &plan.pages {
        bytes.extend_from_slice(&page.get().to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&hash.0.to_le_bytes());
    }
    let mut offset = 0;
    for (page, _) in &plan.pages {
        content(*page, &mut bytes)?;
        if bytes.len() >= PIECE_BYTES {
            file.write_at(&bytes, offset, "dw.write")?;
            offset += bytes.len() as u64;
            bytes.clear();
        }
    }
    file.write_at(&bytes, offset, "dw.write")?;
    Ok(offset + bytes.len() as u64)
}

fn encode_head(owner: Owner, plan: &Plan) -> Vec<u8> {
    let mut list = xxhash_rust::xxh3::Xxh3::new();
    for (page, hash) in &plan.pages {
        list.update(&page.get().to_le_bytes());
        list.update(&[0; 4]);
        list.update(&hash.0.to_le_bytes());
    }
    let mut head = Vec::with_capacity(HEAD_BYTES + plan.pages.len() * LISTED_BYTES);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&owner.page_size.bytes().to_le_bytes());
    head.extend_from_slice(&owner.database.to_le_bytes());
    head.extend_from_slice(&owner.generation.to_le_bytes());
    head.extend_from_slice(&plan.from.0.to_le_bytes());
    head.extend_from_slice(&plan.to.position.0.to_le_bytes());
    head.extend_from_slice(&plan.to.size.0.to_le_bytes());
    head.extend_from_slice(&(plan.pages.len() as u32).to_le_bytes());
    head.extend_from_slice(&plan.to.checksum.0.to_le_bytes());
    head.extend_from_slice(&list.digest().to_le_bytes());
    let sum = xxh3_64(&head);
    head.extend_from_slice(&sum.to_le_bytes());
    head
}

/// A complete double-write, ready to be done again.
#[derive(Debug)]
pub struct Complete {
    /// What it says.
    pub plan: Plan,
    file: Arc<dyn File>,
    page_size: PageSize,
}

impl Complete {
    /// The file.
    pub fn file(&self) -> &dyn File {
        &*self.file
    }

    /// Gives the pages of the list, one after the other: what [`write()`] and a checkpoint ask for.
    pub fn content(&self) -> impl FnMut(PageNo, &mut Vec<u8>) -> io::Result<()> {
        let mut next = 0;
        move |_, out| {
            out.extend(self.page(next)?);
            next += 1;
            Ok(())
        }
    }

    /// Content of the page at `place` in the list.
    pub fn page(&self, place: usize) -> io::Result<Vec<u8>> {
        let mut content = vec![0; self.page_size.len()];
        let pages = (HEAD_BYTES + self.plan.pages.len() * LISTED_BYTES) as u64;
        let offset = pages + place as u64 * u64::from(self.page_size.bytes());
        if self.file.read_at(&mut content, offset, "dw.read")? < content.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "double-write: ends too early"));
        }
        Ok(content)
    }
}

/// A double-write file as it is found.
#[derive(Debug)]
pub struct Found {
    /// Its length in bytes.
    pub len: u64,
    /// `None`: empty, torn, of another owner or version; the checkpoint that wrote it had not begun to touch the main file, or its
    /// work is done.
    pub complete: Option<Complete>,
}

/// Reads a double-write of `owner`, whose main file is at a position. Of one that does not go beyond that only the head is read: it
/// may be large, and every database has one.
pub fn read(file: Arc<dyn File>, owner: Owner, at: Position) -> io::Result<Found> {
    let len = file.len("dw.read")?;
    Ok(Found { len, complete: read_within(file, owner, at, len)? })
}

fn read_within(file: Arc<dyn File>, owner: Owner, at: Position, len: u64) -> io::Result<Option<Complete>> {
    let mut head = [0; HEAD_BYTES];
    if file.read_at(&mut head, 0, "dw.read")? < HEAD_BYTES {
        return Ok(None);
    }
    let Some((mut plan, count, list_sum)) = decode_head(&head, owner) else { return Ok(None) };
    let needed = HEAD_BYTES as u64 + count * (LISTED_BYTES as u64 + u64::from(owner.page_size.bytes()));
    if needed > len || plan.to.position <= at {
        return Ok(None);
    }
    // The file is that long, so the list is worth the memory.
    let mut list = vec![0; count as usize * LISTED_BYTES];
    if file.read_at(&mut list, HEAD_BYTES as u64, "dw.read")? < list.len() || xxh3_64(&list) != list_sum {
        return Ok(None);
    }
    for entry in list.as_chunks::<LISTED_BYTES>().0 {
        let mut number = [0; 4];
        number.copy_from_slice(&entry[..4]);
        let mut hash = [0; 16];
        hash.copy_from_slice(&entry[8..]);
        let Some(page) = PageNo::new(u32::from_le_bytes(number)) else { return Ok(None) };
        let ascends = plan.pages.last().is_none_or(|(last, _)| *last < page);
        if !ascends || !plan.to.size.contains(page) {
            return Ok(None);
        }
        plan.pages.push((page, PageHash(u128::from_le_bytes(hash))));
    }
    let complete = Complete { plan, file, page_size: owner.page_size };
    for (place, (page, hash)) in complete.plan.pages.iter().enumerate() {
        if PageHash::of(*page, &complete.page(place)?) != *hash {
            return Ok(None);
        }
    }
    Ok(Some(complete))
}

fn decode_head(head: &[u8; HEAD_BYTES], owner: Owner) -> Option<(Plan, u64, u64)> {
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&head[at..at + 4]);
        u32::from_le_bytes(bytes)
    };
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let known = &head[..8] == MAGIC
        && word(8) == VERSION
        && long(80) == xxh3_64(&head[..80])
        && word(12) == owner.page_size.bytes()
        && long(16) == owner.database
        && long(24) == owner.generation;
    if !known {
        return None;
    }
    let to = Checkpointed {
        position: Position(long(40)),
        size: PageCount(word(48)),
        checksum: PageHash(u128::from(long(56)) | u128::from(long(64)) << 64),
    };
    let plan = Plan { from: Position(long(32)), to, pages: Vec::new() };
    (to.size.0 > 0).then_some((plan, u64::from(word(52)), long(72)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::env::sim::SimFs;
    use crate::env::{Fs, Open};

    const SIZE: PageSize = PageSize::new(512).unwrap();
    const OWNER: Owner = Owner { database: 7, generation: 1, page_size: SIZE };
    const FROM: Position = Position(4);

    fn content(page: PageNo) -> Vec<u8> {
        vec![page.get() as u8; 512]
    }

    fn plan() -> Plan {
        let pages = [1u32, 2, 9]
            .map(|n| PageNo::new(n).unwrap())
            .map(|page| (page, PageHash::of(page, &content(page))))
            .to_vec();
        let to = Checkpointed { position: Position(20), size: PageCount(9), checksum: PageHash(5) };
        Plan { from: FROM, to, pages }
    }

    fn written() -> (SimFs, Arc<dyn File>) {
        let fs = SimFs::new(1);
        fs.create_dir_all(Path::new("/d"), "t").unwrap();
        let file = fs.open(Path::new("/d/dw"), Open::CreateNew, "t").unwrap();
        write(&*file, OWNER, &plan(), |page, out| {
            out.extend(content(page));
            Ok(())
        })
        .unwrap();
        (fs, file)
    }

    #[test]
    fn what_was_written_is_read() {
        let (_fs, file) = written();
        let complete = read(file, OWNER, FROM).unwrap().complete.unwrap();
        assert_eq!(complete.plan, plan());
        assert_eq!(complete.page(2).unwrap(), content(PageNo::new(9).unwrap()));
    }

    /// What a later version must still be able to end after a crash.
    #[test]
    fn version_1_looks_like_this() {
        let (_fs, file) = written();
        let mut bytes = vec![0; 88 + 3 * (24 + 512)];
        assert_eq!(file.read_at(&mut bytes, 0, "t").unwrap(), bytes.len());
        let u64s = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(bytes[..16], *b"SHOALDBW\x01\0\0\0\0\x02\0\0");
        assert_eq!(bytes[16..48], u64s(&[7, 1, 4, 20]));
        assert_eq!(bytes[48..56], [9, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[56..72], u64s(&[5, 0]));
        assert_eq!(bytes[72..88], u64s(&[0xee71_4e19_fbf2_a026, 0x5b4e_9303_a3ff_0f3a]));
        for (at, page) in [1u8, 2, 9].into_iter().enumerate() {
            let listed = &bytes[88 + 24 * at..][..24];
            assert_eq!(listed[..8], [page, 0, 0, 0, 0, 0, 0, 0]);
            assert!(bytes[88 + 3 * 24 + 512 * at..][..512].iter().all(|byte| *byte == page));
        }
        assert_eq!(bytes[96..112], u64s(&[0xeb1f_9cf9_2e00_baa4, 0x8d9f_a670_7564_e986]));
    }

    #[test]
    fn any_byte_that_is_not_what_it_was_makes_it_incomplete() {
        let (_fs, file) = written();
        let len = file.len("t").unwrap();
        assert_eq!(len, 88 + 3 * (24 + 512));
        for offset in 0..len {
            let mut byte = [0];
            file.read_at(&mut byte, offset, "t").unwrap();
            file.write_at(&[byte[0] ^ 0x40], offset, "t").unwrap();
            assert!(read(file.clone(), OWNER, FROM).unwrap().complete.is_none(), "byte {offset}");
            file.write_at(&byte, offset, "t").unwrap();
        }
        for cut in [0, 1, 87, 88, 100, len - 1] {
            let (_fs, file) = written();
            file.set_len(cut, "t").unwrap();
            assert!(read(file, OWNER, FROM).unwrap().complete.is_none(), "cut to {cut}");
        }
        assert!(read(file.clone(), OWNER, FROM).unwrap().complete.is_some());
        assert!(read(file.clone(), Owner { generation: 2, ..OWNER }, FROM).unwrap().complete.is_none());
        assert!(read(file, Owner { database: 8, ..OWNER }, FROM).unwrap().complete.is_none());
    }

    /// Each start read all of it, of every database.
    #[test]
    fn of_one_without_work_only_the_head_is_read() {
        for (at, is_there, bytes) in [(19, true, 88 + 3 * (24 + 512)), (20, false, 88), (21, false, 88)] {
            let (fs, file) = written();
            let before = fs.bytes_moved();
            assert_eq!(read(file, OWNER, Position(at)).unwrap().complete.is_some(), is_there, "{at}");
            assert_eq!(fs.bytes_moved() - before, bytes, "{at}");
        }
    }

    #[test]
    fn leftovers_of_a_larger_one_do_not_count() {
        let (_fs, file) = written();
        let small = Plan { pages: plan().pages[..1].to_vec(), ..plan() };
        write(&*file, OWNER, &small, |page, out| {
            out.extend(content(page));
            Ok(())
        })
        .unwrap();
        assert_eq!(read(file, OWNER, FROM).unwrap().complete.unwrap().plan, small);
    }
}
