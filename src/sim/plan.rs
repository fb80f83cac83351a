//! What no run goes without, whatever chance brings: somebody who comes or goes, and a snapshot.
//!
//! ```text
//! under faults     people let a node in at the latest when a third of the time is over, and keep one place for the end as long as
//!                  no snapshot was installed
//! at the end       where one of the two did not come about, clients write until the logs of all nodes begin later than they did,
//!                  and then a new node joins, which needs a snapshot. A leader whose log does not become shorter since its disk
//!                  has failed is started again; and if the new node came by the log of another leader, one more joins
//! ```
//!
//! A run that went without is one that says nothing of them: it has failed ([`State::check_plan`]).

use std::sync::Arc;
use std::time::Duration;

use super::bounds::{has_disk_that_failed, has_log_that_stays};
use super::load::write;
use super::world::{At, Ev, State, World};
use crate::shared::Hub;
use crate::types::LogIndex;

/// What counts as a change of the members.
const CHANGES: [&str; 5] =
    ["nodes joined", "learners added", "learners promoted", "members removed", "voters replaced"];
const SNAPSHOTS: &str = "snapshots installed";

impl State {
    fn has_reached(&self, what: &str) -> bool {
        self.coverage.get(what).is_some_and(|count| *count > 0)
    }

    fn lacks_a_change(&self) -> bool {
        !CHANGES.iter().any(|what| self.has_reached(what))
    }

    fn lacks_a_snapshot(&self) -> bool {
        !self.has_reached(SNAPSHOTS)
    }

    /// Whether people should let a node in now, whatever else they would do.
    pub(super) fn is_late_for_a_change(&self) -> bool {
        self.now > self.options.load_for / 3 && self.slots.iter().all(|slot| slot.founder || !slot.started)
    }

    /// Places for new nodes. Under faults one of them is kept as long as no snapshot was installed.
    pub(super) fn spares(&self) -> Vec<At> {
        let mut spares: Vec<At> = (0..self.slots.len()).filter(|at| !self.slots[*at].started).collect();
        if self.stormy && self.lacks_a_snapshot() {
            spares.pop();
        }
        spares
    }

    /// What every run must have reached.
    pub(super) fn check_plan(&mut self) {
        if self.options.storm && self.lacks_a_change() {
            self.fail("the plan: nobody came or went in this run".to_string());
        }
        if self.options.storm && self.lacks_a_snapshot() {
            self.fail("the plan: no snapshot was installed in this run".to_string());
        }
    }

    /// Not as fast as it can be: all that was ever written is compared at the end.
    fn note_filler(&mut self) {
        self.next_filler = self.now + Duration::from_millis(20);
    }

    /// The storm is over: what is to be done next for what it did not bring.
    fn next(&self) -> Next {
        if !self.options.storm || !self.lacks_a_change() && !self.lacks_a_snapshot() {
            return Next::Nothing;
        }
        let Some((leader, _)) = self.newest_leader() else { return Next::Wait };
        // One that has come and needed none came by the log of a leader who was elected meanwhile, and another one has to.
        if self.newcomer.is_some() && !self.all_even() {
            return Next::Wait;
        }
        let hubs: Vec<&Hub> = self.participants().into_iter().filter_map(|at| self.slots[at].hub()).collect();
        let Some(hub) = self.slots[leader].hub() else { return Next::Wait };
        let start = hub.core_start();
        if self.now < self.next_filler || hubs.iter().any(|hub| hub.applied().index < start) {
            // Who lacks what the leader's log has no more needs a snapshot already.
            return Next::Wait;
        }
        let whole: Vec<&Hub> = hubs.into_iter().filter(|hub| hub.core_start() <= LogIndex(1)).collect();
        // Beyond its limit a log becomes shorter by itself, as soon as a checkpoint and an anchor allow it.
        let is_long = |hub: &&Hub| hub.log_extent().1 > 2 * hub.config.log_limit;
        match (start > LogIndex(1), whole.iter().all(is_long)) {
            // Those that are long and stay so cannot remove their files.
            (true, true) => self.spares().first().map_or(Next::Wait, |spare| Next::Start(*spare)),
            (false, true) if has_disk_that_failed(hub) || has_log_that_stays(hub) => Next::Again(leader),
            (false, true) => Next::Wait,
            (_, false) => Next::Write(leader),
        }
    }
}

enum Next {
    Nothing,
    Wait,
    Write(At),
    Start(At),
    Again(At),
}

/// One step of it; whether nothing is left to be done.
pub(super) fn go_on(world: &Arc<World>) -> bool {
    let next = world.state.lock().next();
    match next {
        Next::Nothing => return true,
        Next::Wait => {}
        Next::Write(leader) => {
            world.state.lock().note_filler();
            write(world, leader, 0);
        }
        Next::Start(spare) => {
            let mut state = world.state.lock();
            state.newcomer = Some(spare);
            state.note(format_args!("n{} joins, since this run has not had everything", spare + 1));
            state.count("newcomers after the storm");
            state.after_millis(1, Ev::Restart(spare));
        }
        // Its alarm says so.
        Next::Again(failed) => world.state.lock().crash(failed, false),
    }
    false
}
