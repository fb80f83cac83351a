//! The file `identity` of a data directory: which node this is, and what it promised.
//!
//! The file is small and replaced as a whole: a new one is written under another name, synced, renamed over the old one,
//! and the directory is synced. After a crash there is the old identity or the new one, never a mixture. A name that is
//! left over from a crash before the rename is removed by the next store.
//!
//! An identity that cannot be read is never replaced by a new one: the directory may hold a vote or a promise that would
//! be forgotten with it.
//!
//! Deliberately absent: the bytes (`found/format.rs`), and what becomes of an identity (`found.rs`).

use std::io;
use std::path::{Path, PathBuf};

use shoaldb_vfs::env::{File, Fs, Label, Open};

use crate::fields::Damaged;
use crate::found::format::Identity;
use crate::types::{Incarnation, NodeId};

/// Name of the file.
pub const FILE: &str = "identity";
const NEW_FILE: &str = "identity.new";
const SYNC_DIR: Label = "identity.sync_dir";

/// No identity is longer: the longest genesis has 255 members.
const MAX_LEN: u64 = 1 << 20;

/// Why a directory has no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A call failed.
    #[error("{}: {doing}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// Not what was written.
    #[error(
        "{}: identity damaged: {damage}; do not delete it alone: restore the directory from a copy of this node, or remove the node from the cluster and join with an empty directory under a new id",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        damage: Damaged,
    },
    /// The directory of another node.
    #[error(
        "{}: this is the data directory of node {stored}, not of node {given}; start it with id {stored} or give node {given} its own directory",
        path.display()
    )]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Whose directory it is.
        stored: NodeId,
        /// Who was to be started in it.
        given: NodeId,
    },
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_path_buf();
    move |error| IdentityError::Io { path, doing, error }
}

/// Reads the identity of node `node` in `dir`; `None` if there is none yet.
pub fn load(fs: &dyn Fs, dir: &Path, node: NodeId) -> Result<Option<Identity>, IdentityError> {
    let path = dir.join(FILE);
    let file = match fs.open(&path, Open::Read, "identity.open") {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path, "open")(error)),
    };
    let bytes = read_all(&*file, &path)?;
    let identity = Identity::decode(&bytes).map_err(|damage| IdentityError::Damaged { path: path.clone(), damage })?;
    if identity.node != node {
        return Err(IdentityError::OtherNode { path, stored: identity.node, given: node });
    }
    Ok(Some(identity))
}

fn read_all(file: &dyn File, path: &Path) -> Result<Vec<u8>, IdentityError> {
    let len = file.len("identity.len").map_err(io_error(path, "length"))?;
    if len > MAX_LEN {
        let damage = Damaged { at: 0, what: format!("{len} bytes, an identity has {MAX_LEN} at most") };
        return Err(IdentityError::Damaged { path: path.to_path_buf(), damage });
    }
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(&mut bytes, 0, "identity.read").map_err(io_error(path, "read"))?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Replaces the identity in `dir`; durable when it returns. After an error the node must end: which identity is on disk
/// is known only at the next start.
pub fn store(fs: &dyn Fs, dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let (path, new) = (dir.join(FILE), dir.join(NEW_FILE));
    match fs.remove(&new, "identity.remove") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&new, "remove")(error)),
        Ok(()) | Err(_) => {}
    }
    let file = fs.open(&new, Open::CreateNew, "identity.create").map_err(io_error(&new, "create"))?;
    file.write_at(&identity.encode(), 0, "identity.write").map_err(io_error(&new, "write"))?;
    file.sync_data("identity.sync").map_err(io_error(&new, "sync"))?;
    drop(file);
    fs.rename(&new, &path, "identity.rename").map_err(io_error(&path, "rename"))?;
    fs.sync_dir(dir, SYNC_DIR).map_err(io_error(dir, "sync"))
}

/// Reads the identity of node `node` in `dir`, or makes one with the random number `incarnation`. It is durable when this returns.
pub fn load_or_create(
    fs: &dyn Fs,
    dir: &Path,
    node: NodeId,
    incarnation: Incarnation,
) -> Result<Identity, IdentityError> {
    if let Some(identity) = load(fs, dir, node)? {
        // A process that was killed in `store` leaves a name in the kernel's memory that a power cut takes back. What it names
        // was synced before; and nothing is written, since a disk without room is no reason not to start.
        fs.sync_dir(dir, SYNC_DIR).map_err(io_error(dir, "sync"))?;
        return Ok(identity);
    }
    let identity = Identity::new(node, incarnation);
    store(fs, dir, &identity)?;
    Ok(identity)
}

#[cfg(test)]
mod tests;
