//! Purges over the peer link: invalidations by unsafe methods in a region, and all purges of nodes without Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use skerry::Clock;

use crate::harness::free_address;
use crate::harness::node_process::HOST;
use crate::harness::peer::FleetAuthority;
use crate::harness::{
    Answer, Client, Edge, NodeProcess, Origin, Region, Request, Response, exchange, until,
};

/// An origin whose content is the number of unsafe requests that it has had.
fn counting_origin() -> Origin {
    let versions = AtomicU64::new(0);
    Origin::start(move |request| {
        if request.method == "POST" {
            versions.fetch_add(1, Ordering::SeqCst);
        }
        Answer::ok(versions.load(Ordering::SeqCst).to_string()).fresh_for(3600)
    })
}

/// The content of the response, as a number.
fn version(answer: &Response) -> u64 {
    answer.text().parse().unwrap_or_else(|_| panic!("{answer:?}"))
}

fn post(node: &Edge, target: &str) -> u64 {
    let request = Request { method: "POST", host: "edge.test", target, fields: &[], body: b"" };
    version(&Client::connect(node.http).request(request))
}

/// Waits until a node has reached its peers.
fn wait_for_peers(node: &Edge, count: usize) {
    until("its peers are reached", || {
        node.metric("skerry_purge_deliveries_total{outcome=\"taken\"") >= count as f64
    });
}

#[test]
fn after_an_unsafe_request_no_node_of_the_region_serves_the_old_response() {
    let origin = counting_origin();
    let Some(region) = Region::start(3, &origin, "") else { return };
    region.nodes.iter().for_each(|node| wait_for_peers(node, 2));
    for round in 0..12 {
        let target = format!("/{}", round % 4);
        let before: Vec<u64> =
            region.nodes.iter().map(|node| version(&node.get(&target))).collect();
        let posted = post(&region.nodes[round % 3], &target);
        for (number, node) in region.nodes.iter().enumerate() {
            let after = version(&node.get(&target));
            assert!(after >= posted, "n{number} has {after} after {posted}, before {before:?}");
        }
    }
    let hits = region.nodes.iter().filter(|node| node.get("/0").is_hit()).count();
    assert!(hits > 0, "the responses are stored");
}

#[test]
fn a_stopped_owner_delays_an_unsafe_request_by_the_deadline_and_gets_the_purge_later() {
    let origin = counting_origin();
    let Some((region, processes)) = Region::with_processes_in(&["here"; 3], &origin, "") else {
        return;
    };
    let node = &region.nodes[0];
    wait_for_peers(node, 2);
    let targets = (0..).map(|number| format!("/{number}"));
    let mut of_first = targets.filter(|target| region.owner_of(target) == 1);
    let target = of_first.next().expect("a target of n1");
    let at_owner = || version(&exchange(processes[0].http, "edge.test", &target, &[]));
    assert_eq!((at_owner(), version(&node.get(&target))), (0, 0));
    assert_eq!(at_owner(), 0, "it is stored there");
    processes[0].signal(Signal::STOP);
    let began = Clock::system().instant();
    assert_eq!(post(node, &target), 1);
    let waited = began.elapsed();
    assert_eq!(version(&node.get(&target)), 1, "this node does not ask the owner for it");
    // The deadline is 250 ms; the machine may be busy.
    assert!(waited < Duration::from_secs(20), "{waited:?}");
    assert!(node.metric("skerry_peer_purges_untaken{peer=\"n1\"") >= 1.0);
    processes[0].signal(Signal::CONT);
    until("the owner has it", || at_owner() == 1);
    until("and has said so", || node.metric("skerry_peer_purges_untaken") == 0.0);
}

/// Addresses of static peers, and the configuration that lists them.
struct StaticPeers {
    authority: FleetAuthority,
    list: String,
    addresses: Vec<String>,
    names: Vec<String>,
}

impl StaticPeers {
    fn new(names: &[&str]) -> Self {
        let authority = FleetAuthority::new();
        authority.issue(names, 0);
        let addresses: Vec<_> = names.iter().map(|_| free_address().to_string()).collect();
        let entry = |(name, address): (&&str, &String)| {
            format!("[peers.nodes.{name}]\naddress = {address:?}\n")
        };
        let list = names.iter().zip(&addresses).map(entry).collect();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Self { authority, list, addresses, names }
    }

    /// The `[peers]` of the node with this number.
    fn section(&self, number: usize) -> String {
        let section = self.authority.section(&self.names[number]);
        let address = format!("addresses = {:?}", self.addresses[number]);
        let section = section.replace("addresses = \"127.0.0.1:0\"", &address);
        format!("{section}deadline = \"10s\"\ncheck_interval = \"200ms\"\n{}", self.list)
    }

    fn start(&self, number: usize, origin: &Origin) -> Edge {
        let pool = format!("[pools.main]\norigins = {:?}\n", origin.url());
        let text = format!("{}{pool}[sites.all]\nhosts = \"*\"\n", self.section(number));
        Edge::named(&self.names[number], &text)
    }
}

/// Purges a URL, and returns the answer.
fn purge(node: &Edge, query: &str, target: &str) -> Value {
    let purge = serde_json::json!({ "url": format!("http://edge.test{target}") });
    let answer = node.admin("POST", &format!("/purge?{query}"), &purge.to_string());
    serde_json::from_str(answer.text()).expect("JSON")
}

fn state(answer: &Value, name: &str) -> String {
    answer["nodes"][name]["state"].as_str().unwrap_or("absent").to_owned()
}

#[test]
fn without_redis_a_purge_is_complete_once_all_static_peers_have_taken_it() {
    let stamps = AtomicU64::new(0);
    let origin = Origin::start(move |_| {
        Answer::ok(stamps.fetch_add(1, Ordering::SeqCst).to_string()).fresh_for(3600)
    });
    let peers = StaticPeers::new(&["n0", "n1", "n2"]);
    let mut nodes = vec![peers.start(0, &origin), peers.start(1, &origin)];
    nodes.iter().for_each(|node| wait_for_peers(node, 1));
    let before: Vec<u64> = nodes.iter().map(|node| version(&node.get("/a"))).collect();
    let answer = purge(&nodes[0], "wait=all&timeout=100ms", "/a");
    assert_eq!(answer["complete"], false, "{answer}");
    assert_eq!(state(&answer, "n2"), "pending", "{answer}");
    let id = answer["id"].as_str().expect("an id").to_owned();
    let status = |node: &Edge| -> Value {
        let answer = node.admin("GET", &format!("/purges/{id}"), "");
        serde_json::from_str(answer.text()).expect("JSON")
    };
    until("the node that runs has applied it", || state(&status(&nodes[0]), "n1") == "applied");
    for node in &nodes {
        let after = version(&node.get("/a"));
        assert!(before.iter().all(|old| after > *old), "{after} after {before:?}");
    }
    nodes.push(peers.start(2, &origin));
    until("the third node has applied it", || status(&nodes[0])["complete"] == true);
    until("and the second node knows", || status(&nodes[1])["complete"] == true);
    let answer = purge(&nodes[2], "wait=all&timeout=60s", "/a");
    assert_eq!(answer["complete"], true, "{answer}");
    for name in ["n0", "n1", "n2"] {
        assert_eq!(state(&answer, name), "applied", "{answer}");
    }
}

#[test]
fn a_purge_reaches_static_peers_after_restarts_and_by_way_of_another_node() {
    let folder = tempfile::tempdir().unwrap();
    let stamps = AtomicU64::new(0);
    let origin = Origin::start(move |_| {
        Answer::ok(stamps.fetch_add(1, Ordering::SeqCst).to_string()).fresh_for(3600)
    });
    let peers = StaticPeers::new(&["node-0", "node-1", "node-2"]);
    let nodes: Vec<Arc<NodeProcess>> = (0..3)
        .map(|number| {
            NodeProcess::new(&folder, number, None, &origin, &peers.section(number)).into()
        })
        .collect();
    nodes.iter().for_each(|node| node.run());
    nodes.iter().for_each(|node| node.wait_until_ready());
    let version = |number: usize| -> u64 {
        let answer = nodes[number].get("/a").expect("an answer").2;
        answer.parse().expect("a number")
    };
    let old = (0..3).map(version).max().expect("three");
    nodes[2].kill();
    let body = format!(r#"{{"url": "http://{HOST}/a"}}"#);
    let answer =
        nodes[0].admin("POST", "/purge?wait=quorum&timeout=60s", &body).expect("an answer").1;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(state(&answer, "node-1"), "applied", "{answer}");
    assert_eq!(state(&answer, "node-2"), "pending", "{answer}");
    // The node that ordered it is gone: another one that has it brings it to the third.
    nodes[0].kill();
    nodes[1].kill();
    nodes[1].run();
    nodes[2].run();
    nodes[2].wait_until_ready();
    until("the third node has it", || version(2) > old);
    nodes[0].run();
    nodes[0].wait_until_ready();
    let target = format!("/purges/{}", answer["id"].as_str().expect("an id"));
    until("the node that ordered it knows", || {
        let status = nodes[0].admin("GET", &target, "").expect("an answer").1;
        let status: Value = serde_json::from_str(&status).unwrap_or_default();
        status["complete"] == true
    });
    assert!((0..3).all(|number| version(number) > old));
}
