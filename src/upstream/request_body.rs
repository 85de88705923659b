//! Wrappers of request bodies on HTTP/1.1 and HTTP/2: one records that the body failed, one holds
//! it back until the origin asks for it with 100 (Continue).

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, StatusCode};

use crate::body::{Body, BodySource, PollFrame};

/// Whether a request's body has failed so far. That is the client's fault, and hyper's error does
/// not tell the cause.
#[derive(Default)]
pub(super) struct BodyFailure {
    /// Present once the body failed: whether it arrived too slowly.
    is_late: Cell<Option<bool>>,
}

impl BodyFailure {
    /// Records the failure of this request's body.
    pub(super) fn watch(self: &Rc<Self>, request: Request<Body>) -> Request<Body> {
        if BodySource::is_end_stream(request.body()) {
            return request;
        }
        request.map(|body| Body::stream(WatchedBody { body, failure: self.clone() }))
    }

    /// Present once the body failed: whether it arrived too slowly.
    pub(super) fn is_late(&self) -> Option<bool> {
        self.is_late.get()
    }
}

struct WatchedBody {
    body: Body,
    failure: Rc<BodyFailure>,
}

impl BodySource for WatchedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let frame = self.body.poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &frame {
            self.failure.is_late.set(Some(error.is_late()));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        BodySource::is_end_stream(&self.body)
    }

    fn exact_length(&self) -> Option<u64> {
        self.body.exact_length()
    }
}

/// Holds a request's body back until the origin sends 100 (Continue), or `after` has passed
/// (RFC 9110 §10.1.1). HTTP/1.1 only.
///
/// The listener sends its own 100 when the client's body is first polled. So the client, too,
/// waits for the origin's decision, and a 417 reaches it before it has sent any of the body.
pub(super) fn hold_for_continue(request: Request<Body>, after: Duration) -> Request<Body> {
    let permit = Arc::new(Permit::default());
    let given = permit.clone();
    let mut request = request.map(|body| {
        Body::stream(DelayedBody { body, permit, patience: Box::pin(tokio::time::sleep(after)) })
    });
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            given.give();
        }
    });
    request
}

/// Whether a body may be sent. hyper's callback shares it and must be `Sync`.
#[derive(Default)]
struct Permit {
    given: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Permit {
    fn give(&self) {
        self.given.store(true, Ordering::Release);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct DelayedBody {
    body: Body,
    permit: Arc<Permit>,
    patience: Pin<Box<tokio::time::Sleep>>,
}

impl BodySource for DelayedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        if !self.permit.given.load(Ordering::Acquire) {
            if self.patience.as_mut().poll(cx).is_pending() {
                let waker = Some(cx.waker().clone());
                *self.permit.waker.lock().unwrap_or_else(PoisonError::into_inner) = waker;
                return Poll::Pending;
            }
            self.permit.given.store(true, Ordering::Release);
        }
        self.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        BodySource::is_end_stream(&self.body)
    }

    fn exact_length(&self) -> Option<u64> {
        self.body.exact_length()
    }
}
