//! What a node bounds, and whom it does not believe.

use super::*;

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
