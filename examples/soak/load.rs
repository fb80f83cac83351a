//! What goes on at the same time, each in threads of its own, until somebody says stop or finds something wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use crate::cluster::{Cluster, NODES};
use crate::ledger::Account;
use crate::wire::{Failure, Fate, Job};

pub(crate) const DATABASES: [&str; 4] = ["app1", "app2", "app3", "app4"];
/// Writers of small transactions; one more makes large ones.
pub(crate) const SMALL: u64 = 8;
pub(crate) const WRITERS: u64 = SMALL + 1;
const SLOTS: u64 = 50;
/// Milliseconds between two small transactions of a writer: some 300 a second in all, which a machine does that is busy with
/// other things besides. The load of one minute is like that of another then, and what the nodes keep while somebody reads
/// can be compared; with writers that never pause it shows how fast the machine was.
const PAUSE: (u64, u64) = (0, 50);
/// Without an acknowledged transaction; an election takes less. It is noted.
const LONG_GAP: Duration = Duration::from_secs(5);

/// SplitMix64: any seed is a good one.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64, who: u64) -> Dice {
        Dice(seed.wrapping_mul(1_000_003).wrapping_add(who))
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn between(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// What is counted since the last line that was printed.
#[derive(Default)]
pub(crate) struct Minute {
    pub(crate) micros: Vec<u64>,
    pub(crate) kills: u64,
    /// The longest time without any acknowledged transaction.
    pub(crate) gap: Duration,
}

/// Everything that the threads share.
pub(crate) struct Soak {
    pub(crate) cluster: Cluster,
    seed: u64,
    /// A node that is never killed.
    steady: Option<u64>,
    began: Instant,
    notes: Mutex<std::fs::File>,
    /// By database, then by writer.
    pub(crate) accounts: Vec<Vec<Mutex<Account>>>,
    pub(crate) minute: Mutex<Minute>,
    pub(crate) last_commit: Mutex<Instant>,
    /// How often each kind of job was done.
    pub(crate) jobs: Mutex<BTreeMap<&'static str, u64>>,
    /// How often it failed, and with which words.
    pub(crate) failures: Mutex<BTreeMap<(&'static str, String), u64>>,
    pub(crate) unknown: AtomicU64,
    stop: AtomicBool,
    stopped: (Mutex<()>, Condvar),
    /// The first thing that is wrong.
    finding: Mutex<Option<String>>,
}

impl Soak {
    pub(crate) fn new(cluster: Cluster, seed: u64, steady: Option<u64>, notes: std::fs::File) -> Soak {
        let accounts = || (0..WRITERS).map(|_| Mutex::default()).collect();
        Soak {
            cluster,
            seed,
            steady,
            began: Instant::now(),
            notes: Mutex::new(notes),
            accounts: DATABASES.iter().map(|_| accounts()).collect(),
            minute: Mutex::default(),
            last_commit: Mutex::new(Instant::now()),
            jobs: Mutex::default(),
            failures: Mutex::default(),
            unknown: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            stopped: Default::default(),
            finding: Mutex::new(None),
        }
    }

    /// Whether the load shall end; else waits that long for it.
    pub(crate) fn stops_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut guard = self.stopped.0.lock();
        while !self.stop.load(Ordering::SeqCst) {
            if self.stopped.1.wait_until(&mut guard, until).timed_out() {
                break;
            }
        }
        self.stop.load(Ordering::SeqCst)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.stopped.0.lock());
        self.stopped.1.notify_all();
    }

    /// Something is wrong: the load ends.
    pub(crate) fn found(&self, what: impl Into<String>) {
        let what = what.into();
        eprintln!("soak: {what}");
        self.finding.lock().get_or_insert(what);
        self.stop();
    }

    pub(crate) fn finding(&self) -> Option<String> {
        self.finding.lock().clone()
    }

    fn count<T>(&self, job: &'static str, result: &Result<T, Failure>) {
        *self.jobs.lock().entry(job).or_default() += u64::from(result.is_ok());
        if let Err(failure) = result {
            *self.failures.lock().entry((job, failure.text.clone())).or_default() += 1;
        }
    }

    /// A line among the nodes' logs, with the time since the beginning.
    fn note(&self, what: &str) {
        let line = format!("{:8.1} s  {what}\n", self.began.elapsed().as_secs_f64());
        if let Err(error) = self.notes.lock().write_all(line.as_bytes()) {
            eprintln!("soak: {error}: {line}");
        }
    }

    /// Starts all of it; returns when all of it has ended.
    pub(crate) fn run(&self, watch: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            scope.spawn(watch);
            (0..WRITERS).for_each(|writer| drop(scope.spawn(move || self.write(writer))));
            for node in NODES {
                scope.spawn(move || self.read(node));
                scope.spawn(move || self.hold(node));
            }
            scope.spawn(|| self.change());
            scope.spawn(|| self.disturb());
        });
    }

    fn write(&self, writer: u64) {
        let mut dice = Dice::new(self.seed, writer);
        let large = writer == SMALL;
        let (from, to) = if large { (2000, 12_000) } else { PAUSE };
        while !self.stops_within(dice.between(from, to)) {
            let at = dice.below(DATABASES.len() as u64) as usize;
            let (slot, plain) = (dice.below(SLOTS), dice.below(2) == 0);
            if let Err(failure) = self.attempt(at, writer, slot, large, plain)
                && failure.fate == Fate::Unsaid
            {
                self.found(format!("a transaction on {} ended with: {}", DATABASES[at], failure.text));
            }
        }
    }

    /// One transaction, noted in its account.
    pub(crate) fn attempt(&self, at: usize, writer: u64, slot: u64, large: bool, plain: bool) -> Result<(), Failure> {
        let db = DATABASES[at].to_string();
        let number = self.accounts[at][writer as usize].lock().begin();
        let kind = if large { "large transactions" } else { "small transactions" };
        let result = self.cluster.on_leader(&Job::Write { db, writer, slot, number, large, plain });
        self.count(kind, &result);
        let mut account = self.accounts[at][writer as usize].lock();
        match result {
            Ok((micros, value)) => {
                let total = value.get(0).and_then(Value::as_u64).unwrap_or(0);
                let before = value.get(1).and_then(Value::as_u64);
                if let Err(what) = account.acknowledged(slot, number, total, before) {
                    self.found(format!("{}, writer {writer}: {what}", DATABASES[at]));
                }
                drop(account);
                let gap = std::mem::replace(&mut *self.last_commit.lock(), Instant::now()).elapsed();
                if gap > LONG_GAP {
                    self.note(&format!("nothing was acknowledged for {gap:?}"));
                }
                let mut minute = self.minute.lock();
                minute.gap = minute.gap.max(gap);
                if !large {
                    minute.micros.push(micros);
                }
                Ok(())
            }
            Err(failure) => {
                account.failed(slot, number, failure.fate);
                drop(account);
                if failure.fate == Fate::Unknown {
                    self.unknown.fetch_add(1, Ordering::Relaxed);
                }
                // An application would look for the leader before it tries again.
                self.stops_within(Duration::from_millis(20));
                Err(failure)
            }
        }
    }

    /// Reads on one node: within one process it never goes back, and a linearizable read misses nothing that was
    /// acknowledged before it began.
    fn read(&self, node: u64) {
        let mut dice = Dice::new(self.seed, 100 + node);
        let mut seen: HashMap<(u32, usize), BTreeMap<u64, u64>> = HashMap::new();
        while !self.stops_within(dice.between(5, 60)) {
            let at = dice.below(DATABASES.len() as u64) as usize;
            let db = DATABASES[at].to_string();
            let Some(child) = self.cluster.child(node) else { continue };
            if !seen.keys().all(|(pid, _)| *pid == child.pid) {
                seen.clear();
            }
            let linearizable = dice.below(3) == 0;
            let least: Vec<u64> = match linearizable {
                true => self.accounts[at].iter().map(|account| account.lock().certain()).collect(),
                false => Vec::new(),
            };
            let result = child.call(&Job::Totals { db, linearizable });
            self.count(if linearizable { "linearizable reads" } else { "local reads" }, &result);
            let Ok((_, value)) = result else { continue };
            let totals = pairs(&value);
            for (writer, least) in least.iter().enumerate() {
                let is = totals.get(&(writer as u64)).copied().unwrap_or(0);
                if is < *least {
                    self.found(format!(
                        "node {node}, {}: a linearizable read shows {is} of writer {writer}, {least} were acknowledged",
                        DATABASES[at]
                    ));
                }
            }
            let seen = seen.entry((child.pid, at)).or_default();
            for (writer, before) in &*seen {
                let is = totals.get(writer).copied().unwrap_or(0);
                if is < *before {
                    self.found(format!(
                        "node {node}, {}: a read shows {is} of writer {writer}, an earlier one showed {before}",
                        DATABASES[at]
                    ));
                }
            }
            *seen = totals;
        }
    }

    /// Read transactions that stay open: most of them for seconds, some for half a minute.
    fn hold(&self, node: u64) {
        let mut dice = Dice::new(self.seed, 200 + node);
        while !self.stops_within(dice.between(100, 3000)) {
            let db = DATABASES[dice.below(DATABASES.len() as u64) as usize].to_string();
            let millis = if dice.below(8) == 0 { 30_000 } else { 200 + dice.below(8000) };
            let result = self.cluster.ask(node, &Job::Hold { db: db.clone(), millis });
            self.count("long reads", &result);
            if let Ok((_, one_state)) = result
                && one_state != Value::Bool(true)
            {
                self.found(format!("node {node}, {db}: a read transaction of {millis} ms saw two states"));
            }
        }
    }

    /// The schema changes, databases shrink, come and go.
    fn change(&self) {
        let mut dice = Dice::new(self.seed, 300);
        let mut step = 0;
        while !self.stops_within(dice.between(300, 2500)) {
            let db = DATABASES[dice.below(DATABASES.len() as u64) as usize].to_string();
            let job = match dice.below(8) {
                0 => Job::Vacuum { db },
                1 => Job::Passing { db: format!("passing{}", dice.below(4)) },
                2 => Job::Transfer { to: 1 + dice.below(3) },
                _ => Job::Shape { db: DATABASES[step as usize / 5 % 4].to_string(), step },
            };
            let again = matches!(job, Job::Shape { .. });
            let result = self.make(&job);
            if again {
                // Its steps build on each other: the next one only after this one, except where it cannot be done any more.
                step += u64::from(result.is_ok() || result.is_err_and(|failure| failure.fate == Fate::Unsaid));
            }
        }
    }

    /// One change, counted.
    pub(crate) fn make(&self, change: &Job) -> Result<(u64, Value), Failure> {
        let result = self.cluster.on_leader(change);
        self.count(kind(change), &result);
        result
    }

    /// One change of each kind that never worked: of a short soak a few kills may have met them all. Each may be made twice.
    pub(crate) fn never_made(&self) -> Vec<Job> {
        let db = || DATABASES[0].to_string();
        let mut changes = vec![
            Job::Vacuum { db: db() },
            Job::Passing { db: "passing".to_string() },
            Job::Transfer { to: self.cluster.leader() % 3 + 1 },
            Job::Shape { db: db(), step: 0 },
        ];
        let jobs = self.jobs.lock();
        changes.retain(|change| jobs.get(kind(change)).is_none_or(|made| *made == 0));
        changes
    }

    /// Processes are killed, most of all the one that leads, and started again.
    fn disturb(&self) {
        let mut dice = Dice::new(self.seed, 400);
        while !self.stops_within(dice.between(3000, 12_000)) {
            let one = 1 + dice.below(3);
            let victims = match dice.below(20) {
                0 => vec![1, 2, 3],
                1 | 2 => vec![one, one % 3 + 1],
                3..7 => vec![one],
                _ => vec![self.cluster.leader()],
            };
            // Somebody dies each time, all the same.
            let spared = |id: u64| if self.steady == Some(id) { id % 3 + 1 } else { id };
            let victims: Vec<u64> = victims.into_iter().map(spared).collect::<BTreeSet<_>>().into_iter().collect();
            self.note(&format!("kill {victims:?}, node {} leads", self.cluster.leader()));
            victims.iter().for_each(|id| self.cluster.kill(*id));
            self.minute.lock().kills += victims.len() as u64;
            victims.iter().for_each(|_| self.count("kills", &Ok(())));
            // Now and then one is away for so long that the others' logs have lost what it needs.
            let away = if victims.len() == 1 && dice.below(8) == 0 { (30_000, 45_000) } else { (50, 4000) };
            let ends = self.stops_within(dice.between(away.0, away.1));
            self.note(&format!("start {victims:?}"));
            for id in victims {
                if let Err(error) = self.cluster.start(id) {
                    self.found(format!("node {id} could not be started: {error}"));
                }
            }
            if ends {
                return;
            }
        }
    }
}

/// What a change is counted as.
fn kind(change: &Job) -> &'static str {
    match change {
        Job::Vacuum { .. } => "VACUUM",
        Job::Passing { .. } => "databases that come and go",
        Job::Transfer { .. } => "transfers of leadership",
        _ => "changes of the schema",
    }
}

/// Rows of two numbers.
pub(crate) fn pairs(value: &Value) -> BTreeMap<u64, u64> {
    let rows = value.as_array().into_iter().flatten();
    rows.filter_map(|row| Some((row.get(0)?.as_u64()?, row.get(1)?.as_u64()?))).collect()
}
