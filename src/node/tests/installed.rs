//! The table of crashes in `snapshot/install.rs`, walked: power lost in, and a fault of, every call while a snapshot is installed.
//! It replaces one database, brings another one and drops a third.

use shoaldb_vfs::database::Checkpoint;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::mapfile::Checkpointed;
use shoaldb_vfs::page::PageSize;

use super::world::{World, anchor, change, copy_at, create, entry_of, name};
use super::*;
use crate::apply::{Applier, Step};
use crate::snapshot::object::{Ask, Listed};
use crate::snapshot::rounds::Rounds;
use crate::upkeep::Upkeep;

/// The entries that create the databases, the last one of the log, the one that creates the new database elsewhere, and the one
/// that the snapshot is of.
const APP: u64 = 2;
const OLD: u64 = 3;
const LAST: u64 = 6;
const NEW: u64 = 12;
const SNAPSHOT: EntryId = EntryId { index: LogIndex(20), term: Term(1) };
const RECEIVED: u64 = 77;
const VIEW: ViewId = ViewId(6);

/// Two databases are created, and the first one is written.
fn entries() -> Vec<LogEntry> {
    let body = |index: u64| match index {
        APP => create("app"),
        OLD => create("old"),
        _ => change(APP, if index == OLD + 1 { APP } else { index - 1 }, index),
    };
    (APP..=LAST).map(|index| entry_of(index, body(index))).collect()
}

/// A node in one of its lives.
struct Life {
    hub: Hub,
    log: Arc<Log>,
    core: CoreStatus,
}

/// A node whose log has all the entries. If it is anchored, its main files have them, too, and a start does not make them anew.
fn node(anchored: bool) -> World {
    let (world, membership) = World::with_log(entries());
    if anchored {
        let life = start(&world);
        let app = life.hub.databases.get(DatabaseId(APP)).unwrap();
        let made = app.checkpoint_and_restart(Duration::ZERO, None).unwrap();
        assert!(matches!(made, Checkpoint::Done { to: Position(LAST), .. }), "{made:?}");
        anchor(&life.hub, &life.log, LAST, membership);
        life.hub.databases.stop();
    }
    world
}

/// A start, up to where the log's entries behind the anchor are applied.
fn start(world: &World) -> Life {
    let (hub, engine, log, anchored) = world.begin();
    let core = engine.core_status();
    let of_log = log.entries(anchored.next(), log.last().index.next(), u64::MAX).unwrap();
    let (mut applier, count) = (Applier::new(hub.clone()), of_log.len());
    applier.push(of_log);
    (0..count).for_each(|_| assert!(matches!(applier.step(), Step::Done)));
    Life { hub, log, core }
}

impl Life {
    /// A snapshot with its files complete, as `fetch.rs` leaves it.
    fn fetch(&self) -> Staged {
        let membership = self.core.membership.clone();
        let mut catalogue = Catalogue::new(self.hub.catalogue.lock().as_ref().unwrap().cluster());
        for (id, of) in [(APP, "app"), (NEW, "new")] {
            catalogue.apply_create(LogIndex(id), name(of), PageSize::DEFAULT, AutoVacuum::None).unwrap();
        }
        let (mut listed, mut files) = (Vec::new(), Vec::new());
        for (id, position) in [(APP, SNAPSHOT.index.0), (NEW, NEW + 1)] {
            let (at, copy) = copy_at(&self.hub, id, position);
            listed.push(Listed { id: DatabaseId(id), page_size: PageSize::DEFAULT, at });
            files.push((DatabaseId(id), copy));
        }
        let manifest = Manifest { at: SNAPSHOT, reach: SNAPSHOT.index, membership, catalogue, databases: listed };
        Staged { source: NodeId(2), view: VIEW, manifest, files, received: RECEIVED }
    }

    fn install(&self, staged: Staged) -> std::result::Result<Installed, String> {
        install::install(&self.hub, &self.log, &self.core, staged)
    }

    /// What each database shows, by name: how far it is, and its page.
    fn shows(&self, what: &str) -> Vec<(String, u64, u8)> {
        let shown = |(_, db): (DatabaseId, Arc<shoaldb_vfs::Database>)| {
            assert_eq!(db.retired(), None, "{what}");
            let page = db.page(PageNo::FIRST).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            (db.name().to_string(), db.position().0, page.unwrap()[27])
        };
        self.hub.databases.all().into_iter().map(shown).collect()
    }

    /// Whether the snapshot counts. All is as the log says, or all is as the snapshot says.
    fn is_new(&self, what: &str) -> bool {
        let is_new = self.log.start() == SNAPSHOT;
        let shown = self.shows(what);
        let shown: Vec<_> = shown.iter().map(|(name, position, byte)| (name.as_str(), *position, *byte)).collect();
        if is_new {
            let (app, new) = (SNAPSHOT.index.0, NEW + 1);
            assert_eq!(shown, [("app", app, app as u8), ("new", new, new as u8)], "{what}");
            assert_eq!(self.log.last(), SNAPSHOT, "{what}");
            let left = self.hub.snapshots.finishing().map(|finishing| (finishing.index, finishing.left));
            let all = Left { install: Some(RECEIVED), end: true, source: Some(VIEW.0) };
            assert_eq!(left, Some((SNAPSHOT.index, all)), "{what}: it is still to be told");
        } else {
            let empty = Geometry::default().first_page()[27];
            assert_eq!(shown, [("app", LAST, LAST as u8), ("old", OLD, empty)], "{what}");
            assert_eq!(self.log.last().index, LogIndex(LAST), "{what}");
            assert_eq!(self.hub.snapshots.finishing(), None, "{what}");
        }
        is_new
    }
}

/// Whether there is something to do about a snapshot that is offered, and whether anybody is asked about it.
fn asks(life: &Life) -> (bool, bool) {
    let mut asked = false;
    life.hub.snapshots.offer(NodeId(2));
    let due = life.hub.snapshots.is_due(Duration::ZERO);
    Rounds::default().step(&life.hub, &mut |_, _: &Ask| {
        asked = true;
        Err("nobody is there".to_string())
    });
    (due, asked)
}

/// After a start: the snapshot counts as a whole and nothing is left of what was before, or nothing of it counts and its pages are
/// of use to the next attempt, which succeeds. Whether it counted.
fn goes_on(world: &World, what: &str) -> bool {
    let life = start(world);
    let was_new = life.is_new(what);
    if !was_new {
        for (id, generation) in [(APP, 1), (OLD, 1)] {
            assert!(world.has(id, generation, "db"), "{what}: files of database {id} are gone");
        }
        let written = world.fs.count("stage.write");
        let staged = life.fetch();
        assert_eq!(world.fs.count("stage.write"), written, "{what}: the pages are fetched again");
        assert!(matches!(life.install(staged), Ok(Installed::Yes(_))), "{what}");
        assert!(life.is_new(what), "{what}");
    }
    life.hub.databases.stop();
    drop(life);
    let again = start(world);
    assert!(again.is_new(what), "{what}");
    assert!(world.has(APP, 2, "db") && world.has(NEW, 2, "db"), "{what}");
    for (id, generation) in [(APP, 1), (OLD, 1)] {
        let left: Vec<_> = ["db", "map", "dw"].into_iter().filter(|end| world.has(id, generation, end)).collect();
        assert!(left.is_empty(), "{what}: of database {id} there is still {left:?}");
    }
    again.hub.databases.stop();
    was_new
}

/// Shows INV-31.
#[test]
fn a_crash_or_a_fault_in_any_call_of_an_install_leaves_the_old_state_or_the_whole_new_one() {
    for anchored in [true, false] {
        walk(anchored);
    }
}

/// Nobody knows whether the record of an install that failed is on the disk. Its process went on, and fetched the next snapshot into
/// the same files: a log that began behind the first one then named pages of the second, and its node did not start any more (found
/// by `--every-fault 1 --seed 6`). Shows INV-31.
#[test]
fn a_process_whose_install_failed_fetches_nothing_more_and_leaves_its_files_alone() {
    let looks_after = |life: &Life, world: &World| {
        let before = world.fs.calls();
        Upkeep::new(life.hub.clone(), life.log.clone(), LogIndex(LAST)).step();
        world.fs.calls() - before
    };
    let (mut failed, mut nth) = (0, 1);
    loop {
        let world = node(true);
        let life = start(&world);
        let staged = life.fetch();
        world.fs.fail_at(Aim::Any, nth, Lasts::Once, Failure::EIO);
        let before = world.fs.calls();
        let ended = go_on_behind(&life.hub, &life.log, &life.core, staged).is_ok();
        let is_over = world.fs.calls() - before < nth;
        let what = format!("EIO in call {nth}, well: {ended}");
        assert_eq!(looks_after(&life, &world) > 0, ended, "{what}");
        assert_eq!(asks(&life), (ended, ended), "{what}");
        failed += u32::from(!ended);
        life.hub.databases.stop();
        drop(life);
        goes_on(&world, &what);
        if is_over {
            break;
        }
        nth += 1;
    }
    assert!(failed > 3, "{failed}");
}

/// It fetched for ever what it could not install.
#[test]
fn a_node_in_trouble_for_good_fetches_nothing() {
    let life = start(&node(true));
    assert_eq!(asks(&life), (true, true));
    life.hub.set_trouble("its log failed".to_string());
    assert_eq!(asks(&life), (true, false));
}

/// They are of no use any more, and a start deletes them.
#[test]
fn old_files_that_cannot_be_deleted_stop_no_install() {
    let world = node(true);
    let life = start(&world);
    let staged = life.fetch();
    world.fs.fail_at(Aim::At("db.drop"), 1, Lasts::ForGood, Failure::EIO);
    assert!(matches!(life.install(staged), Ok(Installed::Yes(_))));
    assert!(world.fs.has_failed("db.drop") && world.has(APP, 1, "db"));
    assert!(life.is_new("installed"));
    life.hub.databases.stop();
    drop(life);
    world.fs.clear_faults();
    assert!(goes_on(&world, "installed"));
}

/// A database that was dropped since would keep its files until the next start.
#[test]
fn what_was_fetched_and_is_not_needed_is_deleted() {
    let world = node(true);
    let mut life = start(&world);
    let before = world.files();
    let staged = life.fetch();
    assert_ne!(world.files(), before);
    life.core.committed = SNAPSHOT.index;
    assert!(matches!(life.install(staged), Ok(Installed::NotNeeded)));
    assert_eq!(world.files(), before);
}

/// A process that ended over it left pages of a database that there is, and the log of another leader goes back as far as this one
/// needs. They stayed until the next transfer, however many they were.
#[test]
fn what_an_earlier_process_fetched_goes_once_the_log_goes_on() {
    let world = node(true);
    let life = start(&world);
    let before = world.files();
    drop(life.fetch());
    life.hub.databases.stop();
    drop(life);
    let life = start(&world);
    let step = || Rounds::default().step(&life.hub, &mut |_, _: &Ask| Err("nobody is there".to_string()));
    step();
    assert!(world.has(APP, 2, "part") && world.has(NEW, 2, "db"), "{:?}", world.files());
    let mut applier = Applier::new(life.hub.clone());
    for index in LAST + 1..=NEW {
        step();
        assert!(world.has(APP, 2, "part"), "a snapshot of any entry may be offered again");
        applier.push(vec![entry_of(index, change(APP, index - 1, index))]);
        assert!(matches!(applier.step(), Step::Done));
    }
    step();
    assert_eq!(world.files(), before);
    life.hub.databases.stop();
}

/// A snapshot that is ahead of its log, and then one that has less of what that one brought, and has a database that is known to be
/// dropped: the further one is kept, and the other one stays away, whether power is lost in any call or not. Shows INV-31.
#[test]
fn what_is_kept_beside_a_snapshot_is_there_after_a_crash_in_any_call() {
    const FIRST: EntryId = EntryId { index: LogIndex(10), term: Term(1) };
    const SECOND: EntryId = EntryId { index: LogIndex(15), term: Term(1) };
    const REACH: u64 = 20;
    let staged = |life: &Life, at: EntryId| {
        let mut catalogue = Catalogue::new(life.hub.catalogue.lock().as_ref().unwrap().cluster());
        for (id, of) in [(APP, "app"), (OLD, "old")] {
            catalogue.apply_create(LogIndex(id), name(of), PageSize::DEFAULT, AutoVacuum::None).unwrap();
        }
        let (at_reach, files) = if at == FIRST {
            let (at_reach, copy) = copy_at(&life.hub, APP, REACH);
            (at_reach, vec![(DatabaseId(APP), copy)])
        } else {
            let kept = life.hub.databases.get(DatabaseId(APP)).unwrap().status();
            (Checkpointed { position: kept.position, size: kept.pages, checksum: kept.checksum }, Vec::new())
        };
        let databases = vec![Listed { id: DatabaseId(APP), page_size: PageSize::DEFAULT, at: at_reach }];
        let membership = life.core.membership.clone();
        let manifest = Manifest { at, reach: LogIndex(REACH), membership, catalogue, databases };
        Staged { source: NodeId(2), view: VIEW, manifest, files, received: RECEIVED }
    };
    let shows = |life: &Life, what: &str| {
        let [app, old] = [APP, OLD].map(|id| life.hub.databases.get(DatabaseId(id)).unwrap());
        assert_eq!((old.retired(), app.retired()), (Some(Refusal::Dropped), None), "{what}");
        let page = app.page(PageNo::FIRST).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!((app.position().0, page.unwrap()[27]), (REACH, REACH as u8), "{what}");
        assert_eq!(life.hub.reach(), LogIndex(REACH), "{what}");
        life.log.start()
    };
    let with_the_first = || {
        let world = node(true);
        let life = start(&world);
        assert!(matches!(life.install(staged(&life, FIRST)), Ok(Installed::Yes(_))));
        life.hub.databases.stop();
        drop(life);
        let life = start(&world);
        assert_eq!(shows(&life, "the first one"), FIRST);
        (world, life)
    };
    let (world, life) = with_the_first();
    let before = world.fs.calls();
    assert!(matches!(life.install(staged(&life, SECOND)), Ok(Installed::Yes(_))));
    let calls = world.fs.calls() - before;
    assert_eq!(shows(&life, "the second one"), SECOND);
    life.hub.databases.stop();
    drop(life);
    assert_eq!(shows(&start(&world), "started again"), SECOND);
    let (mut old, mut new) = (0, 0);
    for (nth, seed) in (1..=calls).flat_map(|nth| (0..8).map(move |seed| (nth, seed))) {
        let what = format!("power lost in call {nth} of {calls}, seed {seed}");
        let (world, life) = with_the_first();
        let staged = staged(&life, SECOND);
        world.fs.crash_at(Aim::Any, nth, seed);
        let _ = life.install(staged);
        assert!(world.fs.is_down(), "{what}");
        drop(life);
        world.fs.restart();
        let counts = if shows(&start(&world), &what) == SECOND { &mut new } else { &mut old };
        *counts += 1;
    }
    assert!(old > 0 && new > 0, "before the record {old}, behind it {new}");
}

fn walk(anchored: bool) {
    let world = node(anchored);
    let life = start(&world);
    assert!(!life.is_new("before"));
    let staged = life.fetch();
    let before = world.fs.calls();
    assert!(matches!(life.install(staged), Ok(Installed::Yes(_))));
    let calls = world.fs.calls() - before;
    assert!(life.is_new("installed"));
    life.hub.databases.stop();
    drop(life);
    assert!(goes_on(&world, "installed"));

    let (mut old, mut new, mut later) = (0, 0, 0);
    for nth in 1..=calls {
        for seed in 0..8 {
            let what = format!("anchored {anchored}, power lost in call {nth} of {calls}, seed {seed}");
            let world = node(anchored);
            let life = start(&world);
            let staged = life.fetch();
            world.fs.crash_at(Aim::Any, nth, seed);
            let _ = life.install(staged);
            assert!(world.fs.is_down(), "{what}");
            drop(life);
            world.fs.restart();
            let counts = if goes_on(&world, &what) { &mut new } else { &mut old };
            *counts += 1;
        }
        for failure in [Failure::EIO, Failure::ENOSPC] {
            let what = format!("anchored {anchored}, {failure:?} in call {nth} of {calls}");
            let world = node(anchored);
            let life = start(&world);
            let staged = life.fetch();
            world.fs.fail_at(Aim::Any, nth, Lasts::Once, failure);
            match life.install(staged) {
                Ok(Installed::Yes(_)) => assert!(life.is_new(&what), "{what}"),
                Ok(Installed::NoRoom(staged, _)) => {
                    later += 1;
                    assert!(!life.is_new(&what), "{what}");
                    // Whoever does not wait for it builds the next one in the same files.
                    let started = {
                        let world = node(anchored);
                        let life = start(&world);
                        let staged = life.fetch();
                        world.fs.fail_at(Aim::Any, nth, Lasts::Once, failure);
                        assert!(matches!(life.install(staged), Ok(Installed::NoRoom(..))), "{what}");
                        life.hub.databases.stop();
                        drop(life);
                        start(&world).is_new(&what)
                    };
                    assert!(!started, "{what}: the old log was to stay");
                    assert!(matches!(life.install(*staged), Ok(Installed::Yes(_))), "{what}");
                    assert!(life.is_new(&what), "{what}");
                }
                Ok(Installed::NotNeeded) => panic!("{what}: it is needed"),
                // The node stops, and its next start finds what there is.
                Err(_) => {}
            }
            life.hub.databases.stop();
            drop(life);
            goes_on(&world, &what);
        }
    }
    assert!(old > 0 && new > 0 && later > 0, "before the record {old}, behind it {new}, without room {later}");
}
