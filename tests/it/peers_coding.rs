//! Content coding in a region: the owner of a key codes its response once, for the clients of all nodes. Skipped without
//! `redis-server`.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;

use crate::coding::{accept, decoded, html, text};
use crate::harness::{Answer, Edge, Gate, Origin, Region, Request, Response, exchange, until};

const CODINGS: [&str; 3] = ["br", "gzip", "zstd"];
/// A node codes by itself what it copies for the first time.
const UNCOPIED: &str = "copy_after = 0\n";

/// An origin that sends text of the length that ends the target, which tells what it is about: `/a-5000`.
fn sized(target: &str) -> Vec<u8> {
    text(target.rsplit('-').next().and_then(|bytes| bytes.parse().ok()).expect("a number"))
}

fn sized_origin() -> Origin {
    Origin::start(|request| html(sized(&request.target)))
}

fn encoded_count(region: &Region, coding: &str) -> f64 {
    let name = format!("skerry_bodies_encoded_total{{coding=\"{coding}\"");
    region.nodes.iter().map(|node| node.metric(&name)).sum()
}

/// The position of a node that does not own this target.
fn asker(region: &Region, target: &str) -> usize {
    usize::from(region.owner_of(target) == 0)
}

fn check_content(answer: &Response, target: &str, coding: &str) {
    let found = answer.header("content-encoding");
    assert_eq!((answer.status, &*found), (200, coding), "{target}: {:?}", answer.headers);
    assert!(answer.is_complete, "{target} {coding}");
    assert!(decoded(coding, &answer.body) == sized(target), "{target} {coding}");
    assert_eq!(answer.header("vary"), "Accept-Encoding", "{target} {coding}");
}

#[test]
fn a_cold_region_codes_each_response_once_for_each_coding() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |request| html(sized(&request.target)).behind(&held));
    let Some(region) = Region::with_peers(3, &origin, UNCOPIED, "") else { return };
    let targets = ["/a-300000", "/b-300000", "/c-40000", "/d-40000", "/e-20000", "/f-1500000"];
    let ask = |node: &Edge, target: &str, coding: &str| {
        let answer = match coding {
            "" => exchange(node.http, "edge.test", target, &[]),
            coding => exchange(node.http, "edge.test", target, &[&accept(coding)]),
        };
        check_content(&answer, target, coding);
    };
    std::thread::scope(|scope| {
        for target in targets {
            for node in &region.nodes {
                for coding in ["br", "", "gzip", "br", "zstd", "gzip"] {
                    scope.spawn(move || ask(node, target, coding));
                }
            }
        }
        origin.wait_for_requests(targets.len());
        gate.open();
    });
    for coding in CODINGS {
        assert_eq!(encoded_count(&region, coding), targets.len() as f64, "{coding}");
    }
    assert_eq!(origin.request_count(), targets.len());
}

#[test]
fn clients_of_all_nodes_get_the_same_bytes_under_the_same_tag() {
    let origin = sized_origin();
    let Some(region) = Region::with_peers(3, &origin, UNCOPIED, "") else { return };
    let targets = ["/a-5000", "/b-5000", "/c-5000", "/d-200000", "/e-200000"];
    for target in targets {
        for coding in CODINGS {
            let get = |node: &Edge| node.get_with(target, &[&accept(coding)]);
            // The first makes the form. It is stored once its last byte is.
            let first = get(&region.nodes[asker(&region, target)]);
            check_content(&first, target, coding);
            let tag = first.header("etag");
            assert!(tag.starts_with(&format!("\"v1~{coding}.")), "{tag}");
            for node in &region.nodes {
                let answer = get(node);
                check_content(&answer, target, coding);
                assert_eq!((answer.header("etag"), &answer.body), (tag.clone(), &first.body));
                let length = answer.header("content-length");
                assert_eq!(length, answer.body.len().to_string(), "{target} {coding}");
            }
        }
        // Content below `bytes_min`, and that for a client without a coding, has none.
        for node in &region.nodes {
            check_content(&node.get(target), target, "");
        }
    }
    for coding in CODINGS {
        assert_eq!(encoded_count(&region, coding), targets.len() as f64, "{coding}");
    }
    assert_eq!(origin.request_count(), targets.len());
}

#[test]
fn ranges_conditions_and_head_of_a_coded_form_are_answered_by_the_owner() {
    let origin = sized_origin();
    let Some(region) = Region::with_peers(2, &origin, UNCOPIED, "") else { return };
    for target in ["/a-5000", "/b-300000"] {
        let node = &region.nodes[asker(&region, target)];
        let whole = node.get_with(target, &["Accept-Encoding: br"]);
        let tag = whole.header("etag");
        until("the form is stored", || {
            let again = node.get_with(target, &["Accept-Encoding: br"]);
            !again.header("content-length").is_empty()
        });
        for condition in [None, Some(format!("If-Range: {tag}"))] {
            let mut fields = vec!["Accept-Encoding: br", "Range: bytes=100-"];
            fields.extend(condition.as_deref());
            let part = node.get_with(target, &fields);
            assert_eq!((part.status, &*part.header("content-encoding")), (206, "br"), "{part:?}");
            assert_eq!(part.header("etag"), tag);
            assert!(part.body == whole.body[100..], "{target} {condition:?}");
        }
        let condition = format!("If-Range: {tag}");
        let other = node.get_with(target, &["Range: bytes=100-", &condition]);
        assert_eq!((other.status, other.body == sized(target)), (200, true), "other bytes");
        for (accepted, condition) in [("br", &tag), ("gzip", &tag), ("br", &"\"v1\"".to_owned())] {
            let condition = format!("If-None-Match: {condition}");
            let same = node.get_with(target, &[&accept(accepted), &condition]);
            assert_eq!(same.status, 304, "{accepted} {condition}: {same:?}");
            assert_eq!(format!("If-None-Match: {}", same.header("etag")), condition);
        }
        let fields: &[&str] = &["Accept-Encoding: br"];
        let (method, host, body) = ("HEAD", "edge.test", &b""[..]);
        let head = node.connect().request(Request { method, host, target, fields, body });
        assert_eq!((head.status, &*head.header("content-encoding")), (200, "br"));
        let length = whole.body.len().to_string();
        assert_eq!((head.header("content-length"), head.header("etag")), (length, tag));
    }
    assert_eq!(encoded_count(&region, "br"), 2.0);
    assert_eq!(origin.request_count(), 2, "{:?}", origin.received());
}

#[test]
fn a_purge_at_a_node_covers_the_forms_of_its_peers() {
    let versions = AtomicU64::new(0);
    let origin = Origin::start(move |_| {
        let version = versions.fetch_add(1, Ordering::Relaxed);
        let answer = Answer::ok(format!("{version:06}").repeat(5000)).fresh_for(3600);
        answer.header("Content-Type", "text/html").header("ETag", &format!("\"v{version}\""))
    });
    let Some(region) = Region::with_peers(2, &origin, UNCOPIED, "") else { return };
    let target = "/page";
    let node = &region.nodes[asker(&region, target)];
    let version = |coding: &str| {
        let answer = node.get_with(target, &[&accept(coding)]);
        assert_eq!(answer.header("content-encoding"), coding);
        let body = decoded(coding, &answer.body);
        let text = String::from_utf8(body).expect("text");
        assert_eq!(text, text[..6].repeat(5000), "one version");
        text[..6].parse::<u64>().expect("a version")
    };
    for _ in 0..10 {
        let before = version("br").max(version("gzip"));
        assert_eq!(node.purge(target).status, 200);
        for coding in ["br", "gzip"] {
            let after = version(coding);
            assert!(after > before, "{coding}: {after} after a purge of {before}");
        }
    }
}

#[test]
fn a_coded_response_that_must_not_be_changed_passes_the_owner_as_it_is() {
    let origin = Origin::start(|request| {
        let accepted = request.header("accept-encoding").unwrap_or_default();
        let answer = match accepted.contains("gzip") {
            true => {
                html(crate::coding::encoded("gzip", &text(5000))).header("Content-Encoding", "gzip")
            }
            false => html(text(5000)),
        };
        answer.header("Cache-Control", "no-transform")
    });
    let Some(region) = Region::with_peers(2, &origin, UNCOPIED, "") else { return };
    let target = "/page-5000";
    let node = &region.nodes[asker(&region, target)];
    let check = |accepted: &str, coding: &str, requests: usize| {
        check_content(&node.get_with(target, &[&accept(accepted)]), target, coding);
        assert_eq!(origin.request_count(), requests, "{accepted}");
    };
    check("gzip, br", "gzip", 1);
    // The origin is asked for what this client accepts, as without peers.
    check("br", "", 2);
    check("gzip", "gzip", 2);
    assert_eq!(encoded_count(&region, "br"), 0.0);
}

#[test]
fn content_that_the_origin_coded_is_decoded_once_in_the_region() {
    let body = crate::coding::encoded("gzip", &text(200_000));
    let origin = Origin::start(move |_| html(body.clone()).header("Content-Encoding", "gzip"));
    let Some(region) = Region::with_peers(3, &origin, UNCOPIED, "") else { return };
    let target = "/page-200000";
    for _ in 0..2 {
        for node in &region.nodes {
            check_content(&node.get(target), target, "");
            check_content(&node.get_with(target, &["Accept-Encoding: gzip, br"]), target, "gzip");
            check_content(&node.get_with(target, &["Accept-Encoding: br"]), target, "br");
        }
    }
    let decoded: f64 =
        region.nodes.iter().map(|node| node.metric("skerry_bodies_decoded_total")).sum();
    // For clients without a coding, and on the way to br.
    assert_eq!((decoded, encoded_count(&region, "br")), (2.0, 1.0));
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn a_node_that_has_the_response_gets_its_form_from_the_owner() {
    let origin = sized_origin();
    let Some((region, owners)) = Region::with_processes_in(&["here"; 2], &origin, "") else {
        return;
    };
    let node = &region.nodes[0];
    let targets = (0..).map(|number| format!("/{number}-300000"));
    let target = targets.filter(|target| region.owner_of(target) == 1).nth(1).expect("a target");
    // While the owner is stopped, the node fetches and stores the response itself.
    owners[0].signal(Signal::STOP);
    check_content(&node.get(&target), &target, "");
    owners[0].signal(Signal::CONT);
    assert!(node.get(&target).is_hit());
    until("the owner is asked again", || {
        node.get("/probe-1000");
        node.get(&format!("/{}-1000", origin.request_count()));
        node.metric("skerry_peer_up{peer=\"n1\"") == 1.0
    });
    let first = node.get_with(&target, &["Accept-Encoding: br"]);
    check_content(&first, &target, "br");
    let of_owner = exchange(owners[0].http, "edge.test", &target, &["Accept-Encoding: br"]);
    check_content(&of_owner, &target, "br");
    assert_eq!((of_owner.header("etag"), of_owner.is_hit()), (first.header("etag"), true));
    assert_eq!(of_owner.body, first.body);
    let again = node.get_with(&target, &["Accept-Encoding: br"]);
    assert_eq!((again.is_hit(), again.header("etag")), (true, first.header("etag")));
    assert_eq!(encoded_count(&region, "br"), 0.0, "by the node itself");
}
