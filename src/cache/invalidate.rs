//! What an unsafe request makes invalid (RFC 9111 §4.4, RFC 9875 §3).

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::key::{UrlParts, url_part};
use super::purge::PurgeScope;
use super::settings::KeyPolicy;
use super::storing::origin_of;
use super::tags::{group_tag, groups};

/// `Cache-Group-Invalidation` (RFC 9875 §3).
pub(crate) const CACHE_GROUP_INVALIDATION: HeaderName =
    HeaderName::from_static("cache-group-invalidation");

/// What is to be purged, hard: a response that RFC 9111 §4.4 invalidates may not be sent without
/// validation, not even stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invalidation {
    /// URLs and groups, each once.
    pub scopes: Vec<PurgeScope>,
}

/// What the response to this request makes invalid: the target and, on the same origin only,
/// what `Location` and `Content-Location` name, and the groups that it says. Nothing for a safe
/// method or an error. `url` is the request's, `scheme://authority/path?query`.
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

/// Methods that ask for no change (RFC 9110 §9.2.1 and the registry); an unknown one may.
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(
        method.as_str(),
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PROPFIND" | "REPORT" | "SEARCH" | "QUERY" | "PRI"
    )
}

/// An absolute URL as it stands in keys under `policy`.
pub(crate) fn under_policy(url: &str, policy: &KeyPolicy) -> String {
    let origin = origin_of(url);
    let (scheme, authority) = origin.split_once("://").unwrap_or(("https", origin));
    let (path, query) = match url[origin.len()..].split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&url[origin.len()..], None),
    };
    url_part(policy, &UrlParts { scheme, authority, path, query })
}

/// `reference` against `base` (RFC 3986 §5.2), without fragment, authority in lower case and
/// without default port; `None` for other schemes than http and https, and for user names.
pub(super) fn resolve(base: &str, reference: &str) -> Option<String> {
    let reference = reference.trim().split('#').next().unwrap_or_default();
    let origin = origin_of(base);
    let (scheme, _) = origin.split_once("://")?;
    let base_path = &base[origin.len()..];
    let base_path_only = base_path.split('?').next().unwrap_or_default();
    let absolute = if has_scheme(reference) {
        reference.to_owned()
    } else if reference.starts_with("//") {
        format!("{scheme}:{reference}")
    } else if reference.starts_with('/') {
        format!("{origin}{}", without_dots(reference))
    } else if reference.is_empty() {
        base.to_owned()
    } else if reference.starts_with('?') {
        format!("{origin}{base_path_only}{reference}")
    } else {
        let folder = base_path_only.rfind('/').map_or("/", |at| &base_path_only[..=at]);
        format!("{origin}{}", without_dots(&format!("{folder}{reference}")))
    };
    normalised(&absolute)
}

fn has_scheme(reference: &str) -> bool {
    let end = reference.find([':', '/', '?']).filter(|at| reference[*at..].starts_with(':'));
    end.is_some_and(|at| reference[..at].starts_with(|c: char| c.is_ascii_alphabetic()))
}

fn normalised(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !matches!(&*scheme, "http" | "https") || authority.is_empty() || authority.contains('@') {
        return None;
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some(under_policy(&format!("{scheme}://{authority}{path}"), &KeyPolicy::default()))
}

/// RFC 3986 §5.2.4, for a path that starts with `/`; what follows `?` stays.
fn without_dots(path: &str) -> String {
    let (path, query) = match path.find('?') {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (i, segment) in segments.iter().enumerate() {
        let last = i + 1 == segments.len();
        match *segment {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
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

    #[test]
    fn references_are_resolved_as_rfc_3986_says() {
        let check = |reference: &str, expected: &str| {
            assert_eq!(resolve(URL, reference).as_deref(), Some(expected), "{reference}");
        };
        check("", URL);
        check("x", "https://e.org/a/x");
        check("../x/./y?z#f", "https://e.org/x/y?z");
        check("../../../x", "https://e.org/x");
        check("..", "https://e.org/");
        check("?q", "https://e.org/a/b?q");
        check("//other.org", "https://other.org/");
        check("HTTP://Other.org:80?q", "http://other.org/?q");
        check("/a:b", "https://e.org/a:b");
        assert_eq!(resolve(URL, "data:text/plain,x"), None);
    }
}
