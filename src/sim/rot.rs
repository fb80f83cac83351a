//! Bits that change on a disk by themselves: on one node of a run, a minority, and only in runs in which no disk is lost.
//!
//! ```text
//! where                      what must come of it
//! a main file, its hashes    that database is not served there until it is repaired from the others; while the node runs, or
//! or its double-write          while it is down
//! the log, while it is down  the node does not start and names the file. Its disk counts as lost then: it comes back empty, is
//! the identity, the same       refused, and is removed or replaced
//! ```
//!
//! In the log only what a later segment vouches for: damage in the very last batch looks like a torn write (DESIGN.md, recovery).
//! A bit that nothing reads any more may of course change: one of the lock page, of what a file has beyond the database, of a file of a
//! generation that is over, of the two records of positions in a map. Of all others there must be nothing left at the end
//! ([`State::rot_left`]), whoever has or has not noticed them. And a page is compared with its hash at its first use (INV-28): what rots
//! after that may be shown until the scrubber comes by, so nothing is concluded from reads of a node that runs on such a file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoaldb_vfs::env::Fs;
use shoaldb_vfs::env::sim::Aim;

use super::bounds::has_disk_that_failed;
use super::world::{At, Ev, State};
use crate::catalogue::DatabaseId;
use crate::identity::FILE as IDENTITY;

/// How long the scrubber gets at the end to find what nobody has read: it comes around in less.
const SCRUBBED_WITHIN: Duration = Duration::from_secs(6);

/// Bits of a page in a main file, or of the hash of one in a map, that have rotted.
pub(super) struct Rotten {
    at: At,
    file: PathBuf,
    /// Which bytes of the file are looked at, and what they were when the bits had changed: whoever writes them anew leaves them
    /// otherwise.
    place: u64,
    bytes: Vec<u8>,
}

/// The pages of a checkpoint.
const TORN: &str = "ckpt.page";
/// Bytes of a main file that are looked at: the smallest page.
const PIECE: u64 = 512;
/// Where the hashes begin in a map, and how long each of them is (`mapfile.rs`).
const HASHES: u64 = 4096;
const HASH: u64 = 16;

/// What of a file of this kind is looked at for a bit in the byte at `place`; `None` if it is neither of a page nor of a hash.
fn piece(kind: &str, place: u64) -> Option<Range<u64>> {
    let around = |len: u64| place / len * len..(place / len + 1) * len;
    match kind {
        "db" => Some(around(PIECE)),
        "map" if place >= HASHES => Some(around(HASH)),
        _ => None,
    }
}

/// The node whose disk rots.
#[derive(Clone, Copy)]
pub(super) struct Rotting {
    pub(super) at: At,
    /// What it needs to start has rotted, in this kind of file.
    condemned: Option<&'static str>,
    /// Its disk was given up.
    gone: bool,
    /// The power fails among the pages of its next checkpoint, and then what it has of them in the double-write rots: how many such
    /// pages were written before.
    to_be_torn: Option<u64>,
}

impl State {
    /// Some bits change.
    pub(super) fn rot(&mut self) {
        if !self.shape.rots || !self.strikes() {
            return;
        }
        let Some((leader, members)) = self.newest_leader() else { return };
        let at = match self.rotting {
            Some(rotting) if rotting.gone || rotting.condemned.is_some() => return,
            Some(rotting) => rotting.at,
            None => self.dice.below(self.slots.iter().filter(|slot| slot.founder).count() as u64) as usize,
        };
        if !members.voters.contains(&self.slots[at].id) || !members.voters_outgoing.is_empty() {
            return;
        }
        if !self.others_are_whole(at) {
            return;
        }
        let mut rotting = Rotting { at, condemned: None, gone: false, to_be_torn: None };
        match self.dice.below(8) {
            kind @ (0 | 1) if at != leader && self.all_bound(leader) && self.may_lose_a_disk(at, leader) => {
                self.crash(at, false);
                let (dir, file) =
                    if kind == 0 { ("/n", Some(IDENTITY.to_string())) } else { ("/n/log", self.a_sealed_segment(at)) };
                let Some(file) = file.filter(|_| self.slots[at].running.is_none()) else { return };
                // Bits that are drawn twice are as they were.
                if self.flip(at, &Path::new(dir).join(file)) {
                    rotting.condemned = Some(if kind == 0 { IDENTITY } else { ".seg" });
                }
            }
            2 | 3 if self.slots[at].running.is_some() => {
                let (nth, seed) = (1 + self.dice.below(4), self.dice.below(u64::MAX));
                self.slots[at].fs.crash_at(Aim::At(TORN), nth, seed);
                rotting.to_be_torn = Some(self.slots[at].fs.count(TORN));
            }
            kind => {
                if kind < 5 && self.dice.below(2) == 0 {
                    self.crash(at, false);
                }
                let mut files = self.slots[at].fs.list(Path::new("/n/db"), "sim.rot").unwrap_or_default();
                files.retain(|file| !file.ends_with(".part"));
                if files.is_empty() {
                    return;
                }
                let file = files.swap_remove(self.dice.below(files.len() as u64) as usize);
                self.flip(at, &Path::new("/n/db").join(file));
            }
        }
        self.rotting = Some(rotting);
    }

    /// A node's power failed in a call: if that was among the pages of a checkpoint, a start needs the double-write now.
    pub(super) fn rot_what_a_start_needs(&mut self, at: At) {
        let Some(rotting) = self.rotting.as_mut().filter(|rotting| rotting.at == at) else { return };
        let Some(before) = rotting.to_be_torn.take() else { return };
        let fs = self.slots[at].fs.clone();
        if fs.count(TORN) == before || !self.strikes() {
            return;
        }
        let mut files = fs.list(Path::new("/n/db"), "sim.rot").unwrap_or_default();
        files.retain(|file| file.ends_with(".dw"));
        for file in files.iter().flat_map(|file| std::iter::repeat_n(file, 4)) {
            self.flip(at, &Path::new("/n/db").join(file));
        }
        self.count("double-writes rotten behind a checkpoint that was cut off");
    }

    /// Whether every member has come with a directory: one whose votes do not count yet replaces no lost disk.
    fn all_bound(&self, leader: At) -> bool {
        let Some(hub) = self.slots[leader].hub() else { return false };
        hub.with_catalogue(|catalogue| catalogue.members().all(|(_, member)| member.incarnation.is_some())) == Ok(true)
    }

    /// A segment of the log that has a successor, and that a start reads.
    fn a_sealed_segment(&self, at: At) -> Option<String> {
        let mut files = self.slots[at].fs.list(Path::new("/n/log"), "sim.rot").unwrap_or_default();
        files.retain(|file| file.ends_with(".seg"));
        files.sort();
        files.pop()?;
        files.pop()
    }

    /// Whether the file is another one now.
    fn flip(&mut self, at: At, file: &Path) -> bool {
        let fs = self.slots[at].fs.clone();
        let before = fs.peek(file).unwrap_or_default();
        let len = before.len() as u64;
        if len == 0 {
            return false;
        }
        let bits: Vec<(u64, u64)> =
            (0..1 + self.dice.below(3)).map(|_| (self.dice.below(len), self.dice.below(8))).collect();
        fs.edit(file, |bytes| bits.iter().for_each(|(place, bit)| bytes[*place as usize] ^= 1 << bit));
        self.remember_rot(at, file, &bits);
        if self.slots[at].running.is_some() && file.extension().is_some_and(|kind| kind == "db") {
            let now = fs.peek(file).unwrap_or_default();
            let bytes = bits.iter().map(|(place, _)| (file.to_path_buf(), *place, now[*place as usize]));
            self.slots[at].rotten_in_use.extend(bytes);
        }
        self.note(format_args!("n{}: bits {bits:?} of {} rot", at + 1, file.display()));
        let kind = file.extension().and_then(|kind| kind.to_str()).unwrap_or(IDENTITY);
        self.count(match kind {
            "db" => "main files rotten",
            "map" => "maps rotten",
            "dw" => "double-writes rotten",
            "seg" => "logs rotten",
            _ => "identities rotten",
        });
        fs.peek(file).is_none_or(|now| now != before)
    }

    fn remember_rot(&mut self, at: At, file: &Path, bits: &[(u64, u64)]) {
        let now = self.slots[at].fs.peek(file).unwrap_or_default();
        let kind = file.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        for range in bits.iter().filter_map(|(place, _)| piece(kind, *place)) {
            let bytes = now[range.start as usize..now.len().min(range.end as usize)].to_vec();
            self.checks.rotten.push(Rotten { at, file: file.to_path_buf(), place: range.start, bytes });
        }
    }

    /// What has rotted and is still there, and is of use to a node that takes part.
    pub(super) fn rot_left(&self) -> Vec<String> {
        let participants = self.participants();
        let left = self.checks.rotten.iter().filter(|rotten| participants.contains(&rotten.at) && self.is_left(rotten));
        left.map(|Rotten { at, file, place, .. }| format!("n{}: {} is rotten at {place}", at + 1, file.display()))
            .collect()
    }

    fn is_left(&self, rotten: &Rotten) -> bool {
        let slot = &self.slots[rotten.at];
        let Some(hub) = slot.hub() else { return false };
        // A checkpoint that failed in the middle leaves a mixture, which nobody looks at before the next start: that is told.
        if self.checkpoint_has_failed(rotten.at) && has_disk_that_failed(hub) {
            return false;
        }
        let name = rotten.file.file_stem().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
        let Some((Ok(id), Ok(generation))) =
            name.map(|(id, generation)| (id.parse::<u64>(), generation.parse::<u64>()))
        else {
            return false;
        };
        let all = hub.databases.all();
        let Some((id, db)) = all.iter().find(|(known, _)| *known == DatabaseId(id)) else { return false };
        let page_size = db.geometry().page_size;
        let page = match rotten.file.extension().is_some_and(|kind| kind == "map") {
            true => (rotten.place - HASHES) / HASH + 1,
            false => rotten.place / u64::from(page_size.bytes()) + 1,
        };
        let counts = page <= u64::from(db.status().pages.0) && page != u64::from(page_size.lock_page().get());
        let is_same =
            |bytes: Vec<u8>| bytes.get(rotten.place as usize..).is_some_and(|it| it.starts_with(&rotten.bytes));
        counts && hub.databases.generation(*id) == generation && slot.fs.peek(&rotten.file).is_some_and(is_same)
    }

    /// Whether what has rotted under this process is still there.
    pub(super) fn shows_rot(&self, at: At) -> bool {
        self.may_see_rot(at, self.rot_that_passed(at))
    }

    /// How much of what has rotted under this process is there no longer. Whoever begins now does not see it; whoever has begun before
    /// may have the files that are replaced.
    pub(super) fn rot_that_passed(&self, at: At) -> usize {
        let slot = &self.slots[at];
        let is_there = |(file, place, byte): &&(PathBuf, u64, u8)| {
            slot.fs.peek(file).is_some_and(|bytes| bytes.get(*place as usize) == Some(byte))
        };
        slot.rotten_in_use.len() - slot.rotten_in_use.iter().filter(is_there).count()
    }

    /// Whether something has rotted under this process that whoever began when so much had passed may see.
    pub(super) fn may_see_rot(&self, at: At, passed: usize) -> bool {
        self.slots[at].rotten_in_use.len() > passed
    }

    /// Whether what is found damaged on this node is our doing.
    pub(super) fn has_rotted(&self, at: At) -> bool {
        self.rotting.is_some_and(|rotting| rotting.at == at)
    }

    /// A node whose disk has rotted did not start: it must say why, and counts as lost. `false` if this is no such node.
    pub(super) fn condemned(&mut self, at: At, error: &str) -> bool {
        let Some(rotting) = self.rotting.filter(|rotting| rotting.at == at && !rotting.gone) else { return false };
        let Some(file) = rotting.condemned else { return false };
        // A call that failed came before what has rotted was looked at.
        if !error.contains(file) && self.a_call_has_failed(at) {
            return false;
        }
        if !error.contains(file) {
            self.fail(format!("n{} does not start, and its {file} has rotted, which it does not say: {error}", at + 1));
        }
        self.note(format_args!("n{}: {error}; its disk is given up", at + 1));
        self.count("starts refused over a rotten disk");
        let seed = self.dice.below(u64::MAX);
        self.slots[at].wipe(seed);
        self.rotting = Some(Rotting { gone: true, ..rotting });
        self.after_millis(100, Ev::Restart(at));
        true
    }

    /// It started: what has rotted of its log was of no use to it any more. Of the identity a start needs every byte.
    pub(super) fn acquitted(&mut self, at: At) {
        let Some(rotting) = self.rotting.as_mut().filter(|it| it.at == at && !it.gone) else { return };
        if rotting.condemned.take() == Some(IDENTITY) {
            self.fail(format!("n{} has started, and its {IDENTITY} has rotted", at + 1));
        }
    }

    /// Whether everything that has rotted was found and repaired.
    pub(super) fn rot_is_over(&self) -> bool {
        let takes_part = |rotting: &Rotting| !rotting.gone && self.participants().contains(&rotting.at);
        let Some(rotting) = self.rotting.filter(takes_part) else { return true };
        let repaired = self.slots[rotting.at].hub().is_none_or(|hub| hub.databases.all_damaged().is_empty());
        repaired && self.now >= self.calmed_at + SCRUBBED_WITHIN && self.rot_left().is_empty()
    }
}
