//! The write-ahead log of one database, as SQLite sees it: formats, the wal-index, and a WAL that lives in memory.
//!
//! ```text
//! WAL        32-byte header, then frames                                              header.rs, frame.rs
//! checksum   one running sum through header and frames                                checksum.rs
//! wal-index  two copies of a header, checkpoint info, hash tables page -> frame       index.rs
//! store      the bytes of the WAL; its pages are shared with transactions and readers store.rs
//! ```
//!
//! A transaction is in the WAL when its commit frame is; readers see it when the wal-index header says so. The first is
//! where the replicator is asked, the second is what "published" means.
//!
//! Deliberately absent: files (a WAL of ours never is one), locks, and who may append when (`database.rs`).

pub mod checksum;
pub mod frame;
pub mod header;
pub mod index;
pub mod store;

use crate::wal::checksum::Checksum;
use crate::wal::header::Salts;

/// Why bytes are no WAL, or not the part of one that they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalError {
    /// Not even long enough.
    Short {
        /// What was to be read.
        what: &'static str,
        /// Its length in bytes.
        need: usize,
        /// How many bytes there were.
        have: usize,
    },
    /// The WAL header starts with something else.
    Magic(u32),
    /// The WAL header names another format.
    Version(u32),
    /// The WAL header names a page size that does not exist.
    PageSize(u32),
    /// The WAL header's checksum is not that of its bytes.
    HeaderChecksum {
        /// What the header says.
        stored: Checksum,
        /// What its bytes sum up to.
        computed: Checksum,
    },
    /// A frame of page 0: never written, or taken back.
    PageZero,
    /// A page image that is not as long as a page.
    ImageLength(usize),
    /// A frame of another lap.
    FrameSalts {
        /// Salts of the WAL header.
        header: Salts,
        /// Salts of the frame.
        frame: Salts,
    },
    /// A frame that was not written behind the frames before it, or not completely.
    FrameChecksum {
        /// What the frame says.
        stored: Checksum,
        /// What the WAL up to here sums up to.
        computed: Checksum,
    },
    /// A byte beyond the last frame that has a number.
    TooFar(u64),
}

impl std::fmt::Display for WalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WalError::Short { what, need, have } => write!(f, "{what}: {have} bytes, need {need}"),
            WalError::Magic(magic) => write!(f, "wal header: magic {magic:08x}, expected 377f0682 or 377f0683"),
            WalError::Version(version) => write!(f, "wal header: version {version}, expected 3007000"),
            WalError::PageSize(bytes) => write!(f, "wal header: page size {bytes}"),
            WalError::HeaderChecksum { stored, computed } => {
                write!(f, "wal header: checksum mismatch, stored {stored}, computed {computed}")
            }
            WalError::PageZero => write!(f, "frame header: page 0"),
            WalError::ImageLength(len) => write!(f, "frame: page image of {len} bytes"),
            WalError::FrameSalts { header, frame } => write!(
                f,
                "frame header: salt mismatch, header {:08x}{:08x}, frame {:08x}{:08x}",
                header[0], header[1], frame[0], frame[1]
            ),
            WalError::FrameChecksum { stored, computed } => {
                write!(f, "frame header: checksum mismatch, stored {stored}, computed {computed}")
            }
            WalError::TooFar(offset) => write!(f, "wal offset {offset}: beyond the last frame number"),
        }
    }
}

impl std::error::Error for WalError {}
