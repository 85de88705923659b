//! A region of nodes as one cache: who fetches what from the origin, and what clients get of it. Skipped without
//! `redis-server`.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{
    Answer, Client, Edge, Gate, Origin, Process, Random, Region, Request, Response, held_origin,
    until,
};

/// The target of an object that another node than the first owns, and the position of its owner.
fn of_another(region: &Region) -> (String, usize) {
    let targets = (0..).map(|number| format!("/object-{number}"));
    let mut owned = targets.map(|target| (region.owner_of(&target), target));
    let (owner, target) = owned.find(|(owner, _)| *owner != 0).expect("an owner");
    (target, owner)
}

fn hop_of(answer: &Response) -> usize {
    answer.header("cache-status").matches("skerry;").count()
}

#[test]
fn a_cold_region_fetches_each_object_once() {
    let gate = Gate::default();
    let origin = held_origin(&gate);
    let Some(region) = Region::start(3, &origin, "") else { return };
    region.fetches_once(&origin, &gate, 12, 2);
    let answer = region.nodes[0].get("/0");
    assert!(answer.is_hit(), "at one of the nodes: {answer:?}");
    assert_eq!(origin.request_count(), 12);
}

#[test]
fn a_response_of_the_owner_lists_both_nodes_and_keeps_its_age() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60).header("Age", "7"));
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, owner) = of_another(&region);
    let first = region.nodes[0].get(&target);
    assert_eq!((first.status, hop_of(&first)), (200, 2), "{first:?}");
    let status = first.header("cache-status");
    let (of_owner, of_asker) = status.split_once(", ").expect("two members");
    assert!(of_owner.contains("fwd=uri-miss; fwd-status=200; stored"), "{status}");
    assert!(of_asker.contains("fwd=uri-miss; fwd-status=200"), "{status}");
    assert!(!of_asker.contains("stored"), "{status}");
    assert_eq!(first.header("via").matches("skerry").count(), 2, "{first:?}");
    assert_eq!(first.header("skerry-hop"), "");
    let second = region.nodes[0].get(&target);
    assert!(second.header("cache-status").starts_with("skerry; hit"), "{second:?}");
    let age: u64 = second.header("age").parse().expect("an age");
    assert!((7..60).contains(&age), "{second:?}");
    assert_eq!(origin.request_count(), 1);
    let asked = |node: &Edge| -> Vec<String> {
        let lines = node.log(2).into_iter();
        lines.filter_map(|line| Some(line["upstream"].as_str()?.to_owned())).collect()
    };
    assert_eq!(asked(&region.nodes[0]), [format!("peer:n{owner}"), format!("peer:n{owner}")]);
    let of_owner = asked(&region.nodes[owner]);
    assert!(of_owner.len() == 1 && of_owner[0].starts_with("origin:127"), "{of_owner:?}");
}

#[test]
fn a_hit_of_the_owner_has_an_age_and_a_response_of_the_origin_has_none() {
    // The second is too long for one frame, so that requests share it.
    for length in [10, 300_000] {
        let origin = Origin::start(move |_| Answer::ok(vec![b'x'; length]).fresh_for(60));
        let Some(region) = Region::start(2, &origin, "") else { return };
        let (target, _) = of_another(&region);
        let [first, second] = [(); 2].map(|()| region.nodes[0].get(&target));
        assert_eq!((first.status, &*first.header("age")), (200, ""), "{length} bytes");
        assert!(!second.header("age").is_empty(), "{length} bytes: {second:?}");
        assert!(second.header("cache-status").starts_with("skerry; hit"), "{length} bytes");
    }
}

#[test]
fn variants_of_the_owner_are_found_by_the_fields_of_the_client() {
    let origin = Origin::start(|request| {
        let language = request.header("accept-language").unwrap_or("none").to_owned();
        Answer::ok(language).fresh_for(60).header("Vary", "Accept-Language")
    });
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, _) = of_another(&region);
    for _ in 0..2 {
        for language in ["de", "fr", "en"] {
            let field = format!("Accept-Language: {language}");
            let answer = region.nodes[0].get_with(&target, &[&field]);
            assert_eq!(answer.text(), language);
        }
    }
    assert_eq!(origin.request_count(), 3);
}

#[test]
fn ranges_conditions_and_head_are_answered_by_the_owner() {
    let body: Vec<u8> = (0..200_000_u32).map(|at| at as u8).collect();
    let whole = body.clone();
    let origin = Origin::start(move |_| {
        Answer::ok(whole.clone())
            .fresh_for(60)
            .header("ETag", "\"v1\"")
            .header("Accept-Ranges", "bytes")
    });
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, _) = of_another(&region);
    let node = &region.nodes[0];
    let part = node.get_with(&target, &["Range: bytes=1000-1999"]);
    assert_eq!((part.status, &part.body[..]), (206, &body[1000..2000]));
    let last = node.get_with(&target, &["Range: bytes=-10"]);
    assert_eq!((last.status, &last.body[..]), (206, &body[199_990..]));
    let unchanged = node.get_with(&target, &["If-None-Match: \"v1\""]);
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    let mut client = node.connect();
    let request = crate::harness::Request {
        method: "HEAD",
        host: "edge.test",
        target: &target,
        fields: &[],
        body: b"",
    };
    let head = client.request(request);
    assert_eq!((head.status, &*head.header("content-length")), (200, "200000"));
    assert_eq!(origin.request_count(), 1, "{:?}", origin.received());
}

#[test]
fn requests_for_what_cannot_be_stored_go_to_the_origin_without_a_hop() {
    let origin = Origin::start(|_| Answer::ok("mine").header("Cache-Control", "private"));
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, _) = of_another(&region);
    let hops = |node: &Edge| hop_of(&node.get(&target));
    assert_eq!(hops(&region.nodes[0]), 2);
    assert_eq!(hops(&region.nodes[0]), 1, "it has learnt that from the first response");
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn a_response_that_sets_a_cookie_reaches_only_its_client() {
    let origin = Origin::start(|request| {
        let id = request.header("x-request-id").unwrap_or_default().to_owned();
        Answer::ok(id.clone()).header("Set-Cookie", &format!("id={id}")).fresh_for(60)
    });
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, _) = of_another(&region);
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let node = &region.nodes[0];
        let ask = || node.get(&target);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut bodies: Vec<_> = answers.iter().map(|answer| answer.text().to_owned()).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), answers.len(), "{answers:?}");
}

#[test]
fn a_rule_counts_a_request_at_the_node_that_the_client_asked() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, owner) = of_another(&region);
    assert_eq!(hop_of(&region.nodes[0].get(&target)), 2, "the owner has answered");
    let count = |node: usize| region.nodes[node].metric("skerry_rule_matches_total");
    assert_eq!((count(0), count(owner)), (1.0, 0.0));
}

#[test]
fn connections_that_end_at_their_age_cost_no_request() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(3600));
    let peers = "connection_age = \"1s\"\ncopy_after = 0\n";
    let Some(region) = Region::with_peers(2, &origin, peers, "") else { return };
    let (target, owner) = of_another(&region);
    let mut client = region.nodes[0].connect();
    until("several connections have ended", || {
        let answer = client.get("edge.test", &target, &[]);
        assert_eq!((answer.status, hop_of(&answer)), (200, 2), "{answer:?}");
        region.nodes[owner].metric("skerry_peer_connections_aged_total") >= 4.0
    });
    assert_eq!(origin.request_count(), 1);
    assert_eq!(region.nodes[0].metric("skerry_peer_failures_total"), 0.0);
}

#[test]
fn a_purge_at_one_node_is_not_undone_by_the_copy_of_another() {
    let versions = AtomicU64::new(0);
    let origin = Origin::start(move |_| {
        let version = versions.fetch_add(1, Ordering::Relaxed);
        Answer::ok(version.to_string()).fresh_for(3600)
    });
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, _) = of_another(&region);
    let asker = &region.nodes[0];
    let version = || asker.get(&target).text().parse::<u64>().expect("a version");
    for _ in 0..50 {
        let before = version();
        assert_eq!(asker.purge(&target).status, 200);
        let after = version();
        assert!(after > before, "{after} after a purge of {before}");
    }
}

#[test]
fn after_an_unsafe_request_the_copy_of_another_node_is_not_used() {
    let versions = AtomicU64::new(0);
    let origin = Origin::start(move |request| {
        if request.method == "POST" {
            versions.fetch_add(1, Ordering::Relaxed);
        }
        Answer::ok(versions.load(Ordering::Relaxed).to_string()).fresh_for(3600)
    });
    let Some(region) = Region::start(2, &origin, "") else { return };
    let (target, owner) = of_another(&region);
    let asker = &region.nodes[0];
    assert_eq!(region.nodes[owner].get(&target).text(), "0");
    assert_eq!(asker.get(&target).text(), "0");
    let (method, host) = ("POST", "edge.test");
    let post = Request { method, host, target: &target, fields: &[], body: b"" };
    assert_eq!(Client::connect(asker.http).request(post).status, 200);
    assert_eq!(asker.get(&target).text(), "1");
    assert_eq!(asker.get(&target).text(), "1");
}

#[test]
fn an_owner_that_is_stopped_or_killed_costs_no_client_an_error() {
    clients_are_served_while_peers_fail(&["here"; 3], "");
}

#[test]
fn a_peer_that_dies_with_an_acknowledged_request_costs_two_deadlines() {
    // The first request for each target gets no answer.
    let (gate, seen) = (Gate::default(), Mutex::new(HashSet::new()));
    let held = gate.clone();
    let origin = Origin::start(move |request| {
        let answer = Answer::ok("x").fresh_for(60);
        let is_first = seen.lock().unwrap().insert(request.target.clone());
        if is_first { answer.behind(&held) } else { answer }
    });
    let Some(request) = AcknowledgedRequest::plan(&origin) else { return };
    let answer = request.stop_peer_once(&gate, |_| {
        origin.wait_for_requests(1);
        // The acknowledgement was sent before.
        std::thread::park_timeout(PEER_DEADLINE / 4);
    });
    assert_eq!((answer.status, hop_of(&answer)), (200, 1), "{answer:?}");
}

#[test]
fn a_peer_that_dies_within_a_long_body_costs_two_deadlines() {
    let (gate, whole) = (Gate::default(), long_body());
    let (held, sent) = (gate.clone(), whole.clone());
    let origin = Origin::start(move |request| match request.header("range") {
        None => long_answer(&sent, None).pause_at(sent.len() / 2, &held),
        range => long_answer(&sent, range),
    });
    let Some(request) = AcknowledgedRequest::plan(&origin) else { return };
    let answer = request.stop_peer_once(&gate, |asker| {
        let received = || asker.metric("skerry_peer_response_bytes_total{peer=\"n1\"");
        until("half of the body has arrived", || received() >= (whole.len() / 2) as f64);
    });
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.is_complete && answer.body == whole, "{} bytes", answer.body.len());
}

#[test]
fn a_peer_that_drains_answers_what_it_has_acknowledged() {
    let gate = Gate::default();
    let origin = held_origin(&gate);
    let Some(AcknowledgedRequest { region, peer, target }) = AcknowledgedRequest::plan(&origin)
    else {
        return;
    };
    let asker = &region.nodes[0];
    std::thread::scope(|scope| {
        let _end = OpenAtEnd(&gate);
        let client = scope.spawn(|| asker.get(&target));
        origin.wait_for_requests(1);
        // From now on it takes no further request on this connection.
        peer.signal(Signal::TERM);
        std::thread::park_timeout(PEER_DEADLINE * 5 / 2);
        assert!(!client.is_finished(), "the peer was given up");
        gate.open();
        let answer = client.join().expect("an answer");
        assert_eq!((answer.status, hop_of(&answer)), (200, 2), "{answer:?}");
    });
    assert_eq!((failures(asker, "deadline"), origin.request_count()), (0.0, 1));
}

/// A request at `n0` that its peer `n1` acknowledges, and for which it asks the origin.
struct AcknowledgedRequest {
    region: Region,
    peer: Process,
    target: String,
}

impl AcknowledgedRequest {
    /// `None`: there is no redis-server.
    fn plan(origin: &Origin) -> Option<Self> {
        let peers = format!("deadline = \"{}ms\"\n", PEER_DEADLINE.as_millis());
        let (region, mut processes) =
            Region::with_lasting_processes(&["here"; 2], origin, &peers, "")?;
        let (target, _) = of_another(&region);
        Some(Self { region, peer: processes.remove(0), target })
    }

    /// The answer to a request whose peer is stopped once `is_begun` returns. It was waited for until two deadlines had
    /// passed: the PING of the connection fails later. `gate`: of the origin.
    fn stop_peer_once(&self, gate: &Gate, is_begun: impl FnOnce(&Edge)) -> Response {
        let asker = &self.region.nodes[0];
        let answer = std::thread::scope(|scope| {
            let _end = OpenAtEnd(gate);
            let client = scope.spawn(|| asker.get(&self.target));
            is_begun(asker);
            self.peer.signal(Signal::STOP);
            let stopped = Instant::now();
            let answer = client.join().expect("an answer");
            eprintln!("answered {:?} after the peer was stopped", stopped.elapsed());
            answer
        });
        let reasons = ["deadline", "body", "connection"].map(|reason| failures(asker, reason));
        assert_eq!(reasons, [1.0, 0.0, 0.0]);
        assert_eq!(asker.metric("skerry_peer_up{peer=\"n1\""), 0.0, "other requests do not wait");
        self.peer.signal(Signal::CONT);
        answer
    }
}

/// Requests at `n1` that failed for this reason.
fn failures(asker: &Edge, reason: &str) -> f64 {
    asker.metric(&format!("skerry_peer_failures_total{{peer=\"n1\",reason=\"{reason}\""))
}

/// `peers.deadline` where a test waits for it: a busy machine is no failure, and three of them end before a PING that has no
/// answer ends the connection, after 3 s.
const PEER_DEADLINE: Duration = Duration::from_millis(750);

/// Lets the origin answer, also when the test fails.
struct OpenAtEnd<'a>(&'a Gate);

impl Drop for OpenAtEnd<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

fn long_body() -> Vec<u8> {
    (0..400_000_u32).map(|at| at as u8).collect()
}

/// The answer with this body to a request with this `Range`, of one range with both ends.
fn long_answer(whole: &[u8], range: Option<&str>) -> Answer {
    let Some(range) = range else {
        return Answer::ok(whole).fresh_for(60).header("ETag", "\"v1\"");
    };
    let (from, to) = range["bytes=".len()..].split_once('-').expect("a range");
    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
    let to = to.min(whole.len() - 1);
    let place = format!("bytes {from}-{to}/{}", whole.len());
    let part = Answer::part(&whole[from..=to]).header("Content-Range", &place);
    part.fresh_for(60).header("ETag", "\"v1\"")
}

/// Runs `n0` in this process and two nodes as others, in these regions, which it asks for responses. One of them is
/// stopped and goes on, the other one is killed, while clients ask `n0`. `more`: of its configuration.
pub fn clients_are_served_while_peers_fail(regions: &[&str; 3], more: &str) {
    // The peer breaks off bodies of this length while they are passed on.
    let long = long_body();
    let whole = long.clone();
    let origin = Origin::start(move |request| match request.target.starts_with("/long") {
        true => long_answer(&whole, request.header("range")),
        false => Answer::ok(request.target.clone()).fresh_for(60),
    });
    // A node that is stopped must be found out by those that ask it, long before the table says that it is out.
    let started = Region::with_lasting_processes(regions, &origin, "", more);
    let Some((region, mut owners)) = started else { return };
    let (asker, is_over) = (&region.nodes[0], AtomicBool::new(false));
    let answered = AtomicU64::new(0);
    let ask = |client: u64| {
        let mut number = client * 1_000_000;
        while !is_over.load(Ordering::Relaxed) {
            number += 1;
            let long_one = number.is_multiple_of(8);
            let target = if long_one { format!("/long-{number}") } else { format!("/{number}") };
            let answer = asker.get(&target);
            assert_eq!(answer.status, 200, "{target}: {}", answer.header("proxy-status"));
            let expected = if long_one { &long[..] } else { target.as_bytes() };
            assert!(answer.is_complete && answer.body == expected, "{target}");
            answered.fetch_add(1, Ordering::Relaxed);
        }
    };
    let after = |what: &str, more: u64| {
        let start = answered.load(Ordering::Relaxed);
        until(what, || answered.load(Ordering::Relaxed) >= start + more);
    };
    std::thread::scope(|scope| {
        let _end = SetAtEnd(&is_over);
        (0..4).for_each(|client| drop(scope.spawn(move || ask(client))));
        let asked = |reason: &str| failures(asker, reason);
        after("clients are served", 50);
        let (before, stopped) = (asked("deadline"), Instant::now());
        owners[0].signal(Signal::STOP);
        after("and while an owner is stopped", 50);
        until("which was noticed", || asked("deadline") > before);
        until("and it is left out", || asker.metric("skerry_peer_up{peer=\"n1\"") == 0.0);
        // The requests in flight waited for it, and then one in each `skip_for` of a second.
        let (waited, trials) = (asked("deadline") - before, stopped.elapsed().as_secs_f64().ceil());
        assert!(waited <= 4.0 + trials, "{waited} requests waited for a dead peer");
        owners[0].signal(Signal::CONT);
        until("it is asked again", || asker.metric("skerry_peer_up{peer=\"n1\"") == 1.0);
        owners[1].signal(Signal::KILL);
        after("and after another one was killed", 50);
    });
    let responses = asker.metric("skerry_peer_responses_total");
    assert!(responses > 20.0, "the owners have answered: {responses}");
    drop(owners.drain(..));
}

/// Ends the clients, also when the test fails.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Requests of a cold region: Zipf-distributed over [`OBJECTS`] objects, some of which vary, some of the requests
/// for ranges. Returns the requests at the origin for each distinct response that was asked for.
fn origin_requests_for_each_response(nodes: &[Edge], origin: &Origin) -> f64 {
    let asked = Mutex::new(HashSet::new());
    let next = AtomicU64::new(0);
    let ask = |client: u64| {
        let mut random = Random(client);
        while next.fetch_add(1, Ordering::Relaxed) < REQUESTS {
            // The probability of an object is about proportional to 1 / its number.
            let exponent = random.below(1 << 20) as f64 / f64::from(1 << 20);
            let object = (OBJECTS as f64).powf(exponent) as u64;
            let language = ["de", "en"][random.below(2) as usize];
            let varies = object.is_multiple_of(10);
            let target = format!("/{}-{object}", if varies { "varies" } else { "plain" });
            let accept = format!("Accept-Language: {language}");
            let mut fields = vec![&*accept];
            let is_range = random.below(10) == 0;
            if is_range {
                fields.push("Range: bytes=100-199");
            }
            let node = &nodes[random.below(nodes.len() as u64) as usize];
            let answer = node.get_with(&target, &fields);
            let body = body_of(&target, if varies { language } else { "" });
            let expected = if is_range { &body[100..200] } else { &body[..] };
            assert_eq!(answer.status, if is_range { 206 } else { 200 }, "{answer:?}");
            assert_eq!(answer.body, expected, "{target}");
            asked.lock().unwrap().insert(body);
        }
    };
    std::thread::scope(|scope| (0..32).for_each(|client| drop(scope.spawn(move || ask(client)))));
    let distinct = asked.lock().unwrap().len();
    eprintln!(
        "{REQUESTS} requests, {distinct} responses, {} at the origin",
        origin.request_count()
    );
    origin.request_count() as f64 / distinct as f64
}

/// An origin that is slow enough for requests to overlap.
fn slow_origin() -> Origin {
    Origin::start(|request| {
        std::thread::park_timeout(Duration::from_millis(100));
        let varies = request.target.starts_with("/varies");
        let language = request.header("accept-language").filter(|_| varies);
        let answer = Answer::ok(body_of(&request.target, language.unwrap_or_default()));
        let answer = answer.fresh_for(600).header("ETag", "\"v1\"");
        if varies { answer.header("Vary", "Accept-Language") } else { answer }
    })
}

fn body_of(target: &str, language: &str) -> Vec<u8> {
    format!("{target} {language}\n").repeat(100).into_bytes()
}

#[test]
fn a_cold_region_asks_the_origin_about_once_for_each_response() {
    let origin = slow_origin();
    let Some(region) = Region::start(3, &origin, "") else { return };
    let share = origin_requests_for_each_response(&region.nodes, &origin);
    assert!(share <= 1.05, "{share}");
}

/// The same without peers, for comparison.
#[test]
#[ignore = "a measurement: cargo test --test it -- --ignored --nocapture nodes_without_peers"]
fn nodes_without_peers_each_ask_the_origin() {
    let origin = slow_origin();
    let nodes: Vec<Edge> = (0..3).map(|_| Edge::before(&origin.url())).collect();
    println!("{}", origin_requests_for_each_response(&nodes, &origin));
}

const OBJECTS: u64 = 300;
const REQUESTS: u64 = 3000;
