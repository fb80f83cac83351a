//! The virtual WAL: the bytes that SQLite believes to be its `-wal` file.
//!
//! It behaves like a file: any range can be written and read, what was never written before the end reads as zeros, the
//! size is one beyond the highest byte written. Inside it is the 32-byte WAL header and one entry per frame, whose page
//! is an immutable image, in memory or outside of it (`spill.rs`): a transaction, a checkpoint or a lent view keeps the image that it took, and
//! a write to the same frame puts a new one in its place.
//!
//! Nothing is forgotten at a WAL restart: SQLite just writes frame 1 again, as in a file, and old frames stay behind it
//! until overwritten or truncated. Deliberately absent: what the bytes mean, durability (the replicator's log is what
//! survives), locks, and where a page's bytes are.

use crate::page::PageSize;
use crate::transaction::PageImage;
use crate::wal::WalError;
use crate::wal::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameNo, frame_bytes};
use crate::wal::header::{WAL_HEADER_BYTES, WalHeader};

/// A virtual WAL; see the module's text.
///
/// Invariant: `size` is 0 or lies beyond the last frame's first byte, and not beyond that frame's end (without frames:
/// not beyond the WAL header's end). All images are one page long.
#[derive(Debug)]
pub struct VirtualWal {
    page_size: PageSize,
    size: u64,
    header: [u8; WAL_HEADER_BYTES],
    frames: Vec<Frame>,
    /// Stands for a page of which nothing was written yet.
    zeros: PageImage,
}

#[derive(Clone, Debug)]
struct Frame {
    header: [u8; FRAME_HEADER_BYTES],
    image: PageImage,
}

/// A part of the WAL that is stored in one piece, and the place in it.
enum Part {
    Header(usize),
    FrameHeader(FrameNo, usize),
    Image(FrameNo, usize),
}

impl VirtualWal {
    /// An empty WAL of a database with pages of `page_size`.
    pub fn new(page_size: PageSize) -> VirtualWal {
        VirtualWal {
            page_size,
            size: 0,
            header: [0; WAL_HEADER_BYTES],
            frames: Vec::new(),
            zeros: vec![0; page_size.len()].into(),
        }
    }

    /// Size of the page in every frame.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Size in bytes, as SQLite asks for it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many frames there are, valid or not: the highest frame of which a byte was written.
    pub fn len(&self) -> u32 {
        // Frames are numbered in 32 bits, and one is added only under its number.
        self.frames.len() as u32
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The WAL header, if there is a valid one.
    pub fn header(&self) -> Result<WalHeader, WalError> {
        WalHeader::decode(&self.header[..self.size.min(WAL_HEADER_BYTES as u64) as usize])
    }

    /// The header of a frame, if the frame is there and names a page (a zeroed header does not).
    pub fn frame_header(&self, frame: FrameNo) -> Option<FrameHeader> {
        FrameHeader::decode(&self.frame(frame)?.header).ok()
    }

    /// The bytes of a frame's header, if the frame is there.
    pub fn frame_header_bytes(&self, frame: FrameNo) -> Option<[u8; FRAME_HEADER_BYTES]> {
        Some(self.frame(frame)?.header)
    }

    /// The page of a frame, if the frame is there. It is this image for good, whatever is written later.
    pub fn image(&self, frame: FrameNo) -> Option<PageImage> {
        Some(self.frame(frame)?.image.clone())
    }

    /// The first frame that these bytes are of whose page is not what was put there.
    pub fn first_rotten(&self, offset: u64, len: usize) -> Option<FrameNo> {
        let last = offset.saturating_add(len as u64).min(self.size).checked_sub(1).filter(|last| *last >= offset)?;
        let number = |byte| FrameNo::containing(byte, self.page_size).map_or(1, |(frame, _)| frame.get());
        let mut frames = (number(offset)..=number(last)).filter_map(FrameNo::new);
        frames.find(|frame| self.frame(*frame).is_some_and(|frame| !frame.image.is_whole()))
    }

    /// Reads from byte `offset`. Returns how many bytes there were, less than `buf.len()` only at the end of the WAL; the
    /// rest of `buf` is left alone.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let available = usize::try_from(self.size.saturating_sub(offset)).map_or(buf.len(), |len| len.min(buf.len()));
        let mut rest = &mut buf[..available];
        let mut offset = offset;
        while !rest.is_empty() {
            let Some(from) = self.stored(offset) else { break };
            let count = from.len().min(rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(count);
            now.copy_from_slice(&from[..count]);
            offset += count as u64;
            rest = later;
        }
        available
    }

    /// Writes at byte `offset`. Fails, having written what lies before, beyond the last frame that has a number.
    pub fn write_bytes(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WalError> {
        let mut rest = bytes;
        let mut offset = offset;
        while !rest.is_empty() {
            let part = self.part(offset).ok_or(WalError::TooFar(offset))?;
            let written = match part {
                Part::Header(at) => {
                    let count = patch(&mut self.header[at..], rest);
                    self.grow_to((at + count) as u64);
                    count
                }
                Part::FrameHeader(frame, at) => {
                    let count = patch(&mut self.frame_mut(frame).header[at..], rest);
                    self.grow_to_byte_of(frame, at + count);
                    count
                }
                Part::Image(frame, 0) if rest.len() >= self.page_size.len() => {
                    let count = self.page_size.len();
                    self.put_image(frame, rest[..count].to_vec().into());
                    count
                }
                Part::Image(frame, at) => {
                    let place = self.frame_mut(frame);
                    let mut image = place.image.to_vec();
                    let count = patch(&mut image[at..], rest);
                    place.image = image.into();
                    self.grow_to_byte_of(frame, FRAME_HEADER_BYTES + at + count);
                    count
                }
            };
            offset += written as u64;
            rest = &rest[written..];
        }
        Ok(())
    }

    /// Writes the WAL header. The frames stay, as in a file: they are the last lap's leftovers now.
    pub fn set_header(&mut self, header: [u8; WAL_HEADER_BYTES]) {
        self.header = header;
        self.grow_to(WAL_HEADER_BYTES as u64);
    }

    /// Writes the header of a frame.
    pub fn put_header(&mut self, frame: FrameNo, header: [u8; FRAME_HEADER_BYTES]) {
        self.frame_mut(frame).header = header;
        self.grow_to_byte_of(frame, FRAME_HEADER_BYTES);
    }

    /// Writes the page of a frame, which must be one page long.
    pub fn put_image(&mut self, frame: FrameNo, image: PageImage) {
        assert_eq!(image.len(), self.page_size.len(), "frame {frame}");
        self.frame_mut(frame).image = image;
        self.grow_to_byte_of(frame, FRAME_HEADER_BYTES + self.page_size.len());
    }

    /// The page of a frame that is there is now in another place, the same bytes.
    pub fn move_image(&mut self, frame: FrameNo, image: PageImage) {
        assert_eq!(image.len(), self.page_size.len(), "frame {frame}");
        if let Some(place) = self.frames.get_mut(frame.get() as usize - 1) {
            place.image = image;
        }
    }

    /// Drops the frames behind the first `frames`. The WAL header stays.
    pub fn truncate_to(&mut self, frames: u32) {
        self.truncate(WAL_HEADER_BYTES as u64 + u64::from(frames) * frame_bytes(self.page_size));
    }

    /// Cuts the WAL to `size` bytes, as xTruncate does; a longer `size` changes nothing.
    pub fn truncate(&mut self, size: u64) {
        if size >= self.size {
            return;
        }
        self.size = size;
        if size < WAL_HEADER_BYTES as u64 {
            self.header[size as usize..].fill(0);
        }
        // What lies behind the cut must read as zeros should the WAL grow again, in a frame that is cut through, too.
        match FrameNo::containing(size, self.page_size) {
            None => self.frames.clear(),
            Some((frame, at)) => {
                self.frames.truncate(frame.get() as usize - usize::from(at == 0));
                if at > 0
                    && let Some(cut) = self.frames.last_mut()
                {
                    cut.header[at.min(FRAME_HEADER_BYTES)..].fill(0);
                    let mut image = cut.image.to_vec();
                    image[at.saturating_sub(FRAME_HEADER_BYTES)..].fill(0);
                    cut.image = image.into();
                }
            }
        }
        // A long reader may have made this list large; the next lap need not pay for it.
        self.frames.shrink_to(2 * self.frames.len());
        self.check();
    }

    fn part(&self, offset: u64) -> Option<Part> {
        if offset < WAL_HEADER_BYTES as u64 {
            return Some(Part::Header(offset as usize));
        }
        let (frame, at) = FrameNo::containing(offset, self.page_size)?;
        Some(match at.checked_sub(FRAME_HEADER_BYTES) {
            None => Part::FrameHeader(frame, at),
            Some(at) => Part::Image(frame, at),
        })
    }

    /// The bytes from `offset` to the end of the part that it lies in.
    fn stored(&self, offset: u64) -> Option<&[u8]> {
        match self.part(offset)? {
            Part::Header(at) => self.header.get(at..),
            Part::FrameHeader(frame, at) => self.frame(frame)?.header.get(at..),
            Part::Image(frame, at) => self.frame(frame)?.image.get(at..),
        }
    }

    fn frame(&self, frame: FrameNo) -> Option<&Frame> {
        self.frames.get(frame.get() as usize - 1)
    }

    /// The entry of a frame; it and those before it come into being as zeros, like the hole in a file.
    fn frame_mut(&mut self, frame: FrameNo) -> &mut Frame {
        let count = frame.get() as usize;
        if self.frames.len() < count {
            let empty = Frame { header: [0; FRAME_HEADER_BYTES], image: self.zeros.clone() };
            self.frames.resize(count, empty);
        }
        &mut self.frames[count - 1]
    }

    fn grow_to_byte_of(&mut self, frame: FrameNo, end: usize) {
        self.grow_to(frame.offset(self.page_size) + end as u64);
    }

    fn grow_to(&mut self, end: u64) {
        self.size = self.size.max(end);
        self.check();
    }

    fn check(&self) {
        match FrameNo::new(self.len()) {
            None => assert!(self.size <= WAL_HEADER_BYTES as u64),
            Some(last) => {
                assert!(self.size > last.offset(self.page_size));
                assert!(self.size <= last.offset(self.page_size) + frame_bytes(self.page_size));
            }
        }
    }
}

/// Writes as much of `from` as `to` has room for.
fn patch(to: &mut [u8], from: &[u8]) -> usize {
    let count = to.len().min(from.len());
    to[..count].copy_from_slice(&from[..count]);
    count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: PageSize = PageSize::new(512).unwrap();
    const FRAME: u64 = 536;

    fn frame(number: u32) -> FrameNo {
        FrameNo::new(number).unwrap()
    }

    fn bytes_of(wal: &VirtualWal) -> Vec<u8> {
        let mut bytes = vec![0xee; wal.size() as usize];
        assert_eq!(wal.read(&mut bytes, 0), bytes.len());
        bytes
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        Truncate(u64),
        TruncateTo(u32),
        Read(u64, usize),
    }

    fn ops() -> impl Strategy<Value = Op> {
        // Offsets close to where one part ends and the next begins matter most.
        let offset = prop_oneof![
            0..5 * FRAME,
            (0..5u64, prop_oneof![Just(0), Just(24), Just(536)], 0..3u64).prop_map(|(frame, part, by)| (32
                + frame * FRAME
                + part
                + by)
                .saturating_sub(1)),
        ];
        prop_oneof![
            4 => (offset.clone(), prop::collection::vec(any::<u8>(), 0..1200)).prop_map(|(at, bytes)| Op::Write(at, bytes)),
            1 => offset.clone().prop_map(Op::Truncate),
            1 => (0..5u32).prop_map(Op::TruncateTo),
            4 => (offset, 0..1200usize).prop_map(|(at, len)| Op::Read(at, len)),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_file(ops in prop::collection::vec(ops(), 1..40)) {
            let mut wal = VirtualWal::new(SIZE);
            let mut file: Vec<u8> = Vec::new();
            for op in ops {
                match op {
                    Op::Write(at, bytes) => {
                        wal.write_bytes(at, &bytes).unwrap();
                        if !bytes.is_empty() {
                            let end = at as usize + bytes.len();
                            if file.len() < end { file.resize(end, 0); }
                            file[at as usize..end].copy_from_slice(&bytes);
                        }
                    }
                    Op::Truncate(size) => {
                        wal.truncate(size);
                        file.truncate(size as usize);
                    }
                    Op::TruncateTo(frames) => {
                        wal.truncate_to(frames);
                        file.truncate(32 + frames as usize * FRAME as usize);
                    }
                    Op::Read(at, len) => {
                        let mut buf = vec![0xee; len];
                        let there = wal.read(&mut buf, at);
                        let expected = file.get(at as usize..).unwrap_or(&[]);
                        prop_assert_eq!(there, expected.len().min(len));
                        prop_assert_eq!(&buf[..there], &expected[..there]);
                        prop_assert!(buf[there..].iter().all(|&byte| byte == 0xee));
                    }
                }
                prop_assert_eq!(wal.size(), file.len() as u64);
                prop_assert_eq!(u64::from(wal.len()), (file.len() as u64).saturating_sub(32).div_ceil(FRAME));
                prop_assert_eq!(bytes_of(&wal), file.clone());
            }
        }
    }

    #[test]
    fn a_reader_keeps_its_image() {
        let mut wal = VirtualWal::new(SIZE);
        wal.put_image(frame(1), vec![1; 512].into());
        let taken = wal.image(frame(1)).unwrap();
        wal.write_bytes(32 + 24, &[2; 512]).unwrap();
        wal.write_bytes(32 + 24 + 100, &[3; 5]).unwrap();
        wal.truncate(32 + 24 + 200);
        assert!(taken.iter().all(|&byte| byte == 1));
        assert_eq!(wal.image(frame(1)).unwrap()[99..106], [2, 3, 3, 3, 3, 3, 2]);
        wal.truncate_to(0);
        assert!(wal.image(frame(1)).is_none());
        assert!(taken.iter().all(|&byte| byte == 1));
    }

    #[test]
    fn an_image_is_kept_not_copied() {
        let mut wal = VirtualWal::new(SIZE);
        let image: PageImage = vec![7; 512].into();
        wal.put_image(frame(2), image.clone());
        assert!(wal.image(frame(2)).unwrap().is_same(&image));
    }

    #[test]
    fn headers_come_back_decoded() {
        let mut wal = VirtualWal::new(SIZE);
        assert!(wal.header().is_err());
        assert!(wal.is_empty());
        let header = WalHeader::new(SIZE, 0, [1, 2]);
        wal.set_header(header.encode());
        assert_eq!(wal.header(), Ok(header));
        let page = crate::page::PageNo::FIRST;
        let (bytes, _) = crate::wal::frame::seal(page, None, &[0; 512], header.salts, header.checksum());
        wal.put_header(frame(1), bytes);
        assert_eq!(wal.size(), 32 + 24);
        assert_eq!(wal.frame_header(frame(1)).unwrap().page, page);
        assert_eq!(wal.frame_header_bytes(frame(1)), Some(bytes));
        assert_eq!(wal.frame_header(frame(2)), None);
        wal.put_header(frame(1), [0; 24]);
        assert_eq!(wal.frame_header(frame(1)), None, "a zeroed header names no page");
        assert_eq!(wal.frame_header_bytes(frame(1)), Some([0; 24]));
    }

    #[test]
    fn offsets_beyond_all_frames_are_an_error() {
        let mut wal = VirtualWal::new(SIZE);
        let beyond = frame(u32::MAX).offset(SIZE) + FRAME;
        assert_eq!(wal.write_bytes(beyond, &[1]), Err(WalError::TooFar(beyond)));
        assert_eq!(wal.read(&mut [0; 8], u64::MAX), 0);
        assert_eq!(wal.size(), 0);
    }
}
