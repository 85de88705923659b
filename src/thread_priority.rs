//! Lowers the priority of threads whose work can wait, so that they do not hold up requests.

/// How far a thread's priority is lowered: its nice value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Niceness {
    /// The thread gets a third of the time of a worker on the same core.
    BehindWorkers = 5,
    /// A worker that wakes up takes the thread's core at once.
    Lowest = 19,
}

/// Lowers the priority of the calling thread, which every process may do. `work`: the work of the thread, for the log
/// line if the system refuses.
pub(crate) fn lower(niceness: Niceness, work: &str) {
    // Linux applies this call to one thread.
    if let Err(error) = rustix::process::setpriority_process(None, niceness as i32) {
        tracing::warn!(%error, "cannot lower the priority of the thread that {work}");
    }
}
