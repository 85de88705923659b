//! Mirroring: copies of requests to another pool, of which the client never learns.

use crate::harness::{Answer, Edge, Gate, Origin, Request, until};

fn config(main: &Origin, shadow: &str, mirror: &str) -> String {
    format!(
        "[pools.main]\norigins = {:?}\n[pools.shadow]\norigins = {shadow:?}\n\
         [sites.all]\nhosts = \"*\"\npool = \"main\"\n\
         [sites.all.mirror]\npool = \"shadow\"\n{mirror}\n",
        main.url()
    )
}

fn main_origin() -> Origin {
    Origin::start(|request| match &*request.target {
        "/stored" => Answer::ok("main").fresh_for(60),
        _ => Answer::ok("main").header("Cache-Control", "no-store"),
    })
}

fn post(edge: &Edge, target: &str, fields: &[&str], body: &[u8]) -> String {
    let request = Request { method: "POST", host: "edge.test", target, fields, body };
    edge.connect().request(request).text().to_owned()
}

fn copies(edge: &Edge, outcome: &str) -> f64 {
    edge.metric(&format!("skerry_mirrored_requests_total{{outcome=\"{outcome}\""))
}

#[test]
fn forwarded_requests_are_copied_with_their_content_and_hits_are_not() {
    let (main, shadow) = (main_origin(), Origin::start(|_| Answer::status(500)));
    let edge = Edge::with(&config(&main, &shadow.url(), "body_max = \"1KiB\""));
    assert_eq!(edge.get("/passed").text(), "main");
    shadow.wait_for_requests(1);
    assert_eq!(edge.get("/stored").text(), "main");
    shadow.wait_for_requests(2);
    assert!(edge.get("/stored").is_hit());
    assert_eq!(post(&edge, "/sent", &["X-Field: 1"], b"content"), "main");
    shadow.wait_for_requests(3);
    let copy = shadow.received().pop().expect("a copy");
    assert_eq!((&*copy.method, &*copy.target, &*copy.body), ("POST", "/sent", &b"content"[..]));
    assert_eq!((copy.header("x-field"), copy.header("host")), (Some("1"), Some("edge.test")));
    assert_eq!(post(&edge, "/long", &[], &[b'x'; 2000]), "main");
    assert_eq!(copies(&edge, "too_long"), 1.0);
    until("all copies are answered", || copies(&edge, "answered") == 3.0);
    assert_eq!(shadow.request_count(), 3);
    // The client's responses alone are counted and logged.
    assert!(edge.log(5).iter().all(|line| line["status"] == 200 && line["pool"] != "shadow"));
    assert_eq!(edge.metric("skerry_responses_total{class=\"5xx\""), 0.0);
}

#[test]
fn a_client_waits_for_no_copy_and_few_copies_wait_for_a_pool() {
    let gate = Gate::default();
    let slow = gate.clone();
    let (main, shadow) = (main_origin(), Origin::start(move |_| Answer::ok("late").behind(&slow)));
    let edge = Edge::with(&config(&main, &shadow.url(), "in_flight_max = 2"));
    for _ in 0..5 {
        assert_eq!(edge.get("/passed").text(), "main");
    }
    assert_eq!(copies(&edge, "limit"), 3.0);
    shadow.wait_for_requests(2);
    gate.open();
    until("both copies are answered", || copies(&edge, "answered") == 2.0);
    assert_eq!(edge.get("/passed").text(), "main");
    until("there is place again", || copies(&edge, "answered") == 3.0);
}

#[test]
fn a_pool_of_copies_that_is_down_harms_no_client() {
    let (main, shadow) = (main_origin(), Origin::start(|_| Answer::ok("")));
    shadow.kill();
    let edge = Edge::with(&config(&main, &shadow.url(), ""));
    for _ in 0..3 {
        assert_eq!(edge.get("/passed").text(), "main");
    }
    until("all copies have failed", || copies(&edge, "failed") == 3.0);
}

#[test]
fn a_share_of_the_requests_is_copied() {
    let (main, shadow) = (main_origin(), Origin::start(|_| Answer::ok("")));
    let edge = Edge::with(&config(&main, &shadow.url(), "percent = 25\nin_flight_max = 1000"));
    let mut client = edge.connect();
    for _ in 0..400 {
        client.get("edge.test", "/passed", &[]);
    }
    until("all copies are answered", || {
        copies(&edge, "answered") as usize == shadow.request_count()
    });
    let copied = shadow.request_count();
    assert!((50..=160).contains(&copied), "{copied} of 400, expected about 100");
    edge.reload(&config(&main, &shadow.url(), "percent = 0")).expect("a good configuration");
    client.get("edge.test", "/passed", &[]);
    assert_eq!(shadow.request_count(), copied);
}
