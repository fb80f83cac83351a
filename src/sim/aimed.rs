//! Faults with an aim. What they lead to hardly ever comes about by chance, and a promise of its own rests on each.
//!
//! ```text
//! what goes wrong                                                        what rests on it
//! files of the log cannot be removed                                     who gets a snapshot is decided by what the core still has
//! a sync of the log fails; the process is killed; soon the power fails   what a start has read is on the disk before it counts
//! a leader is cut off with one other voter; whoever is elected is cut    only what is committed proves that an entry is not
//!   off with that leader, before it can tell anybody else
//! of three founders one is not bound yet, another one is away; then      votes and acknowledgements count from the bound directory
//!   the first one's directory is wiped, and the leader is cut off
//! the applier stalls in the middle of a transaction that came in parts;   a view that is cut then begins earlier than its pages; the
//!   of two learners one comes much later than the other                    log may move past it when nobody has a lease
//! a writer leaves its transaction open on a leader; another node leads   a transaction takes effect only on what it was built on
//!   for a while, of which the first one applies nothing until it leads
//!   again, and the writer goes on
//! as soon as a new node votes, others are switched off: as many as may   who votes can do its part
//!   be down; in some runs each new one needs a snapshot that comes slowly
//! ```

use std::time::Duration;

use shoaldb_vfs::env::sim::{Aim, Failure, Lasts};

use super::faults::{Cut, Mend};
use super::wire::Packet;
use super::world::{At, Call, Ev, State};
use crate::shared::Hub;
use crate::types::{LogIndex, MessageKind, NodeId, Term};

/// How long a minority is switched off, and nothing else goes wrong.
const LULL: Duration = Duration::from_secs(10);
/// How long after it was held up (see [`State::waits_for_the_stack`]) a majority may need to go on: for an election, and what
/// its leader does before it is ready.
const AGAIN: Duration = Duration::from_secs(3);
/// Entries that a voter may lack when it counts as one that goes on by itself.
const NEARLY: u64 = 64;

/// How long an ambush waits for another leader.
const AMBUSH: Duration = Duration::from_secs(4);
/// How long that one stays cut off, at least: the others need the time to elect one more.
const CAUGHT: Duration = Duration::from_secs(3);
/// How often a new voter is looked at until others may be switched off for it, and how long after each other.
const TRIES: u32 = 20;
/// The same where that is what a run is about: whoever was down comes back in this time.
const PATIENT_TRIES: u32 = 100;
const TRY_MILLIS: u64 = 50;

/// A leader that is cut off with one other voter; then whoever leads after it is cut off with it.
#[derive(Clone, Copy)]
pub(super) struct Ambush {
    leader: At,
    term: Term,
    with: At,
    caught: Option<At>,
    until: Duration,
}

/// A minority is switched off.
#[derive(Clone)]
pub(super) struct Lull {
    off: Vec<At>,
    /// The other voters.
    left: Vec<At>,
    /// Those of them that needed a snapshot from the beginning, in their first life: who votes has been given what it needs.
    lacking: Vec<At>,
    /// Others of them need one, which may take longer than a lull: they were away before it, or came to it meanwhile.
    overtaken: bool,
    /// The last committed entry in the middle of it.
    committed: LogIndex,
    /// When a node was last seen held up by the stack.
    held_up: Option<Duration>,
}

/// A founder that the others have not bound yet.
#[derive(Clone, Copy)]
pub(super) struct Late {
    pub(super) node: At,
    leader: At,
}

fn at_of(id: &NodeId) -> At {
    usize::from(id.0) - 1
}

fn names(of: &[At]) -> String {
    of.iter().map(|at| format!("n{}", at + 1)).collect::<Vec<_>>().join(" and ")
}

impl State {
    /// From now on the files of a node's log stay, until it is started again.
    pub(super) fn keep_files(&mut self, at: At) {
        if !self.shape.keeps_files || !self.strikes() || !self.chance(30) {
            return;
        }
        for label in ["log.remove", "log.retire"] {
            self.slots[at].fs.fail_at(Aim::At(label), 1, Lasts::ForGood, Failure::EIO);
        }
        self.note(format_args!("n{}: files of the log cannot be removed any more", at + 1));
        self.count("logs whose files stay");
    }

    /// An entry was applied, maybe a part of a transaction that has more.
    pub(super) fn stall_in_a_split(&mut self, at: At) {
        let open = |hub: &Hub| hub.progress().settled() < hub.applied().index;
        let open = self.shape.lends_long && self.strikes() && self.slots[at].hub().is_some_and(open);
        if open && self.chance(20) {
            let millis = 100 + self.dice.below(600);
            self.slots[at].apply_stalled_until = self.now + Duration::from_millis(millis);
            self.count("appliers stalled in a split");
        }
    }

    /// Two learners are added; one of them is started soon, the other one when the first may be done with its snapshot.
    pub(super) fn add_two_learners(&mut self) {
        let [late, soon, ..] = self.spares()[..] else { return };
        for (at, added, started) in [(late, 0, 2500 + self.dice.below(6000)), (soon, 400, 900)] {
            self.slots[at].started = true;
            self.after_millis(added, Ev::Mend(Mend::Learner(at)));
            self.after_millis(started, Ev::Restart(at));
        }
        self.note(format_args!("n{} and n{} shall be learners, the first one much later", late + 1, soon + 1));
        self.count("learners that came late");
    }

    /// The next sync of a node's log fails, and what follows comes quickly.
    pub(super) fn distrust(&mut self, at: At) {
        if self.slots[at].running.as_ref().is_some_and(|running| !running.crippled) {
            self.slots[at].fs.fail_at(Aim::At("log.sync"), 1, Lasts::Once, Failure::EIO);
            self.slots[at].distrusted = true;
            self.note(format_args!("n{}: the next log.sync fails, and then it is killed and loses power", at + 1));
        }
    }

    /// The log failed, after [`State::distrust`]: whether that was it.
    pub(super) fn goes_on_quickly(&mut self, at: At, life: u64) -> bool {
        if !std::mem::take(&mut self.slots[at].distrusted) || !self.stormy {
            return false;
        }
        let killed = 1 + self.dice.below(10);
        self.after_millis(killed, Ev::Mend(Mend::Crippled(at, life)));
        self.after_millis(killed + 1, Ev::Restart(at));
        let cut = killed + 2 + self.dice.below(300);
        self.after_millis(cut, Ev::Mend(Mend::Cut(at)));
        self.count("power cuts after a failed sync and a start");
        true
    }

    /// A writer leaves its transaction open on this node, if that leads: somebody else leads for a while. When this node leads again
    /// it has in its log what was committed meanwhile, and has not applied it. When the writer should go on then.
    pub(super) fn lead_past_a_writer(&mut self, at: At) -> Option<Duration> {
        let leads = self.slots[at].hub().is_some_and(|hub| hub.is_ready_leader());
        if !self.shape.returns || !leads || !self.strikes() {
            return None;
        }
        let other = self.companion(at)?;
        self.count("writers that others led past");
        self.transfer(other);
        let back = 150 + self.dice.below(500);
        self.after_millis(back, Ev::Transfer(at));
        let goes_on = back + 20 + self.dice.below(150);
        let stalled = goes_on + 20 + self.dice.below(300);
        self.slots[at].apply_stalled_until = self.now + Duration::from_millis(stalled);
        Some(Duration::from_millis(goes_on))
    }

    /// The leader is cut off with one other voter: what it proposes now is in two logs. Somebody else will campaign.
    pub(super) fn begin_ambush(&mut self) {
        let Some((leader, members)) = self.newest_leader().filter(|_| self.ambush.is_none() && self.duel.is_none())
        else {
            return;
        };
        let others: Vec<At> = members.voters.iter().map(at_of).filter(|at| *at != leader).collect();
        if others.len() < 4 || !members.voters_outgoing.is_empty() {
            return;
        }
        let Some(term) = self.slots[leader].hub().map(|hub| hub.leadership().term) else { return };
        let with = others[self.dice.below(others.len() as u64) as usize];
        self.count("ambushes");
        self.ambush = Some(Ambush { leader, term, with, caught: None, until: self.now + AMBUSH });
        self.on_mend(Mend::Links);
        self.at(AMBUSH, Ev::Mend(Mend::Links));
    }

    /// What an ambush or a late founder cuts stays cut, whichever partition ends.
    pub(super) fn cut_anew(&mut self) {
        if let Some(Late { node, leader }) = self.lateness {
            self.cut_off(3 - node - leader, None, Cut::Both);
        }
        if let Some(Ambush { leader, with, caught, until, .. }) = self.ambush {
            if self.now < until && self.strikes() {
                self.cut_off(leader, caught.or(Some(with)), Cut::Both);
            } else {
                self.ambush = None;
            }
        }
    }

    /// A leader's first word: it and the leader before it are cut off from all others before they hear it.
    pub(super) fn spring_ambush(&mut self, from: At, packet: &Packet) {
        let Packet::Raft(message) = packet else { return };
        let Some(ambush) = self.ambush.filter(|ambush| ambush.caught.is_none() && self.strikes()) else { return };
        let leads = matches!(message.kind, MessageKind::Append | MessageKind::Heartbeat) && message.term > ambush.term;
        if !leads || from == ambush.leader || from == ambush.with || self.slots[ambush.leader].running.is_none() {
            return;
        }
        let long = CAUGHT + Duration::from_millis(self.dice.below(3000));
        self.ambush = Some(Ambush { caught: Some(from), until: self.now + long, ..ambush });
        self.count("new leaders cut off with the one before them");
        self.net.cut.iter_mut().flatten().for_each(|cut| *cut = false);
        self.cut_anew();
        self.at(long, Ev::Mend(Mend::Links));
    }

    /// Of three founders one is late: nobody binds it for a while, and another one is away.
    pub(super) fn begin_lateness(&mut self, leader: At, node: At) {
        let founders = self.slots.iter().filter(|slot| slot.started).count();
        let fits = self.shape.wipes_late && self.strikes() && self.lateness.is_none() && founders == 3;
        if !fits || self.late_was || self.shape.rots {
            return;
        }
        self.late_was = true;
        self.lateness = Some(Late { node, leader });
        let away = 3 - node - leader;
        self.cut_off(away, None, Cut::Both);
        self.note(format_args!("n{} is not bound for a while", node + 1));
        let millis = 700 + self.dice.below(2500);
        self.after_millis(millis, Ev::Mend(Mend::Late));
    }

    /// The late founder's directory is wiped.
    pub(super) fn end_lateness(&mut self) {
        let Some(Late { node, leader }) = self.lateness.take() else { return };
        if !self.strikes() || self.slots[node].running.is_none() {
            return;
        }
        self.crash(node, true);
        let seed = self.dice.below(u64::MAX);
        self.slots[node].wipe(seed);
        self.note(format_args!("n{}: its directory is wiped before it was bound", node + 1));
        self.count("unbound directories wiped");
        self.after_millis(20, Ev::Restart(node));
        self.net.cut.iter_mut().flatten().for_each(|cut| *cut = false);
        self.isolate(leader, None, Cut::Both, 6000);
    }

    /// The members changed: somebody votes who did not. Others are switched off for that.
    pub(super) fn welcome_voters(&mut self) {
        let Some((_, members)) = self.newest_leader() else { return };
        let fresh = members.voters.iter().find(|id| !self.known_voters.contains(*id)).map(at_of);
        let founding = self.known_voters.is_empty();
        self.known_voters.extend(members.voters.iter().copied());
        if let Some(fresh) = fresh.filter(|_| !founding && self.shape.switches_off) {
            // What goes wrong meanwhile might excuse it.
            let tries = if self.shape.crowds { PATIENT_TRIES } else { TRIES };
            self.hushed_until = self.now + Duration::from_millis(TRY_MILLIS * u64::from(tries));
            self.switch_off_for(fresh, tries);
        }
    }

    /// Does so as soon as all voters are well, if that comes soon.
    pub(super) fn switch_off_for(&mut self, fresh: At, tries: u32) {
        if !self.switch_off(Some(fresh)) && tries > 0 {
            self.after_millis(TRY_MILLIS, Ev::Mend(Mend::SwitchOff(fresh, tries - 1)));
        }
    }

    /// Switches off as many voters as may be down, and lets nothing else go wrong for a while; whether this is a moment for it.
    /// Whoever is left must go on.
    pub(super) fn switch_off(&mut self, fresh: Option<At>) -> bool {
        let Some((leader, members)) = self.newest_leader() else { return false };
        let over = self.now + LULL > self.options.load_for;
        let busy = !self.stormy || self.lull.is_some() || self.lateness.is_some();
        if busy || over || self.shape.rots || self.shape.upgrades || !members.voters_outgoing.is_empty() {
            return false;
        }
        let Some(hub) = self.slots[leader].hub().cloned() else { return false };
        let voters: Vec<At> = members.voters.iter().map(at_of).collect();
        let committed = hub.committed();
        let bound = |at: At| {
            let id = self.slots[at].id;
            hub.with_catalogue(|catalogue| catalogue.member(id).is_some_and(|member| member.incarnation.is_some()))
        };
        // Whoever has less than the others' logs begin with needs a snapshot before it can be one of a majority, and that takes
        // longer than a lull.
        let starts = voters.iter().filter_map(|at| self.slots[*at].hub()).map(|hub| hub.core_start());
        let start = starts.max().unwrap_or_default();
        let well = |at: At| {
            let slot = &self.slots[at];
            let Some(running) = slot.running.as_ref() else { return false };
            let seated = running.seat.as_ref().is_some_and(|seat| !seat.engine_over && !seat.apply_over);
            let there = seated && !running.crippled && bound(at) == Ok(true) && !self.is_out(at);
            // A new voter is as good as it has to be, whatever it has applied by now: that is what is looked at. Unless it was away
            // since it came in, see below.
            let applied = running.hub.applied().index;
            let near = applied.0 + NEARLY >= committed.0 && applied >= start && self.know_they_are_bound([at]);
            there && (near || Some(at) == fresh) && running.hub.trouble().is_none()
        };
        let mut may_go: Vec<At> = voters.iter().copied().filter(|at| Some(*at) != fresh).collect();
        let spare = (voters.len() - 1) / 2;
        if spare == 0 || !voters.iter().all(|at| well(*at)) {
            return false;
        }
        let mut off = Vec::new();
        for _ in 0..spare.min(may_go.len()) {
            off.push(may_go.swap_remove(self.dice.below(may_go.len() as u64) as usize));
        }
        self.duel = None;
        self.ambush = None;
        self.on_mend(Mend::Weather);
        self.on_mend(Mend::Links);
        for at in 0..self.slots.len() {
            self.let_alone(at);
        }
        let names = names(&off);
        self.note(format_args!("{names} are switched off, and nothing else goes wrong"));
        self.count(if fresh.is_some() { "voters switched off for new ones" } else { "minorities switched off" });
        off.iter().for_each(|at| self.crash(*at, false));
        let left: Vec<At> = voters.into_iter().filter(|at| !off.contains(at)).collect();
        // One that was started again since it came in may have been overtaken meanwhile, and needs more time than a lull has.
        let mut lacking = self.who_need_snapshots(&left);
        lacking.retain(|at| self.slots[*at].life == 1);
        self.lull = Some(Lull { off, left, lacking, overtaken: false, committed, held_up: None });
        self.at(LULL / 2, Ev::Mend(Mend::HalfLull));
        self.at(LULL, Ev::Mend(Mend::Lull));
        true
    }

    /// The middle of it: until now leadership may have changed.
    pub(super) fn on_half_lull(&mut self) {
        let committed = self.committed();
        let overtaken = self.lull.as_ref().is_some_and(|lull| self.is_overtaken(lull));
        if let Some(lull) = &mut self.lull {
            lull.committed = committed;
            lull.overtaken |= overtaken;
        }
    }

    /// Those that were switched off come back; the others must have gone on.
    pub(super) fn end_lull(&mut self) {
        let Some(lull) = self.lull.take() else { return };
        let stands_still = self.stormy && self.committed() <= lull.committed && self.are_a_majority_without(&lull.off);
        let held_up = lull.held_up.is_some_and(|last| self.now < last + AGAIN);
        if stands_still && (self.is_overtaken(&lull) || held_up) {
            self.count("lulls without a verdict");
        } else if stands_still {
            let words = self.describe();
            let names = names(&lull.off);
            self.fail(format!(
                "no progress: {LULL:?} after {names} were switched off, and with nothing else wrong, the others stand still: {words}"
            ));
        }
        for at in lull.off {
            self.after_millis(1, Ev::Restart(at));
        }
    }

    /// Whether the logs of others came to begin behind what one of the voters has that are left.
    fn is_overtaken(&self, lull: &Lull) -> bool {
        lull.overtaken || self.who_need_snapshots(&lull.left).iter().any(|at| !lull.lacking.contains(at))
    }

    /// Which of them have less than the logs of others begin with.
    fn who_need_snapshots(&self, of: &[At]) -> Vec<At> {
        let hub = |at: &At| self.slots[*at].hub();
        let start = of.iter().filter_map(hub).map(|hub| hub.core_start()).max().unwrap_or_default();
        let last = |hub: &Hub| hub.core_status.lock().as_ref().map_or(LogIndex(0), |core| core.last);
        of.iter().copied().filter(|at| hub(at).is_some_and(|hub| last(hub) < start)).collect()
    }

    /// A node that is held up now has not had the whole of a lull to go on in, also when it is free again in the end.
    pub(super) fn notice_who_is_held_up(&mut self) {
        if self.lull.is_some() && self.waits_for_the_stack() {
            let now = self.now;
            self.lull.iter_mut().for_each(|lull| lull.held_up = Some(now));
        }
    }

    /// Whether some node waits for a call to go on that lies below another one: it shows what was accepted when that one has
    /// ended, and with threads of their own it would not have to wait.
    fn waits_for_the_stack(&self) -> bool {
        let awaits = |call: &Call| {
            let seat = self.slots[call.at].running.as_ref().and_then(|running| running.seat.as_ref());
            seat.is_some_and(|seat| seat.applier.awaits())
        };
        self.calls.len() > 1 && self.calls.iter().any(awaits)
    }

    /// Whether the others are a majority by whatever any of them takes for the members: a change that was under way may have
    /// left fewer voters.
    fn are_a_majority_without(&self, off: &[At]) -> bool {
        let hubs = self.slots.iter().filter_map(|slot| slot.hub()).filter(|hub| !hub.is_removed());
        hubs.filter_map(|hub| hub.core_status.lock().as_ref().map(|core| core.membership.clone())).all(|members| {
            let enough = |voters: &[NodeId]| {
                let there = voters.iter().filter(|id| !off.contains(&at_of(id))).count();
                voters.is_empty() || there > voters.len() / 2
            };
            enough(&members.voters) && enough(&members.voters_outgoing)
        })
    }

    /// Whether a node stays down for now.
    pub(super) fn is_switched_off(&self, at: At) -> bool {
        self.away_with.is_some() && at == 0 || self.lull.as_ref().is_some_and(|lull| lull.off.contains(&at))
    }

    /// Whether anything may go wrong now.
    pub(super) fn strikes(&self) -> bool {
        self.options.storm && self.stormy && self.lull.is_none() && self.now >= self.hushed_until
    }

    /// The last entry that anybody knows to be committed.
    fn committed(&self) -> LogIndex {
        let committed = |slot: &super::node::Slot| slot.hub()?.core_status.lock().as_ref().map(|core| core.committed);
        self.slots.iter().filter_map(committed).max().unwrap_or(LogIndex(0))
    }

    /// What was to happen to this node does not.
    fn let_alone(&mut self, at: At) {
        let sync_micros = self.usual_sync();
        let slot = &mut self.slots[at];
        slot.paused_until = self.now;
        slot.apply_stalled_until = self.now;
        slot.sync_micros = sync_micros;
        slot.distrusted = false;
        slot.fs.clear_faults();
        slot.fs.forget_crash();
    }
}
