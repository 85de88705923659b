//! Updates a stored response with the response to a validation (RFC 9111 §3.2, §4.3.4, §4.3.5).

use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, LAST_MODIFIED, SET_COOKIE,
    VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::conditional::{Comparison, is_strong, tags_match};
use super::fields::{http_date, remove_hop_by_hop, storable_fields, unshared_fields};
use super::purge::{ALIASED, PurgeSequence};
use super::search;
use super::settings::{SetCookie, Settings};
use super::stored::StoredResponse;
use super::storing::{UpstreamExchange, examine, freshness_of};
use super::tags::tags;
use super::url::origin_of;
use super::vary::Vary;
use crate::fields::{FieldSection, Fields, content_length};

/// The result of a validation.
#[derive(Clone, Debug)]
pub(crate) enum Freshened {
    /// The stored response is valid: store this in its place.
    Updated(Box<StoredResponse>),
    /// The stored response is valid for this request. The updated one must not be stored, and answers no other
    /// request.
    ValidButUnstorable(Box<StoredResponse>),
    /// The response is about another representation: keep the stored response, and forward the request
    /// without conditions. After a HEAD request: the stored response is stale from now on.
    OtherRepresentation,
}

/// Updates `stored` with a 304. `exchange.request` are the client's fields, `exchange.response` those of
/// the 304; `sequence` was read before the request was sent.
pub(crate) fn freshen(
    stored: &StoredResponse,
    exchange: &UpstreamExchange<'_>,
    sequence: PurgeSequence,
    settings: &Settings,
) -> Freshened {
    match is_about(stored, exchange.response) {
        true if !contradicts(stored, exchange.response) => {
            merged(stored, exchange, sequence, settings)
        }
        _ => Freshened::OtherRepresentation,
    }
}

/// Updates the stored GET response with the 200 response to a HEAD request (RFC 9111 §4.3.5).
pub(crate) fn freshen_from_head(
    stored: &StoredResponse,
    exchange: &UpstreamExchange<'_>,
    sequence: PurgeSequence,
    settings: &Settings,
) -> Freshened {
    let ours = &stored.headers;
    let theirs = exchange.response;
    let same = |name: &HeaderName| {
        theirs.get(name).is_none_or(|value| ours.get(name) == Some(value.as_bytes()))
    };
    let length = content_length(theirs);
    let same_length = length.is_none_or(|length| {
        stored.complete_length.or_else(|| content_length(ours)).is_none_or(|ours| ours == length)
    });
    let usable = exchange.status == stored.status || stored.status == StatusCode::PARTIAL_CONTENT;
    if usable
        && exchange.status == StatusCode::OK
        && same(&ETAG)
        && same(&LAST_MODIFIED)
        && same_length
        && !contradicts(stored, theirs)
    {
        merged(stored, exchange, sequence, settings)
    } else {
        Freshened::OtherRepresentation
    }
}

/// The fields of a 304 that are only for the client whose request was forwarded, such as cookies. `stored` are the
/// fields that it has updated.
pub(crate) fn unshared_fields_of_update(update: &HeaderMap, stored: &FieldSection) -> HeaderMap {
    let mut own = unshared_fields(update, stored);
    for name in &BOUND_TO_BYTES {
        own.remove(name);
    }
    own
}

/// Whether a 304 selects `stored` (RFC 9111 §4.3.4). A 304 without validators does.
fn is_about(stored: &StoredResponse, not_modified: &HeaderMap) -> bool {
    let ours = |name: &HeaderName| stored.headers.get(name);
    if let Some(tag) = not_modified.get(ETAG).map(HeaderValue::as_bytes) {
        let how = if is_strong(tag) { Comparison::Strong } else { Comparison::Weak };
        return match ours(&ETAG) {
            Some(ours) => tags_match(ours, tag, how) || (!is_quoted(ours) && ours == tag),
            // The stored response has no tag to compare with.
            None => !is_strong(tag),
        };
    }
    match (not_modified.get(LAST_MODIFIED).map(HeaderValue::as_bytes), ours(&LAST_MODIFIED)) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => true,
    }
}

/// Whether an update states another place for `stored` than that under which it was stored: by `No-Vary-Search`, or
/// by a selecting field that `stored` does not have. `Vary: *` is no other place: it forbids storing.
fn contradicts(stored: &StoredResponse, update: &HeaderMap) -> bool {
    search::contradicts(stored, update) || selects_by_more(stored, update)
}

fn selects_by_more(stored: &StoredResponse, update: &HeaderMap) -> bool {
    let Vary::Fields(theirs) = Vary::of(update) else { return false };
    match Vary::of(&stored.headers) {
        Vary::Fields(ours) => theirs.iter().any(|name| !ours.contains(name)),
        Vary::Nothing | Vary::Star => true,
    }
}

fn is_quoted(tag: &[u8]) -> bool {
    tag.contains(&b'"')
}

fn merged(
    stored: &StoredResponse,
    exchange: &UpstreamExchange<'_>,
    sequence: PurgeSequence,
    settings: &Settings,
) -> Freshened {
    let mut headers = stored.headers.to_map(exchange.response.len());
    headers.remove(AGE);
    if !exchange.response.contains_key(DATE) {
        // With the old Date, its age would count from before the validation.
        headers.insert(DATE, http_date(exchange.response_time));
    }
    update_fields(&mut headers, exchange.response, settings.set_cookie);
    let key = super::CacheKey::new(stored.key.clone());
    let again = UpstreamExchange {
        method: &Method::GET,
        status: stored.status,
        response: &headers,
        ..*exchange
    };
    // A partial response was evaluated when it was stored; its Content-Range is not stored.
    let judged = match stored.status {
        StatusCode::PARTIAL_CONTENT => UpstreamExchange { status: StatusCode::OK, ..again },
        _ => again,
    };
    let findings = examine(&judged, &key, settings);
    let directives = &findings.addressed.directives;
    let mut updated_tags = tags(&headers, origin_of(key.url()), &settings.tags);
    if stored.is_aliased() {
        updated_tags = updated_tags.iter().copied().chain([ALIASED]).collect();
    }
    let updated = StoredResponse {
        headers: storable_fields(
            &headers,
            &directives.unstored_fields,
            settings.set_cookie,
            exchange.response_time,
        )
        .into(),
        freshness: freshness_of(&again, &findings, settings),
        tags: updated_tags,
        stored_at_sequence: sequence,
        ..stored.clone()
    };
    match findings.refusal {
        None => Freshened::Updated(Box::new(updated)),
        Some(_) => Freshened::ValidButUnstorable(Box::new(updated)),
    }
}

/// RFC 9111 §3.2: each field of the response replaces all stored lines of its name, except those that
/// describe the stored bytes.
fn update_fields(headers: &mut HeaderMap, update: &HeaderMap, set_cookie: SetCookie) {
    let mut update = update.clone();
    remove_hop_by_hop(&mut update);
    // All fields that the stored `Vary` names have selected the stored bytes, also where the update names fewer.
    let keeps_vary = Vary::of(&update) != Vary::Star;
    let kept = |name: &HeaderName| {
        BOUND_TO_BYTES.contains(name)
            || (*name == VARY && keeps_vary)
            || (*name == SET_COOKIE && set_cookie != SetCookie::Store)
    };
    for name in update.keys().filter(|name| !kept(name)) {
        headers.remove(name);
        for line in update.get_all(name) {
            headers.append(name, line.clone());
        }
    }
}

/// Fields that the stored bytes depend on, or that depend on them: a 304 sends none of these.
const BOUND_TO_BYTES: [HeaderName; 8] = [
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    ETAG,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::stored::tests::{headers, now, stored};
    use std::time::Duration;

    const LATER: Duration = Duration::from_secs(100);

    fn exchanged<T>(
        status: u16,
        response: &[(&str, &str)],
        then: impl FnOnce(&UpstreamExchange<'_>) -> T,
    ) -> T {
        let exchange = UpstreamExchange {
            version: http::Version::HTTP_11,
            method: &Method::GET,
            request: &HeaderMap::new(),
            status: StatusCode::from_u16(status).expect("a status"),
            response: &headers(response),
            request_time: now() + LATER,
            response_time: now() + LATER,
        };
        then(&exchange)
    }

    fn freshened(ours: &[(&str, &str)], theirs: &[(&str, &str)]) -> Freshened {
        let fields: Vec<_> = [("cache-control", "max-age=2")].iter().chain(ours).copied().collect();
        exchanged(304, theirs, |exchange| {
            freshen(&stored(&fields), exchange, PurgeSequence(9), &Settings::default())
        })
    }

    fn updated(ours: &[(&str, &str)], theirs: &[(&str, &str)]) -> StoredResponse {
        match freshened(ours, theirs) {
            Freshened::Updated(updated) => *updated,
            other => panic!("{theirs:?}: {other:?}"),
        }
    }

    #[test]
    fn fields_of_a_304_replace_and_add_and_keep_their_lines() {
        let ours = &[("etag", "\"a\""), ("link", "<a>"), ("kept", "1"), ("x", "1"), ("x", "2")];
        let theirs =
            &[("etag", "\"a\""), ("link", "<b>"), ("link", "<c>"), ("new", "1"), ("x", "3")];
        let headers = updated(ours, theirs).headers.to_map(0);
        assert_eq!(headers.get_all("link").iter().collect::<Vec<_>>(), ["<b>", "<c>"]);
        assert_eq!(headers.get_all("x").iter().collect::<Vec<_>>(), ["3"]);
        assert_eq!(headers["kept"], "1");
        assert_eq!(headers["new"], "1");
    }

    #[test]
    fn fields_that_tell_of_the_bytes_stay() {
        for name in ["content-encoding", "content-length", "content-range", "content-md5"] {
            let ours = &[("etag", "\"a\""), (name, "5")];
            let theirs = &[("etag", "\"a\""), (name, "10")];
            assert_eq!(updated(ours, theirs).headers.to_map(0)[name], "5", "{name}");
        }
        for name in ["content-type", "content-location", "expires", "content-foo"] {
            let ours = &[("etag", "\"a\""), (name, "5")];
            let theirs = &[("etag", "\"a\""), (name, "10")];
            assert_eq!(updated(ours, theirs).headers.to_map(0)[name], "10", "{name}");
        }
    }

    #[test]
    fn a_304_makes_it_young_again() {
        let ours = &[("etag", "\"a\""), ("age", "50"), ("date", "Wed, 18 Nov 2026 11:06:40 GMT")];
        let found = updated(ours, &[("etag", "\"a\""), ("cache-control", "max-age=3600")]);
        assert_eq!(found.freshness.age(now() + LATER), Duration::ZERO);
        assert_eq!(found.freshness.lifetime.span(), Duration::from_secs(3600));
        assert_eq!(found.stored_at_sequence, PurgeSequence(9));
        let aged = updated(ours, &[("etag", "\"a\""), ("age", "7")]);
        assert_eq!(aged.freshness.age(now() + LATER), Duration::from_secs(7));
        assert_eq!(aged.freshness.lifetime.span(), Duration::from_secs(2));
    }

    #[test]
    fn a_304_for_another_representation_updates_nothing() {
        let check = |ours: &[(&str, &str)], theirs: &[(&str, &str)], about: bool| {
            let found = freshened(ours, theirs);
            let is_about = !matches!(found, Freshened::OtherRepresentation);
            assert_eq!(is_about, about, "{ours:?} {theirs:?}");
        };
        let date = "Wed, 01 Jan 2020 00:00:00 GMT";
        let other = "Wed, 01 Jan 2025 00:00:00 GMT";
        check(&[("etag", "\"a\"")], &[("etag", "\"a\"")], true);
        check(&[("etag", "\"a\"")], &[("etag", "\"b\"")], false);
        check(&[("etag", "W/\"a\"")], &[("etag", "W/\"a\"")], true);
        check(&[("etag", "\"a\"")], &[("etag", "W/\"a\"")], true);
        check(&[("etag", "W/\"a\"")], &[("etag", "\"a\"")], false);
        check(&[("etag", "a")], &[("etag", "a")], true);
        check(&[("etag", "\"a\"")], &[], true);
        check(&[("last-modified", date)], &[("last-modified", date)], true);
        check(&[("last-modified", date)], &[("last-modified", other)], false);
        check(&[("last-modified", date)], &[("etag", "\"a\"")], false);
    }

    #[test]
    fn a_304_that_forbids_storing_is_used_once() {
        let theirs = &[("etag", "\"a\""), ("cache-control", "private")];
        let found = freshened(&[("etag", "\"a\"")], theirs);
        assert!(matches!(found, Freshened::ValidButUnstorable(_)));
    }

    #[test]
    fn a_304_that_names_another_selecting_field_updates_nothing() {
        let check = |ours: &str, theirs: &str, is_other: bool| {
            let found = freshened(
                &[("etag", "\"a\""), ("vary", ours)],
                &[("etag", "\"a\""), ("vary", theirs)],
            );
            let found = matches!(found, Freshened::OtherRepresentation);
            assert_eq!(found, is_other, "{ours:?} {theirs:?}");
        };
        check("", "accept-encoding", false);
        check("x-a", "X-A", false);
        check("x-a, x-b", "x-b", false);
        check("", "x-a", true);
        check("x-a", "x-a, x-b", true);
        check("x-a", "*", false);
        let theirs = &[("etag", "\"a\""), ("vary", "x-b")];
        let kept = updated(&[("etag", "\"a\""), ("vary", "x-a, x-b")], theirs);
        assert_eq!(kept.headers.to_map(0)["vary"], "x-a, x-b");
    }

    #[test]
    fn cookies_of_a_304_are_not_stored() {
        let theirs = &[("etag", "\"a\""), ("set-cookie", "a=b")];
        assert!(!updated(&[("etag", "\"a\"")], theirs).headers.contains(&SET_COOKIE));
    }

    #[test]
    fn a_head_updates_what_it_matches_and_ages_the_rest() {
        let check = |ours: &[(&str, &str)], status, theirs: &[(&str, &str)], holds: bool| {
            let fields: Vec<_> = [
                ("cache-control", "max-age=2"),
                ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ]
            .iter()
            .chain(ours)
            .copied()
            .collect();
            let found = exchanged(status, theirs, |exchange| {
                freshen_from_head(
                    &stored(&fields),
                    exchange,
                    PurgeSequence(9),
                    &Settings::default(),
                )
            });
            assert_eq!(matches!(found, Freshened::Updated(_)), holds, "{theirs:?}");
        };
        check(&[], 200, &[("cache-control", "max-age=1000")], true);
        check(&[("etag", "\"a\"")], 200, &[("etag", "\"a\"")], true);
        check(&[("etag", "\"a\"")], 200, &[("etag", "\"b\"")], false);
        check(&[], 200, &[("etag", "\"b\"")], false);
        check(&[("content-length", "5")], 200, &[("content-length", "5")], true);
        check(&[("content-length", "5")], 200, &[("content-length", "6")], false);
        check(&[], 410, &[], false);
    }
}
