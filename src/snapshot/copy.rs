//! One database on its way: which pages of the new file are in place, and what the own copy can give.
//!
//! What is in place is known by its bytes ([`Staging::has`]), which have to be read for that. In a process that put them there
//! itself they need not be: [`Part`] remembers their hashes from one view to the next. So a transfer whose view is closed under it,
//! as by writers who fill the WAL that it pins, goes on with another one at the cost of what changed in between, and each such
//! round is shorter than the one before. The end compares every page all the same; if one of them is not what it was remembered
//! to be, the next attempt remembers nothing.
//!
//! Memory: 17 bytes for each page of ranges that differ, 16 for each range that was copied from here; as long as the transfer is not
//! over.
//!
//! Deliberately absent: questions to another node (`fetch.rs`).

use std::collections::BTreeMap;
use std::io;

use shoaldb_vfs::env::in_words;
use shoaldb_vfs::page::{PageHash, PageNo, PageSize};
use shoaldb_vfs::staging::Staging;
use shoaldb_vfs::view::{ReadView, ViewError};

use super::Stop;
use super::object::{self, Listed, RANGE_PAGES};
use crate::catalogue::DatabaseId;

const _: () = assert!(RANGE_PAGES == u64::BITS, "one bit of a range is one page");

/// What is in the new file of a database, as far as this process knows.
#[derive(Default)]
pub(super) struct Part {
    /// Of the ranges that differed from the own copy.
    ranges: BTreeMap<u32, Pages>,
    /// Hashes of the ranges that were copied from here.
    copied: BTreeMap<u32, u128>,
}

impl Part {
    /// Of a page of a range that differed.
    fn hash(&self, page: PageNo) -> Option<PageHash> {
        let (range, at) = place(page);
        self.ranges.get(&range)?.hashes.get(at as usize).copied()
    }
}

/// The pages of a range: what they should be, and which of them are in place.
struct Pages {
    hashes: Vec<PageHash>,
    there: u64,
}

impl Pages {
    fn is_whole(&self) -> bool {
        self.there.count_ones() as usize == self.hashes.len()
    }
}

/// The parts of a transfer that goes on.
#[derive(Default)]
pub(crate) struct Parts(BTreeMap<DatabaseId, (PageSize, Part)>);

impl Parts {
    /// Forgets all of them: the transfer is over, or what is remembered was wrong.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn take(&mut self, listed: &Listed) -> Part {
        let there = self.0.remove(&listed.id).filter(|(page_size, _)| *page_size == listed.page_size);
        there.map(|(_, part)| part).unwrap_or_default()
    }
}

/// The range of a page, and its place there.
fn place(page: PageNo) -> (u32, u32) {
    let at = page.get() - 1;
    (at / RANGE_PAGES, at % RANGE_PAGES)
}

/// Ascending pages, as runs of consecutive ones.
pub(super) fn runs_of(pages: &[PageNo]) -> Vec<(PageNo, u32)> {
    let mut runs: Vec<(PageNo, u32)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((first, count)) if first.get() + *count == page.get() => *count += 1,
            _ => runs.push((*page, 1)),
        }
    }
    runs
}

/// What the pages of a new file should be whose pages are all in place.
pub(super) struct Complete {
    listed: Listed,
    local: Option<ReadView>,
    part: Part,
}

impl Complete {
    /// What is wrong with the own copy is told by whoever looks after that, and is no fault of the new files.
    pub(super) fn hash(&self, number: u32) -> Result<PageHash, Stop> {
        let missing = || new_files(format!("page {number} of database {} has no hash", self.listed.id));
        let page = PageNo::new(number).ok_or_else(missing)?;
        match self.part.hash(page) {
            Some(hash) => Ok(hash),
            None => {
                let hash = self.local.as_ref().ok_or_else(missing)?.hash(page);
                hash.map_err(|error| {
                    let why = format!("the own copy of a database: {error}");
                    match error {
                        // The next attempt would come to the same.
                        ViewError::Io(_) => Stop::GivenUp(why),
                        _ => Stop::Again(why),
                    }
                })
            }
        }
    }

    /// Another database of the same transfer is not complete yet.
    pub(super) fn keep(self, parts: &mut Parts) {
        parts.0.insert(self.listed.id, (self.listed.page_size, self.part));
    }
}

/// See the module's text.
pub(super) struct Copy {
    pub(super) listed: Listed,
    /// This node's own copy.
    local: Option<ReadView>,
    pub(super) staging: Staging,
    /// What the attempt before left, as far as it has not been looked at yet.
    before: Part,
    now: Part,
}

impl Copy {
    pub(super) fn new(listed: Listed, local: Option<ReadView>, staging: Staging, parts: &mut Parts) -> Copy {
        let before = parts.take(&listed);
        Copy { listed, local, staging, before, now: Part::default() }
    }

    /// The attempt is over, and another one may go on with what is there.
    pub(super) fn keep(self, parts: &mut Parts) {
        let Copy { listed, mut before, now, .. } = self;
        before.ranges.extend(now.ranges);
        before.copied.extend(now.copied);
        parts.0.insert(listed.id, (listed.page_size, before));
    }

    /// The part is there as it was left.
    fn reaches(&self, first: PageNo, count: u32) -> bool {
        self.staging.end() >= first.offset(self.listed.page_size) + u64::from(count * self.listed.page_size.bytes())
    }

    /// Whether all of a range is in place since the attempt before.
    pub(super) fn was_fetched(&mut self, range: u32, hash: u128) -> bool {
        let Some((first, count)) = object::pages_of(range, self.listed.at.size) else { return true };
        let reaches = self.reaches(first, count);
        let same = |pages: &Pages| {
            reaches
                && pages.is_whole()
                && pages.hashes.len() == count as usize
                && object::range_hash(&pages.hashes) == hash
        };
        let there = self.before.ranges.remove(&range);
        match there {
            Some(pages) if same(&pages) => {
                self.now.ranges.insert(range, pages);
                true
            }
            Some(pages) => {
                self.before.ranges.insert(range, pages);
                false
            }
            None => false,
        }
    }

    /// Copies a range whose pages have this hash from here, if they have it here.
    pub(super) fn same_here(&mut self, range: u32, hash: u128) -> Result<bool, Stop> {
        let Some((first, count)) = object::pages_of(range, self.listed.at.size) else { return Ok(true) };
        let Some(local) = &self.local else { return Ok(false) };
        let Ok(hashes) = local.hashes(first, count) else { return Ok(false) };
        if object::range_hash(&hashes) != hash {
            return Ok(false);
        }
        let was_copied = self.before.copied.remove(&range) == Some(hash) && self.reaches(first, count);
        if !was_copied && !self.all_there(first, &hashes).map_err(disk)? {
            let Some(pages) = self.pages_here(first, count)? else { return Ok(false) };
            self.before.ranges.remove(&range);
            self.staging.write(first, &pages).map_err(disk)?;
        }
        self.now.copied.insert(range, hash);
        Ok(true)
    }

    fn all_there(&mut self, first: PageNo, hashes: &[PageHash]) -> io::Result<bool> {
        for (number, hash) in (first.get()..).zip(hashes) {
            match PageNo::new(number) {
                Some(page) if page == self.listed.page_size.lock_page() || self.staging.adopt(page, *hash)? => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The hashes of the pages of a range that differs. Which of them the new file lacks, once those that are here are copied: many
    /// at once, since each write is passed on to the disk by itself.
    pub(super) fn lacks(&mut self, range: u32, first: PageNo, hashes: Vec<PageHash>) -> Result<Vec<PageNo>, Stop> {
        let here = self.hashes_here(first, hashes.len() as u32);
        let before = self.before.ranges.remove(&range);
        self.before.copied.remove(&range);
        let (mut there, mut lacking, mut same) = (0, Vec::new(), Vec::new());
        for (at, (page, hash)) in (first.get()..).filter_map(PageNo::new).zip(&hashes).enumerate() {
            let is_there = match &before {
                _ if page == self.listed.page_size.lock_page() => true,
                // Whatever was in place then was looked at then.
                Some(pages) => {
                    pages.there & (1 << at) != 0 && pages.hashes.get(at) == Some(hash) && self.reaches(page, 1)
                }
                None => self.staging.adopt(page, *hash).map_err(disk)?,
            };
            there |= u64::from(is_there) << at;
            match is_there {
                true => {}
                false if here.get(at) == Some(&Some(*hash)) => same.push(page),
                false => lacking.push(page),
            }
        }
        self.now.ranges.insert(range, Pages { hashes, there });
        for (first, count) in runs_of(&same) {
            if let Some(pages) = self.pages_here(first, count)? {
                self.write(first, &pages)?;
                continue;
            }
            // One of them is not what its hash says; the others are of use.
            for page in (first.get()..first.get() + count).filter_map(PageNo::new) {
                match self.pages_here(page, 1)? {
                    Some(content) => self.write(page, &content)?,
                    None => lacking.push(page),
                }
            }
        }
        lacking.sort_unstable();
        Ok(lacking)
    }

    /// Writes pages of ranges that differ, each of which is what its hash says.
    pub(super) fn write(&mut self, first: PageNo, pages: &[u8]) -> Result<(), Stop> {
        self.staging.write(first, pages).map_err(disk)?;
        let count = (pages.len() / self.listed.page_size.len()) as u32;
        for (range, at) in (first.get()..first.get() + count).filter_map(PageNo::new).map(place) {
            if let Some(pages) = self.now.ranges.get_mut(&range) {
                pages.there |= 1 << at;
            }
        }
        Ok(())
    }

    /// What a page of a range that differs should be.
    pub(super) fn hash_to_come(&self, page: PageNo) -> Option<PageHash> {
        self.now.hash(page)
    }

    /// All ranges were looked at, and every page is in place.
    pub(super) fn complete(self) -> (Staging, Complete) {
        let Copy { listed, local, staging, now, .. } = self;
        (staging, Complete { listed, local, part: now })
    }

    /// Pages of the own copy; `None` if one of them cannot be read.
    fn pages_here(&self, first: PageNo, count: u32) -> Result<Option<Vec<u8>>, Stop> {
        let Some(local) = &self.local else { return Ok(None) };
        let mut pages = Vec::with_capacity(count as usize * self.listed.page_size.len());
        match local.append_pages(first, count, &mut pages) {
            Ok(()) => Ok(Some(pages)),
            Err(ViewError::Closed) => Err(Stop::Again("the own view is closed".to_string())),
            Err(_) => Ok(None),
        }
    }

    /// Hashes of pages of the own copy, as far as that goes.
    fn hashes_here(&self, first: PageNo, count: u32) -> Vec<Option<PageHash>> {
        let Some(local) = &self.local else { return Vec::new() };
        let count = count.min((local.at().size.0 + 1).saturating_sub(first.get()));
        match local.hashes(first, count) {
            Ok(hashes) => hashes.into_iter().map(Some).collect(),
            Err(_) => (first.get()..first.get() + count).map(|page| local.hash(PageNo::new(page)?).ok()).collect(),
        }
    }
}

pub(super) fn disk(error: io::Error) -> Stop {
    new_files(in_words(&error))
}

fn new_files(why: String) -> Stop {
    Stop::GivenUp(format!("the new files of a database: {why}"))
}
