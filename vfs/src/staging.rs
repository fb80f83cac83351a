//! A new generation of a database's files, built beside the one in use.
//!
//! ```text
//! DIR/<id>-<generation>.part   pages that came so far, each at its place; what was not written yet reads as zeros
//! ```
//!
//! There is no list of what has come: a page is there if the bytes at its place have the hash that it should have
//! ([`Staging::adopt`]). So an interrupted attempt goes on where it was, whatever state of the database it was for. Such a page is
//! written once more: after a sync that failed it may be in the kernel's memory alone, and a later sync would not write it.
//!
//! Pages are synced every 4 MiB, while others come ([`File::sync_behind`]). If such a sync fails, the part is removed, or at least
//! emptied: nothing is known of what is on disk. That is so however a staging ends, hence its `Drop`.
//!
//! [`Staging::finish`] makes the files of it, and a crash or failure after each step:
//!
//! | step | crash after it | failure in it |
//! |---|---|---|
//! | 1 length set, all pages compared with their hashes, all hashes with the checksum | as before | the part stays |
//! | 2 map with the hashes and the position written | a map without a main file: removed at the next attempt | the map is removed, the part stays |
//! | 3 part synced | the same | nothing is known of what is on disk: part and map are removed |
//! | 4 map synced | the same | the same |
//! | 5 part renamed to the main file | the name is the old one or the new one: a main file becomes a part again | the map is removed, the part stays |
//! | 6 directory synced | the files are whole | main file and map are removed |
//!
//! That the files are there does not make them count: which generation counts is told by whoever opens them.
//!
//! Deliberately absent: where pages come from, and in which order.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::env::{File, Fs, Label, Open};
use crate::files::{self, DatabaseFiles};
use crate::mapfile::{Checkpointed, MapFile, Owner};
use crate::page::{PageHash, PageNo};
use crate::planted::{self, Bug};

/// Bytes that the disk is handed at once.
const RUN_BYTES: usize = 1 << 20;
/// Bytes that are read at once while pages are compared: they stay in a processor's cache until they are hashed.
const COMPARED_BYTES: usize = 128 << 10;
/// What is this near to what was written before is handed to the disk together with it.
const SOON_GAP: u64 = 64 << 10;

/// So many bytes are written between two syncs. One sync of everything at the end would hold up those of other files on the
/// same disk, the log's before all, for as long as it takes.
const SYNC_EVERY: u64 = 4 << 20;
const SYNC_SOME: Label = "stage.sync_some";

/// A page of a staging is not what its hash says. Inside an [`io::Error`] of kind `InvalidData`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongPage(pub PageNo);

impl std::fmt::Display for WrongPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "page {} is not what its hash says; write it again", self.0.get())
    }
}

impl std::error::Error for WrongPage {}

/// The page that made [`Staging::finish`] fail, if it was one.
pub fn wrong_page(error: &io::Error) -> Option<PageNo> {
    error.get_ref()?.downcast_ref::<WrongPage>().map(|wrong| wrong.0)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// A generation under construction; see the module's text.
#[derive(Debug)]
pub struct Staging {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    owner: Owner,
    at: Checkpointed,
    part: Arc<dyn File>,
    /// Where the part ends: nothing came yet of what is behind it.
    end: u64,
    /// What was written and not yet handed to the disk.
    soon: Range<u64>,
    /// Bytes written since the last sync, and how many there may be.
    unsynced: u64,
    sync_every: u64,
}

impl Staging {
    /// Begins a generation of `owner` that is to be the database as it is `at` some position, or goes on with what an
    /// earlier attempt left. `WouldBlock` while another attempt, or another user of its files, is there.
    pub fn begin(fs: Arc<dyn Fs>, dir: &Path, owner: Owner, at: Checkpointed) -> io::Result<Staging> {
        const LABEL: Label = "stage.begin";
        let there = fs.list(dir, LABEL)?;
        let [main, map, doublewrite] = files::names(owner.database, owner.generation);
        let part = files::part_name(owner.database, owner.generation);
        let open = |name: &str, how| {
            let file = fs.open(&dir.join(name), how, LABEL)?;
            files::lock(&*file)?;
            io::Result::Ok(file)
        };
        // Whole, as far as anybody knows, but it did not get to count. Its lock says that nobody uses it.
        let finished = if there.contains(&main) { Some(open(&main, Open::Write)?) } else { None };
        let file = match finished {
            _ if there.contains(&part) => open(&part, Open::Write)?,
            Some(file) => {
                fs.rename(&dir.join(&main), &dir.join(&part), LABEL)?;
                file
            }
            None => open(&part, Open::CreateNew)?,
        };
        for name in [&main, &map, &doublewrite].into_iter().filter(|name| there.contains(name)) {
            match fs.remove(&dir.join(name), LABEL) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let (dir, end) = (dir.to_path_buf(), file.len(LABEL)?);
        Ok(Staging { fs, dir, owner, at, part: file, end, soon: 0..0, unsynced: 0, sync_every: SYNC_EVERY })
    }

    /// Syncs after so many bytes, instead of 4 MiB.
    #[must_use]
    pub fn sync_every(mut self, bytes: u64) -> Staging {
        self.sync_every = bytes;
        self
    }

    /// What this is to become.
    pub fn at(&self) -> Checkpointed {
        self.at
    }

    /// Where the file ends: nothing came yet of what is behind it.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether the bytes at the place of a page have this hash; then they are as good as written by this attempt. The lock page is
    /// always there: it has no content. After an error that came of a sync there is no part any more.
    pub fn adopt(&mut self, page: PageNo, hash: PageHash) -> io::Result<bool> {
        if page == self.owner.page_size.lock_page() {
            return Ok(true);
        }
        let (mut content, offset) = (vec![0; self.owner.page_size.len()], page.offset(self.owner.page_size));
        // Most pages, when nothing was here before, are behind the end: no call then.
        if offset >= self.end {
            return Ok(PageHash::of(page, &content) == hash);
        }
        let got = self.part.read_at(&mut content, offset, "stage.read")?;
        content[got..].fill(0);
        let is_there = PageHash::of(page, &content) == hash;
        if is_there {
            self.write_as(page, &content, "stage.adopt")?;
        }
        Ok(is_there)
    }

    /// Writes whole consecutive pages, with one call. Nothing of it is durable before the end. After an error that came of a
    /// sync there is no part any more, and nothing can be made of this.
    pub fn write(&mut self, first: PageNo, pages: &[u8]) -> io::Result<()> {
        self.write_as(first, pages, "stage.write")
    }

    fn write_as(&mut self, first: PageNo, pages: &[u8], label: Label) -> io::Result<()> {
        let len = self.owner.page_size.len();
        let count = pages.len() / len;
        let last = u64::from(first.get()) + count as u64 - u64::from(count > 0);
        if !pages.len().is_multiple_of(len) || last > u64::from(self.at.size.0) {
            return Err(invalid(format!(
                "{} bytes from page {} on are no pages of {len} bytes of a database of {} pages",
                pages.len(),
                first.get(),
                self.at.size.0
            )));
        }
        let offset = first.offset(self.owner.page_size);
        self.part.write_at(pages, offset, label)?;
        self.write_soon(offset..offset + pages.len() as u64);
        self.end = self.end.max(offset + pages.len() as u64);
        self.unsynced += pages.len() as u64;
        if self.unsynced < self.sync_every {
            return Ok(());
        }
        self.unsynced = 0;
        self.part.sync_behind(SYNC_SOME).inspect_err(|error| self.distrust(error))
    }

    /// The disk begins with what was written, a megabyte at a time: pages come one by one where most are copied from beside.
    fn write_soon(&mut self, written: Range<u64>) {
        let goes_on = (self.soon.start..=self.soon.end + SOON_GAP).contains(&written.start);
        if goes_on {
            self.soon.end = self.soon.end.max(written.end);
        } else {
            self.hand_over();
            self.soon = written;
        }
        if self.soon.end - self.soon.start >= RUN_BYTES as u64 {
            self.hand_over();
            self.soon.start = self.soon.end;
        }
    }

    fn hand_over(&self) {
        self.part.write_soon(self.soon.start, self.soon.end - self.soon.start);
    }

    /// A sync failed: nothing is known of what is on disk, and one that works later would not say so.
    fn distrust(&self, error: &io::Error) {
        let part = files::part_name(self.owner.database, self.owner.generation);
        if let Err(also) = self.remove(&part) {
            let emptied = self.part.set_len(0, "stage.empty");
            tracing::error!(?emptied, "{error}; and {part} must be removed, which failed: {also}");
        }
    }

    /// Makes the files, durable when this returns. `hashes` gives the hashes of so many pages from one on. If a page is not
    /// what its hash says, the error is of kind `InvalidData` and [`wrong_page`] names it; what is there stays, as after a
    /// lack of room, and [`Staging::begin`] goes on with it.
    pub fn finish(self, hashes: &mut dyn FnMut(PageNo, u32) -> io::Result<Vec<PageHash>>) -> io::Result<DatabaseFiles> {
        let [main, map_name, _] = files::names(self.owner.database, self.owner.generation);
        let path = |name: &String| self.dir.join(name);
        let part = files::part_name(self.owner.database, self.owner.generation);
        let mut written = self.write_map(&map_name, hashes);
        let mut doubtful = vec![&map_name];
        if let Ok(map) = &written {
            // A sync that failed is never tried again, on no file that it was about.
            let synced = self.part.sync_data("stage.sync").and_then(|()| map.sync("stage.map_sync"));
            if let Err(error) = synced {
                doubtful.push(&part);
                written = Err(error);
            } else if let Err(error) = self.fs.rename(&path(&part), &path(&main), "stage.rename") {
                written = Err(error);
            } else if let Err(error) = self.fs.sync_dir(&self.dir, "stage.sync_dir") {
                doubtful.push(&main);
                written = Err(error);
            }
        }
        match written {
            Ok(map) => {
                let (fs, part) = (self.fs.clone(), self.part.clone());
                Ok(DatabaseFiles::assemble(fs, &self.dir, self.owner, part, map, self.at))
            }
            Err(error) => {
                for name in doubtful {
                    if let Err(also) = self.remove(name) {
                        let what = format!("{error}; and {name} must be removed, which failed: {also}");
                        return Err(io::Error::new(error.kind(), what));
                    }
                }
                Err(error)
            }
        }
    }

    /// Steps 1 and 2.
    fn write_map(
        &self,
        name: &str,
        hashes: &mut dyn FnMut(PageNo, u32) -> io::Result<Vec<PageHash>>,
    ) -> io::Result<MapFile> {
        let page_size = self.owner.page_size;
        self.part.set_len(u64::from(self.at.size.0) * u64::from(page_size.bytes()), "stage.len")?;
        let file = self.fs.open(&self.dir.join(name), Open::CreateNew, "stage.map")?;
        let map = MapFile::create(file, self.owner, self.at, &[])?;
        let mut checksum = PageHash::default();
        let per_run = (COMPARED_BYTES / page_size.len()) as u32;
        let mut bytes = Vec::new();
        let mut next = 1;
        while let Some(first) = PageNo::new(next).filter(|first| self.at.size.contains(*first)) {
            let count = per_run.min(self.at.size.0 - next + 1);
            bytes.resize(count as usize * page_size.len(), 0);
            let got = self.part.read_at(&mut bytes, first.offset(page_size), "stage.verify")?;
            bytes[got..].fill(0);
            let mut wanted = hashes(first, count)?;
            if wanted.len() != count as usize {
                return Err(invalid(format!("{} hashes for {count} pages", wanted.len())));
            }
            for ((page, hash), content) in
                (next..).filter_map(PageNo::new).zip(&mut wanted).zip(bytes.chunks(page_size.len()))
            {
                let right = if page == page_size.lock_page() {
                    *hash = PageHash::default();
                    content.iter().all(|byte| *byte == 0)
                } else {
                    PageHash::of(page, content) == *hash || planted::is(Bug::InstallUnverified)
                };
                if !right {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, WrongPage(page)));
                }
                checksum = checksum.toggle(*hash);
            }
            map.write_hashes(first, &wanted, "stage.map")?;
            next += count;
        }
        if checksum != self.at.checksum {
            let what = format!("the pages have checksum {checksum}, the database has {}", self.at.checksum);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(map)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self.fs.remove(&self.dir.join(name), "stage.remove") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes what there is.
    pub fn discard(self) -> io::Result<()> {
        self.remove(&files::part_name(self.owner.database, self.owner.generation))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Waits for the disk, at most for 4 MiB.
        if let Err(error) = self.part.settle(SYNC_SOME) {
            self.distrust(&error);
        }
    }
}
