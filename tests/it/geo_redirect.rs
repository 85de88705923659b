//! Redirects to the nearest region, at the socket.

use serde_json::Value;

use super::harness::{Answer, Edge, Origin, Request};

/// A node in Europe, and a region in the United States.
fn config(origin: &Origin) -> String {
    format!(
        r#"
[node]
region = "eu"
[guard]
trusted_proxies = ["127.0.0.0/8"]
[dns.nodes.fra]
region = "eu"
addresses = "192.0.2.1"
latitude = 50.1
longitude = 8.7
[dns.nodes.iad]
region = "us"
addresses = "198.51.100.1"
latitude = 39.0
longitude = -77.5
[pools.main]
origins = {:?}
[sites.www]
hosts = ["www.test", "eu.www.test", "us.www.test"]
geo_redirect = {{ eu = "EU.www.test", us = "us.www.test" }}
[[sites.www.rules]]
name = "here"
path_prefix = "/here"
geo_redirect = {{}}
"#,
        origin.url()
    )
}

/// Level 3 in the United States, Deutsche Telekom in Germany, and an address of nobody.
const AMERICAN: &str = "X-Forwarded-For: 4.4.4.4";
const GERMAN: &str = "X-Forwarded-For: 80.128.0.1";
const UNKNOWN: &str = "X-Forwarded-For: 10.0.0.1";

#[test]
fn a_client_far_away_is_redirected_to_the_region_nearest_to_it() {
    let origin = Origin::start(|_| Answer::ok("content").fresh_for(60));
    let edge = Edge::with(&config(&origin));
    let get = |host: &str, target: &str, fields: &[&str]| edge.connect().get(host, target, fields);
    let response = get("www.test:8080", "/a%20b?q=1", &[AMERICAN]);
    assert_eq!(response.status, 302, "{response:?}");
    assert_eq!(response.header("location"), "http://us.www.test:8080/a%20b?q=1");
    assert_eq!(response.header("cache-control"), "no-store");
    for (host, target, client) in [
        ("www.test", "/a", GERMAN),
        ("www.test", "/a", UNKNOWN),
        ("us.www.test", "/a", AMERICAN),
        ("us.www.test", "/a", GERMAN),
        ("www.test", "/here", AMERICAN),
    ] {
        let response = get(host, target, &[client]);
        assert_eq!((response.status, response.text()), (200, "content"), "{host} {client}");
    }
    // A stored response does not keep others from being redirected.
    assert_eq!(get("www.test", "/a", &[AMERICAN]).status, 302);
    let post = Request {
        method: "POST",
        host: "www.test",
        target: "/a",
        fields: &[AMERICAN],
        body: b"content",
    };
    assert_eq!(edge.connect().request(post).status, 200, "content is taken here");
    for (outcome, count) in
        [("redirected", 2.0), ("own_region", 1.0), ("unknown_place", 1.0), ("region_name", 2.0)]
    {
        let name = format!("skerry_geo_redirects_total{{outcome=\"{outcome}\"");
        assert_eq!(edge.metric(&name), count, "{outcome}");
    }
}

#[test]
fn a_region_that_drains_gets_no_clients_by_redirect() {
    let origin = Origin::start(|_| Answer::ok("content").fresh_for(60));
    let config = config(&origin);
    let edge = Edge::with(&config);
    let get = || edge.connect().get("www.test", "/", &[AMERICAN]).status;
    assert_eq!(get(), 302);
    let draining = config.replace("[dns.nodes.iad]", "[dns.nodes.iad]\nstate = \"draining\"");
    edge.reload(&draining).expect("no mistakes");
    assert_eq!(get(), 200);
}

#[test]
fn explain_says_where_a_client_is_redirected_and_why() {
    let origin = Origin::start(|_| Answer::ok("content").fresh_for(60));
    let edge = Edge::with(&config(&origin));
    let explain = |client: &str| -> Value {
        let target = format!("/explain?url=http://www.test/a&client={client}");
        serde_json::from_str(edge.admin("GET", &target, "").text()).expect("JSON")
    };
    let found = explain("4.4.4.4");
    assert_eq!(found["decision"]["location"], "http://us.www.test/a", "{found:#}");
    assert_eq!(found["decision"]["status"], 302);
    assert_eq!(found["geo_redirect"]["region"], "us");
    let found = explain("80.128.0.1");
    assert_eq!(found["geo_redirect"]["outcome"], "own_region", "{found:#}");
    assert_eq!(found["decision"]["act"], "forward");
}

#[test]
fn names_that_would_send_clients_to_and_fro_are_refused() {
    let origin = Origin::start(|_| Answer::ok("content"));
    let config = config(&origin);
    let edge = Edge::with(&config);
    let check = |text: &str, expected: &str| {
        let mistakes = edge.reload(text).expect_err("a mistake");
        assert!(mistakes.iter().any(|mistake| mistake.contains(expected)), "{mistakes:?}");
    };
    let unserved = config.replace("us = \"us.www.test\"", "us = \"us.else.test\"");
    check(&unserved, "no site serves \"us.else.test\"");
    let other = "[sites.other]\nhosts = \"us.else.test\"\ngeo_redirect = { eu = \"www.test\" }\n";
    check(&format!("{unserved}{other}"), "sends clients on");
    let port = config.replace("us = \"us.www.test\"", "us = \"us.www.test:443\"");
    check(&port, "without scheme and port");
}
