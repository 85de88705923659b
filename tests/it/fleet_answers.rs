//! Edge names that answer from the node table of a fleet: real nodes, a real Redis, and dig as the client.

use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::{Answer, Edge, Origin, RedisProcess, until};

/// A fleet of nodes that are all name servers. Skipped without `redis-server` or dig.
struct AnsweringFleet {
    redis: RedisProcess,
    nodes: Vec<Edge>,
    _folder: TempDir,
}

/// Name, region, place and address of each node.
const NODES: [(&str, &str, &str, &str); 3] = [
    ("fra-1", "eu", "latitude = 50.1\nlongitude = 8.7", "192.0.2.1"),
    ("fra-2", "eu", "latitude = 50.1\nlongitude = 8.7", "192.0.2.2"),
    ("iad-1", "us", "latitude = 39.0\nlongitude = -77.5", "198.51.100.1"),
];
const DRESDEN: &str = "141.76.2.0/24";
const BOSTON: &str = "18.7.22.0/24";

impl AnsweringFleet {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        Command::new("dig").arg("-v").output().ok()?;
        let redis = RedisProcess::start(folder.path())?;
        let nodes = NODES.iter().map(|node| Edge::named(node.0, &config(redis.port, *node)));
        let fleet = Self { nodes: nodes.collect(), redis, _folder: folder };
        for at in 0..NODES.len() {
            fleet.until_answered(at, BOSTON, &["198.51.100.1"]);
            fleet.until_answered(at, DRESDEN, &["192.0.2.1", "192.0.2.2"]);
        }
        Some(fleet)
    }

    fn until_answered(&self, at: usize, subnet: &str, expected: &[&str]) {
        until("the name server answers as expected", || {
            addresses(self.nodes[at].node.dns[0], subnet) == expected
        });
    }
}

fn config(redis: u16, (_, region, place, address): (&str, &str, &str, &str)) -> String {
    format!(
        r#"
[node]
region = "{region}"
{place}
addresses = "{address}"
drain_notice = "40s"
[bus]
redis = "redis://127.0.0.1:{redis}"
silence_max = "3s"
[sites.all]
hosts = "*"
respond = {{ status = 200 }}
[dns.server]
addresses = "127.0.0.1:0"
rate_per_second = 0
[dns.zones."cdn.example.org"]
name_servers = ["ns.example.net"]
[dns.zones."cdn.example.org".edges."@"]
addresses_max = 16
"#
    )
}

/// The addresses for a client in this network, sorted.
fn addresses(server: SocketAddr, subnet: &str) -> Vec<String> {
    let output = Command::new("dig")
        .args([&format!("@{}", server.ip()), "-p", &server.port().to_string()])
        .args(["cdn.example.org", "A", "+short", "+time=20", "+tries=1", "+norecurse"])
        .arg(format!("+subnet={subnet}"))
        .output()
        .expect("dig runs");
    let mut lines: Vec<String> =
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn nodes_in_different_regions_answer_alike_and_follow_drains_and_deaths() {
    let Some(mut fleet) = AnsweringFleet::start() else { return };
    assert_eq!(fleet.nodes[0].admin("POST", "/drain", "").status, 202);
    for at in 0..NODES.len() {
        fleet.until_answered(at, DRESDEN, &["192.0.2.2"]);
    }
    assert_eq!(fleet.nodes[0].admin("POST", "/undrain", "").status, 200);
    for at in 0..NODES.len() {
        fleet.until_answered(at, DRESDEN, &["192.0.2.1", "192.0.2.2"]);
    }
    // It sends no more heartbeats.
    drop(fleet.nodes.pop());
    for at in 0..2 {
        fleet.until_answered(at, BOSTON, &["192.0.2.1", "192.0.2.2"]);
    }
}

#[test]
fn without_redis_the_answers_stay_as_they_are_and_a_drain_of_the_own_node_counts() {
    let Some(mut fleet) = AnsweringFleet::start() else { return };
    fleet.redis.kill();
    until("the bus is silent", || fleet.nodes[0].metric("skerry_bus_silent") == 1.0);
    drop(fleet.nodes.pop());
    let server = fleet.nodes[1].node.dns[0];
    assert_eq!(fleet.nodes[1].admin("POST", "/drain", "").status, 202);
    fleet.until_answered(1, DRESDEN, &["192.0.2.1"]);
    assert_eq!(addresses(server, BOSTON), ["198.51.100.1"], "nobody goes out without Redis");
    fleet.redis.run();
    fleet.until_answered(1, BOSTON, &["192.0.2.1"]);
}

#[test]
fn a_node_without_a_fleet_answers_with_its_own_addresses_from_the_start() {
    let node = ("a", "eu", "", "192.0.2.9");
    let text = config(0, node).replace("redis = \"redis://127.0.0.1:0\"", "");
    let edge = Edge::with(&text);
    if Command::new("dig").arg("-v").output().is_err() {
        return;
    }
    assert_eq!(addresses(edge.node.dns[0], BOSTON), ["192.0.2.9"]);
}

const TOKYO: &str = "133.11.0.0/24";

/// A node in each of three regions, which test each other at these addresses and this port.
const TESTED: [(&str, &str, &str, &str); 3] = [
    ("fra-1", "eu", "latitude = 50.1\nlongitude = 8.7", "127.0.0.11"),
    ("iad-1", "us", "latitude = 39.0\nlongitude = -77.5", "127.0.0.12"),
    ("nrt-1", "ap", "latitude = 35.7\nlongitude = 139.7", "127.0.0.13"),
];

fn tested_config(redis: u16, node: (&str, &str, &str, &str), port: u16) -> String {
    let probes = format!(
        "[dns.probes]\nurl = \"http://www.test:{port}/health\"\ninterval = \"500ms\"\ntimeout = \"500ms\"\n"
    );
    config(redis, node) + &probes
}

/// The data path of a node at one of these addresses.
fn data_path(address: &str, port: u16) -> Origin {
    let address = format!("{address}:{port}").parse().expect("an address");
    Origin::start_at(address, |request| {
        let is_test = request.header("host").is_some_and(|host| host.starts_with("www.test"));
        Answer::status(if is_test { 404 } else { 500 })
    })
}

#[test]
fn a_node_that_two_other_regions_cannot_reach_leaves_the_answers_until_they_can() {
    let folder = tempfile::tempdir().expect("a folder");
    if Command::new("dig").arg("-v").output().is_err() {
        return;
    }
    let Some(redis) = RedisProcess::start(folder.path()) else { return };
    let first = data_path(TESTED[0].3, 0);
    let port = first.address.port();
    let paths: Vec<Origin> = TESTED[1..].iter().map(|node| data_path(node.3, port)).collect();
    let nodes: Vec<Edge> = TESTED
        .iter()
        .map(|node| Edge::named(node.0, &tested_config(redis.port, *node, port)))
        .collect();
    let until_answered = |expected: &str| {
        for edge in &nodes {
            until("the name server answers as expected", || {
                addresses(edge.node.dns[0], TOKYO) == [expected]
            });
        }
    };
    until_answered("127.0.0.13");
    until("all test each other", || paths.iter().all(|path| path.request_count() > 4));
    paths[1].kill();
    until_answered("127.0.0.11");
    assert_eq!(nodes[0].metric("skerry_fleet_unreachable_nodes"), 1.0);
    assert_eq!(nodes[2].metric("skerry_fleet_nodes_out_unreachable"), 1.0);
    let report = nodes[2].admin("GET", "/nodes", "");
    let report: serde_json::Value = serde_json::from_str(report.text()).expect("JSON");
    assert_eq!(report["nodes"]["nrt-1"]["reachable"], false, "{report:#}");
    assert_eq!(report["nodes"]["fra-1"]["fails_to_reach"][0], "nrt-1", "{report:#}");
    let _back = data_path(TESTED[2].3, port);
    until_answered("127.0.0.13");
}

#[test]
fn with_two_regions_a_node_that_cannot_be_reached_stays_in_the_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    if Command::new("dig").arg("-v").output().is_err() {
        return;
    }
    let Some(redis) = RedisProcess::start(folder.path()) else { return };
    let path = data_path(TESTED[0].3, 0);
    let port = path.address.port();
    // The second node has no data path at all.
    let nodes: Vec<Edge> = TESTED[..2]
        .iter()
        .map(|node| Edge::named(node.0, &tested_config(redis.port, *node, port)))
        .collect();
    until("the first node fails to reach it", || {
        nodes[0].metric("skerry_fleet_unreachable_nodes") == 1.0
    });
    until("the name server answers as before", || {
        addresses(nodes[0].node.dns[0], BOSTON) == ["127.0.0.12"]
    });
    assert_eq!(nodes[0].metric("skerry_fleet_nodes_out_unreachable"), 0.0);
}
