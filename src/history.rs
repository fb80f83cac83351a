//! What a node remembers of the log in order to settle receipts: term and verdict of every entry.
//!
//! It answers by proof only:
//!
//! ```text
//! this node has applied                                               answer
//! that entry, and the transaction took effect                         Committed
//! that entry, and its base or its database had passed                 NotCommitted
//! an entry of another term at that index                              NotCommitted
//! an entry of a later term before that index (terms never fall)       NotCommitted
//! nothing of that kind yet                                            Unknown: Undecided
//! beyond that index, but does not remember what it found there        Unknown: Forgotten
//! ```
//!
//! What it found is kept as runs of equal terms and verdicts. That is one run per leader
//! and few besides, since nearly every transaction that enters the log takes effect; the oldest beyond [`MAX_RUNS`] are
//! forgotten. Verdicts are noted, never inferred: an entry of which the applier says nothing is not judged, and so is no
//! proof. It outlives the process and the log, because each anchor carries it in front of the catalogue:
//!
//! ```text
//! offset size  field (little-endian)
//!      0    4  magic "SHrc"
//!      4    2  format version, 1
//!      6    2  0
//!      8   16  the last entry that was applied: index, term
//!     24    4  number of runs; then for each, ascending:
//!              8 index of its first entry, 8 term, 1 verdict (0 took effect, 1 refused, 2 not judged)
//!          4  number of positions; then for each, ids ascending:
//!              8 id of the database, 8 index of the entry that it stood at after that last entry
//!          4  CRC32C of everything before
//! ```
//!
//! A start applies again what is behind the anchor, and a main file may have some of it already, so that nothing is tried a
//! second time. For these entries the *positions* repeat the one decision that all nodes made alike: a transaction takes
//! effect if its database stands at its base.
//!
//! Deliberately absent: the log, and waiting.

use std::collections::{BTreeMap, VecDeque};

use crate::catalogue::DatabaseId;
use crate::fields::{Damaged, Reader, put_checksum, put_count};
use crate::receipt::{ReceiptOutcome, Unsettled};
use crate::types::{EntryId, LogIndex, Term};

/// Runs that a node remembers. A cluster makes two or three per change of leadership, and each anchor carries them all in
/// 17 bytes apiece.
const MAX_RUNS: usize = 1024;

const MAGIC: [u8; 4] = *b"SHrc";
const FORMAT: u16 = 1;

/// What became of an entry when it was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It took effect, or it was nothing that could be refused.
    Took,
    /// A transaction that was refused, on every node alike.
    Refused,
    /// Nobody knows.
    Unjudged,
}

/// What the applier found when it came to an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finding {
    /// No transaction, nor the end of one: no receipt names it.
    Nothing,
    /// It created this database.
    Created(DatabaseId),
    /// It dropped this database.
    Dropped(DatabaseId),
    /// A transaction that took effect in this database.
    Took(DatabaseId),
    /// A transaction that was refused.
    Refused,
    /// A transaction of this database on this base, which was not tried here.
    Untried(DatabaseId, LogIndex),
    /// The end of a transaction of this database whose beginning is before the start of this node: whether it took effect is not
    /// seen here.
    Unseen(DatabaseId),
}

/// A stretch of entries with one term and one verdict; it ends where the next one begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    from: LogIndex,
    term: Term,
    verdict: Verdict,
}

/// Term and verdict of the entries that this node has applied.
///
/// Invariant: `runs` ascend in `from`, neighbours differ, terms never fall; they cover everything up to `last` without a
/// gap, from the first run's `from` on. `positions` are those at `last`, of the databases of which it is known.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct History {
    runs: VecDeque<Run>,
    last: EntryId,
    positions: BTreeMap<DatabaseId, LogIndex>,
    found: Option<(LogIndex, Finding)>,
}

impl History {
    /// Begins behind `applied`, of which nothing is known. Its term may be too low.
    pub(crate) fn new(applied: EntryId) -> History {
        History { runs: VecDeque::new(), last: applied, positions: BTreeMap::new(), found: None }
    }

    /// The last entry that it knows of.
    pub(crate) fn last(&self) -> LogIndex {
        self.last.index
    }

    /// What the applier found in the entry that it will report as applied next.
    pub(crate) fn note(&mut self, index: LogIndex, finding: Finding) {
        self.found = Some((index, finding));
    }

    /// This entry was applied; they come one by one, after a start those again that are known already.
    pub(crate) fn on_applied(&mut self, applied: EntryId) {
        let found = self.found.take().filter(|(index, _)| *index == applied.index).map(|(_, finding)| finding);
        if applied.index <= self.last.index {
            return;
        }
        if applied.index != self.last.index.next() {
            self.runs.clear();
            self.positions.clear();
        }
        self.last = applied;
        let verdict = self.judge(applied.index, found);
        if self.runs.back().is_some_and(|run| (run.term, run.verdict) == (applied.term, verdict)) {
            return;
        }
        self.runs.push_back(Run { from: applied.index, term: applied.term, verdict });
        if self.runs.len() > MAX_RUNS {
            self.runs.pop_front();
        }
    }

    fn judge(&mut self, index: LogIndex, found: Option<Finding>) -> Verdict {
        match found {
            Some(Finding::Nothing) => Verdict::Took,
            Some(Finding::Created(database) | Finding::Took(database)) => {
                self.positions.insert(database, index);
                Verdict::Took
            }
            Some(Finding::Dropped(database)) => {
                self.positions.remove(&database);
                Verdict::Took
            }
            Some(Finding::Refused) => Verdict::Refused,
            Some(Finding::Untried(database, base)) => match self.positions.get_mut(&database) {
                Some(position) if *position == base => {
                    *position = index;
                    Verdict::Took
                }
                Some(_) => Verdict::Refused,
                None => Verdict::Unjudged,
            },
            Some(Finding::Unseen(database)) => {
                self.positions.remove(&database);
                Verdict::Unjudged
            }
            None => {
                // It may have changed any of them.
                self.positions.clear();
                Verdict::Unjudged
            }
        }
    }

    /// What is proven of the transaction that was proposed as `entry`.
    pub(crate) fn outcome(&self, entry: EntryId) -> ReceiptOutcome {
        if entry.index > self.last.index {
            return match self.last.term > entry.term {
                true => ReceiptOutcome::NotCommitted,
                false => ReceiptOutcome::Unknown(Unsettled::Undecided),
            };
        }
        let at = self.runs.partition_point(|run| run.from <= entry.index);
        match at.checked_sub(1).and_then(|at| self.runs.get(at)) {
            Some(run) if run.term != entry.term => ReceiptOutcome::NotCommitted,
            Some(Run { verdict: Verdict::Took, .. }) => ReceiptOutcome::Committed(entry.index.0),
            Some(Run { verdict: Verdict::Refused, .. }) => ReceiptOutcome::NotCommitted,
            Some(Run { verdict: Verdict::Unjudged, .. }) => ReceiptOutcome::Unknown(Unsettled::Forgotten),
            // What stands there is not of a later term than what is remembered first.
            None if self.runs.front().is_some_and(|run| entry.term > run.term) => ReceiptOutcome::NotCommitted,
            None => ReceiptOutcome::Unknown(Unsettled::Forgotten),
        }
    }

    /// What an anchor carries: this, then the catalogue.
    pub(crate) fn encode(&self, catalogue: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(40 + 17 * self.runs.len() + 16 * self.positions.len() + catalogue.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.last.index.0.to_le_bytes());
        out.extend_from_slice(&self.last.term.0.to_le_bytes());
        put_count(&mut out, self.runs.len());
        for Run { from, term, verdict } in &self.runs {
            out.extend_from_slice(&from.0.to_le_bytes());
            out.extend_from_slice(&term.0.to_le_bytes());
            out.push(match verdict {
                Verdict::Took => 0,
                Verdict::Refused => 1,
                Verdict::Unjudged => 2,
            });
        }
        put_count(&mut out, self.positions.len());
        for (database, position) in &self.positions {
            out.extend_from_slice(&database.0.to_le_bytes());
            out.extend_from_slice(&position.0.to_le_bytes());
        }
        put_checksum(&mut out);
        out.extend_from_slice(catalogue);
        out
    }

    /// Reads what [`History::encode`] wrote: the history, if there is one, and the catalogue's bytes.
    pub(crate) fn split(bytes: &[u8]) -> Result<(Option<History>, &[u8]), Damaged> {
        if !bytes.starts_with(&MAGIC) {
            return Ok((None, bytes));
        }
        let mut fields = Reader::new(bytes);
        fields.bytes(4, "magic")?;
        let version = fields.u16("version")?;
        if version != FORMAT {
            return Err(fields.damaged(format!("receipts of version {version}, this program knows {FORMAT}")));
        }
        fields.bytes(2, "reserved")?;
        let index = LogIndex(fields.u64("last index")?);
        let term = Term(fields.u64("last term")?);
        let mut history = History::new(EntryId { index, term });
        for _ in 0..fields.count(17, "number of runs")? {
            let from = LogIndex(fields.u64("run")?);
            let term = Term(fields.u64("term of a run")?);
            let verdict = match fields.u8("verdict")? {
                0 => Verdict::Took,
                1 => Verdict::Refused,
                2 => Verdict::Unjudged,
                other => return Err(fields.damaged(format!("verdict {other}"))),
            };
            let grows = history.runs.back().is_none_or(|last| last.from < from && last.term <= term);
            if !grows || from > index || term > history.last.term {
                return Err(fields.damaged(format!("a run from {from} of term {term} out of order")));
            }
            history.runs.push_back(Run { from, term, verdict });
        }
        for _ in 0..fields.count(16, "number of positions")? {
            let database = DatabaseId(fields.u64("database")?);
            let position = LogIndex(fields.u64("position")?);
            let grows = history.positions.last_key_value().is_none_or(|(last, _)| *last < database);
            if !grows || position > index {
                return Err(fields.damaged(format!("position {position} of database {database} out of order")));
            }
            history.positions.insert(database, position);
        }
        let end = fields.at();
        let stored = fields.u32("checksum")?;
        let (body, rest) = (bytes.get(..end).unwrap_or_default(), bytes.get(fields.at()..).unwrap_or_default());
        let computed = crc32c::crc32c(body);
        if stored != computed {
            return Err(fields.damaged(format!("checksum is {stored:08x}, the bytes have {computed:08x}")));
        }
        Ok((Some(history), rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNDECIDED: ReceiptOutcome = ReceiptOutcome::Unknown(Unsettled::Undecided);
    const FORGOTTEN: ReceiptOutcome = ReceiptOutcome::Unknown(Unsettled::Forgotten);
    use ReceiptOutcome::{Committed, NotCommitted};

    fn entry(index: u64, term: u64) -> EntryId {
        EntryId { index: LogIndex(index), term: Term(term) }
    }

    const APP: DatabaseId = DatabaseId(2);

    fn apply(history: &mut History, index: u64, term: u64, finding: Finding) {
        history.note(LogIndex(index), finding);
        history.on_applied(entry(index, term));
    }

    fn reread(history: &History) -> History {
        let bytes = history.encode(b"catalogue");
        let (read, rest) = History::split(&bytes).unwrap();
        assert_eq!(rest, b"catalogue");
        read.unwrap()
    }

    /// The table in the module's text, line by line. Shows INV-29.
    #[test]
    fn every_answer_has_its_proof() {
        let mut history = History::new(entry(1, 1));
        assert_eq!(history.outcome(entry(2, 1)), UNDECIDED);
        apply(&mut history, 2, 1, Finding::Took(APP));
        apply(&mut history, 3, 1, Finding::Refused);
        history.on_applied(entry(4, 3));
        apply(&mut history, 5, 3, Finding::Took(APP));

        for history in [&history, &reread(&history)] {
            assert_eq!(history.outcome(entry(2, 1)), Committed(2));
            assert_eq!(history.outcome(entry(3, 1)), NotCommitted, "refused");
            assert_eq!(history.outcome(entry(2, 2)), NotCommitted, "another entry there");
            assert_eq!(history.outcome(entry(5, 2)), NotCommitted, "another entry there");
            assert_eq!(history.outcome(entry(7, 2)), NotCommitted, "an entry of a later term before it");
            assert_eq!(history.outcome(entry(7, 3)), UNDECIDED);
            assert_eq!(history.outcome(entry(7, 4)), UNDECIDED);
            assert_eq!(history.outcome(entry(4, 3)), FORGOTTEN, "nobody judged it");
            assert_eq!(history.outcome(entry(1, 1)), FORGOTTEN, "before the beginning");
            assert_eq!(history.outcome(entry(0, 1)), FORGOTTEN);
            assert_eq!(history.outcome(entry(0, 2)), NotCommitted, "terms never fall");
        }
    }

    #[test]
    fn a_finding_counts_for_its_own_entry_only() {
        let mut history = History::new(entry(1, 1));
        history.note(LogIndex(2), Finding::Took(APP));
        history.on_applied(entry(2, 1));
        history.on_applied(entry(3, 1));
        assert_eq!(history.outcome(entry(3, 1)), FORGOTTEN);
        // Noted, but the applier never came to its end.
        history.note(LogIndex(4), Finding::Took(APP));
        history.on_applied(entry(5, 1));
        assert_eq!(history.outcome(entry(5, 1)), FORGOTTEN);
        assert_eq!(history.outcome(entry(2, 1)), FORGOTTEN, "behind a gap nothing is known");
    }

    /// The term of the entry at which a start begins may be gone with the log: nothing may be concluded from it.
    #[test]
    fn an_unknown_beginning_proves_nothing() {
        let mut history = History::new(entry(10, 0));
        assert_eq!(history.outcome(entry(10, 3)), FORGOTTEN);
        assert_eq!(history.outcome(entry(7, 3)), FORGOTTEN);
        assert_eq!(history.outcome(entry(11, 3)), UNDECIDED);
        apply(&mut history, 11, 3, Finding::Nothing);
        assert_eq!(history.outcome(entry(10, 3)), FORGOTTEN);
        assert_eq!(history.outcome(entry(10, 4)), NotCommitted);
    }

    /// Shows INV-29.
    #[test]
    fn what_a_main_file_has_already_is_judged_as_it_was_the_first_time() {
        let create_and_fill = |history: &mut History| {
            apply(history, 2, 1, Finding::Created(APP));
            apply(history, 3, 1, Finding::Took(APP));
        };
        let mut first = History::new(entry(1, 1));
        create_and_fill(&mut first);
        let kept = reread(&first);
        apply(&mut first, 4, 1, Finding::Took(APP));
        apply(&mut first, 5, 1, Finding::Refused);
        apply(&mut first, 6, 1, Finding::Took(APP));

        let mut again = kept;
        // Known already: whatever is noted now does not count.
        apply(&mut again, 3, 1, Finding::Refused);
        for (index, base) in [(4, 3), (5, 3), (6, 4)] {
            apply(&mut again, index, 1, Finding::Untried(APP, LogIndex(base)));
        }
        assert_eq!(again, first);
        // Without its position a transaction that was not tried is not judged; one that took effect makes it known.
        let mut blind = History::new(entry(1, 1));
        apply(&mut blind, 2, 1, Finding::Untried(APP, LogIndex(1)));
        apply(&mut blind, 3, 1, Finding::Took(APP));
        apply(&mut blind, 4, 1, Finding::Untried(APP, LogIndex(2)));
        assert_eq!(blind.outcome(entry(2, 1)), FORGOTTEN);
        assert_eq!(blind.outcome(entry(4, 1)), NotCommitted);
        apply(&mut blind, 5, 1, Finding::Dropped(APP));
        apply(&mut blind, 6, 1, Finding::Untried(APP, LogIndex(3)));
        assert_eq!(blind.outcome(entry(6, 1)), FORGOTTEN);
    }

    #[test]
    fn runs_are_bounded_and_what_falls_off_is_forgotten_and_not_guessed() {
        let mut history = History::new(entry(1, 1));
        let last = 4 * MAX_RUNS as u64;
        for index in 2..=last {
            apply(&mut history, index, 1, if index % 2 == 0 { Finding::Took(APP) } else { Finding::Refused });
        }
        assert_eq!(history.runs.len(), MAX_RUNS);
        assert_eq!(history.outcome(entry(2, 1)), FORGOTTEN);
        assert_eq!(history.outcome(entry(last - 2, 1)), Committed(last - 2));
        assert_eq!(history.outcome(entry(last - 1, 1)), NotCommitted);
        // A hundred million entries of one leader are one run.
        let mut history = History::new(entry(1, 1));
        (2..=1000).for_each(|index| apply(&mut history, index, 1, Finding::Took(APP)));
        assert_eq!(history.runs.len(), 1);
        assert_eq!(history.outcome(entry(2, 1)), Committed(2));
    }

    #[test]
    fn version_1_stays_readable() {
        let mut history = History::new(entry(1, 1));
        apply(&mut history, 2, 1, Finding::Created(APP));
        apply(&mut history, 3, 2, Finding::Refused);
        history.on_applied(entry(4, 2));
        apply(&mut history, 5, 2, Finding::Took(APP));
        let hex = "534872630100000005000000000000000200000000000000040000000200000000000000010000000000000000\
                   0300000000000000020000000000000001040000000000000002000000000000000205000000000000000200\
                   000000000000000100000002000000000000000500000000000000bca6d985";
        assert_eq!(hex_of(&history.encode(&[])), hex);
        assert_eq!(reread(&history), history);
    }

    fn hex_of(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn damaged_bytes_of_an_anchor_are_an_error() {
        let mut history = History::new(entry(1, 1));
        apply(&mut history, 2, 1, Finding::Created(APP));
        apply(&mut history, 3, 2, Finding::Refused);
        let bytes = history.encode(&[]);
        assert_eq!(History::split(b"SHct and so on").unwrap(), (None, &b"SHct and so on"[..]), "a catalogue alone");
        for cut in MAGIC.len()..bytes.len() {
            assert!(History::split(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in MAGIC.len()..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(History::split(&bad).is_err(), "byte {at}, bit {bit}");
            }
        }
    }
}
