//! Nodes, their disks and the wires between them, all in the test's hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use shoaldb::raft::{Core, CoreConfig, Effects, EntryReader, Event, PersistBatch, Restored};
use shoaldb::types::{
    EntryClass, EntryId, GENESIS, HardState, LogEntry, LogIndex, Membership, Message, MessageKind, NodeId, Term,
};

/// What survives a crash.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) start: EntryId,
    pub(crate) entries: Vec<LogEntry>,
    pub(crate) hard_state: HardState,
    /// Index and members from which a restart applies again.
    pub(crate) checkpoint: (LogIndex, Membership),
    /// Reads fail while set.
    pub(crate) broken: bool,
    /// Reads panic while set.
    pub(crate) panics: bool,
    pub(crate) reads: usize,
}

impl Disk {
    pub(crate) fn new(membership: Membership) -> Disk {
        Disk {
            start: GENESIS,
            entries: Vec::new(),
            hard_state: HardState { term: GENESIS.term, vote: None, commit: GENESIS.index },
            checkpoint: (GENESIS.index, membership),
            broken: false,
            panics: false,
            reads: 0,
        }
    }

    pub(crate) fn last(&self) -> EntryId {
        self.entries.last().map_or(self.start, |entry| entry.id)
    }

    pub(crate) fn write(&mut self, batch: &PersistBatch) {
        if let Some(first) = batch.entries.first() {
            assert!(first.id.index <= self.last().index.next(), "a batch leaves a gap");
            let keep = first.id.index.0 - self.start.index.0 - 1;
            self.entries.truncate(keep as usize);
            self.entries.extend(batch.entries.iter().cloned());
        }
        if let Some(state) = batch.hard_state {
            assert!(state.commit <= self.last().index, "commits what is not written");
            assert!(state.term >= self.hard_state.term);
            self.hard_state = state;
        }
    }

    fn restored(&self) -> Restored {
        Restored {
            hard_state: self.hard_state,
            membership: self.checkpoint.1.clone(),
            start: self.start,
            last: self.last(),
            applied: self.checkpoint.0,
        }
    }
}

pub(crate) struct Reader(pub(crate) Arc<Mutex<Disk>>);

impl EntryReader for Reader {
    fn entries(&self, lo: LogIndex, hi: LogIndex, max_bytes: u64) -> io::Result<Vec<LogEntry>> {
        let mut disk = self.0.lock().unwrap();
        disk.reads += 1;
        if disk.panics {
            drop(disk);
            panic!("planted");
        }
        if disk.broken {
            return Err(io::Error::other("the disk is broken"));
        }
        let begin = (lo.0 - disk.start.index.0 - 1) as usize;
        let end = (hi.0 - disk.start.index.0 - 1) as usize;
        let mut bytes = 0;
        let fits = |entry: &&LogEntry| {
            bytes += entry.data.len() as u64;
            bytes <= max_bytes
        };
        let mut found: Vec<LogEntry> = disk.entries[begin..end].iter().take_while(fits).cloned().collect();
        if found.is_empty() {
            found.push(disk.entries[begin].clone());
        }
        Ok(found)
    }

    fn term(&self, index: LogIndex) -> Option<Term> {
        let disk = self.0.lock().unwrap();
        let at = (index.0 - disk.start.index.0 - 1) as usize;
        if disk.broken { None } else { disk.entries.get(at).map(|entry| entry.id.term) }
    }
}

pub(crate) struct Node {
    pub(crate) core: Option<Core>,
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) config: CoreConfig,
    pub(crate) pending: VecDeque<PersistBatch>,
    pub(crate) to_apply: VecDeque<LogEntry>,
    pub(crate) applied: Vec<LogEntry>,
    pub(crate) membership: Membership,
    pub(crate) hold_persist: bool,
    pub(crate) hold_apply: bool,
}

impl Node {
    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    pub(crate) fn applied_index(&self) -> LogIndex {
        self.applied.last().map_or(self.disk().checkpoint.0, |entry| entry.id.index)
    }

    fn open(&mut self) {
        let restored = self.disk().restored();
        self.membership = restored.membership.clone();
        self.config.seed += 1;
        let reader = Arc::new(Reader(self.disk.clone()));
        self.core = Some(Core::open(self.config.clone(), restored, reader).unwrap());
    }
}

/// Nodes and the messages between them. Every effect leaves a line in `trace`.
pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<u16, Node>,
    pub(crate) wire: Vec<Message>,
    pub(crate) cut: BTreeSet<(u16, u16)>,
    pub(crate) trace: Vec<String>,
    pub(crate) proposed: BTreeMap<u64, Result<EntryId, shoaldb::raft::NotProposed>>,
    pub(crate) reads: BTreeMap<u64, Result<LogIndex, shoaldb::raft::ReadFailed>>,
    pub(crate) fatal: BTreeMap<u16, String>,
    /// Everything ever sent, for tests that count.
    pub(crate) sent: Vec<Message>,
    next_name: u64,
}

pub(crate) fn voters(ids: impl IntoIterator<Item = u16>) -> Membership {
    Membership { voters: ids.into_iter().map(NodeId).collect(), ..Membership::default() }
}

impl Cluster {
    pub(crate) fn of(n: u16) -> Cluster {
        Cluster::with(voters(1..=n), |_| {})
    }

    /// Nodes for all voters and learners.
    pub(crate) fn with(membership: Membership, configure: impl Fn(&mut CoreConfig)) -> Cluster {
        let mut cluster = Cluster {
            nodes: BTreeMap::new(),
            wire: Vec::new(),
            cut: BTreeSet::new(),
            trace: Vec::new(),
            proposed: BTreeMap::new(),
            reads: BTreeMap::new(),
            fatal: BTreeMap::new(),
            sent: Vec::new(),
            next_name: 1,
        };
        for id in membership.voters.iter().chain(&membership.learners) {
            let mut config = CoreConfig::new(*id, u64::from(id.0) * 1000);
            configure(&mut config);
            cluster.add(config, Disk::new(membership.clone()));
        }
        cluster
    }

    pub(crate) fn add(&mut self, config: CoreConfig, disk: Disk) {
        let id = config.id.0;
        let mut node = Node {
            core: None,
            disk: Arc::new(Mutex::new(disk)),
            config,
            pending: VecDeque::new(),
            to_apply: VecDeque::new(),
            applied: Vec::new(),
            membership: Membership::default(),
            hold_persist: false,
            hold_apply: false,
        };
        node.open();
        self.nodes.insert(id, node);
        self.turn(id);
        self.trace.clear();
    }

    pub(crate) fn node(&mut self, id: u16) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    /// One event, one turn. A crashed node hears nothing.
    pub(crate) fn event(&mut self, id: u16, event: Event) {
        if let Some(core) = &mut self.node(id).core {
            core.on_event(event);
            self.turn(id);
        }
    }

    pub(crate) fn turn(&mut self, id: u16) {
        let Some(core) = &mut self.node(id).core else { return };
        if core.has_untold_commit() {
            core.on_event(Event::TellCommit);
        }
        let effects = core.take_effects();
        self.perform(id, effects);
    }

    pub(crate) fn perform(&mut self, id: u16, effects: Effects) {
        self.trace.extend(describe(id, &effects));
        let node = self.nodes.get_mut(&id).unwrap();
        node.pending.extend(effects.persist);
        node.to_apply.extend(effects.apply);
        if let Some((_, membership)) = effects.membership.last() {
            node.membership = membership.clone();
        }
        self.sent.extend(effects.send.iter().cloned());
        self.wire.extend(effects.send);
        self.proposed.extend(effects.proposed);
        self.reads.extend(effects.reads);
        self.fatal.extend(effects.fatal.map(|why| (id, why)));
    }

    pub(crate) fn propose(&mut self, id: u16, data: impl Into<Bytes>) -> u64 {
        let proposal = self.name();
        self.event(id, Event::Propose { proposal, data: data.into() });
        proposal
    }

    pub(crate) fn read(&mut self, id: u16) -> u64 {
        let request = self.name();
        self.event(id, Event::ReadIndex { request });
        request
    }

    pub(crate) fn name(&mut self) -> u64 {
        self.next_name += 1;
        self.next_name - 1
    }

    pub(crate) fn tick(&mut self, id: u16, times: usize) {
        (0..times).for_each(|_| self.event(id, Event::Tick));
    }

    /// Ticks everywhere, each followed by `run`.
    pub(crate) fn pass(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for id in self.ids() {
                self.event(id, Event::Tick);
            }
            self.run();
        }
    }

    pub(crate) fn ids(&self) -> Vec<u16> {
        self.nodes.keys().copied().collect()
    }

    /// Writes the oldest batch of a node that waits.
    pub(crate) fn persist_one(&mut self, id: u16) -> bool {
        let node = self.node(id);
        let Some(batch) = node.pending.pop_front() else { return false };
        node.disk().write(&batch);
        self.event(id, Event::Persisted { batch: batch.number });
        true
    }

    pub(crate) fn apply_all(&mut self, id: u16) -> bool {
        let node = self.node(id);
        let Some(last) = node.to_apply.back().map(|entry| entry.id.index) else { return false };
        node.applied.extend(node.to_apply.drain(..));
        self.event(id, Event::Applied { index: last });
        true
    }

    pub(crate) fn deliver(&mut self, message: Message) {
        let (from, to) = (message.from.0, message.to.0);
        if !self.cut.contains(&(from, to)) && self.nodes.contains_key(&to) {
            self.event(to, Event::Message(message));
        }
    }

    /// Delivers all that is on the wire now.
    pub(crate) fn deliver_all(&mut self) {
        for message in std::mem::take(&mut self.wire) {
            self.deliver(message);
        }
    }

    /// Persists, applies and delivers until nothing moves.
    pub(crate) fn run(&mut self) {
        for _ in 0..10_000 {
            let mut moved = false;
            for id in self.ids() {
                while !self.node(id).hold_persist && self.persist_one(id) {
                    moved = true;
                }
                moved |= !self.node(id).hold_apply && self.apply_all(id);
            }
            if !moved && self.wire.is_empty() {
                return;
            }
            self.deliver_all();
        }
        panic!("the cluster does not come to rest");
    }

    pub(crate) fn campaign(&mut self, id: u16) {
        self.event(id, Event::Campaign);
        self.run();
    }

    pub(crate) fn isolate(&mut self, id: u16) {
        for other in self.ids() {
            self.cut.extend([(id, other), (other, id)]);
        }
    }

    /// Loses what was not written.
    pub(crate) fn crash(&mut self, id: u16) {
        let node = self.node(id);
        node.core = None;
        node.pending.clear();
        node.to_apply.clear();
        node.applied.clear();
    }

    pub(crate) fn restart(&mut self, id: u16) {
        self.node(id).open();
        self.turn(id);
    }

    pub(crate) fn leader(&self) -> Option<u16> {
        let leads =
            |node: &Node| node.core.as_ref().is_some_and(|core| core.status().role.role == shoaldb::raft::Role::Leader);
        self.nodes.iter().find(|(_, node)| leads(node)).map(|(id, _)| *id)
    }

    pub(crate) fn payloads(&self, id: u16) -> Vec<String> {
        let applied = self.nodes[&id].applied.iter().filter(|entry| !entry.data.is_empty());
        applied.map(|entry| String::from_utf8_lossy(&entry.data).into_owned()).collect()
    }
}

/// The effects as lines to read.
pub(crate) fn describe(id: u16, effects: &Effects) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(role) = effects.role {
        let leader = role.leader.map_or("nobody".to_owned(), |leader| leader.to_string());
        lines.push(format!("{id} is {:?} in term {}, led by {leader}", role.role, role.term));
    }
    lines.extend(effects.proposed.iter().map(|(name, outcome)| match outcome {
        Ok(entry) => format!("{id} takes proposal {name} as {}", entry_id(*entry)),
        Err(why) => format!("{id} refuses proposal {name}: {why}"),
    }));
    if let Some(batch) = &effects.persist {
        let mut line = format!("{id} writes batch {}:", batch.number);
        if !batch.entries.is_empty() {
            let _ = write!(line, " {}", entries(&batch.entries));
        }
        if let Some(state) = batch.hard_state {
            let vote = state.vote.map_or("-".to_owned(), |vote| vote.to_string());
            let _ = write!(line, " term {} vote {vote} commit {}", state.term, state.commit);
        }
        lines.push(line + if batch.must_sync { ", sync" } else { "" });
    }
    lines.extend(effects.send.iter().map(describe_message));
    if !effects.apply.is_empty() {
        lines.push(format!("{id} applies {}", entries(&effects.apply)));
    }
    for (index, membership) in &effects.membership {
        lines.push(format!("{id} has at {index} {}", describe_membership(membership)));
    }
    if let Some(entry) = effects.ready_to_write {
        lines.push(format!("{id} may write once it applied {}", entry_id(entry)));
    }
    lines.extend(effects.reads.iter().map(|(name, outcome)| match outcome {
        Ok(index) => format!("{id} may serve read {name} once it applied {index}"),
        Err(why) => format!("{id} refuses read {name}: {why}"),
    }));
    lines.extend(effects.snapshot_wanted.iter().map(|peer| format!("{id} has no entries left for {peer}")));
    lines.extend(effects.fatal.iter().map(|why| format!("{id} stops: {why}")));
    lines
}

fn entry_id(id: EntryId) -> String {
    format!("{}@{}", id.index, id.term)
}

fn entries(entries: &[LogEntry]) -> String {
    let one = |entry: &LogEntry| match entry.class {
        EntryClass::Membership => format!("{} members", entry_id(entry.id)),
        EntryClass::Normal if entry.data.is_empty() => entry_id(entry.id),
        EntryClass::Normal => format!("{} {}", entry_id(entry.id), String::from_utf8_lossy(&entry.data)),
    };
    format!("[{}]", entries.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn describe_membership(membership: &Membership) -> String {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.to_string()).collect::<Vec<_>>().join(" ");
    let mut line = format!("voters {}", ids(&membership.voters));
    for (what, nodes) in [("learners", &membership.learners), ("outgoing", &membership.voters_outgoing)] {
        if !nodes.is_empty() {
            let _ = write!(line, ", {what} {}", ids(nodes));
        }
    }
    line
}

fn describe_message(message: &Message) -> String {
    let Message { kind, from, to, term, log_term, index, commit, reject, reject_hint, .. } = message;
    let head = format!("{from} -> {to} {kind:?}");
    match kind {
        MessageKind::Append => {
            format!("{head} term {term}: after {index}@{log_term} {} commit {commit}", entries(&message.entries))
        }
        MessageKind::AppendReply if *reject => {
            format!("{head} term {term}: not after {index}, try {reject_hint}@{log_term}")
        }
        MessageKind::AppendReply => format!("{head} term {term}: has {index}"),
        MessageKind::Vote | MessageKind::PreVote => format!("{head} term {term}: log ends at {index}@{log_term}"),
        MessageKind::VoteReply | MessageKind::PreVoteReply => {
            format!("{head} term {term}: {}", if *reject { "no" } else { "yes" })
        }
        MessageKind::Heartbeat => {
            let round = if message.context.is_empty() { "" } else { ", read round" };
            format!("{head} term {term}: commit {commit}{round}")
        }
        MessageKind::HeartbeatReply => {
            format!("{head} term {term}{}", if message.context.is_empty() { "" } else { ", read round" })
        }
        MessageKind::ReadIndexReply => format!("{head} term {term}: {index}"),
        _ => format!("{head} term {term}"),
    }
}

/// Chance: SplitMix64 from a seed, or the bytes of a script.
pub(crate) struct Dice {
    state: u64,
    script: Option<std::vec::IntoIter<u8>>,
}

impl Dice {
    pub(crate) fn of(seed: u64) -> Dice {
        Dice { state: seed, script: None }
    }

    /// Each roll takes as many bytes as its sides need.
    #[allow(dead_code, reason = "the fuzz target `cluster`, which includes this file, uses it")]
    pub(crate) fn script(bytes: Vec<u8>) -> Dice {
        Dice { state: 0, script: Some(bytes.into_iter()) }
    }

    /// A script that came to its end rolls zeros. A seed has no end.
    pub(crate) fn is_over(&self) -> bool {
        self.script.as_ref().is_some_and(|script| script.len() == 0)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        if let Some(script) = &mut self.script {
            let bytes = (64 - (sides - 1).leading_zeros()).div_ceil(8);
            return (0..bytes).fold(0, |value, _| value << 8 | u64::from(script.next().unwrap_or(0))) % sides;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}
