//! Failures: origins that exit, stall or end a response early, and clients that disconnect.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use crate::harness::{
    Answer, Client, Edge, Gate, Origin, Process, Request, free_address, raw, until,
};

/// One pool with these lines more, for every host.
fn config(origin: &Origin, more: &str) -> String {
    format!("[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n{more}\n", origin.url())
}

#[test]
fn a_dead_origin_is_a_502_that_says_why() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let edge = Edge::before(&origin.url());
    assert_eq!(edge.get("/").status, 200);
    origin.kill();
    let response = edge.get("/");
    assert_eq!(response.status, 502);
    assert_eq!(response.header("proxy-status"), "skerry; error=connection_refused");
    assert_eq!(response.header("cache-control"), "no-store");
    assert!(response.header("cache-status").contains("fwd="), "{response:?}");
}

#[test]
fn a_stale_response_is_served_if_the_origin_is_down() {
    let origin = Origin::start(|request| match request.target.as_str() {
        "/kept" => Answer::ok("kept").header("Cache-Control", "max-age=10, stale-if-error=100"),
        _ => Answer::ok("lost").header("Cache-Control", "max-age=10"),
    });
    let edge = Edge::before(&origin.url());
    assert_eq!((edge.get("/kept").status, edge.get("/lost").status), (200, 200));
    origin.kill();
    assert!(edge.get("/kept").is_hit());
    edge.advance(11);
    let kept = edge.get("/kept");
    assert_eq!((kept.status, kept.text()), (200, "kept"));
    // The node's clock also advances in real time.
    let age: u64 = kept.header("age").parse().expect("a number");
    assert!((11..60).contains(&age), "{kept:?}");
    assert!(kept.header("cache-status").contains("fwd=stale"), "{kept:?}");
    assert_eq!(edge.get("/lost").status, 502);
    edge.advance(100);
    assert_eq!(edge.get("/kept").status, 502);
}

#[test]
fn a_stale_response_is_served_if_the_origin_sends_an_error() {
    let gate = Gate::default();
    let fails = gate.clone();
    let origin = Origin::start(move |_| match fails.is_open() {
        true => Answer::status(503),
        false => Answer::ok("good").header("Cache-Control", "max-age=10, stale-if-error=100"),
    });
    let edge = Edge::before(&origin.url());
    edge.get("/");
    gate.open();
    edge.advance(11);
    assert_eq!(edge.get("/").text(), "good");
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn a_silent_origin_is_a_504_after_the_deadline() {
    let gate = Gate::default();
    let behind = gate.clone();
    let origin = Origin::start(move |_| Answer::ok("late").behind(&behind));
    let edge = Edge::with(&config(&origin, "[pools.main.deadlines]\nfirst_byte = \"100ms\""));
    let response = edge.get("/");
    assert_eq!(response.status, 504);
    assert_eq!(response.header("proxy-status"), "skerry; error=http_response_timeout");
    gate.open();
    until("the connection is given up", || origin.open() == 0);
}

#[test]
fn a_stale_response_is_served_if_the_origin_is_slow() {
    let gate = Gate::default();
    let (behind, first) = (gate.clone(), std::sync::atomic::AtomicBool::new(true));
    let origin =
        Origin::start(move |_| match first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            true => Answer::ok("old").fresh_for(10),
            false => Answer::ok("new").fresh_for(10).behind(&behind),
        });
    let stale = "[sites.all.cache.stale]\nif_error = \"1h\"\nsoft_deadline = \"50ms\"";
    let edge = Edge::with(&config(&origin, stale));
    edge.get("/");
    edge.advance(11);
    let response = edge.get("/");
    assert_eq!((response.status, response.text()), (200, "old"));
    assert!(response.header("cache-status").contains("fwd=stale"), "{response:?}");
    gate.open();
    until("the late answer is stored", || edge.get("/").text() == "new");
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn half_a_body_is_never_whole_and_never_stored() {
    let origin = Origin::start(|request| {
        let answer = Answer::ok(vec![b'x'; 100_000]).cut_after(70_000);
        match request.target.as_str() {
            "/stored" => answer.fresh_for(60),
            "/chunked" => answer.fresh_for(60).chunked(),
            _ => answer.header("Cache-Control", "no-store"),
        }
    });
    let edge = Edge::before(&origin.url());
    for target in ["/stored", "/chunked", "/passed"] {
        for _ in 0..2 {
            let before = origin.request_count();
            let response = edge.get(target);
            assert_eq!((response.status, response.is_complete), (200, false), "{target}");
            assert!(response.body.len() <= 70_000, "{target}");
            assert_eq!(origin.request_count(), before + 1, "{target}: nothing is stored");
        }
    }
    let lines = edge.log(6);
    assert!(lines.iter().all(|line| line["ended"] == "broke-off"), "{lines:?}");
}

#[test]
fn a_whole_body_is_logged_as_whole() {
    let origin = Origin::start(|request| {
        let long = Answer::ok(vec![b'x'; 1_000_000]);
        match request.target.as_str() {
            "/stored" => long.fresh_for(60),
            "/chunked" => long.fresh_for(60).chunked(),
            "/short" => Answer::ok("short").fresh_for(60),
            "/passed" => long.header("Cache-Control", "no-store"),
            _ => Answer::raw(
                "HTTP/1.0 200 OK\r\nContent-Length: 4\r\nCache-Control: max-age=60\r\n\r\nfour",
            ),
        }
    });
    let edge = Edge::before(&origin.url());
    let targets = ["/stored", "/chunked", "/short", "/passed", "/http10"];
    for target in targets {
        assert!(edge.get(target).is_complete, "{target}");
        assert!(edge.get(target).is_complete, "{target}");
    }
    let lines = edge.log(2 * targets.len());
    assert!(lines.iter().all(|line| line["ended"].is_null()), "{lines:?}");
}

#[test]
fn half_a_body_over_http_10_is_never_stored_as_whole_when_its_length_was_told() {
    let head = "HTTP/1.0 200 OK\r\nContent-Length: 10\r\nCache-Control: max-age=60\r\n\r\nhalf";
    let origin = Origin::start(move |_| Answer::raw(head));
    let edge = Edge::before(&origin.url());
    for count in 1..=2 {
        // The body is short, so that the client gets nothing of it; the origin is asked once more.
        let request = b"GET / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n";
        let said = raw(edge.http, request).to_lowercase();
        assert!(said.starts_with("http/1.1 502 ") && !said.contains("half"), "{said}");
        assert!(!said.contains("; hit"), "{said}");
        assert_eq!(origin.request_count(), 2 * count);
    }
}

/// A client that reads the head and leaves; the origin then has the rest to give.
fn leave_and_open(edge: &Edge, gate: &Gate) {
    let mut client = edge.connect();
    client.send(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    client.read_line();
    drop::<Client>(client);
    let lines = edge.log(1);
    assert_eq!(lines[0]["ended"], "client-left", "{lines:?}");
    gate.open();
}

fn pausing(bytes: usize, cache_control: &'static str, gate: &Gate) -> Origin {
    let (gate, first) = (gate.clone(), std::sync::atomic::AtomicBool::new(true));
    Origin::start(move |_| {
        let answer = Answer::ok(vec![b'x'; 10_000_000]).header("Cache-Control", cache_control);
        match first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            true => answer.pause_at(bytes, &gate),
            false => answer,
        }
    })
}

#[test]
fn a_response_beyond_the_limit_of_fills_says_that_it_is_not_stored() {
    let gate = Gate::default();
    let behind = gate.clone();
    let origin = Origin::start(move |request| match request.target.as_str() {
        "/slow" => Answer::ok("slow").fresh_for(60).behind(&behind),
        _ => Answer::ok("quick").fresh_for(60),
    });
    let edge = Edge::with(&config(&origin, "[fills]\nfills_max = 1"));
    let mut slow = edge.connect();
    slow.send(b"GET /slow HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    origin.wait_for_requests(1);
    for _ in 0..2 {
        let quick = edge.get("/quick");
        assert_eq!(quick.text(), "quick");
        let said = quick.header("cache-status");
        assert!(said.contains("fwd=uri-miss") && said.contains("detail=fill-limit"), "{said}");
        assert!(!said.contains("stored"), "{said}");
    }
    gate.open();
    assert_eq!(slow.read(false).text(), "slow");
    assert!(edge.get("/quick").header("cache-status").contains("; stored"));
    assert_eq!(edge.metric("skerry_requests_uncollapsed_total{reason=\"fills_max\""), 2.0);
}

#[test]
fn a_record_that_the_disk_fails_to_give_is_a_miss_that_says_so() {
    let body = vec![b'x'; 500_000];
    let origin = Origin::start(move |_| Answer::ok(body.clone()).fresh_for(600));
    let store = "[store]\nmemory = \"32MiB\"\ndisk = \"256MiB\"\nadmission = \"all\"";
    let edge = Edge::with(&config(&origin, store));
    let ask = |number: usize| edge.get(&format!("/{number}"));
    (0..150).for_each(|number| assert!(ask(number).is_complete));
    until("all is on disk", || edge.metric("skerry_store_disk_writes_total") >= 300.0);
    let data = edge.path("data/cache/blocks/data");
    let file = std::fs::OpenOptions::new().write(true).open(&data).expect("the store's file");
    file.set_len(1 << 20).expect("cut off");
    let said: Vec<String> = (0..150).map(|number| ask(number).header("cache-status")).collect();
    let failed = said.iter().find(|said| said.ends_with("; detail=store-failed"));
    let failed = failed.unwrap_or_else(|| panic!("{said:?}"));
    assert!(failed.contains("; fwd=miss; fwd-status=200; stored; "), "{failed}");
    assert!(edge.metric("skerry_store_disk_errors_total") > 0.0);
}

#[test]
fn a_fill_whose_client_left_goes_on_when_most_is_there() {
    let gate = Gate::default();
    // The body exceeds the window of 4 MiB, so the fill would stall if it waited for the reader that left.
    let origin = pausing(9_000_000, "max-age=60", &gate);
    let edge = Edge::with(&config(&origin, "[fills]\nwindow = \"16MiB\""));
    let mut client = edge.connect();
    client.send(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    client.read_bytes(8_000_000);
    drop(client);
    assert_eq!(edge.log(1)[0]["ended"], "client-left");
    gate.open();
    until("the whole is stored", || {
        let response = edge.get("/");
        assert_eq!(response.body.len(), 10_000_000);
        response.is_hit()
    });
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn a_fill_whose_client_left_early_is_given_up() {
    let gate = Gate::default();
    let origin = pausing(100_000, "max-age=60", &gate);
    let edge = Edge::before(&origin.url());
    leave_and_open(&edge, &gate);
    until("the origin is let go", || origin.open() == 0);
    let response = edge.get("/");
    assert!(response.is_complete && !response.is_hit());
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn a_passed_response_whose_client_left_is_given_up() {
    let gate = Gate::default();
    let origin = pausing(100_000, "no-store", &gate);
    let edge = Edge::before(&origin.url());
    leave_and_open(&edge, &gate);
    until("the origin is let go", || origin.open() == 0);
}

#[test]
fn a_client_that_sends_no_more_gets_its_response_from_the_origin() {
    for cache_control in ["max-age=60", "no-store"] {
        let gate = Gate::default();
        let behind = gate.clone();
        let origin = Origin::start(move |request| match request.target.as_str() {
            "/" => Answer::ok("late").header("Cache-Control", cache_control).behind(&behind),
            _ => Answer::ok("soon"),
        });
        let edge = Edge::before(&origin.url());
        let mut client = edge.connect();
        client.send(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n");
        client.finish();
        origin.wait_for_requests(1);
        // In the meantime the node notices that the client sends no more.
        (0..10).for_each(|_| assert_eq!(edge.get("/other").text(), "soon"));
        gate.open();
        assert_eq!(client.read(false).text(), "late", "{cache_control}");
        assert!(client.is_closed(), "no other request can follow");
    }
}

#[test]
fn a_client_that_ends_its_connection_later_has_given_up() {
    let gate = Gate::default();
    let behind = gate.clone();
    let origin = Origin::start(move |_| Answer::ok("late").behind(&behind));
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(b"POST / HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 0\r\n\r\n");
    origin.wait_for_requests(1);
    let exchanges = || edge.metric("skerry_upstream_active");
    assert_eq!(exchanges(), 1.0);
    std::thread::sleep(Duration::from_millis(1200));
    client.finish();
    until("the exchange is given up", || exchanges() == 0.0);
    gate.open();
}

#[test]
fn a_client_that_leaves_before_the_response_does_not_affect_collapsed_requests() {
    let gate = Gate::default();
    let behind = gate.clone();
    let origin = Origin::start(move |_| Answer::ok("for all").fresh_for(60).behind(&behind));
    let edge = Edge::before(&origin.url());
    let mut leaving = edge.connect();
    leaving.send(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    origin.wait_for_requests(1);
    let mut staying = edge.connect();
    staying.send(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    until("both wait", || edge.metric("skerry_requests_total") == 2.0);
    drop(leaving);
    gate.open();
    assert_eq!(staying.read(false).text(), "for all");
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn a_body_that_breaks_off_before_its_first_byte_is_a_502() {
    let origin = Origin::start(|request| {
        let answer = Answer::ok(vec![b'x'; 100_000]).cut_after(0);
        match request.target.as_str() {
            "/stored" => answer.fresh_for(60),
            "/short" => Answer::ok("short").cut_after(0).fresh_for(60),
            _ => answer.header("Cache-Control", "no-store"),
        }
    });
    let edge = Edge::before(&origin.url());
    for target in ["/stored", "/short", "/passed"] {
        for _ in 0..2 {
            let response = edge.get(target);
            assert_eq!((response.status, response.is_complete), (502, true), "{target}");
            let expected = "skerry; error=http_response_incomplete";
            assert_eq!(response.header("proxy-status"), expected, "{target}");
        }
    }
    let post = edge.connect().request(Request {
        method: "POST",
        host: "edge.test",
        target: "/passed",
        fields: &[],
        body: b"x",
    });
    assert_eq!(post.status, 502, "{post:?}");
    let lines = edge.log(7);
    for line in lines {
        assert_eq!(line["failure"], "http_response_incomplete", "{line}");
        assert_eq!(line["upstream"], format!("origin:{}", origin.address), "{line}");
        assert!(line["ended"].is_null() && line["upstream_status"].is_null(), "{line}");
    }
}

#[test]
fn a_stale_response_is_served_if_the_new_body_ends_early() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let origin = Origin::start(move |_| {
        let answer = Answer::ok("hello").header("Cache-Control", "max-age=10, stale-if-error=100");
        match first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            true => answer,
            false => answer.cut_after(0),
        }
    });
    let edge = Edge::before(&origin.url());
    assert_eq!(edge.get("/").status, 200);
    edge.advance(11);
    let stale = edge.get("/");
    assert_eq!((stale.status, stale.text()), (200, "hello"), "{stale:?}");
    assert!(stale.header("cache-status").contains("detail=stale-if-error"), "{stale:?}");
}

#[test]
fn a_body_that_does_not_begin_in_time_is_a_504() {
    let gate = Gate::default();
    let behind = gate.clone();
    let origin = Origin::start(move |_| Answer::ok("late").pause_at(0, &behind));
    let edge = Edge::with(&config(&origin, "[pools.main.deadlines]\nbetween_bytes = \"100ms\""));
    let response = edge.get("/");
    assert_eq!(response.status, 504, "{response:?}");
    assert_eq!(response.header("proxy-status"), "skerry; error=connection_read_timeout");
    gate.open();
}

#[test]
fn the_head_of_a_stream_does_not_wait_for_its_first_event() {
    let gate = Gate::default();
    let behind = gate.clone();
    let origin = Origin::start(move |_| {
        let events = Answer::ok("data: 1\n\n").header("Content-Type", "text/event-stream");
        events.header("Cache-Control", "no-store").chunked().pause_at(0, &behind)
    });
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    assert_eq!(client.read_line(), "HTTP/1.1 200 OK");
    gate.open();
}

#[test]
fn the_log_names_the_origin_that_gave_no_response() {
    let refusing = Origin::start(|_| Answer::ok("x"));
    refusing.kill();
    let closing = Origin::start(|_| Answer::raw(""));
    let name = "no-such-host.invalid:80";
    let text = format!(
        "[pools.refusing]\norigins = {:?}\n[pools.two]\norigins = [{:?}, {:?}]\n\
         [pools.unknown]\norigins = \"http://{name}\"\n[sites.all]\nhosts = \"*\"\npool = \"two\"\n\
         [[sites.all.rules]]\npath = \"/refusing\"\npool = \"refusing\"\n\
         [[sites.all.rules]]\npath = \"/unknown\"\npool = \"unknown\"\n",
        refusing.url(),
        closing.url(),
        closing.url()
    );
    let edge = Edge::with(&text);
    for method in ["GET", "POST"] {
        let ask = |target| {
            edge.connect()
                .request(Request { method, host: "edge.test", target, fields: &[], body: b"" })
                .status
        };
        assert_eq!((ask("/refusing"), ask("/two"), ask("/unknown")), (502, 502, 502));
    }
    let (refusing, closing) = (refusing.address.to_string(), closing.address.to_string());
    for line in edge.log(6) {
        let (pool, origin, address) = match line["target"].as_str() {
            Some("/refusing") => ("refusing", &*refusing, Some(&*refusing)),
            Some("/two") => ("two", &*closing, Some(&*closing)),
            _ => ("unknown", name, None),
        };
        let origin = format!("origin:{origin}");
        assert_eq!((&line["pool"], &line["upstream"]), (&pool.into(), &origin.into()), "{line}");
        assert_eq!(line["upstream_address"].as_str(), address, "{line}");
        let again = pool == "two" && line["method"] == "GET";
        assert_eq!(line["upstream_attempts"], if again { 2 } else { 1 }, "{line}");
        assert!(line["upstream_status"].is_null(), "{line}");
        assert_ne!(line["cache"], "hit", "{line}");
    }
}

#[test]
fn a_failed_origin_is_logged_once_and_so_is_its_recovery() {
    let port = free_address();
    let process = Process::start(&format!(
        "[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n[log]\naccess = \"off\"\n\
         [pools.main]\norigins = [\"http://{port}\"]\nhealth.trial_interval = \"100ms\"\n\
         [sites.all]\nhosts = \"*\"\n"
    ));
    let mut client = Client::connect(process.http);
    for number in 0..2000 {
        let (method, target) = if number % 2 == 0 { ("GET", "/a") } else { ("POST", "/b?secret") };
        assert!(
            client
                .request(Request { method, host: "a.test", target, fields: &[], body: b"" })
                .status
                >= 500
        );
    }
    let lines = process.lines_with("WARN");
    let first = &process.lines_with("request failed at the origin")[0];
    for words in [
        "cannot connect to",
        "GET http://a.test/a, request ",
        "pool=\"main\"",
        &format!("origin=\"{port}\""),
        "reason=\"connection_refused\"",
    ] {
        assert!(first.contains(words), "{words}: {first}");
    }
    assert!(lines.len() <= 5, "{} lines for 2000 requests: {lines:#?}", lines.len());
    let metrics = Client::connect(process.admin).get("localhost", "/metrics", &[]);
    let suppressed = metrics.text().lines().find_map(|line| {
        line.strip_prefix("skerry_log_lines_suppressed_total ")?.parse::<u64>().ok()
    });
    assert!(suppressed >= Some(1900), "{suppressed:?}");

    let listener = TcpListener::bind(port).expect("the port again");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        }
    });
    until("the origin is asked again", || {
        client
            .request(Request {
                method: "GET",
                host: "a.test",
                target: "/a",
                fields: &[],
                body: b"",
            })
            .status
            == 200
    });
    process.wait_for("origin answers again; it failed ");
    let recovery = process.lines_with("origin answers again; it failed ");
    assert!(
        recovery[0].contains("pool=\"main\"") && recovery[0].contains(" times within "),
        "{recovery:?}"
    );
    assert_eq!(recovery.len(), 1);
}

#[test]
fn an_error_has_its_cause_in_the_line_of_its_request() {
    let origin = Origin::start(|seen| match &*seen.target {
        "/length" => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
        "/status" => Answer::raw("HTTP/1.1 9 OK\r\n\r\n"),
        _ => Answer::ok("x"),
    });
    let edge = Edge::before(&origin.url());
    for target in ["/length", "/status"] {
        let response = edge.get(target);
        assert_eq!(response.status, 502, "{target}");
        let text = "the origin's response is not valid HTTP\n";
        assert!(response.text().contains(text), "{response:?}");
    }
    for line in edge.log(2) {
        let detail = line["failure_detail"].as_str().unwrap_or_default();
        assert!(detail.contains("is not valid HTTP: "), "{line}");
    }
}

#[test]
fn a_line_names_the_rule_that_applied() {
    let origin = Origin::start(|_| Answer::ok("x"));
    let edge = Edge::with(&config(
        &origin,
        "[[sites.all.rules]]\nname = \"closed\"\npath = \"/closed\"\naccess.deny = [\"0.0.0.0/0\"]\n",
    ));
    assert_eq!((edge.get("/closed").status, edge.get("/").status), (403, 200));
    // Each worker writes its lines on its own, in any order.
    let lines = edge.log(2);
    let line = |target: &str| lines.iter().find(|line| line["target"] == target).expect("a line");
    let closed = line("/closed");
    assert_eq!((&closed["rule"], &closed["failure"]), (&"closed".into(), &"address-denied".into()));
    assert!(line("/")["rule"].is_null(), "{lines:?}");
}

#[test]
fn the_error_of_the_last_attempt_is_told_when_all_others_are_down() {
    let (dead, other) = (Origin::start(|_| Answer::ok("x")), Origin::start(|_| Answer::ok("x")));
    dead.kill();
    other.kill();
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = [{:?}, {:?}]\nhealth.connect_failures = 1\n\
         health.trial_interval = \"1h\"\n[sites.all]\nhosts = \"*\"\n",
        dead.url(),
        other.url()
    ));
    let first = edge.get("/");
    assert_eq!(first.status, 502, "an origin was tried: {first:?}");
    assert!(!first.header("proxy-status").contains("destination_unavailable"), "{first:?}");
    // The next request tries one of them again.
    assert_eq!(edge.get("/").status, 502);
    let second = edge.get("/");
    assert_eq!(second.header("proxy-status"), "skerry; error=destination_unavailable");
    assert!(second.text().contains("no origin is available\n"), "{second:?}");
}

#[test]
fn content_that_cannot_be_decoded_is_a_502_and_not_kept() {
    let is_mended = Gate::default();
    let mended = is_mended.clone();
    let gzip = {
        let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        coder.write_all(b"good").expect("memory");
        coder.finish().expect("memory")
    };
    let origin = Origin::start(move |_| {
        let body = if mended.is_open() { gzip.clone() } else { b"not gzip at all".to_vec() };
        Answer::ok(body).header("Content-Encoding", "gzip").fresh_for(60)
    });
    let edge = Edge::before(&origin.url());
    for _ in 0..2 {
        let response = edge.get("/");
        assert_eq!(response.status, 502, "{response:?}");
        let error = "skerry; error=http_response_content_coding";
        assert_eq!(response.header("proxy-status"), error, "{response:?}");
        assert!(!response.header("cache-status").contains("stored"), "{response:?}");
    }
    let as_it_is = edge.get_with("/", &["Accept-Encoding: gzip"]);
    assert_eq!((as_it_is.status, &*as_it_is.body), (200, &b"not gzip at all"[..]));
    assert_eq!(edge.get("/").status, 502, "a hit fails, and is not kept");
    is_mended.open();
    let response = edge.get("/");
    assert_eq!((response.status, response.text()), (200, "good"));
    assert!(edge.get("/").is_hit());
    // Each worker writes its own lines, so they are in no order.
    let lines = edge.log(6);
    let line = lines.iter().find(|line| line["status"] == 502).expect("the refused content");
    assert_eq!(line["failure"], "http_response_content_coding", "{line}");
    let detail = line["failure_detail"].as_str().unwrap_or_default();
    assert!(detail.starts_with("content-encoding is gzip, but the content is not"), "{line}");
}

#[test]
fn a_socket_without_permission_is_an_error_that_names_it_and_the_remedy() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("app.sock");
    let _application = UnixListener::bind(&socket).expect("a socket");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
    };
    mode(folder.path(), 0o755);
    // Its owner may not connect either, where the tests do not run as root.
    mode(&socket, 0o400);
    let node = Process::start_unprivileged(&format!(
        "[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n[log]\naccess = \"off\"\n\
         [pools.main]\norigins = \"unix:{}\"\n[sites.all]\nhosts = \"*\"\n",
        socket.display()
    ));
    let mut client = Client::connect(node.http);
    assert_eq!(client.get("edge.test", "/", &[]).status, 502);
    node.wait_for(&format!(
        "cannot connect to unix:{}: Permission denied (os error 13); give the node's user write \
         permission for the socket, and search permission for its directories",
        socket.display()
    ));
}
