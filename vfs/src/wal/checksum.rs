//! The running checksum of a WAL.
//!
//! ```text
//! state   (s0, s1), both 0 at the start
//! step    for each pair of 32-bit words (x, y):   s0 += x + s1;   s1 += y + s0      (wrapping)
//! words   in the byte order that the WAL header's magic number names; SQLite picks that of the machine
//! ```
//!
//! One state runs through a whole WAL: first 24 bytes of the WAL header, then of every frame the first 8 bytes of its
//! header and its page. So a frame is valid only behind exactly the frames it was written behind. The two copies of the
//! wal-index header carry the same sum over their own first 40 bytes, always in the machine's order.
//!
//! It is a Fibonacci-weighted sum and no hash: it finds torn and misplaced writes, not malice. Deliberately absent: any
//! idea of what the bytes are (`header.rs`, `frame.rs`).

/// How bytes become the 32-bit words that are summed up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl ByteOrder {
    /// The order of this machine: what SQLite writes here.
    pub const NATIVE: ByteOrder = if cfg!(target_endian = "big") { ByteOrder::Big } else { ByteOrder::Little };
}

/// State of the running checksum. The default is the state before the first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checksum(pub u32, pub u32);

impl Checksum {
    /// The state after `bytes`, whose length must be a multiple of 8 (ours to see to: headers are, pages are).
    #[must_use]
    pub fn update(self, bytes: &[u8], order: ByteOrder) -> Checksum {
        // The order is decided outside the loop: a whole page goes through here for every frame.
        match order {
            ByteOrder::Little => self.sum(bytes, u32::from_le_bytes),
            ByteOrder::Big => self.sum(bytes, u32::from_be_bytes),
        }
    }

    fn sum(self, bytes: &[u8], word: impl Fn([u8; 4]) -> u32) -> Checksum {
        let (pairs, rest) = bytes.as_chunks::<8>();
        assert!(rest.is_empty(), "checksum of {} bytes", bytes.len());
        let Checksum(mut s0, mut s1) = self;
        for &[a, b, c, d, e, f, g, h] in pairs {
            s0 = s0.wrapping_add(word([a, b, c, d])).wrapping_add(s1);
            s1 = s1.wrapping_add(word([e, f, g, h])).wrapping_add(s0);
        }
        Checksum(s0, s1)
    }

    /// As headers store it: two big-endian words, whatever the order of the sum.
    pub fn to_bytes(self) -> [u8; 8] {
        let [a, b, c, d] = self.0.to_be_bytes();
        let [e, f, g, h] = self.1.to_be_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// The inverse of [`Checksum::to_bytes`].
    pub fn from_bytes([a, b, c, d, e, f, g, h]: [u8; 8]) -> Checksum {
        Checksum(u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}{:08x}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_as_written_down_in_both_orders() {
        let bytes = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff];
        // Big: s0 = 1, s1 = 3; s0 = 1+3+3 = 7, s1 = 3-1+7 = 9.
        assert_eq!(Checksum::default().update(&bytes, ByteOrder::Big), Checksum(7, 9));
        // Little: x = 1<<24, y = 2<<24: (1<<24, 3<<24); then (7<<24, (10<<24) - 1).
        assert_eq!(Checksum::default().update(&bytes, ByteOrder::Little), Checksum(7 << 24, (10 << 24) - 1));
    }

    #[test]
    fn runs_on_across_calls_and_survives_its_bytes() {
        let bytes: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(37)).collect();
        let whole = Checksum::default().update(&bytes, ByteOrder::NATIVE);
        for cut in [0, 8, 56, 64] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(Checksum::default().update(head, ByteOrder::NATIVE).update(tail, ByteOrder::NATIVE), whole);
        }
        assert_eq!(Checksum::from_bytes(whole.to_bytes()), whole);
    }
}
