//! A copy whose files cannot be opened is told as that, whatever is asked of it.

use std::path::Path;
use std::time::Duration;

use shoaldb::client::session::Session;
use shoaldb::client::{Client, Doors};
use shoaldb::rusqlite::{self, OpenFlags};
use shoaldb::{Builder, ConnectOptions, ErrorKind, Node, ReadLevel};

use crate::cluster::{Cluster, LONG, until};

fn quick(builder: Builder) -> Builder {
    builder.checkpoint_bytes(64 << 10).checkpoint_age(Duration::from_millis(100)).segment_bytes(64 << 10)
}

/// A database of some pages, all of it in its files, which an anchor of the log knows. Returns the name of its files.
fn filled(node: &Node) -> String {
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(100000))")?))
        .unwrap();
    let status = until(node, "all is in the main file", |status| {
        let done = |db: &shoaldb::DatabaseStatus| db.checkpointed == db.position && status.anchored.0 >= db.id.0;
        !status.databases.is_empty() && status.databases.iter().all(done)
    });
    format!("{}-1", status.databases[0].id)
}

/// What every question about it is answered with.
fn asked(node: &Node, data: &Path, words: &[&str]) {
    let out = tempfile::tempdir().unwrap();
    let good = out.path().join("good.db");
    let file = shoaldb::rusqlite::Connection::open(&good).unwrap();
    file.execute_batch("CREATE TABLE t(x)").unwrap();
    drop(file);
    let client = Client::new(Doors::Directory(data.to_path_buf()));
    let verified = client.verify(Some("app"), false).unwrap().remove(0);
    let mine = verified.nodes.iter().find(|one| u64::from(one.node.0) == node.id()).unwrap();
    assert!(!verified.same && mine.unserved && !verified.those_that_answered_agree(), "{verified:?}");
    let mut said = vec![mine.problem.clone().unwrap()];
    let errors = [
        node.backup("app", out.path().join("out.db")).err(),
        client.backup("app", &out.path().join("out.db"), |_| {}).err(),
        node.checksum("app").map(drop).err(),
        node.read_view("app").map(drop).err(),
        node.is_leader().then(|| node.restore("app", &good).unwrap_err()),
        node.connect("app").map(drop).err(),
        node.write("app", |_| Ok(())).err(),
        node.connect_with("app", ConnectOptions { create: false, ..ConnectOptions::default() }).map(drop).err(),
        node.connect_with("app", ConnectOptions { read_only: true, ..ConnectOptions::default() }).map(drop).err(),
    ];
    for error in errors.into_iter().flatten() {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        said.push(error.to_string());
    }
    for create in [false, true] {
        let refused = Session::open(data, "app", ReadLevel::Local, create).unwrap_err();
        assert_eq!(refused.kind(), Some(ErrorKind::Corrupt), "{refused:?}");
        said.push(refused.text);
    }
    let refused = node.connect("app").unwrap_err();
    let code = refused.sqlite().and_then(rusqlite::Error::sqlite_error).map(|error| error.extended_code);
    assert_eq!(code, Some(shoaldb::error::DAMAGED), "{refused}");
    // Whoever knows nothing of this library has the code: it was "unable to open database file".
    let uri = format!("file:app?vfs={}", node.vfs_name());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let refused = shoaldb::rusqlite::Connection::open_with_flags(uri, flags).unwrap_err();
    let rusqlite::Error::SqliteFailure(failure, _) = &refused else { panic!("{refused:?}") };
    assert_eq!(failure.extended_code, shoaldb::error::DAMAGED, "{refused:?}");
    for text in said {
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
    assert!(!out.path().join("out.db").exists());
}

/// `shoal backup` said "no database named app", and `db list` listed it.
#[test]
fn a_copy_that_cannot_be_opened_is_no_database_that_is_not_there() {
    for damage in ["main file gone", "main file cut off", "map gone", "all gone"] {
        let dir = tempfile::tempdir().unwrap();
        let start = || quick(Node::builder(1, dir.path())).start().unwrap();
        let node = start();
        node.wait_leader(LONG).unwrap();
        let files = filled(&node);
        node.shutdown().unwrap();
        let path = |end: &str| dir.path().join(format!("db/{files}.{end}"));
        match damage {
            "main file gone" => std::fs::remove_file(path("db")).unwrap(),
            "main file cut off" => {
                std::fs::OpenOptions::new().write(true).open(path("db")).unwrap().set_len(8192).unwrap()
            }
            "map gone" => std::fs::remove_file(path("map")).unwrap(),
            _ => std::fs::remove_dir_all(dir.path().join("db")).unwrap(),
        }
        let node = start();
        node.wait_leader(LONG).unwrap();
        assert_eq!(node.databases().unwrap(), ["app"]);
        asked(&node, dir.path(), &["app cannot be opened", &files, "drop the database, then restore a backup"]);
        // And that helps.
        node.drop_database("app").unwrap();
        filled(&node);
    }
}

/// Until the others are there it is not repaired, and they have what is asked for.
#[test]
fn a_copy_that_waits_for_the_others_names_them() {
    let mut cluster = Cluster::start_calm(3, quick);
    let leader = cluster.leader();
    let files = filled(leader);
    let at = leader.id() as usize - 1;
    cluster.nodes.iter_mut().for_each(|node| _ = node.take());
    std::fs::remove_file(cluster.dirs[at].path().join(format!("db/{files}.db"))).unwrap();
    cluster.start_node(at as u64 + 1);
    let node = cluster.node(at as u64 + 1);
    until(node, "it is open", |status| !status.databases.is_empty());
    asked(node, cluster.dirs[at].path(), &["app cannot be opened", &files, "repaired from the others"]);
}
