//! Members come and go: three nodes grow to five and back, under writers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use shoaldb::{Builder, ErrorKind, Event, Member, Node};

use crate::cluster::{Cluster, LONG, administer, count, free_ports, insert, retry, table, until};
use crate::wait::told;

impl Cluster {
    /// A node that is not in the list, with the settings of the others.
    pub(crate) fn prepare_more(&mut self, n: usize) {
        let first = self.list.len() as u64 + 1;
        for (id, port) in (first..).zip(free_ports(n)) {
            self.list.push(Member::new(id, format!("127.0.0.1:{port}")));
            self.dirs.push(tempfile::tempdir().unwrap());
            self.nodes.push(None);
        }
    }

    fn joiner(&self, id: u64) -> Builder {
        let doors: Vec<String> = self.list[..3].iter().map(|member| member.address.clone()).collect();
        self.builder(id).bootstrap([]).join(doors)
    }

    fn start_joiner(&mut self, id: u64) {
        self.nodes[id as usize - 1] = Some(self.joiner(id).start().unwrap());
    }

    fn stop_node(&mut self, id: u64) {
        self.nodes[id as usize - 1].take().unwrap().shutdown().unwrap();
    }
}

fn wait_voters(node: &Node, voters: &[u16]) {
    until(node, &format!("voters {voters:?}"), |status| {
        status.voters.iter().map(|id| id.0).eq(voters.iter().copied()) && status.learners.is_empty()
    });
}

fn wait_removed(node: &Node) {
    until(node, "removal", |status| status.alarms.iter().any(|alarm| alarm.contains("was removed")));
}

#[test]
fn three_grow_to_five_and_back_under_writers() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    cluster.prepare_more(2);
    let stop = AtomicBool::new(false);
    let mut acknowledged = 0;
    let nodes: Vec<Node> = cluster.running().cloned().collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut done = 0;
            let mut lost = Vec::new();
            let mut value = 0;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                for node in &nodes {
                    match node.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [value])?)) {
                        Ok(_) => {
                            done += 1;
                            break;
                        }
                        Err(error) if error.kind() == ErrorKind::Unknown => {
                            lost.push(value);
                            break;
                        }
                        Err(_) => {}
                    }
                }
            }
            (done, lost)
        });
        cluster.start_joiner(4);
        wait_voters(cluster.node(4), &[1, 2, 3, 4]);
        cluster.start_joiner(5);
        for id in 1..=5 {
            wait_voters(cluster.node(id), &[1, 2, 3, 4, 5]);
        }
        let leader = cluster.leader().id();
        let old: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        for id in &old {
            administer(|| cluster.node(4).remove(*id)).unwrap();
            wait_removed(cluster.node(*id));
        }
        stop.store(true, Ordering::Relaxed);
        let (done, lost) = writer.join().unwrap();
        acknowledged = done;
        assert!(lost.is_empty(), "{lost:?}");
        for id in old {
            cluster.stop_node(id);
        }
    });
    insert(&cluster, -1).unwrap();
    cluster.assert_equal("app");
    assert!(acknowledged > 0);
    assert_eq!(count(&cluster.node(5).connect("app").unwrap()), acknowledged + 1);
}

/// Shows INV-36.
#[test]
fn a_leader_that_is_removed_hands_over_first_and_stops() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    let leader = cluster.leader().id();
    let events = cluster.node(leader).events();
    // Whoever it hands over to may not lead yet, on a busy machine: then nothing was done, and it is asked again.
    administer(|| cluster.node(leader).remove(leader)).unwrap();
    wait_removed(cluster.node(leader));
    told(&events, |event| matches!(event, Event::Removed { .. }));
    let error = cluster.node(leader).write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (1)", [])?)).unwrap_err();
    assert!(error.outcome() == Some(shoaldb::Outcome::NotCommitted), "{error}");
    cluster.stop_node(leader);
    insert(&cluster, 1).unwrap();
    cluster.assert_equal("app");
    // Started again, it still knows, or is told.
    cluster.start_node(leader);
    wait_removed(cluster.node(leader));
    assert_eq!(cluster.node(leader).wait_leader(LONG).unwrap_err().kind(), ErrorKind::Stopped);
    cluster.stop_node(leader);
    let error = cluster.follower().add_learner(cluster.list[leader as usize - 1].clone()).unwrap_err();
    assert!(error.to_string().contains("never used again"), "{error}");
}

/// A cluster of three from which a follower was removed while it was down, and that one.
fn without_one_that_is_down() -> (Cluster, u64) {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    let follower = cluster.follower().id();
    cluster.stop_node(follower);
    administer(|| cluster.leader().remove(follower)).unwrap();
    (cluster, follower)
}

/// Shows INV-36.
#[test]
fn a_node_that_was_removed_while_it_was_down_is_told() {
    let (mut cluster, follower) = without_one_that_is_down();
    insert(&cluster, 1).unwrap();
    cluster.start_node(follower);
    wait_removed(cluster.node(follower));
    assert_eq!(cluster.node(follower).status().role, "follower");
}

/// What had been said of the door before stayed beside it; and whoever waited for an entry waited for as long as it had
/// said, although nothing runs there that could bring it.
#[test]
fn an_id_that_was_removed_has_that_to_say_alone_and_nothing_to_wait_for() {
    let (mut cluster, follower) = without_one_that_is_down();
    cluster.dirs[follower as usize - 1] = tempfile::tempdir().unwrap();
    let doors = [format!("127.0.0.1:{}", free_ports(1)[0]), cluster.leader().listen_addr().unwrap()];
    let node = cluster.builder(follower).bootstrap([]).join(doors).start().unwrap();
    let started = Instant::now();
    assert!(!node.wait_applied(1 << 40, LONG));
    assert!(started.elapsed() < LONG);
    wait_removed(&node);
    let alarms = node.status().alarms;
    assert!(alarms.iter().all(|alarm| !alarm.contains("is in no cluster yet")), "{alarms:?}");
    node.shutdown().unwrap();
}

/// Shows INV-34.
#[test]
fn what_would_lose_the_quorum_is_refused_with_the_reason() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    let leader = cluster.leader().id();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    cluster.stop_node(others[0]);
    cluster.until_leader("silent peer", |status| {
        status.peers.iter().any(|peer| u64::from(peer.node.0) == others[0] && !peer.active)
    });
    let error = cluster.node(leader).remove(others[1]).unwrap_err();
    assert!(error.to_string().contains("would lose its quorum"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Busy);
    insert(&cluster, 1).unwrap();
    administer(|| cluster.node(others[1]).remove(others[0])).unwrap();
    insert(&cluster, 2).unwrap();
    assert_eq!(cluster.leader().status().voters.len(), 2);
}

/// Shows INV-35.
#[test]
fn a_dead_node_is_replaced_in_one_step() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    insert(&cluster, 1).unwrap();
    let dead = cluster.follower().id();
    cluster.stop_node(dead);
    cluster.prepare_more(1);
    administer(|| cluster.leader().add_learner(cluster.list[3].clone())).unwrap();
    let error = cluster.leader().replace(dead, 4).unwrap_err();
    assert!(error.to_string().contains("not bound"), "{error}");
    cluster.start_joiner(4);
    cluster.until_leader("learner that has caught up", |status| {
        status.peers.iter().any(|peer| peer.node.0 == 4 && peer.active && peer.acknowledged == status.committed)
    });
    let events = cluster.leader().events();
    administer(|| cluster.leader().replace(dead, 4)).unwrap();
    let voters: Vec<u16> = (1..=4).filter(|id| u64::from(*id) != dead).collect();
    told(&events, |event| matches!(event, Event::MemberChanged { .. }));
    for node in cluster.running() {
        wait_voters(node, &voters);
    }
    insert(&cluster, 2).unwrap();
    cluster.assert_equal("app");
}

#[test]
fn a_joiner_that_is_killed_comes_back_and_is_promoted() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    for value in 0..50 {
        insert(&cluster, value).unwrap();
    }
    cluster.prepare_more(1);
    cluster.start_joiner(4);
    cluster.until_leader("member 4", |status| status.members.iter().any(|member| member.node.0 == 4));
    cluster.stop_node(4);
    cluster.start_joiner(4);
    for node in cluster.running() {
        wait_voters(node, &[1, 2, 3, 4]);
    }
    cluster.assert_equal("app");
}

/// Shows INV-33.
#[test]
fn a_second_change_is_refused_while_one_is_pending_and_the_first_is_not_lost() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    cluster.prepare_more(2);
    // Nothing is committed while the leader hears nobody; it leads on for an election timeout.
    let (first, second) = (cluster.list[3].clone(), cluster.list[4].clone());
    let error = loop {
        let node = cluster.node(cluster.leader().id()).clone();
        cluster.cut(node.id(), true);
        let last = node.status().last;
        let (one, other) = (node.clone(), first.clone());
        let thread = std::thread::spawn(move || one.add_learner(other));
        while node.status().last == last && node.status().role == "leader" {
            std::thread::yield_now();
        }
        let answer = node.add_learner(second.clone());
        cluster.cut(node.id(), false);
        let _ = thread.join().unwrap();
        match answer {
            Err(error) if error.to_string().contains("under way") => break error,
            // It did not lead any more when it was asked: once more.
            Err(_) => continue,
            Ok(()) => panic!("a second change was taken while the first was undecided"),
        }
    };
    assert_eq!(error.kind(), ErrorKind::Busy);
    // Whatever became of the first, it is known, and a second one is possible now.
    let known = cluster.leader().status().members.iter().any(|member| member.node.0 == 4);
    match administer(|| cluster.leader().add_learner(first.clone())) {
        Ok(()) => assert!(!known),
        Err(error) => assert!(error.to_string().contains("a member already"), "{error}"),
    }
    administer(|| cluster.leader().add_learner(second.clone())).unwrap();
    assert_eq!(cluster.leader().status().learners.len(), 2);
}

#[test]
fn leadership_is_not_given_to_who_cannot_take_it() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    cluster.prepare_more(1);
    administer(|| cluster.leader().add_learner(cluster.list[3].clone())).unwrap();
    let refused =
        |cluster: &Cluster, to: u64| retry(|| cluster.leader().transfer_leadership(to)).unwrap_err().to_string();
    assert!(refused(&cluster, 9).contains("no member"));
    assert!(refused(&cluster, 4).contains("does not vote"));
    let dead = cluster.follower().id();
    cluster.stop_node(dead);
    cluster.until_leader("silent peer", |status| {
        status.peers.iter().any(|peer| u64::from(peer.node.0) == dead && !peer.active)
    });
    assert!(refused(&cluster, dead).contains("not heard of lately"));
    let other = cluster.follower().id();
    administer(|| cluster.leader().transfer_leadership(other)).unwrap();
    assert_eq!(cluster.leader().id(), other);
}

impl Cluster {
    /// Other ports for all nodes.
    fn move_all(&mut self) {
        let ports = free_ports(self.list.len());
        self.list.iter_mut().zip(ports).for_each(|(member, port)| member.address = format!("127.0.0.1:{port}"));
    }
}

fn wait_addresses(node: &Node, list: &[Member]) {
    until(node, &format!("addresses {list:?}"), |status| {
        let known = status.members.iter().map(|member| &member.address);
        known.eq(list.iter().map(|member| &member.address))
    });
}

#[test]
fn a_member_that_moved_is_found_and_its_address_written_down() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    let follower = cluster.follower().id();
    cluster.stop_node(follower);
    let at = follower as usize - 1;
    cluster.list[at].address = format!("127.0.0.1:{}", free_ports(1)[0]);
    // It is told nothing new but where to listen; the others are where they were.
    cluster.nodes[at] = Some(cluster.builder(follower).start().unwrap());
    insert(&cluster, 1).unwrap();
    for node in cluster.running() {
        wait_addresses(node, &cluster.list);
    }
    administer(|| cluster.leader().transfer_leadership(follower)).unwrap();
    insert(&cluster, 2).unwrap();
    cluster.assert_equal("app");
}

/// Shows INV-37.
#[test]
fn all_nodes_may_be_started_on_other_addresses() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    insert(&cluster, 1).unwrap();
    (1..=3).for_each(|id| cluster.stop_node(id));
    cluster.move_all();
    (1..=3).for_each(|id| cluster.start_node(id));
    insert(&cluster, 2).unwrap();
    for node in cluster.running() {
        wait_addresses(node, &cluster.list);
    }
    // From now on the cluster knows it by itself.
    (1..=3).for_each(|id| cluster.stop_node(id));
    let old = [Member::new(1, "127.0.0.1:1"), Member::new(2, "127.0.0.1:2"), Member::new(3, "127.0.0.1:3")];
    for id in 1..=3 {
        cluster.nodes[id as usize - 1] = Some(cluster.builder(id).bootstrap(old.clone()).start().unwrap());
    }
    insert(&cluster, 3).unwrap();
    cluster.assert_equal("app");
    wait_addresses(cluster.leader(), &cluster.list);
}

/// Shows INV-38.
#[test]
fn one_node_goes_on_alone_and_the_dead_cannot_come_back() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    for value in 0..20 {
        insert(&cluster, value).unwrap();
    }
    cluster.assert_equal("app");
    let dir = cluster.dirs[0].path().to_path_buf();
    assert_eq!(shoaldb::recover::only_member(&dir, 1, true).unwrap_err().kind(), ErrorKind::Busy);
    (1..=3).for_each(|id| cluster.stop_node(id));
    assert_eq!(shoaldb::recover::only_member(&dir, 2, true).unwrap_err().kind(), ErrorKind::BadInput);
    let asked = shoaldb::recover::only_member(&dir, 1, false).unwrap();
    assert_eq!(asked.others.iter().map(|id| id.0).collect::<Vec<_>>(), [2, 3]);
    assert!(asked.to_string().contains("LOST"), "{asked}");
    let done = shoaldb::recover::only_member(&dir, 1, true).unwrap();
    // Had it been interrupted before the new log took the old one's place, or in the middle of that: it is ended.
    let before = std::fs::read_dir(&dir).unwrap().find_map(|file| {
        let path = file.unwrap().path();
        path.file_name().unwrap().to_string_lossy().starts_with("log.before-").then_some(path)
    });
    std::fs::rename(dir.join("log"), dir.join("log.recovered")).unwrap();
    std::fs::rename(before.unwrap(), dir.join("log")).unwrap();
    cluster.builder(1).start().unwrap_err();
    shoaldb::recover::only_member(&dir, 1, true).unwrap();
    std::fs::rename(dir.join("log"), dir.join("log.recovered")).unwrap();
    cluster.builder(1).start().unwrap_err();
    shoaldb::recover::only_member(&dir, 1, true).unwrap();
    assert_eq!((done.last, done.cluster), (asked.last, asked.cluster));
    cluster.start_node(1);
    let alone = cluster.node(1).clone();
    assert_eq!(alone.wait_leader(LONG).unwrap(), 1);
    alone.write("app", |tx| Ok(tx.execute("INSERT INTO t VALUES (100)", [])?)).unwrap();
    assert_eq!(count(&alone.connect("app").unwrap()), 21);
    let status = alone.status();
    assert_eq!((status.cluster, status.voters.len()), (Some(done.new_cluster), 1));
    // The others are a majority of the cluster that was; this node is none of theirs, and they none of its.
    cluster.start_node(2);
    cluster.start_node(3);
    until(cluster.node(2), "refusal", |status| status.alarms.iter().any(|alarm| alarm.contains("belongs to cluster")));
    assert_eq!(alone.status().voters.len(), 1);
    cluster.stop_node(2);
    cluster.stop_node(3);
    let error = alone.add_learner(cluster.list[1].clone()).unwrap_err();
    assert!(error.to_string().contains("never used again"), "{error}");
    cluster.prepare_more(1);
    cluster.start_joiner(4);
    wait_voters(&alone, &[1, 4]);
    cluster.assert_equal("app");
}

/// Shows INV-13.
#[test]
fn a_wiped_voter_is_refused_and_properly_replaced() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    insert(&cluster, 1).unwrap();
    let wiped = cluster.follower().id();
    cluster.stop_node(wiped);
    cluster.dirs[wiped as usize - 1] = tempfile::tempdir().unwrap();
    cluster.start_node(wiped);
    for node in cluster.running() {
        until(node, "refusal", |status| {
            let says = |alarm: &String| alarm.contains("wiped") && alarm.contains(&format!("remove node {wiped}"));
            status.alarms.iter().any(says)
        });
    }
    cluster.stop_node(wiped);
    // Nor does it get in as if it were new.
    let error = until(&cluster.joiner(wiped).start().unwrap(), "refusal", |status| {
        status.alarms.iter().any(|alarm| alarm.contains("is bound to incarnation"))
    });
    assert_eq!(error.term.0, 0);
    cluster.prepare_more(1);
    administer(|| cluster.leader().add_learner(cluster.list[3].clone())).unwrap();
    cluster.start_joiner(4);
    cluster.until_leader("learner that has caught up", |status| {
        status.peers.iter().any(|peer| peer.node.0 == 4 && peer.active && peer.acknowledged == status.committed)
    });
    administer(|| cluster.leader().replace(wiped, 4)).unwrap();
    insert(&cluster, 2).unwrap();
    cluster.assert_equal("app");
}
