//! The exchange over real sockets: what origins do, and what becomes of it.

mod balance;
mod broken_bodies;
mod changing_sets;
mod discovery;
mod http2;
mod idle_connections;
mod name_server;
mod queue;
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
                    let upstream =
                        bed.send(request(method, Body::Empty)).await.expect("a response");
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
            // It was the origin's right to close an idle connection.
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
async fn an_origin_that_stays_in_a_changed_pool_keeps_its_connection_and_its_health() {
    on_core(async {
        let origin = Scripted::bind().await;
        let down = closed_port().await;
        let mut settings = pool(vec![down.clone(), origin.origin()]);
        settings.settings.health.connect_failures = 1;
        let mut bed = Bed::new(settings.clone());
        let serve = async {
            let mut peer = origin.accept().await;
            loop {
                peer.answer(OK).await;
            }
        };
        let ask = async {
            for _ in 0..2 {
                bed.fetch().await;
            }
            settings.origins.insert(0, Origin { weight: 0, ..closed_port().await });
            settings.settings.retry.attempts_max = Some(7);
            bed.pool = Pool::new(&settings, Some(&bed.pool)).expect("a good pool");
            for _ in 0..4 {
                bed.fetch().await;
            }
        };
        tokio::select! { () = ask => {}, () = serve => {} }
        // `serve` accepts one connection: a second one would wait without an answer.
        assert_eq!(up(&bed.pool), [true, false, true]);
        assert_eq!(bed.total(Metric::UpstreamMarkedDown), 1);

        settings.settings.host_header = HostHeader::Origin;
        let other = Pool::new(&settings, Some(&bed.pool)).expect("a good pool");
        assert!(up(&other) == [true; 3], "other ways to speak make other members");
    })
    .await;
}

/// Answers every request on every connection, with the number of connections counted.
async fn serve(origin: &Scripted, accepted: &Cell<usize>) {
    let mut peers = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            mut peer = origin.accept() => {
                accepted.set(accepted.get() + 1);
                peers.spawn_local(async move { while peer.try_answer(OK).await {} });
            }
            Some(_) = peers.join_next() => {}
        }
    }
}

fn replace_members(pool: &Pool, origins: &[Origin]) {
    let definition = PoolDefinition::new("test", origins.to_vec());
    let members = pool.members_for(&definition).expect("good origins");
    pool.redefine(&definition, members);
}

#[tokio::test]
async fn a_set_that_changes_under_load_keeps_the_connections_of_a_member_that_stays() {
    on_core(async {
        let (stays, other) = (Scripted::bind().await, Scripted::bind().await);
        let accepted = [Cell::new(0), Cell::new(0)];
        let bed = Bed::new(pool(vec![stays.origin()]));
        let requests = async {
            let stream = async || {
                for _ in 0..100 {
                    assert_eq!(bed.fetch().await, "ok");
                    tokio::task::yield_now().await;
                }
            };
            tokio::join!(stream(), stream(), stream(), stream());
        };
        let changes = async {
            let sets = [vec![other.origin(), stays.origin()], vec![stays.origin()]];
            for origins in sets.iter().cycle() {
                replace_members(&bed.pool, origins);
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::select! {
            () = requests => {}
            () = changes => {}
            () = serve(&stays, &accepted[0]) => {}
            () = serve(&other, &accepted[1]) => {}
        }
        assert!(accepted[1].get() > 0, "the set never had both");
        // Four requests at a time need four connections.
        assert!((1..=4).contains(&accepted[0].get()), "{} connections", accepted[0].get());
        assert_eq!(bed.total(Metric::UpstreamRequests), 400);
        assert_eq!(up(&bed.pool).first(), Some(&true));
    })
    .await;
}

#[tokio::test]
async fn a_removed_member_finishes_its_exchange_and_gets_no_other() {
    on_core(async {
        let (removed, stays) = (Scripted::bind().await, Scripted::bind().await);
        let bed = Bed::new(pool(vec![removed.origin()]));
        // One exchange in flight, and one idle connection beside it.
        let (first, second, (mut busy, mut idle)) = tokio::join!(bed.get(), bed.fetch(), async {
            let (mut busy, mut idle) = (removed.accept().await, removed.accept().await);
            busy.answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n").await;
            idle.answer(OK).await;
            (busy, idle)
        });
        assert_eq!((second, bed.total(Metric::UpstreamIdle)), ("ok".into(), 1));

        replace_members(&bed.pool, &[stays.origin()]);
        let (body, ()) = tokio::join!(bed.fetch(), async {
            stays.accept().await.answer(OK).await;
        });
        assert_eq!(body, "ok");
        idle.closed().await;

        busy.say("2\r\ncd\r\n0\r\n\r\n").await;
        assert_eq!(read(first.expect("a response")).await.expect("a body"), "abcd");
        busy.closed().await;
        assert_eq!(bed.metrics.total(Metric::UpstreamIdleClosed, 3), 1);
        assert_eq!(bed.total(Metric::UpstreamConnects), 3);
    })
    .await;
}

#[tokio::test]
async fn a_retry_goes_to_the_members_of_now() {
    on_core(async {
        let (removed, added) = (Scripted::bind().await, Scripted::bind().await);
        let bed = Bed::new(pool(vec![removed.origin()]));
        let (body, ()) = tokio::join!(bed.fetch(), async {
            let mut peer = removed.accept().await;
            peer.head().await;
            replace_members(&bed.pool, &[added.origin()]);
            drop(peer);
            added.accept().await.answer(OK).await;
        });
        assert_eq!(body, "ok");
    })
    .await;
}

#[tokio::test]
async fn health_survives_a_change_of_a_hundred_members() {
    on_core(async {
        let origin = Scripted::bind().await;
        let unused = |port| Origin { weight: 0, ..Origin::http("unused.example", port) };
        let with = |range: std::ops::Range<u16>, more: [Origin; 2]| -> Vec<Origin> {
            range.map(unused).chain(more).collect()
        };
        let both = [closed_port().await, origin.origin()];
        let mut settings = pool(with(1..99, both.clone()));
        settings.settings.health.connect_failures = 1;
        let bed = Bed::new(settings);
        let accepted = Cell::new(0);
        let ask = async {
            for _ in 0..2 {
                bed.fetch().await;
            }
            assert_eq!(bed.total(Metric::UpstreamMarkedDown), 1);
            replace_members(&bed.pool, &with(50..148, both));
            for _ in 0..10 {
                bed.fetch().await;
            }
        };
        tokio::select! { () = ask => {}, () = serve(&origin, &accepted) => {} }
        assert_eq!(bed.total(Metric::UpstreamMarkedDown), 1, "it was asked again");
        assert_eq!(up(&bed.pool), [vec![true; 98], vec![false, true]].concat());
        assert_eq!(accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_reload_of_origins_alone_changes_the_members_of_the_same_pool() {
    let pool = |name: &str, ports: &[u16]| {
        let origins = ports.iter().map(|port| Origin::http("127.0.0.1", *port)).collect();
        PoolDefinition::new(name, origins)
    };
    let before = Pools::new(&[pool("a", &[1, 2]), pool("b", &[1])]).expect("good pools");
    let (a, b) = (before.named("a").expect("a pool"), before.named("b").expect("a pool"));
    let (a_members, b_members) = (a.members().clone(), b.members().clone());

    let mistaken = before.reload(&[pool("a", &[2, 3]), pool("b", &[])]).expect_err("no origin");
    assert_eq!(mistaken.len(), 1);
    let (after, mut changes) = before.reload(&[pool("a", &[2, 3])]).expect("good pools");
    assert!(Arc::ptr_eq(a, after.named("a").expect("a pool")));
    assert!(Arc::ptr_eq(&a.members(), &a_members), "a reload that fails later changes nothing");
    changes.apply();
    changes.close_pools();
    assert!(Arc::ptr_eq(a.members().at(0), a_members.at(1)));
    let removed = |members: &Arc<super::pool::members::Members>| -> Vec<bool> {
        members.iter().map(|member| member.is_removed()).collect()
    };
    assert_eq!(removed(&a_members), [true, false]);
    assert_eq!(removed(&a.members()), [false, false]);
    assert_eq!(removed(&b_members), [true], "its pool is gone");
}

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
async fn what_is_not_http_is_a_502() {
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
                // It may be refused before its end.
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
