//! Whether all nodes have the same, asked of all of them at one index.
//!
//! ```text
//! 1  the node that is asked takes the position p of its copy
//! 2  it asks every member: what was your checksum at p? Each waits until it has applied p, and looks it up: a node knows
//!    the checksums of all positions behind its last checkpoint
//! 3  if one has passed p, all over again with the furthest position of them
//! ```
//!
//! So nothing is held up, and writes go on. With `deep` each node also moves what its readers allow to its main file, reads
//! all of that file, and compares each page with its hash; in pieces of [`PIECE`], so that no request takes long.
//!
//! The checksum is what the *books* of a node say, kept up with every transaction and checked at every entry; a difference
//! in them is a mistake in Shoal. Bytes that rotted on a disk differ from the books, which only `deep` finds.
//!
//! Deliberately absent: repair.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use shoaldb_vfs::Database;
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::page::PageNo;
use shoaldb_vfs::transaction::Position;

use super::{Reply, Request, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::shared::Hub;
use crate::status;
use crate::types::{LogIndex, NodeId};

/// Times that a position is chosen anew because somebody has passed it. A checkpoint comes with megabytes of writes, so the
/// second time is rare.
const ATTEMPTS: usize = 10;
/// Bytes of a main file that one request reads.
const PIECE: u32 = 64 << 20;
/// How long reading them may take.
const PIECE_LIMIT: Duration = Duration::from_secs(60);
/// How long an answer may be on its way beyond what the node that gives it may take.
const MARGIN: Duration = Duration::from_secs(2);

/// One database, as all nodes have it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Verified {
    /// Its name.
    pub database: String,
    /// Index of the entry that it was compared at.
    pub position: LogIndex,
    /// Every member of the cluster.
    pub nodes: Vec<NodeVerified>,
    /// Whether all of them answered, have one checksum, and no damaged page.
    pub same: bool,
}

impl Verified {
    /// Whether no node that answered has something else than another, a damaged page, or a copy that it does not serve.
    pub fn those_that_answered_agree(&self) -> bool {
        let mut sums = self.nodes.iter().filter_map(|node| node.checksum.as_ref());
        let first = sums.next();
        sums.all(|sum| Some(sum) == first) && self.nodes.iter().all(|node| node.damaged.is_empty() && !node.unserved)
    }
}

/// What one node has.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeVerified {
    /// The node.
    pub node: NodeId,
    /// Checksum of its content at that position, in hexadecimal.
    pub checksum: Option<String>,
    /// Bytes that were read back from its main file, if it was asked to.
    pub read: Option<u64>,
    /// Pages that are not what was written.
    pub damaged: Vec<u32>,
    /// Its copy is damaged as a whole: it answered that it does not serve it.
    #[serde(default)]
    pub unserved: bool,
    /// Why it did not answer, or has nothing to compare, in words.
    pub problem: Option<String>,
}

/// What a node had at a position.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
enum Sum {
    /// This checksum.
    Known(String),
    /// That is not known any more; the copy is here now.
    Passed(LogIndex),
}

/// What a node found in a piece of its main file.
#[derive(Serialize, Deserialize, Debug)]
struct Piece {
    /// The page to go on with.
    next: Option<u32>,
    /// Bytes that were read.
    read: u64,
    /// All pages known to be damaged.
    damaged: Vec<u32>,
}

fn copy_of(hub: &Hub, name: &str) -> Result<std::sync::Arc<Database>> {
    if let Some(error) = status::unserved(hub, name) {
        return Err(Error::new(error.kind(), format!("node {}: {error}", hub.id)));
    }
    let none = || Error::new(ErrorKind::NotFound, format!("node {} has no database {name}", hub.id));
    let stopped = || Error::new(ErrorKind::Stopped, format!("node {}: this node is shut down", hub.id));
    let db = hub.databases.find(name, false).map_err(|refusal| match refusal {
        Refusal::NodeStopped => stopped(),
        _ => none(),
    })?;
    match db.retired() {
        Some(Refusal::NodeStopped) => Err(stopped()),
        Some(_) => Err(Error::new(ErrorKind::Corrupt, format!("database {name} is not served on node {}", hub.id))),
        None => Ok(db),
    }
}

/// Answers [`Request::Sum`].
pub(super) fn sum(hub: &Hub, name: &str, at: LogIndex) -> Result<serde_json::Value> {
    let deadline = hub.deadline(hub.commit_timeout());
    let reached = hub.changed.wait(&hub.waiting, deadline, Duration::from_millis(20), || {
        (hub.applied().index >= at || hub.is_stopped()).then_some(())
    });
    if reached.is_none() {
        let (here, limit) = (hub.applied().index, hub.commit_timeout());
        let text = format!("node {} is at entry {here} and did not reach {at} within {limit:?}", hub.id);
        return Err(Error::new(ErrorKind::Timeout, text));
    }
    let db = copy_of(hub, name)?;
    let sum = match db.checksum_at(Position(at.0)) {
        Some(checksum) => Sum::Known(checksum.to_string()),
        None => {
            let position = LogIndex(db.position().0);
            if position < at {
                let text = format!("node {} has applied entry {at}, but its copy ends at {position}", hub.id);
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
            Sum::Passed(position)
        }
    };
    Ok(json!(sum))
}

/// Answers [`Request::Scrub`].
pub(super) fn scrub(hub: &Hub, name: &str, from: u32) -> Result<serde_json::Value> {
    let db = copy_of(hub, name)?;
    let failed = |what: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Io, format!("node {}: its main file cannot be read back: {what}", hub.id))
    };
    let first = PageNo::new(from).unwrap_or(PageNo::FIRST);
    if first == PageNo::FIRST {
        // What is in memory only would not be read back from anywhere. Where readers are in the way, some of it stays.
        db.checkpoint().map_err(|error| failed(&error))?;
    }
    let page = db.geometry().page_size.bytes();
    let count = PIECE / page;
    let next = db.scrub(first, count).map_err(|error| failed(&error))?;
    let status = db.status();
    let end = next.map_or(status.pages.0.saturating_add(1), PageNo::get);
    let read = u64::from(end.saturating_sub(first.get())) * u64::from(page);
    let damaged = status.rotten.iter().map(|page| page.get()).collect();
    Ok(json!(Piece { next: next.map(PageNo::get), read, damaged }))
}

/// Answers [`Request::Verify`].
pub(super) fn verify(hub: &Hub, name: Option<&str>, deep: bool) -> Result<serde_json::Value> {
    let (names, members) = hub
        .with_catalogue(|catalogue| {
            let names = catalogue.databases().map(|(_, info)| info.name.as_str().to_string());
            let mut names: Vec<String> = names.filter(|known| name.is_none_or(|name| name == known)).collect();
            names.sort_unstable();
            (names, catalogue.members().map(|(id, _)| id).collect::<Vec<_>>())
        })
        .map_err(|what| Error::new(ErrorKind::NotLeader, what))?;
    if let (Some(name), true) = (name, names.is_empty()) {
        return Err(Error::new(ErrorKind::NotFound, format!("no database named {name}")));
    }
    let all: Vec<Verified> = names.into_iter().map(|name| verify_one(hub, name, &members, deep)).collect();
    Ok(json!(all))
}

fn verify_one(hub: &Hub, name: String, members: &[NodeId], deep: bool) -> Verified {
    // A copy that is not served here has a position all the same.
    let here = hub.databases.find(&name, false).map_or(LogIndex(0), |db| LogIndex(db.position().0));
    let (at, sums) = at_one_index(here, |at| {
        let request = Request::Sum { name: name.clone(), at };
        of_all(members, |node| ask(hub, node, &request, hub.commit_timeout()))
    });
    let mut nodes: Vec<NodeVerified> = members
        .iter()
        .zip(sums)
        .map(|(node, sum)| {
            let unserved = sum.as_ref().is_err_and(Error::is_corrupt);
            let (checksum, problem) = match sum {
                Ok(Sum::Known(checksum)) => (Some(checksum), None),
                Ok(Sum::Passed(_)) => (None, Some("moves on faster than it can be asked; try again".to_string())),
                Err(error) => (None, Some(error.to_string())),
            };
            NodeVerified { node: *node, checksum, read: None, damaged: Vec::new(), unserved, problem }
        })
        .collect();
    if deep {
        let answers = of_all(members, |node| read_back(hub, node, &name));
        for (verified, answer) in nodes.iter_mut().zip(answers) {
            match answer {
                Ok((read, damaged)) => (verified.read, verified.damaged) = (Some(read), damaged),
                Err(error) => _ = verified.problem.get_or_insert_with(|| error.to_string()),
            }
        }
    }
    let same = are_same(&nodes);
    Verified { database: name, position: at, nodes, same }
}

/// Asks until nobody has passed the index, and says which one that was.
fn at_one_index(mut at: LogIndex, mut ask: impl FnMut(LogIndex) -> Vec<Result<Sum>>) -> (LogIndex, Vec<Result<Sum>>) {
    for attempt in 1.. {
        let sums = ask(at);
        match sums.iter().filter_map(|sum| if let Ok(Sum::Passed(at)) = sum { Some(*at) } else { None }).max() {
            Some(further) if attempt < ATTEMPTS => at = further,
            _ => return (at, sums),
        }
    }
    unreachable!("the last attempt returns")
}

fn are_same(nodes: &[NodeVerified]) -> bool {
    let well = |node: &NodeVerified| node.checksum.is_some() && node.damaged.is_empty() && node.problem.is_none();
    nodes.iter().all(well) && nodes.windows(2).all(|pair| pair[0].checksum == pair[1].checksum)
}

/// All at once: the slowest decides how long it takes.
fn of_all<T: Send>(members: &[NodeId], ask: impl Fn(NodeId) -> Result<T> + Sync) -> Vec<Result<T>> {
    std::thread::scope(|scope| {
        let ask = &ask;
        let asked: Vec<_> = members.iter().map(|node| scope.spawn(move || ask(*node))).collect();
        let panicked = || Error::new(ErrorKind::Io, "the thread that asked panicked");
        asked.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked()))).collect()
    })
}

fn read_back(hub: &Hub, node: NodeId, name: &str) -> Result<(u64, Vec<u32>)> {
    let mut from = PageNo::FIRST.get();
    let mut bytes = 0;
    loop {
        let request = Request::Scrub { name: name.to_string(), from };
        let piece: Piece = ask(hub, node, &request, PIECE_LIMIT)?;
        bytes += piece.read;
        match piece.next.filter(|next| *next > from) {
            Some(next) => from = next,
            None => return Ok((bytes, piece.damaged)),
        }
    }
}

/// Asks a node, or ourselves.
fn ask<T: serde::de::DeserializeOwned>(hub: &Hub, node: NodeId, request: &Request, limit: Duration) -> Result<T> {
    let value = if node == hub.id {
        super::here(hub, request)?
    } else {
        let stopped = || Error::new(ErrorKind::Stopped, "this node is shut down");
        let transport = hub.transport().ok_or_else(stopped)?;
        let answer = transport.request(node, encode(request), limit + MARGIN);
        let answer = answer.map_err(|error| Error::new(ErrorKind::Timeout, format!("it did not answer: {error}")))?;
        let reply: Reply = serde_json::from_slice(&answer)
            .map_err(|error| Error::new(ErrorKind::Io, format!("node {node}: answer: {error}")))?;
        reply.into_result()?
    };
    serde_json::from_value(value).map_err(|error| Error::new(ErrorKind::Io, format!("node {node}: answer: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    /// It had no such database then, which sounds like a loss.
    #[test]
    fn a_node_that_ends_does_not_say_that_it_has_no_database() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(dir.path()).unwrap();
        node.connect("app").unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
        assert!(copy_of(node.hub(), "app").is_ok());
        for name in ["other", "no/name"] {
            assert_eq!(copy_of(node.hub(), name).unwrap_err().kind(), ErrorKind::NotFound);
        }
        node.hub().databases.stop();
        let ended = copy_of(node.hub(), "app").unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::Stopped);
        assert_eq!(ended.to_string(), "node 1: this node is shut down");
    }

    fn node(id: u16, checksum: Option<&str>) -> NodeVerified {
        let checksum = checksum.map(str::to_string);
        NodeVerified { node: NodeId(id), checksum, read: None, damaged: Vec::new(), unserved: false, problem: None }
    }

    #[test]
    fn one_node_that_differs_is_lacking_or_damaged_is_a_difference() {
        let good = [node(1, Some("aa")), node(2, Some("aa")), node(3, Some("aa"))];
        assert!(are_same(&good));
        for at in 0..3 {
            let mut other = good.clone();
            other[at].checksum = Some("ab".to_string());
            assert!(!are_same(&other));
            other[at].checksum = None;
            assert!(!are_same(&other));
            let mut other = good.clone();
            other[at].damaged.push(7);
            assert!(!are_same(&other));
            let mut other = good.clone();
            other[at].problem = Some("away".to_string());
            assert!(!are_same(&other));
        }
        assert!(are_same(&good[..1]));
    }

    /// Nodes 0 and 1 know everything; node 2 makes checkpoints, and knows nothing before the last one of them.
    #[test]
    fn an_index_that_somebody_has_passed_is_given_up_for_a_later_one() {
        for (checkpoints, settled) in [(&[5, 7][..], true), (&[1], true), (&[], true)] {
            let mut checkpoints = checkpoints.iter().copied();
            let (at, sums) = at_one_index(LogIndex(3), |at| {
                let last = checkpoints.next().unwrap_or(0);
                let known = || Ok(Sum::Known(at.to_string()));
                let third = if at.0 < last { Ok(Sum::Passed(LogIndex(last))) } else { known() };
                vec![known(), Err(Error::new(ErrorKind::Timeout, "away")), third]
            });
            let all_known = matches!(&sums[2], Ok(Sum::Known(sum)) if *sum == at.to_string());
            assert_eq!(all_known, settled);
        }
        // One that is always faster is not waited for forever.
        let mut asked = 0;
        let (_, sums) = at_one_index(LogIndex(3), |at| {
            asked += 1;
            vec![Ok(Sum::Passed(LogIndex(at.0 + 1)))]
        });
        assert!(matches!(sums[0], Ok(Sum::Passed(_))));
        assert_eq!(asked, ATTEMPTS);
    }
}
