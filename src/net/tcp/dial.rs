//! The dialing side: for each peer two lanes, each a bounded queue, a thread and a connection.
//!
//! Messages with much entry data go over the *bulk* lane, all others over the *small* one, so that a heartbeat never
//! waits behind a hundred megabytes. The two may overtake each other; Raft allows that.
//!
//! Whoever sends a small message writes it to the socket itself, as long as nothing waits before it and the socket takes it
//! without waiting: a thread that has to be woken first costs more than the message, on the way of every commit. What the
//! socket does not take is queued. The lane's thread takes everything that is queued (up to a batch) and writes it with
//! one call. When its connection ends, what is queued is dropped: it is old by the time the peer is back, and Raft sends
//! again what is still wanted.
//!
//! Deliberately absent: anything that is read, except the answer to the handshake; the peer's messages come over the
//! connections that the peer opens.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Shared;
use super::link::{self, Link, LinkError, Wait, connect, resolve};
use crate::found::format::FoundMessage;
use crate::net::frame::{self, FrameKind, FrameTooLong};
use crate::net::handshake::{Hello, Purpose, Reject, RejectReason, Welcome};
use crate::net::{Introduction, Unreached, codec};
use crate::types::{Message, NodeId};

/// Messages with more entry data than this take the bulk lane.
pub const BULK: usize = 64 << 10;
/// Most bytes that are written with one call, unless a single message is longer.
const BATCH: usize = 4 << 20;
/// How often an idle connection is looked at: a peer that restarted is dialed again within this time.
const IDLE_LOOK: Duration = Duration::from_millis(250);

/// What waits in a queue.
pub(super) enum Outgoing {
    Message(Box<Message>),
    Found(FoundMessage),
}

impl Outgoing {
    /// Appends it as a frame. Nothing that this node makes is too long for one.
    fn put(&self, out: &mut Vec<u8>) -> Result<(), FrameTooLong> {
        match self {
            Outgoing::Message(message) => frame::put(out, FrameKind::Message, |out| codec::encode(message, out)),
            Outgoing::Found(message) => {
                frame::put(out, FrameKind::Found, |out| out.extend_from_slice(&message.encode()))
            }
        }
    }
}

#[derive(Default)]
struct LaneState {
    queue: VecDeque<(usize, Outgoing)>,
    bytes: usize,
    overflowed: bool,
    stop: bool,
    redial: bool,
    open: Option<Open>,
    /// The thread is writing what it took.
    writing: bool,
    /// The end of a message whose beginning the socket has taken: goes before all else.
    rest: Vec<u8>,
}

impl LaneState {
    /// Writes a message at once, if nothing waits before it and the socket takes it without waiting. `false` if it is to be
    /// queued: an error is for the thread to find, which then dials again.
    fn write_now(&mut self, item: &Outgoing) -> bool {
        let Some(open) = &self.open else { return false };
        if self.writing || self.redial || self.overflowed || !self.queue.is_empty() || !self.rest.is_empty() {
            return false;
        }
        let mut frame = Vec::new();
        if item.put(&mut frame).is_err() {
            // The thread says that it is too long.
            return false;
        }
        match link::write_some(&open.stream, &frame) {
            Ok(written) => {
                self.rest = frame.split_off(written);
                true
            }
            Err(_) => false,
        }
    }
}

/// The open connection, as others need it.
struct Open {
    /// To end it from outside.
    stream: TcpStream,
    /// What we said of ourselves.
    said: Introduction,
    /// What the other side said of itself.
    welcome: Welcome,
}

/// One queue and its connection. Its lock is the last one taken, and never held during I/O that may wait.
pub(super) struct Lane {
    purpose: Purpose,
    limit: usize,
    state: Mutex<LaneState>,
    wake: Condvar,
}

enum Next {
    /// What was begun already, and what follows it.
    Batch(Vec<u8>, Vec<Outgoing>),
    Idle,
    End,
}

impl Lane {
    fn new(purpose: Purpose, limit: usize) -> Lane {
        Lane { purpose, limit, state: Mutex::default(), wake: Condvar::new() }
    }

    /// Sends or queues something, or drops it. Does not block. An empty queue takes anything, so that the longest message
    /// gets through.
    pub(super) fn push(&self, bytes: usize, item: Outgoing) {
        let mut state = self.state.lock();
        if state.stop || (state.bytes > 0 && state.bytes + bytes > self.limit) {
            state.overflowed = true;
        } else if self.purpose == Purpose::Peer && state.write_now(&item) {
            if state.rest.is_empty() {
                return;
            }
        } else {
            state.bytes += bytes;
            state.queue.push_back((bytes, item));
        }
        self.wake.notify_one();
    }

    /// Ends the connection; the lane then stops, or dials again.
    pub(super) fn end(&self, stop: bool) {
        let mut state = self.state.lock();
        state.stop |= stop;
        state.redial = true;
        if let Some(open) = state.open.take() {
            // An error says that it is closed already.
            let _ = open.stream.shutdown(Shutdown::Both);
        }
        self.wake.notify_one();
    }

    /// Ends a connection that `good` no longer likes; without one, dials again at once.
    fn recheck(&self, good: impl FnOnce(&Introduction, &Welcome) -> bool) {
        let keep = self.state.lock().open.as_ref().is_some_and(|open| good(&open.said, &open.welcome));
        if !keep {
            self.end(false);
        }
    }

    /// Bytes that wait, and how many may.
    pub(super) fn usage(&self) -> (usize, usize) {
        (self.state.lock().bytes, self.limit)
    }

    /// Whether it has a connection.
    pub(super) fn is_open(&self) -> bool {
        self.state.lock().open.is_some()
    }

    fn stopped(&self) -> bool {
        self.state.lock().stop
    }

    /// Waits for `pause`, or until the lane is to dial again or stop.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        while !state.redial && !state.stop && !self.wake.wait_until(&mut state, until).timed_out() {}
    }

    fn wait_for_work(&self) {
        let mut state = self.state.lock();
        while state.queue.is_empty() && !state.stop {
            self.wake.wait(&mut state);
        }
    }

    fn next(&self) -> Next {
        let until = Instant::now() + IDLE_LOOK;
        let mut state = self.state.lock();
        state.writing = false;
        while state.queue.is_empty() && state.rest.is_empty() && !state.overflowed && !state.stop && !state.redial {
            if self.wake.wait_until(&mut state, until).timed_out() {
                return Next::Idle;
            }
        }
        if state.stop || state.redial {
            return Next::End;
        }
        let mut batch = Vec::new();
        let mut taken = 0;
        while let Some((bytes, item)) = state.queue.pop_front() {
            batch.push(item);
            taken += bytes;
            if state.queue.front().is_none_or(|(next, _)| taken + next > BATCH) {
                break;
            }
        }
        state.bytes -= taken;
        state.writing = true;
        Next::Batch(std::mem::take(&mut state.rest), batch)
    }

    fn take_overflowed(&self) -> bool {
        std::mem::take(&mut self.state.lock().overflowed)
    }

    /// Takes a connection as if it had been opened, without the thread that reads the queue.
    #[cfg(test)]
    pub(super) fn take(&self, stream: TcpStream, said: Introduction, welcome: Welcome) {
        self.state.lock().open = Some(Open { stream, said, welcome });
    }

    /// How many items and bytes wait.
    #[cfg(test)]
    pub(super) fn queued(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.queue.len(), state.bytes)
    }

    /// Forgets the connection and what is queued for it.
    pub(super) fn reset(&self) {
        let mut state = self.state.lock();
        state.open = None;
        state.writing = false;
        state.rest = Vec::new();
        state.queue.clear();
        state.bytes = 0;
        state.overflowed = false;
    }
}

/// Why a peer is not connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    node: NodeId,
    /// Where it was dialed.
    address: String,
    why: String,
    /// One of the two nodes refused the other.
    pub(super) refused: bool,
    /// Nobody listens there; then `why` says what helps.
    nobody: bool,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} at {}: {}", self.node, self.address, self.why)
    }
}

/// One other node, as the dialing side knows it.
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) address: Mutex<String>,
    /// Where it may be instead: tried by turns.
    pub(super) hint: Mutex<Option<String>>,
    /// Dials that failed.
    failed: AtomicUsize,
    pub(super) small: Lane,
    pub(super) bulk: Lane,
    /// What went wrong last; `None` while connected.
    pub(super) trouble: Mutex<Option<Trouble>>,
    /// Since when nothing small gets through to it; `None` while it does.
    lost: Mutex<Option<Instant>>,
}

impl Peer {
    pub(super) fn new(node: NodeId, address: &str, limits: (usize, usize)) -> Peer {
        Peer {
            node,
            address: Mutex::new(address.to_string()),
            hint: Mutex::new(None),
            failed: AtomicUsize::new(0),
            small: Lane::new(Purpose::Peer, limits.0),
            bulk: Lane::new(Purpose::Bulk, limits.1),
            trouble: Mutex::new(None),
            lost: Mutex::new(Some(Instant::now())),
        }
    }

    /// Where it is to be reached now. A hint that proved right is kept to until a dial fails.
    pub(super) fn whereabouts(&self) -> String {
        let by_hint = self.failed.load(Ordering::Relaxed) % 2 == 1;
        let hint = self.hint.lock().clone().filter(|_| by_hint);
        hint.unwrap_or_else(|| self.address.lock().clone())
    }

    /// If it is not reached, and no refusal is the reason.
    pub(super) fn unreached(&self) -> Option<Unreached> {
        let age = self.lost.lock().as_ref()?.elapsed();
        let helps = |why: &str| format!("{why}; check its address and the network between");
        let (address, why) = match self.trouble.lock().as_ref() {
            Some(trouble) if trouble.refused => return None,
            Some(Trouble { address, why, nobody: true, .. }) => (address.clone(), why.clone()),
            Some(Trouble { address, why, .. }) => (address.clone(), helps(why)),
            None => (self.address.lock().clone(), helps("no answer yet")),
        };
        Some(Unreached { node: self.node, address, age, why })
    }

    /// Ends both connections.
    pub(super) fn end(&self, stop: bool) {
        self.small.end(stop);
        self.bulk.end(stop);
    }

    /// Ends the connections that would be opened otherwise now.
    pub(super) fn recheck(&self, shared: &Shared) {
        let now = shared.inbound.introduction();
        let good = |said: &Introduction, welcome: &Welcome| {
            *said == now && shared.inbound.check_welcome(self.node, welcome).is_ok()
        };
        self.small.recheck(good);
        self.bulk.recheck(good);
    }

    fn lane(&self, bulk: bool) -> &Lane {
        if bulk { &self.bulk } else { &self.small }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("refused by {address}: {reject}")]
    Refused { address: String, reject: Reject },
    #[error("{0}")]
    NotMeant(Reject),
    #[error("{0}")]
    Address(#[from] super::AddressError),
    #[error("cut off by a test")]
    Blocked,
}

impl DialError {
    /// Whether it is a verdict, and no accident that passes by itself.
    fn is_refusal(&self) -> bool {
        match self {
            DialError::NotMeant(_) | DialError::Address(_) => true,
            DialError::Refused { reject, .. } => reject.reason != RejectReason::Busy,
            DialError::Link(_) | DialError::Blocked => false,
        }
    }

    fn is_nobody(&self) -> bool {
        matches!(self, DialError::Link(error) if error.is_nobody())
    }

    /// Nothing was heard in time.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            DialError::Link(LinkError::TimedOut) => true,
            DialError::Link(LinkError::Io(error)) => error.kind() == std::io::ErrorKind::TimedOut,
            _ => false,
        }
    }
}

/// Opens a connection to `to` (or to whoever answers) and shakes hands.
pub(super) fn dial(
    address: &str,
    hello: &Hello,
    allow_remote: bool,
    timeout: Duration,
) -> Result<(Link, Welcome), DialError> {
    let deadline = Instant::now() + timeout;
    let addresses = resolve(address, allow_remote)?;
    let stream = connect(&addresses, timeout).map_err(LinkError::from)?;
    let mut link = Link::new(stream).map_err(LinkError::from)?;
    link.put(FrameKind::Hello, |out| hello.encode(out))?;
    let (kind, body) = link.read(&[FrameKind::Welcome, FrameKind::Reject], Wait::Until(deadline))?;
    if kind == FrameKind::Reject {
        let reject = Reject::decode(&body).map_err(LinkError::from)?;
        return Err(DialError::Refused { address: address.to_string(), reject });
    }
    let welcome = Welcome::decode(&body).map_err(LinkError::from)?;
    Ok((link, welcome))
}

/// The hello of this node.
pub(super) fn hello(shared: &Shared, said: Introduction, purpose: Purpose, to: NodeId) -> Hello {
    Hello {
        versions: shared.options.speaks,
        purpose,
        cluster: said.cluster,
        from: Some(shared.options.node),
        to: Some(to),
        incarnation: said.incarnation,
        address: shared.options.advertise.clone(),
        bound: said.bound,
    }
}

/// The thread of one lane.
pub(super) fn run(shared: &Arc<Shared>, peer: &Arc<Peer>, bulk: bool) {
    let lane = peer.lane(bulk);
    let mut failures = 0;
    while !lane.stopped() {
        if bulk {
            lane.wait_for_work();
        }
        let at = peer.whereabouts();
        let ended = match open(shared, peer, lane, &at) {
            Ok(mut link) => {
                failures = 0;
                pump(shared, peer, lane, &mut link).map_err(DialError::from)
            }
            Err(error) => {
                failures += 1;
                peer.failed.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        };
        lane.reset();
        if !bulk {
            peer.lost.lock().get_or_insert_with(Instant::now);
        }
        if lane.stopped() {
            return;
        }
        if let Err(error) = ended {
            if let DialError::Refused { reject, .. } = &error
                && reject.reason == RejectReason::Removed
            {
                shared.inbound.on_removed(peer.node, &reject.text);
            }
            let (refused, nobody) = (error.is_refusal(), error.is_nobody());
            let trouble = Trouble { node: peer.node, address: at, why: error.to_string(), refused, nobody };
            let told = peer.trouble.lock().replace(trouble.clone());
            match told.as_ref() != Some(&trouble) {
                true if nobody => tracing::info!("{trouble}; it is dialed again"),
                true => tracing::warn!("{trouble}"),
                false => {}
            }
        }
        shared.inbound.on_unreachable(peer.node);
        lane.pause(shared.backoff(failures));
    }
}

fn open(shared: &Shared, peer: &Peer, lane: &Lane, address: &str) -> Result<Link, DialError> {
    // From here on, whoever wants another connection says so again.
    lane.state.lock().redial = false;
    if shared.is_blocked(peer.node) {
        return Err(DialError::Blocked);
    }
    let said = shared.inbound.introduction();
    let hello = hello(shared, said, lane.purpose, peer.node);
    let timeout = shared.options.handshake_timeout;
    let (link, welcome) = dial(address, &hello, shared.options.allow_plaintext_remote, timeout)?;
    shared.inbound.check_welcome(peer.node, &welcome).map_err(DialError::NotMeant)?;
    let stream = link.handle().map_err(LinkError::from)?;
    lane.state.lock().open = Some(Open { stream, said, welcome });
    *peer.trouble.lock() = None;
    if lane.purpose == Purpose::Peer {
        *peer.lost.lock() = None;
        shared.inbound.on_connected(peer.node, welcome.cluster);
    }
    Ok(link)
}

/// Writes what is queued until the connection ends (an error) or is to be ended (`Ok`).
fn pump(shared: &Shared, peer: &Peer, lane: &Lane, link: &mut Link) -> Result<(), LinkError> {
    let mut out = Vec::new();
    loop {
        out.clear();
        let batch = match lane.next() {
            Next::End => return Ok(()),
            Next::Idle => Vec::new(),
            Next::Batch(rest, batch) => {
                out.extend(rest);
                batch
            }
        };
        if lane.take_overflowed() {
            shared.inbound.on_unreachable(peer.node);
        }
        if !link.is_open() {
            return Err(LinkError::Closed);
        }
        for item in &batch {
            if let Err(error) = item.put(&mut out) {
                // The connection is not to blame.
                tracing::error!("message to node {} dropped: {error}", peer.node);
            }
        }
        link.write(&out)?;
        out.shrink_to(BATCH);
    }
}
