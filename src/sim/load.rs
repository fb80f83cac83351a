//! Clients: what they do, and what they hear.
//!
//! ```text
//! items(ord INTEGER PRIMARY KEY, u UNIQUE, body)   one row per transaction, in the order of the transactions
//! accounts(id, balance)                            each transaction moves money between two of them
//! register(k, v)                                   the last transaction's unique number
//! notes(id INTEGER PRIMARY KEY, body)              large values come and go, so that pages are freed and reused
//! ```
//!
//! A transaction is a list of SQL texts that does not depend on what it reads, so that plain SQLite can run it again.

use std::sync::Arc;

use rusqlite::Connection as Plain;

use super::check::{ACCOUNTS, BALANCE, Seen};
use super::node::ConnKey;
use super::world::{At, Ev, State, World};
use crate::catalogue::{AutoVacuum, DatabaseName};
use crate::connection::{ConnectOptions, Connection, ReadLevel};
use crate::entry::Body;
use crate::error::{Outcome, outcome};
use crate::pending::Decision;
use crate::raft::Role;
use crate::shared::Hub;

/// Calls that may lie on the stack above each other.
const DEPTH: usize = 6;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS items(ord INTEGER PRIMARY KEY, u INTEGER UNIQUE, body);
CREATE TABLE IF NOT EXISTS accounts(id INTEGER PRIMARY KEY, balance INTEGER);
CREATE TABLE IF NOT EXISTS register(k INTEGER PRIMARY KEY, v INTEGER);
CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, body);
INSERT OR IGNORE INTO register VALUES (1, 0);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8) INSERT OR IGNORE INTO accounts SELECT i, 100 FROM n;
";

/// A reader that keeps its transaction open.
pub(super) struct OpenReader {
    connection: Connection,
    seen: Seen,
}

/// A writer that keeps its transaction open.
pub(super) struct OpenWriter {
    connection: Connection,
    unique: u64,
    ord: u64,
    before: u64,
}

/// A client's way to a node for one call.
struct Session {
    at: At,
    life: u64,
    hub: Hub,
    key: ConnKey,
    connection: Connection,
}

fn text(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(code, _) => {
            format!("code {} ({:#x})", code.extended_code & 0xff, code.extended_code)
        }
        other => other.to_string(),
    }
}

impl World {
    fn connect(&self, at: At, key: ConnKey) -> Option<Session> {
        let (hub, vfs, life, idle) = {
            let mut state = self.state.lock();
            let life = state.slots[at].life;
            let running = state.slots[at].running.as_deref_mut()?;
            running.seat.as_ref()?;
            let idle = running.idle.iter().position(|(other, _)| *other == key);
            let idle = idle.map(|index| running.idle.swap_remove(index).1);
            (running.hub.clone(), running.vfs.clone(), life, idle)
        };
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let read_level = if key.1 { ReadLevel::Linearizable } else { ReadLevel::Local };
                let options = ConnectOptions { read_level, ..ConnectOptions::default() };
                let opened = Connection::open(&hub, vfs.name(), key.0, &options).ok()?;
                // Large transactions shall spill. And SQLite shall zero what it does not use of a page: otherwise that has
                // whatever the process's memory had, and two runs of one seed differ in bytes that mean nothing.
                opened.execute_batch("PRAGMA cache_size = 8; PRAGMA secure_delete = ON").ok()?;
                opened
            }
        };
        Some(Session { at, life, hub, key, connection })
    }

    fn put_back(&self, session: Session) {
        let Session { at, life, key, connection, .. } = session;
        if !connection.is_autocommit() {
            let _ = connection.execute_batch("ROLLBACK");
        }
        let mut state = self.state.lock();
        if state.slots[at].life == life
            && let Some(running) = state.slots[at].running.as_deref_mut()
        {
            running.idle.push((key, connection));
        } else {
            drop(state);
            drop(connection);
        }
    }
}

fn see(connection: &Plain) -> Result<Seen, rusqlite::Error> {
    let exists: bool =
        connection.query_row("SELECT count(*) = 4 FROM sqlite_schema WHERE type = 'table'", [], |row| row.get(0))?;
    if !exists {
        return Ok(Seen::default());
    }
    let sql = "SELECT (SELECT coalesce(max(ord), 0) FROM items), (SELECT count(*) FROM items),
        (SELECT sum(balance) FROM accounts), (SELECT v FROM register WHERE k = 1),
        (SELECT coalesce((SELECT u FROM items ORDER BY ord DESC LIMIT 1), 0))";
    connection.query_row(sql, [], |row| {
        Ok(Seen {
            ord: row.get::<_, i64>(0)? as u64,
            count: row.get::<_, i64>(1)? as u64,
            sum: row.get(2)?,
            last: row.get(3)?,
            last_item: row.get(4)?,
        })
    })
}

/// One client does one thing.
pub(super) fn act(world: &Arc<World>) {
    let (at, kind) = {
        let mut state = world.state.lock();
        if !state.stormy {
            return;
        }
        let millis = 1 + state.dice.below(2 * state.rush);
        state.after_millis(millis, Ev::Client);
        if state.calls.len() >= DEPTH {
            return;
        }
        let at = state.somewhere();
        state.calls.push(at);
        (at, state.dice.below(100))
    };
    match kind {
        0..=44 => write(world, at, kind),
        45..=69 => read(world, at, false),
        70..=77 => read(world, at, true),
        78..=87 => patient_read(world, at),
        88..=95 => patient_write(world, at, kind < 91),
        _ => other_database(world, at),
    }
    world.state.lock().calls.pop();
}

impl State {
    /// A node, mostly one that leads.
    fn somewhere(&self) -> At {
        let term = |at: &At| {
            let leadership = self.slots[*at].hub()?.leadership();
            (leadership.role == Role::Leader).then_some(leadership.term)
        };
        let mut leaders: Vec<At> = (0..self.slots.len()).filter(|at| term(at).is_some()).collect();
        leaders.sort_by_key(|at| term(at));
        match (leaders.as_slice(), self.dice.below(8)) {
            ([.., newest], 0..=4) => return *newest,
            ([oldest, ..], 5) => return *oldest,
            _ => {}
        }
        self.dice.below(self.slots.len() as u64) as usize
    }

    fn script(&mut self, kind: u64) -> (u64, Vec<String>) {
        let unique = self.checks.unique();
        let dice = &self.dice;
        let (from, to, amount) = (1 + dice.below(ACCOUNTS), 1 + dice.below(ACCOUNTS), dice.below(50));
        let mut script = vec![
            format!("INSERT INTO items SELECT coalesce(max(ord), 0) + 1, {unique}, 'item {unique}' FROM items"),
            format!("UPDATE accounts SET balance = balance - {amount} WHERE id = {from}"),
            format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {to}"),
            format!("UPDATE register SET v = {unique} WHERE k = 1"),
        ];
        if kind < 6 {
            let rows = 10 + dice.below(60);
            script.push(format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                 INSERT INTO notes(body) SELECT printf('%.*c', 500 + i * 7, 'x') || {unique} FROM n"
            ));
        } else if kind < 12 {
            let below = dice.below(40);
            script.push(format!("DELETE FROM notes WHERE id % 41 = {below}"));
        } else if kind < 16 {
            script.push(format!("UPDATE notes SET body = body || {unique} WHERE id % 7 = {}", unique % 7));
            script.push(format!(
                "SAVEPOINT s; DELETE FROM accounts; DELETE FROM items WHERE u > {}; ROLLBACK TO s; RELEASE s",
                unique / 2
            ));
        }
        self.checks.scripts.insert(unique, script.clone());
        (unique, script)
    }

    fn settle(&mut self, at: At, unique: u64, ord: u64, before: u64, result: Result<(), rusqlite::Error>) {
        let result = match result {
            Ok(()) => {
                self.note(format_args!("n{}: u{unique} acknowledged at place {ord}", at + 1));
                self.count("acknowledged");
                return self.acknowledged(unique, ord, before);
            }
            Err(error) => error,
        };
        let what = outcome(&result);
        self.note(format_args!("n{}: u{unique} ended with {what:?}, {}", at + 1, text(&result)));
        if what == Some(Outcome::NotCommitted) {
            self.count("not committed");
            self.checks.refused.insert(unique);
        } else {
            self.count("unknown outcomes");
            self.checks.unknown.insert(unique);
        }
    }

    /// It was rolled back before its COMMIT.
    fn never_asked(&mut self, at: At, unique: u64, why: &str) {
        self.note(format_args!("n{}: u{unique} did not get to its commit: {why}", at + 1));
        self.count("rolled back before the commit");
        self.checks.refused.insert(unique);
    }
}

fn begin(connection: &Plain, script: &[String]) -> Result<u64, rusqlite::Error> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let empty: bool = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
    if empty {
        connection.execute_batch(SCHEMA)?;
    }
    for statement in script {
        connection.execute_batch(statement)?;
    }
    connection.query_row("SELECT max(ord) FROM items", [], |row| row.get::<_, i64>(0)).map(|ord| ord as u64)
}

fn write(world: &Arc<World>, at: At, kind: u64) {
    let Some(session) = world.connect(at, ("app", kind == 20)) else { return };
    let (unique, script, before) = {
        let mut state = world.state.lock();
        let (unique, script) = state.script(kind);
        (unique, script, state.checks.acknowledged_to)
    };
    let connection = &session.connection;
    match begin(connection, &script) {
        Err(error) => world.state.lock().never_asked(at, unique, &text(&error)),
        Ok(_) if kind == 40 => {
            let _ = connection.execute_batch("ROLLBACK");
            world.state.lock().never_asked(at, unique, "by choice");
        }
        Ok(ord) => {
            break_after_commit(&session, kind);
            let result = connection.execute_batch("COMMIT");
            world.state.lock().settle(at, unique, ord, before, result);
            mend_after_commit(&session, kind);
        }
    }
    world.put_back(session);
}

/// SQLite fails behind its commit frame: the VFS must publish what was accepted.
fn break_after_commit(session: &Session, kind: u64) {
    if kind == 30
        && let Ok(db) = session.hub.databases.find(session.key.0, false)
    {
        db.set_fault(Some(Arc::new(|label| label == "wal.sync")));
        // With FULL the WAL is synced behind the commit frame.
        let _ = session.connection.execute_batch("PRAGMA synchronous = FULL");
    }
}

fn mend_after_commit(session: &Session, kind: u64) {
    if kind == 30
        && let Ok(db) = session.hub.databases.find(session.key.0, false)
    {
        db.set_fault(None);
    }
}

fn read(world: &Arc<World>, at: At, linearizable: bool) {
    let Some(session) = world.connect(at, ("app", linearizable)) else { return };
    let before = world.state.lock().checks.acknowledged_to;
    let result = session.connection.execute_batch("BEGIN").and_then(|()| see(&session.connection));
    let _ = session.connection.execute_batch("ROLLBACK");
    let mut state = world.state.lock();
    match result {
        Ok(seen) => {
            state.saw(at, session.life, seen, if linearizable { "linearizable" } else { "local" });
            if linearizable {
                state.count("linearizable reads");
                let ord = seen.ord;
                state.note(format_args!("n{}: linearizable read of {ord}, {before} were acknowledged", at + 1));
                if ord < before {
                    state.fail(format!(
                        "linearizable read on n{} shows {ord} transactions, {before} were acknowledged before",
                        at + 1
                    ));
                }
            } else {
                state.count("local reads");
            }
        }
        Err(error) => {
            state.note(format_args!("n{}: read failed, {}", at + 1, text(&error)));
            state.count("reads failed");
        }
    }
    drop(state);
    world.put_back(session);
}

/// A reader opens a transaction, reads the same again later, and ends it.
fn patient_read(world: &Arc<World>, at: At) {
    let open = {
        let mut state = world.state.lock();
        let go_on = state.dice.below(2) == 0;
        state.slots[at].running.as_deref_mut().filter(|_| go_on).and_then(|running| running.readers.pop())
    };
    let Some(reader) = open else {
        let Some(session) = world.connect(at, ("app", false)) else { return };
        let result = session.connection.execute_batch("BEGIN").and_then(|()| see(&session.connection));
        let mut state = world.state.lock();
        let many = state.slots[at].running.as_ref().is_none_or(|running| running.readers.len() >= 3);
        match result {
            Ok(seen) => {
                state.saw(at, session.life, seen, "patient");
                if !many && state.slots[at].life == session.life {
                    let reader = OpenReader { connection: session.connection, seen };
                    if let Some(running) = state.slots[at].running.as_deref_mut() {
                        running.readers.push(reader);
                    }
                    return;
                }
            }
            Err(error) => state.note(format_args!("n{}: patient read failed, {}", at + 1, text(&error))),
        }
        drop(state);
        return world.put_back(session);
    };
    let again = see(&reader.connection);
    let _ = reader.connection.execute_batch("ROLLBACK");
    let mut state = world.state.lock();
    match again {
        Ok(seen) if seen != reader.seen => {
            let first = reader.seen;
            state.fail(format!("one read transaction on n{} saw {first:?}, then {seen:?}", at + 1));
        }
        Ok(_) => state.count("patient reads"),
        Err(error) => {
            state.note(format_args!("n{}: patient read failed, {}", at + 1, text(&error)));
        }
    }
}

/// A writer leaves its transaction open; later it is committed or rolled back.
fn patient_write(world: &Arc<World>, at: At, begins: bool) {
    let open = {
        let mut state = world.state.lock();
        // Others wait for it: it shall not take too long.
        let busy = state.slots.iter().position(|slot| slot.running.as_ref().is_some_and(|r| !r.writers.is_empty()));
        let at = busy.unwrap_or(at);
        state.slots[at].running.as_deref_mut().and_then(|running| running.writers.pop()).map(|writer| (at, writer))
    };
    if let Some((at, writer)) = open {
        return end_writer(world, at, writer);
    }
    if !begins {
        return;
    }
    let Some(session) = world.connect(at, ("app", false)) else { return };
    let (unique, script, before) = {
        let mut state = world.state.lock();
        let (unique, script) = state.script(99);
        (unique, script, state.checks.acknowledged_to)
    };
    match begin(&session.connection, &script) {
        Ok(ord) => {
            let mut state = world.state.lock();
            if state.slots[at].life == session.life
                && let Some(running) = state.slots[at].running.as_deref_mut()
            {
                running.writers.push(OpenWriter { connection: session.connection, unique, ord, before });
                state.count("idle writers");
                state.note(format_args!("n{}: u{unique} stays open at place {ord}", at + 1));
                return;
            }
            state.never_asked(at, unique, "the node is gone");
            drop(state);
        }
        Err(error) => world.state.lock().never_asked(at, unique, &text(&error)),
    }
    world.put_back(session);
}

fn end_writer(world: &Arc<World>, at: At, writer: OpenWriter) {
    let OpenWriter { connection, unique, ord, before } = writer;
    let commit = world.state.lock().dice.below(3) > 0;
    if commit {
        let result = connection.execute_batch("COMMIT");
        world.state.lock().settle(at, unique, ord, before, result);
    } else {
        world.state.lock().never_asked(at, unique, "by choice, late");
    }
    if !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
}

/// A second database is created, written and dropped.
fn other_database(world: &Arc<World>, at: At) {
    let (hub, dice) = {
        let state = world.state.lock();
        let Some(hub) =
            state.slots[at].hub().filter(|_| state.slots[at].running.as_ref().is_some_and(|r| r.seat.is_some()))
        else {
            return;
        };
        (hub.clone(), state.dice.below(10))
    };
    if dice < 3 {
        let Ok(name) = DatabaseName::new("other") else { return };
        let existing = hub.with_catalogue(|catalogue| catalogue.find(&name).map(|(id, _)| id)).ok().flatten();
        let body = match existing {
            Some(database) => Body::DropDatabase { database },
            None => {
                let page_size = shoaldb_vfs::page::PageSize::new(1024);
                let Some(page_size) = page_size else { return };
                Body::CreateDatabase { name, page_size, auto_vacuum: AutoVacuum::Full }
            }
        };
        let decision = hub.propose(body, None);
        let mut state = world.state.lock();
        state.note(format_args!(
            "n{}: {} other: {decision:?}",
            at + 1,
            if existing.is_some() { "drop" } else { "create" }
        ));
        if matches!(decision, Decision::Committed(_)) {
            state.count(if existing.is_some() { "databases dropped" } else { "databases created" });
        }
        return;
    }
    let Some(session) = world.connect(at, ("other", false)) else { return };
    let result = session.connection.execute_batch(
        "BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (randomblob(0) || printf('%.*c', 900, 'y')); COMMIT",
    );
    let note = match &result {
        Ok(()) => "ok".to_string(),
        Err(error) => text(error),
    };
    {
        let mut state = world.state.lock();
        state.note(format_args!("n{}: write to other: {note}", at + 1));
        if result.is_ok() {
            state.count("writes to another database");
        }
    }
    // A dropped database's connections are of no use.
    if result.is_ok() {
        world.put_back(session);
    }
}

/// A leader binds the directory of a node that came late.
pub(super) fn bind(world: &Arc<World>, leader: At, node: At) {
    let (hub, incarnation) = {
        let mut state = world.state.lock();
        let Some(hub) = state.slots[leader].hub().filter(|hub| hub.leadership().role == Role::Leader).cloned() else {
            return;
        };
        let Some(incarnation) = state.slots[node].hub().map(|hub| hub.incarnation) else { return };
        if state.calls.len() > DEPTH {
            return;
        }
        state.calls.push(leader);
        (hub, incarnation)
    };
    let id = crate::types::NodeId(node as u16 + 1);
    let unbound = hub.with_catalogue(|catalogue| catalogue.member(id).is_some_and(|m| m.incarnation.is_none()));
    if unbound == Ok(true) {
        let body = Body::BindIncarnation { node: id, incarnation, address: format!("n{id}") };
        let decision = hub.propose(body, None);
        let mut state = world.state.lock();
        state.note(format_args!("n{}: bind n{id}: {decision:?}", leader + 1));
        state.count("late nodes bound");
    }
    world.state.lock().calls.pop();
}

/// Patient clients give up.
pub(super) fn end_open_transactions(world: &Arc<World>) {
    let n = world.state.lock().slots.len();
    for at in 0..n {
        let (readers, writers) = {
            let mut state = world.state.lock();
            let Some(running) = state.slots[at].running.as_deref_mut() else { continue };
            (std::mem::take(&mut running.readers), std::mem::take(&mut running.writers))
        };
        drop(readers);
        for writer in writers {
            end_writer(world, at, writer);
        }
    }
}

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

/// Everything that must hold when nothing moves any more.
pub(super) fn final_checks(world: &Arc<World>) {
    let n = world.state.lock().slots.len();
    let mut first: Option<Vec<String>> = None;
    for at in 0..n {
        let Some(session) = world.connect(at, ("app", false)) else {
            return world.state.lock().fail(format!("n{} does not open the database at the end", at + 1));
        };
        let dumped = dump(&session.connection);
        let order = dumped.and_then(|rows| order(&session.connection).map(|order| (rows, order)));
        world.put_back(session);
        let (rows, order) = match order {
            Ok(found) => found,
            Err(error) => return world.state.lock().fail(format!("n{}: last read: {}", at + 1, text(&error))),
        };
        if let Some(first) = &first {
            if *first != rows {
                return world.state.lock().fail(format!("n{} and n1 differ: {}", at + 1, difference(first, &rows)));
            }
            continue;
        }
        world.state.lock().compare(&order, &rows);
        first = Some(rows);
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
        for unique in &self.checks.refused {
            if let Some(ord) = there.get(unique) {
                wrong.push(format!("u{unique} was not committed, they said; it is at place {ord}"));
            }
        }
        let found = self.checks.unknown.iter().filter(|unique| there.contains_key(unique)).count();
        if found > 0 {
            *self.coverage.entry("unknown, and there").or_insert(0) += found as u64;
        }
        *self.coverage.entry("transactions").or_insert(0) += order.len() as u64;
        match self.twin(order) {
            Ok(twin) if twin != rows => wrong.push(format!("plain SQLite and n1 differ: {}", difference(&twin, rows))),
            Ok(_) => {}
            Err(error) => wrong.push(format!("plain SQLite could not repeat the transactions: {error}")),
        }
        for what in wrong {
            self.fail(what);
        }
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
