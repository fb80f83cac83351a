//! Little-endian fields: a reader that cannot run past its bytes, and the writers that mirror it.
//!
//! All our own formats (entries, catalogue, frames, identity) are built from these. The reader never allocates: a list's
//! count is checked by `Reader::count` against the bytes that are left, so a damaged count is an error before anybody
//! reserves memory for it.
//!
//! Deliberately absent: any format. Each one is written down in the module that owns it.

use crate::types::NodeId;

/// Bytes that do not say what they should: where, and what is wrong there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("offset {at}: {what}")]
pub struct Damaged {
    /// Offset from the start of the value that was being read.
    pub at: usize,
    /// What is wrong, with both values where there are two.
    pub what: String,
}

/// Reads fields one after the other.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Offset of the next field.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// How many bytes have not been read.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error about what was just read or is to be read next.
    pub(crate) fn damaged(&self, what: impl Into<String>) -> Damaged {
        Damaged { at: self.at, what: what.into() }
    }

    /// The next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize, name: &str) -> Result<&'a [u8], Damaged> {
        let Some(found) = self.bytes.get(self.at..).and_then(|rest| rest.get(..len)) else {
            return Err(self.damaged(format!("{name} needs {len} bytes, {} are left", self.left())));
        };
        self.at += len;
        Ok(found)
    }

    fn array<const N: usize>(&mut self, name: &str) -> Result<[u8; N], Damaged> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N, name)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, name: &str) -> Result<u8, Damaged> {
        self.array(name).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, name: &str) -> Result<u16, Damaged> {
        self.array(name).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, name: &str) -> Result<u32, Damaged> {
        self.array(name).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, name: &str) -> Result<u64, Damaged> {
        self.array(name).map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self, name: &str) -> Result<u128, Damaged> {
        self.array(name).map(u128::from_le_bytes)
    }

    /// A byte that is 0 or 1.
    pub(crate) fn bool(&mut self, name: &str) -> Result<bool, Damaged> {
        match self.u8(name)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.damaged(format!("{name} is {other}, neither 0 nor 1"))),
        }
    }

    /// A node id, which is never 0.
    pub(crate) fn node(&mut self, name: &str) -> Result<NodeId, Damaged> {
        match self.u16(name)? {
            0 => Err(self.damaged(format!("{name} is 0"))),
            id => Ok(NodeId(id)),
        }
    }

    /// A u32 count of items of at least `item_bytes` each: no more than the bytes that are left can hold.
    pub(crate) fn count(&mut self, item_bytes: usize, name: &str) -> Result<usize, Damaged> {
        let count = self.u32(name)? as usize;
        let room = self.left() / item_bytes;
        if count > room {
            return Err(self.damaged(format!("{name} is {count}, the bytes left hold {room} at most")));
        }
        Ok(count)
    }

    /// UTF-8 after a u16 length of at most `max`.
    pub(crate) fn text(&mut self, max: usize, name: &str) -> Result<&'a str, Damaged> {
        let len = usize::from(self.u16(name)?);
        if len > max {
            return Err(self.damaged(format!("{name} has {len} bytes, the limit is {max}")));
        }
        let bytes = self.bytes(len, name)?;
        std::str::from_utf8(bytes).map_err(|_| self.damaged(format!("{name} is not UTF-8")))
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<(), Damaged> {
        if self.left() == 0 { Ok(()) } else { Err(self.damaged(format!("{} bytes after the end", self.left()))) }
    }
}

/// Writes what [`Reader::text`] reads. Cut at `max` bytes (on a character), for texts that are only for people; all
/// others are checked before they come here.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str, max: usize) {
    let mut len = text.len().min(max).min(usize::from(u16::MAX));
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out.extend_from_slice(&(len as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..len]);
}

/// Writes what [`Reader::count`] reads.
pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    // Every list is bounded far below 2^32 by the limit of the value that contains it.
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

/// Writes what [`verified`] reads: the CRC32C of all that is there.
pub(crate) fn put_checksum(out: &mut Vec<u8>) {
    let crc = crc32c::crc32c(out);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// What is before the checksum at the end, which must be its CRC32C.
pub(crate) fn verified(bytes: &[u8]) -> Result<&[u8], Damaged> {
    let Some((body, stored)) = bytes.split_last_chunk::<4>() else {
        return Err(Damaged { at: 0, what: "no checksum".to_string() });
    };
    let (stored, computed) = (u32::from_le_bytes(*stored), crc32c::crc32c(body));
    if stored != computed {
        let what = format!("checksum is {stored:08x}, the bytes have {computed:08x}");
        return Err(Damaged { at: body.len(), what });
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_needs_all_its_bytes() {
        for (len, ok) in [(3, false), (4, true), (5, true)] {
            let bytes = vec![1; len];
            assert_eq!(Reader::new(&bytes).u32("x").is_ok(), ok, "{len}");
        }
    }

    #[test]
    fn a_count_must_fit_the_bytes_that_are_left() {
        for (count, ok) in [(1u32, true), (2, true), (3, false), (u32::MAX, false)] {
            let mut bytes = count.to_le_bytes().to_vec();
            bytes.extend_from_slice(&[0; 17]);
            assert_eq!(Reader::new(&bytes).count(8, "x").is_ok(), ok, "{count}");
        }
    }

    #[test]
    fn a_checksum_is_of_all_that_is_before_it() {
        let mut bytes = b"what is there".to_vec();
        put_checksum(&mut bytes);
        assert_eq!(verified(&bytes), Ok(&b"what is there"[..]));
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_eq!(verified(&bytes).unwrap_err().at, 13, "{at}");
            bytes[at] ^= 1;
        }
        assert!(verified(&bytes[..3]).is_err());
    }

    #[test]
    fn a_text_is_cut_on_a_character() {
        let mut out = Vec::new();
        put_text(&mut out, "aé", 2);
        assert_eq!(out, [1, 0, b'a']);
    }
}
