//! "Why would this be a hit or a miss?" Runs the stages of [`super::serve`] up to *decide* for a request
//! that is only described, through the same functions and in the same order, without any effect.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use geo::{Country, Geo, Place};
use http::header::LOCATION;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};

use super::answer;
use super::forms::form_lookup::WantedForms;
use super::geo_redirect;
use super::lookup::{CacheQuery, Lookup, LookupResult};
use super::region::{NextHop, PeerLink, SharedRegion, ShieldNodes};
use super::routing::{no_site, route, rules_of_other_readings};
use super::visitors::cookies::remove_cookie;
use super::worker::Plan;
use crate::cache::{
    self, CacheKey, Decision, PurgeKind, PurgeTarget, Reason, RequestDirectives, StoredResponse,
    search,
};
use crate::clock::Clock;
use crate::context::{Connection, RequestId, Requester};
use crate::fields::Fields;
use crate::fill::collapse::Fills;
use crate::guard::{self, Applicant, Rates, RuleLimits, access};
use crate::labels::WhyOrigin;
use crate::purge::Requirement;
use crate::route::{
    Action, Forward, GeoRedirectOutcome, RegionTable, Rule, SplitBy, SplitChoice, Visitor,
};
use crate::store::{Record, Store, StoredHead};

/// Explains requests.
#[derive(Clone)]
pub(crate) struct Explainer {
    /// The configuration in force.
    pub plan: Arc<Plan>,
    /// The node's store.
    pub store: Store,
    /// The node's fills, which know the keys whose responses could not be stored.
    pub fills: Fills,
    /// The regions of the fleet.
    pub regions: Arc<RegionTable>,
    /// Locates clients.
    pub geo: Arc<Geo>,
    /// The node's clock.
    pub clock: Clock,
    /// The nodes that own keys. `None`: the node has no peers.
    pub region: Option<SharedRegion>,
}

/// The facts about the client that a question states.
#[derive(Clone, Copy)]
struct Client {
    address: Option<IpAddr>,
    country: Option<Country>,
}

impl Explainer {
    /// Explains a GET for `uri` with these fields, from `client` if it is given, in `country` if that
    /// is given, otherwise in the client's country. Nothing is counted against a rate.
    ///
    /// # Errors
    /// The gate refuses the URL, or no site has its host; the text says which.
    pub(crate) async fn explain(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        client: Option<IpAddr>,
        country: Option<Country>,
    ) -> Result<Value, String> {
        let plan = &self.plan;
        let mut request = plan.gate.normalise_url(uri).map_err(|refusal| refusal.to_string())?;
        let mut headers = headers.clone();
        plan.gate.normalise_fields(&mut headers);
        request.client = client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let place = self.place(client, country);
        let method = Method::GET;
        let (site, rule) = route(&plan.routes, &request, &method, &place)
            .ok_or_else(|| no_site(request.authority.host()))?;
        let mut explanation = json!({
            "url": format!("{}://{}{}", request.scheme, request.authority.as_str(), request.target),
            "site": &*site.name,
            "rule": &*rule.settings.name,
            "country": place.country.map(|country| country.as_str().to_owned()),
        });
        let known = Client { address: client, country: place.country };
        let others = || rules_of_other_readings(site, rule, &request, &method, &place);
        let others = site.has_various_limits.then(others).unwrap_or_default();
        for limiting in others.into_iter().chain([rule]) {
            if let Err((reason, status)) = self.admit(limiting, known, &headers, &mut explanation) {
                explanation["access"]["rule"] = json!(&*limiting.settings.name);
                explanation["decision"] = answered_here("refuse", reason);
                explanation["decision"]["status"] = json!(status.as_u16());
                return Ok(explanation);
            }
        }
        let group = explain_group(rule, known, &mut headers, &place, &mut explanation);
        let directives = RequestDirectives::of(&headers, rule.settings.cache.honoured);
        let address = SocketAddr::new(request.client, 0);
        let query = CacheQuery {
            store: &self.store,
            gate: &plan.gate,
            connection: &Connection::new(address, address),
            rule,
            request: &request,
            method: &method,
            fields: &headers,
            directives: &directives,
            place: &place,
            id: &RequestId(0),
            group: group.map(|name| &**name),
            forms: WantedForms::None,
        };
        let reply = match &rule.settings.action {
            Action::Redirect(redirect) => answer::redirect(redirect, &query.facts()),
            Action::Fixed(fixed) => answer::fixed(fixed),
            Action::Forward(forward) => {
                match self.name_of_region(forward, &query, &mut explanation) {
                    Some(name) => geo_redirect::to_name(name, &request),
                    None => {
                        explain_pool(rule, &query, &mut explanation);
                        self.explain_lookup(&site.name, query, &mut explanation).await;
                        return Ok(explanation);
                    }
                }
            }
        };
        explanation["decision"] = answered_here("answer", Reason::AnsweredHere);
        explanation["decision"]["status"] = json!(reply.status.as_u16());
        if let Some(location) = reply.fields.get(&LOCATION) {
            explanation["decision"]["location"] = json!(String::from_utf8_lossy(location));
        }
        Ok(explanation)
    }

    /// key → lookup → decide.
    async fn explain_lookup(&self, site: &str, query: CacheQuery<'_>, explanation: &mut Value) {
        if let Some(reason) = query.bypass_reason() {
            explanation["decision"] = forward(reason);
            return;
        }
        let mut records = Vec::new();
        let found = query.look_up(query.search(), Lookup::Peek(&mut records)).await;
        explanation["key"] = json!(&*found.key.text);
        explain_records(&records, &found, explanation);
        let now = self.clock.now();
        if let Some(head) = &found.head {
            let purged = self.store.purge_verdict(head);
            let settings = &query.rule.settings.cache;
            explanation["stored"] = stored(head, now);
            explanation["stored"]["copy_of"] = self.source_of_copy(head, &found.key);
            explanation["rules"] = applied_rules(&head.response, query.fields, settings);
            explanation["purged"] = json!(purged.map(PurgeKind::as_str));
        }
        let is_passed = self.fills.is_uncacheable(found.hash);
        explanation["decision"] = decision(match query.decide(&found, now) {
            Decision::Forward(_) if is_passed => Decision::Forward(Reason::RememberedPass),
            Decision::Validate(_) if is_passed => Decision::Validate(Reason::RememberedPass),
            other => other,
        });
        explanation["next_hop"] = self.next_hop(site, query.rule, &found);
    }

    /// Where a request that the store cannot answer goes. `null`: the node has no peers.
    fn next_hop(&self, site: &str, rule: &Rule, found: &LookupResult) -> Value {
        let Some(region) = &self.region else { return Value::Null };
        let region = region.load();
        let hash = found.key.hash.0 as u64;
        let target = PurgeTarget { site, url: found.key.url(), tags: &[] };
        let purges = self.store.purges();
        let is_origin_only = purges.requirement(&target) == Requirement::OriginOnly;
        let why = match region.foreseen_hop(hash, &self.plan.digest) {
            _ if is_origin_only => WhyOrigin::Purges,
            NextHop::Origin(why) => why,
            NextHop::Peers(mut peers) => {
                peers.retain(|link| purges.peer_has_purges(&link.name, &target));
                if !peers.is_empty() {
                    return json!({"to": "peer", "peers": names(&peers)});
                }
                WhyOrigin::Purges
            }
        };
        let Some(shield) = rule.shield() else {
            return json!({"to": "origin", "why": why.as_str()});
        };
        let ShieldNodes { mut links, may_ask_origin } =
            region.shield_nodes(shield, hash, &self.plan.digest);
        links.retain(|link| link.is_up());
        match links.first() {
            Some(link) => {
                json!({"to": "shield", "region": &*link.region, "peers": names(&links)})
            }
            None if shield.regions.contains(&region.name) => {
                json!({"to": "origin", "why": why.as_str()})
            }
            None => {
                let to = if may_ask_origin { "origin" } else { "error" };
                json!({"to": to, "why": WhyOrigin::ShieldGone.as_str()})
            }
        }
    }

    /// The node that owns the key of a copy now. `null`: the response is no copy.
    fn source_of_copy(&self, head: &StoredHead, key: &CacheKey) -> Value {
        let Some(region) = self.region.as_ref().filter(|_| head.is_copy()) else {
            return Value::Null;
        };
        let region = region.load();
        let owners = region.owners(&region.name, key.hash.0 as u64);
        let owner = owners.first().map(|owner| &*owner.name);
        json!(owner.unwrap_or("a node that is gone"))
    }

    /// The name of the region that the client is redirected to, if the rule redirects it.
    fn name_of_region<'f>(
        &self,
        forward: &'f Forward,
        query: &CacheQuery<'_>,
        explanation: &mut Value,
    ) -> Option<&'f str> {
        let redirect = forward.geo_redirect.as_ref()?;
        let choice = redirect.choose(query.request.authority.host(), query.place, &self.regions);
        let nearest = choice.nearest;
        explanation["geo_redirect"] = json!({
            "outcome": choice.outcome.as_str(),
            "region": nearest.map(|nearest| &**nearest.region),
            "name": nearest.map(|nearest| nearest.name),
            "distance_km": nearest.map(|nearest| nearest.distance_km.round() as u64),
        });
        let name = nearest?.name;
        (choice.outcome == GeoRedirectOutcome::Redirected).then_some(name)
    }

    fn place(&self, client: Option<IpAddr>, country: Option<Country>) -> Place {
        match (country, client) {
            (Some(country), _) => Place {
                country: Some(country),
                continent: Some(country.continent()),
                ..Place::default()
            },
            (None, Some(client)) => self.geo.locate(client),
            (None, None) => Place::default(),
        }
    }

    /// Whether the rule lets the request in: the reason and the status if not. Limits on a client that
    /// is not given are not judged, and listed.
    fn admit(
        &self,
        rule: &Rule,
        client: Client,
        headers: &HeaderMap,
        explanation: &mut Value,
    ) -> Result<(), (Reason, StatusCode)> {
        let (limits, skipped) = judged(&rule.settings.guard, client);
        let applicant = Applicant {
            requester: Requester::Client,
            client: client.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            country: client.country,
            method: &Method::GET,
            headers,
            now: self.clock.instant(),
        };
        let admitted = guard::admit(&limits, &applicant, Rates::Peek(&self.plan.rates));
        let refusal = admitted.err().map(|rejection| rejection.refusal);
        let denied = refusal.filter(|refusal| refusal.reason() == Reason::Denied);
        // A stage that was not run may still refuse the request.
        let admitted = (denied.is_some() || skipped.is_empty()).then_some(denied.is_none());
        explanation["access"] = json!({"admitted": admitted});
        if !skipped.is_empty() {
            explanation["access"]["not_judged"] = json!(skipped);
        }
        if let Some(refusal) = denied {
            let Client { address, country } = client;
            let (option, entry) = access::cause(&limits.access, refusal, address, country);
            explanation["access"]["reason"] = json!(refusal.as_str());
            explanation["access"]["option"] = json!(option);
            explanation["access"]["entry"] = json!(entry);
        } else if let Some(limit) = rule.settings.guard.rate {
            explanation["rate"] = json!({
                "rule": &*rule.settings.name,
                "per_second": limit.per_second,
                "burst": limit.burst,
                "admitted": client.address.map(|_| refusal.is_none()),
            });
        }
        refusal.map_or(Ok(()), |refusal| Err((refusal.reason(), refusal.status())))
    }
}

/// The limits that can be judged with what is known of the client, and the access options that cannot.
fn judged(limits: &RuleLimits, client: Client) -> (RuleLimits, Vec<&'static str>) {
    let mut judged = limits.clone();
    let mut skipped = Vec::new();
    if client.address.is_none() {
        judged.rate = None;
        for (option, networks) in [
            ("access.allow", &mut judged.access.allow_addresses),
            ("access.deny", &mut judged.access.deny_addresses),
        ] {
            if !std::mem::take(networks).is_empty() {
                skipped.push(option);
            }
        }
    }
    if client.address.is_none() && client.country.is_none() {
        for (option, countries) in [
            ("access.allow_countries", &mut judged.access.allow_countries),
            ("access.deny_countries", &mut judged.access.deny_countries),
        ] {
            if !std::mem::take(countries).is_empty() {
                skipped.push(option);
            }
        }
    }
    (judged, skipped)
}

/// The group of the visitor, if the rule splits its visitors, and how it is found. A lot cannot be
/// foretold, nor the group of an unknown client: then the largest group is explained. Removes the
/// group's cookie, as serving does.
fn explain_group<'r>(
    rule: &'r Rule,
    client: Client,
    headers: &mut HeaderMap,
    place: &Place,
    explanation: &mut Value,
) -> Option<&'r Arc<str>> {
    let split = rule.split()?;
    let address = client.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let found = rule.group(&Visitor { headers, client: address, lot: 0 }, place);
    if split.by == SplitBy::Cookie {
        remove_cookie(headers, &split.cookie.name);
    }
    let (group, by) = match found? {
        (_, SplitChoice::Lot) => (split.largest(), Some(SplitChoice::Lot)),
        (_, SplitChoice::Client) if client.address.is_none() => (split.largest(), None),
        (group, choice) => (group, Some(choice)),
    };
    let weights = split.groups.iter().map(|group| (group.pool.to_string(), json!(group.weight)));
    explanation["group"] = json!(&**group);
    explanation["group_by"] = json!(by.map(SplitChoice::as_str));
    explanation["group_weights"] = Value::Object(weights.collect());
    Some(group)
}

/// The pool that a request goes to, the order in which its origins are tried for this client, and
/// how many of them are marked down.
fn explain_pool(rule: &Rule, query: &CacheQuery<'_>, explanation: &mut Value) {
    let CacheQuery { place, group, request, .. } = *query;
    if let Some(shield) = rule.shield() {
        explanation["shield"] =
            json!(shield.regions.iter().map(|name| &**name).collect::<Vec<_>>());
    }
    let Some(pool) = rule.pool(place, request.client, group) else { return };
    if let Some(mirror) = rule.mirror() {
        let settings = &mirror.settings;
        explanation["mirror"] = json!({"pool": &*settings.pool, "percent": settings.percent});
    }
    let (origins, down) = pool.origin_counts();
    explanation["pool"] = json!(&**pool.name());
    explanation["pool_policy"] = json!(pool.settings().policy.as_str());
    let tiers = pool.tiers(place.unit_vector());
    let tiers = tiers.iter().map(|tier| tier.iter().map(|name| json!(&**name)).collect());
    explanation["pool_tiers"] = Value::Array(tiers.collect());
    explanation["pool_origins"] = json!(origins);
    explanation["pool_origins_down"] = json!(down);
}

fn names(links: &[Arc<PeerLink>]) -> Vec<&str> {
    links.iter().map(|link| &*link.name).collect()
}

/// The rule of the path, the fields that the key's variants differ by, and the selected variant.
fn explain_records(records: &[Record], found: &LookupResult, explanation: &mut Value) {
    for record in records {
        match record {
            // A record other than the response is that of the path's `No-Vary-Search` rule.
            Record::Response(head) if head.response.key != found.key.text => {
                let name = search::NO_VARY_SEARCH;
                let lines = head.response.headers.lines(&name);
                let lines: Vec<_> =
                    lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect();
                if !lines.is_empty() {
                    explanation["no_vary_search"] = json!(lines);
                }
            }
            Record::Response(_) => {}
            Record::Variants(list) => {
                let names = |fields: &[http::HeaderName]| -> Vec<String> {
                    fields.iter().map(ToString::to_string).collect()
                };
                explanation["varies_by"] = list.sets.iter().map(|set| names(&set.fields)).collect();
                if let Some(head) = &found.head {
                    explanation["variant"] = json!(&*head.response.variant);
                }
            }
        }
    }
}

fn stored(head: &StoredHead, now: std::time::SystemTime) -> Value {
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
        // An aliased response has an internal tag.
        "tags": response.tags.len() - usize::from(response.is_aliased()),
        "aliased": response.is_aliased(),
        "stored_at_sequence": response.stored_at_sequence.0,
    })
}

/// How the caching rules judge the stored response by the settings in force, which may differ from
/// those it was stored by.
fn applied_rules(
    response: &StoredResponse,
    request: &HeaderMap,
    settings: &cache::Settings,
) -> Value {
    let fields = response.headers.to_map(0);
    let received_at = response.freshness.response_time.time();
    let exchange = cache::UpstreamExchange {
        method: &Method::GET,
        request,
        version: response.version,
        // A stored part no longer has the Content-Range by which it was judged.
        status: match response.status {
            StatusCode::PARTIAL_CONTENT => StatusCode::OK,
            status => status,
        },
        response: &fields,
        request_time: received_at,
        response_time: received_at,
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
