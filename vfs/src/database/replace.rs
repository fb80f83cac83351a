//! Replacing the files of a database while its connections are open: an installed snapshot takes effect.
//!
//! ```text
//! 1  WRITE is taken, as for a foreign transaction: an open writer is fenced, a proposed one detached
//! 2  the lock of the files: a checkpoint that is under way ends first
//! 3  each connection in a transaction gets the old generation for itself: a private wal-index, the frames of the WAL as
//!    they are now, the old main file
//! 4  main file, hashes, position and checksum are those of the new files; the WAL is empty and has new salts
//! 5  the wal-index header: other salts, another change counter, no frames
//! ```
//!
//! A transaction that was open goes on in its old state, whole, and cannot write; its connection joins the others when it
//! ends, like one that was fenced (`session.rs`). All others notice the new header at their next transaction and drop their page
//! caches. A connection that is between reading the header and getting its read lock compares the header again behind the lock.
//!
//! Steps 3 and 4 happen under the locks under which main file and WAL are read, so no read is half old and half new. If step
//! 3 fails, for want of memory, nothing has changed: connections that have their copy keep it to the end of their
//! transaction.
//!
//! A copy that was found damaged is mended the same way, and is not served before what the log has beyond the new files is
//! applied on top of them.
//!
//! The old generation's files stay open as long as such a transaction, or a read view, needs them. Views of the old generation
//! do not gate checkpoints of the new one, which writes to other files.
//!
//! Deliberately absent: where the files come from (`staging.rs`), and deleting the old ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::checkpoint::next_salts;
use super::session::Owner;
use super::{Database, FileState, Main, MainFile, Mode, Overlay, State, Writing};
use crate::error::Refusal;
use crate::files::DatabaseFiles;
use crate::hashmap::PageHashes;
use crate::wal::frame::FrameNo;
use crate::wal::header::{WAL_HEADER_BYTES, WalHeader};
use crate::wal::index::{self, IndexHeader};
use crate::wal::store::VirtualWal;

/// Why files were not put in the place of others. Nothing has changed then.
#[derive(Debug)]
pub enum ReplaceError {
    /// They have pages of another size.
    PageSize {
        /// What the files have.
        found: u32,
        /// What the database has.
        expected: u32,
    },
    /// The database is not served any more, for a reason that no files can mend.
    Retired(Refusal),
    /// Memory for the wal-index of a transaction that is open could not be mapped.
    Io(std::io::Error),
}

impl std::fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReplaceError::PageSize { found, expected } => {
                write!(f, "files with pages of {found} bytes, the database has pages of {expected}")
            }
            ReplaceError::Retired(why) => write!(f, "the database was retired: {why:?}"),
            ReplaceError::Io(error) => write!(f, "wal-index: {error}"),
        }
    }
}

impl std::error::Error for ReplaceError {}

/// Whether other files can make the database usable.
fn mendable(state: &State) -> Result<(), ReplaceError> {
    match state.retired {
        None | Some(Refusal::Damaged) => Ok(()),
        Some(other) => Err(ReplaceError::Retired(other)),
    }
}

impl Database {
    /// From now on this database is what `files` has, with an empty WAL; its position may go forward or back. Transactions
    /// that are open keep the old state until they end. A database that was retired as damaged is usable again. Waits for
    /// what ends by itself: a publication, a checkpoint. The caller applies nothing meanwhile, and may delete the old
    /// files afterwards.
    pub fn replace(&self, files: DatabaseFiles) -> Result<(), ReplaceError> {
        self.replace_and(files, true)
    }

    /// [`Database::replace`] for a database that was retired as damaged, and stays so until [`Database::serve_again`]: what
    /// the log has beyond these files is to be applied first ([`Database::apply_to_damaged`]).
    pub fn replace_damaged(&self, files: DatabaseFiles) -> Result<(), ReplaceError> {
        self.replace_and(files, false)
    }

    fn replace_and(&self, files: DatabaseFiles, serve: bool) -> Result<(), ReplaceError> {
        let (found, expected) = (files.owner().page_size, self.geometry.page_size);
        if found != expected {
            return Err(ReplaceError::PageSize { found: found.bytes(), expected: expected.bytes() });
        }
        {
            let mut state = self.state.lock();
            self.wait_published(&mut state);
            mendable(&state)?;
            self.take_write_for_replacing(&mut state).map_err(ReplaceError::Io)?;
        }
        // With WRITE in hand: a checkpointer that holds it waits for the files.
        let mut slot = self.files.lock();
        let mut state = self.state.lock();
        let result = mendable(&state).and_then(|()| self.exchange(&mut state, &files).map_err(ReplaceError::Io));
        if result.is_ok() {
            self.doublewrite_bytes.store(files.doublewrite_bytes(), Ordering::Relaxed);
            *slot = Some(files);
            if serve {
                state.retired = None;
            }
        }
        self.release_ours(&mut state, Owner::Applier);
        result
    }

    /// Steps 3 to 5.
    fn exchange(&self, state: &mut State, files: &DatabaseFiles) -> std::io::Result<()> {
        let at = files.at();
        let new = Arc::new(Main::File(MainFile::new(files)));
        let mut main = self.main.write();
        let publisher = self.publisher.lock();
        let mut wal = self.wal.write();
        // Of a damaged header nothing is left; what connections remember of it has other salts all the same.
        let (salts, change_counter) = match state.live_header() {
            Some(header) => (header.salts, header.change_counter),
            None => (wal.header().map_or([0; 2], |header| header.salts), 0),
        };
        let State { locks, files: connections, .. } = state;
        for (id, connection) in connections.iter_mut() {
            // Of what an ended reader had nothing is left to keep.
            if connection.link.mode() == Mode::Ended {
                continue;
            }
            if locks.is_reader(*id) || connection.believes_write || connection.link.mode() != Mode::Normal {
                keep_old(connection, &wal, &main)?;
            }
        }

        *main = new;
        {
            let mut writing = self.writing.lock();
            *writing = Writing { pages: Vec::new(), done: writing.done + 1 };
        }
        self.rotten.lock().clear();
        let salts = next_salts(salts);
        let wal_header = WalHeader::new(self.geometry.page_size, 0, salts);
        wal.truncate_to(0);
        wal.set_header(wal_header.encode());
        let empty = IndexHeader {
            change_counter: change_counter.wrapping_add(1),
            order: wal_header.order,
            page_size: Some(self.geometry.page_size),
            max_frame: 0,
            page_count: at.size,
            frame_checksum: wal_header.checksum(),
            salts,
        };
        index::restart(&*publisher, &empty);

        state.hashes = PageHashes::of_file(files.map().clone(), at.size, at.checksum);
        state.published.clear();
        state.checkpointed = Some(at);
        state.dirty_since = None;
        state.position = at.position;
        state.bound = true;
        state.views.begin_generation();
        self.counters.replaced.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Gives a connection the generation that it reads, for itself. One that has an older one keeps that.
fn keep_old(connection: &mut FileState, wal: &VirtualWal, main: &Arc<Main>) -> std::io::Result<()> {
    let mut slot = connection.link.overlay.lock();
    if slot.as_ref().is_some_and(|overlay| overlay.main.is_some()) {
        return Ok(());
    }
    let frames = whole_wal(wal, slot.as_ref());
    *slot = Some(Overlay { first: 1, frames, main: Some(main.clone()) });
    // Before anything shared changes; nothing if it is detached already.
    connection.view.detach()?;
    if connection.link.mode() == Mode::Normal {
        connection.link.set_mode(Mode::Fenced);
    }
    Ok(())
}

/// The WAL as a connection sees it, with what it wrote itself.
fn whole_wal(wal: &VirtualWal, own: Option<&Overlay>) -> VirtualWal {
    let mut copy = VirtualWal::new(wal.page_size());
    let mut header = [0; WAL_HEADER_BYTES];
    wal.read(&mut header, 0);
    copy.set_header(header);
    let shared = own.map_or(wal.len(), |own| own.first - 1);
    let mut put = |to: u32, from: &VirtualWal, number: u32| {
        if let Some((from_frame, to)) = FrameNo::new(number).zip(FrameNo::new(to))
            && let Some((header, image)) = from.frame_header_bytes(from_frame).zip(from.image(from_frame))
        {
            copy.put_header(to, header);
            copy.put_image(to, image);
        }
    };
    (1..=shared).for_each(|number| put(number, wal, number));
    if let Some(own) = own {
        (1..=own.frames.len()).for_each(|number| put(shared + number, &own.frames, number));
    }
    copy
}
