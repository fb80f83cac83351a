//! The facade: a node, and what it is asked.

mod builder;

use std::borrow::Borrow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use shoaldb_vfs::Registration;
use shoaldb_vfs::env::DirLock;
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::page::PageSize;
use shoaldb_vfs::view::{ReadView, ViewError};

pub use self::builder::Builder;
use crate::admin::{self, Request};
use crate::backup;
pub use crate::catalogue::AutoVacuum;
use crate::connection::{ConnectOptions, Connection, WriteTx};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{Event, Progress};
use crate::net::tcp::Tcp;
use crate::raft::Role;
use crate::receipt::{Receipt, ReceiptOutcome};
use crate::shared::{Hub, Input, Kept, Shared};
use crate::socket::AdminSocket;
use crate::status::{self, Status};
use crate::types::{LogIndex, NodeId};

/// Idle connections that `write` keeps per database: as many as threads commonly write at once.
const POOLED: usize = 64;

/// A node id and the address at which other nodes reach it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// The node's id, 1..=65535.
    pub id: u64,
    /// Host and port.
    pub address: String,
}

impl Member {
    /// A member.
    pub fn new(id: u64, address: impl Into<String>) -> Member {
        Member { id, address: address.into() }
    }
}

/// How a database is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    /// Bytes of one page: a power of two from 512 to 65536. Cannot be changed later.
    pub page_size: u32,
    /// How free pages are given back. VACUUM can change it later.
    pub auto_vacuum: AutoVacuum,
}

impl Default for CreateOptions {
    fn default() -> CreateOptions {
        CreateOptions { page_size: PageSize::DEFAULT.bytes(), auto_vacuum: AutoVacuum::None }
    }
}

fn node_id(id: u64) -> Result<NodeId> {
    match u16::try_from(id) {
        Ok(id) if id > 0 => Ok(NodeId(id)),
        _ => Err(Error::new(ErrorKind::BadInput, format!("node id {id}: use 1 to 65535"))),
    }
}

struct Inner {
    hub: Hub,
    vfs_name: String,
    registrations: Mutex<Vec<Registration>>,
    socket: Mutex<Option<AdminSocket>>,
    transport: Mutex<Option<Arc<Tcp>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn DirLock>>>,
    /// Connections of [`Node::write`] that nobody uses now.
    pools: Arc<Pools>,
    /// How many databases had been dropped when those to dropped ones were closed.
    drops: AtomicU64,
    /// Held while the node goes down, so that everybody who asked for it returns after it.
    down: Mutex<bool>,
}

#[derive(Default)]
struct Pools(Mutex<HashMap<String, Vec<Connection>>>);

impl Kept for Pools {
    fn usage(&self) -> (usize, usize) {
        (self.0.lock().values().map(Vec::len).max().unwrap_or(0), POOLED)
    }
}

/// One node of a cluster, inside this process. Clones are handles to the same node; the last one's drop shuts it down.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let node = shoaldb::Node::open(dir.path())?;
/// let db = node.connect("app")?;
/// db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)", [])?;
/// db.execute("INSERT INTO t(v) VALUES ('x')", [])?;
/// let n: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
/// assert_eq!(n, 1);
/// drop(db);
/// node.shutdown()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.inner.hub.id).finish_non_exhaustive()
    }
}

impl Node {
    #[cfg(test)]
    pub(crate) fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    /// A cluster of one, without a socket: the embedded default. Blocks until the log is replayed; returns as leader.
    ///
    /// An error of kind [`ErrorKind::BadInput`] if the directory is that of a node that has others beside it: without a socket it
    /// would never hear of them.
    pub fn open(dir: impl AsRef<Path>) -> Result<Node> {
        let node = Node::builder(1, dir).start()?;
        node.wait_until(Duration::MAX, |hub| hub.is_ready_leader() || hub.needs_others())?;
        if node.inner.hub.needs_others() {
            return Err(Error::new(
                ErrorKind::BadInput,
                "this directory is that of node 1 of a cluster with other voters; start it with Node::builder and listen, or see \
                 `shoal recover` if the others are lost",
            ));
        }
        Ok(node)
    }

    /// Waits until `reached`; `false` after `limit`. An error if this node cannot get there any more.
    fn wait_until(&self, limit: Duration, reached: impl Fn(&Shared) -> bool) -> Result<bool> {
        let hub = &self.inner.hub;
        let deadline = hub.deadline(limit);
        let answer = hub.changed.wait(&hub.waiting, deadline, Duration::from_millis(100), || {
            if reached(hub) {
                return Some(Ok(true));
            }
            // A node that was removed goes on applying what its log has. One that asked to be let in had none; for the others the
            // first status of the core may come later than the word of a peer.
            let goes_on = || hub.is_removed() && (hub.doors.get().is_none() || hub.core_status.lock().is_some());
            let ends = hub.is_stopped() || (hub.trouble().is_some() && !goes_on());
            ends.then(|| Err(stopped(hub)))
        });
        answer.unwrap_or(Ok(false))
    }

    /// Settings for node `id` (1..=65535) in directory `dir`, which is created if it does not exist.
    pub fn builder(id: u64, dir: impl AsRef<Path>) -> Builder {
        Builder::new(id, dir.as_ref())
    }

    /// Where it listens for other nodes: with the port that it got, if 0 was asked for. `None` without an address, and once the node
    /// is shut down.
    pub fn listen_addr(&self) -> Option<String> {
        self.inner.transport.lock().as_ref().map(|tcp| tcp.local_addr().to_string())
    }

    /// This node's id.
    pub fn id(&self) -> u64 {
        u64::from(self.inner.hub.id.0)
    }

    /// Waits until this node knows a leader that has begun its work, and this node has applied that leader's first
    /// entry. Returns the leader's id; an error of kind `Timeout` after `limit`.
    pub fn wait_leader(&self, limit: Duration) -> Result<u64> {
        let hub = &self.inner.hub;
        let deadline = hub.deadline(limit);
        let leader = hub.changed.wait(&hub.waiting, deadline, Duration::from_millis(100), || {
            if hub.is_stopped() {
                return Some(Err(stopped(hub)));
            }
            let alone = || hub.core_status.lock().as_ref().is_some_and(|core| core.membership.voters == [hub.id]);
            if hub.trouble().is_some() && (hub.is_removed() || alone()) {
                return Some(Err(stopped(hub)));
            }
            let leadership = hub.leadership();
            let known = hub.applied().term == leadership.term;
            leadership.leader.filter(|_| known).map(|leader| Ok(u64::from(leader.0)))
        });
        leader.unwrap_or_else(|| {
            let mut alarms = status::alarms(hub);
            if alarms.is_empty() {
                alarms.push("the leader's first entry has not arrived".to_string());
            }
            let why = alarms.join("; ");
            Err(Error::new(ErrorKind::Timeout, format!("no leader within {limit:?}: {why}")))
        })
    }

    /// The leader, as far as this node knows.
    pub fn leader(&self) -> Option<Member> {
        let hub = &self.inner.hub;
        let id = hub.leadership().leader?;
        let address = hub.with_catalogue(|catalogue| catalogue.member(id).map(|member| member.address.clone()));
        Some(Member { id: u64::from(id.0), address: address.ok().flatten().unwrap_or_default() })
    }

    /// Whether this node leads and may write.
    pub fn is_leader(&self) -> bool {
        self.inner.hub.is_ready_leader() && self.inner.hub.trouble().is_none()
    }

    /// A connection to the database `name`: letters, digits, `_`, `.` and `-`, at most 128, not starting with a dot. A
    /// database that does not exist is created by the first write.
    pub fn connect(&self, name: &str) -> Result<Connection> {
        self.connect_with(name, ConnectOptions::default())
    }

    /// As [`Node::connect`], with options.
    pub fn connect_with(&self, name: &str, options: ConnectOptions) -> Result<Connection> {
        self.check_running()?;
        Connection::open(&self.inner.hub, self.vfs_name(), name, &options)
    }

    /// Runs `f` as one transaction and commits it: once this returns `Ok`, a majority of the nodes has it on disk.
    ///
    /// An error or a panic of `f` undoes it. `f` may run more than once, so its effects belong in the database; it is
    /// never run again after its transaction was proposed. Blocks the calling thread.
    pub fn write<T>(&self, name: &str, mut f: impl FnMut(&WriteTx<'_>) -> Result<T> + Send) -> Result<T> {
        self.check_running()?;
        loop {
            let pooled = self.inner.pools.0.lock().get_mut(name).and_then(Vec::pop);
            let mut connection = match pooled {
                Some(connection) => connection,
                None => self.connect(name)?,
            };
            let result = match connection.write(&self.inner.hub, &mut f) {
                // Dropped and perhaps created again since: a new connection leads to the database of today.
                Ok(None) => continue,
                Ok(Some(value)) => Ok(value),
                Err(error) => Err(error),
            };
            let usable = result.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::NotFound);
            if usable && connection.is_as_new() {
                self.inner.keep(name, connection);
            }
            self.inner.close_dropped();
            return result;
        }
    }

    /// Index of the last entry that the database shows on this node, and the checksum of its whole content there. Equal
    /// indexes have equal checksums on all nodes.
    pub fn checksum(&self, name: &str) -> Result<(u64, u128)> {
        self.check_running()?;
        let db = self.inner.hub.databases.find(name, false).map_err(|_| self.missing(name))?;
        let (position, checksum) = db.checksum();
        Ok((position.0, checksum.0))
    }

    /// A view of the database as this node shows it now: one state, lent page by page, while writes go on. As long as it is
    /// open, or one of its pages is lent, the database is not checkpointed on this node, so its WAL grows. When that is more than
    /// [`Builder::snapshot_wal_pin_max`] the view is closed: it lends no more pages and says so. A page that is lent stays, and
    /// keeps the WAL, until it is given back. A view goes on when its database is dropped, whose room on the disk is free when the
    /// view is closed; all views end when the node stops.
    ///
    /// ```
    /// # fn main() -> shoaldb::Result<()> {
    /// # let dir = std::env::temp_dir().join(format!("shoaldb-doc-view-{}", std::process::id()));
    /// # let _ = std::fs::remove_dir_all(&dir);
    /// use shoaldb::PageNo;
    ///
    /// let node = shoaldb::Node::open(&dir)?;
    /// node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES (1)")?))?;
    ///
    /// let view = node.read_view("app")?;
    /// node.write("app", |tx| Ok(tx.execute_batch("INSERT INTO t VALUES (2)")?))?;
    /// let mut copy = Vec::new();
    /// for number in (1..=view.at().size.0).filter_map(PageNo::new) {
    ///     copy.extend_from_slice(&view.page(number).expect("the disk is whole"));
    /// }
    /// view.close();
    ///
    /// // An ordinary SQLite file, without the second row.
    /// let file = dir.join("copy.db");
    /// std::fs::write(&file, copy).expect("there is room");
    /// let sqlite = shoaldb::rusqlite::Connection::open(&file)?;
    /// let n: i64 = sqlite.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    /// assert_eq!(n, 1);
    /// # drop(sqlite);
    /// # node.shutdown()?;
    /// # let _ = std::fs::remove_dir_all(&dir);
    /// # Ok(()) }
    /// ```
    pub fn read_view(&self, name: &str) -> Result<ReadView> {
        self.check_running()?;
        let missing = || self.missing(name);
        let db = self.inner.hub.databases.find(name, false).map_err(|_| missing())?;
        db.read_view().map_err(|error| {
            let kind = match &error {
                ViewError::NotBound | ViewError::Retired(Refusal::Dropped) => return missing(),
                ViewError::Retired(Refusal::Damaged) | ViewError::Rotten(_) => ErrorKind::Corrupt,
                ViewError::Retired(_) | ViewError::Closed => ErrorKind::Stopped,
                ViewError::NoSuchPage(_) | ViewError::Io(_) => ErrorKind::Io,
            };
            Error::caused(kind, format!("read view of {name}: {error}"), error)
        })
    }

    /// Why this node shows no database of this name.
    fn missing(&self, name: &str) -> Error {
        let none = || Error::new(ErrorKind::NotFound, format!("no database named {name}"));
        status::unserved(&self.inner.hub, name).unwrap_or_else(none)
    }

    /// Creates a database; done by the leader.
    pub fn create(&self, name: &str, options: CreateOptions) -> Result<()> {
        let auto_vacuum = options.auto_vacuum.number();
        self.administer(&Request::Create { name: name.to_string(), page_size: options.page_size, auto_vacuum })
    }

    /// Drops a database; done by the leader. Connections to it get an error from then on.
    pub fn drop_database(&self, name: &str) -> Result<()> {
        self.administer(&Request::Drop { name: name.to_string() })?;
        self.inner.close_dropped();
        Ok(())
    }

    /// Names of the databases that exist, as far as this node has applied the log.
    pub fn databases(&self) -> Result<Vec<String>> {
        self.check_running()?;
        let names = self.inner.hub.with_catalogue(|catalogue| {
            let mut names: Vec<String> =
                catalogue.databases().map(|(_, info)| info.name.as_str().to_string()).collect();
            names.sort_unstable();
            names
        });
        Ok(names.unwrap_or_default())
    }

    /// What became of the transaction that `receipt` names: see [`Connection::last_receipt`] and [`Error::receipt`]. Any
    /// node of the cluster can be asked; it answers from what it has applied, and never says more than it can prove: not of what
    /// came to it within a snapshot, and not of what was before `shoal recover`. If it knows that the log is committed up to there
    /// and is only about to apply it, it waits for that, up to a second: the node that acknowledged a commit settles its receipt
    /// from then on.
    pub fn outcome_of(&self, receipt: impl Borrow<Receipt>) -> Result<ReceiptOutcome> {
        self.check_running()?;
        admin::settle(&self.inner.hub, receipt.borrow())
    }

    /// Brings in a member that listens: it gets everything and does not vote. Its node may be started before or after,
    /// with [`Builder::join`]. Refused, as all changes of the members are, while another one is under way.
    pub fn add_learner(&self, member: Member) -> Result<()> {
        admin::check_shape(&member.address)?;
        self.administer(&Request::AddLearner { node: node_id(member.id)?, address: member.address })
    }

    /// Lets a learner vote. Refused until it has caught up.
    pub fn promote(&self, id: u64) -> Result<()> {
        self.administer(&Request::Promote { node: node_id(id)? })
    }

    /// Takes a member out, for ever: its id is never used again. A leader hands over first. The node that was removed
    /// learns of it and stops. Refused if the voters that remain, are heard of and have caught up with the log are no majority.
    pub fn remove(&self, id: u64) -> Result<()> {
        self.administer(&Request::Remove { node: node_id(id)? })
    }

    /// Lets the learner `new` take the place of the voter `old`, which is removed, in one step: there is no moment with
    /// fewer voters, or one more.
    pub fn replace(&self, old: u64, new: u64) -> Result<()> {
        self.administer(&Request::Replace { old: node_id(old)?, new: node_id(new)? })
    }

    /// Makes node `to` the leader. Refused if it is no voter, was not heard of lately, or lacks too much of the log.
    pub fn transfer_leadership(&self, to: u64) -> Result<()> {
        self.administer(&Request::Transfer { to: node_id(to)? })
    }

    /// Writes the database, as this node shows it, to a plain SQLite file at `path`, which must not exist. The file is one
    /// state: writes go on meanwhile and are not in it. When this returns, the file is whole and on disk; there is none if
    /// it fails. Needs little memory, but holds back the database's WAL for as long as it takes.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let node = shoaldb::Node::open(dir.path().join("data"))?;
    /// # let copy = dir.path().join("copy.db");
    /// node.connect("app")?.execute_batch("CREATE TABLE t(v)")?;
    /// node.backup("app", &copy)?;
    /// node.restore("again", &copy)?;
    /// # Ok(()) }
    /// ```
    pub fn backup(&self, name: &str, path: impl AsRef<Path>) -> Result<()> {
        self.backup_with(name, path, |_| {})
    }

    /// As [`Node::backup`]; `told` hears how far it is.
    pub fn backup_with(&self, name: &str, path: impl AsRef<Path>, mut told: impl FnMut(Progress)) -> Result<()> {
        self.check_running()?;
        backup::backup(&self.inner.hub, name, path.as_ref(), &mut told)
    }

    /// Makes the content of a SQLite file the content of the database, in one transaction, on the leader. Another node gives
    /// an error that names it ([`Error::leader`]).
    ///
    /// The file may have any page size, encoding and `auto_vacuum`, and a `-wal` beside it; it is not changed. It is checked
    /// first, and one that is damaged is refused before anything happens. A database that does not exist is created; one
    /// that exists must have the same page size and encoding of texts, and shows its old content until the new one is
    /// committed. Needs little memory.
    pub fn restore(&self, name: &str, path: impl AsRef<Path>) -> Result<()> {
        self.restore_with(name, path, |_| {})
    }

    /// As [`Node::restore`]; `told` hears how far it is.
    pub fn restore_with(&self, name: &str, path: impl AsRef<Path>, mut told: impl FnMut(Progress)) -> Result<()> {
        self.check_running()?;
        backup::restore(&self.inner.hub, name, path.as_ref(), &mut told)
    }

    fn administer(&self, request: &Request) -> Result<()> {
        self.check_running()?;
        admin::anywhere(&self.inner.hub, request).map(|_| ())
    }

    /// What this node knows of itself and its cluster.
    pub fn status(&self) -> Status {
        status::of(&self.inner.hub)
    }

    /// What happens from now on, and a removal of this node that it heard of before. The receiver is bounded: a slow listener
    /// loses events and gets [`Event::Lagged`].
    pub fn events(&self) -> Receiver<Event> {
        self.inner.hub.events.listen()
    }

    /// Name of this node's VFS, for SQLite clients of this process: `file:app?vfs=NAME`.
    pub fn vfs_name(&self) -> &str {
        &self.inner.vfs_name
    }

    /// Waits until this node shows everything up to log index `index`; `false` after `limit`.
    pub fn wait_applied(&self, index: u64, limit: Duration) -> bool {
        self.wait_until(limit, |hub| hub.applied().index >= LogIndex(index)).unwrap_or(false)
    }

    /// Cuts this node off from node `other`, or lets it through again. For tests of partitions.
    #[doc(hidden)]
    pub fn set_blocked(&self, other: u64, blocked: bool) {
        if let (Some(tcp), Ok(other)) = (self.inner.transport.lock().as_ref(), node_id(other)) {
            tcp.set_blocked(other, blocked);
        }
    }

    /// Writes an entry of the next version, on the leader. For tests of upgrades.
    #[doc(hidden)]
    pub fn rehearse(&self) -> Result<()> {
        self.check_running()?;
        admin::told(self.inner.hub.propose_rehearsal(), ErrorKind::Busy).map(|_| ())
    }

    /// Whether a transaction is open of which this node has applied some parts, and not the last. For tests.
    #[doc(hidden)]
    pub fn has_open_split(&self) -> bool {
        let progress = self.inner.hub.progress();
        progress.settled() < progress.applied.index
    }

    /// Lets large transactions of this node wait when their first parts are proposed, or go on. For tests of what happens
    /// in their middle, however fast the machine is.
    #[doc(hidden)]
    pub fn hold_parts(&self, held: bool) {
        self.inner.hub.hold_parts(held);
    }

    /// How long commits of this node wait for their decision from now on, instead of [`Builder::commit_timeout`]; those that
    /// wait already go on as they began. For tests of a commit that runs out of time, in which nothing else shall.
    #[doc(hidden)]
    pub fn set_commit_timeout(&self, timeout: Duration) {
        self.inner.hub.set_commit_timeout(timeout);
    }

    fn check_running(&self) -> Result<()> {
        if self.inner.hub.is_stopped() { Err(stopped(&self.inner.hub)) } else { Ok(()) }
    }

    /// Ends the node: begins no new transaction, hands leadership over, if there is anybody to take it, lets commits that
    /// are on their way finish, if a majority answers. Later calls and open connections get an error, and the name of the
    /// VFS is free. Calling it again does nothing. Waits for the node's threads.
    pub fn shutdown(&self) -> Result<()> {
        self.inner.shutdown(self.inner.hub.config.election_timeout);
        Ok(())
    }

    /// Ends the node as [`Node::shutdown`] does, but waits for nobody: what is on its way is left undecided, and leadership
    /// is there for whoever misses it. For the end of tests, where nobody is left to take it.
    #[doc(hidden)]
    pub fn shutdown_at_once(&self) {
        self.inner.shutdown(Duration::ZERO);
    }
}

fn stopped(hub: &Hub) -> Error {
    let why = hub.trouble().map_or_else(|| "was shut down".to_string(), |what| format!("had to stop: {what}"));
    Error::new(ErrorKind::Stopped, format!("node {} {why}", hub.id))
}

impl Inner {
    /// Keeps a connection for the next caller.
    fn keep(&self, name: &str, connection: Connection) {
        let mut pools = self.pools.0.lock();
        let pool = pools.entry(name.to_string()).or_default();
        if pool.len() < POOLED && !self.hub.is_stopped() {
            pool.push(connection);
        }
    }

    /// Closes the kept connections to databases that were dropped: each keeps its database in memory.
    fn close_dropped(&self) {
        let drops = self.hub.databases.drops();
        if self.drops.load(Ordering::Relaxed) == drops {
            return;
        }
        self.drops.store(drops, Ordering::Relaxed);
        let is_gone = |name: &String, _: &mut Vec<Connection>| self.hub.databases.find(name, false).is_err();
        // Closed without the lock, which every write needs.
        let gone: Vec<_> = self.pools.0.lock().extract_if(is_gone).collect();
        drop(gone);
    }

    /// Waits for others for `patience` at most.
    fn shutdown(&self, patience: Duration) {
        let mut down = self.down.lock();
        if std::mem::replace(&mut *down, true) {
            return;
        }
        let hub = &self.hub;
        hub.close();
        if hub.leadership().role == Role::Leader && hub.trouble().is_none() && !patience.is_zero() {
            hub.post(Input::HandOver);
            let others =
                hub.core_status.lock().as_ref().is_some_and(|status| status.peers.iter().any(|peer| peer.active));
            if others {
                let deadline = hub.deadline(patience);
                // Not leading is not enough: it is this node's vote that the other one may need, and that is given once it is on disk.
                let taken = || {
                    let leadership = hub.leadership();
                    (leadership.role != Role::Leader && leadership.leader.is_some()).then_some(())
                };
                // Nobody took it in time: the others will elect one.
                let _ = hub.changed.wait(&hub.waiting, deadline, Duration::from_millis(20), taken);
            }
        }
        if hub.trouble().is_none() {
            let deadline = hub.deadline(patience);
            let decided = || hub.pending.is_idle().then_some(());
            // What is not decided by then is Unknown to its caller.
            let _ = hub.changed.wait(&hub.waiting, deadline, Duration::from_millis(5), decided);
        }
        hub.stop();
        self.registrations.lock().clear();
        drop(self.socket.lock().take());
        self.pools.0.lock().clear();
        hub.post(Input::Stop);
        if let Some(tcp) = self.transport.lock().take() {
            tcp.shutdown();
        }
        for thread in std::mem::take(&mut *self.threads.lock()) {
            let _ = thread.join();
        }
        self.lock.lock().take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown(self.hub.config.election_timeout);
    }
}

#[cfg(test)]
mod tests;
