//! The transport over TCP: threads and blocking sockets of the standard library.
//!
//! ```text
//! this node                                        another node
//! listener ── a thread per accepted connection ◄── small lane: one thread, one connection
//!                                              ◄── bulk lane:  one thread, one connection
//! small lane, bulk lane per peer ────────────────► listener …
//! request(): one connection for one call,
//! calls(): or for calls that follow each other ──► listener …
//! ```
//!
//! Each connection carries frames one way; the other way has only the answer to the handshake (and answers to requests).
//! So a slow reader here never stops a writer there, and there is no deadlock of two full buffers.
//!
//! Every wait has an end: handshakes, frames that have begun, and writes have deadlines; keepalive finds hosts that
//! vanished; a lost connection is dialed again after a pause that doubles up to a limit and is drawn between half of it
//! and all, so that the nodes of a cluster do not dial in step.
//!
//! Locks: `peers`, `served`, `threads`, `blocked`, `refused` and `calls` are never held together, and no lane's lock is held
//! during I/O that may wait. The node is asked about dialers under `served`, and may take its own locks then.
//!
//! Traffic is not encrypted, so without `allow_plaintext_remote` only loopback addresses are listened on or dialed.
//!
//! Deliberately absent: the meaning of messages and requests, and discovery: peers are told by the node.

mod accept;
mod dial;
mod link;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoaldb_vfs::env::{Rng, in_words};

use super::frame::{FrameKind, MAX_REQUEST};
use super::handshake::{Hello, PROTOCOL, Purpose, Reject};
use super::{Calls, Inbound, RequestError, Transport, Unreached, codec};
use crate::found::format::FoundMessage;
use crate::inbox::Inbox;
use crate::types::{Incarnation, Message, NodeId, Usage};
pub use dial::BULK;
use dial::{DialError, Outgoing, Peer, Trouble};
pub use link::AddressError;
use link::{LinkError, Wait};

/// How a transport behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node.
    pub node: NodeId,
    /// Where it listens.
    pub listen: String,
    /// Where it says that others reach it; empty to say nothing.
    pub advertise: String,
    /// Whether addresses beyond this machine may be listened on and dialed, although nothing is encrypted.
    pub allow_plaintext_remote: bool,
    /// Oldest and newest protocol version that this node speaks.
    pub speaks: (u16, u16),
    /// Most bytes queued for one peer's small messages. Heartbeats are 80 bytes: this is minutes of them.
    pub small_queue: usize,
    /// Most bytes queued for one peer's large appends. A leader sends no more than half of it unasked: what is beyond is for
    /// messages that go out again.
    pub bulk_queue: usize,
    /// A connection and its handshake must be complete within this time.
    pub handshake_timeout: Duration,
    /// First and longest pause before a lost connection is dialed again.
    pub backoff: (Duration, Duration),
    /// A connection for requests ends when the next one is not there within this time. Who asks for one thing opens one for it; a
    /// node that fetches a snapshot has one as long as that goes.
    pub request_timeout: Duration,
    /// Most connections that have not said hello yet.
    pub max_pending: usize,
    /// Most connections of programs that are no node: far fewer than there may be altogether, so that members find room.
    pub max_programs: usize,
    /// Most connections accepted at the same time.
    pub max_connections: usize,
}

impl Options {
    /// The defaults.
    pub fn new(node: NodeId, listen: &str) -> Options {
        Options {
            node,
            listen: listen.to_string(),
            advertise: String::new(),
            allow_plaintext_remote: false,
            speaks: (PROTOCOL, PROTOCOL),
            small_queue: 8 << 20,
            bulk_queue: 32 << 20,
            handshake_timeout: Duration::from_secs(3),
            backoff: (Duration::from_millis(20), Duration::from_secs(1)),
            request_timeout: Duration::from_secs(10),
            max_pending: 64,
            max_programs: 256,
            max_connections: 1024,
        }
    }
}

/// Why a transport did not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is not one to listen on.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Somebody listens there.
    #[error("cannot listen on {address}: another process uses this port; stop it, or choose another port")]
    InUse {
        /// The address.
        address: String,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {}", in_words(error))]
    Io {
        /// The address.
        address: String,
        /// What the system said.
        error: io::Error,
    },
}

/// What all threads of a transport share.
struct Shared {
    options: Options,
    local: SocketAddr,
    inbound: Arc<dyn Inbound>,
    rng: Arc<dyn Rng>,
    stop: AtomicBool,
    ids: AtomicU64,
    peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
    served: Mutex<BTreeMap<u64, accept::Served>>,
    /// Connections for requests.
    calls: Mutex<BTreeMap<u64, TcpStream>>,
    blocked: Mutex<BTreeSet<NodeId>>,
    /// What dialers were refused for that may come again and again: people are told once.
    refused: Mutex<BTreeMap<Option<NodeId>, Reject>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Room for bodies of messages that are being read, and larger than [`BULK`].
    reading: Arc<Inbox>,
    /// The same for nodes that are no members: they wait for each other only.
    reading_others: Arc<Inbox>,
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn is_blocked(&self, node: NodeId) -> bool {
        self.blocked.lock().contains(&node)
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// The pause after so many failures in a row: doubled each time, and drawn between half of that and all.
    fn backoff(&self, failures: u32) -> Duration {
        let (first, longest) = self.options.backoff;
        let pause = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
        let half = pause / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(self.rng.next_u64() % nanos)
    }

    /// Starts a thread that shutdown will join. False if the system has no more, or the transport stops.
    fn spawn(&self, name: String, body: impl FnOnce() + Send + 'static) -> bool {
        let mut threads = self.threads.lock();
        // Those that ended by themselves need no join.
        threads.retain(|thread| !thread.is_finished());
        if self.stopping() {
            return false;
        }
        match std::thread::Builder::new().name(name).spawn(body) {
            Ok(thread) => {
                threads.push(thread);
                true
            }
            Err(error) => {
                tracing::error!("no thread for a connection: {error}");
                false
            }
        }
    }
}

/// An address that nobody else can listen on any more, and at which nobody is let in yet: whoever knocks waits.
pub struct Bound {
    listener: TcpListener,
    local: SocketAddr,
}

impl Bound {
    /// Takes the address, or says who has it.
    pub fn new(listen: &str, allow_plaintext_remote: bool) -> Result<Bound, ListenError> {
        let addresses = link::resolve(listen, allow_plaintext_remote)?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { address: listen.to_string() },
            _ => ListenError::Io { address: listen.to_string(), error },
        };
        let listener = TcpListener::bind(&addresses[..]).map_err(failed)?;
        // Shutdown wakes the listener with a connection; where that cannot be made, it looks up by itself.
        socket2::SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(500))).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        Ok(Bound { listener, local })
    }
}

/// The transport over TCP. Dropping it shuts it down.
pub struct Tcp {
    shared: Arc<Shared>,
}

impl Tcp {
    /// Listens, and waits to be told of peers.
    pub fn start(options: Options, inbound: Arc<dyn Inbound>, rng: Arc<dyn Rng>) -> Result<Tcp, ListenError> {
        let bound = Bound::new(&options.listen, options.allow_plaintext_remote)?;
        Tcp::start_on(bound, options, inbound, rng)
    }

    /// As [`Tcp::start`], at an address that is held already.
    pub fn start_on(
        bound: Bound,
        options: Options,
        inbound: Arc<dyn Inbound>,
        rng: Arc<dyn Rng>,
    ) -> Result<Tcp, ListenError> {
        let Bound { listener, local } = bound;
        let shared = Arc::new(Shared {
            local,
            inbound,
            rng,
            stop: AtomicBool::new(false),
            ids: AtomicU64::new(1),
            peers: Mutex::default(),
            served: Mutex::default(),
            calls: Mutex::default(),
            blocked: Mutex::default(),
            refused: Mutex::default(),
            threads: Mutex::default(),
            reading: Inbox::for_reading(),
            reading_others: Inbox::for_reading(),
            options,
        });
        let worker = Arc::clone(&shared);
        let name = format!("shoal-listen-{}", shared.options.node);
        if !shared.spawn(name, move || accept::listen(&worker, &listener)) {
            let error = io::Error::other("no thread for the listener");
            return Err(ListenError::Io { address: shared.options.listen.clone(), error });
        }
        Ok(Tcp { shared })
    }

    /// Where it listens; tells the port if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local
    }

    /// Why a peer is not connected, if it is not; in words for a person.
    pub fn trouble(&self, node: NodeId) -> Option<String> {
        self.peer(node)?.trouble.lock().as_ref().map(Trouble::to_string)
    }

    /// Cuts this node off from another one in both directions, or lets it through again. For tests of partitions.
    pub fn set_blocked(&self, node: NodeId, blocked: bool) {
        {
            let mut set = self.shared.blocked.lock();
            if blocked {
                set.insert(node)
            } else {
                set.remove(&node)
            };
        }
        if blocked {
            accept::end_from(&self.shared, node);
        }
        if let Some(peer) = self.peer(node) {
            peer.end(false);
        }
    }

    /// Ends all connections and joins all threads. Requests that wait are told that their answer is lost. A connection
    /// that is being dialed is waited for, so this takes up to one handshake's time.
    pub fn shutdown(&self) {
        let shared = &self.shared;
        shared.stop.store(true, Ordering::SeqCst);
        shared.reading.close();
        shared.reading_others.close();
        // Wakes the listener; if it does not get through, the listener looks up by itself.
        let mut own = shared.local;
        if own.ip().is_unspecified() {
            own.set_ip(if own.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() });
        }
        let _ = TcpStream::connect_timeout(&own, Duration::from_millis(200));
        let peers = std::mem::take(&mut *shared.peers.lock());
        for peer in peers.values() {
            peer.end(true);
        }
        let me = std::thread::current().id();
        loop {
            // Again for connections that came in between.
            for one in shared.served.lock().values() {
                let _ = one.stream.shutdown(Shutdown::Both);
            }
            for stream in shared.calls.lock().values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            let Some(thread) = shared.threads.lock().pop() else { return };
            // A callback may be what shuts down; its thread ends when it returns.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a thread of the transport panicked");
            }
        }
    }

    fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.shared.peers.lock().get(&node).cloned()
    }

    /// Connects to a node, for requests.
    fn open_call(&self, to: NodeId, timeout: Duration) -> Result<Call, RequestError> {
        let shared = &self.shared;
        let not_sent = |text: String| RequestError::NotSent(format!("node {to}: {text}"));
        let Some(peer) = self.peer(to) else {
            return Err(not_sent("no address known".to_string()));
        };
        if shared.is_blocked(to) {
            return Err(not_sent(DialError::Blocked.to_string()));
        }
        let address = peer.whereabouts();
        let hello = dial::hello(shared, shared.inbound.introduction(), Purpose::Client, to);
        let first = timeout.min(shared.options.handshake_timeout);
        let (link, welcome) = dial::dial(&address, &hello, shared.options.allow_plaintext_remote, first)
            .map_err(|error| not_sent(error.to_string()))?;
        shared.inbound.check_welcome(to, &welcome).map_err(|reject| not_sent(reject.text))?;
        let id = shared.next_id();
        let handle = link.handle().map_err(|error| not_sent(error.to_string()))?;
        // Before anybody looks whether the transport stops: shutdown either finds it here or was seen.
        shared.calls.lock().insert(id, handle);
        let asked = VecDeque::new();
        Ok(Call { shared: Arc::clone(shared), to, link, id, asked, spare: Vec::new() })
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Transport for Tcp {
    fn send(&self, message: Message) {
        let Some(peer) = self.peer(message.to) else { return };
        let lane = if codec::entry_bytes(&message) > BULK { &peer.bulk } else { &peer.small };
        lane.push(codec::size(&message), Outgoing::Message(Box::new(message)));
    }

    fn send_found(&self, to: NodeId, message: FoundMessage) {
        if let Some(peer) = self.peer(to) {
            peer.small.push(FrameKind::Found.limit(), Outgoing::Found(message));
        }
    }

    fn request(&self, to: NodeId, body: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, RequestError> {
        let deadline = Instant::now() + timeout;
        let mut call = self.open_call(to, timeout)?;
        call.send(&body)?;
        call.receive(deadline.saturating_duration_since(Instant::now()))
    }

    fn calls(&self, to: NodeId, timeout: Duration) -> Option<Result<Box<dyn Calls>, RequestError>> {
        Some(self.open_call(to, timeout).map(|call| Box::new(call) as Box<dyn Calls>))
    }

    fn set_peer(&self, node: NodeId, address: &str) {
        let shared = &self.shared;
        if node == shared.options.node {
            return;
        }
        let mut peers = shared.peers.lock();
        if shared.stopping() {
            return;
        }
        if let Some(peer) = peers.get(&node).cloned() {
            drop(peers);
            let before = std::mem::replace(&mut *peer.address.lock(), address.to_string());
            if before != address {
                peer.end(false);
            }
            return;
        }
        let peer = Arc::new(Peer::new(node, address, (shared.options.small_queue, shared.options.bulk_queue)));
        peers.insert(node, Arc::clone(&peer));
        drop(peers);
        for bulk in [false, true] {
            let (worker, peer) = (Arc::clone(shared), Arc::clone(&peer));
            let name = format!("shoal-{}-{node}", if bulk { "bulk" } else { "peer" });
            shared.spawn(name, move || dial::run(&worker, &peer, bulk));
        }
    }

    fn hint_peer(&self, node: NodeId, address: &str) {
        if let Some(peer) = self.peer(node) {
            *peer.hint.lock() = Some(address.to_string()).filter(|hint| *hint != *peer.address.lock());
        }
    }

    fn refusals(&self) -> Vec<String> {
        let peers: Vec<_> = self.shared.peers.lock().values().cloned().collect();
        let refused = |peer: &Arc<Peer>| peer.trouble.lock().as_ref().filter(|t| t.refused).map(Trouble::to_string);
        peers.iter().filter_map(refused).collect()
    }

    fn unreached(&self) -> Vec<Unreached> {
        let peers: Vec<_> = self.shared.peers.lock().values().cloned().collect();
        peers.iter().filter_map(|peer| peer.unreached()).collect()
    }

    fn connections(&self) -> Option<(usize, usize)> {
        Some((self.shared.served.lock().len(), self.shared.options.max_connections))
    }

    fn bounds(&self) -> Vec<Usage> {
        let shared = &self.shared;
        let (pending, programs) = accept::strangers(shared);
        let mut bounds = vec![
            Usage::count("connections that have not said hello", (pending, shared.options.max_pending)),
            Usage::count("connections of programs that are no node", (programs, shared.options.max_programs)),
            Usage::bytes("large messages that are being read, of members", shared.reading.usage()),
            Usage::bytes("large messages that are being read, of others", shared.reading_others.usage()),
        ];
        let peers: Vec<_> = shared.peers.lock().values().cloned().collect();
        for peer in peers {
            bounds.push(Usage::bytes(format!("small messages to node {}", peer.node), peer.small.usage()));
            bounds.push(Usage::bytes(format!("large messages to node {}", peer.node), peer.bulk.usage()));
        }
        bounds
    }

    fn is_connected(&self, node: NodeId) -> bool {
        self.peer(node).is_some_and(|peer| peer.small.is_open())
    }

    fn forget_peer(&self, node: NodeId) {
        let removed = self.shared.peers.lock().remove(&node);
        if let Some(peer) = removed {
            peer.end(true);
        }
    }

    fn remove_peer(&self, node: NodeId) {
        self.forget_peer(node);
        accept::end_from(&self.shared, node);
    }

    fn recheck(&self) {
        accept::recheck(&self.shared);
        let peers: Vec<_> = self.shared.peers.lock().values().cloned().collect();
        for peer in peers {
            peer.recheck(&self.shared);
        }
    }
}

/// Whether this is `host:port` at all; `any_port` for one to listen on.
pub fn check_shape(address: &str, any_port: bool) -> Result<(), AddressError> {
    link::check_shape(address, any_port)
}

/// Whether nodes may reach each other at `address`. A name that cannot be resolved here and now may be resolved later.
pub fn check_address(address: &str, allow_plaintext_remote: bool) -> Result<(), AddressError> {
    if allow_plaintext_remote {
        return Ok(());
    }
    match link::resolve(address, false) {
        Err(remote @ AddressError::Remote { .. }) => Err(remote),
        _ => Ok(()),
    }
}

fn hello_of_a_program() -> Hello {
    Hello {
        versions: (PROTOCOL, PROTOCOL),
        purpose: Purpose::Client,
        cluster: None,
        from: None,
        to: None,
        incarnation: Incarnation(0),
        address: String::new(),
        bound: false,
    }
}

/// One call of a program that is no node: to whoever listens at `address`.
pub fn call(
    address: &str,
    body: &[u8],
    timeout: Duration,
    allow_plaintext_remote: bool,
) -> Result<Vec<u8>, RequestError> {
    call_within(address, body, (timeout, timeout), allow_plaintext_remote)
}

/// [`call`] that gives up on whoever does not even shake hands in time: before the request is sent.
pub fn call_within(
    address: &str,
    body: &[u8],
    (handshake, timeout): (Duration, Duration),
    allow_plaintext_remote: bool,
) -> Result<Vec<u8>, RequestError> {
    let deadline = Instant::now() + timeout;
    let dialed = dial::dial(address, &hello_of_a_program(), allow_plaintext_remote, handshake.min(timeout));
    let (mut link, _) = dialed.map_err(|error| match error.is_silence() {
        true => RequestError::NotSent(format!(
            "{address}: did not answer within {} s; its process is stopped, or its machine hangs",
            handshake.as_secs()
        )),
        false => RequestError::NotSent(format!("{address}: {error}")),
    })?;
    put_request(&mut link, 1, body, address)?;
    read_answer(&mut link, 1, Vec::new(), deadline, address)
}

fn put_request(link: &mut link::Link, id: u64, body: &[u8], whom: &str) -> Result<(), RequestError> {
    if body.len() > MAX_REQUEST {
        return Err(RequestError::NotSent(format!("{whom}: a request of {} bytes, limit {MAX_REQUEST}", body.len())));
    }
    let put = link.put(FrameKind::Request, |out| {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(body);
    });
    put.map_err(|error| RequestError::Lost(format!("{whom}: {error}")))
}

/// `spare` is memory that the answer may have.
fn read_answer(
    link: &mut link::Link,
    id: u64,
    spare: Vec<u8>,
    deadline: Instant,
    whom: &str,
) -> Result<Vec<u8>, RequestError> {
    let lost = |error: LinkError| RequestError::Lost(format!("{whom}: {error}"));
    let (_, mut answer) = link.read_into(spare, &[FrameKind::Response], Wait::Until(deadline)).map_err(lost)?;
    if answer.len() < 8 || answer[..8] != id.to_le_bytes() {
        return Err(RequestError::Lost(format!("{whom}: the answer is to another request")));
    }
    answer.drain(..8);
    Ok(answer)
}

/// A connection to another node, for requests.
struct Call {
    shared: Arc<Shared>,
    to: NodeId,
    link: link::Link,
    /// Under which shutdown finds it.
    id: u64,
    /// The requests that are not answered yet, in their order. Each has an id of its own, which its answer repeats: so one that
    /// was left out, or came twice, ends the connection and is not taken for the answer to another request.
    asked: VecDeque<u64>,
    /// Memory for the next answer. What large ones have costs more to get from the system, and to give back, than to fill.
    spare: Vec<u8>,
}

impl Call {
    fn not_sent(&self, text: impl std::fmt::Display) -> RequestError {
        RequestError::NotSent(format!("node {}: {text}", self.to))
    }
}

impl Calls for Call {
    fn send(&mut self, body: &[u8]) -> Result<(), RequestError> {
        if self.shared.stopping() {
            return Err(self.not_sent("this node is shutting down"));
        }
        if self.shared.is_blocked(self.to) {
            return Err(self.not_sent(DialError::Blocked));
        }
        let id = self.shared.next_id();
        put_request(&mut self.link, id, body, &format!("node {}", self.to))?;
        self.asked.push_back(id);
        Ok(())
    }

    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, RequestError> {
        let whom = format!("node {}", self.to);
        let Some(id) = self.asked.pop_front() else {
            return Err(RequestError::Lost(format!("{whom}: nothing was asked")));
        };
        let spare = std::mem::take(&mut self.spare);
        read_answer(&mut self.link, id, spare, Instant::now() + timeout, &whom)
    }

    fn reuse(&mut self, answer: Vec<u8>) {
        if answer.capacity() > self.spare.capacity() {
            self.spare = answer;
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.shared.calls.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
