//! HTTP/2 to origins, as the `h2` crate's server speaks it, frame for frame.

use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::super::*;
use super::on_core;
use super::scripted::*;
use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::interim::Interims;
use crate::labels::{RetryReason, Unretried};
use crate::metrics::Metric;

type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// An origin that hands each request to the test, and a pool of it alone.
struct Origin2 {
    asked: mpsc::Receiver<Asked>,
    settings: PoolDefinition,
}

impl Origin2 {
    async fn start() -> Self {
        Self::with_streams(100).await
    }

    /// One that lets so many streams be open at once.
    async fn with_streams(most: u32) -> Self {
        let listener = Scripted::bind().await;
        let mut settings = pool(vec![listener.origin()]);
        settings.settings.protocol = Protocol::Http2;
        let (ask, asked) = mpsc::channel(8);
        tokio::task::spawn_local(async move {
            loop {
                tokio::task::spawn_local(serve(listener.accept().await.io, most, ask.clone()));
            }
        });
        Self { asked, settings }
    }

    async fn next(&mut self) -> Asked {
        self.asked.recv().await.expect("a request")
    }
}

async fn serve(io: TcpStream, most: u32, ask: mpsc::Sender<Asked>) {
    let mut builder = h2::server::Builder::new();
    let mut connection = builder.max_concurrent_streams(most).handshake(io).await.expect("HTTP/2");
    while let Some(Ok(asked)) = connection.accept().await {
        // A test that has ended asks no more.
        let _ = ask.send(asked).await;
    }
}

fn head(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).expect("a head")
}

/// A body that a test feeds, and the end to feed it by.
fn fed() -> (mpsc::Sender<Result<&'static str, ()>>, Body) {
    let (feed, rest) = mpsc::channel(4);
    (feed, Body::stream(Fed(rest)))
}

struct Fed(mpsc::Receiver<Result<&'static str, ()>>);

impl BodySource for Fed {
    fn poll_frame(&mut self, cx: &mut std::task::Context<'_>) -> PollFrame {
        self.0.poll_recv(cx).map(|piece| {
            piece.map(|piece| match piece {
                Ok(text) => Ok(http_body::Frame::data(Bytes::from_static(text.as_bytes()))),
                Err(()) => Err(BodyError::new("the client left")),
            })
        })
    }
}

/// The next piece of the request's body, as the origin sees it.
async fn piece(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let piece = body.data().await;
    if let Some(Ok(bytes)) = &piece {
        body.flow_control().release_capacity(bytes.len()).expect("its window");
    }
    piece
}

#[tokio::test]
async fn interim_responses_of_http2_come_before_the_final_one() {
    on_core(async {
        let mut origin = Origin2::start().await;
        let bed = Bed::new(origin.settings.clone());
        let interims = std::sync::Arc::new(Interims::default());
        let intent = Intent { interims: Some(interims.clone()), ..Intent::default() };
        let get = request(Method::GET, Body::Empty);
        let (upstream, ()) = tokio::join!(bed.send_with(get, intent), async {
            let (_, mut respond) = origin.next().await;
            respond.send_informational(head(100)).expect("sent");
            let mut hints = head(103);
            hints.headers_mut().insert("link", "</a.css>".parse().expect("a value"));
            respond.send_informational(hints).expect("sent");
            // The interim response comes before the final one is sent.
            let hints = std::future::poll_fn(|cx| interims.poll_next(cx)).await;
            assert_eq!(hints.status(), 103);
            assert_eq!(hints.headers()["link"], "</a.css>");
            respond.send_response(head(204), true).expect("sent");
        });
        assert_eq!(upstream.expect("a response").response.status(), 204);
        let noop = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(interims.poll_next(&noop).is_pending(), "100 is between us and the origin");
    })
    .await;
}

#[tokio::test]
async fn interim_responses_without_end_and_a_101_are_no_response_over_http2() {
    on_core(async {
        for (status, times, error) in
            [(103, 100, "connection_terminated"), (101, 1, "http_upgrade_failed")]
        {
            let mut origin = Origin2::start().await;
            let mut pool = origin.settings.clone();
            pool.settings.retry.attempts_max = Some(1);
            let bed = Bed::new(pool);
            let asking = bed.send(request(Method::POST, Body::Empty));
            let (upstream, ()) = tokio::join!(asking, async {
                let (_, mut respond) = origin.next().await;
                for _ in 0..times {
                    respond.send_informational(head(status)).expect("sent");
                }
                std::future::poll_fn(|cx| respond.poll_reset(cx)).await.expect("a reset");
            });
            assert_eq!(upstream.expect_err("no response").proxy_error(), error, "{status}");
        }
    })
    .await;
}

/// hyper takes CANCEL for the end of the body.
#[tokio::test]
async fn a_body_that_the_origin_cancels_is_not_whole() {
    on_core(async {
        for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
            let mut origin = Origin2::start().await;
            let bed = Bed::new(origin.settings.clone());
            let (upstream, mut stream) = tokio::join!(bed.get(), async {
                let (_, mut respond) = origin.next().await;
                let mut stream = respond.send_response(head(200), false).expect("sent");
                stream.send_data("half".into(), false).expect("sent");
                stream
            });
            let mut body = upstream.expect("a response").response.into_body();
            let first = body.frame().await.expect("a piece").expect("whole");
            assert_eq!(first.into_data().expect("data"), "half");
            stream.send_reset(reason);
            assert!(body.frame().await.expect("an end").is_err(), "{reason:?}");
            assert_eq!(bed.failures("http_response_incomplete"), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn responses_whose_clients_do_not_read_hold_up_no_other_one_of_their_connection() {
    on_core(async {
        let mut origin = Origin2::start().await;
        let bed = Bed::new(origin.settings.clone());
        let mut answer = async |content: Bytes| {
            let (upstream, ()) = tokio::join!(bed.get(), async {
                let (_, mut respond) = origin.next().await;
                let mut stream = respond.send_response(head(200), false).expect("sent");
                stream.send_data(content, true).expect("sent");
            });
            upstream.expect("a response").response.into_body()
        };
        let long = Bytes::from(vec![0; 2 << 20]);
        let mut unread = Vec::new();
        for _ in 0..60 {
            unread.push(answer(long.clone()).await);
        }
        let short = answer("short".into()).await;
        let read = tokio::time::timeout(Duration::from_secs(20), short.collect()).await;
        let content = read.expect("in time").expect("whole").to_bytes();
        assert_eq!(content, "short");
        assert_eq!(bed.total(Metric::UpstreamConnects), 1);
        // Each is read to its end all the same.
        for body in unread {
            let content = body.collect().await.expect("whole").to_bytes();
            assert_eq!(content.len(), long.len());
        }
    })
    .await;
}

#[tokio::test]
async fn only_an_origin_of_http2_is_told_that_trailers_are_taken() {
    on_core(async {
        for takes_trailers in [false, true] {
            let mut origin = Origin2::start().await;
            let bed = Bed::new(origin.settings.clone());
            let intent = || Intent { takes_trailers, ..Intent::default() };
            let get = || request(Method::GET, Body::Empty);
            let (upstream, told) = tokio::join!(bed.send_with(get(), intent()), async {
                let (asked, mut respond) = origin.next().await;
                respond.send_response(head(204), true).expect("sent");
                asked.headers().get("te").cloned()
            });
            upstream.expect("a response");
            assert_eq!(told, takes_trailers.then(|| "trailers".parse().expect("a value")));

            let old = Scripted::bind().await;
            let bed = Bed::new(pool(vec![old.origin()]));
            let (upstream, told) = tokio::join!(bed.send_with(get(), intent()), async {
                old.accept().await.answer("HTTP/1.1 204 No Content\r\n\r\n").await
            });
            upstream.expect("a response");
            assert!(!told.contains("te: "), "{told}");
        }
    })
    .await;
}

#[tokio::test]
async fn messages_go_both_ways_at_once_and_trailers_end_them() {
    on_core(async {
        let mut origin = Origin2::start().await;
        let bed = Bed::new(origin.settings.clone());
        let (feed, body) = fed();
        let (upstream, (asked, mut stream)) =
            tokio::join!(bed.send(request(Method::POST, body)), async {
                let (asked, mut respond) = origin.next().await;
                // The head comes before anything of the request's body.
                (asked, respond.send_response(head(200), false).expect("sent"))
            });
        let mut received = upstream.expect("a response").response.into_body();
        let mut sent = asked.into_body();
        for text in ["one", "two"] {
            feed.send(Ok(text)).await.expect("taken");
            assert_eq!(piece(&mut sent).await.expect("a piece").expect("whole"), text);
            stream.send_data(text.into(), false).expect("sent");
            let frame = received.frame().await.expect("a piece").expect("whole");
            assert_eq!(frame.into_data().expect("data"), text);
        }
        drop(feed);
        let last = piece(&mut sent).await;
        assert!(last.is_none_or(|last| last.expect("whole").is_empty()), "the end");
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        stream.send_trailers(trailers).expect("sent");
        let frame = received.frame().await.expect("trailers").expect("whole");
        assert_eq!(frame.into_trailers().expect("trailers")["grpc-status"], "0");
        assert!(received.frame().await.is_none());
        drop(received);
        assert_eq!(bed.total(Metric::UpstreamActive), 0);
    })
    .await;
}

/// The response is not read meanwhile.
#[tokio::test]
async fn a_body_goes_on_while_nobody_reads_the_response() {
    on_core(async {
        let mut origin = Origin2::start().await;
        let bed = Bed::new(origin.settings.clone());
        let (feed, body) = fed();
        let (upstream, (asked, _stream)) =
            tokio::join!(bed.send(request(Method::POST, body)), async {
                let (asked, mut respond) = origin.next().await;
                (asked, respond.send_response(head(200), false).expect("sent"))
            });
        let _unread = upstream.expect("a response");
        let mut sent = asked.into_body();
        for _ in 0..100 {
            feed.send(Ok("more")).await.expect("taken");
            assert_eq!(piece(&mut sent).await.expect("a piece").expect("whole"), "more");
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_stream_before_and_after_the_head() {
    on_core(async {
        let mut origin = Origin2::start().await;
        let bed = Bed::new(origin.settings.clone());
        for body in [Body::Empty, fed().1] {
            let mut sending = Box::pin(bed.send(request(Method::POST, body)));
            let (_asked, mut respond) = tokio::select! {
                asked = origin.next() => asked,
                _ = &mut sending => panic!("nobody has answered"),
            };
            drop(sending);
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.expect("a reset");
            assert_eq!(reason, Reason::CANCEL);
        }
        let (_feed, body) = fed();
        let (upstream, (_asked, mut stream)) =
            tokio::join!(bed.send(request(Method::POST, body)), async {
                let (asked, mut respond) = origin.next().await;
                (asked, respond.send_response(head(200), false).expect("sent"))
            });
        drop(upstream.expect("a response"));
        let reason = std::future::poll_fn(|cx| stream.poll_reset(cx)).await.expect("a reset");
        assert_eq!(reason, Reason::CANCEL);
        assert_eq!(bed.upstreams.streams(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_breaks_off_is_not_the_origins_fault() {
    on_core(async {
        let mut origin = Origin2::start().await;
        let bed = Bed::new(origin.settings.clone());
        let (feed, body) = fed();
        let (upstream, _asked) = tokio::join!(bed.send(request(Method::POST, body)), async {
            let asked = origin.next().await;
            feed.send(Err(())).await.expect("taken");
            asked
        });
        let error = upstream.expect_err("no response");
        assert_eq!(
            (error.proxy_error(), error.status()),
            ("http_request_error", StatusCode::BAD_REQUEST)
        );

        let (feed, body) = fed();
        let (upstream, (_asked, _stream)) =
            tokio::join!(bed.send(request(Method::POST, body)), async {
                let (asked, mut respond) = origin.next().await;
                (asked, respond.send_response(head(200), false).expect("sent"))
            });
        let mut received = upstream.expect("a response").response.into_body();
        feed.send(Err(())).await.expect("taken");
        assert!(received.frame().await.expect("an end").is_err());
        assert_eq!(bed.failures("http_response_incomplete"), 0);
    })
    .await;
}

#[tokio::test]
async fn a_call_may_be_silent_for_as_long_as_a_tunnel() {
    on_core(async {
        for is_call in [false, true] {
            let mut origin = Origin2::start().await;
            let mut settings = origin.settings.clone();
            settings.settings.deadlines.first_byte = Duration::from_millis(100);
            settings.settings.deadlines.between_bytes = Duration::from_millis(100);
            settings.settings.deadlines.tunnel_idle = Duration::from_millis(400);
            let bed = Bed::new(settings);
            let (feed, body) = fed();
            // Only a call waits for an origin while its client is silent too.
            let _feed = is_call.then_some(feed);
            let intent = Intent { is_call, ..Intent::default() };
            let began = tokio::time::Instant::now();
            let (upstream, _asked) =
                tokio::join!(bed.send_with(request(Method::POST, body), intent), origin.next());
            assert_eq!(upstream.expect_err("silence").proxy_error(), "http_response_timeout");
            assert_eq!(began.elapsed() >= Duration::from_millis(400), is_call);
        }
    })
    .await;
}

/// While the client sends, the origin may have nothing to say.
#[tokio::test]
async fn a_response_is_not_late_while_the_requests_body_goes_on() {
    on_core(async {
        let mut origin = Origin2::start().await;
        let mut settings = origin.settings.clone();
        settings.settings.deadlines.between_bytes = Duration::from_millis(300);
        let bed = Bed::new(settings);
        let (feed, body) = fed();
        let (upstream, (asked, _stream)) =
            tokio::join!(bed.send(request(Method::POST, body)), async {
                let (asked, mut respond) = origin.next().await;
                (asked, respond.send_response(head(200), false).expect("sent"))
            });
        let mut received = upstream.expect("a response").response.into_body();
        let mut sent = asked.into_body();
        let began = tokio::time::Instant::now();
        let late = received.frame();
        let sending = async move {
            // The end of this block ends the request's body.
            let feed = feed;
            for _ in 0..6 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                feed.send(Ok("more")).await.expect("taken");
                piece(&mut sent).await.expect("a piece").expect("whole");
            }
        };
        let (late, ()) = tokio::join!(late, sending);
        assert!(late.expect("an end").is_err());
        assert!(began.elapsed() >= Duration::from_millis(800), "{:?}", began.elapsed());
    })
    .await;
}

/// Else a call that does not end would hold up all behind it.
#[tokio::test]
async fn where_the_origin_lets_no_more_streams_be_open_another_connection_is_opened() {
    on_core(async {
        let mut origin = Origin2::with_streams(1).await;
        let bed = Bed::new(origin.settings.clone());
        let mut open = Vec::new();
        for connections in 1..=3 {
            let (upstream, stream) = tokio::join!(bed.get(), async {
                let (_, mut respond) = origin.next().await;
                respond.send_response(head(200), false).expect("sent")
            });
            open.push((upstream.expect("a response"), stream));
            assert_eq!(bed.total(Metric::UpstreamConnects), connections);
        }
    })
    .await;
}

#[tokio::test]
async fn a_post_that_the_origin_refuses_unprocessed_is_sent_again() {
    on_core(async {
        for body in ["", "data"] {
            let mut origin = Origin2::start().await;
            let bed = Bed::new(origin.settings.clone());
            let asking = bed.send(request(Method::POST, Body::from(body)));
            let (upstream, ()) = tokio::join!(asking, async {
                let (_, mut respond) = origin.next().await;
                respond.send_reset(Reason::REFUSED_STREAM);
                let (mut again, mut respond) = origin.next().await;
                let mut received = Vec::new();
                while let Some(Ok(bytes)) = piece(again.body_mut()).await {
                    received.extend_from_slice(&bytes);
                }
                assert_eq!(received, body.as_bytes());
                respond.send_response(head(204), true).expect("sent");
            });
            assert_eq!(upstream.expect("a response").response.status(), 204);
            assert_eq!(bed.retries(RetryReason::Refused), 1);
            assert!(bed.pool.members().at(0).health.view().is_quiet(), "no fault of the origin");
        }
    })
    .await;
}

#[tokio::test]
async fn a_post_whose_body_streams_is_not_sent_again() {
    on_core(async {
        let mut origin = Origin2::start().await;
        let bed = Bed::new(origin.settings.clone());
        let (feed, body) = fed();
        feed.send(Ok("part")).await.expect("room");
        let (upstream, ()) = tokio::join!(bed.send(request(Method::POST, body)), async {
            let (mut asked, mut respond) = origin.next().await;
            piece(asked.body_mut()).await.expect("a piece").expect("a whole one");
            respond.send_reset(Reason::REFUSED_STREAM);
        });
        upstream.expect_err("its body is gone");
        assert_eq!(bed.unretried(Unretried::Body), 1);
    })
    .await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_gets_no_other_request() {
    on_core(async {
        let mut origin = Origin2::start().await;
        let mut settings = origin.settings.clone();
        settings.settings.deadlines.first_byte = Duration::from_millis(200);
        let bed = Bed::new(settings);
        let answer = async |origin: &mut Origin2| {
            let (_, mut respond) = origin.next().await;
            respond.send_response(head(204), true).expect("sent");
        };
        // The connection's own frames have come when its first response is there.
        let (first, ()) = tokio::join!(bed.get(), answer(&mut origin));
        first.expect("a response");
        let (late, stalled) = tokio::join!(bed.get(), origin.next());
        late.expect_err("no response");
        let (upstream, ()) = tokio::join!(bed.get(), answer(&mut origin));
        upstream.expect("a response");
        drop(stalled);
        assert_eq!(bed.total(Metric::UpstreamConnects), 2);
    })
    .await;
}
