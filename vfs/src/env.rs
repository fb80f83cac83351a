//! The doors to the outside: file system, clock, randomness. Each is a trait with a real and a simulated twin.
//!
//! Every call that can fail carries a *label*, a static word that names why the call is made (`"log.sync"`). Tests aim
//! faults at labels ("fail the third `log.sync`") and error messages name them.
//!
//! What a `File` promises: a write is in the file's content when the call returns and durable after the next
//! `sync_data` that returned `Ok`. Before that a crash may keep any part of it, in any order. After a failed sync nothing
//! is known about what is durable; the caller must not retry (the kernel reports a lost page once).
//!
//! Deliberately absent: networking (above us), how files are mapped into memory (`map.rs`), and any notion of what is in the files.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::transaction::PageBytes;

pub mod os;
pub mod sim;
pub mod watch;

/// Why a call is made; see the module's text.
pub type Label = &'static str;

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// Must exist; for reading only.
    Read,
    /// Must exist; for reading and writing.
    Write,
    /// Must not exist; created, for reading and writing. The directory entry is durable only after `sync_dir`.
    CreateNew,
}

/// A directory tree of files.
pub trait Fs: Send + Sync + Debug {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open, label: Label) -> io::Result<Arc<dyn File>>;
    /// Renames a file within one directory, replacing what is there. Durable only after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path, label: Label) -> io::Result<()>;
    /// Removes a file. Durable only after `sync_dir`.
    fn remove(&self, path: &Path, label: Label) -> io::Result<()>;
    /// Creates a directory and its parents; fine if it exists.
    fn create_dir_all(&self, path: &Path, label: Label) -> io::Result<()>;
    /// Names of the files in a directory, sorted.
    fn list(&self, dir: &Path, label: Label) -> io::Result<Vec<String>>;
    /// Names of all that is in a directory, also of other directories, sorted. For people: a name need not be one that can be opened.
    fn entries(&self, dir: &Path, label: Label) -> io::Result<Vec<String>> {
        self.list(dir, label)
    }
    /// Makes the directory's entries durable.
    fn sync_dir(&self, dir: &Path, label: Label) -> io::Result<()>;
    /// Takes the exclusive lock of a directory (a file `LOCK` in it) until the guard is dropped. `WouldBlock` if another
    /// process, or this one, has it.
    fn lock_dir(&self, dir: &Path, label: Label) -> io::Result<Box<dyn DirLock>>;
    /// Bytes that files in this directory can still grow by; `None` where nobody knows.
    fn room(&self, _dir: &Path, _label: Label) -> io::Result<Option<u64>> {
        Ok(None)
    }
    /// Room outside of memory for pieces of `piece` bytes each, on the file system of `dir`. It has no name and leaves
    /// nothing behind, however the process ends.
    fn scratch(&self, dir: &Path, piece: usize, label: Label) -> io::Result<Arc<dyn Scratch>>;
}

/// Room for bytes that should not be in memory, and need not survive the process.
pub trait Scratch: Send + Sync + Debug {
    /// Takes a piece in. It is written by this call, so a full disk is an error here and not a fault when it is read;
    /// its room is free again when the last reference to it is gone.
    fn put(&self, piece: &[u8], label: Label) -> io::Result<Arc<dyn PageBytes>>;
    /// Bytes of the pieces that are there now.
    fn used(&self) -> u64;
}

/// Holds the lock of a directory; dropping it gives the lock back.
pub trait DirLock: Send + Sync + Debug {}

/// One open file. All methods take `&self`; concurrent calls on disjoint ranges are allowed.
pub trait File: Send + Sync + Debug {
    /// Fills `buf` from `offset`; returns how many bytes there were, less than `buf.len()` only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64, label: Label) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`, extending the file if needed.
    fn write_at(&self, buf: &[u8], offset: u64, label: Label) -> io::Result<()>;
    /// Lets the disk begin with `len` bytes from `offset`, so that there is less to wait for in [`File::sync_data`], which alone
    /// says what is durable. Waits for nothing, and need not do anything.
    fn write_soon(&self, _offset: u64, _len: u64) {}
    /// Makes everything written so far durable, the length included. Never call it again after it failed.
    fn sync_data(&self, label: Label) -> io::Result<()>;
    /// Begins to make durable what was written so far, once the time before has ended, and says what came of that one. So a
    /// disk is busy while its caller brings what is next; whether that goes on beside the caller is up to the file. The last one
    /// is waited for by [`File::sync_data`], which fails if it did, or by [`File::settle`]. After an error as there.
    fn sync_behind(&self, label: Label) -> io::Result<()>;
    /// Waits for what [`File::sync_behind`] began last, and says what came of it. The label is the one of that.
    fn settle(&self, label: Label) -> io::Result<()>;
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64, label: Label) -> io::Result<()>;
    /// Locks `len` bytes from `start` against all other openers of this file, in this process or another, until it is
    /// closed. `WouldBlock` if one of them has a lock there. A file that nobody else can open needs none.
    fn lock(&self, _start: u64, _len: u64, _label: Label) -> io::Result<()> {
        Ok(())
    }
    /// Maps the first `len` bytes; a file may be shorter. The mapping is independent of this handle, but as long as it is
    /// there a lock that was taken through the handle is held.
    fn map(&self, _len: u64, label: Label) -> io::Result<Arc<dyn Mapped>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, format!("{label}: this file cannot be mapped")))
    }
    /// Length of the file in bytes.
    fn len(&self, label: Label) -> io::Result<u64>;
}

/// A file that is mapped into memory, for reading.
pub trait Mapped: Send + Sync + Debug {
    /// `len` bytes from `offset` on, where they are: nothing is copied. They must lie in what was mapped, and nobody may
    /// write to them, or cut them off, as long as this reference is there. An error if the file does not have them.
    fn piece(&self, offset: u64, len: usize, label: Label) -> io::Result<Arc<dyn PageBytes>>;
}

/// Monotonic time.
pub trait Clock: Send + Sync + Debug {
    /// Time since some fixed moment of this process; never goes back.
    fn now(&self) -> Duration;
}

/// Random numbers. The real one is the operating system's; ids and incarnations are drawn from it.
pub trait Rng: Send + Sync + Debug {
    /// 64 random bits.
    fn next_u64(&self) -> u64;
}

/// All the doors of one node.
#[derive(Clone, Debug)]
pub struct Env {
    /// Files.
    pub fs: Arc<dyn Fs>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<dyn Rng>,
}

/// Whether an error says that the file system has no room for what was to be written: it is full, or what its owner may have of it
/// is used up, or a file may not be as long. What was written of it is not known; once there is room it may be written again. This
/// holds for a write or a new file; what a failed sync says is another matter.
pub fn is_no_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Whether an error says that this process, or the system, has as many files and sockets open as it may. What was to be opened
/// is as it was, and may be opened later.
pub fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// What a person can do about it.
pub const MORE_FILES: &str =
    "raise the limit of open files of this process: `ulimit -n`, or LimitNOFILE in a systemd unit";

/// The error as text, and what to do about it where that is known.
pub fn in_words(error: &io::Error) -> String {
    if is_out_of_files(error) { format!("{error}; {MORE_FILES}") } else { error.to_string() }
}
