//! SQLite's C interface: the one place that takes its pointers.
//!
//! Each shim checks its arguments, calls `conn.rs`, maps the result to a code, and lets no panic cross into C
//! (`guard`). Files that are not ours (temporary databases, statement journals, sorter files) are opened by the "unix"
//! VFS in the same buffer, which from then on belongs to it: its methods stand in the first word. In a simulation they are
//! opened by "memdb".
//!
//! ```text
//! sqlite3_file buffer, at least size_of::<ShoalFile>() bytes, or what "unix" asks for if that is more
//! offset  field
//!      0  pMethods: ours (main or WAL), or those of "unix"
//!      8  ours only: Arc<MainFile> as a raw pointer, owned by this buffer until xClose
//! ```
//!
//! A `sqlite3_vfs` registered here is never freed, since SQLite may look at it as long as any connection lives. It is
//! small; what hangs on it is dropped when the registration ends.
//!
//! What a VFS may refuse and how SQLite reacts is in VFS rules 1-3 of DESIGN.md: locks from RESERVED on (rollback
//! journals) are always busy; writes and truncations of the main file are refused; `immutable` and `nolock` are refused,
//! as they would go past the WAL.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use libsqlite3_sys as sql;
use parking_lot::RwLock;

use crate::conn::{self, Conn};
use crate::env::Clock;
use crate::error::Refusal;
use crate::lock::LOCKS;
use crate::pragma::{self, Answer};
use crate::replicator::Replicator;
use crate::wal::index::REGION_BYTES;

/// What SQLite is told about sectors: the size that POWERSAFE_OVERWRITE makes irrelevant, as "unix" says.
const SECTOR: c_int = 4096;
/// Longest path SQLite may pass: names have up to 128 characters, temporary files paths of "unix".
const MAX_PATH: c_int = 1024;

/// Moves the lock page of all databases of this process to where that byte is, a multiple of every page size in use: for
/// simulations, whose databases have no gigabyte. Only while no connection is open.
#[doc(hidden)]
pub fn move_lock_page(at: u32) {
    // SAFETY: this verb takes one `unsigned int` (SQLite's contract in `sqlite3.h`), and sets a number that nobody reads
    // while no connection is open.
    unsafe { sql::sqlite3_test_control(sql::SQLITE_TESTCTRL_PENDING_BYTE, at) };
    crate::page::move_lock_page(u64::from(at));
}

/// Has SQLite's generator begin anew with this seed, in the whole process: for a simulation, which is alone in it.
pub fn seed_generator(seed: u32) {
    let db: *mut sql::sqlite3 = std::ptr::null_mut();
    // SAFETY: this verb takes an `int` and a connection or null (SQLite's contract in `sqlite3.h`), and takes SQLite's own lock.
    unsafe { sql::sqlite3_test_control(sql::SQLITE_TESTCTRL_PRNG_SEED, seed.cast_signed(), db) };
}

/// Who opens temporary files: null is "unix".
static TEMPORARY: AtomicPtr<sql::sqlite3_vfs> = AtomicPtr::new(std::ptr::null_mut());

/// Has all temporary files of this process stay in memory from now on: for a simulation, which has no disk but its own. SQLite
/// names such files by its generator, so two processes that begin with the same seed would meet in the directory for them. An
/// error if this SQLite has no VFS for it.
pub fn keep_temporary_files_in_memory() -> Result<(), String> {
    // SAFETY: a zero-terminated string; SQLite initialises itself first.
    let memory = unsafe { sql::sqlite3_vfs_find(c"memdb".as_ptr()) };
    if memory.is_null() {
        return Err("this SQLite has no vfs named \"memdb\"".to_string());
    }
    TEMPORARY.store(memory, Ordering::Release);
    Ok(())
}

/// What a registered VFS leads to. `None` once the registration has ended.
struct Registered {
    replicator: RwLock<Option<Arc<dyn Replicator>>>,
    clock: Arc<dyn Clock>,
    unix: *mut sql::sqlite3_vfs,
}

/// A VFS that is registered with SQLite until this value is dropped. Connections that are open then stay usable as far as
/// their databases are; new ones cannot be opened.
pub struct Registration {
    name: String,
    vfs: *mut sql::sqlite3_vfs,
}

// SAFETY: the pointer is only handed back to SQLite, whose registry is behind a mutex of its own, and read as
// `Registered`, whose fields are safe to share.
unsafe impl Send for Registration {}
// SAFETY: as above; no method changes anything through `&self`.
unsafe impl Sync for Registration {}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Registration {
    /// Registers a VFS called `name`, not as the default. Fails if another VFS of this process has the name, or if this
    /// SQLite was built without its "unix" VFS.
    pub fn new(name: &str, replicator: Arc<dyn Replicator>, clock: Arc<dyn Clock>) -> Result<Registration, String> {
        let c_name = CString::new(name).map_err(|_| format!("vfs name {name:?} contains a zero byte"))?;
        // SAFETY: plain C calls with valid, zero-terminated strings; SQLite initialises itself first.
        let (taken, unix) = unsafe {
            if sql::sqlite3_initialize() != sql::SQLITE_OK {
                return Err("sqlite3_initialize failed".to_string());
            }
            (sql::sqlite3_vfs_find(c_name.as_ptr()), sql::sqlite3_vfs_find(c"unix".as_ptr()))
        };
        if !taken.is_null() {
            return Err(format!("a vfs named {name:?} is registered already; choose another vfs_name"));
        }
        if unix.is_null() {
            return Err("this SQLite has no vfs named \"unix\"".to_string());
        }
        let registered = Box::new(Registered { replicator: RwLock::new(Some(replicator)), clock, unix });
        // SAFETY: `unix` came from SQLite's registry, whose entries live as long as the process.
        let unix_size = unsafe { (*unix).szOsFile };
        let vfs = Box::new(sql::sqlite3_vfs {
            iVersion: 2,
            szOsFile: unix_size.max(size_of::<ShoalFile>() as c_int),
            mxPathname: MAX_PATH,
            pNext: std::ptr::null_mut(),
            zName: c_name.into_raw(),
            pAppData: Box::into_raw(registered).cast::<c_void>(),
            xOpen: Some(x_open),
            xDelete: Some(x_delete),
            xAccess: Some(x_access),
            xFullPathname: Some(x_full_pathname),
            // Extensions are loaded through the connection's VFS, and SQLite calls these without looking.
            xDlOpen: Some(x_dl_open),
            xDlError: Some(x_dl_error),
            xDlSym: Some(x_dl_sym),
            xDlClose: Some(x_dl_close),
            xRandomness: Some(x_randomness),
            xSleep: Some(x_sleep),
            xCurrentTime: Some(x_current_time),
            xGetLastError: None,
            xCurrentTimeInt64: Some(x_current_time_int64),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        });
        let vfs = Box::into_raw(vfs);
        // SAFETY: `vfs` was just leaked and stays valid for ever; 0 means "not the default".
        let code = unsafe { sql::sqlite3_vfs_register(vfs, 0) };
        if code != sql::SQLITE_OK {
            return Err(format!("sqlite3_vfs_register failed with code {code}"));
        }
        Ok(Registration { name: name.to_string(), vfs })
    }

    /// The name to put behind `vfs=`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: `self.vfs` was registered by `new` and is never freed.
        unsafe {
            sql::sqlite3_vfs_unregister(self.vfs);
            registered(self.vfs).replicator.write().take();
        }
    }
}

/// # Safety
/// `vfs` must be one that [`Registration::new`] made.
unsafe fn registered<'a>(vfs: *mut sql::sqlite3_vfs) -> &'a Registered {
    // SAFETY: by contract; `pAppData` was leaked and never changes.
    unsafe { &*(*vfs).pAppData.cast::<Registered>() }
}

/// The main file of a connection; its WAL file shares it.
struct MainFile {
    conn: Conn,
    /// Where SQLite keeps the `sqlite3*` of this file (from `SQLITE_FCNTL_PDB`).
    connection: AtomicPtr<*mut sql::sqlite3>,
    vfs_name: *const c_char,
}

impl MainFile {
    /// The `sqlite3*` on whose behalf SQLite is calling, or null.
    fn sqlite(&self) -> *mut sql::sqlite3 {
        let place = self.connection.load(Ordering::Acquire);
        if place.is_null() {
            return std::ptr::null_mut();
        }
        // SAFETY: SQLite passed the address of a field of the B-tree that owns this file, which outlives it, and calls us
        // with the B-tree's mutex held, under which it writes that field.
        unsafe { *place }
    }

    fn interrupted(&self) -> bool {
        let sqlite = self.sqlite();
        // SAFETY: the connection is inside this call, so it is open.
        !sqlite.is_null() && unsafe { sql::sqlite3_is_interrupted(sqlite) } != 0
    }
}

#[repr(C)]
struct ShoalFile {
    base: sql::sqlite3_file,
    main: *const MainFile,
}

/// # Safety
/// `file` must be a file that `x_open` opened as ours and that is not closed yet.
unsafe fn main_of<'a>(file: *mut sql::sqlite3_file) -> &'a MainFile {
    // SAFETY: by contract the buffer is a `ShoalFile` whose `main` came from `Arc::into_raw`.
    unsafe { &*(*file.cast::<ShoalFile>()).main }
}

/// Runs a shim. A panic is our bug; SQLite gets an I/O error, and the panic's message has been printed by the hook.
fn guard(act: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(sql::SQLITE_IOERR)
}

fn code(result: Result<(), Refusal>) -> c_int {
    match result {
        Ok(()) => sql::SQLITE_OK,
        Err(refusal) => refusal.code(),
    }
}

fn short_read(result: Result<usize, Refusal>, buf: &mut [u8]) -> c_int {
    match result {
        Ok(got) if got == buf.len() => sql::SQLITE_OK,
        Ok(got) => {
            buf[got..].fill(0);
            sql::SQLITE_IOERR_SHORT_READ
        }
        Err(refusal) => refusal.code(),
    }
}

fn log(code: c_int, text: &str) {
    if let Ok(text) = CString::new(text) {
        // SAFETY: the format takes one string, which is zero-terminated.
        unsafe { sql::sqlite3_log(code, c"%s".as_ptr(), text.as_ptr()) };
    }
    tracing::warn!("{text}");
}

const METHODS_MAIN: sql::sqlite3_io_methods = sql::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(x_close),
    xRead: Some(x_read_main),
    xWrite: Some(x_refuse_write),
    xTruncate: Some(x_refuse_truncate),
    xSync: Some(x_sync_main),
    xFileSize: Some(x_file_size_main),
    xLock: Some(x_lock),
    xUnlock: Some(x_unlock),
    xCheckReservedLock: Some(x_check_reserved_lock),
    xFileControl: Some(x_file_control),
    xSectorSize: Some(x_sector_size),
    xDeviceCharacteristics: Some(x_device_characteristics),
    xShmMap: Some(x_shm_map),
    xShmLock: Some(x_shm_lock),
    xShmBarrier: Some(x_shm_barrier),
    xShmUnmap: Some(x_shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

const METHODS_WAL: sql::sqlite3_io_methods = sql::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(x_close),
    xRead: Some(x_read_wal),
    xWrite: Some(x_write_wal),
    xTruncate: Some(x_truncate_wal),
    xSync: Some(x_sync_wal),
    xFileSize: Some(x_file_size_wal),
    xLock: Some(x_lock),
    xUnlock: Some(x_unlock),
    xCheckReservedLock: Some(x_check_reserved_lock),
    xFileControl: Some(x_file_control_wal),
    xSectorSize: Some(x_sector_size),
    xDeviceCharacteristics: Some(x_device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

static MAIN: sql::sqlite3_io_methods = METHODS_MAIN;
static WAL: sql::sqlite3_io_methods = METHODS_WAL;

unsafe extern "C" fn x_open(
    vfs: *mut sql::sqlite3_vfs,
    name: *const c_char,
    file: *mut sql::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    guard(|| {
        // SAFETY: SQLite passes our vfs, a buffer of szOsFile bytes, and a name that is null or zero-terminated and
        // followed by its URI parameters (contract of xOpen).
        unsafe {
            (*file).pMethods = std::ptr::null();
            let registered = registered(vfs);
            if flags & sql::SQLITE_OPEN_WAL != 0 {
                return open_wal(name, file, flags, out_flags);
            }
            if name.is_null() || flags & sql::SQLITE_OPEN_MAIN_DB == 0 {
                return open_foreign(registered, name, file, flags, out_flags);
            }
            open_main(registered, vfs, name, file, flags, out_flags)
        }
    })
}

/// A file that is none of ours, opened by "unix" in the same buffer.
///
/// # Safety
/// As for `x_open`.
unsafe fn open_foreign(
    registered: &Registered,
    name: *const c_char,
    file: *mut sql::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let private = sql::SQLITE_OPEN_TEMP_DB
        | sql::SQLITE_OPEN_TRANSIENT_DB
        | sql::SQLITE_OPEN_TEMP_JOURNAL
        | sql::SQLITE_OPEN_SUBJOURNAL;
    if !name.is_null() || flags & private == 0 {
        // A rollback or super-journal beside one of our databases: nothing of ours is ever journalled that way.
        return sql::SQLITE_CANTOPEN;
    }
    let memory = TEMPORARY.load(Ordering::Acquire);
    let opener = if memory.is_null() { registered.unix } else { memory };
    // SAFETY: the buffer is as large as "unix" asks for, and "memdb" needs no more than the default VFS that it was made beside,
    // which is "unix"; each gets its own vfs.
    unsafe {
        match (*opener).xOpen {
            Some(open) => open(opener, name, file, flags, out_flags),
            None => sql::SQLITE_CANTOPEN,
        }
    }
}

/// # Safety
/// As for `x_open`, with a name.
unsafe fn open_main(
    registered: &Registered,
    vfs: *mut sql::sqlite3_vfs,
    name: *const c_char,
    file: *mut sql::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: `name` is zero-terminated and followed by its URI parameters.
    let (text, immutable, nolock, psow, read) = unsafe {
        (
            CStr::from_ptr(name),
            sql::sqlite3_uri_boolean(name, c"immutable".as_ptr(), 0) != 0,
            sql::sqlite3_uri_boolean(name, c"nolock".as_ptr(), 0) != 0,
            sql::sqlite3_uri_boolean(name, c"psow".as_ptr(), 1) != 0,
            sql::sqlite3_uri_parameter(name, c"read".as_ptr()),
        )
    };
    let Ok(text) = text.to_str() else { return sql::SQLITE_CANTOPEN };
    if immutable || nolock {
        log(
            sql::SQLITE_CANTOPEN,
            &format!("{text}: immutable and nolock would go past the replicated WAL; leave them out"),
        );
        return sql::SQLITE_CANTOPEN;
    }
    let linearizable = match read.is_null() {
        true => false,
        // SAFETY: SQLite returns a zero-terminated string.
        false => match pragma::parse_read_level(&unsafe { CStr::from_ptr(read) }.to_string_lossy()) {
            Some(linearizable) => linearizable,
            None => {
                log(sql::SQLITE_CANTOPEN, &format!("{text}: read={read:?}: use read=local or read=linearizable"));
                return sql::SQLITE_CANTOPEN;
            }
        },
    };
    let Some(replicator) = registered.replicator.read().clone() else { return Refusal::NodeStopped.code() };
    let create = flags & sql::SQLITE_OPEN_CREATE != 0;
    let database = match replicator.open(text, create) {
        Ok(database) => database,
        Err(refusal) => {
            if text.contains('/') {
                log(
                    refusal.code(),
                    &format!(
                        "{text}: a replicated database is named, not pathed; for an ordinary file write file:{text}?vfs=unix"
                    ),
                );
            }
            return refusal.code();
        }
    };
    let conn = match Conn::new(database, replicator, registered.clock.clone()) {
        Ok(conn) => conn,
        Err(error) => {
            log(sql::SQLITE_IOERR_SHMOPEN, &format!("{text}: the wal-index could not be mapped: {error}"));
            return sql::SQLITE_IOERR_SHMOPEN;
        }
    };
    conn.set_powersafe_overwrite(psow);
    conn.set_linearizable(linearizable);
    // SAFETY: `vfs` is ours, its name lives for ever.
    let vfs_name = unsafe { (*vfs).zName };
    let main = MainFile { conn, connection: AtomicPtr::new(std::ptr::null_mut()), vfs_name };
    // SAFETY: the buffer has room for a `ShoalFile`; `out_flags` is null or writable.
    unsafe {
        #[allow(clippy::arc_with_non_send_sync, reason = "both files belong to one connection: one thread at a time")]
        let main = Arc::new(main);
        (*file.cast::<ShoalFile>()).main = Arc::into_raw(main);
        (*file).pMethods = &MAIN;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    sql::SQLITE_OK
}

/// # Safety
/// As for `x_open`, for a WAL.
unsafe fn open_wal(name: *const c_char, file: *mut sql::sqlite3_file, flags: c_int, out_flags: *mut c_int) -> c_int {
    if name.is_null() {
        return sql::SQLITE_CANTOPEN;
    }
    // SAFETY: a WAL name that SQLite passes to xOpen leads back to the main file that it belongs to.
    let main_file = unsafe { sql::sqlite3_database_file_object(name) };
    // SAFETY: the main file is open, since its pager opens the WAL; methods other than ours mean it is not our file.
    unsafe {
        if main_file.is_null() || !std::ptr::eq((*main_file).pMethods, &MAIN) {
            return sql::SQLITE_CANTOPEN;
        }
        let main = (*main_file.cast::<ShoalFile>()).main;
        Arc::increment_strong_count(main);
        (*file.cast::<ShoalFile>()).main = main;
        (*file).pMethods = &WAL;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    sql::SQLITE_OK
}

unsafe extern "C" fn x_close(file: *mut sql::sqlite3_file) -> c_int {
    guard(|| {
        // SAFETY: SQLite closes a file once; the pointer came from `Arc::into_raw` or a counted copy of it.
        unsafe {
            let ours = file.cast::<ShoalFile>();
            drop(Arc::from_raw((*ours).main));
            (*ours).main = std::ptr::null();
            (*file).pMethods = std::ptr::null();
        }
        sql::SQLITE_OK
    })
}

/// The buffer of an xRead or xWrite as a slice, unless an argument is negative.
///
/// # Safety
/// `buf` must be valid for `amount` bytes during the call, and initialised.
unsafe fn buffer<'a>(buf: *mut c_void, amount: c_int, offset: i64) -> Option<(&'a mut [u8], u64)> {
    let amount = usize::try_from(amount).ok()?;
    let offset = u64::try_from(offset).ok()?;
    // SAFETY: by contract.
    Some((unsafe { std::slice::from_raw_parts_mut(buf.cast::<u8>(), amount) }, offset))
}

unsafe extern "C" fn x_read_main(file: *mut sql::sqlite3_file, buf: *mut c_void, amount: c_int, offset: i64) -> c_int {
    guard(|| {
        // SAFETY: an open file of ours; SQLite keeps `buf` valid for `amount` bytes until this call returns.
        let (main, buffer) = unsafe { (main_of(file), buffer(buf, amount, offset)) };
        let Some((buf, offset)) = buffer else { return sql::SQLITE_IOERR_READ };
        short_read(main.conn.read_main(buf, offset), buf)
    })
}

unsafe extern "C" fn x_read_wal(file: *mut sql::sqlite3_file, buf: *mut c_void, amount: c_int, offset: i64) -> c_int {
    guard(|| {
        // SAFETY: as in `x_read_main`.
        let (main, buffer) = unsafe { (main_of(file), buffer(buf, amount, offset)) };
        let Some((buf, offset)) = buffer else { return sql::SQLITE_IOERR_READ };
        short_read(main.conn.read_wal(buf, offset), buf)
    })
}

unsafe extern "C" fn x_write_wal(
    file: *mut sql::sqlite3_file,
    buf: *const c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    guard(|| {
        let (Ok(amount), Ok(offset)) = (usize::try_from(amount), u64::try_from(offset)) else {
            return sql::SQLITE_IOERR_WRITE;
        };
        // SAFETY: an open file of ours; SQLite keeps `buf` valid for `amount` bytes until this call returns
        // (contract of xWrite); we only read.
        let (main, bytes) = unsafe { (main_of(file), std::slice::from_raw_parts(buf.cast::<u8>(), amount)) };
        code(main.conn.write_wal(offset, bytes))
    })
}

unsafe extern "C" fn x_refuse_write(_: *mut sql::sqlite3_file, _: *const c_void, _: c_int, _: i64) -> c_int {
    sql::SQLITE_IOERR_WRITE
}

unsafe extern "C" fn x_refuse_truncate(_: *mut sql::sqlite3_file, _: i64) -> c_int {
    sql::SQLITE_IOERR_TRUNCATE
}

/// Frames beyond the size that SQLite wants to keep are garbage to it; they cost nothing until they are written again.
unsafe extern "C" fn x_truncate_wal(_: *mut sql::sqlite3_file, _: i64) -> c_int {
    sql::SQLITE_OK
}

unsafe extern "C" fn x_sync_main(_: *mut sql::sqlite3_file, _: c_int) -> c_int {
    sql::SQLITE_OK
}

unsafe extern "C" fn x_sync_wal(file: *mut sql::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: an open file of ours.
    guard(|| code(unsafe { main_of(file) }.conn.sync_wal()))
}

unsafe extern "C" fn x_file_size_main(file: *mut sql::sqlite3_file, size: *mut i64) -> c_int {
    guard(|| {
        // SAFETY: an open file of ours; `size` is writable.
        unsafe { *size = main_of(file).conn.db().main_len() as i64 };
        sql::SQLITE_OK
    })
}

unsafe extern "C" fn x_file_size_wal(file: *mut sql::sqlite3_file, size: *mut i64) -> c_int {
    guard(|| {
        // SAFETY: an open file of ours; `size` is writable.
        unsafe { *size = main_of(file).conn.db().wal_len() as i64 };
        sql::SQLITE_OK
    })
}

/// SHARED is free; from RESERVED on it would be a rollback journal or exclusive mode, neither of which exists here.
unsafe extern "C" fn x_lock(_: *mut sql::sqlite3_file, level: c_int) -> c_int {
    if level >= sql::SQLITE_LOCK_RESERVED { sql::SQLITE_BUSY } else { sql::SQLITE_OK }
}

unsafe extern "C" fn x_unlock(_: *mut sql::sqlite3_file, _: c_int) -> c_int {
    sql::SQLITE_OK
}

unsafe extern "C" fn x_check_reserved_lock(_: *mut sql::sqlite3_file, reserved: *mut c_int) -> c_int {
    // SAFETY: `reserved` is writable.
    unsafe { *reserved = 0 };
    sql::SQLITE_OK
}

unsafe extern "C" fn x_sector_size(_: *mut sql::sqlite3_file) -> c_int {
    SECTOR
}

unsafe extern "C" fn x_device_characteristics(file: *mut sql::sqlite3_file) -> c_int {
    guard(|| {
        // SAFETY: an open file of ours.
        let psow = unsafe { main_of(file) }.conn.powersafe_overwrite();
        sql::SQLITE_IOCAP_SEQUENTIAL | if psow { sql::SQLITE_IOCAP_POWERSAFE_OVERWRITE } else { 0 }
    })
}

unsafe extern "C" fn x_file_control_wal(_: *mut sql::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    sql::SQLITE_NOTFOUND
}

unsafe extern "C" fn x_file_control(file: *mut sql::sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    guard(|| {
        // SAFETY: an open file of ours; for each `op` the argument has the type that its documentation gives.
        unsafe {
            let main = main_of(file);
            match op {
                sql::SQLITE_FCNTL_PDB => {
                    main.connection.store(arg.cast::<*mut sql::sqlite3>(), Ordering::Release);
                    sql::SQLITE_OK
                }
                sql::SQLITE_FCNTL_PRAGMA => file_pragma(main, arg.cast::<*mut c_char>()),
                sql::SQLITE_FCNTL_VFSNAME => {
                    *arg.cast::<*mut c_char>() = sql::sqlite3_mprintf(c"%s".as_ptr(), main.vfs_name);
                    sql::SQLITE_OK
                }
                sql::SQLITE_FCNTL_POWERSAFE_OVERWRITE => {
                    let value = arg.cast::<c_int>();
                    if *value >= 0 {
                        main.conn.set_powersafe_overwrite(*value != 0);
                    }
                    *value = c_int::from(main.conn.powersafe_overwrite());
                    sql::SQLITE_OK
                }
                sql::SQLITE_FCNTL_HAS_MOVED => {
                    *arg.cast::<c_int>() = 0;
                    sql::SQLITE_OK
                }
                _ => sql::SQLITE_NOTFOUND,
            }
        }
    })
}

/// # Safety
/// `arg` must be the array of SQLITE_FCNTL_PRAGMA: result, name, value or null.
unsafe fn file_pragma(main: &MainFile, arg: *mut *mut c_char) -> c_int {
    // SAFETY: by contract.
    let (name, value) = unsafe { (*arg.add(1), *arg.add(2)) };
    let text = |pointer: *mut c_char| match pointer.is_null() {
        true => None,
        // SAFETY: SQLite passes zero-terminated strings.
        false => Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()),
    };
    let (Some(name), value) = (text(name), text(value)) else { return sql::SQLITE_NOTFOUND };
    let (result, code) = match pragma::on_pragma(&name, value.as_deref(), &main.conn) {
        Answer::NotOurs => return sql::SQLITE_NOTFOUND,
        Answer::Row(text) => (text, sql::SQLITE_OK),
        Answer::Refused(text) => (text, sql::SQLITE_ERROR),
    };
    if let Ok(result) = CString::new(result) {
        // SAFETY: SQLite frees the string with sqlite3_free.
        unsafe { *arg = sql::sqlite3_mprintf(c"%s".as_ptr(), result.as_ptr()) };
    }
    code
}

unsafe extern "C" fn x_shm_map(
    file: *mut sql::sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    guard(|| {
        // SAFETY: `out` is writable, the file is ours.
        let main = unsafe {
            *out = std::ptr::null_mut();
            main_of(file)
        };
        let Ok(region) = usize::try_from(region) else { return sql::SQLITE_IOERR_SHMMAP };
        if size as usize != REGION_BYTES {
            return sql::SQLITE_IOERR_SHMMAP;
        }
        match main.conn.db().with_view(main.conn.id(), |view| view.region(region, extend != 0)) {
            Some(Ok(Some(pointer))) => {
                // SAFETY: as above.
                unsafe { *out = pointer.as_ptr().cast::<c_void>() };
                sql::SQLITE_OK
            }
            Some(Ok(None)) => sql::SQLITE_OK,
            Some(Err(error)) => {
                tracing::error!(region, %error, "wal-index region could not be mapped");
                sql::SQLITE_IOERR_SHMMAP
            }
            None => sql::SQLITE_IOERR_SHMMAP,
        }
    })
}

fn lock_range(offset: c_int, count: c_int) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(count).ok()?)?;
    (start < end && end <= LOCKS).then_some(start..end)
}

unsafe extern "C" fn x_shm_lock(file: *mut sql::sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    guard(|| {
        // SAFETY: an open file of ours.
        let main = unsafe { main_of(file) };
        let Some(range) = lock_range(offset, count) else { return sql::SQLITE_IOERR_SHMLOCK };
        let shared = flags & sql::SQLITE_SHM_SHARED != 0;
        if flags & sql::SQLITE_SHM_UNLOCK != 0 {
            main.conn.unlock(range, shared);
            return sql::SQLITE_OK;
        }
        let interrupted = || main.interrupted();
        code(match shared {
            true => main.conn.lock_shared(range, &interrupted),
            false => main.conn.lock_exclusive(range, main.sqlite() as usize, &interrupted),
        })
    })
}

unsafe extern "C" fn x_shm_barrier(_: *mut sql::sqlite3_file) {
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// The mapping stays until the file is closed: SQLite unmaps only right before that, or to map it again.
unsafe extern "C" fn x_shm_unmap(_: *mut sql::sqlite3_file, _: c_int) -> c_int {
    sql::SQLITE_OK
}

/// Nothing of ours is deleted by SQLite; a WAL that it wants to delete is not a file.
unsafe extern "C" fn x_delete(_: *mut sql::sqlite3_vfs, _: *const c_char, _: c_int) -> c_int {
    sql::SQLITE_OK
}

/// A database's WAL always exists, its rollback journal never does.
unsafe extern "C" fn x_access(_: *mut sql::sqlite3_vfs, name: *const c_char, _: c_int, out: *mut c_int) -> c_int {
    guard(|| {
        // SAFETY: `name` is zero-terminated, `out` writable.
        unsafe { *out = c_int::from(CStr::from_ptr(name).to_bytes().ends_with(b"-wal")) };
        sql::SQLITE_OK
    })
}

/// Names are names, not paths: they stay as they are.
unsafe extern "C" fn x_full_pathname(
    _: *mut sql::sqlite3_vfs,
    name: *const c_char,
    size: c_int,
    out: *mut c_char,
) -> c_int {
    guard(|| {
        // SAFETY: `name` is zero-terminated and `out` has room for `size` bytes.
        unsafe {
            let bytes = CStr::from_ptr(name).to_bytes_with_nul();
            if bytes.len() > usize::try_from(size).unwrap_or(0) {
                return sql::SQLITE_CANTOPEN;
            }
            std::ptr::copy_nonoverlapping(bytes.as_ptr().cast::<c_char>(), out, bytes.len());
        }
        sql::SQLITE_OK
    })
}

unsafe extern "C" fn x_dl_open(vfs: *mut sql::sqlite3_vfs, path: *const c_char) -> *mut c_void {
    // SAFETY: "unix" gets its own vfs and the caller's path.
    unsafe {
        let unix = registered(vfs).unix;
        (*unix).xDlOpen.map_or(std::ptr::null_mut(), |open| open(unix, path))
    }
}

unsafe extern "C" fn x_dl_error(vfs: *mut sql::sqlite3_vfs, size: c_int, out: *mut c_char) {
    // SAFETY: "unix" gets its own vfs and the caller's buffer.
    unsafe {
        let unix = registered(vfs).unix;
        if let Some(error) = (*unix).xDlError {
            error(unix, size, out);
        }
    }
}

/// A function of an extension: the C type is made of functions that return functions.
type Symbol = unsafe extern "C" fn(*mut sql::sqlite3_vfs, *mut c_void, *const c_char);

unsafe extern "C" fn x_dl_sym(vfs: *mut sql::sqlite3_vfs, library: *mut c_void, name: *const c_char) -> Option<Symbol> {
    // SAFETY: "unix" gets its own vfs and a library that it opened.
    unsafe {
        let unix = registered(vfs).unix;
        (*unix).xDlSym.and_then(|symbol| symbol(unix, library, name))
    }
}

unsafe extern "C" fn x_dl_close(vfs: *mut sql::sqlite3_vfs, library: *mut c_void) {
    // SAFETY: "unix" gets its own vfs and a library that it opened.
    unsafe {
        let unix = registered(vfs).unix;
        if let Some(close) = (*unix).xDlClose {
            close(unix, library);
        }
    }
}

unsafe extern "C" fn x_randomness(vfs: *mut sql::sqlite3_vfs, size: c_int, out: *mut c_char) -> c_int {
    // SAFETY: "unix" gets its own vfs and the caller's buffer.
    guard(|| unsafe {
        let unix = registered(vfs).unix;
        (*unix).xRandomness.map_or(0, |randomness| randomness(unix, size, out))
    })
}

unsafe extern "C" fn x_sleep(_: *mut sql::sqlite3_vfs, micros: c_int) -> c_int {
    guard(|| {
        conn::sleep(Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
        micros
    })
}

unsafe extern "C" fn x_current_time(vfs: *mut sql::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: "unix" gets its own vfs and the caller's place.
    guard(|| unsafe {
        let unix = registered(vfs).unix;
        (*unix).xCurrentTime.map_or(sql::SQLITE_ERROR, |time| time(unix, out))
    })
}

unsafe extern "C" fn x_current_time_int64(vfs: *mut sql::sqlite3_vfs, out: *mut i64) -> c_int {
    // SAFETY: "unix" gets its own vfs and the caller's place.
    guard(|| unsafe {
        let unix = registered(vfs).unix;
        (*unix).xCurrentTimeInt64.map_or(sql::SQLITE_ERROR, |time| time(unix, out))
    })
}
