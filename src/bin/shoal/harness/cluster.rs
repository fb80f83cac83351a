//! Some workers that are one cluster: started, killed, restarted; writes find the leader.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use super::child::{Child, Launch};
use super::ledger::Ledger;
use super::wire::{Act, Failure, Fate, Told};

/// A call that takes longer than this has no answer. Twice a node's own patience with a commit.
pub(crate) const PATIENCE: Duration = Duration::from_secs(25);
/// For a call that reads a whole table of any size.
const PATIENCE_WITH_A_TABLE: Duration = Duration::from_secs(600);
/// First port that is tried. Below what systems give to outgoing connections, so that nothing takes a killed node's
/// port before it is back.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 10_000;

/// What happened, for whoever watches: the node, and what it told.
pub(crate) type Watcher = Arc<dyn Fn(u64, Told) + Send + Sync>;

/// How the workers of one cluster are started.
pub(crate) struct Plan {
    pub(crate) program: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) nodes: u64,
    pub(crate) heartbeat: Duration,
    pub(crate) election_timeout: Duration,
    /// Each node notes what it is doing, and has small limits, so that there is always something to be noted (`worker.rs`).
    pub(crate) phases: bool,
    /// Where each node listens, if not all on loopback: then `program` puts each of them where its address is.
    pub(crate) hosts: Vec<String>,
}

/// Who leads, as far as the workers told.
#[derive(Default)]
struct Known {
    leader: Option<u64>,
    term: u64,
    /// Nodes that have told that they are ready since their last start.
    ready: Vec<u64>,
    /// Which nodes found damage, in words.
    damage: Vec<String>,
}

/// See the module's text.
pub(crate) struct Cluster {
    launches: Vec<Launch>,
    children: Vec<Mutex<Option<Arc<Child>>>>,
    known: Arc<(Mutex<Known>, Condvar)>,
    /// Nodes that ended by themselves and were started again.
    ended: Mutex<Vec<(u64, ExitStatus)>>,
    watcher: Watcher,
}

/// Addresses of loopback that are free. Those of another cluster of this process are so, too, while its nodes are not up: no port is
/// given twice before all others were.
fn addresses(n: u64) -> io::Result<Vec<String>> {
    static TRIED: Mutex<Option<u16>> = Mutex::new(None);
    let mut tried = TRIED.lock();
    let seed = std::process::id().wrapping_mul(7919) % u32::from(PORTS);
    let mut port = tried.unwrap_or(u16::try_from(seed).unwrap_or(0));
    let mut held = Vec::new();
    for _ in 0..PORTS {
        if held.len() as u64 == n {
            break;
        }
        port = (port + 1) % PORTS;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", FIRST_PORT + port)) {
            held.push(listener);
        }
    }
    *tried = Some(port);
    if (held.len() as u64) < n {
        return Err(io::Error::other(format!("no {n} free ports from {FIRST_PORT} on")));
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect()
}

impl Cluster {
    /// Prepares a cluster; no process is started.
    pub(crate) fn new(plan: &Plan, watcher: Watcher) -> io::Result<Cluster> {
        let addresses = if plan.hosts.is_empty() { addresses(plan.nodes)? } else { plan.hosts.clone() };
        let pair = |(id, address): (u64, &String)| format!("{id}={address}");
        let bootstrap = (1..=plan.nodes).zip(&addresses).map(pair).collect::<Vec<_>>().join(",");
        let launch = |(id, address): (u64, &String)| Launch {
            program: plan.program.clone(),
            id,
            data: plan.dir.join(format!("node-{id}")),
            bootstrap: bootstrap.clone(),
            listen: (plan.nodes > 1).then(|| address.clone()),
            heartbeat: plan.heartbeat,
            election_timeout: plan.election_timeout,
            log: plan.dir.join(format!("node-{id}.log")),
            phases: plan.phases.then(|| plan.dir.join(format!("node-{id}.phases"))),
            die_at: None,
        };
        Ok(Cluster {
            launches: (1..=plan.nodes).zip(&addresses).map(launch).collect(),
            children: (1..=plan.nodes).map(|_| Mutex::new(None)).collect(),
            known: Arc::default(),
            ended: Mutex::default(),
            watcher,
        })
    }

    pub(crate) fn ids(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.launches.len() as u64
    }

    fn launch(&self, id: u64) -> &Launch {
        &self.launches[id as usize - 1]
    }

    /// Where a worker's standard error goes.
    pub(crate) fn log(&self, id: u64) -> &Path {
        &self.launch(id).log
    }

    /// Where a worker notes its phases.
    pub(crate) fn phases(&self, id: u64) -> Option<&Path> {
        self.launch(id).phases.as_deref()
    }

    pub(crate) fn child(&self, id: u64) -> Option<Arc<Child>> {
        self.children[id as usize - 1].lock().clone()
    }

    /// Starts a node, which may be told where to die.
    pub(crate) fn start(&self, id: u64, die_at: Option<String>) -> io::Result<()> {
        let launch = Launch { die_at, ..self.launch(id).clone() };
        self.known.0.lock().ready.retain(|ready| *ready != id);
        let (known, watcher) = (self.known.clone(), self.watcher.clone());
        let child = Child::start(&launch, move |told| {
            on_told(&known, id, &told);
            watcher(id, told);
        })?;
        let before = self.children[id as usize - 1].lock().replace(Arc::new(child));
        if let Some(ended) = before.and_then(|child| child.ended_by_itself()) {
            self.ended.lock().push((id, ended));
        }
        Ok(())
    }

    /// Every end of a process that [`Cluster::kill`] did not bring about.
    pub(crate) fn ended_by_themselves(&self) -> Vec<(u64, ExitStatus)> {
        let mut all = self.ended.lock().clone();
        all.extend(self.ids().filter_map(|id| Some((id, self.child(id)?.ended_by_itself()?))));
        all
    }

    /// Kills a node with SIGKILL.
    pub(crate) fn kill(&self, id: u64) {
        if let Some(child) = self.child(id) {
            child.kill();
        }
        self.known.0.lock().ready.retain(|ready| *ready != id);
        self.forget(id);
    }

    /// Who leads, as the youngest term has it.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.known.0.lock().leader
    }

    fn forget(&self, leader: u64) {
        let mut known = self.known.0.lock();
        if known.leader == Some(leader) {
            known.leader = None;
        }
    }

    /// Waits for a leader; `None` after `limit`.
    pub(crate) fn wait_leader(&self, limit: Duration) -> Option<u64> {
        self.wait(limit, |known| known.leader)
    }

    /// Waits until all of these nodes have replayed what they had and know a leader.
    pub(crate) fn wait_ready(&self, ids: &[u64], limit: Duration) -> bool {
        self.wait(limit, |known| ids.iter().all(|id| known.ready.contains(id)).then_some(())).is_some()
    }

    fn wait<T>(&self, limit: Duration, look: impl Fn(&Known) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut known = self.known.0.lock();
        loop {
            if let Some(value) = look(&known) {
                return Some(value);
            }
            if self.known.1.wait_until(&mut known, deadline).timed_out() {
                return look(&known);
            }
        }
    }

    /// Asks one node.
    pub(crate) fn ask(&self, id: u64, act: &Act) -> Result<Value, Failure> {
        match self.child(id) {
            Some(child) => child.call(act, PATIENCE),
            None => Err(Failure { outcome: Fate::NotSent, leader: None, text: format!("node {id} does not run") }),
        }
    }

    /// One attempt on whoever is thought to lead. Follows a hint for the next attempt.
    pub(crate) fn try_on_leader(&self, act: &Act, patience: Duration) -> Result<Value, Failure> {
        let Some(leader) = self.wait_leader(patience) else {
            return Err(Failure { outcome: Fate::NotSent, leader: None, text: "no leader".to_string() });
        };
        let result = self.ask(leader, act);
        match &result {
            Err(Failure { leader: Some(hint), .. }) => self.known.0.lock().leader = Some(*hint),
            Err(_) if self.child(leader).is_none_or(|child| child.is_gone()) => self.forget(leader),
            _ => {}
        }
        result
    }

    /// The same act until it is done; only for what may be done twice.
    pub(crate) fn on_leader(&self, act: &Act, limit: Duration) -> Result<Value, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            match self.try_on_leader(act, limit) {
                Err(failure) if failure.outcome != Fate::Refused && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return result,
            }
        }
    }

    /// One attempt to append a number of the ledger, noted in it. Returns when it was acknowledged.
    pub(crate) fn append(&self, ledger: &Ledger, writer: u64, patience: Duration) -> Result<Instant, Failure> {
        // Without a leader there is nothing to attempt.
        if self.wait_leader(patience).is_none() {
            return Err(Failure { outcome: Fate::NotSent, leader: None, text: "no leader".to_string() });
        }
        let number = ledger.begin();
        let act = Act::Write {
            sql: "INSERT INTO shoal_demo(number, writer) VALUES (?1, ?2)".to_string(),
            params: vec![number.into(), writer.into()],
        };
        match self.try_on_leader(&act, patience) {
            Ok(_) => {
                ledger.acknowledged(number);
                Ok(Instant::now())
            }
            Err(failure) => {
                ledger.failed(number, failure.outcome);
                Err(failure)
            }
        }
    }

    /// Creates the table of `append`.
    pub(crate) fn prepare(&self, limit: Duration) -> Result<(), Failure> {
        let sql = "CREATE TABLE IF NOT EXISTS shoal_demo(number INTEGER NOT NULL, writer INTEGER NOT NULL)";
        self.on_leader(&Act::Batch { sql: sql.to_string() }, limit).map(|_| ())
    }

    /// Waits until all nodes are at the same position; their checksums there.
    pub(crate) fn checksums(&self, limit: Duration) -> Result<Vec<(u64, String)>, String> {
        let deadline = Instant::now() + limit;
        loop {
            let sums: Result<Vec<_>, Failure> = self.ids().map(|id| self.ask(id, &Act::Checksum)).collect();
            let text = match sums {
                Ok(sums) => {
                    let sums: Vec<(u64, String)> =
                        sums.into_iter().filter_map(|sum| serde_json::from_value(sum).ok()).collect();
                    if sums.iter().all(|(position, _)| *position == sums[0].0) {
                        return Ok(sums);
                    }
                    format!("the nodes did not reach one position: {sums:?}")
                }
                Err(failure) => failure.text,
            };
            if Instant::now() >= deadline {
                return Err(text);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Which nodes found a copy damaged, ever since the cluster was made. It would have been repaired from another node, so
    /// nothing else shows it.
    pub(crate) fn damage(&self) -> Vec<String> {
        self.known.0.lock().damage.clone()
    }

    /// Rows and digest of a table on a node.
    pub(crate) fn digest(&self, id: u64, table: &str) -> Result<Value, Failure> {
        let act = Act::Digest { table: table.to_string() };
        match self.child(id) {
            Some(child) => child.call(&act, PATIENCE_WITH_A_TABLE),
            None => self.ask(id, &act),
        }
    }

    /// The numbers that a node has.
    pub(crate) fn numbers(&self, id: u64) -> Result<Vec<u64>, Failure> {
        let sql = "SELECT number FROM shoal_demo".to_string();
        let rows = self.ask(id, &Act::Read { sql, linearizable: false })?;
        Ok(rows.as_array().into_iter().flatten().filter_map(|row| row.get(0)?.as_u64()).collect())
    }

    /// What `PRAGMA integrity_check` says on a node.
    pub(crate) fn integrity(&self, id: u64) -> Result<String, Failure> {
        let rows = self.ask(id, &Act::Read { sql: "PRAGMA integrity_check".to_string(), linearizable: false })?;
        Ok(rows.pointer("/0/0").and_then(Value::as_str).unwrap_or("no answer").to_string())
    }
}

fn on_told(known: &(Mutex<Known>, Condvar), id: u64, told: &Told) {
    let mut state = known.0.lock();
    match told {
        Told::Ready => state.ready.push(id),
        Told::Damage { text } => state.damage.push(format!("node {id}: {text}")),
        Told::Leader { leader, term } if *term > state.term || (*term == state.term && leader.is_some()) => {
            state.term = *term;
            state.leader = *leader;
        }
        _ => {}
    }
    known.1.notify_all();
}
