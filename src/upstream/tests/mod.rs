//! The exchange over real sockets: what origins do, and what becomes of it.

mod balance;
mod broken_bodies;
mod changing_sets;
mod deadlines;
mod discovery;
mod http2;
mod idle_connections;
mod name_server;
mod queue;
mod replaced_members;
mod request_bodies;
mod retries;
pub(super) mod scripted;
mod tls;
mod unix_sockets;

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Method, StatusCode, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::timeout;

use self::scripted::*;
use super::*;
use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::labels::{ProxyError, RetryReason, Unsent};
use crate::metrics::Metric;

/// Runs a test on a core of its own, with an end to all waiting.
pub(super) async fn on_core<T>(test: impl Future<Output = T>) -> T {
    let test = async { timeout(Duration::from_secs(20), test).await.expect("it hangs") };
    LocalSet::new().run_until(test).await
}

async fn bed() -> (Scripted, Bed) {
    let origin = Scripted::bind().await;
    let bed = Bed::new(pool(vec![origin.origin()]));
    (origin, bed)
}

/// Whether each member is up, in the order of the pool's origins.
fn up(pool: &Pool) -> Vec<bool> {
    pool.members().iter().map(|member| member.health.view().class().is_usable()).collect()
}

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_request_goes_out_as_it_is_and_its_response_comes_back() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (upstream, head) = tokio::join!(bed.get(), async {
            origin
                .accept()
                .await
                .answer("HTTP/1.1 203 Fine\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 2\r\n\r\nok")
                .await
        });
        let upstream = upstream.expect("a response");
        assert_eq!(head, "GET /path?query HTTP/1.1\r\nhost: site.example\r\n\r\n");
        assert_eq!(upstream.response.status(), StatusCode::NON_AUTHORITATIVE_INFORMATION);
        assert_eq!(upstream.response.headers().get_all("x-a").iter().count(), 2);
        assert_eq!(upstream.attempts, 1);
        assert_eq!(bed.total(Metric::UpstreamReuses), 0);
        assert_eq!(upstream.address, Some(origin.address));
        assert_eq!(read(upstream).await.expect("a body"), "ok");
    })
    .await;
}

#[tokio::test]
async fn a_connection_is_used_again_after_each_kind_of_bodiless_and_whole_response() {
    on_core(async {
        let (origin, bed) = bed().await;
        let responses = [
            (Method::GET, OK),
            (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            (Method::GET, "HTTP/1.1 204 No Content\r\n\r\n"),
            (Method::GET, "HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\netag: \"a\"\r\n\r\n"),
            (Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"),
            (Method::HEAD, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
            (Method::GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            (Method::GET, "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"),
        ];
        let mut peer: Option<Peer> = None;
        for (number, (method, response)) in responses.into_iter().enumerate() {
            let (body, ()) = tokio::join!(
                async {
                    let mut conditional = conditional_request();
                    *conditional.method_mut() = method;
                    let upstream = bed.send(conditional).await.expect("a response");
                    assert_eq!(bed.total(Metric::UpstreamReuses), number as u64, "{response}");
                    read(upstream).await.expect("a body")
                },
                async {
                    if peer.is_none() {
                        peer = Some(origin.accept().await);
                    }
                    peer.as_mut().expect("just accepted").answer(response).await;
                }
            );
            assert!(body.len() < 4, "{response} has no body of 99 bytes");
        }
        assert_eq!(bed.total(Metric::UpstreamConnects), 1);
        assert_eq!(bed.total(Metric::UpstreamIdle), 1);
        assert_eq!(bed.total(Metric::UpstreamActive), 0);
    })
    .await;
}

#[tokio::test]
async fn trailers_pass() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (upstream, _) = tokio::join!(bed.get(), async {
            let mut peer = origin.accept().await;
            peer.answer("HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-sum: 7\r\n\r\n").await
        });
        let collected = upstream.expect("a response").response.into_body().collect().await;
        let collected = collected.expect("a whole body");
        assert_eq!(collected.trailers().expect("trailers")["x-sum"], "7");
        assert_eq!(collected.to_bytes(), "ab");
    })
    .await;
}

#[tokio::test]
async fn a_large_body_streams_whole_and_frees_its_connection() {
    on_core(async {
        let (origin, bed) = bed().await;
        let sent: String = (0..400_000).map(|at| format!("{at:08}")).collect();
        let (body, _peer) = tokio::join!(bed.fetch(), async {
            let mut peer = origin.accept().await;
            peer.answer(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", sent.len()))
                .await;
            peer.say(&sent).await;
            peer
        });
        assert!(body == sent, "every byte in its place");
        assert_eq!(bed.total(Metric::UpstreamIdle), 1);
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_the_origin_closes_is_not_kept() {
    on_core(async {
        let responses = [
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.0 200 OK\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok",
            "HTTP/1.2 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        ];
        for response in responses {
            let (origin, bed) = bed().await;
            let (body, ()) = tokio::join!(bed.fetch(), async {
                let mut peer = origin.accept().await;
                peer.answer(response).await;
            });
            assert_eq!(body, "ok", "{response}");
            assert_eq!(bed.total(Metric::UpstreamIdle), 0, "{response}");
        }
    })
    .await;
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_response_stay_here() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (upstream, _) = tokio::join!(bed.get(), async {
            let mut peer = origin.accept().await;
            peer.answer("HTTP/1.1 200 OK\r\nconnection: x-hop, keep-alive\r\nconnection: x-more\r\nx-hop: 1\r\nx-more: 1\r\nkeep-alive: timeout=5\r\nupgrade: h2c\r\nx-end: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await
        });
        let response = upstream.expect("a response").response;
        let names: Vec<&str> = response.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["x-end"]);
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_that_the_origin_closed_is_seen_before_it_is_used() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (_, mut peer) = tokio::join!(bed.fetch(), async {
            let mut peer = origin.accept().await;
            peer.answer(OK).await;
            peer
        });
        use tokio::io::AsyncWriteExt as _;
        peer.io.shutdown().await.expect("a shutdown");
        // The runtime must have seen the close; the sweep says so.
        while bed.total(Metric::UpstreamIdle) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (body, _) = tokio::join!(bed.fetch(), async { origin.accept().await.answer(OK).await });
        assert_eq!(body, "ok");
        assert_eq!(bed.total(Metric::UpstreamReuses), 0);
    })
    .await;
}

#[tokio::test]
async fn a_connection_is_kept_no_longer_than_the_origin_says() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (_, _peer) = tokio::join!(bed.fetch(), async {
            let mut peer = origin.accept().await;
            peer.answer("HTTP/1.1 200 OK\r\nkeep-alive: timeout=1\r\ncontent-length: 2\r\n\r\nok")
                .await;
            peer
        });
        assert_eq!(bed.total(Metric::UpstreamIdle), 0, "it ends before the next request");
    })
    .await;
}

/// The origin answers once, and closes the kept connection when the next request comes.
async fn close_race(again: http::Request<Body>) -> (Result<UpstreamResponse, FetchError>, Bed) {
    let (origin, bed) = bed().await;
    let serve = async {
        let mut peer = origin.accept().await;
        peer.answer(OK).await;
        peer.head().await;
        drop(peer);
        if timeout(Duration::from_millis(300), async { origin.accept().await.answer(OK).await })
            .await
            .is_err()
        {
            // Nothing was tried again.
        }
    };
    let (outcome, ()) = tokio::join!(
        async {
            bed.fetch().await;
            bed.send(again).await
        },
        serve
    );
    (outcome, bed)
}

#[tokio::test]
async fn a_get_whose_kept_connection_closes_is_sent_again_once() {
    on_core(async {
        let (outcome, bed) = close_race(request(Method::GET, Body::Empty)).await;
        let upstream = outcome.expect("the second connection answers");
        assert_eq!(bed.total(Metric::UpstreamReuses), 0);
        assert_eq!(read(upstream).await.expect("a body"), "ok");
        assert_eq!(bed.retries(RetryReason::Closed), 1);
    })
    .await;
}

#[tokio::test]
async fn a_post_whose_kept_connection_closes_is_not_sent_again() {
    on_core(async {
        for body in [Body::Empty, Body::from("data")] {
            let (outcome, bed) = close_race(request(Method::POST, body)).await;
            let error = outcome.expect_err("not idempotent");
            assert_eq!(error.proxy_error(), "connection_terminated");
            assert!(error.origin_may_have_seen());
            assert_eq!(bed.retries(RetryReason::Closed), 0);
            // The origin may close an idle connection.
            assert_eq!(bed.failures("connection_terminated"), 1);
            assert!(bed.pool.members().at(0).health.view().is_quiet());
        }
    })
    .await;
}

#[tokio::test]
async fn a_put_with_a_streaming_body_is_not_sent_again() {
    on_core(async {
        let (sender, body) = channel();
        sender.try_send(Bytes::from_static(b"part")).expect("room");
        drop(sender);
        let (outcome, _) = close_race(request(Method::PUT, body)).await;
        assert!(matches!(outcome, Err(FetchError::Terminated { sent: true, .. })));
    })
    .await;
}

#[tokio::test]
async fn the_only_origin_is_asked_once_more_after_half_a_head() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (outcome, ()) = tokio::join!(bed.get(), async {
            for _ in 0..2 {
                origin.accept().await.answer("HTTP/1.1 200 O").await;
            }
        });
        let error = outcome.expect_err("half a head");
        assert_eq!(error.proxy_error(), "http_response_incomplete");
        assert_eq!(bed.total(Metric::UpstreamConnects), 2);
    })
    .await;
}

#[tokio::test]
async fn another_origin_is_tried_when_one_refuses() {
    on_core(async {
        let origin = Scripted::bind().await;
        let second = Origin { priority: 1, ..origin.origin() };
        let bed = Bed::new(pool(vec![closed_port().await, second]));
        // Not even an unsafe request was seen by the first.
        let (outcome, head) =
            tokio::join!(bed.send(request(Method::POST, Body::from("data"))), async {
                origin.accept().await.answer(OK).await
            });
        assert_eq!(outcome.expect("the second one answers").attempts, 2);
        assert!(head.starts_with("POST "), "{head}");
        assert_eq!(bed.failures("connection_refused"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_refused_connection_is_a_502_that_says_so() {
    on_core(async {
        let bed = Bed::new(pool(vec![closed_port().await]));
        let error = bed.get().await.expect_err("nobody listens");
        assert_eq!(error.proxy_error(), "connection_refused");
        assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
        assert!(!error.origin_may_have_seen());
        assert_eq!(bed.total(Metric::UpstreamConnects), 1, "the same one would refuse again");
    })
    .await;
}

#[tokio::test]
async fn an_origin_that_fails_again_and_again_is_left_alone_while_another_is_up() {
    on_core(async {
        let origin = Scripted::bind().await;
        let mut settings = pool(vec![closed_port().await, origin.origin()]);
        settings.settings.health.connect_failures = 2;
        let bed = Bed::new(settings);
        let serve = async {
            let mut peer = origin.accept().await;
            loop {
                peer.answer(OK).await;
            }
        };
        let ask = async {
            for _ in 0..10 {
                bed.fetch().await;
            }
        };
        tokio::select! { () = ask => {}, () = serve => {} }
        assert_eq!(bed.failures("connection_refused"), 2);
        assert_eq!(bed.total(Metric::UpstreamMarkedDown), 1);
        assert_eq!(up(&bed.pool), [false, true]);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_no_origin_was_tried_for_is_no_failure_of_an_origin() {
    on_core(async {
        let mut settings = pool(vec![closed_port().await]);
        settings.settings.health.connect_failures = 1;
        let bed = Bed::new(settings);
        let counts = || {
            let unsent = bed.metrics.total(Metric::UpstreamUnsent, Unsent::AllDown.index());
            let failures = ProxyError::WORDS.iter().map(|word| bed.failures(word)).sum::<u64>();
            (bed.total(Metric::UpstreamRequests), failures, unsent)
        };
        // Two reach it: the one that takes it down, and its trial.
        for expected in [(1, 1, 0), (2, 2, 0), (2, 2, 1)] {
            bed.get().await.expect_err("nothing listens");
            assert_eq!(counts(), expected);
        }
    })
    .await;
}

#[tokio::test]
async fn host_is_what_the_pool_says() {
    on_core(async {
        let origin = Scripted::bind().await;
        let own = format!("127.0.0.1:{}", origin.address.port());
        let fixed = HostHeader::Fixed(HeaderValue::from_static("fixed.example"));
        let cases = [
            (HostHeader::Preserve, "site.example"),
            (HostHeader::Origin, own.as_str()),
            (fixed, "fixed.example"),
        ];
        for (host_header, expected) in cases {
            let mut settings = pool(vec![origin.origin()]);
            settings.settings.host_header = host_header;
            let bed = Bed::new(settings);
            let (_, head) =
                tokio::join!(bed.fetch(), async { origin.accept().await.answer(OK).await });
            assert!(head.contains(&format!("\r\nhost: {expected}\r\n")), "{head}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_of_http2_becomes_one_of_http1() {
    on_core(async {
        let (origin, bed) = bed().await;
        let request = http::Request::builder()
            .version(Version::HTTP_2)
            .uri("https://site.example/path")
            .body(Body::Empty)
            .expect("a request");
        let (outcome, head) =
            tokio::join!(bed.send(request), async { origin.accept().await.answer(OK).await });
        outcome.expect("a response");
        assert_eq!(head, "GET /path HTTP/1.1\r\nhost: site.example\r\n\r\n");
    })
    .await;
}

#[tokio::test]
async fn idle_connections_have_a_limit_and_an_end() {
    on_core(async {
        let origin = Scripted::bind().await;
        let mut settings = pool(vec![origin.origin()]);
        settings.settings.keep_alive.idle_max = 1;
        settings.settings.keep_alive.idle = Duration::from_millis(100);
        let bed = Bed::new(settings);
        let (_, _, (mut first, mut second)) = tokio::join!(bed.fetch(), bed.fetch(), async {
            let (mut first, mut second) = (origin.accept().await, origin.accept().await);
            // Both are in flight before either is answered.
            first.head().await;
            second.head().await;
            first.say(OK).await;
            second.say(OK).await;
            (first, second)
        });
        assert_eq!(bed.metrics.total(Metric::UpstreamIdleClosed, 1), 1);
        // The sweep closes the one that is left.
        first.closed().await;
        second.closed().await;
        assert_eq!(bed.total(Metric::UpstreamIdle), 0);
    })
    .await;
}

#[tokio::test]
async fn leaving_early_closes_the_connection_and_leaves_nothing_counted() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (upstream, mut peer) = tokio::join!(bed.get(), async {
            let mut peer = origin.accept().await;
            peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nhalf").await;
            peer
        });
        drop(upstream.expect("a head"));
        peer.closed().await;
        for gauge in [Metric::UpstreamActive, Metric::UpstreamIdle, Metric::UpstreamConnections] {
            assert_eq!(bed.total(gauge), 0);
        }
        assert!(bed.metrics.encode().contains("skerry_upstream_failures_total"));
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_hands_over_the_connection_with_what_came_early() {
    on_core(async {
        let (origin, bed) = bed().await;
        let intent =
            Intent { upgrade: Some(HeaderValue::from_static("chat")), ..Intent::default() };
        let (upstream, peer) = tokio::join!(
            bed.send_with(request(Method::GET, Body::Empty), intent),
            async {
                let mut peer = origin.accept().await;
                let head = peer.answer("HTTP/1.1 101 Switching Protocols\r\nupgrade: chat\r\nconnection: upgrade\r\n\r\nearly").await;
                assert!(head.contains("connection: upgrade\r\n"), "{head}");
                assert!(head.contains("upgrade: chat\r\n"), "{head}");
                peer
            }
        );
        let upstream = upstream.expect("a response");
        assert_eq!(upstream.response.headers()["upgrade"], "chat");
        let mut upgraded = upstream.upgraded.expect("an upgraded connection");
        assert_eq!(upgraded.early, "early");
        drop(peer);
        let mut rest = Vec::new();
        upgraded.io.read_to_end(&mut rest).await.expect("its end");
        assert!(rest.is_empty());
    })
    .await;
}

/// A body that a test feeds, one piece in store.
pub(super) fn channel() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Body::stream(Channel(receiver)))
}

struct Channel(mpsc::Receiver<Bytes>);

impl BodySource for Channel {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

struct Broken;

impl BodySource for Broken {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> PollFrame {
        Poll::Ready(Some(Err(BodyError::new("the client left"))))
    }
}
