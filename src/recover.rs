//! When a majority is lost for good: one node goes on alone, as a cluster of its own.
//!
//! Raft cannot help here: what the lost majority acknowledged without this node, nobody knows. So a person decides, on a
//! stopped node, and everything in its log counts as committed from then on, what was never acknowledged included. The
//! members are told by two more entries, a change to this node alone and its end, as if the cluster had agreed on it; all
//! other ids are removed for ever. The cluster gets a new id, so that those who were thought dead cannot come back: each
//! side refuses the other.
//!
//! ```text
//! what is there                                  a crash before the next line leaves
//! DIR/log                                        the cluster as it was
//! DIR/log, DIR/log.recovered, being written      the same: it is begun anew
//! DIR/identity names the new cluster             a directory that does not start; running it again ends it
//! DIR/log.recovered becomes DIR/log              the new cluster, done; the old log is DIR/log.before
//! ```
//!
//! Each line is on disk before the next one is begun, also where another process wrote it: it may have ended before its
//! sync.
//!
//! Deliberately absent: judgement. Which node has most is for the one who asks: [`Report`] says how far this one came.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use shoaldb_vfs::env::{Env, in_words};

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::entry::{self, Body};
use crate::error::{Error, ErrorKind, Result};
use crate::found::format::{Belongs, Genesis, Identity};
use crate::history::History;
use crate::identity;
use crate::log::{Anchor, Batch, Log, LogError, LogOptions, Recovered};
use crate::members::{self, Context};
use crate::raft::{ChangeKind, MembershipChange, Transition};
use crate::registry::{self, Registry};
use crate::types::{ClusterId, EntryClass, EntryId, HardState, LogEntry, LogIndex, NodeId, Term};

/// Bytes of entries that are copied with one write.
const BATCH: u64 = 8 << 20;

/// What the recovery of a directory means.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The cluster that the directory belonged to.
    pub cluster: ClusterId,
    /// The cluster that it belongs to once it is done; another one at each question.
    pub new_cluster: ClusterId,
    /// The last entry of this node's log. What others acknowledged behind it is lost.
    pub last: LogIndex,
    /// Its term. Of several nodes that are left, the one with the highest term, then the highest entry, has most.
    pub term: Term,
    /// The last entry that this node knew to be committed. What its log has behind it may never have been acknowledged,
    /// and counts as committed from now on.
    pub committed: LogIndex,
    /// The members that are left behind, for ever.
    pub others: Vec<NodeId>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { cluster, last, term, committed, others, .. } = self;
        writeln!(f, "this node has the log of cluster {cluster} up to entry {last}, of term {term}")?;
        writeln!(f, "LOST: every transaction that the others acknowledged behind entry {last}, if there is any")?;
        if committed < last {
            writeln!(
                f,
                "UNCERTAIN: entries {} to {last} may never have been acknowledged; they count from now on",
                committed.next()
            )?;
        }
        let others: Vec<u16> = others.iter().map(|id| id.0).collect();
        writeln!(
            f,
            "GONE: nodes {others:?} can never come back; join new ones, with empty directories, under new ids"
        )?;
        write!(f, "the cluster gets a new id; if nodes of the old one are alive, stop them for good")
    }
}

/// What recovery would do to the directory `dir` of node `only`, or does if `carry_out`. The node must not run.
pub fn only_member(dir: &Path, only: u64, carry_out: bool) -> Result<Report> {
    only_member_in(&Env::os(), dir, only, carry_out)
}

/// The same, with other doors. For tests.
#[doc(hidden)]
pub fn only_member_in(env: &Env, dir: &Path, only: u64, carry_out: bool) -> Result<Report> {
    let bad = |what: String| Error::new(ErrorKind::BadInput, what);
    let only = u16::try_from(only).ok().filter(|id| *id > 0).map(NodeId);
    let only = only.ok_or_else(|| bad("the node's id is a number from 1 to 65535".to_string()))?;
    let _lock = env.fs.lock_dir(dir, "dir.lock").map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Error::new(
            ErrorKind::Busy,
            format!("{}: a process uses this directory; stop the node first", dir.display()),
        ),
        _ => {
            let text = format!("{}: cannot be used: {}", dir.display(), in_words(&error));
            Error::caused(ErrorKind::Io, text, error)
        }
    })?;
    let place = Place {
        env,
        dir,
        options: LogOptions { segment_bytes: Config::default().segment_bytes, ..LogOptions::default() },
    };
    let identity = identity::load(&*env.fs, dir, only)
        .map_err(|error| bad(error.to_string()))?
        .ok_or_else(|| bad(format!("{}: no node's data directory", dir.display())))?;
    let genesis = match &identity.belongs {
        Belongs::Founded(genesis) | Belongs::Joined(genesis) => genesis.clone(),
        Belongs::Nowhere => return Err(bad(format!("{}: this node belongs to no cluster yet", dir.display()))),
    };
    place.run(&identity, genesis, carry_out)
}

struct Place<'a> {
    env: &'a Env,
    dir: &'a Path,
    options: LogOptions,
}

/// What the log has, read to its end.
struct Read {
    log: Log,
    recovered: Recovered,
    end: Catalogue,
    joint: bool,
}

impl Place<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn run(&self, identity: &Identity, genesis: Genesis, carry_out: bool) -> Result<Report> {
        let only = identity.node;
        if carry_out {
            // An attempt whose process ended left names that a power cut takes back, each on its own. What is built on
            // one of them must not stay when it goes: the new log without its identity, or a new DIR/log.recovered in
            // the place of the whole one.
            self.named(self.env.fs.sync_dir(self.dir, "recover.begin"))?;
        }
        let is_its = |read: &Read| read.recovered.cluster == genesis.cluster;
        let waiting = self.read("log.recovered");
        // A recovery that ended behind the identity: the new log is whole and waits for its place.
        if let Ok(new) = &waiting
            && is_its(new)
        {
            let report = report(new, genesis.cluster, only);
            if carry_out {
                drop(waiting);
                self.exchange()?;
            }
            return Ok(report);
        }
        // Else it is of an attempt that had not come so far, and the log is what counts.
        let old = match (self.read("log"), waiting) {
            (Ok(old), _) if is_its(&old) => old,
            (Err(error), _) if !is_absent(&error) => return Err(error),
            // It may have been the one that waits, and why it could not be read is all that is to be said.
            (_, Err(error)) if !is_absent(&error) => {
                let what = format!("{}: {error}", self.path("log.recovered").display());
                return Err(Error::caused(error.kind(), what, error));
            }
            (Err(error), _) => return Err(error),
            (Ok(_), _) => {
                let what = format!("{}: identity and log are of different clusters", self.dir.display());
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
        };
        if old.end.was_removed(only) {
            let what = format!("node {only} was removed from its cluster, and others know more; recover one of them");
            return Err(Error::new(ErrorKind::BadInput, what));
        }
        let refused = match old.end.member(only) {
            // The change to it alone would be refused, and nobody could be elected.
            None => Some(format!("the log of this node ends before node {only} became a member; recover one that was")),
            // Its log ends in a joint configuration, whose end would take out the very node that is to stay.
            Some(member) if member.leaving => Some(format!(
                "a replacement that was under way takes node {only} out of its cluster; recover one that stays"
            )),
            Some(_) => None,
        };
        if let Some(refused) = refused {
            let stay: Vec<u16> = others(&old, only).iter().map(|id| id.0).collect();
            let what = format!(
                "{refused}, of nodes {stay:?}; if none of them is left, start node {only}, save each database with `shoal backup`, \
                 which needs no leader and has what that node knows to be committed, and restore them in a new cluster"
            );
            return Err(Error::new(ErrorKind::BadInput, what));
        }
        let reach = registry_of(&old.recovered.anchor)?.aftermath.reach;
        if reach > old.recovered.last.index {
            let what = format!(
                "node {only} has taken a snapshot of entry {reach}, and its log ends at {}, before that; recover another node",
                old.recovered.last.index
            );
            return Err(Error::new(ErrorKind::BadInput, what));
        }
        let cluster = ClusterId(self.env.rng.next_u64());
        let report = report(&old, cluster, only);
        if carry_out {
            self.write(&old, only, cluster)?;
            let belongs = Belongs::Joined(Genesis { cluster, ..genesis });
            identity::store(&*self.env.fs, self.dir, &Identity { belongs, promised: None, ..identity.clone() })
                .map_err(|error| Error::new(ErrorKind::Io, error.to_string()))?;
            drop(old);
            self.exchange()?;
        }
        Ok(report)
    }

    fn read(&self, name: &str) -> Result<Read> {
        let (log, recovered) = Log::open(self.env.fs.clone(), &self.path(name), self.options).map_err(log_error)?;
        let corrupt = |what: String| Error::new(ErrorKind::Corrupt, what);
        let mut end = registry_of(&recovered.anchor)?.catalogue;
        let mut joint = !recovered.anchor.membership.voters_outgoing.is_empty();
        each_entry(&log, recovered.anchor.applied, recovered.last.index, |entry| {
            match entry.class {
                EntryClass::Membership => {
                    let change = MembershipChange::decode(&entry.data).map_err(corrupt)?;
                    let newcomers = match change.context.is_empty() {
                        true => Vec::new(),
                        false => {
                            Context::decode(&change.context).map_err(|error| corrupt(error.to_string()))?.newcomers
                        }
                    };
                    // What the catalogue refuses has no effect, here as on a node that runs.
                    if members::apply(&mut end, &change, &newcomers).is_ok() {
                        joint = change.transition != Transition::Automatic || change.changes.len() > 1;
                    }
                }
                EntryClass::Normal if entry.data.is_empty() => {}
                EntryClass::Normal => {
                    // An entry of a later version stops a node, and says so better than this could.
                    if let Ok((entry::Kind::BindIncarnation, _)) = entry::peek(&entry.data)
                        && let Ok(payload) = entry::decode(&entry.data)
                        && let Body::BindIncarnation { node, incarnation, address } = payload.body
                    {
                        _ = end.bind_incarnation(node, incarnation, &address);
                    }
                }
            }
            Ok(())
        })?;
        Ok(Read { log, recovered, end, joint })
    }

    /// The new log: all entries of the old one, then the change to one member and its end.
    fn write(&self, old: &Read, only: NodeId, cluster: ClusterId) -> Result<()> {
        self.clear("log.recovered")?;
        let Recovered { anchor, start, last, hard_state, .. } = &old.recovered;
        // Without what receipts need: those that there are name the old cluster.
        let Registry { catalogue, generations, aftermath } = registry_of(&old.recovered.anchor)?;
        let registry = registry::encode(&catalogue.of_cluster(cluster), &generations, aftermath);
        let anchor = Anchor { registry: Bytes::from(registry), ..anchor.clone() };
        let first = Anchor { applied: start.index, ..anchor.clone() };
        let begin = HardState { term: start.term, vote: None, commit: start.index };
        let log =
            Log::create(self.env.fs.clone(), &self.path("log.recovered"), cluster, self.options, *start, first, begin)
                .map_err(log_error)?;
        let mut at = start.index;
        while at < last.index {
            let entries = old.log.entries(at.next(), last.index.next(), BATCH).map_err(log_error)?;
            let Some(newest) = entries.last() else { break };
            at = newest.id.index;
            let hard_state = Some(HardState { term: newest.id.term, vote: None, commit: start.index });
            log.append(&Batch { entries, hard_state, anchor: None }).map_err(log_error)?;
        }
        let term = Term(hard_state.term.max(last.term).0 + 1);
        let mut entries = Vec::new();
        let mut push = |change: MembershipChange| {
            let index = LogIndex(last.index.0 + 1 + entries.len() as u64);
            let id = EntryId { index, term };
            entries.push(LogEntry { id, class: EntryClass::Membership, data: change.encode() });
        };
        if old.joint {
            push(MembershipChange::leave_joint());
        }
        let mut changes = vec![(ChangeKind::Voter, only)];
        changes.extend(others(old, only).into_iter().map(|node| (ChangeKind::Removed, node)));
        push(MembershipChange { transition: Transition::JointUntilTold, changes, context: Bytes::new() });
        push(MembershipChange::leave_joint());
        let commit = LogIndex(last.index.0 + entries.len() as u64);
        let hard_state = Some(HardState { term, vote: Some(only), commit });
        log.append(&Batch { entries, hard_state, anchor: Some(anchor) }).map_err(log_error)
    }

    fn clear(&self, name: &str) -> Result<()> {
        let (fs, dir) = (&*self.env.fs, self.path(name));
        self.named(fs.create_dir_all(&dir, "recover.clear"))?;
        for file in self.named(fs.list(&dir, "recover.clear"))? {
            self.named(fs.remove(&dir.join(file), "recover.clear"))?;
        }
        Ok(())
    }

    /// A failure with the directory that it is about: the system does not name it.
    fn named<T>(&self, result: io::Result<T>) -> Result<T> {
        result.map_err(|error| {
            let what = format!("{}: {error}; running it again goes on from here", self.dir.display());
            io::Error::new(error.kind(), what).into()
        })
    }

    /// Puts the new log in the old one's place.
    fn exchange(&self) -> Result<()> {
        let fs = &*self.env.fs;
        let before = self.path(&format!("log.before-{:016x}", self.env.rng.next_u64()));
        match fs.rename(&self.path("log"), &before, "recover.exchange") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return self.named(Err(error)),
            // An earlier attempt came this far.
            Ok(()) | Err(_) => {}
        }
        self.named(fs.rename(&self.path("log.recovered"), &self.path("log"), "recover.exchange"))?;
        self.named(fs.sync_dir(self.dir, "recover.exchange"))
    }
}

/// The databases and members that an anchor carries.
pub fn registry_of(anchor: &Anchor) -> Result<Registry> {
    let corrupt =
        |error: &dyn std::fmt::Display| Error::new(ErrorKind::Corrupt, format!("catalogue in the log: {error}"));
    let (_, registry) = History::split(&anchor.registry).map_err(|error| corrupt(&error))?;
    registry::decode(registry).map_err(|error| corrupt(&error))
}

fn each_entry(
    log: &Log,
    behind: LogIndex,
    last: LogIndex,
    mut take: impl FnMut(&LogEntry) -> Result<()>,
) -> Result<()> {
    let mut at = behind;
    while at < last {
        let entries = log.entries(at.next(), last.next(), BATCH).map_err(log_error)?;
        for entry in &entries {
            at = entry.id.index;
            take(entry)?;
        }
        if entries.is_empty() {
            break;
        }
    }
    Ok(())
}

fn others(read: &Read, only: NodeId) -> Vec<NodeId> {
    // Who was leaving is gone once the joint configuration is left, which comes first.
    read.end.members().filter(|(id, member)| *id != only && !member.leaving).map(|(id, _)| id).collect()
}

fn report(read: &Read, new_cluster: ClusterId, only: NodeId) -> Report {
    let Recovered { cluster, last, hard_state, .. } = &read.recovered;
    let others = others(read, only);
    Report { cluster: *cluster, new_cluster, last: last.index, term: last.term, committed: hard_state.commit, others }
}

/// Whether there is no such log.
fn is_absent(error: &Error) -> bool {
    match std::error::Error::source(error).and_then(|source| source.downcast_ref()) {
        Some(LogError::Missing { .. }) => true,
        Some(LogError::Io { error, .. }) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

fn log_error(error: LogError) -> Error {
    let kind = if error.is_damage() { ErrorKind::Corrupt } else { ErrorKind::Io };
    Error::caused(kind, error.to_string(), error)
}

#[cfg(test)]
mod tests;
