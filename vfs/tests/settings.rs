//! Settings that would go past replication are refused, with words; harmless ones do no harm.

mod support;

use rusqlite::{Connection, OpenFlags, ffi};
use shoaldb_vfs::error::SECOND_WRITER;
use shoaldb_vfs::genesis::AutoVacuum;
use support::{Stage, code, number};

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

fn text(result: rusqlite::Result<()>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn other_journal_modes_and_exclusive_locking_are_refused_with_words() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
        let said = text(db.execute_batch(&format!("PRAGMA journal_mode = {mode}")));
        assert!(said.contains("always in WAL mode"), "{said}");
    }
    let said = text(db.execute_batch("PRAGMA locking_mode = EXCLUSIVE"));
    assert!(said.contains("no connection may lock it out"), "{said}");
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA journal_mode; PRAGMA locking_mode = NORMAL").unwrap();
    db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    stage.compare("app");
}

/// A pragma without a schema name goes to all databases, but only the main one's file is asked about it.
#[test]
fn an_unqualified_pragma_cannot_reach_an_attached_database_either() {
    let stage = Stage::new();
    stage.connect("app").execute_batch(TABLE).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let db = Connection::open(dir.path().join("stock.db")).unwrap();
    db.busy_timeout(std::time::Duration::ZERO).unwrap();
    db.execute_batch("CREATE TABLE s(x)").unwrap();
    db.execute("ATTACH ?1 AS app", [stage.uri("app", "")]).unwrap();
    assert_ne!(code(db.execute_batch("PRAGMA journal_mode = DELETE")), 0);
    let mode: String = db.query_row("PRAGMA app.journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    db.execute_batch("INSERT INTO app.t(v) VALUES (1); INSERT INTO s VALUES (1)").unwrap();
    db.execute_batch("BEGIN; INSERT INTO app.t(v) VALUES (2); INSERT INTO s VALUES (2); COMMIT").unwrap();
    assert_eq!(number(&stage.connect("app"), "SELECT count(*) FROM t"), 2);
    stage.compare("app");
}

#[test]
fn exclusive_locking_cannot_be_smuggled_in_before_attach() {
    let stage = Stage::new();
    stage.connect("app").execute_batch(TABLE).unwrap();
    let db = Connection::open_in_memory().unwrap();
    db.busy_timeout(std::time::Duration::ZERO).unwrap();
    db.execute_batch("PRAGMA locking_mode = EXCLUSIVE").unwrap();
    let attached = db.execute("ATTACH ?1 AS app", [stage.uri("app", "")]);
    if attached.is_ok() {
        assert_eq!(code(db.query_row("SELECT count(*) FROM app.t", [], |row| row.get::<_, i64>(0))), ffi::SQLITE_BUSY);
    }
    drop(db);
    stage.connect("app").execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    stage.compare("app");
}

#[test]
fn parameters_that_go_past_the_wal_are_refused() {
    let stage = Stage::new();
    stage.connect("app").execute_batch(TABLE).unwrap();
    for parameter in ["&immutable=1", "&nolock=1", "&immutable=true", "&nolock=on", "&read=yesterday"] {
        assert_eq!(code(stage.try_connect("app", parameter)), ffi::SQLITE_CANTOPEN, "{parameter}");
    }
    for parameter in ["&immutable=0", "&nolock=0", "&read=local", "&read=LINEARIZABLE"] {
        assert_eq!(code(stage.try_connect("app", parameter)), 0, "{parameter}");
    }
    stage.compare("app");
}

#[test]
fn a_database_is_named_and_exists_only_if_somebody_created_it() {
    let stage = Stage::new();
    for path in ["/tmp/app", "dir/app", "./app"] {
        assert_eq!(code(stage.try_connect(path, "")), ffi::SQLITE_CANTOPEN, "{path}");
    }
    let no_create = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
    assert_eq!(code(Connection::open_with_flags(stage.uri("new", ""), no_create)), ffi::SQLITE_CANTOPEN);
    assert_eq!(code(stage.try_connect("new", "&mode=ro")), ffi::SQLITE_CANTOPEN);
    stage.connect("new").execute_batch(TABLE).unwrap();
    Connection::open_with_flags(stage.uri("new", ""), no_create).unwrap().execute_batch("SELECT * FROM t").unwrap();
}

#[test]
fn users_cannot_checkpoint() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("PRAGMA wal_autocheckpoint = 1; {TABLE}")).unwrap();
    for _ in 0..20 {
        db.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    }
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        let row: (i64, i64, i64) = db
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap();
        assert_eq!(row, (1, -1, -1), "{mode}");
    }
    stage.compare("app");
}

/// The function behind the pragma says it in so many words: busy, and nothing was looked at.
#[test]
#[allow(unsafe_code)]
fn the_checkpoint_function_is_busy_in_every_mode() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (1)")).unwrap();
    db.busy_timeout(std::time::Duration::ZERO).unwrap();
    let main = stage.main_file("app");
    for schema in [c"main".as_ptr(), std::ptr::null()] {
        for mode in [
            ffi::SQLITE_CHECKPOINT_PASSIVE,
            ffi::SQLITE_CHECKPOINT_FULL,
            ffi::SQLITE_CHECKPOINT_RESTART,
            ffi::SQLITE_CHECKPOINT_TRUNCATE,
        ] {
            let (mut log, mut checkpointed) = (7, 7);
            // SAFETY: the handle is open, the schema's name null or zero-terminated, both results are writable.
            let rc = unsafe {
                ffi::sqlite3_wal_checkpoint_v2(db.handle(), schema, mode, &raw mut log, &raw mut checkpointed)
            };
            assert_eq!((rc, log, checkpointed), (ffi::SQLITE_BUSY, -1, -1), "mode {mode}");
        }
    }
    db.execute("INSERT INTO t(v) VALUES (2)", []).unwrap();
    assert_eq!(stage.main_file("app"), main);
    stage.compare("app");
}

/// SQLite checkpoints when the last connection closes, and does so without asking for any lock of the wal-index, once
/// it could lock the main file exclusively.
#[test]
fn closing_the_last_connection_writes_nothing() {
    let stage = Stage::new();
    let main = {
        stage.database("app");
        stage.main_file("app")
    };
    for round in 1..4 {
        let (a, b) = (stage.connect("app"), stage.connect("app"));
        a.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v); INSERT INTO t(v) VALUES (1)")
            .unwrap();
        assert_eq!(number(&b, "SELECT count(*) FROM t"), round);
        let frames = stage.database("app").status().wal_frames;
        for last in [a, b] {
            last.close().unwrap();
        }
        assert_eq!(stage.database("app").connections(), 0);
        assert_eq!(stage.database("app").status().wal_frames, frames, "the last close checkpointed");
        assert_eq!(stage.main_file("app"), main, "the last close wrote to the main file");
    }
    stage.compare("app");
}

/// The first page says "WAL mode" before anybody wrote anything; otherwise SQLite would begin with a rollback journal.
#[test]
fn a_database_is_in_wal_mode_before_its_first_write() {
    for page_size in [512, 4096, 65536] {
        let stage = Stage::with_geometry(page_size, AutoVacuum::None);
        let db = stage.connect("app");
        let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
        assert_eq!(stage.main_file("app")[18..20], [2, 2], "file format versions of the header");
        db.execute_batch(TABLE).unwrap();
        assert_eq!(stage.commits("app"), 1);
        stage.compare("app");
    }
}

/// Shows INV-18.
#[test]
fn one_transaction_writes_to_one_replicated_database() {
    let stage = Stage::new();
    stage.connect("one").execute_batch(TABLE).unwrap();
    stage.connect("two").execute_batch(TABLE).unwrap();
    let db = stage.connect("one");
    db.execute("ATTACH ?1 AS two", [stage.uri("two", "")]).unwrap();
    let before = (stage.commits("one"), stage.commits("two"));
    db.execute_batch("BEGIN; INSERT INTO main.t(v) VALUES (1)").unwrap();
    assert_eq!(number(&db, "SELECT count(*) FROM two.t"), 0, "reading is fine");
    assert_eq!(code(db.execute("INSERT INTO two.t(v) VALUES (1)", [])), SECOND_WRITER);
    db.execute_batch("ROLLBACK").unwrap();
    assert_eq!(code(db.execute_batch("BEGIN IMMEDIATE")), SECOND_WRITER, "asks for both");
    assert!(db.is_autocommit());
    assert_eq!((stage.commits("one"), stage.commits("two")), before);
    db.execute_batch("INSERT INTO main.t(v) VALUES (1); INSERT INTO two.t(v) VALUES (2)").unwrap();
    db.execute_batch("BEGIN; INSERT INTO two.t(v) SELECT v FROM main.t; COMMIT").unwrap();
    assert_eq!((stage.commits("one"), stage.commits("two")), (before.0 + 1, before.1 + 2));
    // Another connection was never concerned.
    stage.connect("one").execute("INSERT INTO t(v) VALUES (3)", []).unwrap();
    stage.compare("one");
    stage.compare("two");
}

#[test]
fn pragmas_of_ours_answer() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(TABLE).unwrap();
    let ask = |sql: &str| db.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(ask("PRAGMA shoal_position"), stage.database("app").position().to_string());
    assert_eq!(ask("PRAGMA shoal_read_level"), "local");
    assert_eq!(ask("PRAGMA shoal_read_level = linearizable"), "linearizable");
    assert_eq!(ask("PRAGMA shoal_read_level"), "linearizable");
    let said = text(db.execute_batch("PRAGMA shoal_read_level = sometimes"));
    assert!(said.contains("use local or linearizable"), "{said}");
    stage.compare("app");
}

/// SQLite's own handle of a main file.
#[allow(unsafe_code)]
fn file_of(db: &Connection) -> *mut ffi::sqlite3_file {
    let mut file = std::ptr::null_mut::<ffi::sqlite3_file>();
    // SAFETY: the handle is open, the name zero-terminated, and this request writes one pointer.
    let rc = unsafe {
        let file = (&raw mut file).cast();
        ffi::sqlite3_file_control(db.handle(), c"main".as_ptr(), ffi::SQLITE_FCNTL_FILE_POINTER, file)
    };
    assert_eq!(rc, ffi::SQLITE_OK);
    assert!(!file.is_null());
    file
}

/// Whoever writes there goes past the log. No statement does; should a version of SQLite come to it, this is what it is told.
#[test]
#[allow(unsafe_code)]
fn nobody_writes_to_the_main_file_through_sqlite_or_cuts_it() {
    let stage = Stage::new();
    let db = stage.connect("app");
    db.execute_batch(&format!("{TABLE}; INSERT INTO t(v) VALUES (1)")).unwrap();
    for moment in ["at rest", "with a read transaction", "with the write lock"] {
        let main = stage.main_file("app");
        let file = file_of(&db);
        let zeros = [0u8; 4096];
        for offset in [0, 4096, main.len() as i64, 1 << 40] {
            // SAFETY: the file is open as long as `db` is; the buffer is as long as is said.
            let rc = unsafe { (*(*file).pMethods).xWrite.unwrap()(file, zeros.as_ptr().cast(), 4096, offset) };
            assert_eq!(rc, ffi::SQLITE_IOERR_WRITE, "{moment}, at {offset}");
        }
        for size in [0, 4096, main.len() as i64, 1 << 40] {
            // SAFETY: as above.
            let rc = unsafe { (*(*file).pMethods).xTruncate.unwrap()(file, size) };
            assert_eq!(rc, ffi::SQLITE_IOERR_TRUNCATE, "{moment}, to {size}");
        }
        assert_eq!(stage.main_file("app"), main, "{moment}");
        assert_eq!(number(&db, "SELECT count(*) FROM t"), 1, "{moment}");
        match moment {
            "at rest" => db.execute_batch("BEGIN; SELECT * FROM t").unwrap(),
            "with a read transaction" => db.execute_batch("ROLLBACK; BEGIN IMMEDIATE").unwrap(),
            _ => db.execute_batch("COMMIT").unwrap(),
        }
    }
    stage.compare("app");
}

/// SQLite asks the main file, and by the answer it syncs the WAL in the middle of a commit, and pads it to a sector.
#[test]
#[allow(unsafe_code)]
fn the_main_file_says_that_writes_stay_in_order_and_touch_nothing_else() {
    let stage = Stage::new();
    let always = ffi::SQLITE_IOCAP_SEQUENTIAL;
    let unless_told = ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE;
    for (parameters, expected) in [("", always | unless_told), ("&psow=1", always | unless_told), ("&psow=0", always)] {
        let db = stage.connect_with("app", parameters);
        let file = file_of(&db);
        // SAFETY: the file is open as long as `db` is.
        let said = unsafe { (*(*file).pMethods).xDeviceCharacteristics.unwrap()(file) };
        assert_eq!(said, expected, "{parameters}");
    }
    stage.compare("app");
}

/// Extensions are loaded through the connection's VFS: a method missing there was a call of address 0.
#[test]
#[allow(unsafe_code)]
fn loading_an_extension_that_does_not_exist_is_an_error() {
    let stage = Stage::new();
    let db = stage.connect("app");
    // SAFETY: the handle is open.
    let rc = unsafe { ffi::sqlite3_enable_load_extension(db.handle(), 1) };
    assert_eq!(rc, ffi::SQLITE_OK);
    let said = text(db.execute_batch("SELECT load_extension('/no/such/extension')"));
    assert!(said.contains("/no/such/extension"), "{said}");
    db.execute_batch(TABLE).unwrap();
    stage.compare("app");
}
