use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoaldb_vfs::env::Clock;
use shoaldb_vfs::env::sim::{SimClock, SimFs};

use super::super::object::{Object, ViewId};
use super::*;
use crate::found::format::FoundMessage;
use crate::net::Transport;
use crate::types::{LogIndex, Message};
use crate::upkeep::tests::upkeep_on;

const SOURCE: NodeId = NodeId(2);

/// What a lender was asked, over which connection, and what it has still to answer.
#[derive(Default)]
struct Lender {
    opened: usize,
    asked: Vec<(usize, Ask)>,
    /// The connection breaks with the next question.
    breaks: bool,
    /// How long a connection takes to be opened, and an answer to come.
    dial: Duration,
    think: Duration,
    clock: Arc<SimClock>,
    reused: Vec<Vec<u8>>,
    /// To so many questions it says: later.
    busy: usize,
    /// Its objects have so many bytes at least.
    pads: usize,
}

/// Answers each question with an object that says which one it was.
struct Wire {
    number: usize,
    lender: Arc<Mutex<Lender>>,
    unanswered: VecDeque<Vec<u8>>,
}

fn answer_to(ask: &[u8]) -> Answer {
    Answer::Object { bytes: ask.to_vec() }
}

impl Calls for Wire {
    fn send(&mut self, body: &[u8]) -> Result<(), RequestError> {
        let mut lender = self.lender.lock();
        if std::mem::take(&mut lender.breaks) {
            return Err(RequestError::Lost("broken".to_string()));
        }
        lender.asked.push((self.number, Ask::decode(body).unwrap()));
        self.unanswered.push_back(body.to_vec());
        assert!(self.unanswered.len() <= AHEAD, "more questions than may be on their way");
        Ok(())
    }

    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, RequestError> {
        let mut lender = self.lender.lock();
        lender.clock.advance(lender.think.min(timeout));
        if lender.think > timeout {
            return Err(RequestError::Lost("no answer".to_string()));
        }
        if lender.busy > 0 {
            lender.busy -= 1;
            self.unanswered.pop_front();
            return Ok(Answer::Busy { millis: 5 }.encode());
        }
        let mut object = self.unanswered.pop_front().expect("a question");
        object.resize(object.len().max(lender.pads), 0);
        Ok(answer_to(&object).encode())
    }

    fn reuse(&mut self, answer: Vec<u8>) {
        self.lender.lock().reused.push(answer);
    }
}

struct Net(Arc<Mutex<Lender>>);

impl Transport for Net {
    fn send(&self, _: Message) {}
    fn send_found(&self, _: NodeId, _: FoundMessage) {}
    fn request(&self, _: NodeId, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, RequestError> {
        panic!("there are connections for that");
    }
    fn calls(&self, _: NodeId, timeout: Duration) -> Option<Result<Box<dyn Calls>, RequestError>> {
        let mut lender = self.0.lock();
        lender.opened += 1;
        lender.clock.advance(lender.dial.min(timeout));
        if lender.dial > timeout {
            return Some(Err(RequestError::NotSent("nobody there".to_string())));
        }
        Some(Ok(Box::new(Wire { number: lender.opened, lender: self.0.clone(), unanswered: VecDeque::new() })))
    }
    fn set_peer(&self, _: NodeId, _: &str) {}
    fn remove_peer(&self, _: NodeId) {}
    fn recheck(&self) {}
}

fn page(number: u32) -> Ask {
    let object = Object::Ranges { database: crate::catalogue::DatabaseId(2), first: number, count: 1 };
    Ask::Fetch { view: ViewId(1), object }
}

fn with_line(act: impl FnOnce(&mut Line<'_>, &Mutex<Lender>)) {
    let (upkeep, clock) = upkeep_on(&SimFs::new(1));
    let lender = Arc::new(Mutex::new(Lender { clock, ..Lender::default() }));
    let transport: Arc<dyn Transport> = Arc::new(Net(lender.clone()));
    upkeep.hub().set_transport(&transport);
    act(&mut Line::new(upkeep.hub()), &lender);
}

/// Each question has its own answer, whatever went ahead and whatever came in between, and none is asked twice.
#[test]
fn what_went_ahead_is_asked_once_and_answers_nothing_else() {
    with_line(|line, lender| {
        let progress = Ask::Progress { view: ViewId(1), phase: super::super::object::Phase::Fetch, done: 1, total: 2 };
        let ask = |line: &mut Line<'_>, ask: &Ask| {
            assert_eq!(line.ask(SOURCE, ask), Ok(answer_to(&ask.encode())), "{ask:?}");
        };
        ask(line, &page(1));
        line.ahead(SOURCE, &page(2));
        line.ahead(SOURCE, &page(2));
        ask(line, &progress);
        ask(line, &progress);
        ask(line, &page(2));
        // One that is never asked for, since something went wrong with the one before, is in nobody's way.
        line.ahead(SOURCE, &page(3));
        ask(line, &page(2));
        line.ahead(SOURCE, &page(4));
        ask(line, &page(4));
        ask(line, &page(3));
        let wanted = [page(1), page(2), progress.clone(), progress, page(3), page(2), page(4)];
        let lender = lender.lock();
        assert_eq!(lender.opened, 1);
        assert!(lender.asked.iter().map(|(_, ask)| ask).eq(&wanted), "{:?}", lender.asked);
    });
}

/// Several are on their way at a time, or a long way there and back would cost its time for each object; no more than fit into
/// memory if something else is asked in between, and of answers that nobody comes back to no more are kept.
#[test]
fn a_few_questions_are_on_their_way_at_a_time() {
    with_line(|line, lender| {
        let ask = |line: &mut Line<'_>, number| {
            assert_eq!(line.ask(SOURCE, &page(number)), Ok(answer_to(&page(number).encode())))
        };
        let (asked, all) = (|| lender.lock().asked.len(), AHEAD as u32);
        ask(line, 1);
        (2..5 * all).for_each(|number| line.ahead(SOURCE, &page(number)));
        assert_eq!(asked(), 1 + AHEAD);
        ask(line, 2);
        assert_eq!(asked(), 1 + AHEAD, "it was on its way");
        (3..5 * all).for_each(|number| line.ahead(SOURCE, &page(number)));
        assert_eq!(asked(), 2 + AHEAD);
        // As many answers come before this one's, and the next ask of something else makes room for those that come then.
        ask(line, 10 * all);
        (5 * all..7 * all).for_each(|number| line.ahead(SOURCE, &page(number)));
        ask(line, 10 * all + 1);
        let before = asked();
        (5 * all..6 * all).for_each(|number| ask(line, number));
        assert_eq!(asked(), before, "they are kept");
        ask(line, 3);
        assert_eq!(asked(), before + 1, "nobody came back to it for long");
    });
}

/// How large an answer is its sender says. Sixteen that wait because something else is asked in between had sixteen times that.
#[test]
fn answers_that_wait_have_a_bound_in_bytes() {
    // As large as what is asked for, as an object may be, and as one that no node makes.
    let asked_for = ASKED_BYTES + OBJECT_HEAD;
    for (bytes, kept) in [(asked_for, AHEAD), (OBJECT_BYTES, KEPT_BYTES / OBJECT_BYTES), (KEPT_BYTES + 1, 0)] {
        with_line(|line, lender| {
            assert!(line.ask(SOURCE, &page(1)).is_ok());
            let all = AHEAD as u32 - 1;
            (2..2 + all).for_each(|number| line.ahead(SOURCE, &page(number)));
            lender.lock().pads = bytes - OBJECT_HEAD;
            assert!(line.ask(SOURCE, &page(100)).is_ok());
            let waiting = line.kept.as_ref().unwrap().kept_bytes();
            assert!(waiting <= KEPT_BYTES, "{waiting} bytes wait");
            lender.lock().pads = 0;
            let before = lender.lock().asked.len();
            (2..2 + all).for_each(|number| assert!(line.ask(SOURCE, &page(number)).is_ok()));
            assert_eq!(lender.lock().asked.len() - before, (all as usize).saturating_sub(kept), "{bytes}");
        });
    }
}

/// "Later" is said of a moment: to what went ahead it says nothing any more when that is asked for.
#[test]
fn what_went_ahead_and_was_not_there_yet_is_asked_again() {
    with_line(|line, lender| {
        assert!(line.ask(SOURCE, &page(1)).is_ok());
        (2..4).for_each(|number| line.ahead(SOURCE, &page(number)));
        lender.lock().busy = 2;
        for number in [4, 2, 3] {
            assert_eq!(line.ask(SOURCE, &page(number)), Ok(answer_to(&page(number).encode())));
        }
        // Whoever asks for it now hears it.
        lender.lock().busy = 1;
        assert_eq!(line.ask(SOURCE, &page(5)), Ok(Answer::Busy { millis: 5 }));
    });
}

/// The memory of an object goes to the connection that the next one comes on.
#[test]
fn the_memory_of_an_object_is_given_to_the_connection() {
    with_line(|line, lender| {
        line.reuse(vec![1; 9]);
        assert!(lender.lock().reused.is_empty(), "there is no connection yet");
        assert!(line.ask(SOURCE, &page(1)).is_ok());
        Source(SOURCE, line).reuse(vec![2; 9]);
        assert_eq!(lender.lock().reused, [vec![2; 9]]);
    });
}

/// What is answered out of memory has a second, and what is read from a disk ten; connection and answer together.
#[test]
fn a_question_has_one_deadline_for_the_connection_and_the_answer() {
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(10));
    let (view, at) = (ViewId(1), shoaldb_vfs::transaction::Position(3));
    let database = crate::catalogue::DatabaseId(2);
    for (question, limit) in [
        (Ask::Offer { term: crate::types::Term(1), start: LogIndex(1) }, short),
        (Ask::Done { view, outcome: super::super::object::Outcome::Installed, index: LogIndex(1) }, short),
        (Ask::Progress { view, phase: super::super::object::Phase::Fetch, done: 1, total: 2 }, short),
        (Ask::Sum { database, at }, short),
        (Ask::Open { have: LogIndex(1), shown: LogIndex(1) }, long),
        (Ask::OpenOne { database, beyond: LogIndex(1) }, long),
        (page(1), long),
    ] {
        let moment = Duration::from_millis(1);
        for (dial, think) in [(limit + moment, Duration::ZERO), (Duration::ZERO, limit + moment), (limit / 2, limit)] {
            with_line(|line, lender| {
                let clock = lender.lock().clock.clone();
                let takes = |dial, think| {
                    let mut lender = lender.lock();
                    (lender.dial, lender.think) = (dial, think);
                };
                takes(dial, think);
                let begun = clock.now();
                assert!(line.ask(SOURCE, &question).is_err(), "{question:?}: {dial:?}, {think:?}");
                assert_eq!(clock.now() - begun, limit, "{question:?}: {dial:?}, {think:?}");
                takes(limit / 2, limit / 2);
                assert!(line.ask(SOURCE, &question).is_ok(), "{question:?}");
            });
        }
    }
    // What went ahead has its own time, and what is asked behind it has all of its own.
    with_line(|line, lender| {
        assert!(line.ask(SOURCE, &page(1)).is_ok());
        line.ahead(SOURCE, &page(2));
        lender.lock().think = short;
        let progress = Ask::Progress { view, phase: super::super::object::Phase::Fetch, done: 1, total: 2 };
        assert!(line.ask(SOURCE, &progress).is_ok());
        assert_eq!(lender.lock().opened, 1);
    });
}

/// What still came on a connection that failed would be taken for the answer to something else.
#[test]
fn a_connection_that_failed_is_not_asked_again() {
    with_line(|line, lender| {
        assert!(line.ask(SOURCE, &page(1)).is_ok());
        line.ahead(SOURCE, &page(2));
        lender.lock().breaks = true;
        assert!(line.ask(SOURCE, &page(3)).is_err());
        assert_eq!(line.ask(SOURCE, &page(4)), Ok(answer_to(&page(4).encode())));
        // Nor is one for the question that goes ahead; and another node has another one.
        lender.lock().breaks = true;
        line.ahead(SOURCE, &page(5));
        assert_eq!(line.ask(SOURCE, &page(5)), Ok(answer_to(&page(5).encode())));
        assert!(line.ask(NodeId(3), &Ask::Open { have: LogIndex(1), shown: LogIndex(1) }).is_ok());
        let lender = lender.lock();
        assert_eq!(lender.asked.iter().map(|(over, _)| *over).collect::<Vec<_>>(), [1, 1, 2, 3, 4]);
    });
}
