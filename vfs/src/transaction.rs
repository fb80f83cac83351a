//! One SQLite commit as pages: the unit that is replicated.
//!
//! A transaction names the *position* it was built on (its base) and everything that is needed to get from there to the
//! next one: the pages that changed, each once and none beyond the new size, and the size. With them travel the hash of
//! every page and the checksum of the whole database afterwards, so that each node checks at apply what the others have.
//!
//! Deliberately absent: the bytes on the wire or in the log (that is the business of whoever replicates).

use std::sync::Arc;

use crate::page::{PageCount, PageHash, PageNo, PageSize};

/// Index of the log entry that a database shows: positions are compared and counted by the replicator, never made here.
/// Zero is a database that no entry has created yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position(pub u64);

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Where the bytes of a page are: in memory, or in a file that is mapped.
pub trait PageBytes: Send + Sync {
    /// The page.
    fn bytes(&self) -> &[u8];
    /// Whether they are where they should be: counted by `spill.rs`, or outside of memory.
    fn is_kept(&self) -> bool {
        false
    }
    /// Whether they are what was put there. Bytes outside of memory are a disk's, which may have lost them.
    fn is_whole(&self) -> bool {
        true
    }
}

impl PageBytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Immutable content of one page, shared between the virtual WAL, the transaction and its readers. Its bytes are freed
/// with the last clone, wherever they are.
#[derive(Clone)]
pub struct PageImage(Arc<dyn PageBytes>);

impl PageImage {
    /// An image of these bytes.
    pub fn new(bytes: Arc<dyn PageBytes>) -> PageImage {
        PageImage(bytes)
    }

    /// See [`PageBytes::is_kept`].
    pub fn is_kept(&self) -> bool {
        self.0.is_kept()
    }

    /// See [`PageBytes::is_whole`].
    pub fn is_whole(&self) -> bool {
        self.0.is_whole()
    }

    /// Whether both are the same bytes in the same place.
    pub fn is_same(&self, other: &PageImage) -> bool {
        std::ptr::eq(self.bytes(), other.bytes())
    }

    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl std::ops::Deref for PageImage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl From<Vec<u8>> for PageImage {
    fn from(bytes: Vec<u8>) -> PageImage {
        PageImage(Arc::new(bytes))
    }
}

impl PartialEq for PageImage {
    fn eq(&self, other: &PageImage) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for PageImage {}

impl std::fmt::Debug for PageImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "page of {} bytes", self.len())
    }
}

/// One page of a transaction.
#[derive(Clone, PartialEq, Eq)]
pub struct ChangedPage {
    /// Which page.
    pub number: PageNo,
    /// Its content after the transaction; exactly one page long.
    pub image: PageImage,
    /// Hash of `image` as page `number`.
    pub hash: PageHash,
}

impl std::fmt::Debug for ChangedPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "page {} {}", self.number.get(), self.hash)
    }
}

/// What one SQLite commit changed.
///
/// Invariant: `pages` is sorted by page number without duplicates, every page is `page_size` long and lies within
/// `size_after`, and none is the lock page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// Position of the database that this transaction was built on.
    pub base: Position,
    /// Size of one page.
    pub page_size: PageSize,
    /// Size of the database afterwards.
    pub size_after: PageCount,
    /// Checksum of the whole database afterwards.
    pub checksum_after: PageHash,
    /// The changed pages.
    pub pages: Vec<ChangedPage>,
}

impl Transaction {
    /// The first rule of the type's invariant that does not hold, in words. For transactions that come from disk or network.
    pub fn check(&self) -> Result<(), String> {
        let mut previous = 0;
        for page in &self.pages {
            let number = page.number.get();
            if number <= previous {
                return Err(format!("page {number} after page {previous}: pages must ascend"));
            }
            if !self.size_after.contains(page.number) {
                return Err(format!("page {number} beyond the database size of {} pages", self.size_after.0));
            }
            if page.image.len() != self.page_size.len() {
                return Err(format!(
                    "page {number} has {} bytes, page size is {}",
                    page.image.len(),
                    self.page_size.bytes()
                ));
            }
            if page.number == self.page_size.lock_page() {
                return Err(format!("page {number} is the lock page"));
            }
            previous = number;
        }
        if self.size_after.0 == 0 {
            return Err("a database of 0 pages".to_string());
        }
        Ok(())
    }
}
