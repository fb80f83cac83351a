//! A cluster of nodes in this process, over real sockets, for the tests beside this file.

use std::time::{Duration, Instant};

use shoaldb::{Builder, Error, ErrorKind, Member, Node, Status, WriteTx, rusqlite};
use tempfile::TempDir;

pub(crate) use self::ports::free_ports;

#[path = "ports.rs"]
mod ports;

pub(crate) const LONG: Duration = Duration::from_secs(30);
/// The patience of a commit that is to run out of time.
const SHORT: Duration = Duration::from_millis(500);

pub(crate) struct Cluster {
    pub(crate) dirs: Vec<TempDir>,
    pub(crate) list: Vec<Member>,
    pub(crate) nodes: Vec<Option<Node>>,
    settings: fn(Builder) -> Builder,
    /// Nodes that are started from now on miss nobody for [`LONG`].
    pub(crate) calm: bool,
}

/// Acts again as long as it fails in a way that may pass.
fn again<T>(act: impl Fn() -> Result<T, Error>, may_pass: impl Fn(&Error) -> bool) -> Result<T, Error> {
    let started = Instant::now();
    loop {
        match act() {
            Err(error) if may_pass(&error) && started.elapsed() < LONG => std::thread::yield_now(),
            result => return result,
        }
    }
}

/// Retries what is safe to retry, as an application would.
pub(crate) fn retry<T>(act: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    again(act, Error::is_retryable)
}

/// The same for changes of the members, and of who leads: on a busy machine whoever is to take part may not have been heard of
/// lately, or may not take over in time. Of a change nothing was done then, and leadership may be given twice.
pub(crate) fn administer(act: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    again(act, |error| error.is_retryable() || error.kind() == ErrorKind::Timeout)
}

/// Waits until a node's status is as wanted.
pub(crate) fn until(node: &Node, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    let started = Instant::now();
    loop {
        let status = node.status();
        if wanted(&status) {
            return status;
        }
        assert!(started.elapsed() < LONG, "node {}: {what}: {status:#?}", node.id());
        // Whoever is waited for may need this processor.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Checkpoints at once, a log of a few segments, and views that are lent as if the databases were large.
pub(crate) fn quick(builder: Builder) -> Builder {
    builder
        .snapshot_chunk_max_size(0)
        .checkpoint_bytes(64 << 10)
        .checkpoint_age(Duration::from_millis(100))
        .segment_bytes(64 << 10)
        .log_limit(256 << 10)
}

/// One transaction with so many rows of about a page, on whoever leads when it is tried.
pub(crate) fn fill<'a>(leader: impl Fn() -> &'a Node, db: &str, rows: usize) {
    let act = || {
        leader().write(db, |tx| {
            for _ in 0..rows {
                tx.execute("INSERT INTO b(v) VALUES (randomblob(4000))", [])?;
            }
            Ok(())
        })
    };
    retry(act).unwrap();
}

/// Lets large transactions of a node wait in their middle until this is dropped. A scope in which one is being written
/// needs it inside: a test that fails there waits for it otherwise.
pub(crate) struct PartsHeld(Node);

impl PartsHeld {
    pub(crate) fn by(node: &Node) -> PartsHeld {
        node.hold_parts(true);
        PartsHeld(node.clone())
    }
}

impl Drop for PartsHeld {
    fn drop(&mut self) {
        self.0.hold_parts(false);
    }
}

/// Commits of a node run out of time soon until this is dropped; then they have all the time that there is.
pub(crate) struct Impatient(Node);

impl Impatient {
    pub(crate) fn on(node: &Node) -> Impatient {
        Impatient::after(SHORT, node)
    }

    /// For calls of which only some parts are to run out of time: the others must not.
    pub(crate) fn after(time: Duration, node: &Node) -> Impatient {
        node.set_commit_timeout(time);
        Impatient(node.clone())
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        self.0.set_commit_timeout(LONG);
    }
}

impl Drop for Cluster {
    /// Nobody takes over from the last one. Waiting for that would be most of what a test takes.
    fn drop(&mut self) {
        self.running().for_each(Node::shutdown_at_once);
    }
}

impl Cluster {
    pub(crate) fn prepare(n: u64) -> Cluster {
        Cluster::prepare_with(n, |builder| builder)
    }

    /// Nodes that are not started yet, and the settings of those that `start_node` starts.
    pub(crate) fn prepare_with(n: u64, settings: fn(Builder) -> Builder) -> Cluster {
        let list = (1..=n).zip(free_ports(n as usize)).map(|(id, port)| Member::new(id, format!("127.0.0.1:{port}")));
        Cluster {
            dirs: (0..n).map(|_| tempfile::tempdir().unwrap()).collect(),
            list: list.collect(),
            nodes: (0..n).map(|_| None).collect(),
            settings,
            calm: false,
        }
    }

    pub(crate) fn start(n: u64) -> Cluster {
        Cluster::start_with(n, |builder| builder)
    }

    pub(crate) fn start_with(n: u64, settings: fn(Builder) -> Builder) -> Cluster {
        let mut cluster = Cluster::prepare_with(n, settings);
        (1..=n).for_each(|id| cluster.start_node(id));
        cluster
    }

    /// A cluster in which nobody is missed, whoever is cut off and however slow the machine is: who leads goes on to lead.
    ///
    /// The first leader of a cluster is elected when one has been missed for an election timeout, so that is a short one
    /// at first. Then each node is started again with a long one, and the leader is made one of those.
    pub(crate) fn start_calm(n: u64, settings: fn(Builder) -> Builder) -> Cluster {
        let mut cluster = Cluster::start_with(n, settings);
        cluster.calm = true;
        let started = Instant::now();
        let mut restless: Vec<u64> = (1..=n).collect();
        while !restless.is_empty() {
            assert!(started.elapsed() < LONG, "{restless:?} are restless");
            let leader = cluster.leader();
            if restless.contains(&leader.id()) && restless.len() < n as usize {
                let calm = (1..=n).find(|id| !restless.contains(id)).unwrap();
                // Refused until the leader has heard of it.
                let _ = leader.transfer_leadership(calm);
                continue;
            }
            // Whoever can leave without an election goes first.
            let at = restless.iter().position(|id| *id != leader.id()).unwrap_or(0);
            let id = restless.swap_remove(at);
            cluster.nodes[id as usize - 1].take().unwrap().shutdown_at_once();
            cluster.start_node(id);
        }
        cluster
    }

    pub(crate) fn start_node(&mut self, id: u64) {
        self.try_start_node(id).unwrap();
    }

    pub(crate) fn try_start_node(&mut self, id: u64) -> Result<(), Error> {
        let started = self.builder(id).start()?;
        self.nodes[id as usize - 1] = Some(started);
        Ok(())
    }

    /// The settings of a node of this cluster.
    pub(crate) fn builder(&self, id: u64) -> Builder {
        let at = id as usize - 1;
        let builder = Node::builder(id, self.dirs[at].path())
            .listen(self.list[at].address.clone())
            .bootstrap(self.list.clone())
            .heartbeat(Duration::from_millis(50))
            .election_timeout(Duration::from_millis(400));
        let builder = (self.settings)(builder);
        if self.calm { builder.election_timeout(LONG) } else { builder }
    }

    /// Cuts a node off from all others, or lets it through again.
    pub(crate) fn cut(&self, id: u64, blocked: bool) {
        for other in self.running().filter(|other| other.id() != id) {
            other.set_blocked(id, blocked);
            self.node(id).set_blocked(other.id(), blocked);
        }
    }

    /// Stops all that run; which they were. What is started next begins before anybody talks to it, so that its events can be
    /// heard from the first one on.
    pub(crate) fn stop_all(&mut self) -> Vec<u64> {
        let stopped = self.running().map(Node::id).collect();
        self.nodes.iter_mut().filter_map(Option::take).for_each(|node| node.shutdown_at_once());
        stopped
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        self.nodes[id as usize - 1].as_ref().unwrap()
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    /// The leader that all running nodes agree on.
    pub(crate) fn leader(&self) -> &Node {
        loop {
            let leaders: Vec<u64> = self.running().map(|node| node.wait_leader(LONG).unwrap()).collect();
            if leaders.iter().all(|id| *id == leaders[0]) && self.node(leaders[0]).is_leader() {
                return self.node(leaders[0]);
            }
        }
    }

    /// A transaction on whoever leads, tried again where that is safe.
    pub(crate) fn write<T>(
        &self,
        db: &str,
        act: impl Fn(&WriteTx<'_>) -> Result<T, Error> + Send + Sync,
    ) -> Result<T, Error> {
        retry(|| self.leader().write(db, &act))
    }

    /// Waits until the status of whoever leads is as wanted. Only a leader knows of its peers.
    pub(crate) fn until_leader(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let started = Instant::now();
        loop {
            let status = self.leader().status();
            if wanted(&status) {
                return status;
            }
            assert!(started.elapsed() < LONG, "{what}: {status:#?}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn follower(&self) -> &Node {
        let leader = self.leader().id();
        self.running().find(|node| node.id() != leader).unwrap()
    }

    /// All running nodes show the leader's last entry, and have the same content.
    pub(crate) fn assert_equal(&self, database: &str) {
        let index = self.leader().checksum(database).unwrap().0;
        for node in self.running() {
            assert!(node.wait_applied(index, LONG), "node {} did not reach {index}", node.id());
        }
        let sums: Vec<_> = self.running().map(|node| node.checksum(database).unwrap()).collect();
        assert!(sums.windows(2).all(|pair| pair[0] == pair[1]), "{sums:x?}");
        for node in self.running() {
            let db = node.connect(database).unwrap();
            let ok: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(ok, "ok");
        }
    }
}

pub(crate) fn count(db: &rusqlite::Connection) -> i64 {
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

pub(crate) fn insert(cluster: &Cluster, value: i64) -> Result<(), Error> {
    cluster.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [value]).map(|_| ())?))
}

pub(crate) fn table(cluster: &Cluster) {
    cluster.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x UNIQUE)")?)).unwrap();
}
