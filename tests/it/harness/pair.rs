//! A node and a scripted peer, which know each other without a bus.

use std::sync::{Arc, OnceLock};

use h2::RecvStream;
use http::Request;
use serde_json::{Value, json};

use super::peer::{FleetAuthority, PeerReply, ScriptedPeer};
use super::{Answer, Edge, Origin, until};

/// The node `edge` before an origin that answers `origin` to everything, and its peer `edge-2`.
pub struct Pair {
    pub edge: Edge,
    pub origin: Origin,
    peer: ScriptedPeer,
}

impl Pair {
    /// `lines` are added to `[peers]` of the node. Without `check_interval` among them, the node asks the peer every 100 ms
    /// whether it lives, and takes it for out after three answers that are late by as much.
    pub fn start(
        lines: &str,
        reply: impl Fn(&Request<RecvStream>) -> PeerReply + Send + Sync + 'static,
    ) -> Self {
        let origin = Origin::start(|_| Answer::ok("origin").fresh_for(60));
        let authority = FleetAuthority::new();
        authority.issue(&["edge", "edge-2"], 0);
        let announcement = Arc::new(OnceLock::<String>::new());
        let announced = announcement.clone();
        let peer = ScriptedPeer::replying(&authority, "edge-2", move |request| {
            match (request.uri().path(), announced.get()) {
                ("/.well-known/skerry/announcement", None) => PeerReply::new(503, ""),
                ("/.well-known/skerry/announcement", Some(text)) => PeerReply::new(200, text),
                _ => reply(request),
            }
        });
        let interval = match lines.contains("check_interval") {
            true => "",
            false => "check_interval = \"100ms\"\n",
        };
        let edge = Edge::with(&format!(
            "{}{lines}{interval}[peers.nodes.edge-2]\naddress = \"{}\"\n\
             [pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
            authority.section("edge"),
            peer.address,
            origin.url()
        ));
        let pair = Self { edge, origin, peer };
        let endpoint = json!({ "address": pair.peer.address.to_string(), "protocol": 1 });
        let digest = pair.nodes()["nodes"]["edge"]["config"].clone();
        let text = json!({ "region": "", "weight": 1000, "state": "ready", "software": "9.9.9", "config": digest, "peer": endpoint });
        announcement.set(text.to_string()).expect("set once");
        until("the peer is known", || pair.nodes()["nodes"]["edge-2"]["state"] == "ready");
        pair
    }

    fn nodes(&self) -> Value {
        serde_json::from_str(self.edge.admin("GET", "/nodes", "").text()).expect("JSON")
    }

    /// Targets with this prefix that the peer owns.
    pub fn owned(&self, prefix: &str) -> impl Iterator<Item = String> {
        let targets = (0..).map(move |number| format!("{prefix}-{number}"));
        targets.filter(|target| {
            let target = format!("/nodes/owner?url=http://edge.test{target}");
            self.edge.admin("GET", &target, "").text().contains("edge-2")
        })
    }

    /// How often the peer was asked for a target.
    pub fn asked(&self, target: &str) -> usize {
        self.peer.asked().iter().filter(|path| *path == target).count()
    }

    pub fn failures(&self, reason: &str) -> f64 {
        let name = format!("skerry_peer_failures_total{{peer=\"edge-2\",reason=\"{reason}\"");
        self.edge.metric(&name)
    }

    /// Whether requests go to the peer.
    pub fn is_up(&self) -> bool {
        self.edge.metric("skerry_peer_up{peer=\"edge-2\"") == 1.0
    }
}
