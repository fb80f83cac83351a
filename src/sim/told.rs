//! What nodes tell their listeners: each thing once, in its order, and nothing without what comes before it.
//!
//! ```text
//! event                    what must hold, in one process
//! LeaderChanged            terms never fall
//! MemberChanged            entries only rise
//! CheckpointDone           positions of one database only rise
//! LogCompacted             entries only rise
//! SnapshotFinished         once for each node that fetched, once for each SnapshotInstalled, and never without; that of an
//!                          earlier process, if that did not get to it
//! DivergenceRepaired       not without DivergenceFound of that database
//! Lagged                   never: somebody listens all the time
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::world::State;
use crate::events::Event;
use crate::registry::Finishing;
use crate::types::{LogIndex, NodeId, Term};

/// What one process has told so far.
#[derive(Default)]
pub(super) struct Told {
    term: Term,
    members: LogIndex,
    compacted: LogIndex,
    checkpoints: BTreeMap<String, LogIndex>,
    /// To whom this node said that it lends a view of which entry, and of which of them that they are over there.
    lent: BTreeSet<(NodeId, LogIndex)>,
    finished: BTreeSet<(NodeId, LogIndex)>,
    /// Entries of snapshots that were installed, and not said to be over yet.
    installed: BTreeSet<LogIndex>,
    found: BTreeSet<String>,
}

impl Told {
    /// What a process has told that begins with the end of a snapshot still to tell.
    pub(super) fn beginning_with(finishing: Option<Finishing>) -> Told {
        Told { installed: finishing.map(|it| it.index).into_iter().collect(), ..Told::default() }
    }

    /// Whether the end of a snapshot is still to be told.
    pub(super) fn lacks_an_end(&self) -> bool {
        !self.installed.is_empty()
    }

    /// Takes an event in; what is wrong with it, and what of it counts as reached.
    pub(super) fn on_event(&mut self, event: Event) -> (Option<String>, Option<&'static str>) {
        let wrong = |holds: bool| (!holds).then(|| format!("told {event:?} out of its order, or twice"));
        match &event {
            Event::LeaderChanged { term, .. } => {
                let before = std::mem::replace(&mut self.term, *term);
                (wrong(before <= *term), None)
            }
            Event::MemberChanged { index, .. } => {
                let before = std::mem::replace(&mut self.members, *index);
                (wrong(before < *index), None)
            }
            Event::LogCompacted { through } => {
                let before = std::mem::replace(&mut self.compacted, *through);
                (wrong(before < *through), None)
            }
            Event::CheckpointDone { database, position } => {
                let before = self.checkpoints.insert(database.clone(), *position);
                (wrong(before.is_none_or(|before| before < *position)), None)
            }
            Event::SnapshotStarted { peer, index, receiving: false } => {
                self.lent.insert((*peer, *index));
                (None, None)
            }
            Event::SnapshotInstalled { index, .. } => {
                // One that another one follows before the log went on is not said to be over.
                let before = std::mem::replace(&mut self.installed, BTreeSet::from([*index]));
                (wrong(!before.contains(index)), None)
            }
            Event::SnapshotFinished { peer, index, receiving: false } => {
                let holds = self.lent.contains(&(*peer, *index)) && self.finished.insert((*peer, *index));
                (wrong(holds), Some("ends of snapshots told"))
            }
            Event::SnapshotFinished { index, receiving: true, .. } => {
                (wrong(self.installed.remove(index)), Some("ends of snapshots told"))
            }
            Event::DivergenceFound { database, .. } => {
                self.found.insert(database.clone());
                (None, Some("damaged copies found"))
            }
            Event::DivergenceRepaired { database, .. } => (wrong(self.found.contains(database)), Some("repairs done")),
            Event::Lagged(_) => (wrong(false), None),
            _ => (None, None),
        }
    }
}

impl State {
    /// Takes in what all nodes have told since the last event.
    pub(super) fn hear(&mut self) {
        for at in 0..self.slots.len() {
            let Some(running) = self.slots[at].running.as_deref_mut() else { continue };
            let (mut wrongs, mut reached) = (Vec::new(), Vec::new());
            while let Ok(event) = running.events.try_recv() {
                let (wrong, counts) = running.told.on_event(event);
                wrongs.extend(wrong);
                reached.extend(counts);
            }
            reached.into_iter().for_each(|what| self.count(what));
            wrongs.into_iter().for_each(|what| self.fail(format!("n{}: {what}", at + 1)));
        }
    }
}
