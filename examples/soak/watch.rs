//! Memory and disk of the nodes, and the rule by which they grow or do not.
//!
//! Memory is `RssAnon` + `RssShmem`: pages of files are the kernel's to drop. Disk is what the files take up, in the log, for
//! the databases, and in files without a name that a process has open (pages of WALs beyond `wal_limit`).
//!
//! **The rule.** No minute of any node may be above [`MOST_MEMORY`] and [`MOST_DISK`]. Of a run of at least [`ENOUGH`]
//! minutes, the last third is compared with the first:
//!
//! ```text
//! memory   the highest value of all minutes    not above that of the first third and a quarter, and some room for chance
//! disk     the middle one of the minutes' lowest values                                                      the same
//! ```
//!
//! A process that is killed every half minute begins anew, and hides what would grow. So one node may be *steady*, never
//! killed: of its anonymous memory (`RssAnon`) each minute's lowest value is printed, and the middle one of the last third of
//! the minutes may not be above that of the first third and an eighth, and [`ROOM_STEADY`].
//!
//! What a leak leaves is there in every moment, the lowest included. The highest value of a disk says how much was written
//! while somebody read for half a minute: until he ends, log and WAL keep all of it, and how often such readers meet with
//! large transactions and VACUUM on one database is a matter of chance.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(crate) const MIB: u64 = 1 << 20;
/// Every process, always.
const MOST_MEMORY: u64 = 400 * MIB;
/// Every node, always: several times what is written in half a minute.
const MOST_DISK: u64 = 4096 * MIB;
/// Minutes from which on growth can be told from chance.
const ENOUGH: usize = 10;
const ROOM_MEMORY: u64 = 48 * MIB;
const ROOM_DISK: u64 = 48 * MIB;
const ROOM_STEADY: u64 = 16 * MIB;

/// One node in one minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Minute {
    /// The highest of everything.
    pub(crate) most: Usage,
    /// The lowest of its disk.
    pub(crate) least_disk: u64,
    /// The lowest of its anonymous memory, while it ran.
    pub(crate) least_anon: u64,
}

impl Default for Minute {
    fn default() -> Minute {
        Minute { most: Usage::default(), least_disk: u64::MAX, least_anon: u64::MAX }
    }
}

impl Minute {
    pub(crate) fn see(&mut self, now: Usage) {
        self.most.rise(now);
        self.least_disk = self.least_disk.min(now.disk());
        if now.anon > 0 {
            self.least_anon = self.least_anon.min(now.anon);
        }
    }
}

/// One node, at one moment or at the worst of a minute.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) memory: u64,
    /// The anonymous part of it.
    pub(crate) anon: u64,
    pub(crate) log: u64,
    pub(crate) databases: u64,
    pub(crate) spilled: u64,
}

impl Usage {
    /// Of process `pid`, if there is one, with data directory `dir`.
    pub(crate) fn of(pid: Option<u32>, dir: &Path) -> Usage {
        let (anon, shmem) = pid.map_or((0, 0), memory);
        Usage {
            memory: anon + shmem,
            anon,
            log: size(&dir.join("log")),
            databases: size(&dir.join("db")),
            spilled: pid.map_or(0, |pid| nameless(pid, dir)),
        }
    }

    fn rise(&mut self, other: Usage) {
        self.memory = self.memory.max(other.memory);
        self.anon = self.anon.max(other.anon);
        self.log = self.log.max(other.log);
        self.databases = self.databases.max(other.databases);
        self.spilled = self.spilled.max(other.spilled);
    }

    fn disk(&self) -> u64 {
        self.log + self.databases + self.spilled
    }
}

/// `RssAnon` and `RssShmem`.
fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    (of("RssAnon:"), of("RssShmem:"))
}

/// What the files in a directory take up. One that goes meanwhile counts for nothing.
fn size(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

fn nameless(pid: u32, dir: &Path) -> u64 {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let ours = open.map(|entry| entry.path()).filter(|path| {
        let target = std::fs::read_link(path).unwrap_or_default();
        target.starts_with(dir) && target.to_string_lossy().ends_with(" (deleted)")
    });
    ours.filter_map(|path| std::fs::metadata(path).ok()).map(|meta| meta.blocks() * 512).sum()
}

/// The rule, for the minutes of one node.
pub(crate) fn judge(node: u64, minutes: &[Minute]) -> Result<(), String> {
    for (number, minute) in (1..).zip(minutes) {
        for (what, is, most) in [("memory", minute.most.memory, MOST_MEMORY), ("files", minute.most.disk(), MOST_DISK)]
        {
            if is > most {
                let (is, most) = (is / MIB, most / MIB);
                return Err(format!(
                    "node {node} had {is} MiB of {what} in minute {number}; at most {most} are allowed"
                ));
            }
        }
    }
    if minutes.len() < ENOUGH {
        return Ok(());
    }
    let third = minutes.len() / 3;
    let (early, late) = (&minutes[..third], &minutes[minutes.len() - third..]);
    let highest = |minutes: &[Minute]| minutes.iter().map(|minute| minute.most.memory).max().unwrap_or(0);
    let middle = |minutes: &[Minute]| middle(minutes.iter().map(|minute| minute.least_disk));
    for (what, first, last, room) in
        [("memory", highest(early), highest(late), ROOM_MEMORY), ("disk", middle(early), middle(late), ROOM_DISK)]
    {
        println!("node {node}: {what} {} MiB in the first third, {} MiB in the last", first / MIB, last / MIB);
        if last > first + first / 4 + room {
            return Err(format!(
                "node {node}: {what} grows: {} MiB in the first third, {} MiB in the last",
                first / MIB,
                last / MIB
            ));
        }
    }
    Ok(())
}

fn middle(of_minutes: impl Iterator<Item = u64>) -> u64 {
    let mut all: Vec<u64> = of_minutes.collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or(0)
}

/// The rule for a node that was never killed.
pub(crate) fn judge_steady(node: u64, minutes: &[Minute]) -> Result<(), String> {
    let anon: Vec<u64> = minutes.iter().map(|minute| minute.least_anon).collect();
    let words: Vec<String> = anon.iter().map(|bytes| (bytes / MIB).to_string()).collect();
    println!("node {node}, never killed: RssAnon in MiB, the lowest of each minute: {}", words.join(" "));
    if anon.len() < ENOUGH {
        return Ok(());
    }
    let third = anon.len() / 3;
    let (first, last) = (anon[..third].iter().copied(), anon[anon.len() - third..].iter().copied());
    let (first, last) = (middle(first), middle(last));
    if last > first + first / 8 + ROOM_STEADY {
        let (first, last) = (first / MIB, last / MIB);
        return Err(format!(
            "node {node}, never killed, grows: {first} MiB in the first third, {last} MiB in the last"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thirty minutes with these highest values of memory and lowest ones of disk, and disks that reach `peak` in between.
    fn minutes(memory: impl Fn(u64) -> u64, disk: impl Fn(u64) -> u64, peak: impl Fn(u64) -> u64) -> Vec<Minute> {
        let usage = |memory, databases| Usage { memory, anon: memory, log: 64 * MIB, databases, spilled: 0 };
        let minute = |n| {
            let mut minute = Minute::default();
            minute.see(usage(memory(n) * MIB, disk(n) * MIB));
            minute.see(usage(0, peak(n) * MIB));
            minute
        };
        (0..30).map(minute).collect()
    }

    #[test]
    fn what_grows_is_told_from_what_goes_up_and_down() {
        let wave = |n| 100 + n % 7 * 10;
        let calm = |_| 300;
        assert_eq!(judge(1, &minutes(wave, wave, calm)), Ok(()));
        let memory = judge(1, &minutes(|n| 100 + 5 * n, wave, calm)).unwrap_err();
        assert!(memory.contains("memory grows"), "{memory}");
        let disk = judge(1, &minutes(wave, |n| 100 + 6 * n, |n| 300 + 6 * n)).unwrap_err();
        assert!(disk.contains("disk grows"), "{disk}");
        assert_eq!(judge(1, &minutes(|n| 100 + 5 * n, wave, calm)[..9]), Ok(()), "too short to tell");
        assert_eq!(judge(1, &minutes(wave, wave, |n| if n > 25 { 2000 } else { 200 })), Ok(()), "readers let go again");
    }

    #[test]
    fn a_steady_node_that_grows_a_little_is_noticed_and_one_that_is_busy_now_and_then_is_not() {
        let calm = |_| 100;
        assert_eq!(judge_steady(3, &minutes(|n| 80 + n % 7, calm, calm)), Ok(()));
        let grown = judge_steady(3, &minutes(|n| 60 + 2 * n, calm, calm)).unwrap_err();
        assert!(grown.contains("grows: 70 MiB in the first third, 110 MiB in the last"), "{grown}");
        assert_eq!(judge(3, &minutes(|n| 60 + 2 * n, calm, calm)), Ok(()), "the wider rule does not notice it");
    }

    #[test]
    fn one_minute_above_a_bound_is_enough() {
        let peak = |n| if n == 3 { 401 } else { 100 };
        assert!(judge(2, &minutes(peak, |_| 100, |_| 100)).unwrap_err().contains("memory in minute 4"));
        let peak = |n| if n == 5 { 4096 } else { 100 };
        assert!(judge(2, &minutes(|_| 100, |_| 100, peak)).unwrap_err().contains("files in minute 6"));
    }
}
