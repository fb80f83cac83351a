//! The program in the hands of a user: run it, look at what it prints, wait for what it says.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use socket2::Socket;

use crate::ports::{bound, free_ports};

pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) fn shoal(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    let ours = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("SHOAL_");
    for (variable, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
        command.env_remove(variable);
    }
    command.args(args);
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    shoal(args).output().unwrap()
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The reason, which is one line that begins with the program's name.
pub(crate) fn fails(args: &[&str], code: i32) -> String {
    let output = run(args);
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}{}", out(&output));
    assert_eq!(out(&output), "", "{args:?}");
    let reasons: Vec<&str> = text.lines().filter(|line| line.starts_with("shoal: ")).collect();
    assert_eq!(reasons.len(), 1, "{args:?}: {text}");
    reasons[0].to_string()
}

pub(crate) fn works(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    out(&output)
}

/// What `health` and `transfer` say, with exit code 1, while nodes have not heard of each other yet, or one stood still for a
/// moment.
const PASSES: [&str; 8] = [
    "no leader known",
    "did not learn within",
    "the disk has not answered",
    "was not heard of lately",
    "is not bound to a data directory yet",
    "try again when it has caught up",
    "did not take over in time",
    "became the leader instead of",
];

/// Until it works; for what needs a leader that is not elected yet, or all members.
pub(crate) fn works_in_time(args: &[&str]) -> String {
    let deadline = Instant::now() + LONG;
    loop {
        let output = run(args);
        if output.status.success() {
            return out(&output);
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        // Both may be done twice.
        let may_pass = output.status.code() == Some(1) && ["health", "transfer"].contains(&args[0]);
        let passes = may_pass && PASSES.iter().any(|words| reason.contains(words));
        assert!(output.status.code() == Some(4) || passes, "{args:?}: {reason}");
        assert!(Instant::now() < deadline, "{args:?}: {reason}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Where the nodes of a cluster of three are.
pub(crate) struct Members {
    dir: PathBuf,
    pub(crate) address: Vec<String>,
}

impl Members {
    pub(crate) fn endpoints(&self) -> String {
        self.address.join(",")
    }

    pub(crate) fn data(&self, id: usize) -> String {
        text(&self.dir.join(id.to_string()))
    }

    /// Starts a node with these settings besides, and waits until it is ready.
    pub(crate) fn start_with(&self, id: usize, more: &[&str]) -> Started {
        let list: Vec<String> = (1..).zip(&self.address).map(|(id, address)| format!("{id}={address}")).collect();
        let (data, number, list) = (self.data(id), id.to_string(), list.join(","));
        let args = ["start", "--id", &number, "--data", &data, "--listen", &self.address[id - 1], "--bootstrap", &list];
        let node = Started::new(shoal(&args).args(more));
        node.wait_line("ready");
        node
    }
}

/// Three nodes, of which one leads.
pub(crate) fn three_nodes(dir: &Path) -> (Members, Vec<Option<Started>>) {
    three_nodes_with(dir, &[])
}

/// The same for tests in which who leads is to go on: nobody misses a process that stands still for a moment.
pub(crate) fn three_calm_nodes(dir: &Path) -> (Members, Vec<Option<Started>>) {
    three_nodes_with(dir, &["--election-timeout", "4s"])
}

/// The same with more settings.
pub(crate) fn three_nodes_with(dir: &Path, more: &[&str]) -> (Members, Vec<Option<Started>>) {
    let address = free_ports(3).iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let members = Members { dir: dir.to_path_buf(), address };
    let nodes = (1..=3).map(|id| Some(members.start_with(id, more))).collect();
    works_in_time(&["health", "--endpoints", &members.endpoints()]);
    (members, nodes)
}

/// A running `shoal start`; killed when dropped.
pub(crate) struct Started {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Started {
    pub(crate) fn new(command: &mut Command) -> Started {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let (to, lines) = mpsc::channel();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Started { process, lines }
    }

    pub(crate) fn wait_line(&self, with: &str) -> String {
        self.lines_until(with).pop().unwrap()
    }

    /// What it says up to the first line with these words.
    pub(crate) fn lines_until(&self, with: &str) -> Vec<String> {
        let deadline = Instant::now() + LONG;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => seen.push(line),
                Err(_) => panic!("no line with {with:?} in {seen:#?}"),
            }
            if seen.last().is_some_and(|line| line.contains(with)) {
                return seen;
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Processor time that it used, in the ticks of the system (a hundred per second).
    pub(crate) fn processor_time(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// It ends by itself: the exit code.
    pub(crate) fn ended(mut self) -> i32 {
        self.process.wait().unwrap().code().unwrap()
    }

    pub(crate) fn terminate(mut self) -> i32 {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        self.process.wait().unwrap().code().unwrap()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address where nobody listens, and nobody else can as long as it lives.
pub(crate) struct Closed(Socket);

impl Closed {
    pub(crate) fn new() -> Closed {
        Closed(bound(0, false).unwrap())
    }

    pub(crate) fn address(&self) -> String {
        self.0.local_addr().unwrap().as_socket().unwrap().to_string()
    }
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}

/// A cluster of one that is ready to write, and where it is.
pub(crate) fn one_node(dir: &Path, more: &[&str]) -> (Started, String) {
    let data = text(&dir.join("data"));
    let mut args = vec!["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"];
    args.extend(more);
    let node = Started::new(&mut shoal(&args));
    node.wait_line("ready");
    works_in_time(&["health", "--data", &data]);
    (node, data)
}
