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
//! A connection on which anything failed is closed: what still came on it would be the answer to something else. The next
//! question opens another one.
//!
//! Deliberately absent: attempts after a failure (`fetch.rs`).

use super::ASK_LIMIT;
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
    answer: Option<Vec<u8>>,
}

impl<'a> Line<'a> {
    pub(crate) fn new(hub: &'a Hub) -> Line<'a> {
        Line { hub, kept: None }
    }

    fn answer(&mut self, node: NodeId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let in_words = |error: RequestError| error.to_string();
        let transport = self.hub.transport().ok_or("this node is shutting down")?;
        let mut kept = match self.kept.take().filter(|kept| kept.node == node) {
            Some(kept) => kept,
            None => match transport.calls(node, ASK_LIMIT) {
                None => return transport.request(node, body, ASK_LIMIT).map_err(in_words),
                Some(calls) => Kept { node, calls: calls.map_err(in_words)?, ahead: None },
            },
        };
        let answer = kept.answer(&body).map_err(in_words)?;
        self.kept = Some(kept);
        Ok(answer)
    }
}

impl AskNode for Line<'_> {
    fn ask(&mut self, node: NodeId, ask: &Ask) -> Result<Answer, String> {
        let answer = self.answer(node, ask.encode())?;
        Answer::decode(answer).map_err(|damaged| format!("an answer that makes no sense: {damaged}"))
    }

    fn ahead(&mut self, node: NodeId, ask: &Ask) {
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.node == node)
            && kept.ahead(ask.encode()).is_err()
        {
            self.kept = None;
        }
    }
}

impl Kept {
    fn answer(&mut self, body: &[u8]) -> Result<Vec<u8>, RequestError> {
        if let Some(mut ahead) = self.ahead.take() {
            let answer = match ahead.answer.take() {
                Some(answer) => answer,
                None => self.calls.receive(ASK_LIMIT)?,
            };
            if ahead.body == body {
                return Ok(answer);
            }
            self.ahead = Some(Ahead { answer: Some(answer), ..ahead });
        }
        self.calls.send(body)?;
        self.calls.receive(ASK_LIMIT)
    }

    fn ahead(&mut self, body: Vec<u8>) -> Result<(), RequestError> {
        if self.ahead.as_ref().is_some_and(|ahead| ahead.answer.is_none()) {
            return Ok(());
        }
        self.calls.send(&body)?;
        self.ahead = Some(Ahead { body, answer: None });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
