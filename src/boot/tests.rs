//! The table in the module's header, row by row.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimClock, SimFs, SimRng, assert_failed};

use super::*;
use crate::every::tests::{Hasty, said};
use crate::found::{Event, Founding};
use crate::log::Batch;
use crate::types::{EntryClass, LogEntry, LogIndex};

const NODE: NodeId = NodeId(1);

fn directory(fs: &SimFs, path: &str) -> Directory {
    let env = Env { fs: Arc::new(fs.clone()), clock: Arc::new(SimClock::default()), rng: Arc::new(SimRng::new(3)) };
    env.fs.create_dir_all(Path::new(path), "test").unwrap();
    Directory::new(env, Path::new(path), &Config { segment_bytes: 64 << 10, ..Config::default() })
}

/// The identity that a cluster of one ends with; nothing of it is stored.
fn founded(identity: &Identity, random: u64) -> Identity {
    let mut founding = Founding::new(identity.clone(), &[(NODE, String::new())]).unwrap();
    founding.on_event(Event::Tick, random);
    founding.take_effects().persist.unwrap()
}

fn found(directory: &Directory, random: u64) -> Identity {
    let identity = founded(&directory.identify(NODE).unwrap(), random);
    directory.found(&identity, genesis_of(&identity).unwrap()).unwrap();
    identity
}

fn add_entry(directory: &Directory, identity: &Identity) {
    let log = directory.open_log(identity).unwrap().log;
    let id = EntryId { index: LogIndex(2), term: Term(1) };
    let entries = vec![LogEntry { id, class: EntryClass::Normal, data: Bytes::from_static(b"entry") }];
    log.append(&Batch { entries, ..Batch::default() }).unwrap();
}

fn names(fs: &dyn shoaldb_vfs::env::Fs, dir: &str) -> Vec<String> {
    fs.list(Path::new(dir), "test").unwrap()
}

fn remove_all(fs: &SimFs, dir: &str) {
    let fs: &dyn shoaldb_vfs::env::Fs = fs;
    for file in names(fs, dir) {
        fs.remove(&Path::new(dir).join(file), "test").unwrap();
    }
}

#[track_caller]
fn refused<T>(result: Result<T>, words: &str) {
    let error = result.err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn identity_against_log() {
    // None, none: a new identity, which is the same from then on.
    let fs = SimFs::new(1);
    let a = directory(&fs, "/a");
    let fresh = a.identify(NODE).unwrap();
    assert_eq!(fresh.cluster(), None);
    assert_eq!(a.identify(NODE).unwrap(), fresh);

    // Nowhere, none: founding makes a log; then its own log is opened.
    let identity = found(&a, 77);
    assert_eq!(a.identify(NODE).unwrap(), identity);
    assert_eq!(a.open_log(&identity).unwrap().restored.last, GENESIS);
    assert_eq!(a.open_log(&identity).unwrap().applied(), GENESIS);

    // Nowhere, not even an entry: an interrupted founding, whose cluster nobody was told of. Another one follows.
    let b = directory(&fs, "/b");
    let nowhere = b.identify(NODE).unwrap();
    found(&b, 78);
    b.store(&nowhere).unwrap();
    let second = found(&b, 79);
    assert_eq!(b.open_log(&second).unwrap().catalogue.cluster(), second.cluster().unwrap());

    // Nowhere, entries.
    add_entry(&b, &second);
    b.store(&nowhere).unwrap();
    let again = founded(&nowhere, 80);
    refused(b.found(&again, genesis_of(&again).unwrap()), "belongs to no cluster");
    b.store(&second).unwrap();
    assert_eq!(b.open_log(&second).unwrap().restored.last.index, LogIndex(2), "nothing was removed");

    // A cluster, another cluster's log.
    refused(b.open_log(&identity), "not from one directory");

    // None, some.
    let fs: Arc<dyn shoaldb_vfs::env::Fs> = Arc::new(fs.clone());
    fs.remove(Path::new("/b/identity"), "test").unwrap();
    refused(b.identify(NODE), "no identity");
}

#[test]
fn a_cluster_without_a_log_is_loss() {
    let fs = SimFs::new(1);
    let a = directory(&fs, "/a");
    let identity = found(&a, 77);
    remove_all(&fs, "/a/log");
    refused(a.open_log(&identity), "is gone");
}

#[test]
fn a_crash_at_any_call_of_the_founding_leaves_a_directory_that_starts() {
    let calls = {
        let fs = SimFs::new(1);
        found(&directory(&fs, "/a"), 1);
        fs.calls()
    };
    for nth in 1..=calls {
        let fs = SimFs::new(nth);
        let a = directory(&fs, "/a");
        fs.crash_at(Aim::Any, nth, nth);
        let attempt = a.identify(NODE).and_then(|identity| {
            let identity = founded(&identity, 1);
            a.found(&identity, genesis_of(&identity).ok_or_else(|| Error::new(ErrorKind::NotFound, ""))?)
        });
        drop(attempt);
        fs.crash(nth);
        fs.restart();
        let a = directory(&fs, "/a");
        let identity = a.identify(NODE).unwrap_or_else(|error| panic!("crash at call {nth}: {error}"));
        let identity = if identity.cluster().is_some() { identity } else { found(&a, 2) };
        assert_eq!(a.open_log(&identity).unwrap().restored.last, GENESIS, "crash at call {nth}");
    }
}

/// What a founding left whose identity was not stored, a log with two spare files; and who the directory is.
fn founded_half(seed: u64) -> (SimFs, Directory, Identity) {
    let fs = SimFs::new(seed);
    let a = directory(&fs, "/a");
    let nowhere = a.identify(NODE).unwrap();
    let identity = founded(&nowhere, 78);
    a.found(&identity, genesis_of(&identity).unwrap()).unwrap().log.prepare_spare().unwrap();
    a.store(&nowhere).unwrap();
    assert_eq!(names(&fs, "/a/log").len(), 3);
    (fs, a, nowhere)
}

fn found_again(a: &Directory) -> Result<Opened> {
    let identity = a.identify(NODE)?;
    let identity = if identity.cluster().is_some() { identity } else { founded(&identity, 79) };
    a.found(&identity, genesis_of(&identity).unwrap())
}

/// The identity is as it was, or that of the cluster that was founded; and a start has a log.
fn starts(a: &Directory, nowhere: &Identity, what: &str) {
    let identity = a.identify(NODE).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(identity.incarnation, nowhere.incarnation, "{what}");
    let identity = if identity.cluster().is_some() { identity } else { found(a, 2) };
    let opened = a.open_log(&identity).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(opened.restored.last, GENESIS, "{what}");
}

/// What an interrupted founding left is cleared away by the next one, and power lost in any call of that, or a fault of it,
/// leaves a directory that starts.
#[test]
fn a_crash_or_a_fault_in_any_call_of_a_founding_behind_another_leaves_a_directory_that_starts() {
    let calls = {
        let (fs, a, _) = founded_half(1);
        let before = fs.calls();
        found_again(&a).unwrap();
        fs.calls() - before
    };
    let mut failed = BTreeSet::new();
    for nth in 1..=calls {
        for failure in [None, Some(Failure::EIO), Some(Failure::ENOSPC)] {
            let what = format!("call {nth}, {failure:?}");
            let (fs, a, nowhere) = founded_half(nth);
            match failure {
                None => fs.crash_at(Aim::Any, nth, nth),
                Some(failure) => fs.fail_at(Aim::Any, nth, Lasts::Once, failure),
            }
            let done = found_again(&a);
            assert_eq!(fs.is_down(), failure.is_none(), "{what}");
            failed.extend(fs.failed());
            if let (Some(failure), Err(error)) = (failure, done) {
                let words = if failure == Failure::EIO { "nput/output error" } else { "o space left" };
                let text = error.to_string();
                assert!(error.kind() == ErrorKind::Io && text.starts_with("/a"), "{what}: {text}");
                assert!(text.contains(words), "{what}: {text}");
                let says_what_to_do = text.contains("start it again") || text.contains("start the node again");
                assert!(says_what_to_do || !text.starts_with("/a/log"), "{what}: {text}");
                // Nothing but that went wrong.
                starts(&a, &nowhere, &what);
            }
            fs.crash(nth);
            fs.restart();
            starts(&directory(&fs, "/a"), &nowhere, &what);
        }
    }
    assert_failed(&failed, &["log.clear"]);
}

/// Each start says so, and the first one with a disk that works again founds.
#[test]
fn a_log_that_an_interrupted_founding_left_and_that_stays_is_told_by_every_start() {
    let calls = {
        let (fs, a, _) = founded_half(1);
        found_again(&a).unwrap();
        fs.count("log.clear")
    };
    assert_eq!(calls, 5, "a look, three files, a sync");
    for nth in 1..=calls {
        let (fs, a, nowhere) = founded_half(nth);
        fs.fail_at(Aim::At("log.clear"), nth, Lasts::ForGood, Failure::EIO);
        for attempt in 0..3 {
            // Once its only segment is gone there is no log that is to be cleared away.
            if attempt > 0 && !names(&fs, "/a/log").iter().any(|name| name.ends_with(".seg")) {
                break;
            }
            let text = found_again(&a).err().expect("it cannot be cleared away").to_string();
            assert!(text.contains("what an interrupted founding left of a log cannot be removed"), "{text}");
        }
        fs.clear_faults();
        starts(&a, &nowhere, &format!("call {nth}"));
        assert_failed(&fs.failed(), &["log.clear"]);
    }
}

#[test]
fn how_much_of_the_log_is_read_is_told_every_second() {
    let fs = SimFs::new(1);
    let mut a = directory(&fs, "/a");
    let identity = found(&a, 77);
    let log = a.open_log(&identity).unwrap().log;
    for index in 2..8 {
        let id = EntryId { index: LogIndex(index), term: Term(1) };
        let entries = vec![LogEntry { id, class: EntryClass::Normal, data: vec![7; 40 << 10].into() }];
        log.append(&Batch { entries, ..Batch::default() }).unwrap();
    }
    drop(log);
    a.env.clock = Arc::new(Hasty::default());
    let heard = said(|| assert_eq!(a.open_log(&identity).unwrap().restored.last.index, LogIndex(7)));
    let read =
        |files: u64| format!("starting: read {files} of 6 files of the log, {} of {} bytes", files * 65536, 6 * 65536);
    assert_eq!(heard, (1..6).map(read).collect::<Vec<_>>());
}
