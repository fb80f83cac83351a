//! Three voters, one of them this process, with a database of some size and a small one; learners that come and go.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shoaldb::{Connection, Node};

use crate::common::{Process, Seat, lead, wait};
use crate::learner::{Said, next};
use crate::measure::Watch;
use crate::settings;

pub(crate) const VOTERS: usize = 3;
/// More than are ever asked for.
const LEARNERS: u64 = 64;

pub(crate) struct Cluster {
    pub(crate) node: Node,
    seats: Vec<Seat>,
    /// The voters beside this process.
    others: Mutex<Vec<Option<Process>>>,
    /// The log of the first of them does not begin with the first entry any more.
    compacted: AtomicBool,
    /// The next seat that nobody had yet.
    next: AtomicUsize,
    /// Of pages in the database.
    pub(crate) bytes: u64,
}

/// A learner that is a member, whether its process runs or not.
pub(crate) struct Learner {
    seat: usize,
    process: Option<Process>,
}

/// What came of a transfer.
#[derive(Default)]
pub(crate) struct Came {
    pub(crate) bytes: u64,
    pub(crate) millis: u64,
}

impl Cluster {
    pub(crate) fn start(dir: &Path, learners_dir: &Path, mib: u64) -> Cluster {
        let seats = Seat::all((dir, VOTERS as u64), (learners_dir, LEARNERS));
        let others = seats[1..VOTERS].iter().map(|seat| Some(seat.spawn())).collect();
        let node = seats[0].start(settings);
        lead(&node, 1);
        let app = node.connect("app").expect("a connection");
        app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").expect("a table");
        // One row to a page, and not all in one transaction.
        for _ in 0..16 {
            app.execute_batch(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
                 INSERT INTO t(v) SELECT randomblob(4040) FROM n",
                mib * 16
            ))
            .expect("the rows");
        }
        let small = node.connect("small").expect("a connection");
        small.execute_batch("CREATE TABLE t(x)").expect("a table");
        let (others, compacted, next) = (Mutex::new(others), AtomicBool::new(false), AtomicUsize::new(VOTERS));
        let cluster = Cluster { node, seats, others, compacted, next, bytes: mib << 20 };
        cluster.checkpointed();
        cluster
    }

    /// Waits until the leader has everything in its main file.
    fn checkpointed(&self) {
        wait("a checkpoint", || {
            let status = self.node.status();
            status.databases.iter().all(|db| db.name != "app" || db.checkpointed == db.position)
        });
    }

    pub(crate) fn app(&self) -> Connection {
        self.node.connect("app").expect("a connection")
    }

    pub(crate) fn all_have_it(&self) {
        let committed = self.node.status().committed;
        wait("all have it", || self.node.status().peers.iter().all(|peer| peer.acknowledged >= committed));
    }

    /// A learner with nothing that needs more than the log has.
    pub(crate) fn learner(&self) -> Learner {
        let seat = self.next.fetch_add(1, Ordering::Relaxed);
        self.node.add_learner(self.seats[seat].member()).expect("a learner");
        self.outrun();
        Learner { seat, process: None }
    }

    /// Writes until the log no longer has what anybody needs who is away, nor what a view that was lent goes on behind. That
    /// goes to a database that is dropped afterwards: whoever comes then need not fetch it.
    pub(crate) fn outrun(&self) {
        let last = self.node.status().last;
        let filler = self.node.connect("filler").expect("a connection");
        filler.execute_batch("CREATE TABLE one(id PRIMARY KEY, v)").expect("a table");
        while self.node.status().first <= last {
            filler.execute("INSERT OR REPLACE INTO one VALUES (1, randomblob(500000))", []).expect("a large row");
        }
        drop(filler);
        self.node.drop_database("filler").expect("it is dropped");
        self.checkpointed();
    }

    /// Starts a learner and waits until it is lent a view, in microseconds. Then it is killed, and no member any more.
    pub(crate) fn lend(&self, mut learner: Learner) -> u64 {
        let mut process = self.seats[learner.seat].spawn();
        let micros = loop {
            if let Said::Lent(micros) = next(&mut process) {
                break micros;
            }
        };
        process.kill();
        learner.process = None;
        self.leave(learner);
        micros
    }

    /// Starts a learner, and kills it when it has so many percent.
    pub(crate) fn kill_at(&self, learner: &Learner, percent: u64) {
        let mut process = self.seats[learner.seat].spawn();
        loop {
            match next(&mut process) {
                Said::Done(at) if at >= percent => return process.kill(),
                Said::Installed(..) => panic!("it was installed before it could be killed"),
                _ => {}
            }
        }
    }

    /// Starts a learner and waits until it is caught up.
    pub(crate) fn join(&self, learner: &mut Learner, watch: &Watch) -> Came {
        self.join_and(learner, watch, |_| {})
    }

    /// The same; `seen` is told how many percent are in place.
    pub(crate) fn join_and(&self, learner: &mut Learner, watch: &Watch, mut seen: impl FnMut(u64)) -> Came {
        let committed = self.node.status().committed.0;
        let process = learner.process.insert(self.seats[learner.seat].spawn());
        watch.learner(process.id());
        let (mut came, mut installed, mut applied) = (Came::default(), false, 0);
        while !installed || applied < committed {
            match next(process) {
                Said::Done(percent) => seen(percent),
                // What came in an attempt that ended counts as well, whether it is in place by now or not.
                Said::Interrupted(bytes) => came.bytes += bytes,
                Said::Installed(bytes, millis) => {
                    came.bytes += bytes;
                    came.millis = millis;
                    installed = true;
                }
                Said::At(index) => applied = index,
                Said::Lent(_) | Said::Compacted => {}
            }
        }
        came
    }

    /// A learner stops in order, and stays a member.
    pub(crate) fn stop(&self, learner: &mut Learner) {
        learner.process = None;
    }

    /// A learner that is no longer needed.
    pub(crate) fn leave(&self, learner: Learner) {
        self.node.remove(self.seats[learner.seat].member().id).expect("it is removed");
        drop(learner.process);
        std::fs::remove_dir_all(self.seats[learner.seat].dir()).expect("its directory goes");
    }

    /// Another voter leads: the first of the others. Whoever has nothing needs a snapshot from that one, too.
    pub(crate) fn let_other_lead(&self) {
        let mut others = self.others.lock().expect("no panic");
        let other = others[0].as_mut().expect("it runs");
        while !self.compacted.load(Ordering::Relaxed) {
            self.compacted.store(matches!(next(other), Said::Compacted), Ordering::Relaxed);
        }
        drop(others);
        lead(&self.node, 2);
    }

    /// Kills the voter that leads.
    pub(crate) fn kill_leader(&self) {
        self.others.lock().expect("no panic")[0].take().expect("it runs").kill();
    }

    /// What was killed runs again, and this process leads.
    pub(crate) fn restore_order(&self) {
        self.others.lock().expect("no panic")[0].get_or_insert_with(|| self.seats[1].spawn());
        lead(&self.node, 1);
        self.all_have_it();
    }

    /// Seconds that a copy and a sync of the leader's largest main file take.
    pub(crate) fn copy(&self) -> f64 {
        let dir = self.seats[0].dir();
        let files = std::fs::read_dir(dir.join("db")).expect("the leader's databases").filter_map(Result::ok);
        let largest = files
            .filter(|file| file.path().extension().is_some_and(|end| end == "db"))
            .max_by_key(|file| file.metadata().map_or(0, |metadata| metadata.len()))
            .expect("a main file");
        let to = dir.join("copy");
        let begun = Instant::now();
        std::fs::copy(largest.path(), &to).expect("a copy");
        std::fs::File::open(&to).and_then(|file| file.sync_all()).expect("a sync");
        let seconds = begun.elapsed().as_secs_f64();
        std::fs::remove_file(&to).expect("the copy goes");
        seconds
    }

    /// Lets the disk come to rest.
    pub(crate) fn rest(&self) {
        rustix::fs::sync();
        std::thread::sleep(Duration::from_millis(300));
    }
}
