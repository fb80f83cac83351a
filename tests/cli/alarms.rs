//! What needs a person's attention, and README's table of what to do about it.

use std::path::{Path, PathBuf};

/// Where alarms come from: the file, how many places in it raise one or end the node's promises, and words of what is said there
/// as README's table has them. Whoever adds a place finds this test red: the new words need a row in the table.
const RAISED: [(&str, usize, &[&str]); 8] = [
    ("src/apply.rs", 1, &["could not be created", "nothing later is applied on this node until there is room"]),
    ("src/driver.rs", 6, &["panicked", "cannot apply", "the log cannot be written, nothing is acknowledged"]),
    (
        "src/engine.rs",
        6,
        &["the disk has not answered a write of the log", "it lost entries that it had acknowledged", " by turns"],
    ),
    ("src/node.rs", 4, &["is in no cluster yet", "waits to be installed", "panicked"]),
    ("src/snapshot/mend.rs", 1, &["the log cannot be written, nothing is acknowledged any more"]),
    ("src/snapshot/repair.rs", 1, &["is not repaired yet"]),
    ("src/snapshot/rounds.rs", 2, &["no snapshot from node"]),
    (
        "src/upkeep.rs",
        12,
        &[
            "its page hashes could not be read",
            "was not repaired",
            "the disk does not take the pages of transactions",
            "of it are not what was written",
            "the page hashes of its main file do not make its checksum",
            "what it would show is not what was committed",
            "no checkpoint, its WAL and the log grow",
            "the log cannot be made shorter",
            "the log cannot be compacted until the next start",
            "its main file cannot be read",
            "the log has ",
        ],
    ),
];

/// What these places pass on, and what `status` makes of the state of the node and of its transport when it is asked.
const ELSEWHERE: [&str; 16] = [
    "the log could not be begun anew behind a snapshot",
    "a snapshot is on disk, but not shown",
    "no leader known",
    "no cluster yet: waiting for a majority of the bootstrap list",
    "no cluster yet: asking",
    "until it is repaired",
    "pages of the wal are in memory past wal_limit",
    "speaks protocol",
    "its disk was wiped or replaced",
    "was removed",
    "nodes of two clusters cannot be mixed",
    "too many open files",
    "no space left",
    "the log cannot be written, nothing is acknowledged: ",
    "the disk has not answered a call for the files of",
    "has not been reached for",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The node's own sources, without the simulation, without comments and unit tests, and with strings in one piece.
fn sources() -> Vec<(String, String)> {
    let mut waiting: Vec<PathBuf> = vec![root().join("src")];
    let mut found = Vec::new();
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
            if path.is_dir() {
                let is_other = name == "src/sim" || name == "src/bin" || name.ends_with("/tests");
                waiting.extend((!is_other).then_some(path));
                continue;
            }
            if !name.ends_with(".rs") || name.ends_with("tests.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let lines = code.lines().map(str::trim).filter(|line| !line.starts_with("//"));
            found.push((name, lines.collect::<Vec<_>>().join("\n").replace("\\\n", "")));
        }
    }
    found.sort();
    found
}

/// Calls of `alarm` with something to say, and the other ways in which the node says that it is in trouble.
fn raised_in(code: &str) -> usize {
    let plain = ["alarms.insert(", ".disk_trouble(", ".set_trouble(", "Input::Failed {"];
    let plain: usize = plain.iter().map(|call| code.matches(call).count()).sum();
    let said = code.split(".alarm(").skip(1).filter(|call| call.split(";").next().unwrap().contains("Some("));
    plain + said.count()
}

#[test]
fn every_alarm_has_a_row_in_the_readme() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("**What an alarm means**").unwrap();
    let (table, _) = rest.split_once("\n## ").unwrap();
    let titles: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).collect();
    let sources = sources();
    let all: String = sources.iter().map(|(_, code)| code.as_str()).collect();
    for (file, code) in &sources {
        let (sites, words) =
            RAISED.iter().find(|(name, ..)| name == file).map_or((0, &[][..]), |raised| (raised.1, raised.2));
        assert_eq!(raised_in(code), sites, "{file}: places that raise alarms");
        for word in words {
            assert!(
                titles.iter().any(|title| title.contains(word.trim())),
                "{file}: {word:?} is not in README's table"
            );
        }
    }
    for word in RAISED.iter().flat_map(|(.., words)| *words).chain(&ELSEWHERE) {
        assert!(all.contains(word), "nobody says {word:?} any more");
        assert!(titles.iter().any(|title| title.contains(word.trim())), "{word:?} is not in README's table");
    }
    // And no row is of words that nobody says: what stands between dots, and between names and numbers.
    for title in titles.iter().filter(|title| title.starts_with('`')) {
        for words in title.split('`').filter(|words| words.len() > 3) {
            for part in words.split(['[', ']', ';']).flat_map(|part| part.split("...")) {
                let part = part.trim().trim_matches([':', ';', ',']).trim();
                let plain: Vec<&str> = part.split("database").map(str::trim).filter(|part| part.len() > 3).collect();
                for part in plain {
                    assert!(all.contains(part), "README's table has {part:?}, which nobody says");
                }
            }
        }
    }
}
