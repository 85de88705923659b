//! The waker of an HTTP/1.1 connection, which has no task of its own.
//!
//! hyper wakes a connection whenever its body is polled or its response is taken. The task that
//! drives the connection is running then, and the runtime would run it once more for nothing. The
//! gate passes a wake-up on only while the task waits. It lives as long as the connection, so that
//! the socket need not register a new waker when another task uses the connection.
//!
//! ```text
//!  RUNNING ──wake──▶ WOKEN          (recorded; the driver polls once more)
//!     │ park
//!     ▼
//!  PARKED ──wake──▶ WOKEN + the task is woken
//! ```

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

/// See above. It is used on one core only; the atomics are there because a `Waker` must be `Send`.
#[derive(Default)]
pub(in crate::upstream) struct Gate {
    state: AtomicU8,
    task: Mutex<Option<Waker>>,
}

impl Gate {
    /// From now on, wake-ups are recorded and not passed on.
    pub(in crate::upstream) fn run(&self) {
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Whether there was a wake-up since [`Gate::run`].
    pub(in crate::upstream) fn was_woken(&self) -> bool {
        self.state.load(Ordering::Acquire) == WOKEN
    }

    /// Passes the next wake-up on to the task. False when there was one since [`Gate::run`].
    pub(in crate::upstream) fn park(&self, cx: &Context<'_>) -> bool {
        *self.lock() = Some(cx.waker().clone());
        self.state.compare_exchange(RUNNING, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == PARKED {
            let task = self.lock().take();
            if let Some(task) = task {
                task.wake();
            }
        }
    }
}

const RUNNING: u8 = 0;
const WOKEN: u8 = 1;
const PARKED: u8 = 2;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_up_is_noted_while_running_and_passed_on_once_while_parked() {
        let count = Arc::new(Count::default());
        let task = Waker::from(count.clone());
        let cx = Context::from_waker(&task);
        let gate = Arc::new(Gate::default());
        let waker = Waker::from(gate.clone());

        gate.run();
        assert!(!gate.was_woken());
        waker.wake_by_ref();
        assert!(gate.was_woken());
        assert!(!gate.park(&cx), "it would be lost");
        assert_eq!(count.0.load(Ordering::SeqCst), 0);

        gate.run();
        assert!(gate.park(&cx));
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}
