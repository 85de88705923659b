//! Interim responses (1xx, RFC 9110 §15.2) on their way from an origin to the client whose request caused the
//! exchange. They are never stored.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::Response;

use crate::reply::Reply;

/// The queue of interim responses to one request.
#[derive(Debug, Default)]
pub(crate) struct Interims(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    responses: VecDeque<Response<()>>,
    waker: Option<Waker>,
}

impl Interims {
    /// Appends a response. False if the queue is full: the response is dropped.
    pub(crate) fn push(&self, response: Response<()>) -> bool {
        let mut queue = self.lock();
        if queue.responses.len() >= WAITING_MAX {
            return false;
        }
        queue.responses.push_back(response);
        if let Some(waker) = queue.waker.take() {
            drop(queue);
            waker.wake();
        }
        true
    }

    /// Takes the next response, or waits for one.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Response<()>> {
        let mut queue = self.lock();
        if let Some(response) = queue.responses.pop_front() {
            return Poll::Ready(response);
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The final response to a request, with the interim responses that precede it.
pub(crate) trait ReplyFuture: Future<Output = Reply> {
    /// The next interim response. Must be called after each poll of the final response, until it is pending;
    /// its results must be sent before the final response.
    fn poll_interim(self: Pin<&mut Self>, _cx: &Context<'_>) -> Poll<Response<()>> {
        Poll::Pending
    }
}

/// A boxed future has no interim responses.
impl<F: Future<Output = Reply> + ?Sized> ReplyFuture for Pin<Box<F>> {}

/// The length of the queue. A slow client misses the interim responses beyond it.
const WAITING_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn interim_responses_come_in_order_and_no_more_than_a_few_wait() {
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
