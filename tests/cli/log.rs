//! `shoal log`: what it prints, and that the directory is afterwards what it was before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use crate::user::{LONG, fails, one_node, out, run, text, works};

/// Every file below `dir` with its content and the time of its last change. The admin socket of a node that runs is no file.
pub(crate) fn all_files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.is_file() {
                let changed = path.metadata().unwrap().modified().unwrap();
                found.insert(path.clone(), (std::fs::read(&path).unwrap(), changed));
            }
        }
    }
    found
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&works(args)).unwrap()
}

#[test]
fn the_log_is_printed_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &["--segment-bytes", "64KiB"]);
    works(&["sql", "app", "CREATE TABLE t(x); INSERT INTO t VALUES (1)", "--data", &data]);
    let filled = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 40) INSERT INTO t SELECT randomblob(4000) FROM c";
    works(&["sql", "app", filled, "--data", &data]);
    works(&["db", "create", "other", "--data", &data]);
    works(&["db", "drop", "other", "--yes", "--data", &data]);
    // A node may run meanwhile.
    assert!(works(&["log", "--data", &data]).contains("transaction"));
    assert_eq!(node.terminate(), 0);

    let before = all_files(Path::new(&data));
    let view = json(&["log", "--json", "--data", &data]);
    let words = works(&["log", "--data", &data]);
    assert_eq!(all_files(Path::new(&data)), before);
    assert_eq!(
        (&view["node"], &view["damage"], &view["cut"]),
        (&1.into(), &serde_json::Value::Null, &serde_json::Value::Null)
    );
    for name in ["cluster", "incarnation"] {
        assert_eq!(view[name].as_str().unwrap().len(), 16, "{view}");
    }
    let entries = view["entries"].as_array().unwrap();
    let segments = view["segments"].as_array().unwrap();
    assert!(segments.len() > 1, "{segments:?}");
    assert_eq!((&segments[0]["first"], &segments.last().unwrap()["last"]), (&view["first"], &view["last"]));
    assert_eq!((&entries[0]["index"], &entries.last().unwrap()["index"]), (&view["first"], &view["last"]));
    let kinds: Vec<&str> = entries.iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    for kind in ["new term", "create", "transaction", "drop"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let insert = entries.iter().find(|entry| entry["pages"].as_u64() > Some(30)).unwrap();
    assert_eq!(insert["database"]["name"], "app");
    assert!(insert["bytes"].as_u64() > Some(30 * 4000));
    assert!(words.contains("cluster ") && words.contains("app  pages "), "{words}");
    let last = view["last"].as_u64().unwrap();
    let rest = json(&["log", "--json", "--from", &last.to_string(), "--data", &data]);
    assert_eq!(rest["entries"].as_array().unwrap().len(), 1);
}

/// The names were looked for in the anchor as if it began with the catalogue. It begins with what settles receipts, so that a
/// log that does not have the entry any more which created a database knew it by its number alone.
#[test]
fn a_log_that_was_compacted_still_names_its_databases() {
    let dir = tempfile::tempdir().unwrap();
    let small = ["--segment-bytes", "64KiB", "--log-limit", "64KiB", "--checkpoint-age", "50ms"];
    let (node, data) = one_node(dir.path(), &small);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    // The log itself is looked at when the node has ended: files of a running one may go while they are read.
    let status = |what: &str| json(&["status", "--json", "--data", &data])[0]["status"][what].as_u64().unwrap();
    let (created, deadline) = (status("last"), Instant::now() + LONG);
    while status("first") <= created {
        assert!(Instant::now() < deadline, "the log keeps entry {created}");
        works(&["sql", "app", "INSERT INTO t VALUES (randomblob(30000))", "--data", &data]);
    }
    assert_eq!(node.terminate(), 0);
    let view = json(&["log", "--json", "--data", &data]);
    let entries = view["entries"].as_array().unwrap();
    let transactions: Vec<_> = entries.iter().filter(|entry| entry["kind"] == "transaction").collect();
    assert!(!transactions.is_empty() && entries.iter().all(|entry| entry["kind"] != "create"), "{view}");
    assert!(transactions.iter().all(|entry| entry["database"]["name"] == "app"), "{transactions:?}");
    let words = works(&["log", "--data", &data]);
    assert!(words.contains("app  pages ") && !words.contains("database "), "{words}");
}

/// What the node would refuse, or cut, is told; what stands before it is printed.
#[test]
fn a_damaged_log_is_printed_up_to_the_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)", "--data", &data]);
    // Until the log has gone over to its second file, and has entries there.
    let deadline = Instant::now() + LONG;
    loop {
        works(&["sql", "app", "INSERT INTO t VALUES (3)", "--data", &data]);
        let whole = json(&["log", "--json", "--data", &data]);
        let last = whole["segments"].as_array().unwrap().last().unwrap().clone();
        if whole["segments"].as_array().unwrap().len() > 1 && last["first"].as_u64() < last["last"].as_u64() {
            break;
        }
        assert!(Instant::now() < deadline, "{whole}");
    }
    assert_eq!(node.terminate(), 0);
    let whole = json(&["log", "--json", "--data", &data]);
    let segments = whole["segments"].as_array().unwrap();
    // In the last sector that is used, which is a small batch: the first record in it, behind the batch's header.
    let broken = |segment: &serde_json::Value| {
        let file = Path::new(&data).join("log").join(segment["file"].as_str().unwrap());
        let good = std::fs::read(&file).unwrap();
        let mut bytes = good.clone();
        bytes[segment["used"].as_u64().unwrap() as usize - 512 + 44] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let before = all_files(Path::new(&data));
        let output = run(&["log", "--json", "--data", &data]);
        assert_eq!(all_files(Path::new(&data)), before);
        std::fs::write(&file, good).unwrap();
        let view: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output, view)
    };
    // At the very end it is a torn write, as far as anybody can tell. A start would cut it.
    let (output, view) = broken(segments.last().unwrap());
    assert_eq!(output.status.code(), Some(0), "{view}");
    assert!(view["damage"].is_null() && view["cut"]["file"] == segments.last().unwrap()["file"], "{view}");
    assert_eq!(view["segments"].as_array().unwrap().len(), segments.len());
    // Anywhere before that it was synced: damage.
    let (output, view) = broken(&segments[0]);
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    let reason = String::from_utf8(output.stderr).unwrap();
    assert!(reason.contains("offset") && reason.contains("a node does not start with this log"), "{reason}");
    assert!(view["last"].as_u64() < whole["last"].as_u64());
    let entries = view["entries"].as_array().unwrap();
    assert_eq!(entries[..], whole["entries"].as_array().unwrap()[..entries.len()]);

    let empty = text(&dir.path().join("empty"));
    std::fs::create_dir(&empty).unwrap();
    assert!(fails(&["log", "--data", &empty], 1).contains("no data directory"));
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    assert!(fails(&["log"], 2).contains("--data DIR"));
}
