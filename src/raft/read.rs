//! Linearizable reads: many requests, few rounds.
//!
//! A *round* asks the leader for its committed index and makes a majority confirm that it still leads. Its context, by
//! which the answer is known again:
//!
//! ```text
//! offset size  field (big-endian)
//!      0    2  node that asks
//!      2    8  name of this life of the node, drawn at its start
//!     10    8  number of the round
//! ```
//!
//! A request joins the next round. The answer to round r holds for every request that joined round r or an earlier
//! one, because those had asked before round r began. So a round that was lost needs no bookkeeping: we just begin
//! another. Rounds get lost without a word: with the network, without a leader, with a change of leaders, and before a
//! leader committed the first entry of its term.
//!
//! The name of this life keeps out late answers to rounds of the same number before a restart: their index may be
//! older than what a read of today must see.
//!
//! Deliberately absent: any end to the asking. Whoever waits has a deadline and cancels.

use std::collections::VecDeque;

use crate::planted::{self, Bug};
use crate::types::NodeId;

const CONTEXT_BYTES: usize = 18;

/// Requests that wait for an index.
///
/// Invariant: `waiting` is in the order of the rounds that its requests join; none joins a round beyond `round + 1`.
#[derive(Debug)]
pub(super) struct Reads {
    node: NodeId,
    life: u64,
    round: u64,
    waiting: VecDeque<Waiting>,
    due: bool,
    age: u32,
    retry_ticks: u32,
}

#[derive(Debug)]
struct Waiting {
    request: u64,
    joins: u64,
}

impl Reads {
    pub(super) fn new(node: NodeId, life: u64, retry_ticks: u32) -> Reads {
        Reads { node, life, round: 0, waiting: VecDeque::new(), due: false, age: 0, retry_ticks }
    }

    pub(super) fn add(&mut self, request: u64) {
        let lost = planted::is(Bug::LostWakeUp) && !self.waiting.is_empty();
        self.waiting.push_back(Waiting { request, joins: self.round + 1 });
        self.due |= !lost;
    }

    pub(super) fn cancel(&mut self, request: u64) {
        self.waiting.retain(|waiting| waiting.request != request);
    }

    /// What was asked before may be lost: begin another round at the next chance.
    pub(super) fn ask_again(&mut self) {
        self.due = !self.waiting.is_empty();
    }

    pub(super) fn on_tick(&mut self) {
        self.age = self.age.saturating_add(1);
        if self.age >= self.retry_ticks {
            self.ask_again();
        }
    }

    /// Whether a round should begin as soon as somebody can be asked.
    pub(super) fn is_due(&self) -> bool {
        self.due && !self.waiting.is_empty()
    }

    /// Begins a round; returns its context.
    pub(super) fn begin_round(&mut self) -> Vec<u8> {
        self.due = false;
        self.age = 0;
        self.round += 1;
        let mut context = Vec::with_capacity(CONTEXT_BYTES);
        context.extend_from_slice(&self.node.0.to_be_bytes());
        context.extend_from_slice(&self.life.to_be_bytes());
        context.extend_from_slice(&self.round.to_be_bytes());
        context
    }

    /// An answer came. Returns the requests it holds for; none if it is not for a round of this life.
    pub(super) fn on_answer(&mut self, context: &[u8]) -> Vec<u64> {
        let Some(round) = self.round_of(context) else { return Vec::new() };
        let answered = self.waiting.partition_point(|waiting| waiting.joins <= round);
        self.waiting.drain(..answered).map(|waiting| waiting.request).collect()
    }

    /// Gives up on all requests.
    pub(super) fn take_all(&mut self) -> Vec<u64> {
        self.due = false;
        self.waiting.drain(..).map(|waiting| waiting.request).collect()
    }

    fn round_of(&self, context: &[u8]) -> Option<u64> {
        let context: &[u8; CONTEXT_BYTES] = context.try_into().ok()?;
        let (node, rest) = context.split_at(2);
        let (life, round) = rest.split_at(8);
        let round = u64::from_be_bytes(round.try_into().ok()?);
        let ours = node == self.node.0.to_be_bytes() && life == self.life.to_be_bytes() && round <= self.round;
        ours.then_some(round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_its_round_and_the_rounds_before() {
        let mut reads = Reads::new(NodeId(2), 99, 3);
        reads.add(10);
        reads.add(11);
        let first = reads.begin_round();
        reads.add(12);
        let second = reads.begin_round();
        reads.add(13);
        assert_eq!(reads.on_answer(&first), [10, 11]);
        assert_eq!(reads.on_answer(&first), [] as [u64; 0]);
        assert_eq!(reads.on_answer(&second), [12]);
        let third = reads.begin_round();
        reads.cancel(13);
        assert_eq!(reads.on_answer(&third), [] as [u64; 0]);
    }

    #[test]
    fn a_lost_round_is_begun_again_after_some_ticks() {
        let mut reads = Reads::new(NodeId(2), 99, 3);
        reads.add(1);
        reads.begin_round();
        for expected in [false, false, true] {
            reads.on_tick();
            assert_eq!(reads.is_due(), expected);
        }
        let again = reads.begin_round();
        assert_eq!(reads.on_answer(&again), [1]);
        (0..9).for_each(|_| reads.on_tick());
        assert!(!reads.is_due(), "nobody waits");
    }

    #[test]
    fn answers_of_another_life_or_node_or_of_the_future_are_not_ours() {
        let context = |node, life, rounds: u64| {
            let mut reads = Reads::new(NodeId(node), life, 3);
            (0..rounds).map(|_| reads.begin_round()).last().unwrap()
        };
        let mut reads = Reads::new(NodeId(2), 99, 3);
        reads.add(1);
        let ours = reads.begin_round();
        for foreign in [context(3, 99, 1), context(2, 98, 1), context(2, 99, 2), ours[..17].to_vec(), vec![0; 19]] {
            assert_eq!(reads.on_answer(&foreign), [] as [u64; 0], "{foreign:?}");
        }
        assert_eq!(reads.on_answer(&ours), [1]);
    }
}
