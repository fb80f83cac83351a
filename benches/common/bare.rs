//! What three processes on one machine cost when there is nothing but files and sockets: no SQL, no Raft, no checks.
//!
//! ```text
//! this process                        each of two others
//! the record to both sockets   ->     read; written over zeros; fdatasync
//! written over zeros; fdatasync
//! the first answer             <-     one byte
//! ```
//!
//! Files are written before, so that a sync has no metadata to write, as segments of the log are.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::common::Args;

/// Of one record: about what the entry of a small INSERT takes in the log.
const RECORD: usize = 1024;
/// Of a file; records start over at its end.
const FILE: u64 = 16 << 20;

/// A file of zeros that is on disk.
struct Records {
    file: File,
    next: u64,
}

impl Records {
    fn create(path: &Path) -> Records {
        let file = File::options().create_new(true).read(true).write(true).open(path).expect("a file");
        file.write_all_at(&vec![0; FILE as usize], 0).expect("zeros");
        file.sync_all().expect("sync");
        Records { file, next: 0 }
    }

    fn append(&mut self, record: &[u8]) {
        self.file.write_all_at(record, self.next).expect("write");
        self.file.sync_data().expect("sync");
        self.next = (self.next + record.len() as u64) % FILE;
    }
}

/// Whether this process is one of the two others; if so, it has been one until nobody wanted it any more.
pub(crate) fn is_process(args: &Args) -> bool {
    let (Some(address), Some(path)) = (args.value("--bare"), args.value("--file")) else { return false };
    let mut records = Records::create(Path::new(path));
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_nodelay(true).expect("no delay");
    stream.write_all(&[0]).expect("ready");
    let mut record = vec![0; RECORD];
    while stream.read_exact(&mut record).is_ok() {
        records.append(&record);
        if stream.write_all(&[1]).is_err() {
            break;
        }
    }
    true
}

/// See the module's text.
pub(crate) struct Bare {
    records: Records,
    others: Vec<TcpStream>,
    answers: Receiver<u64>,
    appended: u64,
    processes: Vec<Child>,
}

impl Bare {
    pub(crate) fn start(dir: &Path) -> Bare {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let (to, answers) = channel();
        let (mut others, mut processes) = (Vec::new(), Vec::new());
        for name in ["bare-2", "bare-3"] {
            let child = Command::new(std::env::current_exe().expect("own path"))
                .args(["--bare", &address, "--file"])
                .arg(dir.join(name))
                .stdin(Stdio::null())
                .spawn();
            processes.push(child.expect("a process"));
            let (mut stream, _) = listener.accept().expect("accept");
            stream.set_nodelay(true).expect("no delay");
            stream.read_exact(&mut [0]).expect("ready");
            others.push(stream.try_clone().expect("a second handle"));
            let to = to.clone();
            std::thread::spawn(move || {
                let mut count = 0;
                while stream.read_exact(&mut [0]).is_ok() {
                    count += 1;
                    if to.send(count).is_err() {
                        break;
                    }
                }
            });
        }
        Bare { records: Records::create(&dir.join("bare-1")), others, answers, appended: 0, processes }
    }

    /// One record, until two of three have it on disk.
    pub(crate) fn append(&mut self) {
        let record = [7; RECORD];
        self.others.iter_mut().for_each(|other| other.write_all(&record).expect("send"));
        self.records.append(&record);
        self.appended += 1;
        while self.answers.recv().expect("an answer") < self.appended {}
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for other in &self.others {
            let _ = other.shutdown(std::net::Shutdown::Both);
        }
        for process in &mut self.processes {
            let _ = process.wait();
        }
    }
}
