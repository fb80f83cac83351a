//! How one page is written in an entry: the operation byte and the bytes after it.
//!
//! ```text
//! operation  bytes
//!         0  the page as it is; exactly one page long
//!         1  the page as one lz4 block, without its length (the transaction names the page size)
//!       2..  reserved for differences to the page's previous version: unknown to this version
//! ```
//!
//! lz4 is taken when it saves a tenth of the page or more; below that the reader's time is worth more than the bytes.
//!
//! Deliberately absent: the page's number and hash, which `entry.rs` writes beside it.

use std::cell::Cell;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use shoaldb_vfs::page::PageSize;
use shoaldb_vfs::transaction::PageImage;

/// Operation byte of a page written as it is.
pub(crate) const RAW: u8 = 0;
/// Operation byte of an lz4 block.
pub(crate) const LZ4: u8 = 1;

thread_local! {
    /// Making a table costs as much as packing a page with it.
    static TABLE: Cell<Option<CompressTable>> = const { Cell::new(None) };
}

/// Encodes the pages of one transaction, with one lz4 table for all of them, which the thread's next encoder takes over.
pub(crate) struct PageEncoder {
    /// Made when it is first needed.
    table: Option<CompressTable>,
}

impl Default for PageEncoder {
    fn default() -> PageEncoder {
        PageEncoder { table: TABLE.take() }
    }
}

impl Drop for PageEncoder {
    fn drop(&mut self) {
        TABLE.set(self.table.take());
    }
}

impl PageEncoder {
    /// Room that [`PageEncoder::put`] may need while it works, beyond one page.
    pub(crate) fn slack(page_size: PageSize) -> usize {
        get_maximum_output_size(page_size.len()) - page_size.len()
    }

    /// Appends the bytes of `image`, at most one page, and returns the operation byte.
    pub(crate) fn put(&mut self, out: &mut Vec<u8>, image: &[u8]) -> u8 {
        let start = out.len();
        out.resize(start + get_maximum_output_size(image.len()), 0);
        let packed = compress_into_with_table(image, &mut out[start..], self.table.get_or_insert_default());
        match packed {
            Ok(len) if len <= image.len() - image.len() / 10 => {
                out.truncate(start + len);
                LZ4
            }
            _ => {
                out.truncate(start);
                out.extend_from_slice(image);
                RAW
            }
        }
    }
}

/// Why the bytes of a page make no page.
#[derive(Debug)]
pub(crate) enum PageError {
    /// An operation of a later version.
    UnknownOperation(u8),
    /// Not what any version writes.
    Damaged(String),
}

/// The page that `put` wrote.
pub(crate) fn read(operation: u8, bytes: &[u8], page_size: PageSize) -> Result<PageImage, PageError> {
    match operation {
        RAW if bytes.len() == page_size.len() => Ok(bytes.to_vec().into()),
        RAW => {
            Err(PageError::Damaged(format!("a raw page of {} bytes, page size is {}", bytes.len(), page_size.bytes())))
        }
        LZ4 => {
            let mut image = vec![0; page_size.len()];
            match decompress_into(bytes, &mut image) {
                Ok(len) if len == page_size.len() => Ok(image.into()),
                Ok(len) => Err(PageError::Damaged(format!(
                    "an lz4 block of {len} bytes of content, page size is {}",
                    page_size.bytes()
                ))),
                Err(error) => Err(PageError::Damaged(format!("an lz4 block of {} bytes: {error}", bytes.len()))),
            }
        }
        other => Err(PageError::UnknownOperation(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page whose first `random` bytes do not compress and whose rest is zero.
    fn page(size: usize, random: usize) -> Vec<u8> {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let mut page = vec![0; size];
        for byte in &mut page[..random] {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *byte = x as u8;
        }
        page
    }

    #[test]
    fn pages_of_every_size_come_back_the_same() {
        for shift in 9..=16 {
            let size = PageSize::new(1 << shift).unwrap();
            for random in [0, 1, size.len() / 2, size.len() - 1, size.len()] {
                let image = page(size.len(), random);
                let mut out = vec![7];
                let operation = PageEncoder::default().put(&mut out, &image);
                assert_eq!(&*read(operation, &out[1..], size).unwrap(), &image[..]);
                assert!(out.len() - 1 <= size.len());
            }
        }
    }

    #[test]
    fn lz4_is_taken_when_it_saves_a_tenth() {
        let mut encoder = PageEncoder::default();
        let (mut raw, mut packed) = (0, 0);
        for random in 3500..4096 {
            let mut out = Vec::new();
            match encoder.put(&mut out, &page(4096, random)) {
                LZ4 => {
                    assert!(out.len() <= 4096 - 409, "{}", out.len());
                    packed = packed.max(random);
                }
                _ => raw = if raw == 0 { random } else { raw },
            }
        }
        assert_eq!(raw, packed + 1, "one border between the two");
        // An lz4 block is at least as long as what does not compress in it, plus a few bytes for lengths.
        assert!((3640..=3687).contains(&packed), "{packed}");
    }

    #[test]
    fn lengths_must_be_exact() {
        let size = PageSize::new(512).unwrap();
        for len in [511, 512, 513] {
            assert_eq!(read(RAW, &vec![1; len], size).is_ok(), len == 512, "{len}");
            let block = lz4_flex::block::compress(&vec![1; len]);
            assert_eq!(read(LZ4, &block, size).is_ok(), len == 512, "{len}");
        }
    }

    #[test]
    fn differences_are_unknown_and_not_damaged() {
        for operation in [2, 3, 255] {
            let read = read(operation, &[0; 512], PageSize::new(512).unwrap());
            assert!(matches!(read, Err(PageError::UnknownOperation(other)) if other == operation));
        }
    }
}
