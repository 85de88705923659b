//! Bodies that break off, and what followers get of failures.

use super::*;

/// All readers get the bytes that came, then an error; nobody sees a clean end.
fn breaks_off(length: Option<u64>, sent: u64, last: Option<Sent>) {
    on_a_worker(async {
        let Begun { node, own, mut upstream, done } = begin(length);
        let mut reader = filling(&own).await.read_all();
        let waiting = spawn_local(all(filling(&own).await.read_all()));
        upstream.send(sent).await;
        if let Some(last) = last {
            upstream.frames.send(last).await.expect("taken");
        }
        drop(upstream);
        assert_bytes(&next(&mut reader).await, 0..sent);
        let error = next_frame(&mut reader).await.expect("not a clean end").expect_err("an error");
        assert!(error.to_string().contains(&sent.to_string()), "{error}");
        assert!(waiting.await.expect("no panic").is_err());
        assert!(matches!(done.await.expect("no panic"), FillEnd::Broken));
        assert!(node.stored().await.is_none());
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
        let Begun { node, own, mut upstream, done: task } = begin(None);
        let mut reader = filling(&own).await.read_all();
        upstream.send(5).await;
        next(&mut reader).await;
        task.abort();
        assert!(next_frame(&mut reader).await.expect("not a clean end").is_err());
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
        assert!(matches!(follower.outcome().await, FillOutcome::Failed(FillFailure::Abandoned)));
        assert!(matches!(node.join(), Join::Lead(_)));
    });
}

#[test]
fn followers_of_a_failure_have_the_same_failure() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let (own, other) = (lead.follower(), node.follow());
        lead.fail(FillFailure::Upstream(Arc::new(FetchError::AllDown {
            pool: "origins".into(),
            retry_after: 1,
        })));
        let failures = [own.outcome().await, other.outcome().await].map(|outcome| match outcome {
            FillOutcome::Failed(FillFailure::Upstream(error)) => error,
            other => panic!("{other:?}"),
        });
        assert!(Arc::ptr_eq(&failures[0], &failures[1]));
    });
}

#[test]
fn an_uncacheable_response_releases_its_followers_and_is_remembered_for_a_while() {
    on_a_worker(async {
        let node = Node::new(small());
        let lead = node.lead();
        let follower = node.follow();
        lead.release(Some(Duration::from_secs(60)));
        assert!(matches!(follower.outcome().await, FillOutcome::Released));
        assert!(matches!(node.join(), Join::Uncollapsed(Uncollapsed::Uncacheable)));
        node.clock.advance(Duration::from_secs(61));
        assert!(matches!(node.join(), Join::Lead(_)));
    });
}

#[test]
fn a_key_that_turned_cacheable_is_adopted_and_forgotten_as_uncacheable() {
    on_a_worker(async {
        let node = Node::new(small());
        node.lead().release(Some(Duration::from_secs(60)));
        let lead = node.fills.adopt(KEY, PurgeSequence(3)).expect("nobody else fills");
        assert_eq!(lead.sequence(), PurgeSequence(3));
        assert_eq!(
            node.fills.adopt(KEY, PurgeSequence(3)).expect_err("one is on its way"),
            super::super::collapse::NotAdopted::InFlight
        );
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
        assert!(matches!(follower.outcome().await, FillOutcome::Stored));
    });
}
