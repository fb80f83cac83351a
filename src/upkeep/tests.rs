use std::path::Path;

use crossbeam_channel::Receiver;
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimClock, SimFs, SimRng};
use shoaldb_vfs::env::{Clock, Env, Fs};
use shoaldb_vfs::files::DatabaseFiles;
use shoaldb_vfs::genesis::Geometry;
use shoaldb_vfs::mapfile::Owner;
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::transaction::{ChangedPage, Position, Transaction};

use super::*;
use crate::catalogue::{AutoVacuum, Catalogue, DatabaseInfo, DatabaseName};
use crate::config::Config;
use crate::databases::Databases;
use crate::history::History;
use crate::log::LogOptions;
use crate::raft::{CoreStatus, PeerStatus};
use crate::registry::Left;
use crate::shared::{Leadership, Shared};
use crate::signal::Waiting;
use crate::snapshot::object::ViewId;
use crate::snapshot::views::{Cut, LEASE};
use crate::snapshot::{Done, Mended, object, source};
use crate::types::{ClusterId, EntryClass, EntryId, HardState, Incarnation, LogEntry, Membership, Term};

const APP: DatabaseId = DatabaseId(2);

/// A follower of three with one database.
pub(crate) fn upkeep(fs: &SimFs) -> (Upkeep, Arc<Database>) {
    upkeep_at(fs, &Arc::default(), Aftermath::default())
}

/// The same, and its clock.
pub(crate) fn upkeep_on(fs: &SimFs) -> (Upkeep, Arc<SimClock>) {
    let clock = Arc::default();
    (upkeep_at(fs, &clock, Aftermath::default()).0, clock)
}

/// The same with this clock, behind a snapshot that left this to be done.
fn upkeep_at(fs: &SimFs, clock: &Arc<SimClock>, aftermath: Aftermath) -> (Upkeep, Arc<Database>) {
    let (upkeep, db, _) = upkeep_with(fs, clock, aftermath, Config::default());
    (upkeep, db)
}

/// The same with these settings, and what it says to the engine.
fn upkeep_with(
    fs: &SimFs,
    clock: &Arc<SimClock>,
    aftermath: Aftermath,
    config: Config,
) -> (Upkeep, Arc<Database>, Receiver<Input>) {
    let clock: Arc<dyn Clock> = clock.clone();
    let env = Env { fs: Arc::new(fs.clone()), clock: clock.clone(), rng: Arc::new(SimRng::new(1)) };
    let databases = Databases::open(env, "/db".into(), u64::MAX).unwrap();
    let name = DatabaseName::new("app").unwrap();
    let info = DatabaseInfo { name, page_size: PageSize::DEFAULT, auto_vacuum: AutoVacuum::None };
    databases.bind(APP, &info).unwrap();
    let (mailbox, inputs) = crossbeam_channel::unbounded();
    let waiting = Waiting { clock, pump: None };
    let hub: Hub = Arc::new(Shared::new(NodeId(1), Incarnation(1), 7, config, waiting, mailbox, databases));
    let at = EntryId { index: LogIndex(2), term: Term(1) };
    hub.begin(Catalogue::new(ClusterId(1)), at);
    let membership = Membership { voters: vec![NodeId(1), NodeId(2), NodeId(3)], ..Membership::default() };
    *hub.core_status.lock() = Some(CoreStatus::of_follower(at, NodeId(3), membership.clone()));
    let registry = registry::encode(&Catalogue::new(ClusterId(1)), &BTreeMap::new(), aftermath);
    hub.snapshots.set_finishing(aftermath.finishing, hub.waiting.clock.now());
    let anchor = Anchor { applied: at.index, membership, registry: hub.registry(&registry) };
    let hard_state = HardState { term: at.term, vote: None, commit: at.index };
    let options = LogOptions { segment_bytes: 8192, spares: 1 };
    let log = Log::create(Arc::new(fs.clone()), Path::new("/log"), ClusterId(1), options, at, anchor, hard_state);
    let db = hub.databases.get(APP).unwrap();
    (Upkeep::new(hub, Arc::new(log.unwrap()), at.index), db, inputs)
}

/// A disk that cannot be read now has not changed what is written: the copy stays, people hear of it, and it is read again.
#[test]
fn hashes_that_cannot_be_read_are_no_damage() {
    let fs = SimFs::new(1);
    let (mut upkeep, db) = upkeep(&fs);
    fs.fail_at(Aim::At("map.read"), 1, Lasts::Once, Failure::EIO);
    upkeep.look_at_damage(APP, &db);
    assert_eq!((db.retired(), upkeep.hub.databases.damage(APP)), (None, None));
    let alarms = upkeep.hub.findings.lock().alarms.clone();
    assert!(alarms.values().any(|alarm| alarm.contains("page hashes could not be read")), "{alarms:?}");
    upkeep.look_at_damage(APP, &db);
    assert_eq!(upkeep.hub.findings.lock().alarms, Default::default());
    assert!(upkeep.per_database[&APP].books_fit);
}

const LIMIT: u64 = 16 << 10;
const LENT: u64 = 5;

/// A node with so many bytes of log, all of which may be dropped; and what it says to the engine.
fn with_log_of(bytes: u64, clock: &Arc<SimClock>) -> (Upkeep, EntryId, Receiver<Input>) {
    let config = Config { log_limit: LIMIT, segment_bytes: 8 << 10, ..Config::default() };
    let (mut upkeep, _, inputs) = upkeep_with(&SimFs::new(1), clock, Aftermath::default(), config);
    let mut last = EntryId { index: LogIndex(2), term: Term(1) };
    while upkeep.log.bytes() < bytes {
        last.index = last.index.next();
        let entry = LogEntry { id: last, class: EntryClass::Normal, data: vec![7; 3000].into() };
        upkeep.log.append(&Batch { entries: vec![entry], ..Batch::default() }).unwrap();
    }
    let anchor = Anchor { applied: last.index, ..upkeep.log.anchor() };
    upkeep.log.append(&Batch { anchor: Some(anchor), ..Batch::default() }).unwrap();
    (upkeep.anchored, upkeep.cluster_floor) = (last.index, last.index);
    if let Some(core) = upkeep.hub.core_status.lock().as_mut() {
        core.applied = last.index;
    }
    (upkeep, last, inputs)
}

/// A leader that was about to hand over refused the only entry that says so, and led on: all nodes kept the parts and the log
/// behind them, and a node that joined got no snapshot.
#[test]
fn a_split_that_was_given_up_is_told_of_until_that_is_applied() {
    let (clock, fs) = (Arc::<SimClock>::default(), SimFs::new(1));
    let (upkeep, _, inputs) = upkeep_with(&fs, &clock, Aftermath::default(), Config::default());
    let hub = upkeep.hub.clone();
    let leads = |role| hub.set_leadership(Leadership { role, ..hub.leadership() });
    let told = |passes: u64| {
        clock.advance(Duration::from_millis(passes));
        hub.tell_of_splits_again();
        inputs.try_iter().filter(|input| matches!(input, Input::Propose { .. })).count()
    };
    leads(Role::Leader);
    hub.give_split_up(5, APP);
    assert_eq!([told(0), told(999), told(1), told(0), told(1000)], [1, 0, 1, 0, 1]);
    hub.unended.ended(5);
    assert_eq!(told(5000), 0, "all nodes have heard of it");
    hub.give_split_up(6, APP);
    leads(Role::Follower);
    assert_eq!(told(5000), 1, "the word of the beginning");
    leads(Role::Leader);
    assert_eq!(told(5000), 0, "an entry of a later term has ended it");
}

/// Lends node 3 a view of entry `LENT`.
fn lend(upkeep: &Upkeep) -> ViewId {
    let at = EntryId { index: LogIndex(LENT), term: Term(1) };
    let cut = Cut {
        at,
        reach: at.index,
        members: vec![NodeId(3)],
        manifest: Vec::new(),
        databases: BTreeMap::new(),
        only: None,
    };
    upkeep.hub.snapshots.views.lend(7, cut, NodeId(3), Duration::ZERO)
}

/// The entry behind which the log is to begin; 0 if it stays as it is.
fn compacted(upkeep: &mut Upkeep, inputs: &Receiver<Input>) -> u64 {
    upkeep.compact(true);
    let starts = inputs.try_iter().filter_map(|input| match input {
        Input::Compact { start } => Some(start.index.0),
        _ => None,
    });
    starts.max().unwrap_or(0)
}

/// Who fetches from a view that is lent goes on by the log, which has what is behind it; but not for ever.
/// Shows INV-25.
#[test]
fn the_log_is_kept_for_who_fetches_up_to_some_size() {
    let start_of = |lent: bool, bytes: u64| {
        let (mut upkeep, _, inputs) = with_log_of(bytes, &Arc::default());
        if lent {
            lend(&upkeep);
        }
        let began = compacted(&mut upkeep, &inputs);
        let (views, start) = (&upkeep.hub.snapshots.views, LogIndex(LENT));
        // What is of no more use is not lent any more: whoever fetches it asks for another one now, and not at the end.
        assert_eq!(views.floor(), Some(start).filter(|start| lent && began <= start.0));
        assert_eq!(views.capped(), u64::from(lent && began > LENT));
        began
    };
    assert!(start_of(false, 3 * LIMIT) > LENT);
    assert!(start_of(true, 3 * LIMIT) <= LENT, "it could not go on behind what it fetches");
    assert!(start_of(true, LENT_FACTOR * LIMIT + 1) > LENT, "one that is slow would fill the disk");
}

/// A member that is there and does not keep up gets a snapshot in the end. It kept the leader's log for ever, at 25 times its
/// limit where it was stopped and let go on in turn, and the logs of the others, since they ask the leader.
/// Shows INV-25.
#[test]
fn a_member_that_is_slow_holds_the_log_up_to_some_size_and_then_what_this_node_needs_does() {
    const SLOW: u64 = 3;
    for (bytes, leads, needed, held) in [
        (3 * LIMIT, true, None, true),
        (3 * LIMIT, false, None, true),
        (LENT_FACTOR * LIMIT + 1, true, None, false),
        (LENT_FACTOR * LIMIT + 1, false, None, false),
        (LENT_FACTOR * LIMIT + 1, true, Some(SLOW), true),
        (LENT_FACTOR * LIMIT + 1, false, Some(SLOW), true),
    ] {
        let (mut upkeep, last, inputs) = with_log_of(bytes, &Arc::default());
        upkeep.cluster_floor = LogIndex(SLOW);
        if leads && let Some(core) = upkeep.hub.core_status.lock().as_mut() {
            (core.role.role, core.persisted) = (Role::Leader, last.index);
            let of = |id, acknowledged| PeerStatus {
                id: NodeId(id),
                acknowledged: LogIndex(acknowledged),
                next: last.index,
                streams: true,
                in_flight: (0, 0),
                active: true,
            };
            core.peers = vec![of(2, last.index.0), of(3, SLOW)];
        }
        if let Some(needed) = needed {
            upkeep.anchored = LogIndex(needed);
        }
        upkeep.learn_members();
        let began = compacted(&mut upkeep, &inputs);
        assert_eq!(began <= SLOW, held, "{bytes} bytes, leads: {leads}, {needed:?}: it begins behind entry {began}");
        let alarms = upkeep.hub.findings.lock().alarms.clone();
        let blamed =
            alarms.values().any(|alarm| alarm.contains(if leads { "node 3 has not" } else { "a member has not" }));
        assert_eq!(blamed, held && needed.is_none(), "{alarms:?}");
    }
}

/// They took as much room as the database, until the next start.
#[test]
fn a_copy_that_is_not_needed_any_more_leaves_no_files() {
    let fs = SimFs::new(1);
    let (mut upkeep, db) = upkeep(&fs);
    let (dir, names) = (Path::new("/db"), || fs.list(Path::new("/db"), "test").unwrap());
    let before = names();
    let owner = Owner { database: APP.0, generation: 2, page_size: PageSize::DEFAULT };
    let files = DatabaseFiles::create(Arc::new(fs.clone()), dir, owner, Geometry::default(), Position(2)).unwrap();
    let at = EntryId { index: LogIndex(2), term: Term(1) };
    let mended = Mended { source: NodeId(3), view: ViewId(1), at, database: APP, files, received: 0, tried: false };
    upkeep.hub.snapshots.set_mended(Box::new(mended));
    assert!(names().len() > before.len());
    upkeep.mend();
    assert_eq!((names(), upkeep.hub.snapshots.has_mended(), db.retired()), (before, false, None));
}

/// A node that has just started knows of no member; once it told people to bring one back that was there.
#[test]
fn nobody_is_blamed_for_a_long_log_before_the_leader_has_spoken() {
    let (mut upkeep, _, inputs) = with_log_of(3 * LIMIT, &Arc::default());
    for (floor, words) in [(0, "the leader has not said yet"), (3, "a member has not got further than entry 3;")] {
        upkeep.cluster_floor = LogIndex(floor);
        assert_eq!(compacted(&mut upkeep, &inputs), 0);
        let alarms = upkeep.hub.findings.lock().alarms.clone();
        assert!(alarms.values().any(|alarm| alarm.contains(words)), "{alarms:?}");
    }
}

/// It would keep the databases from being checkpointed, and the log with them.
#[test]
fn a_view_that_nobody_uses_is_closed_when_the_log_is_beyond_its_limit() {
    for (bytes, open) in [(LIMIT / 2, 1), (2 * LIMIT, 0)] {
        let (upkeep, ..) = with_log_of(bytes, &Arc::default());
        let view = lend(&upkeep);
        upkeep.close_views();
        assert_eq!(upkeep.hub.snapshots.views.counts(), (1, 1), "{bytes}");
        upkeep.hub.snapshots.views.give_back(view, NodeId(3), object::Outcome::NotNeeded, Duration::ZERO);
        upkeep.close_views();
        assert_eq!(upkeep.hub.snapshots.views.counts().0, open, "{bytes}");
    }
}

/// Between the last word of who fetched and its first answer to Raft there is neither a lease nor an acknowledged entry. A
/// compaction there made what was installed useless, and the whole began anew.
/// Shows INV-25.
#[test]
fn the_log_is_kept_for_who_has_installed_until_it_has_said_so_to_raft() {
    const PEER: NodeId = NodeId(3);
    /// What comes after the last word.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Then {
        Nothing,
        Time(Duration),
        Acknowledges(u64),
        AcknowledgesAll,
        GivesUp,
    }
    let moment = Duration::from_millis(1);
    for (bytes, then, kept) in [
        (3 * LIMIT, Then::Nothing, true),
        (3 * LIMIT, Then::Time(LEASE - moment), true),
        (3 * LIMIT, Then::Time(LEASE), false),
        (3 * LIMIT, Then::Acknowledges(LENT - 1), true),
        // It lacks all that comes behind it, and holds that as any member does.
        (3 * LIMIT, Then::Acknowledges(LENT), true),
        (3 * LIMIT, Then::AcknowledgesAll, false),
        (3 * LIMIT, Then::GivesUp, false),
        (LENT_FACTOR * LIMIT + 1, Then::Nothing, false),
    ] {
        let clock = Arc::new(SimClock::default());
        let (mut upkeep, last, inputs) = with_log_of(bytes, &clock);
        let view = lend(&upkeep);
        let outcome = if then == Then::GivesUp { object::Outcome::GivenUp } else { object::Outcome::Installed };
        let done = object::Ask::Done { view, outcome, index: LogIndex(LENT) };
        source::serve(&upkeep.hub, Some(PEER), &done.encode());
        assert_eq!(upkeep.hub.snapshots.views.counts().1, 0, "there is no lease any more");
        match then {
            Then::Time(time) => clock.advance(time),
            Then::Acknowledges(_) | Then::AcknowledgesAll => {
                let index = if let Then::Acknowledges(index) = then { index } else { last.index.0 };
                let mut core = upkeep.hub.core_status.lock();
                let core = core.as_mut().unwrap();
                (core.role.role, core.persisted) = (Role::Leader, last.index);
                let (id, acknowledged) = (PEER, LogIndex(index));
                core.peers = vec![PeerStatus {
                    id,
                    acknowledged,
                    next: last.index,
                    streams: false,
                    in_flight: (0, 0),
                    active: true,
                }];
            }
            Then::Nothing | Then::GivesUp => {}
        }
        upkeep.close_views();
        upkeep.learn_members();
        // What was learned before the view was lent is no floor for who fetches it.
        let began = compacted(&mut upkeep, &inputs);
        assert_eq!(began <= LENT, kept, "{bytes} bytes, {then:?}: it begins behind entry {began}");
    }
}

/// This node leads two others that have so much; of the third one it may be that nothing was heard for a while.
fn leads(upkeep: &Upkeep, last: LogIndex, [second, third]: [u64; 2], third_is_active: bool) {
    let mut core = upkeep.hub.core_status.lock();
    let core = core.as_mut().unwrap();
    (core.role.role, core.persisted) = (Role::Leader, last);
    let has = |id, acknowledged, active| PeerStatus {
        id: NodeId(id),
        acknowledged: LogIndex(acknowledged),
        next: last,
        streams: true,
        in_flight: (0, 0),
        active,
    };
    core.peers = vec![has(2, second, true), has(3, third, third_is_active)];
}

/// What every member has was remembered from when it was away: the log that it catches up from went as if it still were.
/// Shows INV-25.
#[test]
fn a_member_that_is_back_holds_the_log_again() {
    let clock: Arc<SimClock> = Arc::default();
    let (mut upkeep, last, inputs) = with_log_of(3 * LIMIT, &clock);
    let away = AWAY_AFTER * upkeep.hub.config.election_timeout;
    for (is_active, passes) in [(true, Duration::ZERO), (false, away), (true, Duration::ZERO)] {
        leads(&upkeep, last.index, [last.index.0, 3], is_active);
        clock.advance(passes);
        upkeep.learn_members();
    }
    assert_eq!(compacted(&mut upkeep, &inputs), 0, "it is back, and has three entries");
    leads(&upkeep, last.index, [last.index.0; 2], true);
    upkeep.learn_members();
    assert!(compacted(&mut upkeep, &inputs) > 3);
}

/// Nobody has acknowledged anything to a leader that was just elected, and it dropped what they did not have.
/// Shows INV-25.
#[test]
fn a_new_leader_keeps_the_log_until_it_knows_what_the_others_have() {
    // Where the others may be sent entries, and what they have of them: one has answered, and lacks the beginning of the log.
    for (next_of_third, is_held) in [(LogIndex(9), true), (LogIndex(8), false)] {
        let (mut upkeep, last, inputs) = with_log_of(7 * LIMIT / 2, &Arc::default());
        upkeep.hub.set_compacted(LogIndex(8));
        upkeep.hub.take_compacted();
        leads(&upkeep, last.index, [last.index.0, 0], true);
        if let Some(core) = upkeep.hub.core_status.lock().as_mut() {
            core.peers[1].next = next_of_third;
        }
        upkeep.learn_members();
        assert_eq!(compacted(&mut upkeep, &inputs) == 0, is_held, "{next_of_third}");
        let alarms = upkeep.hub.findings.lock().alarms.clone();
        let told = alarms.values().any(|alarm| alarm.contains("node 3 has not said yet what it has"));
        assert_eq!(told, is_held, "{alarms:?}");
    }
}

/// An anchor is of what is applied, and the core hears of that later than whoever applies: asked to begin behind what it
/// knows to be applied, it stops its node (found by the simulation).
#[test]
fn the_log_does_not_begin_behind_what_the_core_knows_to_be_applied() {
    for known in [4, 5, 6] {
        let (mut upkeep, last, inputs) = with_log_of(3 * LIMIT, &Arc::default());
        assert!(last.index > LogIndex(known));
        if let Some(core) = upkeep.hub.core_status.lock().as_mut() {
            core.applied = LogIndex(known);
        }
        let began = compacted(&mut upkeep, &inputs);
        assert!(began > 2 && began <= known, "{began}, {known}");
    }
}

/// What others need became more after the core had let go of it, and files of that were still there: the core was asked to begin
/// where it did not any more, and stopped.
#[test]
fn the_log_does_not_begin_earlier_again_although_its_files_are_still_there() {
    let clock: Arc<SimClock> = Arc::default();
    let (mut upkeep, last, inputs) = with_log_of(3 * LIMIT, &clock);
    upkeep.hub.set_compacted(LogIndex(8));
    assert_eq!(upkeep.hub.take_compacted(), Some(LogIndex(8)), "and no file could be removed");
    leads(&upkeep, last.index, [last.index.0, 8], true);
    upkeep.cluster_floor = LogIndex(4);
    assert_eq!(compacted(&mut upkeep, &inputs), 0);
    assert!(upkeep.log.start().index > LogIndex(4), "they are removed now");
}

/// A tail that was cut right behind a snapshot, or writes that found no room there, left segments without an entry: they stayed until some
/// entry behind them could go, and an alarm waited for an anchor that was there (found by the simulation).
#[test]
fn segments_without_an_entry_go_although_the_log_begins_where_it_did() {
    let (mut upkeep, last, inputs) = with_log_of(3 * LIMIT, &Arc::default());
    let entry = |index, term| {
        let id = EntryId { index: LogIndex(index), term: Term(term) };
        LogEntry { id, class: EntryClass::Normal, data: vec![7; 3000].into() }
    };
    let events = upkeep.hub.events.listen();
    upkeep.log.reset(last, upkeep.log.anchor(), upkeep.log.hard_state()).unwrap();
    upkeep.hub.set_compacted(last.index);
    for index in last.index.0 + 1..last.index.0 + 20 {
        upkeep.log.append(&Batch { entries: vec![entry(index, 1)], ..Batch::default() }).unwrap();
    }
    upkeep.log.append(&Batch { entries: vec![entry(last.index.0 + 1, 2)], ..Batch::default() }).unwrap();
    let before = upkeep.log.bytes();
    assert!(before > 2 * LIMIT && upkeep.log.start() == last, "{before}");
    for _ in 0..2 {
        assert_eq!(compacted(&mut upkeep, &inputs), 0);
    }
    assert!(upkeep.log.bytes() <= 8 << 10, "{} bytes", upkeep.log.bytes());
    assert_eq!((upkeep.log.start(), upkeep.log.last().index), (last, last.index.next()));
    assert_eq!(upkeep.hub.findings.lock().alarms, Default::default());
    assert!(events.try_iter().all(|event| !matches!(event, Event::LogCompacted { .. })), "no entry went");
}

/// Of a snapshot that another node lent the leader knows by what is said to its offer: up to then who needs it holds nothing.
/// Shows INV-25.
#[test]
fn the_log_is_kept_for_who_has_installed_what_another_node_lent() {
    let clock: Arc<SimClock> = Arc::default();
    let (mut upkeep, last, inputs) = with_log_of(3 * LIMIT, &clock);
    upkeep.hub.pin(NodeId(3), LogIndex(LENT));
    // Then it is installed, and what comes behind it is on its way.
    for acknowledged in [0, LENT] {
        leads(&upkeep, last.index, [last.index.0, acknowledged], true);
        upkeep.learn_members();
        let began = compacted(&mut upkeep, &inputs);
        assert!(began <= LENT, "{acknowledged} acknowledged: it begins behind {began}");
    }
}

/// A view of one database that is lent for a repair, and one that an application has forgotten while a small snapshot is lent,
/// which needs no files: neither holds the log while others write.
/// Shows INV-25.
#[test]
fn a_view_of_one_database_does_not_hold_the_log_whatever_is_lent() {
    for (lent, gate_of_all) in [("nothing", false), ("a copy of all", false), ("this one", false), ("all", true)] {
        let (mut upkeep, last, _inputs) = with_log_of(20 * LIMIT, &Arc::default());
        let db = upkeep.hub.databases.get(APP).unwrap();
        let view = db.read_view().unwrap();
        let only =
            (lent == "this one").then(|| object::Listed { id: APP, page_size: PageSize::DEFAULT, at: view.at() });
        let databases = match lent {
            "nothing" => BTreeMap::new(),
            "a copy of all" => BTreeMap::from([(APP, view.copied().unwrap())]),
            _ => BTreeMap::from([(APP, view.clone())]),
        };
        if lent != "nothing" {
            let (at, members) = (last, vec![NodeId(3)]);
            let cut = Cut { at, reach: last.index, members, manifest: Vec::new(), databases, only };
            upkeep.hub.snapshots.views.lend(7, cut, NodeId(3), Duration::ZERO);
        }
        change(&db, 3);
        for _ in 0..3 {
            upkeep.step();
        }
        assert_eq!(view.is_open(), gate_of_all, "{lent} is lent");
    }
}

/// The checkpoint that failed was made by somebody else, or its files are gone: nobody took the alarm back.
#[test]
fn an_alarm_about_a_checkpoint_goes_whoever_made_it_or_took_its_files_away() {
    #[derive(Clone, Copy, Debug)]
    enum How {
        Install,
        InstallWithoutIt,
        Verify,
    }
    for how in [How::Install, How::InstallWithoutIt, How::Verify] {
        let (fs, clock) = (SimFs::new(1), Arc::new(SimClock::default()));
        let config = Config { checkpoint_bytes: 1, ..Config::default() };
        let (mut upkeep, db, _inputs) = upkeep_with(&fs, &clock, Aftermath::default(), config);
        let alarms = |upkeep: &Upkeep| upkeep.hub.findings.lock().alarms.values().cloned().collect::<Vec<_>>();
        change(&db, 3);
        fs.fail_at(Aim::At("dw.write"), 1, Lasts::ForGood, Failure::ENOSPC);
        upkeep.step();
        let told = alarms(&upkeep);
        assert!(told.len() == 1 && told[0].contains("make room"), "{told:?}");
        fs.clear_faults();
        match how {
            How::Install => upkeep.begin_anew(),
            How::InstallWithoutIt => {
                upkeep.hub.databases.drop(APP, LogIndex(4));
                upkeep.begin_anew();
            }
            How::Verify => {
                // It is tried again while somebody is in the way, and not after that.
                let view = db.read_view().unwrap();
                clock.advance(RETRY);
                upkeep.step();
                assert_eq!(alarms(&upkeep).len(), 1, "it is not made yet");
                view.close();
                db.checkpoint().unwrap();
                upkeep.step();
            }
        }
        assert_eq!(alarms(&upkeep), [""; 0], "{how:?}");
    }
}

/// What the log would make a start tell.
fn still_to_tell(upkeep: &Upkeep) -> Option<Finishing> {
    let anchor = upkeep.log.anchor();
    let (_, registry) = History::split(&anchor.registry).unwrap();
    registry::decode(registry).unwrap().aftermath.finishing
}

fn ends(events: &Receiver<Event>) -> Vec<(NodeId, LogIndex)> {
    let end = |event| match event {
        Event::SnapshotFinished { peer, index, receiving: true } => Some((peer, index)),
        _ => None,
    };
    events.try_iter().filter_map(end).collect()
}

/// Shows INV-42. What a start would begin with says it until it was told, and not afterwards.
#[test]
fn the_end_of_a_snapshot_is_told_once_also_over_a_restart() {
    let finishing = Finishing { source: NodeId(3), index: LogIndex(2), left: Left::END };
    for idle in [false, true] {
        let (fs, clock) = (SimFs::new(2), Arc::new(SimClock::default()));
        let (mut upkeep, _) = upkeep_at(&fs, &clock, Aftermath { reach: LogIndex(0), finishing: Some(finishing) });
        let events = upkeep.hub.events.listen();
        upkeep.finish_snapshot();
        assert_eq!((ends(&events), still_to_tell(&upkeep)), (vec![], Some(finishing)));
        if idle {
            clock.advance(Duration::from_secs(10));
        } else {
            let id = EntryId { index: LogIndex(3), term: Term(1) };
            let entry = LogEntry { id, class: EntryClass::Normal, data: Vec::new().into() };
            upkeep.log.append(&Batch { entries: vec![entry], ..Batch::default() }).unwrap();
        }
        // Without room it waits.
        for label in ["log.write", "log.create"] {
            fs.fail_at(Aim::At(label), 1, Lasts::ForGood, Failure::ENOSPC);
        }
        upkeep.finish_snapshot();
        assert_eq!(ends(&events), []);
        fs.clear_faults();
        for _ in 0..2 {
            upkeep.finish_snapshot();
            assert_eq!(still_to_tell(&upkeep), None);
        }
        assert_eq!(ends(&events), [(finishing.source, finishing.index)]);
    }
}

/// Shows INV-42. An install is told at once, when there is somebody to tell; its end later; and neither of them again when the
/// source says that it has heard of it.
#[test]
fn each_thing_that_is_left_of_a_snapshot_is_told_by_itself() {
    let left = Left { install: Some(77), end: true, source: Some(9) };
    let finishing = Finishing { source: NodeId(3), index: LogIndex(2), left };
    for nobody_listens in [false, true] {
        let (fs, clock) = (SimFs::new(2), Arc::new(SimClock::default()));
        let aftermath = Aftermath { reach: LogIndex(0), finishing: Some(finishing) };
        let (mut upkeep, _) = upkeep_at(&fs, &clock, aftermath);
        upkeep.finish_snapshot();
        assert_eq!(still_to_tell(&upkeep), Some(finishing), "nobody listens");
        if nobody_listens {
            clock.advance(Duration::from_secs(10));
            upkeep.finish_snapshot();
            assert_eq!(still_to_tell(&upkeep), finishing.with(Left { source: Some(9), ..Left::default() }));
            continue;
        }
        let events = upkeep.hub.events.listen();
        fs.fail_at(Aim::At("log.write"), 1, Lasts::ForGood, Failure::ENOSPC);
        fs.fail_at(Aim::At("log.create"), 1, Lasts::ForGood, Failure::ENOSPC);
        upkeep.finish_snapshot();
        assert_eq!(events.try_iter().count(), 0, "there is no room to note it");
        fs.clear_faults();
        for _ in 0..2 {
            upkeep.finish_snapshot();
        }
        let told: Vec<Event> = events.try_iter().collect();
        assert_eq!(told, [Event::SnapshotInstalled { index: LogIndex(2), bytes: 77 }]);
        assert_eq!(still_to_tell(&upkeep), finishing.with(Left { install: None, ..left }));
        // What a later anchor says, whoever writes it.
        let other =
            Done { source: NodeId(3), view: ViewId(8), index: LogIndex(1), outcome: object::Outcome::Installed };
        upkeep.hub.snapshots.on_reported(other);
        assert_eq!(upkeep.hub.snapshots.finishing(), finishing.with(Left { install: None, ..left }), "another view");
        upkeep.hub.snapshots.on_reported(Done { view: ViewId(9), ..other });
        clock.advance(Duration::from_secs(10));
        upkeep.finish_snapshot();
        let told: Vec<Event> = events.try_iter().collect();
        let (peer, index) = (NodeId(3), LogIndex(2));
        assert_eq!(told, [Event::SnapshotFinished { peer, index, receiving: true }]);
        assert_eq!((still_to_tell(&upkeep), upkeep.hub.snapshots.finishing()), (None, None));
    }
}

/// A log whose old files cannot be taken away grows until the next start. It was an alarm and nothing else: who listens for
/// `DiskTrouble` did not hear of it, and nobody was told what to do.
#[test]
fn a_log_whose_files_do_not_go_is_told_with_what_helps_and_every_promise_holds() {
    let fs = SimFs::new(3);
    let (upkeep, _) = upkeep(&fs);
    let events = upkeep.hub.events.listen();
    let entry = |index| {
        let id = EntryId { index: LogIndex(index), term: Term(1) };
        LogEntry { id, class: EntryClass::Normal, data: vec![7; 3000].into() }
    };
    for index in 3..20 {
        upkeep.log.append(&Batch { entries: vec![entry(index)], ..Batch::default() }).unwrap();
    }
    let anchor = Anchor { applied: LogIndex(19), ..upkeep.log.anchor() };
    upkeep.log.append(&Batch { anchor: Some(anchor), ..Batch::default() }).unwrap();
    upkeep.log.seal_for(LogIndex(19)).unwrap();
    let start = upkeep.log.compaction_start(LogIndex(19), 0);
    assert!(start.index > LogIndex(5), "{start:?}");
    for label in ["log.remove", "log.retire"] {
        fs.fail_at(Aim::At(label), 1, Lasts::Once, Failure::EIO);
    }
    for _ in 0..3 {
        upkeep.drop_segments(start.index);
    }
    let told: Vec<_> = events.try_iter().filter(|event| matches!(event, Event::DiskTrouble { .. })).collect();
    assert_eq!(told.len(), 1, "once: {told:?}");
    let alarms = upkeep.hub.findings.lock().alarms.clone();
    let alarm = &alarms["compaction"];
    assert!(alarm.contains("until the next start") && alarm.contains("check the disk"), "{alarm}");
    // Nothing else ends: the log takes what comes, and a start has all of it.
    upkeep.log.append(&Batch { entries: vec![entry(20)], ..Batch::default() }).unwrap();
    assert_eq!(upkeep.log.last().index, LogIndex(20));
}

/// Page 1 once more, with another change counter.
fn change(db: &Database, position: u64) {
    let old = db.page(PageNo::FIRST).unwrap().unwrap();
    let mut page = old.to_vec();
    page[27] = page[27].wrapping_add(1);
    let hash = PageHash::of(PageNo::FIRST, &page);
    let transaction = Transaction {
        base: db.position(),
        page_size: PageSize::DEFAULT,
        size_after: PageCount(1),
        checksum_after: db.checksum().1.toggle(PageHash::of(PageNo::FIRST, &old)).toggle(hash),
        pages: vec![ChangedPage { number: PageNo::FIRST, image: page.into(), hash }],
    };
    db.apply(&transaction, Position(position)).unwrap();
}

/// Where nothing is checkpointed for its age.
fn never_old(config: Config) -> (Upkeep, Arc<Database>) {
    let config = Config { checkpoint_age: Duration::from_secs(3600), ..config };
    let (upkeep, db, _) = upkeep_with(&SimFs::new(1), &Arc::default(), Aftermath::default(), config);
    (upkeep, db)
}

#[test]
fn a_wal_that_is_large_is_checkpointed_however_young_it_is() {
    let page = u64::from(PageSize::DEFAULT.bytes());
    let (mut upkeep, db) = never_old(Config { checkpoint_bytes: 2 * page, ..Config::default() });
    let before = db.status().checkpointed;
    change(&db, 3);
    upkeep.step();
    assert_eq!(db.status().checkpointed, before, "small and young");
    change(&db, 4);
    upkeep.step();
    assert_eq!(db.status().checkpointed, Position(4));
}

#[test]
fn a_database_that_pins_the_log_is_checkpointed_however_small_and_young_its_wal_is() {
    const LIMIT: u64 = 16 << 10;
    let (mut upkeep, db) = never_old(Config { log_limit: LIMIT, segment_bytes: 8 << 10, ..Config::default() });
    let before = db.status().checkpointed;
    change(&db, 3);
    upkeep.step();
    assert_eq!(db.status().checkpointed, before, "the log is small");
    let mut id = EntryId { index: LogIndex(2), term: Term(1) };
    while upkeep.log.bytes() <= LIMIT {
        id.index = id.index.next();
        let entry = LogEntry { id, class: EntryClass::Normal, data: vec![7; 3000].into() };
        upkeep.log.append(&Batch { entries: vec![entry], ..Batch::default() }).unwrap();
    }
    upkeep.step();
    assert_eq!(db.status().checkpointed, Position(3));
}

/// The anchor is to know of it, and no anchor is beyond what is in the main files.
#[test]
fn a_database_that_pins_a_change_of_the_catalogue_is_checkpointed_however_small_and_young_its_wal_is() {
    let (mut upkeep, db) = never_old(Config::default());
    change(&db, 3);
    upkeep.hub.note_change(LogIndex(4));
    upkeep.step();
    assert_eq!(db.status().checkpointed, Position(3));
}

/// What cannot be read now need not be damaged: people hear of it, the copy stays, and is read again.
#[test]
fn a_page_that_the_scrubber_cannot_read_is_an_alarm_until_it_can() {
    let (fs, clock) = (SimFs::new(1), Arc::new(SimClock::default()));
    let (mut upkeep, db) = upkeep_at(&fs, &clock, Aftermath::default());
    let events = upkeep.hub.events.listen();
    let mut round = || {
        clock.advance(Duration::from_secs(1));
        let before = fs.count("db.verify");
        upkeep.step();
        assert!(fs.count("db.verify") > before, "it was read");
        let alarms = upkeep.hub.findings.lock().alarms.clone();
        alarms.into_values().collect::<Vec<_>>()
    };
    fs.fail_at(Aim::At("db.verify"), 1, Lasts::Once, Failure::EIO);
    let alarms = round();
    let parts = ["database app", "its main file cannot be read", "check the disk"];
    assert!(alarms.len() == 1 && parts.iter().all(|part| alarms[0].contains(part)), "{alarms:?}");
    assert!(matches!(events.try_recv(), Ok(Event::DiskTrouble { what }) if what == alarms[0]));
    assert_eq!((db.retired(), db.status().rotten.len()), (None, 0));
    assert_eq!(round(), Vec::<String>::new());
    assert_eq!((db.retired(), db.status().rotten.len()), (None, 0));
}
