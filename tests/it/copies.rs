//! Copies of hot responses at nodes that do not own their keys: served without a hop, covered by purges, validated at
//! the owner, and never on disk. Skipped without `redis-server`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::pair::Pair;
use crate::harness::peer::PeerReply;
use crate::harness::{Answer, Edge, Gate, Origin, Random, Region, Request, Response};
use crate::harness::{Client, until};

/// The default of `peers.copy_after`: the request that makes the copy.
const COPY_AFTER: usize = 3;

/// A target that another node than the first owns, with this prefix.
fn of_another(region: &Region, prefix: &str) -> (String, usize) {
    let targets = (0..).map(|number| format!("{prefix}{number}"));
    let mut owned = targets.map(|target| (region.owner_of(&target), target));
    let (owner, target) = owned.find(|(owner, _)| *owner != 0).expect("an owner");
    (target, owner)
}

/// Whether the node itself had the response: its own member of `Cache-Status` is the last one.
fn is_own_hit(answer: &Response) -> bool {
    let status = answer.header("cache-status");
    status.rsplit(", ").next().is_some_and(|own| own.starts_with("skerry; hit"))
}

/// Requests the target until the node has a copy of it.
fn copy(node: &Edge, target: &str) -> Response {
    for _ in 0..COPY_AFTER {
        let answer = node.get(target);
        assert!(answer.status == 200 && !is_own_hit(&answer), "{answer:?}");
    }
    let answer = node.get(target);
    assert!(is_own_hit(&answer), "{answer:?}");
    answer
}

fn copies(node: &Edge, outcome: &str) -> f64 {
    node.metric(&format!("skerry_peer_copies_total{{outcome=\"{outcome}\""))
}

/// An origin whose responses have an entity tag, tags, and the version as their body.
fn versioned(version: &'static AtomicU64) -> Origin {
    Origin::start(|request| {
        let tag = format!("\"{}\"", version.load(Ordering::Relaxed));
        let answer = match request.header("if-none-match") == Some(&*tag) {
            true => Answer::status(304),
            false => Answer::ok(version.load(Ordering::Relaxed).to_string()),
        };
        answer.fresh_for(60).header("ETag", &tag).header("Surrogate-Key", "news sport")
    })
}

#[test]
fn a_hot_response_is_served_without_a_hop() {
    let origin = Origin::start(|_| {
        Answer::ok("0123456789").fresh_for(600).header("ETag", "\"v1\"").header("Age", "7")
    });
    let store = "[store]\nmemory = \"32MiB\"\ndisk = \"64MiB\"\nadmission = \"all\"\n";
    let Some(region) = Region::start(2, &origin, store) else { return };
    let (target, owner) = of_another(&region, "/object-");
    let (node, owner) = (&region.nodes[0], (&region.nodes[owner], owner));
    let first = copy(node, &target);
    let age: u64 = first.header("age").parse().expect("an age");
    assert!(first.text() == "0123456789" && (7..600).contains(&age), "{first:?}");
    let requests = || owner.0.metric("skerry_requests_total");
    let before = requests();
    let conditional = node.get_with(&target, &["If-None-Match: \"v1\""]);
    assert!(conditional.status == 304 && is_own_hit(&conditional), "{conditional:?}");
    let part = node.get_with(&target, &["Range: bytes=2-4"]);
    assert!(part.text() == "234" && is_own_hit(&part), "{part:?}");
    let head = Client::connect(node.http).request(Request {
        method: "HEAD",
        host: "edge.test",
        target: &target,
        fields: &[],
        body: b"",
    });
    assert!(head.status == 200 && is_own_hit(&head), "{head:?}");
    assert_eq!((requests(), origin.request_count()), (before, 1));
    assert_eq!((copies(node, "copied"), node.metric("skerry_peer_copy_hits_total")), (1.0, 4.0));
    let explained = node.admin("GET", &format!("/explain?url=http://edge.test{target}"), "");
    let explained: Value = serde_json::from_str(explained.text()).expect("JSON");
    assert_eq!(explained["stored"]["copy_of"], format!("n{}", owner.1), "{explained}");
    until("the owner has it on disk", || owner.0.metric("skerry_store_disk_writes_total") > 0.0);
    assert_eq!(node.metric("skerry_store_disk_writes_total"), 0.0);
}

#[test]
fn variants_are_copied_too_and_none_without_the_option() {
    let origin = Origin::start(|request| {
        let language = request.header("accept-language").unwrap_or("none").to_owned();
        Answer::ok(language).fresh_for(600).header("Vary", "Accept-Language")
    });
    let languages = ["Accept-Language: de", "Accept-Language: fr"];
    let ask = |region: &Region| -> Vec<bool> {
        let (target, _) = of_another(region, "/object-");
        let rounds = (0..6).flat_map(|_| languages);
        let answers = rounds.map(|language| {
            let answer = region.nodes[0].get_with(&target, &[language]);
            assert_eq!(answer.text(), &language[language.len() - 2..]);
            is_own_hit(&answer)
        });
        answers.collect()
    };
    let Some(region) = Region::start(2, &origin, "") else { return };
    assert_eq!(ask(&region)[8..], [true; 4]);
    let Some(region) = Region::with_peers(2, &origin, "copy_after = 0\n", "") else { return };
    assert_eq!(ask(&region), [false; 12]);
}

#[test]
fn a_response_longer_than_a_slice_is_not_copied() {
    let origin = Origin::start(|_| Answer::ok(vec![7; 300_000]).fresh_for(600));
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, _) = of_another(&region, "/object-");
    for _ in 0..COPY_AFTER + 2 {
        let answer = region.nodes[0].get(&target);
        assert!(answer.body.len() == 300_000 && !is_own_hit(&answer));
    }
    let node = &region.nodes[0];
    assert_eq!((copies(node, "copied"), copies(node, "too-long")), (0.0, 3.0));
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn purges_at_either_node_cover_a_copy() {
    static VERSION: AtomicU64 = AtomicU64::new(0);
    let origin = versioned(&VERSION);
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, owner) = of_another(&region, "/news/");
    let node = &region.nodes[0];
    let purges = [
        json!({ "url": format!("http://edge.test{target}") }),
        json!({ "prefix": "http://edge.test/news/" }),
        json!({ "tag": "sport" }),
        json!({ "tag": "news", "soft": true }),
        json!({ "all": true }),
    ];
    // Until the node has a copy of the present version.
    let copied = || {
        until("there is a copy", || is_own_hit(&node.get(&target)));
        VERSION.load(Ordering::Relaxed).to_string()
    };
    for purge in purges {
        for at in [0, owner] {
            let before = copied();
            VERSION.fetch_add(1, Ordering::Relaxed);
            assert_eq!(node.get(&target).text(), before, "the copy is used");
            let answer = region.nodes[at].admin("POST", "/purge", &purge.to_string());
            assert_eq!(answer.status, 200, "{answer:?}");
            if at == 0 {
                assert_ne!(node.get(&target).text(), before, "{purge} at the node itself");
            } else {
                until("the purge covers the copy", || node.get(&target).text() != before);
            }
        }
    }
}

#[test]
fn a_purge_that_overtakes_the_response_covers_its_copy() {
    static VERSION: AtomicU64 = AtomicU64::new(0);
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |_| {
        let version = VERSION.fetch_add(1, Ordering::Relaxed);
        // Longer than what is held back until it is whole (`retry.hold_response`).
        let answer = Answer::ok(format!("version {version}").repeat(20_000)).fresh_for(3600);
        if version == 1 { answer.pause_at(100_000, &held) } else { answer }
    });
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, _) = of_another(&region, "/object-");
    let node = &region.nodes[0];
    assert!(copy(node, &target).text().starts_with("version 0"));
    assert_eq!(node.purge(&target).status, 200);
    // Until it has read its purge back from the bus, the node asks the origin only.
    let next_hop = || -> Value {
        let answer = node.admin("GET", &format!("/explain?url=http://edge.test{target}"), "");
        serde_json::from_str::<Value>(answer.text()).expect("JSON")["next_hop"]["to"].clone()
    };
    until("the owner may be asked", || next_hop() == "peer");
    std::thread::scope(|scope| {
        let second = scope.spawn(|| node.get(&target));
        until("its head has come, and it is being copied", || copies(node, "copied") == 2.0);
        assert_eq!(node.purge(&target).status, 200);
        gate.open();
        let second = second.join().unwrap();
        assert!(second.text().starts_with("version 1"), "it asked before the purge");
        assert_eq!(second.body.len(), 180_000);
    });
    for _ in 0..3 {
        assert!(node.get(&target).text().starts_with("version 2"));
    }
}

#[test]
fn a_stale_copy_is_validated_at_the_owner() {
    static VERSION: AtomicU64 = AtomicU64::new(0);
    let origin = versioned(&VERSION);
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, owner) = of_another(&region, "/object-");
    let (node, owner) = (&region.nodes[0], &region.nodes[owner]);
    copy(node, &target);
    let asked_owner = || owner.metric("skerry_requests_total");
    let asked = asked_owner();
    for (change, expected) in [(0, "0"), (1, "1"), (0, "1")] {
        VERSION.fetch_add(change, Ordering::Relaxed);
        region.nodes.iter().for_each(|node| node.advance(100));
        let before = origin.request_count();
        let answer = node.get(&target);
        assert!(answer.text() == expected && !is_own_hit(&answer), "{answer:?}");
        assert_eq!(origin.request_count(), before + 1, "by way of the owner");
        for _ in 0..3 {
            let again = node.get(&target);
            assert!(again.text() == expected && is_own_hit(&again), "{again:?}");
        }
        assert_eq!(origin.request_count(), before + 1);
    }
    assert_eq!(asked_owner(), asked + 3.0);
    let asked = asked_owner();
    region.nodes.iter().for_each(|node| node.advance(100));
    let method = "HEAD";
    let head = Request { method, host: "edge.test", target: &target, fields: &[], body: b"" };
    assert_eq!(Client::connect(node.http).request(head).status, 200);
    assert_eq!(asked_owner(), asked + 1.0, "HEAD asks the owner too");
}

#[test]
fn a_304_of_what_a_purge_covers_at_the_owner_renews_no_copy() {
    let is_purged = Arc::new(AtomicBool::new(false));
    let purged = is_purged.clone();
    let pair = Pair::start("deadline = \"10s\"\n", move |request| {
        let is_conditional = request.headers().contains_key("if-none-match");
        let (status, body) = if is_conditional { (304, "") } else { (200, "peer") };
        let verdict = if purged.load(Ordering::Relaxed) { "purged" } else { "hit" };
        PeerReply::new(status, body)
            .field("cache-control", "max-age=60")
            .field("etag", "\"v1\"")
            .field("skerry-hop", &format!("verdict={verdict}"))
    });
    let target = pair.owned("/object").next().expect("a target");
    assert_eq!(copy(&pair.edge, &target).text(), "peer");
    pair.edge.advance(100);
    is_purged.store(true, Ordering::Relaxed);
    let asked = pair.asked(&target);
    for turn in 1..=3 {
        let answer = pair.edge.get(&target);
        assert!(answer.text() == "peer" && !is_own_hit(&answer), "{answer:?}");
        assert_eq!(pair.asked(&target), asked + 2 * turn, "once more without the condition");
    }
    is_purged.store(false, Ordering::Relaxed);
    assert_eq!(pair.edge.get(&target).text(), "peer");
    assert!(is_own_hit(&pair.edge.get(&target)), "an unpurged 304 renews it");
}

#[test]
fn a_purged_response_that_the_owner_serves_for_an_error_renews_no_copy() {
    static VERSION: AtomicU64 = AtomicU64::new(0);
    static FAILS: AtomicBool = AtomicBool::new(false);
    let origin = Origin::start(|_| match FAILS.load(Ordering::Relaxed) {
        true => Answer::status(503),
        false => {
            let version = VERSION.load(Ordering::Relaxed).to_string();
            let answer = Answer::ok(version.clone()).header("ETag", &format!("\"{version}\""));
            answer.header("Cache-Control", "max-age=600, stale-if-error=6000")
        }
    });
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, owner) = of_another(&region, "/object-");
    let node = &region.nodes[0];
    assert_eq!(copy(node, &target).text(), "0");
    FAILS.store(true, Ordering::Relaxed);
    VERSION.store(1, Ordering::Relaxed);
    let purge = json!({ "url": format!("http://edge.test{target}"), "soft": true });
    // At the owner first, so that the copy is validated there as soon as it is purged.
    for at in [owner, 0] {
        let answer = region.nodes[at].admin("POST", "/purge", &purge.to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let asked = region.nodes[owner].metric("skerry_requests_total");
    until("the owner is asked again", || {
        let answer = node.get(&target);
        assert!(answer.text() == "0" && !is_own_hit(&answer), "stale for the error: {answer:?}");
        region.nodes[owner].metric("skerry_requests_total") > asked
    });
    FAILS.store(false, Ordering::Relaxed);
    assert_eq!(node.get(&target).text(), "1", "nothing that was purged is fresh");
}

#[test]
fn followers_of_a_response_that_is_stale_at_the_owner_do_not_ask_the_origin() {
    let gate = Gate::default();
    let (held, asked) = (gate.clone(), AtomicU64::new(0));
    let origin = Origin::start(move |_| {
        let answer = Answer::ok("x")
            .header("Cache-Control", "max-age=60, stale-while-revalidate=6000")
            .header("ETag", "\"v1\"");
        // The refresh takes as long as the test.
        if asked.fetch_add(1, Ordering::Relaxed) == 0 { answer } else { answer.behind(&held) }
    });
    let Some(region) = Region::with_peers(2, &origin, "copy_after = 0\n", "") else { return };
    let (target, _) = of_another(&region, "/object-");
    assert_eq!(region.nodes[0].get(&target).status, 200);
    region.nodes.iter().for_each(|node| node.advance(100));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(region.nodes[0].get(&target).text(), "x");
                }
            });
        }
    });
    assert_eq!(origin.request_count(), 2, "the refresh of the owner alone");
    gate.open();
}

#[test]
fn a_copy_outlives_its_owner_and_the_origin() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(600));
    let Some((region, processes)) = Region::with_processes_in(&["here"; 2], &origin, "") else {
        return;
    };
    let (target, _) = of_another(&region, "/object-");
    let node = &region.nodes[0];
    copy(node, &target);
    processes[0].signal(Signal::KILL);
    origin.kill();
    until("the node owns the key", || region.owner_of(&target) == 0);
    for _ in 0..3 {
        let answer = node.get(&target);
        assert!(answer.text() == "x" && is_own_hit(&answer), "{answer:?}");
    }
}

/// How many requests the owner of an object serves for each that a node serves on average, those of peers included, if
/// half of all requests are for this object.
fn load_of_the_owner(peers: &str) -> Option<f64> {
    let origin = Origin::start(|request| Answer::ok(request.target.clone()).fresh_for(600));
    let region = Region::with_peers(3, &origin, peers, "")?;
    let next = AtomicU64::new(0);
    let ask = |client: u64| {
        let mut random = Random(client);
        let mut clients: Vec<Client> = region.nodes.iter().map(Edge::connect).collect();
        while next.fetch_add(1, Ordering::Relaxed) < 4000 {
            let target = match random.below(2) {
                0 => "/hot".to_owned(),
                _ => format!("/{}", random.below(300)),
            };
            let answer = clients[random.below(3) as usize].get("edge.test", &target, &[]);
            assert_eq!((answer.status, answer.text()), (200, &*target));
        }
    };
    // With more clients, more requests share a hop, and copies matter less.
    std::thread::scope(|scope| (0..2).for_each(|client| drop(scope.spawn(move || ask(client)))));
    let served = region.nodes.iter().map(|node| node.metric("skerry_requests_total"));
    let served: Vec<f64> = served.collect();
    let ratio = 3.0 * served[region.owner_of("/hot")] / served.iter().sum::<f64>();
    println!("{peers:?}: the owner serves {ratio:.2} times the mean: {served:?}");
    Some(ratio)
}

#[test]
fn the_owner_of_a_hot_object_serves_about_as_much_as_the_others() {
    let Some(with_copies) = load_of_the_owner("") else { return };
    assert!(with_copies < 1.1, "{with_copies}");
    let without = load_of_the_owner("copy_after = 0\n").expect("redis-server");
    assert!(without > with_copies + 0.2, "{without} without copies, {with_copies} with them");
}
