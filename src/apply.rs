//! Committed entries become what they say, in order, one at a time, the same on every node.
//!
//! ```text
//! entry            done if                              else
//! transaction      its database exists and stands at    refused: nothing changes, on every node alike; if it is ours,
//!                  its base position                    the waiting SQLite commit is NotCommitted
//! part of one      it is the next one, see splits.rs;   refused, and the split is over
//!                  with the last, as a transaction
//! create           the name is free                     refused; without files, which the disk did not take, it is
//!                                                       damaged on this node
//! drop             the database exists                  refused
//! bind incarnation the member exists and is unbound     refused
//! checkpoint       (nothing)
//! members          the catalogue takes it                refused, by the core too
//! empty            (nothing)
//! ```
//!
//! A transaction of this process that a connection still waits for is *accepted*: SQLite publishes it, and the applier
//! goes on once it is shown. Every other transaction is applied here.
//!
//! An entry of an unknown kind, version or operation stops the node before it is applied, and so does one that is
//! damaged although its checksum was right. A checksum that differs after a transaction stops this copy of this
//! database only.
//!
//! The applier never sleeps: [`Applier::step`] says what it waits for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shoaldb_vfs::Database;
use shoaldb_vfs::database::ApplyError;
use shoaldb_vfs::env::{MORE_FILES, in_words, is_no_room, is_out_of_files};
use shoaldb_vfs::transaction::{ChangedPage, Position, Transaction};

use crate::catalogue::{DatabaseId, DatabaseInfo};
use crate::databases::Damage;
use crate::entry::split::{self, Form, Part, PartHead};
use crate::entry::{self, Body, Kind, Origin, Payload};
use crate::events::Event;
use crate::history::Finding;
use crate::members::{self, Context};
use crate::pending::Decision;
use crate::planted::{self, Bug};
use crate::probe::{self, Phase};
use crate::raft::{MembershipChange, Role};
use crate::shared::{Hub, Input};
use crate::splits::{self, Pages, Splits, Whole};
use crate::types::{EntryClass, LogEntry, LogIndex, PROTOCOL};

/// What one step did.
pub(crate) enum Step {
    /// There is no entry.
    Idle,
    /// An entry was applied.
    Done,
    /// An accepted transaction is not shown yet: call again when the database has reached the position.
    Waiting(Arc<Database>, Position),
    /// The next entry needs room on the disk that there is not. Nothing of it is done; people know.
    NoRoom,
    /// The next entry must not be applied, for this reason; nothing will be any more.
    Stopped(String),
}

/// Why an entry was not applied.
enum Halt {
    /// It may be tried again. What happened, and what to do.
    NoRoom(String, &'static str),
    /// Nothing later may be applied.
    ForGood(String),
}

impl From<String> for Halt {
    fn from(reason: String) -> Halt {
        Halt::ForGood(reason)
    }
}

/// Bytes of parts that are read from the log in one go.
const PARTS_AT_ONCE: u64 = 8 << 20;

/// What a part carries.
fn part_of(entry: &LogEntry) -> Result<Part, String> {
    match entry::decode(&entry.data).map_err(|error| error.to_string())?.body {
        Body::Part(part) => Ok(part),
        _ => Err("a part that is none".to_string()),
    }
}

/// Keeps the pages of a part where those of the WAL are: what is decoded is in memory for one part only.
fn keep(db: &Database, part: Part, pages: &mut Vec<ChangedPage>) {
    pages.extend(part.pages.into_iter().map(|page| ChangedPage { image: db.keep_page(&page.image), ..page }));
}

/// The name of the alarm about an entry that waits for room.
pub(crate) const NO_ROOM: &str = "database without room";

/// See the module's text.
pub(crate) struct Applier {
    hub: Hub,
    queue: VecDeque<LogEntry>,
    /// The first entry of the queue was accepted by a waiting connection.
    accepted: Option<(Arc<Database>, Position)>,
    splits: Splits,
    /// The first entry of the queue waits for room on the disk.
    waits_for_room: bool,
}

impl Applier {
    pub(crate) fn new(hub: Hub) -> Applier {
        // The one before it may have had some: a snapshot was installed.
        hub.open_splits.store(0, Ordering::Relaxed);
        Applier { hub, queue: VecDeque::new(), accepted: None, splits: Splits::default(), waits_for_room: false }
    }

    pub(crate) fn push(&mut self, entries: Vec<LogEntry>) {
        self.queue.extend(entries);
    }

    /// Whether a connection has to show a transaction before this one can go on.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn awaits(&self) -> bool {
        self.accepted.is_some()
    }

    /// Whether there is nothing to apply.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the next step costs nothing worth mentioning: an entry without content, or a transaction that a connection
    /// of this process waits for and publishes itself.
    pub(crate) fn next_is_cheap(&self) -> bool {
        if self.accepted.is_some() {
            return true;
        }
        let Some(next) = self.queue.front() else { return false };
        if next.class != EntryClass::Normal {
            // Connections are judged anew with a change of the members.
            return false;
        }
        if next.data.is_empty() {
            return true;
        }
        let Ok((Kind::Transaction, origin)) = entry::peek(&next.data) else { return false };
        let own = origin.node == self.hub.id && origin.session == self.hub.session;
        own && self.hub.pending.writing(origin.number).is_some()
    }

    /// Does the next thing that can be done without waiting.
    pub(crate) fn step(&mut self) -> Step {
        if let Some((db, position)) = &self.accepted {
            // A database that was retired meanwhile shows it, too: its connection is inside its commit, and nothing that comes
            // later may overtake that.
            if !db.wait_shown(*position, std::time::Duration::ZERO) {
                return Step::Waiting(db.clone(), *position);
            }
            self.accepted = None;
            probe::end(Phase::Publish);
            return self.finish();
        }
        if self.hub.log_lacks_room() && self.splits.leave_to_log() {
            tracing::info!(
                node = self.hub.id.0,
                "the log has no room: parts of transactions are kept in the log alone"
            );
        }
        let Some(next) = self.queue.front() else { return Step::Idle };
        self.splits.on_entry(next.id);
        if next.class == EntryClass::Membership {
            let next = next.clone();
            if let Err(reason) = self.apply_change(&next) {
                return Step::Stopped(format!("entry {}@{}: {reason}", next.id.index, next.id.term));
            }
        }
        if next.class == EntryClass::Normal && !next.data.is_empty() {
            let next = next.clone();
            match self.apply(&next) {
                Ok(()) => self.wait_no_more(),
                Err(Halt::NoRoom(what, remedy)) => return self.wait_for_room(&what, remedy),
                Err(Halt::ForGood(reason)) => {
                    let id = next.id;
                    return Step::Stopped(format!("entry {}@{}: {reason}", id.index, id.term));
                }
            }
            if planted::is(Bug::AppliedBeforeShown) && self.accepted.is_some() {
                self.hub.set_applied(self.queue[0].id, self.splits.floor());
            }
            if let Some((db, position)) = &self.accepted {
                return Step::Waiting(db.clone(), *position);
            }
        } else {
            self.hub.found(next.id.index, Finding::Nothing);
        }
        self.finish()
    }

    /// Whoever has room should lead meanwhile: this node shows nothing that is committed from here on.
    fn wait_for_room(&mut self, what: &str, remedy: &str) -> Step {
        if !std::mem::replace(&mut self.waits_for_room, true) {
            let what = format!(
                "{what}; nothing later is applied on this node until there is room; {remedy}, it is tried again by itself"
            );
            tracing::error!(node = self.hub.id.0, "{what}");
            self.hub.findings.lock().alarms.insert(NO_ROOM.to_string(), what.clone());
            self.hub.events.tell(&Event::DiskTrouble { what });
        }
        if self.hub.leadership().role == Role::Leader {
            self.hub.post(Input::HandOver);
        }
        Step::NoRoom
    }

    fn wait_no_more(&mut self) {
        if std::mem::take(&mut self.waits_for_room) {
            self.hub.findings.lock().alarms.remove(NO_ROOM);
            tracing::info!(node = self.hub.id.0, "nothing waits for room in the databases any more");
        }
    }

    fn finish(&mut self) -> Step {
        if let Some(entry) = self.queue.pop_front() {
            self.hub.open_splits.store(self.splits.len() as u64, Ordering::Relaxed);
            self.hub.set_applied(entry.id, self.splits.floor());
        }
        Step::Done
    }

    /// A change of the members: its part in the catalogue. The core follows when it hears that the entry is applied.
    fn apply_change(&self, entry: &LogEntry) -> Result<(), String> {
        let index = entry.id.index;
        let change = MembershipChange::decode(&entry.data)?;
        let context = match change.context.is_empty() {
            true => None,
            false => Some(Context::decode(&change.context).map_err(|error| error.to_string())?),
        };
        let newcomers = context.as_ref().map_or(&[][..], |context| &context.newcomers);
        let applied = self.hub.change_catalogue(index, |catalogue| members::apply(catalogue, &change, newcomers))?;
        let decision = match applied {
            Ok(()) => {
                self.hub.members_changed();
                Decision::Committed(index)
            }
            Err(refused) => {
                self.hub.refuse_change(index);
                Decision::Refused(refused.to_string())
            }
        };
        if let Some(Context { origin, .. }) = context
            && origin.node == self.hub.id
            && origin.session == self.hub.session
        {
            self.hub.pending.decide(origin.number, decision);
        }
        Ok(())
    }

    fn apply(&mut self, entry: &LogEntry) -> Result<(), Halt> {
        let protocol = entry::protocol_of(&entry.data);
        if protocol > PROTOCOL && protocol <= self.hub.config.speaks.1 {
            return Ok(self.apply_later(entry)?);
        }
        let (kind, origin) = entry::peek(&entry.data).map_err(|error| error.to_string())?;
        let own = (origin.node == self.hub.id && origin.session == self.hub.session).then_some(origin.number);
        if matches!(kind, Kind::Transaction | Kind::DropDatabase) {
            let database = entry::database_of(&entry.data).map_err(|error| error.to_string())?;
            self.splits.end(database);
            if kind == Kind::Transaction && own.is_some_and(|number| self.accept(number, database, entry)) {
                return Ok(());
            }
        }
        let decision = match kind {
            Kind::Part => self.apply_part(entry, origin, own)?,
            _ => Some(self.apply_body(entry, entry::decode(&entry.data).map_err(|error| error.to_string())?)?),
        };
        if let (Some(number), Some(decision)) = (own, decision) {
            self.hub.pending.decide(number, decision);
        }
        Ok(())
    }

    /// An entry of the next version, on a node that a test lets speak it: nothing, like `checkpoint`.
    fn apply_later(&self, entry: &LogEntry) -> Result<(), String> {
        let origin = entry::origin_of_later(&entry.data).map_err(|error| error.to_string())?;
        self.hub.found(entry.id.index, Finding::Nothing);
        if origin.node == self.hub.id && origin.session == self.hub.session {
            self.hub.pending.decide(origin.number, Decision::Committed(entry.id.index));
        }
        Ok(())
    }

    /// Whether a connection of this process waits for this entry and will publish it.
    fn accept(&mut self, number: u64, database: DatabaseId, entry: &LogEntry) -> bool {
        let Some(writing) = self.hub.pending.writing(number) else { return false };
        let position = Position(entry.id.index.0);
        // The same check as for everybody else's: a base that has passed is refused on every node.
        if writing.db.check_base(writing.base).is_err() || !writing.db.accept(writing.session, position) {
            return false;
        }
        probe::begin(Phase::Publish);
        self.hub.found(entry.id.index, Finding::Took(database));
        self.hub.pending.decide(number, Decision::Committed(entry.id.index));
        self.accepted = Some((writing.db, position));
        true
    }

    /// What became of a part; `None` if it was the last of a transaction that a connection publishes.
    fn apply_part(&mut self, entry: &LogEntry, origin: Origin, own: Option<u64>) -> Result<Option<Decision>, String> {
        let position = Position(entry.id.index.0);
        let done = Ok(Some(Decision::Committed(entry.id.index)));
        let head = match split::peek(&entry.data).map_err(|error| error.to_string())? {
            Form::Part(head) => head,
            Form::GivenUp { database, split } => {
                self.hub.found(entry.id.index, Finding::Nothing);
                self.splits.give_up(database, origin, split);
                if (origin.node, origin.session) == (self.hub.id, self.hub.session) {
                    self.hub.unended.ended(split);
                }
                return done;
            }
        };
        self.hub.found(entry.id.index, if head.last { Finding::Refused } else { Finding::Nothing });
        let Some(db) = self.hub.databases.get(head.database) else { return Ok(Some(Decision::NotCommitted)) };
        // A replay: the main file had all of this split at the start, or it had no effect. Its pages are not needed.
        let replay = position <= db.position();
        let waiting = || self.hub.pending.writing(own.map(|_| head.split)?)?.parted;
        if !self.splits.join(entry.id, origin, &head, &entry.data, waiting) {
            if replay {
                // A snapshot that was cut in the middle of other transactions begins at an anchor, which may be behind the first
                // part of this one. Others have seen all of it.
                if head.last {
                    self.hub.found(entry.id.index, Finding::Unseen(head.database));
                }
                return done;
            }
            self.hub.parts_refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(database = db.name(), split = head.split, part = head.number, "a part without its split");
            return Ok(Some(Decision::NotCommitted));
        }
        if replay && !head.last {
            return done;
        }
        if replay && !self.splits.is_own(head.database) {
            self.splits.end(head.database);
            let base = part_of(entry)?.end.map(|end| Finding::Untried(head.database, LogIndex(end.base.0)));
            base.into_iter().for_each(|finding| self.hub.found(entry.id.index, finding));
            return done;
        }
        if !head.last {
            if let Some(pages) = self.splits.wanted(head.database) {
                keep(&db, part_of(entry)?, pages);
            }
            return done;
        }
        self.hub.splits_whole.fetch_add(1, Ordering::Relaxed);
        let Some(Whole { first, pages }) = self.splits.take(head.database) else {
            return Err("a last part without a split".to_string());
        };
        let own_pages = match &pages {
            Pages::Own(_) if own.is_some_and(|number| self.accept(number, head.database, entry)) => return Ok(None),
            Pages::Own(transaction) => transaction.upgrade(),
            Pages::Came(_) | Pages::InLog => None,
        };
        let transaction = match own_pages {
            Some(transaction) => transaction,
            None => {
                let mut pages = match pages {
                    Pages::Came(pages) => pages,
                    Pages::Own(_) | Pages::InLog => self.parts_in_log(&db, first, entry.id.index, origin, &head)?,
                };
                let last = part_of(entry)?;
                let Some(end) = last.end else { return Err("a last part without an end".to_string()) };
                keep(&db, last, &mut pages);
                Arc::new(splits::whole(pages, head.page_size, end))
            }
        };
        self.apply_transaction(head.database, &transaction, position, origin).map(Some)
    }

    /// The pages of all parts of a split but the last, from the log: entries from `first` on, up to the last part at `end`.
    fn parts_in_log(
        &self,
        db: &Database,
        first: LogIndex,
        end: LogIndex,
        origin: Origin,
        last: &PartHead,
    ) -> Result<Vec<ChangedPage>, String> {
        let log = self.hub.log().ok_or("a node without a log")?;
        let (mut pages, mut next, mut at) = (Vec::new(), 0, first);
        while at < end {
            let entries = log.entries(at, end, PARTS_AT_ONCE).map_err(|error| error.to_string())?;
            at = entries.last().map(|entry| entry.id.index.next()).ok_or("the log lacks parts of a transaction")?;
            for entry in entries.iter().filter(|entry| entry.class == EntryClass::Normal && !entry.data.is_empty()) {
                // Of a later version, which is no part of this one.
                let Ok((kind, by)) = entry::peek(&entry.data) else { continue };
                if kind != Kind::Part || (by.node, by.session) != (origin.node, origin.session) {
                    continue;
                }
                // They joined, so each is there once, in order, and nothing came in between that ended the split.
                if let Form::Part(head) = split::peek(&entry.data).map_err(|error| error.to_string())?
                    && (head.database, head.split, head.number) == (last.database, last.split, next)
                {
                    keep(db, part_of(entry)?, &mut pages);
                    next += 1;
                }
            }
        }
        if next != last.number {
            return Err(format!("the log has {next} parts of a transaction that has {} before its last", last.number));
        }
        Ok(pages)
    }

    fn apply_body(&self, entry: &LogEntry, payload: Payload) -> Result<Decision, Halt> {
        let index = entry.id.index;
        let Payload { origin, body } = payload;
        self.hub.found(index, Finding::Nothing);
        match body {
            Body::Transaction { database, transaction } => {
                Ok(self.apply_transaction(database, &transaction, Position(index.0), origin)?)
            }
            Body::CreateDatabase { name, page_size, auto_vacuum } => {
                let info = DatabaseInfo { name, page_size, auto_vacuum };
                if let Err(refused) = self.hub.with_catalogue(|catalogue| catalogue.may_create(&info.name))? {
                    return Ok(Decision::Refused(refused.to_string()));
                }
                let id = DatabaseId(index.0);
                let not_created = |error| format!("database {} could not be created: {error}", info.name.as_str());
                let halt = |error: std::io::Error| {
                    let what = not_created(error.to_string());
                    match (is_no_room(&error), is_out_of_files(&error)) {
                        (true, _) => Halt::NoRoom(what, "make room on the disk"),
                        (_, true) => Halt::NoRoom(what, MORE_FILES),
                        _ => Halt::ForGood(what),
                    }
                };
                // First what may be tried again.
                let made = match self.hub.databases.make(id, &info) {
                    Err(error) if is_no_room(&error) || is_out_of_files(&error) => return Err(halt(error)),
                    Err(error) => Err((
                        self.hub.databases.empty(&info).map_err(halt)?,
                        not_created(format!("{error}; check the disk")),
                    )),
                    Ok(made) => Ok(made),
                };
                let DatabaseInfo { name, page_size, auto_vacuum } = info.clone();
                self.hub
                    .change_catalogue(index, |catalogue| catalogue.apply_create(index, name, page_size, auto_vacuum))?
                    .map_err(|refused| refused.to_string())?;
                let databases = &self.hub.databases;
                match made {
                    Ok(made) => databases.enter(id, &info, made).map_err(|error| not_created(in_words(&error)))?,
                    // A disk that has no place for this one may have one for what the others need, and the other nodes have this one.
                    Err((empty, what)) => databases.enter_without_files(id, &info, empty, what),
                }
                self.hub.found(index, Finding::Created(id));
                Ok(Decision::Committed(index))
            }
            Body::DropDatabase { database } => {
                let dropped = self.hub.change_catalogue(index, |catalogue| catalogue.apply_drop(database))?;
                match dropped {
                    Ok(_) => {
                        self.hub.found(index, Finding::Dropped(database));
                        self.hub.databases.drop(database, index);
                        Ok(Decision::Committed(index))
                    }
                    Err(refused) => Ok(Decision::Refused(refused.to_string())),
                }
            }
            // Parts do not come here: `apply_part`.
            Body::Checkpoint | Body::Part(_) | Body::GivenUp { .. } => Ok(Decision::Committed(index)),
            Body::BindIncarnation { node, incarnation, address } => {
                let bound = self
                    .hub
                    .change_catalogue(index, |catalogue| catalogue.bind_incarnation(node, incarnation, &address))?;
                match bound {
                    Ok(()) => {
                        self.hub.members_changed();
                        Ok(Decision::Committed(index))
                    }
                    Err(refused) => Ok(Decision::Refused(refused.to_string())),
                }
            }
        }
    }

    fn apply_transaction(
        &self,
        database: DatabaseId,
        transaction: &Transaction,
        position: Position,
        origin: Origin,
    ) -> Result<Decision, String> {
        let index = LogIndex(position.0);
        let Some(db) = self.hub.databases.get(database) else {
            self.hub.found(index, Finding::Refused);
            return Ok(Decision::NotCommitted);
        };
        // If this copy does not try it, others have all the same.
        self.hub.found(index, Finding::Untried(database, LogIndex(transaction.base.0)));
        if position <= db.position() {
            // A replay: the main file had it already when this node started.
            return Ok(Decision::Committed(index));
        }
        probe::begin(Phase::Apply);
        let applied = db.apply(transaction, position);
        probe::end(Phase::Apply);
        match applied {
            Ok(()) => {
                self.hub.found(index, Finding::Took(database));
                Ok(Decision::Committed(index))
            }
            // Everything that it can be built on is in the log before it, and took effect here if it did anywhere.
            Err(ApplyError::WrongBase { base, position }) if base > position => {
                let lacks = format!("a transaction is built on position {base}, which it never came to");
                Ok(self.convict(database, format!("database {} at position {position}: {lacks}", db.name())))
            }
            Err(ApplyError::WrongBase { base, position }) => {
                self.hub.found(index, Finding::Refused);
                tracing::debug!(
                    database = db.name(),
                    proposer = origin.node.0,
                    "transaction on position {base} refused, the database is at {position}"
                );
                Ok(Decision::NotCommitted)
            }
            Err(error @ (ApplyError::Diverged { .. } | ApplyError::Map(_))) => {
                Ok(self.convict(database, format!("database {} at position {position}: {error}", db.name())))
            }
            Err(ApplyError::Retired(_)) => Ok(Decision::Lost),
            Err(error @ (ApplyError::Malformed(_) | ApplyError::Io(_))) => {
                Err(format!("transaction of database {}: {error}", db.name()))
            }
        }
    }

    /// This copy of a database is not what the others have: it is passed over from here on, until it is repaired.
    fn convict(&self, database: DatabaseId, what: String) -> Decision {
        if self.hub.databases.convict(database, Damage::Diverged, what.clone()) {
            self.hub.diverged(database, what);
        }
        Decision::Lost
    }
}

#[cfg(test)]
mod tests;
