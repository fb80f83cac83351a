//! Three node processes, as their parent has them: started, asked, killed.
//!
//! A process that is gone answers nothing more: whatever it was asked and had not answered is unknown. One that lives and
//! does not answer within [`PATIENCE`] hangs, which is a finding of its own. So is one that ended and that nobody killed, however it
//! ended: a crash in C and a system that is out of memory leave no word in its log.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use serde_json::Value;

use crate::wire::{Answer, Failure, Fate, Job, Reply, Request};

/// No job takes that long on a node that lives: a commit gives up after ten seconds, a part of a large one too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);
/// Below the ports that systems give to outgoing connections, so that nothing takes a killed node's before it is back.
const FIRST_PORT: u32 = 21_000;

pub(crate) const NODES: [u64; 3] = [1, 2, 3];

/// Who waits for which answer; `None` once the process is gone.
type Waiting = Arc<Mutex<Option<HashMap<u64, Sender<Answer>>>>>;

const SIGKILL: i32 = 9;

pub(crate) struct Child {
    pub(crate) pid: u32,
    process: Mutex<Process>,
    stdin: Mutex<std::process::ChildStdin>,
    waiting: Waiting,
    next: AtomicU64,
}

struct Process {
    child: std::process::Child,
    /// It ended because [`Child::kill`] killed it.
    killed: bool,
}

pub(crate) struct Cluster {
    dir: PathBuf,
    addresses: Vec<String>,
    children: [Mutex<Option<Arc<Child>>>; 3],
    /// Nodes that had ended by themselves before they were killed.
    ended: Mutex<Vec<(u64, ExitStatus)>>,
    /// Who is thought to lead.
    leader: AtomicU64,
}

impl Cluster {
    pub(crate) fn new(dir: &Path) -> io::Result<Cluster> {
        let from = FIRST_PORT + std::process::id() % 9000;
        let held: Vec<TcpListener> = (from..from + 500)
            .filter_map(|port| TcpListener::bind(("127.0.0.1", u16::try_from(port).ok()?)).ok())
            .take(NODES.len())
            .collect();
        let addresses = held.iter().map(|port| Ok(port.local_addr()?.to_string())).collect::<io::Result<Vec<_>>>()?;
        if addresses.len() < NODES.len() {
            return Err(io::Error::other(format!("no free ports from {from} on")));
        }
        Ok(Cluster {
            dir: dir.to_path_buf(),
            addresses,
            children: Default::default(),
            ended: Mutex::default(),
            leader: AtomicU64::new(1),
        })
    }

    /// The data directory of a node.
    pub(crate) fn data(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node-{id}"))
    }

    /// What a node's process has said in words.
    pub(crate) fn log(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node-{id}.log"))
    }

    pub(crate) fn child(&self, id: u64) -> Option<Arc<Child>> {
        self.children[id as usize - 1].lock().clone()
    }

    pub(crate) fn start(&self, id: u64) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(self.log(id))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--node", &id.to_string()])
            .arg(self.data(id))
            .args(&self.addresses)
            // A group of its own: ctrl-c is for the parent, whose end closes stdin.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        *self.children[id as usize - 1].lock() = Some(Arc::new(Child::start(&mut command)?));
        Ok(())
    }

    pub(crate) fn kill(&self, id: u64) {
        // Nothing is locked while it ends: whoever looks after all of them takes these locks in another order.
        let child = self.children[id as usize - 1].lock().take();
        if let Some(child) = child {
            child.kill();
            self.ended.lock().extend(child.ended_by_itself().map(|ended| (id, ended)));
        }
    }

    /// A process that ended and that nobody killed, if there was one at any time, in words.
    pub(crate) fn ended_by_itself(&self) -> Option<String> {
        let of = |id: u64| Some((id, self.child(id)?.ended_by_itself()?));
        let before = self.ended.lock().first().copied();
        let (id, ended) = before.or_else(|| NODES.into_iter().find_map(of))?;
        Some(format!("node {id} ended by itself: {ended}"))
    }

    /// Who is thought to lead.
    pub(crate) fn leader(&self) -> u64 {
        self.leader.load(Ordering::Relaxed)
    }

    pub(crate) fn ask(&self, id: u64, job: &Job) -> Result<(u64, Value), Failure> {
        match self.child(id) {
            Some(child) => child.call(job),
            None => Err(Failure::new(Fate::NotCommitted, format!("node {id} does not run"))),
        }
    }

    /// One attempt on whoever is thought to lead. After a failure, somebody else may be.
    pub(crate) fn on_leader(&self, job: &Job) -> Result<(u64, Value), Failure> {
        let asked = self.leader();
        let result = self.ask(asked, job);
        if let Err(failure) = &result {
            let next = failure.leader.filter(|leader| NODES.contains(leader)).unwrap_or(asked % 3 + 1);
            let _ = self.leader.compare_exchange(asked, next, Ordering::Relaxed, Ordering::Relaxed);
        }
        result
    }
}

impl Child {
    /// Starts a process with pipes for its standard input and output.
    fn start(command: &mut Command) -> io::Result<Child> {
        let mut child = command.spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the process has no pipes"));
        };
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        std::thread::spawn({
            let waiting = waiting.clone();
            move || {
                listen(BufReader::new(stdout), &waiting);
                // Whoever still waits hears that there will be no answer.
                waiting.lock().take();
            }
        });
        Ok(Child {
            pid: child.id(),
            process: Mutex::new(Process { child, killed: false }),
            stdin: Mutex::new(stdin),
            waiting,
            next: AtomicU64::new(1),
        })
    }

    pub(crate) fn call(&self, job: &Job) -> Result<(u64, Value), Failure> {
        let gone = || Failure::new(Fate::NotCommitted, "the process is gone");
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Request { id, job: job.clone() })
            .map_err(|error| Failure::new(Fate::NotCommitted, error.to_string()))?;
        line.push(b'\n');
        let (to, from) = bounded(1);
        self.waiting.lock().as_mut().ok_or_else(gone)?.insert(id, to);
        // Part of a line that could not be written as a whole may have been read, but never its end.
        self.stdin.lock().write_all(&line).map_err(|_| gone())?;
        match from.recv_timeout(PATIENCE) {
            Ok(Answer::Ok { micros, value }) => Ok((micros, value)),
            Ok(Answer::Err(failure)) => Err(failure),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Failure::new(Fate::Unknown, "the process died before it answered"))
            }
            Err(RecvTimeoutError::Timeout) => {
                Err(Failure::new(Fate::Unsaid, format!("no answer within {PATIENCE:?}: it hangs")))
            }
        }
    }

    fn kill(&self) {
        let mut process = self.process.lock();
        if !process.killed && matches!(process.child.try_wait(), Ok(None)) {
            let _ = process.child.kill();
            // One that had begun to end in another way was not killed.
            let ended = process.child.wait();
            process.killed = ended.map_or(true, |status| status.signal() == Some(SIGKILL));
        }
    }

    /// How it ended, if it has and [`Child::kill`] is not why.
    fn ended_by_itself(&self) -> Option<ExitStatus> {
        let mut process = self.process.lock();
        if process.killed { None } else { process.child.try_wait().ok().flatten() }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn listen(mut from: impl BufRead, waiting: &Waiting) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.read_until(b'\n', &mut line) {
            Ok(read) if read > 0 && line.ends_with(b"\n") => {}
            _ => return,
        }
        match serde_json::from_slice::<Reply>(&line) {
            Ok(reply) => {
                let to = waiting.lock().as_mut().and_then(|waiting| waiting.remove(&reply.id));
                if let Some(to) = to {
                    let _ = to.send(reply.answer);
                }
            }
            Err(error) => eprintln!("soak: a line of a node is not understood: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// A cluster of which one node is a process that does nothing, ended by a signal of ours, if any.
    fn with_one(id: u64, signal: Option<Signal>) -> Cluster {
        let cluster = Cluster::new(Path::new("nowhere")).unwrap();
        let child = Child::start(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
        if let Some(signal) = signal {
            kill_process(Pid::from_raw(child.pid as i32).unwrap(), signal).unwrap();
            // Until it has ended; it stays there to be seen.
            let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
            rustix::process::waitid(rustix::process::WaitId::Pid(Pid::from_raw(child.pid as i32).unwrap()), options)
                .unwrap();
        }
        *cluster.children[id as usize - 1].lock() = Some(Arc::new(child));
        cluster
    }

    /// Once only its log was looked at, where SIGSEGV, SIGBUS and a system without memory write nothing; the node was started again as
    /// if it had been killed.
    #[test]
    fn a_node_that_ends_and_that_nobody_killed_is_a_finding() {
        for (signal, text) in [(Signal::SEGV, "signal: 11"), (Signal::BUS, "signal: 7"), (Signal::KILL, "signal: 9")] {
            let seen = with_one(2, Some(signal));
            let what = seen.ended_by_itself().unwrap_or_default();
            assert!(what.starts_with("node 2 ended by itself") && what.contains(text), "{what}");
            // Nobody looked before it was drawn as a victim.
            let late = with_one(3, Some(signal));
            late.kill(3);
            let what = late.ended_by_itself().unwrap_or_default();
            assert!(what.starts_with("node 3 ended by itself") && what.contains(text), "{what}");
        }
    }

    /// Once each of them could hold what the other waited for, and the soak never ended.
    #[test]
    fn who_kills_and_who_looks_do_not_wait_for_each_other() {
        let (to, from) = bounded(0);
        std::thread::spawn(move || {
            let cluster = with_one(1, None);
            let done = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        assert_eq!(cluster.ended_by_itself(), None);
                    }
                });
                for _ in 0..100 {
                    cluster.kill(1);
                    *cluster.children[0].lock() = with_one(1, None).children[0].lock().take();
                }
                done.store(true, Ordering::Relaxed);
            });
            let _ = to.send(());
        });
        assert_eq!(from.recv_timeout(PATIENCE), Ok(()));
    }

    #[test]
    fn a_node_that_runs_or_was_killed_is_none() {
        let cluster = with_one(1, None);
        assert_eq!(cluster.ended_by_itself(), None);
        let child = cluster.child(1).unwrap();
        cluster.kill(1);
        assert_eq!((cluster.ended_by_itself(), child.ended_by_itself()), (None, None));
    }
}
