//! Header fields as they are stored, sent to clients, and sent for validation (RFC 9111 §3.1, §4,
//! §4.3.1).

use std::time::{Duration, SystemTime};

use http::header::{
    ACCEPT_RANGES, AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, SET_COOKIE,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::fields::{FieldLines, FieldSection, Fields, FieldsMut, Known, members};

use super::conditional::Selected;
use super::range::ContentRange;
use super::settings::SetCookie;
use super::stored::StoredResponse;

/// Fields that belong to one connection or one hop (RFC 9110 §7.6.1, RFC 9111 §3.1), besides
/// those that `Connection` names.
pub(crate) const HOP_BY_HOP: [HeaderName; 11] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-authentication"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes the fields of this hop, including those that `Connection` names.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| members(line.as_bytes()))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The fields of a response as they are stored: without those of this hop and `unstored` (named by
/// `no-cache="…"` and `private="…"`), with a `Date`, without `Age`.
pub(super) fn storable_fields(
    response: &HeaderMap,
    unstored: &[HeaderName],
    set_cookie: SetCookie,
    response_time: SystemTime,
) -> HeaderMap {
    let mut headers = response.clone();
    remove_hop_by_hop(&mut headers);
    for name in unstored {
        headers.remove(name);
    }
    if set_cookie != SetCookie::Store {
        headers.remove(SET_COOKIE);
    }
    if !headers.contains_key(DATE) {
        headers.insert(DATE, http_date(response_time));
    }
    headers.remove(AGE);
    headers
}

/// The fields of a response that are only for the client whose request was forwarded: those named by
/// `no-cache="…"` and `private="…"`, and cookies that are not stored. Without those that [`answer`]
/// generates, which no stored response has either.
pub(crate) fn unshared_fields(response: &HeaderMap, stored: &FieldSection) -> HeaderMap {
    let is_own = |name: &HeaderName| !GENERATED.contains(name) && !stored.contains(name);
    let own = response.iter().filter(|(name, _)| is_own(name));
    let mut own: HeaderMap = own.map(|(name, value)| (name.clone(), value.clone())).collect();
    remove_hop_by_hop(&mut own);
    own
}

/// Fields that [`answer`] generates.
const GENERATED: [HeaderName; 3] = [AGE, CONTENT_LENGTH, CONTENT_RANGE];

/// Status and fields of the response that sends `selected` of `stored`, with the matching
/// `Content-Length` and `Content-Range`. `length` is that of the complete body, if known. `None` while
/// bytes are missing.
pub(crate) fn answer(
    stored: &StoredResponse,
    selected: &Selected,
    length: Option<u64>,
    age: Duration,
) -> Option<(StatusCode, FieldLines)> {
    let mut fields = FieldLines::of(&stored.headers);
    fields.append_number(&AGE, age.as_secs().min(1 << 31));
    let status = match selected {
        Selected::Full => {
            if let Some(length) = length
                && !fields.has(Known::ContentLength)
                && allows_content(stored.status)
            {
                fields.append_number(&CONTENT_LENGTH, length);
            }
            match stored.status {
                // A partial response with all its parts is complete (RFC 9111 §3.4).
                StatusCode::PARTIAL_CONTENT => {
                    fields.remove_all(&DIGESTS_OF_CONTENT);
                    StatusCode::OK
                }
                status => status,
            }
        }
        // Fields that describe the content stay until its coding is known: see `leave_content_out`.
        Selected::NotModified => StatusCode::NOT_MODIFIED,
        Selected::PreconditionFailed => {
            fields.remove_all(&OF_CONTENT);
            fields.append_number(&CONTENT_LENGTH, 0);
            StatusCode::PRECONDITION_FAILED
        }
        Selected::Range { bytes, complete_length } => {
            let complete_length = Some(*complete_length);
            let range = ContentRange { bytes: bytes.clone(), complete_length };
            fields.remove_all(&DIGESTS_OF_CONTENT);
            fields.set(&CONTENT_RANGE, &text_value(range.text()));
            fields.set_number(&CONTENT_LENGTH, bytes.end - bytes.start);
            StatusCode::PARTIAL_CONTENT
        }
        Selected::Multipart(plan) => {
            fields.remove_all(&DIGESTS_OF_CONTENT);
            let content_type = format!("multipart/byteranges; boundary={}", plan.boundary);
            fields.set(&CONTENT_TYPE, &text_value(content_type));
            fields.set_number(&CONTENT_LENGTH, plan.content_length());
            StatusCode::PARTIAL_CONTENT
        }
        Selected::RangeNotSatisfiable { complete_length } => {
            fields.remove_all(&OF_CONTENT);
            fields.set(&CONTENT_RANGE, &text_value(format!("bytes */{complete_length}")));
            fields.append_number(&CONTENT_LENGTH, 0);
            StatusCode::RANGE_NOT_SATISFIABLE
        }
        Selected::Missing(_) => return None,
    };
    Some((status, fields))
}

/// Removes the fields of a 304 that describe content (RFC 9110 §15.4.5). Call it after `Vary` is
/// complete, because `Vary` depends on these fields.
pub(crate) fn leave_content_out(fields: &mut FieldLines) {
    fields.remove_all(&OF_CONTENT);
}

/// RFC 9110 §8.6: no `Content-Length` with 204.
fn allows_content(status: StatusCode) -> bool {
    status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

fn text_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("printable ASCII is a field value")
}

/// Turns a request's fields into a conditional request for `stored` (RFC 9111 §4.3.1): replaces the
/// client's conditions and ranges by the stored validators. Other fields stay, including the selecting
/// fields.
pub(crate) fn validation_fields(stored: &StoredResponse, headers: &mut HeaderMap) {
    remove_conditions(headers);
    if let Some(tag) = stored.headers.values(&ETAG).next() {
        headers.insert(IF_NONE_MATCH, tag);
    }
    if let Some(modified) = stored.headers.values(&LAST_MODIFIED).next() {
        headers.insert(IF_MODIFIED_SINCE, modified);
    }
}

/// Removes the client's conditions and ranges, so that upstream sends a complete, storable response.
/// The client's own are evaluated against that response.
pub(crate) fn remove_conditions(headers: &mut HeaderMap) {
    for name in [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE, RANGE] {
        headers.remove(name);
    }
}

/// Fields that describe content (RFC 9110 §15.4.5), except `Content-Location`.
const OF_CONTENT: [HeaderName; 9] = [
    CONTENT_LENGTH,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_RANGE,
    ACCEPT_RANGES,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// Digests of the content of one message (RFC 9530 §2, RFC 1864), which are false for another part of the representation.
pub(crate) const DIGESTS_OF_CONTENT: [HeaderName; 2] =
    [HeaderName::from_static("content-digest"), HeaderName::from_static("content-md5")];

/// The time as IMF-fixdate; a time before 1970 counts as 1970.
pub(crate) fn http_date(time: SystemTime) -> HeaderValue {
    let text = httpdate::fmt_http_date(time.max(SystemTime::UNIX_EPOCH));
    HeaderValue::try_from(text).expect("a date is a field value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::stored::tests::{headers, now, stored, stored_under};
    use crate::cache::{Multipart, Settings, settings};

    #[test]
    fn fields_of_one_hop_are_not_stored() {
        let stored = stored(&[
            ("cache-control", "max-age=9"),
            ("connection", "a, B"),
            ("connection", "close"),
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
            ("keep-alive", "x"),
            ("proxy-authenticate", "x"),
            ("proxy-authentication-info", "x"),
            ("proxy-authorization", "x"),
            ("proxy-connection", "x"),
            ("te", "x"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "x"),
        ]);
        let mut names: Vec<_> = stored.headers.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["c", "cache-control", "date"]);
    }

    #[test]
    fn fields_named_by_no_cache_and_private_are_not_stored() {
        let stored = stored(&[
            ("cache-control", "no-cache=\"a, b\", max-age=9, private=\"set-cookie\""),
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
            ("set-cookie", "x=y"),
        ]);
        assert!(!stored.freshness.no_cache);
        assert_eq!(stored.headers.len(), 3);
        assert_eq!(stored.headers.to_map(0)["c"], "3");
    }

    #[test]
    fn repeated_fields_and_their_order_survive_reuse() {
        let stored = stored(&[
            ("cache-control", "max-age=60"),
            ("link", "<a>"),
            ("link", "<b>"),
            ("age", "30"),
            ("date", "Wed, 18 Nov 2026 11:06:40 GMT"),
        ]);
        let age = stored.freshness.age(now() + Duration::from_secs(3));
        let (_, fields) = answer(&stored, &Selected::Full, None, age).expect("an answer");
        let ages: Vec<_> = fields.lines(&AGE).collect();
        assert_eq!(ages, [b"33"], "the origin's own is gone");
        let links: Vec<_> = fields.lines(&http::header::LINK).collect();
        assert_eq!(links, [b"<a>", b"<b>"]);
        assert_eq!(fields.get(&DATE), Some(b"Wed, 18 Nov 2026 11:06:40 GMT".as_slice()));
    }

    #[test]
    fn fields_that_an_answer_writes_anew_are_not_for_one_client_alone() {
        let fields = [
            ("cache-control", "max-age=60, private=\"x-own, age, set-cookie\""),
            ("age", "30"),
            ("age", "30"),
            ("content-length", "5"),
            ("content-range", "bytes 0-4/5"),
            ("set-cookie", "a=b"),
            ("x-own", "1"),
        ];
        let own = unshared_fields(&headers(&fields), &stored(&fields).headers);
        let mut names: Vec<_> = own.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["set-cookie", "x-own"]);
    }

    #[test]
    fn a_response_without_date_gets_the_time_of_its_arrival() {
        assert!(stored(&[("cache-control", "max-age=60")]).headers.contains(&DATE));
    }

    #[test]
    fn set_cookie_is_stored_only_on_demand() {
        let fields = [("cache-control", "max-age=60"), ("set-cookie", "a=b")];
        let stored = |set_cookie| {
            let settings = Settings { set_cookie, ..Settings::default() };
            stored_under(&fields, &settings).headers.contains(&SET_COOKIE)
        };
        assert!(stored(settings::SetCookie::Store));
        assert!(!stored(settings::SetCookie::Strip));
    }

    #[test]
    fn validation_asks_with_our_validators_alone() {
        let stored = stored(&[
            ("cache-control", "max-age=60"),
            ("etag", "W/\"ours\""),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT"),
        ]);
        let mut request = headers(&[
            ("if-none-match", "\"theirs\""),
            ("if-none-match", "\"more\""),
            ("if-modified-since", "Wed, 01 Jan 2025 00:00:00 GMT"),
            ("if-match", "*"),
            ("if-range", "\"theirs\""),
            ("range", "bytes=0-1"),
            ("cookie", "a=b"),
            ("cookie", "c=d"),
        ]);
        validation_fields(&stored, &mut request);
        assert_eq!(request.len(), 4);
        assert_eq!(request[IF_NONE_MATCH], "W/\"ours\"");
        assert_eq!(request[IF_MODIFIED_SINCE], "Wed, 01 Jan 2020 00:00:00 GMT");
        assert_eq!(request.get_all("cookie").iter().count(), 2);
    }

    #[test]
    fn answers_have_the_status_and_length_of_what_they_send() {
        let mut stored = stored(&[
            ("cache-control", "max-age=60"),
            ("content-type", "text/plain"),
            ("content-length", "1000"),
            ("content-location", "/b"),
            ("etag", "\"a\""),
        ]);
        let check = |stored: &StoredResponse,
                     selected: Selected,
                     status: u16,
                     length: &str,
                     range: &str| {
            let (found, mut fields) =
                answer(stored, &selected, stored.complete_length, Duration::ZERO)
                    .expect("an answer");
            if found == StatusCode::NOT_MODIFIED {
                leave_content_out(&mut fields);
            }
            let fields = fields.to_map();
            let field =
                |name| fields.get(name).map_or("", |v: &HeaderValue| v.to_str().expect("text"));
            assert_eq!(found, status, "{selected:?}");
            assert_eq!(field(CONTENT_LENGTH), length, "{selected:?}");
            assert_eq!(field(CONTENT_RANGE), range, "{selected:?}");
            assert_eq!(field(ETAG), "\"a\"", "{selected:?}");
        };
        check(&stored, Selected::Full, 200, "1000", "");
        check(&stored, Selected::NotModified, 304, "", "");
        check(&stored, Selected::PreconditionFailed, 412, "0", "");
        let range = Selected::Range { bytes: 4..10, complete_length: 1000 };
        check(&stored, range, 206, "6", "bytes 4-9/1000");
        let outside = Selected::RangeNotSatisfiable { complete_length: 1000 };
        check(&stored, outside, 416, "0", "bytes */1000");
        assert!(answer(&stored, &Selected::Missing(vec![]), None, Duration::ZERO).is_none());
        stored.status = StatusCode::PARTIAL_CONTENT;
        let mut headers = stored.headers.to_map(0);
        headers.remove(CONTENT_LENGTH);
        stored.headers = headers.into();
        stored.complete_length = Some(1000);
        check(&stored, Selected::Full, 200, "1000", "");
    }

    #[test]
    fn a_digest_goes_with_the_content_that_it_is_of() {
        let mut stored = stored(&[
            ("cache-control", "max-age=60"),
            ("content-digest", "sha-256=:AA==:"),
            ("content-md5", "AA=="),
            ("repr-digest", "sha-256=:AA==:"),
        ]);
        let check = |stored: &StoredResponse, selected: Selected, is_kept: bool| {
            let (_, fields) = answer(stored, &selected, Some(1000), Duration::ZERO).unwrap();
            let fields = fields.to_map();
            for name in ["content-digest", "content-md5"] {
                assert_eq!(fields.contains_key(name), is_kept, "{name}: {selected:?}");
            }
            assert!(fields.contains_key("repr-digest"), "of the whole representation");
        };
        let range = || Selected::Range { bytes: 4..10, complete_length: 1000 };
        let multipart = Multipart::new(&[0..1, 500..501], 1000, None, "x".repeat(32));
        check(&stored, Selected::Full, true);
        check(&stored, range(), false);
        check(&stored, Selected::Multipart(Box::new(multipart)), false);
        stored.status = StatusCode::PARTIAL_CONTENT;
        check(&stored, range(), false);
        check(&stored, Selected::Full, false);
    }

    #[test]
    fn a_304_has_the_fields_that_a_200_would_have() {
        let stored = stored(&[
            ("cache-control", "max-age=60"),
            ("content-type", "text/plain"),
            ("content-location", "/b"),
            ("date", "Wed, 18 Nov 2026 11:06:40 GMT"),
            ("etag", "\"a\""),
            ("expires", "Wed, 18 Nov 2026 12:06:40 GMT"),
            ("vary", "foo"),
        ]);
        let found = answer(&stored, &Selected::NotModified, None, Duration::ZERO);
        let mut fields = found.expect("an answer").1;
        leave_content_out(&mut fields);
        let fields = fields.to_map();
        for name in ["cache-control", "content-location", "date", "etag", "expires", "vary"] {
            assert!(fields.contains_key(name), "{name}");
        }
        assert!(!fields.contains_key(CONTENT_TYPE));
    }
}
