//! Lists that transactions append to and read, and whether all of it could have happened one after the other.
//!
//! Every value is appended once, so what a read shows says whose appends came before it and whose did not. From that a graph
//! is made, with an edge from whatever must come first:
//!
//! ```text
//! ww   who appended a value             -> who appended the next one to the same list
//! wr   who appended the last value      -> who read the list up to it
//! rw   who read a list up to some value -> who appended the one behind it
//! rt   who had ended                    -> who began afterwards; not for local reads, which may show an earlier state
//! ```
//!
//! No order of the transactions explains a cycle. Apart from cycles, a list must grow only at its end, reads must not show what
//! was refused, nor the half of a transaction, and what was acknowledged must be there.
//!
//! The upper half makes such transactions; the check knows nothing but their history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::{Connection as Plain, OptionalExtension};

use super::load::text;
use super::world::{At, World};
use crate::error::{Outcome, outcome};

/// Lists that there are.
const LISTS: u64 = 5;

/// What a transaction did to one list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Op {
    Append(u64, u64),
    /// It showed these values.
    Read(u64, Vec<u64>),
}

/// What was said of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
    Done,
    NotCommitted,
    Unknown,
}

/// One transaction.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) ops: Vec<Op>,
    pub(super) said: Said,
    /// Moments of one clock; nobody knows when one ended of which nobody heard.
    pub(super) begun: u64,
    pub(super) ended: u64,
    /// It may show an earlier state than the newest.
    pub(super) local: bool,
}

/// A client appends to some lists and reads some, in one transaction.
pub(super) fn use_lists(world: &Arc<World>, at: At, writes: bool) {
    let linearizable = !writes && world.state.lock().dice.below(2) == 0;
    let Some(session) = world.connect(at, ("app", linearizable)) else { return };
    let (plan, begun) = {
        let mut state = world.state.lock();
        let mut plan = Vec::new();
        for _ in 0..1 + state.dice.below(4) {
            let list = 1 + state.dice.below(LISTS);
            let value = (writes && state.dice.below(2) == 0).then(|| state.checks.unique());
            plan.push(value.map_or(Op::Read(list, Vec::new()), |value| Op::Append(list, value)));
        }
        (plan, state.moment())
    };
    let appends = plan.iter().any(|op| matches!(op, Op::Append(..)));
    let (ops, result) = run(&session.connection, &plan, writes);
    let mut state = world.state.lock();
    if let Err((error, _)) = &result {
        state.unexpected(at, "a transaction on lists", error);
    }
    let said = match &result {
        Ok(false) => None,
        Ok(true) => Some(Said::Done),
        // What only read and failed showed nothing to anybody.
        Err(_) if !appends => None,
        Err((_, false)) => Some(Said::NotCommitted),
        Err((error, true)) if outcome(error) == Some(Outcome::NotCommitted) => Some(Said::NotCommitted),
        Err(_) => Some(Said::Unknown),
    };
    if let Some(said) = said {
        let words = result.as_ref().err().map(|(error, _)| text(error)).unwrap_or_default();
        state.note(format_args!("n{}: lists {ops:?}: {said:?} {words}", at + 1));
        state.count(if appends { "transactions on lists" } else { "reads of lists" });
        let ended = state.moment();
        // A transaction that changed nothing is promised to be the newest at `Linearizable` only.
        let local = !appends && !linearizable;
        state.checks.lists.push(Transaction { ops, said, begun, ended, local });
    }
    drop(state);
    world.put_back(session);
}

/// What was done, and whether there were lists; on failure also whether it had come to its commit.
#[allow(clippy::type_complexity, reason = "one caller")]
fn run(connection: &Plain, plan: &[Op], writes: bool) -> (Vec<Op>, Result<bool, (rusqlite::Error, bool)>) {
    let mut ops = Vec::new();
    let mut before_commit = || -> Result<bool, rusqlite::Error> {
        connection.execute_batch(if writes { "BEGIN IMMEDIATE" } else { "BEGIN" })?;
        let there = "SELECT count(*) = 1 FROM sqlite_schema WHERE name = 'lists'";
        if !connection.query_row(there, [], |row| row.get::<_, bool>(0))? {
            return Ok(false);
        }
        for op in plan {
            match op {
                Op::Append(list, value) => {
                    let sql = "INSERT INTO lists VALUES (?1, ?2) ON CONFLICT(k) DO UPDATE SET body = body || ?2";
                    connection.execute(sql, (*list as i64, format!(" {value}")))?;
                    ops.push(op.clone());
                }
                Op::Read(list, _) => {
                    let sql = "SELECT body FROM lists WHERE k = ?1";
                    let body = connection.query_row(sql, [*list as i64], |row| row.get::<_, String>(0)).optional()?;
                    ops.push(Op::Read(*list, values(&body.unwrap_or_default())));
                }
            }
        }
        Ok(true)
    };
    let result = match before_commit() {
        Ok(true) => connection.execute_batch("COMMIT").map(|()| true).map_err(|error| (error, true)),
        Ok(false) => Ok(false),
        Err(error) => Err((error, false)),
    };
    (ops, result)
}

fn values(body: &str) -> Vec<u64> {
    body.split_whitespace().filter_map(|value| value.parse().ok()).collect()
}

/// The lists as a node has them.
pub(super) fn all(connection: &Plain) -> Result<BTreeMap<u64, Vec<u64>>, rusqlite::Error> {
    let mut statement = connection.prepare("SELECT k, body FROM lists")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, values(&row.get::<_, String>(1)?))))?;
    rows.collect()
}

/// What is wrong with a history; `last` are the lists at the end.
pub(super) fn check(history: &[Transaction], last: &BTreeMap<u64, Vec<u64>>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut author: BTreeMap<u64, usize> = BTreeMap::new();
    for (at, transaction) in history.iter().enumerate() {
        author.extend(transaction.appends().map(|(_, value)| (value, at)));
    }
    let there: BTreeSet<u64> = last.values().flatten().copied().collect();
    if there.len() != last.values().map(Vec::len).sum::<usize>() {
        wrong.push(format!("a value is there twice: {last:?}"));
    }
    // Whoever has a value at the end is committed, whatever was said.
    let committed = |at: usize| {
        let transaction = &history[at];
        transaction.said == Said::Done || transaction.appends().any(|(_, value)| there.contains(&value))
    };
    for (at, transaction) in history.iter().enumerate() {
        for (list, value) in transaction.appends() {
            match (transaction.said, there.contains(&value)) {
                (Said::Done, false) => wrong.push(format!("t{at} appended {value} to list {list}; it is not there")),
                (Said::NotCommitted, true) => {
                    wrong.push(format!("t{at} was not committed, they said; its {value} is in list {list}"));
                }
                _ => {}
            }
        }
        let some = transaction.appends().filter(|(_, value)| there.contains(value)).count();
        if some != 0 && some != transaction.appends().count() {
            wrong.push(format!("t{at} is there in part: {:?}", transaction.ops));
        }
    }
    let mut edges: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); history.len()];
    let mut edge = |from: usize, to: usize| {
        if from != to && committed(from) && committed(to) {
            edges[from].insert(to);
        }
    };
    for list in last.values() {
        for pair in list.windows(2) {
            if let (Some(before), Some(after)) = (author.get(&pair[0]), author.get(&pair[1])) {
                edge(*before, *after);
            }
        }
    }
    for (at, transaction) in history.iter().enumerate().filter(|(at, _)| committed(*at)) {
        for (list, shown) in transaction.reads_of_others() {
            let all = last.get(&list).map_or(&[][..], Vec::as_slice);
            if !all.starts_with(&shown) {
                wrong.push(format!("t{at} read {shown:?} in list {list}, which is {all:?} at the end"));
                continue;
            }
            let writer = |value: Option<&u64>| value.and_then(|value| author.get(value)).copied();
            let (before, after) = (writer(shown.last()), writer(all.get(shown.len())));
            if before.is_some() && before == after && before != Some(at) {
                wrong.push(format!("t{at} read half of t{before:?} in list {list}: {shown:?}"));
            }
            if let Some(before) = before {
                edge(before, at);
            }
            if let Some(after) = after {
                edge(at, after);
            }
        }
    }
    if let Some(cycle) = cycle(history, &edges) {
        let words = cycle.iter().map(|at| format!("t{at} {:?}", history[*at]));
        wrong.push(format!("no order explains these: {}", words.collect::<Vec<_>>().join(" -> ")));
    }
    wrong
}

impl Transaction {
    fn appends(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ops.iter().filter_map(|op| match op {
            Op::Append(list, value) => Some((*list, *value)),
            Op::Read(..) => None,
        })
    }

    /// Lists as it saw them, without what it had appended itself by then.
    fn reads_of_others(&self) -> Vec<(u64, Vec<u64>)> {
        let (mut own, mut reads) = (BTreeSet::new(), Vec::new());
        for op in &self.ops {
            match op {
                Op::Append(_, value) => _ = own.insert(*value),
                Op::Read(list, shown) => {
                    let others = shown.iter().copied().filter(|value| !own.contains(value)).collect();
                    reads.push((*list, others));
                }
            }
        }
        reads
    }
}

/// Transactions each of which must come before the next, and the last before the first.
///
/// Time is a chain of moments that is walked along with the edges: whoever ends leads to all that begin later.
fn cycle(history: &[Transaction], edges: &[BTreeSet<usize>]) -> Option<Vec<usize>> {
    // Nodes of the graph: the transactions, then the moments at which one begins, in order. Moment i leads to whoever begins
    // then and to moment i + 1; who ended leads to the first moment after that.
    let strict: Vec<usize> = (0..history.len()).filter(|at| !history[*at].local).collect();
    let mut moments: Vec<u64> = strict.iter().map(|at| history[*at].begun).collect();
    moments.sort_unstable();
    moments.dedup();
    let n = history.len();
    let mut next: Vec<Vec<usize>> = edges.iter().map(|edges| edges.iter().copied().collect()).collect();
    next.resize(n + moments.len(), Vec::new());
    for at in 1..moments.len() {
        next[n + at - 1].push(n + at);
    }
    for at in strict {
        let begins = moments.partition_point(|moment| *moment < history[at].begun);
        next[n + begins].push(at);
        let after = moments.partition_point(|moment| *moment <= history[at].ended);
        if history[at].said == Said::Done && after < moments.len() {
            next[at].push(n + after);
        }
    }
    // Depth first; 0: not seen, 1: on the path, 2: done.
    let mut seen = vec![0_u8; next.len()];
    for root in 0..next.len() {
        let mut path = vec![(root, 0)];
        if seen[root] != 0 {
            continue;
        }
        seen[root] = 1;
        while let Some((at, turn)) = path.last_mut() {
            let Some(to) = next[*at].get(*turn).copied() else {
                seen[*at] = 2;
                path.pop();
                continue;
            };
            *turn += 1;
            match seen[to] {
                0 => {
                    seen[to] = 1;
                    path.push((to, 0));
                }
                1 => {
                    let from = path.iter().position(|(at, _)| *at == to).unwrap_or(0);
                    return Some(path[from..].iter().map(|(at, _)| *at).filter(|at| *at < n).collect());
                }
                _ => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(begun: u64, ended: u64, ops: &[Op]) -> Transaction {
        Transaction { ops: ops.to_vec(), said: Said::Done, begun, ended, local: false }
    }

    fn append(value: u64) -> Op {
        Op::Append(value / 100, value)
    }

    fn read(list: u64, values: &[u64]) -> Op {
        Op::Read(list, values.to_vec())
    }

    /// What is wrong with these transactions, whose lists end like this.
    fn wrong(history: &[Transaction], last: &[&[u64]]) -> String {
        let last = last.iter().filter_map(|list| Some((list.first()? / 100, list.to_vec()))).collect();
        check(history, &last).join("; ")
    }

    #[test]
    fn a_history_with_an_order_is_sound() {
        let history = [
            transaction(1, 2, &[append(101), append(201)]),
            transaction(3, 6, &[read(1, &[101]), append(102), read(1, &[101, 102])]),
            // At the same time as the one before.
            transaction(4, 5, &[read(1, &[101]), read(2, &[201])]),
            Transaction { said: Said::Unknown, ..transaction(7, 8, &[append(103)]) },
            Transaction { said: Said::NotCommitted, ..transaction(7, 8, &[append(104)]) },
            Transaction { local: true, ..transaction(20, 21, &[read(1, &[]), read(2, &[])]) },
        ];
        assert_eq!(wrong(&history, &[&[101, 102, 103], &[201]]), "");
    }

    /// Why it is in no order, the transactions, and the list as it is in the end.
    type Row = (&'static str, Vec<Transaction>, &'static [&'static [u64]]);

    #[test]
    fn each_anomaly_is_found() {
        let base = transaction(1, 2, &[append(101), append(201)]);
        let local = |ops: &[Op]| Transaction { local: true, ..transaction(3, 4, ops) };
        let refused = Transaction { said: Said::NotCommitted, ..transaction(3, 4, &[append(102)]) };
        let rows: [Row; 10] = [
            ("it is not there", vec![base.clone()], &[&[201]]),
            ("there in part", vec![Transaction { said: Said::Unknown, ..base.clone() }], &[&[101]]),
            ("not committed, they said", vec![base.clone(), refused], &[&[101, 102], &[201]]),
            ("there twice", vec![base.clone()], &[&[101, 101], &[201]]),
            // A read of what is not there at the end.
            ("t1 read [101, 109]", vec![base.clone(), local(&[read(1, &[101, 109])])], &[&[101], &[201]]),
            (
                "half of",
                vec![transaction(1, 2, &[append(101), append(102)]), local(&[read(1, &[101])])],
                &[&[101, 102]],
            ),
            // Stale: it began when the other had ended.
            ("no order", vec![base.clone(), transaction(3, 4, &[read(1, &[])])], &[&[101], &[201]]),
            // Not one state: all of the one list, nothing of the other.
            ("no order", vec![base.clone(), local(&[read(1, &[101]), read(2, &[])])], &[&[101], &[201]]),
            // A lost update: both read the same and appended.
            (
                "no order",
                vec![transaction(1, 9, &[read(1, &[]), append(101)]), transaction(1, 9, &[read(1, &[]), append(102)])],
                &[&[101, 102]],
            ),
            // Write skew: each read what the other had not written yet.
            (
                "no order",
                vec![transaction(1, 9, &[read(1, &[]), append(201)]), transaction(1, 9, &[read(2, &[]), append(101)])],
                &[&[101], &[201]],
            ),
        ];
        for (expected, history, last) in rows {
            let found = wrong(&history, last);
            assert!(found.contains(expected), "{history:?}, {last:?}: {found:?}, not {expected:?}");
        }
    }

    /// Two that append in an order against that of time.
    #[test]
    fn time_counts_for_writers() {
        let history = [transaction(1, 2, &[append(102)]), transaction(3, 4, &[append(101)])];
        assert!(wrong(&history, &[&[101, 102]]).contains("no order"));
        assert_eq!(wrong(&history, &[&[102, 101]]), "");
    }
}
