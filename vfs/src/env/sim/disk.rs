//! The bytes of one simulated file, live and durable, and what a crash makes of the changes in between.

use std::collections::BTreeMap;

use super::SECTOR;
use super::dice::Xoshiro;

#[derive(Default)]
pub(super) struct Content {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) pending: Vec<Change>,
}

/// One unsynced change: bytes at an offset, and the length of the file after it. Cutting a file is a write of zeros over
/// what is cut, so that extending it again shows zeros.
pub(super) struct Change {
    offset: u64,
    bytes: Vec<u8>,
    len_after: u64,
}

/// How kind a crash is to what was not synced.
#[derive(Clone, Copy)]
pub(super) enum Mercy {
    None,
    All,
    /// Out of 8 changes of a sector, so many are kept whole; the others end in a random earlier state.
    Some(u64),
}

impl Mercy {
    pub(super) fn draw(dice: &mut Xoshiro) -> Mercy {
        match dice.below(6) {
            0 => Mercy::None,
            1 => Mercy::All,
            2 => Mercy::Some(7),
            3 => Mercy::Some(1),
            _ => Mercy::Some(4),
        }
    }

    /// How many of `n` successive changes are kept.
    pub(super) fn keep(self, n: u64, dice: &mut Xoshiro) -> u64 {
        match self {
            Mercy::None => 0,
            Mercy::All => n,
            Mercy::Some(of_8) if dice.below(8) < of_8 => n,
            Mercy::Some(_) => dice.below(n + 1),
        }
    }
}

impl Content {
    fn change(&mut self, offset: u64, bytes: Vec<u8>, len_after: u64) {
        overlay(&mut self.live, offset, &bytes);
        self.live.resize(len_after as usize, 0);
        self.pending.push(Change { offset, bytes, len_after });
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let len_after = (self.live.len() as u64).max(offset + bytes.len() as u64);
        self.change(offset, bytes.to_vec(), len_after);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        let cut = (self.live.len() as u64).saturating_sub(len);
        self.change(len, vec![0; cut as usize], len);
    }

    /// Makes durable what the dice say of the unsynced changes, and forgets the rest.
    pub(super) fn settle(&mut self, mercy: Mercy, dice: &mut Xoshiro) {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return;
        }
        let mut touches: BTreeMap<u64, u64> = BTreeMap::new();
        for (sector, ..) in pending.iter().flat_map(Change::sectors) {
            *touches.entry(sector).or_insert(0) += 1;
        }
        // From here on: how many of its changes each sector still takes.
        for left in touches.values_mut() {
            *left = mercy.keep(*left, dice);
        }
        let changes = pending.len() as u64;
        let len = match mercy.keep(changes, dice) {
            0 => self.durable.len(),
            kept => pending[kept as usize - 1].len_after as usize,
        };
        for change in &pending {
            for (sector, offset, bytes) in change.sectors() {
                if let Some(left) = touches.get_mut(&sector).filter(|left| **left > 0) {
                    *left -= 1;
                    overlay(&mut self.durable, offset, bytes);
                }
            }
        }
        self.durable.resize(len, 0);
    }
}

impl Change {
    /// The change in pieces: sector, offset, bytes.
    fn sectors(&self) -> impl Iterator<Item = (u64, u64, &[u8])> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = self.bytes.get(at..).filter(|rest| !rest.is_empty())?;
            let offset = self.offset + at as u64;
            let take = rest.len().min((SECTOR - offset % SECTOR) as usize);
            at += take;
            Some((offset / SECTOR, offset, &rest[..take]))
        })
    }
}

fn overlay(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (from, to) = (offset as usize, offset as usize + bytes.len());
    if content.len() < to {
        content.resize(to, 0);
    }
    content[from..to].copy_from_slice(bytes);
}
