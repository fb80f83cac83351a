//! Puts checksums and hashes right in bytes that a fuzzer changed, as far as the bytes still say where they are.

use shoaldb::fuzzed::Kind;
use shoaldb_vfs::page::PageCount;
use shoaldb_vfs::wal::checksum::{ByteOrder, Checksum};
use shoaldb_vfs::wal::frame::{FrameHeader, seal};
use shoaldb_vfs::wal::index::INDEX_HEADER_BYTES;
use xxhash_rust::xxh3::xxh3_128;

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..value.len())) {
        place.copy_from_slice(value);
    }
}

/// The last four bytes are the CRC32C of the others.
pub(crate) fn sealed(bytes: &mut [u8]) {
    if let Some((content, crc)) = bytes.split_last_chunk_mut() {
        *crc = crc32c::crc32c(content).to_le_bytes();
    }
}

/// A catalogue whose length stands at `at`, with the catalogue behind it.
fn catalogue(bytes: &mut [u8], at: usize) -> Option<()> {
    let len = u32_at(bytes, at)?;
    sealed(bytes.get_mut(at + 4..)?.get_mut(..len)?);
    Some(())
}

/// A registry, and the catalogue in it.
pub(crate) fn registry(bytes: &mut [u8]) {
    if bytes.starts_with(b"SHrg") {
        catalogue(bytes, 8);
    }
    sealed(bytes);
}

/// The head of a frame: length and checksum.
pub(crate) fn frame(bytes: &mut [u8]) {
    let Some((head, body)) = bytes.split_first_chunk_mut::<9>() else { return };
    let len = (body.len() as u32).to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[&len[..], &head[8..]].concat()), body);
    head[..4].copy_from_slice(&len);
    head[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// What has a checksum or a hash somewhere, not at its end.
pub(crate) fn message(kind: Kind, bytes: &mut [u8]) {
    match kind {
        Kind::SnapshotAnswer => {
            if let Some((head, body)) = bytes.split_first_chunk_mut::<17>()
                && matches!(head[0], 2 | 7..=9)
            {
                head[1..].copy_from_slice(&xxh3_128(body).to_le_bytes());
            }
        }
        Kind::Manifest => {
            let lists = (0..4).try_fold(25, |at, _| Some(at + 4 + 2 * u32_at(bytes, at)?));
            lists.and_then(|at| catalogue(bytes, at + 1));
        }
        Kind::History => {
            let runs = u32_at(bytes, 24).map(|runs| 28 + 17 * runs);
            let end = runs.and_then(|at| Some(at + 4 + 16 * u32_at(bytes, at)?));
            if let Some(end) = end
                && let Some(content) = bytes.get(..end)
            {
                let crc = crc32c::crc32c(content);
                put(bytes, end, &crc.to_le_bytes());
            }
        }
        _ => {}
    }
}

/// The header of a WAL.
pub(crate) fn wal_header(bytes: &mut [u8]) {
    if let Some((content, sum)) = bytes.split_first_chunk_mut::<24>() {
        let order = if content[3] % 2 == 1 { ByteOrder::Big } else { ByteOrder::Little };
        put(sum, 0, &Checksum::default().update(content, order).to_bytes());
    }
}

/// A frame of a WAL, whose image is made as long as a page is.
pub(crate) fn wal_frame(bytes: &mut Vec<u8>) {
    let Ok(FrameHeader { page, commit_size, salts, .. }) = FrameHeader::decode(bytes) else { return };
    let len = (bytes.len() - 24).next_power_of_two().clamp(512, 65536);
    bytes.resize(24 + len, 0);
    let (header, image) = bytes.split_at_mut(24);
    let (sealed, _) = seal(page, commit_size.filter(|size| *size != PageCount(0)), image, salts, Checksum::default());
    header.copy_from_slice(&sealed);
}

/// The two copies of a wal-index header: the sum of copy `[0]`, and then the other one like it.
pub(crate) fn index_header(region: &mut [u8]) {
    let (first, rest) = region.split_at_mut(INDEX_HEADER_BYTES);
    let Checksum(s0, s1) = Checksum::default().update(&first[..40], ByteOrder::NATIVE);
    put(first, 40, &s0.to_ne_bytes());
    put(first, 44, &s1.to_ne_bytes());
    put(rest, 0, first);
}

/// Drawn from cluster and number, as `log/record.rs` has it.
pub(crate) fn lap(cluster: u64, number: u64) -> u64 {
    let x = (cluster ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The segments of a log, in order: each continues the one before, and is one chain. The layout is in `log/record.rs`.
pub(crate) fn segments<'a>(files: impl IntoIterator<Item = &'a mut Vec<u8>>) {
    let mut before = None;
    for bytes in files {
        before = segment(bytes, before);
    }
}

/// Where the segment ends, and its chain there. `None` if it has no head.
fn segment(bytes: &mut [u8], before: Option<(u64, u32)>) -> Option<(u64, u32)> {
    let len = u32_at(bytes, 12).filter(|len| (94..=bytes.len()).contains(len))?;
    let lap = lap(u64_at(bytes, 16)?, u64_at(bytes, 32)?);
    put(bytes, 24, &lap.to_le_bytes());
    if let Some((end, chain)) = before {
        put(bytes, 40, &end.to_le_bytes());
        put(bytes, 48, &chain.to_le_bytes());
    }
    sealed(&mut bytes[..len]);
    let mut chain = crc32c::crc32c(&bytes[..len - 4]);
    let mut offset = len.next_multiple_of(512);
    while bytes.get(offset..).is_some_and(|rest| rest.len() >= 40 && rest.starts_with(b"BTCH")) {
        let batch = &mut bytes[offset..];
        let end = 40 + u32_at(batch, 36)?;
        put(batch, 8, &lap.to_le_bytes());
        put(batch, 16, &(offset as u64).to_le_bytes());
        put(batch, 32, &chain.to_le_bytes());
        let mut next = crc32c::crc32c(&batch[8..40]);
        put(batch, 4, &next.to_le_bytes());
        let mut at = 40;
        while let Some(len) = u32_at(batch, at + 4)
            && at < end
            && let Some(content) = batch.get(at + 4..at + 32 + len)
        {
            next = crc32c::crc32c_append(next, content);
            put(batch, at, &next.to_le_bytes());
            at += 32 + len.next_multiple_of(8);
        }
        // That the log goes on elsewhere is said behind the end.
        if u64_at(batch, 48) == Some(6) {
            break;
        }
        chain = next;
        offset = (offset + end).next_multiple_of(512);
    }
    Some((offset as u64, chain))
}
