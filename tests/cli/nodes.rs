//! Starting nodes, and asking them.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::ports::free_ports;
use crate::sql::Waiting;
use crate::user::{
    Closed, LONG, Started, fails, one_node, out, run, shoal, text, three_calm_nodes, three_nodes, works, works_in_time,
};

#[test]
fn one_node_from_start_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("data"));
    let start = ["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0", "--log-format", "json"];
    let node = Started::new(&mut shoal(&start));
    let ready: serde_json::Value = serde_json::from_str(&node.wait_line("ready")).unwrap();
    assert_eq!(ready["fields"]["message"], "ready");

    assert_eq!(works_in_time(&["health", "--data", &data]), format!("{data}: healthy\n"));
    assert_eq!(works(&["db", "create", "app", "--page-size", "1024", "--data", &data]), "created app\n");
    assert!(fails(&["db", "create", "app", "--data", &data], 1).contains("app"));
    assert!(fails(&["db", "create", "../app", "--data", &data], 2).contains("../app"));
    assert!(fails(&["db", "create", "b", "--page-size", "1000", "--data", &data], 2).contains("1000"));
    let list: serde_json::Value = serde_json::from_str(&works(&["db", "list", "--json", "--data", &data])).unwrap();
    assert_eq!((&list[0]["name"], &list[0]["page_size"]), (&"app".into(), &1024.into()));
    let list = String::from_utf8(shoal(&["db", "list"]).env("SHOAL_DATA", &data).output().unwrap().stdout).unwrap();
    assert!(list.contains("app"), "{list}");
    let status: serde_json::Value = serde_json::from_str(&works(&["status", "--json", "--data", &data])).unwrap();
    assert_eq!(status[0]["status"]["role"], "leader");
    assert!(works(&["status", "--data", &data]).contains("leader"));
    assert!(fails(&["db", "drop", "none", "--yes", "--data", &data], 1).contains("no database named none"));
    assert_eq!(works(&["db", "drop", "app", "--yes", "--data", &data]), "dropped app\n");
    assert!(fails(&["transfer", "7", "--data", &data], 1).contains("node 7 cannot take over"));
    assert!(fails(&["member", "add", "2=192.0.2.1:4002", "--data", &data], 2).contains("not a loopback"));

    assert_eq!(node.terminate(), 0);
    assert!(fails(&["status", "--data", &data], 4).contains("no node runs in this directory"));
    assert!(fails(&["start", "--id", "2", "--data", &data, "--listen", "127.0.0.1:0"], 2).contains("node 1"));
}

/// Whoever leads, as the first node that answers and knows says. In an election nobody knows.
pub(crate) fn leader_of(endpoints: &str) -> u64 {
    let deadline = Instant::now() + LONG;
    loop {
        let status = run(&["status", "--json", "--endpoints", endpoints]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        if let Some(leader) = status.as_array().unwrap().iter().find_map(|node| node["status"]["leader"].as_u64()) {
            return leader;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
}

#[test]
fn three_nodes_a_transfer_and_a_clean_handover() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut nodes) = three_calm_nodes(dir.path());
    let endpoints = members.endpoints();
    let next = (1..=3).find(|id| *id != leader_of(&endpoints)).unwrap();
    let told = works_in_time(&["transfer", &next.to_string(), "--endpoints", &endpoints]);
    assert_eq!(told, format!("node {next} leads\n"));
    assert_eq!(leader_of(&endpoints), next);
    assert_eq!(nodes[next as usize - 1].take().unwrap().terminate(), 0);
    // One is gone: each command still works through the others, and says what it did not reach.
    works_in_time(&["db", "create", "app", "--endpoints", &endpoints]);
    // The others know who leads: that one is not well, and no more.
    let health = run(&["health", "--endpoints", &endpoints]);
    assert_eq!((health.status.code(), out(&health).lines().count()), (Some(1), 2));
    let dead_first = format!("{},{endpoints}", members.address[next as usize - 1]);
    works(&["db", "list", "--endpoints", &dead_first]);
    works(&["transfer", &leader_of(&endpoints).to_string(), "--endpoints", &dead_first]);
    let status = run(&["status", "--endpoints", &endpoints]);
    assert_eq!(status.status.code(), Some(1), "{}", out(&status));
    assert!(
        out(&status).contains("app")
            && String::from_utf8_lossy(&status.stderr).contains(&members.address[next as usize - 1])
    );
    // A minority has no leader, and says so.
    let rest: Vec<usize> = (0..3).filter(|at| nodes[*at].is_some()).collect();
    nodes[rest[0]].take();
    let deadline = Instant::now() + LONG;
    let lonely = members.address[rest[1]].clone();
    while run(&["health", "--endpoints", &lonely]).status.code() != Some(4) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(fails(&["db", "create", "b", "--endpoints", &lonely], 4).contains("no leader"));
    let alone = run(&["status", "--endpoints", &lonely]);
    assert_eq!(alone.status.code(), Some(4), "it answers, and knows no leader: {}", out(&alone));
    assert!(out(&alone).contains("app") && String::from_utf8_lossy(&alone.stderr).contains("shoal health"));
    let nobody = run(&["health", "--endpoints", &endpoints]);
    assert_eq!(nobody.status.code(), Some(4), "{}", String::from_utf8_lossy(&nobody.stderr));
    let some_answer = run(&["status", "--endpoints", &endpoints]);
    assert_eq!(some_answer.status.code(), Some(4), "{}", String::from_utf8_lossy(&some_answer.stderr));
}

/// A leader that is told to end hands over before. Without it the others would elect one all the same, so that here they wait for
/// half a minute before they do.
#[test]
fn a_leader_that_is_told_to_end_makes_another_one_the_leader_first() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut nodes) = three_nodes(dir.path());
    let endpoints = members.endpoints();
    let election = Duration::from_secs(30);
    let patient = |id: usize| Some(members.start_with(id, &["--election-timeout", "30s"]));
    // One that leads does not need the patience that it would need to become a leader, and a transfer waits for neither.
    works_in_time(&["transfer", "1", "--endpoints", &endpoints]);
    for id in [2, 3] {
        assert_eq!(nodes[id - 1].take().unwrap().terminate(), 0);
        nodes[id - 1] = patient(id);
        works_in_time(&["health", "--data", &members.data(id)]);
    }
    works_in_time(&["transfer", "2", "--endpoints", &endpoints]);
    assert_eq!(nodes[0].take().unwrap().terminate(), 0);
    nodes[0] = patient(1);
    works_in_time(&["health", "--endpoints", &endpoints]);
    assert_eq!(leader_of(&endpoints), 2);

    let begun = Instant::now();
    assert_eq!(nodes[1].take().unwrap().terminate(), 0);
    let others = format!("{},{}", members.address[0], members.address[2]);
    let know_another = || {
        let status = run(&["status", "--json", "--endpoints", &others]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let leader = |node: &serde_json::Value| node["status"]["leader"].as_u64();
        status.as_array().unwrap().iter().all(|node| leader(node).is_some_and(|leader| leader != 2))
    };
    while !know_another() {
        assert!(begun.elapsed() < election / 2, "nobody leads");
        std::thread::sleep(Duration::from_millis(50));
    }
    works(&["db", "create", "app", "--endpoints", &others]);
}

/// Cells of a table stand at least two blanks apart.
fn table(text: &str, title: &str) -> Vec<Vec<String>> {
    let (_, rest) = text.split_once(title).unwrap_or_else(|| panic!("no {title:?} in {text}"));
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_string).collect()
    };
    rest.trim_start_matches('\n').lines().take_while(|line| !line.is_empty()).map(cells).collect()
}

/// Bytes as a person reads them.
fn size(bytes: &serde_json::Value) -> String {
    let bytes = bytes.as_u64().unwrap();
    let (unit, name) = if bytes < 1 << 20 { (1 << 10, "KiB") } else { (1 << 20, "MiB") };
    match bytes {
        0..1024 => format!("{bytes} B"),
        whole if whole % unit == 0 => format!("{} {name}", whole / unit),
        part => format!("{:.1} {name}", part as f64 / unit as f64),
    }
}

/// The title of a table of `shoal status`.
const OTHERS: &str = "what else has a bound, of the limit\n";

/// What is bounded, and what keeps a WAL from being checkpointed, was in the JSON only.
#[test]
fn status_shows_a_person_what_is_in_use_and_what_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let limits =
        ["--wal-limit", "0", "--log-limit", "32MiB", "--tail-cache-limit", "8MiB", "--uncommitted-limit", "40MiB"];
    let more = ["--apply-limit", "3MiB", "--inbox-limit", "2MiB", "--doublewrite-bytes", "5MiB"];
    let (_node, data) = one_node(dir.path(), &[limits.as_slice(), &more].concat());
    works(&["sql", "app", "CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(50000))", "--data", &data]);
    let reader = Waiting::begin(&data, "BEGIN; SELECT count(*) FROM t");
    let ask = || -> serde_json::Value { serde_json::from_str(&works(&["status", "--json", "--data", &data])).unwrap() };
    // The reader, and whoever asks.
    let callers = ["callers of the admin socket".to_string(), "2/32".to_string()];
    let begun = Instant::now();
    // The upkeep writes to the log when it likes: what both show is what was there before and after. And the node may still be at
    // the end of the call before, which is one more caller.
    let (status, words) = loop {
        let (status, words) = (ask(), works(&["status", "--data", &data]));
        let log_is_same = status[0]["status"]["log_bytes"] == ask()[0]["status"]["log_bytes"];
        if log_is_same && table(&words, OTHERS).iter().any(|row| *row == callers) {
            break (status, words);
        }
        assert!(begun.elapsed() < LONG, "{words}");
    };
    let status = &status[0]["status"];
    assert!(words.lines().all(|line| line.chars().count() <= 120), "{words}");

    let bounds = table(&words, "in use, of the limit\n");
    let log = format!("{}/32 MiB", size(&status["log_bytes"]));
    let wal = format!("{}/0 B", size(&status["wal_memory"]));
    let connections = format!("0/{}", status["connections"]["limit"]);
    assert_eq!(bounds[0], ["node", "log", "wal in memory", "connections", "sessions", "views lent"]);
    assert_eq!(bounds[1], ["1", &log, &wal, &connections, "1/16", "0"], "{words}");

    let queues = table(&words, "queues in memory, of the limit\n");
    let newest = format!("{}/8 MiB", size(&status["tail_cache"]["now"]));
    assert!(status["tail_cache"]["now"].as_u64().unwrap() > 0, "{status}");
    assert_eq!(queues[0], ["node", "newest entries", "uncommitted", "to apply", "messages"]);
    assert_eq!(queues[1], ["1", &newest, "0 B/40 MiB", "0 B/3 MiB", "0 B/2 MiB"], "{words}");

    let others = table(&words, OTHERS);
    let shown = |name: &str| &others.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name}: {words}"))[1];
    for bound in status["bounds"].as_array().unwrap() {
        let limit = if bound["bytes"] == true { size(&bound["limit"]) } else { bound["limit"].to_string() };
        let name = bound["name"].as_str().unwrap();
        assert!(shown(name).ends_with(&format!("/{limit}")), "{name}: {words}");
    }
    assert_eq!(shown("large transactions that are coming"), "0/1");

    let mut wals = table(&words, "and their write-ahead logs\n");
    let database = &status["databases"][0];
    assert_eq!(database["doublewrite"]["limit"], 5 << 20, "{status}");
    let databases: Vec<&str> = words.lines().filter(|line| line.contains("/5 MiB")).collect();
    let doublewrite = format!("  {}/5 MiB  ", size(&database["doublewrite"]["now"]));
    assert!(databases.len() == 1 && databases[0].starts_with("app ") && databases[0].contains(&doublewrite), "{words}");
    let frames = database["wal_frames"].as_u64().unwrap();
    let (spilled, checkpointed) = (size(&database["wal_spilled"]), database["checkpointed"].to_string());
    assert!(frames > 12 && database["wal_spilled"] != 0, "{status}");
    let age = wals[1].remove(6);
    let age = age.strip_suffix('s').unwrap_or_else(|| panic!("{words}")).parse::<f64>().unwrap();
    assert!(age * 1000.0 + 100.0 >= database["oldest_reader_ms"].as_f64().unwrap(), "{words}");
    let bytes = format!("{}/1 GiB", size(&(frames * 4096).into()));
    assert_eq!(wals[1], ["app", "1", &frames.to_string(), &bytes, &spilled, &checkpointed, "0", "0", "0"], "{words}");
    reader.end();
}

#[test]
fn wrong_usage_is_told_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("data"));
    let start = |rest: &[&str]| -> Vec<String> {
        let mut args = vec!["start".to_string(), "--data".to_string(), data.clone()];
        args.extend(rest.iter().map(ToString::to_string));
        args
    };
    let refused = |args: Vec<String>, word: &str| {
        let output = shoal(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(word), "{args:?}: {text}");
    };
    refused(start(&["--id", "0", "--listen", "127.0.0.1:0"]), "'0'");
    refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--bootstrap", "127.0.0.1:4001"]), "write ID=ADDRESS");
    refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--bootstrap", "x=127.0.0.1:4001"]), "1 to 65535");
    refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--bootstrap", "1=127.0.0.1"]), "needs a port");
    let list = "2=127.0.0.1:4002,3=127.0.0.1:4003";
    refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--bootstrap", list]), "does not name node 1");
    let remote = "1=127.0.0.1:4001,2=192.0.2.1:4002";
    refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--bootstrap", remote]), "192.0.2.1:4002");
    refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--advertise", "192.0.2.1:4002"]), "not a loopback");
    for (address, word) in [("x:y", "\"y\" is no number"), ("x", "no port"), (":4001", "no host"), ("x:0", "port 0")] {
        refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--advertise", address]), "--advertise");
        refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--advertise", address]), word);
        refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--join", address]), "--join");
    }
    refused(start(&["--id", "1", "--listen", "127.0.0.1:65536"]), "--listen");
    let twice = "1=127.0.0.1:4001,1=127.0.0.1:4002";
    refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--bootstrap", twice]), "node 1 twice");
    refused(
        start(&["--id", "1", "--listen", "127.0.0.1:0", "--advertise", "192.0.2.1:4002"]),
        "--allow-plaintext-remote",
    );
    refused(start(&["--id", "1", "--listen", "127.0.0.1:0", "--log-limit", "1KiB"]), "(--segment-bytes)");
    refused(start(&["--id", "one", "--listen", "127.0.0.1:0"]), "write the id of a node, a number from 1 to 65535");
    assert!(!dir.path().join("data").exists(), "a start that is refused leaves nothing");
    refused(vec!["status".to_string()], "which node?");
    for number in [
        &["transfer", "x"][..],
        &["member", "promote", "65536"],
        &["member", "remove", "-"],
        &["member", "replace", "1", "1.5"],
        &["recover", "--only-member", "x"],
        &["db", "create", "a", "--page-size", "4K"],
        &["log", "--from", "x"],
        &["demo", "--seconds", "soon"],
    ] {
        refused(number.iter().map(ToString::to_string).collect(), ": write ");
    }
    refused(vec!["demo".to_string(), "--nodes".to_string(), "2".to_string()], "use 1 or 3");
    refused(vec!["status".to_string(), "--log".to_string(), "a=b=c".to_string()], "--log");
}

#[test]
fn what_stands_in_the_way_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("data"));
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let reason = fails(&["start", "--id", "1", "--data", &data, "--listen", &taken], 1);
    assert!(reason.contains("another process uses this port") && reason.contains(&taken), "{reason}");
    let reason = fails(&["start", "--id", "1", "--data", &data, "--listen", "192.0.2.1:4001"], 2);
    assert!(reason.contains("192.0.2.1:4001"), "{reason}");
    assert!(!dir.path().join("data").exists(), "a start that is refused leaves nothing");

    let file = dir.path().join("file");
    std::fs::write(&file, "no database ".repeat(100)).unwrap();
    fails(&["start", "--id", "1", "--data", &text(&file), "--listen", "127.0.0.1:0"], 1);
    assert!(fails(&["demo", "--file", &text(&file)], 1).contains("file is not a database"));
    assert!(fails(&["demo", "--file", "/does/not/exist"], 1).contains("/does/not/exist"));

    // Neither the lists of commands nor the hints name one that is for the program itself.
    for line in [&["--log", "info"][..], &["work"], &["worke"], &["help"], &["--help"], &[]] {
        let output = run(line);
        let told = out(&output) + &String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("shoal") && !told.contains("worker"), "{line:?}: {told}");
    }

    let nobody = [Closed::new(), Closed::new()];
    let two = [nobody[0].address(), nobody[1].address()];
    let closed = &two[0];
    assert!(fails(&["db", "list", "--endpoints", closed], 1).contains(closed));
    // Of what any node can do it says nothing of a leader that none is reached: `db list` and `member list` said so.
    let commands: [(&[&str], i32); 15] = [
        (&["status"], 4),
        (&["health"], 4),
        (&["transfer", "1"], 4),
        (&["db", "create", "app"], 4),
        (&["db", "drop", "app", "--yes"], 4),
        (&["member", "promote", "2"], 4),
        (&["sql", "app", "SELECT 1"], 4),
        (&["sql", "app", ".tables"], 4),
        (&["restore", "app", "x.db", "--yes"], 4),
        (&["db", "list"], 1),
        (&["member", "list"], 1),
        (&["backup", "app", "x.db"], 1),
        (&["outcome", "r1-00c0ffee00c0ffee-2-5-1047-3"], 1),
        (&["verify"], 1),
        (&["verify", "app", "--deep"], 1),
    ];
    for (command, code) in commands {
        let reason = fails(&[command, &["--data", &text(dir.path())]].concat(), code);
        assert!(reason.contains("no node runs in this directory"), "{command:?}: {reason}");
        let output = run(&[command, &["--endpoints", &two.join(",")]].concat());
        let reason = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{command:?}: {reason}");
        assert!(two.iter().all(|address| reason.contains(address.as_str())), "each is named: {command:?}: {reason}");
    }
    // No node can be there, so nobody is at fault but who typed it.
    for endpoints in ["foo", "", ":4001", "127.0.0.1:x", "127.0.0.1:4001,", "127.0.0.1:0"] {
        for command in [&["status"][..], &["health"], &["db", "list"], &["sql", "app", "SELECT 1"]] {
            let reason = fails(&[command, &["--endpoints", endpoints]].concat(), 2);
            assert!(reason.contains("' is no address: write HOST:PORT"), "{reason}");
        }
    }
    let joining = text(&dir.path().join("joining"));
    let start = ["start", "--id", "4", "--data", &joining, "--listen", "127.0.0.1:0", "--join", closed];
    let node = Started::new(&mut shoal(&start));
    node.wait_line("ready");
    let reason = fails(&["health", "--data", &joining], 4);
    assert!(reason.contains(&format!("no cluster yet: asking {closed} to be let in")), "{reason}");
    assert!(!reason.contains("bootstrap"), "{reason}");

    let node = Started::new(&mut shoal(&["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"]));
    node.wait_line("ready");
    let reason = fails(&["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"], 1);
    assert!(reason.contains("uses this directory"), "{reason}");
}

/// A new node has a directory of its own. What a fresh file system has in it, and a start that was interrupted, is no reason.
#[test]
fn a_directory_with_files_of_others_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join("lost+found")).unwrap();
    std::fs::write(data.join(".hidden"), "").unwrap();
    std::fs::write(data.join("LOCK"), "").unwrap();
    let start = ["start", "--id", "1", "--data", &text(&data), "--listen", "127.0.0.1:0"];
    for foreign in ["photos", "app.db"] {
        let file = data.join(foreign);
        if foreign == "photos" { std::fs::create_dir(&file) } else { std::fs::write(&file, "") }.unwrap();
        // One that starts all the same does not end.
        let node = Started::new(&mut shoal(&start));
        let reason = node.wait_line("give the node a directory of its own");
        assert!(reason.contains(&format!("{}: this is no node's data directory", text(&data))), "{reason}");
        assert!(reason.contains(&format!("there is {foreign};")), "{reason}");
        assert_eq!(node.ended(), 2);
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 4, "nothing is left there");
        if foreign == "photos" { std::fs::remove_dir(&file) } else { std::fs::remove_file(&file) }.unwrap();
    }
    let node = Started::new(&mut shoal(&start));
    node.wait_line("ready");
    assert_eq!(node.terminate(), 0);
    // Once it is the node's, its owner may keep something there.
    std::fs::write(data.join("notes"), "").unwrap();
    let node = Started::new(&mut shoal(&start));
    node.wait_line("ready");
}

/// Every command, and every command of a command, as the help above it lists them.
#[test]
fn every_help_has_an_example() {
    let mut waiting: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(command) = waiting.pop() {
        let args: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let help = works(&args);
        assert!(help.contains("Example") && help.contains("  shoal "), "{args:?}: {help}");
        seen += 1;
        let Some((_, list)) = help.split_once("\nCommands:\n") else { continue };
        for line in list.lines().take_while(|line| !line.is_empty()) {
            // Descriptions that go on stand further to the right.
            let name = line
                .strip_prefix("  ")
                .filter(|line| !line.starts_with(' '))
                .map(|line| line.split(' ').next().unwrap());
            if let Some(name) = name.filter(|name| *name != "help") {
                waiting.push([&command[..], &[name.to_string()]].concat());
            }
        }
    }
    assert!(seen >= 12, "{seen}");
}

/// The demo itself, short. With `SHOAL_TESTDATA` it loads the real file from there.
#[test]
fn a_short_demo_loses_nothing() {
    let mut args = vec!["demo".to_string(), "--seconds".to_string(), "2".to_string()];
    match std::env::var("SHOAL_TESTDATA") {
        Ok(dir) => args.extend(["--file".to_string(), format!("{dir}/chinook.db")]),
        Err(_) => {
            assert!(std::env::var_os("CI").is_none(), "SHOAL_TESTDATA must be set in CI");
            // Not `eprintln!`: what that says of a test that passes is not shown.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                b"skipped: loading a real file, SHOAL_TESTDATA is not set\n",
            );
        }
    }
    for nodes in ["1", "3"] {
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.extend(["--nodes", nodes]);
        if nodes == "1" {
            args.push("--json");
            let report: serde_json::Value = serde_json::from_str(&works(&args)).unwrap();
            assert_eq!((&report["lost"], &report["nodes_equal"]), (&0.into(), &1.into()), "{report}");
            for happened in ["kills", "acknowledged", "found", "reads", "tables_as_loaded"] {
                assert!(report[happened].as_u64().is_some_and(|n| n > 0), "{happened}: {report}");
            }
            assert!(report["found"].as_u64() >= report["acknowledged"].as_u64(), "{report}");
        } else {
            let output = run(&args);
            let [table, shown] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
            assert!(output.status.success() && table.ends_with("\nlost: 0\n"), "{table}{shown}");
            let kills = table.lines().find_map(|line| line.strip_prefix("kills of the leader (SIGKILL)")).unwrap();
            assert!(kills.trim().parse::<u64>().is_ok_and(|kills| kills > 0), "{table}");
            assert!(table.contains("3 of 3, integrity_check ok"), "{table}");
            assert!(shown.contains("SIGKILL"), "it is shown as it happens: {shown}");
        }
    }
}

/// A node that may not open as many files as it needs says so, and what to do, wherever that happens: at its sockets, for a new
/// database, and at a start; no copy passes for damaged because of it. With a higher limit everything is there.
#[test]
fn too_many_open_files_are_no_damage_and_people_are_told_what_to_raise() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("data"));
    let limited = |files: usize| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("ulimit -n {files}; exec \"$@\""), "sh"]);
        let start =
            shoal(&["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0", "--commit-timeout", "1s"]);
        command.arg(start.get_program()).args(start.get_args());
        command
    };
    let node = Started::new(&mut limited(64));
    node.wait_line("ready");
    works_in_time(&["health", "--data", &data]);
    let create = |n: usize| run(&["db", "create", &format!("d{n}"), "--data", &data]).status.success();
    // A machine may be so slow that one takes longer than its time: that is no refusal.
    let refused = || out(&run(&["status", "--json", "--data", &data])).contains("oo many open files");
    let mut made = 0;
    for n in 0..40 {
        if create(n) {
            made += 1;
        } else if refused() {
            break;
        }
    }
    assert!((5..40).contains(&made), "{made} databases with 64 files");
    // The sockets may have said so before, in their own words.
    let waits = |said: &String| said.contains("oo many open files") && said.contains("ulimit -n");
    assert!(std::iter::repeat_with(|| node.wait_line("tried again")).any(|said| waits(&said)));
    drop(node);

    // With fewer than what is there needs, wherever they end: no start, and nothing is repaired.
    let mut refused = 0;
    for files in 20.. {
        let mut process = limited(files).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        for line in lines {
            let ready = line.contains("ready");
            said.push(line);
            if ready {
                break;
            }
        }
        let said = said.join("\n");
        assert!(!said.contains("repaired"), "{files} files: {said}");
        if said.contains("ready") {
            process.kill().unwrap();
            process.wait().unwrap();
            break;
        }
        assert_eq!(process.wait().unwrap().code(), Some(1), "{files} files: {said}");
        assert!(said.contains("ulimit -n"), "{files} files: {said}");
        refused += 1;
    }
    assert!(refused > 3 * 5, "{refused} starts were refused");

    let node = Started::new(&mut limited(1024));
    node.wait_line("ready");
    works_in_time(&["health", "--data", &data]);
    let list: serde_json::Value = serde_json::from_str(&works(&["db", "list", "--json", "--data", &data])).unwrap();
    assert!(list.as_array().unwrap().len() >= made, "{list}");
    works(&["verify", "--deep", "--data", &data]);
    drop(node);
}

/// Callers that take all descriptors of a node keep others out, and are told of once.
#[test]
fn sockets_without_descriptors_say_what_to_raise() {
    let dir = tempfile::tempdir().unwrap();
    let (data, port) = (text(&dir.path().join("data")), free_ports(1)[0]);
    let address = format!("127.0.0.1:{port}");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 48; exec \"$@\"", "sh"]);
    let start = shoal(&["start", "--id", "1", "--data", &data, "--listen", &address]);
    let node = Started::new(command.arg(start.get_program()).args(start.get_args()));
    node.wait_line("ready");
    let callers: Vec<_> = (0..48).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    let said = node.wait_line("oo many open files");
    assert!(said.contains("ulimit -n"), "{said}");
    drop(callers);
    works_in_time(&["health", "--data", &data]);
}

/// In JSON the leader was a voter like any other, while the table said who it is.
#[test]
fn the_list_of_members_tells_the_leader_as_json_too() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    works(&["member", "add", "4=127.0.0.1:4999", "--data", &data]);
    let list: serde_json::Value = serde_json::from_str(&works(&["member", "list", "--json", "--data", &data])).unwrap();
    let of = |at: usize| (&list[at]["node"], &list[at]["role"], &list[at]["leader"]);
    assert_eq!(of(0), (&1.into(), &"voter".into(), &true.into()), "{list}");
    assert_eq!(of(1), (&4.into(), &"learner".into(), &false.into()), "{list}");
    assert_eq!(list[1]["address"], "127.0.0.1:4999", "{list}");
    let table = works(&["member", "list", "--data", &data]);
    assert!(table.lines().nth(1).unwrap().contains("leader"), "{table}");
}
