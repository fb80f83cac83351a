//! Simulated doors: a disk that forgets what was not synced, a clock and random numbers set by hand, all from one seed.
//!
//! Each file has *live* bytes (what a read sees) and *durable* bytes (what a power cut leaves), and between them the
//! list of changes not yet synced. A crash decides, from its seed, what becomes of each change:
//!
//! | what was not synced | after the crash |
//! |---|---|
//! | bytes of a write | each 512-byte sector holds one of the contents it had since the last sync, chosen on its own: writes are dropped, torn and reordered |
//! | the length | one of the lengths the file had since the last sync; bytes that did not arrive are zeros |
//! | create, rename, remove before `sync_dir` | each happened or did not, chosen on its own; a rename is whole |
//! | the lock of a directory | released |
//! | open files | dead: every call fails for ever |
//!
//! A failed write leaves a random part of its sectors in the file. A failed sync leaves durable what a crash might have
//! left, and *forgets the rest*: as on a real kernel, a later sync succeeds without writing it, while reads go on to
//! show it. A failed call of another kind has no effect. A process that dies ([`SimFs::kill_at`]) leaves all it wrote live, and
//! still not synced.
//!
//! Faults are aimed at labels: "fail the third `log.sync`, once", "crash at call 17, whatever it is". The counters say
//! which labels there were, so that a test can walk all of them.
//!
//! Deliberately absent: directories that are lost in a crash (a directory is durable when it is made), wrong data from
//! an intact sector (tests that want rot use [`SimFs::edit`]), locks of files that keep somebody out (taking one is
//! a call like others, which may fail), and time that passes by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use xxhash_rust::xxh3::Xxh3;

use self::dice::Xoshiro;
pub use self::dice::{SimClock, SimRng};
use self::disk::{Content, Mercy};
use super::{DirLock, File, Fs, Label, Mapped, Open, Scratch};
use crate::transaction::PageBytes;

mod dice;
mod disk;

/// What a disk writes whole or not at all.
pub const SECTOR: u64 = 512;

/// Which calls a fault or a crash is aimed at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aim {
    /// Calls with this label.
    At(Label),
    /// All calls.
    Any,
}

impl Aim {
    fn hits(self, label: Label) -> bool {
        match self {
            Aim::At(wanted) => wanted == label,
            Aim::Any => true,
        }
    }
}

/// How long a fault lasts once it has struck.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lasts {
    /// One call fails.
    Once,
    /// That call and all later ones that the fault is aimed at.
    ForGood,
}

/// The error a failing call returns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Failure {
    /// An error number of the system: 5 is EIO, 28 is ENOSPC.
    Errno(i32),
    /// A kind without a number.
    Kind(io::ErrorKind),
}

impl Failure {
    /// An input/output error.
    pub const EIO: Failure = Failure::Errno(5);
    /// No space left on the device.
    pub const ENOSPC: Failure = Failure::Errno(28);
    /// The process has too many files open.
    pub const EMFILE: Failure = Failure::Errno(24);

    fn error(self) -> io::Error {
        match self {
            Failure::Errno(number) => io::Error::from_raw_os_error(number),
            Failure::Kind(kind) => io::Error::from(kind),
        }
    }
}

/// A simulated file system. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimFs {
    world: Arc<Mutex<World>>,
}

impl fmt::Debug for SimFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimFs")
    }
}

type Hook = Arc<dyn Fn() + Send + Sync>;

struct World {
    dice: Xoshiro,
    dirs: BTreeMap<PathBuf, Dir>,
    files: BTreeMap<u64, Content>,
    next_file: u64,
    /// Directory -> which guard holds it.
    locks: BTreeMap<PathBuf, u64>,
    next_lock: u64,
    /// Grows with every crash; handles of an earlier life are dead.
    life: u64,
    down: bool,
    calls: u64,
    bytes_moved: u64,
    counts: BTreeMap<Label, u64>,
    faults: Vec<Fault>,
    /// Of calls that a fault made fail.
    failed: BTreeMap<Label, u64>,
    failed_since: BTreeMap<(Label, Failure), u64>,
    crashed: BTreeSet<Label>,
    crash: Option<PlannedCrash>,
    /// The process was ended in a call, and its machine went on.
    killed: bool,
    hooks: BTreeMap<Label, Hook>,
}

struct Fault {
    aim: Aim,
    /// Matching calls until it strikes; 0 once it has and lasts.
    left: u64,
    lasts: Lasts,
    failure: Failure,
}

/// What a power cut leaves of what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaves {
    /// All of it, nothing, or some of it: what the seed says.
    Drawn(u64),
    /// Nothing: neither bytes, nor lengths, nor names.
    Nothing,
    /// Some of it, each change by a chance of its own.
    Some(u64),
}

struct PlannedCrash {
    aim: Aim,
    left: u64,
    /// What the power cut leaves; `None` if the process dies and the machine goes on.
    power: Option<Leaves>,
}

#[derive(Default)]
struct Dir {
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<DirChange>,
}

enum DirChange {
    Create { name: String, file: u64 },
    Rename { from: String, to: String, file: u64 },
    Remove { name: String, file: u64 },
}

/// What is to become of one call.
enum Verdict {
    Go,
    Fail(io::Error),
    Crash(Leaves),
}

impl SimFs {
    /// An empty file system with the root directory `/`. The same seed and the same calls give the same results.
    pub fn new(seed: u64) -> SimFs {
        let world = World {
            dice: Xoshiro::new(seed),
            dirs: BTreeMap::from([(PathBuf::from("/"), Dir::default())]),
            files: BTreeMap::new(),
            next_file: 1,
            locks: BTreeMap::new(),
            next_lock: 1,
            life: 1,
            down: false,
            calls: 0,
            bytes_moved: 0,
            counts: BTreeMap::new(),
            faults: Vec::new(),
            failed: BTreeMap::new(),
            failed_since: BTreeMap::new(),
            crashed: BTreeSet::new(),
            crash: None,
            killed: false,
            hooks: BTreeMap::new(),
        };
        SimFs { world: Arc::new(Mutex::new(world)) }
    }

    /// Power cut, now. Everything fails until [`SimFs::restart`].
    pub fn crash(&self, seed: u64) {
        self.world.lock().crash(Leaves::Drawn(seed));
    }

    /// Power cut within the `nth` call (from 1, counted from now) that `aim` hits. The call's own effect counts as not
    /// synced: it may or may not have happened.
    pub fn crash_at(&self, aim: Aim, nth: u64, seed: u64) {
        self.cut_at(aim, nth, Leaves::Drawn(seed));
    }

    /// The same, and said what it leaves.
    pub fn cut_at(&self, aim: Aim, nth: u64, leaves: Leaves) {
        self.world.lock().crash = Some(PlannedCrash { aim, left: nth, power: Some(leaves) });
    }

    /// The process dies before the `nth` call (from 1, counted from now) that `aim` hits, which has no effect. What was written
    /// before stays in the kernel's memory, synced or not. Everything fails until [`SimFs::restart`].
    pub fn kill_at(&self, aim: Aim, nth: u64) {
        self.world.lock().crash = Some(PlannedCrash { aim, left: nth, power: None });
    }

    /// Power is back, or the process starts again: calls work again, on what the crash left. A planned crash that did not come is
    /// forgotten.
    pub fn restart(&self) {
        let mut world = self.world.lock();
        world.down = false;
        world.killed = false;
        world.crash = None;
        world.failed_since.clear();
    }

    /// Whether a crash or the end of the process came that no restart followed.
    pub fn is_down(&self) -> bool {
        self.world.lock().down
    }

    /// Whether the end of the process ([`SimFs::kill_at`]) came that no restart followed.
    pub fn was_killed(&self) -> bool {
        self.world.lock().killed
    }

    /// The `nth` call (from 1, counted from now) that `aim` hits fails.
    pub fn fail_at(&self, aim: Aim, nth: u64, lasts: Lasts, failure: Failure) {
        self.world.lock().faults.push(Fault { aim, left: nth, lasts, failure });
    }

    /// Forgets all faults that are planned or last.
    pub fn clear_faults(&self) {
        self.world.lock().faults.clear();
    }

    /// Whether a fault has made a call of this label fail, ever.
    pub fn has_failed(&self, label: Label) -> bool {
        self.failures(label) > 0
    }

    /// How often a fault has made a call of this label fail, ever.
    pub fn failures(&self, label: Label) -> u64 {
        self.world.lock().failed.get(label).copied().unwrap_or(0)
    }

    /// How often a fault has made a call fail, ever.
    pub fn failures_in_all(&self) -> u64 {
        self.world.lock().failed.values().sum()
    }

    /// The calls that a fault has made fail since the last restart: how often, by label and by what it said.
    pub fn failed_since_restart(&self) -> BTreeMap<(Label, Failure), u64> {
        self.world.lock().failed_since.clone()
    }

    /// The labels of all calls that a fault has made fail, ever.
    pub fn failed(&self) -> BTreeSet<Label> {
        self.world.lock().failed.keys().copied().collect()
    }

    /// Whether a planned crash has come in a call of this label, ever.
    pub fn has_crashed(&self, label: Label) -> bool {
        self.world.lock().crashed.contains(label)
    }

    /// A hash of everything that the disk holds: names and bytes, those that a read sees and those that a power cut leaves. No
    /// call: it is not counted and cannot fail.
    pub fn digest(&self, seed: u64) -> u64 {
        let world = self.world.lock();
        let mut digest = Xxh3::with_seed(seed);
        for (path, dir) in &world.dirs {
            digest.update(path.as_os_str().as_encoded_bytes());
            for (state, names) in [(0, &dir.live), (1, &dir.durable)] {
                for (name, file) in names {
                    digest.update(&[state]);
                    digest.update(name.as_bytes());
                    let content = world.files.get(file);
                    digest.update(content.map_or(&[], |content| content.live.as_slice()));
                    digest.update(content.map_or(&[], |content| content.durable.as_slice()));
                }
            }
        }
        digest.digest()
    }

    /// Forgets a crash that was planned and did not come.
    pub fn forget_crash(&self) {
        self.world.lock().crash = None;
    }

    /// Runs `hook` at the start of every call with this label, without any lock held: it may block, to hold the call.
    pub fn on_call(&self, label: Label, hook: impl Fn() + Send + Sync + 'static) {
        self.world.lock().hooks.insert(label, Arc::new(hook));
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.world.lock().calls
    }

    /// How many bytes were read from and written to files.
    pub fn bytes_moved(&self) -> u64 {
        self.world.lock().bytes_moved
    }

    /// How many calls there were per label.
    pub fn counts(&self) -> BTreeMap<Label, u64> {
        self.world.lock().counts.clone()
    }

    /// How many calls with this label there were.
    pub fn count(&self, label: Label) -> u64 {
        self.world.lock().counts.get(label).copied().unwrap_or(0)
    }

    /// The live bytes of a file. No call: it is not counted and cannot fail.
    pub fn peek(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.world.lock();
        let file = world.lookup(path).ok()?;
        Some(world.files[&file].live.clone())
    }

    /// The files of a directory and their live lengths. No call: it is not counted and cannot fail.
    pub fn sizes(&self, dir: &Path) -> BTreeMap<String, u64> {
        let world = self.world.lock();
        let names = world.dirs.get(dir).map(|dir| &dir.live).into_iter().flatten();
        names.map(|(name, file)| (name.clone(), world.files[file].live.len() as u64)).collect()
    }

    /// Changes a file behind everybody's back, live and durable: rot.
    pub fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world.lock();
        let file = world.lookup(path).expect("the file to edit exists");
        let content = world.content(file);
        change(&mut content.live);
        content.durable = content.live.clone();
        content.pending.clear();
    }

    /// Counts the call and says what is to become of it. `life` is that of the handle, if the call has one.
    fn enter(&self, life: Option<u64>, label: Label) -> io::Result<(MutexGuard<'_, World>, Verdict)> {
        let hook = self.world.lock().hooks.get(label).cloned();
        if let Some(hook) = hook {
            hook();
        }
        let mut world = self.world.lock();
        world.calls += 1;
        *world.counts.entry(label).or_insert(0) += 1;
        if world.down || life.is_some_and(|life| life != world.life) {
            return Err(crashed(label));
        }
        let verdict = world.verdict(label);
        if world.down {
            return Err(crashed(label));
        }
        Ok((world, verdict))
    }

    /// A call that changes nothing or changes it whole.
    fn simple<T>(
        &self,
        life: Option<u64>,
        label: Label,
        act: impl FnOnce(&mut World) -> io::Result<T>,
    ) -> io::Result<T> {
        let (mut world, verdict) = self.enter(life, label)?;
        match verdict {
            Verdict::Go => act(&mut world),
            Verdict::Fail(error) => Err(error),
            Verdict::Crash(leaves) => {
                // The call may have happened: its change joins the unsynced ones. Its answer reaches nobody.
                let _ = act(&mut world);
                world.crash(leaves);
                Err(crashed(label))
            }
        }
    }
}

/// Panics unless these labels are all among those of calls that a fault made fail ([`SimFs::failed`]), on one disk or
/// several: a test that is to hold what comes of a failure says so at its end.
#[track_caller]
pub fn assert_failed(failed: &BTreeSet<Label>, labels: &[Label]) {
    let missed: Vec<_> = labels.iter().filter(|label| !failed.contains(*label)).collect();
    assert!(missed.is_empty(), "no call of these was made to fail: {missed:?}; of others: {failed:?}");
}

fn crashed(label: Label) -> io::Error {
    io::Error::other(format!("{label}: the simulated machine or process crashed"))
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{}: no such file", path.display()))
}

/// Directory and name of a file.
fn split(path: &Path) -> io::Result<(&Path, String)> {
    match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (Some(dir), Some(name)) => Ok((dir, name.to_owned())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{}: not a file name", path.display()))),
    }
}

impl World {
    fn verdict(&mut self, label: Label) -> Verdict {
        if let Some(crash) = &mut self.crash
            && crash.aim.hits(label)
        {
            crash.left -= 1;
            if crash.left == 0 {
                let power = crash.power;
                self.crash = None;
                self.crashed.insert(label);
                if let Some(leaves) = power {
                    return Verdict::Crash(leaves);
                }
                self.killed = true;
                self.end_process();
            }
        }
        let mut struck = None;
        self.faults.retain_mut(|fault| {
            if !fault.aim.hits(label) || struck.is_some() {
                return true;
            }
            fault.left = fault.left.saturating_sub(1);
            if fault.left == 0 {
                struck = Some(fault.failure);
            }
            fault.left > 0 || fault.lasts == Lasts::ForGood
        });
        match struck {
            Some(failure) => {
                *self.failed.entry(label).or_insert(0) += 1;
                *self.failed_since.entry((label, failure)).or_insert(0) += 1;
                Verdict::Fail(failure.error())
            }
            None => Verdict::Go,
        }
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).ok_or_else(|| not_found(path))
    }

    fn lookup(&self, path: &Path) -> io::Result<u64> {
        let (dir, name) = split(path)?;
        let dir = self.dirs.get(dir).ok_or_else(|| not_found(dir))?;
        dir.live.get(&name).copied().ok_or_else(|| not_found(path))
    }

    /// A file that a directory or a handle of this life knows is always there.
    fn content(&mut self, file: u64) -> &mut Content {
        self.files.entry(file).or_default()
    }

    fn crash(&mut self, leaves: Leaves) {
        let mut dice = Xoshiro::new(match leaves {
            Leaves::Drawn(seed) | Leaves::Some(seed) => seed,
            Leaves::Nothing => 0,
        });
        let mercy = match leaves {
            Leaves::Drawn(_) => Mercy::draw(&mut dice),
            Leaves::Some(_) => Mercy::Some(4),
            Leaves::Nothing => Mercy::None,
        };
        let mut reachable = BTreeSet::new();
        for dir in self.dirs.values_mut() {
            for change in std::mem::take(&mut dir.pending) {
                if mercy.keep(1, &mut dice) == 1 {
                    change.apply(&mut dir.durable);
                }
            }
            dir.live = dir.durable.clone();
            reachable.extend(dir.live.values().copied());
        }
        self.files.retain(|file, _| reachable.contains(file));
        for content in self.files.values_mut() {
            content.settle(mercy, &mut dice);
            content.live = content.durable.clone();
        }
        self.killed = false;
        self.end_process();
    }

    fn end_process(&mut self) {
        self.locks.clear();
        self.life += 1;
        self.down = true;
    }
}

impl DirChange {
    fn apply(self, names: &mut BTreeMap<String, u64>) {
        match self {
            DirChange::Create { name, file } => {
                names.insert(name, file);
            }
            DirChange::Rename { from, to, file } => {
                if names.get(&from) == Some(&file) {
                    names.remove(&from);
                }
                names.insert(to, file);
            }
            DirChange::Remove { name, file } => {
                if names.get(&name) == Some(&file) {
                    names.remove(&name);
                }
            }
        }
    }
}

impl Fs for SimFs {
    fn open(&self, path: &Path, how: Open, label: Label) -> io::Result<Arc<dyn File>> {
        let (file, life) = self.simple(None, label, |world| {
            let (parent, name) = split(path)?;
            let found = world.dir(parent)?.live.get(&name).copied();
            let file = match (how, found) {
                (Open::CreateNew, Some(_)) => {
                    let text = format!("{}: exists", path.display());
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
                }
                (Open::CreateNew, None) => {
                    let file = world.next_file;
                    world.next_file += 1;
                    world.files.insert(file, Content::default());
                    let dir = world.dir(parent)?;
                    dir.live.insert(name.clone(), file);
                    dir.pending.push(DirChange::Create { name, file });
                    file
                }
                (_, Some(file)) => file,
                (_, None) => return Err(not_found(path)),
            };
            Ok((file, world.life))
        })?;
        let (fs, writable) = (self.clone(), how != Open::Read);
        Ok(Arc::new(SimFile { fs, file, life, writable, behind: Mutex::default() }))
    }

    fn rename(&self, from: &Path, to: &Path, label: Label) -> io::Result<()> {
        self.simple(None, label, |world| {
            let file = world.lookup(from)?;
            let ((parent, from), (to_parent, to)) = (split(from)?, split(to)?);
            if parent != to_parent {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "rename leaves its directory"));
            }
            let dir = world.dir(parent)?;
            dir.live.remove(&from);
            dir.live.insert(to.clone(), file);
            dir.pending.push(DirChange::Rename { from, to, file });
            Ok(())
        })
    }

    fn remove(&self, path: &Path, label: Label) -> io::Result<()> {
        self.simple(None, label, |world| {
            let file = world.lookup(path)?;
            let (parent, name) = split(path)?;
            let dir = world.dir(parent)?;
            dir.live.remove(&name);
            dir.pending.push(DirChange::Remove { name, file });
            Ok(())
        })
    }

    fn create_dir_all(&self, path: &Path, label: Label) -> io::Result<()> {
        self.simple(None, label, |world| {
            for dir in path.ancestors() {
                world.dirs.entry(dir.to_owned()).or_default();
            }
            Ok(())
        })
    }

    fn list(&self, dir: &Path, label: Label) -> io::Result<Vec<String>> {
        self.simple(None, label, |world| Ok(world.dir(dir)?.live.keys().cloned().collect()))
    }

    fn sync_dir(&self, dir: &Path, label: Label) -> io::Result<()> {
        let (mut world, verdict) = self.enter(None, label)?;
        match verdict {
            Verdict::Go => {
                let dir = world.dir(dir)?;
                dir.durable = dir.live.clone();
                dir.pending.clear();
                Ok(())
            }
            Verdict::Fail(error) => Err(error),
            Verdict::Crash(leaves) => {
                world.crash(leaves);
                Err(crashed(label))
            }
        }
    }

    fn lock_dir(&self, dir: &Path, label: Label) -> io::Result<Box<dyn DirLock>> {
        let lock = self.simple(None, label, |world| {
            world.dir(dir)?;
            if world.locks.contains_key(dir) {
                return Err(io::Error::from(io::ErrorKind::WouldBlock));
            }
            let lock = world.next_lock;
            world.next_lock += 1;
            world.locks.insert(dir.to_owned(), lock);
            Ok(lock)
        })?;
        Ok(Box::new(SimDirLock { fs: self.clone(), dir: dir.to_owned(), lock }))
    }

    fn scratch(&self, dir: &Path, piece: usize, label: Label) -> io::Result<Arc<dyn Scratch>> {
        let life = self.simple(None, label, |world| {
            world.dir(dir)?;
            Ok(world.life)
        })?;
        Ok(Arc::new(SimScratch { fs: self.clone(), life, piece, used: Arc::default() }))
    }
}

/// Pieces in plain memory: a crash takes them all with the process, so only the faults are those of a file.
#[derive(Debug)]
struct SimScratch {
    fs: SimFs,
    life: u64,
    piece: usize,
    used: Arc<AtomicU64>,
}

struct SimPiece {
    bytes: Vec<u8>,
    used: Arc<AtomicU64>,
}

impl Scratch for SimScratch {
    fn put(&self, piece: &[u8], label: Label) -> io::Result<Arc<dyn PageBytes>> {
        assert_eq!(piece.len(), self.piece);
        self.fs.simple(Some(self.life), label, |_| Ok(()))?;
        self.used.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok(Arc::new(SimPiece { bytes: piece.to_vec(), used: self.used.clone() }))
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl PageBytes for SimPiece {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn is_kept(&self) -> bool {
        true
    }
}

impl Drop for SimPiece {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct SimDirLock {
    fs: SimFs,
    dir: PathBuf,
    lock: u64,
}

impl DirLock for SimDirLock {}

impl Drop for SimDirLock {
    fn drop(&mut self) {
        let mut world = self.fs.world.lock();
        // A crash may have released it, and somebody else may hold it by now.
        if world.locks.get(&self.dir) == Some(&self.lock) {
            world.locks.remove(&self.dir);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    fs: SimFs,
    file: u64,
    life: u64,
    writable: bool,
    /// A sync that goes on beside the caller: as late as it may be, when somebody waits for it.
    behind: Mutex<Option<Label>>,
}

impl SimFile {
    fn check_writable(&self) -> io::Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file is open for reading only")),
        }
    }

    fn sync_now(&self, label: Label) -> io::Result<()> {
        let (mut world, verdict) = self.fs.enter(Some(self.life), label)?;
        match verdict {
            Verdict::Go => {
                let content = world.content(self.file);
                // Nothing pending means that durable is as it should be, or that an earlier sync failed and the kernel
                // has forgotten what it owed.
                if !content.pending.is_empty() {
                    let mut dice = Xoshiro::new(0);
                    content.settle(Mercy::All, &mut dice);
                }
                Ok(())
            }
            Verdict::Fail(error) => {
                let mut dice = world.dice.clone();
                let mercy = Mercy::draw(&mut dice);
                world.content(self.file).settle(mercy, &mut dice);
                world.dice = dice;
                Err(error)
            }
            Verdict::Crash(leaves) => {
                world.crash(leaves);
                Err(crashed(label))
            }
        }
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64, label: Label) -> io::Result<usize> {
        self.fs.simple(Some(self.life), label, |world| {
            let live = &world.content(self.file).live;
            let there = live.get((offset as usize).min(live.len())..).unwrap_or_default();
            let n = there.len().min(buf.len());
            buf[..n].copy_from_slice(&there[..n]);
            world.bytes_moved += n as u64;
            Ok(n)
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64, label: Label) -> io::Result<()> {
        self.check_writable()?;
        let (mut world, verdict) = self.fs.enter(Some(self.life), label)?;
        match verdict {
            Verdict::Go => {
                world.content(self.file).write(offset, buf);
                Ok(())
            }
            Verdict::Fail(error) => {
                let part = world.dice.below(buf.len() as u64 + 1) as usize;
                world.content(self.file).write(offset, &buf[..part]);
                Err(error)
            }
            Verdict::Crash(leaves) => {
                world.content(self.file).write(offset, buf);
                world.crash(leaves);
                Err(crashed(label))
            }
        }
    }

    fn sync_data(&self, label: Label) -> io::Result<()> {
        self.settle(label)?;
        self.sync_now(label)
    }

    fn sync_behind(&self, label: Label) -> io::Result<()> {
        self.settle(label)?;
        *self.behind.lock() = Some(label);
        Ok(())
    }

    fn settle(&self, _label: Label) -> io::Result<()> {
        let label = self.behind.lock().take();
        label.map_or(Ok(()), |label| self.sync_now(label))
    }

    fn set_len(&self, len: u64, label: Label) -> io::Result<()> {
        self.check_writable()?;
        self.fs.simple(Some(self.life), label, |world| {
            world.content(self.file).set_len(len);
            Ok(())
        })
    }

    fn lock(&self, _start: u64, _len: u64, label: Label) -> io::Result<()> {
        self.fs.simple(Some(self.life), label, |_| Ok(()))
    }

    fn map(&self, len: u64, label: Label) -> io::Result<Arc<dyn Mapped>> {
        self.fs.simple(Some(self.life), label, |_| Ok(()))?;
        Ok(Arc::new(SimMapped { fs: self.fs.clone(), file: self.file, life: self.life, len }))
    }

    fn len(&self, label: Label) -> io::Result<u64> {
        self.fs.simple(Some(self.life), label, |world| Ok(world.content(self.file).live.len() as u64))
    }
}

/// A piece is a copy of what the file has when it is asked for: the same as a map, since nobody may change it meanwhile.
#[derive(Debug)]
struct SimMapped {
    fs: SimFs,
    file: u64,
    life: u64,
    len: u64,
}

impl Mapped for SimMapped {
    fn piece(&self, offset: u64, len: usize, label: Label) -> io::Result<Arc<dyn PageBytes>> {
        self.fs.simple(Some(self.life), label, |world| {
            let end = offset.saturating_add(len as u64).min(self.len) as usize;
            let piece = world.content(self.file).live.get((offset as usize).min(end)..end);
            match piece.filter(|piece| piece.len() == len) {
                Some(piece) => Ok(Arc::new(piece.to_vec()) as Arc<dyn PageBytes>),
                None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        })
    }
}

#[cfg(test)]
mod tests;
