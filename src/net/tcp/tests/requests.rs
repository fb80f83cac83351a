//! Requests and their answers.

use super::*;

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
