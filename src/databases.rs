//! The databases of one node: which name and which id lead to which open database.
//!
//! ```text
//! DIR/db/<id>-<generation>.{db,map,dw}   the files of the database that the entry at index <id> created
//! DIR/db/<id>-<generation>.part          a generation that is being built
//! ```
//!
//! A name that no entry has created may be opened: it leads to an empty *shape* that reads as an empty database and that
//! the first write creates. When the entry comes, the shape becomes the database, if they have the same geometry; else
//! it is retired and its connections must be opened again.
//!
//! At a start each database is opened at the position of its last checkpoint. Its files may be ahead of the catalogue that
//! the log's anchor has, and there may be files of which that catalogue does not know yet, or not any more:
//!
//! ```text
//! in the catalogue   files          what happens
//! yes                whole          the database is at their position; entries up to there are skipped at replay
//! yes                damaged, gone  the database is not served on this node until it is repaired; the others are
//! no, id <= anchor   any            it was dropped: they are deleted
//! yes, and gone      any            a snapshot lacks it, since an entry that is still to come drops it: they are deleted
//! no, id >  anchor   any            they wait for the entry that creates the database, which takes them if there was a checkpoint
//! ```
//!
//! What has another name is left alone, since somebody else put it there, but for what a stock SQLite leaves beside a main file.
//!
//! For the second line's sake the files of a dropped database stay until an anchor knows of the drop: a start before that
//! comes through a state in which the database exists.
//!
//! Which generation counts is told by the anchor, with the catalogue. Files of an earlier one are deleted. Those of a later
//! one did not get to count: a main file is a part again, to go on with, and the rest is deleted. While a node runs they go when
//! nobody will go on with them: with the install of a snapshot, when a repair is over, and when the log has passed what they are of. Of what an earlier
//! process left nobody knows that: it goes when entries come behind those that were there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shoaldb_vfs::Database;
use shoaldb_vfs::env::watch::{Call, Watch};
use shoaldb_vfs::env::{Env, MORE_FILES, Open, is_no_room, is_out_of_files};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::files::{self, DatabaseFiles};
use shoaldb_vfs::genesis::Geometry;
use shoaldb_vfs::mapfile::{Checkpointed, Owner};
use shoaldb_vfs::page::{PageCount, PageHash, PageSize};
use shoaldb_vfs::spill::{SpillTo, WalMemory};
use shoaldb_vfs::staging::Staging;
use shoaldb_vfs::transaction::Position;
use shoaldb_vfs::view::LeftViews;

use crate::catalogue::{AutoVacuum, Catalogue, DatabaseId, DatabaseInfo, DatabaseName};
use crate::every::Every;
use crate::registry::{FIRST_GENERATION, GONE};
use crate::types::{LogIndex, Membership, NodeId};

/// The geometry that a catalogue entry describes.
fn geometry_of(info: &DatabaseInfo) -> Geometry {
    use shoaldb_vfs::genesis::AutoVacuum as InPage;
    let auto_vacuum = match info.auto_vacuum {
        AutoVacuum::None => InPage::None,
        AutoVacuum::Full => InPage::Full,
        AutoVacuum::Incremental => InPage::Incremental,
    };
    Geometry { page_size: info.page_size, auto_vacuum }
}

/// Databases are opened by so many threads: enough to keep a disk busy, and each open is short.
const OPENERS: usize = 4;

fn owner(id: DatabaseId, info: &DatabaseInfo, generation: u64) -> Owner {
    Owner { database: id.0, generation, page_size: info.page_size }
}

/// What is wrong with the copy of a database on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Damage {
    /// Its files could not be opened.
    Unopened,
    /// Its books are not those of the others, or it could not show what they say.
    Diverged,
    /// Bytes on the disk are not what was written. The books are right.
    Rotten,
}

/// Who could repair a copy that is damaged here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Help {
    /// Other voters. It is done by itself.
    Voters,
    /// No other node votes, and these may have the database whole.
    Learners(Vec<NodeId>),
    Nobody,
}

impl Help {
    pub(crate) fn of(own: NodeId, membership: &Membership) -> Help {
        // Who is about to go, or to come back as a learner, votes still.
        let mut voters = membership.voters.iter().chain(&membership.voters_outgoing);
        if membership.voters.is_empty() || voters.any(|voter| *voter != own) {
            Help::Voters
        } else if membership.learners.is_empty() {
            Help::Nobody
        } else {
            Help::Learners(membership.learners.clone())
        }
    }

    /// What people have to do about it, if it is anything.
    pub(crate) fn advice(&self, damage: Damage) -> Option<String> {
        let learners = match self {
            Help::Voters => return None,
            Help::Nobody => {
                let nobody = "there is no other node to repair it from: drop the database, then restore a backup";
                return Some(nobody.to_string());
            }
            Help::Learners(learners) => learners,
        };
        let listed = |between| learners.iter().map(|id| id.0.to_string()).collect::<Vec<_>>().join(between);
        // Books that are right are one voice, and with one other a majority of two. Where they are not it takes two others, of three.
        Some(match (damage, &learners[..]) {
            (Damage::Rotten, [first, ..]) => format!(
                "only another voter can repair it: promote node {} (`shoal member promote {first}`), or take a backup of the database \
                 there before you drop it, and restore that one",
                listed(" or ")
            ),
            (_, [_, _, rest @ ..]) => format!(
                "it takes two other voters to repair it: promote {} (`shoal member promote`), or take a backup of the database there \
                 before you drop it, and restore that one",
                if rest.is_empty() {
                    format!("nodes {}", listed(" and "))
                } else {
                    format!("two of nodes {}", listed(", "))
                }
            ),
            _ => format!(
                "it takes two other voters to repair it: take a backup of the database on node {} before you drop it, and restore \
                 that one",
                listed(", ")
            ),
        })
    }
}

/// Everything that a new database asks of the system, files and descriptors: a name can lead to it without asking for more.
pub(crate) struct Made {
    files: DatabaseFiles,
    shape: Arc<Database>,
}

impl Maps {
    /// What a database is to be that is created now: what its name leads to, if that has its geometry, else `new`.
    fn shape_for(&self, info: &DatabaseInfo, new: Arc<Database>) -> Arc<Database> {
        match self.by_name.get(info.name.as_str()) {
            Some(shape) if shape.geometry() == geometry_of(info) => shape.clone(),
            Some(other) => {
                other.retire(Refusal::Dropped);
                new
            }
            None => new,
        }
    }
}

#[derive(Default)]
struct Maps {
    by_name: HashMap<String, Arc<Database>>,
    by_id: HashMap<DatabaseId, Arc<Database>>,
    /// Databases that are not served until they are repaired, and what is wrong with them.
    damaged: BTreeMap<DatabaseId, (Damage, String)>,
    /// How often one was found damaged.
    convicted: u64,
    /// Which generation of its files a database has, where it is not the first.
    generations: BTreeMap<DatabaseId, u64>,
    /// Databases that were dropped, by which entry, and whose files are still there.
    dropped: BTreeMap<DatabaseId, LogIndex>,
    /// Those that were in use, until their files are closed: as long as one is open its disk space is not free.
    open: BTreeMap<DatabaseId, Arc<Database>>,
    /// Read views of those that were dropped, which go on until the node stops.
    left: Vec<LeftViews>,
    stopped: bool,
}

/// See the module's text.
pub(crate) struct Databases {
    env: Env,
    /// Which calls for their files have not returned.
    watch: Arc<Watch>,
    dir: PathBuf,
    /// What all WALs have in memory.
    memory: Arc<WalMemory>,
    /// How large each double-write file may stay.
    doublewrite_bytes: AtomicU64,
    maps: Mutex<Maps>,
    /// Checkpoints that opening ended.
    redone: AtomicU64,
    /// Databases that were dropped while they were in use.
    drops: AtomicU64,
    /// The last database of which a process before this one left a part; 0 if of none.
    parts_left: AtomicU64,
}

impl Databases {
    /// The databases in `dir`, none of which is open yet. Their WALs keep `wal_limit` bytes in memory, and the rest in
    /// nameless files beside the databases.
    pub(crate) fn open(env: Env, dir: PathBuf, wal_limit: u64) -> io::Result<Databases> {
        env.fs.create_dir_all(&dir, "db.dir")?;
        let memory = WalMemory::new(wal_limit);
        let watch = Watch::new(env.clock.clone());
        let env = Env { fs: watch.over(env.fs), ..env };
        let (maps, redone, drops, parts_left) = Default::default();
        let doublewrite_bytes = AtomicU64::new(files::DOUBLEWRITE_BYTES);
        Ok(Databases { env, watch, dir, memory, doublewrite_bytes, maps, redone, drops, parts_left })
    }

    /// Double-write files that are larger give their room back, of databases that are opened from now on.
    pub(crate) fn keep_doublewrites(&self, bytes: u64) {
        self.doublewrite_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The database called `name`, or with `create` an empty shape of it.
    pub(crate) fn find(&self, name: &str, create: bool) -> Result<Arc<Database>, Refusal> {
        let valid = DatabaseName::new(name).map_err(|error| {
            tracing::warn!(%error, "a database was not opened");
            Refusal::CannotOpen
        })?;
        let mut maps = self.maps.lock();
        if maps.stopped {
            return Err(Refusal::NodeStopped);
        }
        match maps.by_name.get(valid.as_str()) {
            Some(db) if create || db.is_bound() => Ok(db.clone()),
            None if create => {
                let db = self.shape(valid.as_str(), Geometry::default()).map_err(|error| {
                    tracing::error!(%error, database = name, "no memory for a database");
                    Refusal::Io
                })?;
                // Names that were only looked at would stay for ever, each with a file descriptor.
                maps.by_name.retain(|_, shape| shape.is_bound() || Arc::strong_count(shape) > 1);
                maps.by_name.insert(name.to_string(), db.clone());
                Ok(db)
            }
            // It exists; whoever would create it finds the same when they read.
            Some(db) if db.retired() == Some(Refusal::Damaged) => Err(Refusal::Damaged),
            _ => Err(Refusal::CannotOpen),
        }
    }

    /// The database that the entry at index `id` created.
    pub(crate) fn get(&self, id: DatabaseId) -> Option<Arc<Database>> {
        self.maps.lock().by_id.get(&id).cloned()
    }

    /// Id of an open database.
    pub(crate) fn id_of(&self, db: &Arc<Database>) -> Option<DatabaseId> {
        self.maps.lock().by_id.iter().find(|(_, other)| Arc::ptr_eq(other, db)).map(|(id, _)| *id)
    }

    /// All databases that exist, by id.
    pub(crate) fn all(&self) -> Vec<(DatabaseId, Arc<Database>)> {
        let mut all: Vec<_> = self.maps.lock().by_id.iter().map(|(id, db)| (*id, db.clone())).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    /// Opens the databases of `catalogue`, which is what there was when the entry at `anchor` was applied, each with the
    /// files of its generation. Returns the furthest position that one of them shows: everything up to there was committed.
    pub(crate) fn restore(
        &self,
        catalogue: &Catalogue,
        generations: BTreeMap<DatabaseId, u64>,
        anchor: LogIndex,
    ) -> io::Result<Position> {
        self.maps.lock().generations = generations;
        self.tidy(catalogue, anchor)?;
        let named = catalogue.databases().map(|(id, info)| (id, info.clone()));
        let (gone, all): (Vec<_>, Vec<_>) = named.partition(|(id, _)| self.generation(*id) == GONE);
        gone.iter().try_for_each(|(id, info)| self.enter_gone(*id, info))?;
        let opened = self.open_all(&all);
        let mut furthest = Position(0);
        for ((id, info), opened) in all.iter().zip(opened) {
            match opened {
                Ok(files) => {
                    furthest = furthest.max(files.at().position);
                    if files.redone() {
                        self.redone.fetch_add(1, Ordering::Relaxed);
                        let position = files.at().position;
                        tracing::info!(database = info.name.as_str(), %position, "ended an interrupted checkpoint");
                    }
                    self.enter(*id, info, self.with_shape(info, files)?)?;
                }
                // Nothing is damaged, and to start as if it were would fetch whole copies from the others.
                Err(error) if is_out_of_files(&error) => {
                    let what =
                        format!("database {}: its files cannot be opened: {error}; {MORE_FILES}", info.name.as_str());
                    return Err(io::Error::new(error.kind(), what));
                }
                // Nothing is damaged: the double-write has what could not be written, for the next start as for this one.
                Err(error) if is_no_room(&error) => {
                    let name = info.name.as_str();
                    let what = format!(
                        "database {name}: a checkpoint that was interrupted cannot be ended: {error}; make room on the disk \
                         and start the node again"
                    );
                    return Err(io::Error::new(error.kind(), what));
                }
                Err(error) => self.enter_damaged(*id, info, &error)?,
            }
        }
        Ok(furthest)
    }

    /// A database whose files an entry behind `last` made. Only what is on disk is ever applied: that entry was in the log.
    pub(crate) fn made_behind(&self, last: LogIndex) -> io::Result<Option<DatabaseId>> {
        let there = self.env.fs.list(&self.dir, "db.list")?;
        // A later generation is of a snapshot, which may be fetched and not be installed yet.
        let made = |name: &String| files::owner_of_name(name).filter(|(_, generation)| *generation == FIRST_GENERATION);
        Ok(there.iter().filter_map(made).map(|(id, _)| DatabaseId(id)).find(|id| id.0 > last.0))
    }

    /// Deletes the files that are nobody's any more; see the table in the module's text.
    fn tidy(&self, catalogue: &Catalogue, anchor: LogIndex) -> io::Result<()> {
        let there = self.env.fs.list(&self.dir, "db.list")?;
        let fs = &*self.env.fs;
        for name in &there {
            let path = self.dir.join(name);
            let gone = |id: DatabaseId| self.generation(id) == GONE;
            let known = |id: u64| catalogue.databases().any(|(known, _)| known.0 == id && !gone(known));
            let of_sqlite = ["-wal", "-shm", "-journal"].iter().find_map(|end| name.strip_suffix(end));
            let Some((id, generation)) = files::owner_of_name(of_sqlite.unwrap_or(name)) else {
                tracing::warn!(file = %path.display(), "not a file of this node; it is left alone, and better kept elsewhere");
                continue;
            };
            if of_sqlite.is_some() || id <= anchor.0 && !known(id) {
                fs.remove(&path, "db.orphan")?;
                continue;
            }
            let counts = self.generation(DatabaseId(id));
            let part = files::part_name(id, generation);
            let is_part = *name == part;
            // What made a database that is not known yet is of the first generation.
            if is_part || !known(id) && generation > FIRST_GENERATION {
                self.parts_left.fetch_max(id, Ordering::Relaxed);
            }
            let [main, ..] = files::names(id, generation);
            if !known(id) || generation == counts && !is_part || generation > counts && is_part {
                continue;
            }
            if generation > counts && *name == main && !there.contains(&part) {
                self.parts_left.fetch_max(id, Ordering::Relaxed);
                fs.rename(&path, &self.dir.join(&part), "db.orphan")?;
            } else {
                fs.remove(&path, "db.orphan")?;
            }
        }
        Ok(())
    }

    /// The last database of which a process before this one fetched something that did not get to count.
    pub(crate) fn parts_left(&self) -> Option<DatabaseId> {
        Some(self.parts_left.load(Ordering::Relaxed)).filter(|id| *id > 0).map(DatabaseId)
    }

    /// Files as they were left, with the settings of today.
    fn open_files(&self, owner: Owner) -> io::Result<DatabaseFiles> {
        let mut files = DatabaseFiles::open(self.env.fs.clone(), &self.dir, owner)?;
        files.keep_doublewrite(self.doublewrite_bytes.load(Ordering::Relaxed));
        Ok(files)
    }

    /// The files of each, in the same order.
    fn open_all(&self, all: &[(DatabaseId, DatabaseInfo)]) -> Vec<io::Result<DatabaseFiles>> {
        let (every, done) = (Every::second(self.env.clock.clone()), AtomicUsize::new(0));
        let open = |(id, info): &(DatabaseId, DatabaseInfo)| {
            let files = self.open_files(owner(*id, info, self.generation(*id)));
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done < all.len() && every.is_due() {
                tracing::info!("starting: opened {done} of {} databases", all.len());
            }
            files
        };
        if all.len() < 2 * OPENERS {
            return all.iter().map(open).collect();
        }
        tracing::info!(databases = all.len(), "opening");
        let share = all.len().div_ceil(OPENERS);
        std::thread::scope(|scope| {
            let threads: Vec<_> = all
                .chunks(share)
                .map(|chunk| (chunk.len(), scope.spawn(move || chunk.iter().map(open).collect::<Vec<_>>())))
                .collect();
            let gone = || io::Error::other("the thread that opened it panicked");
            threads
                .into_iter()
                .flat_map(|(len, thread)| thread.join().unwrap_or_else(|_| (0..len).map(|_| Err(gone())).collect()))
                .collect()
        })
    }

    fn enter_damaged(&self, id: DatabaseId, info: &DatabaseInfo, error: &io::Error) -> io::Result<()> {
        let what = format!("database {} cannot be opened: {error}", info.name.as_str());
        self.enter_without_files(id, info, self.empty(info)?, what);
        Ok(())
    }

    /// A database that has no files here, for the reason that `what` gives: it is there, and not served until it is repaired.
    pub(crate) fn enter_without_files(&self, id: DatabaseId, info: &DatabaseInfo, empty: Arc<Database>, what: String) {
        let mut maps = self.maps.lock();
        let shape = maps.shape_for(info, empty);
        maps.by_name.insert(info.name.as_str().to_string(), shape.clone());
        maps.by_id.insert(id, shape);
        drop(maps);
        self.convict(id, Damage::Unopened, what);
    }

    /// A database without files or connections, as a new one is.
    pub(crate) fn empty(&self, info: &DatabaseInfo) -> io::Result<Arc<Database>> {
        self.shape(info.name.as_str(), geometry_of(info))
    }

    /// The copy of a database is damaged: it is not served any more on this node, until it is repaired. `what` says what was
    /// found. `false` if that was known.
    pub(crate) fn convict(&self, id: DatabaseId, damage: Damage, what: String) -> bool {
        let mut maps = self.maps.lock();
        let Some(db) = maps.by_id.get(&id).filter(|_| !maps.damaged.contains_key(&id)).cloned() else { return false };
        tracing::error!("{what}; it is not served on this node until it is repaired");
        maps.damaged.insert(id, (damage, what));
        maps.convicted += 1;
        drop(maps);
        db.retire(Refusal::Damaged);
        true
    }

    /// What is wrong with a database, if something is.
    pub(crate) fn damage(&self, id: DatabaseId) -> Option<Damage> {
        self.maps.lock().damaged.get(&id).map(|(damage, _)| *damage)
    }

    /// The databases that need repair.
    pub(crate) fn all_damaged(&self) -> Vec<DatabaseId> {
        self.maps.lock().damaged.keys().copied().collect()
    }

    /// How often a database was found damaged in this life of the node.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn convicted(&self) -> u64 {
        self.maps.lock().convicted
    }

    /// A damaged database has other files now, which are on record as the ones that count; it is not served yet. Also
    /// if they cannot be shown: what is on record is not built upon a second time.
    pub(crate) fn exchange_damaged(&self, id: DatabaseId, files: DatabaseFiles) -> io::Result<()> {
        let (old, new) = (self.generation(id), files.owner().generation);
        self.maps.lock().generations.insert(id, new);
        let db = self.get(id).ok_or_else(|| io::Error::other("it was dropped"))?;
        db.replace_damaged(files).map_err(io::Error::other)?;
        self.remove_earlier(id, db.name(), old);
        Ok(())
    }

    /// A database that was damaged is whole, and is served again.
    pub(crate) fn acquit(&self, id: DatabaseId) {
        let mut maps = self.maps.lock();
        maps.damaged.remove(&id);
        if let Some(db) = maps.by_id.get(&id) {
            db.serve_again();
        }
    }

    /// The generations that are not the first, for the next anchor.
    pub(crate) fn generations(&self) -> BTreeMap<DatabaseId, u64> {
        self.maps.lock().generations.clone()
    }

    /// Which generation of its files a database has.
    pub(crate) fn generation(&self, id: DatabaseId) -> u64 {
        self.maps.lock().generations.get(&id).copied().unwrap_or(FIRST_GENERATION)
    }

    /// How many checkpoints were ended that a crash had interrupted.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn redone(&self) -> u64 {
        self.redone.load(Ordering::Relaxed)
    }

    /// What is wrong with databases, in words, and what is to be done about it.
    pub(crate) fn damaged(&self, help: &Help) -> Vec<String> {
        let remedy = |damage| match help.advice(damage) {
            Some(advice) => format!("until it is repaired, and {advice}"),
            None => "until it is repaired from the others".to_string(),
        };
        let maps = self.maps.lock();
        let words = maps.damaged.values();
        words.map(|(damage, what)| format!("{what}; it is not served on this node {}", remedy(*damage))).collect()
    }

    /// The files of a database that the entry at index `id` creates. They may be there: this node applied the entry in an
    /// earlier life. What is begun and not ended counts for nothing, and is made anew: so this may be tried again, whatever failed.
    pub(crate) fn make(&self, id: DatabaseId, info: &DatabaseInfo) -> io::Result<Made> {
        let owner = owner(id, info, self.generation(id));
        let found = match self.open_files(owner) {
            Ok(files) => Some(files),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => None,
            Err(error) => return Err(error),
        };
        // Once there was a checkpoint, they had been made durable before it. Until then there is nothing in them but one page, and
        // nobody knows what of them is on the disk: a crash may have come in between, and what looks whole may be so in the memory
        // of the kernel alone, after a sync that failed or was never made.
        let files = match found {
            Some(files) if files.at().position > Position(id.0) => files,
            young => {
                drop(young);
                DatabaseFiles::create(self.env.fs.clone(), &self.dir, owner, geometry_of(info), Position(id.0))?
            }
        };
        self.with_shape(info, files)
    }

    fn with_shape(&self, info: &DatabaseInfo, files: DatabaseFiles) -> io::Result<Made> {
        Ok(Made { files, shape: self.empty(info)? })
    }

    /// Both at once.
    #[cfg(test)]
    pub(crate) fn bind(&self, id: DatabaseId, info: &DatabaseInfo) -> io::Result<()> {
        self.enter(id, info, self.make(id, info)?)
    }

    /// A database with these files: whoever is connected to its name is connected to it from now on. Nothing is asked of the
    /// system here: the catalogue has the database already, and there is no way back.
    pub(crate) fn enter(&self, id: DatabaseId, info: &DatabaseInfo, made: Made) -> io::Result<()> {
        let mut maps = self.maps.lock();
        let shape = maps.shape_for(info, made.shape);
        shape.bind(made.files)?;
        maps.by_name.insert(info.name.as_str().to_string(), shape.clone());
        maps.by_id.insert(id, shape);
        Ok(())
    }

    /// Begins, or goes on with, the next generation of a database's files.
    pub(crate) fn stage(&self, id: DatabaseId, page_size: PageSize, at: Checkpointed) -> io::Result<Staging> {
        let generation = self.generation(id) + 1;
        let owner = Owner { database: id.0, generation, page_size };
        Staging::begin(self.env.fs.clone(), &self.dir, owner, at)
    }

    /// Bytes that the files here can still grow by, if that is known.
    pub(crate) fn room(&self) -> Option<u64> {
        self.env.fs.room(&self.dir, "stage.room").ok().flatten()
    }

    /// Bytes of a database's next generation that an earlier attempt left.
    pub(crate) fn staged(&self, id: DatabaseId) -> u64 {
        let generation = self.generation(id) + 1;
        let [main, ..] = files::names(id.0, generation);
        let names = [files::part_name(id.0, generation), main];
        let there = names.iter().find_map(|name| self.env.fs.open(&self.dir.join(name), Open::Read, "stage.room").ok());
        there.and_then(|file| file.len("stage.room").ok()).unwrap_or(0)
    }

    /// A snapshot of entry `at` counts: the databases are those of its catalogue, and those that are named have these files
    /// now. Those of `gone` are dropped by an entry that is still to come.
    pub(crate) fn install(
        &self,
        at: LogIndex,
        catalogue: &Catalogue,
        files: Vec<(DatabaseId, DatabaseFiles)>,
        gone: &[DatabaseId],
    ) -> io::Result<()> {
        for id in gone {
            self.drop(*id, at);
            catalogue.database(*id).map_or(Ok(()), |info| self.enter_gone(*id, info))?;
        }
        for (id, _) in self.all() {
            if !catalogue.databases().any(|(known, _)| known == id) {
                self.drop(id, at);
            }
        }
        self.delete_dropped(at);
        for (id, files) in files {
            let Some(info) = catalogue.database(id) else { continue };
            let (old, new) = (self.generation(id), files.owner().generation);
            match self.get(id) {
                Some(db) => db.replace(files).map_err(io::Error::other)?,
                None => self.enter(id, info, self.with_shape(info, files)?)?,
            }
            let mut maps = self.maps.lock();
            maps.generations.insert(id, new);
            maps.damaged.remove(&id);
            drop(maps);
            self.remove_earlier(id, info.name.as_str(), old);
        }
        // What an earlier round of this snapshot fetched of databases that were dropped since, or are whole by now. Entries behind this
        // one may create what others have fetched.
        self.delete_leftovers(|id| id.0 <= at.0);
        Ok(())
    }

    /// Deletes files that were fetched and did not get to count, of databases for which `of` holds. What somebody builds at this
    /// moment, or holds, stays.
    pub(crate) fn delete_leftovers(&self, of: impl Fn(DatabaseId) -> bool) {
        if let Err(error) = self.try_delete_leftovers(of) {
            tracing::warn!(%error, "files that were fetched and are not needed remain until the next transfer or start");
        }
    }

    fn try_delete_leftovers(&self, of: impl Fn(DatabaseId) -> bool) -> io::Result<()> {
        let there = self.env.fs.list(&self.dir, "db.orphan")?;
        let all: BTreeSet<(u64, u64)> = there.iter().filter_map(|name| files::owner_of_name(name)).collect();
        for (id, generation) in all.into_iter().filter(|(id, _)| of(DatabaseId(*id))) {
            if !self.is_leftover(DatabaseId(id), generation) {
                continue;
            }
            // Whoever builds them has them locked; and so nobody begins to before they are gone.
            let owner = Owner { database: id, generation, page_size: PageSize::DEFAULT };
            let nothing = Checkpointed { position: Position(0), size: PageCount(0), checksum: PageHash::default() };
            match Staging::begin(self.env.fs.clone(), &self.dir, owner, nothing) {
                Ok(_locked) => self.env.fs.remove(&self.dir.join(files::part_name(id, generation)), "db.orphan")?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether files of this generation neither count nor wait for an anchor that knows of a drop.
    fn is_leftover(&self, id: DatabaseId, generation: u64) -> bool {
        let maps = self.maps.lock();
        let counts = maps.generations.get(&id).copied().unwrap_or(FIRST_GENERATION);
        !maps.dropped.contains_key(&id) && (!maps.by_id.contains_key(&id) || generation > counts)
    }

    /// A snapshot begins before a database is dropped, and does not have it any more. Its name leads nowhere until that entry
    /// comes, and what the log has for it before is passed over.
    fn enter_gone(&self, id: DatabaseId, info: &DatabaseInfo) -> io::Result<()> {
        let db = self.empty(info)?;
        db.retire(Refusal::Dropped);
        let mut maps = self.maps.lock();
        maps.generations.insert(id, GONE);
        maps.by_name.insert(info.name.as_str().to_string(), db.clone());
        maps.by_id.insert(id, db);
        Ok(())
    }

    /// Deletes the files of a generation that does not count any more.
    fn remove_earlier(&self, id: DatabaseId, name: &str, generation: u64) {
        if let Err(error) = self.remove_files(id, generation) {
            // They are deleted at the next start.
            tracing::warn!(%error, database = name, "files of an earlier generation remain");
        }
    }

    fn remove_files(&self, id: DatabaseId, generation: u64) -> io::Result<()> {
        for name in files::names(id.0, generation) {
            match self.env.fs.remove(&self.dir.join(name), "db.drop") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The entry at `at` dropped the database. Its connections get an error from now on; its files keep their names until
    /// [`Databases::delete_dropped`]. Read views of it go on, whose files have no names then: whoever fetches the state of an
    /// earlier entry gets all of it.
    pub(crate) fn drop(&self, id: DatabaseId, at: LogIndex) {
        let mut maps = self.maps.lock();
        if let Some(db) = maps.by_id.remove(&id) {
            maps.by_name.remove(db.name());
            maps.left.retain(LeftViews::are_held);
            maps.left.push(db.retire_as_dropped());
            maps.open.insert(id, db);
            self.drops.fetch_add(1, Ordering::Release);
        }
        maps.damaged.remove(&id);
        maps.generations.remove(&id);
        maps.dropped.insert(id, at);
    }

    /// How many databases that were in use were dropped. Every write asks, so it costs no lock.
    pub(crate) fn drops(&self) -> u64 {
        self.drops.load(Ordering::Acquire)
    }

    /// An anchor of entry `anchor` is on disk: whatever was dropped up to there is missed by no start. Files that cannot
    /// be deleted now are tried again with the next anchor, and at the next start.
    pub(crate) fn delete_dropped(&self, anchor: LogIndex) {
        let mut maps = self.maps.lock();
        let gone: Vec<_> = maps.dropped.iter().filter(|(_, at)| **at <= anchor).map(|(id, _)| *id).collect();
        let open: Vec<_> = gone.iter().filter_map(|id| maps.open.remove(id)).collect();
        drop(maps);
        if gone.is_empty() {
            return;
        }
        // Whoever still has a connection has it to nothing.
        open.iter().for_each(|db| db.close_files());
        match self.remove_all_files(&gone) {
            Ok(()) => self.maps.lock().dropped.retain(|id, _| !gone.contains(id)),
            Err(error) => tracing::warn!(%error, "files of a dropped database remain"),
        }
    }

    /// Of each generation, also of one that is being built.
    fn remove_all_files(&self, ids: &[DatabaseId]) -> io::Result<()> {
        let is_theirs = |name: &str| files::owner_of_name(name).is_some_and(|(id, _)| ids.contains(&DatabaseId(id)));
        for name in self.env.fs.list(&self.dir, "db.drop")?.iter().filter(|name| is_theirs(name)) {
            match self.env.fs.remove(&self.dir.join(name), "db.drop") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Nothing may be used any more.
    pub(crate) fn stop(&self) {
        let mut maps = self.maps.lock();
        maps.stopped = true;
        let left = std::mem::take(&mut maps.left);
        // Files of what was dropped may have their names still, and the next start opens them.
        let dropped = std::mem::take(&mut maps.open);
        let all: Vec<_> = maps.by_name.values().cloned().chain(dropped.into_values()).collect();
        drop(maps);
        left.iter().for_each(LeftViews::close);
        for db in all {
            db.retire(Refusal::NodeStopped);
            db.close_files();
        }
    }

    fn shape(&self, name: &str, geometry: Geometry) -> io::Result<Arc<Database>> {
        let outside = Some((self.env.fs.clone(), self.dir.clone()));
        let spill = SpillTo { memory: self.memory.clone(), outside };
        let db = Database::new(name, geometry, self.env.clock.clone(), &*self.env.rng, spill)?;
        db.keep_doublewrite(self.doublewrite_bytes.load(Ordering::Relaxed));
        Ok(db)
    }

    /// A call for one of the files that the disk has not answered for longer than `patience`, in words: whose file, for how long,
    /// and who waits meanwhile.
    pub(crate) fn unanswered(&self, patience: Duration) -> Option<String> {
        let Call { label, path, age } = self.watch.oldest().filter(|call| call.age > patience)?;
        let name = path.file_name().and_then(|name| name.to_str()).and_then(files::owner_of_name);
        let name = name.and_then(|(id, _)| Some(self.get(DatabaseId(id))?.name().to_string()));
        let of = name.map_or_else(|| "the databases".to_string(), |name| format!("database {name}"));
        let waits = match label {
            "db.create" | "map.create" => "nothing later is applied on this node",
            _ if label.starts_with("stage.") => "what this node fetches from another one waits",
            _ => "no checkpoint is made on this node, and WALs and log grow",
        };
        Some(format!(
            "the disk has not answered a call for the files of {of} for {} s ({label} of {}): {waits}; check the disk; all goes on by itself \
             when it answers",
            age.as_secs(),
            path.display()
        ))
    }

    /// What the WALs of all databases have in memory.
    pub(crate) fn memory(&self) -> &WalMemory {
        &self.memory
    }
}

#[cfg(test)]
mod tests;
