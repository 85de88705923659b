//! The calls of the admin API about the fleet: its nodes, the owner of a URL, and a node to forget.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::admin::Admin;
use super::http::{Problem, absolute_url, check_parameters, json_response, parameter};
use super::tokens::Caller;
use crate::bus::HeartbeatAge;
use crate::cache::KeyHash;
use crate::fleet::{FleetMember, Readiness, owners};

impl Admin {
    /// `GET /nodes`
    pub(super) async fn nodes(&self) -> Response<Full<Bytes>> {
        let heartbeats = self.bus.heartbeat_ages().await;
        let own = self.bus.name();
        let table = self.nodes.borrow().clone();
        let unreachable = table.unreachable_nodes();
        let nodes: serde_json::Map<String, Value> = table
            .members()
            .iter()
            .map(|member| {
                let mut fields = member_as_json(member);
                let heartbeat = heartbeats.get(&*member.name);
                let age = match heartbeat {
                    None if &*member.name == own => Some(Duration::ZERO),
                    heartbeat => heartbeat.map(|heartbeat| heartbeat.age),
                };
                fields["heard_ms_ago"] = json!(age.map(|age| age.as_millis() as u64));
                fields["reachable"] = json!(!unreachable.contains(&member.name));
                fields["applied"] = json!(heartbeat.and_then(applied));
                (member.name.to_string(), fields)
            })
            .collect();
        let mut configs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for member in table.members() {
            let digest = &*member.announcement.config_digest;
            if !digest.is_empty() {
                configs.entry(digest).or_default().push(&member.name);
            }
        }
        json_response(StatusCode::OK, &json!({ "node": own, "nodes": nodes, "configs": configs }))
    }

    /// `POST /nodes/forget?node=NAME`: removes a node that is out from the fleet.
    pub(super) async fn forget_node(
        &self,
        caller: &Caller,
        query: &str,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        check_parameters(query, &["node"])?;
        let missing = "parameter \"node\" is missing: expected /nodes/forget?node=NAME";
        let name = parameter(query, "node")?.ok_or_else(|| Problem::bad_request(missing))?;
        let result = self.forget(&name).await;
        let line = json!({
            "at_ms": self.now_ms(),
            "who": caller.name,
            "from": caller.address.to_string(),
            "call": "POST /nodes/forget",
            "node": name,
            "error": result.as_ref().err().map(|problem| &problem.detail),
        });
        self.audit.write(line).await;
        result.map(|()| json_response(StatusCode::OK, &json!({ "forgotten": name })))
    }

    async fn forget(&self, name: &str) -> Result<(), Problem> {
        let table = self.nodes.borrow().clone();
        let Some(member) = table.get(name) else {
            let detail = format!(
                "node {name:?}: the fleet has no node of this name; skerry nodes lists them"
            );
            return Err(Problem::new(StatusCode::NOT_FOUND, detail));
        };
        if member.readiness != Readiness::Out {
            let state = member.readiness.as_str();
            let detail = format!(
                "node {name:?} is {state}: only a node that is out can be forgotten; stop it first"
            );
            return Err(Problem::new(StatusCode::CONFLICT, detail));
        }
        let unavailable = |why| Problem::new(StatusCode::SERVICE_UNAVAILABLE, why);
        self.bus.forget(name).await.map_err(unavailable)
    }

    /// `GET /nodes/owner?url=…`
    pub(super) async fn owner(&self, query: &str) -> Result<Response<Full<Bytes>>, Problem> {
        check_parameters(query, &["url"])?;
        let missing = || {
            let expected = "expected /nodes/owner?url=https://example.org/page";
            Problem::bad_request(format!("parameter \"url\" is missing: {expected}"))
        };
        let uri = absolute_url(&parameter(query, "url")?.ok_or_else(missing)?)?;
        let explained = self.node.explain(&uri, &HeaderMap::new(), None, None).await;
        let explained = explained.map_err(Problem::bad_request)?;
        let Some(key) = explained["key"].as_str() else {
            let detail = format!(
                "this URL has no owner, because a request for it is not looked up in the cache: {}",
                explained["decision"]
            );
            return Err(Problem::new(StatusCode::NOT_FOUND, detail));
        };
        let table = self.nodes.borrow().clone();
        let region = table.get(self.bus.name()).map(|own| own.announcement.region.clone());
        let region = region.unwrap_or_default();
        // Without a load: the owner while the requests of the region are spread evenly.
        let hash = KeyHash::of(key.as_bytes()).0 as u64;
        let owned = |region: &str| {
            let ranked = owners(&table, region, hash, |_| 0);
            let names: Vec<&str> = ranked.iter().map(|member| &*member.name).collect();
            json!({ "region": region, "owner": names.first(), "ranking": names })
        };
        let mut reply = owned(&region);
        reply["key"] = json!(key);
        let shield = explained["shield"].as_array().into_iter().flatten();
        reply["shield"] = shield.filter_map(Value::as_str).map(owned).collect();
        Ok(json_response(StatusCode::OK, &reply))
    }
}

fn member_as_json(member: &FleetMember) -> Value {
    let announcement = &member.announcement;
    json!({
        "state": member.readiness.as_str(),
        "region": &*announcement.region,
        "latitude": announcement.coordinates.map(geo::Coordinates::latitude),
        "longitude": announcement.coordinates.map(geo::Coordinates::longitude),
        "addresses": announcement.addresses,
        "weight": announcement.weight,
        "load": announcement.load.share(),
        "software": &*announcement.software,
        "config": &*announcement.config_digest,
        "peer": announcement.peer.map(|peer| peer.address),
        "peer_protocol": announcement.peer.map(|peer| peer.protocol),
        "fails_to_reach": announcement.unreachable.as_ref().map(|names| {
            names.iter().map(|name| &**name).collect::<Vec<_>>()
        }),
        "store": announcement.store.as_str(),
        "duplicate_name": announcement.has_duplicate_name,
    })
}

/// The position in the purge stream, in the history that the node is in.
fn applied(heartbeat: &HeartbeatAge) -> Option<u64> {
    heartbeat.heartbeat.number
}
