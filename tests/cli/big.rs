//! A database far larger than memory: what a node needs for it, and reads of it, does not depend on its size.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use shoaldb::Node;
use shoaldb_vfs::doublewrite::Plan;
use shoaldb_vfs::env::os::OsFs;
use shoaldb_vfs::files::{DatabaseFiles, names};
use shoaldb_vfs::genesis::Geometry;
use shoaldb_vfs::mapfile::{Checkpointed, Owner};
use shoaldb_vfs::page::{PageCount, PageHash, PageNo};

use crate::user::{LONG, Started, shoal, text, works, works_in_time};

/// Size of the large one: 10 GiB in pages of 4 KiB. Its hashes alone are 40 MiB.
const PAGES: u32 = 10 << 18;
/// What may be different about two processes that do the same.
const TOLERANCE: u64 = 8 << 20;

/// Ends a node of this process, and waits until its directory is free: processes that tests beside this one are just starting have
/// copies of what is open here, and of the lock, until they are the program that they shall be.
fn end(node: Node, data: &Path) {
    node.shutdown().unwrap();
    drop(node);
    let lock = std::fs::File::open(data.join("LOCK")).unwrap();
    let deadline = Instant::now() + LONG;
    while let Err(error) = lock.try_lock() {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // In words, since this one is copied as well.
    lock.unlock().unwrap();
}

/// A data directory with one small database, `app`.
fn small(dir: &Path) -> std::path::PathBuf {
    let data = dir.join("data");
    let node = Node::open(&data).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (7)")?)).unwrap();
    end(node, &data);
    data
}

/// Makes its files those of a database of `PAGES` pages at the same position: what was there, and then pages that nothing
/// refers to and that are holes of the file. So there are 10 GiB without a disk for them.
fn blow_up(data: &Path) {
    let node = Node::open(data).unwrap();
    let id = node.status().databases.iter().find(|database| database.name == "app").unwrap().id.0;
    let view = node.read_view("app").unwrap();
    let at = view.at();
    let mut pages: Vec<Vec<u8>> =
        (1..=at.size.0).map(|n| view.page(PageNo::new(n).unwrap()).unwrap().to_vec()).collect();
    drop(view);
    end(node, data);

    pages[0][28..32].copy_from_slice(&PAGES.to_be_bytes());
    let geometry = Geometry::default();
    let owner = Owner { database: id, generation: 1, page_size: geometry.page_size };
    let dir = data.join("db");
    for name in names(id, 1) {
        let _ = std::fs::remove_file(dir.join(name));
    }
    let before = at.position.0 - 1;
    let mut files =
        DatabaseFiles::create(Arc::new(OsFs), &dir, owner, geometry, shoaldb_vfs::transaction::Position(before))
            .unwrap();
    let zeros = vec![0; geometry.page_size.len()];
    let numbers = (1..=PAGES).map(|number| PageNo::new(number).unwrap());
    let hashes: Vec<PageHash> = numbers
        .zip(pages.iter().map(Vec::as_slice).chain(std::iter::repeat(zeros.as_slice())))
        .map(|(number, page)| PageHash::of(number, page))
        .collect();
    files.map().write_hashes(PageNo::FIRST, &hashes, "test").unwrap();
    let lock_page = geometry.page_size.lock_page().get();
    let counted = (1..).zip(&hashes).filter(|(number, _)| *number != lock_page);
    let checksum = counted.fold(PageHash::default(), |sum, (_, hash)| sum.toggle(*hash));
    let to = Checkpointed { position: at.position, size: PageCount(PAGES), checksum };
    let listed =
        (1..).zip(&hashes[..pages.len()]).map(|(number, hash)| (PageNo::new(number).unwrap(), *hash)).collect();
    let plan = Plan { from: shoaldb_vfs::transaction::Position(before), to, pages: listed };
    files
        .checkpoint(&plan, &mut |number, out| {
            out.extend_from_slice(&pages[number.get() as usize - 1]);
            Ok(())
        })
        .unwrap();
    files.main().set_len(u64::from(PAGES) * geometry.page_size.len() as u64, "test").unwrap();
}

/// What a life of a node took.
struct Took {
    /// Bytes of memory that are its own, in the end.
    memory: u64,
    /// Bytes that it read from files, from its start on.
    read: u64,
}

/// Starts a node, lets it read, write and checkpoint.
fn a_life(data: &str) -> Took {
    // Whatever it read by and by, of all that there is, would depend on how long it lives.
    let mut start = shoal(&["start", "--id", "1", "--data", data, "--listen", "127.0.0.1:0", "--scrub-bytes", "0"]);
    let node = Started::new(start.args(["--checkpoint-age", "100ms"]));
    node.wait_line("ready");
    works_in_time(&["health", "--data", data]);
    let position = || -> u64 {
        let status: serde_json::Value = serde_json::from_str(&works(&["status", "--json", "--data", data])).unwrap();
        status[0]["status"]["databases"][0]["checkpointed"].as_u64().unwrap()
    };
    let before = position();
    assert_eq!(works(&["sql", "app", "INSERT INTO t VALUES (8); SELECT sum(x) FROM t", "--data", data]), "15\n");
    let deadline = Instant::now() + LONG;
    while position() == before {
        assert!(Instant::now() < deadline, "no checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let memory = (kib("RssAnon:") + kib("RssShmem:")) << 10;
    let io = std::fs::read_to_string(format!("/proc/{}/io", node.id())).unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap();
    println!("{} KiB of its own, {} KiB read", memory >> 10, read >> 10);
    assert_eq!(node.terminate(), 0);
    Took { memory, read }
}

/// Bytes of the files of the log, which a start reads: how many of them were filled in advance is a matter of time.
fn of_log(data: &Path) -> u64 {
    let files = std::fs::read_dir(data.join("log")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// How long it takes depends on the machine; so what is compared is what it reads. Of the pages that nobody asks for that is
/// nothing, and of each page's hash its 16 bytes, once: they are added up when the node is ready.
#[test]
fn ten_gigabytes_take_no_more_memory_than_ten_kilobytes_and_only_their_hashes_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let data = small(dir.path());
    let usual = a_life(&text(&data));
    // The same row once more, so that both lives do the same.
    let node = Node::open(&data).unwrap();
    node.write("app", |tx| Ok(tx.execute("DELETE FROM t WHERE x = 8", [])?)).unwrap();
    end(node, &data);
    blow_up(&data);
    let log = of_log(&data);
    let large = a_life(&text(&data));
    assert!(large.memory < usual.memory + TOLERANCE, "{} bytes, {} for a small one", large.memory, usual.memory);
    let hashes = 16 * u64::from(PAGES);
    let most = usual.read + hashes + log + TOLERANCE;
    assert!(large.read < most, "{} bytes read, {} for a small one, {log} of log", large.read, usual.read);
    let node = Node::open(&data).unwrap();
    let status = node.status();
    assert_eq!((status.databases[0].pages, status.alarms.len()), (PAGES, 0), "{status:?}");
}
