//! Whoever brings an event turns the engine.
//!
//! Handing an event over to another thread costs tens of microseconds when that thread sleeps, and a commit is a chain of
//! events. So the engine lies behind a lock, and the thread that puts something into the mailbox turns it, if nobody else
//! does at that moment: a caller its proposal, a reader of the network a message, the log thread what it has on disk. In
//! the same way whoever gave the applier something cheap to do does it, and a caller who has to wait for the disk anyway
//! writes the log itself, if nobody else does: a commit on a node alone changes no thread.
//!
//! **Nothing is left lying.** A thread that finds the engine taken goes away; whoever has it must see what that thread
//! brought. Both sides write first and look afterwards, with a full fence between: the bringer fills the mailbox, then
//! tries the lock; the holder frees the lock, then looks into the mailbox. One of them sees the other. The same holds for
//! the applier and its queue.
//!
//! **Order.** What a turn wants goes into queues while the engine's lock is held, so batches, messages and entries never
//! overtake each other.
//!
//! **Who is not kept.** No turn waits for a disk or a socket, and the engine's lock is not held while the log is written.
//! Only a caller who commits may write, one batch, and not while the disk is slow: what its commit waits for beyond
//! `commit_timeout` is at most one sync that stalls. Readers, ticks and heartbeats never wait for a disk. A caller or a
//! reader turns the engine a few times at most; if there is more, it wakes the Raft thread. It applies nothing but its own
//! node's transactions that SQLite publishes, and entries without content; all else is the apply thread's. A caller holds
//! no lock of the VFS or the node while it is in here.
//!
//! A panic in a turn ends the engine, not the thread that happened to turn it: the node stops and says so. With the engine,
//! however it ends, all waits for a decision end: nobody will bring one. What they waited for may be in the log, so they are told that
//! it is not known. Why comes first: whoever is woken, and tries again, is told.
//!
//! Two things want all of it to stand still, and take the locks in this order: `applier`, `seat`, `disk`. A read view is cut
//! between two entries, and a snapshot takes the place of the log.
//!
//! Deliberately absent: what a turn or a step of the applier means.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex, MutexGuard};
use shoaldb_vfs::Database;
use shoaldb_vfs::transaction::Position;

use crate::appender::Appender;
use crate::apply::{Applier, Step};
use crate::engine::{Engine, NO_ROOM, Outlet};
use crate::events::Event;
use crate::found::format::FoundMessage;
use crate::log::{Log, LogError};
use crate::net::Transport;
use crate::raft::{Core, CoreStatus, PersistBatch, Role};
use crate::shared::{Hub, Input, Leadership, Turn};
use crate::types::{LogEntry, LogIndex, Message, NodeId};

/// Messages taken from the mailbox in one turn: enough to share a sync, few enough to answer soon.
const INPUTS_PER_TURN: usize = 512;
/// Turns that a thread makes for others, after its own.
const TURNS_FOR_OTHERS: usize = 2;
/// How long a thread that published waits for somebody who is just applying something small.
const A_MOMENT: Duration = Duration::from_micros(20);

/// A caller does not write more than this for others while its own commit waits.
const WRITE_BY_CALLER: u64 = 256 << 10;
/// Between two attempts to do what there was no room for.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// A sync that took longer than this makes the disk a slow one, for so long.
const SLOW_SYNC: Duration = Duration::from_millis(20);
const SLOW_FOR: Duration = Duration::from_secs(1);

/// The engine and where its effects go.
struct Seat {
    engine: Engine,
    out: Wires,
    /// When the Raft thread will turn it, if nobody rings, by the node's clock.
    turned_by: Duration,
}

impl Seat {
    /// Whether the Raft thread sleeps for too long.
    fn wants_earlier_turn(&self) -> bool {
        self.engine.turn_by().is_some_and(|by| by < self.turned_by)
    }
}

/// Where the engine's effects go.
struct Wires {
    batches: Arc<Mutex<VecDeque<PersistBatch>>>,
    entries: Arc<Mutex<VecDeque<LogEntry>>>,
    transport: Option<Arc<dyn Transport>>,
}

impl Outlet for Wires {
    fn persist(&mut self, batch: PersistBatch) {
        self.batches.lock().push_back(batch);
    }

    fn send(&mut self, message: Message) {
        if let Some(transport) = &self.transport {
            transport.send(message);
        }
    }

    fn send_found(&mut self, to: NodeId, message: FoundMessage) {
        if let Some(transport) = &self.transport {
            transport.send_found(to, message);
        }
    }

    fn apply(&mut self, entries: Vec<LogEntry>) {
        self.entries.lock().extend(entries);
    }
}

/// A bell that a thread waits for; ringing it twice is ringing it once. Whoever waits sleeps at once: a channel would look
/// again and again for a while first, on a core that another thread of the same commit needs.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        if !std::mem::replace(&mut *self.rung.lock(), true) {
            self.changed.notify_one();
        }
    }

    fn wait(&self) {
        let mut rung = self.rung.lock();
        while !std::mem::take(&mut *rung) {
            self.changed.wait(&mut rung);
        }
    }

    /// Whether it rang before this moment.
    fn wait_until(&self, until: Instant) -> bool {
        let mut rung = self.rung.lock();
        while !std::mem::take(&mut *rung) {
            if self.changed.wait_until(&mut rung, until).timed_out() {
                return std::mem::take(&mut *rung);
            }
        }
        true
    }
}

/// What the applier's thread should do next.
pub(crate) enum Work {
    /// Wait for the bell.
    Rest,
    /// Wait until the database shows this position, which SQLite will make it do.
    Await(Arc<Database>, Position),
    /// Wait for so long, whatever comes.
    Pause(Duration),
    /// End.
    End,
}

/// Makes a snapshot count: the core to go on with, and the entry that it begins behind; none if the log has got so far.
type Install<'a> = &'a mut dyn FnMut(&CoreStatus) -> Result<Option<(Core, LogIndex)>, String>;

/// The log and who writes it.
struct Disk {
    log: Arc<Log>,
    appender: Appender,
    /// An append failed: nothing is appended any more.
    failed: bool,
    slow_until: Option<Instant>,
    /// While something waits in the appender, since there was no room: only the log thread writes, and not before this.
    retry_at: Option<Instant>,
}

/// See the module's text.
pub(crate) struct Driver {
    hub: Hub,
    mailbox: Receiver<Input>,
    seat: Mutex<Option<Seat>>,
    /// For the Raft thread: there is something in the mailbox.
    raft: Bell,
    batches: Arc<Mutex<VecDeque<PersistBatch>>>,
    disk: Mutex<Disk>,
    /// For the log thread: there are batches.
    to_write: Bell,
    /// For the thread that prepares segments: the log has used one.
    spare_wanted: Bell,
    /// The node ends; what is in the queues is still written.
    over: AtomicBool,
    entries: Arc<Mutex<VecDeque<LogEntry>>>,
    applier: Mutex<Applier>,
    /// For the apply thread: there are entries.
    apply: Bell,
    /// The applier met an entry that it must not apply, or the node ends.
    apply_over: AtomicBool,
    /// The applier waits for SQLite to show a transaction, and whoever publishes one shall step it.
    awaits: AtomicBool,
}

impl Driver {
    pub(crate) fn new(
        hub: &Hub,
        mailbox: Receiver<Input>,
        engine: Engine,
        log: Arc<Log>,
        transport: Option<Arc<dyn Transport>>,
    ) -> Driver {
        let entries = Arc::new(Mutex::new(VecDeque::new()));
        let batches = Arc::new(Mutex::new(VecDeque::new()));
        let out = Wires { batches: batches.clone(), entries: entries.clone(), transport };
        Driver {
            hub: hub.clone(),
            mailbox,
            seat: Mutex::new(Some(Seat { engine, out, turned_by: Duration::ZERO })),
            raft: Bell::default(),
            batches,
            disk: Mutex::new(Disk {
                log,
                appender: Appender::default(),
                failed: false,
                slow_until: None,
                retry_at: None,
            }),
            to_write: Bell::default(),
            spare_wanted: Bell::default(),
            over: AtomicBool::new(false),
            entries,
            applier: Mutex::new(Applier::new(hub.clone())),
            apply: Bell::default(),
            apply_over: AtomicBool::new(false),
            awaits: AtomicBool::new(false),
        }
    }

    /// The Raft thread's part: ticks, and whatever others left to it. Returns when the node stops or the engine cannot go
    /// on.
    pub(crate) fn tick_until_stopped(&self) {
        let tick = self.hub.config.tick();
        let mut next_tick = Instant::now() + tick;
        loop {
            let due = Instant::now() >= next_tick;
            if due {
                // Ticks that were missed (a stopped process, a debugger) are not caught up with: time was not ours.
                next_tick = (next_tick + tick).max(Instant::now());
            }
            let mut seat = self.seat.lock();
            if !self.turn_once(&mut seat, due) {
                return;
            }
            let deadline = self.note_next_turn(&mut seat, next_tick);
            drop(seat);
            self.write_what_is_cheap(false);
            // At a tick also what somebody who published should have gone on with: a connection may just have ended.
            let patience = due.then_some(Duration::ZERO);
            self.apply_what_is_cheap(patience);
            fence(Ordering::SeqCst);
            if self.mailbox.is_empty() {
                self.raft.wait_until(deadline);
            }
        }
    }

    /// Until when the Raft thread may sleep: until the next tick, or for a moment, as long as commits follow one another.
    /// Written down while the engine is ours, so that whoever turns it afterwards knows.
    fn note_next_turn(&self, seat: &mut Option<Seat>, next_tick: Instant) -> Instant {
        let Some(seat) = seat else { return next_tick };
        let (now, instant) = (self.hub.waiting.clock.now(), Instant::now());
        let tick = now + next_tick.saturating_duration_since(instant);
        let busy = seat.engine.busy_until().filter(|until| *until > now);
        seat.turned_by = seat.engine.turn_by().or(busy).map_or(tick, |soon| soon.min(tick));
        instant + seat.turned_by.saturating_sub(now)
    }

    /// Takes what is in the mailbox and turns once. `false` if the engine is over: then the seat is empty for good.
    fn turn_once(&self, seat: &mut Option<Seat>, tick: bool) -> bool {
        let Some(Seat { engine, out, .. }) = seat else { return false };
        let turned = catch_unwind(AssertUnwindSafe(|| {
            for input in self.mailbox.try_iter().take(INPUTS_PER_TURN) {
                if matches!(input, Input::Stop) {
                    return false;
                }
                engine.on_input(input);
            }
            if tick {
                engine.on_tick();
            }
            engine.turn(out)
        }));
        let goes_on = turned.unwrap_or_else(|_| {
            self.hub.set_trouble(format!("node {} stopped: its raft engine panicked", self.hub.id));
            false
        });
        if !goes_on {
            *seat = None;
            end_decisions(&self.hub);
        }
        goes_on
    }

    /// Turns the engine if nobody else does, and does what is cheap of what comes out.
    fn turn(&self, may_write: bool) {
        for _ in 0..=TURNS_FOR_OTHERS {
            fence(Ordering::SeqCst);
            // Whoever has it looks into the mailbox when he has let go of it.
            let Some(mut seat) = self.seat.try_lock() else { return };
            if seat.is_none() {
                return;
            }
            if !self.turn_once(&mut seat, false) {
                drop(seat);
                return self.raft.ring();
            }
            let rings = seat.as_ref().is_some_and(Seat::wants_earlier_turn);
            drop(seat);
            if rings {
                self.raft.ring();
            }
            self.write_what_is_cheap(may_write);
            self.apply_what_is_cheap(None);
            fence(Ordering::SeqCst);
            if self.mailbox.is_empty() {
                return;
            }
        }
        self.raft.ring();
    }

    /// Writes what is in the queue, if it needs no write, or if this caller may write; else the log thread does.
    fn write_what_is_cheap(&self, mut may_write: bool) {
        while !self.batches.lock().is_empty() {
            // Whoever writes looks into the queue when it is done.
            let Some(mut disk) = self.disk.try_lock() else { return };
            if disk.retry_at.is_some() {
                return;
            }
            let fast = disk.slow_until.is_none_or(|until| Instant::now() >= until);
            let taken = {
                let mut batches = self.batches.lock();
                let entries =
                    batches.iter().filter(|batch| Appender::needs_write(batch)).flat_map(|batch| &batch.entries);
                let bytes: u64 = entries.map(|entry| entry.data.len() as u64).sum();
                let free = !batches.iter().any(Appender::needs_write);
                if free || (may_write && fast && bytes <= WRITE_BY_CALLER) {
                    // One write for others is enough; what came meanwhile and needs none is done by the way.
                    may_write &= free;
                    std::mem::take(&mut *batches)
                } else {
                    VecDeque::new()
                }
            };
            let nothing = taken.is_empty();
            if !nothing {
                self.write(&mut disk, taken);
            }
            drop(disk);
            fence(Ordering::SeqCst);
            if nothing {
                return self.to_write.ring();
            }
        }
    }

    /// Appends the batches and tells the engine, which somebody has to turn afterwards.
    fn write(&self, disk: &mut Disk, batches: VecDeque<PersistBatch>) {
        if disk.failed {
            return;
        }
        let (begun, log) = (Instant::now(), disk.log.clone());
        let needed = batches.iter().any(Appender::needs_write);
        let appender = &mut disk.appender;
        let written = catch_unwind(AssertUnwindSafe(|| {
            appender.append(&log, batches, &mut |batch| self.hub.send(Input::Persisted { batch }))
        }));
        let failure = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) if error.can_be_tried_again() => return self.wait_for_room(disk, &error),
            Ok(Err(error)) => Some(error.in_words()),
            Err(_) => Some(format!("node {} stopped: appending to its log panicked", self.hub.id)),
        };
        if let Some(what) = failure {
            disk.failed = true;
            return self.hub.send(Input::Failed { what });
        }
        self.wait_no_more(disk);
        if needed {
            let now = Instant::now();
            if now - begun > SLOW_SYNC {
                disk.slow_until = Some(now + SLOW_FOR);
            }
            if disk.log.wants_spare() {
                self.spare_wanted.ring();
            }
        }
    }

    /// Nothing of a batch counts yet, and it may be tried again. For the engine that is a disk that does not answer: it
    /// acknowledges nothing, and hands leadership over if that lasts.
    fn wait_for_room(&self, disk: &mut Disk, error: &LogError) {
        if disk.retry_at.replace(Instant::now() + RETRY_AFTER).is_none() {
            let what = error.in_words_for_now();
            tracing::error!(node = self.hub.id.0, "{what}");
            self.hub.findings.lock().alarms.insert(NO_ROOM.to_string(), what.clone());
            self.hub.events.tell(&Event::DiskTrouble { what });
            self.hub.set_log_lacks_room(true);
            // The applier may have some that it can do without.
            self.apply.ring();
        }
        self.to_write.ring();
    }

    /// Nothing waits for room any more.
    fn wait_no_more(&self, disk: &mut Disk) {
        if disk.retry_at.take().is_some() {
            self.hub.set_log_lacks_room(false);
            self.hub.findings.lock().alarms.remove(NO_ROOM);
            tracing::info!(node = self.hub.id.0, "nothing waits for room in the log any more");
        }
    }

    /// The log thread's part: waits for batches and writes them. `false` when the node ends and all is written that there is
    /// room for.
    pub(crate) fn write_all(&self) -> bool {
        let mut disk = self.disk.lock();
        let over = self.over.load(Ordering::SeqCst);
        if over || disk.retry_at.is_none_or(|at| at <= Instant::now()) {
            let batches = std::mem::take(&mut *self.batches.lock());
            if !batches.is_empty() || disk.appender.waits() {
                self.write(&mut disk, batches);
            }
        }
        let retry_at = disk.retry_at;
        drop(disk);
        self.turn(false);
        fence(Ordering::SeqCst);
        match retry_at {
            Some(_) if over => return false,
            // Whatever comes meanwhile waits behind what waits already.
            Some(at) => _ = self.to_write.wait_until(at),
            None if !self.batches.lock().is_empty() => {}
            None if self.over.load(Ordering::SeqCst) => return false,
            None => self.to_write.wait(),
        }
        true
    }

    /// Waits until the log wants a spare segment; after one that could not be made, for `pause` instead, since every append
    /// wants one then. `false` when the node ends.
    pub(crate) fn wait_for_spare_wanted(&self, pause: Option<Duration>) -> bool {
        let Some(pause) = pause else {
            self.spare_wanted.wait();
            return !self.over.load(Ordering::SeqCst);
        };
        let until = Instant::now() + pause;
        while !self.over.load(Ordering::SeqCst) {
            if !self.spare_wanted.wait_until(until) {
                return true;
            }
        }
        false
    }

    /// Leaves entries to the applier, as a turn does.
    #[cfg(test)]
    pub(crate) fn leave_to_applier(&self, entries: Vec<LogEntry>) {
        self.entries.lock().extend(entries);
    }

    /// Whether somebody else could apply within this time.
    #[cfg(test)]
    pub(crate) fn applier_is_free_within(&self, limit: Duration) -> bool {
        self.applier.try_lock_for(limit).is_some()
    }

    /// Steps the applier as long as that costs nothing; the apply thread does the rest.
    fn apply_what_is_cheap(&self, patience: Option<Duration>) {
        if self.entries.lock().is_empty() && patience.is_none() {
            return;
        }
        let applier = match patience {
            Some(patience) => self.applier.try_lock_for(patience),
            None => self.applier.try_lock(),
        };
        let Some(mut applier) = applier else { return self.apply.ring() };
        let before = self.hub.applied().index;
        self.fill(&mut applier);
        let mut rest = false;
        while !self.apply_over.load(Ordering::Acquire) {
            if !applier.next_is_cheap() {
                rest = !applier.is_idle();
                break;
            }
            match self.step(&mut applier) {
                Step::Done => self.awaits.store(false, Ordering::SeqCst),
                Step::Idle => break,
                // SQLite may have shown it before it could know that somebody waits: one more look.
                Step::Waiting(..) if !self.awaits.swap(true, Ordering::SeqCst) => {}
                Step::Waiting(..) => break,
                // The apply thread knows when to try again.
                Step::NoRoom => {
                    rest = true;
                    break;
                }
                Step::Stopped(reason) => self.end_applying(&reason),
            }
        }
        self.tell_applied(&applier, before);
        drop(applier);
        fence(Ordering::SeqCst);
        if rest || !self.entries.lock().is_empty() {
            self.apply.ring();
        }
    }

    /// A step of the applier. A panic in it ends the applying, not the thread that happened to step it, which may be a caller's;
    /// and nobody may wait any longer for a decision that this step was to bring. Why comes first: whoever is woken, and tries
    /// again, is told.
    fn step(&self, applier: &mut Applier) -> Step {
        catch_unwind(AssertUnwindSafe(|| applier.step())).unwrap_or_else(|_| {
            let reason = "an entry: its applier panicked, start it again".to_string();
            self.hub.set_trouble(self.cannot_apply(&reason));
            self.hub.pending.stop();
            Step::Stopped(reason)
        })
    }

    fn fill(&self, applier: &mut Applier) {
        let entries = std::mem::take(&mut *self.entries.lock());
        applier.push(entries.into());
    }

    /// Whoever applied tells the engine while it still has the applier: the reports of two threads would overtake each other,
    /// and the core takes one that goes back for a mistake, and stops.
    fn tell_applied(&self, _applier: &MutexGuard<'_, Applier>, before: LogIndex) {
        let index = self.hub.applied().index;
        if index > before {
            self.hub.send(Input::Applied { index });
        }
    }

    fn end_applying(&self, reason: &str) {
        self.apply_over.store(true, Ordering::Release);
        self.hub.post(Input::Failed { what: self.cannot_apply(reason) });
    }

    fn cannot_apply(&self, reason: &str) -> String {
        format!(
            "node {} cannot apply {reason}; nothing later is applied here. If these words do not say what helps, start the \
             node again; if it stops there once more, let a new node take its place and keep this directory for a report",
            self.hub.id
        )
    }

    /// The apply thread's part: everything that waits, however large.
    pub(crate) fn apply_all(&self) -> Work {
        let mut applier = self.applier.lock();
        let before = self.hub.applied().index;
        let work = loop {
            if self.apply_over.load(Ordering::Acquire) {
                break Work::End;
            }
            self.fill(&mut applier);
            match self.step(&mut applier) {
                Step::Done => self.awaits.store(false, Ordering::SeqCst),
                Step::Idle => break Work::Rest,
                Step::Waiting(db, position) => break Work::Await(db, position),
                Step::NoRoom => break Work::Pause(RETRY_AFTER),
                Step::Stopped(reason) => self.end_applying(&reason),
            }
        };
        self.tell_applied(&applier, before);
        drop(applier);
        self.turn(false);
        work
    }

    /// Waits for [`Bell::ring`] of the apply thread.
    pub(crate) fn wait_for_entries(&self) {
        self.apply.wait();
    }

    /// Lets so much time pass, unless the node ends.
    pub(crate) fn pause_applying(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.apply_over.load(Ordering::Acquire) {
            if !self.apply.wait_until(until) {
                return;
            }
        }
    }

    /// Takes another core, behind a snapshot that `install` makes count. Nobody turns, writes or applies meanwhile, and what
    /// was on its way to log and applier is forgotten.
    pub(crate) fn exchange(&self, install: Install<'_>) {
        let mut applier = self.applier.lock();
        let mut seat = self.seat.lock();
        // What has come in is for the old core, and what it wants of the log is in the queue afterwards.
        while !self.mailbox.is_empty() {
            if !self.turn_once(&mut seat, false) {
                return self.raft.ring();
            }
        }
        let mut disk = self.disk.lock();
        let Some(there) = seat.as_mut() else { return };
        match install(&there.engine.core_status()) {
            Ok(None) => {}
            Ok(Some((core, applied))) => {
                self.batches.lock().clear();
                self.entries.lock().clear();
                // Of what came since then, reports are about things that are forgotten.
                for input in self.mailbox.try_iter().collect::<Vec<_>>() {
                    if !matches!(input, Input::Persisted { .. } | Input::Applied { .. } | Input::Compact { .. }) {
                        self.hub.send(input);
                    }
                }
                there.engine.exchange_core(core, applied);
                disk.appender = Appender::default();
                self.wait_no_more(&mut disk);
                *applier = Applier::new(self.hub.clone());
                self.awaits.store(false, Ordering::SeqCst);
            }
            Err(what) => self.hub.send(Input::Failed { what }),
        }
        drop((disk, seat, applier));
        self.hub.post(Input::Announce);
        self.apply.ring();
    }

    /// The node ends: the other threads shall, too.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.apply_over.store(true, Ordering::Release);
        for bell in [&self.apply, &self.to_write, &self.spare_wanted] {
            bell.ring();
        }
    }
}

/// Nobody turns the core of this node any more, or never did: it leads nothing, knows of no leader and decides nothing.
pub(crate) fn end_decisions(hub: &Hub) {
    hub.pending.stop();
    let term = hub.leadership().term;
    hub.set_leadership(Leadership { role: Role::Follower, term, leader: None });
}

impl Turn for Driver {
    fn turn(&self, may_write: bool) {
        Driver::turn(self, may_write);
    }

    fn wake(&self) {
        self.raft.ring();
    }

    fn between_entries(&self, act: &mut dyn FnMut()) {
        let applier = self.applier.lock();
        let index = self.hub.applied().index;
        self.hub.send(Input::Applied { index });
        let mut seat = self.seat.lock();
        self.turn_once(&mut seat, false);
        drop(seat);
        act();
        drop(applier);
        // Others may have left to this thread what it must leave to them.
        self.raft.ring();
        self.apply.ring();
        self.to_write.ring();
    }

    fn on_published(&self) {
        if !self.awaits.load(Ordering::SeqCst) {
            return;
        }
        self.apply_what_is_cheap(Some(A_MOMENT));
        self.turn(false);
    }
}
