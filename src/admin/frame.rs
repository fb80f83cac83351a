//! JSON in a frame, as it goes over the admin socket.
//!
//! ```text
//! offset size  field (little-endian), the same in both directions
//!      0    4  length of the JSON that follows
//!      4    n  JSON
//! ```
//!
//! Whoever reads says how much it takes; memory is taken as the bytes arrive, not for what a length claims.
//!
//! Deliberately absent: sockets, and what the JSON means.

use std::io::{self, Read, Write};

/// Writes one frame, in one call: a reader never waits for the rest of a length.
pub(crate) fn write(to: &mut (impl Write + ?Sized), json: &[u8]) -> io::Result<()> {
    let length = u32::try_from(json.len()).map_err(|_| io::Error::other("more than 4 GiB of JSON"))?;
    let mut frame = Vec::with_capacity(4 + json.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(json);
    to.write_all(&frame)
}

/// Reads one frame of at most `limit` bytes.
pub(crate) fn read(from: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes of JSON, limit {limit}")));
    }
    let mut json = Vec::new();
    from.take(length as u64).read_to_end(&mut json)?;
    if json.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_whole_or_an_error() {
        let mut frame = Vec::new();
        write(&mut frame, b"{}").unwrap();
        assert_eq!(frame, b"\x02\0\0\0{}");
        assert_eq!(read(&mut &frame[..], 2).unwrap(), b"{}");
        assert_eq!(read(&mut &frame[..], 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        for cut in 0..frame.len() {
            assert_eq!(read(&mut &frame[..cut], 2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
    }
}
