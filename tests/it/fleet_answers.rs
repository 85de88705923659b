//! Edge names that answer from the node table of a fleet: real nodes, a real Redis, and dig as the client.

use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::{Edge, RedisProcess, until};

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
pub const BOSTON: &str = "18.7.22.0/24";

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

pub fn config(redis: u16, (_, region, place, address): (&str, &str, &str, &str)) -> String {
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

/// The IPv4 addresses for a client in this network, sorted.
pub fn addresses(server: SocketAddr, subnet: &str) -> Vec<String> {
    addresses_of(server, subnet, "A")
}

/// The addresses in records of this type for a client in this network, sorted.
pub fn addresses_of(server: SocketAddr, subnet: &str, kind: &str) -> Vec<String> {
    let output = Command::new("dig")
        .args([&format!("@{}", server.ip()), "-p", &server.port().to_string()])
        .args(["cdn.example.org", kind, "+short", "+time=20", "+tries=1", "+norecurse"])
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
    // The node sends no more heartbeats.
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
