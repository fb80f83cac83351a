//! Random histories against a model, with a crash or a fault at every call in turn.
//!
//! The model is what is synced: a batch is in it once `append` returned `Ok`. A batch whose append was struck may be there
//! after the next open, whole, or not at all; nothing else may differ. What one open reports, the next power cut must not
//! take back.

use std::collections::BTreeMap;

use shoaldb_vfs::env::Rng;
use shoaldb_vfs::env::sim::SimRng;

use super::*;

#[derive(Clone, PartialEq, Debug)]
struct Model {
    start: EntryId,
    entries: BTreeMap<u64, LogEntry>,
    hard_state: HardState,
    anchor: Anchor,
}

impl Model {
    fn new() -> Model {
        Model { start: GENESIS, entries: BTreeMap::new(), hard_state: hard(1, 0, 1), anchor: anchor(1) }
    }

    fn last(&self) -> EntryId {
        self.entries.last_key_value().map_or(self.start, |(_, entry)| entry.id)
    }

    fn append(&mut self, batch: &Batch) {
        if let Some(first) = batch.entries.first() {
            self.entries.split_off(&first.id.index.0);
        }
        self.entries.extend(batch.entries.iter().map(|entry| (entry.id.index.0, entry.clone())));
        self.hard_state = batch.hard_state.unwrap_or(self.hard_state);
        self.anchor = batch.anchor.clone().unwrap_or(self.anchor.clone());
    }

    /// Whether the log holds this, but for a prefix that was compacted.
    fn is(&self, log: &Log, recovered: &Recovered) -> Result<bool, LogError> {
        let found = log.entries(log.start().index.next(), log.last().index.next(), u64::MAX)?;
        let start = recovered.start;
        let suffix: Vec<LogEntry> = self.entries.range(start.index.0 + 1..).map(|(_, entry)| entry.clone()).collect();
        let id = if start == self.start { Some(start) } else { self.entries.get(&start.index.0).map(|entry| entry.id) };
        let same = (log.start(), log.last()) == (recovered.start, recovered.last)
            && recovered.last == self.last()
            && recovered.hard_state == self.hard_state
            && recovered.anchor == self.anchor
            && id == Some(start)
            && found == suffix;
        Ok(same)
    }
}

/// One step of a history.
#[derive(Debug)]
enum Step {
    Append(Batch),
    Reset(EntryId),
    PrepareSpare,
    Compact,
    Reopen,
}

fn draw_step(dice: &SimRng, model: &Model) -> Step {
    match dice.below(20) {
        0..=12 => Step::Append(draw_batch(dice, model)),
        13 | 14 => Step::PrepareSpare,
        15 | 16 => Step::Compact,
        17 | 18 => Step::Reopen,
        _ if dice.below(3) > 0 => Step::Compact,
        _ => {
            let last = model.last();
            Step::Reset(EntryId { index: LogIndex(last.index.0 + dice.below(5)), term: model.hard_state.term })
        }
    }
}

fn draw_batch(dice: &SimRng, model: &Model) -> Batch {
    let mut state = model.hard_state;
    let last = model.last();
    let floor = state.commit.0.max(model.start.index.0);
    if dice.below(3) == 0 {
        state = HardState { term: Term(state.term.0.max(last.term.0) + 1), vote: Some(NodeId(1)), ..state };
    }
    let term = state.term.0.max(last.term.0);
    let conflict = dice.below(4) == 0 && last.index.0 > floor;
    let first = if conflict { floor + 1 + dice.below(last.index.0 - floor) } else { last.index.0 + 1 };
    let count = if conflict { 1 + dice.below(3) } else { dice.below(4) };
    let len = match dice.below(12) {
        0 => 9000,
        1..=3 => 2000,
        _ => dice.below(700) as usize,
    };
    let mut batch = entries(first, first + count - u64::from(count > 0), term, len);
    if count == 0 {
        batch.entries.clear();
    }
    let end = batch.entries.last().map_or(last.index.0, |entry| entry.id.index.0);
    state.commit = LogIndex(floor + dice.below(end + 1 - floor));
    batch.hard_state = (dice.below(2) == 0).then_some(state);
    if batch.hard_state.is_some() && dice.below(2) == 0 {
        batch.anchor = Some(anchor(state.commit.0.max(model.anchor.applied.0)));
    }
    batch
}

impl Model {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Append(batch) => self.append(batch),
            Step::Reset(start) => {
                self.start = *start;
                self.entries.clear();
                self.hard_state.commit = start.index;
                self.anchor = anchor(start.index.0);
            }
            Step::PrepareSpare | Step::Compact | Step::Reopen => {}
        }
    }
}

/// Does the step; `Ok` means that the model after it holds.
fn act(fs: &SimFs, log: &mut Option<Log>, step: &Step, after: &Model) -> Result<(), LogError> {
    match (step, log.as_ref()) {
        (Step::Append(batch), Some(log)) => log.append(batch),
        (Step::Reset(start), Some(log)) => log.reset(*start, after.anchor.clone(), after.hard_state),
        (Step::PrepareSpare, Some(log)) => log.prepare_spare(),
        (Step::Compact, Some(log)) => {
            let through = after.hard_state.commit;
            // Half of the time an idle log is helped along.
            let sealed = if through.0.is_multiple_of(2) { log.seal_for(through) } else { Ok(()) };
            sealed.and_then(|()| log.compact(through)).map(|_| ())
        }
        (Step::Reopen, _) | (_, None) => {
            *log = None;
            let (opened, recovered) = open(fs)?;
            assert!(after.is(&opened, &recovered)?, "reopened: {recovered:?}");
            assert_eq!(recovered.cut, None, "nothing was torn");
            *log = Some(opened);
            Ok(())
        }
    }
}

/// Opens after a strike; the log must hold one of two models. Then the power fails once more, and it must hold the same.
fn reopen(fs: &SimFs, dice: &SimRng, before: &Model, after: &Model, context: &str) -> (Log, Model) {
    let mut crashes = 3;
    let mut attempt = |fs: &SimFs| {
        loop {
            fs.restart();
            if crashes > 0 && dice.below(2) == 0 {
                crashes -= 1;
                fs.crash_at(Aim::Any, 1 + dice.below(14), dice.next_u64());
            }
            match open(fs) {
                Ok(opened) => {
                    fs.restart();
                    return opened;
                }
                Err(error) => assert!(fs.is_down(), "{context}: {error}"),
            }
        }
    };
    let (log, recovered) = attempt(fs);
    let holds = [before, after].into_iter().find(|model| model.is(&log, &recovered).unwrap());
    let holds = holds.unwrap_or_else(|| panic!("{context}: {recovered:?} is neither {before:?} nor {after:?}"));
    drop(log);
    fs.crash(dice.next_u64());
    let (log, recovered) = attempt(fs);
    assert!(
        holds.is(&log, &recovered).unwrap(),
        "{context}: the second power cut took back what was reported: {recovered:?}"
    );
    (log, holds.clone())
}

/// What strikes a history.
#[derive(Clone, Copy, Debug)]
enum Strike {
    Crash,
    Fault(Lasts, Failure),
}

/// Runs the history of a seed, struck at its `nth` call. Whether that call came.
fn run(seed: u64, nth: u64, strike: Strike) -> bool {
    let context = format!("seed {seed}, call {nth}, {strike:?}");
    let fs = SimFs::new(seed);
    let (steps, dice) = (SimRng::new(seed), SimRng::new(seed ^ nth.rotate_left(32)));
    match strike {
        Strike::Crash => fs.crash_at(Aim::Any, nth, dice.next_u64()),
        Strike::Fault(lasts, failure) => fs.fail_at(Aim::Any, nth, lasts, failure),
    }
    let mut model = Model::new();
    let mut struck = false;
    let mut log = match create(&fs) {
        Ok(log) => Some(log),
        Err(_) => {
            struck = true;
            fs.clear_faults();
            fs.restart();
            // An interrupted creation left a whole log or none.
            match open(&fs) {
                Ok(_) => {}
                Err(LogError::Missing { .. } | LogError::Io { .. }) => drop(create(&fs).expect(&context)),
                Err(other) => panic!("{context}: {other}"),
            }
            Some(reopen(&fs, &dice, &model, &model, &context).0)
        }
    };
    for _ in 0..40 {
        let step = draw_step(&steps, &model);
        let mut after = model.clone();
        after.take(&step);
        let Err(error) = act(&fs, &mut log, &step, &after) else {
            model = after;
            continue;
        };
        assert!(!struck, "{context}: {step:?}: {error}");
        struck = true;
        if matches!(strike, Strike::Fault(..)) && matches!(step, Step::Append(_) | Step::Reset(_) | Step::Compact) {
            let mut again = || act(&fs, &mut log, &step, &after);
            if !error.can_be_tried_again() {
                assert_eq!(again().unwrap_err().to_string(), error.to_string(), "{context}: sticky");
            } else if dice.below(3) > 0 {
                // There is no room for a while, and then there is.
                let done = (0..dice.below(3)).any(|_| again().is_ok());
                fs.clear_faults();
                if !done {
                    act(&fs, &mut log, &step, &after).expect(&context);
                }
                model = after;
                continue;
            }
        }
        drop(log.take());
        fs.clear_faults();
        let (opened, holds) = reopen(&fs, &dice, &model, &after, &context);
        (log, model) = (Some(opened), holds);
    }
    drop(log);
    // A fault may have struck where nobody minds.
    fs.clear_faults();
    reopen(&fs, &dice, &model, &model, &context);
    struck || fs.calls() >= nth
}

/// Strikes every call of the histories of some seeds.
fn every_call(seeds: std::ops::Range<u64>, strike: Strike) {
    for seed in seeds {
        let calls = {
            let fs = SimFs::new(seed);
            let mut log = Some(create(&fs).unwrap());
            let (steps, mut model) = (SimRng::new(seed), Model::new());
            for _ in 0..40 {
                let step = draw_step(&steps, &model);
                model.take(&step);
                act(&fs, &mut log, &step, &model).unwrap();
            }
            fs.calls()
        };
        for nth in 1..=calls {
            assert!(run(seed, nth, strike));
        }
    }
}

/// Shows INV-1.
#[test]
fn a_crash_at_every_call() {
    every_call(0..12, Strike::Crash);
}

/// Shows INV-3.
#[test]
fn an_io_error_at_every_call() {
    every_call(100..106, Strike::Fault(Lasts::Once, Failure::EIO));
}

/// What found no room is tried again, and the log is what it would be if there had been room all the time; or the power
/// goes meanwhile, and it is there or not.
/// Shows INV-3.
#[test]
fn a_full_disk_from_every_call_on() {
    every_call(200..204, Strike::Fault(Lasts::ForGood, Failure::ENOSPC));
    every_call(204..208, Strike::Fault(Lasts::Once, Failure::ENOSPC));
}
