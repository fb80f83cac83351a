//! The admin socket: a Unix socket `admin.sock` in the data directory, for programs of the same user on this machine.
//!
//! A request is a frame (`admin/frame.rs`) of at most 1 MiB, an answer one of at most 64 MiB. One connection is one call, or
//! one SQL session (`session.rs`). The socket is made under another name, restricted to its owner (mode 0600), and then
//! renamed, so there is no moment at which others could connect to `admin.sock`; who connects must also be the owner,
//! or root. A socket that a killed node left behind is replaced: the directory's lock says that nobody listens there.
//!
//! Socket addresses hold about a hundred bytes. A longer path is reached through the open directory in `/proc/self/fd`.
//!
//! Deliberately absent: what requests mean (`admin.rs`); networks (`net/`).

use std::fs::{File, Permissions};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use shoaldb_vfs::env::in_words;

use crate::admin::{self, Request, frame};
use crate::config::MAX_CALLERS;
use crate::connection::{ConnectOptions, ReadLevel};
use crate::session::{self, Line, Sessions};
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
/// One caller more than [`MAX_CALLERS`] is told so, by a thread of its own; of these there are few.
const MAX_TURNED_AWAY: usize = 8;
/// A caller that sends nothing for this long is dropped. The tests hold places by saying nothing.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 5 });

/// A path that is short enough for a socket address, and what keeps it valid.
fn short(dir: &Path, name: &str) -> io::Result<(PathBuf, Option<File>)> {
    let path = dir.join(name);
    if path.as_os_str().len() <= LONGEST_PATH {
        return Ok((path, None));
    }
    let open = File::open(dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{name}", open.as_raw_fd())), Some(open)))
}

pub(crate) fn connect(dir: &Path) -> io::Result<UnixStream> {
    let (path, _open) = short(dir, NAME)?;
    UnixStream::connect(path)
}

/// The listening side. Dropping it ends it.
pub(crate) struct AdminSocket {
    dir: PathBuf,
    stop: Arc<AtomicBool>,
    sessions: Arc<Sessions>,
    thread: Option<JoinHandle<()>>,
}

impl Line for UnixStream {
    fn again(&self) -> io::Result<Box<dyn Line>> {
        Ok(Box::new(self.try_clone()?))
    }

    fn set_patience(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(None)?;
        self.set_write_timeout(Some(limit))
    }

    fn stop_listening(&self) {
        let _ = self.shutdown(Shutdown::Read);
    }

    fn hang_up(&self) {
        // An error says that it is over already.
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl AdminSocket {
    /// Opens the socket of a data directory whose lock the caller holds.
    pub(crate) fn open(hub: &Hub, vfs: &str, dir: &Path) -> io::Result<AdminSocket> {
        let (path, _open) = short(dir, UNFINISHED)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        std::fs::rename(dir.join(UNFINISHED), dir.join(NAME))?;
        let stop = Arc::new(AtomicBool::new(false));
        let sessions = Arc::new(Sessions::default());
        let thread = std::thread::Builder::new().name(format!("shoal-admin-{}", hub.id)).spawn({
            let (hub, callers, stop) = (hub.clone(), hub.callers.clone(), stop.clone());
            let (vfs, sessions) = (Arc::<str>::from(vfs), sessions.clone());
            let serve = move |stream, welcome| match welcome {
                true => answer(&hub, stream, &vfs, &sessions),
                false => turn_away(stream),
            };
            move || listen(&listener, &callers, &stop, &Arc::new(serve))
        })?;
        Ok(AdminSocket { dir: dir.to_path_buf(), stop, sessions, thread: Some(thread) })
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
        self.sessions.end();
    }
}

/// A place among the callers, until it is dropped: also by a panic, of which 32 would keep everybody out.
struct Place {
    callers: Arc<AtomicUsize>,
    before: usize,
}

impl Place {
    fn take(callers: &Arc<AtomicUsize>) -> Place {
        Place { before: callers.fetch_add(1, Ordering::AcqRel), callers: callers.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.callers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Has each caller served on a thread of its own, and says whether it is welcome.
fn listen(
    listener: &UnixListener,
    callers: &Arc<AtomicUsize>,
    stop: &AtomicBool,
    serve: &Arc<impl Fn(UnixStream, bool) -> io::Result<()> + Send + Sync + 'static>,
) {
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, most likely: not to be answered by spinning.
                tracing::warn!("the admin socket accepts nobody for the moment: {}", in_words(&error));
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let place = Place::take(callers);
        if place.before >= MAX_CALLERS + MAX_TURNED_AWAY {
            // What it asks is not waited for, so that these need no threads. A socket that is new takes a few bytes at once.
            let _ = stream.set_nonblocking(true).and_then(|()| frame::write(&mut &stream, &admin::busy(&too_many())));
            continue;
        }
        let (serve, welcome) = (serve.clone(), place.before < MAX_CALLERS);
        // Without a thread for it the caller is hung up on.
        let _ = std::thread::Builder::new().name("shoal-admin-call".to_string()).spawn(move || {
            let _place = place;
            if let Err(error) = serve(stream, welcome) {
                tracing::debug!(%error, "a call over the admin socket");
            }
        });
    }
}

fn answer(hub: &Hub, mut stream: UnixStream, vfs: &str, sessions: &Sessions) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    let caller = peer.uid;
    if caller != rustix::process::geteuid() && !caller.is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user"));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let process = peer.pid.as_raw_nonzero();
    let malformed = |error: &dyn std::fmt::Display| {
        hub.note_malformed(admin::OF_THIS_USER, "the admin socket", &format!("process {process}: {error}"));
    };
    let request = frame::read(&mut stream, MAX_REQUEST).inspect_err(|error| {
        if error.kind() == io::ErrorKind::InvalidData {
            malformed(error);
        }
    })?;
    let parsed = serde_json::from_slice(&request);
    if let Err(error) = &parsed {
        // The caller hears it, too.
        malformed(error);
    }
    if let Ok(Request::Session { name, level, create }) = parsed {
        let known = [ReadLevel::Local, ReadLevel::Linearizable].into_iter().find(|known| known.as_str() == level);
        let Some(read_level) = known else {
            return session::refuse(
                &mut stream,
                "bad_input",
                &format!("read level {level}: use local or linearizable"),
            );
        };
        let options = ConnectOptions { read_level, create, ..ConnectOptions::default() };
        return session::serve(hub, vfs, sessions, (&name, &options), Box::new(stream));
    }
    frame::write(&mut stream, &admin::serve_owner(hub, &request))
}

fn too_many() -> String {
    format!(
        "this node answers {MAX_CALLERS} callers at the same time, which is the limit, and SQL sessions count; end some, or try again"
    )
}

/// One caller too many, in the words that it understands.
fn turn_away(mut stream: UnixStream) -> io::Result<()> {
    let why = too_many();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = frame::read(&mut stream, MAX_REQUEST)?;
    match serde_json::from_slice(&request) {
        Ok(Request::Session { .. }) => session::refuse(&mut stream, "busy", &why),
        _ => frame::write(&mut stream, &admin::busy(&why)),
    }
}

/// Calls the node that runs in `dir`. `NotFound` and `ConnectionRefused` mean that none does, `TimedOut` that it says nothing.
pub(crate) fn call(dir: &Path, request: &[u8], timeout: Duration) -> io::Result<Vec<u8>> {
    let ask = || {
        let mut stream = connect(dir)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let written = frame::write(&mut stream, request);
        match written.as_ref().map_err(io::Error::kind) {
            // Whoever is turned away unheard is told so all the same.
            Ok(()) | Err(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                frame::read(&mut stream, MAX_ANSWER).or_else(|unread| written.and(Err(unread)))
            }
            Err(_) => written.map(|()| Vec::new()),
        }
    };
    ask().map_err(timed_out)
}

/// What a socket with a timeout calls a try that would wait.
pub(crate) fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

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
        assert_eq!(node.status().malformed, 1);
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

    /// What a session's caller says, and what comes back, as JSON.
    struct Caller(UnixStream);

    impl Caller {
        fn open(dir: &Path, opening: &str) -> (Caller, String) {
            let mut caller = Caller(connect(dir).unwrap());
            caller.say(opening);
            let answer = caller.hear().unwrap();
            (caller, answer)
        }

        fn say(&mut self, json: &str) {
            frame::write(&mut self.0, json.as_bytes()).unwrap();
        }

        fn hear(&mut self) -> Option<String> {
            frame::read(&mut self.0, MAX_ANSWER).ok().map(|json| String::from_utf8(json).unwrap())
        }

        fn hear_all(&mut self) -> Vec<String> {
            let mut all = Vec::new();
            while let Some(json) = self.hear() {
                let ready = json.starts_with("{\"ready\"");
                all.push(json);
                if ready {
                    break;
                }
            }
            all
        }
    }

    const OPENING: &str = r#"{"op":"session","name":"app","level":"local","create":true}"#;

    #[test]
    fn a_session_says_what_is_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let _node = Node::open(dir.path()).unwrap();
        let (mut caller, opened) = Caller::open(dir.path(), OPENING);
        assert_eq!(opened, r#"{"opened":{"node":1}}"#);
        caller.say(r#"{"run":{"number":1,"sql":"CREATE TABLE t(x); SELECT 1 AS a, 'x'","rows":[]}}"#);
        let done = [
            r#"{"done":{"changes":0}}"#,
            r#"{"columns":["a","'x'"]}"#,
            r#"{"rows":[[1,"x"]]}"#,
            r#"{"done":{"changes":0}}"#,
            r#"{"ready":{"number":1,"in_transaction":false}}"#,
        ];
        assert_eq!(caller.hear_all(), done);
        // An interruption that comes late ends nothing that comes later.
        caller.say(r#"{"interrupt":{"number":1}}"#);
        caller.say(r#"{"run":{"number":2,"sql":"INSERT INTO t VALUES (?)","rows":[[1],[null],[{"b":"00"}]]}}"#);
        assert_eq!(
            caller.hear_all(),
            [r#"{"done":{"changes":3}}"#, r#"{"ready":{"number":2,"in_transaction":false}}"#]
        );
        // One that comes early ends what it names.
        caller.say(r#"{"interrupt":{"number":3}}"#);
        caller.say(r#"{"run":{"number":3,"sql":"BEGIN; INSERT INTO t VALUES (2)"}}"#);
        let ended = caller.hear_all();
        assert!(ended[0].contains("interrupted") && ended[1].contains(r#""in_transaction":false"#), "{ended:?}");
        caller.say(r#"{"run":{"number":4,"sql":"SELECT ?1, nix"}}"#);
        let failed = caller.hear_all();
        assert!(failed[0].contains(r#""code":1"#) && failed[0].contains(r#""at":11"#), "{failed:?}");
        caller.say(r#"{"run":{"number":5,"sql":"INSERT INTO t VALUES (?)","rows":[[1,2]]}}"#);
        assert!(caller.hear_all()[0].contains("2 values for 1 parameters"));
        let wide = format!(r#"SELECT {} FROM (SELECT 1 AS '{}')"#, vec!["*"; 40].join(", "), "x".repeat(1 << 20));
        caller.say(&format!(r#"{{"run":{{"number":6,"sql":"{wide}"}}}}"#));
        let failed = caller.hear_all();
        assert!(failed[0].contains("bad_input") && failed[0].contains("names of columns"), "{:.200}", failed[0]);
        assert_eq!(failed[1], r#"{"ready":{"number":6,"in_transaction":false}}"#);
        let (_, refused) = Caller::open(dir.path(), &OPENING.replace("local", "loca"));
        assert!(refused.contains("use local or linearizable"), "{refused}");
    }

    #[test]
    fn a_caller_who_does_not_keep_to_the_words_is_hung_up_on_and_rolled_back() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(dir.path()).unwrap();
        let until_malformed = |count: u64| {
            let end = std::time::Instant::now() + PATIENCE;
            while node.status().malformed < count {
                assert!(std::time::Instant::now() < end, "{} of {count}", node.status().malformed);
                std::thread::yield_now();
            }
        };
        node.connect("app").unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
        let begin = r#"{"run":{"number":1,"sql":"BEGIN IMMEDIATE; INSERT INTO t VALUES (1)"}}"#;
        let endless = r#"{"run":{"number":2,"sql":"WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT max(x) FROM c"}}"#;
        let wrong: [&[&str]; 4] = [
            &["nonsense"],
            &[r#"{"run":{"number":2,"sql":"SELECT 1","more":1}}"#],
            &[r#"{"run":{"number":2,"sql":"SELECT 1","rows":[[true]]}}"#],
            // It does not wait for its answer.
            &[endless, endless, endless],
        ];
        for said in wrong {
            let (mut caller, _) = Caller::open(dir.path(), OPENING);
            caller.say(begin);
            caller.hear_all();
            for json in said {
                // The node may have hung up at one before.
                let _ = frame::write(&mut caller.0, json.as_bytes());
            }
            while caller.hear().is_some() {}
            // Waits for the write lock.
            let db = node.connect("app").unwrap();
            db.execute("UPDATE t SET x = x", []).unwrap();
            assert_eq!(db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 0, "{said:?}");
        }
        let (mut caller, _) = Caller::open(dir.path(), OPENING);
        caller.0.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(caller.hear(), None);
        // Three of the four did not keep to the words; to say too much is none of that.
        until_malformed(4);
    }

    /// An end in order says what became of what ran: nobody has to look.
    #[test]
    fn whoever_runs_a_statement_when_the_node_ends_is_told_that_it_is_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(dir.path()).unwrap();
        let db = node.connect("app").unwrap();
        db.execute_batch("CREATE TABLE t(x)").unwrap();
        let (mut runs, _) = Caller::open(dir.path(), OPENING);
        let (mut idle, _) = Caller::open(dir.path(), OPENING);
        let endless = "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT x FROM c";
        runs.say(&format!(r#"{{"run":{{"number":1,"sql":"{endless}"}}}}"#));
        db.busy_timeout(Duration::ZERO).unwrap();
        while db.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok() {
            std::thread::yield_now();
        }
        node.shutdown().unwrap();
        let heard = runs.hear_all();
        assert!(heard[0].starts_with(r#"{"failed""#) && heard[0].contains("not_committed"), "{heard:?}");
        assert!(heard[0].contains("shutting down"), "{heard:?}");
        let heard = idle.hear().unwrap();
        assert!(heard.starts_with(r#"{"ended""#) && heard.contains("shutting down"), "{heard}");
    }

    /// Between the beginning of the node's end and that of its sessions a statement was told that there is no leader, or, if it
    /// had waited until the databases were closed, of a "disk I/O error".
    #[test]
    fn a_statement_that_comes_while_the_node_ends_is_told_that_it_is_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(dir.path()).unwrap();
        node.connect("app").unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
        let (mut caller, _) = Caller::open(dir.path(), OPENING);
        let mut is_told = |number: u32| {
            caller.say(&format!(r#"{{"run":{{"number":{number},"sql":"INSERT INTO t VALUES (1)"}}}}"#));
            let heard = caller.hear_all();
            assert!(
                heard[0].contains(r#"{"failed":{"kind":"stopped","text":"this node is shutting down"#),
                "{heard:?}"
            );
            assert!(heard[0].contains("not_committed"), "{heard:?}");
        };
        node.hub().close();
        is_told(1);
        node.hub().databases.stop();
        is_told(2);
    }

    #[test]
    fn one_caller_too_many_is_told_so_and_comes_in_when_another_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let _node = Node::open(dir.path()).unwrap();
        // They say nothing for the moment, and are waited for.
        let mut held: Vec<_> = (0..MAX_CALLERS).map(|_| connect(dir.path()).unwrap()).collect();
        let answer = call(dir.path(), b"{\"op\":\"health\"}", PATIENCE).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("busy") && answer.contains("32 callers at the same time"), "{answer}");
        let (_, refused) = Caller::open(dir.path(), OPENING);
        assert!(refused.contains("failed") && refused.contains("32 callers at the same time"), "{refused}");
        // So many more that nobody listens any more. It was "Broken pipe", or "Connection reset by peer".
        let unheard: Vec<_> = (0..MAX_TURNED_AWAY).map(|_| connect(dir.path()).unwrap()).collect();
        for _ in 0..20 {
            let answer = String::from_utf8(call(dir.path(), b"{\"op\":\"health\"}", PATIENCE).unwrap()).unwrap();
            assert!(answer.contains("busy") && answer.contains("32 callers at the same time"), "{answer}");
            // A session did not understand it.
            let refused = crate::client::session::Session::open(dir.path(), "app", ReadLevel::Local, true).unwrap_err();
            assert_eq!(refused.kind(), Some(crate::ErrorKind::Busy), "{refused:?}");
            assert!(
                refused.text.contains("32 callers at the same time") && refused.text.contains("end some"),
                "{refused:?}"
            );
        }
        drop(unheard);
        held.pop();
        let until = std::time::Instant::now() + 6 * PATIENCE;
        // Those who were turned away leave one after another, and who comes while many are about to is hung up on.
        while !call(dir.path(), b"{\"op\":\"health\"}", PATIENCE).is_ok_and(|answer| answer == b"{\"ok\":null}") {
            assert!(std::time::Instant::now() < until, "nobody comes in");
        }
    }

    #[test]
    fn callers_in_whose_answer_something_panics_keep_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(NAME)).unwrap();
        let serve = |mut stream: UnixStream, welcome: bool| {
            let mut said = [0];
            stream.read_exact(&mut said)?;
            if said == *b"p" {
                // A panic, but for its words on the terminal.
                std::panic::resume_unwind(Box::new("a mistake of ours"));
            }
            stream.write_all(if welcome { b"y" } else { b"n" })
        };
        std::thread::spawn(move || listen(&listener, &Arc::default(), &AtomicBool::new(false), &Arc::new(serve)));
        let ask = |what: &[u8]| -> io::Result<Vec<u8>> {
            let mut stream = connect(dir.path())?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(what)?;
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard)?;
            Ok(heard)
        };
        for _ in 0..2 * MAX_CALLERS {
            // One that is hung up on before it said anything is no worse off.
            let _ = ask(b"p");
        }
        // The last ones may be on their way out.
        let until = std::time::Instant::now() + PATIENCE;
        while !ask(b"a").is_ok_and(|heard| heard == b"y") {
            assert!(std::time::Instant::now() < until, "nobody comes in");
        }
    }

    #[test]
    fn a_request_that_claims_too_much_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(dir.path()).unwrap();
        let mut stream = connect(dir.path()).unwrap();
        stream.write_all(&(MAX_REQUEST as u32 + 1).to_le_bytes()).unwrap();
        assert!(frame::read(&mut stream, MAX_ANSWER).is_err(), "hung up");
        assert_eq!(node.status().malformed, 1);
    }
}
