//! Administration from outside: what the program `shoal` says to a node, over TCP or the node's admin socket.
//!
//! Several endpoints are several doors to the same cluster: the next one is tried when a node was not reached or knows
//! of no leader. A request that may have been carried out is not sent again: that is for the caller to decide.
//!
//! Deliberately absent: output, and exit codes.

pub mod session;

use std::path::PathBuf;
use std::time::Duration;

use crate::admin::{self, Reply, Request};
use crate::db::CreateOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{RequestError, tcp};
use crate::socket;
use crate::status::Status;
use crate::types::NodeId;

/// How long a connection may take. Nodes are on this machine.
const PATIENCE: Duration = Duration::from_secs(30);

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

    /// Whether each node is well.
    pub fn health(&self) -> Vec<(String, Result<()>)> {
        self.each(&Request::Health, |_| Ok(()))
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

    fn each<T>(&self, request: &Request, parse: impl Fn(serde_json::Value) -> Result<T>) -> Vec<(String, Result<T>)> {
        self.doors.iter().map(|door| (door.name(), door.ask(request).and_then(&parse))).collect()
    }

    fn any(&self, request: &Request) -> Result<()> {
        let mut why = None;
        for door in &self.doors {
            match door.ask(request) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotLeader => why = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(why.unwrap_or_else(nobody))
    }
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

    /// Not reached is `NotLeader`: as far as this door goes, there is nobody who could do it.
    fn ask(&self, request: &Request) -> Result<serde_json::Value> {
        let body = admin::encode(request);
        let answer = match self {
            Door::Endpoint(address) => tcp::call(address, &body, PATIENCE, false).map_err(|error| match error {
                RequestError::NotSent(what) => Error::new(ErrorKind::NotLeader, what),
                RequestError::Lost(what) => self.lost(request, &what),
            })?,
            Door::Directory(dir) => socket::call(dir, &body, PATIENCE).map_err(|error| match error.kind() {
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
            Request::Status | Request::Health => Error::new(ErrorKind::Io, what),
            _ => Error::new(ErrorKind::Unknown, format!("{what}; it may have been done")),
        }
    }
}
