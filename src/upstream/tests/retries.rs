//! The failures that another try follows, overlapping tries, and their cost.

use super::replaced_members::serve;
use super::*;
use crate::labels::Unretried;
use crate::upstream::settings::{Hedge, HedgeAfter, Retry, RetryOn};

/// A bed with these origins, tried in this order, and these changes to the settings.
fn tiered(origins: &[&Scripted], change: impl FnOnce(&mut PoolSettings)) -> Bed {
    let at = |(at, origin): (usize, &&Scripted)| Origin { priority: at as u16, ..origin.origin() };
    let mut definition = pool(origins.iter().enumerate().map(at).collect());
    change(&mut definition.settings);
    Bed::new(definition)
}

async fn two() -> (Scripted, Scripted) {
    (Scripted::bind().await, Scripted::bind().await)
}

fn without(reason: RetryReason) -> RetryOn {
    let failures = RetryOn::FAILURES.into_iter().filter(|one| *one != reason).collect();
    RetryOn { failures, ..RetryOn::default() }
}

/// The first origin answers the request like this and closes; the second is good. `reason` is the
/// word for the failure.
async fn check_retried(response: &str, reason: RetryReason) {
    let (first, second) = two().await;
    let fail = async || drop(first.accept().await.answer(response).await);

    let bed = tiered(&[&first, &second], |_| {});
    let (body, (), ()) =
        tokio::join!(bed.fetch(), fail(), async { drop(second.accept().await.answer(OK).await) });
    assert_eq!((&*body, bed.retries(reason)), (&b"ok"[..], 1), "{response:?}");

    let bed = tiered(&[&first, &second], |settings| settings.retry.on = without(reason));
    let (outcome, ()) = tokio::join!(bed.get(), fail());
    outcome.expect_err(response);
    assert_eq!((bed.retries(reason), bed.unretried(Unretried::Unlisted)), (0, 1), "{response:?}");

    let bed = tiered(&[&first, &second], |_| {});
    let (outcome, ()) = tokio::join!(bed.send(request(Method::POST, Body::Empty)), fail());
    outcome.expect_err(response);
    assert_eq!((bed.retries(reason), bed.unretried(Unretried::Method)), (0, 1), "{response:?}");
}

#[tokio::test]
async fn an_idempotent_request_is_sent_to_another_origin_after_each_listed_failure() {
    on_core(async {
        check_retried("", RetryReason::Reset).await;
        check_retried("HTTP/1.1 200 O", RetryReason::Reset).await;
        for half in ["", "half"] {
            let response = format!("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{half}");
            check_retried(&response, RetryReason::Truncated).await;
        }
        check_retried("SSH-2.0-OpenSSH_9.2\r\n\r\n", RetryReason::Invalid).await;
        let twice = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n";
        check_retried(twice, RetryReason::Invalid).await;
        let other_coding = "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
        check_retried(other_coding, RetryReason::Invalid).await;
    })
    .await;
}

const UNAVAILABLE: &str = "HTTP/1.1 503 No\r\ncontent-length: 5\r\n\r\nfirst";

#[tokio::test]
async fn a_listed_status_is_not_passed_on_while_another_origin_is_good() {
    on_core(async {
        let (first, second) = two().await;
        let bed = tiered(&[&first, &second], |_| {});
        let (body, _, ()) = tokio::join!(
            bed.fetch(),
            async { first.accept().await.answer(UNAVAILABLE).await },
            async { drop(second.accept().await.answer(OK).await) }
        );
        assert_eq!((&*body, bed.retries(RetryReason::Status)), (&b"ok"[..], 1));
        assert!(bed.pool.members().at(0).health.view().is_touched(), "the first is to blame");
    })
    .await;
}

#[tokio::test]
async fn a_request_that_all_origins_refuse_gets_the_first_refusal_and_blames_one() {
    on_core(async {
        let (first, second) = two().await;
        let bed = tiered(&[&first, &second], |_| {});
        let (upstream, ()) = tokio::join!(bed.get(), async {
            let _ = first.accept().await.answer(UNAVAILABLE).await;
            let other = "HTTP/1.1 502 No\r\ncontent-length: 6\r\n\r\nsecond";
            let _ = second.accept().await.answer(other).await;
        });
        let upstream = upstream.expect("a response");
        assert_eq!(upstream.response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!((upstream.attempts, upstream.unretried), (2, Some(Unretried::Attempts)));
        assert_eq!(read(upstream).await.expect("a body"), "first");
        let members = bed.pool.members();
        let touched = [0, 1].map(|at| members.at(at).health.view().is_touched());
        assert_eq!(touched, [true, false]);
    })
    .await;
}

#[tokio::test]
async fn a_failed_try_after_a_listed_status_does_not_replace_the_response() {
    on_core(async {
        let first = Scripted::bind().await;
        let gone = Origin { priority: 1, ..closed_port().await };
        let bed = Bed::new(pool(vec![first.origin(), gone]));
        let (upstream, _) =
            tokio::join!(bed.get(), async { first.accept().await.answer(UNAVAILABLE).await });
        let upstream = upstream.expect("the 503 of the first");
        assert_eq!(upstream.response.status(), StatusCode::SERVICE_UNAVAILABLE);
    })
    .await;
}

#[tokio::test]
async fn another_origin_is_asked_when_one_is_late_and_the_first_good_response_wins() {
    on_core(async {
        let impatient = |settings: &mut PoolSettings| {
            settings.retry.per_try_timeout = Some(Duration::from_millis(150));
        };
        for winner in [0, 1] {
            let (first, second) = two().await;
            let bed = tiered(&[&first, &second], impatient);
            let (body, ()) = tokio::join!(bed.fetch(), async {
                let (mut late, mut next) = (first.accept().await, second.accept().await);
                late.head().await;
                next.head().await;
                // Both have the request now.
                if winner == 0 {
                    late.say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst").await;
                    next.closed().await;
                } else {
                    next.say("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond").await;
                    late.closed().await;
                }
            });
            assert_eq!(&*body, [&b"first"[..], b"second"][winner]);
            assert_eq!(bed.retries(RetryReason::Timeout), 1);
            let is_blamed = bed.pool.members().at(0).health.view().is_touched();
            assert_eq!(is_blamed, winner == 1, "a late page that arrives first is no failure");
        }
    })
    .await;
}

#[tokio::test]
async fn a_stall_within_a_small_response_is_late_too() {
    on_core(async {
        let (first, second) = two().await;
        let bed = tiered(&[&first, &second], |settings| {
            settings.retry.per_try_timeout = Some(Duration::from_millis(150));
        });
        let (body, ()) = tokio::join!(bed.fetch(), async {
            let mut late = first.accept().await;
            late.answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
            second.accept().await.answer(OK).await;
            late.closed().await;
        });
        assert_eq!((&*body, bed.retries(RetryReason::Timeout)), (&b"ok"[..], 1));
    })
    .await;
}

#[tokio::test]
async fn after_one_wait_the_other_origins_are_asked_at_short_intervals() {
    on_core(async {
        let stalled = [Scripted::bind().await, Scripted::bind().await, Scripted::bind().await];
        let good = Scripted::bind().await;
        let [a, b, c] = &stalled;
        let bed = tiered(&[a, b, c, &good], |settings| {
            settings.retry.per_try_timeout = Some(Duration::from_millis(700));
        });
        let began = std::time::Instant::now();
        let (body, ()) = tokio::join!(bed.fetch(), async {
            good.accept().await.answer(OK).await;
        });
        assert_eq!(&*body, b"ok");
        // One after another, three waits would take 2.1 s at least.
        assert!(began.elapsed() < Duration::from_millis(2000), "{:?}", began.elapsed());
        assert_eq!(bed.retries(RetryReason::Timeout), 3);
    })
    .await;
}

#[tokio::test]
async fn a_late_post_is_waited_for_and_not_sent_twice() {
    on_core(async {
        let (first, second) = two().await;
        let bed = tiered(&[&first, &second], |settings| {
            settings.retry.per_try_timeout = Some(Duration::from_millis(100));
        });
        let (outcome, ()) = tokio::join!(bed.send(request(Method::POST, Body::Empty)), async {
            let mut late = first.accept().await;
            late.head().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            late.say(OK).await;
        });
        assert_eq!(read(outcome.expect("a response")).await.expect("a body"), "ok");
        assert_eq!(bed.retries(RetryReason::Timeout), 0);
    })
    .await;
}

#[tokio::test]
async fn a_retry_goes_to_the_origin_that_gave_a_good_response_last() {
    on_core(async {
        let (first, gone, proven) =
            (Scripted::bind().await, closed_port().await, Scripted::bind().await);
        let mut settings = pool(vec![first.origin(), gone.clone(), gone, proven.origin()]);
        settings.origins[2].port = settings.origins[2].port.wrapping_add(1).max(1);
        settings.settings.health.connect_failures = 0;
        let bed = Bed::new(settings);
        let accepted = Cell::new(0);
        let ask = async {
            // Until each had its turn, so that the good one is known.
            for _ in 0..4 {
                bed.fetch().await;
            }
            let before = bed.failures("connection_refused");
            for _ in 0..8 {
                bed.fetch().await;
            }
            bed.failures("connection_refused") - before
        };
        let fail = async {
            loop {
                drop(first.accept().await);
            }
        };
        let refused = tokio::select! {
            refused = ask => refused,
            () = fail => 0,
            () = serve(&proven, &accepted) => 0,
        };
        // Two origins refuse a quarter of the first tries each; no second try goes to them.
        assert_eq!(refused, 4);
    })
    .await;
}

#[tokio::test]
async fn retries_that_fail_spend_the_budget_and_those_that_win_do_not() {
    on_core(async {
        let (first, second) = two().await;
        let bed = tiered(&[&first, &second], |settings| {
            settings.retry = Retry { budget_percent: 0, budget_reserve: 2, ..Retry::default() };
            settings.health.consecutive_5xx = 0;
        });
        let is_good = Cell::new(true);
        let refuse = async || loop {
            let mut peer = first.accept().await;
            tokio::task::spawn_local(async move { while peer.try_answer(UNAVAILABLE).await {} });
        };
        let second = async || loop {
            let mut peer = second.accept().await;
            let answer = if is_good.get() { OK } else { UNAVAILABLE };
            let closing = answer.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
            peer.try_answer(&closing).await;
        };
        let ask = async {
            for _ in 0..10 {
                assert_eq!(bed.fetch().await, "ok");
            }
            assert_eq!(bed.unretried(Unretried::Budget), 0);
            is_good.set(false);
            bed.upstreams.forget_good_responses();
            for _ in 0..5 {
                let upstream = bed.get().await.expect("the 503");
                assert_eq!(upstream.response.status(), StatusCode::SERVICE_UNAVAILABLE);
            }
            assert_eq!(bed.unretried(Unretried::Budget), 3, "two were in reserve");
        };
        tokio::select! { () = ask => {}, () = refuse() => {}, () = second() => {} }
    })
    .await;
}

#[tokio::test]
async fn requests_that_wait_for_a_connection_share_its_failure() {
    on_core(async {
        let origin = Scripted::bind().await;
        let mut settings = pool(vec![Origin::https("127.0.0.1", origin.address.port())]);
        settings.settings.health.connect_failures = 2;
        let bed = Bed::new(settings);
        let (first, second, third, ()) = tokio::join!(bed.get(), bed.get(), bed.get(), async {
            drop(origin.accept().await);
        });
        for outcome in [first, second, third] {
            assert!(matches!(outcome, Err(FetchError::Tls { .. })));
        }
        assert_eq!(bed.total(Metric::UpstreamConnects), 1);
        assert_eq!(up(&bed.pool), [true], "it is one failed connection");
    })
    .await;
}

#[tokio::test]
async fn held_responses_have_a_limit_beyond_which_they_are_passed_on_as_they_arrive() {
    on_core(async {
        let origin = Scripted::bind().await;
        let mut settings = pool(vec![origin.origin()]);
        settings.settings.retry.kept_bytes_max = 9;
        let bed = Bed::new(settings);
        let (upstream, mut peer) = tokio::join!(bed.get(), async {
            let mut peer = origin.accept().await;
            peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
            peer
        });
        let upstream = upstream.expect("its head is here");
        peer.say(" whole").await;
        assert_eq!(read(upstream).await.expect("a body"), "half whole");
        assert_eq!(bed.total(Metric::UpstreamUnheld), 1);
    })
    .await;
}

#[tokio::test]
async fn a_response_that_trickles_is_held_for_a_bounded_time_and_then_passed_on_as_it_arrives() {
    on_core(async {
        let origin = Scripted::bind().await;
        let mut settings = pool(vec![origin.origin()]);
        settings.settings.retry.hold_time = Duration::from_millis(200);
        let bed = Bed::new(settings);
        let (upstream, (mut peer, said)) = tokio::join!(bed.get(), async {
            let mut peer = origin.accept().await;
            peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\nx").await;
            let mut said = 1;
            // No piece is late, and the whole would take more than a minute.
            while bed.metrics.total(Metric::UpstreamUnheld, 1) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                peer.say("x").await;
                said += 1;
            }
            (peer, said)
        });
        let upstream = upstream.expect("its head is here");
        assert_eq!(upstream.response.body().exact_length(), Some(10_000));
        assert!(said < 10_000, "it was passed on before it was whole");
        peer.say(&"y".repeat(10_000 - said)).await;
        let body = read(upstream).await.expect("a body");
        assert_eq!(body, ["x".repeat(said), "y".repeat(10_000 - said)].concat());
        assert_eq!(bed.total(Metric::UpstreamIdle), 1);
    })
    .await;
}

#[tokio::test]
async fn a_response_of_which_nothing_has_arrived_is_waited_for_longer_than_it_is_held() {
    on_core(async {
        let (first, second) = two().await;
        let bed = tiered(&[&first, &second], |settings| {
            settings.retry.hold_time = Duration::from_millis(20);
            settings.deadlines.between_bytes = Duration::from_millis(200);
        });
        let (body, _) = tokio::join!(bed.fetch(), async {
            let mut peer = first.accept().await;
            peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await;
            second.accept().await.answer(OK).await
        });
        assert_eq!(body, "ok", "the other origin is asked");
        assert_eq!(bed.metrics.total(Metric::UpstreamUnheld, 1), 0);
    })
    .await;
}

#[tokio::test]
async fn a_status_of_failover_on_asks_the_next_tier_and_is_kept_if_that_is_no_better() {
    on_core(async {
        let not_found = "HTTP/1.1 404 No\r\ncontent-length: 5\r\n\r\nfirst";
        let fail_over = |settings: &mut PoolSettings| {
            settings.retry.failover_on = [404].into_iter().collect();
            settings.retry.attempts_max = Some(1);
        };
        let worse = "HTTP/1.1 404 No\r\ncontent-length: 6\r\n\r\nsecond";
        for (response, status, expected) in [(OK, 200, "ok"), (worse, 404, "first")] {
            let (first, second) = two().await;
            let bed = tiered(&[&first, &second], fail_over);
            let (upstream, _) = tokio::join!(bed.get(), async {
                let _ = first.accept().await.answer(not_found).await;
                let _ = second.accept().await.answer(response).await;
            });
            let upstream = upstream.expect("a response");
            assert_eq!((upstream.response.status().as_u16(), upstream.unretried), (status, None));
            assert_eq!(read(upstream).await.expect("a body"), expected);
            assert_eq!(bed.retries(RetryReason::Failover), 1);
            assert!(bed.pool.members().at(0).health.view().is_quiet(), "404 is no failure");
        }
        let (first, second) = two().await;
        let bed = tiered(&[&first, &second], fail_over);
        let delete = bed.send(request(Method::DELETE, Body::Empty));
        let (upstream, _) =
            tokio::join!(delete, async { first.accept().await.answer(not_found).await });
        assert_eq!(upstream.expect("a response").response.status(), StatusCode::NOT_FOUND);
    })
    .await;
}

#[tokio::test]
async fn failover_leaves_out_the_other_origins_of_the_tier() {
    on_core(async {
        let origins = [Scripted::bind().await, Scripted::bind().await, Scripted::bind().await];
        let at = |(at, origin): (usize, &Scripted)| {
            let priority = u16::from(at == 2);
            Origin { priority, ..origin.origin() }
        };
        let mut settings = pool(origins.iter().enumerate().map(at).collect());
        settings.settings.retry.failover_on = [403].into_iter().collect();
        let bed = Bed::new(settings);
        let [first, second, last] = &origins;
        let (body, ()) = tokio::join!(bed.fetch(), async {
            let mut peer = tokio::select! {
                peer = first.accept() => peer,
                peer = second.accept() => peer,
            };
            peer.answer("HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n").await;
            // The other one of the first tier would hang.
            last.accept().await.answer(OK).await;
        });
        assert_eq!(body, "ok");
    })
    .await;
}

/// A GET for `length` bytes, of which the first origin sends `half`; then the second has the request
/// `asked` and answers it. Returns the whole body, or the error.
async fn resume(
    fields: &str,
    half: &str,
    answer: &str,
) -> (Result<Bytes, BodyError>, Option<String>, Bed) {
    let (first, second) = two().await;
    let bed = tiered(&[&first, &second], |settings| settings.retry.hold_response = 0);
    let (outcome, asked) =
        tokio::join!(async { read(bed.get().await.expect("a head")).await }, async {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n{half}");
            drop(first.accept().await.answer(&head).await);
            let answered = async { second.accept().await.answer(answer).await };
            timeout(Duration::from_secs(2), answered).await.ok()
        });
    (outcome, asked, bed)
}

const REST: &str = "HTTP/1.1 206 Part\r\netag: \"v1\"\r\ncontent-range: bytes 4-9/10\r\ncontent-length: 6\r\n\r\n whole";

#[tokio::test]
async fn a_body_that_breaks_off_goes_on_from_another_origin() {
    on_core(async {
        let chunked = "etag: \"v1\"\r\ntransfer-encoding: chunked\r\n";
        let cases = [
            ("etag: \"v1\"\r\ncontent-length: 10\r\n", "half", "range: bytes=4-9\r\n"),
            (chunked, "4\r\nhalf\r\n", "range: bytes=4-\r\n"),
        ];
        for (fields, half, range) in cases {
            let (outcome, asked, bed) = resume(fields, half, REST).await;
            assert_eq!(outcome.expect("a whole body"), "half whole");
            let asked = asked.expect("a request");
            assert!(asked.contains(range) && asked.contains("if-range: \"v1\"\r\n"), "{asked}");
            assert_eq!(bed.metrics.total(Metric::UpstreamResumptions, 0), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_of_another_version_are_never_appended() {
    on_core(async {
        let fields = "etag: \"v1\"\r\ncontent-length: 10\r\n";
        let others = [
            REST.replace("v1", "v2"),
            REST.replace("4-9/10", "3-8/10"),
            REST.replace("4-9/10", "4-9/11"),
            // Only one of the origins codes the content, and neither changes the tag.
            REST.replace("206 Part", "206 Part\r\ncontent-encoding: gzip"),
            "HTTP/1.1 200 OK\r\netag: \"v1\"\r\ncontent-length: 10\r\n\r\nhalf whole".into(),
            "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n".into(),
        ];
        for other in others {
            let (outcome, asked, bed) = resume(fields, "half", &other).await;
            assert!(outcome.is_err() && asked.is_some(), "{other}");
            assert_eq!(bed.metrics.total(Metric::UpstreamResumptions, 1), 1, "{other}");
        }
    })
    .await;
}

/// The part could be shorter than the rest, and its end is not that of the object.
#[tokio::test]
async fn a_part_of_an_object_of_unknown_length_does_not_end_its_body() {
    on_core(async {
        let chunked = "etag: \"v1\"\r\ntransfer-encoding: chunked\r\n";
        let part = REST.replace("4-9/10", "4-9/*");
        let (outcome, asked, bed) = resume(chunked, "4\r\nhalf\r\n", &part).await;
        assert!(outcome.is_err() && asked.is_some());
        assert_eq!(bed.metrics.total(Metric::UpstreamResumptions, 1), 1);
    })
    .await;
}

#[tokio::test]
async fn without_a_strong_tag_or_with_a_coding_a_body_is_not_continued() {
    on_core(async {
        let long = "last-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\ndate: Sun, 06 Nov 1994 09:49:37 GMT\r\n";
        for tag in ["", "etag: W/\"v1\"\r\n", "etag: \"v1\"\r\ncontent-encoding: gzip\r\n", long] {
            let fields = format!("{tag}content-length: 10\r\n");
            let (first, second) = two().await;
            let bed = tiered(&[&first, &second], |settings| settings.retry.hold_response = 0);
            let response = format!("HTTP/1.1 200 OK\r\n{fields}\r\nhalf");
            let (outcome, ()) =
                tokio::join!(async { read(bed.get().await.expect("a head")).await }, async {
                    drop(first.accept().await.answer(&response).await);
                });
            outcome.expect_err(tag);
            assert_eq!(bed.total(Metric::UpstreamConnects), 1, "{tag}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_slow_request_is_sent_to_a_second_origin_within_the_share() {
    on_core(async {
        let (first, second) = two().await;
        let bed = tiered(&[&first, &second], |settings| {
            settings.hedge =
                Hedge { after: Some(HedgeAfter::Fixed(HedgeAfter::MIN)), percent_max: 50 };
        });
        let stall = async || {
            let mut peer = first.accept().await;
            peer.head().await;
            peer
        };
        // Half a hedge is earned by each request: the first one is not hedged.
        let (body, ()) = tokio::join!(bed.fetch(), async {
            let mut peer = stall().await;
            while bed.metrics.total(Metric::UpstreamHedges, 2) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            peer.say("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nfirst")
                .await;
        });
        assert_eq!(body, "first");
        let (body, ()) = tokio::join!(bed.fetch(), async {
            let mut slow = stall().await;
            second.accept().await.answer(OK).await;
            slow.closed().await;
        });
        assert_eq!(body, "ok");
        assert_eq!(bed.metrics.total(Metric::UpstreamHedges, 0), 1);
        assert!(bed.pool.members().at(0).health.view().is_quiet(), "slow is not faulty");
    })
    .await;
}

#[tokio::test]
async fn a_post_is_not_hedged() {
    on_core(async {
        let (first, second) = two().await;
        let bed = tiered(&[&first, &second], |settings| {
            settings.hedge =
                Hedge { after: Some(HedgeAfter::Fixed(HedgeAfter::MIN)), percent_max: 100 };
        });
        let (outcome, ()) = tokio::join!(bed.send(request(Method::POST, Body::Empty)), async {
            let mut slow = first.accept().await;
            slow.head().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            slow.say(OK).await;
        });
        outcome.expect("a response");
        assert_eq!(bed.total(Metric::UpstreamConnects), 1);
    })
    .await;
}

#[tokio::test]
async fn a_put_whose_content_was_kept_is_sent_again_and_a_longer_one_is_not() {
    on_core(async {
        for (keep, expected) in [(100, true), (5, false)] {
            let (first, second) = two().await;
            let bed = tiered(&[&first, &second], |settings| {
                settings.retry.keep_request_body = keep;
            });
            let (sender, body) = channel();
            let (outcome, ()) = tokio::join!(bed.send(request(Method::PUT, body)), async {
                let mut peer = first.accept().await;
                for piece in ["first", "second"] {
                    sender.send(Bytes::from_static(piece.as_bytes())).await.expect("it listens");
                    peer.through(piece.as_bytes()).await;
                }
                drop((peer, sender));
                if expected {
                    let mut peer = second.accept().await;
                    let sent = peer.through(b"0\r\n\r\n").await;
                    assert!(sent.contains("first") && sent.contains("second"), "{sent}");
                    peer.say(OK).await;
                }
            });
            assert_eq!(outcome.is_ok(), expected);
            assert_eq!(bed.unretried(Unretried::Body), u64::from(!expected));
        }
    })
    .await;
}

#[tokio::test]
async fn requests_that_stall_together_are_all_sent_to_the_origin_that_is_good() {
    on_core(async {
        let (stalled, good) = two().await;
        let mut settings = pool(vec![stalled.origin(), good.origin()]);
        settings.settings.retry.per_try_timeout = Some(Duration::from_millis(1200));
        settings.settings.retry.budget_reserve = 0;
        settings.settings.retry.budget_percent = 0;
        let bed = Bed::new(settings);
        let accepted = Cell::new(0);
        // Half of them stall. Until they are late, no response proves that the good one is good.
        let ask = async {
            let get = || bed.fetch();
            tokio::join!(get(), get(), get(), get(), get(), get());
        };
        tokio::select! { () = ask => {}, () = serve(&good, &accepted) => {} }
        assert_eq!(bed.retries(RetryReason::Timeout), 3);
    })
    .await;
}
