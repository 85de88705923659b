//! The calls about purges: ordering one, asking what became of it, and listing the latest.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, Uri};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::admin::Admin;
use super::bus::{KnownPurge, NodeState, OrderError, PurgeStatus, RecordScope, Wait, WaitLimit};
use super::fleet::FleetMember;
use super::http::{Problem, check_parameters, json_response, number_parameter, parameter};
use super::purge_order::PurgeOrder;
use super::tokens::{Caller, Leave};
use crate::cache::{PurgeKind, PurgeScope, PurgeSequence};
use crate::purge::PurgeError;

impl Admin {
    /// `POST /purge?wait=none|local|quorum|all&timeout=2s`
    pub(super) async fn purge(
        &self,
        caller: &Caller,
        query: &str,
        body: Bytes,
        room: OwnedSemaphorePermit,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let limit = wait_limit(query)?;
        self.take_from_rate()?;
        let order = PurgeOrder::parse(&body, &*self.node)?;
        drop(body);
        self.may_purge(caller, &order.scopes)?;
        let (id, sequence, status) = self.order(caller, order, limit, Some(room)).await?;
        let is_enough = limit.nodes != Wait::None && status.is_enough(limit.nodes);
        let code = if is_enough { StatusCode::OK } else { StatusCode::ACCEPTED };
        Ok(json_response(code, &purge_as_json(&id, sequence, &status)))
    }

    /// Orders a purge that came as a `PURGE` request, and waits until it is durable here; its id.
    ///
    /// # Errors
    /// As for `POST /purge`.
    pub(crate) async fn purge_by_method(
        &self,
        order: PurgeOrder,
        client: IpAddr,
    ) -> Result<String, Problem> {
        let mut caller = Caller::local(SocketAddr::new(client, 0));
        caller.name = "PURGE request".to_owned();
        if let Err(problem) = self.take_from_rate() {
            self.audit_refusal("PURGE", Some(&caller.name), caller.address, &problem).await;
            return Err(problem);
        }
        let limit = WaitLimit { nodes: Wait::Local, timeout: TIMEOUT };
        let ordered = self.order(&caller, order, limit, None).await;
        ordered.map(|(id, ..)| id)
    }

    /// Counts a purge against the rate.
    fn take_from_rate(&self) -> Result<(), Problem> {
        if self.rate.take(self.clock.instant()) {
            return Ok(());
        }
        let detail = format!(
            "more than {} purges a second (admin.purges_per_second_max): put several URLs or tags into one call",
            self.rate.per_second()
        );
        Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail))
    }

    /// Orders a purge, waits as `limit` says, and writes the outcome to the audit log.
    async fn order(
        &self,
        caller: &Caller,
        order: PurgeOrder,
        limit: WaitLimit,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Ordered, Problem> {
        let mut line = audit_line(caller, &order);
        let ordered = match self.bus.purge(order, room) {
            Ok(issued) => self.bus.wait(issued, limit).await,
            Err(error) => Err(error),
        };
        line["at_ms"] = json!(self.now_ms());
        line["id"] = json!(ordered.as_ref().ok().map(|(id, ..)| id));
        let sequence = ordered.as_ref().ok().and_then(|(_, sequence, _)| *sequence);
        line["sequence"] = json!(sequence.map(|sequence| sequence.0));
        line["error"] = json!(ordered.as_ref().err().map(ToString::to_string));
        self.audit.write(line).await;
        ordered.map_err(problem)
    }

    /// `GET /purges/ID`
    pub(super) async fn purge_status(&self, id: &str) -> Result<Response<Full<Bytes>>, Problem> {
        let status = self.bus.status(id).await;
        let status = status.ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, format!("no purge {id:?} is remembered"))
        })?;
        let sequence = status.known.as_ref().and_then(|known| known.sequence);
        Ok(json_response(StatusCode::OK, &purge_as_json(id, sequence, &status)))
    }

    /// `GET /purges?since=MILLISECONDS&limit=100`
    pub(super) fn purges(&self, query: &str) -> Result<Response<Full<Bytes>>, Problem> {
        check_parameters(query, &["since", "limit"])?;
        let since = number_parameter(query, "since", 0.0)?;
        if !(0.0..f64::INFINITY).contains(&since) {
            let detail = format!("since {since}: expected milliseconds since 1970");
            return Err(Problem::bad_request(detail));
        }
        let limit: usize = number_parameter(query, "limit", 100)?;
        if !(1..=LIST_MAX).contains(&limit) {
            return Err(Problem::bad_request(format!("limit {limit}: expected 1 to {LIST_MAX}")));
        }
        let purges = self.bus.since(since, limit);
        let purges: Vec<Value> =
            purges.iter().map(|(id, known)| known_as_json(id, known)).collect();
        Ok(json_response(StatusCode::OK, &json!({ "purges": purges })))
    }

    /// `GET /nodes`
    pub(super) fn nodes(&self) -> Response<Full<Bytes>> {
        let now = self.clock.instant();
        let node = |(name, member): (String, FleetMember)| {
            let heard = now.saturating_duration_since(member.heard);
            let told = json!({
                "region": member.region,
                "heard_ms_ago": heard.as_millis() as u64,
                "applied": member.place.map(|(_, number)| number),
            });
            (name, told)
        };
        let nodes: serde_json::Map<String, Value> =
            self.bus.members().into_iter().map(node).collect();
        json_response(StatusCode::OK, &json!({ "node": self.bus.name(), "nodes": nodes }))
    }

    /// Whether the caller's token goes as far as this.
    fn may_purge(&self, caller: &Caller, scopes: &[PurgeScope]) -> Result<(), Problem> {
        let Leave::Purge(sites) = &caller.leave else {
            return match caller.leave {
                Leave::Read => Err(caller.refused("a purge")),
                _ => Ok(()),
            };
        };
        for scope in scopes {
            let (what, site) = match scope {
                PurgeScope::Site(site) => (format!("site {site:?}"), Some(site.to_string())),
                PurgeScope::Url(url) | PurgeScope::Prefix(url) => {
                    let site = url.parse::<Uri>().ok().and_then(|url| self.node.site_of(&url));
                    (format!("{url:?}"), site)
                }
                PurgeScope::Tag(tag) => (format!("tag {tag:?}, which any site may use"), None),
                PurgeScope::All => ("everything".to_owned(), None),
            };
            if !site.is_some_and(|site| sites.contains(&site)) {
                return Err(caller.refused(&format!("a purge of {what}")));
            }
        }
        Ok(())
    }
}

/// A purge's id, its sequence if it waited for that, and who has it.
type Ordered = (String, Option<PurgeSequence>, PurgeStatus);

fn wait_limit(query: &str) -> Result<WaitLimit, Problem> {
    check_parameters(query, &["wait", "timeout"])?;
    let wait = match parameter(query, "wait")?.as_deref() {
        None | Some("local") => Wait::Local,
        Some("none") => Wait::None,
        Some("quorum") => Wait::Quorum,
        Some("all") => Wait::All,
        Some(other) => {
            let detail = format!("wait {other:?}: expected none, local, quorum or all");
            return Err(Problem::bad_request(detail));
        }
    };
    let timeout = match parameter(query, "timeout")? {
        None => TIMEOUT,
        Some(text) => humantime::parse_duration(&text).map_err(|_| {
            Problem::bad_request(format!("timeout {text:?}: expected a time such as 500ms or 2s"))
        })?,
    };
    if timeout > TIMEOUT_MAX {
        let detail =
            format!("timeout {timeout:?}: at most {TIMEOUT_MAX:?}; GET /purges/ID tells later");
        return Err(Problem::bad_request(detail));
    }
    Ok(WaitLimit { nodes: wait, timeout })
}

fn problem(error: OrderError) -> Problem {
    let status = match &error {
        OrderError::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        OrderError::Store(PurgeError::ScopeTooLong { .. }) => StatusCode::BAD_REQUEST,
        OrderError::Store(_) | OrderError::Ending => StatusCode::SERVICE_UNAVAILABLE,
    };
    Problem::new(status, error.to_string())
}

fn purge_as_json(id: &str, sequence: Option<PurgeSequence>, status: &PurgeStatus) -> Value {
    let nodes: BTreeMap<&String, Value> =
        status.nodes.iter().map(|(name, state)| (name, state_as_json(state))).collect();
    let mut told = match &status.known {
        Some(known) => known_as_json(id, known),
        None => json!({ "id": id }),
    };
    told["sequence"] = json!(sequence.map(|sequence| sequence.0));
    told["complete"] = json!(status.is_enough(Wait::All));
    told["nodes"] = json!(nodes);
    if let Some(published) = status.published {
        told["published"] = json!(published);
    }
    told
}

fn state_as_json(state: &NodeState) -> Value {
    match state {
        NodeState::Applied(Some(receipt)) => json!({
            "state": "applied",
            "ms": rounded(receipt.in_force_ms),
            "durable_ms": rounded(receipt.durable_ms),
        }),
        NodeState::Applied(None) => json!({ "state": "applied" }),
        NodeState::Pending(heard) => json!({
            "state": "pending",
            "heard_ms_ago": heard.map(|heard| heard.as_millis() as u64),
        }),
    }
}

fn known_as_json(id: &str, known: &KnownPurge) -> Value {
    json!({
        "id": id,
        "node": known.node,
        "at_ms": known.at_ms as u64,
        "kind": known.kind,
        "scopes": known.scopes,
        "first_scopes": known.first_scopes,
        "reason": known.reason,
        "sequence": known.sequence.map(|sequence| sequence.0),
    })
}

fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

/// What is known before it is known what became of it.
fn audit_line(caller: &Caller, order: &PurgeOrder) -> Value {
    let scopes: Vec<RecordScope> =
        order.scopes.iter().take(AUDITED_MAX).cloned().map(RecordScope::from).collect();
    json!({
        "who": caller.name,
        "from": caller.address.to_string(),
        "kind": match order.kind { PurgeKind::Soft => "soft", PurgeKind::Hard => "hard" },
        "scopes": order.scopes.len(),
        "first_scopes": scopes,
        "reason": order.reason,
        "refresh": order.refresh,
    })
}

const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
const LIST_MAX: usize = 1000;
/// Scopes that an audit line shows; of the others only how many they were.
const AUDITED_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_wait_for_has_words_and_bounds() {
        let all = WaitLimit { nodes: Wait::All, timeout: TIMEOUT / 4 };
        assert_eq!(wait_limit("wait=all&timeout=500ms").unwrap(), all);
        let local = WaitLimit { nodes: Wait::Local, timeout: TIMEOUT };
        assert_eq!(wait_limit("").unwrap(), local);
        let wrong =
            ["wait=some", "timeout=x", "timeout=2h", "wait=%zz", "wiat=all", "wait=all&wait=none"];
        for wrong in wrong {
            assert_eq!(wait_limit(wrong).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong}");
        }
    }
}
