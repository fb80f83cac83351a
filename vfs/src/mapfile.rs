//! The page-hash map of one database on disk, and the position that its main file is at.
//!
//! ```text
//! offset size  field (little-endian)
//!      0    8  "SHOALMAP"
//!      8    4  version: 1
//!     12    4  page size
//!     16    8  id of the database
//!     24    8  generation
//!     32    8  XXH3-64 of the 32 bytes before
//!    512   48  slot 0 ─┐ position records: the one with the higher sequence number that has its hash counts
//!   1024   48  slot 1 ─┘
//!   4096   16  hash of page 1, then of page 2, ...; zeros for the lock page
//!
//! slot
//!      0    8  sequence number, from 1; record n goes to slot n mod 2
//!      8    8  position: the main file is the database at this log index
//!     16    4  size of the database in pages
//!     20    4  zero
//!     24   16  checksum of the database
//!     40    8  XXH3-64 of the 40 bytes before, seeded with the id of the database
//! ```
//!
//! A slot lies in a sector of its own, so a torn write loses at most the record that was being written; the other one and
//! the double-write file (`doublewrite.rs`) say then what is to be redone. Entries beyond the size are left over from a
//! larger database and mean nothing.
//!
//! Deliberately absent: when what is written (`checkpoint.rs`), and hashes that are not on disk yet (`hashmap.rs`).

use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::env::File;
use crate::page::{PageCount, PageHash, PageNo, PageSize};
use crate::transaction::Position;

const MAGIC: &[u8; 8] = b"SHOALMAP";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 40;
const SLOT_BYTES: usize = 48;
const SLOT_OFFSETS: [u64; 2] = [512, 1024];
const ENTRIES: u64 = 4096;
const ENTRY_BYTES: u64 = 16;

/// Which database a file on disk belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Id of the database.
    pub database: u64,
    /// Which of the lives of its files; a snapshot that is installed begins a new one.
    pub generation: u64,
    /// Size of its pages.
    pub page_size: PageSize,
}

/// A state of the database that the main file has, whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpointed {
    /// Index of the last log entry in it.
    pub position: Position,
    /// Its size.
    pub size: PageCount,
    /// Its checksum.
    pub checksum: PageHash,
}

/// An open map file.
#[derive(Clone, Debug)]
pub struct MapFile {
    file: Arc<dyn File>,
    owner: Owner,
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn fixed<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

impl MapFile {
    /// Writes the head and the first position record; `first` are the hashes of its pages. The caller syncs.
    pub fn create(file: Arc<dyn File>, owner: Owner, at: Checkpointed, first: &[PageHash]) -> io::Result<MapFile> {
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        head[12..16].copy_from_slice(&owner.page_size.bytes().to_le_bytes());
        head[16..24].copy_from_slice(&owner.database.to_le_bytes());
        head[24..32].copy_from_slice(&owner.generation.to_le_bytes());
        let sum = xxh3_64(&head[..32]);
        head[32..].copy_from_slice(&sum.to_le_bytes());
        file.write_at(&head, 0, "map.create")?;
        let map = MapFile { file, owner };
        map.write_hashes(PageNo::FIRST, first, "map.create")?;
        map.write_slot(1, at, "map.create")?;
        Ok(map)
    }

    /// Opens a map and reads where the main file is, with the sequence number of that record. Fails with `InvalidData`,
    /// saying what is wrong, if this is not the map of `owner` or both records are damaged.
    pub fn open(file: Arc<dyn File>, owner: Owner) -> io::Result<(MapFile, u64, Checkpointed)> {
        let mut head = [0; HEAD_BYTES];
        let got = file.read_at(&mut head, 0, "map.open")?;
        if got < HEAD_BYTES || &head[..8] != MAGIC || fixed(&head, 32) != xxh3_64(&head[..32]).to_le_bytes() {
            return Err(damaged("page-hash map: no valid head".to_string()));
        }
        let version = u32::from_le_bytes(fixed(&head, 8));
        if version != VERSION {
            return Err(damaged(format!("page-hash map: version {version}; this program reads version {VERSION}")));
        }
        let found = (
            u32::from_le_bytes(fixed(&head, 12)),
            u64::from_le_bytes(fixed(&head, 16)),
            u64::from_le_bytes(fixed(&head, 24)),
        );
        let expected = (owner.page_size.bytes(), owner.database, owner.generation);
        if found != expected {
            return Err(damaged(format!(
                "page-hash map: of (page size, database, generation) {found:?}, expected {expected:?}"
            )));
        }
        let map = MapFile { file, owner };
        let mut newest = None;
        for offset in SLOT_OFFSETS {
            let mut slot = [0; SLOT_BYTES];
            let got = map.file.read_at(&mut slot, offset, "map.open")?;
            if got == SLOT_BYTES
                && let Some(record) = decode_slot(&slot, owner.database)
                && newest.is_none_or(|(sequence, _)| record.0 > sequence)
            {
                newest = Some(record);
            }
        }
        match newest {
            Some((sequence, at)) => Ok((map, sequence, at)),
            None => Err(damaged("page-hash map: both position records are damaged".to_string())),
        }
    }

    /// Which database this is the map of.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Hash of one page. `InvalidData` if the file is too short to have it.
    pub fn hash(&self, page: PageNo) -> io::Result<PageHash> {
        let mut entry = [0; ENTRY_BYTES as usize];
        if self.file.read_at(&mut entry, entry_offset(page), "map.read")? < entry.len() {
            return Err(damaged(format!("page-hash map: ends before page {}", page.get())));
        }
        Ok(PageHash(u128::from_le_bytes(entry)))
    }

    /// Hashes of `count` pages from `first` on; `None` for those that the file is too short to have.
    pub fn hashes(&self, first: PageNo, count: u32) -> io::Result<Vec<Option<PageHash>>> {
        let mut bytes = vec![0; count as usize * ENTRY_BYTES as usize];
        let got = self.file.read_at(&mut bytes, entry_offset(first), "map.read")? / ENTRY_BYTES as usize;
        let (entries, _) = bytes.as_chunks::<{ ENTRY_BYTES as usize }>();
        let decode = |(at, entry): (usize, &[u8; 16])| (at < got).then(|| PageHash(u128::from_le_bytes(*entry)));
        Ok(entries.iter().enumerate().map(decode).collect())
    }

    /// Writes the hashes of consecutive pages.
    pub fn write_hashes(&self, first: PageNo, hashes: &[PageHash], label: &'static str) -> io::Result<()> {
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0.to_le_bytes()).collect();
        self.file.write_at(&bytes, entry_offset(first), label)
    }

    /// Writes position record `sequence`. It may count once everything that it speaks of is durable, and only then.
    pub fn write_slot(&self, sequence: u64, at: Checkpointed, label: &'static str) -> io::Result<()> {
        self.file.write_at(
            &encode_slot(sequence, at, self.owner.database),
            SLOT_OFFSETS[(sequence % 2) as usize],
            label,
        )
    }

    /// Makes what was written durable.
    pub fn sync(&self, label: &'static str) -> io::Result<()> {
        self.file.sync_data(label)
    }
}

fn entry_offset(page: PageNo) -> u64 {
    ENTRIES + u64::from(page.get() - 1) * ENTRY_BYTES
}

fn encode_slot(sequence: u64, at: Checkpointed, database: u64) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(&sequence.to_le_bytes());
    slot[8..16].copy_from_slice(&at.position.0.to_le_bytes());
    slot[16..20].copy_from_slice(&at.size.0.to_le_bytes());
    slot[24..40].copy_from_slice(&at.checksum.0.to_le_bytes());
    let sum = xxh3_64_with_seed(&slot[..40], database);
    slot[40..].copy_from_slice(&sum.to_le_bytes());
    slot
}

fn decode_slot(slot: &[u8; SLOT_BYTES], database: u64) -> Option<(u64, Checkpointed)> {
    let sequence = u64::from_le_bytes(fixed(slot, 0));
    let sum = xxh3_64_with_seed(&slot[..40], database);
    if sequence == 0 || slot[40..] != sum.to_le_bytes() {
        return None;
    }
    let at = Checkpointed {
        position: Position(u64::from_le_bytes(fixed(slot, 8))),
        size: PageCount(u32::from_le_bytes(fixed(slot, 16))),
        checksum: PageHash(u128::from_le_bytes(fixed(slot, 24))),
    };
    (at.size.0 > 0).then_some((sequence, at))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::env::sim::SimFs;
    use crate::env::{Fs, Open};

    const OWNER: Owner = Owner { database: 7, generation: 1, page_size: PageSize::DEFAULT };

    fn at(position: u64) -> Checkpointed {
        Checkpointed { position: Position(position), size: PageCount(1), checksum: PageHash(position.into()) }
    }

    fn fresh() -> (SimFs, Arc<dyn File>, MapFile) {
        let fs = SimFs::new(1);
        fs.create_dir_all(Path::new("/d"), "t").unwrap();
        let file = fs.open(Path::new("/d/map"), Open::CreateNew, "t").unwrap();
        let map = MapFile::create(file.clone(), OWNER, at(3), &[PageHash(11)]).unwrap();
        (fs, file, map)
    }

    #[test]
    fn the_newer_record_counts_and_a_torn_one_leaves_the_older() {
        let (_fs, file, map) = fresh();
        assert_eq!(MapFile::open(file.clone(), OWNER).unwrap().2, at(3));
        map.write_slot(2, at(9), "t").unwrap();
        assert_eq!(MapFile::open(file.clone(), OWNER).unwrap().1, 2);
        map.write_slot(3, at(12), "t").unwrap();
        assert_eq!(MapFile::open(file.clone(), OWNER).unwrap().2, at(12));
        // Record 3 lies in slot 1: one byte of it is not what was written.
        file.write_at(&[0xff], SLOT_OFFSETS[1] + 9, "t").unwrap();
        assert_eq!(MapFile::open(file.clone(), OWNER).unwrap().2, at(9));
        file.write_at(&[0xff], SLOT_OFFSETS[0] + 9, "t").unwrap();
        assert!(MapFile::open(file, OWNER).unwrap_err().to_string().contains("both position records"));
    }

    #[test]
    fn another_databases_map_and_a_damaged_head_are_refused() {
        let (_fs, file, _) = fresh();
        let others = [
            Owner { database: 8, ..OWNER },
            Owner { generation: 2, ..OWNER },
            Owner { page_size: PageSize::new(512).unwrap(), ..OWNER },
        ];
        for other in others {
            assert!(MapFile::open(file.clone(), other).unwrap_err().to_string().contains("expected"));
        }
        for offset in 0..HEAD_BYTES as u64 {
            let (_fs, file, _) = fresh();
            file.write_at(&[0xa5], offset, "t").unwrap();
            assert!(MapFile::open(file, OWNER).is_err(), "byte {offset}");
        }
    }

    #[test]
    fn version_1_looks_like_this() {
        let (_fs, file, map) = fresh();
        map.write_hashes(PageNo::FIRST, &[PageHash(1), PageHash(2)], "t").unwrap();
        let mut bytes = vec![0; 4096 + 32];
        assert_eq!(file.read_at(&mut bytes, 0, "t").unwrap(), bytes.len());
        assert_eq!(bytes[..12], *b"SHOALMAP\x01\0\0\0");
        assert_eq!(bytes[12..32], [0, 16, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[1024..1024 + 20], [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[4096], 1);
        assert_eq!(bytes[4112], 2);
        assert_eq!(map.hash(PageNo::new(2).unwrap()).unwrap(), PageHash(2));
        assert!(map.hash(PageNo::new(3).unwrap()).is_err(), "beyond the end of the file");
    }
}
