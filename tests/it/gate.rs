//! What two servers could read in two ways comes in one reading or not at all, and floods
//! end with an answer.

use crate::harness::{Answer, Edge, Origin, raw, until};

fn check_status(edge: &Edge, request: &str, statuses: &[u16]) {
    let said = raw(edge.http, request.as_bytes());
    let answers: Vec<u16> =
        said.split("HTTP/1.1 ").skip(1).map(|rest| rest[..3].parse().expect("a status")).collect();
    assert_eq!(answers, statuses, "{request:?} got {said:?}");
}

/// Every one is refused or ends its connection, and what was smuggled behind it is never
/// read as a request.
#[test]
fn requests_with_two_readings_have_one_here_and_their_connection_is_closed() {
    let origin = Origin::start(|_| Answer::ok("reached"));
    let edge = Edge::before(&origin.url());
    let host = "Host: edge.test\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: edge.test\r\n\r\n";
    let mut wrong = Vec::new();
    for (fields, body) in [
        // Both framings, either order; repeated, unequal and odd lengths; codings that are not
        // exactly chunked.
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"),
        ("Content-Length: 5, 5\r\n", "hello"),
        ("Content-Length: +5\r\n", "hello"),
        ("Content-Length: 0x5\r\n", "hello"),
        ("Content-Length: -1\r\n", "hello"),
        ("Content-Length : 5\r\n", "hello"),
        ("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        // Lines: bare LF, folded, with NUL or a bare CR.
        ("X-A: b\nContent-Length: 5\r\n", "hello"),
        ("X-A: b\r\n Content-Length: 5\r\n", "hello"),
        ("X-A: b\0\r\n", ""),
        ("X-A: b\rX-B: c\r\n", ""),
        (" X-A: b\r\n", ""),
        // Chunks: sizes and ends that not everyone reads alike.
        ("Transfer-Encoding: chunked\r\n", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "5\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "5;a\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhelloXX0\r\n\r\n"),
    ] {
        let request = format!("POST / HTTP/1.1\r\n{host}{fields}\r\n{body}{smuggled}");
        let said = raw(edge.http, request.as_bytes());
        let answers = said.matches("HTTP/1.1 ").count();
        // RFC 9112 §6.1 leaves a length beside chunks to us, as long as we close.
        let refused = said.starts_with("HTTP/1.1 4") || said.starts_with("HTTP/1.1 501");
        let closed = said.to_lowercase().contains("\r\nconnection: close\r\n");
        if answers > 1 || answers == 1 && !refused && !closed {
            wrong.push(format!("{request:?} got {said:?}"));
        }
    }
    for head in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost: edge.test\r\nHost: edge.test\r\n",
        "GET / HTTP/1.1\r\nHost: edge.test, other.test\r\n",
        "GET / HTTP/1.1\r\nHost: user@edge.test\r\n",
        "GET http://other.test/ HTTP/1.1\r\nHost: edge.test\r\n",
        "GET https://edge.test/ HTTP/1.1\r\nHost: edge.test\r\n",
        "GET /%zz HTTP/1.1\r\nHost: edge.test\r\n",
        "GET /%00 HTTP/1.1\r\nHost: edge.test\r\n",
        "GET / HTTP/1.1 HTTP/1.1\r\nHost: edge.test\r\n",
        "GET  / HTTP/1.1\r\nHost: edge.test\r\n",
        "GET / HTTP/1.2\r\nHost: edge.test\r\n",
        "GET edge.test HTTP/1.1\r\nHost: edge.test\r\n",
        "CONNECT edge.test:80 HTTP/1.1\r\nHost: edge.test:80\r\n",
        "TRACE / HTTP/1.1\r\nHost: edge.test\r\n",
        "POST / HTTP/1.0\r\nHost: edge.test\r\nTransfer-Encoding: chunked\r\n",
    ] {
        let said = raw(edge.http, format!("{head}Connection: close\r\n\r\n").as_bytes());
        let code: u16 = said.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(400);
        if !(400..=505).contains(&code) || code == 500 {
            wrong.push(format!("{head:?} got {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let reached = origin.seen();
    assert!(reached.iter().all(|seen| seen.target != "/smuggled"), "{reached:?}");
    let whole: Vec<_> = reached.iter().filter(|seen| seen.method != "POST").collect();
    assert!(whole.is_empty(), "{whole:?}");
}

#[test]
fn what_has_one_reading_is_let_in() {
    let origin = Origin::start(|seen| Answer::ok(seen.target.clone()));
    let edge = Edge::before(&origin.url());
    for (request, target) in [
        ("GET /a/../b HTTP/1.1\r\nHost: edge.test\r\n", "/b"),
        ("GET /%7e%2F HTTP/1.1\r\nHost: edge.test\r\n", "/~%2F"),
        ("GET http://edge.test/abs HTTP/1.1\r\nHost: edge.test\r\n", "/abs"),
        ("\r\nGET /crlf HTTP/1.1\r\nHost: edge.test\r\n", "/crlf"),
        (
            "POST /twice HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 0\r\nContent-Length: 0\r\n",
            "/twice",
        ),
        ("GET /port HTTP/1.1\r\nHost: EDGE.test:80\r\n", "/port"),
    ] {
        let said = raw(edge.http, format!("{request}Connection: close\r\n\r\n").as_bytes());
        assert!(said.ends_with(&format!("\r\n\r\n{target}")), "{request:?} got {said:?}");
    }
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
    assert_eq!(origin.requests(), 0);
    until("all are counted", || {
        edge.metric("skerry_requests_unread_total{reason=\"too_large\"") == 4.0
    });
}

#[test]
fn a_long_target_is_a_414() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    let target = "a".repeat(20_000);
    check_status(&edge, &format!("GET /{target} HTTP/1.1\r\nHost: edge.test\r\n\r\n"), &[414]);
    assert_eq!(origin.requests(), 0);
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
    let flood = format!("GET /flood HTTP/1.1\r\nX-Long: {}\r\n\r\n", "a".repeat(100_000));
    raw(edge.http, flood.as_bytes());
    let long = format!("GET /{} HTTP/1.1\r\nHost: edge.test\r\n\r\n", "a".repeat(20_000));
    raw(edge.http, long.as_bytes());
    let lines = edge.log(3);
    let mut told: Vec<_> = lines
        .iter()
        .map(|line| (line["status"].as_u64(), line["failure"].as_str(), line["client"].as_str()))
        .collect();
    told.sort();
    let from = Some("127.0.0.1");
    let expected = [(400, "malformed"), (414, "target-too-long"), (431, "head-too-large")];
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
    let seen = &origin.seen()[0];
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-host"), Some("edge.test"));
    assert_eq!(seen.header("cdn-loop"), Some("skerry"));
    assert!(seen.header("via").is_some_and(|via| via.contains("skerry")));
    for gone in ["forwarded", "x-real-ip", "x_forwarded_for", "x-hop", "proxy", "connection"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    assert!(!format!("{seen:?}").contains("9.9.9.9"), "{seen:?}");
}

#[test]
fn a_request_that_comes_round_is_ended() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let edge = Edge::before(&origin.url());
    let response = edge.get_with("/", &["CDN-Loop: skerry, skerry, skerry, skerry, skerry"]);
    assert_eq!(response.status, 508);
    assert_eq!(origin.requests(), 0);
}
