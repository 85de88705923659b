//! Work that a request begins, and that goes on without it.
//!
//! A task of its own for each such work costs a wake-up and a turn of the scheduler before its request can go on.
//! Here the task of the request polls the work while it waits; only work that is not done by then, or whose request
//! is dropped, becomes a task.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::task::spawn_local;

/// Work that becomes a task when it is dropped. Must be dropped on a worker's runtime.
pub(super) struct DetachOnDrop {
    /// `None` once it is done.
    work: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl DetachOnDrop {
    /// The work comes boxed, so that a large future is moved once.
    pub(super) fn new(work: Pin<Box<dyn Future<Output = ()>>>) -> Self {
        Self { work: Some(work) }
    }

    /// Does the work until it has sent its result; the rest is done by a task. `None`: it sends no result.
    pub(super) async fn until<T>(mut self, mut result: Receiver<T>) -> Option<T> {
        poll_fn(|cx| {
            if let Some(work) = &mut self.work
                && work.as_mut().poll(cx).is_ready()
            {
                self.work = None;
            }
            if self.work.is_none() {
                return Pin::new(&mut result).poll(cx).map(Result::ok);
            }
            // The work sends its result while this task polls it: a receiver that waits would have the task polled once
            // more for nothing.
            match result.try_recv() {
                Ok(sent) => Poll::Ready(Some(sent)),
                Err(TryRecvError::Empty) => Poll::Pending,
                Err(TryRecvError::Closed) => Poll::Ready(None),
            }
        })
        .await
    }
}

impl Drop for DetachOnDrop {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            spawn_local(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use tokio::sync::oneshot;
    use tokio::task::{LocalSet, yield_now};

    use super::*;

    /// Runs a test of work that reports to its request, and then goes on until it is released.
    async fn check(drops_request_first: bool) {
        let is_done = Rc::new(Cell::new(false));
        let (report, reported) = oneshot::channel();
        let (release, released) = oneshot::channel::<()>();
        let done = is_done.clone();
        let work = DetachOnDrop::new(Box::pin(async move {
            yield_now().await;
            let _ = report.send(7);
            let _ = released.await;
            done.set(true);
        }));
        if drops_request_first {
            drop(work.until(reported));
        } else {
            assert_eq!(work.until(reported).await, Some(7));
        }
        assert!(!is_done.get());
        let _ = release.send(());
        for _ in 0..4 {
            yield_now().await;
        }
        assert!(is_done.get(), "the work went on");
    }

    #[tokio::test]
    async fn work_goes_on_without_its_request() {
        LocalSet::new().run_until(check(false)).await;
        LocalSet::new().run_until(check(true)).await;
    }

    #[derive(Default)]
    struct CountedWakes(AtomicUsize);

    impl Wake for CountedWakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_request_is_not_woken_by_the_work_that_it_polls() {
        let wakes = Arc::<CountedWakes>::default();
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let (start, started) = oneshot::channel::<()>();
        let (report, reported) = oneshot::channel();
        let work = DetachOnDrop::new(Box::pin(async move {
            let _ = started.await;
            let _ = report.send(7);
        }));
        let mut result = pin!(work.until(reported));
        assert!(result.as_mut().poll(&mut cx).is_pending());
        let _ = start.send(());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(result.as_mut().poll(&mut cx), Poll::Ready(Some(7)));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }
}
