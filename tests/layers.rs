//! The folder tree is the architecture, and DESIGN.md's code map is its plan: each file of this package stands there with
//! its layer, and names only files that stand above it. (The VFS crate has such a test of its own.)
//!
//! What is held here:
//!
//! * every file under `src/` is in the code map, and every file in the map exists;
//! * layers ascend down the map, and no arrow points down the page: what a file names behind `crate::` or `super::` stands
//!   above it, or is its own folder's head;
//! * the crate `raft` is named in `src/raft/` only, sockets in `src/net/tcp` only, files of the system only in the VFS's
//!   `env/os.rs`; the program under `src/bin/` is an application and may use both;
//! * `unsafe` stands in its rooms only, in the whole workspace;
//! * a test that DESIGN.md or the README calls as a witness exists;
//! * the tests in DESIGN.md's table of invariants carry the numbers that they are named for, and nothing else does;
//! * each trap in `tests/cluster/traps.rs` has a test, or a reason why it needs none;
//! * what the simulation found stands in DESIGN.md with a seed and a test each;
//! * the mistakes that can be planted are those of DESIGN.md's table and of the simulation's list of seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Files in which `unsafe` may stand. The tests among them call SQLite itself, for what rusqlite has no safe word
/// for.
const UNSAFE_ROOMS: [&str; 10] = [
    "vfs/src/ffi.rs",
    "vfs/src/shm.rs",
    "vfs/src/map.rs",
    "vfs/src/ext/heap.rs",
    "vfs/src/ext/ofd.rs",
    "vfs/src/ext/writeback.rs",
    "vfs/tests/queue.rs",
    "vfs/tests/settings.rs",
    "vfs/tests/malloc.rs",
    "tests/power/disk.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Rust files below `dir`, as paths from the root of the repository.
fn sources(dir: &str) -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    if root().join(dir).is_dir() {
        walk(&root().join(dir), &mut found);
    }
    found.sort_unstable();
    found.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_string()).collect()
}

/// The text of a file without comments and without its unit tests.
fn code(file: &str) -> String {
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `text` has `word` as a path or a name of its own, not as a part of a longer one.
fn names(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(|c| is_word(c) || c == ':') && !after.is_some_and(|c| is_word(c) && is_word_end(word))
    })
}

fn is_word_end(word: &str) -> bool {
    word.ends_with(is_word)
}

/// The files of this package's library in the order of DESIGN.md's code map, with their layers.
fn code_map() -> Vec<(String, u32)> {
    let design = std::fs::read_to_string(root().join("DESIGN.md")).unwrap();
    let section = design.split("\n## Code map").nth(1).expect("DESIGN.md has a section \"Code map\"");
    let section = section.split("\n## ").next().unwrap();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let file = words.next().filter(|word| word.starts_with("src/") && word.ends_with(".rs"))?;
        Some((file.to_string(), words.next()?.parse().unwrap_or_else(|_| panic!("code map: {line:?} has no layer"))))
    };
    section.lines().filter_map(line).collect()
}

/// `src/net/tcp.rs` is `net::tcp`.
fn module(file: &str) -> String {
    file.trim_start_matches("src/").trim_end_matches(".rs").replace('/', "::")
}

/// What a file names behind `crate::` and `super::`, as paths from the crate's root.
fn used(module: &str, text: &str) -> BTreeSet<String> {
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut used = BTreeSet::new();
    for (marker, base) in [("crate::", ""), ("super::", parent)] {
        for (at, _) in text.match_indices(marker) {
            let rest = &text[at + marker.len()..];
            let end = rest.find(|c: char| !(is_word(c) || c == ':')).unwrap_or(rest.len());
            let head = rest[..end].trim_end_matches(':');
            let join = |tail: &str| {
                [base, head, tail].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("::")
            };
            match rest[end..].strip_prefix('{').and_then(|list| list.split_once('}')) {
                Some((list, _)) => used.extend(list.split(',').map(|name| join(name.trim()))),
                None => _ = used.insert(join("")),
            }
        }
    }
    used
}

#[test]
fn the_code_map_is_complete_and_layers_ascend() {
    let map = code_map();
    assert!(map.windows(2).all(|pair| pair[0].1 <= pair[1].1), "DESIGN.md: layers must ascend in the code map");
    let planned: BTreeSet<String> = map.into_iter().map(|(file, _)| file).collect();
    let is_test = |file: &String| file.ends_with("/tests.rs") || file.contains("/tests/");
    let real: BTreeSet<String> = sources("src").into_iter().filter(|file| !is_test(file)).collect();
    let real: BTreeSet<String> = real.into_iter().filter(|file| !file.starts_with("src/bin/")).collect();
    let missing: Vec<_> = real.difference(&planned).collect();
    let gone: Vec<_> = planned.difference(&real).collect();
    assert!(missing.is_empty(), "not in DESIGN.md's code map: {missing:?}; give each its layer and place there");
    assert!(gone.is_empty(), "in DESIGN.md's code map, but no file: {gone:?}");
}

/// Shows INV-22.
#[test]
fn no_arrow_points_up() {
    let map = code_map();
    let place: BTreeMap<String, usize> = map.iter().enumerate().map(|(at, (file, _))| (module(file), at)).collect();
    let mut wrong = Vec::new();
    for (at, (file, _)) in map.iter().enumerate() {
        let me = module(file);
        if me == "lib" {
            continue;
        }
        for target in used(&me, &code(file)) {
            // What stands behind a module's name is one of its items.
            let mut name = target.as_str();
            while !name.is_empty() && !place.contains_key(name) {
                name = name.rsplit_once("::").map_or("", |(parent, _)| parent);
            }
            let Some(there) = place.get(name) else {
                // Names that `lib.rs` hands out, or a constant of the crate's root.
                wrong.push(format!("{file} names crate::{target}, which is in no file of the code map"));
                continue;
            };
            let own_folder = me.starts_with(&format!("{name}::")) || name.starts_with(&format!("{me}::"));
            let simulation = me.starts_with("sim") && name.starts_with("sim");
            if *there > at && !own_folder && !simulation {
                wrong.push(format!("{file} names crate::{target}, which stands below it in the code map"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Shows INV-22.
#[test]
fn each_outside_thing_has_one_home() {
    let homes: [(&[&str], &str); 3] = [
        (&["raft::", "eraftpb", "slog::", "protobuf"], "src/raft"),
        (&["std::net", "socket2", "rustix::net", "TcpStream", "TcpListener", "UdpSocket"], "src/net/tcp"),
        (&["std::fs", "rustix::fs", "File::open", "File::create", "OpenOptions"], "vfs/src/env/os.rs"),
    ];
    // The admin socket is a name in the data directory: a file and a socket at the same time, with a door of its own.
    let admin_socket = "src/socket.rs";
    let mut wrong = Vec::new();
    for file in sources("src").into_iter().chain(sources("vfs/src")) {
        if file.starts_with("src/bin/")
            || file == admin_socket
            || file.ends_with("tests.rs")
            || file.contains("/tests/")
        {
            continue;
        }
        let text = code(&file);
        for (words, home) in homes {
            for word in words {
                // The wal-index lives in a memfd, which is memory and no file of a file system.
                let memory = *word == "rustix::fs" && file == "vfs/src/shm.rs";
                // A map needs the file itself; it is handed one, and opens none.
                let map = matches!(*word, "std::fs" | "rustix::fs") && file == "vfs/src/map.rs";
                if names(&text, word) && !file.starts_with(home) && !memory && !map {
                    wrong.push(format!("{file} names {word}, whose home is {home}"));
                }
            }
        }
        // The core's time are ticks, and its randomness is handed to it (INV-6).
        for word in ["Instant", "SystemTime", "std::thread", "std::env", "rand::", "Duration"] {
            if file.starts_with("src/raft") && names(&text, word) {
                wrong.push(format!("{file} names {word}: the core has no clock, no randomness and no thread"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Shows INV-22.
#[test]
fn unsafe_stays_in_its_rooms() {
    let mut wrong = Vec::new();
    for dir in [
        "src",
        "vfs/src",
        "vfs/tests",
        "tests",
        "benches",
        "examples",
        "clients",
        "fuzz/examples",
        "fuzz/fuzz_targets",
        "fuzz/src",
        "fuzz/tests",
    ] {
        for file in sources(dir) {
            if UNSAFE_ROOMS.contains(&file.as_str()) || file == "tests/layers.rs" || file == "vfs/tests/layers.rs" {
                continue;
            }
            if names(&code(&file), "unsafe") {
                wrong.push(file);
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside its rooms: {wrong:?}");
}

#[test]
fn witnesses_exist() {
    let mut tests = BTreeSet::new();
    for dir in ["src", "tests", "vfs/src", "vfs/tests", "examples"] {
        for file in sources(dir) {
            let text = std::fs::read_to_string(root().join(file)).unwrap();
            tests.extend(text.lines().filter_map(|line| {
                let line = line.trim_start();
                let name = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("fn ")?.split('(').next()?;
                Some(name.to_string())
            }));
        }
    }
    let mut missing = Vec::new();
    for page in ["DESIGN.md", "README.md"] {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        for quoted in text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
            // Names of three words and more are tests, or names of the public surface that these pages spell out.
            let is_test = quoted.matches('_').count() >= 3 && quoted.chars().all(is_word);
            if is_test && !tests.contains(quoted) {
                missing.push(format!("{page}: {quoted}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such test: {missing:#?}");
}

/// The tests of the workspace, by name: for each, its file and the comment above it.
fn tests_with_comments() -> BTreeMap<String, Vec<(String, String)>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for file in ["src", "tests", "vfs/src", "vfs/tests"].into_iter().flat_map(sources) {
        let text = std::fs::read_to_string(root().join(&file)).unwrap();
        let (mut comment, mut marked) = (String::new(), false);
        for line in text.lines().map(str::trim_start) {
            if let Some(words) = line.strip_prefix("///") {
                comment.push_str(words);
            } else if line.starts_with("#[") {
                marked |= line == "#[test]";
            } else {
                if let Some((name, _)) = line.strip_prefix("fn ").filter(|_| marked).and_then(|f| f.split_once('(')) {
                    found.entry(name.to_string()).or_default().push((file.clone(), std::mem::take(&mut comment)));
                }
                comment.clear();
                marked = false;
            }
        }
    }
    found
}

/// The numbers of invariants that stand in `text`.
fn invariants(text: &str) -> BTreeSet<String> {
    let numbers = text.split("INV-").skip(1);
    numbers.map(|rest| rest[..rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len())].to_string()).collect()
}

#[test]
fn the_tests_of_the_invariants_carry_their_numbers() {
    let tests = tests_with_comments();
    let mut named: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    let page = std::fs::read_to_string(root().join("DESIGN.md")).unwrap();
    for row in page.lines().filter(|line| line.starts_with("| INV-")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let number = cells[0].trim().trim_start_matches("INV-");
        let witnesses: Vec<_> = cells.last().unwrap().split('`').skip(1).step_by(2).collect();
        if witnesses.is_empty() && !cells.last().unwrap().contains("no test") {
            wrong.push(format!("INV-{number}: DESIGN.md names no test of it, and does not say that there is none"));
        }
        for witness in witnesses {
            named.entry(witness).or_default().insert(number.to_string());
        }
    }
    assert!(named.len() > 40, "{}", named.len());
    for (name, numbers) in &named {
        match tests.get(*name) {
            None => wrong.push(format!("{name}, a test of INV-{numbers:?}, does not exist")),
            Some(places) => wrong.extend(places.iter().flat_map(|(file, comment)| {
                let carried = invariants(comment);
                let missing = numbers.difference(&carried).cloned().collect::<Vec<_>>();
                missing.into_iter().map(move |n| format!("{file}: {name} needs the words \"Shows INV-{n}.\" above it"))
            })),
        }
    }
    for (name, places) in &tests {
        let none = BTreeSet::new();
        let numbers = named.get(name.as_str()).unwrap_or(&none);
        for (file, comment) in places {
            for n in invariants(comment).difference(numbers) {
                wrong.push(format!("{file}: {name} carries INV-{n}, whose row in DESIGN.md does not name it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_trap_has_a_test_or_a_reason() {
    let tests = tests_with_comments();
    let text = std::fs::read_to_string(root().join("tests/cluster/traps.rs")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | ")?.strip_suffix(" |"));
    let rows: Vec<Vec<_>> = rows.map(|row| row.split(" | ").collect()).collect();
    let numbers: Vec<_> = rows.iter().filter_map(|row| row[0].parse::<u32>().ok()).collect();
    assert_eq!(numbers, Vec::from_iter(1..=18));
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row[0] != "trap") {
        let [number, _, answer] = row[..] else { panic!("a row of three cells: {row:?}") };
        let witnesses: Vec<_> = answer.split('`').skip(1).step_by(2).filter(|name| name.contains('_')).collect();
        wrong.extend(witnesses.iter().filter(|name| !tests.contains_key(**name)).map(|name| format!("no test {name}")));
        if witnesses.is_empty() && !answer.starts_with("does not apply: ") {
            wrong.push(format!("trap {number} has neither a test nor a reason"));
        }
    }
    let listed = |name: &str| rows.iter().any(|row| row.last().unwrap().contains(&format!("`{name}`")));
    let unlisted = tests.keys().filter(|name| name.starts_with("trap_") && !listed(name));
    wrong.extend(unlisted.map(|name| format!("{name} is not in the table")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What has the form of a label and no turn in the simulation (`LABELS` in `src/sim/tests.rs`), and the test that fails it, or
/// what it is instead. The test says itself, by [`ASSERTS`], that the call was made to fail.
const WITHOUT_A_TURN: &[(&str, &str)] = &[
    ("apply.publish", "a place in the code, no call of a disk"),
    ("publish.wait", "a place in the code, no call of a disk"),
    ("wal.sync", "a call of SQLite, none of a disk"),
    ("wal.write", "a call of SQLite, none of a disk"),
    ("write.unlock", "a call of SQLite, none of a disk"),
    ("admin.sock", "a socket"),
    ("admin.sock.new", "a socket"),
    ("identity.new", "a file"),
    ("log.recovered", "a directory"),
    ("dir.lock", "`a_directory_that_cannot_be_written_to_is_named`"),
    ("dir.look", "`a_directory_that_cannot_be_looked_into_is_not_taken_for_an_empty_one`"),
    ("log.clear", "`a_crash_or_a_fault_in_any_call_of_a_founding_behind_another_leaves_a_directory_that_starts`"),
    ("log.wipe", "`what_could_not_be_wiped_is_wiped_by_the_next_start`"),
    ("recover.begin", "`a_crash_or_a_fault_in_any_call_of_a_recovery_leaves_what_running_it_again_ends`"),
    ("recover.clear", "`a_crash_or_a_fault_in_any_call_of_a_recovery_leaves_what_running_it_again_ends`"),
    ("recover.exchange", "`a_crash_or_a_fault_in_any_call_of_a_recovery_leaves_what_running_it_again_ends`"),
    ("stage.adopt", "`a_failure_at_every_call_changes_nothing_else_and_the_next_attempt_succeeds`"),
    ("stage.empty", "`what_an_attempt_before_left_is_written_once_more_whatever_became_of_its_syncs`"),
    ("stage.read", "`a_failure_at_every_call_changes_nothing_else_and_the_next_attempt_succeeds`"),
    ("stage.remove", "`what_an_attempt_before_left_is_written_once_more_whatever_became_of_its_syncs`"),
    ("stage.sync_some", "`after_a_failed_sync_among_the_pages_the_part_is_gone`"),
    ("view.page", "`opening_a_view_maps_the_file_and_reads_nothing`"),
];

/// What panics in a test whose fault did not come (`shoaldb_vfs::env::sim`).
const ASSERTS: &str = "assert_failed(";

/// What a test says, in its own text, that it has made fail.
fn asserted_by(file: &str, test: &str) -> BTreeSet<String> {
    let text = code(file);
    let behind = text.split_once(&format!("fn {test}(")).unwrap_or_else(|| panic!("{file} has {test}")).1;
    let body = behind.split_once("\n}").map_or(behind, |(body, _)| body);
    let said = body.split(ASSERTS).skip(1).filter_map(|rest| rest.split(';').next());
    said.flat_map(|said| said.split('"').skip(1).step_by(2).map(str::to_string)).collect()
}

/// Calls of backups and restores on the files of whoever runs them. They go to the system directly (`OsFs`), past what a test may make
/// fail by a label.
const OF_BACKUPS: [&str; 11] = [
    "backup.create",
    "backup.dir",
    "backup.header",
    "backup.look",
    "backup.open",
    "backup.remove",
    "backup.sync",
    "restore.header",
    "restore.len",
    "restore.look",
    "restore.wal",
];

/// Whether a text has the form of a label: two words or more, with dots between them.
fn is_label(text: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    text.contains('.') && text.split('.').all(is_part)
}

/// What has that form between any two quotes: whether a quote begins a text or ends one need not be known.
fn labels_in(text: &str) -> BTreeSet<String> {
    text.split('"').filter(|text| is_label(text)).map(str::to_string).collect()
}

/// Texts that are given as labels, whatever their form: as the last argument of a method of the doors to files, or as a constant.
fn given_as_labels(text: &str) -> BTreeSet<String> {
    let doors = std::fs::read_to_string(root().join("vfs/src/env.rs")).unwrap();
    let methods = doors.split("    fn ").skip(1).filter_map(|method| {
        let (name, rest) = method.split_once('(')?;
        let (others, _) = rest.split_once(')')?.0.strip_prefix("&self, ")?.rsplit_once("abel: Label")?;
        Some((format!(".{name}("), others.contains(',')))
    });
    let methods = Vec::from_iter(methods);
    // Some call the parameter `_label`.
    assert_eq!(methods.len(), doors.matches("abel: Label").count(), "{methods:?}");
    let mut given = BTreeSet::new();
    for (method, has_others) in methods {
        for arguments in text.split(method.as_str()).skip(1).filter_map(arguments) {
            let last =
                arguments.trim_end().trim_end_matches(',').strip_suffix('"').and_then(|all| all.rsplit_once('"'));
            // Methods of other types have the same names.
            let is_argument =
                |before: &str| if has_others { before.trim_end().ends_with(',') } else { before.trim().is_empty() };
            given.extend(last.filter(|(before, _)| is_argument(before)).map(|(_, label)| label.to_string()));
        }
    }
    let constants = text.split(": Label = \"").skip(1).filter_map(|rest| rest.split_once('"'));
    given.extend(constants.map(|(label, _)| label.to_string()));
    given
}

/// What stands up to the bracket that ends a call.
fn arguments(behind: &str) -> Option<&str> {
    let mut depth = 1;
    let end = behind.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    });
    Some(&behind[..end?])
}

#[test]
fn each_label_of_a_disk_has_its_turn_or_another_test() {
    // The program has no call of its own: it hands on those of the library.
    let is_ours = |file: &&String| !["/tests", "src/sim", "env/sim", "src/bin"].iter().any(|part| file.contains(part));
    let files = [sources("src"), sources("vfs/src")].concat();
    let texts: Vec<String> = files.iter().filter(is_ours).map(|file| code(file)).collect();
    let given: BTreeSet<String> = texts.iter().flat_map(|text| given_as_labels(text)).collect();
    assert!(given.len() > 60, "{given:?}");
    assert_eq!(given.iter().filter(|text| !is_label(text)).collect::<Vec<_>>(), [""; 0], "labels without a dot");
    let labels: BTreeSet<String> = texts.iter().flat_map(|text| labels_in(text)).collect();
    let turns = std::fs::read_to_string(root().join("src/sim/tests.rs")).unwrap();
    let turns = turns.split_once("const LABELS:").unwrap().1.split_once("];").unwrap().0;
    let turns = labels_in(turns);
    let others = WITHOUT_A_TURN.iter().map(|(label, _)| *label).chain(OF_BACKUPS);
    let others: BTreeSet<String> = others.map(str::to_string).collect();
    assert_eq!(turns.intersection(&others).collect::<Vec<_>>(), [""; 0]);
    let listed: BTreeSet<String> = turns.union(&others).cloned().collect();
    let only_once: Vec<_> = labels.symmetric_difference(&listed).collect();
    assert_eq!(only_once, [""; 0], "in the source and in no list, or in a list and not in the source");
    let (tests, mut wrong) = (tests_with_comments(), Vec::new());
    for (label, why) in WITHOUT_A_TURN {
        let Some(name) = why.strip_prefix('`').and_then(|why| why.strip_suffix('`')) else { continue };
        match tests.get(name) {
            None => wrong.push(format!("{label}: there is no test {name}")),
            Some(places) if places.iter().any(|(file, _)| asserted_by(file, name).contains(*label)) => {}
            Some(_) => wrong.push(format!("{label}: {name} does not say {ASSERTS} that this has failed")),
        }
    }
    assert_eq!(wrong, [""; 0]);
}

/// The rows of a table of DESIGN.md that begins behind `head`, as cells: without its head and the line below that.
fn rows_behind(head: &str) -> Vec<Vec<String>> {
    let page = std::fs::read_to_string(root().join("DESIGN.md")).unwrap();
    let behind = page.split_once(head).unwrap_or_else(|| panic!("DESIGN.md has {head:?}")).1.to_string();
    let rows = behind.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_string()).collect();
    rows.skip(2).map(cells).collect()
}

/// Mistakes whose seeds nobody kept when they were found. There will be no others.
const WITHOUT_A_SEED: [&str; 2] = [
    "a checkpoint that had failed half way left some of its page hashes; the next one took the difference for a divergence",
    "compaction went by what was applied, of which the core hears a little later",
];

#[test]
fn each_mistake_that_the_simulation_found_has_a_seed_and_a_test() {
    let (tests, mut wrong) = (tests_with_comments(), Vec::new());
    let rows = rows_behind("What the simulation found in this code");
    assert!(rows.len() >= 16, "{}", rows.len());
    let without = rows.iter().filter(|row| row[2] == "not kept").map(|row| row[0].as_str());
    assert_eq!(Vec::from_iter(without), WITHOUT_A_SEED);
    let tests_of_seeds = std::fs::read_to_string(root().join("src/sim/tests.rs")).unwrap();
    let (_, found) = tests_of_seeds.split_once("const FOUND:").unwrap();
    let found = found.split_once('=').unwrap().1.split_once(';').unwrap().0;
    let run =
        |seed: u64| seed <= 200 || found.split(|c: char| !c.is_ascii_digit()).any(|other| other == seed.to_string());
    for row in &rows {
        let [what, _, seed, fix] = &row[..] else { panic!("a row of four cells: {row:?}") };
        if seed != "not kept" && !seed.split(", ").all(|seed| seed.parse().is_ok_and(run)) {
            wrong.push(format!("{what}: no seed that `cargo test` runs is {seed:?}"));
        }
        if !fix.split('`').skip(1).step_by(2).any(|name| tests.contains_key(name)) {
            wrong.push(format!("{what}: no test holds its mend: {fix}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The mistakes of a crate, in order, with what is wrong of each.
fn planted_in(file: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    let (_, list) = text.split_once("planted_bugs! {\n").unwrap_or_else(|| panic!("{file} has a list"));
    let (mut all, mut what) = (Vec::new(), String::new());
    for line in list.lines().map(str::trim).take_while(|line| *line != "}") {
        match line.strip_prefix("///") {
            Some(words) => what.push_str(words),
            None => all.push((line.trim_end_matches(',').to_string(), std::mem::take(&mut what).trim().to_string())),
        }
    }
    all
}

#[test]
fn the_planted_mistakes_are_those_of_the_table_and_of_the_seeds() {
    let planted: Vec<_> = ["vfs/src/planted.rs", "src/planted.rs"].into_iter().flat_map(planted_in).collect();
    assert!(planted.len() >= 45, "{}", planted.len());
    let table = rows_behind("<!-- planted: begin -->");
    for row in &table {
        assert!(row.len() == 4 && !row[3].is_empty(), "four cells: {row:?}");
    }
    let told = table.iter().map(|row| (row[0].trim_matches('`').to_string(), row[1].clone()));
    assert_eq!(Vec::from_iter(told), planted, "DESIGN.md's table, and the lists of both crates");
    let seeds = std::fs::read_to_string(root().join("examples/sim/noticed.txt")).unwrap();
    let seeds = seeds.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let seeds: Vec<_> = seeds.map(|line| line.split_once(' ').expect("a name and a seed")).collect();
    // A mistake that no seed notices has 0 in the list.
    let in_table = table.iter().map(|row| (row[0].trim_matches('`'), row[2].as_str()));
    let in_table = in_table.map(|(name, seed)| (name, if matches!(seed, "none" | "-") { "0" } else { seed }));
    assert_eq!(Vec::from_iter(in_table), seeds, "DESIGN.md's table, and examples/sim/noticed.txt");
}

#[test]
fn names_are_found_whole() {
    assert!(names("use raft::RawNode;", "raft::") && names("(raft::INVALID_ID)", "raft::"));
    assert!(!names("use crate::raft::Core;", "raft::") && !names("draft::x", "raft::"));
    assert!(names("unsafe {", "unsafe") && !names("#![deny(unsafe_code)]", "unsafe"));
    assert_eq!(
        Vec::from_iter(used("net::tcp", "use super::{Inbound, codec};\nuse crate::types::NodeId;")),
        ["net::Inbound", "net::codec", "types::NodeId"]
    );
}
