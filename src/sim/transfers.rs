//! Snapshots: the rounds of each node as calls that take their time, what is noticed of them, and the install.

use shoaldb_vfs::env::sim::{Aim, Failure, Lasts};

use super::calls::{Asker, Purpose};
use super::excuses::Gives;
use super::faults::Mend;
use super::strand::Outcome;
use super::work::Effects;
use super::world::{At, Ev, State};
use crate::appender::Appender;
use crate::apply::Applier;
use crate::node;
use crate::shared::Input;
use crate::snapshot::object::{Answer, Ask, Listed, Manifest, Object, ViewId};
use crate::snapshot::rounds::Rounds;
use crate::snapshot::source;
use crate::types::NodeId;

/// What is noticed of a node's transfers.
#[derive(Default)]
pub(super) struct Noticed {
    /// The view that it fetches from, and from whom.
    view: Option<(At, ViewId)>,
    /// Objects that came from it.
    objects: u64,
    /// A transfer that had brought something ended with its process.
    cut_short: bool,
    /// The last manifest that came has less of some database than is shown here.
    keeps: bool,
}

impl State {
    /// What this node does about snapshots, as a call of its own.
    pub(super) fn begin_rounds(&mut self, at: At, life: u64) {
        let Some(running) = self.alive(at, life) else { return };
        let hub = running.hub.clone();
        let waits = hub.snapshots.is_due(hub.waiting.clock.now()) || hub.snapshots.has_staged();
        let tidies = hub.snapshots.passed(hub.applied().index).is_some();
        let due = waits || tidies || !hub.databases.all_damaged().is_empty();
        let Some(seat) = running.seat.as_mut().filter(|seat| !seat.engine_over) else { return };
        let cleans_up = seat.rounds.as_ref().is_some_and(Rounds::has_patients);
        let Some(mut rounds) = seat.rounds.take_if(|_| due || cleans_up) else { return };
        self.begin_call(at, Purpose::Rounds, move || {
            node::step_rounds(&hub, &mut rounds);
            Outcome::Rounds(rounds)
        });
    }

    /// What was fetched is installed, between two events.
    pub(super) fn install_staged(&mut self, at: At, life: u64) {
        let strikes = self.strikes() && self.chance(300);
        let crash = strikes.then(|| (1 + self.dice.below(12), self.dice.below(u64::MAX)));
        let lacks_room = self.strikes() && self.chance(150);
        let lacks_room = lacks_room.then(|| 1 + self.dice.below(12));
        let fs = self.slots[at].fs.clone();
        let Some(running) = self.alive(at, life) else { return };
        let hub = running.hub.clone();
        let Some(seat) = running.seat.as_mut().filter(|seat| !seat.engine_over) else { return };
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
        let index = staged.manifest.at.index;
        if let Some((nth, seed)) = crash {
            fs.crash_at(Aim::Any, nth, seed);
        }
        if let Some(nth) = lacks_room {
            fs.fail_at(Aim::Any, nth, Lasts::Once, Failure::ENOSPC);
        }
        let installed = node::go_on_behind(&hub, &seat.log, &seat.engine.core_status(), *staged);
        let died = fs.is_down();
        if crash.is_some() {
            fs.forget_crash();
        }
        let mut failed = String::new();
        let what = match installed {
            Ok(Some((core, applied))) => {
                seat.batches.clear();
                seat.entries.clear();
                seat.appender = Appender::default();
                seat.applier = Applier::new(hub.clone());
                seat.engine.exchange_core(core, applied);
                running.bounds.installed = index;
                "snapshots installed"
            }
            Ok(None) if hub.snapshots.has_staged() => "snapshots that waited for room",
            Ok(None) => "snapshots that the log had overtaken",
            Err(what) => {
                failed = what.clone();
                hub.post(Input::Failed { what });
                running.crippled = true;
                seat.disk_busy = true;
                seat.batches.clear();
                "snapshots that failed"
            }
        };
        hub.snapshots.end_install();
        if !hub.snapshots.has_staged() {
            seat.upkeep.begin_anew();
        }
        hub.post(Input::Announce);
        let crippled = running.crippled;
        // Also where it failed: what is on the disk by then is for the next start to take.
        self.slots[at].got_snapshot = true;
        self.slots[at].installing = died.then_some(index);
        self.note(format_args!("n{}: {what}", at + 1));
        self.count(what);
        if std::mem::take(&mut self.noticed[at].cut_short) && what == "snapshots installed" {
            self.count("snapshots installed after an attempt that a crash ended");
        }
        if std::mem::take(&mut self.noticed[at].keeps) && what == "snapshots installed" {
            self.count("snapshots installed beside what is further");
        }
        if crippled && !self.slots[at].fs.is_down() {
            self.crippled(at, Gives::NoInstall, &failed);
        }
    }

    /// The answer of `to` to a question about snapshots; `None` if it lost power over it.
    pub(super) fn answer_about_snapshots(
        &mut self,
        from: At,
        to: At,
        who: Option<NodeId>,
        question: &[u8],
    ) -> Option<Vec<u8>> {
        let hub = self.slots[to].hub().cloned()?;
        let mut answer = source::serve(&hub, who, question);
        self.turn_soon(to);
        if self.slots[to].fs.is_down() {
            return None;
        }
        self.count("answers about snapshots");
        self.observe_lent(to);
        self.notice(from, to, Ask::decode(question).ok(), Answer::decode(answer.clone()).ok());
        if self.strikes() && self.chance(40) {
            self.strike(from, to);
        }
        if self.strikes() && self.chance(50) {
            let place = self.dice.below(answer.len() as u64) as usize;
            answer[place] ^= 1 << self.dice.below(8);
            self.count("answers about snapshots damaged");
        }
        Some(answer)
    }

    /// In the middle of a transfer one of the two loses power, the leader changes, or they are cut off from each other.
    fn strike(&mut self, from: At, to: At) {
        let millis = self.dice.below(300);
        let event = match self.dice.below(5) {
            0 | 1 => Ev::Mend(Mend::Cut(from)),
            2 => Ev::Mend(Mend::Cut(to)),
            3 => Ev::Transfer(self.dice.below(self.slots.len() as u64) as usize),
            _ => {
                self.net.cut[from][to] = true;
                Ev::Mend(Mend::Links)
            }
        };
        self.after_millis(millis, event);
    }

    fn notice(&mut self, from: At, to: At, ask: Option<Ask>, answer: Option<Answer>) {
        match (ask, answer) {
            (_, Some(Answer::Opened { view, .. })) => {
                // The log of such a snapshot begins before its pages.
                if self.slots[to].hub().is_some_and(|hub| hub.progress().settled() < hub.applied().index) {
                    self.count("views lent in the middle of a transaction");
                }
                let before = self.noticed[from].view.replace((to, view));
                self.noticed[from].objects = 0;
                if before.is_some_and(|(source, _)| source != to) {
                    self.count("snapshots fetched on from another node");
                } else if before.is_some_and(|(_, known)| known != view) {
                    self.count("views superseded");
                }
                let leases = self.slots[to].hub().map_or((0, 0), |hub| hub.snapshots.views.counts());
                if leases.1 > leases.0 {
                    self.count("views shared");
                }
            }
            (ask, Some(Answer::Object { bytes })) => {
                self.noticed[from].objects += 1;
                let asked_for_all = matches!(ask, Some(Ask::Fetch { object: Object::Manifest, .. }));
                let manifest = Manifest::decode(&bytes).ok().filter(|_| asked_for_all);
                let is_further = |listed: &Listed| {
                    let here = self.slots[from].hub().and_then(|hub| hub.databases.get(listed.id));
                    here.is_some_and(|db| db.retired().is_none() && db.position() > listed.at.position)
                };
                if let Some(manifest) = manifest {
                    self.noticed[from].keeps = manifest.databases.iter().any(is_further);
                }
            }
            (Some(Ask::Fetch { .. } | Ask::Progress { .. }), Some(Answer::Gone)) => self.count("views gone"),
            (_, Some(Answer::Busy { .. })) => self.count("views asked for at a bad moment"),
            (Some(Ask::Done { .. }), _) => self.noticed[from].view = None,
            _ => {}
        }
    }

    /// A process that fetched or offered is gone.
    pub(super) fn transfer_died(&mut self, at: At) {
        if self.noticed[at].view.is_some() {
            self.count("receivers crashed in a transfer");
            // The manifest, hashes of ranges, hashes of pages; then there are pages.
            self.noticed[at].cut_short |= self.noticed[at].objects > 2;
        }
    }

    /// A process that others fetch from is gone.
    pub(super) fn source_died(&mut self, at: At) {
        let fetches = |asker: Asker| {
            let call = match asker {
                Asker::Call(call, _) | Asker::Line { call, .. } => call,
                Asker::Joiner(..) => return false,
            };
            let Some(held) = self.held.get(&call) else { return false };
            matches!(held.purpose, Purpose::Rounds) && self.noticed[held.at].view.is_some()
        };
        if self.tickets.values().any(|ticket| ticket.to == at && fetches(ticket.asker())) {
            self.count("sources crashed in a transfer");
        }
    }

    /// Whether somebody fetches a snapshot.
    pub(super) fn fetching(&self) -> bool {
        self.held.values().any(|held| matches!(held.purpose, Purpose::Rounds) && self.noticed[held.at].view.is_some())
    }
}
