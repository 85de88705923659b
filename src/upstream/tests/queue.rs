//! Limits of requests in flight, and the queue.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::labels::{QueueRefusal, Unsent};
use crate::metrics::Metrics;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A pool of these origins that may have one request in flight each.
fn limited(origins: Vec<Origin>, length: usize, wait_max: Duration) -> PoolDefinition {
    let mut definition = pool(origins);
    definition.settings.requests_max = 1;
    definition.settings.queue.length = length;
    definition.settings.queue.wait_max = wait_max;
    definition
}

const LONG: Duration = Duration::from_secs(15);

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn get(path: &str) -> http::Request<Body> {
    let mut request = request(Method::GET, Body::Empty);
    *request.uri_mut() = path.parse().expect("a path");
    request
}

/// Sends a request in a task of its own.
fn send(bed: &std::rc::Rc<Bed>, path: &str) -> tokio::task::JoinHandle<Result<Bytes, FetchError>> {
    let (bed, request) = (bed.clone(), get(path));
    tokio::task::spawn_local(async move {
        let response = bed.send(request).await?;
        Ok(read(response).await.expect("a whole body"))
    })
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_in_order_and_those_beyond_the_queue_are_refused() {
    on_core(async {
        let origin = Scripted::bind().await;
        let bed = std::rc::Rc::new(Bed::new(limited(vec![origin.origin()], 2, LONG)));
        let mut sent = vec![send(&bed, "/0")];
        let mut peer = origin.accept().await;
        assert!(peer.head().await.starts_with("GET /0 "));
        for (count, path) in [(1, "/1"), (2, "/2")] {
            sent.push(send(&bed, path));
            until(|| bed.pool.waiting() == count).await;
        }
        let refused = bed.send(get("/3")).await.expect_err("the queue is full");
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let expected = "each origin of pool test has 1 requests in flight (requests_max) or 4096 connections (connections_max), and the queue is full (queue.length)";
        assert_eq!(refused.to_string(), expected);
        peer.say(OK).await;
        for path in ["/1", "/2"] {
            let head = peer.answer(OK).await;
            assert!(head.starts_with(&format!("GET {path} ")), "{head}");
        }
        for response in sent {
            assert_eq!(response.await.expect("no panic").expect("a response"), "ok");
        }
        assert_eq!(bed.pool.waiting(), 0);
        assert_eq!(bed.total(Metric::UpstreamQueue), 0);
        let refusals = |refusal: QueueRefusal| {
            bed.metrics.total(Metric::UpstreamQueueRefused, refusal.index())
        };
        assert_eq!((refusals(QueueRefusal::Full), refusals(QueueRefusal::Late)), (1, 0));
        let unsent = bed.metrics.total(Metric::UpstreamUnsent, Unsent::Busy.index());
        assert_eq!((unsent, bed.total(Metric::UpstreamRequests)), (1, 3), "no origin has failed");
        assert_eq!(bed.failures("connection_limit_reached"), 0);
    })
    .await;
}

#[tokio::test]
async fn a_request_waits_no_longer_than_its_time_and_blames_no_origin() {
    on_core(async {
        let origin = Scripted::bind().await;
        let short = Duration::from_millis(50);
        let bed = std::rc::Rc::new(Bed::new(limited(vec![origin.origin()], 9, short)));
        let first = send(&bed, "/0");
        let mut peer = origin.accept().await;
        peer.head().await;
        let late = bed.send(get("/1")).await.expect_err("no place");
        let expected = "each origin of pool test has 1 requests in flight (requests_max) or 4096 connections (connections_max), and none was free within 50ms (queue.wait_max)";
        assert_eq!(late.to_string(), expected);
        assert!(late.retry_after() >= 1);
        assert!(bed.pool.members().at(0).health.view().is_quiet());
        peer.say(OK).await;
        assert_eq!(first.await.expect("no panic").expect("a response"), "ok");
    })
    .await;
}

#[tokio::test]
async fn a_thousand_that_leave_the_queue_do_not_keep_the_next_one_from_its_place() {
    on_core(async {
        let origin = Scripted::bind().await;
        let bed = std::rc::Rc::new(Bed::new(limited(vec![origin.origin()], 2_000, LONG)));
        let first = send(&bed, "/0");
        let mut peer = origin.accept().await;
        peer.head().await;
        let leaving: Vec<_> = (0..1_000).map(|_| send(&bed, "/left")).collect();
        until(|| bed.pool.waiting() == 1_000).await;
        let last = send(&bed, "/last");
        until(|| bed.pool.waiting() == 1_001).await;
        // The place is given to the first one as it leaves.
        peer.say(OK).await;
        leaving.iter().for_each(|task| task.abort());
        until(|| bed.pool.waiting() <= 1).await;
        loop {
            let head = peer.answer(OK).await;
            if head.starts_with("GET /last ") {
                break;
            }
        }
        assert_eq!(last.await.expect("no panic").expect("a response"), "ok");
        assert_eq!(first.await.expect("no panic").expect("a response"), "ok");
        assert_eq!(bed.pool.members().at(0).load.in_flight(), 0);
        assert_eq!(bed.pool.waiting(), 0);
    })
    .await;
}

#[tokio::test]
async fn an_origin_at_its_limit_is_passed_over_and_a_second_worker_s_end_frees_a_place() {
    on_core(async {
        let (one, two) = (Scripted::bind().await, Scripted::bind().await);
        let definition = limited(vec![one.origin(), two.origin()], 5, LONG);
        let bed = Bed::new(definition);
        let metrics = bed.metrics.clone();
        let other = Bed {
            upstreams: Bed::new(pool(vec![one.origin()])).upstreams,
            pool: bed.pool.clone(),
            metrics,
        };
        let (bed, other) = (std::rc::Rc::new(bed), std::rc::Rc::new(other));
        let (first, second) = (send(&bed, "/a"), send(&other, "/b"));
        let (mut at_one, mut at_two) = tokio::join!(one.accept(), two.accept());
        tokio::join!(at_one.head(), at_two.head());
        let waits = send(&bed, "/c");
        until(|| bed.pool.waiting() == 1).await;
        // Whichever worker has the request at this origin, its end lets the waiting one go.
        at_two.say(OK).await;
        let answered = async {
            tokio::select! {
                _ = at_two.answer(OK) => {}
                mut peer = two.accept() => drop(peer.answer(OK).await),
            }
        };
        let (body, ()) = tokio::join!(waits, answered);
        assert_eq!(body.expect("no panic").expect("a response"), "ok");
        at_one.say(OK).await;
        for response in [first, second] {
            assert_eq!(response.await.expect("no panic").expect("a response"), "ok");
        }
    })
    .await;
}

/// A pool of these origins that may have one connection each.
fn one_connection_each(origins: Vec<Origin>, length: usize) -> PoolDefinition {
    let mut definition = limited(origins, length, LONG);
    definition.settings.requests_max = 0;
    definition.settings.connections_max = 1;
    definition
}

/// Another worker that uses the same pool.
fn second_worker(bed: &Bed) -> std::rc::Rc<Bed> {
    let Bed { upstreams, .. } = Bed::new(pool(vec![Origin::http("127.0.0.1", 9)]));
    let (pool, metrics) = (bed.pool.clone(), bed.metrics.clone());
    std::rc::Rc::new(Bed { upstreams, pool, metrics })
}

#[tokio::test]
async fn requests_beyond_the_connections_wait_in_order_and_use_the_same_connection() {
    on_core(async {
        let origin = Scripted::bind().await;
        let definition = one_connection_each(vec![origin.origin()], 2);
        let bed = std::rc::Rc::new(Bed::new(definition));
        let mut sent = vec![send(&bed, "/0")];
        let mut peer = origin.accept().await;
        assert!(peer.head().await.starts_with("GET /0 "));
        for (count, path) in [(1, "/1"), (2, "/2")] {
            sent.push(send(&bed, path));
            until(|| bed.pool.waiting() == count).await;
        }
        let refused = bed.send(get("/3")).await.expect_err("the queue is full");
        let expected = "each origin of pool test has 1 connections (connections_max), and the queue is full (queue.length)";
        assert_eq!(refused.to_string(), expected);
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        peer.say(OK).await;
        for path in ["/1", "/2"] {
            let head = peer.answer(OK).await;
            assert!(head.starts_with(&format!("GET {path} ")), "{head}");
        }
        for response in sent {
            assert_eq!(response.await.expect("no panic").expect("a response"), "ok");
        }
        assert_eq!(bed.total(Metric::UpstreamConnects), 1);
        assert_eq!((bed.pool.waiting(), bed.pool.members().at(0).load.in_flight()), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_connection_lets_a_waiting_request_open_another() {
    on_core(async {
        let origin = Scripted::bind().await;
        let definition = one_connection_each(vec![origin.origin()], 2);
        let bed = std::rc::Rc::new(Bed::new(definition));
        let other = second_worker(&bed);
        let first = send(&bed, "/0");
        let mut peer = origin.accept().await;
        peer.head().await;
        let waits = send(&other, "/1");
        until(|| bed.pool.waiting() == 1).await;
        peer.say("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        assert!(origin.accept().await.answer(OK).await.starts_with("GET /1 "));
        for response in [first, waits] {
            assert_eq!(response.await.expect("no panic").expect("a response"), "ok");
        }
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_of_another_worker_gives_way_to_a_request_that_waits() {
    on_core(async {
        let origin = Scripted::bind().await;
        let definition = one_connection_each(vec![origin.origin()], 2);
        let bed = std::rc::Rc::new(Bed::new(definition));
        let other = second_worker(&bed);
        let first = send(&bed, "/0");
        let mut peer = origin.accept().await;
        peer.answer(OK).await;
        assert_eq!(first.await.expect("no panic").expect("a response"), "ok");
        assert_eq!(bed.total(Metric::UpstreamIdle), 1);
        let began = tokio::time::Instant::now();
        let waits = send(&other, "/1");
        assert!(origin.accept().await.answer(OK).await.starts_with("GET /1 "));
        assert_eq!(waits.await.expect("no panic").expect("a response"), "ok");
        // Without the request to close it, the first connection would be idle for 50 s.
        assert!(began.elapsed() < LONG);
        peer.closed().await;
        assert_eq!(bed.metrics.total(Metric::UpstreamIdleClosed, 4), 1, "it was wanted");
    })
    .await;
}

#[tokio::test]
async fn without_a_queue_a_request_beyond_the_connections_goes_elsewhere_or_is_refused() {
    on_core(async {
        let (one, two) = (Scripted::bind().await, Scripted::bind().await);
        let definition = one_connection_each(vec![one.origin(), two.origin()], 0);
        let bed = std::rc::Rc::new(Bed::new(definition));
        let sent = [send(&bed, "/a"), send(&bed, "/b")];
        let (mut at_one, mut at_two) = tokio::join!(one.accept(), two.accept());
        tokio::join!(at_one.head(), at_two.head());
        let refused = bed.send(get("/c")).await.expect_err("no connection is free");
        let expected = "each origin of pool test has 1 connections (connections_max), and no request may wait (queue.length is 0)";
        assert_eq!(refused.to_string(), expected);
        assert!(refused.retry_after() >= 1);
        assert_eq!(bed.retries(RetryReason::Connect), 0, "none was tried in vain");
        tokio::join!(at_one.say(OK), at_two.say(OK));
        for response in sent {
            assert_eq!(response.await.expect("no panic").expect("a response"), "ok");
        }
    })
    .await;
}

/// An origin that answers every request, and counts connections.
struct Counting {
    origin: Origin,
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Counting {
    async fn start() -> Self {
        let scripted = Scripted::bind().await;
        let origin = scripted.origin();
        let (open, most): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let counts = (open.clone(), most.clone());
        tokio::spawn(async move {
            loop {
                let (mut peer, (open, most)) = (scripted.accept().await, counts.clone());
                most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::spawn(async move {
                    while peer.try_answer(OK).await {}
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { origin, open, most }
    }
}

#[tokio::test]
async fn many_requests_of_four_threads_share_three_connections_and_all_are_answered() {
    let origin = Counting::start().await;
    let mut definition = one_connection_each(vec![origin.origin.clone()], 10_000);
    definition.settings.connections_max = 3;
    let shared = Pool::new(&definition, None).expect("a good pool");
    let metrics = Metrics::new(1);
    let threads = [0; 4].map(|_| {
        let (pool, metrics) = (shared.clone(), metrics.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(on_core(async move {
                let Bed { upstreams, .. } = Bed::new(self::pool(vec![Origin::http("a", 9)]));
                let bed = std::rc::Rc::new(Bed { upstreams, pool, metrics });
                for _ in 0..10 {
                    let sent: Vec<_> = (0..20).map(|_| send(&bed, "/")).collect();
                    for response in sent {
                        assert_eq!(response.await.expect("no panic").expect("a response"), "ok");
                    }
                }
            }));
        })
    });
    let joined = tokio::task::spawn_blocking(|| threads.map(|thread| thread.join().is_ok()));
    assert_eq!(joined.await.expect("no panic"), [true; 4], "each thread had all its responses");
    assert_eq!((shared.waiting(), shared.members().at(0).load.in_flight()), (0, 0));
    until(|| origin.open.load(Ordering::SeqCst) == 0).await;
    // A connection that the node has closed counts at the origin until it has read that.
    let most = origin.most.load(Ordering::SeqCst);
    assert!((1..=3 + 3).contains(&most), "{most} connections at a time");
}
