//! Making a fetched snapshot count.
//!
//! ```text
//! step                                                     a crash after it
//! 1 new generations complete, synced, named (fetch.rs)      nothing has changed; what is there is used by the next attempt
//! 2 the log is reset: it begins behind the snapshot's      a start finds the new generations named in the log's head, and
//!   entry, in one segment with one synced head              removes the old ones
//! 3 databases show the new files                            the same
//! 4 their old generations are removed, and databases that   the same
//!   are dropped by then
//! 5 core and applier begin anew behind that entry           the same
//! ```
//!
//! The table is walked by tests. Crashes in step 1: `a_power_cut_at_every_call_leaves_something_to_go_on_with`. Power lost in,
//! and a fault of, every call from its end to that of step 4:
//! `a_crash_or_a_fault_in_any_call_of_an_install_leaves_the_old_state_or_the_whole_new_one`. Step 5 is in memory: a process that
//! ends before it, or behind it, is in `what_a_process_did_not_get_to_tell_of_an_install_is_told_by_the_next_one`. Whole nodes lose
//! power there in the simulation ("installs rolled forward"), and real ones are killed: `a_kill_in_every_labelled_step_loses_nothing`,
//! and the kill loop.
//!
//! Step 2 is the only one that decides anything. To Raft the node looks as if it had been started again: what it had
//! acknowledged is in the snapshot or was never committed (a log that has not the snapshot's entry differs from the
//! committed one before it), and term and vote stay what they were on disk.
//!
//! **An error** from step 2 on leaves nobody who knows what is on the disk. The node stops acknowledging, and goes on reading what it
//! showed; its process fetches nothing more, since that would be built in the files that the log's head may name by then, and
//! leaves log and files to the next start (`Snapshots::end`).
//!
//! **What is told of it** comes after step 2, and that record says that it is still to be told (`registry.rs`), so that a crash in
//! between loses nothing of it.
//!
//! **Pages that are ahead of the log.** A snapshot that was cut while a transaction was open in parts has them: its log begins
//! before that transaction. So has one from a node whose main files were ahead of what it knew to be committed, and one beside which
//! files of an earlier one are kept that are further. What the log brings then is skipped as far as a database has it, as after any
//! start. The record of step 2 says how far the pages are, so that a start in between does not take this for a log that lost its end; it is the
//! newest anchor until the log has got there. Nothing is promised that this disk has not: the node votes and acknowledges by
//! its log alone, and what the pages show is on a majority of other disks.
//!
//! Deliberately absent: who holds up engine, log and applier meanwhile (`driver.rs`).

use std::sync::Arc;

use bytes::Bytes;

use super::Staged;
use crate::log::{Anchor, Log, LogError};
use crate::planted::{self, Bug};
use crate::raft::{CoreStatus, Restored, Role};
use crate::registry::{self, Aftermath, Finishing, GONE, Left};
use crate::shared::Hub;
use crate::types::{HardState, LogIndex};

/// What became of it.
pub(crate) enum Installed {
    /// Core and applier have to begin anew, with this.
    Yes(Box<Restored>),
    /// The node has got so far by its log.
    NotNeeded,
    /// The disk has no room for the head of another log. Nothing has changed, and it may be tried again.
    NoRoom(Box<Staged>, LogError),
}

/// Installs a snapshot. Nobody turns the engine, writes the log or applies anything meanwhile, and everything that was
/// handed to the log and to the applier is forgotten afterwards.
///
/// An error means that the node cannot go on; a start will find what there is.
pub(crate) fn install(hub: &Hub, log: &Arc<Log>, core: &CoreStatus, staged: Staged) -> Result<Installed, String> {
    let at = staged.manifest.at;
    let has_it = log.term(at.index) == Some(at.term) && at.index <= log.last().index;
    if has_it || core.committed >= at.index || core.role.role == Role::Leader {
        // Nobody goes on with what was fetched, and databases of it may have been dropped since.
        drop(staged);
        hub.snapshots.parts.lock().clear();
        hub.databases.delete_leftovers(|id| id.0 <= at.index.0);
        return Ok(Installed::NotNeeded);
    }
    let durable = log.hard_state();
    // A term that the log has not heard of yet, as when it waits for room, stays known: people were told of it. Nobody has heard
    // what this node would have promised in it, since that waits for the disk.
    let known = at.term.max(core.role.term);
    let hard_state = if known > durable.term {
        HardState { term: known, vote: None, commit: at.index }
    } else {
        let vote = durable.vote.filter(|_| !planted::is(Bug::InstallForgetsVote));
        HardState { commit: at.index, vote, ..durable }
    };
    let mut generations = hub.databases.generations();
    generations.retain(|id, _| staged.manifest.catalogue.databases().any(|(known, _)| known == *id));
    generations.extend(staged.files.iter().map(|(id, files)| (*id, files.owner().generation)));
    let gone = staged.manifest.gone();
    generations.extend(gone.iter().map(|id| (*id, GONE)));
    let membership = staged.manifest.membership.clone();
    // Nothing is ahead of a log that begins where the pages are.
    let reach = if staged.manifest.reach > at.index { staged.manifest.reach } else { LogIndex(0) };
    let left = Left { install: Some(staged.received), end: true, source: Some(staged.view.0) };
    let finishing = Finishing { source: staged.source, index: at.index, left };
    let aftermath = Aftermath { reach, finishing: Some(finishing) };
    let registry = Bytes::from(registry::encode(&staged.manifest.catalogue, &generations, aftermath));
    match log.reset(at, Anchor { applied: at.index, membership: membership.clone(), registry }, hard_state) {
        Ok(()) => {}
        Err(error) if error.can_be_tried_again() => return Ok(Installed::NoRoom(Box::new(staged), error)),
        Err(error) => {
            return Err(format!("the log could not be begun anew behind a snapshot: {}", error.in_words()));
        }
    }
    hub.databases
        .install(at.index, &staged.manifest.catalogue, staged.files, &gone)
        .map_err(|error| format!("a snapshot is on disk, but not shown: {error}; start the node again"))?;
    hub.begin(staged.manifest.catalogue, at);
    hub.set_reach(reach);
    hub.snapshots.set_finishing(Some(finishing), hub.waiting.clock.now());
    hub.pending.on_skipped(at);
    Ok(Installed::Yes(Box::new(Restored { hard_state, membership, start: at, last: at, applied: at.index })))
}
