//! Administration: what one node asks of another, and the program of any.
//!
//! A request is one JSON value in a frame of its own (TCP: net/frame.rs; the admin socket: admin/frame.rs), and so is
//! the answer. What only the leader can do is done by the
//! leader: a node that is asked and does not lead passes the request on, once, and hands the answer back.
//!
//! ```text
//! {"op":"status"}                                     -> {"ok":{...}}
//! {"op":"create","name":"app","page_size":4096,...}   -> {"ok":null} | {"err":{"kind":"Exists","text":"..."}}
//! {"op":"drop","name":"app"}
//! {"op":"transfer","to":2}
//! {"op":"verify","name":"app","deep":false}           -> what all nodes have, see admin/verify.rs
//! {"op":"backup","name":"app","path":"/abs/out.db","job":77}    over the admin socket only: files are their owner's affair
//! {"op":"restore","name":"app","path":"/abs/in.db","job":77}
//! {"op":"progress","job":77}                          -> {"ok":{"phase":"copying","done":1024,"total":4096}}, or null
//! {"op":"outcome","receipt":"r1-..."}                 -> {"ok":{"committed":1047}}, "not_committed" or {"unknown":"undecided"}
//! {"op":"session","name":"app","level":"local","create":true}   -> the connection is a SQL session from here on
//! {"op":"add_learner","node":4,"address":"..."}       and promote, remove {node}, replace {old, new}
//! {"op":"join","node":4,"incarnation":..,"address":"..."} -> {"ok":{"genesis":[..],"members":[[1,"..."],..]}}
//! ```
//!
//! Deliberately absent: what is said in a SQL session (`session/words.rs`).

pub(crate) mod frame;
pub(crate) mod verify;

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use shoaldb_vfs::page::PageSize;

use crate::backup;
use crate::catalogue::{AutoVacuum, DatabaseName};
use crate::entry::Body;
use crate::error::{Error, ErrorKind, Result, not_leader_code};
use crate::found::format::Genesis;
use crate::members::{self, Operation, Refusal, Situation};
use crate::net::{RequestError, tcp};
use crate::pending::Decision;
use crate::raft::{CoreStatus, Role};
use crate::receipt::{Receipt, ReceiptOutcome};
use crate::shared::{Hub, Input};
use crate::status;
use crate::types::{Incarnation, LogIndex, NodeId};

/// How long a node waits for the leader's answer to a request that it passed on, beyond the leader's own patience.
const FORWARD_MARGIN: Duration = Duration::from_secs(2);
/// How often a waiting request looks again.
const POLL: Duration = Duration::from_millis(10);

#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// What this node knows; never passed on.
    Status,
    /// Whether this node is well; never passed on.
    Health,
    /// Create a database.
    Create { name: String, page_size: u32, auto_vacuum: u8 },
    /// Drop a database.
    Drop { name: String },
    /// Up to which entry every member has the log; the leader knows.
    Floor,
    /// Make this node the leader.
    Transfer { to: NodeId },
    /// Compare what all nodes have.
    Verify { name: Option<String>, deep: bool },
    /// What this node has of a database at an index.
    Sum { name: String, at: LogIndex },
    /// Read the main file of this node's copy, from a page on, and compare it with its hashes.
    Scrub { name: String, from: u32 },
    /// Write a database to a file; by the user whose node this is.
    Backup { name: String, path: String, job: u64 },
    /// Make a file's content a database's; by the user whose node this is.
    Restore { name: String, path: String, job: u64 },
    /// How far a backup or a restore is.
    Progress { job: u64 },
    /// What became of a transaction, as far as this node can prove it.
    Outcome { receipt: Receipt },
    /// The data directory of this node.
    Directory,
    /// Begin a SQL session on this node, over a socket that can carry one.
    Session { name: String, level: String, create: bool },
    /// Bring in a member that listens.
    AddLearner { node: NodeId, address: String },
    /// Let a learner vote.
    Promote { node: NodeId },
    /// Take a member out.
    Remove { node: NodeId },
    /// Let a learner take the place of a voter.
    Replace { old: NodeId, new: NodeId },
    /// An empty node asks to be let in; answered with a [`Letter`].
    Join { node: NodeId, incarnation: Incarnation, address: String },
}

#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Ok(serde_json::Value),
    Err {
        kind: String,
        text: String,
        /// Who leads, if the node that was asked does not, and knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        leader: Option<NodeId>,
    },
}

/// Kinds that keep their meaning on the way from one node to another.
const KINDS: [(ErrorKind, &str); 10] = [
    (ErrorKind::NotLeader, "not_leader"),
    (ErrorKind::NotCommitted, "not_committed"),
    (ErrorKind::Unknown, "unknown"),
    (ErrorKind::Busy, "busy"),
    (ErrorKind::Timeout, "timeout"),
    (ErrorKind::BadInput, "bad_input"),
    (ErrorKind::Exists, "exists"),
    (ErrorKind::NotFound, "not_found"),
    (ErrorKind::Removed, "removed"),
    (ErrorKind::Corrupt, "corrupt"),
];

/// How a kind of error is called outside of this process.
pub(crate) fn word_of_kind(kind: ErrorKind) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("other", |(_, word)| word)
}

/// The kind of error behind a word.
pub(crate) fn kind_of_word(word: &str) -> ErrorKind {
    KINDS.iter().find(|(_, known)| *known == word).map_or(ErrorKind::Io, |(kind, _)| *kind)
}

impl Reply {
    fn of(result: Result<serde_json::Value>) -> Reply {
        match result {
            Ok(value) => Reply::Ok(value),
            Err(error) => Reply::Err {
                kind: word_of_kind(error.kind()).to_string(),
                text: error.to_string(),
                leader: error.leader().and_then(|leader| u16::try_from(leader).ok()).map(NodeId),
            },
        }
    }

    /// The answer, or the error that the other side had.
    pub(crate) fn into_result(self) -> Result<serde_json::Value> {
        match self {
            Reply::Ok(value) => Ok(value),
            Reply::Err { kind, text, leader } => Err(match (kind_of_word(&kind), leader) {
                (ErrorKind::NotLeader, Some(leader)) => {
                    let code = rusqlite::ffi::Error::new(not_leader_code(leader.0));
                    Error::caused(ErrorKind::NotLeader, text, rusqlite::Error::SqliteFailure(code, None))
                }
                (kind, _) => Error::new(kind, text),
            }),
        }
    }
}

impl Request {
    /// Never passed on.
    fn is_about_this_node(&self) -> bool {
        match self {
            Request::Create { .. }
            | Request::Drop { .. }
            | Request::Floor
            | Request::Transfer { .. }
            | Request::AddLearner { .. }
            | Request::Promote { .. }
            | Request::Remove { .. }
            | Request::Replace { .. }
            | Request::Join { .. } => false,
            Request::Status
            | Request::Health
            | Request::Verify { .. }
            | Request::Sum { .. }
            | Request::Scrub { .. }
            | Request::Backup { .. }
            | Request::Restore { .. }
            | Request::Progress { .. }
            | Request::Outcome { .. }
            | Request::Directory
            | Request::Session { .. } => true,
        }
    }
}

/// [`serve`], for a program of the user to whom this node belongs: it may name files.
pub(crate) fn serve_owner(hub: &Hub, body: &[u8]) -> Vec<u8> {
    let with_job = |job: u64, act: &dyn Fn(backup::Told<'_>) -> Result<()>| {
        let result = act(&mut |progress| _ = hub.jobs.lock().insert(job, progress));
        hub.jobs.lock().remove(&job);
        encode(&Reply::of(result.map(|()| serde_json::Value::Null)))
    };
    match serde_json::from_slice(body) {
        Ok(Request::Backup { name, path, job }) => {
            with_job(job, &|told| backup::backup(hub, &name, Path::new(&path), told))
        }
        Ok(Request::Restore { name, path, job }) => {
            with_job(job, &|told| backup::restore(hub, &name, Path::new(&path), told))
        }
        _ => serve(hub, None, body),
    }
}

/// Whoever comes in by the admin socket. They are one: a program that is too old, or too new, is told of once.
pub(crate) const OF_THIS_USER: &str = "a program of this user";

/// The answer to whoever is one too many.
pub(crate) fn busy(why: &str) -> Vec<u8> {
    encode(&Reply::of(Err(Error::new(ErrorKind::Busy, why))))
}

/// Answers a request that came in as bytes, from a node (`Some`) or a program.
pub(crate) fn serve(hub: &Hub, from: Option<NodeId>, body: &[u8]) -> Vec<u8> {
    let result = serde_json::from_slice(body)
        .map_err(|error| Error::new(ErrorKind::BadInput, format!("not a request: {error}")))
        // What another node passed on is not passed on again.
        .and_then(|request: Request| match from {
            Some(_) if request.is_about_this_node() => here(hub, &request),
            Some(_) => await_readiness(hub).and_then(|()| here(hub, &request)),
            None => anywhere(hub, &request),
        });
    encode(&Reply::of(result))
}

/// [`serve`], for a program on another machine, as far as anybody can tell: nothing says who it is, so that it may ask for nothing
/// but what a node asks that is none of the cluster yet.
pub(crate) fn serve_remote(hub: &Hub, at: &str, body: &[u8]) -> Vec<u8> {
    if matches!(serde_json::from_slice(body), Ok(Request::Join { .. })) {
        return serve(hub, None, body);
    }
    let what = format!(
        "node {} is administered from its own machine alone until there is TLS, and this came from {at}; run the program there, \
         with --data or over a loopback address",
        hub.id
    );
    encode(&Reply::of(Err(Error::new(ErrorKind::BadInput, what))))
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Our own types have string keys only, which is all that could fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Carries out a request on the leader, wherever that is.
pub(crate) fn anywhere(hub: &Hub, request: &Request) -> Result<serde_json::Value> {
    if request.is_about_this_node() {
        return here(hub, request);
    }
    let leadership = hub.leadership();
    if leadership.role == Role::Leader {
        await_readiness(hub)?;
        return here(hub, request);
    }
    let Some(leader) = leadership.leader.filter(|leader| *leader != hub.id) else {
        return Err(Error::new(
            ErrorKind::NotLeader,
            format!("node {} knows of no leader at the moment; try again", hub.id),
        ));
    };
    pass_on(hub, leader, request)
}

/// Lets another node carry out a request.
fn pass_on(hub: &Hub, leader: NodeId, request: &Request) -> Result<serde_json::Value> {
    let Some(transport) = hub.transport() else {
        return Err(Error::new(ErrorKind::Stopped, "this node is shut down"));
    };
    let limit = hub.commit_timeout() + FORWARD_MARGIN;
    let answer = transport.request(leader, encode(request), limit).map_err(|error| match error {
        RequestError::NotSent(what) => {
            Error::new(ErrorKind::NotLeader, format!("leader {leader} was not reached: {what}"))
        }
        RequestError::Lost(what) => {
            Error::new(ErrorKind::Unknown, format!("leader {leader} did not answer, it may have been done: {what}"))
        }
    })?;
    let reply: Reply = serde_json::from_slice(&answer)
        .map_err(|error| Error::new(ErrorKind::Io, format!("answer of leader {leader}: {error}")))?;
    reply.into_result()
}

/// A new leader may not have applied what the one before acknowledged: until then it would not know a database that
/// exists. Waits for that as long as it leads, for half of what a caller waits: the other half is for the request itself.
fn await_readiness(hub: &Hub) -> Result<()> {
    let deadline = hub.deadline(hub.commit_timeout() / 2);
    let decided = hub.changed.wait(&hub.waiting, deadline, Duration::from_millis(20), || {
        let leads = hub.leadership().role == Role::Leader;
        (!leads || hub.is_ready_leader()).then_some(leads)
    });
    match decided {
        Some(true) => Ok(()),
        _ => Err(Error::new(ErrorKind::NotLeader, format!("node {} does not lead, or not yet; try again", hub.id))),
    }
}

/// Whether this node is well: it does its part, shows all that had been committed when it was asked, and nothing needs a person.
/// Blocks for one election timeout at most.
fn health(hub: &Hub) -> Result<()> {
    let caught_up = match status::health(hub) {
        Ok(()) => hub.catch_up(hub.config.election_timeout).map_err(|what| Error::new(ErrorKind::Timeout, what)),
        Err(_) => Ok(()),
    };
    let alarms = status::alarms(hub).join("; ");
    // Once more: the leader may have been lost meanwhile.
    match status::health(hub) {
        // What it does not know, it cannot do its part for: there is nobody whom it could follow.
        Err(_) if hub.trouble().is_none() => Err(Error::new(ErrorKind::NotLeader, alarms)),
        Err(_) => Err(Error::new(ErrorKind::Stopped, alarms)),
        Ok(()) => match status::own_alarms(hub).join("; ") {
            own if own.is_empty() => caught_up,
            own => Err(Error::new(ErrorKind::Io, own)),
        },
    }
}

/// What became of the transaction that `receipt` names. If the log is known to be committed up to there and is about to be
/// applied, that is waited for, up to a second.
pub(crate) fn settle(hub: &Hub, receipt: &Receipt) -> Result<ReceiptOutcome> {
    let index = receipt.entry.index;
    let committed = hub.core_status.lock().as_ref().is_some_and(|core| core.committed >= index);
    if committed {
        // Its answer is looked at below, whatever it is.
        let _ = hub.changed.wait(&hub.waiting, hub.deadline(Duration::from_secs(1)), POLL, || {
            (hub.applied().index >= index || hub.is_stopped()).then_some(())
        });
    }
    match hub.with_catalogue(|catalogue| catalogue.cluster()) {
        Ok(cluster) if cluster == receipt.cluster => Ok(hub.outcome_of(receipt.entry)),
        Ok(cluster) => {
            let what = format!(
                "receipt {receipt} is of cluster {}, this node belongs to {cluster}: ask a node of that one; one that shoal recover \
                 made anew does not know what was before it, so read the database there",
                receipt.cluster
            );
            Err(Error::new(ErrorKind::BadInput, what))
        }
        Err(_) => Err(Error::new(ErrorKind::NotFound, "this node belongs to no cluster yet; ask later")),
    }
}

/// Carries out a request on this node.
fn here(hub: &Hub, request: &Request) -> Result<serde_json::Value> {
    match request {
        Request::Status => {
            serde_json::to_value(status::of(hub)).map_err(|error| Error::new(ErrorKind::Io, format!("status: {error}")))
        }
        Request::Health => health(hub).map(|()| serde_json::Value::Null),
        Request::Create { name, page_size, auto_vacuum } => {
            let name = valid(name)?;
            let page_size = PageSize::new(*page_size).ok_or_else(|| {
                Error::new(ErrorKind::BadInput, format!("page size {page_size}: use a power of two from 512 to 65536"))
            })?;
            let auto_vacuum = AutoVacuum::from_number(*auto_vacuum).ok_or_else(|| {
                Error::new(
                    ErrorKind::BadInput,
                    format!("auto_vacuum {auto_vacuum}: use 0, 1 (full) or 2 (incremental)"),
                )
            })?;
            decided(hub, Body::CreateDatabase { name, page_size, auto_vacuum }, ErrorKind::Exists)
        }
        Request::Drop { name } => {
            let name = valid(name)?;
            let database = hub
                .with_catalogue(|catalogue| catalogue.find(&name).map(|(id, _)| id))
                .ok()
                .flatten()
                .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no database named {}", name.as_str())))?;
            decided(hub, Body::DropDatabase { database }, ErrorKind::NotFound)
        }
        Request::Floor => match status::floor_of_members(hub) {
            Some(floor) => Ok(floor.0.into()),
            None => Err(Error::new(ErrorKind::NotLeader, format!("node {} does not lead", hub.id))),
        },
        Request::Transfer { to } => transfer(hub, *to),
        Request::Verify { name, deep } => verify::verify(hub, name.as_deref(), *deep),
        Request::Sum { name, at } => verify::sum(hub, name, *at),
        Request::Scrub { name, from } => verify::scrub(hub, name, *from),
        Request::Progress { job } => Ok(json!(hub.jobs.lock().get(job))),
        Request::Outcome { receipt } => Ok(json!(settle(hub, receipt)?)),
        Request::Directory => Ok(json!(hub.directory().and_then(Path::to_str))),
        Request::Backup { .. } | Request::Restore { .. } => Err(Error::new(
            ErrorKind::BadInput,
            "files are read and written for a program that comes through the admin socket of this node, in its data directory",
        )),
        Request::Session { .. } => Err(Error::new(
            ErrorKind::BadInput,
            "a SQL session needs the admin socket of its node, in the node's data directory: anybody on this machine \
             can reach a port",
        )),
        Request::AddLearner { node, address } => {
            check_address(address, hub.config.allow_plaintext_remote)?;
            let address = address.clone();
            change(hub, &Operation::AddLearner { node: *node, address, incarnation: None, rises: false })
        }
        Request::Promote { node } => change(hub, &Operation::Promote { node: *node }),
        Request::Remove { node } if *node == hub.id => hand_over_and_pass_on(hub, request),
        Request::Remove { node } => change(hub, &Operation::Remove { node: *node }),
        Request::Replace { old, .. } if *old == hub.id => hand_over_and_pass_on(hub, request),
        Request::Replace { old, new } => change(hub, &Operation::Replace { old: *old, new: *new }),
        Request::Join { node, incarnation, address } => join(hub, *node, *incarnation, address),
    }
}

fn valid(name: &str) -> Result<DatabaseName> {
    DatabaseName::new(name).map_err(|error| Error::new(ErrorKind::BadInput, error.to_string()))
}

fn decided(hub: &Hub, body: Body, refused: ErrorKind) -> Result<serde_json::Value> {
    let decision = hub.propose(body, None);
    match status::held_up(hub) {
        Some(what) if decision == Decision::Lost => {
            Err(Error::new(ErrorKind::Unknown, format!("{what}; it may be done later")))
        }
        _ => told(decision, refused),
    }
}

/// What became of a proposal.
pub(crate) fn told(decision: Decision, refused: ErrorKind) -> Result<serde_json::Value> {
    match decision {
        Decision::Committed(_) => Ok(serde_json::Value::Null),
        Decision::Refused(why) => Err(Error::new(refused, why)),
        Decision::NotCommitted => {
            Err(Error::new(ErrorKind::NotCommitted, "leadership changed; it was not done, try again"))
        }
        Decision::Lost => Err(Error::new(ErrorKind::Unknown, "no answer in time; it may have been done")),
    }
}

/// Asks the engine for a change of the members, and waits until it is done and counted by.
fn change(hub: &Hub, operation: &Operation) -> Result<serde_json::Value> {
    // Who is heard of, and what is applied, the leader knows anew after a heartbeat or two.
    let patience = hub.deadline(5 * hub.config.heartbeat);
    loop {
        let (number, signal) = hub.pending.register(None);
        let (reply, refusals) = crossbeam_channel::bounded(1);
        hub.post(Input::Change { number, operation: operation.clone(), reply });
        match hub.await_decision(number, &signal, None) {
            Decision::Committed(index) => return await_change(hub, index),
            Decision::Refused(why) => {
                let refusal = refusals.try_recv().ok();
                let may_pass = refusal.as_ref().is_none_or(Refusal::may_pass);
                if may_pass && hub.waiting.clock.now() < patience {
                    let _ = hub.changed.wait(&hub.waiting, hub.deadline(hub.config.heartbeat / 2), POLL, || None::<()>);
                    continue;
                }
                return Err(Error::new(refusal.map_or(ErrorKind::Busy, |refusal| refusal.kind()), why));
            }
            Decision::NotCommitted => {
                return Err(Error::new(ErrorKind::NotCommitted, "leadership changed; it was not done, try again"));
            }
            Decision::Lost => {
                return Err(Error::new(
                    ErrorKind::Unknown,
                    "no answer in time; it may have been done, see the members",
                ));
            }
        }
    }
}

/// The entry at `index` is committed: done once the core counts by it, and any joint configuration is left.
fn await_change(hub: &Hub, index: LogIndex) -> Result<serde_json::Value> {
    let done = hub.changed.wait(&hub.waiting, hub.deadline(hub.commit_timeout()), POLL, || {
        let core = hub.core_status.lock();
        let done = |core: &CoreStatus| core.applied >= index && core.membership.voters_outgoing.is_empty();
        core.as_ref().is_some_and(done).then_some(())
    });
    match done {
        Some(()) => Ok(serde_json::Value::Null),
        None => Err(Error::new(
            ErrorKind::Unknown,
            "the change has begun and will be ended by itself; a majority of the old members, or of the new ones, does not answer",
        )),
    }
}

/// What takes this leader out is for the next leader to do: the one who has most of the log.
fn hand_over_and_pass_on(hub: &Hub, request: &Request) -> Result<serde_json::Value> {
    let next = hub.core_status.lock().as_ref().and_then(|status| {
        let voters = status.peers.iter().filter(|peer| peer.active && status.membership.voters.contains(&peer.id));
        voters.max_by_key(|peer| peer.acknowledged).map(|peer| peer.id)
    });
    let Some(next) = next else {
        // There is nobody; the engine knows why not.
        return change(hub, &Operation::Remove { node: hub.id });
    };
    transfer(hub, next)?;
    pass_on(hub, next, request)
}

/// What a node that joins needs: the beginning of the log, and where the members are.
#[derive(Serialize, Deserialize)]
struct Wire {
    genesis: Vec<u8>,
    members: Vec<(NodeId, String)>,
}

/// See [`Request::Join`].
pub(crate) struct Letter {
    pub(crate) genesis: Genesis,
    pub(crate) members: Vec<(NodeId, String)>,
}

impl Letter {
    /// From the answer.
    pub(crate) fn read(value: serde_json::Value) -> Result<Letter> {
        let bad = |what: String| Error::new(ErrorKind::Io, format!("its answer: {what}"));
        let Wire { genesis, members } = serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
        let genesis = Genesis::decode(&genesis).map_err(|error| bad(error.to_string()))?;
        Ok(Letter { genesis, members })
    }
}

/// What is no address at all is told to whoever wrote it, before anybody is asked.
pub(crate) fn check_shape(address: &str) -> Result<()> {
    tcp::check_shape(address, false).map_err(|error| Error::caused(ErrorKind::BadInput, error.to_string(), error))
}

/// A member that nobody may dial would be none.
pub(crate) fn check_address(address: &str, allow_plaintext_remote: bool) -> Result<()> {
    tcp::check_address(address, allow_plaintext_remote)
        .map_err(|error| Error::caused(ErrorKind::BadInput, error.to_string(), error))
}

/// Lets a node in. Asked again, because an answer was lost, it says the same.
fn join(hub: &Hub, node: NodeId, incarnation: Incarnation, address: &str) -> Result<serde_json::Value> {
    let known = hub.with_catalogue(|catalogue| catalogue.member(node).cloned()).ok().flatten();
    match known {
        Some(member) if member.incarnation == Some(incarnation) && member.address == address => {}
        Some(_) => {
            let body = Body::BindIncarnation { node, incarnation, address: address.to_string() };
            decided(hub, body, ErrorKind::BadInput)?;
        }
        None => {
            check_address(address, hub.config.allow_plaintext_remote)?;
            let incarnation = Some(incarnation);
            change(hub, &Operation::AddLearner { node, address: address.to_string(), incarnation, rises: true })?;
        }
    }
    let Some(genesis) = hub.genesis.get() else {
        return Err(Error::new(ErrorKind::Stopped, "this node does not know how its cluster began"));
    };
    let members =
        hub.with_catalogue(|catalogue| catalogue.members().map(|(id, member)| (id, member.address.clone())).collect());
    let letter = Wire { genesis: genesis.encode(), members: members.unwrap_or_default() };
    serde_json::to_value(letter).map_err(|error| Error::new(ErrorKind::Io, format!("letter: {error}")))
}

/// A request of a node that belongs to no cluster, to whoever listens at `door`.
pub(crate) fn ask(door: &str, request: &Request, limit: Duration, allow_remote: bool) -> Result<serde_json::Value> {
    let answer = tcp::call(door, &encode(request), limit, allow_remote).map_err(|error| match error {
        RequestError::NotSent(what) => Error::new(ErrorKind::NotLeader, what),
        RequestError::Lost(what) => Error::new(ErrorKind::Unknown, what),
    })?;
    let reply: Reply =
        serde_json::from_slice(&answer).map_err(|error| Error::new(ErrorKind::Io, format!("answer: {error}")))?;
    reply.into_result()
}

/// How often somebody is told to take over, an election timeout apart.
const TRANSFER_ATTEMPTS: u32 = 3;

fn transfer(hub: &Hub, to: NodeId) -> Result<serde_json::Value> {
    let leadership = hub.leadership();
    if leadership.role != Role::Leader {
        return Err(Error::new(ErrorKind::NotLeader, format!("node {} is not the leader", hub.id)));
    }
    if to == hub.id {
        return Ok(serde_json::Value::Null);
    }
    let judged = || {
        let Some(status) = hub.core_status.lock().clone() else { return Err(Refusal::Silent(to)) };
        let judged = hub.with_catalogue(|catalogue| {
            let at = Situation {
                leader: hub.id,
                membership: &status.membership,
                pending: false,
                committed: status.committed,
                start: hub.core_start(),
                peers: &status.peers,
                catalogue,
            };
            members::judge_transfer(to, &at)
        });
        judged.unwrap_or(Err(Refusal::Silent(to)))
    };
    // Who is heard of, the leader knows anew after a heartbeat.
    let patience = hub.deadline(3 * hub.config.heartbeat);
    let settled = || judged().map_or_else(|refusal| (!refusal.may_pass()).then_some(Err(refusal)), |()| Some(Ok(())));
    let judged = hub.changed.wait(&hub.waiting, patience, POLL, settled).unwrap_or_else(judged);
    judged.map_err(|refusal| Error::new(refusal.kind(), format!("node {to} cannot take over: {refusal}")))?;
    // The one who is told to take over does not, and says nothing, while a change of the members waits to be applied there.
    // The library gives up on it after an election timeout, and may then be asked again.
    let done = (0..TRANSFER_ATTEMPTS).find_map(|_| {
        hub.post(Input::Transfer { to });
        let deadline = hub.deadline(hub.config.election_timeout + hub.config.heartbeat);
        hub.changed.wait(&hub.waiting, deadline, Duration::from_millis(50), || {
            let now = hub.leadership();
            (now.role != Role::Leader && now.leader.is_some()).then_some(now.leader)
        })
    });
    match done {
        Some(leader) if leader == Some(to) => Ok(serde_json::Value::Null),
        Some(other) => Err(Error::new(
            ErrorKind::Busy,
            format!("node {} became the leader instead of node {to}", other.map_or(0, |id| id.0)),
        )),
        None => Err(Error::new(
            ErrorKind::Timeout,
            format!("node {to} did not take over in time; node {} still leads", hub.id),
        )),
    }
}
