//! Fills from end to end, without sockets: scripted upstream bodies, readers on any thread.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::collapse::{FillFailure, FillOutcome, Fills, Follower, Join, Lead, Uncollapsed};
use super::reader::FillReader;
use super::{FillEnd, Filling, Settings};
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

/// All readers get the bytes that came, then an error; nobody sees a clean end.
fn breaks_off(length: Option<u64>, sent: u64, last: Option<Sent>) {
    on_a_worker(async {
        let Begun { node, own, mut upstream, done } = begin(length);
        let mut reader = filling(&own).await.read_all();
        let waiting = spawn_local(all(filling(&own).await.read_all()));
        upstream.send(sent).await;
        if let Some(last) = last {
            upstream.frames.send(last).await.expect("taken");
        }
        drop(upstream);
        assert_bytes(&next(&mut reader).await, 0..sent);
        let error = next_frame(&mut reader).await.expect("not a clean end").expect_err("an error");
        assert!(error.to_string().contains(&sent.to_string()), "{error}");
        assert!(waiting.await.expect("no panic").is_err());
        assert!(matches!(done.await.expect("no panic"), FillEnd::Broken));
        assert!(node.stored().await.is_none());
        assert!(matches!(node.join(), Join::Lead(_)), "the next request asks anew");
    });
}

#[test]
fn an_early_end_is_an_error_for_every_reader() {
    breaks_off(Some(100), 99, None);
}

#[test]
fn an_upstream_error_is_an_error_for_every_reader() {
    breaks_off(None, 99, Some(Err(BodyError::new("reset"))));
}

#[test]
fn more_bytes_than_announced_are_an_error_for_every_reader() {
    breaks_off(Some(100), 100, Some(Ok(Frame::data(Bytes::from_static(b"x")))));
}

#[test]
fn a_pump_that_is_dropped_leaves_no_reader_waiting() {
    on_a_worker(async {
        let Begun { node, own, mut upstream, done: task } = begin(None);
        let mut reader = filling(&own).await.read_all();
        upstream.send(5).await;
        next(&mut reader).await;
        task.abort();
        assert!(next_frame(&mut reader).await.expect("not a clean end").is_err());
        assert!(matches!(node.join(), Join::Lead(_)));
    });
}

#[test]
fn a_lead_that_is_dropped_leaves_no_follower_waiting() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let follower = node.follow();
        drop(lead);
        assert!(matches!(follower.outcome().await, FillOutcome::Failed(FillFailure::Abandoned)));
        assert!(matches!(node.join(), Join::Lead(_)));
    });
}

#[test]
fn followers_of_a_failure_have_the_same_failure() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let (own, other) = (lead.follower(), node.follow());
        lead.fail(FillFailure::Upstream(Arc::new(FetchError::AllDown {
            pool: "origins".into(),
            retry_after: 1,
        })));
        let failures = [own.outcome().await, other.outcome().await].map(|outcome| match outcome {
            FillOutcome::Failed(FillFailure::Upstream(error)) => error,
            other => panic!("{other:?}"),
        });
        assert!(Arc::ptr_eq(&failures[0], &failures[1]));
    });
}

#[test]
fn what_is_uncacheable_releases_its_followers_and_is_remembered_for_a_while() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let follower = node.follow();
        lead.release(Some(Duration::from_secs(60)));
        assert!(matches!(follower.outcome().await, FillOutcome::Released));
        assert!(matches!(node.join(), Join::Uncollapsed(Uncollapsed::Uncacheable)));
        node.clock.advance(Duration::from_secs(61));
        assert!(matches!(node.join(), Join::Lead(_)));
    });
}

#[test]
fn what_turned_cacheable_is_adopted_and_forgotten_as_uncacheable() {
    on_a_worker(async {
        let node = Node::new(small());
        node.lead().release(Some(Duration::from_secs(60)));
        let lead = node.fills.adopt(KEY, PurgeSequence(3)).expect("nobody else fills");
        assert_eq!(lead.sequence(), PurgeSequence(3));
        assert_eq!(
            node.fills.adopt(KEY, PurgeSequence(3)).expect_err("one is on its way"),
            super::collapse::NotAdopted::InFlight
        );
        assert!(matches!(node.join(), Join::Follow(_)));
    });
}

#[test]
fn followers_of_a_validation_are_sent_to_the_store() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let follower = node.follow();
        lead.stored();
        assert!(matches!(follower.outcome().await, FillOutcome::Stored));
    });
}

#[test]
fn nobody_follows_a_fill_that_a_purge_has_overtaken() {
    on_a_worker(async {
        let node = Node::new(small());
        let old = node.lead();
        let before = node.follow();
        let unrelated = node.fills.join(
            KEY,
            None,
            || PurgeSequence(1),
            |response, since| {
                assert!(response.is_none() && since == PurgeSequence(0));
                false
            },
        );
        assert!(matches!(unrelated, Join::Follow(_)), "a purge of something else");
        let Join::Lead(new) = node.fills.join(KEY, None, || PurgeSequence(2), |_, _| true) else {
            panic!("followed a purged fill");
        };
        assert_eq!(new.sequence(), PurgeSequence(2));
        let (mut upstream, body) = upstream();
        let done = start(&node, old, Some(4), body);
        let reader = filling(&before).await.read_all();
        upstream.send(4).await;
        drop(upstream);
        assert_bytes(&all(reader).await.expect("whole"), 0..4);
        done.await.expect("no panic");
        let after =
            node.fills.join(KEY, None, || PurgeSequence(2), |_, _| unreachable!("none since"));
        assert!(matches!(after, Join::Follow(_)), "the old one's end leaves the new one in place");
    });
}

#[test]
fn a_purge_is_matched_against_the_head_once_it_is_there() {
    on_a_worker(async {
        let Begun { node, own, upstream: _upstream, .. } = begin(Some(4));
        filling(&own).await;
        let joined = node.fills.join(
            KEY,
            None,
            || PurgeSequence(1),
            |response, _| response.expect("the head is known").site.eq_ignore_ascii_case("another"),
        );
        assert!(matches!(joined, Join::Follow(_)));
    });
}

/// Rule of purges across hops: the fill may have begun before a purge that is in force at the asker.
#[test]
fn a_request_with_an_unmet_requirement_follows_only_a_fill_that_carries_it() {
    on_a_worker(async {
        let node = Node::new(small());
        let entries = |number| {
            let entry = EntryId(number, 0);
            Requirement::Entries(vec![StreamPosition { history: "h".into(), number, entry }])
        };
        let join = |unmet: Option<&Requirement>| {
            node.fills.join(KEY, unmet, || PurgeSequence(0), |_, _| false)
        };
        let Join::Lead(plain) = join(None) else { panic!("the first one leads") };
        let Join::Lead(carrying) = join(Some(&entries(7))) else { panic!("joined any fill") };
        assert!(matches!(join(Some(&entries(7))), Join::Follow(_)));
        assert!(matches!(join(None), Join::Follow(_)), "it began later than the request needs");
        let Join::Lead(later) = join(Some(&entries(8))) else { panic!("joined an older fill") };
        let origin_only = Requirement::OriginOnly;
        let Join::Lead(_first) = join(Some(&origin_only)) else { panic!("joined an older fill") };
        assert!(matches!(join(Some(&origin_only)), Join::Lead(_)), "it began earlier");
        drop((plain, carrying, later));
    });
}

/// Invariant 1: nothing whose upstream request began before a purge is fresh after it.
#[test]
fn a_purge_in_the_middle_of_a_fill_reaches_newcomers_and_what_is_stored() {
    on_a_worker(async {
        let node = Node::new(small());
        let join = || {
            let url = "https://www.example.org/a";
            let asked = PurgeTarget { site: "example", url, tags: &[] };
            let overtaken = |response: Option<&_>, since| {
                node.store.purges().overtaken(&asked, response, since)
            };
            node.fills.join(KEY, None, || node.store.purges().sequence(), overtaken)
        };
        let purge = async |scope| {
            let purges = vec![(scope, PurgeKind::Hard)];
            let batch = PurgeBatch { purges, ..PurgeBatch::default() };
            node.store.purges().purge(batch).await.expect("purged");
        };
        let Join::Lead(mut lead) = join() else { panic!("the first one leads") };
        assert!(matches!(join(), Join::Follow(_)), "nothing was purged");
        purge(PurgeScope::Url("https://www.example.org/b".into())).await;
        assert!(matches!(join(), Join::Follow(_)), "another URL, before the head is there");
        let (own, stored_at_sequence) = (lead.follower(), lead.sequence());
        let response =
            StoredResponse { stored_at_sequence, ..StoredResponse::clone(&response(None)) };
        let (mut upstream, body) = upstream();
        let store = node.store.clone();
        let done = spawn_local(async move { lead.fill(&store, Arc::new(response), body).await });
        let reader = filling(&own).await.read_all();
        purge(PurgeScope::Site("another".into())).await;
        assert!(matches!(join(), Join::Follow(_)), "a purge of something else");
        purge(PurgeScope::Url("https://www.example.org/a".into())).await;
        let Join::Lead(after) = join() else { panic!("followed a purged fill") };
        assert!(after.sequence() > stored_at_sequence);
        upstream.send(3).await;
        drop(upstream);
        assert_bytes(&all(reader).await.expect("whole"), 0..3);
        assert_eq!(done.await.expect("no panic"), FillEnd::Stored);
        let (head, _) = node.stored().await.expect("its bytes are there");
        assert_eq!(node.store.purge_verdict(&head), Some(PurgeKind::Hard));
        let unknown = join();
        assert!(matches!(unknown, Join::Follow(_)), "it began after the purge");
        purge(PurgeScope::Tag("any".into())).await;
        assert!(matches!(join(), Join::Lead(_)), "its tags are not known yet");
    });
}

#[test]
fn a_fill_runs_ahead_of_its_fastest_reader_by_one_window() {
    on_a_worker(async {
        let Begun { node, own, mut upstream, .. } = begin(None);
        let mut reader = filling(&own).await.read_all();
        for _ in 0..20 {
            upstream.send(SLICE).await;
            if node.gauge(Metric::FillWindowBytes) == 2 * SLICE {
                break;
            }
        }
        // One frame is in the channel, or on its way into it.
        assert!(!(upstream.is_taken(SLICE).await && upstream.is_taken(SLICE).await));
        assert_eq!(node.gauge(Metric::FillWindowBytes), 2 * SLICE);
        assert_bytes(&next(&mut reader).await, 0..SLICE);
        upstream.sent -= SLICE;
        assert!(upstream.is_taken(SLICE).await, "the reader made room");
    });
}

#[test]
fn unstored_slow_readers_are_waited_for_and_then_cut_off() {
    on_a_worker(async {
        let Begun { node, own, mut upstream, done } =
            begin_on(Node::with_store(small(), storing_nothing()), None);
        let (fast, mut slow) = (filling(&own).await.read_all(), filling(&own).await.read_all());
        let fast = spawn_local(all(fast));
        for _ in 0..20 {
            upstream.send(SLICE).await;
        }
        drop(upstream);
        assert_bytes(&fast.await.expect("no panic").expect("whole"), 0..20 * SLICE);
        let error = next_frame(&mut slow).await.expect("not a clean end").expect_err("cut off");
        assert!(error.to_string().contains("no longer in memory"), "{error}");
        assert_eq!(node.gauge(Metric::FillReadersLost), 1);
        assert!(matches!(done.await.expect("no panic"), FillEnd::Unstored));
    });
}

/// Starts a fill, with one reader and the rest of it for the test to send.
async fn started(node: &Node, length: Option<u64>) -> (Upstream, FillReader, JoinHandle<FillEnd>) {
    let lead = node.lead();
    let own = lead.follower();
    let (upstream, body) = upstream();
    let done = start(node, lead, length, body);
    (upstream, filling(&own).await.read_all(), done)
}

#[test]
fn bodies_of_any_length_are_in_the_store_when_the_fill_has_ended() {
    on_a_worker(async {
        let lengths = [0, 1, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, 5 * SLICE + 7];
        for (length, known) in lengths.iter().flat_map(|length| [(*length, true), (*length, false)])
        {
            let node = Node::new(small());
            let (mut upstream, reader, done) = started(&node, known.then_some(length)).await;
            let reading = spawn_local(all(reader));
            while upstream.sent < length {
                upstream.send((length - upstream.sent).min(1000)).await;
            }
            drop(upstream);
            assert_eq!(done.await.expect("no panic").as_str(), "stored");
            assert_bytes(&reading.await.expect("no panic").expect("whole"), 0..length);
            let (head, body) = node.stored().await.expect("stored");
            assert_bytes(&body, 0..length);
            assert_eq!(head.response.complete_length, Some(length));
            assert!(matches!(node.join(), Join::Lead(_)), "the fill has left the table");
        }
    });
}

#[test]
fn a_slow_reader_holds_nobody_back_and_has_every_byte() {
    on_a_worker(async {
        let Begun { node, own, mut upstream, done } = begin(None);
        let other = node.follow();
        let fast = spawn_local(all(filling(&own).await.read_all()));
        let slow = filling(&other).await.read_all();
        for _ in 0..100 {
            upstream.send(SLICE / 2).await;
            assert!(node.gauge(Metric::FillWindowBytes) <= 5 * SLICE);
        }
        let late = filling(&node.follow()).await.read_all();
        drop(upstream);
        assert_bytes(&fast.await.expect("no panic").expect("whole"), 0..50 * SLICE);
        assert_eq!(done.await.expect("no panic").as_str(), "stored");
        assert_eq!(node.gauge(Metric::FillReadsBehind), 0, "the slow one has read nothing so far");
        assert_bytes(&all(slow).await.expect("whole"), 0..50 * SLICE);
        assert!(node.gauge(Metric::FillReadsBehind) > 40);
        assert_bytes(&all(late).await.expect("whole"), 0..50 * SLICE);
    });
}

#[test]
fn a_slow_reader_whose_slices_the_store_dropped_has_an_error_not_other_bytes() {
    on_a_worker(async {
        let least = store::Settings { memory_bytes: 64 * SLICE, ..store_settings() };
        let Begun { node, own, mut upstream, .. } =
            begin_on(Node::with_store(small(), least), None);
        let other = node.follow();
        let mut fast = filling(&own).await.read_all();
        let mut slow = filling(&other).await.read_all();
        for _ in 0..400 {
            upstream.send(SLICE).await;
            next(&mut fast).await;
        }
        drop(upstream);
        let mut at = 0;
        let error = loop {
            match next_frame(&mut slow).await.expect("not a clean end") {
                Ok(frame) => {
                    let bytes = frame.into_data().expect("data");
                    assert_bytes(&bytes, at..at + bytes.len() as u64);
                    at += bytes.len() as u64;
                }
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("no longer in memory"), "{error}");
        assert_eq!(node.gauge(Metric::FillReadersLost), 1);
    });
}

#[test]
fn what_is_too_large_for_the_store_goes_on_to_its_readers() {
    on_a_worker(async {
        let limited = store::Settings { object_bytes_max: 3 * SLICE, ..store_settings() };
        let node = Node::with_store(small(), limited);
        let (mut upstream, reader, done) = started(&node, None).await;
        let reading = spawn_local(all(reader));
        for _ in 0..20 {
            upstream.send(SLICE).await;
        }
        assert!(matches!(node.join(), Join::Lead(_)), "its first bytes are gone for newcomers");
        drop(upstream);
        assert_eq!(done.await.expect("no panic").as_str(), "unstored");
        assert_bytes(&reading.await.expect("no panic").expect("whole"), 0..20 * SLICE);
        assert!(node.stored().await.is_none());
    });
}

#[test]
fn a_fill_that_is_half_there_goes_on_without_readers() {
    on_a_worker(async {
        let node = Node::new(small());
        let (mut upstream, mut reader, done) = started(&node, Some(20 * SLICE)).await;
        for _ in 0..10 {
            upstream.send(SLICE).await;
            next(&mut reader).await;
        }
        drop(reader);
        for _ in 0..10 {
            upstream.send(SLICE).await;
        }
        assert_bytes(&all(filling(&node.follow()).await.read(5..7)).await.expect("whole"), 5..7);
        drop(upstream);
        assert_eq!(done.await.expect("no panic").as_str(), "stored");
        assert_bytes(&node.stored().await.expect("stored").1, 0..20 * SLICE);
    });
}

#[test]
fn a_fill_that_all_have_left_ends_and_is_not_joined() {
    on_a_worker(async {
        let Begun { node, own, upstream, done } = begin(Some(100 * SLICE));
        let reader = filling(&own).await.read_all();
        drop(own);
        drop(reader);
        let filled = done.await.expect("no panic");
        assert!(matches!(filled, FillEnd::Abandoned), "while upstream says nothing");
        assert!(upstream.frames.is_closed());
        assert!(matches!(node.join(), Join::Lead(_)));
        assert_eq!(node.gauge(Metric::FillReaders), 0);
    });
}

#[test]
fn a_refresh_goes_to_its_end_though_nobody_reads() {
    on_a_worker(async {
        let node = Node::new(small());
        let (mut upstream, body) = upstream();
        let done = start(&node, node.lead().run_to_end(), None, body);
        for _ in 0..20 {
            upstream.send(SLICE).await;
        }
        drop(upstream);
        assert_eq!(done.await.expect("no panic").as_str(), "stored");
        assert_bytes(&node.stored().await.expect("stored").1, 0..20 * SLICE);
        assert_eq!(node.gauge(Metric::FillWindowBytes), 0, "nothing is held of what is gone");
        assert_eq!(node.gauge(Metric::Fills), 0);
    });
}

#[test]
fn all_windows_together_have_a_limit() {
    on_a_worker(async {
        let settings = Settings { windows_bytes_total: 4 * SLICE, ..Settings::default() };
        let node = Node::new(settings);
        let (mut upstream, body) = upstream();
        let own = {
            let lead = node.lead();
            let own = lead.follower();
            start(&node, lead, None, body);
            own
        };
        let mut reader = filling(&own).await.read_all();
        for _ in 0..40 {
            upstream.send(SLICE).await;
            next(&mut reader).await;
            assert!(node.gauge(Metric::FillWindowBytes) <= 5 * SLICE);
        }
        assert_eq!(node.gauge(Metric::FillWindowsReduced), 1);
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

/// Readers on four threads come at any moment, read at any pace, some leave. Whoever stays
/// has every byte; the leader never waits for ever.
#[test]
fn readers_on_many_threads_have_every_byte_whatever_the_others_do() {
    let seed = seed();
    for round in 0..10 {
        stress(seed.wrapping_add(round * 2));
    }
}

fn stress(seed: u64) {
    let mut random = Random(seed);
    let length = random.below(40 * SLICE);
    let known = random.below(2) == 0;
    let patience = Duration::from_secs(20); // slow ones are waited for: nobody may lose a byte
    let node = Node::new(Settings { window_bytes: 4 * SLICE, patience, ..Settings::default() });
    let lead = node.lead();
    let own = lead.follower();
    let followers: Vec<Vec<Follower>> =
        (0..4).map(|_| (0..8).map(|_| node.follow()).collect()).collect();
    let node_ref = &node;
    std::thread::scope(|threads| {
        for (number, followers) in followers.into_iter().enumerate() {
            let seed = seed ^ (number as u64 + 1) << 32 | 1;
            threads.spawn(move || on_a_worker(read_at_random(followers, length, Random(seed))));
        }
        on_a_worker(async move {
            let (mut upstream, body) = upstream();
            let done = start(node_ref, lead, known.then_some(length), body);
            let own = spawn_local(all(filling(&own).await.read_all()));
            while upstream.sent < length {
                let frame = random.below(3 * SLICE) + 1;
                upstream.send(frame.min(length - upstream.sent)).await;
            }
            drop(upstream);
            assert_bytes(&own.await.expect("no panic").expect("whole"), 0..length);
            assert!(matches!(done.await.expect("no panic"), FillEnd::Stored));
        });
    });
    assert_eq!(node.gauge(Metric::FillWindowBytes), 0);
    assert_eq!(node.gauge(Metric::FillReaders), 0);
    assert_eq!(node.gauge(Metric::Fills), 0);
}

async fn read_at_random(followers: Vec<Follower>, length: u64, mut random: Random) {
    // All are readers before the first byte is read, as nothing is in a store yet.
    let mut readers = Vec::new();
    for follower in &followers {
        let from = random.below(2) * random.below(length + 1);
        let to = from + random.below(length - from + 1);
        let filling = filling(follower).await;
        let all = from == 0;
        let reader = if all { filling.read_all() } else { filling.read(from..to) };
        let leaves_at = if random.below(4) == 0 { random.below(length + 1) } else { u64::MAX };
        readers.push((reader, from, if all { length } else { to }, leaves_at));
    }
    drop(followers);
    let tasks: Vec<_> = readers
        .into_iter()
        .map(|(mut reader, from, to, leaves_at)| {
            let mut pace = Random(random.below(u64::MAX) | 1);
            spawn_local(async move {
                let mut at = from;
                while at < leaves_at {
                    for _ in 0..pace.below(4) {
                        tokio::task::yield_now().await;
                    }
                    let Some(frame) = next_frame(&mut reader).await else {
                        assert_eq!(at, to);
                        return;
                    };
                    let bytes = frame.expect("no error").into_data().expect("data");
                    assert_bytes(&bytes, at..at + bytes.len() as u64);
                    at += bytes.len() as u64;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
}

/// The brief moment of a cold, popular object.
#[test]
fn ten_thousand_requests_for_one_cold_object_are_one_upstream_request() {
    let node = Node::new(Settings::default());
    let started = std::sync::Barrier::new(2);
    let asked = AtomicUsize::new(0);
    const LENGTH: u64 = 1 << 20;
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                started.wait();
                on_a_worker(async {
                    let mut readers = Vec::new();
                    for _ in 0..5_000 {
                        let follower = match node.join() {
                            Join::Follow(follower) => follower,
                            Join::Lead(lead) => {
                                let follower = lead.follower();
                                match head(&node.store) {
                                    // The fill ended after this request had looked.
                                    Some(_) => lead.stored(),
                                    None => {
                                        asked.fetch_add(1, Ordering::Relaxed);
                                        start(
                                            &node,
                                            lead,
                                            Some(LENGTH),
                                            bytes_of(0..LENGTH).into(),
                                        );
                                    }
                                }
                                follower
                            }
                            Join::Uncollapsed(why) => panic!("{why:?}"),
                        };
                        let store = node.store.clone();
                        readers.push(spawn_local(async move {
                            let mut reader = match follower.outcome().await {
                                FillOutcome::Filling(filling) => Body::stream(filling.read_all()),
                                FillOutcome::Stored => Body::stream(
                                    store.body(&head(&store).expect("stored"), 0..LENGTH),
                                ),
                                other => panic!("{other:?}"),
                            };
                            let mut at = 0;
                            while let Some(frame) = next_frame(&mut reader).await {
                                let bytes = frame.expect("no error").into_data().expect("data");
                                assert_bytes(&bytes, at..at + bytes.len() as u64);
                                at += bytes.len() as u64;
                            }
                            at
                        }));
                    }
                    for reader in readers {
                        assert_eq!(reader.await.expect("no panic"), LENGTH);
                    }
                });
            });
        }
    });
    assert_eq!(asked.into_inner(), 1);
}
