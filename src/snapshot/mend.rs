//! A copy of one database, fetched whole, takes the place of a damaged one.
//!
//! ```text
//! step                                                  a crash after it
//! 0 the damaged copy is not served                      a start finds the damage again, or does not: then a checkpoint has
//!                                                       written over it, or it was in memory only
//! 1 the new generation is complete, synced, named       nothing has changed; its pages are of use to the next attempt
//! 2 this node has applied the entry of the view          the same
//! 3 the record: the newest anchor once more, with the   a start opens the new generation, deletes the old one, and applies
//!   new generation of this database                     the log from the anchor on; what the file has already is skipped
//! 4 the database shows the new file, to nobody yet      the same
//! 5 the old generation's files are deleted              the same
//! 6 entries behind the view are applied once more       the same
//! 7 it is served                                        the same
//! ```
//!
//! Step 3 is the only one that decides anything (INV-39), and says nothing but which file counts: an anchor with the same
//! index, members and catalogue. The log stays as it is, and so do Raft and all other databases.
//!
//! *Before step 3* the entry of the view is applied here, so the log has it on this disk: no main file is ever ahead of the log.
//!
//! *Step 6.* While a copy is damaged the applier passes its entries over. The log has all of them from the anchor on, which a
//! database that is not served keeps from moving, and a view is cut where no transaction is open in parts: so its entries
//! behind the view are read again and applied in the same way, most of them while the applier goes on, the last few between
//! two of its steps. An entry that is refused here was refused everywhere.
//!
//! Deliberately absent: where the copy comes from, and why it may be trusted (`repair.rs`).

use std::sync::Arc;

use shoaldb_vfs::Database;
use shoaldb_vfs::database::ApplyError;
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::transaction::{ChangedPage, Position, Transaction};

use super::{Done, Mended, object};
use crate::catalogue::DatabaseId;
use crate::entry::split::{self, Form};
use crate::entry::{self, Body, Kind};
use crate::events::Event;
use crate::history::History;
use crate::log::{Anchor, Batch, Log};
use crate::registry::{self, Registry};
use crate::shared::{Hub, Input};
use crate::splits::{self, Pages, Splits, Whole};
use crate::types::{EntryClass, LogEntry, LogIndex};

/// Bytes of entries that are read from the log at once.
const READ_BYTES: u64 = 4 << 20;
/// Entries that may be left for the moment in which the applier stands still.
const FEW_ENTRIES: u64 = 64;
/// Times that the rest is applied while the applier goes on, before it has to stand still for it.
const ROUNDS: usize = 100;

/// What became of it.
pub(crate) enum Outcome {
    /// The database is whole, and served.
    Repaired,
    /// Its copy is not needed any more: it was dropped, or replaced by a snapshot.
    NotNeeded,
    /// A transaction is to be shown first. Nothing has happened yet.
    Later(Box<Mended>),
    /// The log has no room for the record. It may be on the disk all the same, so these files wait until it can be tried again.
    NoRoom(Box<Mended>, String),
    /// It stays as it is, for this reason. What is on record counts.
    Failed(String),
}

/// Makes the copy count and brings it to where this node is. Nothing else writes anchors meanwhile; everything else goes on.
pub(crate) fn mend(hub: &Hub, log: &Log, mut mended: Box<Mended>) -> Outcome {
    let id = mended.database;
    let next = hub.databases.generation(id) + 1;
    let Some(db) = hub.databases.get(id).filter(|db| db.retired() == Some(Refusal::Damaged)) else {
        return Outcome::NotNeeded;
    };
    if mended.files.owner().generation != next {
        return Outcome::NotNeeded;
    }
    if db.is_showing() {
        return Outcome::Later(mended);
    }
    let record = match rewritten(log.anchor(), |known| _ = known.generations.insert(id, next)) {
        Ok(anchor) => Batch { anchor: Some(anchor), ..Batch::default() },
        Err(what) => return Outcome::Failed(format!("the anchor of the log: {what}")),
    };
    if let Err(error) = log.append(&record) {
        if error.can_be_tried_again() {
            mended.tried = true;
            return Outcome::NoRoom(mended, error.in_words_for_now());
        }
        // The record may be on the disk all the same.
        hub.snapshots.end();
        let what = error.in_words();
        hub.post(Input::Failed { what: what.clone() });
        return Outcome::Failed(what);
    }
    let Mended { source, view, at, files, received, .. } = *mended;
    hub.snapshots.set_done(Done { source, view, index: at.index, outcome: object::Outcome::Installed });
    if let Err(error) = hub.databases.exchange_damaged(id, files) {
        return Outcome::Failed(format!("a copy is on disk, but cannot be shown: {error}"));
    }
    let mut rest = Rest { hub, log, db: &db, id, next: at.index.next(), splits: Splits::default() };
    match rest.catch_up() {
        Ok(()) => {
            hub.events.tell(&Event::DivergenceRepaired { database: db.name().to_string(), source, bytes: received });
            tracing::info!(node = hub.id.0, database = db.name(), source = source.0, received, "a copy was repaired");
            Outcome::Repaired
        }
        Err(what) => Outcome::Failed(what),
    }
}

/// The same anchor, with another registry.
pub(crate) fn rewritten(anchor: Anchor, change: impl FnOnce(&mut Registry)) -> Result<Anchor, String> {
    let (_, registry) = History::split(&anchor.registry).map_err(|damaged| damaged.to_string())?;
    let receipts = &anchor.registry[..anchor.registry.len() - registry.len()];
    let mut known = registry::decode(registry).map_err(|error| error.to_string())?;
    change(&mut known);
    let registry = [receipts, &registry::encode(&known.catalogue, &known.generations, known.aftermath)].concat();
    Ok(Anchor { registry: registry.into(), ..anchor })
}

/// What the log has for one database behind a view of it.
struct Rest<'a> {
    hub: &'a Hub,
    log: &'a Log,
    db: &'a Arc<Database>,
    id: DatabaseId,
    next: LogIndex,
    splits: Splits,
}

impl Rest<'_> {
    /// Applies what the applier has passed over, and lets the database be served.
    fn catch_up(&mut self) -> Result<(), String> {
        for _ in 0..ROUNDS {
            let through = self.hub.applied().index;
            if through.0 < self.next.0 + FEW_ENTRIES || self.hub.is_stopped() {
                break;
            }
            self.apply_through(through)?;
        }
        let hub = self.hub;
        let mut result = Ok(());
        hub.between_entries(&mut || {
            result = self.apply_through(hub.applied().index);
            if result.is_ok() {
                hub.databases.acquit(self.id);
            }
        });
        result
    }

    fn apply_through(&mut self, through: LogIndex) -> Result<(), String> {
        while self.next <= through {
            let entries = self.log.entries(self.next, through.next(), READ_BYTES);
            let entries = entries.map_err(|error| error.in_words())?;
            if entries.is_empty() {
                return Err(format!("the log does not have entry {}", self.next));
            }
            for entry in entries {
                self.apply(&entry).map_err(|what| format!("entry {}@{}: {what}", entry.id.index, entry.id.term))?;
                self.next = entry.id.index.next();
            }
        }
        Ok(())
    }

    /// What the applier does, for this database only.
    fn apply(&mut self, entry: &LogEntry) -> Result<(), String> {
        self.splits.on_entry(entry.id);
        if entry.class != EntryClass::Normal || entry.data.is_empty() {
            return Ok(());
        }
        let position = Position(entry.id.index.0);
        let (kind, origin) = entry::peek(&entry.data).map_err(|error| error.to_string())?;
        match kind {
            Kind::Transaction | Kind::DropDatabase => {
                let database = entry::database_of(&entry.data).map_err(|error| error.to_string())?;
                if database != self.id {
                    return Ok(());
                }
                self.splits.end(self.id);
                match entry::decode(&entry.data).map_err(|error| error.to_string())?.body {
                    Body::Transaction { transaction, .. } => self.apply_transaction(&transaction, position),
                    _ => Ok(()),
                }
            }
            Kind::Part => {
                let head = match split::peek(&entry.data).map_err(|error| error.to_string())? {
                    Form::Part(head) => head,
                    Form::GivenUp { database, .. } => {
                        if database == self.id {
                            self.splits.end(database);
                        }
                        return Ok(());
                    }
                };
                if head.database != self.id || !self.splits.join(entry.id, origin, &head, &entry.data, || None) {
                    return Ok(());
                }
                let Body::Part(part) = entry::decode(&entry.data).map_err(|error| error.to_string())?.body else {
                    return Err("a part that is none".to_string());
                };
                if let Some(pages) = self.splits.wanted(self.id) {
                    let keep = |page: ChangedPage| ChangedPage { image: self.db.keep_page(&page.image), ..page };
                    pages.extend(part.pages.into_iter().map(keep));
                }
                match (head.last, part.end) {
                    (false, _) => Ok(()),
                    (true, Some(end)) => match self.splits.take(self.id) {
                        Some(Whole { pages: Pages::Came(pages), .. }) => {
                            self.apply_transaction(&splits::whole(pages, head.page_size, end), position)
                        }
                        _ => Err("a last part without pages".to_string()),
                    },
                    (true, None) => Err("a last part without an end".to_string()),
                }
            }
            _ => Ok(()),
        }
    }

    fn apply_transaction(&self, transaction: &Transaction, position: Position) -> Result<(), String> {
        if position <= self.db.position() {
            return Ok(());
        }
        match self.db.apply_to_damaged(transaction, position) {
            Ok(()) => Ok(()),
            Err(ApplyError::WrongBase { base, position }) if base <= position => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::catalogue::Catalogue;
    use crate::registry::{Aftermath, Finishing, Left};
    use crate::types::{ClusterId, EntryId, Membership, Term};

    #[test]
    fn the_record_is_the_anchor_with_one_generation_changed() {
        let with_generation = |anchor: Anchor, id: DatabaseId, generation: u64| {
            rewritten(anchor, |known| _ = known.generations.insert(id, generation))
        };
        let mut history = History::new(EntryId { index: LogIndex(8), term: Term(2) });
        history.on_applied(EntryId { index: LogIndex(9), term: Term(2) });
        let catalogue = Catalogue::new(ClusterId(7));
        let left = Left { install: Some(5), ..Left::END };
        let finishing = Some(Finishing { source: crate::types::NodeId(2), index: LogIndex(9), left });
        let aftermath = Aftermath { reach: LogIndex(20), finishing };
        let of = |generations: &[(u64, u64)]| {
            let generations: BTreeMap<_, _> = generations.iter().map(|(id, of)| (DatabaseId(*id), *of)).collect();
            let registry = history.encode(&registry::encode(&catalogue, &generations, aftermath)).into();
            let membership = Membership { voters: vec![crate::types::NodeId(1)], ..Membership::default() };
            Anchor { applied: LogIndex(9), membership, registry }
        };
        assert_eq!(with_generation(of(&[(3, 2), (5, 4)]), DatabaseId(3), 3), Ok(of(&[(3, 3), (5, 4)])));
        assert_eq!(with_generation(of(&[]), DatabaseId(5), 2), Ok(of(&[(5, 2)])));
        // One of a node that knew neither receipts nor generations.
        let bare = Anchor { registry: catalogue.encode().into(), ..of(&[]) };
        let record = with_generation(bare.clone(), DatabaseId(5), 2).unwrap();
        assert_eq!(registry::decode(&record.registry).unwrap().generations, [(DatabaseId(5), 2)].into_iter().collect());
        let damaged = Anchor { registry: bare.registry.slice(..7), ..bare };
        assert!(with_generation(damaged, DatabaseId(5), 2).is_err());
    }
}
