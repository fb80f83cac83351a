//! The VFS's questions, answered by the node: may I write, is this committed, is my read fresh.
//!
//! A commit waits for its decision up to `commit_timeout`. When time is up it *gives up* under the database's lock: if
//! the applier had accepted it a moment before, it is committed after all; else it can only be applied by the applier
//! from now on, the caller hears Unknown, and the database's write lock stays closed on this node until the entry is
//! decided. A proposal that still lay in the mailbox is taken back: it is NotCommitted. One that entered the log has a
//! receipt, whatever the answer.

mod large;

use std::sync::Arc;
use std::time::Duration;

use shoaldb_vfs::Database;
use shoaldb_vfs::database::SessionId;
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::genesis::AutoVacuum as InPage;
use shoaldb_vfs::replicator::{Interrupted, Receipt, Replicator};
use shoaldb_vfs::transaction::{Position, Transaction};

use self::large::Proposed;
use crate::catalogue::{AutoVacuum, DatabaseId, DatabaseName};
use crate::entry::{self, Body, Origin, Payload};
use crate::pending::{Decision, GivenUp, Writing};
use crate::planted::{self, Bug};
use crate::raft::Role;
use crate::shared::{Hub, Input};
use crate::signal::Signal;
use crate::types::EntryId;

/// How often waits look whether SQLite's connection was interrupted.
const POLL: Duration = Duration::from_millis(20);

/// The node as a replicator.
pub(crate) struct NodeReplicator {
    pub(crate) hub: Hub,
}

impl NodeReplicator {
    fn origin(&self, number: u64) -> Origin {
        Origin { node: self.hub.id, session: self.hub.session, number }
    }

    fn check_leadership(&self) -> Result<(), Refusal> {
        let leadership = self.hub.leadership();
        if self.hub.is_closing() || self.hub.is_removed() {
            // Whoever leads now, or nobody that this node will ever hear of.
            return Err(Refusal::NotLeader(leadership.leader.filter(|leader| *leader != self.hub.id).map(|id| id.0)));
        }
        if leadership.role == Role::Leader && self.hub.trouble().is_none() {
            return if self.hub.is_ready_leader() { Ok(()) } else { Err(Refusal::Busy) };
        }
        match leadership.leader {
            Some(leader) if leader != self.hub.id => Err(Refusal::NotLeader(Some(leader.0))),
            _ if self.hub.trouble().is_some() => Err(Refusal::NodeStopped),
            _ => Err(Refusal::Busy),
        }
    }

    /// The first write creates its database, with the geometry that its connections already see.
    fn create(&self, db: &Arc<Database>, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        let name = DatabaseName::new(db.name()).map_err(|_| Refusal::CannotOpen)?;
        let geometry = db.geometry();
        let auto_vacuum = match geometry.auto_vacuum {
            InPage::None => AutoVacuum::None,
            InPage::Full => AutoVacuum::Full,
            InPage::Incremental => AutoVacuum::Incremental,
        };
        let body = Body::CreateDatabase { name, page_size: geometry.page_size, auto_vacuum };
        match self.hub.propose(body, Some(interrupted)) {
            // Refused means that another writer was faster.
            Decision::Committed(_) | Decision::Refused(_) if db.is_bound() => Ok(()),
            // It is there, but the disk of this node did not take its files.
            Decision::Committed(_) | Decision::Refused(_) if db.retired() == Some(Refusal::Damaged) => {
                Err(Refusal::Damaged)
            }
            // Somebody created it with another geometry: this connection belongs to a shape that is gone.
            Decision::Committed(_) | Decision::Refused(_) => Err(Refusal::Dropped),
            Decision::NotCommitted | Decision::Lost if interrupted() => Err(Refusal::Interrupted),
            // Nothing of the transaction was proposed; the busy handler may try again. What was given up may still be in the log, and
            // is not proposed again before it is decided.
            Decision::NotCommitted | Decision::Lost => Err(Refusal::Busy),
        }
    }

    /// Waits until a majority has confirmed, after this call began, what is committed; and with `applied`, until all
    /// of that is shown here.
    fn confirm(&self, applied: bool, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        self.hub.confirm(applied, self.hub.commit_timeout(), interrupted)
    }
}

impl Replicator for NodeReplicator {
    fn open(&self, name: &str, create: bool) -> Result<Arc<Database>, Refusal> {
        if self.hub.is_stopped() {
            return Err(Refusal::NodeStopped);
        }
        self.hub.databases.find(name, create)
    }

    fn acquire_write(&self, db: &Arc<Database>, confirm: bool, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        self.check_leadership()?;
        self.is_open(db)?;
        if !db.is_bound() {
            self.create(db, interrupted)?;
        }
        if confirm {
            self.confirm(false, interrupted)?;
        }
        // That took its time, in which a commit may have been given up.
        self.is_open(db)
    }

    fn is_open(&self, db: &Arc<Database>) -> Result<(), Refusal> {
        if self.hub.pending.has_abandoned(db) { Err(Refusal::Busy) } else { Ok(()) }
    }

    fn wait_writable(&self, db: &Arc<Database>, limit: Duration) {
        let deadline = self.hub.deadline(limit);
        self.hub.changed.wait(&self.hub.waiting, deadline, limit, || {
            let wait = self.check_leadership() == Err(Refusal::Busy) || self.hub.pending.has_abandoned(db);
            (!wait).then_some(())
        });
    }

    fn commit(
        &self,
        db: &Arc<Database>,
        session: SessionId,
        transaction: Transaction,
        receipt: &mut Option<Receipt>,
    ) -> Result<Position, Refusal> {
        let Some(id) = self.hub.databases.id_of(db) else { return Err(Refusal::NotCommitted) };
        let base = transaction.base;
        let content = transaction.pages.len() as u64 * transaction.page_size.len() as u64;
        if content > self.hub.config.transaction_limit {
            return Err(Refusal::TooLarge);
        }
        let mut parted = false;
        let mut writing = Writing { db: db.clone(), session, base, parted: None };
        let (number, signal) = if entry::longest(&transaction) <= self.hub.config.part_bytes as u64 {
            let (number, signal) = self.hub.pending.register(Some(writing));
            let Ok(data) = entry::encode_transaction(self.origin(number), id, &transaction) else {
                self.hub.pending.abandon_unproposed(number);
                return Err(Refusal::TooLarge);
            };
            drop(transaction);
            self.hub.deliver_and_write(Input::Propose { number, data: data.into() });
            (number, signal)
        } else {
            let transaction = Arc::new(transaction);
            writing.parted = Some(transaction.clone());
            let (number, signal) = self.hub.pending.register(Some(writing));
            match self.propose_parts(number, id, &transaction) {
                Proposed::Whole { parted: kept } => parted = kept,
                Proposed::GivenUp => {
                    self.hub.pending.abandon_unproposed(number);
                    return Err(Refusal::NotCommitted);
                }
            }
            (number, signal)
        };

        let deadline = self.hub.deadline(self.hub.commit_timeout());
        let decided = signal.wait(&self.hub.waiting, deadline, POLL, || self.hub.pending.take(number));
        let (decision, entry) = match decided {
            Some((decision, entry)) => (Some(decision), entry),
            None if db.give_up(session) => self.hub.give_up(number, &signal),
            // The applier accepted it in this moment: the decision is on its way.
            None => signal
                .wait(&self.hub.waiting, Duration::MAX, POLL, || self.hub.pending.take(number))
                .map_or((None, None), |(decision, entry)| (Some(decision), entry)),
        };
        if parted && entry.is_none() {
            // Its parts are in the log, and the last one never came there.
            self.hub.give_split_up(number, id);
        }
        let named = entry.and_then(|entry| self.hub.receipt(id, entry));
        *receipt = named.map(|named| Arc::new(named) as Receipt);
        match decision {
            Some(Decision::Committed(index)) => Ok(Position(index.0)),
            Some(Decision::NotCommitted) => Err(Refusal::NotCommitted),
            Some(Decision::Refused(_)) => Err(Refusal::TooLarge),
            Some(Decision::Lost) | None if planted::is(Bug::UnknownAsNotCommitted) => Err(Refusal::NotCommitted),
            Some(Decision::Lost) | None => Err(Refusal::Unknown),
        }
    }

    fn on_write_released(&self) {
        self.hub.on_published();
    }

    fn read_barrier(&self, _: &Arc<Database>, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        if planted::is(Bug::ReadWithoutMajority) && self.hub.is_ready_leader() {
            return Ok(());
        }
        self.confirm(!planted::is(Bug::ReadWithoutApplied), interrupted)
    }
}

impl crate::shared::Shared {
    /// See [`NodeReplicator::confirm`].
    fn confirm(&self, applied: bool, limit: Duration, interrupted: Interrupted<'_>) -> Result<(), Refusal> {
        let deadline = self.deadline(limit);
        let request = self.begin_read();
        let answer = self.changed.wait(&self.waiting, deadline, POLL, || {
            if self.is_stopped() {
                return Some(Err(Refusal::NodeStopped));
            }
            if interrupted() {
                return Some(Err(Refusal::Interrupted));
            }
            if self.trouble().is_some() {
                return Some(Err(Refusal::ReadUnconfirmed));
            }
            let index = self.read_index(request)?;
            (!applied || self.applied().index >= index).then_some(Ok(()))
        });
        self.end_read(request);
        answer.unwrap_or(Err(Refusal::ReadUnconfirmed))
    }

    /// Waits until this node shows all that a majority had committed when it was asked, and says in words why it does not.
    pub(crate) fn catch_up(&self, limit: Duration) -> Result<(), String> {
        self.confirm(true, limit, &|| false).map_err(|_| {
            let applied = self.applied().index;
            format!(
                "node {} has applied entries up to {applied} and did not learn within {limit:?} that this is all that is committed: it \
                 is catching up, or does not hear its leader",
                self.id
            )
        })
    }

    /// Proposes an entry that is no transaction, and waits until it is decided; `Lost` when the time is up, and at once for a
    /// database that an abandoned proposal may still create.
    pub(crate) fn propose(&self, body: Body, interrupted: Option<Interrupted<'_>>) -> Decision {
        let (number, signal) = match &body {
            // It would be one more entry of a log that may have no room, and what became of the first one is not known yet.
            Body::CreateDatabase { name, .. } if self.pending.has_abandoned_create(name) => return Decision::Lost,
            Body::CreateDatabase { name, .. } => self.pending.register_create(name.clone()),
            _ => self.pending.register(None),
        };
        let origin = Origin { node: self.id, session: self.session, number };
        let Ok(data) = entry::encode(&Payload { origin, body }) else {
            self.pending.abandon_unproposed(number);
            return Decision::Refused("the entry is too large".to_string());
        };
        self.deliver_and_write(Input::Propose { number, data: data.into() });
        self.await_decision(number, &signal, interrupted)
    }

    /// A split of this node is given up: nobody is to keep the parts that came, and nothing is to wait for the others.
    pub(crate) fn give_split_up(&self, split: u64, database: DatabaseId) {
        self.unended.add(split, database, self.waiting.clock.now());
        self.propose_given_up(split, database);
    }

    /// The same once more for those whose entry was not applied in time.
    pub(crate) fn tell_of_splits_again(&self) {
        if self.leadership().role != Role::Leader {
            return self.unended.clear();
        }
        for (split, database) in self.unended.due(self.waiting.clock.now()) {
            self.propose_given_up(split, database);
        }
    }

    fn propose_given_up(&self, split: u64, database: DatabaseId) {
        let (number, _) = self.pending.register(None);
        let origin = Origin { node: self.id, session: self.session, number };
        if let Ok(data) = entry::encode(&Payload { origin, body: Body::GivenUp { database, split } }) {
            self.deliver(Input::Propose { number, data: data.into() });
        }
        self.pending.abandon(number);
    }

    /// Proposes an entry of the next version, for tests of upgrades.
    pub(crate) fn propose_rehearsal(&self) -> Decision {
        let (number, signal) = self.pending.register(None);
        let data = entry::rehearsal(Origin { node: self.id, session: self.session, number });
        self.deliver_and_write(Input::Propose { number, data: data.into() });
        self.await_decision(number, &signal, None)
    }

    /// Waits for what becomes of a proposal.
    pub(crate) fn await_decision(
        &self,
        number: u64,
        signal: &Signal,
        interrupted: Option<Interrupted<'_>>,
    ) -> Decision {
        let deadline = self.deadline(self.commit_timeout());
        let decision = signal.wait(&self.waiting, deadline, POLL, || {
            let given_up = interrupted.is_some_and(|interrupted| interrupted());
            self.pending.take(number).map(Some).or(given_up.then_some(None))
        });
        let decision = decision.flatten().map(|(decision, _)| decision);
        decision.or_else(|| self.give_up(number, signal).0).unwrap_or(Decision::Lost)
    }

    /// Stops waiting for a proposal: its decision, if there is one, and its entry, if it has entered the log.
    fn give_up(&self, number: u64, signal: &Signal) -> (Option<Decision>, Option<EntryId>) {
        // Between the mailbox and the log a proposal is for the rest of one turn of the engine, which waits for nothing.
        let given_up = signal.wait(&self.waiting, Duration::MAX, POLL, || match self.pending.give_up(number) {
            GivenUp::Entering if self.trouble().is_none() => None,
            given_up => Some(given_up),
        });
        match given_up {
            Some(GivenUp::Decided(decision, entry)) => (Some(decision), entry),
            Some(GivenUp::Withdrawn) => (Some(Decision::NotCommitted), None),
            Some(GivenUp::Abandoned(entry)) => (None, Some(entry)),
            // The engine failed in that turn.
            Some(GivenUp::Entering) | None => (None, None),
        }
    }
}

#[cfg(test)]
mod tests;
