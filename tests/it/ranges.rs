//! Large objects and ranges: the cost of a seek, and changes at the origin during a transfer.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::victim::Victim;
use crate::harness::{Answer, Client, Edge, Gate, Origin, Random, Request, until};

const SLICE: u64 = 256 << 10;
const MIB: u64 = 1 << 20;

/// The bytes of a version of the object at these offsets.
fn bytes_of(version: u64, range: Range<u64>) -> Vec<u8> {
    let words = range.start / 8..range.end.div_ceil(8);
    let word = |at: u64| (at ^ (version << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let bytes: Vec<u8> = words.flat_map(|at| word(at).to_le_bytes()).collect();
    let before = (range.start % 8) as usize;
    bytes[before..before + (range.end - range.start) as usize].to_vec()
}

fn assert_bytes(found: &[u8], version: u64, range: Range<u64>) {
    assert_eq!(found.len() as u64, range.end - range.start, "{range:?}");
    if let Some(at) = found.iter().zip(bytes_of(version, range.clone())).position(|(a, b)| *a != b)
    {
        panic!("byte {} of {range:?} is wrong", range.start + at as u64);
    }
}

/// How an origin deals with ranges.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Ranges,
    /// Ranges, and nothing that binds them together.
    NoValidator,
    WholeOnly,
    /// Serves ranges. A full response pauses after 1 MiB until the gate opens.
    Halting,
    /// Ranges; the whole breaks off after a mebibyte and a half.
    BreakingOff,
}

struct Object {
    origin: Origin,
    version: Arc<AtomicU64>,
    /// Offset from which on requested bytes are of a changed object.
    changes_at: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    going_on: Gate,
}

/// An origin of one object whose bytes are a function of their offset and its version.
fn object(length: u64, manner: Manner) -> Object {
    let (version, sent) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
    let changes_at = Arc::new(AtomicU64::new(u64::MAX));
    let (current, count, change) = (version.clone(), sent.clone(), changes_at.clone());
    let going_on = Gate::default();
    let gate = going_on.clone();
    let origin = Origin::start(move |request| {
        let range = request.header("range").and_then(|text| {
            let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
            if first.is_empty() {
                return Some(length.saturating_sub(last.parse().ok()?)..length);
            }
            let first: u64 = first.parse().ok()?;
            Some(first..last.parse().map_or(length, |last: u64| (last + 1).min(length)))
        });
        if range.as_ref().is_some_and(|range| range.start >= change.load(Ordering::SeqCst)) {
            current.store(2, Ordering::SeqCst);
        }
        let version = current.load(Ordering::SeqCst);
        let tag = format!("\"v{version}\"");
        let bound = request.header("if-range").is_none_or(|bound| bound == tag);
        let part = range.filter(|_| bound && manner != Manner::WholeOnly);
        let answer = match part {
            Some(range) if range.start >= length => {
                Answer::status(416).header("Content-Range", &format!("bytes */{length}"))
            }
            Some(range) => {
                count.fetch_add(range.end - range.start, Ordering::SeqCst);
                let content_range = format!("bytes {}-{}/{length}", range.start, range.end - 1);
                Answer::part(bytes_of(version, range)).header("Content-Range", &content_range)
            }
            None => {
                count.fetch_add(length, Ordering::SeqCst);
                let whole = Answer::ok(bytes_of(version, 0..length));
                match manner {
                    Manner::Halting => whole.pause_at(MIB as usize, &gate),
                    Manner::BreakingOff => whole.cut_after((MIB + MIB / 2) as usize),
                    _ => whole,
                }
            }
        };
        let answer = answer.fresh_for(3600);
        let answer = match manner {
            Manner::WholeOnly => answer,
            _ => answer.header("Accept-Ranges", "bytes"),
        };
        if manner == Manner::NoValidator { answer } else { answer.header("ETag", &tag) }
    });
    Object { origin, version, changes_at, sent, going_on }
}

fn node(object: &Object, memory: &str, disk: &str) -> (tempfile::TempDir, Victim) {
    let directory = tempfile::tempdir().expect("a directory");
    let config = format!(
        "[store]\nmemory = \"{memory}\"\ndisk = \"{disk}\"\nadmission = \"all\"\n\
         preallocate = false\n[limits]\nconnections_per_address_max = 20000\n\
         [log]\naccess = \"off\"\n"
    );
    let process = Victim::start(directory.path(), &object.origin.url(), &config);
    (directory, process)
}

fn range_field(range: &Range<u64>) -> String {
    format!("Range: bytes={}-{}", range.start, range.end - 1)
}

fn read(client: &mut Client, version: u64, range: Range<u64>) -> crate::harness::Response {
    let response = client.get("a.test", "/long", &[&range_field(&range)]);
    assert_eq!(response.status, 206, "{range:?}: {:?}", response.headers);
    assert_bytes(&response.body, version, range);
    response
}

fn seek_at_random(length: u64, reads: usize, memory: &str, disk: &str) {
    let object = object(length, Manner::Ranges);
    let (_directory, process) = node(&object, memory, disk);
    let mut client = Client::connect(process.address);
    let mut random = Random(20_261_122);
    let mut touched = BTreeSet::new();
    for _ in 0..reads {
        let start = random.below(length);
        let end = length.min(start + 1 + random.below(MIB));
        touched.extend(start / SLICE..=(end - 1) / SLICE);
        read(&mut client, 1, start..end);
    }
    let touched_bytes = touched.len() as u64 * SLICE;
    let sent = object.sent.load(Ordering::SeqCst);
    println!(
        "{reads} ranges of {} MiB: {} MiB of slices touched, {} MiB from the origin in {} \
         requests, at most {} MiB of memory",
        length / MIB,
        touched_bytes / MIB,
        sent / MIB,
        object.origin.request_count(),
        process.memory_bytes_max() / MIB
    );
    assert!(sent * 10 <= touched_bytes * 12, "{sent} bytes for {touched_bytes}");
    assert!(process.memory_bytes_max() <= 256 * MIB);
}

#[test]
fn random_ranges_cost_the_slices_that_they_touch() {
    seek_at_random(64 * MIB, 150, "96MiB", "none");
}

#[test]
#[ignore = "some minutes: for the figures in docs"]
fn random_ranges_of_two_gigabytes_cost_the_slices_that_they_touch() {
    seek_at_random(2 << 30, 3000, "64MiB", "3GiB");
}

#[test]
fn a_seek_in_ten_gibibytes_costs_what_it_needs() {
    let length = 10 << 30;
    let object = object(length, Manner::Ranges);
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    for start in [9 << 30, 5 << 30, length - 100] {
        let range = start..length.min(start + 100_000);
        let before = object.sent.load(Ordering::SeqCst);
        read(&mut client, 1, range.clone());
        let slices = (range.end - 1) / SLICE - range.start / SLICE + 1;
        let sent = object.sent.load(Ordering::SeqCst) - before;
        assert!(sent <= slices * SLICE, "{sent} bytes for {range:?}");
    }
    assert!(process.memory_bytes_max() <= 256 * MIB);
}

#[test]
fn a_full_request_completes_a_partly_stored_body() {
    let length = 5 * MIB + 1000;
    let object = object(length, Manner::Ranges);
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    // The second waits until the slice is stored.
    read(&mut client, 1, 3 * MIB..3 * MIB + 10);
    read(&mut client, 1, 3 * MIB..3 * MIB + 10);
    let whole = client.get("a.test", "/long", &[]);
    assert_eq!(whole.status, 200);
    assert_bytes(&whole.body, 1, 0..length);
    assert!(whole.header("cache-status").contains("fwd=partial"), "{:?}", whole.headers);
    assert_eq!(object.sent.load(Ordering::SeqCst), length, "no byte was fetched twice");
    let requests = object.origin.request_count();
    let again = client.get("a.test", "/long", &[]);
    assert_bytes(&again.body, 1, 0..length);
    assert!(again.is_hit(), "{:?}", again.headers);
    let tail = client.get("a.test", "/long", &["Range: bytes=-7"]);
    assert_bytes(&tail.body, 1, length - 7..length);
    assert_eq!(object.origin.request_count(), requests);
}

#[test]
fn the_last_bytes_of_a_long_object_are_asked_for_as_they_are() {
    let length = 8 * MIB + 5;
    let object = object(length, Manner::Ranges);
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    let mut tail = |count: u64| {
        let field = format!("Range: bytes=-{count}");
        let response = client.get("a.test", "/long", &[&field]);
        assert_eq!(response.status, 206);
        assert_bytes(&response.body, 1, length - count..length);
        let expected = format!("bytes {}-{}/{length}", length - count, length - 1);
        assert_eq!(response.header("content-range"), expected);
        response
    };
    assert!(tail(7).header("cache-status").contains("stored"));
    assert_eq!(object.sent.load(Ordering::SeqCst), 7, "no more than was asked for");
    // Known by now: from here on by slices.
    tail(7);
    assert!(tail(5).is_hit());
    assert_eq!(object.origin.request_count(), 2);
    // A version with slices of its own serves them.
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    let field = format!("Range: bytes=-{}", 2 * SLICE);
    for _ in 0..2 {
        let tail = client.get("a.test", "/long", &[&field]);
        assert_bytes(&tail.body, 1, length - 2 * SLICE..length);
    }
    let tail = client.get("a.test", "/long", &["Range: bytes=-9"]);
    assert!(tail.is_hit(), "{:?}", tail.headers);
}

#[test]
fn a_part_that_cannot_be_extended_answers_only_ranges_within_it() {
    let length = 8 * MIB;
    for (object, name) in
        [(object(length, Manner::NoValidator), "long"), (object(1000, Manner::Ranges), "short")]
    {
        let length = if name == "long" { length } else { 1000 };
        let (_directory, process) = node(&object, "64MiB", "none");
        let mut client = Client::connect(process.address);
        let mut get = |range: &str, bytes: Range<u64>| {
            let response = client.get("a.test", "/o", &[&format!("Range: bytes={range}")]);
            assert_eq!(response.status, 206, "{name} {range}");
            assert_bytes(&response.body, 1, bytes.clone());
            let expected = format!("bytes {}-{}/{length}", bytes.start, bytes.end - 1);
            assert_eq!(response.header("content-range"), expected);
            response
        };
        let first = get("-100", length - 100..length);
        assert!(first.header("cache-status").contains("stored"), "{:?}", first.headers);
        assert_eq!(object.sent.load(Ordering::SeqCst), 100, "{name}: no more than was asked for");
        assert!(get("-100", length - 100..length).is_hit());
        assert!(get("-7", length - 7..length).is_hit());
        let (from, to) = (length - 90, length - 81);
        assert!(get(&format!("{from}-{to}"), from..to + 1).is_hit());
        assert!(get(&format!("{from}-"), from..length).is_hit());
        assert_eq!(object.origin.request_count(), 1, "{name}");
        // The head of it is not that of the whole.
        let head = client.request(Request {
            method: "HEAD",
            host: "a.test",
            target: "/o",
            fields: &[],
            body: b"",
        });
        assert_eq!(head.status, 200, "{name}");
        let both = client.get("a.test", "/o", &["Range: bytes=0-1,-1"]);
        assert_eq!(both.status, 206, "{name}");
        assert!(!both.is_hit(), "{name}: {:?}", both.headers);
        let whole = client.get("a.test", "/o", &[]);
        assert_eq!(whole.status, 200, "{name}");
        assert_bytes(&whole.body, 1, 0..length);
        assert!(client.get("a.test", "/o", &[]).is_hit(), "{name}: it took the place of the part");
    }
}

#[test]
fn the_last_bytes_under_a_condition_are_sent_when_it_holds() {
    for length in [1000, 3 * MIB] {
        let object = object(length, Manner::Ranges);
        for (condition, status) in [
            ("If-None-Match: \"v1\"", 304),
            ("If-Match: \"v2\"", 412),
            ("If-Range: \"v2\"", 200),
            ("If-Range: \"v1\"", 206),
            ("If-None-Match: \"v2\"", 206),
        ] {
            // Nothing is stored yet.
            let (_directory, process) = node(&object, "64MiB", "none");
            let mut client = Client::connect(process.address);
            let tail = client.get("a.test", "/o", &["Range: bytes=-7", condition]);
            assert_eq!(tail.status, status, "{condition} {length}");
            match status {
                200 => assert_bytes(&tail.body, 1, 0..length),
                206 => assert_bytes(&tail.body, 1, length - 7..length),
                _ => {}
            }
        }
    }
}

#[test]
fn a_part_that_breaks_off_is_not_stored_and_asked_for_again() {
    let asked = AtomicU64::new(0);
    let origin = Origin::start(move |_| {
        let part = Answer::part(bytes_of(1, 93..100)).header("Content-Range", "bytes 93-99/100");
        let part = part.fresh_for(3600);
        if asked.fetch_add(1, Ordering::SeqCst) == 0 { part.cut_after(3) } else { part }
    });
    let directory = tempfile::tempdir().expect("a directory");
    let process = Victim::start(directory.path(), &origin.url(), "[log]\naccess = \"off\"\n");
    let mut client = Client::connect(process.address);
    // The response is short, so that the second request is the retry of the first.
    for (requests, hit) in [(2, false), (2, true)] {
        let tail = client.get("a.test", "/o", &["Range: bytes=-7"]);
        assert_bytes(&tail.body, 1, 93..100);
        assert_eq!((origin.request_count(), tail.is_hit()), (requests, hit), "{:?}", tail.headers);
    }
}

#[test]
fn a_short_object_comes_in_whole() {
    let object = object(MIB - 5, Manner::Ranges);
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    read(&mut client, 1, 1000..2000);
    read(&mut client, 1, 700_000..700_001);
    until("the rest has come in", || {
        let whole = client.get("a.test", "/long", &[]);
        assert_bytes(&whole.body, 1, 0..MIB - 5);
        whole.is_hit()
    });
    assert_eq!(object.origin.request_count(), 1);
}

#[test]
fn an_object_that_changes_on_the_way_is_cut_off_and_never_mixed() {
    let length = 24 * MIB;
    let object = object(length, Manner::Ranges);
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    read(&mut client, 1, 0..MIB);
    // The rest is requested in pieces of 8 MiB, of which the first is unchanged.
    object.changes_at.store(2 * MIB, Ordering::SeqCst);
    let cut = client.get("a.test", "/long", &[]);
    assert!(!cut.is_complete);
    assert!(cut.body.len() as u64 > MIB, "{}", cut.body.len());
    assert_bytes(&cut.body, 1, 0..cut.body.len() as u64);
    let mut client = Client::connect(process.address);
    let whole = client.get("a.test", "/long", &[]);
    assert!(whole.is_complete);
    assert_bytes(&whole.body, 2, 0..length);
}

#[test]
fn a_change_of_a_partly_stored_object_is_found_before_the_response() {
    let length = 4 * MIB;
    let object = object(length, Manner::Ranges);
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    read(&mut client, 1, 0..MIB);
    object.version.store(2, Ordering::SeqCst);
    // Its beginning is stored, but promised with the rest alone.
    let whole = client.get("a.test", "/long", &[]);
    assert!(whole.is_complete);
    assert_bytes(&whole.body, 2, 0..length);
}

#[test]
fn a_change_before_the_first_byte_is_no_error() {
    let length = 4 * MIB;
    let object = object(length, Manner::Ranges);
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    read(&mut client, 1, 0..MIB);
    object.version.store(2, Ordering::SeqCst);
    read(&mut client, 2, 3 * MIB..3 * MIB + 100);
    read(&mut client, 2, 0..100);
}

#[test]
fn an_object_that_changes_right_after_its_validation_is_fetched_again() {
    let length = 4 * MIB;
    let version = AtomicU64::new(1);
    let origin = Origin::start(move |request| {
        if request.header("if-none-match") == Some("\"v1\"") {
            version.store(2, Ordering::SeqCst);
            return Answer::status(304).fresh_for(60).header("ETag", "\"v1\"");
        }
        let version = version.load(Ordering::SeqCst);
        let tag = format!("\"v{version}\"");
        let range = request.header("range").and_then(|text| {
            let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
            Some(first.parse().ok()?..(last.parse::<u64>().ok()? + 1).min(length))
        });
        let bound = request.header("if-range").is_none_or(|bound| bound == tag);
        let answer = match range.filter(|_| bound) {
            Some(range) => {
                let content_range = format!("bytes {}-{}/{length}", range.start, range.end - 1);
                Answer::part(bytes_of(version, range)).header("Content-Range", &content_range)
            }
            None => Answer::ok(bytes_of(version, 0..length)),
        };
        answer.fresh_for(60).header("ETag", &tag).header("Accept-Ranges", "bytes")
    });
    let edge = Edge::before(&origin.url());
    let get = |range: Range<u64>| edge.get_with("/long", &[&range_field(&range)]);
    assert_bytes(&get(0..100).body, 1, 0..100);
    edge.advance(61);
    let other = get(3 * MIB..3 * MIB + 100);
    assert_eq!(other.status, 206, "{:?}", other.headers);
    assert_bytes(&other.body, 2, 3 * MIB..3 * MIB + 100);
}

/// An origin that has the first mebibyte of an object, and answers requests beyond it with this.
fn beginning_only(rest: Answer) -> Origin {
    Origin::start(move |request| {
        if request.header("range") != Some("bytes=0-1048575") {
            return rest.clone();
        }
        let part = Answer::part(bytes_of(1, 0..MIB)).fresh_for(60).header("ETag", "\"v1\"");
        part.header("Content-Range", &format!("bytes 0-{}/{}", MIB - 1, 4 * MIB))
    })
}

#[test]
fn an_answer_without_the_missing_bytes_is_passed_on_as_it_is() {
    // The last is a part of other bytes than those that were asked for.
    for status in [404, 403, 302, 429, 206] {
        let rest = match status {
            206 => Answer::part("abc").header("Content-Range", "bytes 7-9/4194304"),
            _ => Answer::status(status),
        };
        let rest = rest.header("Cache-Control", "no-store").header("ETag", "\"v1\"");
        let rest = rest.header("X-Rest", "1");
        let edge = Edge::before(&beginning_only(rest).url());
        let get = |range: Range<u64>| edge.get_with("/long", &[&range_field(&range)]);
        assert_bytes(&get(0..100).body, 1, 0..100);
        let mut beyond = vec![get(3 * MIB..3 * MIB + 100)];
        beyond.push(edge.get("/long"));
        for response in beyond {
            assert_eq!((response.status, response.header("x-rest")), (status, "1".to_owned()));
        }
        // The stored bytes may still be used.
        let stored = get(100..200);
        assert!(stored.status == 206 && stored.is_hit(), "{status}: {stored:?}");
    }
}

#[test]
fn an_error_of_the_origin_in_place_of_missing_bytes_keeps_its_status_and_is_shared() {
    let gate = Gate::default();
    let origin = beginning_only(Answer::status(503).behind(&gate));
    let edge = Edge::before(&origin.url());
    let get = |range: Range<u64>| edge.get_with("/long", &[&range_field(&range)]);
    assert_bytes(&get(0..100).body, 1, 0..100);
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..3).map(|_| scope.spawn(|| get(3 * MIB..3 * MIB + 100))).collect();
        until("two wait", || edge.metric("skerry_requests_collapsed_total") == 2.0);
        gate.open();
        for response in asked {
            let response = response.join().expect("a response");
            assert_eq!(response.status, 503, "{response:?}");
        }
    });
    assert_eq!(origin.request_count(), 2);
    // The stored bytes may still be used.
    let stored = get(100..200);
    assert!(stored.status == 206 && stored.is_hit(), "{stored:?}");
}

#[test]
fn only_if_cached_requests_no_missing_bytes() {
    let origin = beginning_only(Answer::status(500));
    let edge = Edge::before(&origin.url());
    let get = |range: &str| edge.get_with("/long", &[range, "Cache-Control: only-if-cached"]);
    edge.get_with("/long", &[&range_field(&(0..100))]);
    let missing = range_field(&(3 * MIB..3 * MIB + 100));
    for field in [&missing, "X-Range: none"] {
        assert_eq!(get(field).status, 504, "{field}");
    }
    assert_eq!(get(&range_field(&(100..200))).status, 206);
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn readers_of_a_part_that_has_changed_share_one_new_request() {
    let length = 24 * MIB;
    let gate = Gate::default();
    let origin = {
        let gate = gate.clone();
        let asked = AtomicU64::new(0);
        Origin::start(move |request| {
            let (_, range) =
                request.header("range").expect("parts").split_once('=').expect("bytes");
            let (first, last) = range.split_once('-').expect("a range");
            let range = first.parse().expect("a number")..last.parse::<u64>().expect("one") + 1;
            let version = if asked.fetch_add(1, Ordering::SeqCst) == 0 { 1 } else { 2 };
            let tag = format!("\"v{version}\"");
            let answer = match request.header("if-range").is_none_or(|bound| bound == tag) {
                true => {
                    let content_range = format!("bytes {}-{}/{length}", range.start, range.end - 1);
                    Answer::part(bytes_of(version, range)).header("Content-Range", &content_range)
                }
                false => Answer::ok(bytes_of(version, 0..length)),
            };
            let answer = if version == 1 { answer.behind(&gate) } else { answer };
            answer.fresh_for(3600).header("ETag", &tag).header("Accept-Ranges", "bytes")
        })
    };
    let edge = Edge::before(&origin.url());
    let get = |range: Range<u64>| edge.get_with("/long", &[&range_field(&range)]);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| get(3 * MIB..3 * MIB + 100));
        origin.wait_for_requests(1);
        let others: Vec<_> = (0..20)
            .map(|number| 5 * MIB + 10 * number..5 * MIB + 10 * number + 100)
            .map(|range| (range.clone(), scope.spawn(|| get(range))))
            .collect();
        until("they wait", || edge.metric("skerry_requests_collapsed_total") >= 20.0);
        gate.open();
        assert_bytes(&first.join().expect("an answer").body, 1, 3 * MIB..3 * MIB + 100);
        for (range, other) in others {
            assert_bytes(&other.join().expect("an answer").body, 2, range);
        }
    });
    let asked: Vec<_> = origin.received();
    let asked: Vec<_> =
        asked.iter().map(|request| (request.header("range"), request.header("if-range"))).collect();
    assert_eq!(asked.len(), 3, "a part, that it has changed, and the other part: {asked:?}");
}

#[test]
fn a_client_that_the_store_has_left_behind_goes_on_from_the_origin() {
    // Three times the size of the store; sockets buffer a part of it.
    let length = 48 * MIB;
    let object = object(length, Manner::Ranges);
    let (_directory, process) = node(&object, "16MiB", "none");
    let mut slow = Client::connect(process.address);
    slow.send(b"GET /long HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(slow.read_line(), "HTTP/1.1 200 OK");
    let whole = Client::connect(process.address).get("a.test", "/long", &[]);
    assert_bytes(&whole.body, 1, 0..length);
    while !slow.read_line().is_empty() {}
    assert_bytes(&slow.read_bytes(length as usize), 1, 0..length);
    let requests = object.origin.request_count() as u64;
    let received = object.origin.received();
    let ranges: Vec<_> = received.iter().map(|request| request.header("range")).collect();
    let sent = object.sent.load(Ordering::SeqCst);
    assert!(sent <= 2 * length, "no byte is fetched twice for one client: {sent} {ranges:?}");
    let rest = length.div_ceil(8 * MIB);
    // A request ends where the next stored slice begins: what memory has kept can split one in two.
    assert!(
        (2..=2 + rest).contains(&requests),
        "the whole, and the rest for the slow one: {requests} {ranges:?}"
    );
}

#[test]
fn a_range_far_ahead_of_a_fill_does_not_wait_for_it() {
    let length = 32 * MIB;
    let object = object(length, Manner::Halting);
    let (_directory, process) = node(&object, "128MiB", "none");
    let mut first = Client::connect(process.address);
    first.send(b"GET /long HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(first.read_line(), "HTTP/1.1 200 OK");
    let mut client = Client::connect(process.address);
    for requests in [2, 2] {
        let seek = read(&mut client, 1, 30 * MIB + 5..30 * MIB + 500);
        assert!(seek.header("cache-status").contains("fwd=partial"), "{seek:?}");
        assert_eq!(object.origin.request_count(), requests);
    }
    read(&mut client, 1, 20 * MIB..20 * MIB + 500);
    assert_eq!(object.origin.request_count(), 3);
    object.going_on.open();
    while !first.read_line().is_empty() {}
    assert_bytes(&first.read_bytes(length as usize), 1, 0..length);
    assert_bytes(&client.get("a.test", "/long", &[]).body, 1, 0..length);
    assert_eq!(object.origin.request_count(), 3);
}

#[test]
fn a_fill_that_breaks_off_goes_on_with_ranges() {
    let length = 4 * MIB;
    let object = object(length, Manner::BreakingOff);
    let (_directory, process) = node(&object, "64MiB", "none");
    let whole = Client::connect(process.address).get("a.test", "/long", &[]);
    assert_bytes(&whole.body, 1, 0..length);
    assert_eq!(object.origin.request_count(), 2);
}

#[test]
fn an_origin_without_ranges_is_asked_once_for_the_whole() {
    for manner in [Manner::WholeOnly, Manner::NoValidator] {
        let object = object(4 * MIB, manner);
        let (_directory, process) = node(&object, "64MiB", "none");
        let mut client = Client::connect(process.address);
        // Early enough that most of it is still missing when the client has its range.
        read(&mut client, 1, 5..500);
        let requests = object.origin.request_count();
        assert!(requests <= 2, "a range, and then the whole: {requests}");
        read(&mut client, 1, 10..SLICE);
        let whole = client.get("a.test", "/long", &[]);
        assert_bytes(&whole.body, 1, 0..4 * MIB);
        assert_eq!(object.origin.request_count(), requests);
    }
}

#[test]
fn several_ranges_at_once_come_in_their_order() {
    let object = object(8 * MIB, Manner::Ranges);
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    let response = client.get("a.test", "/long", &["Range: bytes=6000000-6000099,2000000-2000099"]);
    assert_eq!(response.status, 206);
    assert!(response.is_complete);
    let place = |range: Range<u64>| {
        let part = bytes_of(1, range);
        response.body.windows(part.len()).position(|bytes| *bytes == *part)
    };
    let (first, second) = (place(6_000_000..6_000_100), place(2_000_000..2_000_100));
    assert!(first.is_some() && first < second, "{first:?} {second:?}");
    assert!(object.sent.load(Ordering::SeqCst) <= 3 * SLICE, "two slices, or three");
}

#[test]
fn a_range_beyond_the_end_is_refused_and_says_the_length() {
    let object = object(4 * MIB, Manner::Ranges);
    let (_directory, process) = node(&object, "64MiB", "none");
    let mut client = Client::connect(process.address);
    for _ in 0..2 {
        let response = client.get("a.test", "/long", &["Range: bytes=9000000-"]);
        assert_eq!(response.status, 416);
        assert_eq!(response.header("content-range"), format!("bytes */{}", 4 * MIB));
        read(&mut client, 1, 0..10);
    }
}

/// Looks at every byte, and keeps none.
async fn read_whole(mut stream: TcpStream, expected: Arc<Vec<u8>>) {
    let mut buffer = vec![0; 64 << 10];
    let mut head = 0;
    while !buffer[..head].ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut buffer[head..=head]).await.expect("read");
        assert!(read == 1 && head < 8192, "a head: {:?}", String::from_utf8_lossy(&buffer[..head]));
        head += 1;
    }
    assert!(buffer.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&buffer[..head]));
    let mut at = 0;
    loop {
        let read = stream.read(&mut buffer).await.expect("read");
        if read == 0 {
            break;
        }
        assert!(expected.get(at..at + read) == Some(&buffer[..read]), "every byte is right");
        at += read;
    }
    assert_eq!(at, expected.len());
}

/// This many clients request the same uncached object at once; every byte of each response is checked.
fn ask_at_once(clients: usize) {
    let length = MIB;
    let gate = Gate::default();
    let origin = {
        let gate = gate.clone();
        Origin::start(move |_| Answer::ok(bytes_of(1, 0..length)).fresh_for(3600).behind(&gate))
    };
    let sent = Arc::default();
    let object = Object {
        origin,
        version: Arc::default(),
        changes_at: Arc::default(),
        sent,
        going_on: Gate::default(),
    };
    let (_directory, process) = node(&object, "64MiB", "none");
    let expected = Arc::new(bytes_of(1, 0..length));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut readers = Vec::new();
        for _ in 0..clients {
            let mut stream = TcpStream::connect(process.address).await.expect("connected");
            let request = b"GET /long HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.expect("sent");
            let expected = expected.clone();
            readers.push(tokio::spawn(read_whole(stream, expected)));
        }
        object.origin.wait_for_requests(1);
        gate.open();
        for reader in readers {
            reader.await.expect("right");
        }
    });
    println!("{clients} clients: {} MiB of memory", process.memory_bytes_max() / MIB);
    assert_eq!(object.origin.request_count(), 1);
}

#[test]
fn a_crowd_for_a_cold_object_is_one_request_to_the_origin() {
    ask_at_once(500);
}

#[test]
#[ignore = "needs 20,000 open files and a minute"]
fn ten_thousand_for_a_cold_object_are_one_request_to_the_origin() {
    ask_at_once(10_000);
}

#[test]
fn a_range_of_an_empty_object_is_the_whole_of_it() {
    let origin = Origin::start(|_| Answer::ok("").fresh_for(60).header("ETag", "\"v1\""));
    let edge = Edge::before(&origin.url());
    for range in ["bytes=0-", "bytes=0-99", "bytes=-5"] {
        for verdict in ["first", "again"] {
            let target = format!("/{range}");
            let answer = edge.get_with(&target, &[&format!("Range: {range}")]);
            assert_eq!((answer.status, answer.text()), (200, ""), "{range} {verdict}");
        }
    }
}

#[test]
fn the_digest_of_a_part_is_not_that_of_the_whole() {
    const LENGTH: u64 = 16 * SLICE;
    let origin = Origin::start(|request| {
        let range = request.header("range").and_then(|text| {
            let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
            Some(first.parse().ok()?..last.parse::<u64>().ok()?.saturating_add(1).min(LENGTH))
        });
        let Some(range) = range else { return Answer::ok("unexpected") };
        Answer::status(206)
            .body(bytes_of(1, range.clone()))
            .header("Content-Range", &format!("bytes {}-{}/{LENGTH}", range.start, range.end - 1))
            .header("ETag", "\"v1\"")
            .header("Content-Digest", "sha-256=:AA==:")
            .header("Repr-Digest", "sha-256=:BB==:")
            .fresh_for(60)
    });
    let edge = Edge::before(&origin.url());
    for (field, status) in [("Range: bytes=0-9", 206), ("X-Range: none", 200)] {
        let answer = edge.get_with("/", &[field]);
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.header("content-digest"), "", "{field}");
        assert_eq!(answer.header("repr-digest"), "sha-256=:BB==:", "{field}");
    }
}
