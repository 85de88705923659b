//! Whether a response may be stored, and as what (RFC 9111 §3).
//!
//! The rules here are ours; where they allow it, http-cache-semantics is asked too
//! ([`super::policy`]), and the stricter answer counts.

use std::time::{Duration, SystemTime};

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, ETAG, LAST_MODIFIED, SET_COOKIE,
};
use http::{HeaderMap, Method, StatusCode, Version};

use super::deception::is_deceptive;
use super::decide::bypasses;
use super::directives::{RequestDirectives, ResponseDirectives, Seconds};
use super::fields::storable_fields;
use super::freshness::{self, Lifetime, LifetimeInput, LifetimeSource};
use super::invalidate::resolve;
use super::key::CacheKey;
use super::policy;
use super::purge::{ALIASED, PurgeSequence};
use super::range::ContentRange;
use super::search::NoVarySearch;
use super::settings::{SetCookie, Settings};
use super::status::Reason;
use super::stored::{Freshness, StoredResponse};
use super::tags::tags;
use super::targeted::{Addressed, addressed};
use super::vary::{Vary, variant_key};
use crate::fields::Fields;
use crate::planted::{self, Bug};

/// A request and the head of its response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange<'a> {
    /// As the client sent it.
    pub method: &'a Method,
    /// The client's fields.
    pub request: &'a HeaderMap,
    /// The version that upstream answered over.
    pub version: Version,
    /// Upstream's status.
    pub status: StatusCode,
    /// Upstream's fields.
    pub response: &'a HeaderMap,
    /// When the request went out.
    pub request_time: SystemTime,
    /// When the head of the response was in.
    pub response_time: SystemTime,
}

/// Where a response would be stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// The key of the request, as it was asked.
    pub key: &'a CacheKey,
    /// The fields that `Vary` selects by: the request's, as the origin got them.
    pub selecting: &'a HeaderMap,
    /// The content codings that `Accept-Encoding` is folded to, see [`super::variant_key`].
    pub codings: &'a [&'static str],
    /// The site's name.
    pub site: &'a str,
    /// The purge log's position before the request went out.
    pub sequence: PurgeSequence,
}

/// Whether a response may be stored.
#[derive(Clone, Debug)]
pub(crate) enum Storing {
    /// As this.
    Store(Box<StoredResponse>),
    /// No.
    Pass {
        /// Why not.
        reason: Reason,
        /// How long to remember that responses under this key cannot be stored, so that
        /// requests do not wait for each other. `None`: the next may well be storable.
        remember: Option<Duration>,
    },
}

/// What the rules found out about a response, rule by rule: for `skerry explain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Its directives, and the field they come from.
    pub addressed: Addressed,
    /// Its lifetime, and where that comes from.
    pub lifetime: Lifetime,
    /// Its age on arrival.
    pub initial_age: Duration,
    /// What its `Vary` says.
    pub vary: Vary,
    /// Why it is not stored.
    pub refusal: Option<Reason>,
}

/// Whether this response may be stored, and as what.
pub(crate) fn may_store(
    exchange: &Exchange<'_>,
    place: &Place<'_>,
    settings: &Settings,
) -> Storing {
    let findings = match refused_outright(exchange, place.key, settings) {
        Ok(addressed) => weigh(exchange, place.key, settings, addressed),
        // Most of what passes has said so: nothing else needs to be known of it.
        Err((_, reason)) => return pass(reason, exchange, settings),
    };
    match findings.refusal {
        Some(reason) => pass(reason, exchange, settings),
        None => Storing::Store(Box::new(stored_response(exchange, place, &findings, settings))),
    }
}

fn pass(reason: Reason, exchange: &Exchange<'_>, settings: &Settings) -> Storing {
    Storing::Pass { reason, remember: remembered(reason, exchange, settings) }
}

/// Applies every rule of RFC 9111 §3 and of the settings.
pub(crate) fn examine(exchange: &Exchange<'_>, key: &CacheKey, settings: &Settings) -> Findings {
    match refused_outright(exchange, key, settings) {
        Ok(addressed) => weigh(exchange, key, settings, addressed),
        Err((addressed, reason)) => {
            Findings { refusal: Some(reason), ..find(exchange, settings, addressed) }
        }
    }
}

/// What forbids storing in so many words: the request, the status, a directive. Else what the
/// response's directives are.
fn refused_outright(
    exchange: &Exchange<'_>,
    key: &CacheKey,
    settings: &Settings,
) -> Result<Addressed, (Addressed, Reason)> {
    let addressed = addressed(exchange.response, &settings.targeted);
    let refusal = refused_request(exchange, key, settings)
        .or_else(|| refused_by_word(exchange, &addressed.directives));
    match refusal {
        Some(reason) => Err((addressed, reason)),
        None => Ok(addressed),
    }
}

/// The rules that weigh lifetime, validators and content.
fn weigh(
    exchange: &Exchange<'_>,
    key: &CacheKey,
    settings: &Settings,
    addressed: Addressed,
) -> Findings {
    let mut findings = find(exchange, settings, addressed);
    findings.refusal = refused_response(exchange, key, settings, &findings)
        .or_else(|| refused_by_kernel(exchange, settings, &mut findings));
    findings
}

fn find(exchange: &Exchange<'_>, settings: &Settings, addressed: Addressed) -> Findings {
    Findings {
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

fn refused_request(exchange: &Exchange<'_>, key: &CacheKey, settings: &Settings) -> Option<Reason> {
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
    bypasses(exchange.request, settings)
}

/// A response to POST answers later GETs when it says how long it is fresh and its
/// `Content-Location` is the target itself (RFC 9110 §9.3.3).
fn is_reusable_post(exchange: &Exchange<'_>, key: &CacheKey) -> bool {
    let location = exchange.response.get(CONTENT_LOCATION).and_then(|value| value.to_str().ok());
    let same = location.and_then(|location| resolve(key.url(), location));
    same.as_deref() == Some(key.url()) && exchange.status == StatusCode::OK
}

fn refused_by_word(exchange: &Exchange<'_>, directives: &ResponseDirectives) -> Option<Reason> {
    if is_never_stored(exchange.status) {
        return Some(Reason::StatusUncacheable);
    }
    let understood = freshness::is_understood(exchange.status);
    if directives.must_understand && !understood {
        return Some(Reason::MustUnderstand);
    }
    // RFC 9111 §5.2.2.3: who understands the status ignores the no-store beside it.
    if directives.no_store && !directives.must_understand {
        return Some(Reason::ResponseNoStore);
    }
    (directives.private && !planted::has(Bug::PrivateShared)).then_some(Reason::Private)
}

fn refused_response(
    exchange: &Exchange<'_>,
    key: &CacheKey,
    settings: &Settings,
    findings: &Findings,
) -> Option<Reason> {
    let directives = &findings.addressed.directives;
    let explicit = findings.lifetime.source.is_explicit();
    if exchange.method == Method::POST && !explicit {
        return Some(Reason::MethodUnstorable);
    }
    if exchange.status == StatusCode::PARTIAL_CONTENT && stored_part(exchange).is_none() {
        return Some(Reason::RangeInvalid);
    }
    if exchange.request.contains_key(AUTHORIZATION) && !may_share_authorized(directives) {
        return Some(Reason::Authorized);
    }
    if findings.vary == Vary::Star {
        return Some(Reason::VaryStar);
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
    let by_default = freshness::is_heuristically_cacheable(exchange.status) || directives.public;
    if findings.lifetime.source == LifetimeSource::Nobody && !by_default {
        return Some(Reason::StatusUncacheable);
    }
    let freshness = freshness_of(exchange, findings, settings);
    let validator = |name| exchange.response.contains_key(name);
    let useless = freshness.lifetime.span() <= freshness.initial_age.span()
        && freshness.stale_while_revalidate.span().is_zero()
        && freshness.stale_if_error.span().is_zero()
        && !validator(ETAG)
        && !validator(LAST_MODIFIED);
    useless.then_some(Reason::NoLifetime)
}

/// Interim responses, answers to conditions and ranges, and what is about the connection (101 and
/// 426, which means nothing without its hop-by-hop `Upgrade`).
fn is_never_stored(status: StatusCode) -> bool {
    status.is_informational()
        || matches!(
            status,
            StatusCode::NOT_MODIFIED
                | StatusCode::PRECONDITION_FAILED
                | StatusCode::RANGE_NOT_SATISFIABLE
                | StatusCode::UPGRADE_REQUIRED
        )
}

/// RFC 9111 §3.5.
fn may_share_authorized(directives: &ResponseDirectives) -> bool {
    directives.public || directives.must_revalidate || directives.s_maxage != Seconds::Absent
}

/// http-cache-semantics has the last word: it may refuse, and it may shorten.
fn refused_by_kernel(
    exchange: &Exchange<'_>,
    settings: &Settings,
    findings: &mut Findings,
) -> Option<Reason> {
    if !findings.lifetime.source.is_explicit() {
        // The rule's own lifetimes and capped guesses are none of its business.
        return None;
    }
    let judgement = policy::judge(exchange, &findings.addressed);
    let lasts = judgement.lifetime.min(settings.lifetimes.lifetime_max);
    findings.lifetime.lasts = findings.lifetime.lasts.min(lasts);
    (!judgement.storable).then_some(Reason::StatusUncacheable)
}

/// Of a 206: which bytes it has, when it says so, and does not bring more than it says.
fn stored_part(exchange: &Exchange<'_>) -> Option<ContentRange> {
    let mut lines = exchange.response.get_all(CONTENT_RANGE).iter();
    let said = ContentRange::parse(lines.next()?.as_bytes())?;
    let range = match content_length(exchange.response) {
        Some(length) => said.holding(length)?,
        None => said,
    };
    (lines.next().is_none() && range.complete_length.is_some()).then_some(range)
}

pub(super) fn content_length(headers: &impl Fields) -> Option<u64> {
    std::str::from_utf8(headers.get(&CONTENT_LENGTH)?).ok()?.trim().parse().ok()
}

pub(super) fn freshness_of(
    exchange: &Exchange<'_>,
    findings: &Findings,
    settings: &Settings,
) -> Freshness {
    let directives = &findings.addressed.directives;
    let strict = directives.must_revalidate || directives.proxy_revalidate;
    let shared = directives.s_maxage != Seconds::Absent;
    let despite = settings.stale.despite_s_maxage
        && (directives.stale_while_revalidate != Seconds::Absent
            || directives.stale_if_error != Seconds::Absent);
    let must_revalidate = strict || (shared && !despite);
    let stale = |said: Seconds, site: Duration| {
        let said = said.or_zero().map(|seconds| Duration::from_secs(seconds.into()));
        // With s-maxage only what the response itself says counts.
        said.unwrap_or(if shared { Duration::ZERO } else { site })
    };
    let usable = !must_revalidate && !directives.no_cache;
    let only = |time: Duration| if usable { time } else { Duration::ZERO };
    Freshness {
        response_time: exchange.response_time.into(),
        initial_age: findings.initial_age.into(),
        lifetime: findings.lifetime.lasts.into(),
        heuristic: findings.lifetime.source == LifetimeSource::Heuristic,
        stale_while_revalidate: only(stale(
            directives.stale_while_revalidate,
            settings.stale.while_revalidate,
        ))
        .into(),
        stale_if_error: only(stale(directives.stale_if_error, settings.stale.if_error)).into(),
        must_revalidate,
        immutable: directives.immutable,
        no_cache: directives.no_cache,
    }
}

fn stored_response(
    exchange: &Exchange<'_>,
    place: &Place<'_>,
    findings: &Findings,
    settings: &Settings,
) -> StoredResponse {
    let mut headers = storable_fields(
        exchange.response,
        &findings.addressed.directives.unstored_fields,
        settings.set_cookie,
        exchange.response_time,
    );
    let part = match exchange.status {
        StatusCode::PARTIAL_CONTENT => stored_part(exchange),
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
    let rule = settings.no_vary_search.then(|| NoVarySearch::of(exchange.response)).flatten();
    let mut tags = tags(exchange.response, origin_of(place.key.url()));
    let key = match &rule {
        Some(rule) => {
            tags = tags.iter().copied().chain([ALIASED]).collect();
            &rule.key(place.key)
        }
        None => place.key,
    };
    StoredResponse {
        key: key.text.clone(),
        variant: match &findings.vary {
            Vary::Fields(fields) => variant_key(key, fields, place.selecting, place.codings).1,
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
    }
}

/// `scheme://authority` of a URL part.
pub(super) fn origin_of(url: &str) -> &str {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url[authority..].find('/').map_or(url.len(), |at| authority + at);
    &url[..end]
}

/// What was the request's doing, or an error that will pass, is not held against the key.
fn remembered(reason: Reason, exchange: &Exchange<'_>, settings: &Settings) -> Option<Duration> {
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
    let of_the_request = exchange.status == StatusCode::RANGE_NOT_SATISFIABLE;
    (lasting && !of_the_request && !exchange.status.is_server_error())
        .then_some(settings.pass_memory)
}
