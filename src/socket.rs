//! The admin socket: a Unix socket `admin.sock` in the data directory, for programs of the same user on this machine.
//!
//! ```text
//! offset size  field (little-endian), the same in both directions
//!      0    4  length of the JSON that follows, at most 1 MiB for a request, 64 MiB for an answer
//!      4    n  a request or a reply of admin.rs
//! ```
//!
//! One connection is one call. The socket is made under another name, restricted to its owner (mode 0600), and then
//! renamed, so there is no moment at which others could connect to `admin.sock`; who connects must also be the owner,
//! or root. A socket that a killed node left behind is replaced: the directory's lock says that nobody listens there.
//!
//! Socket addresses hold about a hundred bytes. A longer path is reached through the open directory in `/proc/self/fd`.
//!
//! Deliberately absent: what requests mean (`admin.rs`); networks (`net/`).

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::admin;
use crate::shared::Hub;

/// Name of the socket in a data directory.
pub(crate) const NAME: &str = "admin.sock";
/// Where it is made.
const UNFINISHED: &str = "admin.sock.new";
/// Largest request.
const MAX_REQUEST: usize = 1 << 20;
/// Largest answer that a caller takes.
const MAX_ANSWER: usize = 64 << 20;
/// `sun_path` has 108 bytes on Linux and 104 elsewhere, one of them a NUL.
const LONGEST_PATH: usize = 100;
/// Callers at the same time. One more is turned away.
const MAX_CALLERS: usize = 32;
/// A caller that sends nothing for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(5);

/// A path that is short enough for a socket address, and what keeps it valid.
fn short(dir: &Path, name: &str) -> io::Result<(PathBuf, Option<File>)> {
    let path = dir.join(name);
    if path.as_os_str().len() <= LONGEST_PATH {
        return Ok((path, None));
    }
    let open = File::open(dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{name}", open.as_raw_fd())), Some(open)))
}

fn connect(dir: &Path) -> io::Result<UnixStream> {
    let (path, _open) = short(dir, NAME)?;
    UnixStream::connect(path)
}

/// The listening side. Dropping it ends it.
pub(crate) struct AdminSocket {
    dir: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AdminSocket {
    /// Opens the socket of a data directory whose lock the caller holds.
    pub(crate) fn open(hub: &Hub, dir: &Path) -> io::Result<AdminSocket> {
        let (path, _open) = short(dir, UNFINISHED)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        std::fs::rename(dir.join(UNFINISHED), dir.join(NAME))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name(format!("shoal-admin-{}", hub.id)).spawn({
            let (hub, stop) = (hub.clone(), stop.clone());
            move || listen(&hub, &listener, &stop)
        })?;
        Ok(AdminSocket { dir: dir.to_path_buf(), stop, thread: Some(thread) })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the listener. If the socket was removed by hand, nothing can, and the thread is left alone.
        let woken = connect(&self.dir).is_ok();
        let _ = std::fs::remove_file(self.dir.join(NAME));
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

fn listen(hub: &Hub, listener: &UnixListener, stop: &AtomicBool) {
    let callers = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, most likely: not to be answered by spinning.
                tracing::warn!(%error, "the admin socket accepts nobody for the moment");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if callers.fetch_add(1, Ordering::AcqRel) >= MAX_CALLERS {
            callers.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (hub, gone) = (hub.clone(), callers.clone());
        let spawned = std::thread::Builder::new().name("shoal-admin-call".to_string()).spawn(move || {
            if let Err(error) = answer(&hub, stream) {
                tracing::debug!(%error, "a call over the admin socket");
            }
            gone.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            callers.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn answer(hub: &Hub, mut stream: UnixStream) -> io::Result<()> {
    let caller = rustix::net::sockopt::socket_peercred(&stream)?.uid;
    if caller != rustix::process::geteuid() && !caller.is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user"));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = read(&mut stream, MAX_REQUEST)?;
    write(&mut stream, &admin::serve(hub, None, &request))
}

/// Calls the node that runs in `dir`. `NotFound` and `ConnectionRefused` mean that none does.
pub(crate) fn call(dir: &Path, request: &[u8], timeout: Duration) -> io::Result<Vec<u8>> {
    let mut stream = connect(dir)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write(&mut stream, request)?;
    read(&mut stream, MAX_ANSWER)
}

fn write(stream: &mut UnixStream, json: &[u8]) -> io::Result<()> {
    let length = u32::try_from(json.len()).map_err(|_| io::Error::other("more than 4 GiB of JSON"))?;
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(json)
}

fn read(stream: &mut UnixStream, limit: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > limit {
        return Err(io::Error::other(format!("{length} bytes of JSON, limit {limit}")));
    }
    let mut json = vec![0; length];
    stream.read_exact(&mut json)?;
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    #[test]
    fn the_socket_is_its_owners_and_answers() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let answer = call(dir.path(), b"{\"op\":\"health\"}", PATIENCE).unwrap();
        assert_eq!(answer, b"{\"ok\":null}");
        let answer = call(dir.path(), b"nonsense", PATIENCE).unwrap();
        assert!(String::from_utf8(answer).unwrap().contains("bad_input"));
        node.shutdown().unwrap();
        assert_eq!(call(dir.path(), b"", PATIENCE).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_socket_that_was_left_behind_is_replaced_and_a_long_path_works() {
        let dir = tempfile::tempdir().unwrap();
        for length in [LONGEST_PATH - 1, LONGEST_PATH, LONGEST_PATH + 1, 200] {
            let missing = length - dir.path().as_os_str().len() - NAME.len() - 2;
            let path = dir.path().join("d".repeat(missing));
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join(UNFINISHED), "left").unwrap();
            std::fs::write(path.join(NAME), "left").unwrap();
            let _node = Node::open(&path).unwrap();
            assert!(call(&path, b"{\"op\":\"health\"}", PATIENCE).is_ok(), "{length}");
        }
    }

    #[test]
    fn a_request_that_claims_too_much_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let _node = Node::open(dir.path()).unwrap();
        let mut stream = connect(dir.path()).unwrap();
        stream.write_all(&(MAX_REQUEST as u32 + 1).to_le_bytes()).unwrap();
        assert!(read(&mut stream, MAX_ANSWER).is_err(), "hung up");
    }
}
