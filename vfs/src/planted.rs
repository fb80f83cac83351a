//! Mistakes that can be planted into this crate, so that whoever tests it knows that the tests would notice them.
//!
//! In a build with `--cfg shoal_planted` one of them may be selected. In every other build [`is`] is the constant `false`,
//! and nothing of a mistake is in the program. A place that can go wrong asks in one line: `planted::is(Bug::SkipHeal)`.
//!
//! Deliberately absent: whoever looks for them (the simulation does), and mistakes of other crates, which have such a module
//! of their own, made by the same macro.

/// Makes a list of mistakes: the type `Bug`, what a user would see of each, and the question whether it is planted.
#[doc(hidden)]
#[macro_export]
macro_rules! planted_bugs {
    ($($(#[doc = $what:literal])+ $name:ident,)+) => {
        /// A mistake, with what a user would see of it.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Bug { $($(#[doc = $what])+ $name,)+ }

        /// Name and text of each.
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), concat!($($what),+)),)+];

        #[cfg(shoal_planted)]
        static SELECTED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(usize::MAX);

        /// Plants the mistake of this name for the whole process, and takes out any other of this list; whether there is
        /// one of that name.
        #[cfg(shoal_planted)]
        pub fn select(name: &str) -> bool {
            let found = ALL.iter().position(|(known, _)| *known == name);
            SELECTED.store(found.unwrap_or(usize::MAX), std::sync::atomic::Ordering::Relaxed);
            found.is_some()
        }

        /// Whether this mistake is planted.
        #[cfg(shoal_planted)]
        pub fn is(bug: Bug) -> bool {
            SELECTED.load(std::sync::atomic::Ordering::Relaxed) == bug as usize
        }

        /// Whether this mistake is planted: never, in this build.
        #[cfg(not(shoal_planted))]
        #[inline(always)]
        pub const fn is(_: Bug) -> bool {
            false
        }
    };
}

planted_bugs! {
    /// a transaction is applied although it was built on another position: updates get lost
    SkipBase,
    /// a connection that lost WRITE goes on in the shared wal-index, and its rollback damages it
    SkipDetach,
    /// a connection that lost WRITE goes on writing into the shared WAL
    SkipFence,
    /// a read transaction that was ended goes on in the files that have moved on
    KeepEndedReader,
    /// a commit that gave up is accepted: nobody publishes it, and the applier waits for ever
    AcceptAfterGiveUp,
    /// what SQLite fails to publish after it was accepted is not published by the VFS either
    SkipHeal,
    /// of a transaction that spilled, the first frame does not get into the entry
    LoseSpilledFrame,
    /// a checkpoint moves frames that a reader must not see yet
    CheckpointBeyondReader,
    /// the main file is overwritten before the double-write is on disk
    SkipDoubleWriteSync,
    /// the position record is written before the main file is on disk
    SkipMainFileSync,
    /// the names of a new database's files are not made durable
    SkipFilesDirSync,
    /// after a WAL restart the applier's frames do not have the salts of the WAL's header
    WrongSalt,
    /// the page before the lock page is taken for it
    LockPageOff,
    /// what is fetched from another node counts without having been compared with its hashes
    InstallUnverified,
}
