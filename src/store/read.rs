//! Reading a stored body.
//!
//! Slices in memory are returned at once, without a copy; slices in the page cache too, with one
//! copy. Slices on disk are read one at a time, the next one ahead. A slice that is missing or has
//! the wrong length ends the body with an error, so that a part is not taken for the complete body.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use tokio::task::JoinHandle;

use super::record::StoredHead;
use super::tiers::Tiers;
use crate::body::{BodyError, BodySource, PollFrame};
use crate::metrics::Metric;

/// The bytes of one range of one stored response.
pub(crate) struct StoredBody {
    tiers: Arc<Tiers>,
    head: Arc<StoredHead>,
    /// The bytes still to be returned.
    rest: Range<u64>,
    /// The slice at `rest.start`, if it was requested ahead.
    next: Option<NextSlice>,
    /// Whether the last slice was read from disk: then the next one is requested ahead.
    is_cold: bool,
}

enum NextSlice {
    Ready(Bytes),
    Reading(JoinHandle<Option<Bytes>>),
}

impl StoredBody {
    pub(super) fn new(tiers: Arc<Tiers>, head: Arc<StoredHead>, range: Range<u64>) -> Self {
        let end = range.end.min(head.complete_length());
        Self { tiers, head, rest: range.start.min(end)..end, next: None, is_cold: false }
    }

    /// Requests the slice at `rest.start`.
    fn request(&self) -> Option<NextSlice> {
        let number = self.head.slices(self.rest.clone()).next()?;
        Some(match self.tiers.slice_now(&self.head, number) {
            Some(bytes) => NextSlice::Ready(bytes),
            None => NextSlice::Reading(self.tiers.read_slice(&self.head, number)),
        })
    }

    /// The wanted bytes of the slice at `rest.start`.
    fn cut(&mut self, slice: &Bytes) -> Bytes {
        let holds = self.head.slice_range(self.current());
        let end = self.rest.end.min(holds.end);
        let within = (self.rest.start - holds.start) as usize..(end - holds.start) as usize;
        self.rest.start = end;
        slice.slice(within)
    }

    fn current(&self) -> u32 {
        self.head.slices(self.rest.clone()).start
    }

    fn fail(&mut self) -> BodyError {
        self.tiers.recorder.count(Metric::StoreSlicesMissing);
        let number = self.current();
        self.rest.start = self.rest.end;
        BodyError::new(format!("slice {number} of the stored body is missing"))
    }
}

impl BodySource for StoredBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if let Some(bytes) = self.head.inline_bytes(self.rest.clone()) {
            self.rest.start = self.rest.end;
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.next.is_none() {
            self.next = self.request();
        }
        self.is_cold = matches!(self.next, Some(NextSlice::Reading(_)));
        let slice = match self.next.as_mut() {
            Some(NextSlice::Ready(bytes)) => Some(bytes.clone()),
            Some(NextSlice::Reading(reading)) => ready!(Pin::new(reading).poll(cx)).ok().flatten(),
            None => None,
        };
        self.next = None;
        let holds = self.head.slice_range(self.current());
        let Some(slice) = slice.filter(|slice| slice.len() as u64 == holds.end - holds.start)
        else {
            return Poll::Ready(Some(Err(self.fail())));
        };
        let bytes = self.cut(&slice);
        if self.is_cold && !self.rest.is_empty() {
            self.next = self.request();
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn exact_length(&self) -> Option<u64> {
        Some(self.rest.end - self.rest.start)
    }
}

impl fmt::Debug for StoredBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredBody({:?} of {:?})", self.rest, self.head.object)
    }
}
