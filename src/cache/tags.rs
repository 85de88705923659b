//! The tags of a response, which purges by tag are matched against.
//!
//! They come from `Surrogate-Key` (words), `Cache-Tag` (a list with commas) and `Cache-Groups` (RFC 9875: a
//! structured list of strings), and are kept as hashes.

use http::{HeaderMap, HeaderName, HeaderValue};
use sfv::{BareItem, List, ListEntry, Parser};

use super::packed::TagHashes;
use super::purge::tag_hash;

/// `Surrogate-Key`: tags separated by white space.
pub(crate) const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
/// `Cache-Tag`: tags separated by commas.
pub(crate) const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
/// `Cache-Groups` (RFC 9875 §2).
pub(crate) const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");

/// The hashes of a response's tags, sorted, each once. Groups are per origin (RFC 9875 §2), so
/// they are hashed with `origin`, `scheme://authority`.
///
/// `of_rule`: tags that the rule adds.
pub(crate) fn tags(headers: &HeaderMap, origin: &str, of_rule: &[Box<str>]) -> TagHashes {
    let mut hashes: Vec<u64> = of_rule.iter().map(|tag| tag_hash(tag)).collect();
    let words = |line: &HeaderValue| line.to_str().unwrap_or_default().to_owned();
    for line in headers.get_all(SURROGATE_KEY).iter().map(words) {
        hashes.extend(line.split_ascii_whitespace().map(tag_hash));
    }
    for line in headers.get_all(CACHE_TAG).iter().map(words) {
        let listed = line.split(',').map(str::trim).filter(|tag| !tag.is_empty());
        hashes.extend(listed.map(tag_hash));
    }
    hashes.extend(groups(headers, &CACHE_GROUPS).iter().map(|g| tag_hash(&group_tag(origin, g))));
    hashes.sort_unstable();
    hashes.dedup();
    hashes.into()
}

/// A group of RFC 9875 as a tag, to be purged as [`super::PurgeScope::Tag`].
pub(crate) fn group_tag(origin: &str, group: &str) -> String {
    format!("{origin} {group}")
}

/// The strings of a structured list; none if the field is not valid, and members of other
/// types are ignored (RFC 9875 §2).
pub(super) fn groups(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let Some(joined) = super::directives::combined(headers, name) else { return Vec::new() };
    let Ok(list) = Parser::new(&*joined).parse::<List>() else { return Vec::new() };
    let strings = list.into_iter().filter_map(|member| match member {
        ListEntry::Item(item) => match item.bare_item {
            BareItem::String(group) => Some(group.as_str().to_owned()),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    });
    strings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&HeaderName, &str)]) -> TagHashes {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a value"));
        }
        tags(&headers, "https://e.org", &[])
    }

    fn hashes(tags: &[&str]) -> TagHashes {
        let mut hashes: Vec<u64> = tags.iter().map(|tag| tag_hash(tag)).collect();
        hashes.sort_unstable();
        hashes.into()
    }

    #[test]
    fn tags_come_from_all_three_fields() {
        assert_eq!(
            of(&[(&SURROGATE_KEY, "a  b\tc"), (&SURROGATE_KEY, "a")]),
            hashes(&["a", "b", "c"])
        );
        assert_eq!(of(&[(&CACHE_TAG, "a, b c ,,d")]), hashes(&["a", "b c", "d"]));
        let groups = of(&[(&CACHE_GROUPS, "\"x\", y, \"z\";a")]);
        assert_eq!(groups, hashes(&["https://e.org x", "https://e.org z"]));
    }

    #[test]
    fn groups_that_are_not_a_structured_list_are_ignored() {
        assert!(of(&[(&CACHE_GROUPS, "\"x\", &&")]).is_empty());
    }

    #[test]
    fn a_thousand_tags_are_kept() {
        let all: Vec<String> = (0..1500).map(|n| format!("tag-{n}")).collect();
        assert_eq!(of(&[(&SURROGATE_KEY, &all.join(" "))]).len(), 1500);
    }
}
