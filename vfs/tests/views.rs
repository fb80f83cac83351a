//! Read views: one state, lent page by page, whatever writers, checkpoints, disks and owners do meanwhile.

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;
use shoaldb_vfs::database::{Checkpoint, Database};
use shoaldb_vfs::env::Fs;
use shoaldb_vfs::env::os::{OsClock, OsFs, OsRng};
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs, assert_failed};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::files::DatabaseFiles;
use shoaldb_vfs::genesis::{AutoVacuum, Geometry};
use shoaldb_vfs::mapfile::Owner;
use shoaldb_vfs::page::{PageHash, PageNo, PageSize};
use shoaldb_vfs::spill::{SpillTo, WalMemory};
use shoaldb_vfs::transaction::Position;
use shoaldb_vfs::view::{ReadView, ViewError};
use support::{Choices, Stage, Twin, files_up_to_the_lock_page, number, spill};

fn page(number: u32) -> PageNo {
    PageNo::new(number).unwrap()
}

/// The view is the state of the position that it names, byte for byte, and its hashes are those of its pages.
fn assert_view(stage: &Stage, name: &str, view: &ReadView) {
    let twin = Stage::new();
    let copy = twin.replicator.copy_of(&stage.replicator, name);
    for (of, at, transaction) in stage.replicator.captured.lock().iter() {
        if of == name && *at <= view.at().position {
            copy.apply(transaction, *at).unwrap();
        }
    }
    let at = view.at();
    assert_eq!((at.position, at.checksum), copy.checksum());
    assert_eq!(at.size, copy.status().pages);
    let hashes = view.hashes(PageNo::FIRST, at.size.0).unwrap();
    let mut checksum = PageHash::default();
    // All together, then one by one: what the first look compared the second need not.
    let mut together = vec![7];
    view.append_pages(PageNo::FIRST, at.size.0, &mut together).unwrap();
    let mut rest = &together[1..];
    for (number, hash) in (1..=at.size.0).map(page).zip(hashes) {
        let lent = view.page(number).unwrap();
        let (same, behind) = rest.split_at(lent.len());
        assert!(*lent == *same, "page {} at position {}", number.get(), at.position);
        rest = behind;
        assert!(*lent == *copy.page(number).unwrap().unwrap(), "page {} at position {}", number.get(), at.position);
        assert_eq!(hash, PageHash::of(number, &lent));
        assert_eq!(view.hash(number).unwrap(), hash);
        checksum = checksum.toggle(hash);
    }
    assert_eq!((checksum, rest.len()), (at.checksum, 0));
    assert!(matches!(view.page(page(at.size.0 + 1)), Err(ViewError::NoSuchPage(_))));
    for (first, count) in [(1, at.size.0 + 1), (at.size.0, 2), (at.size.0 + 1, 1), (2, u32::MAX)] {
        let beyond = view.append_pages(page(first), count, &mut together);
        assert!(matches!(beyond, Err(ViewError::NoSuchPage(_))), "{count} pages from {first} on: {beyond:?}");
    }
    let before = together.len();
    view.append_pages(page(at.size.0), 0, &mut together).unwrap();
    view.append_pages(page(at.size.0), 1, &mut together).unwrap();
    assert_eq!(together[before..], *view.page(page(at.size.0)).unwrap());
    assert!(matches!(view.hashes(page(1), at.size.0 + 1), Err(ViewError::NoSuchPage(_))));
}

fn done(db: &Database) -> Position {
    match db.checkpoint().unwrap() {
        Checkpoint::Done { to, .. } => to,
        other => panic!("{other:?}"),
    }
}

fn fill(db: &Connection) {
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(x)").unwrap();
    spill(db, 200);
}

fn stage() -> (Stage, Connection) {
    let stage = Stage::new();
    let db = stage.connect("app");
    fill(&db);
    (stage, db)
}

/// Part of the database is in the main file, part of it in the WAL.
fn stage_with_both() -> (Stage, Connection) {
    let (stage, db) = stage();
    done(&stage.database("app"));
    db.execute_batch("UPDATE t SET v = randomblob(300) WHERE id % 7 = 0; INSERT INTO u VALUES (1)").unwrap();
    (stage, db)
}

/// The same, with pages of this size.
fn stage_with_pages_of(page_size: u32) -> (Stage, Connection) {
    let stage = Stage::with_geometry(page_size, AutoVacuum::None);
    let db = stage.connect("app");
    fill(&db);
    done(&stage.database("app"));
    db.execute_batch("UPDATE t SET v = randomblob(2000) WHERE id % 3 = 0").unwrap();
    (stage, db)
}

/// Shows INV-V6.
#[test]
fn a_view_is_one_state_whatever_comes_afterwards() {
    for page_size in [512, 4096, 65536] {
        let (stage, db) = stage_with_pages_of(page_size);
        let shared = stage.database("app");
        let view = shared.read_view().unwrap();
        let at = view.at();
        assert_eq!((at.position, shared.status().views), (shared.position(), 1));
        assert_eq!(view.geometry(), shared.geometry());
        assert_view(&stage, "app", &view);
        // Local transactions, foreign ones, and one that makes the database much smaller.
        db.execute_batch("INSERT INTO t(v) VALUES (randomblob(200000)); INSERT INTO u VALUES (1)").unwrap();
        assert_eq!(shared.checkpoint().unwrap(), Checkpoint::Gated);
        stage.twin("app").write_and_apply(&stage, "UPDATE t SET v = randomblob(900) WHERE id % 2 = 0");
        db.execute_batch("DELETE FROM t WHERE id > 20; VACUUM").unwrap();
        assert!(shared.status().pages < at.size);
        assert_eq!(shared.checkpoint_and_restart(Duration::from_secs(3600), None).unwrap(), Checkpoint::Gated);
        assert_view(&stage, "app", &view);
        // What it lent before the end of the view is there until it is given back, and only then the file is cut.
        let lent: Vec<_> = (1..=at.size.0).map(|n| view.page(page(n)).unwrap()).collect();
        let copies: Vec<Vec<u8>> = lent.iter().map(|lent| lent.to_vec()).collect();
        view.close();
        assert_eq!(shared.checkpoint().unwrap(), Checkpoint::Gated);
        assert!(lent.iter().zip(&copies).all(|(lent, copy)| **lent == **copy));
        drop(lent);
        assert_eq!(shared.status().views, 0);
        assert_eq!(done(&shared), shared.position());
        assert_eq!(stage.main_file("app").len() as u32, shared.status().pages.0 * page_size);
        stage.compare("app");
    }
}

/// It is in memory: neither checkpoints nor the end of the database are its business.
#[test]
fn a_copy_of_a_view_is_the_same_state_and_keeps_no_gate_shut() {
    for page_size in [512, 4096, 65536] {
        let (stage, db) = stage_with_pages_of(page_size);
        let shared = stage.database("app");
        let view = shared.read_view().unwrap();
        let copy = view.copied().unwrap();
        view.close();
        assert_eq!((copy.at().position, copy.geometry()), (shared.position(), shared.geometry()));
        assert_eq!((shared.status().views, copy.wal_bytes()), (0, 0));
        db.execute_batch("DELETE FROM t WHERE id > 20; VACUUM").unwrap();
        assert_eq!(done(&shared), shared.position());
        assert_view(&stage, "app", &copy);
        shared.retire(Refusal::NodeStopped);
        assert_view(&stage, "app", &copy);
        copy.close();
        assert!(matches!(copy.page(page(1)), Err(ViewError::Closed)));
    }
}

/// Shows INV-V6.
#[test]
fn no_new_lap_of_the_wal_begins_under_a_view_neither_ours_nor_sqlites() {
    let (stage, db) = stage_with_both();
    let shared = stage.database("app");
    // A reader keeps the lap from ending, so that all is in the main file and the WAL is still there.
    let reader = stage.connect("app");
    reader.execute_batch("BEGIN").unwrap();
    number(&reader, "SELECT count(*) FROM t");
    done(&shared);
    assert!(shared.status().wal_frames > 0 && shared.status().pending_frames == 0);
    let view = shared.read_view().unwrap();
    assert_eq!(view.wal_bytes(), 0);
    reader.execute_batch("COMMIT").unwrap();
    let restarts = shared.counters.restarts.load(Ordering::Relaxed);
    assert_eq!(shared.checkpoint().unwrap(), Checkpoint::Nothing);
    let frames = shared.status().wal_frames;
    db.execute("INSERT INTO u VALUES (2)", []).unwrap();
    assert!(shared.status().wal_frames > frames);
    assert_eq!(view.wal_bytes(), u64::from(shared.status().pending_frames) * 4096);
    assert!(view.wal_bytes() > 0);
    stage.twin("app").write_and_apply(&stage, "INSERT INTO u VALUES (3)");
    assert_eq!(shared.counters.restarts.load(Ordering::Relaxed), restarts);
    assert_view(&stage, "app", &view);
    drop(view);
    done(&shared);
    assert_eq!(shared.counters.restarts.load(Ordering::Relaxed), restarts + 1);
    stage.compare("app");
}

/// The gate is one database's own, and nothing but checkpoints waits at it.
#[test]
fn other_databases_and_everything_else_go_on() {
    let (stage, db) = stage_with_both();
    let other = stage.connect("other");
    other.execute_batch("CREATE TABLE t(x)").unwrap();
    let shared = stage.database("app");
    let _view = shared.read_view().unwrap();
    done(&stage.database("other"));
    // An idle write transaction is fenced as ever.
    db.execute_batch("BEGIN IMMEDIATE; INSERT INTO u VALUES (9)").unwrap();
    stage.twin("app").write_and_apply(&stage, "INSERT INTO u VALUES (4)");
    assert_eq!(shared.counters.fences.load(Ordering::Relaxed), 1);
    db.execute_batch("ROLLBACK").unwrap();
    assert_eq!(number(&db, "SELECT count(*) FROM u"), 2);
    // A checkpointer that would hold writers off for an hour does not even begin.
    std::thread::scope(|scope| {
        scope.spawn(|| shared.checkpoint_and_restart(Duration::from_secs(3600), None).unwrap());
    });
    db.execute("INSERT INTO u VALUES (5)", []).unwrap();
    stage.compare("app");
}

#[test]
fn an_open_write_transaction_is_not_seen_nor_is_one_that_is_not_published_yet() {
    let (stage, db) = stage_with_both();
    let shared = stage.database("app");
    let before = shared.position();
    db.execute_batch("PRAGMA synchronous = FULL; BEGIN").unwrap();
    spill(&db, 100);
    let open = shared.read_view().unwrap();
    assert_eq!(open.at().position, before);
    let proposed: Arc<Mutex<Option<ReadView>>> = Arc::default();
    let (slot, replicator) = (proposed.clone(), stage.replicator.clone());
    stage.answer_next(move |db, session, transaction| {
        let position = replicator.acknowledge(db, session, transaction);
        // Accepted, and SQLite has not shown it.
        *slot.lock() = Some(db.read_view().unwrap());
        Ok(position)
    });
    // The wal-index has the header of the new transaction when WRITE is given back; a sync comes between.
    let synced: Arc<Mutex<Option<ReadView>>> = Arc::default();
    let (slot, weak) = (synced.clone(), Arc::downgrade(&shared));
    shared.set_fault(Some(Arc::new(move |label| {
        if label == "wal.sync" {
            *slot.lock() = weak.upgrade().map(|db| db.read_view().unwrap());
        }
        false
    })));
    db.execute_batch("COMMIT").unwrap();
    shared.set_fault(None);
    let proposed = proposed.lock().take().unwrap();
    assert_eq!(proposed.at().position, before);
    assert!(shared.position() > before);
    let after = shared.read_view().unwrap();
    for view in [Some(open), Some(proposed), synced.lock().take(), Some(after)].into_iter().flatten() {
        assert_view(&stage, "app", &view);
    }
}

/// Shows INV-V6.
#[test]
fn a_view_ends_for_every_reason_and_what_it_lent_outlives_them_all() {
    type End = fn(&Stage, &Arc<Database>, &ReadView);
    let ends: [(&str, End, bool); 5] = [
        ("close", |_, _, view| view.close(), false),
        ("close twice", |_, _, view| (0..2).for_each(|_| view.close()), false),
        // A page is still lent, so the gate stays shut, and there is nothing more to close.
        ("closed by the database", |_, db, _| assert_eq!((db.close_views(), db.close_views()), (1, 0)), false),
        ("retire", |_, db, _| db.retire(Refusal::Dropped), true),
        (
            "close_files",
            |_, db, _| {
                db.retire(Refusal::NodeStopped);
                db.close_files();
            },
            true,
        ),
    ];
    for (what, end, retired) in ends {
        let (stage, _db) = stage_with_both();
        let shared = stage.database("app");
        let view = shared.read_view().unwrap();
        let clone = view.clone();
        let last = page(view.at().size.0);
        let (lent, expected) = (view.page(last).unwrap(), shared.page(last).unwrap().unwrap());
        drop(view);
        assert!(clone.is_open(), "{what}");
        end(&stage, &shared, &clone);
        assert!(!clone.is_open(), "{what}");
        assert!(matches!(clone.page(last), Err(ViewError::Closed)), "{what}");
        assert!(matches!(clone.hash(last), Err(ViewError::Closed)), "{what}");
        assert!(matches!(clone.hashes(last, 1), Err(ViewError::Closed)), "{what}");
        assert_eq!(shared.status().views, 1, "{what}: a page is lent");
        assert!(*lent == *expected, "{what}");
        if retired {
            assert!(matches!(shared.read_view(), Err(ViewError::Retired(_))), "{what}");
        } else {
            assert_eq!(shared.checkpoint().unwrap(), Checkpoint::Gated, "{what}");
        }
        drop(lent);
        assert_eq!(shared.status().views, 0, "{what}");
        if !retired {
            done(&shared);
        }
    }
    // The last clone.
    let (stage, _db) = stage_with_both();
    let shared = stage.database("app");
    let (one, two) = (shared.read_view().unwrap(), shared.read_view().unwrap());
    assert_eq!(shared.status().views, 2);
    drop((one.clone(), one, two));
    assert_eq!(shared.status().views, 0);
    done(&shared);
}

#[test]
fn a_lent_page_outlives_its_database_and_keeps_its_file_from_the_next_owner() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Geometry::default();
    let owner = Owner { database: 5, generation: 1, page_size: geometry.page_size };
    let db = Database::new("app", geometry, Arc::new(OsClock), &OsRng, SpillTo::nowhere()).unwrap();
    assert!(matches!(db.read_view(), Err(ViewError::NotBound)));
    db.bind(DatabaseFiles::create(Arc::new(OsFs), dir.path(), owner, geometry, Position(5)).unwrap()).unwrap();
    let view = db.read_view().unwrap();
    let (lent, expected) = (view.page(PageNo::FIRST).unwrap(), db.page(PageNo::FIRST).unwrap().unwrap());
    drop(db);
    assert!(!view.is_open());
    assert_eq!((view.at().position, view.wal_bytes()), (Position(5), 0));
    assert!(*lent == *expected);
    let open = || DatabaseFiles::open(Arc::new(OsFs), dir.path(), owner);
    // Whoever opens the file may cut it.
    assert_eq!(open().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    std::fs::remove_file(dir.path().join("5-1.map")).unwrap();
    assert!(*lent == *expected);
    drop(lent);
    assert_eq!(open().unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

/// Targets of descriptors of this process that are in `dir`.
fn open_files(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.canonicalize().unwrap();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    links.filter_map(|link| std::fs::read_link(link).ok()).filter(|target| target.starts_with(&dir)).collect()
}

/// A log entry drops the database under a view. It closed the view, and with that the transfer of all the other databases that it
/// was lent for began anew: in a cluster that drops databases all the time no new node ever came in.
///
/// Shows INV-V6.
#[test]
fn a_view_goes_on_when_its_database_is_dropped_and_what_it_holds_goes_with_it() {
    for page_size in [512, 4096, 65536] {
        let (source, _connection) = stage_with_pages_of(page_size);
        let (dir, memory) = (tempfile::tempdir().unwrap(), WalMemory::new(u64::from(page_size)));
        let made = |id: u64, at: Position| {
            let outside: Arc<dyn Fs> = Arc::new(OsFs);
            let spill = SpillTo { memory: memory.clone(), outside: Some((outside, dir.path().to_path_buf())) };
            let geometry = source.database("app").geometry();
            let owner = Owner { database: id, generation: 1, page_size: geometry.page_size };
            let db = Database::new("app", geometry, Arc::new(OsClock), &OsRng, spill).unwrap();
            db.bind(DatabaseFiles::create(Arc::new(OsFs), dir.path(), owner, geometry, at).unwrap()).unwrap();
            db
        };
        let names = || {
            let mut names: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let db = made(3, Position(1));
        let captured = source.replicator.captured.lock().clone();
        for (at, (_, position, transaction)) in captured.iter().enumerate() {
            let mut own = transaction.clone();
            own.pages.iter_mut().for_each(|page| page.image = page.image.to_vec().into());
            db.apply(&own, *position).unwrap();
            // The last one is in the WAL, in memory and outside.
            if at + 2 == captured.len() {
                done(&db);
            }
        }
        let view = db.read_view().unwrap();
        let status = db.status();
        assert!(view.wal_bytes() > 0 && memory.used() > 0 && status.wal_spilled > 0, "{memory:?} {status:?}");
        let before = names();

        let left = db.retire_as_dropped();
        db.close_files();
        assert!(view.is_open() && left.are_held());
        assert_eq!((names(), view.wal_bytes()), (before, 0), "nothing waits for the view");
        assert!(matches!(db.read_view(), Err(ViewError::Retired(Refusal::Dropped))));
        assert_eq!(db.checkpoint().unwrap(), Checkpoint::Nothing);
        for name in names() {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        assert_view(&source, "app", &view);
        drop(db);
        let copy = view.copied().unwrap();
        // Another database of that name.
        let other = made(9, Position(900));
        let its_names = ["9-1.db", "9-1.map"];
        assert_eq!((names(), other.status().pages.0), (its_names.map(Into::into).to_vec(), 1));
        other.read_view().unwrap().page(PageNo::FIRST).unwrap();
        for view in [&view, &copy, &view.clone()] {
            assert_view(&source, "app", view);
        }
        assert_eq!((names(), view.wal_bytes()), (its_names.map(Into::into).to_vec(), 0));
        drop(other);

        let last = page(view.at().size.0);
        let (lent, hash) = (view.page(last).unwrap(), view.hash(last).unwrap());
        view.close();
        assert!(left.are_held() && matches!(view.page(last), Err(ViewError::Closed)));
        assert_eq!(PageHash::of(last, &lent), hash);
        drop((view, lent));
        assert!(!left.are_held());
        assert_eq!((memory.used(), open_files(dir.path())), (0, vec![]));
    }
}

/// As when the node stops.
#[test]
fn whoever_dropped_a_database_can_close_its_views() {
    let (stage, db) = stage_with_both();
    let shared = stage.database("app");
    let (one, two) = (shared.read_view().unwrap(), shared.read_view().unwrap());
    let last = page(one.at().size.0);
    let lent = one.page(last).unwrap();
    let left = shared.retire_as_dropped();
    // It is not the database's business any more.
    assert_eq!(shared.close_views(), 0);
    shared.retire(Refusal::NodeStopped);
    drop(two);
    assert!(one.is_open() && left.are_held());
    left.close();
    left.close();
    assert!(!one.is_open() && shared.status().views == 1);
    drop(lent);
    assert_eq!(shared.status().views, 0);
    drop(db);
}

/// Nobody mends it: whoever fetches is to be lent another view.
#[test]
fn a_rotten_page_ends_a_view_whose_files_are_in_use_no_more() {
    let looks: [fn(&ReadView, PageNo) -> ViewError; 3] = [
        |view, page| view.page(page).unwrap_err(),
        |view, page| view.append_pages(page, 1, &mut Vec::new()).unwrap_err(),
        |view, _| view.copied().unwrap_err(),
    ];
    for (is_dropped, look) in [false, true].into_iter().flat_map(|dropped| looks.map(|look| (dropped, look))) {
        let (stage, db) = stage();
        let shared = stage.database("app");
        let size = shared.status().pages.0;
        done(&shared);
        let view = shared.read_view().unwrap();
        let file = std::fs::File::options().write(true).open(stage.main_path("app")).unwrap();
        file.write_all_at(&[0xa5; 7], u64::from(size - 1) * 4096 + 1000).unwrap();
        if is_dropped {
            let _ = shared.retire_as_dropped();
        }
        assert!(matches!(look(&view, page(size)), ViewError::Rotten(rotten) if rotten == page(size)));
        assert_eq!((view.is_open(), shared.status().rotten.is_empty()), (!is_dropped, is_dropped));
        drop(db);
    }
}

/// Shows INV-28.
#[test]
fn a_page_that_rots_under_a_view_is_an_error_and_never_lent() {
    let (stage, db) = stage_with_both();
    let shared = stage.database("app");
    let view = shared.read_view().unwrap();
    let size = view.at().size.0;
    let in_wal = |n: u32| view.page(page(n)).unwrap()[..] != stage.main_file("app")[(n as usize - 1) * 4096..][..4096];
    let (victim, other) = ((2..size).find(|n| !in_wal(*n)).unwrap(), (2..size).find(|n| in_wal(*n)).unwrap());
    // The first view has looked at it; a new one has not.
    let view = shared.read_view().unwrap();
    let file = std::fs::File::options().write(true).open(stage.main_path("app")).unwrap();
    for n in [victim, other] {
        file.write_all_at(&[0xa5; 7], u64::from(n - 1) * 4096 + 1000).unwrap();
    }
    let mut together = Vec::new();
    for _ in 0..2 {
        let all = view.append_pages(page(2), size - 1, &mut together);
        assert!(matches!(all, Err(ViewError::Rotten(rotten)) if rotten == page(victim)), "{all:?}");
        assert_eq!(shared.status().rotten, [page(victim)]);
        assert!(matches!(view.page(page(victim)), Err(ViewError::Rotten(rotten)) if rotten == page(victim)));
    }
    assert_eq!(shared.status().rotten, [page(victim)]);
    assert!(matches!(view.copied(), Err(ViewError::Rotten(rotten)) if rotten == page(victim)));
    // What is under a frame of the WAL is nobody's content any more.
    view.page(page(other)).unwrap();
    view.hash(page(victim)).unwrap();
    // A file that is shorter than it was is an error, too.
    let last = (2..=size).rev().find(|n| !in_wal(*n)).unwrap();
    file.set_len(u64::from(last - 1) * 4096 + 1).unwrap();
    assert!(matches!(shared.read_view().unwrap().page(page(last)), Err(ViewError::Io(_))));
    drop(db);
}

#[test]
fn the_wal_of_a_view_may_be_outside_of_memory() {
    let stage = Stage::new();
    let dir = tempfile::tempdir().unwrap();
    let outside: Arc<dyn Fs> = Arc::new(OsFs);
    *stage.replicator.spill.lock() =
        SpillTo { memory: WalMemory::new(10 * 4096), outside: Some((outside, dir.path().to_path_buf())) };
    let db = stage.connect("app");
    fill(&db);
    let shared = stage.database("app");
    assert!(shared.status().wal_spilled > 0);
    let view = shared.read_view().unwrap();
    db.execute_batch("UPDATE t SET v = randomblob(300); DELETE FROM t WHERE id > 30; VACUUM").unwrap();
    assert_view(&stage, "app", &view);
    let lent = view.page(page(view.at().size.0)).unwrap();
    view.close();
    drop(view);
    assert!(lent.len() == 4096 && shared.status().views == 1);
    drop(lent);
    done(&shared);
    stage.replicator.captured.lock().clear();
    assert_eq!(shared.status().wal_spilled, 0, "nobody holds a page of the last lap");
}

/// The nameless file in `dir` where a database keeps pages of its WAL, by way of a descriptor of this process.
fn scratch_file(dir: &Path) -> std::fs::File {
    let dir = dir.canonicalize().unwrap();
    let is_in_dir = |link: &PathBuf| std::fs::read_link(link).is_ok_and(|target| target.starts_with(&dir));
    let mut links = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    std::fs::File::options().write(true).open(links.find(is_in_dir).unwrap()).unwrap()
}

/// As one of the main file is. It was not noted: the view kept the gate shut, so that no checkpoint came by and found it, and
/// whoever fetched was told of a rotten page by a node that was well in its own eyes.
/// Shows INV-28.
#[test]
fn a_page_of_the_wal_that_rots_outside_of_memory_is_noted_by_the_view_that_finds_it() {
    let stage = Stage::new();
    let dir = tempfile::tempdir().unwrap();
    let outside: Arc<dyn Fs> = Arc::new(OsFs);
    *stage.replicator.spill.lock() =
        SpillTo { memory: WalMemory::new(0), outside: Some((outside, dir.path().to_path_buf())) };
    let db = stage.connect("app");
    fill(&db);
    let shared = stage.database("app");
    let looks: [fn(&ReadView) -> ViewError; 3] = [
        |view| view.page(page(2)).unwrap_err(),
        |view| view.append_pages(page(2), 3, &mut Vec::new()).unwrap_err(),
        |view| view.copied().unwrap_err(),
    ];
    let rotten = scratch_file(dir.path());
    (0..rotten.metadata().unwrap().len() / 4096).for_each(|n| rotten.write_all_at(&[0xa5; 7], n * 4096 + 99).unwrap());
    let mut noted = Vec::new();
    for look in looks {
        let view = shared.read_view().unwrap();
        let error = look(&view);
        let ViewError::Rotten(found) = error else { panic!("{error}") };
        noted.push(found);
        noted.sort_unstable();
        noted.dedup();
        assert_eq!(shared.status().rotten, noted);
    }
    drop(db);
}

#[test]
fn a_recovery_of_the_wal_index_changes_nothing_for_views() {
    let (stage, db) = stage_with_both();
    let shared = stage.database("app");
    let reader = stage.connect("app");
    reader.execute_batch("BEGIN").unwrap();
    number(&reader, "SELECT count(*) FROM t");
    done(&shared);
    db.execute("INSERT INTO u VALUES (2)", []).unwrap();
    reader.execute_batch("COMMIT").unwrap();
    let before = shared.read_view().unwrap();
    shared.damage_index();
    let during = shared.read_view().unwrap();
    stage.check_integrity("app");
    let after = shared.read_view().unwrap();
    for view in [before, during, after] {
        assert_view(&stage, "app", &view);
    }
    done(&shared);
    stage.compare("app");
}

/// A database on a simulated disk, driven by transactions that another one captured.
struct OnSim {
    fs: SimFs,
    db: Arc<Database>,
    source: Stage,
    applied: usize,
}

impl OnSim {
    fn new() -> (OnSim, Connection) {
        let fs = SimFs::new(7);
        let dir = Path::new("/db");
        fs.create_dir_all(dir, "test").unwrap();
        let source = Stage::new();
        let connection = source.connect("app");
        let first = source.database("app").position();
        let geometry = Geometry::default();
        let owner = Owner { database: 3, generation: 1, page_size: geometry.page_size };
        let db = Database::new("app", geometry, Arc::new(OsClock), &OsRng, SpillTo::nowhere()).unwrap();
        db.bind(DatabaseFiles::create(Arc::new(fs.clone()), dir, owner, geometry, first).unwrap()).unwrap();
        (OnSim { fs, db, source, applied: 0 }, connection)
    }

    fn catch_up(&mut self) {
        let captured = self.source.replicator.captured.lock();
        for (_, position, transaction) in captured.iter().skip(self.applied) {
            self.db.apply(transaction, *position).unwrap();
        }
        self.applied = captured.len();
    }
}

/// It moves what the view has from the WAL, and cuts off what the view does not have.
/// Shows INV-V6.
#[test]
fn a_view_may_be_opened_in_the_middle_of_a_checkpoint() {
    for (label, last_shrinks) in
        [("ckpt.page", false), ("ckpt.page", true), ("ckpt.sync", true), ("ckpt.record", true), ("ckpt.record", false)]
    {
        let (mut sim, source) = OnSim::new();
        fill(&source);
        sim.catch_up();
        done(&sim.db);
        source
            .execute_batch("UPDATE t SET v = randomblob(900) WHERE id % 3 = 0; DELETE FROM t WHERE id > 100")
            .unwrap();
        if last_shrinks {
            source.execute_batch("VACUUM").unwrap();
        }
        sim.catch_up();
        let opened: Arc<Mutex<Vec<ReadView>>> = Arc::default();
        let (slot, weak, once) = (opened.clone(), Arc::downgrade(&sim.db), AtomicBool::new(false));
        sim.fs.on_call(label, move || {
            if !once.swap(true, Ordering::Relaxed) {
                slot.lock().push(weak.upgrade().unwrap().read_view().unwrap());
            }
        });
        done(&sim.db);
        let view = opened.lock().pop().unwrap();
        assert_view(&sim.source, "app", &view);
        // The next state grows again over what was cut off.
        source.execute_batch("INSERT INTO t(v) VALUES (randomblob(300000))").unwrap();
        sim.catch_up();
        assert_eq!(sim.db.checkpoint().unwrap(), Checkpoint::Gated);
        assert_view(&sim.source, "app", &view);
        assert_view(&sim.source, "app", &sim.db.read_view().unwrap());
        drop(view);
        done(&sim.db);
        assert_view(&sim.source, "app", &sim.db.read_view().unwrap());
    }
}

#[test]
fn a_view_over_a_main_file_that_a_failed_checkpoint_left_is_whole() {
    for (failure, label) in [(Failure::EIO, "ckpt.page"), (Failure::ENOSPC, "ckpt.hash"), (Failure::EIO, "ckpt.sync")] {
        let (mut sim, source) = OnSim::new();
        fill(&source);
        sim.catch_up();
        done(&sim.db);
        source.execute_batch("UPDATE t SET v = randomblob(900) WHERE id % 3 = 0; DELETE FROM u; VACUUM").unwrap();
        sim.catch_up();
        sim.fs.fail_at(Aim::At(label), 1, Lasts::Once, failure);
        assert!(sim.db.checkpoint().is_err());
        assert_view(&sim.source, "app", &sim.db.read_view().unwrap());
    }
}

/// One call to the file system, however large the database is; and if that fails, nothing is gated.
#[test]
fn opening_a_view_maps_the_file_and_reads_nothing() {
    for rows in [10, 1000] {
        let (mut sim, source) = OnSim::new();
        source.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
        spill(&source, rows);
        sim.catch_up();
        done(&sim.db);
        let calls = sim.fs.calls();
        let view = sim.db.read_view().unwrap();
        assert_eq!(sim.fs.calls(), calls + 1);
        view.page(PageNo::FIRST).unwrap();
        view.page(PageNo::FIRST).unwrap();
        assert_eq!((sim.fs.count("view.map"), sim.fs.count("view.page")), (1, 2));
        sim.fs.fail_at(Aim::At("view.page"), 1, Lasts::Once, Failure::EIO);
        assert!(matches!(view.page(PageNo::FIRST), Err(ViewError::Io(_))));
        assert_failed(&sim.fs.failed(), &["view.page"]);
        view.page(PageNo::FIRST).unwrap();
        drop(view);
        sim.fs.fail_at(Aim::At("view.map"), 1, Lasts::Once, Failure::EIO);
        assert!(matches!(sim.db.read_view(), Err(ViewError::Io(_))));
        assert_eq!(sim.db.status().views, 0);
    }
}

/// A database that ends just before the lock page, made by hand and sparse; SQLite then grows over it.
#[test]
fn the_lock_page_of_a_view_is_zeros_and_has_no_hash() {
    let page_size = PageSize::new(65536).unwrap();
    let lock = page_size.lock_page();
    let stage = Stage::with_geometry(65536, AutoVacuum::None);
    let dir = tempfile::tempdir().unwrap();
    let shared = stage.database("app");
    shared.bind(files_up_to_the_lock_page(dir.path(), page_size)).unwrap();
    stage.replicator.next_position();
    stage.replicator.next_position();
    let db = stage.connect("app");
    db.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES (randomblob(1000000))").unwrap();
    // Once from the WAL, once from the main file.
    for _ in 0..2 {
        let view = shared.read_view().unwrap();
        assert!(view.at().size.0 > lock.get() + 2);
        let mut checksum = PageHash::default();
        let all = view.hashes(PageNo::FIRST, view.at().size.0).unwrap();
        for (n, hash) in (1..).map(page).zip(all) {
            checksum = checksum.toggle(hash);
            // The rest is holes.
            if n.get() > lock.get() - 4 {
                let lent = view.page(n).unwrap();
                assert_eq!(hash, if n == lock { PageHash::default() } else { PageHash::of(n, &lent) });
                assert_eq!(view.hash(n).unwrap(), hash);
                assert!(n != lock || lent.iter().all(|byte| *byte == 0));
            }
        }
        assert_eq!(checksum, view.at().checksum);
        let (mut around, len) = (Vec::new(), page_size.len());
        view.append_pages(page(lock.get() - 1), 3, &mut around).unwrap();
        for (n, content) in (lock.get() - 1..).map(page).zip(around.chunks(len)) {
            assert!(*view.page(n).unwrap() == *content, "page {}", n.get());
        }
        drop(view);
        if shared.status().pending_frames > 0 {
            done(&shared);
        }
    }
}

/// Eight threads lend from views that come and go, while a writer, the applier and a checkpointer do what they can.
/// Shows INV-V6.
#[test]
fn eight_threads_lend_while_everything_goes_on() {
    let (stage, db) = stage_with_both();
    let shared = stage.database("app");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let current: &Mutex<ReadView> = &*Box::leak(Box::new(Mutex::new(shared.read_view().unwrap())));
        let mut lenders = Vec::new();
        for seed in 0..8 {
            let over = &over;
            lenders.push(scope.spawn(move || {
                let mut dice = Choices(seed);
                let mut whole = 0;
                while whole < 3 || !over.load(Ordering::Relaxed) {
                    let view = current.lock().clone();
                    let at = view.at();
                    let mut held = Vec::new();
                    let mut checksum = PageHash::default();
                    let read = (1..=at.size.0).map(page).try_for_each(|n| {
                        let lent = view.page(n)?;
                        checksum = checksum.toggle(PageHash::of(n, &lent));
                        if dice.below(4) == 0 {
                            held.push((n, lent));
                        }
                        Ok::<_, ViewError>(())
                    });
                    for (n, lent) in held {
                        assert!(view.hash(n).is_ok_and(|hash| hash == PageHash::of(n, &lent)) || !view.is_open());
                    }
                    match read {
                        Ok(()) => {
                            assert_eq!(checksum, at.checksum);
                            whole += 1;
                        }
                        Err(error) => assert!(matches!(error, ViewError::Closed), "{error}"),
                    }
                }
            }));
        }
        let checkpointer = scope.spawn(|| {
            let mut made = 0;
            while !over.load(Ordering::Relaxed) {
                made += u32::from(matches!(shared.checkpoint().unwrap(), Checkpoint::Done { .. }));
            }
            made
        });
        let mut twin: Twin = stage.twin("app");
        let mut dice = Choices(99);
        for round in 0..150 {
            match dice.below(6) {
                0 => twin.write_and_apply(&stage, "UPDATE t SET v = randomblob(700) WHERE id % 5 = 0"),
                1 if round % 10 == 0 => db.execute_batch("DELETE FROM t WHERE id % 3 = 0; VACUUM").unwrap(),
                2 => {
                    // The old view ends under those who read from it; in between, the gate may be open.
                    current.lock().close();
                    let _ = shared.checkpoint().unwrap();
                    *current.lock() = shared.read_view().unwrap();
                }
                _ => db.execute_batch("INSERT INTO t(v) VALUES (randomblob(3000)); INSERT INTO u VALUES (1)").unwrap(),
            }
        }
        over.store(true, Ordering::Relaxed);
        lenders.into_iter().for_each(|lender| lender.join().unwrap());
        checkpointer.join().unwrap();
        current.lock().close();
    });
    assert_eq!(shared.status().views, 0);
    done(&shared);
    stage.compare("app");
}
