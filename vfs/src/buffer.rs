//! Buffers that may be large: then their memory comes from the system itself, and goes back to it at once.
//!
//! An allocator keeps what was freed, for the next one who asks. With glibc's that is a lot: once a buffer of some size, up to
//! 32 MiB, was freed, those of that size are kept in the arena of the thread that made them, and each arena keeps up to twice
//! as much at its end. A part of a large transaction is made in one thread, written by another, sent by a third and freed by
//! whoever is last, so every arena comes to keep some of them; a leader had 200 MB in memory that it did not use
//! (`benches/RESULTS.md`). Memory that was mapped for one buffer is gone with it, in whichever thread that is, under every
//! allocator.
//!
//! Mapped memory is taken page by page as it is written to. So a buffer may be made for as many bytes as somebody announces,
//! and costs what comes.
//!
//! Deliberately absent: files (`map.rs`), and sharing: who needs it puts the buffer behind a counter.

use memmap2::MmapMut;

/// Smaller ones are the allocator's: a map costs a call to the system, its end another one, and whole pages.
const LARGE: usize = 256 << 10;

/// See the module's text.
#[derive(Debug)]
pub struct Buffer(Memory);

#[derive(Debug)]
enum Memory {
    Mapped(MmapMut),
    Heap(Vec<u8>),
}

impl Buffer {
    /// A buffer of so many zeros.
    pub fn zeroed(len: usize) -> Buffer {
        // A system that maps no more for this process leaves it to the allocator, which has its own last word.
        let mapped = if len >= LARGE { MmapMut::map_anon(len).ok() } else { None };
        Buffer(mapped.map_or_else(|| Memory::Heap(vec![0; len]), Memory::Mapped))
    }

    /// A buffer with these bytes.
    pub fn copy_of(bytes: &[u8]) -> Buffer {
        if bytes.len() < LARGE {
            return Buffer(Memory::Heap(bytes.to_vec()));
        }
        let mut buffer = Buffer::zeroed(bytes.len());
        buffer.as_mut().copy_from_slice(bytes);
        buffer
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Memory::Mapped(map) => map,
            Memory::Heap(bytes) => bytes,
        }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Mapped(map) => map,
            Memory::Heap(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_its_bytes_whatever_its_size() {
        for len in [0, 1, LARGE - 1, LARGE, LARGE + 1] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            assert_eq!(Buffer::copy_of(&bytes).as_ref(), bytes, "{len}");
            let mut buffer = Buffer::zeroed(len);
            assert_eq!(buffer.as_ref(), vec![0; len], "{len}");
            buffer.as_mut().copy_from_slice(&bytes);
            assert_eq!(buffer.as_ref(), bytes, "{len}");
            assert_eq!(matches!(buffer.0, Memory::Mapped(_)), len >= LARGE, "{len}");
        }
    }
}
