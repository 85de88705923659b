//! The pace of a fill: its readers, its window, and the memory of all windows.

use super::*;

#[test]
fn a_fill_runs_ahead_of_its_fastest_reader_by_one_window() {
    on_a_worker(async {
        let Begun { node, own, mut upstream, .. } = begin(None);
        let mut reader = filling(&own).await.read_all();
        for _ in 0..20 {
            upstream.send(SLICE).await;
            if node.gauge(Metric::FillWindowBytes) == 2 * SLICE {
                break;
            }
        }
        // One frame is in the channel, or on its way into it.
        assert!(!(upstream.is_taken(SLICE).await && upstream.is_taken(SLICE).await));
        assert_eq!(node.gauge(Metric::FillWindowBytes), 2 * SLICE);
        assert_bytes(&next(&mut reader).await, 0..SLICE);
        upstream.sent -= SLICE;
        assert!(upstream.is_taken(SLICE).await, "the reader made room");
    });
}

#[test]
fn unstored_slow_readers_are_waited_for_and_then_cut_off() {
    on_a_worker(async {
        let Begun { node, own, mut upstream, done } =
            begin_on(Node::with_store(small(), storing_nothing()), None);
        let (fast, mut slow) = (filling(&own).await.read_all(), filling(&own).await.read_all());
        let fast = spawn_local(all(fast));
        for _ in 0..20 {
            upstream.send(SLICE).await;
        }
        drop(upstream);
        assert_bytes(&fast.await.expect("no panic").expect("whole"), 0..20 * SLICE);
        let error = next_frame(&mut slow).await.expect("not a clean end").expect_err("cut off");
        assert!(error.to_string().contains("no longer in memory"), "{error}");
        assert_eq!(node.gauge(Metric::FillReadersLost), 1);
        assert!(matches!(done.await.expect("no panic"), FillEnd::Unstored));
    });
}

/// Starts a fill, with one reader and the rest of it for the test to send.
async fn started(node: &Node, length: Option<u64>) -> (Upstream, FillReader, JoinHandle<FillEnd>) {
    let lead = node.lead();
    let own = lead.follower();
    let (upstream, body) = upstream();
    let done = start(node, lead, length, body);
    (upstream, filling(&own).await.read_all(), done)
}

#[test]
fn bodies_of_any_length_are_in_the_store_when_the_fill_has_ended() {
    on_a_worker(async {
        let lengths = [0, 1, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, 5 * SLICE + 7];
        for (length, known) in lengths.iter().flat_map(|length| [(*length, true), (*length, false)])
        {
            let node = Node::new(small());
            let (mut upstream, reader, done) = started(&node, known.then_some(length)).await;
            let reading = spawn_local(all(reader));
            while upstream.sent < length {
                upstream.send((length - upstream.sent).min(1000)).await;
            }
            drop(upstream);
            assert_eq!(done.await.expect("no panic").as_str(), "stored");
            assert_bytes(&reading.await.expect("no panic").expect("whole"), 0..length);
            let (head, body) = node.stored().await.expect("stored");
            assert_bytes(&body, 0..length);
            assert_eq!(head.response.complete_length, Some(length));
            assert!(matches!(node.join(), Join::Lead(_)), "the fill has left the table");
        }
    });
}

#[test]
fn a_slow_reader_holds_nobody_back_and_has_every_byte() {
    on_a_worker(async {
        let Begun { node, own, mut upstream, done } = begin(None);
        let other = node.follow();
        let fast = spawn_local(all(filling(&own).await.read_all()));
        let slow = filling(&other).await.read_all();
        for _ in 0..100 {
            upstream.send(SLICE / 2).await;
            assert!(node.gauge(Metric::FillWindowBytes) <= 5 * SLICE);
        }
        let late = filling(&node.follow()).await.read_all();
        drop(upstream);
        assert_bytes(&fast.await.expect("no panic").expect("whole"), 0..50 * SLICE);
        assert_eq!(done.await.expect("no panic").as_str(), "stored");
        assert_eq!(node.gauge(Metric::FillReadsBehind), 0, "the slow one has read nothing so far");
        assert_bytes(&all(slow).await.expect("whole"), 0..50 * SLICE);
        assert!(node.gauge(Metric::FillReadsBehind) > 40);
        assert_bytes(&all(late).await.expect("whole"), 0..50 * SLICE);
    });
}

#[test]
fn a_slow_reader_whose_slices_the_store_dropped_has_an_error_not_other_bytes() {
    on_a_worker(async {
        let least = store::Settings { memory_bytes: 64 * SLICE, ..store_settings() };
        let Begun { node, own, mut upstream, .. } =
            begin_on(Node::with_store(small(), least), None);
        let other = node.follow();
        let mut fast = filling(&own).await.read_all();
        let mut slow = filling(&other).await.read_all();
        for _ in 0..400 {
            upstream.send(SLICE).await;
            next(&mut fast).await;
        }
        drop(upstream);
        let mut at = 0;
        let error = loop {
            match next_frame(&mut slow).await.expect("not a clean end") {
                Ok(frame) => {
                    let bytes = frame.into_data().expect("data");
                    assert_bytes(&bytes, at..at + bytes.len() as u64);
                    at += bytes.len() as u64;
                }
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("no longer in memory"), "{error}");
        assert_eq!(node.gauge(Metric::FillReadersLost), 1);
    });
}

#[test]
fn a_body_too_large_for_the_store_goes_on_to_its_readers() {
    on_a_worker(async {
        let limited = store::Settings { object_bytes_max: 3 * SLICE, ..store_settings() };
        let node = Node::with_store(small(), limited);
        let (mut upstream, reader, done) = started(&node, None).await;
        let reading = spawn_local(all(reader));
        for _ in 0..20 {
            upstream.send(SLICE).await;
        }
        assert!(matches!(node.join(), Join::Lead(_)), "its first bytes are gone for newcomers");
        drop(upstream);
        assert_eq!(done.await.expect("no panic").as_str(), "unstored");
        assert_bytes(&reading.await.expect("no panic").expect("whole"), 0..20 * SLICE);
        assert!(node.stored().await.is_none());
    });
}

#[test]
fn a_fill_that_is_half_there_goes_on_without_readers() {
    on_a_worker(async {
        let node = Node::new(small());
        let (mut upstream, mut reader, done) = started(&node, Some(20 * SLICE)).await;
        for _ in 0..10 {
            upstream.send(SLICE).await;
            next(&mut reader).await;
        }
        drop(reader);
        for _ in 0..10 {
            upstream.send(SLICE).await;
        }
        assert_bytes(&all(filling(&node.follow()).await.read(5..7)).await.expect("whole"), 5..7);
        drop(upstream);
        assert_eq!(done.await.expect("no panic").as_str(), "stored");
        assert_bytes(&node.stored().await.expect("stored").1, 0..20 * SLICE);
    });
}

#[test]
fn a_fill_that_all_have_left_ends_and_is_not_joined() {
    on_a_worker(async {
        let Begun { node, own, upstream, done } = begin(Some(100 * SLICE));
        let reader = filling(&own).await.read_all();
        drop(own);
        drop(reader);
        let filled = done.await.expect("no panic");
        assert!(matches!(filled, FillEnd::Abandoned), "while upstream says nothing");
        assert!(upstream.frames.is_closed());
        assert!(matches!(node.join(), Join::Lead(_)));
        assert_eq!(node.gauge(Metric::FillReaders), 0);
    });
}

#[test]
fn a_refresh_goes_to_its_end_though_nobody_reads() {
    on_a_worker(async {
        let node = Node::new(small());
        let (mut upstream, body) = upstream();
        let done = start(&node, node.lead().run_to_end(), None, body);
        for _ in 0..20 {
            upstream.send(SLICE).await;
        }
        drop(upstream);
        assert_eq!(done.await.expect("no panic").as_str(), "stored");
        assert_bytes(&node.stored().await.expect("stored").1, 0..20 * SLICE);
        assert_eq!(node.gauge(Metric::FillWindowBytes), 0, "nothing is held of what is gone");
        assert_eq!(node.gauge(Metric::Fills), 0);
    });
}

#[test]
fn all_windows_together_have_a_limit() {
    on_a_worker(async {
        let settings = Settings { windows_bytes_total: 4 * SLICE, ..Settings::default() };
        let node = Node::new(settings);
        let (mut upstream, body) = upstream();
        let own = {
            let lead = node.lead();
            let own = lead.follower();
            start(&node, lead, None, body);
            own
        };
        let mut reader = filling(&own).await.read_all();
        for _ in 0..40 {
            upstream.send(SLICE).await;
            next(&mut reader).await;
            assert!(node.gauge(Metric::FillWindowBytes) <= 5 * SLICE);
        }
        assert_eq!(node.gauge(Metric::FillWindowsReduced), 1);
    });
}

#[test]
fn slow_readers_of_many_responses_hold_no_more_than_all_windows_may() {
    on_a_worker(async {
        let windows = 8 * SLICE;
        let node = Node::new(Settings { windows_bytes_total: windows, ..small() });
        let mut slow = Vec::new();
        for key in 0..20 {
            let join = node.fills.join(KeyHash(key), None, || PurgeSequence(0), |_, _| false);
            let Join::Lead(lead) = join else { panic!("not the leader: {join:?}") };
            let own = lead.follower();
            let (mut upstream, body) = upstream();
            let done = start(&node, lead, None, body);
            let reader = filling(&own).await.read_all();
            while upstream.is_taken(SLICE / 2).await {}
            upstream.sent -= SLICE / 2;
            slow.push((upstream, reader, done));
        }
        let stalled = node.metrics.total(Metric::FillsUnstoredForMemory, 0);
        assert!(stalled > 10, "{stalled} fills of slow readers are no longer stored");
        // A reader that goes on has every byte, though its response is not stored.
        let (mut upstream, reader, done) = slow.pop().expect("twenty");
        let reading = spawn_local(all(reader));
        upstream.send(SLICE).await;
        let sent = upstream.sent;
        drop(upstream);
        assert_bytes(&reading.await.expect("no panic").expect("whole"), 0..sent);
        assert_eq!(done.await.expect("no panic").as_str(), "unstored");
    });
}
