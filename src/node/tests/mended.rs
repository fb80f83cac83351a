//! The table of crashes in `snapshot/mend.rs`, walked: power lost in, and a fault of, every call while a copy takes the place of
//! a damaged one.

use shoaldb_vfs::Database;
use shoaldb_vfs::database::Checkpoint;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts};
use shoaldb_vfs::files::DatabaseFiles;

use super::world::{World, anchor, change, copy_at, create, entry_of, page};
use super::*;
use crate::apply::{Applier, Step};
use crate::databases::Damage;
use crate::snapshot::Mended;
use crate::snapshot::mend::{self, Outcome};
use crate::snapshot::object::ViewId;

/// The entry that creates the database, the one that the view is of, and the last.
const APP: u64 = 2;
const VIEW: u64 = 5;
const LAST: u64 = 8;

/// Entry [`APP`] creates the database; each of the others changes its page.
fn entries() -> Vec<LogEntry> {
    let body = |index: u64| if index == APP { create("app") } else { change(APP, index - 1, index) };
    (APP..=LAST).map(|index| entry_of(index, body(index))).collect()
}

/// A node in one of its lives.
struct Life {
    hub: Hub,
    log: Arc<Log>,
    applier: Applier,
}

/// A start, up to where the log's entries behind the anchor are applied.
fn start(world: &World) -> Life {
    let (hub, _, log, anchored) = world.begin();
    let mut life = Life { applier: Applier::new(hub.clone()), hub, log };
    life.apply(anchored.0 + 1, LAST);
    life
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
        copy_at(&self.hub, APP, VIEW).1
    }

    fn mend(&self, files: DatabaseFiles) -> Outcome {
        mend::mend(&self.hub, &self.log, of(files))
    }

    /// It shows what all entries leave, and is served.
    fn assert_whole(&self, what: &str) {
        let db = self.db();
        assert_eq!((db.retired(), db.position()), (None, Position(LAST)), "{what}");
        let shown = db.page(PageNo::FIRST).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(shown.as_deref(), Some(&page(LAST)[..]), "{what}");
    }
}

/// What waits to count.
fn of(files: DatabaseFiles) -> Box<Mended> {
    let at = EntryId { index: LogIndex(VIEW), term: Term(1) };
    Box::new(Mended {
        source: NodeId(2),
        view: ViewId(1),
        at,
        database: DatabaseId(APP),
        files,
        received: 1,
        tried: false,
    })
}

/// A node that has applied everything, and whose copy then rotted: in a main file that a checkpoint made at entry 4, or in the
/// one that was made with the database, of which the newest anchor does not know yet.
fn damaged(anchored: bool) -> (World, Life) {
    let (world, membership) = World::with_log(entries());
    if anchored {
        let (hub, _, log, _) = world.begin();
        let mut life = Life { applier: Applier::new(hub.clone()), hub, log };
        life.apply(APP, 4);
        let made = life.db().checkpoint_and_restart(Duration::ZERO, None).unwrap();
        assert!(matches!(made, Checkpoint::Done { to: Position(4), .. }), "{made:?}");
        anchor(&life.hub, &life.log, 4, membership);
        life.hub.databases.stop();
    }
    let life = start(&world);
    life.assert_whole("before");
    let main = Path::new("/a/db").join(format!("{APP}-1.db"));
    world.fs.edit(&main, |bytes| bytes[1000] ^= 4);
    assert!(life.hub.databases.convict(DatabaseId(APP), Damage::Rotten, "it rotted".to_string()));
    (world, life)
}

/// After a start: the copy counts and has everything, or it does not and its pages are of use to the next attempt, which
/// succeeds.
fn goes_on(world: &World, anchored: bool, what: &str) {
    let life = start(world);
    let of = |generation: u64| world.has(APP, generation, "db");
    match life.hub.databases.generation(DatabaseId(APP)) {
        1 => {
            assert!(of(1), "{what}: the old files are gone, and the new ones do not count: {:?}", world.files());
            let part = world.has(APP, 2, "part");
            assert!(part || of(2), "{what}: what was fetched is gone: {:?}", world.files());
            // A start need not find the damage: the page may be in the WAL, and the file is not read.
            life.hub.databases.convict(DatabaseId(APP), Damage::Rotten, "it rotted".to_string());
            let written = world.fs.count("stage.write");
            let files = life.fetch();
            assert_eq!(world.fs.count("stage.write"), written, "{what}: the pages are fetched again");
            assert!(matches!(life.mend(files), Outcome::Repaired), "{what}");
        }
        // Those of a database that the newest anchor does not know of are left alone.
        2 => assert!(of(2) && (!anchored || !of(1)), "{what}: {:?}", world.files()),
        other => panic!("{what}: generation {other}"),
    }
    life.assert_whole(what);
    life.hub.databases.stop();
    let again = start(world);
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
                let generation = |world: &World| start(world).hub.databases.generation(DatabaseId(APP));
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
                let outcome = life.mend(files);
                if matches!(outcome, Outcome::Repaired) {
                    life.assert_whole(&what);
                } else {
                    assert!(life.db().retired().is_some(), "{what}: it is served, and was not repaired");
                }
                let mut elsewhere = life.hub.snapshots.has_ended();
                if let Outcome::NoRoom(mended, _) = outcome {
                    life.hub.snapshots.set_mended(mended);
                    elsewhere |= !life.hub.snapshots.drop_mended() && life.hub.snapshots.has_mended();
                }
                // Another copy would be built in files that no record names: further on, or by the next process.
                let generation = |life: &Life| life.hub.databases.generation(DatabaseId(APP));
                elsewhere |= generation(&life) == 2;
                life.hub.databases.stop();
                drop(life);
                let found = start(&world);
                assert!(elsewhere || generation(&found) == 1, "{what}: the next copy is built in files that count");
                found.hub.databases.stop();
                drop(found);
                goes_on(&world, anchored, &what);
            }
        }
        assert!(old > 0 && new > 0, "before the record {old}, after it {new}");
    }
}

/// It was in nobody's way while its record was written, and the next copy could be fetched into the same files.
#[test]
fn a_copy_that_is_about_to_count_is_in_the_way_of_the_next_one() {
    let (_world, life) = damaged(true);
    let snapshots = &life.hub.snapshots;
    snapshots.set_mended(of(life.fetch()));
    assert!(snapshots.take_mended(LogIndex(VIEW - 1)).is_none() && snapshots.has_mended());
    let taken = snapshots.take_mended(LogIndex(VIEW));
    assert!(taken.is_some() && snapshots.has_mended(), "while it is made to count");
    snapshots.end_mend();
    assert!(!snapshots.has_mended());
}
