//! Exit codes: the same for the same kind of failure, whatever the command. And of a node that must not be started again.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::ports::free_ports;
use crate::user::{
    LONG, Started, fails, one_node, run, shoal, text, three_calm_nodes, three_nodes, works, works_in_time,
};

/// What is asked, the exit code, and a word of the reason. `F` and `L` are the directories of a follower and of the leader.
const WITH_A_LEADER: [(&[&str], i32, &str); 25] = [
    (&["db", "create", "app", "--data", "F"], 1, "exists already"),
    (&["db", "create", "../a", "--data", "F"], 2, "../a"),
    (&["db", "create", "a", "--page-size", "1000", "--data", "F"], 2, "1000"),
    (&["db", "drop", "none", "--yes", "--data", "F"], 1, "no database named none"),
    (&["sql", "../a", "SELECT 1", "--data", "F"], 2, "../a"),
    (&["sql", "app", "SELECT nix", "--data", "F"], 1, "nix"),
    (&["sql", "app", "INSERT INTO t VALUES (1)", "--data", "F"], 1, "is not the leader"),
    (&["restore", "app", "FILE", "--yes", "--data", "F"], 1, "is not the leader"),
    (&["restore", "app", "/does/not/exist", "--yes", "--data", "L"], 1, "/does/not/exist"),
    (&["restore", "app", "/dev/zero", "--yes", "--data", "L"], 1, "not a regular file"),
    (&["restore", "../a", "FILE", "--yes", "--data", "L"], 2, "../a"),
    (&["backup", "none", "x.db", "--data", "F"], 1, "no database named none"),
    (&["backup", "../a", "x.db", "--data", "F"], 2, "../a"),
    (&["verify", "none", "--data", "F"], 1, "none"),
    (&["transfer", "9", "--data", "F"], 1, "node 9 is no member of this cluster: `shoal member list` shows who is"),
    (&["transfer", "x", "--data", "F"], 2, ""),
    (&["member", "add", "2=127.0.0.1:4999", "--data", "F"], 1, "is a member already"),
    (&["member", "add", "5=x:y", "--data", "F"], 2, "no number"),
    (&["member", "add", "5=192.0.2.1:4002", "--data", "F"], 2, "allow it with --allow-plaintext-remote"),
    (&["member", "promote", "2", "--data", "F"], 1, "is a voter already"),
    (&["member", "promote", "9", "--data", "F"], 1, "no member"),
    (&["member", "remove", "9", "--data", "F"], 1, "no member of this cluster: `shoal member list` shows who is"),
    (&["member", "replace", "8", "9", "--data", "F"], 1, "no member"),
    (&["member", "replace", "0", "9", "--data", "F"], 2, ""),
    (&["status", "--endpoints", "127.0.0.1:4001", "--data", "F"], 2, ""),
];

/// The same without a leader, on the node that is left.
const WITHOUT: [&[&str]; 8] = [
    &["health", "--data", "L"],
    &["db", "create", "b", "--data", "L"],
    &["db", "drop", "app", "--yes", "--data", "L"],
    &["transfer", "1", "--data", "L"],
    &["member", "add", "5=127.0.0.1:4999", "--data", "L"],
    &["member", "remove", "2", "--data", "L"],
    &["sql", "app", "INSERT INTO t VALUES (1)", "--data", "L"],
    &["restore", "app", "FILE", "--yes", "--data", "L"],
];

#[test]
fn one_kind_of_failure_has_one_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir.path().join("in.db"));
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    let (members, mut nodes) = three_calm_nodes(dir.path());
    works_in_time(&["transfer", "1", "--endpoints", &members.endpoints()]);
    works_in_time(&["sql", "app", "CREATE TABLE t(x)", "--data", &members.data(1)]);
    let (leader, follower) = (members.data(1), members.data(2));
    let names = |args: &[&str]| -> Vec<String> {
        let name = |arg: &&str| match *arg {
            "F" => follower.clone(),
            "L" => leader.clone(),
            "FILE" => file.clone(),
            other => other.to_string(),
        };
        args.iter().map(name).collect()
    };
    for (args, code, word) in WITH_A_LEADER {
        let args = names(args);
        let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let reason = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {reason}");
        assert!(reason.contains(word), "{args:?}: {reason}");
    }
    // One that was taken out says so, and does not want to be started again; asked once more, the others say why not.
    works(&["member", "remove", "3", "--data", &follower]);
    assert_eq!(nodes[2].take().unwrap().ended(), 5);
    assert!(fails(&["member", "remove", "3", "--data", &follower], 1).contains("never used again"));
    assert!(fails(&["member", "add", "3=127.0.0.1:4999", "--data", &follower], 1).contains("never used again"));

    nodes[1].take();
    let deadline = Instant::now() + LONG;
    while run(&["health", "--data", &leader]).status.code() != Some(4) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
    for args in WITHOUT {
        let args = names(args);
        let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let reason = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{args:?}: {reason}");
    }
}

/// It may hear of it before anybody listens. A service manager would start one that ended otherwise again and again, and one that did
/// not end would never be looked at. Without what `Node::events` tells late listeners one in some ten starts did not, more where
/// processors are short; which is tested by itself there.
#[test]
fn a_node_that_was_removed_while_it_was_down_ends_when_it_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut nodes) = three_nodes(dir.path());
    works_in_time(&["transfer", "1", "--endpoints", &members.endpoints()]);
    nodes[2].take();
    works(&["member", "remove", "3", "--data", &members.data(1)]);
    for _ in 0..8 {
        let node = members.start_with(3, &[]);
        node.wait_line("shoal: ");
        assert_eq!(node.ended(), 5);
    }
}

/// It asked for ever, and a service manager that looks at the process alone saw nothing wrong.
#[test]
fn an_id_that_was_removed_is_told_so_once_and_not_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_ports(1)[0]);
    let (data, again) = (text(&dir.path().join("data")), text(&dir.path().join("again")));
    let node = Started::new(&mut shoal(&["start", "--id", "1", "--data", &data, "--listen", &address]));
    node.wait_line("ready");
    works_in_time(&["health", "--data", &data]);
    works(&["member", "add", "4=127.0.0.1:4999", "--data", &data]);
    works(&["member", "remove", "4", "--data", &data]);
    // The directory has not even an identity yet the first time, and one of no cluster the second.
    for _ in 0..2 {
        let start = ["start", "--id", "4", "--data", &again, "--listen", "127.0.0.1:0", "--join", &address];
        let started = Started::new(&mut shoal(&start));
        let reason = started.wait_line("shoal: ");
        assert_eq!(started.ended(), 5, "{reason}");
        assert!(reason.contains(&address) && reason.contains("join under a new id"), "{reason}");
    }
}

/// Whoever typed the id of another node was told to remove that one, which was well.
#[test]
fn a_second_directory_under_the_id_of_a_member_is_told_to_take_another_id() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_ports(1)[0]);
    let (data, second) = (text(&dir.path().join("data")), text(&dir.path().join("second")));
    let node = Started::new(&mut shoal(&["start", "--id", "1", "--data", &data, "--listen", &address]));
    node.wait_line("ready");
    works_in_time(&["health", "--data", &data]);
    let start = ["start", "--id", "1", "--data", &second, "--listen", "127.0.0.1:0", "--join", &address];
    let started = Started::new(&mut shoal(&start));
    let told = started.wait_line("in no cluster yet");
    assert!(told.contains("start this directory with another id; only if the directory of node 1 is gone"), "{told}");
}

#[test]
fn a_data_directory_that_is_not_there_is_told_by_all_commands_alike() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("nonexistent"));
    let receipt = "r1-00c0ffee00c0ffee-2-5-1047-3";
    let commands: [&[&str]; 14] = [
        &["status"],
        &["health"],
        &["transfer", "1"],
        &["outcome", receipt],
        &["db", "list"],
        &["db", "drop", "app", "--yes"],
        &["member", "list"],
        &["sql", "app", "SELECT 1"],
        &["backup", "app", "x.db"],
        &["restore", "app", "x.db", "--yes"],
        &["verify"],
        &["log"],
        &["recover", "--only-member", "1"],
        &["recover", "--only-member", "1", "--yes"],
    ];
    for command in commands {
        let reason = fails(&[command, &["--data", &data]].concat(), 2);
        let told = format!("shoal: {data}: there is no such directory; --data is the data directory of a node");
        assert_eq!(reason, told, "{command:?}");
    }
    assert!(!dir.path().join("nonexistent").exists());
}

/// Each says where, and what to do.
#[test]
fn a_directory_that_is_damaged_says_where_and_what_to_do_and_is_not_to_be_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x); INSERT INTO t VALUES (1)", "--data", &data]);
    assert_eq!(node.terminate(), 0);
    let start = ["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"];
    let (log, away) = (dir.path().join("data/log"), dir.path().join("away"));

    std::fs::rename(&log, &away).unwrap();
    let reason = fails(&start, 5);
    assert!(reason.contains(&text(&log)) && reason.contains("bring it back"), "{reason}");
    std::fs::rename(&away, &log).unwrap();

    let mut segments: Vec<_> = std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    segments.sort();
    let whole = std::fs::read(&segments[0]).unwrap();
    let mut damaged = whole.clone();
    damaged[30] ^= 1;
    std::fs::write(&segments[0], damaged).unwrap();
    let reason = fails(&start, 5);
    assert!(reason.contains(&text(&log)) && reason.contains("damaged"), "{reason}");
    assert!(reason.contains(&format!("shoal log --data {data}")) && reason.contains("join a new one"), "{reason}");
    std::fs::write(&segments[0], whole).unwrap();

    let identity = dir.path().join("data/identity");
    let whole = std::fs::read(&identity).unwrap();
    std::fs::write(&identity, &whole[..whole.len() - 1]).unwrap();
    assert!(fails(&start, 5).contains(&text(&identity)));
    std::fs::write(&identity, whole).unwrap();

    let node = Started::new(&mut shoal(&start));
    node.wait_line("ready");
    works_in_time(&["health", "--data", &data]);
    assert_eq!(works(&["sql", "app", "SELECT x FROM t", "--data", &data]), "1\n");
}

/// A service manager keeps its settings: `--join`, and a list that is out of date, do no harm. A list of nodes that this
/// directory's cluster has never heard of is another cluster's, which somebody should hear of.
#[test]
fn settings_of_a_member_change_nothing_and_a_list_of_another_cluster_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &[]);
    assert_eq!(node.terminate(), 0);
    let ports = free_ports(3);
    let address = |at: usize| format!("127.0.0.1:{}", ports[at]);
    let start = |more: &[&str]| -> Vec<String> {
        let args = ["start", "--id", "1", "--data", &data, "--listen", &address(0)];
        args.iter().chain(more).map(ToString::to_string).collect()
    };
    let list = format!("1={},2={},3={}", address(0), address(1), address(2));
    // What the help says of it.
    let help = works(&["start", "--help"]).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        help.contains("a list whose other nodes that cluster has never heard of is ignored with a warning"),
        "{help}"
    );
    for more in
        [&["--join", &address(1)][..], &["--bootstrap", &list], &["--bootstrap", &format!("1={}", address(0))], &[]]
    {
        let args = start(more);
        let node = Started::new(&mut shoal(&args.iter().map(String::as_str).collect::<Vec<_>>()));
        let said = node.lines_until("ready").join("\n");
        assert_eq!(said.contains("there is nothing to join"), more.first() == Some(&"--join"), "{said}");
        assert_eq!(said.contains("give the node an empty directory"), more.contains(&&*list), "{said}");
        works_in_time(&["health", "--data", &data]);
        assert_eq!(node.terminate(), 0);
    }
}
