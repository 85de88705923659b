//! A range of an object of which only some slices are stored: stored slices come from the store, the
//! others from upstream, in order.
//!
//! A task on the reader's worker ([`range_task`]) follows the steps that [`slices`](super::slices)
//! plans. It fetches whole slices, sends their bytes to the reader as they arrive, and stores each
//! slice when it is complete. Readers of one object, on any worker, fetch each run of slices once:
//! the others wait and then look into the store again. They do not wait for a slow reader: the rest
//! of its part is stored without it, and it reads the store.
//!
//! ```text
//!        ┌────────────────────────────────────────────────┐
//!  next_step ── Stored ──► slice from the store ─► reader ┤
//!        │                                                │
//!        ├── Fetch ─► join ─ Lead ─► fetch, judge ─ Part ─► reader + store
//!        │               └─ Follow ─► wait ───────────────┤
//!        └── Done                          └ else ─► BodyError: cut off, never mixed
//! ```

mod range_task;

use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use self::range_task::RangeTask;
use super::collapse::{FillFailure, FillOutcome, Fills, Join, Lead};
use super::slices::{RangeStep, RequestSizes, next_step};
use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::cache::KeyHash;
use crate::fields::ranges::{PartAnswer, Validator, judge};
use crate::metrics::Metric;
use crate::store::{Store, StoredHead};
use crate::upstream::Unanswered;

/// Sends a sub-request for these bytes, bound to the object's validator with
/// [`ask_for`](crate::fields::ranges::ask_for).
pub(crate) type SendSubrequest = Rc<dyn Fn(Range<u64>) -> SubrequestFuture>;

/// A sub-request on its way.
pub(crate) type SubrequestFuture =
    Pin<Box<dyn Future<Output = Result<Response<Body>, Box<Unanswered>>>>>;

/// An object that is stored in part.
#[derive(Clone)]
pub(crate) struct Parts {
    /// The store of its slices.
    pub store: Store,
    /// All fills of the node.
    pub fills: Fills,
    /// Its head, with a known length.
    pub head: Arc<StoredHead>,
    /// The validator that all its slices have.
    pub validator: Validator,
    /// Sends sub-requests for it.
    pub ask: SendSubrequest,
}

impl Parts {
    /// The parts of `head`; `None` when it has no strong validator to bind them to.
    pub(crate) fn new(
        store: &Store,
        fills: &Fills,
        head: Arc<StoredHead>,
        ask: SendSubrequest,
    ) -> Option<Self> {
        let validator = Validator::of(&head.response.headers)?;
        Some(Self { store: store.clone(), fills: fills.clone(), head, validator, ask })
    }

    /// A part that upstream is sending already: `body` has these bytes of the object. Other requests
    /// for them wait from now on.
    pub(crate) fn first(&self, bytes: Range<u64>, body: Body) -> PartResponse {
        let claim = match self.join(bytes.start) {
            Join::Lead(lead) => Some(lead),
            Join::Follow(_) | Join::Uncollapsed(_) => None,
        };
        PartResponse { bytes, body, claim }
    }

    /// Requests the first missing bytes of `wanted` before the response to the client begins, so that
    /// a change of the object is detected in time. `None` if the store has all of them.
    ///
    /// # Errors
    /// Why the bytes are not available.
    pub(crate) async fn begin(
        &self,
        wanted: Range<u64>,
    ) -> Result<Option<PartResponse>, PartError> {
        for _ in 0..ROUNDS_MAX {
            let Some(range) = self.first_missing(&wanted) else { return Ok(None) };
            match self.join(range.start) {
                Join::Lead(lead) => {
                    // Another request found the change between the lookup and the join.
                    if self.store.is_superseded(&self.head) {
                        lead.fail(FillFailure::Changed);
                        return Err(PartError::Changed);
                    }
                    return self.begin_fetch(range, Some(lead)).await.map(Some);
                }
                Join::Uncollapsed(_) => return self.begin_fetch(range, None).await.map(Some),
                Join::Follow(follower) => match follower.outcome().await {
                    FillOutcome::Failed(FillFailure::Changed) => return Err(PartError::Changed),
                    FillOutcome::Failed(
                        failure @ (FillFailure::Upstream(_) | FillFailure::Status(_)),
                    ) => return Err(PartError::Failed(failure)),
                    _ => {}
                },
            }
        }
        let Some(range) = self.first_missing(&wanted) else { return Ok(None) };
        self.begin_fetch(range, None).await.map(Some)
    }

    /// The first range to fetch.
    fn first_missing(&self, wanted: &Range<u64>) -> Option<Range<u64>> {
        let mut rest = wanted.clone();
        loop {
            match self.step(&rest) {
                RangeStep::Fetch(range) => return Some(range),
                RangeStep::Stored(range) => rest.start = range.end,
                RangeStep::Done => return None,
            }
        }
    }

    async fn begin_fetch(
        &self,
        range: Range<u64>,
        claim: Option<Lead>,
    ) -> Result<PartResponse, PartError> {
        match self.fetch(range).await {
            Ok((bytes, body)) => Ok(PartResponse { bytes, body, claim }),
            Err(refused) => {
                if let Some(lead) = claim {
                    match &refused {
                        PartError::Changed => lead.fail(FillFailure::Changed),
                        PartError::Failed(failure) => lead.fail(failure.clone()),
                        // The other requests ask for themselves.
                        PartError::Declined(_) => drop(lead),
                    }
                }
                Err(refused)
            }
        }
    }

    /// Reads `range`. `first` is a part that upstream is sending already; if stored slices come before
    /// it, it is stored meanwhile and read from there.
    pub(crate) fn read(self, range: Range<u64>, first: Option<PartResponse>) -> PartsReader {
        let end = range.end.min(self.head.complete_length());
        let rest = range.start.min(end)..end;
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let left = rest.end - rest.start;
        let (first, ahead) = match first {
            Some(first) if first.bytes.contains(&rest.start) => (Some(first), None),
            Some(first) if rest.contains(&first.bytes.start) => (None, Some(first)),
            _ => (None, None),
        };
        if let Some(ahead) = ahead {
            spawn_local(RangeTask::without_reader(self.clone()).store_part(ahead));
        }
        spawn_local(RangeTask { parts: self, rest, sender }.run(first));
        PartsReader { pieces, left }
    }

    /// The next step for `rest`, according to memory and the disk's index, which may have less than
    /// the head's `parts`.
    fn step(&self, rest: &Range<u64>) -> RangeStep {
        let Self { store, fills, head, .. } = self;
        let length = head.complete_length();
        let slice_bytes = u64::from(head.slice_bytes);
        let request_bytes_max = fills.request_bytes_max(slice_bytes);
        // The bytes of one sub-request are enough to determine the next step.
        let end = rest.end.min(rest.start.saturating_add(request_bytes_max)).min(length);
        let wanted = rest.start.min(end)..end;
        let stored = subtract(&wanted, &store.missing(head, wanted.clone()));
        let sizes = RequestSizes { slice_bytes, request_bytes_max };
        let aligned: Vec<_> =
            stored.iter().map(|part| align_to_slices(part, slice_bytes, length)).collect();
        next_step(rest, Some(length), &aligned, sizes)
    }

    /// Joins the requests for the run of slices that begins at `start`.
    fn join(&self, start: u64) -> Join {
        // All slices of an object id have one version: purges do not concern them.
        let run = slice_run_key(&self.head, start);
        self.fills.join(run, None, || self.store.purges().sequence(), |_, _| false)
    }

    /// Sends a sub-request. Returns the bytes of the object that the response has, and its body.
    async fn fetch(&self, range: Range<u64>) -> Result<(Range<u64>, Body), PartError> {
        let start = range.start;
        self.fills.recorder().count(Metric::RangeRequests);
        let answer = (self.ask)(range.clone()).await;
        let response = answer.map_err(|unanswered| {
            PartError::Failed(FillFailure::Upstream(Arc::<Unanswered>::from(unanswered)))
        })?;
        let length = self.head.complete_length();
        let (status, headers) = (response.status(), response.headers());
        match judge(&range, Some(&self.validator), Some(length), status, headers) {
            PartAnswer::Part { bytes, .. } => Ok((bytes, response.into_body())),
            PartAnswer::Whole => Ok((0..length, response.into_body())),
            PartAnswer::Changed => {
                self.store.give_up(&self.head);
                self.fills.recorder().count(Metric::RangeObjectsChanged);
                Err(PartError::Changed)
            }
            PartAnswer::Unusable(why) => Err(PartError::Declined(Arc::new(BodyError::new(why)))),
            PartAnswer::Other if status.is_server_error() => {
                Err(PartError::Failed(FillFailure::Status(status)))
            }
            PartAnswer::PastEnd { .. } | PartAnswer::Other => {
                let why = format!("upstream answered {status} for bytes from {start}");
                Err(PartError::Declined(Arc::new(BodyError::new(why))))
            }
        }
    }
}

/// A part of an object that upstream is sending.
pub(crate) struct PartResponse {
    bytes: Range<u64>,
    body: Body,
    /// Requests for the same bytes follow it. If it is dropped, they send their own sub-requests.
    claim: Option<Lead>,
}

/// Why bytes of an object are not available from upstream.
#[derive(Clone, Debug)]
pub(crate) enum PartError {
    /// The object changed at the origin. Its stored slices are dropped; a newer version that has
    /// replaced it stays.
    Changed,
    /// Upstream answered without these bytes, and not because it fails: with a 404, a redirect or a part of others.
    Declined(Arc<BodyError>),
    /// Upstream did not respond ([`FillFailure::Upstream`]), or with an error of a server ([`FillFailure::Status`]).
    Failed(FillFailure),
}

/// The body of one range of [`Parts`].
#[derive(Debug)]
pub(crate) struct PartsReader {
    pieces: mpsc::Receiver<Result<Bytes, BodyError>>,
    left: u64,
}

impl BodySource for PartsReader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.pieces.poll_recv(cx).map(|piece| {
            let gone =
                || Err(BodyError::new("the task that assembles the body ended unexpectedly"));
            let piece = piece.unwrap_or_else(gone);
            match &piece {
                Ok(bytes) => self.left -= bytes.len() as u64,
                Err(_) => self.left = 0,
            }
            Some(piece.map(Frame::data))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn exact_length(&self) -> Option<u64> {
        Some(self.left)
    }
}

/// The key under which requests for the same slices of the same object are collapsed.
fn slice_run_key(head: &StoredHead, start: u64) -> KeyHash {
    KeyHash::of(format!("{:?} {start}", head.object).as_bytes())
}

/// `wanted` without `gaps`, which are sorted and disjoint.
fn subtract(wanted: &Range<u64>, gaps: &[Range<u64>]) -> Vec<Range<u64>> {
    let starts = [wanted.start].into_iter().chain(gaps.iter().map(|gap| gap.end));
    let ends = gaps.iter().map(|gap| gap.start).chain([wanted.end]);
    starts.zip(ends).map(|(start, end)| start..end).filter(|part| !part.is_empty()).collect()
}

/// `part` of stored slices, widened to all of their bytes.
fn align_to_slices(part: &Range<u64>, slice_bytes: u64, length: u64) -> Range<u64> {
    let end = part.end.div_ceil(slice_bytes) * slice_bytes;
    part.start - part.start % slice_bytes..end.min(length)
}

/// Pieces that wait for the reader.
const PIECES_AHEAD: usize = 2;
/// How often a request follows others for the same bytes before it sends its own sub-request.
const ROUNDS_MAX: usize = 3;

#[cfg(test)]
mod tests;
