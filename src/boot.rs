//! From a directory to a node that can run: identity, log, the state before the first entry.
//!
//! ```text
//! DIR/LOCK        held while a process uses the directory
//! DIR/identity    who this directory is, and its cluster      (identity.rs)
//! DIR/log/        the Raft log                                (log.rs)
//! DIR/db/         main files of the databases                 (databases.rs)
//!
//! identity    log                          what happens
//! none        none                         an empty directory: a new identity
//! none        some                         refused: the identity was lost, and with it the right to vote
//! nowhere     none, or not even an entry   an interrupted founding: what there is of the log is removed
//! nowhere     entries                      refused: the identity is not this log's
//! a cluster   none                         refused: the log was lost; a node that forgot what it acknowledged must
//!                                          not come back under its name
//! a cluster   another cluster's            refused
//! a cluster   its own                      opened; all of it is on disk before anything is sent or appended
//! ```
//!
//! The log is created *before* the identity says that there is a cluster, so that "a cluster, but no log" can only mean
//! loss.
//!
//! Deliberately absent: threads, and the founding itself (`found.rs`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use shoaldb_vfs::env::{Env, in_words};

use crate::catalogue::{Catalogue, DatabaseId};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::every::Every;
use crate::found::Founding;
use crate::found::format::{Belongs, Genesis, Identity};
use crate::history::History;
use crate::identity::{self, IdentityError};
use crate::log::{Anchor, Cut, Log, LogError, LogOptions, Recovered};
use crate::raft::Restored;
use crate::registry::{self, Aftermath, Registry};
use crate::types::{EntryId, GENESIS, HardState, Incarnation, Membership, NodeId, Term};

/// A log and what it begins with.
pub(crate) struct Opened {
    pub(crate) log: Log,
    pub(crate) restored: Restored,
    pub(crate) catalogue: Catalogue,
    /// What receipts need; an anchor may be without.
    pub(crate) history: Option<History>,
    /// Which generation of its files a database has, where it is not the first.
    pub(crate) generations: BTreeMap<DatabaseId, u64>,
    /// What the last snapshot has left to be done.
    pub(crate) aftermath: Aftermath,
    /// Knows the genesis, and tells it to listed nodes that come late; none on a node that joined.
    pub(crate) founding: Option<Founding>,
    /// The state before the first entry that this cluster ever had: where the log of a node that joins begins.
    pub(crate) genesis: Option<Genesis>,
    /// What was cut off the end of the log.
    pub(crate) cut: Option<Cut>,
}

/// What to do about a directory that cannot be trusted any more.
pub(crate) const TAKE_ITS_PLACE: &str = "remove this node from its cluster and join a new one in an empty directory; if it is \
     the only one, restore a backup into a new cluster";

/// What a start that was interrupted before the directory was a node's may have left, and what a fresh file system has.
const OURS: [&str; 7] = ["LOCK", "identity.new", "log", "db", "admin.sock", "admin.sock.new", "lost+found"];

/// One data directory.
pub(crate) struct Directory {
    pub(crate) env: Env,
    path: PathBuf,
    options: LogOptions,
}

impl Directory {
    pub(crate) fn new(env: Env, path: &Path, config: &Config) -> Directory {
        let options = LogOptions { segment_bytes: config.segment_bytes, ..LogOptions::default() };
        Directory { env, path: path.to_path_buf(), options }
    }

    fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(crate) fn databases_dir(&self) -> PathBuf {
        self.path.join("db")
    }

    /// Who this directory is; changes nothing. `None` if it does not say and need not: it is new.
    pub(crate) fn recognize(&self, node: NodeId) -> Result<Option<Identity>> {
        identity::load(&*self.env.fs, &self.path, node).map_err(identity_error)
    }

    /// A new node has a directory of its own: in another one it would be in the way of somebody, or they in its.
    pub(crate) fn refuse_foreign(&self) -> Result<()> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        let names = match self.env.fs.entries(&self.path, "dir.look") {
            Ok(names) => names,
            // It is still to be made. Whoever makes it says why it cannot be.
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(()),
            Err(error) => {
                let text = format!(
                    "{}: whether this directory is somebody else's is not known, since it cannot be read: {}; check \
                     the disk, and that the user who runs the node may read and write there; then start it again",
                    self.path.display(),
                    in_words(&error)
                );
                return Err(Error::caused(ErrorKind::Io, text, error));
            }
        };
        let ours = |name: &String| OURS.contains(&name.as_str()) || name.starts_with('.');
        match names.into_iter().find(|name| !ours(name)) {
            None => Ok(()),
            Some(name) => Err(Error::new(
                ErrorKind::BadInput,
                format!(
                    "{}: this is no node's data directory, and it is not empty: there is {name}; give the node a directory of its own",
                    self.path.display()
                ),
            )),
        }
    }

    /// Who this directory is. A new one gets a random incarnation, which is on disk when this returns: before anybody else
    /// hears of it.
    pub(crate) fn identify(&self, node: NodeId) -> Result<Identity> {
        let fs = &*self.env.fs;
        if self.recognize(node)?.is_none() && self.has_log()? {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{}: there is a log but no identity; restore the file `identity`, or remove node {node} from the cluster and \
                     start a new one in an empty directory",
                    self.path.display()
                ),
            ));
        }
        let incarnation = Incarnation(self.env.rng.next_u64());
        identity::load_or_create(fs, &self.path, node, incarnation).map_err(identity_error)
    }

    fn has_log(&self) -> Result<bool> {
        match Log::open(self.env.fs.clone(), &self.log_dir(), self.options) {
            Ok(_) => Ok(true),
            Err(LogError::Missing { .. }) => Ok(false),
            Err(LogError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.log_error(error)),
        }
    }

    /// Opens the log of a directory that belongs to a cluster.
    pub(crate) fn open_log(&self, identity: &Identity) -> Result<Opened> {
        let every = Every::second(self.env.clock.clone());
        let mut told = |read: usize, all: usize| {
            if read < all && every.is_due() {
                let segment = self.options.segment_bytes;
                let (bytes, of) = (read as u64 * segment, all as u64 * segment);
                tracing::info!("starting: read {read} of {all} files of the log, {bytes} of {of} bytes");
            }
        };
        let opened_log = Log::open_and_tell(self.env.fs.clone(), &self.log_dir(), self.options, &mut told);
        let (log, recovered) = opened_log.map_err(|error| {
            let gone = match &error {
                LogError::Missing { .. } => true,
                LogError::Io { error, .. } => error.kind() == std::io::ErrorKind::NotFound,
                _ => false,
            };
            if !gone {
                return self.log_error(error);
            }
            if let Some(error) = self.interrupted(identity) {
                return error;
            }
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{}: the log of node {} is gone; if it was moved away, bring it back; else {TAKE_ITS_PLACE}",
                    self.log_dir().display(),
                    identity.node
                ),
            )
        })?;
        if Some(recovered.cluster) != identity.cluster() {
            if let Some(error) = self.interrupted(identity) {
                return Err(error);
            }
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{}: the log belongs to cluster {}, the identity to {:?}; these files are not from one directory: bring back those that belong \
                     together, else {TAKE_ITS_PLACE}",
                    self.path.display(),
                    recovered.cluster,
                    identity.cluster().map(|id| id.to_string())
                ),
            ));
        }
        opened(identity, log, recovered)
    }

    /// What is to be done where the log of this identity waits for its place: `recover.rs` was interrupted.
    fn interrupted(&self, identity: &Identity) -> Option<Error> {
        let waiting = Log::open(self.env.fs.clone(), &self.path.join("log.recovered"), self.options);
        let (_, recovered) = waiting.ok()?;
        (Some(recovered.cluster) == identity.cluster()).then(|| {
            let (dir, node) = (self.path.display(), identity.node);
            let what = format!(
                "{dir}: a recovery was interrupted; run `shoal recover --data {dir} --only-member {node}` again, which ends it"
            );
            Error::new(ErrorKind::Corrupt, what)
        })
    }

    /// Makes this directory a member of the cluster that `genesis` begins: the log first, then the identity.
    pub(crate) fn found(&self, identity: &Identity, genesis: &Genesis) -> Result<Opened> {
        self.clear_unfinished_log()?;
        let catalogue = genesis.catalogue();
        let voters = genesis.members.iter().map(|member| member.node).collect();
        let membership = Membership { voters, ..Membership::default() };
        let anchor = Anchor {
            applied: GENESIS.index,
            membership,
            registry: Bytes::from(registry::encode(&catalogue, &BTreeMap::new(), Aftermath::default())),
        };
        let hard_state = HardState { term: GENESIS.term, vote: None, commit: GENESIS.index };
        let log = Log::create(
            self.env.fs.clone(),
            &self.log_dir(),
            genesis.cluster,
            self.options,
            GENESIS,
            anchor.clone(),
            hard_state,
        )
        .map_err(|error| self.log_error(error))?;
        self.store(identity)?;
        let recovered =
            Recovered { cluster: genesis.cluster, hard_state, anchor, start: GENESIS, last: GENESIS, cut: None };
        opened(identity, log, recovered)
    }

    /// Removes a log that an interrupted founding left: it has no entry, and nobody was told of its cluster.
    fn clear_unfinished_log(&self) -> Result<()> {
        let dir = self.log_dir();
        let failed = |what: &str, error: std::io::Error| {
            let text = format!(
                "{}: {what}: {}; check the disk, and that the user who runs the node may read and write there; then start it \
                 again",
                dir.display(),
                in_words(&error)
            );
            Error::caused(ErrorKind::Io, text, error)
        };
        self.env
            .fs
            .create_dir_all(&dir, "log.dir")
            .map_err(|error| failed("the log cannot have its directory", error))?;
        let (log, recovered) = match Log::open(self.env.fs.clone(), &dir, self.options) {
            Ok(opened) => opened,
            Err(LogError::Missing { .. }) => return Ok(()),
            Err(error) => return Err(self.log_error(error)),
        };
        drop(log);
        if recovered.last != GENESIS || recovered.hard_state.term > GENESIS.term {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{}: the log has entries up to {}, but the identity belongs to no cluster; these files are not from \
                     one directory: bring back the identity that belongs to them, else {TAKE_ITS_PLACE}",
                    dir.display(),
                    recovered.last.index
                ),
            ));
        }
        let clear = || {
            for file in self.env.fs.list(&dir, "log.clear")? {
                self.env.fs.remove(&dir.join(file), "log.clear")?;
            }
            self.env.fs.sync_dir(&dir, "log.clear")
        };
        clear().map_err(|error| failed("what an interrupted founding left of a log cannot be removed", error))
    }

    /// Why the log cannot be used, where it is, and what to do.
    fn log_error(&self, error: LogError) -> Error {
        let (dir, data) = (self.log_dir(), self.path.display());
        let advice = match &error {
            LogError::Damage { .. } => format!(
                "nothing was changed; `shoal log --data {data}` prints what is whole. If files of it were moved away, bring them back; \
                 else {TAKE_ITS_PLACE}"
            ),
            LogError::Version { .. } => {
                "start this directory with the program that wrote it, or a later one".to_string()
            }
            LogError::NoSpace { .. } => "make room on the disk and start the node again".to_string(),
            // It says so itself.
            LogError::TooManyFiles { .. } => "then start the node again".to_string(),
            _ => "check the disk, and that the user who runs the node may read and write there; then start it again"
                .to_string(),
        };
        let kind = match &error {
            // It can never be done with this program.
            LogError::Version { .. } => ErrorKind::BadInput,
            error if error.is_damage() => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        };
        Error::caused(kind, format!("{}: {error}; {advice}", dir.display()), error)
    }

    /// Replaces the stored identity.
    pub(crate) fn store(&self, identity: &Identity) -> Result<()> {
        identity::store(&*self.env.fs, &self.path, identity).map_err(identity_error)
    }
}

/// The genesis that an identity was told, if that is how it belongs.
pub(crate) fn genesis_of(identity: &Identity) -> Option<&Genesis> {
    match &identity.belongs {
        Belongs::Founded(genesis) => Some(genesis),
        Belongs::Nowhere | Belongs::Joined(_) => None,
    }
}

/// The genesis of the cluster that this directory belongs to.
pub(crate) fn beginning_of(identity: &Identity) -> Option<&Genesis> {
    match &identity.belongs {
        Belongs::Founded(genesis) | Belongs::Joined(genesis) => Some(genesis),
        Belongs::Nowhere => None,
    }
}

fn opened(identity: &Identity, log: Log, recovered: Recovered) -> Result<Opened> {
    let Recovered { hard_state, anchor, start, last, cut, .. } = recovered;
    let damaged = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Corrupt, format!("catalogue in the log: {error}; {TAKE_ITS_PLACE}"))
    };
    let (history, registry) = History::split(&anchor.registry).map_err(|error| damaged(&error))?;
    let Registry { catalogue, generations, aftermath } = registry::decode(registry).map_err(|error| damaged(&error))?;
    let restored = Restored { hard_state, membership: anchor.membership, start, last, applied: anchor.applied };
    let founding = match genesis_of(identity) {
        Some(genesis) => {
            let list: Vec<_> = genesis.members.iter().map(|member| (member.node, member.address.clone())).collect();
            let founding = Founding::new(identity.clone(), &list);
            Some(founding.map_err(|error| {
                Error::new(ErrorKind::Corrupt, format!("genesis of this node: {error}; {TAKE_ITS_PLACE}"))
            })?)
        }
        None => None,
    };
    let genesis = beginning_of(identity).cloned();
    Ok(Opened { log, restored, catalogue, generations, aftermath, history, founding, genesis, cut })
}

impl Opened {
    /// The entry whose state catalogue and members are.
    pub(crate) fn applied(&self) -> EntryId {
        let index = self.restored.applied;
        let term = self.log.term(index).unwrap_or(if index == GENESIS.index { GENESIS.term } else { Term(0) });
        EntryId { index, term }
    }
}

fn identity_error(error: IdentityError) -> Error {
    let kind = match &error {
        IdentityError::Io { .. } => ErrorKind::Io,
        IdentityError::OtherNode { .. } => ErrorKind::BadInput,
        _ => ErrorKind::Corrupt,
    };
    Error::caused(kind, error.to_string(), error)
}

#[cfg(test)]
mod tests;
