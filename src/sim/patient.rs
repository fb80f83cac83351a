//! Clients that keep their transactions open: readers whose view must not move, and writers that others pass by.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::check::Seen;
use super::load::{begin, see, text};
use super::world::{At, State, World};
use crate::connection::Connection;

/// A reader that keeps its transaction open.
pub(super) struct OpenReader {
    connection: Connection,
    seen: Seen,
    /// How often the WAL had begun anew.
    laps: u64,
    /// See [`State::rot_that_passed`].
    rot_passed: usize,
}

/// A writer that keeps its transaction open.
pub(super) struct OpenWriter {
    connection: Connection,
    unique: u64,
    ord: u64,
    before: u64,
    /// See [`State::rot_that_passed`].
    rot_passed: usize,
    /// What it still does before its commit.
    rest: Vec<String>,
    /// Until then it does nothing.
    until: Duration,
}

impl OpenWriter {
    /// Gives up, in the middle of whatever others do; says who it was.
    pub(super) fn roll_back(self) -> u64 {
        let _ = self.connection.execute_batch("ROLLBACK");
        self.unique
    }
}

/// A reader opens a transaction, reads the same again later, and ends it.
pub(super) fn patient_read(world: &Arc<World>, at: At) {
    let open = {
        let mut state = world.state.lock();
        let go_on = state.dice.below(3) == 0;
        state.slots[at].running.as_deref_mut().filter(|_| go_on).and_then(|running| running.readers.pop())
    };
    let Some(reader) = open else {
        let Some(session) = world.connect(at, ("app", false)) else { return };
        let result = session.connection.execute_batch("BEGIN").and_then(|()| see(&session.connection, true));
        let mut state = world.state.lock();
        let many = state.slots[at].running.as_ref().is_none_or(|running| running.readers.len() >= 3);
        match result {
            Ok(seen) => {
                state.saw(at, session.life, seen, "patient");
                if !many && state.slots[at].life == session.life {
                    let laps = state.laps_of_app(at);
                    let rot_passed = state.rot_that_passed(at);
                    let reader = OpenReader { connection: session.connection, seen, laps, rot_passed };
                    if let Some(running) = state.slots[at].running.as_deref_mut() {
                        running.readers.push(reader);
                    }
                    return;
                }
            }
            Err(error) => {
                state.unexpected(at, "a patient read", &error);
                state.note(format_args!("n{}: patient read failed, {}", at + 1, text(&error)));
            }
        }
        drop(state);
        return world.put_back(session);
    };
    let again = see(&reader.connection, true);
    let _ = reader.connection.execute_batch("ROLLBACK");
    let mut state = world.state.lock();
    let may_see_rot = state.may_see_rot(at, reader.rot_passed);
    match again {
        Ok(seen) if seen != reader.seen && !may_see_rot => {
            let first = reader.seen;
            state.fail(format!("one read transaction on n{} saw {first:?}, then {seen:?}", at + 1));
        }
        Ok(_) => {
            state.count("patient reads");
            if state.laps_of_app(at) > reader.laps {
                state.count("laps of a wal under a reader");
            }
        }
        Err(error) => {
            if !may_see_rot {
                state.unexpected(at, "a patient read", &error);
            }
            state.note(format_args!("n{}: patient read failed, {}", at + 1, text(&error)));
        }
    }
}

/// A writer leaves its transaction open; later it goes on, and is committed or rolled back.
pub(super) fn patient_write(world: &Arc<World>, at: At, begins: bool) {
    let (open, busy) = {
        let state = world.state.lock();
        let now = state.now;
        let inside = |at: &At| state.slots[*at].running.as_ref().map(|running| running.inside.clone());
        let due = |at: At| {
            let writer = inside(&at)?.writers.lock().pop_if(|writer| now >= writer.until)?;
            Some((at, writer))
        };
        let busy = inside(&at).is_some_and(|inside| !inside.writers.lock().is_empty());
        ((0..state.slots.len()).find_map(due), busy)
    };
    if let Some((at, writer)) = open {
        // This is a call of the node that has the transaction, whichever the client was to go to.
        world.state.lock().enter_call(at);
        end_writer(world, at, writer);
        world.state.lock().calls.pop();
        return;
    }
    // One at a time on each node: others wait for it. An old leader and a new one may have one each.
    if !begins || busy {
        return;
    }
    let Some(session) = world.connect(at, ("app", false)) else { return };
    let (unique, first, rest, before) = {
        let mut state = world.state.lock();
        let (begins, goes_on) = (state.dice.below(16), state.dice.below(16));
        let (unique, first, rest) = state.script_in_two(begins, goes_on);
        (unique, first, rest, state.checks.acknowledged_to)
    };
    match begin(&session.connection, &first) {
        Ok(ord) => {
            let mut state = world.state.lock();
            let patience = state.dice.below(state.shape.patience + 1);
            let patience = state.lead_past_a_writer(at).unwrap_or(Duration::from_millis(patience));
            let until = state.now + patience;
            let rot_passed = state.rot_that_passed(at);
            if state.slots[at].life == session.life
                && let Some(running) = state.slots[at].running.as_deref_mut()
            {
                let connection = session.connection;
                let writer = OpenWriter { connection, unique, ord, before, rot_passed, rest, until };
                running.inside.writers.lock().push(writer);
                state.count("idle writers");
                if state.idle_writers() > 1 {
                    state.count("idle writers on several nodes");
                }
                state.note(format_args!("n{}: u{unique} stays open at place {ord}", at + 1));
                return;
            }
            state.never_asked(at, unique, "the node is gone");
            drop(state);
        }
        Err(error) => world.state.lock().failed_before(at, unique, &error),
    }
    world.put_back(session);
}

impl State {
    /// How often the WAL of the database that is read has begun anew in this process.
    fn laps_of_app(&self, at: At) -> u64 {
        let db = self.slots[at].hub().and_then(|hub| hub.databases.find("app", false).ok());
        db.map_or(0, |db| db.counters.restarts.load(Ordering::Relaxed))
    }

    /// Nodes on which a writer has left its transaction open.
    fn idle_writers(&self) -> usize {
        let running = self.slots.iter().filter_map(|slot| slot.running.as_ref());
        running.filter(|running| !running.inside.writers.lock().is_empty()).count()
    }

    /// Whether a writer that left its transaction open should go on now.
    pub(super) fn has_due_writer(&self) -> bool {
        let running = self.slots.iter().filter_map(|slot| slot.running.as_ref());
        running.into_iter().any(|running| running.inside.writers.lock().iter().any(|writer| self.now >= writer.until))
    }
}

fn end_writer(world: &Arc<World>, at: At, writer: OpenWriter) {
    let OpenWriter { connection, unique, ord, before, rot_passed, rest, .. } = writer;
    let commit = world.state.lock().dice.below(4) > 0;
    let went_on = rest.iter().try_for_each(|statement| connection.execute_batch(statement));
    if let Err(error) = went_on {
        let mut state = world.state.lock();
        if state.may_see_rot(at, rot_passed) {
            state.never_asked(at, unique, &text(&error));
        } else {
            state.failed_before(at, unique, &error);
        }
    } else if commit {
        let result = connection.execute_batch("COMMIT");
        world.state.lock().settle(at, unique, ord, before, result);
    } else {
        world.state.lock().never_asked(at, unique, "by choice, late");
    }
    if !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
}

/// Patient clients give up.
pub(super) fn end_open_transactions(world: &Arc<World>) {
    let n = world.state.lock().slots.len();
    for at in 0..n {
        let (readers, writers) = {
            let mut state = world.state.lock();
            let Some(running) = state.slots[at].running.as_deref_mut() else { continue };
            let writers = std::mem::take(&mut *running.inside.writers.lock());
            (std::mem::take(&mut running.readers), writers)
        };
        drop(readers);
        for writer in writers {
            end_writer(world, at, writer);
        }
    }
}
