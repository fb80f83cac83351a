//! `shoal recover`: two nodes of three are lost for good, and the one that is left goes on alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::log::all_files;
use crate::prompt::{Terminal, skipped};
use crate::user::{LONG, fails, out, run, text, three_calm_nodes, works, works_in_time};

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&works(args)).unwrap()
}

/// What is in each file. Not when it was changed: whoever opens a log writes its last batch once more, as it is.
fn contents(dir: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    all_files(Path::new(dir)).into_iter().map(|(path, (bytes, _))| (path, bytes)).collect()
}

/// Shows INV-38, as far as a person sees it: what would be lost is read first, and nothing is done before the word is given.
#[test]
fn a_node_that_is_left_goes_on_alone_once_a_person_has_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut nodes) = three_calm_nodes(dir.path());
    let (left, dead) = (members.data(1), members.data(2));
    works_in_time(&["transfer", "1", "--endpoints", &members.endpoints()]);
    works_in_time(&["sql", "app", "CREATE TABLE t(x); INSERT INTO t VALUES (1), (2), (4)", "--data", &left]);
    // Those that will be lost first: whoever is left has all that was acknowledged.
    for at in [1, 2, 0] {
        nodes[at].take();
    }
    let log = json(&["log", "--json", "--data", &left]);
    let newest = log["entries"].as_array().unwrap().last().unwrap();
    let old_cluster = log["cluster"].as_str().unwrap();

    let recover = ["recover", "--only-member", "1", "--data", &left];
    let meaning = [
        format!(
            "this node has the log of cluster {old_cluster} up to entry {}, of term {}\n",
            log["last"], newest["term"]
        ),
        format!("LOST: every transaction that the others acknowledged behind entry {}, if there is any\n", log["last"]),
        "GONE: nodes [2, 3] can never come back; join new ones, with empty directories, under new ids\n".to_string(),
        "the cluster gets a new id; if nodes of the old one are alive, stop them for good\n".to_string(),
    ];
    let tells = |told: &str| meaning.iter().for_each(|line| assert!(told.contains(line), "no {line:?} in {told}"));
    // There is nobody to answer.
    let before = contents(&left);
    let is_untouched = || {
        let now = contents(&left);
        let changed: Vec<_> =
            now.iter().filter(|(path, bytes)| before.get(*path) != Some(bytes)).map(|(path, _)| path).collect();
        assert!(changed.is_empty() && now.len() == before.len(), "{changed:?} of {:?}", now.keys());
    };
    let asked = run(&recover);
    assert_eq!(asked.status.code(), Some(1), "{}", out(&asked));
    assert_eq!(String::from_utf8_lossy(&asked.stderr), "shoal: nothing was changed; with --yes it is done\n");
    tells(&out(&asked));
    is_untouched();
    // Nor is it done to the directory of somebody else.
    let other = fails(&["recover", "--only-member", "2", "--yes", "--data", &left], 2);
    assert!(other.contains(&left) && other.contains("node 1"), "{other}");
    is_untouched();
    if answered(&left, dir.path()).is_none() {
        skipped();
    }
    is_untouched();

    let done = works(&[&recover[..], &["--yes"]].concat());
    tells(&done);
    let (_, new_cluster) = done.split_once("done: node 1 is cluster ").unwrap();
    let new_cluster = new_cluster.strip_suffix("; start it\n").unwrap();
    assert_ne!(new_cluster, old_cluster);

    // Whoever starts it does it as ever, with the list of those that were.
    let _alone = members.start_with(1, &[]);
    works_in_time(&["health", "--data", &left]);
    assert_eq!(works(&["sql", "app", "SELECT sum(x) FROM t", "--data", &left]), "7\n");
    works(&["sql", "app", "INSERT INTO t VALUES (8)", "--data", &left]);
    let status = json(&["status", "--json", "--data", &left])[0]["status"].take();
    assert_eq!((&status["cluster"], &status["voters"]), (&new_cluster.into(), &serde_json::json!([1])), "{status}");
    for word in [&[][..], &["--yes"]] {
        let reason = fails(&[&recover[..], word].concat(), 1);
        assert_eq!(reason, format!("shoal: {left}: a process uses this directory; stop the node first"));
    }

    // One that was thought dead is of the cluster that was, and is told so; this one knows its id as gone.
    let _risen = members.start_with(2, &[]);
    let told = format!("node 2 belongs to cluster {old_cluster}, node 1 to cluster {new_cluster}; check addresses");
    let deadline = Instant::now() + LONG;
    loop {
        let said = out(&run(&["status", "--data", &dead]));
        if said.contains(&told) {
            break;
        }
        assert!(Instant::now() < deadline, "no {told:?} in {said}");
    }
    assert_eq!(run(&["health", "--data", &dead]).status.code(), Some(4));
    let again = fails(&["member", "add", &format!("2={}", members.address[1]), "--data", &left], 1);
    assert!(again.contains("never used again"), "{again}");
    assert_eq!(json(&["status", "--json", "--data", &left])[0]["status"]["voters"], serde_json::json!([1]));
    assert_eq!(works(&["sql", "app", "SELECT sum(x) FROM t", "--data", &left]), "15\n");
}

/// At a terminal it asks: one who says no changes nothing, and the copy of the directory of one who says yes is done.
fn answered(left: &str, dir: &Path) -> Option<()> {
    let asks = |data: &str, answer| {
        let mut terminal = Terminal::run(&format!("recover --only-member 1 --data {data}"), dir)?;
        terminal.shows("GONE: nodes [2, 3] can never come back");
        terminal.shows("Go on? [y/N] ");
        terminal.types(answer);
        Some(terminal)
    };
    for no in ["n\r", "\r"] {
        let mut terminal = asks(left, no)?;
        terminal.shows("shoal: nothing was changed; with --yes it is done");
        assert_eq!(terminal.ended(), Some(1));
    }
    let copy = dir.join("copy");
    for (path, bytes) in contents(left) {
        let to = copy.join(path.strip_prefix(left).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, bytes).unwrap();
    }
    let mut terminal = asks(&text(&copy), "y\r")?;
    terminal.shows("done: node 1 is cluster ");
    terminal.shows("; start it");
    assert_eq!(terminal.ended(), Some(0));
    Some(())
}
