//! An engine that goes on with another core.

use std::path::Path;

use shoaldb_vfs::env::sim::{SimClock, SimFs, SimRng};
use shoaldb_vfs::env::{Clock, Env};

use super::*;
use crate::appender::Appender;
use crate::boot::genesis_of;
use crate::config::Config;
use crate::databases::Databases;
use crate::engine::Outlet;
use crate::found::format::FoundMessage;
use crate::raft::PersistBatch;
use crate::shared::Shared;
use crate::signal::Waiting;
use crate::types::{Message, NodeId};

const NODE: NodeId = NodeId(1);

#[derive(Default)]
struct Wanted {
    batches: Vec<PersistBatch>,
    entries: Vec<LogEntry>,
}

impl Outlet for Wanted {
    fn persist(&mut self, batch: PersistBatch) {
        self.batches.push(batch);
    }

    fn send(&mut self, _: Message) {}

    fn send_found(&mut self, _: NodeId, _: FoundMessage) {}

    fn apply(&mut self, entries: Vec<LogEntry>) {
        self.entries.extend(entries);
    }
}

/// A snapshot that is installed brings another core, and reads that wait for the old one's answer must not wait for it to
/// their deadline.
#[test]
fn reads_that_wait_are_asked_of_the_core_behind_a_snapshot() {
    let fs = SimFs::new(1);
    let clock: Arc<dyn Clock> = Arc::new(SimClock::default());
    let env = Env { fs: Arc::new(fs), clock: clock.clone(), rng: Arc::new(SimRng::new(3)) };
    env.fs.create_dir_all(Path::new("/a"), "test").unwrap();
    let directory = Directory::new(env.clone(), Path::new("/a"), &Config::default());
    let mut founding = Founding::new(directory.identify(NODE).unwrap(), &[(NODE, String::new())]).unwrap();
    founding.on_event(found::Event::Tick, 7);
    let identity = founding.take_effects().persist.unwrap();
    let opened = directory.found(&identity, genesis_of(&identity).unwrap()).unwrap();
    let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
    let (mailbox, inputs) = crossbeam_channel::unbounded();
    let waiting = Waiting { clock, pump: None };
    let hub: Hub = Arc::new(Shared::new(NODE, identity.incarnation, 5, Config::default(), waiting, mailbox, databases));
    let restored = opened.restored.clone();
    let (mut engine, log) = begin(&hub, opened, &directory).unwrap();

    let request = hub.begin_read();
    for input in inputs.try_iter() {
        engine.on_input(input);
    }
    assert_eq!((hub.unanswered_reads(), hub.read_index(request)), (vec![request], None));
    let applied = restored.applied;
    engine.exchange_core(Core::open(core_config(&hub, 9), restored, log.clone()).unwrap(), applied);
    let mut appender = Appender::default();
    for _ in 0..100 {
        let mut out = Wanted::default();
        assert!(engine.turn(&mut out));
        appender.append(&log, out.batches, &mut |batch| hub.send(Input::Persisted { batch })).unwrap();
        for entry in out.entries {
            hub.set_applied(entry.id, None);
            hub.send(Input::Applied { index: entry.id.index });
        }
        for input in inputs.try_iter() {
            engine.on_input(input);
        }
        engine.on_tick();
    }
    assert!(hub.read_index(request).is_some());
    assert!(hub.unanswered_reads().is_empty());
}
