//! One frame: nine bytes of head and a body.
//!
//! ```text
//! offset size  field (little-endian)
//!      0    4  length of the body
//!      4    4  CRC32C of the length, the type and the body
//!      8    1  type
//!      9       body
//!
//! type           body at most  layout
//!    1  hello           4 KiB  handshake.rs
//!    2  welcome         4 KiB  handshake.rs
//!    3  reject          4 KiB  handshake.rs
//!    4  message    1 GiB+1 MiB  codec.rs
//!    5  found         128 KiB  found.rs
//!    6  request     64 KiB+8   8 request id, bytes of the caller
//!    7  response    64 MiB+8   8 id of the request, bytes of the answer
//! ```
//!
//! The checksum finds what TCP's sixteen bits let through, and a stream that lost its place. A frame that is wrong ends
//! its connection: there is no way to find the next one, and the dialer connects again.
//!
//! The limit depends on the type, and before the handshake only its three types are read: a stranger cannot make us take
//! memory. Nor does a length alone: whoever reads a body takes memory as its bytes arrive.
//!
//! Deliberately absent: sockets, and what is in a body.

use crate::entry::MAX_ENTRY;
use crate::fields::Damaged;

/// Bytes of a frame's head.
pub const HEAD: usize = 9;

/// Longest body of a request. Anybody who reaches the port may send one, on every connection that is open, so it has room
/// for a path and no more.
pub const MAX_REQUEST: usize = 64 << 10;
/// Longest body of a response.
pub const MAX_RESPONSE: usize = 64 << 20;

/// Type of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// The dialer's first frame.
    Hello = 1,
    /// The answer that opens a connection.
    Welcome = 2,
    /// The answer that refuses it.
    Reject = 3,
    /// A Raft message.
    Message = 4,
    /// A message of the founding.
    Found = 5,
    /// A call.
    Request = 6,
    /// Its answer.
    Response = 7,
}

impl FrameKind {
    fn from_number(number: u8) -> Option<FrameKind> {
        Some(match number {
            1 => FrameKind::Hello,
            2 => FrameKind::Welcome,
            3 => FrameKind::Reject,
            4 => FrameKind::Message,
            5 => FrameKind::Found,
            6 => FrameKind::Request,
            7 => FrameKind::Response,
            _ => return None,
        })
    }

    /// Longest body.
    pub fn limit(self) -> usize {
        match self {
            FrameKind::Hello | FrameKind::Welcome | FrameKind::Reject => 4 << 10,
            // One entry of the longest, or a batch that is far shorter; and the fields around it.
            FrameKind::Message => MAX_ENTRY + (1 << 20),
            FrameKind::Found => 128 << 10,
            FrameKind::Request => MAX_REQUEST + 8,
            FrameKind::Response => MAX_RESPONSE + 8,
        }
    }
}

/// A frame's head, checked for type and limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Type of the frame.
    pub kind: FrameKind,
    /// Length of the body, within the type's limit.
    pub len: usize,
    crc: u32,
}

impl Head {
    /// Reads a head.
    pub fn parse(bytes: &[u8; HEAD]) -> Result<Head, Damaged> {
        let [l0, l1, l2, l3, c0, c1, c2, c3, kind] = *bytes;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let Some(kind) = FrameKind::from_number(kind) else {
            return Err(Damaged { at: 8, what: format!("frame type {kind}, known are 1 to 7") });
        };
        if len > kind.limit() {
            return Err(Damaged { at: 0, what: format!("{kind:?} frame of {len} bytes, limit {}", kind.limit()) });
        }
        Ok(Head { kind, len, crc: u32::from_le_bytes([c0, c1, c2, c3]) })
    }

    /// Checks the body that came after this head.
    pub fn check(&self, body: &[u8]) -> Result<(), Damaged> {
        if body.len() != self.len {
            return Err(Damaged { at: HEAD, what: format!("body of {} bytes, head says {}", body.len(), self.len) });
        }
        let computed = checksum(self.len as u32, self.kind, body);
        if computed != self.crc {
            let what = format!("{:?} frame has checksum {computed:08x}, head says {:08x}", self.kind, self.crc);
            return Err(Damaged { at: 4, what });
        }
        Ok(())
    }
}

fn checksum(len: u32, kind: FrameKind, body: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&len.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &[kind as u8]), body)
}

/// A body longer than its type allows. Its sender can do something about that, its receiver could not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{kind:?} frame of {len} bytes, limit {}", kind.limit())]
pub struct FrameTooLong {
    /// Type of the frame.
    pub kind: FrameKind,
    /// Length of the body.
    pub len: usize,
}

/// Appends a frame whose body `write` appends. On an error `out` is as before.
pub fn put(out: &mut Vec<u8>, kind: FrameKind, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), FrameTooLong> {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    write(out);
    match head(kind, &[&out[start + HEAD..]]) {
        Ok(head) => {
            out[start..start + HEAD].copy_from_slice(&head);
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// The head of a frame whose body is these parts, one behind the other.
pub fn head(kind: FrameKind, parts: &[&[u8]]) -> Result<[u8; HEAD], FrameTooLong> {
    let len = parts.iter().map(|part| part.len()).sum();
    if len > kind.limit() {
        return Err(FrameTooLong { kind, len });
    }
    let crc = parts.iter().fold(checksum(len as u32, kind, &[]), |crc, part| crc32c::crc32c_append(crc, part));
    let mut head = [kind as u8; HEAD];
    head[..4].copy_from_slice(&(len as u32).to_le_bytes());
    head[4..8].copy_from_slice(&crc.to_le_bytes());
    Ok(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(bytes: &[u8]) -> Result<(FrameKind, Vec<u8>), Damaged> {
        let (head, body) = bytes.split_first_chunk::<HEAD>().ok_or(Damaged { at: 0, what: String::new() })?;
        let head = Head::parse(head)?;
        head.check(body)?;
        Ok((head.kind, body.to_vec()))
    }

    #[test]
    fn a_frame_comes_back_the_same() {
        for number in 1..=7 {
            let kind = FrameKind::from_number(number).unwrap();
            let mut out = Vec::new();
            put(&mut out, kind, |out| out.extend_from_slice(b"body")).unwrap();
            assert_eq!(parse(&out), Ok((kind, b"body".to_vec())));
        }
    }

    #[test]
    fn protocol_1_frames_look_like_this() {
        let mut out = Vec::new();
        put(&mut out, FrameKind::Request, |out| out.extend_from_slice(&[1, 2])).unwrap();
        let crc = crc32c::crc32c(&[2, 0, 0, 0, 6, 1, 2]).to_le_bytes();
        assert_eq!(out, [&[2, 0, 0, 0][..], &crc, &[6, 1, 2]].concat());
    }

    #[test]
    fn a_body_in_parts_makes_the_same_frame() {
        let mut whole = Vec::new();
        put(&mut whole, FrameKind::Response, |out| out.extend_from_slice(b"abcdefgh")).unwrap();
        for at in [0, 1, 7, 8] {
            let (first, rest) = b"abcdefgh".split_at(at);
            let head = head(FrameKind::Response, &[first, rest]).unwrap();
            assert_eq!([&head, first, rest].concat(), whole, "cut at {at}");
        }
        let long = vec![0; FrameKind::Hello.limit()];
        assert!(head(FrameKind::Hello, &[&long]).is_ok());
        assert!(head(FrameKind::Hello, &[&[0], &long]).is_err());
    }

    #[test]
    fn limits_hold_for_writer_and_reader() {
        for kind in [FrameKind::Hello, FrameKind::Found] {
            for len in [kind.limit() - 1, kind.limit(), kind.limit() + 1] {
                let mut out = vec![9];
                let written = put(&mut out, kind, |out| out.resize(out.len() + len, 0));
                assert_eq!(written.is_ok(), len <= kind.limit());
                let mut head = [0; HEAD];
                head[..4].copy_from_slice(&(len as u32).to_le_bytes());
                head[8] = kind as u8;
                assert_eq!(Head::parse(&head).is_ok(), len <= kind.limit());
                assert!(written.is_ok() || out == [9]);
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_found() {
        let mut out = Vec::new();
        put(&mut out, FrameKind::Message, |out| out.extend_from_slice(b"some body")).unwrap();
        for bit in 0..out.len() * 8 {
            let mut bytes = out.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bytes).is_err(), "bit {bit}");
        }
        for len in 0..out.len() {
            assert!(parse(&out[..len]).is_err(), "{len}");
        }
    }

    proptest! {
        /// Shows INV-15.
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&bytes);
        }
    }
}
