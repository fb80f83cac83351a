//! Members that say to be reached elsewhere than the catalogue has it: when that is written down, and when it is no move.
//!
//! A node that moved says so once. Two processes with copies of one directory, and so with one id, one incarnation and one log, look
//! the same to everybody; only that each says its own address whenever its connections are judged. What a leader sees of that is
//! one member that moves back and forth. Each of these moves would be an entry of the log.
//!
//! ```text
//! a move                                       is written down
//! the first one in PAUSE                       at once
//! the same one again: it was not committed     at once
//! another one sooner                           once PAUSE is over, if the member is still elsewhere
//! TURNS moves in WINDOW between two addresses  as the others; and somebody should hear of it, until there were fewer
//! ```
//!
//! Deliberately absent: the clock, the log, and what the members say.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::types::NodeId;

/// Entries about one member's address have this time between them.
const PAUSE: Duration = Duration::from_secs(5);
/// Moves between the same two addresses that nobody makes with one machine.
const TURNS: usize = 3;
/// The time in which they are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// See the module's text.
#[derive(Default)]
pub(crate) struct Moves(BTreeMap<NodeId, Moved>);

struct Moved {
    /// What was written down last, and when.
    written: (String, Duration),
    /// Moves of the last [`WINDOW`], the newest at the end, each with the address that the member had before: at most [`TURNS`].
    moves: VecDeque<(Duration, String)>,
}

impl Moves {
    /// A member that the catalogue has at `from` says to be at `to`. Whether that should be written down now.
    pub(crate) fn on_move(&mut self, node: NodeId, from: &str, to: &str, now: Duration) -> bool {
        let new = || Moved { written: (String::new(), Duration::ZERO), moves: VecDeque::new() };
        let moved = self.0.entry(node).or_insert_with(new);
        let (last, at) = &moved.written;
        let first = last.is_empty();
        if last == to && moved.moves.back().is_some_and(|(_, before)| before == from) {
            return true;
        }
        if !first && now < *at + PAUSE {
            return false;
        }
        moved.written = (to.to_string(), now);
        moved.moves.push_back((now, from.to_string()));
        if moved.moves.len() > TURNS {
            moved.moves.pop_front();
        }
        true
    }

    /// Members that are in two places, and which. Forgets what was too long ago.
    pub(crate) fn twins(&mut self, now: Duration) -> Vec<(NodeId, [String; 2])> {
        self.0.retain(|_, moved| {
            moved.moves.retain(|(at, _)| now < *at + WINDOW);
            !moved.moves.is_empty()
        });
        let turns = self.0.iter().filter_map(|(node, Moved { written: (here, _), moves })| {
            let there = &moves.back()?.1;
            let back_and_forth = |(at, (_, from)): (usize, &(_, String))| from == [there, here][at % 2];
            let turns = moves.len() == TURNS && moves.iter().rev().enumerate().all(back_and_forth);
            turns.then(|| (*node, [here.min(there).clone(), here.max(there).clone()]))
        });
        turns.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: NodeId = NodeId(2);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Two processes on copies of one directory wrote an entry a second, and nobody was told.
    #[test]
    fn a_member_that_moves_back_and_forth_is_told_and_writes_little() {
        let mut moves = Moves::default();
        let mut written = Vec::new();
        for second in 1..=20 {
            let (from, to) = if written.len() % 2 == 0 { ("a", "b") } else { ("b", "a") };
            if moves.on_move(TWO, from, to, seconds(second)) {
                written.push(second);
            }
            let twins = moves.twins(seconds(second));
            let told = [(TWO, ["a".to_string(), "b".to_string()])];
            assert_eq!(twins, &told[..if written.len() >= TURNS { 1 } else { 0 }], "{written:?}");
        }
        assert_eq!(written, [1, 6, 11, 16]);
        // One of them was stopped. It ends by itself.
        let last = seconds(6) + WINDOW;
        assert_eq!(moves.twins(last - Duration::from_nanos(1)).len(), 1);
        assert_eq!(moves.twins(last), []);
        moves.twins(seconds(16) + WINDOW);
        assert!(moves.0.is_empty());
    }

    #[test]
    fn a_member_that_moves_on_is_no_twin() {
        let mut moves = Moves::default();
        for (at, (from, to)) in [("a", "b"), ("b", "c"), ("c", "d"), ("d", "c")].into_iter().enumerate() {
            assert!(moves.on_move(TWO, from, to, seconds(10 * at as u64)));
            assert_eq!(moves.twins(seconds(10 * at as u64)), []);
        }
        // An entry that was lost on its way is written again, and is no other move.
        for _ in 0..3 {
            assert!(moves.on_move(TWO, "d", "c", seconds(31)));
            assert_eq!(moves.twins(seconds(31)), []);
        }
        assert!(moves.on_move(NodeId(3), "d", "c", seconds(31)), "another member");
        // Back and forth, in hours.
        for at in 1..9 {
            let (from, to) = if at % 2 == 0 { ("a", "b") } else { ("b", "a") };
            assert!(moves.on_move(TWO, from, to, WINDOW * at));
            assert_eq!(moves.twins(WINDOW * at), []);
        }
    }
}
