//! What a directory of databases is after whatever came in between.

use std::path::Path;

use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimClock, SimFs, SimRng};
use shoaldb_vfs::env::{Fs, Open};
use shoaldb_vfs::mapfile::Checkpointed;
use shoaldb_vfs::page::{PageCount, PageHash, PageNo};
use shoaldb_vfs::staging::Staging;

use super::*;
use crate::every::tests::{Hasty, said};
use crate::types::ClusterId;

const DIR: &str = "/db";

fn disk() -> (SimFs, Env) {
    let fs = SimFs::new(1);
    let env = Env { fs: Arc::new(fs.clone()), clock: Arc::new(SimClock::default()), rng: Arc::new(SimRng::new(1)) };
    (fs, env)
}

fn names(fs: &SimFs) -> Vec<String> {
    fs.list(Path::new(DIR), "test").unwrap()
}

fn info() -> DatabaseInfo {
    let geometry = Geometry::default();
    let name = DatabaseName::new("app").unwrap();
    DatabaseInfo { name, page_size: geometry.page_size, auto_vacuum: AutoVacuum::None }
}

fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::new(ClusterId(1));
    catalogue.apply_create(LogIndex(3), info().name, info().page_size, info().auto_vacuum).unwrap();
    catalogue
}

/// A database that the catalogue has needs nothing more of the system, as a descriptor that there may not be.
#[test]
fn what_was_made_enters_as_it_is() {
    let (_, env) = disk();
    let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
    let made = databases.make(DatabaseId(3), &info()).unwrap();
    let shape = made.shape.clone();
    databases.enter(DatabaseId(3), &info(), made).unwrap();
    assert!(Arc::ptr_eq(&shape, &databases.get(DatabaseId(3)).unwrap()));
}

/// Database 3 with the files of generation 1, and of generation 2 at position 9, which has so many pages.
fn two_generations(env: &Env, pages: u32) {
    let databases = Databases::open(env.clone(), DIR.into(), 1 << 20).unwrap();
    databases.bind(DatabaseId(3), &info()).unwrap();
    databases.stop();
    let content = Geometry::default().first_page();
    let hash = |page| PageHash::of(page, &content);
    let all = (1..=pages).filter_map(PageNo::new).map(hash);
    let checksum = all.fold(PageHash::default(), PageHash::toggle);
    let at = Checkpointed { position: Position(9), size: PageCount(pages), checksum };
    let owner = owner(DatabaseId(3), &info(), 2);
    let mut staging = Staging::begin(env.fs.clone(), Path::new(DIR), owner, at).unwrap();
    (1..=pages).filter_map(PageNo::new).for_each(|page| staging.write(page, &content).unwrap());
    let hashes = |first: PageNo, count| (first.get()..first.get() + count).filter_map(PageNo::new).map(hash).collect();
    staging.finish(&mut |first, count| Ok(hashes(first, count))).unwrap();
}

/// The generation that counts is opened, whichever it is; files of a later one are a part again, of an earlier one gone.
#[test]
fn the_generation_that_counts_is_opened_and_the_others_are_parts_or_gone() {
    for (counts, position, kept) in
        [(1, 3, ["3-1.db", "3-1.map", "3-2.part"].as_slice()), (2, 9, ["3-2.db", "3-2.map"].as_slice())]
    {
        let (fs, env) = disk();
        two_generations(&env, 1);
        assert_eq!(names(&fs), ["3-1.db", "3-1.map", "3-2.db", "3-2.map"]);
        let generations: BTreeMap<_, _> = [(DatabaseId(3), counts)].into_iter().collect();
        let databases = Databases::open(env.clone(), DIR.into(), 1 << 20).unwrap();
        let furthest = databases.restore(&catalogue(), generations.clone(), LogIndex(5)).unwrap();
        assert_eq!((furthest, databases.damaged(&Help::Voters)), (Position(position), vec![]));
        assert_eq!(databases.generations(), generations);
        assert_eq!(names(&fs), kept);
        databases.drop(DatabaseId(3), LogIndex(20));
        assert!(databases.generations().is_empty());
        databases.delete_dropped(LogIndex(20));
        assert!(names(&fs).is_empty());
    }
}

/// A start asks the disk for as much as it does for a small database, however large one is.
#[test]
fn what_a_start_reads_does_not_grow_with_a_database() {
    let cost = |pages: u32| {
        let (fs, env) = disk();
        two_generations(&env, pages);
        let (calls, bytes) = (fs.calls(), fs.bytes_moved());
        let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
        let generations = [(DatabaseId(3), 2)].into_iter().collect();
        assert_eq!(databases.restore(&catalogue(), generations, LogIndex(5)).unwrap(), Position(9));
        assert_eq!(databases.get(DatabaseId(3)).unwrap().status().pages.0, pages);
        (fs.calls() - calls, fs.bytes_moved() - bytes)
    };
    let small = cost(1);
    assert_eq!(cost(5000), small, "calls, bytes");
}

/// A setting that was lowered waited for the next write to that database, which may never come.
#[test]
fn a_double_write_that_may_be_smaller_now_is_smaller_after_the_start() {
    let (fs, env) = disk();
    let dw = Path::new(DIR).join("3-2.dw");
    two_generations(&env, 1);
    fs.open(&dw, Open::CreateNew, "test").unwrap().write_at(&[7; 5000], 0, "test").unwrap();
    for (keep, left) in [(5000, 5000), (4999, 0)] {
        let databases = Databases::open(env.clone(), DIR.into(), 1 << 20).unwrap();
        databases.keep_doublewrites(keep);
        databases.restore(&catalogue(), [(DatabaseId(3), 2)].into_iter().collect(), LogIndex(5)).unwrap();
        assert_eq!(databases.get(DatabaseId(3)).unwrap().status().doublewrite, (left, keep));
        assert_eq!(fs.peek(&dw).unwrap().len() as u64, left);
        databases.stop();
    }
}

fn some(count: u64) -> Vec<(DatabaseId, DatabaseInfo)> {
    let name = |id| DatabaseName::new(&format!("app{id}")).unwrap();
    (3..3 + count).map(|id| (DatabaseId(id), DatabaseInfo { name: name(id), ..info() })).collect()
}

/// The first one that opens goes on when a second one is being opened.
#[test]
fn databases_are_opened_in_parallel() {
    const LONG: std::time::Duration = std::time::Duration::from_secs(30);
    let (fs, env) = disk();
    let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
    let all = some(2 * OPENERS as u64);
    all.iter().for_each(|(id, info)| databases.bind(*id, info).unwrap());
    let met = Arc::new((Mutex::new((0, false)), parking_lot::Condvar::new()));
    fs.on_call("db.open", {
        let met = met.clone();
        move || {
            let (count, there) = &*met;
            let mut count = count.lock();
            count.0 += 1;
            there.notify_all();
            // Nobody waits after one has waited in vain.
            let alone = |(opened, given_up): &mut (u32, bool)| *opened < 2 && !*given_up;
            if there.wait_while_for(&mut count, alone, LONG).timed_out() {
                count.1 = true;
            }
        }
    });
    assert!(databases.open_all(&all).iter().all(Result::is_ok));
    assert!(!met.0.lock().1, "the first was opened before the second was begun");
}

#[test]
fn how_many_databases_are_open_is_told_every_second() {
    let (_fs, env) = disk();
    let env = Env { clock: Arc::new(Hasty::default()), ..env };
    let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
    let all = some(3);
    all.iter().for_each(|(id, info)| databases.bind(*id, info).unwrap());
    let heard = said(|| assert!(databases.open_all(&all).iter().all(Result::is_ok)));
    assert_eq!(heard, ["starting: opened 1 of 3 databases", "starting: opened 2 of 3 databases"]);
}

/// Names that nobody is connected to cost nothing, however many were looked at.
#[test]
fn a_name_that_was_only_looked_at_is_forgotten() {
    let (_fs, env) = disk();
    let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
    let held = databases.find("held", true).unwrap();
    for n in 0..100 {
        databases.find(&format!("n{n}"), true).unwrap();
    }
    assert_eq!(databases.maps.lock().by_name.len(), 2, "the one that is held, and the last");
    assert!(Arc::ptr_eq(&held, &databases.find("held", true).unwrap()));
}

/// A start whose anchor is older than the drop finds the database whole, and not damaged.
#[test]
fn files_of_a_dropped_database_stay_until_an_anchor_knows_of_it() {
    let (fs, env) = disk();
    two_generations(&env, 1);
    let generations: BTreeMap<_, _> = [(DatabaseId(3), 2)].into_iter().collect();
    for _ in 0..2 {
        let databases = Databases::open(env.clone(), DIR.into(), 1 << 20).unwrap();
        databases.restore(&catalogue(), generations.clone(), LogIndex(5)).unwrap();
        assert_eq!((databases.damaged(&Help::Voters), databases.convicted()), (vec![], 0));
        databases.drop(DatabaseId(3), LogIndex(20));
        databases.delete_dropped(LogIndex(19));
        assert_eq!(names(&fs), ["3-2.db", "3-2.map"]);
        databases.stop();
    }
    let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
    databases.restore(&Catalogue::new(ClusterId(1)), BTreeMap::new(), LogIndex(20)).unwrap();
    assert!(names(&fs).is_empty(), "the anchor knows of it");
}

/// A view of it, which may be lent to another node, needs neither. What comes under its name is another database.
#[test]
fn a_view_of_a_dropped_database_goes_on_without_names_and_ends_with_the_node() {
    const PAGES: u32 = 70;
    let (fs, env) = disk();
    two_generations(&env, PAGES);
    let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
    databases.restore(&catalogue(), [(DatabaseId(3), 2)].into_iter().collect(), LogIndex(5)).unwrap();
    let view = databases.get(DatabaseId(3)).unwrap().read_view().unwrap();
    databases.drop(DatabaseId(3), LogIndex(20));
    databases.delete_dropped(LogIndex(20));
    assert_eq!(names(&fs), [""; 0]);
    databases.bind(DatabaseId(21), &info()).unwrap();
    assert!(databases.get(DatabaseId(3)).is_none());
    let other = databases.find("app", false).unwrap();
    assert_eq!((databases.id_of(&other), other.status().pages.0), (Some(DatabaseId(21)), 1));
    let content = Geometry::default().first_page();
    for page in (1..=PAGES).filter_map(PageNo::new) {
        assert!(*view.page(page).unwrap() == *content, "page {}", page.get());
    }
    assert_eq!((view.at().position, names(&fs)), (Position(9), vec!["21-1.db".to_string(), "21-1.map".to_string()]));
    databases.drop(DatabaseId(21), LogIndex(30));
    assert!(view.is_open());
    databases.stop();
    assert!(!view.is_open());
}

/// A start comes through a state in which it exists. The process is the same, and has a view of it and all else that it had.
#[test]
fn a_node_that_stops_gives_back_the_files_of_what_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Databases::open(Env::os(), dir.path().join("db"), 1 << 20).unwrap();
    let databases = open();
    databases.bind(DatabaseId(3), &info()).unwrap();
    let _view = databases.get(DatabaseId(3)).unwrap().read_view().unwrap();
    databases.drop(DatabaseId(3), LogIndex(20));
    databases.stop();
    let next = open();
    next.restore(&catalogue(), BTreeMap::new(), LogIndex(5)).unwrap();
    assert_eq!(next.damaged(&Help::Voters), [""; 0]);
}

/// The pieces of the files that a crash leaves are any: also a map whose head and position are there and whose hashes are
/// not. The entry that creates the database is applied again, and what it finds is no damage.
#[test]
fn what_a_crash_leaves_of_new_files_is_made_anew_or_whole() {
    let id = DatabaseId(3);
    for seed in 0..300 {
        let (fs, env) = disk();
        let databases = Databases::open(env.clone(), DIR.into(), 1 << 20).unwrap();
        fs.sync_dir(Path::new("/"), "test").unwrap();
        fs.crash_at(Aim::Any, 1 + seed % 14, seed);
        let died = databases.bind(id, &info()).is_err();
        databases.stop();
        fs.crash(seed);
        fs.restart();
        let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
        databases.restore(&Catalogue::new(ClusterId(1)), BTreeMap::new(), LogIndex(2)).unwrap();
        databases.bind(id, &info()).unwrap_or_else(|error| panic!("{seed}, died {died}: {error}"));
        let page = databases.get(id).unwrap().page(PageNo::FIRST);
        let page = page.unwrap_or_else(|error| panic!("{seed}, died {died}: {error:?}"));
        assert_eq!(page.unwrap(), Geometry::default().first_page().into(), "{seed}, died {died}");
    }
}

/// After a sync that failed, or that a killed process never made, what the kernel shows is not what is on the disk. Files that
/// were taken for whole then were gone with the power, behind an anchor that knew of the database.
#[test]
fn files_that_may_not_be_on_the_disk_are_made_anew() {
    let id = DatabaseId(3);
    let mut failed = 0;
    for (label, nth) in ["db.create", "map.create"].into_iter().flat_map(|label| (1..=5).map(move |nth| (label, nth))) {
        // What was not synced is lost or not, by the seed.
        for (killed, seed) in [false, true].into_iter().flat_map(|killed| (1..=8).map(move |seed| (killed, seed))) {
            let (fs, env) = disk();
            let mut databases = Databases::open(env.clone(), DIR.into(), 1 << 20).unwrap();
            fs.sync_dir(Path::new("/"), "test").unwrap();
            fs.fail_at(Aim::At(label), nth, Lasts::Once, Failure::ENOSPC);
            failed += usize::from(databases.make(id, &info()).is_err());
            fs.clear_faults();
            if killed {
                databases.stop();
                databases = Databases::open(env.clone(), DIR.into(), 1 << 20).unwrap();
            }
            databases.bind(id, &info()).unwrap();
            databases.stop();
            fs.crash(seed);
            fs.restart();
            let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
            databases.restore(&catalogue(), BTreeMap::new(), LogIndex(5)).unwrap();
            assert_eq!(databases.damaged(&Help::Voters), [""; 0], "{label} {nth}, killed {killed}");
            let page = databases.get(id).unwrap().page(PageNo::FIRST).unwrap();
            assert_eq!(page.unwrap(), Geometry::default().first_page().into());
        }
    }
    assert!(failed >= 16 * 8, "{failed} of them were calls that there are");
}

/// Also over a start; and nobody takes it for damage.
#[test]
fn what_a_snapshot_lacks_since_it_will_be_dropped_leads_nowhere_until_then() {
    let (fs, env) = disk();
    two_generations(&env, 1);
    let id = DatabaseId(3);
    let mut generations: BTreeMap<_, _> = [(id, 2)].into_iter().collect();
    for installs in [true, false] {
        let databases = Databases::open(env.clone(), DIR.into(), 1 << 20).unwrap();
        databases.restore(&catalogue(), generations, LogIndex(6)).unwrap();
        if installs {
            databases.install(LogIndex(6), &catalogue(), Vec::new(), &[id]).unwrap();
        }
        assert_eq!(databases.get(id).unwrap().retired(), Some(Refusal::Dropped));
        assert_eq!((databases.damaged(&Help::Voters), databases.convicted(), names(&fs)), (vec![], 0, vec![]));
        generations = databases.generations();
        assert_eq!(generations, [(id, GONE)].into_iter().collect());
        databases.drop(id, LogIndex(20));
        assert!(databases.get(id).is_none() && databases.generations().is_empty());
        databases.stop();
    }
}

#[test]
fn parts_of_a_later_generation_stay_and_what_is_nobodys_goes() {
    let (fs, env) = disk();
    two_generations(&env, 1);
    for name in [
        "3-3.part",
        "3-3.db",
        "3-3.dw",
        "3-1.part",
        "4-2.part",
        "4-1.db",
        "7-2.part",
        "7-1.db",
        "3-1.db-wal",
        "kept.db",
    ] {
        fs.open(&Path::new(DIR).join(name), Open::CreateNew, "test").unwrap();
    }
    let generations: BTreeMap<_, _> = [(DatabaseId(3), 2)].into_iter().collect();
    let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
    databases.restore(&catalogue(), generations, LogIndex(5)).unwrap();
    // Database 4 was dropped before the anchor; of database 7 the catalogue cannot know yet.
    assert_eq!(names(&fs), ["3-2.db", "3-2.map", "3-3.part", "7-1.db", "7-2.part", "kept.db"]);
}

/// A database that one round of a snapshot fetched and that was dropped before the next one kept its files until a start, however
/// large it was.
#[test]
fn what_was_fetched_and_did_not_get_to_count_goes_with_an_install() {
    for (in_use, kept) in [(false, None), (true, Some("3-2.part"))] {
        let (fs, env) = disk();
        let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
        databases.bind(DatabaseId(3), &info()).unwrap();
        for name in
            ["3-2.part", "3-3.db", "3-3.map", "3-4.map", "4-2.db", "4-2.map", "5-2.part", "6-1.part", "7-2.part"]
        {
            fs.open(&Path::new(DIR).join(name), Open::CreateNew, "test").unwrap();
        }
        if in_use {
            // The first of these calls lists what there is, the second opens a file that another one has locked.
            fs.fail_at(Aim::At("stage.begin"), 2, Lasts::Once, Failure::Kind(io::ErrorKind::WouldBlock));
        }
        databases.install(LogIndex(6), &catalogue(), Vec::new(), &[]).unwrap();
        // Entry 7 may create what has its files.
        let wanted: Vec<_> = ["3-1.db", "3-1.map"].into_iter().chain(kept).chain(["7-2.part"]).collect();
        assert_eq!(names(&fs), wanted);
        assert_eq!(databases.get(DatabaseId(3)).unwrap().page(PageNo::FIRST).unwrap().unwrap().len(), 4096);
    }
}

/// Those of a database that was dropped go with the others of it, when an anchor knows that it was; and what comes too late for
/// that, as a copy that was being fetched, goes then.
#[test]
fn leftovers_of_a_dropped_database_wait_for_the_anchor_and_no_longer() {
    let (fs, env) = disk();
    let databases = Databases::open(env, DIR.into(), 1 << 20).unwrap();
    databases.bind(DatabaseId(3), &info()).unwrap();
    let fetch = || _ = fs.open(&Path::new(DIR).join("3-2.part"), Open::CreateNew, "test").unwrap();
    let (of_it, of_another) = (|id: DatabaseId| id == DatabaseId(3), |id: DatabaseId| id == DatabaseId(4));
    fetch();
    databases.drop(DatabaseId(3), LogIndex(20));
    databases.delete_leftovers(of_it);
    assert_eq!(names(&fs), ["3-1.db", "3-1.map", "3-2.part"]);
    databases.delete_dropped(LogIndex(20));
    assert!(names(&fs).is_empty());
    fetch();
    databases.delete_leftovers(of_another);
    assert_eq!(names(&fs), ["3-2.part"]);
    databases.delete_leftovers(of_it);
    assert!(names(&fs).is_empty());
}
