//! The threads of one node, and what passes between them.
//!
//! Which threads there are, what they wait for, and how long their queues get is in DESIGN.md, "Threads, locks, queues".
//!
//! Shutdown: hand leadership over, end the callers' waits, stop the mailbox; each thread ends when its sender is gone.
//!
//! Deliberately absent: what a turn means (`engine.rs`), what an entry means (`apply.rs`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::admin;
use crate::boot::{self, Directory, Opened, TAKE_ITS_PLACE};
use crate::config::Config;
use crate::driver::{Driver, Work, end_decisions};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::found::format::{Belongs, Identity};
use crate::found::{self, Founding};
use crate::log::{Log, LogError};
use crate::net::Transport;
use crate::priority;
use crate::raft::{Core, CoreConfig, CoreStatus, EntryReader};
use crate::registry::{Finishing, Left};
use crate::shared::{Hub, Input, Turn};
use crate::snapshot;
use crate::snapshot::ask::Line;
use crate::snapshot::install::{self, Installed};
use crate::snapshot::object::{Outcome, ViewId};
use crate::snapshot::rounds::Rounds;
use crate::snapshot::{Done, Staged};
use crate::types::{LogEntry, LogIndex, Term};
use crate::upkeep::{STEP, Upkeep};

/// How often the snapshot thread looks whether the node ends.
const SNAPSHOT_POLL: Duration = Duration::from_millis(200);
/// Time between two ticks of the founding.
const FOUND_TICK: Duration = Duration::from_millis(100);
/// How long a door is waited for by a node that wants to join, and the pause before the next one is asked.
const JOIN_PATIENCE: Duration = Duration::from_secs(3);
const JOIN_PAUSE: Duration = Duration::from_millis(200);
/// How often the applier looks whether the node ends while it waits for SQLite to show a transaction.
const SHOW_POLL: Duration = Duration::from_millis(200);
/// A spare segment that could not be made is tried again after this time, then after twice as long each time, up to the second.
/// A full disk stays full for a while, and each attempt fills what little room there is, which others could use.
const SPARE_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_SPARE_PAUSE: Duration = Duration::from_secs(60);

/// What a node starts from.
pub(crate) enum Start {
    /// It belongs to a cluster.
    Opened(Box<Opened>),
    /// It belongs to none yet.
    Founding(Box<Founding>),
    /// It belongs to none, and is to become a member of one that exists.
    Joining(Box<Joining>),
}

/// How an empty node comes into a cluster.
pub(crate) struct Joining {
    pub(crate) identity: Identity,
    /// Nodes to ask; any member will do.
    pub(crate) doors: Vec<String>,
    /// Where the others will reach this node.
    pub(crate) address: String,
}

/// Starts the threads of a node.
pub(crate) fn spawn(
    hub: Hub,
    mailbox: Receiver<Input>,
    start: Start,
    directory: Directory,
    transport: Option<Arc<dyn Transport>>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let name = format!("shoal-raft-{}", hub.id);
    let raft = std::thread::Builder::new().name(name).spawn(move || {
        let raft = RaftThread { hub: hub.clone(), mailbox, transport };
        let ran = catch_unwind(AssertUnwindSafe(|| raft.run(start, &directory)));
        match ran.unwrap_or_else(|_| Err(Error::new(ErrorKind::Stopped, "its raft thread panicked"))) {
            Ok(()) => {}
            Err(error) => hub.set_trouble(format!("node {} stopped: {error}", hub.id)),
        }
        end_decisions(&hub);
    })?;
    Ok(vec![raft])
}

impl EntryReader for Log {
    fn entries(&self, lo: LogIndex, hi: LogIndex, max_bytes: u64) -> std::io::Result<Vec<LogEntry>> {
        Log::entries(self, lo, hi, max_bytes).map_err(std::io::Error::other)
    }

    fn term(&self, index: LogIndex) -> Option<Term> {
        Log::term(self, index)
    }
}

struct RaftThread {
    hub: Hub,
    mailbox: Receiver<Input>,
    transport: Option<Arc<dyn Transport>>,
}

impl RaftThread {
    fn run(self, start: Start, directory: &Directory) -> Result<()> {
        let opened = match start {
            Start::Opened(opened) => *opened,
            Start::Founding(founding) => match self.found(*founding, directory)? {
                Some(opened) => opened,
                None => return Ok(()),
            },
            Start::Joining(joining) => match self.join(*joining, directory)? {
                Some(opened) => opened,
                None => return Ok(()),
            },
        };
        self.lead_and_follow(opened, directory)
    }

    /// Takes part in the founding until this node has a cluster; `None` if it was stopped before.
    fn found(&self, mut founding: Founding, directory: &Directory) -> Result<Option<Opened>> {
        let mut next_tick = Instant::now();
        loop {
            let event = match self.mailbox.recv_deadline(next_tick) {
                Ok(Input::Found { from, message, .. }) => found::Event::Message(from, message),
                Ok(Input::Connected { peer, cluster }) => found::Event::Connected(peer, cluster),
                Ok(Input::Propose { number, .. }) => {
                    self.hub.pending.decide(number, crate::pending::Decision::NotCommitted);
                    continue;
                }
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Ok(_) => continue,
                Err(RecvTimeoutError::Timeout) => {
                    next_tick += FOUND_TICK;
                    found::Event::Tick
                }
            };
            founding.on_event(event, directory.env.rng.next_u64());
            self.hub.set_obstacles(founding.obstacles());
            if let Some(opened) = carry_out(&mut founding, directory, self.transport.as_deref())? {
                return Ok(Some(opened));
            }
        }
    }

    /// Asks one door after another to be let in, until it is; `None` if the node was stopped before, or its id was removed from the
    /// cluster, which is never undone. Whatever else is refused is an alarm and asked again, since somebody may be repairing it.
    fn join(&self, joining: Joining, directory: &Directory) -> Result<Option<Opened>> {
        let Joining { mut identity, doors, address } = joining;
        let doors = self.hub.doors.get_or_init(|| doors);
        let request =
            admin::Request::Join { node: self.hub.id, incarnation: identity.incarnation, address: address.clone() };
        for door in doors.iter().cycle() {
            match admin::ask(door, &request, JOIN_PATIENCE, self.hub.config.allow_plaintext_remote)
                .and_then(admin::Letter::read)
            {
                Ok(letter) => return let_in(&self.hub, directory, &mut identity, letter).map(Some),
                Err(error) if error.kind() == ErrorKind::Removed => {
                    self.hub.findings.lock().alarms.remove("join");
                    self.hub.set_removed(format!("{door} says: {error}, with an empty data directory"));
                    return Ok(None);
                }
                Err(error) => {
                    let what = format!("node {} is in no cluster yet: {door}: {error}", self.hub.id);
                    let told = self.hub.findings.lock().alarms.insert("join".to_string(), what.clone());
                    if told.as_ref() != Some(&what) {
                        tracing::warn!("{what}");
                    }
                }
            }
            let next = Instant::now() + JOIN_PAUSE;
            loop {
                match self.mailbox.recv_deadline(next) {
                    Ok(Input::Propose { number, .. }) => {
                        self.hub.pending.decide(number, crate::pending::Decision::NotCommitted);
                    }
                    Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
        }
        Ok(None)
    }

    fn lead_and_follow(self, opened: Opened, directory: &Directory) -> Result<()> {
        let RaftThread { hub, mailbox, transport } = self;
        let anchored = opened.applied().index;
        let (engine, log) = begin(&hub, opened, directory)?;
        let driver = Arc::new(Driver::new(&hub, mailbox, engine, log.clone(), transport));
        let turn: Arc<dyn Turn> = driver.clone();
        hub.set_driver(&turn);
        let threads = vec![
            thread("log", &hub, {
                let driver = driver.clone();
                move || run_log(&driver)
            })?,
            thread("upkeep", &hub, {
                let (hub, log, driver) = (hub.clone(), log.clone(), driver.clone());
                move || run_upkeep(&hub, log, anchored, &driver)
            })?,
            thread("snapshot", &hub, {
                let hub = hub.clone();
                move || run_snapshots(&hub)
            })?,
            thread("spare", &hub, {
                let (hub, driver) = (hub.clone(), driver.clone());
                move || run_spare(&hub, &log, &driver)
            })?,
            thread("apply", &hub, {
                let (hub, driver) = (hub.clone(), driver.clone());
                move || run_apply(&hub, &driver)
            })?,
        ];
        driver.tick_until_stopped();
        driver.end();
        for thread in threads {
            // A panic in one of them has been printed; there is nothing left to save.
            let _ = thread.join();
        }
        Ok(())
    }
}

/// From what was opened to an engine that can turn; the hub knows its log, its members and its catalogue from here on.
pub(crate) fn begin(hub: &Hub, opened: Opened, directory: &Directory) -> Result<(Engine, Arc<Log>)> {
    let applied = opened.applied();
    let Opened { log, mut restored, catalogue, generations, aftermath, history, founding, genesis, cut } = opened;
    let reach = aftermath.reach;
    if let Some(cut) = cut {
        tracing::info!(file = cut.file, offset = cut.offset, "cut an unfinished write from the log: {}", cut.why);
    }
    let end = restored.last.index;
    if let Some(genesis) = genesis {
        // Set once: a node begins once.
        let _ = hub.genesis.set(genesis);
    }
    let lost = |what: String| {
        let last = restored.last.index;
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "{what}, but the log ends at entry {last}: the log lost what it had. If files of it were moved away, bring them back; \
                 else {TAKE_ITS_PLACE}"
            ),
        )
    };
    if let Some(id) = hub.databases.made_behind(restored.last.index.max(reach))? {
        return Err(lost(format!("entry {} made a database", id.0)));
    }
    let furthest = LogIndex(hub.databases.restore(&catalogue, generations, applied.index)?.0);
    if furthest > restored.last.index.max(reach) {
        return Err(lost(format!("a database is at position {furthest}")));
    }
    // Only what is committed is ever applied, and the commit index need not have reached the disk. What came with a snapshot
    // says nothing of the entries that this log has there.
    if furthest > reach {
        restored.hard_state.commit = restored.hard_state.commit.max(furthest);
    }
    let replay_to = restored.hard_state.commit.max(restored.applied);
    let sole_voter = restored.membership.voters == [hub.id];
    let log = Arc::new(log);
    let core = Core::open(core_config(hub, directory.env.rng.next_u64()), restored, log.clone()).map_err(|error| {
        Error::caused(ErrorKind::Corrupt, format!("log and hard state: {error}; {TAKE_ITS_PLACE}"), error)
    })?;
    hub.set_log(&log);
    hub.begin(catalogue, applied);
    hub.set_reach(reach);
    if let Some(id) = hub.databases.parts_left() {
        hub.snapshots.note_parts(id, end);
    }
    hub.snapshots.set_finishing(aftermath.finishing, hub.waiting.clock.now());
    if let Some(Finishing { source, index, left: Left { source: Some(view), .. } }) = aftermath.finishing {
        let (view, outcome) = (ViewId(view), Outcome::Installed);
        hub.snapshots.set_done(Done { source, view, index, outcome });
    }
    // Of a log that lost its end it would know more than this node has.
    if let Some(history) = history.filter(|history| history.last() <= end) {
        hub.set_history(history);
    }
    hub.findings.lock().anchored = applied.index;
    hub.members_changed();
    Ok((Engine::new(core, hub.clone(), replay_to, sole_voter, founding), log))
}

/// Makes the directory that of a member, as the letter says.
pub(crate) fn let_in(
    hub: &Hub,
    directory: &Directory,
    identity: &mut Identity,
    letter: admin::Letter,
) -> Result<Opened> {
    for (node, address) in letter.members {
        hub.hear_address(node, address);
    }
    identity.belongs = Belongs::Joined(letter.genesis.clone());
    let opened = directory.found(identity, &letter.genesis)?;
    hub.findings.lock().alarms.remove("join");
    Ok(opened)
}

/// Carries out what the founding wants; the opened log once this node has a cluster.
pub(crate) fn carry_out(
    founding: &mut Founding,
    directory: &Directory,
    transport: Option<&dyn Transport>,
) -> Result<Option<Opened>> {
    let effects = founding.take_effects();
    for text in effects.warn {
        tracing::warn!("{text}");
    }
    let mut opened = None;
    if let Some(identity) = effects.persist {
        match boot::genesis_of(&identity) {
            Some(genesis) => opened = Some(directory.found(&identity, genesis)?),
            None => directory.store(&identity)?,
        }
    }
    if let Some(transport) = transport {
        for (to, message) in effects.send {
            transport.send_found(to, message);
        }
    }
    Ok(opened)
}

/// A panic in a thread is our bug, and this node's end: whatever waited for the thread would wait for ever.
fn thread(name: &'static str, hub: &Hub, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let on_panic = hub.clone();
    std::thread::Builder::new().name(format!("shoal-{name}-{}", hub.id)).spawn(move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            on_panic.post(Input::Failed { what: format!("node {} stopped: its {name} thread panicked", on_panic.id) });
        }
    })
}

fn run_log(driver: &Driver) {
    while driver.write_all() {}
}

fn run_upkeep(hub: &Hub, log: Arc<Log>, anchored: LogIndex, driver: &Driver) {
    let mut upkeep = Upkeep::new(hub.clone(), log.clone(), anchored);
    while !hub.is_stopped() {
        upkeep.step();
        let mut waits = false;
        // Here, since nothing else of the upkeep may be under way meanwhile.
        if let Some(staged) = hub.snapshots.take_staged() {
            let mut staged = Some(*staged);
            driver.exchange(&mut |core| match staged.take() {
                Some(staged) => go_on_behind(hub, &log, core, staged),
                None => Ok(None),
            });
            hub.snapshots.end_install();
            // One that found no room is tried again with the next step. No other one comes before it is gone.
            waits = hub.snapshots.has_staged();
            if !waits {
                upkeep.begin_anew();
            }
        }
        let due = || (hub.is_stopped() || !waits && hub.snapshots.has_staged()).then_some(());
        let _ = hub.upkeep.wait(&hub.waiting, hub.deadline(STEP), STEP, due);
    }
}

fn run_snapshots(hub: &Hub) {
    // What is fetched is copied and hashed; commits of this machine go first.
    priority::give_way();
    let mut rounds = Rounds::default();
    while !hub.is_stopped() {
        let is_due = || hub.trouble().is_none() && hub.snapshots.is_due(hub.waiting.clock.now());
        let due = || (hub.is_stopped() || is_due()).then_some(());
        let _ = hub.snapshots.signal.wait(&hub.waiting, hub.deadline(SNAPSHOT_POLL), SNAPSHOT_POLL, due);
        step_rounds(hub, &mut rounds);
    }
}

/// Does what is due about snapshots, asking other nodes over the transport.
pub(crate) fn step_rounds(hub: &Hub, rounds: &mut Rounds) {
    rounds.step(hub, &mut Line::new(hub));
}

/// Installs a snapshot and opens a core behind it; `None` if the log has got so far by itself, or if there is no room: then the
/// snapshot waits for another call. After an error this process fetches nothing more and leaves its files alone: they may be what the
/// log on the disk names.
pub(crate) fn go_on_behind(
    hub: &Hub,
    log: &Arc<Log>,
    core: &CoreStatus,
    staged: Staged,
) -> std::result::Result<Option<(Core, LogIndex)>, String> {
    let gone_on = try_to_go_on_behind(hub, log, core, staged);
    if gone_on.is_err() {
        hub.snapshots.end();
    }
    gone_on
}

fn try_to_go_on_behind(
    hub: &Hub,
    log: &Arc<Log>,
    core: &CoreStatus,
    staged: Staged,
) -> std::result::Result<Option<(Core, LogIndex)>, String> {
    let (mut done, received, before) = (staged.done(), staged.received, hub.snapshots.finishing());
    let restored = match install::install(hub, log, core, staged)? {
        Installed::Yes(restored) => Some(restored),
        Installed::NotNeeded => {
            // Its source tells an end only of what was installed.
            done.outcome = Outcome::NotNeeded;
            None
        }
        Installed::NoRoom(staged, error) => {
            // Whoever drops it takes the alarm back.
            tell_of_waiting_snapshot(hub, done.index, &error);
            hub.snapshots.put_back(staged);
            return Ok(None);
        }
    };
    hub.snapshots.set_over();
    hub.snapshots.set_done(done);
    hub.findings.lock().alarms.remove(snapshot::ALARM);
    let Some(restored) = restored else { return Ok(None) };
    let config = core_config(hub, hub.session ^ done.index.0);
    let core = Core::open(config, *restored, log.clone())
        .map_err(|error| format!("log and hard state behind a snapshot: {error}"))?;
    hub.findings.lock().anchored = done.index;
    hub.members_changed();
    tracing::info!(node = hub.id.0, source = done.source.0, received, "installed a snapshot of entry {}", done.index);
    // That this one was installed is told by the upkeep, once that is on record. This one's record has taken the place of the
    // one that said so of an earlier one.
    if let Some(Finishing { index, left: Left { install: Some(bytes), .. }, .. }) = before {
        hub.events.tell(&Event::SnapshotInstalled { index, bytes });
    }
    Ok(Some((core, done.index)))
}

/// People are told once, however often it is tried.
fn tell_of_waiting_snapshot(hub: &Hub, index: LogIndex, why: &LogError) {
    let what = format!("a snapshot of entry {index} waits to be installed: {}", why.for_now());
    let told = hub.findings.lock().alarms.insert(snapshot::ALARM.to_string(), what.clone()).is_some();
    if !told {
        tracing::error!(node = hub.id.0, "{what}");
        hub.events.tell(&Event::DiskTrouble { what });
    }
}

fn core_config(hub: &Hub, seed: u64) -> CoreConfig {
    let mut config = CoreConfig::new(hub.id, seed);
    config.election_ticks = hub.config.election_ticks();
    config.heartbeat_ticks = Config::TICKS_PER_HEARTBEAT;
    config.max_message_bytes = Config::MESSAGE;
    let part = hub.config.part_bytes as u64;
    config.max_entry_bytes = config.max_entry_bytes.max(2 * part);
    // Those of one transaction that are on their way at a time, with room for what encoding adds. Were one refused, no large
    // transaction would ever be committed.
    config.max_uncommitted_bytes = hub.config.uncommitted_limit.max(4 * part);
    config.max_inflight_bytes = hub.config.inflight_limit;
    config.max_apply_bytes = hub.config.apply_limit;
    config.tail_cache_bytes = hub.config.tail_cache_limit;
    config
}

fn run_spare(hub: &Hub, log: &Log, driver: &Driver) {
    let mut pause: Option<Duration> = None;
    loop {
        pause = match log.prepare_spare() {
            Ok(()) => None,
            // No promise depends on a spare; an append that needs room will say so itself.
            Err(error) => {
                if pause.is_none() {
                    tracing::warn!(node = hub.id.0, %error, "no spare log segment; it is tried again");
                }
                Some(pause.map_or(SPARE_PAUSE, |pause| (2 * pause).min(LONGEST_SPARE_PAUSE)))
            }
        };
        if !driver.wait_for_spare_wanted(pause) {
            return;
        }
    }
}

fn run_apply(hub: &Hub, driver: &Driver) {
    loop {
        match driver.apply_all() {
            Work::Rest => driver.wait_for_entries(),
            Work::Pause(time) => driver.pause_applying(time),
            Work::Await(db, position) => {
                if hub.is_stopped() {
                    return;
                }
                // Whatever it says, the next step looks again.
                _ = db.wait_shown(position, SHOW_POLL);
            }
            Work::End => return,
        }
    }
}

#[cfg(test)]
mod tests;
