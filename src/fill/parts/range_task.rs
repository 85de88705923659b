//! The task behind a reader of a partial object: sends stored slices, fetches the missing ones.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::super::collapse::{FillFailure, FillOutcome, Join, Lead};
use super::super::slice_buffer::SliceBuffer;
use super::super::slices::RangeStep;
use super::{PartError, PartResponse, Parts, ROUNDS_MAX};
use crate::body::{Body, BodyError};

/// The task behind a reader.
pub(super) struct RangeTask {
    pub parts: Parts,
    /// The bytes that the reader does not have yet.
    pub rest: Range<u64>,
    pub sender: mpsc::Sender<Result<Bytes, BodyError>>,
}

/// Why the task ends before the end of the range.
enum Stop {
    /// The reader was dropped.
    ReaderGone,
    /// The object changed at the origin.
    Changed,
    Broken(Arc<BodyError>),
}

impl From<BodyError> for Stop {
    fn from(error: BodyError) -> Self {
        Self::Broken(Arc::new(error))
    }
}

impl RangeTask {
    /// Sends the range to the reader, or an error that ends it.
    pub(super) async fn run(mut self, first: Option<PartResponse>) {
        let Err(stop) = self.send_all(first).await else { return };
        let at = self.rest.start;
        let error = match stop {
            Stop::ReaderGone => return,
            Stop::Changed => {
                BodyError::new(format!("the object changed at the origin before byte {at}"))
            }
            Stop::Broken(why) => BodyError::caused_by(format!("cut off before byte {at}"), why),
        };
        // A reader that is gone needs no error.
        let _ = self.sender.send(Err(error)).await;
    }

    /// A task that only stores a part.
    pub(super) fn without_reader(parts: Parts) -> Self {
        Self { parts, rest: 0..0, sender: mpsc::channel(1).0 }
    }

    /// Stores a part of the object.
    pub(super) async fn store_part(mut self, PartResponse { bytes, body, claim }: PartResponse) {
        let pace = Pace::StoreOnly { until: bytes.end };
        let received = self.receive_part(bytes, body, pace).await;
        conclude(claim, &received);
    }

    async fn send_all(&mut self, first: Option<PartResponse>) -> Result<(), Stop> {
        if let Some(PartResponse { bytes, body, claim }) = first {
            let received = self.receive_part(bytes, body, Pace::InStep).await;
            conclude(claim, &received);
            received?;
        }
        let (mut followed, mut rounds) = (None, 0);
        loop {
            match self.parts.step(&self.rest) {
                RangeStep::Done => return Ok(()),
                RangeStep::Stored(range) => self.send_stored(range).await?,
                RangeStep::Fetch(range) => {
                    // After several rounds in which other requests did not deliver these bytes,
                    // fetch them without following.
                    rounds = if followed == Some(range.start) { rounds + 1 } else { 0 };
                    followed = Some(range.start);
                    match rounds < ROUNDS_MAX {
                        true => self.fetch_or_follow(range).await?,
                        false => self.fetch(range).await?,
                    }
                }
            }
        }
    }

    /// Sends stored slices, up to one that turns out to be gone: that is fetched.
    async fn send_stored(&mut self, range: Range<u64>) -> Result<(), Stop> {
        for number in self.parts.head.slices(range) {
            let whole = self.parts.head.slice_range(number);
            let slice = self.parts.store.slice(&self.parts.head, number).await;
            match slice.filter(|slice| slice.len() as u64 == whole.end - whole.start) {
                Some(slice) => self.send(whole.start, slice).await?,
                // In the index, but not readable. A slow reader does not have all of it now, and must not get
                // the next slice before the rest.
                None => return self.fetch(whole).await,
            }
        }
        Ok(())
    }

    async fn fetch_or_follow(&mut self, range: Range<u64>) -> Result<(), Stop> {
        match self.parts.join(range.start) {
            Join::Lead(lead) => {
                let received = self.fetch(range).await;
                conclude(Some(lead), &received);
                received
            }
            Join::Follow(follower) => match follower.outcome().await {
                FillOutcome::Failed(
                    failure @ (FillFailure::Upstream(_) | FillFailure::Status(_)),
                ) => {
                    Err(BodyError::caused_by("the collapsed range request failed", failure).into())
                }
                FillOutcome::Failed(FillFailure::Changed) => Err(Stop::Changed),
                FillOutcome::Failed(FillFailure::Abandoned)
                | FillOutcome::Stored
                | FillOutcome::AtPeer
                | FillOutcome::Released
                | FillOutcome::Filling(_) => Ok(()),
            },
            Join::Uncollapsed(_) => self.fetch(range).await,
        }
    }

    async fn fetch(&mut self, range: Range<u64>) -> Result<(), Stop> {
        let start = range.start;
        match self.parts.fetch(range).await {
            Ok((bytes, body)) => self.receive_part(bytes, body, Pace::InStep).await,
            Err(PartError::Changed) => Err(Stop::Changed),
            Err(PartError::Declined(why)) => Err(Stop::Broken(why)),
            Err(PartError::Failed(failure)) => {
                let why = format!("no answer from upstream for bytes from {start}");
                Err(BodyError::caused_by(why, failure).into())
            }
        }
    }

    /// Sends the bytes of a part that the reader wants as they arrive, and stores its complete
    /// slices. The current slice is completed even after the reader has all bytes or is gone. A slow
    /// reader is not waited for: the rest, at most one request's worth, is only stored.
    async fn receive_part(
        &mut self,
        bytes: Range<u64>,
        mut body: Body,
        mut pace: Pace,
    ) -> Result<(), Stop> {
        let before = self.rest.start;
        let mut slice = SliceBuffer::new(bytes.start);
        let mut at = bytes.start;
        while at < bytes.end && !(self.has_enough(&pace, at) && slice.is_empty()) {
            let Some(frame) = body.frame().await else {
                return Err(BodyError::new(format!(
                    "the response to a range request ended early at byte {at}"
                ))
                .into());
            };
            let frame = frame.map_err(|error| {
                BodyError::caused_by(
                    format!("the response to a range request ended early at byte {at}"),
                    error,
                )
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if data.len() as u64 > bytes.end - at {
                return Err(BodyError::new(
                    "the response to a range request is longer than its Content-Range",
                )
                .into());
            }
            if matches!(pace, Pace::InStep) {
                pace = self.send_in_time(at, data.clone()).await;
            }
            at += data.len() as u64;
            self.store_slices(&mut slice, data).await;
        }
        match pace {
            Pace::ReaderGone => return Err(Stop::ReaderGone),
            Pace::StoreOnly { .. } => return Ok(()),
            Pace::InStep => {}
        }
        if self.rest.start == before && !self.rest.is_empty() {
            return Err(BodyError::new(
                "the response to a range request has none of the requested bytes",
            )
            .into());
        }
        Ok(())
    }

    fn has_enough(&self, pace: &Pace, at: u64) -> bool {
        match pace {
            Pace::InStep => self.rest.is_empty(),
            Pace::ReaderGone => true,
            Pace::StoreOnly { until } => at >= *until,
        }
    }

    /// Sends bytes to the reader, and waits for it for at most [`PATIENCE`], because other requests
    /// may wait for the same part.
    async fn send_in_time(&mut self, offset: u64, bytes: Bytes) -> Pace {
        let start = self.rest.start;
        match tokio::time::timeout(PATIENCE, self.send(offset, bytes)).await {
            Ok(Ok(())) => Pace::InStep,
            Ok(Err(_)) => Pace::ReaderGone,
            Err(_) => {
                // Not sent: the reader gets these bytes from the store.
                self.rest.start = start;
                let slice_bytes = u64::from(self.parts.head.slice_bytes);
                Pace::StoreOnly { until: offset + self.parts.fills.request_bytes_max(slice_bytes) }
            }
        }
    }

    async fn store_slices(&mut self, buffer: &mut SliceBuffer, mut data: Bytes) {
        while !data.is_empty() {
            let Parts { store, head, .. } = &self.parts;
            let Some(slice) = buffer.fill(&mut data, head) else { continue };
            let range = head.slice_range(slice.number);
            // A failure does not affect the client; the store has counted it.
            if store.put_slice(head, slice.number, slice.bytes).await.is_ok() {
                self.parts.head = store.add_part(head, range);
            }
        }
    }

    /// Sends the wanted ones of bytes that begin at `offset`.
    async fn send(&mut self, offset: u64, mut bytes: Bytes) -> Result<(), Stop> {
        let end = offset + bytes.len() as u64;
        if end <= self.rest.start || offset >= self.rest.end {
            return Ok(());
        }
        bytes.truncate((self.rest.end.min(end) - offset) as usize);
        let bytes = bytes.split_off((self.rest.start - offset) as usize);
        self.rest.start += bytes.len() as u64;
        self.sender.send(Ok(bytes)).await.map_err(|_| Stop::ReaderGone)
    }
}

/// How the reader keeps up with the part that is being received.
enum Pace {
    /// The reader gets the bytes as they arrive.
    InStep,
    /// The reader gets no more bytes of this part, which is stored up to this offset.
    StoreOnly {
        until: u64,
    },
    ReaderGone,
}

/// Gives the result to the requests that wait for the same slices.
fn conclude(claim: Option<Lead>, received: &Result<(), Stop>) {
    match (claim, received) {
        (Some(lead), Err(Stop::Broken(why))) => lead.fail(FillFailure::Upstream(why.clone())),
        (Some(lead), Err(Stop::Changed)) => lead.fail(FillFailure::Changed),
        (Some(lead), Ok(()) | Err(Stop::ReaderGone)) => lead.stored(),
        (None, _) => {}
    }
}

/// How long a reader may delay a part that other requests may wait for.
const PATIENCE: Duration = Duration::from_secs(1);
