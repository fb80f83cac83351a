//! A cluster of one.

use std::path::Path;

use shoaldb::{CreateOptions, ErrorKind, Node, rusqlite};

use crate::cluster::until;

fn count(db: &rusqlite::Connection, table: &str) -> i64 {
    db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let before = {
        let node = Node::open(dir.path()).unwrap();
        let mut db = node.connect("app").unwrap();
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)", []).unwrap();
        let tx = db.transaction().unwrap();
        for i in 0..1000 {
            tx.execute("INSERT INTO t(v) VALUES (?1)", [format!("{i}")]).unwrap();
        }
        tx.commit().unwrap();
        node.create("other", CreateOptions { page_size: 1024, ..CreateOptions::default() }).unwrap();
        node.write("other", |tx| {
            tx.execute_batch("CREATE TABLE u(x); INSERT INTO u VALUES (1), (2)")?;
            Ok(())
        })
        .unwrap();
        drop(db);
        let sums = (node.checksum("app").unwrap(), node.checksum("other").unwrap());
        node.shutdown().unwrap();
        sums
    };
    let node = Node::open(dir.path()).unwrap();
    assert_eq!(node.databases().unwrap(), ["app", "other"]);
    assert_eq!((node.checksum("app").unwrap(), node.checksum("other").unwrap()), before);
    assert_eq!(count(&node.connect("app").unwrap(), "t"), 1000);
    assert_eq!(count(&node.connect("other").unwrap(), "u"), 2);
    let size: i64 = node.connect("other").unwrap().query_row("PRAGMA page_size", [], |row| row.get(0)).unwrap();
    assert_eq!(size, 1024);
}

#[test]
fn an_unmodified_client_reaches_the_node_by_uri() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder(1, dir.path()).vfs_name("by-uri").start().unwrap();
    node.wait_leader(std::time::Duration::from_secs(10)).unwrap();
    let db = rusqlite::Connection::open("file:app?vfs=by-uri").unwrap();
    db.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(count(&node.connect("app").unwrap(), "t"), 1);
}

/// The name that README and the documentation promise, in a process with one node: a process of its own, since another test of
/// this one may have it.
#[test]
fn the_first_node_of_a_process_is_reached_by_the_name_that_is_promised() {
    const INSIDE: &str = "SHOAL_TEST_FIRST_NODE";
    if std::env::var_os(INSIDE).is_none() {
        let itself = std::env::current_exe().unwrap();
        let name = "one_node::the_first_node_of_a_process_is_reached_by_the_name_that_is_promised";
        let output = std::process::Command::new(itself).args([name, "--exact"]).env(INSIDE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    let db = rusqlite::Connection::open("file:app?vfs=shoal").unwrap();
    db.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(count(&node.connect("app").unwrap(), "t"), 1);
}

/// A write that had to create its database first found that "it changed since SQLite looked", and a connection without a busy
/// timeout failed with "database is locked", once. What is created is what the connection saw already, so it goes on.
#[test]
fn the_first_write_to_a_new_database_needs_no_busy_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    for (name, first) in [
        ("plain", "CREATE TABLE t(x)"),
        ("deferred", "BEGIN; SELECT * FROM sqlite_schema; CREATE TABLE t(x); COMMIT"),
        ("immediate", "BEGIN IMMEDIATE; CREATE TABLE t(x); COMMIT"),
    ] {
        let db = node.connect(name).unwrap();
        db.busy_timeout(std::time::Duration::ZERO).unwrap();
        db.execute_batch(first).unwrap();
        db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        let other = node.connect(name).unwrap();
        assert_eq!(count(&other, "t"), 1);
    }
}

#[test]
fn after_shutdown_everything_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    let db = node.connect("app").unwrap();
    db.execute_batch("CREATE TABLE t(x)").unwrap();
    node.shutdown().unwrap();
    node.shutdown().unwrap();
    assert_eq!(node.connect("app").unwrap_err().kind(), ErrorKind::Stopped);
    let error = shoaldb::Error::from(db.execute("INSERT INTO t VALUES (1)", []).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
    drop(db);
    Node::open(dir.path()).unwrap();
}

#[test]
fn a_dropped_database_is_gone_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    let old = node.connect("app").unwrap();
    old.execute_batch("CREATE TABLE t(x)").unwrap();
    assert_eq!(node.create("app", CreateOptions::default()).unwrap_err().kind(), ErrorKind::Exists);
    node.drop_database("app").unwrap();
    assert_eq!(node.drop_database("app").unwrap_err().kind(), ErrorKind::NotFound);
    let error = shoaldb::Error::from(old.execute("INSERT INTO t VALUES (1)", []).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let new = node.connect("app").unwrap();
    new.execute_batch("CREATE TABLE t(y); INSERT INTO t VALUES (7)").unwrap();
    assert_eq!(count(&new, "t"), 1);
}

/// Descriptors of this process that lead to files of `dir`, and how many of these were deleted.
fn descriptors(dir: &Path) -> (usize, usize) {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let ours: Vec<_> = links.filter(|to| to.starts_with(dir)).collect();
    let deleted = ours.iter().filter(|to| to.to_string_lossy().ends_with(" (deleted)")).count();
    (ours.len(), deleted)
}

/// Names that come and go, and never come again: nothing of them stays, whoever forgot a connection.
#[test]
fn a_database_that_was_dropped_gives_everything_back() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    node.create("first", CreateOptions::default()).unwrap();
    let before = descriptors(dir.path()).0;
    let mut forgotten = Vec::new();
    for n in 0..20 {
        let name = format!("passing{n}");
        node.write(&name, |tx| Ok(tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")?)).unwrap();
        let reader = node.connect(&name).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        forgotten.push(reader);
        node.drop_database(&name).unwrap();
    }
    until(&node, "files of dropped databases stay open", |_| {
        node.write("first", |tx| Ok(tx.execute_batch("CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (1)")?))
            .unwrap();
        let (all, deleted) = descriptors(dir.path());
        deleted == 0 && all <= before + 3
    });
    for reader in forgotten {
        reader.execute_batch("ROLLBACK").unwrap();
        let error = reader.query_row("SELECT x FROM t", [], |row| row.get::<_, i64>(0)).unwrap_err();
        assert_eq!(error.sqlite_error().map(|error| error.extended_code), Some(shoaldb::error::DROPPED), "{error}");
    }
    node.shutdown().unwrap();
}

#[test]
fn a_closure_that_fails_leaves_nothing_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x UNIQUE)")?)).unwrap();
    let failed = node.write("app", |tx| {
        tx.execute("INSERT INTO t VALUES (1)", [])?;
        tx.execute("INSERT INTO t VALUES (1)", [])?;
        Ok(())
    });
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Sqlite);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        node.write("app", |tx| {
            tx.execute("INSERT INTO t VALUES (2)", [])?;
            if tx.is_autocommit() { Ok(()) } else { panic!("on purpose") }
        })
    }));
    assert!(panicked.is_err());
    let refused = node.write("app", |tx| Ok(tx.execute_batch("COMMIT")?));
    assert!(refused.unwrap_err().to_string().contains("not authorized"));
    let id = node.write("app", |tx| {
        tx.execute("INSERT INTO t VALUES (3)", [])?;
        Ok(tx.last_insert_rowid())
    });
    assert_eq!(id.unwrap(), 1);
    assert_eq!(count(&node.connect("app").unwrap(), "t"), 1);
}

/// Shows INV-19.
#[test]
fn one_directory_has_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    let busy = Node::open(dir.path()).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    let words = busy.to_string();
    assert!(words.contains("uses this directory") && words.contains("stop that node first"), "{words}");
    drop(node);
    assert_eq!(
        Node::builder(2, dir.path()).start().unwrap_err().kind(),
        ErrorKind::BadInput,
        "the directory is node 1's"
    );
}

/// An application that names its home is told so, and nothing is made there.
#[test]
fn a_directory_with_files_of_others_is_refused_by_the_library_too() {
    let dir = tempfile::tempdir().unwrap();
    for ours in ["lost+found", "log"] {
        std::fs::create_dir(dir.path().join(ours)).unwrap();
    }
    let file = dir.path().join("app.db");
    for is_dir in [true, false] {
        if is_dir { std::fs::create_dir(&file) } else { std::fs::write(&file, "") }.unwrap();
        let refused = Node::open(dir.path()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BadInput);
        let words = refused.to_string();
        assert!(words.starts_with(&dir.path().display().to_string()), "{words}");
        assert!(words.ends_with("there is app.db; give the node a directory of its own"), "{words}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left there");
        if is_dir { std::fs::remove_dir(&file) } else { std::fs::remove_file(&file) }.unwrap();
    }
    drop(Node::open(dir.path()).unwrap());
    // Once it is the node's, its owner may keep something there.
    std::fs::write(&file, "").unwrap();
    drop(Node::open(dir.path()).unwrap());
}

#[test]
fn a_file_in_the_place_of_the_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    for path in [file.clone(), file.join("below")] {
        let refused = Node::open(&path).unwrap_err().to_string();
        assert!(refused.starts_with(&path.display().to_string()), "{refused}");
        assert!(refused.ends_with("it is a file, or lies below one; name a directory"), "{refused}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

/// It was told as a file. Nothing is made where it points: a disk may have to be mounted there.
#[test]
fn a_link_that_leads_nowhere_in_the_place_of_the_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (link, target) = (dir.path().join("link"), dir.path().join("disk/data"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    for path in [link.clone(), link.join("below")] {
        let refused = Node::open(&path).unwrap_err().to_string();
        let led = format!("{} is a symbolic link to {}, which does not exist", link.display(), target.display());
        assert!(refused.starts_with(&format!("{}: cannot be made a data directory", path.display())), "{refused}");
        assert!(
            refused.contains(&led) && refused.contains("mount the disk that has it, or make that directory"),
            "{refused}"
        );
    }
    assert!(!dir.path().join("disk").exists() && link.is_symlink());
    // And that helps.
    std::fs::create_dir_all(&target).unwrap();
    Node::open(&link).unwrap().shutdown().unwrap();
    assert!(target.join("identity").exists());
}

/// Shows INV-19.
#[test]
fn a_stock_sqlite_is_kept_out_of_the_main_file() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path()).unwrap();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    let files: Vec<_> = std::fs::read_dir(dir.path().join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
        .collect();
    assert_eq!(files.len(), 1);
    let stock = rusqlite::Connection::open(&files[0]).unwrap();
    stock.busy_timeout(std::time::Duration::ZERO).unwrap();
    let error = stock.execute_batch("CREATE TABLE mine(x)").unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{error}");
    drop(stock);
    // A POSIX lock would be gone now that another descriptor of the file was closed.
    let again = rusqlite::Connection::open(&files[0]).unwrap();
    again.busy_timeout(std::time::Duration::ZERO).unwrap();
    assert!(again.execute_batch("CREATE TABLE mine(x)").is_err());
}
