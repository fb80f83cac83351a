//! The accepting side: one thread listens, one serves each connection.
//!
//! A connection has [`handshake_timeout`](super::Options::handshake_timeout) to say hello, and only so many may be about
//! to. After that one of a member is read until it ends; one for requests has
//! [`request_timeout`](super::Options::request_timeout) for each. A frame that is damaged, of a type that does not belong on
//! this connection, or that names another sender than the handshake did, ends it, and the node is told who that was.
//!
//! Anybody can reach the port, so strangers must not keep members out:
//!
//! ```text
//! one more than may be                   what is done
//! without a hello                        the one that has been silent for the longest is hung up on, the new one comes in
//! programs that are no node              refused with a reason
//! connections altogether                 the same as without a hello, if there is any; else refused with a reason
//! ```
//!
//! Deliberately absent: messages to peers; they leave over the connections that this node dials.

use std::collections::BTreeMap;
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use shoaldb_vfs::env::in_words;

use super::link::{self, Link, LinkError, Wait};
use super::{BULK, Shared};
use crate::fields::Damaged;
use crate::found::format::FoundMessage;
use crate::net::Caller;
use crate::net::codec;
use crate::net::frame::{self, FrameKind};
use crate::net::handshake::{Hello, Purpose, Reject, RejectReason, Standing, Welcome};
use crate::priority;
use crate::types::NodeId;

/// Dialers whose last refusal is remembered.
const REFUSED_REMEMBERED: usize = 64;

/// What others need to know of a connection while it is served.
pub(super) struct Served {
    /// To end it from outside.
    pub(super) stream: TcpStream,
    /// Once it was said: who dialed.
    pub(super) hello: Option<Hello>,
    /// What it may say now.
    pub(super) standing: Standing,
}

/// The listener's thread.
pub(super) fn listen(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut told = false;
    while !shared.stopping() {
        let (stream, from) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a connection that ended before it was accepted. Neither is a reason to stop
                // listening; the pause keeps the first from becoming a busy loop.
                if !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) {
                    // Once, until it accepts somebody again.
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("accept on {}: {}", shared.local, in_words(&error));
                    }
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                continue;
            }
        };
        if shared.stopping() {
            return;
        }
        told = false;
        let Some(id) = register(shared, &stream) else { continue };
        let worker = Arc::clone(shared);
        let spawned = shared.spawn(format!("shoal-serve-{id}"), move || {
            let ended = serve(&worker, id, stream, from.ip());
            let node = worker.served.lock().remove(&id).and_then(|one| one.hello?.from);
            let Err(error) = ended else { return };
            tracing::debug!("connection {id} ended: {error}");
            if error.is_malformed() {
                // Ports of callers are new each time.
                let at = from.ip();
                let who = node.map_or_else(|| at.to_string(), |node| format!("node {node} at {at}"));
                worker.inbound.on_malformed(&who, &error.to_string());
            }
        });
        if !spawned {
            shared.served.lock().remove(&id);
        }
    }
}

/// Takes a connection into the books, in the place of one that says nothing if there are too many.
fn register(shared: &Shared, stream: &TcpStream) -> Option<u64> {
    let handle = stream
        .try_clone()
        .inspect_err(|error| tracing::warn!("{}: connection refused: {}", shared.local, in_words(error)))
        .ok()?;
    let mut served = shared.served.lock();
    let pending = pending_of(&served);
    let full = served.len() >= shared.options.max_connections;
    if pending >= shared.options.max_pending || full {
        // Ids grow.
        let oldest = served.iter().find(|(_, one)| one.hello.is_none()).map(|(id, _)| *id);
        match oldest.and_then(|id| served.remove(&id)) {
            Some(silent) => _ = silent.stream.shutdown(Shutdown::Both),
            None if full => {
                drop(served);
                let limit = shared.options.max_connections;
                refuse(shared, stream, format!("{limit} connections are open, which is the limit; end some of them"));
                return None;
            }
            None => {}
        }
    }
    let id = shared.next_id();
    served.insert(id, Served { stream: handle, hello: None, standing: Standing::Founding });
    Some(id)
}

fn pending_of(served: &BTreeMap<u64, Served>) -> usize {
    served.values().filter(|one| one.hello.is_none()).count()
}

fn is_program(hello: &Hello) -> bool {
    hello.purpose == Purpose::Client && hello.from.is_none()
}

fn programs_of(served: &BTreeMap<u64, Served>) -> usize {
    served.values().filter_map(|one| one.hello.as_ref()).filter(|hello| is_program(hello)).count()
}

/// How many connections have not said hello, and how many are of programs that are no node.
pub(super) fn strangers(shared: &Shared) -> (usize, usize) {
    let served = shared.served.lock();
    (pending_of(&served), programs_of(&served))
}

/// Says why, without waiting for anything: a socket that has just been opened takes a few bytes.
fn refuse(shared: &Shared, stream: &TcpStream, text: String) {
    let reject = Reject { reason: RejectReason::Busy, text };
    tell_refused(shared, None, &reject);
    let mut out = Vec::new();
    if frame::put(&mut out, FrameKind::Reject, |out| reject.encode(out)).is_ok() {
        // Whoever does not get it sees that the connection ends.
        let _ = link::write_some(stream, &out);
        let _ = stream.shutdown(Shutdown::Write);
    }
}

fn serve(shared: &Shared, id: u64, stream: TcpStream, at: IpAddr) -> Result<(), LinkError> {
    let mut link = Link::new(stream)?;
    let deadline = Instant::now() + shared.options.handshake_timeout;
    let (_, body) = link.read(&[FrameKind::Hello], Wait::Until(deadline))?;
    let hello = Hello::decode(&body)?;
    if let Err(reject) = admit(shared, id, &hello) {
        tell_refused(shared, hello.from, &reject);
        link.put(FrameKind::Reject, |out| reject.encode(out))?;
        return Ok(());
    }
    shared.refused.lock().remove(&hello.from);
    let introduction = shared.inbound.introduction();
    let welcome = Welcome {
        // They have one in common, or it had not been admitted.
        version: hello.versions.1.min(shared.options.speaks.1),
        node: shared.options.node,
        incarnation: introduction.incarnation,
        cluster: introduction.cluster,
    };
    link.put(FrameKind::Welcome, |out| welcome.encode(out))?;
    match (hello.purpose, hello.from) {
        (Purpose::Client, from) => serve_requests(shared, &mut link, (from, at)),
        (Purpose::Peer | Purpose::Bulk, Some(from)) => serve_peer(shared, id, &mut link, from),
        (Purpose::Peer | Purpose::Bulk, None) => Ok(()),
    }
}

/// Judges a dialer. Under the lock of the books, so that a change of the node's mind either comes first or finds the
/// connection in them.
fn admit(shared: &Shared, id: u64, hello: &Hello) -> Result<(), Reject> {
    if hello.from.is_some_and(|from| shared.is_blocked(from)) {
        let text = "cut off by a test".to_string();
        return Err(Reject { reason: RejectReason::Busy, text });
    }
    let mut served = shared.served.lock();
    let standing = shared.inbound.check_hello(hello)?;
    let limit = shared.options.max_programs;
    if is_program(hello) && programs_of(&served) >= limit {
        let text =
            format!("{limit} programs ask this node something already, which is the limit; end some, or try again");
        return Err(Reject { reason: RejectReason::Busy, text });
    }
    if let Some(one) = served.get_mut(&id) {
        one.hello = Some(hello.clone());
        one.standing = standing;
    }
    Ok(())
}

/// Writes down why somebody is refused, unless it is the reason that it was the last time: whoever is refused comes again, two
/// times a second.
fn tell_refused(shared: &Shared, from: Option<NodeId>, reject: &Reject) {
    let mut refused = shared.refused.lock();
    if refused.len() >= REFUSED_REMEMBERED && !refused.contains_key(&from) {
        refused.clear();
    }
    if refused.insert(from, reject.clone()).as_ref() != Some(reject) {
        tracing::warn!("refused a connection from {}: {reject}", named(from));
    }
}

fn named(dialer: Option<NodeId>) -> String {
    dialer.map_or_else(|| "a program that is no node".to_string(), |node| format!("node {node}"))
}

fn serve_peer(shared: &Shared, id: u64, link: &mut Link, from: NodeId) -> Result<(), LinkError> {
    let me = shared.options.node;
    loop {
        // Many connections at once must not bring a large body each. Small ones never wait for them: a heartbeat is one.
        // Nobody but a member can keep members waiting.
        let reading = || if shared.inbound.is_member(from) { &shared.reading } else { &shared.reading_others };
        let room = |bytes| (bytes > BULK).then(|| reading().wait(bytes));
        let (kind, body, _room) = link.read_shared(&[FrameKind::Message, FrameKind::Found], Wait::Idle, room)?;
        // Whoever took it out of the books ended it; what was read after that does not count.
        let Some(standing) = shared.served.lock().get(&id).map(|one| one.standing) else { return Ok(()) };
        if shared.is_blocked(from) {
            return Ok(());
        }
        if kind == FrameKind::Found {
            shared.inbound.on_found(from, FoundMessage::decode(&body)?);
            continue;
        }
        let message = codec::decode(&body)?;
        if message.from != from || message.to != me {
            let what = format!("message from {} to {} on a connection from {from} to {me}", message.from, message.to);
            return Err(Damaged { at: 2, what }.into());
        }
        if standing.admits(message.kind) {
            shared.inbound.on_message(from, message);
        } else {
            tracing::debug!("{:?} of node {from} dropped: it is {standing:?}", message.kind);
        }
    }
}

/// Loopback stands for this machine: another address of it, as which a relay may call, does not.
pub(super) fn caller(from: Option<NodeId>, at: IpAddr) -> Caller {
    match from {
        Some(node) => Caller::Node(node),
        None if at.to_canonical().is_loopback() => Caller::Program,
        None => Caller::RemoteProgram(at.to_string()),
    }
}

fn serve_requests(shared: &Shared, link: &mut Link, (from, at): (Option<NodeId>, IpAddr)) -> Result<(), LinkError> {
    if from.is_some() {
        // Another node asks for little but snapshots over these connections; its appends come over others.
        priority::give_way();
    }
    let caller = caller(from, at);
    loop {
        let deadline = Instant::now() + shared.options.request_timeout;
        let (_, mut body) = link.read(&[FrameKind::Request], Wait::Until(deadline))?;
        if from.is_some_and(|from| shared.is_blocked(from)) {
            return Ok(());
        }
        if body.len() < 8 {
            return Err(Damaged { at: 0, what: format!("request of {} bytes has no id", body.len()) }.into());
        }
        let request = body.split_off(8);
        let answer = shared.inbound.on_request(caller.clone(), request);
        link.put_parts(FrameKind::Response, &body, &answer)?;
    }
}

/// Judges every connection again; those that would be refused now are ended.
pub(super) fn recheck(shared: &Shared) {
    let mut served = shared.served.lock();
    served.retain(|_, one| {
        let Some(hello) = &one.hello else { return true };
        match shared.inbound.check_hello(hello) {
            Ok(standing) => one.standing = standing,
            Err(reject) => {
                tracing::warn!("connection of {} ended: {reject}", named(hello.from));
                // An error says that it is closed already.
                let _ = one.stream.shutdown(Shutdown::Both);
                return false;
            }
        }
        true
    });
}

/// Ends the connections that `node` opened, but for requests: an answer that is on its way gets there.
pub(super) fn end_from(shared: &Shared, node: NodeId) {
    shared.served.lock().retain(|_, one| {
        let ends = one.hello.as_ref().is_some_and(|hello| hello.from == Some(node) && hello.purpose != Purpose::Client);
        if ends {
            let _ = one.stream.shutdown(Shutdown::Both);
        }
        !ends
    });
}
