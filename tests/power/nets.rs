//! Partitions. Each node has a network namespace of its own and is plugged into a bridge, which is in a fourth one. Nobody
//! else sees these addresses, and what is cut is cut for the kernel: no connection is refused, nothing is reset, packets just
//! do not arrive.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::{Dice, judge, number};
use crate::harness::cluster::Cluster;
use crate::harness::ledger::Ledger;
use crate::harness::wire::Act;
use crate::{
    ELECTION_TIMEOUT, PATIENCE, Turns, alone, among_writers, assert_that_it_goes_on, cluster, found, program, run,
    set_up, set_up_if_allowed, skip, wait_replaced,
};

/// How long a partition lasts in which a majority goes on: enough for a node that hears no leader to try more than once.
const TIMEOUTS: u32 = 8;

/// Four namespaces, as long as it lives.
struct Net {
    name: String,
}

impl Net {
    /// The error is what this machine lacks for it.
    fn new() -> Result<Net, String> {
        let net = Net { name: format!("shoal-{}", std::process::id()) };
        let hub = net.hub();
        set_up_if_allowed(&format!("ip netns add {hub}"))?;
        set_up_if_allowed(&format!("ip -n {hub} link add name hub type bridge"))?;
        set_up(&format!("ip -n {hub} link set hub up"))?;
        for id in 1..=3 {
            let node = net.node(id);
            set_up_if_allowed(&format!("ip netns add {node}"))?;
            set_up_if_allowed(&format!("ip -n {hub} link add port{id} type veth peer name eth0 netns {node}"))?;
            set_up(&format!("ip -n {hub} link set port{id} master hub up"))?;
            set_up(&format!("ip -n {node} addr add 10.90.0.{id}/24 dev eth0"))?;
            set_up(&format!("ip -n {node} link set eth0 up"))?;
            set_up(&format!("ip -n {node} link set lo up"))?;
        }
        Ok(net)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    fn node(&self, id: u64) -> String {
        format!("{}-{id}", self.name)
    }

    /// A program that starts a worker in its namespace: its arguments are `worker --id N ...`.
    fn launcher(&self, dir: &Path) -> PathBuf {
        let path = dir.join("launch");
        let text = format!("#!/bin/sh\nexec ip netns exec {}-$3 '{}' \"$@\"\n", self.name, program().display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Pulls a node's plug, or puts it in again.
    fn plug(&self, id: u64, on: bool) {
        run(&format!("ip -n {} link set port{id} {}", self.hub(), if on { "up" } else { "down" })).unwrap();
    }

    /// Isolated ports do not hear each other, but all that are not.
    fn isolate(&self, id: u64, on: bool) {
        let on = if on { "on" } else { "off" };
        run(&format!("ip -n {} link set dev port{id} type bridge_slave isolated {on}", self.hub())).unwrap();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in [self.node(1), self.node(2), self.node(3), self.hub()] {
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}

/// What a node says of itself: its term if it leads, the end of its log.
fn state(cluster: &Cluster, id: u64) -> (Option<u64>, u64) {
    let status = cluster.ask(id, &Act::Status).unwrap();
    let term = status["term"].as_u64().filter(|_| status["leader"].as_u64() == Some(id));
    (term, status["last"].as_u64().unwrap())
}

/// A connection that was cut takes seconds until it works again, and a leader that hears only one of the others now is none when it
/// does not hear that one any more.
fn wait_until_all_hear_the_leader(cluster: &Cluster) -> u64 {
    let until = Instant::now() + PATIENCE;
    loop {
        let leader = cluster.wait_leader(PATIENCE).unwrap();
        let end = state(cluster, leader).1;
        let soon = Instant::now() + ELECTION_TIMEOUT;
        while Instant::now() < soon {
            if cluster.ids().all(|id| state(cluster, id).1 >= end) && state(cluster, leader).0.is_some() {
                return leader;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(Instant::now() < until, "not all nodes hear a leader");
    }
}

/// For some election timeouts the leader and another node do not hear each other, and both hear the third. In each of them something
/// is acknowledged, and the other node gets none of it. False if the leader was replaced, which is allowed, and shows nothing.
fn leads_without(net: &Net, cluster: &Cluster, ledger: &Ledger) -> bool {
    let leader = wait_until_all_hear_the_leader(cluster);
    let other = leader % 3 + 1;
    [leader, other].iter().for_each(|id| net.isolate(*id, true));
    let (term, end) = state(cluster, leader);
    for _ in 0..TIMEOUTS {
        let until = Instant::now() + ELECTION_TIMEOUT;
        while Instant::now() < until {
            assert_that_it_goes_on(cluster, ledger, "the leader and another node do not hear each other");
        }
    }
    let other_has = state(cluster, other).1;
    let led = term.is_some() && state(cluster, leader).0 == term;
    [leader, other].iter().for_each(|id| net.isolate(*id, false));
    assert!(
        !led || other_has <= end,
        "node {other} does not hear leader {leader}, and has {other_has}; {end} is the most"
    );
    led
}

#[test]
fn partitions_lose_nothing_and_a_majority_goes_on() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let net = match Net::new() {
        Ok(net) => net,
        Err(why) => return skip("partitions in network namespaces", &why),
    };
    let (rounds, seed) = (number("SHOAL_ROUNDS", 6), number("SHOAL_SEED", 1));
    let hosts = (1..=3).map(|id| format!("10.90.0.{id}:4000")).collect();
    let (cluster, troubles) = cluster(dir.path(), net.launcher(dir.path()), hosts, true);
    let ledger = Ledger::default();
    let (mut dice, mut turns) = (Dice(seed), Turns::of(3));
    found(&cluster);
    among_writers(&cluster, &ledger, || {
        for _ in 0..rounds {
            std::thread::sleep(Duration::from_millis(dice.below(100)));
            let leader = cluster.wait_leader(PATIENCE).unwrap();
            match turns.draw(&mut dice) {
                // The leader alone: it acknowledges nothing, the others go on.
                0 => {
                    net.plug(leader, false);
                    wait_replaced(&cluster, leader);
                    assert_that_it_goes_on(&cluster, &ledger, "the leader is cut off");
                    net.plug(leader, true);
                }
                // Two that do not hear each other, but both hear the third.
                1 => {
                    // Where processes stand still now and then, most leaders are replaced before the time is over.
                    let until = Instant::now() + 4 * PATIENCE;
                    while !leads_without(&net, &cluster, &ledger) {
                        assert!(Instant::now() < until, "no leader stays that does not hear one of the others");
                    }
                }
                // Everybody alone.
                _ => {
                    cluster.ids().for_each(|id| net.plug(id, false));
                    std::thread::sleep(Duration::from_millis(dice.below(600)));
                    cluster.ids().for_each(|id| net.plug(id, true));
                    assert_that_it_goes_on(&cluster, &ledger, "the network is back");
                }
            }
        }
    });
    let verdict = judge(&cluster, &ledger, &troubles, PATIENCE);
    let kinds = turns.taken();
    eprintln!(
        "{rounds} partitions, seed {seed}: {} acknowledged, all found; {kinds:?} of each kind",
        verdict.acknowledged
    );
    drop(cluster);
}
