//! A node that lacks what the log no longer has: how long it takes, how much travels, and what it costs the others.
//!
//! ```text
//! cargo bench --bench snapshot -- [--mib 200] [--only CASE] [--rounds 3] [--writers 16] [--dir DIR] [--apart DIR]
//! ```
//!
//! Three voters, of which the leader is this process, and learners that come and go, each a process of its own. The database is
//! as large as `--mib` says; to another one sixteen writers, or so many as one says, commit small transactions in those rows that
//! say so. The cases, in turns:
//!
//! ```text
//! lent       how long it is from a learner's first question until a view is lent to it, at a WAL of 4 MB: connection and all
//! nothing    writers alone, and writers beside `cp` and `fsync` of the main file
//! join       a learner with nothing, so many rounds without writers and with them
//! rejoin     a learner that comes back after one page in a hundred changed: at random places, at one place; without
//!            writers, whose rows would have to be sent as well, and with them
//! follower   a learner that is killed when it has a fifth, a half and nine tenths, and started again
//! leader     the leader, which is another process then, killed when a learner has that much
//! three      three learners with nothing at once
//! ```
//!
//! What was sent is told in parts of the database, or of what changed of it; what the leader read for that, too. It is what the
//! leader sent; if that is another process, what came to the learner in all attempts, without what was still in the buffers of a
//! connection when that broke, 4 MB at the most. Memory is what
//! `RssAnon` and `RssShmem` grew by at the most in the leader and were at the most in the learner, seen every 20 ms. "cpu" is what
//! leader and learner used of it. "transfer" is how long it was, at the most, from the learner's first question until the snapshot
//! counts there. Beside each: `cp` and `fsync` of the main file, right after it. A learner is caught up when it has applied what was
//! committed when it was started.
//!
//! All nodes share one disk, which no cluster does: who writes waits for what a learner writes. With `--apart` the learners are
//! in another directory, of another disk or in memory. Then only what writers wait for says anything: a learner in memory is
//! faster than one on a disk.

use std::time::Duration;

use common::{Args, LONG};
use shoaldb::Builder;

mod cases;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod learner;
mod measure;

const LOG_LIMIT: u64 = 32 << 20;

fn main() {
    shoaldb::give_back_freed_memory();
    let args = Args::of_process();
    if let Some(seat) = args.seat() {
        return learner::run(&seat);
    }
    let (dir, apart) = (args.directory(), args.directory_apart());
    let learners = apart.as_ref().unwrap_or(&dir);
    let bench = cluster::Cluster::start(dir.path(), learners.path(), args.number("--mib", 200));
    cases::run(&bench, &args);
}

fn settings(builder: Builder) -> Builder {
    let builder = builder.log_limit(LOG_LIMIT).segment_bytes(4 << 20).commit_timeout(LONG).busy_timeout(LONG);
    // A machine that is busy with other things holds nodes up, and whoever leads must go on leading.
    builder.election_timeout(Duration::from_secs(3))
}
