//! Fills from end to end, without sockets: scripted upstream bodies, readers on any thread.

mod ends;
mod pace;
mod purges;
mod stress;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};

use super::collapse::{FillFailure, FillOutcome, Fills, Follower, Join, Lead, Uncollapsed};
use super::reader::FillReader;
use super::{FillEnd, Filling, Settings, pump};
use crate::body::{Body, BodyError, BodySource, PollFrame, next_frame};
use crate::cache::{
    CacheKey, Freshness, KeyHash, PurgeKind, PurgeScope, PurgeSequence, PurgeTarget, StoredResponse,
};
use crate::clock::Clock;
use crate::fields::FieldSection;
use crate::metrics::{Metric, Metrics};
use crate::purge::{self, EntryId, PurgeBatch, Purges, Requirement, StreamPosition};
use crate::store::{self, Record, Store, StoredHead};
use crate::upstream::FetchError;

/// Small, so that few bytes are many slices; frames of half a slice are not merged.
pub(super) const SLICE: u64 = 16 << 10;
const KEY: KeyHash = KeyHash(7);

/// Small windows, so that few bytes show what a window does: two slices.
pub(super) fn small() -> Settings {
    Settings { window_bytes: 2 * SLICE, patience: Duration::from_millis(50), ..Settings::default() }
}

pub(super) struct Node {
    pub fills: Fills,
    clock: Clock,
    metrics: Arc<Metrics>,
    pub store: Store,
}

/// The runtime of the store's own work.
fn background() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"))
}

impl Node {
    pub(crate) fn new(settings: Settings) -> Self {
        Self::with_store(settings, store_settings())
    }

    fn with_store(settings: Settings, store: store::Settings) -> Self {
        let (clock, metrics) = (Clock::system(), Metrics::new(1));
        let handle = background().handle().clone();
        let (their_clock, their_metrics) = (clock.clone(), metrics.clone());
        let opening = std::thread::spawn(move || {
            let recorder = their_metrics.background();
            let purges = purge::Settings::default();
            let purges = Purges::open(&purges, &their_clock, &recorder, &handle).expect("no file");
            let opening = Store::open(&store, purges, &their_metrics, handle.clone());
            handle.block_on(opening)
        });
        let store = opening.join().expect("no panic").expect("the store opens");
        let fills = Fills::new(settings, SLICE, clock.clone(), metrics.background());
        Self { fills, clock, metrics, store }
    }

    /// The stored record, and its body.
    async fn stored(&self) -> Option<(Arc<StoredHead>, Bytes)> {
        let head = head(&self.store)?;
        let body = Body::stream(self.store.body(&head, 0..u64::MAX)).collect().await;
        Some((head, body.expect("the body is whole").to_bytes()))
    }

    /// Without any purge.
    fn join(&self) -> Join {
        self.fills.join(KEY, None, || PurgeSequence(0), |_, _| unreachable!("nothing was purged"))
    }

    fn lead(&self) -> Lead {
        match self.join() {
            Join::Lead(lead) => lead,
            other => panic!("not the leader: {other:?}"),
        }
    }

    fn follow(&self) -> Follower {
        match self.join() {
            Join::Follow(follower) => follower,
            other => panic!("not a follower: {other:?}"),
        }
    }

    pub(crate) fn gauge(&self, metric: Metric) -> u64 {
        self.metrics.total(metric, 0)
    }
}

fn head(store: &Store) -> Option<Arc<StoredHead>> {
    let key = CacheKey::new("https://www.example.org/a");
    match store.in_memory(key.hash)? {
        Record::Response(head) => Some(head),
        Record::Variants(list) => panic!("{list:?}"),
    }
}

/// In memory only.
pub(super) fn store_settings() -> store::Settings {
    let slice_bytes = SLICE as usize;
    store::Settings { slice_bytes, memory_bytes: 4 << 20, ..store::Settings::default() }
}

/// Settings of a store that takes no response.
fn storing_nothing() -> store::Settings {
    store::Settings { object_bytes_max: 0, ..store_settings() }
}

/// A response of `length` bytes, if known.
pub(super) fn response(length: Option<u64>) -> Arc<StoredResponse> {
    Arc::new(StoredResponse {
        key: "https://www.example.org/a".into(),
        variant: "".into(),
        site: "example".into(),
        status: StatusCode::OK,
        headers: FieldSection::default(),
        freshness: Freshness {
            response_time: SystemTime::UNIX_EPOCH.into(),
            initial_age: Duration::ZERO.into(),
            lifetime: Duration::from_secs(60).into(),
            heuristic: false,
            stale_while_revalidate: Duration::ZERO.into(),
            stale_if_error: Duration::ZERO.into(),
            must_revalidate: false,
            immutable: false,
            no_cache: false,
        },
        tags: Default::default(),
        stored_at_sequence: PurgeSequence(0),
        complete_length: length,
        parts: None,
        version: http::Version::HTTP_11,
        form: None,
    })
}

/// The bytes of a body are a function of their offset.
pub(super) fn bytes_of(range: std::ops::Range<u64>) -> Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    let byte = |offset: u64| (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    let bytes = BYTES.get_or_init(|| (0..512 * SLICE).map(byte).collect());
    bytes.slice(range.start as usize..range.end as usize)
}

/// Like `assert_eq`, without printing megabytes.
#[track_caller]
pub(super) fn assert_bytes(bytes: &Bytes, range: std::ops::Range<u64>) {
    assert_eq!(bytes.len() as u64, range.end - range.start, "bytes of {range:?}");
    let expected = bytes_of(range.clone());
    if *bytes != expected {
        let differs = bytes.iter().zip(&expected).position(|(is, should)| is != should);
        panic!("byte {differs:?} of {range:?} is another one");
    }
}

type Sent = Result<Frame<Bytes>, BodyError>;

/// An upstream body that says what the test says. With room for one frame: when a second
/// `send` is through, the fill has taken the first.
struct Upstream {
    frames: mpsc::Sender<Sent>,
    sent: u64,
}

struct Scripted(mpsc::Receiver<Sent>);

impl BodySource for Scripted {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        self.0.poll_recv(cx)
    }
}

fn upstream() -> (Upstream, Body) {
    let (frames, receiver) = mpsc::channel(1);
    (Upstream { frames, sent: 0 }, Body::stream(Scripted(receiver)))
}

impl Upstream {
    async fn send(&mut self, length: u64) {
        let bytes = bytes_of(self.sent..self.sent + length);
        self.sent += length;
        self.frames.send(Ok(Frame::data(bytes))).await.expect("the fill reads on");
    }

    /// False when the fill does not take it within a short while: it is paced.
    async fn is_taken(&mut self, length: u64) -> bool {
        tokio::time::timeout(Duration::from_millis(30), self.send(length)).await.is_ok()
    }
}

async fn filling(follower: &Follower) -> Filling {
    match follower.outcome().await {
        FillOutcome::Filling(filling) => filling,
        other => panic!("no fill: {other:?}"),
    }
}

fn start(node: &Node, mut lead: Lead, length: Option<u64>, body: Body) -> JoinHandle<FillEnd> {
    let store = node.store.clone();
    spawn_local(async move { lead.fill(&store, response(length), body).await })
}

/// A fill under way, of a response of a length that may be known.
struct Begun {
    node: Node,
    /// Follows it from its start.
    own: Follower,
    upstream: Upstream,
    done: JoinHandle<FillEnd>,
}

fn begin(length: Option<u64>) -> Begun {
    begin_on(Node::new(small()), length)
}

fn begin_on(node: Node, length: Option<u64>) -> Begun {
    let lead = node.lead();
    let own = lead.follower();
    let (upstream, body) = upstream();
    let done = start(&node, lead, length, body);
    Begun { node, own, upstream, done }
}

async fn next(reader: &mut FillReader) -> Bytes {
    let frame = next_frame(reader).await.expect("there is more").expect("no error");
    frame.into_data().expect("data")
}

pub(super) async fn all(reader: impl BodySource + 'static) -> Result<Bytes, BodyError> {
    Body::stream(reader).collect().await.map(http_body_util::Collected::to_bytes)
}

/// Runs a test as a worker runs requests.
pub(super) fn on_a_worker(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(20), test).await };
    LocalSet::new().block_on(&runtime, limited).expect("done in time");
}

#[test]
fn a_response_is_for_the_leader_alone_unless_another_request_waits_for_it() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let other = node.follow();
        let lead = lead.end_alone().expect_err("another request follows");
        drop(other);
        lead.end_alone().expect("only the client of the leader is left");
        assert!(matches!(own.outcome().await, FillOutcome::AtPeer));
        drop(node.lead());
        assert_eq!(node.gauge(Metric::Fills), 1, "the follower keeps the fill");
        drop(own);
        assert_eq!(node.gauge(Metric::Fills), 0);
    });
}

#[test]
fn the_first_byte_is_read_before_the_second_is_sent() {
    on_a_worker(async {
        let Begun { node, own, mut upstream, done } = begin(Some(10));
        let other = node.follow();
        let (mut first, mut second) =
            (filling(&own).await.read_all(), filling(&other).await.read_all());
        assert_eq!(first.exact_length(), Some(10));
        upstream.send(1).await;
        assert_bytes(&next(&mut first).await, 0..1);
        assert_bytes(&next(&mut second).await, 0..1);
        upstream.send(9).await;
        drop(upstream);
        assert_bytes(&all(first).await.expect("whole"), 1..10);
        assert_bytes(&all(second).await.expect("whole"), 1..10);
        let filled = done.await.expect("no panic");
        assert!(matches!(filled, FillEnd::Stored));
        assert_bytes(&node.stored().await.expect("stored").1, 0..10);
        assert_eq!(node.gauge(Metric::RequestsCollapsed), 1);
    });
}

/// An upstream body whose bytes are all there, from this offset up to that.
struct Arrived(u64, u64);

impl BodySource for Arrived {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> PollFrame {
        let Self(at, end) = *self;
        self.0 = (at + SLICE).min(end);
        Poll::Ready((at < end).then(|| Ok(Frame::data(bytes_of(at..self.0)))))
    }
}

#[test]
fn a_body_that_has_arrived_lets_other_tasks_run_while_it_is_moved() {
    on_a_worker(async {
        let length = 256 * SLICE;
        let node = Node::new(Settings { window_bytes: 2 * length, ..small() });
        let lead = node.lead();
        let own = lead.follower();
        let turns = Rc::new(Cell::new(0));
        let of_others = turns.clone();
        spawn_local(async move {
            loop {
                of_others.set(of_others.get() + 1);
                yield_now().await;
            }
        });
        let done = start(&node, lead, Some(length), Body::stream(Arrived(0, length)));
        let reader = filling(&own).await.read_all();
        let before = turns.get();
        done.await.expect("no panic");
        let turns = turns.get() - before;
        assert!(turns + 1 >= length / pump::TURN_BYTES as u64, "{turns} turns of another task");
        assert_bytes(&all(reader).await.expect("whole"), 0..length);
    });
}

#[test]
fn a_newcomer_reads_from_the_first_byte() {
    on_a_worker(async {
        let Begun { node, own, mut upstream, .. } = begin(None);
        let _reader = filling(&own).await.read_all();
        upstream.send(500).await;
        upstream.send(500).await;
        let late = filling(&node.follow()).await.read_all();
        assert_eq!(late.exact_length(), None);
        drop(upstream);
        assert_bytes(&all(late).await.expect("whole"), 0..1000);
    });
}

#[test]
fn a_range_is_read_without_the_rest() {
    on_a_worker(async {
        let Begun { own, mut upstream, .. } = begin(Some(1000));
        let filling = filling(&own).await;
        let (middle, end) = (filling.read(100..200), filling.read(900..5000));
        assert_eq!(middle.exact_length(), Some(100));
        assert_eq!(end.exact_length(), Some(100));
        upstream.send(400).await;
        assert_bytes(&all(middle).await.expect("whole"), 100..200);
        upstream.send(600).await;
        assert_bytes(&all(end).await.expect("whole"), 900..1000);
    });
}

#[test]
fn trailers_reach_those_who_read_all() {
    on_a_worker(async {
        let Begun { own, mut upstream, .. } = begin(None);
        let reader = filling(&own).await.read_all();
        upstream.send(3).await;
        let trailers =
            HeaderMap::from_iter([(http::header::ETAG, "\"a\"".parse().expect("value"))]);
        upstream.frames.send(Ok(Frame::trailers(trailers.clone()))).await.expect("taken");
        let collected = Body::stream(reader).collect().await.expect("whole");
        assert_eq!(collected.trailers(), Some(&trailers));
    });
}

#[test]
fn limits_leave_requests_uncollapsed() {
    on_a_worker(async {
        let node = Node::new(Settings { fills_max: 1, followers_max: 1, ..small() });
        let _lead = node.lead();
        let _follower = node.follow();
        assert!(matches!(node.join(), Join::Uncollapsed(Uncollapsed::Followers)));
        let other = node.fills.join(KeyHash(8), None, || PurgeSequence(0), |_, _| false);
        assert!(matches!(other, Join::Uncollapsed(Uncollapsed::Fills)));
        assert_eq!(node.metrics.total(Metric::RequestsUncollapsed, 1), 1);
        let alone = node.fills.adopt(KeyHash(8), PurgeSequence(0));
        assert_eq!(alone.expect_err("no room"), super::collapse::NotAdopted::Limit);
        assert_eq!(node.metrics.total(Metric::RequestsUncollapsed, 1), 1, "a request counts once");
        assert_eq!(node.metrics.total(Metric::RequestsUncollapsed, 2), 1);
    });
}

#[test]
fn no_more_keys_are_remembered_than_the_limit() {
    let node = Node::new(Settings { remembered_max: 64, ..small() });
    for key in [64, 128] {
        match node.fills.join(KeyHash(key), None, || PurgeSequence(0), |_, _| false) {
            Join::Lead(lead) => lead.release(Some(Duration::from_secs(1))),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(node.gauge(Metric::UncacheableForgotten), 1);
    node.clock.advance(Duration::from_secs(2));
    node.lead().release(Some(Duration::from_secs(1)));
    assert_eq!(node.gauge(Metric::UncacheableForgotten), 1, "what is due makes room");
}

/// A small generator (xorshift64*), so that a failing run is repeated from its seed.
pub(super) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// From the environment, or a new one; printed, so that a failure can be repeated.
pub(super) fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| crate::clock::unix_ms(Clock::system().now()) | 1);
    println!("SEED={seed}");
    seed
}
