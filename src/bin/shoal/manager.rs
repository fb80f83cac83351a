//! What the service manager hears, if there is one (sd_notify): ready, who leads or what is wrong, the end, and that a start goes on.
//!
//! A start takes as long as reading the log and applying what is behind the last checkpoints, which is longer than a unit may
//! have foreseen. The library says once a second how far it is, in its log; each such line gives the start more time. A start
//! that hangs says nothing, and is ended.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How a line begins that says how far a start is.
const PROGRESS: &str = "starting: ";
/// How long a start may go on before it says something again: one file of the log, or one database, on a slow disk.
const MORE_TIME_US: u64 = 60_000_000;

/// Tells the service manager, if there is one.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> io::Result<()> {
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&path)?,
        };
        socket()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
    };
    if let Err(error) = send() {
        tracing::warn!(%error, socket = ?path, "the service manager was not told {state}");
    }
}

/// One for all that is told: a node that finds no descriptor any more has something to tell.
fn socket() -> io::Result<&'static UnixDatagram> {
    static SOCKET: OnceLock<UnixDatagram> = OnceLock::new();
    match SOCKET.get() {
        Some(socket) => Ok(socket),
        None => {
            let socket = UnixDatagram::unbound()?;
            Ok(SOCKET.get_or_init(|| socket))
        }
    }
}

/// What the manager shows of a running node: who leads; or, as long as it has trouble with its disk, the gravest of its alarms,
/// whoever leads meanwhile.
pub(crate) struct Shown<F> {
    tell: F,
    leader: String,
    trouble: Option<String>,
}

impl<F: Fn(&str)> Shown<F> {
    /// Ready, and who leads.
    pub(crate) fn begin(tell: F, leader: String) -> Shown<F> {
        tell(&format!("READY=1\nSTATUS={leader}"));
        Shown { tell, leader, trouble: None }
    }

    pub(crate) fn on_leader(&mut self, leader: String) {
        self.change(|shown| shown.leader = leader);
    }

    pub(crate) fn on_trouble(&mut self, what: &str) {
        self.change(|shown| shown.trouble = Some(what.replace('\n', " ")));
    }

    /// Its alarms as they are now. Nobody is told when trouble ends: without any it is over.
    pub(crate) fn on_alarms(&mut self, alarms: &[String]) {
        if self.is_troubled() {
            self.change(|shown| shown.trouble = alarms.first().map(|what| what.replace('\n', " ")));
        }
    }

    /// Whether its alarms are to be looked at.
    pub(crate) fn is_troubled(&self) -> bool {
        self.trouble.is_some()
    }

    fn words(&self) -> &str {
        self.trouble.as_ref().unwrap_or(&self.leader)
    }

    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.words().to_string();
        change(self);
        if self.words() != before {
            (self.tell)(&format!("STATUS={}", self.words()));
        }
    }
}

/// Gives the start more time whenever the log says how far it is, by telling the manager with this.
pub(crate) struct MoreTime<F>(pub(crate) F);

impl<S: Subscriber, F: Fn(&str) + 'static> Layer<S> for MoreTime<F> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        if message.0.starts_with(PROGRESS) {
            (self.0)(&format!("EXTEND_TIMEOUT_USEC={MORE_TIME_US}\nSTATUS={}", message.0));
        }
    }
}

/// The sentence of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Once the words stayed those of a trouble that was long over, or hid one that was not behind the next leader.
    #[test]
    fn trouble_is_shown_as_long_as_it_lasts_and_then_who_leads() {
        let (sender, told) = mpsc::channel();
        let told = || told.try_iter().collect::<Vec<String>>();
        let mut shown =
            Shown::begin(move |state: &str| sender.send(state.to_string()).unwrap(), "node 1 leads".to_string());
        assert_eq!(told(), ["READY=1\nSTATUS=node 1 leads"]);
        // Alarms that are no trouble with a disk are for `shoal status`.
        shown.on_alarms(&["the log is long".to_string()]);
        assert!(told().is_empty() && !shown.is_troubled());
        shown.on_trouble("no space\nleft");
        assert_eq!(told(), ["STATUS=no space left"]);
        let alarms = ["no space\nleft".to_string(), "the log is long".to_string()];
        shown.on_alarms(&alarms);
        shown.on_leader("node 2 leads".to_string());
        assert!(told().is_empty() && shown.is_troubled());
        shown.on_alarms(&alarms[1..]);
        assert_eq!(told(), ["STATUS=the log is long"]);
        shown.on_alarms(&[]);
        assert_eq!(told(), ["STATUS=node 2 leads"]);
        assert!(!shown.is_troubled());
        shown.on_leader("node 3 leads".to_string());
        assert_eq!(told(), ["STATUS=node 3 leads"]);
    }

    /// A start that is longer than the unit foresaw was ended by the service manager, and begun again, for ever. That the library
    /// says these things once a second is tested where it does.
    #[test]
    fn whatever_says_how_far_a_start_is_gives_it_more_time_and_nothing_else_does() {
        let (sender, told) = mpsc::channel();
        let layer = MoreTime(move |state: &str| sender.send(state.to_string()).unwrap());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!("the node is starting: soon");
            tracing::info!(done = 3, "starting: applied 3 of {} entries of the log", 7);
            tracing::warn!(starting = "starting: ", "it leads");
        });
        let more = "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=starting: applied 3 of 7 entries of the log";
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [more]);
    }
}
