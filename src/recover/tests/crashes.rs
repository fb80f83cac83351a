//! The table of crashes in the module's header, walked: power lost in every call of a recovery, its process ended
//! before it, and a fault of it; of a recovery that nothing came before, and of one behind another whose process ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimClock, SimFs, SimRng, assert_failed};
use shoaldb_vfs::env::{DirLock, File, Fs, Label, Open, Scratch};

use super::*;
use crate::boot::{Directory, Opened};

const DIR: &str = "/a";
const ONLY: NodeId = NodeId(1);
const OLD: ClusterId = ClusterId(77);
/// The last entry of the log, and the last one that the node knew to be committed.
const LAST: LogIndex = LogIndex(5);
const COMMITTED: LogIndex = LogIndex(4);
/// The bits of the seeds have each choice of the renames that an exchange makes.
const SEEDS: u64 = 8;

/// What a recovery does, from the lock to the exchange.
const LABELS: [Label; 27] = [
    "dir.lock",
    "identity.create",
    "identity.len",
    "identity.open",
    "identity.read",
    "identity.remove",
    "identity.rename",
    "identity.sync",
    "identity.sync_dir",
    "identity.write",
    "log.create",
    "log.head.sync",
    "log.head.write",
    "log.len",
    "log.list",
    "log.mkdir",
    "log.open",
    "log.open.sync",
    "log.promote",
    "log.promote.sync",
    "log.read",
    "log.rewrite",
    "log.sync",
    "log.write",
    "recover.begin",
    "recover.clear",
    "recover.exchange",
];

/// A process that ends behind one of these leaves what it found.
const LOOKS: [Label; 8] =
    ["dir.lock", "identity.len", "identity.open", "identity.read", "log.len", "log.list", "log.open", "log.read"];

/// The simulated disk, which does not know that a directory has a name that can be changed: what those in `DIR` stand
/// for is kept here. As with files, after a power cut each rename that no sync of `DIR` followed happened or not, on
/// its own; the bits of the seed say which.
#[derive(Debug)]
struct Disk {
    fs: SimFs,
    names: Mutex<Names>,
}

#[derive(Default, Debug)]
struct Names {
    live: BTreeMap<String, PathBuf>,
    durable: BTreeMap<String, PathBuf>,
    pending: Vec<(String, String, PathBuf)>,
    made: u32,
    /// The seed of a power cut that is planned or came.
    power: Option<u64>,
}

/// The name, if this is a directory in `DIR`.
fn name_of_dir(path: &Path) -> Option<String> {
    let name = path.strip_prefix(DIR).ok()?.to_str()?;
    (name.starts_with("log") && !name.contains('/')).then(|| name.to_string())
}

impl Disk {
    /// Where this is on the disk below. A directory that there is not is nowhere there, too.
    fn place(&self, path: &Path) -> PathBuf {
        let Some((dir, name)) = path.ancestors().find_map(|dir| Some((dir, name_of_dir(dir)?))) else {
            return path.to_path_buf();
        };
        let place = self.names.lock().live.get(&name).cloned().unwrap_or_else(|| PathBuf::from("/nowhere"));
        place.join(path.strip_prefix(dir).unwrap())
    }

    /// Power is back, or the process starts again.
    fn restart(&self) {
        let mut names = self.names.lock();
        if let Some(seed) = names.power.take()
            && self.fs.is_down()
        {
            for (at, (from, to, place)) in std::mem::take(&mut names.pending).into_iter().enumerate() {
                if (seed >> at) & 1 == 0 {
                    continue;
                }
                if names.durable.get(&from) == Some(&place) {
                    names.durable.remove(&from);
                }
                names.durable.insert(to, place);
            }
            names.live = names.durable.clone();
        }
        self.fs.clear_faults();
        self.fs.restart();
    }

    fn lose_power(&self, seed: u64) {
        self.names.lock().power = Some(seed);
        self.fs.crash(seed);
        self.restart();
    }
}

impl Fs for Disk {
    fn open(&self, path: &Path, how: Open, label: Label) -> io::Result<Arc<dyn File>> {
        self.fs.open(&self.place(path), how, label)
    }

    fn rename(&self, from: &Path, to: &Path, label: Label) -> io::Result<()> {
        let place = self.place(from);
        let (Some(from), Some(new)) = (name_of_dir(from), name_of_dir(to)) else {
            return self.fs.rename(&place, &self.place(to), label);
        };
        let was_down = self.fs.is_down();
        // A call that changes nothing there, for what becomes of it.
        let verdict = self.fs.list(&place, label).map(|_| ());
        let mut names = self.names.lock();
        let in_it = names.power.is_some() && !was_down && self.fs.is_down();
        if (verdict.is_ok() || in_it) && names.live.contains_key(&from) {
            if names.live.contains_key(&new) {
                return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
            }
            names.live.remove(&from);
            names.live.insert(new.clone(), place.clone());
            names.pending.push((from, new, place));
        }
        verdict
    }

    fn remove(&self, path: &Path, label: Label) -> io::Result<()> {
        self.fs.remove(&self.place(path), label)
    }

    fn create_dir_all(&self, path: &Path, label: Label) -> io::Result<()> {
        let name = name_of_dir(path).filter(|name| !self.names.lock().live.contains_key(name));
        let Some(name) = name else { return self.fs.create_dir_all(&self.place(path), label) };
        let place = {
            let mut names = self.names.lock();
            names.made += 1;
            PathBuf::from(format!("/dirs/{}", names.made))
        };
        self.fs.create_dir_all(&place, label)?;
        let mut names = self.names.lock();
        names.durable.insert(name.clone(), place.clone());
        names.live.insert(name, place);
        Ok(())
    }

    fn list(&self, dir: &Path, label: Label) -> io::Result<Vec<String>> {
        self.fs.list(&self.place(dir), label)
    }

    fn sync_dir(&self, dir: &Path, label: Label) -> io::Result<()> {
        self.fs.sync_dir(&self.place(dir), label)?;
        if dir == Path::new(DIR) {
            let mut names = self.names.lock();
            names.durable = names.live.clone();
            names.pending.clear();
        }
        Ok(())
    }

    fn lock_dir(&self, dir: &Path, label: Label) -> io::Result<Box<dyn DirLock>> {
        self.fs.lock_dir(&self.place(dir), label)
    }

    fn scratch(&self, dir: &Path, piece: usize, label: Label) -> io::Result<Arc<dyn Scratch>> {
        self.fs.scratch(&self.place(dir), piece, label)
    }
}

/// What comes over one call.
#[derive(Clone, Copy, Debug)]
enum Stroke {
    Power(u64),
    Kill,
    Fault(Failure),
}

/// What a start finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Old,
    /// The node does not start.
    Neither,
    New(ClusterId),
}

/// All entries of the log, of which those that are not known to be committed count from the recovery on.
fn entries() -> Vec<LogEntry> {
    (2..=LAST.0)
        .map(|index| creates(&if index == 2 { "app".to_string() } else { format!("app{index}") }, index))
        .collect()
}

struct World {
    disk: Arc<Disk>,
    env: Env,
}

impl World {
    /// Node 1 of a cluster of three. Afterwards a recovery began, if so, whose process ended before this call.
    fn new(begun: Option<u64>) -> World {
        let disk = Arc::new(Disk { fs: SimFs::new(1), names: Mutex::default() });
        let env = Env { fs: disk.clone(), clock: Arc::new(SimClock::default()), rng: Arc::new(SimRng::new(5)) };
        env.fs.create_dir_all(Path::new(DIR), "test").unwrap();
        founded_in(&env, Path::new(DIR), ONLY.0, 3, None);
        let log = Log::open(env.fs.clone(), &Path::new(DIR).join("log"), LogOptions::default()).unwrap().0;
        for entry in entries().split_off(1) {
            let commit = LogIndex(entry.id.index.0 - 1);
            let hard_state = Some(HardState { term: Term(2), vote: None, commit });
            log.append(&Batch { entries: vec![entry], hard_state, anchor: None }).unwrap();
        }
        let world = World { disk, env };
        if let Some(nth) = begun {
            world.recover_but(nth, Stroke::Kill).unwrap_err();
        }
        world
    }

    fn recover(&self) -> Result<Report> {
        only_member_in(&self.env, Path::new(DIR), u64::from(ONLY.0), true)
    }

    /// A recovery with this in its `nth` call. Power and disk are fine again afterwards.
    fn recover_but(&self, nth: u64, stroke: Stroke) -> Result<Report> {
        let fs = &self.disk.fs;
        match stroke {
            Stroke::Power(seed) => {
                self.disk.names.lock().power = Some(seed);
                fs.crash_at(Aim::Any, nth, seed);
            }
            Stroke::Kill => fs.kill_at(Aim::Any, nth),
            Stroke::Fault(failure) => fs.fail_at(Aim::Any, nth, Lasts::Once, failure),
        }
        let before = fs.calls();
        let done = self.recover();
        assert!(fs.calls() >= before + nth, "call {nth} was not reached");
        assert_eq!(fs.is_down(), !matches!(stroke, Stroke::Fault(_)));
        self.disk.restart();
        done
    }

    /// A start, up to where the node has its log.
    fn start(&self) -> Result<Opened> {
        let directory = Directory::new(self.env.clone(), Path::new(DIR), &Config::default());
        let identity = directory.identify(ONLY)?;
        let opened = directory.open_log(&identity)?;
        assert_eq!(Some(opened.catalogue.cluster()), identity.cluster());
        Ok(opened)
    }

    /// What a start finds, which is one of the two clusters as a whole, with all that was acknowledged, or refused in
    /// words.
    fn found(&self, what: &str) -> Found {
        let opened = match self.start() {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
                let text = error.to_string();
                assert!(text.contains("run `shoal recover"), "{what}: {text}");
                return Found::Neither;
            }
        };
        let (cluster, last, commit) =
            (opened.catalogue.cluster(), opened.restored.last.index, opened.restored.hard_state.commit);
        let there = opened.log.entries(LogIndex(2), LAST.next(), u64::MAX).unwrap();
        assert!(there == entries(), "{what}: {there:?}");
        drop(opened);
        let place = Place { env: &self.env, dir: Path::new(DIR), options: LogOptions::default() };
        let read = place.read("log").unwrap();
        let members: Vec<_> = read.end.members().map(|(id, _)| id.0).collect();
        assert!(!read.joint, "{what}");
        if cluster == OLD {
            assert_eq!((members, last, commit), (vec![1, 2, 3], LAST, COMMITTED), "{what}");
            return Found::Old;
        }
        assert_eq!((members, commit), (vec![ONLY.0], last), "{what}");
        Found::New(cluster)
    }

    /// Who was told of this cluster finds it, whatever happens then.
    fn was_told(&self, told: ClusterId, what: &str) {
        self.disk.lose_power(0);
        assert_eq!(self.found(what), Found::New(told), "{what}: what was told");
    }
}

/// The labels of the calls of a recovery, in their order.
fn labels(begun: Option<u64>) -> Vec<Label> {
    let used = |world: &World| {
        let before = world.disk.fs.counts();
        world.recover().unwrap();
        let mut counts = world.disk.fs.counts();
        counts.retain(|label, count| *count > before.get(label).copied().unwrap_or(0));
        counts
    };
    let world = World::new(begun);
    let order = Arc::new(Mutex::new(Vec::new()));
    for label in used(&World::new(begun)).into_keys() {
        let order = order.clone();
        world.disk.fs.on_call(label, move || order.lock().push(label));
    }
    let before = world.disk.fs.calls();
    world.recover().unwrap();
    let order = order.lock().clone();
    assert_eq!(order.len() as u64, world.disk.fs.calls() - before);
    order
}

/// What was walked.
#[derive(Default)]
struct Walked {
    /// The labels of the calls that something came over, by what it was.
    labels: BTreeMap<&'static str, BTreeSet<Label>>,
    /// The labels of the calls that failed.
    failed: BTreeSet<Label>,
    old: u64,
    neither: u64,
    new: u64,
    /// A fault that did no harm.
    done: u64,
}

impl Walked {
    fn walk(&mut self, begun: Option<u64>) {
        for (nth, label) in (1..).zip(labels(begun)) {
            let faults = [Failure::EIO, Failure::ENOSPC].map(Stroke::Fault);
            for stroke in (0..SEEDS).map(Stroke::Power).chain([Stroke::Kill]).chain(faults) {
                let what = format!("begun {begun:?}, {stroke:?} at call {nth}, {label}");
                let kind = match stroke {
                    Stroke::Power(_) => "power",
                    Stroke::Kill => "kill",
                    Stroke::Fault(Failure::EIO) => "EIO",
                    Stroke::Fault(_) => "ENOSPC",
                };
                self.labels.entry(kind).or_default().insert(label);
                let world = World::new(begun);
                self.strike(&world, nth, stroke, &what);
                self.failed.extend(world.disk.fs.failed());
            }
        }
    }

    fn strike(&mut self, world: &World, nth: u64, stroke: Stroke, what: &str) {
        match (world.recover_but(nth, stroke), stroke) {
            (Ok(report), _) => {
                self.done += 1;
                world.was_told(report.new_cluster, what);
            }
            (Err(error), Stroke::Fault(failure)) => {
                let words = if failure == Failure::EIO { "nput/output error" } else { "o space left" };
                assert!(error.to_string().contains(words), "{what}: {error}");
            }
            (Err(_), _) => {}
        }
        let found = world.found(what);
        match found {
            Found::Old => self.old += 1,
            Found::Neither => self.neither += 1,
            Found::New(_) => self.new += 1,
        }
        let report = world.recover().unwrap_or_else(|error| panic!("{what}: running it again: {error}"));
        assert_ne!(report.new_cluster, OLD, "{what}");
        if found == Found::Old {
            let others = [2, 3].map(NodeId).to_vec();
            assert_eq!((report.cluster, report.last, report.committed), (OLD, LAST, COMMITTED), "{what}");
            assert_eq!(report.others, others, "{what}");
        }
        world.was_told(report.new_cluster, what);
    }
}

/// A process that ended while it stored the identity, and a power cut while it was run again, left the identity of the
/// old cluster beside the log of the new one; one that ended before the last sync, and a power cut then, the reverse:
/// neither a start nor another recovery could do anything with that.
/// Shows INV-38.
#[test]
fn a_crash_or_a_fault_in_any_call_of_a_recovery_leaves_what_running_it_again_ends() {
    let mut walked = Walked::default();
    walked.walk(None);
    let Walked { old, neither, new, done, .. } = walked;
    assert!(old > 0 && neither > 0 && new > 0 && done > 0, "old {old}, neither {neither}, new {new}, done {done}");
    let first = labels(None);
    for (nth, behind) in (2..).zip(&first) {
        if nth <= first.len() as u64 && !LOOKS.contains(behind) {
            walked.walk(Some(nth));
        }
    }
    let all: BTreeSet<Label> = LABELS.into_iter().collect();
    for (kind, labels) in walked.labels {
        assert_eq!(labels, all, "{kind}: left is what was reached, right what is to be");
    }
    assert_failed(&walked.failed, &LABELS);
    assert_failed(&walked.failed, &["dir.lock", "recover.begin", "recover.clear", "recover.exchange"]);
}
