//! Admin API calls for purges: start one, query its status, list the latest ones; and the list of nodes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, Uri};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::admin::Admin;
use super::http::{Problem, check_parameters, json_response, number_parameter, parameter};
use super::node_actions::ConfiguredTag;
use super::tokens::{Caller, Permission};
use crate::bus::{
    KnownPurge, NodeState, PurgeRequestError, PurgeResult, PurgeStatus, RecordScope, Wait,
    WaitLimit,
};
use crate::cache::purge::tag_hash;
use crate::cache::{PurgeScope, PurgeSequence};
use crate::purge::{PurgeError, PurgeRequest};

impl Admin {
    /// `POST /purge?wait=none|local|quorum|all&timeout=2s`
    pub(super) async fn purge(
        &self,
        caller: &Caller,
        query: &str,
        body: Bytes,
        body_permit: OwnedSemaphorePermit,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let limit = wait_limit(query)?;
        let is_dry_run = is_dry_run(query)?;
        self.check_rate()?;
        let request = PurgeRequest::parse(&body, &*self.node)?;
        drop(body);
        self.check_may_purge(caller, &request.scopes)?;
        let mut warnings = self.tag_warnings(&request.scopes);
        warnings.extend(asterisk_warnings(&request.scopes));
        if is_dry_run {
            let mut answer = self.dry_run(&request);
            add_warnings(&mut answer, warnings);
            return Ok(json_response(StatusCode::OK, &answer));
        }
        let purge = self.run_purge(caller, request, limit, Some(body_permit)).await?;
        let PurgeResult { id, sequence, widened, status } = purge;
        let is_enough = limit.nodes != Wait::None && status.is_enough(limit.nodes);
        let code = if is_enough { StatusCode::OK } else { StatusCode::ACCEPTED };
        let mut answer = self.purge_as_json(&id, sequence, &status);
        if widened > 0 {
            answer["widened"] = json!(widened);
            warnings.push(widened_warning(widened));
        }
        add_warnings(&mut answer, warnings);
        Ok(json_response(code, &answer))
    }

    /// The sites and scopes that a purge would concern, without purging.
    fn dry_run(&self, request: &PurgeRequest) -> Value {
        let is_shown = |scope: &&PurgeScope| match scope {
            // Each URL is purged for both schemes.
            PurgeScope::Url(url) | PurgeScope::Prefix(url) => url.starts_with("https:"),
            _ => true,
        };
        let matched = request.scopes.iter().filter(is_shown).take(AUDITED_MAX).map(|scope| {
            let (scope, of) = match scope {
                PurgeScope::All => ("everything".to_owned(), "all sites".to_owned()),
                PurgeScope::Site(site) => (format!("site {site}"), "all its responses".to_owned()),
                PurgeScope::Tag(tag) => {
                    (format!("tag {tag}"), "responses of all sites with this tag".to_owned())
                }
                PurgeScope::Url(url) => (url.to_string(), self.site_text(url)),
                PurgeScope::Prefix(url) => (format!("prefix {url}"), self.site_text(url)),
            };
            json!({ "scope": scope, "of": of })
        });
        json!({
            "dry_run": true,
            "kind": request.kind.as_str(),
            "scopes": request.scopes.len(),
            "matched": matched.collect::<Vec<_>>(),
        })
    }

    fn site_text(&self, url: &str) -> String {
        let site = self.site_name(url);
        site.map_or_else(|| "no site of this node".to_owned(), |site| format!("site {site}"))
    }

    fn site_name(&self, url: &str) -> Option<String> {
        url.parse::<Uri>().ok().and_then(|url| self.node.site_of(&url))
    }

    /// One warning for each of the first [`WARNINGS_MAX`] tags that only clients see, or that no response had.
    /// The tags of a stored response are not known before it is looked up.
    fn tag_warnings(&self, scopes: &[PurgeScope]) -> Vec<String> {
        let warning = |scope: &PurgeScope| {
            let PurgeScope::Tag(tag) = scope else { return None };
            let why = match self.node.configured_tag(tag) {
                ConfiguredTag::OfRule => return None,
                ConfiguredTag::ShownOnly(place) => format!(
                    "{place} sets it in response_fields, which only clients see; set cache.tags there"
                ),
                ConfiguredTag::Absent if self.store.has_seen_tag(tag_hash(tag)) => return None,
                ConfiguredTag::Absent => "no response in the memory of this node had it since the start; responses of other nodes, and older ones on disk, may have it".to_owned(),
            };
            Some(format!("tag {tag:?} may purge nothing: {why}"))
        };
        scopes.iter().filter_map(warning).take(WARNINGS_MAX).collect()
    }

    /// Runs the purge of a request with the method PURGE, and waits until it is durable on this node.
    /// Returns its id.
    ///
    /// # Errors
    /// As for `POST /purge`.
    pub(crate) async fn purge_by_method(
        &self,
        request: PurgeRequest,
        client: IpAddr,
    ) -> Result<String, Problem> {
        let mut caller = Caller::local(SocketAddr::new(client, 0));
        caller.name = "PURGE request".to_owned();
        if let Err(problem) = self.check_rate() {
            self.audit_refusal("PURGE", Some(&caller.name), caller.address, &problem).await;
            return Err(problem);
        }
        let limit = WaitLimit { nodes: Wait::Local, timeout: TIMEOUT };
        let purge = self.run_purge(&caller, request, limit, None).await;
        purge.map(|purge| purge.id)
    }

    /// Counts a purge against `purges_per_second_max`.
    ///
    /// # Errors
    /// 429: the limit is reached.
    fn check_rate(&self) -> Result<(), Problem> {
        if self.rate.take(self.clock.instant()) {
            return Ok(());
        }
        let detail = format!(
            "more than {} purges per second (admin.purges_per_second_max): nothing was purged; send several URLs or tags in one call",
            self.rate.per_second()
        );
        Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail))
    }

    /// Starts a purge, waits for other nodes as `wait_limit` says, and writes the result to the audit log.
    async fn run_purge(
        &self,
        caller: &Caller,
        request: PurgeRequest,
        wait_limit: WaitLimit,
        body_permit: Option<OwnedSemaphorePermit>,
    ) -> Result<PurgeResult, Problem> {
        let mut line = audit_line(caller, &request);
        let result = match self.bus.purge(request, body_permit) {
            Ok(purge) => self.bus.wait(purge, wait_limit).await,
            Err(error) => Err(error),
        };
        line["at_ms"] = json!(self.now_ms());
        let purge = result.as_ref().ok();
        line["id"] = json!(purge.map(|purge| &purge.id));
        let sequence = purge.and_then(|purge| purge.sequence);
        line["sequence"] = json!(sequence.map(|sequence| sequence.0));
        line["error"] = json!(result.as_ref().err().map(ToString::to_string));
        self.audit.write(line).await;
        result.map_err(problem)
    }

    /// `GET /purges/ID`
    pub(super) async fn purge_status(&self, id: &str) -> Result<Response<Full<Bytes>>, Problem> {
        let status = self.bus.status(id).await;
        let status = status.ok_or_else(|| {
            Problem::new(
                StatusCode::NOT_FOUND,
                format!("no purge {id:?}: it never existed or is too old"),
            )
        })?;
        let sequence = status.known.as_ref().and_then(|known| known.sequence);
        Ok(json_response(StatusCode::OK, &self.purge_as_json(id, sequence, &status)))
    }

    /// `GET /purges?since=MILLISECONDS&limit=100`
    pub(super) fn purges(&self, query: &str) -> Result<Response<Full<Bytes>>, Problem> {
        check_parameters(query, &["since", "limit"])?;
        let since = number_parameter(query, "since", 0.0)?;
        if !(0.0..f64::INFINITY).contains(&since) {
            let detail = format!("since is {since}: expected milliseconds since 1970");
            return Err(Problem::bad_request(detail));
        }
        let limit: usize = number_parameter(query, "limit", 100)?;
        if !(1..=LIST_MAX).contains(&limit) {
            return Err(Problem::bad_request(format!(
                "limit is {limit}: expected 1 to {LIST_MAX}"
            )));
        }
        let purges = self.bus.since(since, limit);
        let purges: Vec<Value> =
            purges.iter().map(|(id, known)| known_as_json(id, known)).collect();
        Ok(json_response(StatusCode::OK, &json!({ "purges": purges })))
    }

    /// Checks that the caller may purge all of these scopes.
    ///
    /// # Errors
    /// 403, with the first scope that the caller may not purge.
    fn check_may_purge(&self, caller: &Caller, scopes: &[PurgeScope]) -> Result<(), Problem> {
        let Permission::Purge(sites) = &caller.permission else {
            return match caller.permission {
                Permission::Read => Err(caller.forbidden("a purge")),
                _ => Ok(()),
            };
        };
        for scope in scopes {
            let (shown, site) = match scope {
                PurgeScope::Site(site) => (format!("site {site:?}"), Some(site.to_string())),
                PurgeScope::Url(url) | PurgeScope::Prefix(url) => {
                    (format!("{url:?}"), self.site_name(url))
                }
                PurgeScope::Tag(tag) => (format!("tag {tag:?} (all sites share tags)"), None),
                PurgeScope::All => ("everything".to_owned(), None),
            };
            if !site.is_some_and(|site| sites.contains(&site)) {
                return Err(caller.forbidden(&format!("a purge of {shown}")));
            }
        }
        Ok(())
    }

    fn purge_as_json(
        &self,
        id: &str,
        sequence: Option<PurgeSequence>,
        status: &PurgeStatus,
    ) -> Value {
        let mut purge = purge_as_json(id, sequence, status);
        if let Some(bus) = self.bus.report() {
            purge["bus"] = json!(if bus.is_connected { "connected" } else { "unreachable" });
        }
        purge
    }
}

fn add_warnings(answer: &mut Value, warnings: Vec<String>) {
    if !warnings.is_empty() {
        answer["warnings"] = json!(warnings);
    }
}

/// One warning for each of the first [`WARNINGS_MAX`] URLs and prefixes that have an asterisk, which other CDNs take for a
/// pattern.
fn asterisk_warnings(scopes: &[PurgeScope]) -> Vec<String> {
    let warning = |scope: &PurgeScope| {
        let (PurgeScope::Url(url) | PurgeScope::Prefix(url)) = scope else { return None };
        // Each URL is purged for both schemes.
        let (start, _) = url.split_once('*').filter(|_| url.starts_with("https:"))?;
        Some(format!(
            "\"*\" in {url:?} stands for itself, not for any text; to purge all URLs that begin with {start:?}, purge that prefix"
        ))
    };
    scopes.iter().filter_map(warning).take(WARNINGS_MAX).collect()
}

fn widened_warning(widened: usize) -> String {
    format!(
        "the purge table of this node is full (store.purge_entries_max): its {widened} oldest purges, hard ones too, became one soft purge of everything; raise store.purge_entries_max, or purge by tag, prefix or site"
    )
}

/// `dry_run=true` or `dry_run=false`.
fn is_dry_run(query: &str) -> Result<bool, Problem> {
    match parameter(query, "dry_run")?.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(Problem::bad_value("dry_run", other, &"expected true or false")),
    }
}

fn wait_limit(query: &str) -> Result<WaitLimit, Problem> {
    check_parameters(query, &["wait", "timeout", "dry_run"])?;
    let wait = match parameter(query, "wait")?.as_deref() {
        None | Some("local") => Wait::Local,
        Some("none") => Wait::None,
        Some("quorum") => Wait::Quorum,
        Some("all") => Wait::All,
        Some(other) => {
            let detail = format!("wait is {other:?}: expected none, local, quorum or all");
            return Err(Problem::bad_request(detail));
        }
    };
    let timeout = match parameter(query, "timeout")? {
        None => TIMEOUT,
        Some(text) => humantime::parse_duration(&text).map_err(|_| {
            Problem::bad_request(format!(
                "timeout is {text:?}: expected a duration such as 500ms or 2s"
            ))
        })?,
    };
    if timeout > TIMEOUT_MAX {
        let detail = format!(
            "timeout is {timeout:?}, at most {TIMEOUT_MAX:?} is allowed; GET /purges/ID shows the status later"
        );
        return Err(Problem::bad_request(detail));
    }
    Ok(WaitLimit { nodes: wait, timeout })
}

fn problem(error: PurgeRequestError) -> Problem {
    let status = match &error {
        PurgeRequestError::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        PurgeRequestError::Log(PurgeError::ScopeTooLong { .. }) => StatusCode::BAD_REQUEST,
        PurgeRequestError::Log(_) | PurgeRequestError::ShuttingDown => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    Problem::new(status, error.to_string())
}

fn purge_as_json(id: &str, sequence: Option<PurgeSequence>, status: &PurgeStatus) -> Value {
    let nodes: BTreeMap<&String, Value> =
        status.nodes.iter().map(|(name, state)| (name, state_as_json(state))).collect();
    let mut purge = match &status.known {
        Some(known) => known_as_json(id, known),
        None => json!({ "id": id }),
    };
    purge["sequence"] = json!(sequence.map(|sequence| sequence.0));
    purge["complete"] = json!(status.is_enough(Wait::All));
    purge["nodes"] = json!(nodes);
    if let Some(published) = status.published {
        purge["published"] = json!(published);
    }
    purge
}

fn state_as_json(state: &NodeState) -> Value {
    match state {
        NodeState::Applied(receipt) => json!({
            "state": "applied",
            "ms": rounded(receipt.in_force_ms),
            "durable_ms": rounded(receipt.durable_ms),
        }),
        NodeState::Pending(heartbeat_age) => json!({
            "state": "pending",
            "heard_ms_ago": heartbeat_age.map(|age| age.as_millis() as u64),
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

/// The audit line without the fields of the result.
fn audit_line(caller: &Caller, request: &PurgeRequest) -> Value {
    let scopes: Vec<RecordScope> =
        request.scopes.iter().take(AUDITED_MAX).cloned().map(RecordScope::from).collect();
    json!({
        "who": caller.name,
        "from": caller.address.to_string(),
        "kind": request.kind.as_str(),
        "scopes": request.scopes.len(),
        "first_scopes": scopes,
        "reason": request.reason,
        "refresh": request.refresh,
    })
}

/// The default of `timeout`.
const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Purges that `GET /purges` may list.
const LIST_MAX: usize = 1000;
/// Scopes listed in an audit line; of the others only their number is.
const AUDITED_MAX: usize = 20;
/// Warnings about tags, and about URLs with an asterisk, in one answer: of each kind this many.
const WARNINGS_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asterisk_in_a_url_is_warned_about() {
        let url = |url: &str| PurgeScope::Url(url.into());
        let scopes = [url("https://a.test/n/*"), url("http://a.test/n/*"), url("https://a.test/")];
        let warnings = asterisk_warnings(&scopes);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].ends_with("begin with \"https://a.test/n/\", purge that prefix"));
        assert_eq!(asterisk_warnings(&[PurgeScope::Prefix("https://a.test/*".into())]).len(), 1);
        assert!(asterisk_warnings(&[PurgeScope::Tag("*".into()), PurgeScope::All]).is_empty());
    }

    #[test]
    fn wait_and_timeout_are_parsed_and_checked() {
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
