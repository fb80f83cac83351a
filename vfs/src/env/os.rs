//! The real doors: files of the operating system, its monotonic clock, its random numbers.
//!
//! Reads and writes are `pread` and `pwrite`, so that threads may share a file; `sync_data` is `fdatasync`, which makes
//! the length durable too when it changed. `sync_dir` is an `fsync` of the directory. The lock of a directory is a
//! `flock` on the file `LOCK` in it: it belongs to the open file, so it ends with the process, however that ends, and a
//! second attempt from the same process is refused like one from another.
//!
//! Deliberately absent: retries of any kind, `O_DIRECT` (measured, no gain), and memory maps (`map.rs`).

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with, statvfs};
use rustix::io::Errno;

use super::{Clock, DirLock, Env, File, Fs, Label, Mapped, Open, Rng, Scratch};
use crate::map::{MappedFile, MappedScratch};
use crate::transaction::PageBytes;

/// Name of the file in a directory that carries its lock.
pub const LOCK_FILE: &str = "LOCK";

/// Only the owner may read the files of a database: they hold its content.
const FILE_MODE: u32 = 0o600;

impl Env {
    /// The doors of a real node.
    pub fn os() -> Env {
        Env { fs: Arc::new(OsFs), clock: Arc::new(OsClock), rng: Arc::new(OsRng) }
    }
}

/// The file system of this machine.
#[derive(Clone, Copy, Debug)]
pub struct OsFs;

impl Fs for OsFs {
    fn open(&self, path: &Path, how: Open, _label: Label) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).mode(FILE_MODE);
        match how {
            Open::Read => {}
            Open::Write => {
                options.write(true);
            }
            Open::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        Ok(Arc::new(OsFile { file: options.open(path)?, behind: Mutex::default() }))
    }

    fn rename(&self, from: &Path, to: &Path, _label: Label) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path, _label: Label) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path, _label: Label) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path, _label: Label) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                continue;
            }
            // A name that is no UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn entries(&self, dir: &Path, _label: Label) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        let mut names = fs::read_dir(dir)?.map(name).collect::<io::Result<Vec<String>>>()?;
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path, _label: Label) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn lock_dir(&self, dir: &Path, _label: Label) -> io::Result<Box<dyn DirLock>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        let file = options.open(dir.join(LOCK_FILE))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(OsDirLock { file, owner: std::process::id() }))
    }

    fn room(&self, dir: &Path, _label: Label) -> io::Result<Option<u64>> {
        let there = statvfs(dir)?;
        Ok(Some(there.f_bavail.saturating_mul(there.f_frsize)))
    }

    fn scratch(&self, dir: &Path, piece: usize, _label: Label) -> io::Result<Arc<dyn Scratch>> {
        Ok(Arc::new(OsScratch(MappedScratch::new(nameless(dir)?, piece)?)))
    }
}

/// Renames a file within one directory, if nothing has the new name: `AlreadyExists` if something has. For files outside of
/// a data directory, where others come and go.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // This file system knows no such rename. A link has the same effect, where there are links.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        result => Ok(result?),
    }
}

/// A file without a name: the kernel frees it with its last user.
fn nameless(dir: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE);
    match options.clone().custom_flags(OFlags::TMPFILE.bits() as i32).open(dir) {
        Ok(file) => Ok(file),
        // The file system has no files without a name: one whose name is gone before anything is in it.
        Err(_) => {
            let path = dir.join(format!("scratch-{:016x}", OsRng.next_u64()));
            let file = options.create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
    }
}

#[derive(Debug)]
struct OsScratch(MappedScratch);

impl Scratch for OsScratch {
    fn put(&self, piece: &[u8], _label: Label) -> io::Result<Arc<dyn PageBytes>> {
        Ok(Arc::new(self.0.put(piece)?))
    }

    fn used(&self) -> u64 {
        self.0.used()
    }
}

/// The file itself stays: removing it would let two owners lock two files.
#[derive(Debug)]
struct OsDirLock {
    file: fs::File,
    /// The process that has the lock. One that was forked from it has the file, too.
    owner: u32,
}

impl DirLock for OsDirLock {}

impl Drop for OsDirLock {
    /// By `flock(2)` the lock lasts as long as any copy of the open file, and each process that is being started has one until it is
    /// the program that it shall be: so it is given up in words. By its owner alone, since that counts for all copies.
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            let _ = flock(&self.file, FlockOperation::Unlock);
        }
    }
}

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    /// A sync that goes on beside the caller.
    behind: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl File for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64, _label: Label) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64, _label: Label) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn write_soon(&self, offset: u64, len: u64) {
        crate::ext::writeback::begin(&self.file, offset, len);
    }

    fn sync_data(&self, label: Label) -> io::Result<()> {
        self.settle(label)?;
        self.file.sync_data()
    }

    fn sync_behind(&self, label: Label) -> io::Result<()> {
        self.settle(label)?;
        // The same open file: whoever waits for it is told what this kernel has to say of it, and nobody else.
        let beside = self.file.try_clone().and_then(|file| {
            let thread = Builder::new().name("shoal-sync".to_string());
            thread.spawn(move || file.sync_data())
        });
        match beside {
            Ok(sync) => *self.behind.lock() = Some(sync),
            // No descriptor or thread to be had: then the caller waits.
            Err(_) => self.file.sync_data()?,
        }
        Ok(())
    }

    fn settle(&self, _label: Label) -> io::Result<()> {
        let behind = self.behind.lock().take();
        behind.map_or(Ok(()), |sync| sync.join().unwrap_or_else(|_| Err(io::Error::other("a sync panicked"))))
    }

    fn set_len(&self, len: u64, _label: Label) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn lock(&self, start: u64, len: u64, _label: Label) -> io::Result<()> {
        crate::ext::ofd::lock(&self.file, start, len)
    }

    fn map(&self, len: u64, _label: Label) -> io::Result<Arc<dyn Mapped>> {
        Ok(Arc::new(OsMapped(MappedFile::new(&self.file, len)?)))
    }

    fn len(&self, _label: Label) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[derive(Debug)]
struct OsMapped(MappedFile);

impl Mapped for OsMapped {
    fn piece(&self, offset: u64, len: usize, _label: Label) -> io::Result<Arc<dyn PageBytes>> {
        Ok(Arc::new(self.0.piece(offset, len)?))
    }
}

/// The monotonic clock of this machine, counted from its first use in this process.
#[derive(Clone, Copy, Debug)]
pub struct OsClock;

impl Clock for OsClock {
    fn now(&self) -> Duration {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        EPOCH.get_or_init(Instant::now).elapsed()
    }
}

/// The random numbers of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct OsRng;

impl Rng for OsRng {
    fn next_u64(&self) -> u64 {
        let mut bytes = [0u8; 8];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(n) => filled += n,
                Err(rustix::io::Errno::INTR) => {}
                // Only a kernel older than 3.17 says no. Identities that are not random would let two disks pass for
                // one, so there is nothing to fall back to.
                Err(e) => panic!("getrandom: {e}"),
            }
        }
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_what_is_written_and_says_how_much_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = OsFs.open(&path, Open::CreateNew, "t").unwrap();
        file.write_at(b"hello", 3, "t").unwrap();
        file.sync_data("t").unwrap();
        assert_eq!(file.len("t").unwrap(), 8);
        let mut buf = [9u8; 10];
        assert_eq!(file.read_at(&mut buf, 0, "t").unwrap(), 8);
        assert_eq!(&buf[..8], b"\0\0\0hello");
        assert_eq!(file.read_at(&mut buf, 8, "t").unwrap(), 0);
        file.set_len(4, "t").unwrap();
        assert_eq!(file.read_at(&mut buf, 0, "t").unwrap(), 4);

        assert_eq!(OsFs.open(&path, Open::CreateNew, "t").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let read_only = OsFs.open(&path, Open::Read, "t").unwrap();
        assert!(read_only.write_at(b"x", 0, "t").is_err());
        OsFs.open(&path, Open::Write, "t").unwrap().write_at(b"x", 0, "t").unwrap();
        assert_eq!(OsFs.open(&dir.path().join("none"), Open::Write, "t").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_lock_ends_with_its_owner_although_a_child_has_a_copy_and_not_with_the_child() {
        let dir = tempfile::tempdir().unwrap();
        let lock = |owner: u32| {
            let file = fs::File::options().write(true).create(true).truncate(false).open(dir.path().join(LOCK_FILE));
            let file = file.unwrap();
            flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
            (file.try_clone().unwrap(), OsDirLock { file, owner })
        };
        let is_locked = || OsFs.lock_dir(dir.path(), "t").is_err();
        let (copy, own) = lock(std::process::id());
        assert!(is_locked());
        drop(own);
        assert!(!is_locked());
        drop(copy);
        let (copy, of_parent) = lock(std::process::id() + 1);
        drop(of_parent);
        assert!(is_locked());
        drop(copy);
        assert!(!is_locked());
    }

    #[test]
    fn a_directory_lists_its_files_sorted_and_can_be_synced() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        OsFs.create_dir_all(&deep, "t").unwrap();
        OsFs.create_dir_all(&deep, "t").unwrap();
        for name in ["z", "m"] {
            OsFs.open(&deep.join(name), Open::CreateNew, "t").unwrap();
        }
        OsFs.rename(&deep.join("z"), &deep.join("c"), "t").unwrap();
        OsFs.create_dir_all(&deep.join("dir"), "t").unwrap();
        assert_eq!(OsFs.list(&deep, "t").unwrap(), ["c", "m"]);
        OsFs.remove(&deep.join("c"), "t").unwrap();
        OsFs.sync_dir(&deep, "t").unwrap();
        assert_eq!(OsFs.list(&deep, "t").unwrap(), ["m"]);
    }

    /// Shows INV-19.
    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = OsFs.lock_dir(dir.path(), "t").unwrap();
        assert_eq!(OsFs.lock_dir(dir.path(), "t").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        OsFs.lock_dir(dir.path(), "t").unwrap();
    }

    #[test]
    fn room_is_what_the_file_system_has() {
        let dir = tempfile::tempdir().unwrap();
        assert!(OsFs.room(dir.path(), "t").unwrap() > Some(0));
        assert!(OsFs.room(&dir.path().join("none"), "t").is_err());
    }

    #[test]
    fn scratch_room_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = OsFs.scratch(dir.path(), 4096, "t").unwrap();
        let piece = scratch.put(&[7; 4096], "t").unwrap();
        assert_eq!(piece.bytes(), [7; 4096]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(OsFs.scratch(&dir.path().join("none"), 4096, "t").is_err());
    }

    #[test]
    fn the_clock_does_not_go_back_and_the_random_numbers_differ() {
        let env = Env::os();
        let (a, b) = (env.clock.now(), env.clock.now());
        assert!(a <= b);
        assert_ne!(env.rng.next_u64(), env.rng.next_u64());
    }
}
