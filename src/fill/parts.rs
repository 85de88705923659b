//! A range of an object of which only some slices are stored: those from the store, the others
//! from upstream, in order, from the first byte on.
//!
//! A task on the reader's core walks the steps that [`slices`](super::slices) plans. What it
//! asks for are whole slices, which go into the store as they become complete, while the
//! reader has their bytes as they arrive. Readers of one object on any core ask for one run of
//! slices once: the others wait for it and look into the store again. They do not wait for a
//! slow reader: what it leaves lying is fetched without it, and it reads the store.
//!
//! ```text
//!        ┌──────────────────────────────────────────────┐
//!  next_step ── Stored ─► slice from the store ─► reader ┤
//!        │                                               │
//!        ├── Ask ─► join ─ Lead ─► ask, judge ─ Part ─► reader + store
//!        │             └─ Follow ─► wait ────────────────┤
//!        └── Done                        └ else ─► BodyError: cut off, never mixed
//! ```

use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::collapse::{FillFailure, Fills, Join, Lead, Outcome};
use super::slices::{Cut, PartAnswer, Step, Validator, judge, next_step};
use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::cache::KeyHash;
use crate::metrics::Metric;
use crate::store::{Head, Store};
use crate::upstream::Unanswered;

/// Sends a sub-request for these bytes, bound to the object's validator with
/// [`ask_for`](super::slices::ask_for).
pub(crate) type Ask = Rc<dyn Fn(Range<u64>) -> Asking>;

/// A sub-request on its way.
pub(crate) type Asking = Pin<Box<dyn Future<Output = Result<Response<Body>, Box<Unanswered>>>>>;

/// An object that is stored in part.
#[derive(Clone)]
pub(crate) struct Parts {
    /// Where its slices are and will be.
    pub store: Store,
    /// All fills of the node.
    pub fills: Fills,
    /// Its head, with a known length.
    pub head: Arc<Head>,
    /// What its slices are bound to.
    pub validator: Validator,
    /// Asks upstream for more of it.
    pub ask: Ask,
}

impl Parts {
    /// The parts of `head`; `None` when it has no strong validator to bind them to.
    pub(crate) fn new(store: &Store, fills: &Fills, head: Arc<Head>, ask: Ask) -> Option<Self> {
        let validator = Validator::of(&head.response.headers)?;
        Some(Self { store: store.clone(), fills: fills.clone(), head, validator, ask })
    }

    /// An answer that is in already: `body` has these bytes of the object. Who wants them from
    /// now on waits until it is read.
    pub(crate) fn first(&self, bytes: Range<u64>, body: Body) -> First {
        let claim = match self.join(bytes.start) {
            Join::Lead(lead) => Some(lead),
            Join::Follow(_) | Join::Uncollapsed(_) => None,
        };
        First { bytes, body, claim }
    }

    /// Sees to it that the first byte of `wanted` that is not stored can be had, before an answer
    /// promises it: if the object has changed, nothing of it was sent. `None` when the store has
    /// all.
    ///
    /// # Errors
    /// Why it can't be had; nothing was promised yet.
    pub(crate) async fn begin(&self, wanted: Range<u64>) -> Result<Option<First>, Refused> {
        for _ in 0..TURNS_MAX {
            let Some(range) = self.first_gap(&wanted) else { return Ok(None) };
            match self.join(range.start) {
                Join::Lead(lead) => {
                    // Another has asked between the look and the join.
                    if self.store.is_superseded(&self.head) {
                        lead.fail(FillFailure::Changed);
                        return Err(Refused::Changed);
                    }
                    return self.begin_asking(range, Some(lead)).await.map(Some);
                }
                Join::Uncollapsed(_) => return self.begin_asking(range, None).await.map(Some),
                Join::Follow(follower) => match follower.outcome().await {
                    Outcome::Failed(FillFailure::Changed) => return Err(Refused::Changed),
                    Outcome::Failed(FillFailure::Upstream(why)) => {
                        return Err(Refused::Failed(why));
                    }
                    _ => {}
                },
            }
        }
        let Some(range) = self.first_gap(&wanted) else { return Ok(None) };
        self.begin_asking(range, None).await.map(Some)
    }

    /// What to ask for first.
    fn first_gap(&self, wanted: &Range<u64>) -> Option<Range<u64>> {
        let mut rest = wanted.clone();
        loop {
            match self.step(&rest) {
                Step::Ask(range) => return Some(range),
                Step::Stored(range) => rest.start = range.end,
                Step::Done => return None,
            }
        }
    }

    async fn begin_asking(&self, range: Range<u64>, claim: Option<Lead>) -> Result<First, Refused> {
        match self.ask(range).await {
            Ok((bytes, body)) => Ok(First { bytes, body, claim }),
            Err(refused) => {
                if let Some(lead) = claim {
                    lead.fail(match &refused {
                        Refused::Changed => FillFailure::Changed,
                        Refused::Failed(why) => FillFailure::Upstream(why.clone()),
                    });
                }
                Err(refused)
            }
        }
    }

    /// Reads `range`, with the help of an answer that is in already. If what is stored comes
    /// before it, it goes to the store meanwhile, and is read from there.
    pub(crate) fn read(self, range: Range<u64>, first: Option<First>) -> PartsReader {
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
            spawn_local(Walk::for_nobody(self.clone()).store_part(ahead));
        }
        spawn_local(Walk { parts: self, rest, sender }.run(first));
        PartsReader { pieces, left }
    }

    /// The next step for `rest`, by what memory and the disks have now, which may be less than
    /// the head says.
    fn step(&self, rest: &Range<u64>) -> Step {
        let Self { store, fills, head, .. } = self;
        let length = head.complete_length();
        let slice_bytes = u64::from(head.slice_bytes);
        let request_bytes_max = fills.request_bytes_max(slice_bytes);
        // One sub-request's worth is enough to know the next step.
        let end = rest.end.min(rest.start.saturating_add(request_bytes_max)).min(length);
        let wanted = rest.start.min(end)..end;
        let stored = without(&wanted, &store.missing(head, wanted.clone()));
        let cut = Cut { slice_bytes, request_bytes_max };
        let aligned: Vec<_> =
            stored.iter().map(|part| widened(part, slice_bytes, length)).collect();
        next_step(rest, Some(length), &aligned, cut)
    }

    /// Whoever wants the run of slices that begins here meets the others.
    fn join(&self, start: u64) -> Join {
        // The version does not change under an object's id: no purge concerns its slices.
        let run = run_of_slices(&self.head, start);
        self.fills.join(run, || self.store.purges().sequence(), |_, _| false)
    }

    /// Asks upstream, and hands back the body that comes with what it holds of the object.
    async fn ask(&self, range: Range<u64>) -> Result<(Range<u64>, Body), Refused> {
        let start = range.start;
        self.fills.recorder().count(Metric::RangeRequests);
        let asked = (self.ask)(range.clone()).await;
        let response =
            asked.map_err(|unanswered| Refused::Failed(Arc::<Unanswered>::from(unanswered)))?;
        let length = self.head.complete_length();
        let (status, headers) = (response.status(), response.headers());
        match judge(&range, Some(&self.validator), Some(length), status, headers) {
            PartAnswer::Part { bytes, .. } => Ok((bytes, response.into_body())),
            PartAnswer::Whole => Ok((0..length, response.into_body())),
            PartAnswer::Changed => {
                self.store.give_up(&self.head);
                self.fills.recorder().count(Metric::RangeObjectsChanged);
                Err(Refused::Changed)
            }
            PartAnswer::Unusable(why) => Err(Refused::Failed(Arc::new(BodyError::new(why)))),
            PartAnswer::PastEnd { .. } | PartAnswer::Other => {
                let why = format!("upstream answered {status} for bytes from {start}");
                Err(Refused::Failed(Arc::new(BodyError::new(why))))
            }
        }
    }
}

/// A part of an object that upstream is sending.
pub(crate) struct First {
    bytes: Range<u64>,
    body: Body,
    /// Dropped with it, the others ask for themselves.
    claim: Option<Lead>,
}

/// Why bytes can't be had from upstream.
#[derive(Clone, Debug)]
pub(crate) enum Refused {
    /// The object changed at the origin. What was stored of it is dropped; a newer version that
    /// has taken its place stays.
    Changed,
    /// Upstream did not answer, or with something else: an [`Unanswered`], or why.
    Failed(Arc<dyn std::error::Error + Send + Sync>),
}

/// A range of a [`Parts`] as one client reads it.
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
            let gone = || Err(BodyError::new("the task that read the parts is gone"));
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

/// The task behind a reader.
struct Walk {
    parts: Parts,
    /// What was not yet given to the reader.
    rest: Range<u64>,
    sender: mpsc::Sender<Result<Bytes, BodyError>>,
}

/// Why a walk ends before its end.
enum Stop {
    /// The reader left.
    Left,
    /// The object changed at the origin.
    Changed,
    Broken(Arc<BodyError>),
}

impl From<BodyError> for Stop {
    fn from(error: BodyError) -> Self {
        Self::Broken(Arc::new(error))
    }
}

impl Walk {
    async fn run(mut self, first: Option<First>) {
        let Err(stop) = self.walk(first).await else { return };
        let at = self.rest.start;
        let error = match stop {
            Stop::Left => return,
            Stop::Changed => {
                BodyError::new(format!("the object changed at the origin before byte {at}"))
            }
            Stop::Broken(why) => BodyError::caused_by(format!("cut off before byte {at}"), why),
        };
        // A reader that has left needs no error.
        let _ = self.sender.send(Err(error)).await;
    }

    /// For what goes to the store alone.
    fn for_nobody(parts: Parts) -> Self {
        Self { parts, rest: 0..0, sender: mpsc::channel(1).0 }
    }

    async fn store_part(mut self, First { bytes, body, claim }: First) {
        let giving = Giving::Behind { until: bytes.end };
        let taken = self.take_part(bytes, body, giving).await;
        tell(claim, &taken);
    }

    async fn walk(&mut self, first: Option<First>) -> Result<(), Stop> {
        if let Some(First { bytes, body, claim }) = first {
            let taken = self.take_part(bytes, body, Giving::On).await;
            tell(claim, &taken);
            taken?;
        }
        let (mut followed, mut turns) = (None, 0);
        loop {
            match self.parts.step(&self.rest) {
                Step::Done => return Ok(()),
                Step::Stored(range) => self.give_stored(range).await?,
                Step::Ask(range) => {
                    // What was followed and is still not there is in the end asked for alone.
                    turns = if followed == Some(range.start) { turns + 1 } else { 0 };
                    followed = Some(range.start);
                    self.ask_or_follow(range, turns >= TURNS_MAX).await?;
                }
            }
        }
    }

    async fn give_stored(&mut self, range: Range<u64>) -> Result<(), Stop> {
        for number in self.parts.head.slices(range) {
            let holds = self.parts.head.slice_range(number);
            let slice = self.parts.store.slice(&self.parts.head, number).await;
            match slice.filter(|slice| slice.len() as u64 == holds.end - holds.start) {
                Some(slice) => self.give(holds.start, slice).await?,
                // The index said more than the disk has: from upstream, then.
                None => self.ask(holds).await?,
            }
        }
        Ok(())
    }

    async fn ask_or_follow(&mut self, range: Range<u64>, alone: bool) -> Result<(), Stop> {
        if alone {
            return self.ask(range).await;
        }
        match self.parts.join(range.start) {
            Join::Lead(lead) => {
                let asked = self.ask(range).await;
                tell(Some(lead), &asked);
                asked
            }
            Join::Follow(follower) => match follower.outcome().await {
                Outcome::Failed(failure @ (FillFailure::Upstream(_) | FillFailure::Status(_))) => {
                    Err(BodyError::caused_by("another request's part failed", failure).into())
                }
                Outcome::Failed(FillFailure::Changed) => Err(Stop::Changed),
                Outcome::Failed(FillFailure::Abandoned)
                | Outcome::Stored
                | Outcome::Released
                | Outcome::Filling(_) => Ok(()),
            },
            Join::Uncollapsed(_) => self.ask(range).await,
        }
    }

    async fn ask(&mut self, range: Range<u64>) -> Result<(), Stop> {
        let start = range.start;
        match self.parts.ask(range).await {
            Ok((bytes, body)) => self.take_part(bytes, body, Giving::On).await,
            Err(Refused::Changed) => Err(Stop::Changed),
            Err(Refused::Failed(error)) => {
                let why = format!("no answer from upstream for bytes from {start}");
                Err(BodyError::caused_by(why, error).into())
            }
        }
    }

    /// Gives the reader what it wants of a part, as it arrives; stores the whole slices of it.
    /// When the reader has enough, or leaves, the slice that has begun is still finished. When
    /// it is slow, the rest of one request's worth goes to the store without it.
    async fn take_part(
        &mut self,
        bytes: Range<u64>,
        mut body: Body,
        mut giving: Giving,
    ) -> Result<(), Stop> {
        let before = self.rest.start;
        let mut slice = SliceBuffer::new(bytes.start);
        let mut at = bytes.start;
        while at < bytes.end && !(self.has_enough(&giving, at) && slice.is_empty()) {
            let Some(frame) = body.frame().await else {
                return Err(BodyError::new(format!("a part ended early, at byte {at}")).into());
            };
            let frame = frame.map_err(|error| {
                BodyError::caused_by(
                    format!("the response to a range request ended early at byte {at}"),
                    error,
                )
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if data.len() as u64 > bytes.end - at {
                return Err(BodyError::new("a part is longer than it said").into());
            }
            if matches!(giving, Giving::On) {
                giving = self.give_soon(at, data.clone()).await;
            }
            at += data.len() as u64;
            self.store_slices(&mut slice, data).await;
        }
        match giving {
            Giving::Left => return Err(Stop::Left),
            Giving::Behind { .. } => return Ok(()),
            Giving::On => {}
        }
        if self.rest.start == before && !self.rest.is_empty() {
            return Err(BodyError::new("a part has nothing of what was asked for").into());
        }
        Ok(())
    }

    fn has_enough(&self, giving: &Giving, at: u64) -> bool {
        match giving {
            Giving::On => self.rest.is_empty(),
            Giving::Left => true,
            Giving::Behind { until } => at >= *until,
        }
    }

    /// Gives without waiting for longer than others should.
    async fn give_soon(&mut self, offset: u64, bytes: Bytes) -> Giving {
        let start = self.rest.start;
        match tokio::time::timeout(PATIENCE, self.give(offset, bytes)).await {
            Ok(Ok(())) => Giving::On,
            Ok(Err(_)) => Giving::Left,
            Err(_) => {
                // Not given: it is read from the store.
                self.rest.start = start;
                let slice_bytes = u64::from(self.parts.head.slice_bytes);
                Giving::Behind { until: offset + self.parts.fills.request_bytes_max(slice_bytes) }
            }
        }
    }

    async fn store_slices(&mut self, buffer: &mut SliceBuffer, mut data: Bytes) {
        while !data.is_empty() {
            let Parts { store, head, .. } = &self.parts;
            let Some(slice) = buffer.fill(&mut data, head) else { continue };
            let range = head.slice_range(slice.number);
            // Not stored is not the client's trouble; the store has counted it.
            if store.put_slice(head, slice.number, slice.bytes).await.is_ok() {
                self.parts.head = store.add_part(head, range);
            }
        }
    }

    /// Hands on what is wanted of bytes that begin at `offset`.
    async fn give(&mut self, offset: u64, mut bytes: Bytes) -> Result<(), Stop> {
        let end = offset + bytes.len() as u64;
        if end <= self.rest.start || offset >= self.rest.end {
            return Ok(());
        }
        bytes.truncate((self.rest.end.min(end) - offset) as usize);
        let bytes = bytes.split_off((self.rest.start - offset) as usize);
        self.rest.start += bytes.len() as u64;
        self.sender.send(Ok(bytes)).await.map_err(|_| Stop::Left)
    }
}

/// Whether the reader keeps up.
enum Giving {
    On,
    /// No more is given of this part, which goes to the store up to here.
    Behind {
        until: u64,
    },
    Left,
}

/// Tells those who wait for a run of slices how it went.
fn tell(claim: Option<Lead>, taken: &Result<(), Stop>) {
    match (claim, taken) {
        (Some(lead), Err(Stop::Broken(why))) => lead.fail(FillFailure::Upstream(why.clone())),
        (Some(lead), Err(Stop::Changed)) => lead.fail(FillFailure::Changed),
        (Some(lead), Ok(()) | Err(Stop::Left)) => lead.stored(),
        (None, _) => {}
    }
}

/// Puts whole slices together from pieces in order.
struct SliceBuffer {
    at: u64,
    bytes: BytesMut,
}

struct WholeSlice {
    number: u32,
    bytes: Bytes,
}

impl SliceBuffer {
    fn new(at: u64) -> Self {
        Self { at, bytes: BytesMut::new() }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes from `data` up to the end of a slice, which it returns when it has all of it.
    fn fill(&mut self, data: &mut Bytes, head: &Head) -> Option<WholeSlice> {
        let number = (self.at / u64::from(head.slice_bytes)) as u32;
        let holds = head.slice_range(number);
        let piece = data.split_to(data.len().min((holds.end - self.at) as usize));
        // A part that begins inside of a slice has not all of it.
        let has_its_start = self.at == holds.start + self.bytes.len() as u64;
        self.at += piece.len() as u64;
        if !has_its_start {
            return None;
        }
        if self.bytes.is_empty() {
            self.bytes.reserve((holds.end - holds.start) as usize);
        }
        self.bytes.extend_from_slice(&piece);
        if self.at < holds.end {
            return None;
        }
        Some(WholeSlice { number, bytes: self.bytes.split().freeze() })
    }
}

/// Where requests for the same slices of the same object meet.
fn run_of_slices(head: &Head, start: u64) -> KeyHash {
    KeyHash::of(format!("{:?} {start}", head.object).as_bytes())
}

/// `wanted` without `gaps`, which are sorted and disjoint.
fn without(wanted: &Range<u64>, gaps: &[Range<u64>]) -> Vec<Range<u64>> {
    let starts = [wanted.start].into_iter().chain(gaps.iter().map(|gap| gap.end));
    let ends = gaps.iter().map(|gap| gap.start).chain([wanted.end]);
    starts.zip(ends).map(|(start, end)| start..end).filter(|part| !part.is_empty()).collect()
}

/// `part` of stored slices, widened to all of their bytes.
fn widened(part: &Range<u64>, slice_bytes: u64, length: u64) -> Range<u64> {
    let end = part.end.div_ceil(slice_bytes) * slice_bytes;
    part.start - part.start % slice_bytes..end.min(length)
}

/// Pieces that wait for the reader.
const PIECES_AHEAD: usize = 2;
/// How long a reader may hold up what others may wait for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a request follows others for the same bytes before it asks for itself.
const TURNS_MAX: usize = 3;

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]
mod tests {
    use std::cell::RefCell;

    use http::header::{CONTENT_RANGE, ETAG};
    use http::{HeaderValue, StatusCode};

    use super::*;
    use crate::body::next_frame;
    use crate::cache::StoredResponse;
    use crate::fill::Settings;
    use crate::fill::tests::{
        Node, Random, SLICE, all, assert_bytes, bytes_of, on_a_worker, response, seed,
    };

    const LENGTH: u64 = 40 * SLICE + 100;

    /// An origin that answers every range as it is told, and what it was asked for.
    #[derive(Clone)]
    struct Origin {
        asked: Rc<RefCell<Vec<Range<u64>>>>,
        answer: Rc<RefCell<Answering>>,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Answering {
        Part,
        /// No more than this many bytes at once.
        Shorter(u64),
        /// The body ends before the part does.
        Early,
        NewVersion,
        Whole,
        Fails,
    }

    impl Origin {
        fn answer(&self, range: &Range<u64>) -> Response<Body> {
            self.asked.borrow_mut().push(range.clone());
            let answering = *self.answer.borrow();
            let (mut status, mut tag, mut range) =
                (StatusCode::PARTIAL_CONTENT, "\"v1\"", range.clone());
            let mut body = bytes_of(range.clone());
            match answering {
                Answering::Part => {}
                Answering::Shorter(bytes) => {
                    range.end = range.end.min(range.start + bytes);
                    body = bytes_of(range.clone());
                }
                Answering::Early => body.truncate(body.len() / 2),
                Answering::NewVersion => tag = "\"v2\"",
                Answering::Whole => (status, body) = (StatusCode::OK, bytes_of(0..LENGTH)),
                Answering::Fails => status = StatusCode::SERVICE_UNAVAILABLE,
            }
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = status;
            let content_range = format!("bytes {}-{}/{LENGTH}", range.start, range.end - 1);
            let content_range = HeaderValue::try_from(content_range).expect("a value");
            response.headers_mut().insert(CONTENT_RANGE, content_range);
            response.headers_mut().insert(ETAG, HeaderValue::from_static(tag));
            response
        }
    }

    /// An object of which nothing is stored.
    fn object(node: &Node) -> (Parts, Origin) {
        let response = StoredResponse::clone(&response(Some(LENGTH)));
        let origin =
            Origin { asked: Rc::default(), answer: Rc::new(RefCell::new(Answering::Part)) };
        let answering = origin.clone();
        let head = node.store.partial_to_be(response).expect("long enough");
        node.store.show(&head);
        let parts = Parts {
            store: node.store.clone(),
            fills: node.fills.clone(),
            head,
            validator: Validator::Tag(HeaderValue::from_static("\"v1\"")),
            ask: Rc::new(move |range| {
                let origin = answering.clone();
                Box::pin(async move {
                    // Others have a turn before the answer comes.
                    tokio::task::yield_now().await;
                    Ok(origin.answer(&range))
                })
            }),
        };
        (parts, origin)
    }

    fn node() -> Node {
        Node::new(Settings { range_request_bytes_max: 4 * SLICE, ..Settings::default() })
    }

    async fn read(parts: &Parts, range: Range<u64>) -> Result<Bytes, BodyError> {
        all(parts.clone().read(range, None)).await
    }

    #[test]
    fn a_seek_costs_the_slices_that_it_touches() {
        on_a_worker(async {
            let (parts, origin) = object(&node());
            let wanted = 10 * SLICE + 5..12 * SLICE + 5;
            assert_bytes(&read(&parts, wanted.clone()).await.expect("whole"), wanted.clone());
            assert_eq!(origin.asked.take(), [10 * SLICE..13 * SLICE]);
            assert_bytes(&read(&parts, wanted.clone()).await.expect("whole"), wanted);
            assert_eq!(origin.asked.take(), [], "all of it is stored");
            let around = 9 * SLICE..14 * SLICE;
            assert_bytes(&read(&parts, around.clone()).await.expect("whole"), around);
            assert_eq!(origin.asked.take(), [9 * SLICE..10 * SLICE, 13 * SLICE..14 * SLICE]);
        });
    }

    #[test]
    fn an_object_that_was_read_in_whole_is_an_object_like_others() {
        on_a_worker(async {
            let node = node();
            let (parts, origin) = object(&node);
            let reader = parts.clone().read(0..u64::MAX, None);
            assert_eq!(reader.exact_length(), Some(LENGTH));
            assert_bytes(&all(reader).await.expect("whole"), 0..LENGTH);
            assert_eq!(origin.asked.borrow().len(), 11, "of four slices each, and a rest");
            let Some(crate::store::Record::Response(head)) =
                node.store.in_memory(parts.head.hash())
            else {
                panic!("not stored");
            };
            assert!(head.response.parts.is_none());
            assert_bytes(&all(node.store.body(&head, 0..LENGTH)).await.expect("whole"), 0..LENGTH);
        });
    }

    #[test]
    fn what_was_answered_already_is_not_asked_for_again() {
        on_a_worker(async {
            let (parts, origin) = object(&node());
            let body = Body::from(bytes_of(2 * SLICE..3 * SLICE));
            let first = parts.first(2 * SLICE..3 * SLICE, body);
            let wanted = 2 * SLICE + 7..4 * SLICE;
            let reader = parts.read(wanted.clone(), Some(first));
            assert_bytes(&all(reader).await.expect("whole"), wanted);
            assert_eq!(origin.asked.take(), [3 * SLICE..4 * SLICE]);
        });
    }

    #[test]
    fn parts_shorter_than_asked_are_gone_on_from() {
        on_a_worker(async {
            let (parts, origin) = object(&node());
            *origin.answer.borrow_mut() = Answering::Shorter(SLICE + 10);
            let wanted = 100..4 * SLICE;
            assert_bytes(&read(&parts, wanted.clone()).await.expect("whole"), wanted);
            *origin.answer.borrow_mut() = Answering::Shorter(50);
            assert!(read(&parts, 9 * SLICE + 100..10 * SLICE).await.is_err(), "not for ever");
        });
    }

    #[test]
    fn an_object_that_changed_is_cut_off_and_never_mixed() {
        on_a_worker(async {
            let node = node();
            let (parts, origin) = object(&node);
            read(&parts, 0..SLICE).await.expect("whole");
            *origin.answer.borrow_mut() = Answering::NewVersion;
            let mut reader = parts.clone().read(0..2 * SLICE, None);
            let stored = next_frame(&mut reader).await.expect("more").expect("stored").into_data();
            assert_bytes(&stored.expect("data"), 0..SLICE);
            let error =
                next_frame(&mut reader).await.expect("not a clean end").expect_err("cut off");
            assert!(error.to_string().contains(&SLICE.to_string()), "{error}");
            assert!(node.store.in_memory(parts.head.hash()).is_none(), "the old one is dropped");
            assert_eq!(node.gauge(Metric::RangeObjectsChanged), 1);
        });
    }

    #[test]
    fn a_late_reader_of_what_changed_leaves_the_newer_version_alone() {
        on_a_worker(async {
            let node = node();
            let (parts, origin) = object(&node);
            read(&parts, 0..SLICE).await.expect("whole");
            let (newer, _) = object(&node);
            *origin.answer.borrow_mut() = Answering::NewVersion;
            read(&parts, 0..2 * SLICE).await.expect_err("cut off");
            let Some(crate::store::Record::Response(head)) =
                node.store.in_memory(parts.head.hash())
            else {
                panic!("the newer one is gone");
            };
            assert_eq!(head.object, newer.head.object);
        });
    }

    #[test]
    fn what_still_comes_of_an_object_that_changed_does_not_bring_it_back() {
        on_a_worker(async {
            let node = node();
            let (parts, origin) = object(&node);
            let first = parts.first(0..SLICE, Body::from(bytes_of(0..SLICE)));
            *origin.answer.borrow_mut() = Answering::NewVersion;
            read(&parts, 2 * SLICE..3 * SLICE).await.expect_err("cut off");
            let bytes = all(parts.clone().read(0..SLICE, Some(first))).await;
            assert_bytes(&bytes.expect("it was on its way"), 0..SLICE);
            assert!(node.store.in_memory(parts.head.hash()).is_none());
        });
    }

    #[test]
    fn one_asks_for_all_whether_an_object_has_changed() {
        on_a_worker(async {
            let (parts, origin) = object(&node());
            *origin.answer.borrow_mut() = Answering::NewVersion;
            let begin = |parts: Parts| async move { parts.begin(5..3 * SLICE).await.map(|_| ()) };
            let readers: Vec<_> = (0..100).map(|_| spawn_local(begin(parts.clone()))).collect();
            for reader in readers {
                let begun = reader.await.expect("no panic");
                assert!(matches!(begun, Err(Refused::Changed)), "{begun:?}");
            }
            assert_eq!(origin.asked.take(), [0..3 * SLICE]);
        });
    }

    #[test]
    fn who_waits_for_a_reader_that_finds_a_change_begins_anew() {
        on_a_worker(async {
            let (parts, origin) = object(&node());
            *origin.answer.borrow_mut() = Answering::NewVersion;
            let reader = spawn_local(all(parts.clone().read(0..SLICE, None)));
            tokio::task::yield_now().await;
            let begun = parts.begin(0..SLICE).await.map(|_| ());
            assert!(matches!(begun, Err(Refused::Changed)), "{begun:?}");
            assert!(reader.await.expect("no panic").is_err());
            assert_eq!(origin.asked.borrow().len(), 1);
        });
    }

    #[test]
    fn a_part_that_breaks_off_or_fails_is_an_error() {
        on_a_worker(async {
            let (parts, origin) = object(&node());
            for answering in [Answering::Early, Answering::Fails] {
                *origin.answer.borrow_mut() = answering;
                assert!(read(&parts, 0..2 * SLICE).await.is_err());
            }
            *origin.answer.borrow_mut() = Answering::Part;
            assert_bytes(&read(&parts, 0..2 * SLICE).await.expect("whole"), 0..2 * SLICE);
        });
    }

    #[test]
    fn an_origin_that_stopped_doing_ranges_still_gives_the_bytes() {
        on_a_worker(async {
            let (parts, origin) = object(&node());
            *origin.answer.borrow_mut() = Answering::Whole;
            let wanted = 3 * SLICE + 1..5 * SLICE;
            assert_bytes(&read(&parts, wanted.clone()).await.expect("whole"), wanted);
            read(&parts, 0..SLICE).await.expect("stored on the way");
            assert_eq!(origin.asked.borrow().len(), 1);
        });
    }

    #[test]
    fn readers_of_the_same_slices_ask_once() {
        on_a_worker(async {
            let (parts, origin) = object(&node());
            let wanted = 5..3 * SLICE;
            let readers =
                (0..100).map(|_| spawn_local(all(parts.clone().read(wanted.clone(), None))));
            for reader in readers.collect::<Vec<_>>() {
                let bytes = reader.await.expect("no panic").expect("whole");
                assert_bytes(&bytes, wanted.clone());
            }
            assert_eq!(origin.asked.take(), [0..3 * SLICE]);
            *origin.answer.borrow_mut() = Answering::Fails;
            let readers =
                (0..100).map(|_| spawn_local(all(parts.clone().read(4 * SLICE..5 * SLICE, None))));
            for reader in readers.collect::<Vec<_>>() {
                assert!(reader.await.expect("no panic").is_err());
            }
            assert_eq!(origin.asked.borrow().len(), 1, "a failure is shared");
        });
    }

    #[test]
    fn random_seeks_ask_for_each_slice_once_and_every_byte_is_right() {
        on_a_worker(async {
            let (parts, origin) = object(&node());
            let mut random = Random(seed());
            let mut touched = std::collections::BTreeSet::new();
            for _ in 0..200 {
                let start = random.below(LENGTH);
                let end = LENGTH.min(start + 1 + random.below(3 * SLICE));
                touched.extend(start / SLICE..=(end - 1) / SLICE);
                assert_bytes(&read(&parts, start..end).await.expect("whole"), start..end);
            }
            let asked: u64 = origin.asked.take().iter().map(|range| range.end - range.start).sum();
            let slice = |number: u64| ((number + 1) * SLICE).min(LENGTH) - number * SLICE;
            assert_eq!(asked, touched.into_iter().map(slice).sum::<u64>());
        });
    }
}
