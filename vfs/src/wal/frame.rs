//! One WAL frame: a 24-byte header and one page.
//!
//! ```text
//! offset size  field (big-endian)
//!      0    4  page number, from 1
//!      4    4  database size in pages after the commit; 0 if this is no commit frame
//!      8    8  salts, copied from the WAL header
//!     16    8  running checksum: WAL header, then 8 header bytes + page of every frame so far
//! ```
//!
//! Frame n starts at byte 32 + (n - 1) * (24 + page size). A frame counts only if its salts match the WAL header and its
//! checksum continues the one before it. What follows the last valid commit frame is left over from an earlier lap or a
//! rolled-back transaction. While a transaction rewrites its own frames SQLite leaves salts and checksum zero and fills
//! them in when it commits, so a header read meanwhile decodes and only [`FrameHeader::verify`] refuses it.
//!
//! Deliberately absent: any file access. Bytes come in, frames come out.

use std::num::NonZeroU32;

use crate::page::{PageCount, PageNo, PageSize};
use crate::wal::WalError;
use crate::wal::checksum::{ByteOrder, Checksum};
use crate::wal::header::{Salts, WAL_HEADER_BYTES};

/// Length of a frame's header in bytes.
pub const FRAME_HEADER_BYTES: usize = 24;

/// Position of a frame in one WAL, counted from 1. "Not in the WAL" is `Option<FrameNo>`, never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameNo(NonZeroU32);

const _: () = assert!(size_of::<Option<FrameNo>>() == 4);

impl FrameNo {
    /// The frame behind the WAL header.
    pub const FIRST: FrameNo = FrameNo(NonZeroU32::MIN);

    /// `None` for 0: SQLite's "not in the WAL", and the number of frames in an empty one.
    pub fn new(number: u32) -> Option<FrameNo> {
        NonZeroU32::new(number).map(FrameNo)
    }

    /// The number, at least 1.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The frame behind this one; `None` after the last one that has a number.
    pub fn next(self) -> Option<FrameNo> {
        self.0.checked_add(1).map(FrameNo)
    }

    /// Offset of this frame's first byte in a WAL with pages of `size`.
    pub fn offset(self, size: PageSize) -> u64 {
        WAL_HEADER_BYTES as u64 + u64::from(self.get() - 1) * frame_bytes(size)
    }

    /// The frame that contains byte `offset` of the WAL, and which of the frame's bytes that is. `None` inside the WAL
    /// header and beyond the last frame that has a number.
    pub fn containing(offset: u64, size: PageSize) -> Option<(FrameNo, usize)> {
        let behind_header = offset.checked_sub(WAL_HEADER_BYTES as u64)?;
        let number = u32::try_from(behind_header / frame_bytes(size)).ok()?.checked_add(1)?;
        Some((FrameNo::new(number)?, (behind_header % frame_bytes(size)) as usize))
    }
}

impl std::fmt::Display for FrameNo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

/// Length of a whole frame with a page of `size`.
pub fn frame_bytes(size: PageSize) -> u64 {
    FRAME_HEADER_BYTES as u64 + u64::from(size.bytes())
}

/// The header of a frame, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Which page the frame holds.
    pub page: PageNo,
    /// Size of the database after the SQLite commit that this frame ends; `None` if it ends none.
    pub commit_size: Option<PageCount>,
    /// Which lap of the WAL the frame belongs to.
    pub salts: Salts,
    /// The running checksum up to and including this frame.
    pub checksum: Checksum,
}

impl FrameHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..8].copy_from_slice(&summed_bytes(self.page, self.commit_size));
        bytes[8..12].copy_from_slice(&self.salts[0].to_be_bytes());
        bytes[12..16].copy_from_slice(&self.salts[1].to_be_bytes());
        bytes[16..].copy_from_slice(&self.checksum.to_bytes());
        bytes
    }

    /// Reads a header from the first bytes of a frame. Says nothing about salts and checksum: see
    /// [`FrameHeader::verify`].
    pub fn decode(bytes: &[u8]) -> Result<FrameHeader, WalError> {
        let Some((bytes, _)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(WalError::Short { what: "frame header", need: FRAME_HEADER_BYTES, have: bytes.len() });
        };
        let (words, _) = bytes.as_chunks::<4>();
        let word = |i: usize| u32::from_be_bytes(words[i]);
        Ok(FrameHeader {
            page: PageNo::new(word(0)).ok_or(WalError::PageZero)?,
            commit_size: Some(PageCount(word(1))).filter(|size| size.0 != 0),
            salts: [word(2), word(3)],
            checksum: Checksum(word(4), word(5)),
        })
    }

    /// Whether this header and `image` continue the WAL of `salts` whose running checksum stood at `previous`; returns
    /// where it stands now.
    pub fn verify(
        &self,
        image: &[u8],
        salts: Salts,
        order: ByteOrder,
        previous: Checksum,
    ) -> Result<Checksum, WalError> {
        if self.salts != salts {
            return Err(WalError::FrameSalts { header: salts, frame: self.salts });
        }
        if u32::try_from(image.len()).ok().and_then(PageSize::new).is_none() {
            return Err(WalError::ImageLength(image.len()));
        }
        let computed = next_checksum(self.page, self.commit_size, image, order, previous);
        if self.checksum != computed {
            return Err(WalError::FrameChecksum { stored: self.checksum, computed });
        }
        Ok(computed)
    }
}

/// Header bytes of the frame that puts `image` behind a WAL of this machine whose running checksum stands at `previous`,
/// and where the checksum stands then.
pub fn seal(
    page: PageNo,
    commit_size: Option<PageCount>,
    image: &[u8],
    salts: Salts,
    previous: Checksum,
) -> ([u8; FRAME_HEADER_BYTES], Checksum) {
    let checksum = next_checksum(page, commit_size, image, ByteOrder::NATIVE, previous);
    (FrameHeader { page, commit_size, salts, checksum }.encode(), checksum)
}

fn next_checksum(
    page: PageNo,
    commit_size: Option<PageCount>,
    image: &[u8],
    order: ByteOrder,
    previous: Checksum,
) -> Checksum {
    previous.update(&summed_bytes(page, commit_size), order).update(image, order)
}

/// The part of the header that the checksum covers.
fn summed_bytes(page: PageNo, commit_size: Option<PageCount>) -> [u8; 8] {
    let [a, b, c, d] = page.get().to_be_bytes();
    let [e, f, g, h] = commit_size.map_or(0, |size| size.0).to_be_bytes();
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALTS: Salts = [0x1122_3344, 0xffee_ddcc];
    const START: Checksum = Checksum(5, 6);

    fn image() -> Vec<u8> {
        (0..512u32).map(|i| (i * 7) as u8).collect()
    }

    #[test]
    fn a_sealed_frame_verifies_and_any_flipped_bit_does_not() {
        let image = image();
        let (bytes, checksum) = seal(PageNo::FIRST, Some(PageCount(9)), &image, SALTS, START);
        let check =
            |bytes: &[u8], image: &[u8]| FrameHeader::decode(bytes)?.verify(image, SALTS, ByteOrder::NATIVE, START);
        assert_eq!(check(&bytes, &image), Ok(checksum));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&bad, &image).is_err(), "header bit {bit}");
        }
        for bit in 0..image.len() * 8 {
            let mut bad = image.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&bytes, &bad).is_err(), "image bit {bit}");
        }
        let header = FrameHeader::decode(&bytes).unwrap();
        assert_eq!(header.encode(), bytes);
        assert!(header.verify(&image, SALTS, ByteOrder::NATIVE, Checksum(5, 7)).is_err(), "another frame before it");
        assert_eq!(header.verify(&image[..511], SALTS, ByteOrder::NATIVE, START), Err(WalError::ImageLength(511)));
    }

    #[test]
    fn a_header_without_page_or_bytes_is_an_error() {
        assert_eq!(FrameHeader::decode(&[0; 24]), Err(WalError::PageZero));
        assert_eq!(FrameHeader::decode(&[1; 23]), Err(WalError::Short { what: "frame header", need: 24, have: 23 }));
    }

    #[test]
    fn a_byte_belongs_to_one_frame() {
        for size in [512, 4096, 65536].map(|bytes| PageSize::new(bytes).unwrap()) {
            let frame = frame_bytes(size);
            for number in [1, 2, 4062, u32::MAX] {
                let no = FrameNo::new(number).unwrap();
                let start = no.offset(size);
                assert_eq!(FrameNo::containing(start, size), Some((no, 0)));
                assert_eq!(FrameNo::containing(start + frame - 1, size), Some((no, frame as usize - 1)));
                assert_eq!(FrameNo::containing(start + frame, size).map(|(no, _)| no), no.next());
            }
            for offset in [0, 31] {
                assert_eq!(FrameNo::containing(offset, size), None);
            }
            assert_eq!(FrameNo::containing(u64::MAX, size), None);
        }
    }
}
