//! The query in a key: which of its parameters count.
//!
//! Origins read the names of parameters in different ways: decoded, with brackets (`id[]`), in any case, after `;`.
//! If an origin reads a parameter that the key lacks, one client chooses the response of others (cache poisoning).
//! So a parameter counts when in doubt: the worst result is a miss.

use super::settings::{KeyPolicy, QueryPolicy, name_matches};

/// Appends `?` and the parameters of `query` that count.
pub(super) fn push_query(text: &mut String, policy: &KeyPolicy, query: &str) {
    if policy.query == QueryPolicy::All && !policy.sort_query {
        text.push('?');
        return text.push_str(query);
    }
    let mut kept: Vec<&str> = query.split('&').filter(|part| counts(&policy.query, part)).collect();
    // Where `;` separates parameters, too, sorting by `&` could hide their order.
    if policy.sort_query && !query.contains(';') {
        // Stable, and by name only: `a=2&a=1` differs from `a=1&a=2`.
        kept.sort_by(|a, b| folded_name(a).cmp(folded_name(b)));
    }
    for (i, part) in kept.iter().enumerate() {
        text.push(if i == 0 { '?' } else { '&' });
        text.push_str(part);
    }
}

/// Whether a part of the query between two `&` is in the key. A `;` in it separates parameters for some origins and is
/// a part of the value for others.
fn counts(policy: &QueryPolicy, part: &str) -> bool {
    let mut names = part.split(';').map(parameter_name);
    match policy {
        QueryPolicy::All => true,
        QueryPolicy::None => false,
        QueryPolicy::Only(listed) => {
            names.any(|name| listed.iter().any(|pattern| may_be_read_as(pattern, name)))
        }
        QueryPolicy::Except(listed) => {
            !names.all(|name| listed.iter().any(|pattern| name_matches(pattern, name)))
        }
    }
}

fn parameter_name(part: &str) -> &[u8] {
    part.split('=').next().unwrap_or_default().as_bytes()
}

/// Whether some origin takes a parameter or a cookie with this name for one that `pattern` lists. PHP reads ` a.b[]` and `a[b` as
/// `a_b`, ASP.NET ignores the case of letters, and all decode `%61` and `+`.
pub(super) fn may_be_read_as(pattern: &str, name: &[u8]) -> bool {
    let (listed, is_prefix) = match pattern.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (pattern, false),
    };
    let mut read = decoded(name).skip_while(|byte| *byte == b' ');
    let is_begun = listed.bytes().all(|byte| read.next().map(folded) == Some(folded(byte)));
    let is_read = is_begun && (is_prefix || read.next().is_none_or(ends_name));
    is_read || name_matches(pattern, name)
}

/// The name of a parameter as the origins that fold most names into one read it.
fn folded_name(part: &str) -> impl Iterator<Item = u8> {
    let name = decoded(parameter_name(part)).skip_while(|byte| *byte == b' ');
    name.take_while(|byte| !ends_name(*byte)).map(folded)
}

/// Whether a name ends before this byte for some origins: `id[]` and `id[a]` are `id`.
fn ends_name(byte: u8) -> bool {
    byte == b'[' || byte == 0
}

/// One byte for all bytes that some origin reads alike in a name.
fn folded(byte: u8) -> u8 {
    if matches!(byte, b' ' | b'.' | b'[') { b'_' } else { byte.to_ascii_lowercase() }
}

/// The bytes of a name without percent-encoding and with spaces for `+`.
fn decoded(name: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let (byte, after) = rest.split_first()?;
        let encoded = match (byte, after) {
            (b'%', [high, low, ..]) => encoded_byte(*high, *low),
            _ => None,
        };
        rest = if encoded.is_some() { &after[2..] } else { after };
        Some(encoded.unwrap_or(if *byte == b'+' { b' ' } else { *byte }))
    })
}

fn encoded_byte(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(high)? << 4 | digit(low)?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(policy: &KeyPolicy, query: &str, expected: &str) {
        let mut text = String::new();
        push_query(&mut text, policy, query);
        assert_eq!(text, expected, "{query}");
    }

    fn names(list: &[&str]) -> Vec<Box<str>> {
        list.iter().map(|name| Box::from(*name)).collect()
    }

    fn only(list: &[&str]) -> KeyPolicy {
        KeyPolicy { query: QueryPolicy::Only(names(list)), ..KeyPolicy::default() }
    }

    fn except(list: &[&str]) -> KeyPolicy {
        KeyPolicy { query: QueryPolicy::Except(names(list)), ..KeyPolicy::default() }
    }

    #[test]
    fn query_policies() {
        check(&KeyPolicy::default(), "b&a=1&&", "?b&a=1&&");
        check(&KeyPolicy { query: QueryPolicy::None, ..KeyPolicy::default() }, "a=1", "");
        check(&only(&["a"]), "b=1&a=2&aa=3", "?a=2");
        check(&only(&["a*"]), "b=1&a=2&aa=3", "?a=2&aa=3");
        check(&except(&["utm_*", "gclid"]), "utm_x=1&a=2&gclid=9&b", "?a=2&b");
        let sorted = KeyPolicy { sort_query: true, ..KeyPolicy::default() };
        check(&sorted, "b=2&a=2&a=1", "?a=2&a=1&b=2");
    }

    #[test]
    fn a_parameter_counts_however_its_listed_name_is_written() {
        for query in ["i%64=2", "%69%64=2", "ID=2", "id[]=2", "id%5B%5D=2", "id[a][b]=2", "+id=2"] {
            check(&only(&["id"]), &format!("{query}&x=1"), &format!("?{query}"));
        }
        for query in ["page.id=2", "page+id", "page%20id=2", "page[id=2", "page_id%00x=2"] {
            check(&only(&["page_id"]), &format!("{query}&x=1"), &format!("?{query}"));
            check(&only(&["pa*"]), &format!("{query}&x=1"), &format!("?{query}"));
        }
        check(
            &only(&["filter%5Bx%5D", "a b"]),
            "filter%5Bx%5D=1&a+b=1&a",
            "?filter%5Bx%5D=1&a+b=1",
        );
        check(&only(&["id"]), "ide=1&i=2&i%=3&%=4&%6=5&i%64e=6", "");
    }

    #[test]
    fn a_parameter_behind_a_semicolon_counts() {
        check(&only(&["id"]), "x=1;id=2&y=3", "?x=1;id=2");
        check(&only(&["id"]), "x=1;y=2", "");
        check(&except(&["utm_*"]), "id=1&utm_x=1;id=2&utm_y=3", "?id=1&utm_x=1;id=2");
        check(&except(&["utm_*"]), "utm_x=1;utm_y=2&id=1", "?id=1");
        check(&except(&["utm_*"]), "UTM_x=1&utm%5Fx=1", "?UTM_x=1&utm%5Fx=1");
    }

    #[test]
    fn parameters_that_an_origin_may_read_as_one_keep_their_order() {
        let sorted = KeyPolicy { sort_query: true, ..KeyPolicy::default() };
        for query in ["id=1&i%64=2", "i%64=2&id=1", "id=1&ID=2", "ID=2&id=1", "a[x]=1&a[b]=2"] {
            check(&sorted, &format!("z&{query}"), &format!("?{query}&z"));
        }
        check(&sorted, "b=1;a=2&a=1", "?b=1;a=2&a=1");
    }
}
