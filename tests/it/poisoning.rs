//! Cache poisoning: no request of one client, and no odd response to it, decides what other clients get.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Answer, Edge, Origin, Request};

/// Before `origin`, with one of the options of `cache.key` or `cache`.
fn edge(origin: &Origin, option: &str) -> Edge {
    Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\ncache.{option}\n",
        origin.url()
    ))
}

#[test]
fn a_parameter_counts_for_the_key_however_an_origin_may_read_its_name() {
    let origin = Origin::start(|request| Answer::ok(request.target.clone()).fresh_for(60));
    let only = edge(&origin, "key.query_only = [\"page_id\"]");
    let except = edge(&origin, "key.query_except = [\"utm_*\"]");
    let hidden = [
        (&only, "page%5Fid=2"),
        (&only, "PAGE_ID=2"),
        (&only, "page_id[]=2"),
        (&only, "page.id=2"),
        (&only, "x=1;page_id=2"),
        (&except, "utm_source=x;page_id=2"),
    ];
    for (number, (edge, hidden)) in hidden.into_iter().enumerate() {
        edge.get(&format!("/{number}?{hidden}"));
        let plain = edge.get(&format!("/{number}"));
        assert_eq!(plain.text(), format!("/{number}"), "{hidden}: {plain:?}");
        assert!(edge.get(&format!("/{number}?{hidden}")).is_hit(), "{hidden}");
    }
    for (edge, ignored) in [(&only, "x=1;y=2"), (&except, "utm_source=x;utm_id=2")] {
        edge.get(&format!("/a?{ignored}"));
        assert!(edge.get("/a").is_hit(), "{ignored}");
    }
}

#[test]
fn an_error_about_one_request_is_not_stored() {
    let origin = Origin::start(|request| {
        let bad = request.header("x-bad").and_then(|status| status.parse().ok());
        let answer = bad.map_or_else(|| Answer::ok("page"), Answer::status);
        answer.header("Cache-Control", "public, max-age=60")
    });
    let edge = Edge::before(&origin.url());
    for status in ["428", "429", "431", "511"] {
        let target = format!("/{status}");
        assert_eq!(
            edge.get_with(&target, &[&format!("X-Bad: {status}")]).status.to_string(),
            status
        );
        assert_eq!(edge.get(&target).text(), "page", "{status}");
        assert!(edge.get(&target).is_hit(), "{status}");
    }
}

/// An oversized or broken request of one client must not replace a page for all.
#[test]
fn a_range_of_statuses_does_not_apply_to_errors_about_one_request() {
    let origin = Origin::start(|request| {
        let bad = request.header("x-bad").and_then(|status| status.parse().ok());
        bad.map_or_else(|| Answer::ok("page"), Answer::status)
    });
    let edge = edge(&origin, "lifetimes.by_status = { 400-499 = \"1m\", 408 = \"1m\" }");
    let expected = [
        ("400", false),
        ("406", false),
        ("413", false),
        ("415", false),
        ("417", false),
        ("425", false),
        ("404", true),
        ("408", true),
    ];
    for (status, is_stored) in expected {
        let target = format!("/{status}");
        edge.get_with(&target, &[&format!("X-Bad: {status}")]);
        assert_eq!(edge.get(&target).is_hit(), is_stored, "{status}");
    }
}

#[test]
fn a_304_to_a_request_without_a_condition_is_a_502() {
    let origin = Origin::start(|_| Answer::status(304).header("ETag", "\"1\"").fresh_for(60));
    let edge = Edge::before(&origin.url());
    for method in ["GET", "HEAD", "POST"] {
        let request = Request { method, host: "edge.test", target: "/", fields: &[], body: b"" };
        let refused = edge.connect().request(request);
        assert_eq!(refused.status, 502, "{method} {refused:?}");
        assert_eq!(refused.header("proxy-status"), "skerry; error=http_protocol_error");
    }
    let line = &edge.log(3)[0];
    let cause = "sent 304 (Not Modified) to a request without a condition";
    let detail = line["failure_detail"].as_str();
    assert!(detail.is_some_and(|detail| detail.contains(cause)), "{line}");
}

/// The origin sends a 304 for another entity tag, and again when it is asked for the whole.
#[test]
fn a_stored_response_replaces_a_304_to_a_request_without_a_condition() {
    let is_stored = AtomicBool::new(false);
    let origin = Origin::start(move |_| match is_stored.swap(true, Ordering::SeqCst) {
        true => Answer::status(304).header("ETag", "\"2\""),
        false => {
            let answer = Answer::ok("old").header("ETag", "\"1\"");
            answer.header("Cache-Control", "max-age=1, stale-if-error=60")
        }
    });
    let edge = Edge::before(&origin.url());
    edge.get("/");
    edge.advance(5);
    let stale = edge.get("/");
    assert_eq!((stale.status, stale.text()), (200, "old"), "{stale:?}");
    assert!(origin.received().last().is_some_and(|last| last.header("if-none-match").is_none()));
    edge.advance(60);
    assert_eq!(edge.get("/").status, 502);
}

/// The origin is a program for CGI or WSGI, which take `X_Device` for `X-Device`.
#[test]
fn a_field_that_the_origin_takes_for_a_selecting_one_chooses_nobody_else_s_response() {
    let origin = Origin::start(|request| {
        let device = request.header("x-device").or(request.header("x_device")).unwrap_or("any");
        let answer = Answer::ok(device).fresh_for(60);
        if request.target == "/vary" { answer.header("Vary", "X-Device") } else { answer }
    });
    let keyed = edge(&origin, "key.headers = [\"X-Device\"]");
    let bypassed = edge(&origin, "bypass_headers = [\"X-Device\"]");
    for (edge, target) in [(Edge::before(&origin.url()), "/vary"), (keyed, "/"), (bypassed, "/")] {
        let disguised = edge.get_with(target, &["X_Device: tv"]);
        assert_eq!(disguised.text(), "tv");
        assert!(disguised.header("cache-status").ends_with("; detail=unkeyed"), "{disguised:?}");
        assert_eq!(edge.get(target).text(), "any", "{target}");
        assert!(edge.get_with(target, &["X_Other: tv"]).is_hit(), "{target}");
    }
}

#[test]
fn a_cookie_bypasses_the_cache_under_each_name_that_an_origin_may_read() {
    let origin = Origin::start(|request| {
        Answer::ok(request.header("cookie").unwrap_or("nobody")).fresh_for(60)
    });
    let edge = edge(&origin, "bypass_cookies = [\"user_*\"]");
    for (number, name) in ["user_id", "user.id", "user[id", "%75ser_id"].into_iter().enumerate() {
        let target = format!("/{number}");
        let own = edge.get_with(&target, &[&format!("Cookie: {name}=eve")]);
        assert!(own.header("cache-status").contains("detail=bypass-cookie"), "{name}: {own:?}");
        assert_eq!(edge.get(&target).text(), "nobody", "{name}");
    }
}

#[test]
fn a_query_that_is_too_long_replaces_no_page_that_is_stored_without_it() {
    let origin = Origin::start(|request| match request.target.len() {
        0..100 => Answer::ok("page"),
        _ => Answer::status(414),
    });
    let edge = edge(&origin, "key.query = \"none\"\ncache.lifetimes.fixed = \"1d\"");
    assert_eq!(edge.get(&format!("/a?{}", "x".repeat(100))).status, 414);
    assert_eq!(edge.get("/a").text(), "page");
    assert!(edge.get("/a").is_hit());
}

/// Load balancers pass on what clients send in `X-Forwarded-Host`.
#[test]
fn what_a_trusted_proxy_passes_on_of_the_host_and_the_scheme_reaches_no_origin() {
    let origin = Origin::start(|request| {
        let said = |name| request.header(name).unwrap_or("none");
        let url = format!("{}://{}", said("x-forwarded-proto"), said("x-forwarded-host"));
        Answer::ok(url).fresh_for(60)
    });
    let edge = Edge::with(&format!(
        "[guard]\ntrusted_proxies = [\"127.0.0.1\"]\n[pools.main]\norigins = {:?}\n\
         [sites.all]\nhosts = \"*\"\n",
        origin.url()
    ));
    let evil = "X-Forwarded-Host: evil.test";
    for (number, proto, expected) in [(1, "https", "https"), (2, "evil, https", "https")] {
        let proto = format!("X-Forwarded-Proto: {proto}");
        let response = edge.get_with(&format!("/{number}"), &[evil, &proto]);
        assert_eq!(response.text(), format!("{expected}://edge.test"));
    }
}
