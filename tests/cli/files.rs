//! `shoal backup`, `restore` and `verify`.

use std::path::Path;

use rusqlite::Connection;

use crate::user::{fails, one_node, out, run, shoal, text, three_nodes, works, works_in_time};

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
    assert_eq!(works(&["restore", "app", &source, "--data", &data]), format!("restored app from {source}\n"));
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
    let reason = fails(&["restore", "app", &text(&dir.path().join("bad.db")), "--data", &data], 1);
    assert!(reason.contains("not a SQLite database") && reason.contains("nothing was changed"), "{reason}");
    assert!(fails(&["restore", "app", "/does/not/exist", "--data", &data], 1).contains("/does/not/exist"));
    assert!(fails(&["restore", "../app", &source, "--data", &data], 2).contains("../app"));
    let restored = json(&["restore", "app", &source, "--json", "--yes", "--data", &data]);
    assert_eq!(restored["restored"], "app");

    let verified = json(&["verify", "--deep", "--json", "--data", &data]);
    assert_eq!((&verified[0]["same"], &verified[0]["database"]), (&true.into(), &"app".into()));
    assert!(works(&["verify", "app", "--data", &data]).contains("same"));
    assert!(fails(&["verify", "none", "--data", &data], 1).contains("none"));
    assert_eq!(node.terminate(), 0);
    assert!(fails(&["restore", "app", &source, "--data", &data], 4).contains("no node runs"));
    assert!(fails(&["backup", "app", "x.db", "--data", &data], 4).contains("no node runs"));
}

#[test]
fn the_leader_is_found_among_the_endpoints_and_a_node_that_is_away_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut nodes) = three_nodes(dir.path());
    let endpoints = members.endpoints();
    works_in_time(&["health", "--endpoints", &endpoints]);
    let source = file(&dir.path().join("in.db"), 300);
    works_in_time(&["restore", "app", &source, "--endpoints", &endpoints]);
    let status = json(&["status", "--json", "--endpoints", &endpoints]);
    let leader = status[0]["status"]["leader"].as_u64().unwrap() as usize;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let reason = fails(&["restore", "app", &source, "--data", &members.data(follower)], 1);
    assert!(reason.contains(&format!("node {leader} is")), "{reason}");
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
