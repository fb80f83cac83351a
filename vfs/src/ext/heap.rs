//! What the C library's heap keeps of memory that was freed (glibc `mallopt`).
#![allow(unsafe_code)]

/// Buffers from this size on go back to the system as soon as they are freed, in bytes. Without it glibc raises the limit with
/// each larger buffer that it sees freed, up to 32 MiB, and keeps what is smaller.
#[cfg(target_env = "gnu")]
const GOES_BACK: libc::c_int = 256 << 10;
/// Heaps of the process. Each keeps what its threads once had; without it there are eight per processor.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// Has the heap of this process give back what is freed, where it is glibc's. For the first lines of `main`: threads that were
/// there before keep their heaps.
///
/// A node frees much at once after a large transaction, and its threads take turns with buffers of some hundred kilobytes. glibc
/// keeps most of that, so that a node stays at twice the memory that it needs. This is of the process, not of the node, hence
/// the application's choice. The variables `MALLOC_MMAP_THRESHOLD_` and `MALLOC_ARENA_MAX` do the same, and win over this.
///
/// ```
/// // The first line of `main`.
/// shoaldb_vfs::give_back_freed_memory();
/// ```
pub fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (variable, parameter, value) in
        [("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, GOES_BACK), ("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, HEAPS)]
    {
        if std::env::var_os(variable).is_none() {
            // SAFETY: the call takes numbers only, and locks the heap for as long as it changes it, whatever threads there are.
            let _ = unsafe { libc::mallopt(parameter, value) };
        }
    }
}
