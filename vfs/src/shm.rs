//! The wal-index's memory: one file in memory per database, mapped once by every connection. Unsafe room.
//!
//! ```text
//! ShmFile            memfd, grows by regions of 32 KiB, never shrinks
//!   |   |   |
//! ShmView ...        one per connection, and one for the applier: 1 GiB of addresses over the file, most of it
//!                    beyond the file's end; a region's address never changes while the view lives
//! ```
//!
//! A view maps all its addresses at once. What lies beyond the file's end becomes usable by growing the file, without
//! touching the mapping; before that nobody has a pointer to it.
//!
//! *Detach.* SQLite's rollback clears entries of the shared hash table without asking the VFS first. So before WRITE is
//! taken away from a connection, its view goes private: the file is mapped again at the same addresses, copy on write,
//! and every 4 KiB page is written to (with the value that it has), for a private page that was not written yet still
//! shows what others do to the file. From then on the connection sees the index of that moment and its own changes,
//! nobody else sees those, and regions that it asks for are private memory. *Attach* maps the file over all that again.
//!
//! Detach runs on another thread than the connection's, which may be inside SQLite at that moment. That is sound below
//! the language: mmap with MAP_FIXED exchanges what is behind addresses that stay valid, under the lock that page faults
//! take too. An access that finds its page gone faults, waits for the lock and then finds the new mapping; when mmap
//! returns no processor knows the old pages any more. So each access of SQLite hits the file or the private copy of it.
//! One between mmap and the touching reads the shared content or makes its page private itself, which is what the touching
//! would have done. The view's own fields are protected as Rust's are: all changes need `&mut`.
//!
//! Deliberately absent: what is in the memory (`wal/index.rs`), the locks that say who may write (`lock.rs`).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::wal::index::{IndexMemory, REGION_BYTES};

/// Most regions that one wal-index can have: 134 million frames. Chosen so that the address space of 47 bits holds a
/// hundred thousand connections; WAL memory has its own, much lower limit.
const MAX_REGIONS: usize = 32768;
const ADDRESS_BYTES: usize = MAX_REGIONS * REGION_BYTES;
/// No machine has smaller pages, so a write every so many bytes reaches them all.
const SMALLEST_MACHINE_PAGE: usize = 4096;

/// The shared memory of one database's wal-index.
#[derive(Debug)]
pub struct ShmFile {
    fd: OwnedFd,
    /// How many regions the file has, all of them with memory behind. Only grows.
    regions: AtomicUsize,
}

impl ShmFile {
    /// An empty file.
    pub fn new() -> io::Result<ShmFile> {
        let fd = rustix::fs::memfd_create("shoal-wal-index", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        // A mapped file that shrinks kills its readers (SIGBUS); now it cannot.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK)?;
        Ok(ShmFile { fd, regions: AtomicUsize::new(0) })
    }

    /// How many regions there are.
    pub fn regions(&self) -> usize {
        self.regions.load(Ordering::Acquire)
    }

    /// Makes sure that there are at least `regions`.
    fn extend_to(&self, regions: usize) -> io::Result<()> {
        let have = self.regions();
        if regions <= have {
            return Ok(());
        }
        let regions = whole_machine_pages(regions)?;
        // Memory is taken here, where a lack of it is an error; behind a sparse file it would be a SIGBUS at first use.
        // Two callers at once do no harm: they take overlapping ranges, and the larger number stays.
        let (offset, len) = ((have * REGION_BYTES) as u64, ((regions - have) * REGION_BYTES) as u64);
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), offset, len))?;
        self.regions.fetch_max(regions, Ordering::AcqRel);
        Ok(())
    }
}

/// `regions`, rounded up so that they end with a page of the machine: some have pages of 64 KiB.
fn whole_machine_pages(regions: usize) -> io::Result<usize> {
    let rounded = regions.next_multiple_of((rustix::param::page_size() / REGION_BYTES).max(1));
    if rounded > MAX_REGIONS {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("wal-index of {regions} regions, at most {MAX_REGIONS}"),
        ));
    }
    Ok(rounded)
}

/// One connection's window on a [`ShmFile`]; see the module's text.
///
/// Invariant: `ADDRESS_BYTES` from `base` are mapped and ours until drop. The first `regions()` regions are backed by
/// memory: the file's or, while detached, private.
#[derive(Debug)]
pub struct ShmView {
    file: Arc<ShmFile>,
    base: NonNull<u8>,
    /// While detached: how many regions are private.
    private_regions: Option<usize>,
}

// SAFETY: the view owns its mapping, which belongs to the process and no thread. Through `&self` it makes atomic accesses
// only; everything that changes the mapping takes `&mut self`.
unsafe impl Send for ShmView {}
// SAFETY: as above.
unsafe impl Sync for ShmView {}

impl ShmView {
    /// A window on `file`, attached.
    pub fn new(file: Arc<ShmFile>) -> io::Result<ShmView> {
        // SAFETY: no address is asked for, so the kernel picks unused ones: nothing that exists changes.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), ADDRESS_BYTES, read_write(), shared(), &file.fd, 0)? };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(ShmView { file, base, private_regions: None })
    }

    /// Address of a region, which stays what it is until the view is dropped. A region that is not there is made if
    /// `extend` says so, else `None`.
    pub fn region(&mut self, region: usize, extend: bool) -> io::Result<Option<NonNull<u8>>> {
        if region >= self.regions() {
            if !extend {
                return Ok(None);
            }
            self.extend_to(region.saturating_add(1))?;
        }
        Ok(Some(self.address(region, 0)))
    }

    /// Whether the view shows a private copy.
    pub fn is_detached(&self) -> bool {
        self.private_regions.is_some()
    }

    /// Makes everything that the file has private to this view, before WRITE is given to somebody else; nothing if it
    /// is already. After an error the view is attached as before.
    pub fn detach(&mut self) -> io::Result<()> {
        if self.is_detached() {
            return Ok(());
        }
        let regions = self.file.regions();
        if regions > 0 {
            let len = regions * REGION_BYTES;
            let private = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            // SAFETY: replaces a part of our own mapping (`regions` <= MAX_REGIONS, checked where the file grows) by the
            // same bytes of the same file at the same addresses: no pointer into it becomes invalid, and nobody holds
            // a Rust reference to it.
            let mapped =
                unsafe { rustix::mm::mmap(self.base.as_ptr().cast(), len, read_write(), private, &self.file.fd, 0) };
            if let Err(error) = mapped {
                // The kernel may have removed the old mapping before it noticed that it cannot make the new one.
                self.map_shared(0);
                return Err(error.into());
            }
            for offset in (0..len).step_by(SMALLEST_MACHINE_PAGE) {
                // SAFETY: offset + 4 <= len lies in what was just mapped, aligned to 4096; the file has memory behind
                // all of it. Atomic, so that a write of the connection at this moment is not undone.
                let word = unsafe { AtomicU32::from_ptr(self.base.add(offset).cast().as_ptr()) };
                // It must be a real write: compilers may turn an addition of 0 into a load. A failed exchange
                // may not have written (its word changed meanwhile), so it is repeated.
                let mut value = word.load(Ordering::Relaxed);
                while let Err(now) = word.compare_exchange(value, value, Ordering::AcqRel, Ordering::Relaxed) {
                    value = now;
                }
            }
        }
        self.private_regions = Some(regions);
        Ok(())
    }

    /// Shows the file again, for a connection that holds no lock any more: what was private is lost. Nothing if the view
    /// is attached. After an error it is detached as before.
    pub fn attach(&mut self) -> io::Result<()> {
        let Some(regions) = self.private_regions else { return Ok(()) };
        // SQLite keeps the pointers to regions that only this view had.
        self.file.extend_to(regions)?;
        self.map_shared(0);
        self.private_regions = None;
        Ok(())
    }

    /// Maps the file over the addresses of this view, from `region` on.
    fn map_shared(&mut self, region: usize) {
        let start = region * REGION_BYTES;
        // SAFETY: from `start`, which is less than ADDRESS_BYTES, to the end of our own mapping: nothing else is replaced,
        // pointers into it stay valid, nobody holds a Rust reference to it.
        let mapped = unsafe {
            let address = self.base.add(start).as_ptr().cast();
            let flags = shared() | MapFlags::FIXED;
            rustix::mm::mmap(address, ADDRESS_BYTES - start, read_write(), flags, &self.file.fd, start as u64)
        };
        if let Err(error) = mapped {
            // The addresses may be free now, while we and SQLite go on to use them: whatever is mapped there next would
            // be overwritten. No state of ours survives that.
            tracing::error!("cannot map the wal-index again: {error}");
            std::process::abort();
        }
    }

    fn address(&self, region: usize, offset: usize) -> NonNull<u8> {
        assert!(region < self.regions(), "wal-index region {region} of {}", self.regions());
        assert!(offset < REGION_BYTES, "wal-index offset {offset}");
        // SAFETY: regions() <= MAX_REGIONS, so this lies within our ADDRESS_BYTES.
        unsafe { self.base.add(region * REGION_BYTES + offset) }
    }

    fn word(&self, region: usize, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "wal-index offset {offset}");
        // SAFETY: `address` lies in a region that is mapped, readable and writable, with memory behind, for as long as
        // `self` lives; aligned (checked, and regions are), so 4 bytes do not leave the region. Other accesses of ours
        // are atomic and of the same size; SQLite's go through other pointers and are outside the language's memory
        // model, as any memory shared with C is: it relies on aligned accesses being whole, just as we do.
        unsafe { AtomicU32::from_ptr(self.address(region, offset).cast().as_ptr()) }
    }

    fn half_word(&self, region: usize, offset: usize) -> &AtomicU16 {
        assert!(offset.is_multiple_of(2), "wal-index offset {offset}");
        // SAFETY: as in `word`, for 2 bytes.
        unsafe { AtomicU16::from_ptr(self.address(region, offset).cast().as_ptr()) }
    }
}

impl Drop for ShmView {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and with the view ends the time for which `region` promised its addresses.
        // It cannot fail for a range that one mmap returned, and there is nothing to do if it did.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), ADDRESS_BYTES) };
    }
}

impl IndexMemory for ShmView {
    fn regions(&self) -> usize {
        self.private_regions.unwrap_or_else(|| self.file.regions())
    }

    fn extend_to(&mut self, regions: usize) -> io::Result<()> {
        let Some(have) = self.private_regions else { return self.file.extend_to(regions) };
        if regions <= have {
            return Ok(());
        }
        let regions = whole_machine_pages(regions)?;
        let (start, len) = (have * REGION_BYTES, (regions - have) * REGION_BYTES);
        // SAFETY: start + len <= ADDRESS_BYTES, so only our own mapping is replaced, and of that a part to which nobody
        // has a pointer yet: `region` hands out those below `have` only.
        let mapped = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::FIXED;
            rustix::mm::mmap_anonymous(self.base.add(start).as_ptr().cast(), len, read_write(), flags)
        };
        if let Err(error) = mapped {
            // As in `detach`: there must be no hole in our addresses.
            self.map_shared(have);
            return Err(error.into());
        }
        self.private_regions = Some(regions);
        Ok(())
    }

    fn load_u32(&self, region: usize, offset: usize) -> u32 {
        self.word(region, offset).load(Ordering::Relaxed)
    }

    fn store_u32(&self, region: usize, offset: usize, value: u32) {
        self.word(region, offset).store(value, Ordering::Relaxed);
    }

    fn load_u16(&self, region: usize, offset: usize) -> u16 {
        self.half_word(region, offset).load(Ordering::Relaxed)
    }

    fn store_u16(&self, region: usize, offset: usize, value: u16) {
        self.half_word(region, offset).store(value, Ordering::Relaxed);
    }
}

fn read_write() -> ProtFlags {
    ProtFlags::READ | ProtFlags::WRITE
}

fn shared() -> MapFlags {
    MapFlags::SHARED | MapFlags::NORESERVE
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn views<const N: usize>(regions: usize) -> (Arc<ShmFile>, [ShmView; N]) {
        let file = Arc::new(ShmFile::new().unwrap());
        file.extend_to(regions).unwrap();
        let views = std::array::from_fn(|_| ShmView::new(Arc::clone(&file)).unwrap());
        (file, views)
    }

    /// One word on every 4 KiB page of the first `regions`, and not the one that detach touches.
    fn words(regions: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..regions).flat_map(|region| (0..8).map(move |page| (region, page * SMALLEST_MACHINE_PAGE + 64)))
    }

    fn store_all(view: &ShmView, regions: usize, value: u32) {
        words(regions).for_each(|(region, offset)| view.store_u32(region, offset, value));
    }

    fn assert_all(view: &ShmView, regions: usize, value: u32) {
        for (region, offset) in words(regions) {
            assert_eq!(view.load_u32(region, offset), value, "region {region}, offset {offset}");
        }
    }

    #[test]
    fn a_region_appears_only_when_asked_for_and_then_for_everybody() {
        let (file, [mut one, mut two]) = views(0);
        assert_eq!(one.region(0, false).unwrap(), None);
        assert!(one.region(0, true).unwrap().is_some());
        assert!(two.region(0, false).unwrap().is_some());
        assert!(file.regions() < 3);
        assert_eq!(two.region(3, false).unwrap(), None);
        assert!(two.region(3, true).unwrap().is_some());
        assert!(one.regions() >= 4);
        store_all(&one, 4, 5);
        assert_all(&two, 4, 5);
        one.store_u16(2, 32766, 0xabcd);
        assert_eq!(two.load_u16(2, 32766), 0xabcd);
    }

    #[test]
    fn there_are_at_most_so_many_regions() {
        let (file, [mut view]) = views(0);
        for region in [MAX_REGIONS, MAX_REGIONS + 1, usize::MAX] {
            assert_eq!(view.region(region, false).unwrap(), None);
            let error = view.region(region, true).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "region {region}");
        }
        assert_eq!(file.regions(), 0);
        view.detach().unwrap();
        assert_eq!(view.region(MAX_REGIONS, true).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn addresses_stay_through_growth_detach_and_attach() {
        let (_file, [mut view, mut other]) = views(0);
        let first = view.region(0, true).unwrap();
        assert!(other.region(40, true).unwrap().is_some());
        let late = view.region(40, false).unwrap();
        let addresses = |view: &mut ShmView| (view.region(0, false).unwrap(), view.region(40, false).unwrap());
        view.detach().unwrap();
        assert_eq!(addresses(&mut view), (first, late));
        let private = view.region(41, true).unwrap();
        view.attach().unwrap();
        assert_eq!(addresses(&mut view), (first, late));
        assert_eq!(view.region(41, false).unwrap(), private);
    }

    #[test]
    fn a_detached_view_and_the_others_do_not_see_each_other() {
        let (_file, [mut zombie, applier, reader]) = views(3);
        store_all(&applier, 3, 1);
        zombie.detach().unwrap();
        assert!(zombie.is_detached() && !applier.is_detached());
        assert_all(&zombie, 3, 1);
        store_all(&applier, 3, 2);
        assert_all(&zombie, 3, 1);
        store_all(&zombie, 3, 3);
        assert_all(&applier, 3, 2);
        assert_all(&reader, 3, 2);
        assert_all(&zombie, 3, 3);
        zombie.detach().unwrap();
        assert_all(&zombie, 3, 3);
    }

    #[test]
    fn detach_covers_regions_that_this_view_never_asked_for() {
        let (_file, [mut zombie, mut applier]) = views(1);
        applier.region(4, true).unwrap();
        store_all(&applier, 5, 1);
        zombie.detach().unwrap();
        store_all(&applier, 5, 2);
        assert!(zombie.region(4, false).unwrap().is_some());
        assert_all(&zombie, 5, 1);
    }

    #[test]
    fn what_others_add_after_a_detach_is_not_seen_and_own_regions_are_private() {
        let (file, [mut zombie, mut applier]) = views(2);
        store_all(&applier, 2, 1);
        zombie.detach().unwrap();
        let before = zombie.regions();
        applier.region(6, true).unwrap();
        store_all(&applier, 7, 2);
        assert_eq!(zombie.regions(), before);
        assert_eq!(zombie.region(6, false).unwrap(), None);
        assert!(zombie.region(6, true).unwrap().is_some());
        for (region, offset) in words(7) {
            let expected = if region < 2 { 1 } else { 0 };
            assert_eq!(zombie.load_u32(region, offset), expected, "region {region}, offset {offset}");
        }
        store_all(&zombie, 7, 3);
        assert_all(&applier, 7, 2);
        let shared = file.regions();
        zombie.region(shared + 2, true).unwrap();
        assert_eq!(file.regions(), shared, "a detached view does not grow the file");
    }

    #[test]
    fn attach_shows_the_file_again_and_has_room_for_what_was_private() {
        let (file, [mut zombie, applier]) = views(2);
        zombie.detach().unwrap();
        zombie.region(5, true).unwrap();
        store_all(&zombie, 6, 3);
        store_all(&applier, 2, 2);
        zombie.attach().unwrap();
        assert!(!zombie.is_detached());
        assert!(file.regions() >= 6);
        for (region, offset) in words(6) {
            assert_eq!(zombie.load_u32(region, offset), if region < 2 { 2 } else { 0 }, "region {region}");
        }
        store_all(&zombie, 6, 4);
        assert_all(&applier, 6, 4);
        zombie.attach().unwrap();
        assert_all(&zombie, 6, 4);
    }

    #[test]
    fn an_empty_file_can_be_detached_from() {
        let (file, [mut zombie]) = views(0);
        zombie.detach().unwrap();
        assert_eq!(zombie.region(0, false).unwrap(), None);
        zombie.region(0, true).unwrap();
        store_all(&zombie, 1, 1);
        assert_eq!(file.regions(), 0);
        zombie.attach().unwrap();
        assert_all(&zombie, 1, 0);
    }

    #[test]
    #[should_panic(expected = "wal-index region")]
    fn there_is_no_access_beyond_the_last_region() {
        let (file, [view]) = views(1);
        view.load_u32(file.regions(), 0);
    }

    /// A connection that SQLite is running in keeps counting words up through its pointers, one on each page and that
    /// very word which detach touches, while another thread detaches and attaches its view. It must lose no step of its
    /// own while private, and after each detach the file must stand still.
    /// Shows INV-V5.
    #[test]
    fn detach_under_a_running_connection() {
        let regions = 4;
        let (_file, [mut zombie, applier]) = views(regions);
        let pages = regions * REGION_BYTES / SMALLEST_MACHINE_PAGE;
        let base = zombie.region(0, false).unwrap().unwrap().as_ptr() as usize;
        let stop = AtomicBool::new(false);
        let rounds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let mut lost = 0;
                while !stop.load(Ordering::Relaxed) {
                    for page in 0..pages {
                        // SAFETY: inside the view's regions, which outlive this scope; aligned.
                        let word = unsafe { AtomicU32::from_ptr((base + page * SMALLEST_MACHINE_PAGE) as *mut u32) };
                        // A plain load and store, as SQLite's are.
                        let value = word.load(Ordering::Relaxed) + 1;
                        word.store(value, Ordering::Relaxed);
                        lost += usize::from(word.load(Ordering::Relaxed) != value);
                    }
                    rounds.fetch_add(1, Ordering::Release);
                }
                lost
            });
            let await_rounds = |count: usize| {
                let start = rounds.load(Ordering::Acquire);
                while rounds.load(Ordering::Acquire) < start + count {
                    std::thread::yield_now();
                }
            };
            let shared = || -> Vec<u32> {
                (0..pages)
                    .map(|page| page * SMALLEST_MACHINE_PAGE)
                    .map(|at| applier.load_u32(at / REGION_BYTES, at % REGION_BYTES))
                    .collect()
            };
            let attempts = 200;
            for _ in 0..attempts {
                await_rounds(2);
                zombie.detach().unwrap();
                let frozen = shared();
                await_rounds(3);
                assert_eq!(shared(), frozen);
                let at = |page: usize| page * SMALLEST_MACHINE_PAGE;
                for (page, frozen) in frozen.iter().enumerate() {
                    assert!(zombie.load_u32(at(page) / REGION_BYTES, at(page) % REGION_BYTES) > *frozen);
                }
                zombie.attach().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            // Only an attach may take a step back, at most one word each.
            assert!(running.join().unwrap() <= attempts);
        });
    }
}
