//! The cases, as the module's text of the bench has them.

use std::time::Duration;

use crate::cluster::{Came, Cluster, Learner};
use crate::common::{Args, at};
use crate::measure::{Watch, head, row};

/// Percent of a snapshot at which somebody is killed.
const KILLED_AT: [u64; 3] = [20, 50, 90];

pub(crate) fn run(cluster: &Cluster, args: &Args) {
    let (only, rounds, writers) = (args.value("--only"), args.number("--rounds", 3), args.number("--writers", 16));
    let wanted = |case: &str| only.is_none_or(|only| only == case);
    if wanted("lent") {
        lent(cluster);
    }
    head();
    if wanted("nothing") || wanted("join") {
        nothing(cluster, writers);
    }
    if wanted("join") {
        (0..rounds).for_each(|_| join(cluster, 0));
        (0..rounds).for_each(|_| join(cluster, writers));
    }
    if wanted("rejoin") {
        rejoin(cluster, 0);
        rejoin(cluster, writers);
    }
    if wanted("follower") {
        follower(cluster, writers);
    }
    if wanted("leader") {
        leader(cluster);
    }
    if wanted("three") {
        three(cluster, 0);
        three(cluster, writers);
    }
}

/// Views that are lent to one learner after another while the WAL has four megabytes.
fn lent(cluster: &Cluster) {
    let (app, mut micros) = (cluster.app(), Vec::new());
    for _ in 0..10 {
        let learner = cluster.learner();
        // No checkpoint moves them away.
        let held = cluster.node.read_view("app").expect("a view");
        app.execute_batch("UPDATE t SET v = randomblob(4040) WHERE id <= 1000").expect("four megabytes");
        let frames = cluster.node.status().databases.iter().find(|db| db.name == "app").map_or(0, |db| db.wal_frames);
        assert!(frames >= 1000, "{frames} frames in the WAL");
        micros.push(cluster.lend(learner));
        held.close();
    }
    micros.sort_unstable();
    println!(
        "a view is lent {} us after the first question, median of {}; {} us at the most\n",
        at(&micros, 500),
        micros.len(),
        at(&micros, 1000)
    );
}

fn nothing(cluster: &Cluster, writers: usize) {
    row(cluster, "nothing", writers, 0, |_| {
        std::thread::sleep(Duration::from_secs(10));
        Came::default()
    });
    // What it costs the others that somebody writes as much to the same disk.
    row(cluster, "`cp` and `fsync`", writers, 0, |_| {
        cluster.copy();
        Came::default()
    });
}

fn join(cluster: &Cluster, writers: usize) {
    let mut learner = cluster.learner();
    row(cluster, "from nothing", writers, cluster.bytes, |watch| cluster.join(&mut learner, watch));
    cluster.leave(learner);
}

fn rejoin(cluster: &Cluster, writers: usize) {
    let mut learner = cluster.learner();
    cluster.join(&mut learner, &Watch::default());
    for (what, which) in
        [("1 % at random", "id % 100 = 7"), ("1 % at one place", "id <= (SELECT max(id) FROM t) / 100")]
    {
        cluster.all_have_it();
        cluster.stop(&mut learner);
        cluster.app().execute_batch(&format!("UPDATE t SET v = randomblob(4040) WHERE {which}")).expect("the change");
        cluster.outrun();
        row(cluster, what, writers, cluster.bytes / 100, |watch| cluster.join(&mut learner, watch));
    }
    cluster.leave(learner);
}

fn follower(cluster: &Cluster, writers: usize) {
    for percent in KILLED_AT {
        let mut learner = cluster.learner();
        row(cluster, &format!("learner killed at {percent} %"), writers, cluster.bytes, |watch| {
            cluster.kill_at(&learner, percent);
            cluster.join(&mut learner, watch)
        });
        cluster.leave(learner);
    }
}

/// Nobody writes: this process does not lead then.
fn leader(cluster: &Cluster) {
    for percent in KILLED_AT {
        let mut learner = cluster.learner();
        cluster.let_other_lead();
        row(cluster, &format!("leader killed at {percent} %"), 0, cluster.bytes, |watch| {
            let mut killed = false;
            let came = cluster.join_and(&mut learner, watch, |at| {
                if at >= percent && !std::mem::replace(&mut killed, true) {
                    cluster.kill_leader();
                }
            });
            assert!(killed, "it was installed before its leader could be killed");
            came
        });
        cluster.restore_order();
        cluster.leave(learner);
    }
}

fn three(cluster: &Cluster, writers: usize) {
    let mut learners: Vec<Learner> = (0..3).map(|_| cluster.learner()).collect();
    row(cluster, "three at once", writers, cluster.bytes, |watch| {
        std::thread::scope(|scope| {
            let join = |learner| scope.spawn(move || cluster.join(learner, watch));
            let joins: Vec<_> = learners.iter_mut().map(join).collect();
            joins.into_iter().map(|join| join.join().expect("no panic")).fold(Came::default(), |all, came| Came {
                bytes: all.bytes + came.bytes,
                millis: all.millis.max(came.millis),
            })
        })
    });
    learners.into_iter().for_each(|learner| cluster.leave(learner));
}
