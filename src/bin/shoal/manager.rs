//! What the service manager hears, if there is one (sd_notify): ready, who leads, the end, and that a start goes on.
//!
//! A start takes as long as reading the log and applying what is behind the last checkpoints, which is longer than a unit may
//! have foreseen. The library says once a second how far it is, in its log; each such line gives the start more time. A start
//! that hangs says nothing, and is ended.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

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
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
    };
    if let Err(error) = send() {
        tracing::warn!(%error, socket = ?path, "the service manager was not told {state}");
    }
}

/// Gives the start more time whenever the log says how far it is.
pub(crate) struct MoreTime;

impl<S: Subscriber> Layer<S> for MoreTime {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        if message.0.starts_with(PROGRESS) {
            notify(&format!("EXTEND_TIMEOUT_USEC={MORE_TIME_US}\nSTATUS={}", message.0));
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
