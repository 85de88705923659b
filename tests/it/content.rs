//! Request content on its way to the origin: whatever the method, the framing and the two
//! versions of HTTP, it arrives whole and framed once (RFC 9110 §8.6, §9.3, RFC 9112 §6).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::net::TcpListener;

use crate::harness::frames::{
    DATA, END_STREAM, Frame, GOAWAY, HEADERS, Http2, RST_STREAM, frame, headers,
};
use crate::harness::{Answer, Edge, Origin, raw};

const METHODS: [&str; 7] = ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PATCH", "REPORT"];

/// How the client frames its content.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Http1Length,
    Http1Chunked,
    Http2Length,
    Http2Unknown,
    /// HEADERS do not end the stream, an empty DATA frame does: no content.
    Http2EmptyData,
}

const FRAMINGS: [Framing; 5] = [
    Framing::Http1Length,
    Framing::Http1Chunked,
    Framing::Http2Length,
    Framing::Http2Unknown,
    Framing::Http2EmptyData,
];

impl Framing {
    fn content(self) -> &'static str {
        if self == Self::Http2EmptyData { "" } else { "hello" }
    }

    /// Sends `hello` to `/`. The status of the answer.
    fn send(self, edge: &Edge, method: &str) -> u16 {
        let http1 = |framing: &str| {
            let head = format!("{method} / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n");
            let said = raw(edge.http, format!("{head}{framing}").as_bytes());
            said.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
        };
        let http2 = |more: &[(&str, &str)]| {
            let content = frame(DATA, END_STREAM, 1, self.content().as_bytes());
            http2_status(edge.http, &[http2_head(method, more), content].concat())
        };
        match self {
            Self::Http1Length => http1("Content-Length: 5\r\n\r\nhello"),
            Self::Http1Chunked => {
                http1("Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")
            }
            Self::Http2Length => http2(&[("content-length", "5")]),
            Self::Http2Unknown | Self::Http2EmptyData => http2(&[]),
        }
    }
}

/// The HEADERS frame of a request to `/` on stream 1, which is followed by a body.
fn http2_head(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo =
        [(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "edge.test")];
    headers(0, 1, &[&pseudo, more].concat())
}

/// The status that stream 1 is answered with; 0 when it is reset or the connection ends.
pub fn http2_status(address: SocketAddr, bytes: &[u8]) -> u16 {
    let mut client = Http2::connect(address, &[]);
    client.send(bytes);
    loop {
        match client.next() {
            Some(Frame { kind: HEADERS, stream: 1, payload, .. }) => {
                return crate::http2::status(&payload);
            }
            Some(Frame { kind: RST_STREAM | GOAWAY, .. }) | None => return 0,
            Some(_) => {}
        }
    }
}

/// A request as an origin that speaks HTTP/2 saw it: method, `content-length`, content.
type ReceivedRequest = (String, Option<String>, Vec<u8>);

/// An origin that speaks HTTP/2 by prior knowledge and answers 200 to everything.
fn http2_origin() -> (String, Arc<Mutex<Vec<ReceivedRequest>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            listener.set_nonblocking(true).expect("a socket that does not block");
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, record.clone()));
            }
        });
    });
    (url, seen)
}

async fn converse(stream: tokio::net::TcpStream, record: Arc<Mutex<Vec<ReceivedRequest>>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let record = record.clone();
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut content = Vec::new();
            while let Some(piece) = body.data().await {
                // Only a request that is whole is recorded.
                let Ok(piece) = piece else { return };
                content.extend_from_slice(&piece);
            }
            let length = head.headers.get("content-length").and_then(|value| value.to_str().ok());
            let seen = (head.method.to_string(), length.map(str::to_owned), content);
            record.lock().unwrap().push(seen);
            let response = Response::builder().status(StatusCode::OK).body(()).unwrap();
            if let Ok(mut stream) = respond.send_response(response, false) {
                let _ = stream.send_data(Bytes::new(), true);
            }
        });
    }
}

#[test]
fn content_reaches_an_http1_origin_whole_and_framed_once() {
    let origin = Origin::start(|_| Answer::ok("fine"));
    let edge = Edge::before(&origin.url());
    let mut wrong = Vec::new();
    for method in METHODS {
        for framing in FRAMINGS {
            let before = origin.request_count();
            let status = framing.send(&edge, method);
            let request = origin.received().split_off(before);
            let [request] = &request[..] else {
                wrong.push(format!("{method} {framing:?}: {status}, the origin saw {request:?}"));
                continue;
            };
            let framed = (request.header("content-length"), request.header("transfer-encoding"));
            let is_framed = match framing {
                Framing::Http1Length | Framing::Http2Length => framed == (Some("5"), None),
                Framing::Http1Chunked | Framing::Http2Unknown => framed == (None, Some("chunked")),
                // RFC 9110 §8.6: a length of zero where the method gives content a meaning.
                Framing::Http2EmptyData if matches!(method, "POST" | "PATCH") => {
                    framed == (Some("0"), None)
                }
                Framing::Http2EmptyData => framed == (None, None),
            };
            let is_whole = request.method == method && request.body == framing.content().as_bytes();
            if status != 200 || !is_framed || !is_whole {
                wrong.push(format!("{method} {framing:?}: {status}, {request:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn content_reaches_an_http2_origin_whole() {
    let (url, seen) = http2_origin();
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {url:?}\nprotocol = \"http2\"\n[sites.all]\nhosts = \"*\"\n"
    ));
    let mut wrong = Vec::new();
    for method in METHODS {
        for framing in FRAMINGS {
            let status = framing.send(&edge, method);
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            let length = match framing {
                Framing::Http1Length | Framing::Http2Length => Some("5".to_owned()),
                Framing::Http2EmptyData if !matches!(method, "GET" | "HEAD" | "DELETE") => {
                    Some("0".to_owned())
                }
                _ => None,
            };
            let expected = (method.to_owned(), length, framing.content().as_bytes().to_vec());
            if status != 200 || seen != [expected] {
                wrong.push(format!("{method} {framing:?}: {status}, the origin saw {seen:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_chunk_that_is_none_is_a_400_whatever_the_method() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()));
    let edge = Edge::before(&origin.url());
    for method in METHODS {
        let head = format!("{method} / HTTP/1.1\r\nHost: edge.test\r\n");
        let request = format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX\r\n");
        let said = raw(edge.http, request.as_bytes());
        assert!(said.starts_with("HTTP/1.1 400 "), "{method}: {said:?}");
    }
    assert_eq!(origin.request_count(), 0, "none was whole: {:?}", origin.received());
}

#[test]
fn a_get_with_content_is_neither_stored_nor_answered_from_the_store() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()).fresh_for(60));
    let edge = Edge::before(&origin.url());
    let chunked = |content: &str| {
        let mut client = edge.connect();
        client.send(b"GET /page HTTP/1.1\r\nHost: edge.test\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(format!("1\r\n{content}\r\n0\r\n\r\n").as_bytes());
        client.read(false)
    };
    assert_eq!(chunked("a").text(), "a");
    assert_eq!(chunked("b").text(), "b");
    let plain = edge.get("/page");
    assert_eq!((plain.text(), plain.is_hit()), ("", false), "nothing of the others was stored");
    assert_eq!(chunked("c").text(), "c");
    assert!(edge.get("/page").is_hit());
    assert_eq!(origin.request_count(), 4);
}

#[test]
fn a_head_with_content_does_not_freshen_a_stored_response() {
    let origin = Origin::start(|request| match request.method.as_str() {
        "HEAD" => Answer::ok("another").header("ETag", "\"2\"").fresh_for(60),
        _ => Answer::ok("stored").header("ETag", "\"1\"").fresh_for(60),
    });
    let edge = Edge::before(&origin.url());
    edge.get("/page");
    let mut client = edge.connect();
    client.send(b"HEAD /page HTTP/1.1\r\nHost: edge.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(b"1\r\na\r\n0\r\n\r\n");
    assert_eq!(client.read(true).header("etag"), "\"2\"");
    assert!(edge.get("/page").is_hit(), "its ETag is of a response to other content");
}

/// The origin that sees no end of the request must not be blamed for it.
#[test]
fn content_that_comes_too_slowly_is_a_408_and_broken_content_a_400() {
    let http1 = Origin::start(|_| Answer::ok("never"));
    let (http2, _) = http2_origin();
    let mut wrong = Vec::new();
    for (origin, protocol) in [(http1.url(), "http1"), (http2, "http2")] {
        let edge = Edge::with(&format!(
            "[pools.main]\norigins = {origin:?}\nprotocol = {protocol:?}\n[sites.all]\nhosts = \"*\"\n\
             [limits]\nbody_idle_timeout = \"100ms\"\n"
        ));
        let mut check = |what: &str, status: u16, expected: u16| {
            if status != expected {
                wrong.push(format!("{what} before {protocol}: {status}, not {expected}"));
            }
        };
        for (method, framing) in [
            ("POST", "Content-Length: 9\r\n\r\nhello"),
            ("POST", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
            ("GET", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ] {
            let head = format!("{method} / HTTP/1.1\r\nHost: edge.test\r\n");
            let said = raw(edge.http, format!("{head}{framing}").as_bytes());
            let status = said.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_default();
            check(&format!("{method} {framing:?}"), status, 408);
        }
        let chunk =
            "POST / HTTP/1.1\r\nHost: edge.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX";
        let said = raw(edge.http, chunk.as_bytes());
        check("a broken chunk", said.get(9..12).unwrap_or("0").parse().unwrap_or_default(), 400);
        for (method, more) in
            [("POST", &[("content-length", "9")][..]), ("POST", &[]), ("GET", &[])]
        {
            let head = http2_head(method, more);
            let bytes = [head, frame(DATA, 0, 1, b"hello")].concat();
            check(&format!("{method} over HTTP/2"), http2_status(edge.http, &bytes), 408);
        }
        assert_eq!(edge.metric("skerry_request_bodies_timed_out_total"), 6.0);
        assert_eq!(edge.metric("skerry_upstream_marked_down_total"), 0.0);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `first_byte` runs from the end of the request, which the client has not sent.
/// Most clients read the response when they have sent the whole request. A reset before that would destroy it.
#[test]
fn a_client_that_reads_after_its_whole_upload_gets_the_refusal() {
    const LENGTH: usize = 20 << 20;
    let edge = Edge::with(
        "[sites.all]\nhosts = \"*\"\naccess.content_max = \"1KiB\"\nrespond.content = \"x\"\n",
    );
    let head = format!("POST / HTTP/1.1\r\nHost: edge.test\r\nContent-Length: {LENGTH}\r\n\r\n");
    let mut client = TcpStream::connect(edge.http).expect("a connection");
    client.write_all(head.as_bytes()).expect("an open connection");
    for _ in 0..LENGTH >> 16 {
        client.write_all(&[b'x'; 1 << 16]).expect("the edge reads on");
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an end in good order");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[test]
fn a_client_that_stalls_its_upload_does_not_count_against_the_origin() {
    let http1 = Origin::start(|_| Answer::ok("fine"));
    let (http2, _) = http2_origin();
    for (origin, protocol) in [(http1.url(), "http1"), (http2, "http2")] {
        let edge = Edge::with(&format!(
            "[pools.main]\norigins = {origin:?}\nprotocol = {protocol:?}\n\
             deadlines.first_byte = \"50ms\"\nhealth.connect_failures = 1\n[sites.all]\nhosts = \"*\"\n\
             [limits]\nbody_idle_timeout = \"400ms\"\n"
        ));
        let stalled = "POST / HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 5\r\n\r\nhe";
        let said = raw(edge.http, stalled.as_bytes());
        assert!(said.starts_with("HTTP/1.1 408 "), "{protocol}: {said:?}");
        let line = &edge.log(1)[0];
        assert_eq!(line["failure"], "timed-out", "{line}");
        let detail = "the client sent the request body too slowly";
        assert_eq!(line["failure_detail"], detail, "{line}");
        let bytes = [http2_head("POST", &[]), frame(DATA, 0, 1, b"he")].concat();
        assert_eq!(http2_status(edge.http, &bytes), 408, "{protocol}");
        assert_eq!(edge.metric("skerry_upstream_marked_down_total"), 0.0);
        let health = edge.admin("GET", "/origins", "");
        assert!(health.text().contains("\"failures\": 0"), "{protocol}: {health:?}");
        assert_eq!(edge.get("/").status, 200, "{protocol}: the origin is still up");
    }
}

#[test]
fn a_malformed_chunk_is_the_clients_mistake_in_answer_and_log() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    let request =
        "POST / HTTP/1.1\r\nHost: edge.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello";
    let said = raw(edge.http, request.as_bytes());
    assert!(said.starts_with("HTTP/1.1 400 "), "{said:?}");
    assert!(said.contains("the request's content is malformed or incomplete\n"), "{said:?}");
    assert!(said.contains("proxy-status: skerry; error=http_request_error\r\n"), "{said:?}");
    let line = &edge.log(1)[0];
    assert_eq!(line["failure"], "http_request_error", "{line}");
    assert_eq!(line["failure_detail"], "the client sent a malformed chunk", "{line}");
}

#[test]
fn content_of_unknown_length_is_counted_as_it_arrives() {
    let http1 = Origin::start(|_| Answer::ok("fine"));
    let (http2, seen) = http2_origin();
    for (origin, protocol) in [(http1.url(), "http1"), (http2, "http2")] {
        let edge = Edge::with(&format!(
            "[pools.main]\norigins = {origin:?}\nprotocol = {protocol:?}\n\
             [sites.all]\nhosts = \"*\"\naccess.content_max = \"1KiB\"\n"
        ));
        let half = "x".repeat(512);
        for (pieces, expected) in [(2, 200), (3, 413)] {
            let chunks = format!("200\r\n{half}\r\n").repeat(pieces);
            let head = "POST / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n";
            let request = format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
            let said = raw(edge.http, request.as_bytes());
            assert!(said.starts_with(&format!("HTTP/1.1 {expected} ")), "{protocol}: {said:?}");

            let data = frame(DATA, 0, 1, half.as_bytes()).repeat(pieces);
            let end = frame(DATA, END_STREAM, 1, b"");
            let bytes = [http2_head("POST", &[]), data, end].concat();
            assert_eq!(http2_status(edge.http, &bytes), expected, "{protocol}");
        }
        let lines = edge.log(4);
        let refused = lines.iter().filter(|line| line["failure"] == "content-too-long");
        assert_eq!(refused.count(), 2, "{lines:#?}");
        assert_eq!(edge.metric("skerry_requests_refused_total{reason=\"content-too-long\"}"), 2.0);
        assert_eq!(edge.metric("skerry_upstream_marked_down_total"), 0.0);
    }
    assert_eq!((http1.request_count(), seen.lock().unwrap().len()), (2, 2), "none is cut off");
}

#[test]
fn a_get_that_an_empty_frame_ends_is_answered_from_the_store() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let edge = Edge::before(&origin.url());
    edge.get("/");
    // Both frames come in one write, and so in one read.
    assert_eq!(Framing::Http2EmptyData.send(&edge, "GET"), 200);
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn a_length_goes_on_without_its_zeros() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()));
    let edge = Edge::before(&origin.url());
    let head = "POST / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n";
    let said = raw(edge.http, format!("{head}Content-Length: 0005\r\n\r\nhello").as_bytes());
    assert!(said.ends_with("\r\n\r\nhello"), "{said:?}");
    assert_eq!(origin.received()[0].header("content-length"), Some("5"));
}
