use super::*;
use crate::capture::CommitFrame;
use crate::database::SessionId;
use crate::env::sim::{SimClock, SimRng};
use crate::genesis::Geometry;
use crate::page::{PageCount, PageHash, PageNo};
use crate::replicator::Receipt;
use crate::spill::SpillTo;
use crate::transaction::{ChangedPage, Position, Transaction};
use crate::wal::frame::FrameNo;

/// Its barrier applies an entry, so that the header moves while a read waits.
struct Moving {
    barriers: AtomicU64,
}

impl Replicator for Moving {
    fn open(&self, _: &str, _: bool) -> Result<Arc<Database>, Refusal> {
        Err(Refusal::CannotOpen)
    }

    fn acquire_write(&self, _: &Arc<Database>, _: bool, _: Interrupted<'_>) -> Result<(), Refusal> {
        Err(Refusal::Busy)
    }

    fn wait_writable(&self, _: &Arc<Database>, _: Duration) {}

    fn commit(
        &self,
        _: &Arc<Database>,
        _: SessionId,
        _: Transaction,
        _: &mut Option<Receipt>,
    ) -> Result<Position, Refusal> {
        Err(Refusal::NotCommitted)
    }

    fn read_barrier(&self, db: &Arc<Database>, _: Interrupted<'_>) -> Result<(), Refusal> {
        let nth = self.barriers.fetch_add(1, Ordering::Relaxed);
        let mut image = db.geometry().first_page();
        // The application's own number in the header of the database.
        image[60..68].copy_from_slice(&nth.to_be_bytes());
        let hash = PageHash::of(PageNo::FIRST, &image);
        let page = ChangedPage { number: PageNo::FIRST, image: image.into(), hash };
        let transaction = Transaction {
            base: db.position(),
            page_size: db.geometry().page_size,
            size_after: PageCount(1),
            checksum_after: hash,
            pages: vec![page],
        };
        db.apply(&transaction, Position(db.position().0 + 1)).unwrap();
        Ok(())
    }
}

/// SQLite asks for its read lock again within microseconds of a barrier during which the header moved, and that request
/// passes. A read that SQLite gave up on does not ask again: the mark it left must not reach the read after it, which may
/// come at any time and would show what was acknowledged elsewhere in between as not there.
#[test]
fn a_read_that_was_given_up_hands_its_barrier_to_no_later_read() {
    let lifetime = Duration::from_millis(20);
    let moment = Duration::from_nanos(1);
    for (later, inherits) in [
        (Duration::ZERO, true),
        (lifetime - moment, true),
        (lifetime, false),
        (lifetime + moment, false),
        (Duration::from_secs(3600), false),
    ] {
        let clock = Arc::new(SimClock::default());
        let db = Database::new("app", Geometry::default(), clock.clone(), &SimRng::new(1), SpillTo::nowhere()).unwrap();
        let replicator = Arc::new(Moving { barriers: AtomicU64::new(0) });
        let conn = Conn::new(db, replicator.clone(), clock.clone()).unwrap();
        conn.set_linearizable(true);
        let read = || {
            let before = replicator.barriers.load(Ordering::Relaxed);
            conn.lock_shared(READ_0 + 1..READ_0 + 2, &|| false).unwrap();
            conn.unlock(READ_0 + 1..READ_0 + 2, true);
            replicator.barriers.load(Ordering::Relaxed) - before
        };
        assert_eq!(read(), 1, "the read that is given up");
        clock.advance(later);
        assert_eq!(read(), u64::from(!inherits), "{later:?} later");
        // A mark serves one request, whoever uses it; one that was too old is gone, too.
        assert_eq!(read(), u64::from(inherits), "the read after that, {later:?} later");
    }
}

/// Grants the write lock, and closes it while `closed`.
struct Closing {
    closed: AtomicBool,
}

impl Replicator for Closing {
    fn open(&self, _: &str, _: bool) -> Result<Arc<Database>, Refusal> {
        Err(Refusal::CannotOpen)
    }

    fn acquire_write(&self, _: &Arc<Database>, _: bool, _: Interrupted<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn is_open(&self, _: &Arc<Database>) -> Result<(), Refusal> {
        if self.closed.load(Ordering::Relaxed) { Err(Refusal::Busy) } else { Ok(()) }
    }

    fn wait_writable(&self, _: &Arc<Database>, _: Duration) {}

    fn commit(
        &self,
        _: &Arc<Database>,
        _: SessionId,
        _: Transaction,
        _: &mut Option<Receipt>,
    ) -> Result<Position, Refusal> {
        Err(Refusal::NotCommitted)
    }

    fn read_barrier(&self, _: &Arc<Database>, _: Interrupted<'_>) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Between the node's consent and the grant of WRITE the writer before may give up a commit, and give WRITE back. Whoever gets it
/// then would build on a state that the undecided commit may still change.
#[test]
fn a_commit_that_is_given_up_just_before_the_grant_closes_the_write_lock() {
    let clock = Arc::new(SimClock::default());
    let db = Database::new("app", Geometry::default(), clock.clone(), &SimRng::new(1), SpillTo::nowhere()).unwrap();
    let replicator = Arc::new(Closing { closed: AtomicBool::new(true) });
    let conn = |number| {
        let conn = Conn::new(db.clone(), replicator.clone(), clock.clone()).unwrap();
        conn.lock_shared(READ_0 + 1..READ_0 + 2, &|| false).unwrap();
        move || conn.lock_exclusive(WRITE..WRITE + 1, number, &|| false)
    };
    let (first, second) = (conn(1), conn(2));
    assert_eq!(first(), Err(Refusal::Busy));
    replicator.closed.store(false, Ordering::Relaxed);
    assert_eq!(second(), Ok(()), "the first holds nothing, and is in nobody's way");
    assert_eq!(first(), Err(Refusal::Busy));
}

/// A frame that was lost would leave a smaller transaction, which all nodes would agree on.
#[test]
fn a_transaction_of_which_a_frame_is_missing_is_refused_and_not_made_smaller() {
    let clock = Arc::new(SimClock::default());
    let db = Database::new("app", Geometry::default(), clock, &SimRng::new(1), SpillTo::nowhere()).unwrap();
    let commit = CommitFrame { frame: FrameNo::new(2).unwrap(), size: PageCount(2) };
    assert_eq!(db.captured_pages(0, commit).unwrap_err(), Refusal::NotCommitted);
}

/// On the only voter a database is served without its rotten page. An application that needs it filled the log with one line a try.
#[test]
fn a_page_that_cannot_be_read_is_told_of_once_an_hour() {
    let clock = Arc::new(SimClock::default());
    let database =
        |name| Database::new(name, Geometry::default(), clock.clone(), &SimRng::new(1), SpillTo::nowhere()).unwrap();
    let (app, other) = (database("app"), database("app"));
    let mut reads = FailedReads(Vec::new());
    let mut count = |db: &Arc<Database>, page, after| reads.count(db, page, SILENCE * after);
    assert_eq!(count(&app, 7, 0), Some(0));
    assert_eq!((0..9).find_map(|_| count(&app, 7, 0)), None);
    assert_eq!((count(&app, 8, 0), count(&other, 7, 0)), (Some(0), Some(0)), "another page, another database");
    assert_eq!((count(&app, 7, 1), count(&app, 7, 1)), (Some(9), None));
    // However many there are, they take no more memory than that, and no more lines.
    let told = (100..1000).filter_map(|page| count(&app, page, 1)).count();
    assert_eq!(told, PAGES_TOLD - 2 + 1);
    drop(app);
    assert_eq!(count(&other, 7, 1), Some(0));
    assert_eq!(reads.0.len(), 1);
}
