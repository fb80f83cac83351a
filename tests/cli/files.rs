//! `shoal backup`, `restore` and `verify`.

use std::path::Path;

use rusqlite::Connection;

use crate::prompt::{Terminal, skipped};
use crate::sql::Waiting;
use crate::user::{fails, one_node, out, run, shoal, text, three_calm_nodes, works, works_in_time};

fn file(path: &Path, rows: i64) -> String {
    let db = Connection::open(path).unwrap();
    db.execute_batch("CREATE TABLE t(x INTEGER PRIMARY KEY, v)").unwrap();
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
         INSERT INTO t SELECT NULL, randomblob(3000) FROM n",
        [rows],
    )
    .unwrap();
    text(path)
}

fn rows(path: &str) -> i64 {
    Connection::open(path).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&works(args)).unwrap()
}

#[test]
fn a_file_in_and_out_and_what_stands_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &[]);
    let (source, copy) = (file(&dir.path().join("in.db"), 500), text(&dir.path().join("out.db")));
    assert_eq!(works(&["restore", "app", &source, "--data", &data, "--yes"]), format!("restored app from {source}\n"));
    assert_eq!(works(&["backup", "app", &copy, "--data", &data]), format!("wrote app to {copy}\n"));
    assert_eq!(rows(&copy), 500);
    assert!(fails(&["backup", "app", &copy, "--data", &data], 1).contains("exists already"));
    assert!(fails(&["backup", "none", "x.db", "--data", &data], 1).contains("no database named none"));
    // A name means what it means where the command is given.
    let mut there = shoal(&["backup", "app", "here.db", "--json", "--data", &data]);
    let answer: serde_json::Value =
        serde_json::from_str(&out(&there.current_dir(dir.path()).output().unwrap())).unwrap();
    assert_eq!((&answer["backup"], &answer["file"]), (&"app".into(), &"here.db".into()));
    assert_eq!(rows(&text(&dir.path().join("here.db"))), 500);

    std::fs::write(dir.path().join("bad.db"), "no database ".repeat(100)).unwrap();
    let reason = fails(&["restore", "app", &text(&dir.path().join("bad.db")), "--data", &data, "--yes"], 1);
    assert!(reason.contains("not a SQLite database") && reason.contains("nothing was changed"), "{reason}");
    assert!(fails(&["restore", "app", "/does/not/exist", "--data", &data, "--yes"], 1).contains("/does/not/exist"));
    assert!(fails(&["restore", "../app", &source, "--data", &data, "--yes"], 2).contains("../app"));
    let restored = json(&["restore", "app", &source, "--json", "--yes", "--data", &data]);
    assert_eq!(restored["restored"], "app");

    let verified = json(&["verify", "--deep", "--json", "--data", &data]);
    assert_eq!((&verified[0]["same"], &verified[0]["database"]), (&true.into(), &"app".into()));
    assert!(works(&["verify", "app", "--data", &data]).contains("same"));
    assert!(fails(&["verify", "none", "--data", &data], 1).contains("none"));
    // Where nobody can be asked, it must be said.
    for unsaid in [&["restore", "app", &source, "--data", &data][..], &["db", "drop", "app", "--data", &data]] {
        let reason = fails(unsaid, 2);
        assert!(reason.ends_with("; there is no terminal to ask at: say --yes"), "{reason}");
    }
    assert_eq!(rows(&copy), 500);
    assert_eq!(works(&["sql", "app", "SELECT count(*) FROM t", "--data", &data]), "500\n");
    assert_eq!(node.terminate(), 0);
    // Whoever reads JSON reads why there is none.
    for asked in [&["verify"][..], &["backup", "app", "x.db"], &["db", "list"], &["member", "list"], &["transfer", "1"]]
    {
        let output = run(&[asked, &["--json", "--data", &data]].concat());
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let reason = String::from_utf8_lossy(&output.stderr);
        // A leader has nothing to do with the others.
        let code = if asked[0] == "transfer" { 4 } else { 1 };
        assert_eq!((output.status.code(), &answer["exit_code"]), (Some(code), &code.into()), "{answer}");
        assert_eq!(reason, format!("shoal: {}\n", answer["error"].as_str().unwrap()));
    }
    // A list of nodes, however many fail.
    for asked in ["status", "health"] {
        let output = run(&[asked, "--json", "--data", &data]);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), &answer[0]["exit_code"]), (Some(4), &4.into()), "{answer}");
        assert!(answer[0]["error"].as_str().unwrap().contains("no node runs"), "{answer}");
    }
    assert!(fails(&["restore", "app", &source, "--data", &data, "--yes"], 4).contains("no node runs"));
    assert!(fails(&["backup", "app", "x.db", "--data", &data], 1).contains("no node runs"));
}

#[test]
fn the_leader_is_found_among_the_endpoints_and_a_node_that_is_away_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut nodes) = three_calm_nodes(dir.path());
    let endpoints = members.endpoints();
    works_in_time(&["health", "--endpoints", &endpoints]);
    let source = file(&dir.path().join("in.db"), 300);
    works_in_time(&["restore", "app", &source, "--endpoints", &endpoints, "--yes"]);
    let status = json(&["status", "--json", "--endpoints", &endpoints]);
    let leader = status[0]["status"]["leader"].as_u64().unwrap() as usize;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let reason = fails(&["restore", "app", &source, "--data", &members.data(follower), "--yes"], 1);
    assert!(
        reason.contains(&format!("node {leader} is; nothing was changed. Node {leader} does it: shoal restore app")),
        "{reason}"
    );
    let there = members.data(follower);
    assert!(
        reason.ends_with(&format!("make this node the leader: shoal transfer {follower} --data {there}")),
        "{reason}"
    );
    let verified = json(&["verify", "--json", "--endpoints", &endpoints]);
    assert_eq!((&verified[0]["same"], verified[0]["nodes"].as_array().unwrap().len()), (&true.into(), 3));
    let copy = text(&dir.path().join("out.db"));
    works(&["backup", "app", &copy, "--data", &members.data(follower)]);
    assert_eq!(rows(&copy), 300);

    nodes[follower - 1] = None;
    let output = run(&["verify", "app", "--data", &members.data(leader)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(out(&output).contains("did not answer"), "{}", out(&output));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("the same on all nodes that answered, but not all did: app")
    );
}

/// How far it is, and the question before, are for a person. Another writer holds the restore up until the bar was seen.
#[test]
fn a_restore_asks_at_a_terminal_and_draws_a_bar_while_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &["--busy-timeout", "60s"]);
    works(&["sql", "app", "CREATE TABLE old(x)", "--data", &data]);
    let source = file(&dir.path().join("in.db"), 100);
    let restore = |answer: &str| {
        let mut terminal = Terminal::run(&format!("restore app {source} --data {data}"), dir.path())?;
        terminal.shows(&format!("Replace what is in app by {source}? [y/N] "));
        terminal.types(answer);
        Some(terminal)
    };
    let Some(mut terminal) = restore("n\r") else { return skipped() };
    terminal.shows("shoal: app was left as it is");
    assert_eq!(terminal.ended(), Some(1));
    assert_eq!(works(&["sql", "app", ".tables", "--data", &data]), "old\n");

    // Of one that is not there nothing is replaced.
    let mut terminal = Terminal::run(&format!("restore new {source} --data {data}"), dir.path()).unwrap();
    terminal.shows(&format!("Make new, which does not exist yet, from {source}? [y/N] "));
    terminal.types("n\r");
    terminal.shows("shoal: new was not made");
    assert_eq!(terminal.ended(), Some(1));

    let writer = Waiting::begin(&data, "BEGIN IMMEDIATE");
    let mut terminal = restore("y\r").unwrap();
    terminal.shows("checking");
    terminal.shows("░");
    assert_eq!(writer.end().0, Some(1));
    terminal.shows(&format!("restored app from {source}"));
    assert_eq!(terminal.ended(), Some(0));
    assert_eq!(works(&["sql", "app", ".tables", "--data", &data]), "t\n");
}
