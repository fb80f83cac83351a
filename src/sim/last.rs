//! The end of a run: one more transaction, some load without faults, and everything that must hold then.

use std::sync::Arc;

use rusqlite::Connection as Plain;

use super::check::{ACCOUNTS, BALANCE};
use super::load::{SCHEMA, text, write};
use super::world::{At, Ev, State, World};
use super::{lists, other};

/// One more transaction, on the leader; whether it was acknowledged.
pub(super) fn probe(world: &Arc<World>) -> bool {
    let leader = {
        let state = world.state.lock();
        state.slots.iter().position(|slot| slot.hub().is_some_and(|hub| hub.is_ready_leader()))
    };
    let Some(at) = leader else { return false };
    let before = world.state.lock().checks.acknowledged.len();
    write(world, at, 99);
    let state = world.state.lock();
    state.checks.acknowledged.len() > before
}

/// Clients go on while nothing goes wrong: then every linearizable read must succeed.
pub(super) fn begin_calm_load(world: &Arc<World>) {
    let mut state = world.state.lock();
    state.calm = true;
    for _ in 0..20 {
        let micros = state.dice.below(100_000);
        state.after_micros(micros, Ev::Client);
    }
}

/// Everything that must hold when nothing moves any more.
pub(super) fn final_checks(world: &Arc<World>) {
    world.state.lock().check_members();
    world.state.lock().check_plan();
    let (app, other) = {
        let state = world.state.lock();
        (state.participants_that_serve("app"), state.participants_that_serve(other::NAME))
    };
    world.state.lock().check_who_is_compared([&app, &other]);
    let (mut first, mut first_other) = (None, None);
    for at in app {
        if let Err(what) = compare_app(world, at, &mut first) {
            return world.state.lock().fail(format!("n{}: {what}", at + 1));
        }
    }
    for at in other {
        other::check_at_the_end(world, at, &mut first_other);
    }
}

/// What this node has, compared with what the first one has; and that with what was told. What cannot be compared, in words.
fn compare_app(world: &Arc<World>, at: At, first: &mut Option<Vec<String>>) -> Result<(), String> {
    let session = world.connect(at, ("app", false)).ok_or("it does not open the database at the end")?;
    let dumped = dump(&session.connection);
    let found = dumped.and_then(|rows| order(&session.connection).map(|order| (rows, order)));
    let lists = lists::all(&session.connection);
    world.put_back(session);
    let (rows, order) = found.map_err(|error| format!("last read: {}", text(&error)))?;
    let mut state = world.state.lock();
    let lists = lists.map_err(|error| format!("the lists cannot be read: {error}"))?;
    if let Some(what) = lists::check(&state.checks.lists, &lists).into_iter().next() {
        return Err(what);
    }
    match first {
        Some(first) if *first != rows => Err(format!("it and the first node differ: {}", difference(first, &rows))),
        Some(_) => Ok(()),
        None => {
            state.compare(&order, &rows);
            *first = Some(rows);
            Ok(())
        }
    }
}

fn difference(a: &[String], b: &[String]) -> String {
    let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
    format!("{} and {} rows, row {at}: {:.80?} and {:.80?}", a.len(), b.len(), a.get(at), b.get(at))
}

fn order(connection: &Plain) -> Result<Vec<(u64, u64)>, rusqlite::Error> {
    let mut statement = connection.prepare("SELECT ord, u FROM items ORDER BY ord")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
    rows.collect()
}

fn dump(connection: &Plain) -> Result<Vec<String>, rusqlite::Error> {
    let mut rows = Vec::new();
    for sql in [
        "SELECT 'integrity ' || integrity_check FROM pragma_integrity_check",
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name",
        "SELECT ord || ' ' || u || ' ' || body FROM items ORDER BY ord",
        "SELECT id || ' ' || balance FROM accounts ORDER BY id",
        "SELECT k || ' ' || v FROM register",
        "SELECT id || ' ' || body FROM notes ORDER BY id",
    ] {
        let mut statement = connection.prepare(sql)?;
        let found = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.extend(found.collect::<Result<Vec<_>, _>>()?);
    }
    Ok(rows)
}

impl State {
    /// Whoever decides must be there, and of each database some of them be compared: without, nothing would have been looked at. Not
    /// all of a majority: where one disk is lost and another one failed under a copy, the one voter that is left serves, and no majority
    /// can say what the damaged copy should be.
    fn check_who_is_compared(&mut self, compared: [&[At]; 2]) {
        let voters = self.newest_leader().map(|(_, members)| members.voters).unwrap_or_default();
        let are_voters = |all: &[At]| all.iter().filter(|at| voters.contains(&self.slots[**at].id)).count();
        let there = compared.into_iter().map(are_voters).min().unwrap_or(0);
        let take_part = are_voters(&self.participants());
        if there == 0 || 2 * take_part <= voters.len() {
            let all = voters.len();
            self.fail(format!("of {all} voters {take_part} take part at the end, and {there} can be compared"));
        }
        if 2 * there <= voters.len() {
            self.count("runs whose majority has damaged copies in the end");
        }
    }

    fn compare(&mut self, order: &[(u64, u64)], rows: &[String]) {
        let there: std::collections::BTreeMap<u64, u64> = order.iter().map(|(ord, u)| (*u, *ord)).collect();
        let mut wrong = Vec::new();
        for (unique, ord) in &self.checks.acknowledged {
            match there.get(unique) {
                None => wrong.push(format!("u{unique} was acknowledged at place {ord} and is not there")),
                Some(place) if place != ord => {
                    wrong.push(format!("u{unique} was acknowledged at place {ord} and is at {place}"));
                }
                Some(_) => {}
            }
        }
        for (ord, unique) in order {
            if let Some(shown) = self.checks.lasts.get(ord).filter(|shown| **shown != *unique as i64) {
                wrong.push(format!("a read showed u{shown} at place {ord}, and in the end it is u{unique}"));
            }
        }
        for unique in &self.checks.refused {
            if let Some(ord) = there.get(unique) {
                wrong.push(format!("u{unique} was not committed, they said; it is at place {ord}"));
            }
        }
        let found = self.checks.unknown.iter().filter(|unique| there.contains_key(unique)).count();
        self.add("unknown, and there", found as u64);
        self.add("transactions", order.len() as u64);
        match self.twin(order) {
            Ok(twin) if twin != rows => {
                wrong.push(format!("plain SQLite and the nodes differ: {}", difference(&twin, rows)))
            }
            Ok(_) => {}
            Err(error) => wrong.push(format!("plain SQLite could not repeat the transactions: {error}")),
        }
        for what in wrong {
            self.fail(what);
        }
        self.check_receipts(&there);
    }

    /// Plain SQLite in memory, fed with the transactions that are there.
    fn twin(&self, order: &[(u64, u64)]) -> Result<Vec<String>, rusqlite::Error> {
        let twin = Plain::open_in_memory()?;
        twin.execute_batch(SCHEMA)?;
        debug_assert_eq!((ACCOUNTS, BALANCE), (8, 100), "as in the schema");
        twin.execute_batch("BEGIN")?;
        for (_, unique) in order {
            for statement in self.checks.scripts.get(unique).into_iter().flatten() {
                twin.execute_batch(statement)?;
            }
        }
        twin.execute_batch("COMMIT")?;
        dump(&twin)
    }
}
