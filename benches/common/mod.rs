//! What the benches share: their arguments, a directory on a disk, and clusters whose members are processes.
#![allow(dead_code, reason = "every bench takes what it needs")]

use std::fmt::Debug;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use shoaldb::{Builder, Member, Node, rusqlite};

/// Longer than anything that is measured takes.
pub(crate) const LONG: Duration = Duration::from_secs(900);

/// The command line of a bench.
pub(crate) struct Args(Vec<String>);

impl Args {
    pub(crate) fn of_process() -> Args {
        Args(std::env::args().collect())
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().position(|arg| arg == name).and_then(|at| self.0.get(at + 1)).map(String::as_str)
    }

    pub(crate) fn number<T: FromStr<Err: Debug>>(&self, name: &str, or: T) -> T {
        self.value(name).map_or(or, |text| text.parse().unwrap_or_else(|why| panic!("{name} {text}: {why:?}")))
    }

    /// A directory that goes with the bench, below `--dir` or Cargo's. Refuses memory: nothing is synced there, and every
    /// number would be a lie.
    pub(crate) fn directory(&self) -> tempfile::TempDir {
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        let base = self.value("--dir").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let stat = rustix::fs::statfs(&base).expect("statfs");
        assert!(stat.f_type as u64 != TMPFS_MAGIC, "{}: a tmpfs; pass --dir on a disk", base.display());
        tempfile::tempdir_in(base).expect("a directory for the bench")
    }

    /// A directory for nodes whose disk is that of no other node. Memory will do: whoever waits for it is not measured.
    pub(crate) fn directory_apart(&self) -> Option<tempfile::TempDir> {
        let base = self.value("--apart")?;
        Some(tempfile::tempdir_in(base).expect("a directory for nodes apart"))
    }

    /// The node that this process is to be, if another process of the bench started it.
    pub(crate) fn seat(&self) -> Option<Seat> {
        let at = self.0.iter().position(|arg| arg == "--node")?;
        let [id, voters, dir, addresses @ ..] = &self.0[at + 1..] else { panic!("--node ID VOTERS DIR ADDRESS...") };
        let number = |text: &String| text.parse().expect("a number");
        Some(Seat { id: number(id), voters: number(voters), dir: dir.into(), addresses: addresses.to_vec() })
    }
}

/// A node that may be started: which, where, and the addresses of all.
pub(crate) struct Seat {
    id: u64,
    /// How many, from the first on, found the cluster. The others join them.
    voters: u64,
    dir: PathBuf,
    addresses: Vec<String>,
}

impl Seat {
    /// Some that found a cluster, with directories below `dir`, and some that may join it later, with directories below another
    /// one; all with free ports.
    pub(crate) fn all((dir, voters): (&Path, u64), (others_dir, others): (&Path, u64)) -> Vec<Seat> {
        let count = voters + others;
        let held: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let addresses: Vec<_> = held.iter().map(|port| port.local_addr().expect("its address").to_string()).collect();
        let dir = |id: u64| if id <= voters { dir } else { others_dir }.join(id.to_string());
        let seat = |id| Seat { id, voters, dir: dir(id), addresses: addresses.clone() };
        (1..=count).map(seat).collect()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn member(&self) -> Member {
        Member::new(self.id, self.addresses[self.id as usize - 1].clone())
    }

    /// The node in this process.
    pub(crate) fn start(&self, settings: impl FnOnce(Builder) -> Builder) -> Node {
        let builder = Node::builder(self.id, &self.dir).listen(self.addresses[self.id as usize - 1].clone());
        let voters = self.addresses.iter().take(self.voters as usize);
        let builder = if self.id <= self.voters {
            builder.bootstrap(voters.zip(1..).map(|(address, id)| Member::new(id, address.clone())))
        } else {
            builder.join(voters.cloned())
        };
        settings(builder).start().expect("a node")
    }

    /// The node in a process of its own: this program, which finds itself by [`Args::seat`].
    pub(crate) fn spawn(&self) -> Process {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--node", &self.id.to_string(), &self.voters.to_string()])
            .arg(&self.dir)
            .args(&self.addresses)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let said = BufReader::new(child.stdout.take().expect("its output"));
        Process { child, said }
    }
}

/// Keeps a process that is a node until the process that started it lets go.
pub(crate) fn until_input_ends() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

/// A node that is another process. Dropping stops it in order.
pub(crate) struct Process {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a line");
        line.trim().to_string()
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a signal");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Waits until node `id` leads.
pub(crate) fn lead(node: &Node, id: u64) {
    while node.wait_leader(LONG).expect("a leader") != id {
        let _ = node.transfer_leadership(id);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Looks every few milliseconds until it is so.
pub(crate) fn wait(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `RssAnon` and `RssShmem` of a process, in kilobytes: pages of files do not count, the kernel drops them when it needs the
/// room.
pub(crate) fn memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    of("RssAnon:") + of("RssShmem:")
}

/// Seconds of CPU that a process has used, of all its threads.
pub(crate) fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // After the name, which may have blanks: fields 14 and 15, in hundredths on every Linux.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The value below which so many of a thousand sorted values are.
pub(crate) fn at<T: Copy + Default>(sorted: &[T], of_thousand: usize) -> T {
    sorted.get((sorted.len() * of_thousand / 1000).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The middle one of some values, the upper one of an even number.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Fills `t(id INTEGER PRIMARY KEY, v)` up to so many rows of about a page each, in transactions of some megabytes. What is
/// there already stays.
pub(crate) fn fill_pages(db: &rusqlite::Connection, rows: u64) {
    db.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)").expect("a table");
    let there: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("a number");
    for first in (there.unsigned_abs()..rows).step_by(2500) {
        let last = (first + 2500).min(rows);
        db.execute_batch(&format!(
            "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {last})
             INSERT INTO t SELECT i, randomblob(4000) FROM n"
        ))
        .expect("rows");
    }
}
