//! Memory and disk of the nodes, and the rule by which they grow or do not.
//!
//! Memory is `RssAnon` + `RssShmem`: pages of files are the kernel's to drop. Disk is what the files take up, in the log, for
//! the databases, and in files without a name that a process has open (pages of WALs beyond `wal_limit`).
//!
//! **The rule.** Of each node the highest value of every minute counts. No minute may be above [`MOST_MEMORY`]. Of a run of at least [`ENOUGH`] minutes, the highest of the last third must not be above that of the first
//! third and a quarter, and some room for chance: what happens to coincide in one minute (a large transaction, a VACUUM, a
//! reader that holds both) may take that much. A leak of one byte in a hundred that are written is many times that. There is
//! no such bound for the log: a reader that stays open for half a minute keeps as much of it as is written meanwhile.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(crate) const MIB: u64 = 1 << 20;
/// Every process, always.
const MOST_MEMORY: u64 = 400 * MIB;
/// Minutes from which on growth can be told from chance.
const ENOUGH: usize = 10;
const ROOM_MEMORY: u64 = 48 * MIB;
const ROOM_DISK: u64 = 128 * MIB;

type Measure = fn(&Usage) -> u64;

/// One node, at one moment or at the worst of a minute.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) memory: u64,
    pub(crate) log: u64,
    pub(crate) databases: u64,
    pub(crate) spilled: u64,
}

impl Usage {
    /// Of process `pid`, if there is one, with data directory `dir`.
    pub(crate) fn of(pid: Option<u32>, dir: &Path) -> Usage {
        Usage {
            memory: pid.map_or(0, memory),
            log: size(&dir.join("log")),
            databases: size(&dir.join("db")),
            spilled: pid.map_or(0, |pid| nameless(pid, dir)),
        }
    }

    pub(crate) fn rise(&mut self, other: Usage) {
        self.memory = self.memory.max(other.memory);
        self.log = self.log.max(other.log);
        self.databases = self.databases.max(other.databases);
        self.spilled = self.spilled.max(other.spilled);
    }

    fn disk(&self) -> u64 {
        self.log + self.databases + self.spilled
    }
}

fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    of("RssAnon:") + of("RssShmem:")
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
pub(crate) fn judge(node: u64, minutes: &[Usage]) -> Result<(), String> {
    for (minute, usage) in minutes.iter().enumerate() {
        if usage.memory > MOST_MEMORY {
            let (is, most, minute) = (usage.memory / MIB, MOST_MEMORY / MIB, minute + 1);
            return Err(format!("node {node} had {is} MiB of memory in minute {minute}; at most {most} are allowed"));
        }
    }
    if minutes.len() < ENOUGH {
        return Ok(());
    }
    let third = minutes.len() / 3;
    let highest = |minutes: &[Usage], of: Measure| minutes.iter().map(of).max().unwrap_or(0);
    let kinds: [(&str, Measure, u64); 2] =
        [("memory", |usage| usage.memory, ROOM_MEMORY), ("disk", Usage::disk, ROOM_DISK)];
    for (what, of, room) in kinds {
        let (first, last) = (highest(&minutes[..third], of), highest(&minutes[minutes.len() - third..], of));
        if last > first + first / 4 + room {
            return Err(format!(
                "node {node}: {what} grows: at most {} MiB in the first third, {} MiB in the last",
                first / MIB,
                last / MIB
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(memory: impl Fn(u64) -> u64, disk: impl Fn(u64) -> u64) -> Vec<Usage> {
        let minute = |n| Usage { memory: memory(n) * MIB, log: 64 * MIB, databases: disk(n) * MIB, spilled: 0 };
        (0..30).map(minute).collect()
    }

    #[test]
    fn what_grows_is_told_from_what_goes_up_and_down() {
        let wave = |n| 100 + n % 7 * 10;
        assert_eq!(judge(1, &minutes(wave, wave)), Ok(()));
        let memory = judge(1, &minutes(|n| 100 + 5 * n, wave)).unwrap_err();
        assert!(memory.contains("memory grows"), "{memory}");
        let disk = judge(1, &minutes(wave, |n| 100 + 20 * n)).unwrap_err();
        assert!(disk.contains("disk grows"), "{disk}");
        assert_eq!(judge(1, &minutes(|n| 100 + 5 * n, wave)[..9]), Ok(()), "too short to tell");
    }

    #[test]
    fn one_minute_above_the_bound_is_enough() {
        let peak = |n| if n == 3 { 401 } else { 100 };
        assert!(judge(2, &minutes(peak, |_| 100)).unwrap_err().contains("in minute 4"));
    }
}
