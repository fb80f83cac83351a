//! The databases of one node: which name and which id lead to which open database.
//!
//! ```text
//! DIR/db/<id>.db     main file of the database that the entry at index <id> created
//! ```
//!
//! A name that no entry has created may be opened: it leads to an empty *shape* that reads as an empty database and that
//! the first write creates. When the entry comes, the shape becomes the database, if they have the same geometry; else
//! it is retired and its connections must be opened again.
//!
//! Main files hold the genesis page only, since nothing is checkpointed: they are made anew at each start.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use shoaldb_vfs::Database;
use shoaldb_vfs::env::{Env, Open};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::genesis::Geometry;
use shoaldb_vfs::page::{LOCK_BYTE, LOCK_BYTES};
use shoaldb_vfs::spill::{SpillTo, WalMemory};
use shoaldb_vfs::transaction::Position;

use crate::catalogue::{AutoVacuum, DatabaseId, DatabaseInfo, DatabaseName};

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

#[derive(Default)]
struct Maps {
    by_name: HashMap<String, Arc<Database>>,
    by_id: HashMap<DatabaseId, Arc<Database>>,
    stopped: bool,
}

/// See the module's text.
pub(crate) struct Databases {
    env: Env,
    dir: PathBuf,
    /// What all WALs have in memory.
    memory: Arc<WalMemory>,
    maps: Mutex<Maps>,
}

impl Databases {
    /// The databases in `dir`, which is emptied: they are rebuilt from the log. Their WALs keep `wal_limit` bytes in
    /// memory, and the rest in nameless files beside the databases.
    pub(crate) fn open(env: Env, dir: PathBuf, wal_limit: u64) -> io::Result<Databases> {
        env.fs.create_dir_all(&dir, "db.dir")?;
        for file in env.fs.list(&dir, "db.dir")? {
            env.fs.remove(&dir.join(file), "db.dir")?;
        }
        Ok(Databases { env, dir, memory: WalMemory::new(wal_limit), maps: Mutex::default() })
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
                maps.by_name.insert(name.to_string(), db.clone());
                Ok(db)
            }
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

    /// The entry at index `id` created a database.
    pub(crate) fn bind(&self, id: DatabaseId, info: &DatabaseInfo) -> io::Result<()> {
        let geometry = geometry_of(info);
        let path = self.dir.join(format!("{}.db", id.0));
        let file = self.env.fs.open(&path, Open::CreateNew, "db.create")?;
        file.write_at(&geometry.first_page(), 0, "db.create")?;
        // There is no `-wal` beside it, so a stock SQLite would open this file, and write to it.
        file.lock(LOCK_BYTE, LOCK_BYTES, "db.lock")?;
        let mut maps = self.maps.lock();
        let name = info.name.as_str();
        let shape = match maps.by_name.get(name).cloned() {
            Some(shape) if shape.geometry() == geometry => shape,
            Some(other) => {
                other.retire(Refusal::Dropped);
                self.shape(name, geometry)?
            }
            None => self.shape(name, geometry)?,
        };
        shape.bind(Position(id.0), file)?;
        maps.by_name.insert(name.to_string(), shape.clone());
        maps.by_id.insert(id, shape);
        Ok(())
    }

    /// An entry dropped the database. Its connections get an error from now on.
    pub(crate) fn drop(&self, id: DatabaseId) -> io::Result<()> {
        let mut maps = self.maps.lock();
        if let Some(db) = maps.by_id.remove(&id) {
            maps.by_name.remove(db.name());
            db.retire(Refusal::Dropped);
        }
        drop(maps);
        self.env.fs.remove(&self.dir.join(format!("{}.db", id.0)), "db.drop")
    }

    /// Nothing may be used any more.
    pub(crate) fn stop(&self) {
        let mut maps = self.maps.lock();
        maps.stopped = true;
        for db in maps.by_name.values() {
            db.retire(Refusal::NodeStopped);
        }
    }

    fn shape(&self, name: &str, geometry: Geometry) -> io::Result<Arc<Database>> {
        let outside = Some((self.env.fs.clone(), self.dir.clone()));
        let spill = SpillTo { memory: self.memory.clone(), outside };
        Database::new(name, geometry, self.env.clock.clone(), &*self.env.rng, spill)
    }

    /// What the WALs of all databases have in memory.
    pub(crate) fn memory(&self) -> &WalMemory {
        &self.memory
    }
}
