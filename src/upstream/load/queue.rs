//! Requests that wait because each usable origin of their pool has as many requests in flight
//! (`requests_max`), or as many connections (`connections_max`), as it may have. First in, first out, over
//! all cores.
//!
//! ```text
//! join ──▶ waits ── it is the first, and is woken ──▶ chooses an origin ──▶ leaves, wakes the next
//!            │                                              │ none has a place
//!            └── its time is over: 503                      └──▶ waits on as the first
//! ```
//!
//! While one waits, a new request waits behind it, also when a place is free. The first one is
//! woken by the end of an exchange or of a connection, and looks again every [`LOOK_INTERVAL`] for an
//! origin that has come back.
//!
//! An idle connection belongs to one core, and a request of another core cannot use it. A request that
//! waits for a connection therefore asks all cores to close idle ones ([`Queue::want_connection`]).

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::metrics::{Metric, Recorder};

/// The queue of one pool, shared by all cores.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Queue {
    /// The number of `waiters`, readable without the lock.
    count: AtomicUsize,
    waiters: Mutex<VecDeque<Arc<Notify>>>,
    /// One for each core that uses the pool: see [`Queue::want_connection`].
    cores: Mutex<Vec<Weak<Notify>>>,
}

/// A request in the queue. It leaves when this is dropped.
pub(in crate::upstream) struct Ticket {
    queue: Arc<Queue>,
    waiter: Arc<Notify>,
    recorder: Recorder,
}

impl Queue {
    /// The number of requests that wait.
    pub(in crate::upstream) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Adds a request at the end. `None`: `length_max` wait already.
    pub(in crate::upstream) fn join(
        self: &Arc<Self>,
        length_max: usize,
        recorder: &Recorder,
    ) -> Option<Ticket> {
        let waiter = Arc::new(Notify::new());
        {
            let mut waiters = self.lock();
            if waiters.len() >= length_max {
                return None;
            }
            waiters.push_back(waiter.clone());
            self.count.store(waiters.len(), Ordering::Relaxed);
        }
        // The request looks for a place after this. An exchange that ends counts itself out, and then
        // looks for waiters: one of the two sees the other.
        fence(Ordering::SeqCst);
        recorder.add(Metric::UpstreamQueue, 1);
        Some(Ticket { queue: self.clone(), waiter, recorder: recorder.clone() })
    }

    /// A place may be free.
    pub(in crate::upstream) fn wake_first(&self) {
        fence(Ordering::SeqCst);
        if self.len() > 0
            && let Some(first) = self.lock().front()
        {
            first.notify_one();
        }
    }

    /// From now on, `wanted` is notified when a request waits for a connection.
    pub(in crate::upstream) fn add_core(&self, wanted: &Arc<Notify>) {
        let mut cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = Arc::downgrade(wanted);
        cores.retain(|core| core.strong_count() > 0 && !core.ptr_eq(&wanted));
        cores.push(wanted);
    }

    /// Asks all cores to close an idle connection to each member that has no free slot.
    pub(in crate::upstream) fn want_connection(&self) {
        let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores.iter().filter_map(Weak::upgrade).for_each(|core| core.notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Notify>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Waits until this is the first one and `choose` finds a place. `None`: there was none within
    /// `wait_max`.
    pub(in crate::upstream) async fn place<T>(
        &self,
        wait_max: Duration,
        choose: impl Fn() -> Option<T>,
    ) -> Option<T> {
        let placed = async {
            loop {
                if self.is_first()
                    && let Some(place) = choose()
                {
                    return place;
                }
                self.woken().await;
            }
        };
        timeout(wait_max, placed).await.ok()
    }

    fn woken(&self) -> impl Future<Output = ()> {
        let woken = timeout(LOOK_INTERVAL, self.waiter.notified());
        async move {
            // The interval has passed, or it was woken.
            let _ = woken.await;
        }
    }

    fn is_first(&self) -> bool {
        self.queue.lock().front().is_some_and(|first| Arc::ptr_eq(first, &self.waiter))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiters = self.queue.lock();
        waiters.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        self.queue.count.store(waiters.len(), Ordering::Relaxed);
        // The next one may have a place too, or this one was woken and has left.
        if let Some(first) = waiters.front() {
            first.notify_one();
        }
        drop(waiters);
        self.recorder.subtract(Metric::UpstreamQueue, 1);
    }
}

/// Between two looks of the first one in the queue.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
