//! Requests that must not be sent twice, and idle connections that the origin closes without having said so.

use tokio::io::AsyncWriteExt;

use super::*;

/// A new connection that the node keeps, as the origin sees it.
async fn idle_connection(origin: &Scripted, bed: &Bed) -> Peer {
    let (_, peer) = tokio::join!(bed.fetch(), async {
        let mut peer = origin.accept().await;
        peer.answer(OK).await;
        peer
    });
    peer
}

/// The body of a POST that the origin answers on this connection.
async fn post_on(bed: &Bed, peer: &mut Peer) -> Bytes {
    let post = request(Method::POST, Body::Empty);
    let (upstream, head) = tokio::join!(bed.send(post), peer.answer(OK));
    assert!(head.starts_with("POST "), "{head}");
    read(upstream.expect("a response")).await.expect("a body")
}

#[tokio::test]
async fn a_close_that_has_arrived_is_known_before_a_post_is_sent() {
    on_core(async {
        let (origin, bed) = bed().await;
        let mut peer = idle_connection(&origin, &bed).await;
        // The loop has not run since: only the kernel knows.
        peer.io.shutdown().await.expect("a shutdown");
        let post = bed.send(request(Method::POST, Body::Empty));
        let (upstream, _) = tokio::join!(post, async { origin.accept().await.answer(OK).await });
        assert_eq!(upstream.expect("a response").response.status(), StatusCode::OK);
        assert_eq!(bed.metrics.total(Metric::UpstreamIdleClosed, 2), 1, "closed by the origin");
    })
    .await;
}

#[tokio::test]
async fn a_post_takes_no_connection_that_the_origin_may_be_about_to_close() {
    on_core(async {
        let (origin, bed) = bed().await;
        let mut first = idle_connection(&origin, &bed).await;
        assert_eq!(post_on(&bed, &mut first).await, "ok", "nothing speaks against it");
        first.io.shutdown().await.expect("a shutdown");
        while bed.total(Metric::UpstreamIdle) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // From now on the origin is known to close connections within two seconds.
        let _second = idle_connection(&origin, &bed).await;
        let post = bed.send(request(Method::POST, Body::Empty));
        let (upstream, mut third) = tokio::join!(post, async {
            let mut peer = origin.accept().await;
            assert!(peer.answer(OK).await.starts_with("POST "));
            peer
        });
        assert_eq!(read(upstream.expect("a response")).await.expect("a body"), "ok");
        // The loss of a GET only costs another connection.
        let (body, head) = tokio::join!(bed.fetch(), third.answer(OK));
        assert!(head.starts_with("GET ") && body == "ok", "{head}");
    })
    .await;
}

#[tokio::test]
async fn a_request_that_was_lost_with_its_connection_shows_when_the_origin_closes() {
    on_core(async {
        let (origin, bed) = bed().await;
        let mut peer = idle_connection(&origin, &bed).await;
        let lost = bed.send(request(Method::POST, Body::Empty));
        let (lost, ()) = tokio::join!(lost, async {
            peer.head().await;
            drop(peer);
        });
        lost.expect_err("it must not be sent again");
        let _kept = idle_connection(&origin, &bed).await;
        let post = bed.send(request(Method::POST, Body::Empty));
        let (upstream, _) = tokio::join!(post, async { origin.accept().await.answer(OK).await });
        assert_eq!(upstream.expect("a response").response.status(), StatusCode::OK);
        assert_eq!(bed.total(Metric::UpstreamReuses), 0, "each on a connection of its own");
    })
    .await;
}
