//! A transfer from a lender that is made of a list of pages, on a clock that moves on with each answer.

use std::sync::Arc;

use shoaldb_vfs::env::sim::{SimClock, SimFs, SimRng};
use shoaldb_vfs::env::{Clock, Env};
use shoaldb_vfs::mapfile::Checkpointed;
use shoaldb_vfs::page::{PageCount, PageSize};
use shoaldb_vfs::transaction::Position;

use super::*;
use crate::config::Config;
use crate::databases::Databases;
use crate::shared::Shared;
use crate::signal::Waiting;
use crate::types::{Incarnation, Term};

const APP: DatabaseId = DatabaseId(2);
const AT: EntryId = EntryId { index: LogIndex(9), term: Term(1) };
const SIZE: PageSize = PageSize::DEFAULT;
/// Twelve objects and a bit.
const PAGES: u32 = 12 * 512 + 40;

fn content(number: u32) -> Vec<u8> {
    (0..SIZE.len()).map(|at| (number as usize * 31 + at * 7) as u8).collect()
}

fn hash(number: u32) -> PageHash {
    PageHash::of(PageNo::new(number).unwrap(), &content(number))
}

fn hashes(range: u32) -> Vec<PageHash> {
    let (first, count) = object::pages_of(range, PageCount(PAGES)).unwrap();
    (first.get()..first.get() + count).map(hash).collect()
}

fn made(object: &Object) -> Vec<u8> {
    match object {
        Object::Ranges { first, count, .. } => {
            (*first..first + count).flat_map(|range| object::range_hash(&hashes(range)).to_le_bytes()).collect()
        }
        Object::Hashes { ranges, .. } => {
            ranges.iter().flat_map(|range| object::hashes_as_bytes(&hashes(*range))).collect()
        }
        Object::Pages { runs, .. } => {
            runs.iter().flat_map(|(first, count)| first.get()..first.get() + count).flat_map(content).collect()
        }
        Object::Manifest => panic!("one database has no manifest"),
    }
}

/// It is what the other node shows of this one, and an object that comes says nothing of what is in place here.
#[test]
fn whoever_fetches_tells_how_far_it_is_while_objects_come_all_the_time() {
    let clock = Arc::new(SimClock::default());
    let shared: Arc<dyn Clock> = clock.clone();
    let env = Env { fs: Arc::new(SimFs::new(1)), clock: shared.clone(), rng: Arc::new(SimRng::new(1)) };
    let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
    let (mailbox, _) = crossbeam_channel::unbounded();
    let waiting = Waiting { clock: shared, pump: None };
    let hub: Hub = Arc::new(Shared::new(NodeId(1), Incarnation(1), 7, Config::default(), waiting, mailbox, databases));
    let checksum = (1..=PAGES).map(hash).fold(PageHash::default(), PageHash::toggle);
    let at = Checkpointed { position: Position(9), size: PageCount(PAGES), checksum };
    let listed = Listed { id: APP, page_size: SIZE, at };
    let events = hub.events.listen();
    let (mut told, mut silent, mut last) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    const STEP: Duration = Duration::from_millis(400);
    let fetched = fetch_one(&hub, NodeId(2), (ViewId(1), AT), &listed, &mut |ask| {
        silent = silent.max(clock.now() - last);
        match ask {
            Ask::Fetch { object, .. } => {
                clock.advance(STEP);
                Ok(Answer::Object { bytes: made(object) })
            }
            Ask::Progress { done, total, .. } => {
                last = clock.now();
                told.push((*done, *total));
                Ok(Answer::Yes)
            }
            other => panic!("{other:?}"),
        }
    });
    let bytes = u64::from(PAGES) * u64::from(SIZE.bytes());
    assert!(fetched.unwrap().1 > bytes);
    assert!(silent <= REPORT_EVERY + 2 * STEP, "{silent:?} without a word: {told:?}");
    assert!(told.is_sorted() && told.iter().all(|(done, total)| *done <= bytes && *total == bytes), "{told:?}");
    assert!(told.len() > 3, "{told:?}");
    // Who listens here hears the same.
    let heard: Vec<_> = events
        .try_iter()
        .filter_map(|event| match event {
            Event::SnapshotProgress { peer: NodeId(2), index: LogIndex(9), receiving: true, done, total } => {
                Some((done, total))
            }
            _ => None,
        })
        .collect();
    assert_eq!(heard, told);
}
