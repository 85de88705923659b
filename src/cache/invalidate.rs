//! The stored responses that an unsafe request makes invalid (RFC 9111 §4.4, RFC 9875 §3).

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::purge::PurgeScope;
use super::settings::KeyPolicy;
use super::tags::{group_tag, groups};
use super::url::{origin_of, resolve, under_policy};

/// `Cache-Group-Invalidation` (RFC 9875 §3).
pub(crate) const CACHE_GROUP_INVALIDATION: HeaderName =
    HeaderName::from_static("cache-group-invalidation");

/// The scopes to purge, hard: a response that RFC 9111 §4.4 invalidates must not be sent without validation, not
/// even stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invalidation {
    /// URLs and groups, each once.
    pub scopes: Vec<PurgeScope>,
}

/// The stored responses that the response to this request makes invalid: those of the target, of the URLs in
/// `Location` and `Content-Location` if they have the same origin, and of the groups in
/// `Cache-Group-Invalidation`. None for a safe method or an error. `url` is that of the request:
/// `scheme://authority/path?query`.
pub(crate) fn invalidates(
    method: &Method,
    url: &str,
    status: StatusCode,
    headers: &HeaderMap,
    policy: &KeyPolicy,
) -> Invalidation {
    let mut invalidation = Invalidation::default();
    if is_safe(method) || !(status.is_success() || status.is_redirection()) {
        return invalidation;
    }
    let Some(target) = resolve(url, "") else { return invalidation };
    let named = [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| {
        let reference = headers.get(name)?.to_str().ok()?;
        let named = resolve(url, reference)?;
        (origin_of(&named) == origin_of(&target)).then_some(named)
    });
    for url in [target.clone()].into_iter().chain(named) {
        invalidation.add(PurgeScope::Url(under_policy(&url, policy).into()));
    }
    for group in groups(headers, &CACHE_GROUP_INVALIDATION) {
        invalidation.add(PurgeScope::Tag(group_tag(origin_of(&target), &group).into()));
    }
    invalidation
}

impl Invalidation {
    fn add(&mut self, scope: PurgeScope) {
        if !self.scopes.contains(&scope) {
            self.scopes.push(scope);
        }
    }
}

/// Whether a method asks for no change (RFC 9110 §9.2.1 and IANA's registry). An unknown method may ask for one.
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(
        method.as_str(),
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PROPFIND" | "REPORT" | "SEARCH" | "QUERY" | "PRI"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::stored::tests::headers;

    const URL: &str = "https://e.org/a/b?c=d";

    fn scopes(method: &str, status: u16, fields: &[(&str, &str)]) -> Vec<PurgeScope> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let status = StatusCode::from_u16(status).expect("a status");
        let policy = KeyPolicy::default();
        invalidates(&method, URL, status, &headers(fields), &policy).scopes
    }

    fn urls(list: &[&str]) -> Vec<PurgeScope> {
        list.iter().map(|url| PurgeScope::Url((*url).into())).collect()
    }

    #[test]
    fn unsafe_methods_invalidate_their_target() {
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH"] {
            assert_eq!(scopes(method, 200, &[]), urls(&[URL]), "{method}");
            assert_eq!(scopes(method, 302, &[]), urls(&[URL]), "{method}");
            assert_eq!(scopes(method, 404, &[]), [], "{method}");
            assert_eq!(scopes(method, 500, &[]), [], "{method}");
        }
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert_eq!(scopes(method, 200, &[]), [], "{method}");
        }
    }

    #[test]
    fn locations_are_invalidated_on_the_same_origin_only() {
        let fields = &[("location", "/x"), ("content-location", "https://E.org:443/y")];
        assert_eq!(scopes("POST", 201, fields), urls(&[URL, "https://e.org/x", "https://e.org/y"]));
        for elsewhere in [
            "https://other.org/x",
            "http://e.org/x",
            "//other.org/",
            "https://e.org:8443/x",
            "https://e.org@other.org/",
            "mailto:a",
        ] {
            assert_eq!(
                scopes("POST", 201, &[("location", elsewhere)]),
                urls(&[URL]),
                "{elsewhere}"
            );
        }
    }

    #[test]
    fn groups_are_invalidated() {
        let found = scopes("POST", 200, &[("cache-group-invalidation", "\"a\", \"b\"")]);
        assert_eq!(
            found[1..],
            [PurgeScope::Tag("https://e.org a".into()), PurgeScope::Tag("https://e.org b".into()),]
        );
        assert_eq!(scopes("GET", 200, &[("cache-group-invalidation", "\"a\"")]), []);
    }
}
