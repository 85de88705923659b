//! The peer listener: who is answered, who is refused, and what a peer is believed.

use std::net::SocketAddr;

use crate::harness::peer::{FleetAuthority, PeerClient, hop};
use crate::harness::{Answer, Edge, Gate, Origin, Process, skerry, until};

/// A node `edge` with peers in front of an origin.
fn edge(authority: &FleetAuthority, origin: &Origin, more: &str) -> Edge {
    Edge::with(&text(authority, origin, more))
}

fn text(authority: &FleetAuthority, origin: &Origin, more: &str) -> String {
    format!(
        "{}{more}[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        authority.section("edge"),
        origin.url()
    )
}

fn fleet() -> FleetAuthority {
    let authority = FleetAuthority::new();
    authority.issue(&["edge", "edge-2", "edge-3"], 0);
    authority
}

fn connect(edge: &Edge, authority: &FleetAuthority, name: &str) -> PeerClient {
    PeerClient::connect(edge.node.peers[0], authority.identity(Some(name))).expect("a peer")
}

fn refusals(edge: &Edge, reason: &str) -> f64 {
    edge.metric(&format!("skerry_peer_refusals_total{{reason=\"{reason}\""))
}

#[test]
fn a_peer_is_believed_what_it_says_of_its_client() {
    let origin =
        Origin::start(|_| Answer::ok("hello").fresh_for(60).header("Skerry-Hop", "verdict=hit"));
    let authority = fleet();
    let edge = edge(&authority, &origin, "");
    let peer = connect(&edge, &authority, "edge-2");
    let url = "https://edge.test/a";
    let fields =
        [("skerry-hop", &*hop("edge-2")), ("x-forwarded-for", "203.0.113.9"), ("skerry-new", "1")];
    let answer = peer.ask("GET", url, &fields).expect("an answer");
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, &b"hello"[..]));
    let seen = &origin.received()[0];
    assert_eq!(seen.header("x-forwarded-for"), Some("203.0.113.9"));
    assert_eq!(seen.header("cdn-loop"), Some("skerry"));
    assert_eq!(seen.header("x-request-id"), Some("00ab34cd56ef7890"));
    assert_eq!(seen.header("x-forwarded-host"), None, "the peer adds these fields, or none");
    assert!(seen.headers.iter().all(|(name, _)| !name.to_lowercase().starts_with("skerry-")));
    let again = peer.ask("GET", url, &fields[..1]).expect("an answer");
    assert!(again.field("cache-status").contains("; hit"), "{again:?}");
    let log = edge.log(2);
    for line in log {
        assert_eq!(line["client"], "203.0.113.9");
        assert_eq!(line["peer"], "edge-2");
        assert_eq!(line["id"], "00ab34cd56ef7890");
        assert_eq!(line["scheme"], "https");
    }
    assert_eq!(edge.metric("skerry_peer_connections"), 1.0);
}

#[test]
fn a_request_in_the_name_of_another_node_or_of_none_is_refused() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let authority = fleet();
    let edge = edge(&authority, &origin, "");
    let peer = connect(&edge, &authority, "edge-2");
    let check = |method: &str, fields: &[(&str, &str)], reason: &str| {
        let before = refusals(&edge, reason);
        let answer = peer.ask(method, "http://edge.test/a", fields).expect("an answer");
        assert_eq!(answer.status.as_u16(), 421, "{answer:?}");
        assert!(answer.field("skerry-hop").starts_with("verdict=refused"), "{answer:?}");
        assert_eq!(refusals(&edge, reason), before + 1.0, "{reason}");
    };
    let (own, other) = (hop("edge-2"), hop("edge-3"));
    check("GET", &[], "field");
    check("GET", &[("skerry-hop", "v=1")], "field");
    check("GET", &[("skerry-hop", &own), ("skerry-hop", &own)], "field");
    check("GET", &[("skerry-hop", &other)], "name");
    for method in ["POST", "PUT", "DELETE", "PURGE", "OPTIONS"] {
        check(method, &[("skerry-hop", &own)], "method");
    }
    assert_eq!(origin.request_count(), 0);
    let answer = peer.ask("GET", "http://edge.test/a", &[("skerry-hop", &own)]);
    assert_eq!(answer.expect("an answer").status.as_u16(), 200, "the connection goes on");
}

#[test]
fn a_stranger_gets_no_connection_and_one_line_in_the_log() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let (authority, others) = (fleet(), fleet());
    authority.issue(&["old"], 31);
    let node = Process::start(&text(&authority, &origin, "[node]\nname = \"edge\"\n"));
    let address: SocketAddr = {
        let lines = node.lines_with("answering peers on ");
        lines[0].rsplit(' ').next().unwrap().parse().expect("an address")
    };
    // They trust this fleet; a certificate of another one is theirs.
    let with_certificate_of = |from: &FleetAuthority, name: &str| {
        let mut config = (*authority.identity(None)).clone();
        config.client_auth_cert_resolver =
            from.identity(Some(name)).client_auth_cert_resolver.clone();
        config
    };
    let cases = [
        ("no-certificate", (*authority.identity(None)).clone()),
        ("authority", with_certificate_of(&others, "edge-2")),
        ("expired", with_certificate_of(&authority, "old")),
    ];
    for (reason, identity) in cases {
        for _ in 0..3 {
            let connected = PeerClient::connect(address, identity.clone().into());
            let answered = connected.and_then(|peer| {
                peer.ask("GET", "http://edge.test/a", &[("skerry-hop", &hop("edge-2"))])
            });
            assert!(answered.is_err(), "{reason}: {answered:?}");
        }
        let told = format!("reason=\"{reason}\"");
        until("the refusal is logged", || !node.lines_with(&told).is_empty());
        assert_eq!(node.lines_with(&told).len(), 1, "{reason}");
    }
    assert_eq!(origin.request_count(), 0);
}

#[test]
fn fields_of_the_peer_protocol_are_removed_on_the_listeners_for_clients() {
    let origin = Origin::start(|_| {
        Answer::ok("hello")
            .fresh_for(60)
            .header("Skerry-Hop", "verdict=purged")
            .header("Skerry_Purges", "x")
    });
    let edge = Edge::before(&origin.url());
    let own = format!("Skerry-Hop: {}", hop("edge-2"));
    let answer = edge.get_with("/a", &[&own, "Skerry-Purges: origin-only", "skerry_hop: x"]);
    let is_ours = |name: &str| name.to_lowercase().replace('_', "-").starts_with("skerry-");
    assert!(answer.headers.iter().all(|(name, _)| !is_ours(name)), "{answer:?}");
    assert!(origin.received()[0].headers.iter().all(|(name, _)| !is_ours(name)));
    assert_eq!(edge.log(1)[0]["client"], "127.0.0.1");
    assert!(edge.get("/a").is_hit(), "the fields concern nothing but peers");
}

#[test]
fn limits_of_clients_do_not_apply_to_peers_which_have_their_own() {
    let gate = Gate::default();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match &*request.target {
            "/slow" => Answer::ok("late").behind(&gate),
            _ => Answer::ok("hello"),
        }
    });
    let authority = fleet();
    let limits = "requests_max = 1\n[defaults.rate]\nper_second = 0.001\nburst = 1\n\
                  [defaults.access]\ndeny = \"203.0.113.0/24\"\n[limits]\nconnections_per_address_max = 1\n";
    let edge = edge(&authority, &origin, limits);
    let peer = connect(&edge, &authority, "edge-2");
    let own = hop("edge-2");
    let fields = [("skerry-hop", &*own)];
    for _ in 0..3 {
        let answer = peer.ask("GET", "http://edge.test/a", &fields).expect("an answer");
        assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    }
    let second = connect(&edge, &authority, "edge-3");
    let slow = peer.send("GET", "http://edge.test/slow", &fields);
    origin.wait_for_requests(4);
    let own = hop("edge-3");
    let refused = second.ask("GET", "http://edge.test/a", &[("skerry-hop", &own)]).expect("one");
    assert_eq!(refused.status.as_u16(), 421);
    assert_eq!(refused.field("skerry-hop"), "verdict=refused, why=overload");
    assert!(refused.body.is_empty() && refusals(&edge, "overload") == 1.0);
    assert_eq!(edge.metric("skerry_peer_requests_in_flight"), 1.0);
    gate.open();
    assert_eq!(&*peer.wait(slow).expect("an answer").body, b"late");
    until("the place is free", || edge.metric("skerry_peer_requests_in_flight") == 0.0);
    let answer = second.ask("GET", "http://edge.test/a", &[("skerry-hop", &own)]).expect("one");
    assert_eq!(answer.status.as_u16(), 200);
}

#[test]
fn new_certificates_are_used_without_a_restart() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let (authority, next) = (fleet(), fleet());
    let edge = edge(&authority, &origin, "");
    let before = connect(&edge, &authority, "edge-2");
    for file in ["edge.pem", "edge.key", "ca.pem"] {
        std::fs::copy(next.file(file), authority.file(file)).expect("copied");
    }
    let own = hop("edge-2");
    let ask = |peer: &PeerClient| peer.ask("GET", "http://edge.test/a", &[("skerry-hop", &own)]);
    until("the new authority is trusted", || {
        let peer = PeerClient::connect(edge.node.peers[0], next.identity(Some("edge-2")));
        peer.is_ok_and(|peer| ask(&peer).is_ok())
    });
    assert_eq!(ask(&before).expect("open connections stay").status.as_u16(), 200);
    let name = format!(
        "skerry_certificate_expiry_timestamp_seconds{{file={:?}}}",
        authority.file("edge.pem")
    );
    assert!(edge.metric(&name) > 1e9, "its end is in the metrics");
}

#[test]
fn the_command_makes_certificates_that_a_node_accepts() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path().join("peers");
    let arguments =
        ["peers", "certificate", "edge-1", "edge-2", "--directory", directory.to_str().unwrap()];
    let made = skerry(&arguments);
    let told = String::from_utf8(made.stdout).unwrap();
    assert!(made.status.success() && told.contains("[peers]\n"), "{told}");
    let config = folder.path().join("edge.toml");
    let section = told.split_once("[peers]\n").unwrap().1;
    let text = format!(
        "[node]\nname = \"edge-1\"\n[peers]\n{section}[pools.main]\norigins = \"http://127.0.0.1:9000\"\n[sites.all]\nhosts = \"*\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let checked = skerry(&["check", config.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success(), "{told}");
    let again = skerry(&arguments);
    let told = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(1), "{told}");
    assert!(told.contains("edge-1.pem exists and is not overwritten"), "{told}");
}
