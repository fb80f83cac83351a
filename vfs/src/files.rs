//! The three files of one database, and what is believed of them after a crash.
//!
//! ```text
//! DIR/<id>-<generation>.db    main file: the database at one position
//! DIR/<id>-<generation>.map   page hashes, and which position that is      (mapfile.rs)
//! DIR/<id>-<generation>.dw    what the last checkpoint set out to write    (doublewrite.rs)
//! ```
//!
//! A checkpoint from position f to position y, and a crash after each step:
//!
//! | step | crash after it |
//! |---|---|
//! | 1 double-write written | torn or not: the record says f, the main file is f |
//! | 2 double-write synced | complete: done again from step 3 |
//! | 3 pages, length, hashes written | the main file is a mixture: done again |
//! | 4 main file and map synced | done again, to the same bytes |
//! | 5 record y written | torn: the older record f counts, done again. Whole: y |
//! | 6 map synced | y; the double-write is of no use any more |
//!
//! Only after step 6 the checkpoint counts: the log may drop what is in it, and the next one may use the double-write.
//!
//! What opening reads may be in the kernel's memory alone: a process that was killed did not sync it, and after a sync that
//! failed the kernel shows what is not on disk. So nothing that was found is relied on as if it were durable, nor is it
//! enough to sync it, since a sync writes only what the kernel owes:
//!
//! * a checkpoint is done again from a double-write only after that has been written once more, the same bytes, and synced;
//! * the record that says that a double-write has no work left is written once more and synced before that is cut, replaced or
//!   written again. Until then a crash that takes the record finds the double-write complete: `redo`, to the same bytes;
//! * the first checkpoint after opening makes a new double-write, so that its name is durable; that of one that was found complete is.
//!
//! What opening decides, from the newest valid record r and the double-write:
//!
//! | label | double-write | verdict |
//! |---|---|---|
//! | `none` | missing, empty, torn, or of another owner | the main file is r |
//! | `done` | to a position <= r: not read any further | the main file is r |
//! | `redo` | complete, from r | done again |
//! | `gap` | complete, from a position other than r to one beyond it | damage: the record was lost after the log moved on |
//! | `short` | any | damage, if the main file is shorter than r says afterwards |
//!
//! After a failure in step 1 or 2, or to write a record once more, nothing has changed: the double-write is emptied, whose room may be what others lack, and the next
//! attempt begins with a new file. After a failure in step
//! 3 for lack of room the same checkpoint is tried again, and no other, since the main file may be a mixture that only this
//! double-write mends. After any other failure in 3 to 6 nothing is written here until the files are opened again.
//!
//! Beside these there may be `<id>-<generation>.part`: a generation that is being built (`staging.rs`).
//!
//! Deliberately absent: what is in a checkpoint (`database/checkpoint.rs`), and when there is one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::doublewrite::{self, Complete, Plan};
use crate::env::{File, Fs, Label, Open, is_no_room, is_out_of_files};
use crate::genesis::Geometry;
use crate::mapfile::{Checkpointed, MapFile, Owner};
use crate::page::{LOCK_BYTE, LOCK_BYTES, PageCount, PageHash, PageNo, PageSize};
use crate::planted::{self, Bug};
use crate::transaction::Position;

/// Consecutive pages are written in one call, up to this many bytes.
const RUN_BYTES: usize = 1 << 20;
/// A double-write that was larger than this gives its room back when its work is done, if nothing else is said: a checkpoint comes
/// with some megabytes, and room that is there already costs no search for it.
pub const DOUBLEWRITE_BYTES: u64 = 64 << 20;

/// Gives the content of one page of a checkpoint, appending it to the buffer.
pub type Content<'a> = &'a mut dyn FnMut(PageNo, &mut Vec<u8>) -> io::Result<()>;

/// Why a checkpoint did not happen.
#[derive(Debug)]
pub enum WriteError {
    /// Nothing has changed on disk; it may be tried again.
    Nothing(io::Error),
    /// There was no room. What was begun must be ended: only the same checkpoint may be tried again.
    Interrupted(io::Error),
    /// A write or sync failed: nothing is known of what is on disk until the files are opened again.
    Failed(Arc<io::Error>),
}

impl std::fmt::Display for WriteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WriteError::Nothing(error) => write!(f, "nothing was changed: {error}"),
            WriteError::Interrupted(error) => write!(f, "interrupted, to be ended when there is room: {error}"),
            WriteError::Failed(error) => write!(f, "the files are not written any more until the next start: {error}"),
        }
    }
}

impl std::error::Error for WriteError {}

/// The open files of one database; see the module's text.
#[derive(Debug)]
pub struct DatabaseFiles {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    owner: Owner,
    main: Arc<dyn File>,
    map: MapFile,
    /// Sequence number of the newest position record.
    sequence: u64,
    at: Checkpointed,
    doublewrite: Option<Arc<dyn File>>,
    /// Whether that and the newest record are what opening found, and nothing has been written since.
    found: bool,
    /// How large it is.
    doublewrite_len: u64,
    /// How large it may stay.
    doublewrite_keep: u64,
    /// The checkpoint that only this double-write can end.
    unfinished: Option<Plan>,
    failed: Option<Arc<io::Error>>,
    redone: bool,
}

/// The same error, with the file that it is about. One that says that there are too many open files stays as it is, since
/// callers know it by its number and say what to do.
fn of_file(error: io::Error, path: &Path) -> io::Error {
    if is_out_of_files(&error) {
        return error;
    }
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Names of the files of one database in its directory.
pub fn names(database: u64, generation: u64) -> [String; 3] {
    ["db", "map", "dw"].map(|end| format!("{database}-{generation}.{end}"))
}

/// Name of the file in which a generation is built (`staging.rs`).
pub fn part_name(database: u64, generation: u64) -> String {
    format!("{database}-{generation}.part")
}

/// Which database and generation a file name belongs to; `None` for a name that is none of ours.
pub fn owner_of_name(name: &str) -> Option<(u64, u64)> {
    let (stem, _) = name.split_once('.')?;
    let (database, generation) = stem.split_once('-')?;
    let found = (database.parse().ok()?, generation.parse().ok()?);
    let ours = names(found.0, found.1).iter().any(|ours| ours == name) || name == part_name(found.0, found.1);
    ours.then_some(found)
}

impl DatabaseFiles {
    /// Makes the files of a database that the log entry at `position` created, durable when this returns. Files of that
    /// name that are there are replaced: an earlier attempt that did not get to its end.
    pub fn create(
        fs: Arc<dyn Fs>,
        dir: &Path,
        owner: Owner,
        geometry: Geometry,
        position: Position,
    ) -> io::Result<DatabaseFiles> {
        let there = fs.list(dir, "db.create")?;
        let names = names(owner.database, owner.generation);
        for name in names.iter().filter(|name| there.contains(name)) {
            fs.remove(&dir.join(name), "db.create")?;
        }
        let page = geometry.first_page();
        let main = fs.open(&dir.join(&names[0]), Open::CreateNew, "db.create")?;
        lock(&*main)?;
        main.write_at(&page, 0, "db.create")?;
        main.sync_data("db.create")?;
        let checksum = PageHash::of(PageNo::FIRST, &page);
        let at = Checkpointed { position, size: PageCount(1), checksum };
        let file = fs.open(&dir.join(&names[1]), Open::CreateNew, "map.create")?;
        let map = MapFile::create(file, owner, at, &[checksum])?;
        map.sync("map.create")?;
        if !planted::is(Bug::SkipFilesDirSync) {
            fs.sync_dir(dir, "db.create")?;
        }
        Ok(DatabaseFiles::assemble(fs, dir, owner, main, map, at))
    }

    /// Files that were just written as they should be, durable, with the first position record. The main file is locked.
    pub(crate) fn assemble(
        fs: Arc<dyn Fs>,
        dir: &Path,
        owner: Owner,
        main: Arc<dyn File>,
        map: MapFile,
        at: Checkpointed,
    ) -> DatabaseFiles {
        DatabaseFiles {
            fs,
            dir: dir.to_path_buf(),
            owner,
            main,
            map,
            sequence: 1,
            at,
            doublewrite: None,
            found: false,
            doublewrite_len: 0,
            doublewrite_keep: DOUBLEWRITE_BYTES,
            unfinished: None,
            failed: None,
            redone: false,
        }
    }

    /// Opens the files, ends a checkpoint that was interrupted, and says where the database is ([`DatabaseFiles::at`]).
    /// `NotFound` if there are none, `InvalidData` with the reason if they are not what they should be. An error names the
    /// file that it is about.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, owner: Owner) -> io::Result<DatabaseFiles> {
        let [main_path, map_path, doublewrite_path] =
            names(owner.database, owner.generation).map(|name| dir.join(name));
        let open_main = || {
            let main = fs.open(&main_path, Open::Write, "db.open")?;
            lock(&*main)?;
            Ok(main)
        };
        let main = open_main().map_err(|error| of_file(error, &main_path))?;
        let map = fs.open(&map_path, Open::Write, "map.open").and_then(|file| MapFile::open(file, owner));
        let (map, sequence, at) = map.map_err(|error| of_file(error, &map_path))?;
        let doublewrite = match fs.open(&doublewrite_path, Open::Write, "dw.open") {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(of_file(error, &doublewrite_path)),
        };
        let mut files = DatabaseFiles {
            fs,
            dir: dir.to_path_buf(),
            owner,
            main,
            map,
            sequence,
            at,
            found: doublewrite.is_some(),
            doublewrite: doublewrite.clone(),
            doublewrite_len: 0,
            doublewrite_keep: DOUBLEWRITE_BYTES,
            unfinished: None,
            failed: None,
            redone: false,
        };
        let complete = match doublewrite {
            Some(file) => {
                let found =
                    doublewrite::read(file, owner, at.position).map_err(|error| of_file(error, &doublewrite_path))?;
                files.doublewrite_len = found.len;
                found.complete
            }
            None => None,
        };
        if let Some(complete) = complete {
            if complete.plan.from != at.position {
                return Err(damaged(format!(
                    "{}: double-write from position {} to {}, but the position record says {}",
                    doublewrite_path.display(),
                    complete.plan.from,
                    complete.plan.to.position,
                    at.position
                )));
            }
            files.rewrite(&complete).map_err(|error| of_file(error, &doublewrite_path))?;
            files.write_all(&complete.plan, &mut complete.content())?;
            files.finish(complete.plan.to)?;
            files.found = false;
            files.redone = true;
        }
        let (len, expected) = (files.main.len("db.open")?, files.bytes());
        if len < expected {
            return Err(damaged(format!(
                "{}: main file of {len} bytes, position {} has {} pages of {} bytes",
                main_path.display(),
                files.at.position,
                files.at.size.0,
                owner.page_size.bytes()
            )));
        }
        Ok(files)
    }

    /// A double-write that is larger gives its room back when its work is done, from now on; one that has none does so at once.
    pub fn keep_doublewrite(&mut self, bytes: u64) {
        self.doublewrite_keep = bytes;
        if self.doublewrite_len > bytes && self.unfinished.is_none() && self.failed.is_none() {
            match self.found {
                // If that fails, the next checkpoint comes to it, too, and says so.
                true => drop(self.settle_found()),
                false => self.give_back_room(),
            }
        }
    }

    /// Bytes of the double-write file.
    pub fn doublewrite_bytes(&self) -> u64 {
        self.doublewrite_len
    }

    /// Where the main file is.
    pub fn at(&self) -> Checkpointed {
        self.at
    }

    /// Whether opening ended a checkpoint that a crash had interrupted.
    pub fn redone(&self) -> bool {
        self.redone
    }

    /// Which database this is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The main file, for reading.
    pub fn main(&self) -> Arc<dyn File> {
        self.main.clone()
    }

    /// The page hashes of the main file.
    pub fn map(&self) -> &MapFile {
        &self.map
    }

    /// Length of the main file in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.at.size.0) * u64::from(self.owner.page_size.bytes())
    }

    /// The checkpoint that was begun and must be ended before any other.
    pub fn unfinished(&self) -> Option<Position> {
        self.unfinished.as_ref().map(|plan| plan.to.position)
    }

    /// Why nothing is written here any more, if so.
    pub fn failed(&self) -> Option<Arc<io::Error>> {
        self.failed.clone()
    }

    /// Carries out a checkpoint, all steps of the table. `content` is asked for the pages of the plan, in order, twice.
    pub fn checkpoint(&mut self, plan: &Plan, content: Content<'_>) -> Result<(), WriteError> {
        if let Some(error) = &self.failed {
            return Err(WriteError::Failed(error.clone()));
        }
        let again = self.unfinished.as_ref().is_some_and(|unfinished| unfinished == plan);
        if self.unfinished.is_some() && !again || plan.from != self.at.position {
            return Err(WriteError::Nothing(io::Error::other(format!(
                "a checkpoint from position {} to {} does not follow {}",
                plan.from, plan.to.position, self.at.position
            ))));
        }
        if !again {
            self.settle_found().map_err(|error| match &self.failed {
                Some(failed) => WriteError::Failed(failed.clone()),
                None => WriteError::Nothing(error),
            })?;
            self.write_doublewrite(plan, content).map_err(|error| {
                self.drop_doublewrite();
                WriteError::Nothing(error)
            })?;
        }
        self.unfinished = Some(plan.clone());
        match self.write_all(plan, content).and_then(|()| self.finish(plan.to)) {
            Ok(()) => {
                self.unfinished = None;
                self.give_back_room();
                Ok(())
            }
            Err(error) if self.failed.is_none() && is_no_room(&error) => Err(WriteError::Interrupted(error)),
            Err(error) => {
                let error = Arc::new(error);
                self.failed = Some(error.clone());
                Err(WriteError::Failed(error))
            }
        }
    }

    /// Once more steps 1 and 2, for what opening found.
    fn rewrite(&mut self, complete: &Complete) -> io::Result<()> {
        doublewrite::write(complete.file(), self.owner, &complete.plan, complete.content())?;
        complete.file().sync_data("dw.sync")
    }

    /// Once more steps 5 and 6, after which the double-write that opening found may go: see the module's text.
    fn settle_found(&mut self) -> io::Result<()> {
        if self.found {
            // If it is torn by that, there is still the one before, and the double-write.
            self.map.write_slot(self.sequence, self.at, "ckpt.record")?;
            self.sync_record()?;
            self.found = false;
            self.drop_doublewrite();
        }
        Ok(())
    }

    /// Steps 1 and 2.
    fn write_doublewrite(&mut self, plan: &Plan, content: Content<'_>) -> io::Result<()> {
        let file = match self.doublewrite.clone() {
            Some(file) => file,
            None => {
                let path = self.dir.join(&names(self.owner.database, self.owner.generation)[2]);
                match self.fs.remove(&path, "dw.create") {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                self.doublewrite_len = 0;
                let file = self.fs.open(&path, Open::CreateNew, "dw.create")?;
                self.fs.sync_dir(&self.dir, "dw.create")?;
                self.doublewrite = Some(file.clone());
                file
            }
        };
        let written = doublewrite::write(&*file, self.owner, plan, content)?;
        self.doublewrite_len = self.doublewrite_len.max(written);
        if planted::is(Bug::SkipDoubleWriteSync) { Ok(()) } else { file.sync_data("dw.sync") }
    }

    /// Step 3, and the syncs of step 4.
    fn write_all(&mut self, plan: &Plan, content: Content<'_>) -> io::Result<()> {
        let page_len = self.owner.page_size.len();
        let mut run: Vec<u8> = Vec::new();
        let mut start = 0u64;
        let mut hashes: Vec<PageHash> = Vec::new();
        let mut first = PageNo::FIRST;
        let flush = |run: &mut Vec<u8>, start, hashes: &mut Vec<PageHash>, first| {
            if hashes.is_empty() {
                return Ok(());
            }
            self.main.write_at(run, start, "ckpt.page")?;
            self.map.write_hashes(first, hashes, "ckpt.hash")?;
            run.clear();
            hashes.clear();
            io::Result::Ok(())
        };
        for (page, hash) in &plan.pages {
            let offset = page.offset(self.owner.page_size);
            if start + run.len() as u64 != offset || run.len() + page_len > RUN_BYTES {
                flush(&mut run, start, &mut hashes, first)?;
                (start, first) = (offset, *page);
            }
            content(*page, &mut run)?;
            hashes.push(*hash);
        }
        flush(&mut run, start, &mut hashes, first)?;
        let len = u64::from(plan.to.size.0) * page_len as u64;
        if self.main.len("ckpt.len")? != len {
            self.main.set_len(len, "ckpt.len")?;
        }
        if !planted::is(Bug::SkipMainFileSync) {
            self.synced(self.main.sync_data("ckpt.sync"))?;
        }
        let synced = self.map.sync("ckpt.map_sync");
        self.synced(synced)
    }

    /// Steps 5 and 6.
    fn finish(&mut self, to: Checkpointed) -> io::Result<()> {
        let wrote = self.map.write_slot(self.sequence + 1, to, "ckpt.record");
        self.synced(wrote)?;
        self.sync_record()?;
        self.sequence += 1;
        self.at = to;
        Ok(())
    }

    fn sync_record(&mut self) -> io::Result<()> {
        let synced = self.map.sync("ckpt.record_sync");
        self.synced(synced)
    }

    /// A failed sync is final, for whatever reason it failed.
    fn synced(&mut self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|error| {
            self.failed = Some(Arc::new(io::Error::new(error.kind(), error.to_string())));
        })
    }

    /// A double-write whose work is done.
    fn give_back_room(&mut self) {
        let Some(file) = self.doublewrite.clone() else { return };
        // An attempt that failed may have made it longer than is known here.
        let Ok(len) = file.len("dw.shrink") else { return };
        self.doublewrite_len = len;
        if len > self.doublewrite_keep {
            self.shrink_doublewrite(&*file);
        }
    }

    /// The double-write counts for nothing, whole or torn: steps 1 and 2 have failed, so that the main file was not touched and is
    /// what its record says, or it was found and has no work left. Others may need the room that it took. The file is not
    /// synced, since a sync of it may have failed: if the cut is lost in a crash, what comes back is as good as what step 1 leaves,
    /// or as what was found. The next checkpoint begins with a new file.
    fn drop_doublewrite(&mut self) {
        let Some(file) = self.doublewrite.take() else { return };
        self.shrink_doublewrite(&*file);
    }

    fn shrink_doublewrite(&mut self, file: &dyn File) {
        match file.set_len(0, "dw.shrink") {
            Ok(()) => self.doublewrite_len = 0,
            // It stays as large as it is, until it is used again or replaced.
            Err(error) => {
                self.doublewrite_len = file.len("dw.shrink").unwrap_or(self.doublewrite_len);
                tracing::warn!(database = self.owner.database, %error, "a double-write file keeps its room");
            }
        }
    }

    /// Whether the hashes in the map make the checksum of the position that the main file is at. It reads the map, 16 bytes a
    /// page. A main file and a map that are mixtures of two positions fit each other page by page; here they do not.
    pub fn books_fit(&self) -> io::Result<bool> {
        const AT_ONCE: u32 = 4096;
        let lock_page = self.owner.page_size.lock_page();
        let mut checksum = PageHash::default();
        let mut next = 1;
        while let Some(first) = PageNo::new(next).filter(|first| self.at.size.contains(*first)) {
            let count = AT_ONCE.min(self.at.size.0 - next + 1);
            for (number, hash) in (next..).zip(self.map.hashes(first, count)?) {
                match hash {
                    _ if number == lock_page.get() => {}
                    Some(hash) => checksum = checksum.toggle(hash),
                    None => return Ok(false),
                }
            }
            next += count;
        }
        Ok(checksum == self.at.checksum)
    }

    /// Reads whole pages of the main file and compares them with the map: `Ok(None)` if all `count` from `first` on are
    /// what they were written as, else the first one that is not.
    pub fn verify(&self, first: PageNo, count: u32) -> io::Result<Option<PageNo>> {
        let mut content = vec![0; self.owner.page_size.len()];
        for number in first.get()..=first.get().saturating_add(count - 1).min(self.at.size.0) {
            let Some(page) = PageNo::new(number).filter(|page| *page != self.owner.page_size.lock_page()) else {
                continue;
            };
            if !verify_page(&*self.main, &self.map, page, &mut content)? {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }
}

/// Whether page `page` of a main file is what the map says; `content` is one page long and has it afterwards.
pub fn verify_page(main: &dyn File, map: &MapFile, page: PageNo, content: &mut [u8]) -> io::Result<bool> {
    let offset = page.offset(page_size_of(map));
    let got = main.read_at(content, offset, "db.verify")?;
    content[got..].fill(0);
    Ok(PageHash::of(page, content) == map.hash(page)?)
}

fn page_size_of(map: &MapFile) -> PageSize {
    map.owner().page_size
}

/// There is no `-wal` beside it, so a stock SQLite would open this file, and write to it.
pub(crate) fn lock(main: &dyn File) -> io::Result<()> {
    const LABEL: Label = "db.lock";
    main.lock(LOCK_BYTE, LOCK_BYTES, LABEL)
}

#[cfg(test)]
mod tests;
