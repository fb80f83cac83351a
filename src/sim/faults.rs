//! What goes wrong, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};

use super::world::{At, Ev, State};
use crate::shared::{Hub, Input};

/// The end of a fault.
pub(super) enum Mend {
    Links,
    Weather,
    Sync(At, u64),
    /// The first node is restarted, in a run of one fault.
    Restart,
    /// A node's stalled disk loses power.
    Cut(At),
    /// Two candidates reach each other again; the life of the voter.
    Duel(u64),
    /// The directory of a late founder goes.
    Late,
    /// The middle and the end of a time in which nothing goes wrong but that a minority is off.
    HalfLull,
    Lull,
    /// A person asks that this node become a learner.
    Learner(At),
    /// Voters are switched off for this new one, if this is a moment for it.
    SwitchOff(At, u32),
    /// Somebody restarts a node whose disk failed.
    Crippled(At, u64),
}

/// The calls of a checkpoint, in their order.
const CHECKPOINT_STEPS: [&str; 9] = [
    "dw.write",
    "dw.sync",
    "ckpt.page",
    "ckpt.hash",
    "ckpt.len",
    "ckpt.sync",
    "ckpt.map_sync",
    "ckpt.record",
    "ckpt.record_sync",
];

impl State {
    pub(super) fn on_fault(&mut self) {
        if !self.stormy {
            return;
        }
        let wait = 50 + self.dice.below(2 * self.storm);
        self.after_millis(wait, Ev::Fault);
        if !self.strikes() {
            return;
        }
        let n = self.slots.len();
        let at = self.dice.below(n as u64) as usize;
        match self.dice.below(8) {
            0 | 1 => self.upgrade(at),
            2 | 3 => self.rot(),
            _ => {}
        }
        if self.shape.ambushes > 0 && self.dice.below(4) < self.shape.ambushes {
            return self.begin_ambush();
        }
        match self.dice.below(36) {
            0..=2 => self.crash(at, true),
            3 | 4 => self.crash(at, false),
            5 => {
                self.note(format_args!("all lose power"));
                self.count("power lost by all");
                for at in 0..n {
                    self.crash(at, true);
                }
            }
            6..=8 => self.part(at),
            9 => {
                self.net.loss = self.dice.below(300);
                self.net.twice = self.dice.below(200);
                self.net.delay = 1000 + self.dice.below(if self.dice.below(3) == 0 { 300_000 } else { 60_000 });
                let (loss, delay) = (self.net.loss, self.net.delay);
                self.note(format_args!("bad weather: {loss} of 1000 lost, up to {delay} us"));
                self.count("bad weather");
                let millis = 500 + self.dice.below(3000);
                self.after_millis(millis, Ev::Mend(Mend::Weather));
            }
            10 => {
                let millis = 100 + self.dice.below(4000);
                self.slots[at].paused_until = self.now + Duration::from_millis(millis);
                self.note(format_args!("n{} pauses for {millis} ms", at + 1));
                self.count("pauses");
            }
            11 => {
                let label = if self.dice.below(2) == 0 { "log.write" } else { "log.sync" };
                let failure = if self.dice.below(2) == 0 { Failure::ENOSPC } else { Failure::EIO };
                let lasts = if self.dice.below(2) == 0 { Lasts::Once } else { Lasts::ForGood };
                self.slots[at].fs.fail_at(Aim::At(label), 1, lasts, failure);
                self.note(format_args!("n{}: the next {label} fails, {failure:?} {lasts:?}", at + 1));
            }
            12 => {
                self.stall_syncs(at);
                // What waits for its sync is lost then, and what went out already is not.
                if self.dice.below(2) == 0 {
                    let millis = 50 + self.dice.below(1500);
                    self.after_millis(millis, Ev::Mend(Mend::Cut(at)));
                }
            }
            13 | 14 => {
                self.transfer(at);
            }
            15..=17 => {
                let step = self.dice.below(CHECKPOINT_STEPS.len() as u64) as usize;
                let label = CHECKPOINT_STEPS[step];
                if self.dice.below(4) == 0 {
                    let failure = if self.dice.below(2) == 0 { Failure::ENOSPC } else { Failure::EIO };
                    self.slots[at].fs.fail_at(Aim::At(label), 1, Lasts::Once, failure);
                    self.note(format_args!("n{}: the next {label} fails, {failure:?}", at + 1));
                    self.slots[at].checkpoint_fails = true;
                    self.count("checkpoint failures planned");
                } else {
                    let (nth, seed) = (1 + self.dice.below(2), self.dice.below(u64::MAX));
                    self.slots[at].fs.crash_at(Aim::At(label), nth, seed);
                    self.note(format_args!("n{} shall lose power in a {label}", at + 1));
                }
            }
            18 => (0..n).for_each(|at| self.stall_syncs(at)),
            19 | 20 => self.stall_applier(at),
            21..=23 => self.swap_leaders(at),
            24 | 25 => self.wipe(at),
            26 | 27 => self.begin_duel(),
            28 | 29 => self.bridge(at),
            30 | 31 => self.jump(at),
            32 | 33 => self.distrust(at),
            34 => _ = self.switch_off(None),
            _ => {}
        }
    }

    /// The one fault of this run is armed when the life begins in which it strikes.
    pub(super) fn arm(&mut self, at: At) {
        let slot = &self.slots[at];
        if let Some(turn) = self.options.turn.filter(|turn| at == 0 && self.stormy && turn.life == slot.life) {
            turn.arm(&slot.fs);
        }
    }

    /// A node stopped, or did not start: a mistake, unless its own fault made it. Then somebody starts it again.
    pub(super) fn stopped(&mut self, at: At, what: String) {
        let excused = at == 0 && self.options.turn.is_some_and(|turn| turn.life == self.slots[0].life);
        if !excused || !self.stormy {
            return self.fail(what);
        }
        self.note(format_args!("{what}"));
        self.slots[at].fs.clear_faults();
        if self.slots[at].running.is_some() {
            self.crash(at, false);
        } else {
            self.after_millis(50, Ev::Restart(at));
        }
    }

    pub(super) fn calls_of_first_node(&self) -> BTreeMap<(u64, &'static str), u64> {
        let first = &self.calls_of_first_life;
        let later = self.slots[0].fs.counts().into_iter().filter_map(|(label, count)| {
            let more = count - first.get(label).copied().unwrap_or(0);
            (more > 0).then_some(((2, label), more))
        });
        first.iter().map(|(label, count)| ((1, *label), *count)).chain(later).collect()
    }

    fn stall_syncs(&mut self, at: At) {
        let life = self.slots[at].life;
        self.slots[at].sync_micros = 1000 * (100 + self.dice.below(3000));
        let micros = self.slots[at].sync_micros;
        self.note(format_args!("n{}: syncs take up to {} us", at + 1, 2 * micros));
        self.count("stalled syncs");
        let millis = 500 + self.dice.below(5000);
        self.after_millis(millis, Ev::Mend(Mend::Sync(at, life)));
    }

    fn stall_applier(&mut self, at: At) {
        let millis = 200 + self.dice.below(2500);
        self.slots[at].apply_stalled_until = self.now + Duration::from_millis(millis);
        self.note(format_args!("n{}: the applier stalls for {millis} ms", at + 1));
        self.count("stalled appliers");
    }

    pub(super) fn transfer(&mut self, at: At) {
        let leader = self.slots.iter().find_map(|slot| slot.hub().filter(|hub| hub.is_ready_leader()).cloned());
        if let Some(hub) = leader {
            let to = self.slots[at].id;
            if !hub.core_status.lock().as_ref().is_some_and(|core| core.membership.names(to)) {
                return;
            }
            self.note(format_args!("n{} is asked to hand over to n{to}", hub.id));
            self.count("transfers asked for");
            hub.post(Input::Transfer { to });
        }
    }

    /// The leader stops applying, hands over, and soon leads again: with writers of its first term, and entries of another.
    fn swap_leaders(&mut self, at: At) {
        let Some(leader) = self.slots.iter().position(|slot| slot.hub().is_some_and(|hub| hub.is_ready_leader()))
        else {
            return;
        };
        self.stall_applier(leader);
        self.transfer(at);
        let millis = 100 + self.dice.below(600);
        self.after_millis(millis, Ev::Transfer(leader));
    }

    /// The directory of a node is gone, and somebody starts it as if that were nothing: when all who founded the cluster
    /// belong to it. The leader is cut off at the same time, which makes the wiped node's vote decisive.
    pub(super) fn wipe(&mut self, at: At) {
        // One kind of loss is enough for a minority.
        if self.shape.rots {
            return;
        }
        let leader = self.newest_leader().map(|(leader, _)| leader);
        let founders = self.slots.iter().filter(|slot| slot.founder);
        let all_seated = founders.into_iter().all(|slot| slot.running.as_ref().is_some_and(|r| r.seat.is_some()));
        // Who is not bound yet may even come back.
        let unbound = leader.and_then(|leader| {
            let hub = self.slots[leader].hub()?;
            let ids = hub.with_catalogue(|catalogue| {
                let founder = |id: &crate::types::NodeId| self.slots[usize::from(id.0) - 1].founder;
                catalogue.members().find(|(id, member)| member.incarnation.is_none() && founder(id)).map(|(id, _)| id)
            });
            ids.ok().flatten().map(|id| usize::from(id.0) - 1)
        });
        let at = unbound.unwrap_or(at);
        let Some(leader) = leader.filter(|leader| *leader != at && all_seated) else { return };
        if !self.may_lose_a_disk(at, leader) {
            return;
        }
        if unbound.is_some() {
            self.count("unbound directories wiped");
        }
        self.crash(at, true);
        let seed = self.dice.below(u64::MAX);
        self.slots[at].fs = SimFs::new(seed);
        self.slots[at].wiped = true;
        self.note(format_args!("n{}: its directory is wiped", at + 1));
        self.count("directories wiped");
        self.isolate(leader, None, false, 4000);
    }

    /// Whether this node's directory was wiped after it had been bound: it is refused for ever.
    pub(super) fn is_out(&self, at: At) -> bool {
        let slot = &self.slots[at];
        if !slot.wiped {
            return false;
        }
        let id = slot.id;
        let bound = |hub: &Hub| {
            hub.with_catalogue(|catalogue| catalogue.member(id).and_then(|member| member.incarnation)).ok().flatten()
        };
        let others = self.slots.iter().filter(|other| other.id != id);
        let bound = others.filter_map(|other| bound(other.hub()?)).next_back();
        let own = slot.running.as_ref().map(|running| running.hub.incarnation);
        bound.is_some() && bound != own
    }

    /// A new leader is cut off as soon as it leads, together with somebody who may have entries that it does not have.
    pub(super) fn hunt(&mut self, leader: At) {
        let n = self.slots.len();
        if !self.strikes() || !self.shape.hunts_leaders || self.dice.below(3) > 0 {
            return;
        }
        let with = (leader + 1 + self.dice.below(n as u64 - 1) as usize) % n;
        self.count("new leaders cut off");
        self.net.cut.iter_mut().flatten().for_each(|cut| *cut = false);
        self.isolate(leader, Some(with).filter(|_| n > 3), false, 2500);
    }

    fn part(&mut self, at: At) {
        let n = self.slots.len();
        let one_way = self.dice.below(3) == 0;
        let leader = self.slots.iter().position(|slot| slot.hub().is_some_and(|hub| hub.is_ready_leader()));
        let at = if self.dice.below(2) == 0 { leader.unwrap_or(at) } else { at };
        let with = if n > 3 && self.dice.below(2) == 0 { self.companion(at) } else { None };
        self.isolate(at, with, one_way, 6000);
    }

    /// This node is all that two halves of the others have in common.
    fn bridge(&mut self, at: At) {
        let n = self.slots.len();
        let half = |other: At| (other < at) == other.is_multiple_of(2);
        let sides: Vec<Option<bool>> = (0..n).map(|other| (other != at).then(|| half(other))).collect();
        for (from, to) in (0..n).flat_map(|from| (0..n).map(move |to| (from, to))) {
            self.net.cut[from][to] = sides[from].zip(sides[to]).is_some_and(|(a, b)| a != b);
        }
        self.note(format_args!("n{} is the bridge between two halves", at + 1));
        self.count("bridges");
        let millis = 300 + self.dice.below(5000);
        self.after_millis(millis, Ev::Mend(Mend::Links));
    }

    /// A node's machine slept: its clock is ahead of what its process has seen.
    fn jump(&mut self, at: At) {
        let millis = 1 + self.dice.below(if self.dice.below(3) == 0 { 3_600_000 } else { 3000 });
        self.slots[at].clock.jump(Duration::from_millis(millis));
        self.note(format_args!("n{}: the clock jumps by {millis} ms", at + 1));
        self.count("jumps of a clock");
    }

    /// Another voter, if anybody knows who votes.
    pub(super) fn companion(&self, at: At) -> Option<At> {
        let (_, members) = self.newest_leader()?;
        let others = members.voters.iter().map(|id| usize::from(id.0) - 1).filter(|other| *other != at);
        let others: Vec<At> = others.collect();
        others.get(self.dice.below(others.len() as u64) as usize).copied()
    }

    pub(super) fn isolate(&mut self, at: At, with: Option<At>, one_way: bool, longest: u64) {
        self.cut_off(at, with, one_way);
        let millis = 300 + self.dice.below(longest);
        self.after_millis(millis, Ev::Mend(Mend::Links));
    }

    /// Until the next end of a partition.
    pub(super) fn cut_off(&mut self, at: At, with: Option<At>, one_way: bool) {
        let n = self.slots.len();
        for other in (0..n).filter(|other| *other != at && Some(*other) != with) {
            for inside in [Some(at), with].into_iter().flatten() {
                self.net.cut[inside][other] = true;
                self.net.cut[other][inside] |= !one_way;
            }
        }
        self.note(format_args!("n{} is cut off, with {with:?}, one way: {one_way}", at + 1));
        self.count(if one_way { "one-way partitions" } else { "partitions" });
    }

    pub(super) fn on_mend(&mut self, mend: Mend) {
        match mend {
            Mend::Links => {
                self.note(format_args!("all links work"));
                self.net.cut.iter_mut().flatten().for_each(|cut| *cut = false);
                for from in 0..self.slots.len() {
                    for to in 0..self.slots.len() {
                        self.transmit(from, to, super::wire::Packet::Greeting);
                    }
                }
                self.cut_anew();
            }
            Mend::Weather => {
                self.net.loss = 0;
                self.net.twice = 0;
                self.net.delay = 1 + self.dice.below(3000);
            }
            Mend::Crippled(at, life) => {
                if self.slots[at].life == life && self.slots[at].running.is_some() {
                    self.crash(at, false);
                }
            }
            Mend::Duel(life) => self.end_duel(life),
            Mend::Late => self.end_lateness(),
            Mend::HalfLull => self.on_half_lull(),
            Mend::Lull => self.end_lull(),
            Mend::Learner(at) => self.add_learner(at),
            Mend::SwitchOff(fresh, tries) => self.switch_off_for(fresh, tries),
            Mend::Restart => {
                self.calls_of_first_life = self.slots[0].fs.counts();
                self.crash(0, false);
            }
            Mend::Cut(at) => {
                if self.strikes() {
                    self.crash(at, true);
                }
            }
            Mend::Sync(at, life) => {
                if self.slots[at].life == life {
                    self.slots[at].sync_micros = self.shape.sync_micros;
                }
            }
        }
    }

    /// No faults and no load from now on; what is broken is repaired.
    pub(super) fn calm_down(&mut self) {
        self.note(format_args!("the storm is over"));
        self.stormy = false;
        self.lull = None;
        self.lateness = None;
        self.ambush = None;
        self.calmed_at = self.now;
        self.on_mend(Mend::Weather);
        self.on_mend(Mend::Links);
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            slot.paused_until = self.now;
            slot.apply_stalled_until = self.now;
            slot.sync_micros = 500;
            slot.fs.clear_faults();
            slot.fs.forget_crash();
            let failed = at == 0 && self.options.turn.is_some();
            if slot.running.as_ref().is_some_and(|running| running.crippled || failed) {
                self.crash(at, false);
            } else if slot.running.is_none() && slot.started {
                self.after_millis(10, Ev::Restart(at));
            }
        }
    }
}
