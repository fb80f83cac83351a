//! The table of crashes in `snapshot/mend.rs`, walked: power lost in, and a fault of, every call while a copy takes the place of
//! a damaged one.

use shoaldb_vfs::Database;
use shoaldb_vfs::database::Checkpoint;
use shoaldb_vfs::env::Fs;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts};
use shoaldb_vfs::files::DatabaseFiles;
use shoaldb_vfs::page::PageSize;
use shoaldb_vfs::transaction::{ChangedPage, Transaction};

use super::*;
use crate::apply::{Applier, Step};
use crate::databases::Damage;
use crate::entry::{self, Body, Origin, Payload};
use crate::snapshot::Mended;
use crate::snapshot::mend::{self, Outcome};
use crate::snapshot::object::ViewId;

/// The entry that creates the database, the one that the view is of, and the last.
const APP: u64 = 2;
const VIEW: u64 = 5;
const LAST: u64 = 8;

/// Page 1 as entry `index` leaves it.
fn page(index: u64) -> Vec<u8> {
    let mut page = Geometry::default().first_page();
    page[27] = index as u8;
    page
}

fn hash(page: &[u8]) -> PageHash {
    PageHash::of(PageNo::FIRST, page)
}

/// Entry [`APP`] creates the database; each of the others changes its page.
fn entries() -> Vec<LogEntry> {
    let entry = |index: u64| {
        let body = if index == APP {
            let name = DatabaseName::new("app").unwrap();
            Body::CreateDatabase { name, page_size: PageSize::DEFAULT, auto_vacuum: AutoVacuum::None }
        } else {
            let image = page(index);
            let transaction = Transaction {
                base: Position(index - 1),
                page_size: PageSize::DEFAULT,
                size_after: PageCount(1),
                checksum_after: hash(&image),
                pages: vec![ChangedPage { number: PageNo::FIRST, hash: hash(&image), image: image.into() }],
            };
            Body::Transaction { database: DatabaseId(APP), transaction }
        };
        let origin = Origin { node: NodeId(2), session: 9, number: index };
        let id = EntryId { index: LogIndex(index), term: Term(1) };
        let data = entry::encode(&Payload { origin, body }).unwrap().into();
        LogEntry { id, class: EntryClass::Normal, data }
    };
    (APP..=LAST).map(entry).collect()
}

struct World {
    fs: SimFs,
    env: Env,
    directory: Directory,
    identity: Identity,
}

/// A node in one of its lives.
struct Life {
    hub: Hub,
    log: Arc<Log>,
    applier: Applier,
}

impl World {
    /// A start, up to where the log's entries behind the anchor are applied.
    fn start(&self) -> Life {
        let opened = self.directory.open_log(&self.identity).unwrap();
        let anchored = opened.applied().index;
        let (mailbox, _) = crossbeam_channel::unbounded();
        let hub = hub_of(&self.env, &self.identity, mailbox);
        let (_, log) = begin(&hub, opened, &self.directory).unwrap();
        let mut life = Life { applier: Applier::new(hub.clone()), hub, log };
        life.apply(anchored.0 + 1, LAST);
        life
    }
}

impl Life {
    fn apply(&mut self, first: u64, last: u64) {
        let of_log = self.log.entries(LogIndex(first), LogIndex(last + 1), u64::MAX).unwrap();
        assert_eq!(of_log.len() as u64, last + 1 - first);
        self.applier.push(of_log);
        for _ in first..=last {
            assert!(matches!(self.applier.step(), Step::Done));
        }
    }

    fn db(&self) -> Arc<Database> {
        self.hub.databases.get(DatabaseId(APP)).unwrap()
    }

    /// The files of a copy as it was at the entry of the view.
    fn fetch(&self) -> DatabaseFiles {
        let page = page(VIEW);
        let at = Checkpointed { position: Position(VIEW), size: PageCount(1), checksum: hash(&page) };
        let mut staging = self.hub.databases.stage(DatabaseId(APP), PageSize::DEFAULT, at).unwrap();
        if !staging.has(PageNo::FIRST, hash(&page)).unwrap() {
            staging.write(PageNo::FIRST, &page).unwrap();
        }
        staging.finish(&mut |_, _| Ok(vec![hash(&page)])).unwrap()
    }

    fn mend(&self, files: DatabaseFiles) -> Outcome {
        let at = EntryId { index: LogIndex(VIEW), term: Term(1) };
        let (source, view) = (NodeId(2), ViewId(1));
        let mended = Mended { source, view, at, database: DatabaseId(APP), files, received: 1 };
        mend::mend(&self.hub, &self.log, Box::new(mended))
    }

    /// It shows what all entries leave, and is served.
    fn assert_whole(&self, what: &str) {
        let db = self.db();
        assert_eq!((db.retired(), db.position()), (None, Position(LAST)), "{what}");
        let shown = db.page(PageNo::FIRST).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(shown.as_deref(), Some(&page(LAST)[..]), "{what}");
    }
}

/// A node that has applied everything, and whose copy then rotted: in a main file that a checkpoint made at entry 4, or in the
/// one that was made with the database, of which the newest anchor does not know yet.
fn damaged(anchored: bool) -> (World, Life) {
    let fs = SimFs::new(1);
    let (env, directory, identity, opened) = founded_on(&fs);
    let membership = opened.restored.membership.clone();
    let commit = HardState { term: Term(1), vote: None, commit: LogIndex(LAST) };
    opened.log.append(&Batch { entries: entries(), hard_state: Some(commit), ..Batch::default() }).unwrap();
    drop(opened);
    let world = World { fs, env, directory, identity };
    if anchored {
        let opened = world.directory.open_log(&world.identity).unwrap();
        let (mailbox, _) = crossbeam_channel::unbounded();
        let hub = hub_of(&world.env, &world.identity, mailbox);
        let (_, log) = begin(&hub, opened, &world.directory).unwrap();
        let mut life = Life { applier: Applier::new(hub.clone()), hub, log };
        life.apply(APP, 4);
        let made = life.db().checkpoint_and_restart(Duration::ZERO, None).unwrap();
        assert!(matches!(made, Checkpoint::Done { to: Position(4), .. }), "{made:?}");
        let catalogue = life.hub.catalogue.lock().clone().unwrap();
        let registry = registry::encode(&catalogue, &Default::default(), Default::default());
        let registry = life.hub.registry(&registry);
        let anchor = Anchor { applied: LogIndex(4), membership, registry };
        life.log.append(&Batch { anchor: Some(anchor), ..Batch::default() }).unwrap();
        life.hub.databases.stop();
    }
    let life = world.start();
    life.assert_whole("before");
    let main = Path::new("/a/db").join(format!("{APP}-1.db"));
    world.fs.edit(&main, |bytes| bytes[1000] ^= 4);
    assert!(life.hub.databases.convict(DatabaseId(APP), Damage::Rotten, "it rotted".to_string()));
    (world, life)
}

/// After a start: the copy counts and has everything, or it does not and its pages are of use to the next attempt, which
/// succeeds.
fn goes_on(world: &World, anchored: bool, what: &str) {
    let life = world.start();
    let names = || world.fs.list(Path::new("/a/db"), "test").unwrap();
    let of = |generation: u64| names().iter().any(|name| *name == format!("{APP}-{generation}.db"));
    match life.hub.databases.generation(DatabaseId(APP)) {
        1 => {
            assert!(of(1), "{what}: the old files are gone, and the new ones do not count: {:?}", names());
            let part = names().contains(&format!("{APP}-2.part"));
            assert!(part || of(2), "{what}: what was fetched is gone: {:?}", names());
            // A start need not find the damage: the page may be in the WAL, and the file is not read.
            life.hub.databases.convict(DatabaseId(APP), Damage::Rotten, "it rotted".to_string());
            let written = world.fs.count("stage.write");
            let files = life.fetch();
            assert_eq!(world.fs.count("stage.write"), written, "{what}: the pages are fetched again");
            assert!(matches!(life.mend(files), Outcome::Repaired), "{what}");
        }
        // Those of a database that the newest anchor does not know of are left alone.
        2 => assert!(of(2) && (!anchored || !of(1)), "{what}: {:?}", names()),
        other => panic!("{what}: generation {other}"),
    }
    life.assert_whole(what);
    life.hub.databases.stop();
    let again = world.start();
    assert_eq!(again.hub.databases.generation(DatabaseId(APP)), 2, "{what}");
    again.assert_whole(what);
}

/// Shows INV-39.
#[test]
fn a_crash_or_a_fault_in_any_call_of_a_repair_leaves_the_old_copy_or_the_whole_new_one() {
    for anchored in [false, true] {
        let (world, life) = damaged(anchored);
        let files = life.fetch();
        let before = world.fs.calls();
        assert!(matches!(life.mend(files), Outcome::Repaired));
        let calls = world.fs.calls() - before;
        life.assert_whole("repaired");
        goes_on(&world, anchored, "repaired");

        let (mut old, mut new) = (0, 0);
        for nth in 1..=calls {
            for seed in 0..8 {
                let what = format!("anchored {anchored}, power lost in call {nth} of {calls}, seed {seed}");
                let (world, life) = damaged(anchored);
                let files = life.fetch();
                world.fs.crash_at(Aim::Any, nth, seed);
                let _ = life.mend(files);
                assert!(world.fs.is_down(), "{what}");
                drop(life);
                world.fs.restart();
                let generation = |world: &World| world.start().hub.databases.generation(DatabaseId(APP));
                let counts = if generation(&world) == 1 { &mut old } else { &mut new };
                *counts += 1;
                goes_on(&world, anchored, &what);
            }
            for failure in [Failure::EIO, Failure::ENOSPC] {
                let what = format!("anchored {anchored}, {failure:?} in call {nth} of {calls}");
                let (world, life) = damaged(anchored);
                let files = life.fetch();
                world.fs.fail_at(Aim::Any, nth, Lasts::Once, failure);
                // An earlier generation whose files cannot be deleted is one that the next start deletes.
                if matches!(life.mend(files), Outcome::Repaired) {
                    life.assert_whole(&what);
                } else {
                    assert!(life.db().retired().is_some(), "{what}: it is served, and was not repaired");
                }
                life.hub.databases.stop();
                drop(life);
                goes_on(&world, anchored, &what);
            }
        }
        assert!(old > 0 && new > 0, "before the record {old}, after it {new}");
    }
}
