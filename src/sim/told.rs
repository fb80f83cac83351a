//! What nodes tell their listeners: each thing once, in its order, and nothing without what comes before it.
//!
//! ```text
//! event                    what must hold, in one process
//! LeaderChanged            terms never fall
//! MemberChanged            entries only rise
//! CheckpointDone           positions of one database only rise
//! LogCompacted             entries only rise
//! SnapshotInstalled        once for each install, in whichever process: not twice, and not never, unless power was lost while
//!                          its disk took down that it is told
//! SnapshotFinished         once for each node that fetched, once for each SnapshotInstalled, and never without; that of an
//!                          earlier process, if that did not get to it
//! DivergenceRepaired       not without DivergenceFound of that database
//! Lagged                   never: somebody listens all the time
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::node::Slot;
use super::world::{At, State};
use crate::events::Event;
use crate::registry::Finishing;
use crate::types::{Incarnation, LogIndex, NodeId, Term};

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
    /// One that an earlier process did not get to tell of.
    untold: Option<LogIndex>,
    found: BTreeSet<String>,
}

impl Told {
    /// What a process has told that begins with something of a snapshot still to tell.
    pub(super) fn beginning_with(finishing: Option<Finishing>) -> Told {
        let untold = finishing.filter(|it| it.left.install.is_some()).map(|it| it.index);
        let installed = finishing.filter(|it| untold.is_none() && it.left.end).map(|it| it.index);
        Told { installed: installed.into_iter().collect(), untold, ..Told::default() }
    }

    /// Whether something of a snapshot is still to be told.
    pub(super) fn lacks_an_end(&self) -> bool {
        !self.installed.is_empty() || self.untold.is_some()
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
                self.untold.take_if(|untold| untold == index);
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

/// What the processes of one node have told of installs, each with the directory that it was in.
#[derive(Default)]
pub(super) struct Installs {
    told: Option<(Incarnation, LogIndex)>,
    /// One that a process was still to tell of when it ended: its disk may say otherwise.
    open: Option<(Incarnation, LogIndex)>,
}

impl State {
    /// Takes in what all nodes have told since the last event.
    pub(super) fn hear(&mut self) {
        for at in 0..self.slots.len() {
            self.hear_one(at);
        }
    }

    fn hear_one(&mut self, at: At) {
        let Slot { running: Some(running), installs, .. } = &mut self.slots[at] else { return };
        let (mut wrongs, mut reached) = (Vec::new(), Vec::new());
        while let Ok(event) = running.events.try_recv() {
            if let Event::SnapshotInstalled { index, .. } = event {
                let told = (running.hub.incarnation, index);
                if installs.told.replace(told) == Some(told) {
                    wrongs.push(format!("told twice that a snapshot of entry {index} was installed"));
                }
            }
            let (wrong, counts) = running.told.on_event(event);
            wrongs.extend(wrong);
            reached.extend(counts);
        }
        reached.into_iter().for_each(|what| self.count(what));
        wrongs.into_iter().for_each(|what| self.fail(format!("n{}: {what}", at + 1)));
    }

    /// A process ends: what it has told is heard, and what it was still to tell is noted.
    pub(super) fn hear_the_last_of(&mut self, at: At) {
        self.hear_one(at);
        let Slot { running: Some(running), installs, .. } = &mut self.slots[at] else { return };
        let untold = running.hub.snapshots.finishing().filter(|it| it.left.install.is_some());
        installs.open = untold.map(|it| (running.hub.incarnation, it.index));
    }

    /// A process begins: its disk says what is still to be told.
    pub(super) fn compare_with_what_was_told(&mut self, at: At) {
        let Slot { running: Some(running), installs, .. } = &mut self.slots[at] else { return };
        let Some(it) = running.hub.snapshots.finishing() else { return };
        let install = Some((running.hub.incarnation, it.index));
        if it.left.install.is_some() {
            self.count("installs told by a later process");
        } else if installs.open == install {
            // It went down with the last breath of the process before.
            installs.told = install;
        } else if installs.told != install {
            self.fail(format!("n{}: nobody was told that a snapshot of entry {} was installed", at + 1, it.index));
        }
    }
}
