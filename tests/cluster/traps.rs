//! One test per trap of the library underneath (`raft` 0.7), each of which was fallen into once on purpose; then what else
//! the core promises. `tests/layers.rs` reads this table: a trap has a test, or a reason why it cannot be reached.
//!
//! | trap | what the library does | what holds here |
//! |---|---|---|
//! | 1 | reads by lease are not safe: there is no clock in it | `trap_1_a_leader_without_a_majority_answers_no_read` |
//! | 2 | a leader's first words of a term leave before the term is on disk, and a term can be used twice | `trap_2_a_leader_is_silent_until_its_term_is_on_disk` |
//! | 3 | it panics when hard state, applied index and log do not fit together at the start | `trap_3_what_recovery_found_must_fit_together` |
//! | 4 | it panics when a snapshot counts as applied before it counts as persisted | does not apply: no snapshot comes to the library, from a message (`who_may_send_what`) or from storage |
//! | 5 | a log that begins at index 1 cannot be joined | `trap_5_the_log_begins_behind_the_genesis` |
//! | 6 | a leader that removed itself leads for ever | `trap_6_a_leader_that_is_no_member_any_more_steps_down` |
//! | 7 | a second membership change becomes an empty entry, without an error; an empty proposal looks like one | `trap_7_a_second_membership_change_is_refused_not_swallowed`, `trap_7_an_empty_proposal_is_refused` |
//! | 8 | a read is dropped in silence whenever there is no leader that can answer | `trap_8_reads_of_one_turn_share_one_round`, `trap_8_a_read_survives_everything_that_swallows_it`, `trap_8_a_new_leader_answers_once_it_committed_in_its_term` |
//! | 9 | a peer whose snapshot was lost is sent nothing any more | does not apply: storage has no snapshot to give, so no peer gets into that state; who needs one is named: `a_peer_behind_the_compacted_log_is_named` |
//! | 10 | it panics when storage fails | `trap_10_a_log_that_cannot_be_read_stops_the_core_without_a_panic`; should it panic all the same, `trap_10_a_panic_in_the_core_is_its_end_and_nobody_elses` |
//! | 11 | it panics when stepped between `ready` and `advance`; a proposal does not say its index, and a follower forwards it | `trap_11_only_a_leader_takes_proposals_and_says_where_they_stand` |
//! | 12 | by default one message per entry | `trap_12_entries_travel_together_up_to_the_size_of_a_message` |
//! | 13 | no limit for an entry, and a lax one for all that are not committed | `trap_13_an_entry_has_a_limit_and_so_has_the_backlog` |
//! | 14 | a priority only says "no" to lower ones, and equal ones mean nothing | does not apply: nobody has a priority; it is 0 everywhere, and no setting changes it |
//! | 15 | a transfer to a dead node blocks proposals | `trap_15_a_transfer_to_a_dead_node_blocks_for_one_election_timeout` |
//! | 16 | a leader commits before its own disk has the entry, and messages must wait for different things | `trap_16_nobody_promises_or_applies_what_its_disk_does_not_have` |
//! | 17 | a joint configuration is never left when its leader is gone; campaigning loads all entries that are not applied; random timeouts come from outside | `trap_17_a_joint_configuration_is_left_though_its_leader_is_gone`, `trap_17_looking_for_changes_of_members_loads_no_payload`, `trap_17_the_same_events_have_the_same_effects` |
//! | 18 | it logs through `slog`, to a place that it chooses | does not apply: the core hands it a logger of ours, whose only way out is `tracing` (`src/raft/trace.rs`) |

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Once;

use bytes::Bytes;
use shoaldb::raft::{
    ChangeKind, Core, CoreConfig, Event, MembershipChange, NotProposed, OpenError, ReadFailed, Restored, Role,
    Transition,
};
use shoaldb::types::{
    EntryClass, EntryId, GENESIS, HardState, LogIndex, Membership, Message, MessageKind, NodeId, Term,
};

use crate::harness::{Cluster, Disk, Reader, describe, voters};

fn elected(n: u16) -> Cluster {
    let mut cluster = Cluster::of(n);
    cluster.campaign(1);
    assert_eq!(cluster.leader(), Some(1));
    cluster.sent.clear();
    cluster
}

fn sent(cluster: &mut Cluster, kind: MessageKind) -> usize {
    let sent = std::mem::take(&mut cluster.sent);
    sent.iter().filter(|message| message.kind == kind).count()
}

fn change(transition: Transition, changes: &[(ChangeKind, u16)]) -> MembershipChange {
    let changes = changes.iter().map(|(kind, id)| (*kind, NodeId(*id))).collect();
    MembershipChange { transition, changes, context: Bytes::new() }
}

fn change_members(cluster: &mut Cluster, id: u16, change: MembershipChange) -> u64 {
    let proposal = cluster.name();
    cluster.event(id, Event::ChangeMembership { proposal, change });
    proposal
}

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// Counts the panics of this thread, those too that are caught.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            before(panic);
        }));
    });
    PANICS.set(0);
}

#[test]
fn trap_1_a_leader_without_a_majority_answers_no_read() {
    let mut cluster = elected(3);
    cluster.isolate(1);
    let read = cluster.read(1);
    cluster.run();
    for _ in 0..50 {
        cluster.tick(1, 1);
        cluster.run();
        assert!(!cluster.reads.contains_key(&read));
    }
    assert_eq!(cluster.node(1).core.as_ref().unwrap().status().role.leader, None, "it gave up leading");
}

/// Shows INV-5.
#[test]
fn trap_2_a_leader_is_silent_until_its_term_is_on_disk() {
    let members = Membership { learners: vec![NodeId(2)], ..voters([1]) };
    let mut cluster = Cluster::with(members, |_| {});
    cluster.node(1).hold_persist = true;
    cluster.event(1, Event::Campaign);
    cluster.propose(1, "Y");
    assert_eq!(cluster.leader(), Some(1), "a single voter leads at once");
    assert!(cluster.sent.is_empty(), "nothing was said in a term that a crash would forget: {:?}", cluster.sent);
    cluster.crash(1);
    cluster.restart(1);
    cluster.event(1, Event::Campaign);
    cluster.propose(1, "X");
    assert!(cluster.sent.is_empty());
    cluster.node(1).hold_persist = false;
    cluster.run();
    assert_eq!(cluster.payloads(1), ["X"]);
    cluster.tick(1, 2);
    cluster.run();
    assert_eq!(cluster.payloads(2), ["X"]);
}

#[test]
fn trap_3_what_recovery_found_must_fit_together() {
    let id = |index, term| EntryId { index: LogIndex(index), term: Term(term) };
    let open = |start, last, (term, commit), applied| {
        let hard_state = HardState { term: Term(term), vote: None, commit: LogIndex(commit) };
        let membership = voters([1]);
        let restored = Restored { hard_state, membership: membership.clone(), start, last, applied: LogIndex(applied) };
        let mut disk = Disk::new(membership);
        disk.broken = true;
        let reader = Reader(std::sync::Arc::new(std::sync::Mutex::new(disk)));
        Core::open(CoreConfig::new(NodeId(1), 1), restored, std::sync::Arc::new(reader))
    };
    let committed = |opened: Result<Core, OpenError>| opened.map(|core| core.status().committed.0);
    let error = |opened: Result<Core, OpenError>| opened.map(|_| ()).unwrap_err();
    // label, what was found, outcome
    assert_eq!(committed(open(GENESIS, GENESIS, (1, 1), 1)), Ok(1), "founded");
    assert_eq!(committed(open(GENESIS, id(9, 2), (2, 5), 5)), Ok(5), "clean");
    assert_eq!(committed(open(GENESIS, id(9, 2), (2, 5), 7)), Ok(7), "commit lags behind applied");
    assert_eq!(committed(open(GENESIS, id(9, 2), (2, 9), 9)), Ok(9), "all of it");
    assert_eq!(committed(open(id(4, 2), id(4, 2), (2, 4), 4)), Ok(4), "all compacted");
    assert!(matches!(error(open(GENESIS, id(9, 2), (2, 10), 9)), OpenError::CommitOutside { .. }), "commit lost");
    assert!(matches!(error(open(GENESIS, id(9, 2), (2, 9), 10)), OpenError::AppliedOutside { .. }), "log lost");
    assert!(matches!(error(open(id(4, 2), id(9, 2), (2, 9), 3)), OpenError::AppliedOutside { .. }), "cut too far");
    assert!(matches!(error(open(GENESIS, id(9, 2), (1, 1), 1)), OpenError::TermBehind { .. }), "hard state lost");
    assert!(matches!(error(open(GENESIS, id(9, 2), (0, 0), 1)), OpenError::TermBehind { .. }), "hard state lost");
    assert!(matches!(error(open(id(4, 2), id(3, 2), (2, 3), 3)), OpenError::Backwards { .. }), "ends before start");
    assert!(matches!(error(open(id(4, 2), id(4, 1), (2, 4), 4)), OpenError::Backwards { .. }), "two terms at one");
}

#[test]
fn trap_5_the_log_begins_behind_the_genesis() {
    let mut cluster = Cluster::of(1);
    cluster.campaign(1);
    assert_eq!(cluster.node(1).disk().entries[0].id.index, LogIndex(2));
    for (index, term) in [(0, 0), (0, 1), (1, 0)] {
        let start = EntryId { index: LogIndex(index), term: Term(term) };
        let disk = Disk { start, ..Disk::new(voters([1])) };
        let restored = Restored {
            hard_state: HardState::default(),
            membership: voters([1]),
            start,
            last: start,
            applied: start.index,
        };
        let reader = std::sync::Arc::new(Reader(std::sync::Arc::new(std::sync::Mutex::new(disk))));
        let opened = Core::open(CoreConfig::new(NodeId(1), 1), restored, reader);
        assert_eq!(opened.map(|_| ()), Err(OpenError::NoGenesis { start }));
    }
}

#[test]
fn trap_6_a_leader_that_is_no_member_any_more_steps_down() {
    let mut cluster = elected(3);
    change_members(&mut cluster, 1, change(Transition::Automatic, &[(ChangeKind::Removed, 1)]));
    cluster.run();
    assert_eq!(cluster.node(1).membership, voters([2, 3]));
    assert_eq!(cluster.leader(), None);
    cluster.pass(25);
    assert!(matches!(cluster.leader(), Some(2 | 3)), "the others elect one of them");
}

/// Shows INV-35.
#[test]
fn a_change_that_is_refused_leaves_the_members_as_they_were() {
    let mut cluster = elected(3);
    (1..=3).for_each(|id| cluster.node(id).hold_apply = true);
    let proposal = change_members(&mut cluster, 1, change(Transition::Automatic, &[(ChangeKind::Removed, 3)]));
    cluster.run();
    let index = cluster.proposed[&proposal].unwrap().index;
    // What is replicated with it refused it, which every node hears before it hears that it is applied.
    for id in 1..=3 {
        cluster.event(id, Event::ChangeRefused { index });
        cluster.node(id).hold_apply = false;
    }
    cluster.run();
    let applied: Vec<_> = (1..=3).map(|id| cluster.node(id).applied_index()).collect();
    assert!(applied.iter().all(|applied| *applied >= index), "{applied:?}");
    for id in 1..=3 {
        assert_eq!(cluster.node(id).membership, voters([1, 2, 3]));
    }
    let next = change_members(&mut cluster, 1, change(Transition::Automatic, &[(ChangeKind::Removed, 2)]));
    assert!(cluster.proposed[&next].is_ok(), "it is not in the way of the next");
}

/// Shows INV-33.
#[test]
fn trap_7_a_second_membership_change_is_refused_not_swallowed() {
    let mut cluster = elected(3);
    cluster.node(1).hold_apply = true;
    let first = change_members(&mut cluster, 1, change(Transition::Automatic, &[(ChangeKind::Learner, 3)]));
    let second = change_members(&mut cluster, 1, change(Transition::Automatic, &[(ChangeKind::Removed, 2)]));
    let leave = change_members(&mut cluster, 1, MembershipChange::leave_joint());
    cluster.run();
    let third = change_members(&mut cluster, 1, change(Transition::Automatic, &[(ChangeKind::Removed, 2)]));
    assert!(cluster.proposed[&first].is_ok());
    for refused in [second, leave, third] {
        assert_eq!(cluster.proposed[&refused], Err(NotProposed::MembershipBusy));
    }
    cluster.node(1).hold_apply = false;
    cluster.run();
    let leave = change_members(&mut cluster, 1, MembershipChange::leave_joint());
    assert_eq!(cluster.proposed[&leave], Err(NotProposed::MembershipBusy), "nothing to leave");
    let last = change_members(&mut cluster, 1, change(Transition::Automatic, &[(ChangeKind::Removed, 2)]));
    assert!(cluster.proposed[&last].is_ok(), "once the first is applied, the next may follow");
}

#[test]
fn trap_7_an_empty_proposal_is_refused() {
    let mut cluster = elected(1);
    let proposal = cluster.propose(1, "");
    assert_eq!(cluster.proposed[&proposal], Err(NotProposed::Empty));
}

#[test]
fn trap_8_reads_of_one_turn_share_one_round() {
    let mut cluster = elected(3);
    let core = cluster.node(1).core.as_mut().unwrap();
    (100..110).for_each(|request| core.on_event(Event::ReadIndex { request }));
    cluster.turn(1);
    cluster.run();
    assert!((100..110).all(|request| cluster.reads[&request] == Ok(LogIndex(2))));
    assert_eq!(sent(&mut cluster, MessageKind::Heartbeat), 2, "one for each follower");

    let core = cluster.node(2).core.as_mut().unwrap();
    (200..210).for_each(|request| core.on_event(Event::ReadIndex { request }));
    cluster.turn(2);
    cluster.run();
    assert!((200..210).all(|request| cluster.reads[&request] == Ok(LogIndex(2))));
    assert_eq!(sent(&mut cluster, MessageKind::ReadIndex), 1, "a follower asks once for all of them");
}

#[test]
fn trap_8_a_read_survives_everything_that_swallows_it() {
    let mut cluster = Cluster::of(3);
    let early = cluster.read(2);
    let cancelled = cluster.read(2);
    cluster.run();
    assert!(cluster.reads.is_empty(), "no leader yet");
    cluster.event(2, Event::CancelRead { request: cancelled });
    cluster.campaign(1);
    cluster.pass(4);
    assert!(cluster.reads[&early].is_ok(), "a leader was found");

    let asked = cluster.read(2);
    cluster.wire.clear();
    cluster.pass(4);
    assert!(cluster.reads[&asked].is_ok(), "the question was lost");

    let on_old_leader = cluster.read(1);
    cluster.wire.clear();
    cluster.event(1, Event::Transfer { to: NodeId(3) });
    cluster.run();
    assert_eq!(cluster.leader(), Some(3));
    cluster.pass(4);
    assert!(cluster.reads[&on_old_leader].is_ok(), "the leader changed while a read was pending");
    assert!(!cluster.reads.contains_key(&cancelled));
}

#[test]
fn trap_8_a_new_leader_answers_once_it_committed_in_its_term() {
    let mut cluster = Cluster::of(3);
    (1..=3).for_each(|id| cluster.node(id).hold_persist = true);
    cluster.event(1, Event::Campaign);
    while cluster.leader().is_none() {
        (1..=3).for_each(|id| while cluster.persist_one(id) {});
        cluster.deliver_all();
    }
    let read = cluster.read(1);
    cluster.run();
    assert!(!cluster.reads.contains_key(&read));
    (1..=3).for_each(|id| cluster.node(id).hold_persist = false);
    cluster.run();
    assert_eq!(cluster.reads[&read], Ok(LogIndex(2)));
}

#[test]
fn trap_10_a_log_that_cannot_be_read_stops_the_core_without_a_panic() {
    // No tail in memory: whatever is asked for comes from the disk.
    let forgetful = |config: &mut CoreConfig| config.tail_cache_bytes = 0;
    count_panics();

    let mut sending = Cluster::with(voters([1, 2, 3]), forgetful);
    sending.campaign(1);
    sending.isolate(3);
    (0..3).for_each(|_| {
        sending.propose(1, "x");
        sending.run();
    });
    sending.node(1).disk().broken = true;
    sending.cut.clear();
    sending.tick(1, 2);
    sending.run();

    let mut applying = Cluster::with(voters([1]), |config| {
        forgetful(config);
        config.max_apply_bytes = 1;
    });
    applying.campaign(1);
    applying.node(1).hold_apply = true;
    (0..3).for_each(|_| {
        applying.propose(1, "x");
        applying.run();
    });
    applying.node(1).disk().broken = true;
    applying.node(1).hold_apply = false;
    applying.run();

    let mut campaigning = Cluster::with(voters([1, 2, 3]), |config| {
        forgetful(config);
        config.max_apply_bytes = 1;
    });
    campaigning.campaign(1);
    campaigning.node(2).hold_apply = true;
    (0..3).for_each(|_| {
        campaigning.propose(1, "x");
        campaigning.run();
    });
    campaigning.node(2).disk().broken = true;
    campaigning.event(2, Event::Campaign);

    assert_eq!(PANICS.get(), 0, "the library was made to panic");
    for (cluster, id) in [(&mut sending, 1), (&mut applying, 1), (&mut campaigning, 2)] {
        let why = cluster.fatal.get(&id).unwrap_or_else(|| panic!("{id} goes on"));
        assert!(why.contains("cannot be read"), "{why}");
        let core = cluster.node(id).core.as_mut().unwrap();
        core.on_event(Event::Tick);
        let effects = core.take_effects();
        assert!(effects.fatal.is_some() && effects.send.is_empty() && effects.persist.is_none(), "{effects:?}");
    }
}

/// Whatever else makes the library panic, or this code on its way through it: whoever brought the event goes on, and the core
/// is over.
#[test]
fn trap_10_a_panic_in_the_core_is_its_end_and_nobody_elses() {
    count_panics();
    let mut cluster = Cluster::with(voters([1, 2, 3]), |config| config.tail_cache_bytes = 0);
    cluster.campaign(1);
    cluster.isolate(3);
    (0..3).for_each(|_| {
        cluster.propose(1, "x");
        cluster.run();
    });
    cluster.node(1).disk().panics = true;
    cluster.cut.clear();
    cluster.tick(1, 2);
    cluster.run();
    assert_eq!(PANICS.get(), 1, "nothing panicked");
    let why = cluster.fatal.get(&1).expect("it goes on");
    assert_eq!(why, "raft panicked: planted");
    cluster.node(1).disk().panics = false;
    let core = cluster.node(1).core.as_mut().unwrap();
    for event in [Event::Tick, Event::Campaign, Event::Propose { proposal: 9, data: "y".into() }] {
        core.on_event(event);
        let effects = core.take_effects();
        assert_eq!(effects.fatal.as_deref(), Some("raft panicked: planted"));
        assert!(effects.send.is_empty() && effects.persist.is_none() && effects.proposed.is_empty(), "{effects:?}");
    }
}

#[test]
fn trap_11_only_a_leader_takes_proposals_and_says_where_they_stand() {
    let mut cluster = elected(3);
    let core = cluster.node(1).core.as_mut().unwrap();
    for proposal in 100..103 {
        core.on_event(Event::Propose { proposal, data: Bytes::from_static(b"x") });
        core.on_event(Event::Tick);
    }
    cluster.turn(1);
    for (proposal, index) in (100..103).zip(3..) {
        assert_eq!(cluster.proposed[&proposal], Ok(EntryId { index: LogIndex(index), term: Term(2) }));
    }
    cluster.run();
    cluster.sent.clear();
    let refused = cluster.propose(2, "x");
    assert_eq!(cluster.proposed[&refused], Err(NotProposed::NotLeader { leader: Some(NodeId(1)) }));
    assert!(cluster.sent.is_empty(), "not forwarded");
    cluster.isolate(2);
    cluster.tick(2, 25);
    let refused = cluster.propose(2, "x");
    assert_eq!(cluster.proposed[&refused], Err(NotProposed::NotLeader { leader: None }));
}

#[test]
fn trap_12_entries_travel_together_up_to_the_size_of_a_message() {
    let mut cluster = Cluster::with(voters([1, 2, 3]), |config| config.max_message_bytes = 1000);
    cluster.campaign(1);
    let core = cluster.node(1).core.as_mut().unwrap();
    for proposal in 100..150 {
        core.on_event(Event::Propose { proposal, data: Bytes::from(vec![b'x'; 100]) });
    }
    cluster.sent.clear();
    cluster.turn(1);
    let payload = |message: &Message| message.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
    assert!(cluster.sent.iter().all(|message| payload(message) <= 1000));
    assert_eq!(sent(&mut cluster, MessageKind::Append), 2 * 5, "50 entries of 100 bytes, 10 in each message");
    cluster.run();
    assert_eq!(cluster.payloads(3).len(), 50);

    let mut cluster = elected(3);
    cluster.isolate(3);
    (0..200).for_each(|_| {
        cluster.propose(1, "x");
        cluster.run();
    });
    cluster.cut.clear();
    cluster.sent.clear();
    cluster.tick(1, 2);
    cluster.run();
    let catching_up = cluster.sent.iter().filter(|message| message.to == NodeId(3)).count();
    assert!(catching_up <= 6, "200 entries in {catching_up} messages");
    assert_eq!(cluster.payloads(3).len(), 200);
}

/// The library counts messages only. A follower that fell behind would be sent, and its connection's queue would hold, all of
/// a large transaction. Shows INV-20.
#[test]
fn what_is_on_its_way_to_a_follower_has_a_limit_in_bytes() {
    const LIMIT: usize = 1000;
    let limited = |config: &mut CoreConfig| {
        (config.max_message_bytes, config.max_inflight_bytes, config.tail_cache_bytes) = (100, LIMIT as u64, 0);
    };
    let bytes_to_3 = |sent: &[Message]| {
        let to_3 = sent.iter().filter(|message| message.to == NodeId(3)).flat_map(|message| &message.entries);
        to_3.map(|entry| entry.data.len()).sum::<usize>()
    };
    // It takes everything in and acknowledges nothing.
    let mut cluster = Cluster::with(voters([1, 2, 3]), limited);
    cluster.campaign(1);
    cluster.node(3).hold_persist = true;
    cluster.sent.clear();
    for _ in 0..100 {
        cluster.propose(1, vec![b'x'; 100]);
        cluster.run();
    }
    assert_eq!(cluster.payloads(2).len(), 100, "the others go on");
    assert_eq!(bytes_to_3(&cluster.sent), LIMIT);
    cluster.node(3).hold_persist = false;
    cluster.run();
    cluster.pass(4);
    assert_eq!(cluster.payloads(3).len(), 100);

    // It gets nothing, and nobody says so. Afterwards it catches up, never with more than the limit on its way.
    let mut cluster = Cluster::with(voters([1, 2, 3]), limited);
    cluster.campaign(1);
    cluster.isolate(3);
    cluster.sent.clear();
    for _ in 0..100 {
        cluster.propose(1, vec![b'x'; 100]);
        cluster.run();
    }
    assert_eq!(bytes_to_3(&cluster.sent), LIMIT);
    cluster.cut.clear();
    cluster.sent.clear();
    let mut most = 0;
    for _ in 0..40 {
        cluster.tick(1, 1);
        while !cluster.wire.is_empty() {
            most = most.max(bytes_to_3(&cluster.wire));
            cluster.deliver_all();
            for id in 1..=3 {
                while cluster.persist_one(id) {}
                cluster.apply_all(id);
            }
        }
    }
    assert_eq!(cluster.payloads(3).len(), 100);
    assert!((200..=LIMIT).contains(&most), "{most} bytes at once");
}

/// Shows INV-20.
#[test]
fn trap_13_an_entry_has_a_limit_and_so_has_the_backlog() {
    let limits = |config: &mut CoreConfig| {
        config.max_entry_bytes = 100;
        config.max_uncommitted_bytes = 250;
        config.max_message_bytes = 100;
    };
    let mut cluster = Cluster::with(voters([1, 2, 3]), limits);
    cluster.campaign(1);
    cluster.isolate(1);
    for (bytes, fits) in [(99, true), (100, true), (101, false)] {
        let proposal = cluster.propose(1, vec![b'x'; bytes]);
        let limit = NotProposed::TooLarge { bytes: bytes as u64, limit: 100 };
        assert_eq!(cluster.proposed[&proposal].err(), (!fits).then_some(limit), "{bytes}");
    }
    let fits = cluster.propose(1, vec![b'x'; 51]);
    let over = cluster.propose(1, "x");
    assert!(cluster.proposed[&fits].is_ok() || cluster.proposed[&fits] == Err(NotProposed::Backlog));
    assert_eq!(cluster.proposed[&over].is_ok(), cluster.proposed[&fits] == Err(NotProposed::Backlog));
    let refused = cluster.propose(1, vec![b'x'; 60]);
    assert_eq!(cluster.proposed[&refused], Err(NotProposed::Backlog));
}

#[test]
fn trap_15_a_transfer_to_a_dead_node_blocks_for_one_election_timeout() {
    let mut cluster = elected(3);
    cluster.crash(3);
    cluster.event(1, Event::Transfer { to: NodeId(3) });
    let blocked = cluster.propose(1, "x");
    assert_eq!(cluster.proposed[&blocked], Err(NotProposed::Transferring));
    (0..10).for_each(|_| {
        cluster.tick(1, 1);
        cluster.run();
    });
    let taken = cluster.propose(1, "x");
    assert!(cluster.proposed[&taken].is_ok());
}

/// Shows INV-5.
#[test]
fn trap_16_nobody_promises_or_applies_what_its_disk_does_not_have() {
    let mut cluster = elected(3);
    for held in 1..=3 {
        cluster.node(held).hold_persist = true;
        cluster.sent.clear();
        let before = cluster.payloads(held).len();
        let proposal = cluster.propose(1, "x");
        let index = cluster.proposed[&proposal].unwrap().index;
        cluster.run();
        let promised = |m: &Message| m.kind == MessageKind::AppendReply && m.from.0 == held && m.index >= index;
        assert!(!cluster.sent.iter().any(promised), "{held} promises");
        assert_eq!(cluster.payloads(held).len(), before, "{held} applies");
        cluster.node(held).hold_persist = false;
        cluster.run();
        assert_eq!(cluster.payloads(held).len(), before + 1);
    }
}

#[test]
fn trap_17_a_joint_configuration_is_left_though_its_leader_is_gone() {
    let mut cluster = elected(4);
    let joint = change(Transition::JointThenLeave, &[(ChangeKind::Learner, 4)]);
    // Nobody gets as far as to apply it while the first leader leads.
    (1..=4).for_each(|id| cluster.node(id).hold_apply = true);
    change_members(&mut cluster, 1, joint);
    cluster.run();
    cluster.crash(1);
    (2..=4).for_each(|id| cluster.node(id).hold_apply = false);
    cluster.pass(60);
    let leader = cluster.leader().expect("three of four elect a leader");
    let expected = Membership { learners: vec![NodeId(4)], ..voters([1, 2, 3]) };
    cluster.node(1).hold_apply = false;
    cluster.restart(1);
    cluster.pass(60);
    assert_eq!(cluster.node(leader).membership, expected);
    assert_eq!(cluster.node(1).membership, expected, "a restart comes to the same members");
}

/// Shows INV-6.
#[test]
fn trap_17_the_same_events_have_the_same_effects() {
    let run = || {
        let mut cluster = Cluster::of(3);
        let mut lines = Vec::new();
        for round in 0..200 {
            for id in 1..=3 {
                cluster.tick(id, 1);
            }
            if round % 7 == 0 {
                for id in 1..=3 {
                    cluster.propose(id, format!("{round}"));
                    cluster.read(id);
                }
            }
            if round % 40 == 39
                && let Some(leader) = cluster.leader()
            {
                cluster.crash(leader);
                cluster.restart(leader);
            }
            cluster.run();
            lines.append(&mut cluster.trace);
        }
        lines
    };
    let first = run();
    assert!(first.iter().filter(|line| line.contains("is Leader")).count() >= 3, "several elections by timeout");
    assert_eq!(first, run());
}

#[test]
fn a_single_voter_elects_itself_without_a_tick() {
    let mut cluster = Cluster::of(1);
    cluster.event(1, Event::Campaign);
    assert_eq!(cluster.leader(), Some(1));
    let read = cluster.read(1);
    cluster.run();
    assert_eq!(cluster.reads[&read], Ok(LogIndex(2)));
    assert!(cluster.trace.iter().any(|line| line == "1 may write once it applied 2@2"), "{:?}", cluster.trace);
}

#[test]
fn a_last_voter_campaigns_only_with_its_log_on_disk() {
    let mut cluster = elected(2);
    cluster.node(2).hold_persist = true;
    let data = Bytes::from_static(b"x");
    // Node 1 hands over to a configuration without itself while node 2 still writes what comes after.
    change_members(&mut cluster, 1, change(Transition::Automatic, &[(ChangeKind::Removed, 1)]));
    cluster.event(1, Event::Propose { proposal: 50, data });
    cluster.deliver_all();
    cluster.persist_one(2);
    cluster.run();
    cluster.tick(2, 45);
    cluster.event(2, Event::Campaign);
    assert_eq!(cluster.fatal.get(&2), None, "the library asserts that a new leader has all on disk");
    cluster.node(2).hold_persist = false;
    cluster.pass(25);
    assert_eq!(cluster.leader(), Some(2));
}

#[test]
fn silence_ends_leading_and_campaigning_but_not_voting() {
    let mut cluster = elected(3);
    let waiting = cluster.read(1);
    cluster.wire.clear();
    cluster.event(1, Event::Silence);
    assert_eq!(cluster.leader(), None);
    let late = cluster.read(1);
    assert_eq!(cluster.reads[&waiting], Err(ReadFailed::Silenced));
    assert_eq!(cluster.reads[&late], Err(ReadFailed::Silenced));
    cluster.event(1, Event::Campaign);
    cluster.tick(1, 100);
    assert_eq!(cluster.node(1).core.as_ref().unwrap().status().role.role, Role::Follower);
    // The third node is gone: the second needs the vote of the silenced one.
    cluster.crash(3);
    cluster.pass(40);
    assert_eq!(cluster.leader(), Some(2));
    cluster.event(2, Event::Transfer { to: NodeId(1) });
    cluster.run();
    assert_ne!(cluster.leader(), Some(1));
}

/// Shows INV-7.
#[test]
fn what_is_handed_out_but_not_applied_is_bounded() {
    let mut cluster = Cluster::with(voters([1]), |config| config.max_apply_bytes = 250);
    cluster.campaign(1);
    cluster.node(1).hold_apply = true;
    (0..9).for_each(|_| {
        cluster.propose(1, "0123456789");
        cluster.run();
    });
    let waiting: usize = cluster.node(1).to_apply.iter().map(|entry| entry.data.len()).sum();
    assert!(waiting == 20, "{waiting} bytes of payload wait: two entries of 10 and what it costs to keep them");
    cluster.node(1).hold_apply = false;
    cluster.run();
    assert_eq!(cluster.payloads(1).len(), 9);
}

#[test]
fn entries_that_left_memory_come_from_the_disk() {
    let mut cluster = Cluster::with(voters([1, 2, 3]), |config| config.tail_cache_bytes = 0);
    cluster.campaign(1);
    cluster.isolate(3);
    for n in 0..20 {
        cluster.propose(1, format!("{n}"));
        cluster.run();
    }
    let before = cluster.node(1).disk().reads;
    cluster.cut.clear();
    cluster.tick(1, 2);
    cluster.run();
    assert_eq!(cluster.payloads(3), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(cluster.node(1).disk().reads > before);
}

#[test]
fn a_peer_behind_the_compacted_log_is_named() {
    let mut cluster = Cluster::with(voters([1, 2, 3]), |config| config.tail_cache_bytes = 0);
    cluster.campaign(1);
    cluster.isolate(3);
    (0..5).for_each(|_| {
        cluster.propose(1, "x");
        cluster.run();
    });
    let start = cluster.node(1).applied[2].id;
    cluster.event(1, Event::Compacted { start });
    let node = cluster.node(1);
    let mut disk = node.disk();
    let dropped = (start.index.0 - disk.start.index.0) as usize;
    disk.entries.drain(..dropped);
    disk.start = start;
    drop(disk);
    cluster.cut.clear();
    cluster.trace.clear();
    cluster.tick(1, 4);
    cluster.run();
    assert!(cluster.trace.iter().any(|line| line == "1 has no entries left for 3"), "{:?}", cluster.trace);
    assert!(cluster.fatal.is_empty());
    cluster.propose(1, "y");
    cluster.run();
    assert_eq!(cluster.payloads(2).len(), 6, "the others go on");
}

/// Node 1 leads and has dropped what node 3 needs next; node 3 has just begun behind a snapshot of that entry, which nobody told
/// it who leads since.
fn behind_a_snapshot() -> (Cluster, EntryId) {
    let mut cluster = Cluster::with(voters([1, 2, 3]), |config| config.tail_cache_bytes = 0);
    cluster.campaign(1);
    cluster.isolate(3);
    (0..5).for_each(|n| {
        cluster.propose(1, n.to_string());
        cluster.run();
    });
    let start = cluster.node(1).applied[4].id;
    cluster.event(1, Event::Compacted { start });
    let mut disk = cluster.node(1).disk();
    let dropped = (start.index.0 - disk.start.index.0) as usize;
    disk.entries.drain(..dropped);
    disk.start = start;
    drop(disk);

    // Node 3 has the snapshot of that entry in the place of its log.
    let term = cluster.node(3).disk().hard_state.term;
    let hard_state = HardState { term, vote: None, commit: start.index };
    let checkpoint = (start.index, voters([1, 2, 3]));
    cluster.crash(3);
    *cluster.node(3).disk() = Disk { start, hard_state, checkpoint, ..Disk::new(voters([1, 2, 3])) };
    cluster.restart(3);
    cluster.cut.clear();
    (cluster, start)
}

/// It is told to say so before it has heard of a leader, once: the leader knows after its next heartbeat, without another offer.
#[test]
fn a_peer_that_goes_on_behind_a_snapshot_says_so_as_soon_as_it_knows_to_whom() {
    let (mut cluster, start) = behind_a_snapshot();
    cluster.event(3, Event::Announce);
    cluster.run();
    assert_eq!(cluster.node(3).core.as_ref().unwrap().status().last, start.index, "to whom?");
    for _ in 0..2 {
        cluster.tick(1, 2);
        cluster.run();
    }
    assert_eq!(cluster.payloads(3), ["4"], "what is behind the snapshot");
    assert!(cluster.fatal.is_empty(), "{:?}", cluster.fatal);
}

/// A leader that has no entries for a peer sends it none until it hears how far the peer's log agrees with its own; the peer
/// says so once it goes on behind a snapshot, as often as it likes.
#[test]
fn a_peer_that_goes_on_behind_a_snapshot_says_so_and_is_sent_entries_again() {
    let (mut cluster, start) = behind_a_snapshot();
    for _ in 0..3 {
        cluster.tick(1, 2);
        cluster.run();
    }
    assert_eq!(cluster.node(3).core.as_ref().unwrap().status().last, start.index, "nobody told the leader");
    for _ in 0..2 {
        cluster.event(3, Event::Announce);
        cluster.run();
    }
    assert_eq!(cluster.payloads(3), ["4"], "what is behind the snapshot");
    cluster.propose(1, "y");
    cluster.run();
    assert_eq!(cluster.payloads(3), ["4", "y"]);
    let peers = cluster.node(1).core.as_ref().unwrap().status().peers;
    assert!(peers.iter().all(|peer| peer.acknowledged.0 == start.index.0 + 2), "{peers:?}");
    // A leader has nobody to tell, and a node that follows nobody neither.
    cluster.event(1, Event::Announce);
    assert!(cluster.fatal.is_empty(), "{:?}", cluster.fatal);
}

#[test]
fn a_node_that_lost_acknowledged_entries_stops() {
    let mut cluster = elected(3);
    cluster.propose(1, "x");
    cluster.run();
    let disk = Disk::new(voters([1, 2, 3]));
    let term = cluster.node(3).disk().hard_state.term;
    cluster.crash(3);
    *cluster.node(3).disk() = Disk { hard_state: HardState { term, ..disk.hard_state }, ..disk };
    cluster.restart(3);
    cluster.tick(1, 2);
    cluster.run();
    let said = &cluster.fatal[&3];
    assert!(said.contains("lost entries that it had acknowledged; remove this node"), "{said}");
}

#[test]
fn a_shell_that_breaks_the_contract_is_stopped() {
    for wrong in [
        Event::Persisted { batch: 1000 },
        Event::Applied { index: LogIndex(1000) },
        Event::Applied { index: LogIndex(1) },
        Event::Compacted { start: EntryId { index: LogIndex(1000), term: Term(2) } },
        Event::Compacted { start: EntryId { index: LogIndex(2), term: Term(7) } },
    ] {
        let mut cluster = elected(1);
        cluster.event(1, wrong.clone());
        assert!(cluster.fatal.contains_key(&1), "{wrong:?}");
    }
}

/// Shows INV-15.
#[test]
fn no_message_makes_a_core_panic() {
    let mut dice = crate::harness::Dice::of(5);
    let numbers = [0, 1, 2, 3, 4, 5, 6, 1 << 40, (1 << 56) - 1, 1 << 56, u64::MAX - 1, u64::MAX];
    count_panics();
    let mut stopped = BTreeSet::new();
    for _ in 0..3000 {
        let mut cluster = Cluster::of(3);
        if dice.roll(2) == 0 {
            cluster.campaign(1 + dice.roll(2) as u16);
            cluster.propose(1, "x");
            cluster.run();
        }
        for _ in 0..20 {
            let mut number = || numbers[dice.roll(numbers.len() as u64) as usize];
            let (term, log_term, index, commit) = (Term(number()), Term(number()), LogIndex(number()), number());
            let (commit_term, hint) = (Term(number()), LogIndex(number()));
            let entries = (0..dice.roll(3)).map(|at| shoaldb::types::LogEntry {
                id: EntryId { index: LogIndex(index.0.wrapping_add(1 + at)), term: log_term.max(term) },
                class: if dice.roll(4) == 0 { EntryClass::Membership } else { EntryClass::Normal },
                data: Bytes::from_static(b"?"),
            });
            let entries = entries.collect();
            let message = Message {
                kind: MessageKind::ALL[dice.roll(13) as usize],
                from: NodeId(dice.roll(5) as u16),
                to: NodeId(1),
                term,
                log_term,
                index,
                commit: LogIndex(commit),
                commit_term,
                entries,
                reject: dice.roll(2) == 0,
                reject_hint: hint,
                request_snapshot: LogIndex(0),
                priority: 0,
                context: Bytes::new(),
                snapshot: None,
            };
            cluster.event(1, Event::Message(message));
            cluster.tick(1, 3);
            while cluster.persist_one(1) {}
            cluster.apply_all(1);
        }
        stopped.extend(cluster.fatal.remove(&1));
    }
    assert_eq!(PANICS.get(), 0, "{stopped:?}");
}

#[test]
fn a_core_can_move_to_its_thread() {
    fn movable<T: Send>(_: &T) {}
    let mut cluster = Cluster::of(1);
    movable(cluster.node(1).core.as_ref().unwrap());
    assert!(describe(1, &cluster.node(1).core.as_mut().unwrap().take_effects()).is_empty());
}
