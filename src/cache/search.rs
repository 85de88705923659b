//! `No-Vary-Search`: which differences of the query do not matter to a response.
//!
//! A response says it, so it takes one look-up to learn it: responses that say it are kept under
//! the query as it then counts ([`NoVarySearch::canonical`]), found by what the path's last
//! response said.

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::directives::combined;

/// The field's name.
pub const NO_VARY_SEARCH: HeaderName = HeaderName::from_static("no-vary-search");

/// What of a query does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoVarySearch {
    /// Whether the order of parameters does not count.
    pub any_order: bool,
    /// Which parameters do not count.
    pub ignored: Ignored,
}

/// Parameters that do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
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
    /// What a response says; `None` when it says nothing, or nothing valid: then all counts.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let joined = combined(headers, &NO_VARY_SEARCH)?;
        let dictionary: Dictionary = Parser::new(&*joined).parse().ok()?;
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

    /// The query as it counts, without `?`. Two queries with one canonical form are answered by
    /// one response.
    pub fn canonical(&self, query: &str) -> String {
        let mut kept: Vec<&str> = query
            .split('&')
            .filter(|part| !part.is_empty() && self.counts(&decoded(part)))
            .collect();
        if self.any_order {
            kept.sort_by_cached_key(|part| decoded(part));
        }
        kept.join("&")
    }

    fn counts(&self, name: &str) -> bool {
        match &self.ignored {
            Ignored::These(names) => !names.iter().any(|listed| listed == name),
            Ignored::AllBut(names) => names.iter().any(|listed| listed == name),
        }
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
    use crate::cache::stored::tests::headers;

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
    }

    #[test]
    fn what_is_not_valid_means_that_all_counts() {
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
}
