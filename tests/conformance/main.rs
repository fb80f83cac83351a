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

/// Left out unless somebody asks for all: `index_delete_100_slt_good_0.test` has the same kinds of statements, and more rows.
const LONG: [&str; 2] = ["index_delete_10_slt_good_0.test", "index_delete_1_slt_good_0.test"];

/// Whether all files are asked for.
fn wants_all(asked: Option<&str>) -> bool {
    match asked {
        Some("all") => true,
        Some(other) => panic!("SHOAL_CONFORMANCE={other}: only \"all\" is known"),
        None => false,
    }
}

/// The folder of the corpus; `None` if there is none, which is an error where it must be there: in CI, and for whoever asked for
/// all of it.
fn corpus_in(testdata: Option<&Path>, required: bool) -> Option<PathBuf> {
    assert!(testdata.is_some() || !required, "SHOAL_TESTDATA must be set in CI, and with SHOAL_CONFORMANCE");
    Some(testdata?.join("sqllogictest"))
}

/// The folder of the corpus, or `None` after saying that there is none.
fn corpus(all: bool) -> Option<PathBuf> {
    let testdata = std::env::var_os("SHOAL_TESTDATA").map(PathBuf::from);
    let corpus = corpus_in(testdata.as_deref(), all || std::env::var_os("CI").is_some());
    if corpus.is_none() {
        // Not `eprintln!`: what that says of a test that passes is not shown.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: SHOAL_TESTDATA is not set\n");
    }
    corpus
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
    let asked = std::env::var_os("SHOAL_CONFORMANCE");
    let all = wants_all(asked.as_deref().map(|asked| asked.to_str().unwrap_or("what is no text")));
    let Some(corpus) = corpus(all) else { return };
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

/// Whoever asked for all of it was told "ok" when nothing had run.
#[test]
fn without_a_corpus_nothing_is_ok_for_who_asked_for_it() {
    let fails = |testdata: Option<&'static Path>, required| {
        std::panic::catch_unwind(move || corpus_in(testdata, required)).is_err()
    };
    assert!(fails(None, true) && !fails(None, false) && !fails(Some(Path::new("/data")), true));
    assert_eq!(corpus_in(None, false), None);
    assert!(wants_all(Some("all")) && !wants_all(None));
    assert!(std::panic::catch_unwind(|| wants_all(Some("some"))).is_err());
}
