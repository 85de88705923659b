//! Shared responses at the socket: collapsed requests, variants, content codings and purges. Unit tests of
//! single rules are in `src/cache`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Answer, Client, Edge, Gate, Origin, until};

#[test]
fn a_thousand_requests_for_a_cold_key_are_one_to_the_origin() {
    let gate = Gate::default();
    let behind = gate.clone();
    let body = vec![b'x'; 300_000];
    let answer = body.clone();
    let origin = Origin::start(move |_| Answer::ok(answer.clone()).fresh_for(60).behind(&behind));
    let edge = Edge::before(&origin.url());
    let mut clients: Vec<Client> = (0..1000).map(|_| edge.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /cold HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    }
    until("all have asked", || edge.metric("skerry_requests_total") == 1000.0);
    gate.open();
    for client in &mut clients {
        let response = client.read(false);
        assert!(response.is_complete && response.body == body);
    }
    assert_eq!(origin.request_count(), 1);
    assert_eq!(edge.metric("skerry_requests_collapsed_total"), 999.0);
}

#[test]
fn requests_for_an_uncacheable_response_are_not_serialized() {
    let origin = Origin::start(|_| Answer::ok("mine").header("Cache-Control", "private"));
    let edge = Edge::before(&origin.url());
    let mut clients: Vec<Client> = (0..50).map(|_| edge.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /mine HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    }
    for client in &mut clients {
        let response = client.read(false);
        assert_eq!((response.text(), response.is_hit()), ("mine", false));
    }
    assert_eq!(origin.request_count(), 50);
}

#[test]
fn a_purged_url_is_a_miss_and_others_stay_hits() {
    let count = AtomicUsize::new(0);
    let origin = Origin::start(move |_| {
        Answer::ok(format!("{}", count.fetch_add(1, Ordering::SeqCst))).fresh_for(60)
    });
    let edge = Edge::before(&origin.url());
    let (a, b) = (edge.get("/a").text().to_owned(), edge.get("/b").text().to_owned());
    assert!(edge.get("/a").is_hit() && edge.get("/b").is_hit());
    let receipt = edge.purge("/a");
    assert_eq!(receipt.status, 200, "{receipt:?}");
    let after = edge.get("/a");
    assert!(!after.is_hit() && after.text() != a);
    assert!(after.header("cache-status").contains("detail=purged"), "{after:?}");
    assert!(edge.get("/b").is_hit());
    assert_eq!(edge.get("/b").text(), b);
    assert!(edge.get("/a").is_hit());
    // However the URL is written.
    let order = r#"{"urls": ["http://EDGE.test:80/x/../a"]}"#;
    assert_eq!(edge.admin("POST", "/purge", order).status, 200);
    assert!(!edge.get("/a").is_hit());
}

#[test]
fn a_fill_that_began_before_a_purge_is_not_fresh_after_it() {
    let gate = Gate::default();
    let (behind, count) = (gate.clone(), AtomicUsize::new(0));
    let origin = Origin::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::ok("before").fresh_for(60).behind(&behind),
        _ => Answer::ok("after!").fresh_for(60),
    });
    let edge = Edge::before(&origin.url());
    let mut early = edge.connect();
    early.send(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    origin.wait_for_requests(1);
    assert_eq!(edge.purge("/").status, 200);
    gate.open();
    assert_eq!(early.read(false).text(), "before");
    assert_eq!(edge.get("/").text(), "after!");
}

#[test]
fn vary_keeps_languages_apart() {
    let origin = Origin::start(|request| {
        let language = request.header("accept-language").unwrap_or("none").to_owned();
        Answer::ok(language).header("Vary", "Accept-Language").fresh_for(60)
    });
    let edge = Edge::before(&origin.url());
    for hits in [false, true] {
        for language in ["de", "fr"] {
            let field = format!("Accept-Language: {language}");
            let response = edge.get_with("/", &[&field]);
            assert_eq!((response.text(), response.is_hit()), (language, hits));
        }
        assert_eq!(edge.get("/").text(), "none");
    }
    assert_eq!(origin.request_count(), 3);
}

/// Decodes with the program that the coding comes from.
fn decoded(program: &str, bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; tests need it"));
    let mut input = child.stdin.take().expect("a pipe");
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("it wrote").expect("it read all");
    assert!(output.status.success(), "{program}: {}", output.status);
    output.stdout
}

#[test]
fn responses_are_coded_as_the_client_can_read() {
    let text = "Skerry, a rocky island. ".repeat(20_000);
    let body = text.clone();
    let origin = Origin::start(move |_| {
        Answer::ok(body.clone()).header("Content-Type", "text/plain").fresh_for(60)
    });
    let edge = Edge::before(&origin.url());
    for _ in 0..2 {
        for (accepted, coding, program) in [
            ("zstd", "zstd", "zstd"),
            ("br", "br", "brotli"),
            ("gzip", "gzip", "gzip"),
            ("gzip;q=0.5, br", "br", "brotli"),
        ] {
            let response = edge.get_with("/", &[&format!("Accept-Encoding: {accepted}")]);
            assert_eq!(response.header("content-encoding"), coding, "{accepted}");
            assert!(response.header("vary").to_lowercase().contains("accept-encoding"));
            assert!(response.is_complete && response.body.len() < text.len() / 10, "{accepted}");
            assert_eq!(decoded(program, &response.body), text.as_bytes(), "{accepted}");
        }
        for accepted in ["identity", "", "deflate", "gzip;q=0"] {
            let response = edge.get_with("/", &[&format!("Accept-Encoding: {accepted}")]);
            assert_eq!(response.header("content-encoding"), "", "{accepted}");
            assert!(response.body == text.as_bytes(), "{accepted}");
        }
    }
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn a_range_is_served_from_the_stored_response() {
    let body: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let whole = body.clone();
    let origin =
        Origin::start(move |_| Answer::ok(whole.clone()).fresh_for(60).header("ETag", "\"1\""));
    let edge = Edge::before(&origin.url());
    edge.get("/");
    for (range, expected) in [
        ("0-9", 0..10),
        ("999990-", 999_990..1_000_000),
        ("-5", 999_995..1_000_000),
        ("300000-600000", 300_000..600_001),
    ] {
        let response = edge.get_with("/", &[&format!("Range: bytes={range}")]);
        assert_eq!(response.status, 206, "{range}");
        assert!(response.body == body[expected], "{range}");
    }
    assert_eq!(edge.get_with("/", &["Range: bytes=2000000-"]).status, 416);
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn a_response_for_one_client_is_given_to_no_other() {
    let count = AtomicUsize::new(0);
    let origin = Origin::start(move |request| {
        let answer = Answer::ok(format!("{}", count.fetch_add(1, Ordering::SeqCst)));
        match request.target.as_str() {
            "/cookie" => answer.fresh_for(60).header("Set-Cookie", "id=1"),
            "/private" => answer.header("Cache-Control", "Private, max-age=60"),
            "/no-store" => answer.header("Cache-Control", "NO-STORE, max-age=60"),
            _ => answer.fresh_for(60),
        }
    });
    let edge = Edge::before(&origin.url());
    for (target, fields) in [
        ("/cookie", &[][..]),
        ("/private", &[]),
        ("/no-store", &[]),
        ("/authorized", &["Authorization: Basic eDp5"]),
    ] {
        let first = edge.get_with(target, fields);
        let second = edge.get(target);
        assert!(!second.is_hit(), "{target}: {second:?}");
        assert_ne!(first.text(), second.text(), "{target}");
    }
}

#[test]
fn explain_says_who_is_not_let_in_and_which_rate_counts() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n\
         [[sites.all.rules]]\npath = \"/inside\"\n\
         access = {{ allow = [\"10.0.0.0/8\"], deny = [\"10.9.0.0/16\"] }}\n\
         [[sites.all.rules]]\npath = \"/de\"\naccess.allow_countries = [\"DE\"]\n\
         [[sites.all.rules]]\npath = \"/post\"\naccess.methods = [\"POST\"]\n\
         [[sites.all.rules]]\nname = \"slow\"\npath = \"/limited\"\n\
         rate = {{ per_second = 0.001, burst = 2 }}\n\
         [[sites.all.rules]]\npath = \"/moved\"\nredirect.location = \"/a\"\n",
        origin.url()
    ));
    let told = |target: &str| -> serde_json::Value {
        let answer = edge.admin("GET", &format!("/explain?url=http://edge.test{target}"), "");
        serde_json::from_str(answer.text()).expect("JSON")
    };
    let refused = |target: &str, status: u16, option: &str, entry: Option<&str>| {
        let told = told(target);
        let (access, decision) = (&told["access"], &told["decision"]);
        assert_eq!((&decision["act"], &decision["reason"]), (&"refuse".into(), &"denied".into()));
        assert_eq!(decision["status"], status, "{told}");
        assert_eq!((&access["admitted"], &access["option"]), (&false.into(), &option.into()));
        assert_eq!(access["entry"].as_str(), entry, "{told}");
    };
    refused("/inside&client=192.0.2.1", 403, "access.allow", None);
    refused("/inside&client=10.9.1.1", 403, "access.deny", Some("10.9.0.0/16"));
    refused("/de&country=FR", 403, "access.allow_countries", None);
    refused("/post", 405, "access.methods", None);
    let open = told("/inside");
    assert_eq!(open["access"]["not_judged"], serde_json::json!(["access.allow", "access.deny"]));
    assert_eq!(told("/de")["access"]["not_judged"][0], "access.allow_countries");
    assert!(
        open["access"]["admitted"].is_null(),
        "an option that is not judged may refuse: {open}"
    );
    for admitted in ["/inside&client=10.1.1.1", "/de&country=DE"] {
        let told = told(admitted);
        assert_eq!(
            (&told["access"]["admitted"], &told["decision"]["act"]),
            (&true.into(), &"forward".into())
        );
    }
    let limited = "/limited&client=127.0.0.1";
    for _ in 0..5 {
        let told = told(limited);
        let rate = &told["rate"];
        assert_eq!((&rate["rule"], &rate["burst"]), (&"slow".into(), &2.into()), "{told}");
        assert_eq!((&rate["admitted"], &rate["per_second"]), (&true.into(), &0.001.into()));
    }
    assert_eq!((edge.get("/limited").status, edge.get("/limited").status), (200, 200));
    let over = told(limited);
    assert_eq!(over["decision"]["reason"], "rate-limited", "{over}");
    assert_eq!(
        (&over["decision"]["status"], &over["rate"]["admitted"]),
        (&429.into(), &false.into())
    );
    assert_eq!(told("/limited&client=192.0.2.1")["decision"]["act"], "hit");
    assert!(told("/limited")["rate"]["admitted"].is_null());
    let moved = told("/moved");
    assert_eq!(
        (&moved["decision"]["status"], &moved["decision"]["location"]),
        (&302.into(), &"/a".into()),
        "{moved}"
    );
    let pool = told("/de&country=DE");
    assert_eq!((&pool["pool_origins"], &pool["pool_origins_down"]), (&1.into(), &0.into()));
    assert_eq!(
        (&moved["decision"]["act"], &moved["decision"]["reason"]),
        (&"answer".into(), &"answered-here".into())
    );
}

#[test]
fn explain_says_whether_it_would_be_a_hit_and_touches_nothing() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let edge = Edge::before(&origin.url());
    let explain = || edge.admin("GET", "/explain?url=http://edge.test/page", "").text().to_owned();
    let before = explain();
    assert!(before.contains("absent") && before.contains("\"all\""), "{before}");
    assert_eq!(origin.request_count(), 0);
    edge.get("/page");
    let after = explain();
    assert_ne!(before, after);
    assert!(!after.contains("\"absent\""), "{after}");
}
