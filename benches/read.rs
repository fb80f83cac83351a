//! Point reads by primary key, one thread: plain SQLite (WAL) beside a node, interleaved round by round.
//!
//! ```text
//! cargo bench --bench read -- [--rounds 7] [--millis 500] [--dir DIR]
//! ```

use std::path::PathBuf;
use std::time::{Duration, Instant};

use shoaldb::{Node, ReadLevel, rusqlite};

const ROWS: i64 = 100_000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
    let rounds: usize = value("--rounds").map_or(7, |text| text.parse().expect("--rounds"));
    let millis: u64 = value("--millis").map_or(500, |text| text.parse().expect("--millis"));
    let base = value("--dir").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let stat = rustix::fs::statfs(&base).expect("statfs");
    assert!(stat.f_type as u64 != 0x0102_1994, "{}: a tmpfs; pass --dir on a disk", base.display());
    let dir = tempfile::tempdir_in(base).expect("a directory for the bench");

    let plain = rusqlite::Connection::open(dir.path().join("plain.db")).expect("plain");
    plain.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(())).expect("wal");
    let node = Node::open(dir.path().join("node")).expect("node");
    let local = node.connect("app").expect("connect");
    let linearizable = node.connect("app").expect("connect");
    fill(&plain);
    fill(&local);
    linearizable.set_read_level(ReadLevel::Linearizable);

    let cases: [(&str, &rusqlite::Connection); 3] =
        [("plain", &plain), ("local", &local), ("linearizable, one node", &linearizable)];
    let mut rates: Vec<Vec<f64>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for ((_, db), rates) in cases.iter().zip(&mut rates) {
            rates.push(run(db, Duration::from_millis(millis)));
        }
    }
    let medians: Vec<f64> = rates
        .iter_mut()
        .map(|rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        })
        .collect();
    println!("{:>24} {:>14} {:>8}", "what", "reads/s", "ratio");
    for ((what, _), rate) in cases.iter().zip(&medians) {
        println!("{what:>24} {rate:>14.0} {:>8.2}", rate / medians[0]);
    }
}

fn fill(db: &rusqlite::Connection) {
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").expect("table");
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
         INSERT INTO t SELECT i, printf('%0100d', i) FROM n",
        [ROWS],
    )
    .expect("rows");
}

/// Reads per second, each a transaction of its own.
fn run(db: &rusqlite::Connection, limit: Duration) -> f64 {
    let mut select = db.prepare("SELECT v FROM t WHERE id = ?1").expect("prepare");
    let (start, mut reads, mut key) = (Instant::now(), 0u64, 1i64);
    while start.elapsed() < limit {
        for _ in 0..100 {
            key = (key * 48_271) % 2_147_483_647;
            let _: String = select.query_row([key % ROWS + 1], |row| row.get(0)).expect("row");
            reads += 1;
        }
    }
    reads as f64 / start.elapsed().as_secs_f64()
}
