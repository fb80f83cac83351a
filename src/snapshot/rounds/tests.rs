//! When a node offers a snapshot, and when it takes one.

use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};
use shoaldb_vfs::env::{Clock, Fs};
use shoaldb_vfs::mapfile::Checkpointed;
use shoaldb_vfs::page::{PageCount, PageHash, PageSize};
use shoaldb_vfs::transaction::Position;

use super::super::object::{Answer, Listed, Manifest, Object, Outcome, Phase};
use super::super::{Done, Staged, ViewId};
use super::*;
use crate::catalogue::{AutoVacuum, Catalogue, DatabaseId, DatabaseName};
use crate::shared::Leadership;
use crate::types::{ClusterId, EntryId, LogIndex, Membership, Term};
use crate::upkeep::tests::upkeep_on;

const PEER: NodeId = NodeId(3);

/// What is asked in one step of other nodes, each of which says this.
fn step(rounds: &mut Rounds, hub: &Hub, answer: &Answer) -> Vec<(NodeId, Ask)> {
    let mut asked = Vec::new();
    rounds.step(hub, &mut |node: NodeId, ask: &Ask| {
        asked.push((node, ask.clone()));
        Ok(answer.clone())
    });
    asked
}

fn lead(hub: &Hub, role: Role) {
    hub.set_leadership(Leadership { role, term: Term(1), leader: Some(hub.id) });
}

/// Raft asks for it with every heartbeat.
#[test]
fn a_leader_offers_what_is_wanted_once_a_second() {
    let (upkeep, clock) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    let mut offers = |millis: u64| {
        clock.advance(Duration::from_millis(millis));
        hub.snapshots.want(PEER);
        step(&mut rounds, hub, &Answer::Yes)
    };
    lead(hub, Role::Leader);
    let offer = vec![(PEER, Ask::Offer { term: Term(1), start: hub.core_start() })];
    assert_eq!(offers(0), offer);
    assert_eq!(offers(500), []);
    assert_eq!(offers(499), []);
    assert_eq!(offers(1), offer);
    // Who does not lead any more has nothing to offer.
    lead(hub, Role::Follower);
    assert_eq!(offers(5000), []);
}

/// The core lets go of entries before their files go, and a compaction that a snapshot came across never got to the files:
/// offers went by these, and a node that joined stayed empty (found by the simulation, seed 42).
#[test]
fn an_offer_goes_by_what_the_core_still_sends_and_not_by_the_files() {
    let (upkeep, clock) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    lead(hub, Role::Leader);
    let files = hub.log_start();
    hub.set_compacted(LogIndex(files.0 + 40));
    assert_eq!(hub.log_start(), files, "no file has gone");
    clock.advance(Duration::from_secs(10));
    hub.snapshots.want(PEER);
    let offer = Ask::Offer { term: Term(1), start: LogIndex(files.0 + 40) };
    assert_eq!(step(&mut rounds, hub, &Answer::Yes), [(PEER, offer)]);
}

/// A member that is reached and says nothing cost twenty seconds, in which nobody else was offered anything and nobody noticed
/// that this node leads no more; and then its own turn had come again.
#[test]
fn one_that_does_not_answer_costs_the_others_a_second_and_has_its_turn_after_them() {
    let (upkeep, clock) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    let (mute, other) = (NodeId(2), PEER);
    let mut step = |still_leads: bool| {
        lead(hub, Role::Leader);
        [mute, other].into_iter().for_each(|peer| hub.snapshots.want(peer));
        let (mut asked, begun) = (Vec::new(), clock.now());
        rounds.step(hub, &mut |node: NodeId, ask: &Ask| {
            asked.push((node, clock.now() - begun));
            if node != mute {
                return Ok(Answer::Yes);
            }
            clock.advance(ask.limit());
            lead(hub, if still_leads { Role::Leader } else { Role::Follower });
            Err("no answer".to_string())
        });
        asked
    };
    let second = Duration::from_secs(1);
    assert_eq!(step(true), [(mute, Duration::ZERO), (other, second)]);
    // It is that one's turn again a second after it was asked, which is now, and not the other's.
    assert_eq!(step(true), []);
    clock.advance(OFFER_EVERY);
    assert_eq!(step(false), [(mute, Duration::ZERO)], "it does not lead any more");
}

/// It takes a moment, or as long as the disk is full: its source keeps view and log for whoever says something, and those who
/// listen see that it is not stuck.
#[test]
fn while_a_snapshot_waits_to_be_installed_its_source_hears_of_it() {
    let (upkeep, clock) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    let at = EntryId { index: LogIndex(9), term: Term(1) };
    let (catalogue, membership) = (Catalogue::new(ClusterId(1)), Membership::default());
    let manifest = Manifest { at, reach: at.index, membership, catalogue, databases: Vec::new() };
    hub.snapshots.offer(PEER);
    let answer = |ask: &Ask| match ask {
        Ask::Open { .. } => Answer::Opened { view: ViewId(4), at },
        Ask::Fetch { .. } => Answer::Object { bytes: manifest.encode() },
        _ => Answer::Yes,
    };
    let events = hub.events.listen();
    let mut words = || {
        let mut words = Vec::new();
        rounds.step(hub, &mut |_: NodeId, ask: &Ask| {
            words.extend(Some(ask.clone()).filter(|ask| matches!(ask, Ask::Progress { .. })));
            Ok(answer(ask))
        });
        words
    };
    let word = [Ask::Progress { view: ViewId(4), phase: Phase::Install, done: 0, total: 0 }];
    assert_eq!(words(), word);
    let shown = hub.snapshots.transfer.lock().map(|transfer| (transfer.phase, transfer.index));
    assert_eq!((shown, hub.snapshots.coming()), (Some((Phase::Install, at.index)), Some(at.index)));
    for _ in 0..3 {
        clock.advance(KEEP_EVERY);
        assert_eq!(words(), word);
        clock.advance(KEEP_EVERY - Duration::from_millis(1));
        assert_eq!(words(), []);
        clock.advance(Duration::from_millis(1));
    }
    let told = events.try_iter().filter(|event| matches!(event, Event::SnapshotProgress { receiving: true, .. }));
    assert_eq!(told.count(), 4);
    drop(hub.snapshots.take_staged());
    hub.snapshots.set_over();
    assert_eq!(words(), []);
    assert_eq!((*hub.snapshots.transfer.lock(), hub.snapshots.coming()), (None, None));
}

/// Who fetches from another node, as after a change of the leader, goes on by this leader's log. It says so when it is offered
/// one.
/// Shows INV-25.
#[test]
fn the_log_is_kept_for_who_fetches_from_another_node() {
    let (upkeep, _) = upkeep_on(&SimFs::new(1));
    let hub = upkeep.hub();
    lead(hub, Role::Leader);
    hub.set_compacted(LogIndex(100));
    let at = 100;
    for (index, kept) in [(at - 1, None), (at, Some(LogIndex(at))), (at + 5, Some(LogIndex(at + 5)))] {
        hub.snapshots.want(PEER);
        let asked = step(&mut Rounds::default(), hub, &Answer::OnItsWay { index: LogIndex(index) });
        assert_eq!(asked.len(), 1);
        assert_eq!(hub.snapshots.views.floor(), kept, "{index}");
    }
    // It was the last that was heard of it; once its log has got there, it keeps the log by saying so.
    hub.snapshots.views.on_acknowledged(PEER, LogIndex(at + 4));
    assert!(hub.snapshots.views.floor().is_some());
    hub.snapshots.views.on_acknowledged(PEER, LogIndex(at + 5));
    assert_eq!(hub.snapshots.views.floor(), None);
}

/// An offer that is answered by silence of the one who made it costs nothing; what a person has to mend is not asked for all the
/// time.
#[test]
fn a_node_takes_an_offer_at_once_unless_it_gave_up_a_moment_ago() {
    let (upkeep, clock) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    assert_eq!(step(&mut rounds, hub, &Answer::Yes), [], "nobody offered one");
    let open = |asked: Vec<(NodeId, Ask)>| asked.iter().filter(|(_, ask)| matches!(ask, Ask::Open { .. })).count();
    let mut takes = |answer: &Answer| {
        hub.snapshots.offer(PEER);
        open(step(&mut rounds, hub, answer))
    };
    assert_eq!((takes(&Answer::NotNeeded), takes(&Answer::NotNeeded)), (1, 1));
    assert_eq!(takes(&Answer::No("its disk is broken".to_string())), 2, "nor has the third node one");
    let alarms = hub.findings.lock().alarms.clone();
    assert!(alarms[ALARM].contains("its disk is broken"), "{alarms:?}");
    clock.advance(AFTER_GIVING_UP - Duration::from_millis(1));
    assert_eq!(takes(&Answer::NotNeeded), 0);
    clock.advance(Duration::from_millis(1));
    assert_eq!(takes(&Answer::NotNeeded), 1);
}

/// A word that was lost was the end of it: who listened at the source never heard that the snapshot is over.
/// Shows INV-42.
#[test]
fn the_source_is_told_of_an_install_until_it_has_heard() {
    let (upkeep, clock) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    let (view, index, outcome) = (ViewId(4), LogIndex(9), Outcome::Installed);
    let done = Done { source: PEER, view, index, outcome };
    hub.snapshots.set_done(done);
    let mut told = |answer: Option<Answer>| {
        let mut asked = Vec::new();
        rounds.step(hub, &mut |node: NodeId, ask: &Ask| {
            asked.push((node, ask.clone()));
            answer.clone().ok_or_else(|| "no answer".to_string())
        });
        asked
    };
    let word = vec![(PEER, Ask::Done { view, outcome, index })];
    let moment = Duration::from_millis(1);
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(told(None), word);
        clock.advance(Duration::from_secs(seconds) - moment);
        assert_eq!((told(None), hub.snapshots.is_due(clock.now())), (vec![], false), "{seconds}");
        clock.advance(moment);
        assert!(hub.snapshots.is_due(clock.now()));
    }
    assert_eq!(told(Some(Answer::Yes)), word);
    clock.advance(Duration::from_secs(100));
    assert_eq!(told(None), []);
    // What came to nothing is told once: the lease ends by itself. A source that is no member any more is not told.
    hub.snapshots.set_done(Done { outcome: Outcome::NotNeeded, ..done });
    assert_eq!(told(None).len(), 1);
    hub.snapshots.set_done(Done { source: NodeId(9), ..done });
    clock.advance(Duration::from_secs(100));
    assert_eq!(told(None), []);
    assert!(!hub.snapshots.is_due(clock.now()));
}

/// It was lent once more while it was being installed: the view that it came from was given back with another outcome, and whoever
/// listened at its source never heard of its end.
#[test]
fn nothing_is_fetched_while_a_snapshot_is_being_installed() {
    let (upkeep, _) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    let mut opens = || {
        hub.snapshots.offer(PEER);
        let asked = step(&mut rounds, hub, &Answer::NotNeeded);
        asked.iter().filter(|(_, ask)| matches!(ask, Ask::Open { .. })).count()
    };
    assert_eq!(opens(), 1);
    hub.snapshots.put_back(Box::new(staged()));
    assert_eq!(opens(), 0, "it waits");
    let taken = hub.snapshots.take_staged().unwrap();
    assert_eq!(opens(), 0, "it is being installed");
    hub.snapshots.put_back(taken);
    hub.snapshots.end_install();
    assert_eq!(opens(), 0, "it waits for room");
    drop(hub.snapshots.take_staged());
    hub.snapshots.end_install();
    assert_eq!(opens(), 1, "it is over");
}

fn staged() -> Staged {
    let at = EntryId { index: LogIndex(9), term: Term(1) };
    let (catalogue, membership) = (Catalogue::new(ClusterId(1)), Membership::default());
    let manifest = Manifest { at, reach: at.index, membership, catalogue, databases: Vec::new() };
    Staged { source: PEER, view: ViewId(4), manifest, files: Vec::new(), received: 0 }
}

/// This node and others are the voters.
fn vote_with(hub: &Hub, others: &[u16]) {
    let voters = others.iter().map(|id| NodeId(*id)).chain([hub.id]).collect();
    hub.core_status.lock().as_mut().unwrap().membership = Membership { voters, ..Membership::default() };
}

/// One rotten page of one database on the leader, and nobody who lacked the log came back to the cluster any more.
#[test]
fn who_is_refused_by_the_leader_asks_the_others_in_turn() {
    let (upkeep, clock) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    vote_with(hub, &[3, 5, 6]);
    let refuses = || Ok(Answer::No("page 2500 is not what was written".to_string()));
    let silent = || Err("no answer".to_string());
    let mut asks = |answer: &dyn Fn(NodeId) -> Result<Answer, String>| {
        hub.snapshots.offer(PEER);
        let mut asked = Vec::new();
        rounds.step(hub, &mut |node: NodeId, ask: &Ask| {
            asked.extend(Some(node.0).filter(|_| matches!(ask, Ask::Open { .. })));
            answer(node)
        });
        clock.advance(AFTER_GIVING_UP);
        asked
    };
    // The log of one of them would do; that is not the leader's.
    assert_eq!(asks(&|node| if node == PEER { refuses() } else { Ok(Answer::NotNeeded) }), [3, 5, 6]);
    // One that is down does not stand before the others for ever.
    let only_6 = |node: NodeId| if node == PEER { refuses() } else { silent() };
    assert_eq!(asks(&only_6), [3, 5]);
    assert_eq!(asks(&only_6), [3, 6]);
    assert_eq!(asks(&only_6), [3, 5]);
    // Nobody has one.
    assert_eq!(asks(&|_| refuses()), [3, 6, 5]);
    let alarms = hub.findings.lock().alarms.clone();
    assert!(alarms[ALARM].contains("no snapshot from node 3: page 2500"), "{alarms:?}");
    assert!(alarms[ALARM].contains("nor has any other node one"), "{alarms:?}");
    // What the leader has is enough.
    assert_eq!(asks(&|_| Ok(Answer::NotNeeded)), [3]);
}

/// A leader that offers each second and can send nothing, since its disk fails, say, was asked for ever, and nobody else was. Nor does
/// it help that it comes from there what no new file can be made of.
#[test]
fn whoever_fails_is_asked_again_behind_the_others() {
    let at = EntryId { index: LogIndex(9), term: Term(1) };
    for gives_up in [false, true] {
        let (upkeep, clock) = upkeep_on(&SimFs::new(1));
        let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
        vote_with(hub, &[3, 5, 6]);
        let (catalogue, membership) = (Catalogue::new(ClusterId(1)), Membership::default());
        let manifest = Manifest { at, reach: at.index, membership, catalogue, databases: Vec::new() }.encode();
        let mut asks = |answers: &dyn Fn(NodeId) -> Option<Vec<u8>>| {
            hub.snapshots.offer(PEER);
            let mut asked = Vec::new();
            rounds.step(hub, &mut |node: NodeId, ask: &Ask| {
                asked.extend(Some(node.0).filter(|_| matches!(ask, Ask::Open { .. })));
                match ask {
                    Ask::Open { .. } => Ok(Answer::Opened { view: ViewId(4), at }),
                    Ask::Fetch { .. } => {
                        answers(node).map(|bytes| Answer::Object { bytes }).ok_or_else(|| "no answer".to_string())
                    }
                    _ => Ok(Answer::Yes),
                }
            });
            clock.advance(AFTER_GIVING_UP);
            asked
        };
        let fails = |_| gives_up.then(|| b"no manifest".to_vec());
        // Also one that failed before has its turn again, after those that failed since.
        for asked in [3, 5, 6, 3, 5] {
            assert_eq!(asks(&fails), [asked]);
        }
        assert_eq!(asks(&|_| Some(manifest.clone())), [6]);
        // That one is over, and the next one begins with whoever offers it.
        drop(hub.snapshots.take_staged());
        hub.snapshots.end_install();
        assert_eq!(asks(&fails), [3]);
    }
}

/// A view that was closed, and what was this node's own affair, put the source behind one that was slower, or down.
#[test]
fn whoever_did_not_fail_is_asked_again() {
    let answers = |what: &str, object: &Object, at: EntryId| match (object, what) {
        (_, "closes at once") => Ok(Answer::Gone),
        (Object::Manifest, _) => Ok(Answer::Object { bytes: manifest_of_one(at) }),
        (_, "closes") => Ok(Answer::Gone),
        _ => Err("no answer".to_string()),
    };
    let held = (Aim::At("stage.begin"), Failure::Kind(std::io::ErrorKind::WouldBlock));
    for (what, fails_here, sources) in [
        ("closes", None, [3, 3, 3]),
        ("here the new files are held", Some(held), [3, 3, 3]),
        ("here the disk fails", Some((Aim::At("stage.begin"), Failure::EIO)), [3, 3, 3]),
        // Else nobody but that one would ever be asked.
        ("closes at once", None, [3, 5, 3]),
        ("is silent", None, [3, 5, 3]),
    ] {
        let fs = SimFs::new(1);
        let (upkeep, clock) = upkeep_on(&fs);
        let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
        vote_with(hub, &[3, 5]);
        if let Some((aim, failure)) = fails_here {
            fs.fail_at(aim, 1, Lasts::ForGood, failure);
        }
        let at = EntryId { index: LogIndex(9), term: Term(1) };
        let mut asked = Vec::new();
        for _ in sources {
            hub.snapshots.offer(PEER);
            rounds.step(hub, &mut |node: NodeId, ask: &Ask| {
                asked.extend(Some(node.0).filter(|_| matches!(ask, Ask::Open { .. })));
                match ask {
                    Ask::Open { .. } => Ok(Answer::Opened { view: ViewId(4), at }),
                    Ask::Fetch { object, .. } => answers(what, object, at),
                    _ => Ok(Answer::Yes),
                }
            });
            clock.advance(AFTER_GIVING_UP);
        }
        assert_eq!(asked, sources, "{what}");
    }
}

fn manifest_of_one(at: EntryId) -> Vec<u8> {
    let mut catalogue = Catalogue::new(ClusterId(1));
    let name = DatabaseName::new("other").unwrap();
    catalogue.apply_create(LogIndex(5), name, PageSize::DEFAULT, AutoVacuum::None).unwrap();
    let state = Checkpointed { position: Position(9), size: PageCount(1), checksum: PageHash(77) };
    let databases = vec![Listed { id: DatabaseId(5), page_size: PageSize::DEFAULT, at: state }];
    Manifest { at, reach: at.index, membership: Membership::default(), catalogue, databases }.encode()
}

/// A node that nobody sent anything stayed behind, and nobody was told.
#[test]
fn when_all_were_asked_in_vain_people_are_told_until_one_sends_or_the_log_goes_on() {
    let (upkeep, _) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    vote_with(hub, &[3, 5, 6]);
    let at = EntryId { index: LogIndex(9), term: Term(1) };
    let told = || hub.findings.lock().alarms.values().cloned().collect::<Vec<_>>();
    // Who lends a view, and whether anything comes of it.
    let mut round = |lends: Option<u16>, sends: bool| {
        hub.snapshots.offer(PEER);
        let mut sent = false;
        rounds.step(hub, &mut |node: NodeId, ask: &Ask| match ask {
            Ask::Open { .. } if node == PEER => Ok(Answer::No("page 2500 is not what was written".to_string())),
            Ask::Open { .. } if Some(node.0) == lends => Ok(Answer::Opened { view: ViewId(4), at }),
            Ask::Fetch { .. } if sends && !std::mem::replace(&mut sent, true) => {
                Ok(Answer::Object { bytes: manifest_of_one(at) })
            }
            Ask::Fetch { .. } => {
                assert_eq!(told().is_empty(), sends, "a view that is lent is no snapshot yet: {:?}", told());
                Err("the connection broke".to_string())
            }
            _ => Err("no answer".to_string()),
        });
        told()
    };
    assert_eq!(round(None, false), [""; 0], "node 6 may have one");
    for _ in 0..3 {
        let told = round(None, false);
        assert_eq!(told.len(), 1, "{told:?}");
        for words in ["from node 3: page 2500", "node 5: no answer", "node 6: no answer", "asks them again in turn"] {
            assert!(told[0].contains(words), "{words}: {told:?}");
        }
    }
    // It was the turn of node 6, and of node 5 before.
    let told_then = round(Some(5), false);
    assert!(told_then.len() == 1 && told_then[0].contains("node 6: no answer"), "{told_then:?}");
    let told_then = round(Some(6), true);
    assert!(told_then.len() == 1 && told_then[0].contains("node 6: the connection broke"), "{told_then:?}");
    // As when the next leader has what this node needs: nobody offers anything any more.
    hub.core_status.lock().as_mut().unwrap().committed = LogIndex(9);
    assert_eq!(step(&mut rounds, hub, &Answer::Yes), []);
    assert_eq!(told(), [""; 0]);
}

/// It is the same one as long as source and entry are the same, however often a view is opened and by whom in between.
#[test]
fn whoever_fetches_tells_of_each_transfer_once() {
    let (upkeep, _) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    vote_with(hub, &[3, 5]);
    let events = hub.events.listen();
    let mut begun = |index: u64| {
        let at = EntryId { index: LogIndex(index), term: Term(1) };
        hub.snapshots.offer(PEER);
        rounds.step(hub, &mut |_: NodeId, ask: &Ask| match ask {
            Ask::Open { .. } => Ok(Answer::Opened { view: ViewId(4), at }),
            _ => Err("no answer".to_string()),
        });
        let begun = |event| match event {
            Event::SnapshotStarted { peer, index, receiving: true } => Some((peer.0, index.0)),
            _ => None,
        };
        events.try_iter().filter_map(begun).collect::<Vec<_>>()
    };
    // Each attempt is with the other one of the two.
    assert_eq!([9, 9, 9, 9].map(&mut begun), [vec![(3, 9)], vec![(5, 9)], vec![], vec![]]);
    assert_eq!([10, 9, 10, 9].map(&mut begun), [vec![(3, 10)], vec![], vec![], vec![]]);
    // What the log has passed is nothing that anybody has to remember.
    hub.core_status.lock().as_mut().unwrap().committed = LogIndex(9);
    assert_eq!(begun(10), []);
    assert_eq!(hub.snapshots.begun.lock().len(), 1);
}

/// A node that had failed once, before the log went on by itself, counted as asked in vain when another one failed later: people
/// were told at once, with its old reason.
#[test]
fn who_failed_before_the_log_went_on_is_asked_again_before_people_are_told() {
    let (upkeep, clock) = upkeep_on(&SimFs::new(1));
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    vote_with(hub, &[3, 5]);
    let mut round = |offered_by: u16, why: &str| {
        hub.snapshots.offer(NodeId(offered_by));
        let mut asked = Vec::new();
        rounds.step(hub, &mut |node: NodeId, ask: &Ask| {
            asked.extend(Some(node.0).filter(|_| matches!(ask, Ask::Open { .. })));
            Err(why.to_string())
        });
        clock.advance(AFTER_GIVING_UP);
        (asked, hub.findings.lock().alarms.values().cloned().collect::<Vec<_>>())
    };
    let commit = |index: u64| hub.core_status.lock().as_mut().unwrap().committed = LogIndex(index);
    commit(10);
    assert_eq!(round(5, "an old reason"), (vec![5], vec![]));
    // The log goes on: no snapshot was needed, and nobody was told that there is none.
    commit(11);
    assert_eq!(round(3, "a new reason"), (vec![3], vec![]));
    // Nor does it stand behind the others for that any more. Where the log stays, it is as before.
    let (asked, told) = round(3, "a new reason");
    assert_eq!((asked, told.len()), (vec![5], 1));
    assert!(!told[0].contains("an old reason"), "{told:?}");
}

/// A new member that comes while a large transaction is under way gets its snapshot behind that; people were told to see whether
/// those run that had just said that they are busy.
#[test]
fn people_are_not_sent_to_nodes_that_are_only_busy() {
    let advice = |busy: &[u16]| {
        let (upkeep, _) = upkeep_on(&SimFs::new(1));
        let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
        for node in [3, 5] {
            let why = if busy.contains(&node) { BUSY } else { "no answer" };
            rounds.put_last(hub, NodeId(node), why.to_string());
        }
        rounds.tell_of_all(hub, BTreeMap::new());
        let told = hub.findings.lock().alarms[UNSENT].clone();
        (told.contains("each of them is busy"), told.contains("see whether they run"))
    };
    assert_eq!(advice(&[3, 5]), (true, false));
    assert_eq!(advice(&[3]), (false, true));
    assert_eq!(advice(&[]), (false, true));
}

/// What was fetched of a snapshot that never got whole, since its source was lost, stayed on the disk when the log had got further without it:
/// of a database that was dropped meanwhile until the next start.
#[test]
fn what_was_fetched_goes_once_the_log_has_passed_it() {
    let fs = SimFs::new(1);
    let (upkeep, _) = upkeep_on(&fs);
    let (hub, mut rounds) = (upkeep.hub(), Rounds::default());
    let names = || fs.list(std::path::Path::new("/db"), "test").unwrap();
    let before = names();
    let nothing = Checkpointed { position: Position(0), size: PageCount(0), checksum: PageHash::default() };
    let stage = |id| hub.databases.stage(DatabaseId(id), PageSize::DEFAULT, nothing).unwrap();
    for (source, index) in [(PEER, 80), (NodeId(2), 90)] {
        assert!(hub.snapshots.begins((source, LogIndex(index)), LogIndex(2)));
    }
    [5, 91].into_iter().for_each(|id| drop(stage(id)));
    let apply = |index| hub.set_applied(EntryId { index: LogIndex(index), term: Term(1) }, None);
    for index in [79, 89] {
        apply(index);
        step(&mut rounds, hub, &Answer::Yes);
        assert_eq!(names().len(), before.len() + 2, "one of them may go on at {index}");
    }
    apply(90);
    step(&mut rounds, hub, &Answer::Yes);
    let left: Vec<String> = names().into_iter().filter(|name| !before.contains(name)).collect();
    assert_eq!(left, ["91-2.part"], "of a later one");
}
