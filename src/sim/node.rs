//! One node: from its directory to an engine that turns, its disk, its applier, and its crashes.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use shoaldb_vfs::Registration;
use shoaldb_vfs::env::sim::{Aim, Failure, SimFs, SimRng};
use shoaldb_vfs::env::{Env, Label};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::bounds::Seen;
use super::clock::NodeClock;
use super::excuses::Gives;
use super::inside::Inside;
use super::shape::Shape;
use super::told::{Installs, Told};
use super::wire::{Packet, Wire};
use super::world::{At, Ev, Pumper, State, World};
use crate::appender::Appender;
use crate::apply::Applier;
use crate::boot::Directory;
use crate::config::Config;
use crate::databases::Databases;
use crate::engine::Engine;
use crate::events::Event;
use crate::found::Founding;
use crate::found::format::{Belongs, Identity};
use crate::log::Log;
use crate::net::Transport;
use crate::node;
use crate::raft::PersistBatch;
use crate::replicate::NodeReplicator;
use crate::shared::{Hub, Input, Shared};
use crate::signal::Waiting;
use crate::snapshot::rounds::Rounds;
use crate::types::{LogEntry, LogIndex, NodeId, PROTOCOL};
use crate::upkeep::Upkeep;

/// Microseconds that a sync takes without faults.
pub(super) const CALM_SYNC: u64 = 500;

static NEXT_VFS: AtomicU64 = AtomicU64::new(1);

/// A database that connections may be kept for, and how they read.
pub(super) type ConnKey = (&'static str, bool);

/// A node that is up.
pub(super) struct Running {
    pub(super) hub: Hub,
    pub(super) vfs: Arc<Registration>,
    pub(super) mailbox: Receiver<Input>,
    pub(super) directory: Arc<Directory>,
    pub(super) wire: Arc<Wire>,
    /// Until the node belongs to a cluster, and one of those that found it.
    pub(super) founding: Option<Founding>,
    /// Until the node belongs to a cluster that existed before it.
    pub(super) joining: Option<Identity>,
    pub(super) seat: Option<Seat>,
    pub(super) turn_due: bool,
    pub(super) idle: Vec<(ConnKey, crate::connection::Connection)>,
    /// Open transactions of patient clients.
    pub(super) readers: Vec<super::patient::OpenReader>,
    /// What calls inside the VFS meet, and the open transactions of patient writers.
    pub(super) inside: Arc<Inside>,
    /// The log or the core has failed: the process stays, and acknowledges nothing.
    pub(super) crippled: bool,
    /// Its log ended with an unfinished write when it was opened.
    pub(super) tail_cut: bool,
    /// What it tells its listeners, and what it has told.
    pub(super) events: Receiver<Event>,
    pub(super) told: Told,
    /// What was seen of its bounds.
    pub(super) bounds: Seen,
}

/// A node's seat in its cluster: engine, log, applier.
pub(super) struct Seat {
    pub(super) engine: Engine,
    pub(super) log: Arc<Log>,
    pub(super) appender: Appender,
    pub(super) batches: VecDeque<PersistBatch>,
    pub(super) disk_busy: bool,
    pub(super) applier: Applier,
    pub(super) upkeep: Upkeep,
    /// Not here while they are on their way.
    pub(super) rounds: Option<Rounds>,
    pub(super) entries: VecDeque<Vec<LogEntry>>,
    pub(super) apply_due: bool,
    pub(super) engine_over: bool,
    pub(super) apply_over: bool,
}

/// A place for a node, with its disk. Lives count from 1; an even distance between two lives is nothing special.
pub(super) struct Slot {
    pub(super) id: NodeId,
    pub(super) fs: SimFs,
    rng: Arc<SimRng>,
    pub(super) clock: Arc<NodeClock>,
    /// The newest protocol version of the program that is started there the next time, and of the one that runs.
    pub(super) speaks: u16,
    pub(super) speaks_now: u16,
    /// A snapshot whose install its machine did not survive.
    pub(super) installing: Option<LogIndex>,
    pub(super) installs: Installs,
    /// What this process found damaged was explained by calls that failed.
    pub(super) damage_was_excused: bool,
    /// This process has been seen with all its copies served.
    pub(super) was_whole: bool,
    /// Calls of a process before this one may have made a copy useless, and no process since was whole.
    pub(super) came_damaged: bool,
    /// A WAL or the log was longer in this process than readers may keep them.
    pub(super) kept_much: bool,
    /// The last start met an I/O error where it opens files or ends a checkpoint: a copy may have been given up for that.
    pub(super) opened_badly: bool,
    /// Some of what this disk has came within a snapshot, or may have.
    pub(super) got_snapshot: bool,
    pub(super) life: u64,
    pub(super) running: Option<Box<Running>>,
    /// What a crash left to be dropped outside the world's lock.
    #[allow(clippy::vec_box, reason = "boxed already where they come from")]
    garbage: Vec<Box<Running>>,
    /// Until then nothing of this node moves.
    pub(super) paused_until: Duration,
    /// Its next failed sync of the log is followed by a power cut.
    pub(super) distrusted: bool,
    /// Bytes of main files that have rotted while this process used them, and what they are now.
    pub(super) rotten_in_use: Vec<(PathBuf, u64, u8)>,
    /// A process ended while clients' calls were in it, and not all of these have come back: nobody hears what they say.
    pub(super) died_under_calls: bool,
    /// Its directory was lost.
    pub(super) wiped: bool,
    /// One of the nodes that found the cluster; the others come into it later.
    pub(super) founder: bool,
    /// Somebody has started it.
    pub(super) started: bool,
    /// Until then the applier takes no step.
    pub(super) apply_stalled_until: Duration,
    /// Microseconds that a sync takes.
    pub(super) sync_micros: u64,
}

impl Slot {
    pub(super) fn new(at: At, seed: u64, founder: bool, clock: NodeClock, speaks: u16) -> Slot {
        let own = xxh3_64_with_seed(&[at as u8], seed);
        Slot {
            id: NodeId(at as u16 + 1),
            fs: SimFs::new(own),
            rng: Arc::new(SimRng::new(own ^ 1)),
            clock: Arc::new(clock),
            speaks,
            speaks_now: speaks,
            installing: None,
            life: 0,
            running: None,
            garbage: Vec::new(),
            paused_until: Duration::ZERO,
            distrusted: false,
            rotten_in_use: Vec::new(),
            installs: Installs::default(),
            damage_was_excused: false,
            was_whole: false,
            came_damaged: false,
            kept_much: false,
            opened_badly: false,
            got_snapshot: false,
            died_under_calls: false,
            wiped: false,
            founder,
            started: founder,
            apply_stalled_until: Duration::ZERO,
            sync_micros: 500,
        }
    }

    /// Its directory is lost, with all that was on its disk.
    pub(super) fn wipe(&mut self, seed: u64) {
        self.fs = SimFs::new(seed);
        self.wiped = true;
        self.got_snapshot = false;
        self.opened_badly = false;
        self.came_damaged = false;
    }

    /// Labels of all calls that its disk has seen, but for those of the simulation itself.
    pub(super) fn labels(&self) -> Vec<Label> {
        self.fs.counts().into_keys().filter(|label| !label.starts_with("sim.")).collect()
    }

    /// How many calls have failed on purpose so far: those of this disk, and those of SQLite in this process.
    pub(super) fn failures(&self) -> u64 {
        let inside = self.running.as_ref().map_or(0, |running| running.inside.failures());
        self.fs.failures_in_all() + inside
    }

    pub(super) fn take_running(&mut self) -> Option<Box<Running>> {
        self.running.take()
    }

    pub(super) fn hub(&self) -> Option<&Hub> {
        self.running.as_ref().map(|running| &running.hub)
    }

    fn boot(
        &mut self,
        world: &Arc<World>,
        list: &[(NodeId, String)],
        shape: &Shape,
    ) -> crate::error::Result<Box<Running>> {
        let env = Env { fs: Arc::new(self.fs.clone()), clock: self.clock.clone(), rng: self.rng.clone() };
        let (segment_bytes, log_limit, part_bytes) = shape.sizes(self.id);
        // On every other node queues are as short as settings allow, so that they are full.
        let queue = if self.id.0.is_multiple_of(2) { 32 << 20 } else { 64 << 10 };
        let config = Config {
            tail_cache_limit: queue,
            inflight_limit: queue,
            apply_limit: queue,
            uncommitted_limit: queue.max(1 << 20),
            commit_timeout: shape.commit_timeout,
            busy_timeout: Duration::ZERO,
            segment_bytes,
            wal_limit: shape.wal_limit,
            scrub_bytes: 4 << 20,
            speaks: (PROTOCOL, self.speaks),
            part_bytes,
            // So small that checkpoints, anchors and compactions come many times in a run, at different times on each node.
            checkpoint_bytes: 16 << 10,
            checkpoint_age: Duration::from_secs(3),
            log_limit,
            snapshot_read_view_close_timeout: shape.view_age,
            snapshot_wal_pin_max: shape.view_pins,
            reader_patience: Duration::from_secs(3),
            reader_wal_pin_max: shape.reader_pins(),
            // All databases here are small. Most nodes are to lend them as if they were not; where views are lent for long, most are
            // to lend copies, which keep nothing from being checkpointed: only then may the log move on beyond a view.
            snapshot_chunk_max_size: if self.id.0.is_multiple_of(3) == shape.lends_long { 0 } else { 16 << 20 },
            ..Config::default()
        };
        self.speaks_now = self.speaks;
        let path = Path::new("/n");
        env.fs.create_dir_all(path, "dir.create")?;
        let directory = Arc::new(Directory::new(env.clone(), path, &config));
        let identity = directory.identify(self.id)?;
        let databases = Databases::open(env.clone(), directory.databases_dir(), config.wal_limit)?;
        let (sender, mailbox) = crossbeam_channel::unbounded();
        let waiting = Waiting { clock: env.clock.clone(), pump: Some(Arc::new(Pumper(world.me.clone()))) };
        let session = env.rng.next_u64();
        let incarnation = identity.incarnation;
        let hub: Hub = Arc::new(Shared::new(self.id, incarnation, session, config, waiting, sender, databases));
        let listener = hub.events.listen();
        let wire = Arc::new(Wire::default());
        let transport: Arc<dyn Transport> = wire.clone();
        hub.set_transport(&transport);
        let (mut founding, mut joining, mut seat, mut tail_cut) = (None, None, None, false);
        match &identity.belongs {
            Belongs::Nowhere if self.founder => {
                founding = Some(Founding::new(identity, list).map_err(std::io::Error::other)?);
            }
            Belongs::Nowhere => joining = Some(identity),
            Belongs::Founded(_) | Belongs::Joined(_) => {
                let opened = directory.open_log(&identity)?;
                tail_cut = opened.cut.is_some();
                let (engine, log) = node::begin(&hub, opened, &directory)?;
                seat = Some(Seat::new(engine, log, &hub));
            }
        }
        let finishing = hub.snapshots.finishing();
        let replicator = Arc::new(NodeReplicator { hub: hub.clone() });
        let name = format!("sim-{}", NEXT_VFS.fetch_add(1, Ordering::Relaxed));
        let vfs = Registration::new(&name, replicator, env.clock.clone()).map_err(std::io::Error::other)?;
        Ok(Box::new(Running {
            hub,
            vfs: Arc::new(vfs),
            mailbox,
            directory,
            wire,
            founding,
            joining,
            seat,
            turn_due: false,
            idle: Vec::new(),
            readers: Vec::new(),
            inside: Arc::default(),
            crippled: false,
            tail_cut,
            events: listener,
            told: Told::beginning_with(finishing),
            bounds: Seen::default(),
        }))
    }
}

impl Seat {
    pub(super) fn new(engine: Engine, log: Arc<Log>, hub: &Hub) -> Seat {
        Seat {
            engine,
            appender: Appender::default(),
            batches: VecDeque::new(),
            disk_busy: false,
            applier: Applier::new(hub.clone()),
            upkeep: Upkeep::new(hub.clone(), log.clone(), hub.findings.lock().anchored),
            rounds: Some(Rounds::default()),
            entries: VecDeque::new(),
            apply_due: false,
            engine_over: false,
            apply_over: false,
            log,
        }
    }
}

impl State {
    /// Microseconds that a sync takes: without faults no disk is so slow that a commit takes longer than whoever waits for it.
    pub(super) fn usual_sync(&self) -> u64 {
        if self.stormy { self.shape.sync_micros } else { CALM_SYNC }
    }

    /// The node of this life, if it is up.
    pub(super) fn alive(&mut self, at: At, life: u64) -> Option<&mut Running> {
        let slot = &mut self.slots[at];
        if slot.life == life { slot.running.as_deref_mut() } else { None }
    }

    pub(super) fn pause_left(&self, at: At) -> Option<Duration> {
        self.slots[at].paused_until.checked_sub(self.now).filter(|left| *left > Duration::ZERO)
    }

    pub(super) fn on_restart(&mut self, at: At, world: &Arc<World>) {
        if self.slots[at].running.is_some() || self.is_switched_off(at) {
            return;
        }
        let founders = self.slots.iter().filter(|slot| slot.founder);
        let list: Vec<_> = founders.map(|slot| (slot.id, format!("n{}", slot.id))).collect();
        let calls_may_have_damaged = self.calls_may_have_damaged(at);
        let slot = &mut self.slots[at];
        slot.came_damaged = calls_may_have_damaged || slot.came_damaged && !slot.was_whole;
        slot.was_whole = false;
        slot.started = true;
        slot.rotten_in_use.clear();
        slot.damage_was_excused = false;
        slot.kept_much = false;
        slot.fs.restart();
        slot.fs.clear_faults();
        if self.strikes() && self.dice.below(8) == 0 {
            let nth = 1 + self.dice.below(30);
            let seed = self.dice.below(u64::MAX);
            self.slots[at].fs.crash_at(Aim::Any, nth, seed);
        }
        if self.strikes() && self.dice.below(8) == 0 {
            self.fail_a_start(at);
        }
        let sync_micros = self.usual_sync();
        let slot = &mut self.slots[at];
        slot.life += 1;
        let life = slot.life;
        slot.sync_micros = sync_micros;
        self.arm(at);
        let slot = &mut self.slots[at];
        let first = life == 1;
        match slot.boot(world, &list, &self.shape) {
            Ok(running) => {
                let founded = running.seat.is_some();
                let joins = running.joining.is_some();
                let tail_cut = running.tail_cut;
                let rolled_forward = slot.installing.take().is_some_and(|index| running.hub.log_start() == index);
                let of_copies =
                    |label: &str| ["db.", "dw.", "map.", "ckpt."].iter().any(|kind| label.starts_with(kind));
                let badly = |(label, failure): &(Label, Failure)| of_copies(label) && *failure != Failure::ENOSPC;
                slot.opened_badly = slot.fs.failed_since_restart().keys().any(badly);
                slot.running = Some(running);
                self.compare_with_what_was_told(at);
                self.acquitted(at);
                if tail_cut {
                    self.count("tails of logs cut");
                }
                if rolled_forward {
                    self.count("installs rolled forward");
                }
                self.note(format_args!("n{} starts (life {life}), in a cluster: {founded}", at + 1));
                self.after_micros(1, Ev::Tick(at, life));
                let millis = 1 + self.dice.below(300);
                self.after_millis(millis, Ev::Upkeep(at, life));
                self.turn_soon(at);
                if joins {
                    // It knows nobody but the doors that it asks.
                    self.after_millis(10, Ev::Join(at, life));
                } else {
                    (0..self.slots.len()).for_each(|peer| self.transmit(at, peer, Packet::Greeting));
                }
                if !first {
                    self.count("restarts");
                }
            }
            Err(error) if self.slots[at].fs.is_down() => {
                self.note(format_args!("n{} crashed while it started: {error}", at + 1));
                self.count("crashes while starting");
                self.after_millis(200, Ev::Restart(at));
            }
            Err(error) if self.condemned(at, &error.to_string()) => {}
            Err(error) => {
                self.stopped(at, Gives::NoStart, format!("n{} does not start after a crash: {error}", at + 1));
            }
        }
    }

    /// Carries out what the founding of this node wants.
    pub(super) fn after_founding(&mut self, at: At) {
        let Some(running) = self.slots[at].running.as_deref_mut() else { return };
        let Some(founding) = &mut running.founding else { return };
        match node::carry_out(founding, &running.directory, Some(&*running.wire)) {
            Ok(None) => {}
            Ok(Some(opened)) => match node::begin(&running.hub, opened, &running.directory) {
                Ok((engine, log)) => {
                    running.seat = Some(Seat::new(engine, log, &running.hub));
                    running.founding = None;
                    self.count("nodes founded");
                    self.note(format_args!("n{} belongs to a cluster", at + 1));
                }
                Err(error) if self.slots[at].fs.is_down() => {
                    self.note(format_args!("n{} crashed at its first start in a cluster: {error}", at + 1));
                }
                Err(error) => {
                    self.stopped(at, Gives::NoStart, format!("n{}: no core after the founding: {error}", at + 1));
                }
            },
            Err(error) if self.slots[at].fs.is_down() => {
                self.note(format_args!("n{} crashed while it was founded: {error}", at + 1));
                self.count("crashes during founding");
            }
            Err(error) => self.stopped(at, Gives::NoStart, format!("n{}: founding: {error}", at + 1)),
        }
        if !self.slots[at].fs.is_down() {
            self.flush(at);
        }
    }

    /// Machines that crashed in the middle of an event are down.
    pub(super) fn notice_crashes(&mut self) {
        for at in 0..self.slots.len() {
            if self.slots[at].running.is_some() && self.slots[at].fs.is_down() {
                self.note(format_args!("n{} crashed in a call", at + 1));
                self.count(if self.slots[at].fs.was_killed() { "kills in a call" } else { "power cuts in a call" });
                self.bury(at);
                self.rot_what_a_start_needs(at);
            }
        }
    }

    /// The process is gone. Its callers hear that, once their stack gets to them.
    pub(super) fn bury(&mut self, at: At) {
        self.source_died(at);
        self.end_calls_of(at);
        self.hear_the_last_of(at);
        if let Some(running) = self.slots[at].running.take() {
            let called = self.is_called(at);
            self.count_inside(&running.hub);
            self.count_failures(at);
            running.hub.stop();
            if called {
                self.count("crashes under a call");
                self.slots[at].died_under_calls = true;
            }
            if running.hub.progress().settled() < running.hub.applied().index {
                self.count("crashes in the middle of a split");
            }
            self.checks.on_crash(at);
            self.slots[at].garbage.push(running);
        }
        if self.options.storm && self.stormy {
            // A supervisor, or a human.
            let millis = if self.dice.below(4) == 0 { 1 + self.dice.below(30) } else { 100 + self.dice.below(4000) };
            self.after_millis(millis, Ev::Restart(at));
        } else {
            self.after_millis(10, Ev::Restart(at));
        }
    }

    /// Adds what the databases of a node counted.
    pub(super) fn count_inside(&mut self, hub: &Hub) {
        for (what, counter) in [("transactions in parts", &hub.splits_whole), ("parts refused", &hub.parts_refused)] {
            self.add(what, counter.load(Ordering::Relaxed));
        }
        let (anchors, compactions) = {
            let findings = hub.findings.lock();
            (findings.anchors, findings.compactions)
        };
        for (what, times) in [
            ("checkpoints redone", hub.databases.redone()),
            ("compactions", compactions),
            ("anchors", anchors),
            ("views closed at their cap", hub.snapshots.views.capped()),
            ("views refused as too old", hub.snapshots.views.outgrown()),
        ] {
            self.add(what, times);
        }
        for (_, db) in hub.databases.all() {
            let counters = &db.counters;
            for (what, counter) in [
                ("heals", &counters.heals),
                ("fences", &counters.fences),
                ("detaches", &counters.detaches),
                ("transactions applied", &counters.applied),
                ("transactions refused for their base", &counters.passed_by),
                ("transactions accepted", &counters.accepted),
                ("readers ended", &counters.readers_ended),
                ("checkpoints", &counters.checkpoints),
                ("laps of a wal", &counters.restarts),
            ] {
                self.add(what, counter.load(Ordering::Relaxed));
            }
        }
    }

    /// Adds the calls of its disk that failed in this process.
    pub(super) fn count_failures(&mut self, at: At) {
        for ((_, failure), times) in self.slots[at].fs.failed_since_restart() {
            self.add(if failure == Failure::ENOSPC { "calls that found no room" } else { "calls that failed" }, times);
        }
    }

    /// Ends the process, by a signal or with the power of its machine.
    pub(super) fn crash(&mut self, at: At, power: bool) {
        let life = self.slots[at].life;
        let seed = self.dice.below(u64::MAX);
        let in_write = self.dice.below(2) == 0;
        let label = if self.dice.below(2) == 0 { "log.write" } else { "log.sync" };
        let Some(running) = self.slots[at].running.as_deref_mut() else { return };
        let busy = running.seat.as_ref().is_some_and(|seat| seat.disk_busy && !seat.batches.is_empty());
        if power {
            if busy && in_write && !running.crippled {
                self.slots[at].fs.crash_at(Aim::At(label), 1, seed);
                self.slots[at].paused_until = Duration::ZERO;
                self.count("crashes in a write or sync");
                self.on_disk(at, life);
            }
            if self.slots[at].running.is_some() && !self.slots[at].fs.is_down() {
                self.slots[at].fs.crash(seed);
            }
        }
        self.note(format_args!("n{} {}", at + 1, if power { "loses power" } else { "is killed" }));
        if self.slots[at].running.is_some() {
            self.bury(at);
        }
    }

    #[allow(clippy::vec_box, reason = "boxed already where they come from")]
    pub(super) fn take_garbage(&mut self) -> Vec<Box<Running>> {
        self.slots.iter_mut().flat_map(|slot| std::mem::take(&mut slot.garbage)).collect()
    }

    pub(super) fn has_ready_leader(&self) -> bool {
        self.slots.iter().any(|slot| slot.hub().is_some_and(|hub| hub.is_ready_leader()))
    }

    /// Whether all nodes are up and show all that any of them has in its log.
    pub(super) fn all_even(&self) -> bool {
        let last = |slot: &Slot| {
            let hub = slot.hub()?;
            let status = hub.core_status.lock().clone()?;
            let applied = hub.applied().index;
            (status.last == applied && status.committed == applied).then_some(applied)
        };
        let mut ends = self.participants().into_iter().map(|at| last(&self.slots[at]));
        let first = ends.next().flatten();
        let bounded = |at: At| self.unbounded(at).is_none();
        let even = first.is_some() && ends.all(|other| other == first) && self.members_settled();
        let even = even && self.participants().into_iter().all(|at| self.has_told_all(at));
        even && self.rot_is_over() && self.participants().into_iter().all(bounded)
    }

    /// Whether this node is up and has told the ends of all snapshots.
    fn has_told_all(&self, at: At) -> bool {
        let told = |running: &Running| {
            let left = running.hub.snapshots.finishing().map(|it| it.left);
            !running.told.lacks_an_end() && left.is_none_or(|left| left.install.is_none() && !left.end)
        };
        self.slots[at].running.as_deref().is_some_and(told)
    }

    pub(super) fn describe(&self) -> String {
        let words = self.slots.iter().map(|slot| match slot.hub() {
            None => format!("n{} down", slot.id),
            Some(hub) => {
                let (lead, applied) = (hub.leadership(), hub.applied());
                let seat = slot.running.as_ref().is_some_and(|running| running.seat.is_some());
                let unbound = hub.with_catalogue(|catalogue| {
                    let unbound = catalogue.members().filter(|(_, member)| member.incarnation.is_none());
                    unbound.map(|(id, _)| id).collect::<Vec<_>>()
                });
                let core = hub.core_status.lock().clone();
                let core = core.map(|core| (core.last, core.persisted, core.committed, core.membership, core.peers));
                format!(
                    "n{} {:?} term {} leader {:?} applied {} settled {} seat {seat} trouble {:?} unbound {unbound:?} log from {} core {core:?}",
                    slot.id,
                    lead.role,
                    lead.term,
                    lead.leader,
                    applied.index,
                    hub.progress().settled(),
                    hub.trouble(),
                    hub.core_start()
                )
            }
        });
        let unbounded = (0..self.slots.len()).filter_map(|at| Some(format!("n{}: {}", at + 1, self.unbounded(at)?)));
        let rotten = self.rotting.and_then(|rotting| self.slots[rotting.at].hub());
        let rotten = rotten.map(|hub| format!("rotten n{}: {:?}", hub.id, crate::status::alarms(hub)));
        let untold = self.participants().into_iter().filter(|at| !self.has_told_all(*at));
        let untold = untold.map(|at| {
            let finishing = self.slots[at].hub().map(|hub| hub.snapshots.finishing());
            format!("n{}: an end of a snapshot is not told: {finishing:?}", at + 1)
        });
        let settled = self.unsettled().map(str::to_string);
        words
            .chain(untold)
            .chain(settled)
            .chain(unbounded)
            .chain(rotten)
            .chain(self.rot_left())
            .collect::<Vec<_>>()
            .join("; ")
    }
}
