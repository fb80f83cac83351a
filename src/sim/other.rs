//! A second database, which is created, written, read and dropped all the time, and whether it is what was acknowledged.
//!
//! ```text
//! t(u INTEGER PRIMARY KEY, body)   one row per transaction, with its unique number
//! ```
//!
//! Its receipt says in which of the databases of that name a transaction is, and behind which entry. So what must hold is:
//!
//! ```text
//! what was created and nobody has dropped is there           on each node that has applied that entry, whenever somebody comes by
//! what was dropped never is there again                      likewise
//! a read shows nothing that was refused, and no row of a     at each read
//! database before
//! a read that shows a row shows all that were committed      at each read
//! before it
//! a linearizable read shows all that was acknowledged        at each such read
//! before it began
//! the same rows, those that were acknowledged among them,    at the end, on every node
//! and integrity_check
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::Connection as Plain;

use super::load::{id_of, text};
use super::world::{At, World};
use crate::catalogue::{AutoVacuum, DatabaseId, DatabaseName};
use crate::entry::Body;
use crate::error::{Outcome, outcome};
use crate::pending::Decision;
use crate::shared::Hub;
use crate::types::LogIndex;

pub(super) const NAME: &str = "other";

/// What clients were told of it.
#[derive(Default)]
pub(super) struct Other {
    /// Unique number -> database and entry.
    acknowledged: BTreeMap<u64, (DatabaseId, LogIndex)>,
    refused: BTreeSet<u64>,
    /// Numbers that were given to a transaction.
    tried: BTreeSet<u64>,
    created: BTreeSet<DatabaseId>,
    /// Whoever is asked to drop one may do it whatever is heard of it; at this entry, if that is known.
    drops: BTreeMap<DatabaseId, Option<LogIndex>>,
}

impl Other {
    /// What is wrong with the rows that a read of this database shows, if it must show all of these.
    fn check(&self, database: DatabaseId, rows: &BTreeSet<u64>, all: &BTreeSet<u64>) -> Vec<String> {
        let mut wrong = Vec::new();
        for u in rows {
            match self.acknowledged.get(u) {
                Some((other, _)) if *other != database => {
                    wrong.push(format!("shows u{u}, which was acknowledged in {other}"));
                }
                None if self.refused.contains(u) => {
                    wrong.push(format!("shows u{u}, which was not committed, they said"))
                }
                None if !self.tried.contains(u) => wrong.push(format!("shows u{u}, which nobody has written")),
                _ => {}
            }
        }
        let entry = |u: &u64| self.acknowledged.get(u).map(|(_, entry)| *entry);
        let newest = rows.iter().filter_map(entry).max();
        for (u, (own, entry)) in self.acknowledged.iter().filter(|(u, _)| !rows.contains(u)) {
            if *own != database {
                continue;
            }
            if all.contains(u) {
                wrong.push(format!("does not show u{u}, which was acknowledged"));
            } else if newest.is_some_and(|newest| *entry < newest) {
                wrong.push(format!("does not show u{u} of entry {entry}, but one of entry {newest:?}"));
            }
        }
        wrong
    }

    /// What was acknowledged of this database so far.
    fn acknowledged_in(&self, database: DatabaseId) -> BTreeSet<u64> {
        let own = self.acknowledged.iter().filter(|(_, (own, _))| *own == database);
        own.map(|(u, _)| *u).collect()
    }

    /// What is wrong with the database that a node has, which has applied so much.
    fn check_catalogue(&self, found: Option<DatabaseId>, applied: LogIndex) -> Vec<String> {
        let missing = |id: &&DatabaseId| id.0 <= applied.0 && Some(**id) != found && !self.drops.contains_key(*id);
        let missing = self.created.iter().find(missing).map(|id| format!("does not have {id}, which was created"));
        let dropped = found.filter(|id| self.drops.get(id).is_some_and(|at| at.is_some_and(|at| at <= applied)));
        missing.into_iter().chain(dropped.map(|id| format!("has {id}, which was dropped"))).collect()
    }
}

/// Which database of this name a node has.
fn existing(hub: &Hub) -> Option<DatabaseId> {
    id_of(hub, NAME)
}

/// A client creates, drops, writes or reads it.
pub(super) fn other_database(world: &Arc<World>, at: At) {
    let (hub, dice, upgrades) = {
        let mut state = world.state.lock();
        let running = state.slots[at].running.as_ref().filter(|running| running.seat.is_some());
        let Some(hub) = running.map(|running| running.hub.clone()) else { return };
        let (found, applied) = (existing(&hub), hub.applied().index);
        for what in state.checks.other.check_catalogue(found, applied) {
            state.fail(format!("n{}: the node {what}", at + 1));
        }
        (hub, state.dice.below(12), state.shape.upgrades)
    };
    match dice {
        0..3 => create_or_drop(world, at, &hub),
        3..5 => read(world, at, &hub, dice == 3),
        10.. if upgrades => {
            let decision = hub.propose_rehearsal();
            world.state.lock().on_rehearsal(at, &decision);
        }
        _ => write(world, at),
    }
}

fn create_or_drop(world: &Arc<World>, at: At, hub: &Hub) {
    let Ok(name) = DatabaseName::new(NAME) else { return };
    let found = existing(hub);
    let body = match found {
        Some(database) => {
            world.state.lock().checks.other.drops.entry(database).or_default();
            Body::DropDatabase { database }
        }
        None => {
            let page_size = shoaldb_vfs::page::PageSize::new(1024);
            let Some(page_size) = page_size else { return };
            Body::CreateDatabase { name, page_size, auto_vacuum: AutoVacuum::Full }
        }
    };
    let decision = hub.propose(body, None);
    let mut state = world.state.lock();
    let what = if found.is_some() { "drop" } else { "create" };
    state.note(format_args!("n{}: {what} other: {decision:?}", at + 1));
    let Decision::Committed(entry) = decision else { return };
    state.count(if found.is_some() { "databases dropped" } else { "databases created" });
    match found {
        Some(database) => _ = state.checks.other.drops.insert(database, Some(entry)),
        None => _ = state.checks.other.created.insert(DatabaseId(entry.0)),
    }
}

fn write(world: &Arc<World>, at: At) {
    let Some(session) = world.connect(at, (NAME, false)) else { return };
    let unique = {
        let mut state = world.state.lock();
        let unique = state.checks.unique();
        state.checks.other.tried.insert(unique);
        unique
    };
    let begun = session.connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS t(u INTEGER PRIMARY KEY, body);
         INSERT INTO t VALUES ({unique}, printf('%.*c', 900, 'y'))"
    ));
    let asked = begun.is_ok();
    let result = begun.and_then(|()| session.connection.execute_batch("COMMIT"));
    let receipt = session.connection.last_receipt();
    let mut state = world.state.lock();
    let note = result.as_ref().err().map_or("ok".to_string(), text);
    state.note(format_args!("n{}: write of u{unique} to other: {note}", at + 1));
    match (&result, receipt) {
        (Ok(()), Some(receipt)) => {
            state.count("writes to another database");
            let place = (DatabaseId(receipt.database), receipt.entry.index);
            state.checks.other.acknowledged.insert(unique, place);
        }
        (Ok(()), None) => state.fail(format!("n{}: u{unique} was acknowledged without a receipt", at + 1)),
        (Err(error), _) => {
            state.unexpected(at, "a write to other", error);
            if !asked || outcome(error) == Some(Outcome::NotCommitted) {
                state.checks.other.refused.insert(unique);
            }
        }
    }
    drop(state);
    // A dropped database's connections are of no use.
    if result.is_ok() {
        world.put_back(session);
    }
}

/// The connection is a new one each time, since its database must be known: ids are not used twice, so it is this one if the node has
/// it before and after.
fn read(world: &Arc<World>, at: At, hub: &Hub, linearizable: bool) {
    let Some(database) = existing(hub) else { return };
    let (life, linearizable) = {
        let state = world.state.lock();
        // It would wait for a commit below it on the stack, until its time is up.
        let alone = state.calls_of(at).count() < 2;
        (state.slots[at].life, linearizable && alone)
    };
    let Some(session) = world.connect_anew(at, (NAME, linearizable)) else { return };
    if existing(hub) != Some(database) || session.life != life {
        return;
    }
    let all = match linearizable {
        true => world.state.lock().checks.other.acknowledged_in(database),
        false => BTreeSet::new(),
    };
    let result = rows(&session.connection);
    let mut state = world.state.lock();
    let how = if linearizable { "a linearizable read of other" } else { "a local read of other" };
    match result {
        Err(error) => {
            state.unexpected(at, how, &error);
            state.note(format_args!("n{}: {how}: {}", at + 1, text(&error)));
        }
        Ok(_) if state.shows_rot(at) => state.count("reads of what rotted in use"),
        Ok(rows) => {
            state.count("reads of another database");
            state.note(format_args!("n{}: {how}, {database}: {} rows, {} are known", at + 1, rows.len(), all.len()));
            for what in state.checks.other.check(database, &rows, &all) {
                state.fail(format!("n{}: {how}, {database}, {what}", at + 1));
            }
        }
    }
}

/// The numbers that are there.
fn rows(connection: &Plain) -> Result<BTreeSet<u64>, rusqlite::Error> {
    connection.execute_batch("BEGIN")?;
    let there = "SELECT count(*) = 1 FROM sqlite_schema WHERE name = 't'";
    let rows = match connection.query_row(there, [], |row| row.get::<_, bool>(0))? {
        false => BTreeSet::new(),
        true => {
            let mut statement = connection.prepare("SELECT u FROM t WHERE length(body) = 900")?;
            let rows = statement.query_map([], |row| row.get::<_, i64>(0).map(|u| u as u64))?;
            rows.collect::<Result<_, _>>()?
        }
    };
    connection.execute_batch("COMMIT")?;
    Ok(rows)
}

/// What every node has of it at the end.
pub(super) fn check_at_the_end(world: &Arc<World>, at: At, first: &mut Option<(Option<DatabaseId>, BTreeSet<u64>)>) {
    let Some(hub) = world.state.lock().slots[at].hub().cloned() else { return };
    let found = existing(&hub);
    let mut wrong = world.state.lock().checks.other.check_catalogue(found, LogIndex(u64::MAX));
    let mut there = BTreeSet::new();
    if let Some(database) = found {
        let looked = world.connect_anew(at, (NAME, false)).map(|session| {
            let sql = "SELECT group_concat(integrity_check) FROM pragma_integrity_check";
            let integrity = session.connection.query_row(sql, [], |row| row.get::<_, String>(0));
            integrity.and_then(|integrity| Ok((integrity, rows(&session.connection)?)))
        });
        match looked {
            None => wrong.push("does not open other at the end".to_string()),
            Some(Err(error)) => wrong.push(format!("does not read other at the end: {}, {error}", text(&error))),
            Some(Ok((integrity, rows))) => {
                let state = world.state.lock();
                let all = state.checks.other.acknowledged_in(database);
                if integrity != "ok" {
                    wrong.push(format!("has other as {integrity}"));
                }
                wrong.extend(state.checks.other.check(database, &rows, &all));
                there = rows;
            }
        }
    }
    let mut state = world.state.lock();
    let (database, rows) = first.get_or_insert_with(|| (found, there.clone()));
    if (*database, &*rows) != (found, &there) {
        wrong.push(format!("has other as {found:?} with {there:?}, the first node {database:?} with {rows:?}"));
    }
    for what in wrong {
        state.fail(format!("n{}: at the end it {what}", at + 1));
    }
    state.count("other databases compared");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Other {
        Other {
            acknowledged: [(1, 5, 6), (2, 8, 9), (3, 8, 10), (4, 8, 12)]
                .map(|(u, database, entry)| (u, (DatabaseId(database), LogIndex(entry))))
                .into(),
            refused: BTreeSet::from([6]),
            tried: (1..=7).collect(),
            created: [5, 8].map(DatabaseId).into(),
            drops: BTreeMap::from([(DatabaseId(5), Some(LogIndex(7)))]),
        }
    }

    #[test]
    fn rows_are_compared_with_what_was_told() {
        // The rows, those that must be there, and what is wrong; 7 is one of which nobody knows.
        for (rows, all, expected) in [
            (&[2, 3][..], &[2, 3][..], ""),
            (&[2, 3, 4, 7], &[2], ""),
            (&[], &[], ""),
            (&[2], &[2, 3], "does not show u3, which was acknowledged"),
            (&[2, 4], &[], "does not show u3 of entry 10"),
            (&[1], &[], "shows u1, which was acknowledged in"),
            (&[6], &[], "shows u6, which was not committed"),
            (&[9], &[], "shows u9, which nobody"),
        ] {
            let wrong = told().check(DatabaseId(8), &rows.iter().copied().collect(), &all.iter().copied().collect());
            match expected {
                "" => assert!(wrong.is_empty(), "{rows:?}: {wrong:?}"),
                _ => assert!(wrong.len() == 1 && wrong[0].contains(expected), "{rows:?}: {wrong:?}"),
            }
        }
    }

    #[test]
    fn created_and_dropped_are_taken_at_their_word() {
        for (found, applied, expected) in [
            (None, 4, ""),
            (None, 5, ""),
            (Some(5), 6, ""),
            (Some(5), 7, "has 5, which was dropped"),
            (None, 7, ""),
            (None, 8, "does not have 8, which was created"),
            (Some(8), 8, ""),
        ] {
            let wrong = told().check_catalogue(found.map(DatabaseId), LogIndex(applied)).join("; ");
            assert!(
                wrong.contains(expected) && wrong.is_empty() == expected.is_empty(),
                "{found:?} {applied}: {wrong}"
            );
        }
    }
}
