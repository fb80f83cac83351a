//! Point reads by primary key, one thread: plain SQLite (WAL) beside one node and beside three node processes, interleaved
//! round by round.
//!
//! ```text
//! cargo bench --bench read -- [--rounds 7] [--millis 500] [--dir DIR]
//! ```
//!
//! The three nodes are this process and two others. It leads in the first part, and follows in the second.

use std::time::{Duration, Instant};

use common::{Args, Process, Seat, lead, until_input_ends};
use shoaldb::{Node, ReadLevel, rusqlite};

mod common;

const ROWS: i64 = 100_000;

fn main() {
    let args = Args::of_process();
    if let Some(seat) = args.seat() {
        let _node = seat.start(|builder| builder);
        return until_input_ends();
    }
    let (rounds, millis) = (args.number("--rounds", 7usize), args.number("--millis", 500));
    let dir = args.directory();

    let plain = rusqlite::Connection::open(dir.path().join("plain.db")).expect("plain");
    plain.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(())).expect("wal");
    let node = Node::open(dir.path().join("node")).expect("node");
    let seats = Seat::all((dir.path(), 3), (dir.path(), 0));
    let _others: Vec<Process> = seats[1..].iter().map(Seat::spawn).collect();
    let three = seats[0].start(|builder| builder);
    lead(&three, 1);
    let connect = |node: &Node, level: ReadLevel| {
        let db = node.connect("app").expect("connect");
        db.set_read_level(level);
        db
    };
    fill(&plain);
    for node in [&node, &three] {
        fill(&connect(node, ReadLevel::Local));
    }
    let open = |node: &Node| [ReadLevel::Local, ReadLevel::Linearizable].map(|level| connect(node, level));
    let ([local, linearizable], [local_3, linearizable_3]) = (open(&node), open(&three));
    let measure = |cases: &[(&str, &rusqlite::Connection)]| measure(cases, rounds, Duration::from_millis(millis));
    println!("{:>28} {:>14} {:>8}", "what", "reads/s", "ratio");
    measure(&[
        ("plain", &plain),
        ("one node, local", &local),
        ("one node, linearizable", &linearizable),
        ("leader of three, local", &local_3),
        ("leader of three, linearizable", &linearizable_3),
    ]);
    lead(&three, 2);
    measure(&[
        ("plain", &plain),
        ("follower of three, local", &local_3),
        ("follower of three, linearizable", &linearizable_3),
    ]);
}

/// Runs the cases in turns, and prints medians and what they are of the first.
fn measure(cases: &[(&str, &rusqlite::Connection)], rounds: usize, limit: Duration) {
    let mut rates: Vec<Vec<f64>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for ((_, db), rates) in cases.iter().zip(&mut rates) {
            rates.push(run(db, limit));
        }
    }
    let mut base = None;
    for ((what, _), rates) in cases.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        let rate = rates[rates.len() / 2];
        println!("{what:>32} {rate:>10.0} {:>8.2}", rate / *base.get_or_insert(rate));
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
