//! How a node is started: its settings, and the way from a directory to running threads.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shoaldb_vfs::Registration;
use shoaldb_vfs::env::{Env, in_words};

use super::{Inner, Member, Node, Pools, node_id};
use crate::admin;
use crate::boot::{Directory, Opened};
use crate::config::Config;
use crate::databases::Databases;
use crate::error::{Error, ErrorKind, Result};
use crate::every::Every;
use crate::found::format::{Belongs, Identity};
use crate::found::{self, Founding};
use crate::inbound::NodeInbound;
use crate::net::Transport;
use crate::net::tcp::{self, Bound, ListenError, Options, Tcp};
use crate::node::{self, Joining, Start};
use crate::replicate::NodeReplicator;
use crate::shared::{Hub, Kept, Shared};
use crate::signal::Waiting;
use crate::socket::AdminSocket;
use crate::types::{Incarnation, LogIndex, NodeId};

/// Name under which the first node of a process is reachable by any SQLite client of the process.
const DEFAULT_VFS: &str = "shoal";

static NEXT_VFS: AtomicU64 = AtomicU64::new(1);

/// How a node is started. Every option has a default; see each method. No time may be longer than a week, and no size larger than
/// 1 PiB; [`Builder::start`] says what cannot work.
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
    /// A node with id `id` and its data in `dir`, and all else by default.
    pub(super) fn new(id: u64, dir: &Path) -> Builder {
        Builder {
            id,
            dir: dir.to_path_buf(),
            listen: None,
            advertise: None,
            bootstrap: Vec::new(),
            join: Vec::new(),
            vfs_name: None,
            config: Config::default(),
            env: None,
        }
    }

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
    /// cluster, the list changes nothing, and may be out of date; its addresses of members are tried where a member is not found
    /// at the one that the cluster knows, so that all nodes may be started on other addresses. A list whose other nodes the
    /// cluster has never heard of is ignored with a warning in the log. The cluster begins when a majority of the list has come
    /// up, none of which may belong to one already.
    pub fn bootstrap(mut self, members: impl IntoIterator<Item = Member>) -> Builder {
        self.bootstrap = members.into_iter().collect();
        self
    }

    /// Addresses of nodes of a cluster that this one shall become a member of; any of them lets it in. It listens until it
    /// has caught up and votes from then on. Ignored, with a line in the log, once the directory belongs to a cluster. The id must be one that no
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

    /// Bytes of entries of the log, the newest ones, that are in memory as well; default 32 MiB. Older ones are read from the disk
    /// for a node that lacks them.
    pub fn tail_cache_limit(mut self, bytes: u64) -> Builder {
        self.config.tail_cache_limit = bytes;
        self
    }

    /// Bytes of entries that this node has proposed as the leader and no majority has yet; default 64 MiB, and never less than
    /// four times [`Builder::part_bytes`]. Beyond it a commit fails and is certainly not committed.
    pub fn uncommitted_limit(mut self, bytes: u64) -> Builder {
        self.config.uncommitted_limit = bytes;
        self
    }

    /// Bytes of entries that one other node is sent before it has acknowledged any; default 16 MiB. On a line that is fast and
    /// long it should be what the line carries in one round trip.
    pub fn inflight_limit(mut self, bytes: u64) -> Builder {
        self.config.inflight_limit = bytes;
        self
    }

    /// Bytes of committed entries that may wait in memory to be applied; default 32 MiB. One always may.
    pub fn apply_limit(mut self, bytes: u64) -> Builder {
        self.config.apply_limit = bytes;
        self
    }

    /// Bytes of messages of other nodes that may wait in memory; default 32 MiB. Beyond it their connections are not read. One
    /// always may.
    pub fn inbox_limit(mut self, bytes: u64) -> Builder {
        self.config.inbox_limit = bytes;
        self
    }

    /// Bytes of log beyond which its oldest files are dropped, as soon as every member has what is in them and every
    /// database its checkpoint; default 256 MiB. At least [`Builder::segment_bytes`]; less than four times of that makes no sense.
    pub fn log_limit(mut self, bytes: u64) -> Builder {
        self.config.log_limit = bytes;
        self
    }

    /// Bytes of pages in a database's WAL beyond which they are moved to its main file; default 4 MiB, at least 64 KiB.
    pub fn checkpoint_bytes(mut self, bytes: u64) -> Builder {
        self.config.checkpoint_bytes = bytes;
        self
    }

    /// Bytes of a database's double-write file beyond which it gives its room back when its checkpoint is done; default 64 MiB. Until
    /// then it is as large as what the checkpoint moves, whatever this says. With a smaller number than before, what is there gives its
    /// room back at the start. How large each is: [`crate::DatabaseStatus::doublewrite`].
    pub fn doublewrite_bytes(mut self, bytes: u64) -> Builder {
        self.config.doublewrite_bytes = bytes;
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

    /// Bytes of WAL that read views may keep from being checkpointed before they are closed; default 1 GiB: those that are lent to
    /// other nodes, for all databases together (who fetched from one goes on with another), and those of
    /// [`Node::read_view`](crate::Node::read_view), for one database. The latter are closed, too, when nothing else holds a log
    /// of more than four times [`Builder::log_limit`].
    pub fn snapshot_wal_pin_max(mut self, bytes: u64) -> Builder {
        self.config.snapshot_wal_pin_max = bytes;
        self
    }

    /// How long a read transaction may be open, while the WAL is no more than twice what it may keep; default 60 s. See [`Builder::reader_wal_pin_max`].
    pub fn reader_patience(mut self, age: Duration) -> Builder {
        self.config.reader_patience = age;
        self
    }

    /// Bytes of a database's WAL that read transactions may keep from being checkpointed, or from beginning anew; default 1 GiB.
    /// Beyond them those that have been open for longer than [`Builder::reader_patience`] are ended, and beyond twice as many
    /// those that are older than a second: the next read fails with [`READER_ENDED`](crate::error::READER_ENDED), SQLite rolls
    /// back, and the next transaction of that connection, once its other statements are reset, reads the present state. The same
    /// befalls one older than the patience that alone holds the log at more than four times [`Builder::log_limit`].
    ///
    /// A backup is one read transaction: on a busy node it must take less time than all of this allows.
    pub fn reader_wal_pin_max(mut self, bytes: u64) -> Builder {
        self.config.reader_wal_pin_max = bytes;
        self
    }

    /// Bytes of databases, all of them together, up to which this node copies into memory what it lends to another one, so that no
    /// checkpoint waits for whoever fetches it; default 16 MiB, at most 1 GiB, 0 for never.
    pub fn snapshot_chunk_max_size(mut self, bytes: u64) -> Builder {
        self.config.snapshot_chunk_max_size = bytes;
        self
    }

    /// Bytes of snapshots that this node sends each second, to all other nodes together; default 0, which is no limit. At least
    /// 64 KiB otherwise. Over more than a few seconds: objects of up to 2 MiB are sent whole.
    pub fn snapshot_rate(mut self, bytes: u64) -> Builder {
        self.config.snapshot_rate = bytes;
        self
    }

    /// Size of one file of the log in bytes; default 16 MiB, a multiple of 512 from 4 KiB to 1 GiB. Each is written in advance.
    pub fn segment_bytes(mut self, bytes: u64) -> Builder {
        self.config.segment_bytes = bytes;
        self
    }

    /// A SQL session over the admin socket ends when nothing is asked of it, or nothing of an answer is read, for this long; after a
    /// tenth of it inside of a transaction, and when others waited so long in all to write until an answer was read; default 10 min,
    /// at least 100 ms.
    pub fn session_idle(mut self, limit: Duration) -> Builder {
        self.config.session_idle = limit;
        self
    }

    /// Largest transaction in bytes of pages; default 4 GiB, at least 64 KiB. Until it is checkpointed each node
    /// needs up to four times that on its disk: in the log, for what its WAL does not keep in memory, in the double-write of the
    /// checkpoint, and in the main file.
    pub fn transaction_limit(mut self, bytes: u64) -> Builder {
        self.config.transaction_limit = bytes;
        self
    }

    /// A transaction that is larger than this, encoded, goes through the log in parts of this size; default 4 MiB, at
    /// least 64 KiB and at most 256 MiB.
    pub fn part_bytes(mut self, bytes: usize) -> Builder {
        self.config.part_bytes = bytes;
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

    /// The first time, size or address that cannot work, and what to write instead.
    #[doc(hidden)]
    pub fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        self.config.check().map_err(|bad| (bad.setting, bad.what))?;
        let listed = self.bootstrap.iter().map(|member| ("bootstrap", &member.address, false));
        // A cluster of one may have no address at all, and one that listens anywhere is reached where it listens.
        let listed = listed.filter(|_| self.bootstrap.len() > 1);
        let others = self.advertise.iter().map(|address| ("advertise", address, false));
        let doors = self.join.iter().map(|address| ("join", address, false));
        let own = self.listen.iter().map(|address| ("listen", address, true));
        for (setting, address, any_port) in own.chain(others).chain(listed).chain(doors) {
            tcp::check_shape(address, any_port).map_err(|error| (setting, error.to_string()))?;
        }
        Ok(())
    }

    /// Starts the node. Opens and checks what is in the directory, and blocks until the databases show all that this
    /// directory knows to be committed. Does not wait for other nodes: see [`Node::wait_leader`].
    pub fn start(self) -> Result<Node> {
        let env = self.env.clone().unwrap_or_else(Env::os);
        self.check().map_err(|(setting, what)| Error::new(ErrorKind::BadInput, format!("{setting}: {what}")))?;
        let id = node_id(self.id)?;
        let list = self.member_list(id)?;
        self.check_join()?;
        self.check_addresses()?;
        let directory = Directory::new(env.clone(), &self.dir, &self.config);
        // A start that is refused changes nothing: whatever is wrong outside of a new directory is found before there is one.
        let mut bound = None;
        if matches!(directory.recognize(id), Ok(None)) {
            directory.refuse_foreign()?;
            if self.join.is_empty() {
                check_list(id, &list)?;
            }
            bound = self.bind()?;
        }
        env.fs.create_dir_all(&self.dir, "dir.create").map_err(|error| {
            let what = match (error.kind(), dangling(&self.dir)) {
                (std::io::ErrorKind::AlreadyExists, Some(link)) => link,
                (std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory, _) => {
                    "it is a file, or lies below one; name a directory".to_string()
                }
                _ => in_words(&error),
            };
            let text = format!("{}: cannot be made a data directory: {what}", self.dir.display());
            Error::caused(ErrorKind::Io, text, error)
        })?;
        let unusable = |error: std::io::Error| {
            let text = format!(
                "{}: cannot be used: {}; it must be a directory that the user who runs the node may write to, on a disk that is \
                 mounted for writing",
                self.dir.display(),
                in_words(&error)
            );
            Error::caused(ErrorKind::Io, text, error)
        };
        let lock = env.fs.lock_dir(&self.dir, "dir.lock").map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => Error::new(
                ErrorKind::Busy,
                format!(
                    "{}: another node uses this directory, in this process or another one; stop that node first, or give this one a \
                     directory of its own",
                    self.dir.display()
                ),
            ),
            _ => unusable(error),
        })?;
        let bound = match bound {
            Some(bound) => Some(bound),
            None => self.bind()?,
        };
        let identity = directory.identify(id)?;

        let databases =
            Databases::open(env.clone(), directory.databases_dir(), self.config.wal_limit).map_err(unusable)?;
        databases.keep_doublewrites(self.config.doublewrite_bytes);
        let (mailbox, inputs) = crossbeam_channel::unbounded();
        let waiting = Waiting { clock: env.clock.clone(), pump: None };
        let session = env.rng.next_u64();
        let hub: Hub =
            Arc::new(Shared::new(id, identity.incarnation, session, self.config.clone(), waiting, mailbox, databases));

        // What can fail for reasons outside the directory comes before the directory is bound to a cluster for good.
        let transport = match bound {
            Some(bound) => Some(self.open_transport(&hub, bound, &env)?),
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
        let replay = match &start {
            Start::Opened(opened) => {
                self.look_at_list_of_a_member(id, opened);
                hub.set_hints(list.iter().filter(|(node, _)| *node != id).cloned().collect());
                if let Some(address) = self.own_address() {
                    hub.hear_address(id, address);
                }
                Replay { from: opened.restored.applied, to: opened.restored.hard_state.commit }
            }
            Start::Joining(_) => Replay::NONE,
            Start::Founding(_) => {
                // Later the members are those of the catalogue.
                if let Some(tcp) = &transport {
                    list.iter().for_each(|(node, address)| tcp.set_peer(*node, address));
                }
                Replay::NONE
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
        let pools = Arc::<Pools>::default();
        let kept: Arc<dyn Kept> = pools.clone();
        hub.set_kept(&kept);
        let node = Node {
            inner: Arc::new(Inner {
                hub,
                vfs_name,
                registrations: Mutex::new(registrations),
                socket: Mutex::new(socket),
                transport: Mutex::new(transport),
                threads: Mutex::new(threads),
                lock: Mutex::new(Some(lock)),
                pools,
                drops: AtomicU64::new(0),
                down: Mutex::new(false),
            }),
        };
        let every = Every::second(env.clock.clone());
        node.wait_until(Duration::MAX, |hub| replay.is_done(hub.applied().index, &every))?;
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

    /// The directory's cluster decides who is a member. A list that names others as well is an old or a newer one: settings stay
    /// when members come and go, and this node may have been away. One whose other nodes it has never heard of is another
    /// cluster's, or the directory is. It changes nothing either, but somebody has mixed something up.
    fn look_at_list_of_a_member(&self, id: NodeId, opened: &Opened) {
        let (dir, catalogue) = (self.dir.display(), &opened.catalogue);
        let cluster = catalogue.cluster();
        if !self.join.is_empty() {
            tracing::info!(
                "{dir} belongs to cluster {cluster} already, so there is nothing to join: `join` is ignored"
            );
        }
        let listed: BTreeSet<u16> = self.bootstrap.iter().map(|member| member.id as u16).collect();
        let members: BTreeSet<u16> = catalogue.members().map(|(id, _)| id.0).collect();
        if listed.is_empty() || listed == members {
            return;
        }
        let founders = opened.genesis.iter().flat_map(|genesis| &genesis.members).map(|member| member.node.0);
        let known: BTreeSet<u16> =
            members.iter().copied().chain(catalogue.removed().map(|id| id.0)).chain(founders).collect();
        let others: BTreeSet<u16> = listed.iter().copied().filter(|other| *other != id.0).collect();
        if !others.is_empty() && others.is_disjoint(&known) {
            tracing::warn!(
                "{dir} belongs to cluster {cluster} with the members {members:?}, and of the other nodes in the bootstrap list, \
                 {others:?}, none is or was one of them: the list is ignored. For another cluster, give the node an empty \
                 directory; to bring those nodes into this one, start them with join"
            );
            return;
        }
        tracing::warn!(
            "{dir} belongs to cluster {cluster} with the members {members:?}; the bootstrap list {listed:?} changes nothing of that"
        );
    }

    /// Takes the address to listen on.
    fn bind(&self) -> Result<Option<Bound>> {
        let bound = self.listen.as_ref().map(|listen| Bound::new(listen, self.config.allow_plaintext_remote));
        bound.transpose().map_err(listen_error)
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

    fn open_transport(&self, hub: &Hub, bound: Bound, env: &Env) -> Result<Arc<Tcp>> {
        let mut options = Options::new(hub.id, self.listen.as_deref().unwrap_or_default());
        options.advertise = self.own_address().unwrap_or_default();
        options.allow_plaintext_remote = self.config.allow_plaintext_remote;
        options.speaks = self.config.speaks;
        // What a leader may send unasked finds room, and as much again of what goes out once more.
        let twice = usize::try_from(self.config.inflight_limit.saturating_mul(2)).unwrap_or(usize::MAX);
        options.bulk_queue = options.bulk_queue.max(twice);
        let inbound = Arc::new(NodeInbound::new(hub.clone()));
        let tcp = Tcp::start_on(bound, options, inbound, env.rng.clone()).map_err(listen_error)?;
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

/// The entries that a start applies again: those behind the last checkpoints.
struct Replay {
    from: LogIndex,
    to: LogIndex,
}

impl Replay {
    const NONE: Replay = Replay { from: LogIndex(0), to: LogIndex(0) };

    /// Whether all are applied; else how many, when it is time for that.
    fn is_done(&self, applied: LogIndex, every: &Every) -> bool {
        let done = applied >= self.to;
        if !done && every.is_due() {
            let (some, all) = (applied.0.saturating_sub(self.from.0), self.to.0.saturating_sub(self.from.0));
            tracing::info!("starting: applied {some} of {all} entries of the log");
        }
        done
    }
}

/// Which symbolic link on the way to a directory leads nowhere, in words. No directory is made where it points: that may be the
/// place where a disk is to be mounted. The system itself is asked: a simulated disk has no links.
fn dangling(dir: &Path) -> Option<String> {
    let link = dir.ancestors().find(|path| path.is_symlink() && !path.exists())?;
    let target = link.read_link().ok()?;
    Some(format!(
        "{} is a symbolic link to {}, which does not exist; mount the disk that has it, or make that directory, or name another one",
        link.display(),
        target.display()
    ))
}

fn listen_error(error: ListenError) -> Error {
    let kind = if matches!(error, ListenError::Address(_)) { ErrorKind::BadInput } else { ErrorKind::Io };
    Error::caused(kind, error.to_string(), error)
}

/// Whether a cluster can be founded by a node with this list, whatever its directory.
fn check_list(id: NodeId, list: &[(NodeId, String)]) -> Result<()> {
    let checked = Founding::new(Identity::new(id, Incarnation(0)), list);
    checked.map(|_| ()).map_err(|error| Error::new(ErrorKind::BadInput, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every::tests::{Hasty, said};

    #[test]
    fn how_many_entries_are_applied_is_told_every_second_until_all_are() {
        let replay = Replay { from: LogIndex(100), to: LogIndex(250) };
        let heard = said(|| {
            let every = Every::second(Arc::new(Hasty::default()));
            // The first look is before the catalogue of the anchor is there.
            let done = [0, 100, 160, 250, 251].map(|applied| replay.is_done(LogIndex(applied), &every));
            assert_eq!(done, [false, false, false, true, true]);
        });
        let some = |some| format!("starting: applied {some} of 150 entries of the log");
        assert_eq!(heard, [some(0), some(0), some(60)]);
    }
}
