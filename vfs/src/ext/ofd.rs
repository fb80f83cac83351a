//! Open-file-description locks (Linux `F_OFD_SETLK`).
//!
//! A POSIX record lock of this process would vanish as soon as *any* descriptor of the file is closed, and would not keep
//! out another connection of the same process. A lock of the open file description does both.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

/// Takes a write lock on `len` bytes from `start`, without waiting. It lasts until the file is closed. `WouldBlock` if
/// somebody else has a lock there.
pub(crate) fn lock(file: &impl AsRawFd, start: u64, len: u64) -> io::Result<()> {
    let bad = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("lock of {len} bytes from {start}"));
    let request = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: i64::try_from(start).map_err(bad)?,
        l_len: i64::try_from(len).map_err(bad)?,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed; F_OFD_SETLK reads a `flock` through the pointer, which
    // is valid for the call; `l_pid` is 0, as the call demands.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Err(error),
    }
}
