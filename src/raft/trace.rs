//! What the Raft library says (through `slog`) goes to `tracing`, one step quieter: its "info" is our "debug".

use slog::{Drain, Level, Never, OwnedKVList, Record};

const TARGET: &str = "shoal::raft";

/// The way from `slog` to `tracing`.
pub(super) struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: TARGET, "{}", record.msg()),
            Level::Warning => tracing::warn!(target: TARGET, "{}", record.msg()),
            Level::Info => tracing::debug!(target: TARGET, "{}", record.msg()),
            Level::Debug | Level::Trace => tracing::trace!(target: TARGET, "{}", record.msg()),
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Critical | Level::Error => tracing::enabled!(target: TARGET, tracing::Level::ERROR),
            Level::Warning => tracing::enabled!(target: TARGET, tracing::Level::WARN),
            Level::Info => tracing::enabled!(target: TARGET, tracing::Level::DEBUG),
            Level::Debug | Level::Trace => tracing::enabled!(target: TARGET, tracing::Level::TRACE),
        }
    }
}
