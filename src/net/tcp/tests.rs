//! What the transport promises, over loopback. Tests wait for what arrives, never for time to pass.

use std::io::{Read, Write};
use std::net::IpAddr;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};

use super::*;
use crate::catalogue::Catalogue;
use crate::net::frame;
use crate::net::handshake::{Judge, Reject, Standing, Welcome};
use crate::net::{Caller, Introduction};
use crate::types::{ClusterId, EntryClass, EntryId, LogEntry, LogIndex, MessageKind, Term};

mod bounds;
mod requests;

/// Long enough for a loaded machine; no test waits for it to pass unless it fails.
const LONG: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Dice(AtomicU64);

impl Rng for Dice {
    fn next_u64(&self) -> u64 {
        self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }
}

#[derive(Debug, PartialEq)]
enum Seen {
    Connected(u16, Option<ClusterId>),
    Message(u16, MessageKind, u64),
    Found(u16, FoundMessage),
    Unreachable(u16),
    Malformed(String, String),
}

/// A node that writes down what reaches it.
struct Recorder {
    me: NodeId,
    introduction: Mutex<Introduction>,
    catalogue: Mutex<Catalogue>,
    seen: Sender<Seen>,
    /// Large appends wait here until the test lets go of the lock.
    gate: Mutex<()>,
}

impl Recorder {
    fn judge<T>(&self, ask: impl FnOnce(Judge<'_>) -> T) -> T {
        let catalogue = self.catalogue.lock();
        let cluster = self.introduction.lock().cluster;
        ask(Judge { me: self.me, speaks: (PROTOCOL, PROTOCOL), cluster, catalogue: Some(&catalogue) })
    }
}

impl Inbound for Recorder {
    fn introduction(&self) -> Introduction {
        *self.introduction.lock()
    }
    fn check_hello(&self, hello: &Hello) -> Result<Standing, Reject> {
        self.judge(|judge| judge.hello(hello))
    }
    fn check_welcome(&self, meant: NodeId, welcome: &Welcome) -> Result<Standing, Reject> {
        self.judge(|judge| judge.welcome(meant, welcome))
    }
    fn on_connected(&self, peer: NodeId, cluster: Option<ClusterId>) {
        let _ = self.seen.send(Seen::Connected(peer.0, cluster));
    }
    fn on_message(&self, from: NodeId, message: Message) {
        if !message.entries.is_empty() {
            drop(self.gate.lock());
        }
        let _ = self.seen.send(Seen::Message(from.0, message.kind, message.index.0));
    }
    fn on_found(&self, from: NodeId, message: FoundMessage) {
        let _ = self.seen.send(Seen::Found(from.0, message));
    }
    fn on_request(&self, from: Caller, body: Vec<u8>) -> Vec<u8> {
        let from = if let Caller::Node(node) = from { Some(node) } else { None };
        drop(self.gate.lock());
        format!("{:?} said {}", from.map(|node| node.0), String::from_utf8_lossy(&body)).into_bytes()
    }
    fn is_member(&self, node: NodeId) -> bool {
        self.catalogue.lock().member(node).is_some()
    }
    fn on_malformed(&self, who: &str, what: &str) {
        let _ = self.seen.send(Seen::Malformed(who.to_string(), what.to_string()));
    }
    fn on_unreachable(&self, peer: NodeId) {
        let _ = self.seen.send(Seen::Unreachable(peer.0));
    }
}

struct Node {
    tcp: Tcp,
    recorder: Arc<Recorder>,
    seen: Receiver<Seen>,
}

const CLUSTER: ClusterId = ClusterId(0xc1);

impl Node {
    /// Node `id` of a cluster in which 1 and 2 are bound to incarnations 1 and 2.
    fn start(id: u16, change: impl FnOnce(&mut Options)) -> Node {
        let mut catalogue = Catalogue::new(CLUSTER);
        for node in [1, 2] {
            catalogue.put_member(NodeId(node), Some(Incarnation(node.into())), "").unwrap();
        }
        let (seen, receiver) = unbounded();
        let introduction = Introduction { cluster: Some(CLUSTER), incarnation: Incarnation(id.into()), bound: false };
        let recorder = Arc::new(Recorder {
            me: NodeId(id),
            introduction: Mutex::new(introduction),
            catalogue: Mutex::new(catalogue),
            seen,
            gate: Mutex::new(()),
        });
        let mut options = Options::new(NodeId(id), "127.0.0.1:0");
        // No test waits for it to pass but where it is set.
        options.handshake_timeout = LONG;
        change(&mut options);
        let end = Instant::now() + LONG;
        let tcp = loop {
            match Tcp::start(options.clone(), recorder.clone(), Arc::new(Dice(AtomicU64::new(1)))) {
                // A test beside this one was given the port that is used again here.
                Err(ListenError::InUse { .. }) if Instant::now() < end => std::thread::yield_now(),
                started => break started.unwrap(),
            }
        };
        Node { tcp, recorder, seen: receiver }
    }

    fn new(id: u16) -> Node {
        Node::start(id, |_| {})
    }

    fn address(&self) -> String {
        self.tcp.local_addr().to_string()
    }

    fn knows(&self, other: &Node) {
        self.tcp.set_peer(other.recorder.me, &other.address());
    }

    /// Waits for something that fits.
    fn expect(&self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let until = Instant::now() + LONG;
        loop {
            let seen = self.seen.recv_deadline(until).expect("nothing fitting was seen");
            if wanted(&seen) {
                return seen;
            }
        }
    }

    fn connected(&self, to: u16) {
        self.expect(|seen| matches!(seen, Seen::Connected(peer, _) if *peer == to));
    }

    fn message(&self) -> (u16, MessageKind, u64) {
        match self.expect(|seen| matches!(seen, Seen::Message(..))) {
            Seen::Message(from, kind, index) => (from, kind, index),
            _ => unreachable!(),
        }
    }

    /// Sends heartbeats, each with the next index, until the other side has one.
    fn gets_through(&self, other: &Node, first: u64) {
        for index in first..first + 3000 {
            self.tcp.send(message(self.recorder.me.0, other.recorder.me.0, index, 0));
            if let Ok(Seen::Message(_, _, got)) = other.seen.recv_timeout(Duration::from_millis(10))
                && got >= first
            {
                return;
            }
        }
        panic!("nothing got through");
    }
}

/// A heartbeat, or an append with so many bytes of data.
fn message(from: u16, to: u16, index: u64, data: usize) -> Message {
    let id = EntryId { index: LogIndex(index + 1), term: Term(1) };
    let entry = || LogEntry { id, class: EntryClass::Normal, data: Bytes::from(vec![7; data]) };
    let kind = if data > 0 { MessageKind::Append } else { MessageKind::Heartbeat };
    Message {
        term: Term(1),
        log_term: Term(1),
        index: LogIndex(index),
        entries: if data > 0 { vec![entry()] } else { Vec::new() },
        ..Message::blank(kind, NodeId(from), NodeId(to))
    }
}

#[test]
fn messages_arrive_in_order_and_both_ways() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.knows(&two);
    two.knows(&one);
    one.connected(2);
    two.connected(1);
    for index in 1..=1000 {
        one.tcp.send(message(1, 2, index, (index as usize % 3) * 100));
    }
    for index in 1..=1000 {
        let (from, _, got) = two.message();
        assert_eq!((from, got), (1, index));
    }
    two.tcp.send(message(2, 1, 5, 0));
    assert_eq!(one.message(), (2, MessageKind::Heartbeat, 5));
    let found = FoundMessage::Release { incarnation: Incarnation(9) };
    one.tcp.send_found(NodeId(2), found.clone());
    assert_eq!(two.expect(|seen| matches!(seen, Seen::Found(..))), Seen::Found(1, found));
}

/// A small message is written by whoever sends it: there is no thread here. One that the socket takes no more waits for the
/// thread, and so does all that follows.
#[test]
fn a_small_message_needs_no_other_thread() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut reader, _) = listener.accept().unwrap();
    let peer = Peer::new(NodeId(2), "", (64 << 20, 64 << 20));
    let introduction = Introduction { cluster: Some(CLUSTER), incarnation: Incarnation(1), bound: false };
    let welcome = Welcome { version: PROTOCOL, cluster: Some(CLUSTER), node: NodeId(2), incarnation: Incarnation(2) };
    peer.small.take(stream, introduction, welcome);
    let push = |index| {
        let message = message(1, 2, index, 60_000);
        peer.small.push(60_100, Outgoing::Message(Box::new(message)));
        peer.small.queued().0
    };
    let mut frame = Vec::new();
    frame::put(&mut frame, FrameKind::Message, |out| codec::encode(&message(1, 2, 1, 60_000), out)).unwrap();
    assert_eq!(push(1), 0);
    let mut got = vec![0; frame.len()];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(got, frame);
    let waits = (2..1000).find(|index| push(*index) > 0).expect("nobody reads, and the socket takes all");
    assert_eq!(push(waits + 1), 2);
}

/// Nothing is lost or overtaken at the seam between what senders write themselves and what the thread writes.
#[test]
fn a_socket_that_takes_no_more_loses_nothing() {
    let (one, two) = (Node::start(1, |options| options.small_queue = 64 << 20), Node::new(2));
    one.knows(&two);
    one.connected(2);
    let gate = two.recorder.gate.lock();
    // More than the buffers between the two hold.
    for index in 1..=500 {
        one.tcp.send(message(1, 2, index, 60_000 + index as usize));
    }
    drop(gate);
    for index in 501..=600 {
        one.tcp.send(message(1, 2, index, (index as usize % 3) * 100));
    }
    for index in 1..=600 {
        assert_eq!(two.message().2, index);
    }
}

#[test]
fn a_heartbeat_does_not_wait_behind_a_large_append() {
    // All of them fit into the queue, also when none has left it yet.
    let (one, two) = (Node::start(1, |options| options.bulk_queue = 64 << 20), Node::new(2));
    one.knows(&two);
    one.connected(2);
    let gate = two.recorder.gate.lock();
    // More than all buffers between the two hold, and the receiver does not even take the first.
    for index in 1..=4 {
        one.tcp.send(message(1, 2, index, 8 << 20));
    }
    one.tcp.send(message(1, 2, 77, 0));
    assert_eq!(two.message(), (1, MessageKind::Heartbeat, 77));
    drop(gate);
    for index in 1..=4 {
        assert_eq!(two.message(), (1, MessageKind::Append, index));
    }
}

#[test]
fn the_lane_follows_the_entry_data() {
    let two = Node::new(2);
    let one = Node::new(1);
    one.knows(&two);
    one.connected(2);
    let gate = two.recorder.gate.lock();
    one.tcp.send(message(1, 2, 1, BULK + 1));
    one.tcp.send(message(1, 2, 2, 0));
    assert_eq!(two.message().2, 2, "beyond the limit: the bulk lane");
    one.tcp.send(message(1, 2, 3, BULK));
    one.tcp.send(message(1, 2, 4, 0));
    drop(gate);
    let mut order = vec![two.message().2, two.message().2, two.message().2];
    order.retain(|index| *index != 1);
    assert_eq!(order, [3, 4], "at the limit: the small lane, in order");
}

#[test]
fn strangers_are_refused_with_a_reason() {
    let two = Node::new(2);
    let refused = |introduction: Introduction, words: &str| {
        let one = Node::new(1);
        *one.recorder.introduction.lock() = introduction;
        one.knows(&two);
        one.expect(|seen| *seen == Seen::Unreachable(2));
        let trouble = one.tcp.trouble(NodeId(2)).unwrap_or_default();
        assert!(trouble.contains(words), "{trouble}");
    };
    let ours = Introduction { cluster: Some(CLUSTER), incarnation: Incarnation(1), bound: false };
    refused(Introduction { cluster: Some(ClusterId(2)), ..ours }, "belongs to cluster 0000000000000002");
    refused(Introduction { incarnation: Incarnation(8), ..ours }, "remove node 1 and join it again under a new id");
    let one = Node::new(1);
    one.tcp.set_peer(NodeId(3), &two.address());
    one.expect(|seen| *seen == Seen::Unreachable(3));
    let trouble = one.tcp.trouble(NodeId(3)).unwrap();
    assert!(trouble.contains("this is node 2, not node 3"), "{trouble}");
}

/// Shows INV-13.
#[test]
fn votes_of_an_unbound_member_pass_only_after_it_is_bound() {
    let (one, three) = (Node::new(1), Node::new(3));
    one.recorder.catalogue.lock().put_member(NodeId(3), None, "").unwrap();
    three.knows(&one);
    three.connected(1);
    let vote = |index| Message { kind: MessageKind::VoteReply, ..message(3, 1, index, 0) };
    three.tcp.send(vote(1));
    three.tcp.send(message(3, 1, 2, 0));
    assert_eq!(one.message(), (3, MessageKind::Heartbeat, 2), "the vote before it was dropped");
    one.recorder.catalogue.lock().bind_incarnation(NodeId(3), Incarnation(3), "").unwrap();
    one.tcp.recheck();
    three.tcp.send(vote(3));
    assert_eq!(one.message(), (3, MessageKind::VoteReply, 3));
    // And the connection of a disk that lost its claim ends.
    one.recorder.catalogue.lock().remove_member(NodeId(3)).unwrap();
    one.tcp.recheck();
    three.expect(|seen| *seen == Seen::Unreachable(1));
}

#[test]
fn a_node_that_found_its_cluster_says_so_on_new_connections() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.recorder.introduction.lock().cluster = None;
    one.knows(&two);
    two.knows(&one);
    assert_eq!(two.expect(|seen| matches!(seen, Seen::Connected(..))), Seen::Connected(1, None));
    one.connected(2);
    one.tcp.send(message(1, 2, 1, 0));
    one.tcp.send_found(NodeId(2), FoundMessage::Release { incarnation: Incarnation(1) });
    // The message before it was dropped: who has no cluster takes no part in Raft.
    assert!(matches!(two.expect(|seen| !matches!(seen, Seen::Connected(..))), Seen::Found(..)));
    one.recorder.introduction.lock().cluster = Some(CLUSTER);
    one.tcp.recheck();
    one.connected(2);
    one.tcp.send(message(1, 2, 2, 0));
    assert_eq!(two.message(), (1, MessageKind::Heartbeat, 2));
}

#[test]
fn a_peer_that_restarts_is_dialed_again() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.knows(&two);
    one.connected(2);
    let address = two.address();
    drop(two);
    one.expect(|seen| *seen == Seen::Unreachable(2));
    let two = Node::start(2, |options| options.listen = address);
    one.connected(2);
    one.gets_through(&two, 1);
}

#[test]
fn a_peer_that_moves_is_dialed_at_its_new_address() {
    let (one, two) = (Node::new(1), Node::new(2));
    let elsewhere = Node::new(2);
    one.knows(&two);
    one.connected(2);
    one.knows(&elsewhere);
    one.connected(2);
    one.tcp.send(message(1, 2, 1, 0));
    assert_eq!(elsewhere.message().2, 1);
    assert!(two.seen.is_empty());
}

#[test]
fn a_blocked_peer_hears_and_says_nothing_until_it_is_let_through() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.knows(&two);
    two.knows(&one);
    one.connected(2);
    two.connected(1);
    one.tcp.set_blocked(NodeId(2), true);
    one.expect(|seen| *seen == Seen::Unreachable(2));
    two.expect(|seen| *seen == Seen::Unreachable(1));
    for index in 1..=10 {
        one.tcp.send(message(1, 2, index, 0));
        two.tcp.send(message(2, 1, index, 0));
    }
    assert!(one.tcp.request(NodeId(2), Vec::new(), LONG).is_err());
    assert!(two.tcp.request(NodeId(1), Vec::new(), LONG).is_err());
    one.tcp.set_blocked(NodeId(2), false);
    one.gets_through(&two, 100);
    two.gets_through(&one, 100);
}

#[test]
fn addresses_beyond_this_machine_need_a_word() {
    let listen = |address: &str, allowed| {
        let mut options = Options::new(NodeId(1), address);
        options.allow_plaintext_remote = allowed;
        Tcp::start(options, Node::new(1).recorder, Arc::new(Dice(AtomicU64::new(1)))).map(drop)
    };
    let error = listen("0.0.0.0:0", false).unwrap_err().to_string();
    assert!(error.contains("allow_plaintext_remote"), "{error}");
    listen("0.0.0.0:0", true).unwrap();
    listen("127.0.0.1:0", false).unwrap();
    let error = listen("nonsense", false).unwrap_err().to_string();
    assert!(error.contains("host:port"), "{error}");
    let one = Node::new(1);
    one.tcp.set_peer(NodeId(2), "192.0.2.1:4001");
    one.expect(|seen| *seen == Seen::Unreachable(2));
    assert!(one.tcp.trouble(NodeId(2)).unwrap().contains("allow_plaintext_remote"));
}

#[test]
fn who_calls_from_loopback_is_on_this_machine_and_nobody_else() {
    for (at, here) in [
        ("127.0.0.1", true),
        ("127.9.9.9", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("192.0.2.7", false),
        ("0.0.0.0", false),
        ("2001:db8::7", false),
        ("::ffff:192.0.2.7", false),
    ] {
        let ip: IpAddr = at.parse().unwrap();
        let expected = if here { Caller::Program } else { Caller::RemoteProgram(at.to_string()) };
        assert_eq!(accept::caller(None, ip), expected);
        assert_eq!(accept::caller(Some(NodeId(2)), ip), Caller::Node(NodeId(2)));
    }
}

#[test]
fn a_port_in_use_is_said() {
    let one = Node::new(1);
    let options = Options::new(NodeId(2), &one.address());
    let started = Tcp::start(options, one.recorder.clone(), Arc::new(Dice(AtomicU64::new(1))));
    let error = started.map(drop).unwrap_err().to_string();
    assert!(error.contains(&one.address()) && error.contains("another process uses this port"), "{error}");
}

#[test]
fn who_is_not_reached_is_known_with_the_reason_and_for_how_long() {
    let one = Node::new(1);
    let two = Node::new(2);
    let until = |what: &str, is: &dyn Fn(&[Unreached]) -> bool| {
        let end = Instant::now() + LONG;
        loop {
            let unreached = one.tcp.unreached();
            if is(&unreached) {
                return unreached;
            }
            assert!(Instant::now() < end, "{what}: {unreached:?}");
            std::thread::yield_now();
        }
    };
    assert_eq!(one.tcp.unreached(), []);
    one.knows(&two);
    one.connected(2);
    until("it is reached", &|all| all.is_empty());
    let address = two.address();
    drop(two);
    let lost = until("nobody is there", &|all| all.iter().any(|one| one.why.contains("nobody listens there")));
    assert_eq!((lost.len(), lost[0].node, &lost[0].address), (1, NodeId(2), &address));
    // Not since the last attempt, of which there are more.
    one.seen.try_iter().for_each(drop);
    let begun = Instant::now();
    (0..3).for_each(|_| _ = one.expect(|seen| *seen == Seen::Unreachable(2)));
    let least = begun.elapsed();
    assert!(one.tcp.unreached()[0].age >= least);
    // One that is refused has another alarm.
    let other = Node::new(3);
    one.tcp.set_peer(NodeId(2), &other.address());
    until("another one answers", &|all| all.is_empty());
    assert_eq!(one.tcp.refusals().len(), 1);
}

#[test]
fn the_pause_doubles_up_to_its_limit() {
    let one = Node::start(1, |options| options.backoff = (Duration::from_millis(8), Duration::from_millis(50)));
    for (failures, all) in [(0, 8), (1, 8), (2, 16), (3, 32), (4, 50), (99, 50)] {
        let all = Duration::from_millis(all);
        for _ in 0..50 {
            let pause = one.tcp.shared.backoff(failures);
            assert!(all / 2 <= pause && pause <= all, "{failures}: {pause:?}");
        }
    }
}

/// A pause is never shorter than half of what is due, on any machine; and a connection that came about ends the doubling.
#[test]
fn who_cannot_be_reached_is_dialed_less_and_less_often() {
    let nobody = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let one = Node::start(1, |options| options.backoff = (Duration::from_millis(1), Duration::from_secs(3600)));
    let failed = || one.expect(|seen| *seen == Seen::Unreachable(2));
    let began = Instant::now();
    one.tcp.set_peer(NodeId(2), &nobody());
    (0..9).for_each(|_| _ = failed());
    assert!(began.elapsed() >= Duration::from_millis(255) / 2, "{:?}", began.elapsed());
    // Told of another address it dials at once, and the pause that follows is more than a minute in the end.
    for _ in 9..19 {
        one.tcp.set_peer(NodeId(2), &nobody());
        failed();
    }
    let two = Node::new(2);
    one.knows(&two);
    one.connected(2);
    two.tcp.shutdown();
    (0..4).for_each(|_| _ = failed());
}

#[test]
fn shutdown_joins_everything_and_may_be_said_twice() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.knows(&two);
    two.knows(&one);
    one.connected(2);
    for node in [&one, &two, &one] {
        node.tcp.shutdown();
        assert!(node.tcp.shared.threads.lock().is_empty());
        assert!(node.tcp.shared.served.lock().is_empty());
    }
    one.tcp.send(message(1, 2, 1, 0));
    one.knows(&two);
    assert!(one.tcp.request(NodeId(2), Vec::new(), LONG).is_err());
    assert_eq!(Arc::strong_count(&one.recorder), 2, "no thread holds the node any more");
}
