//! `Server-Timing`: who sees it, and which parts it has.

use std::path::Path;

use crate::harness::{Answer, Edge, Origin, Response};

const DEBUG: &str = "Skerry-Debug: 0123456789abcdef";

/// The value of `Server-Timing` without the durations: `lookup, total`. Whether a connection of the worker is open
/// depends on which worker has the request, so `connect` is left out.
fn parts(response: &Response) -> String {
    let value = response.header("server-timing");
    let names = value.split(", ").map(|part| part.split(";dur=").next().unwrap_or_default());
    names.filter(|name| *name != "connect").collect::<Vec<_>>().join(", ")
}

fn key_in(folder: &Path) -> String {
    let key = folder.join("debug.key");
    std::fs::write(&key, "0123456789abcdef\n").expect("a file");
    format!("[guard]\ndebug_key_file = {:?}\n", key.display().to_string())
}

#[test]
fn server_timing_is_for_requests_with_the_key_and_for_rules_that_show_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let origin = Origin::start(|request| {
        assert_eq!(request.header("skerry-debug"), None);
        Answer::ok("x").fresh_for(60).header("etag", "\"1\"")
    });
    let edge = Edge::with(&format!(
        "{}[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n\
         [[sites.all.rules]]\npath = \"/shown\"\nserver_timing = true\n\
         [[sites.all.rules]]\npath = \"/no\"\naccess.deny = \"0.0.0.0/0\"\n",
        key_in(folder.path()),
        origin.url()
    ));
    let timed = |target: &str, fields: &[&str]| parts(&edge.get_with(target, fields));
    assert_eq!(timed("/a", &[]), "");
    assert_eq!(timed("/b", &["Skerry-Debug: 0123456789abcdeF"]), "");
    assert_eq!(timed("/c", &[DEBUG]), "cache;desc=\"uri-miss absent\", lookup, origin, total");
    assert_eq!(timed("/c", &[DEBUG]), "cache;desc=\"hit\", lookup, total");
    assert_eq!(timed("/c", &[]), "", "nothing of it is stored");
    let not_modified = edge.get_with("/c", &[DEBUG, "If-None-Match: \"1\""]);
    assert_eq!(
        (not_modified.status, &*parts(&not_modified)),
        (304, "cache;desc=\"hit\", lookup, total")
    );
    assert_eq!(timed("/no", &[DEBUG]), "cache;desc=\"none denied\", lookup, total");
    assert_eq!(timed("/no", &[]), "");
    assert_eq!(timed("/shown", &[]), "cache;desc=\"uri-miss absent\", lookup, origin, total");
    let first = edge.get_with("/new", &[DEBUG]).header("server-timing");
    assert!(first.contains(", total;dur="), "{first}");
    for line in edge.log(10) {
        assert!(!line.to_string().contains("0123456789abcdef"), "{line}");
    }
}

#[test]
fn a_failed_request_states_the_time_that_its_origin_took() {
    let folder = tempfile::tempdir().expect("a folder");
    let origin = Origin::start(|_| Answer::ok("x"));
    let (url, key) = (origin.url(), key_in(folder.path()));
    origin.kill();
    let edge =
        Edge::with(&format!("{key}[pools.main]\norigins = {url:?}\n[sites.all]\nhosts = \"*\"\n"));
    let failed = edge.get_with("/", &[DEBUG]);
    assert_eq!(
        (failed.status, &*parts(&failed)),
        (502, "cache;desc=\"uri-miss absent\", lookup, origin, total")
    );
}

#[test]
fn recoded_content_states_the_time_of_its_coding() {
    let folder = tempfile::tempdir().expect("a folder");
    let origin = Origin::start(|_| {
        Answer::ok("x".repeat(20_000)).fresh_for(60).header("content-type", "text/plain")
    });
    let key = key_in(folder.path());
    let edge = Edge::with(&format!(
        "{key}[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        origin.url()
    ));
    let gzip = "Accept-Encoding: gzip";
    let timed = || parts(&edge.get_with("/", &[DEBUG, gzip]));
    assert_eq!(timed(), "cache;desc=\"uri-miss absent\", lookup, origin, coding, total");
}

/// A response that is kept as it is for one client has a form for the others.
#[test]
fn a_hit_of_a_form_waits_for_no_coding_after_a_request_that_forbids_it() {
    let origin = Origin::start(|_| {
        Answer::ok("x".repeat(5000)).fresh_for(60).header("content-type", "text/plain")
    });
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n\
         [[sites.all.rules]]\npath = \"/\"\nserver_timing = true\n",
        origin.url()
    ));
    let gzip = "Accept-Encoding: gzip";
    edge.get("/");
    for _ in 0..2 {
        let coded = edge.get_with("/", &[gzip]);
        assert_eq!(parts(&coded), "cache;desc=\"hit\", lookup, total");
        assert_eq!(coded.header("content-encoding"), "gzip");
        let kept = edge.get_with("/", &[gzip, "Cache-Control: no-transform"]);
        assert_eq!(kept.header("content-encoding"), "");
    }
}
