//! Nodes that do not answer: frozen, or killed a moment ago.

use rustix::process::{Pid, Signal, kill_process};

use crate::nodes::leader_of;
use crate::user::{fails, run, three_nodes, three_nodes_with, works, works_in_time};

/// A process that stands still, until this is dropped.
struct Frozen(Pid);

impl Frozen {
    fn new(pid: Pid) -> Frozen {
        kill_process(pid, Signal::STOP).unwrap();
        Frozen(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The kernel takes connections for a process that is stopped, so that it once cost half a minute before the next node was asked,
/// and "Resource temporarily unavailable" was all that was said of it.
#[test]
fn a_frozen_node_is_told_as_silent_and_the_others_answer_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (members, nodes) = three_nodes(dir.path());
    works_in_time(&["transfer", "3", "--endpoints", &members.endpoints()]);
    works_in_time(&["sql", "app", "CREATE TABLE t(x)", "--endpoints", &members.endpoints()]);
    let _frozen = Frozen::new(nodes[0].as_ref().unwrap().pid());
    let silent = "did not answer within 5 s; its process is stopped, or its machine hangs";

    let health = run(&["health", "--endpoints", &members.endpoints()]);
    let (said, reason) = (String::from_utf8_lossy(&health.stdout), String::from_utf8_lossy(&health.stderr));
    assert_eq!(said, format!("{}: healthy\n{}: healthy\n", members.address[1], members.address[2]));
    assert_eq!(health.status.code(), Some(1));
    assert_eq!(reason, format!("shoal: {}: {silent}\n", members.address[0]));
    // In its directory there is nobody else to ask.
    for (args, code) in [
        (&["health"][..], 4),
        (&["status"], 4),
        (&["db", "create", "b"], 4),
        (&["sql", "app", "SELECT 1"], 4),
        (&["verify"], 1),
    ] {
        let reason = fails(&[args, &["--data", &members.data(1)]].concat(), code);
        assert!(
            reason.starts_with(&format!("shoal: {}: the node in this directory {silent}", members.data(1))),
            "{reason}"
        );
    }
    works(&["sql", "app", "INSERT INTO t VALUES (7)", "--endpoints", &members.endpoints()]);
    works(&["db", "create", "b", "--endpoints", &members.endpoints()]);
    let list = works(&["db", "list", "--endpoints", &members.endpoints()]);
    assert!(list.contains("app") && list.contains("\nb "), "{list}");
}

/// Right after the leader died the others still name it: whoever wrote was sent to the dead node. A successor is waited for for 5 s,
/// so elections are short here, also where a process stands still for a second in one.
#[test]
fn after_the_leader_died_its_successor_is_waited_for_and_without_one_there_is_no_leader() {
    let dir = tempfile::tempdir().unwrap();
    let quick = ["--election-timeout", "500ms"];
    let (members, mut nodes) = three_nodes_with(dir.path(), &quick);
    let endpoints = members.endpoints();
    works_in_time(&["sql", "app", "CREATE TABLE t(x)", "--endpoints", &endpoints]);
    let first = leader_of(&endpoints) as usize;
    nodes[first - 1] = None;
    let insert = ["sql", "app", "INSERT INTO t VALUES (1)", "--endpoints", &endpoints];
    works(&insert);
    nodes[first - 1] = Some(members.start_with(first, &quick));
    works_in_time(&["health", "--endpoints", &endpoints]);
    let second = leader_of(&endpoints) as usize;
    nodes[second - 1] = None;
    works(&["db", "create", "b", "--endpoints", &endpoints]);

    // One is left, and nobody can be elected.
    let third = leader_of(&endpoints) as usize;
    nodes[third - 1] = None;
    let last = (1..=3).find(|id| nodes[id - 1].is_some()).unwrap();
    for args in [&insert[..], &["db", "create", "c", "--endpoints", &endpoints]] {
        let reason = fails(args, 4);
        assert!(reason.contains("nobody was found to lead within 5 s: start the nodes that are down"), "{reason}");
        assert!(
            reason.contains(&format!("`shoal health --endpoints {endpoints}` says what is in the way")),
            "{reason}"
        );
    }
    let read = run(&["sql", "app", "SELECT count(*) FROM t", "--endpoints", &endpoints]);
    assert_eq!(String::from_utf8_lossy(&read.stdout), "1\n");
    let note = String::from_utf8_lossy(&read.stderr);
    assert!(
        note.starts_with("note: nobody was found to lead") && note.contains(&format!("node {last} reads")),
        "{note}"
    );
}
