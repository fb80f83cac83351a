//! [`Core`]: the library's node, driven by events.
//!
//! [`Core::on_event`] only *steps* the library; [`Core::take_effects`] ends the turn: it begins a round for waiting
//! reads, asks the library once for all that is ready, and sorts that into [`Effects`]. The library forbids to be
//! stepped between "ready" and "advance"; both happen inside `take_effects`, so nobody can.
//!
//! Changes of the members take effect when the entry is *applied* ([`Event::Applied`]), not when it is handed out: the
//! membership that the shell stores and the index it belongs to are then always of one moment.
//!
//! When a node may campaign:
//!
//! ```text
//! silenced                       never
//! its log is not all persisted   not yet: the library asserts it of a new leader, and of a single voter it can fail
//! else                           on a timeout, on Event::Campaign, when its leader hands over
//! ```
//!
//! A node that may not campaign still counts the ticks without a leader, so that it does not hold its vote back from
//! others.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use raft::eraftpb::{Entry, MessageType};
use raft::{ProgressState, RawNode, ReadOnlyOption, StateRole};

use super::convert::{
    entries_from_raft, hard_state_from_raft, maybe_node_from_raft, membership_from_raft, message_from_raft,
    message_to_raft, node_from_raft, role_from_raft, split_append,
};
use super::inbound::{Standing, Verdict, judge};
use super::outbox::Outbox;
use super::read::Reads;
use super::storage::{Budget, LogStore, bytes_of};
use super::timeout::{ElectionTimeout, Seeded};
use super::trace::ToTracing;
use super::window::Windows;
use super::{
    CoreConfig, CoreStatus, Effects, EntryReader, Event, MembershipChange, NotProposed, OpenError, PeerStatus,
    PersistBatch, ReadFailed, Restored, RoleChange,
};
use crate::types::{EntryClass, EntryId, HardState, LogEntry, LogIndex, Membership, Message, NodeId, Term};

/// One node's part in the consensus.
pub struct Core {
    config: CoreConfig,
    raw: RawNode<LogStore>,
    timeout: ElectionTimeout<(u64, StateRole, u64)>,
    outbox: Outbox<Message>,
    reads: Reads,
    handed_out: HandedOut,
    windows: Windows,
    /// Last hard state and number that went to the disk.
    written: HardState,
    last_batch: u64,
    role: Option<RoleChange>,
    write_term: Option<Term>,
    silenced: bool,
    /// Something is to be said to a leader that is not known yet.
    announces: bool,
    /// What was committed when this leader last told everybody, with entries or without.
    told: LogIndex,
    refused: u64,
    effects: Effects,
    failed: Option<String>,
}

/// Entries that the shell was told to apply.
///
/// Invariant: `applied <= last`; `waiting` are the entries in `(applied, last]` with their sizes, whose sum is `bytes`;
/// `changes` are those of them that change the members.
#[derive(Debug)]
struct HandedOut {
    applied: LogIndex,
    last: LogIndex,
    waiting: VecDeque<u64>,
    bytes: u64,
    changes: VecDeque<(LogIndex, MembershipChange)>,
}

impl HandedOut {
    fn new(applied: LogIndex) -> HandedOut {
        HandedOut { applied, last: applied, waiting: VecDeque::new(), bytes: 0, changes: VecDeque::new() }
    }

    /// How much more may be handed out.
    fn budget(&self, max_bytes: u64) -> Budget {
        Budget { bytes: max_bytes.saturating_sub(self.bytes), at_least_one: self.waiting.is_empty() }
    }

    fn push(&mut self, entry: &LogEntry) -> Result<(), String> {
        if entry.id.index != self.last.next() {
            return Err(format!("entry {} is to be applied after {}", entry.id.index, self.last));
        }
        if entry.class == EntryClass::Membership {
            let change = MembershipChange::decode(&entry.data).map_err(|why| format!("entry {}: {why}", self.last))?;
            self.changes.push_back((entry.id.index, change));
        }
        let bytes = bytes_of(entry);
        self.last = entry.id.index;
        self.waiting.push_back(bytes);
        self.bytes += bytes;
        Ok(())
    }

    /// Notes progress; returns the changes of the members that it covers.
    fn on_applied(&mut self, index: LogIndex) -> Result<Vec<(LogIndex, MembershipChange)>, String> {
        if index < self.applied || index > self.last {
            return Err(format!("entry {index} reported applied: it is not in {}..={}", self.applied, self.last));
        }
        let count = (index.0 - self.applied.0) as usize;
        self.bytes -= self.waiting.drain(..count).sum::<u64>();
        self.applied = index;
        let covered = self.changes.partition_point(|(at, _)| *at <= index);
        Ok(self.changes.drain(..covered).collect())
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("id", &self.config.id).field("role", &self.role).finish_non_exhaustive()
    }
}

impl Core {
    /// Continues where recovery left off.
    pub fn open(config: CoreConfig, restored: Restored, reader: Arc<dyn EntryReader>) -> Result<Core, OpenError> {
        let hard_state = check_restored(&restored)?;
        let store = LogStore::new(&restored, &hard_state, reader, config.tail_cache_bytes);
        store.set_send_budget(config.max_inflight_bytes / 2);
        let logger = slog::Logger::root(ToTracing, slog::o!());
        let raft_config = raft_config(&config, restored.applied);
        let raw = catch_unwind(AssertUnwindSafe(|| RawNode::new(&raft_config, store, &logger)))
            .map_err(|panic| OpenError::Refused(panic_message(panic.as_ref())))?
            .map_err(|error| OpenError::Refused(error.to_string()))?;
        if let Some(why) = raw.store().take_failure() {
            return Err(OpenError::Refused(why));
        }
        let mut seeded = Seeded::new(config.seed ^ (u64::from(config.id.0) << 48));
        let life = seeded.next();
        let mut core = Core {
            timeout: ElectionTimeout::new(seeded, config.election_ticks),
            outbox: Outbox::new(),
            reads: Reads::new(config.id, life, config.heartbeat_ticks),
            handed_out: HandedOut::new(restored.applied),
            written: hard_state,
            last_batch: 0,
            role: None,
            write_term: None,
            silenced: false,
            announces: false,
            told: LogIndex(0),
            refused: 0,
            effects: Effects::default(),
            failed: None,
            windows: Windows::new(config.max_inflight_bytes),
            raw,
            config,
        };
        core.settle_timeout(false);
        Ok(core)
    }

    /// Take one event. Reads no clock, file or socket: same events, same effects.
    pub fn on_event(&mut self, event: Event) {
        self.guard(|core| {
            let fired = core.handle(event)?;
            core.settle_timeout(fired);
            Ok(())
        });
    }

    /// What the shell must do now, for all events since the last call.
    pub fn take_effects(&mut self) -> Effects {
        self.guard(Core::end_turn);
        match &self.failed {
            None => std::mem::take(&mut self.effects),
            Some(why) => Effects { fatal: Some(why.clone()), ..Effects::default() },
        }
    }

    /// Whether a change of the members is in the log of this leader and not applied, or may be.
    pub fn change_pending(&self) -> bool {
        self.raw.raft.has_pending_conf()
    }

    /// Whether this node leads, others follow, and something was committed since they were last told. When it is worth a
    /// message of its own ([`Event::TellCommit`]) is for the shell to say: the core has no clock.
    pub fn has_untold_commit(&self) -> bool {
        let raft = &self.raw.raft;
        self.is_leader() && raft.raft_log.committed > self.told.0 && raft.prs().iter().any(|(id, _)| *id != raft.id)
    }

    /// How this node stands.
    pub fn status(&self) -> CoreStatus {
        let raft = &self.raw.raft;
        let mut peers: Vec<PeerStatus> = Vec::new();
        if raft.state == StateRole::Leader {
            let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
            peers.extend(others.filter_map(|(id, progress)| {
                let id = node_from_raft(*id).ok()?;
                let in_flight = (self.windows.on_their_way(id.0.into()), self.config.max_inflight_bytes);
                Some(PeerStatus {
                    id,
                    in_flight,
                    acknowledged: LogIndex(progress.matched),
                    next: LogIndex(progress.next_idx),
                    streams: progress.state == ProgressState::Replicate,
                    active: progress.recent_active,
                })
            }));
            peers.sort_unstable_by_key(|peer| peer.id);
        }
        CoreStatus {
            role: RoleChange {
                role: role_from_raft(raft.state),
                term: Term(raft.term),
                leader: maybe_node_from_raft(raft.leader_id).unwrap_or(None),
            },
            last: LogIndex(raft.raft_log.last_index()),
            persisted: LogIndex(raft.raft_log.persisted),
            committed: LogIndex(raft.raft_log.committed),
            applied: self.handed_out.applied,
            membership: self.membership().unwrap_or_default(),
            refused_messages: self.refused,
            tail: (self.raw.store().tail_bytes(), self.config.tail_cache_bytes),
            uncommitted: (raft.uncommitted_size() as u64, self.config.max_uncommitted_bytes),
            handed_out: (self.handed_out.bytes, self.config.max_apply_bytes),
            peers,
        }
    }

    /// Runs a step; an error, a failed read of the log or a panic ends this core for good.
    fn guard(&mut self, step: impl FnOnce(&mut Core) -> Result<(), String>) {
        if self.failed.is_some() {
            return;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| step(self)));
        // The note comes first: what else went wrong may be a consequence of the failed read.
        let failure = self.raw.store().take_failure().or(match outcome {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(panic) => Some(format!("raft panicked: {}", panic_message(panic.as_ref()))),
        });
        if let Some(why) = failure {
            tracing::error!("node {}: consensus stopped: {why}", self.config.id);
            self.effects = Effects::default();
            self.failed = Some(why);
        }
    }

    /// Steps the library. Returns whether an election timeout fired.
    fn handle(&mut self, event: Event) -> Result<bool, String> {
        match event {
            Event::Tick => return Ok(self.on_tick()),
            Event::Message(message) => self.on_message(message)?,
            Event::Propose { proposal, data } => {
                let outcome = self.propose(data)?;
                self.effects.proposed.push((proposal, outcome));
            }
            Event::ChangeMembership { proposal, change } => {
                let outcome = self.propose_change(&change)?;
                self.effects.proposed.push((proposal, outcome));
            }
            Event::ReadIndex { request } if self.silenced => {
                self.effects.reads.push((request, Err(ReadFailed::Silenced)));
            }
            Event::ReadIndex { request } => self.reads.add(request),
            Event::CancelRead { request } => self.reads.cancel(request),
            Event::Persisted { batch } => self.on_persisted(batch)?,
            Event::ChangeRefused { index } => self.handed_out.changes.retain(|(at, _)| *at != index),
            Event::Applied { index } => self.on_applied(index)?,
            Event::Compacted { start } => self.on_compacted(start)?,
            Event::Transfer { to } => self.transfer(to),
            Event::Campaign if self.may_campaign() => {
                self.raw.campaign().map_err(|error| format!("campaign: {error}"))?;
            }
            Event::Campaign => {}
            Event::Unreachable { peer } => {
                self.windows.on_unreachable(u64::from(peer.0));
                self.raw.report_unreachable(u64::from(peer.0));
            }
            Event::TellCommit => {
                if self.has_untold_commit() {
                    self.raw.raft.bcast_append();
                    self.note_told();
                }
            }
            Event::Announce => self.announce()?,
            Event::StepDown => self.step_down(),
            Event::Silence => self.silence(),
        }
        Ok(false)
    }

    fn on_tick(&mut self) -> bool {
        if !self.is_leader() {
            // A leader's heartbeats carry its last round by themselves.
            self.reads.on_tick();
        }
        if self.is_leader() || self.may_campaign() {
            self.raw.tick();
        } else {
            self.raw.raft.election_elapsed += 1;
        }
        self.raw.raft.election_elapsed == 0
    }

    fn on_message(&mut self, message: Message) -> Result<(), String> {
        let raft = &self.raw.raft;
        let standing = Standing {
            id: self.config.id,
            role: role_from_raft(raft.state),
            term: Term(raft.term),
            last: LogIndex(raft.raft_log.last_index()),
            member: raft.prs().get(u64::from(message.from.0)).is_some(),
            may_campaign: self.may_campaign(),
        };
        match judge(&message, &standing) {
            Verdict::Accept => {
                self.windows.on_answer(&message);
                self.set_windows();
                let stepped = self.raw.raft.step(message_to_raft(message));
                stepped.map_err(|error| format!("a checked message was not taken: {error}"))
            }
            Verdict::Refuse(reason) => {
                tracing::debug!("refused {:?} from {}: {reason}", message.kind, message.from);
                self.refused += 1;
                Ok(())
            }
            Verdict::Stop(why) => Err(why),
        }
    }

    fn propose(&mut self, data: bytes::Bytes) -> Result<Result<EntryId, NotProposed>, String> {
        let (bytes, limit) = (data.len() as u64, self.config.max_entry_bytes);
        if data.is_empty() {
            return Ok(Err(NotProposed::Empty));
        }
        if bytes > limit {
            return Ok(Err(NotProposed::TooLarge { bytes, limit }));
        }
        if let Err(refused) = self.takes_proposals() {
            return Ok(Err(refused));
        }
        let entry = Entry { data, ..Entry::default() };
        let mut message = raft::eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        message.set_entries(vec![entry].into());
        match self.raw.raft.step(message) {
            Ok(()) => {
                self.note_told();
                Ok(Ok(self.last_id()))
            }
            Err(raft::Error::ProposalDropped) => Ok(Err(NotProposed::Backlog)),
            Err(error) => Err(format!("proposal: {error}")),
        }
    }

    /// New entries, and messages without any, carry the commit index.
    fn note_told(&mut self) {
        self.told = LogIndex(self.raw.raft.raft_log.committed);
    }

    fn propose_change(&mut self, change: &MembershipChange) -> Result<Result<EntryId, NotProposed>, String> {
        if let Err(refused) = self.takes_proposals() {
            return Ok(Err(refused));
        }
        if change.changes.is_empty() && !change.leaves_joint() {
            return Ok(Err(NotProposed::Empty));
        }
        // The library would take the proposal and quietly turn it into an empty entry.
        let joint = !self.membership()?.voters_outgoing.is_empty();
        if self.raw.raft.has_pending_conf() || joint != change.leaves_joint() {
            return Ok(Err(NotProposed::MembershipBusy));
        }
        match self.raw.propose_conf_change(change.encode().to_vec(), change.to_raft()) {
            Ok(()) => Ok(Ok(self.last_id())),
            Err(raft::Error::ProposalDropped) => Ok(Err(NotProposed::Backlog)),
            Err(error) => Err(format!("membership change: {error}")),
        }
    }

    fn takes_proposals(&self) -> Result<(), NotProposed> {
        if !self.is_leader() {
            // A leader that the library names and we cannot is as good as none.
            let leader = maybe_node_from_raft(self.raw.raft.leader_id).unwrap_or(None);
            return Err(NotProposed::NotLeader { leader });
        }
        if self.raw.raft.lead_transferee.is_some() {
            return Err(NotProposed::Transferring);
        }
        Ok(())
    }

    fn on_persisted(&mut self, batch: u64) -> Result<(), String> {
        if batch > self.last_batch {
            return Err(format!("batch {batch} reported persisted, the last one written is {}", self.last_batch));
        }
        self.raw.mut_store().on_persisted(batch);
        self.raw.on_persist_ready(batch);
        let free = self.outbox.on_persisted(batch);
        self.effects.send.extend(free);
        Ok(())
    }

    fn on_applied(&mut self, index: LogIndex) -> Result<(), String> {
        for (at, change) in self.handed_out.on_applied(index)? {
            // A change that does not fit the members of its moment is refused on all nodes alike.
            if let Err(refused) = self.raw.apply_conf_change(&change.to_raft()) {
                tracing::warn!("membership change at entry {at} refused: {refused}");
            }
            self.effects.membership.push((at, self.membership()?));
        }
        self.raw.advance_apply_to(index.0);
        self.step_down_if_removed();
        Ok(())
    }

    /// The library lets a leader that is no voter any more lead for ever, without a quorum that hears it.
    fn step_down_if_removed(&mut self) {
        if self.is_leader() && !self.raw.raft.promotable() {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    fn on_compacted(&mut self, start: EntryId) -> Result<(), String> {
        if start.index > self.handed_out.applied {
            return Err(format!("log compacted to {}, applied is {}", start.index, self.handed_out.applied));
        }
        self.raw.mut_store().compact(start)
    }

    fn transfer(&mut self, to: NodeId) {
        if self.is_leader() || to == self.config.id {
            self.raw.transfer_leader(u64::from(to.0));
        }
    }

    /// What is committed is in every leader's log, so this node may say that it has it without being asked.
    fn announce(&mut self) -> Result<(), String> {
        let raft = &self.raw.raft;
        let index = raft.raft_log.committed.min(raft.raft_log.persisted);
        // As soon as it is known who leads: a core that was opened anew behind a snapshot does not know it yet, and the leader
        // would only find out by its next offer.
        self.announces = raft.leader_id == raft::INVALID_ID && !self.silenced;
        if self.silenced || raft.leader_id == raft.id || raft.leader_id == raft::INVALID_ID {
            return Ok(());
        }
        let mut reply = raft::eraftpb::Message::default();
        reply.set_msg_type(MessageType::MsgAppendResponse);
        (reply.from, reply.to, reply.term) = (raft.id, raft.leader_id, raft.term);
        (reply.index, reply.commit) = (index, raft.raft_log.committed);
        self.effects.send.push(message_from_raft(reply)?);
        Ok(())
    }

    fn step_down(&mut self) {
        if self.raw.raft.state != StateRole::Follower {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    fn silence(&mut self) {
        self.silenced = true;
        self.step_down();
        let refused = self.reads.take_all().into_iter().map(|request| (request, Err(ReadFailed::Silenced)));
        self.effects.reads.extend(refused);
    }

    fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn may_campaign(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        !self.silenced && log.persisted == log.last_index()
    }

    fn last_id(&self) -> EntryId {
        EntryId { index: LogIndex(self.raw.raft.raft_log.last_index()), term: Term(self.raw.raft.term) }
    }

    fn membership(&self) -> Result<Membership, String> {
        membership_from_raft(&self.raw.raft.prs().conf().to_conf_state())
    }

    fn settle_timeout(&mut self, fired: bool) {
        let raft = &mut self.raw.raft;
        let ticks = self.timeout.after((raft.term, raft.state, raft.leader_id), fired);
        raft.set_randomized_election_timeout(ticks);
    }

    fn end_turn(&mut self) -> Result<(), String> {
        self.note_role()?;
        if self.announces {
            self.announce()?;
        }
        self.begin_read_round();
        self.take_ready()?;
        self.set_windows();
        self.raw.store().set_send_budget(self.config.max_inflight_bytes / 2);
        self.note_ready_to_write()?;
        let wanted = self.raw.store().take_wanted();
        self.effects.snapshot_wanted = wanted.into_iter().map(node_from_raft).collect::<Result<_, _>>()?;
        // Peers in the order of their ids: the library keeps them in a hash map.
        self.effects.send.sort_by_key(|message| message.to);
        Ok(())
    }

    fn note_role(&mut self) -> Result<(), String> {
        let raft = &self.raw.raft;
        let now = RoleChange {
            role: role_from_raft(raft.state),
            term: Term(raft.term),
            leader: maybe_node_from_raft(raft.leader_id)?,
        };
        if self.role != Some(now) {
            self.role = Some(now);
            self.effects.role = Some(now);
            self.reads.ask_again();
            self.windows.forget_all();
        }
        Ok(())
    }

    /// Shuts the windows that are full, and opens the others.
    fn set_windows(&mut self) {
        for (follower, shut) in self.windows.take_changes() {
            let messages = if shut { 0 } else { self.config.max_inflight };
            self.raw.raft.adjust_max_inflight_msgs(follower, messages);
        }
    }

    /// A leader is asked only once it has committed in its term: before that the library drops the question.
    fn begin_read_round(&mut self) {
        let raft = &self.raw.raft;
        let can_ask = match raft.state {
            StateRole::Leader => raft.commit_to_current_term(),
            StateRole::Follower => raft.leader_id != raft::INVALID_ID,
            StateRole::PreCandidate | StateRole::Candidate => false,
        };
        if can_ask && self.reads.is_due() {
            let context = self.reads.begin_round();
            self.raw.read_index(context);
        }
    }

    fn take_ready(&mut self) -> Result<(), String> {
        if !self.raw.has_ready() {
            return Ok(());
        }
        self.raw.store().set_apply_budget(Some(self.handed_out.budget(self.config.max_apply_bytes)));
        let mut ready = self.raw.ready();
        self.raw.store().set_apply_budget(None);
        let number = ready.number();
        let entries = entries_from_raft(ready.entries())?;
        let hard_state = ready.hs().map(hard_state_from_raft).transpose()?;
        let mut term_or_vote = false;
        if let Some(new) = hard_state {
            term_or_vote = (new.term, new.vote) != (self.written.term, self.written.vote);
            self.written = new;
        }
        if term_or_vote || ready.must_sync() {
            self.outbox.on_batch(number, term_or_vote);
        }
        self.send(ready.take_messages(), true)?;
        self.send(ready.take_persisted_messages(), false)?;
        for entry in entries_from_raft(&ready.take_committed_entries())? {
            self.handed_out.push(&entry)?;
            self.effects.apply.push(entry);
        }
        for answer in ready.take_read_states() {
            let index = LogIndex(answer.index);
            let answered = self.reads.on_answer(&answer.request_ctx);
            self.effects.reads.extend(answered.into_iter().map(|request| (request, Ok(index))));
        }
        self.raw.mut_store().append(number, &entries);
        if !entries.is_empty() || hard_state.is_some() {
            self.last_batch = number;
            let must_sync = ready.must_sync();
            self.effects.persist = Some(PersistBatch { number, entries, hard_state, must_sync });
        }
        self.raw.advance_append_async(ready);
        if self.outbox.is_synced() {
            // Nothing of this one needs the disk: the library need not remember it until the next batch.
            self.raw.on_persist_ready(number);
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<raft::eraftpb::Message>, leader: bool) -> Result<(), String> {
        let mut ours = Vec::with_capacity(messages.len());
        for message in messages {
            ours.extend(split_append(message_from_raft(message)?, self.config.max_message_bytes));
        }
        ours.iter().for_each(|message| self.windows.on_sent(message));
        let free = self.outbox.put(leader, ours);
        self.effects.send.extend(free);
        Ok(())
    }

    fn note_ready_to_write(&mut self) -> Result<(), String> {
        let term = Term(self.raw.raft.term);
        let now = self.is_leader() && self.write_term != Some(term) && self.raw.raft.commit_to_current_term();
        if now {
            self.write_term = Some(term);
            self.effects.ready_to_write = Some(self.first_of_own_term()?);
        }
        Ok(())
    }

    /// The empty entry with which this leader began: walks back over what it proposed before that was committed.
    fn first_of_own_term(&self) -> Result<EntryId, String> {
        let (log, term) = (&self.raw.raft.raft_log, self.raw.raft.term);
        let mut index = log.committed;
        while log.term(index - 1).map_err(|error| format!("term of entry {}: {error}", index - 1))? == term {
            index -= 1;
        }
        Ok(EntryId { index: LogIndex(index), term: Term(term) })
    }
}

/// What recovery found must fit together; returns the hard state to begin with.
fn check_restored(restored: &Restored) -> Result<HardState, OpenError> {
    let Restored { hard_state, start, last, applied, .. } = restored;
    if start.index.0 == 0 || start.term.0 == 0 {
        return Err(OpenError::NoGenesis { start: *start });
    }
    let same = last.index == start.index;
    if last.index < start.index || last.term < start.term || (same && last.term != start.term) {
        return Err(OpenError::Backwards { start: *start, last: *last });
    }
    if !(start.index..=last.index).contains(applied) {
        return Err(OpenError::AppliedOutside { applied: *applied, start: start.index, last: last.index });
    }
    if hard_state.commit > last.index {
        return Err(OpenError::CommitOutside { commit: hard_state.commit, last: last.index });
    }
    if hard_state.term < last.term {
        return Err(OpenError::TermBehind { hard_state: hard_state.term, log: last.term });
    }
    Ok(HardState { commit: hard_state.commit.max(*applied), ..*hard_state })
}

fn raft_config(config: &CoreConfig, applied: LogIndex) -> raft::Config {
    raft::Config {
        id: u64::from(config.id.0),
        election_tick: config.election_ticks as usize,
        heartbeat_tick: config.heartbeat_ticks as usize,
        applied: applied.0,
        max_size_per_msg: config.max_message_bytes,
        max_inflight_msgs: config.max_inflight,
        check_quorum: true,
        pre_vote: true,
        read_only_option: ReadOnlyOption::Safe,
        batch_append: true,
        // Each would cost every follower a message, an answer and two wake-ups; `Event::TellCommit` does it when it is time.
        skip_bcast_commit: true,
        max_uncommitted_size: config.max_uncommitted_bytes,
        ..raft::Config::default()
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".to_owned())
}
