//! Cache keys (RFC 9111 §2): requests with the same key are answered by the same stored responses.

use std::fmt;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use super::query::{may_be_read_as, push_query};
use super::settings::KeyPolicy;
use crate::planted::{self, Bug};

/// The 128-bit XXH3 of a key's text, by which the store finds records. It is stored on disk and the
/// same in every build. The text in the record distinguishes two keys with the same hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyHash(pub u128);

impl KeyHash {
    /// The hash of `text`.
    pub(crate) fn of(text: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(text))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A key: its text and the hash of it. GET and HEAD requests share keys.
///
/// ```text
/// https://www.example.org/a/b?q=1            the URL part: scheme, authority, path, query
/// https://www.example.org/a/b?q=1\nsplit main  and the group of the visitor, if the rule has groups
/// https://www.example.org/a/b?q=1\nfield: v  and the configured fields and cookies, one per line
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CacheKey {
    /// Always has a scheme and an authority.
    pub text: Box<str>,
    /// `KeyHash::of(text)`.
    pub hash: KeyHash,
}

impl CacheKey {
    /// The key with this text.
    pub(crate) fn new(text: impl Into<Box<str>>) -> Self {
        let text = text.into();
        Self { hash: KeyHash::of(text.as_bytes()), text }
    }

    /// The key of a request for `url` with these fields under `policy`, from a visitor in `group`.
    pub(crate) fn of(
        policy: &KeyPolicy,
        url: &UrlParts<'_>,
        headers: &HeaderMap,
        group: Option<&str>,
    ) -> Self {
        let mut text = url_part(policy, url);
        if let Some(group) = group.filter(|_| !planted::has(Bug::GroupsShared)) {
            // A line of a field has a colon before its first space.
            text.push_str("\nsplit ");
            text.push_str(group);
        }
        for name in &policy.headers {
            for value in headers.get_all(name) {
                push_part(&mut text, name.as_str(), value.as_bytes());
            }
        }
        for wanted in &policy.cookies {
            for (name, value) in cookies(headers) {
                if name == wanted.as_bytes() {
                    text.push_str("\ncookie");
                    push_part(&mut text, wanted, value);
                } else if may_be_read_as(wanted, name) {
                    text.push_str("\ncookie ");
                    push_bytes(&mut text, name);
                    push_part(&mut text, wanted, value);
                }
            }
        }
        Self::new(text)
    }

    /// The URL part, which purges by URL and by prefix are matched against.
    pub(crate) fn url(&self) -> &str {
        self.text.split('\n').next().unwrap_or_default()
    }
}

/// The hash under which a response is stored: that of its key, or, if it varies, of its key and the
/// canonical values of its selecting fields.
pub(crate) fn variant_hash(key: &str, values: &str) -> KeyHash {
    match values.is_empty() {
        true => KeyHash::of(key.as_bytes()),
        false => KeyHash::of(format!("{key}\n\n{values}").as_bytes()),
    }
}

/// The parts of a request's normalised URL that a key is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UrlParts<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host and port. The key has it in lower case, without the scheme's default port.
    pub authority: &'a str,
    /// Empty is `/`.
    pub path: &'a str,
    /// Without its `?`.
    pub query: Option<&'a str>,
}

/// `scheme://authority/path?query` as the key has it.
pub(crate) fn url_part(policy: &KeyPolicy, url: &UrlParts<'_>) -> String {
    let UrlParts { scheme, authority, path, query } = *url;
    // Exact in the usual case, so that turning it into a box does not allocate again.
    let query_bytes = query.map_or(0, |query| 1 + query.len());
    let mut text =
        String::with_capacity(scheme.len() + 3 + authority.len() + path.len().max(1) + query_bytes);
    text.push_str(scheme);
    text.push_str("://");
    let start = text.len();
    text.push_str(without_default_port(scheme, authority));
    text[start..].make_ascii_lowercase();
    text.push_str(if path.is_empty() { "/" } else { path });
    if let Some(query) = query {
        push_query(&mut text, policy, query);
    }
    text
}

fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let port = if scheme == "https" { ":443" } else { ":80" };
    authority.strip_suffix(port).unwrap_or(authority)
}

/// Appends a line: field values contain no line feed. A byte beyond ASCII becomes the character with
/// its number, so that different values give different texts.
fn push_part(text: &mut String, name: &str, value: &[u8]) {
    text.push('\n');
    text.push_str(name);
    text.push_str(": ");
    push_bytes(text, value);
}

pub(super) fn push_bytes(text: &mut String, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(ascii) if value.is_ascii() => text.push_str(ascii),
        _ => text.extend(value.iter().map(|byte| char::from(*byte))),
    }
}

/// The value of a request's first cookie with this name.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    cookies(headers).find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value)
}

/// The cookies of a request, name and value.
pub(super) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers
        .get_all(COOKIE)
        .into_iter()
        .map(HeaderValue::as_bytes)
        .flat_map(|line| line.split(|byte| *byte == b';'))
        .map(|pair| {
            let pair = pair.trim_ascii();
            match pair.iter().position(|byte| *byte == b'=') {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &[][..]),
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn key(policy: &KeyPolicy, url: &str, headers: &HeaderMap) -> String {
        let (scheme, rest) = url.split_once("://").expect("a scheme");
        let (authority, path) = rest.split_at(rest.find('/').expect("a path"));
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        CacheKey::of(policy, &UrlParts { scheme, authority, path, query }, headers, None)
            .text
            .into()
    }

    fn check(policy: &KeyPolicy, url: &str, expected: &str) {
        assert_eq!(key(policy, url, &HeaderMap::new()), expected);
    }

    #[test]
    fn authority_is_compared_without_case_and_default_port() {
        let policy = KeyPolicy::default();
        check(&policy, "https://WWW.Example.org:443/A?b=C", "https://www.example.org/A?b=C");
        check(&policy, "http://example.org:80/", "http://example.org/");
        check(&policy, "http://example.org:443/", "http://example.org:443/");
        check(&policy, "https://e.org/?", "https://e.org/?");
    }

    #[test]
    fn configured_fields_and_cookies_are_parts() {
        let policy = KeyPolicy {
            headers: vec![HeaderName::from_static("x-device")],
            cookies: vec!["plan".into()],
            ..KeyPolicy::default()
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-device", "tv".parse().expect("a value"));
        headers.insert(COOKIE, "a=b; plan=gold; planet=x".parse().expect("a value"));
        let with = key(&policy, "http://e/p", &headers);
        assert_eq!(with, "http://e/p\nx-device: tv\ncookie\nplan: gold");
        assert_ne!(with, key(&policy, "http://e/p", &HeaderMap::new()));
        assert_eq!(CacheKey::new(with).url(), "http://e/p");
        // PHP reads `pl%61n`, `plan[]` and `plan[` before any byte as `plan`.
        for (other, text) in [
            (&b"pl%61n"[..], "pl%61n"),
            (&b"plan[]"[..], "plan[]"),
            (&b"plan[\xff]"[..], "plan[\u{ff}]"),
        ] {
            let cookie = HeaderValue::from_bytes(&[other, b"=gold"].concat()).expect("a value");
            headers.insert(COOKIE, cookie);
            let with = key(&policy, "http://e/p", &headers);
            assert_eq!(with, format!("http://e/p\nx-device: tv\ncookie {text}\nplan: gold"));
        }
    }

    #[test]
    fn the_group_of_the_visitor_is_the_second_line() {
        let policy =
            KeyPolicy { headers: vec![HeaderName::from_static("x")], ..KeyPolicy::default() };
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x"), "1".parse().unwrap())]);
        let url = UrlParts { scheme: "http", authority: "e", path: "/p", query: Some("q") };
        let of = |group| CacheKey::of(&policy, &url, &headers, group);
        let key = of(Some("canary"));
        assert_eq!(&*key.text, "http://e/p?q\nsplit canary\nx: 1");
        assert_eq!(key.url(), of(None).url());
        assert_ne!(key.hash, of(Some("main")).hash);
    }

    #[test]
    fn bytes_beyond_ascii_stay_apart() {
        let policy =
            KeyPolicy { headers: vec![HeaderName::from_static("x")], ..KeyPolicy::default() };
        let with = |bytes: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("x", HeaderValue::from_bytes(bytes).expect("a value"));
            key(&policy, "http://e/p", &headers)
        };
        assert_ne!(with(b"\xff"), with(b"\xfe"));
        assert_ne!(with(b"\xc3\xbc"), with(b"\xfc"));
    }
}
