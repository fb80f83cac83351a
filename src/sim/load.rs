//! Clients: what they do, and what they hear.
//!
//! ```text
//! items(ord INTEGER PRIMARY KEY, u UNIQUE, body)   one row per transaction, in the order of the transactions
//! accounts(id, balance)                            each transaction moves money between two of them
//! register(k, v)                                   the last transaction's unique number
//! lists(k, body)                                   lists that transactions of their own append to and read (lists.rs)
//! notes(id INTEGER PRIMARY KEY, body)              large values come and go, so that pages are freed and reused
//! ```
//!
//! A transaction is a list of SQL texts that does not depend on what it reads, so that plain SQLite can run it again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::{Connection as Plain, ffi};

use super::check::{ACCOUNTS, Seen};
use super::inside::{self, Inside};
use super::lists::use_lists;
use super::node::ConnKey;
use super::other::{self, other_database};
use super::patient::{patient_read, patient_write};
use super::world::{At, Call, Ev, State, World};
use crate::catalogue::{DatabaseId, DatabaseName};
use crate::connection::{ConnectOptions, Connection, ReadLevel};
use crate::entry::Body;
use crate::error::{
    DAMAGED, DROPPED, NO_ROOM, NODE_STOPPED, NOT_KEPT, Outcome, READ_UNCONFIRMED, READER_ENDED, UNKNOWN, outcome,
};
use crate::pending::Decision;
use crate::raft::Role;
use crate::shared::Hub;

/// Calls that may lie on the stack above each other.
const DEPTH: usize = 6;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS items(ord INTEGER PRIMARY KEY, u INTEGER UNIQUE, body);
CREATE TABLE IF NOT EXISTS accounts(id INTEGER PRIMARY KEY, balance INTEGER);
CREATE TABLE IF NOT EXISTS register(k INTEGER PRIMARY KEY, v INTEGER);
CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, body);
CREATE TABLE IF NOT EXISTS lists(k INTEGER PRIMARY KEY, body TEXT NOT NULL);
INSERT OR IGNORE INTO register VALUES (1, 0);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8) INSERT OR IGNORE INTO accounts SELECT i, 100 FROM n;
";

/// A client's way to a node for one call.
pub(super) struct Session {
    at: At,
    pub(super) life: u64,
    inside: Arc<Inside>,
    key: ConnKey,
    pub(super) connection: Connection,
}

pub(super) fn text(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(code, _) => {
            format!("code {} ({:#x})", code.extended_code & 0xff, code.extended_code)
        }
        other => other.to_string(),
    }
}

impl State {
    /// Whatever befalls a cluster, SQL that is right ends well, or another one writes, or this node does not lead, is shut down or
    /// finds no majority, or nobody knows what became of it. Nothing else comes of it, but what calls that failed explain
    /// (`excuses.rs`): neither damage, but where bits that rotted under this very process are still there, nor rows that a
    /// transaction before it would not have left so. A process whose disk is gone may find anything in what it reads; nobody hears
    /// of that.
    pub(super) fn unexpected(&mut self, at: At, how: &str, error: &rusqlite::Error) {
        let code = error.sqlite_error().map(|error| error.extended_code);
        let sound = match code {
            Some(UNKNOWN | NODE_STOPPED | READ_UNCONFIRMED) => true,
            Some(DAMAGED) => self.disk_may_have_damaged(at) || self.has_rotted(at),
            Some(NO_ROOM | NOT_KEPT) => self.spill_has_failed(at),
            Some(READER_ENDED) => self.slots[at].kept_much,
            // It is dropped only where somebody drops it.
            Some(DROPPED) => how.ends_with(other::NAME),
            Some(ffi::SQLITE_IOERR) => self.has_failed_under_a_call(at),
            Some(code) => [ffi::SQLITE_BUSY, ffi::SQLITE_READONLY].contains(&(code & 0xff)),
            None => false,
        };
        let sound = sound || code.is_some_and(|code| code & 0xff == ffi::SQLITE_IOERR) && self.has_died_under_calls(at);
        if !sound && !self.shows_rot(at) {
            self.fail(format!("{how} on n{} failed: {}, {error}", at + 1, text(error)));
        }
    }

    /// Calls that have come back are no calls of a process that has lost its disk any more.
    pub(super) fn forget_who_died(&mut self) {
        for at in 0..self.slots.len() {
            self.slots[at].died_under_calls &= self.is_called(at);
        }
    }

    /// A client calls a node.
    pub(super) fn enter_call(&mut self, at: At) {
        let failures = self.slots[at].failures();
        self.calls.push(Call { at, failures });
    }

    /// The clients' calls of this node that lie on the stack.
    pub(super) fn calls_of(&self, at: At) -> impl DoubleEndedIterator<Item = &Call> {
        self.calls.iter().filter(move |call| call.at == at)
    }

    pub(super) fn is_called(&self, at: At) -> bool {
        self.calls_of(at).next().is_some()
    }

    /// Whether a call of this node's disk, or of its SQLite, has failed since the client's call began that is judged now: the topmost
    /// of them.
    fn has_failed_under_a_call(&self, at: At) -> bool {
        self.calls_of(at).next_back().is_some_and(|call| self.slots[at].failures() != call.failures)
    }

    /// Whether a call that comes back may be one of a process that has lost its disk.
    fn has_died_under_calls(&self, at: At) -> bool {
        self.slots[at].fs.is_down() || self.slots[at].died_under_calls
    }
}

impl World {
    pub(super) fn connect(&self, at: At, key: ConnKey) -> Option<Session> {
        self.connect_with(at, key, true)
    }

    /// The same with a connection that nobody has used.
    pub(super) fn connect_anew(&self, at: At, key: ConnKey) -> Option<Session> {
        self.connect_with(at, key, false)
    }

    fn connect_with(&self, at: At, key: ConnKey, used: bool) -> Option<Session> {
        let (hub, vfs, inside, life, idle, cache) = {
            let mut state = self.state.lock();
            let life = state.slots[at].life;
            let cache = state.shape.cache_pages;
            let running = state.slots[at].running.as_deref_mut()?;
            running.seat.as_ref()?;
            let idle = running.idle.iter().position(|(other, _)| used && *other == key);
            let idle = idle.map(|index| running.idle.swap_remove(index).1);
            (running.hub.clone(), running.vfs.clone(), running.inside.clone(), life, idle, cache)
        };
        // A kind of database is chosen before anybody opens it.
        if !self.app_exists(&hub) {
            return None;
        }
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let read_level = if key.1 { ReadLevel::Linearizable } else { ReadLevel::Local };
                let options = ConnectOptions { read_level, ..ConnectOptions::default() };
                let opened = match Connection::open(&hub, vfs.name(), key.0, &options) {
                    Ok(opened) => opened,
                    Err(error) => {
                        if let Some(error) = error.sqlite() {
                            self.state.lock().unexpected(at, &format!("opening {}", key.0), error);
                        }
                        return None;
                    }
                };
                // Large transactions shall spill.
                if let Err(error) = opened.execute_batch(&format!("PRAGMA cache_size = {cache}")) {
                    self.state.lock().unexpected(at, &format!("the size of a cache of {}", key.0), &error);
                    return None;
                }
                if let Ok(db) = hub.databases.find(key.0, false) {
                    db.set_fault(Some(inside::hook(&self.me, &inside)));
                }
                opened
            }
        };
        Some(Session { at, life, inside, key, connection })
    }

    /// Whether this node knows the database, unless its first write makes it.
    fn app_exists(&self, hub: &Hub) -> bool {
        let implicit = self.state.lock().shape.geometry.is_none();
        implicit || exists(hub, "app") != Some(false)
    }

    pub(super) fn put_back(&self, session: Session) {
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

/// Reads what a transaction must show as a whole; with `notes` that of all pages.
pub(super) fn see(connection: &Plain, notes: bool) -> Result<Seen, rusqlite::Error> {
    let exists: bool =
        connection.query_row("SELECT count(*) = 5 FROM sqlite_schema WHERE type = 'table'", [], |row| row.get(0))?;
    if !exists {
        return Ok(Seen::default());
    }
    let sql = "SELECT (SELECT coalesce(max(ord), 0) FROM items), (SELECT count(*) FROM items),
        (SELECT sum(balance) FROM accounts), (SELECT v FROM register WHERE k = 1),
        (SELECT coalesce((SELECT u FROM items ORDER BY ord DESC LIMIT 1), 0))";
    let notes = notes.then(|| {
        let sql = "SELECT count(*), coalesce(sum(id * 31 + length(body)), 0) FROM notes";
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
    });
    let notes = notes.transpose()?;
    connection.query_row(sql, [], |row| {
        Ok(Seen {
            notes,
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
        // Nothing lies above a write without faults, see below.
        if !state.stormy && (!state.calm || state.writes_calmly) {
            return;
        }
        // Calls that still wait end one after the other then, the topmost first: with new ones above them they never would.
        if state.stormy && state.now >= state.options.load_for {
            return;
        }
        if state.stormy {
            let millis = 1 + state.dice.below(2 * state.rush);
            state.after_millis(millis, Ev::Client);
        }
        if state.calls.len() >= DEPTH {
            return;
        }
        let at = state.somewhere();
        let kind = state.dice.below(100);
        let kind = if state.calm { state.calm_kind() } else { kind };
        let kind = if state.shape.returns && state.has_due_writer() { 95 } else { kind };
        // A commit that was accepted is shown when its call goes on, and that is when this one, above it on the stack, has
        // ended: a read that waits for it would wait until its time is up.
        if !state.calm && (70..=77).contains(&kind) && state.is_called(at) && state.dice.below(8) > 0 {
            return;
        }
        state.enter_call(at);
        state.writes_calmly = state.calm && kind == 99;
        (at, kind)
    };
    match kind {
        0..=44 => write(world, at, kind),
        45..=55 => read(world, at, false),
        56..=59 | 97 | 98 => other_database(world, at),
        60..=69 => use_lists(world, at, kind < 65),
        70..=77 => read(world, at, true),
        78..=87 => patient_read(world, at),
        88..=95 => patient_write(world, at, kind < 91),
        96 => vacuum(world, at),
        _ => write(world, at, kind),
    }
    let mut state = world.state.lock();
    state.writes_calmly = false;
    state.calls.pop();
}

impl State {
    /// Without faults: linearizable reads above each other, and now and then a write with nothing above or below it.
    fn calm_kind(&mut self) -> u64 {
        if self.calls.is_empty() && self.dice.below(3) == 0 { 99 } else { 70 }
    }

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
        let there: Vec<At> = match self.calm {
            true => self.participants(),
            false => (0..self.slots.len()).filter(|at| self.slots[*at].started).collect(),
        };
        there.get(self.dice.below(there.len() as u64) as usize).copied().unwrap_or(0)
    }

    fn script(&mut self, kind: u64) -> (u64, Vec<String>) {
        let unique = self.checks.unique();
        let script = self.statements(unique, kind);
        self.checks.scripts.insert(unique, script.clone());
        (unique, script)
    }

    /// A transaction that is done in two pieces.
    pub(super) fn script_in_two(&mut self, begins: u64, goes_on: u64) -> (u64, Vec<String>, Vec<String>) {
        let unique = self.checks.unique();
        let first = self.statements(unique, begins);
        let rest = self.more_statements(unique, goes_on);
        self.checks.scripts.insert(unique, first.iter().chain(&rest).cloned().collect());
        (unique, first, rest)
    }

    fn statements(&self, unique: u64, kind: u64) -> Vec<String> {
        let dice = &self.dice;
        let (from, to, amount) = (1 + dice.below(ACCOUNTS), 1 + dice.below(ACCOUNTS), dice.below(50));
        let mut script = vec![
            format!("INSERT INTO items SELECT coalesce(max(ord), 0) + 1, {unique}, 'item {unique}' FROM items"),
            format!("UPDATE accounts SET balance = balance - {amount} WHERE id = {from}"),
            format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {to}"),
            format!("UPDATE register SET v = {unique} WHERE k = 1"),
        ];
        script.extend(self.more_statements(unique, kind));
        script
    }

    fn more_statements(&self, unique: u64, kind: u64) -> Vec<String> {
        let dice = &self.dice;
        let mut script = Vec::new();
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
        } else if kind < 19 {
            // Pages that the database grows over and frees again need not be written at all.
            let rows = 5 + dice.below(30);
            script.push(format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                 INSERT INTO notes(body) SELECT printf('%.*c', 900 + i * 9, 'z') || {unique} FROM n"
            ));
            script.push(format!("DELETE FROM notes WHERE body LIKE 'z%{unique}'"));
        } else if kind == 21 {
            script.push("CREATE INDEX IF NOT EXISTS by_length ON notes(length(body), id)".to_string());
        } else if kind == 22 {
            script.push("DROP INDEX IF EXISTS by_length".to_string());
        } else if kind < 25 {
            script.push("PRAGMA incremental_vacuum(3)".to_string());
        }
        script
    }

    pub(super) fn settle(&mut self, at: At, unique: u64, ord: u64, before: u64, result: Result<(), rusqlite::Error>) {
        let result = match result {
            Ok(()) => {
                self.note(format_args!("n{}: u{unique} acknowledged at place {ord}", at + 1));
                self.count("acknowledged");
                let changes = |statement: &String| statement.contains(" INDEX IF ");
                if self.checks.scripts.get(&unique).is_some_and(|script| script.iter().any(changes)) {
                    self.count("changes of the schema");
                }
                return self.acknowledged(unique, ord, before);
            }
            Err(error) => error,
        };
        self.unexpected(at, "a commit", &result);
        if self.calm {
            self.fail(format!("liveness: u{unique} on n{} failed without a fault: {}", at + 1, text(&result)));
        }
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

    /// It failed before its COMMIT.
    pub(super) fn failed_before(&mut self, at: At, unique: u64, error: &rusqlite::Error) {
        self.unexpected(at, "a write", error);
        // Whoever does not lead writes nothing.
        let leads = self.slots[at].hub().is_some_and(|hub| hub.is_ready_leader());
        let primary = error.sqlite_error().map(|error| error.extended_code & 0xff);
        if self.calm && (leads || primary != Some(ffi::SQLITE_READONLY)) {
            self.fail(format!("liveness: a write on n{} failed without a fault: {}", at + 1, text(error)));
        }
        self.never_asked(at, unique, &text(error));
    }

    /// It was rolled back before its COMMIT.
    pub(super) fn never_asked(&mut self, at: At, unique: u64, why: &str) {
        self.note(format_args!("n{}: u{unique} did not get to its commit: {why}", at + 1));
        self.count("rolled back before the commit");
        self.checks.refused.insert(unique);
    }
}

pub(super) fn begin(connection: &Plain, script: &[String]) -> Result<u64, rusqlite::Error> {
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

pub(super) fn write(world: &Arc<World>, at: At, kind: u64) {
    if create_app(world, at) {
        return;
    }
    let Some(session) = world.connect(at, ("app", kind == 20)) else { return };
    let (unique, script, before) = {
        let mut state = world.state.lock();
        let (unique, script) = state.script(kind);
        (unique, script, state.checks.acknowledged_to)
    };
    let connection = &session.connection;
    match begin(connection, &script) {
        Err(error) => world.state.lock().failed_before(at, unique, &error),
        Ok(_) if kind == 40 => {
            let _ = connection.execute_batch("ROLLBACK");
            world.state.lock().never_asked(at, unique, "by choice");
        }
        Ok(ord) => {
            if kind == 30 {
                break_after_commit(&session);
            } else if kind == 31 {
                let nth = 1 + world.state.lock().dice.below(12);
                session.inside.fail_write.store(nth, Ordering::Relaxed);
            }
            let result = connection.execute_batch("COMMIT");
            let receipt = session.connection.last_receipt();
            session.inside.fail_sync.store(false, Ordering::Relaxed);
            session.inside.fail_write.store(0, Ordering::Relaxed);
            let mut state = world.state.lock();
            state.settle(at, unique, ord, before, result);
            state.keep_receipt(unique, receipt);
        }
    }
    world.put_back(session);
}

/// SQLite fails behind its commit frame: the VFS must publish what was accepted.
fn break_after_commit(session: &Session) {
    session.inside.fail_sync.store(true, Ordering::Relaxed);
    // With FULL the WAL is synced behind the commit frame.
    let _ = session.connection.execute_batch("PRAGMA synchronous = FULL");
}

/// Whether the catalogue of a node has this database, if there is a catalogue.
fn exists(hub: &Hub, name: &str) -> Option<bool> {
    let name = DatabaseName::new(name).ok()?;
    hub.with_catalogue(|catalogue| catalogue.find(&name).is_some()).ok()
}

/// The database of this name, as a node's catalogue has it.
pub(super) fn id_of(hub: &Hub, name: &str) -> Option<DatabaseId> {
    let name = DatabaseName::new(name).ok()?;
    hub.with_catalogue(|catalogue| catalogue.find(&name).map(|(id, _)| id)).ok().flatten()
}

/// The first client of a run makes the database, if its kind is not the usual one; whether there was such a need.
fn create_app(world: &Arc<World>, at: At) -> bool {
    let (hub, (page_size, auto_vacuum)) = {
        let state = world.state.lock();
        let running = state.slots[at].running.as_ref().filter(|running| running.seat.is_some());
        let Some((running, geometry)) = running.zip(state.shape.geometry) else { return false };
        (running.hub.clone(), geometry)
    };
    let Ok(name) = DatabaseName::new("app") else { return false };
    if exists(&hub, "app") != Some(false) {
        return false;
    }
    let decision = hub.propose(Body::CreateDatabase { name, page_size, auto_vacuum }, None);
    world.state.lock().note(format_args!("n{}: create app, {page_size:?} {auto_vacuum:?}: {decision:?}", at + 1));
    true
}

/// Every page moves, and nothing that a client sees changes.
fn vacuum(world: &Arc<World>, at: At) {
    let Some(session) = world.connect(at, ("app", false)) else { return };
    let result = session.connection.execute_batch("VACUUM");
    let mut state = world.state.lock();
    match result {
        Ok(()) => state.count("vacuums"),
        Err(error) => {
            state.unexpected(at, "VACUUM", &error);
            state.note(format_args!("n{}: vacuum: {}", at + 1, text(&error)));
        }
    }
    drop(state);
    world.put_back(session);
}

/// A header of the wal-index that is no header: the next reader, who comes at once, makes the index anew from the WAL. Only
/// where nobody has a transaction open.
fn damage_index(world: &World, session: &Session) {
    let mut state = world.state.lock();
    let at = session.at;
    let alone = state.calls_of(at).count() == 1;
    let running = state.slots[at].running.as_ref().filter(|_| alone && state.slots[at].life == session.life);
    let Some(running) = running.filter(|r| r.readers.is_empty() && r.inside.writers.lock().is_empty()) else { return };
    let Ok(db) = running.hub.databases.find("app", false) else { return };
    db.damage_index();
    state.note(format_args!("n{}: the wal-index is damaged", at + 1));
    state.count("wal-indexes made anew");
}

fn read(world: &Arc<World>, at: At, linearizable: bool) {
    let Some(session) = world.connect(at, ("app", linearizable)) else { return };
    world.state.lock().ask_about_a_receipt(at);
    if !linearizable && world.state.lock().chance(20) {
        damage_index(world, &session);
    }
    let (before, notes) = {
        let state = world.state.lock();
        (state.checks.known_to(), state.dice.below(4) == 0)
    };
    let result = session.connection.execute_batch("BEGIN").and_then(|()| see(&session.connection, notes));
    let _ = session.connection.execute_batch("ROLLBACK");
    let mut state = world.state.lock();
    match result {
        Ok(seen) => {
            state.saw(at, session.life, seen, if linearizable { "linearizable" } else { "local" });
            if linearizable {
                state.count("linearizable reads");
                let ord = seen.ord;
                state.note(format_args!("n{}: linearizable read of {ord}, {before} were known", at + 1));
                if ord < before {
                    state.fail(format!(
                        "linearizable read on n{} shows {ord} transactions, {before} were acknowledged or shown before",
                        at + 1
                    ));
                }
            } else {
                state.count("local reads");
            }
        }
        Err(error) => {
            state.unexpected(at, if linearizable { "a linearizable read" } else { "a local read" }, &error);
            state.note(format_args!("n{}: read failed, {}", at + 1, text(&error)));
            state.count("reads failed");
            if state.calm && linearizable {
                let what = text(&error);
                state.fail(format!("liveness: a linearizable read on n{} failed without a fault: {what}", at + 1));
            }
        }
    }
    drop(state);
    world.put_back(session);
}

/// A leader binds the directory of a node that came late.
pub(super) fn bind(world: &Arc<World>, leader: At, node: At) {
    let (hub, incarnation) = {
        let mut state = world.state.lock();
        let Some(hub) = state.slots[leader].hub().filter(|hub| hub.leadership().role == Role::Leader).cloned() else {
            return;
        };
        if state.lateness.is_some_and(|late| late.node == node) {
            return;
        }
        let Some(incarnation) = state.slots[node].hub().map(|hub| hub.incarnation) else { return };
        if state.calls.len() > DEPTH {
            return;
        }
        state.enter_call(leader);
        (hub, incarnation)
    };
    let id = crate::types::NodeId(node as u16 + 1);
    let unbound = hub.with_catalogue(|catalogue| catalogue.member(id).is_some_and(|m| m.incarnation.is_none()));
    if unbound == Ok(true) {
        let body = Body::BindIncarnation { node: id, incarnation, address: format!("n{id}") };
        let decision = hub.propose(body, None);
        let mut state = world.state.lock();
        state.note(format_args!("n{}: bind n{id}: {decision:?}", leader + 1));
        if matches!(decision, Decision::Committed(_)) {
            state.count("late nodes bound");
        }
    }
    world.state.lock().calls.pop();
}
