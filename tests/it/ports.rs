//! Ports of loopback for the nodes of a test.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use socket2::{Domain, Socket, Type};

/// Below those of clusters of processes (`harness/cluster.rs`), below those of `shoal demo`, which some tests run, and below what
/// systems give to outgoing connections and to who asks for any.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 10_000;

/// Ports that are free, and stay so while their nodes are not up: no test of this process is given one that another one was given.
pub(crate) fn free_ports(n: usize) -> Vec<u16> {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let seed = std::process::id().wrapping_mul(7919) % u32::from(PORTS);
    let next = || {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        assert!(tried < PORTS, "no {n} free ports from {FIRST_PORT} on");
        FIRST_PORT + (seed as u16 + tried) % PORTS
    };
    std::iter::repeat_with(next).filter(|port| bound(*port, true).is_ok()).take(n).collect()
}

/// A socket that is bound, and does not listen. Who shares the port may listen there all the same, also while a process that is
/// being started has a copy of this.
pub(crate) fn bound(port: u16, shares: bool) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(shares)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    Ok(socket)
}
