//! The health of nodes as clients see it: the regions of a fleet test each other over the data path, and a node that most of the others
//! cannot reach leaves the answers.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fleet_answers::{BOSTON, addresses, addresses_of, config};
use crate::harness::authority::{Authority, text};
use crate::harness::{Answer, Edge, Origin, RedisProcess, until};

const TOKYO: &str = "133.11.0.0/24";

/// A node in each of three regions, which test each other at these addresses and this port.
const TESTED: [(&str, &str, &str, &str); 3] = [
    ("fra-1", "eu", "latitude = 50.1\nlongitude = 8.7", "127.0.0.11"),
    ("iad-1", "us", "latitude = 39.0\nlongitude = -77.5", "127.0.0.12"),
    ("nrt-1", "ap", "latitude = 35.7\nlongitude = 139.7", "127.0.0.13"),
];

/// The configuration of a node that tests the nodes of other regions with requests for `/NAME`.
fn tested_config(redis: u16, node: (&str, &str, &str, &str), port: u16) -> String {
    config(redis, node) + &probes("http", node.0, port)
}

fn probes(scheme: &str, name: &str, port: u16) -> String {
    let url = format!("{scheme}://www.test:{port}/{name}");
    format!("[dns.probes]\nurl = \"{url}\"\ninterval = \"500ms\"\ntimeout = \"500ms\"\n")
}

/// The data path of a node at one of these addresses.
fn data_path(address: &str, port: u16) -> Origin {
    data_path_that(address, port, |_| true)
}

/// A data path that works for the requests of some nodes.
fn data_path_that(
    address: &str,
    port: u16,
    works_for: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Origin {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    Origin::start_at(address, move |request| {
        let is_test = request.header("host").is_some_and(|host| host.starts_with("www.test"));
        let works = is_test && works_for(request.target.trim_start_matches('/'));
        Answer::status(if works { 404 } else { 500 })
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

/// A node's votes count while it is ready: those of a draining node and the row of a dead one, which Redis keeps, do not.
#[test]
fn a_path_that_fails_for_one_region_takes_nobody_out_and_only_ready_nodes_vote() {
    let folder = tempfile::tempdir().expect("a folder");
    if Command::new("dig").arg("-v").output().is_err() {
        return;
    }
    let Some(redis) = RedisProcess::start(folder.path()) else { return };
    let cut = Arc::new([AtomicBool::new(true), AtomicBool::new(false)]);
    let first = data_path(TESTED[0].3, 0);
    let port = first.address.port();
    let _second = data_path(TESTED[1].3, port);
    let cut_for = cut.clone();
    let third = data_path_that(TESTED[2].3, port, move |asker| {
        let at = TESTED.iter().position(|node| node.0 == asker).expect("a node's name");
        !cut_for[at].load(Ordering::SeqCst)
    });
    let mut nodes: Vec<Edge> = TESTED
        .iter()
        .map(|node| Edge::named(node.0, &tested_config(redis.port, *node, port)))
        .collect();
    let until_answered = |nodes: &[Edge], expected: &str| {
        until("the name server answers as expected", || {
            addresses(nodes[0].node.dns[0], TOKYO) == [expected]
        });
    };
    until("the first region fails to reach it", || {
        nodes[0].metric("skerry_fleet_unreachable_nodes") == 1.0
    });
    let seen = third.request_count();
    until("both go on asking", || third.request_count() > seen + 8);
    assert_eq!(addresses(nodes[0].node.dns[0], TOKYO), ["127.0.0.13"], "one of two is no majority");
    cut[1].store(true, Ordering::SeqCst);
    until_answered(&nodes, "127.0.0.11");
    assert_eq!(nodes[1].admin("POST", "/drain", "").status, 202);
    until_answered(&nodes, "127.0.0.13");
    assert_eq!(addresses(nodes[0].node.dns[0], BOSTON), ["127.0.0.11"], "all of its nodes drain");
    assert_eq!(nodes[1].admin("POST", "/undrain", "").status, 200);
    until_answered(&nodes, "127.0.0.11");
    drop(nodes.remove(1));
    until_answered(&nodes, "127.0.0.13");
}

#[test]
fn a_node_with_ipv6_alone_is_probed_by_ipv6() {
    let folder = tempfile::tempdir().expect("a folder");
    if Command::new("dig").arg("-v").output().is_err() || TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let Some(redis) = RedisProcess::start(folder.path()) else { return };
    let mut tested = TESTED;
    tested[2].3 = "::1";
    let first = data_path(tested[0].3, 0);
    let port = first.address.port();
    let paths: Vec<Origin> = tested[1..].iter().map(|node| data_path(node.3, port)).collect();
    let nodes: Vec<Edge> = tested
        .iter()
        .map(|node| Edge::named(node.0, &tested_config(redis.port, *node, port)))
        .collect();
    let until_answered = |expected: &[&str]| {
        until("the name server answers as expected", || {
            addresses_of(nodes[0].node.dns[0], TOKYO, "AAAA") == expected
        });
    };
    until_answered(&["::1"]);
    until("it is probed", || paths[1].request_count() > 4);
    paths[1].kill();
    until_answered(&[]);
    assert_eq!(addresses(nodes[0].node.dns[0], TOKYO), ["127.0.0.11"]);
    let _back = data_path(tested[2].3, port);
    until_answered(&["::1"]);
}

/// A certificate for the URL's host counts, and the node chooses it by the host (SNI).
#[test]
fn a_node_with_the_certificate_of_another_name_leaves_the_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    if Command::new("dig").arg("-v").output().is_err() {
        return;
    }
    let Some(redis) = RedisProcess::start(folder.path()) else { return };
    let authority = Authority::new();
    let certificate = |name: &str| {
        let (chain, key) = authority.issue(name);
        let (chain, key) = (text(&chain), text(&key));
        format!("[[tls.certificates]]\ncertificate = {chain:?}\nkey = {key:?}\n")
    };
    let (right, wrong) = (certificate("www.test"), certificate("other.test"));
    let port = TcpListener::bind((TESTED[0].3, 0)).and_then(|it| it.local_addr());
    let port = port.expect("a free port").port();
    let of_node = |node: (&str, &str, &str, &str), certificates: &str| {
        let listener = format!("[[listeners]]\naddress = \"{}:{port}\"\ntls = true\n", node.3);
        let authority = format!("ca_files = {:?}\n", [text(&authority.file())]);
        let probes = probes("https", node.0, port) + &authority;
        config(redis.port, node) + &probes + &listener + certificates
    };
    let certificates = [&right, &right, &wrong];
    let nodes = TESTED.iter().zip(certificates);
    let nodes: Vec<Edge> = nodes
        .map(|(node, certificate)| Edge::named(node.0, &of_node(*node, certificate)))
        .collect();
    let until_answered = |expected: &str| {
        for edge in &nodes {
            until("the name server answers as expected", || {
                addresses(edge.node.dns[0], TOKYO) == [expected]
            });
        }
    };
    until_answered("127.0.0.11");
    until("the majority has taken it out", || {
        nodes[1].metric("skerry_fleet_nodes_out_unreachable") == 1.0
    });
    nodes[2].reload(&of_node(TESTED[2], &(wrong.clone() + &right))).expect("it is valid");
    until_answered("127.0.0.13");
    // Each node passes the probes of the others, so that the test proves more than that nobody answers.
    until("all are reached", || nodes[0].metric("skerry_fleet_unreachable_nodes") == 0.0);
}
