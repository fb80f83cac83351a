//! Schedules: messages lost, repeated and reordered, links cut, disks that stall, nodes that crash and lose any
//! part of what they had not synced. After every step, for all nodes:
//!
//! * a term has one leader;
//! * what one node applied at an index, every node applies there, before and after a crash;
//! * an entry that was applied anywhere is on the disks of a majority (a promise was made only after the sync);
//! * a read sees all that was applied anywhere when it was asked.
//!
//! In the end the network heals, and everybody agrees on everything. What happens is chance: of a seed (`random.rs`), or of
//! bytes (the fuzz target `cluster`, which includes this file).

use std::collections::BTreeMap;

use shoaldb::raft::{Event, Role};
use shoaldb::types::{LogEntry, LogIndex, NodeId, Term};

use super::harness::{Cluster, Dice, voters};

struct Checker {
    leaders: BTreeMap<Term, u16>,
    applied: BTreeMap<LogIndex, LogEntry>,
    /// Per read, the last entry that was applied anywhere when it was asked.
    asked: BTreeMap<u64, LogIndex>,
    majority: usize,
}

impl Checker {
    fn last(&self) -> LogIndex {
        self.applied.last_key_value().map_or(LogIndex(1), |(index, _)| *index)
    }

    fn check(&mut self, cluster: &Cluster) {
        assert!(cluster.fatal.is_empty(), "{:?}", cluster.fatal);
        for (id, node) in &cluster.nodes {
            if let Some(core) = &node.core {
                let role = core.status().role;
                if role.role == Role::Leader {
                    let first = self.leaders.entry(role.term).or_insert(*id);
                    assert_eq!(first, id, "two leaders in term {}", role.term);
                }
            }
            for entry in node.to_apply.iter().chain(&node.applied) {
                if let Some(known) = self.applied.get(&entry.id.index) {
                    assert_eq!(known, entry, "node {id} applies another entry");
                    continue;
                }
                self.applied.insert(entry.id.index, entry.clone());
                let has = |disk: &super::harness::Disk| disk.entries.get(entry.id.index.0 as usize - 2) == Some(entry);
                let disks = cluster.nodes.values().filter(|node| has(&node.disk())).count();
                assert!(disks >= self.majority, "entry {} is on {disks} disks", entry.id.index);
            }
        }
        for (read, outcome) in &cluster.reads {
            let index = outcome.unwrap();
            assert!(index >= self.asked[read], "read {read}: {index} is older than {}", self.asked[read]);
        }
    }
}

/// Crashes a node. Of the batches that were not reported, any number may have reached the disk, in order.
fn crash(cluster: &mut Cluster, id: u16, dice: &mut Dice) {
    let node = cluster.node(id);
    if dice.roll(3) == 0 && !node.applied.is_empty() && dice.roll(2) == 0 {
        node.disk().checkpoint = (node.applied_index(), node.membership.clone());
    }
    let survive = dice.roll(node.pending.len() as u64 + 1) as usize;
    for batch in node.pending.drain(..survive) {
        node.disk.lock().unwrap().write(&batch);
    }
    cluster.crash(id);
}

fn step(cluster: &mut Cluster, checker: &mut Checker, dice: &mut Dice, n: u16) {
    let id = 1 + dice.roll(u64::from(n)) as u16;
    match dice.roll(1000) {
        0..550 if !cluster.wire.is_empty() => {
            // Mostly the oldest, so that something gets done.
            let span = if dice.roll(4) == 0 { cluster.wire.len() as u64 } else { 1 };
            let at = dice.roll(span) as usize;
            let message = cluster.wire.remove(at);
            match dice.roll(20) {
                0 => {}
                1 => {
                    cluster.wire.push(message.clone());
                    cluster.deliver(message);
                }
                _ => cluster.deliver(message),
            }
        }
        550..700 => {
            cluster.persist_one(id);
        }
        700..780 => {
            cluster.apply_all(id);
        }
        780..820 => cluster.event(id, Event::Tick),
        820..940 => {
            let data = format!("{}", dice.roll(1 << 40));
            cluster.propose(id, data);
        }
        940..980 => {
            if cluster.node(id).core.is_some() {
                let asked = checker.last();
                let read = cluster.read(id);
                checker.asked.insert(read, asked);
            }
        }
        980..985 => crash(cluster, id, dice),
        985..995 => {
            if cluster.node(id).core.is_none() {
                cluster.restart(id);
            }
        }
        995..998 => {
            let other = 1 + dice.roll(u64::from(n)) as u16;
            if dice.roll(3) == 0 {
                cluster.cut.insert((id, other));
            } else {
                cluster.cut.clear();
            }
        }
        _ => {
            let to = NodeId(1 + dice.roll(u64::from(n)) as u16);
            cluster.event(id, if dice.roll(2) == 0 { Event::Campaign } else { Event::Transfer { to } });
        }
    }
}

/// At most so many steps, and as many as the dice have. Returns how many entries and reads there were.
pub(crate) fn schedule(n: u16, seed: u64, mut dice: Dice, steps: usize) -> (usize, usize) {
    let tail = [0, 200, 1 << 20][dice.roll(3) as usize];
    let apply = [1, 300, 1 << 20][dice.roll(3) as usize];
    let mut cluster = Cluster::with(voters(1..=n), |config| {
        config.tail_cache_bytes = tail;
        config.max_apply_bytes = apply;
        config.max_message_bytes = 40;
        config.max_inflight = 4;
        config.election_ticks = 4;
        config.heartbeat_ticks = 1;
        config.seed += seed << 20;
    });
    let majority = usize::from(n / 2 + 1);
    let mut checker = Checker { leaders: BTreeMap::new(), applied: BTreeMap::new(), asked: BTreeMap::new(), majority };
    for _ in 0..steps {
        if dice.is_over() {
            break;
        }
        step(&mut cluster, &mut checker, &mut dice, n);
        checker.check(&cluster);
    }
    cluster.cut.clear();
    for id in 1..=n {
        if cluster.node(id).core.is_none() {
            cluster.restart(id);
        }
    }
    cluster.run();
    for _ in 0..200 {
        cluster.pass(1);
        checker.check(&cluster);
        if cluster.leader().is_some_and(|leader| agree(&cluster, leader)) {
            return (checker.applied.len(), cluster.reads.len());
        }
    }
    panic!("the healed cluster does not agree");
}

fn agree(cluster: &Cluster, leader: u16) -> bool {
    let last = cluster.nodes[&leader].disk().last();
    cluster.nodes.values().all(|node| node.disk().last() == last && node.applied_index() == last.index)
}
