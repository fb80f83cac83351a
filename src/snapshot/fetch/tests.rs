//! A transfer from a lender that is made of a list of pages, on a clock that moves on with each answer.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimClock, SimFs, SimRng};
use shoaldb_vfs::env::{Clock, Env};
use shoaldb_vfs::mapfile::Checkpointed;
use shoaldb_vfs::page::{PageCount, PageSize};
use shoaldb_vfs::transaction::{ChangedPage, Position, Transaction};

use super::super::ask::{Line, Source};
use super::*;
use crate::config::Config;
use crate::databases::{Damage, Databases};
use crate::found::format::FoundMessage;
use crate::net::{Calls, RequestError, Transport};
use crate::shared::Shared;
use crate::signal::{Pump, Waiting};
use crate::types::{Incarnation, Message, Term};

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
                (Err(Stop::Wrong(why)), Trouble::WrongPages) => assert!(why.contains("came wrong"), "{what}: {why}"),
                (Err(Stop::Lost(_)), Trouble::Silence | Trouble::Nonsense) | (Err(Stop::Again(_)), Trouble::Gone) => {}
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
/// that was lost. It was for so many questions, and one that makes an object in two milliseconds has two hundred in less than half a
/// second.
#[test]
fn one_that_is_busy_is_asked_again_soon_and_not_for_ever() {
    for (millis, pause) in [(0, 1), (2, 2), (50, 50), (999, 999), (u32::MAX, 1000)] {
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
        let pause = Duration::from_millis(pause);
        assert!(asked.windows(2).all(|two| two[1] - two[0] == pause), "{millis}: {asked:?}");
        let took = *asked.last().unwrap() - asked[0];
        assert!((BUSY_FOR..BUSY_FOR + pause).contains(&took), "{millis}: {took:?}");
    }
}

/// Each question has that time for itself, or no transfer that is slow would come to its end. The one for a view has
/// less: it was a minute, in which no other node was asked for one and nothing else was done by that thread.
#[test]
fn one_that_is_busy_for_a_while_each_time_is_not_given_up() {
    let clock = Arc::new(SimClock::default());
    let (hub, listed) = (hub(&clock), listed());
    let (mut since, mut all) = (None, 0);
    let mut until_served = |clock: &SimClock| {
        let now = clock.now();
        let served = now - *since.get_or_insert(now) >= BUSY_FOR - LONGEST_PAUSE;
        all += u32::from(served);
        if served {
            since = None;
        }
        served
    };
    let fetched = fetch_one(&hub, NodeId(2), (ViewId(1), AT), &listed, &mut |ask: &Ask| match ask {
        Ask::Fetch { object, .. } if until_served(&clock) => Ok(Answer::Object { bytes: made(object) }),
        Ask::Fetch { .. } => Ok(Answer::Busy { millis: 500 }),
        _ => Ok(Answer::Yes),
    });
    assert!(fetched.is_ok(), "{:?}", fetched.err());
    assert!(all > 3, "{all} objects");
    for (busy_for, opens) in [(OPEN_BUSY_FOR - LONGEST_PAUSE, true), (OPEN_BUSY_FOR + LONGEST_PAUSE, false)] {
        assert!(busy_for < Duration::from_secs(7), "{busy_for:?}");
        let begun = clock.now();
        let opened = open(&hub, LogIndex(1), &mut |_: &Ask| match clock.now() < begun + busy_for {
            true => Ok(Answer::Busy { millis: 50 }),
            false => Ok(Answer::Opened { view: ViewId(1), at: AT }),
        });
        assert_eq!(opened.is_ok(), opens, "{opened:?}");
    }
}

/// More objects than may be asked for at a time.
const MANY: Version<'_> = Version { pages: (AHEAD as u32 + 5) * PER_OBJECT, changed: &[] };

/// What came over the connections to a lender of [`MANY`] pages.
#[derive(Default)]
struct Traffic {
    /// Questions that were on their way at the same time, at the most.
    most: usize,
    asked: usize,
    answered: usize,
}

struct Wire(Arc<Mutex<Traffic>>, VecDeque<Vec<u8>>);

impl Calls for Wire {
    fn send(&mut self, body: &[u8]) -> Result<(), RequestError> {
        self.1.push_back(body.to_vec());
        let mut seen = self.0.lock();
        seen.asked += 1;
        seen.most = seen.most.max(self.1.len());
        Ok(())
    }

    fn receive(&mut self, _: Duration) -> Result<Vec<u8>, RequestError> {
        self.0.lock().answered += 1;
        let body = self.1.pop_front().expect("a question");
        Ok(match Ask::decode(&body).unwrap() {
            Ask::Fetch { object, .. } => Answer::Object { bytes: MANY.made(&object) },
            _ => Answer::Yes,
        }
        .encode())
    }
}

struct Net(Arc<Mutex<Traffic>>);

impl Transport for Net {
    fn send(&self, _: Message) {}
    fn send_found(&self, _: NodeId, _: FoundMessage) {}
    fn request(&self, _: NodeId, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, RequestError> {
        panic!("there are connections for that");
    }
    fn calls(&self, _: NodeId, _: Duration) -> Option<Result<Box<dyn Calls>, RequestError>> {
        Some(Ok(Box::new(Wire(self.0.clone(), VecDeque::new()))))
    }
    fn set_peer(&self, _: NodeId, _: &str) {}
    fn remove_peer(&self, _: NodeId) {}
    fn recheck(&self) {}
}

/// A transfer over a network with a long way there and back has as many questions on their way as there may be, and asks each of them
/// once. It would come to the same end with one at a time, only later, so nothing else notices.
#[test]
fn a_transfer_has_as_many_questions_on_their_way_as_there_may_be() {
    let (hub, listed) = (hub(&Arc::default()), MANY.listed(9));
    let seen = Arc::new(Mutex::new(Traffic::default()));
    let transport: Arc<dyn Transport> = Arc::new(Net(seen.clone()));
    hub.set_transport(&transport);
    let mut line = Line::new(&hub);
    let fetched = fetch_one(&hub, NodeId(2), (ViewId(1), AT), &listed, &mut Source(NodeId(2), &mut line));
    assert_eq!(fetched.map(|(files, _)| files.at()).ok(), Some(listed.at));
    let seen = seen.lock();
    // Before the pages, the hashes of ranges and of all their pages.
    let objects = 2 + MANY.pages.div_ceil(PER_OBJECT) as usize;
    assert_eq!((seen.most, seen.asked, seen.answered), (AHEAD, objects, objects));
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

/// A node that has a database as it was, but for some pages that rotted since.
fn hub_with_own_copy(fs: &SimFs, clock: &Arc<SimClock>, before: &Version<'_>, rotten: &[u32]) -> Hub {
    let hub = hub_on(fs, clock);
    let (own, _) = before.fetch(&hub, 8);
    let mut catalogue = crate::catalogue::Catalogue::new(crate::types::ClusterId(1));
    let name = crate::catalogue::DatabaseName::new("app").unwrap();
    catalogue.apply_create(LogIndex(APP.0), name, SIZE, crate::catalogue::AutoVacuum::None).unwrap();
    hub.databases.install(LogIndex(8), &catalogue, vec![(APP, own)], &[]).unwrap();
    for page in rotten {
        let at = (page - 1) as usize * SIZE.len() + 9;
        fs.edit(std::path::Path::new("/db/2-2.db"), |bytes| bytes[at] ^= 1);
    }
    hub
}

/// What the lender of everything says to each question: its view is of an entry before what is shown here.
fn lent(manifest: &Manifest) -> impl FnMut(&Ask) -> Result<Answer, String> {
    move |ask: &Ask| match ask {
        Ask::Open { .. } => Ok(Answer::Opened { view: ViewId(1), at: manifest.at }),
        Ask::Fetch { object: Object::Manifest, .. } => Ok(Answer::Object { bytes: manifest.encode() }),
        Ask::Fetch { object, .. } => panic!("{object:?} is here"),
        _ => Ok(Answer::Yes),
    }
}

/// A snapshot that is ahead of its log brought it, and the next one, from a node that knows less to be committed, is ahead of that
/// log, and behind what is shown. It was refused, for ever if that node needs just this one to know more.
#[test]
fn what_a_snapshot_brought_is_kept_although_the_next_one_has_less_of_it() {
    let before = Version { pages: 70, changed: &[] };
    let catalogue = |hub: &Hub| hub.catalogue.lock().clone().unwrap();
    let begun = |fs: &SimFs| {
        let hub = hub_with_own_copy(fs, &Arc::default(), &before, &[]);
        let mut known = crate::catalogue::Catalogue::new(crate::types::ClusterId(1));
        let name = crate::catalogue::DatabaseName::new("app").unwrap();
        known.apply_create(LogIndex(APP.0), name, SIZE, crate::catalogue::AutoVacuum::None).unwrap();
        hub.begin(known, EntryId { index: LogIndex(4), term: Term(1) });
        hub.set_reach(LogIndex(8));
        hub
    };
    let manifest = |hub: &Hub| Manifest {
        at: EntryId { index: LogIndex(7), term: Term(1) },
        reach: LogIndex(7),
        membership: crate::types::Membership { voters: vec![NodeId(1), NodeId(2)], ..Default::default() },
        catalogue: catalogue(hub),
        databases: vec![Version { pages: 69, changed: &[3] }.listed(6)],
    };

    let hub = begun(&SimFs::new(1));
    let staged = fetch(&hub, NodeId(2), &mut lent(&manifest(&hub))).unwrap();
    assert_eq!(staged.manifest.databases, [before.listed(8)]);
    assert_eq!((staged.files.len(), staged.manifest.at.index, staged.manifest.reach), (0, LogIndex(7), LogIndex(8)));

    // It knew that the database is dropped by then.
    let hub = begun(&SimFs::new(1));
    hub.databases.install(LogIndex(4), &catalogue(&hub), Vec::new(), &[APP]).unwrap();
    let staged = fetch(&hub, NodeId(2), &mut lent(&manifest(&hub))).unwrap();
    assert_eq!((staged.manifest.gone(), staged.manifest.reach), (vec![APP], LogIndex(8)));

    // It is found to be rotten before its turn comes: nobody else has that state of it.
    let hub = begun(&SimFs::new(1));
    let (first, mut more) = (Version { pages: 3, changed: &[] }, manifest(&hub));
    more.catalogue = crate::catalogue::Catalogue::new(crate::types::ClusterId(1));
    for (id, name) in [(LogIndex(1), "first"), (LogIndex(APP.0), "app")] {
        let name = crate::catalogue::DatabaseName::new(name).unwrap();
        more.catalogue.apply_create(id, name, SIZE, crate::catalogue::AutoVacuum::None).unwrap();
    }
    more.databases.insert(0, Listed { id: DatabaseId(1), ..first.listed(5) });
    let mut says = lent(&more);
    let again = fetch(&hub, NodeId(2), &mut |ask: &Ask| match ask {
        Ask::Fetch { object, .. } if *object != Object::Manifest => {
            hub.databases.convict(APP, Damage::Rotten, "a test wants it".to_string());
            Ok(Answer::Object { bytes: first.made(object) })
        }
        _ => says(ask),
    });
    assert!(matches!(&again, Err(Stop::Again(why)) if why.contains("is not here any more")), "{:?}", again.err());

    // What the log brought would not come again.
    let hub = begun(&SimFs::new(1));
    let db = hub.databases.get(APP).unwrap();
    let (number, image) = (PageNo::new(2).unwrap(), content(99));
    let hash = PageHash::of(number, &image);
    let transaction = Transaction {
        base: Position(8),
        page_size: SIZE,
        size_after: PageCount(70),
        checksum_after: before.listed(8).at.checksum.toggle(before.hash(2)).toggle(hash),
        pages: vec![ChangedPage { number, image: image.into(), hash }],
    };
    db.apply(&transaction, Position(9)).unwrap();
    let refused = fetch(&hub, NodeId(2), &mut lent(&manifest(&hub)));
    assert!(
        matches!(&refused, Err(Stop::Again(why)) if why.contains("further by the log here")),
        "{:?}",
        refused.err()
    );
}

/// A rotten page of the own copy is found while that is compared, and then the whole database is found to be damaged, at whatever
/// moment of the transfer. That is told and repaired as anywhere else; for the transfer it is a page that differs. It used to close the
/// view that the transfer compares with, which ended it, and the disk of the new files was blamed.
#[test]
fn a_rotten_page_of_the_own_copy_is_fetched_like_one_that_differs_whenever_it_is_noticed() {
    // Of four ranges the first has a rotten page, the third one that changed, the others are as they were.
    const NOW: u32 = 202;
    let mut asked_in_all = usize::MAX;
    let mut noticed_at = 0;
    while noticed_at < asked_in_all {
        let (fs, clock) = (SimFs::new(1), Arc::new(SimClock::default()));
        let hub = hub_with_own_copy(&fs, &clock, &Version { pages: NOW, changed: &[] }, &[10]);
        let now = Version { pages: NOW, changed: &[150] };
        let (mut pages, mut asked, mut convicted) = (Vec::new(), 0, 0);
        let fetched = fetch_one(&hub, NodeId(2), (ViewId(1), AT), &now.listed(9), &mut |ask: &Ask| {
            // So that there are words in between, also while all pages are compared at the end.
            clock.advance(REPORT_EVERY);
            if asked == noticed_at {
                convicted += u32::from(hub.databases.convict(APP, Damage::Rotten, "a test wants it".to_string()));
            }
            asked += 1;
            let Ask::Fetch { object, .. } = ask else { return Ok(Answer::Yes) };
            if let Object::Pages { runs, .. } = object {
                pages.extend(runs.iter().flat_map(|(first, count)| first.get()..first.get() + count));
            }
            Ok(Answer::Object { bytes: now.made(object) })
        });
        assert_eq!(fetched.map(|(files, _)| files.at()), Ok(now.listed(9).at), "noticed at question {noticed_at}");
        assert_eq!((pages, convicted), (vec![10, 150], 1), "noticed at question {noticed_at}");
        // Whoever looks after the database finds out from the look that the transfer took.
        let db = hub.databases.get(APP).unwrap();
        assert_eq!(db.status().rotten, [PageNo::new(10).unwrap()]);
        (asked_in_all, noticed_at) = (asked, noticed_at + 1);
    }
    assert!(asked_in_all > 6, "{asked_in_all} questions, of which some come while all pages are compared");
}

/// The own copy may be seen no longer, as when its WAL has too much that waits for a checkpoint. Ranges that are the same there have
/// their hashes there only. That is no fault of the disk that the new files are on, which was blamed; another attempt looks again.
#[test]
fn when_the_own_copy_is_seen_no_longer_the_disk_of_the_new_files_is_not_blamed() {
    const NOW: u32 = 202;
    let (fs, clock) = (SimFs::new(1), Arc::new(SimClock::default()));
    let hub = hub_with_own_copy(&fs, &clock, &Version { pages: NOW, changed: &[] }, &[]);
    let now = Version { pages: NOW, changed: &[150] };
    for what in ["closed", "not read", "read"] {
        let fetched = fetch_one(&hub, NodeId(2), (ViewId(1), AT), &now.listed(9), &mut |ask: &Ask| {
            clock.advance(REPORT_EVERY);
            match ask {
                Ask::Fetch { object, .. } => return Ok(Answer::Object { bytes: now.made(object) }),
                Ask::Progress { phase: Phase::Verify, .. } if what == "closed" => {
                    _ = hub.databases.get(APP).unwrap().close_views()
                }
                Ask::Progress { phase: Phase::Verify, .. } if what == "not read" => {
                    fs.fail_at(Aim::At("map.read"), 1, Lasts::ForGood, Failure::EIO)
                }
                _ => {}
            }
            Ok(Answer::Yes)
        });
        fs.clear_faults();
        match fetched {
            Err(Stop::Again(why)) => assert!(what == "closed" && why.contains("the own copy"), "{what}: {why}"),
            // People are told of a disk that does not read; nobody was, and it was tried again at once.
            Err(Stop::GivenUp(why)) => assert!(what == "not read" && why.contains("the own copy"), "{what}: {why}"),
            fetched => assert_eq!((fetched.map(|(files, _)| files.at()), what), (Ok(now.listed(9).at), "read")),
        }
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
        let hub = hub_with_own_copy(&fs, &Arc::default(), &Version { pages: before, changed: &[] }, rotten);
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
    assert_eq!((stop, came.len()), (Err(Stop::Again("the view is closed".to_string())), 5 * PER_OBJECT as usize));
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

/// Files of all databases are open twice until the snapshot counts, and a limit that was enough before is not then. People were told
/// what happened, and not what to do.
#[test]
fn who_has_no_descriptors_for_new_files_is_told_to_raise_the_limit() {
    for label in ["stage.begin", "stage.map"] {
        let (fs, clock) = (SimFs::new(1), Arc::default());
        let (hub, listed) = (hub_on(&fs, &clock), listed());
        let fetch = || {
            fetch_one(&hub, NodeId(2), (ViewId(1), AT), &listed, &mut |ask: &Ask| match ask {
                Ask::Fetch { object, .. } => Ok(Answer::Object { bytes: made(object) }),
                _ => Ok(Answer::Yes),
            })
        };
        fs.fail_at(Aim::At(label), 1, Lasts::ForGood, Failure::EMFILE);
        let Err(Stop::GivenUp(why)) = fetch().map(drop) else { panic!("{label}") };
        assert!(why.contains("oo many open files") && why.contains("`ulimit -n`"), "{label}: {why}");
        fs.clear_faults();
        fetch().unwrap();
    }
}
