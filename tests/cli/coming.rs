//! A snapshot that a node gets, as a person sees it: a bar at a terminal, lines of the log elsewhere, and words in the status.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ports::free_ports;
use crate::prompt::{Terminal, skipped};
use crate::user::{LONG, Started, shoal, text, works, works_in_time};

fn status(data: &str) -> Value {
    serde_json::from_str::<Value>(&works(&["status", "--json", "--data", data])).unwrap()[0]["status"].take()
}

/// The source sends slowly, so that what is shown in between is shown for a dozen seconds; nothing waits for all of them but the last
/// start.
#[test]
fn a_snapshot_that_comes_is_a_bar_at_a_terminal_lines_in_a_log_and_words_in_the_status() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(2);
    let [first, second] = [0, 1].map(|at| format!("127.0.0.1:{}", ports[at]));
    let [source, data] = ["1", "2"].map(|id| text(&dir.path().join(id)));
    let args = ["start", "--id", "1", "--data", &source, "--listen", &first, "--snapshot-rate", "512KiB"];
    let small = ["--segment-bytes", "64KiB", "--log-limit", "256KiB", "--checkpoint-age", "100ms"];
    let node = Started::new(shoal(&args).args(small));
    node.wait_line("ready");
    works_in_time(&["sql", "app", "CREATE TABLE t(v)", "--data", &source]);
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) \
                INSERT INTO t SELECT randomblob(100000) FROM n";
    works(&["sql", "app", fill, "--data", &source]);
    // Whoever comes has nothing of it.
    let (filled, deadline) = (status(&source)["last"].as_u64().unwrap(), Instant::now() + LONG);
    while status(&source)["first"].as_u64().unwrap() <= filled {
        assert!(Instant::now() < deadline, "the log is not compacted");
        std::thread::sleep(Duration::from_millis(20));
    }
    works(&["member", "add", &format!("2={second}"), "--data", &source]);

    let join = ["start", "--id", "2", "--data", &data, "--listen", &second, "--join", &first];
    let Some(mut terminal) = Terminal::run(&join.join(" "), dir.path()) else { return skipped() };
    terminal.shows("a snapshot of entry ");
    terminal.shows(" comes from node 1");
    terminal.shows("snapshot from node 1: fetch");
    terminal.shows("░");
    terminal.shows(" % ");
    terminal.shows("B/s");
    let said = works(&["status", "--data", &data]);
    let of_entry =
        format!("node 2 gets a snapshot of entry {} from node 1: fetch [", status(&data)["snapshot"]["index"]);
    let line = said.lines().find_map(|line| line.strip_prefix(&of_entry)).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("] ") && line.contains(" %, ") && line.contains(" MiB, ") && line.ends_with("B/s"), "{line}");
    // The other side has it, too, from the second piece on.
    let of_peer =
        |said: &str| said.lines().any(|line| line.starts_with("2 ") && line.contains(" [#") && line.contains(" %, "));
    let deadline = Instant::now() + LONG;
    while !of_peer(&works(&["status", "--data", &source])) {
        assert!(Instant::now() < deadline, "the source does not say how far it is");
        std::thread::sleep(Duration::from_millis(20));
    }
    terminal.types("\u{3}");
    // The line of the bar is taken away before something is written on it.
    terminal.shows("\r\u{1b}[2K\u{1b}[2m");
    terminal.shows("handing over");
    assert_eq!(terminal.ended(), Some(0));

    // Once more, and where nobody looks.
    let node = Started::new(&mut shoal(&join));
    let said = node.lines_until("is installed; ");
    let lines = said.iter().filter(|line| line.contains(" a snapshot of entry ") && line.contains(" from node 1: "));
    let lines: Vec<&String> = lines.collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line.contains(" %, ")), "{said:#?}");
    assert!(said.iter().all(|line| !line.contains('\r')), "{said:#?}");
}
