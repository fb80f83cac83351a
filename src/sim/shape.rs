//! What one seed decides for a whole run, before anything happens.

use std::time::Duration;

use shoaldb_vfs::env::sim::SimRng;
use shoaldb_vfs::page::PageSize;

use crate::catalogue::AutoVacuum;
use crate::types::NodeId;

/// The kind of cluster, load and adversary that a run has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// How the database is created, by a proposal; `None`: by its first write.
    pub(super) geometry: Option<(PageSize, AutoVacuum)>,
    pub(super) commit_timeout: Duration,
    /// Pages that a connection keeps: beyond them transactions spill.
    pub(super) cache_pages: u64,
    /// Microseconds that a sync takes when nothing is wrong.
    pub(super) sync_micros: u64,
    /// The longest time for which a writer leaves its transaction open, in milliseconds.
    pub(super) patience: u64,
    /// Out of 1000 calls inside the VFS so many are interrupted by what others do.
    pub(super) interruptions: u64,
    /// Out of 1000 votes so many are followed by a power cut before they are on disk.
    pub(super) cut_votes: u64,
    /// Out of 1000 requests for a vote so many take their time: several candidates of one term, and votes that come late.
    pub(super) late_votes: u64,
    /// Out of 1000 questions and answers so many take their time.
    pub(super) slow_answers: u64,
    /// Milliseconds between two changes of the members, on average.
    pub(super) changes: u64,
    /// Age at which a view that is lent is closed.
    pub(super) view_age: Duration,
    /// Bytes of WAL that lent views may pin.
    pub(super) view_pins: u64,
    /// Where the lock page is: the byte that it contains.
    pub(super) lock_page_at: u32,
    /// Bytes of pages that virtual WALs may have in memory.
    pub(super) wal_limit: u64,
    /// How much faster or slower than the world the clocks of nodes may go, in thousandths.
    pub(super) drift: u64,
    /// Whether the disk of one node rots, instead of disks being lost.
    pub(super) rots: bool,
    /// Whether nodes become programs of the next version, and whether they are that from the beginning.
    pub(super) upgrades: bool,
    pub(super) upgraded: bool,
    /// Whether a new leader may be cut off, with one other node, as soon as it leads.
    pub(super) hunts_leaders: bool,
    /// Out of 4 faults so many cut a leader off with one other voter, and then whoever leads after it with it.
    pub(super) ambushes: u64,
    /// Whether others lead for a while as soon as a writer leaves its transaction open on a leader.
    pub(super) returns: bool,
    /// Whether logs are short: who was away for a while needs a snapshot.
    pub(super) short_logs: bool,
    /// Whether people let one node after the other in, behind short logs, and voters are switched off for each as soon as it votes.
    pub(super) crowds: bool,
    /// Whether files of logs stay that should go.
    pub(super) keeps_files: bool,
    /// Whether views are lent for long, and logs are so short that they move past them meanwhile.
    pub(super) lends_long: bool,
    /// Whether a founder that is not bound yet loses its directory.
    pub(super) wipes_late: bool,
    /// Whether voters are switched off as soon as others vote in their stead.
    pub(super) switches_off: bool,
}

impl Shape {
    /// Without an adversary.
    pub(super) fn tame(self) -> Shape {
        Shape {
            interruptions: 0,
            cut_votes: 0,
            late_votes: 0,
            slow_answers: 0,
            drift: 0,
            hunts_leaders: false,
            keeps_files: false,
            lends_long: false,
            wipes_late: false,
            switches_off: false,
            short_logs: true,
            ..self
        }
    }

    /// With an adversary that may have a favourite.
    pub(super) fn stormy(self, dice: &SimRng, seed: u64) -> Shape {
        let shape = Shape { ambushes: u64::from(dice.below(4) == 0), ..self };
        match seed % 16 {
            // Whoever writes waits until it knows what became of it, and little else decides who leads. Five found these clusters.
            12 => Shape {
                ambushes: 3,
                commit_timeout: Duration::from_secs(4),
                sync_micros: 500,
                cut_votes: 0,
                late_votes: 0,
                hunts_leaders: false,
                switches_off: false,
                wipes_late: false,
                rots: false,
                upgrades: false,
                ..shape
            },
            13 => Shape {
                crowds: true,
                switches_off: true,
                changes: 500,
                slow_answers: 0,
                rots: false,
                upgrades: false,
                ambushes: 0,
                ..shape
            },
            // Whoever is to lead for a while must come to it.
            14 => Shape { returns: true, cut_votes: 0, late_votes: 0, hunts_leaders: false, ambushes: 0, ..shape },
            _ => shape,
        }
    }

    pub(super) fn draw(dice: &SimRng) -> Shape {
        let pick = |of: &[u64]| of[dice.below(of.len() as u64) as usize];
        let auto_vacuum = match dice.below(3) {
            0 => AutoVacuum::None,
            1 => AutoVacuum::Full,
            _ => AutoVacuum::Incremental,
        };
        let page_size = PageSize::new(pick(&[512, 512, 1024, 4096, 4096, 65536]) as u32);
        let drawn = Shape {
            geometry: page_size.filter(|_| dice.below(2) == 0).map(|page_size| (page_size, auto_vacuum)),
            commit_timeout: Duration::from_millis(pick(&[20, 60, 300, 1000, 4000, 4000])),
            cache_pages: pick(&[2, 8, 8]),
            sync_micros: pick(&[500, 500, 500, 5_000, 30_000]),
            patience: pick(&[0, 100, 500, 3000]),
            interruptions: pick(&[0, 10, 50]),
            cut_votes: pick(&[0, 30, 300]),
            late_votes: pick(&[0, 0, 400]),
            slow_answers: pick(&[0, 300, 800]),
            changes: pick(&[1000, 2000, 4000]),
            view_age: Duration::from_millis(pick(&[700, 5_000, 60_000])),
            view_pins: pick(&[16 << 10, 256 << 10, 1 << 30]),
            lock_page_at: pick(&[0x4000_0000, 64 << 10, 128 << 10]) as u32,
            wal_limit: pick(&[16 << 10, 256 << 10, 64 << 20]),
            drift: pick(&[0, 0, 50, 300]),
            rots: dice.below(4) == 0,
            upgrades: dice.below(3) == 0,
            upgraded: dice.below(2) == 0,
            hunts_leaders: dice.below(2) == 0,
            keeps_files: dice.below(6) == 0,
            lends_long: dice.below(4) == 0,
            wipes_late: dice.below(6) == 0,
            switches_off: dice.below(2) == 0,
            ambushes: 0,
            returns: false,
            short_logs: false,
            crowds: false,
        };
        if drawn.lends_long {
            // Fetched slowly, so that the log moves on meanwhile, or quickly, and nobody has a lease when it does.
            let slow_answers = pick(&[0, 800]);
            return Shape { slow_answers, view_age: Duration::from_secs(60), view_pins: 1 << 30, ..drawn };
        }
        drawn
    }

    /// Bytes of WAL that a reader may pin: little where views may pin little.
    pub(super) fn reader_pins(&self) -> u64 {
        if self.view_pins <= 16 << 10 { 32 << 10 } else { 1 << 30 }
    }

    /// Bytes of a segment of the log, of a log that is long, and of a part of a transaction on node `id`.
    pub(super) fn sizes(&self, id: NodeId) -> (u64, u64, usize) {
        if self.lends_long {
            return (8 << 10, 24 << 10, 2_000);
        }
        // One page, on some nodes: what changes more pages goes in parts.
        let part_bytes = if id.0.is_multiple_of(2) { 4 << 20 } else { 5_000 };
        if self.crowds || self.short_logs { (8 << 10, 24 << 10, part_bytes) } else { (64 << 10, 192 << 10, part_bytes) }
    }
}
