//! One turn of the Raft thread: mailbox in, core, effects out. No thread and no file here, so that the simulation turns
//! the same wheel.
//!
//! The order of duties within a turn is what guarantees hang on:
//!
//! 1. answers to proposals are noted *before* their entries go to the log, so that the applier, however fast, finds
//!    the entry's caller;
//! 2. messages leave before the disk is waited for; those that promise something about the disk are held back by the
//!    core itself until `Persisted`;
//! 3. role and progress are published last.
//!
//! **Disk trouble.** After a failed write or sync nothing more is acknowledged. A leader tries to hand over for one
//! election timeout; then, and a follower at once, the core is silenced, which makes it stop leading and never campaign.
//! A sync that takes longer than two election timeouts makes a leader hand over, too, and stop leading after a third one; it
//! is no trouble for good, since it may still end well. A call for the files of a database that does not return keeps no commit
//! waiting; people are told.
//!
//! **Members.** A change is judged (`members.rs`) and proposed in one step of this thread. The core takes no change before
//! every earlier one is applied, and the catalogue is never behind the core, so what was judged is what will be applied. A
//! leader also promotes members that rise by themselves, writes down where members are that moved, and ends a joint configuration that an earlier leader left
//! behind. A node that was removed is silenced.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::commit_notice::CommitNotice;
use crate::entry::{self, Body, Origin, Payload};
use crate::events;
use crate::found::format::FoundMessage;
use crate::found::{self, Founding};
use crate::members::{self, Context, Operation, Refusal, Situation};
use crate::moves::Moves;
use crate::pending::Decision;
use crate::planted::{self, Bug};
use crate::probe::{self, Phase};
use crate::raft::{Core, CoreStatus, Effects, Event, MembershipChange, NotProposed, PersistBatch, Role};
use crate::shared::{Hub, Input, Leadership};
use crate::types::{LogEntry, LogIndex, Membership, Message, NodeId, PROTOCOL};

/// What the alarm of a disk that does not answer is about.
pub(crate) const STALLED: &str = "stalled disk";
/// What the alarm of a disk is about that does not answer a call for a database.
const UNANSWERED: &str = "unanswered disk";
/// How many election timeouts such a call may take: some write a megabyte or make one of hundreds durable, and nobody waits for
/// them.
const FILE_PATIENCE: u32 = 10;
/// What the alarm of a log is about that waits for room.
pub(crate) const NO_ROOM: &str = "log without room";

/// Where a turn's effects go. None of these may block.
pub(crate) trait Outlet {
    /// Write to the log, then post `Input::Persisted`.
    fn persist(&mut self, batch: PersistBatch);
    /// Send to a peer.
    fn send(&mut self, message: Message);
    /// Tell a listed node that belongs to no cluster yet about ours.
    fn send_found(&mut self, to: NodeId, message: FoundMessage);
    /// Hand to the applier, which posts `Input::Applied`.
    fn apply(&mut self, entries: Vec<LogEntry>);
}

/// See the module's text.
pub(crate) struct Engine {
    core: Core,
    hub: Hub,
    /// Entries up to here were committed when this node started. Until they are applied it does not campaign: the core
    /// would have to load all of them at once to look for changes of the members.
    replay_to: LogIndex,
    replayed: bool,
    /// Batches that the log has not reported, with the time they were handed over.
    in_flight: VecDeque<(u64, Duration)>,
    silence_at: Option<Duration>,
    silenced: bool,
    /// When a stalled leader last tried to hand over.
    handed_over_at: Option<Duration>,
    /// The log has not reported a batch for too long, and people were told.
    stalled: bool,
    /// The last tick.
    ticked_at: Option<Duration>,
    /// When it ran again after a pause.
    woke_at: Duration,
    /// The same of a call for a database.
    unanswered: bool,
    sole_voter: bool,
    ticks: u32,
    /// The founding is over for this node, but not for a listed one that came late or missed the genesis.
    founding: Option<Founding>,
    /// When other members were heard of. The core forgets once per election timeout and knows again after a heartbeat.
    heard: BTreeMap<NodeId, Duration>,
    /// Where members said to be lately.
    moves: Moves,
    removed: bool,
    notice: CommitNotice,
}

/// What the alarm of a member is about that is in two places; its id follows.
const TWINS: &str = "twins of node ";

fn twins_of(node: NodeId) -> String {
    format!("{TWINS}{node}")
}

/// The name of a proposal that nobody waits for.
const NOBODY: u64 = 0;

impl Engine {
    /// `replay_to` is the committed index of the restored hard state.
    pub(crate) fn new(
        core: Core,
        hub: Hub,
        replay_to: LogIndex,
        sole_voter: bool,
        founding: Option<Founding>,
    ) -> Engine {
        Engine {
            core,
            hub,
            replay_to,
            replayed: false,
            in_flight: VecDeque::new(),
            silence_at: None,
            silenced: false,
            handed_over_at: None,
            stalled: false,
            ticked_at: None,
            woke_at: Duration::ZERO,
            unanswered: false,
            sole_voter,
            ticks: 0,
            founding,
            heard: BTreeMap::new(),
            moves: Moves::default(),
            removed: false,
            notice: CommitNotice::default(),
        }
    }

    /// Goes on with another core: a snapshot took the place of the log. Nothing of the old one is on its way any more.
    pub(crate) fn exchange_core(&mut self, core: Core, applied: LogIndex) {
        self.core = core;
        (self.replay_to, self.replayed) = (applied, false);
        self.in_flight.clear();
        self.handed_over_at = None;
        // Why this node may not lead has not gone with the old core: its applier does not go on, say.
        if self.silenced {
            self.core.on_event(Event::Silence);
        }
        // The old core takes its rounds with it, and those who wait would do so to their deadline.
        for request in self.hub.unanswered_reads() {
            self.core.on_event(Event::ReadIndex { request });
        }
        // Whoever looks how far this node is must not take the snapshot for one that is still needed.
        *self.hub.core_status.lock() = Some(self.status());
    }

    /// The core as it is.
    pub(crate) fn core_status(&self) -> CoreStatus {
        self.core.status()
    }

    /// A tick of the clock.
    pub(crate) fn on_tick(&mut self) {
        if self.replayed {
            self.core.on_event(Event::Tick);
        }
        self.silence_if_due();
        self.note_pause();
        self.watch_disk();
        self.watch_files();
        self.ticks = self.ticks.wrapping_add(1);
        let due = self.ticks.is_multiple_of(self.hub.config.election_ticks().max(1));
        if due {
            self.hub.forget_unreached();
        }
        if due && self.hub.leadership().role == Role::Leader {
            self.hub.recheck_unbound();
            self.end_joint();
            self.promote_risen();
            self.record_addresses();
        }
        if due {
            if self.hub.leadership().role != Role::Leader {
                self.moves = Moves::default();
            }
            self.tell_twins();
        }
    }

    /// The library leaves a joint configuration by itself, unless the leader who entered it is gone.
    fn end_joint(&mut self) {
        if !self.core.status().membership.voters_outgoing.is_empty() {
            let change = MembershipChange::leave_joint();
            self.core.on_event(Event::ChangeMembership { proposal: NOBODY, change });
        }
    }

    /// Promotes one member that came in to become a voter and has caught up.
    fn promote_risen(&mut self) {
        let rising = self.hub.with_catalogue(|catalogue| {
            let rising = catalogue.members().filter(|(_, member)| member.rises).map(|(id, _)| id);
            rising.collect::<Vec<_>>()
        });
        for node in rising.unwrap_or_default() {
            let operation = Operation::Promote { node };
            if self.judge(&operation).is_ok_and(|change| self.propose_change(NOBODY, &operation, change)) {
                return;
            }
        }
    }

    /// Members that moved get their new addresses written down. Proposed anew until it is done.
    fn record_addresses(&mut self) {
        let now = self.hub.waiting.clock.now();
        for (node, incarnation, address) in self.hub.moved() {
            let before =
                self.hub.with_catalogue(|catalogue| catalogue.member(node).map(|member| member.address.clone()));
            let before = before.ok().flatten().unwrap_or_default();
            if !self.moves.on_move(node, &before, &address, now) {
                continue;
            }
            tracing::info!(node = node.0, address, "a member has another address");
            let origin = Origin { node: self.hub.id, session: self.hub.session, number: NOBODY };
            let body = Body::BindIncarnation { node, incarnation, address };
            if let Ok(data) = entry::encode(&Payload { origin, body }) {
                self.core.on_event(Event::Propose { proposal: NOBODY, data: data.into() });
            }
        }
    }

    /// Members that are in two places are told of as long as this node leads and sees it.
    fn tell_twins(&mut self) {
        let twins = self.moves.twins(self.hub.waiting.clock.now());
        let mut findings = self.hub.findings.lock();
        findings
            .alarms
            .retain(|about, _| !about.starts_with(TWINS) || twins.iter().any(|(node, _)| *about == twins_of(*node)));
        for (node, [one, other]) in twins {
            let what = format!(
                "node {node} is at {one} and at {other} by turns: two processes run with its id, on copies of one directory; stop \
                 one of them, and let a new node with an empty directory and a new id take its place"
            );
            if findings.alarms.insert(twins_of(node), what.clone()).is_none() {
                tracing::error!("{what}");
            }
        }
    }

    fn judge(&mut self, operation: &Operation) -> Result<MembershipChange, Refusal> {
        let status = self.status();
        let judged = self.hub.with_catalogue(|catalogue| {
            let at = Situation {
                leader: self.hub.id,
                membership: &status.membership,
                pending: self.core.change_pending(),
                committed: status.committed,
                start: self.hub.core_start(),
                peers: &status.peers,
                catalogue,
            };
            members::judge(operation, &at)
        });
        judged.unwrap_or(Err(Refusal::Pending))
    }

    fn propose_change(&mut self, number: u64, operation: &Operation, mut change: MembershipChange) -> bool {
        let origin = Origin { node: self.hub.id, session: self.hub.session, number };
        change.context = Context::of(operation, origin).encode();
        self.core.on_event(Event::ChangeMembership { proposal: number, change });
        true
    }

    fn on_change(&mut self, number: u64, operation: &Operation, reply: &Sender<Refusal>) {
        if self.core.status().role.role != Role::Leader {
            return self.hub.pending.decide(number, Decision::NotCommitted);
        }
        match self.judge(operation) {
            Ok(change) => _ = self.propose_change(number, operation, change),
            Err(refusal) => {
                let text = refusal.to_string();
                // Before the decision: whoever hears that looks here for the kind.
                let _ = reply.try_send(refusal);
                self.hub.pending.decide(number, Decision::Refused(text));
            }
        }
    }

    /// The core's status, in which a member counts as active for three heartbeats after it was heard of.
    fn status(&mut self) -> CoreStatus {
        let mut status = self.core.status();
        let now = self.hub.waiting.clock.now();
        let memory = 3 * self.hub.config.heartbeat;
        for peer in &mut status.peers {
            if peer.active {
                self.heard.insert(peer.id, now);
            }
            peer.active = self.heard.get(&peer.id).is_some_and(|at| now.saturating_sub(*at) <= memory);
        }
        if status.role.role != Role::Leader {
            self.heard.clear();
        }
        status
    }

    /// The members changed with the entry at `index`, and the core counts by them from here on.
    fn on_membership(&mut self, index: LogIndex, membership: Membership) {
        self.hub.note_change(index);
        let Membership { voters, learners, .. } = membership;
        self.hub.events.tell(&events::Event::MemberChanged { index, voters, learners });
        self.stop_if_removed();
    }

    fn stop_if_removed(&mut self) {
        if self.hub.with_catalogue(|catalogue| catalogue.was_removed(self.hub.id)) == Ok(true) {
            self.on_removed(format!(
                "node {} was removed from its cluster; to bring the machine back, join it with an empty data directory under a new id",
                self.hub.id
            ));
        }
    }

    fn on_removed(&mut self, what: String) {
        if !std::mem::replace(&mut self.removed, true) {
            self.hub.set_removed(what);
            self.silenced = true;
            self.core.on_event(Event::Silence);
        }
    }

    /// Something from the mailbox. `Stop` is the caller's business.
    pub(crate) fn on_input(&mut self, input: Input) {
        let event = match input {
            Input::Message { message, room } => {
                drop(room);
                Event::Message(*message)
            }
            // Its caller may have given up before it came here.
            Input::Propose { number, .. } | Input::Change { number, .. } if !self.hub.pending.take_up(number) => return,
            Input::Propose { number, data } if self.is_too_new(&data) => {
                let protocol = entry::protocol_of(&data);
                let who = self.hub.who_does_not_know(protocol).unwrap_or_default();
                let why = format!("this needs protocol {protocol} on every member, and {who}; upgrade that node first");
                return self.hub.pending.decide(number, Decision::Refused(why));
            }
            Input::Propose { number, data } => Event::Propose { proposal: number, data },
            Input::Read { request } => Event::ReadIndex { request },
            Input::CancelRead { request } => Event::CancelRead { request },
            Input::Persisted { batch } => {
                self.in_flight.retain(|(number, _)| *number > batch);
                Event::Persisted { batch }
            }
            Input::Failed { what } => {
                self.hub.set_trouble(what);
                let patience = match self.hand_over() {
                    Some(_) => self.hub.config.election_timeout,
                    None => Duration::ZERO,
                };
                self.silence_at = Some(self.hub.waiting.clock.now() + patience);
                self.silence_if_due();
                return;
            }
            Input::Applied { index } => {
                for index in self.hub.take_refused_changes(index) {
                    self.core.on_event(Event::ChangeRefused { index });
                }
                Event::Applied { index }
            }
            Input::Announce => Event::Announce,
            Input::Change { number, operation, reply } => return self.on_change(number, &operation, &reply),
            Input::Heard { node, address } => {
                if self.hub.introduce(node, address) {
                    self.hub.members_changed();
                }
                return;
            }
            Input::Removed { what } => return self.on_removed(what),
            // Asked before a later one was done, when somebody needed more: that is gone.
            Input::Compact { start } if start.index < self.hub.core_start() => return,
            Input::Compact { start } => {
                self.core.on_event(Event::Compacted { start });
                self.hub.set_compacted(start.index);
                return;
            }
            Input::Transfer { to } => Event::Transfer { to },
            Input::Unreachable { peer } => Event::Unreachable { peer },
            Input::HandOver => {
                self.hand_over();
                return;
            }
            Input::Found { from, message, room } => {
                drop(room);
                return self.on_late(found::Event::Message(from, message));
            }
            Input::Connected { peer, cluster } => return self.on_late(found::Event::Connected(peer, cluster)),
            Input::Stop => return,
        };
        self.core.on_event(event);
        self.end_replay();
    }

    /// Whether a member would have to stop at such an entry. Every entry that this node would lead with comes by here.
    fn is_too_new(&self, data: &[u8]) -> bool {
        let protocol = entry::protocol_of(data);
        protocol > PROTOCOL && self.hub.who_does_not_know(protocol).is_some()
    }

    fn silence_if_due(&mut self) {
        if self.silence_at.is_some_and(|at| self.hub.waiting.clock.now() >= at) {
            self.silence_at = None;
            self.silenced = true;
            self.core.on_event(Event::Silence);
        }
    }

    /// A node that has no cluster yet speaks, or was connected to: whoever has the genesis tells it.
    fn on_late(&mut self, event: found::Event) {
        if let Some(founding) = &mut self.founding {
            // The random number is for a founder; this node's founding is over.
            founding.on_event(event, 0);
        }
    }

    fn end_replay(&mut self) {
        if !self.replayed && self.hub.applied().index >= self.replay_to {
            self.replayed = true;
            self.stop_if_removed();
            if self.sole_voter {
                self.core.on_event(Event::Campaign);
            }
        }
    }

    /// A process that was stopped, or a machine that slept, comes back with calls to the disk that look as old as that. The disk is
    /// judged anew from then on.
    fn note_pause(&mut self) {
        let now = self.hub.waiting.clock.now();
        let pause = now.saturating_sub(self.ticked_at.replace(now).unwrap_or(now));
        if pause > self.hub.config.election_timeout {
            tracing::warn!(
                node = self.hub.id.0,
                "nothing was done here for {pause:.1?}: the process was stopped, or its machine was, or had no time for it"
            );
            self.woke_at = now;
        }
    }

    /// A sync that takes longer than two election timeouts: whoever can still write should lead. One timeout later nobody
    /// has taken over, and this node stops leading all the same: it would take in transactions of which it can tell nobody
    /// what becomes. When the disk answers, it is a node like any other.
    fn watch_disk(&mut self) {
        let (now, patience) = (self.hub.waiting.clock.now(), self.hub.config.election_timeout);
        let counted = if self.stalled { Duration::ZERO } else { self.woke_at };
        let waited =
            self.in_flight.front().map_or(Duration::ZERO, |(_, since)| now.saturating_sub(counted.max(*since)));
        if waited <= 2 * patience {
            if std::mem::take(&mut self.stalled) {
                self.hub.findings.lock().alarms.remove(STALLED);
                tracing::info!(node = self.hub.id.0, "the disk answers again");
            }
            self.handed_over_at = None;
            return;
        }
        // People have been told why nothing is written, if it is for want of room.
        let known = self.hub.findings.lock().alarms.contains_key(NO_ROOM);
        if !known && !std::mem::replace(&mut self.stalled, true) {
            let what = format!(
                "the disk has not answered a write of the log for two election timeouts, {:?}; this node acknowledges nothing and \
                 does not lead until it does; if that lasts, check the disk",
                2 * patience
            );
            tracing::error!(node = self.hub.id.0, "{what}");
            self.hub.findings.lock().alarms.insert(STALLED.to_string(), what.clone());
            self.hub.events.tell(&crate::events::Event::DiskTrouble { what });
        }
        if self.hub.leadership().role != Role::Leader {
            return;
        }
        if waited > 3 * patience {
            tracing::warn!(node = self.hub.id.0, "nobody has taken over; this node stops leading");
            self.core.on_event(Event::StepDown);
            return;
        }
        // A transfer may fail: its message is lost, the other node is behind. Raft gives up on it after one timeout.
        let under_way = self.handed_over_at.is_some_and(|at| now.saturating_sub(at) <= patience);
        if under_way {
            return;
        }
        if let Some(to) = self.hand_over() {
            tracing::warn!(node = self.hub.id.0, "node {to} shall lead");
            self.handed_over_at = Some(now);
        }
    }

    /// The same for files of databases. Their threads hang in the call, so this one looks: it waits for no disk.
    fn watch_files(&mut self) {
        let patience = FILE_PATIENCE * self.hub.config.election_timeout;
        let awake = self.hub.waiting.clock.now().saturating_sub(self.woke_at);
        let unanswered = match self.woke_at > Duration::ZERO && awake <= patience && !self.unanswered {
            true => None,
            false => self.hub.databases.unanswered(patience),
        };
        let first = unanswered.is_some() && !self.unanswered;
        if let Some(what) = unanswered.clone() {
            // Again with each look: it says for how long.
            self.hub.findings.lock().alarms.insert(UNANSWERED.to_string(), what);
        } else if self.unanswered {
            self.hub.findings.lock().alarms.remove(UNANSWERED);
            tracing::info!(node = self.hub.id.0, "the disk answers again for the files of the databases");
        }
        self.unanswered = unanswered.is_some();
        if let Some(what) = unanswered.filter(|_| first) {
            tracing::error!(node = self.hub.id.0, "{what}");
            self.hub.events.tell(&crate::events::Event::DiskTrouble { what });
        }
    }

    /// Hands leadership to the voter that has most of the log, if this node leads.
    fn hand_over(&mut self) -> Option<NodeId> {
        if self.hub.leadership().role != Role::Leader {
            return None;
        }
        let status = self.status();
        let to = status
            .peers
            .iter()
            .filter(|peer| peer.active && status.membership.voters.contains(&peer.id))
            .max_by_key(|peer| peer.acknowledged)
            .map(|peer| peer.id)?;
        self.core.on_event(Event::Transfer { to });
        Some(to)
    }

    /// When this must be turned again at the latest, also if nothing comes: the followers are to hear what is committed.
    pub(crate) fn turn_by(&self) -> Option<Duration> {
        self.notice.due_at()
    }

    /// Until when [`Engine::turn_by`] may well give a time soon.
    pub(crate) fn busy_until(&self) -> Option<Duration> {
        self.notice.busy_until()
    }

    /// Carries out what the core wants. Returns `false` when the node cannot go on.
    pub(crate) fn turn(&mut self, out: &mut dyn Outlet) -> bool {
        self.end_replay();
        for (to, message) in self.founding.as_mut().map(|founding| founding.take_effects().send).unwrap_or_default() {
            out.send_found(to, message);
        }
        if self.notice.is_due(self.hub.waiting.clock.now(), self.core.has_untold_commit()) {
            self.core.on_event(Event::TellCommit);
        }
        let effects = self.core.take_effects();
        let Effects {
            persist,
            send,
            apply,
            membership,
            proposed,
            reads,
            role,
            ready_to_write: _,
            snapshot_wanted,
            fatal,
        } = effects;
        if let Some(reason) = fatal {
            self.hub.set_trouble(format!("node {} stopped: {reason}", self.hub.id));
            return false;
        }
        for (index, membership) in membership {
            self.on_membership(index, membership);
        }
        let mut entered = false;
        for (number, answer) in proposed {
            match answer {
                Ok(entry) => {
                    entered = true;
                    self.hub.pending.on_entered(number, entry);
                    if planted::is(Bug::PublishBeforeCommit) {
                        self.hub.pending.accept_at_once(number, entry.index);
                    }
                }
                Err(why) => self.hub.pending.decide(number, not_proposed(why)),
            }
        }
        for message in send {
            out.send(message);
        }
        if let Some(batch) = persist {
            self.in_flight.push_back((batch.number, self.hub.waiting.clock.now()));
            if planted::is(Bug::LocalLogProof) {
                batch.entries.iter().for_each(|entry| self.hub.pending.give_up_replaced(entry.id));
            }
            out.persist(batch);
        }
        if entered {
            probe::begin(Phase::Enter);
            probe::end(Phase::Enter);
        }
        if planted::is(Bug::ApplyTwice) && !self.replayed {
            out.apply(apply.clone());
        }
        if !apply.is_empty() {
            out.apply(apply);
        }
        for (request, answer) in reads {
            // A failed read is not answered: its caller's deadline is, and says what to do.
            if let Ok(index) = answer {
                self.hub.on_read_index(request, index);
            }
        }
        for peer in snapshot_wanted {
            self.hub.snapshots.want(peer);
        }
        if let Some(role) = role {
            let leader = if self.silenced && role.leader == Some(self.hub.id) { None } else { role.leader };
            self.hub.set_leadership(Leadership { role: role.role, term: role.term, leader });
            if role.role == Role::Leader {
                self.hub.recheck_unbound();
            }
        }
        let status = self.status();
        *self.hub.core_status.lock() = Some(status);
        true
    }
}

fn not_proposed(why: NotProposed) -> Decision {
    match why {
        NotProposed::TooLarge { .. } | NotProposed::MembershipBusy => Decision::Refused(why.to_string()),
        _ => Decision::NotCommitted,
    }
}
