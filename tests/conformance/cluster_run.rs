//! Records of a file, run by three nodes. See the head of `main.rs` for how and why.

use std::time::{Duration, Instant};

use shoaldb::{Connection, CreateOptions, Error, Node, ReadLevel, rusqlite};

use crate::cluster::{Cluster, LONG};
use crate::records::{Counts, File, Kind, Labels, Record, Value, shown};

/// Records between two openings of all connections.
const REOPEN: usize = 50;
/// Small, so that main files are read, too.
const CHECKPOINT_BYTES: u64 = 64 << 10;
const LINEARIZABLE: ReadLevel = ReadLevel::Linearizable;

pub(crate) struct Nodes {
    cluster: Cluster,
}

/// Connections to one database, the leader's first. One follower reads `Linearizable`, all others `Local`.
struct Connections<'a>(Vec<Link<'a>>);

struct Link<'a> {
    node: &'a Node,
    db: Connection,
    level: ReadLevel,
}

impl<'a> Connections<'a> {
    fn open(cluster: &'a Cluster, database: &str) -> Connections<'a> {
        let leader = cluster.leader();
        let mut nodes: Vec<&Node> = cluster.running().filter(|node| node.id() != leader.id()).collect();
        nodes.insert(0, leader);
        let link = |(at, node): (usize, &'a Node)| {
            let (db, level) = (node.connect(database).unwrap(), if at == 1 { LINEARIZABLE } else { ReadLevel::Local });
            db.set_read_level(level);
            Link { node, db, level }
        };
        Connections(nodes.into_iter().enumerate().map(link).collect())
    }

    fn leader(&self) -> &Link<'a> {
        &self.0[0]
    }
}

impl Nodes {
    pub(crate) fn start() -> Nodes {
        // The machine may be busy: an election in the middle is allowed, but it is not what is tested.
        let settings = |builder: shoaldb::Builder| {
            builder
                .heartbeat(Duration::from_millis(200))
                .election_timeout(Duration::from_secs(2))
                .commit_timeout(Duration::from_secs(60))
                .checkpoint_bytes(CHECKPOINT_BYTES)
        };
        Nodes { cluster: Cluster::start_with(3, settings) }
    }

    /// Runs all records in a database that is named after the file. Which records were wrong, and why.
    pub(crate) fn run(&mut self, name: &str, file: &File) -> (Counts, Vec<String>) {
        let database = name.trim_end_matches(".test");
        let mut counts = Counts { skipped: file.skipped, ..Counts::default() };
        let (mut wrong, mut labels) = (Vec::new(), Labels::default());
        // Some files begin with a query, which makes no database.
        self.create(database);
        for records in file.records.chunks(REOPEN) {
            let mut connections = Connections::open(&self.cluster, database);
            for record in records {
                match self.record(&mut connections, database, &mut labels, record) {
                    Ok(()) => counts.ok += 1,
                    Err(text) => {
                        counts.bad += 1;
                        wrong.push(format!("line {}: {text}\n  {}", record.line, record.sql));
                    }
                }
            }
        }
        self.cluster.assert_equal(database);
        (counts, wrong)
    }

    /// Otherwise nothing was read from a main file, which is half of what is tested.
    pub(crate) fn assert_that_all_made_checkpoints(&self) {
        for node in self.cluster.running() {
            let status = node.status();
            // A database that is still as it was created is at the position of its creation.
            let made = status.databases.iter().filter(|database| database.checkpointed.0 > database.id.0).count();
            assert!(made > 0, "node {} made no checkpoint: {:?}", node.id(), status.databases);
        }
    }

    fn record<'a>(
        &'a self,
        connections: &mut Connections<'a>,
        database: &str,
        labels: &mut Labels,
        record: &Record,
    ) -> Result<(), String> {
        match &record.kind {
            Kind::Statement { succeeds } => {
                let result = self.statement(connections, database, &record.sql);
                match (succeeds, result) {
                    (true, Err(error)) => Err(format!("failed: {error}")),
                    (false, Err(error)) if !is_of_sql(&error) => Err(format!("failed by something else: {error}")),
                    (false, Ok(())) => Err("succeeded, and should not".to_string()),
                    _ => Ok(()),
                }
            }
            Kind::Query { types, sort, label, answer } => {
                // What a follower that reads locally must have, or it rightly gives an older answer.
                let index = connections.leader().node.checksum(database).unwrap().0;
                for Link { node, db, level } in &connections.0 {
                    if *level == ReadLevel::Local {
                        assert!(node.wait_applied(index, LONG), "node {} did not reach {index}", node.id());
                    }
                    let rows = match query(db, &record.sql, types.len()) {
                        Err(error) if is_overflow(&error) && answer.is_empty() => continue,
                        result => result.map_err(|error| format!("node {} failed: {error}", node.id()))?,
                    };
                    labels
                        .judge(label.as_ref(), answer, &shown(types, *sort, &rows))
                        .map_err(|text| format!("node {} gave {text}", node.id()))?;
                }
                Ok(())
            }
        }
    }

    /// Once more if it is certain that nothing was done: another node may lead now.
    fn create(&self, database: &str) {
        let deadline = Instant::now() + LONG;
        while let Err(error) = self.cluster.leader().create(database, CreateOptions::default()) {
            assert!(error.is_retryable() && Instant::now() < deadline, "{database}: {error}");
        }
    }

    /// Once more if it is certain that nothing was done, as above. Only SQLite's own errors come back.
    fn statement<'a>(
        &'a self,
        connections: &mut Connections<'a>,
        database: &str,
        sql: &str,
    ) -> Result<(), rusqlite::Error> {
        loop {
            let Err(error) = connections.leader().db.execute_batch(sql) else { return Ok(()) };
            if shoaldb::outcome(&error).is_none() && shoaldb::leader_hint(&error).is_none() {
                return Err(error);
            }
            let error = Error::from(error);
            assert!(error.is_retryable(), "{sql}: {error}");
            *connections = Connections::open(&self.cluster, database);
        }
    }
}

/// Whether the statement is at fault, and not a lock, a disk, or the cluster. No `statement error` of the corpus breaks a constraint,
/// so there is one code.
fn is_of_sql(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{SqlInputError, SqliteFailure};
    matches!(error, SqliteFailure(code, _) | SqlInputError { error: code, .. } if code.extended_code == rusqlite::ffi::SQLITE_ERROR)
}

/// The one error of a query that stands in the files as an empty answer. An answer of no rows stands there in the same way, so no
/// other error may be taken for one.
fn is_overflow(error: &rusqlite::Error) -> bool {
    is_of_sql(error) && error.to_string() == "integer overflow"
}

fn query(db: &rusqlite::Connection, sql: &str, columns: usize) -> Result<Vec<Vec<Value>>, rusqlite::Error> {
    let mut statement = db.prepare(sql)?;
    assert_eq!(statement.column_count(), columns, "{sql}");
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let value = |at| {
            Ok(match row.get_ref(at)? {
                rusqlite::types::ValueRef::Null => Value::Null,
                rusqlite::types::ValueRef::Integer(n) => Value::Integer(n),
                rusqlite::types::ValueRef::Real(x) => Value::Real(x),
                rusqlite::types::ValueRef::Text(bytes) | rusqlite::types::ValueRef::Blob(bytes) => {
                    Value::Text(String::from_utf8_lossy(bytes).into_owned())
                }
            })
        };
        all.push((0..columns).map(value).collect::<Result<Vec<_>, rusqlite::Error>>()?);
    }
    Ok(all)
}
