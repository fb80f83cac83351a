//! Every limit of a node, with its unit and the reason for its default.
//!
//! Deliberately absent: where a setting came from (flag, environment, file): that is the program's business.

use std::time::Duration;

use crate::types::PROTOCOL;

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
    /// node needs that much room on its disk twice, for the log and for what its WAL does not keep in memory.
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
    /// A database that has had something in its WAL for this long is checkpointed, however little. 60 s.
    pub(crate) checkpoint_age: Duration,
    /// Bytes of log beyond which its oldest segments are dropped, as soon as nobody needs them. 256 MiB: a node that was
    /// away for some minutes finds what it missed.
    pub(crate) log_limit: u64,
    /// Bytes of main files that are read each second to compare them with their hashes; 0 for none. 1 MiB: a terabyte in
    /// twelve days, and nobody notices.
    pub(crate) scrub_bytes: u64,
    /// Size of one segment file of the log.
    pub(crate) segment_bytes: u64,
    /// A SQL session over the admin socket of which nothing is asked for this long ends; inside of a transaction after a
    /// tenth of it. 10 min, and so one minute: a person who thinks may hold up others for that long and no longer.
    pub(crate) session_idle: Duration,
    /// Age at which a view that is lent to another node is closed, used or not. 24 h: far beyond any transfer that moves.
    pub(crate) snapshot_read_view_close_timeout: Duration,
    /// Bytes of WAL that lent views may keep from being checkpointed before they are closed. 1 GiB.
    pub(crate) snapshot_wal_pin_max: u64,
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
            checkpoint_age: Duration::from_secs(60),
            log_limit: 256 << 20,
            scrub_bytes: 1 << 20,
            segment_bytes: 16 << 20,
            session_idle: Duration::from_secs(600),
            snapshot_read_view_close_timeout: Duration::from_secs(86_400),
            snapshot_wal_pin_max: 1 << 30,
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

    /// The slowest rate of snapshots: an object takes half a minute, and those that wait for their turn do not give up.
    const SLOWEST_SNAPSHOT: u64 = 64 << 10;

    /// What cannot work, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.heartbeat < Duration::from_millis(1) {
            return Err(format!("heartbeat of {:?}: use at least 1ms", self.heartbeat));
        }
        if self.election_timeout < 3 * self.heartbeat {
            return Err(format!(
                "election_timeout of {:?} with a heartbeat of {:?}: use at least three heartbeats",
                self.election_timeout, self.heartbeat
            ));
        }
        if self.commit_timeout < Duration::from_millis(1) {
            return Err(format!("commit_timeout of {:?}: use at least 1ms", self.commit_timeout));
        }
        if self.snapshot_rate > 0 && self.snapshot_rate < Config::SLOWEST_SNAPSHOT {
            return Err(format!(
                "snapshot_rate of {} bytes a second: use at least {}, or 0 for no limit",
                self.snapshot_rate,
                Config::SLOWEST_SNAPSHOT
            ));
        }
        Ok(())
    }
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

    #[test]
    fn a_rate_of_snapshots_is_none_or_one_that_gets_there() {
        let config = |snapshot_rate| Config { snapshot_rate, ..Config::default() };
        for (rate, fine) in [(0, true), (1, false), ((64 << 10) - 1, false), (64 << 10, true), ((64 << 10) + 1, true)] {
            assert_eq!(config(rate).check().is_ok(), fine, "{rate}");
        }
    }
}
