//! The purge bus of a fleet: real `skerry` processes and a real `redis-server`. Skipped without `redis-server`.
//! [`crate::purge_chaos`] breaks them.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::harness::node_process::{HOST, LONG, eventually as until};
use crate::harness::{Answer, NodeProcess, Origin, RedisProcess, Request};
use crate::purge_chaos::{Fleet, KEYS, from_environment, read};

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
            std::thread::spawn(move || read(&fleet, node, node as u64 + 1, &is_over))
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
fn a_lost_node_is_forgotten_so_that_no_purge_waits_for_it() {
    let Some(fleet) = Fleet::start(2) else { return };
    let [kept, lost] = &fleet.nodes[..] else { panic!("two nodes") };
    let forget =
        |name: &str| kept.admin("POST", &format!("/nodes/forget?node={name}"), "").unwrap();
    let purge =
        || kept.admin("POST", "/purge?wait=all&timeout=300ms", r#"{"all": true}"#).unwrap().0;
    // On a busy machine it may be out for a moment; its next heartbeat brings it back.
    until("a node that is ready is not forgotten", || {
        let (status, why) = forget("node-1");
        status == 409 && why.contains("is ready: only a node that is out")
    });
    let (status, why) = forget("node-11");
    assert!(status == 404 && why.contains("the fleet has no node of this name"), "{why}");
    lost.kill();
    until("the node is out", || {
        kept.metric("skerry_fleet_members{readiness=\"out\"}") == Some(1.0)
    });
    assert_eq!(purge(), 202, "it waits for the lost node");
    let oldest_pending = || kept.metric("skerry_purge_oldest_pending_seconds");
    until("the age of the pending purge is told", || {
        purge();
        oldest_pending().is_some_and(|age| age > 0.0)
    });
    until("it is forgotten", || forget("node-1").0 == 200);
    until("no purge waits for it", || purge() == 200);
    until("no purge is told as pending", || oldest_pending() == Some(0.0));
    lost.run();
    until("a node that lives comes back", || kept.fleet_size() == 2);
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
        let purge =
            Request { method: "PURGE", host: HOST, target: "/1?a=b", fields: &[], body: b"" };
        let (status, ..) = node.request(purge).unwrap();
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

fn percentiles(mut times: Vec<f64>) -> (f64, f64, f64) {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    (at(0.5), at(0.99), at(1.0))
}
