//! Answers of edge names: region, nodes, and the scope for caches.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType::{A, AAAA, HTTPS, MX, SOA};

use super::super::settings::RegionByClient;
use super::*;

const FRANKFURT: (f64, f64) = (50.1, 8.7);
const VIRGINIA: (f64, f64) = (39.0, -77.5);
const TOKYO: (f64, f64) = (35.7, 139.7);

/// Networks of institutions that have been in their countries for decades.
const DRESDEN: &str = "141.76.2.0/24";
const BOSTON: &str = "18.7.22.0/24";
const TOKYO_NET: &str = "133.11.0.0/24";
const SAO_PAULO: &str = "200.160.2.0/24";

fn nodes() -> Vec<EdgeNode> {
    vec![
        node("fra-1", "eu", FRANKFURT, &["192.0.2.1", "2001:db8::1"]),
        node("fra-2", "eu", FRANKFURT, &["192.0.2.2", "2001:db8::2"]),
        node("fra-3", "eu", FRANKFURT, &["192.0.2.3"]),
        node("iad-1", "us", VIRGINIA, &["198.51.100.1"]),
        node("nrt-1", "ap", TOKYO, &["203.0.113.1"]),
    ]
}

fn serve(edges: Vec<EdgeSettings>, nodes: &[EdgeNode]) -> Server {
    let zone = ZoneSettings { edges, ..zone("example.org", &["@ MX 10 mail.example.net."]) };
    Server::new(vec![zone], nodes)
}

fn nearest() -> EdgeSettings {
    edge("www.example.org", RegionPolicy::Nearest)
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

/// The regions that answers for this client name, of many.
fn regions(server: &mut Server, subnet: &str) -> std::collections::BTreeMap<String, usize> {
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..1000 {
        let message = server.ask_for("www.example.org.", A, subnet);
        let first = addresses(&message).first().cloned().unwrap_or_default();
        let region = match first.split('.').next() {
            Some("192") => "eu",
            Some("198") => "us",
            Some("203") => "ap",
            _ => "none",
        };
        *counts.entry(region.to_owned()).or_default() += 1;
    }
    counts
}

#[track_caller]
fn check_region(server: &mut Server, subnet: &str, expected: &str) {
    let found = regions(server, subnet);
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), [expected], "{subnet}");
}

#[test]
fn a_client_gets_the_nearest_region_and_the_scope_is_its_network() {
    let server = &mut serve(vec![nearest()], &nodes());
    check_region(server, DRESDEN, "eu");
    check_region(server, BOSTON, "us");
    check_region(server, TOKYO_NET, "ap");
    check_region(server, SAO_PAULO, "us");
    let geo = responder().geo;
    for network in [DRESDEN, BOSTON, TOKYO_NET, SAO_PAULO, "2001:628::/32"] {
        let message = server.ask_for("www.example.org.", A, network);
        let address = network.split('/').next().and_then(|it| it.parse().ok()).expect("an address");
        let (_, prefix) = geo.locate_network(address);
        assert!(prefix > 0);
        assert_eq!(scope(&message), Some(prefix), "{network}");
        assert_eq!(message.answers[0].ttl, 30);
    }
}

#[test]
fn without_a_subnet_the_resolver_is_the_client_and_no_scope_is_said() {
    let server = &mut serve(vec![nearest()], &nodes());
    // The resolver's address is for documentation and at no known place.
    let message = server.ask("www.example.org.", A);
    assert_eq!((message.answers.len(), scope(&message)), (1, None));
    // A client that does not want its network to be used (RFC 7871 §7.1.2).
    let message = server.ask_for("www.example.org.", A, "0.0.0.0/0");
    assert_eq!((message.answers.len(), scope(&message)), (1, Some(0)));
}

#[test]
fn an_answer_that_does_not_depend_on_the_client_has_scope_zero() {
    let failover = EdgeSettings {
        regions: vec!["us".into()],
        ..edge("f.example.org", RegionPolicy::Failover)
    };
    let server = &mut serve(vec![nearest(), failover], &nodes());
    for (name, kind) in [
        ("example.org.", SOA),
        ("missing.example.org.", A),
        ("www.example.org.", MX),
        ("f.example.org.", A),
    ] {
        assert_eq!(scope(&server.ask_for(name, kind, DRESDEN)), Some(0), "{name} {kind}");
    }
}

#[test]
fn an_edge_name_may_be_the_zones_own_and_a_wildcard() {
    let apex = edge("example.org", RegionPolicy::Nearest);
    let wildcard = edge("*.example.org", RegionPolicy::Nearest);
    let server = &mut serve(vec![apex, wildcard], &nodes());
    for name in ["example.org.", "Any.example.ORG."] {
        let message = server.ask_for(name, A, TOKYO_NET);
        assert_eq!(lines(&message.answers), [format!("{name} A 203.0.113.1")]);
    }
    assert_eq!(
        lines(&server.ask("example.org.", MX).answers),
        ["example.org. MX 10 mail.example.net."]
    );
    assert_eq!(server.ask("example.org.", SOA).answers.len(), 1);
}

#[test]
fn an_answer_has_the_configured_number_of_addresses_in_changing_order() {
    let server = &mut serve(vec![nearest()], &nodes());
    let mut firsts = std::collections::BTreeMap::new();
    for _ in 0..3000 {
        let found = addresses(&server.ask_for("www.example.org.", A, DRESDEN));
        assert_eq!(found.len(), 2);
        assert_ne!(found[0], found[1]);
        *firsts.entry(found[0].clone()).or_insert(0) += 1;
    }
    assert!(
        firsts.len() == 3 && firsts.values().all(|count| (800..1200).contains(count)),
        "{firsts:?}"
    );
    assert_eq!(addresses(&server.ask_for("www.example.org.", AAAA, DRESDEN)).len(), 2);
    let none = server.ask_for("www.example.org.", AAAA, BOSTON);
    check_code(&none, ResponseCode::NoError, true);
    assert_eq!(none.authorities.len(), 1, "the region has no IPv6");
}

#[test]
fn a_node_gets_answers_by_its_weight_and_what_its_load_leaves() {
    let mut nodes = nodes();
    nodes.truncate(3);
    nodes[0].weight = 200;
    nodes[1].load = 0.5;
    let one = EdgeSettings { addresses_max: 1, load_max: 1.0, ..nearest() };
    let server = &mut serve(vec![one], &nodes);
    let mut counts = [0; 3];
    for _ in 0..3500 {
        let found = addresses(&server.ask("www.example.org.", A));
        counts[found[0].ends_with(".2") as usize + 2 * usize::from(found[0].ends_with(".3"))] += 1;
    }
    for (count, expected) in counts.into_iter().zip([2000, 500, 1000]) {
        assert!((expected * 8 / 10..expected * 12 / 10).contains(&count), "{counts:?}");
    }
}

#[test]
fn an_address_that_nodes_share_is_once_in_an_answer_with_the_weights_of_all() {
    let mut nodes = nodes();
    nodes[0].addresses = nodes[1].addresses.clone();
    let server = &mut serve(vec![EdgeSettings { addresses_max: 16, ..nearest() }], &nodes);
    let mut firsts = 0;
    for _ in 0..3000 {
        let mut found = addresses(&server.ask_for("www.example.org.", A, DRESDEN));
        firsts += usize::from(found[0] == "192.0.2.2");
        found.sort();
        assert_eq!(found, ["192.0.2.2", "192.0.2.3"]);
    }
    assert!((1800..2200).contains(&firsts), "{firsts} of 3000 for two of three nodes");
}

#[test]
fn a_region_without_ready_nodes_is_passed_over_and_without_any_all_are_answered() {
    let mut nodes = nodes();
    nodes[4].state = EdgeState::Draining;
    check_region(&mut serve(vec![nearest()], &nodes), TOKYO_NET, "eu");
    for state in [EdgeState::Out, EdgeState::Draining] {
        nodes.iter_mut().for_each(|node| node.state = state);
        let server = &mut serve(vec![nearest()], &nodes);
        check_region(server, TOKYO_NET, "ap");
        check_region(server, DRESDEN, "eu");
        assert_eq!(server.plan.edges[0].best_state, Some(state));
    }
    // Draining nodes still serve: better than nodes that are out.
    nodes.iter_mut().for_each(|node| node.state = EdgeState::Out);
    nodes[3].state = EdgeState::Draining;
    check_region(&mut serve(vec![nearest()], &nodes), TOKYO_NET, "us");
    let empty = &mut serve(vec![nearest()], &[]);
    check_code(&empty.ask("www.example.org.", A), ResponseCode::ServFail, false);
}

#[test]
fn a_region_above_its_load_gives_the_rest_to_the_next_one() {
    let mut nodes = nodes();
    nodes[3].load = 1.0;
    let half = EdgeSettings { load_max: 0.5, ..nearest() };
    let found = regions(&mut serve(vec![half.clone()], &nodes), BOSTON);
    assert!((400..600).contains(&found["us"]) && found["us"] + found["eu"] == 1000, "{found:?}");
    nodes.iter_mut().for_each(|node| node.load = 1.0);
    check_region(&mut serve(vec![half], &nodes), BOSTON, "us");
}

#[test]
fn failover_takes_the_first_region_and_weighted_a_random_one() {
    let regions_of = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect::<Vec<_>>();
    let failover = EdgeSettings {
        policy: RegionPolicy::Failover,
        regions: regions_of(&["us", "eu"]),
        ..nearest()
    };
    let mut nodes = nodes();
    check_region(&mut serve(vec![failover.clone()], &nodes), TOKYO_NET, "us");
    nodes[3].state = EdgeState::Out;
    check_region(&mut serve(vec![failover], &nodes), TOKYO_NET, "eu");
    let weighted = EdgeSettings {
        policy: RegionPolicy::Weighted,
        weights: vec![("ap".into(), 900)],
        ..nearest()
    };
    let found = regions(&mut serve(vec![weighted], &nodes), DRESDEN);
    assert!((680..820).contains(&found["ap"]) && (180..320).contains(&found["eu"]), "{found:?}");
}

#[test]
fn a_map_comes_before_the_policy_and_the_scope_tells_its_networks_apart() {
    let entry =
        |region: &str| RegionByClient { region: region.into(), ..RegionByClient::default() };
    let mapped = EdgeSettings {
        map: vec![
            RegionByClient {
                networks: vec!["141.76.2.128/25".parse().expect("a network")],
                ..entry("ap")
            },
            RegionByClient { countries: vec!["DE".parse().expect("a country")], ..entry("us") },
            RegionByClient { continents: vec!["SA".parse().expect("a continent")], ..entry("eu") },
        ],
        ..nearest()
    };
    let mut nodes = nodes();
    let serve_of = |nodes: &[EdgeNode]| serve(vec![mapped.clone()], nodes);
    let server = &mut serve_of(&nodes);
    check_region(server, "141.76.2.128/25", "ap");
    check_region(server, DRESDEN, "us");
    check_region(server, SAO_PAULO, "eu");
    check_region(server, BOSTON, "us");
    let scope_of =
        |server: &mut Server, subnet| scope(&server.ask_for("www.example.org.", A, subnet));
    assert_eq!(scope_of(server, "141.76.2.128/25"), Some(25));
    assert_eq!(scope_of(server, DRESDEN), Some(25), "half of the /24 gets another region");
    nodes[4].state = EdgeState::Out;
    check_region(&mut serve_of(&nodes), "141.76.2.128/25", "eu");
    let only_networks = EdgeSettings {
        map: vec![RegionByClient {
            networks: vec!["10.0.0.0/8".parse().expect("a network")],
            ..entry("eu")
        }],
        policy: RegionPolicy::Failover,
        ..nearest()
    };
    let server = &mut serve(vec![only_networks], &nodes);
    for (subnet, bits) in [("10.1.0.0/16", 8), ("11.0.0.0/24", 8), ("192.0.2.0/24", 1)] {
        assert_eq!(scope_of(server, subnet), Some(bits), "{subnet}");
    }
    // An answer of scope 0 is for the clients of the other address family, too, and those in 10.0.0.0/8 get another.
    assert_eq!(scope_of(server, "2001:db8::/48"), Some(1));
    let all_of_ipv4 = EdgeSettings {
        map: vec![RegionByClient {
            networks: vec!["0.0.0.0/0".parse().expect("a network")],
            ..entry("us")
        }],
        policy: RegionPolicy::Failover,
        ..nearest()
    };
    let server = &mut serve(vec![all_of_ipv4], &nodes);
    for (subnet, region) in [("192.0.2.0/24", "us"), ("2001:db8::/48", "eu")] {
        check_region(server, subnet, region);
        assert_eq!(scope_of(server, subnet), Some(1), "{subnet}");
    }
}

#[test]
fn a_client_without_ipv6_gets_the_nearest_region_that_has_ipv4() {
    let mut nodes = nodes();
    nodes[4].addresses = vec!["2001:db8:3::1".parse().expect("an address")];
    let to_ap = RegionByClient {
        region: "ap".into(),
        countries: vec!["DE".parse().expect("a country")],
        ..RegionByClient::default()
    };
    let mapped = EdgeSettings { map: vec![to_ap], ..nearest() };
    let server = &mut serve(vec![mapped], &nodes);
    for client in [TOKYO_NET, DRESDEN] {
        let message = server.ask_for("www.example.org.", AAAA, client);
        assert_eq!(addresses(&message), ["2001:db8:3::1"], "{client}");
        check_region(server, client, "eu");
    }
    // Where no region has an IPv4 address, each answers for itself.
    let server = &mut serve(vec![nearest()], &nodes[4..]);
    let message = server.ask_for("www.example.org.", A, TOKYO_NET);
    check_code(&message, ResponseCode::NoError, true);
    assert!(message.answers.is_empty() && message.authorities.len() == 1);
}

#[test]
fn a_client_without_ipv6_gets_a_node_that_is_not_ready_rather_than_no_address() {
    let mut nodes = nodes();
    nodes[4].addresses = vec!["2001:db8:3::1".parse().expect("an address")];
    for state in [EdgeState::Draining, EdgeState::Out] {
        nodes[..4].iter_mut().for_each(|node| node.state = state);
        let server = &mut serve(vec![nearest()], &nodes);
        check_region(server, DRESDEN, "eu");
        check_region(server, BOSTON, "us");
        let edge = &server.plan.edges[0];
        assert_eq!((edge.state_for(1), edge.state_for(28)), (Some(state), Some(EdgeState::Ready)));
        // With IPv6, a client can reach the node that is ready.
        for kind in [AAAA, HTTPS] {
            let message = server.ask_for("www.example.org.", kind, DRESDEN);
            let text = addresses(&message).concat();
            assert!(text.contains("2001:db8:3::1") && !text.contains("192.0.2."), "{text}");
        }
    }
    nodes[3].state = EdgeState::Ready;
    check_region(&mut serve(vec![nearest()], &nodes), DRESDEN, "us");
}

#[test]
fn a_record_https_has_the_protocols_and_the_addresses_of_the_region() {
    let off = EdgeSettings { https: false, ..edge("off.example.org", RegionPolicy::Nearest) };
    let all = EdgeSettings { addresses_max: 16, ..nearest() };
    let server = &mut serve(vec![all, off], &nodes());
    let message = server.ask_for("www.example.org.", HTTPS, BOSTON);
    assert_eq!(
        lines(&message.answers),
        ["www.example.org. HTTPS 1 . alpn=h2, ipv4hint=198.51.100.1,"]
    );
    let message = server.ask_for("www.example.org.", HTTPS, DRESDEN);
    let text = message.answers[0].data.to_string();
    for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"] {
        assert!(text.contains(address), "{text}");
    }
    let message = server.ask("off.example.org.", HTTPS);
    assert!(message.answers.is_empty() && message.authorities.len() == 1);
}
