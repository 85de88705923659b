//! A shield region before the origin: the way of a request, what happens while the shield is gone, and that no purge is
//! undone on the way. Most tests need `redis-server`, and are skipped without it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::harness::peer::{FleetAuthority, PeerClient, PeerReply, ScriptedPeer, hop_to};
use crate::harness::{
    Answer, Edge, Gate, LongLink, Origin, ReceivedRequest, RedisProcess, Region, Request, Response,
    exchange, held_origin, until,
};
use crate::peers_region::clients_are_served_while_peers_fail;

/// Two nodes of an edge region, and two of its shield.
const REGIONS: [&str; 4] = ["us", "us", "fra", "fra"];
const SHIELD: &str = "shield = \"fra\"\n";

/// A target that another node of the region than `n0` owns, its owner, and its owner in the shield.
fn of_another(region: &Region) -> (String, usize, usize) {
    let mut targets = (0..).map(|number| format!("/object-{number}"));
    let target = targets.find(|target| region.owner_of(target) != 0).expect("a target");
    let (owner, shield) = (region.owner_of(&target), region.shield_of(&target));
    (target, owner, shield)
}

/// The server that a node asked for each of its last answers, such as `shield:n2`.
fn asked(node: &Edge, lines: usize) -> Vec<String> {
    let lines = node.log(lines);
    let names = lines.iter().filter_map(|line| line["upstream"].as_str());
    names.map(|name| name.split(":127").next().unwrap_or(name).to_owned()).collect()
}

/// The number of nodes that a request has passed.
fn nodes_of(request: &ReceivedRequest) -> usize {
    request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("via")).count()
}

fn head(node: &Edge, target: &str) -> Response {
    let (method, host) = ("HEAD", "edge.test");
    node.connect().request(Request { method, host, target, fields: &[], body: b"" })
}

#[test]
fn a_cold_fleet_fetches_each_object_once() {
    let gate = Gate::default();
    let origin = held_origin(&gate);
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    region.fetches_once(&origin, &gate, 8, 1);
}

#[test]
fn a_request_goes_by_the_owner_of_its_region_and_the_shield_to_the_origin() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60).header("Age", "7"));
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    let (target, owner, shield) = of_another(&region);
    let explained = |node: &Edge| -> Value {
        let answer = node.admin("GET", &format!("/explain?url=http://edge.test{target}"), "");
        serde_json::from_str::<Value>(answer.text()).expect("an explanation")["next_hop"].clone()
    };
    assert_eq!(explained(&region.nodes[0])["to"], "peer");
    let of_owner = explained(&region.nodes[owner]);
    assert_eq!((&of_owner["to"], &of_owner["region"]), (&"shield".into(), &"fra".into()));
    assert_eq!(of_owner["peers"][0], format!("n{shield}"));
    assert_eq!(explained(&region.nodes[shield])["to"], "origin");

    let first = region.nodes[0].get_with(&target, &["X-Request-Id: forged"]);
    assert_eq!((first.status, first.text()), (200, "x"));
    let status = first.header("cache-status");
    let members: Vec<&str> = status.split(", ").collect();
    assert_eq!(members.len(), 3, "{status}");
    assert!(members[0].contains("fwd=uri-miss; fwd-status=200; stored"), "{status}");
    assert!(members[1].contains("fwd=uri-miss; fwd-status=200; stored"), "{status}");
    assert!(members[2].contains("fwd=uri-miss") && !members[2].contains("stored"), "{status}");
    assert_eq!(first.header("via").matches("skerry").count(), 3, "{first:?}");
    assert_eq!(first.header("skerry-hop") + &first.header("skerry-purges"), "");
    assert_eq!(asked(&region.nodes[0], 1), [format!("peer:n{owner}")]);
    assert_eq!(asked(&region.nodes[owner], 1), [format!("shield:n{shield}")]);
    assert_eq!(asked(&region.nodes[shield], 1), ["origin"]);
    let line = |node: usize| region.nodes[node].log(1)[0].clone();
    let (asker, of_owner, of_shield) = (line(0), line(owner), line(shield));
    assert_eq!([&of_owner["id"], &of_shield["id"]], [&asker["id"]; 2]);
    assert_eq!([&of_owner["client"], &of_shield["client"]], [&asker["client"]; 2]);
    assert_eq!([&of_owner["peer"], &of_shield["peer"]], ["n0", &format!("n{owner}")]);

    let seen = &origin.received()[0];
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-request-id"), asker["id"].as_str());
    assert!(seen.headers.iter().all(|(name, _)| !name.to_lowercase().starts_with("skerry")));

    // The edge region has a copy of its own.
    let again = region.nodes[owner].get(&target);
    assert!(again.is_hit(), "{again:?}");
    let age: u64 = again.header("age").parse().expect("an age");
    assert!((7..60).contains(&age), "{again:?}");
    let other = 5 - shield;
    assert_eq!(region.nodes[other].get(&target).text(), "x");
    assert_eq!(asked(&region.nodes[other], 1), [format!("peer:n{shield}")]);
    assert_eq!(origin.request_count(), 1);
    let requests = format!("skerry_peer_requests_total{{peer=\"n{shield}\",region=\"fra\"");
    assert_eq!(region.nodes[owner].metric(&requests), 1.0);
}

#[test]
fn ranges_conditions_variants_and_head_are_answered_by_one_fetch_of_the_shield() {
    let body: Vec<u8> = (0..200_000_u32).map(|at| at as u8).collect();
    let whole = body.clone();
    let origin = Origin::start(move |_| {
        Answer::ok(whole.clone())
            .fresh_for(60)
            .header("ETag", "\"v1\"")
            .header("Accept-Ranges", "bytes")
    });
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    let (target, owner, shield) = of_another(&region);
    let first = head(&region.nodes[owner], &target);
    assert_eq!((first.status, &*first.header("content-length")), (200, "200000"));
    for node in [0, owner] {
        let node = &region.nodes[node];
        let part = node.get_with(&target, &["Range: bytes=1000-1999"]);
        assert_eq!((part.status, &part.body[..]), (206, &body[1000..2000]));
        let last = node.get_with(&target, &["Range: bytes=-10"]);
        assert_eq!((last.status, &last.body[..]), (206, &body[199_990..]));
        let unchanged = node.get_with(&target, &["If-None-Match: \"v1\""]);
        assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
        assert_eq!(head(node, &target).header("content-length"), "200000");
    }
    // HEAD does not tell the shield the content.
    let methods: Vec<String> = origin.received().into_iter().map(|it| it.method).collect();
    assert_eq!(methods, ["HEAD", "GET"], "asked by n{shield}");
}

#[test]
fn a_long_object_is_fetched_in_parts_through_the_shield() {
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
    let whole = body.clone();
    let origin = Origin::start(move |request| {
        let answer = match request.header("range") {
            None => Answer::ok(whole.clone()),
            Some(range) => {
                let (from, to) = range["bytes=".len()..].split_once('-').expect("a range");
                let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                let to = to.min(whole.len() - 1);
                let place = format!("bytes {from}-{to}/{}", whole.len());
                Answer::part(&whole[from..=to]).header("Content-Range", &place)
            }
        };
        answer.fresh_for(60).header("ETag", "\"v1\"").header("Accept-Ranges", "bytes")
    });
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    let (target, owner, _) = of_another(&region);
    let part = |node: usize, from: usize, to: usize| {
        let range = format!("Range: bytes={from}-{to}");
        let part = region.nodes[node].get_with(&target, &[&range]);
        assert_eq!((part.status, &part.body[..]), (206, &body[from..=to]), "{from}-{to}");
    };
    part(owner, 1_500_000, 1_500_099);
    part(0, 2_800_000, 2_899_999);
    part(owner, 100, 199);
    let before = origin.request_count();
    for request in origin.received() {
        assert!(request.header("range").is_some(), "{request:?}");
        assert!(nodes_of(&request) >= 2, "it comes from the shield: {request:?}");
    }
    part(0, 1_500_000, 1_500_099);
    part(owner, 2_800_000, 2_899_999);
    assert_eq!(origin.request_count(), before, "the edge region has these bytes");
}

#[test]
fn a_response_that_becomes_stale_is_validated_through_the_shield() {
    let validated = Arc::new(AtomicU64::new(0));
    let count = validated.clone();
    let origin = Origin::start(move |request| match request.header("if-none-match") {
        Some("\"v1\"") => {
            count.fetch_add(1, Ordering::Relaxed);
            Answer::status(304).fresh_for(60).header("ETag", "\"v1\"")
        }
        _ => Answer::ok("x").fresh_for(60).header("ETag", "\"v1\""),
    });
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    let (target, owner, _) = of_another(&region);
    let owner = &region.nodes[owner];
    assert_eq!(owner.get(&target).text(), "x");
    region.nodes.iter().for_each(|node| node.advance(61));
    let again = owner.get(&target);
    assert_eq!((again.status, again.text()), (200, "x"));
    assert!(again.header("cache-status").contains("detail=validated"), "{again:?}");
    assert_eq!((origin.request_count(), validated.load(Ordering::Relaxed)), (2, 1));
    assert!(owner.get(&target).is_hit());
}

#[test]
fn requests_for_what_cannot_be_stored_soon_leave_the_shield_out() {
    let origin = Origin::start(|_| Answer::ok("mine").header("Cache-Control", "private"));
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    let (target, ..) = of_another(&region);
    let hops = || region.nodes[0].get(&target).header("cache-status").matches("skerry;").count();
    assert_eq!(hops(), 3);
    assert_eq!(hops(), 1, "it has learnt that from the first response");
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn requests_that_cannot_share_a_response_go_through_the_shield_too() {
    let gate = Gate::default();
    let held = gate.clone();
    // The response is stored, and each request validates it.
    let origin = Origin::start(move |_| {
        let answer = Answer::ok("x").header("Cache-Control", "no-cache");
        answer.header("ETag", "\"v1\"").behind(&held)
    });
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    let (target, owner, _) = of_another(&region);
    let at = region.nodes[owner].http;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let target = &target;
            scope.spawn(move || {
                let answer = exchange(at, "edge.test", target, &[]);
                assert_eq!((answer.status, answer.text()), (200, "x"), "{answer:?}");
            });
        }
        origin.wait_for_requests(1);
        until("they wait", || region.nodes[owner].metric("skerry_requests_collapsed_total") >= 3.0);
        gate.open();
    });
    for request in origin.received() {
        assert_eq!(nodes_of(&request), 2, "it comes from the shield: {request:?}");
    }
}

#[test]
fn variants_are_found_by_the_fields_of_the_client() {
    let origin = Origin::start(|request| {
        let language = request.header("accept-language").unwrap_or("none").to_owned();
        Answer::ok(language).fresh_for(60).header("Vary", "Accept-Language")
    });
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    let (target, owner, _) = of_another(&region);
    for node in [0, owner, 0] {
        for language in ["de", "fr"] {
            let field = format!("Accept-Language: {language}");
            assert_eq!(region.nodes[node].get_with(&target, &[&field]).text(), language);
        }
    }
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn a_purge_at_an_edge_is_not_undone_by_a_copy_of_the_shield() {
    let versions = AtomicU64::new(0);
    let origin = Origin::start(move |_| {
        let version = versions.fetch_add(1, Ordering::Relaxed);
        Answer::ok(version.to_string()).fresh_for(3600)
    });
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    let (target, owner, shield) = of_another(&region);
    let mut before = None;
    for round in 0..30 {
        let node = &region.nodes[[0, owner, shield][round % 3]];
        let seen: Vec<u64> = (0..REGIONS.len())
            .map(|node| region.nodes[node].get(&target).text().parse().expect("a version"))
            .collect();
        before = before.max(seen.into_iter().max());
        assert_eq!(node.purge(&target).status, 200);
        let after: u64 = node.get(&target).text().parse().expect("a version");
        assert!(Some(after) > before, "{after} after a purge of {before:?}, round {round}");
    }
}

/// Edge nodes before a shield of two nodes, which are killed.
fn fleet_whose_shield_is_killed(gone: &str, origin: &Origin, before: &str) -> Option<Region> {
    let more = format!("{SHIELD}shield_gone = {gone:?}\ncache.stale.if_error = \"1h\"\n");
    let (region, mut shield) = Region::with_processes_in(&["us", "fra", "fra"], origin, &more)?;
    // A busy machine may miss the deadline.
    let node = &region.nodes[0];
    let mut number = 0;
    until("the shield answers", || {
        number += 1;
        let answer = node.get(&format!("/before-{number}"));
        let is_asked = asked(node, number).iter().any(|name| name.starts_with("shield:n"));
        answer.status == 200 && is_asked
    });
    until("this, too", || node.get(before).status == 200);
    drop(shield.drain(..));
    Some(region)
}

#[test]
fn without_its_shield_a_site_goes_to_the_origin_if_it_says_so() {
    let origin = Origin::start(|request| Answer::ok(request.target.clone()).fresh_for(60));
    let Some(region) = fleet_whose_shield_is_killed("direct", &origin, "/a") else { return };
    for number in 0..20 {
        let target = format!("/direct-{number}");
        let answer = region.nodes[0].get(&target);
        assert_eq!((answer.status, answer.text()), (200, &*target), "{answer:?}");
    }
    let part = region.nodes[0].get_with("/range", &["Range: bytes=1-2"]);
    assert_eq!((part.status, part.text()), (206, "ra"));
    assert_eq!(head(&region.nodes[0], "/head").status, 200);
    let lines = region.nodes[0].log(20);
    assert_eq!(lines.last().expect("a line")["upstream"], *format!("origin:{}", origin.address));
}

#[test]
fn without_its_shield_a_site_answers_with_an_error_if_it_says_so() {
    let origin = Origin::start(|request| Answer::ok(request.target.clone()).fresh_for(60));
    let Some(region) = fleet_whose_shield_is_killed("error", &origin, "/a") else { return };
    let node = &region.nodes[0];
    let asked_before = origin.request_count();
    until("it is noticed", || node.get("/noticed").status == 503);
    for number in 0..20 {
        let answer = node.get(&format!("/error-{number}"));
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.header("proxy-status").contains("destination_unavailable"), "{answer:?}");
        assert_ne!(answer.header("retry-after"), "");
    }
    assert_eq!(node.get_with("/range", &["Range: bytes=1-2"]).status, 503);
    assert_eq!(head(node, "/head").status, 503);
    assert_eq!(node.log(5).last().expect("a line")["failure"], "shield_gone");
    node.advance(61);
    let stale = node.get("/a");
    assert_eq!((stale.status, stale.text()), (200, "/a"), "{stale:?}");
    assert!(stale.header("cache-status").contains("detail=stale-if-error"), "{stale:?}");
    assert_eq!(origin.request_count(), asked_before, "the origin is for the shield alone");
}

#[test]
fn the_next_region_of_the_list_is_the_shield_while_the_first_one_is_gone() {
    let origin = Origin::start(|request| Answer::ok(request.target.clone()).fresh_for(60));
    let more = "shield = [\"fra\", \"ams\"]\nshield_gone = \"error\"\n";
    let started = Region::with_processes_in(&["us", "fra", "ams"], &origin, more);
    let Some((region, mut others)) = started else { return };
    let node = &region.nodes[0];
    let mut number = 0;
    // A busy machine may miss a deadline.
    let mut until_asked = |shield: &str| {
        until(shield, || {
            number += 1;
            let answer = node.get(&format!("/{number}"));
            let asked = asked(node, number);
            answer.status == 200 && asked.last().is_some_and(|name| name == shield)
        });
    };
    until_asked("shield:n1");
    drop(others.remove(0));
    until_asked("shield:n2");
    for request in origin.received() {
        assert!((2..=3).contains(&nodes_of(&request)), "it comes from a shield: {request:?}");
    }
}

#[test]
fn a_shield_that_is_stopped_or_killed_costs_no_client_an_error() {
    clients_are_served_while_peers_fail(&["us", "fra", "fra"], SHIELD);
}

#[test]
fn a_failure_of_the_origin_at_the_shield_is_not_tried_again_by_the_edges() {
    let origin = Origin::start(|_| Answer::raw(""));
    let Some(region) = Region::start_in(&REGIONS, &origin, SHIELD) else { return };
    let (target, ..) = of_another(&region);
    let answer = region.nodes[0].get(&target);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(region.nodes[0].log(1)[0]["failure"], "failed_at_peer");
    for request in origin.received() {
        assert_eq!(nodes_of(&request), 3, "it comes from the shield: {request:?}");
    }
}

/// A node `edge` of the region `us`, whose shield has one scripted node. Both have a Redis if there is one.
struct Scripted {
    edge: Edge,
    /// The fields of the protocol in the requests to the shield: hop and purges.
    received: Arc<Mutex<Vec<(String, String)>>>,
    authority: FleetAuthority,
    _shield: (ScriptedPeer, LongLink),
}

impl Scripted {
    /// `answer`: the status and the verdict of the shield. `bus`: the section of the configuration, or nothing.
    fn start(
        origin: &Origin,
        bus: &str,
        answer: impl Fn(&http::Request<h2::RecvStream>) -> (u16, &'static str) + Send + Sync + 'static,
    ) -> Self {
        Self::start_far(Duration::ZERO, "10s", origin, bus, answer)
    }

    /// The same with a shield that is so far away, each way, and with this `peers.deadline`.
    fn start_far(
        delay: Duration,
        deadline: &str,
        origin: &Origin,
        bus: &str,
        answer: impl Fn(&http::Request<h2::RecvStream>) -> (u16, &'static str) + Send + Sync + 'static,
    ) -> Self {
        let authority = FleetAuthority::new();
        authority.issue(&["edge", "f1"], 0);
        let digest = Arc::new(Mutex::new(String::new()));
        let received: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let shield = ScriptedPeer::replying(&authority, "f1", {
            let (digest, received) = (digest.clone(), received.clone());
            move |request| {
                if request.uri().path() == "/.well-known/skerry/announcement" {
                    let announced = announcement(&digest.lock().unwrap());
                    return PeerReply::new(200, announced);
                }
                // The peer takes no purges.
                if request.uri().path().starts_with("/.well-known/skerry/") {
                    return PeerReply::new(404, "");
                }
                let field = |name: &str| {
                    let value = request.headers().get(name);
                    value.map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default()
                };
                received.lock().unwrap().push((field("skerry-hop"), field("skerry-purges")));
                let (status, verdict) = answer(request);
                let reply = PeerReply::new(status, "of the shield").field("skerry-hop", verdict);
                reply.field("etag", "\"v1\"").field("cache-control", "max-age=60")
            }
        });
        let link = LongLink::to(shield.address.port(), delay);
        let edge = Edge::with(&format!(
            "[node]\nregion = \"us\"\n{bus}{}deadline = {deadline:?}\ncheck_interval = \"2s\"\n\
             [peers.nodes.f1]\naddress = \"127.0.0.1:{}\"\n[pools.main]\norigins = {:?}\n\
             [sites.all]\nhosts = \"*\"\n{SHIELD}",
            authority.section("edge"),
            link.port,
            origin.url()
        ));
        let nodes = || -> Value {
            serde_json::from_str(edge.admin("GET", "/nodes", "").text()).expect("JSON")
        };
        let own = nodes()["nodes"]["edge"]["config"].as_str().expect("a digest").to_owned();
        *digest.lock().unwrap() = own.clone();
        until("the shield is known", || {
            let row = nodes()["nodes"]["f1"].clone();
            row["state"] == "ready" && row["config"] == *own
        });
        until("there is a link to it", || edge.metric("skerry_peer_up{peer=\"f1\"") == 1.0);
        Self { edge, received, authority, _shield: (shield, link) }
    }

    fn received(&self) -> Vec<(String, String)> {
        self.received.lock().unwrap().clone()
    }
}

fn announcement(config: &str) -> String {
    let peer = serde_json::json!({ "address": "127.0.0.1:1", "protocol": 1 });
    serde_json::json!({ "region": "fra", "weight": 100, "state": "ready", "software": "9.9.9", "config": config, "peer": peer })
        .to_string()
}

#[test]
fn a_request_that_came_as_to_a_shield_is_not_sent_to_another_one() {
    let origin = Origin::start(|_| Answer::ok("of the origin").fresh_for(60));
    let scripted = Scripted::start(&origin, "", |_| (200, "verdict=stored"));
    let Scripted { edge, authority, .. } = &scripted;
    let peer = PeerClient::connect(edge.node.peers[0], authority.identity(Some("f1")));
    let peer = peer.expect("a peer");
    let ask = |path: &str, from: &str, to: &str| {
        let url = format!("http://edge.test{path}");
        let hop = hop_to(edge, "f1", &url).replace(from, to);
        peer.ask("GET", &url, &[("skerry-hop", &hop)]).expect("an answer")
    };
    // This node is the shield of the other one, which is the shield of this one.
    assert_eq!(&ask("/a", "hops=1", "hops=2, shield").body[..], b"of the origin");
    // The hop limit ends any other way.
    assert_eq!(&ask("/b", "hops=1", "hops=3").body[..], b"of the origin");
    assert_eq!(scripted.received(), []);
    assert_eq!(&ask("/c", "hops=1", "hops=1").body[..], b"of the shield");
    let [(hop, _)] = &scripted.received()[..] else { panic!("{:?}", scripted.received()) };
    assert!(hop.contains("hops=2") && hop.contains(", shield"), "{hop}");
    assert!(hop.contains("client=\"203.0.113.9\"") && hop.contains("id=\"00ab34cd56ef7890\""));
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn the_shield_must_meet_the_requirements_of_the_edge_and_of_its_asker() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(redis) = RedisProcess::start(folder.path()) else { return };
    let origin = Origin::start(|_| Answer::ok("of the origin").fresh_for(60));
    let bus =
        format!("[bus]\nredis = \"redis://127.0.0.1:{}\"\nheartbeat = \"200ms\"\n", redis.port);
    let scripted = Scripted::start(&origin, &bus, |_| (200, "verdict=stored"));
    let Scripted { edge, authority, .. } = &scripted;
    let peer = PeerClient::connect(edge.node.peers[0], authority.identity(Some("f1")));
    let peer = peer.expect("a peer");
    let ask = |path: &str, purges: &str| {
        let url = format!("http://edge.test{path}");
        let hop = hop_to(edge, "f1", &url);
        let answer = peer.ask("GET", &url, &[("skerry-hop", &hop), ("skerry-purges", purges)]);
        assert_eq!(&answer.expect("an answer").body[..], b"of the shield");
        scripted.received().last().expect("a request").1.clone()
    };
    let mut number = 0;
    until("the edge has a position", || {
        number += 1;
        ask(&format!("/{number}"), "none") != "origin-only"
    });
    let own = ask("/a", "none");
    assert_eq!(own.matches('(').count(), 1, "{own}");
    let other = "(\"0123456789abcdef\" 7 \"70-1\")";
    assert_eq!(ask("/b", other), format!("{own}, {other}"));
    assert_eq!(ask("/c", "origin-only"), "origin-only");
    assert_eq!(
        ask("/d", &[other; 4].map(|it| it.to_owned()).join(", ")),
        format!("{own}, {other}")
    );
    let four: Vec<String> =
        (1..5).map(|number| other.replace(" 7 ", &format!(" {number} "))).collect();
    assert_eq!(ask("/e", &four.join(", ")), "origin-only", "at most four entries");
    assert_eq!(origin.request_count(), 0);
}

#[test]
fn a_purged_response_of_the_shield_is_not_stored_and_is_marked_again() {
    let origin = Origin::start(|_| Answer::ok("of the origin").fresh_for(60));
    let scripted = Scripted::start(&origin, "", |_| (200, "verdict=purged"));
    let Scripted { edge, authority, .. } = &scripted;
    let peer = PeerClient::connect(edge.node.peers[0], authority.identity(Some("f1")));
    let peer = peer.expect("a peer");
    let url = "http://edge.test/a";
    for _ in 0..2 {
        let hop = hop_to(edge, "f1", url);
        let answer = peer.ask("GET", url, &[("skerry-hop", &hop)]).expect("an answer");
        assert_eq!(&answer.body[..], b"of the shield");
        assert_eq!(answer.field("skerry-hop"), "verdict=purged");
    }
    assert_eq!(scripted.received().len(), 2, "nothing was stored");
}

#[test]
fn a_stale_response_that_the_shield_confirms_although_it_is_purged_does_not_become_fresh() {
    let origin = Origin::start(|_| Answer::ok("of the origin").fresh_for(60));
    let count = AtomicU64::new(0);
    let scripted = Scripted::start(&origin, "", move |request| {
        let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
        match request.headers().contains_key("if-none-match") {
            true => (304, "verdict=purged"),
            false if is_first => (200, "verdict=stored"),
            false => (200, "verdict=purged"),
        }
    });
    let edge = &scripted.edge;
    assert_eq!(edge.get("/a").text(), "of the shield");
    assert!(edge.get("/a").is_hit());
    edge.advance(61);
    for asked in [3, 5] {
        let answer = edge.get("/a");
        assert_eq!((answer.status, answer.text()), (200, "of the shield"), "{answer:?}");
        assert!(!answer.is_hit(), "{answer:?}");
        assert_eq!(scripted.received().len(), asked, "validated, then fetched");
    }
    assert_eq!(origin.request_count(), 0);
}

#[test]
fn a_shield_on_the_other_side_of_the_earth_has_three_round_trips() {
    let origin = Origin::start(|_| Answer::ok("of the origin").fresh_for(60));
    let (delay, answer) = (Duration::from_millis(100), |_: &_| (200, "verdict=stored"));
    let scripted = Scripted::start_far(delay, "50ms", &origin, "", answer);
    let edge = &scripted.edge;
    let mut number = 0;
    // A busy machine may be later still.
    until("the shield answers twice", || {
        number += 1;
        let is_of_shield =
            |path: &str| edge.get(&format!("/{number}{path}")).text() == "of the shield";
        is_of_shield("a") && is_of_shield("b")
    });
    let round_trip = edge.metric("skerry_peer_round_trip_seconds{peer=\"f1\"");
    assert!((0.2..1.5).contains(&round_trip), "{round_trip}");
}

#[test]
fn a_shield_that_refuses_lives_and_the_origin_is_asked() {
    let origin = Origin::start(|_| Answer::ok("of the origin").fresh_for(60));
    let scripted = Scripted::start(&origin, "", |_| (421, "verdict=refused, why=digest"));
    let edge = &scripted.edge;
    assert_eq!(edge.get("/a").text(), "of the origin");
    assert_eq!(edge.metric("skerry_peer_failures_total{peer=\"f1\",reason=\"digest\""), 1.0);
    assert_eq!(edge.metric("skerry_peer_up{peer=\"f1\""), 1.0);
    assert_eq!(scripted.received().len(), 1);
}
