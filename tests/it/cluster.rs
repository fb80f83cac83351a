//! A cluster of nodes in this process, over real sockets, for the tests beside this file.

use std::time::{Duration, Instant};

use shoaldb::{Builder, Error, Member, Node, Status, rusqlite};
use tempfile::TempDir;

pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    pub(crate) dirs: Vec<TempDir>,
    pub(crate) list: Vec<Member>,
    pub(crate) nodes: Vec<Option<Node>>,
    settings: fn(Builder) -> Builder,
}

/// Ports that were free a moment ago.
pub(crate) fn free_ports(n: usize) -> Vec<u16> {
    let held: Vec<_> = (0..n).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// Waits until a node's status is as wanted.
pub(crate) fn until(node: &Node, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    let started = Instant::now();
    loop {
        let status = node.status();
        if wanted(&status) {
            return status;
        }
        assert!(started.elapsed() < LONG, "{what}: {status:#?}");
        std::thread::yield_now();
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

/// One transaction with so many rows of about a page.
pub(crate) fn fill(node: &Node, db: &str, rows: usize) {
    node.write(db, |tx| {
        for _ in 0..rows {
            tx.execute("INSERT INTO b(v) VALUES (randomblob(4000))", [])?;
        }
        Ok(())
    })
    .unwrap();
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

    pub(crate) fn start_node(&mut self, id: u64) {
        let at = id as usize - 1;
        self.nodes[at] = Some(self.builder(id).start().unwrap());
    }

    /// The settings of a node of this cluster.
    pub(crate) fn builder(&self, id: u64) -> Builder {
        let at = id as usize - 1;
        let builder = Node::builder(id, self.dirs[at].path())
            .listen(self.list[at].address.clone())
            .bootstrap(self.list.clone())
            .heartbeat(Duration::from_millis(50))
            .election_timeout(Duration::from_millis(400));
        (self.settings)(builder)
    }

    /// Cuts a node off from all others, or lets it through again.
    pub(crate) fn cut(&self, id: u64, blocked: bool) {
        for other in self.running().filter(|other| other.id() != id) {
            other.set_blocked(id, blocked);
            self.node(id).set_blocked(other.id(), blocked);
        }
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

/// Retries what is safe to retry, as an application would.
pub(crate) fn insert(cluster: &Cluster, value: i64) -> Result<(), Error> {
    loop {
        let result = cluster.leader().write("app", |tx| {
            tx.execute("INSERT INTO t VALUES (?1)", [value])?;
            Ok(())
        });
        match result {
            Err(error) if error.is_retryable() => continue,
            other => return other,
        }
    }
}

pub(crate) fn table(cluster: &Cluster) {
    cluster.leader().write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x UNIQUE)")?)).unwrap();
}
