//! Read views: one state of a database, lent page by page while the database goes on.
//!
//! ```text
//! page n of a view   where it is
//! in the WAL         the image of its newest frame up to the view's state; images never change
//! else               the main file, mapped; no checkpoint writes to it, because the view has shut the gate
//! lock page          zeros, and a hash of zero: it has no content
//! ```
//!
//! A page is compared with its hash the first time that the view lends it, wherever it is. One that is not what was
//! written is an error and is never lent.
//!
//! **The gate.** Whoever opens a view shuts it, and it opens when the view is closed *and* the last page that it lent is
//! given back: a [`LentPage`] is a slice of the mapping. So closing waits for nobody, and a file is never cut
//! under somebody who reads from it. A view is closed by [`ReadView::close`], with its last clone, and when its database is
//! retired; but one of a database that was dropped goes on, and so does one for whoever mends it of a database that is damaged.
//!
//! ```text
//! ReadView, clones ── Handle ──(until it is closed)── Content ── frames, mapping, gate
//!                                  LentPage ────────────┘
//! ```
//!
//! A view of a small database can be [copied](ReadView::copied): then it is in memory, and the gate is open.
//!
//! What a view holds is its own: it keeps no database alive, and its pages outlive database and node. It has the main file and the
//! map open, and asks for them by no name, so it goes on when a log entry drops the database and the files lose their names:
//! whoever fetches all of a node's databases need not begin anew because one of them goes. Nothing is written to these files any
//! more, nothing waits for the view, and with it the last of them goes.
//!
//! Nobody mends what a database had before it was dropped, or got other files. A view of that is closed at the first page of it that
//! is rotten, so that whoever wants the database is lent another one.
//!
//! Deliberately absent: how a consistent state is found (`database/view.rs`), and what is done with the pages.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use crate::env::{Label, Mapped};
use crate::error::Refusal;
use crate::genesis::Geometry;
use crate::mapfile::{Checkpointed, MapFile};
use crate::page::{PageHash, PageNo};
use crate::transaction::{PageBytes, PageImage};

/// Why a view cannot be opened, or lends no page.
#[derive(Debug)]
pub enum ViewError {
    /// The view was closed, or its database was.
    Closed,
    /// No log entry has created the database: there is nothing to show.
    NotBound,
    /// The database is not served any more.
    Retired(Refusal),
    /// The page is not what was written.
    Rotten(PageNo),
    /// The database has no such page.
    NoSuchPage(PageNo),
    /// The main file could not be mapped, or it or its hashes not be read.
    Io(std::io::Error),
}

impl std::fmt::Display for ViewError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ViewError::Closed => f.write_str("the read view is closed; open a new one"),
            ViewError::NotBound => f.write_str("the database does not exist yet"),
            ViewError::Retired(why) => write!(f, "the database was retired: {why:?}"),
            ViewError::Rotten(page) => {
                write!(f, "page {} is not what was written; take it from another node", page.get())
            }
            ViewError::NoSuchPage(page) => write!(f, "page {} is beyond the end of the database", page.get()),
            ViewError::Io(error) => write!(f, "the main file or its page-hash map: {error}"),
        }
    }
}

impl std::error::Error for ViewError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ViewError::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// What a view keeps shut. Dropping it opens it.
pub(crate) trait Gate: Send + Sync + Debug {
    /// Bytes of WAL that wait behind it.
    fn waiting_bytes(&self) -> u64;
    /// A page was found to be something else than what was written: in the main file, or in the WAL, where no checkpoint finds
    /// it as long as the gate is shut.
    fn on_rotten(&self, page: PageNo);
    /// Whether what is rotten is heard of, and mended.
    fn is_tended(&self) -> bool;
    /// Whether checkpoints wait for it.
    fn is_shut(&self) -> bool {
        true
    }
}

/// What a view shows. Its fields are dropped in this order: the gate opens when the file is not mapped any more.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) at: Checkpointed,
    pub(crate) geometry: Geometry,
    /// The pages that are not in the main file as the view has them.
    pub(crate) changed: HashMap<PageNo, (PageImage, PageHash)>,
    pub(crate) main: Arc<dyn Mapped>,
    /// Hashes of the pages of the main file; none if the view has all of its pages by itself.
    pub(crate) map: Option<MapFile>,
    /// One bit per page, in words of 64: it was what its hash says. Has room for pages that were lent, and no others.
    pub(crate) checked: RwLock<HashMap<u32, u64>>,
    pub(crate) gate: Box<dyn Gate>,
}

impl Content {
    fn check_number(&self, page: PageNo) -> Result<(), ViewError> {
        if self.at.size.contains(page) { Ok(()) } else { Err(ViewError::NoSuchPage(page)) }
    }

    fn page(&self, page: PageNo) -> Result<PageImage, ViewError> {
        self.check_number(page)?;
        let page_size = self.geometry.page_size;
        if page == page_size.lock_page() {
            return Ok(vec![0; page_size.len()].into());
        }
        let image = match self.changed.get(&page) {
            Some((image, _)) => image.clone(),
            None => PageImage::new(
                self.main.piece(page.offset(page_size), page_size.len(), "view.page").map_err(ViewError::Io)?,
            ),
        };
        if self.is_checked(page) {
            return Ok(image);
        }
        if PageHash::of(page, &image) != self.hash(page)? {
            self.gate.on_rotten(page);
            return Err(ViewError::Rotten(page));
        }
        self.set_checked(page);
        Ok(image)
    }

    /// Whether a page was what its hash says before.
    fn is_checked(&self, page: PageNo) -> bool {
        let place = page.get() - 1;
        self.checked.read().get(&(place / 64)).is_some_and(|bits| bits & (1 << (place % 64)) != 0)
    }

    fn set_checked(&self, page: PageNo) {
        let place = page.get() - 1;
        *self.checked.write().entry(place / 64).or_insert(0) |= 1 << (place % 64);
    }

    /// Appends pages up to `last`. Those that are in the main file are looked up together.
    fn append(&self, first: PageNo, last: u32, out: &mut Vec<u8>) -> Result<(), ViewError> {
        let page_size = self.geometry.page_size;
        let plain = |page: &PageNo| *page != page_size.lock_page() && !self.changed.contains_key(page);
        let mut next = Some(first);
        while let Some(first) = next.filter(|page| page.get() <= last) {
            let run: Vec<PageNo> = (first.get()..=last).filter_map(PageNo::new).take_while(plain).collect();
            next = PageNo::new(first.get().saturating_add(run.len().max(1) as u32)).filter(|page| *page != first);
            if run.is_empty() {
                out.extend_from_slice(&self.page(first)?);
                continue;
            }
            let hashes = self.stored(first, run.len() as u32)?;
            let len = run.len() * page_size.len();
            let piece = self.main.piece(first.offset(page_size), len, "view.pages").map_err(ViewError::Io)?;
            for ((page, hash), content) in run.into_iter().zip(hashes).zip(piece.bytes().chunks(page_size.len())) {
                if !self.is_checked(page) {
                    // The map has no hash only if it was cut; the look at one page says so.
                    let hash = hash.map_or_else(|| self.hash(page), Ok)?;
                    if PageHash::of(page, content) != hash {
                        self.gate.on_rotten(page);
                        return Err(ViewError::Rotten(page));
                    }
                    self.set_checked(page);
                }
                out.extend_from_slice(content);
            }
        }
        Ok(())
    }

    fn hash(&self, page: PageNo) -> Result<PageHash, ViewError> {
        self.check_number(page)?;
        if page == self.geometry.page_size.lock_page() {
            return Ok(PageHash::default());
        }
        match self.changed.get(&page) {
            Some((_, hash)) => Ok(*hash),
            None => {
                let map = self.map.as_ref().ok_or(ViewError::NoSuchPage(page))?;
                map.hash(page).map_err(ViewError::Io)
            }
        }
    }

    /// Hashes that the map has for so many pages: none where it ends.
    fn stored(&self, first: PageNo, count: u32) -> Result<Vec<Option<PageHash>>, ViewError> {
        match &self.map {
            Some(map) => map.hashes(first, count).map_err(ViewError::Io),
            None => Ok(vec![None; count as usize]),
        }
    }
}

/// The main file of a view that needs none.
#[derive(Debug)]
struct NoFile;

impl Mapped for NoFile {
    fn piece(&self, offset: u64, len: usize, label: Label) -> io::Result<Arc<dyn PageBytes>> {
        Err(io::Error::other(format!("{label}: {len} bytes at {offset} of no file")))
    }
}

/// The gate of a view that keeps none shut.
#[derive(Debug)]
struct NoGate;

impl Gate for NoGate {
    fn waiting_bytes(&self) -> u64 {
        0
    }

    fn on_rotten(&self, _: PageNo) {}

    fn is_tended(&self) -> bool {
        false
    }

    fn is_shut(&self) -> bool {
        false
    }
}

/// What all clones of a view share. Its content is there until it is closed.
struct Handle {
    at: Checkpointed,
    geometry: Geometry,
    open: RwLock<Option<Arc<Content>>>,
    /// As long as anything of the view is lent.
    lent: Weak<Content>,
}

impl Handle {
    fn close(&self) {
        // Not under the lock: with the last reference the gate opens, which takes the database's locks.
        let content = self.open.write().take();
        drop(content);
    }
}

/// How a database finds its views without keeping them open.
#[derive(Debug)]
pub(crate) struct ViewRef(Weak<Handle>);

impl ViewRef {
    /// Whether there is a clone of the view.
    pub(crate) fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Closes the view. No lock of the database may be held.
    pub(crate) fn close(&self) {
        if let Some(handle) = self.0.upgrade() {
            handle.close();
        }
    }
}

/// The views of a database that was dropped, which go on: for whoever may have to close them after all. Without them they are
/// closed like any other, one by one.
#[derive(Debug)]
pub struct LeftViews(pub(crate) Vec<ViewRef>);

impl LeftViews {
    /// Closes all of them.
    pub fn close(&self) {
        self.0.iter().for_each(ViewRef::close);
    }

    /// Whether there is a clone of one of them.
    pub fn are_held(&self) -> bool {
        self.0.iter().any(ViewRef::is_held)
    }
}

/// One state of a database; see the module's text. Clones share one view, which closes with the last of them.
#[derive(Clone)]
pub struct ReadView(Arc<Handle>);

impl Debug for ReadView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadView").field("at", &self.0.at).field("is_open", &self.is_open()).finish()
    }
}

impl ReadView {
    pub(crate) fn new(content: Content) -> (ReadView, ViewRef) {
        let (at, geometry, content) = (content.at, content.geometry, Arc::new(content));
        let lent = Arc::downgrade(&content);
        let handle = Arc::new(Handle { at, geometry, open: RwLock::new(Some(content)), lent });
        let reference = ViewRef(Arc::downgrade(&handle));
        (ReadView(handle), reference)
    }

    fn content(&self) -> Result<Arc<Content>, ViewError> {
        self.0.open.read().clone().ok_or(ViewError::Closed)
    }

    /// What came of a look at pages. With the first one that is rotten and not mended the view is over.
    fn after<T>(&self, content: &Content, look: Result<T, ViewError>) -> Result<T, ViewError> {
        if matches!(look, Err(ViewError::Rotten(_))) && !content.gate.is_tended() {
            self.close();
        }
        look
    }

    /// The state that the view shows: position, size, checksum.
    pub fn at(&self) -> Checkpointed {
        self.0.at
    }

    /// Page size and auto_vacuum of the database.
    pub fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    /// Lends a page, without copying it. The lock page is zeros.
    pub fn page(&self, page: PageNo) -> Result<LentPage, ViewError> {
        let content = self.content()?;
        let image = self.after(&content, content.page(page))?;
        Ok(LentPage { image, _content: content })
    }

    /// Appends `count` pages from `first` on: as if each was lent and copied, with fewer calls. After an error some of them may be
    /// there.
    pub fn append_pages(&self, first: PageNo, count: u32, out: &mut Vec<u8>) -> Result<(), ViewError> {
        let content = self.content()?;
        let Some(last) = count.checked_sub(1).map(|more| first.get().saturating_add(more)) else { return Ok(()) };
        content.check_number(PageNo::new(last).unwrap_or(first))?;
        self.after(&content, content.append(first, last, out))
    }

    /// Hash of a page, without reading the page; zero for the lock page.
    pub fn hash(&self, page: PageNo) -> Result<PageHash, ViewError> {
        self.content()?.hash(page)
    }

    /// Hashes of `count` pages from `first` on, without reading the pages.
    pub fn hashes(&self, first: PageNo, count: u32) -> Result<Vec<PageHash>, ViewError> {
        let content = self.content()?;
        let Some(last) = count.checked_sub(1) else { return Ok(Vec::new()) };
        content.check_number(PageNo::new(first.get().saturating_add(last)).unwrap_or(first))?;
        // A large database may have most of its pages in the WAL, and the map then ends before them.
        let stored = content.stored(first, count)?;
        let numbers = (first.get()..=first.get() + last).filter_map(PageNo::new);
        numbers
            .zip(stored)
            .map(|(page, stored)| match (stored, content.changed.get(&page)) {
                _ if page == content.geometry.page_size.lock_page() => Ok(PageHash::default()),
                (_, Some((_, hash))) => Ok(*hash),
                (Some(hash), None) => Ok(hash),
                (None, None) => content.hash(page),
            })
            .collect()
    }

    /// The same state, with all of its pages in memory: it keeps no gate shut, needs no file, and outlives its database. For small
    /// ones. Each page is compared with its hash on the way.
    pub fn copied(&self) -> Result<ReadView, ViewError> {
        let content = self.content()?;
        let mut pages = HashMap::with_capacity(content.at.size.0 as usize);
        for page in (1..=content.at.size.0).filter_map(PageNo::new) {
            if page != content.geometry.page_size.lock_page() {
                let image = self.after(&content, content.page(page))?;
                pages.insert(page, (image.to_vec().into(), content.hash(page)?));
            }
        }
        let copy = Content {
            at: content.at,
            geometry: content.geometry,
            changed: pages,
            main: Arc::new(NoFile),
            map: None,
            checked: RwLock::default(),
            gate: Box::new(NoGate),
        };
        Ok(ReadView::new(copy).0)
    }

    /// Bytes of WAL that no checkpoint can move to the main file, because of the gate.
    pub fn wal_bytes(&self) -> u64 {
        self.0.lent.upgrade().map_or(0, |content| content.gate.waiting_bytes())
    }

    /// Whether checkpoints of its database wait for it, or for what it has lent: not if all of it was copied.
    pub fn keeps_gate_shut(&self) -> bool {
        self.0.lent.upgrade().is_some_and(|content| content.gate.is_shut())
    }

    /// Lends nothing any more. The gate opens when all pages are given back. Closing it again does nothing.
    pub fn close(&self) {
        self.0.close();
    }

    /// Whether the view still lends pages.
    pub fn is_open(&self) -> bool {
        self.0.open.read().is_some()
    }
}

/// A page that a view has lent: its bytes, where they are. The gate stays shut as long as one of these is there.
pub struct LentPage {
    image: PageImage,
    _content: Arc<Content>,
}

impl Deref for LentPage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.image
    }
}

impl Debug for LentPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lent page of {} bytes", self.image.len())
    }
}
