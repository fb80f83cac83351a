use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;

use shoaldb_vfs::Database;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimClock, SimFs, SimRng};
use shoaldb_vfs::env::{Clock, DirLock, Env, File, Fs, Label, Open, Scratch};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::mapfile::Checkpointed;
use shoaldb_vfs::page::{PageCount, PageHash, PageSize};
use shoaldb_vfs::transaction::Position;

use super::super::object::{Manifest, Object};
use super::*;
use crate::catalogue::{AutoVacuum, Catalogue, DatabaseInfo, DatabaseName};
use crate::config::Config;
use crate::databases::Databases;
use crate::raft::CoreStatus;
use crate::shared::Shared;
use crate::signal::Waiting;
use crate::types::{ClusterId, Incarnation, Term};

const APP: DatabaseId = DatabaseId(2);
const AT: Position = Position(2);
const RIGHT: PageHash = PageHash(77);
const WRONG: PageHash = PageHash(78);

/// A node of three whose copy of `app` is damaged.
struct Bench {
    hub: Hub,
    clock: Arc<SimClock>,
    repairs: Repairs,
    db: Arc<Database>,
}

/// A disk that has room for so many bytes more.
#[derive(Debug)]
struct Small(SimFs, u64);

impl Fs for Small {
    fn open(&self, path: &Path, how: Open, label: Label) -> io::Result<Arc<dyn File>> {
        self.0.open(path, how, label)
    }

    fn rename(&self, from: &Path, to: &Path, label: Label) -> io::Result<()> {
        self.0.rename(from, to, label)
    }

    fn remove(&self, path: &Path, label: Label) -> io::Result<()> {
        self.0.remove(path, label)
    }

    fn create_dir_all(&self, path: &Path, label: Label) -> io::Result<()> {
        self.0.create_dir_all(path, label)
    }

    fn list(&self, dir: &Path, label: Label) -> io::Result<Vec<String>> {
        self.0.list(dir, label)
    }

    fn sync_dir(&self, dir: &Path, label: Label) -> io::Result<()> {
        self.0.sync_dir(dir, label)
    }

    fn lock_dir(&self, dir: &Path, label: Label) -> io::Result<Box<dyn DirLock>> {
        self.0.lock_dir(dir, label)
    }

    fn scratch(&self, dir: &Path, piece: usize, label: Label) -> io::Result<Arc<dyn Scratch>> {
        self.0.scratch(dir, piece, label)
    }

    fn room(&self, _: &Path, _: Label) -> io::Result<Option<u64>> {
        Ok(Some(self.1))
    }
}

/// What the others say: their checksum, if they answer.
type Others = [(u16, Option<PageHash>); 2];

impl Bench {
    fn new(damage: Damage, voters: &[u16]) -> Bench {
        Bench::on(Arc::new(SimFs::new(1)), damage, voters)
    }

    fn on(fs: Arc<dyn Fs>, damage: Damage, voters: &[u16]) -> Bench {
        let clock = Arc::new(SimClock::default());
        let shared: Arc<dyn Clock> = clock.clone();
        let env = Env { fs, clock: shared.clone(), rng: Arc::new(SimRng::new(1)) };
        let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
        let name = DatabaseName::new("app").unwrap();
        let info = DatabaseInfo { name, page_size: PageSize::DEFAULT, auto_vacuum: AutoVacuum::None };
        databases.bind(APP, &info).unwrap();
        let (mailbox, _) = crossbeam_channel::unbounded();
        let waiting = Waiting { clock: shared, pump: None };
        let hub: Hub =
            Arc::new(Shared::new(NodeId(1), Incarnation(1), 7, Config::default(), waiting, mailbox, databases));
        let at = EntryId { index: LogIndex(2), term: Term(1) };
        hub.begin(Catalogue::new(ClusterId(1)), at);
        let membership = Membership { voters: voters.iter().map(|id| NodeId(*id)).collect(), ..Membership::default() };
        *hub.core_status.lock() = Some(CoreStatus::of_follower(at, NodeId(3), membership));
        let db = hub.databases.get(APP).unwrap();
        assert!(hub.databases.convict(APP, damage, "a test wants it".to_string()));
        Bench { hub, clock, repairs: Repairs::default(), db }
    }

    /// One step; who was asked for pages.
    fn step(&mut self, lends: PageHash, others: Others) -> Vec<NodeId> {
        let fetched = RefCell::new(Vec::new());
        let of = |node: NodeId| others.iter().find(|(id, _)| *id == node.0).and_then(|(_, sum)| *sum);
        self.repairs.step(&self.hub, &mut |node: NodeId, ask: &Ask| match ask {
            Ask::OpenOne { database, .. } => {
                let at = EntryId { index: LogIndex(2), term: Term(1) };
                let state = Checkpointed { position: AT, size: PageCount(1), checksum: lends };
                let listed = Listed { id: *database, page_size: PageSize::DEFAULT, at: state };
                Ok(Answer::OpenedOne { view: ViewId(u64::from(node.0)), at, listed })
            }
            Ask::Sum { at, .. } => match of(node) {
                Some(checksum) => Ok(Answer::Sum { position: *at, checksum }),
                None => Err("no answer".to_string()),
            },
            Ask::Fetch { .. } => {
                fetched.borrow_mut().push(node);
                Err("no pages in this test".to_string())
            }
            _ => Ok(Answer::Yes),
        });
        fetched.into_inner()
    }
}

/// Shows INV-39.
#[test]
fn nobody_is_believed_with_whom_no_majority_agrees() {
    let mut bench = Bench::new(Damage::Diverged, &[1, 2, 3]);
    // Node 2 lends first, node 3 leads and has something else: one against one, and the own books do not count.
    assert!(bench.step(WRONG, [(2, None), (3, Some(RIGHT))]).is_empty());
    let alarms = bench.hub.findings.lock().alarms.clone();
    assert!(alarms.values().any(|alarm| alarm.contains("no majority has what node 2 has")), "{alarms:?}");
    // The next lender is node 3, after a while: the same.
    assert!(bench.step(RIGHT, [(2, Some(WRONG)), (3, None)]).is_empty());
    bench.clock.advance(PAUSE);
    assert!(bench.step(RIGHT, [(2, Some(WRONG)), (3, None)]).is_empty());
    // Two of three agree: pages are fetched, whoever lends.
    for lender in [2, 3] {
        bench.clock.advance(PAUSE);
        let fetched = bench.step(RIGHT, [(2, Some(RIGHT)), (3, Some(RIGHT))]);
        assert!(!fetched.is_empty() && fetched.iter().all(|node| node.0 == lender), "{fetched:?}");
    }
    assert_eq!(bench.db.retired(), Some(Refusal::Damaged));
}

#[test]
fn who_does_not_answer_is_asked_again_and_not_for_ever() {
    let mut bench = Bench::new(Damage::Unopened, &[1, 2, 3]);
    for _ in 0..3 {
        assert!(bench.step(RIGHT, [(2, None), (3, None)]).is_empty());
    }
    assert!(bench.hub.findings.lock().alarms.is_empty(), "it may still come");
    assert!(!bench.step(RIGHT, [(2, None), (3, Some(RIGHT))]).is_empty());
    bench.clock.advance(PAUSE);
    assert!(bench.step(RIGHT, [(2, None), (3, None)]).is_empty());
    bench.clock.advance(AGREE_WITHIN);
    assert!(bench.step(RIGHT, [(2, None), (3, None)]).is_empty());
    assert!(!bench.hub.findings.lock().alarms.is_empty());
}

/// The first lender never came to the entry that was asked for, which went along with what was applied here, and nobody else was
/// ever asked.
#[test]
fn a_lender_that_is_busy_for_ever_is_passed_over_and_the_next_one_is_asked_for_what_was_wanted_at_first() {
    let mut bench = Bench::new(Damage::Diverged, &[1, 2, 3]);
    let first = bench.hub.applied();
    let (mut asked, mut lent) = (0, false);
    for step in 1..=100_u64 {
        // Writers do not pause.
        bench.hub.set_applied(EntryId { index: LogIndex(first.index.0 + step), term: first.term }, None);
        bench.repairs.step(&bench.hub, &mut |node: NodeId, ask: &Ask| match ask {
            Ask::OpenOne { database, beyond } => {
                assert_eq!(*beyond, first.index.next(), "step {step}");
                if node == NodeId(2) {
                    asked += 1;
                    return Ok(Answer::Busy { millis: 50 });
                }
                lent = true;
                let at = EntryId { index: *beyond, term: first.term };
                let state = Checkpointed { position: AT, size: PageCount(1), checksum: RIGHT };
                let listed = Listed { id: *database, page_size: PageSize::DEFAULT, at: state };
                Ok(Answer::OpenedOne { view: ViewId(1), at, listed })
            }
            _ => Err("no answer".to_string()),
        });
        if lent {
            break;
        }
        bench.clock.advance(PAUSE / 10);
    }
    assert!(lent && asked == 1 + BUSY_FOR.as_millis() / (PAUSE / 10).as_millis(), "{asked}");
    let alarms = bench.hub.findings.lock().alarms.clone();
    assert!(alarms.values().any(|alarm| alarm.contains("node 2: it is busy")), "{alarms:?}");
}

/// Also the only one there is.
#[test]
fn lenders_that_are_busy_are_asked_in_turn_without_end() {
    for (voters, all) in [(&[1, 2, 3][..], 2), (&[1, 2][..], 1)] {
        let mut bench = Bench::new(Damage::Diverged, voters);
        let mut turns: Vec<NodeId> = Vec::new();
        for _ in 0..10 * BUSY_FOR.as_secs() {
            bench.repairs.step(&bench.hub, &mut |node: NodeId, ask: &Ask| {
                assert!(matches!(ask, Ask::OpenOne { .. }), "{ask:?}");
                if turns.last() != Some(&node) {
                    turns.push(node);
                }
                Ok(Answer::Busy { millis: 50 })
            });
            bench.clock.advance(PAUSE);
        }
        let wanted: Vec<NodeId> = [NodeId(2), NodeId(3)].into_iter().take(all).cycle().take(turns.len()).collect();
        assert_eq!(turns, wanted);
        assert_eq!(turns.len() > 4, all > 1);
    }
}

/// A lender that was busy for good, or did not get on, and there was no other one: the database was not served, and nobody was told what
/// that waits for.
#[test]
fn when_the_only_lender_is_busy_people_are_told_until_it_lends() {
    let mut bench = Bench::new(Damage::Rotten, &[1, 2]);
    let mut alarms = |busy: bool| {
        bench.repairs.step(&bench.hub, &mut |node: NodeId, ask: &Ask| match ask {
            Ask::OpenOne { .. } if busy => Ok(Answer::Busy { millis: 50 }),
            Ask::OpenOne { database, beyond } => {
                let at = EntryId { index: *beyond, term: Term(1) };
                let state = Checkpointed { position: AT, size: PageCount(1), checksum: RIGHT };
                let listed = Listed { id: *database, page_size: PageSize::DEFAULT, at: state };
                Ok(Answer::OpenedOne { view: ViewId(u64::from(node.0)), at, listed })
            }
            // It lends, and what the others have is not known yet.
            _ => Err("no answer".to_string()),
        });
        bench.clock.advance(PAUSE);
        bench.hub.findings.lock().alarms.values().cloned().collect::<Vec<_>>()
    };
    let steps = BUSY_FOR.as_secs() / PAUSE.as_secs();
    for step in 0..steps {
        assert_eq!(alarms(true), [""; 0], "step {step}");
    }
    for _ in 0..3 {
        let told = alarms(true);
        assert_eq!(told.len(), 1);
        for words in ["database app is not repaired yet", "node 2: it is busy", "no other voter", "`shoal status`"] {
            assert!(told[0].contains(words), "{told:?}");
        }
    }
    // It goes on.
    assert_eq!(alarms(false), [""; 0]);
}

/// What the alarm says stood for nothing that had changed when it went, and came again with the next attempt.
#[test]
fn one_that_is_busy_for_a_moment_takes_no_word_back_about_something_else() {
    let mut bench = Bench::new(Damage::Diverged, &[1, 2, 3]);
    let mut alarms = |answer: &Answer| {
        bench.repairs.step(&bench.hub, &mut |_: NodeId, ask: &Ask| match (ask, answer) {
            (Ask::OpenOne { database, beyond }, Answer::Yes) => {
                let at = EntryId { index: *beyond, term: Term(1) };
                let state = Checkpointed { position: AT, size: PageCount(1), checksum: RIGHT };
                let listed = Listed { id: *database, page_size: PageSize::DEFAULT, at: state };
                Ok(Answer::OpenedOne { view: ViewId(1), at, listed })
            }
            (Ask::OpenOne { .. }, _) => Ok(answer.clone()),
            // What the others have is not known yet.
            _ => Err("no answer".to_string()),
        });
        bench.clock.advance(PAUSE);
        bench.hub.findings.lock().alarms.values().cloned().collect::<Vec<_>>()
    };
    let told = alarms(&Answer::No("its disk is broken".to_string()));
    assert!(told.len() == 1 && told[0].contains("node 2: its disk is broken"), "{told:?}");
    assert_eq!(alarms(&Answer::Busy { millis: 50 }), told);
    assert_eq!(alarms(&Answer::Yes), told);
}

/// What was fetched and did not get to count may not get there from the same lender either.
#[test]
fn after_a_copy_that_did_not_come_to_count_the_next_lender_is_asked() {
    let mut bench = Bench::new(Damage::Diverged, &[1, 2, 3]);
    let page = vec![7; PageSize::DEFAULT.len()];
    let hash = PageHash::of(shoaldb_vfs::page::PageNo::FIRST, &page);
    let mut lenders = Vec::new();
    for _ in 0..4 {
        bench.repairs.step(&bench.hub, &mut |node: NodeId, ask: &Ask| match ask {
            Ask::OpenOne { database, beyond } => {
                lenders.push(node.0);
                let at = EntryId { index: *beyond, term: Term(1) };
                let state = Checkpointed { position: AT, size: PageCount(1), checksum: hash };
                let listed = Listed { id: *database, page_size: PageSize::DEFAULT, at: state };
                Ok(Answer::OpenedOne { view: ViewId(u64::from(node.0)), at, listed })
            }
            Ask::Sum { at, .. } => Ok(Answer::Sum { position: *at, checksum: hash }),
            Ask::Fetch { object, .. } => {
                let bytes = match object {
                    Object::Ranges { .. } => super::super::object::range_hash(&[hash]).to_le_bytes().to_vec(),
                    Object::Hashes { .. } => super::super::object::hashes_as_bytes(&[hash]),
                    _ => page.clone(),
                };
                Ok(Answer::Object { bytes })
            }
            _ => Ok(Answer::Yes),
        });
        assert!(bench.hub.snapshots.has_mended());
        // It cannot be shown, say.
        assert!(bench.hub.snapshots.drop_mended());
        bench.clock.advance(PAUSE);
    }
    assert_eq!(lenders, [2, 3, 2, 3]);
}

/// Until the next start it kept as much room as the database has.
#[test]
fn what_was_fetched_for_a_database_that_was_whole_before_goes_with_the_repair() {
    let fs = SimFs::new(1);
    let mut bench = Bench::on(Arc::new(fs.clone()), Damage::Diverged, &[1, 2, 3]);
    let names = || fs.list(Path::new("/db"), "test").unwrap();
    let before = names();
    let others = [(2, Some(RIGHT)), (3, Some(RIGHT))];
    assert!(!bench.step(RIGHT, others).is_empty());
    assert!(names().contains(&"2-2.part".to_string()), "{:?}", names());
    bench.hub.databases.acquit(APP);
    bench.step(RIGHT, others);
    assert_eq!(names(), before);
}

/// Books that are right, beside bytes that are not, are one voice; and the alarm ends with the damage.
#[test]
fn the_own_books_count_if_only_the_disk_is_wrong() {
    for (damage, fetches) in [(Damage::Rotten, true), (Damage::Diverged, false), (Damage::Unopened, false)] {
        let mut bench = Bench::new(damage, &[1, 2]);
        let own = bench.db.checksum().1;
        assert_eq!(!bench.step(own, [(2, Some(own)), (3, None)]).is_empty(), fetches, "{damage:?}");
        bench.hub.databases.acquit(APP);
        bench.step(own, [(2, Some(own)), (3, None)]);
        assert!(bench.hub.findings.lock().alarms.is_empty() && bench.db.retired().is_none());
    }
    // The lender has something else where the books have this.
    let mut bench = Bench::new(Damage::Rotten, &[1, 2]);
    assert!(bench.step(RIGHT, [(2, Some(RIGHT)), (3, None)]).is_empty());
    let mut alone = Bench::new(Damage::Rotten, &[1]);
    assert!(alone.step(RIGHT, [(2, Some(RIGHT)), (3, Some(RIGHT))]).is_empty());
    assert!(alone.hub.findings.lock().alarms.values().any(|alarm| alarm.contains("no other voter")));
}

#[test]
fn in_a_joint_configuration_each_half_must_agree() {
    let set = |ids: &[u16]| ids.iter().map(|id| NodeId(*id)).collect::<BTreeSet<_>>();
    let list = |ids: &[u16]| ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
    let joint = Membership { voters: list(&[1, 2, 3]), voters_outgoing: list(&[3, 4, 5]), ..Membership::default() };
    assert!(!is_majority(&joint, &set(&[1, 2])) && !is_majority(&joint, &set(&[3, 4])));
    assert!(is_majority(&joint, &set(&[2, 3, 4])));
    let four = Membership { voters: list(&[1, 2, 3, 4]), ..Membership::default() };
    assert!(!is_majority(&four, &set(&[1, 2])) && is_majority(&four, &set(&[1, 2, 3])));
}

/// The entry of a snapshot of database `app` with its one page, and the manifest.
fn one_page_at_entry_nine() -> (EntryId, Vec<u8>) {
    let mut catalogue = Catalogue::new(ClusterId(1));
    let (name, none) = (DatabaseName::new("app").unwrap(), AutoVacuum::None);
    catalogue.apply_create(LogIndex(2), name, PageSize::DEFAULT, none).unwrap();
    let at = EntryId { index: LogIndex(9), term: Term(1) };
    let state = Checkpointed { position: Position(9), size: PageCount(1), checksum: RIGHT };
    let databases = vec![Listed { id: APP, page_size: PageSize::DEFAULT, at: state }];
    let manifest = Manifest { at, reach: at.index, membership: Membership::default(), catalogue, databases };
    (at, manifest.encode())
}

/// A page and its hash want 4096 bytes and no more than 128.
#[test]
fn nothing_is_fetched_that_there_is_no_room_for() {
    for (room, fetches) in [(4096 + 127, false), (4096 + 128, true)] {
        let mut bench = Bench::on(Arc::new(Small(SimFs::new(1), room)), Damage::Diverged, &[1, 2, 3]);
        let fetched = bench.step(RIGHT, [(2, Some(RIGHT)), (3, Some(RIGHT))]);
        let alarms = bench.hub.findings.lock().alarms.clone();
        assert_eq!(!fetched.is_empty(), fetches, "{alarms:?}");
        let told = alarms.values().any(|alarm| alarm.contains("wants 4224 bytes") && alarm.contains("make room"));
        assert_eq!(told, !fetches, "{alarms:?}");

        // A snapshot of everything: not a page is asked for, and the view is given back.
        let (at, manifest) = one_page_at_entry_nine();
        let (mut asked, mut given_back) = (0, false);
        let stop = fetch::fetch(&bench.hub, NodeId(2), &mut |ask: &Ask| match ask {
            Ask::Open { .. } => Ok(Answer::Opened { view: ViewId(1), at }),
            Ask::Fetch { object: Object::Manifest, .. } => Ok(Answer::Object { bytes: manifest.clone() }),
            Ask::Done { outcome: Outcome::GivenUp, .. } => {
                given_back = true;
                Ok(Answer::Yes)
            }
            _ => {
                asked += 1;
                Err("no pages in this test".to_string())
            }
        });
        assert_eq!((asked > 0, given_back), (fetches, true));
        assert_eq!(matches!(stop, Err(Stop::GivenUp(why)) if why.contains("make room")), !fetches);
    }
}

/// An attempt that was given up may still have the new files in its hands. That passes by itself, so nobody is told of a fault.
#[test]
fn new_files_that_an_attempt_before_still_holds_are_no_fault_of_the_disk() {
    for (failure, passes) in [(Failure::Kind(io::ErrorKind::WouldBlock), true), (Failure::EIO, false)] {
        let fs = SimFs::new(1);
        let bench = Bench::on(Arc::new(fs.clone()), Damage::Diverged, &[1, 2, 3]);
        let (at, manifest) = one_page_at_entry_nine();
        // The first of these calls lists what there is, the second opens the file and finds it locked.
        fs.fail_at(Aim::At("stage.begin"), 2, Lasts::Once, failure);
        let stop = fetch::fetch(&bench.hub, NodeId(2), &mut |ask: &Ask| match ask {
            Ask::Open { .. } => Ok(Answer::Opened { view: ViewId(1), at }),
            Ask::Fetch { object: Object::Manifest, .. } => Ok(Answer::Object { bytes: manifest.clone() }),
            _ => Ok(Answer::Yes),
        });
        match stop {
            Err(Stop::Again(why)) => assert!(passes && why.contains("the attempt before"), "{why}"),
            Err(Stop::GivenUp(why)) => assert!(!passes && why.contains("new files"), "{why}"),
            other => panic!("{:?}", other.err()),
        }
    }
}

/// The alarm told people to drop a database that a learner had whole: nobody votes who could repair it, but somebody has it.
#[test]
fn where_nobody_else_votes_the_learners_are_named_that_may_have_the_database() {
    const DROP: &str = "there is no other node to repair it from: drop the database, then restore a backup";
    let promote = "promote node 4 (`shoal member promote 4`)";
    let one_of_two = "promote node 4 or 5 (`shoal member promote 4`)";
    let two = "promote nodes 4 and 5 (`shoal member promote`)";
    let save = "take a backup of the database on node 4";
    for (damage, learners, said) in [
        (Damage::Rotten, &[][..], DROP),
        (Damage::Unopened, &[], DROP),
        (Damage::Rotten, &[4], promote),
        // Its own books count for nothing, so that one other voter is no majority.
        (Damage::Unopened, &[4], save),
        (Damage::Diverged, &[4], save),
        (Damage::Rotten, &[4, 5], one_of_two),
        (Damage::Unopened, &[4, 5], two),
        (Damage::Diverged, &[4, 5], two),
    ] {
        let mut bench = Bench::new(damage, &[1]);
        if let Some(core) = bench.hub.core_status.lock().as_mut() {
            core.membership.learners = learners.iter().map(|id| NodeId(*id)).collect();
        }
        assert!(bench.step(RIGHT, [(2, Some(RIGHT)), (3, Some(RIGHT))]).is_empty());
        let alarms = crate::status::own_alarms(&bench.hub);
        let about = |words: &str| alarms.iter().find(|alarm| alarm.contains(words)).unwrap().clone();
        for alarm in [about("it is not served on this node"), about("is not repaired yet")] {
            assert!(alarm.contains(said), "{damage:?}, {learners:?}: {alarm}");
            assert_eq!(alarm.contains(DROP), learners.is_empty(), "{damage:?}, {learners:?}: {alarm}");
        }
    }
}
