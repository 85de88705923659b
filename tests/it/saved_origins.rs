//! Origins that sources gave before a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skerry::Clock;

use crate::harness::{Answer, Edge, Origin, Response, Restarted, exchange, until};

fn get(restarted: &Restarted, target: &str) -> Response {
    exchange(restarted.node.listening[0].address, "edge.test", target, &[])
}

/// The state of the sources of the first pool.
fn sources_of(restarted: &Restarted) -> Vec<Value> {
    restarted.origins()["pools"][0]["sources"].as_array().expect("sources").clone()
}

fn text(sources: &str, resolver: &str) -> String {
    format!(
        "[pools.main]\norigins = [{sources}]\n[sites.all]\nhosts = \"*\"\n[resolver]\n{resolver}\n"
    )
}

#[test]
fn a_node_that_starts_while_its_sources_are_dead_serves_at_once_from_the_origins_of_before() {
    let origin = Origin::start(|_| Answer::ok("served"));
    let listed = json!({ "origins": [origin.url()] }).to_string();
    let is_dead = Arc::new(AtomicBool::new(false));
    let registry = Origin::start({
        let is_dead = is_dead.clone();
        move |_| match is_dead.load(Ordering::SeqCst) {
            true => Answer::raw(""),
            false => Answer::ok(listed.clone()),
        }
    });
    let port = origin.address.port();
    let names = Edge::with(
        "[pools.main]\norigins = \"http://127.0.0.1:9\"\n[sites.all]\nhosts = \"*\"\n\
         [dns.server]\naddresses = [\"127.0.0.1:0\"]\n\
         [dns.zones.\"svc.example.org\"]\nname_servers = [\"ns1.svc.example.org\", \"ns2.example.net\"]\n\
         records = [\"ns1 A 192.0.2.53\", \"app A 127.0.0.1\", \"_http._tcp.app SRV 1 1 PORT app\"]\n"
            .replace("PORT", &port.to_string())
            .as_str(),
    );
    let sources = format!(
        "{{ http = \"http://{}/list\", interval = \"100ms\" }}, \
         {{ each_address_of = \"http://app.svc.example.org:{port}\" }}, \
         {{ srv = \"http://_http._tcp.app.svc.example.org\" }}",
        registry.address
    );
    let alive = format!("servers = [\"{}\"]", names.node.dns[0]);
    let edge = Edge::with(&text(&sources, &alive));
    assert_eq!(edge.get("/").text(), "served");
    let file = edge.path("data/discovered.json");
    let answers = || {
        let text = std::fs::read(&file).ok()?;
        let file: Value = serde_json::from_slice(&text).ok()?;
        Some(file["pools"]["main"].as_array()?.len())
    };
    until("the answers of all three sources are saved", || answers() == Some(3));

    // From now on, the registry closes each connection, and the name server is one that says nothing.
    is_dead.store(true, Ordering::SeqCst);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let dead = format!("servers = [\"{}\"]", silent.local_addr().expect("its address"));
    let began = Instant::now();
    let next = Restarted::with(&text(&sources, &dead), &file, Clock::system());
    assert_eq!(get(&next, "/").text(), "served");
    // Without saved origins, it waits 5 s for its sources, and has none.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    for source in sources_of(&next) {
        assert_eq!(source["origins"], 1, "{source}");
        assert!(source["answered_ms"].is_u64(), "{source}");
    }
    until("a failure of each source is reported", || {
        sources_of(&next).iter().all(|source| source["failure"].is_string())
    });
    assert_eq!(get(&next, "/later").text(), "served");

    // A day later the addresses may be those of other servers.
    let clock = Clock::system();
    clock.advance(Duration::from_secs(25 * 3600));
    let late = Restarted::with(&text(&sources, &dead), &file, clock);
    assert_eq!(get(&late, "/").status, 503);
    assert!(sources_of(&late).iter().all(|source| source["origins"].is_null()));
}
