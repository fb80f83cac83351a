use shoaldb_vfs::env::sim::SimFs;

use super::*;
use crate::types::{LogIndex, Term};
use crate::upkeep::tests::upkeep;

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
            assert_eq!(Answer::decode(&serve(hub, Some(peer), &done.encode())), Ok(Answer::Yes));
        }
        let ends = events.try_iter().filter(|event| matches!(event, Event::SnapshotFinished { receiving: false, .. }));
        assert_eq!(ends.count(), told, "{core_start}, {outcome:?}");
    }
}
