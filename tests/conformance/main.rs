//! SQLite's own answers, through three nodes.
//!
//! The corpus is sqllogictest: files of statements and queries with what they give. `SHOAL_TESTDATA` names the folder
//! that has the folder `sqllogictest`; without it the test says that it is skipped, and in CI that is an error. A checkout of
//! sqllogictest is not enough: all files are beside each other, with the folders in their names, and with them is
//! `EXPECTED_STOCK.txt`, which says how many records of which of them hold on a stock SQLite. They must hold here, all of them.
//!
//! ```text
//! sqllogictest/test/index/delete/1/slt_good_0.test     is index_delete_1_slt_good_0.test
//! EXPECTED_STOCK.txt                                   PASS index_delete_1_slt_good_0.test ok=10907 bad=0 skipped=0
//! ```
//!
//! How a file is run, and why so:
//!
//! * each file is a database of its own, on three nodes in this process, over real sockets;
//! * **all connections are opened anew every 50 records**: a page cache hides whatever the VFS loses;
//! * statements go to the leader. Each query goes to all three: to the leader, to one follower that reads `Linearizable` at
//!   once, and to one that reads `Local` after it has applied what the leader has. All must give the expected answer;
//! * an error is an answer in two places only: `statement error` takes what SQLite says of the statement (`SQLITE_ERROR`), and a
//!   query for which the files have no rows may fail with "integer overflow": they write that error as an empty answer;
//! * the WAL is checkpointed from a few pages on, so that what is read comes from the main files as well as from the WAL;
//! * afterwards all nodes have the same checksum at the same index, and `integrity_check` is ok.
//!
//! `cargo test` leaves out the files in [`LONG`], and says so. All of them:
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

const EXPECTED: &str = "EXPECTED_STOCK.txt";

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

/// A file of the corpus. If it is not there, the corpus is not what the head of this file says.
fn read(corpus: &Path, name: &str) -> Result<String, String> {
    let path = corpus.join(name);
    std::fs::read_to_string(&path).map_err(|error| {
        format!(
            "{}: {error}; a checkout of sqllogictest must be made flat, and have {EXPECTED}: see tests/conformance/main.rs",
            path.display()
        )
    })
}

/// Names of files, and how many of their records hold and are skipped.
fn expected(corpus: &Path) -> Result<Vec<(String, Counts)>, String> {
    let of_line = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let name = words.next()?.to_string();
        let mut count = |name: &str| words.next()?.strip_prefix(name)?.parse::<usize>().ok();
        Some((name, Counts { ok: count("ok=")?, bad: count("bad=")?, skipped: count("skipped=")? }))
    };
    let text = read(corpus, EXPECTED)?;
    let parsed = |(at, line)| {
        of_line(line).ok_or_else(|| format!("{EXPECTED}, line {at}: {line:?} is not `PASS NAME ok=N bad=N skipped=N`"))
    };
    (1..).zip(text.lines()).map(parsed).collect()
}

#[test]
fn three_nodes_give_the_answers_of_stock_sqlite() {
    let asked = std::env::var_os("SHOAL_CONFORMANCE");
    let all = wants_all(asked.as_deref().map(|asked| asked.to_str().unwrap_or("what is no text")));
    let Some(corpus) = corpus(all) else { return };
    let expected = expected(&corpus).unwrap_or_else(|what| panic!("{what}"));
    if !all {
        let line = format!("left out: {}; SHOAL_CONFORMANCE=all runs them, too\n", LONG.join(", "));
        // Not `eprintln!`: what that says of a test that passes is not shown.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }
    let files: Vec<_> = expected.iter().filter(|(name, _)| all || !LONG.contains(&name.as_str())).collect();
    assert!(files.len() > LONG.len(), "EXPECTED_STOCK.txt names {} files", expected.len());
    let mut nodes = Nodes::start();
    for (name, stock) in files {
        let text = read(&corpus, name).unwrap_or_else(|what| panic!("{what}"));
        let (began, file) = (Instant::now(), File::parse(&text));
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

/// A checkout of sqllogictest as it is was told of with nothing but "No such file or directory", of whatever.
#[test]
fn a_corpus_of_another_form_is_told_of_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let says = |text: &str| {
        std::fs::write(dir.path().join(EXPECTED), text).unwrap();
        expected(dir.path())
    };
    let what = expected(dir.path()).unwrap_err();
    assert!(what.contains("EXPECTED_STOCK.txt: No such file") && what.contains("must be made flat"), "{what}");
    assert!(read(dir.path(), "a.test").unwrap_err().contains("a.test: No such file"));
    for line in ["PASS a.test ok=1 bad=0", "PASS a.test ok=1 bad=0 skipped=x", "PASS", ""] {
        let what = says(&format!("PASS b.test ok=1 bad=0 skipped=2\n{line}\n")).unwrap_err();
        assert!(what.starts_with(&format!("EXPECTED_STOCK.txt, line 2: {line:?} is not")), "{what}");
    }
    let one = says("PASS b.test ok=1 bad=0 skipped=2\n").unwrap();
    assert_eq!(one, [("b.test".to_string(), Counts { ok: 1, bad: 0, skipped: 2 })]);
}
