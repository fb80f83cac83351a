//! A small database of numbered states: state n has some pages, each filled with bytes that only n decides.

use super::*;
use crate::doublewrite::Listed;
use crate::env::sim::{Aim, Failure, Lasts, SimFs};
use crate::mapfile::Owner;

const SIZE: PageSize = PageSize::new(512).unwrap();
const OWNER: Owner = Owner { database: 9, generation: 1, page_size: SIZE };
const GEOMETRY: Geometry = Geometry { page_size: SIZE, auto_vacuum: crate::genesis::AutoVacuum::None };

fn dir() -> &'static Path {
    Path::new("/db")
}

fn page(number: u32) -> PageNo {
    PageNo::new(number).unwrap()
}

/// Content of a page in state `n`; state 0 is the genesis page.
fn content(n: u64, number: PageNo) -> Vec<u8> {
    if n == 0 { GEOMETRY.first_page() } else { vec![(n * 31 + u64::from(number.get())) as u8; 512] }
}

/// In state n page p was last written in this state. The sizes go up and down, so that there are truncations.
fn written_in(n: u64, number: PageNo) -> u64 {
    (0..=n).rev().find(|n| changed(*n).contains(&number)).unwrap_or(0)
}

fn size(n: u64) -> u32 {
    [1, 6, 9, 4, 12, 12, 5][n as usize % 7]
}

/// Everything that state n writes: all new pages, and some old ones.
fn changed(n: u64) -> Vec<PageNo> {
    let before = if n == 0 { 0 } else { size(n - 1) };
    (1..=size(n)).filter(|p| *p > before || (u64::from(*p) + n).is_multiple_of(3)).map(page).collect()
}

fn at(n: u64) -> Checkpointed {
    let pages = (1..=size(n)).map(page);
    let hash = |p: PageNo| PageHash::of(p, &content(written_in(n, p), p));
    let checksum = pages.map(hash).fold(PageHash::default(), PageHash::toggle);
    Checkpointed { position: Position(n), size: PageCount(size(n)), checksum }
}

fn plan(n: u64) -> Plan {
    let pages: Vec<Listed> = changed(n).into_iter().map(|p| (p, PageHash::of(p, &content(n, p)))).collect();
    Plan { from: Position(n - 1), to: at(n), pages }
}

fn checkpoint(files: &mut DatabaseFiles, n: u64) -> Result<(), WriteError> {
    files.checkpoint(&plan(n), &mut |page, out| {
        out.extend(content(n, page));
        Ok(())
    })
}

fn fresh(seed: u64) -> (SimFs, DatabaseFiles) {
    let fs = SimFs::new(seed);
    fs.create_dir_all(dir(), "t").unwrap();
    let files = DatabaseFiles::create(Arc::new(fs.clone()), dir(), OWNER, GEOMETRY, Position(0)).unwrap();
    (fs, files)
}

fn open(fs: &SimFs) -> io::Result<DatabaseFiles> {
    DatabaseFiles::open(Arc::new(fs.clone()), dir(), OWNER)
}

/// The files are state n: its record, its length, its pages, its hashes.
fn assert_is(fs: &SimFs, files: &DatabaseFiles, n: u64) {
    assert_eq!(files.at(), at(n));
    let main = fs.peek(&dir().join("9-1.db")).unwrap();
    assert!(main.len() as u64 >= files.bytes());
    for p in (1..=size(n)).map(page) {
        let offset = p.offset(SIZE) as usize;
        let expected = content(written_in(n, p), p);
        assert!(main[offset..offset + 512] == expected, "page {} of state {n}", p.get());
        assert_eq!(files.map().hash(p).unwrap(), PageHash::of(p, &expected));
    }
    assert_eq!(files.verify(PageNo::FIRST, size(n)).unwrap(), None);
}

#[test]
fn each_checkpoint_leaves_the_next_state() {
    let (fs, mut files) = fresh(1);
    for n in 1..=14 {
        checkpoint(&mut files, n).unwrap();
        assert_is(&fs, &files, n);
        assert_eq!(fs.peek(&dir().join("9-1.db")).unwrap().len() as u64, files.bytes());
        drop(files);
        files = open(&fs).unwrap();
        assert!(!files.redone());
        assert_is(&fs, &files, n);
    }
}

/// Power cuts within each call of checkpoints in turn: afterwards it is the state before or the state after, whole, and the
/// next checkpoint goes on from there.
/// Shows INV-26.
#[test]
fn a_crash_at_every_call_leaves_the_state_before_or_the_state_after() {
    let (mut before, mut after, mut redone) = (0, 0, 0);
    for n in [1, 3, 4, 7] {
        for seed in 0..6 {
            for call in 1.. {
                let (fs, mut files) = fresh(seed);
                for earlier in 1..n {
                    checkpoint(&mut files, earlier).unwrap();
                }
                fs.crash_at(Aim::Any, call, seed * 1000 + call);
                let struck = checkpoint(&mut files, n).is_err();
                if !fs.is_down() {
                    assert!(!struck && call > 5, "the walk ends with a checkpoint that nothing struck");
                    break;
                }
                drop(files);
                fs.restart();
                let mut files = open(&fs).unwrap();
                let found = files.at().position.0;
                assert!(found == n || found == n - 1, "state {found} after a crash in checkpoint {n}, call {call}");
                assert!(struck || found == n, "it was said to be done");
                assert_is(&fs, &files, found);
                *(if found == n { &mut after } else { &mut before }) += 1;
                redone += u32::from(files.redone());
                for later in found + 1..n + 3 {
                    checkpoint(&mut files, later).unwrap();
                }
                assert_is(&fs, &files, n + 2);
            }
        }
    }
    assert!(before > 20 && after > 20 && redone > 20, "{before} before, {after} after, {redone} redone");
}

/// A crash while a crash is being mended.
/// Shows INV-26.
#[test]
fn a_crash_at_every_call_of_opening_loses_nothing() {
    let mut redone = 0;
    for seed in 0..40 {
        for call in 1.. {
            let (fs, mut files) = fresh(seed);
            checkpoint(&mut files, 1).unwrap();
            fs.crash_at(Aim::At("ckpt.record"), 1, seed);
            assert!(checkpoint(&mut files, 2).is_err());
            fs.restart();
            fs.crash_at(Aim::Any, call, seed + call);
            let first = open(&fs);
            if !fs.is_down() {
                drop(first.unwrap());
                break;
            }
            fs.restart();
            let files = open(&fs).unwrap();
            assert_is(&fs, &files, 2);
            redone += u32::from(files.redone());
        }
    }
    assert!(redone > 40, "{redone}");
}

/// Shows INV-26.
#[test]
fn a_failure_at_every_call_leaves_the_state_before_or_the_state_after() {
    // A disk that is full, a quota that is used up, a file that may not be as long.
    let no_room = [Failure::ENOSPC, Failure::Errno(122), Failure::Errno(27)];
    let failing = [(Failure::EIO, Lasts::Once), (Failure::EIO, Lasts::ForGood)];
    for (failure, lasts) in failing.into_iter().chain(no_room.map(|failure| (failure, Lasts::Once))) {
        let (mut nothing, mut interrupted, mut failed) = (0, 0, 0);
        for call in 1.. {
            let (fs, mut files) = fresh(call);
            checkpoint(&mut files, 1).unwrap();
            fs.fail_at(Aim::Any, call, lasts, failure);
            let calls = fs.calls();
            let result = checkpoint(&mut files, 2);
            let struck = fs.calls() - calls >= call;
            fs.clear_faults();
            match &result {
                Ok(()) if !struck => break,
                Ok(()) => {}
                Err(WriteError::Nothing(_)) => {
                    nothing += 1;
                    assert_is(&fs, &files, 1);
                    checkpoint(&mut files, 2).unwrap();
                }
                Err(WriteError::Interrupted(_)) => {
                    interrupted += 1;
                    assert_eq!(files.unfinished(), Some(Position(2)));
                    assert!(matches!(checkpoint(&mut files, 3), Err(WriteError::Nothing(_))), "no other one");
                    checkpoint(&mut files, 2).unwrap();
                }
                Err(WriteError::Failed(_)) => {
                    failed += 1;
                    let syncs = fs.count("ckpt.sync") + fs.count("ckpt.map_sync") + fs.count("ckpt.record_sync");
                    assert!(matches!(checkpoint(&mut files, 2), Err(WriteError::Failed(_))));
                    let again = fs.count("ckpt.sync") + fs.count("ckpt.map_sync") + fs.count("ckpt.record_sync");
                    assert_eq!(syncs, again, "a failed sync is never tried again");
                }
            }
            // What a power cut leaves now is one of the two, whole, whatever failed before.
            drop(files);
            fs.crash(call);
            fs.restart();
            let mut files = open(&fs).unwrap();
            let found = files.at().position.0;
            assert!(found == 1 || found == 2);
            assert!(found == 2 || matches!(result, Err(WriteError::Failed(_))), "it was said to be done");
            assert_is(&fs, &files, found);
            for later in found + 1..=4 {
                checkpoint(&mut files, later).unwrap();
            }
            assert_is(&fs, &files, 4);
        }
        assert!(nothing > 0, "{failure:?} {lasts:?}: {nothing} {interrupted} {failed}");
        assert!(failed > 0);
        assert_eq!(interrupted > 0, no_room.contains(&failure), "{failure:?} {lasts:?}: {failed} failed");
    }
}

/// A process dies or its disk fails, at every call; the next one finds in the kernel's memory what is not on disk, goes on, and
/// then the power goes, at every call. What was found and counted is still there.
/// Shows INV-26.
#[test]
fn a_power_cut_after_a_process_that_went_on_from_the_kernels_memory_loses_nothing() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum End {
        Killed,
        Failed(Lasts),
    }
    let ends = [End::Killed, End::Failed(Lasts::Once), End::Failed(Lasts::ForGood)];
    // State 2 is the first that has another double-write before it.
    for (n, end) in [1, 2].into_iter().flat_map(|n| ends.map(|end| (n, end))) {
        let (mut redone, mut redone_later, mut unsaid) = (0, 0, 0);
        let (fs, mut files) = fresh(0);
        for earlier in 1..n {
            checkpoint(&mut files, earlier).unwrap();
        }
        let before = fs.calls();
        checkpoint(&mut files, n).unwrap();
        for call in 1..=fs.calls() - before {
            for (cut_at, keep) in (1..).flat_map(|cut_at| [(cut_at, 0), (cut_at, u64::MAX)]) {
                let context = format!("{n} {end:?} at call {call}, power cut at {cut_at}, {keep} bytes kept");
                let seed = 1000 * call + cut_at;
                let (fs, mut files) = fresh(seed);
                for earlier in 1..n {
                    checkpoint(&mut files, earlier).unwrap();
                }
                match end {
                    End::Killed => fs.kill_at(Aim::Any, call),
                    End::Failed(lasts) => fs.fail_at(Aim::Any, call, lasts, Failure::EIO),
                }
                let said = checkpoint(&mut files, n).is_ok();
                drop(files);
                fs.restart();
                fs.clear_faults();

                fs.crash_at(Aim::Any, cut_at, seed);
                let mut counted = n - u64::from(!said);
                if let Ok(mut files) = open(&fs) {
                    let found = files.at().position.0;
                    assert!(found >= counted, "{context}: {found}");
                    counted = found;
                    redone += u32::from(files.redone());
                    unsaid += u32::from(!said && found == n && !files.redone());
                    files.keep_doublewrite(keep);
                    for later in found + 1..=found + 2 {
                        match checkpoint(&mut files, later) {
                            Ok(()) => counted = later,
                            Err(_) => break,
                        }
                    }
                }
                if !fs.is_down() {
                    assert!(cut_at > 20, "the walk ends with a cut that never came");
                    break;
                }
                fs.restart();
                let mut files = open(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
                let found = files.at().position.0;
                assert!((counted..=n.max(counted + 1)).contains(&found), "{context}: {found}");
                redone_later += u32::from(files.redone());
                assert_is(&fs, &files, found);
                checkpoint(&mut files, found + 1).unwrap();
                assert_is(&fs, &files, found + 1);
            }
        }
        assert!(redone > 100 && redone_later > 100 && unsaid > 20, "{n} {end:?}: {redone} {redone_later} {unsaid}");
    }
}

/// It was as long as what had found room, on a disk that was full, until the next attempt; and what was told of it was the length
/// that it had before.
#[test]
fn a_double_write_that_failed_gives_its_room_back() {
    let dw = dir().join("9-1.dw");
    let on_disk = |fs: &SimFs| fs.peek(&dw).map(|bytes| bytes.len() as u64);
    for (label, failure) in [("dw.write", Failure::ENOSPC), ("dw.sync", Failure::ENOSPC), ("dw.sync", Failure::EIO)] {
        // State 2 is the first that has another double-write before it.
        for n in [1, 2] {
            let (fs, mut files) = fresh(n);
            for earlier in 1..n {
                checkpoint(&mut files, earlier).unwrap();
            }
            fs.fail_at(Aim::At(label), 1, Lasts::Once, failure);
            assert!(matches!(checkpoint(&mut files, n), Err(WriteError::Nothing(_))));
            assert_eq!((files.doublewrite_bytes(), on_disk(&fs)), (0, Some(0)), "{label} {failure:?} {n}");
            // The disk does not even take that: then it is told how long the file is.
            fs.fail_at(Aim::At(label), 1, Lasts::Once, failure);
            fs.fail_at(Aim::At("dw.shrink"), 1, Lasts::Once, Failure::EIO);
            assert!(matches!(checkpoint(&mut files, n), Err(WriteError::Nothing(_))));
            assert_eq!(Some(files.doublewrite_bytes()), on_disk(&fs), "{label} {failure:?} {n}");
            let syncs = fs.count("dw.sync");
            checkpoint(&mut files, n).unwrap();
            assert_eq!(Some(files.doublewrite_bytes()), on_disk(&fs));
            assert_eq!(fs.count("dw.sync"), syncs + 1, "of a new file");
            drop(files);
            assert_is(&fs, &open(&fs).unwrap(), n);
        }
    }
}

/// With a smaller limit it kept its room until the next write. What may have to be done again keeps it in any case.
#[test]
fn a_double_write_without_work_keeps_no_more_than_it_may() {
    let (fs, mut files) = fresh(1);
    let on_disk = || fs.peek(&dir().join("9-1.dw")).map(|bytes| bytes.len() as u64);
    checkpoint(&mut files, 1).unwrap();
    drop(files);
    let mut files = open(&fs).unwrap();
    let whole = files.doublewrite_bytes();
    assert_eq!((on_disk(), whole > 512), (Some(whole), true));
    let calls = fs.count("dw.shrink");
    files.keep_doublewrite(whole);
    assert_eq!((files.doublewrite_bytes(), on_disk(), fs.count("dw.shrink")), (whole, Some(whole), calls));
    files.keep_doublewrite(whole - 1);
    assert_eq!((files.doublewrite_bytes(), on_disk()), (0, Some(0)));
    assert_is(&fs, &open(&fs).unwrap(), 1);
    for failure in [Failure::ENOSPC, Failure::EIO] {
        let (fs, mut files) = fresh(1);
        fs.fail_at(Aim::At("ckpt.page"), 1, Lasts::Once, failure);
        assert!(checkpoint(&mut files, 1).is_err());
        files.keep_doublewrite(0);
        assert_eq!(fs.count("dw.shrink"), 0);
        drop(files);
        let files = open(&fs).unwrap();
        assert!(files.redone());
        assert_is(&fs, &files, 1);
    }
}

/// A power cut in or behind the attempt to give it back: whatever the disk has of the double-write then, the state before is there, or
/// the one that was to come.
/// Shows INV-26.
#[test]
fn a_crash_after_a_double_write_that_failed_loses_nothing() {
    for (label, seed) in ["dw.write", "dw.sync"].into_iter().flat_map(|label| (0..200).map(move |seed| (label, seed))) {
        for in_shrink in [true, false] {
            let (fs, mut files) = fresh(seed);
            fs.fail_at(Aim::At(label), 1, Lasts::Once, Failure::ENOSPC);
            if in_shrink {
                fs.crash_at(Aim::At("dw.shrink"), 1, seed);
            }
            assert!(matches!(checkpoint(&mut files, 1), Err(WriteError::Nothing(_))));
            if !in_shrink {
                fs.crash(seed);
            }
            drop(files);
            fs.restart();
            let mut files = open(&fs).unwrap();
            let found = files.at().position.0;
            assert!(found <= 1);
            assert_is(&fs, &files, found);
            for later in found + 1..=3 {
                checkpoint(&mut files, later).unwrap();
            }
            assert_is(&fs, &files, 3);
        }
    }
}

/// The table in the module's text, a line each.
#[test]
fn every_case_of_opening() {
    let dw = dir().join("9-1.dw");
    let map = dir().join("9-1.map");
    let main = dir().join("9-1.db");
    // none
    let (fs, files) = fresh(1);
    drop(files);
    assert_is(&fs, &open(&fs).unwrap(), 0);
    // none: torn
    let (fs, mut files) = fresh(1);
    checkpoint(&mut files, 1).unwrap();
    fs.fail_at(Aim::At("dw.sync"), 1, Lasts::Once, Failure::EIO);
    fs.fail_at(Aim::At("dw.shrink"), 1, Lasts::Once, Failure::EIO);
    assert!(matches!(checkpoint(&mut files, 2), Err(WriteError::Nothing(_))));
    fs.edit(&dw, |bytes| bytes[100] ^= 1);
    drop(files);
    assert_is(&fs, &open(&fs).unwrap(), 1);
    // done
    let (fs, mut files) = fresh(1);
    checkpoint(&mut files, 1).unwrap();
    drop(files);
    let files = open(&fs).unwrap();
    assert!(!files.redone());
    assert_is(&fs, &files, 1);
    // redo
    let (fs, mut files) = fresh(1);
    checkpoint(&mut files, 1).unwrap();
    fs.fail_at(Aim::At("ckpt.page"), 2, Lasts::Once, Failure::EIO);
    assert!(matches!(checkpoint(&mut files, 2), Err(WriteError::Failed(_))));
    drop(files);
    let files = open(&fs).unwrap();
    assert!(files.redone());
    assert_is(&fs, &files, 2);
    // redo: the newest record is rotten, the older one and the double-write say the same
    drop(files);
    fs.edit(&map, |bytes| bytes[1024 + 9] ^= 1);
    let files = open(&fs).unwrap();
    assert!(files.redone());
    assert_is(&fs, &files, 2);
    // gap
    let (fs, mut files) = fresh(1);
    for n in 1..=3 {
        checkpoint(&mut files, n).unwrap();
    }
    drop(files);
    // Records 3 and 4 say states 2 and 3; without the newer one the double-write, from 2 to 3, is done again. Here the
    // older one is given back what it said before, state 1.
    let old_slot = {
        let (other, mut files) = fresh(1);
        checkpoint(&mut files, 1).unwrap();
        other.peek(&map).unwrap()[512..560].to_vec()
    };
    fs.edit(&map, |bytes| {
        bytes[512..560].copy_from_slice(&old_slot);
        bytes[1024..1072].fill(0);
    });
    let error = open(&fs).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("double-write from position 2 to 3"), "{error}");
    // short
    let (fs, mut files) = fresh(1);
    checkpoint(&mut files, 1).unwrap();
    drop(files);
    fs.edit(&dw, Vec::clear);
    fs.edit(&main, |bytes| bytes.truncate(5 * 512 + 511));
    let error = open(&fs).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("main file of 3071 bytes"), "{error}");
}

/// Whatever is done to the three files, opening answers, and verifying finds each page that is not what it was.
#[test]
fn a_flipped_bit_anywhere_never_panics_and_no_wrong_page_is_called_right() {
    for name in ["9-1.db", "9-1.map", "9-1.dw"] {
        let (fs, mut files) = fresh(1);
        for n in 1..=2 {
            checkpoint(&mut files, n).unwrap();
        }
        drop(files);
        let path = dir().join(name);
        let len = fs.peek(&path).unwrap().len();
        let pristine = names(9, 1).map(|name| (dir().join(&name), fs.peek(&dir().join(name)).unwrap()));
        for byte in (0..len).filter(|byte| *byte < 1200 || *byte >= 4096 || byte % 97 == 0) {
            fs.edit(&path, |bytes| bytes[byte] ^= 0x10);
            if let Ok(files) = open(&fs) {
                let rotten = files.verify(PageNo::FIRST, files.at().size.0).unwrap();
                let main = fs.peek(&dir().join("9-1.db")).unwrap();
                let n = files.at().position.0;
                let wrong = (1..=files.at().size.0).map(page).find(|p| {
                    let offset = p.offset(SIZE) as usize;
                    main[offset..offset + 512] != content(written_in(n, *p), *p)
                });
                assert!(wrong.is_none() || rotten.is_some_and(|rotten| Some(rotten) <= wrong), "{name} byte {byte}");
            }
            // Opening may have mended something.
            for (path, content) in &pristine {
                fs.edit(path, |bytes| bytes.clone_from(content));
            }
        }
    }
}

#[test]
fn names_say_whose_files_they_are() {
    assert_eq!(names(17, 2), ["17-2.db", "17-2.map", "17-2.dw"]);
    for name in names(17, 2) {
        assert_eq!(owner_of_name(&name), Some((17, 2)));
    }
    for other in ["17-2.txt", "17.db", "x-2.db", "017-2.db", "17-2.db.new", "-.db", ""] {
        assert_eq!(owner_of_name(other), None, "{other}");
    }
}

/// A page and its hash from another position fit each other, and only all hashes together show that they are out of place.
#[test]
fn a_mixture_of_two_positions_does_not_make_the_checksum() {
    let (_fs, mut files) = fresh(1);
    for n in 1..=6 {
        checkpoint(&mut files, n).unwrap();
        assert!(files.books_fit().unwrap(), "state {n}");
    }
    let foreign = content(7, page(2));
    files.main.write_at(&foreign, page(2).offset(SIZE), "t").unwrap();
    files.map.write_hashes(page(2), &[PageHash::of(page(2), &foreign)], "t").unwrap();
    assert_eq!(files.verify(PageNo::FIRST, size(6)).unwrap(), None);
    assert!(!files.books_fit().unwrap());
}
