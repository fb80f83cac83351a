//! Point reads by primary key, one thread: plain SQLite (WAL) beside one node and beside three node processes, interleaved
//! round by round.
//!
//! ```text
//! cargo bench --bench read -- [--rounds 7] [--millis 500] [--dir DIR]
//! ```
//!
//! The three nodes are this process and two others. It leads in the first part, and follows in the second.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shoaldb::{Member, Node, ReadLevel, rusqlite};

const ROWS: i64 = 100_000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--node") {
        return node_process(&args[at + 1..]);
    }
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
    let (three, _others) = three(dir.path());
    lead(&three, three.id());
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

/// Three nodes: this process, and two others.
fn three(dir: &Path) -> (Node, [Other; 2]) {
    let held: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let list: Vec<String> = held.iter().map(|port| port.local_addr().expect("its address").to_string()).collect();
    drop(held);
    let others = [2, 3].map(|id| {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args(["--node", &id.to_string()]).arg(dir.join(id.to_string())).args(&list);
        Other(command.stdin(Stdio::piped()).spawn().expect("node process"))
    });
    (start_node(1, &dir.join("1"), &list), others)
}

fn start_node(id: u64, dir: &Path, list: &[String]) -> Node {
    let members = list.iter().zip(1..).map(|(address, id)| Member::new(id, address.clone()));
    Node::builder(id, dir).listen(list[id as usize - 1].clone()).bootstrap(members).start().expect("a node")
}

/// Waits until node `id` leads.
fn lead(node: &Node, id: u64) {
    while node.wait_leader(Duration::from_secs(60)).expect("a leader") != id {
        let _ = node.transfer_leadership(id);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A node, until standard input ends.
fn node_process(args: &[String]) {
    let _node = start_node(args[0].parse().expect("an id"), Path::new(&args[1]), &args[2..]);
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
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
