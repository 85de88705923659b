//! Reading a stored body.
//!
//! What is in memory comes out at once, without a copy, and so does what the page cache has, with
//! one. What must be waited for is read a slice at a time with the next one on its way. A slice that is missing or has not the length it must
//! have ends the body with an error, so that nobody takes a part for the whole.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use tokio::task::JoinHandle;

use super::Store;
use super::record::Head;
use crate::body::{BodyError, BodySource, PollFrame};
use crate::metrics::Metric;

/// The bytes of one range of one stored response.
pub(crate) struct StoredBody {
    store: Store,
    head: Arc<Head>,
    /// What is still to come out.
    rest: Range<u64>,
    /// The slice at `rest.start`, when it was asked for ahead.
    next: Option<Slice>,
    /// The last slice had to be waited for: the next one is asked for ahead.
    is_cold: bool,
}

enum Slice {
    Ready(Bytes),
    Reading(JoinHandle<Option<Bytes>>),
}

impl StoredBody {
    pub(super) fn new(store: Store, head: Arc<Head>, range: Range<u64>) -> Self {
        let end = range.end.min(head.complete_length());
        Self { store, head, rest: range.start.min(end)..end, next: None, is_cold: false }
    }

    /// Asks for the slice at `rest.start`.
    fn ask(&self) -> Option<Slice> {
        let number = self.head.slices(self.rest.clone()).next()?;
        Some(match self.store.slice_now(&self.head, number) {
            Some(bytes) => Slice::Ready(bytes),
            None => Slice::Reading(self.store.read_slice(&self.head, number)),
        })
    }

    /// Cuts what is wanted out of the slice at `rest.start`.
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
        self.store.recorder().count(Metric::StoreSlicesMissing);
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
            self.next = self.ask();
        }
        self.is_cold = matches!(self.next, Some(Slice::Reading(_)));
        let slice = match self.next.as_mut() {
            Some(Slice::Ready(bytes)) => Some(bytes.clone()),
            Some(Slice::Reading(reading)) => ready!(Pin::new(reading).poll(cx)).ok().flatten(),
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
            self.next = self.ask();
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
