//! Processes that stand still (SIGSTOP) and go on later as if nothing had happened. A leader is replaced meanwhile; what it
//! still believes when it wakes up must count for nothing.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Dice, judge, number};
use crate::harness::cluster::Cluster;
use crate::harness::ledger::Ledger;
use crate::{PATIENCE, Turns, alone, among_writers, assert_that_it_goes_on, cluster, found, program, wait_replaced};

fn signal(cluster: &Cluster, id: u64, signal: Signal) {
    let pid = i32::try_from(cluster.child(id).unwrap().pid()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn a_leader_that_stands_still_is_replaced_comes_back_and_loses_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (rounds, seed) = (number("SHOAL_ROUNDS", 10), number("SHOAL_SEED", 1));
    let (cluster, troubles) = cluster(dir.path(), program(), Vec::new(), true);
    let ledger = Ledger::default();
    let (mut dice, mut turns, mut replaced) = (Dice(seed), Turns::of(4), 0);
    found(&cluster);
    among_writers(&cluster, &ledger, || {
        for round in 0..rounds {
            std::thread::sleep(Duration::from_millis(dice.below(60)));
            assert!(cluster.wait_ready(&[1, 2, 3], PATIENCE), "round {round}: not all nodes are there");
            let leader = cluster.wait_leader(PATIENCE).unwrap();
            let other = cluster.ids().find(|id| *id != leader && dice.below(2) == 0).unwrap_or(leader % 3 + 1);
            match turns.draw(&mut dice) {
                // The leader: another one takes over and commits, while the old one's callers wait.
                0 | 1 => {
                    signal(&cluster, leader, Signal::STOP);
                    wait_replaced(&cluster, leader);
                    replaced += 1;
                    assert_that_it_goes_on(&cluster, &ledger, "a leader stands still");
                    signal(&cluster, leader, Signal::CONT);
                }
                // Leader and another one: no majority, until one of them goes on. The other is killed where it stands.
                2 => {
                    signal(&cluster, leader, Signal::STOP);
                    signal(&cluster, other, Signal::STOP);
                    std::thread::sleep(Duration::from_millis(dice.below(400)));
                    signal(&cluster, leader, Signal::CONT);
                    cluster.kill(other);
                    assert_that_it_goes_on(&cluster, &ledger, "the leader goes on, another node is dead");
                    cluster.start(other, None).unwrap();
                }
                // The leader stands still, another one is killed meanwhile: only together they are a majority again.
                _ => {
                    signal(&cluster, leader, Signal::STOP);
                    cluster.kill(other);
                    std::thread::sleep(Duration::from_millis(dice.below(400)));
                    cluster.start(other, None).unwrap();
                    signal(&cluster, leader, Signal::CONT);
                    assert_that_it_goes_on(&cluster, &ledger, "the leader goes on, another node was killed");
                }
            }
        }
    });
    let verdict = judge(&cluster, &ledger, &troubles, PATIENCE);
    assert!(replaced > 0, "no leader was replaced: more rounds");
    let (kinds, found) = (turns.taken(), verdict.acknowledged);
    eprintln!(
        "{rounds} stops, seed {seed}: {found} acknowledged, all found; {replaced} replaced, {kinds:?} of each kind"
    );
}
