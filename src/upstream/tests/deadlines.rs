//! Deadlines of an exchange, and responses that end early.

use super::*;

#[tokio::test]
async fn a_response_that_does_not_come_is_a_504() {
    on_core(async {
        let origin = Scripted::bind().await;
        let bed = Bed::new(impatient(&origin));
        let (outcome, ()) = tokio::join!(bed.get(), async {
            let mut peer = origin.accept().await;
            peer.head().await;
            peer.closed().await;
        });
        let error = outcome.expect_err("no answer");
        assert_eq!(error.proxy_error(), "http_response_timeout");
        assert_eq!(error.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(bed.failures("http_response_timeout"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_stalls_ends_in_an_error() {
    on_core(async {
        let origin = Scripted::bind().await;
        let bed = Bed::new(impatient(&origin));
        let (outcome, ()) =
            tokio::join!(async { read(bed.get().await.expect("a head")).await }, async {
                let mut peer = origin.accept().await;
                peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nhalf").await;
                peer.closed().await;
            });
        let error = outcome.expect_err("it stalls");
        assert!(error.to_string().contains("no bytes from"), "{error}");
        assert_eq!(bed.failures("connection_read_timeout"), 1);
    })
    .await;
}

#[tokio::test]
async fn the_total_deadline_ends_a_body_that_drips() {
    on_core(async {
        let origin = Scripted::bind().await;
        let mut settings = pool(vec![origin.origin()]);
        settings.settings.deadlines.total = Some(Duration::from_millis(300));
        let bed = Bed::new(settings);
        let drip = async {
            let mut peer = origin.accept().await;
            peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await;
            loop {
                peer.say("x").await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        };
        tokio::select! {
            outcome = async { read(bed.get().await.expect("a head")).await } => {
                let error = outcome.expect_err("it takes too long").to_string();
                assert!(error.contains("total deadline"), "{error}");
            }
            () = drip => {}
        }
    })
    .await;
}

#[tokio::test]
async fn a_truncated_body_is_an_error_and_never_an_end() {
    on_core(async {
        let truncated = [
            "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n5\r\nha",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n",
        ];
        for response in truncated {
            let (origin, bed) = bed().await;
            let (outcome, ()) =
                tokio::join!(async { read(bed.get().await.expect("a head")).await }, async {
                    drop(origin.accept().await.answer(response).await)
                });
            outcome.expect_err(response);
            assert_eq!(bed.failures("http_response_incomplete"), 1, "{response}");
            assert_eq!(bed.total(Metric::UpstreamIdle), 0);
            assert_eq!(bed.total(Metric::UpstreamConnections), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_that_are_not_http_are_a_502() {
    on_core(async {
        let too_large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(70_000));
        let too_many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: 1\r\n".repeat(101));
        let cases = [
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "http_protocol_error"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
                "http_protocol_error",
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
                "http_response_transfer_coding",
            ),
            (
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
                "http_upgrade_failed",
            ),
            (&too_large, "http_response_header_section_size"),
            (&too_many, "http_response_header_section_size"),
        ];
        for (response, expected) in cases {
            let (origin, bed) = bed().await;
            let (outcome, ()) = tokio::join!(bed.get(), async {
                let mut peer = origin.accept().await;
                peer.head().await;
                // The response may be refused before its end.
                use tokio::io::AsyncWriteExt as _;
                let _ = peer.io.write_all(response.as_bytes()).await;
                peer.closed().await;
            });
            let error = outcome.expect_err(expected);
            assert_eq!(error.proxy_error(), expected, "{error}");
            assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
        }
    })
    .await;
}
