//! Page numbers, page sizes, the lock page, and the hash that every page has.
//!
//! The *database checksum* is the XOR of the hashes of all pages except the lock page. A page hash is XXH3-128 of the
//! page's bytes, seeded with its page number, so that two pages that change places change the checksum. Nodes trust each
//! other, so the hash need not be cryptographic; it finds rot and divergence.
//!
//! The *lock page* is the page that contains byte 2^30 of the file. SQLite never stores content there (its unix locks
//! live on those bytes), so it has no hash, is in no transaction and reads as zeros.
//!
//! Deliberately absent: any file access, and everything about frames.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::planted::{self, Bug};

/// Byte offset that SQLite reserves for its locks; the page that contains it is the lock page.
pub const LOCK_BYTE: u64 = 0x4000_0000;

/// Where the lock page is for the databases of this process. A simulation moves it, since its databases have no gigabyte.
static LOCK_PAGE_AT: AtomicU64 = AtomicU64::new(LOCK_BYTE);

/// Moves the lock page of all databases of this process to where that byte is. SQLite must be told the same.
pub(crate) fn move_lock_page(at: u64) {
    LOCK_PAGE_AT.store(at, Ordering::Relaxed);
}

/// How many bytes from [`LOCK_BYTE`] on SQLite's own "unix" VFS uses for its locks. Whoever holds a lock on all of them
/// keeps every stock SQLite out: it says "database is locked".
pub const LOCK_BYTES: u64 = 512;

/// Number of a page in a database file, counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageNo(NonZeroU32);

const _: () = assert!(size_of::<Option<PageNo>>() == 4);

impl PageNo {
    /// The page with the database header.
    pub const FIRST: PageNo = PageNo(NonZeroU32::MIN);

    /// `None` for 0, which SQLite uses as "no page".
    pub fn new(number: u32) -> Option<PageNo> {
        NonZeroU32::new(number).map(PageNo)
    }

    /// The number, at least 1.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Offset of this page's first byte in the database file.
    pub fn offset(self, size: PageSize) -> u64 {
        u64::from(self.get() - 1) * u64::from(size.bytes())
    }
}

/// Size of a database in pages. Zero only for a database that does not exist yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageCount(pub u32);

impl PageCount {
    /// Whether `page` lies inside a database of this size.
    pub fn contains(self, page: PageNo) -> bool {
        page.get() <= self.0
    }
}

/// Size of one page in bytes: a power of two from 512 to 65536.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageSize(u32);

impl PageSize {
    /// What a database gets when nobody asks for anything else; SQLite's own default.
    pub const DEFAULT: PageSize = PageSize(4096);

    /// `None` unless `bytes` is a power of two from 512 to 65536.
    pub const fn new(bytes: u32) -> Option<PageSize> {
        if bytes >= 512 && bytes <= 65536 && bytes.is_power_of_two() { Some(PageSize(bytes)) } else { None }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// The size as a length in memory.
    #[allow(clippy::len_without_is_empty, reason = "a page is never empty")]
    pub const fn len(self) -> usize {
        self.0 as usize
    }

    /// Number of the page that holds [`LOCK_BYTE`].
    pub fn lock_page(self) -> PageNo {
        let one = u32::from(planted::is(Bug::LockPageOff));
        let number = (LOCK_PAGE_AT.load(Ordering::Relaxed) / u64::from(self.0)) as u32 + 1 - one;
        PageNo::new(number).unwrap_or(PageNo::FIRST)
    }
}

/// Hash of one page, or the XOR of many: see the module's text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct PageHash(pub u128);

impl PageHash {
    /// Hash of `content` as page `number`.
    pub fn of(number: PageNo, content: &[u8]) -> PageHash {
        PageHash(xxhash_rust::xxh3::xxh3_128_with_seed(content, u64::from(number.get())))
    }

    /// Adds a page to a checksum, or takes it out again: XOR is its own inverse.
    #[must_use]
    pub fn toggle(self, page: PageHash) -> PageHash {
        PageHash(self.0 ^ page.0)
    }
}

impl std::fmt::Debug for PageHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Display for PageHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_powers_of_two_from_512_to_65536() {
        for (bytes, ok) in
            [(0, false), (256, false), (511, false), (512, true), (513, false), (65536, true), (131072, false)]
        {
            assert_eq!(PageSize::new(bytes).is_some(), ok, "{bytes}");
        }
    }

    #[test]
    fn the_lock_page_contains_the_lock_byte() {
        for shift in 9..=16 {
            let size = PageSize::new(1 << shift).unwrap();
            let start = size.lock_page().offset(size);
            assert!(start <= LOCK_BYTE && LOCK_BYTE < start + u64::from(size.bytes()));
        }
    }

    #[test]
    fn a_page_that_moves_changes_its_hash() {
        let content = [7u8; 512];
        assert_ne!(PageHash::of(PageNo::FIRST, &content), PageHash::of(PageNo::new(2).unwrap(), &content));
    }
}
