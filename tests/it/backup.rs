//! A database out into a plain file, and any SQLite file in.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

use rusqlite::Connection;
use shoaldb::{CreateOptions, ErrorKind, Node, Outcome, Phase, Progress, rusqlite};
use tempfile::TempDir;

use crate::cluster::{Cluster, LONG, PartsHeld, administer, count};

struct One {
    dir: TempDir,
    node: Node,
}

fn one() -> One {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path().join("data")).unwrap();
    One { dir, node }
}

impl One {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Names beside the data directory.
    fn files(&self) -> Vec<String> {
        let list = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "data");
        names.sort_unstable();
        names
    }
}

/// Everything in a database: its schema, and every row of every table.
fn content(db: &Connection) -> Vec<String> {
    let mut names = db.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name").unwrap();
    let schema: Vec<(String, Option<String>)> =
        names.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    let mut all = Vec::new();
    for (name, sql) in schema {
        let sql = sql.unwrap_or_default();
        let is_table = sql.starts_with("CREATE TABLE");
        all.push(sql);
        if is_table {
            let mut select = db.prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
            let columns = select.column_count();
            let rows = select.query_map([], |row| {
                (0..columns).map(|at| row.get_ref(at).map(|value| format!("{value:?}"))).collect::<Result<Vec<_>, _>>()
            });
            all.extend(rows.unwrap().map(|row| row.unwrap().join("|")));
        }
    }
    all
}

fn pragma(db: &Connection, name: &str) -> String {
    db.query_row(&format!("PRAGMA {name}"), [], |row| {
        row.get_ref(0).map(|value| match value {
            rusqlite::types::ValueRef::Integer(number) => number.to_string(),
            other => other.as_str().unwrap().to_string(),
        })
    })
    .unwrap()
}

fn file(path: &Path, before: &str, rows: i64) -> Connection {
    let db = Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "{before}; CREATE TABLE t(x INTEGER PRIMARY KEY, v TEXT, w BLOB); CREATE INDEX i ON t(v)"
    ))
    .unwrap();
    fill(&db, rows);
    db
}

fn fill(db: &Connection, rows: i64) {
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
         INSERT INTO t SELECT NULL, 'grün ' || i, randomblob(i % 700) FROM n",
        [rows],
    )
    .unwrap();
}

/// What a stock SQLite finds in the file, in a journal mode that any program can open it in.
fn plain(path: &Path) -> Connection {
    let header = std::fs::read(path).unwrap();
    assert_eq!(&header[18..20], [1, 1], "a file that is handed around is not in WAL mode");
    let db = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    assert_eq!(pragma(&db, "integrity_check"), "ok");
    assert_eq!(pragma(&db, "journal_mode"), "delete");
    db
}

fn round_trip(one: &One, source: &Path, name: &str) {
    let bytes = std::fs::read(source).unwrap();
    one.node.restore(name, source).unwrap();
    assert_eq!(std::fs::read(source).unwrap(), bytes, "the file is not changed");
    let out = one.path(&format!("{name}.out"));
    one.node.backup(name, &out).unwrap();
    let (before, here, after) = (Connection::open(source).unwrap(), one.node.connect(name).unwrap(), plain(&out));
    let expected = content(&before);
    assert_eq!(content(&here), expected, "{name}");
    assert_eq!(content(&after), expected, "{name}");
    for what in ["page_size", "encoding", "auto_vacuum", "user_version", "application_id", "page_count"] {
        assert_eq!(pragma(&after, what), pragma(&before, what), "{name}: {what}");
        assert_eq!(pragma(&here, what), pragma(&before, what), "{name}: {what}");
    }
    // And it is a database like any other from then on.
    here.execute_batch("CREATE TABLE later(x); INSERT INTO later VALUES (1)").unwrap();
    assert_eq!(pragma(&here, "integrity_check"), "ok");
}

#[test]
fn any_file_comes_in_and_goes_out_as_it_was() {
    let one = one();
    let kinds = [
        ("512", "PRAGMA page_size = 512"),
        ("4096", "PRAGMA page_size = 4096; PRAGMA user_version = 7; PRAGMA application_id = 77"),
        ("65536", "PRAGMA page_size = 65536"),
        ("utf16le", "PRAGMA encoding = 'UTF-16le'"),
        ("utf16be", "PRAGMA encoding = 'UTF-16be'; PRAGMA page_size = 1024"),
        ("full", "PRAGMA auto_vacuum = FULL"),
        ("incremental", "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA page_size = 8192"),
    ];
    for (name, before) in kinds {
        let path = one.path(name);
        file(&path, before, 900).execute_batch("DELETE FROM t WHERE x % 3 = 0").unwrap();
        round_trip(&one, &path, name);
    }
    // Without a single page, without a table, and with a table that has no row.
    for (name, sql) in [("nothing", ""), ("tableless", "PRAGMA user_version = 3"), ("rowless", "CREATE TABLE t(x)")] {
        let path = one.path(name);
        std::fs::write(&path, "").unwrap();
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        one.node.restore(name, &path).unwrap();
        let out = one.path(&format!("{name}.out"));
        one.node.backup(name, &out).unwrap();
        assert_eq!(content(&plain(&out)), content(&Connection::open(&path).unwrap()), "{name}");
    }
    let names = one.files();
    assert!(!names.iter().any(|name| name.contains(".new-") || name.ends_with("-journal")), "{names:?}");
}

/// The file that people know. Set `SHOAL_TESTDATA` to the folder that has it.
#[test]
fn a_real_file_comes_in_and_goes_out_as_it_was() {
    let Ok(dir) = std::env::var("SHOAL_TESTDATA") else {
        assert!(std::env::var_os("CI").is_none(), "SHOAL_TESTDATA must be set in CI");
        // Not `eprintln!`: what that says of a test that passes is not shown.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: SHOAL_TESTDATA is not set\n");
        return;
    };
    let one = one();
    let copy = one.path("chinook.db");
    std::fs::copy(Path::new(&dir).join("chinook.db"), &copy).unwrap();
    round_trip(&one, &copy, "chinook");
}

#[test]
fn what_is_only_in_the_wal_of_a_file_comes_too() {
    let one = one();
    let path = one.path("live");
    // The writer stays: nothing of the WAL is in the main file.
    let writer = file(&path, "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0", 400);
    assert!(std::fs::metadata(one.path("live-wal")).unwrap().len() > 0);
    one.node.restore("app", &path).unwrap();
    let db = one.node.connect("app").unwrap();
    assert_eq!(content(&db), content(&writer));
    // What is not committed there is not in it.
    writer.execute_batch("BEGIN; DELETE FROM t").unwrap();
    one.node.restore("app", &path).unwrap();
    assert_eq!(count(&db), 400);
    drop(writer);
    // Closed properly, but still a file in WAL mode; nothing is left beside it.
    assert!(!one.path("live-wal").exists());
    let bytes = std::fs::read(&path).unwrap();
    one.node.restore("app", &path).unwrap();
    assert_eq!(count(&db), 400);
    assert_eq!(one.files(), ["live"]);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);

    // Left behind by a program that was killed: the WAL, and nothing else.
    let writer = file(&one.path("first"), "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0", 300);
    for end in ["", "-wal"] {
        std::fs::copy(one.path(&format!("first{end}")), one.path(&format!("left{end}"))).unwrap();
    }
    let wal = std::fs::read(one.path("left-wal")).unwrap();
    one.node.restore("left", one.path("left")).unwrap();
    assert_eq!(std::fs::read(one.path("left-wal")).unwrap(), wal, "it is left to its program");
    assert_eq!(content(&one.node.connect("left").unwrap()), content(&writer));
}

#[test]
fn a_damaged_file_is_refused_before_anything_changes() {
    let one = one();
    let good = one.path("good");
    drop(file(&good, "PRAGMA page_size = 1024", 2000));
    let bytes = std::fs::read(&good).unwrap();
    one.node.connect("app").unwrap().execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    let before = one.node.checksum("app").unwrap();
    let flipped = |page: usize| {
        let mut bytes = bytes.clone();
        bytes[page * 1024..(page + 1) * 1024].iter_mut().for_each(|byte| *byte ^= 0xff);
        bytes
    };
    let random = {
        // As an encrypted file looks: nothing repeats, nothing is known.
        let db = Connection::open_in_memory().unwrap();
        db.query_row("SELECT randomblob(40960)", [], |row| row.get::<_, Vec<u8>>(0)).unwrap()
    };
    let mut of_another_time = bytes.clone();
    of_another_time[18..20].copy_from_slice(&[9, 9]);
    let mut no_size = bytes.clone();
    no_size[16..18].copy_from_slice(&[0, 0]);
    let kinds: [(&str, Vec<u8>, &str); 10] = [
        ("a page", flipped(20), "damaged"),
        ("the root of the schema", flipped(0), "not a SQLite database"),
        ("the last page", flipped(bytes.len() / 1024 - 1), "damaged"),
        ("an end within a page", bytes[..bytes.len() - 100].to_vec(), "truncated"),
        ("an end between pages", bytes[..bytes.len() / 1024 / 2 * 1024].to_vec(), "damaged"),
        ("half a header", bytes[..50].to_vec(), "not a SQLite database"),
        ("random bytes", random, "or an encrypted one"),
        ("text", b"CREATE TABLE t(x);\n".repeat(100), "not a SQLite database"),
        ("a later format", of_another_time, "damaged"),
        ("no page size", no_size, "damaged"),
    ];
    for (what, bytes, word) in kinds {
        let path = one.path("bad");
        std::fs::write(&path, &bytes).unwrap();
        for name in ["app", "new"] {
            let error = one.node.restore(name, &path).unwrap_err();
            assert!(error.is_corrupt(), "{what}: {error}");
            let text = error.to_string();
            assert!(
                text.contains(word) && text.contains("bad") && text.contains("nothing was changed"),
                "{what}: {text}"
            );
        }
    }
    // A backup that was not written. For SQLite it is an empty database, and would leave nothing of what is there.
    std::fs::write(one.path("bad"), "").unwrap();
    let error = one.node.restore("app", one.path("bad")).unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains("0 bytes"), "{error}");
    let error = one.node.restore("app", one.path("none")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(one.node.restore("app", one.dir.path()).is_err());
    // Whoever wrote it was killed in a commit.
    let hot = one.path("hot");
    let writer = file(&hot, "PRAGMA journal_mode = delete", 10);
    writer.execute_batch("PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN IMMEDIATE").unwrap();
    writer.execute("UPDATE t SET w = randomblob(100000)", []).unwrap();
    std::fs::copy(&hot, one.path("killed")).unwrap();
    std::fs::copy(one.path("hot-journal"), one.path("killed-journal")).unwrap();
    let error = one.node.restore("app", one.path("killed")).unwrap_err();
    assert!(error.kind() == ErrorKind::BadInput && error.to_string().contains("with sqlite3"), "{error}");
    assert_eq!(one.node.checksum("app").unwrap(), before);
    assert_eq!(one.node.databases().unwrap(), ["app"]);
    one.node.restore("new", &good).unwrap();
}

/// Every page is one that SQLite can read, and the tree of the index is in order: only that it says something else than its table.
#[test]
fn an_index_that_does_not_agree_with_its_table_is_refused() {
    let one = one();
    let path = one.path("bad");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "PRAGMA page_size = 1024; CREATE TABLE t(x INTEGER PRIMARY KEY, v TEXT UNIQUE);
         WITH RECURSIVE n(i) AS (SELECT 10000 UNION ALL SELECT i + 2 FROM n WHERE i < 12000)
         INSERT INTO t SELECT NULL, 'key ' || i FROM n",
    )
    .unwrap();
    drop(db);
    let mut bytes = std::fs::read(&path).unwrap();
    let leaf_of_an_index = |page: &&mut [u8]| page[0] == 10 && page.windows(9).any(|key| key == b"key 10500");
    let page = bytes.chunks_mut(1024).find(leaf_of_an_index).unwrap();
    let at = page.windows(9).position(|key| key == b"key 10500").unwrap();
    page[at + 8] = b'1';
    std::fs::write(&path, &bytes).unwrap();
    let quick = Connection::open(&path).unwrap();
    assert_eq!(pragma(&quick, "quick_check"), "ok", "no other check would find it");
    drop(quick);
    one.node.connect("app").unwrap().execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    let before = one.node.checksum("app").unwrap();
    for name in ["app", "new"] {
        let error = one.node.restore(name, &path).unwrap_err();
        assert!(error.is_corrupt(), "{error}");
        let text = error.to_string();
        assert!(["bad", "missing from index", "nothing was changed"].iter().all(|word| text.contains(word)), "{text}");
    }
    assert_eq!(one.node.checksum("app").unwrap(), before);
    assert_eq!(one.node.databases().unwrap(), ["app"]);
}

/// What a program brings along to use its database is not here when it is restored.
#[test]
fn an_index_over_a_function_of_a_program_comes_in_and_goes_out() {
    use rusqlite::functions::FunctionFlags;
    let one = one();
    let path = one.path("file");
    let db = Connection::open(&path).unwrap();
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    db.create_scalar_function("twice", 1, flags, |call| Ok(2 * call.get::<i64>(0)?)).unwrap();
    db.execute_batch("CREATE TABLE t(x); CREATE INDEX i ON t(twice(x)); INSERT INTO t VALUES (1), (2)").unwrap();
    drop(db);
    one.node.restore("app", &path).unwrap();
    assert_eq!(count(&one.node.connect("app").unwrap()), 2);
}

#[test]
fn what_cannot_change_in_a_database_is_told_before_anything_does() {
    let one = one();
    one.node.create("app", CreateOptions { page_size: 1024, ..CreateOptions::default() }).unwrap();
    let path = one.path("file");
    drop(file(&path, "PRAGMA page_size = 2048", 10));
    let error = one.node.restore("app", &path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    assert!(["1024", "2048", "drop the database first"].iter().all(|word| error.to_string().contains(word)), "{error}");

    // A database in which nothing was ever written has no encoding yet.
    let path = one.path("utf16");
    drop(file(&path, "PRAGMA page_size = 1024; PRAGMA encoding = 'UTF-16le'", 10));
    one.node.restore("app", &path).unwrap();
    let path = one.path("utf8");
    drop(file(&path, "PRAGMA page_size = 1024", 10));
    let before = one.node.checksum("app").unwrap();
    let error = one.node.restore("app", &path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    assert!(["UTF-16le", "UTF-8"].iter().all(|word| error.to_string().contains(word)), "{error}");
    assert_eq!(one.node.checksum("app").unwrap(), before);
    one.node.drop_database("app").unwrap();
    one.node.restore("app", &path).unwrap();

    let small = Node::builder(1, one.path("data-2")).transaction_limit(64 << 10).start().unwrap();
    small.wait_leader(LONG).unwrap();
    drop(file(&one.path("large"), "", 1000));
    let error = small.restore("app", one.path("large")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotCommitted, "{error}");
    assert!(error.to_string().contains("transaction_limit"), "{error}");
    assert!(small.databases().unwrap().is_empty());
    for name in ["", "../app", ".app"] {
        assert_eq!(one.node.restore(name, &path).unwrap_err().kind(), ErrorKind::BadInput);
        assert_eq!(one.node.backup(name, one.path("out")).unwrap_err().kind(), ErrorKind::BadInput);
    }
}

#[test]
fn a_backup_overwrites_nothing_and_leaves_nothing_behind_when_it_fails() {
    let one = one();
    one.node.connect("app").unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    let taken = one.path("taken");
    std::fs::write(&taken, "precious").unwrap();
    std::os::unix::fs::symlink(one.path("nowhere"), one.path("link")).unwrap();
    for name in ["taken", "link", "data"] {
        let error = one.node.backup("app", one.path(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists, "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(std::fs::read(&taken).unwrap(), b"precious");
    let error = one.node.backup("none", one.path("out")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = one.node.backup("app", one.path("no/such/folder")).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");

    // Somebody else takes the name while the backup is written.
    let late = one.path("late");
    let told = |_: Progress| std::fs::write(&late, "precious").unwrap();
    fill_app(&one.node, 500);
    let error = one.node.backup_with("app", &late, told).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    assert_eq!(std::fs::read(&late).unwrap(), b"precious");
    assert_eq!(one.files(), ["late", "link", "taken"]);
    one.node.shutdown().unwrap();
    assert_eq!(one.node.backup("app", one.path("out")).unwrap_err().kind(), ErrorKind::Stopped);
}

fn fill_app(node: &Node, rows: i64) {
    node.write("app", |tx| {
        for _ in 0..rows {
            tx.execute("INSERT INTO t VALUES (randomblob(3000))", [])?;
        }
        Ok(())
    })
    .unwrap();
}

/// Tells the threads of a test that it is over, also when it failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writers move money between accounts; each backup finds all of it, and what was committed before it began.
#[test]
fn a_backup_among_writers_is_one_state() {
    let cluster = Cluster::start_calm(3, |builder| builder);
    let leader = cluster.leader();
    leader
        .write("bank", |tx| {
            tx.execute_batch("CREATE TABLE account(id INTEGER PRIMARY KEY, money, pad); CREATE TABLE moved(n)")?;
            for id in 0..300 {
                tx.execute("INSERT INTO account VALUES (?1, 100, randomblob(3000))", [id])?;
            }
            Ok(tx.execute_batch("INSERT INTO moved VALUES (0)")?)
        })
        .unwrap();
    // A follower may be slower than the other one, and shows the database before its tables.
    cluster.assert_equal("bank");
    let dir = tempfile::tempdir().unwrap();
    let (done, moved) = (AtomicBool::new(false), AtomicI64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 1.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                leader
                    .write("bank", |tx| {
                        let (from, to) = (turn % 300, (turn * 7 + 150) % 300);
                        tx.execute("UPDATE account SET money = money - 5 WHERE id = ?1", [from])?;
                        tx.execute("UPDATE account SET money = money + 5 WHERE id = ?1", [to])?;
                        tx.execute("UPDATE moved SET n = ?1", [turn])?;
                        Ok(())
                    })
                    .unwrap();
                moved.store(turn, Ordering::Release);
            }
        });
        let _over = Over(&done);
        for round in 0..6 {
            // Any node can do it; a follower gives what it shows.
            let node = if round % 2 == 0 { leader } else { cluster.follower() };
            let before = moved.load(Ordering::Acquire);
            let path = dir.path().join(format!("{round}.db"));
            let mut written_before = None;
            node.backup_with("bank", &path, |progress| {
                // One more than was counted may be in the snapshot, and then comes one that cannot be.
                if progress.phase == Phase::Copying && written_before.is_none() {
                    let seen = moved.load(Ordering::Acquire);
                    until("writes go on", || moved.load(Ordering::Acquire) > seen + 1);
                    written_before = Some(seen + 1);
                }
            })
            .unwrap();
            let db = plain(&path);
            let (sum, n): (i64, i64) = db
                .query_row("SELECT (SELECT sum(money) FROM account), (SELECT n FROM moved)", [], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .unwrap();
            assert_eq!(sum, 30_000);
            assert!(n <= written_before.unwrap(), "what was written meanwhile is not in it");
            if round % 2 == 0 {
                assert!(n >= before, "{n} {before}");
            }
        }
    });
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

fn versions(dir: &Path) -> [PathBuf; 2] {
    [1, 2].map(|version| {
        let path = dir.join(format!("version-{version}"));
        let db = Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE t(version, pad)").unwrap();
        let mut insert = db.prepare("INSERT INTO t VALUES (?1, randomblob(2000))").unwrap();
        db.execute_batch("BEGIN").unwrap();
        (0..1000).for_each(|_| _ = insert.execute([version]).unwrap());
        db.execute_batch("COMMIT").unwrap();
        path
    })
}

/// The one version that all rows are of.
fn version(db: &Connection) -> i64 {
    let (low, high, rows): (i64, i64, i64) = db
        .query_row("SELECT min(version), max(version), count(*) FROM t", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    assert_eq!((low, rows), (high, 1000), "of two databases");
    low
}

#[test]
fn readers_see_the_old_database_until_the_new_one_is_committed() {
    let cluster = Cluster::start_calm(3, |builder| builder.part_bytes(64 << 10));
    let dir = tempfile::tempdir().unwrap();
    let files = versions(dir.path());
    let leader = cluster.leader();
    leader.restore("app", &files[0]).unwrap();
    cluster.assert_equal("app");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for node in cluster.running() {
            let done = &done;
            scope.spawn(move || {
                let db = node.connect("app").unwrap();
                let mut newest = 1;
                while !done.load(Ordering::Relaxed) {
                    let seen = version(&db);
                    assert!(seen >= newest, "never back");
                    newest = seen;
                }
            });
        }
        let _over = Over(&done);
        let reading = leader.connect("app").unwrap();
        reading.execute_batch("BEGIN").unwrap();
        assert_eq!(version(&reading), 1);
        leader.restore("app", &files[1]).unwrap();
        // A transaction that began before goes on with what it saw.
        assert_eq!(version(&reading), 1);
        reading.execute_batch("COMMIT").unwrap();
        assert_eq!(version(&reading), 2);
        let index = leader.checksum("app").unwrap().0;
        assert!(cluster.running().all(|node| node.wait_applied(index, LONG)));
    });
    cluster.assert_equal("app");
    cluster.running().for_each(|node| assert_eq!(version(&node.connect("app").unwrap()), 2));
}

/// The check of a large file takes minutes, and a node that ends waits for nobody who has changed nothing.
#[test]
fn a_restore_whose_node_ends_during_the_check_says_that_nothing_was_changed() {
    let one = one();
    let file = one.path("in.db");
    let rows =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) INSERT INTO t SELECT i FROM n";
    Connection::open(&file).unwrap().execute_batch(&format!("CREATE TABLE t(x); {rows}")).unwrap();
    let mut phases = Vec::new();
    let restored = one.node.restore_with("app", &file, |progress| {
        phases.push(progress.phase);
        one.node.shutdown_at_once();
    });
    let error = restored.unwrap_err();
    assert_eq!(phases, [Phase::Checking]);
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NotCommitted, Some(Outcome::NotCommitted)), "{error}");
    assert!(error.to_string().contains("nothing was changed"), "{error}");
}

#[test]
fn a_restore_on_a_follower_names_the_leader() {
    let cluster = Cluster::start_calm(3, |builder| builder);
    let dir = tempfile::tempdir().unwrap();
    let files = versions(dir.path());
    let (leader, follower) = (cluster.leader().id(), cluster.follower());
    let error = follower.restore("app", &files[0]).unwrap_err();
    assert!(error.is_not_leader(), "{error}");
    assert_eq!(error.leader(), Some(leader));
    assert!(follower.databases().unwrap().is_empty());
}

/// Leadership is lost at several moments of a restore: the old database or the new one is everywhere, as its result says.
#[test]
fn a_restore_across_a_failover_leaves_the_old_database_or_the_new_one() {
    let cluster = Cluster::start_with(3, |builder| builder.part_bytes(64 << 10));
    let dir = tempfile::tempdir().unwrap();
    let files = versions(dir.path());
    cluster.leader().restore("app", &files[0]).unwrap();
    let mut expected = 1;
    let started = Instant::now();
    // Nothing but a slow machine ends the last one's leadership: then once more.
    for moment in ["copying", "parts", "cut"].into_iter().chain(std::iter::repeat("none")) {
        let old = cluster.leader();
        let next = cluster.follower().id();
        let wanted = 3 - expected;
        let file = &files[wanted as usize - 1];
        let (begun, copying) = (AtomicBool::new(false), AtomicBool::new(false));
        let told = |progress: Progress| {
            begun.store(true, Ordering::Release);
            let first = progress.phase == Phase::Copying && !copying.swap(true, Ordering::AcqRel);
            if moment == "copying" && first {
                until("another leads", || !old.is_leader());
            }
        };
        let result = std::thread::scope(|scope| {
            let held = matches!(moment, "parts" | "cut").then(|| PartsHeld::by(old));
            let restore = scope.spawn(|| old.restore_with("app", file, told));
            match moment {
                "copying" => {
                    until("pages are copied", || copying.load(Ordering::Acquire));
                    administer(|| old.transfer_leadership(next)).unwrap();
                }
                "parts" => {
                    until("no part came", || cluster.node(next).has_open_split());
                    administer(|| old.transfer_leadership(next)).unwrap();
                    drop(held);
                }
                "cut" => {
                    until("no part came", || cluster.node(next).has_open_split());
                    cluster.cut(old.id(), true);
                    drop(held);
                    let led = || cluster.running().any(|node| node.id() != old.id() && node.is_leader());
                    until("no other leads", led);
                    cluster.cut(old.id(), false);
                }
                _ => until("it begins", || begun.load(Ordering::Acquire)),
            }
            restore.join().unwrap()
        });
        match &result {
            Ok(()) => expected = wanted,
            Err(error) => assert_eq!(error.outcome(), Some(Outcome::NotCommitted), "{moment}: {error}"),
        }
        assert!(result.is_err() || moment == "none", "{moment}");
        let touch = || cluster.leader().write("app", |tx| Ok(tx.execute_batch("PRAGMA user_version = 1")?)).is_ok();
        until("a new leader writes", touch);
        cluster.assert_equal("app");
        cluster.running().for_each(|node| assert_eq!(version(&node.connect("app").unwrap()), expected, "{moment}"));
        if result.is_ok() {
            break;
        }
        assert!(started.elapsed() < 2 * LONG, "{moment}: {result:?}");
    }
    assert_eq!(expected, 2);
}

#[test]
fn progress_is_told_from_beginning_to_end() {
    let one = one();
    let path = one.path("file");
    drop(file(&path, "", 10_000));
    let bytes = std::fs::metadata(&path).unwrap().len();
    let mut told = Vec::new();
    one.node.restore_with("app", &path, |progress| told.push(progress)).unwrap();
    assert_eq!(told[0].phase, Phase::Checking);
    assert!(told.iter().any(|progress| progress.phase == Phase::Copying && progress.total == bytes));
    assert_eq!(told.last().unwrap().phase, Phase::Committing);
    assert!(told.windows(2).all(|pair| pair[0].done <= pair[1].done));
    told.clear();
    one.node.backup_with("app", one.path("out"), |progress| told.push(progress)).unwrap();
    assert!(
        told.len() > 2 && told.iter().all(|progress| progress.done <= bytes && progress.total == bytes),
        "{told:?}"
    );
}

/// Anybody on the machine can reach a port; files are the affair of the user whose node it is.
#[test]
fn files_are_not_named_over_a_port() {
    let cluster = Cluster::start(1);
    cluster.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.db");
    drop(file(&dir.path().join("in.db"), "", 10));
    for (op, name) in [("backup", "out.db"), ("restore", "in.db")] {
        let path = dir.path().join(name);
        let request = format!(r#"{{"op":"{op}","name":"app","path":"{}","job":1}}"#, path.display());
        let answer = shoaldb::net::tcp::call(&cluster.list[0].address, request.as_bytes(), LONG, false).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("bad_input") && answer.contains("admin socket"), "{answer}");
    }
    assert!(!out.exists());
    assert_eq!(count(&cluster.leader().connect("app").unwrap()), 0);
}

/// The name under which it is written is nobody's affair, unless it stays.
#[test]
fn an_error_of_a_backup_names_the_file_that_was_asked_for() {
    let one = one();
    one.node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    let gone = |_: Progress| {
        let unfinished = one.files().into_iter().filter(|name| name.contains(".new-"));
        unfinished.for_each(|name| std::fs::remove_file(one.path(&name)).unwrap());
    };
    let error = one.node.backup_with("app", one.path("out.db"), gone).unwrap_err().to_string();
    assert!(error.contains("out.db: no backup was written") && !error.contains(".new-"), "{error}");
    assert_eq!(one.files(), [""; 0]);
}

/// It is SQLite's own way to a file, and no transaction: any node does it, and nobody else hears of it.
#[test]
fn vacuum_into_writes_an_ordinary_file_on_the_node_that_is_asked_or_says_what_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3);
    let leader = cluster.leader();
    leader
        .write("app", |tx| {
            Ok(tx.execute_batch(
                "CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(100000)); DELETE FROM t; INSERT INTO t VALUES (7)",
            )?)
        })
        .unwrap();
    cluster.assert_equal("app");
    for node in cluster.nodes.iter().flatten() {
        let db = node.connect("app").unwrap();
        let before = node.checksum("app").unwrap();
        let file = dir.path().join(format!("{}.db", node.id()));
        db.execute("VACUUM INTO ?1", [format!("file:{}?vfs=unix", file.display())]).unwrap();
        let plain = rusqlite::Connection::open(&file).unwrap();
        let found = plain.query_row("SELECT x, (SELECT * FROM pragma_integrity_check) FROM t", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        });
        assert_eq!(found.unwrap(), (7, "ok".to_string()));
        assert_eq!(node.checksum("app").unwrap(), before, "nothing is replicated");

        let refused = |name: &str| shoaldb::Error::from(db.execute("VACUUM INTO ?1", [name]).unwrap_err()).to_string();
        let path = file.with_extension("other");
        let words = refused(&path.display().to_string());
        assert!(words.contains(&format!("'file:{}?vfs=unix'", path.display())), "{words}");
        for name in ["other", "app", &format!("file:{}?vfs=unix", file.display())] {
            let words = refused(name);
            assert!(
                words.contains("output file already exists; a plain name is that of a database of the cluster"),
                "{words}"
            );
        }
        assert!(!path.exists());
        assert_eq!(node.databases().unwrap(), ["app"]);
    }
}
