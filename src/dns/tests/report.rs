//! The output of `skerry dns explain` and `skerry dns export` for edge names.

use serde_json::Value;
use tokio::sync::watch;

use super::super::report::DnsQuestion;
use super::super::server::{DnsSockets, NameServer, NameServerParts};
use super::super::settings::RegionByClient;
use super::*;
use crate::clock::Clock;
use crate::metrics::Metrics;

/// A name server without sockets, with an edge name and a node in each of two regions.
fn serve(edge: EdgeSettings) -> Arc<NameServer> {
    serve_zone(&[], edge)
}

fn serve_zone(records: &[&str], edge: EdgeSettings) -> Arc<NameServer> {
    let nodes = [
        node("fra-1", "eu", (50.1, 8.7), &["192.0.2.1"]),
        node("iad-1", "us", (39.0, -77.5), &["198.51.100.1"]),
    ];
    let zone = ZoneSettings { edges: vec![edge], ..zone("example.org", records) };
    let settings = Settings { zones: vec![zone], has_https: true, ..Settings::default() };
    let sockets = DnsSockets::bind(&settings.server).expect("no addresses");
    let parts = NameServerParts {
        geo: responder().geo,
        metrics: Metrics::new(1),
        clock: Clock::system(),
        nodes: watch::channel(Arc::from(nodes)).1,
    };
    NameServer::start(settings, sockets, parts).expect("it starts")
}

fn explain(server: &NameServer, client: Option<&str>) -> Value {
    let question = DnsQuestion {
        name: "www.example.org".to_owned(),
        kind: None,
        client: client.map(|client| client.parse().expect("an address")),
    };
    server.explain(&question).expect("an explanation")
}

/// The region of the address in the answer.
fn answered(explanation: &Value) -> &'static str {
    match explanation["answer"][0].as_str() {
        Some("www.example.org. 30 IN A 192.0.2.1") => "eu",
        Some("www.example.org. 30 IN A 198.51.100.1") => "us",
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_explanation_is_about_the_region_of_its_answer_where_chance_decides() {
    let server = serve(edge("www.example.org", RegionPolicy::Weighted));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let explanation = explain(&server, None);
        assert_eq!(explanation["edge"]["region"], answered(&explanation), "{explanation:#}");
        seen.insert(answered(&explanation));
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn a_client_with_an_ipv4_address_in_ipv6_is_explained_as_it_is_answered() {
    let to_us = RegionByClient {
        networks: vec!["192.0.2.0/24".parse().expect("a network")],
        region: "us".into(),
        ..RegionByClient::default()
    };
    let failover = edge("www.example.org", RegionPolicy::Failover);
    let server = serve(EdgeSettings { map: vec![to_us], ..failover });
    for (client, region) in [("::ffff:192.0.2.7", "us"), ("::ffff:203.0.113.7", "eu")] {
        let explanation = explain(&server, Some(client));
        let found = (&explanation["edge"]["region"], answered(&explanation));
        assert_eq!(found, (&region.into(), region), "{explanation:#}");
    }
}

#[test]
fn a_name_above_a_record_is_explained_as_one_that_no_wildcard_covers() {
    let records = ["_acme-challenge.www TXT x"];
    let server = serve_zone(&records, edge("*.example.org", RegionPolicy::Failover));
    let explanation = explain(&server, None);
    assert_eq!(explanation["answer"].as_array().map(Vec::len), Some(0), "{explanation:#}");
    assert_eq!(explanation["only_names_below"], true, "{explanation:#}");
    let server = serve(edge("*.example.org", RegionPolicy::Failover));
    let explanation = explain(&server, None);
    assert_eq!((answered(&explanation), &explanation["only_names_below"]), ("eu", &false.into()));
}

#[test]
fn an_exported_zone_has_the_records_https_of_edge_names() {
    let server = serve(edge("www.example.org", RegionPolicy::Failover));
    let exported = server.export(None, None).expect("zones");
    let text = exported["zones"]["example.org"].as_str().expect("a zone file");
    let expected = "www.example.org. 30 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1\n";
    assert!(text.contains(expected), "{text}");
}
