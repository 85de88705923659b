//! Finding the prefixes of a URL in a sorted map.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Visits the value of every prefix of `url`, the longest first. The greatest key up to a bound is either a
/// prefix of `url`, or differs from it at some byte; then no prefix of `url` is longer than their common
/// start, where the search continues.
pub(super) fn prefixes_of<V>(
    prefixes: &BTreeMap<Arc<str>, V>,
    url: &str,
    mut visit: impl FnMut(&V),
) {
    let mut bound = Bound::Included(url);
    loop {
        let below = prefixes.range::<str, _>((Bound::Unbounded, bound));
        let Some((prefix, value)) = { below }.next_back() else { return };
        let common = common_length(prefix, url);
        if common == prefix.len() {
            visit(value);
            bound = Bound::Excluded(&url[..common]);
        } else {
            bound = Bound::Included(&url[..common]);
        }
    }
}

/// Visits the value of every prefix that begins with `path` followed by `?`.
pub(super) fn prefixes_within<V>(
    prefixes: &BTreeMap<Arc<str>, V>,
    path: &str,
    mut visit: impl FnMut(&V),
) {
    let query = format!("{path}?");
    let from = (Bound::Included(&*query), Bound::Unbounded);
    for (prefix, value) in prefixes.range::<str, _>(from) {
        if !prefix.starts_with(&query) {
            break;
        }
        visit(value);
    }
}

/// Length of the common start of two strings in bytes, rounded down to a character boundary.
fn common_length(one: &str, other: &str) -> usize {
    let mut common = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    while !other.is_char_boundary(common) {
        common -= 1;
    }
    common
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_walk_finds_exactly_the_prefixes(
            prefixes in proptest::collection::vec("[abé/]{0,6}", 0..20),
            url in "[abé/]{0,8}",
        ) {
            let prefixes: BTreeMap<Arc<str>, usize> =
                prefixes.iter().enumerate().map(|(at, text)| (text.as_str().into(), at)).collect();
            let mut found = Vec::new();
            prefixes_of(&prefixes, &url, |at| found.push(*at));
            let covering = prefixes.iter().filter(|(text, _)| url.starts_with(&***text));
            let mut expected: Vec<usize> = covering.map(|(_, at)| *at).collect();
            expected.reverse();
            prop_assert_eq!(found, expected);
        }
    }
}
