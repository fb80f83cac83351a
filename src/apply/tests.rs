//! Entry by entry: what is applied, what is refused, what stops the node, what stops one database.

use parking_lot::Mutex;
use shoaldb_vfs::Registration;
use shoaldb_vfs::database::SessionId;
use shoaldb_vfs::env::sim::{SimClock, SimFs, SimRng};
use shoaldb_vfs::env::{Clock, Env};
use shoaldb_vfs::error::Refusal;
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::replicator::{Interrupted, Receipt, Replicator};
use shoaldb_vfs::transaction::ChangedPage;

use super::*;
use crate::catalogue::{AutoVacuum, Catalogue, DatabaseName};
use crate::config::Config;
use crate::databases::Databases;
use crate::entry::Payload;
use crate::events::Event;
use crate::log::{Anchor, Batch, Log, LogOptions};
use crate::pending::Writing;
use crate::receipt::{ReceiptOutcome, Unsettled};
use crate::shared::Shared;
use crate::signal::Waiting;
use crate::types::{ClusterId, EntryId, HardState, Incarnation, LogIndex, Membership, NodeId, Term};

const ELSEWHERE: Origin = Origin { node: NodeId(2), session: 9, number: 1 };

struct Bench {
    fs: SimFs,
    hub: Hub,
    applier: Applier,
    next: u64,
    log: Vec<LogEntry>,
}

impl Bench {
    fn new() -> Bench {
        Bench::on(SimFs::new(1))
    }

    fn on(fs: SimFs) -> Bench {
        let clock: Arc<dyn Clock> = Arc::new(SimClock::default());
        let env = Env { fs: Arc::new(fs.clone()), clock: clock.clone(), rng: Arc::new(SimRng::new(1)) };
        let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
        let (mailbox, _) = crossbeam_channel::unbounded();
        let waiting = Waiting { clock, pump: None };
        let hub: Hub =
            Arc::new(Shared::new(NodeId(1), Incarnation(1), 7, Config::default(), waiting, mailbox, databases));
        hub.begin(Catalogue::new(ClusterId(1)), crate::types::GENESIS);
        Bench { fs, applier: Applier::new(hub.clone()), hub, next: 2, log: Vec::new() }
    }

    /// From here on entries are in a log, too.
    fn log(&mut self) {
        let start = EntryId { index: LogIndex(self.next - 1), term: Term(1) };
        let anchor = Anchor { applied: start.index, membership: Membership::default(), registry: Vec::new().into() };
        let (fs, options) =
            (Arc::new(self.fs.clone()), LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() });
        let hard_state = HardState { term: Term(1), ..HardState::default() };
        let log = Log::create(fs, "/log".as_ref(), ClusterId(1), options, start, anchor, hard_state).unwrap();
        self.hub.set_log(&Arc::new(log));
    }

    fn apply_bytes(&mut self, data: Vec<u8>) -> Step {
        let id = EntryId { index: LogIndex(self.next), term: Term(1) };
        self.next += 1;
        let entry = LogEntry { id, class: EntryClass::Normal, data: data.into() };
        self.log.push(entry.clone());
        if let Some(log) = self.hub.log() {
            log.append(&Batch { entries: vec![entry.clone()], ..Batch::default() }).unwrap();
        }
        self.applier.push(vec![entry]);
        self.applier.step()
    }

    fn apply(&mut self, body: Body) -> Step {
        self.apply_bytes(entry::encode(&Payload { origin: ELSEWHERE, body }).unwrap())
    }

    fn create(&mut self, name: &str) -> (DatabaseId, Arc<Database>) {
        let id = DatabaseId(self.next);
        let name = DatabaseName::new(name).unwrap();
        let body = Body::CreateDatabase { name, page_size: PageSize::DEFAULT, auto_vacuum: AutoVacuum::None };
        assert!(matches!(self.apply(body), Step::Done));
        (id, self.hub.databases.get(id).unwrap())
    }

    /// Page 1 with another change counter; `wrong` spoils the checksum that it promises.
    fn change(&mut self, (id, db): &(DatabaseId, Arc<Database>), base: Position, wrong: u128) -> Step {
        let old = db.page(PageNo::FIRST).unwrap().unwrap();
        let mut page = old.to_vec();
        page[27] = page[27].wrapping_add(1);
        let hash = PageHash::of(PageNo::FIRST, &page);
        let checksum = db.checksum().1.toggle(PageHash::of(PageNo::FIRST, &old)).toggle(hash);
        let transaction = Transaction {
            base,
            page_size: PageSize::DEFAULT,
            size_after: PageCount(1),
            checksum_after: checksum.toggle(PageHash(wrong)),
            pages: vec![ChangedPage { number: PageNo::FIRST, image: page.into(), hash }],
        };
        self.apply(Body::Transaction { database: *id, transaction })
    }
}

/// Shows INV-9.
#[test]
fn a_transaction_is_applied_on_its_base_and_on_no_other() {
    let mut bench = Bench::new();
    let db = bench.create("app");
    let created = db.1.position();
    assert!(matches!(bench.change(&db, created, 0), Step::Done));
    let first = db.1.position();
    assert!(first > created);
    // The same base a second time: a duplicate, or a deposed leader's late entry. Refused, and the log goes on.
    assert!(matches!(bench.change(&db, created, 0), Step::Done));
    assert_eq!(db.1.position(), first);
    assert!(matches!(bench.change(&db, first, 0), Step::Done));
    assert!(db.1.position() > first);
    assert_eq!(bench.hub.applied().index, LogIndex(bench.next - 1));
}

/// Shows INV-10.
#[test]
fn a_copy_that_diverged_is_retired_and_the_others_go_on() {
    let mut bench = Bench::new();
    let (good, bad) = (bench.create("good"), bench.create("bad"));
    let events = bench.hub.events.listen();
    let position = bad.1.position();
    assert!(matches!(bench.change(&bad, position, 1), Step::Done));
    assert_eq!(bad.1.position(), position, "nothing of it is shown");
    assert_eq!(bad.1.retired(), Some(Refusal::Damaged));
    assert!(matches!(events.try_recv(), Ok(Event::DivergenceFound { database, .. }) if database == "bad"));
    let position = good.1.position();
    assert!(matches!(bench.change(&good, position, 0), Step::Done));
    assert!(good.1.position() > position);
}

/// Shows INV-16.
#[test]
fn what_this_version_does_not_know_stops_the_node_before_it() {
    // Version and kind of an entry are its first two bytes.
    for (at, value, word) in [(0, 2, "version"), (1, 7, "kind"), (1, 200, "kind")] {
        let mut bench = Bench::new();
        let db = bench.create("app");
        let mut bytes =
            entry::encode(&Payload { origin: ELSEWHERE, body: Body::DropDatabase { database: db.0 } }).unwrap();
        bytes[at] = value;
        let before = bench.hub.applied();
        let Step::Stopped(reason) = bench.apply_bytes(bytes) else { panic!("byte {at} = {value} was applied") };
        assert!(reason.contains(word) && reason.contains(&value.to_string()), "{reason}");
        assert_eq!(bench.hub.applied(), before);
        assert!(bench.hub.databases.get(db.0).is_some());
    }
}

#[test]
fn damage_stops_the_node_and_a_checkpoint_entry_does_nothing() {
    let mut bench = Bench::new();
    let db = bench.create("app");
    let checksum = db.1.checksum();
    assert!(matches!(bench.apply(Body::Checkpoint), Step::Done));
    assert!(matches!(bench.apply_bytes(Vec::new()), Step::Done), "a leader's first entry");
    assert_eq!(db.1.checksum(), checksum);
    assert!(matches!(bench.apply_bytes(vec![1, 3, 0]), Step::Stopped(_)));
}

#[test]
fn create_and_drop_are_decided_by_the_catalogue_alone() {
    let mut bench = Bench::new();
    let first = bench.create("app");
    let again = Body::CreateDatabase {
        name: DatabaseName::new("app").unwrap(),
        page_size: PageSize::new(512).unwrap(),
        auto_vacuum: AutoVacuum::None,
    };
    assert!(matches!(bench.apply(again), Step::Done));
    assert_eq!(bench.hub.databases.all().len(), 1, "the name is taken");
    assert!(matches!(bench.apply(Body::DropDatabase { database: first.0 }), Step::Done));
    assert!(matches!(bench.apply(Body::DropDatabase { database: first.0 }), Step::Done), "refused, not fatal");
    let position = first.1.position();
    assert!(matches!(bench.change(&first, position, 0), Step::Done), "a late transaction of a dropped database");
    assert_eq!(first.1.position(), position);
    let second = bench.create("app");
    assert_ne!(first.0, second.0, "created again is another database");
}

/// The parts of one transaction: page 1 changed and five more, two pages to a part, as node 2 proposes them.
fn parts(db: &(DatabaseId, Arc<Database>)) -> Vec<Vec<u8>> {
    parts_of(ELSEWHERE, db)
}

fn parts_of(origin: Origin, db: &(DatabaseId, Arc<Database>)) -> Vec<Vec<u8>> {
    let old = db.1.page(PageNo::FIRST).unwrap().unwrap();
    let mut first = old.to_vec();
    first[27] = first[27].wrapping_add(1);
    let mut checksum = db.1.checksum().1.toggle(PageHash::of(PageNo::FIRST, &old));
    let mut pages = Vec::new();
    for n in 1..=6 {
        let number = PageNo::new(n).unwrap();
        let image = if n == 1 { first.clone() } else { vec![n as u8; PageSize::DEFAULT.len()] };
        let hash = PageHash::of(number, &image);
        checksum = checksum.toggle(hash);
        pages.push(ChangedPage { number, image: image.into(), hash });
    }
    let transaction = Transaction {
        base: db.1.position(),
        page_size: PageSize::DEFAULT,
        size_after: PageCount(6),
        checksum_after: checksum,
        pages,
    };
    let page_size = PageSize::DEFAULT;
    let mut head = split::PartHead { database: db.0, split: 4, number: 0, chain: 0, page_size, last: false };
    let (mut parts, mut from) = (Vec::new(), 0);
    while from < transaction.pages.len() {
        let mut part = Vec::new();
        let next = split::encode_next(origin, &head, &transaction, from, page_size.len(), &mut part);
        head = split::PartHead { number: head.number + 1, chain: split::chain_after(&part), ..head };
        (from, parts) = (next, [parts, vec![part]].concat());
    }
    assert!(parts.len() >= 3);
    parts
}

#[test]
fn parts_take_effect_together_and_until_then_a_start_begins_before_them() {
    let mut bench = Bench::new();
    let (db, other) = (bench.create("app"), bench.create("other"));
    let before = (db.1.position(), bench.hub.applied().index);
    let parts = parts(&db);
    let (last, first) = parts.split_last().unwrap();
    for part in first {
        assert!(matches!(bench.apply_bytes(part.clone()), Step::Done));
        let position = other.1.position();
        assert!(matches!(bench.change(&other, position, 0), Step::Done));
        assert!(other.1.position() > position, "other databases go on in between");
        assert_eq!(db.1.position(), before.0, "nothing of it is shown");
        assert_eq!(bench.hub.progress().settled(), before.1);
    }
    assert!(bench.hub.databases.memory().used() > 0, "what came is kept where pages of a wal are");
    assert!(matches!(bench.apply_bytes(last.clone()), Step::Done));
    assert_eq!(db.1.position(), Position(bench.hub.applied().index.0));
    let page = db.1.page(PageNo::new(6).unwrap()).unwrap().unwrap();
    assert_eq!(page[..], [6; 4096]);
    assert_eq!(bench.hub.progress().settled(), bench.hub.applied().index);
}

/// Shows INV-23.
#[test]
fn what_ends_a_split_frees_what_came_and_its_last_part_has_no_effect() {
    for what in ["a transaction that is refused", "given up", "a newer term", "dropped"] {
        let mut bench = Bench::new();
        let db = bench.create("app");
        let position = db.1.position();
        let parts = parts(&db);
        let used = bench.hub.databases.memory().used();
        let (last, first) = parts.split_last().unwrap();
        for part in first {
            assert!(matches!(bench.apply_bytes(part.clone()), Step::Done));
        }
        assert!(bench.hub.databases.memory().used() > used);
        let ended = match what {
            "given up" => bench.apply(Body::GivenUp { database: db.0, split: 4 }),
            "dropped" => bench.apply(Body::DropDatabase { database: db.0 }),
            "a newer term" => {
                let id = EntryId { index: LogIndex(bench.next), term: Term(2) };
                bench.next += 1;
                bench.applier.push(vec![LogEntry { id, class: EntryClass::Normal, data: Vec::new().into() }]);
                bench.applier.step()
            }
            _ => bench.change(&db, Position(1), 0),
        };
        assert!(matches!(ended, Step::Done), "{what}");
        assert_eq!(bench.hub.databases.memory().used(), used, "{what}");
        assert_eq!(bench.hub.progress().settled(), bench.hub.applied().index, "{what}");
        assert!(matches!(bench.apply_bytes(last.clone()), Step::Done), "{what}");
        assert_eq!(db.1.position(), position, "{what}");
    }
}

/// Room on the disk must not wait for an entry that cannot be written without it.
///
/// Shows INV-23.
#[test]
fn parts_that_came_are_left_to_a_log_without_room_and_read_from_there_at_the_end() {
    for own in [false, true] {
        let mut bench = Bench::new();
        let (db, other) = (bench.create("app"), bench.create("other"));
        bench.log();
        let here = Origin { node: NodeId(1), session: 7, number: 4 };
        let parts = parts_of(if own { here } else { ELSEWHERE }, &db);
        let used = bench.hub.databases.memory().used();
        let (last, first) = parts.split_last().unwrap();
        let transaction = Arc::new(Transaction {
            base: db.1.position(),
            page_size: PageSize::DEFAULT,
            size_after: PageCount(1),
            checksum_after: db.1.checksum().1,
            pages: Vec::new(),
        });
        let (session, base, parted) = (shoaldb_vfs::database::SessionId(1), db.1.position(), Some(transaction));
        let writing = Writing { db: db.1.clone(), session, base, parted };
        // Own ones are of a connection that waits, and lets go of its transaction later; they name their split 4.
        let numbers: Vec<u64> = (0..4).map(|_| bench.hub.pending.register(own.then(|| writing.clone())).0).collect();
        for part in first {
            assert!(matches!(bench.apply_bytes(part.clone()), Step::Done));
            // Others leave their entries between them.
            let position = other.1.position();
            assert!(matches!(bench.change(&other, position, 0), Step::Done));
        }
        // The other database's transactions have a page each.
        let others = (first.len() * PageSize::DEFAULT.len()) as u64;
        let keeps = |bench: &Bench| bench.hub.databases.memory().used() > used + others;
        assert_eq!(keeps(&bench), !own, "own {own}");
        numbers.into_iter().for_each(|number| bench.hub.pending.abandon_unproposed(number));
        drop(writing);
        bench.hub.set_log_lacks_room(true);
        assert!(matches!(bench.applier.step(), Step::Idle));
        assert!(!keeps(&bench), "what came is not kept twice");
        bench.hub.set_log_lacks_room(false);
        assert!(bench.hub.progress().settled() < bench.hub.applied().index, "it is still open");
        assert!(matches!(bench.apply_bytes(last.clone()), Step::Done));
        assert_eq!(db.1.position(), Position(bench.hub.applied().index.0));
        assert_eq!(db.1.page(PageNo::new(6).unwrap()).unwrap().unwrap()[..], [6; 4096]);
        assert_eq!(bench.hub.progress().settled(), bench.hub.applied().index);
    }
}

/// A snapshot that is cut in the middle of other transactions begins at an anchor, which may be behind the first part of one that
/// the main file has whole. The node that gets it has seen no beginning of that one, and others know that it is committed.
///
/// Shows INV-29.
#[test]
fn a_start_behind_the_first_part_of_a_transaction_proves_nothing_of_its_end() {
    let mut bench = Bench::new();
    let db = bench.create("app");
    let begins = bench.next;
    for part in parts(&db) {
        assert!(matches!(bench.apply_bytes(part), Step::Done));
    }
    let at = |index: u64| EntryId { index: LogIndex(index), term: Term(1) };
    let ends = bench.next - 1;
    assert_eq!(bench.hub.outcome_of(at(ends)), ReceiptOutcome::Committed(ends));
    let catalogue = bench.hub.catalogue.lock().clone().unwrap();
    for start in begins - 1..ends {
        bench.hub.begin(catalogue.clone(), at(start));
        bench.hub.open_splits.store(1, Ordering::Relaxed);
        let mut applier = Applier::new(bench.hub.clone());
        assert_eq!(bench.hub.open_splits.load(Ordering::Relaxed), 0, "those of the one before are none of its");
        applier.push(bench.log.iter().filter(|entry| entry.id.index.0 > start).cloned().collect());
        for _ in start..ends {
            assert!(matches!(applier.step(), Step::Done));
        }
        let forgotten = ReceiptOutcome::Unknown(Unsettled::Forgotten);
        assert_eq!(bench.hub.outcome_of(at(ends)), forgotten, "a start at {start}, of {begins} to {ends}");
    }
}

/// Shows INV-29.
#[test]
fn what_became_of_every_entry_is_remembered_and_found_again_by_a_replay_over_newer_main_files() {
    let mut bench = Bench::new();
    let (db, gone) = (bench.create("app"), bench.create("gone"));
    let mut what = Vec::new();
    let mut change = |bench: &mut Bench, db: &(DatabaseId, Arc<Database>), base: Position, takes: bool| {
        let index = bench.next;
        assert!(matches!(bench.change(db, base, 0), Step::Done));
        what.push((index, takes));
    };
    let created = db.1.position();
    change(&mut bench, &db, created, true);
    change(&mut bench, &db, created, false);
    change(&mut bench, &gone, gone.1.position(), true);
    for lost in [false, true] {
        for (number, part) in parts(&db).into_iter().enumerate() {
            if !(lost && number == 0) {
                assert!(matches!(bench.apply_bytes(part), Step::Done));
            }
        }
        what.push((bench.next - 1, !lost));
    }
    assert!(matches!(bench.apply(Body::DropDatabase { database: gone.0 }), Step::Done));
    let late = bench.next;
    assert!(matches!(bench.change(&gone, gone.1.position(), 0), Step::Done));
    what.push((late, false));
    let outcome = |takes: bool, index: u64| match takes {
        true => ReceiptOutcome::Committed(index),
        false => ReceiptOutcome::NotCommitted,
    };
    let at = |index: u64| EntryId { index: LogIndex(index), term: Term(1) };
    for (index, takes) in &what {
        assert_eq!(bench.hub.outcome_of(at(*index)), outcome(*takes, *index), "entry {index}");
    }

    // The main file has all of it when the node starts again and applies from the beginning.
    assert!(matches!(
        db.1.checkpoint_and_restart(std::time::Duration::ZERO, None),
        Ok(shoaldb_vfs::database::Checkpoint::Done { .. })
    ));
    let Bench { fs, hub, log, .. } = bench;
    hub.databases.stop();
    drop(hub);
    let mut bench = Bench::on(fs);
    bench
        .hub
        .databases
        .restore(&Catalogue::new(ClusterId(1)), Default::default(), crate::types::GENESIS.index)
        .unwrap();
    bench.applier.push(log);
    for _ in 2..=late {
        assert!(matches!(bench.applier.step(), Step::Done));
    }
    assert_eq!(bench.hub.databases.get(db.0).unwrap().position(), db.1.position());
    for (index, takes) in what {
        assert_eq!(bench.hub.outcome_of(at(index)), outcome(takes, index), "entry {index}, applied again");
    }
    assert_eq!(bench.hub.progress().settled(), bench.hub.applied().index);
}

/// A commit that comes to the applier as its entry right away, to find the database retired once it is accepted.
struct RetiredMeanwhile {
    bench: Mutex<Bench>,
    id: DatabaseId,
}

impl Replicator for RetiredMeanwhile {
    fn open(&self, _: &str, _: bool) -> Result<Arc<Database>, Refusal> {
        self.bench.lock().hub.databases.get(self.id).ok_or(Refusal::CannotOpen)
    }

    fn acquire_write(&self, _: &Arc<Database>, _: bool, _: Interrupted<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn wait_writable(&self, _: &Arc<Database>, _: std::time::Duration) {}

    fn commit(
        &self,
        db: &Arc<Database>,
        session: SessionId,
        transaction: Transaction,
        _: &mut Option<Receipt>,
    ) -> Result<Position, Refusal> {
        let mut bench = self.bench.lock();
        let writing = Writing { db: db.clone(), session, base: transaction.base, parted: None };
        let (number, _) = bench.hub.pending.register(Some(writing));
        let origin = Origin { node: bench.hub.id, session: bench.hub.session, number };
        let data = entry::encode_transaction(origin, self.id, &transaction).unwrap();
        assert!(matches!(bench.apply_bytes(data), Step::Waiting(..)), "accepted");
        let position = Position(bench.next - 1);
        db.retire(Refusal::Damaged);
        assert!(!db.wait_shown(position, std::time::Duration::ZERO));
        // What is behind it must not find this connection in the middle of its commit.
        assert!(
            matches!(bench.applier.step(), Step::Waiting(..)),
            "the database is retired, and its commit is not over"
        );
        assert_eq!(bench.hub.applied().index, LogIndex(bench.next - 2));
        Ok(position)
    }

    fn read_barrier(&self, _: &Arc<Database>, _: Interrupted<'_>) -> Result<(), Refusal> {
        Ok(())
    }
}

#[test]
fn a_database_that_is_retired_while_a_commit_is_to_be_shown_holds_the_applier_until_it_is() {
    let mut bench = Bench::new();
    let (id, db) = bench.create("app");
    let other = bench.create("other");
    let clock = bench.hub.waiting.clock.clone();
    let replicator = Arc::new(RetiredMeanwhile { bench: Mutex::new(bench), id });
    let _registration = Registration::new("retired-meanwhile", replicator.clone(), clock).unwrap();
    let connection = rusqlite::Connection::open("file:app?vfs=retired-meanwhile").unwrap();
    connection.execute_batch("CREATE TABLE t(v)").unwrap();

    let mut bench = replicator.bench.lock();
    assert!(matches!(bench.applier.step(), Step::Done), "it is shown");
    assert_eq!(db.position(), Position(bench.hub.applied().index.0));
    let position = other.1.position();
    assert!(matches!(bench.change(&other, position, 0), Step::Done), "and others go on");
    drop(bench);
}
