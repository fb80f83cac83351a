//! What a node has in memory, at most, while something large goes through it. Each is a process of its own, so that nothing
//! else counts. Memory is `RssAnon` + `RssShmem`: pages of files do not count, the kernel drops them when it needs the room.
//!
//! A gigabyte instead of 300 MB: `cargo bench --bench large -- --megabytes 1024`, which fails beyond the same bound.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use crate::user::{Members, Started, one_node, text, three_nodes_with, works};

const MEGABYTE: u64 = 1_000_000;
/// What is written at once.
const LARGE: u64 = 300 * MEGABYTE;
/// What may be in memory of it and of everything else, on each node. Promised are 400 MB; 142 to 253 were seen, and where no page
/// of a WAL leaves memory an INSERT has 397.
const BOUND: u64 = 350 * MEGABYTE;

/// All this is about memory: what else the machine does may take as long as it likes.
const CALM: [&str; 6] = ["--election-timeout", "4s", "--commit-timeout", "10m", "--busy-timeout", "10m"];

/// What a process has in memory now, in bytes.
fn memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (kib("RssAnon:") + kib("RssShmem:")) << 10
}

/// Does it, and looks at these processes meanwhile: what each had at most, in bytes.
fn most_during(processes: &[u32], act: impl FnOnce()) -> Vec<u64> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = vec![0; processes.len()];
            loop {
                // Read before the look: what comes last is looked at, too.
                let last = done.load(Ordering::Acquire);
                for (most, process) in most.iter_mut().zip(processes) {
                    *most = memory(*process).max(*most);
                }
                if last {
                    return most;
                }
                // The rate of a measurement, not a wait for anything.
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        // It ends when `act` panics, too.
        let ended = Ended(&done);
        act();
        drop(ended);
        looking.join().unwrap()
    })
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How much of `t` there is, and the size of its database in bytes, on one node.
fn extent(data: &str) -> (u64, u64) {
    let said = works(&["sql", "app", "SELECT count(*) FROM t; PRAGMA page_count; PRAGMA page_size", "--data", data]);
    let numbers: Vec<u64> = said.lines().map(|line| line.parse().unwrap()).collect();
    (numbers[0], numbers[1] * numbers[2])
}

fn leader(members: &Members) -> String {
    let said = works(&["status", "--json", "--data", &members.data(1)]);
    let status: serde_json::Value = serde_json::from_str(&said).unwrap();
    members.data(status[0]["status"]["leader"].as_u64().unwrap() as usize)
}

#[test]
fn a_transaction_and_a_vacuum_of_300_mb_leave_three_nodes_below_400_mb() {
    let dir = tempfile::tempdir().unwrap();
    let (members, nodes) = three_nodes_with(dir.path(), &CALM);
    let processes: Vec<u32> = nodes.iter().flatten().map(Started::id).collect();
    let rows = LARGE / 1000;
    let insert = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         INSERT INTO t(v) SELECT randomblob(1000) FROM n"
    );
    works(&["sql", "app", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)", "--data", &leader(&members)]);
    for sql in [insert.as_str(), "VACUUM"] {
        let most = most_during(&processes, || {
            works(&["sql", "app", sql, "--data", &leader(&members)]);
        });
        println!("{}: {most:?} bytes at most", sql.get(..6).unwrap_or(sql));
        assert!(most.iter().all(|most| *most < BOUND), "{sql}: {most:?} bytes, {BOUND} are allowed");
        let (there, bytes) = extent(&leader(&members));
        assert!(there == rows && bytes > LARGE, "{there} rows, {bytes} bytes");
    }
    let said = works(&["verify", "app", "--endpoints", &members.endpoints()]);
    assert!(said.contains("same"), "{said}");
}

/// Rows of a file that is as large.
const ROWS: i64 = (LARGE / 3000) as i64;

/// A file of random content with one table.
fn file(path: &Path) -> String {
    let db = Connection::open(path).unwrap();
    db.execute_batch("PRAGMA synchronous = OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
         INSERT INTO t(v) SELECT randomblob(3000) FROM n",
        [ROWS],
    )
    .unwrap();
    text(path)
}

#[test]
fn a_node_that_restores_and_backs_up_300_mb_has_less_of_it_in_memory() {
    // 142 MiB were seen: pages of the WAL (`wal_limit`, 64 MiB), lists of them, parts on their way.
    const BOUND: u64 = 200 * MEGABYTE;
    let dir = tempfile::tempdir().unwrap();
    let source = file(&dir.path().join("in.db"));
    assert!(std::fs::metadata(&source).unwrap().len() > LARGE);
    let (node, data) = one_node(dir.path(), &CALM);
    let copy = text(&dir.path().join("out.db"));
    for args in [&["restore", "app", &source, "--yes"][..], &["backup", "app", &copy]] {
        let most = most_during(&[node.id()], || {
            works(&[args, &["--data", &data]].concat());
        });
        println!("{}: {most:?} bytes at most", args[0]);
        assert!(most[0] < BOUND, "{}: {most:?} bytes, {BOUND} are allowed", args[0]);
    }
    let back = Connection::open(&copy).unwrap();
    let there: i64 = back.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!((there, extent(&data).0), (ROWS, ROWS as u64));
}

/// A database of the smallest pages has the most of them, and it is by pages that a WAL is kept in memory: some 350 bytes each, beside
/// the pages themselves and what is on its way. So there is a bound for a file of a given size, and pages of half a kilobyte come
/// closest to it.
#[test]
fn a_restore_of_the_smallest_pages_has_its_lists_in_memory_and_no_more_on_leader_and_followers() {
    const SIZE: u64 = 60 * MEGABYTE;
    const PAGE: u64 = 512;
    // `--wal-limit`, and what is on its way: entries and messages, for which there is `tail_cache_limit` and more.
    const WAL: u64 = 16 << 20;
    const QUEUES: u64 = 64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in.db");
    let db = Connection::open(&source).unwrap();
    db.execute_batch("PRAGMA page_size = 512; PRAGMA synchronous = OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        .unwrap();
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
         INSERT INTO t(v) SELECT randomblob(3000) FROM n",
        [SIZE as i64 / 3000],
    )
    .unwrap();
    drop(db);
    let size = std::fs::metadata(&source).unwrap().len();
    assert!(size > SIZE);
    let (members, nodes) = three_nodes_with(dir.path(), &[&CALM[..], &["--wal-limit", "16MiB"]].concat());
    let processes: Vec<u32> = nodes.iter().flatten().map(Started::id).collect();
    works(&["db", "create", "app", "--page-size", "512", "--data", &leader(&members)]);
    let most = most_during(&processes, || {
        works(&["restore", "app", &text(&source), "--yes", "--data", &leader(&members)]);
    });
    let lists = size / PAGE * 350;
    let bound = WAL + lists + QUEUES;
    println!("{} pages, {lists} bytes of lists; {most:?} bytes at most, {bound} allowed", size / PAGE);
    assert!(most.iter().all(|most| *most < bound), "{most:?} bytes, {bound} are allowed");
    let (rows, bytes) = extent(&leader(&members));
    assert_eq!((rows, bytes), (SIZE / 3000, size));
    let said = works(&["verify", "app", "--endpoints", &members.endpoints()]);
    assert!(said.contains("same"), "{said}");
}
