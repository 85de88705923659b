//! `No-Vary-Search` (draft-ietf-httpbis-no-vary-search): a response names parts of the query that it does not depend
//! on.
//!
//! Such a response is stored under the canonical query, without those parts, and answers each URL with the same
//! canonical query. The response's own field decides, not that of another response of the path. The latest field of a
//! path is stored beside the responses, so that a lookup knows the key:
//!
//! ```text
//! https://e.org/p?a=1                     the response to /p?utm=x&a=1 with No-Vary-Search: params=("utm")
//! https://e.org/p\n(no-vary-search)       its field: a record without content
//! ```
//!
//! The second record is a hint. Without it, a lookup uses the URL as it is, and the request is forwarded at worst.
//! The purge of one URL covers all responses of its path that have the field ([`ALIASED`]), because a node that has
//! lost the hint does not know which of them the URL belongs to.

use http::{HeaderMap, HeaderName, StatusCode};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use crate::fields::Fields;

use super::key::CacheKey;
use super::purge::ALIASED;
use super::query::may_be_read_as;
use super::stored::StoredResponse;

/// The field's name.
pub(crate) const NO_VARY_SEARCH: HeaderName = HeaderName::from_static("no-vary-search");

/// The parts of a query that do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NoVarySearch {
    /// Whether the order of parameters does not count.
    pub any_order: bool,
    /// The parameters that do not count.
    pub ignored: Ignored,
}

/// Parameters that a response does not depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ignored {
    /// These.
    These(Vec<String>),
    /// All but these.
    AllBut(Vec<String>),
}

impl Default for Ignored {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl NoVarySearch {
    /// The rule of a response. `None` if it states none, or none that is valid: then every part of the query counts.
    pub(crate) fn of(headers: &impl Fields) -> Option<Self> {
        let lines: Vec<&[u8]> = headers.lines(&NO_VARY_SEARCH).collect();
        if lines.is_empty() {
            return None;
        }
        let dictionary: Dictionary = Parser::new(&*lines.join(&b", "[..])).parse().ok()?;
        let any_order = match dictionary.get("key-order") {
            None => false,
            Some(member) => flag(member)?,
        };
        let excepted = match dictionary.get("except") {
            None => None,
            Some(member) => Some(names(member)?),
        };
        let ignored = match (dictionary.get("params"), excepted) {
            (None, None) => Ignored::default(),
            (None, Some(_)) => return None,
            (Some(member), excepted) => match (flag(member), names(member), excepted) {
                (Some(true), _, excepted) => Ignored::AllBut(excepted.unwrap_or_default()),
                (Some(false), _, None) => Ignored::default(),
                (None, Some(listed), None) => Ignored::These(listed),
                _ => return None,
            },
        };
        let found = Self { any_order, ignored };
        (found != Self::default()).then_some(found)
    }

    /// The canonical query, without `?`. One response answers all queries with the same canonical query. Two queries
    /// that mean the same may differ in it, because parameters are kept as they are written.
    pub(crate) fn canonical(&self, query: &str) -> String {
        let mut kept: Vec<&str> = query
            .split('&')
            .filter(|part| !part.is_empty() && part.split(';').any(|piece| self.counts(piece)))
            .collect();
        if self.any_order {
            kept.sort_by_cached_key(|part| decoded(part));
        }
        kept.join("&")
    }

    /// The key under which a response with this field is stored. `exact`: the key of its request.
    pub(crate) fn key(&self, exact: &CacheKey) -> CacheKey {
        let (path, query, parts) = pieces(exact);
        let Some(query) = query else { return exact.clone() };
        let query = self.canonical(query);
        let mark = if query.is_empty() { "" } else { "?" };
        CacheKey::new(format!("{path}{mark}{query}{parts}"))
    }

    /// Whether a parameter counts. A `;` separates parameters for some origins, and names are read in different ways: as
    /// in a key, a parameter counts when in doubt.
    fn counts(&self, parameter: &str) -> bool {
        let name = decoded(parameter);
        match &self.ignored {
            Ignored::These(names) => !names.contains(&name),
            Ignored::AllBut(names) => {
                let raw = parameter.split('=').next().unwrap_or_default().as_bytes();
                names.iter().any(|listed| *listed == name || may_be_read_as(listed, raw))
            }
        }
    }
}

/// The key of the record with the latest `No-Vary-Search` of a path. `None` for a URL without a query, which the
/// field does not change.
pub(crate) fn rule_key(exact: &CacheKey) -> Option<CacheKey> {
    let (path, query, parts) = pieces(exact);
    query?;
    // No field has such a name, so that no other key has this text.
    Some(CacheKey::new(format!("{path}\n(no-vary-search){parts}")))
}

/// The record with the `No-Vary-Search` of a stored response, to be stored beside it. `None` if it has no such field.
pub(crate) fn rule_record(stored: &StoredResponse) -> Option<StoredResponse> {
    if !stored.is_aliased() {
        return None;
    }
    let text = format!("{}?", stored.key.split(['?', '\n']).next().unwrap_or_default());
    let parts = stored.key.find('\n').map_or("", |at| &stored.key[at..]);
    let key = rule_key(&CacheKey::new(text + parts))?;
    let mut headers = HeaderMap::new();
    for line in stored.headers.values(&NO_VARY_SEARCH) {
        headers.append(NO_VARY_SEARCH, line);
    }
    Some(StoredResponse {
        key: key.text,
        variant: "".into(),
        status: StatusCode::OK,
        headers: headers.into(),
        tags: [ALIASED].into(),
        complete_length: Some(0),
        parts: None,
        ..stored.clone()
    })
}

/// The key under which a response to a request with the key `exact` may be stored. `remembered`: the record of
/// [`rule_key`].
pub(crate) fn looked_for(exact: &CacheKey, remembered: &StoredResponse) -> CacheKey {
    match NoVarySearch::of(&remembered.headers) {
        Some(rule) => rule.key(exact),
        None => exact.clone(),
    }
}

/// Whether a stored response answers a request with the key `exact`, by its own `No-Vary-Search`.
pub(crate) fn answers(stored: &StoredResponse, exact: &CacheKey) -> bool {
    if stored.key == exact.text {
        return true;
    }
    let rule = if stored.is_aliased() { NoVarySearch::of(&stored.headers) } else { None };
    rule.is_some_and(|rule| rule.key(exact).text == stored.key)
}

/// Whether an update has another `No-Vary-Search` than `stored`. It cannot be applied then, because the key of
/// `stored` follows from its own field.
pub(super) fn contradicts(stored: &StoredResponse, update: &HeaderMap) -> bool {
    stored.is_aliased()
        && update.contains_key(NO_VARY_SEARCH)
        && NoVarySearch::of(update) != NoVarySearch::of(&stored.headers)
}

/// The parts of a key: the URL up to the query, the query, and all after the URL, which begins with a line feed.
fn pieces(key: &CacheKey) -> (&str, Option<&str>, &str) {
    let end = key.text.find('\n').unwrap_or(key.text.len());
    let (url, parts) = key.text.split_at(end);
    match url.split_once('?') {
        Some((path, query)) => (path, Some(query), parts),
        None => (url, None, parts),
    }
}

fn flag(member: &ListEntry) -> Option<bool> {
    match member {
        ListEntry::Item(item) => item.bare_item.as_boolean(),
        ListEntry::InnerList(_) => None,
    }
}

fn names(member: &ListEntry) -> Option<Vec<String>> {
    let ListEntry::InnerList(list) = member else { return None };
    let name = |item: &sfv::Item| match &item.bare_item {
        BareItem::String(name) => Some(decoded(name.as_str())),
        _ => None,
    };
    list.items.iter().map(name).collect()
}

/// A parameter's name as a form would decode it.
fn decoded(part: &str) -> String {
    let name = part.split('=').next().unwrap_or_default();
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let hex = |byte: u8| char::from(byte).to_digit(16);
        match (first, after) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push((high * 16 + low) as u8);
                    rest = &after[2..];
                }
                _ => bytes.push(b'%'),
            },
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::stored::tests::{headers, now};
    use crate::cache::{
        Freshened, PurgeSequence, Settings, StorageContext, StoreDecision, UpstreamExchange,
        freshen, may_store,
    };
    use http::Method;

    fn check(field: &str, query: &str, expected: &str) {
        let said = NoVarySearch::of(&headers(&[("no-vary-search", field)]));
        assert_eq!(said.expect("valid").canonical(query), expected, "{field}");
    }

    #[test]
    fn queries_are_reduced_to_what_counts() {
        check("key-order", "b=1&a=2&a=1", "a=2&a=1&b=1");
        check("params=(\"utm\")", "utm=1&a=2", "a=2");
        check("params=(\"a b\")", "a+b=1&a%20b=2&c", "c");
        check("params", "a=1&b=2", "");
        check("params, except=(\"a\")", "a=1&b=2", "a=1");
        // Some origins read `id` in all of them.
        check("params=(\"utm\")", "utm=1;id=2&utm=3;utm=4&a", "utm=1;id=2&a");
        check(
            "params, except=(\"id\")",
            "x=1;id=2&ID=3&id[]=4&%69d=5&x=6",
            "x=1;id=2&ID=3&id[]=4&%69d=5",
        );
    }

    #[test]
    fn an_invalid_field_means_that_all_parameters_count() {
        for field in [
            "",
            "params=a",
            "except=(\"a\")",
            "params=(a)",
            "key-order=1",
            "params=(\"a\"), except=(\"b\")",
            "params=?0",
        ] {
            assert_eq!(NoVarySearch::of(&headers(&[("no-vary-search", field)])), None, "{field}");
        }
    }

    /// A stored response for this URL, in a cache that follows rules.
    fn stored(url: &str, field: &str) -> StoredResponse {
        let settings = Settings { no_vary_search: true, ..Settings::default() };
        let key = CacheKey::new(url);
        let selecting = &HeaderMap::new();
        let place = StorageContext {
            key: &key,
            selecting,
            codings: &[],
            site: "e",
            sequence: PurgeSequence(7),
        };
        let exchange = UpstreamExchange {
            version: http::Version::HTTP_11,
            method: &Method::GET,
            request: &HeaderMap::new(),
            status: StatusCode::OK,
            response: &headers(&[
                ("cache-control", "max-age=60"),
                ("etag", "\"a\""),
                ("no-vary-search", field),
            ]),
            request_time: now(),
            response_time: now(),
        };
        match may_store(&exchange, &place, &settings) {
            StoreDecision::Store(stored) => *stored,
            StoreDecision::Refuse { reason, .. } => panic!("not stored: {reason:?}"),
        }
    }

    #[test]
    fn a_response_answers_by_its_own_word_alone() {
        let response = stored("https://e.org/p?utm=1&a=2\nx: y", "params=(\"utm\")");
        assert_eq!(&*response.key, "https://e.org/p?a=2\nx: y");
        let remembered = rule_record(&response).expect("a rule");
        assert_eq!(&*remembered.key, "https://e.org/p\n(no-vary-search)\nx: y");
        for (url, expected) in [
            ("https://e.org/p?utm=9&a=2\nx: y", true),
            ("https://e.org/p?a=2\nx: y", true),
            ("https://e.org/p?a=2&b=3\nx: y", false),
            ("https://e.org/p\nx: y", false),
            ("https://e.org/p?a=2\nx: z", false),
        ] {
            let exact = CacheKey::new(url);
            assert_eq!(answers(&response, &exact), expected, "{url}");
            let found = looked_for(&exact, &remembered).text == response.key;
            assert_eq!(found, expected, "{url}");
            if exact.text.contains('?') {
                let place = rule_key(&exact).expect("a query").text;
                assert_eq!(place == remembered.key, !url.ends_with('z'), "{url}");
            }
        }
        // Another rule's place: this one never said that it answers there.
        let other = stored("https://e.org/p", "params=(\"utm\")");
        assert!(!answers(
            &StoredResponse { tags: [].into(), ..other },
            &CacheKey::new("https://e.org/p?utm=1")
        ));
        let plain = stored("https://e.org/p?a=2", "");
        assert!(!plain.is_aliased() && rule_record(&plain).is_none());
        assert_eq!(&*plain.key, "https://e.org/p?a=2");
    }

    #[test]
    fn an_update_that_says_another_rule_is_none() {
        let response = stored("https://e.org/p?utm=1", "params=(\"utm\")");
        let settings = Settings { no_vary_search: true, ..Settings::default() };
        let updated = |fields: &[(&str, &str)]| {
            let exchange = UpstreamExchange {
                version: http::Version::HTTP_11,
                method: &Method::GET,
                request: &HeaderMap::new(),
                status: StatusCode::NOT_MODIFIED,
                response: &headers(fields),
                request_time: now(),
                response_time: now(),
            };
            match freshen(&response, &exchange, PurgeSequence(8), &settings) {
                Freshened::Updated(updated) => Some(updated),
                _ => None,
            }
        };
        let same = updated(&[("no-vary-search", "params=(\"utm\" )")]).expect("updated");
        assert!(same.is_aliased());
        assert!(updated(&[("cache-control", "max-age=9")]).expect("updated").is_aliased());
        assert!(updated(&[("no-vary-search", "params")]).is_none());
    }
}
