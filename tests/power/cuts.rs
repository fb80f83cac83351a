//! The power of one, two or all machines goes while writers run. Unlike a kill, this loses what was not synced: a node that
//! acknowledges before its sync is found here.

use std::time::Duration;

use crate::common::{Dice, judge, number};
use crate::disk::Disk;
use crate::harness::ledger::Ledger;
use crate::{PATIENCE, alone, among_writers, cluster, found, program, skip};

const DISK_BYTES: u64 = 512 << 20;

#[test]
fn what_was_acknowledged_survives_power_cuts_of_any_machines() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let disks = match Disk::three(dir.path(), DISK_BYTES) {
        Ok(disks) => disks,
        Err(why) => return skip("power cuts", &why),
    };
    let (rounds, seed) = (number("SHOAL_ROUNDS", 12), number("SHOAL_SEED", 1));
    let (cluster, ledger) = (cluster(dir.path(), program(), Vec::new()), Ledger::default());
    let mut dice = Dice(seed);
    found(&cluster);
    among_writers(&cluster, &ledger, || {
        for round in 0..rounds {
            std::thread::sleep(Duration::from_millis(20 + dice.below(150)));
            let victims = dice.nodes();
            for id in &victims {
                disks[*id as usize - 1].cut();
                // Some live on for a while, without a disk: they must not acknowledge anything.
                if dice.below(2) == 0 {
                    std::thread::sleep(Duration::from_millis(dice.below(40)));
                }
            }
            for id in &victims {
                cluster.kill(*id);
                disks[*id as usize - 1].power_on();
                cluster.start(*id, None).unwrap();
            }
            // Every second time the next cut meets nodes that have not caught up.
            if dice.below(2) == 0 {
                assert!(cluster.wait_ready(&[1, 2, 3], PATIENCE), "round {round}: not all nodes came back");
            }
        }
    });
    let verdict = judge(&cluster, &ledger, PATIENCE);
    assert!(verdict.acknowledged as u64 > rounds, "too little was written for a verdict: {verdict:?}");
    eprintln!("{rounds} power cuts, seed {seed}: {} acknowledged, all found", verdict.acknowledged);
    // The processes first: their disks are unmounted next.
    drop(cluster);
}
