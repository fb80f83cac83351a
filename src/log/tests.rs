//! What the log promises, one test per promise, on the simulated disk. Histories with crashes are in `tests/history.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs, assert_failed};

use super::*;
use crate::types::{EntryClass, GENESIS, NodeId, Term};

mod history;

const DIR: &str = "/node/log";
const OPTIONS: LogOptions = LogOptions { segment_bytes: 8192, spares: 1 };

fn arc(fs: &SimFs) -> Arc<dyn shoaldb_vfs::env::Fs> {
    Arc::new(fs.clone())
}

fn hard(term: u64, vote: u16, commit: u64) -> HardState {
    HardState { term: Term(term), vote: (vote > 0).then_some(NodeId(vote)), commit: LogIndex(commit) }
}

fn anchor(applied: u64) -> Anchor {
    let membership = Membership { voters: vec![NodeId(1), NodeId(2)], auto_leave: true, ..Membership::default() };
    Anchor { applied: LogIndex(applied), membership, registry: Bytes::from(vec![applied as u8; applied as usize % 50]) }
}

fn create(fs: &SimFs) -> Result<Log, LogError> {
    Log::create(arc(fs), Path::new(DIR), ClusterId(0xc1), OPTIONS, GENESIS, anchor(1), hard(1, 0, 1))
}

fn open(fs: &SimFs) -> Result<(Log, Recovered), LogError> {
    Log::open(arc(fs), Path::new(DIR), OPTIONS)
}

/// An entry whose bytes follow from its id, so that a wrong one shows.
fn entry(index: u64, term: u64, len: usize) -> LogEntry {
    let data = (0..len).map(|i| (index as usize * 31 + term as usize * 7 + i) as u8).collect::<Vec<u8>>();
    let class = if index.is_multiple_of(5) { EntryClass::Membership } else { EntryClass::Normal };
    LogEntry { id: EntryId { index: LogIndex(index), term: Term(term) }, class, data: data.into() }
}

fn entries(from: u64, to: u64, term: u64, len: usize) -> Batch {
    Batch { entries: (from..=to).map(|index| entry(index, term, len)).collect(), ..Batch::default() }
}

fn all(log: &Log) -> Vec<LogEntry> {
    log.entries(log.start().index.next(), log.last().index.next(), u64::MAX).unwrap()
}

fn file(number: u64) -> String {
    format!("{DIR}/{number:016x}.seg")
}

#[test]
fn what_was_appended_is_there_after_a_power_cut_that_forgets_everything_unsynced() {
    for seed in 0..20 {
        let fs = SimFs::new(seed);
        let log = create(&fs).unwrap();
        log.append(&entries(2, 9, 1, 100)).unwrap();
        let last = Batch { hard_state: Some(hard(3, 2, 8)), anchor: Some(anchor(7)), ..entries(10, 11, 3, 2000) };
        log.append(&last).unwrap();
        let before = all(&log);
        fs.crash(seed);
        fs.restart();
        let (log, recovered) = open(&fs).unwrap();
        assert_eq!(all(&log), before);
        let expected = Recovered {
            cluster: ClusterId(0xc1),
            hard_state: hard(3, 2, 8),
            anchor: anchor(7),
            start: GENESIS,
            last: entry(11, 3, 0).id,
            cut: None,
        };
        assert_eq!(recovered, expected);
    }
}

/// Without the newest segment a log would end earlier than what was acknowledged from it; without an older one there is a gap.
#[test]
fn a_segment_that_is_lost_is_missed_whichever_it_is() {
    let long = |fs: &SimFs| {
        let log = create(fs).unwrap();
        (1..=40).for_each(|i| log.append(&entries(i + 1, i + 1, 1, 600)).unwrap());
    };
    let fs = SimFs::new(1);
    long(&fs);
    let count = fs.count("log.promote");
    assert!(count > 3);
    // What is synced is on the disk, whatever becomes of the rest: of the newest, in many ways.
    for (lost, seed) in (2..count).map(|lost| (lost, lost)).chain((0..20).map(|seed| (count, seed))) {
        let fs = SimFs::new(1);
        long(&fs);
        fs.crash(seed);
        fs.restart();
        arc(&fs).remove(Path::new(&file(lost)), "test").unwrap();
        let error = open(&fs).unwrap_err();
        assert!(matches!(error, LogError::Damage { case: "segment-missing", .. }), "{lost}: {error}");
    }
}

/// A crash may come between a segment's name and the word of its predecessor; the next start says it.
#[test]
fn a_start_says_that_a_segment_has_a_successor_where_a_crash_came_before() {
    for label in ["log.seal", "log.seal.sync"] {
        let fs = SimFs::new(1);
        let log = create(&fs).unwrap();
        fs.crash_at(Aim::At(label), 1, 7);
        let died = (1..=40).find(|i| log.append(&entries(i + 1, i + 1, 1, 600)).is_err());
        assert!(died.is_some() && fs.is_down());
        fs.restart();
        open(&fs).unwrap();
        fs.crash(7);
        fs.restart();
        arc(&fs).remove(Path::new(&file(2)), "test").unwrap();
        let error = open(&fs).unwrap_err();
        assert!(matches!(error, LogError::Damage { case: "segment-missing", .. }), "{label}: {error}");
    }
}

/// Files are listed before they are read, and the newest is read last: by then it may have a successor.
#[test]
fn a_log_that_goes_on_while_it_is_looked_at_is_not_called_damaged() {
    let fs = SimFs::new(1);
    let log = Arc::new(create(&fs).unwrap());
    log.append(&entries(2, 2, 1, 600)).unwrap();
    let (writer, went_on) = (log.clone(), AtomicBool::new(false));
    fs.on_call("log.read", move || {
        if !went_on.swap(true, Ordering::Relaxed) {
            writer.append(&entries(3, 3, 1, 7600)).unwrap();
        }
    });
    let view = inspect::Inspection::new(arc(&fs), Path::new(DIR)).unwrap().view;
    assert_eq!((view.damage.map(|damage| damage.to_string()), view.segments.len()), (None, 2));
    drop(log);
    arc(&fs).remove(Path::new(&file(2)), "test").unwrap();
    let view = inspect::Inspection::new(arc(&fs), Path::new(DIR)).unwrap().view;
    assert!(view.damage.is_some(), "it is missing");
}

#[test]
fn a_batch_is_one_write_and_one_sync() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    let calls = fs.calls();
    log.append(&Batch { hard_state: Some(hard(2, 1, 1)), anchor: Some(anchor(1)), ..entries(2, 9, 2, 100) }).unwrap();
    assert_eq!((fs.calls() - calls, fs.count("log.write"), fs.count("log.sync")), (2, 1, 1));
    log.append(&Batch::default()).unwrap();
    assert_eq!(fs.calls() - calls, 2, "nothing to say, nothing to write");
}

#[test]
fn a_log_is_created_once_and_opened_only_if_it_is_there() {
    let fs = SimFs::new(1);
    assert!(matches!(open(&fs), Err(LogError::Io { .. })), "not even the directory is there");
    let log = create(&fs).unwrap();
    assert_eq!(fs.count("log.mkdir"), 2, "made, and its name synced");
    assert!(matches!(create(&fs), Err(LogError::Exists { .. })));
    assert_eq!((log.start(), log.last(), log.bytes()), (GENESIS, GENESIS, 512));
    fs.edit(Path::new(&file(1)), |bytes| bytes[8..12].copy_from_slice(&7u32.to_le_bytes()));
    let error = open(&fs).unwrap_err();
    assert!(error.to_string().contains("log format version 7; this program reads version 1"), "{error}");
    for bytes in [4095, 4096 + 1, (1 << 30) + 512] {
        let options = LogOptions { segment_bytes: bytes, spares: 0 };
        assert!(matches!(Log::open(arc(&fs), Path::new(DIR), options), Err(LogError::Misuse(_))));
    }
}

#[test]
fn reads_stop_at_max_bytes_but_give_one_entry() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&entries(2, 4, 1, 100)).unwrap();
    log.append(&entries(5, 40, 1, 300)).unwrap();
    let count = |lo, hi, max| log.entries(LogIndex(lo), LogIndex(hi), max).map(|entries| entries.len()).unwrap();
    assert_eq!([199, 200, 201].map(|max| count(2, 41, max)), [1, 2, 2]);
    assert_eq!((count(2, 41, 0), count(2, 2, 9), count(41, 41, 9), count(3, 41, u64::MAX)), (1, 0, 0, 38));
    assert!(matches!(log.entries(LogIndex(1), LogIndex(3), 9), Err(LogError::Compacted { .. })));
    assert!(matches!(log.entries(LogIndex(2), LogIndex(42), 9), Err(LogError::Beyond { .. })));
    assert_eq!([0, 1, 2, 40, 41].map(|i| log.term(LogIndex(i)).map(|t| t.0)), [None, Some(1), Some(1), Some(1), None]);
}

/// Shows INV-1.
#[test]
fn a_conflicting_suffix_is_truncated_by_a_record_and_never_overwritten() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&entries(2, 6, 1, 100)).unwrap();
    let before = fs.peek(Path::new(&file(1))).unwrap();
    log.append(&entries(4, 5, 2, 100)).unwrap();
    let after = fs.peek(Path::new(&file(1))).unwrap();
    assert_eq!(after[..before.len()], before);
    let expected = [entry(2, 1, 100), entry(3, 1, 100), entry(4, 2, 100), entry(5, 2, 100)];
    assert_eq!(all(&log), expected);
    assert_eq!(all(&open(&fs).unwrap().0), expected);
}

/// Shows INV-2.
#[test]
fn what_must_not_follow_is_refused_and_the_log_goes_on() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&Batch { hard_state: Some(hard(2, 1, 3)), ..entries(2, 5, 2, 10) }).unwrap();
    let calls = fs.calls();
    let state = |state| Batch { hard_state: Some(state), ..Batch::default() };
    let refused = [
        ("a gap", entries(7, 7, 2, 1)),
        ("an older term", entries(6, 6, 1, 1)),
        ("a truncation of what is committed", entries(3, 3, 3, 1)),
        ("an older hard state", state(hard(1, 1, 3))),
        ("a second vote", state(hard(2, 2, 3))),
        ("no vote any more", state(hard(2, 0, 3))),
        ("a smaller commit", state(hard(2, 1, 2))),
        ("an anchor beyond the end", Batch { anchor: Some(anchor(6)), ..Batch::default() }),
        ("an older anchor", Batch { anchor: Some(anchor(0)), ..Batch::default() }),
    ];
    for (name, batch) in refused {
        assert!(matches!(log.append(&batch), Err(LogError::Misuse(_))), "{name}");
    }
    assert!(matches!(log.append(&entries(1, 2, 2, 1)), Err(LogError::Compacted { .. })));
    assert!(matches!(log.reset(GENESIS, anchor(1), hard(1, 1, 3)), Err(LogError::Misuse(_))));
    assert_eq!(fs.calls(), calls, "nothing was written");
    log.append(&Batch { anchor: Some(anchor(5)), ..entries(4, 5, 3, 10) }).unwrap();
}

/// Shows INV-3.
#[test]
fn the_first_failure_is_the_answer_from_then_on() {
    for (label, failure) in [("log.write", Failure::EIO), ("log.sync", Failure::EIO), ("log.sync", Failure::ENOSPC)] {
        let fs = SimFs::new(1);
        let log = create(&fs).unwrap();
        log.append(&entries(2, 2, 1, 10)).unwrap();
        fs.fail_at(Aim::At(label), 1, Lasts::Once, failure);
        let first = log.append(&entries(3, 3, 1, 10)).unwrap_err();
        assert_eq!(first.is_no_space(), failure == Failure::ENOSPC, "{first}");
        assert!(first.to_string().contains(label), "{first}");
        let calls = fs.calls();
        for batch in [entries(3, 3, 1, 10), Batch::default()] {
            assert_eq!(log.append(&batch).unwrap_err().to_string(), first.to_string());
        }
        assert_eq!(log.reset(GENESIS, anchor(1), hard(1, 0, 1)).unwrap_err().to_string(), first.to_string());
        assert_eq!(fs.calls(), calls, "no second attempt");
        assert_eq!(all(&log), [entry(2, 1, 10)], "reads go on");
    }
}

/// A new segment that cannot be opened for want of descriptors has changed nothing: it is tried again, and people are told what to
/// raise.
#[test]
fn a_new_segment_without_a_descriptor_is_tried_again() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&entries(2, 2, 1, 10)).unwrap();
    fs.fail_at(Aim::At("log.create"), 1, Lasts::ForGood, Failure::EMFILE);
    // Larger than a segment: it needs one of its own.
    let large = entries(3, 3, 1, 2 * OPTIONS.segment_bytes as usize);
    for _ in 0..3 {
        let error = log.append(&large).unwrap_err();
        assert!(error.can_be_tried_again() && !error.is_no_space(), "{error}");
        for words in [error.in_words_for_now(), error.in_words()] {
            assert!(words.contains("too many open files") && words.contains("ulimit -n"), "{words}");
            assert!(!words.contains("disk"), "{words}");
        }
    }
    assert_eq!(all(&log), [entry(2, 1, 10)]);
    fs.clear_faults();
    log.append(&large).unwrap();
    assert_eq!(all(&log).len(), 2);
}

/// What a write without room left at its place is not read, whatever it is: the next segment says that this one ended before.
/// Shows INV-3.
#[test]
fn a_write_without_room_is_tried_again_elsewhere() {
    for seed in 0..40 {
        let fs = SimFs::new(seed);
        let log = create(&fs).unwrap();
        log.append(&entries(2, 2, 1, 10)).unwrap();
        fs.fail_at(Aim::At("log.write"), 1, Lasts::Once, Failure::ENOSPC);
        let first = log.append(&entries(3, 5, 1, 900)).unwrap_err();
        assert!(first.is_no_space() && first.can_be_tried_again(), "{first}");
        assert_eq!(all(&log), [entry(2, 1, 10)]);
        let segments = fs.counts().get("log.promote").copied().unwrap_or(0);
        // Also another batch than that one.
        let next = if seed % 2 == 0 { entries(3, 5, 1, 900) } else { entries(3, 3, 1, 20) };
        log.append(&next).unwrap();
        assert_eq!(fs.counts()["log.promote"], segments + 1, "at the same place");
        log.append(&entries(next.entries.len() as u64 + 3, 9, 1, 10)).unwrap();
        let expected = all(&log);
        drop(log);
        fs.crash(seed);
        fs.restart();
        let (log, recovered) = open(&fs).unwrap();
        assert_eq!((all(&log), recovered.cut), (expected, None), "seed {seed}");
    }
}

/// `log_limit` is a bound of what the disk has, and what is not used of a segment lies there all the same.
#[test]
fn what_is_not_used_of_a_segment_counts_as_soon_as_another_one_follows() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&entries(2, 2, 1, 5000)).unwrap();
    // Each attempt takes a segment, and there is a filled one for each.
    fs.fail_at(Aim::At("log.write"), 1, Lasts::ForGood, Failure::ENOSPC);
    for _ in 0..6 {
        log.prepare_spare().unwrap();
        log.append(&entries(3, 3, 1, 100)).unwrap_err();
    }
    fs.clear_faults();
    for (index, len) in [(3, 5000), (4, 5000), (5, 20_000), (6, 10), (7, 5000)] {
        log.append(&Batch { anchor: Some(anchor(index - 1)), ..entries(index, index, 1, len) }).unwrap();
    }
    let check = |log: &Log| {
        let listed = arc(&fs).list(Path::new(DIR), "test").unwrap();
        let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
        for name in listed.into_iter().filter(|name| name.ends_with(".seg")) {
            let len = fs.peek(&Path::new(DIR).join(&name)).unwrap().len() as u64;
            sizes.insert(name, len);
        }
        let (_, last) = sizes.pop_last().unwrap();
        let sealed: u64 = sizes.values().sum();
        assert!((sealed..=sealed + last).contains(&log.bytes()), "{} bytes, {sizes:?} and {last}", log.bytes());
        sizes.len()
    };
    assert!(check(&log) > 8);
    drop(log);
    let (log, _) = open(&fs).unwrap();
    assert!(check(&log) > 8);
    // It goes as far as it has to, and no further.
    let keep = 3 * OPTIONS.segment_bytes + 20_000;
    let start = log.compaction_start(LogIndex(7), keep);
    log.compact(start.index).unwrap();
    check(&log);
    assert!(start.index == LogIndex(2) && log.bytes() <= keep, "{start:?}, {} bytes", log.bytes());
}

/// A start that cannot wipe what it cuts says so; the next one does it, and what was synced is there.
#[test]
fn what_could_not_be_wiped_is_wiped_by_the_next_start() {
    for (failure, lasts) in [Failure::EIO, Failure::ENOSPC]
        .into_iter()
        .flat_map(|failure| [Lasts::Once, Lasts::ForGood].map(|lasts| (failure, lasts)))
    {
        let mut failed = BTreeSet::new();
        for seed in 0..40 {
            let fs = SimFs::new(seed);
            let log = create(&fs).unwrap();
            log.append(&entries(2, 2, 1, 10)).unwrap();
            // A batch of many sectors, of which the first one may be there without the others.
            fs.crash_at(Aim::At("log.sync"), 1, seed);
            log.append(&entries(3, 5, 1, 900)).unwrap_err();
            drop(log);
            fs.restart();
            fs.fail_at(Aim::At("log.wipe"), 1, lasts, failure);
            for _ in 0..if lasts == Lasts::Once { 1 } else { 3 } {
                let wipes = fs.count("log.wipe");
                let opened = open(&fs);
                // One that failed may have wiped all the same.
                assert_eq!(opened.is_err(), fs.count("log.wipe") > wipes, "seed {seed}");
                let Err(error) = opened else { break };
                assert_eq!(error.is_no_space(), failure == Failure::ENOSPC, "{error}");
                assert!(error.to_string().contains("log.wipe"), "{error}");
            }
            failed.extend(fs.failed());
            fs.clear_faults();
            if seed % 2 == 0 {
                fs.crash(seed);
                fs.restart();
            }
            let (log, recovered) = open(&fs).unwrap();
            let first = [entry(2, 1, 10)];
            let whole = all(&log);
            assert!(whole == first || whole == [&first[..], &entries(3, 5, 1, 900).entries].concat(), "seed {seed}");
            assert!(recovered.cut.is_none() || whole == first, "seed {seed}");
            log.append(&entries(log.last().index.0 + 1, 9, 2, 10)).unwrap();
            let before = all(&log);
            drop(log);
            fs.crash(seed);
            fs.restart();
            let (log, recovered) = open(&fs).unwrap();
            assert_eq!((all(&log), recovered.cut), (before, None), "seed {seed}");
        }
        assert_failed(&failed, &["log.wipe"]);
    }
}

/// Shows INV-4.
#[test]
fn what_open_reports_after_a_failed_sync_is_really_on_disk() {
    // The page cache shows a whole batch that the disk does not have, and the kernel believes that it is clean: a second
    // sync alone would promise it, and the next power cut would take back a vote.
    for seed in 0..40 {
        let fs = SimFs::new(seed);
        let log = create(&fs).unwrap();
        fs.fail_at(Aim::At("log.sync"), 1, Lasts::Once, Failure::EIO);
        log.append(&Batch { hard_state: Some(hard(5, 2, 1)), ..entries(2, 4, 1, 900) }).unwrap_err();
        drop(log);
        let (_, reported) = open(&fs).unwrap();
        fs.crash(seed);
        fs.restart();
        assert_eq!(open(&fs).unwrap().1, reported, "seed {seed}");
    }
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    // A full segment holds 8192 - 512 (head) - 512 (where it goes on) - 40 (batch header) - 32 (record header) bytes of one entry.
    for (i, len) in [7095, 7096, 7097, 40_000, 10].into_iter().enumerate() {
        if i == 1 {
            log.prepare_spare().unwrap();
        }
        log.append(&Batch { entries: vec![entry(i as u64 + 2, 1, len)], ..Batch::default() }).unwrap();
    }
    let (log, recovered) = open(&fs).unwrap();
    assert_eq!(recovered.last.index, LogIndex(6));
    assert_eq!(all(&log).iter().map(|entry| entry.data.len()).collect::<Vec<_>>(), [7095, 7096, 7097, 40_000, 10]);
    let sizes = [1, 2, 3, 4, 5].map(|number| fs.peek(Path::new(&file(number))).unwrap().len());
    assert_eq!(sizes, [8192, 8192, 8704, 41_472, 1024]);
}

/// A batch in a file that grows costs a second write to the disk, for the file system's own records.
#[test]
fn a_log_leaves_a_file_that_grows_as_soon_as_there_is_a_filled_one() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&entries(2, 2, 1, 100)).unwrap();
    log.prepare_spare().unwrap();
    assert!(!log.wants_spare());
    log.append(&entries(3, 3, 1, 100)).unwrap();
    assert!(log.wants_spare(), "the spare is the active segment now");
    log.append(&entries(4, 4, 1, 100)).unwrap();
    let sizes = [1, 2].map(|number| fs.peek(Path::new(&file(number))).unwrap().len());
    assert_eq!(sizes, [1536, 8192]);
    assert!(fs.peek(Path::new(&file(3))).is_none(), "a filled segment is filled with batches first");
    // One that was filled is known as such when it is opened again.
    let (log, _) = open(&fs).unwrap();
    log.prepare_spare().unwrap();
    log.append(&entries(5, 5, 1, 100)).unwrap();
    assert!(!log.wants_spare());
    assert_eq!(all(&log).len(), 4);
}

#[test]
fn segments_go_only_when_a_later_head_covers_them_and_come_back_with_another_lap() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    for index in 2..=7 {
        if index == 4 {
            log.prepare_spare().unwrap();
        }
        log.append(&entries(index, index, 1, 3000)).unwrap();
    }
    // Two entries a segment: 2 3 | 4 5 | 6 7. No head says more than the genesis.
    assert_eq!(log.compact(LogIndex(7)).unwrap(), GENESIS);
    log.append(&Batch { hard_state: Some(hard(1, 0, 7)), anchor: Some(anchor(5)), ..Batch::default() }).unwrap();
    log.append(&entries(8, 8, 1, 3000)).unwrap();
    // The head of 8's segment says 5: that covers 2 3 and 4 5, not 6 7.
    assert_eq!([2, 3, 4, 5, 7].map(|through| log.compact(LogIndex(through)).unwrap().index.0), [1, 3, 3, 5, 5]);
    assert_eq!(log.start(), entry(5, 1, 0).id);
    assert!(matches!(log.entries(LogIndex(5), LogIndex(7), 1), Err(LogError::Compacted { .. })));
    assert_eq!(all(&log)[0], entry(6, 1, 3000));

    // Segment 2 is a spare now, with its batches in it; segment 5 is written over them and ends where the old second one
    // starts.
    let names = arc(&fs).list(Path::new(DIR), "test").unwrap();
    let spare = names.iter().find(|name| name.starts_with("spare-")).unwrap();
    let old = fs.peek(&Path::new(DIR).join(spare)).unwrap();
    log.append(&entries(9, 9, 1, 3000)).unwrap();
    let new = fs.peek(Path::new(&file(5))).unwrap();
    assert_eq!(new[3584..], old[3584..]);
    assert_eq!(new[3584..3588], *b"BTCH");
    assert_ne!(new[..3584], old[..3584]);
    let (reopened, recovered) = open(&fs).unwrap();
    assert_eq!((recovered.start.index, recovered.last), (LogIndex(5), log.last()));
    assert_eq!(all(&reopened), all(&log));
}

/// The first segment of a log may be left before an entry came: it holds back nothing.
/// Shows INV-25.
#[test]
fn a_segment_without_entries_does_not_keep_those_behind_it() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&Batch { hard_state: Some(hard(1, 0, 1)), ..Batch::default() }).unwrap();
    log.prepare_spare().unwrap();
    for index in 2..=7 {
        log.append(&entries(index, index, 1, 3000)).unwrap();
    }
    log.append(&Batch { hard_state: Some(hard(1, 0, 7)), anchor: Some(anchor(7)), ..Batch::default() }).unwrap();
    log.seal_for(LogIndex(7)).unwrap();
    assert!(log.compaction_start(LogIndex(7), 0).index > GENESIS.index);
    log.compact(LogIndex(7)).unwrap();
    assert!(log.start().index > GENESIS.index);
}

/// A head takes the anchor along only when there is a next segment: without a batch that needs one, nothing would go.
/// Shows INV-25.
#[test]
fn a_log_that_is_idle_drops_what_its_anchor_covers() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    for index in 2..=7 {
        log.append(&entries(index, index, 1, 3000)).unwrap();
    }
    log.append(&Batch { hard_state: Some(hard(1, 0, 7)), anchor: Some(anchor(5)), ..Batch::default() }).unwrap();
    assert_eq!(log.compaction_start(LogIndex(7), 0), GENESIS, "no head has the anchor yet");
    let calls = fs.calls();
    log.seal_for(LogIndex(2)).unwrap();
    assert_eq!(fs.calls(), calls, "the first segment has entry 3, too: it would not help");
    log.seal_for(LogIndex(7)).unwrap();
    assert_eq!(log.compaction_start(LogIndex(7), u64::MAX), GENESIS, "there is room");
    let start = log.compaction_start(LogIndex(7), 0);
    assert_eq!(start, entry(5, 1, 0).id);
    assert_eq!(log.compact(start.index).unwrap(), start);
    let calls = fs.calls();
    log.seal_for(LogIndex(7)).unwrap();
    assert_eq!(fs.calls(), calls, "once is enough");
    log.append(&entries(8, 8, 1, 100)).unwrap();
    let (reopened, recovered) = open(&fs).unwrap();
    assert_eq!((recovered.start, recovered.last, recovered.anchor), (start, log.last(), anchor(5)));
    assert_eq!(all(&reopened), all(&log));
}

/// A week of a log goes through the same few files: thousands of segments, most of them of the usual size, some larger because a
/// batch was, and no step leaves a file too many or one that grew.
///
/// A week is a hundred transactions of a row in each second of it, of 5 KB in the log as pages are 4 KiB: 302 GB. In segments of
/// 16 MiB, as they are by default, that is 18024 of them. Here they are smaller, and each batch needs a new one.
/// Shows INV-25.
#[test]
fn a_log_that_turned_over_thousands_of_times_has_as_few_files_as_in_the_beginning() {
    const KEPT: u64 = 3;
    const WEEK: u64 = 7 * 24 * 3600 * 100 * 5000;
    const SEGMENTS: u64 = WEEK / (16 << 20);
    let fs = SimFs::new(5);
    let mut log = create(&fs).unwrap();
    for index in 2..2 + SEGMENTS {
        let large = index % 100 == 0;
        let batch = entries(index, index, 1, if large { 20_000 } else { 6000 });
        log.append(&Batch { anchor: Some(anchor(index - 1)), ..batch }).unwrap();
        // The thread that prepares spares does not always come in time, nor does compaction.
        if index % 3 > 0 {
            log.prepare_spare().unwrap();
        }
        if index % 2 == 0 {
            log.compact(LogIndex(index.saturating_sub(KEPT))).unwrap();
        }
        if index % 500 == 0 {
            drop(log);
            log = open(&fs).unwrap().0;
        }
        let names = arc(&fs).list(Path::new(DIR), "t").unwrap();
        let (spares, segments): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.starts_with("spare"));
        assert!(spares.len() <= OPTIONS.spares, "at {index}: {names:?}");
        assert!(segments.len() as u64 <= KEPT + 4, "at {index}: {names:?}");
        let size = |name: &String| fs.peek(&Path::new(DIR).join(name)).unwrap().len() as u64;
        let larger = segments.iter().filter(|name| size(name) > OPTIONS.segment_bytes).count();
        assert!(larger <= 1, "at {index}: {larger} of {names:?}");
        assert!(spares.iter().all(|name| size(name) <= OPTIONS.segment_bytes), "at {index}");
        assert!(log.bytes() <= (KEPT + 4) * OPTIONS.segment_bytes + 20_480, "at {index}: {} bytes", log.bytes());
    }
    assert!(fs.count("log.promote") >= SEGMENTS && log.start().index.0 > SEGMENTS - 100);
}

#[test]
fn a_reset_replaces_the_log_as_a_whole() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    for index in 2..=7 {
        log.append(&entries(index, index, 1, 3000)).unwrap();
    }
    let start = entry(100, 4, 0).id;
    fs.fail_at(Aim::At("log.remove"), 1, Lasts::ForGood, Failure::EIO);
    log.reset(start, anchor(100), hard(4, 2, 100)).unwrap();
    assert_eq!((log.start(), log.last()), (start, start));
    log.append(&entries(101, 102, 4, 10)).unwrap();
    assert!(fs.peek(Path::new(&file(1))).is_some());
    assert!(log.compact(LogIndex(102)).is_err(), "compaction says that files could not be removed");
    fs.clear_faults();
    let (log, recovered) = open(&fs).unwrap();
    assert_eq!((recovered.start, recovered.last.index), (start, LogIndex(102)));
    assert_eq!((recovered.hard_state, recovered.anchor), (hard(4, 2, 100), anchor(100)));
    assert_eq!(all(&log), entries(101, 102, 4, 10).entries);
    assert!((1..=3).all(|number| fs.peek(Path::new(&file(number))).is_none()), "the old segments are gone");
}

/// Shows INV-4.
#[test]
fn a_flipped_bit_never_panics_and_never_invents() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    for index in 2..=9 {
        let state = hard(1 + index / 4, 1, index - 1);
        log.append(&Batch { hard_state: Some(state), ..entries(index, index, 1, 1500) }).unwrap();
    }
    let written = all(&log);
    drop(log);
    for number in 1..=2 {
        let path = file(number);
        let original = fs.peek(Path::new(&path)).unwrap();
        // Each byte of every header, a sample of the payloads, all bits in turn.
        for at in (0..original.len()).filter(|at| at % 512 < 80 || at % 37 == 0) {
            fs.edit(Path::new(&path), |bytes| bytes[at] ^= 1 << (at % 8));
            match open(&fs) {
                Ok((log, recovered)) => {
                    let found = all(&log);
                    assert_eq!(found, written[..found.len()], "byte {at} of {path}");
                    let lost = found.len() < written.len();
                    assert!(lost || recovered.cut.is_none(), "byte {at}");
                    assert!(!lost || number == 2 && found.len() == written.len() - 1, "byte {at}: only the last batch");
                }
                Err(LogError::Damage { file, .. } | LogError::Version { file, .. }) => assert!(path.ends_with(&file)),
                Err(other) => panic!("byte {at} of {path}: {other}"),
            }
            fs.edit(Path::new(&path), |bytes| *bytes = original.clone());
        }
    }
}

#[test]
fn rot_under_an_open_log_is_an_error_of_the_read() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&entries(2, 3, 1, 1000)).unwrap();
    fs.edit(Path::new(&file(1)), |bytes| bytes[1000] ^= 1);
    let error = log.entries(LogIndex(2), LogIndex(4), 9).unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert_eq!(log.entries(LogIndex(3), LogIndex(4), 9).unwrap(), [entry(3, 1, 1000)], "its neighbour reads");
    log.append(&entries(4, 4, 1, 10)).unwrap();
}

#[test]
fn readers_wait_for_no_sync() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&entries(2, 3, 1, 10)).unwrap();
    let (reached, at_sync) = mpsc::sync_channel(0);
    let (release, wait) = mpsc::sync_channel::<()>(0);
    let wait = parking_lot::Mutex::new(wait);
    fs.on_call("log.sync", move || {
        reached.send(()).unwrap();
        wait.lock().recv().unwrap();
    });
    std::thread::scope(|scope| {
        let appender = scope.spawn(|| log.append(&entries(3, 4, 2, 10)));
        // Without a sync this would wait for ever; the limit only ends a test that has failed.
        at_sync.recv_timeout(Duration::from_secs(10)).unwrap();
        // The appender stands in its sync. It is let go before anything is asserted, so that a failure ends the test.
        let seen = (all(&log), log.last().index);
        release.send(()).unwrap();
        appender.join().unwrap().unwrap();
        assert_eq!(seen, (entries(2, 3, 1, 10).entries, LogIndex(3)), "what is not synced does not show");
    });
    assert_eq!(all(&log)[1..], entries(3, 4, 2, 10).entries);
}

#[test]
fn a_segment_that_is_being_read_is_not_recycled() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.prepare_spare().unwrap();
    let state = |index| Batch { hard_state: Some(hard(1, 0, index)), anchor: Some(anchor(index)), ..Batch::default() };
    for index in 2..=7 {
        log.append(&Batch { entries: vec![entry(index, 1, 3000)], ..state(index) }).unwrap();
    }
    let (reached, at_read) = mpsc::sync_channel(0);
    let (release, wait) = mpsc::sync_channel::<()>(0);
    let wait = parking_lot::Mutex::new(wait);
    fs.on_call("log.read", move || {
        reached.send(()).unwrap();
        wait.lock().recv().unwrap();
    });
    std::thread::scope(|scope| {
        // 4 and 5 lie in segment 2, which was pre-written and would make a good spare.
        let reader = scope.spawn(|| log.entries(LogIndex(4), LogIndex(6), u64::MAX));
        at_read.recv_timeout(Duration::from_secs(10)).unwrap();
        let start = log.compact(LogIndex(7));
        let appended = (8..=13).try_for_each(|index| log.append(&entries(index, index, 2, 3000)));
        release.send(()).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), entries(4, 5, 1, 3000).entries);
        appended.unwrap();
        assert_eq!(start.unwrap().index, LogIndex(5));
    });
}

#[test]
fn entries_read_back_while_another_thread_appends_and_compacts() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let (lo, hi) = (log.start().index.next(), log.last().index.next());
                    match log.entries(lo, hi, 3000) {
                        Ok(found) => {
                            for found in found {
                                assert_eq!(found, entry(found.id.index.0, 1, 700));
                            }
                        }
                        Err(LogError::Compacted { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
        for index in 2..600 {
            let batch = Batch {
                hard_state: Some(hard(1, 0, index)),
                anchor: Some(anchor(index)),
                ..entries(index, index, 1, 700)
            };
            log.append(&batch).unwrap();
            if index % 3 == 0 {
                log.prepare_spare().unwrap();
                log.compact(LogIndex(index)).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(log.start().index > LogIndex(500));
}

/// What a file looks like that was written down once; `SHOAL_BLESS` writes it down.
fn golden(name: &str, written: &[u8]) -> Vec<u8> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("SHOAL_BLESS").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(&golden, written).unwrap();
    }
    std::fs::read(golden).unwrap()
}

/// Whoever went on behind such an entry had no index for the next one. Only a head with a right checksum says so much.
#[test]
fn a_head_behind_which_there_is_no_index_is_refused() {
    for (index, opens) in [(1 << 62, true), ((1 << 62) + 1, false), (u64::MAX, false)] {
        let (fs, start) = (SimFs::new(1), EntryId { index: LogIndex(index), term: Term(1) });
        let log =
            Log::create(arc(&fs), Path::new(DIR), ClusterId(0xc1), OPTIONS, start, anchor(index), hard(1, 0, index));
        drop(log.unwrap());
        let opened = open(&fs);
        assert_eq!(opened.is_ok(), opens, "{index}");
        assert!(opens || opened.err().unwrap().to_string().contains("the head's fields cannot be"), "{index}");
    }
}

/// Head, two batches, and that the log goes on in the next segment.
#[test]
fn a_sealed_segment_of_format_version_1_looks_like_this() {
    let fs = SimFs::new(1);
    let log = create(&fs).unwrap();
    log.append(&entries(2, 3, 1, 40)).unwrap();
    log.append(&entries(4, 4, 1, 7600)).unwrap();
    let written = fs.peek(Path::new(&file(1))).unwrap();
    assert_eq!(written, golden("log-v1-sealed.seg", &written), "the format changed: give it another version");
}

/// Format version 1, as it was when it was introduced: head, batches with all kinds of records but the one that seals a
/// segment, a truncation. What this version writes is byte for byte that, and what that program wrote is read.
#[test]
fn format_version_1_stays_readable() {
    let write = || {
        let fs = SimFs::new(1);
        let log = create(&fs).unwrap();
        log.append(&entries(2, 5, 1, 40)).unwrap();
        log.append(&Batch { hard_state: Some(hard(3, 2, 3)), ..entries(4, 6, 3, 9) }).unwrap();
        log.append(&Batch { anchor: Some(anchor(3)), ..Batch::default() }).unwrap();
        let bytes = fs.peek(Path::new(&file(1))).unwrap();
        let used = (bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1).next_multiple_of(512).min(bytes.len());
        (all(&log), bytes[..used].to_vec())
    };
    let (expected, written) = write();
    let golden = golden("log-v1.seg", &written);
    assert_eq!(written, golden, "the format changed: give it another version, and keep reading this one");

    let fs = SimFs::new(2);
    drop(create(&fs).unwrap());
    fs.edit(Path::new(&file(1)), |bytes| {
        bytes.clear();
        bytes.extend_from_slice(&golden);
    });
    let (log, recovered) = open(&fs).unwrap();
    assert_eq!(all(&log), expected);
    assert_eq!((recovered.hard_state, recovered.anchor), (hard(3, 2, 3), anchor(3)));
}
