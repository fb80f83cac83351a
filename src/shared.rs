//! What the threads of one node share, and who owns which part.
//!
//! ```text
//! part         written by            read by
//! leadership   engine (Raft thread)  write lock, connect, wait_leader, status
//! progress     applier               barriers, write lock, boot
//! pending      all                   see pending.rs
//! reads        engine, callers       read barriers
//! history      applier               receipts
//! catalogue    applier               names, status, handshakes
//! core status  engine                status
//! trouble      whoever meets it      everybody: the node stops acknowledging
//! ```
//!
//! What other nodes say of themselves is in `shared/peers.rs`.
//!
//! Lock order: none of these locks is held while another one is taken, except that `databases` may take a database's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::catalogue::{Catalogue, DatabaseId};
use crate::config::Config;
use crate::databases::{Databases, Help};
use crate::events::{self, Event, Events};
use crate::found::format::{FoundMessage, Genesis};
use crate::heard::Heard;
use crate::history::{Finding, History};
use crate::inbox::{Inbox, Room};
use crate::log::{Anchor, Log};
use crate::malformed::{Malformed, Tell};
use crate::members::{Operation, Refusal};
use crate::net::{Introduction, Transport};
use crate::pending::Pending;
use crate::planted::{self, Bug};
use crate::raft::{CoreStatus, Role};
use crate::receipt::{Receipt, ReceiptOutcome, Unsettled};
use crate::signal::{Signal, Waiting};
use crate::snapshot::Snapshots;
use crate::types::{ClusterId, EntryId, Incarnation, LogIndex, Message, NodeId, Term};
use crate::unended::Unended;

mod peers;

/// What comes to the engine's mailbox.
pub(crate) enum Input {
    /// From a peer.
    Message { message: Box<Message>, room: Room },
    /// Append to the log, if this node leads.
    Propose { number: u64, data: Bytes },
    /// Which index makes a read linearizable?
    Read { request: u64 },
    /// The reader gave up.
    CancelRead { request: u64 },
    /// The log has this batch on disk.
    Persisted { batch: u64 },
    /// The log or the applier cannot go on.
    Failed { what: String },
    /// The applier has come this far.
    Applied { index: LogIndex },
    /// Tell the leader how far this log agrees with its own.
    Announce,
    /// The log is going to drop its entries up to this one.
    Compact { start: EntryId },
    /// Change the members, if this node leads and nothing speaks against it; why not goes to `reply`.
    Change { number: u64, operation: Operation, reply: Sender<Refusal> },
    /// A node said where it is reached, and it is not where the catalogue has it.
    Heard { node: NodeId, address: String },
    /// A node told that this one was removed.
    Removed { what: String },
    /// Hand leadership to this node.
    Transfer { to: NodeId },
    /// Hand leadership to whom it suits best.
    HandOver,
    /// A founding message, while this node belongs to no cluster.
    Found { from: NodeId, message: FoundMessage, room: Room },
    /// A connection to a peer was opened.
    Connected { peer: NodeId, cluster: Option<ClusterId> },
    /// A message to this peer was lost.
    Unreachable { peer: NodeId },
    /// End the thread.
    Stop,
}

/// What this node's upkeep tells the rest of it.
#[derive(Default, Debug)]
pub(crate) struct Findings {
    /// What a person should know, by what it is about.
    pub(crate) alarms: BTreeMap<String, String>,
    /// The last entry that a start need not apply again.
    pub(crate) anchored: LogIndex,
    /// Anchors written by this process.
    pub(crate) anchors: u64,
    /// Every member that is not away has the log up to here, as far as this leader knows.
    pub(crate) members_floor: Option<LogIndex>,
    /// Times that this process dropped segments of the log.
    pub(crate) compactions: u64,
}

/// Turns the engine; `driver.rs` does.
pub(crate) trait Turn: Send + Sync {
    /// Something is in the mailbox: turn the engine here and now, if nobody else does. With `may_write` also write the log
    /// here, which blocks for a sync.
    fn turn(&self, may_write: bool);
    /// Something is in the mailbox: some thread shall turn the engine soon.
    fn wake(&self);
    /// SQLite has shown a transaction of this node.
    fn on_published(&self);
    /// Does this between two entries of the applier, when the core has heard of the first.
    fn between_entries(&self, act: &mut dyn FnMut());
}

/// Keeps connections of `Node::write`; `db.rs` does.
pub(crate) trait Kept: Send + Sync {
    /// How many of one database there are at most, and how many there may be.
    fn usage(&self) -> (usize, usize);
}

/// Who leads, as this node sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leadership {
    pub(crate) role: Role,
    pub(crate) term: Term,
    pub(crate) leader: Option<NodeId>,
}

/// How far the applier is. One value under one lock: what is settled must not be put together from two moments.
#[derive(Clone, Copy, Default)]
pub(crate) struct Progress {
    /// The last entry that is applied and shown.
    pub(crate) applied: EntryId,
    /// The first part of any transaction of which more parts may come.
    split_floor: Option<LogIndex>,
}

impl Progress {
    /// The last applied entry such that it and all before it are done with: no part of a transaction is among them whose
    /// other parts may still come. A start must not begin behind it.
    pub(crate) fn settled(self) -> LogIndex {
        let before = |floor: LogIndex| LogIndex(floor.0.saturating_sub(1));
        let floor = self.split_floor.filter(|_| !planted::is(Bug::SettledIsApplied));
        floor.map_or(self.applied.index, |floor| before(floor).min(self.applied.index))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// See the module's text.
pub(crate) struct Shared {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    /// Random for each start: marks the entries that this process proposed.
    pub(crate) session: u64,
    pub(crate) config: Config,
    pub(crate) waiting: Waiting,
    mailbox: Sender<Input>,
    pub(crate) inbox: Arc<Inbox>,
    /// None before this node belongs to a cluster, and in a simulation.
    driver: OnceLock<Weak<dyn Turn>>,
    pub(crate) pending: Pending,
    pub(crate) databases: Databases,
    /// Parts of large transactions that had no effect, because their split was over.
    pub(crate) parts_refused: AtomicU64,
    /// Large transactions that came whole.
    pub(crate) splits_whole: AtomicU64,
    /// What came over the ports and was none of our words.
    malformed: Mutex<Malformed>,
    /// SQL sessions that are open.
    pub(crate) sessions: AtomicU64,
    /// Callers of the admin socket.
    pub(crate) callers: Arc<AtomicUsize>,
    /// Transactions of which some parts are applied, and not the last.
    pub(crate) open_splits: AtomicU64,
    /// Own ones that were given up, until the entry that says so is applied.
    pub(crate) unended: Unended,
    kept: OnceLock<Weak<dyn Kept>>,
    /// `None` until this node belongs to a cluster.
    pub(crate) catalogue: Mutex<Option<Catalogue>>,
    pub(crate) events: Events,
    transport: OnceLock<Weak<dyn Transport>>,
    home: OnceLock<(String, PathBuf)>,
    /// How far the backups and restores are that programs asked for, by the number that they gave them.
    pub(crate) jobs: Mutex<HashMap<u64, events::Progress>>,
    log: OnceLock<Arc<Log>>,
    /// What is to be written to the log waits for room on the disk.
    log_lacks_room: AtomicBool,
    /// A test looks at what is so in the middle of a large transaction.
    parts_held: AtomicBool,
    /// Nanoseconds that a caller waits for a decision: what `config` says, unless a test changed it.
    commit_timeout: AtomicU64,
    /// The last entry that a database may show although it is not applied yet; see `registry.rs`.
    reach: AtomicU64,
    /// The genesis of this node's cluster, for nodes that join.
    pub(crate) genesis: OnceLock<Genesis>,
    /// What keeps this node from founding a cluster, in words; empty once it has one.
    obstacles: Mutex<Vec<String>>,
    /// Whom a node that joins asks to be let in.
    pub(crate) doors: OnceLock<Vec<String>>,
    /// What other nodes said of themselves, each when it dialed last.
    heard: Mutex<Heard>,
    /// Where members may be instead, as this node was told at its start.
    hints: Mutex<BTreeMap<NodeId, String>>,
    pub(crate) core_status: Mutex<Option<CoreStatus>>,
    /// Leadership, progress, trouble or the end: anything that more than one kind of caller waits for.
    pub(crate) changed: Signal,
    leadership: Mutex<Leadership>,
    progress: Mutex<Progress>,
    history: Mutex<History>,
    /// In order: a core that takes the place of another one is asked again, and a simulated run must be the same each time.
    reads: Mutex<BTreeMap<u64, Option<LogIndex>>>,
    next_read: AtomicU64,
    closing: AtomicBool,
    stopped: AtomicBool,
    trouble: Mutex<Option<String>>,
    removed: AtomicBool,
    /// Index of the last entry that changed catalogue or members.
    changed_at: AtomicU64,
    /// Changes of the members that the catalogue refused and the core has not heard of.
    refused_changes: Mutex<BTreeSet<LogIndex>>,
    /// The core does not need the entries up to here any more; their files may go.
    compacted: Mutex<Option<LogIndex>>,
    /// The core has let go of the entries up to here, whether their files are gone or not.
    core_start: AtomicU64,
    pub(crate) findings: Mutex<Findings>,
    pub(crate) snapshots: Snapshots,
    /// The end, for the upkeep.
    pub(crate) upkeep: Signal,
}

impl Shared {
    #[allow(clippy::too_many_arguments, reason = "the one constructor of the one hub")]
    pub(crate) fn new(
        id: NodeId,
        incarnation: Incarnation,
        session: u64,
        config: Config,
        waiting: Waiting,
        mailbox: Sender<Input>,
        databases: Databases,
    ) -> Shared {
        let commit_timeout = AtomicU64::new(nanoseconds(config.commit_timeout));
        Shared {
            id,
            incarnation,
            session,
            inbox: Inbox::of(config.inbox_limit),
            config,
            waiting,
            mailbox,
            driver: OnceLock::new(),
            pending: Pending::default(),
            databases,
            parts_refused: AtomicU64::new(0),
            splits_whole: AtomicU64::new(0),
            malformed: Mutex::default(),
            sessions: AtomicU64::new(0),
            callers: Arc::default(),
            open_splits: AtomicU64::new(0),
            unended: Unended::default(),
            kept: OnceLock::new(),
            catalogue: Mutex::new(None),
            events: Events::default(),
            transport: OnceLock::new(),
            home: OnceLock::new(),
            jobs: Mutex::default(),
            log: OnceLock::new(),
            log_lacks_room: AtomicBool::new(false),
            parts_held: AtomicBool::new(false),
            commit_timeout,
            reach: AtomicU64::new(0),
            genesis: OnceLock::new(),
            obstacles: Mutex::default(),
            doors: OnceLock::new(),
            heard: Mutex::default(),
            hints: Mutex::default(),
            core_status: Mutex::new(None),
            changed: Signal::default(),
            leadership: Mutex::new(Leadership { role: Role::Follower, term: Term(0), leader: None }),
            progress: Mutex::default(),
            history: Mutex::new(History::new(EntryId::default())),
            reads: Mutex::default(),
            next_read: AtomicU64::new(1),
            closing: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            trouble: Mutex::new(None),
            removed: AtomicBool::new(false),
            changed_at: AtomicU64::new(0),
            refused_changes: Mutex::default(),
            compacted: Mutex::new(None),
            core_start: AtomicU64::new(0),
            findings: Mutex::default(),
            snapshots: Snapshots::default(),
            upkeep: Signal::default(),
        }
    }

    /// The way to the other nodes, as long as this node runs; none on a node without an address.
    pub(crate) fn transport(&self) -> Option<Arc<dyn Transport>> {
        self.transport.get()?.upgrade()
    }

    pub(crate) fn set_transport(&self, transport: &Arc<dyn Transport>) {
        // Set once, by whoever started the node.
        let _ = self.transport.set(Arc::downgrade(transport));
    }

    /// Under which name SQLite knows this node.
    pub(crate) fn vfs_name(&self) -> &str {
        // Set before anybody has the node.
        self.home.get().map_or("", |(name, _)| name)
    }

    /// The data directory.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.home.get().map(|(_, dir)| dir.as_path())
    }

    pub(crate) fn set_home(&self, vfs_name: &str, dir: &Path) {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
        let _ = self.home.set((vfs_name.to_string(), dir));
    }

    /// First entry of the log, and its bytes on disk.
    pub(crate) fn log_extent(&self) -> (LogIndex, u64) {
        self.log.get().map_or((LogIndex(0), 0), |log| (log.start().index.next(), log.bytes()))
    }

    /// The entry before the first one of the log; 0 before there is a log.
    pub(crate) fn log_start(&self) -> LogIndex {
        self.log.get().map_or(LogIndex(0), |log| log.start().index)
    }

    /// The entry before the first one that this node still sends to others. The core lets go of entries before their files
    /// go, and those may stay for long: who has less than this needs a snapshot all the same.
    pub(crate) fn core_start(&self) -> LogIndex {
        let core = if planted::is(Bug::OfferByFiles) { 0 } else { self.core_start.load(Ordering::Acquire) };
        LogIndex(core).max(self.log_start())
    }

    /// A node goes on by this log behind the entry of a snapshot that it installs, or has installed: the log is kept from
    /// there on, if it has not begun behind it.
    pub(crate) fn pin(&self, peer: NodeId, index: LogIndex) {
        if index >= self.core_start() {
            self.snapshots.views.pin(peer, index, self.waiting.clock.now());
        }
    }

    /// Does something while nothing is applied.
    pub(crate) fn between_entries(&self, act: &mut dyn FnMut()) {
        match self.driver() {
            Some(driver) => driver.between_entries(act),
            None => act(),
        }
    }

    pub(crate) fn set_log(&self, log: &Arc<Log>) {
        let _ = self.log.set(log.clone());
    }

    /// The log, once there is one.
    pub(crate) fn log(&self) -> Option<&Arc<Log>> {
        self.log.get()
    }

    pub(crate) fn hold_parts(&self, held: bool) {
        self.parts_held.store(held, Ordering::Release);
        self.changed.notify();
    }

    /// Waits until parts are not held any more, which they are in tests alone.
    pub(crate) fn await_parts_free(&self) {
        let held = || self.parts_held.load(Ordering::Acquire) && !self.is_stopped();
        if held() {
            self.changed.wait(&self.waiting, Duration::MAX, Duration::from_millis(20), || (!held()).then_some(()));
        }
    }

    /// How long a caller waits for what becomes of its proposal.
    pub(crate) fn commit_timeout(&self) -> Duration {
        Duration::from_nanos(self.commit_timeout.load(Ordering::Acquire))
    }

    pub(crate) fn set_commit_timeout(&self, timeout: Duration) {
        self.commit_timeout.store(nanoseconds(timeout), Ordering::Release);
    }

    pub(crate) fn set_log_lacks_room(&self, lacks: bool) {
        self.log_lacks_room.store(lacks, Ordering::Release);
    }

    /// Whoever keeps on the disk what can be had otherwise shall let go of it.
    pub(crate) fn log_lacks_room(&self) -> bool {
        self.log_lacks_room.load(Ordering::Acquire)
    }

    /// The founding goes on, or not, for these reasons.
    pub(crate) fn set_obstacles(&self, obstacles: Vec<String>) {
        *self.obstacles.lock() = obstacles;
    }

    /// What keeps this node from founding a cluster.
    pub(crate) fn obstacles(&self) -> Vec<String> {
        self.obstacles.lock().clone()
    }

    /// Whether a node is a member, as far as this one knows.
    pub(crate) fn is_member(&self, node: NodeId) -> bool {
        self.with_catalogue(|catalogue| catalogue.member(node).is_some()) == Ok(true)
    }

    /// Somebody said over a port what is none of our words, `what`; their connection is ended.
    pub(crate) fn note_malformed(&self, who: &str, port: &str, what: &str) {
        // It may have what they said in it, however long that is.
        let what: String = what.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let tell = self.malformed.lock().note(who);
        let rest = match tell {
            Tell::No => return tracing::debug!(node = self.id.0, "{who} said over {port}: {what}"),
            Tell::Yes => "what else comes from there",
            Tell::Last => "what else comes, from whomever,",
        };
        tracing::warn!(
            node = self.id.0,
            "{who} said over {port} what is not of shoal: {what}; that connection is ended. Another program speaks to it, or something \
             damages what is sent; {rest} is counted (`malformed` in the status) and not told"
        );
    }

    /// How often somebody did.
    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.lock().count()
    }

    pub(crate) fn set_kept(&self, kept: &Arc<dyn Kept>) {
        // Set once, by whoever started the node.
        let _ = self.kept.set(Arc::downgrade(kept));
    }

    /// See [`Kept::usage`]; none in a simulation.
    pub(crate) fn kept(&self) -> Option<(usize, usize)> {
        Some(self.kept.get()?.upgrade()?.usage())
    }

    /// Who turns the engine, from now on.
    pub(crate) fn set_driver(&self, driver: &Arc<dyn Turn>) {
        let _ = self.driver.set(Arc::downgrade(driver));
    }

    fn driver(&self) -> Option<Arc<dyn Turn>> {
        self.driver.get()?.upgrade()
    }

    /// Puts something into the engine's mailbox, for whoever turns it next.
    pub(crate) fn send(&self, input: Input) {
        let _ = self.mailbox.send(input);
    }

    /// Puts something into the engine's mailbox and turns the engine here, if nobody else does. The caller holds no lock,
    /// of the node or of the VFS.
    pub(crate) fn deliver(&self, input: Input) {
        self.send(input);
        if let Some(driver) = self.driver() {
            driver.turn(false);
        }
    }

    /// Like [`Shared::deliver`], for a caller who waits for what becomes of it: it may write the log here, too.
    pub(crate) fn deliver_and_write(&self, input: Input) {
        self.send(input);
        if let Some(driver) = self.driver() {
            driver.turn(true);
        }
    }

    /// SQLite has given WRITE back. The caller holds no lock.
    pub(crate) fn on_published(&self) {
        if let Some(driver) = self.driver() {
            driver.on_published();
        }
    }

    /// Puts something into the engine's mailbox. After the end nobody listens, which is fine: whoever waits is told by
    /// `pending` or `stopped`.
    pub(crate) fn post(&self, input: Input) {
        self.send(input);
        if let Some(driver) = self.driver() {
            driver.wake();
        }
    }

    pub(crate) fn leadership(&self) -> Leadership {
        *self.leadership.lock()
    }

    pub(crate) fn set_leadership(&self, new: Leadership) {
        let old = std::mem::replace(&mut *self.leadership.lock(), new);
        if (old.term, old.leader) != (new.term, new.leader) {
            self.events.tell(&Event::LeaderChanged { term: new.term, leader: new.leader });
        }
        self.changed.notify();
    }

    /// The last entry that this node has applied and shows.
    pub(crate) fn applied(&self) -> EntryId {
        self.progress.lock().applied
    }

    /// See [`Progress`].
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.lock()
    }

    /// This node belongs to a cluster, with this state before the first entry that will be applied.
    pub(crate) fn begin(&self, catalogue: Catalogue, applied: EntryId) {
        self.changed_at.store(applied.index.0, Ordering::Release);
        // A core that begins has what the log has.
        self.core_start.store(0, Ordering::Release);
        *self.catalogue.lock() = Some(catalogue);
        *self.progress.lock() = Progress { applied, split_floor: None };
        *self.history.lock() = History::new(applied);
        self.changed.notify();
    }

    /// Databases may show entries up to this one before they are applied.
    pub(crate) fn set_reach(&self, reach: LogIndex) {
        self.reach.store(reach.0, Ordering::Release);
    }

    pub(crate) fn reach(&self) -> LogIndex {
        LogIndex(self.reach.load(Ordering::Acquire))
    }

    /// The anchor that the log has now.
    pub(crate) fn anchor(&self) -> Option<(EntryId, Anchor)> {
        let log = self.log.get()?;
        let anchor = log.anchor();
        let term = log.term(anchor.applied)?;
        Some((EntryId { index: anchor.applied, term }, anchor))
    }

    /// What the last process on this directory knew of the entries before.
    pub(crate) fn set_history(&self, history: History) {
        *self.history.lock() = history;
    }

    /// What the applier found at `index`, before it reports the entry as applied.
    pub(crate) fn found(&self, index: LogIndex, finding: Finding) {
        self.history.lock().note(index, finding);
    }

    /// What an anchor carries besides members.
    pub(crate) fn registry(&self, catalogue: &[u8]) -> Bytes {
        self.history.lock().encode(catalogue).into()
    }

    /// What this node can prove of the transaction that was proposed as `entry`.
    pub(crate) fn outcome_of(&self, entry: EntryId) -> ReceiptOutcome {
        let applied = self.applied().index;
        match self.history.lock().outcome(entry) {
            // Known from before the start, but not shown again yet.
            ReceiptOutcome::Committed(index) if index > applied.0 => ReceiptOutcome::Unknown(Unsettled::Undecided),
            ReceiptOutcome::Unknown(_) if planted::is(Bug::ReceiptByGuess) => ReceiptOutcome::NotCommitted,
            outcome => outcome,
        }
    }

    /// The receipt of a transaction of `database` that this node proposed as `entry`.
    pub(crate) fn receipt(&self, database: DatabaseId, entry: EntryId) -> Option<Receipt> {
        let cluster = self.with_catalogue(|catalogue| catalogue.cluster()).ok()?;
        Some(Receipt { cluster, node: self.id, database: database.0, entry })
    }

    /// Changes the catalogue; only the applier does, and there is one once it runs.
    pub(crate) fn with_catalogue<T>(&self, act: impl FnOnce(&mut Catalogue) -> T) -> Result<T, String> {
        self.catalogue.lock().as_mut().map(act).ok_or_else(|| "no cluster, no catalogue".to_string())
    }

    /// Who this node is by now, as it tells others.
    pub(crate) fn introduction(&self) -> Introduction {
        let catalogue = self.catalogue.lock();
        let bound = catalogue.as_ref().is_some_and(|catalogue| catalogue.binds(self.id, self.incarnation));
        let cluster = catalogue.as_ref().map(|catalogue| catalogue.cluster());
        Introduction { cluster, incarnation: self.incarnation, bound }
    }

    /// Changes the catalogue by what the entry at `index` says.
    pub(crate) fn change_catalogue<T>(
        &self,
        index: LogIndex,
        act: impl FnOnce(&mut Catalogue) -> T,
    ) -> Result<T, String> {
        self.with_catalogue(|catalogue| {
            self.note_change(index);
            act(catalogue)
        })
    }

    /// The entry at `index` changed the members, or the catalogue, whose lock is held then.
    pub(crate) fn note_change(&self, index: LogIndex) {
        self.changed_at.fetch_max(index.0, Ordering::AcqRel);
    }

    /// Index of the last entry that changed catalogue or members.
    pub(crate) fn changed_at(&self) -> LogIndex {
        LogIndex(self.changed_at.load(Ordering::Acquire))
    }

    /// The catalogue refused the change of the members at `index`. Called before it is reported applied.
    pub(crate) fn refuse_change(&self, index: LogIndex) {
        self.refused_changes.lock().insert(index);
    }

    /// The refused changes up to `index`, each once.
    pub(crate) fn take_refused_changes(&self, index: LogIndex) -> BTreeSet<LogIndex> {
        let mut refused = self.refused_changes.lock();
        let later = refused.split_off(&index.next());
        std::mem::replace(&mut *refused, later)
    }

    /// The core's log begins after `start` now.
    pub(crate) fn set_compacted(&self, start: LogIndex) {
        self.core_start.fetch_max(start.0, Ordering::AcqRel);
        *self.compacted.lock() = Some(start);
    }

    /// Up to where the log may drop its files, once.
    pub(crate) fn take_compacted(&self) -> Option<LogIndex> {
        self.compacted.lock().take()
    }

    /// An entry was applied; `split_floor` is the first part of any transaction of which more parts may come.
    pub(crate) fn set_applied(&self, applied: EntryId, split_floor: Option<LogIndex>) {
        // Who is told of a decision may ask for its proof at once.
        self.history.lock().on_applied(applied);
        *self.progress.lock() = Progress { applied, split_floor };
        self.pending.on_applied(applied);
        self.changed.notify();
    }

    /// Whether nothing can be committed here without another node.
    pub(crate) fn needs_others(&self) -> bool {
        let core = self.core_status.lock();
        core.as_ref().is_some_and(|core| core.membership.voters.iter().any(|voter| *voter != self.id))
    }

    /// Who could repair a copy that is damaged on this node.
    pub(crate) fn help(&self) -> Help {
        let core = self.core_status.lock();
        core.as_ref().map_or(Help::Voters, |core| Help::of(self.id, &core.membership))
    }

    /// Whether this node leads and has applied an entry of its own term: then it has applied all that was committed
    /// before, and may grant write locks.
    pub(crate) fn is_ready_leader(&self) -> bool {
        let leadership = self.leadership();
        leadership.role == Role::Leader && self.applied().term == leadership.term
    }

    /// Registers a linearizable read and asks the engine for its index.
    pub(crate) fn begin_read(&self) -> u64 {
        let request = self.next_read.fetch_add(1, Ordering::Relaxed);
        self.reads.lock().insert(request, None);
        self.deliver(Input::Read { request });
        request
    }

    pub(crate) fn on_read_index(&self, request: u64, index: LogIndex) {
        if let Some(slot) = self.reads.lock().get_mut(&request) {
            *slot = Some(index);
        }
        self.changed.notify();
    }

    /// Reads that no index was found for yet.
    pub(crate) fn unanswered_reads(&self) -> Vec<u64> {
        self.reads.lock().iter().filter(|(_, index)| index.is_none()).map(|(request, _)| *request).collect()
    }

    pub(crate) fn read_index(&self, request: u64) -> Option<LogIndex> {
        *self.reads.lock().get(&request)?
    }

    pub(crate) fn end_read(&self, request: u64) {
        if self.reads.lock().remove(&request).flatten().is_none() {
            self.post(Input::CancelRead { request });
        }
    }

    /// From now on no transaction begins; those that were proposed go on.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.inbox.close();
        self.changed.notify();
    }

    /// Whether the node is on its way down, or is down.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire) || self.is_stopped()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Why this node does not acknowledge any more, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// This node cannot keep promises any more: it stops acknowledging, and says so once. It goes on serving reads.
    pub(crate) fn set_trouble(&self, what: String) {
        if self.end_promises(&what) {
            self.events.tell(&Event::DiskTrouble { what });
        }
    }

    /// The copy of a database was found damaged.
    pub(crate) fn diverged(&self, database: DatabaseId, what: String) {
        if let Some(db) = self.databases.get(database) {
            self.events.tell(&Event::DivergenceFound { database: db.name().to_string(), what });
        }
    }

    /// How far this node knows the log to be committed; 0 before its core runs.
    pub(crate) fn committed(&self) -> LogIndex {
        self.core_status.lock().as_ref().map_or(LogIndex(0), |core| core.committed)
    }

    /// Whether this node's id was removed from its cluster: it was a member and is none any more, or it asked to be let
    /// in with such an id.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// This node's id was removed, before it was let in or since: as with trouble, it acknowledges nothing from here
    /// on.
    pub(crate) fn set_removed(&self, what: String) {
        let was_told = self.removed.swap(true, Ordering::AcqRel);
        // One that was in trouble before keeps those words, and must hear this all the same.
        self.end_promises(&what);
        if !was_told {
            self.events.tell(&Event::Removed { what });
        }
    }

    /// Whether this is the first reason.
    fn end_promises(&self, what: &str) -> bool {
        let mut trouble = self.trouble.lock();
        let first = trouble.is_none();
        if first {
            tracing::error!(node = self.id.0, "{what}");
            *trouble = Some(what.to_string());
        }
        drop(trouble);
        self.changed.notify();
        first
    }

    /// The end, for the callers: every wait ends, every connection gets an error.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.inbox.close();
        self.pending.stop();
        self.snapshots.views.close_all();
        self.databases.stop();
        self.events.end();
        self.upkeep.notify();
        self.changed.notify();
    }

    /// The moment at which a wait that begins now and may take `limit` ends.
    pub(crate) fn deadline(&self, limit: Duration) -> Duration {
        self.waiting.clock.now().saturating_add(limit)
    }
}

/// A handle to what the threads share.
pub(crate) type Hub = Arc<Shared>;
