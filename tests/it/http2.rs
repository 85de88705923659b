//! HTTP/2 from clients that break its rules: each rule of RFC 9113 that a peer can break has
//! its case here, in the order of the RFC, as conformance suites have them.

use crate::harness::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Http2, PADDED, PING,
    PREFACE, PRIORITISED, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, block,
    frame, headers, setting,
};
use crate::harness::{Answer, Edge, Origin, until};

/// The expected reaction of the node to the bytes of a case.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// The connection ends, with one of these error codes said first.
    GoAway(&'static [u32]),
    /// Stream 1 ends with one of these, and the connection lives.
    Reset(&'static [u32]),
    /// The same, where h2 ends the whole connection, as it may (RFC 9113 §5.4.2).
    Refused(&'static [u32]),
    /// Stream 1 is answered with this status, and the connection lives.
    Status(u16),
    /// Nothing happens, and the connection lives.
    Nothing,
}
use Expected::{GoAway, Nothing, Refused, Reset, Status};

const PROTOCOL: &[u32] = &[1];
const FLOW_CONTROL: &[u32] = &[3];
const STREAM_CLOSED: &[u32] = &[5];
const FRAME_SIZE: &[u32] = &[6];
const COMPRESSION: &[u32] = &[9];
const CALM: &[u32] = &[11];

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "edge.test")];
const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "edge.test")];

/// A GET on stream 1 with more fields.
fn get(more: &[(&str, &str)]) -> Vec<u8> {
    headers(END_STREAM, 1, &[&GET, more].concat())
}

/// A POST on stream 1 that is followed by a body.
fn post(more: &[(&str, &str)]) -> Vec<u8> {
    headers(0, 1, &[&POST, more].concat())
}

/// A request of exactly these fields.
fn of(fields: &[(&str, &str)]) -> Vec<u8> {
    headers(END_STREAM, 1, fields)
}

/// A GET whose path need not be text.
fn raw_path(path: &[u8]) -> Vec<u8> {
    let literal = [&[4, path.len() as u8], path].concat();
    let others: Vec<_> = GET.into_iter().filter(|(name, _)| *name != ":path").collect();
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &[literal, block(&others)].concat())
}

/// A block in the four fields of a GET by the static table, authority `edge.test`.
fn get_block() -> Vec<u8> {
    block(&GET)
}

/// Sends the bytes of a case and describes the node's reaction in the terms of [`Expected`].
fn observe(edge: &Edge, bytes: &[u8]) -> String {
    let mut client = Http2::connect(edge.http, &[]);
    client.send(bytes);
    client.send(&frame(PING, 0, 0, b"the end."));
    let mut seen = None;
    let mut pings = 0;
    loop {
        let Some(came) = client.next() else { return "Closed".to_owned() };
        match came.kind {
            GOAWAY => {
                while client.next().is_some() {}
                return format!("GoAway({})", came.code());
            }
            RST_STREAM if came.stream == 1 && seen.is_none() => {
                seen = Some(format!("Reset({})", came.code()));
            }
            HEADERS if came.stream == 1 => {
                seen = Some(format!("Status({})", status(&came.payload)))
            }
            PING if came.payload == b"the end." => {
                // All frames sent before the second PING have arrived.
                pings += 1;
                client.send(&frame(PING, 0, 0, b"the end."));
            }
            _ => {}
        }
        if pings > 1 && (seen.is_some() || !awaits_answer(bytes)) {
            let seen = seen.unwrap_or_else(|| "Nothing".to_owned());
            return if client.is_alive() { seen } else { format!("{seen}, then the end") };
        }
    }
}

/// Whether the bytes end a request: then something must come back for it.
fn awaits_answer(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        if rest[3] == HEADERS && rest[4] & END_STREAM != 0 || rest[3] == DATA && rest[4] & 1 != 0 {
            return true;
        }
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    false
}

/// `:status` in a block that begins with it, indexed or as a literal with an indexed name.
pub fn status(block: &[u8]) -> u16 {
    match block[0] {
        at @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(at - 0x88)],
        // A literal of three digits, Huffman-coded or not: 5 or 6 bits a digit.
        _ => {
            let (length, text) = (block[1], &block[2..]);
            if length & 0x80 == 0 {
                return String::from_utf8_lossy(&text[..3]).parse().expect("digits");
            }
            let mut bits = text.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1));
            let mut take = |count: u32| {
                (0..count).fold(0u16, |all, _| all << 1 | u16::from(bits.next().unwrap_or(1)))
            };
            (0..3).fold(0, |number, _| {
                // RFC 7541 B: 0, 1 and 2 have five bits, the others six from 0x19.
                let five = take(5);
                let digit = if five < 3 { five } else { (five << 1 | take(1)) - 0x19 + 3 };
                number * 10 + digit
            })
        }
    }
}

/// Every case on a connection of its own, before an origin that must not see any of it.
#[track_caller]
fn check(cases: &[(&str, Vec<u8>, Expected)]) {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()));
    let edge = Edge::before(&origin.url());
    let mut wrong = Vec::new();
    for (name, bytes, expected) in cases {
        let seen = observe(&edge, bytes);
        let fits = match expected {
            GoAway(codes) => codes.iter().any(|code| seen == format!("GoAway({code})")),
            Refused(codes) => {
                let ends = |code| [format!("GoAway({code})"), format!("Reset({code})")];
                codes.iter().any(|code| ends(code).contains(&seen))
            }
            Reset(codes) => codes.iter().any(|code| seen == format!("Reset({code})")),
            Status(status) => seen == format!("Status({status})"),
            Nothing => seen == "Nothing",
        };
        if !fits {
            wrong.push(format!("{name}: expected {expected:?}, saw {seen}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Requests that reached the origin were well-formed.
    let refused = |target: &str| target.contains("bad");
    assert!(
        !origin.received().iter().any(|request| refused(&request.target)),
        "{:?}",
        origin.received()
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a flat list of cases")]
fn frames_that_break_the_connection_s_rules_end_it() {
    let big = vec![0; 16_385];
    let then = |first: Vec<u8>, second: Vec<u8>| [first, second].concat();
    let half = |flags: u8, stream: u32| frame(HEADERS, flags, stream, &get_block());
    check(&[
        // §4.1: unknown frames and flags are ignored.
        ("unknown frame", then(frame(0x16, 0, 0, b"12345678"), get(&[])), Status(200)),
        ("unknown flags", frame(PING, 0xfe, 0, b"12345678"), Nothing),
        ("reserved bit", frame(PING, 0, 1 << 31, b"12345678"), Nothing),
        // §4.2: sizes.
        ("DATA too large", then(post(&[]), frame(DATA, END_STREAM, 1, &big)), GoAway(FRAME_SIZE)),
        (
            "HEADERS too large",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &big),
            GoAway(FRAME_SIZE),
        ),
        // §4.3: header blocks.
        ("block that is none", frame(HEADERS, 5, 1, &[0x40, 0x7f]), GoAway(COMPRESSION)),
        ("index beyond the table", frame(HEADERS, 5, 1, &[0xff, 0x80, 0x01]), GoAway(COMPRESSION)),
        (
            "table larger than told",
            frame(HEADERS, 5, 1, &[0x3f, 0xe1, 0xff, 0x03]),
            GoAway(COMPRESSION),
        ),
        (
            "Huffman with EOS",
            frame(HEADERS, 5, 1, &[0, 0x84, 0xff, 0xff, 0xff, 0xff, 0]),
            GoAway(COMPRESSION),
        ),
        (
            "PRIORITY in a block",
            then(half(END_STREAM, 1), frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9])),
            GoAway(PROTOCOL),
        ),
        ("HEADERS in a block", then(half(END_STREAM, 1), get(&[])), GoAway(PROTOCOL)),
        (
            "unknown frame in a block",
            then(half(END_STREAM, 1), frame(0x16, 0, 1, b"x")),
            GoAway(PROTOCOL),
        ),
        (
            "CONTINUATION of another",
            then(half(END_STREAM, 1), frame(CONTINUATION, 4, 3, &[])),
            GoAway(PROTOCOL),
        ),
        // §5.1: idle streams.
        ("DATA on idle", frame(DATA, END_STREAM, 1, b"x"), GoAway(PROTOCOL)),
        ("RST_STREAM on idle", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), GoAway(PROTOCOL)),
        ("WINDOW_UPDATE on idle", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 100]), GoAway(PROTOCOL)),
        ("CONTINUATION on idle", frame(CONTINUATION, 4, 1, &get_block()), GoAway(PROTOCOL)),
        // §5.1.1: stream numbers.
        ("even number", headers(END_STREAM, 2, &GET), GoAway(PROTOCOL)),
        (
            "smaller number",
            then(headers(END_STREAM, 5, &GET), headers(END_STREAM, 3, &GET)),
            GoAway(PROTOCOL),
        ),
        // §6: stream 0 where there must be one, and the other way round.
        ("DATA on 0", frame(DATA, END_STREAM, 0, b"x"), GoAway(PROTOCOL)),
        ("HEADERS on 0", headers(END_STREAM, 0, &GET), GoAway(PROTOCOL)),
        ("PRIORITY on 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 3, 9]), GoAway(PROTOCOL)),
        ("RST_STREAM on 0", frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]), GoAway(PROTOCOL)),
        (
            "CONTINUATION on 0",
            then(half(END_STREAM, 1), frame(CONTINUATION, 4, 0, &[])),
            GoAway(PROTOCOL),
        ),
        ("SETTINGS on 1", frame(SETTINGS, 0, 1, &[]), GoAway(PROTOCOL)),
        ("PING on 1", frame(PING, 0, 1, b"12345678"), GoAway(PROTOCOL)),
        ("GOAWAY on 1", frame(GOAWAY, 0, 1, &[0; 8]), GoAway(PROTOCOL)),
        (
            "PUSH_PROMISE",
            then(post(&[]), frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2, 0x82])),
            GoAway(PROTOCOL),
        ),
        // Padding longer than the frame.
        (
            "DATA padded beyond",
            then(post(&[]), frame(DATA, PADDED | END_STREAM, 1, &[9, 1, 1])),
            GoAway(PROTOCOL),
        ),
        ("HEADERS padded beyond", frame(HEADERS, PADDED | 5, 1, &[200, 0x82]), GoAway(PROTOCOL)),
        // Sizes that are fixed.
        ("RST_STREAM of 3", then(post(&[]), frame(RST_STREAM, 0, 1, &[0; 3])), GoAway(FRAME_SIZE)),
        ("SETTINGS of 3", frame(SETTINGS, 0, 0, &[0; 3]), GoAway(FRAME_SIZE)),
        ("SETTINGS ack of 6", frame(SETTINGS, ACK, 0, &[0; 6]), GoAway(FRAME_SIZE)),
        ("PING of 6", frame(PING, 0, 0, &[0; 6]), GoAway(FRAME_SIZE)),
        ("PRIORITY of 4", frame(PRIORITY, 0, 1, &[0; 4]), GoAway(FRAME_SIZE)),
        ("GOAWAY of 4", frame(GOAWAY, 0, 0, &[0; 4]), GoAway(FRAME_SIZE)),
        ("WINDOW_UPDATE of 3", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), GoAway(FRAME_SIZE)),
        // §6.5.2: settings out of bounds.
        ("push setting of 2", frame(SETTINGS, 0, 0, &setting(2, 2)), GoAway(PROTOCOL)),
        (
            "window setting too large",
            frame(SETTINGS, 0, 0, &setting(4, 1 << 31)),
            GoAway(FLOW_CONTROL),
        ),
        ("frame setting too small", frame(SETTINGS, 0, 0, &setting(5, 16_383)), GoAway(PROTOCOL)),
        ("frame setting too large", frame(SETTINGS, 0, 0, &setting(5, 1 << 24)), GoAway(PROTOCOL)),
        ("unknown setting", frame(SETTINGS, 0, 0, &setting(0xff, 1)), Nothing),
        // §6.9: windows.
        ("no increment", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), GoAway(PROTOCOL)),
        (
            "window of the connection too large",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            GoAway(FLOW_CONTROL),
        ),
        // §6.10: nothing to continue.
        (
            "CONTINUATION after the end",
            then(post(&[]), frame(CONTINUATION, 4, 1, &[])),
            GoAway(PROTOCOL),
        ),
    ]);
}

#[test]
fn frames_that_break_a_stream_s_rules_end_no_other() {
    let then = |first: Vec<u8>, second: Vec<u8>| [first, second].concat();
    let prioritised = |on: u32| {
        let payload = [&on.to_be_bytes()[..], &[9], &get_block()].concat();
        frame(HEADERS, PRIORITISED | END_HEADERS | END_STREAM, 1, &payload)
    };
    check(&[
        (
            "padded HEADERS",
            frame(HEADERS, PADDED | 5, 1, &[&[2], &get_block()[..], &[0, 0]].concat()),
            Status(200),
        ),
        ("HEADERS with a priority", prioritised(7), Status(200)),
        // RFC 9113 §5.3.1 did away with dependencies; RFC 7540's error for this is allowed.
        ("HEADERS that depend on themselves", prioritised(1), Reset(PROTOCOL)),
        ("no increment", then(post(&[]), frame(WINDOW_UPDATE, 0, 1, &[0; 4])), Refused(PROTOCOL)),
        (
            "window too large",
            then(post(&[]), frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])),
            Reset(FLOW_CONTROL),
        ),
        // §5.1: half closed and closed streams.
        (
            "DATA after the end",
            then(get(&[]), frame(DATA, END_STREAM, 1, b"x")),
            Refused(STREAM_CLOSED),
        ),
        ("a request after the end", then(get(&[]), get(&[])), Refused(STREAM_CLOSED)),
        (
            "a reset of unknown reason",
            then(post(&[]), frame(RST_STREAM, 0, 1, &[0, 0, 0, 99])),
            Nothing,
        ),
        // §8.1: a second header section that does not end the stream.
        (
            "trailers that end nothing",
            then(post(&[]), headers(0, 1, &[("x-a", "b")])),
            Reset(PROTOCOL),
        ),
    ]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a flat list of cases")]
fn malformed_requests_are_answered_by_a_reset_or_a_400() {
    let with = |more: &[(&str, &str)]| get(more);
    let without = |name: &str| {
        let left: Vec<_> = GET.into_iter().filter(|(other, _)| *other != name).collect();
        of(&left)
    };
    let instead = |name: &str, value: &'static str| {
        of(&GET.map(|(other, old)| if other == name { (other, value) } else { (other, old) }))
    };
    let then = |first: Vec<u8>, second: Vec<u8>| [first, second].concat();
    let body = |bytes: &[u8]| frame(DATA, END_STREAM, 1, bytes);
    let trailers = |fields: &[(&str, &str)]| headers(END_STREAM, 1, fields);
    check(&[
        // §8.2: names and values. §8.1.1: a malformed request is an error of its stream.
        ("upper-case name", with(&[("X-A", "b")]), Reset(PROTOCOL)),
        ("empty name", with(&[("", "b")]), Reset(PROTOCOL)),
        ("name with a space", with(&[("x a", "b")]), Reset(PROTOCOL)),
        ("name with a colon", with(&[("x:a", "b")]), Reset(PROTOCOL)),
        ("name with a line", with(&[("x\r\ny", "b")]), Reset(PROTOCOL)),
        ("value with CR LF", with(&[("x-a", "b\r\nhost: bad")]), Reset(PROTOCOL)),
        ("value with LF", with(&[("x-a", "b\nc")]), Reset(PROTOCOL)),
        ("value with NUL", with(&[("x-a", "b\0")]), Reset(PROTOCOL)),
        ("value that begins with a space", with(&[("x-a", " b")]), Status(400)),
        ("value that ends with a tab", with(&[("x-a", "b\t")]), Status(400)),
        // §8.2.2: fields of the connection.
        ("connection", with(&[("connection", "keep-alive")]), Reset(PROTOCOL)),
        ("keep-alive", with(&[("keep-alive", "1")]), Reset(PROTOCOL)),
        ("proxy-connection", with(&[("proxy-connection", "close")]), Reset(PROTOCOL)),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")]), Reset(PROTOCOL)),
        ("upgrade", with(&[("upgrade", "h2c")]), Reset(PROTOCOL)),
        ("te: gzip", with(&[("te", "gzip")]), Reset(PROTOCOL)),
        ("te: trailers", with(&[("te", "trailers")]), Status(200)),
        // §8.3: pseudo-fields.
        ("unknown pseudo-field", with(&[(":test", "x")]), Reset(PROTOCOL)),
        ("pseudo-field of responses", with(&[(":status", "200")]), Reset(PROTOCOL)),
        (
            "pseudo-field behind others",
            of(&[&GET[..3], &[("x-a", "b"), GET[3]]].concat()),
            Reset(PROTOCOL),
        ),
        ("two methods", with(&[(":method", "GET")]), Reset(PROTOCOL)),
        ("two schemes", with(&[(":scheme", "http")]), Reset(PROTOCOL)),
        ("two paths", with(&[(":path", "/bad")]), Reset(PROTOCOL)),
        ("two authorities", with(&[(":authority", "bad.test")]), Reset(PROTOCOL)),
        ("no method", without(":method"), Reset(PROTOCOL)),
        ("no scheme", without(":scheme"), Reset(PROTOCOL)),
        ("no path", without(":path"), Reset(PROTOCOL)),
        ("empty path", instead(":path", ""), Reset(PROTOCOL)),
        ("path without slash", instead(":path", "bad"), Reset(PROTOCOL)),
        ("path with a space", instead(":path", "/bad b"), Reset(PROTOCOL)),
        ("path with lines", instead(":path", "/bad HTTP/1.1\r\nx: y"), Reset(PROTOCOL)),
        ("path with a broken escape", instead(":path", "/bad%zz"), Status(400)),
        ("path that is no UTF-8", raw_path(b"/bad\xff"), Reset(PROTOCOL)),
        ("method with a space", instead(":method", "GET /bad"), Reset(PROTOCOL)),
        ("no authority", without(":authority"), Status(400)),
        ("authority with a user", instead(":authority", "user@edge.test"), Status(400)),
        ("authority with a path", instead(":authority", "edge.test/bad"), Reset(PROTOCOL)),
        ("another host", with(&[("host", "other.test")]), Status(400)),
        ("two hosts", with(&[("host", "edge.test"), ("host", "edge.test")]), Status(400)),
        ("another scheme", instead(":scheme", "https"), Status(421)),
        // §8.5: CONNECT, which is not offered, and its extended form, which is not either.
        ("CONNECT", of(&[(":method", "CONNECT"), (":authority", "edge.test:80")]), Status(501)),
        ("CONNECT with a path", instead(":method", "CONNECT"), Reset(PROTOCOL)),
        (
            "extended CONNECT",
            of(&[&[(":method", "CONNECT"), (":protocol", "websocket")], &GET[1..]].concat()),
            Reset(PROTOCOL),
        ),
        (
            "a protocol without CONNECT",
            of(&[&[(":protocol", "websocket")], &GET[..]].concat()),
            Reset(PROTOCOL),
        ),
        // §8.1.1: lengths.
        ("a length with no body", with(&[("content-length", "1")]), Reset(PROTOCOL)),
        ("a longer body", then(post(&[("content-length", "1")]), body(b"bad")), Reset(PROTOCOL)),
        ("a shorter body", then(post(&[("content-length", "5")]), body(b"bad")), Reset(PROTOCOL)),
        (
            "a length that is none",
            then(post(&[("content-length", "+3")]), body(b"bad")),
            Reset(PROTOCOL),
        ),
        (
            "two lengths",
            then(post(&[("content-length", "3"), ("content-length", "4")]), body(b"bad")),
            Reset(PROTOCOL),
        ),
        (
            "one length twice",
            then(post(&[("content-length", "3"), ("content-length", "3")]), body(b"bad")),
            Status(400),
        ),
        // Trailers, which we pass over.
        (
            "pseudo-field in trailers",
            then(post(&[]), trailers(&[(":path", "/bad")])),
            Reset(PROTOCOL),
        ),
        ("upper case in trailers", then(post(&[]), trailers(&[("X-A", "b")])), Reset(PROTOCOL)),
        ("trailers", then(post(&[]), trailers(&[("x-a", "b")])), Status(200)),
    ]);
}

/// The HPACK tables of client and node stay equal after malformed requests.
#[test]
fn a_malformed_request_leaves_the_others_of_its_connection_alone() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()));
    let edge = Edge::before(&origin.url());
    let mut client = Http2::connect(edge.http, &[]);
    let field = |wire: &[u8]| [&get_block()[..], wire].concat();
    let send = |client: &mut Http2, stream: u32, block: &[u8]| {
        client.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, block));
        loop {
            match client.next().expect("the connection lives") {
                came if came.stream == stream && came.kind == RST_STREAM => return came.code(),
                came if came.stream == stream && came.kind == HEADERS => {
                    return status(&came.payload).into();
                }
                came => assert_ne!(came.kind, GOAWAY, "{came:?}"),
            }
        }
    };
    client.send(&post(&[]));
    // Three fields for the table, two of which may not be.
    let three = b"\x40\x03X-A\x01a\x40\x03x-b\x02\r\n\x40\x03x-c\x05right";
    assert_eq!(send(&mut client, 3, &field(three)), 1);
    // Invalid table entries are still invalid, and valid ones are still there.
    assert_eq!(send(&mut client, 5, &field(b"\xc0")), 1);
    assert_eq!(send(&mut client, 7, &field(b"\xbf")), 1);
    assert_eq!(send(&mut client, 9, &field(b"\xbe\x0f\x30\x05right")), 200);
    let request = origin.received();
    let [request] = &request[..] else { panic!("one was a request: {request:?}") };
    assert_eq!((request.header("x-c"), request.header("x-b")), (Some("right"), Some("right")));
    // The first request is still under way.
    client.send(&frame(DATA, END_STREAM, 1, b"hello"));
    assert_eq!(client.next_of(DATA).expect("its answer").payload, b"hello");
    assert!(client.is_alive());
    assert_eq!(edge.metric("skerry_requests_unread_total{reason=\"malformed\""), 3.0);
}

#[test]
fn text_in_a_target_is_read_alike_over_both_versions() {
    let origin = Origin::start(|request| Answer::ok(request.target.clone()));
    let edge = Edge::before(&origin.url());
    for (target, expected) in [
        ("/é?q=é".as_bytes(), Some("/%C3%A9?q=%C3%A9")),
        ("/日本語/%c3%a9".as_bytes(), Some("/%E6%97%A5%E6%9C%AC%E8%AA%9E/%C3%A9")),
        (b"/\xe9", None),
        (b"/?q=\xe9", None),
        (b"/\xc3", None),
        (b"/\xed\xa0\x80", None),
    ] {
        let line = [b"GET ", target, b" HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n"];
        let mut client = edge.connect();
        client.send(&line.concat());
        let status = client.read(false).status;
        assert_eq!(status, if expected.is_some() { 200 } else { 400 }, "{target:?}");
        let seen = observe(&edge, &raw_path(target));
        assert_eq!(seen, if expected.is_some() { "Status(200)" } else { "Reset(1)" }, "{target:?}");
        if let Some(expected) = expected {
            let all = origin.received();
            let targets: Vec<_> =
                all.iter().rev().take(2).map(|request| &*request.target).collect();
            assert_eq!(targets, [expected; 2]);
        }
    }
    assert_eq!(origin.request_count(), 4);
}

#[test]
fn the_first_frame_is_settings() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    for first in [frame(PING, 0, 0, b"12345678"), get(&[]), frame(SETTINGS, ACK, 0, &[])] {
        let mut client = Http2::silent(edge.http);
        client.send(&[PREFACE, &first[..]].concat());
        let end = client.next_of(GOAWAY).expect("a word before the end");
        assert_eq!(end.code(), 1);
    }
    assert_eq!(origin.request_count(), 0);
}

#[test]
fn a_preface_that_is_none_ends_the_connection() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    for bytes in [
        [&PREFACE[..20], b"XX\r\n\r\n"].concat(),
        [PREFACE, b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n"].concat(),
    ] {
        let said = crate::harness::raw(edge.http, &bytes);
        assert!(!said.contains("HTTP/1.1 200"), "{said:?}");
    }
    assert_eq!(origin.request_count(), 0);
}

/// Sends frames until the node closes the connection, and returns its last frame.
fn flood(edge: &Edge, first: &[u8], again: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
    let mut client = Http2::connect(edge.http, &[]);
    client.send(first);
    for round in 0..50_000 {
        if !client.send(&again(round)) {
            break;
        }
    }
    let end = client.next_of(GOAWAY);
    end.map(|frame| frame.code())
}

#[test]
fn floods_are_ended_before_they_cost_much() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    let open = frame(HEADERS, END_STREAM, 1, &get_block());
    let field = block(&[("x-a", &"b".repeat(100))]);
    let endless = [
        ("CONTINUATION", flood(&edge, &open, |_| frame(CONTINUATION, 0, 1, &field.repeat(100)))),
        ("empty CONTINUATION", flood(&edge, &open, |_| frame(CONTINUATION, 0, 1, &[]))),
        ("empty DATA", flood(&edge, &post(&[]), |_| frame(DATA, 0, 1, &[]).repeat(100))),
        (
            "rapid reset",
            flood(&edge, &[], |round| {
                let stream = 2 * round + 1;
                [headers(END_STREAM, stream, &GET), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
                    .concat()
            }),
        ),
        (
            "resets that the client provokes (CVE-2025-8671)",
            flood(&edge, &[], |round| {
                let stream = 2 * round + 1;
                let overflow = frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]);
                [headers(0, stream, &POST), overflow].concat()
            }),
        ),
        (
            "bad requests",
            flood(&edge, &[], |round| headers(END_STREAM, 2 * round + 1, &[("X-A", "b")])),
        ),
    ];
    for (name, code) in endless {
        // A reset of the connection can overtake the words.
        assert!(
            code.is_none_or(|code| CALM.contains(&code) || PROTOCOL.contains(&code)),
            "{name}: {code:?}"
        );
    }
    until("each is counted", || edge.metric("skerry_http2_connections_ended_total") >= 6.0);
    assert_eq!(edge.get("/").status, 200, "others are served");
}

#[test]
fn a_flood_of_frames_that_bring_nothing_is_ended() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let edge = Edge::before(&origin.url());
    let floods = [
        frame(PING, 0, 0, b"12345678"),
        frame(SETTINGS, 0, 0, &setting(3, 100)),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(0x16, 0, 0, b"what?"),
    ];
    for flood in &floods {
        let mut client = Http2::connect(edge.http, &[]);
        let flood = flood.repeat(1_000);
        // A client that does not read is held up by its own full socket instead.
        client.discard_input();
        while client.send(&flood) {}
        assert_eq!(edge.get("/").status, 200, "others are served");
    }
    let ended = "skerry_http2_connections_ended_total{reason=\"flood\"}";
    until("each is counted", || edge.metric(ended) >= floods.len() as f64);
}

#[test]
fn a_header_list_that_grows_on_arrival_is_refused() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    // One field of 4,000 bytes goes into the table, and each byte behind it names it again.
    let mut bomb = get_block();
    bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend(vec![b'a'; 4_000]);
    bomb.extend(vec![0xbe; 8_000]);
    let seen = observe(&edge, &frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb));
    assert!(["Status(431)", "Reset(1)", "GoAway(11)", "GoAway(1)"].contains(&&*seen), "{seen}");
    assert_eq!(origin.request_count(), 0);
}

#[test]
fn a_window_of_one_byte_is_kept_to_and_may_change_under_way() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let edge = Edge::before(&origin.url());
    let mut client = Http2::connect(edge.http, &setting(4, 1));
    client.send(&get(&[]));
    let first = client.next_of(DATA).expect("a byte");
    assert_eq!((first.payload.as_slice(), first.flags & END_STREAM), (&b"h"[..], 0));
    // Down by two: the window is negative, and two more bytes open it by one (§6.9.2).
    client.send(&frame(SETTINGS, 0, 0, &setting(4, 0)));
    assert!(client.is_alive());
    client.send(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 2]));
    assert_eq!(client.next_of(DATA).expect("more").payload, b"e");
    client.send(&frame(SETTINGS, 0, 0, &setting(4, 100)));
    let rest = client.next_of(DATA).expect("the rest");
    assert_eq!(rest.payload, b"llo");
    assert!(rest.flags & END_STREAM != 0 || client.next_of(DATA).is_some());
}

/// Otherwise its replies stay in memory for as long as the client likes.
#[test]
fn a_client_that_opens_no_window_is_not_kept_by_its_pings() {
    let origin = Origin::start(|_| Answer::ok(vec![b'x'; 100_000]).fresh_for(60));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n[limits]\nidle_timeout = \"1s\"\n",
        origin.url()
    ));
    edge.get("/");
    let mut client = Http2::connect(edge.http, &setting(4, 0));
    client.send(&get(&[]));
    assert!(client.next_of(HEADERS).is_some());
    client.discard_input();
    let mut polls = 0;
    until("it is disconnected", || {
        polls += 1;
        polls % 20 == 0 && !client.send(&frame(PING, 0, 0, b"12345678"))
    });
    assert_eq!(edge.metric("skerry_connections_timed_out_total{waited_for=\"send\""), 1.0);
}

#[test]
fn cookies_that_came_in_crumbs_reach_the_origin_whole() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let edge = Edge::before(&origin.url());
    let crumbs = [("cookie", "a=1"), ("x-a", "b"), ("cookie", "b=2"), ("cookie", "c=3")];
    assert_eq!(observe(&edge, &get(&crumbs)), "Status(200)");
    let request = &origin.received()[0];
    let cookies: Vec<_> = request.headers.iter().filter(|(name, _)| name == "cookie").collect();
    assert_eq!(cookies.len(), 1, "{cookies:?}");
    assert_eq!(request.header("cookie"), Some("a=1; b=2; c=3"));
    // Over HTTP/1 they are one field, and so they count as one here.
    let many: Vec<String> = (0..150).map(|at| format!("c{at}=1")).collect();
    let crumbs: Vec<_> = many.iter().map(|crumb| ("cookie", &**crumb)).collect();
    assert_eq!(observe(&edge, &get(&crumbs)), "Status(200)");
    let others: Vec<_> = many.iter().map(|value| ("x-a", &**value)).collect();
    assert_eq!(observe(&edge, &get(&others)), "Status(431)");
    let last = origin.received().pop().expect("a request");
    assert_eq!(last.header("cookie"), Some(&*many.join("; ")));
}
