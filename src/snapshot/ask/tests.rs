use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoaldb_vfs::env::sim::SimFs;

use super::super::object::{Object, ViewId};
use super::*;
use crate::found::format::FoundMessage;
use crate::net::Transport;
use crate::types::{LogIndex, Message};
use crate::upkeep::tests::upkeep;

const SOURCE: NodeId = NodeId(2);

/// What a lender was asked, over which connection, and what it has still to answer.
#[derive(Default)]
struct Lender {
    opened: usize,
    asked: Vec<(usize, Ask)>,
    /// The connection breaks with the next question.
    breaks: bool,
}

/// Answers each question with an object that says which one it was.
struct Wire {
    number: usize,
    lender: Arc<Mutex<Lender>>,
    unanswered: Option<Vec<u8>>,
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
        assert!(self.unanswered.replace(body.to_vec()).is_none(), "two questions at once");
        Ok(())
    }

    fn receive(&mut self, _: Duration) -> Result<Vec<u8>, RequestError> {
        Ok(answer_to(&self.unanswered.take().expect("a question")).encode())
    }
}

struct Net(Arc<Mutex<Lender>>);

impl Transport for Net {
    fn send(&self, _: Message) {}
    fn send_found(&self, _: NodeId, _: FoundMessage) {}
    fn request(&self, _: NodeId, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, RequestError> {
        panic!("there are connections for that");
    }
    fn calls(&self, _: NodeId, _: Duration) -> Option<Result<Box<dyn Calls>, RequestError>> {
        let mut lender = self.0.lock();
        lender.opened += 1;
        Some(Ok(Box::new(Wire { number: lender.opened, lender: self.0.clone(), unanswered: None })))
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
    let (upkeep, _) = upkeep(&SimFs::new(1));
    let lender = Arc::new(Mutex::new(Lender::default()));
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
        line.ahead(SOURCE, &page(9));
        ask(line, &progress);
        ask(line, &progress);
        ask(line, &page(2));
        // One that is never asked for, since something went wrong with the one before, is in nobody's way.
        line.ahead(SOURCE, &page(3));
        ask(line, &page(2));
        line.ahead(SOURCE, &page(4));
        ask(line, &page(4));
        ask(line, &page(3));
        let wanted = [page(1), page(2), progress.clone(), progress, page(3), page(2), page(4), page(3)];
        let lender = lender.lock();
        assert_eq!(lender.opened, 1);
        assert!(lender.asked.iter().map(|(_, ask)| ask).eq(&wanted), "{:?}", lender.asked);
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
        assert!(line.ask(NodeId(3), &Ask::Open { have: LogIndex(1) }).is_ok());
        let lender = lender.lock();
        assert_eq!(lender.asked.iter().map(|(over, _)| *over).collect::<Vec<_>>(), [1, 1, 2, 3, 4]);
    });
}
