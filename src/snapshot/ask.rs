//! How another node is asked: over one connection as long as a transfer goes, and the next questions ahead of time.
//!
//! ```text
//! this node                            the other one
//! ahead(A) ─ A ─────────────────────►  makes A
//! ahead(B) ─ B ─────────────────────►  makes B, while A' is on its way and this node writes to its disk what it has
//! ask(A)   ◄───────────────────── A' ─
//! ahead(C) ─ C ─────────────────────►
//! ask(B)   ◄───────────────────── B' ─
//! ```
//!
//! So the way there and back costs nothing but at the beginning. A question that went ahead is a hint: if another one is asked in
//! between, the answers that come before its own are kept for whoever asks for them. There are [`AHEAD`] at most that wait for an
//! answer, and as many answers that wait in memory, of [`KEPT_BYTES`] together, the rest in the buffers of the connection. How
//! large an answer is the other node says; one of which nothing is kept is asked for again.
//!
//! Each question has one deadline, for the connection that may have to be opened and for the answer. One that stands behind another
//! that went ahead has its time from the answer to that one on.
//!
//! A connection on which anything failed is closed: what still came on it would be the answer to something else. The next
//! question opens another one.
//!
//! Deliberately absent: attempts after a failure (`fetch.rs`).

use std::collections::VecDeque;
use std::time::Duration;

use super::object::{ASKED_BYTES, Answer, Ask, OBJECT_BYTES, OBJECT_HEAD};
use crate::net::{Calls, RequestError};
use crate::shared::Hub;
use crate::types::NodeId;

/// How other nodes are asked: the answer, or why there is none.
pub(crate) trait AskNode {
    fn ask(&mut self, node: NodeId, ask: &Ask) -> Result<Answer, String>;

    /// This will be asked of that node next.
    fn ahead(&mut self, node: NodeId, ask: &Ask) {
        let _ = (node, ask);
    }

    /// The memory of an object that nobody needs any more, for the next one.
    fn reuse(&mut self, _object: Vec<u8>) {}
}

impl<F: FnMut(NodeId, &Ask) -> Result<Answer, String>> AskNode for F {
    fn ask(&mut self, node: NodeId, ask: &Ask) -> Result<Answer, String> {
        self(node, ask)
    }
}

/// How the node that is fetched from is asked.
pub(crate) trait AskSource {
    fn ask(&mut self, ask: &Ask) -> Result<Answer, String>;

    /// This will be asked next.
    fn ahead(&mut self, ask: &Ask) {
        let _ = ask;
    }

    /// The memory of an object that nobody needs any more, for the next one.
    fn reuse(&mut self, _object: Vec<u8>) {}
}

impl<F: FnMut(&Ask) -> Result<Answer, String>> AskSource for F {
    fn ask(&mut self, ask: &Ask) -> Result<Answer, String> {
        self(ask)
    }
}

/// One of the nodes that can be asked.
pub(crate) struct Source<'a>(pub(crate) NodeId, pub(crate) &'a mut dyn AskNode);

impl AskSource for Source<'_> {
    fn ask(&mut self, ask: &Ask) -> Result<Answer, String> {
        self.1.ask(self.0, ask)
    }

    fn ahead(&mut self, ask: &Ask) {
        self.1.ahead(self.0, ask);
    }

    fn reuse(&mut self, object: Vec<u8>) {
        self.1.reuse(object);
    }
}

/// Asks over the node's transport.
pub(crate) struct Line<'a> {
    hub: &'a Hub,
    kept: Option<Kept>,
}

/// Questions that may be on their way at a time, one of which is waited for.
pub(crate) const AHEAD: usize = 16;
/// Bytes of answers that wait for whoever asks for them: room for all that are asked for ahead, one with hashes among them.
const KEPT_BYTES: usize = (AHEAD - 1) * (ASKED_BYTES + OBJECT_HEAD) + OBJECT_BYTES;

/// A connection that is open.
struct Kept {
    node: NodeId,
    calls: Box<dyn Calls>,
    /// What was asked and not answered yet, in that order, and how long that may take.
    sent: VecDeque<(Vec<u8>, Duration)>,
    /// Answers to questions that nobody has come back to, oldest first.
    answers: VecDeque<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Line<'a> {
    pub(crate) fn new(hub: &'a Hub) -> Line<'a> {
        Line { hub, kept: None }
    }

    fn answer(&mut self, node: NodeId, ask: &Ask) -> Result<Vec<u8>, String> {
        let in_words = |error: RequestError| error.to_string();
        let transport = self.hub.transport().ok_or("this node is shutting down")?;
        let (body, limit) = (ask.encode(), ask.limit());
        let until = self.hub.deadline(limit);
        let mut kept = match self.kept.take().filter(|kept| kept.node == node) {
            Some(kept) => kept,
            None => match transport.calls(node, limit) {
                None => return transport.request(node, body, limit).map_err(in_words),
                Some(calls) => {
                    let calls = calls.map_err(in_words)?;
                    Kept { node, calls, sent: VecDeque::new(), answers: VecDeque::new() }
                }
            },
        };
        let answer = kept.answer(self.hub, &body, limit, until).map_err(in_words)?;
        self.kept = Some(kept);
        Ok(answer)
    }
}

impl AskNode for Line<'_> {
    fn ask(&mut self, node: NodeId, ask: &Ask) -> Result<Answer, String> {
        let answer = self.answer(node, ask)?;
        Answer::decode(answer).map_err(|damaged| format!("an answer that makes no sense: {damaged}"))
    }

    fn ahead(&mut self, node: NodeId, ask: &Ask) {
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.node == node)
            && kept.ahead(ask).is_err()
        {
            self.kept = None;
        }
    }

    fn reuse(&mut self, object: Vec<u8>) {
        if let Some(kept) = &mut self.kept {
            kept.calls.reuse(object);
        }
    }
}

impl Kept {
    fn answer(
        &mut self,
        hub: &Hub,
        body: &[u8],
        limit: Duration,
        mut until: Duration,
    ) -> Result<Vec<u8>, RequestError> {
        if let Some(at) = self.answers.iter().position(|(asked, _)| asked == body)
            && let Some((_, answer)) = self.answers.remove(at)
        {
            return Ok(answer);
        }
        while let Some((asked, its_limit)) = self.sent.pop_front() {
            let answer = self.calls.receive(its_limit)?;
            if asked == body {
                return Ok(answer);
            }
            if Answer::is_later(&answer) {
                // By the time that somebody comes back to it, it may be there: it is asked for again.
                continue;
            }
            self.answers.push_back((asked, answer));
            while self.answers.len() > AHEAD || self.kept_bytes() > KEPT_BYTES {
                self.answers.pop_front();
            }
            until = hub.deadline(limit);
        }
        self.calls.send(body)?;
        self.calls.receive(until.saturating_sub(hub.waiting.clock.now()))
    }

    /// What the answers have that wait.
    fn kept_bytes(&self) -> usize {
        self.answers.iter().map(|(_, answer)| answer.len()).sum()
    }

    fn ahead(&mut self, ask: &Ask) -> Result<(), RequestError> {
        let body = ask.encode();
        let mut asked = self.sent.iter().map(|(asked, _)| asked).chain(self.answers.iter().map(|(asked, _)| asked));
        if self.sent.len() >= AHEAD || asked.any(|asked| *asked == body) {
            return Ok(());
        }
        self.calls.send(&body)?;
        self.sent.push_back((body, ask.limit()));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
