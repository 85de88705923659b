//! Request smuggling and floods: an ambiguous request is refused or forwarded with one meaning, and floods
//! get a response.

use crate::harness::{Answer, Edge, Origin, Request, raw, until};

fn check_status(edge: &Edge, request: &str, statuses: &[u16]) {
    let said = raw(edge.http, request.as_bytes());
    let answers: Vec<u16> =
        said.split("HTTP/1.1 ").skip(1).map(|rest| rest[..3].parse().expect("a status")).collect();
    assert_eq!(answers, statuses, "{request:?} got {said:?}");
}

/// Bytes after every probe, which must never be read as a request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: edge.test\r\n\r\n";

/// Sends each probe with another request behind it, which must not be read as one: one
/// answer of this status, and the connection closed.
fn probe(probes: &[(u16, String)]) {
    let origin = Origin::start(|_| Answer::ok("reached"));
    let edge = Edge::before(&origin.url());
    let mut wrong = Vec::new();
    for (status, request) in probes {
        // `raw` reads until the node closes.
        let said = raw(edge.http, format!("{request}{SMUGGLED}").as_bytes());
        let answers = said.matches("HTTP/1.1 ").count();
        let closes = said.to_ascii_lowercase().contains("\r\nconnection: close\r\n");
        if answers != 1 || !closes || !said.starts_with(&format!("HTTP/1.1 {status} ")) {
            wrong.push(format!("{request:?} wants {status}, got {said:?}"));
        }
    }
    let reached = origin.received();
    wrong.extend(reached.iter().map(|request| format!("reached the origin: {request:?}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_body_with_ambiguous_framing_is_a_400_and_later_bytes_are_not_read() {
    let post = |status: u16, fields: &str, body: &str| {
        (status, format!("POST / HTTP/1.1\r\nHost: edge.test\r\n{fields}\r\n{body}"))
    };
    let (hello, end, chunk) = ("hello", "0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n");
    probe(&[
        // Both framings, in either order and any case.
        post(400, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", end),
        post(400, "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", chunk),
        post(400, "CONTENT-LENGTH:0\r\nX-A: b\r\ntransfer-encoding:chunked\r\n", end),
        post(400, "Content-Length: 5\r\nTransfer-Encoding: identity\r\n", hello),
        post(400, "Content-Length: 5\r\nTransfer-Encoding:\r\n", hello),
        // Lengths that differ, are repeated, or are no number.
        post(400, "Content-Length: 5\r\nContent-Length: 6\r\n", hello),
        post(400, "Content-Length: 5\r\nContent-Length: 5\r\n", hello),
        post(400, "Content-Length: 0\r\nX-A: b\r\ncontent-length: 0\r\n", ""),
        post(400, "Content-Length: 5, 5\r\n", hello),
        post(400, "Content-Length: 5 5\r\n", hello),
        post(400, "Content-Length: +5\r\n", hello),
        post(400, "Content-Length: -1\r\n", hello),
        post(400, "Content-Length: 0x5\r\n", hello),
        post(400, "Content-Length: 5.0\r\n", hello),
        post(400, "Content-Length: \"5\"\r\n", hello),
        post(400, "Content-Length:\r\n", ""),
        post(400, "Content-Length: 99999999999999999999\r\n", hello),
        post(400, "Content-Length : 5\r\n", hello),
        post(400, "Content-Length\t: 5\r\n", hello),
        post(400, "Content-Length: 5\r\n 6\r\n", hello),
        // Codings that are not exactly chunked.
        post(400, "Transfer-Encoding: xchunked\r\n", end),
        post(400, "Transfer-Encoding: chunked, identity\r\n", end),
        post(400, "Transfer-Encoding: identity\r\n", end),
        post(400, "Transfer-Encoding:\x0bchunked\r\n", end),
        post(400, "Transfer-Encoding : chunked\r\n", end),
        post(400, "Transfer-Encoding\r\n : chunked\r\n", end),
        post(400, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", end),
        post(400, "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", end),
        post(400, "Transfer-Encoding:\r\n chunked\r\n", end),
        post(501, "Transfer-Encoding: gzip, chunked\r\n", end),
        post(501, "Transfer-Encoding: chunked, chunked\r\n", end),
        post(501, "Transfer-Encoding: identity, chunked\r\n", end),
        post(501, "Transfer-Encoding: , chunked\r\n", end),
        (
            400,
            format!(
                "POST / HTTP/1.0\r\nHost: edge.test\r\nTransfer-Encoding: chunked\r\n\r\n{end}"
            ),
        ),
    ]);
}

#[test]
fn an_ambiguous_header_section_is_refused_and_later_bytes_are_not_read() {
    let get = |status: u16, line: &str, fields: &str| (status, format!("{line}\r\n{fields}\r\n"));
    let with = |fields: &str| (400, format!("GET / HTTP/1.1\r\nHost: edge.test\r\n{fields}\r\n"));
    let host = "Host: edge.test\r\n";
    probe(&[
        // Lines: bare LF, folded, with NUL or a bare CR; names that are none.
        with("X-A: b\nContent-Length: 5\r\n"),
        with("X-A: b\n\r\n"),
        with("X-A: b\r\n Content-Length: 5\r\n"),
        with("X-A: b\r\n\tc\r\n"),
        with("X-A: b\0\r\n"),
        with("X-A: b\rX-B: c\r\n"),
        with("X-A: b\r\rX-B: c\r\n"),
        with(" X-A: b\r\n"),
        with("X-A : b\r\n"),
        with("X A: b\r\n"),
        with(": b\r\n"),
        with("X-A\r\n"),
        with("X-A\x0b: b\r\n"),
        with("X(A): b\r\n"),
        (400, format!("GET / HTTP/1.1\n{host}\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host}\n")),
        (400, format!("\nGET / HTTP/1.1\r\n{host}\r\n")),
        // Whom it is for.
        get(400, "GET / HTTP/1.1", ""),
        get(400, "GET / HTTP/1.1", "Host: edge.test\r\nHost: edge.test\r\n"),
        get(400, "GET / HTTP/1.1", "Host: edge.test\r\nHost: other.test\r\n"),
        get(400, "GET / HTTP/1.1", "Host: edge.test, other.test\r\n"),
        get(400, "GET / HTTP/1.1", "Host: user@edge.test\r\n"),
        get(400, "GET / HTTP/1.1", "Host: edge.test/path\r\n"),
        get(400, "GET / HTTP/1.1", "Host: edge.test:port\r\n"),
        get(400, "GET / HTTP/1.1", "Host: edge test\r\n"),
        get(400, "GET / HTTP/1.1", "Host : edge.test\r\n"),
        get(400, "GET / HTTP/1.1", "Host:\r\n"),
        get(400, "GET http://other.test/ HTTP/1.1", host),
        get(400, "GET http://edge.test:81/ HTTP/1.1", host),
        get(400, "GET http://user@edge.test/ HTTP/1.1", host),
        get(400, "GET http://edge.test/ HTTP/1.1", ""),
        get(421, "GET https://edge.test/ HTTP/1.1", "Host: edge.test\r\nConnection: close\r\n"),
        // The request target.
        get(400, "GET /%zz HTTP/1.1", host),
        get(400, "GET /%00 HTTP/1.1", host),
        get(400, "GET /\0 HTTP/1.1", host),
        get(400, "GET /\x7f HTTP/1.1", host),
        get(400, "GET edge.test HTTP/1.1", host),
        get(400, "GET * HTTP/1.1", host),
        get(400, "GET /a b HTTP/1.1", host),
        get(400, "GET / HTTP/1.1 HTTP/1.1", host),
        get(400, "GET  / HTTP/1.1", host),
        get(400, "GET\t/ HTTP/1.1", host),
        get(400, " GET / HTTP/1.1", host),
        get(400, "GET /", host),
        get(400, "GET / HTTP/2.0", host),
        get(400, "GET / http/1.1", host),
        get(400, "GET / HTTP/1.1 ", host),
        get(400, "G(T / HTTP/1.1", host),
        get(501, "CONNECT edge.test:80 HTTP/1.1", "Host: edge.test:80\r\n"),
        get(405, "TRACE / HTTP/1.1", "Host: edge.test\r\nConnection: close\r\n"),
    ]);
}

/// The head was fine, so the origin may see that somebody began to send; whole it never is.
#[test]
fn ambiguous_chunks_are_a_400_and_later_bytes_are_not_read() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()));
    let edge = Edge::before(&origin.url());
    let many_zeros = format!("{}5\r\nhello", "0".repeat(1000));
    let long_extension = format!("5;{}\r\nhello", "a".repeat(40_000));
    let long_trailer = format!("0\r\nX-A: {}", "a".repeat(100_000));
    let many_trailers = format!("0\r\n{}", "X-A: b\r\n".repeat(1_000));
    let mut wrong = Vec::new();
    for body in [
        "0x5\r\nhello",
        "5\nhello",
        "5;a\nhello",
        "5;a\rb\r\nhello",
        "5;a\0\r\nhello",
        "-5\r\nhello",
        "+5\r\nhello",
        " 5\r\nhello",
        "5 x\r\nhello",
        "\r\n5\r\nhello",
        ";a\r\nhello",
        "g\r\nhello",
        "5\r\nhelloXX",
        "5\r\nhello\n0\r\n\r\n",
        "6\r\nhello",
        "10000000000000005\r\nhello",
        "fffffffffffffffff\r\nhello",
        &many_zeros,
        &long_extension,
        // Trailers.
        "0\r\nX-A: b\n",
        "0\r\n X-A: b",
        "0\r\nX-A : b",
        "0\r\nX-A\0: b",
        "0\r\n\n",
        &long_trailer,
        &many_trailers,
    ] {
        let head = "POST / HTTP/1.1\r\nHost: edge.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        let request = format!("{head}{body}\r\n0\r\n\r\n{SMUGGLED}");
        let said = raw(edge.http, request.as_bytes());
        if !said.starts_with("HTTP/1.1 400 ") || said.matches("HTTP/1.1 ").count() != 1 {
            wrong.push(format!("{:?} got {said:?}", body.get(..60).unwrap_or(body)));
        }
    }
    wrong.extend(
        origin.received().iter().map(|request| format!("whole at the origin: {request:?}")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_unambiguous_request_is_accepted() {
    let origin = Origin::start(|request| Answer::ok(request.target.clone()));
    let edge = Edge::before(&origin.url());
    for (request, target) in [
        ("GET /a/../b HTTP/1.1\r\nHost: edge.test\r\n", "/b"),
        ("GET /%7e%2F HTTP/1.1\r\nHost: edge.test\r\n", "/~%2F"),
        ("GET http://edge.test/abs HTTP/1.1\r\nHost: edge.test\r\n", "/abs"),
        ("\r\nGET /crlf HTTP/1.1\r\nHost: edge.test\r\n", "/crlf"),
        ("POST /none HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 000\r\n", "/none"),
        ("POST /len HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 00\r\n", "/len"),
        ("GET /minor HTTP/1.2\r\nHost: edge.test\r\n", "/minor"),
        ("OPTIONS http://edge.test HTTP/1.1\r\nHost: edge.test\r\n", "*"),
        ("OPTIONS http://edge.test/ HTTP/1.1\r\nHost: edge.test\r\n", "/"),
        ("GET /tab HTTP/1.1\r\nHost:\tedge.test \t\r\n", "/tab"),
        ("GET /port HTTP/1.1\r\nHost: EDGE.test:80\r\n", "/port"),
    ] {
        let said = raw(edge.http, format!("{request}Connection: close\r\n\r\n").as_bytes());
        assert!(said.ends_with(&format!("\r\n\r\n{target}")), "{request:?} got {said:?}");
    }
}

#[test]
fn max_forwards_counts_options_and_trace_and_nothing_else() {
    let origin = Origin::start(|_| Answer::ok("forwarded"));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n[guard]\ntrace = true\n",
        origin.url()
    ));
    let ask = |method: &str, fields: &[&str]| {
        edge.connect().request(Request {
            method,
            host: "edge.test",
            target: "/a?b",
            fields,
            body: b"",
        })
    };
    let options = ask("OPTIONS", &["Max-Forwards: 0"]);
    assert_eq!((options.status, options.text()), (200, ""));
    assert_eq!(options.header("content-length"), "0");
    assert!(options.header("allow").contains("GET, HEAD"), "{options:?}");
    let trace = ask("TRACE", &["Max-Forwards: 0", "X-Mine: 1", "Cookie: a=b", "Authorization: x"]);
    assert_eq!((trace.status, &*trace.header("content-type")), (200, "message/http"));
    let text = trace.text().to_ascii_lowercase();
    assert!(text.starts_with("trace /a?b http/1.1\r\nhost: edge.test\r\n"), "{text:?}");
    assert!(text.contains("x-mine: 1\r\n") && text.ends_with("\r\n\r\n"), "{text:?}");
    assert!(!text.contains("cookie") && !text.contains("authorization"), "{text:?}");
    assert_eq!(origin.request_count(), 0);
    for (method, said, forwarded) in [
        ("OPTIONS", "5", "4"),
        ("TRACE", "1", "0"),
        ("OPTIONS", "many", "many"),
        ("OPTIONS", "-1", "-1"),
        ("OPTIONS", "99999999999999999999", "99999999999999999999"),
        ("GET", "0", "0"),
        ("POST", "3", "3"),
    ] {
        let field = format!("Max-Forwards: {said}");
        assert_eq!(ask(method, &[&field]).text(), "forwarded", "{method} {said}");
        let request = origin.received();
        let request = request.last().and_then(|request| request.header("max-forwards"));
        assert_eq!(request, Some(forwarded), "{method} {said}");
    }
}

#[test]
fn an_expectation_goes_on_where_there_is_content_and_no_other_is_met() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\ndeadlines.expect_continue = \"10ms\"\n\
         [sites.all]\nhosts = \"*\"\n",
        origin.url()
    ));
    let post = |line: &str, expect: &str| {
        format!(
            "POST / {line}\r\nHost: edge.test\r\nContent-Length: 5\r\nExpect: {expect}\r\n\r\nhello"
        )
    };
    let last_expect = || {
        let request = origin.received().pop().expect("a request");
        (request.header("expect").map(str::to_owned), request.body.len())
    };
    for (request, forwarded) in [
        (post("HTTP/1.1", "100-continue"), (Some("100-continue".to_owned()), 5)),
        (post("HTTP/1.0", "100-continue"), (None, 5)),
        (post("HTTP/1.0", "anything"), (None, 5)),
    ] {
        let request = request.replace("Content-Length", "Connection: close\r\nContent-Length");
        let said = raw(edge.http, request.as_bytes());
        assert!(said.contains(" 200 "), "{request:?} got {said:?}");
        assert_eq!(last_expect(), forwarded, "{request:?}");
    }
    let get =
        "GET / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n";
    check_status(&edge, get, &[200]);
    assert_eq!(last_expect(), (None, 0));
    let before = origin.request_count();
    let unknown = post("HTTP/1.1", "200-ok").replace("Expect", "Connection: close\r\nExpect");
    check_status(&edge, &unknown, &[417]);
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "edge.test"),
        ("expect", "200-ok"),
    ];
    let status =
        crate::content::http2_status(edge.http, &crate::harness::frames::headers(0, 1, &fields));
    assert_eq!((status, origin.request_count()), (417, before));
}

#[test]
fn a_flood_of_header_bytes_is_a_431() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    let long = format!("X-Long: {}\r\n", "a".repeat(100_000));
    let many = "X-Many: a\r\n".repeat(1_000);
    let several = format!("X-Some: {}\r\n", "a".repeat(900)).repeat(90);
    for flood in [&long, &many, &several] {
        let head = "GET / HTTP/1.1\r\nHost: edge.test\r\n";
        check_status(&edge, &format!("{head}{flood}\r\n"), &[431]);
    }
    // One that never ends costs no more than one that does.
    check_status(&edge, &format!("GET / HTTP/1.1\r\n{}", many.repeat(50)), &[431]);
    assert_eq!(origin.request_count(), 0);
    until("all are counted", || {
        edge.metric("skerry_requests_unread_total{reason=\"head-too-large\"") == 4.0
    });
}

#[test]
fn a_long_target_is_a_414() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    let target = "a".repeat(20_000);
    check_status(&edge, &format!("GET /{target} HTTP/1.1\r\nHost: edge.test\r\n\r\n"), &[414]);
    assert_eq!(origin.request_count(), 0);
}

#[test]
fn a_head_that_drips_is_a_408_and_an_idle_connection_is_closed() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n\
         [limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\n",
        origin.url()
    ));
    check_status(&edge, "GET / HTTP/1.1\r\nHost: ed", &[408]);
    check_status(&edge, "GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n", &[200]);
}

#[test]
fn refusals_below_the_path_are_in_the_access_log() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    raw(edge.http, b"GET / HTTP/1.1\r\nHost: edge.test\r\nX-A: b\nX-B: c\r\n\r\n");
    raw(edge.http, b"GET / HTTP/1.1\r\nHost: edge.test\r\nX A: b\r\n\r\n");
    let flood = format!("GET /flood HTTP/1.1\r\nX-Long: {}\r\n\r\n", "a".repeat(100_000));
    raw(edge.http, flood.as_bytes());
    let long = format!("GET /{} HTTP/1.1\r\nHost: edge.test\r\n\r\n", "a".repeat(20_000));
    raw(edge.http, long.as_bytes());
    let lines = edge.log(4);
    let mut told: Vec<_> = lines
        .iter()
        .map(|line| (line["status"].as_u64(), line["failure"].as_str(), line["client"].as_str()))
        .collect();
    told.sort();
    let from = Some("127.0.0.1");
    let expected =
        [(400, "framing"), (400, "malformed"), (414, "target-too-long"), (431, "head-too-large")];
    assert_eq!(told, expected.map(|(status, why)| (Some(status), Some(why), from)));
}

#[test]
fn a_stranger_s_word_on_addresses_is_not_passed_on() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let edge = Edge::before(&origin.url());
    edge.get_with(
        "/",
        &[
            "X-Forwarded-For: 9.9.9.9",
            "Forwarded: for=9.9.9.9",
            "X-Real-IP: 9.9.9.9",
            "X-Forwarded-Host: evil.test",
            "X_Forwarded_For: 9.9.9.9",
            "X-Hop: 1",
            "Connection: X-Hop",
            "Proxy: http://evil.test",
        ],
    );
    let request = &origin.received()[0];
    assert_eq!(request.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.header("x-forwarded-proto"), Some("http"));
    assert_eq!(request.header("x-forwarded-host"), Some("edge.test"));
    assert_eq!(request.header("cdn-loop"), Some("skerry"));
    assert!(request.header("via").is_some_and(|via| via.contains("skerry")));
    for gone in ["forwarded", "x-real-ip", "x_forwarded_for", "x-hop", "proxy", "connection"] {
        assert_eq!(request.header(gone), None, "{gone}");
    }
    assert!(!format!("{request:?}").contains("9.9.9.9"), "{request:?}");
}

#[test]
fn a_request_that_comes_round_is_ended() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let edge = Edge::before(&origin.url());
    let response = edge.get_with("/", &["CDN-Loop: skerry, skerry, skerry, skerry, skerry"]);
    assert_eq!(response.status, 508);
    assert_eq!(origin.request_count(), 0);
}

/// An origin that says `bytes` to `/odd`, keeping the connection, and `fine` to anything else.
fn odd(bytes: &str) -> Origin {
    let bytes = bytes.to_owned();
    Origin::start(move |request| match request.target.as_str() {
        "/odd" => Answer::raw(bytes.clone()).kept_open(),
        _ => Answer::ok("fine").fresh_for(60),
    })
}

/// The response to `/odd`. It must not be stored, and the next request must use another connection.
fn answer_to_odd(bytes: &str) -> crate::harness::Response {
    let origin = odd(bytes);
    let edge = Edge::before(&origin.url());
    let response = edge.get("/odd");
    let next = edge.get("/next");
    assert_eq!((next.status, next.text()), (200, "fine"), "after {bytes:?}");
    let request = origin.received();
    assert_ne!(
        request[0].connection,
        request.last().expect("two requests").connection,
        "{bytes:?}"
    );
    assert!(!edge.get("/odd").is_hit(), "{bytes:?}");
    response
}

#[test]
fn responses_with_two_readings_are_a_502_and_their_connection_is_used_no_more() {
    let ok = |fields: &str, body: &str| {
        format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{fields}\r\n{body}")
    };
    let chunk = "5\r\nhello\r\n0\r\n\r\n";
    let large = format!("X-A: {}\r\n", "a".repeat(100_000));
    let many = "X-A: b\r\n".repeat(1_000);
    let mut wrong = Vec::new();
    for bytes in [
        ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", chunk),
        ok("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", chunk),
        ok("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"),
        ok("Content-Length: 5, 6\r\n", "hello!"),
        ok("Content-Length: +5\r\n", "hello"),
        ok("Content-Length: 0x5\r\n", "hello"),
        ok("Content-Length: -1\r\n", "hello"),
        ok("Content-Length:\r\n", "hello"),
        ok("Content-Length : 5\r\n", "hello"),
        ok("Transfer-Encoding: gzip, chunked\r\n", chunk),
        ok("Transfer-Encoding: chunked, identity\r\n", chunk),
        ok("Transfer-Encoding: xchunked\r\n", chunk),
        ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunk),
        ok("X-A: b\0\r\nContent-Length: 5\r\n", "hello"),
        ok("X-A: b\rX-B: c\r\nContent-Length: 5\r\n", "hello"),
        ok("X-A: b\r\n c\r\nContent-Length: 5\r\n", "hello"),
        ok("X A: b\r\nContent-Length: 5\r\n", "hello"),
        ok(&large, ""),
        ok(&many, ""),
        format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
        "HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nhello".to_owned(),
        "hello".repeat(100),
    ] {
        let response = answer_to_odd(&bytes);
        if response.status != 502 || !response.header("proxy-status").contains("error=http_") {
            wrong.push(format!("{:?} got {response:?}", bytes.get(..100).unwrap_or(&bytes)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Were they kept in the pool, the next client would get them for an answer.
#[test]
fn bytes_behind_a_response_are_never_the_next_one() {
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nCache-Control: max-age=60\r\n\r\npoison";
    for (head, body) in [
        ("200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"),
        ("200 OK\r\nContent-Length: 0\r\n\r\n", ""),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("204 No Content\r\n\r\n", ""),
        ("204 No Content\r\nContent-Length: 5\r\n\r\nhello", ""),
        ("204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", ""),
        ("100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"),
    ] {
        let response = answer_to_odd(&format!("HTTP/1.1 {head}{poison}"));
        assert_eq!(response.text(), body, "{head:?}");
    }
    let unasked = "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(answer_to_odd(&format!("{unasked}{poison}")).status, 502);
    // A HEAD that is answered with a body.
    let origin =
        odd(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{poison}", poison.len()));
    let edge = Edge::before(&origin.url());
    assert_eq!(
        edge.connect()
            .request(Request {
                method: "HEAD",
                host: "edge.test",
                target: "/odd",
                fields: &[],
                body: b""
            })
            .status,
        200
    );
    assert_eq!(edge.get("/next").text(), "fine");
}

#[test]
fn a_response_with_bare_line_feeds_goes_on_as_it_was_read() {
    let origin = odd("HTTP/1.1 200 OK\nContent-Length: 5\nX-A: b\n\nhello");
    let edge = Edge::before(&origin.url());
    let said = raw(edge.http, b"GET /odd HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n");
    let (head, body) = said.split_once("\r\n\r\n").expect("a head");
    assert_eq!((head.contains("x-a: b"), body), (true, "hello"), "{said:?}");
    assert_eq!(head.matches('\n').count(), head.matches("\r\n").count(), "{said:?}");
}

#[test]
fn endless_interim_responses_are_a_502_and_block_no_other_request() {
    let origin = Origin::start(|request| match request.target.as_str() {
        "/flood" => {
            Answer::raw("HTTP/1.1 102 Processing\r\nX-A: b\r\n\r\n".repeat(1_000)).without_end()
        }
        _ => Answer::ok("fine"),
    });
    let edge = Edge::before(&origin.url());
    assert_eq!(edge.get("/flood").status, 502);
    assert_eq!(edge.get("/").text(), "fine");
    until("the flood's connection is closed", || origin.open() <= 1);
}

#[test]
fn a_request_that_cannot_be_read_is_told_why() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    for (request, status, reason) in [
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400, "not valid HTTP"),
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), 400, "ambiguous"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)), 414, "target is too long"),
        (format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(40_000)), 431, "too large"),
    ] {
        let said = raw(edge.http, request.as_bytes());
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said:?}");
        assert!(said.contains(reason) && said.contains("\nrequest "), "{said:?}");
        assert!(said.contains("content-type: text/plain; charset=utf-8\r\n"), "{said:?}");
    }
}

#[test]
fn a_target_without_a_path_is_told_as_such() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    let said = raw(edge.http, b"GET foo HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    assert!(said.contains("the request target has no path\n"), "{said:?}");
    let said = raw(edge.http, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n");
    assert!(said.starts_with("HTTP/1.1 400 "), "{said:?}");
    let lines = edge.log(2);
    let line = lines.iter().find(|line| line["failure"] == "host-invalid").expect("a log line");
    assert_eq!(line["failure_detail"], "Host: a b", "{lines:?}");
}

/// Past a rule for `/admin` or `/login`, if an origin reads the path as nginx, Tomcat or Windows do.
#[test]
fn limits_of_a_rule_hold_for_each_path_that_an_origin_may_read() {
    let origin = Origin::start(|_| Answer::ok("page"));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n\
         [[sites.all.rules]]\nname = \"admin\"\npath_prefix = \"/admin\"\naccess.allow = [\"10.0.0.0/8\"]\n\
         [[sites.all.rules]]\nname = \"login\"\npath = \"/login\"\nrate = {{ per_second = 0.001, burst = 2 }}\n",
        origin.url()
    ));
    let status = |path: &str| edge.get(path).status;
    for hidden in [
        "//admin",
        "/.//admin",
        "/%2fadmin/x",
        "/admin%2fx",
        "/admin%5cx",
        "/admin;x",
        "/%2f./admin",
    ] {
        assert_eq!(status(hidden), 403, "{hidden}");
    }
    for refused in
        ["/x/..%2fadmin", "/x%2F..%2Fadmin", "/x/..;/admin", "/x%5c..%5cadmin", "/x\\..\\admin"]
    {
        assert_eq!(status(refused), 400, "{refused}");
    }
    for open in ["/", "/x/", "/a%2Fb", "/x//y", "/;admin", "/x;/administrator", "/%252Fadmin"] {
        assert_eq!(status(open), 200, "{open}");
    }
    let tries = ["/login", "/login;x", "//login"].map(status);
    assert_eq!(tries, [200, 200, 429]);
    let explained = edge.admin("GET", "/explain?url=http://edge.test//admin&client=192.0.2.1", "");
    let text = explained.text();
    assert!(text.contains("address-denied") && text.contains("\"rule\": \"admin\""), "{text}");
}
