//! A database out into a plain SQLite file, and any SQLite file in as a database.
//!
//! Both are SQLite's backup API with a connection of this node on one side. It copies page by page, so that memory holds
//! a page cache and no database.
//!
//! ```text
//! out  1  a file FILE.new-<random>, created here: nobody else has it, only its owner may read it
//!      2  one read transaction over everything that follows: writes go on, the copy is one state
//!      3  the pages, through a connection without a journal: a copy that is not whole is thrown away
//!      4  bytes 18 and 19 of the header become 1: ours are in WAL mode, a file that is handed around should not be
//!      5  sync; renamed to FILE if there is no FILE; the directory is synced
//!
//! in   1  this node must lead: the pages go through its log
//!      2  the file is looked at: SQLite's name in front, a whole number of pages, PRAGMA integrity_check. It is open for
//!         reading, in one read transaction until the end; a `-wal` beside it counts
//!      3  the database is created with the page size of the file, if there is none of that name
//!      4  the pages, as one transaction
//! ```
//!
//! Nothing is changed before step 3 of a restore, and step 4 happens or does not, whoever leads then. If it certainly does not,
//! a database that step 3 created is dropped again: it is held for writing from before the look at whether it is still empty
//! until the drop is decided, so that nobody's rows go with it. A transaction of that
//! size is an ordinary one here: its frames leave memory (`vfs/src/spill.rs`), and it goes through the log in parts
//! (`entry/split.rs`). Readers see the old database until it is committed.
//!
//! **What must be the same** when there is a database already: the page size, which no transaction can change, and the
//! encoding of texts, since open connections would go on in the old one. Anything else is in the pages.
//!
//! Files that people name are not the node's own: they are reached through the system's door, whatever door the node has.
//!
//! Deliberately absent: files of other programs (an encrypted database cannot be read here), and incremental backups.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use shoaldb_vfs::Database;
use shoaldb_vfs::env::os::{self, OsFs, OsRng};
use shoaldb_vfs::env::{Fs, Open, Rng};
use shoaldb_vfs::page::PageSize;

use crate::catalogue::{AutoVacuum, DatabaseName};
use crate::entry::Body;
use crate::error::{Error, ErrorKind, Outcome, Result, not_leader_code};
use crate::events::{Phase, Progress};
use crate::pending::Decision;
use crate::raft::Role;
use crate::shared::Hub;
use crate::status;

/// The door to files that are named by people.
const FILES: OsFs = OsFs;
/// Bytes between two reports: some milliseconds of a disk.
const STEP_BYTES: u32 = 1 << 20;
/// Steps of SQLite between two looks at whether the node ends: far less than a millisecond.
const CHECK_STEPS: i32 = 1000;
/// How every SQLite file begins.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Where a header says how the file is to be written and read: 1 is a rollback journal, 2 a WAL.
const VERSIONS_AT: u64 = 18;

/// Who is told how far it is.
pub(crate) type Told<'a> = &'a mut dyn FnMut(Progress);

/// A connection of this node to a database that exists.
fn connect(hub: &Hub, name: &str, read_only: bool) -> Result<Connection> {
    let access = if read_only { OpenFlags::SQLITE_OPEN_READ_ONLY } else { OpenFlags::SQLITE_OPEN_READ_WRITE };
    let flags = access | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("file:{name}?vfs={}", hub.vfs_name()), flags)?;
    connection.busy_timeout(hub.config.busy_timeout)?;
    Ok(connection)
}

fn valid(name: &str) -> Result<DatabaseName> {
    DatabaseName::new(name).map_err(|error| Error::new(ErrorKind::BadInput, error.to_string()))
}

fn existing(hub: &Hub, name: &DatabaseName) -> Result<Option<Arc<Database>>> {
    use shoaldb_vfs::error::Refusal;
    match hub.databases.find(name.as_str(), false) {
        Ok(db) => Ok(Some(db)),
        Err(Refusal::NodeStopped) => Err(Error::new(ErrorKind::Stopped, "this node is shut down")),
        Err(_) => status::unserved(hub, name.as_str()).map_or(Ok(None), Err),
    }
}

/// Without a working directory there are only absolute paths, and those stay what they are.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// Copies all pages.
fn copy(from: &Connection, to: &mut Connection, page_size: PageSize, told: Told<'_>) -> rusqlite::Result<StepResult> {
    let step = (STEP_BYTES / page_size.bytes()).max(1).cast_signed();
    let bytes = |pages: i32| u64::from(pages.cast_unsigned()) * u64::from(page_size.bytes());
    let backup = Backup::new(from, to)?;
    // The first step learns how many pages there are.
    let mut next = 1;
    loop {
        match backup.step(next)? {
            StepResult::More => {}
            end => return Ok(end),
        }
        let progress = backup.progress();
        let (done, total) = (bytes(progress.pagecount - progress.remaining), bytes(progress.pagecount));
        // The step with the last page also commits.
        let phase = if progress.remaining <= step { Phase::Committing } else { Phase::Copying };
        told(Progress { phase, done, total });
        next = step;
    }
}

/// See the module's text.
pub(crate) fn backup(hub: &Hub, name: &str, path: &Path, told: Told<'_>) -> Result<()> {
    let name = valid(name)?;
    let path = absolute(path);
    let (Some(dir), Some(file)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(ErrorKind::BadInput, format!("{}: not the name of a file", path.display())));
    };
    let taken = || {
        let text = format!("{}: exists already; nothing was written, choose another name", path.display());
        Error::new(ErrorKind::Exists, text)
    };
    match FILES.open(&path, Open::Read, "backup.look") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        _ => return Err(taken()),
    }
    let Some(db) = existing(hub, &name)? else {
        return Err(Error::new(ErrorKind::NotFound, format!("no database named {name}")));
    };
    let failed = |error: std::io::Error| {
        Error::caused(ErrorKind::Io, format!("{}: no backup was written: {error}", path.display()), error)
    };
    let mut unfinished = file.to_os_string();
    unfinished.push(format!(".new-{:016x}", OsRng.next_u64()));
    let unfinished = dir.join(unfinished);
    FILES.open(&unfinished, Open::CreateNew, "backup.create").map_err(failed)?;
    let written = copy_out(hub, &name, db.geometry().page_size, (&unfinished, &path), told).and_then(|()| {
        os::rename_new(&unfinished, &path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => taken(),
            _ => failed(error),
        })
    });
    if let Err(error) = written {
        // What cannot be removed is named by the error's reader: it has a name that says what it is.
        let _ = FILES.remove(&unfinished, "backup.remove");
        return Err(error);
    }
    FILES.sync_dir(dir, "backup.dir").map_err(failed)
}

/// Into `to`, which people know as `shown`.
fn copy_out(
    hub: &Hub,
    name: &DatabaseName,
    page_size: PageSize,
    (to, shown): (&Path, &Path),
    told: Told<'_>,
) -> Result<()> {
    let source = connect(hub, name.as_str(), true)?;
    begin_reading(&source)?;
    let failed = |error: rusqlite::Error| {
        let error = Error::from(error);
        Error::caused(error.kind(), format!("{}: no backup was written: {error}", shown.display()), error)
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags_and_vfs(to, flags, "unix").map_err(failed)?;
    target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF").map_err(failed)?;
    match copy(&source, &mut target, page_size, told).map_err(failed)? {
        StepResult::Done => {}
        _ => return Err(Error::new(ErrorKind::Busy, format!("{}: another process uses it", shown.display()))),
    }
    target.close().map_err(|(_, error)| failed(error))?;
    let sync = || -> std::io::Result<()> {
        let file = FILES.open(to, Open::Write, "backup.open")?;
        file.write_at(&[1, 1], VERSIONS_AT, "backup.header")?;
        file.sync_data("backup.sync")
    };
    sync().map_err(|error| {
        Error::caused(ErrorKind::Io, format!("{}: no backup was written: {error}", shown.display()), error)
    })
}

/// Everything that this connection reads from now on is one state.
fn begin_reading(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN")?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
}

/// See the module's text.
pub(crate) fn restore(hub: &Hub, name: &str, path: &Path, told: Told<'_>) -> Result<()> {
    let name = valid(name)?;
    let path = absolute(path);
    check_leader(hub)?;
    // Before a check that may take minutes.
    if hub.pending.has_abandoned_create(&name) && existing(hub, &name)?.is_none() {
        let undecided = || format!("database {name} is being created, and whether it was is not decided yet");
        let what = status::held_up(hub).unwrap_or_else(undecided);
        return Err(Error::new(ErrorKind::NotCommitted, format!("{what}; nothing was restored, try again")));
    }
    told(Progress { phase: Phase::Checking, done: 0, total: 0 });
    let source = open_source(hub, &path)?;
    let limit = hub.config.transaction_limit;
    if source.pages * u64::from(source.page_size.bytes()) > limit {
        return Err(Error::new(
            ErrorKind::NotCommitted,
            format!(
                "{}: {} pages of {} bytes are more than transaction_limit, {limit} bytes; start the nodes with a higher one",
                path.display(),
                source.pages,
                source.page_size.bytes()
            ),
        ));
    }
    let (db, created) = match existing(hub, &name)? {
        Some(db) => (db, false),
        None => create(hub, &name, &source)?,
    };
    let refused = |what: &str, has: &dyn std::fmt::Display, file: &dyn std::fmt::Display| {
        let text = format!(
            "database {name} has {what} {has}, {} has {file}: that cannot change; drop the database first, or choose \
             another name",
            path.display()
        );
        Error::new(ErrorKind::Exists, text)
    };
    // Without any page it has no size of its own.
    let here = db.geometry().page_size;
    if source.pages > 0 && here != source.page_size {
        return Err(refused("pages of", &here.bytes(), &source.page_size.bytes()));
    }
    let mut target = connect(hub, name.as_str(), false)?;
    let version: i64 = target.query_row("PRAGMA schema_version", [], |row| row.get(0))?;
    // For SQLite a file of 0 bytes is a database without anything in it; for whoever restores a backup, one that was not written.
    if version != 0 && source.pages == 0 {
        return Err(damaged(&path, "0 bytes; to have an empty database, drop it and create it anew"));
    }
    if version != 0 && source.pages > 0 {
        let encoding = encoding_of(&target)?;
        if encoding != source.encoding {
            return Err(refused("texts in", &encoding, &source.encoding));
        }
    }
    let error = match copy(&source.connection, &mut target, here, told) {
        Ok(StepResult::Done) => return Ok(()),
        Ok(_) => Error::new(ErrorKind::Busy, format!("database {name}: another writer holds it; try again")),
        Err(error) => error.into(),
    };
    if !created || error.outcome() == Some(Outcome::Unknown) {
        return Err(error);
    }
    let gone = take_back(hub, &db, &target);
    let text = match gone {
        true => format!("{error}; there was no database {name} before, and there is none now"),
        false => format!("{error}; an empty database {name} is left; restore again, or drop it: shoal db drop {name}"),
    };
    Err(Error::caused(error.kind(), text, error))
}

/// Drops the database that a restore created and could not fill. Whether it is gone.
fn take_back(hub: &Hub, db: &Arc<Database>, target: &Connection) -> bool {
    let Some(database) = hub.databases.id_of(db) else { return true };
    // Waits for a leader up to the busy timeout; on another node it fails. From here on nobody else writes.
    if target.execute_batch("BEGIN IMMEDIATE").is_err() {
        return false;
    }
    let empty = db.position().0 == database.0;
    let gone = empty && matches!(hub.propose(Body::DropDatabase { database }, None), Decision::Committed(_));
    // If the database is gone, so is the transaction.
    let _ = target.execute_batch("ROLLBACK");
    gone
}

/// Waits up to an election timeout for a leader that has just been elected to be ready.
fn check_leader(hub: &Hub) -> Result<()> {
    let deadline = hub.deadline(hub.config.election_timeout);
    let ready = hub.changed.wait(&hub.waiting, deadline, std::time::Duration::from_millis(20), || {
        let leads = hub.leadership().role == Role::Leader;
        (!leads || hub.is_ready_leader()).then_some(leads)
    });
    if ready == Some(true) && hub.trouble().is_none() {
        return Ok(());
    }
    let leader = hub.leadership().leader.filter(|leader| *leader != hub.id);
    let code = not_leader_code(leader.map_or(0, |leader| leader.0));
    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into())
}

/// The database, and whether it was not there before.
fn create(hub: &Hub, name: &DatabaseName, source: &Source) -> Result<(Arc<Database>, bool)> {
    let held_up = |otherwise: &str| status::held_up(hub).unwrap_or_else(|| otherwise.to_string());
    let body =
        Body::CreateDatabase { name: name.clone(), page_size: source.page_size, auto_vacuum: source.auto_vacuum };
    match hub.propose(body, None) {
        // Refused means that it exists: somebody was faster.
        decision @ (Decision::Committed(_) | Decision::Refused(_)) => {
            let db = existing(hub, name)?.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("database {name} could not be created, or was dropped at once"))
            })?;
            Ok((db, matches!(decision, Decision::Committed(_))))
        }
        Decision::NotCommitted => {
            Err(Error::new(ErrorKind::NotCommitted, "leadership changed; nothing was restored, try again"))
        }
        Decision::Lost => Err(Error::new(
            ErrorKind::NotCommitted,
            format!(
                "{}; nothing was restored, but an empty database {name} may be there, now or later",
                held_up("no majority answered in time")
            ),
        )),
    }
}

/// A file that was looked at, and does not change under us.
struct Source {
    connection: Connection,
    pages: u64,
    page_size: PageSize,
    auto_vacuum: AutoVacuum,
    encoding: String,
}

fn encoding_of(connection: &Connection) -> rusqlite::Result<String> {
    connection.query_row("PRAGMA encoding", [], |row| row.get(0))
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{}: {what}; nothing was changed", path.display()))
}

/// What SQLite finds wrong with a database; `ok` if nothing. The check compares every index with its table, and costs a look-up
/// in each index for each row: minutes for a file of gigabytes that is not in memory. `quick_check` would let an index through
/// that lost a row, or has a key twice. Foreign keys are the affair of whoever wrote the file.
fn verdict(connection: &Connection) -> rusqlite::Result<String> {
    let ask = |sql: &str| connection.query_row(sql, [], |row| row.get(0));
    match ask("PRAGMA integrity_check(1)") {
        // An index over a function of somebody's program cannot be compared here. Such a file is none the worse for it.
        Err(
            rusqlite::Error::SqlInputError { error: ffi::Error { extended_code: ffi::SQLITE_ERROR, .. }, .. }
            | rusqlite::Error::SqliteFailure(ffi::Error { extended_code: ffi::SQLITE_ERROR, .. }, _),
        ) => ask("PRAGMA quick_check(1)"),
        verdict => verdict,
    }
}

/// Opens a SQLite file and checks it. Reads all of it, unless the node ends meanwhile.
fn open_source(hub: &Hub, path: &Path) -> Result<Source> {
    // To open a pipe may take for ever.
    if path.metadata().is_ok_and(|it| !it.is_file()) {
        return Err(damaged(path, "not a regular file"));
    }
    let clean_wal = check_file(path)?;
    let is_hot = |error: &rusqlite::Error| {
        error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_READONLY_ROLLBACK)
    };
    let was_ended = |error: &rusqlite::Error| error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted);
    let failed = |error: rusqlite::Error| match (is_hot(&error), was_ended(&error), Error::from(error)) {
        (_, true, error) => {
            let text = format!(
                "{}: node {} ends, and did not look at all of the file; nothing was changed, try again",
                path.display(),
                hub.id
            );
            Error::caused(ErrorKind::NotCommitted, text, error)
        }
        (true, _, error) => {
            let text = format!(
                "{}: a transaction was interrupted, and its journal is still to be rolled back; read the file once with the \
                 program that it belongs to, or with sqlite3; nothing was changed",
                path.display()
            );
            Error::caused(ErrorKind::BadInput, text, error)
        }
        (_, _, error) if error.is_corrupt() => damaged(path, &format!("damaged: {error}")),
        (_, _, error) => {
            let text = format!("{}: cannot be read: {error}; nothing was changed", path.display());
            Error::caused(error.kind(), text, error)
        }
    };
    // Whoever may only read a file in WAL mode leaves an empty `-wal` beside it. Whoever may write takes it away again, and
    // has nothing else to write where there was none.
    let access = if clean_wal { OpenFlags::SQLITE_OPEN_READ_WRITE } else { OpenFlags::SQLITE_OPEN_READ_ONLY };
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(path, flags, "unix").map_err(failed)?;
    let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, u32>(0)).map_err(failed);
    let ends = {
        let hub = hub.clone();
        move || hub.is_closing()
    };
    connection.progress_handler(CHECK_STEPS, Some(ends)).map_err(failed)?;
    begin_reading(&connection).map_err(failed)?;
    let verdict = verdict(&connection).map_err(failed)?;
    if verdict != "ok" {
        return Err(damaged(path, &format!("damaged: {}", verdict.trim().replace('\n', ", "))));
    }
    let page_size = number("PRAGMA page_size")?;
    let auto_vacuum = number("PRAGMA auto_vacuum")?;
    Ok(Source {
        pages: number("PRAGMA page_count")?.into(),
        page_size: PageSize::new(page_size).ok_or_else(|| damaged(path, &format!("pages of {page_size} bytes")))?,
        auto_vacuum: u8::try_from(auto_vacuum).ok().and_then(AutoVacuum::from_number).unwrap_or(AutoVacuum::None),
        encoding: encoding_of(&connection).map_err(failed)?,
        connection,
    })
}

/// What SQLite would put less clearly, or would not mind: a file that ends within a page has lost its end. Returns whether
/// the file is in WAL mode and has no WAL.
fn check_file(path: &Path) -> Result<bool> {
    let look = || -> std::io::Result<(u64, [u8; 100], usize)> {
        let file = FILES.open(path, Open::Read, "restore.look")?;
        let mut header = [0; 100];
        let got = file.read_at(&mut header, 0, "restore.header")?;
        Ok((file.len("restore.len")?, header, got))
    };
    let (len, header, got) = look().map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Error::caused(kind, format!("{}: {error}", path.display()), error)
    })?;
    if len == 0 {
        return Ok(false);
    }
    if got < header.len() || &header[..16] != MAGIC {
        return Err(damaged(path, "not a SQLite database, or an encrypted one"));
    }
    let size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        size => u64::from(size),
    };
    // With a WAL beside it, the end may be there.
    let mut wal = path.as_os_str().to_os_string();
    wal.push("-wal");
    let wal = FILES.open(Path::new(&wal), Open::Read, "restore.wal").and_then(|wal| wal.len("restore.wal"));
    if size > 0 && len % size != 0 && !matches!(wal, Ok(1..)) {
        return Err(damaged(path, &format!("truncated: {len} bytes are not a whole number of pages of {size}")));
    }
    Ok(header[18] == 2 && wal.is_err())
}
