//! SQL against a model: two connections to a node beside two connections to a plain file, under the same statements.
//!
//! Every statement must succeed on both or fail on both with the same primary code, and every query must give the same rows.
//! At the end the contents are compared, and both are intact. A busy handler waits for nobody on either side, so that locks
//! between the two connections are compared, too; only what the node's own checkpoints lock for moments is tried again.
//!
//! The node lives as long as the process; each input has a database of its own on it, which is dropped at the end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use shoaldb::rusqlite::types::Value;
use shoaldb::rusqlite::{self, Connection};
use shoaldb::{Node, rusqlite::OpenFlags};
use tempfile::TempDir;

/// SQLite's code of a lock that somebody else has.
const BUSY: i32 = 5;
/// Statements of one input, at most.
const STATEMENTS: usize = 64;

/// What a connection is told. Tables are few and keys are small, so that statements meet.
#[allow(missing_docs, reason = "each is its statement, see `Op::sql`")]
#[derive(Arbitrary, Debug)]
pub enum Op {
    Create { table: u8, without_rowid: bool, unique: bool },
    Drop { table: u8 },
    Index { table: u8 },
    DropIndex { table: u8 },
    Rename { table: u8, to: u8 },
    AddColumn { table: u8 },
    Trigger { table: u8, other: u8 },
    Insert { table: u8, key: u8, bytes: u16, or_replace: bool },
    InsertMany { table: u8, rows: u8 },
    Update { table: u8, key: u8, bytes: u16 },
    Delete { table: u8, below: u8 },
    Begin { kind: u8 },
    Commit,
    Rollback,
    Savepoint { name: u8 },
    Release { name: u8 },
    RollbackTo { name: u8 },
    Count { table: u8 },
    Read { table: u8 },
    Vacuum,
    IncrementalVacuum,
    AutoVacuum { mode: u8 },
    CacheSize { pages: u8 },
    ForeignSchema { version: u8 },
    Integrity,
    Reopen,
}

fn table(n: u8) -> String {
    format!("t{}", n % 3)
}

impl Op {
    /// `None`: the connection is opened anew.
    fn sql(&self) -> Option<String> {
        Some(match self {
            Op::Create { table: t, without_rowid, unique } => format!(
                "CREATE TABLE {}(k INTEGER PRIMARY KEY, v {}, w DEFAULT 7){}",
                table(*t),
                if *unique { "UNIQUE" } else { "" },
                if *without_rowid { " WITHOUT ROWID" } else { "" }
            ),
            Op::Drop { table: t } => format!("DROP TABLE {}", table(*t)),
            Op::Index { table: t } => format!("CREATE INDEX i{} ON {}(v)", t % 3, table(*t)),
            Op::DropIndex { table: t } => format!("DROP INDEX i{}", t % 3),
            Op::Rename { table: t, to } => format!("ALTER TABLE {} RENAME TO {}", table(*t), table(*to)),
            Op::AddColumn { table: t } => format!("ALTER TABLE {} ADD COLUMN x DEFAULT 'added'", table(*t)),
            Op::Trigger { table: t, other } => format!(
                "CREATE TRIGGER g{} AFTER INSERT ON {} BEGIN DELETE FROM {} WHERE k = new.k - 1; END",
                t % 3,
                table(*t),
                table(*other)
            ),
            Op::Insert { table: t, key, bytes, or_replace } => format!(
                "INSERT {} INTO {}(k, v) VALUES ({}, zeroblob({}) || {key})",
                if *or_replace { "OR REPLACE" } else { "" },
                table(*t),
                key % 16,
                bytes % 20_000
            ),
            Op::InsertMany { table: t, rows } => format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
                 INSERT OR IGNORE INTO {}(k, v) SELECT i, printf('%0*d', 200 + i, i) FROM n",
                u32::from(*rows) * 4 + 1,
                table(*t)
            ),
            Op::Update { table: t, key, bytes } => {
                format!(
                    "UPDATE {} SET v = printf('%0*d', {}, k) WHERE k % 16 = {}",
                    table(*t),
                    bytes % 9000 + 1,
                    key % 16
                )
            }
            Op::Delete { table: t, below } => format!("DELETE FROM {} WHERE k < {below}", table(*t)),
            Op::Begin { kind } => ["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"][usize::from(*kind) % 3].to_string(),
            Op::Commit => "COMMIT".to_string(),
            Op::Rollback => "ROLLBACK".to_string(),
            Op::Savepoint { name } => format!("SAVEPOINT s{}", name % 2),
            Op::Release { name } => format!("RELEASE s{}", name % 2),
            Op::RollbackTo { name } => format!("ROLLBACK TO s{}", name % 2),
            Op::Count { table: t } => format!("SELECT count(*), sum(k), min(w) FROM {}", table(*t)),
            Op::Read { table: t } => {
                format!("SELECT k, length(v), substr(v, -5), w FROM {} ORDER BY k LIMIT 40", table(*t))
            }
            Op::Vacuum => "VACUUM".to_string(),
            Op::IncrementalVacuum => "PRAGMA incremental_vacuum(3)".to_string(),
            Op::AutoVacuum { mode } => format!("PRAGMA auto_vacuum = {}", mode % 3),
            Op::CacheSize { pages } => format!("PRAGMA cache_size = {}", pages % 20 + 1),
            Op::ForeignSchema { version } => format!("PRAGMA user_version = {version}"),
            Op::Integrity => "PRAGMA integrity_check".to_string(),
            Op::Reopen => return None,
        })
    }
}

/// The bytes of a script: which of the two connections, and what it is told.
pub fn script(ops: &[(bool, Op)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (which, op) in ops {
        bytes.push(u8::from(*which));
        let (number, fields) = op.numbered();
        // As `arbitrary` chooses one of so many.
        let chosen = (number << 32).div_ceil(OPS) as u32;
        bytes.extend_from_slice(&chosen.to_le_bytes());
        bytes.extend_from_slice(&fields);
    }
    let mut again = Unstructured::new(&bytes);
    for op in ops {
        let read = <(bool, Op)>::arbitrary(&mut again).expect("as many as were written");
        assert_eq!(format!("{read:?}"), format!("{op:?}"));
    }
    bytes
}

/// How many kinds of [`Op`] there are.
const OPS: u64 = 26;

impl Op {
    /// Its place in the list, and the bytes of its fields.
    fn numbered(&self) -> (u64, Vec<u8>) {
        match *self {
            Op::Create { table, without_rowid, unique } => (0, vec![table, u8::from(without_rowid), u8::from(unique)]),
            Op::Drop { table } => (1, vec![table]),
            Op::Index { table } => (2, vec![table]),
            Op::DropIndex { table } => (3, vec![table]),
            Op::Rename { table, to } => (4, vec![table, to]),
            Op::AddColumn { table } => (5, vec![table]),
            Op::Trigger { table, other } => (6, vec![table, other]),
            Op::Insert { table, key, bytes, or_replace } => {
                let [low, high] = bytes.to_le_bytes();
                (7, vec![table, key, low, high, u8::from(or_replace)])
            }
            Op::InsertMany { table, rows } => (8, vec![table, rows]),
            Op::Update { table, key, bytes } => {
                let [low, high] = bytes.to_le_bytes();
                (9, vec![table, key, low, high])
            }
            Op::Delete { table, below } => (10, vec![table, below]),
            Op::Begin { kind } => (11, vec![kind]),
            Op::Commit => (12, vec![]),
            Op::Rollback => (13, vec![]),
            Op::Savepoint { name } => (14, vec![name]),
            Op::Release { name } => (15, vec![name]),
            Op::RollbackTo { name } => (16, vec![name]),
            Op::Count { table } => (17, vec![table]),
            Op::Read { table } => (18, vec![table]),
            Op::Vacuum => (19, vec![]),
            Op::IncrementalVacuum => (20, vec![]),
            Op::AutoVacuum { mode } => (21, vec![mode]),
            Op::CacheSize { pages } => (22, vec![pages]),
            Op::ForeignSchema { version } => (23, vec![version]),
            Op::Integrity => (24, vec![]),
            Op::Reopen => (25, vec![]),
        }
    }
}

struct World {
    node: Node,
    dir: TempDir,
    next: AtomicU64,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder for the node");
        let node = Node::builder(1, dir.path().join("node")).log_limit(16 << 20).checkpoint_bytes(64 << 10).start();
        let node = node.expect("a node of one member");
        node.wait_leader(Duration::from_secs(30)).expect("it leads itself");
        World { node, dir, next: AtomicU64::new(1) }
    })
}

/// Rows, or the primary code of the error.
fn run(db: &Connection, sql: &str) -> Result<Vec<Vec<Value>>, i32> {
    // Where in the text an error is may or may not be known, which changes the shape of the error, not its code.
    let code = |error: rusqlite::Error| match error {
        rusqlite::Error::SqliteFailure(error, _) | rusqlite::Error::SqlInputError { error, .. } => {
            error.extended_code & 0xff
        }
        other => panic!("{sql}: {other:?}"),
    };
    let mut statement = db.prepare(sql).map_err(code)?;
    let columns = statement.column_count();
    let mut rows = statement.query([]).map_err(code)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next().map_err(code)? {
        all.push((0..columns).map(|at| row.get(at)).collect::<Result<_, _>>().map_err(code)?);
    }
    Ok(all)
}

/// The two sides of each connection: the node's, and the plain file's.
struct Pair {
    ours: Connection,
    model: Connection,
}

impl Pair {
    fn open(name: &str, file: &std::path::Path) -> Pair {
        let ours = world().node.connect(name).expect("a connection");
        let uri = format!("file:{name}?vfs={}", world().node.vfs_name());
        drop(ours);
        let ours = Connection::open_with_flags(uri, OpenFlags::default()).expect("a connection");
        let model = Connection::open(file).expect("a plain file");
        for db in [&ours, &model] {
            db.busy_timeout(Duration::ZERO).expect("no waiting");
        }
        // Ours has a WAL of its own, whoever asks for what.
        run(&model, "PRAGMA journal_mode = WAL").expect("a WAL");
        run(&model, "PRAGMA synchronous = OFF").expect("no syncs");
        // That read the schema. Who knows it is told otherwise than who does not that somebody has changed it since.
        run(&ours, "SELECT count(*) FROM sqlite_schema").expect("a schema");
        Pair { ours, model }
    }

    fn both(&self, sql: &str) -> Result<Vec<Vec<Value>>, i32> {
        let (model, mut ours) = (run(&self.model, sql), run(&self.ours, sql));
        // The node's checkpoints lock writers out for moments, which nobody does to the plain file. It has done nothing yet.
        let until = Instant::now() + Duration::from_secs(5);
        while ours == Err(BUSY) && ours != model && Instant::now() < until {
            std::thread::yield_now();
            ours = run(&self.ours, sql);
        }
        assert_eq!(ours, model, "{sql}");
        assert_eq!(self.ours.is_autocommit(), self.model.is_autocommit(), "{sql}");
        ours
    }
}

/// See the module's text.
pub fn sql(data: &[u8]) -> bool {
    let mut bytes = Unstructured::new(data);
    let world = world();
    let name = format!("f{}", world.next.fetch_add(1, Ordering::Relaxed));
    let file = world.dir.path().join(&name);
    world.node.create(&name, shoaldb::CreateOptions::default()).expect("a new database");
    let mut pairs = [Pair::open(&name, &file), Pair::open(&name, &file)];
    let mut done = false;
    for _ in 0..STATEMENTS {
        let (Ok(which), Ok(op)) = (bytes.arbitrary::<bool>(), bytes.arbitrary::<Op>()) else { break };
        match op.sql() {
            Some(sql) => done |= pairs[usize::from(which)].both(&sql).is_ok(),
            None => pairs[usize::from(which)] = Pair::open(&name, &file),
        }
        if bytes.is_empty() {
            break;
        }
    }
    for pair in &pairs {
        let _ = pair.both("ROLLBACK");
    }
    let [pair, _other] = &pairs;
    let schema = pair.both("SELECT type, name, sql FROM sqlite_schema ORDER BY name").expect("a schema");
    for row in &schema {
        if let [Value::Text(kind), Value::Text(name), _] = &row[..]
            && kind == "table"
        {
            pair.both(&format!("SELECT * FROM {name} ORDER BY k")).expect("its rows");
        }
    }
    assert_eq!(pair.both("PRAGMA integrity_check"), Ok(vec![vec![Value::Text("ok".to_string())]]));
    drop(pairs);
    world.node.drop_database(&name).expect("nobody uses it");
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(world.dir.path().join(format!("{name}{end}")));
    }
    done
}
