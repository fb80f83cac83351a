//! The first page of an empty database, made by hand.
//!
//! SQLite uses the WAL from the first moment only if page 1 already says so: with an empty file it would delete the WAL
//! and work with a rollback journal. So every database starts as one page: the header with bytes 18 and 19 set to 2
//! (WAL) and an empty table leaf as the root of `sqlite_schema`. Encoding and schema format stay zero, so that the first
//! writer can still choose them. The page is the same on every node, which makes it the common base of all positions.
//!
//! ```text
//! offset size  field of the database header that is not zero (big-endian), from SQLite's file format document
//!      0   16  "SQLite format 3\0"
//!     16    2  page size; 1 for 65536
//!     18    1  write version: 2, WAL
//!     19    1  read version: 2, WAL
//!     21    3  64, 32, 32: embedded payload fractions
//!     24    4  change counter: 1
//!     28    4  size in pages: 1
//!     52    4  largest root page: 1 with auto_vacuum, else 0
//!     64    4  1 for incremental auto_vacuum
//!     92    4  the change counter that the size belongs to: 1
//!    100    1  13: table leaf      (the page's own header, right behind the file header)
//!    105    2  start of the cell content: the page size; 0 for 65536
//! ```

use crate::page::PageSize;

/// How a database gives back free pages; fixed in page 1 when it is created.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AutoVacuum {
    /// Free pages stay in the file until VACUUM.
    #[default]
    None,
    /// Every commit gives them back.
    Full,
    /// `PRAGMA incremental_vacuum` gives them back.
    Incremental,
}

/// What page 1 fixes for the life of a database.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    /// Size of each page.
    pub page_size: PageSize,
    /// How free pages are given back at the start; a VACUUM can change it later.
    pub auto_vacuum: AutoVacuum,
}

impl Default for Geometry {
    fn default() -> Geometry {
        Geometry { page_size: PageSize::DEFAULT, auto_vacuum: AutoVacuum::None }
    }
}

impl Geometry {
    /// Page 1 of an empty database.
    pub fn first_page(&self) -> Vec<u8> {
        let size = self.page_size.bytes();
        let mut page = vec![0u8; self.page_size.len()];
        page[..16].copy_from_slice(b"SQLite format 3\0");
        let size_code: u16 = if size == 65536 { 1 } else { size as u16 };
        page[16..18].copy_from_slice(&size_code.to_be_bytes());
        page[18..20].copy_from_slice(&[2, 2]);
        page[21..24].copy_from_slice(&[64, 32, 32]);
        page[24..28].copy_from_slice(&1u32.to_be_bytes());
        page[28..32].copy_from_slice(&1u32.to_be_bytes());
        let largest_root = u32::from(self.auto_vacuum != AutoVacuum::None);
        page[52..56].copy_from_slice(&largest_root.to_be_bytes());
        let incremental = u32::from(self.auto_vacuum == AutoVacuum::Incremental);
        page[64..68].copy_from_slice(&incremental.to_be_bytes());
        page[92..96].copy_from_slice(&1u32.to_be_bytes());
        page[100] = 13;
        let content_start: u16 = if size == 65536 { 0 } else { size as u16 };
        page[105..107].copy_from_slice(&content_start.to_be_bytes());
        page
    }
}
