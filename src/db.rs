//! The facade: a node, how it is started, and what it is asked.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use shoaldb_vfs::Registration;
use shoaldb_vfs::env::{DirLock, Env};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::page::PageSize;
use shoaldb_vfs::view::{ReadView, ViewError};

use crate::admin::{self, Request};
use crate::backup;
use crate::boot::Directory;
pub use crate::catalogue::AutoVacuum;
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::connection::{ConnectOptions, Connection, WriteTx};
use crate::databases::Databases;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{Event, Progress};
use crate::found::format::Belongs;
use crate::found::{self, Founding};
use crate::inbound::NodeInbound;
use crate::net::Transport;
use crate::net::tcp::{ListenError, Options, Tcp};
use crate::node::{self, Joining, Start};
use crate::raft::Role;
use crate::receipt::{Receipt, ReceiptOutcome};
use crate::replicate::NodeReplicator;
use crate::shared::{Hub, Input, Shared};
use crate::signal::Waiting;
use crate::socket::AdminSocket;
use crate::status::{self, Status};
use crate::types::{LogIndex, NodeId};

/// Name under which the first node of a process is reachable by any SQLite client of the process.
const DEFAULT_VFS: &str = "shoal";
/// Idle connections that `write` keeps per database: as many as threads commonly write at once.
const POOLED: usize = 64;

static NEXT_VFS: AtomicU64 = AtomicU64::new(1);

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

/// How a node is started. Every option has a default; see each method.
#[derive(Clone, Debug)]
#[must_use = "call start()"]
pub struct Builder {
    id: u64,
    dir: PathBuf,
    listen: Option<String>,
    advertise: Option<String>,
    bootstrap: Vec<Member>,
    join: Vec<String>,
    vfs_name: Option<String>,
    config: Config,
    env: Option<Env>,
}

impl Builder {
    /// Where to listen for other nodes, such as `127.0.0.1:4001`. Without it the node has no socket, and can only be a
    /// cluster of one.
    pub fn listen(mut self, address: impl Into<String>) -> Builder {
        self.listen = Some(address.into());
        self
    }

    /// Under which address others reach this node, if it is not the one that it listens on.
    pub fn advertise(mut self, address: impl Into<String>) -> Builder {
        self.advertise = Some(address.into());
        self
    }

    /// The members of a new cluster, this node among them: the same list on each. Once the directory belongs to a
    /// cluster, the list changes nothing; its addresses of members are tried where a member is not found at the one that
    /// the cluster knows, so that all nodes may be started on other addresses. The cluster begins when a majority of the list has come up, none of which may belong to one already.
    pub fn bootstrap(mut self, members: impl IntoIterator<Item = Member>) -> Builder {
        self.bootstrap = members.into_iter().collect();
        self
    }

    /// Addresses of nodes of a cluster that this one shall become a member of; any of them lets it in. It listens until it
    /// has caught up and votes from then on. Ignored once the directory belongs to a cluster. The id must be one that no
    /// member has or had.
    pub fn join<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Builder {
        self.join = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// Time between two heartbeats of a leader; default 100 ms.
    pub fn heartbeat(mut self, every: Duration) -> Builder {
        self.config.heartbeat = every;
        self
    }

    /// How long a follower waits for a sign of its leader, up to twice as long, before it campaigns; default 1 s. At
    /// least three heartbeats.
    pub fn election_timeout(mut self, timeout: Duration) -> Builder {
        self.config.election_timeout = timeout;
        self
    }

    /// How long a SQLite commit or a linearizable read waits for a majority; default 10 s. After that the outcome of
    /// the commit is unknown.
    pub fn commit_timeout(mut self, timeout: Duration) -> Builder {
        self.config.commit_timeout = timeout;
        self
    }

    /// Busy timeout of connections made by [`Node::connect`]; default 5 s.
    pub fn busy_timeout(mut self, timeout: Duration) -> Builder {
        self.config.busy_timeout = timeout;
        self
    }

    /// Bytes of pages that the write-ahead logs of all databases of this node keep in memory; default 64 MiB. What is
    /// beyond it is in files without a name in the data directory, which the kernel can drop from memory; so this is no
    /// limit for the size of anything.
    pub fn wal_limit(mut self, bytes: u64) -> Builder {
        self.config.wal_limit = bytes;
        self
    }

    /// Name of this node's VFS for other SQLite clients of this process; default a generated one, and `shoal` for the
    /// first node of the process.
    pub fn vfs_name(mut self, name: impl Into<String>) -> Builder {
        self.vfs_name = Some(name.into());
        self
    }

    /// Whether addresses beyond this machine may be listened on and dialed although nothing is encrypted; default
    /// `false`.
    pub fn allow_plaintext_remote(mut self, allow: bool) -> Builder {
        self.config.allow_plaintext_remote = allow;
        self
    }

    /// Bytes of log beyond which its oldest files are dropped, as soon as every member has what is in them and every
    /// database its checkpoint; default 256 MiB. At least four times [`Builder::segment_bytes`] makes sense.
    pub fn log_limit(mut self, bytes: u64) -> Builder {
        self.config.log_limit = bytes;
        self
    }

    /// Bytes of pages in a database's WAL beyond which they are moved to its main file; default 4 MiB.
    pub fn checkpoint_bytes(mut self, bytes: u64) -> Builder {
        self.config.checkpoint_bytes = bytes;
        self
    }

    /// How long a page may be in a database's WAL alone, even if nothing else is written; default 60 s.
    pub fn checkpoint_age(mut self, age: Duration) -> Builder {
        self.config.checkpoint_age = age;
        self
    }

    /// Bytes of main files that are read each second to compare them with their hashes; default 1 MiB, 0 for none.
    pub fn scrub_bytes(mut self, bytes: u64) -> Builder {
        self.config.scrub_bytes = bytes;
        self
    }

    /// Age at which a view that this node lends to another one is closed, used or not; default 24 h.
    pub fn snapshot_read_view_close_timeout(mut self, age: Duration) -> Builder {
        self.config.snapshot_read_view_close_timeout = age;
        self
    }

    /// Bytes of WAL that views lent to other nodes may keep from being checkpointed before they are closed; default 1 GiB.
    /// Who fetched from one goes on with another.
    pub fn snapshot_wal_pin_max(mut self, bytes: u64) -> Builder {
        self.config.snapshot_wal_pin_max = bytes;
        self
    }

    /// Size of one file of the log in bytes; default 16 MiB. Each is written in advance.
    pub fn segment_bytes(mut self, bytes: u64) -> Builder {
        self.config.segment_bytes = bytes;
        self
    }

    /// A SQL session over the admin socket ends when nothing is asked of it for this long, inside of a transaction after a
    /// tenth of it; default 10 min.
    pub fn session_idle(mut self, limit: Duration) -> Builder {
        self.config.session_idle = limit.max(Duration::from_millis(100));
        self
    }

    /// Largest transaction in bytes of pages; default 4 GiB. Each node needs twice that on its disk.
    pub fn transaction_limit(mut self, bytes: u64) -> Builder {
        self.config.transaction_limit = bytes;
        self
    }

    /// A transaction that is larger than this, encoded, goes through the log in parts of this size; default 4 MiB, and
    /// at least 64 KiB.
    pub fn part_bytes(mut self, bytes: usize) -> Builder {
        self.config.part_bytes = bytes.clamp(64 << 10, 256 << 20);
        self
    }

    /// Oldest and newest protocol version that this node speaks. For tests of upgrades.
    #[doc(hidden)]
    pub fn speaks(mut self, oldest: u16, newest: u16) -> Builder {
        self.config.speaks = (oldest, newest);
        self
    }

    /// Other doors to files, time and randomness than the operating system's. For tests; there is no admin socket then.
    #[doc(hidden)]
    pub fn env(mut self, env: Env) -> Builder {
        self.env = Some(env);
        self
    }

    /// Starts the node. Opens and checks what is in the directory, and blocks until the databases show all that this
    /// directory knows to be committed. Does not wait for other nodes: see [`Node::wait_leader`].
    pub fn start(self) -> Result<Node> {
        let env = self.env.clone().unwrap_or_else(Env::os);
        self.config.check().map_err(|what| Error::new(ErrorKind::BadInput, what))?;
        let id = node_id(self.id)?;
        let list = self.member_list(id)?;
        self.check_join()?;
        self.check_addresses()?;
        env.fs.create_dir_all(&self.dir, "dir.create").map_err(|error| {
            let text = format!("{}: cannot be made a data directory: {error}", self.dir.display());
            Error::caused(ErrorKind::Io, text, error)
        })?;
        let lock = env.fs.lock_dir(&self.dir, "dir.lock").map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => Error::new(
                ErrorKind::Busy,
                format!("{}: another process, or this one, uses this directory", self.dir.display()),
            ),
            _ => error.into(),
        })?;
        let directory = Directory::new(env.clone(), &self.dir, &self.config);
        let identity = directory.identify(id)?;

        let databases = Databases::open(env.clone(), directory.databases_dir(), self.config.wal_limit)?;
        let (mailbox, inputs) = crossbeam_channel::unbounded();
        let waiting = Waiting { clock: env.clock.clone(), pump: None };
        let session = env.rng.next_u64();
        let hub: Hub =
            Arc::new(Shared::new(id, identity.incarnation, session, self.config.clone(), waiting, mailbox, databases));

        // What can fail for reasons outside the directory comes before the directory is bound to a cluster for good.
        let transport = match &self.listen {
            Some(listen) => Some(self.open_transport(&hub, listen, &env)?),
            None => None,
        };
        let registrations = self.register(&hub, &env)?;
        let start = match &identity.belongs {
            Belongs::Nowhere if !self.join.is_empty() => {
                let address = self.own_address().unwrap_or_default();
                Start::Joining(Box::new(Joining { identity, doors: self.join.clone(), address }))
            }
            Belongs::Nowhere => {
                let founding = Founding::new(identity, &list)
                    .map_err(|error| Error::new(ErrorKind::BadInput, error.to_string()))?;
                self.found_alone(founding, &list, &directory)?
            }
            _ => Start::Opened(Box::new(directory.open_log(&identity)?)),
        };
        let replay_to = match &start {
            Start::Opened(opened) => {
                self.warn_of_ignored_list(&opened.catalogue);
                hub.set_hints(list.iter().filter(|(node, _)| *node != id).cloned().collect());
                if let Some(address) = self.own_address() {
                    hub.hear_address(id, address);
                }
                opened.restored.hard_state.commit
            }
            Start::Joining(_) => LogIndex(0),
            Start::Founding(_) => {
                // Later the members are those of the catalogue.
                if let Some(tcp) = &transport {
                    list.iter().for_each(|(node, address)| tcp.set_peer(*node, address));
                }
                LogIndex(0)
            }
        };
        let vfs_name = registrations.first().map_or(DEFAULT_VFS, Registration::name).to_string();
        hub.set_home(&vfs_name, &self.dir);
        let socket = match self.env {
            None => AdminSocket::open(&hub, &vfs_name, &self.dir)
                .inspect_err(|error| tracing::warn!(node = hub.id.0, %error, "no admin socket"))
                .ok(),
            Some(_) => None,
        };
        let threads =
            node::spawn(hub.clone(), inputs, start, directory, transport.clone().map(|t| t as Arc<dyn Transport>))?;
        let node = Node {
            inner: Arc::new(Inner {
                hub,
                vfs_name,
                registrations: Mutex::new(registrations),
                socket: Mutex::new(socket),
                transport: Mutex::new(transport),
                threads: Mutex::new(threads),
                lock: Mutex::new(Some(lock)),
                pools: Mutex::default(),
                down: Mutex::new(false),
            }),
        };
        node.wait_until(Duration::MAX, |hub| hub.applied().index >= replay_to)?;
        Ok(node)
    }

    /// Where others reach this node.
    fn own_address(&self) -> Option<String> {
        self.advertise.clone().or_else(|| self.listen.clone())
    }

    /// An address that no node would dial is told before anything is founded on it.
    fn check_addresses(&self) -> Result<()> {
        let listed = self.bootstrap.iter().map(|member| &member.address);
        let mut all = listed.chain(&self.advertise).chain(&self.join);
        all.try_for_each(|address| admin::check_address(address, self.config.allow_plaintext_remote))
    }

    fn check_join(&self) -> Result<()> {
        let what = match (self.join.is_empty(), self.bootstrap.is_empty(), &self.listen) {
            (true, ..) => return Ok(()),
            (false, false, _) => "bootstrap(...) founds a cluster, join(...) enters one; give one of the two",
            (false, true, None) => "a node that joins needs an address: call listen(...)",
            (false, true, Some(_)) => return Ok(()),
        };
        Err(Error::new(ErrorKind::BadInput, what))
    }

    fn member_list(&self, id: NodeId) -> Result<Vec<(NodeId, String)>> {
        if self.bootstrap.is_empty() {
            let address = self.advertise.clone().or_else(|| self.listen.clone()).unwrap_or_default();
            return Ok(vec![(id, address)]);
        }
        if self.bootstrap.len() > 1 && self.listen.is_none() {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!("a cluster of {} nodes needs an address: call listen(...)", self.bootstrap.len()),
            ));
        }
        let mut addresses = HashMap::new();
        for member in &self.bootstrap {
            if let Some(other) = addresses.insert(&member.address, member.id) {
                return Err(Error::new(
                    ErrorKind::BadInput,
                    format!(
                        "the bootstrap list gives nodes {other} and {} the same address {}; give each its own",
                        member.id, member.address
                    ),
                ));
            }
        }
        self.bootstrap.iter().map(|member| Ok((node_id(member.id)?, member.address.clone()))).collect()
    }

    /// The directory's cluster decides who is a member; a list that says otherwise is a misunderstanding to be told of.
    fn warn_of_ignored_list(&self, catalogue: &Catalogue) {
        let listed: BTreeSet<u64> = self.bootstrap.iter().map(|member| member.id).collect();
        let members: BTreeSet<u64> = catalogue.members().map(|(id, _)| u64::from(id.0)).collect();
        if !listed.is_empty() && listed != members {
            tracing::warn!(
                "{} belongs to cluster {} with the members {members:?}; the bootstrap list {listed:?} is ignored",
                self.dir.display(),
                catalogue.cluster()
            );
        }
    }

    /// A cluster of one is founded here and now.
    fn found_alone(&self, mut founding: Founding, list: &[(NodeId, String)], directory: &Directory) -> Result<Start> {
        if list.len() > 1 {
            return Ok(Start::Founding(Box::new(founding)));
        }
        founding.on_event(found::Event::Tick, directory.env.rng.next_u64());
        match node::carry_out(&mut founding, directory, None)? {
            Some(opened) => Ok(Start::Opened(Box::new(opened))),
            None => Err(Error::new(ErrorKind::BadInput, "a cluster of one could not be founded".to_string())),
        }
    }

    fn open_transport(&self, hub: &Hub, listen: &str, env: &Env) -> Result<Arc<Tcp>> {
        let mut options = Options::new(hub.id, listen);
        options.advertise = self.own_address().unwrap_or_default();
        options.allow_plaintext_remote = self.config.allow_plaintext_remote;
        options.speaks = self.config.speaks;
        let inbound = Arc::new(NodeInbound::new(hub.clone()));
        let tcp = Tcp::start(options, inbound, env.rng.clone()).map_err(|error| match error {
            ListenError::Address(_) => Error::caused(ErrorKind::BadInput, error.to_string(), error),
            _ => Error::caused(ErrorKind::Io, error.to_string(), error),
        })?;
        let tcp = Arc::new(tcp);
        let transport: Arc<dyn Transport> = tcp.clone();
        hub.set_transport(&transport);
        Ok(tcp)
    }

    fn register(&self, hub: &Hub, env: &Env) -> Result<Vec<Registration>> {
        let replicator = Arc::new(NodeReplicator { hub: hub.clone() });
        let register = |name: &str| Registration::new(name, replicator.clone(), env.clock.clone());
        let own = match &self.vfs_name {
            Some(name) => name.clone(),
            None => format!("shoal-{}", NEXT_VFS.fetch_add(1, Ordering::Relaxed)),
        };
        let mut registrations = vec![register(&own).map_err(|what| Error::new(ErrorKind::BadInput, what))?];
        // Taken means that another node of this process is the first.
        registrations.extend(register(DEFAULT_VFS).ok());
        Ok(registrations)
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
    pools: Mutex<HashMap<String, Vec<Connection>>>,
    /// Held while the node goes down, so that everybody who asked for it returns after it.
    down: Mutex<bool>,
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
    /// A cluster of one, without a socket: the embedded default. Blocks until the log is replayed; returns as leader.
    pub fn open(dir: impl AsRef<Path>) -> Result<Node> {
        let node = Node::builder(1, dir).start()?;
        node.wait_until(Duration::MAX, Shared::is_ready_leader)?;
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
            // A node that was removed goes on applying what its log has.
            let ends = hub.is_stopped() || (hub.trouble().is_some() && !hub.is_removed());
            ends.then(|| Err(stopped(hub)))
        });
        answer.unwrap_or(Ok(false))
    }

    /// Settings for node `id` (1..=65535) in directory `dir`, which is created if it does not exist.
    pub fn builder(id: u64, dir: impl AsRef<Path>) -> Builder {
        Builder {
            id,
            dir: dir.as_ref().to_path_buf(),
            listen: None,
            advertise: None,
            bootstrap: Vec::new(),
            join: Vec::new(),
            vfs_name: None,
            config: Config::default(),
            env: None,
        }
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
            let pooled = self.inner.pools.lock().get_mut(name).and_then(Vec::pop);
            let mut connection = match pooled {
                Some(connection) => connection,
                None => self.connect(name)?,
            };
            let result = match connection.write(&mut f) {
                // Dropped and perhaps created again since: a new connection leads to the database of today.
                Ok(None) => continue,
                Ok(Some(value)) => Ok(value),
                Err(error) => Err(error),
            };
            let mut pools = self.inner.pools.lock();
            let pool = pools.entry(name.to_string()).or_default();
            let usable = result.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::NotFound);
            if pool.len() < POOLED && usable && connection.is_as_new() && !self.inner.hub.is_stopped() {
                pool.push(connection);
            }
            return result;
        }
    }

    /// Index of the last entry that the database shows on this node, and the checksum of its whole content there. Equal
    /// indexes have equal checksums on all nodes.
    pub fn checksum(&self, name: &str) -> Result<(u64, u128)> {
        self.check_running()?;
        let db = self.inner.hub.databases.find(name, false);
        let db = db.map_err(|_| Error::new(ErrorKind::NotFound, format!("no database named {name}")))?;
        let (position, checksum) = db.checksum();
        Ok((position.0, checksum.0))
    }

    /// A view of the database as this node shows it now: one state, lent page by page, while writes go on. As long as it is
    /// open, or one of its pages is lent, the database is not checkpointed on this node, so its WAL grows.
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
        let missing = || Error::new(ErrorKind::NotFound, format!("no database named {name}"));
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

    /// Creates a database; done by the leader.
    pub fn create(&self, name: &str, options: CreateOptions) -> Result<()> {
        let auto_vacuum = options.auto_vacuum.number();
        self.administer(&Request::Create { name: name.to_string(), page_size: options.page_size, auto_vacuum })
    }

    /// Drops a database; done by the leader. Connections to it get an error from then on.
    pub fn drop_database(&self, name: &str) -> Result<()> {
        self.administer(&Request::Drop { name: name.to_string() })
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
    /// node of the cluster can be asked, at any time later; it answers from what it has applied, and never says more than it
    /// can prove. If it knows that the log is committed up to there and is only about to apply it, it waits for that, up
    /// to a second: the node that acknowledged a commit settles its receipt from then on.
    pub fn outcome_of(&self, receipt: impl Borrow<Receipt>) -> Result<ReceiptOutcome> {
        self.check_running()?;
        let receipt = receipt.borrow();
        let index = receipt.entry.index;
        let committed = self.inner.hub.core_status.lock().as_ref().is_some_and(|core| core.committed >= index);
        if committed && self.inner.hub.applied().index < index {
            // Its answer is looked at below, whatever it is.
            let _ = self.wait_applied(index.0, Duration::from_secs(1));
        }
        let cluster = self.inner.hub.with_catalogue(|catalogue| catalogue.cluster());
        match cluster {
            Ok(cluster) if cluster == receipt.cluster => Ok(self.inner.hub.outcome_of(receipt.entry)),
            Ok(cluster) => {
                let what =
                    format!("receipt {receipt} is of cluster {}, this node belongs to {cluster}", receipt.cluster);
                Err(Error::new(ErrorKind::BadInput, what))
            }
            Err(_) => Err(Error::new(ErrorKind::NotFound, "this node belongs to no cluster yet; ask later")),
        }
    }

    /// Brings in a member that listens: it gets everything and does not vote. Its node may be started before or after,
    /// with [`Builder::join`]. Refused, as all changes of the members are, while another one is under way.
    pub fn add_learner(&self, member: Member) -> Result<()> {
        self.administer(&Request::AddLearner { node: node_id(member.id)?, address: member.address })
    }

    /// Lets a learner vote. Refused until it has caught up.
    pub fn promote(&self, id: u64) -> Result<()> {
        self.administer(&Request::Promote { node: node_id(id)? })
    }

    /// Takes a member out, for ever: its id is never used again. A leader hands over first. The node that was removed
    /// learns of it and stops. Refused if the voters that remain and are heard of are no majority.
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

    /// What happens from now on. The receiver is bounded: a slow listener loses events and gets [`Event::Lagged`].
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

    fn check_running(&self) -> Result<()> {
        if self.inner.hub.is_stopped() { Err(stopped(&self.inner.hub)) } else { Ok(()) }
    }

    /// Ends the node: begins no new transaction, hands leadership over, if there is anybody to take it, lets commits that
    /// are on their way finish, if a majority answers. Later calls and open connections get an error, and the name of the
    /// VFS is free. Calling it again does nothing. Waits for the node's threads.
    pub fn shutdown(&self) -> Result<()> {
        self.inner.shutdown();
        Ok(())
    }
}

fn stopped(hub: &Hub) -> Error {
    let why = hub.trouble().map_or_else(|| "was shut down".to_string(), |what| format!("had to stop: {what}"));
    Error::new(ErrorKind::Stopped, format!("node {} {why}", hub.id))
}

impl Inner {
    fn shutdown(&self) {
        let mut down = self.down.lock();
        if std::mem::replace(&mut *down, true) {
            return;
        }
        let hub = &self.hub;
        hub.close();
        if hub.leadership().role == Role::Leader && hub.trouble().is_none() {
            hub.post(Input::HandOver);
            let others =
                hub.core_status.lock().as_ref().is_some_and(|status| status.peers.iter().any(|peer| peer.active));
            if others {
                let deadline = hub.deadline(hub.config.election_timeout);
                let gone = || (hub.leadership().role != Role::Leader).then_some(());
                // Nobody took it in time: the others will elect one.
                let _ = hub.changed.wait(&hub.waiting, deadline, Duration::from_millis(20), gone);
            }
        }
        if hub.trouble().is_none() {
            let deadline = hub.deadline(hub.config.election_timeout);
            let decided = || hub.pending.is_idle().then_some(());
            // What is not decided by then is Unknown to its caller.
            let _ = hub.changed.wait(&hub.waiting, deadline, Duration::from_millis(5), decided);
        }
        hub.stop();
        self.registrations.lock().clear();
        drop(self.socket.lock().take());
        self.pools.lock().clear();
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
        self.shutdown();
    }
}
