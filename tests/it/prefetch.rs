//! Fetches without a client's request: `POST /prefetch`, and purges with `refresh`.

use serde_json::Value;

use crate::harness::{Answer, Edge, Origin, until};

#[test]
fn a_prefetched_response_is_a_hit_for_its_first_client() {
    let origin = Origin::start(|request| match request.target.as_str() {
        "/sitemap.xml" => Answer::ok(
            "<urlset><url><loc>http://edge.test/2?a&amp;b</loc></url>\
             <url><loc>http://other.test/</loc></url></urlset>",
        ),
        _ => Answer::ok("x").fresh_for(3600),
    });
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.www]\nhosts = \"edge.test\"\n",
        origin.url()
    ));
    let prefetch = |body: &str| {
        let answer = edge.admin("POST", "/prefetch", body);
        (answer.status, answer.text().to_owned())
    };
    let (status, told) = prefetch("{\"url\": \"http://edge.test/1\"}");
    assert_eq!(status, 202, "{told}");
    until("it is fetched", || edge.metric("skerry_prefetches_total{outcome=\"fetched\"") == 1.0);
    assert!(edge.get("/1").is_hit());
    let (status, told) = prefetch("{\"sitemap\": \"http://edge.test/sitemap.xml\"}");
    assert_eq!(status, 202, "{told}");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((&told["queued"], &told["not_of_this_node"]), (&1.into(), &1.into()), "{told}");
    until("it is fetched", || edge.metric("skerry_prefetches_total{outcome=\"fetched\"") == 2.0);
    assert!(edge.get("/2?a&b").is_hit());
    let check = |body: &str, status: u16, expected: &str| {
        let (got, told) = prefetch(body);
        assert!(got == status && told.contains(expected), "{body}: {got} {told}");
    };
    check("{}", 400, "nothing to fetch");
    check("{\"uri\": \"x\"}", 400, r#"unknown field \"uri\""#);
    check("{\"url\": \"/1\"}", 400, "expected an absolute http or https URL");
    check("{\"url\": \"http://other.test/\"}", 400, "no site of this node has this host");
    check("{\"sitemap\": \"http://edge.test/1\"}", 400, "has no <loc>");
}

#[test]
fn popular_purged_responses_are_fetched_again() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(3600));
    let edge = Edge::before(&origin.url());
    edge.get("/rare");
    for _ in 0..400 {
        edge.get("/popular");
    }
    let order = "{\"prefix\": \"http://edge.test/\", \"refresh\": 1}";
    assert_eq!(edge.admin("POST", "/purge", order).status, 200);
    until("it is fetched", || edge.metric("skerry_prefetches_total{outcome=\"fetched\"") == 1.0);
    assert!(edge.get("/popular").is_hit());
    assert!(!edge.get("/rare").is_hit());
    // A purged URL is fetched again without a client's request.
    let order = "{\"url\": \"http://edge.test/rare\", \"refresh\": 1}";
    assert_eq!(edge.admin("POST", "/purge", order).status, 200);
    until("it is fetched", || edge.metric("skerry_prefetches_total{outcome=\"fetched\"") == 2.0);
    assert!(edge.get("/rare").is_hit());
}

#[test]
fn access_rules_do_not_apply_to_requests_of_the_node() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(3600));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.www]\nhosts = \"edge.test\"\naccess.deny = [\"0.0.0.0/0\"]\n",
        origin.url()
    ));
    assert_eq!(edge.get("/1").status, 403);
    let body = "{\"urls\": [\"http://edge.test/1\", \"https://edge.test/2\"]}";
    assert_eq!(edge.admin("POST", "/prefetch", body).status, 202);
    until("both are fetched", || edge.metric("skerry_prefetches_total{outcome=\"fetched\"") == 2.0);
    let explained =
        |url: &str| edge.admin("GET", &format!("/explain?url={url}"), "").text().to_owned();
    assert!(
        explained("https://edge.test/2").contains("\"hit\""),
        "{}",
        explained("https://edge.test/2")
    );
    let lines = edge.log(3);
    let agents = lines.iter().filter_map(|line| line["user_agent"].as_str());
    assert_eq!(agents.filter(|agent| agent.contains("(prefetch)")).count(), 2, "{lines:?}");
}
