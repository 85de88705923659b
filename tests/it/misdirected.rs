//! Requests on a connection whose certificate is not for their host (RFC 9110 §7.4, §15.5.20).

use std::process::Command;

use crate::harness::authority::{Authority, text};
use crate::harness::{Answer, Edge, Origin};

/// A node with certificates for `a.test` (the default), `b.test` and `*.c.test`.
fn node(origin: &Origin, authority: &Authority, more: &str) -> Edge {
    let mut config =
        format!("[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n{more}\n", origin.url());
    for name in ["a.test", "b.test", "*.c.test"] {
        let (certificate, key) = authority.issue(name);
        let (certificate, key) = (text(&certificate), text(&key));
        config += &format!("[[tls.certificates]]\ncertificate = {certificate:?}\nkey = {key:?}\n");
    }
    Edge::with_tls(&config)
}

/// The status of a request for `host` on a connection that asked for `server_name`, or for none.
fn status(edge: &Edge, version: &str, server_name: Option<&str>, host: &str) -> u16 {
    let address = edge.https.expect("TLS");
    let authority = server_name.unwrap_or("127.0.0.1");
    let (url, host) = (format!("https://{authority}:{}/", address.port()), format!("Host: {host}"));
    let to = format!("{authority}:{0}:127.0.0.1:{0}", address.port());
    let output = Command::new("curl")
        .args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", version])
        .args(["--connect-to", &to, "-H", &host, &url])
        .output()
        .unwrap_or_else(|error| panic!("curl: {error}; tests need it"));
    String::from_utf8_lossy(&output.stdout).parse().expect("a status")
}

#[test]
fn a_host_that_another_certificate_covers_is_a_421() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let authority = Authority::new();
    let edge = node(&origin, &authority, "");
    for version in ["--http1.1", "--http2"] {
        let check = |server_name: Option<&str>, host: &str, expected: u16| {
            let found = status(&edge, version, server_name, host);
            assert_eq!(found, expected, "{version}: {host} on a connection to {server_name:?}");
        };
        check(Some("a.test"), "a.test", 200);
        check(Some("a.test"), "A.test.", 200);
        check(Some("a.test"), "b.test", 421);
        check(Some("a.test"), "x.c.test", 421);
        check(Some("x.c.test"), "y.c.test", 200);
        check(Some("x.c.test"), "x.y.c.test", 200);
        // The client was shown the default certificate, which covers a.test.
        check(Some("unknown.test"), "a.test", 200);
        check(Some("unknown.test"), "b.test", 421);
        // No certificate covers these hosts, and a client without SNI did not ask for one.
        check(Some("a.test"), "unknown.test", 200);
        check(None, "b.test", 200);
    }
    let refused = "skerry_requests_refused_total{reason=\"misdirected\"";
    assert_eq!(edge.metric(refused), 6.0);
    assert_eq!(edge.log(20).iter().filter(|line| line["failure"] == "misdirected").count(), 6);
}

#[test]
fn it_is_served_where_that_is_set_and_to_trusted_proxies() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let authority = Authority::new();
    let edge = node(&origin, &authority, "[tls]\nrefuse_misdirected = false");
    assert_eq!(status(&edge, "--http2", Some("a.test"), "b.test"), 200);
    let edge = node(&origin, &authority, "[guard]\ntrusted_proxies = [\"127.0.0.1\"]");
    assert_eq!(status(&edge, "--http2", Some("a.test"), "b.test"), 200);
}
