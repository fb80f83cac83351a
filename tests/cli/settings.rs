//! Flags over variables over the file of settings; what the program writes where; what a service manager is told.

use std::os::unix::net::UnixDatagram;

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::ports::free_ports;
use crate::sql::Waiting;
use crate::user::{LONG, Started, fails, one_node, out, run, shoal, text, works, works_in_time};

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    let port = free_ports(1)[0];
    let file = path("shoal.toml");
    let settings = format!(
        "id = 3\ndata = \"{}\"\nlisten = \"127.0.0.1:{port}\"\nbootstrap = [\n  \"3=127.0.0.1:{port}\",\n]\nlog = \"info\"\n\
         log_format = \"json\"\nelection_timeout = \"500ms\"\nwal_limit = \"8MiB\"\nlog_limit = 134217728\n",
        path("from-file")
    );
    std::fs::write(&file, settings).unwrap();
    // All from the file, but for one from a variable.
    let node = Started::new(shoal(&["start", "--config", &file]).env("SHOAL_LOG_LIMIT", "100MiB"));
    let ready: serde_json::Value = serde_json::from_str(&node.wait_line("ready")).unwrap();
    assert_eq!(ready["fields"]["node"], 3, "{ready}");
    works_in_time(&["health", "--config", &file]);
    let status: serde_json::Value = serde_json::from_str(&works(&["status", "--json", "--config", &file])).unwrap();
    let status = &status[0]["status"];
    assert_eq!(
        (&status["node"], &status["wal_limit"], &status["log_limit"]),
        (&3.into(), &(8 << 20).into(), &(100 << 20).into())
    );
    // Names of 64 bits survive readers that round.
    for name in ["incarnation", "cluster"] {
        assert_eq!(status[name].as_str().unwrap().len(), 16, "{status}");
    }
    // Where to ask: the flag, then the variable, then the file.
    let (_other, other) = one_node(&dir.path().join("other"), &[]);
    let asked = |args: &[&str], variable: Option<(&str, &str)>| {
        let mut command = shoal(&[&["status", "--json", "--config", &file], args].concat());
        let status = command.envs(variable).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status[0]["status"]["node"].as_u64().unwrap()
    };
    let address = format!("127.0.0.1:{port}");
    assert_eq!(asked(&[], None), 3);
    assert_eq!(asked(&[], Some(("SHOAL_DATA", &other))), 1);
    assert_eq!(asked(&["--endpoints", &address], Some(("SHOAL_DATA", &other))), 3);
    assert_eq!(asked(&["--data", &other], Some(("SHOAL_ENDPOINTS", &address))), 1);
    // The file itself may be named by a variable, and a flag wins over what it says.
    let busy = shoal(&["start", "--data", &other]).env("SHOAL_CONFIG", &file).output().unwrap();
    let reason = String::from_utf8(busy.stderr).unwrap();
    assert!(reason.contains(&other) && reason.contains("uses this directory"), "{reason}");
    assert_eq!(busy.status.code(), Some(1));
    let mut sql = shoal(&["sql", "app", "SELECT 1"]);
    assert_eq!(out(&sql.env("SHOAL_CONFIG", &file).output().unwrap()), "1\n");
    assert_eq!(node.terminate(), 0);
}

/// A script, or a unit, clears a variable that way: `SHOAL_LOG_FORMAT=` was wrong usage.
#[test]
fn a_variable_that_is_empty_counts_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("data"));
    let help = works(&["start", "--help"]);
    let named = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap().trim());
    let variables: Vec<&str> = named.chain(["SHOAL_ENDPOINTS", "SHOAL_HISTORY"]).collect();
    assert!(variables.len() > 30 && variables.contains(&"SHOAL_LOG_FORMAT"), "{variables:?}");
    let cleared = |args: &[&str]| {
        let mut command = shoal(args);
        command.envs(variables.iter().map(|name| (name, "")));
        command
    };
    let node = Started::new(&mut cleared(&["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"]));
    let ready = node.wait_line("ready");
    assert!(serde_json::from_str::<serde_json::Value>(&ready).is_err(), "the default is text: {ready}");
    works_in_time(&["health", "--data", &data]);
    assert_eq!(out(&cleared(&["sql", "app", "SELECT 1", "--data", &data]).output().unwrap()), "1\n");
    // What is needed is missing then.
    let lacking = cleared(&["start", "--data", &data, "--listen", "127.0.0.1:0"]).output().unwrap();
    let reason = String::from_utf8_lossy(&lacking.stderr);
    assert!(lacking.status.code() == Some(2) && reason.contains("--id <ID>"), "{reason}");
}

#[test]
fn a_file_that_is_wrong_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir.path().join("shoal.toml"));
    let refused = |settings: &str| {
        std::fs::write(&file, settings).unwrap();
        let output = run(&["start", "--config", &file]);
        assert_eq!(output.status.code(), Some(2), "{settings}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(
        refused("id = 1\nlisten = \"127.0.0.1:0\"\nheartbeat = \"5\"\n"),
        format!("shoal: {file}:3: heartbeat: '5': write a time such as 250ms, 10s, 5m or 2h\n")
    );
    assert!(refused("idd = 1\n").starts_with(&format!("shoal: {file}:1: idd: unknown field `idd`")));
    // What the file does not say is asked for as ever.
    assert!(refused("id = 1\n").contains("--data <DIR>"));
    let missing = run(&["status", "--config", "/does/not/exist"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("/does/not/exist"));
}

/// A word that is no level was taken for the name of a part of the program, of which all is told and of the rest next to nothing: a node
/// with `--log warning` was silent.
#[test]
fn a_level_of_messages_that_is_none_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir.path().join("shoal.toml"));
    let missing = text(&dir.path().join("missing"));
    let health = ["health", "--data", &missing];
    for wrong in
        ["warning", "inf", "nonsense", "shoaldb", "6", "shoaldb=debug,warning", "warn,shoaldb=loud", "off, infos"]
    {
        let of_flag = shoal(&[&health[..], &["--log", wrong]].concat()).output().unwrap();
        let of_variable = shoal(&health).env("SHOAL_LOG", wrong).output().unwrap();
        std::fs::write(&file, format!("id = 1\nlog = \"{wrong}\"\n")).unwrap();
        let of_file = shoal(&[&health[..], &["--config", &file]].concat()).output().unwrap();
        for (output, named) in [(of_flag, "--log"), (of_variable, "--log"), (of_file, "shoal.toml:2: log: ")] {
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{wrong}: {said}");
            assert!(said.contains(named) && said.contains("off, error, warn, info, debug, trace"), "{wrong}: {said}");
        }
    }
    // What is right comes as far as the directory, which is not there.
    for right in
        ["off", "WARN", "3", "shoaldb=debug", "shoaldb::log=trace,info", "info, shoaldb::log=trace", "shoaldb::log"]
    {
        let reason = fails(&[&health[..], &["--log", right]].concat(), 2);
        assert!(reason.contains("there is no such directory"), "{right}: {reason}");
    }
}

/// The directory had to be there although nothing was asked of it.
#[test]
fn addresses_beside_a_directory_in_the_same_place_are_what_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let node = Started::new(&mut shoal(&[
        "start",
        "--id",
        "1",
        "--data",
        &text(&dir.path().join("data")),
        "--listen",
        "127.0.0.1:0",
    ]));
    let ready = node.wait_line("ready");
    let (_, address) = ready.split_once("listen=\"").unwrap_or_else(|| panic!("{ready}"));
    let address = address.split('"').next().unwrap();
    let (file, missing) = (text(&dir.path().join("shoal.toml")), text(&dir.path().join("missing")));
    std::fs::write(&file, format!("data = \"{missing}\"\nendpoints = [\"{address}\"]\n")).unwrap();
    assert_eq!(works_in_time(&["health", "--config", &file]), format!("{address}: healthy\n"));
    let mut both = shoal(&["health"]);
    let both = both.env("SHOAL_DATA", &missing).env("SHOAL_ENDPOINTS", address).output().unwrap();
    assert_eq!(out(&both), format!("{address}: healthy\n"));
    // By itself it is what is asked.
    std::fs::write(&file, format!("data = \"{missing}\"\n")).unwrap();
    assert!(fails(&["health", "--config", &file], 2).contains("there is no such directory"));
}

#[test]
fn a_service_manager_is_told_of_start_leader_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let (data, socket) = (text(&dir.path().join("data")), dir.path().join("notify"));
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(LONG)).unwrap();
    let told = || {
        let mut told = [0; 512];
        let length = receive(&manager, &mut told).unwrap();
        String::from_utf8(told[..length].to_vec()).unwrap()
    };
    let start = ["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"];
    let node = Started::new(shoal(&start).env("NOTIFY_SOCKET", &socket));
    let ready = told();
    assert!(ready.starts_with("READY=1\nSTATUS="), "{ready}");
    let mut status = ready;
    while !status.contains("STATUS=node 1 leads in term ") {
        status = told();
    }
    assert_eq!(node.terminate(), 0);
    let mut last = told();
    while !last.starts_with("STOPPING=1") {
        assert!(last.starts_with("STATUS="), "{last}");
        last = told();
    }
    assert_eq!(last, "STOPPING=1\nSTATUS=handing over");
}

/// A wait with a limit ends when the process was stopped for a moment, whatever stopped it.
fn receive(manager: &UnixDatagram, told: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match manager.recv(told) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The log finds no descriptor for its next file; then there is one again.
#[test]
fn a_service_manager_is_told_of_trouble_and_of_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (data, socket) = (text(&dir.path().join("data")), dir.path().join("notify"));
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(LONG)).unwrap();
    let told = |what: &str| loop {
        let mut told = [0; 4096];
        let length =
            receive(&manager, &mut told).unwrap_or_else(|error| panic!("nothing with {what:?} is told: {error}"));
        let told = String::from_utf8_lossy(&told[..length]).into_owned();
        if told.contains(what) {
            return told;
        }
    };
    let start = [
        "start",
        "--id",
        "1",
        "--data",
        &data,
        "--listen",
        "127.0.0.1:0",
        "--segment-bytes",
        "64KiB",
        "--log-limit",
        "1MiB",
    ];
    let node = Started::new(shoal(&start).env("NOTIFY_SOCKET", &socket));
    told("STATUS=node 1 leads in term ");
    let mut writer = Waiting::begin(&data, "CREATE TABLE t(x)");
    let limit = |most: Option<u64>| {
        let before = getrlimit(Resource::Nofile);
        let limit = Rlimit { current: most.or(before.current), maximum: before.maximum };
        prlimit(Some(node.pid()), Resource::Nofile, limit).unwrap();
    };
    // What is open stays open, and what is asked for beyond it is refused.
    limit(Some(3));
    for _ in 0..4 {
        writer.types("INSERT INTO t VALUES (randomblob(500000));");
    }
    let trouble = told("too many open files");
    assert!(trouble.starts_with("STATUS=") && trouble.contains("ulimit -n"), "{trouble}");
    limit(None);
    let ended = told("STATUS=node 1 leads in term ");
    assert!(ended.starts_with("STATUS="), "{ended}");
    works_in_time(&["health", "--data", &data]);
    assert_eq!(writer.end().0, Some(0));
    assert_eq!(node.terminate(), 0);
}

/// Port 0 is any that is free: which one it is was said nowhere.
#[test]
fn ready_tells_the_port_that_the_node_got() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("data"));
    let node = Started::new(&mut shoal(&["start", "--id", "1", "--data", &data, "--listen", "127.0.0.1:0"]));
    let ready = node.wait_line("ready");
    let (_, address) = ready.split_once("listen=\"").unwrap_or_else(|| panic!("{ready}"));
    let address = address.split('"').next().unwrap();
    assert_eq!(works_in_time(&["health", "--endpoints", address]), format!("{address}: healthy\n"));
}

/// Results on standard output, everything else on standard error, as text or as lines of JSON.
#[test]
fn messages_and_results_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    for format in ["text", "json"] {
        let output = run(&["health", "--json", "--data", &data, "--log", "trace", "--log-format", format]);
        let health: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(health[0]["healthy"], true);
    }
    let quiet = text(&dir.path().join("quiet"));
    let mut command = shoal(&["start", "--id", "1", "--data", &quiet, "--listen", "127.0.0.1:0", "--log", "debug"]);
    let node = Started::new(command.args(["--log-format", "json"]));
    // Whatever comes before it is JSON as well.
    let lines = node.lines_until("leads");
    assert!(lines.iter().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{lines:#?}");
}

/// Every number that `start` takes: what is too small, too large or zero is wrong usage, in words that name the flag and what to
/// write instead; and nothing was founded.
#[test]
fn a_number_that_cannot_work_is_wrong_usage_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("data"));
    let start = ["start", "--data", &data, "--listen", "127.0.0.1:0"];
    for (flag, value, words) in [
        ("--heartbeat", "0s", "0ns: use at least 1ms"),
        ("--heartbeat", "169h", "use at most 168h"),
        ("--election-timeout", "0ms", "use at least 300ms, three heartbeats"),
        ("--election-timeout", "299ms", "use at least 300ms, three heartbeats"),
        ("--election-timeout", "5124095576030h", "use at most 168h"),
        ("--commit-timeout", "0s", "use at least 1ms"),
        ("--commit-timeout", "169h", "use at most 168h"),
        // SQLite counts it in 31 bits.
        ("--busy-timeout", "10000h", "use at most 168h"),
        ("--session-idle", "0s", "use at least 100ms"),
        ("--session-idle", "99ms", "use at least 100ms"),
        ("--session-idle", "169h", "use at most 168h"),
        ("--checkpoint-age", "169h", "use at most 168h"),
        ("--wal-limit", "18446744073709551615", "use at most 1125899906842624"),
        ("--log-limit", "0", "use at least 16777216, the size of one file of the log"),
        ("--log-limit", "15MiB", "use at least 16777216, the size of one file of the log"),
        ("--log-limit", "17179869183GiB", "use at most 1125899906842624"),
        ("--segment-bytes", "0", "use a multiple of 512, at least 4096 and at most 1073741824"),
        ("--segment-bytes", "1000", "1000 bytes: use a multiple of 512, at least 4096 and at most 1073741824"),
        ("--segment-bytes", "4097", "use a multiple of 512"),
        ("--segment-bytes", "2GiB", "use a multiple of 512"),
        ("--checkpoint-bytes", "0", "use at least 65536"),
        ("--checkpoint-bytes", "18446744073709551615", "use at most 1125899906842624"),
        ("--scrub-bytes", "18446744073709551615", "use at most 1125899906842624"),
        ("--snapshot-rate", "1", "use at least 65536, or 0 for no limit"),
        ("--snapshot-rate", "18446744073709551615", "use at most 1125899906842624"),
        ("--snapshot-read-view-close-timeout", "0s", "use at least 1ms"),
        ("--snapshot-wal-pin-max", "18446744073709551615", "use at most 1125899906842624"),
        ("--snapshot-chunk-max-size", "1073741825", "use at most 1073741824"),
        ("--reader-patience", "169h", "use at most 168h"),
        ("--reader-wal-pin-max", "18446744073709551615", "use at most 1125899906842624"),
        ("--part-bytes", "65535", "use at least 65536"),
        ("--part-bytes", "257MiB", "use at most 268435456"),
        ("--transaction-limit", "0", "use at least 65536"),
        ("--transaction-limit", "18446744073709551615", "use at most 1125899906842624"),
    ] {
        // If it starts all the same, it does not end.
        let node = Started::new(&mut shoal(&[&start[..], &["--id", "1", flag, value]].concat()));
        let said = node.wait_line("shoal: ");
        assert_eq!(node.ended(), 2, "{flag} {value}: {said}");
        assert!(said.starts_with(&format!("shoal: {flag}: ")) && said.contains(words), "{flag} {value}: {said}");
    }
    // These the command line knows by itself.
    for (flag, value) in [("--id", "0"), ("--id", "65536"), ("--wal-limit", "-1"), ("--heartbeat", "5")] {
        let id: &[&str] = if flag == "--id" { &[] } else { &["--id", "1"] };
        let refused = run(&[&start[..], id, &[&format!("{flag}={value}")]].concat());
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{flag} {value}: {said}");
        assert!(said.contains(flag) && said.contains(value), "{said}");
    }
    // From a variable or a file it is the same number.
    let refused = shoal(&[&start[..], &["--id", "1"]].concat()).env("SHOAL_SEGMENT_BYTES", "1000").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("--segment-bytes: 1000 bytes"));
    assert!(!dir.path().join("data").exists());

    let least = ["--wal-limit", "0", "--scrub-bytes", "0", "--snapshot-rate", "0", "--busy-timeout", "0s"];
    let least =
        [&least[..], &["--segment-bytes", "4KiB", "--log-limit", "4KiB", "--checkpoint-bytes", "64KiB"]].concat();
    let least = [&least[..], &["--checkpoint-age", "0s", "--session-idle", "100ms"]].concat();
    let (node, data) = one_node(dir.path(), &least);
    works(&["sql", "app", "CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(300000))", "--data", &data]);
    assert_eq!(works(&["sql", "app", "SELECT length(x) FROM t", "--data", &data]), "300000\n");
    assert_eq!(node.terminate(), 0);
}
