//! One worker process and calls to it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use serde_json::Value;

use super::wire::{Act, Answer, Failure, Fate, Line, Request, Told};

const SIGKILL: i32 = 9;

/// How a worker is started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) id: u64,
    pub(crate) data: PathBuf,
    /// `1=ADDR,2=ADDR,...`; empty for a node without a socket.
    pub(crate) bootstrap: String,
    pub(crate) listen: Option<String>,
    pub(crate) heartbeat: Duration,
    pub(crate) election_timeout: Duration,
    /// Where its standard error goes.
    pub(crate) log: PathBuf,
    /// Where it notes what it is doing, and where it dies by itself (`recovery:3`).
    pub(crate) phases: Option<PathBuf>,
    pub(crate) die_at: Option<String>,
}

impl Launch {
    fn command(&self) -> io::Result<Command> {
        let mut command = Command::new(&self.program);
        command.arg("worker").arg("--id").arg(self.id.to_string()).arg("--data").arg(&self.data);
        if let Some(listen) = &self.listen {
            command.arg("--listen").arg(listen).arg("--bootstrap").arg(&self.bootstrap);
        }
        command.arg("--heartbeat-ms").arg(self.heartbeat.as_millis().to_string());
        command.arg("--election-ms").arg(self.election_timeout.as_millis().to_string());
        if let Some(phases) = &self.phases {
            command.arg("--phases").arg(phases);
        }
        if let Some(die_at) = &self.die_at {
            command.arg("--die-at").arg(die_at);
        }
        // A group of its own: ctrl-c is for the parent. The parent's end closes stdin, and that ends the worker.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(append_to(&self.log)?);
        Ok(command)
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Replies that are waited for; `None` once the worker is gone.
type Waiting = Arc<Mutex<Option<HashMap<u64, Sender<Answer>>>>>;

/// A running worker. Dropping it kills it.
pub(crate) struct Child {
    process: Mutex<Process>,
    stdin: Mutex<std::process::ChildStdin>,
    waiting: Waiting,
    next: AtomicU64,
    gone: Receiver<()>,
}

struct Process {
    child: std::process::Child,
    /// It ended because [`Child::kill`] killed it.
    killed: bool,
}

impl Child {
    /// Starts a worker; `told` is called by a thread of its own with what the worker tells.
    pub(crate) fn start(launch: &Launch, told: impl Fn(Told) + Send + 'static) -> io::Result<Child> {
        let mut child = launch.command()?.spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the worker has no pipes"));
        };
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (end, gone) = bounded::<()>(0);
        std::thread::Builder::new().name(format!("worker-{}", launch.id)).spawn({
            let waiting = waiting.clone();
            move || {
                listen(BufReader::new(stdout), &waiting, &told);
                // Whoever still waits learns that there will be no answer, when its sender is dropped.
                waiting.lock().take();
                drop(end);
            }
        })?;
        let process = Mutex::new(Process { child, killed: false });
        Ok(Child { process, stdin: Mutex::new(stdin), waiting, next: AtomicU64::new(1), gone })
    }

    /// Asks and waits. No answer is `Unknown`; a request that never left is `NotSent`.
    pub(crate) fn call(&self, act: &Act, limit: Duration) -> Result<Value, Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (to, from) = bounded(1);
        match &mut *self.waiting.lock() {
            Some(waiting) => waiting.insert(id, to),
            None => return Err(failure(Fate::NotSent, "the process is gone")),
        };
        let mut line = serde_json::to_vec(&Request { id, act: act.clone() })
            .map_err(|error| failure(Fate::NotSent, &error.to_string()))?;
        line.push(b'\n');
        if self.stdin.lock().write_all(&line).is_err() {
            // Part of it may have been read, but never its end.
            return Err(failure(Fate::NotSent, "the process is gone"));
        }
        match from.recv_timeout(limit) {
            Ok(Answer::Ok(value)) => Ok(value),
            Ok(Answer::Err(failure)) => Err(failure),
            Err(RecvTimeoutError::Disconnected) => Err(failure(Fate::Unknown, "the process died before it answered")),
            Err(RecvTimeoutError::Timeout) => Err(failure(Fate::Unknown, &format!("no answer within {limit:?}"))),
        }
    }

    /// For signals other than SIGKILL. Valid until [`Child::kill`].
    pub(crate) fn pid(&self) -> u32 {
        self.process.lock().child.id()
    }

    /// SIGKILL. Returns when the process is gone and everything it said has been read.
    pub(crate) fn kill(&self) {
        let mut process = self.process.lock();
        if !process.killed && matches!(process.child.try_wait(), Ok(None)) {
            let _ = process.child.kill();
            // One that had begun to end in another way was not killed.
            let ended = process.child.wait();
            process.killed = ended.map_or(true, |status| status.signal() == Some(SIGKILL));
        }
        let _ = self.gone.recv();
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait_gone(&self, limit: Duration) -> bool {
        let gone = matches!(self.gone.recv_timeout(limit), Err(RecvTimeoutError::Disconnected));
        if gone {
            let _ = self.process.lock().child.wait();
        }
        gone
    }

    /// How it ended, if it has.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        self.process.lock().child.try_wait().ok().flatten()
    }

    /// How it ended, if it has and [`Child::kill`] is not why: also a SIGKILL of itself, or of a system that is out of memory.
    pub(crate) fn ended_by_itself(&self) -> Option<ExitStatus> {
        let mut process = self.process.lock();
        if process.killed { None } else { process.child.try_wait().ok().flatten() }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.waiting.lock().is_none()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn failure(outcome: Fate, text: &str) -> Failure {
    Failure { outcome, leader: None, text: text.to_string() }
}

fn listen(mut from: impl BufRead, waiting: &Waiting, told: &impl Fn(Told)) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.read_until(b'\n', &mut line) {
            Ok(read) if read > 0 && line.ends_with(b"\n") => {}
            _ => return,
        }
        match serde_json::from_slice(&line) {
            Ok(Line::Reply(reply)) => {
                let to = waiting.lock().as_mut().and_then(|waiting| waiting.remove(&reply.id));
                if let Some(to) = to {
                    let _ = to.send(reply.answer);
                }
            }
            Ok(Line::Event { event }) => told(event),
            Err(error) => told(Told::Trouble { text: format!("a line of the worker is not understood: {error}") }),
        }
    }
}
