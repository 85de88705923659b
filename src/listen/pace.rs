//! The least pace of a body.
//!
//! Only time in which we waited for the client counts: an origin that reads slowly is not
//! its fault. While bytes flow no timer is armed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::{BodyError, BodySource, PollFrame};
use crate::metrics::{Metric, Recorder};

use super::settings::Limits;

/// Measures how long a client kept us waiting, and for how many bytes.
#[derive(Debug)]
pub(super) struct Pace {
    rules: Rules,
    bytes: u64,
    waited: Duration,
    wait: Option<Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Rules {
    idle: Duration,
    rate_min: u64,
    grace: Duration,
}

#[derive(Debug)]
struct Wait {
    since: Instant,
    end: Pin<Box<Sleep>>,
}

impl Pace {
    pub(super) fn new(limits: &Limits) -> Self {
        let rules = Rules {
            idle: limits.body_idle_timeout,
            rate_min: limits.body_rate_min,
            grace: limits.body_rate_grace,
        };
        Self { rules, bytes: 0, waited: Duration::ZERO, wait: None }
    }

    /// The client moved so many bytes.
    pub(super) fn moved(&mut self, bytes: usize) {
        if let Some(wait) = self.wait.take() {
            self.waited += wait.since.elapsed();
        }
        self.bytes += bytes as u64;
    }

    /// We wait for the client. Ready when it has kept us waiting for too long.
    pub(super) fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wait = self.wait.get_or_insert_with(|| {
            let since = Instant::now();
            let patience = self.rules.patience(self.bytes, self.waited);
            Wait { since, end: Box::pin(sleep_until(since + patience)) }
        });
        wait.end.as_mut().poll(cx)
    }
}

impl Rules {
    /// How much longer the client may keep us waiting, after so many bytes in so much time.
    fn patience(self, bytes: u64, waited: Duration) -> Duration {
        if self.rate_min == 0 {
            return self.idle;
        }
        let earned = Duration::from_secs_f64(bytes as f64 / self.rate_min as f64);
        self.idle.min((self.grace + earned).saturating_sub(waited))
    }
}

/// A request body that fails when its client is slower than the least pace.
///
/// It ends with its last data: trailers are dropped (RFC 9110 §6.5.1 allows it). They come
/// after the gate has looked at the fields, and origins that merge them into those would
/// believe a stranger's `X-Forwarded-For` or `Authorization`.
pub(super) struct Paced<B> {
    body: B,
    /// `None` where the client may be silent for as long as it likes.
    pace: Option<Pace>,
    recorder: Recorder,
}

impl<B> Paced<B> {
    pub(super) fn new(body: B, limits: &Limits, recorder: Recorder) -> Self {
        Self { body, pace: Some(Pace::new(limits)), recorder }
    }

    /// A body of messages that come when there is something to say, as those of a gRPC call.
    /// The exchange with the origin has its own limit on silence.
    pub(super) fn unhurried(body: B, recorder: Recorder) -> Self {
        Self { body, pace: None, recorder }
    }
}

impl<B: BodySource> BodySource for Paced<B> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let Poll::Ready(frame) = self.body.poll_frame(cx) else {
            let Some(pace) = &mut self.pace else { return Poll::Pending };
            return pace.poll_overdue(cx).map(|()| {
                self.recorder.count(Metric::RequestBodiesTimedOut);
                Some(Err(BodyError::late("the client sent the request body too slowly")))
            });
        };
        let bytes = match &frame {
            Some(Ok(frame)) if frame.is_trailers() => return Poll::Ready(None),
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if let Some(pace) = &mut self.pace {
            pace.moved(bytes);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_the_grace_and_what_the_bytes_have_earned() {
        let secs = Duration::from_secs;
        let rules = Rules { idle: secs(30), rate_min: 100, grace: secs(20) };
        assert_eq!(rules.patience(0, secs(0)), secs(20));
        assert_eq!(rules.patience(500, secs(10)), secs(15));
        assert_eq!(rules.patience(1_000_000, secs(10)), secs(30));
        assert_eq!(rules.patience(0, secs(25)), secs(0));
        assert_eq!(Rules { rate_min: 0, ..rules }.patience(0, secs(99)), secs(30));
    }
}
