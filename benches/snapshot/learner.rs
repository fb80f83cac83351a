//! A node in a process of its own, and what it says. A voter says only when its log is compacted: nobody listens to it.
//!
//! ```text
//! it prints                        when
//! ... a view was lent ... micros=N  its log says so
//! ... was interrupted ... received=N
//!                                  its log says what came in an attempt that did not come to its end
//! done PERCENT                     so much of a snapshot is in place
//! installed BYTES MILLIS           a snapshot counts: what came for it in this attempt, and how long that took
//! compacted                        its log does not begin with the first entry any more
//! at INDEX                         it has applied so much
//! ```

use std::time::{Duration, Instant};

use shoaldb::Event;

use crate::cluster::VOTERS;
use crate::common::{Process, Seat, until_input_ends};
use crate::settings;

/// Until nobody wants it any more.
pub(crate) fn run(seat: &Seat) {
    let is_voter = seat.member().id <= VOTERS as u64;
    if !is_voter {
        tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(std::io::stdout).init();
    }
    let node = seat.start(settings);
    let (events, told) = (node.events(), node.clone());
    std::thread::spawn(move || {
        let mut begun = Instant::now();
        for event in events {
            match event {
                Event::SnapshotStarted { .. } => begun = Instant::now(),
                Event::SnapshotInstalled { bytes, .. } => {
                    println!("installed {bytes} {}", begun.elapsed().as_millis());
                }
                Event::LogCompacted { .. } => println!("compacted"),
                _ => {}
            }
        }
    });
    if is_voter {
        return until_input_ends();
    }
    std::thread::spawn(move || {
        let (mut done, mut applied) = (0, 0);
        loop {
            let status = told.status();
            if let Some(snapshot) = status.snapshot.filter(|snapshot| snapshot.total > 0) {
                let now = snapshot.done * 100 / snapshot.total;
                if now != done {
                    println!("done {now}");
                    done = now;
                }
            }
            if status.applied.0 != applied {
                applied = status.applied.0;
                println!("at {applied}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    until_input_ends();
}

/// Something that a node said.
pub(crate) enum Said {
    /// It was lent a view after so many microseconds.
    Lent(u64),
    /// It has so many percent of a snapshot in place.
    Done(u64),
    /// An attempt ended before its end: bytes that came in it.
    Interrupted(u64),
    /// A snapshot counts: bytes that came, milliseconds since it began.
    Installed(u64, u64),
    /// Its log dropped entries.
    Compacted,
    /// It has applied this entry.
    At(u64),
}

/// The next thing that it says.
pub(crate) fn next(process: &mut Process) -> Said {
    loop {
        let line = process.line();
        assert!(!line.is_empty(), "a node has ended");
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| text.parse::<u64>().expect("a number");
        match words[..] {
            ["done", percent] => return Said::Done(number(percent)),
            ["installed", bytes, millis] => return Said::Installed(number(bytes), number(millis)),
            ["compacted"] => return Said::Compacted,
            ["at", index] => return Said::At(number(index)),
            _ if line.contains("a view was lent") => return Said::Lent(number(field(&words, "micros="))),
            _ if line.contains("a snapshot was interrupted") => {
                return Said::Interrupted(number(field(&words, "received=")));
            }
            _ => {}
        }
    }
}

/// What a line of the log says of something.
fn field<'a>(words: &[&'a str], name: &str) -> &'a str {
    words.iter().rev().find_map(|word| word.strip_prefix(name)).expect("it is in the line")
}
