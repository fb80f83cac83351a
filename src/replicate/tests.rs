//! Who may write when: the answers of the write lock to each standing of a node.

use shoaldb_vfs::env::Env;
use shoaldb_vfs::env::os::{OsClock, OsRng};
use shoaldb_vfs::env::sim::SimFs;

use super::*;
use crate::catalogue::{Catalogue, DatabaseId, DatabaseInfo};
use crate::config::Config;
use crate::databases::Databases;
use crate::shared::{Leadership, Shared};
use crate::signal::Waiting;
use crate::types::{ClusterId, EntryId, GENESIS, Incarnation, LogIndex, NodeId, Term};

fn replicator() -> (NodeReplicator, Arc<Database>) {
    let clock = Arc::new(OsClock);
    let env = Env { fs: Arc::new(SimFs::new(1)), clock: clock.clone(), rng: Arc::new(OsRng) };
    let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
    let (mailbox, _) = crossbeam_channel::unbounded();
    let waiting = Waiting { clock, pump: None };
    let hub: Hub = Arc::new(Shared::new(NodeId(1), Incarnation(1), 7, Config::default(), waiting, mailbox, databases));
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
