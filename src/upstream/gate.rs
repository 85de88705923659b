//! The waker of a connection that has no task of its own.
//!
//! hyper wakes a connection whenever its body is asked for or its response is taken. Both
//! happen while the task that drives it runs anyway, and would make the runtime run that
//! whole task once more for nothing. The gate lets a wake-up through only while the task
//! waits. It also stays the same for the connection's life, so that nothing is registered
//! anew when the next request, of another task, goes over it.
//!
//! ```text
//!  RUNNING ──wake──▶ WOKEN          (noted; the driver goes round once more)
//!     │ park
//!     ▼
//!  PARKED ──wake──▶ WOKEN + the task is woken
//! ```

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

/// See above. It is only ever used on one core; a `Waker` must be `Send` all the same.
#[derive(Default)]
pub(super) struct Gate {
    state: AtomicU8,
    task: Mutex<Option<Waker>>,
}

impl Gate {
    /// From now on, wake-ups are noted and not passed on.
    pub(super) fn run(&self) {
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Whether there was a wake-up since [`Gate::run`].
    pub(super) fn was_woken(&self) -> bool {
        self.state.load(Ordering::Acquire) == WOKEN
    }

    /// Passes the next wake-up on to the task. False when there was one since [`Gate::run`].
    pub(super) fn park(&self, cx: &Context<'_>) -> bool {
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
