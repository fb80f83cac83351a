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
fn requests_are_answered() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.knows(&two);
    let answer = one.tcp.request(NodeId(2), b"hello".to_vec(), LONG).unwrap();
    assert_eq!(answer, b"Some(1) said hello");
    let answer = call(&two.address(), b"hi", LONG, false).unwrap();
    assert_eq!(answer, b"None said hi");
    let unknown = one.tcp.request(NodeId(9), Vec::new(), LONG);
    assert!(matches!(unknown, Err(RequestError::NotSent(_))), "{unknown:?}");
}

/// What is left of an earlier answer in memory that the next one gets is no part of it, whichever is longer.
#[test]
fn an_answer_in_memory_that_was_used_before_is_that_answer() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.knows(&two);
    let mut calls = one.tcp.calls(NodeId(2), LONG).unwrap().unwrap();
    for len in [10, 60_000, 3, 60_000, 0, 50_000, 65_000] {
        let body = "x".repeat(len);
        calls.send(body.as_bytes()).unwrap();
        let mut answer = calls.receive(LONG).unwrap();
        assert!(answer == format!("Some(1) said {body}").as_bytes(), "{len} bytes");
        answer.fill(b'!');
        calls.reuse(answer);
    }
}

/// Over one connection, which ends with whoever keeps it, with the node and with the network.
#[test]
fn calls_that_follow_each_other_need_one_connection() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.knows(&two);
    let open = || one.tcp.calls(NodeId(2), LONG).unwrap();
    let clients = || {
        let served = two.tcp.shared.served.lock();
        served.values().filter(|one| one.hello.as_ref().is_some_and(|hello| hello.purpose == Purpose::Client)).count()
    };
    let mut calls = open().unwrap();
    for body in ["a", "b", "c"] {
        calls.send(body.as_bytes()).unwrap();
        assert_eq!(calls.receive(LONG).unwrap(), format!("Some(1) said {body}").as_bytes());
        assert_eq!(clients(), 1);
    }
    drop(calls);
    let until = Instant::now() + LONG;
    while clients() > 0 {
        assert!(Instant::now() < until, "nobody asks over it any more");
        std::thread::yield_now();
    }
    // Whoever is cut off neither asks nor is answered.
    for side in [&one, &two] {
        let other = if side.recorder.me == NodeId(1) { NodeId(2) } else { NodeId(1) };
        let mut calls = open().unwrap();
        side.tcp.set_blocked(other, true);
        assert!(calls.send(b"x").and_then(|()| calls.receive(LONG)).is_err());
        side.tcp.set_blocked(other, false);
    }
    let mut calls = open().unwrap();
    one.tcp.shutdown();
    assert!(calls.send(b"x").is_err());
}

/// Passes on what two nodes say, but for the second answer of each connection, of which there are so many.
fn relay(to: std::net::SocketAddr, copies: usize) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let pass_back = move |mut from: TcpStream, mut to: TcpStream| {
        let (mut head, mut answers) = ([0; frame::HEAD], 0);
        while from.read_exact(&mut head).is_ok() {
            let parsed = frame::Head::parse(&head).unwrap();
            let mut bytes = head.to_vec();
            bytes.resize(frame::HEAD + parsed.len, 0);
            if from.read_exact(&mut bytes[frame::HEAD..]).is_err() {
                return;
            }
            answers += usize::from(parsed.kind == FrameKind::Response);
            let times = if parsed.kind == FrameKind::Response && answers == 2 { copies } else { 1 };
            if to.write_all(&bytes.repeat(times)).is_err() {
                return;
            }
        }
    };
    std::thread::spawn(move || {
        for dialed in listener.incoming().map_while(Result::ok) {
            let Ok(onward) = TcpStream::connect(to) else { return };
            let (mut there, mut back) = (dialed.try_clone().unwrap(), onward.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut there, &mut back));
            std::thread::spawn(move || pass_back(onward, dialed));
        }
    });
    address
}

/// Several requests are on their way over one connection, and their answers come in the same order. All of them had the same id: if one
/// answer had been left out, or had come twice, each later one would have been taken for the answer to another request.
#[test]
fn an_answer_that_is_left_out_or_comes_twice_is_not_taken_for_another_one() {
    for (copies, right) in [(1, 4), (0, 1), (2, 2)] {
        let (one, two) = (Node::new(1), Node::new(2));
        one.tcp.set_peer(NodeId(2), &relay(two.tcp.local_addr(), copies));
        let mut calls = one.tcp.calls(NodeId(2), LONG).unwrap().unwrap();
        for body in ["a", "b", "c", "d"] {
            calls.send(body.as_bytes()).unwrap();
        }
        for (at, body) in ["a", "b", "c", "d"].iter().enumerate() {
            let answer = calls.receive(LONG);
            if at == right {
                let lost = matches!(&answer, Err(RequestError::Lost(why)) if why.contains("to another request"));
                assert!(lost, "{copies} of the second answer: {answer:?}");
                break;
            }
            assert_eq!(answer.unwrap(), format!("Some(1) said {body}").as_bytes(), "{copies} of the second answer");
        }
    }
}

#[test]
fn a_request_without_an_answer_is_lost_and_not_unsent() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.knows(&two);
    // In one request the time would have to be enough for a connection as well, without which nothing is sent.
    let mut calls = one.tcp.calls(NodeId(2), LONG).unwrap().unwrap();
    let gate = two.recorder.gate.lock();
    calls.send(b"x").unwrap();
    let lost = calls.receive(Duration::from_millis(300));
    assert!(matches!(lost, Err(RequestError::Lost(_))), "{lost:?}");
    drop(gate);
    let address = two.address();
    drop(two);
    let unsent = call(&address, b"x", LONG, false);
    assert!(matches!(unsent, Err(RequestError::NotSent(_))), "{unsent:?}");
}

#[test]
fn a_shutdown_ends_requests_that_wait() {
    let (one, two) = (Node::new(1), Node::new(2));
    one.knows(&two);
    let gate = two.recorder.gate.lock();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| one.tcp.request(NodeId(2), b"x".to_vec(), LONG * 10));
        while one.tcp.shared.calls.lock().is_empty() {
            assert!(!waiting.is_finished());
            std::thread::yield_now();
        }
        one.tcp.shutdown();
        let answer = waiting.join().unwrap();
        assert!(answer.is_err(), "{answer:?}");
    });
    drop(gate);
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

/// What node 1 says first to node 2.
fn hello_of_one() -> Vec<u8> {
    hello_of(1)
}

fn hello_of(id: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = Hello {
        versions: (PROTOCOL, PROTOCOL),
        purpose: Purpose::Peer,
        cluster: Some(CLUSTER),
        from: Some(NodeId(id)),
        to: Some(NodeId(2)),
        incarnation: Incarnation(id.into()),
        address: String::new(),
        bound: false,
    };
    frame::put(&mut bytes, FrameKind::Hello, |out| hello.encode(out)).unwrap();
    bytes
}

/// Shows INV-20. A body was read before anybody asked whether there is room for it: of 1 GiB, on each connection.
#[test]
fn large_bodies_wait_for_room_before_they_are_read_and_small_ones_do_not_wait_for_them() {
    let two = Node::new(2);
    let open = || {
        let mut stream = TcpStream::connect(two.tcp.local_addr()).unwrap();
        stream.write_all(&hello_of_one()).unwrap();
        stream
    };
    let large = |index| {
        let mut bytes = Vec::new();
        let data = message(1, 2, index, 24 << 20);
        frame::put(&mut bytes, FrameKind::Message, |out| codec::encode(&data, out)).unwrap();
        bytes
    };
    let held = || two.tcp.shared.reading.held();
    let until = |what: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < LONG);
            std::thread::yield_now();
        }
    };
    let (first, second) = (large(1), large(2));
    let (mut a, mut b) = (open(), open());
    a.write_all(&first[..frame::HEAD]).unwrap();
    until(&|| held().0 == first.len() - frame::HEAD);
    b.write_all(&second[..frame::HEAD]).unwrap();
    until(&|| held().1 == 1);
    assert_eq!(held().0, first.len() - frame::HEAD, "the second one has no room");
    // A heartbeat on a third connection comes at once.
    let mut small = Vec::new();
    frame::put(&mut small, FrameKind::Message, |out| codec::encode(&message(1, 2, 3, 0), out)).unwrap();
    let mut c = open();
    c.write_all(&small).unwrap();
    assert_eq!(two.message(), (1, MessageKind::Heartbeat, 3));
    a.write_all(&first[frame::HEAD..]).unwrap();
    assert_eq!(two.message(), (1, MessageKind::Append, 1));
    b.write_all(&second[frame::HEAD..]).unwrap();
    assert_eq!(two.message(), (1, MessageKind::Append, 2));
    until(&|| held() == (0, 0));
}

/// Shows INV-20. Anybody can announce a large body and never send it.
#[test]
fn who_is_no_member_keeps_no_member_waiting_with_a_body_that_does_not_come() {
    let two = Node::new(2);
    let mut large = Vec::new();
    let data = message(1, 2, 1, 40 << 20);
    frame::put(&mut large, FrameKind::Message, |out| codec::encode(&data, out)).unwrap();
    let mut stranger = TcpStream::connect(two.tcp.local_addr()).unwrap();
    stranger.write_all(&hello_of(77)).unwrap();
    stranger.write_all(&large[..frame::HEAD]).unwrap();
    let begun = Instant::now();
    while two.tcp.shared.reading_others.held().0 == 0 {
        assert!(begun.elapsed() < LONG);
        std::thread::yield_now();
    }
    let mut member = TcpStream::connect(two.tcp.local_addr()).unwrap();
    member.write_all(&hello_of_one()).unwrap();
    member.write_all(&large).unwrap();
    assert_eq!(two.message(), (1, MessageKind::Append, 1));
}

#[test]
fn garbage_and_silence_end_a_connection_and_nothing_else() {
    let (two, hasty) = (Node::new(2), Node::start(2, |options| options.handshake_timeout = Duration::from_millis(200)));
    let ends_at = |node: &Node, bytes: &[u8]| {
        let mut stream = TcpStream::connect(node.tcp.local_addr()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(bytes).unwrap();
        // Ended means the end of the stream or a reset, not a timeout of ours.
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    };
    let ends = |bytes: &[u8]| ends_at(&two, bytes);
    let malformed = |by: &str, words: &str| {
        let Seen::Malformed(who, what) = two.expect(|_| true) else { panic!("{words}") };
        assert_eq!(who, by);
        assert!(what.contains(words), "{what}");
    };
    let stranger = "127.0.0.1";
    ends(b"GET / HTTP/1.1\r\n\r\n");
    malformed(stranger, "frame type");
    // Who says nothing, or stops, says nothing wrong.
    ends_at(&hasty, b"");
    ends_at(&hasty, &[0; 8]);
    assert!(hasty.seen.is_empty());
    let mut wrong = hello_of_one();
    *wrong.last_mut().unwrap() ^= 1;
    ends(&wrong);
    malformed(stranger, "checksum");
    let mut long = hello_of_one();
    long[..4].copy_from_slice(&(FrameKind::Hello.limit() as u32 + 1).to_le_bytes());
    ends(&long);
    malformed(stranger, "limit");
    let mut magic = Vec::new();
    frame::put(&mut magic, FrameKind::Hello, |out| out.extend_from_slice(&[0; 64])).unwrap();
    ends(&magic);
    malformed(stranger, "magic");
    let mut early = Vec::new();
    frame::put(&mut early, FrameKind::Request, |out| out.extend_from_slice(&[0; 8])).unwrap();
    ends(&early);
    malformed(stranger, "not expected here");
    // A hello, and then a message in the name of somebody else.
    let mut bytes = hello_of_one();
    frame::put(&mut bytes, FrameKind::Message, |out| codec::encode(&message(3, 2, 1, 0), out)).unwrap();
    ends(&bytes);
    malformed("node 1 at 127.0.0.1", "message from 3 to 2");
    assert!(two.seen.is_empty());
    assert_eq!(call(&two.address(), b"x", LONG, false).unwrap(), b"None said x");
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

/// Shows INV-20.
#[test]
fn connections_without_a_hello_are_bounded() {
    let two = Node::start(2, |options| {
        options.max_pending = 2;
        options.handshake_timeout = LONG * 2;
    });
    let connect = || {
        let stream = TcpStream::connect(two.tcp.local_addr()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    };
    let mut held = [connect(), connect()];
    while two.tcp.shared.served.lock().len() < 2 {
        std::thread::yield_now();
    }
    let _third = connect();
    assert_eq!(held[0].read(&mut [0]).unwrap(), 0, "the first is hung up on, at once");
    assert!(call(&two.address(), b"x", LONG, false).is_ok(), "and whoever has something to say comes in");
    let pending = two.tcp.shared.served.lock().values().filter(|one| one.hello.is_none()).count();
    assert!(pending <= 2, "{pending}");
}

/// Strangers that say hello and then nothing, as many as there may be and more: they are told why no more of them come in, they
/// do not stay, and a member is let in all the while.
///
/// Shows INV-20.
#[test]
fn members_come_in_however_many_strangers_there_are() {
    let two = Node::start(2, |options| {
        options.max_programs = 3;
        options.max_connections = 6;
        options.request_timeout = LONG * 2;
    });
    let hello = hello_of_a_program();
    let dial = || dial::dial(&two.address(), &hello, false, LONG);
    let held: Vec<_> = (0..3).map(|_| dial().unwrap()).collect();
    let refused = format!("{:?}", call(&two.address(), b"x", LONG, false).unwrap_err());
    assert!(refused.contains("3 programs ask this node something already"), "{refused}");
    let one = Node::new(1);
    one.knows(&two);
    one.connected(2);
    drop(held);

    // Those that have nothing to ask do not stay.
    let quick = Node::start(2, |options| options.request_timeout = Duration::from_millis(50));
    let (mut link, _) = dial::dial(&quick.address(), &hello, false, LONG).unwrap();
    assert!(matches!(link.read(&[FrameKind::Response], Wait::Until(Instant::now() + LONG)), Err(LinkError::Closed)));
}

/// Shows INV-20.
#[test]
fn with_all_connections_taken_the_next_one_is_told_so() {
    let two = Node::start(2, |options| options.max_connections = 1);
    let one = Node::new(1);
    one.knows(&two);
    one.connected(2);
    while two.tcp.shared.served.lock().values().all(|one| one.hello.is_none()) {
        std::thread::yield_now();
    }
    let mut stream = TcpStream::connect(two.tcp.local_addr()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert!(String::from_utf8_lossy(&said).contains("1 connections are open, which is the limit"), "{said:?}");
}

/// Shows INV-20.
#[test]
fn a_queue_is_bounded_but_takes_one_message_of_any_size() {
    let peer = Peer::new(NodeId(2), "", (1000, 1000));
    let push = |bytes| {
        peer.small.push(bytes, Outgoing::Message(Box::new(message(1, 2, 1, 0))));
        peer.small.queued()
    };
    assert_eq!(push(5000), (1, 5000), "alone, whatever its size");
    assert_eq!(push(1), (1, 5000), "then full");
    peer.small.reset();
    assert_eq!(push(999), (1, 999));
    assert_eq!(push(2), (1, 999), "1001 of 1000");
    assert_eq!(push(1), (2, 1000), "1000 of 1000");
    assert_eq!(push(1), (2, 1000), "1001 of 1000");
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
