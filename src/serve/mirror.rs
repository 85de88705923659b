//! Mirrors a share of the forwarded requests to another pool, so that a new version meets real requests
//! before it answers any.
//!
//! A copy is sent by a task of its own: the client never waits for it, and its response is read to the end and
//! dropped. A copy with content is sent when the client has sent all of it; the content is kept in memory until
//! then, up to a limit. The number of copies in flight is bounded over all workers.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::BodyExt;
use tokio::task::spawn_local;

use super::Visit;
use super::worker::Worker;
use crate::body::{Body, BodySource, PollFrame};
use crate::metrics::Metric;
use crate::route::{MirrorOutcome, MirrorPlace, RuleMirror};
use crate::upstream::{Affinity, Intent, Pool, Upstream};

impl Visit {
    /// Mirrors the request, if the rule says so and the lot falls on it. Returns its body, which is
    /// copied as it is read if it streams.
    pub(super) fn mirror(&self, body: Body) -> Body {
        match self.rule.mirror() {
            Some(mirror) if self.is_mirrored(mirror) => self.mirror_to(mirror, body),
            _ => body,
        }
    }

    fn is_mirrored(&self, mirror: &RuleMirror) -> bool {
        // Another number than that of the visitor's group, so that all groups are mirrored.
        let lot = Affinity::hash_of(&(!self.context.id.0).to_le_bytes());
        lot % 100 < u64::from(mirror.settings.percent)
    }

    fn mirror_to(&self, mirror: &RuleMirror, mut body: Body) -> Body {
        let recorder = &self.worker.recorder;
        let refuse = |outcome: MirrorOutcome| {
            recorder.count_labelled(Metric::MirroredRequests, outcome.index());
        };
        let bytes_max = mirror.settings.body_bytes_max;
        if body.exact_length().is_some_and(|length| length > bytes_max as u64) {
            refuse(MirrorOutcome::TooLong);
            return body;
        }
        let Some(place) = mirror.enter() else {
            refuse(MirrorOutcome::Limit);
            return body;
        };
        let copy = MirrorCopy {
            worker: self.worker.clone(),
            pool: mirror.pool.clone(),
            request: self.upstream_request(None),
            place,
        };
        match &mut body {
            Body::Empty => copy.send(Body::Empty),
            Body::Full(bytes) => copy.send(bytes.clone().unwrap_or_default().into()),
            Body::Incoming(_) | Body::Stream(_) => {
                let copied = BytesMut::new();
                return Body::stream(CopiedBody { body, copied, bytes_max, copy: Some(copy) });
            }
        }
        body
    }
}

/// A copy of a request that is about to be sent.
struct MirrorCopy {
    worker: Rc<Worker>,
    pool: Arc<Pool>,
    request: Request<()>,
    /// Held until the copy has its response.
    place: MirrorPlace,
}

impl MirrorCopy {
    /// Sends the copy by a task of its own.
    fn send(self, body: Body) {
        spawn_local(async move {
            let Self { worker, pool, request, place } = self;
            let exchange = exchange(&worker, pool, &request, body);
            let answered = tokio::time::timeout(DURATION_MAX, exchange).await;
            let outcome = match answered {
                Ok(true) => MirrorOutcome::Answered,
                Ok(false) | Err(_) => MirrorOutcome::Failed,
            };
            worker.recorder.count_labelled(Metric::MirroredRequests, outcome.index());
            drop(place);
        });
    }

    fn give_up(self, outcome: MirrorOutcome) {
        self.worker.recorder.count_labelled(Metric::MirroredRequests, outcome.index());
    }
}

/// Sends a copy and reads its response to the end. Whether that was possible.
async fn exchange(worker: &Worker, pool: Arc<Pool>, request: &Request<()>, body: Body) -> bool {
    let intent = Intent { is_idempotent: request.method().is_idempotent(), ..Intent::default() };
    let upstream = Upstream::Pool(pool);
    let sent = worker.upstreams.send(&upstream, || request.clone(), body, &intent).await;
    let Ok(response) = sent else { return false };
    let mut content = response.response.into_body();
    while let Some(frame) = content.frame().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}

/// A request body that is copied while the origin's connection reads it.
struct CopiedBody {
    body: Body,
    copied: BytesMut,
    bytes_max: usize,
    /// `None` once the copy was sent or given up.
    copy: Option<MirrorCopy>,
}

impl CopiedBody {
    fn take(&mut self, data: &Bytes) {
        if self.copied.len() + data.len() <= self.bytes_max {
            self.copied.extend_from_slice(data);
        } else if let Some(copy) = self.copy.take() {
            self.copied = BytesMut::new();
            copy.give_up(MirrorOutcome::TooLong);
        }
    }

    fn send(&mut self) {
        if let Some(copy) = self.copy.take() {
            copy.send(std::mem::take(&mut self.copied).freeze().into());
        }
    }
}

impl BodySource for CopiedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let frame = ready!(self.body.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref()
                    && self.copy.is_some()
                {
                    self.take(data);
                }
                if self.body.is_end_stream() {
                    self.send();
                }
            }
            None => self.send(),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn exact_length(&self) -> Option<u64> {
        self.body.exact_length()
    }
}

impl Drop for CopiedBody {
    fn drop(&mut self) {
        if let Some(copy) = self.copy.take() {
            copy.give_up(MirrorOutcome::Incomplete);
        }
    }
}

/// A copy that takes longer is given up.
const DURATION_MAX: Duration = Duration::from_secs(60);
