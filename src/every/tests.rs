use std::fmt::{self, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use shoaldb_vfs::env::sim::SimClock;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};

use super::*;

/// A clock by which a second has passed whenever somebody looks at it.
#[derive(Default, Debug)]
pub(crate) struct Hasty(AtomicU64);

impl Clock for Hasty {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

struct Listener(Arc<Mutex<Vec<String>>>);

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

impl Subscriber for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut words = Words(String::new());
        event.record(&mut words);
        self.0.lock().push(words.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// What is said in the log by this thread meanwhile.
pub(crate) fn said(act: impl FnOnce()) -> Vec<String> {
    // While there is one listener only, `tracing` asks the thread that comes to a place in the code for the first time whether anybody
    // listens there, and keeps the answer: of another thread it is that nobody does. While there are more it asks all.
    static OTHERS: LazyLock<[Dispatch; 2]> =
        LazyLock::new(|| [(); 2].map(|()| Dispatch::new(Listener(Arc::default()))));
    LazyLock::force(&OTHERS);
    let heard = Arc::default();
    tracing::subscriber::with_default(Listener(Arc::clone(&heard)), act);
    std::mem::take(&mut *heard.lock())
}

#[test]
fn it_is_due_once_a_second_and_not_at_once() {
    let clock = Arc::new(SimClock::default());
    let every = Every::second(clock.clone());
    assert!(!every.is_due());
    for _ in 0..3 {
        clock.advance(Duration::from_millis(999));
        assert!(!every.is_due());
        clock.advance(Duration::from_millis(1));
        assert!(every.is_due() && !every.is_due());
    }
}
