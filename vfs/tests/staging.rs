//! A new generation of a database's files: built in pieces, resumed, made whole or not at all.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use shoaldb_vfs::env::Fs;
use shoaldb_vfs::env::os::OsFs;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs, assert_failed};
use shoaldb_vfs::files::{self, DatabaseFiles};
use shoaldb_vfs::mapfile::{Checkpointed, Owner};
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::staging::{Staging, wrong_page};
use shoaldb_vfs::transaction::Position;

const PAGE: usize = 512;
const DIR: &str = "/db";

fn page(number: u32) -> PageNo {
    PageNo::new(number).unwrap()
}

/// A state of a database: its pages, of which some are the same for every `tint`.
struct State {
    pages: Vec<Vec<u8>>,
    position: u64,
}

impl State {
    fn new(size: u32, tint: u8, position: u64) -> State {
        let pages = (0..size).map(|n| vec![if n % 3 == 0 { n as u8 } else { n as u8 ^ tint }; PAGE]).collect();
        State { pages, position }
    }

    fn hash(&self, number: u32) -> PageHash {
        PageHash::of(page(number), &self.pages[number as usize - 1])
    }

    fn hashes(&self, first: PageNo, count: u32) -> Vec<PageHash> {
        (first.get()..first.get() + count).map(|n| self.hash(n)).collect()
    }

    fn at(&self) -> Checkpointed {
        let size = self.pages.len() as u32;
        let checksum = (1..=size).map(|n| self.hash(n)).fold(PageHash::default(), PageHash::toggle);
        Checkpointed { position: Position(self.position), size: PageCount(size), checksum }
    }

    fn owner() -> Owner {
        Owner { database: 7, generation: 2, page_size: PageSize::new(PAGE as u32).unwrap() }
    }

    fn begin(&self, fs: &SimFs) -> std::io::Result<Staging> {
        let begun = Staging::begin(Arc::new(fs.clone()), Path::new(DIR), State::owner(), self.at())?;
        Ok(begun.sync_every(8 << 10))
    }

    /// Writes what is missing; returns how many pages that were.
    fn fill(&self, staging: &mut Staging) -> std::io::Result<usize> {
        let mut written = 0;
        for number in 1..=self.pages.len() as u32 {
            if !staging.adopt(page(number), self.hash(number))? {
                staging.write(page(number), &self.pages[number as usize - 1])?;
                written += 1;
            }
        }
        Ok(written)
    }

    fn finish(&self, staging: Staging) -> std::io::Result<DatabaseFiles> {
        staging.finish(&mut |first, count| Ok(self.hashes(first, count)))
    }

    /// Nothing of an earlier attempt is there, and the next one succeeds and survives a power cut.
    fn assert_built_anew(&self, fs: &SimFs, seed: u64) {
        let mut staging = self.begin(fs).unwrap();
        // Pages 1 and 6 are zeros in this state, and so is what was never written.
        assert_eq!(self.fill(&mut staging).unwrap(), 68);
        drop(self.finish(staging).unwrap());
        fs.crash(seed);
        fs.restart();
        self.assert_is(fs, &open(fs).unwrap());
    }

    fn assert_is(&self, fs: &SimFs, files: &DatabaseFiles) {
        assert_eq!(files.at(), self.at());
        assert_eq!(files.verify(PageNo::FIRST, u32::MAX).unwrap(), None);
        assert!(fs.peek(&path("db")).unwrap() == self.pages.concat());
    }
}

fn path(end: &str) -> std::path::PathBuf {
    Path::new(DIR).join(format!("7-2.{end}"))
}

fn disk(seed: u64) -> SimFs {
    let fs = SimFs::new(seed);
    fs.create_dir_all(Path::new(DIR), "test").unwrap();
    fs
}

fn names(fs: &SimFs) -> Vec<String> {
    fs.list(Path::new(DIR), "test").unwrap()
}

fn open(fs: &SimFs) -> std::io::Result<DatabaseFiles> {
    DatabaseFiles::open(Arc::new(fs.clone()), Path::new(DIR), State::owner())
}

#[test]
fn a_generation_is_built_and_is_there_after_a_power_cut() {
    let fs = disk(1);
    let state = State::new(100, 5, 30);
    let mut staging = state.begin(&fs).unwrap();
    assert_eq!(staging.at(), state.at());
    // Page 1 of this state is zeros, which is what is there before it is written.
    assert!(!staging.adopt(page(2), state.hash(2)).unwrap());
    staging.write(page(3), &state.pages[2..50].concat()).unwrap();
    assert_eq!(fs.count("stage.write"), 1);
    assert!(staging.adopt(page(50), state.hash(50)).unwrap());
    assert_eq!(state.fill(&mut staging).unwrap(), 1 + 50);
    let files = state.finish(staging).unwrap();
    state.assert_is(&fs, &files);
    assert_eq!(names(&fs), ["7-2.db", "7-2.map"]);
    fs.crash(9);
    fs.restart();
    state.assert_is(&fs, &open(&fs).unwrap());
}

#[test]
fn pages_count_by_their_hash_whatever_they_were_written_for() {
    let fs = disk(1);
    let (old, new) = (State::new(100, 5, 30), State::new(60, 9, 44));
    let mut staging = old.begin(&fs).unwrap();
    old.fill(&mut staging).unwrap();
    drop(staging);
    // A later state, smaller, of which every third page is the same.
    let mut staging = new.begin(&fs).unwrap();
    assert_eq!(new.fill(&mut staging).unwrap(), 40);
    let files = new.finish(staging).unwrap();
    new.assert_is(&fs, &files);
    // It did not get to count, and a later state is to be built from it, a larger one.
    drop(files);
    let last = State::new(90, 9, 50);
    let mut staging = last.begin(&fs).unwrap();
    assert_eq!(names(&fs), ["7-2.part"]);
    assert_eq!(last.fill(&mut staging).unwrap(), 30);
    last.assert_is(&fs, &last.finish(staging).unwrap());
}

#[test]
fn a_wrong_page_is_named_and_only_that_is_to_be_written_again() {
    for wrong in [1, 2, 77, 100] {
        let fs = disk(1);
        let state = State::new(100, 5, 30);
        let mut staging = state.begin(&fs).unwrap();
        state.fill(&mut staging).unwrap();
        staging.write(page(wrong), &[0xee; PAGE]).unwrap();
        let error = state.finish(staging).unwrap_err();
        assert_eq!((error.kind(), wrong_page(&error)), (std::io::ErrorKind::InvalidData, Some(page(wrong))));
        assert_eq!(names(&fs), ["7-2.part"]);
        let mut staging = state.begin(&fs).unwrap();
        assert_eq!(state.fill(&mut staging).unwrap(), 1);
        state.assert_is(&fs, &state.finish(staging).unwrap());
    }
    // Hashes that are those of the pages, and not those of the state.
    let (fs, state, other) = (disk(1), State::new(10, 5, 30), State::new(10, 6, 30));
    let mut staging = Staging::begin(Arc::new(fs.clone()), Path::new(DIR), State::owner(), other.at()).unwrap();
    state.fill(&mut staging).unwrap();
    let error = state.finish(staging).unwrap_err();
    assert_eq!((error.kind(), wrong_page(&error)), (std::io::ErrorKind::InvalidData, None));
    assert_eq!(names(&fs), ["7-2.part"]);
}

#[test]
fn what_is_no_whole_page_of_the_database_is_refused() {
    let (fs, state) = (disk(1), State::new(10, 5, 30));
    let mut staging = state.begin(&fs).unwrap();
    for (first, len) in [(1, PAGE - 1), (1, PAGE + 1), (10, 2 * PAGE), (11, PAGE), (u32::MAX, 2 * PAGE)] {
        assert_eq!(staging.write(page(first), &vec![1; len]).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
    staging.write(page(10), &[1; PAGE]).unwrap();
    assert_eq!(staging.finish(&mut |_, _| Ok(vec![])).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    state.begin(&fs).unwrap().discard().unwrap();
    assert!(names(&fs).is_empty());
}

/// The old generation is not touched, and the next attempt succeeds; without writing anything again after a lack of room.
/// The same where an attempt goes on with half of the pages, which another one left.
/// Shows INV-30.
#[test]
fn a_failure_at_every_call_changes_nothing_else_and_the_next_attempt_succeeds() {
    let state = State::new(70, 5, 30);
    let failed = fail_every_call(&state, 0);
    assert_failed(&failed, &["db.lock"]);
    let failed = fail_every_call(&state, 35);
    assert_failed(&failed, &["db.lock", "stage.adopt", "stage.read"]);
}

/// The labels of the calls that failed. An attempt before left so many of the first pages.
fn fail_every_call(state: &State, left: usize) -> BTreeSet<&'static str> {
    let mut failed = BTreeSet::new();
    let attempt = |fs: &SimFs| {
        let mut staging = state.begin(fs)?;
        let written = state.fill(&mut staging)?;
        state.finish(staging).map(|files| (files, written))
    };
    for failure in [Failure::EIO, Failure::ENOSPC] {
        for nth in 1.. {
            let fs = disk(nth);
            fs.open(&Path::new(DIR).join("7-1.db"), shoaldb_vfs::env::Open::CreateNew, "test").unwrap();
            if left > 0 {
                state.begin(&fs).unwrap().write(PageNo::FIRST, &state.pages[..left].concat()).unwrap();
            }
            let calls = fs.calls();
            fs.fail_at(Aim::Any, nth, Lasts::Once, failure);
            let first = attempt(&fs);
            failed.extend(fs.failed());
            if fs.calls() < calls + nth {
                assert!(first.is_ok());
                break;
            }
            let Err(error) = first else { panic!("call {nth} failed and nobody noticed") };
            assert_eq!(
                error.kind(),
                if failure == Failure::ENOSPC { std::io::ErrorKind::StorageFull } else { error.kind() }
            );
            assert!(names(&fs).contains(&"7-1.db".to_string()));
            let (files, _) = attempt(&fs).unwrap();
            state.assert_is(&fs, &files);
            // What was promised durable is.
            fs.crash(nth + 1000);
            fs.restart();
            state.assert_is(&fs, &open(&fs).unwrap());
        }
    }
    failed
}

/// Pages that an attempt before left and that cannot be read, or written once more, stay there: for the next one, whenever
/// that works.
#[test]
fn what_an_attempt_before_left_and_cannot_be_taken_stays_until_it_can_be() {
    let state = State::new(70, 5, 30);
    for (label, failure) in ["stage.read", "stage.adopt"]
        .into_iter()
        .flat_map(|label| [Failure::EIO, Failure::ENOSPC].map(|failure| (label, failure)))
    {
        for (nth, lasts) in (1..30).flat_map(|nth| [(nth, Lasts::Once), (nth, Lasts::ForGood)]) {
            let what = format!("{label} {nth}, {failure:?}, {lasts:?}");
            let fs = disk(nth);
            state.begin(&fs).unwrap().write(PageNo::FIRST, &state.pages[..35].concat()).unwrap();
            fs.fail_at(Aim::At(label), nth, lasts, failure);
            for _ in 0..if lasts == Lasts::Once { 1 } else { 3 } {
                let mut staging = state.begin(&fs).unwrap();
                let error = state.fill(&mut staging).expect_err(&what);
                let Failure::Errno(errno) = failure else { unreachable!() };
                assert_eq!(error.raw_os_error(), Some(errno), "{what}");
                drop(staging);
                assert_eq!(names(&fs), ["7-2.part"], "{what}");
            }
            assert_failed(&fs.failed(), &[label]);
            fs.clear_faults();
            let mut staging = state.begin(&fs).unwrap();
            assert_eq!(
                state.fill(&mut staging).unwrap(),
                35,
                "{what}: what was not there is written, and nothing else"
            );
            drop(state.finish(staging).unwrap());
            fs.crash(nth);
            fs.restart();
            state.assert_is(&fs, &open(&fs).unwrap());
        }
    }
}

/// A sync that failed has been forgotten by the kernel: the bytes look right to whoever reads them, and are not on disk.
/// Shows INV-30.
#[test]
fn after_a_failed_sync_nothing_that_was_written_counts() {
    for label in ["stage.sync", "stage.map_sync", "stage.sync_dir"] {
        for seed in 0..20 {
            let (fs, state) = (disk(seed), State::new(70, 5, 30));
            let mut staging = state.begin(&fs).unwrap();
            state.fill(&mut staging).unwrap();
            fs.fail_at(Aim::At(label), 1, Lasts::Once, Failure::EIO);
            assert!(state.finish(staging).is_err());
            assert!(names(&fs).is_empty(), "{label}: {:?}", names(&fs));
            state.assert_built_anew(&fs, seed);
        }
    }
}

/// The same among the pages: what was written before and after it is as doubtful. Shows INV-30.
#[test]
fn after_a_failed_sync_among_the_pages_the_part_is_gone() {
    for (seed, nth) in (0..20).zip((1..4).cycle()) {
        let (fs, state) = (disk(seed), State::new(70, 5, 30));
        let mut staging = state.begin(&fs).unwrap();
        fs.fail_at(Aim::At("stage.sync_some"), nth, Lasts::Once, Failure::EIO);
        assert!(state.fill(&mut staging).is_err());
        assert!(names(&fs).is_empty(), "{:?}", names(&fs));
        assert_failed(&fs.failed(), &["stage.sync_some"]);
        assert!(state.finish(staging).is_err(), "nothing can be made of it");
        assert!(open(&fs).is_err());
        state.assert_built_anew(&fs, seed);
    }
}

/// A sync that goes on beside the pages fails when nobody writes any more: whoever begins anew must not find them in the
/// kernel's memory, with the right hashes, and take them for what is on disk. Shows INV-30.
#[test]
fn a_sync_that_fails_behind_the_last_page_counts_also_when_the_attempt_is_given_up() {
    for seed in 0..20 {
        let (fs, state) = (disk(seed), State::new(70, 5, 30));
        let mut staging = state.begin(&fs).unwrap();
        state.fill(&mut staging).unwrap();
        fs.fail_at(Aim::At("stage.sync_some"), 1, Lasts::Once, Failure::EIO);
        drop(staging);
        assert!(names(&fs).is_empty(), "{:?}", names(&fs));
        state.assert_built_anew(&fs, seed);
    }
}

/// What comes behind a sync that failed.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Then {
    Dies,
    IsNotRemoved,
    IsNotEmptiedEither,
}

/// A sync fails, and before the part is removed the process dies, or it cannot be removed, nor emptied: the next attempt finds
/// pages in the kernel's memory that are not on disk. Shows INV-30.
#[test]
fn what_an_attempt_before_left_is_written_once_more_whatever_became_of_its_syncs() {
    let all = [Then::Dies, Then::IsNotRemoved, Then::IsNotEmptiedEither];
    for (seed, then) in (0..40).flat_map(|seed| all.map(|then| (seed, then))) {
        let (fs, state) = (disk(seed), State::new(70, 5, 30));
        let mut staging = state.begin(&fs).unwrap();
        fs.fail_at(Aim::At("stage.sync_some"), 1 + seed % 3, Lasts::Once, Failure::EIO);
        match then {
            Then::Dies => fs.kill_at(Aim::At("stage.remove"), 1),
            Then::IsNotRemoved | Then::IsNotEmptiedEither => {
                fs.fail_at(Aim::At("stage.remove"), 1, Lasts::ForGood, Failure::EIO);
            }
        }
        if then == Then::IsNotEmptiedEither {
            fs.fail_at(Aim::At("stage.empty"), 1, Lasts::Once, Failure::EIO);
        }
        assert!(state.fill(&mut staging).is_err());
        drop(staging);
        if then == Then::IsNotEmptiedEither {
            assert_failed(&fs.failed(), &["stage.sync_some", "stage.remove", "stage.empty"]);
        }
        fs.restart();
        fs.clear_faults();
        assert_eq!(names(&fs), ["7-2.part"]);
        let mut staging = state.begin(&fs).unwrap();
        let adopted = 68 - state.fill(&mut staging).unwrap();
        assert_eq!(adopted > 0, then != Then::IsNotRemoved, "{then:?}: {adopted} pages");
        drop(state.finish(staging).unwrap());
        fs.crash(seed);
        fs.restart();
        state.assert_is(&fs, &open(&fs).unwrap());
    }
}

/// Shows INV-30.
#[test]
fn a_power_cut_at_every_call_leaves_something_to_go_on_with() {
    let state = State::new(70, 5, 30);
    let attempt = |fs: &SimFs| {
        let mut staging = state.begin(fs)?;
        state.fill(&mut staging)?;
        state.finish(staging)
    };
    for nth in 1.. {
        let fs = disk(nth);
        fs.crash_at(Aim::Any, nth, nth);
        let cut = attempt(&fs).is_err();
        fs.restart();
        state.assert_is(&fs, &attempt(&fs).unwrap());
        if !cut {
            break;
        }
    }
}

#[test]
fn two_attempts_at_a_time_are_one_too_many_and_the_lock_page_is_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let page_size = PageSize::new(65536).unwrap();
    let owner = Owner { database: 7, generation: 2, page_size };
    let lock = page_size.lock_page().get();
    let zeros = vec![0; page_size.len()];
    // Sparse: only what lies around the lock page has content, and the rest is zeros.
    let content = |n: u32| if n + 1 >= lock && n != lock { vec![n as u8; page_size.len()] } else { zeros.clone() };
    let hash = |n: u32| if n == lock { PageHash::default() } else { PageHash::of(page(n), &content(n)) };
    let checksum = (1..=lock + 1).map(hash).fold(PageHash::default(), PageHash::toggle);
    let at = Checkpointed { position: Position(3), size: PageCount(lock + 1), checksum };
    let begin = || Staging::begin(Arc::new(OsFs), dir.path(), owner, at);
    let mut staging = begin().unwrap();
    assert_eq!(begin().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    staging.write(page(lock - 1), &[content(lock - 1), vec![1; page_size.len()], content(lock + 1)].concat()).unwrap();
    assert!(staging.adopt(page(lock), PageHash(17)).unwrap());
    let hashes = |first: PageNo, count: u32| Ok((first.get()..first.get() + count).map(hash).collect());
    let error = staging.finish(&mut hashes.clone()).unwrap_err();
    assert_eq!(wrong_page(&error), Some(page(lock)));
    let mut staging = begin().unwrap();
    staging.write(page(lock), &zeros).unwrap();
    let files = staging.finish(&mut hashes.clone()).unwrap();
    assert_eq!((files.at(), files.map().hash(page(lock)).unwrap()), (at, PageHash::default()));
    // In use, and so not to be built again under the feet of its user.
    assert_eq!(begin().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert!(dir.path().join(&files::names(7, 2)[1]).exists());
    drop(files);
    assert_eq!(DatabaseFiles::open(Arc::new(OsFs), dir.path(), owner).unwrap().at(), at);
}
