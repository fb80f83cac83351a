//! The queue of events, the network between the nodes, and the trace of what happened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use shoaldb_vfs::env::Clock;
use shoaldb_vfs::env::sim::{SimClock, SimRng};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::aimed::{Ambush, Late, Lull};
use super::budget::{Budget, kind_of};
use super::calls::{Held, Ticket};
use super::check::Checks;
use super::clock::{self, NodeClock};
use super::counters::{COUNTERS, RARE};
use super::duel::Duel;
use super::faults::Mend;
use super::members::Answers;
use super::node::Slot;
use super::rot::Rotting;
use super::shape::Shape;
use super::strand::{self, words_of};
use super::transfers::Noticed;
use super::turns::{LEAVES_AT, RESTART_AT};
use super::wire::Packet;
use super::{Options, Report, last, load, patient, plan, upgrade};
use crate::signal::Pump;
use crate::types::{LogIndex, NodeId, PROTOCOL};

/// Events that a report shows.
const SHOWN: usize = 60;
/// Time in which a cluster without faults must be well again.
pub(super) const HEAL: Duration = Duration::from_secs(60);
/// Time in which clients go on after that.
const CALM: Duration = Duration::from_millis(150);
/// Nodes that may come into the cluster later.
const SPARE: usize = 4;

/// Index of a node in [`State::slots`].
pub(super) type At = usize;

#[allow(clippy::large_enum_variant, reason = "nearly all events are messages")]
pub(super) enum Ev {
    /// A node's clock ticks.
    Tick(At, u64),
    /// A node's engine looks into its mailbox.
    Turn(At, u64),
    /// A node's disk is done with what waits.
    Disk(At, u64),
    /// A node's applier takes a step.
    Apply(At, u64),
    /// A node looks after its files.
    Upkeep(At, u64),
    /// A person changes the members, or a disk is lost for good.
    Person,
    /// A node asks to be let in.
    Join(At, u64),
    /// A call that waited looks again.
    GoOn {
        call: u64,
        time: u64,
    },
    /// A question will not be answered; whether it arrived, nobody knows or it did not.
    NoAnswer {
        ticket: u64,
        arrived: bool,
    },
    Deliver {
        from: At,
        from_life: u64,
        to: At,
        packet: Packet,
    },
    /// A client does something.
    Client,
    /// Something goes wrong.
    Fault,
    Restart(At),
    /// A partition, a loss or a stall ends.
    Mend(Mend),
    /// A leader is asked to hand over to this node, if it is not the leader itself.
    Transfer(At),
    /// A leader binds a late node's directory.
    Bind {
        leader: At,
        node: At,
    },
}

/// The links, from one node to another.
pub(super) struct Net {
    pub(super) cut: Vec<Vec<bool>>,
    /// Out of 1000 messages so many are lost, and so many come twice.
    pub(super) loss: u64,
    pub(super) twice: u64,
    /// Longest delay in microseconds, and how much longer some links take.
    pub(super) delay: u64,
    pub(super) slow: Vec<Vec<u64>>,
}

pub(super) struct Trace {
    pub(super) hash: u64,
    events: u64,
    pub(super) last: VecDeque<String>,
    verbose: bool,
}

pub(super) struct State {
    pub(super) options: Options,
    pub(super) shape: Shape,
    pub(super) dice: SimRng,
    pub(super) now: Duration,
    queue: BTreeMap<(Duration, u64), Ev>,
    pub(super) serial: u64,
    pub(super) slots: Vec<Slot>,
    pub(super) net: Net,
    pub(super) trace: Trace,
    pub(super) budget: Budget,
    pub(super) coverage: BTreeMap<&'static str, u64>,
    pub(super) checks: Checks,
    /// Milliseconds between two faults, and between two clients, on average.
    pub(super) storm: u64,
    pub(super) rush: u64,
    /// Faults and load go on.
    pub(super) stormy: bool,
    /// Load goes on without faults.
    pub(super) calm: bool,
    /// A client writes then: others wait.
    pub(super) writes_calmly: bool,
    /// Two candidates and a voter, while they are at it.
    pub(super) duel: Option<Duel>,
    /// A minority is switched off, and nothing else goes wrong.
    pub(super) lull: Option<Lull>,
    /// Until then nothing goes wrong.
    pub(super) hushed_until: Duration,
    /// A founder that is not to be bound yet, and whether there was one.
    pub(super) lateness: Option<Late>,
    /// A leader that is cut off, until somebody else is elected.
    pub(super) ambush: Option<Ambush>,
    pub(super) late_was: bool,
    /// Who has voted so far.
    pub(super) known_voters: BTreeSet<NodeId>,
    /// The node whose disk rots, once it has begun to.
    pub(super) rotting: Option<Rotting>,
    /// Who came after that, since the run lacked something.
    pub(super) newcomer: Option<At>,
    /// When the next write is due that only fills the logs, so that they come to begin later.
    pub(super) next_filler: Duration,
    /// When faults and load ended.
    pub(super) calmed_at: Duration,
    /// In a run of one fault: labelled calls of the first node until its lives were ended, or the load was, and which lives those
    /// were; the last entry of its log while it is away.
    pub(super) calls_of_lives: Vec<(u64, BTreeMap<&'static str, u64>)>,
    pub(super) away_with: Option<LogIndex>,
    /// Calls that stand still, and questions without an answer.
    pub(super) held: BTreeMap<u64, Held>,
    pub(super) tickets: BTreeMap<u64, Ticket>,
    /// What people were told of the members.
    pub(super) answers: Answers,
    /// What is noticed of the transfers of each node.
    pub(super) noticed: Vec<Noticed>,
    /// The clients' calls on the stack.
    pub(super) calls: Vec<Call>,
    pub(super) failure: Option<String>,
}

/// A client's call.
pub(super) struct Call {
    pub(super) at: At,
    /// [`Slot::failures`] of the node when it began.
    pub(super) failures: u64,
}

pub(super) struct World {
    pub(super) clock: Arc<SimClock>,
    pub(super) state: Mutex<State>,
    pub(super) me: Weak<World>,
}

pub(super) struct Pumper(pub(super) Weak<World>);

impl Pump for Pumper {
    fn step(&self) {
        if strand::pause() {
            return;
        }
        let Some(world) = self.0.upgrade() else { return };
        // A panic must not be lost in SQLite's stack.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.step())) {
            let what = words_of(&*panic);
            world.state.lock().fail(format!("panic: {what}"));
        }
    }
}

/// Simulates one seed.
pub fn run(options: &Options) -> Report {
    let clock = Arc::new(SimClock::default());
    let founders = usize::from(options.nodes);
    let n = founders + if options.storm { SPARE } else { 0 };
    let dice = SimRng::new(options.seed);
    let shape = if options.storm { Shape::draw(&dice).stormy(&dice, options.seed) } else { Shape::draw(&dice).tame() };
    if options.storm {
        shoaldb_vfs::ffi::move_lock_page(shape.lock_page_at);
    }
    shoaldb_vfs::ffi::seed_generator(options.seed as u32 | 1);
    shoaldb_vfs::ffi::keep_temporary_files_in_memory().expect("a SQLite with \"memdb\"");
    let slots = |dice: &SimRng| {
        let rate = |_| clock::RIGHT - shape.drift + dice.below(2 * shape.drift + 1);
        let clock = |at| NodeClock::new(clock.clone(), rate(at));
        let speaks = if shape.upgrades && shape.upgraded { upgrade::NEXT } else { PROTOCOL };
        (0..n).map(|at| Slot::new(at, options.seed, at < founders, clock(at), speaks)).collect::<Vec<_>>()
    };
    let world = Arc::new_cyclic(|me| World {
        clock: clock.clone(),
        me: me.clone(),
        state: Mutex::new(State {
            slots: slots(&dice),
            net: Net {
                cut: vec![vec![false; n]; n],
                loss: 0,
                twice: 0,
                delay: 1 + dice.below(3000),
                slow: vec![vec![0; n]; n],
            },
            storm: 300 + dice.below(4000) + if shape.crowds { 3000 } else { 0 },
            rush: 3 + dice.below(40),
            shape,
            duel: None,
            lull: None,
            hushed_until: Duration::ZERO,
            lateness: None,
            ambush: None,
            late_was: false,
            known_voters: BTreeSet::new(),
            rotting: None,
            newcomer: None,
            next_filler: Duration::ZERO,
            calmed_at: Duration::ZERO,
            calls_of_lives: Vec::new(),
            away_with: None,
            options: options.clone(),
            dice,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            serial: 0,
            trace: Trace { hash: options.seed, events: 0, last: VecDeque::new(), verbose: options.verbose },
            budget: Budget::default(),
            coverage: BTreeMap::new(),
            checks: Checks::default(),
            stormy: true,
            calm: false,
            writes_calmly: false,
            held: BTreeMap::new(),
            tickets: BTreeMap::new(),
            answers: Answers::default(),
            noticed: (0..n).map(|_| Noticed::default()).collect(),
            calls: Vec::new(),
            failure: None,
        }),
    });
    let outcome = catch_unwind(AssertUnwindSafe(|| world.play(options.load_for)));
    if let Err(panic) = outcome {
        let what = words_of(&*panic);
        world.state.lock().fail(format!("panic: {what}"));
    }
    world.finish()
}

impl World {
    fn play(self: &Arc<World>, load_for: Duration) {
        {
            let mut state = self.state.lock();
            let founders = usize::from(state.options.nodes);
            for at in 0..founders {
                let wait = Duration::from_micros(state.dice.below(300_000));
                state.at(wait, Ev::Restart(at));
            }
            state.after_millis(500, Ev::Client);
            if state.shape.drift > 0 {
                state.count("clocks that drift");
            }
            match state.options.storm {
                true => {
                    state.after_millis(300, Ev::Fault);
                    state.after_millis(1000, Ev::Person);
                }
                false => {
                    state.at(RESTART_AT, Ev::Mend(Mend::Restart));
                    if load_for > LEAVES_AT {
                        state.at(LEAVES_AT, Ev::Mend(Mend::Leave));
                    }
                }
            }
        }
        while self.clock.now() < load_for && !self.failed() {
            self.step();
        }
        self.state.lock().calm_down();
        patient::end_open_transactions(self);
        let deadline = self.clock.now() + HEAL;
        let (mut probed, mut complete, mut calm_until) = (false, false, None);
        while !self.failed() {
            self.step();
            if !probed && self.state.lock().has_ready_leader() {
                probed = last::probe(self);
            }
            complete = complete || probed && plan::go_on(self);
            if complete && self.state.lock().all_even() {
                if calm_until.is_some_and(|until| self.clock.now() >= until) {
                    break;
                }
                if calm_until.is_none() {
                    calm_until = Some(self.clock.now() + CALM);
                    last::begin_calm_load(self);
                }
            }
            if self.clock.now() >= deadline {
                let mut state = self.state.lock();
                let words = state.describe();
                state.fail(format!("liveness: {HEAL:?} after the last fault the cluster is not well: {words}"));
            }
        }
        if !self.failed() {
            last::final_checks(self);
        }
    }

    fn failed(&self) -> bool {
        self.state.lock().failure.is_some()
    }

    fn finish(self: &Arc<World>) -> Report {
        let mut slots = Vec::new();
        let report = {
            let mut state = self.state.lock();
            // What still stands in a call goes before its node does.
            (0..state.slots.len()).for_each(|at| state.end_calls_of(at));
            let mut hash = state.trace.hash;
            for slot in &state.slots {
                hash = slot.fs.digest(hash);
            }
            for at in 0..state.slots.len() {
                if let Some(running) = state.slots[at].take_running() {
                    state.count_inside(&running.hub);
                    state.count_failures(at);
                    slots.push(running);
                }
            }
            Report {
                seed: state.options.seed,
                turn: state.options.turn,
                hash,
                events: state.trace.events,
                simulated: state.now,
                coverage: state.coverage.clone(),
                calls: state.calls_of_first_node(),
                failure: state.failure.clone(),
                last_events: state.trace.last.iter().cloned().collect(),
            }
        };
        for running in slots {
            running.hub.stop();
        }
        report
    }

    /// One event. No lock is held while a client acts.
    pub(super) fn step(self: &Arc<World>) {
        let (event, exceeded) = {
            let mut state = self.state.lock();
            if self.only_time_passes(&mut state) {
                return;
            }
            state.schedule_turns();
            state.forget_who_died();
            let Some(((time, _), event)) = state.queue.pop_first() else {
                // Nodes that tick never leave the queue empty; without any, time passes until one is restarted.
                let now = state.now + Duration::from_millis(10);
                state.now = now;
                self.clock.set(now);
                return;
            };
            state.now = state.now.max(time);
            self.clock.set(state.now);
            state.trace.events += 1;
            state.trace.hash = hash_event(state.trace.hash, time, kind_of(&event));
            let exceeded = state.spend(&event);
            (event, exceeded)
        };
        if let Some(why) = exceeded {
            return self.give_up(why);
        }
        match event {
            Ev::Client => load::act(self),
            Ev::Bind { leader, node } => load::bind(self, leader, node),
            event => {
                // What is dropped here may call back (connections of a dead node close): not under the lock.
                let garbage = {
                    let mut state = self.state.lock();
                    state.handle(event, self);
                    state.notice_crashes();
                    state.notice_who_is_held_up();
                    state.observe();
                    state.hear();
                    state.take_garbage()
                };
                drop(garbage);
            }
        }
    }
}

fn hash_event(hash: u64, time: Duration, (what, at): (&str, Option<At>)) -> u64 {
    let at = at.map_or(u64::MAX, |at| at as u64);
    xxh3_64_with_seed(what.as_bytes(), hash ^ (time.as_nanos() as u64).rotate_left(8) ^ at)
}

impl State {
    pub(super) fn at(&mut self, wait: Duration, event: Ev) {
        self.serial += 1;
        self.queue.insert((self.now + wait, self.serial), event);
    }

    pub(super) fn after_micros(&mut self, micros: u64, event: Ev) {
        self.at(Duration::from_micros(micros), event);
    }

    pub(super) fn after_millis(&mut self, millis: u64, event: Ev) {
        self.at(Duration::from_millis(millis), event);
    }

    pub(super) fn chance(&self, of_1000: u64) -> bool {
        self.dice.below(1000) < of_1000
    }

    pub(super) fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// What was reached so many times.
    pub(super) fn add(&mut self, what: &'static str, times: u64) {
        if !COUNTERS.contains(&what) && RARE.iter().all(|(rare, _)| *rare != what) {
            return self.fail(format!("the counter {what:?} is in no list"));
        }
        *self.coverage.entry(what).or_insert(0) += times;
    }

    pub(super) fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let line = format!("{:>10.4} {what}", self.now.as_secs_f64());
        self.trace.hash = xxh3_64_with_seed(line.as_bytes(), self.trace.hash);
        if self.trace.verbose {
            println!("{line}");
        }
        if self.trace.last.len() == SHOWN {
            self.trace.last.pop_front();
        }
        self.trace.last.push_back(line);
    }

    pub(super) fn fail(&mut self, what: String) {
        if self.failure.is_none() {
            self.note(format_args!("FAILED {what}"));
            self.failure = Some(what);
        }
    }

    fn handle(&mut self, event: Ev, world: &Arc<World>) {
        match event {
            Ev::Tick(at, life) => self.on_tick(at, life),
            Ev::Turn(at, life) => self.on_turn(at, life),
            Ev::Disk(at, life) => self.on_disk(at, life),
            Ev::Apply(at, life) => self.on_apply(at, life),
            Ev::Upkeep(at, life) => self.on_upkeep(at, life),
            Ev::Deliver { from, from_life, to, packet } => self.on_deliver(from, from_life, to, packet),
            Ev::Fault => self.on_fault(),
            Ev::Restart(at) => self.on_restart(at, world),
            Ev::Mend(mend) => self.on_mend(mend),
            Ev::Transfer(to) if self.stormy && self.lull.is_none() => self.transfer(to),
            Ev::Person => self.on_person(),
            Ev::Join(at, life) => self.on_join(at, life),
            Ev::GoOn { call, time } => self.on_go_on(call, time),
            Ev::NoAnswer { ticket, arrived } => self.on_no_answer(ticket, arrived),
            Ev::Transfer(_) | Ev::Client | Ev::Bind { .. } => {}
        }
    }
}
