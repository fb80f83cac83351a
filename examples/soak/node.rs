//! A node process: an application that does what its parent says, in as many threads as there are jobs at a time.
//!
//! The tables of each database. All of them stay small whatever the number of transactions:
//!
//! ```text
//! total (writer, n)              how many transactions of a writer there are; every one of them adds 1
//! slot  (writer, slot, number)   which of them wrote this place last; some rows are overwritten for ever
//! queue (id, ..., pad)           rows come at one end and go at the other
//! bulk  (writer, pad)            the content of each writer's last large transaction
//! ```
//!
//! When standard input ends, the parent is gone, and so is this process, at once: nothing here ends in an orderly way.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shoaldb::rusqlite::{self, OptionalExtension, TransactionBehavior};
use shoaldb::{ConnectOptions, Connection, Error, ErrorKind, Member, Node, Outcome, ReadLevel};

use crate::wire::{Answer, Failure, Fate, Job, Reply, Request};

/// Jobs at a time: all writers and readers of the parent, and some that take long.
const THREADS: usize = 32;
/// Rows that a queue keeps.
const QUEUE: i64 = 2000;
/// Rows of a large transaction, of 1000 bytes each: 12 MB, three parts.
const BULK: i64 = 12_000;

/// Small limits, so that everything that a month brings comes within minutes: segments that come and go, WALs that leave
/// memory, snapshots for who was away for half a minute.
const LOG_LIMIT: u64 = 64 << 20;
const SEGMENT: u64 = 4 << 20;
const WAL_LIMIT: u64 = 16 << 20;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS total(writer INTEGER PRIMARY KEY, n INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS slot(writer INTEGER, slot INTEGER, number INTEGER NOT NULL, pad BLOB,
                                    PRIMARY KEY (writer, slot)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS queue(id INTEGER PRIMARY KEY, writer INTEGER, pad BLOB);
    CREATE INDEX IF NOT EXISTS by_writer ON queue(writer, id);
    CREATE TABLE IF NOT EXISTS bulk(writer INTEGER, pad BLOB);";

/// Runs until standard input ends. `args` are the id, the directory, and the addresses of all nodes.
pub(crate) fn run(args: &[String]) -> Result<(), Error> {
    let [id, dir, list @ ..] = args else {
        return Err(std::io::Error::other("a node needs its id, a directory and addresses").into());
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let id: u64 = id.parse().map_err(|_| std::io::Error::other(format!("{id} is no node id")))?;
    let listen = list.get(id as usize - 1).ok_or_else(|| std::io::Error::other(format!("node {id} has no address")))?;
    let node = Node::builder(id, Path::new(dir))
        .listen(listen.clone())
        .bootstrap(list.iter().zip(1..).map(|(address, id)| Member::new(id, address.clone())))
        .log_limit(LOG_LIMIT)
        .segment_bytes(SEGMENT)
        .wal_limit(WAL_LIMIT)
        .start()?;
    let (to, requests) = crossbeam_channel::unbounded::<Request>();
    for _ in 0..THREADS {
        let (node, requests) = (node.clone(), requests.clone());
        std::thread::spawn(move || {
            let mut hand = Hand { node, open: HashMap::new() };
            for Request { id, job } in requests {
                let began = Instant::now();
                let answer = match hand.carry_out(&job) {
                    Ok(value) => Answer::Ok { micros: began.elapsed().as_micros() as u64, value },
                    Err(error) => Answer::Err(failure(&error)),
                };
                say(&Reply { id, answer });
            }
        });
    }
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            Ok(request) => drop(to.send(request)),
            Err(error) => eprintln!("not understood: {error}: {line}"),
        }
    }
    std::process::exit(0);
}

/// One write for the whole line. If nobody listens there is nobody to work for.
fn say(reply: &Reply) {
    let Ok(mut line) = serde_json::to_vec(reply) else { return };
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    if out.write_all(&line).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn failure(error: &Error) -> Failure {
    let fate = match error.outcome() {
        Some(Outcome::NotCommitted) => Fate::NotCommitted,
        Some(Outcome::Unknown) => Fate::Unknown,
        None if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Stopped) => Fate::Unknown,
        None => Fate::Unsaid,
    };
    Failure { fate, leader: error.leader(), text: error.to_string() }
}

/// One thread with its connections.
struct Hand {
    node: Node,
    open: HashMap<(String, bool), Connection>,
}

impl Hand {
    fn db(&mut self, name: &str, linearizable: bool) -> Result<&mut Connection, Error> {
        use std::collections::hash_map::Entry;
        match self.open.entry((name.to_string(), linearizable)) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let read_level = if linearizable { ReadLevel::Linearizable } else { ReadLevel::Local };
                let options = ConnectOptions { read_level, ..ConnectOptions::default() };
                Ok(entry.insert(self.node.connect_with(name, options)?))
            }
        }
    }

    fn carry_out(&mut self, job: &Job) -> Result<Value, Error> {
        match job {
            Job::Prepare { db } => {
                self.node.write(db, |tx| Ok(tx.execute_batch(TABLES)?))?;
                Ok(Value::Null)
            }
            Job::Write { db, writer, slot, number, large, plain } => {
                let body = |tx: &rusqlite::Connection| write(tx, *writer as i64, *slot as i64, *number as i64, *large);
                let written = if *plain {
                    let tx = self.db(db, false)?.transaction_with_behavior(TransactionBehavior::Immediate)?;
                    let written = body(&tx)?;
                    tx.commit()?;
                    written
                } else {
                    self.node.write(db, |tx| Ok(body(tx)?))?
                };
                Ok(json!(written))
            }
            Job::Shape { db, step } => {
                let sql = match step % 5 {
                    0 => "CREATE TABLE IF NOT EXISTS shape(a, b)",
                    1 => {
                        "INSERT INTO shape SELECT writer, number FROM slot; CREATE INDEX IF NOT EXISTS on_a ON shape(a)"
                    }
                    2 => "ALTER TABLE shape ADD COLUMN c DEFAULT 7",
                    3 => "ALTER TABLE shape DROP COLUMN b",
                    _ => "DROP TABLE IF EXISTS shape",
                };
                self.node.write(db, |tx| Ok(tx.execute_batch(sql)?))?;
                Ok(Value::Null)
            }
            Job::Vacuum { db } => {
                self.db(db, false)?.execute_batch("VACUUM")?;
                Ok(Value::Null)
            }
            Job::Passing { db } => {
                self.node.write(db, |tx| {
                    // It may be there: a kill came between the two halves of this.
                    let sql = "CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (randomblob(100000))";
                    Ok(tx.execute_batch(sql)?)
                })?;
                self.node.drop_database(db)?;
                Ok(Value::Null)
            }
            Job::Totals { db, linearizable } => self.rows(db, *linearizable, "SELECT writer, n FROM total"),
            Job::Slots { db } => self.rows(db, false, "SELECT writer, slot, number FROM slot"),
            Job::Hold { db, millis } => {
                let look = |db: &rusqlite::Connection| {
                    let sql = "SELECT (SELECT sum(n) FROM total), (SELECT sum(number) FROM slot), \
                               (SELECT sum(id) FROM queue), (SELECT total(length(pad)) FROM bulk)";
                    db.query_row(sql, [], |row| {
                        Ok((
                            row.get::<_, Option<i64>>(0)?,
                            row.get::<_, Option<i64>>(1)?,
                            row.get::<_, Option<i64>>(2)?,
                            row.get::<_, f64>(3)?,
                        ))
                    })
                };
                let tx = self.db(db, false)?.transaction()?;
                let first = look(&tx)?;
                std::thread::sleep(Duration::from_millis(*millis));
                let last = look(&tx)?;
                Ok(json!(first == last))
            }
            Job::Checksum { db } => {
                let (position, sum) = self.node.checksum(db)?;
                Ok(json!([position, format!("{sum:032x}")]))
            }
            Job::Integrity { db } => {
                let said: String = self.db(db, false)?.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
                Ok(json!(said))
            }
            Job::Status => Ok(serde_json::to_value(self.node.status()).unwrap_or(Value::Null)),
            Job::Transfer { to } => {
                self.node.transfer_leadership(*to)?;
                Ok(Value::Null)
            }
        }
    }

    fn rows(&mut self, db: &str, linearizable: bool, sql: &str) -> Result<Value, Error> {
        let mut statement = self.db(db, linearizable)?.prepare(sql)?;
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|at| row.get(at)).collect())?;
        Ok(json!(rows.collect::<rusqlite::Result<Vec<Vec<i64>>>>()?))
    }
}

/// See the module's text. Answers the writer's new total, and the number that the slot held before.
fn write(
    tx: &rusqlite::Connection,
    writer: i64,
    slot: i64,
    number: i64,
    large: bool,
) -> rusqlite::Result<(i64, Option<i64>)> {
    let before = tx
        .prepare("SELECT number FROM slot WHERE writer = ?1 AND slot = ?2")?
        .query_row([writer, slot], |row| row.get(0))
        .optional()?;
    tx.prepare("INSERT OR REPLACE INTO slot VALUES (?1, ?2, ?3, randomblob(?4))")?.execute([
        writer,
        slot,
        number,
        number % 700,
    ])?;
    tx.prepare("INSERT INTO queue(writer, pad) VALUES (?1, randomblob(?2))")?.execute([writer, 50 + number % 900])?;
    tx.prepare("DELETE FROM queue WHERE id <= (SELECT max(id) FROM queue) - ?1")?.execute([QUEUE])?;
    if large {
        tx.execute("DELETE FROM bulk WHERE writer = ?1", [writer])?;
        tx.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2) \
             INSERT INTO bulk SELECT ?1, randomblob(1000) FROM n",
            [writer, BULK],
        )?;
    }
    let total = tx
        .prepare("INSERT INTO total VALUES (?1, 1) ON CONFLICT (writer) DO UPDATE SET n = n + 1 RETURNING n")?
        .query_row([writer], |row| row.get(0))?;
    Ok((total, before))
}
