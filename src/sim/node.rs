//! One node: from its directory to an engine that turns, its disk, its applier, and its crashes.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use shoaldb_vfs::Registration;
use shoaldb_vfs::env::sim::{Aim, SimFs, SimRng};
use shoaldb_vfs::env::{Env, Fs};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::faults::Mend;
use super::inside::Inside;
use super::shape::Shape;
use super::world::{At, Ev, Pumper, State, World};
use crate::appender::Appender;
use crate::apply::{Applier, Step};
use crate::boot::Directory;
use crate::config::Config;
use crate::databases::Databases;
use crate::engine::{Engine, Outlet};
use crate::found::format::{Belongs, FoundMessage};
use crate::found::{self, Founding};
use crate::log::Log;
use crate::net::handshake::{Hello, Judge, PROTOCOL, Purpose, Standing};
use crate::net::{RequestError, Transport};
use crate::node;
use crate::raft::{PersistBatch, Role};
use crate::replicate::NodeReplicator;
use crate::shared::{Hub, Input, Shared};
use crate::signal::Waiting;
use crate::snapshot::object::{Answer, Ask};
use crate::snapshot::rounds::Rounds;
use crate::snapshot::source;
use crate::status;
use crate::types::{ClusterId, Incarnation, LogEntry, LogIndex, Message, MessageKind, NodeId};
use crate::upkeep::Upkeep;

static NEXT_VFS: AtomicU64 = AtomicU64::new(1);

/// What travels.
#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "nearly all packets are messages")]
pub(super) enum Packet {
    Raft(Message),
    Found(FoundMessage),
    /// A connection was opened; sent now and then, as if connections came and went.
    Greeting,
}

impl Packet {
    pub(super) fn asks_for_a_vote(&self) -> bool {
        matches!(self, Packet::Raft(message) if message.kind == MessageKind::Vote)
    }
}

/// The sending half of the network, as the code under test sees it.
#[derive(Default)]
struct Wire {
    out: Mutex<Vec<(NodeId, Packet)>>,
    recheck: AtomicBool,
}

impl Transport for Wire {
    fn send(&self, message: Message) {
        self.out.lock().push((message.to, Packet::Raft(message)));
    }
    fn send_found(&self, to: NodeId, message: FoundMessage) {
        self.out.lock().push((to, Packet::Found(message)));
    }
    fn request(&self, _: NodeId, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, RequestError> {
        Err(RequestError::NotSent("there are no requests in the simulation".to_string()))
    }
    fn set_peer(&self, _: NodeId, _: &str) {}
    fn remove_peer(&self, _: NodeId) {}
    fn recheck(&self) {
        self.recheck.store(true, Ordering::Relaxed);
    }
}

/// A database that connections may be kept for, and how they read.
pub(super) type ConnKey = (&'static str, bool);

/// A node that is up.
pub(super) struct Running {
    pub(super) hub: Hub,
    pub(super) vfs: Arc<Registration>,
    mailbox: Receiver<Input>,
    directory: Arc<Directory>,
    wire: Arc<Wire>,
    /// Until the node belongs to a cluster.
    founding: Option<Founding>,
    pub(super) seat: Option<Seat>,
    turn_due: bool,
    incarnation: Incarnation,
    pub(super) idle: Vec<(ConnKey, crate::connection::Connection)>,
    /// Open transactions of patient clients.
    pub(super) readers: Vec<super::patient::OpenReader>,
    /// What calls inside the VFS meet, and the open transactions of patient writers.
    pub(super) inside: Arc<Inside>,
    /// The log or the core has failed: the process stays, and acknowledges nothing.
    pub(super) crippled: bool,
}

/// A node's seat in its cluster: engine, log, applier.
pub(super) struct Seat {
    engine: Engine,
    pub(super) log: Arc<Log>,
    appender: Appender,
    batches: VecDeque<PersistBatch>,
    disk_busy: bool,
    applier: Applier,
    upkeep: Upkeep,
    rounds: Rounds,
    entries: VecDeque<Vec<LogEntry>>,
    apply_due: bool,
    engine_over: bool,
    apply_over: bool,
}

/// A place for a node, with its disk. Lives count from 1; an even distance between two lives is nothing special.
pub(super) struct Slot {
    pub(super) id: NodeId,
    pub(super) fs: SimFs,
    rng: Arc<SimRng>,
    pub(super) life: u64,
    pub(super) running: Option<Box<Running>>,
    /// What a crash left to be dropped outside the world's lock.
    #[allow(clippy::vec_box, reason = "boxed already where they come from")]
    garbage: Vec<Box<Running>>,
    /// Until then nothing of this node moves.
    pub(super) paused_until: Duration,
    /// Its directory was lost.
    pub(super) wiped: bool,
    /// Until then the applier takes no step.
    pub(super) apply_stalled_until: Duration,
    /// Microseconds that a sync takes.
    pub(super) sync_micros: u64,
}

impl Slot {
    pub(super) fn new(at: At, seed: u64) -> Slot {
        let own = xxh3_64_with_seed(&[at as u8], seed);
        Slot {
            id: NodeId(at as u16 + 1),
            fs: SimFs::new(own),
            rng: Arc::new(SimRng::new(own ^ 1)),
            life: 0,
            running: None,
            garbage: Vec::new(),
            paused_until: Duration::ZERO,
            wiped: false,
            apply_stalled_until: Duration::ZERO,
            sync_micros: 500,
        }
    }

    pub(super) fn take_running(&mut self) -> Option<Box<Running>> {
        self.running.take()
    }

    pub(super) fn hub(&self) -> Option<&Hub> {
        self.running.as_ref().map(|running| &running.hub)
    }

    pub(super) fn hash_disk(&self, mut hash: u64) -> u64 {
        for dir in ["/n", "/n/log", "/n/db"] {
            for file in self.fs.list(Path::new(dir), "sim.hash").unwrap_or_default() {
                let path = PathBuf::from(dir).join(&file);
                hash = xxh3_64_with_seed(file.as_bytes(), hash);
                hash = xxh3_64_with_seed(&self.fs.peek(&path).unwrap_or_default(), hash);
            }
        }
        hash
    }

    fn boot(
        &mut self,
        world: &Arc<World>,
        list: &[(NodeId, String)],
        shape: &Shape,
    ) -> crate::error::Result<Box<Running>> {
        let env = Env { fs: Arc::new(self.fs.clone()), clock: world.clock.clone(), rng: self.rng.clone() };
        let config = Config {
            commit_timeout: shape.commit_timeout,
            busy_timeout: Duration::ZERO,
            segment_bytes: 64 << 10,
            // One page, on some nodes: what changes more pages goes in parts.
            part_bytes: if self.id.0.is_multiple_of(2) { 4 << 20 } else { 5_000 },
            // So small that checkpoints, anchors and compactions come many times in a run, at different times on each node.
            checkpoint_bytes: 16 << 10,
            checkpoint_age: Duration::from_secs(3),
            log_limit: 192 << 10,
            ..Config::default()
        };
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
        let wire = Arc::new(Wire::default());
        let transport: Arc<dyn Transport> = wire.clone();
        hub.set_transport(&transport);
        let (founding, seat) = match &identity.belongs {
            Belongs::Nowhere => {
                let founding = Founding::new(identity, list).map_err(std::io::Error::other)?;
                (Some(founding), None)
            }
            _ => {
                let opened = directory.open_log(&identity)?;
                let (engine, log) = node::begin(&hub, opened, &directory)?;
                (None, Some(Seat::new(engine, log, &hub)))
            }
        };
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
            seat,
            turn_due: false,
            incarnation,
            idle: Vec::new(),
            readers: Vec::new(),
            inside: Arc::default(),
            crippled: false,
        }))
    }
}

impl Seat {
    fn new(engine: Engine, log: Arc<Log>, hub: &Hub) -> Seat {
        Seat {
            engine,
            appender: Appender::default(),
            batches: VecDeque::new(),
            disk_busy: false,
            applier: Applier::new(hub.clone()),
            upkeep: Upkeep::new(hub.clone(), log.clone(), hub.findings.lock().anchored),
            rounds: Rounds::default(),
            entries: VecDeque::new(),
            apply_due: false,
            engine_over: false,
            apply_over: false,
            log,
        }
    }
}

/// Effects of one turn, on their way.
struct Effects<'a> {
    batches: &'a mut VecDeque<PersistBatch>,
    entries: &'a mut VecDeque<Vec<LogEntry>>,
    wire: &'a Wire,
}

impl Outlet for Effects<'_> {
    fn persist(&mut self, batch: PersistBatch) {
        self.batches.push_back(batch);
    }
    fn send(&mut self, message: Message) {
        self.wire.send(message);
    }
    fn send_found(&mut self, to: NodeId, message: FoundMessage) {
        self.wire.send_found(to, message);
    }
    fn apply(&mut self, entries: Vec<LogEntry>) {
        self.entries.push_back(entries);
    }
}

impl State {
    /// The node of this life, if it is up.
    fn alive(&mut self, at: At, life: u64) -> Option<&mut Running> {
        let slot = &mut self.slots[at];
        if slot.life == life { slot.running.as_deref_mut() } else { None }
    }

    fn pause_left(&self, at: At) -> Option<Duration> {
        self.slots[at].paused_until.checked_sub(self.now).filter(|left| *left > Duration::ZERO)
    }

    pub(super) fn on_restart(&mut self, at: At, world: &Arc<World>) {
        if self.slots[at].running.is_some() {
            return;
        }
        let list: Vec<_> = self.slots.iter().map(|slot| (slot.id, format!("n{}", slot.id))).collect();
        let slot = &mut self.slots[at];
        slot.fs.restart();
        slot.fs.clear_faults();
        if self.stormy && self.options.storm && self.dice.below(8) == 0 {
            let nth = 1 + self.dice.below(30);
            let seed = self.dice.below(u64::MAX);
            self.slots[at].fs.crash_at(Aim::Any, nth, seed);
        }
        let slot = &mut self.slots[at];
        slot.life += 1;
        let life = slot.life;
        slot.sync_micros = self.shape.sync_micros;
        self.arm(at);
        let slot = &mut self.slots[at];
        let first = life == 1;
        match slot.boot(world, &list, &self.shape) {
            Ok(running) => {
                let founded = running.seat.is_some();
                slot.running = Some(running);
                self.note(format_args!("n{} starts (life {life}), in a cluster: {founded}", at + 1));
                self.after_micros(1, Ev::Tick(at, life));
                let millis = 1 + self.dice.below(300);
                self.after_millis(millis, Ev::Upkeep(at, life));
                self.turn_soon(at);
                for peer in 0..self.slots.len() {
                    self.transmit(at, peer, Packet::Greeting);
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
            Err(error) => self.stopped(at, format!("n{} does not start after a crash: {error}", at + 1)),
        }
    }

    pub(super) fn turn_soon(&mut self, at: At) {
        let life = self.slots[at].life;
        let Some(running) = self.slots[at].running.as_deref_mut() else { return };
        if !running.turn_due {
            running.turn_due = true;
            let micros = self.dice.below(200);
            self.after_micros(micros, Ev::Turn(at, life));
        }
    }

    /// Callers put things into mailboxes; the engines must notice.
    pub(super) fn schedule_turns(&mut self) {
        for at in 0..self.slots.len() {
            let waiting = self.slots[at].running.as_ref().is_some_and(|r| !r.turn_due && !r.mailbox.is_empty());
            if waiting {
                self.turn_soon(at);
            }
        }
    }

    pub(super) fn on_tick(&mut self, at: At, life: u64) {
        let pause = self.pause_left(at);
        let wait = pause.unwrap_or(Duration::from_millis(50));
        let Some(running) = self.alive(at, life) else { return };
        if pause.is_none() {
            if let Some(founding) = &mut running.founding {
                let random = running.directory.env.rng.next_u64();
                founding.on_event(found::Event::Tick, random);
                self.after_founding(at);
            } else if let Some(seat) = running.seat.as_mut().filter(|seat| !seat.engine_over) {
                seat.engine.on_tick();
            }
            self.turn_soon(at);
            if self.chance(10) {
                let to = self.dice.below(self.slots.len() as u64) as usize;
                self.transmit(at, to, Packet::Greeting);
            }
        }
        self.at(wait, Ev::Tick(at, life));
    }

    /// Carries out what the founding of this node wants.
    fn after_founding(&mut self, at: At) {
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
                Err(error) => self.stopped(at, format!("n{}: no core after the founding: {error}", at + 1)),
            },
            Err(error) if self.slots[at].fs.is_down() => {
                self.note(format_args!("n{} crashed while it was founded: {error}", at + 1));
                self.count("crashes during founding");
            }
            Err(error) => self.stopped(at, format!("n{}: founding: {error}", at + 1)),
        }
        if !self.slots[at].fs.is_down() {
            self.flush(at);
        }
    }

    pub(super) fn on_turn(&mut self, at: At, life: u64) {
        if let Some(left) = self.pause_left(at) {
            if self.alive(at, life).is_some() {
                self.at(left, Ev::Turn(at, life));
            }
            return;
        }
        let Some(running) = self.alive(at, life) else { return };
        running.turn_due = false;
        if let Some(founding) = &mut running.founding {
            let Ok(input) = running.mailbox.try_recv() else { return };
            let event = match input {
                Input::Found { from, message } => Some(found::Event::Message(from, message)),
                Input::Connected { peer, cluster } => Some(found::Event::Connected(peer, cluster)),
                Input::Propose { number, .. } => {
                    running.hub.pending.decide(number, crate::pending::Decision::NotCommitted);
                    None
                }
                _ => None,
            };
            if let Some(event) = event {
                founding.on_event(event, running.directory.env.rng.next_u64());
                self.after_founding(at);
            }
            return;
        }
        let Some(seat) = running.seat.as_mut().filter(|seat| !seat.engine_over) else { return };
        for input in running.mailbox.try_iter() {
            seat.engine.on_input(input);
        }
        let mut out = Effects { batches: &mut seat.batches, entries: &mut seat.entries, wire: &running.wire };
        seat.engine_over = !seat.engine.turn(&mut out);
        let stopped = seat.engine_over.then(|| running.hub.trouble().unwrap_or_default());
        if let Some(why) = stopped
            && !self.slots[at].fs.is_down()
        {
            self.stopped(at, format!("n{}: the engine stopped: {why}", at + 1));
        }
        self.flush(at);
    }

    /// Sends effects on their way: to the disk, the applier, the network.
    fn flush(&mut self, at: At) {
        let life = self.slots[at].life;
        let sync = self.slots[at].sync_micros;
        let Some(running) = self.slots[at].running.as_deref_mut() else { return };
        let packets = std::mem::take(&mut *running.wire.out.lock());
        let recheck = running.wire.recheck.swap(false, Ordering::Relaxed);
        let (mut disk, mut apply, mut votes) = (false, false, false);
        if let Some(seat) = &mut running.seat {
            disk = !seat.disk_busy && !seat.batches.is_empty();
            seat.disk_busy |= disk;
            let is_vote = |batch: &PersistBatch| {
                batch.entries.is_empty()
                    && batch.must_sync
                    && batch.hard_state.is_some_and(|state| state.vote.is_some())
            };
            votes = disk && seat.batches.iter().any(is_vote);
            apply = !seat.apply_due && !seat.entries.is_empty();
            seat.apply_due |= apply;
        }
        if disk {
            let micros = 20 + self.dice.below(sync * 2);
            self.after_micros(micros, Ev::Disk(at, life));
            if votes && self.stormy && self.chance(self.shape.cut_votes) {
                self.count("power cut before a vote was on disk");
                self.after_micros(micros / 2, Ev::Mend(Mend::Cut(at)));
            }
        }
        if apply {
            let micros = self.dice.below(300);
            self.after_micros(micros, Ev::Apply(at, life));
        }
        for (to, packet) in packets {
            self.transmit(at, usize::from(to.0) - 1, packet);
        }
        if recheck {
            self.bind_unbound(at);
        }
    }

    fn bind_unbound(&mut self, leader: At) {
        let Some(hub) = self.slots[leader].hub() else { return };
        if hub.leadership().role != Role::Leader {
            return;
        }
        let unbound = hub.with_catalogue(|catalogue| {
            catalogue.members().filter(|(_, member)| member.incarnation.is_none()).map(|(id, _)| id).collect::<Vec<_>>()
        });
        for id in unbound.unwrap_or_default() {
            let node = usize::from(id.0) - 1;
            let there = self.slots[node].running.as_ref().is_some_and(|running| running.seat.is_some());
            if there && !self.net.cut[leader][node] && !self.net.cut[node][leader] {
                // Its connection may take a while, and it is a listed node without a directory until then.
                let micros = if self.stormy && self.dice.below(2) == 0 { self.dice.below(3_000_000) } else { 500 };
                self.after_micros(micros, Ev::Bind { leader, node });
            }
        }
    }

    pub(super) fn on_disk(&mut self, at: At, life: u64) {
        let pause = self.pause_left(at);
        let Some(running) = self.alive(at, life) else { return };
        if let Some(left) = pause {
            self.at(left, Ev::Disk(at, life));
            return;
        }
        let Some(seat) = &mut running.seat else { return };
        seat.disk_busy = false;
        let batches = std::mem::take(&mut seat.batches);
        if batches.is_empty() {
            return;
        }
        let truncates =
            |batch: &PersistBatch| batch.entries.first().is_some_and(|e| e.id.index <= seat.log.last().index);
        let truncations = batches.iter().filter(|batch| truncates(batch)).count();
        let hub = running.hub.clone();
        let mut persisted = |batch| hub.post(Input::Persisted { batch });
        let appended = seat.appender.append(&seat.log, batches, &mut persisted);
        if let Err(error) = &appended {
            running.hub.post(Input::Failed { what: error.in_words() });
        }
        if appended.is_ok() {
            // Without a spare the next switch takes longer; nothing else depends on it.
            let _ = seat.log.prepare_spare();
        } else {
            running.crippled = true;
            seat.batches.clear();
            seat.disk_busy = true;
            if !self.slots[at].fs.is_down() {
                self.note(format_args!("n{}: the log failed", at + 1));
                self.count("log failures");
                let millis = 300 + self.dice.below(3000);
                self.after_millis(millis, Ev::Mend(Mend::Crippled(at, life)));
            }
        }
        for _ in 0..truncations {
            self.count("truncations");
        }
        self.turn_soon(at);
        self.flush(at);
    }

    /// Machines that crashed in the middle of an event are down.
    pub(super) fn notice_crashes(&mut self) {
        for at in 0..self.slots.len() {
            if self.slots[at].running.is_some() && self.slots[at].fs.is_down() {
                self.note(format_args!("n{} crashed in a call", at + 1));
                self.count("crashes in a call");
                self.bury(at);
            }
        }
    }

    pub(super) fn on_apply(&mut self, at: At, life: u64) {
        let stalled = self.slots[at].apply_stalled_until.checked_sub(self.now).filter(|left| *left > Duration::ZERO);
        let pause = self.pause_left(at).or(stalled);
        let disturb = self.chance(100);
        let Some(running) = self.alive(at, life) else { return };
        if let Some(left) = pause {
            self.at(left, Ev::Apply(at, life));
            return;
        }
        let hub = running.hub.clone();
        let Some(seat) = running.seat.as_mut().filter(|seat| !seat.apply_over) else { return };
        while let Some(entries) = seat.entries.pop_front() {
            seat.applier.push(entries);
        }
        running.inside.disturb_apply.store(disturb, Ordering::Relaxed);
        let step = seat.applier.step();
        let rolled_back = std::mem::take(&mut *running.inside.rolled_back.lock());
        match step {
            Step::Done => {
                let micros = 10 + self.dice.below(200);
                self.after_micros(micros, Ev::Apply(at, life));
            }
            Step::Waiting(..) => {
                self.count("waits for publication");
                self.after_micros(500, Ev::Apply(at, life));
            }
            Step::Idle => {
                seat.apply_due = false;
                hub.post(Input::Applied { index: hub.applied().index });
                self.turn_soon(at);
            }
            Step::Stopped(reason) => {
                seat.apply_over = true;
                if !self.slots[at].fs.is_down() {
                    self.stopped(at, format!("n{}: the applier stopped: {reason}", at + 1));
                }
            }
        }
        for unique in rolled_back {
            self.count("rolled back in the middle of an apply");
            self.never_asked(at, unique, "by choice, in the middle of an apply");
        }
        self.flush(at);
    }

    pub(super) fn on_upkeep(&mut self, at: At, life: u64) {
        let pause = self.pause_left(at);
        if self.alive(at, life).is_none() {
            return;
        }
        if pause.is_none() {
            let floor = self.floor_from_leader(at);
            let Some(running) = self.alive(at, life) else { return };
            if let Some(seat) = running.seat.as_mut().filter(|seat| !seat.engine_over) {
                if let Some(floor) = floor {
                    seat.upkeep.learn_floor(floor);
                }
                seat.upkeep.step();
            }
            self.snapshots(at, life);
            self.turn_soon(at);
            self.flush(at);
        }
        let millis = 150 + self.dice.below(200);
        self.after_millis(pause.map_or(millis, |left| left.as_millis() as u64 + millis), Ev::Upkeep(at, life));
    }

    /// What this node does about snapshots: a transfer goes from question to question in one moment, unless one of them, or
    /// its answer, gets lost.
    fn snapshots(&mut self, at: At, life: u64) {
        let Some(running) = self.alive(at, life) else { return };
        let hub = running.hub.clone();
        let Some(seat) = running.seat.as_mut().filter(|seat| !seat.engine_over) else { return };
        let mut rounds = std::mem::take(&mut seat.rounds);
        rounds.step(&hub, &mut |to, ask| self.ask(at, usize::from(to.0) - 1, ask));
        let Some(running) = self.alive(at, life) else { return };
        let Some(seat) = running.seat.as_mut() else { return };
        seat.rounds = rounds;
        // Installing waits for a transaction that is to be shown, and here nobody would show it meanwhile.
        if seat.applier.awaits() {
            return;
        }
        let Some(staged) = hub.snapshots.take_staged() else { return };
        for input in running.mailbox.try_iter() {
            seat.engine.on_input(input);
        }
        let mut out = Effects { batches: &mut seat.batches, entries: &mut seat.entries, wire: &running.wire };
        seat.engine_over = !seat.engine.turn(&mut out);
        let installed = node::go_on_behind(&hub, &seat.log, &seat.engine.core_status(), *staged);
        let what = match installed {
            Ok(Some((core, applied))) => {
                seat.batches.clear();
                seat.entries.clear();
                seat.appender = Appender::default();
                seat.applier = Applier::new(hub.clone());
                seat.engine.exchange_core(core, applied);
                "snapshots installed"
            }
            Ok(None) => "snapshots that the log had overtaken",
            Err(what) => {
                hub.post(Input::Failed { what });
                running.crippled = true;
                seat.disk_busy = true;
                seat.batches.clear();
                "snapshots that failed"
            }
        };
        seat.upkeep.begin_anew();
        hub.post(Input::Announce);
        let crippled = running.crippled;
        self.note(format_args!("n{}: {what}", at + 1));
        self.count(what);
        if crippled && !self.slots[at].fs.is_down() {
            let millis = 300 + self.dice.below(3000);
            self.after_millis(millis, Ev::Mend(Mend::Crippled(at, life)));
        }
    }

    fn ask(&mut self, from: At, to: At, ask: &Ask) -> Result<Answer, String> {
        let lost = |what: &str| Err(format!("{what} was lost"));
        if to >= self.slots.len() || self.net.cut[from][to] || self.net.cut[to][from] || self.chance(40) {
            return lost("the question");
        }
        if self.pause_left(to).is_some() || self.standing(from, to).is_none() {
            return lost("the connection");
        }
        let (sender, Some(hub)) = (self.slots[from].id, self.slots[to].hub().cloned()) else {
            return lost("the node");
        };
        let mut answer = source::serve(&hub, Some(sender), &ask.encode());
        self.turn_soon(to);
        if self.slots[to].fs.is_down() || self.chance(40) {
            return lost("the answer");
        }
        if self.chance(50) {
            let place = self.dice.below(answer.len() as u64) as usize;
            answer[place] ^= 1 << self.dice.below(8);
            self.count("answers about snapshots damaged");
        }
        self.count("answers about snapshots");
        Answer::decode(&answer).map_err(|damaged| damaged.to_string())
    }

    /// The answer of the leader that this node knows, if they reach each other.
    fn floor_from_leader(&self, at: At) -> Option<LogIndex> {
        let leader = usize::from(self.slots[at].hub()?.leadership().leader?.0) - 1;
        let reached = !self.net.cut[at][leader] && !self.net.cut[leader][at];
        let hub = self.slots[leader].hub().filter(|_| reached)?;
        status::floor_of_members(hub)
    }

    /// Whether `to` lets a packet of `from` in, as a connection's handshake would have it.
    fn standing(&self, from: At, to: At) -> Option<(Standing, Option<ClusterId>)> {
        let sender = self.slots[from].running.as_ref()?;
        let receiver = self.slots[to].running.as_ref()?;
        let cluster_of = |hub: &Hub| hub.catalogue.lock().as_ref().map(|catalogue| catalogue.cluster());
        let cluster = cluster_of(&sender.hub);
        let hello = Hello {
            versions: (PROTOCOL, PROTOCOL),
            purpose: Purpose::Peer,
            cluster,
            from: Some(self.slots[from].id),
            to: Some(self.slots[to].id),
            incarnation: sender.incarnation,
            address: String::new(),
        };
        let mine = cluster_of(&receiver.hub);
        let catalogue = receiver.hub.catalogue.lock();
        let judge = Judge { me: self.slots[to].id, cluster: mine, catalogue: catalogue.as_ref() };
        judge.hello(&hello).ok().map(|standing| (standing, cluster))
    }

    pub(super) fn on_deliver(&mut self, from: At, from_life: u64, to: At, packet: Packet) {
        // A process that ended took its connections along.
        if self.slots[from].life != from_life || self.slots[from].running.is_none() {
            return;
        }
        if let Some(left) = self.pause_left(to) {
            let micros = self.dice.below(1000);
            self.at(left + Duration::from_micros(micros), Ev::Deliver { from, from_life, to, packet });
            return;
        }
        let Some((standing, cluster)) = self.standing(from, to) else { return };
        let (sender, Some(hub)) = (self.slots[from].id, self.slots[to].hub().cloned()) else { return };
        match packet {
            Packet::Raft(message) => {
                if !standing.admits(message.kind) {
                    self.count("messages of unbound nodes refused");
                    return;
                }
                hub.post(Input::Message(Box::new(message)));
            }
            Packet::Found(message) => hub.post(Input::Found { from: sender, message }),
            Packet::Greeting => {
                hub.post(Input::Connected { peer: sender, cluster });
                if standing == Standing::Unbound && cluster.is_some() {
                    self.bind_unbound(to);
                }
            }
        }
        self.turn_soon(to);
    }

    /// The process is gone. Its callers hear that, once their stack gets to them.
    pub(super) fn bury(&mut self, at: At) {
        if let Some(running) = self.slots[at].running.take() {
            let called = self.calls.contains(&at);
            self.count_inside(&running.hub);
            running.hub.stop();
            if called {
                self.count("crashes under a call");
            }
            self.checks.on_crash(at);
            self.slots[at].garbage.push(running);
        }
        if self.stormy {
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
            *self.coverage.entry(what).or_insert(0) += counter.load(Ordering::Relaxed);
        }
        let (anchors, compactions) = {
            let findings = hub.findings.lock();
            (findings.anchors, findings.compactions)
        };
        for (what, times) in
            [("checkpoints redone", hub.databases.redone()), ("compactions", compactions), ("anchors", anchors)]
        {
            *self.coverage.entry(what).or_insert(0) += times;
        }
        for (_, db) in hub.databases.all() {
            let counters = &db.counters;
            for (what, counter) in [
                ("heals", &counters.heals),
                ("fences", &counters.fences),
                ("detaches", &counters.detaches),
                ("transactions applied", &counters.applied),
                ("transactions accepted", &counters.accepted),
                ("checkpoints", &counters.checkpoints),
                ("laps of a wal", &counters.restarts),
            ] {
                *self.coverage.entry(what).or_insert(0) += counter.load(Ordering::Relaxed);
            }
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
        let mut ends = (0..self.slots.len()).filter(|at| !self.is_out(*at)).map(|at| last(&self.slots[at]));
        let first = ends.next().flatten();
        first.is_some() && ends.all(|other| other == first)
    }

    pub(super) fn describe(&self) -> String {
        let words = self.slots.iter().map(|slot| match slot.hub() {
            None => format!("n{} down", slot.id),
            Some(hub) => {
                let (lead, applied) = (hub.leadership(), hub.applied());
                let seat = slot.running.as_ref().is_some_and(|running| running.seat.is_some());
                format!(
                    "n{} {:?} term {} leader {:?} applied {} seat {seat} trouble {:?}",
                    slot.id,
                    lead.role,
                    lead.term,
                    lead.leader,
                    applied.index,
                    hub.trouble()
                )
            }
        });
        words.collect::<Vec<_>>().join("; ")
    }
}
