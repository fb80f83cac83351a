//! Two candidates of one term, and a voter that loses power as soon as it has given one of them its vote.
//!
//! ```text
//! the leader is asked to hand over to two others, and the network delivers both of its "campaign now" at one moment
//! the two do not reach each other
//! the leader hears of the first candidate at once, and its disk is slow from then on; of the second it hears much later
//! when its vote has arrived, its power fails; it is up again at once, without a word from the first
//! ```
//!
//! A node that keeps a vote to itself until it is on disk has given none, or remembers it. Any other one votes twice in that
//! term.

use std::time::Duration;

use super::faults::Mend;
use super::wire::Packet;
use super::world::{At, Ev, State};
use crate::shared::Input;
use crate::types::MessageKind;

/// When both are told to campaign, after the leader was asked.
const CAMPAIGN_AT: Duration = Duration::from_millis(20);
/// How long a sync of the voter takes at least, in microseconds: the vote is out before that, if it does not wait.
const SLOW_SYNC: u64 = 300_000;
/// How much later than the first candidate the second one is heard, in microseconds.
const LATE: u64 = 250_000;

/// Who is in it.
#[derive(Clone, Copy)]
pub(super) struct Duel {
    first: At,
    second: At,
    voter: At,
    campaign_at: Duration,
    /// The voter lost power.
    over: bool,
}

impl State {
    /// Begins one, where three nodes vote and all of them are up.
    pub(super) fn begin_duel(&mut self) {
        let Some((voter, members)) = self.newest_leader() else { return };
        let at_of = |id: &crate::types::NodeId| usize::from(id.0) - 1;
        let others: Vec<At> = members.voters.iter().map(at_of).filter(|at| *at != voter).collect();
        let up = others.iter().all(|at| self.slots[*at].running.is_some() && self.pause_left(*at).is_none());
        let [a, b] = others[..] else { return };
        let Some(hub) = self.slots[voter].hub().filter(|_| up && members.voters_outgoing.is_empty()).cloned() else {
            return;
        };
        let (first, second) = if self.dice.below(2) == 0 { (a, b) } else { (b, a) };
        self.note(format_args!("n{} and n{} shall campaign at once, n{} votes", first + 1, second + 1, voter + 1));
        self.count("duels");
        self.duel = Some(Duel { first, second, voter, campaign_at: self.now + CAMPAIGN_AT, over: false });
        self.net.cut[first][second] = true;
        self.net.cut[second][first] = true;
        for to in [first, second] {
            hub.post(Input::Transfer { to: self.slots[to].id });
        }
        self.turn_soon(voter);
        self.after_millis(600, Ev::Mend(Mend::Duel(self.slots[voter].life)));
    }

    /// How much longer than usual a packet takes because of a duel, in microseconds.
    pub(super) fn held_by_duel(&self, from: At, to: At, packet: &Packet) -> u64 {
        let Some(duel) = &self.duel else { return 0 };
        let Packet::Raft(message) = packet else { return 0 };
        match message.kind {
            MessageKind::TimeoutNow if from == duel.voter => {
                duel.campaign_at.saturating_sub(self.now).as_micros().try_into().unwrap_or(0)
            }
            MessageKind::Vote if (from, to) == (duel.second, duel.voter) => LATE,
            // What the winner says comes when the second one has asked.
            _ if (from, to) == (duel.first, duel.voter) && message.kind != MessageKind::Vote => 2 * LATE,
            _ => 0,
        }
    }

    /// A packet arrives.
    pub(super) fn watch_duel(&mut self, from: At, to: At, packet: &Packet) {
        let Some(duel) = self.duel.as_mut().filter(|duel| !duel.over) else { return };
        if (from, to) == (duel.first, duel.voter)
            && matches!(packet, Packet::Raft(message) if message.kind == MessageKind::Vote)
        {
            // Not before: the vote of one that shares the disk with entries would wait for theirs, promised or not.
            self.slots[to].sync_micros = SLOW_SYNC;
            return;
        }
        let votes =
            matches!(packet, Packet::Raft(message) if message.kind == MessageKind::VoteReply && !message.reject);
        if (from, to) == (duel.voter, duel.first) && votes {
            duel.over = true;
            let voter = duel.voter;
            self.count("voters that lost power over a vote");
            self.after_micros(1, Ev::Mend(Mend::Cut(voter)));
            self.after_millis(1, Ev::Restart(voter));
        }
    }

    /// The two reach each other again.
    pub(super) fn end_duel(&mut self, life: u64) {
        let Some(duel) = self.duel.take() else { return };
        self.net.cut[duel.first][duel.second] = false;
        self.net.cut[duel.second][duel.first] = false;
        if self.slots[duel.voter].life == life {
            self.slots[duel.voter].sync_micros = self.usual_sync();
        }
    }
}
