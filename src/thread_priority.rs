//! Lowers the priority of threads whose work can wait, so that they do not hold up requests.

/// Gives the calling thread the lowest priority, which every process may do: a worker that wakes up takes its core
/// at once. `work`: the work of the thread, for the log line if the system refuses.
pub(crate) fn lower(work: &str) {
    // Linux applies this call to one thread.
    if let Err(error) = rustix::process::setpriority_process(None, LOWEST) {
        tracing::warn!(%error, "cannot lower the priority of the thread that {work}");
    }
}

const LOWEST: i32 = 19;
