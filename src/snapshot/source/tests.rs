//! What is answered, without a cluster: a view that is nothing but a manifest.

use std::time::Duration;

use shoaldb_vfs::env::sim::{SimClock, SimFs, SimRng};
use shoaldb_vfs::env::{Clock, Env};

use super::*;
use crate::config::Config;
use crate::databases::Databases;
use crate::shared::Shared;
use crate::signal::Waiting;
use crate::snapshot::object::{Phase, ViewId};
use crate::types::{Incarnation, LogIndex, Term};
use crate::upkeep::tests::upkeep;

/// Two nodes fetch from the same view, without a pause. Over ten seconds they get together what the rate allows, and one object
/// more; whoever must wait is told for how long, and then gets it.
#[test]
fn all_that_fetch_get_together_what_the_rate_allows() {
    const RATE: u64 = 64 << 10;
    const OBJECT: usize = 100_000;
    let clock = Arc::new(SimClock::default());
    let shared: Arc<dyn Clock> = clock.clone();
    let env = Env { fs: Arc::new(SimFs::new(1)), clock: shared.clone(), rng: Arc::new(SimRng::new(1)) };
    let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
    let (mailbox, _) = crossbeam_channel::unbounded();
    let (waiting, config) =
        (Waiting { clock: shared, pump: None }, Config { snapshot_rate: RATE, ..Config::default() });
    let hub: Hub = Arc::new(Shared::new(NodeId(1), Incarnation(1), 7, config, waiting, mailbox, databases));
    let at = EntryId { index: LogIndex(9), term: Term(1) };
    let peers = [NodeId(2), NodeId(3)];
    let cut = Cut { at, members: peers.to_vec(), manifest: vec![7; OBJECT], databases: BTreeMap::new(), only: None };
    let view = hub.snapshots.views.lend(hub.session, cut, peers[0], clock.now());
    assert!(hub.snapshots.views.reuse(peers[1], LogIndex(0), LogIndex(0), clock.now()).is_some());

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
    let cut = Cut { at, members: vec![peer], manifest: Vec::new(), databases: BTreeMap::new(), only: None };
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
        let cut = Cut { at, members: vec![peer], manifest: Vec::new(), databases: BTreeMap::new(), only: None };
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
