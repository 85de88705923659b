//! Caching at the socket: the responses to the client and the requests to the origin. Unit tests of single
//! rules are in `src/cache`. The public suite in `tests/conformance` covers many cases; this file has those
//! that it lacks.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use skerry::Clock;

use crate::harness::origin::ReceivedRequest;
use crate::harness::{Answer, Edge, Gate, Origin, Request, Response, raw, until};

/// An origin that answers its n-th request, from one, by `answer(n, request)`.
fn counting(answer: impl Fn(usize, &ReceivedRequest) -> Answer + Send + Sync + 'static) -> Origin {
    let count = std::sync::atomic::AtomicUsize::new(0);
    Origin::start(move |request| {
        answer(1 + count.fetch_add(1, std::sync::atomic::Ordering::SeqCst), request)
    })
}

/// A response with this `Cache-Control` and its number as its body.
fn numbered(control: &'static str) -> Origin {
    counting(move |n, _| Answer::ok(n.to_string()).header("Cache-Control", control))
}

fn send(edge: &Edge, method: &str, target: &str, body: &[u8]) -> Response {
    edge.connect().request(Request { method, host: "edge.test", target, fields: &[], body })
}

#[test]
fn a_stored_response_is_served_until_it_is_stale() {
    let origin = numbered("max-age=60");
    let edge = Edge::before(&origin.url());
    let first = edge.get("/a");
    assert_eq!((first.status, first.text(), first.is_hit()), (200, "1", false));
    assert!(first.header("cache-status").contains("fwd=uri-miss"), "{first:?}");
    edge.advance(50);
    let second = edge.get("/a");
    assert!(second.is_hit(), "{second:?}");
    let age: u32 = second.header("age").parse().expect("an age");
    assert!((50..55).contains(&age), "{age}");
    edge.advance(10);
    assert_eq!(edge.get("/a").text(), "2");
}

/// The `Age` cases of the latest public cache tests (freshness-*-age, other-age-update-*, cdn-max-age-age,
/// age-parse-*). A number of seconds stands for a date that far from now.
#[test]
fn the_origins_age_counts_and_leaves_once() {
    let day = 24 * 60 * 60;
    let hour = ("Cache-Control", "max-age=3600");
    check_age("freshness-max-age-age", &[("Date", 0)], &[hour, ("Age", "7200")], false);
    let cdn = ("CDN-Cache-Control", "max-age=3600");
    check_age("cdn-max-age-age", &[("Date", 0)], &[cdn, ("Age", "7200")], false);
    let slow = [("Date", -10), ("Expires", 10)];
    check_age("freshness-expires-age-slow-date", &slow, &[("Age", "25")], false);
    let fast = [("Date", 10), ("Expires", 20)];
    check_age("freshness-expires-age-fast-date", &fast, &[("Age", "15")], false);
    let month = [("Date", 0), ("Expires", 30 * day)];
    check_age("other-age-update-expires", &month, &[("Age", "30")], true);
    check_age("other-age-update-max-age", &[], &[hour, ("Age", "30")], true);
    for (id, ages, is_reused) in [
        ("age-parse-nonnumeric", &["abc"][..], true),
        ("age-parse-negative", &["-7200"], true),
        ("age-parse-float", &["7200.0"], true),
        ("age-parse-large-minus-one", &["2147483647"], false),
        ("age-parse-large", &["2147483648"], false),
        ("age-parse-larger", &["2147483649"], false),
        ("age-parse-suffix", &["7200, 0"], false),
        ("age-parse-prefix", &["0, 7200"], true),
        ("age-parse-suffix-twoline", &["7200", "0"], false),
        ("age-parse-prefix-twoline", &["0", "7200"], true),
        ("age-parse-dup-0", &["0, 0"], true),
        ("age-parse-dup-0-twoline", &["0", "0"], true),
    ] {
        let ages = ages.iter().map(|age| ("Age", *age));
        check_age(
            id,
            &[("Date", 0)],
            &[hour].into_iter().chain(ages).collect::<Vec<_>>(),
            is_reused,
        );
    }
    let long = ("Cache-Control", "max-age=10000");
    check_age("age-parse-dup-old", &[("Date", 0)], &[long, ("Age", "3600"), ("Age", "3600")], true);
}

fn check_age(id: &str, dates: &[(&str, i64)], fields: &[(&str, &str)], is_reused: bool) {
    let lines = age_case_lines(dates, fields);
    let ages: Vec<&String> =
        lines.iter().filter(|(name, _)| name == "Age").map(|(_, value)| value).collect();
    let single_age = match ages[..] {
        [age] => age.parse::<u32>().ok().filter(|age| (1..1 << 31).contains(age)),
        _ => None,
    };
    let first_age: u64 = ages.first().and_then(|age| age.parse().ok()).unwrap_or(0);
    let origin = {
        let lines = lines.clone();
        Origin::start(move |_| {
            let add = |answer: Answer, (name, value): &(String, String)| answer.header(name, value);
            lines.iter().fold(Answer::ok("hello"), add)
        })
    };
    let edge = Edge::before(&origin.url());
    let age_lines = |response: &Response| {
        let is_age = |(name, _): &&(String, String)| name.eq_ignore_ascii_case("age");
        response.headers.iter().filter(is_age).count()
    };
    let first = edge.get("/");
    assert!(age_lines(&first) <= 1, "{id}: {first:?}");
    if let Some(age) = single_age {
        assert_eq!(first.header("age"), age.to_string(), "{id}: {first:?}");
    }
    edge.advance(3);
    let second = edge.get("/");
    assert_eq!(second.is_hit(), is_reused, "{id}: {second:?}");
    assert_eq!(origin.request_count(), if is_reused { 1 } else { 2 }, "{id}");
    assert!(age_lines(&second) <= 1, "{id}: {second:?}");
    if is_reused {
        let age: u64 = second.header("age").parse().expect("one age");
        assert!((first_age + 3..first_age + 30).contains(&age), "{id}: {second:?}");
    }
}

/// The field lines of a response: dates, given in seconds from now, and other fields.
fn age_case_lines(dates: &[(&str, i64)], fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let now = Clock::system().now();
    let date = |offset: i64| {
        let span = Duration::from_secs(offset.unsigned_abs());
        httpdate::fmt_http_date(if offset < 0 { now - span } else { now + span })
    };
    let dates = dates.iter().map(|(name, offset)| ((*name).to_owned(), date(*offset)));
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    dates.chain(fields).collect()
}

#[test]
fn cdn_cache_control_goes_before_cache_control() {
    let origin = Origin::start(|request| {
        let (cdn, plain) = match &*request.target {
            "/stored" => ("max-age=60", "no-store"),
            "/not-stored" => ("no-store", "max-age=60"),
            "/private" => ("private", "max-age=60"),
            _ => ("max-age=60, &", "no-store"),
        };
        Answer::ok("x").header("CDN-Cache-Control", cdn).header("Cache-Control", plain)
    });
    let edge = Edge::before(&origin.url());
    for (target, hit) in
        [("/stored", true), ("/not-stored", false), ("/private", false), ("/invalid", false)]
    {
        edge.get(target);
        assert_eq!(edge.get(target).is_hit(), hit, "{target}");
    }
}

#[test]
fn stale_is_served_while_it_is_validated_in_the_background() {
    let origin = numbered("max-age=10, stale-while-revalidate=30");
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(20);
    let stale = edge.get("/a");
    assert!(stale.is_hit() && stale.text() == "1", "{stale:?}");
    origin.wait_for_requests(2);
    until("the new one is served", || edge.get("/a").text() == "2");
    edge.advance(60);
    assert_eq!(edge.get("/a").text(), "3", "beyond the window nobody gets it");
}

#[test]
fn without_validator_it_may_still_stand_in_for_an_error() {
    for error in [Answer::status(503), Answer::raw("")] {
        let origin = counting(move |n, _| match n {
            1 => Answer::ok("1").header("Cache-Control", "max-age=2, stale-if-error=60"),
            _ => error.clone(),
        });
        let edge = Edge::before(&origin.url());
        edge.get("/a");
        edge.advance(5);
        let stale = edge.get("/a");
        assert_eq!((stale.status, stale.text()), (200, "1"), "{stale:?}");
        edge.advance(60);
        assert!(edge.get("/a").status >= 500);
    }
}

#[test]
fn a_response_with_must_revalidate_is_never_served_stale() {
    let origin = counting(|n, _| match n {
        1 => {
            Answer::ok("1").header("Cache-Control", "max-age=2, must-revalidate, stale-if-error=60")
        }
        _ => Answer::raw(""),
    });
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(5);
    let refused = edge.get("/a");
    assert_eq!(refused.status, 502, "{refused:?}");
    assert!(!refused.is_hit());
}

#[test]
fn a_stale_response_replaces_an_error_that_is_not_shared() {
    let origin = counting(|n, _| match n {
        1 => Answer::ok("1").header("Cache-Control", "max-age=1, stale-if-error=60"),
        // Remembered: those after it go upstream alone.
        2 => Answer::ok("2").header("Cache-Control", "no-store"),
        _ => Answer::status(503),
    });
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(3);
    assert_eq!(edge.get("/a").text(), "2");
    let alone = edge.get("/a");
    assert_eq!((alone.status, alone.text(), alone.is_hit()), (200, "1", false), "{alone:?}");
    assert_eq!(origin.request_count(), 3);
}

#[test]
fn a_collapsed_request_gets_the_stale_response_too() {
    let gate = Gate::default();
    let origin = {
        let gate = gate.clone();
        counting(move |n, _| match n {
            1 => Answer::ok("1").header("Cache-Control", "max-age=1, stale-if-error=60"),
            _ => Answer::status(503).behind(&gate),
        })
    };
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(3);
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..3).map(|_| scope.spawn(|| edge.get("/a"))).collect();
        until("two wait", || edge.metric("skerry_requests_collapsed_total") == 2.0);
        gate.open();
        for response in asked {
            let response = response.join().expect("a response");
            assert_eq!((response.status, response.text()), (200, "1"), "{response:?}");
        }
    });
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn interim_responses_are_passed_on_and_nothing_of_them_is_stored() {
    let origin = Origin::start(|_| {
        Answer::raw(
            "HTTP/1.1 100 Continue\r\n\r\n\
             HTTP/1.1 102 Processing\r\n\r\n\
             HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\n\
             X-Hop: 1\r\nContent-Length: 5\r\n\r\n\
             HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok",
        )
    });
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(b"GET /a HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    assert_eq!(client.read_any(false).status, 102);
    let hints = client.read_any(false);
    assert_eq!((hints.status, hints.header("link")), (103, "</a.css>; rel=preload".into()));
    assert_eq!(hints.header("x-hop") + &hints.header("content-length"), "", "{hints:?}");
    for hit in [false, true] {
        let response = client.read_any(false);
        assert_eq!((response.status, response.text(), response.is_hit()), (200, "ok", hit));
        assert_eq!(response.header("link"), "", "{response:?}");
        if !hit {
            client.send(b"GET /a HTTP/1.1\r\nHost: edge.test\r\n\r\n");
        }
    }
    // HTTP/1.0 has none.
    let said = raw(edge.http, b"GET /b HTTP/1.0\r\nHost: edge.test\r\n\r\n");
    assert!(said.starts_with("HTTP/1.0 200") || said.starts_with("HTTP/1.1 200"), "{said}");
}

#[test]
fn interim_responses_do_not_wait_for_the_final_one() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (go_on, waits) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut head = BufReader::new(stream.try_clone()?).lines();
        while head.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")?;
        _ = waits.recv();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    });
    let edge = Edge::before(&format!("http://{address}"));
    let mut client = edge.connect();
    // The second request is here before the first one's answer.
    client.send(b"GET /a HTTP/1.1\r\nHost: edge.test\r\n\r\nGET ftp://b HTTP/1.1\r\n\r\n");
    assert_eq!(client.read_any(false).status, 103);
    go_on.send(()).expect("the origin waits");
    let last = client.read_any(false);
    assert_eq!((last.status, last.text()), (200, "ok"));
    assert_eq!(client.read_any(false).status, 421);
}

#[test]
fn fields_named_by_no_cache_reach_the_first_client_alone() {
    let origin = Origin::start(|_| {
        Answer::ok("x").header("Cache-Control", "max-age=60, no-cache=\"own\"").header("Own", "1")
    });
    let edge = Edge::before(&origin.url());
    assert_eq!(edge.get("/a").header("own"), "1");
    let hit = edge.get("/a");
    assert!(hit.is_hit());
    assert_eq!(hit.header("own"), "");
}

#[test]
fn a_post_that_says_so_answers_later_gets_and_outlives_what_it_invalidates() {
    let origin = counting(|n, request| {
        let answer = Answer::ok(n.to_string()).fresh_for(60);
        if request.method == "POST" { answer.header("Content-Location", "/a") } else { answer }
    });
    let edge = Edge::before(&origin.url());
    assert_eq!(edge.get("/a").text(), "1");
    assert_eq!(send(&edge, "POST", "/a", b"x").text(), "2");
    let got = edge.get("/a");
    assert_eq!((got.text(), got.is_hit()), ("2", true), "{got:?}");
    // Another resource's POST names it: that is no response of its own.
    assert_eq!(send(&edge, "POST", "/b", b"x").text(), "3");
    assert_eq!(edge.get("/a").text(), "4");
}

#[test]
fn a_stored_post_answers_the_next_get_whatever_others_invalidate_meanwhile() {
    let origin = Origin::start(|request| match &*request.method {
        "POST" => Answer::ok("x").fresh_for(60).header("Content-Location", &request.target),
        _ => Answer::ok("y"),
    });
    let edge = Edge::before(&origin.url());
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                send(&edge, "PUT", "/other", b"x");
            }
        });
        for n in 0..50 {
            let target = format!("/{n}");
            send(&edge, "POST", &target, b"x");
            assert!(edge.get(&target).is_hit(), "{target}");
        }
        is_done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn unsafe_methods_invalidate_and_errors_do_not() {
    let origin = counting(|n, request| match &*request.method {
        "PUT" => Answer::status(204),
        "DELETE" => Answer::status(403),
        _ => Answer::ok(n.to_string()).fresh_for(60),
    });
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    assert_eq!(send(&edge, "DELETE", "/a", b"").status, 403);
    assert!(edge.get("/a").is_hit());
    assert_eq!(send(&edge, "PUT", "/a", b"x").status, 204);
    assert!(!edge.get("/a").is_hit());
}

#[test]
fn a_part_that_comes_for_the_whole_is_passed_on_and_not_stored() {
    let origin = Origin::start(|_| {
        Answer::status(206).header("Content-Range", "bytes 0-4/10").fresh_for(60).body("01234")
    });
    let edge = Edge::before(&origin.url());
    for _ in 0..2 {
        let part = edge.get_with("/a", &["Range: bytes=0-4"]);
        assert_eq!((part.status, part.text(), part.is_complete), (206, "01234", true), "{part:?}");
        assert!(!part.is_hit());
    }
    // Without a validator the whole is asked for after the part, each time.
    assert_eq!(origin.request_count(), 4);
}

#[test]
fn a_head_freshens_the_stored_get_response() {
    let origin = numbered("max-age=10");
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(15);
    assert_eq!(send(&edge, "HEAD", "/a", b"").status, 200);
    assert_eq!(origin.received()[1].method, "HEAD");
    let hit = edge.get("/a");
    assert_eq!((hit.text(), hit.is_hit()), ("1", true), "{hit:?}");
}

#[test]
fn variants_are_chosen_by_the_fields_that_vary_names() {
    let origin = Origin::start(|request| {
        Answer::ok(request.header("x-kind").unwrap_or("none"))
            .header("Vary", "X-Kind")
            .fresh_for(60)
    });
    let edge = Edge::before(&origin.url());
    let kinds = ["X-Kind: a", "X-Kind: b"];
    for hit in [false, true] {
        for kind in kinds {
            let response = edge.get_with("/a", &[kind]);
            assert_eq!((response.text(), response.is_hit()), (&kind[8..], hit), "{kind}");
        }
    }
    assert_eq!(edge.get("/a").text(), "none");
    assert_eq!(origin.request_count(), 3);
}

/// RFC 9111 §4.1: all selecting fields of the stored response must match, whatever others of its URL vary by.
#[test]
fn a_variant_does_not_stand_for_one_of_other_selecting_fields() {
    let origin = counting(|n, _| {
        let vary = ["X-A", "X-B", "X-A, X-B", "X-A"][(n - 1) % 4];
        Answer::ok(n.to_string()).fresh_for(60).header("Vary", vary)
    });
    let edge = Edge::before(&origin.url());
    let get = |target: &str, fields: &[&str]| {
        let response = edge.get_with(target, fields);
        (response.text().to_owned(), response.is_hit())
    };
    assert_eq!(get("/a", &[]), ("1".into(), false));
    assert_eq!(get("/a", &["Cache-Control: no-cache"]), ("2".into(), false));
    // The second one is for requests without X-B, the first one for those without X-A.
    assert_eq!(get("/a", &["X-B: 1"]), ("1".into(), true));
    assert_eq!(get("/b", &["X-A: 1"]), ("3".into(), false));
    assert_eq!(get("/b", &["X-A: 2"]), ("4".into(), false));
    assert_eq!(get("/b", &["X-A: 1", "X-B: 1"]), ("5".into(), false));
}

#[test]
fn conditions_and_ranges_are_answered_from_the_store() {
    let origin = Origin::start(|_| Answer::ok("0123456789").header("ETag", "\"v\"").fresh_for(60));
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    let check = |field: &str, status: u16, text: &str, range: &str| {
        let response = edge.get_with("/a", &[field]);
        let found = (response.status, response.text(), &*response.header("content-range"));
        assert_eq!(found, (status, text, range), "{field}");
    };
    check("If-None-Match: \"u\", W/\"v\"", 304, "", "");
    check("If-Match: \"u\"", 412, "", "");
    check("Range: bytes=2-3", 206, "23", "bytes 2-3/10");
    check("Range: bytes=-1", 206, "9", "bytes 9-9/10");
    check("Range: bytes=10-", 416, "", "bytes */10");
    assert_eq!(origin.request_count(), 1);
}

/// A site that follows `No-Vary-Search`, except for paths under `/plain`.
fn following(origin: &str) -> Edge {
    Edge::with(&format!(
        "[pools.main]\norigins = {origin:?}\n[sites.all]\nhosts = \"*\"\n\
         [sites.all.cache]\nno_vary_search = true\nshow_key = true\n\
         [[sites.all.rules]]\npath_prefix = \"/plain\"\ncache.no_vary_search = false\n"
    ))
}

#[test]
fn no_vary_search_is_followed_where_a_site_says_so() {
    let origin = counting(|n, request| {
        let answer = Answer::ok(n.to_string()).fresh_for(60);
        let answer = match &*request.target {
            target if target.contains("lang=") => answer.header("Vary", "Accept-Language"),
            _ => answer,
        };
        match request.target.starts_with("/other") {
            true => answer,
            false => answer.header("No-Vary-Search", "params=(\"utm\"), key-order"),
        }
    });
    let edge = following(&origin.url());
    let check = |target: &str, expected: (&str, bool)| {
        let response = edge.get(target);
        assert_eq!((response.text(), response.is_hit()), expected, "{target}: {response:?}");
    };
    check("/p?utm=1&a=1&b=2", ("1", false));
    check("/p?b=2&utm=2&a=1", ("1", true));
    check("/p?a=1&b=2", ("1", true));
    check("/p?a=2", ("2", false));
    check("/p", ("3", false));
    check("/p?utm=3", ("3", true));
    // A response without the field answers only its own URL.
    check("/other?utm=1", ("4", false));
    check("/other?utm=2", ("5", false));
    check("/plain/p?utm=1", ("6", false));
    check("/plain/p?utm=2", ("7", false));
    check("/v?lang=de&utm=1", ("8", false));
    check("/v?lang=de&utm=2", ("8", true));
    let key = edge.get("/p?utm=9&b=2&a=1").header("cache-status");
    assert!(key.contains("key=\"http://edge.test/p?a=1&b=2\""), "{key}");
    let explained = edge.admin("GET", "/explain?url=http://edge.test/p?utm=9%26b=2%26a=1", "");
    let told: serde_json::Value = serde_json::from_str(explained.text()).expect("JSON");
    assert_eq!(told["decision"]["act"], "hit", "{told}");
    assert_eq!(told["key"], "http://edge.test/p?a=1&b=2");
    assert_eq!(told["no_vary_search"][0], "params=(\"utm\"), key-order");
    assert_eq!(told["stored"]["aliased"], true);
}

#[test]
fn a_purge_of_a_url_covers_its_response_by_no_vary_search() {
    let origin = counting(|n, request| {
        let answer = Answer::ok(n.to_string()).fresh_for(60);
        match request.method.as_str() {
            "GET" => answer.header("No-Vary-Search", "params=(\"utm\")"),
            _ => answer,
        }
    });
    let edge = following(&origin.url());
    let change = |what: &str, act: &dyn Fn()| {
        edge.get("/p?utm=1&a=1");
        let before = edge.get("/p?utm=2&a=1");
        assert!(before.is_hit(), "{what}: {before:?}");
        act();
        let after = edge.get("/p?utm=3&a=1");
        assert_ne!(after.text(), before.text(), "{what}: {after:?}");
    };
    let purge = |order: &str| assert_eq!(edge.admin("POST", "/purge", order).status, 200);
    change("an alias nobody has asked for", &|| {
        edge.purge("/p?utm=77&a=1");
    });
    change("the URL as it is stored", &|| {
        edge.purge("/p?a=1");
    });
    change("a prefix of an alias", &|| purge("{\"prefix\": \"http://edge.test/p?utm=77\"}"));
    change("an unsafe request for an alias", &|| {
        send(&edge, "POST", "/p?utm=78&a=1", b"x");
    });
}

#[test]
fn a_rule_that_changes_leads_to_nothing_that_was_stored_by_another() {
    let origin = counting(|n, _| {
        let rule = if n == 1 { "params=(\"a\")" } else { "params=(\"b\")" };
        Answer::ok(n.to_string()).fresh_for(60).header("No-Vary-Search", rule)
    });
    let edge = following(&origin.url());
    assert_eq!(edge.get("/p?a=1&b=1").text(), "1");
    assert_eq!(edge.get("/p?a=2&b=1").text(), "1");
    // The response is stored under the second rule, which is remembered from now on.
    assert_eq!(edge.get("/p?a=3&b=2").text(), "2");
    assert_eq!(edge.get("/p?a=3&b=3").text(), "2");
    assert_eq!(edge.get("/p?b=1&c=1").text(), "3");
    assert_eq!(edge.get("/p?a=1&b=1").text(), "4");
}

/// A node before this origin whose only site has these lines in its `[sites.all.cache]`.
fn with_cache(origin: &Origin, lines: &str) -> Edge {
    Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n[sites.all.cache]\n{lines}\n",
        origin.url()
    ))
}

#[test]
fn a_head_that_tells_of_another_response_makes_the_stored_one_invalid() {
    let origin = counting(|n, request| {
        let tag = if request.method == "HEAD" { "\"new\"" } else { "\"old\"" };
        Answer::ok(n.to_string()).header("Cache-Control", "max-age=10").header("ETag", tag)
    });
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(15);
    send(&edge, "HEAD", "/a", b"");
    let again = edge.get("/a");
    assert_eq!((again.text(), again.is_hit()), ("3", false), "{again:?}");
    assert_eq!(origin.received()[2].header("if-none-match"), None, "it is gone, not stale");
}

/// The fields of such a 304 may be those of one client.
#[test]
fn a_304_that_forbids_storing_answers_one_request_and_no_other() {
    for (control, vary) in [("private, max-age=60", "X-Kind"), ("max-age=60", "*")] {
        let origin = counting(|n, request| {
            let answer = match request.header("if-none-match") {
                Some(_) => Answer::status(304)
                    .header("Cache-Control", control)
                    .header("Vary", vary)
                    .header("X-Client", &n.to_string()),
                None => {
                    Answer::ok("x").header("Cache-Control", "max-age=10").header("Vary", "X-Kind")
                }
            };
            answer.header("ETag", "\"a\"")
        });
        let edge = Edge::before(&origin.url());
        edge.get("/a");
        edge.advance(15);
        for client in ["2", "3"] {
            let response = edge.get("/a");
            let status = response.header("cache-status");
            assert_eq!(
                (response.text(), &*response.header("x-client")),
                ("x", client),
                "{control}"
            );
            assert!(status.contains("detail=validated"), "{control}: {status}");
            assert!(!status.contains("stored") && !response.is_hit(), "{control}: {status}");
        }
    }
}

/// RFC 9111 §3.5: it is not shared. The stored response still stands in for an error.
#[test]
fn a_304_to_an_authorized_request_changes_nothing_for_others() {
    let origin = counting(|n, _| match n {
        1 => Answer::ok("x")
            .header("ETag", "\"a\"")
            .header("Cache-Control", "max-age=10, stale-if-error=100"),
        2 => Answer::status(304).header("X-Client", "2").fresh_for(60),
        _ => Answer::status(503),
    });
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(15);
    let own = edge.get_with("/a", &["Authorization: Basic x"]);
    assert_eq!((own.status, own.text(), &*own.header("x-client")), (200, "x", "2"), "{own:?}");
    let other = edge.get("/a");
    assert_eq!((other.status, other.text(), &*other.header("x-client")), (200, "x", ""));
    assert!(other.header("cache-status").contains("detail=stale-if-error"), "{other:?}");
}

/// RFC 9111 §4.1: it does not match requests whose selecting fields differ.
#[test]
fn a_304_that_names_another_selecting_field_leads_to_a_whole_response() {
    let origin = counting(|n, request| {
        let is_conditional = request.header("if-none-match").is_some();
        let language = request.header("accept-language").unwrap_or("none");
        let answer = if is_conditional { Answer::status(304) } else { Answer::ok(language) };
        let answer = answer.header("ETag", "\"a\"").header("Cache-Control", "max-age=10");
        if n > 1 { answer.header("Vary", "Accept-Language") } else { answer }
    });
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(15);
    for (language, is_hit) in [("de", false), ("en", false), ("de", true), ("en", true)] {
        let response = edge.get_with("/a", &[&format!("Accept-Language: {language}")]);
        assert_eq!((response.text(), response.is_hit()), (language, is_hit), "{response:?}");
    }
}

#[test]
fn a_set_cookie_is_sent_only_to_the_client_that_caused_it() {
    for (policy, second) in [("pass", "id=2"), ("strip", ""), ("store", "id=1")] {
        let origin =
            counting(|n, _| Answer::ok("x").fresh_for(60).header("Set-Cookie", &format!("id={n}")));
        let edge = with_cache(&origin, &format!("set_cookie = {policy:?}"));
        assert_eq!(edge.get("/a").header("set-cookie"), "id=1", "{policy}");
        let again = edge.get("/a");
        assert_eq!(again.is_hit(), policy != "pass", "{policy}");
        assert_eq!(again.header("set-cookie"), second, "{policy}");
    }
}

#[test]
fn a_set_cookie_of_a_304_is_sent_only_to_the_client_that_caused_it() {
    let origin = counting(|n, request| match request.header("if-none-match") {
        Some(_) => Answer::status(304)
            .header("Set-Cookie", &format!("id={n}"))
            .header("Content-Encoding", "gzip")
            .fresh_for(60),
        None => Answer::ok("x").header("ETag", "\"a\"").fresh_for(10),
    });
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(15);
    for (cookie, is_hit) in [("id=2", false), ("", true)] {
        let response = edge.get("/a");
        assert_eq!((&*response.header("set-cookie"), response.is_hit()), (cookie, is_hit));
        assert_eq!((response.text(), &*response.header("content-encoding")), ("x", ""));
    }
}

#[test]
fn errors_are_kept_as_long_as_their_status_is_given() {
    let origin = Origin::start(|request| {
        Answer::status(request.target[1..].parse().expect("a status")).body(*b"x")
    });
    let edge = with_cache(&origin, "lifetimes = { by_status = { 404 = \"5s\", 503 = \"2s\" } }");
    for (target, lasts) in [("/404", 5), ("/503", 2), ("/500", 0), ("/200", 0)] {
        edge.get(target);
        let again = edge.get(target);
        assert_eq!((again.is_hit(), again.status.to_string()), (lasts > 0, target[1..].into()));
        edge.advance(lasts + 1);
        assert!(!edge.get(target).is_hit(), "{target}");
    }
}

#[test]
fn cache_group_invalidation_invalidates_the_group() {
    let origin = Origin::start(|request| match request.method.as_str() {
        "GET" => Answer::ok("x").fresh_for(60).header("Cache-Groups", "\"shop\", \"all\""),
        _ => Answer::ok("done").header("Cache-Group-Invalidation", "\"shop\""),
    });
    let edge = Edge::before(&origin.url());
    for target in ["/a", "/b"] {
        edge.get(target);
        assert!(edge.get(target).is_hit());
    }
    send(&edge, "POST", "/basket", b"x");
    for target in ["/a", "/b"] {
        assert!(!edge.get(target).is_hit(), "{target}");
    }
}

#[test]
fn a_key_has_no_more_variants_than_it_may_have() {
    let origin = counting(|n, _| Answer::ok(n.to_string()).fresh_for(60).header("Vary", "X-Kind"));
    let edge = with_cache(&origin, "variants_max = 2");
    let kind = |kind: &str, expected: (&str, bool)| {
        let response = edge.get_with("/a", &[&format!("X-Kind: {kind}")]);
        assert_eq!((response.text(), response.is_hit()), expected, "{kind}");
    };
    kind("a", ("1", false));
    kind("b", ("2", false));
    kind("c", ("3", false));
    kind("c", ("3", true));
    kind("b", ("2", true));
    kind("a", ("4", false));
}

#[test]
fn only_if_cached_is_answered_here_unless_the_site_says_otherwise() {
    let origin = numbered("max-age=60");
    for (policy, cold) in [("\"all\"", 504), ("[\"no-cache\"]", 200)] {
        let edge = with_cache(&origin, &format!("honour = {policy}"));
        let before = origin.request_count();
        let only = || edge.get_with("/a", &["Cache-Control: only-if-cached"]);
        assert_eq!(only().status, cold, "{policy}");
        assert_eq!(origin.request_count() == before, cold == 504, "{policy}");
        edge.get("/a");
        assert!(only().is_hit(), "{policy}");
    }
}

#[test]
fn only_if_cached_starts_no_validation_in_the_background() {
    let origin = numbered("max-age=10, stale-while-revalidate=60");
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.advance(20);
    let stale = edge.get_with("/a", &["Cache-Control: only-if-cached"]);
    assert!(stale.is_hit() && stale.text() == "1", "{stale:?}");
    // A cache between this node and the origin would answer such a validation with 504.
    edge.get("/a");
    origin.wait_for_requests(2);
    until("the new one is served", || edge.get("/a").text() == "2");
    let directives = |request: &ReceivedRequest| request.header("cache-control").is_some();
    assert!(!origin.received().iter().any(directives), "{:?}", origin.received());
}

#[test]
fn a_page_under_a_static_name_is_passed_on_and_not_stored() {
    let origin = Origin::start(|request| {
        let kind = if request.target.starts_with("/account") { "text/html" } else { "text/css" };
        Answer::ok("x").fresh_for(60).header("Content-Type", kind)
    });
    let edge = Edge::before(&origin.url());
    for (target, hit) in [("/account/x.css", false), ("/x.css", true)] {
        edge.get(target);
        let again = edge.get(target);
        assert_eq!((again.status, again.is_hit()), (200, hit), "{target}");
    }
    let off = with_cache(&origin, "deception_guard = false");
    off.get("/account/x.css");
    assert!(off.get("/account/x.css").is_hit());
}

#[test]
fn explain_says_which_words_count_and_which_rules() {
    let origin = Origin::start(|request| {
        let answer = Answer::ok("x").header("Cache-Control", "max-age=60");
        match &*request.target {
            "/cdn" => answer.header("CDN-Cache-Control", "max-age=90"),
            "/shared" => Answer::ok("x").header("Cache-Control", "max-age=60, s-maxage=30"),
            "/cookie" => answer.header("Set-Cookie", "a=b"),
            _ => answer,
        }
    });
    let edge = with_cache(&origin, "set_cookie = \"store\"");
    let told = |target: &str| {
        let told = edge.admin("GET", &format!("/explain?url=http://edge.test{target}"), "");
        let told: serde_json::Value = serde_json::from_str(told.text()).expect("JSON");
        told["rules"].clone()
    };
    let check = |target: &str, by: &str, from: &str, lasts: u64| {
        edge.get(target);
        let rules = told(target);
        assert_eq!(rules["directives_from"], by, "{target}: {rules}");
        assert_eq!(rules["lifetime_from"], from, "{target}: {rules}");
        assert_eq!(rules["lifetime_s"], lasts, "{target}: {rules}");
        assert!(rules["not_stored_now"].is_null(), "{target}: {rules}");
    };
    check("/plain", "cache-control", "max-age", 60);
    check("/cdn", "cdn-cache-control", "max-age", 90);
    check("/shared", "cache-control", "s-maxage", 30);
    check("/cookie", "cache-control", "max-age", 60);
    // A response that was stored under another policy is reported as such.
    let other = format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n\
         [sites.all.cache]\nlifetimes = {{ fixed = \"10s\" }}\n",
        origin.url()
    );
    edge.reload(&other).expect("a configuration");
    let rules = told("/cookie");
    assert_eq!((&rules["lifetime_from"], &rules["lifetime_s"]), (&"rule".into(), &10.into()));
    assert_eq!(rules["not_stored_now"], "set-cookie");
}

/// Describes a real response in the terms of `explain`.
fn act(response: &Response) -> &'static str {
    let status = response.header("cache-status");
    let asked = status.contains("fwd=stale") || status.contains("fwd=request");
    match response.status {
        504 => "gateway-timeout",
        _ if status.contains("; hit") => "hit",
        // The response was validated: no other outcome has this detail.
        _ if asked && status.contains("detail=validated") => "validate",
        _ => "forward",
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a flat list of cases")]
fn explain_says_what_then_happens() {
    let control = |name: &str| match name {
        "immutable" => "max-age=60, immutable",
        "stale" => "max-age=5",
        "error" => "max-age=5, stale-if-error=60",
        "while" => "max-age=5, stale-while-revalidate=60",
        "must" => "max-age=5, must-revalidate",
        "no-cache" => "no-cache",
        "private" => "private, max-age=60",
        _ => "max-age=60",
    };
    let names =
        ["fresh", "immutable", "stale", "error", "while", "must", "no-cache", "private", "varies"];
    let asked = [
        "x",
        "no-cache",
        "no-store",
        "max-age=1",
        "max-age=0",
        "min-fresh=100",
        "max-stale",
        "max-stale=1",
        "only-if-cached",
        "only-if-cached, max-age=1",
        "only-if-cached, max-stale",
    ];
    let origin = Origin::start(move |request| {
        let name = request.target[1..].split('/').next().unwrap_or_default();
        let tagged = !matches!(name, "error" | "varies");
        if tagged && request.header("if-none-match").is_some() {
            return Answer::status(304).header("ETag", "\"a\"");
        }
        let answer = Answer::ok("x").header("Cache-Control", control(name));
        let answer = if tagged { answer.header("ETag", "\"a\"") } else { answer };
        if name == "varies" { answer.header("Vary", "X-Kind") } else { answer }
    });
    let edge = Edge::before(&origin.url());
    // Each question is asked of what no other has touched.
    let mut questions = Vec::new();
    for kind in ["a", "b"] {
        for name in names {
            for control in asked {
                let place = control.replace([' ', ',', '='], "-");
                questions.push((kind, control, format!("/{name}/{kind}/{place}")));
            }
        }
    }
    for (_, _, target) in &questions {
        edge.get_with(target, &["X-Kind: a"]);
    }
    edge.advance(10);
    let mut taken = std::collections::BTreeSet::new();
    for (kind, control, target) in &questions {
        let fields = [format!("Cache-Control: {control}"), format!("X-Kind: {kind}")];
        let prefixed = fields.clone().map(|field| format!("X-Explain-{field}"));
        let url = format!("/explain?url=http://edge.test{target}");
        let prefixed: Vec<&str> = prefixed.iter().map(String::as_str).collect();
        let mut admin = crate::harness::Client::connect(edge.admin);
        let told = admin.request(Request {
            method: "GET",
            host: "localhost",
            target: &url,
            fields: &prefixed,
            body: b"",
        });
        let told: serde_json::Value = serde_json::from_str(told.text()).expect("JSON");
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let live = edge.get_with(target, &fields);
        let (said, status) = (&told["decision"], live.header("cache-status"));
        assert_eq!(said["act"], act(&live), "{target}: {said} {status}");
        if let Some(fwd) = said["fwd"].as_str() {
            // That a key is remembered as uncacheable is no part of the rules.
            let same = status.contains(&format!("fwd={fwd}")) || target.starts_with("/private");
            assert!(same, "{target}: {said} {status}");
        }
        taken.insert((said["act"].to_string(), said["reason"].to_string()));
    }
    assert!(taken.len() >= 12, "too few ways were taken: {taken:?}");
}

#[test]
fn a_response_to_a_get_with_content_is_never_shared() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()).fresh_for(60));
    let edge = Edge::before(&origin.url());
    let poisoned = send(&edge, "GET", "/a", b"evil");
    assert_eq!((poisoned.text(), poisoned.is_hit()), ("evil", false));
    assert!(!poisoned.header("cache-status").contains("stored"), "{poisoned:?}");
    let clean = edge.get("/a");
    assert_eq!((clean.text(), clean.is_hit()), ("", false), "{clean:?}");
    assert!(edge.get("/a").is_hit());
    // A stored response must not answer it either.
    assert_eq!(send(&edge, "GET", "/a", b"evil").text(), "evil");
    assert!(edge.get("/a").is_hit());
}

#[test]
fn variants_beyond_the_limit_are_forgotten_and_counted() {
    let origin = Origin::start(|request| {
        Answer::ok(request.header("x-kind").unwrap_or("none"))
            .header("Vary", "X-Kind")
            .fresh_for(60)
    });
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\ncache.variants_max = 2\n",
        origin.url()
    ));
    let ask = |kind: &str| edge.get_with("/a", &[&format!("X-Kind: {kind}")]).is_hit();
    assert_eq!(["a", "b", "c"].map(ask), [false; 3]);
    until("it is counted", || edge.metric("skerry_variants_dropped_total") >= 1.0);
    assert_eq!(["c", "b", "a"].map(ask), [true, true, false]);
}

#[test]
fn a_part_that_is_stored_apart_is_not_validated_for_the_whole() {
    let origin = Origin::start(|request| {
        let answer = match (request.header("range"), request.header("if-none-match")) {
            (_, Some(_)) => Answer::status(304),
            (Some("bytes=-3"), _) => Answer::part("789").header("Content-Range", "bytes 7-9/10"),
            _ => Answer::ok("0123456789"),
        };
        answer.header("ETag", "W/\"a\"").fresh_for(10)
    });
    let edge = Edge::before(&origin.url());
    let tail = || edge.get_with("/a", &["Range: bytes=-3"]);
    assert_eq!((tail().status, tail().text(), tail().is_hit()), (206, "789", true));
    edge.advance(20);
    // For the part itself it is.
    assert!(tail().header("cache-status").contains("detail=validated"));
    assert!(tail().is_hit());
    edge.advance(20);
    let whole = edge.get("/a");
    assert_eq!((whole.status, whole.text()), (200, "0123456789"), "{whole:?}");
    assert_eq!(
        origin
            .received()
            .last()
            .and_then(|request| request.header("if-none-match").map(str::to_owned)),
        None
    );
}
