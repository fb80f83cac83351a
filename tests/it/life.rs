//! Starting and ending: what a node says when something is not as it should be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoaldb::client::{Client, Doors};
use shoaldb::{CreateOptions, Error, ErrorKind, Member, Node, Outcome, rusqlite};

use shoaldb_vfs::env::os::OsClock;
use shoaldb_vfs::env::{Clock, Env};

use crate::cluster::{Cluster, LONG, count, free_ports, insert, table, until};

/// Waits until a node has an alarm with all these words.
fn alarm(node: &Node, words: &[&str]) -> String {
    let started = Instant::now();
    loop {
        let alarms = node.status().alarms;
        if let Some(alarm) = alarms.iter().find(|alarm| words.iter().all(|word| alarm.contains(word))) {
            return alarm.clone();
        }
        assert!(started.elapsed() < LONG, "node {}: {alarms:?}, expected {words:?}", node.id());
        std::thread::yield_now();
    }
}

/// Without a socket it would wait for the others for ever.
#[test]
fn the_directory_of_a_member_is_not_opened_as_a_cluster_of_one() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    cluster.assert_equal("app");
    cluster.nodes[0] = None;
    let error = Node::open(cluster.dirs[0].path()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
    assert!(error.to_string().contains("other voters"), "{error}");
    cluster.start_node(1);
    cluster.assert_equal("app");
}

#[test]
fn a_wiped_member_does_not_come_back_and_everybody_says_why() {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    insert(&cluster, 1).unwrap();
    cluster.assert_equal("app");
    cluster.nodes[2].take().unwrap().shutdown().unwrap();
    cluster.dirs[2] = tempfile::tempdir().unwrap();
    cluster.start_node(3);
    alarm(cluster.node(3), &["wiped", "remove node 3", "new id"]);
    let error = cluster.node(3).wait_leader(Duration::from_millis(10)).unwrap_err();
    assert!(error.to_string().contains("wiped"), "{error}");
    for id in [1, 2] {
        alarm(cluster.node(id), &["node 3", "wiped", "remove node 3"]);
    }
    // It must not vote: with one of the others gone there is no majority, although two nodes run.
    let leader = cluster.node(1).wait_leader(LONG).unwrap();
    cluster.nodes[leader as usize - 1].take().unwrap().shutdown().unwrap();
    let rest = cluster.node(if leader == 1 { 2 } else { 1 });
    alarm(rest, &["no leader known"]);
    assert_eq!(rest.wait_leader(Duration::from_secs(2)).unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(cluster.node(3).status().term.0, 0);
}

#[test]
fn a_second_running_node_with_a_known_id_is_refused_and_the_first_goes_on() {
    let cluster = Cluster::start(3);
    table(&cluster);
    cluster.assert_equal("app");
    let (dir, port) = (tempfile::tempdir().unwrap(), free_ports(1)[0]);
    let second = Node::builder(3, dir.path())
        .listen(format!("127.0.0.1:{port}"))
        .bootstrap(cluster.list.clone())
        .heartbeat(Duration::from_millis(50))
        .election_timeout(Duration::from_millis(400))
        .start()
        .unwrap();
    let said = alarm(&second, &["node 3 is known with data directory", "remove node 3"]);
    assert!(said.contains("node 1 at") || said.contains("node 2 at"), "{said}");
    // The first one is what it was: it votes, also for an entry that needs it.
    insert(&cluster, 1).unwrap();
    cluster.assert_equal("app");
    let mut cluster = cluster;
    let other = cluster.running().map(Node::id).find(|id| *id != 3 && *id != cluster.leader().id()).unwrap_or(1);
    cluster.nodes[other as usize - 1].take().unwrap().shutdown().unwrap();
    insert(&cluster, 2).unwrap();
    cluster.assert_equal("app");
    assert_eq!(second.status().last.0, 0, "nothing came to the second one");
}

/// They look the same to everybody. Nobody was told, and each turn was an entry of the log, one a second.
#[test]
fn two_nodes_on_copies_of_one_directory_are_told_of() {
    // The one that starts late may find that the other has acknowledged entries in its name, and stops with that.
    while let Err(late) = two_nodes_on_copies() {
        assert!(late.to_string().contains("it lost entries that it had acknowledged"), "{late}");
    }
}

fn two_nodes_on_copies() -> Result<(), Error> {
    let mut cluster = Cluster::start(3);
    table(&cluster);
    cluster.assert_equal("app");
    let twin = cluster.follower().id();
    cluster.nodes[twin as usize - 1].take().unwrap().shutdown().unwrap();
    let (from, to) = (cluster.dirs[twin as usize - 1].path(), tempfile::tempdir().unwrap());
    let copied = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to.path()).status().unwrap();
    assert!(copied.success());
    let address = format!("127.0.0.1:{}", free_ports(1)[0]);
    let second = Node::builder(twin, to.path())
        .listen(address.clone())
        .heartbeat(Duration::from_millis(50))
        .election_timeout(Duration::from_millis(400))
        .start()
        .unwrap();
    cluster.try_start_node(twin)?;
    let (words, first) = (format!("node {twin} is at "), &cluster.list[twin as usize - 1].address);
    let told = |alarm: &String| {
        let both = alarm.contains(first.as_str()) && alarm.contains(&address);
        alarm.starts_with(&words) && both && alarm.contains("by turns") && alarm.contains("stop one of them")
    };
    let started = Instant::now();
    while !cluster.running().any(|node| node.is_leader() && node.status().alarms.iter().any(told)) {
        assert!(started.elapsed() < 2 * LONG, "{:?}", cluster.leader().status());
        std::thread::yield_now();
    }
    second.shutdown_at_once();
    Ok(())
}

#[test]
fn a_member_that_is_never_reached_is_shown_as_such_and_missed_by_nobody() {
    let mut cluster = Cluster::prepare(3);
    [1, 2].into_iter().for_each(|id| cluster.start_node(id));
    table(&cluster);
    insert(&cluster, 1).unwrap();
    let status = cluster.until_leader("it has peers", |status| !status.peers.is_empty());
    let third = status.peers.iter().find(|peer| peer.node.0 == 3).unwrap();
    assert!(!third.active && third.acknowledged.0 == 0, "{third:?}");
    let never_here = status.members.iter().find(|member| member.node.0 == 3 && member.incarnation.is_none());
    assert_eq!(never_here.map(|member| &member.address), Some(&cluster.list[2].address), "where it should be");
    cluster.assert_equal("app");
    let address = &cluster.list[2].address;
    let words = format!("node 3 at {address} has not been reached for ");
    let helps = "nobody listens there; start that node, or correct the address";
    let says = |alarm: &String| alarm.starts_with(&words) && alarm.ends_with(helps);
    let started = Instant::now();
    // That takes a while, in which leadership may move.
    let leader = loop {
        if let Some(leader) = cluster.running().find(|node| node.is_leader() && node.status().alarms.iter().any(says)) {
            break leader.id();
        }
        assert!(started.elapsed() < LONG, "it is told where the third one should be: {:#?}", cluster.leader().status());
        std::thread::yield_now();
    };
    let other = cluster.running().find(|node| node.id() != leader).unwrap();
    assert_eq!(other.status().alarms, [""; 0], "its leader says it");
    // What to do is to start it, and then nothing is left of this.
    cluster.start_node(3);
    cluster.until_leader("it is here", |status| {
        status.members.iter().all(|member| member.incarnation.is_some()) && status.peers.iter().all(|peer| peer.active)
    });
    until(cluster.leader(), "nothing is left to do", |status| status.alarms.is_empty());
    cluster.assert_equal("app");
}

/// A clock that was set to something else.
#[derive(Debug)]
struct Elsewhen(Duration);

impl Clock for Elsewhen {
    fn now(&self) -> Duration {
        OsClock.now() + self.0
    }
}

#[test]
fn nodes_whose_clocks_are_years_apart_are_one_cluster() {
    let mut cluster = Cluster::prepare(3);
    for id in 1..=3u64 {
        let years = Duration::from_secs(10 * 365 * 86_400) * (id as u32 - 1);
        let env = Env { clock: Arc::new(Elsewhen(years)), ..Env::os() };
        cluster.nodes[id as usize - 1] = Some(cluster.builder(id).env(env).start().unwrap());
    }
    table(&cluster);
    for id in 1..=3 {
        // May fail if the other one is behind; then who leads goes on.
        let _ = cluster.leader().transfer_leadership(id);
        insert(&cluster, id as i64).unwrap();
    }
    let db = cluster.follower().connect("app").unwrap();
    db.set_read_level(shoaldb::ReadLevel::Linearizable);
    assert_eq!(count(&db), 3);
    drop(db);
    cluster.assert_equal("app");
}

/// Shows INV-37.
#[test]
fn a_node_of_another_cluster_at_a_members_address_is_named() {
    let mut cluster = Cluster::start(2);
    table(&cluster);
    cluster.nodes[1].take().unwrap().shutdown().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stranger = Node::builder(2, dir.path()).listen(cluster.list[1].address.clone()).start().unwrap();
    let said = alarm(cluster.node(1), &["node 2", "belongs to cluster"]);
    let (ours, theirs) = (cluster.node(1).status().cluster, stranger.status().cluster);
    let clusters = [ours, theirs].map(|cluster| cluster.unwrap().to_string());
    let parts = [&cluster.list[1].address, &clusters[0], &clusters[1], "check addresses and data directories"];
    assert!(parts.iter().all(|part| said.contains(*part)), "{said}");
    assert!(stranger.databases().unwrap().is_empty(), "nothing came to it");
    stranger.shutdown().unwrap();
}

#[test]
fn a_port_in_use_is_named_and_the_directory_is_free_again() {
    let dir = tempfile::tempdir().unwrap();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let error = Node::builder(1, dir.path()).listen(address.clone()).start().unwrap_err();
    let parts = [&address, "another process uses this port", "stop it, or choose another port"];
    assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
    assert!(!dir.path().join("identity").exists() && !dir.path().join("log").exists(), "it is as new as before");
    drop(held);
    Node::builder(1, dir.path()).listen(address).start().unwrap();
}

#[test]
fn the_bootstrap_list_is_ignored_once_the_directory_is_initialised() {
    let dir = tempfile::tempdir().unwrap();
    Node::open(dir.path()).unwrap().shutdown().unwrap();
    let ports = free_ports(2);
    let other = std::net::TcpListener::bind(("127.0.0.1", ports[1])).unwrap();
    other.set_nonblocking(true).unwrap();
    let node = Node::builder(1, dir.path())
        .listen(format!("127.0.0.1:{}", ports[0]))
        .bootstrap([Member::new(1, "127.0.0.1:1"), Member::new(2, format!("127.0.0.1:{}", ports[1]))])
        .start()
        .unwrap();
    assert_eq!(node.wait_leader(LONG).unwrap(), 1);
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    assert_eq!(node.status().voters.len(), 1);
    // Nobody of the list is called. Dialing begins with the start, long before a first entry is committed.
    node.shutdown().unwrap();
    assert_eq!(other.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_vfs_name_is_free_again_after_shutdown_while_handles_live_on() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = Node::builder(1, dirs[0].path()).vfs_name("reused").start().unwrap();
    let open = first.connect("app");
    first.shutdown().unwrap();
    let second = Node::builder(1, dirs[1].path()).vfs_name("reused").start().unwrap();
    second.wait_leader(LONG).unwrap();
    let db = rusqlite::Connection::open("file:app?vfs=reused").unwrap();
    db.execute_batch("CREATE TABLE t(x)").unwrap();
    assert_eq!(second.databases().unwrap(), ["app"]);
    assert_eq!(first.vfs_name(), "reused");
    drop(open);
}

#[test]
fn shutdown_ends_open_transactions_listeners_and_waits() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    let db = node.connect("app").unwrap();
    db.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1); BEGIN IMMEDIATE; INSERT INTO t VALUES (2)").unwrap();
    let events = node.events();
    let listener = std::thread::spawn(move || events.iter().count());
    let waiting = {
        let db = node.connect("app").unwrap();
        db.busy_timeout(LONG).unwrap();
        std::thread::spawn(move || db.execute("INSERT INTO t VALUES (3)", []).unwrap_err())
    };
    let others: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn({
                let node = node.clone();
                move || node.shutdown().unwrap()
            })
        })
        .collect();
    node.shutdown().unwrap();
    // Whoever called it: the directory is free when it returns.
    let again = Node::open(dir.path()).unwrap();
    others.into_iter().for_each(|thread| thread.join().unwrap());
    let error = Error::from(waiting.join().unwrap());
    assert!(matches!(error.kind(), ErrorKind::Stopped | ErrorKind::NotLeader), "{error}");
    assert_eq!(error.outcome(), Some(Outcome::NotCommitted), "{error}");
    let error = Error::from(db.execute_batch("COMMIT").unwrap_err());
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Stopped, Some(Outcome::NotCommitted)), "{error}");
    listener.join().unwrap();
    assert!(node.events().recv().is_err());
    assert_eq!(count(&again.connect("app").unwrap()), 1);
}

#[test]
fn shutdown_lets_commits_that_are_on_their_way_finish() {
    // They have as long as an election takes: here nobody can need more.
    let cluster = Cluster::start_calm(3, |builder| builder.busy_timeout(LONG).commit_timeout(2 * LONG));
    write_until_shutdown(cluster.leader().clone());
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let builder = Node::builder(1, dir.path()).election_timeout(LONG).busy_timeout(LONG).commit_timeout(2 * LONG);
        let node = builder.start().unwrap();
        node.wait_leader(LONG).unwrap();
        write_until_shutdown(node);
    }
}

fn write_until_shutdown(node: Node) {
    let databases = ["a", "b", "c", "d"];
    for name in databases {
        node.write(name, |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = databases
            .into_iter()
            .map(|name| {
                let (node, stop) = (&node, &stop);
                scope.spawn(move || {
                    loop {
                        let result = node.write(name, |tx| Ok(tx.execute("INSERT INTO t VALUES (1)", [])?));
                        if let Err(error) = result {
                            if error.kind() == ErrorKind::Stopped || stop.load(std::sync::atomic::Ordering::Relaxed) {
                                return error.outcome();
                            }
                            assert_eq!(error.outcome(), Some(Outcome::NotCommitted), "{error}");
                        }
                    }
                })
            })
            .collect();
        until(&node, "writers go on", |status| status.last.0 >= 60);
        node.shutdown().unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for writer in writers {
            assert_ne!(writer.join().unwrap(), Some(Outcome::Unknown));
        }
    });
}

#[test]
fn shutdown_of_a_leader_without_a_majority_does_not_wait_for_one() {
    let cluster = Cluster::start(3);
    table(&cluster);
    // A member that comes for the first time writes to the log as well.
    until(cluster.leader(), "all have come", |status| status.members.iter().all(|member| member.incarnation.is_some()));
    let (leader, writer) = undecided(&cluster);
    let (done, returned) = crossbeam_channel::bounded(1);
    let stopping = leader.clone();
    std::thread::spawn(move || done.send(stopping.shutdown()));
    returned.recv_timeout(LONG).expect("it waits for a majority, or for who waits for one").unwrap();
    let outcome = shoaldb::outcome(&writer.join().unwrap().unwrap_err());
    assert_eq!(outcome, Some(Outcome::Unknown));
}

/// A leader that nobody hears, and a commit that is in its log alone and waits for hours.
fn undecided(cluster: &Cluster) -> (Node, std::thread::JoinHandle<rusqlite::Result<usize>>) {
    let started = Instant::now();
    loop {
        let leader = cluster.leader().clone();
        leader.set_commit_timeout(Duration::from_secs(3600));
        let db = leader.connect("app").unwrap();
        cluster.cut(leader.id(), true);
        let last = leader.status().last;
        let writer = std::thread::spawn(move || db.execute("INSERT INTO t VALUES (random())", []));
        while leader.is_leader() {
            if leader.status().last > last {
                return (leader, writer);
            }
            std::thread::yield_now();
        }
        // It noticed first that it is alone. Once more, when there is a leader and that one is decided.
        cluster.cut(leader.id(), false);
        let _ = writer.join().unwrap();
        assert!(started.elapsed() < LONG, "no leader takes a write");
    }
}

#[test]
fn the_last_handle_may_go_away_in_the_middle_of_a_statement() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    let db = node.connect("app").unwrap();
    db.execute_batch("CREATE TABLE t(x)").unwrap();
    let last = std::sync::Mutex::new(Some(node));
    db.create_scalar_function("gone", 0, rusqlite::functions::FunctionFlags::SQLITE_UTF8, move |_| {
        drop(last.lock().unwrap().take());
        Ok(1)
    })
    .unwrap();
    let error = Error::from(db.execute("INSERT INTO t VALUES (gone())", []).unwrap_err());
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Stopped, Some(Outcome::NotCommitted)), "{error}");
    drop(db);
    let node = Node::open(dir.path()).unwrap();
    assert_eq!(count(&node.connect("app").unwrap()), 0);
}

#[test]
fn a_database_that_was_awaited_may_come_with_another_page_size() {
    let cluster = Cluster::start(3);
    table(&cluster);
    let follower = cluster.follower();
    let early = follower.connect("later").unwrap();
    let tables: i64 = early.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 0);
    follower.create("later", CreateOptions { page_size: 1024, ..CreateOptions::default() }).unwrap();
    cluster.write("later", |tx| Ok(tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")?)).unwrap();
    cluster.assert_equal("later");
    let error = Error::from(early.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("close this connection"), "{error}");
    assert_eq!(count(&follower.connect("later").unwrap()), 1);
}

#[test]
fn a_second_replicated_database_may_be_attached_and_read_but_not_written_in_one_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    for name in ["one", "two"] {
        node.write(name, |tx| Ok(tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")?)).unwrap();
    }
    let db = node.connect("one").unwrap();
    db.execute_batch("ATTACH 'two' AS two").unwrap();
    db.set_read_level(shoaldb::ReadLevel::Linearizable);
    let level: String = db.query_row("PRAGMA two.shoal_read_level", [], |row| row.get(0)).unwrap();
    assert_eq!(level, "linearizable", "all that is attached");
    let both: i64 = db.query_row("SELECT count(*) FROM t, two.t", [], |row| row.get(0)).unwrap();
    assert_eq!(both, 1);
    let error = db.execute_batch("BEGIN; INSERT INTO t VALUES (2); INSERT INTO two.t VALUES (2); COMMIT").unwrap_err();
    assert_eq!(shoaldb::outcome(&error), Some(Outcome::NotCommitted), "{error}");
    db.execute_batch("ROLLBACK; INSERT INTO two.t VALUES (3)").unwrap();
    assert_eq!(count(&node.connect("one").unwrap()), 1);
    assert_eq!(count(&node.connect("two").unwrap()), 2);
}

#[test]
fn a_start_that_failed_for_a_port_or_a_name_binds_the_directory_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = Node::builder(1, dir.path()).listen(&address).start().unwrap_err();
    assert!(error.to_string().contains("another process uses this port"), "{error}");
    let elsewhere = tempfile::tempdir().unwrap();
    let _other = Node::builder(1, elsewhere.path()).vfs_name("taken-name").start().unwrap();
    let error = Node::builder(1, dir.path()).vfs_name("taken-name").start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");

    // The directory is still free to be what the list says: a member of two, not a cluster of one that leads already.
    drop(taken);
    let list = [Member::new(1, &*address), Member::new(2, "127.0.0.1:1")];
    let node = Node::builder(1, dir.path()).listen(&address).bootstrap(list).start().unwrap();
    assert_eq!(node.status().cluster, None);
}

/// A new node that is given the list instead of a door waited for ever, "for a majority of the bootstrap list", while every node
/// of the list was up and said nothing: they do not know it, and have no connection to answer over.
#[test]
fn a_new_node_with_a_list_of_nodes_that_have_a_cluster_is_told_to_join() {
    let cluster = Cluster::start(3);
    let id = cluster.leader().status().cluster.unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_ports(1)[0]);
    let mut list = cluster.list.clone();
    list.push(Member::new(4, &*address));
    let node = Node::builder(4, dir.path()).listen(&address).bootstrap(list).start().unwrap();
    let door = &cluster.list[0].address;
    alarm(&node, &["node 1", &id, &format!("--join {door}")]);
    // What it is told to do is what helps.
    drop(node);
    let node = Node::builder(4, dir.path()).listen(&address).join([door.clone()]).start().unwrap();
    node.wait_leader(LONG).unwrap();
    assert_eq!(node.status().cluster.unwrap().to_string(), id);
}

/// It was said on standard error, once.
#[test]
fn two_empty_nodes_with_different_lists_both_say_so_until_they_have_one_list() {
    let ports = free_ports(3);
    let member = |id: u64| Member::new(id, format!("127.0.0.1:{}", ports[id as usize - 1]));
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let start = |id: u64, list: &[u64]| {
        let node = Node::builder(id, dirs[id as usize - 1].path()).listen(member(id).address);
        node.bootstrap(list.iter().map(|id| member(*id))).start().unwrap()
    };
    let one = start(1, &[1, 2]);
    let two = start(2, &[1, 2, 3]);
    for (node, other) in [(&one, 2), (&two, 1)] {
        alarm(node, &[&format!("node {other} was started with another bootstrap list"), "same list"]);
    }
    drop(two);
    let _two = start(2, &[1, 2]);
    one.wait_leader(LONG).unwrap();
    until(&one, "nothing needs attention", |status| status.alarms.is_empty());
}

/// Who promised itself to a founder waits for that one, also when others would make a majority: people must hear of whom.
#[test]
fn who_waits_for_a_founder_that_is_gone_names_it() {
    let mut cluster = Cluster::prepare(5);
    cluster.start_node(1);
    cluster.start_node(2);
    alarm(cluster.node(2), &["no cluster yet", "promised itself to node 1 at", "start that one"]);
    cluster.nodes[0] = None;
    cluster.start_node(3);
    cluster.start_node(4);
    alarm(cluster.node(2), &["promised itself to node 1 at", &cluster.list[0].address, "start that one"]);
    cluster.start_node(1);
    cluster.node(2).wait_leader(LONG).unwrap();
    until(cluster.node(2), "nothing needs attention", |status| status.alarms.is_empty());
}

#[test]
fn a_list_with_one_address_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let list = [Member::new(1, "127.0.0.1:4001"), Member::new(2, "127.0.0.1:4001")];
    let error = Node::builder(1, dir.path()).listen("127.0.0.1:4001").bootstrap(list).start().unwrap_err();
    assert!(error.kind() == ErrorKind::BadInput && error.to_string().contains("same address"), "{error}");
}

/// A node that lags does not say that it is well: whoever waits for `health` before stopping the next node counts on it.
#[test]
fn a_node_that_lags_does_not_say_that_it_is_well() {
    let cluster = Cluster::start(3);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let health =
        || Client::new(Doors::Directory(cluster.dirs[follower.id() as usize - 1].path().into())).health().remove(0).1;
    let began = Instant::now();
    while health().is_err() {
        assert!(began.elapsed() < LONG, "{:?}", health());
    }
    cluster.cut(follower.id(), true);
    leader.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    // It still follows the leader whom it does not hear any more; the old answer was that all is well.
    let error = health().unwrap_err();
    assert!(error.to_string().contains("is catching up") || error.kind() == ErrorKind::NotLeader, "{error:?}");
    cluster.cut(follower.id(), false);
    let began = Instant::now();
    while health().is_err() {
        assert!(began.elapsed() < LONG, "{:?}", health());
    }
    assert_eq!(follower.connect("app").unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)), Ok(0));
}

/// What was acknowledged before a restart is shown by a node that says that it is well: before that it may not even know the
/// tables, and whoever waits for `health` and writes would be told so.
#[test]
fn a_node_that_says_it_is_well_shows_what_was_acknowledged_before_its_restart() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(Doors::Directory(dir.path().to_path_buf()));
    let well = || client.health().iter().all(|(_, answer)| answer.is_ok());
    for acknowledged in 0..20 {
        let node = Node::builder(1, dir.path()).start().unwrap();
        let began = Instant::now();
        while !well() {
            assert!(began.elapsed() < LONG, "{:?}", client.health());
        }
        let db = node.connect("app").unwrap();
        if acknowledged == 0 {
            db.execute_batch("CREATE TABLE t(x)").unwrap();
        }
        assert_eq!(count(&db), acknowledged);
        db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    }
}
