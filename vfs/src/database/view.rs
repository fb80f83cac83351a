//! Opening a read view: one state, found without stopping anybody.
//!
//! ```text
//! under the state lock   position, size, checksum; the last frame of that state; the hashes of all pages that the main
//!                        file does not have as they are in it; the gate is shut
//! then                   for each of these pages its newest frame up to the last one; everything else is mapped
//! ```
//!
//! This costs what is in the WAL, and nothing that grows with the database. Frames up to the last one do not change any
//! more, and cannot go: with the gate shut no new lap of the WAL begins, neither ours nor SQLite's.
//!
//! **A checkpoint that is under way** goes on. It moves frames up to some earlier position or this one, and every page
//! that it writes, or cuts off, changed since the last checkpoint: the view has it from the WAL, or does not have it.
//! The same holds for a main file that a failed checkpoint left as a mixture.
//!
//! **The open write transaction**, if there is one, has its frames behind the last one. A transaction that was accepted is
//! seen once its position is, not before.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::{Database, Main, State};
use crate::error::Refusal;
use crate::mapfile::Checkpointed;
use crate::page::PageNo;
use crate::view::{Content, Gate, LeftViews, ReadView, ViewError, ViewRef};
use crate::wal::frame::FrameNo;
use crate::wal::index;

/// Frames that are looked at under one lock of the WAL: writers get in between.
const FRAMES_PER_LOCK: u32 = 4096;

/// The views of one database.
#[derive(Default, Debug)]
pub(super) struct Views {
    /// Which generation of the files the gate is in front of.
    generation: u64,
    /// How many keep the gate shut.
    holding: usize,
    /// How many views of earlier generations are there, whose files nobody writes to.
    earlier: usize,
    /// Those that may be open.
    open: Vec<ViewRef>,
    /// And those that may be open of whoever takes what is whole of a damaged database.
    of_damaged: Vec<ViewRef>,
    /// The database was dropped: nothing waits for its views, and nobody mends what they show.
    left: bool,
}

impl Views {
    /// Whether no checkpoint may begin, and no new lap of the WAL.
    pub(super) fn shut(&self) -> bool {
        self.holding > 0
    }

    pub(super) fn count(&self) -> usize {
        self.holding + self.earlier
    }

    /// The files were replaced: the gate is open.
    pub(super) fn begin_generation(&mut self) {
        self.generation += 1;
        self.earlier += std::mem::take(&mut self.holding);
    }

    /// The views that go on without the database, which was dropped.
    pub(super) fn leave(&mut self) -> LeftViews {
        self.left = true;
        LeftViews(self.take())
    }

    /// The views to be closed, which must happen without any lock of the database.
    pub(super) fn take(&mut self) -> Vec<ViewRef> {
        let mut all = std::mem::take(&mut self.open);
        all.append(&mut self.of_damaged);
        all
    }

    /// The views to be closed, in the same way, if the database is retired for this reason.
    pub(super) fn take_for(&mut self, reason: Refusal) -> Vec<ViewRef> {
        if reason == Refusal::Damaged { std::mem::take(&mut self.open) } else { self.take() }
    }
}

/// One view's hold on the gate.
#[derive(Debug)]
struct Hold {
    db: Weak<Database>,
    generation: u64,
}

impl Hold {
    /// What `look` sees in the database, under its lock, if the view is of its files still, and it was not dropped.
    fn in_use<T>(&self, look: impl FnOnce(&Database, &State) -> T) -> Option<T> {
        let db = self.db.upgrade()?;
        let state = db.state.lock();
        let in_use = !state.views.left && state.views.generation == self.generation;
        in_use.then(|| look(&db, &state))
    }
}

impl Gate for Hold {
    fn waiting_bytes(&self) -> u64 {
        let bytes =
            |db: &Database, state: &State| u64::from(state.pending_frames()) * u64::from(db.geometry.page_size.bytes());
        self.in_use(bytes).unwrap_or(0)
    }

    fn on_rotten(&self, page: PageNo) {
        self.in_use(|db, _| db.note_rotten_now(page));
    }

    fn is_tended(&self) -> bool {
        self.in_use(|_, _| ()).is_some()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(db) = self.db.upgrade() else { return };
        let mut state = db.state.lock();
        if state.views.generation == self.generation {
            state.views.holding -= 1;
        } else {
            state.views.earlier -= 1;
        }
        state.views.open.retain(ViewRef::is_held);
        state.views.of_damaged.retain(ViewRef::is_held);
        db.changed.notify_all();
    }
}

impl Database {
    /// A view of what is published now, one consistent state. Checkpoints of this database are gated until the view is
    /// closed and the last page that it lent is given back; everything else goes on.
    pub fn read_view(self: &Arc<Database>) -> Result<ReadView, ViewError> {
        self.view_if(|retired| retired.is_none(), |views| &mut views.open)
    }

    /// [`Database::read_view`] of a database that may have been retired as damaged: what is whole of it is of use to whoever
    /// mends it. Each page that is lent is what its hash says, as always; whether the hash is right is the caller's business. It
    /// stays open if the database is found to be damaged meanwhile, as by a look at this view.
    pub fn view_of_damaged(self: &Arc<Database>) -> Result<ReadView, ViewError> {
        self.view_if(|retired| matches!(retired, None | Some(Refusal::Damaged)), |views| &mut views.of_damaged)
    }

    fn view_if(
        self: &Arc<Database>,
        allowed: impl Fn(Option<Refusal>) -> bool,
        list: impl FnOnce(&mut Views) -> &mut Vec<ViewRef>,
    ) -> Result<ReadView, ViewError> {
        let mut state = self.state.lock();
        if let Some(why) = state.retired.filter(|_| !allowed(state.retired)) {
            return Err(ViewError::Retired(why));
        }
        if !state.bound {
            return Err(ViewError::NotBound);
        }
        let (file, map, len) = match &**self.main.read() {
            Main::File(main) => (main.file.clone(), main.map.clone(), main.len),
            Main::Genesis(_) => return Err(ViewError::NotBound),
            Main::Closed { .. } => return Err(ViewError::Closed),
        };
        let at =
            Checkpointed { position: state.position, size: state.hashes.size(), checksum: state.hashes.checksum() };
        let hashes = state.hashes.changed();
        let frames = frames_of(&state);
        state.views.holding += 1;
        let generation = state.views.generation;
        drop(state);
        // From here on it is given back whatever happens.
        let gate = Box::new(Hold { db: Arc::downgrade(self), generation });
        let main = file.map(len, "view.map").map_err(ViewError::Io)?;

        let mut changed = HashMap::with_capacity(hashes.len());
        let mut first = *frames.start();
        while first <= *frames.end() {
            let end = first.saturating_add(FRAMES_PER_LOCK - 1).min(*frames.end());
            let wal = self.wal.read();
            for frame in (first..=end).filter_map(FrameNo::new) {
                if let Some((header, image)) = wal.frame_header(frame).zip(wal.image(frame))
                    && let Some(hash) = hashes.get(&header.page)
                {
                    changed.insert(header.page, (image, *hash));
                }
            }
            first = end + 1;
        }
        if changed.len() != hashes.len() {
            let what = format!("{} pages changed, the WAL has {} of them", hashes.len(), changed.len());
            return Err(ViewError::Io(std::io::Error::other(what)));
        }
        let geometry = self.geometry;
        let content = Content { at, geometry, changed, main, map: Some(map), checked: Default::default(), gate };
        let (view, reference) = ReadView::new(content);
        let mut state = self.state.lock();
        if !allowed(state.retired) {
            // Whoever retired it has closed the views that it knew.
            drop(state);
            view.close();
        } else {
            list(&mut state.views).push(reference);
        }
        Ok(view)
    }

    /// Closes all views; how many there were. What they lent stays where it is, and keeps the gate shut until it is given back.
    pub fn close_views(&self) -> usize {
        let open = self.state.lock().views.take();
        open.iter().for_each(ViewRef::close);
        open.len()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.close_views();
    }
}

/// The frames that the main file may not have, up to the state that is published.
fn frames_of(state: &State) -> std::ops::RangeInclusive<u32> {
    // Not the header's: it is ahead while a transaction is being published.
    let last = state.published.back().map_or(0, |last| last.last_frame);
    index::backfill(&state.view).saturating_add(1)..=last
}
