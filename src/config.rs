//! Every limit of a node, with its unit and the reason for its default.
//!
//! Deliberately absent: where a setting came from (flag, environment, file): that is the program's business.

use std::ops::RangeInclusive;
use std::time::Duration;

use shoaldb_vfs::files::DOUBLEWRITE_BYTES;

use crate::types::PROTOCOL;

/// Sizes that a file of the log may have, in whole sectors: one has room for its head and some batches, and places in
/// it fit into 32 bits.
pub(crate) const SEGMENT_BYTES: RangeInclusive<u64> = 4 << 10..=1 << 30;
/// SQL sessions of one node at the same time. Each has two threads, and may hold back the WAL.
pub(crate) const MAX_SESSIONS: usize = 16;
/// Callers of the admin socket at the same time, SQL sessions among them. Each has a thread.
pub(crate) const MAX_CALLERS: usize = 32;
/// A sector of a disk, in bytes.
const SECTOR: u64 = 512;

/// Settings of one node.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Time between two heartbeats of a leader. 100 ms: ten per second cost nothing, and an election timeout of ten of
    /// them survives a lost packet or a slow sync.
    pub(crate) heartbeat: Duration,
    /// A follower that hears nothing for this long, up to twice as long, campaigns. 1 s: well above the syncs of a busy
    /// disk, and a lost leader is replaced within two or three seconds.
    pub(crate) election_timeout: Duration,
    /// How long a SQLite commit, or a linearizable read, waits for a majority before its outcome is Unknown. 10 s:
    /// several elections.
    pub(crate) commit_timeout: Duration,
    /// The busy timeout of connections made by `connect`. 5 s, as rusqlite's.
    pub(crate) busy_timeout: Duration,
    /// Largest transaction in bytes of pages. 4 GiB: VACUUM and the backup API write a whole database at once, and every
    /// node needs up to four times that much room on its disk until it is checkpointed: in the log, for what its WAL does not keep
    /// in memory, in the double-write, and in the main file. Measured: 551 MB for a restore of 150 MB.
    pub(crate) transaction_limit: u64,
    /// A transaction that may be larger, encoded, goes into the log in parts of this many bytes, with entries of others in
    /// between. 4 MiB: a disk is busy with it for milliseconds, and each queue holds a few.
    pub(crate) part_bytes: usize,
    /// Bytes of pages that the virtual WALs of all databases together keep in memory; what is beyond is in files without
    /// a name, which are mapped. 64 MiB: the pages that are read soon after they were written are among them, and a node
    /// with its queues stays well below 400 MiB.
    pub(crate) wal_limit: u64,
    /// Bytes of pages in a database's WAL that are not in its main file, beyond which it is checkpointed. 4 MiB, a thousand
    /// pages as in SQLite: a start applies less than that again, and each checkpoint writes many pages at once.
    pub(crate) checkpoint_bytes: u64,
    /// Bytes of a database's double-write file beyond which it gives its room back when its checkpoint is done. As long as a checkpoint
    /// runs the file is as large as what it moves: nothing else makes it safe. 64 MiB: a checkpoint comes with some megabytes, and only
    /// a large transaction goes beyond it; less for many databases on a small disk.
    pub(crate) doublewrite_bytes: u64,
    /// A database that has had something in its WAL for this long is checkpointed, however little. 60 s.
    pub(crate) checkpoint_age: Duration,
    /// Bytes of log beyond which its oldest segments are dropped, as soon as nobody needs them. 256 MiB: a node that was
    /// away for some minutes finds what it missed. On the disk are up to three segments more: two spare ones, and what is not
    /// used yet of the last one.
    pub(crate) log_limit: u64,
    /// Bytes of main files that are read each second to compare them with their hashes; 0 for none. 1 MiB: a terabyte in
    /// twelve days, and nobody notices.
    pub(crate) scrub_bytes: u64,
    /// Size of one segment file of the log.
    pub(crate) segment_bytes: u64,
    /// Bytes of entries that the disk has and that are kept in memory as well, the newest ones; older ones are read from the
    /// log for whoever needs them. 32 MiB: a follower that misses some seconds of a busy leader costs its disk nothing.
    pub(crate) tail_cache_limit: u64,
    /// Bytes of entries that this leader has proposed and no majority has yet; further ones are certainly not committed. One
    /// always may, and so may the parts of a large transaction: four times `part_bytes` if that is more. 64 MiB: seconds of
    /// a disk's work, and whoever comes then had better wait.
    pub(crate) uncommitted_limit: u64,
    /// Bytes of entries that one follower may be sent and not have acknowledged, beyond one message. 16 MiB: a gigabit with a
    /// round trip of 100 ms is full with that, and what a slow one has in its queue is no more.
    pub(crate) inflight_limit: u64,
    /// Bytes of committed entries that are handed to the applier and are not applied; the rest stays in the log. One always may.
    /// 32 MiB: it never waits for the log, and a transaction of parts does not stay in memory as a whole.
    pub(crate) apply_limit: u64,
    /// Bytes of messages of other nodes that wait for the engine; beyond it their connections are not read. One always may.
    /// 32 MiB: twice what one node sends without an answer.
    pub(crate) inbox_limit: u64,
    /// A SQL session over the admin socket of which nothing is asked for this long ends; inside of a transaction after a
    /// tenth of it. 10 min, and so one minute: a person who thinks may hold up others for that long and no longer.
    pub(crate) session_idle: Duration,
    /// Age at which a view that is lent to another node is closed, used or not. 24 h: far beyond any transfer that moves.
    pub(crate) snapshot_read_view_close_timeout: Duration,
    /// Bytes of WAL that read views may keep from being checkpointed before they are closed. 1 GiB.
    pub(crate) snapshot_wal_pin_max: u64,
    /// A read transaction that is younger is not ended while it keeps less than twice what it may. 60 s: one huge transaction of
    /// somebody else is no reason to end whoever reads at that moment.
    pub(crate) reader_patience: Duration,
    /// Bytes of a database's WAL beyond which read transactions older than that are ended. 1 GiB.
    pub(crate) reader_wal_pin_max: u64,
    /// Bytes of databases, all together, up to which what is lent to another node is copied into memory, so that no checkpoint
    /// waits for whoever fetches it. 16 MiB: a copy takes milliseconds, and less than what a transfer may take in memory anyhow.
    pub(crate) snapshot_chunk_max_size: u64,
    /// Bytes of snapshots that this node sends each second, to all other nodes together; 0 for no limit, which is the default:
    /// a node that is away is one less, and the sooner it is back the better.
    pub(crate) snapshot_rate: u64,
    /// Oldest and newest protocol version that this node speaks: what this program knows, but in tests of upgrades.
    pub(crate) speaks: (u16, u16),
    /// Whether peers may be reached over addresses that are not loopback, unencrypted.
    pub(crate) allow_plaintext_remote: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_secs(1),
            commit_timeout: Duration::from_secs(10),
            busy_timeout: Duration::from_secs(5),
            transaction_limit: 4 << 30,
            part_bytes: 4 << 20,
            wal_limit: 64 << 20,
            checkpoint_bytes: 4 << 20,
            doublewrite_bytes: DOUBLEWRITE_BYTES,
            checkpoint_age: Duration::from_secs(60),
            log_limit: 256 << 20,
            scrub_bytes: 1 << 20,
            segment_bytes: 16 << 20,
            tail_cache_limit: 32 << 20,
            uncommitted_limit: 64 << 20,
            inflight_limit: 16 << 20,
            apply_limit: 32 << 20,
            inbox_limit: 32 << 20,
            session_idle: Duration::from_secs(600),
            snapshot_read_view_close_timeout: Duration::from_secs(86_400),
            snapshot_wal_pin_max: 1 << 30,
            reader_patience: Duration::from_secs(60),
            reader_wal_pin_max: 1 << 30,
            snapshot_chunk_max_size: 16 << 20,
            snapshot_rate: 0,
            speaks: (PROTOCOL, PROTOCOL),
            allow_plaintext_remote: false,
        }
    }
}

impl Config {
    /// Ticks of the core per heartbeat: two, so that a timeout is not rounded by more than half a heartbeat.
    pub(crate) const TICKS_PER_HEARTBEAT: u32 = 2;

    /// Time between two ticks of the core.
    pub(crate) fn tick(&self) -> Duration {
        self.heartbeat / Config::TICKS_PER_HEARTBEAT
    }

    /// The election timeout in ticks.
    pub(crate) fn election_ticks(&self) -> u32 {
        let ticks = self.election_timeout.as_nanos() / self.tick().as_nanos().max(1);
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    /// No time is longer: SQLite counts its busy timeout in milliseconds, in 31 bits, and sums of times must fit.
    const LONGEST: Duration = Duration::from_secs(7 * 86_400);
    /// No size is larger: a disk of these days is smaller, and products of sizes must fit.
    const LARGEST: u64 = 1 << 50;
    /// A database's largest page. What is measured in pages is no smaller.
    const PAGE: u64 = 64 << 10;
    /// An append message with more than that is closed. Raft refuses to work with less room for what is not committed.
    pub(crate) const MESSAGE: u64 = 1 << 20;
    /// The largest copy of databases in memory.
    const LARGEST_CHUNK: u64 = 1 << 30;
    /// The largest part of a transaction. Queues of the log and between nodes hold some of them.
    const LARGEST_PART: u64 = 256 << 20;
    /// The slowest rate of snapshots: an object takes half a minute, and those that wait for their turn do not give up.
    const SLOWEST_SNAPSHOT: u64 = 64 << 10;

    /// The first setting that cannot work: its name, and what to write instead.
    pub(crate) fn check(&self) -> Result<(), BadSetting> {
        let millisecond = Duration::from_millis(1);
        for (setting, time, least) in [
            ("heartbeat", self.heartbeat, millisecond),
            ("election_timeout", self.election_timeout, 3 * self.heartbeat.min(Config::LONGEST)),
            ("commit_timeout", self.commit_timeout, millisecond),
            ("busy_timeout", self.busy_timeout, Duration::ZERO),
            ("session_idle", self.session_idle, 100 * millisecond),
            ("checkpoint_age", self.checkpoint_age, Duration::ZERO),
            ("reader_patience", self.reader_patience, Duration::ZERO),
            ("snapshot_read_view_close_timeout", self.snapshot_read_view_close_timeout, millisecond),
        ] {
            let why = if setting == "election_timeout" { ", three heartbeats" } else { "" };
            if time < least {
                return Err(BadSetting { setting, what: format!("{time:?}: use at least {least:?}{why}") });
            }
            if time > Config::LONGEST {
                return Err(BadSetting { setting, what: format!("{time:?}: use at most 168h, a week") });
            }
        }
        let segment = self.segment_bytes;
        if !SEGMENT_BYTES.contains(&segment) || !segment.is_multiple_of(SECTOR) {
            let (least, most) = (SEGMENT_BYTES.start(), SEGMENT_BYTES.end());
            let what = format!("{segment} bytes: use a multiple of {SECTOR}, at least {least} and at most {most}");
            return Err(BadSetting { setting: "segment_bytes", what });
        }
        let largest = Config::LARGEST;
        for (setting, size, least, most) in [
            ("wal_limit", self.wal_limit, 0, largest),
            ("log_limit", self.log_limit, segment, largest),
            ("checkpoint_bytes", self.checkpoint_bytes, Config::PAGE, largest),
            ("doublewrite_bytes", self.doublewrite_bytes, 0, largest),
            ("transaction_limit", self.transaction_limit, Config::PAGE, largest),
            ("part_bytes", self.part_bytes as u64, Config::PAGE, Config::LARGEST_PART),
            ("scrub_bytes", self.scrub_bytes, 0, largest),
            ("tail_cache_limit", self.tail_cache_limit, 0, largest),
            ("uncommitted_limit", self.uncommitted_limit, Config::MESSAGE, largest),
            ("inflight_limit", self.inflight_limit, Config::PAGE, largest),
            ("apply_limit", self.apply_limit, Config::PAGE, largest),
            ("inbox_limit", self.inbox_limit, Config::PAGE, largest),
            ("snapshot_wal_pin_max", self.snapshot_wal_pin_max, 0, largest),
            ("reader_wal_pin_max", self.reader_wal_pin_max, 0, largest),
            ("snapshot_chunk_max_size", self.snapshot_chunk_max_size, 0, Config::LARGEST_CHUNK),
            ("snapshot_rate", self.snapshot_rate, 0, largest),
        ] {
            if size < least {
                let why = if setting == "log_limit" { ", the size of one file of the log (segment_bytes)" } else { "" };
                return Err(BadSetting { setting, what: format!("{size} bytes: use at least {least}{why}") });
            }
            if size > most {
                return Err(BadSetting { setting, what: format!("{size} bytes: use at most {most}") });
            }
        }
        if (1..Config::SLOWEST_SNAPSHOT).contains(&self.snapshot_rate) {
            let what = format!(
                "{} bytes a second: use at least {}, or 0 for no limit",
                self.snapshot_rate,
                Config::SLOWEST_SNAPSHOT
            );
            return Err(BadSetting { setting: "snapshot_rate", what });
        }
        Ok(())
    }
}

/// A setting that cannot work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BadSetting {
    /// Its name, as the builder has it.
    pub(crate) setting: &'static str,
    /// What it is, and what to write instead.
    pub(crate) what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_cannot_work_are_refused() {
        let config = |election| Config { election_timeout: Duration::from_millis(election), ..Config::default() };
        assert!(config(299).check().is_err());
        assert!(config(300).check().is_ok());
        assert!(Config { commit_timeout: Duration::ZERO, ..Config::default() }.check().is_err());
        assert_eq!(config(300).election_ticks(), 6);
        assert_eq!(Config::default().election_ticks(), 20);
    }

    /// Three values around each bound, and what overflows would come of.
    #[test]
    fn what_is_too_small_or_too_large_is_refused_by_name() {
        type Set = fn(&mut Config, u64);
        let week = Config::LONGEST.as_millis() as u64;
        let most = Config::LARGEST;
        // Name, how to set it, least and most; where one is missing everything goes on that side.
        let times: [(&str, Set, u64); 7] = [
            ("heartbeat", |config, n| (config.heartbeat, config.election_timeout) = (ms_of(n), Config::LONGEST), 1),
            ("commit_timeout", |config, n| config.commit_timeout = ms_of(n), 1),
            ("busy_timeout", |config, n| config.busy_timeout = ms_of(n), 0),
            ("session_idle", |config, n| config.session_idle = ms_of(n), 100),
            ("checkpoint_age", |config, n| config.checkpoint_age = ms_of(n), 0),
            ("reader_patience", |config, n| config.reader_patience = ms_of(n), 0),
            ("snapshot_read_view_close_timeout", |config, n| config.snapshot_read_view_close_timeout = ms_of(n), 1),
        ];
        let sizes: [(&str, Set, u64, u64); 15] = [
            ("wal_limit", |config, n| config.wal_limit = n, 0, most),
            ("log_limit", |config, n| config.log_limit = n, Config::default().segment_bytes, most),
            ("checkpoint_bytes", |config, n| config.checkpoint_bytes = n, 64 << 10, most),
            ("doublewrite_bytes", |config, n| config.doublewrite_bytes = n, 0, most),
            ("transaction_limit", |config, n| config.transaction_limit = n, 64 << 10, most),
            ("part_bytes", |config, n| config.part_bytes = n as usize, 64 << 10, 256 << 20),
            ("scrub_bytes", |config, n| config.scrub_bytes = n, 0, most),
            ("tail_cache_limit", |config, n| config.tail_cache_limit = n, 0, most),
            ("uncommitted_limit", |config, n| config.uncommitted_limit = n, 1 << 20, most),
            ("inflight_limit", |config, n| config.inflight_limit = n, 64 << 10, most),
            ("apply_limit", |config, n| config.apply_limit = n, 64 << 10, most),
            ("inbox_limit", |config, n| config.inbox_limit = n, 64 << 10, most),
            ("snapshot_wal_pin_max", |config, n| config.snapshot_wal_pin_max = n, 0, most),
            ("reader_wal_pin_max", |config, n| config.reader_wal_pin_max = n, 0, most),
            ("snapshot_chunk_max_size", |config, n| config.snapshot_chunk_max_size = n, 0, 1 << 30),
        ];
        let longest = |name: &str| if name == "heartbeat" { week / 3 } else { week };
        let all = times.iter().map(|(name, set, least)| (*name, *set, *least, longest(name)));
        for (name, set, least, most) in all.chain(sizes) {
            let check = |value| {
                let mut config = Config::default();
                set(&mut config, value);
                config.check()
            };
            for (value, fine) in [(least, true), (least + 1, true), (most - 1, true), (most, true)] {
                assert_eq!(check(value).is_ok(), fine, "{name} {value}: {:?}", check(value));
            }
            for value in least.checked_sub(1).into_iter().chain([most + 1, u64::MAX]) {
                let bad = check(value).unwrap_err();
                // With an enormous heartbeat it is the time that depends on it.
                let named = [name, "election_timeout"].contains(&bad.setting);
                assert!(named && bad.what.contains("use at "), "{name} {value}: {bad:?}");
            }
        }
        for (segment_bytes, fine) in [
            (0, false),
            ((4 << 10) - 512, false),
            (4 << 10, true),
            ((4 << 10) + 1, false),
            ((4 << 10) + 512, true),
            (1 << 30, true),
            ((1 << 30) + 512, false),
            (u64::MAX, false),
        ] {
            let checked = Config { segment_bytes, log_limit: 1 << 40, ..Config::default() }.check();
            assert_eq!(checked.is_ok(), fine, "{segment_bytes}: {checked:?}");
        }
        let enormous = Config { heartbeat: Duration::MAX, election_timeout: Duration::MAX, ..Config::default() };
        assert_eq!(enormous.check().unwrap_err().setting, "heartbeat");
        assert!(Config { election_timeout: Config::LONGEST + ms_of(1), ..Config::default() }.check().is_err());
    }

    fn ms_of(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_rate_of_snapshots_is_none_or_one_that_gets_there() {
        let config = |snapshot_rate| Config { snapshot_rate, ..Config::default() };
        for (rate, fine) in [(0, true), (1, false), ((64 << 10) - 1, false), (64 << 10, true), ((64 << 10) + 1, true)] {
            assert_eq!(config(rate).check().is_ok(), fine, "{rate}");
        }
    }
}
