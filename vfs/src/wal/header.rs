//! The header of a WAL.
//!
//! ```text
//! offset size  field (big-endian)
//!      0    4  magic 0x377f0682; the lowest bit set: checksums sum up big-endian words, else little-endian ones
//!      4    4  format version 3007000
//!      8    4  page size
//!     12    4  checkpoint sequence number
//!     16    8  two salts, new ones at each WAL restart
//!     24    8  checksum of the 24 bytes before
//! ```
//!
//! A frame belongs to this lap of the WAL only if it carries the same salts. SQLite changes them at a restart and takes
//! them from a counter that each connection has for itself, so nobody can predict them: whoever continues a WAL reads
//! them from here or from the wal-index.
//!
//! Deliberately absent: what follows the header (`frame.rs`).

use crate::page::PageSize;
use crate::wal::WalError;
use crate::wal::checksum::{ByteOrder, Checksum};

/// Length of the header in bytes.
pub const WAL_HEADER_BYTES: usize = 32;

/// What marks the frames of one lap of the WAL, as numbers; stored big-endian.
pub type Salts = [u32; 2];

const MAGIC: u32 = 0x377f_0682;
const BIG_ENDIAN_SUMS: u32 = 1;
const VERSION: u32 = 3_007_000;

/// The header of a WAL, decoded. Its checksum follows from the other fields, so it is no field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalHeader {
    /// Byte order of the words that checksums sum up.
    pub order: ByteOrder,
    /// Size of the page in every frame.
    pub page_size: PageSize,
    /// Counts the restarts of the WAL, as far as the connection that wrote it knows of them.
    pub checkpoint_seq: u32,
    /// What frames of this lap carry.
    pub salts: Salts,
}

impl WalHeader {
    /// A header as SQLite writes it on this machine.
    pub fn new(page_size: PageSize, checkpoint_seq: u32, salts: Salts) -> WalHeader {
        WalHeader { order: ByteOrder::NATIVE, page_size, checkpoint_seq, salts }
    }

    /// Where the running checksum stands before the first frame.
    pub fn checksum(&self) -> Checksum {
        Checksum::default().update(&self.summed_bytes(), self.order)
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; WAL_HEADER_BYTES] {
        let mut bytes = [0; WAL_HEADER_BYTES];
        bytes[..24].copy_from_slice(&self.summed_bytes());
        bytes[24..].copy_from_slice(&self.checksum().to_bytes());
        bytes
    }

    /// Reads a header from the first bytes of a WAL.
    pub fn decode(bytes: &[u8]) -> Result<WalHeader, WalError> {
        let Some((bytes, _)) = bytes.split_first_chunk::<WAL_HEADER_BYTES>() else {
            return Err(WalError::Short { what: "wal header", need: WAL_HEADER_BYTES, have: bytes.len() });
        };
        let (words, _) = bytes.as_chunks::<4>();
        let word = |i: usize| u32::from_be_bytes(words[i]);
        let order = match word(0) {
            MAGIC => ByteOrder::Little,
            magic if magic == MAGIC | BIG_ENDIAN_SUMS => ByteOrder::Big,
            magic => return Err(WalError::Magic(magic)),
        };
        if word(1) != VERSION {
            return Err(WalError::Version(word(1)));
        }
        let page_size = PageSize::new(word(2)).ok_or(WalError::PageSize(word(2)))?;
        let header = WalHeader { order, page_size, checkpoint_seq: word(3), salts: [word(4), word(5)] };
        let stored = Checksum(word(6), word(7));
        let computed = header.checksum();
        if stored != computed {
            return Err(WalError::HeaderChecksum { stored, computed });
        }
        Ok(header)
    }

    fn summed_bytes(&self) -> [u8; 24] {
        let magic = match self.order {
            ByteOrder::Little => MAGIC,
            ByteOrder::Big => MAGIC | BIG_ENDIAN_SUMS,
        };
        let [salt1, salt2] = self.salts;
        let mut bytes = [0; 24];
        let words = [magic, VERSION, self.page_size.bytes(), self.checkpoint_seq, salt1, salt2];
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_be_bytes();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(order: ByteOrder) -> WalHeader {
        WalHeader { order, ..WalHeader::new(PageSize::DEFAULT, 3, [0x0102_0304, 0xfffe_fdfc]) }
    }

    #[test]
    fn decode_is_the_inverse_of_encode() {
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let bytes = header(order).encode();
            assert_eq!(WalHeader::decode(&bytes), Ok(header(order)));
            assert_eq!(bytes[..4], [0x37, 0x7f, 0x06, if order == ByteOrder::Big { 0x83 } else { 0x82 }]);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_short_header_is_refused() {
        let good = header(ByteOrder::NATIVE).encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(WalHeader::decode(&bad).is_err(), "bit {bit}");
        }
        for len in [0, 1, 31] {
            assert_eq!(
                WalHeader::decode(&good[..len]),
                Err(WalError::Short { what: "wal header", need: 32, have: len })
            );
        }
    }

    #[test]
    fn errors_name_what_was_found() {
        let mut bytes = header(ByteOrder::NATIVE).encode();
        bytes[11] = 7;
        assert_eq!(WalHeader::decode(&bytes), Err(WalError::PageSize(0x1007)));
        bytes[7] = 0;
        assert_eq!(WalHeader::decode(&bytes), Err(WalError::Version(3_007_000 & !0xff)));
        bytes[0] = 0;
        assert!(matches!(WalHeader::decode(&bytes), Err(WalError::Magic(_))));
    }
}
