//! A disk of a node: ext4 in a file, mounted through a loop device, whose power can be cut.
//!
//! The cut is `FS_IOC_SHUTDOWN` without a flush of the journal: the file system forgets what is not on its disk, and every
//! later call on it fails. After a new mount there is what was synced, and of the rest whatever had got there by itself.

#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::ioctl::Setter;

use crate::{run, set_up, set_up_if_allowed};

/// `_IOR('X', 125, __u32)`.
const FS_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
/// `FS_SHUTDOWN_FLAGS_NOLOGFLUSH`.
const NO_LOG_FLUSH: u32 = 2;

/// Mounted as long as it lives; its file is the test's temporary directory's.
pub(crate) struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes and mounts a disk for a node's data: `dir/node-N` leads to a folder on it. The error is what this machine lacks for that.
    pub(crate) fn new(dir: &Path, id: u64, bytes: u64) -> Result<Disk, String> {
        let disk = Disk { image: dir.join(format!("disk-{id}")), mount: dir.join(format!("mount-{id}")) };
        File::create(&disk.image).and_then(|file| file.set_len(bytes)).unwrap();
        std::fs::create_dir(&disk.mount).unwrap();
        set_up(&format!("mkfs.ext4 -q -F -m 0 {}", disk.image.display()))?;
        set_up_if_allowed(&disk.plug())?;
        std::fs::create_dir(disk.mount.join("data")).unwrap();
        std::os::unix::fs::symlink(disk.mount.join("data"), dir.join(format!("node-{id}"))).unwrap();
        // The folder itself is no node's to sync.
        set_up(&format!("sync -f {}", disk.mount.display()))?;
        Ok(disk)
    }

    /// Three disks, or why this machine has none.
    pub(crate) fn three(dir: &Path, bytes: u64) -> Result<Vec<Disk>, String> {
        (1..=3).map(|id| Disk::new(dir, id, bytes)).collect()
    }

    /// Where the disk is seen.
    pub(crate) fn mount(&self) -> &Path {
        &self.mount
    }

    /// The command that plugs it in.
    fn plug(&self) -> String {
        format!("mount -o loop {} {}", self.image.display(), self.mount.display())
    }

    /// From now on every call fails, and what was not synced is gone.
    pub(crate) fn cut(&self) {
        let root = File::open(&self.mount).unwrap();
        // SAFETY: the opcode takes a pointer to an u32 that the kernel reads, which is what `Setter` passes; it outlives the call.
        unsafe { rustix::ioctl::ioctl(&root, Setter::<FS_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }.unwrap();
    }

    /// After a cut, and after the process that used it is gone.
    pub(crate) fn power_on(&self) {
        run(&format!("umount {}", self.mount.display())).unwrap();
        run(&self.plug()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a test that fails may have left somebody in there.
        let _ = run(&format!("umount -l {}", self.mount.display()));
    }
}
