//! What a run may take. Every run ends with a verdict: a cluster that goes round in a circle has failed like any other.
//!
//! ```text
//! may not be more than               or else
//! events of one simulated instant    things cause each other and no time passes
//! events of a run                    things cause each other for ever
//! time with load, time after it      a client's call does not end: `World::play` comes to its own deadlines only when no call
//!                                    is on the stack
//! ```
//!
//! When a budget is spent, all nodes stop, which ends every call that lies on the stack; then nothing happens any more, and
//! only time passes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::how_to_replay;
use super::world::{At, Ev, HEAL, State, World};

/// Events of one instant. The busiest instant of 100 seeds had 8.
const INSTANT: u64 = 10_000;
/// Events of a run. The longest of 100 seeds had 192,000.
pub(super) const RUN: u64 = 2_000_000;
/// What the calls that lie above each other when the load ends may take, and what a run may take beyond the time for healing:
/// each of them may wait for `commit_timeout`, one after the other.
const CALLS: Duration = Duration::from_secs(60);
/// Events that are told when a budget is spent.
const WINDOW: u64 = 10_000;
/// Steps in which the calls on the stack must have ended then.
const UNWIND: u64 = 1_000_000;

/// What was spent.
#[derive(Default)]
pub(super) struct Budget {
    events: u64,
    instant: Duration,
    of_instant: u64,
    /// Kinds of the events of the last window, and of the one before it.
    kinds: BTreeMap<(&'static str, Option<At>), u64>,
    before: BTreeMap<(&'static str, Option<At>), u64>,
    /// Steps since it was spent.
    pub(super) over: Option<u64>,
}

impl Budget {
    /// One more event, of this moment. What is exceeded, if anything.
    fn spend(&mut self, now: Duration, kind: (&'static str, Option<At>), most: u64) -> Option<String> {
        self.events += 1;
        self.of_instant = if self.instant == now { self.of_instant + 1 } else { 1 };
        self.instant = now;
        if self.events.is_multiple_of(WINDOW) {
            self.before = std::mem::take(&mut self.kinds);
        }
        *self.kinds.entry(kind).or_insert(0) += 1;
        if self.of_instant > INSTANT {
            return Some(format!("more than {INSTANT} events in one instant"));
        }
        (self.events > most).then(|| format!("{most} events"))
    }

    /// What there was most of lately.
    fn most(&self) -> String {
        let mut kinds = self.kinds.clone();
        self.before.iter().for_each(|(kind, count)| *kinds.entry(*kind).or_insert(0) += count);
        let all: u64 = kinds.values().sum();
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let mut words = format!("of the last {all} events");
        for ((kind, at), count) in kinds.into_iter().take(5) {
            let _ = write!(words, ", {count} {kind}");
            if let Some(at) = at {
                let _ = write!(words, " of n{}", at + 1);
            }
        }
        words
    }
}

/// What an event is called, and whose it is.
pub(super) fn kind_of(event: &Ev) -> (&'static str, Option<At>) {
    match event {
        Ev::Tick(at, _) => ("ticks", Some(*at)),
        Ev::Turn(at, _) => ("turns of the engine", Some(*at)),
        Ev::Disk(at, _) => ("writes of the log", Some(*at)),
        Ev::Apply(at, _) => ("steps of the applier", Some(*at)),
        Ev::Upkeep(at, _) => ("steps of the upkeep", Some(*at)),
        Ev::Person => ("acts of people", None),
        Ev::Join(at, _) => ("requests to join", Some(*at)),
        Ev::GoOn { .. } => ("looks of a call that waits", None),
        Ev::NoAnswer { .. } => ("answers that did not come", None),
        Ev::Deliver { to, .. } => ("messages", Some(*to)),
        Ev::Client => ("acts of clients", None),
        Ev::Fault => ("faults", None),
        Ev::Restart(at) => ("restarts", Some(*at)),
        Ev::Mend(_) => ("ends of faults", None),
        Ev::Transfer(_) => ("transfers of leadership", None),
        Ev::Bind { .. } => ("bindings", None),
    }
}

impl State {
    /// Counts an event of this moment; what is exceeded, if anything.
    pub(super) fn spend(&mut self, event: &Ev) -> Option<String> {
        let most = self.options.most_events;
        let exceeded = self.budget.spend(self.now, kind_of(event), most).or_else(|| self.late())?;
        let calls: Vec<String> = self.calls.iter().map(|call| format!("n{}", call.at + 1)).collect();
        Some(format!(
            "no end: {exceeded}; {}; calls of clients on the stack: {calls:?}; {}",
            self.budget.most(),
            self.describe()
        ))
    }

    fn late(&self) -> Option<String> {
        let (from, may) = match self.stormy {
            true => (self.options.load_for, CALLS),
            false => (self.calmed_at, HEAL + CALLS),
        };
        let what = if self.stormy { "the time for load was over" } else { "the last fault" };
        (self.now > from + may).then(|| format!("{may:?} after {what} calls still wait"))
    }
}

impl World {
    /// The budget is spent: whoever waits hears that its node has stopped.
    pub(super) fn give_up(self: &Arc<World>, why: String) {
        let stopped = {
            let mut state = self.state.lock();
            state.fail(why);
            state.budget.over = Some(0);
            (0..state.slots.len()).for_each(|at| state.bury(at));
            state.take_garbage()
        };
        drop(stopped);
    }

    /// One step of a world that has given up; whether it has.
    pub(super) fn only_time_passes(&self, state: &mut State) -> bool {
        let Some(steps) = &mut state.budget.over else { return false };
        *steps += 1;
        let stuck = *steps > UNWIND;
        state.now += Duration::from_millis(10);
        self.clock.set(state.now);
        if stuck {
            // Nothing can end this call, and it lies above everything that could report.
            let what = state.failure.clone().unwrap_or_default();
            let options = &state.options;
            println!("seed {} FAILED: a call goes on although its node has stopped; {what}", options.seed);
            state.trace.last.iter().for_each(|event| println!("{event}"));
            println!("{}", how_to_replay(options.seed, options.turn));
            std::process::abort();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_events_in_one_instant_are_too_many_and_as_many_one_after_the_other_are_not() {
        let (mut circle, mut calm) = (Budget::default(), Budget::default());
        let turn = ("turns of the engine", Some(2));
        for event in 0..INSTANT {
            assert_eq!(circle.spend(Duration::ZERO, turn, RUN), None);
            assert_eq!(calm.spend(Duration::from_micros(event / 100), turn, RUN), None);
        }
        assert!(circle.spend(Duration::ZERO, turn, RUN).is_some_and(|what| what.contains("in one instant")));
        assert_eq!(calm.spend(Duration::from_secs(1), turn, RUN), None);
        assert!(circle.most().contains("turns of the engine of n3"), "{}", circle.most());
    }
}
