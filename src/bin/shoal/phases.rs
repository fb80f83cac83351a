//! What a worker is doing at every moment, noted where a killed process leaves it; and death at a chosen moment.
//!
//! ```text
//! byte   phase      from                              to
//!    0   append     before a write to the log         it returned
//!    1   sync       before a sync of the log          it returned
//!    2   apply      shoaldb::probe                    shoaldb::probe
//!    3   publish    shoaldb::probe                    shoaldb::probe
//!    4   recovery   the start                         everything is replayed and a leader is known
//!    5   checkpoint before a file call of one         it returned
//!    6   compaction before a file call of one         it returned
//!    7   install    before a file call for files      it returned
//!                   that a snapshot brings
//! ```
//!
//! A byte is 1 while its phase lasts. They are written with `pwrite` into a small file: the kernel keeps them when the
//! process is killed. No byte set means idle. What lies behind them is the label of the file call in which it killed itself, if
//! that was what it was armed for.
//!
//! Armed for the n-th time of a phase, the process kills itself with SIGKILL as it begins: an append writes a part of
//! its bytes before and takes some milliseconds, a sync is carried out before in every second process. `recovery` counts the file
//! calls of a start. Of the last three every second process carries the call out before it dies.
//!
//! In place of a phase it may be the label of file calls (`dw.sync`), or of those that come behind one of another label
//! (`stage.sync_dir>log.head.sync`). It dies before the n-th of them; of a write, one half is written.
//!
//! This file is the only one that says `kill` to itself, and only a worker with `--phases` uses it.

use std::fs::File as OsFile;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Signal, getpid, kill_process};
use shoaldb::Error;
use shoaldb::probe;
use shoaldb_vfs::env::{DirLock, Env, File, Fs, Label, Mapped, Open, Scratch};

/// The phases in the order of their bytes.
pub(crate) const NAMES: [&str; 8] =
    ["append", "sync", "apply", "publish", "recovery", "checkpoint", "compaction", "install"];
const APPEND: usize = 0;
const SYNC: usize = 1;
const APPLY: usize = 2;
const PUBLISH: usize = 3;
const RECOVERY: usize = 4;
const CHECKPOINT: usize = 5;
const COMPACTION: usize = 6;
const INSTALL: usize = 7;

/// A write that is not completed lasts for less than this many milliseconds.
const LONGEST_WRITE: u64 = 10;

struct Phases {
    file: OsFile,
    /// How many more times until death; 0 is never.
    armed: [AtomicU32; NAMES.len()],
    recovering: AtomicBool,
    kills_after: bool,
    aim: Mutex<Option<Aim>>,
    /// There is one: most calls are made without.
    aims: AtomicBool,
}

/// File calls of a label to die in.
struct Aim {
    /// The label of one that has to come before.
    behind: Option<String>,
    label: String,
    nth: u32,
}

impl Aim {
    /// What is written as in the module's text.
    fn new(what: &str, nth: u32) -> Aim {
        let (behind, label) = match what.split_once('>') {
            Some((behind, label)) => (Some(behind.to_string()), label),
            None => (None, what),
        };
        Aim { behind, label: label.to_string(), nth }
    }

    /// Whether it is this call.
    fn meets(&mut self, label: Label) -> bool {
        if let Some(behind) = &self.behind {
            if behind == label {
                self.behind = None;
            }
            return false;
        }
        if self.label != label {
            return false;
        }
        self.nth = self.nth.saturating_sub(1);
        self.nth == 0
    }
}

static PHASES: OnceLock<Phases> = OnceLock::new();

/// The operating system's doors, watched. `die_at` is `phase:n`.
pub(crate) fn watch(path: &Path, die_at: Option<&str>) -> Result<Env, Error> {
    let file = OsFile::create(path)?;
    let mut none = [0; NAMES.len()];
    none[RECOVERY] = 1;
    file.write_all_at(&none, 0)?;
    let phases = Phases {
        file,
        armed: Default::default(),
        recovering: AtomicBool::new(true),
        kills_after: std::process::id().is_multiple_of(2),
        aim: Mutex::new(None),
        aims: AtomicBool::new(false),
    };
    let _ = PHASES.set(phases);
    if let Some((phase, nth)) = die_at.and_then(|die_at| die_at.split_once(':')) {
        arm(phase, nth.parse().unwrap_or(1))?;
    }
    probe::watch(|phase, begins| {
        let at = match phase {
            probe::Phase::Apply => APPLY,
            probe::Phase::Publish => PUBLISH,
            // The append that it leads to is a call for the log.
            probe::Phase::Enter => return,
        };
        if begins { begin(at) } else { end(at) }
    });
    let env = Env::os();
    Ok(Env { fs: Arc::new(WatchedFs(env.fs.clone())), ..env })
}

/// The process dies the `nth` time from now on that `phase` begins, or in the `nth` such call; never, if that is 0.
pub(crate) fn arm(phase: &str, nth: u32) -> Result<(), Error> {
    if let (Some(phases), true) = (PHASES.get(), phase.contains('.')) {
        *phases.aim.lock() = (nth > 0).then(|| Aim::new(phase, nth));
        phases.aims.store(nth > 0, Ordering::SeqCst);
        return Ok(());
    }
    let at = NAMES.iter().position(|name| *name == phase);
    let (Some(phases), Some(at)) = (PHASES.get(), at) else {
        return Err(Error::from(io::Error::other(format!("phase {phase}: one of {NAMES:?}, with --phases"))));
    };
    phases.armed[at].store(nth, Ordering::SeqCst);
    Ok(())
}

/// Everything is replayed.
pub(crate) fn recovered() {
    if let Some(phases) = PHASES.get()
        && phases.recovering.swap(false, Ordering::SeqCst)
    {
        end(RECOVERY);
    }
}

fn note(at: usize, value: u8) {
    if let Some(phases) = PHASES.get() {
        // A note that is lost makes a kill count for another phase, no more.
        let _ = phases.file.write_all_at(&[value], at as u64);
    }
}

fn is_last(at: usize) -> bool {
    let count = |n: u32| n.checked_sub(1);
    PHASES.get().is_some_and(|phases| phases.armed[at].fetch_update(Ordering::SeqCst, Ordering::SeqCst, count) == Ok(1))
}

fn die() -> ! {
    loop {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

fn begin(at: usize) {
    note(at, 1);
    if is_last(at) {
        die();
    }
}

fn end(at: usize) {
    note(at, 0);
}

/// The phase that a file call belongs to by its label, if it does.
fn phase_of(label: Label) -> Option<usize> {
    match label.split_once('.')?.0 {
        "dw" | "ckpt" => Some(CHECKPOINT),
        "stage" => Some(INSTALL),
        "log" if label.starts_with("log.retire") => Some(COMPACTION),
        _ => None,
    }
}

/// Whether the process is to die in this call; then that is noted.
fn is_aimed_at(label: Label) -> bool {
    let Some(phases) = PHASES.get().filter(|phases| phases.aims.load(Ordering::SeqCst)) else { return false };
    let mut aim = phases.aim.lock();
    let met = aim.as_mut().is_some_and(|aim| aim.meets(label));
    if met {
        // Until it is dead, other threads go on: one of them must not say that it was its call.
        *aim = None;
        let _ = phases.file.write_all_at(label.as_bytes(), NAMES.len() as u64);
    }
    met
}

/// Makes a file call of a phase, or dies before or behind it.
fn in_phase<T>(label: Label, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    file_call();
    if is_aimed_at(label) {
        die();
    }
    behind_aim(label, call)
}

/// The same for a call that nobody aims at.
fn behind_aim<T>(label: Label, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(at) = phase_of(label) else { return call() };
    note(at, 1);
    if is_last(at) {
        if PHASES.get().is_some_and(|phases| phases.kills_after) {
            let _ = call();
        }
        die();
    }
    let done = call();
    end(at);
    done
}

fn file_call() {
    let recovering = PHASES.get().is_some_and(|phases| phases.recovering.load(Ordering::Relaxed));
    if recovering && is_last(RECOVERY) {
        die();
    }
}

#[derive(Debug)]
struct WatchedFs(Arc<dyn Fs>);

impl Fs for WatchedFs {
    fn open(&self, path: &Path, how: Open, label: Label) -> io::Result<Arc<dyn File>> {
        in_phase(label, || Ok(Arc::new(WatchedFile(self.0.open(path, how, label)?)) as Arc<dyn File>))
    }

    fn rename(&self, from: &Path, to: &Path, label: Label) -> io::Result<()> {
        in_phase(label, || self.0.rename(from, to, label))
    }

    fn remove(&self, path: &Path, label: Label) -> io::Result<()> {
        in_phase(label, || self.0.remove(path, label))
    }

    fn create_dir_all(&self, path: &Path, label: Label) -> io::Result<()> {
        file_call();
        self.0.create_dir_all(path, label)
    }

    fn list(&self, dir: &Path, label: Label) -> io::Result<Vec<String>> {
        file_call();
        self.0.list(dir, label)
    }

    fn entries(&self, dir: &Path, label: Label) -> io::Result<Vec<String>> {
        file_call();
        self.0.entries(dir, label)
    }

    fn sync_dir(&self, dir: &Path, label: Label) -> io::Result<()> {
        in_phase(label, || self.0.sync_dir(dir, label))
    }

    fn lock_dir(&self, dir: &Path, label: Label) -> io::Result<Box<dyn DirLock>> {
        self.0.lock_dir(dir, label)
    }

    fn scratch(&self, dir: &Path, piece: usize, label: Label) -> io::Result<Arc<dyn Scratch>> {
        file_call();
        self.0.scratch(dir, piece, label)
    }
}

#[derive(Debug)]
struct WatchedFile(Arc<dyn File>);

impl File for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64, label: Label) -> io::Result<usize> {
        file_call();
        self.0.read_at(buf, offset, label)
    }

    fn write_at(&self, buf: &[u8], offset: u64, label: Label) -> io::Result<()> {
        if label != "log.write" {
            file_call();
            if is_aimed_at(label) {
                let _ = self.0.write_at(&buf[..buf.len() / 2], offset, label);
                die();
            }
            return behind_aim(label, || self.0.write_at(buf, offset, label));
        }
        file_call();
        note(APPEND, 1);
        if is_last(APPEND) {
            // Any part may be there: where it ends is drawn from what is written.
            let sum = buf.iter().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
            let _ = self.0.write_at(&buf[..sum % (buf.len() + 1)], offset, label);
            // A slow write: whoever speaks of these bytes before they are written has time to say so.
            std::thread::sleep(Duration::from_millis(sum as u64 % LONGEST_WRITE));
            die();
        }
        let written = self.0.write_at(buf, offset, label);
        end(APPEND);
        written
    }

    fn map(&self, len: u64, label: Label) -> io::Result<Arc<dyn Mapped>> {
        file_call();
        self.0.map(len, label)
    }

    // Not beside the caller: who is killed in it is killed at that call, and at no other one.
    fn sync_behind(&self, label: Label) -> io::Result<()> {
        self.sync_data(label)
    }

    fn settle(&self, label: Label) -> io::Result<()> {
        self.0.settle(label)
    }

    fn sync_data(&self, label: Label) -> io::Result<()> {
        if label != "log.sync" {
            return in_phase(label, || self.0.sync_data(label));
        }
        file_call();
        note(SYNC, 1);
        if is_last(SYNC) {
            if PHASES.get().is_some_and(|phases| phases.kills_after) {
                let _ = self.0.sync_data(label);
            }
            die();
        }
        let synced = self.0.sync_data(label);
        end(SYNC);
        synced
    }

    fn set_len(&self, len: u64, label: Label) -> io::Result<()> {
        in_phase(label, || self.0.set_len(len, label))
    }

    fn len(&self, label: Label) -> io::Result<u64> {
        self.0.len(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once it was met by whatever call came between the one that was meant and the end of the process.
    #[test]
    fn an_aim_is_met_by_calls_of_its_label_only() {
        let met = |what: &str, nth: u32, calls: &[&'static str]| {
            let mut aim = Aim::new(what, nth);
            calls.iter().position(|label| aim.meets(label))
        };
        assert_eq!(met("dw.sync", 2, &["dw.sync", "log.sync", "dw.sync"]), Some(2));
        assert_eq!(met("log.create>dw.sync", 1, &["dw.sync", "log.create", "log.sync", "dw.sync"]), Some(3));
        let mut aim = Aim::new("log.seal", 1);
        assert!(aim.meets("log.seal") && !aim.meets("log.remove"));
    }
}
