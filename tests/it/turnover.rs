//! A node whose data turns over again and again: what is on its disk depends on how much data there is, not on how much there was.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use shoaldb::Node;

use crate::cluster::{LONG, quick, until};

const PAGE: u64 = 4096;
/// Rows that there are, each of two or three pages.
const ROWS: i64 = 60;
/// Some thirty times everything that there is, at the least.
const ROUNDS: i64 = 300;
/// Laps of the WAL that have to begin meanwhile.
const LAPS: u32 = 8;
/// Nameless files take room by whole pieces, and one page may keep one.
const NAMELESS: u64 = 8 << 20;

/// Bytes on disk by kind of file, those without a name among them.
fn on_disk(dir: &Path) -> BTreeMap<String, u64> {
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    for (folder, named) in [("log", Some("log")), ("db", None)] {
        for entry in std::fs::read_dir(dir.join(folder)).unwrap().flatten() {
            let path = entry.path();
            let kind = path.extension().map(|kind| kind.to_string_lossy().into_owned());
            let kind = named.map(str::to_string).or(kind).unwrap_or_else(|| panic!("{}", path.display()));
            // One that went away meanwhile is not there.
            *sizes.entry(kind).or_default() += entry.metadata().map_or(0, |data| data.len());
        }
    }
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if target.starts_with(dir) && target.to_string_lossy().ends_with(" (deleted)") {
            // Their length is what they once had; what is not in use any more is a hole.
            *sizes.entry("nameless".to_string()).or_default() +=
                std::fs::metadata(entry.path()).map_or(0, |data| data.blocks() * 512);
        }
    }
    sizes
}

#[test]
fn files_of_a_node_stay_as_large_as_its_data_however_often_that_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        // Less in memory than a large transaction has, so that its pages go to nameless files.
        let node = quick(Node::builder(1, dir.path()))
            .wal_limit(256 << 10)
            .part_bytes(64 << 10)
            .busy_timeout(LONG)
            .start()
            .unwrap();
        node.wait_leader(LONG).unwrap();
        node
    };
    let mut node = start();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")?)).unwrap();
    node.write("app", |tx| {
        for id in 0..ROWS {
            tx.execute("INSERT INTO t VALUES (?1, randomblob(9000))", [id])?;
        }
        Ok(())
    })
    .unwrap();
    let data = ROWS as u64 * 3 * PAGE;
    let mut most: BTreeMap<String, u64> = BTreeMap::new();
    let (mut reader, mut laps, mut frames) = (None, 0, 0);
    let begun = Instant::now();
    // Without a pause: a WAL that only began anew when nobody writes would never do so. For as many rounds as it takes, since how
    // fast the disk is is not what this is about.
    for round in 0.. {
        if round >= ROUNDS && laps >= LAPS {
            break;
        }
        assert!(begun.elapsed() < 4 * LONG, "{laps} laps of the WAL in {round} rounds, and it has {frames} frames");
        match round % 50 {
            // All of it at once, in parts.
            10 | 35 => drop(node.connect("app").unwrap().execute("UPDATE t SET v = randomblob(9000)", []).unwrap()),
            20 => node.connect("app").unwrap().execute_batch("VACUUM").unwrap(),
            // Somebody who reads keeps the WAL for some rounds.
            25 => {
                let db = node.connect("app").unwrap();
                db.execute_batch("BEGIN").unwrap();
                let rows: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
                assert_eq!(rows, ROWS);
                reader = Some(db);
            }
            45 => reader = None,
            49 if round % 200 == 199 => {
                node.shutdown().unwrap();
                drop(node);
                node = start();
                frames = 0;
            }
            _ => {
                let from = round * 7 % (ROWS - 5);
                node.write("app", |tx| {
                    tx.execute("DELETE FROM t WHERE id >= ?1 AND id < ?1 + 5", [from])?;
                    for id in from..from + 5 {
                        tx.execute("INSERT INTO t VALUES (?1, randomblob(9000))", [id])?;
                    }
                    Ok(())
                })
                .unwrap();
            }
        }
        for (kind, size) in on_disk(dir.path()) {
            let most = most.entry(kind).or_default();
            *most = size.max(*most);
        }
        let now: u32 = node.status().databases.iter().map(|db| db.wal_frames).sum();
        laps += u32::from(now < std::mem::replace(&mut frames, now));
    }
    drop(reader);
    println!("{data} bytes of data: {most:?}");
    // With a VACUUM there is everything twice for a moment.
    for (kind, bound) in [("db", 2 * data), ("dw", 2 * data + PAGE), ("map", 16 * 2 * data / PAGE + 2 * PAGE)] {
        assert!(most[kind] <= bound, "{kind}: {} bytes, {bound} are allowed", most[kind]);
    }
    let status = until(&node, "all is checkpointed", |status| {
        let moved = status.databases.iter().all(|db| db.wal_frames == 0 && db.checkpointed == db.position);
        moved && status.log_bytes <= 1 << 20 && status.alarms.is_empty()
    });
    let end = on_disk(dir.path());
    println!("in the end {end:?}, {} bytes of log", status.log_bytes);
    // Log, WAL and what is left of it in nameless files; and the same files as for one database that was never written to.
    assert!(end["log"] <= 2 << 20 && end.get("nameless").is_none_or(|size| *size <= NAMELESS), "{end:?}");
    let mut kinds: Vec<&str> = end.keys().map(String::as_str).collect();
    kinds.retain(|kind| *kind != "nameless");
    assert_eq!(kinds, ["db", "dw", "log", "map"]);
    assert_eq!(std::fs::read_dir(dir.path().join("db")).unwrap().count(), 3);
}
