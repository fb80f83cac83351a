//! What is answered, without a cluster: views that are nothing but a manifest, and of one page.

use std::sync::Arc;
use std::time::Duration;

use shoaldb_vfs::Database;
use shoaldb_vfs::env::sim::{SimClock, SimFs, SimRng};
use shoaldb_vfs::env::{Clock, Env};
use shoaldb_vfs::mapfile::Checkpointed;
use shoaldb_vfs::page::{PageCount, PageHash};
use shoaldb_vfs::transaction::{ChangedPage, Transaction};

use super::super::views::Limits;
use super::*;
use crate::catalogue::{AutoVacuum, DatabaseName};
use crate::config::Config;
use crate::databases::Databases;
use crate::raft::{CoreStatus, Role};
use crate::shared::{Leadership, Shared};
use crate::signal::Waiting;
use crate::snapshot::object::{Phase, ViewId};
use crate::snapshot::{ALARM, Done, Staged, Transfer};
use crate::types::{ClusterId, Incarnation, LogIndex, Term};
use crate::upkeep::tests::upkeep;

/// A node without databases.
fn hub(clock: &Arc<SimClock>, config: Config) -> Hub {
    hub_on(&SimFs::new(1), clock, config)
}

fn hub_on(fs: &SimFs, clock: &Arc<SimClock>, config: Config) -> Hub {
    let shared: Arc<dyn Clock> = clock.clone();
    let env = Env { fs: Arc::new(fs.clone()), clock: shared.clone(), rng: Arc::new(SimRng::new(1)) };
    let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
    let (mailbox, _) = crossbeam_channel::unbounded();
    let waiting = Waiting { clock: shared, pump: None };
    Arc::new(Shared::new(NodeId(1), Incarnation(1), 7, config, waiting, mailbox, databases))
}

/// Two nodes fetch from the same view, without a pause. Over ten seconds they get together what the rate allows, and one object
/// more; whoever must wait is told for how long, and then gets it.
#[test]
fn all_that_fetch_get_together_what_the_rate_allows() {
    const RATE: u64 = 64 << 10;
    const OBJECT: usize = 100_000;
    let clock = Arc::new(SimClock::default());
    let hub = hub(&clock, Config { snapshot_rate: RATE, ..Config::default() });
    let at = EntryId { index: LogIndex(9), term: Term(1) };
    let peers = [NodeId(2), NodeId(3)];
    let cut = Cut {
        at,
        reach: at.index,
        members: peers.to_vec(),
        manifest: vec![7; OBJECT],
        databases: BTreeMap::new(),
        only: None,
    };
    let view = hub.snapshots.views.lend(hub.session, cut, peers[0], clock.now());
    assert!(hub.snapshots.views.reuse(peers[1], (LogIndex(0), LogIndex(0)), LogIndex(0), clock.now()).is_some());

    let ask = Ask::Fetch { view, object: Object::Manifest }.encode();
    let (mut sent, mut after) = (0, None);
    while clock.now() < Duration::from_secs(10) {
        let mut told = None;
        for peer in peers {
            match Answer::decode(serve(&hub, Some(peer), &ask)).unwrap() {
                Answer::Object { bytes } => sent += bytes.len() as u64,
                Answer::Busy { millis } => told = Some(millis),
                other => panic!("{other:?}"),
            }
        }
        assert!(told.is_some(), "both got one at once");
        assert!(after != Some(sent), "told to wait, and nothing came of it");
        after = Some(sent);
        clock.advance(Duration::from_millis(told.map_or(0, |millis| u64::from(millis) + 1)));
    }
    assert!(sent <= 10 * RATE + OBJECT as u64 && sent >= 9 * RATE, "{sent} bytes in ten seconds");
}

/// Whoever listens on the lending side hears how far the other one says that it is.
#[test]
fn how_far_a_snapshot_is_is_told_where_it_comes_from() {
    let (upkeep, _) = upkeep(&SimFs::new(1));
    let hub = upkeep.hub();
    let (at, peer) = (EntryId { index: LogIndex(100), term: Term(1) }, NodeId(3));
    let cut =
        Cut { at, reach: at.index, members: vec![peer], manifest: Vec::new(), databases: BTreeMap::new(), only: None };
    let view = hub.snapshots.views.lend(7, cut, peer, hub.waiting.clock.now());
    let events = hub.events.listen();
    for (done, view, answer) in
        [(10, view, Answer::Yes), (20, view, Answer::Yes), (30, ViewId(view.0 + 1), Answer::Gone)]
    {
        let ask = Ask::Progress { view, phase: Phase::Fetch, done, total: 30 };
        assert_eq!(Answer::decode(serve(hub, Some(peer), &ask.encode())), Ok(answer));
    }
    let told: Vec<Event> = events.try_iter().collect();
    let progress = |done| Event::SnapshotProgress { peer, index: at.index, receiving: false, done, total: 30 };
    assert_eq!(told, [progress(10), progress(20)]);
}

#[test]
fn an_end_is_told_only_if_the_log_goes_on_from_there() {
    for (core_start, outcome, told) in [
        (100, Outcome::Installed, 1),
        (101, Outcome::Installed, 0),
        (0, Outcome::NotNeeded, 0),
        (0, Outcome::GivenUp, 0),
    ] {
        let (upkeep, _) = upkeep(&SimFs::new(1));
        let hub = upkeep.hub();
        let (at, peer) = (EntryId { index: LogIndex(100), term: Term(1) }, NodeId(3));
        let cut = Cut {
            at,
            reach: at.index,
            members: vec![peer],
            manifest: Vec::new(),
            databases: BTreeMap::new(),
            only: None,
        };
        let view = hub.snapshots.views.lend(7, cut, peer, hub.waiting.clock.now());
        hub.set_compacted(LogIndex(core_start));
        let events = hub.events.listen();
        for _ in 0..2 {
            let done = Ask::Done { view, outcome, index: at.index };
            assert_eq!(Answer::decode(serve(hub, Some(peer), &done.encode())), Ok(Answer::Yes));
        }
        let ends = events.try_iter().filter(|event| matches!(event, Event::SnapshotFinished { receiving: false, .. }));
        assert_eq!(ends.count(), told, "{core_start}, {outcome:?}");
    }
}

/// The leader that offers need not be the one that it comes from, and keeps its log for it.
#[test]
fn who_is_offered_a_snapshot_says_which_one_is_on_its_way() {
    let (upkeep, _) = upkeep(&SimFs::new(1));
    let (hub, leader) = (upkeep.hub(), NodeId(3));
    hub.set_leadership(Leadership { role: Role::Follower, term: Term(1), leader: Some(leader) });
    let offer = Ask::Offer { term: Term(1), start: LogIndex(1000) }.encode();
    let answer = || Answer::decode(serve(hub, Some(leader), &offer));
    assert_eq!(answer(), Ok(Answer::Yes));
    hub.snapshots.set_coming(LogIndex(1005));
    assert_eq!(answer(), Ok(Answer::OnItsWay { index: LogIndex(1005) }));
    assert_eq!(hub.snapshots.take_offer(), Some(leader), "and takes it all the same, when that one is over");
    hub.snapshots.set_over();
    assert_eq!(answer(), Ok(Answer::Yes));
}

/// Three that fetch at once share one view, and what is told of each is what would be told of it alone.
#[test]
fn three_that_ask_at_once_are_lent_one_view() {
    let (upkeep, _) = upkeep(&SimFs::new(1));
    let hub = upkeep.hub();
    let peers = [NodeId(2), NodeId(3), NodeId(4)];
    let mut core = hub.core_status.lock().clone().unwrap();
    core.membership.learners = vec![NodeId(4)];
    *hub.core_status.lock() = Some(core);
    let events = hub.events.listen();
    let mut lent = Vec::new();
    // The second time the answer to the first was lost.
    for peer in peers.into_iter().chain(peers) {
        match Answer::decode(serve(hub, Some(peer), &Ask::Open { have: LogIndex(0), shown: LogIndex(0) }.encode())) {
            Ok(Answer::Opened { view, at }) => lent.push((view, at)),
            other => panic!("{other:?}"),
        }
    }
    assert!(lent.iter().all(|view| *view == lent[0]), "{lent:?}");
    let views = &hub.snapshots.views;
    assert_eq!((views.opened(), views.counts()), (1, (1, 3)));
    for peer in peers {
        let done = Ask::Done { view: lent[0].0, outcome: Outcome::Installed, index: lent[0].1.index };
        assert_eq!(Answer::decode(serve(hub, Some(peer), &done.encode())), Ok(Answer::Yes));
    }
    let index = lent[0].1.index;
    let begun = peers.map(|peer| Event::SnapshotStarted { peer, index, receiving: false });
    let ended = peers.map(|peer| Event::SnapshotFinished { peer, index, receiving: false });
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [begun, ended].concat());
}

/// One that had no room and came back, or was silent for longer than its lease, was told of each time, as long as somebody else kept the
/// view; and without anybody else, too, as long as nothing was written.
#[test]
fn a_transfer_is_told_of_once_however_often_its_view_is_lent() {
    let (hub, _) = hub_with_app(&SimFs::new(1), Config { snapshot_chunk_max_size: 0, ..Config::default() });
    let (views, other) = (&hub.snapshots.views, NodeId(3));
    hub.core_status.lock().as_mut().unwrap().membership.learners = vec![other];
    let events = hub.events.listen();
    let index = hub.applied().index;
    let say = |peer, ask: Ask| Answer::decode(serve(&hub, Some(peer), &ask.encode())).unwrap();
    let open = |peer| match say(peer, Ask::Open { have: LogIndex(0), shown: LogIndex(0) }) {
        Answer::Opened { view, .. } => view,
        answer => panic!("{answer:?}"),
    };
    let ends = |peer, view, outcome| assert_eq!(say(peer, Ask::Done { view, outcome, index }), Answer::Yes);
    let told = || events.try_iter().collect::<Vec<_>>();
    let started = |peer| Event::SnapshotStarted { peer, index, receiving: false };
    let finished = |peer| Event::SnapshotFinished { peer, index, receiving: false };

    let view = open(PEER);
    assert_eq!((open(other), told()), (view, vec![started(PEER), started(other)]));
    // It gave up, and then it was silent; the other one keeps the view.
    ends(PEER, view, Outcome::GivenUp);
    assert_eq!((open(PEER), told()), (view, vec![]));
    let limits = Limits { is_pressed: false, age: Duration::from_secs(3600), pinned_bytes: u64::MAX };
    let later = Duration::from_secs(29);
    assert!(views.renew(view, other, later).is_some());
    views.sweep(later + Duration::from_secs(1), limits, |_| true);
    assert_eq!(views.counts(), (1, 1));
    assert_eq!((open(PEER), told()), (view, vec![]));
    // Both gave up: that closes the view, and the next one is of the same entry.
    ends(PEER, view, Outcome::GivenUp);
    ends(other, view, Outcome::GivenUp);
    let another = open(PEER);
    assert!(another != view && told().is_empty());
    // Each beginning has one end. Who needs the same again has lost its disk.
    ends(PEER, another, Outcome::Installed);
    ends(PEER, another, Outcome::Installed);
    assert_eq!(told(), [finished(PEER)]);
    let third = open(PEER);
    ends(PEER, third, Outcome::Installed);
    assert_eq!(told(), [started(PEER), finished(PEER)]);
}

const APP: DatabaseId = DatabaseId(2);
const PEER: NodeId = NodeId(2);

/// A node with a database of one page, and a peer.
fn hub_with_app(fs: &SimFs, config: Config) -> (Hub, Arc<Database>) {
    let hub = hub_on(fs, &Arc::default(), config);
    let (at, mut catalogue) = (EntryId { index: LogIndex(APP.0), term: Term(1) }, Catalogue::new(ClusterId(1)));
    let name = DatabaseName::new("app").unwrap();
    catalogue.apply_create(at.index, name, PageSize::DEFAULT, AutoVacuum::None).unwrap();
    hub.databases.bind(APP, catalogue.database(APP).unwrap()).unwrap();
    hub.begin(catalogue, at);
    let membership = Membership { voters: vec![NodeId(1), PEER], ..Membership::default() };
    *hub.core_status.lock() = Some(CoreStatus::of_follower(at, PEER, membership));
    let db = hub.databases.get(APP).unwrap();
    (hub, db)
}

/// Another state of the only page.
fn write(db: &Database, position: Position) {
    let mut page = db.page(PageNo::FIRST).unwrap().unwrap().to_vec();
    page[27] = 9;
    let hash = PageHash::of(PageNo::FIRST, &page);
    let transaction = Transaction {
        base: Position(APP.0),
        page_size: PageSize::DEFAULT,
        size_after: PageCount(1),
        checksum_after: hash,
        pages: vec![ChangedPage { number: PageNo::FIRST, image: page.into(), hash }],
    };
    db.apply(&transaction, position).unwrap();
}

fn opened(hub: &Hub, ask: &Ask) -> ViewId {
    match Answer::decode(serve(hub, Some(PEER), &ask.encode())) {
        Ok(Answer::Opened { view, .. } | Answer::OpenedOne { view, .. }) => view,
        other => panic!("{other:?}"),
    }
}

fn fetched(hub: &Hub, view: ViewId, object: Object) -> Answer {
    Answer::decode(serve(hub, Some(PEER), &Ask::Fetch { view, object }.encode())).unwrap()
}

fn pages(runs: &[(u32, u32)]) -> Object {
    let runs = runs.iter().map(|(first, count)| (PageNo::new(*first).unwrap(), *count)).collect();
    Object::Pages { database: APP, runs }
}

/// It waited until it has applied as much, for which it may need just the one that asks: one of three has a snapshot that is ahead of
/// its log, all lose power, the disk that it came from is gone, and what is left of the log the third one does not know to be
/// committed. A majority was there, and nothing was committed ever again.
#[test]
fn who_is_behind_what_another_one_shows_lends_it_what_there_is() {
    let (hub, _) = hub_with_app(&SimFs::new(1), Config::default());
    let applied = hub.applied().index;
    let ask =
        |shown| Answer::decode(serve(&hub, Some(PEER), &Ask::Open { have: LogIndex(0), shown }.encode())).unwrap();
    let Answer::Opened { view, at } = ask(applied.next()) else { panic!("nothing is lent") };
    assert_eq!((at, hub.snapshots.views.opened()), (hub.applied(), 1));
    // There is one already, and it shows what whoever asks has at least.
    assert_eq!(ask(applied), Answer::Opened { view, at });
    // It does not, and another one would not, either.
    assert_eq!(ask(applied.next()), Answer::Opened { view, at });
    // Then it would.
    hub.set_reach(applied.next());
    let Answer::Opened { view: another, .. } = ask(applied.next()) else { panic!("nothing is lent") };
    assert_ne!(another, view);
}

/// A view keeps its databases from being checkpointed, so none is opened of which nothing could be sent yet. One that is open
/// already is lent all the same.
#[test]
fn while_all_places_for_sending_are_taken_no_view_is_opened() {
    let (hub, db) = hub_with_app(&SimFs::new(1), Config { snapshot_chunk_max_size: 0, ..Config::default() });
    let (views, other) = (&hub.snapshots.views, NodeId(3));
    hub.core_status.lock().as_mut().unwrap().membership.learners = vec![other];
    let one = Ask::OpenOne { database: APP, beyond: LogIndex(2) };
    let whole = Ask::Open { have: LogIndex(0), shown: LogIndex(0) };
    for (ask, open) in [(one, 1), (whole, 2)] {
        let say = |node| Answer::decode(serve(&hub, Some(node), &ask.encode())).unwrap();
        let mut taken: Vec<_> = std::iter::from_fn(|| views.begin_sending()).collect();
        assert_eq!(say(PEER), Answer::Busy { millis: LATER_MILLIS }, "{ask:?}");
        assert_eq!((db.status().views, views.opened()), (open - 1, open as u64 - 1), "{ask:?}");
        taken.pop();
        opened(&hub, &ask);
        assert_eq!((db.status().views, views.opened()), (open, open as u64), "{ask:?}");
        // The place is free again, and then taken again.
        taken.extend(std::iter::from_fn(|| views.begin_sending()));
        assert!(matches!(say(other), Answer::Opened { .. } | Answer::OpenedOne { .. }), "{ask:?}");
        assert_eq!(views.opened(), open as u64, "{ask:?}");
    }
}

/// One that has no room, say, asks again and again. In between the databases are checkpointed.
#[test]
fn no_checkpoint_waits_for_a_node_that_has_given_up() {
    let (hub, db) = hub_with_app(&SimFs::new(1), Config { snapshot_chunk_max_size: 0, ..Config::default() });
    for attempt in 1..=3 {
        let view = opened(&hub, &Ask::Open { have: LogIndex(0), shown: LogIndex(0) });
        assert_eq!((db.status().views, hub.snapshots.views.opened()), (1, attempt));
        let done = Ask::Done { view, outcome: Outcome::GivenUp, index: hub.applied().index };
        assert_eq!(Answer::decode(serve(&hub, Some(PEER), &done.encode())), Ok(Answer::Yes));
        assert_eq!((db.status().views, db.status().gated), (0, false));
    }
}

/// A database of one page that fits, just fits or does not fit: its checkpoints wait for the one who fetches, or not. What is
/// fetched is the same.
#[test]
fn what_is_small_is_lent_from_memory_and_no_checkpoint_waits_for_it() {
    for (limit, views) in [(0, 1), (4095, 1), (4096, 0), (4097, 0)] {
        let config = Config { snapshot_chunk_max_size: limit, ..Config::default() };
        let (hub, db) = hub_with_app(&SimFs::new(1), config);
        for ask in
            [Ask::Open { have: LogIndex(0), shown: LogIndex(0) }, Ask::OpenOne { database: APP, beyond: LogIndex(2) }]
        {
            let view = opened(&hub, &ask);
            assert_eq!(db.status().views, views, "{limit}: {ask:?}");
            let bytes = db.page(PageNo::FIRST).unwrap().unwrap().to_vec();
            assert_eq!(fetched(&hub, view, pages(&[(1, 1)])), Answer::Object { bytes });
            hub.snapshots.views.close_all();
            assert_eq!(db.status().views, 0);
        }
    }
}

/// An object has a largest size, whatever it is made of, and nothing is in it that is not in the view.
#[test]
fn what_is_too_large_for_an_object_or_not_in_the_view_is_refused() {
    let (hub, _) = hub_with_app(&SimFs::new(1), Config::default());
    let view = opened(&hub, &Ask::Open { have: LogIndex(0), shown: LogIndex(0) });
    let most = OBJECT_BYTES / PageSize::DEFAULT.len();
    let ranges = |first, count| Object::Ranges { database: APP, first, count };
    let hashes = |count| Object::Hashes { database: APP, ranges: vec![0; count] };
    for (object, bytes) in [
        (pages(&vec![(1, 1); most]), Some(OBJECT_BYTES)),
        (pages(&vec![(1, 1); most + 1]), None),
        (pages(&[(1, u32::MAX), (1, u32::MAX)]), None),
        (pages(&[(1, 2)]), None),
        (pages(&[(2, 1)]), None),
        (pages(&[(u32::MAX, 1)]), None),
        (ranges(0, 1), Some(16)),
        (ranges(0, 2), None),
        (ranges(1, 1), None),
        (ranges(u32::MAX, 2), None),
        (ranges(0, RANGES_PER_OBJECT + 1), None),
        (hashes(HASHED_RANGES), Some(16 * HASHED_RANGES)),
        (hashes(HASHED_RANGES + 1), None),
        (Object::Hashes { database: APP, ranges: vec![1] }, None),
        (Object::Ranges { database: DatabaseId(3), first: 0, count: 1 }, None),
    ] {
        match (fetched(&hub, view, object.clone()), bytes) {
            (Answer::Object { bytes: made }, Some(bytes)) => assert_eq!(made.len(), bytes, "{object:?}"),
            (Answer::No(_), None) => {}
            (other, _) => panic!("{object:?}: {other:?}"),
        }
    }
    assert_eq!(fetched(&hub, ViewId(view.0 + 1), Object::Manifest), Answer::Gone);
}

/// A copy that is damaged is lent to nobody, and a page that rots while it is lent is in no object. Who asks hears why.
#[test]
fn what_rots_is_not_lent_and_whoever_asks_hears_why() {
    let fs = SimFs::new(1);
    let (hub, _) = hub_with_app(&fs, Config { snapshot_chunk_max_size: 0, ..Config::default() });
    let open = Ask::Open { have: LogIndex(0), shown: LogIndex(0) };
    let view = opened(&hub, &open);
    fs.edit(std::path::Path::new("/db/2-1.db"), |bytes| bytes[2000] ^= 1);
    let rotten = fetched(&hub, view, pages(&[(1, 1)]));
    assert!(matches!(&rotten, Answer::No(why) if why.contains("page 1 is not what was written")), "{rotten:?}");
    hub.snapshots.views.close_all();
    assert!(hub.databases.convict(APP, Damage::Rotten, "a test wants it".to_string()));
    let refused = Answer::decode(serve(&hub, Some(PEER), &open.encode())).unwrap();
    assert!(matches!(&refused, Answer::No(why) if why.contains("ask another node")), "{refused:?}");
}

/// A view under which the WAL grows too much is closed, although it is used.
#[test]
fn a_view_that_keeps_too_much_from_being_checkpointed_is_closed() {
    let (hub, db) = hub_with_app(&SimFs::new(1), Config { snapshot_chunk_max_size: 0, ..Config::default() });
    let view = opened(&hub, &Ask::Open { have: LogIndex(0), shown: LogIndex(0) });
    write(&db, Position(3));
    let sweep = |pinned_bytes| {
        let limits = Limits { is_pressed: false, age: Duration::from_secs(3600), pinned_bytes };
        hub.snapshots.views.sweep(Duration::ZERO, limits, |_| true)
    };
    assert_eq!((sweep(4096), sweep(4095)), (0, 1));
    assert_eq!(hub.snapshots.views.capped(), 1);
    assert_eq!(fetched(&hub, view, pages(&[(1, 1)])), Answer::Gone);
    assert_eq!(db.status().views, 0);
}

/// The files of a database that was made behind the anchor may be ahead of what a node knows to be committed after a start. One that was
/// the only node from which another voter could get a snapshot waited to lend it until more is committed, for ever (found by the simulation).
/// So are files that a snapshot brought, and they lack what is dropped behind it.
#[test]
fn what_is_in_main_files_is_lent_although_it_is_not_known_to_be_committed() {
    let whole = Ask::Open { have: LogIndex(0), shown: LogIndex(0) };
    let one = Ask::OpenOne { database: APP, beyond: LogIndex(2) };
    let busy = Answer::Busy { millis: SOON_MILLIS };
    let say = |hub: &Hub, ask: &Ask| Answer::decode(serve(hub, Some(PEER), &ask.encode())).unwrap();
    let manifest = |hub: &Hub| match fetched(hub, opened(hub, &whole), Object::Manifest) {
        Answer::Object { bytes } => Manifest::decode(&bytes).unwrap(),
        other => panic!("{other:?}"),
    };

    let (hub, db) = hub_with_app(&SimFs::new(1), Config::default());
    write(&db, Position(4));
    assert_eq!(say(&hub, &whole), busy, "accepted, maybe, and soon passed by the applier");
    assert!(db.checkpoint().is_ok());
    assert_eq!(db.status().checkpointed, Position(4));
    let lent = manifest(&hub);
    assert_eq!((lent.at, lent.reach), (hub.applied(), LogIndex(4)));
    assert_eq!(lent.databases.iter().map(|listed| listed.at.position).collect::<Vec<_>>(), [Position(4)]);
    assert_eq!(say(&hub, &one), busy, "a copy is mended by the log");

    let (hub, _) = hub_with_app(&SimFs::new(1), Config::default());
    hub.set_reach(LogIndex(9));
    assert_eq!(manifest(&hub).reach, LogIndex(9));
    let shown = |index| say(&hub, &Ask::Open { have: LogIndex(0), shown: LogIndex(index) });
    let Answer::Opened { view, .. } = shown(9) else { panic!("nothing is lent") };
    assert!(matches!(shown(9), Answer::Opened { view: again, .. } if again == view), "it shows as much");
    let catalogue = hub.catalogue.lock().clone().unwrap();
    hub.databases.install(hub.applied().index, &catalogue, Vec::new(), &[APP]).unwrap();
    hub.snapshots.views.close_all();
    let lent = manifest(&hub);
    assert_eq!((lent.gone(), lent.databases), (vec![APP], vec![]));
}

/// Each object is read once for all that ask for it at about the same time, and all get the same. One that cannot be made is
/// asked for by each.
#[test]
fn three_that_fetch_at_once_have_each_object_read_once() {
    let (hub, db) = hub_with_app(&SimFs::new(1), Config { snapshot_chunk_max_size: 0, ..Config::default() });
    let peers = [NodeId(2), NodeId(3), NodeId(4)];
    hub.core_status.lock().as_mut().unwrap().membership.learners = peers[1..].to_vec();
    let say = |peer, ask: Ask| Answer::decode(serve(&hub, Some(peer), &ask.encode())).unwrap();
    let views = peers.map(|peer| match say(peer, Ask::Open { have: LogIndex(0), shown: LogIndex(0) }) {
        Answer::Opened { view, .. } => view,
        other => panic!("{other:?}"),
    });
    let page = db.page(PageNo::FIRST).unwrap().unwrap().to_vec();
    let hash = PageHash::of(PageNo::FIRST, &page).0.to_le_bytes().to_vec();
    let hashes = Object::Hashes { database: APP, ranges: vec![0] };
    let (mut read, mut sent) = (0, 0);
    for (object, bytes) in [(pages(&[(1, 1)]), page), (hashes, hash)] {
        for (peer, view) in peers.into_iter().zip(views) {
            let fetched = say(peer, Ask::Fetch { view, object: object.clone() });
            assert_eq!(fetched, Answer::Object { bytes: bytes.clone() }, "{peer}: {object:?}");
        }
        read += bytes.len() as u64;
        sent += 3 * bytes.len() as u64;
        assert_eq!(hub.snapshots.views.bytes(), (read, sent), "{object:?}");
    }
    for (peer, view) in peers.into_iter().zip(views) {
        let refused = say(peer, Ask::Fetch { view, object: pages(&[(1, 2)]) });
        assert!(matches!(refused, Answer::No(_)), "{peer}: {refused:?}");
    }
    assert_eq!(hub.snapshots.views.bytes(), (read, sent));
}

/// It waited for room while the leader's log went on: it was installed for nothing once there was room, and kept its files until
/// then; only then the one was fetched that is of use.
#[test]
fn a_snapshot_that_waits_is_dropped_once_the_log_of_the_leader_begins_behind_it() {
    const APP: DatabaseId = DatabaseId(2);
    for (start, waits, drops) in
        [(999, true, false), (1000, true, false), (1001, true, true), (1001, false, false), (u64::MAX, true, true)]
    {
        let what = format!("the log begins behind {start}, it waits: {waits}");
        let (upkeep, _) = upkeep(&SimFs::new(1));
        let (hub, leader, source) = (upkeep.hub(), NodeId(3), NodeId(2));
        hub.set_leadership(Leadership { role: Role::Follower, term: Term(1), leader: Some(leader) });
        let at = EntryId { index: LogIndex(1000), term: Term(1) };
        let (catalogue, membership) = (Catalogue::new(ClusterId(1)), Membership::default());
        let manifest = Manifest { at, reach: at.index, membership, catalogue, databases: Vec::new() };
        let hash = PageHash::of(PageNo::FIRST, &[7; 4096]);
        let state = Checkpointed { position: Position(9), size: PageCount(1), checksum: hash };
        let stage = || hub.databases.stage(APP, PageSize::DEFAULT, state);
        let mut staging = stage().unwrap();
        staging.write(PageNo::FIRST, &[7; 4096]).unwrap();
        let files = vec![(APP, staging.finish(&mut |_, _| Ok(vec![hash])).unwrap())];
        let (phase, began) = (Phase::Install, Duration::ZERO);
        let transfer = Transfer { source, index: at.index, phase, done: 0, total: 0, began };
        *hub.snapshots.transfer.lock() = Some(transfer);
        hub.snapshots.set_coming(at.index);
        hub.snapshots.set_staged(Staged { source, view: ViewId(4), manifest, files, received: 0 });
        hub.findings.lock().alarms.insert(ALARM.to_string(), "it waits to be installed".to_string());
        // Else it is being installed at this moment, and whether it waits again is not known yet.
        let installing = if waits { None } else { hub.snapshots.take_staged() };

        let offer = Ask::Offer { term: Term(1), start: LogIndex(start) }.encode();
        let answer = Answer::decode(serve(hub, Some(leader), &offer)).unwrap();
        assert_eq!(hub.snapshots.take_offer(), Some(leader), "{what}");
        let there = (hub.snapshots.has_staged(), hub.snapshots.coming(), hub.snapshots.transfer.lock().is_some());
        let alarmed = !hub.findings.lock().alarms.is_empty();
        let told = hub.snapshots.due_reports(hub.waiting.clock.now());
        if drops {
            let done = Done { source, view: ViewId(4), index: at.index, outcome: Outcome::GivenUp };
            assert_eq!(
                (answer, there, alarmed, told),
                (Answer::Yes, (false, None, false), false, vec![done]),
                "{what}"
            );
            assert!(!hub.snapshots.is_in_hand(), "{what}");
            // The next one goes on with what came for it.
            assert!(stage().unwrap().adopt(PageNo::FIRST, hash).unwrap(), "{what}");
        } else {
            let on_its_way = Answer::OnItsWay { index: at.index };
            assert_eq!((answer, there, alarmed), (on_its_way, (waits, Some(at.index), true), true), "{what}");
            assert!(told.is_empty() && hub.snapshots.is_in_hand(), "{what}");
        }
        drop(installing);
    }
}
