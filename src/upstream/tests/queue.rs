//! Limits of requests in flight, and the queue.

use super::*;
use crate::labels::QueueRefusal;

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
        let expected = "each origin of pool test has 1 requests in flight (requests_max), and the queue is full (queue.length)";
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
        assert_eq!(bed.failures("connection_limit_reached"), 1);
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
        let expected = "each origin of pool test has 1 requests in flight (requests_max), and none was free within 50ms (queue.wait_max)";
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
