//! `shoal worker`: a node that a parent process speaks to through pipes (`harness/wire.rs`). The demo and the crash tests
//! start it; it is none of the commands that a person is told of.
//!
//! A few threads take requests, each with connections of its own, so that writers wait beside each other. When stdin
//! ends, the parent is gone, and so is the worker: at once, as if it had been killed.
//!
//! Deliberately absent: a clean end. The parent wants to know what survives without one.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use shoaldb::rusqlite::types::ValueRef;
use shoaldb::rusqlite::{self, params_from_iter};
use shoaldb::{ConnectOptions, Connection, Error, Event, Member, Node, Outcome, ReadLevel};

use crate::harness::wire::{Act, Answer, DATABASE, Failure, Fate, Line, Reply, Request, Told};
use crate::load;
use crate::phases;
use crate::start::MemberArg;

/// Requests that are carried out at the same time.
const THREADS: usize = 32;

/// Whether this process is to be one.
pub(crate) fn is_meant() -> bool {
    std::env::args_os().nth(1).is_some_and(|word| word == "worker")
}

/// Arguments of a worker.
#[derive(clap::Args, Debug)]
pub(crate) struct WorkerArgs {
    #[arg(long)]
    id: u64,
    #[arg(long)]
    data: PathBuf,
    #[arg(long)]
    listen: Option<String>,
    #[arg(long, value_delimiter = ',')]
    bootstrap: Vec<MemberArg>,
    #[arg(long)]
    heartbeat_ms: u64,
    #[arg(long)]
    election_ms: u64,
    #[arg(long)]
    phases: Option<PathBuf>,
    #[arg(long)]
    die_at: Option<String>,
}

/// Says a line to the parent. If nobody listens there is nobody to work for.
fn say(line: &Line) {
    let Ok(mut text) = serde_json::to_vec(line) else { return };
    text.push(b'\n');
    // One write for the whole line: the lock of stdout keeps lines apart.
    let mut out = std::io::stdout().lock();
    if out.write_all(&text).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Runs until stdin ends.
pub(crate) fn run(args: &WorkerArgs) -> Result<(), Error> {
    let mut builder = Node::builder(args.id, &args.data)
        .heartbeat(Duration::from_millis(args.heartbeat_ms))
        .election_timeout(Duration::from_millis(args.election_ms));
    if let Some(listen) = &args.listen {
        let members = args.bootstrap.iter().map(|member| Member::new(member.id, member.address.clone()));
        // Where its parent says, which is on this machine: tests have networks of their own on it.
        builder = builder.listen(listen.clone()).bootstrap(members).allow_plaintext_remote(true);
    }
    if let Some(file) = &args.phases {
        builder = builder.env(phases::watch(file, args.die_at.as_deref())?);
        // So that checkpoints, compactions and snapshots go on all the time, to be interrupted.
        builder = builder.checkpoint_bytes(64 << 10).checkpoint_age(Duration::from_millis(200));
        builder = builder.segment_bytes(64 << 10).log_limit(256 << 10).doublewrite_bytes(32 << 10);
    }
    let node = builder.start()?;
    say(&Line::Event { event: Told::Started });
    let events = node.events();
    tell_leader(&node);
    spawn(move || {
        for event in events {
            match event {
                Event::LeaderChanged { term, leader } => {
                    let leader = leader.map(|id| u64::from(id.0));
                    say(&Line::Event { event: Told::Leader { leader, term: term.0 } });
                }
                // The repair too: what a start finds may be told before anybody listens here.
                damage @ (Event::DivergenceFound { .. } | Event::DivergenceRepaired { .. }) => {
                    say(&Line::Event { event: Told::Damage { text: format!("{damage:?}") } });
                }
                trouble @ (Event::DiskTrouble { .. } | Event::Removed { .. }) => {
                    say(&Line::Event { event: Told::Trouble { text: format!("{trouble:?}") } });
                }
                _ => {}
            }
        }
    });
    spawn({
        let node = node.clone();
        move || {
            while node.wait_leader(Duration::from_secs(3600)).is_err() {}
            phases::recovered();
            tell_leader(&node);
            say(&Line::Event { event: Told::Ready });
        }
    });

    let (to, requests) = crossbeam_channel::unbounded::<Request>();
    for _ in 0..THREADS {
        let (node, requests) = (node.clone(), requests.clone());
        spawn(move || {
            let mut worker = Worker { node, readers: HashMap::new(), loader: None };
            for Request { id, act } in requests {
                let answer = match worker.carry_out(act) {
                    Ok(value) => Answer::Ok(value),
                    Err(error) => Answer::Err(failure(&error)),
                };
                say(&Line::Reply(Reply { id, answer }));
            }
        });
    }
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            Ok(request) => drop(to.send(request)),
            Err(error) => say(&Line::Event { event: Told::Trouble { text: format!("{error}: {line}") } }),
        }
    }
    std::process::exit(0);
}

fn tell_leader(node: &Node) {
    let status = node.status();
    let leader = status.leader.map(|id| u64::from(id.0));
    say(&Line::Event { event: Told::Leader { leader, term: status.term.0 } });
}

fn spawn(body: impl FnOnce() + Send + 'static) {
    std::thread::spawn(body);
}

fn failure(error: &Error) -> Failure {
    let outcome = match error.outcome() {
        Some(Outcome::NotCommitted) => Fate::NotCommitted,
        Some(Outcome::Unknown) => Fate::Unknown,
        // Of a node that stopped nothing is known, unless it says so.
        None if error.kind() == shoaldb::ErrorKind::Sqlite => Fate::Refused,
        None => Fate::Unknown,
    };
    Failure { outcome, leader: error.leader(), text: error.to_string() }
}

struct Worker {
    node: Node,
    readers: HashMap<bool, Connection>,
    loader: Option<Connection>,
}

impl Worker {
    fn carry_out(&mut self, act: Act) -> Result<Value, Error> {
        match act {
            Act::Write { sql, params } => {
                self.node.write(DATABASE, |tx| {
                    tx.prepare(&sql)?.execute(params_from_iter(params.iter().map(parameter)))?;
                    Ok(())
                })?;
                Ok(Value::Null)
            }
            Act::Batch { sql } => {
                self.node.write(DATABASE, |tx| Ok(tx.execute_batch(&sql)?))?;
                Ok(Value::Null)
            }
            Act::Read { sql, linearizable } => self.read(&sql, linearizable),
            Act::Load { file, table, from, limit } => {
                let loader = match &mut self.loader {
                    Some(loader) => loader,
                    none => none.insert(load::attach(&self.node, &file)?),
                };
                load::copy(loader, &table, from, limit)
            }
            Act::Digest { table } => Ok(load::digest(self.reader(false)?, &table)?),
            Act::Checksum => {
                let (position, sum) = self.node.checksum(DATABASE)?;
                Ok(json!((position, format!("{sum:032x}"))))
            }
            Act::Status => Ok(serde_json::to_value(self.node.status()).unwrap_or(Value::Null)),
            Act::Block { other, blocked } => {
                self.node.set_blocked(other, blocked);
                Ok(Value::Null)
            }
            Act::DieAt { phase, nth } => {
                phases::arm(&phase, nth)?;
                Ok(Value::Null)
            }
        }
    }

    fn reader(&mut self, linearizable: bool) -> Result<&Connection, Error> {
        Ok(match self.readers.entry(linearizable) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let read_level = if linearizable { ReadLevel::Linearizable } else { ReadLevel::Local };
                let options = ConnectOptions { read_level, ..ConnectOptions::default() };
                entry.insert(self.node.connect_with(DATABASE, options)?)
            }
        })
    }

    fn read(&mut self, sql: &str, linearizable: bool) -> Result<Value, Error> {
        let mut statement = self.reader(linearizable)?.prepare(sql)?;
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|at| Ok(shown(row.get_ref(at)?))).collect())?;
        Ok(Value::Array(rows.collect::<rusqlite::Result<Vec<Value>>>()?))
    }
}

fn parameter(value: &Value) -> rusqlite::types::Value {
    match value {
        Value::Number(number) => number.as_i64().map_or(rusqlite::types::Value::Null, rusqlite::types::Value::Integer),
        Value::String(text) => rusqlite::types::Value::Text(text.clone()),
        _ => rusqlite::types::Value::Null,
    }
}

fn shown(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(blob) => format!("{} bytes", blob.len()).into(),
    }
}
