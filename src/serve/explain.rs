//! "Why would this be a hit or a miss?" The same steps as [`super::serve`], up to *decide*,
//! without touching anything.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use geo::{Country, Geo, Place};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use serde_json::{Value, json};

use super::added_fields::tell;
use super::lookup::CODINGS;
use super::ranges::is_enough;
use super::worker::Plan;
use crate::cache::{self, CacheKey, Decision, Reason, RequestDirectives, StoredResponse, search};
use crate::clock::Clock;
use crate::fields::Fields;
use crate::guard::{Normalised, access};
use crate::route::{Action, Facts, Question, Rule};
use crate::store::{Head, Record, Store};

/// What an explanation is made from.
#[derive(Clone)]
pub(crate) struct Explainer {
    /// The plan in force.
    pub plan: Arc<Plan>,
    /// Memory and disk.
    pub store: Store,
    /// Where addresses are.
    pub geo: Arc<Geo>,
    /// Time.
    pub clock: Clock,
}

impl Explainer {
    /// Explains a GET for `uri` with these fields, from `client` where it is given, in `country`
    /// where that is given, else in the client's. Nothing is counted against a rate.
    ///
    /// # Errors
    /// The gate refuses the URL, or no site has its host: says which.
    pub(crate) async fn explain(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        client: Option<IpAddr>,
        country: Option<Country>,
    ) -> Result<Value, String> {
        let plan = &self.plan;
        let asked = plan.gate.normalise_url(uri).map_err(|refusal| refusal.to_string())?;
        let located = || client.map(|client| self.geo.locate(client)).unwrap_or_default();
        let place = match country {
            Some(country) => Place {
                country: Some(country),
                continent: Some(country.continent()),
                ..Place::default()
            },
            None => located(),
        };
        let method = Method::GET;
        let question = Question {
            host: asked.authority.host(),
            path: asked.path(),
            method: &method,
            place: &place,
        };
        let (site, rule) = plan.routes.find(&question).ok_or("no site here has this host")?;
        let settings = &rule.settings.cache;
        let mut told = json!({
            "url": format!("{}://{}{}", asked.scheme, asked.authority.as_str(), asked.target),
            "site": &*site.name,
            "rule": &*rule.settings.name,
            "country": place.country.map(|country| country.as_str().to_owned()),
        });
        let client_at = Client { address: client, country: place.country };
        let admitted = self.admit(rule, client_at, &method, headers, &mut told);
        if let Err((reason, status)) = admitted {
            told["decision"] = answered_here("refuse", reason);
            told["decision"]["status"] = json!(status.as_u16());
            return Ok(told);
        }
        if !matches!(rule.settings.action, Action::Pass(_)) {
            told["decision"] = answered_here("answer", Reason::AnsweredHere);
            return Ok(told);
        }
        told["pool"] = json!(rule.pool(&place).map(|pool| pool.name().to_string()));
        let directives = RequestDirectives::of(headers, settings.honoured);
        if let Some(reason) = cache::skips_cache(&method, headers, &directives, settings) {
            told["decision"] = forward(reason);
            return Ok(told);
        }
        let selecting = selecting_by_any(headers, &asked, rule, &place, client);
        let key = CacheKey::of(
            &settings.key,
            asked.scheme,
            asked.authority.as_str(),
            asked.path(),
            asked.query(),
            &selecting,
        );
        let exact = key;
        let key = match settings.no_vary_search {
            true => self.aliased(&exact, &mut told).await,
            false => exact.clone(),
        };
        told["key"] = json!(&*key.text);
        let (head, absent) = self.look(&key, &selecting, settings.select_language, &mut told).await;
        let (head, absent) = match head {
            Some(head) if !is_enough(&head, &method, headers, &settings.ranges) => {
                (None, Reason::BytesMissing)
            }
            Some(head) if settings.no_vary_search && !search::answers(&head.response, &exact) => {
                (None, Reason::Absent)
            }
            head => (head, absent),
        };
        let Some(head) = head else {
            told["decision"] = decision(cache::decide_absent(&directives, absent));
            return Ok(told);
        };
        let now = self.clock.now();
        let purged = self.store.purge_verdict(&head);
        told["stored"] = stored(&head, now);
        told["rules"] = fired(&head.response, headers, settings);
        told["purged"] = json!(purged.map(|kind| format!("{kind:?}").to_lowercase()));
        told["decision"] =
            decision(cache::decide(&head.response, purged, &directives, settings, now));
        Ok(told)
    }

    /// Whether the rule's access limits and its rate let the request in: the reason and the status
    /// if not. What depends on a client that is not given is not judged, and named.
    fn admit(
        &self,
        rule: &Rule,
        client: Client,
        method: &Method,
        headers: &HeaderMap,
        told: &mut Value,
    ) -> Result<(), (Reason, StatusCode)> {
        let settings = &rule.settings;
        let (judged, skipped) = judged(&settings.access, client);
        let address = client.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let admitted = access::admit(&judged, address, client.country, method, headers);
        told["access"] = json!({"admitted": admitted.is_ok()});
        if !skipped.is_empty() {
            told["access"]["not_judged"] = json!(skipped);
        }
        if let Err(refusal) = admitted {
            let (option, entry) = access::cause(&judged, refusal, client.address, client.country);
            told["access"]["reason"] = json!(refusal.as_str());
            told["access"]["option"] = json!(option);
            told["access"]["entry"] = json!(entry);
            return Err((Reason::Denied, refusal.status()));
        }
        let Some(limit) = settings.rate else { return Ok(()) };
        let admits = |client| {
            let now = self.clock.instant();
            self.plan.rates.would_admit(settings.number, limit, client, now)
        };
        let admitted = client.address.map(admits);
        told["rate"] = json!({
            "rule": &*settings.name,
            "per_second": limit.per_second,
            "burst": limit.burst,
            "admitted": admitted,
        });
        match admitted {
            Some(false) => Err((Reason::RateLimited, StatusCode::TOO_MANY_REQUESTS)),
            Some(true) | None => Ok(()),
        }
    }

    /// Where to look by what is remembered of the path.
    async fn aliased(&self, exact: &CacheKey, told: &mut Value) -> CacheKey {
        let Some(rule) = search::rule_key(exact) else { return exact.clone() };
        let Some(Record::Response(head)) = self.store.peek(rule.hash).await else {
            return exact.clone();
        };
        if head.response.key != rule.text {
            return exact.clone();
        }
        let name = search::NO_VARY_SEARCH;
        let said = head.response.headers.lines(&name);
        told["no_vary_search"] =
            said.map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        search::looked_for(exact, &head.response)
    }

    async fn look(
        &self,
        key: &CacheKey,
        headers: &HeaderMap,
        select_language: bool,
        told: &mut Value,
    ) -> (Option<Arc<Head>>, Reason) {
        match self.store.peek(key.hash).await {
            None => (None, Reason::Absent),
            Some(Record::Response(head)) if head.response.key == key.text => {
                (Some(head), Reason::Absent)
            }
            Some(Record::Response(_)) => (None, Reason::KeyCollision),
            Some(Record::Variants(list)) => {
                told["varies_by"] = list
                    .sets
                    .iter()
                    .map(|set| set.fields.iter().map(http::HeaderName::as_str).collect::<Vec<_>>())
                    .collect();
                for candidate in list.candidates(key, headers, CODINGS, select_language) {
                    if let Some(Record::Response(head)) = self.store.peek(candidate.hash).await
                        && candidate.fits(key, &head.response)
                    {
                        told["variant"] = json!(&*head.response.variant);
                        return (Some(head), Reason::VariantAbsent);
                    }
                }
                (None, Reason::VariantAbsent)
            }
        }
    }
}

/// What is known of the client that a question is about.
#[derive(Clone, Copy)]
struct Client {
    address: Option<IpAddr>,
    country: Option<Country>,
}

/// The access limits that can be judged by what is known of the client, and the options that
/// can't be.
fn judged(settings: &access::Settings, client: Client) -> (access::Settings, Vec<&'static str>) {
    let mut judged = settings.clone();
    let mut skipped = Vec::new();
    if client.address.is_none() {
        for (option, networks) in [
            ("access.allow", &mut judged.allow_addresses),
            ("access.deny", &mut judged.deny_addresses),
        ] {
            if !std::mem::take(networks).is_empty() {
                skipped.push(option);
            }
        }
    }
    if client.address.is_none() && client.country.is_none() {
        for (option, countries) in [
            ("access.allow_countries", &mut judged.allow_countries),
            ("access.deny_countries", &mut judged.deny_countries),
        ] {
            if !std::mem::take(countries).is_empty() {
                skipped.push(option);
            }
        }
    }
    (judged, skipped)
}

/// The fields as the origin would get them.
fn selecting_by_any(
    headers: &HeaderMap,
    asked: &Normalised,
    rule: &Rule,
    place: &Place,
    client: Option<IpAddr>,
) -> HeaderMap {
    let facts = Facts {
        client: client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        place,
        request_id: &"0",
        scheme: asked.scheme,
        authority: asked.authority.as_str(),
        path: asked.path(),
        query: asked.query(),
    };
    let mut headers = headers.clone();
    tell(&mut headers, place, HeaderValue::from_static("0"));
    rule.settings.request_fields.apply(&mut headers, &facts);
    headers
}

fn stored(head: &Head, now: std::time::SystemTime) -> Value {
    let response = &head.response;
    let freshness = &response.freshness;
    json!({
        "status": response.status.as_u16(),
        "bytes": head.complete_length(),
        "age_s": freshness.age(now).as_secs(),
        "lifetime_s": freshness.lifetime.span().as_secs(),
        "ttl_s": freshness.ttl(now),
        "heuristic": freshness.heuristic,
        "stale_while_revalidate_s": freshness.stale_while_revalidate.span().as_secs(),
        "stale_if_error_s": freshness.stale_if_error.span().as_secs(),
        "must_revalidate": freshness.must_revalidate,
        "no_cache": freshness.no_cache,
        "tags": response.tags.len() - usize::from(response.is_aliased()),
        "aliased": response.is_aliased(),
        "stored_at_sequence": response.stored_at_sequence.0,
    })
}

/// What the rules make of it by the settings in force, which may not be those it was stored by.
fn fired(response: &StoredResponse, request: &HeaderMap, settings: &cache::Settings) -> Value {
    let fields = response.headers.to_map(0);
    let came = response.freshness.response_time.time();
    let exchange = cache::Exchange {
        method: &Method::GET,
        request,
        version: response.version,
        // A part was judged when it was stored; its Content-Range is not among its fields.
        status: match response.status {
            StatusCode::PARTIAL_CONTENT => StatusCode::OK,
            status => status,
        },
        response: &fields,
        request_time: came,
        response_time: came,
    };
    let key = CacheKey::new(response.key.clone());
    let findings = cache::storing::examine(&exchange, &key, settings);
    let by = findings.addressed.by.as_ref().map_or("cache-control", http::HeaderName::as_str);
    json!({
        "directives_from": by,
        "lifetime_from": findings.lifetime.source.as_str(),
        "lifetime_s": findings.lifetime.lasts.as_secs(),
        "not_stored_now": findings.refusal.map(Reason::as_str),
    })
}

fn decision(decision: Decision) -> Value {
    match decision {
        Decision::Serve { .. } => json!({"act": "hit", "why": "It is fresh."}),
        Decision::ServeStale { why, refresh, .. } => {
            json!({"act": "hit", "reason": why.as_str(), "why": why.sentence(), "refresh": refresh})
        }
        Decision::Validate(reason) => {
            json!({"act": "validate", "reason": reason.as_str(), "why": reason.sentence()})
        }
        Decision::Forward(reason) => forward(reason),
        Decision::GatewayTimeout(reason) => {
            json!({"act": "gateway-timeout", "reason": reason.as_str(), "why": reason.sentence()})
        }
    }
}

fn answered_here(act: &str, reason: Reason) -> Value {
    json!({"act": act, "reason": reason.as_str(), "why": reason.sentence()})
}

fn forward(reason: Reason) -> Value {
    json!({"act": "forward", "fwd": reason.fwd().map(cache::Fwd::as_str), "reason": reason.as_str(), "why": reason.sentence()})
}
