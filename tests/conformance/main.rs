//! SQLite's own answers, through three nodes.
//!
//! The corpus is sqllogictest: files of statements and queries with what they give. `EXPECTED_STOCK.txt` beside them says
//! how many records of each file hold on a stock SQLite; they must hold here, all of them. `SHOAL_TESTDATA` names the folder
//! that has the folder `sqllogictest`; without it the test says that it is skipped, and in CI that is an error.
//!
//! How a file is run, and why so:
//!
//! * each file is a database of its own, on three nodes in this process, over real sockets;
//! * **all connections are opened anew every 50 records**: a page cache hides whatever the VFS loses;
//! * statements go to the leader. Each query goes to all three: to the leader, to one follower that reads `Linearizable` at
//!   once, and to one that reads `Local` after it has applied what the leader has. All must give the expected answer;
//! * the WAL is checkpointed from a few pages on, so that what is read comes from the main files as well as from the WAL;
//! * afterwards all nodes have the same checksum at the same index, and `integrity_check` is ok.
//!
//! `cargo test` leaves out the files in [`LONG`]. All of them:
//!
//! ```text
//! SHOAL_TESTDATA=DIR SHOAL_CONFORMANCE=all cargo test --test conformance -- --nocapture
//! ```
//!
//! The script `rusqlite.sh` here runs another suite on our VFS: that of rusqlite.

mod cluster_run;
mod records;

#[allow(dead_code, reason = "shared with the tests that use the rest of it")]
#[path = "../it/cluster.rs"]
mod cluster;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cluster_run::Nodes;
use crate::records::{Counts, File};

/// Left out unless somebody asks for all: half of the time, and nothing that the others do not have.
const LONG: [&str; 3] = ["index_delete_10_slt_good_0.test", "index_delete_1_slt_good_0.test", "select4.test"];

/// The folder of the corpus, or `None` after saying that there is none.
fn corpus() -> Option<PathBuf> {
    let Ok(dir) = std::env::var("SHOAL_TESTDATA") else {
        assert!(std::env::var_os("CI").is_none(), "SHOAL_TESTDATA must be set in CI");
        // Not `eprintln!`: what that says of a test that passes is not shown.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: SHOAL_TESTDATA is not set\n");
        return None;
    };
    Some(Path::new(&dir).join("sqllogictest"))
}

/// `EXPECTED_STOCK.txt`: names of files, and how many of their records hold and are skipped.
fn expected(corpus: &Path) -> Vec<(String, Counts)> {
    let text = std::fs::read_to_string(corpus.join("EXPECTED_STOCK.txt")).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let count = |at: usize, name: &str| words[at].strip_prefix(name).unwrap().parse::<usize>().unwrap();
        (words[1].to_string(), Counts { ok: count(2, "ok="), bad: count(3, "bad="), skipped: count(4, "skipped=") })
    };
    text.lines().map(line).collect()
}

#[test]
fn three_nodes_give_the_answers_of_stock_sqlite() {
    let Some(corpus) = corpus() else { return };
    let all = match std::env::var("SHOAL_CONFORMANCE").as_deref() {
        Ok("all") => true,
        Ok(other) => panic!("SHOAL_CONFORMANCE={other}: only \"all\" is known"),
        Err(_) => false,
    };
    let expected = expected(&corpus);
    let files: Vec<_> = expected.iter().filter(|(name, _)| all || !LONG.contains(&name.as_str())).collect();
    assert!(files.len() > LONG.len(), "EXPECTED_STOCK.txt names {} files", expected.len());
    let mut nodes = Nodes::start();
    for (name, stock) in files {
        let (began, file) = (Instant::now(), File::parse(&std::fs::read_to_string(corpus.join(name)).unwrap()));
        let (counts, wrong) = nodes.run(name, &file);
        assert!(wrong.is_empty(), "{name}: {}", wrong.join("\n"));
        assert_eq!(counts, *stock, "{name}: records that hold, do not, or are skipped");
        eprintln!("{name}: {counts:?}, {:.1} s", began.elapsed().as_secs_f64());
    }
    nodes.assert_that_all_made_checkpoints();
}
