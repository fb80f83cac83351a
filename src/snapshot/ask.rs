//! How another node is asked: over one connection as long as a transfer goes, and the next question ahead of time.
//!
//! ```text
//! this node                            the other one
//! ask(A) ── A ──────────────────────►  makes A
//!        ◄───────────────────── A' ──
//! ahead(B) ─ B ─────────────────────►  makes B, while this node writes to its disk what A' has
//! ask(B) ◄────────────────────── B' ──
//! ```
//!
//! A question that went ahead is a hint: if another one is asked in between, the answer is taken and kept for whoever asks for
//! it. There is one at most, so one answer waits in memory or in the buffers of the connection.
//!
//! Each question has one deadline, for the connection that may have to be opened and for the answer. One that stands behind another
//! that went ahead has its time from the answer to that one on.
//!
//! A connection on which anything failed is closed: what still came on it would be the answer to something else. The next
//! question opens another one.
//!
//! Deliberately absent: attempts after a failure (`fetch.rs`).

use std::time::Duration;

use super::object::{Answer, Ask};
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
}

/// Asks over the node's transport.
pub(crate) struct Line<'a> {
    hub: &'a Hub,
    kept: Option<Kept>,
}

/// A connection that is open.
struct Kept {
    node: NodeId,
    calls: Box<dyn Calls>,
    ahead: Option<Ahead>,
}

/// A question that went ahead, and its answer if that was taken already.
struct Ahead {
    body: Vec<u8>,
    limit: Duration,
    answer: Option<Vec<u8>>,
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
                Some(calls) => Kept { node, calls: calls.map_err(in_words)?, ahead: None },
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
}

impl Kept {
    fn answer(
        &mut self,
        hub: &Hub,
        body: &[u8],
        limit: Duration,
        mut until: Duration,
    ) -> Result<Vec<u8>, RequestError> {
        if let Some(mut ahead) = self.ahead.take() {
            let answer = match ahead.answer.take() {
                Some(answer) => answer,
                None => self.calls.receive(ahead.limit)?,
            };
            if ahead.body == body {
                return Ok(answer);
            }
            self.ahead = Some(Ahead { answer: Some(answer), ..ahead });
            until = hub.deadline(limit);
        }
        self.calls.send(body)?;
        self.calls.receive(until.saturating_sub(hub.waiting.clock.now()))
    }

    fn ahead(&mut self, ask: &Ask) -> Result<(), RequestError> {
        if self.ahead.as_ref().is_some_and(|ahead| ahead.answer.is_none()) {
            return Ok(());
        }
        let body = ask.encode();
        self.calls.send(&body)?;
        self.ahead = Some(Ahead { body, limit: ask.limit(), answer: None });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
