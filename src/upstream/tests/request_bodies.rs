//! The content of requests, and 100 (Continue).

use super::*;

#[tokio::test]
async fn a_request_body_streams_piece_by_piece() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (sender, body) = channel();
        let (outcome, ()) = tokio::join!(bed.send(request(Method::POST, body)), async {
            let mut peer = origin.accept().await;
            let head = peer.head().await;
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            // The second piece is made only when the first has arrived.
            for piece in ["first", "second"] {
                sender.send(Bytes::from_static(piece.as_bytes())).await.expect("it listens");
                peer.through(piece.as_bytes()).await;
            }
            drop(sender);
            peer.through(b"0\r\n\r\n").await;
            peer.say(OK).await;
        });
        assert_eq!(read(outcome.expect("a response")).await.expect("a body"), "ok");
    })
    .await;
}

#[tokio::test]
async fn a_request_body_that_breaks_off_is_the_clients_fault() {
    on_core(async {
        let (origin, bed) = bed().await;
        let body = Body::stream(Broken);
        let (outcome, ()) = tokio::join!(bed.send(request(Method::POST, body)), async {
            origin.accept().await.closed().await;
        });
        let error = outcome.expect_err("no whole request");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        assert!(up(&bed.pool) == [true]);
    })
    .await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_passed_on() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (sender, body) = channel();
        sender.try_send(Bytes::from_static(b"first")).expect("room");
        let (outcome, ()) = tokio::join!(
            async {
                let upstream = bed.send(request(Method::POST, body)).await.expect("a response");
                assert_eq!(upstream.response.status(), StatusCode::PAYLOAD_TOO_LARGE);
                read(upstream).await
            },
            async {
                let mut peer = origin.accept().await;
                peer.through(b"first").await;
                peer.say("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await;
                peer.closed().await;
            }
        );
        assert_eq!(outcome.expect("a whole body"), "no");
        assert!(sender.is_closed(), "the rest of the request is not asked for");
        assert_eq!(bed.total(Metric::UpstreamIdle), 0);
    })
    .await;
}

fn expecting(body: Body) -> http::Request<Body> {
    let mut request = request(Method::POST, body);
    request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
    request
}

#[tokio::test]
async fn the_body_waits_for_the_origins_100() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (sender, body) = channel();
        sender.try_send(Bytes::from_static(b"payload")).expect("room");
        let (outcome, ()) = tokio::join!(bed.send(expecting(body)), async {
            let mut peer = origin.accept().await;
            let head = peer.head().await;
            assert!(head.contains("expect: 100-continue"), "{head}");
            let early = timeout(Duration::from_millis(50), peer.through(b"payload")).await;
            early.expect_err("no byte of the body before the 100");
            assert_eq!(sender.capacity(), 0, "the client's body was not even asked for");
            peer.say("HTTP/1.1 100 Continue\r\n\r\n").await;
            peer.through(b"payload").await;
            drop(sender);
            peer.through(b"0\r\n\r\n").await;
            peer.say(OK).await;
        });
        assert_eq!(outcome.expect("a response").response.status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_417_is_passed_on_and_no_body_is_sent() {
    on_core(async {
        let (origin, bed) = bed().await;
        let (sender, body) = channel();
        sender.try_send(Bytes::from_static(b"payload")).expect("room");
        let (outcome, ()) = tokio::join!(
            async {
                let upstream = bed.send(expecting(body)).await.expect("a response");
                let status = upstream.response.status();
                read(upstream).await.expect("a body");
                status
            },
            async {
                let mut peer = origin.accept().await;
                peer.answer("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await;
                peer.closed().await;
            }
        );
        assert_eq!(outcome, StatusCode::EXPECTATION_FAILED);
        assert!(sender.is_closed(), "the body is dropped unread");
        assert_eq!(bed.total(Metric::UpstreamIdle), 0, "half a request is on that connection");
    })
    .await;
}

#[tokio::test]
async fn an_origin_that_knows_no_100_gets_the_body_after_a_while() {
    on_core(async {
        let origin = Scripted::bind().await;
        let mut settings = pool(vec![origin.origin()]);
        settings.settings.deadlines.expect_continue = Duration::from_millis(50);
        let bed = Bed::new(settings);
        let (outcome, ()) = tokio::join!(bed.send(expecting(Body::from("payload"))), async {
            let mut peer = origin.accept().await;
            peer.through(b"payload").await;
            peer.say(OK).await;
        });
        outcome.expect("a response");
    })
    .await;
}
