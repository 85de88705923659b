//! The purge bus of a fleet: real `skerry` processes, a real `redis-server`, an origin with a clock, and a
//! checker that is independent of both. Skipped without `redis-server`.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use serde_json::Value;
use skerry::Clock;
use tempfile::TempDir;

use crate::harness::peer::FleetAuthority;
use crate::harness::redis::free_address;
use crate::harness::{Answer, CutLink, LongLink, Origin, Random, RedisProcess, Request};

/// Acknowledged purges stay in force when processes are killed, connections closed and the stream trimmed.
/// `SKERRY_CHAOS_PURGES` is the number of purges (10,000 in the long form), `SKERRY_CHAOS_SEED` repeats a run.
#[test]
fn no_fresh_response_is_older_than_an_acknowledged_purge() {
    let Some(fleet) = Fleet::start(5) else { return };
    purge_in_chaos(fleet, 500);
}

/// The same in a region, whose nodes ask each other; the links between them break as well.
#[test]
fn no_fresh_response_of_a_region_is_older_than_an_acknowledged_purge() {
    let Some(fleet) = Fleet::of_peers(3, true, "") else { return };
    purge_in_chaos(fleet, 300);
}

/// The same without Redis.
#[test]
fn no_fresh_response_of_static_peers_is_older_than_an_acknowledged_purge() {
    let Some(fleet) = Fleet::of_peers(3, false, "") else { return };
    purge_in_chaos(fleet, 300);
}

/// Without one of these parts of the rule of purges between nodes, clients get old responses. That a request joins no
/// fill from before a purge is tested in `src/fill`.
#[test]
#[ignore = "needs skerry with the feature planted-bugs in SKERRY_BINARY, see simulation/tests/planted.rs"]
fn each_planted_bug_of_purges_between_nodes_is_found() {
    for (bug, has_redis) in
        [("position-ignored", true), ("unread-ignored", true), ("deliveries-ignored", false)]
    {
        let Some(fleet) = Fleet::of_peers(3, has_redis, bug) else { return };
        let violations = run_chaos(fleet, 3000);
        assert!(!violations.is_empty(), "{bug} was not found");
    }
}

/// `purges`: their number, unless the environment has one.
fn purge_in_chaos(fleet: Fleet, purges: u64) {
    let violations = run_chaos(fleet, purges);
    assert!(violations.is_empty(), "{violations:#?}");
}

/// Orders purges, reads and breaks things at once. Returns what was served in spite of a purge.
fn run_chaos(fleet: Fleet, purges: u64) -> Vec<String> {
    let purges = from_environment("SKERRY_CHAOS_PURGES").unwrap_or(purges);
    let seed = from_environment("SKERRY_CHAOS_SEED").unwrap_or_else(|| now_us(&Clock::system()));
    eprintln!("SKERRY_CHAOS_PURGES={purges} SKERRY_CHAOS_SEED={seed}");
    let fleet = Arc::new(fleet);
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..fleet.nodes.len())
        .map(|node| {
            let (fleet, is_over) = (fleet.clone(), is_over.clone());
            std::thread::spawn(move || read(&fleet, node, seed, &is_over))
        })
        .collect();
    let breaker = {
        let (fleet, is_over) = (fleet.clone(), is_over.clone());
        std::thread::spawn(move || break_things(&fleet, seed, &is_over))
    };
    let purgers: Vec<_> = (0..PURGERS)
        .map(|number| {
            let fleet = fleet.clone();
            let share = purges / PURGERS;
            std::thread::spawn(move || purge(&fleet, number, share, seed))
        })
        .collect();
    let ordered: u64 = purgers.into_iter().map(|thread| thread.join().unwrap()).sum();
    is_over.store(true, Ordering::Relaxed);
    let faults = breaker.join().unwrap();
    let hits: u64 = readers.into_iter().map(|thread| thread.join().unwrap()).sum();
    fleet.settle();
    fleet.check_all();
    let violations = fleet.violations.lock().unwrap().clone();
    let gaps = fleet.gaps();
    eprintln!(
        "{ordered} purges acknowledged, {hits} fresh hits checked, {faults} faults, {gaps} gaps, {} violations",
        violations.len()
    );
    let is_proof = hits > 0 && ordered >= purges / 2;
    assert!(is_proof || !violations.is_empty(), "the run proved nothing");
    violations
}

/// From the order on one node until it is in force and durable on five. Prints the figures of
/// docs/benchmarks-purge.md.
#[test]
#[ignore = "a measurement: cargo test --release --test it -- --ignored --nocapture --test-threads 1 purges_travel"]
fn purges_travel_fast() {
    let Some(fleet) = Fleet::start(5) else { return };
    println!("loopback, each node serves a client that asks as fast as it is answered");
    measure(fleet, from_environment("SKERRY_PURGES").unwrap_or(2000), Duration::ZERO);
}

/// The same with 75 ms between each node and Redis, so that two nodes are 150 ms apart.
#[test]
#[ignore = "a measurement: cargo test --release --test it -- --ignored --nocapture --test-threads 1 purges_travel"]
fn purges_travel_over_a_long_link() {
    let Some(fleet) = Fleet::start_apart(5, Duration::from_millis(75)) else { return };
    println!("150 ms from node to node, purges ordered every 20 ms");
    measure(fleet, from_environment("SKERRY_PURGES").unwrap_or(500), Duration::from_millis(20));
}

/// Orders purges at each node in turn: the next one `pause` after the one before, or, without a
/// pause, when that is answered.
fn measure(fleet: Fleet, count: u64, pause: Duration) {
    let fleet = Arc::new(fleet);
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..fleet.nodes.len())
        .map(|node| {
            let (fleet, is_over) = (fleet.clone(), is_over.clone());
            std::thread::spawn(move || read(&fleet, node, 1, &is_over))
        })
        .collect();
    let mut answers = Vec::new();
    let mut ordered = VecDeque::new();
    for number in 0..count {
        let order = {
            let fleet = fleet.clone();
            std::thread::spawn(move || order_at_all(&fleet, number))
        };
        ordered.push_back(order);
        if pause.is_zero() {
            answers.extend(ordered.drain(..).map(|order| order.join().unwrap()));
        }
        std::thread::park_timeout(pause);
    }
    answers.extend(ordered.into_iter().map(|order| order.join().unwrap()));
    is_over.store(true, Ordering::Relaxed);
    let hits: u64 = readers.into_iter().map(|thread| thread.join().unwrap()).sum();
    for (at, what) in
        ["in force on all", "durable on all", "answered wait=all"].into_iter().enumerate()
    {
        let (p50, p99, max) = percentiles(answers.iter().map(|times| times[at]).collect());
        println!("{what}: p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms");
    }
    println!("{count} purges, {hits} hits checked meanwhile, {} nodes", fleet.nodes.len());
}

/// Until the purge is in force on all nodes, durable on all, and until that was answered, in
/// milliseconds.
fn order_at_all(fleet: &Fleet, number: u64) -> [f64; 3] {
    let started = fleet.clock.instant();
    let node = &fleet.nodes[number as usize % fleet.nodes.len()];
    let body = format!("{{\"url\": \"http://{HOST}/{}\"}}", number % KEYS);
    let (_, answer) = node.admin("POST", "/purge?wait=all&timeout=10s", &body).unwrap();
    let answered = started.elapsed().as_secs_f64() * 1e3;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["complete"], true, "{answer}");
    let nodes = answer["nodes"].as_object().unwrap().values();
    let slowest =
        |name: &str| nodes.clone().filter_map(|node| node[name].as_f64()).fold(0.0, f64::max);
    [slowest("ms"), slowest("durable_ms"), answered]
}

#[test]
fn every_node_refreshes_the_responses_that_a_purge_covered() {
    let Some(fleet) = Fleet::start(2) else { return };
    for node in &fleet.nodes {
        node.get("/1").unwrap();
    }
    let order = format!(r#"{{"url": "http://{HOST}/1", "refresh": 1}}"#);
    let (status, answer) = fleet.nodes[0].admin("POST", "/purge?wait=all", &order).unwrap();
    assert_eq!(status, 200, "{answer}");
    for node in &fleet.nodes {
        let fetched = || node.metric("skerry_prefetches_total{outcome=\"fetched\"}");
        until("it has fetched it again", || fetched() == Some(1.0));
        let (_, head, _) = node.get("/1").unwrap();
        assert!(head.contains("; hit"), "{head}");
    }
}

#[test]
fn while_the_bus_is_silent_each_site_does_as_it_has_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let Some(redis) = RedisProcess::start(folder.path()) else { return };
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(3600).header("etag", "\"1\""));
    let more = "silence_max = \"1s\"\n\
                [sites.serving]\nhosts = \"serving.test\"\nsilence = \"serve\"\n\
                [sites.validating]\nhosts = \"validating.test\"\nsilence = \"validate\"\n";
    let node = NodeProcess::new(&folder, 0, Some(redis.port), &origin, more);
    node.run();
    node.wait_until_ready();
    let get =
        |host: &str| crate::harness::exchange(node.http, host, "/", &[]).header("cache-status");
    for host in ["serving.test", "validating.test"] {
        get(host);
        let status = get(host);
        assert!(status.contains("; hit") && !status.contains("detail"), "{host}: {status}");
    }
    redis.kill();
    until("the node knows", || node.metric("skerry_bus_silent") == Some(1.0));
    let status = get("serving.test");
    assert!(status.contains("; hit") && status.contains("detail=bus-silent"), "{status}");
    let status = get("validating.test");
    assert!(status.contains("fwd=stale") && status.contains("detail=purges-missed"), "{status}");
    let purge = node.admin("POST", "/purge", r#"{"tag": "t"}"#).unwrap().1;
    assert!(purge.contains("\"published\": false"), "{purge}");
    redis.run();
    until("it hears again", || node.metric("skerry_bus_silent") == Some(0.0));
    // On a busy machine the bus may be silent again for a moment.
    until("stored responses are used again", || {
        let status = get("validating.test");
        status.contains("; hit") && !status.contains("detail")
    });
}

#[test]
fn a_site_that_wants_no_clients_in_silence_takes_the_node_out() {
    let folder = tempfile::tempdir().unwrap();
    let Some(redis) = RedisProcess::start(folder.path()) else { return };
    let origin = Origin::start(|_| Answer::ok("x"));
    let more = "silence_max = \"1s\"\n[sites.shop]\nhosts = \"shop.test\"\nsilence = \"drain\"\n";
    let node = NodeProcess::new(&folder, 0, Some(redis.port), &origin, more);
    node.run();
    node.wait_until_ready();
    redis.kill();
    let ready = || node.admin("GET", "/readyz", "").unwrap();
    until("it is not ready", || ready().0 == 503);
    assert!(ready().1.contains("purge bus silent"), "{}", ready().1);
    assert_eq!(node.get("/").unwrap().0, 200, "who comes is served");
    redis.run();
    node.wait_until_ready();
}

#[test]
fn bad_purges_are_refused_with_a_problem_that_says_why() {
    let tokens = "ops all sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n\
                  web purge:other sha256:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752\n\
                  eye read sha256:fd61a03af4f77d870fc21e05e7e80678095c92d808cfb3b5c279ee04c74aca13\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokens"), tokens).unwrap();
    let origin = Origin::start(|_| Answer::ok("x"));
    let node = NodeProcess::new(
        &folder,
        0,
        None,
        &origin,
        "[admin]\ntokens = \"tokens\"\n\
         [sites.other]\nhosts = \"other.test\"\nrespond.content = \"x\"\n",
    );
    node.run();
    node.wait_until_ready();
    // The tokens are "test", "test2" and "test3".
    let check = |token: &str, body: &str, status: u16, expected: &str| {
        let (got, answer) = node.call("POST", "/purge", body, &[&bearer(token)]).unwrap();
        assert_eq!(got, status, "{answer}");
        let problem: Value = serde_json::from_str(&answer).unwrap();
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(expected), "{answer}");
        assert_eq!(problem["status"], status);
    };
    check("test", r#"{"uri": "x"}"#, 400, "unknown field \"uri\"");
    check("test", r#"{"url": "/relative"}"#, 400, "expected an absolute http or https URL");
    check("test", r#"{"url": "http://["}"#, 400, "url");
    check(
        "test",
        r#"{"site": "al"}"#,
        400,
        "this node has no site with this name; did you mean \"all\"?",
    );
    check("wrong", r#"{"all": true}"#, 401, "unknown token");
    check("test3", r#"{"all": true}"#, 403, "may only read");
    check("test2", r#"{"all": true}"#, 403, "may only read, and purge the content of other");
    check("test2", r#"{"site": "all"}"#, 403, "may only read, and purge the content of other");
    let url = format!(r#"{{"url": "http://{HOST}/1"}}"#);
    check("test2", &url, 403, "may only read, and purge the content of other");
    let many = vec!["\"t\""; 11_000].join(",");
    check("test", &format!(r#"{{"tags": [{many}]}}"#), 413, "at most 10000");
    let (status, answer) = node.call("POST", "/purge?wait=x", "{}", &[&bearer("test")]).unwrap();
    assert_eq!(status, 400, "{answer}");
    let (status, _) = node.call("POST", "/purge", r#"{"all": true}"#, &[&bearer("test")]).unwrap();
    assert_eq!(status, 200);
    let (status, _) =
        node.call("POST", "/purge", r#"{"site": "other"}"#, &[&bearer("test2")]).unwrap();
    assert_eq!(status, 200);
    let (status, _) = node.call("GET", "/purges", "", &[&bearer("test3")]).unwrap();
    assert_eq!(status, 200);
    let (status, _) = node.call("POST", "/drain", "", &[&bearer("test3")]).unwrap();
    assert_eq!(status, 403);
    assert_eq!(gigabyte(&node), 413);
}

#[test]
fn a_purge_request_purges_where_it_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(3600));
    let check = |number, from: &str, expected: (u16, bool)| {
        let more = format!("[guard]\npurge_from = [{from}]\n");
        let node = NodeProcess::new(&folder, number, None, &origin, &more);
        node.run();
        node.wait_until_ready();
        node.get("/1?a=b").unwrap();
        assert!(node.get("/1?a=b").unwrap().1.contains("; hit"));
        let (status, ..) = exchange(
            node.http,
            Request { method: "PURGE", host: HOST, target: "/1?a=b", fields: &[], body: b"" },
        )
        .unwrap();
        let is_gone = !node.get("/1?a=b").unwrap().1.contains("; hit");
        assert_eq!((status, is_gone), expected, "{from}");
    };
    check(0, "\"127.0.0.0/8\"", (200, true));
    check(1, "\"192.0.2.0/24\"", (403, false));
}

#[test]
fn a_full_disk_under_the_logs_stops_neither_purges_nor_clients() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(3600));
    let node = NodeProcess::new(&folder, 0, None, &origin, "[admin]\naudit_log = \"/dev/full\"\n");
    let errors = std::fs::File::options().write(true).open("/dev/full").unwrap();
    node.run_with("trace", errors.into());
    node.wait_until_ready();
    for _ in 0..3 {
        assert_eq!(node.get("/1").unwrap().0, 200);
        let (status, answer) = node.admin("POST", "/purge", r#"{"all": true}"#).unwrap();
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(node.metric("skerry_audit_lines_lost_total"), Some(3.0));
}

/// A request with a too large `Content-Length` is refused before its body is sent.
fn gigabyte(node: &NodeProcess) -> u16 {
    let mut stream = TcpStream::connect(node.admin).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let head = format!(
        "POST /purge HTTP/1.1\r\nHost: localhost\r\n{}\r\nContent-Length: 1073741824\r\n\r\n",
        bearer("test")
    );
    stream.write_all(head.as_bytes()).unwrap();
    let block = vec![b'x'; 64 << 10];
    // The node may close its side while we still write.
    for _ in 0..16_384 {
        if stream.write_all(&block).is_err() {
            break;
        }
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// Nodes, Redis or none, an origin that puts its clock into each response, and the acknowledged purges.
struct Fleet {
    nodes: Vec<NodeProcess>,
    redis: Option<RedisProcess>,
    /// If they are peers: the way to the peer listener of each node, then the way of each to Redis.
    links: Vec<CutLink>,
    clock: Clock,
    /// For each node and key: when the latest purge was ordered that the node has acknowledged.
    acknowledged: Vec<Mutex<BTreeMap<u64, u64>>>,
    /// For each key: when the latest purge was ordered that somebody has acknowledged.
    ordered: Mutex<BTreeMap<u64, u64>>,
    violations: Mutex<Vec<String>>,
    _link: Option<LongLink>,
    _authority: Option<FleetAuthority>,
    _origin: Origin,
    _folder: TempDir,
}

impl Fleet {
    fn start(count: usize) -> Option<Self> {
        Self::start_apart(count, Duration::ZERO)
    }

    /// `delay` is the time that a byte takes from a node to Redis or back.
    fn start_apart(count: usize, delay: Duration) -> Option<Self> {
        let clock = Clock::system();
        let folder = tempfile::tempdir().unwrap();
        let redis = RedisProcess::start(folder.path())?;
        let link = (!delay.is_zero()).then(|| LongLink::to(redis.port, delay));
        let port = link.as_ref().map_or(redis.port, |link| link.port);
        let stamps = clock.clone();
        // A long lifetime and no validator: a stale response is fetched completely.
        let origin =
            Origin::start(move |_| Answer::ok(now_us(&stamps).to_string()).fresh_for(3600));
        let nodes: Vec<_> = (0..count)
            .map(|number| NodeProcess::new(&folder, number, Some(port), &origin, ""))
            .collect();
        nodes.iter().for_each(NodeProcess::run);
        nodes.iter().for_each(NodeProcess::wait_until_ready);
        for node in &nodes {
            until("the fleet has met", || node.fleet_size() == count);
        }
        Some(Self {
            acknowledged: nodes.iter().map(|_| Mutex::default()).collect(),
            ordered: Mutex::default(),
            nodes,
            redis: Some(redis),
            links: Vec::new(),
            clock,
            violations: Mutex::default(),
            _link: link,
            _authority: None,
            _origin: origin,
            _folder: folder,
        })
    }

    /// Nodes of a region, which ask each other; with Redis, or with a list of static peers.
    /// `bug` is planted in all of them.
    fn of_peers(count: usize, has_redis: bool, bug: &'static str) -> Option<Self> {
        let clock = Clock::system();
        let folder = tempfile::tempdir().unwrap();
        let redis = match has_redis {
            true => Some(RedisProcess::start(folder.path())?),
            false => None,
        };
        let stamps = clock.clone();
        // Slow enough for purges to overtake fills.
        let origin = Origin::start(move |_| {
            let answer = Answer::ok(now_us(&stamps).to_string()).fresh_for(3600);
            std::thread::park_timeout(Duration::from_millis(10));
            answer
        });
        let names: Vec<String> = (0..count).map(|number| format!("node-{number}")).collect();
        let authority = FleetAuthority::new();
        authority.issue(&names.iter().map(String::as_str).collect::<Vec<_>>(), 0);
        let places: Vec<SocketAddr> = names.iter().map(|_| free_address()).collect();
        let mut links: Vec<CutLink> =
            places.iter().map(|place| CutLink::to(place.port())).collect();
        let to_redis = |redis: &RedisProcess| CutLink::to(redis.port);
        links.extend(names.iter().filter_map(|_| redis.as_ref().map(to_redis)));
        let list: String = names
            .iter()
            .zip(&links)
            .filter(|_| !has_redis)
            .map(|(name, link)| {
                format!("[peers.nodes.{name}]\naddress = \"127.0.0.1:{}\"\n", link.port)
            })
            .collect();
        let node = |number: usize| {
            let (place, port) = (places[number], links[number].port);
            let section = authority.section(&names[number]).replace(
                "addresses = \"127.0.0.1:0\"",
                &format!("addresses = \"{place}\"\nannounced = \"127.0.0.1:{port}\""),
            );
            let more = format!("{section}deadline = \"2s\"\ncheck_interval = \"200ms\"\n{list}");
            let redis = links.get(count + number).map(|link| link.port);
            let mut node = NodeProcess::new(&folder, number, redis, &origin, &more);
            node.bug = bug;
            node
        };
        let nodes: Vec<_> = (0..count).map(node).collect();
        nodes.iter().for_each(NodeProcess::run);
        nodes.iter().for_each(NodeProcess::wait_until_ready);
        for node in &nodes {
            until("the region has met", || node.ready_peers() == count);
        }
        Some(Self {
            acknowledged: nodes.iter().map(|_| Mutex::default()).collect(),
            ordered: Mutex::default(),
            nodes,
            redis,
            links,
            clock,
            violations: Mutex::default(),
            _link: None,
            _authority: Some(authority),
            _origin: origin,
            _folder: folder,
        })
    }

    /// Compares a response with the purges that its node had acknowledged before the request. A response that a
    /// soft purge covers is stale, and the origin always answers. Returns whether the response was a hit.
    fn check(&self, node: usize, key: u64, promised: u64, answer: &(u16, String, String)) -> bool {
        let (status, head, body) = answer;
        let is_hit = head.to_ascii_lowercase().contains("cache-status") && head.contains("; hit");
        let (200, Ok(stamp)) = (*status, body.parse::<u64>()) else { return false };
        // The origin had the request before the purge was ordered: so it was sent before.
        if stamp < promised {
            let late = promised - stamp;
            self.violations.lock().unwrap().push(format!(
                "node {node}, key {key}: served, though fetched {late} µs before a purge that it had acknowledged"
            ));
        }
        is_hit
    }

    fn promised(&self, node: usize, key: u64) -> u64 {
        self.acknowledged[node].lock().unwrap().get(&key).copied().unwrap_or_default()
    }

    /// Restarts everything and waits until every node has applied all purges.
    fn settle(&self) {
        self.links.iter().for_each(CutLink::mend);
        for node in &self.nodes {
            node.run();
        }
        self.nodes.iter().for_each(NodeProcess::wait_until_ready);
        match &self.redis {
            Some(redis) => self.settle_with(redis),
            None => self.nodes.iter().for_each(|node| {
                until("its peers have all purges", || {
                    (0..self.nodes.len()).all(|peer| {
                        let metric = format!("skerry_peer_purges_untaken{{peer=\"node-{peer}\"}}");
                        node.metric(&metric).is_none_or(|untaken| untaken == 0.0)
                    })
                });
            }),
        }
        // One more purge behind all others. With Redis: in order, so all others are there when it is.
        let body = format!("{{\"url\": \"http://{HOST}/settled\"}}");
        until("a purge reaches all", || {
            let answer = self.nodes[0].admin("POST", "/purge?wait=all&timeout=5s", &body);
            answer.is_ok_and(|(_, answer)| answer.contains("\"complete\": true"))
        });
    }

    fn settle_with(&self, redis: &RedisProcess) {
        redis.run();
        for node in &self.nodes {
            until("the outbox is empty", || node.metric("skerry_bus_outbox") == Some(0.0));
        }
        for node in &self.nodes {
            until("it has caught up", || {
                node.metric("skerry_bus_lag") == Some(0.0)
                    && node.metric("skerry_bus_connected") == Some(1.0)
            });
        }
    }

    /// In the end every purge that anybody acknowledged holds on every node.
    fn check_all(&self) {
        let ordered = self.ordered.lock().unwrap().clone();
        for (key, promised) in ordered {
            for (number, node) in self.nodes.iter().enumerate() {
                let answer = node.get(&format!("/{key}")).expect("a node that is up answers");
                self.check(number, key, promised, &answer);
            }
        }
    }

    fn gaps(&self) -> f64 {
        let gaps = |node: &NodeProcess| {
            GAPS.iter()
                .filter_map(|gap| {
                    node.metric(&format!("skerry_bus_gaps_total{{reason=\"{gap}\"}}"))
                })
                .sum::<f64>()
        };
        self.nodes.iter().map(gaps).sum()
    }
}

/// Requests random keys from one node until the end of the test. Returns the number of fresh hits.
fn read(fleet: &Fleet, node: usize, seed: u64, is_over: &AtomicBool) -> u64 {
    let mut random = Random(seed ^ (node as u64 + 1));
    let mut hits = 0;
    while !is_over.load(Ordering::Relaxed) {
        let key = random.below(KEYS);
        let promised = fleet.promised(node, key);
        match fleet.nodes[node].get(&format!("/{key}")) {
            Ok(answer) => hits += u64::from(fleet.check(node, key, promised, &answer)),
            // It is down: somebody has killed it.
            Err(_) => std::thread::yield_now(),
        }
    }
    hits
}

/// Orders purges at any node, until a promise is broken; how many were acknowledged.
fn purge(fleet: &Fleet, number: u64, count: u64, seed: u64) -> u64 {
    let mut random = Random(seed ^ 0xabcd ^ (number << 32));
    let mut acknowledged = 0;
    while acknowledged < count && fleet.violations.lock().unwrap().is_empty() {
        let key = random.below(KEYS);
        let at = random.below(fleet.nodes.len() as u64) as usize;
        let body =
            format!("{{\"url\": \"http://{HOST}/{key}\", \"soft\": {}}}", random.below(4) == 0);
        let wait = ["local", "quorum", "all"][random.below(3) as usize];
        let ordered_at = now_us(&fleet.clock);
        let target = format!("/purge?wait={wait}&timeout=300ms");
        let Ok((200 | 202, answer)) = fleet.nodes[at].admin("POST", &target, &body) else {
            std::thread::yield_now();
            continue;
        };
        acknowledged += 1;
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        raise(&fleet.ordered, key, ordered_at);
        for (name, state) in answer["nodes"].as_object().expect("nodes") {
            // After Redis has lost its data, a pending node may have no name.
            if state["state"] == "applied" {
                let number: usize = name.trim_start_matches("node-").parse().expect("a number");
                raise(&fleet.acknowledged[number], key, ordered_at);
            }
        }
    }
    acknowledged
}

fn raise(promises: &Mutex<BTreeMap<u64, u64>>, key: u64, at: u64) {
    let mut promises = promises.lock().unwrap();
    let promised = promises.entry(key).or_default();
    *promised = at.max(*promised);
}

/// Kills, cuts and trims until the end; how many faults there were.
fn break_things(fleet: &Fleet, seed: u64, is_over: &AtomicBool) -> u64 {
    let mut random = Random(seed ^ 0x5eed);
    let mut faults = 0;
    while !is_over.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(100 + random.below(400)));
        faults += 1;
        let breaks_link = !fleet.links.is_empty() && random.below(2) == 0;
        match &fleet.redis {
            _ if breaks_link => break_link(fleet, &mut random),
            Some(redis) => break_bus(fleet, redis, &mut random),
            None => break_node(fleet, &mut random),
        }
    }
    faults
}

fn break_bus(fleet: &Fleet, redis: &RedisProcess, random: &mut Random) {
    match random.below(10) {
        0..=3 => {
            redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        4 | 5 => {
            redis.kill();
            std::thread::park_timeout(Duration::from_millis(random.below(1000)));
            redis.run();
        }
        6 | 7 => break_node(fleet, random),
        8 => {
            let node = &fleet.nodes[random.below(fleet.nodes.len() as u64) as usize];
            node.kill();
            redis.command(&["XTRIM", "{skerry:purge}:stream", "MAXLEN", "2"]);
            node.run();
        }
        _ => redis.command(&["FLUSHALL"]),
    }
}

fn break_node(fleet: &Fleet, random: &mut Random) {
    let node = &fleet.nodes[random.below(fleet.nodes.len() as u64) as usize];
    node.kill();
    std::thread::park_timeout(Duration::from_millis(random.below(500)));
    node.run();
}

fn break_link(fleet: &Fleet, random: &mut Random) {
    let link = &fleet.links[random.below(fleet.links.len() as u64) as usize];
    link.cut();
    std::thread::park_timeout(Duration::from_millis(random.below(1000)));
    link.mend();
}

/// A `skerry` process that can be killed and restarted with the same configuration.
pub(crate) struct NodeProcess {
    pub http: SocketAddr,
    admin: SocketAddr,
    arguments: Vec<String>,
    /// The planted bug. Empty: none.
    bug: &'static str,
    process: RwLock<Option<Child>>,
}

impl NodeProcess {
    pub fn new(
        folder: &TempDir,
        number: usize,
        redis: Option<u16>,
        origin: &Origin,
        more: &str,
    ) -> Self {
        let (http, admin) = (free_address(), free_address());
        let bus = redis.map_or_else(String::new, |port| {
            format!(
                "[bus]\nredis = \"redis://127.0.0.1:{port}\"\nheartbeat = \"200ms\"\n\
                 reconnect_pause_max = \"500ms\"\n"
            )
        });
        let text = format!(
            "[node]\nname = \"node-{number}\"\nworkers = 1\ndata_directory = \"data-{number}\"\n\
             [log]\naccess = \"off\"\n\
             [store]\nmemory = \"32MiB\"\ndisk = \"64MiB\"\nadmission = \"all\"\n\
             [pools.main]\norigins = \"{}\"\n\
             [sites.all]\nhosts = \"*\"\n{bus}{more}",
            origin.url(),
        );
        let file = folder.path().join(format!("node-{number}.toml"));
        std::fs::write(&file, text).unwrap();
        let arguments = ["run", "--config", file.to_str().unwrap(), "--http", &http.to_string()];
        let mut arguments = arguments.map(str::to_owned).to_vec();
        arguments.extend(["--admin".to_owned(), admin.to_string()]);
        Self { http, admin, arguments, bug: "", process: RwLock::new(None) }
    }

    /// Starts it, unless it runs.
    pub fn run(&self) {
        self.run_with("off", Stdio::inherit());
    }

    fn run_with(&self, level: &str, errors: Stdio) {
        let mut process = self.process.write().unwrap();
        if process.is_none() {
            let own = || env!("CARGO_BIN_EXE_skerry").into();
            let binary = std::env::var_os("SKERRY_BINARY").filter(|_| !self.bug.is_empty());
            let started = Command::new(binary.unwrap_or_else(own))
                .args(&self.arguments)
                .env("SKERRY_PLANTED_BUG", self.bug)
                .env("RUST_LOG", level)
                .stdout(Stdio::null())
                .stderr(errors)
                .spawn();
            *process = Some(started.unwrap());
        }
    }

    pub fn kill(&self) {
        if let Some(mut process) = self.process.write().unwrap().take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn wait_until_ready(&self) {
        until("the node is ready", || {
            self.admin("GET", "/readyz", "").is_ok_and(|(status, _)| status == 200)
        });
    }

    pub fn fleet_size(&self) -> usize {
        let answer = self.admin("GET", "/nodes", "").map(|(_, text)| text).unwrap_or_default();
        let nodes: Value = serde_json::from_str(&answer).unwrap_or_default();
        nodes["nodes"].as_object().map_or(0, |nodes| nodes.len())
    }

    /// The nodes that it knows as ready, with itself.
    fn ready_peers(&self) -> usize {
        let answer = self.admin("GET", "/nodes", "").map(|(_, text)| text).unwrap_or_default();
        let nodes: Value = serde_json::from_str(&answer).unwrap_or_default();
        let nodes = nodes["nodes"].as_object();
        let is_ready = |node: &&Value| node["state"] == "ready" && !node["peer"].is_null();
        nodes.map_or(0, |nodes| nodes.values().filter(is_ready).count())
    }

    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.admin("GET", "/metrics", "").ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    pub fn get(&self, target: &str) -> io::Result<(u16, String, String)> {
        exchange(self.http, Request { method: "GET", host: HOST, target, fields: &[], body: b"" })
    }

    pub fn admin(&self, method: &str, target: &str, body: &str) -> io::Result<(u16, String)> {
        self.call(method, target, body, &[])
    }

    fn call(
        &self,
        method: &str,
        target: &str,
        body: &str,
        fields: &[&str],
    ) -> io::Result<(u16, String)> {
        exchange(
            self.admin,
            Request { method, host: "localhost", target, fields, body: body.as_bytes() },
        )
        .map(|(status, _, body)| (status, body))
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a request on a new connection and returns status, header section and body. Unlike the client of the
/// harness it returns an error if the node dies.
fn exchange(address: SocketAddr, request: Request) -> io::Result<(u16, String, String)> {
    let Request { method, host, target, fields, body } = request;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(LONG))?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for field in fields {
        head.push_str(&format!("{field}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(cut)?, head.to_owned(), body.to_owned()))
}

fn percentiles(mut times: Vec<f64>) -> (f64, f64, f64) {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    (at(0.5), at(0.99), at(1.0))
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let clock = Clock::system();
    let deadline = clock.instant() + 2 * LONG;
    while !holds() {
        assert!(clock.instant() < deadline, "never came true: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn now_us(clock: &Clock) -> u64 {
    skerry::unix_us(clock.now())
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

pub(crate) const HOST: &str = "fleet.test";
const KEYS: u64 = 40;
const PURGERS: u64 = 4;
const GAPS: &[&str] = &["trimmed", "backwards", "replaced", "unreadable"];
/// Twice that is more than the minute for which a node that started into an emptied Redis calls
/// nothing complete.
const LONG: Duration = Duration::from_secs(45);
