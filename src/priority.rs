//! How much of the processors a thread gets when there is not enough for all.

/// Threads that bring or fetch snapshots, beside 0 of all others: a third of what one of those gets.
const NICE: i32 = 5;

/// The calling thread gives way to the others of this machine from now on. For work that is long, and that no commit waits for.
pub(crate) fn give_way() {
    // To the kernel a thread is a process here, and none means the one that calls.
    if let Err(why) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!("a thread could not be made to give way: {why}");
    }
}
