//! Transcripts: text files of commands, each followed by what it made the nodes do.
//!
//! ```text
//! nodes N            found a cluster of N voters        campaign A        A campaigns
//! elect A            A campaigns, run, say no more      clear             lose all messages on the wire
//! propose A WORD     propose at A                       read A            linearizable read at A
//! run                until nothing moves                deliver           one round of messages
//! hold A / release A A's disk stalls / goes on          persist A         its oldest batch is written
//! drop A->B          lose what A sends to B             isolate A, heal   likewise, all of it; undo
//! crash A, restart A lose what is not written           tick A N          N ticks
//! transfer A B       A hands leadership to B
//! ```
//!
//! A line that begins with `> ` is a command, `#` a comment. `SHOAL_BLESS=1` writes what happens into the files.

use std::path::{Path, PathBuf};

use shoaldb::raft::Event;
use shoaldb::types::NodeId;

use crate::harness::Cluster;

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(files.len() >= 8, "transcripts are missing: {files:?}");
    let bless = std::env::var_os("SHOAL_BLESS").is_some();
    for file in files {
        let expected = std::fs::read_to_string(&file).unwrap();
        let actual = replay(&expected);
        if bless {
            std::fs::write(&file, actual).unwrap();
        } else {
            let difference = expected.lines().zip(actual.lines()).find(|(e, a)| e != a);
            assert!(expected == actual, "{}: {difference:?}; all of it:\n{actual}", file.display());
        }
    }
}

/// The text with the outcome of each command put in anew.
fn replay(text: &str) -> String {
    let mut cluster = Cluster::of(0);
    let mut out = String::new();
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            out += &format!("{line}\n");
        } else if let Some(command) = line.strip_prefix("> ") {
            out += &format!("{line}\n");
            execute(&mut cluster, command);
            cluster.trace.drain(..).for_each(|traced| out += &format!("  {traced}\n"));
        }
    }
    out
}

fn execute(cluster: &mut Cluster, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let number = |at: usize| words[at].parse::<u16>().unwrap_or_else(|_| panic!("no number in {command:?}"));
    match words[0] {
        "nodes" => *cluster = Cluster::of(number(1)),
        "campaign" => cluster.event(number(1), Event::Campaign),
        "elect" => {
            cluster.campaign(number(1));
            assert_eq!(cluster.leader(), Some(number(1)));
            cluster.trace.clear();
        }
        "propose" => {
            cluster.propose(number(1), words[2].to_owned());
        }
        "read" => {
            cluster.read(number(1));
        }
        "run" => cluster.run(),
        "deliver" => cluster.deliver_all(),
        "hold" => cluster.node(number(1)).hold_persist = true,
        "release" => cluster.node(number(1)).hold_persist = false,
        "persist" => {
            cluster.persist_one(number(1));
        }
        "drop" => {
            let (from, to) = words[1].split_once("->").unwrap();
            cluster.cut.insert((from.parse().unwrap(), to.parse().unwrap()));
        }
        "isolate" => cluster.isolate(number(1)),
        "heal" => cluster.cut.clear(),
        "clear" => cluster.wire.clear(),
        "crash" => cluster.crash(number(1)),
        "restart" => cluster.restart(number(1)),
        "tick" => cluster.tick(number(1), usize::from(number(2))),
        "transfer" => cluster.event(number(1), Event::Transfer { to: NodeId(number(2)) }),
        other => panic!("unknown command {other}"),
    }
}
