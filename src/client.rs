//! Administration from outside: what the program `shoal` says to a node, over TCP or the node's admin socket.
//!
//! Several endpoints are several doors to the same cluster: the next one is tried when a node was not reached or knows
//! of no leader. A request that may have been carried out is not sent again: that is for the caller to decide.
//!
//! Deliberately absent: output, and exit codes.

pub mod session;

use std::path::{Path, PathBuf};
use std::time::Duration;

use shoaldb_vfs::env::Rng;
use shoaldb_vfs::env::os::OsRng;

pub use crate::admin::verify::{NodeVerified, Verified};
use crate::admin::{self, Reply, Request};
use crate::db::CreateOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Progress;
use crate::net::{RequestError, tcp};
use crate::receipt::{Receipt, ReceiptOutcome};
use crate::socket;
use crate::status::Status;
use crate::types::NodeId;

/// How long a connection may take. Nodes are on this machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a node may work on one answer: whoever asked may end it.
const LONG_PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Time between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// Where nodes are reached.
#[derive(Clone, Debug)]
pub enum Doors {
    /// Addresses of nodes of one cluster.
    Endpoints(Vec<String>),
    /// The data directory of a node on this machine.
    Directory(PathBuf),
}

/// One door.
#[derive(Clone, Debug)]
enum Door {
    Endpoint(String),
    Directory(PathBuf),
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Client {
    doors: Vec<Door>,
}

impl Client {
    /// A client; connects with each call.
    pub fn new(doors: Doors) -> Client {
        let doors = match doors {
            Doors::Endpoints(all) => all.into_iter().map(Door::Endpoint).collect(),
            Doors::Directory(dir) => vec![Door::Directory(dir)],
        };
        Client { doors }
    }

    /// What each node says of itself, in the order of the doors, with the door's name.
    pub fn status(&self) -> Vec<(String, Result<Status>)> {
        self.each(&Request::Status, |value| {
            serde_json::from_value(value).map_err(|error| Error::new(ErrorKind::Io, format!("its status: {error}")))
        })
    }

    /// Whether each node is well: it follows a leader or leads, shows all that was committed when it was asked (what it waits
    /// for, for one election timeout at most), and has no alarm ([`Status::alarms`]). An error says in words what is wrong;
    /// [`ErrorKind::NotLeader`] is a node that knows of no leader, [`ErrorKind::Timeout`] one that lags.
    pub fn health(&self) -> Vec<(String, Result<()>)> {
        self.each(&Request::Health, |_| Ok(()))
    }

    /// The data directory of the node that leads, if it is behind one of the doors, else of the first one that answers: for what
    /// an admin socket alone can do.
    pub fn directory(&self) -> Result<PathBuf> {
        let (mut other, mut why) = (None, None);
        for door in &self.doors {
            match door.ask(&Request::Status) {
                Ok(status) if status["role"] == "leader" => return door.directory(),
                Ok(_) => other = other.or(Some(door)),
                Err(error) => why = Some(error),
            }
        }
        other.map_or_else(|| Err(why.unwrap_or_else(nobody)), Door::directory)
    }

    /// The databases of the cluster, as the first node that answers has them.
    pub fn databases(&self) -> Result<Status> {
        let mut why = None;
        for (_, status) in self.status() {
            match status {
                Ok(status) => return Ok(status),
                Err(error) => why = Some(error),
            }
        }
        Err(why.unwrap_or_else(nobody))
    }

    /// Creates a database.
    pub fn create(&self, name: &str, options: CreateOptions) -> Result<()> {
        let auto_vacuum = options.auto_vacuum.number();
        self.any(&Request::Create { name: name.to_string(), page_size: options.page_size, auto_vacuum })
    }

    /// Drops a database.
    pub fn drop_database(&self, name: &str) -> Result<()> {
        self.any(&Request::Drop { name: name.to_string() })
    }

    /// Makes node `to` the leader.
    pub fn transfer(&self, to: u16) -> Result<()> {
        self.any(&Request::Transfer { to: NodeId(to) })
    }

    /// What became of the transaction that a receipt names: the proof of the first door that has one. A door that does not
    /// answer, or is of another cluster, hides none that does.
    pub fn outcome_of(&self, receipt: &Receipt) -> Result<ReceiptOutcome> {
        let mut best = Err(nobody());
        for door in &self.doors {
            let answer = door.ask(&Request::Outcome { receipt: *receipt }).and_then(|value| {
                serde_json::from_value(value)
                    .map_err(|error| Error::new(ErrorKind::Io, format!("the outcome: {error}")))
            });
            match answer {
                Ok(ReceiptOutcome::Unknown(_)) => best = answer,
                Ok(_) => return answer,
                Err(_) if best.is_ok() => {}
                Err(_) => best = answer,
            }
        }
        best
    }

    /// Brings in a member that listens.
    pub fn add_learner(&self, id: u16, address: &str) -> Result<()> {
        admin::check_shape(address)?;
        self.any(&Request::AddLearner { node: NodeId(id), address: address.to_string() })
    }

    /// Lets a learner vote.
    pub fn promote(&self, id: u16) -> Result<()> {
        self.any(&Request::Promote { node: NodeId(id) })
    }

    /// Takes a member out.
    pub fn remove(&self, id: u16) -> Result<()> {
        self.any(&Request::Remove { node: NodeId(id) })
    }

    /// Lets a learner take the place of a voter.
    pub fn replace(&self, old: u16, new: u16) -> Result<()> {
        self.any(&Request::Replace { old: NodeId(old), new: NodeId(new) })
    }

    /// Compares what all nodes have of a database, or of all. The first door that answers asks the other nodes.
    pub fn verify(&self, name: Option<&str>, deep: bool) -> Result<Vec<Verified>> {
        let request = Request::Verify { name: name.map(str::to_string), deep };
        let value = self.first(|door| door.ask(&request))?;
        serde_json::from_value(value).map_err(|error| Error::new(ErrorKind::Io, format!("the verdict: {error}")))
    }

    /// Has a node write a database to a file on its machine. `told` hears how far it is, some times a second.
    pub fn backup(&self, name: &str, path: &Path, told: impl FnMut(Progress)) -> Result<()> {
        let (name, path) = (name.to_string(), absolute(path)?);
        self.job(|job| Request::Backup { name: name.clone(), path: path.clone(), job }, told)
    }

    /// Has the leader make the content of a file on its machine that of a database.
    pub fn restore(&self, name: &str, path: &Path, told: impl FnMut(Progress)) -> Result<()> {
        let (name, path) = (name.to_string(), absolute(path)?);
        self.job(|job| Request::Restore { name: name.clone(), path: path.clone(), job }, told)
    }

    fn job(&self, request: impl Fn(u64) -> Request, mut told: impl FnMut(Progress)) -> Result<()> {
        self.first(|door| {
            let door = door.of_its_owner()?;
            let job = OsRng.next_u64();
            let request = request(job);
            let (end, ended) = crossbeam_channel::bounded::<()>(0);
            std::thread::scope(|scope| {
                let asked = scope.spawn({
                    let door = &door;
                    move || {
                        let _end = end;
                        door.ask(&request)
                    }
                });
                // Nothing is ever sent: the other end goes away when there is an answer.
                while ended.recv_timeout(LOOK).is_err_and(|error| error.is_timeout()) {
                    let progress = door.ask(&Request::Progress { job });
                    progress.ok().and_then(|value| serde_json::from_value(value).ok()).into_iter().for_each(&mut told);
                }
                asked.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "the thread that asked panicked")))
            })
        })
        .map(|_| ())
    }

    /// The answer of the first door behind which is somebody who can give it.
    fn first<T>(&self, mut ask: impl FnMut(&Door) -> Result<T>) -> Result<T> {
        let mut why = None;
        for door in &self.doors {
            match ask(door) {
                Err(error) if error.kind() == ErrorKind::NotLeader => why = Some(error),
                result => return result,
            }
        }
        Err(why.unwrap_or_else(nobody))
    }

    fn each<T>(&self, request: &Request, parse: impl Fn(serde_json::Value) -> Result<T>) -> Vec<(String, Result<T>)> {
        self.doors.iter().map(|door| (door.name(), door.ask(request).and_then(&parse))).collect()
    }

    fn any(&self, request: &Request) -> Result<()> {
        self.first(|door| door.ask(request)).map(|_| ())
    }
}

/// A path that means the same to a node, whose working directory is another one.
fn absolute(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path)?;
    let text = absolute.to_str().map(str::to_string);
    text.ok_or_else(|| Error::new(ErrorKind::BadInput, format!("{}: a name that is not UTF-8", path.display())))
}

fn nobody() -> Error {
    Error::new(ErrorKind::BadInput, "no endpoint was given")
}

impl Door {
    fn name(&self) -> String {
        match self {
            Door::Endpoint(address) => address.clone(),
            Door::Directory(dir) => dir.display().to_string(),
        }
    }

    /// The same node through its admin socket, where a program is known to be its owner's.
    fn of_its_owner(&self) -> Result<Door> {
        self.directory().map(Door::Directory)
    }

    fn directory(&self) -> Result<PathBuf> {
        if let Door::Directory(dir) = self {
            return Ok(dir.clone());
        }
        match self.ask(&Request::Directory)? {
            serde_json::Value::String(dir) => Ok(dir.into()),
            _ => Err(Error::new(ErrorKind::Io, format!("{}: this node has no directory of its own", self.name()))),
        }
    }

    /// Not reached is `NotLeader`: as far as this door goes, there is nobody who could do it.
    fn ask(&self, request: &Request) -> Result<serde_json::Value> {
        let body = admin::encode(request);
        let patience = match request {
            // As long as it takes; if the node ends, so does the connection.
            Request::Backup { .. } | Request::Restore { .. } | Request::Verify { .. } => LONG_PATIENCE,
            _ => PATIENCE,
        };
        let answer = match self {
            Door::Endpoint(address) => tcp::call(address, &body, patience, false).map_err(|error| match error {
                RequestError::NotSent(what) => Error::new(ErrorKind::NotLeader, what),
                RequestError::Lost(what) => self.lost(request, &what),
            })?,
            Door::Directory(dir) => socket::call(dir, &body, patience).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    Error::new(ErrorKind::NotLeader, format!("{}: no node runs in this directory", dir.display()))
                }
                std::io::ErrorKind::PermissionDenied => Error::new(
                    ErrorKind::Io,
                    format!("{}: the node in this directory is another user's", dir.display()),
                ),
                _ => self.lost(request, &format!("{}: {error}", dir.display())),
            })?,
        };
        let reply: Reply = serde_json::from_slice(&answer)
            .map_err(|error| Error::new(ErrorKind::Io, format!("{}: answer: {error}", self.name())))?;
        reply.into_result()
    }

    fn lost(&self, request: &Request, what: &str) -> Error {
        match request {
            Request::Status
            | Request::Health
            | Request::Verify { .. }
            | Request::Progress { .. }
            | Request::Directory
            | Request::Outcome { .. }
            | Request::Backup { .. } => Error::new(ErrorKind::Io, what),
            _ => Error::new(ErrorKind::Unknown, format!("{what}; it may have been done")),
        }
    }
}
