//! Nodes that are upgraded one after another, and one that is started once more as the old program it was.
//!
//! In some runs all nodes begin as programs of this version, in some of the next. Each is started again, now and then, as one of
//! the next version, whose only kind of entry, the rehearsal, clients try to write; it is in no log before every member speaks it. A node that
//! comes back as the old program applies what is before the first of them, stops there, says which version it needs, and
//! goes on when it gets it.

use super::world::{At, Ev, State};
use crate::pending::Decision;
use crate::shared::Hub;
use crate::types::PROTOCOL;

/// The version after this one.
pub(super) const NEXT: u16 = PROTOCOL + 1;

impl State {
    /// Somebody starts a node as another program.
    pub(super) fn upgrade(&mut self, at: At) {
        if !self.shape.upgrades || !self.slots[at].started {
            return;
        }
        let old = self.slots.iter().position(|slot| slot.started && slot.speaks == PROTOCOL);
        match old {
            Some(old) => {
                self.slots[old].speaks = NEXT;
                self.note(format_args!("n{} becomes a program of the next version", old + 1));
                self.count("upgrades");
                self.crash(old, false);
            }
            None if self.dice.below(2) == 0 => {
                self.slots[at].speaks = PROTOCOL;
                self.note(format_args!("n{} becomes a program of this version again", at + 1));
                self.count("upgrades taken back");
                self.crash(at, false);
            }
            None => {}
        }
    }

    /// The applier of a node stopped; whether because its program is too old, which it must say. It gets a newer one.
    pub(super) fn is_too_old(&mut self, at: At, reason: &str) -> bool {
        if !self.shape.upgrades || self.slots[at].speaks != PROTOCOL {
            return false;
        }
        if !reason.contains("version") && !reason.contains("protocol") {
            return false;
        }
        self.note(format_args!("n{}: {reason}", at + 1));
        self.count("old programs that stopped");
        self.slots[at].speaks = NEXT;
        let millis = 100 + self.dice.below(2000);
        let life = self.slots[at].life;
        self.after_millis(millis, Ev::Mend(super::faults::Mend::Crippled(at, life)));
        true
    }

    /// A connection was opened to a node: it hears what the other one speaks.
    pub(super) fn hear_version(&self, from: At, to: &Hub) {
        to.hear_version(self.slots[from].id, self.slots[from].speaks_now);
    }

    pub(super) fn on_rehearsal(&mut self, at: At, decision: &Decision) {
        self.note(format_args!("n{}: an entry of the next version: {decision:?}", at + 1));
        match decision {
            Decision::Committed(_) => self.count("entries of the next version"),
            _ => self.count("entries of the next version refused"),
        }
    }
}
