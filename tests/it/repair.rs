//! Bytes that rot on one node: it stops serving that database, repairs it from a node with which a majority agrees, and serves
//! it again. Everything else goes on meanwhile.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use shoaldb::{Event, Node, Outcome, Status};

type Events = crossbeam_channel::Receiver<Event>;

use crate::cluster::{Cluster, LONG, administer, fill, quick, retry, table, until};
use crate::snapshots::{outrun, with_blobs};
use crate::wait::told;

const ROWS: i64 = 120;

/// Two databases with some hundred pages each, all of them in the main files.
fn filled(settings: fn(shoaldb::Builder) -> shoaldb::Builder) -> Cluster {
    fill_two(Cluster::start_with(3, settings))
}

fn fill_two(cluster: Cluster) -> Cluster {
    for db in ["app", "other"] {
        let created = cluster.write(db, |tx| {
            tx.execute_batch("CREATE TABLE b(id INTEGER PRIMARY KEY, n DEFAULT 0, v)")?;
            for _ in 0..ROWS {
                tx.execute("INSERT INTO b(v) VALUES (randomblob(3000))", [])?;
            }
            Ok(())
        });
        created.unwrap();
    }
    for node in cluster.running() {
        checkpointed(node);
    }
    cluster
}

/// All is in the main files, and an anchor knows of them: before that a start makes them anew from the log, whatever is wrong
/// with them.
fn checkpointed(node: &Node) {
    until(node, "all is in the main files", |status| {
        let done = |db: &shoaldb::DatabaseStatus| {
            db.checkpointed == db.position && db.wal_frames == 0 && status.anchored.0 >= db.id.0
        };
        status.databases.len() == 2 && status.databases.iter().all(done)
    });
}

fn scrubbed(builder: shoaldb::Builder) -> shoaldb::Builder {
    unscrubbed(builder).scrub_bytes(1 << 30)
}

fn unscrubbed(builder: shoaldb::Builder) -> shoaldb::Builder {
    builder
        .checkpoint_bytes(64 << 10)
        .checkpoint_age(std::time::Duration::from_millis(100))
        .scrub_bytes(0)
        .segment_bytes(256 << 10)
}

fn id_of(node: &Node, db: &str) -> u64 {
    node.status().databases.iter().find(|known| known.name == db).unwrap().id.0
}

fn path_of(cluster: &Cluster, node: u64, db: &str, generation: u64, end: &str) -> PathBuf {
    let id = id_of(cluster.leader(), db);
    cluster.dirs[node as usize - 1].path().join(format!("db/{id}-{generation}.{end}"))
}

fn flip(file: &File, at: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn flip_in(path: &Path, at: u64) {
    flip(&OpenOptions::new().read(true).write(true).open(path).unwrap(), at);
}

fn update(node: &Node, db: &str, row: i64) -> Result<(), shoaldb::Error> {
    node.write(db, |tx| {
        tx.execute("UPDATE b SET n = n + 1 WHERE id = ?1", [row])?;
        Ok(())
    })
}

/// Writes through whoever leads.
fn write(cluster: &Cluster, db: &str, row: i64) {
    retry(|| update(cluster.leader(), db, row)).unwrap();
}

/// Waits for the events of a repair, each once, and until nothing needs attention; how many bytes came for it.
fn repaired(node: &Node, events: &Events, database: &str) -> u64 {
    let started = Instant::now();
    let mut found = 0;
    let bytes = loop {
        match events.try_recv() {
            Ok(Event::DivergenceFound { database: named, .. }) => {
                assert_eq!(named, database);
                found += 1;
            }
            Ok(Event::DivergenceRepaired { database: named, source, bytes }) => {
                assert!(named == database && source.0 != node.id() as u16, "{named} from {source}");
                break bytes;
            }
            _ => assert!(started.elapsed() < LONG, "no repair: {:#?}", node.status()),
        }
        std::thread::yield_now();
    };
    assert_eq!(found, 1);
    until(node, "nothing needs attention", |status| status.alarms.is_empty() && status.snapshot.is_none());
    assert!(!events.try_iter().any(|event| matches!(event, Event::DivergenceFound { .. })));
    bytes
}

/// Nobody but the node that rotted was suspected.
fn unsuspected(cluster: &Cluster, events: &[(u64, Events)], victim: u64) {
    for (id, events) in events.iter().filter(|(id, _)| *id != victim) {
        // Leadership may have moved just now: first it must be known who leads.
        until(cluster.node(*id), "nothing needs attention", |status| status.alarms.is_empty());
        let found = events.try_iter().find(|event| matches!(event, Event::DivergenceFound { .. }));
        assert!(found.is_none(), "node {id}: {found:?}");
    }
}

fn all_events(cluster: &Cluster) -> Vec<(u64, Events)> {
    cluster.running().map(|node| (node.id(), node.events())).collect()
}

/// Shows INV-39. Writes go on, the other database is served all the time, and only what is damaged travels.
#[test]
fn a_follower_whose_page_or_hash_rots_repairs_that_database_and_nothing_else() {
    for end in ["db", "map"] {
        let cluster = filled(scrubbed);
        let victim = cluster.follower().id();
        let node = cluster.node(victim);
        let events = all_events(&cluster);
        let mine = &events.iter().find(|(id, _)| *id == victim).unwrap().1;
        let other = node.connect("other").unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut row = 0;
                while !over.load(Ordering::Relaxed) {
                    row += 1;
                    write(&cluster, "app", row % 3 + 1);
                    write(&cluster, "other", row % 3 + 1);
                }
                row
            });
            let _over = Over(&over);
            // These are a byte of page 57 and one of its hash.
            let at = if end == "db" { 57 * 4096 - 1000 } else { 4096 + 56 * 16 + 3 };
            flip_in(&path_of(&cluster, victim, "app", 1, end), at);
            let rows = || other.query_row("SELECT count(*) FROM b", [], |row| row.get::<_, i64>(0));
            assert_eq!(rows().unwrap(), ROWS);
            let bytes = repaired(node, mine, "app");
            assert!(bytes < 150_000, "{bytes} bytes came for one page");
            assert_eq!(rows().unwrap(), ROWS);
            over.store(true, Ordering::Relaxed);
            assert!(writer.join().unwrap() > 0);
        });
        unsuspected(&cluster, &events, victim);
        for db in ["app", "other"] {
            cluster.assert_equal(db);
        }
        assert!(
            path_of(&cluster, victim, "app", 2, "db").exists() && !path_of(&cluster, victim, "app", 1, "db").exists()
        );
        assert!(path_of(&cluster, victim, "other", 1, "db").exists());
    }
}

/// Ends a writer, also when an assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What was repaired is what a start finds.
#[test]
fn a_repaired_database_outlives_its_node_and_may_rot_again() {
    let mut cluster = filled(scrubbed);
    let victim = cluster.follower().id();
    for generation in 1..=2 {
        let events = cluster.node(victim).events();
        flip_in(&path_of(&cluster, victim, "app", generation, "db"), 33 * 4096 + 17);
        repaired(cluster.node(victim), &events, "app");
        write(&cluster, "app", 5);
        cluster.assert_equal("app");
        cluster.nodes[victim as usize - 1] = None;
        write(&cluster, "app", 6);
        cluster.start_node(victim);
        cluster.assert_equal("app");
        checkpointed(cluster.node(victim));
    }
}

#[test]
fn a_leader_whose_page_rots_hands_over_and_repairs() {
    let cluster = filled(scrubbed);
    let victim = cluster.leader().id();
    let events = all_events(&cluster);
    let mine = &events.iter().find(|(id, _)| *id == victim).unwrap().1;
    let leaders = cluster.node(victim).events();
    flip_in(&path_of(&cluster, victim, "app", 1, "db"), 80 * 4096 + 1);
    repaired(cluster.node(victim), mine, "app");
    let handed_over =
        |event: &Event| matches!(event, Event::LeaderChanged { leader: Some(to), .. } if u64::from(to.0) != victim);
    told(&leaders, handed_over);
    write(&cluster, "app", 1);
    unsuspected(&cluster, &events, victim);
    cluster.assert_equal("app");
}

/// Shows INV-40. A rotten hash on the leader would get into the checksums that it proposes, and every other copy would be taken for the wrong
/// one. SQLite does not read the page again: only the look at what a transaction is built on can find it.
#[test]
fn a_hash_that_rots_on_the_leader_convicts_nobody_else() {
    let cluster = fill_two(Cluster::start_calm(3, unscrubbed));
    let victim = cluster.leader().id();
    let node = cluster.node(victim);
    let db = node.connect("app").unwrap();
    // Every page was looked at and found to be what its hash says.
    assert_eq!(db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
    let events = all_events(&cluster);
    let map = path_of(&cluster, victim, "app", 1, "map");
    for page in 1..90 {
        flip_in(&map, 4096 + page * 16 + 9);
    }
    let error = update(node, "app", 9).unwrap_err();
    assert!(error.is_corrupt() && error.outcome() != Some(Outcome::Unknown), "{error}");
    let mine = &events.iter().find(|(id, _)| *id == victim).unwrap().1;
    repaired(node, mine, "app");
    for row in 1..=ROWS {
        write(&cluster, "app", row);
    }
    unsuspected(&cluster, &events, victim);
    cluster.assert_equal("app");
}

/// Shows INV-10 and INV-39. Nobody reads the page there or looks after it, until a transaction changes it: what this copy would have
/// then is not what the others have.
#[test]
fn a_hash_that_rots_on_a_follower_is_found_by_the_transaction_that_changes_its_page() {
    const ROW: i64 = 57;
    let mut cluster = fill_two(Cluster::start_calm(3, unscrubbed));
    let leader = cluster.leader().clone();
    let victim = cluster.follower().id();
    let node = cluster.node(victim).clone();
    let third = (1..=3).find(|id| ![leader.id(), victim].contains(id)).unwrap();
    let events = all_events(&cluster);
    let mine = &events.iter().find(|(id, _)| *id == victim).unwrap().1;
    let heard = node.events();
    let files = |generation| path_of(&cluster, victim, "app", generation, "db");
    let (main, mended) = (files(1), files(2));
    let (map, other) = (path_of(&cluster, victim, "app", 1, "map"), path_of(&cluster, victim, "other", 1, "db"));
    // A majority agrees about the right copy only with the third node: until it is back nothing is repaired.
    cluster.nodes[third as usize - 1].take().unwrap().shutdown_at_once();

    let of_row = |db: &shoaldb::rusqlite::Connection, what: &str, row: i64| {
        db.query_row(&format!("SELECT {what} FROM b WHERE id = ?1"), [row], |row| row.get::<_, i64>(0))
    };
    let value = |db: &shoaldb::rusqlite::Connection| {
        db.query_row("SELECT v FROM b WHERE id = ?1", [ROW], |row| row.get::<_, Vec<u8>>(0)).unwrap()
    };
    let value = value(&leader.connect("app").unwrap());
    let at = std::fs::read(&main).unwrap().windows(value.len()).position(|bytes| bytes == value).unwrap();
    flip_in(&map, 4096 + at as u64 / 4096 * 16 + 5);
    let reader = node.connect("app").unwrap();
    // On other pages.
    write(&cluster, "app", 1);
    assert!(node.wait_applied(leader.checksum("app").unwrap().0, LONG));
    assert_eq!(of_row(&reader, "n", 1).unwrap(), 1);

    write(&cluster, "app", ROW);
    let words =
        |what: &str| what.starts_with("database app at ") && what.contains("checksum after the transaction: expected ");
    told(
        &heard,
        |event| matches!(event, Event::DivergenceFound { database, what } if database == "app" && words(what)),
    );
    let code = |error: shoaldb::Error| {
        error.sqlite().and_then(shoaldb::rusqlite::Error::sqlite_error).map(|error| error.extended_code)
    };
    let refused = node.connect("app").unwrap_err();
    assert!(refused.is_corrupt(), "{refused}");
    assert_eq!(code(refused), Some(shoaldb::error::DAMAGED));
    assert_eq!(code(of_row(&reader, "n", 1).unwrap_err().into()), Some(shoaldb::error::DAMAGED));
    // The log goes on, and with it what is whole.
    for db in ["other", "app"] {
        write(&cluster, db, 2);
    }
    assert!(node.wait_applied(leader.checksum("app").unwrap().0, LONG));
    assert_eq!(of_row(&node.connect("other").unwrap(), "n", 2).unwrap(), 1);
    assert_eq!(node.checksum("other").unwrap(), leader.checksum("other").unwrap());
    assert!(node.connect("app").is_err() && !mended.exists(), "{:#?}", node.status());

    cluster.start_node(third);
    let bytes = repaired(&node, mine, "app");
    assert!(bytes < 150_000, "{bytes} bytes came for one page");
    for row in [1, 2, ROW] {
        assert_eq!(of_row(&reader, "n", row).unwrap(), 1);
    }
    write(&cluster, "app", ROW);
    unsuspected(&cluster, &events, victim);
    for db in ["app", "other"] {
        cluster.assert_equal(db);
    }
    assert!(mended.exists() && !main.exists() && other.exists());
}

/// Bytes that rot while their node, which followed or led, is stopped: files that cannot be opened at all, a page, a hash, and a
/// double-write that is the only one who could end a checkpoint.
#[test]
fn what_rots_while_a_node_is_stopped_is_repaired_after_its_start() {
    let mut cluster = filled(scrubbed);
    let damages = ["main file cut off", "map without a head", "main file gone", "page", "hash", "double-write"];
    let mut generations = [1; 3];
    for (damage, leads) in damages.into_iter().flat_map(|damage| [(damage, false), (damage, true)]) {
        let victim = if leads { cluster.leader().id() } else { cluster.follower().id() };
        let generation = generations[victim as usize - 1];
        generations[victim as usize - 1] += 1;
        let what = format!("{damage}, led {leads}");
        for row in 1..20 {
            write(&cluster, "app", row);
        }
        cluster.assert_equal("app");
        checkpointed(cluster.node(victim));
        let path = |end| path_of(&cluster, victim, "app", generation, end);
        let (main, map, doublewrite) = (path("db"), path("map"), path("dw"));
        cluster.nodes[victim as usize - 1] = None;
        let cut_off = |path: &Path, len| OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
        match damage {
            "main file cut off" => cut_off(&main, 4096 * 50),
            "map without a head" => flip_in(&map, 20),
            "main file gone" => std::fs::remove_file(&main).unwrap(),
            "page" => flip_in(&main, 4096 * 90),
            "hash" => flip_in(&map, 4096 + 16 * 30),
            _ => {
                // The double-write would end that checkpoint, and is rotten, too.
                lose_newest_record(&map);
                flip_in(&doublewrite, 4096 + 100);
            }
        }
        cluster.start_node(victim);
        let node = cluster.node(victim);
        let mine = node.events();
        let started = Instant::now();
        while !path_of(&cluster, victim, "app", generation + 1, "db").exists() || !node.status().alarms.is_empty() {
            let there = || std::fs::read_dir(main.parent().unwrap()).unwrap().map(|file| file.unwrap().file_name());
            let files = || there().collect::<Vec<_>>();
            let told = || mine.try_iter().collect::<Vec<_>>();
            assert!(started.elapsed() < LONG, "{what}: {:?}, {:?}, {:#?}", files(), told(), node.status());
            std::thread::yield_now();
        }
        assert!(mine.try_iter().all(|event| !matches!(event, Event::Removed { .. })));
        write(&cluster, "app", 3);
        cluster.assert_equal("app");
        cluster.assert_equal("other");
    }
}

/// The record of the last checkpoint is lost, as if power had gone before it was written: only the double-write could end it then.
fn lose_newest_record(map: &Path) {
    let bytes = std::fs::read(map).unwrap();
    let sequence = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let newest = if sequence(512) > sequence(1024) { 512 } else { 1024 };
    flip_in(map, newest as u64 + 10);
}

/// A node that runs reads nothing of a double-write, whose only use is to end a checkpoint after a crash, and writes the next one over
/// it. So on a follower and on the leader nothing comes of a rotten one: nobody is suspected, nothing wrong is served, and
/// checkpoints go on. A start has no use for it either, but at one moment: after a crash in the middle of a
/// checkpoint. Then it finds the mixture that this left, and the database is repaired. Shows INV-39.
#[test]
fn a_double_write_that_rots_under_a_running_node_matters_only_to_a_start_in_the_middle_of_a_checkpoint() {
    for leads in [false, true] {
        let mut cluster = filled(scrubbed);
        let victim = if leads { cluster.leader().id() } else { cluster.follower().id() };
        let events = all_events(&cluster);
        let path = |end| path_of(&cluster, victim, "app", 1, end);
        let (main, map, doublewrite) = (path("db"), path("map"), path("dw"));
        // Its head, its list, and a page.
        let rot = || {
            let file = OpenOptions::new().write(true).open(&doublewrite).unwrap();
            [20, 88 + 10, 4096 + 100].into_iter().for_each(|at| file.write_all_at(&[0xa5; 8], at).unwrap());
        };
        for row in 1..20 {
            rot();
            write(&cluster, "app", row);
        }
        checkpointed(cluster.node(victim));
        cluster.assert_equal("app");
        // Every page of every copy is read and compared.
        let door = cluster.list[victim as usize - 1].address.clone();
        let client = shoaldb::client::Client::new(shoaldb::client::Doors::Endpoints(vec![door]));
        let verified = client.verify(Some("app"), true).unwrap();
        assert!(verified.len() == 1 && verified[0].same, "{verified:#?}");

        rot();
        cluster.nodes[victim as usize - 1] = None;
        cluster.start_node(victim);
        cluster.assert_equal("app");
        for row in 1..20 {
            write(&cluster, "app", row);
        }
        cluster.assert_equal("app");
        checkpointed(cluster.node(victim));
        unsuspected(&cluster, &events, 0);
        assert!(main.exists(), "nothing was to be repaired");

        rot();
        cluster.nodes[victim as usize - 1] = None;
        lose_newest_record(&map);
        cluster.start_node(victim);
        let repaired = |status: &Status| status.alarms.is_empty() && !main.exists();
        until(cluster.node(victim), "it is repaired", repaired);
        cluster.assert_equal("app");
        cluster.assert_equal("other");
    }
}

/// The alarm told people to drop the database, and the learner had all of it.
#[test]
fn a_page_that_rots_on_the_only_voter_is_repaired_from_the_learner_that_the_alarm_names() {
    let cluster = with_learner();
    let node = cluster.node(1);
    flip_in(&path_of(&cluster, 1, "app", 1, "db"), 4096 * 60 + 5);
    let promote = "promote node 2 (`shoal member promote 2`)";
    let status = until(node, "an alarm", |status| !status.alarms.is_empty());
    assert!(status.alarms.iter().all(|alarm| alarm.contains(promote)), "{:?}", status.alarms);
    administer(|| node.promote(2)).unwrap();
    until(node, "it is repaired", |status| status.voters.len() == 2 && status.alarms.is_empty());
    cluster.assert_equal("app");
}

/// The nameless files in which a node of this process keeps pages of its WALs. They end with it: a node that is stopped has none.
fn scratch_files(dir: &Path) -> Vec<File> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let target = std::fs::read_link(&path).ok()?;
        let named = target.to_str()?;
        (target.starts_with(dir) && named.ends_with("(deleted)")).then_some((target, path))
    });
    // Each once, and listed before any is opened: a list that is read on shows what was opened meanwhile, too, and a byte that is
    // flipped twice is whole.
    let each: BTreeMap<PathBuf, PathBuf> = all.collect();
    each.into_values().map(|path| OpenOptions::new().read(true).write(true).open(path).unwrap()).collect()
}

/// Pages of a WAL that are outside of memory: at their first use, and when a checkpoint would move them. On a follower, and on
/// the leader, which hands over.
#[test]
fn a_wal_page_that_rots_outside_of_memory_is_not_shown_and_not_checkpointed() {
    for (leads, read) in [(false, true), (false, false), (true, true), (true, false)] {
        let cluster = Cluster::start_with(3, |builder| {
            builder.wal_limit(0).checkpoint_bytes(1 << 30).checkpoint_age(std::time::Duration::from_secs(3600))
        });
        // A member that comes for the first time changes the catalogue, and that asks for a checkpoint of every database that
        // is older. Here everything is to stay in the WAL.
        for node in cluster.running() {
            until(node, "all have come", |status| status.members.iter().all(|member| member.incarnation.is_some()));
        }
        let created = cluster.write("app", |tx| {
            tx.execute_batch("CREATE TABLE b(id INTEGER PRIMARY KEY, n DEFAULT 0, v)")?;
            for _ in 0..ROWS {
                tx.execute("INSERT INTO b(v) VALUES (randomblob(3000))", [])?;
            }
            Ok(())
        });
        created.unwrap();
        cluster.assert_equal("app");
        let victim = if leads { cluster.leader().id() } else { cluster.follower().id() };
        let node = cluster.node(victim);
        let events = all_events(&cluster);
        let mine = &events.iter().find(|(id, _)| *id == victim).unwrap().1;
        let files = scratch_files(&cluster.dirs[victim as usize - 1].path().canonicalize().unwrap());
        assert!(!files.is_empty());
        for file in &files {
            let pages = file.metadata().unwrap().len() / 4096;
            (0..pages).for_each(|page| flip(file, page * 4096 + 2000));
        }
        if read {
            let db = node.connect("app").unwrap();
            let sum = db.query_row("SELECT sum(length(v)) FROM b", [], |row| row.get::<_, i64>(0));
            assert!(shoaldb::Error::from(sum.unwrap_err()).is_corrupt());
        } else {
            // Whoever reads all of it back has it in the main file before.
            let client = shoaldb::client::Client::new(shoaldb::client::Doors::Endpoints(vec![
                cluster.list[victim as usize - 1].address.clone(),
            ]));
            let _ = client.verify(Some("app"), true);
        }
        repaired(node, mine, "app");
        unsuspected(&cluster, &events, victim);
        cluster.assert_equal("app");
    }
}

/// A leader that lends pages of a WAL that rotted: whoever fetches hears of it, and so does the leader itself. It did not, and
/// with the gate shut by the view that was lent no checkpoint found it either: so nobody got a snapshot from it, for good.
#[test]
fn a_wal_page_that_rots_on_a_leader_that_lends_it_is_found_and_repaired_and_the_other_gets_its_snapshot() {
    let mut cluster = Cluster::start_calm(3, |builder| quick(builder).wal_limit(0));
    table(&cluster);
    with_blobs(|| cluster.leader(), "app");
    cluster.assert_equal("app");
    let away = cluster.follower().id();
    let seen = cluster.node(away).status().last;
    cluster.nodes[away as usize - 1] = None;
    outrun(&cluster, "app", seen.0);
    let victim = cluster.leader().id();
    let node = cluster.node(victim);
    // A view that holds a log of four times that is closed.
    until(node, "its log is short again", |status| status.log_bytes <= 2 * status.log_limit);
    // What is written from here on stays in the WAL.
    let gate = node.read_view("app").unwrap();
    fill(|| node, "app", 10);
    let events = node.events();
    let files = scratch_files(&cluster.dirs[victim as usize - 1].path().canonicalize().unwrap());
    for file in &files {
        let pages = file.metadata().unwrap().len() / 4096;
        (0..pages).for_each(|page| flip(file, page * 4096 + 2000));
    }
    assert!(gate.is_open(), "{:#?}", node.status());
    cluster.start_node(away);
    repaired(cluster.node(victim), &events, "app");
    cluster.assert_equal("app");
}

/// There is nobody to ask: what is whole is served, and a person is told.
#[test]
fn a_node_alone_serves_what_is_whole_and_says_that_nobody_can_repair_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let node = scrubbed(Node::builder(1, dir.path())).start().unwrap();
        node.wait_leader(LONG).unwrap();
        node
    };
    let node = start();
    node.write("app", |tx| {
        tx.execute_batch("CREATE TABLE b(id INTEGER PRIMARY KEY, n DEFAULT 0, v)")?;
        for _ in 0..ROWS {
            tx.execute("INSERT INTO b(v) VALUES (randomblob(3000))", [])?;
        }
        Ok(())
    })
    .unwrap();
    until(&node, "all is in the main file", |status| status.databases[0].checkpointed == status.databases[0].position);
    let id = id_of(&node, "app");
    flip_in(&dir.path().join(format!("db/{id}-1.db")), 4096 * 60 + 5);
    let alarmed = |status: &Status| status.alarms.iter().any(|alarm| alarm.contains("no other node to repair"));
    until(&node, "an alarm", alarmed);
    let db = node.connect("app").unwrap();
    assert_eq!(db.query_row("SELECT length(v) FROM b WHERE id = 2", [], |row| row.get::<_, i64>(0)).unwrap(), 3000);
    let all = db.query_row("SELECT sum(length(v)) FROM b", [], |row| row.get::<_, i64>(0));
    assert!(shoaldb::Error::from(all.unwrap_err()).is_corrupt());
}

/// What the words say is done: the learner's copy is saved, and is the database again. They said that there is no other node.
#[test]
fn files_of_the_only_voter_that_cannot_be_opened_are_given_back_by_a_learner() {
    let mut cluster = with_learner();
    let node = cluster.node(1);
    let file = path_of(&cluster, 1, "app", 1, "db");
    until(node, "an anchor knows of it", |status| status.anchored.0 >= status.databases[0].id.0);
    cluster.nodes[0] = None;
    std::fs::remove_file(file).unwrap();
    cluster.start_node(1);
    let node = cluster.leader();
    let save = "take a backup of the database on node 2 before you drop it, and restore that one";
    let status = until(node, "two alarms", |status| {
        let about = |words: &str| status.alarms.iter().any(|alarm| alarm.contains(words));
        about("it is not served on this node") && about("is not repaired yet")
    });
    assert!(status.alarms.iter().all(|alarm| alarm.contains(save)), "{:?}", status.alarms);
    let refused = node.connect("app").unwrap_err().to_string();
    assert!(refused.contains(save), "{refused}");
    let out = tempfile::tempdir().unwrap();
    let saved = out.path().join("app.db");
    cluster.node(2).backup("app", &saved).unwrap();
    node.drop_database("app").unwrap();
    node.restore("app", &saved).unwrap();
    until(node, "nothing needs attention", |status| status.alarms.is_empty());
    cluster.assert_equal("app");
    let rows =
        |tx: &shoaldb::rusqlite::Connection| tx.query_row("SELECT count(*) FROM b", [], |row| row.get::<_, i64>(0));
    assert_eq!(rows(&node.connect("app").unwrap()).unwrap(), ROWS);
}

/// One voter, and a learner that has all of it.
fn with_learner() -> Cluster {
    let mut cluster = Cluster::start_with(1, scrubbed);
    cluster
        .leader()
        .write("app", |tx| {
            tx.execute_batch("CREATE TABLE b(id INTEGER PRIMARY KEY, n DEFAULT 0, v)")?;
            for _ in 0..ROWS {
                tx.execute("INSERT INTO b(v) VALUES (randomblob(3000))", [])?;
            }
            Ok(())
        })
        .unwrap();
    cluster.prepare_more(1);
    administer(|| cluster.leader().add_learner(cluster.list[1].clone())).unwrap();
    let door = cluster.list[0].address.clone();
    cluster.nodes[1] = Some(cluster.builder(2).bootstrap([]).join([door]).start().unwrap());
    until(cluster.leader(), "the learner has caught up", |status| {
        status.peers.iter().any(|peer| peer.node.0 == 2 && peer.active && peer.acknowledged == status.committed)
    });
    until(cluster.node(1), "all is in the main file", |status| {
        status.databases.iter().all(|db| db.checkpointed == db.position && db.wal_frames == 0)
    });
    cluster.assert_equal("app");
    cluster
}
