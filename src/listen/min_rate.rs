//! The minimum rate of request and response bodies.
//!
//! Only the time in which the node waits for the client counts: a request body that the origin reads
//! slowly is not the client's fault. No timer is armed while bytes flow.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::{BodyError, BodyFault, BodySource, PollFrame};
use crate::metrics::{Metric, Recorder};

use super::settings::Limits;

/// Measures for how long the node has waited for a client, and for how many bytes.
#[derive(Debug)]
pub(super) struct MinRate {
    rules: Rules,
    bytes: u64,
    waited: Duration,
    wait: Option<Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Rules {
    idle_timeout: Duration,
    rate_min: u64,
    grace: Duration,
}

#[derive(Debug)]
struct Wait {
    since: Instant,
    end: Pin<Box<Sleep>>,
}

impl MinRate {
    pub(super) fn new(limits: &Limits) -> Self {
        let rules = Rules {
            idle_timeout: limits.body_idle_timeout,
            rate_min: limits.body_rate_min,
            grace: limits.body_rate_grace,
        };
        Self { rules, bytes: 0, waited: Duration::ZERO, wait: None }
    }

    /// Adds bytes that the client has sent or taken, and ends the wait for it.
    pub(super) fn add(&mut self, bytes: usize) {
        if let Some(wait) = self.wait.take() {
            self.waited += wait.since.elapsed();
        }
        self.bytes += bytes as u64;
    }

    /// Waits for the client. Ready when it is too slow.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wait = self.wait.get_or_insert_with(|| {
            let since = Instant::now();
            let time_left = self.rules.time_left(self.bytes, self.waited);
            Wait { since, end: Box::pin(sleep_until(since + time_left)) }
        });
        wait.end.as_mut().poll(cx)
    }
}

impl Rules {
    /// For how much longer the node waits for a client that has moved `bytes` in `waited`.
    fn time_left(self, bytes: u64, waited: Duration) -> Duration {
        if self.rate_min == 0 {
            return self.idle_timeout;
        }
        let earned = Duration::from_secs_f64(bytes as f64 / self.rate_min as f64);
        self.idle_timeout.min((self.grace + earned).saturating_sub(waited))
    }
}

/// A request body that fails when its client is slower than the minimum rate.
///
/// Trailers are dropped, which RFC 9110 §6.5.1 allows. They arrive after the fields were checked, and an
/// origin that merges them into the fields would trust an `X-Forwarded-For` or `Authorization` from the client.
pub(super) struct MinRateBody<B> {
    body: B,
    /// `None`: the client may pause for any time.
    rate: Option<MinRate>,
    recorder: Recorder,
}

impl<B> MinRateBody<B> {
    pub(super) fn new(body: B, limits: &Limits, recorder: Recorder) -> Self {
        Self { body, rate: Some(MinRate::new(limits)), recorder }
    }

    /// A body without a minimum rate, but also without trailers.
    pub(super) fn unlimited(body: B, recorder: Recorder) -> Self {
        Self { body, rate: None, recorder }
    }
}

impl<B: BodySource> BodySource for MinRateBody<B> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let Poll::Ready(frame) = self.body.poll_frame(cx) else {
            let Some(rate) = &mut self.rate else { return Poll::Pending };
            return rate.poll_too_slow(cx).map(|()| {
                self.recorder.count(Metric::RequestBodiesTimedOut);
                Some(Err(BodyError::of(
                    BodyFault::Late,
                    "the client sent the request body too slowly",
                )))
            });
        };
        let bytes = match &frame {
            Some(Ok(frame)) if frame.is_trailers() => return Poll::Ready(None),
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if let Some(rate) = &mut self.rate {
            rate.add(bytes);
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
        let rules = Rules { idle_timeout: secs(30), rate_min: 100, grace: secs(20) };
        assert_eq!(rules.time_left(0, secs(0)), secs(20));
        assert_eq!(rules.time_left(500, secs(10)), secs(15));
        assert_eq!(rules.time_left(1_000_000, secs(10)), secs(30));
        assert_eq!(rules.time_left(0, secs(25)), secs(0));
        assert_eq!(Rules { rate_min: 0, ..rules }.time_left(0, secs(99)), secs(30));
    }
}
