//! A request's body that is recorded while it is sent, so that it can be sent again.
//!
//! Nothing is read ahead: the first try streams as it does without a recording. Another try begins
//! with the record and goes on with what the client sends. A body above `retry.keep_request_body` is
//! forgotten and streams on.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::Frame;

use super::super::exchange::hold::Reserved;
use crate::body::{Body, BodyError, BodySource, PollFrame};

/// The record of a body; clones share it.
#[derive(Clone)]
pub(in crate::upstream) struct Recording(Rc<RefCell<Record>>);

struct Record {
    /// The client's body.
    source: Body,
    pieces: Vec<Bytes>,
    /// Pieces read so far, also forgotten ones.
    read: usize,
    bytes: usize,
    bytes_max: usize,
    reserved: Reserved,
    /// Nothing is left to be read.
    has_ended: bool,
    /// The pieces do not begin with the first one any more, or do not say all.
    is_incomplete: bool,
    /// Readers that wait for the next piece. The source knows only the last of them.
    waiting: Vec<Waker>,
}

impl Recording {
    /// Records up to `bytes_max` bytes of `source`, as far as there is room.
    pub(super) fn new(source: Body, bytes_max: usize, reserved: Reserved) -> Self {
        Self(Rc::new(RefCell::new(Record {
            has_ended: source.is_end_stream(),
            source,
            pieces: Vec::new(),
            read: 0,
            bytes: 0,
            bytes_max,
            reserved,
            is_incomplete: false,
            waiting: Vec::new(),
        })))
    }

    /// The body from its beginning; `None` if it was forgotten.
    pub(super) fn body(&self) -> Option<Body> {
        let is_whole = !self.0.borrow().is_incomplete;
        is_whole.then(|| Body::stream(RecordedBody { record: self.0.clone(), at: 0 }))
    }
}

impl Record {
    /// Keeps a piece, or forgets all if it is too much.
    fn keep(&mut self, piece: &Bytes) {
        self.read += 1;
        let bytes = self.bytes + piece.len();
        if self.is_incomplete || bytes > self.bytes_max || !self.reserved.grow(piece.len()) {
            self.forget();
            return;
        }
        self.bytes = bytes;
        self.pieces.push(piece.clone());
    }

    fn forget(&mut self) {
        self.is_incomplete = true;
        self.pieces = Vec::new();
        self.reserved.clear();
    }

    /// The next frame of the source, for a reader that has read all before it.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let Poll::Ready(frame) = self.source.poll_frame(cx) else {
            self.waiting.push(cx.waker().clone());
            return Poll::Pending;
        };
        match &frame {
            Some(Ok(frame)) => match frame.data_ref() {
                Some(piece) => self.keep(piece),
                None => self.forget(),
            },
            Some(Err(_)) => self.forget(),
            None => {}
        }
        self.has_ended = frame.is_none() || self.source.is_end_stream();
        self.waiting.drain(..).for_each(Waker::wake);
        Poll::Ready(frame)
    }
}

/// One reader of a recorded body.
struct RecordedBody {
    record: Rc<RefCell<Record>>,
    /// Pieces read.
    at: usize,
}

impl BodySource for RecordedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let mut record = self.record.borrow_mut();
        if let Some(piece) = record.pieces.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if self.at < record.read {
            let why = "the request's body is too large to be kept (retry.keep_request_body)";
            return Poll::Ready(Some(Err(BodyError::new(why))));
        }
        if record.has_ended {
            return Poll::Ready(None);
        }
        let frame = ready!(record.poll_source(cx));
        self.at = record.read;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let record = self.record.borrow();
        record.has_ended && self.at == record.read
    }

    fn exact_length(&self) -> Option<u64> {
        let record = self.record.borrow();
        let rest = if record.has_ended { 0 } else { record.source.exact_length()? };
        let unread = record.pieces.get(self.at..).unwrap_or_default();
        Some(rest + unread.iter().map(|piece| piece.len() as u64).sum::<u64>())
    }
}

impl Drop for RecordedBody {
    /// The source may know only this reader: the others look for themselves.
    fn drop(&mut self) {
        self.record.borrow_mut().waiting.drain(..).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{next_frame, pieces};
    use crate::upstream::exchange::hold::KeptBytes;

    fn recording(bytes_max: usize) -> Recording {
        let source = pieces(["ab", "cd", "ef"].map(|piece| Bytes::from_static(piece.as_bytes())));
        let reserved = KeptBytes::default().reserve(0, 5).expect("room");
        Recording::new(source, bytes_max, reserved)
    }

    async fn next(body: &mut Body) -> Option<Bytes> {
        let frame = next_frame(body).await?.expect("a frame");
        Some(frame.into_data().expect("data"))
    }

    #[tokio::test]
    async fn another_try_reads_the_record_and_then_the_rest() {
        let recording = {
            let source = pieces(["ab", "cd"].map(|piece| Bytes::from_static(piece.as_bytes())));
            let reserved = KeptBytes::default().reserve(0, 5).expect("room");
            Recording::new(source, 4, reserved)
        };
        let mut first = recording.body().expect("nothing is forgotten");
        assert_eq!(next(&mut first).await.as_deref(), Some(&b"ab"[..]));
        let mut second = recording.body().expect("nothing is forgotten");
        assert_eq!(second.exact_length(), Some(4));
        for expected in ["ab", "cd"] {
            assert_eq!(next(&mut second).await.expect("a piece"), expected);
        }
        assert!(second.is_end_stream() && !first.is_end_stream());
        assert_eq!(next(&mut first).await.expect("a piece"), "cd");
        assert_eq!(next(&mut first).await, None);
    }

    #[tokio::test]
    async fn a_body_above_a_limit_is_forgotten_and_streams_on() {
        // Its own limit, and that of the pool.
        for bytes_max in [3, 100] {
            let recording = recording(bytes_max);
            let mut first = recording.body().expect("nothing is forgotten");
            let mut late = recording.body().expect("nothing is forgotten");
            for expected in ["ab", "cd", "ef"] {
                assert_eq!(next(&mut first).await.expect("a piece"), expected);
            }
            assert_eq!(next(&mut first).await, None);
            assert!(recording.body().is_none(), "{bytes_max}");
            assert!(next_frame(&mut late).await.expect("a frame").is_err());
        }
    }
}
