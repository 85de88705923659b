//! Wrappers of request bodies on HTTP/1.1 and HTTP/2: one records what the client has done, one holds
//! the body back until the origin asks for it with 100 (Continue).

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Request;

use crate::body::{Body, BodyError, BodyFault, BodySource, PollFrame};

/// The progress of a request's body on its way from the client. The client may stall or fail while the origin
/// waits for the rest: that is not the origin's fault, and hyper's error does not tell the cause.
#[derive(Default)]
pub(in crate::upstream) struct ClientUpload {
    failure: RefCell<Option<(BodyFault, Box<str>)>>,
    awaits_client: Cell<bool>,
}

impl ClientUpload {
    /// Watches the body of a request.
    pub(in crate::upstream) fn watch(self: &Rc<Self>, body: Body) -> Body {
        Body::stream(WatchedBody { body, upload: self.clone() })
    }

    /// Why the body failed, if it did.
    pub(in crate::upstream) fn failure(&self) -> Option<BodyError> {
        let failure = self.failure.borrow();
        failure.as_ref().map(|(fault, reason)| BodyError::of(*fault, reason.clone()))
    }

    /// Whether the origin has been sent all that the client has sent so far, and the client has
    /// more to send.
    pub(in crate::upstream) fn awaits_client(&self) -> bool {
        self.awaits_client.get()
    }
}

struct WatchedBody {
    body: Body,
    upload: Rc<ClientUpload>,
}

impl BodySource for WatchedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let frame = self.body.poll_frame(cx);
        self.upload.awaits_client.set(frame.is_pending());
        if let Poll::Ready(Some(Err(error))) = &frame {
            *self.upload.failure.borrow_mut() = Some((error.fault(), error.to_string().into()));
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

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.upload.awaits_client.set(false);
    }
}

/// Holds a request's body back until its [`HeldUpload::permit`] is called for a 100 (Continue) of the origin, or `after`
/// has passed (RFC 9110 §10.1.1). HTTP/1.1 only.
///
/// The listener sends its own 100 when the client's body is first polled. So the client, too,
/// waits for the origin's decision, and a 417 reaches it before it has sent any of the body.
pub(in crate::upstream) fn hold_for_continue(
    request: &mut Request<Body>,
    after: Duration,
) -> HeldUpload {
    let permit = Arc::new(Permit::default());
    let body = std::mem::take(request.body_mut());
    let patience = Box::pin(tokio::time::sleep(after));
    *request.body_mut() = Body::stream(DelayedBody { body, permit: permit.clone(), patience });
    HeldUpload(permit)
}

/// A request's body that is held back. hyper's callback shares it and must be `Sync`.
pub(in crate::upstream) struct HeldUpload(Arc<Permit>);

impl HeldUpload {
    /// Lets the body be sent.
    pub(in crate::upstream) fn permit(&self) {
        self.0.given.store(true, Ordering::Release);
        let waker = self.0.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Whether a body may be sent.
#[derive(Default)]
struct Permit {
    given: AtomicBool,
    waker: Mutex<Option<Waker>>,
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
