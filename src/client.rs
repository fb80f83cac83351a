//! Administration from outside: what the program `shoal` says to a node, over TCP or the node's admin socket.
//!
//! Several endpoints are several doors to the same cluster. Questions are asked behind all of them at once, so that a node that
//! is frozen costs nobody the answer of another one. What the leader does is asked of the leader, which is waited for when there
//! is none at the moment (`leader.rs`); anything else of the first door, in their order, behind which somebody can do it. A
//! request that may have been carried out is not sent again: that is for the caller to decide.
//!
//! Deliberately absent: output, and exit codes.

mod door;
mod leader;
pub mod session;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shoaldb_vfs::env::Rng;
use shoaldb_vfs::env::os::OsRng;

pub use crate::admin::verify::{NodeVerified, Verified};
use crate::admin::{self, Request};
use crate::db::CreateOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Progress;
use crate::receipt::{Receipt, ReceiptOutcome};
use crate::status::Status;
use crate::types::NodeId;
use door::Door;
pub use leader::Seat;
use leader::{Found, Leads};

/// Time between two looks at how far a node is with something.
const LOOK: Duration = Duration::from_millis(100);

/// Where nodes are reached.
#[derive(Clone, Debug)]
pub enum Doors {
    /// Addresses of nodes of one cluster.
    Endpoints(Vec<String>),
    /// The data directory of a node on this machine.
    Directory(PathBuf),
}

/// For how long something is waited for that may never come.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For the first word of a node: one that runs says it at once.
    first_word: Duration,
    /// For a leader: some elections, as they take with a node's own settings.
    leader: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { first_word: Duration::from_secs(5), leader: Duration::from_secs(5) }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Client {
    doors: Vec<Door>,
    patience: Patience,
}

impl Client {
    /// A client; connects with each call.
    pub fn new(doors: Doors) -> Client {
        let doors = match doors {
            Doors::Endpoints(all) => all.into_iter().map(Door::Endpoint).collect(),
            Doors::Directory(dir) => vec![Door::Directory(dir)],
        };
        Client { doors, patience: Patience::default() }
    }

    /// What each node says of itself, in the order of the doors, with the door's name.
    pub fn status(&self) -> Vec<(String, Result<Status>)> {
        self.each(&Request::Status, door::status)
    }

    /// Whether each node is well: it follows a leader or leads, shows all that was committed when it was asked (what it waits
    /// for, for one election timeout at most), and has no alarm ([`Status::alarms`]). An error says in words what is wrong;
    /// [`ErrorKind::NotLeader`] is a node that knows of no leader, [`ErrorKind::Timeout`] one that lags.
    pub fn health(&self) -> Vec<(String, Result<()>)> {
        self.each(&Request::Health, |_| Ok(()))
    }

    /// The databases of the cluster, as the leader has them if it is behind one of the doors, else as the first does that answers.
    pub fn databases(&self) -> Result<Status> {
        let mut answers: Vec<Option<Result<Status>>> = self.doors.iter().map(|_| None).collect();
        for (at, answer) in self.ask_all(&Request::Status) {
            match answer.and_then(door::status) {
                Ok(status) if leader::leads(&status) => return Ok(status),
                answer => answers[at] = Some(answer),
            }
        }
        let mut refusals = Vec::new();
        for answer in answers.into_iter().flatten() {
            match answer {
                Ok(status) => return Ok(status),
                Err(error) => refusals.push(error),
            }
        }
        Err(together(refusals))
    }

    /// Creates a database.
    pub fn create(&self, name: &str, options: CreateOptions) -> Result<()> {
        let auto_vacuum = options.auto_vacuum.number();
        self.on_leader(|door| {
            self.ask(door, &Request::Create { name: name.to_string(), page_size: options.page_size, auto_vacuum })
        })
        .map(drop)
    }

    /// Drops a database.
    pub fn drop_database(&self, name: &str) -> Result<()> {
        self.on_leader(|door| self.ask(door, &Request::Drop { name: name.to_string() })).map(drop)
    }

    /// Makes node `to` the leader.
    pub fn transfer(&self, to: u16) -> Result<()> {
        self.on_leader(|door| self.ask(door, &Request::Transfer { to: NodeId(to) })).map(drop)
    }

    /// What became of the transaction that a receipt names: the proof of the first door that has one. A door that does not
    /// answer, or is of another cluster, hides none that does.
    pub fn outcome_of(&self, receipt: &Receipt) -> Result<ReceiptOutcome> {
        let (mut unknown, mut refusals) = (None, Vec::new());
        for (_, answer) in self.ask_all(&Request::Outcome { receipt: *receipt }) {
            let answer = answer.and_then(|value| {
                serde_json::from_value(value)
                    .map_err(|error| Error::new(ErrorKind::Io, format!("the outcome: {error}")))
            });
            match answer {
                Ok(ReceiptOutcome::Unknown(_)) => unknown = Some(answer),
                Ok(_) => return answer,
                Err(error) => refusals.push(error),
            }
        }
        unknown.unwrap_or_else(|| Err(together(refusals)))
    }

    /// Brings in a member that listens.
    pub fn add_learner(&self, id: u16, address: &str) -> Result<()> {
        admin::check_shape(address)?;
        self.on_leader(|door| self.ask(door, &Request::AddLearner { node: NodeId(id), address: address.to_string() }))
            .map(drop)
    }

    /// Lets a learner vote.
    pub fn promote(&self, id: u16) -> Result<()> {
        self.on_leader(|door| self.ask(door, &Request::Promote { node: NodeId(id) })).map(drop)
    }

    /// Takes a member out.
    pub fn remove(&self, id: u16) -> Result<()> {
        self.on_leader(|door| self.ask(door, &Request::Remove { node: NodeId(id) })).map(drop)
    }

    /// Lets a learner take the place of a voter.
    pub fn replace(&self, old: u16, new: u16) -> Result<()> {
        self.on_leader(|door| self.ask(door, &Request::Replace { old: NodeId(old), new: NodeId(new) })).map(drop)
    }

    /// Compares what all nodes have of a database, or of all. The first door that answers asks the other nodes.
    pub fn verify(&self, name: Option<&str>, deep: bool) -> Result<Vec<Verified>> {
        let request = Request::Verify { name: name.map(str::to_string), deep };
        let value = self.first(|door| self.ask(door, &request))?;
        serde_json::from_value(value).map_err(|error| Error::new(ErrorKind::Io, format!("the verdict: {error}")))
    }

    /// Has a node write a database to a file on its machine. `told` hears how far it is, some times a second.
    pub fn backup(&self, name: &str, path: &Path, mut told: impl FnMut(Progress)) -> Result<()> {
        let (name, path) = (name.to_string(), absolute(path)?);
        self.first(|door| {
            self.job(door, |job| Request::Backup { name: name.clone(), path: path.clone(), job }, &mut told)
        })
    }

    /// Has the leader make the content of a file on its machine that of a database.
    pub fn restore(&self, name: &str, path: &Path, mut told: impl FnMut(Progress)) -> Result<()> {
        let (name, path) = (name.to_string(), absolute(path)?);
        self.on_leader(|door| {
            self.job(door, |job| Request::Restore { name: name.clone(), path: path.clone(), job }, &mut told)
        })
    }

    fn job(&self, door: &Door, request: impl Fn(u64) -> Request, told: &mut impl FnMut(Progress)) -> Result<()> {
        let door = &Door::Directory(self.directory_behind(door)?);
        let job = OsRng.next_u64();
        let request = request(job);
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let answer = std::thread::scope(|scope| {
            let asked = scope.spawn(move || {
                let _end = end;
                self.ask(door, &request)
            });
            // Nothing is ever sent: the other end goes away when there is an answer.
            while ended.recv_timeout(LOOK).is_err_and(|error| error.is_timeout()) {
                let progress = self.ask(door, &Request::Progress { job });
                progress.ok().and_then(|value| serde_json::from_value(value).ok()).into_iter().for_each(&mut *told);
            }
            asked.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "the thread that asked panicked")))
        });
        answer.map(drop)
    }

    fn ask(&self, door: &Door, request: &Request) -> Result<serde_json::Value> {
        door.ask(request, self.patience.first_word)
    }

    /// Where the node behind a door has its admin socket: there a program is known to be its owner's.
    fn directory_behind(&self, door: &Door) -> Result<PathBuf> {
        if let Door::Directory(dir) = door {
            return Ok(dir.clone());
        }
        match self.ask(door, &Request::Directory)? {
            serde_json::Value::String(dir) => Ok(dir.into()),
            _ => Err(Error::new(ErrorKind::Io, format!("{}: this node has no directory of its own", door.name()))),
        }
    }

    /// The answer of the first door behind which is somebody who can give it.
    fn first<T>(&self, mut ask: impl FnMut(&Door) -> Result<T>) -> Result<T> {
        let mut refusals = Vec::new();
        for door in &self.doors {
            match ask(door) {
                Err(error) if error.kind() == ErrorKind::NotLeader => refusals.push(error),
                result => return result,
            }
        }
        Err(together(refusals))
    }

    /// The answer of the leader, or of somebody who knows it and passes the request on. Waits for one to be elected; `NotLeader`
    /// says that nothing was done, so that it may be asked for again.
    fn on_leader<T>(&self, mut ask: impl FnMut(&Door) -> Result<T>) -> Result<T> {
        let until = Instant::now() + self.patience.leader;
        let mut refused = Vec::new();
        loop {
            let Found { leads, order, silent } = self.find_leader(until);
            let mut refusals = Vec::new();
            for (at, _) in &order {
                match ask(&self.doors[*at]) {
                    Err(error) if error.kind() == ErrorKind::NotLeader => refusals.push(error),
                    result => return result,
                }
            }
            match refusals.is_empty() {
                true if refused.is_empty() => return Err(together(silent)),
                // Who answered before is gone: what they said still is the reason.
                true => {}
                false => refused = refusals,
            }
            let knows_leader = refused.iter().any(|why| why.leader().is_some());
            // It lives, and cannot be reached through these doors.
            if leads == Leads::Elsewhere && knows_leader {
                return Err(together(refused));
            }
            if Instant::now() >= until {
                return Err(self.leaderless(&together(refused)));
            }
            std::thread::sleep(leader::PACE);
        }
    }

    /// What each door answers, as it comes.
    fn ask_all(&self, request: &Request) -> crossbeam_channel::Receiver<(usize, Result<serde_json::Value>)> {
        let (to, answers) = crossbeam_channel::unbounded();
        for (at, door) in self.doors.iter().enumerate() {
            let (door, request, first_word) = (door.clone(), request.clone(), self.patience.first_word);
            door::on_a_thread(&to, at, move |to| {
                // Nobody may wait for it any more.
                let _ = to.send((at, door.ask(&request, first_word)));
            });
        }
        answers
    }

    fn each<T>(&self, request: &Request, parse: impl Fn(serde_json::Value) -> Result<T>) -> Vec<(String, Result<T>)> {
        let mut all: Vec<_> = self.doors.iter().map(|door| (door.name(), Err(nobody()))).collect();
        for (at, answer) in self.ask_all(request) {
            all[at].1 = answer.and_then(&parse);
        }
        all
    }
}

/// A path that means the same to a node, whose working directory is another one.
fn absolute(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path)?;
    let text = absolute.to_str().map(str::to_string);
    text.ok_or_else(|| Error::new(ErrorKind::BadInput, format!("{}: a name that is not UTF-8", path.display())))
}

/// Why nothing was done behind any door: all that was said, once each. The last one is what it is about, unless one knows more.
fn together(mut refusals: Vec<Error>) -> Error {
    if let Some(knows) = refusals.iter().position(|error| error.leader().is_some()) {
        return refusals.swap_remove(knows);
    }
    let Some(last) = refusals.last() else { return nobody() };
    let mut texts: Vec<String> = Vec::new();
    for text in refusals.iter().map(ToString::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    Error::new(last.kind(), texts.join("; "))
}

fn nobody() -> Error {
    Error::new(ErrorKind::BadInput, "no endpoint was given")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    const LONG: Duration = Duration::from_secs(30);

    /// The silent one would be waited for longer than this test waits.
    #[test]
    fn a_node_that_says_nothing_costs_nobody_the_answer_of_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(dir.path()).unwrap();
        // The kernel takes the connection.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let doors =
            vec![Door::Endpoint(silent.local_addr().unwrap().to_string()), Door::Directory(dir.path().to_path_buf())];
        let patience = Patience { first_word: 100 * LONG, leader: 100 * LONG };
        let client = Client { doors, patience };
        let db = node.connect("app").unwrap();
        db.execute_batch("CREATE TABLE t(x)").unwrap();
        let receipt = db.last_receipt().unwrap();
        let (to, done) = crossbeam_channel::bounded(1);
        std::thread::spawn(move || {
            let seat = client.seat().unwrap();
            client.create("two", CreateOptions::default()).unwrap();
            let databases = client.databases().unwrap().databases.len();
            to.send((seat.node, seat.leaderless, databases, client.outcome_of(&receipt).unwrap())).unwrap();
        });
        let (id, leaderless, databases, outcome) = done.recv_timeout(LONG).unwrap();
        assert_eq!((id, leaderless, databases), (1, None, 2));
        assert!(matches!(outcome, ReceiptOutcome::Committed(_)), "{outcome:?}");
    }
}
