//! Interim responses (1xx, RFC 9110 §15.2) on their way from upstream to the one client that
//! caused the exchange. They are passed on and forgotten: nothing of them is stored.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::Response;

use crate::reply::Reply;

/// The interim responses for one request that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct Interims(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    responses: VecDeque<Response<()>>,
    waker: Option<Waker>,
}

impl Interims {
    /// Puts one behind the others. False if too many wait: then it is dropped.
    pub(crate) fn push(&self, response: Response<()>) -> bool {
        let mut waiting = self.lock();
        if waiting.responses.len() >= WAITING_MAX {
            return false;
        }
        waiting.responses.push_back(response);
        if let Some(waker) = waiting.waker.take() {
            drop(waiting);
            waker.wake();
        }
        true
    }

    /// The next one. Pending: the task is woken when there is one.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Response<()>> {
        let mut waiting = self.lock();
        if let Some(response) = waiting.responses.pop_front() {
            return Poll::Ready(response);
        }
        waiting.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A response that interim ones may come before.
pub(crate) trait Answer: Future<Output = Reply> {
    /// The next interim response. To be asked after each look at the answer itself, and to be
    /// sent before it.
    fn poll_interim(self: Pin<&mut Self>, _cx: &Context<'_>) -> Poll<Response<()>> {
        Poll::Pending
    }
}

/// Nothing comes before what is boxed.
impl<F: Future<Output = Reply> + ?Sized> Answer for Pin<Box<F>> {}

/// A client that takes them slower than they come loses those beyond.
const WAITING_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn they_come_in_order_and_no_more_than_a_few_wait() {
        let interims = Arc::new(Interims::default());
        let cx = Context::from_waker(Waker::noop());
        assert!(interims.poll_next(&cx).is_pending());
        let numbered = |n: usize| Response::builder().status(103).header("n", n).body(()).unwrap();
        let taken = (0..10).filter(|n| interims.push(numbered(*n))).count();
        assert_eq!(taken, WAITING_MAX);
        for n in 0..WAITING_MAX {
            let Poll::Ready(response) = interims.poll_next(&cx) else { panic!("the {n}th") };
            assert_eq!(response.headers()["n"], *n.to_string());
        }
        assert!(interims.poll_next(&cx).is_pending());
    }
}
