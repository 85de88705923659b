//! Whether a response may be stored, and as what (RFC 9111 §3).
//!
//! The rules of this module apply first. A response that they accept with an explicit lifetime is also
//! checked with http-cache-semantics ([`super::cross_check`]); the stricter result applies.

use std::time::{Duration, SystemTime};

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, ETAG, LAST_MODIFIED, SET_COOKIE,
};
use http::{HeaderMap, HeaderName, Method, StatusCode, Version};

use super::cross_check;
use super::deception::is_deceptive;
use super::decide::configured_bypass_reason;
use super::directives::{RequestDirectives, ResponseDirectives, Seconds};
use super::fields::storable_fields;
use super::freshness::{self, Lifetime, LifetimeInput, LifetimeSource};
use super::key::CacheKey;
use super::purge::{ALIASED, PurgeSequence};
use super::range::ContentRange;
use super::search::NoVarySearch;
use super::settings::{QueryPolicy, SetCookie, Settings};
use super::status::Reason;
use super::statuses::{is_about_one_request, is_never_stored};
use super::stored::{Freshness, StoredResponse};
use super::tags::tags;
use super::targeted::{Addressed, addressed};
use super::url::{origin_of, resolve};
use super::vary::{Vary, variant_key};
use crate::fields::{content_length, passes_for};
use crate::planted::{self, Bug}; // fault injection, in debug builds with `planted-bugs` only

/// A request and the head of its response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpstreamExchange<'a> {
    /// The method of the client's request.
    pub method: &'a Method,
    /// The fields of the client's request.
    pub request: &'a HeaderMap,
    /// The HTTP version of the upstream response.
    pub version: Version,
    /// The status of the upstream response.
    pub status: StatusCode,
    /// The fields of the upstream response.
    pub response: &'a HeaderMap,
    /// When the request was sent.
    pub request_time: SystemTime,
    /// When the header section of the response was received.
    pub response_time: SystemTime,
}

/// The key, site and purge position under which a response is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StorageContext<'a> {
    /// The key of the request, before `No-Vary-Search`.
    pub key: &'a CacheKey,
    /// The request fields as sent to the origin, from which `Vary` selects.
    pub selecting: &'a HeaderMap,
    /// The content codings to which `Accept-Encoding` is normalised, see [`super::variant_key`].
    pub codings: &'a [&'static str],
    /// The site's name.
    pub site: &'a str,
    /// The position of the purge log before the request was sent.
    pub sequence: PurgeSequence,
}

/// Whether a response may be stored.
#[derive(Clone, Debug)]
pub(crate) enum StoreDecision {
    /// The response is stored in this form.
    Store(Box<StoredResponse>),
    /// The response is not stored.
    Refuse {
        /// Why.
        reason: Reason,
        /// How long to remember that responses under this key cannot be stored, so that
        /// requests do not wait for each other. `None`: the next response may be storable.
        remember: Option<Duration>,
    },
}

/// The results of the rules for one response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreEvaluation {
    /// The directives that apply, and the field that they come from.
    pub addressed: Addressed,
    /// The freshness lifetime, and its source.
    pub lifetime: Lifetime,
    /// The age on arrival.
    pub initial_age: Duration,
    /// The selecting fields.
    pub vary: Vary,
    /// Why the response is not stored; `None` if it is.
    pub refusal: Option<Reason>,
}

/// Whether this response may be stored, and as what.
pub(crate) fn may_store(
    exchange: &UpstreamExchange<'_>,
    place: &StorageContext<'_>,
    settings: &Settings,
) -> StoreDecision {
    let findings = match check_directives(exchange, place.key, settings) {
        Ok(addressed) => evaluate_content(exchange, place.key, settings, addressed),
        // Most uncacheable responses are refused by a directive: skip the remaining rules.
        Err((_, reason)) => return pass(reason, exchange, settings),
    };
    match findings.refusal {
        Some(reason) => pass(reason, exchange, settings),
        None => {
            StoreDecision::Store(Box::new(stored_response(exchange, place, &findings, settings)))
        }
    }
}

fn pass(reason: Reason, exchange: &UpstreamExchange<'_>, settings: &Settings) -> StoreDecision {
    StoreDecision::Refuse { reason, remember: remember_uncacheable_for(reason, exchange, settings) }
}

/// Applies every rule of RFC 9111 §3 and of the settings.
pub(crate) fn examine(
    exchange: &UpstreamExchange<'_>,
    key: &CacheKey,
    settings: &Settings,
) -> StoreEvaluation {
    match check_directives(exchange, key, settings) {
        Ok(addressed) => evaluate_content(exchange, key, settings, addressed),
        Err((addressed, reason)) => {
            StoreEvaluation { refusal: Some(reason), ..find(exchange, settings, addressed) }
        }
    }
}

/// Applies the rules that need only the request, the status and the directives. Returns the
/// response's directives if none of them refuses.
fn check_directives(
    exchange: &UpstreamExchange<'_>,
    key: &CacheKey,
    settings: &Settings,
) -> Result<Addressed, (Addressed, Reason)> {
    let addressed = addressed(exchange.response, &settings.targeted);
    let refusal = refused_request(exchange, key, settings)
        .or_else(|| refused_by_status_or_directive(exchange, &addressed.directives));
    match refusal {
        Some(reason) => Err((addressed, reason)),
        None => Ok(addressed),
    }
}

/// Applies the rules that need lifetime, validators and content.
fn evaluate_content(
    exchange: &UpstreamExchange<'_>,
    key: &CacheKey,
    settings: &Settings,
    addressed: Addressed,
) -> StoreEvaluation {
    let mut findings = find(exchange, settings, addressed);
    findings.refusal = refused_response(exchange, key, settings, &findings)
        .or_else(|| refused_by_cross_check(exchange, settings, &mut findings));
    findings
}

fn find(
    exchange: &UpstreamExchange<'_>,
    settings: &Settings,
    addressed: Addressed,
) -> StoreEvaluation {
    StoreEvaluation {
        lifetime: freshness::lifetime(
            &LifetimeInput {
                status: exchange.status,
                headers: exchange.response,
                directives: &addressed.directives,
                targeted: addressed.by.is_some(),
                response_time: exchange.response_time,
            },
            &settings.lifetimes,
        ),
        initial_age: freshness::initial_age(
            exchange.response,
            exchange.request_time,
            exchange.response_time,
        ),
        vary: Vary::of(exchange.response),
        addressed,
        refusal: None,
    }
}

fn refused_request(
    exchange: &UpstreamExchange<'_>,
    key: &CacheKey,
    settings: &Settings,
) -> Option<Reason> {
    let request = RequestDirectives::of(exchange.request, settings.honoured);
    if !settings.enabled {
        return Some(Reason::CachingOff);
    }
    if request.no_store {
        return Some(Reason::RequestNoStore);
    }
    match *exchange.method {
        Method::GET => {}
        Method::POST if is_reusable_post(exchange, key) => {}
        _ => return Some(Reason::MethodUnstorable),
    }
    configured_bypass_reason(exchange.request, settings)
}

/// Whether a response to POST can answer later GET requests: status 200, and a `Content-Location`
/// equal to the target URI (RFC 9110 §9.3.3). [`refused_response`] requires an explicit lifetime.
fn is_reusable_post(exchange: &UpstreamExchange<'_>, key: &CacheKey) -> bool {
    let location = exchange.response.get(CONTENT_LOCATION).and_then(|value| value.to_str().ok());
    let same = location.and_then(|location| resolve(key.url(), location));
    same.as_deref() == Some(key.url()) && exchange.status == StatusCode::OK
}

fn refused_by_status_or_directive(
    exchange: &UpstreamExchange<'_>,
    directives: &ResponseDirectives,
) -> Option<Reason> {
    if is_never_stored(exchange.status) {
        return Some(Reason::StatusUncacheable);
    }
    let understood = freshness::is_understood(exchange.status);
    if directives.must_understand && !understood {
        return Some(Reason::MustUnderstand);
    }
    // RFC 9111 §5.2.2.3: a cache that understands the status ignores `no-store` beside `must-understand`.
    if directives.no_store && !directives.must_understand {
        return Some(Reason::ResponseNoStore);
    }
    (directives.private && !planted::has(Bug::PrivateShared)).then_some(Reason::Private)
}

fn refused_response(
    exchange: &UpstreamExchange<'_>,
    key: &CacheKey,
    settings: &Settings,
    findings: &StoreEvaluation,
) -> Option<Reason> {
    let directives = &findings.addressed.directives;
    let explicit = findings.lifetime.source.is_explicit();
    if exchange.method == Method::POST && !explicit {
        return Some(Reason::MethodUnstorable);
    }
    if exchange.status == StatusCode::PARTIAL_CONTENT && part_range(exchange).is_none() {
        return Some(Reason::RangeInvalid);
    }
    if exchange.request.contains_key(AUTHORIZATION) && !may_share_authorized(directives) {
        return Some(Reason::Authorized);
    }
    if findings.vary == Vary::Star {
        return Some(Reason::VaryStar);
    }
    if depends_on_unkeyed_parts(exchange, settings, &findings.vary) {
        return Some(Reason::Unkeyed);
    }
    if settings.set_cookie == SetCookie::Pass
        && exchange.response.contains_key(SET_COOKIE)
        && !planted::has(Bug::PrivateShared)
        && !directives.unstored_fields.contains(&SET_COOKIE)
    {
        return Some(Reason::SetsCookie);
    }
    if settings.deception_guard && is_deceptive(key.url(), exchange.status, exchange.response) {
        return Some(Reason::Deceptive);
    }
    let heuristically_cacheable =
        freshness::is_heuristically_cacheable(exchange.status) || directives.public;
    if findings.lifetime.source == LifetimeSource::Missing && !heuristically_cacheable {
        return Some(Reason::StatusUncacheable);
    }
    let freshness = freshness_of(exchange, findings, settings);
    let validator = |name| exchange.response.contains_key(name);
    let never_usable = freshness.lifetime.span() <= freshness.initial_age.span()
        && freshness.stale_while_revalidate.span().is_zero()
        && freshness.stale_if_error.span().is_zero()
        && !validator(ETAG)
        && !validator(LAST_MODIFIED);
    never_usable.then_some(Reason::NoLifetime)
}

/// Whether the response may depend on a part of the request that neither its key nor its variant has: then one client
/// would choose the response of others (cache poisoning).
fn depends_on_unkeyed_parts(
    exchange: &UpstreamExchange<'_>,
    settings: &Settings,
    vary: &Vary,
) -> bool {
    // Any client can make a query too long for the origin. The key leaves it out, in whole or in part.
    if exchange.status == StatusCode::URI_TOO_LONG && settings.key.query != QueryPolicy::All {
        return true;
    }
    let selecting: &[HeaderName] = match vary {
        Vary::Fields(names) => names,
        Vary::Nothing | Vary::Star => &[],
    };
    let mut read = selecting.iter().chain(&settings.key.headers).chain(&settings.bypass.headers);
    read.any(|wanted| exchange.request.keys().any(|name| passes_for(name, wanted)))
}

/// RFC 9111 §3.5.
fn may_share_authorized(directives: &ResponseDirectives) -> bool {
    directives.public || directives.must_revalidate || directives.s_maxage != Seconds::Absent
}

/// Checks the response with http-cache-semantics, which may refuse it or shorten its lifetime.
fn refused_by_cross_check(
    exchange: &UpstreamExchange<'_>,
    settings: &Settings,
    findings: &mut StoreEvaluation,
) -> Option<Reason> {
    if !findings.lifetime.source.is_explicit() {
        // http-cache-semantics does not know configured and heuristic lifetimes.
        return None;
    }
    let verdict = cross_check::evaluate(exchange, &findings.addressed);
    let lasts = verdict.lifetime.min(settings.lifetimes.lifetime_max);
    findings.lifetime.lasts = findings.lifetime.lasts.min(lasts);
    (!verdict.storable).then_some(Reason::StatusUncacheable)
}

/// The range of a 206 response. `None` if `Content-Range` is missing, repeated, without complete
/// length, or contradicts `Content-Length`.
fn part_range(exchange: &UpstreamExchange<'_>) -> Option<ContentRange> {
    let mut lines = exchange.response.get_all(CONTENT_RANGE).iter();
    let range = ContentRange::parse(lines.next()?.as_bytes())?;
    let range = match content_length(exchange.response) {
        Some(length) => range.limited_to(length)?,
        None => range,
    };
    (lines.next().is_none() && range.complete_length.is_some()).then_some(range)
}

pub(super) fn freshness_of(
    exchange: &UpstreamExchange<'_>,
    findings: &StoreEvaluation,
    settings: &Settings,
) -> Freshness {
    let directives = &findings.addressed.directives;
    let must_revalidate = directives.must_revalidate || directives.proxy_revalidate;
    let has_s_maxage = directives.s_maxage != Seconds::Absent;
    let stale_allowed = settings.stale.despite_s_maxage
        && (directives.stale_while_revalidate != Seconds::Absent
            || directives.stale_if_error != Seconds::Absent);
    let must_revalidate = must_revalidate || (has_s_maxage && !stale_allowed);
    // A response with s-maxage has only its own stale directives, not the site's defaults. So has one that is never
    // fresh: applications often send personal pages without `Cache-Control` or with `max-age=0`.
    let site_may_choose = !has_s_maxage && !findings.lifetime.lasts.is_zero();
    let stale_window = |directive: Seconds, site: Duration| {
        let directive = directive.or_zero().map(|seconds| Duration::from_secs(seconds.into()));
        directive.unwrap_or(if site_may_choose { site } else { Duration::ZERO })
    };
    let usable = !must_revalidate && !directives.no_cache;
    let if_usable = |time: Duration| if usable { time } else { Duration::ZERO };
    Freshness {
        response_time: exchange.response_time.into(),
        initial_age: findings.initial_age.into(),
        lifetime: findings.lifetime.lasts.into(),
        heuristic: findings.lifetime.source == LifetimeSource::Heuristic,
        stale_while_revalidate: if_usable(stale_window(
            directives.stale_while_revalidate,
            settings.stale.while_revalidate,
        ))
        .into(),
        stale_if_error: if_usable(stale_window(directives.stale_if_error, settings.stale.if_error))
            .into(),
        must_revalidate,
        immutable: directives.immutable,
        no_cache: directives.no_cache,
    }
}

fn stored_response(
    exchange: &UpstreamExchange<'_>,
    place: &StorageContext<'_>,
    findings: &StoreEvaluation,
    settings: &Settings,
) -> StoredResponse {
    let mut headers = storable_fields(
        exchange.response,
        &findings.addressed.directives.unstored_fields,
        settings.set_cookie,
        exchange.response_time,
    );
    let part = match exchange.status {
        StatusCode::PARTIAL_CONTENT => part_range(exchange),
        _ => None,
    };
    let complete_length = match &part {
        Some(part) => part.complete_length,
        None => content_length(exchange.response),
    };
    if part.is_some() {
        headers.remove(CONTENT_RANGE);
        headers.remove(CONTENT_LENGTH);
    }
    let no_vary_search =
        settings.no_vary_search.then(|| NoVarySearch::of(exchange.response)).flatten();
    let mut tags = tags(exchange.response, origin_of(place.key.url()), &settings.tags);
    let key = match &no_vary_search {
        Some(no_vary_search) => {
            tags = tags.iter().copied().chain([ALIASED]).collect();
            &no_vary_search.key(place.key)
        }
        None => place.key,
    };
    StoredResponse {
        key: key.text.clone(),
        variant: match &findings.vary {
            Vary::Fields(fields) => {
                variant_key(key, fields, place.selecting, place.codings).1.into()
            }
            Vary::Nothing | Vary::Star => "".into(),
        },
        site: place.site.into(),
        status: exchange.status,
        headers: headers.into(),
        freshness: freshness_of(exchange, findings, settings),
        tags,
        stored_at_sequence: place.sequence,
        complete_length,
        parts: part.map(|part| [part.bytes].into()),
        version: exchange.version,
        form: None,
    }
}

/// How long to remember the key as uncacheable: not at all if the request caused the refusal, or for 5xx.
fn remember_uncacheable_for(
    reason: Reason,
    exchange: &UpstreamExchange<'_>,
    settings: &Settings,
) -> Option<Duration> {
    let lasting = matches!(
        reason,
        Reason::ResponseNoStore
            | Reason::Private
            | Reason::SetsCookie
            | Reason::VaryStar
            | Reason::NoLifetime
            | Reason::StatusUncacheable
            | Reason::MustUnderstand
            | Reason::Deceptive
    );
    (lasting && !is_about_one_request(exchange.status) && !exchange.status.is_server_error())
        .then_some(settings.pass_memory)
}
