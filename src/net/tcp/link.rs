//! One TCP connection: socket options, frames in and out, deadlines.
//!
//! Deliberately absent: who connects to whom, and why.

use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::net::{RecvFlags, SendFlags};
use shoaldb_vfs::buffer::Buffer;
use shoaldb_vfs::env::in_words;
use socket2::{SockRef, TcpKeepalive};

use crate::fields::Damaged;
use crate::net::frame::{self, FrameKind, FrameTooLong, Head};

/// A frame that has begun must go on within this time.
const STALL: Duration = Duration::from_secs(10);
/// A write that moves nothing for this long ends the connection: the queue behind it is full by then.
const WRITE_STALL: Duration = Duration::from_secs(10);
/// An idle connection is probed after this time, so that a host that vanished is noticed within half a minute.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Memory for a body is taken in steps, the first of this size, each as large as what has arrived.
const FIRST_STEP: usize = 64 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("closed by the other side")]
    Closed,
    #[error("closed by the other side in the middle of a frame")]
    Cut,
    #[error("no answer in time")]
    TimedOut,
    #[error("{}", of_socket(_0))]
    Io(#[from] io::Error),
    #[error("{0}")]
    Damaged(#[from] Damaged),
    #[error("{0}")]
    TooLong(#[from] FrameTooLong),
    #[error("{0:?} frame, not expected here")]
    Unexpected(FrameKind),
}

impl LinkError {
    /// What came was none of our frames, or did not belong there.
    pub(super) fn is_malformed(&self) -> bool {
        matches!(self, LinkError::Damaged(_) | LinkError::Unexpected(_))
    }

    /// Nobody is there: ordinary while a cluster starts, or one of its nodes does.
    pub(super) fn is_nobody(&self) -> bool {
        matches!(self, LinkError::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// The error as text, with what to do about it where that is known.
fn of_socket(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens there; start that node, or correct the address".to_string(),
        _ => in_words(error),
    }
}

/// How long to wait for a frame.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    /// All of it must be there by then.
    Until(Instant),
    /// It may begin at any time, but then it must go on.
    Idle,
}

/// A connection, read by one thread and written by one.
pub(super) struct Link {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Link {
    pub(super) fn new(stream: TcpStream) -> io::Result<Link> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_STALL))?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 2);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let reader = BufReader::with_capacity(FIRST_STEP, stream.try_clone()?);
        Ok(Link { stream, reader })
    }

    /// Another handle of the socket, to end the connection from outside.
    pub(super) fn handle(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Writes one frame.
    pub(super) fn put(&mut self, kind: FrameKind, body: impl FnOnce(&mut Vec<u8>)) -> Result<(), LinkError> {
        let mut out = Vec::new();
        frame::put(&mut out, kind, body)?;
        self.write(&out)
    }

    /// Writes one frame whose body is `first`, which is short, and then `rest`, which is not copied.
    pub(super) fn put_parts(&mut self, kind: FrameKind, first: &[u8], rest: &[u8]) -> Result<(), LinkError> {
        let head = [&frame::head(kind, &[first, rest])?, first].concat();
        let mut parts = [IoSlice::new(&head), IoSlice::new(rest)];
        let mut left = &mut parts[..];
        while !left.is_empty() {
            match self.stream.write_vectored(left) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads one frame of an allowed type.
    pub(super) fn read(&mut self, allowed: &[FrameKind], wait: Wait) -> Result<(FrameKind, Vec<u8>), LinkError> {
        self.read_into(Vec::new(), allowed, wait)
    }

    /// [`Link::read`] into memory that is there already, whatever is in it, as far as that goes.
    pub(super) fn read_into(
        &mut self,
        mut body: Vec<u8>,
        allowed: &[FrameKind],
        wait: Wait,
    ) -> Result<(FrameKind, Vec<u8>), LinkError> {
        let head = self.head(allowed, wait)?;
        body.truncate(head.len);
        let mut done = body.len();
        self.fill(&mut body, wait, false)?;
        while done < head.len {
            let step = done.max(FIRST_STEP).min(head.len - done);
            body.resize(done + step, 0);
            self.fill(&mut body[done..], wait, false)?;
            done += step;
        }
        head.check(&body)?;
        Ok((head.kind, body))
    }

    /// [`Link::read`] of what may be large, and is kept in pieces. `room` is asked before any memory is taken for a body of so
    /// many bytes, and may wait; what it gives lasts as long as the caller keeps it.
    pub(super) fn read_shared<R>(
        &mut self,
        allowed: &[FrameKind],
        wait: Wait,
        room: impl FnOnce(usize) -> R,
    ) -> Result<(FrameKind, Bytes, R), LinkError> {
        let head = self.head(allowed, wait)?;
        let room = room(head.len);
        // Memory for what is announced is taken as it comes, if it is much: by the buffer.
        let mut body = Buffer::zeroed(head.len);
        self.fill(body.as_mut(), wait, false)?;
        head.check(body.as_ref())?;
        Ok((head.kind, Bytes::from_owner(body), room))
    }

    fn head(&mut self, allowed: &[FrameKind], wait: Wait) -> Result<Head, LinkError> {
        if matches!(wait, Wait::Idle) {
            self.stream.set_read_timeout(Some(STALL))?;
        }
        let mut head = [0; frame::HEAD];
        self.fill(&mut head, wait, true)?;
        let head = Head::parse(&head)?;
        if !allowed.contains(&head.kind) {
            return Err(LinkError::Unexpected(head.kind));
        }
        Ok(head)
    }

    fn fill(&mut self, buf: &mut [u8], wait: Wait, at_boundary: bool) -> Result<(), LinkError> {
        let mut done = 0;
        while done < buf.len() {
            if let Wait::Until(deadline) = wait {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(LinkError::TimedOut);
                }
                self.stream.set_read_timeout(Some(left))?;
            }
            let nothing_yet = at_boundary && done == 0;
            match self.reader.read(&mut buf[done..]) {
                Ok(0) if nothing_yet => return Err(LinkError::Closed),
                Ok(0) => return Err(LinkError::Cut),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if !(nothing_yet && matches!(wait, Wait::Idle)) {
                        return Err(LinkError::TimedOut);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether the other side still holds a connection on which it has nothing to say. Does not block.
    pub(super) fn is_open(&self) -> bool {
        let mut byte = [0u8; 1];
        match rustix::net::recv(&self.stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok(_) => false,
            Err(error) => error == rustix::io::Errno::AGAIN || error == rustix::io::Errno::INTR,
        }
    }
}

/// Writes what the socket takes without waiting, and says how much that was.
pub(super) fn write_some(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// An address that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No name or port is looked up for this.
    #[error("address {address:?}: {what}; give host:port, such as 127.0.0.1:4001")]
    Malformed {
        /// The address.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// Not an address, or no such host.
    #[error("address {address:?}: {error}; give host:port, such as 127.0.0.1:4001")]
    Unresolved {
        /// The address.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// Traffic is not encrypted yet.
    #[error(
        "address {address:?} is not a loopback address ({resolved}), and traffic between nodes is not encrypted; on a network that you trust allow it with allow_plaintext_remote"
    )]
    Remote {
        /// The address.
        address: String,
        /// What it stands for.
        resolved: SocketAddr,
    },
}

/// Whether this is `host:port` at all, whatever it leads to. Port 0, any that is free, is one to listen on only.
pub(super) fn check_shape(address: &str, any_port: bool) -> Result<(), AddressError> {
    let malformed = |what: String| Err(AddressError::Malformed { address: address.to_string(), what });
    let Some((host, port)) = address.rsplit_once(':') else { return malformed("there is no port".to_string()) };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.trim_matches(['[', ']']).is_empty() || host.contains(char::is_whitespace) {
        return malformed("there is no host".to_string());
    }
    if host.contains(':') && !bracketed {
        return malformed("a host with colons in it stands in brackets, as in [::1]:4001".to_string());
    }
    match port.parse::<u16>() {
        Ok(0) if !any_port => malformed("nobody is reached at port 0".to_string()),
        Ok(_) => Ok(()),
        Err(_) => malformed(format!("the port {port:?} is no number from 1 to 65535")),
    }
}

/// The socket addresses of `host:port`; loopback only, unless others are allowed.
pub(super) fn resolve(address: &str, allow_remote: bool) -> Result<Vec<SocketAddr>, AddressError> {
    let unresolved = |error| AddressError::Unresolved { address: address.to_string(), error };
    let found: Vec<SocketAddr> = address.to_socket_addrs().map_err(unresolved)?.collect();
    if found.is_empty() {
        return Err(unresolved(io::ErrorKind::NotFound.into()));
    }
    match found.iter().find(|found| !allow_remote && !found.ip().is_loopback()) {
        Some(resolved) => Err(AddressError::Remote { address: address.to_string(), resolved: *resolved }),
        None => Ok(found),
    }
}

/// Connects to the first address that answers.
pub(super) fn connect(addresses: &[SocketAddr], timeout: Duration) -> io::Result<TcpStream> {
    let until = Instant::now() + timeout;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (at, address) in addresses.iter().enumerate() {
        // One that says nothing leaves the others their share.
        let share = until.saturating_duration_since(Instant::now()) / (addresses.len() - at) as u32;
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
