//! The peer listener: who is answered, who is refused, and what a peer is believed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::harness::peer::{FleetAuthority, PeerClient, ScriptedPeer, hop, hop_to};
use crate::harness::{
    Answer, Client, Edge, Gate, Origin, Process, Request, free_address, skerry, until,
};

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
    let fields = [
        ("skerry-hop", &*hop_to(&edge, "edge-2", url)),
        ("x-forwarded-for", "203.0.113.9"),
        ("cdn-loop", "skerry"),
        ("skerry-new", "1"),
    ];
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
    let own = hop_to(&edge, "edge-2", "http://edge.test/a");
    let other = hop("edge-3");
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
fn a_stranger_gets_no_answer_and_one_line_in_the_log() {
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
        is_counted_and_logged_once(&node, reason, 3.0);
    }
    let peer = PeerClient::connect(address, authority.identity(Some("edge-2"))).expect("a peer");
    for _ in 0..3 {
        let answer = peer.ask("GET", "http://edge.test/a", &[("skerry-hop", &hop("edge-3"))]);
        assert_eq!(answer.expect("an answer").status.as_u16(), 421);
    }
    is_counted_and_logged_once(&node, "name", 3.0);
    assert_eq!(origin.request_count(), 0);
}

/// Within a minute one line tells of all refusals for a reason.
fn is_counted_and_logged_once(node: &Process, reason: &str, count: f64) {
    let counter = format!("skerry_peer_refusals_total{{reason=\"{reason}\"");
    until("the refusals are counted", || node.metric(&counter) == count);
    let told = format!("reason=\"{reason}\"");
    until("the refusal is logged", || !node.lines_with(&told).is_empty());
    assert_eq!(node.lines_with(&told).len(), 1, "{reason}");
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
    let own = hop_to(&edge, "edge-2", "http://edge.test/a");
    let fields = [("skerry-hop", &*own)];
    for _ in 0..3 {
        let answer = peer.ask("GET", "http://edge.test/a", &fields).expect("an answer");
        assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    }
    let second = connect(&edge, &authority, "edge-3");
    let url = "http://edge.test/slow";
    let slow = peer.send("GET", url, &[("skerry-hop", &hop_to(&edge, "edge-2", url))]);
    origin.wait_for_requests(4);
    let own = hop_to(&edge, "edge-3", "http://edge.test/a");
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
    let own = hop_to(&edge, "edge-2", "http://edge.test/a");
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
    let reports = edge.admin("GET", "/certificates", "");
    assert!(reports.text().contains("edge.pem"), "{}", reports.text());
}

#[test]
fn a_certificate_that_expires_ends_its_connections_within_their_age() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let authority = FleetAuthority::new();
    authority.issue(&["edge"], 0);
    // Long enough for the first request on a busy machine.
    let until_expired = Duration::from_secs(8);
    authority.issue_for(until_expired, &["edge-2"], SystemTime::now());
    let edge = edge(&authority, &origin, "connection_age = \"1s\"\n");
    let peer = connect(&edge, &authority, "edge-2");
    let own = hop_to(&edge, "edge-2", "http://edge.test/a");
    let ask = |peer: &PeerClient| peer.ask("GET", "http://edge.test/a", &[("skerry-hop", &own)]);
    assert_eq!(ask(&peer).expect("it is valid").status.as_u16(), 200);
    until("its connection has ended", || ask(&peer).is_err());
    assert!(edge.metric("skerry_peer_connections_aged_total") >= 1.0);
    until("it is refused", || {
        let again = PeerClient::connect(edge.node.peers[0], authority.identity(Some("edge-2")));
        again.and_then(|peer| ask(&peer)).is_err()
    });
    until("its refusal is counted", || refusals(&edge, "expired") >= 1.0);
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

/// A node of a fleet without Redis.
struct StaticNode {
    process: Process,
    address: SocketAddr,
}

impl StaticNode {
    /// Starts the node `name` with peers at these addresses; its own is `address`.
    fn start(
        authority: &FleetAuthority,
        name: &str,
        address: SocketAddr,
        peers: &[(&str, SocketAddr)],
    ) -> Self {
        let mut text = format!("[node]\nregion = \"eu\"\nweight = 7\n{}", authority.section(name));
        text = text.replace("127.0.0.1:0", &address.to_string());
        text.push_str("check_interval = \"200ms\"\n");
        for (name, address) in peers {
            text.push_str(&format!("[peers.nodes.{name}]\naddress = \"{address}\"\n"));
        }
        text.push_str(
            "[pools.main]\norigins = \"http://127.0.0.1:9\"\n[sites.all]\nhosts = \"*\"\n",
        );
        Self { process: Process::start_as(name, &text), address }
    }

    /// The nodes as this one sees them.
    fn nodes(&self) -> serde_json::Value {
        let request =
            Request { method: "GET", host: "localhost", target: "/nodes", fields: &[], body: b"" };
        let reply = Client::connect(self.process.admin).request(request);
        serde_json::from_slice(&reply.body).expect("JSON")
    }

    fn sees(&self, name: &str, state: &str) -> bool {
        self.nodes()["nodes"][name]["state"] == state
    }
}

#[test]
fn static_peers_are_known_by_their_own_word_and_out_when_they_are_silent() {
    let authority = fleet();
    let (one, two) = (free_address(), free_address());
    let peers = [("edge-2", one), ("edge-3", two)];
    let first = StaticNode::start(&authority, "edge-2", one, &peers);
    until("a node that was never heard is out", || first.sees("edge-3", "out"));
    let mut second = StaticNode::start(&authority, "edge-3", two, &peers);
    until("the first knows the second", || first.sees("edge-3", "ready"));
    until("the second knows the first", || second.sees("edge-2", "ready"));
    let shown = &first.nodes()["nodes"]["edge-3"];
    assert_eq!((&shown["region"], &shown["weight"]), (&"eu".into(), &7.into()), "by its own word");
    assert_eq!(shown["peer"], second.address.to_string());
    assert_eq!(
        (&shown["peer_protocol"], &shown["config"]),
        (&1.into(), &second.nodes()["nodes"]["edge-3"]["config"])
    );
    // The node stops, and does not close its connections.
    second.process.signal(Signal::STOP);
    until("a stopped node is out", || first.sees("edge-3", "out"));
    let told = "peer edge-3 does not answer, its keys go to other nodes";
    until("that is logged", || !first.process.lines_with(told).is_empty());
    second.process.signal(Signal::CONT);
    until("it is back", || first.sees("edge-3", "ready"));
    assert!(!first.process.lines_with("peer edge-3 answers").is_empty());
    second.process.signal(Signal::TERM);
    second.process.end();
    until("a node that has ended is out", || first.sees("edge-3", "out"));
}

#[test]
fn a_call_is_for_members_only() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let authority = fleet();
    let listed = "[peers.nodes.edge-2]\naddress = \"127.0.0.1:9\"\n";
    let edge = edge(&authority, &origin, listed);
    until("the list is in force", || edge.admin("GET", "/nodes", "").text().contains("edge-2"));
    let path = "https://edge/.well-known/skerry/announcement";
    let ask = |as_node: &str, path: &str, says: &[(&str, &str)]| {
        let answer = connect(&edge, &authority, as_node).ask("GET", path, says).expect("an answer");
        (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).unwrap())
    };
    let (status, announcement) = ask("edge-2", path, &[("skerry-node", "edge-2")]);
    assert!(status == 200 && announcement.contains("\"state\":\"ready\""), "{announcement}");
    assert_eq!(ask("edge-2", path, &[]).0, 421);
    assert_eq!(ask("edge-2", path, &[("skerry-node", "edge")]).0, 421);
    assert_eq!(ask("edge-3", path, &[("skerry-node", "edge-3")]).0, 421, "it is not listed");
    assert_eq!(refusals(&edge, "member"), 1.0);
    let (stranger, url) = (connect(&edge, &authority, "edge-3"), "http://edge.test/a");
    let answer = stranger.ask("GET", url, &[("skerry-hop", &hop_to(&edge, "edge-3", url))]);
    assert_eq!(answer.expect("an answer").status.as_u16(), 421);
    assert_eq!(refusals(&edge, "member"), 2.0, "its requests are refused too");
    let other = "https://edge/.well-known/skerry/other";
    assert_eq!(ask("edge-2", other, &[("skerry-node", "edge-2")]).0, 404);
    // On a listener for clients the path is the origin's.
    let seen = edge.get("/.well-known/skerry/announcement");
    assert_eq!((seen.status, seen.text()), (200, "hello"));
}

#[test]
fn a_peer_with_another_configuration_key_or_protocol_is_refused_with_the_reason() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let authority = fleet();
    let edge = edge(&authority, &origin, "");
    let peer = connect(&edge, &authority, "edge-2");
    let url = "http://edge.test/a";
    let own = hop_to(&edge, "edge-2", url);
    let check = |from: &str, to: &str, expected: &str| {
        let changed = own.replace(from, to);
        let answer = peer.ask("GET", url, &[("skerry-hop", &changed)]).expect("an answer");
        let found = (answer.status.as_u16(), answer.field("skerry-hop"), answer.body.len());
        assert_eq!(found, (421, &*format!("verdict=refused, why={expected}"), 0));
    };
    check("v=1", "v=2", "version");
    check("digest=\"", "digest=\"0", "digest");
    check("hops=1", "hops=4", "hops");
    let other = hop_to(&edge, "edge-2", "http://edge.test/b");
    let key = |hop: &str| hop.rsplit('"').nth(1).map(str::to_owned).expect("a key");
    check(&key(&own), &key(&other), "key");
    assert_eq!(origin.request_count(), 0);
    let first = peer.ask("GET", url, &[("skerry-hop", &own)]).expect("an answer");
    assert_eq!(first.field("skerry-hop"), "verdict=stored");
    let second = peer.ask("GET", url, &[("skerry-hop", &own)]).expect("an answer");
    assert_eq!(second.field("skerry-hop"), "verdict=hit");
}

#[test]
fn an_origin_that_fails_is_no_answer_for_a_peer() {
    let origin = Origin::start(|_| Answer::raw(""));
    let authority = fleet();
    let edge = edge(&authority, &origin, "");
    let peer = connect(&edge, &authority, "edge-2");
    let url = "http://edge.test/a";
    let own = hop_to(&edge, "edge-2", url);
    let answer = peer.ask("GET", url, &[("skerry-hop", &own)]).expect("an answer");
    let found = (answer.status.as_u16(), answer.field("skerry-hop"), answer.body.len());
    assert_eq!(found, (421, "verdict=refused, why=upstream", 0));
}

#[test]
fn a_peer_gets_the_response_as_the_origin_sent_it() {
    let origin = Origin::start(|_| {
        Answer::ok("long text ".repeat(1000))
            .fresh_for(60)
            .header("Content-Type", "text/plain")
            .header("Surrogate-Key", "a b")
            .header("X-Origin", "1")
    });
    let authority = fleet();
    let rule = "[defaults.cache]\nhide_tags = true\n[defaults.response_fields]\nremove = \"x-origin\"\nset = { x-edge = \"1\" }\n";
    let edge = edge(&authority, &origin, rule);
    let peer = connect(&edge, &authority, "edge-2");
    let url = "http://edge.test/a";
    let own = hop_to(&edge, "edge-2", url);
    for _ in 0..2 {
        let fields = [("skerry-hop", &*own), ("accept-encoding", "gzip, br")];
        let answer = peer.ask("GET", url, &fields).expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 10_000));
        let names = ["surrogate-key", "x-origin", "x-edge", "content-encoding"];
        assert_eq!(names.map(|name| answer.field(name)), ["a b", "1", "", ""], "{answer:?}");
    }
    assert_eq!(origin.request_count(), 1);
}

/// The announcement of a ready node of the region that the node `edge` is in, with this protocol version.
fn announcement(protocol: u16, config: &str, state: &str) -> String {
    let peer = serde_json::json!({ "address": "127.0.0.1:1", "protocol": protocol });
    serde_json::json!({ "region": "", "weight": 1000, "state": state, "software": "9.9.9", "config": config, "peer": peer })
        .to_string()
}

#[test]
fn a_peer_of_the_next_protocol_version_is_not_asked() {
    is_not_asked(|own| announcement(2, own, "ready"));
}

#[test]
fn a_peer_with_another_configuration_is_not_asked() {
    is_not_asked(|own| announcement(1, &format!("0{own}"), "ready"));
}

#[test]
fn a_peer_that_drains_is_not_asked() {
    is_not_asked(|own| announcement(1, own, "draining"));
}

/// Requests go to the origin while a peer makes this announcement. `announced` takes the digest of this node.
fn is_not_asked(announced: fn(&str) -> String) {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let authority = fleet();
    let own = Arc::new(Mutex::new(String::new()));
    let other = ScriptedPeer::start(&authority, "edge-2", {
        let own = own.clone();
        move |path| match path {
            "/.well-known/skerry/announcement" => (200, announced(&own.lock().unwrap())),
            _ => (500, "not asked for".to_owned()),
        }
    });
    let listed = format!(
        "check_interval = \"100ms\"\n[peers.nodes.edge-2]\naddress = \"{}\"\n",
        other.address
    );
    let edge = edge(&authority, &origin, &listed);
    let nodes = || -> serde_json::Value {
        serde_json::from_str(edge.admin("GET", "/nodes", "").text()).expect("JSON")
    };
    let digest = nodes()["nodes"]["edge"]["config"].as_str().expect("a digest").to_owned();
    own.lock().unwrap().clone_from(&digest);
    let expected: serde_json::Value =
        serde_json::from_str(&announced(&digest)).expect("an announcement");
    until("it is known", || {
        let row = nodes()["nodes"]["edge-2"].clone();
        row["state"] == expected["state"]
            && row["config"] == expected["config"]
            && row["peer_protocol"] == expected["peer"]["protocol"]
    });
    for page in 0..20 {
        let answer = edge.get(&format!("/{page}"));
        assert_eq!((answer.status, answer.text()), (200, "hello"));
    }
    assert_eq!(origin.request_count(), 20);
    // The node looks whether it lives, and would bring it purges.
    let is_call = |path: &String| path.starts_with("/.well-known/skerry/");
    assert!(other.asked().iter().all(is_call), "{:?}", other.asked());
    assert_eq!(edge.metric("skerry_peer_requests_total"), 0.0);
}

#[test]
fn a_peer_that_answers_nonsense_is_out() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let authority = fleet();
    for nonsense in [(200, "[".repeat(60_000)), (200, "x".repeat(100_000)), (500, String::new())] {
        let other = ScriptedPeer::start(&authority, "edge-2", move |_| nonsense.clone());
        let listed = format!(
            "check_interval = \"100ms\"\n[peers.nodes.edge-2]\naddress = \"{}\"\n",
            other.address
        );
        let edge = edge(&authority, &origin, &listed);
        until("it was checked", || {
            edge.metric("skerry_peer_checks_total{outcome=\"failed\"") > 3.0
        });
        assert!(edge.admin("GET", "/nodes", "").text().contains("\"state\": \"out\""));
        assert_eq!(edge.get("/a").status, 200);
    }
}

#[test]
fn a_node_that_shows_another_certificate_than_its_own_is_no_peer() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let authority = fleet();
    // The peer has a certificate of the fleet, but not that of the listed node.
    let other = ScriptedPeer::start(&authority, "edge-3", |_| (200, announcement(1, "", "ready")));
    let listed = format!(
        "check_interval = \"100ms\"\n[peers.nodes.edge-2]\naddress = \"{}\"\n",
        other.address
    );
    let edge = edge(&authority, &origin, &listed);
    until("it was checked", || edge.metric("skerry_peer_checks_total{outcome=\"failed\"") > 3.0);
    assert!(edge.admin("GET", "/nodes", "").text().contains("\"state\": \"out\""));
    assert!(other.asked().is_empty(), "{:?}", other.asked());
}
