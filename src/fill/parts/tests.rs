//! Readers of partial objects against a scripted origin.

#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]

use std::cell::RefCell;
use std::time::Duration;

use http::header::{CONTENT_RANGE, ETAG};
use http::{HeaderValue, StatusCode};

use super::*;
use crate::body::next_frame;
use crate::cache::StoredResponse;
use crate::fill::Settings;
use crate::fill::tests::{
    Node, Random, SLICE, all, assert_bytes, bytes_of, on_a_worker, response, seed,
};
use crate::metrics::Metric;

const LENGTH: u64 = 40 * SLICE + 100;

/// An origin that answers every range as it is told, and what it was asked for.
#[derive(Clone)]
struct Origin {
    asked: Rc<RefCell<Vec<Range<u64>>>>,
    answer: Rc<RefCell<Answering>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Answering {
    Part,
    /// No more than this many bytes at once.
    Shorter(u64),
    /// The body ends before the part does.
    Early,
    NewVersion,
    Whole,
    Fails,
}

impl Origin {
    fn answer(&self, range: &Range<u64>) -> Response<Body> {
        self.asked.borrow_mut().push(range.clone());
        let answering = *self.answer.borrow();
        let (mut status, mut tag, mut range) =
            (StatusCode::PARTIAL_CONTENT, "\"v1\"", range.clone());
        let mut body = bytes_of(range.clone());
        match answering {
            Answering::Part => {}
            Answering::Shorter(bytes) => {
                range.end = range.end.min(range.start + bytes);
                body = bytes_of(range.clone());
            }
            Answering::Early => body.truncate(body.len() / 2),
            Answering::NewVersion => tag = "\"v2\"",
            Answering::Whole => (status, body) = (StatusCode::OK, bytes_of(0..LENGTH)),
            Answering::Fails => status = StatusCode::SERVICE_UNAVAILABLE,
        }
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let content_range = format!("bytes {}-{}/{LENGTH}", range.start, range.end - 1);
        let content_range = HeaderValue::try_from(content_range).expect("a value");
        response.headers_mut().insert(CONTENT_RANGE, content_range);
        response.headers_mut().insert(ETAG, HeaderValue::from_static(tag));
        response
    }
}

/// An object of which nothing is stored.
fn object(node: &Node) -> (Parts, Origin) {
    let response = StoredResponse::clone(&response(Some(LENGTH)));
    let origin = Origin { asked: Rc::default(), answer: Rc::new(RefCell::new(Answering::Part)) };
    let answering = origin.clone();
    let head = node.store.partial_to_be(response).expect("long enough");
    node.store.show(&head);
    let parts = Parts {
        store: node.store.clone(),
        fills: node.fills.clone(),
        head,
        validator: Validator::Tag(HeaderValue::from_static("\"v1\"")),
        ask: Rc::new(move |range| {
            let origin = answering.clone();
            Box::pin(async move {
                // Others have a turn before the answer comes.
                tokio::task::yield_now().await;
                Ok(origin.answer(&range))
            })
        }),
    };
    (parts, origin)
}

fn node() -> Node {
    Node::new(Settings { range_request_bytes_max: 4 * SLICE, ..Settings::default() })
}

async fn read(parts: &Parts, range: Range<u64>) -> Result<Bytes, BodyError> {
    all(parts.clone().read(range, None)).await
}

#[test]
fn a_seek_costs_the_slices_that_it_touches() {
    on_a_worker(async {
        let (parts, origin) = object(&node());
        let wanted = 10 * SLICE + 5..12 * SLICE + 5;
        assert_bytes(&read(&parts, wanted.clone()).await.expect("whole"), wanted.clone());
        assert_eq!(origin.asked.take(), [10 * SLICE..13 * SLICE]);
        assert_bytes(&read(&parts, wanted.clone()).await.expect("whole"), wanted);
        assert_eq!(origin.asked.take(), [], "all of it is stored");
        let around = 9 * SLICE..14 * SLICE;
        assert_bytes(&read(&parts, around.clone()).await.expect("whole"), around);
        assert_eq!(origin.asked.take(), [9 * SLICE..10 * SLICE, 13 * SLICE..14 * SLICE]);
    });
}

#[test]
fn an_object_that_was_read_in_whole_is_an_object_like_others() {
    on_a_worker(async {
        let node = node();
        let (parts, origin) = object(&node);
        let reader = parts.clone().read(0..u64::MAX, None);
        assert_eq!(reader.exact_length(), Some(LENGTH));
        assert_bytes(&all(reader).await.expect("whole"), 0..LENGTH);
        assert_eq!(origin.asked.borrow().len(), 11, "of four slices each, and a rest");
        let Some(crate::store::Record::Response(head)) = node.store.in_memory(parts.head.hash())
        else {
            panic!("not stored");
        };
        assert!(head.response.parts.is_none());
        assert_bytes(&all(node.store.body(&head, 0..LENGTH)).await.expect("whole"), 0..LENGTH);
    });
}

#[test]
fn bytes_that_upstream_sends_already_are_not_asked_for_again() {
    on_a_worker(async {
        let (parts, origin) = object(&node());
        let body = Body::from(bytes_of(2 * SLICE..3 * SLICE));
        let first = parts.first(2 * SLICE..3 * SLICE, body);
        let wanted = 2 * SLICE + 7..4 * SLICE;
        let reader = parts.read(wanted.clone(), Some(first));
        assert_bytes(&all(reader).await.expect("whole"), wanted);
        assert_eq!(origin.asked.take(), [3 * SLICE..4 * SLICE]);
    });
}

#[test]
fn parts_shorter_than_asked_are_gone_on_from() {
    on_a_worker(async {
        let (parts, origin) = object(&node());
        *origin.answer.borrow_mut() = Answering::Shorter(SLICE + 10);
        let wanted = 100..4 * SLICE;
        assert_bytes(&read(&parts, wanted.clone()).await.expect("whole"), wanted);
        *origin.answer.borrow_mut() = Answering::Shorter(50);
        assert!(read(&parts, 9 * SLICE + 100..10 * SLICE).await.is_err(), "not for ever");
    });
}

/// Makes memory drop what has not been requested again.
async fn store_another_object(node: &Node) {
    let other = StoredResponse::clone(&response(Some(400 * SLICE)));
    let other = StoredResponse { key: "https://www.example.org/b".into(), ..other };
    let head = node.store.partial_to_be(other).expect("long enough");
    for number in 0..400 {
        let bytes = bytes_of(head.slice_range(number));
        node.store.put_slice(&head, number, bytes).await.expect("a whole slice");
    }
}

#[test]
fn a_slow_reader_gets_every_byte_also_if_slices_leave_memory_meanwhile() {
    on_a_worker(async {
        let settings = Settings { range_request_bytes_max: 12 * SLICE, ..Settings::default() };
        let node = Node::new(settings);
        let (parts, origin) = object(&node);
        let wanted = 0..12 * SLICE;
        read(&parts, wanted.clone()).await.expect("whole");
        origin.asked.take();
        let mut reader = parts.clone().read(wanted.clone(), None);
        // The reader's task plans to send all slices from the store, and waits with the third.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        store_another_object(&node).await;
        let gone = node.store.missing(&parts.head, wanted.clone());
        assert_eq!(gone.last().map(|gone| gone.end), Some(wanted.end), "{gone:?}");
        let first = next_frame(&mut reader).await.expect("more").expect("stored");
        let mut bytes = first.into_data().expect("data").to_vec();
        // The next one is fetched again, and stored without the reader, which takes too long.
        let is_stored = || {
            origin
                .asked
                .borrow()
                .first()
                .is_some_and(|asked| node.store.missing(&parts.head, asked.clone()).is_empty())
        };
        while !is_stored() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bytes.extend_from_slice(&all(reader).await.expect("whole"));
        assert_bytes(&bytes.into(), wanted);
    });
}

#[test]
fn an_object_that_changed_is_cut_off_and_never_mixed() {
    on_a_worker(async {
        let node = node();
        let (parts, origin) = object(&node);
        read(&parts, 0..SLICE).await.expect("whole");
        *origin.answer.borrow_mut() = Answering::NewVersion;
        let mut reader = parts.clone().read(0..2 * SLICE, None);
        let stored = next_frame(&mut reader).await.expect("more").expect("stored").into_data();
        assert_bytes(&stored.expect("data"), 0..SLICE);
        let error = next_frame(&mut reader).await.expect("not a clean end").expect_err("cut off");
        assert!(error.to_string().contains(&SLICE.to_string()), "{error}");
        assert!(node.store.in_memory(parts.head.hash()).is_none(), "the old one is dropped");
        assert_eq!(node.gauge(Metric::RangeObjectsChanged), 1);
    });
}

#[test]
fn a_late_reader_of_what_changed_leaves_the_newer_version_alone() {
    on_a_worker(async {
        let node = node();
        let (parts, origin) = object(&node);
        read(&parts, 0..SLICE).await.expect("whole");
        let (newer, _) = object(&node);
        *origin.answer.borrow_mut() = Answering::NewVersion;
        read(&parts, 0..2 * SLICE).await.expect_err("cut off");
        let Some(crate::store::Record::Response(head)) = node.store.in_memory(parts.head.hash())
        else {
            panic!("the newer one is gone");
        };
        assert_eq!(head.object, newer.head.object);
    });
}

#[test]
fn late_parts_of_an_object_that_changed_do_not_bring_it_back() {
    on_a_worker(async {
        let node = node();
        let (parts, origin) = object(&node);
        let first = parts.first(0..SLICE, Body::from(bytes_of(0..SLICE)));
        *origin.answer.borrow_mut() = Answering::NewVersion;
        read(&parts, 2 * SLICE..3 * SLICE).await.expect_err("cut off");
        let bytes = all(parts.clone().read(0..SLICE, Some(first))).await;
        assert_bytes(&bytes.expect("it was on its way"), 0..SLICE);
        assert!(node.store.in_memory(parts.head.hash()).is_none());
    });
}

#[test]
fn one_asks_for_all_whether_an_object_has_changed() {
    on_a_worker(async {
        let (parts, origin) = object(&node());
        *origin.answer.borrow_mut() = Answering::NewVersion;
        let begin = |parts: Parts| async move { parts.begin(5..3 * SLICE).await.map(|_| ()) };
        let readers: Vec<_> = (0..100).map(|_| spawn_local(begin(parts.clone()))).collect();
        for reader in readers {
            let begun = reader.await.expect("no panic");
            assert!(matches!(begun, Err(PartError::Changed)), "{begun:?}");
        }
        assert_eq!(origin.asked.take(), [0..3 * SLICE]);
    });
}

#[test]
fn a_request_that_waits_for_a_reader_that_finds_a_change_begins_anew() {
    on_a_worker(async {
        let (parts, origin) = object(&node());
        *origin.answer.borrow_mut() = Answering::NewVersion;
        let reader = spawn_local(all(parts.clone().read(0..SLICE, None)));
        tokio::task::yield_now().await;
        let begun = parts.begin(0..SLICE).await.map(|_| ());
        assert!(matches!(begun, Err(PartError::Changed)), "{begun:?}");
        assert!(reader.await.expect("no panic").is_err());
        assert_eq!(origin.asked.borrow().len(), 1);
    });
}

#[test]
fn a_part_that_breaks_off_or_fails_is_an_error() {
    on_a_worker(async {
        let (parts, origin) = object(&node());
        for answering in [Answering::Early, Answering::Fails] {
            *origin.answer.borrow_mut() = answering;
            assert!(read(&parts, 0..2 * SLICE).await.is_err());
        }
        *origin.answer.borrow_mut() = Answering::Part;
        assert_bytes(&read(&parts, 0..2 * SLICE).await.expect("whole"), 0..2 * SLICE);
    });
}

#[test]
fn an_origin_that_stopped_doing_ranges_still_gives_the_bytes() {
    on_a_worker(async {
        let (parts, origin) = object(&node());
        *origin.answer.borrow_mut() = Answering::Whole;
        let wanted = 3 * SLICE + 1..5 * SLICE;
        assert_bytes(&read(&parts, wanted.clone()).await.expect("whole"), wanted);
        read(&parts, 0..SLICE).await.expect("stored on the way");
        assert_eq!(origin.asked.borrow().len(), 1);
    });
}

#[test]
fn readers_of_the_same_slices_ask_once() {
    on_a_worker(async {
        let (parts, origin) = object(&node());
        let wanted = 5..3 * SLICE;
        let readers = (0..100).map(|_| spawn_local(all(parts.clone().read(wanted.clone(), None))));
        for reader in readers.collect::<Vec<_>>() {
            let bytes = reader.await.expect("no panic").expect("whole");
            assert_bytes(&bytes, wanted.clone());
        }
        assert_eq!(origin.asked.take(), [0..3 * SLICE]);
        *origin.answer.borrow_mut() = Answering::Fails;
        let readers =
            (0..100).map(|_| spawn_local(all(parts.clone().read(4 * SLICE..5 * SLICE, None))));
        for reader in readers.collect::<Vec<_>>() {
            assert!(reader.await.expect("no panic").is_err());
        }
        assert_eq!(origin.asked.borrow().len(), 1, "a failure is shared");
    });
}

#[test]
fn random_seeks_ask_for_each_slice_once_and_every_byte_is_right() {
    on_a_worker(async {
        let (parts, origin) = object(&node());
        let mut random = Random(seed());
        let mut touched = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let start = random.below(LENGTH);
            let end = LENGTH.min(start + 1 + random.below(3 * SLICE));
            touched.extend(start / SLICE..=(end - 1) / SLICE);
            assert_bytes(&read(&parts, start..end).await.expect("whole"), start..end);
        }
        let asked: u64 = origin.asked.take().iter().map(|range| range.end - range.start).sum();
        let slice = |number: u64| ((number + 1) * SLICE).min(LENGTH) - number * SLICE;
        assert_eq!(asked, touched.into_iter().map(slice).sum::<u64>());
    });
}
