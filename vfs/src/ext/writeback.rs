//! Writing to the disk ahead of a sync (Linux `sync_file_range`).
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

/// Lets the kernel begin to write what was written to `len` bytes from `start`. It waits for nothing, and makes nothing
/// durable: only a sync says what became of it, whatever happened here.
pub(crate) fn begin(file: &impl AsRawFd, start: u64, len: u64) {
    if len == 0 {
        // To the system that is all that follows.
        return;
    }
    let (Ok(start), Ok(len)) = (i64::try_from(start), i64::try_from(len)) else { return };
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the call takes nothing but numbers.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) };
}
