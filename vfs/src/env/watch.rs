//! Calls to the disk that have not returned: which, of which file, since when.
//!
//! A disk that fails says so; one that hangs says nothing, and neither does the thread that waits for it. So each call that changes
//! something is noted before it is made and forgotten when it returns, and another thread may look.
//!
//! Deliberately absent: reads, which are many, and whose caller waits himself; how long is too long; and any end of a
//! call, which the kernel alone can give.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Clock, DirLock, File, Fs, Label, Mapped, Open, Scratch};

/// A call that has not returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Why it was made.
    pub label: Label,
    /// The file or directory.
    pub path: Arc<Path>,
    /// How long ago.
    pub age: Duration,
}

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    /// By number, which grows, with the moment of each.
    open: BTreeMap<u64, (Label, Arc<Path>, Duration)>,
}

/// Knows which calls through [`Watch::over`] have not returned.
#[derive(Debug)]
pub struct Watch {
    clock: Arc<dyn Clock>,
    calls: Mutex<Calls>,
}

impl Watch {
    /// One without calls.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Watch> {
        Arc::new(Watch { clock, calls: Mutex::default() })
    }

    /// The same files, watched from now on.
    pub fn over(self: &Arc<Watch>, fs: Arc<dyn Fs>) -> Arc<dyn Fs> {
        Arc::new(WatchedFs { fs, watch: self.clone() })
    }

    /// The call that has been waiting for the longest.
    pub fn oldest(&self) -> Option<Call> {
        let now = self.clock.now();
        let calls = self.calls.lock();
        let (_, (label, path, since)) = calls.open.first_key_value()?;
        Some(Call { label, path: path.clone(), age: now.saturating_sub(*since) })
    }

    fn during<T>(&self, label: Label, path: &Arc<Path>, act: impl FnOnce() -> T) -> T {
        let _noted = Noted::new(self, label, path);
        act()
    }
}

/// Forgets the call also when it panics, as a simulated disk may.
struct Noted<'a> {
    watch: &'a Watch,
    number: u64,
}

impl<'a> Noted<'a> {
    fn new(watch: &'a Watch, label: Label, path: &Arc<Path>) -> Noted<'a> {
        let now = watch.clock.now();
        let mut calls = watch.calls.lock();
        let number = calls.next;
        calls.next += 1;
        calls.open.insert(number, (label, path.clone(), now));
        Noted { watch, number }
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.watch.calls.lock().open.remove(&self.number);
    }
}

#[derive(Debug)]
struct WatchedFs {
    fs: Arc<dyn Fs>,
    watch: Arc<Watch>,
}

impl WatchedFs {
    fn during<T>(&self, label: Label, path: &Path, act: impl FnOnce(&dyn Fs) -> T) -> T {
        self.watch.during(label, &Arc::from(path), || act(&*self.fs))
    }
}

impl Fs for WatchedFs {
    fn open(&self, path: &Path, how: Open, label: Label) -> io::Result<Arc<dyn File>> {
        let file = self.during(label, path, |fs| fs.open(path, how, label))?;
        Ok(Arc::new(WatchedFile { file, path: path.into(), watch: self.watch.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path, label: Label) -> io::Result<()> {
        self.during(label, from, |fs| fs.rename(from, to, label))
    }

    fn remove(&self, path: &Path, label: Label) -> io::Result<()> {
        self.during(label, path, |fs| fs.remove(path, label))
    }

    fn create_dir_all(&self, path: &Path, label: Label) -> io::Result<()> {
        self.during(label, path, |fs| fs.create_dir_all(path, label))
    }

    fn list(&self, dir: &Path, label: Label) -> io::Result<Vec<String>> {
        self.during(label, dir, |fs| fs.list(dir, label))
    }

    fn entries(&self, dir: &Path, label: Label) -> io::Result<Vec<String>> {
        self.during(label, dir, |fs| fs.entries(dir, label))
    }

    fn sync_dir(&self, dir: &Path, label: Label) -> io::Result<()> {
        self.during(label, dir, |fs| fs.sync_dir(dir, label))
    }

    fn lock_dir(&self, dir: &Path, label: Label) -> io::Result<Box<dyn DirLock>> {
        self.fs.lock_dir(dir, label)
    }

    fn room(&self, dir: &Path, label: Label) -> io::Result<Option<u64>> {
        self.during(label, dir, |fs| fs.room(dir, label))
    }

    fn scratch(&self, dir: &Path, piece: usize, label: Label) -> io::Result<Arc<dyn Scratch>> {
        // Its pieces are put by whoever writes to the database, and waits himself.
        self.fs.scratch(dir, piece, label)
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn File>,
    path: Arc<Path>,
    watch: Arc<Watch>,
}

impl WatchedFile {
    fn during<T>(&self, label: Label, act: impl FnOnce(&dyn File) -> T) -> T {
        self.watch.during(label, &self.path, || act(&*self.file))
    }
}

impl File for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64, label: Label) -> io::Result<usize> {
        self.file.read_at(buf, offset, label)
    }

    fn write_at(&self, buf: &[u8], offset: u64, label: Label) -> io::Result<()> {
        self.during(label, |file| file.write_at(buf, offset, label))
    }

    fn write_soon(&self, offset: u64, len: u64) {
        self.file.write_soon(offset, len);
    }

    fn sync_data(&self, label: Label) -> io::Result<()> {
        self.during(label, |file| file.sync_data(label))
    }

    fn sync_behind(&self, label: Label) -> io::Result<()> {
        self.during(label, |file| file.sync_behind(label))
    }

    fn settle(&self, label: Label) -> io::Result<()> {
        self.during(label, |file| file.settle(label))
    }

    fn set_len(&self, len: u64, label: Label) -> io::Result<()> {
        self.during(label, |file| file.set_len(len, label))
    }

    fn lock(&self, start: u64, len: u64, label: Label) -> io::Result<()> {
        self.file.lock(start, len, label)
    }

    fn map(&self, len: u64, label: Label) -> io::Result<Arc<dyn Mapped>> {
        self.file.map(len, label)
    }

    fn len(&self, label: Label) -> io::Result<u64> {
        self.file.len(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::sim::{SimClock, SimFs};

    /// Every call that changes something is seen while it lasts, with its age, and not afterwards; and it does what it does without.
    #[test]
    fn the_oldest_call_that_has_not_returned_is_known() {
        let (fs, clock) = (SimFs::new(1), Arc::new(SimClock::default()));
        let watch = Watch::new(clock.clone());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let second = Duration::from_secs(1);
        for label in ["open", "write", "sync", "behind", "len", "dir", "rename", "remove", "list"] {
            let (watch, seen, clock) = (watch.clone(), seen.clone(), clock.clone());
            fs.on_call(label, move || {
                clock.advance(second);
                seen.lock().push(watch.oldest());
            });
        }
        let watched = watch.over(Arc::new(fs.clone()));
        let (path, other) = (Path::new("/a"), Path::new("/b"));
        let file = watched.open(path, Open::CreateNew, "open").unwrap();
        file.write_at(b"hello", 0, "write").unwrap();
        file.sync_data("sync").unwrap();
        // It goes on beside, and whoever waits for it waits for the disk.
        file.sync_behind("behind").unwrap();
        assert_eq!(seen.lock().len(), 3);
        file.settle("behind").unwrap();
        file.set_len(4, "len").unwrap();
        let mut read = [0; 8];
        assert_eq!(file.read_at(&mut read, 0, "read").unwrap(), 4);
        watched.sync_dir(Path::new("/"), "dir").unwrap();
        watched.rename(path, other, "rename").unwrap();
        assert_eq!(watched.list(Path::new("/"), "list").unwrap(), ["b"]);
        watched.remove(other, "remove").unwrap();
        let call = |label, path: &Path| Some(Call { label, path: path.into(), age: second });
        let root = Path::new("/");
        let expected = [
            call("open", path),
            call("write", path),
            call("sync", path),
            call("behind", path),
            call("len", path),
            call("dir", root),
            call("rename", path),
            call("list", root),
            call("remove", other),
        ];
        assert_eq!(*seen.lock(), expected);
        assert_eq!(watch.oldest(), None);
    }
}
