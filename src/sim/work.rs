//! What the threads of a node do: ticks, turns of the engine, the log, the applier, the upkeep. Each is an event here.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::excuses::Gives;
use super::faults::Mend;
use super::node::Running;
use super::wire::{Packet, Wire};
use super::world::{At, Ev, State};
use crate::apply::Step;
use crate::engine::Outlet;
use crate::found;
use crate::found::format::FoundMessage;
use crate::log::LogError;
use crate::net::Transport;
use crate::pending::Decision;
use crate::raft::{PersistBatch, Role};
use crate::shared::{Hub, Input};
use crate::status;
use crate::types::{LogEntry, LogIndex, Message, NodeId};

/// Effects of one turn, on their way.
pub(super) struct Effects<'a> {
    pub(super) batches: &'a mut VecDeque<PersistBatch>,
    pub(super) entries: &'a mut VecDeque<Vec<LogEntry>>,
    pub(super) wire: &'a Wire,
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

/// A node in no cluster decides nothing.
fn refuse_proposals(running: &Running) {
    for input in running.mailbox.try_iter() {
        if let Input::Propose { number, .. } = input {
            running.hub.pending.decide(number, Decision::NotCommitted);
        }
    }
}

impl State {
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
        let wait = pause.unwrap_or(self.slots[at].clock.in_the_world(Duration::from_millis(50)));
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
            let joins = self.slots[at].running.as_ref().is_some_and(|running| running.joining.is_some());
            // Whoever waits for another's connection in the end does not wait for long, as with a transport that dials by itself.
            if !joins && self.chance(if self.stormy { 10 } else { 100 }) {
                let to = self.dice.below(self.slots.len() as u64) as usize;
                self.transmit(at, to, Packet::Greeting);
            }
        }
        self.at(wait, Ev::Tick(at, life));
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
                Input::Found { from, message, .. } => Some(found::Event::Message(from, message)),
                Input::Connected { peer, cluster } => Some(found::Event::Connected(peer, cluster)),
                Input::Propose { number, .. } => {
                    running.hub.pending.decide(number, Decision::NotCommitted);
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
        let Some(seat) = running.seat.as_mut().filter(|seat| !seat.engine_over) else {
            return refuse_proposals(running);
        };
        for input in running.mailbox.try_iter() {
            seat.engine.on_input(input);
        }
        let mut out = Effects { batches: &mut seat.batches, entries: &mut seat.entries, wire: &running.wire };
        seat.engine_over = !seat.engine.turn(&mut out);
        let entries = seat.batches.iter().flat_map(|batch| &batch.entries).chain(seat.entries.iter().flatten());
        let largest = entries.map(|entry| entry.data.len() as u64).max().unwrap_or(0);
        let soon = seat.engine.turn_by().map(|by| by.saturating_sub(running.hub.waiting.clock.now()));
        let stopped = seat.engine_over.then(|| running.hub.trouble().unwrap_or_default());
        self.checks.largest_entry = self.checks.largest_entry.max(largest);
        if let Some(why) = stopped
            && !self.slots[at].fs.is_down()
        {
            self.stopped(at, Gives::Stop, format!("n{}: the engine stopped: {why}", at + 1));
        }
        if let Some(soon) = soon {
            // Rounded up: time must pass before it is asked again.
            let wait = self.slots[at].clock.in_the_world(soon) + Duration::from_micros(1);
            self.at(wait, Ev::Turn(at, life));
        }
        self.flush(at);
    }

    /// Sends effects on their way: to the disk, the applier, the network.
    pub(super) fn flush(&mut self, at: At) {
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
            if votes && self.strikes() && self.chance(self.shape.cut_votes) {
                self.after_micros(micros / 2, Ev::Mend(Mend::CutVote(at, life)));
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

    pub(super) fn bind_unbound(&mut self, leader: At) {
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
            if there {
                self.begin_lateness(leader, node);
            }
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
        if batches.is_empty() && !seat.appender.waits() {
            return;
        }
        let truncations = truncations(seat.log.last().index, &batches);
        let hub = running.hub.clone();
        let mut persisted = |batch| hub.post(Input::Persisted { batch });
        let appended = seat.appender.append(&seat.log, batches, &mut persisted);
        let lacks_room = appended.as_ref().is_err_and(LogError::can_be_tried_again);
        running.hub.set_log_lacks_room(lacks_room);
        if lacks_room {
            seat.disk_busy = true;
            self.note(format_args!("n{}: no room for the log", at + 1));
            self.count("log waits for room");
            if self.options.storm && self.chance(300) {
                self.slots[at].fs.clear_faults();
            }
            return self.after_millis(500, Ev::Disk(at, life));
        }
        if let Err(error) = &appended {
            running.hub.post(Input::Failed { what: error.in_words() });
        }
        if appended.is_ok() {
            // Without a spare the next switch takes longer; nothing else depends on it.
            let _ = seat.log.prepare_spare();
            self.add("truncations", truncations);
        } else {
            running.crippled = true;
            seat.batches.clear();
            seat.disk_busy = true;
            if !self.slots[at].fs.is_down() {
                self.note(format_args!("n{}: the log failed", at + 1));
                self.count("log failures");
                let what = appended.as_ref().err().map(LogError::in_words).unwrap_or_default();
                if matches!(appended, Err(LogError::Misuse(_))) {
                    self.fail(format!("n{}: {what}", at + 1));
                } else if !self.goes_on_quickly(at, life) {
                    self.crippled(at, Gives::Trouble, &what);
                }
            }
        }
        self.turn_soon(at);
        self.flush(at);
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
                self.stall_in_a_split(at);
                let micros = 10 + self.dice.below(200);
                self.after_micros(micros, Ev::Apply(at, life));
            }
            Step::Waiting(..) => {
                self.count("waits for publication");
                self.after_micros(500, Ev::Apply(at, life));
            }
            Step::NoRoom => {
                self.count("entries that waited for room");
                self.after_millis(500, Ev::Apply(at, life));
            }
            Step::Idle => {
                seat.apply_due = false;
                hub.post(Input::Applied { index: hub.applied().index });
                self.turn_soon(at);
            }
            Step::Stopped(reason) => {
                seat.apply_over = true;
                if !self.is_too_old(at, &reason) && !self.slots[at].fs.is_down() {
                    self.stopped(at, Gives::Stop, format!("n{}: the applier stopped: {reason}", at + 1));
                }
            }
        }
        for unique in rolled_back {
            self.count("rolled back in the middle of an apply");
            self.never_asked(at, unique, "by choice, in the middle of an apply");
        }
        self.flush(at);
    }

    /// What else writes into the log than the log's own thread (an anchor) may have met its failure: the node says what to do, and
    /// somebody does it.
    fn restart_in_trouble(&mut self, at: At, life: u64) {
        let Some(running) = self.alive(at, life) else { return };
        // One that was removed promises nothing more, either.
        let Some(what) = running.hub.trouble().filter(|_| !running.crippled && !running.hub.is_removed()) else {
            return;
        };
        running.crippled = true;
        self.count("nodes in trouble beside the log's thread");
        self.crippled(at, Gives::Trouble, &what);
    }

    pub(super) fn on_upkeep(&mut self, at: At, life: u64) {
        let pause = self.pause_left(at);
        if self.alive(at, life).is_none() {
            return;
        }
        if pause.is_none() {
            self.slots[at].kept_much |= self.readers_may_be_ended(at);
            let floor = self.floor_from_leader(at);
            let Some(running) = self.alive(at, life) else { return };
            if let Some(seat) = running.seat.as_mut().filter(|seat| !seat.engine_over) {
                if let Some(floor) = floor {
                    seat.upkeep.learn_floor(floor);
                }
                let lent = running.hub.snapshots.views.counts().1 > 0;
                let compactions = |hub: &Hub| hub.findings.lock().compactions;
                let before = compactions(&running.hub);
                seat.upkeep.step();
                if lent && compactions(&running.hub) > before {
                    self.count("compactions while a view was lent");
                }
            }
            // A disk of this world forgets and fails, but does not change what it has: whatever is found damaged, we damaged.
            let excused = self.slots[at].fs.is_down() || self.disk_may_have_damaged(at) || self.has_rotted(at);
            self.slots[at].was_whole |= self.slots[at].hub().is_some_and(|hub| hub.databases.all_damaged().is_empty());
            if let Some(hub) = self.slots[at].hub().filter(|hub| hub.databases.convicted() > 0) {
                let damaged = hub.databases.damaged(&crate::databases::Help::Voters);
                // A new database whose files could not be made may have been dropped since.
                let excusable = self.slots[at].damage_was_excused || self.checkpoint_has_failed(at);
                let known = excusable && damaged.is_empty();
                self.slots[at].damage_was_excused |= excused;
                if !excused && !known {
                    self.fail(format!("n{} found a database damaged: {damaged:?}", at + 1));
                }
            }
            self.restart_in_trouble(at, life);
            self.observe_bounds(at);
            self.keep_files(at);
            self.install_staged(at, life);
            self.begin_rounds(at, life);
            self.turn_soon(at);
            self.flush(at);
        }
        let millis = 150 + self.dice.below(200);
        self.after_millis(pause.map_or(millis, |left| left.as_millis() as u64 + millis), Ev::Upkeep(at, life));
    }

    /// The answer of the leader that this node knows, if they reach each other.
    fn floor_from_leader(&self, at: At) -> Option<LogIndex> {
        let leader = usize::from(self.slots[at].hub()?.leadership().leader?.0).checked_sub(1)?;
        let reached = !self.net.cut[at][leader] && !self.net.cut[leader][at];
        let hub = self.slots[leader].hub().filter(|_| reached)?;
        status::floor_of_members(hub)
    }
}

/// How many of these batches take back entries of a log that ends with `last`, or of a batch before them.
fn truncations(mut last: LogIndex, batches: &VecDeque<PersistBatch>) -> u64 {
    let ends = batches.iter().filter_map(|batch| batch.entries.first().zip(batch.entries.last()));
    ends.filter(|(first, newest)| first.id.index <= std::mem::replace(&mut last, newest.id.index)).count() as u64
}
