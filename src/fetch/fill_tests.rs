//! Fills from end to end, without sockets: scripted upstream bodies, readers on any thread.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::collapse::{Failure, Fills, Follower, Join, Lead, Outcome, Uncollapsed};
use super::fill::{Filling, Settings};
use super::{FetchError, FillEnd, FillReader, Filled};
use crate::body::{Body, BodyError};
use crate::cache::{Freshness, KeyHash, PurgeSequence, StoredResponse};
use crate::clock::Clock;
use crate::metrics::{Metric, Metrics};

const SLICE: u64 = 1024;
const KEY: KeyHash = KeyHash(7);

/// Small windows, so that few bytes show what a window does: two slices.
fn small() -> Settings {
    Settings { window_bytes: 2 * SLICE, patience: Duration::from_millis(50), ..Settings::default() }
}

struct Node {
    fills: Fills,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Node {
    fn new(settings: Settings) -> Self {
        let (clock, metrics) = (Clock::system(), Metrics::new(1));
        let fills = Fills::new(settings, SLICE, clock.clone(), metrics.background());
        Self { fills, clock, metrics }
    }

    /// Without any purge.
    fn join(&self) -> Join {
        self.fills.join(KEY, PurgeSequence(0), |_, _| unreachable!("nothing was purged"))
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

    fn gauge(&self, metric: Metric) -> u64 {
        self.metrics.total(metric, 0)
    }
}

/// A response of `length` bytes, if known.
fn response(length: Option<u64>) -> Arc<StoredResponse> {
    Arc::new(StoredResponse {
        key: "https://www.example.org/a".into(),
        variant: "".into(),
        site: "example".into(),
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        freshness: Freshness {
            response_time: SystemTime::UNIX_EPOCH,
            initial_age: Duration::ZERO,
            lifetime: Duration::from_secs(60),
            heuristic: false,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            must_revalidate: false,
            immutable: false,
            no_cache: false,
        },
        tags: Box::new([]),
        stored_at_sequence: PurgeSequence(0),
        complete_length: length,
        parts: None,
    })
}

/// The bytes of a body are a function of their offset.
fn bytes_of(range: std::ops::Range<u64>) -> Bytes {
    range.map(|offset| (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

type Sent = Result<Frame<Bytes>, BodyError>;

/// An upstream body that says what the test says. With room for one frame: when a second
/// `send` is through, the fill has taken the first.
struct Upstream {
    frames: mpsc::Sender<Sent>,
    sent: u64,
}

struct Scripted(mpsc::Receiver<Sent>);

impl HttpBody for Scripted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Sent>> {
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
        Outcome::Filling(filling) => filling,
        other => panic!("no fill: {other:?}"),
    }
}

fn start(lead: Lead, length: Option<u64>, body: Body) -> JoinHandle<Filled> {
    spawn_local(lead.fill(response(length), body))
}

async fn next(reader: &mut FillReader) -> Bytes {
    let frame = reader.frame().await.expect("there is more").expect("no error");
    frame.into_data().expect("data")
}

async fn all(reader: FillReader) -> Result<Bytes, BodyError> {
    reader.collect().await.map(http_body_util::Collected::to_bytes)
}

/// Runs a test as a worker runs requests.
fn on_a_worker(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(20), test).await };
    LocalSet::new().block_on(&runtime, limited).expect("done in time");
}

#[test]
fn the_first_byte_is_read_before_the_second_is_sent() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let (own, other) = (lead.follower(), node.follow());
        let (mut upstream, body) = upstream();
        let done = start(lead, Some(10), body);
        let (mut first, mut second) =
            (filling(&own).await.read_all(), filling(&other).await.read_all());
        assert_eq!(first.size_hint().exact(), Some(10));
        upstream.send(1).await;
        assert_eq!(next(&mut first).await, bytes_of(0..1));
        assert_eq!(next(&mut second).await, bytes_of(0..1));
        upstream.send(9).await;
        drop(upstream);
        assert_eq!(all(first).await.expect("whole"), bytes_of(1..10));
        assert_eq!(all(second).await.expect("whole"), bytes_of(1..10));
        let filled = done.await.expect("no panic");
        assert!(matches!(filled.end, FillEnd::Unstored) && filled.bytes == 10);
        assert_eq!(node.gauge(Metric::RequestsCollapsed), 1);
    });
}

#[test]
fn a_newcomer_reads_from_the_first_byte() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let (mut upstream, body) = upstream();
        let _done = start(lead, None, body);
        let _reader = filling(&own).await.read_all();
        upstream.send(500).await;
        upstream.send(500).await;
        let late = filling(&node.follow()).await.read_all();
        assert_eq!(late.size_hint().exact(), None);
        drop(upstream);
        assert_eq!(all(late).await.expect("whole"), bytes_of(0..1000));
    });
}

#[test]
fn a_range_is_read_without_the_rest() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let (mut upstream, body) = upstream();
        let _done = start(lead, Some(1000), body);
        let filling = filling(&own).await;
        let (middle, end) = (filling.read(100..200), filling.read(900..5000));
        assert_eq!(middle.size_hint().exact(), Some(100));
        assert_eq!(end.size_hint().exact(), Some(100));
        upstream.send(400).await;
        assert_eq!(all(middle).await.expect("whole"), bytes_of(100..200));
        upstream.send(600).await;
        assert_eq!(all(end).await.expect("whole"), bytes_of(900..1000));
    });
}

#[test]
fn trailers_reach_those_who_read_all() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let (mut upstream, body) = upstream();
        let _done = start(lead, None, body);
        let reader = filling(&own).await.read_all();
        upstream.send(3).await;
        let trailers =
            HeaderMap::from_iter([(http::header::ETAG, "\"a\"".parse().expect("value"))]);
        upstream.frames.send(Ok(Frame::trailers(trailers.clone()))).await.expect("taken");
        let collected = reader.collect().await.expect("whole");
        assert_eq!(collected.trailers(), Some(&trailers));
    });
}

/// All readers get the bytes that came, then an error; nobody sees a clean end.
fn breaks_off(length: Option<u64>, sent: u64, last: Option<Sent>) {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let (mut upstream, body) = upstream();
        let done = start(lead, length, body);
        let mut reader = filling(&own).await.read_all();
        let waiting = spawn_local(all(filling(&own).await.read_all()));
        upstream.send(sent).await;
        if let Some(last) = last {
            upstream.frames.send(last).await.expect("taken");
        }
        drop(upstream);
        assert_eq!(next(&mut reader).await, bytes_of(0..sent));
        let error = reader.frame().await.expect("not a clean end").expect_err("an error");
        assert!(error.to_string().contains(&sent.to_string()), "{error}");
        assert!(waiting.await.expect("no panic").is_err());
        assert!(matches!(done.await.expect("no panic").end, FillEnd::Broken(_)));
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
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let (mut upstream, body) = upstream();
        let task = start(lead, None, body);
        let mut reader = filling(&own).await.read_all();
        upstream.send(5).await;
        next(&mut reader).await;
        task.abort();
        assert!(reader.frame().await.expect("not a clean end").is_err());
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
        assert!(matches!(follower.outcome().await, Outcome::Failed(Failure::Abandoned)));
        assert!(matches!(node.join(), Join::Lead(_)));
    });
}

#[test]
fn followers_of_a_failure_have_the_same_failure() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let (own, other) = (lead.follower(), node.follow());
        lead.fail(Failure::Upstream(Arc::new(FetchError::AllDown { pool: "origins".into() })));
        let failures = [own.outcome().await, other.outcome().await].map(|outcome| match outcome {
            Outcome::Failed(Failure::Upstream(error)) => error,
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
        assert!(matches!(follower.outcome().await, Outcome::Released));
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
        assert!(node.fills.adopt(KEY, PurgeSequence(3)).is_none());
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
        assert!(matches!(follower.outcome().await, Outcome::Stored));
    });
}

#[test]
fn nobody_follows_a_fill_that_a_purge_has_overtaken() {
    on_a_worker(async {
        let node = Node::new(small());
        let old = node.lead();
        let before = node.follow();
        let unrelated = node.fills.join(KEY, PurgeSequence(1), |response, since| {
            assert!(response.is_none() && since == PurgeSequence(0));
            false
        });
        assert!(matches!(unrelated, Join::Follow(_)), "a purge of something else");
        let Join::Lead(new) = node.fills.join(KEY, PurgeSequence(2), |_, _| true) else {
            panic!("followed a purged fill");
        };
        assert_eq!(new.sequence(), PurgeSequence(2));
        let (mut upstream, body) = upstream();
        let done = start(old, Some(4), body);
        let reader = filling(&before).await.read_all();
        upstream.send(4).await;
        drop(upstream);
        assert_eq!(all(reader).await.expect("whole"), bytes_of(0..4), "who came before is served");
        done.await.expect("no panic");
        let after = node.fills.join(KEY, PurgeSequence(2), |_, _| unreachable!("none since"));
        assert!(matches!(after, Join::Follow(_)), "the old one's end leaves the new one in place");
    });
}

#[test]
fn a_purge_is_matched_against_the_head_once_it_is_there() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let (_upstream, body) = upstream();
        let _done = start(lead, Some(4), body);
        filling(&own).await;
        let joined = node.fills.join(KEY, PurgeSequence(1), |response, _| {
            response.expect("the head is known").site.as_ref() == "another"
        });
        assert!(matches!(joined, Join::Follow(_)));
    });
}

#[test]
fn a_fill_runs_ahead_of_its_fastest_reader_by_one_window() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let (mut upstream, body) = upstream();
        let _done = start(lead, None, body);
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
        assert_eq!(next(&mut reader).await, bytes_of(0..SLICE));
        upstream.sent -= SLICE;
        assert!(upstream.is_taken(SLICE).await, "the reader made room");
    });
}

#[test]
fn unstored_slow_readers_are_waited_for_and_then_cut_off() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let (mut upstream, body) = upstream();
        let done = start(lead, None, body);
        let (fast, mut slow) = (filling(&own).await.read_all(), filling(&own).await.read_all());
        let fast = spawn_local(all(fast));
        for _ in 0..20 {
            upstream.send(SLICE).await;
        }
        drop(upstream);
        assert_eq!(fast.await.expect("no panic").expect("whole"), bytes_of(0..20 * SLICE));
        let error = slow.frame().await.expect("not a clean end").expect_err("cut off");
        assert!(error.to_string().contains("no longer in memory"), "{error}");
        assert_eq!(node.gauge(Metric::FillReadersCut), 1);
        assert!(matches!(done.await.expect("no panic").end, FillEnd::Unstored));
    });
}

#[test]
fn a_fill_that_all_have_left_ends_and_is_not_joined() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let own = lead.follower();
        let (upstream, body) = upstream();
        let done = start(lead, Some(100 * SLICE), body);
        let reader = filling(&own).await.read_all();
        drop(own);
        drop(reader);
        let filled = done.await.expect("no panic");
        assert!(matches!(filled.end, FillEnd::Abandoned), "while upstream says nothing");
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
        let done = start(node.lead().to_the_end(), None, body);
        for _ in 0..20 {
            upstream.send(SLICE).await;
        }
        drop(upstream);
        assert_eq!(done.await.expect("no panic").bytes, 20 * SLICE);
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
            start(lead, None, body);
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
        let other = node.fills.join(KeyHash(8), PurgeSequence(0), |_, _| false);
        assert!(matches!(other, Join::Uncollapsed(Uncollapsed::Fills)));
        assert_eq!(node.metrics.total(Metric::RequestsUncollapsed, 1), 1);
        assert_eq!(node.metrics.total(Metric::RequestsUncollapsed, 2), 1);
    });
}

#[test]
fn no_more_keys_are_remembered_than_the_limit() {
    let node = Node::new(Settings { remembered_max: 64, ..small() });
    for key in [64, 128] {
        match node.fills.join(KeyHash(key), PurgeSequence(0), |_, _| false) {
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
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// Readers on four threads come at any moment, read at any pace, some leave. Whoever stays
/// has every byte; the leader never waits for ever.
#[test]
fn readers_on_many_threads_have_every_byte_whatever_the_others_do() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    #[allow(clippy::disallowed_methods, reason = "a seed for a random test")]
    let seed = seed.unwrap_or_else(|| crate::clock::unix_ms(SystemTime::now()) | 1);
    println!("SEED={seed}");
    for round in 0..30 {
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
    std::thread::scope(|threads| {
        for (number, followers) in followers.into_iter().enumerate() {
            let seed = seed ^ (number as u64 + 1) << 32 | 1;
            threads.spawn(move || on_a_worker(read_at_random(followers, length, Random(seed))));
        }
        on_a_worker(async move {
            let (mut upstream, body) = upstream();
            let done = start(lead, known.then_some(length), body);
            let own = spawn_local(all(filling(&own).await.read_all()));
            while upstream.sent < length {
                let frame = random.below(3 * SLICE) + 1;
                upstream.send(frame.min(length - upstream.sent)).await;
            }
            drop(upstream);
            assert_eq!(own.await.expect("no panic").expect("whole"), bytes_of(0..length));
            assert!(matches!(done.await.expect("no panic").end, FillEnd::Unstored));
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
                    let Some(frame) = reader.frame().await else {
                        assert_eq!(at, to);
                        return;
                    };
                    let bytes = frame.expect("no error").into_data().expect("data");
                    assert_eq!(bytes, bytes_of(at..at + bytes.len() as u64));
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
    let leaders = std::sync::atomic::AtomicUsize::new(0);
    const LENGTH: u64 = 256 << 10;
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
                                leaders.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                                let follower = lead.follower();
                                let body = Body::from(bytes_of(0..LENGTH));
                                start(lead, Some(LENGTH), body);
                                follower
                            }
                            Join::Uncollapsed(why) => panic!("{why:?}"),
                        };
                        readers.push(spawn_local(async move {
                            let mut reader = filling(&follower).await.read_all();
                            let (mut at, mut sum) = (0, 0u64);
                            while let Some(frame) = reader.frame().await {
                                let bytes = frame.expect("no error").into_data().expect("data");
                                at += bytes.len() as u64;
                                sum += u64::from(bytes[0]);
                            }
                            (at, sum)
                        }));
                    }
                    for reader in readers {
                        assert_eq!(reader.await.expect("no panic").0, LENGTH);
                    }
                });
            });
        }
    });
    assert_eq!(leaders.into_inner(), 1);
    assert_eq!(node.gauge(Metric::RequestsCollapsed), 9_999);
}
