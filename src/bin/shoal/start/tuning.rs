//! Times and sizes of a node: what [`Builder`] has, as flags. What is not given keeps its default.

use std::time::Duration;

use shoaldb::Builder;

use crate::units::{size, time};

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Times and sizes")]
pub(crate) struct Tuning {
    /// Time between two heartbeats of a leader [default: 100ms].
    #[arg(long, env = "SHOAL_HEARTBEAT", value_name = "TIME", value_parser = time)]
    heartbeat: Option<Duration>,
    /// A follower that hears nothing for this long, up to twice as long, campaigns [default: 1s].
    #[arg(long, env = "SHOAL_ELECTION_TIMEOUT", value_name = "TIME", value_parser = time)]
    election_timeout: Option<Duration>,
    /// How long a commit waits for a majority before its outcome is unknown [default: 10s].
    #[arg(long, env = "SHOAL_COMMIT_TIMEOUT", value_name = "TIME", value_parser = time)]
    commit_timeout: Option<Duration>,
    /// How long a session waits for the write lock, or for a leader [default: 5s].
    #[arg(long, env = "SHOAL_BUSY_TIMEOUT", value_name = "TIME", value_parser = time)]
    busy_timeout: Option<Duration>,
    /// A SQL session of which nothing is asked for this long ends; in a transaction after a tenth of it [default: 10m].
    #[arg(long, env = "SHOAL_SESSION_IDLE", value_name = "TIME", value_parser = time)]
    session_idle: Option<Duration>,
    /// Pages of write-ahead logs that are kept in memory [default: 64MiB].
    #[arg(long, env = "SHOAL_WAL_LIMIT", value_name = "SIZE", value_parser = size)]
    wal_limit: Option<u64>,
    /// Log beyond which its oldest files are dropped, once nobody needs them [default: 256MiB].
    #[arg(long, env = "SHOAL_LOG_LIMIT", value_name = "SIZE", value_parser = size)]
    log_limit: Option<u64>,
    /// Size of one file of the log [default: 16MiB].
    #[arg(long, env = "SHOAL_SEGMENT_BYTES", value_name = "SIZE", value_parser = size)]
    segment_bytes: Option<u64>,
    /// Newest entries of the log that are kept in memory, for the others [default: 32MiB].
    #[arg(long, env = "SHOAL_TAIL_CACHE_LIMIT", value_name = "SIZE", value_parser = size)]
    tail_cache_limit: Option<u64>,
    /// Entries on their way that no majority has yet, beyond which further ones are refused [default: 64MiB].
    #[arg(long, env = "SHOAL_UNCOMMITTED_LIMIT", value_name = "SIZE", value_parser = size)]
    uncommitted_limit: Option<u64>,
    /// Entries on their way to one other node that it has not acknowledged [default: 16MiB].
    #[arg(long, env = "SHOAL_INFLIGHT_LIMIT", value_name = "SIZE", value_parser = size)]
    inflight_limit: Option<u64>,
    /// Committed entries that wait to be applied [default: 32MiB].
    #[arg(long, env = "SHOAL_APPLY_LIMIT", value_name = "SIZE", value_parser = size)]
    apply_limit: Option<u64>,
    /// Messages of other nodes that wait for their turn [default: 32MiB].
    #[arg(long, env = "SHOAL_INBOX_LIMIT", value_name = "SIZE", value_parser = size)]
    inbox_limit: Option<u64>,
    /// Pages in a write-ahead log beyond which they are moved to the database [default: 4MiB].
    #[arg(long, env = "SHOAL_CHECKPOINT_BYTES", value_name = "SIZE", value_parser = size)]
    checkpoint_bytes: Option<u64>,
    /// Size beyond which the double-write file of a database gives its room back after a checkpoint [default: 64MiB].
    #[arg(long, env = "SHOAL_DOUBLEWRITE_BYTES", value_name = "SIZE", value_parser = size)]
    doublewrite_bytes: Option<u64>,
    /// How long a page may be in a write-ahead log alone [default: 1m].
    #[arg(long, env = "SHOAL_CHECKPOINT_AGE", value_name = "TIME", value_parser = time)]
    checkpoint_age: Option<Duration>,
    /// Bytes of databases that are compared with their hashes each second; 0 for none [default: 1MiB].
    #[arg(long, env = "SHOAL_SCRUB_BYTES", value_name = "SIZE", value_parser = size)]
    scrub_bytes: Option<u64>,
    /// Bytes of snapshots that are sent each second, to all other nodes together; 0 for no limit [default: 0].
    #[arg(long, env = "SHOAL_SNAPSHOT_RATE", value_name = "SIZE", value_parser = size)]
    snapshot_rate: Option<u64>,
    /// How long a view lent to another node, for a snapshot, stays open, used or not [default: 24h].
    #[arg(long, env = "SHOAL_SNAPSHOT_READ_VIEW_CLOSE_TIMEOUT", value_name = "TIME", value_parser = time)]
    snapshot_read_view_close_timeout: Option<Duration>,
    /// Pages in write-ahead logs that read views, lent to other nodes or not, keep there before they are closed [default: 1GiB].
    #[arg(long, env = "SHOAL_SNAPSHOT_WAL_PIN_MAX", value_name = "SIZE", value_parser = size)]
    snapshot_wal_pin_max: Option<u64>,
    /// Databases that are copied into memory when they are lent, all together, up to this size; 0 for never [default: 16MiB].
    #[arg(long, env = "SHOAL_SNAPSHOT_CHUNK_MAX_SIZE", value_name = "SIZE", value_parser = size)]
    snapshot_chunk_max_size: Option<u64>,
    /// A read transaction that is younger is not ended while it keeps less than twice what it may [default: 1m].
    #[arg(long, env = "SHOAL_READER_PATIENCE", value_name = "TIME", value_parser = time)]
    reader_patience: Option<Duration>,
    /// Pages in a write-ahead log that an older one may keep there before it is ended [default: 1GiB].
    #[arg(long, env = "SHOAL_READER_WAL_PIN_MAX", value_name = "SIZE", value_parser = size)]
    reader_wal_pin_max: Option<u64>,
    /// Largest transaction [default: 4GiB].
    #[arg(long, env = "SHOAL_TRANSACTION_LIMIT", value_name = "SIZE", value_parser = size)]
    transaction_limit: Option<u64>,
    /// A transaction that is larger goes through the log in parts of this size [default: 4MiB].
    #[arg(long, env = "SHOAL_PART_BYTES", value_name = "SIZE", value_parser = size)]
    part_bytes: Option<u64>,
}

impl Tuning {
    /// Tells the builder what was given.
    pub(crate) fn apply(&self, builder: Builder) -> Builder {
        fn set<T: Copy>(builder: Builder, value: Option<T>, with: impl FnOnce(Builder, T) -> Builder) -> Builder {
            match value {
                Some(value) => with(builder, value),
                None => builder,
            }
        }
        let builder = set(builder, self.heartbeat, Builder::heartbeat);
        let builder = set(builder, self.election_timeout, Builder::election_timeout);
        let builder = set(builder, self.commit_timeout, Builder::commit_timeout);
        let builder = set(builder, self.busy_timeout, Builder::busy_timeout);
        let builder = set(builder, self.session_idle, Builder::session_idle);
        let builder = set(builder, self.wal_limit, Builder::wal_limit);
        let builder = set(builder, self.log_limit, Builder::log_limit);
        let builder = set(builder, self.segment_bytes, Builder::segment_bytes);
        let builder = set(builder, self.tail_cache_limit, Builder::tail_cache_limit);
        let builder = set(builder, self.uncommitted_limit, Builder::uncommitted_limit);
        let builder = set(builder, self.inflight_limit, Builder::inflight_limit);
        let builder = set(builder, self.apply_limit, Builder::apply_limit);
        let builder = set(builder, self.inbox_limit, Builder::inbox_limit);
        let builder = set(builder, self.checkpoint_bytes, Builder::checkpoint_bytes);
        let builder = set(builder, self.doublewrite_bytes, Builder::doublewrite_bytes);
        let builder = set(builder, self.checkpoint_age, Builder::checkpoint_age);
        let builder = set(builder, self.scrub_bytes, Builder::scrub_bytes);
        let builder = set(builder, self.snapshot_rate, Builder::snapshot_rate);
        let builder = set(builder, self.snapshot_read_view_close_timeout, Builder::snapshot_read_view_close_timeout);
        let builder = set(builder, self.snapshot_wal_pin_max, Builder::snapshot_wal_pin_max);
        let builder = set(builder, self.snapshot_chunk_max_size, Builder::snapshot_chunk_max_size);
        let builder = set(builder, self.reader_patience, Builder::reader_patience);
        let builder = set(builder, self.reader_wal_pin_max, Builder::reader_wal_pin_max);
        let builder = set(builder, self.transaction_limit, Builder::transaction_limit);
        // What no pointer reaches is too large all the same.
        let part_bytes = self.part_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        set(builder, part_bytes, Builder::part_bytes)
    }
}
