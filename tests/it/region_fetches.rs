//! Fetches that several nodes of a region want at the same time: the origin sees about one. Skipped without
//! `redis-server`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::harness::{Answer, Edge, Gate, Origin, ReceivedRequest, Region, until};

const TARGETS: usize = 6;

fn urls() -> Vec<String> {
    (0..TARGETS).map(|number| format!("http://edge.test/{number}")).collect()
}

/// How often the origin was asked for each target, but for its first `before` requests.
fn asked(origin: &Origin, before: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in origin.received().into_iter().skip(before) {
        *counts.entry(request.target).or_default() += 1;
    }
    counts
}

fn once_each() -> BTreeMap<String, usize> {
    (0..TARGETS).map(|number| (format!("/{number}"), 1)).collect()
}

/// The number of fetches of all nodes that have ended well.
fn fetched(region: &Region) -> usize {
    let name = "skerry_prefetches_total{outcome=\"fetched\"";
    region.nodes.iter().map(|node| node.metric(name) as usize).sum()
}

#[test]
fn a_prefetch_at_all_nodes_asks_the_origin_once_for_each_url() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(3600));
    let Some(region) = Region::start(3, &origin, "") else { return };
    for node in &region.nodes {
        let body = json!({ "urls": urls() }).to_string();
        assert_eq!(node.admin("POST", "/prefetch", &body).status, 202);
    }
    until("all are fetched", || fetched(&region) == 3 * TARGETS);
    assert_eq!(asked(&origin, 0), once_each());
}

#[test]
fn a_purge_with_refresh_asks_the_origin_once_for_each_url_of_the_region() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(3600));
    let Some(region) = Region::with_peers(3, &origin, COPIES, "") else { return };
    refreshes_once(&region, &origin);
}

/// The nodes wait for each other: a purge comes to the others later than to the node where it was ordered.
#[test]
fn a_purge_with_refresh_that_takes_its_time_asks_the_origin_once_for_each_url() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(3600));
    let delay = Duration::from_millis(75);
    let Some(region) = Region::far_from_redis(3, delay, &origin, COPIES) else { return };
    refreshes_once(&region, &origin);
}

/// Lines in `[peers]`: each node copies what it was asked for lately.
const COPIES: &str = "copy_after = 1\n";

fn refreshes_once(region: &Region, origin: &Origin) {
    for node in &region.nodes {
        for number in 0..TARGETS {
            until("each node has the response itself", || {
                let status = node.get(&format!("/{number}")).header("cache-status");
                status.rsplit(", ").next().is_some_and(|own| own.contains("; hit"))
            });
        }
    }
    let before = origin.request_count();
    let order = json!({ "urls": urls(), "refresh": TARGETS }).to_string();
    let purged = region.nodes[0].admin("POST", "/purge?wait=all&timeout=20s", &order);
    assert_eq!(purged.status, 200, "{}", purged.text());
    until("each node has refreshed", || fetched(region) == 3 * TARGETS);
    let asked = asked(origin, before);
    // A node that is held up takes the purge late, and is then passed by: once is allowed.
    let count: usize = asked.values().sum();
    assert!(asked.len() == TARGETS && count <= TARGETS + 1, "{asked:?}");
    for node in &region.nodes {
        assert_eq!(node.get("/0").text(), "x");
    }
    assert_eq!(origin.request_count(), before + count, "they have fresh responses");
}

#[test]
fn a_hedge_of_the_owner_is_one_fill_of_the_region() {
    let gate = Gate::default();
    let number = AtomicUsize::new(0);
    let held = gate.clone();
    let answer = Arc::new(move |_: &ReceivedRequest| {
        let answer = Answer::ok("x").fresh_for(3600);
        // The first exchange is slow, whichever origin it is with.
        if number.fetch_add(1, Ordering::Relaxed) == 0 { answer.behind(&held) } else { answer }
    });
    let start = || {
        let answer = answer.clone();
        Origin::start(move |request| answer(request))
    };
    let (first, second) = (start(), start());
    let more = format!(
        "pool = \"both\"\n[pools.both]\norigins = [{:?}, {:?}]\n\
         [pools.both.hedge]\nafter = \"100ms\"\npercent_max = 100\n",
        first.url(),
        second.url()
    );
    let Some(region) = Region::start(3, &first, &more) else { return };
    let count = || first.request_count() + second.request_count();
    std::thread::scope(|scope| {
        for node in region.nodes.iter().chain(&region.nodes) {
            scope.spawn(|| assert_eq!(node.get("/object").text(), "x"));
        }
    });
    assert_eq!(count(), 2, "the exchange and its hedge");
    let won = |node: &Edge| node.metric("skerry_upstream_hedges_total{outcome=\"won\"");
    assert_eq!(region.nodes.iter().map(won).sum::<f64>(), 1.0);
    for node in &region.nodes {
        assert_eq!(node.get("/object").text(), "x");
    }
    assert_eq!(count(), 2, "the response is stored");
    gate.open();
}
