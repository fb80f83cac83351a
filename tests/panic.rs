//! Mistakes of ours in the engine and in the applier end in words, and in nobody's waiting for ever. A program of their own,
//! since what they do is done to a whole process, and one after the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use shoaldb::probe::{self, Phase};
use shoaldb::{ConnectOptions, Error, ErrorKind, Event, Node, Outcome, ReadLevel};

/// Long enough for a loaded machine.
const LONG: Duration = Duration::from_secs(60);
/// Whoever waits this long for a decision waits for ever.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The phase that panics when it begins the next time.
static PLANTED: AtomicU8 = AtomicU8::new(0);
static ALONE: Mutex<()> = Mutex::new(());

fn number(phase: Phase) -> u8 {
    match phase {
        Phase::Apply => 1,
        Phase::Publish => 2,
        Phase::Enter => 3,
    }
}

fn alone() -> MutexGuard<'static, ()> {
    let alone = ALONE.lock();
    probe::watch(|phase, begins| {
        let now = begins && PLANTED.compare_exchange(number(phase), 0, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        assert!(!now, "planted");
    });
    alone
}

fn plant(phase: Phase) {
    PLANTED.store(number(phase), Ordering::SeqCst);
}

fn start(dir: &Path) -> Node {
    let node = Node::builder(1, dir).commit_timeout(COMMIT_TIMEOUT).start().unwrap();
    node.wait_leader(LONG).unwrap();
    node
}

fn insert(node: &Node, db: &str, value: i64) -> Result<(), Error> {
    node.write(db, |tx| Ok(tx.execute("INSERT INTO t VALUES (?1)", [value]).map(|_| ())?))
}

fn values(node: &Node, db: &str) -> Vec<i64> {
    let db = node.connect(db).unwrap();
    let mut select = db.prepare("SELECT x FROM t ORDER BY x").unwrap();
    select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// What `act` comes to. It has a thread of its own, which nobody joins while it waits.
fn soon<T: Send + 'static>(node: &Node, act: impl FnOnce(&Node) -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    let caller = node.clone();
    let thread = std::thread::spawn(move || tell.send(act(&caller)));
    let result = told.recv_timeout(LONG).expect("a caller waits for ever");
    // Its node is a handle, too.
    assert!(thread.join().is_ok_and(|sent| sent.is_ok()));
    result
}

/// It has stopped, and says so in these words; no call waits, and it goes on reading.
fn has_stopped(node: &Node, words: &str) {
    let alarms = node.status().alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains(words)), "{alarms:?}");
    assert!(!node.is_leader());
    // An engine that lives hears of it in a turn of its own.
    let until = Instant::now() + LONG;
    while node.status().leader.is_some() {
        assert!(Instant::now() < until, "it is shown as the leader for ever");
        std::thread::yield_now();
    }
    // What another node would carry out, if one led, goes to no leader.
    type Act = fn(&Node) -> Result<(), Error>;
    let acts: [(ErrorKind, Act); 4] = [
        (ErrorKind::Stopped, |node| insert(node, "app", 1000)),
        (ErrorKind::Stopped, |node| node.write("new", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?))),
        (ErrorKind::NotLeader, |node| node.create("newer", Default::default())),
        (ErrorKind::NotLeader, |node| node.drop_database("app")),
    ];
    for (at, (kind, act)) in acts.into_iter().enumerate() {
        let error = soon(node, act).unwrap_err();
        assert_eq!(error.kind(), kind, "act {at}: {error}");
    }
    let read = soon(node, |node| {
        let db = node.connect_with("app", ConnectOptions { read_level: ReadLevel::Linearizable, ..Default::default() });
        db.unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).map_err(Error::from)
    });
    assert!(read.is_err(), "nobody can confirm a read: {read:?}");
}

#[test]
fn a_panic_in_the_applier_stops_the_node_in_words() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path());
    let events = node.events();
    node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    insert(&node, "app", 1).unwrap();
    plant(Phase::Publish);
    // It is committed, and the step that was to say so did not come to its end. Its caller hears of it all the same.
    let result = soon(&node, |node| insert(node, "app", 2));
    if let Err(error) = &result {
        assert_eq!(error.outcome(), Some(Outcome::Unknown), "{error}");
    }
    // At once: whoever was told so is told why if it tries again.
    let error = soon(&node, |node| insert(node, "app", 3)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
    has_stopped(&node, "its applier panicked");
    let told = std::iter::from_fn(|| events.recv_timeout(LONG).ok());
    assert!(told.take(1000).any(|event| matches!(event, Event::DiskTrouble { .. })));
    assert_eq!(values(&node, "app")[0], 1, "it goes on reading");
    drop(node);
    assert_eq!(values(&start(dir.path()), "app"), [1, 2]);
}

/// At the worst moment: what was proposed is on its way to the disk, and nobody will ever say that it is committed. It is in the
/// log at the next start, so whoever is told "not committed" is told a lie.
/// Shows INV-11.
#[test]
fn a_panic_in_the_engine_stops_the_node_in_words_and_its_callers_do_not_know() {
    const DATABASES: [&str; 4] = ["app", "b", "c", "d"];
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path());
    let events = node.events();
    for db in DATABASES {
        node.write(db, |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
    }
    let (tell, told) = mpsc::channel();
    let writers = DATABASES.map(|db| {
        let (node, tell) = (node.clone(), tell.clone());
        std::thread::spawn(move || {
            for value in 1.. {
                let result = insert(&node, db, value);
                let over = result.is_err();
                tell.send((db, value, result)).unwrap();
                if over {
                    return;
                }
            }
        })
    });
    // What each writer was told last, and of which value.
    let mut last: BTreeMap<&str, (i64, Result<(), Error>)> = BTreeMap::new();
    let mut planted = false;
    while last.len() < DATABASES.len() || last.values().any(|(_, result)| result.is_ok()) {
        let (db, value, result) = told.recv_timeout(LONG).expect("a writer waits for ever");
        last.insert(db, (value, result));
        if last.len() == DATABASES.len() && !std::mem::replace(&mut planted, true) {
            plant(Phase::Enter);
        }
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    has_stopped(&node, "its raft engine panicked");
    let told = std::iter::from_fn(|| events.recv_timeout(LONG).ok());
    assert!(told.take(100_000).any(|event| matches!(event, Event::DiskTrouble { .. })));
    let shown = DATABASES.map(|db| (db, values(&node, db)));
    drop(node);

    let node = start(dir.path());
    let mut found = 0;
    for (db, shown) in shown {
        let (value, result) = last.remove(db).unwrap();
        let error = result.unwrap_err();
        let acknowledged: Vec<i64> = (1..value).collect();
        // The engine may have given the last one to the applier in the turn before: then it is committed, and is applied after
        // its writer was told that it is not known.
        let also_the_last: Vec<i64> = (1..=value).collect();
        assert!(shown == acknowledged || shown == also_the_last, "{db}: it stopped at {value} and shows {shown:?}");
        let there = values(&node, db);
        assert!(there.starts_with(&shown), "{db}: it showed {shown:?}, and {there:?} is there");
        if there == also_the_last {
            assert_eq!(error.outcome(), Some(Outcome::Unknown), "{db}: it is there: {error}");
            found += 1;
        } else {
            assert_eq!(there, acknowledged, "{db}: what was acknowledged");
            assert!(matches!(error.outcome(), Some(Outcome::Unknown | Outcome::NotCommitted)), "{db}: {error}");
        }
    }
    assert!(found > 0, "nothing was on its way to the disk");
}
