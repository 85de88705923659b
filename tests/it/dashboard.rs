//! The dashboard: its data at the socket, and its pages in a browser.

use std::process::Command;

use serde_json::Value;

use crate::clients::{installed, script};
use crate::harness::authority::Authority;
use crate::harness::{Answer, Edge, Origin, until};

fn overview(edge: &Edge, query: &str) -> Value {
    let response = edge.admin("GET", &format!("/overview{query}"), "");
    assert_eq!(response.status, 200, "{}", response.text());
    serde_json::from_str(response.text()).expect("JSON")
}

/// The value of a column in the interval `now`.
fn now(overview: &Value, column: &str) -> u64 {
    let columns = overview["columns"].as_array().expect("columns");
    let at = columns.iter().position(|name| name == column).expect("the column");
    overview["now"][at].as_u64().expect("a number")
}

#[test]
fn the_overview_counts_hits_by_requests_and_by_bytes() {
    let origin = Origin::start(|_| Answer::ok("1234567890").fresh_for(60));
    let edge = Edge::before(&origin.url());
    (0..4).for_each(|_| assert_eq!(edge.get("/").status, 200));
    let seen = overview(&edge, "?top=5");
    let counts = ["requests", "lookups", "hits", "bytes", "forwarded_bytes", "server_errors"];
    assert_eq!(counts.map(|column| now(&seen, column)), [4, 4, 3, 40, 10, 0]);
    assert_eq!(seen["reasons"], serde_json::json!([["absent", 1]]));
    assert_eq!(seen["node"], "edge");
    assert_eq!(seen["alarms"], serde_json::json!([]));
    assert_eq!(seen["intervals"], serde_json::json!([]), "the first comes after ten seconds");
    let brief = overview(&edge, "?brief=true");
    assert_eq!(brief["node"], "edge");
    assert_eq!(brief["reasons"], Value::Null);
    let wrong = edge.admin("GET", "/overview?since=soon", "");
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("expected a whole number"), "{}", wrong.text());
}

#[test]
fn the_overview_names_the_most_requested_urls() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let edge = Edge::before(&origin.url());
    // One of sixteen hits is counted.
    let mut client = edge.connect();
    until("a popular URL is known", || {
        (0..50).for_each(|_| _ = client.get("edge.test", "/popular", &[]));
        overview(&edge, "?top=5")["top"][0][0] == "http://edge.test/popular"
    });
    assert_eq!(overview(&edge, "")["top"], Value::Null, "only where it is asked for");
}

#[test]
fn each_site_has_its_requests_hits_and_errors() {
    let origin = Origin::start(|_| Answer::ok("12345").fresh_for(60));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.a]\nhosts = \"edge.test\"\n\
         [[sites.a.rules]]\npath = \"/gone\"\nrespond.status = 410\n[sites.b]\nhosts = \"b.test\"\n",
        origin.url()
    ));
    (0..3).for_each(|_| _ = edge.get("/x"));
    edge.get("/gone");
    let answer = edge.admin("GET", "/sites", "");
    let seen: Value = serde_json::from_str(answer.text()).expect("JSON");
    let columns =
        ["site", "requests", "hits", "bytes", "hit_bytes", "client_errors", "server_errors"];
    assert_eq!(seen["columns"], serde_json::json!(columns));
    let site = |name: &str| {
        let sites = seen["sites"].as_array().expect("a list");
        sites.iter().find(|site| site[0] == name).expect("the site").clone()
    };
    assert_eq!(site("a"), serde_json::json!(["a", 4, 2, 15, 10, 1, 0]));
    assert_eq!(site("b"), serde_json::json!(["b", 0, 0, 0, 0, 0, 0]));
}

#[test]
fn errors_and_a_lost_origin_are_shown_with_their_cause() {
    let origin = Origin::start(|_| Answer::ok("x"));
    let url = origin.url();
    origin.kill();
    let edge = Edge::before(&url);
    (0..30).for_each(|_| assert!(edge.get("/page?a=1").status >= 502));
    let seen = overview(&edge, "");
    let error = seen["errors"].as_array().and_then(|errors| errors.last()).expect("an error");
    assert_eq!(error["request"], "GET http://edge.test/page?a=1");
    assert_eq!(error["failure"], "connection_refused");
    assert!(error["origin"].as_str().is_some_and(|origin| origin.starts_with("main ")), "{error}");
    let causes: Vec<_> =
        seen["alarms"].as_array().expect("a list").iter().map(|it| &it["cause"]).collect();
    assert_eq!(causes[0], "pool main: no origin is up");
    assert_eq!(causes[1], "100 % of the responses of the last minute were errors (5xx)");
}

#[test]
fn a_certificate_near_its_end_is_an_alarm() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("edge.test");
    let edge = Edge::with_tls(&format!(
        "[sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n\
         [[tls.certificates]]\ncertificate = {certificate:?}\nkey = {key:?}\n"
    ));
    let answer = edge.admin("GET", "/certificates", "");
    let seen: Value = serde_json::from_str(answer.text()).expect("JSON");
    assert_eq!(seen["certificates"][0]["names"], serde_json::json!(["edge.test"]));
    assert_eq!(seen["certificates"][0]["self_signed"], false);
    let left_ms = seen["certificates"][0]["until_ms"].as_u64().expect("a time")
        - seen["now_ms"].as_u64().expect("a time");
    edge.advance(left_ms / 1000 + 5);
    let alarm = &overview(&edge, "")["alarms"][0];
    assert_eq!(alarm["cause"], "the certificate of edge.test has expired");
    assert_eq!(alarm["urgent"], true);
}

#[test]
fn every_view_works_in_a_browser_wide_and_narrow_light_and_dark() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let edge = Edge::with_tls(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        origin.url()
    ));
    (0..20).for_each(|i| _ = edge.get(&format!("/{}", i % 3)));
    edge.purge("/1");
    let output = Command::new("node")
        .arg(script("dashboard.mjs"))
        .arg(installed("."))
        .arg(format!("http://{}/", edge.admin))
        // A folder for pictures of each view, to look at.
        .args(std::env::var_os("SKERRY_PICTURES"))
        .output()
        .expect("node runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["errors"], serde_json::json!([]), "console and content security policy");
    assert_eq!(found["others"], serde_json::json!([]), "nothing is loaded from elsewhere");
    assert_eq!(found["overflow"], serde_json::json!([]), "no page is wider than its window");
    assert_eq!(found["inaccessible"], serde_json::json!([]), "screen readers and keyboards");
    let bytes = found["bytes"].as_u64().expect("a number");
    assert!(bytes > 20_000 && bytes < 150_000, "{bytes} bytes");
    for (view, text) in [
        ("overview", "absent"),
        ("sites", "all"),
        ("origins", "1 of 1 usable"),
        ("certificates", "self-signed"),
        ("purges", "1/1"),
        ("origins", "origins usable"),
        ("fleet", "edge (this node)"),
        ("explain", "A hit\n"),
        ("explain", "Key\nhttp://edge.test/0\n"),
        ("explain", "60 s, from max-age"),
    ] {
        let shown = found["texts"][view].as_str().expect("a text");
        assert!(shown.contains(text), "{view}: {shown}");
    }
}
