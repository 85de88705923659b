//! Holding a response back until it is whole, so that another origin can be asked if it breaks off.
//!
//! Only responses whose length is known and small are held (`retry.hold_response`), for a bounded time
//! (`retry.hold_time`), and over all cores a bounded number of bytes (`retry.kept_bytes_max`). Most small
//! responses arrive whole with their head and are never held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;

use super::super::pool::Pool;
use crate::body::{Body, BodySource, PollFrame};
use crate::clock::whole_ms;
use crate::metrics::{Metric, Recorder};

/// Bytes that all cores keep for a pool.
#[derive(Debug, Default)]
pub(in crate::upstream) struct KeptBytes(Arc<AtomicUsize>);

impl KeptBytes {
    /// Room for `bytes`, if `max` is not reached by them.
    pub(in crate::upstream) fn reserve(&self, bytes: usize, max: usize) -> Option<Reserved> {
        let more = |kept: usize| kept.checked_add(bytes).filter(|sum| *sum <= max);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Reserved { kept: self.0.clone(), bytes, max })
    }
}

/// Room for kept bytes, given back when dropped.
pub(in crate::upstream) struct Reserved {
    kept: Arc<AtomicUsize>,
    bytes: usize,
    max: usize,
}

impl Reserved {
    /// Makes room for more bytes. False if there is none.
    pub(in crate::upstream) fn grow(&mut self, bytes: usize) -> bool {
        let more = KeptBytes(self.kept.clone()).reserve(bytes, self.max);
        let Some(mut more) = more else { return false };
        self.bytes += std::mem::take(&mut more.bytes);
        true
    }

    /// Gives all back.
    pub(in crate::upstream) fn clear(&mut self) {
        self.kept.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.kept.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The part of a held response that has arrived.
pub(in crate::upstream) struct HeldContent {
    data: BytesMut,
    trailers: Option<HeaderMap>,
    /// The end of the response has arrived.
    pub(in crate::upstream) is_whole: bool,
    /// The content is held until then, a time of [`super::deadline::Timers::now_ms`].
    until_ms: u64,
    _reserved: Reserved,
}

impl HeldContent {
    /// Holds a response of `length` bytes, if the pool's settings allow it.
    pub(in crate::upstream) fn begin(
        pool: &Pool,
        length: Option<u64>,
        now_ms: u64,
        recorder: &Recorder,
    ) -> Option<Self> {
        let retry = &pool.settings().retry;
        let length = length.filter(|length| (1..=retry.hold_response).contains(length))?;
        let length = usize::try_from(length).ok()?;
        let Some(reserved) = pool.kept.reserve(length, retry.kept_bytes_max) else {
            recorder.count_labelled(Metric::UpstreamUnheld, UNHELD_BYTES);
            return None;
        };
        let data = BytesMut::with_capacity(length);
        let until_ms = now_ms.saturating_add(whole_ms(retry.hold_time));
        Some(Self { data, trailers: None, is_whole: false, until_ms, _reserved: reserved })
    }

    pub(in crate::upstream) fn add(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => self.data.extend_from_slice(&data),
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
    }

    /// When it is held no longer, a time of [`super::deadline::Timers::now_ms`]. `None`: nothing has arrived yet.
    pub(in crate::upstream) fn end_ms(&self) -> Option<u64> {
        (!self.data.is_empty()).then_some(self.until_ms)
    }

    /// The content that has arrived, to be passed on before the rest.
    pub(in crate::upstream) fn into_part(self) -> Bytes {
        self.data.freeze()
    }

    /// The body that is passed on.
    pub(in crate::upstream) fn into_body(self) -> Body {
        let data = self.data.freeze();
        match self.trailers {
            None => data.into(),
            Some(trailers) => {
                Body::stream(WholeBody { data: Some(data), trailers: Some(trailers) })
            }
        }
    }
}

/// Labels of [`Metric::UpstreamUnheld`].
const UNHELD_BYTES: usize = 0;
pub(in crate::upstream) const UNHELD_TIME: usize = 1;

/// A whole body with trailers.
struct WholeBody {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl BodySource for WholeBody {
    fn poll_frame(&mut self, _: &mut std::task::Context<'_>) -> PollFrame {
        let data = self.data.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn exact_length(&self) -> Option<u64> {
        Some(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_bytes_stop_at_their_limit_and_are_given_back() {
        let kept = KeptBytes::default();
        let first = kept.reserve(60, 100);
        assert!(first.is_some() && kept.reserve(41, 100).is_none());
        let second = kept.reserve(40, 100);
        assert!(second.is_some());
        drop(first);
        assert!(kept.reserve(60, 100).is_some());
    }
}
