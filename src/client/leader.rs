//! Which door is the leader's.
//!
//! All doors are asked at once, again and again, until one says that it leads. Followers name the leader; the one they name may
//! have died a moment ago, which they notice an election timeout later, and then elect another one: so the word of the leader
//! itself is waited for. One that is behind none of the doors is asked at the address that its followers know it by.
//!
//! Deliberately absent: what is asked of the leader.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::door::{self, Answers, Door};
use super::{Client, together};
use crate::admin::{self, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::status::Status;
use crate::types::NodeId;

/// Time between two looks at whether there is a leader.
pub(super) const PACE: Duration = Duration::from_millis(50);

/// Where a SQL session can be opened.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The node.
    pub node: u16,
    /// Its data directory.
    pub directory: PathBuf,
    /// Nobody was found to lead, and what helps. The node reads all the same.
    pub leaderless: Option<String>,
}

/// Where the leader is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leads {
    /// Behind the first door of the order.
    Here,
    /// Behind none of them, but it lives; or it cannot be asked from here whether it does.
    Elsewhere,
    /// There is none.
    Nobody,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) leads: Leads,
    /// The doors behind which somebody answers, and who that is.
    pub(super) order: Vec<(usize, NodeId)>,
    /// What kept the other doors shut.
    pub(super) silent: Vec<Error>,
}

/// Whether this is the leader's.
pub(super) fn leads(status: &Status) -> bool {
    status.role == "leader"
}

/// Asks for a node's status until nobody wants to hear it any more.
fn watch(to: &Answers<Status>, at: usize, door: &Door, first_word: Duration) {
    let door = door.clone();
    door::on_a_thread(to, at, move |to| {
        while to.send((at, door.ask(&Request::Status, first_word).and_then(door::status))).is_ok() {
            std::thread::sleep(PACE);
        }
    });
}

impl Client {
    /// The data directory of the node that leads, if it is behind one of the doors, else of the first one that answers: for what
    /// an admin socket alone can do. A leader that is about to be elected is waited for, if there is more to choose from than
    /// one directory.
    pub fn seat(&self) -> Result<Seat> {
        if let [door @ Door::Directory(directory)] = &self.doors[..] {
            let status = self.ask(door, &Request::Status).and_then(door::status)?;
            return Ok(Seat { node: status.node.0, directory: directory.clone(), leaderless: None });
        }
        let Found { leads, order, mut silent } = self.find_leader(Instant::now() + self.patience.leader);
        for (at, node) in order {
            match self.directory_behind(&self.doors[at]) {
                Ok(directory) => {
                    let leaderless = (leads == Leads::Nobody).then(|| self.nobody_leads());
                    return Ok(Seat { node: node.0, directory, leaderless });
                }
                Err(error) => silent.push(error),
            }
        }
        Err(together(silent))
    }

    /// Looks for the leader, until then.
    pub(super) fn find_leader(&self, until: Instant) -> Found {
        let (to, heard) = crossbeam_channel::bounded(0);
        let first_word = self.patience.first_word;
        let elsewhere = self.doors.len();
        for (at, door) in self.doors.iter().enumerate() {
            watch(&to, at, door, first_word);
        }
        let mut latest: Vec<Option<Result<Status>>> = self.doors.iter().map(|_| None).collect();
        let mut asked: Option<String> = None;
        let mut lives_elsewhere = false;
        // Who says nothing is told as that, and not as one who had no time to.
        let late = Instant::now() + 2 * first_word;
        loop {
            let some_answer = latest.iter().flatten().any(Result::is_ok);
            let Ok((at, answer)) = heard.recv_deadline(if some_answer { until } else { until.max(late) }) else {
                break;
            };
            match latest.get_mut(at) {
                Some(place) => *place = Some(answer),
                None => lives_elsewhere = answer.is_ok_and(|status| leads(&status)),
            }
            let all_heard = latest.iter().all(Option::is_some);
            let statuses = || latest.iter().flatten().flatten();
            if statuses().any(leads) || all_heard && (lives_elsewhere || statuses().next().is_none()) {
                break;
            }
            let newest = statuses().max_by_key(|status| status.term);
            let Some((leader, newest)) = newest.and_then(|status| Some((status.leader?, status))) else { continue };
            let Some(member) = newest.members.iter().find(|member| member.node == leader) else { continue };
            if statuses().any(|status| status.node == leader) || asked.as_ref() == Some(&member.address) {
                continue;
            }
            if admin::check_address(&member.address, false).is_ok() {
                watch(&to, elsewhere, &Door::Endpoint(member.address.clone()), first_word);
                asked = Some(member.address.clone());
            } else if all_heard {
                lives_elsewhere = true;
                break;
            }
        }
        let (mut leader, mut order, mut silent) = (false, Vec::new(), Vec::new());
        for (at, answer) in latest.into_iter().enumerate() {
            match answer {
                Some(Ok(status)) if leads(&status) && !leader => {
                    leader = true;
                    order.insert(0, (at, status.node));
                }
                Some(Ok(status)) => order.push((at, status.node)),
                Some(Err(error)) => silent.push(error),
                None => {
                    let text = format!("{}: no answer yet", self.doors[at].name());
                    silent.push(Error::new(ErrorKind::NotLeader, text));
                }
            }
        }
        let leads = match (leader, lives_elsewhere) {
            (true, _) => Leads::Here,
            (false, true) => Leads::Elsewhere,
            (false, false) => Leads::Nobody,
        };
        Found { leads, order, silent }
    }

    /// After a leader was waited for in vain.
    pub(super) fn leaderless(&self, why: &Error) -> Error {
        Error::new(ErrorKind::NotLeader, format!("{why}; {}", self.nobody_leads()))
    }

    fn nobody_leads(&self) -> String {
        let names = self.doors.iter().map(Door::name).collect::<Vec<_>>().join(",");
        let place = if matches!(self.doors[..], [Door::Directory(_)]) { "--data" } else { "--endpoints" };
        format!(
            "nobody was found to lead within {} s: start the nodes that are down, a majority elects a leader; \
             `shoal health {place} {names}` says what is in the way",
            self.patience.leader.as_secs()
        )
    }
}
