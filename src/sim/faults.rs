//! What goes wrong, and when.

use std::time::Duration;

use shoaldb_vfs::env::sim::{Aim, Failure, Lasts};

use super::excuses::{CHECKPOINT_STEPS, Gives};
use super::node::CALM_SYNC;
use super::turns::How;
use super::world::{At, Ev, State};
use crate::shared::{Hub, Input};

/// The end of a fault.
pub(super) enum Mend {
    Links,
    Weather,
    Sync(At, u64),
    /// In a run of one fault the first node is restarted, goes away, and comes back when it needs a snapshot.
    Restart,
    Leave,
    Return,
    /// A node's stalled disk loses power.
    Cut(At),
    /// The same, planned when what is said of a vote went to the disk; the life of the node that votes.
    CutVote(At, u64),
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

/// What does not get through to or from a node that is cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    Both,
    /// It hears, and is not heard.
    Outward,
    /// It is heard, and does not hear.
    Inward,
}

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
        match self.dice.below(39) {
            0..=2 => self.crash(at, true),
            3 => self.crash(at, false),
            4 => {
                let nth = 1 + self.dice.below(40);
                self.slots[at].fs.kill_at(Aim::Any, nth);
                self.note(format_args!("n{} shall be killed in its call {nth}", at + 1));
                self.count_at(at, "kills in a call planned");
                // What its next process finds in the kernel's memory need not be on the disk.
                if self.dice.below(2) == 0 {
                    let millis = 50 + self.dice.below(1500);
                    self.after_millis(millis, Ev::Mend(Mend::Cut(at)));
                }
            }
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
                self.slow_links(at);
                self.count("bad weather");
                let millis = 500 + self.dice.below(3000);
                self.after_millis(millis, Ev::Mend(Mend::Weather));
            }
            10 => {
                let millis = 100 + self.dice.below(4000);
                self.slots[at].paused_until = self.now + Duration::from_millis(millis);
                self.note(format_args!("n{} pauses for {millis} ms", at + 1));
                self.count_at(at, "pauses");
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
                    self.count_at(at, "checkpoint failures planned");
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
            36..=38 => self.fail_any_call(at),
            _ => {}
        }
    }

    fn is_up(&self, at: At) -> bool {
        self.slots[at].running.is_some()
    }

    /// Counts what befalls a node, if there is one in that place.
    fn count_at(&mut self, at: At, what: &'static str) {
        if self.is_up(at) {
            self.count(what);
        }
    }

    /// The one fault of this run is armed when the life begins in which it strikes.
    pub(super) fn arm(&mut self, at: At) {
        let slot = &self.slots[at];
        if let Some(turn) = self.options.turn.filter(|turn| at == 0 && self.stormy && turn.life == slot.life) {
            turn.arm(&slot.fs);
        }
    }

    /// Some call of this node's disk fails, whichever it is.
    fn fail_any_call(&mut self, at: At) {
        let mut labels = self.slots[at].labels();
        if labels.is_empty() || self.slots[at].running.is_none() {
            return;
        }
        let label = labels.swap_remove(self.dice.below(labels.len() as u64) as usize);
        let failure = if self.dice.below(2) == 0 { Failure::ENOSPC } else { Failure::EIO };
        let nth = 1 + self.dice.below(3);
        self.slots[at].fs.fail_at(Aim::At(label), nth, Lasts::Once, failure);
        self.note(format_args!("n{}: of the next {label} number {nth} fails, {failure:?}", at + 1));
        self.count("failures of any call planned");
    }

    /// Calls of a start fail: the recovery has something to repair, as it has without that.
    pub(super) fn fail_a_start(&mut self, at: At) {
        // For another error than that a start may give copies up: of one node at a time, or no majority has what they were.
        let no_room = self.dice.below(2) == 0 || !self.others_are_whole(at);
        let failure = if no_room { Failure::ENOSPC } else { Failure::EIO };
        let mut labels = self.slots[at].labels();
        let (aim, nth, lasts) = match self.dice.below(3) {
            0 if !labels.is_empty() => {
                let label = labels.swap_remove(self.dice.below(labels.len() as u64) as usize);
                (Aim::At(label), 1, Lasts::ForGood)
            }
            _ => (Aim::Any, 1 + self.dice.below(60), Lasts::Once),
        };
        self.slots[at].fs.fail_at(aim, nth, lasts, failure);
        self.note(format_args!(
            "n{}: of what it does from its start on {aim:?} number {nth} fails, {failure:?} {lasts:?}",
            at + 1
        ));
        self.count("failures in a start planned");
    }

    /// A node stopped, or did not start: a mistake, unless calls of its disk that failed explain it. Then somebody starts it again.
    pub(super) fn stopped(&mut self, at: At, gives: Gives, what: String) {
        if !self.stormy || !self.is_excused(at, gives) {
            return self.fail(what);
        }
        self.note(format_args!("{what}"));
        self.count(match gives {
            Gives::NoStart => "starts that failed",
            _ => "nodes that stopped",
        });
        self.slots[at].fs.clear_faults();
        if self.slots[at].running.is_some() {
            self.crash(at, false);
        } else {
            self.after_millis(50, Ev::Restart(at));
        }
    }

    /// A node promises nothing more: somebody starts it again, if calls of its disk that failed explain it.
    pub(super) fn crippled(&mut self, at: At, gives: Gives, what: &str) {
        if !self.is_excused(at, gives) {
            return self.fail(format!("n{}: without a fault of its disk that explains it: {what}", at + 1));
        }
        let life = self.slots[at].life;
        let millis = 300 + self.dice.below(3000);
        self.after_millis(millis, Ev::Mend(Mend::Crippled(at, life)));
    }

    fn stall_syncs(&mut self, at: At) {
        let life = self.slots[at].life;
        self.slots[at].sync_micros = 1000 * (100 + self.dice.below(3000));
        let micros = self.slots[at].sync_micros;
        self.note(format_args!("n{}: syncs take up to {} us", at + 1, 2 * micros));
        self.count_at(at, "stalled syncs");
        let millis = 500 + self.dice.below(5000);
        self.after_millis(millis, Ev::Mend(Mend::Sync(at, life)));
    }

    fn stall_applier(&mut self, at: At) {
        let millis = 200 + self.dice.below(2500);
        self.slots[at].apply_stalled_until = self.now + Duration::from_millis(millis);
        self.note(format_args!("n{}: the applier stalls for {millis} ms", at + 1));
        self.count_at(at, "stalled appliers");
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
        self.slots[at].wipe(seed);
        self.note(format_args!("n{}: its directory is wiped", at + 1));
        self.count("directories wiped");
        self.isolate(leader, None, Cut::Both, 4000);
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
        self.isolate(leader, Some(with).filter(|_| n > 3), Cut::Both, 2500);
    }

    fn part(&mut self, at: At) {
        let n = self.slots.len();
        let cut = [Cut::Both, Cut::Both, Cut::Both, Cut::Both, Cut::Outward, Cut::Inward][self.dice.below(6) as usize];
        let leader = self.slots.iter().position(|slot| slot.hub().is_some_and(|hub| hub.is_ready_leader()));
        let at = if self.dice.below(2) == 0 { leader.unwrap_or(at) } else { at };
        let with = if n > 3 && self.dice.below(2) == 0 { self.companion(at) } else { None };
        self.isolate(at, with, cut, 6000);
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
        if [true, false].into_iter().all(|side| (0..n).any(|other| sides[other] == Some(side) && self.is_up(other))) {
            self.count_at(at, "bridges");
        }
        let millis = 300 + self.dice.below(5000);
        self.after_millis(millis, Ev::Mend(Mend::Links));
    }

    /// Some of the links are much slower than the others: one, in one direction or both, or all that lead to and from a node.
    fn slow_links(&mut self, at: At) {
        let n = self.slots.len();
        let (kind, other) = (self.dice.below(4), (at + 1 + self.dice.below(n as u64 - 1) as usize) % n);
        let micros = 10_000 + self.dice.below(400_000);
        for (from, to) in (0..n).flat_map(|from| (0..n).map(move |to| (from, to))) {
            let is_slow = match kind {
                0 => false,
                1 => (from, to) == (at, other),
                2 => (from, to) == (at, other) || (from, to) == (other, at),
                _ => from == at || to == at,
            };
            self.net.slow[from][to] = if is_slow { micros } else { 0 };
        }
        if kind > 0 {
            self.note(format_args!("slow links of n{}, kind {kind} with n{}: {micros} us more", at + 1, other + 1));
            self.count("slow links beside fast ones");
        }
    }

    /// A node's machine slept: its clock is ahead of what its process has seen.
    fn jump(&mut self, at: At) {
        let millis = 1 + self.dice.below(if self.dice.below(3) == 0 { 3_600_000 } else { 3000 });
        self.slots[at].clock.jump(Duration::from_millis(millis));
        self.note(format_args!("n{}: the clock jumps by {millis} ms", at + 1));
        self.count_at(at, "jumps of a clock");
    }

    /// Another voter, if anybody knows who votes.
    pub(super) fn companion(&self, at: At) -> Option<At> {
        let (_, members) = self.newest_leader()?;
        let others = members.voters.iter().map(|id| usize::from(id.0) - 1).filter(|other| *other != at);
        let others: Vec<At> = others.collect();
        others.get(self.dice.below(others.len() as u64) as usize).copied()
    }

    pub(super) fn isolate(&mut self, at: At, with: Option<At>, cut: Cut, longest: u64) {
        self.cut_off(at, with, cut);
        let millis = 300 + self.dice.below(longest);
        self.after_millis(millis, Ev::Mend(Mend::Links));
    }

    /// Until the next end of a partition.
    pub(super) fn cut_off(&mut self, at: At, with: Option<At>, cut: Cut) {
        let n = self.slots.len();
        for other in (0..n).filter(|other| *other != at && Some(*other) != with) {
            for inside in [Some(at), with].into_iter().flatten() {
                self.net.cut[inside][other] |= cut != Cut::Inward;
                self.net.cut[other][inside] |= cut != Cut::Outward;
            }
        }
        self.note(format_args!("n{} is cut off, with {with:?}: {cut:?}", at + 1));
        self.count_at(
            at,
            match cut {
                Cut::Both => "partitions",
                Cut::Outward => "partitions of who hears and is not heard",
                Cut::Inward => "partitions of who is heard and does not hear",
            },
        );
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
                self.net.slow.iter_mut().flatten().for_each(|slow| *slow = 0);
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
            Mend::Restart => self.end_life(),
            Mend::Leave => self.leave(),
            Mend::Return => self.return_behind_the_logs(),
            Mend::Cut(at) => {
                if self.strikes() {
                    self.crash(at, true);
                }
            }
            Mend::CutVote(at, life) => {
                if self.strikes() {
                    if self.alive(at, life).is_some() {
                        self.count("power cut before a vote was on disk");
                    }
                    self.crash(at, true);
                }
            }
            Mend::Sync(at, life) => {
                if self.slots[at].life == life {
                    self.slots[at].sync_micros = self.usual_sync();
                }
            }
        }
    }

    /// No faults and no load from now on; what is broken is repaired.
    pub(super) fn calm_down(&mut self) {
        self.note(format_args!("the storm is over"));
        self.stormy = false;
        self.away_with = None;
        self.lull = None;
        self.lateness = None;
        self.ambush = None;
        self.calmed_at = self.now;
        self.on_mend(Mend::Weather);
        self.on_mend(Mend::Links);
        if !self.options.storm {
            self.note_calls();
        }
        if self.options.turn.is_some() && !self.turn_has_struck(0) {
            self.fail("the fault of this turn has not come".to_string());
        }
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            slot.paused_until = self.now;
            slot.apply_stalled_until = self.now;
            slot.sync_micros = CALM_SYNC;
            slot.fs.clear_faults();
            slot.fs.forget_crash();
            let turn = self.options.turn.filter(|_| at == 0);
            let (failed, loses) = (turn.is_some(), turn.is_some_and(|turn| turn.how == How::IsKilled));
            if slot.running.as_ref().is_some_and(|running| running.crippled || failed) {
                self.crash(at, loses);
            } else if slot.running.is_none() && slot.started {
                self.after_millis(10, Ev::Restart(at));
            }
        }
    }
}
