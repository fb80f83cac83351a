//! Calls of a node that take their time: an answer of administration, a transfer of a snapshot.
//!
//! Such a call waits, in the real node, on a thread of its own. Here it has one too, but that thread runs only while the
//! world stands still for it: the world *resumes* it, and it runs until it has to wait, says for what, and stands still
//! itself. So there is one thing that runs at any moment, and the seed decides what is next.
//!
//! ```text
//! the call waits for             it says     it goes on when
//! an answer of another node      Asks        the answer comes, or it is clear that none will
//! the next one on a line         Awaits      the same; questions that follow each other on a line may all be on their way
//! a condition, or time           Pauses      some time has passed; it looks again
//! ```
//!
//! A call of a process that ends is unwound where it stands, as if it had never run on.
//!
//! Clients' calls have SQLite below them and connections that belong to their node, so they stay on the world's stack, where
//! they move the world on from inside (`world.rs`). The calls in here hold nothing that others wait for.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::net::{Calls, RequestError};
use crate::snapshot::rounds::Rounds;
use crate::types::NodeId;

/// What a call comes to.
pub(super) enum Outcome {
    /// Administration: the answer, as bytes.
    Answer(Vec<u8>),
    /// Snapshots: the rounds go on another time.
    Rounds(Rounds),
}

/// What a call says when it stands still.
pub(super) enum Said {
    Asks {
        to: NodeId,
        body: Vec<u8>,
        limit: Duration,
    },
    /// The answer to the oldest question on this line that has none.
    Awaits {
        line: u64,
        limit: Duration,
    },
    Pauses,
    Over(Outcome),
    Panicked(String),
}

/// What a call has done to its lines since it stood still: for that it need not wait.
pub(super) enum Act {
    Sends { line: u64, to: NodeId, body: Vec<u8> },
    HangsUp { line: u64 },
}

/// What the world tells a call that stands still.
pub(super) enum Told {
    GoOn,
    Answer(Result<Vec<u8>, RequestError>),
    /// Its process is gone.
    End,
}

/// The payload that unwinds a call whose process is gone.
struct ProcessGone;

struct Side {
    says: Sender<(Vec<Act>, Said)>,
    hears: Receiver<Told>,
    acts: Vec<Act>,
    /// Lines that it has opened so far.
    lines: u64,
}

thread_local! {
    static SIDE: RefCell<Option<Side>> = const { RefCell::new(None) };
}

/// A call that stands still.
pub(super) struct Strand {
    tells: Sender<Told>,
    heard: Receiver<(Vec<Act>, Said)>,
    thread: Option<JoinHandle<()>>,
}

impl Strand {
    /// A call that has not begun; the first [`Strand::resume`] begins it.
    pub(super) fn new(body: impl FnOnce() -> Outcome + Send + 'static) -> std::io::Result<Strand> {
        let (tells, hears) = channel();
        let (says, heard) = channel();
        let thread = std::thread::Builder::new().name("sim-strand".to_string()).spawn(move || {
            let last = says.clone();
            if !matches!(hears.recv(), Ok(Told::GoOn)) {
                return;
            }
            SIDE.set(Some(Side { says, hears, acts: Vec::new(), lines: 0 }));
            let said = match catch_unwind(AssertUnwindSafe(body)) {
                Ok(outcome) => Said::Over(outcome),
                Err(payload) if payload.is::<ProcessGone>() => return,
                Err(payload) => Said::Panicked(words_of(&*payload)),
            };
            let _ = last.send((take_acts(), said));
        })?;
        Ok(Strand { tells, heard, thread: Some(thread) })
    }

    /// Lets the call run until it has to wait again, or is over. What it did, and why it stands still.
    pub(super) fn resume(&self, told: Told) -> (Vec<Act>, Said) {
        let panicked = |what: &str| (Vec::new(), Said::Panicked(what.to_string()));
        if self.tells.send(told).is_err() {
            return panicked("a call that is over was resumed");
        }
        self.heard.recv().unwrap_or_else(|_| panicked("a call ended without a word"))
    }
}

impl Drop for Strand {
    /// Unwinds the call, if it is not over, and waits until that is done.
    fn drop(&mut self) {
        let _ = self.tells.send(Told::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a panic said.
pub(super) fn words_of(payload: &(dyn Any + Send)) -> String {
    let owned = payload.downcast_ref::<String>().cloned();
    owned.or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

fn take_acts() -> Vec<Act> {
    SIDE.with_borrow_mut(|side| side.as_mut().map(|side| std::mem::take(&mut side.acts)).unwrap_or_default())
}

fn stand_still(said: Said) -> Option<Told> {
    // A call that is being unwound waits for nothing.
    if std::thread::panicking() {
        return None;
    }
    let acts = take_acts();
    let told = SIDE.with_borrow(|side| {
        let side = side.as_ref()?;
        let told = side.says.send((acts, said)).ok().and_then(|()| side.hears.recv().ok());
        Some(told.unwrap_or(Told::End))
    })?;
    if matches!(told, Told::End) {
        resume_unwind(Box::new(ProcessGone));
    }
    Some(told)
}

/// Lets the world move on, if this is a call of this kind; else `false`.
pub(super) fn pause() -> bool {
    stand_still(Said::Pauses).is_some() || SIDE.with_borrow(Option::is_some)
}

/// Asks another node; `None` if this is no call of this kind.
pub(super) fn ask(to: NodeId, body: Vec<u8>, limit: Duration) -> Option<Result<Vec<u8>, RequestError>> {
    match stand_still(Said::Asks { to, body, limit })? {
        Told::Answer(answer) => Some(answer),
        Told::GoOn | Told::End => Some(Err(RequestError::Lost("there was no answer".to_string()))),
    }
}

/// A line to another node, if this is a call of this kind: what takes the place of a connection.
pub(super) fn open(to: NodeId) -> Option<Line> {
    let number = SIDE.with_borrow_mut(|side| {
        let side = side.as_mut()?;
        side.lines += 1;
        Some(side.lines)
    })?;
    Some(Line { number, to })
}

/// See [`open`].
pub(super) struct Line {
    number: u64,
    to: NodeId,
}

impl Calls for Line {
    fn send(&mut self, body: &[u8]) -> Result<(), RequestError> {
        note(Act::Sends { line: self.number, to: self.to, body: body.to_vec() });
        Ok(())
    }

    fn receive(&mut self, limit: Duration) -> Result<Vec<u8>, RequestError> {
        match stand_still(Said::Awaits { line: self.number, limit }) {
            Some(Told::Answer(answer)) => answer,
            _ => Err(RequestError::Lost("there was no answer".to_string())),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        note(Act::HangsUp { line: self.number });
    }
}

fn note(act: Act) {
    SIDE.with_borrow_mut(|side| {
        if let Some(side) = side {
            side.acts.push(act);
        }
    });
}
