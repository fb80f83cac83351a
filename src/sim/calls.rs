//! Calls that are under way (`strand.rs`), and questions that wait for an answer.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::members::Change;
use super::strand::{Act, Outcome, Said, Strand, Told};
use super::wire::Packet;
use super::world::{At, Ev, State};
use crate::admin;
use crate::net::RequestError;
use crate::snapshot::object;
use crate::types::NodeId;

/// Who waits for the answer of a call of administration.
pub(super) enum Caller {
    /// Another node, or a program elsewhere.
    Ticket { ticket: u64, at: At },
    /// A person at this node.
    Person(Change),
}

/// What a call is for.
pub(super) enum Purpose {
    Serve(Caller),
    Rounds,
}

/// A call that stands still.
pub(super) struct Held {
    strand: Strand,
    pub(super) at: At,
    pub(super) purpose: Purpose,
    /// Which time it stands still: whatever it waited for before does not count any more.
    time: u64,
    lines: BTreeMap<u64, Line>,
    /// The line on which it waits for an answer.
    awaits: Option<u64>,
}

/// Questions that follow each other over one connection.
#[derive(Default)]
struct Line {
    /// Tickets of those whose answers were not told yet.
    asked: VecDeque<u64>,
    /// Answers that have come.
    answers: BTreeMap<u64, Vec<u8>>,
    ended: Option<RequestError>,
}

impl Line {
    /// What is told next, if that is known.
    fn next(&mut self) -> Option<Result<Vec<u8>, RequestError>> {
        let Some(first) = self.asked.front() else {
            return Some(Err(RequestError::Lost("nothing was asked".to_string())));
        };
        if let Some(answer) = self.answers.remove(first) {
            self.asked.pop_front();
            return Some(Ok(answer));
        }
        self.ended.clone().map(Err)
    }
}

impl Held {
    /// Whether it may change something for somebody.
    pub(super) fn serves(&self) -> bool {
        matches!(self.purpose, Purpose::Serve(_))
    }
}

/// Who asked a question.
#[derive(Clone, Copy)]
pub(super) enum Asker {
    /// A call, at this time.
    Call(u64, u64),
    /// A call, over one of its lines.
    Line { call: u64, line: u64 },
    /// A node that wants to join, in this life.
    Joiner(At, u64),
}

/// A question that has no answer yet.
pub(super) struct Ticket {
    asker: Asker,
    pub(super) to: At,
}

impl Ticket {
    pub(super) fn asker(&self) -> Asker {
        self.asker
    }
}

impl State {
    /// Sends a question.
    pub(super) fn ask(&mut self, asker: Asker, from: At, to: At, who: Option<NodeId>, body: Vec<u8>, limit: Duration) {
        self.serial += 1;
        let ticket = self.serial;
        self.tickets.insert(ticket, Ticket { asker, to });
        self.at(limit, Ev::NoAnswer { ticket, arrived: true });
        self.transmit(from, to, Packet::Question { ticket, from: who, body });
    }

    /// The answer to a question, or that there will be none.
    pub(super) fn answered(&mut self, ticket: u64, answer: Result<Vec<u8>, RequestError>) {
        let Some(Ticket { asker, .. }) = self.tickets.remove(&ticket) else { return };
        match asker {
            Asker::Call(call, time) => self.resume(call, time, Told::Answer(answer)),
            Asker::Line { call, line } => self.answered_on_line(call, line, ticket, answer),
            Asker::Joiner(at, life) => self.on_letter(at, life, answer),
        }
    }

    pub(super) fn on_no_answer(&mut self, ticket: u64, arrived: bool) {
        let what = "the connection ended".to_string();
        self.answered(ticket, Err(if arrived { RequestError::Lost(what) } else { RequestError::NotSent(what) }));
    }

    /// A question came.
    pub(super) fn on_question(&mut self, from: At, to: At, who: Option<NodeId>, ticket: u64, body: Vec<u8>) {
        // Who asked has given up.
        if !self.tickets.contains_key(&ticket) {
            return;
        }
        if body.first() == Some(&object::MAGIC) {
            let Some(body) = self.answer_about_snapshots(from, to, who, &body) else { return };
            return self.transmit(to, from, Packet::Answer { ticket, body });
        }
        self.serve(to, Caller::Ticket { ticket, at: from }, who, body);
    }

    /// Whether this call serves a node that wants to join, also if another one has passed its question on.
    pub(super) fn is_for_a_joiner(&self, held: &Held) -> bool {
        let Purpose::Serve(Caller::Ticket { ticket, .. }) = held.purpose else { return false };
        match self.tickets.get(&ticket).map(Ticket::asker) {
            Some(Asker::Joiner(..)) => true,
            Some(Asker::Call(call, _)) => self.held.get(&call).is_some_and(|held| self.is_for_a_joiner(held)),
            Some(Asker::Line { .. }) | None => false,
        }
    }

    /// Lets a node answer a question of administration.
    pub(super) fn serve(&mut self, at: At, caller: Caller, who: Option<NodeId>, body: Vec<u8>) {
        let Some(hub) = self.slots[at].hub().cloned() else { return };
        self.begin_call(at, Purpose::Serve(caller), move || Outcome::Answer(admin::serve(&hub, who, &body)));
    }

    pub(super) fn begin_call(&mut self, at: At, purpose: Purpose, body: impl FnOnce() -> Outcome + Send + 'static) {
        match Strand::new(body) {
            Ok(strand) => {
                self.serial += 1;
                let call = self.serial;
                self.held.insert(call, Held { strand, at, purpose, time: 0, lines: BTreeMap::new(), awaits: None });
                self.resume(call, 0, Told::GoOn);
            }
            Err(error) => self.fail(format!("no thread for a call: {error}")),
        }
    }

    pub(super) fn on_go_on(&mut self, call: u64, time: u64) {
        let Some(at) = self.held.get(&call).map(|held| held.at) else { return };
        match self.pause_left(at) {
            Some(left) => self.at(left, Ev::GoOn { call, time }),
            None => self.resume(call, time, Told::GoOn),
        }
    }

    fn resume(&mut self, call: u64, mut time: u64, mut told: Told) {
        while let Some(held) = self.held.get_mut(&call).filter(|held| held.time == time) {
            held.time += 1;
            held.awaits = None;
            let at = held.at;
            time = held.time;
            let (acts, said) = held.strand.resume(told);
            for act in acts {
                self.carry_out(call, at, act);
            }
            let Some(known) = self.stands_still(call, time, at, said) else { return self.turn_soon(at) };
            told = Told::Answer(known);
        }
    }

    /// A question on a line goes on its way, or the line is given up.
    fn carry_out(&mut self, call: u64, at: At, act: Act) {
        match act {
            Act::Sends { line, to, body } => {
                self.serial += 1;
                let ticket = self.serial;
                let Some(held) = self.held.get_mut(&call) else { return };
                let known = held.lines.entry(line).or_default();
                let ahead = !known.asked.is_empty();
                known.asked.push_back(ticket);
                if known.ended.is_some() {
                    return;
                }
                if ahead {
                    self.count("questions sent ahead");
                }
                let to = usize::from(to.0).saturating_sub(1);
                self.tickets.insert(ticket, Ticket { asker: Asker::Line { call, line }, to });
                let me = self.slots[at].id;
                self.transmit(at, to, Packet::Question { ticket, from: Some(me), body });
            }
            Act::HangsUp { line } => {
                let line = self.held.get_mut(&call).and_then(|held| held.lines.remove(&line));
                self.hang_up(line);
            }
        }
    }

    /// Nobody waits any more for what was asked on these lines.
    fn hang_up(&mut self, lines: impl IntoIterator<Item = Line>) {
        for ticket in lines.into_iter().flat_map(|line| line.asked) {
            self.tickets.remove(&ticket);
        }
    }

    /// An answer came on a line, or there will be none: then the connection has ended.
    fn answered_on_line(&mut self, call: u64, line: u64, ticket: u64, answer: Result<Vec<u8>, RequestError>) {
        let Some(held) = self.held.get_mut(&call) else { return };
        let Some(known) = held.lines.get_mut(&line) else { return };
        let in_order = known.asked.front() == Some(&ticket);
        match answer {
            Ok(answer) => _ = known.answers.insert(ticket, answer),
            Err(error) => known.ended = Some(error),
        }
        let told = if held.awaits == Some(line) { known.next() } else { None };
        let time = held.time;
        if !in_order {
            self.count("answers out of their order");
        }
        if let Some(told) = told {
            self.resume(call, time, Told::Answer(told));
        }
    }

    /// Why a call stands still. What it waits for, if that is there already.
    fn stands_still(&mut self, call: u64, time: u64, at: At, said: Said) -> Option<Result<Vec<u8>, RequestError>> {
        match said {
            Said::Pauses => {
                let micros = 300 + self.dice.below(2000);
                self.after_micros(micros, Ev::GoOn { call, time });
            }
            Said::Asks { to, body, limit } => {
                let me = self.slots[at].id;
                self.ask(Asker::Call(call, time), at, usize::from(to.0).saturating_sub(1), Some(me), body, limit);
            }
            Said::Awaits { line, limit } => {
                let held = self.held.get_mut(&call)?;
                let known = held.lines.entry(line).or_default();
                let next = known.next();
                if next.is_some() {
                    return next;
                }
                held.awaits = Some(line);
                let ticket = known.asked.front().copied()?;
                self.at(limit, Ev::NoAnswer { ticket, arrived: true });
            }
            Said::Panicked(what) => self.fail(format!("panic: {what}")),
            Said::Over(outcome) => {
                let held = self.held.remove(&call)?;
                self.hang_up(held.lines.into_values());
                self.ended(at, held.purpose, outcome);
            }
        }
        None
    }

    fn ended(&mut self, at: At, purpose: Purpose, outcome: Outcome) {
        match (purpose, outcome) {
            (Purpose::Serve(Caller::Ticket { ticket, at: to }), Outcome::Answer(body)) => {
                self.transmit(at, to, Packet::Answer { ticket, body });
            }
            (Purpose::Serve(Caller::Person(change)), Outcome::Answer(body)) => {
                self.settle_change(at, &change, Some(&body))
            }
            (_, Outcome::Rounds(rounds)) => {
                if let Some(seat) = self.slots[at].running.as_mut().and_then(|running| running.seat.as_mut()) {
                    seat.rounds = Some(rounds);
                }
            }
            (Purpose::Rounds, Outcome::Answer(_)) => self.fail("rounds ended with an answer".to_string()),
        }
    }

    /// The process is gone, and its calls with it.
    pub(super) fn end_calls_of(&mut self, at: At) {
        let calls: Vec<u64> = self.held.iter().filter(|(_, held)| held.at == at).map(|(call, _)| *call).collect();
        for call in calls {
            let Some(Held { strand, purpose, lines, .. }) = self.held.remove(&call) else { continue };
            drop(strand);
            self.hang_up(lines.into_values());
            match purpose {
                Purpose::Serve(Caller::Person(change)) => self.settle_change(at, &change, None),
                Purpose::Serve(Caller::Ticket { ticket, .. }) => {
                    self.after_micros(500, Ev::NoAnswer { ticket, arrived: true });
                }
                Purpose::Rounds => self.transfer_died(at),
            }
        }
    }
}
