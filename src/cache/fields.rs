//! Header fields on their way into the store and out of it (RFC 9111 §3.1, §4, §4.3.1).

use std::time::{Duration, SystemTime};

use http::header::{
    AGE, CONNECTION, DATE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, SET_COOKIE,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::settings::SetCookie;
use super::stored::StoredResponse;

/// Fields that belong to one connection or one hop (RFC 9110 §7.6.1, RFC 9111 §3.1), besides
/// those that `Connection` names.
pub const HOP_BY_HOP: [HeaderName; 11] = [
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

/// Takes the fields of this hop out, those that `Connection` names too.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The fields of a response as they are stored: without this hop's, without `unstored` (named
/// by `no-cache="…"` and `private="…"`), with a `Date` and a placeholder for `Age`.
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
    headers.insert(AGE, HeaderValue::from_static("0"));
    headers
}

/// The fields for an answer from `stored` at this age: one clone, `Age` set in place.
pub fn reuse_headers(stored: &StoredResponse, age: Duration) -> HeaderMap {
    let mut headers = stored.headers.clone();
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(age.as_secs().min(1 << 31));
    let value = HeaderValue::from_str(text).expect("digits are a field value");
    headers.insert(AGE, value);
    headers
}

/// Makes a request's fields ask whether `stored` still holds: our validators in, the client's
/// own conditions and ranges out (RFC 9111 §4.3.1). The rest, the selecting fields above all,
/// stays.
pub fn validation_fields(stored: &StoredResponse, headers: &mut HeaderMap) {
    remove_conditions(headers);
    if let Some(tag) = stored.headers.get(ETAG) {
        headers.insert(IF_NONE_MATCH, tag.clone());
    }
    if let Some(modified) = stored.headers.get(LAST_MODIFIED) {
        headers.insert(IF_MODIFIED_SINCE, modified.clone());
    }
}

/// Takes the client's conditions and ranges out, so that upstream's answer is the whole and can
/// be stored; the client's own are judged on what comes.
pub fn remove_conditions(headers: &mut HeaderMap) {
    for name in [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE, RANGE] {
        headers.remove(name);
    }
}

/// IMF-fixdate; times before 1970 are 1970.
pub(super) fn http_date(time: SystemTime) -> HeaderValue {
    let text = httpdate::fmt_http_date(time.max(SystemTime::UNIX_EPOCH));
    HeaderValue::try_from(text).expect("a date is a field value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::stored::tests::{headers, now, stored, stored_under};
    use crate::cache::{Settings, settings};

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
        let mut names: Vec<_> = stored.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["age", "c", "cache-control", "date"]);
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
        assert_eq!(stored.headers.len(), 4);
        assert_eq!(stored.headers["c"], "3");
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
        let headers = reuse_headers(&stored, age);
        assert_eq!(headers["age"], "33");
        let links: Vec<_> = headers.get_all("link").iter().collect();
        assert_eq!(links, ["<a>", "<b>"]);
        assert_eq!(headers["date"], "Wed, 18 Nov 2026 11:06:40 GMT");
    }

    #[test]
    fn a_response_without_date_gets_the_time_of_its_arrival() {
        assert!(stored(&[("cache-control", "max-age=60")]).headers.contains_key(DATE));
    }

    #[test]
    fn set_cookie_is_stored_only_on_demand() {
        let fields = [("cache-control", "max-age=60"), ("set-cookie", "a=b")];
        let stored = |set_cookie| {
            let settings = Settings { set_cookie, ..Settings::default() };
            stored_under(&fields, &settings).headers.contains_key(SET_COOKIE)
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
}
