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
use crate::signal::{Pump, Waiting};
use crate::types::{Incarnation, Term};

const APP: DatabaseId = DatabaseId(2);
const AT: EntryId = EntryId { index: LogIndex(9), term: Term(1) };
const SIZE: PageSize = PageSize::DEFAULT;
/// Twelve objects and a bit.
const PAGES: u32 = 12 * PER_OBJECT + 40;
const PER_OBJECT: u32 = (object::ASKED_BYTES / SIZE.len()) as u32;

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

/// Waiting is time that passes.
struct Millis(Arc<SimClock>);

impl Pump for Millis {
    fn step(&self) {
        self.0.advance(Duration::from_millis(1));
    }
}

fn hub(clock: &Arc<SimClock>) -> Hub {
    hub_on(&SimFs::new(1), clock)
}

fn hub_on(fs: &SimFs, clock: &Arc<SimClock>) -> Hub {
    let shared: Arc<dyn Clock> = clock.clone();
    let env = Env { fs: Arc::new(fs.clone()), clock: shared.clone(), rng: Arc::new(SimRng::new(1)) };
    let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
    let (mailbox, _) = crossbeam_channel::unbounded();
    let waiting = Waiting { clock: shared, pump: Some(Arc::new(Millis(clock.clone()))) };
    Arc::new(Shared::new(NodeId(1), Incarnation(1), 7, Config::default(), waiting, mailbox, databases))
}

fn listed() -> Listed {
    let checksum = (1..=PAGES).map(hash).fold(PageHash::default(), PageHash::toggle);
    let at = Checkpointed { position: Position(9), size: PageCount(PAGES), checksum };
    Listed { id: APP, page_size: SIZE, at }
}

/// What goes wrong with one question, so many times.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Silence,
    Nonsense,
    WrongPages,
    Gone,
}

/// Every object may be asked for again, the last one, too. One that does not come ends the attempt; the next one, of another view,
/// asks for no page again that came before.
#[test]
fn any_object_may_fail_and_what_came_before_it_is_not_fetched_again() {
    const OBJECTS: usize = 2 + PAGES.div_ceil(PER_OBJECT) as usize;
    for (which, forgets) in [0, 1, 2, 7, OBJECTS - 1].into_iter().flat_map(|which| [(which, false), (which, true)]) {
        for (trouble, times, ends) in [
            (Trouble::Silence, TRIES - 1, false),
            (Trouble::Silence, TRIES, true),
            (Trouble::Nonsense, TRIES - 1, false),
            (Trouble::Nonsense, TRIES, true),
            (Trouble::WrongPages, TRIES - 1, false),
            (Trouble::WrongPages, TRIES, true),
            (Trouble::Gone, 1, true),
        ] {
            if matches!(trouble, Trouble::WrongPages) && which < 2 {
                continue;
            }
            let what = format!("object {which}, {trouble:?} {times} times, in another process then: {forgets}");
            let (hub, listed) = (hub(&Arc::default()), listed());
            let mut left = times;
            let (mut objects, mut before, mut after) = (Vec::<Object>::new(), 0, 0);
            let mut fetch = |view: u64, pages: &mut u32| {
                fetch_one(&hub, NodeId(2), (ViewId(view), AT), &listed, &mut |ask: &Ask| {
                    let Ask::Fetch { view: of, object } = ask else { return Ok(Answer::Yes) };
                    assert_eq!(of.0, view, "{what}");
                    if objects.last() != Some(object) {
                        objects.push(object.clone());
                    }
                    let mut bytes = made(object);
                    if objects.len() == which + 1 && left > 0 {
                        left -= 1;
                        match trouble {
                            Trouble::Silence => return Err("no answer".to_string()),
                            Trouble::Nonsense => return Ok(Answer::NotNeeded),
                            Trouble::WrongPages => bytes[4096 * 3 + 7] ^= 1,
                            Trouble::Gone => return Ok(Answer::Gone),
                        }
                    } else if matches!(object, Object::Pages { .. }) {
                        *pages += (bytes.len() / SIZE.len()) as u32;
                    }
                    Ok(Answer::Object { bytes })
                })
            };
            let first = fetch(1, &mut before);
            assert_eq!(first.is_err(), ends, "{what}: {:?}", first.err());
            match (first, trouble) {
                (Ok((files, _)), _) => assert_eq!(files.at(), listed.at, "{what}"),
                (Err(Stop::GivenUp(why)), Trouble::WrongPages) => assert!(why.contains("came wrong"), "{what}: {why}"),
                (Err(Stop::Lost(_)), Trouble::Silence | Trouble::Nonsense | Trouble::Gone) => {}
                (Err(other), _) => panic!("{what}: {other:?}"),
            }
            if ends {
                if forgets {
                    hub.snapshots.parts.lock().clear();
                }
                let (files, _) = fetch(2, &mut after).unwrap();
                assert_eq!(files.at(), listed.at, "{what}");
            }
            assert_eq!(before + after, PAGES, "{what}: {before} pages and then {after}");
        }
    }
}

/// It is what the other node shows of this one, and an object that comes says nothing of what is in place here.
#[test]
fn whoever_fetches_tells_how_far_it_is_while_objects_come_all_the_time() {
    let clock = Arc::new(SimClock::default());
    let (hub, listed) = (hub(&clock), listed());
    let events = hub.events.listen();
    let (mut told, mut silent, mut last) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    const STEP: Duration = Duration::from_millis(400);
    let fetched = fetch_one(&hub, NodeId(2), (ViewId(1), AT), &listed, &mut |ask: &Ask| {
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

/// It asks again as soon as it was told to, or after a second, and for some time; then another view is opened for it, as for one
/// that was lost.
#[test]
fn one_that_is_busy_is_asked_again_soon_and_not_for_ever() {
    for (millis, pause) in [(2, 2), (50, 50), (999, 999), (u32::MAX, 1000)] {
        let clock = Arc::new(SimClock::default());
        let (hub, listed) = (hub(&clock), listed());
        let mut asked = Vec::new();
        let stop = fetch_one(&hub, NodeId(2), (ViewId(1), AT), &listed, &mut |ask: &Ask| {
            if matches!(ask, Ask::Fetch { .. }) {
                asked.push(clock.now());
            }
            Ok(Answer::Busy { millis })
        });
        assert_eq!(stop.err(), Some(Stop::Lost("it is busy all the time".to_string())));
        assert_eq!(asked.len(), BUSY_TRIES);
        let pause = Duration::from_millis(pause);
        assert!(asked.windows(2).all(|two| two[1] - two[0] == pause), "{millis}: {asked:?}");
    }
}

/// A database of so many pages, some of which are not what they were before.
struct Version<'a> {
    pages: u32,
    changed: &'a [u32],
}

impl Version<'_> {
    fn page(&self, number: u32) -> Vec<u8> {
        let mut page = content(number);
        page[5] ^= u8::from(self.changed.contains(&number));
        page
    }

    fn hash(&self, number: u32) -> PageHash {
        PageHash::of(PageNo::new(number).unwrap(), &self.page(number))
    }

    fn hashes(&self, range: u32) -> Vec<PageHash> {
        let (first, count) = object::pages_of(range, PageCount(self.pages)).unwrap();
        (first.get()..first.get() + count).map(|number| self.hash(number)).collect()
    }

    fn listed(&self, position: u64) -> Listed {
        let checksum = (1..=self.pages).map(|number| self.hash(number)).fold(PageHash::default(), PageHash::toggle);
        let at = Checkpointed { position: Position(position), size: PageCount(self.pages), checksum };
        Listed { id: APP, page_size: SIZE, at }
    }

    fn made(&self, object: &Object) -> Vec<u8> {
        match object {
            Object::Ranges { first, count, .. } => {
                let hash = |range| object::range_hash(&self.hashes(range)).to_le_bytes();
                (*first..first + count).flat_map(hash).collect()
            }
            Object::Hashes { ranges, .. } => {
                ranges.iter().flat_map(|range| object::hashes_as_bytes(&self.hashes(*range))).collect()
            }
            Object::Pages { runs, .. } => {
                let pages = runs.iter().flat_map(|(first, count)| first.get()..first.get() + count);
                pages.flat_map(|number| self.page(number)).collect()
            }
            Object::Manifest => panic!("one database has no manifest"),
        }
    }

    /// Fetches it; the pages that were asked for, in that order.
    fn fetch(&self, hub: &Hub, position: u64) -> (DatabaseFiles, Vec<u32>) {
        let mut asked = Vec::new();
        let fetched = fetch_one(hub, NodeId(2), (ViewId(1), AT), &self.listed(position), &mut |ask: &Ask| {
            let Ask::Fetch { object, .. } = ask else { return Ok(Answer::Yes) };
            if let Object::Pages { runs, .. } = object {
                asked.extend(runs.iter().flat_map(|(first, count)| first.get()..first.get() + count));
            }
            Ok(Answer::Object { bytes: self.made(object) })
        });
        (fetched.unwrap().0, asked)
    }
}

/// What is whole of the own copy is copied from there, each run of neighbours with one write, and no other page is asked for:
/// where pages changed at either end of a range, alone and side by side, where the database grew, and where a page of the own
/// copy rotted, which costs that one only.
#[test]
fn pages_that_are_here_are_copied_in_runs_and_no_other_one_is_asked_for() {
    // Three ranges and a bit.
    const NOW: u32 = 202;
    let all_of_first: Vec<u32> = (1..=64).collect();
    // How many pages there were, which changed since, which rotted here, and with how many writes the new file is made: one for
    // each range that is the same, for each run that is copied, and for each run that comes, in as many objects as it needs.
    for (before, changed, rotten, writes) in [
        (NOW, &[][..], &[][..], 4),
        (NOW, &[1], &[], 3 + 1 + 1),
        (NOW, &[64], &[], 3 + 1 + 1),
        (NOW, &[1, 64], &[], 3 + 1 + 2),
        (NOW, &[64, 65], &[], 2 + 2 + 1),
        (NOW, &[30, 31, 32], &[], 3 + 2 + 1),
        (NOW, &[2, 4], &[], 3 + 3 + 2),
        (NOW, &[NOW], &[], 3 + 1 + 1),
        (NOW, &all_of_first, &[], 3 + 1),
        (150, &[], &[], 2 + 1 + 1),
        (128, &[], &[], 2 + 2),
        (129, &[], &[], 2 + 1 + 2),
        // What is around a rotten page is copied page by page.
        (NOW, &[20], &[10], 3 + (18 + 1) + 2),
        (NOW, &[], &[70], 3 + 63 + 1),
    ] {
        let what = format!("{before} pages, changed {changed:?}, rotten {rotten:?}");
        let fs = SimFs::new(1);
        let hub = hub_on(&fs, &Arc::default());
        let (own, _) = Version { pages: before, changed: &[] }.fetch(&hub, 8);
        let mut catalogue = crate::catalogue::Catalogue::new(crate::types::ClusterId(1));
        let name = crate::catalogue::DatabaseName::new("app").unwrap();
        catalogue.apply_create(LogIndex(APP.0), name, SIZE, crate::catalogue::AutoVacuum::None).unwrap();
        hub.databases.install(LogIndex(8), &catalogue, vec![(APP, own)], &[]).unwrap();
        for page in rotten {
            let at = (page - 1) as usize * SIZE.len() + 9;
            fs.edit(std::path::Path::new("/db/2-2.db"), |bytes| bytes[at] ^= 1);
        }

        let now = Version { pages: NOW, changed };
        let before_it = fs.count("stage.write");
        let (files, asked) = now.fetch(&hub, 9);
        let mut lacking: Vec<u32> = changed.iter().chain(rotten).copied().chain(before + 1..=NOW).collect();
        lacking.sort_unstable();
        assert_eq!(asked, lacking, "{what}");
        assert_eq!(fs.count("stage.write") - before_it, writes, "{what}");
        assert_eq!(files.at(), now.listed(9).at, "{what}");
        let made = fs.peek(std::path::Path::new("/db/2-3.db")).unwrap();
        assert!(made == (1..=NOW).flat_map(|number| now.page(number)).collect::<Vec<_>>(), "{what}");
    }
}

/// One attempt at a version of the database that ends before the question `ends_at`, if it comes to it; the pages that were asked
/// for, and how often the new file was read meanwhile, before its end.
fn attempt(
    hub: &Hub,
    fs: &SimFs,
    version: &Version<'_>,
    position: u64,
    ends_at: usize,
) -> (Result<(), Stop>, Vec<u32>, u64) {
    let (mut asked, mut pages, reads) = (0, Vec::new(), fs.count("stage.read"));
    let fetched = fetch_one(hub, NodeId(2), (ViewId(position), AT), &version.listed(position), &mut |ask: &Ask| {
        let Ask::Fetch { object, .. } = ask else { return Ok(Answer::Yes) };
        asked += 1;
        if asked == ends_at {
            return Ok(Answer::Gone);
        }
        if let Object::Pages { runs, .. } = object {
            pages.extend(runs.iter().flat_map(|(first, count)| first.get()..first.get() + count));
        }
        Ok(Answer::Object { bytes: version.made(object) })
    });
    (fetched.map(|_| ()), pages, fs.count("stage.read") - reads)
}

/// Writers who fill what a view may keep of the WAL close it in the middle of a transfer, again and again. Each round cost as much
/// as all of the database then, whatever had come before, and a large one never came to its end.
#[test]
fn a_round_costs_what_changed_since_the_one_before() {
    let (pages, fs) = (8 * PER_OBJECT, SimFs::new(1));
    let hub = hub_on(&fs, &Arc::default());
    let first = Version { pages, changed: &[] };
    // Ranges, hashes, five objects with pages; the view is gone before the sixth.
    let (stop, came, _) = attempt(&hub, &fs, &first, 9, 8);
    assert_eq!((stop, came.len()), (Err(Stop::Lost("the view is closed".to_string())), 5 * PER_OBJECT as usize));
    // Of what came two pages changed.
    let second = Version { pages, changed: &[7, 100] };
    let wanted: Vec<u32> = [7, 100].into_iter().chain(5 * PER_OBJECT + 1..=pages).collect();
    let (done, came, reads) = attempt(&hub, &fs, &second, 12, usize::MAX);
    assert_eq!((done, came, reads), (Ok(()), wanted, 0));
}

/// The same in another process, which has to look.
#[test]
fn what_nobody_remembers_is_known_by_its_bytes() {
    let (pages, fs) = (512, SimFs::new(1));
    let hub = hub_on(&fs, &Arc::default());
    let version = Version { pages, changed: &[] };
    assert!(attempt(&hub, &fs, &version, 9, 3).0.is_err());
    assert_eq!(attempt(&hub, &fs, &version, 9, usize::MAX).1.len() as u32, pages);
    let hub = hub_on(&fs, &Arc::default());
    let (done, came, reads) = attempt(&hub, &fs, &version, 9, usize::MAX);
    assert_eq!((done, came, reads), (Ok(()), vec![], u64::from(pages)));
}

/// The new file is not as it was left: that is found at the end, and the attempt after that looks at every page.
#[test]
fn what_is_remembered_of_a_file_that_changed_is_forgotten() {
    let (pages, fs) = (8 * 512, SimFs::new(1));
    let hub = hub_on(&fs, &Arc::default());
    let version = Version { pages, changed: &[] };
    assert!(attempt(&hub, &fs, &version, 9, 8).0.is_err());
    fs.edit(std::path::Path::new("/db/2-2.part"), |bytes| bytes[4096 * 6 + 9] ^= 1);
    let (stop, ..) = attempt(&hub, &fs, &version, 9, usize::MAX);
    assert!(matches!(&stop, Err(Stop::GivenUp(why)) if why.contains("page 7 is not what its hash says")), "{stop:?}");
    assert_eq!(attempt(&hub, &fs, &version, 9, usize::MAX).1, [7]);
}

/// One attempt from a node that answers everything; `compared` answers the words that are said while pages are compared, of which
/// the next one is due at once. How often it was called.
fn attempt_until_compared(hub: &Hub, clock: &SimClock, compared: &dyn Fn() -> Answer) -> (Result<(), Stop>, u32) {
    let mut told = 0;
    let fetched = fetch_one(hub, NodeId(2), (ViewId(1), AT), &listed(), &mut |ask: &Ask| {
        clock.advance(REPORT_EVERY);
        match ask {
            Ask::Fetch { object, .. } => Ok(Answer::Object { bytes: made(object) }),
            Ask::Progress { phase: Phase::Verify, .. } => {
                told += 1;
                Ok(compared())
            }
            Ask::Progress { .. } => Ok(Answer::Yes),
            other => panic!("{other:?}"),
        }
    });
    (fetched.map(|_| ()), told)
}

/// When every page is in place the other node is not needed any more; it used to be asked whether its view was still there, and
/// all began anew if it was not.
#[test]
fn a_view_that_is_closed_while_pages_are_compared_is_not_missed() {
    let clock = Arc::new(SimClock::default());
    let (done, told) = attempt_until_compared(&hub(&clock), &clock, &|| Answer::Gone);
    assert_eq!(done, Ok(()));
    assert!(told > 1, "{told}");
}

/// Comparing takes as long as reading all of it.
#[test]
fn a_node_that_ends_does_not_compare_all_pages_before() {
    let clock = Arc::new(SimClock::default());
    let hub = hub(&clock);
    let ended = attempt_until_compared(&hub, &clock, &|| {
        hub.stop();
        Answer::Yes
    });
    assert_eq!(ended, (Err(Stop::GivenUp(STOPPED.to_string())), 1));
}
