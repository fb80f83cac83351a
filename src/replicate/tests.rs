//! Who may write when: the answers of the write lock to each standing of a node.

use std::collections::VecDeque;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use shoaldb_vfs::env::Env;
use shoaldb_vfs::env::os::{OsClock, OsRng};
use shoaldb_vfs::env::sim::{SimClock, SimFs};
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::transaction::ChangedPage;

use super::*;
use crate::catalogue::{Catalogue, DatabaseId, DatabaseInfo};
use crate::config::Config;
use crate::databases::Databases;
use crate::shared::{Leadership, Shared};
use crate::signal::{Pump, Waiting};
use crate::types::{ClusterId, EntryId, GENESIS, Incarnation, LogIndex, NodeId, Term};

fn replicator() -> (NodeReplicator, Arc<Database>) {
    let (mailbox, _) = crossbeam_channel::unbounded();
    replicator_with(Config::default(), Waiting { clock: Arc::new(OsClock), pump: None }, mailbox)
}

fn replicator_with(config: Config, waiting: Waiting, mailbox: Sender<Input>) -> (NodeReplicator, Arc<Database>) {
    let env = Env { fs: Arc::new(SimFs::new(1)), clock: waiting.clock.clone(), rng: Arc::new(OsRng) };
    let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
    let hub: Hub = Arc::new(Shared::new(NodeId(1), Incarnation(1), 7, config, waiting, mailbox, databases));
    hub.begin(Catalogue::new(ClusterId(1)), GENESIS);
    let info = DatabaseInfo {
        name: DatabaseName::new("app").unwrap(),
        page_size: shoaldb_vfs::page::PageSize::DEFAULT,
        auto_vacuum: AutoVacuum::None,
    };
    hub.databases.bind(DatabaseId(2), &info).unwrap();
    let db = hub.databases.get(DatabaseId(2)).unwrap();
    (NodeReplicator { hub }, db)
}

fn entry(index: u64, term: u64) -> EntryId {
    EntryId { index: LogIndex(index), term: Term(term) }
}

/// Shows INV-8.
#[test]
fn the_write_lock_is_granted_only_on_a_leader_that_has_applied_an_entry_of_its_own_term() {
    let (node, db) = replicator();
    let stands = |role, term, leader| Leadership { role, term: Term(term), leader };
    let acquire = || node.acquire_write(&db, false, &|| false);

    node.hub.set_applied(entry(2, 4), None);
    for (standing, answer) in [
        (stands(Role::Follower, 4, None), Refusal::Busy),
        (stands(Role::PreCandidate, 4, None), Refusal::Busy),
        (stands(Role::Candidate, 5, None), Refusal::Busy),
        (stands(Role::Follower, 5, Some(NodeId(3))), Refusal::NotLeader(Some(3))),
        // Elected, but what was committed before may not be applied yet.
        (stands(Role::Leader, 5, Some(NodeId(1))), Refusal::Busy),
    ] {
        node.hub.set_leadership(standing);
        assert_eq!(acquire(), Err(answer), "{standing:?}");
    }
    node.hub.set_applied(entry(3, 4), None);
    assert_eq!(acquire(), Err(Refusal::Busy), "an entry of the leader before");
    node.hub.set_applied(entry(4, 5), None);
    assert_eq!(acquire(), Ok(()));
    node.hub.set_leadership(stands(Role::Leader, 6, Some(NodeId(1))));
    assert_eq!(acquire(), Err(Refusal::Busy), "elected again, in another term");
    node.hub.set_applied(entry(5, 6), None);
    assert_eq!(acquire(), Ok(()));

    node.hub.set_trouble("the disk".to_string());
    assert_eq!(acquire(), Err(Refusal::NodeStopped));
    node.hub.set_leadership(stands(Role::Follower, 7, Some(NodeId(2))));
    assert_eq!(acquire(), Err(Refusal::NotLeader(Some(2))), "reads go on here, writes go there");
    node.hub.set_removed("node 1 was removed".to_string());
    assert_eq!(acquire(), Err(Refusal::NotLeader(Some(2))), "a node that was removed says what it knew last");
    node.hub.set_leadership(stands(Role::Follower, 8, None));
    assert_eq!(acquire(), Err(Refusal::NotLeader(None)), "nobody tells a node that was removed who leads");
    node.hub.set_leadership(stands(Role::Follower, 8, Some(NodeId(2))));
    node.hub.stop();
    assert_eq!(acquire(), Err(Refusal::NotLeader(Some(2))), "a node that closes still says where to go");
    node.hub.set_leadership(stands(Role::Follower, 9, None));
    assert_eq!(acquire(), Err(Refusal::NotLeader(None)), "it can learn of none any more");
}

/// The write lock stays closed while an abandoned transaction is undecided, and what decides about it may happen while the next
/// writer waits: for a majority that confirms leadership, or between the node's answer and the grant.
#[test]
fn a_commit_that_is_given_up_while_the_next_writer_waits_keeps_that_one_out() {
    let (node, db) = replicator();
    node.hub.set_applied(entry(4, 5), None);
    node.hub.set_leadership(Leadership { role: Role::Leader, term: Term(5), leader: Some(NodeId(1)) });
    let writing = || Some(Writing { db: db.clone(), session: SessionId(1), base: Position(4), parted: None });
    let give_up = || {
        let (number, _) = node.hub.pending.register(writing());
        assert!(node.hub.pending.take_up(number));
        node.hub.pending.on_entered(number, entry(5, 5));
        assert_eq!(node.hub.pending.give_up(number), GivenUp::Abandoned(entry(5, 5)));
        number
    };
    let confirmed = || node.hub.unanswered_reads().iter().for_each(|read| node.hub.on_read_index(*read, LogIndex(4)));

    let waits = || {
        confirmed();
        false
    };
    assert_eq!(node.acquire_write(&db, true, &waits), Ok(()));
    assert_eq!(node.is_open(&db), Ok(()));
    let abandoned = std::cell::Cell::new(None);
    let waits = || {
        if abandoned.get().is_none() {
            abandoned.set(Some(give_up()));
        }
        confirmed();
        false
    };
    assert_eq!(node.acquire_write(&db, true, &waits), Err(Refusal::Busy));
    assert_eq!(node.is_open(&db), Err(Refusal::Busy));
    node.hub.pending.decide(abandoned.get().unwrap(), Decision::NotCommitted);
    assert_eq!(node.is_open(&db), Ok(()));
    assert_eq!(node.acquire_write(&db, true, &waits), Ok(()));
}

/// Takes up every proposal, and decides each as it was told; what is left undecided stays so.
struct Engine {
    inputs: Receiver<Input>,
    clock: Arc<SimClock>,
    hub: Mutex<Option<Hub>>,
    decisions: Mutex<VecDeque<Option<Decision>>>,
    given_up: Mutex<Vec<u64>>,
}

impl Pump for Engine {
    fn step(&self) {
        self.clock.advance(Duration::from_millis(100));
        let hub = self.hub.lock().clone().unwrap();
        for input in self.inputs.try_iter() {
            let Input::Propose { number, data } = input else { continue };
            if let Body::GivenUp { split, .. } = entry::decode(&data).unwrap().body {
                self.given_up.lock().push(split);
                continue;
            }
            assert!(hub.pending.take_up(number));
            let decision = self.decisions.lock().pop_front().expect("no more proposals");
            decision.into_iter().for_each(|decision| hub.pending.decide(number, decision));
        }
    }
}

/// A leader that is about to hand over refuses each part at once. Who tried again and again left one word more in the log each time, that parts
/// are given up of which there were none: in the simulation two thousand within a second, behind which reads waited.
#[test]
fn a_transaction_of_which_no_part_got_into_the_log_is_not_given_up_there() {
    const PAGE: usize = 4096;
    let page = |number: u32, noise: bool| {
        let number = PageNo::new(number).unwrap();
        let byte = |i: usize| (i as u32).wrapping_mul(2_654_435_761).rotate_right(13) as u8;
        let image: Vec<u8> = (0..PAGE).map(|i| if noise { byte(i) } else { 0 }).collect();
        ChangedPage { number, hash: PageHash::of(number, &image), image: image.into() }
    };
    let refused = || Some(Decision::NotCommitted);
    let done = |index| Some(Decision::Committed(LogIndex(index)));
    let one = || [3, 4].map(|number| page(number, false)).to_vec();
    let four = || [3, 4, 5, 6].map(|number| page(number, true)).to_vec();
    let cases = [
        ("all refused", four(), vec![refused(), refused(), refused()], false),
        ("the only one refused", one(), vec![refused()], false),
        ("the last one refused", four(), vec![done(5), done(6), done(7), refused()], true),
        ("one in the middle refused", four(), vec![done(5), refused(), refused()], true),
        ("one accepted behind one that is not", four(), vec![refused(), done(6), refused()], true),
        ("one that may come", four(), vec![None, refused(), refused()], true),
        ("one behind that may come", four(), vec![refused(), refused(), None], true),
    ];
    for (what, pages, decisions, given_up) in cases {
        let (mailbox, inputs) = crossbeam_channel::unbounded();
        let clock: Arc<SimClock> = Arc::default();
        let engine = Arc::new(Engine {
            inputs,
            clock: clock.clone(),
            hub: Mutex::default(),
            decisions: Mutex::new(decisions.into()),
            given_up: Mutex::default(),
        });
        let config = Config { part_bytes: 5000, ..Config::default() };
        let (node, db) = replicator_with(config, Waiting { clock, pump: Some(engine.clone()) }, mailbox);
        *engine.hub.lock() = Some(node.hub.clone());
        let transaction = Transaction {
            base: Position(2),
            page_size: PageSize::new(PAGE as u32).unwrap(),
            size_after: PageCount(8),
            checksum_after: PageHash(1),
            pages,
        };
        let answer = node.commit(&db, SessionId(1), transaction, &mut None);
        engine.step();
        *engine.hub.lock() = None;
        assert_eq!(answer, Err(Refusal::NotCommitted), "{what}");
        assert!(engine.decisions.lock().is_empty(), "{what}");
        assert_eq!(engine.given_up.lock().len(), usize::from(given_up), "{what}");
    }
}
