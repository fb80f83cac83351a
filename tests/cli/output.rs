//! Standard output, or error, that cannot be written: a disk that is full, and a reader that is gone.

use std::io::Write;
use std::process::{Output, Stdio};

use crate::user::{Closed, one_node, shoal, text, works, works_in_time};

/// Where the output goes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum To {
    /// A file for which there is no room.
    Full,
    /// A pipe from which nobody reads any more.
    Gone,
}

use To::{Full, Gone};

/// Runs the program; the exit code, and what it said on standard error.
fn run(args: &[&str], stdin: &str, to: To) -> (Option<i32>, String) {
    let stdout = match to {
        Full => Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap()),
        Gone => Stdio::from(std::io::pipe().unwrap().1),
    };
    let mut process = shoal(args).stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    // One that was given its statements does not read any.
    let _ = process.stdin.take().unwrap().write_all(stdin.as_bytes());
    let Output { status, stderr, .. } = process.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

const FULL: &str = "standard output: No space left on device";
const CLOSED: &str = "standard output is closed";

/// The exit code was 0, and nothing was said, although the rows were not committed and what came behind was not done.
#[test]
fn statements_that_are_not_done_because_nobody_sees_what_they_say_are_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let count = || works(&["sql", "app", "SELECT count(*) FROM t", "--data", &data]);
    let returning = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100000) \
                     INSERT INTO t SELECT x FROM c RETURNING x, hex(zeroblob(20))";
    let import = dir.path().join("rows.csv");
    std::fs::write(&import, "1\n").unwrap();
    let import = format!("SELECT 1;\n.imp {} t", import.display());
    // What is run, and what of it is told not to be done.
    for (sql, left) in [
        (returning, "the statement was interrupted, and nothing of it is committed"),
        ("SELECT 'x'; INSERT INTO t VALUES (1)", "nothing is done from here on: INSERT INTO t VALUES (1)"),
        ("SELECT 'x';\n-- INSERT\n.mode csv\nSELECT 2;\nDELETE FROM t;", "nothing is done from here on: DELETE"),
        (
            "BEGIN; INSERT INTO t VALUES (1); SELECT x FROM t; COMMIT",
            "COMMIT; the transaction that was open is rolled back",
        ),
        ("BEGIN; INSERT INTO t VALUES (1); SELECT x FROM t", "is rolled back, nothing of it is committed"),
        (&import, "nothing is done from here on: .imp"),
    ] {
        let args = ["sql", "app", sql, "--data", &data];
        let as_script = ["sql", "app", "--data", &data];
        for (args, stdin) in [(&args[..], ""), (&as_script[..], sql)] {
            let (code, said) = run(args, stdin, Full);
            assert_eq!((code, said.contains(FULL)), (Some(1), true), "{sql}: {said}");
            assert_eq!(said.contains("nothing of it is committed"), sql == returning, "{sql}: {said}");
            let (code, said) = run(args, stdin, Gone);
            assert_eq!((code, said.contains(left)), (Some(1), true), "{sql}: {said}");
            assert_eq!(count(), "0\n", "{sql}");
        }
    }
    // A script tells the line.
    let script = "SELECT 'x';\n-- INSERT\nSELECT 2;\n\nDELETE\nFROM t;\n";
    let (code, said) = run(&["sql", "app", "--data", &data], script, Gone);
    assert_eq!(
        (code, said.as_str()),
        (Some(1), "shoal: stdin:6: standard output is closed; nothing is done from here on: DELETE\nFROM t;\n")
    );
    // One row is often committed by the time at which its loss is noticed: whatever became of it is what is said.
    let mut committed = 0;
    for to in [Full, Gone].repeat(8) {
        let (code, said) = run(&["sql", "app", "INSERT INTO t VALUES (1) RETURNING x", "--data", &data], "", to);
        let done = count() == format!("{}\n", committed + 1);
        committed += usize::from(done);
        match (to, done) {
            (Full, true) => assert!(code == Some(1) && said.contains("; the statement is done all the same"), "{said}"),
            (Gone, true) => assert_eq!((code, said.as_str()), (Some(0), "")),
            (_, false) => assert!(code == Some(1) && said.contains("nothing of it is committed"), "{code:?} {said}"),
        }
    }
}

#[test]
fn statements_that_only_read_end_quietly_when_their_reader_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c";
    for sql in [
        endless,
        "SELECT 1; SELECT 2",
        "SELECT 1;\n.mode csv\n.tables\n.q\nDELETE FROM t;",
        ".tables",
        ".help\nSELECT 1",
    ] {
        for (args, stdin) in [(&["sql", "app", sql, "--data", &data][..], ""), (&["sql", "app", "--data", &data], sql)]
        {
            assert_eq!(run(args, stdin, Gone), (Some(0), String::new()), "{sql}");
            let (code, said) = run(args, stdin, Full);
            assert_eq!(
                (code, said.contains(FULL), said.contains("committed")),
                (Some(1), true, false),
                "{sql}: {said}"
            );
        }
    }
    // What has nothing to say is done, whoever listens.
    assert_eq!(run(&["sql", "app", "INSERT INTO t VALUES (1)", "--data", &data], "", Full), (Some(0), String::new()));
    assert_eq!(works(&["sql", "app", "SELECT count(*) FROM t", "--data", &data]), "1\n");
    let (code, said) = run(&["sql", "app", "SELECT nix", "--data", &data], "", Gone);
    assert!(code == Some(1) && said.contains("no such column") && !said.contains(CLOSED), "{said}");
}

/// They ended with 0 whatever they had found.
#[test]
fn commands_end_as_they_would_have_when_their_reader_is_gone_and_fail_when_there_is_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let status: serde_json::Value = serde_json::from_str(&works(&["status", "--json", "--data", &data])).unwrap();
    let receipt = format!("r1-{}-1-1-1047-3", status[0]["status"]["cluster"].as_str().unwrap());
    let closed = Closed::new();
    let nobody = closed.address();
    let in_dir = ["--data", &data];
    let commands: [(&[&str], &[&str], i32); 12] = [
        (&["status"], &in_dir, 0),
        (&["status", "--json"], &in_dir, 0),
        (&["health"], &in_dir, 0),
        (&["verify"], &in_dir, 0),
        (&["db", "list"], &in_dir, 0),
        (&["member", "list", "--json"], &in_dir, 0),
        (&["log"], &in_dir, 0),
        (&["log", "--json"], &in_dir, 0),
        (&["health", "--json"], &["--endpoints", &nobody], 4),
        (&["status", "--json"], &["--endpoints", &nobody], 4),
        (&["db", "drop", "none", "--yes", "--json"], &in_dir, 1),
        (&["outcome", &receipt, "--json"], &in_dir, 3),
    ];
    for (command, place, code) in commands {
        let args = [command, place].concat();
        let (ended, said) = run(&args, "", Gone);
        assert_eq!((ended, said.is_empty()), (Some(code), code == 0), "{args:?}: {said}");
        assert!(!said.contains("standard output"), "{args:?}: {said}");
        let (ended, said) = run(&args, "", Full);
        assert_eq!((ended, said.contains(FULL)), (Some(if code == 0 { 1 } else { code }), true), "{args:?}: {said}");
    }
}

/// It ended with a panic.
#[test]
fn messages_for_which_there_is_no_room_stop_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("data"));
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let mut node =
        shoal(&["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"]).stderr(full()).spawn().unwrap();
    while !dir.path().join("data/admin.sock").exists() {
        assert_eq!(node.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
    works_in_time(&["health", "--data", &data]);
    let closed = Closed::new();
    let nobody = closed.address();
    let failing: [(&[&str], i32); 5] = [
        (&["health", "--endpoints", &nobody], 4),
        (&["--log-format", "json", "health", "--endpoints", &nobody], 4),
        (&["sql", "app", ".timer on\nSELECT nix", "--data", &data], 1),
        (&["db", "drop", "none", "--data", &data], 2),
        (&["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"], 1),
    ];
    for (args, code) in failing {
        let mut command = shoal(args);
        let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(full()).status().unwrap();
        assert_eq!(ended.code(), Some(code), "{args:?}");
    }
    let pid = rustix::process::Pid::from_child(&node);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(node.wait().unwrap().code(), Some(0));
}

/// The one line that says why something failed was text among objects.
#[test]
fn with_a_log_of_json_the_reason_of_a_failure_is_an_object_too() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let closed = [Closed::new(), Closed::new()];
    let nobody = format!("{},{}", closed[0].address(), closed[1].address());
    let start = ["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"];
    let failing: [(&[&str], &str); 4] = [
        (&["health", "--endpoints", &nobody], "ERROR"),
        (&["--log", "off", "health", "--endpoints", &nobody], "ERROR"),
        (&["sql", "new", "SELECT nix", "--data", &data], "ERROR"),
        (&start, "ERROR"),
    ];
    for (args, level) in failing {
        let output = shoal(&[&["--log-format", "json"], args].concat()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let objects = said.lines().map(serde_json::from_str::<serde_json::Value>);
        let objects: Vec<_> =
            objects.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"));
        let last = objects.last().unwrap();
        assert_eq!(last["level"], level, "{said}");
        assert!(!last["fields"]["message"].as_str().unwrap().is_empty(), "{said}");
    }
}

/// It was plain text: what a program reads that starts another one must not depend on how wrong its settings are.
#[test]
fn wrong_usage_is_an_object_too_for_those_who_asked_for_objects() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (text(&dir.path().join("good.toml")), text(&dir.path().join("bad.toml")));
    std::fs::write(&good, "log_format = \"json\"\n").unwrap();
    std::fs::write(&bad, "log_format = \"json\"\nlistn = 1\n").unwrap();
    let json = ["--log-format", "json"];
    let ended = |args: &[&str], variable: &str| {
        let variable = Some(variable).filter(|format| !format.is_empty()).map(|format| ("SHOAL_LOG_FORMAT", format));
        let output = shoal(args).envs(variable).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let wrong: [(&[&str], &str, &str); 9] = [
        (&[&json[..], &["status", "--nix"]].concat(), "", "--nix"),
        (&["status", "--nix", "--log-format=json"], "", "--nix"),
        (&["status", "--nix"], "json", "--nix"),
        (&["status", "--nix", "--config", &good], "", "--nix"),
        (&["start", "--log-format", "json"], "", "required"),
        (&["status", "--log-format", "json", "--config", "/does/not/exist"], "", "/does/not/exist"),
        (&["status", "--log-format", "json", "--config", &bad], "", "listn"),
        (&["status", "--log-format", "json"], "", "which node?"),
        (&["status", "--log-format", "json", "--log", "a=b=c"], "", "--log"),
    ];
    for (args, variable, word) in wrong {
        let said = ended(args, variable);
        let object: serde_json::Value =
            serde_json::from_str(said.trim_end()).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"));
        let message = object["fields"]["message"].as_str().unwrap();
        assert!(message.contains(word) && !message.starts_with("error: "), "{args:?}: {said}");
    }
    // The flag has the first word, also for text; and whoever asked for nothing reads it as before.
    for (args, variable) in [
        (&["status", "--nix", "--log-format", "text"][..], "json"),
        (&["status", "--nix", "--", "--log-format=json"], ""),
    ] {
        assert!(ended(args, variable).starts_with("error: unexpected argument"), "{args:?}");
    }
    assert!(works(&["--log-format", "json", "--help"]).contains("Usage: shoal"));
}
