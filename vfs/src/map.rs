//! Every memory map of a file, and so the only place where bytes of a file are read without a call that can fail.
//!
//! ```text
//! main file      of a database, mapped read-only as a whole for a read view; pieces of it are lent
//! scratch file   one file without a name, in chunks of 8 MiB; each chunk is mapped, read-only
//! chunk          so many slots of one piece each; unmapped, and its room on the disk given back, with its last slot
//! slot           written by one `pwrite` before anybody can read it, then never changed until its last reader is gone
//! ```
//!
//! What makes reading a main file through the map sound: nobody writes to what a view lends, and nobody cuts it off,
//! because the view has shut the gate in front of checkpoints (`view.rs`); a map holds the lock of its file, so that no
//! second opener can. Whether the file has a piece at all is asked of the file, each time.
//!
//! What makes reading scratch room through the map sound: the file has no name, so nobody else writes to it, and nobody cuts it;
//! bytes of a slot that somebody can see are not written to, because a slot is free only when its [`Piece`] was dropped.
//! A map could still fault, where a `read` would fail, on a page that the file does not have: so a piece is written by a
//! call, which is where a full disk shows. What is left is a disk that cannot read back what it took; the kernel ends
//! the process then (SIGBUS), which a replicated node survives as it survives any other crash.
//!
//! Mapped pages of a file are not anonymous memory: the kernel writes them out and drops them when it needs the room.
//!
//! Deliberately absent: when to keep bytes outside of memory (`spill.rs`), and durability: nothing here is synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};

use crate::transaction::PageBytes;

/// Bytes of one chunk: large enough that a gigabyte is 128 maps, small enough that a few pages do not hold much.
const CHUNK: usize = 8 << 20;

/// See the module's text.
pub(crate) struct MappedScratch {
    shared: Arc<Shared>,
}

impl fmt::Debug for MappedScratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedScratch").field("piece", &self.shared.piece).finish_non_exhaustive()
    }
}

struct Shared {
    file: File,
    piece: usize,
    chunks: Mutex<Chunks>,
}

/// Invariant: `used` is the number of slots that are not free, over all chunks; a chunk without one is not here;
/// `with_room` are those of `by_number` that have a free one.
#[derive(Default)]
struct Chunks {
    by_number: BTreeMap<u32, Chunk>,
    with_room: BTreeSet<u32>,
    used: u64,
}

struct Chunk {
    map: Arc<MmapRaw>,
    free: Vec<u32>,
}

/// A piece in its slot, whose room is free again when this is dropped.
pub(crate) struct Piece {
    shared: Arc<Shared>,
    map: Arc<MmapRaw>,
    chunk: u32,
    slot: u32,
}

impl MappedScratch {
    /// Room in `file`, which nobody else may have, for pieces of `piece` bytes.
    pub(crate) fn new(file: File, piece: usize) -> io::Result<MappedScratch> {
        if piece == 0 || piece > CHUNK {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("pieces of {piece} bytes")));
        }
        Ok(MappedScratch { shared: Arc::new(Shared { file, piece, chunks: Mutex::default() }) })
    }

    /// Writes a piece.
    pub(crate) fn put(&self, bytes: &[u8]) -> io::Result<Piece> {
        let shared = &self.shared;
        if bytes.len() != shared.piece {
            let what = format!("a piece of {} bytes, not {}", bytes.len(), shared.piece);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let (chunk, slot, map) = shared.take()?;
        // From here on dropping it gives the slot back, also if the write fails.
        let piece = Piece { shared: shared.clone(), map, chunk, slot };
        shared.file.write_all_at(bytes, u64::from(chunk) * CHUNK as u64 + piece.at() as u64)?;
        Ok(piece)
    }

    /// Bytes of the pieces that are there.
    pub(crate) fn used(&self) -> u64 {
        self.shared.chunks.lock().used * self.shared.piece as u64
    }
}

impl Shared {
    /// A free slot, in the first chunk that has one, so that later chunks get empty and go.
    fn take(&self) -> io::Result<(u32, u32, Arc<MmapRaw>)> {
        let mut chunks = self.chunks.lock();
        let chunks = &mut *chunks;
        if let Some(number) = chunks.with_room.first().copied()
            && let Some(chunk) = chunks.by_number.get_mut(&number)
            && let Some(slot) = chunk.free.pop()
        {
            let map = chunk.map.clone();
            if chunk.free.is_empty() {
                chunks.with_room.remove(&number);
            }
            chunks.used += 1;
            return Ok((number, slot, map));
        }
        let number = (0..).find(|number| !chunks.by_number.contains_key(number)).unwrap_or(u32::MAX);
        let start = u64::from(number) * CHUNK as u64;
        if self.file.metadata()?.len() < start + CHUNK as u64 {
            self.file.set_len(start + CHUNK as u64)?;
        }
        let map = Arc::new(MmapOptions::new().offset(start).len(CHUNK).map_raw_read_only(&self.file)?);
        let free: Vec<u32> = (1..(CHUNK / self.piece) as u32).rev().collect();
        if !free.is_empty() {
            chunks.with_room.insert(number);
        }
        chunks.by_number.insert(number, Chunk { map: map.clone(), free });
        chunks.used += 1;
        Ok((number, 0, map))
    }

    fn give_back(&self, number: u32, slot: u32) {
        let mut chunks = self.chunks.lock();
        let chunks = &mut *chunks;
        chunks.used -= 1;
        let Some(chunk) = chunks.by_number.get_mut(&number) else { return };
        chunk.free.push(slot);
        chunks.with_room.insert(number);
        if chunk.free.len() == CHUNK / self.piece {
            chunks.by_number.remove(&number);
            chunks.with_room.remove(&number);
            // A file system that cannot do this keeps the room for later chunks of this file.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(&self.file, hole, u64::from(number) * CHUNK as u64, CHUNK as u64);
        }
    }
}

impl Piece {
    fn at(&self) -> usize {
        self.slot as usize * self.shared.piece
    }
}

impl PageBytes for Piece {
    #[allow(unsafe_code, reason = "bytes of a map")]
    fn bytes(&self) -> &[u8] {
        // SAFETY: the slot lies within the map, which lives as long as `self`. Its bytes are in the file since `put`
        // returned, and are not written to before `self` is dropped (see the module's text).
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.at()), self.shared.piece) }
    }

    fn is_kept(&self) -> bool {
        true
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.shared.give_back(self.chunk, self.slot);
    }
}

/// A file of a database, mapped for reading.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Arc<MmapRaw>,
    /// Asked for its length.
    file: File,
}

/// A piece of a mapped file. The file stays mapped as long as one of these is there.
pub(crate) struct Lent {
    map: Arc<MmapRaw>,
    at: usize,
    len: usize,
}

impl MappedFile {
    /// Maps the first `len` bytes of `file`, which may have fewer.
    pub(crate) fn new(file: &File, len: u64) -> io::Result<MappedFile> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let map = Arc::new(MmapOptions::new().len(len).map_raw_read_only(file)?);
        Ok(MappedFile { map, file: file.try_clone()? })
    }

    /// Bytes that are in the map and in the file; nobody may write to them or cut them off.
    pub(crate) fn piece(&self, offset: u64, len: usize) -> io::Result<Lent> {
        let end = offset.saturating_add(len as u64);
        let there = self.file.metadata()?.len().min(self.map.len() as u64);
        if end > there {
            let what = format!("bytes {offset} to {end} of a file that has {there}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        Ok(Lent { map: self.map.clone(), at: offset as usize, len })
    }
}

impl PageBytes for Lent {
    #[allow(unsafe_code, reason = "bytes of a map")]
    fn bytes(&self) -> &[u8] {
        // SAFETY: `at + len` lies within the map (checked by `piece`), which lives as long as `self`. The file had these
        // bytes then, and by the contract of `piece` nobody changes them or cuts them off before `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.at), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 65536;
    const PER_CHUNK: usize = CHUNK / PIECE;

    fn scratch() -> (MappedScratch, File) {
        let file = tempfile::tempfile().unwrap();
        (MappedScratch::new(file.try_clone().unwrap(), PIECE).unwrap(), file)
    }

    fn blocks(file: &File) -> u64 {
        use std::os::unix::fs::MetadataExt;
        file.metadata().unwrap().blocks()
    }

    #[test]
    fn pieces_keep_their_bytes_and_their_room_is_used_again() {
        let (scratch, file) = scratch();
        let put = |n: usize| scratch.put(&[n as u8; PIECE]).unwrap();
        let mut pieces: Vec<Piece> = (0..3 * PER_CHUNK).map(put).collect();
        assert_eq!(scratch.used(), 3 * CHUNK as u64);
        // Every second one goes, others come in their place: those that stay do not change, and the file does not grow.
        for n in (0..pieces.len()).step_by(2) {
            pieces[n] = put(n + 1);
        }
        for (n, piece) in pieces.iter().enumerate() {
            let expected = (n + 1 - n % 2) as u8;
            assert!(piece.bytes().iter().all(|byte| *byte == expected), "piece {n}");
        }
        assert!(file.metadata().unwrap().len() <= 4 * CHUNK as u64);
    }

    #[test]
    fn a_chunk_goes_with_its_last_piece() {
        let (scratch, file) = scratch();
        let mut pieces: Vec<Piece> = (0..2 * PER_CHUNK).map(|_| scratch.put(&[1; PIECE]).unwrap()).collect();
        file.sync_all().unwrap();
        let full = blocks(&file);
        let last = pieces.pop().unwrap();
        pieces.clear();
        assert_eq!(scratch.used(), PIECE as u64);
        assert_eq!(scratch.shared.chunks.lock().by_number.keys().copied().collect::<Vec<_>>(), [1]);
        assert!(blocks(&file) < full * 2 / 3, "{} of {full} blocks", blocks(&file));
        let again = scratch.put(&[2; PIECE]).unwrap();
        drop(scratch);
        assert_eq!((last.bytes()[0], again.bytes()[PIECE - 1]), (1, 2));
    }

    #[test]
    fn a_piece_that_could_not_be_written_takes_no_room() {
        // A file opened for reading refuses the write, as a full disk does.
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(CHUNK as u64).unwrap();
        let scratch = MappedScratch::new(File::open(path.path()).unwrap(), PIECE).unwrap();
        assert!(scratch.put(&[1; PIECE]).is_err());
        assert_eq!(scratch.used(), 0);
        assert!(scratch.put(&[1; PIECE - 1]).is_err());
    }
}
