//! `Vary`: selecting the stored response for a request (RFC 9111 §4.1).
//!
//! If responses for a key have `Vary`, the record under the key's hash is a [`VaryList`]: each set of
//! selecting fields, newest first, with its variants. A variant is stored under the hash of the key
//! with the canonical values of its selecting fields:
//!
//! ```text
//! https://www.example.org/a\n\naccept-encoding: br,gzip\naccept-language: de,en
//! └── key ────────────────┘   └── canonical values: StoredResponse::variant ──┘
//! ```

use std::fmt::Write;

use http::header::{
    ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_LANGUAGE, COOKIE, REFERER, USER_AGENT,
    VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::directives::{MemberTexts, combined};
use super::key::{CacheKey, KeyHash, push_bytes};
use super::stored::StoredResponse;
use crate::fields::{Fields, members, qvalue};

/// The fields in which a client names a dictionary for the codings dcb and dcz (RFC 9842 §2.2, §2.3). A shared response is never requested with
/// these codings, so that it does not depend on the dictionary.
pub(crate) const OF_DICTIONARIES: [HeaderName; 2] =
    [HeaderName::from_static("available-dictionary"), HeaderName::from_static("dictionary-id")];

/// The selecting header fields of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Vary {
    /// No `Vary` field: the response matches every request for the key.
    Nothing,
    /// The selecting fields, sorted and without duplicates.
    Fields(Box<[HeaderName]>),
    /// `*` or an invalid member: the response matches no other request.
    Star,
}

impl Vary {
    /// From all lines of `Vary`. `Accept-Encoding` selects nothing: origins are asked with the site's own, and
    /// every coding is made of the one stored response. Neither do [`OF_DICTIONARIES`], which origins do not get.
    pub(crate) fn of(headers: &impl Fields) -> Self {
        let mut fields = Vec::new();
        for line in headers.lines(&VARY) {
            for part in members(line) {
                match HeaderName::from_bytes(part) {
                    Ok(ACCEPT_ENCODING) => {}
                    Ok(name) if OF_DICTIONARIES.contains(&name) => {}
                    Ok(name) if part != b"*" => fields.push(name),
                    _ => return Self::Star,
                }
            }
        }
        if fields.is_empty() {
            return Self::Nothing;
        }
        fields.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        fields.dedup();
        Self::Fields(fields.into())
    }
}

/// The variants under one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VaryList {
    /// Newest first. Usually one: an origin rarely sends different `Vary` fields for one URL.
    pub sets: Vec<VarySet>,
}

/// One set of selecting fields and the variants that were stored for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VarySet {
    /// Sorted, without duplicates.
    pub fields: Box<[HeaderName]>,
    /// Newest first. All sets of a list together have at most `variants_max`.
    pub variants: Vec<Variant>,
}

/// One stored variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    /// The hash of its record.
    pub hash: KeyHash,
    /// The variant's `Content-Language` in lower case, if that is a single tag and `Accept-Language` is a selecting field.
    pub language: Option<Box<str>>,
    /// Hash of the canonical values of the other selecting fields.
    pub others: u64,
}

/// A stored response that may match a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The hash of its record.
    pub hash: KeyHash,
    /// The properties that a record must have.
    expected: Expected,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    Values(Box<str>),
    /// `others`: the canonical values of the selecting fields but `Accept-Language`.
    Language {
        language: Box<str>,
        others: Box<str>,
    },
}

impl Candidate {
    /// Whether `stored` is this candidate, and not a response of another key with the same hash.
    pub(crate) fn fits(&self, key: &CacheKey, stored: &StoredResponse) -> bool {
        stored.key == key.text
            && match &self.expected {
                Expected::Values(values) => *stored.variant == **values,
                Expected::Language { language, others } => {
                    content_language(&stored.headers).as_ref() == Some(language)
                        && without_language(&stored.variant) == **others
                }
            }
    }
}

/// The hash of the variant for these request fields, and their canonical values. `codings` are the
/// content codings to which `Accept-Encoding` is normalised, in order of preference.
pub(crate) fn variant_key(
    key: &CacheKey,
    fields: &[HeaderName],
    headers: &HeaderMap,
    codings: &[&str],
) -> (KeyHash, Box<str>) {
    let mut text = String::with_capacity(key.text.len() + 64);
    text.push_str(&key.text);
    text.push_str("\n\n");
    let start = text.len();
    push_values(&mut text, fields, headers, codings);
    let hash = KeyHash::of(text.as_bytes());
    (hash, text[start..].into())
}

impl VaryList {
    /// The hashes of the records of all variants.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = KeyHash> {
        self.sets.iter().flat_map(|set| set.variants.iter().map(|variant| variant.hash))
    }

    /// Adds a stored variant. Returns the hashes of variants that are dropped at `variants_max`.
    pub(crate) fn add(
        &mut self,
        fields: &[HeaderName],
        variant: Variant,
        variants_max: usize,
    ) -> Vec<KeyHash> {
        let mut set = match self.sets.iter().position(|set| *set.fields == *fields) {
            Some(at) => self.sets.remove(at),
            None => VarySet { fields: fields.into(), variants: Vec::new() },
        };
        set.variants.retain(|known| known.hash != variant.hash);
        set.variants.insert(0, variant);
        self.sets.insert(0, set);
        let mut dropped = Vec::new();
        while self.sets.iter().map(|set| set.variants.len()).sum::<usize>() > variants_max.max(1) {
            let oldest = self.sets.last_mut().expect("a sum above zero has a set");
            dropped.extend(oldest.variants.pop().map(|variant| variant.hash));
            if oldest.variants.is_empty() {
                self.sets.pop();
            }
        }
        dropped
    }

    /// All selecting fields of the list.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &HeaderName> {
        self.sets.iter().flat_map(|set| &set.fields)
    }

    /// The candidates in order: the exact variant of each set, newest set first; then, if
    /// `select_language`, variants in the preferred language of the request.
    pub(crate) fn candidates(
        &self,
        key: &CacheKey,
        headers: &HeaderMap,
        codings: &[&str],
        select_language: bool,
    ) -> Vec<Candidate> {
        let exact = self.sets.iter().map(|set| {
            let (hash, values) = variant_key(key, &set.fields, headers, codings);
            Candidate { hash, expected: Expected::Values(values) }
        });
        let mut candidates: Vec<_> = exact.collect();
        if select_language && let Some(wanted) = preferred_language(headers) {
            let sets = self.sets.iter().filter(|set| set.fields.contains(&ACCEPT_LANGUAGE));
            for set in sets {
                let others = other_values(&set.fields, headers, codings);
                let hash = others_hash(&others);
                let in_language = set.variants.iter().filter(|variant| {
                    variant.others == hash && variant.language.as_deref() == Some(&*wanted)
                });
                candidates.extend(in_language.map(|variant| Candidate {
                    hash: variant.hash,
                    expected: Expected::Language {
                        language: wanted.clone(),
                        others: others.as_str().into(),
                    },
                }));
            }
        }
        candidates
    }
}

impl Variant {
    /// The list entry of a variant stored under `hash`. `fields` are its selecting fields; `request` has
    /// their values.
    pub(crate) fn new(
        hash: KeyHash,
        fields: &[HeaderName],
        request: &HeaderMap,
        response: &impl Fields,
        codings: &[&str],
    ) -> Self {
        let by_language = fields.contains(&ACCEPT_LANGUAGE);
        Self {
            hash,
            language: if by_language { content_language(response) } else { None },
            others: others_hash(&other_values(fields, request, codings)),
        }
    }
}

/// The canonical values of the selecting fields but `Accept-Language`.
fn other_values(fields: &[HeaderName], headers: &HeaderMap, codings: &[&str]) -> String {
    let others: Vec<_> = fields.iter().filter(|name| **name != ACCEPT_LANGUAGE).cloned().collect();
    let mut text = String::new();
    push_values(&mut text, &others, headers, codings);
    text
}

/// Selects candidates only, because a client can choose values with the hash of others: [`Candidate::fits`] compares the
/// values.
fn others_hash(others: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(others.as_bytes())
}

/// The canonical values of a stored variant but that of `Accept-Language`.
fn without_language(values: &str) -> String {
    let is_other = |line: &&str| line.split(": ").next() != Some(ACCEPT_LANGUAGE.as_str());
    let others: Vec<_> = values.split('\n').filter(is_other).collect();
    others.join("\n")
}

/// `Content-Language` in lower case when it is one tag.
fn content_language(headers: &impl Fields) -> Option<Box<str>> {
    let mut lines = headers.lines(&CONTENT_LANGUAGE);
    let tag = std::str::from_utf8(lines.next()?).ok()?.trim();
    let single = lines.next().is_none() && !tag.is_empty() && !tag.contains(',');
    single.then(|| tag.to_ascii_lowercase().into())
}

/// The language with the uniquely highest weight in `Accept-Language`.
fn preferred_language(headers: &HeaderMap) -> Option<Box<str>> {
    let list = combined(headers, &ACCEPT_LANGUAGE)?.to_ascii_lowercase();
    let languages = languages(&list)?;
    let highest = languages.iter().map(|(_, weight)| *weight).max().filter(|weight| *weight > 0)?;
    let mut preferred = languages.iter().filter(|(_, weight)| *weight == highest);
    let (language, _) = preferred.next()?;
    (preferred.next().is_none() && *language != "*").then(|| (*language).into())
}

/// Appends the canonical values of the selecting fields, one line for each. The line of a field that the request does
/// not have is its name alone: variants of different selecting fields are stored under different texts.
fn push_values(text: &mut String, fields: &[HeaderName], headers: &HeaderMap, codings: &[&str]) {
    for (at, name) in fields.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        text.push_str(name.as_str());
        let is_reduced = *name == ACCEPT_ENCODING && !codings.is_empty();
        if !is_reduced && !headers.contains_key(name) {
            continue;
        }
        text.push_str(": ");
        if is_reduced {
            push_accept_encoding(text, headers, codings);
        } else if *name != ACCEPT_LANGUAGE || !push_languages(text, headers) {
            push_list(text, headers, name);
        }
    }
}

/// Appends `Accept-Encoding`, reduced to what selects a response: those of `codings` that the client
/// accepts, in their order, and whether it refuses the identity coding. Requests with the same text
/// accept each other's responses (RFC 9110 §12.5.3). One pass without allocation, because every hit
/// that varies by coding calls it. Only the first seven codings are considered.
fn push_accept_encoding(text: &mut String, headers: &HeaderMap, codings: &[&str]) {
    const IDENTITY: usize = 7;
    let codings = &codings[..codings.len().min(IDENTITY)];
    let mut weights: [Option<u16>; IDENTITY + 1] = [None; IDENTITY + 1];
    let mut any = None;
    for line in headers.get_all(ACCEPT_ENCODING) {
        for member in members(line.as_bytes()) {
            let (name, weight) = name_and_weight(member);
            let slot = match codings.iter().position(|coding| is_coding(name, coding)) {
                Some(at) => &mut weights[at],
                None if name == b"*" => &mut any,
                None if is_coding(name, "identity") => &mut weights[IDENTITY],
                None => continue,
            };
            // If a coding is repeated, its first weight applies.
            *slot = slot.or(Some(weight));
        }
    }
    let mut first = true;
    for (coding, weight) in codings.iter().zip(weights) {
        if weight.or(any).is_some_and(|weight| weight > 0) {
            text.push_str(if std::mem::take(&mut first) { "" } else { "," });
            text.push_str(coding);
        }
    }
    if weights[IDENTITY].or(any) == Some(0) {
        text.push_str(if first { "" } else { "," });
        text.push_str("identity;q=0");
    }
}

/// `x-gzip` is `gzip` (RFC 9110 §8.4.1.3).
fn is_coding(name: &[u8], coding: &str) -> bool {
    let plain = match name.split_at_checked(2) {
        Some((b"x-" | b"X-", rest)) => rest,
        _ => name,
    };
    plain.eq_ignore_ascii_case(coding.as_bytes())
}

fn name_and_weight(member: &[u8]) -> (&[u8], u16) {
    let Some(at) = member.iter().position(|byte| *byte == b';') else {
        return (member.trim_ascii(), 1000);
    };
    let weight = member[at + 1..].split(|byte| *byte == b';').find_map(|part| {
        let (q, value) = part.trim_ascii().split_at_checked(2)?;
        let weight = q.eq_ignore_ascii_case(b"q=").then(|| qvalue(value));
        weight.map(|weight| weight.unwrap_or(1000))
    });
    (member[..at].trim_ascii(), weight.unwrap_or(1000))
}

/// The languages of an `Accept-Language` in lower case, with their weights in thousandths. `None` if a member is anything but
/// a language and a valid weight: origins read such a list in different ways.
fn languages(list: &str) -> Option<Vec<(&str, u16)>> {
    list.split(',').map(language).collect()
}

fn language(member: &str) -> Option<(&str, u16)> {
    let (range, weight) = match member.split_once(';') {
        None => (member.trim_ascii(), 1000),
        Some((range, weight)) => {
            let weight = weight.trim_ascii().strip_prefix("q=")?;
            (range.trim_ascii(), qvalue(weight.as_bytes())?)
        }
    };
    let is_in_a_range = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'*');
    (!range.is_empty() && range.bytes().all(is_in_a_range)).then_some((range, weight))
}

/// Appends `Accept-Language` without case, sorted by descending weight, then by name: the order of equal weights has no
/// meaning (RFC 9110 §12.5.4). Returns whether the field is a valid list; otherwise, nothing is appended. The appended
/// text is a valid list too, so that no invalid one is equal to it.
fn push_languages(text: &mut String, headers: &HeaderMap) -> bool {
    let Some(list) = combined(headers, &ACCEPT_LANGUAGE) else { return false };
    let list = list.to_ascii_lowercase();
    let Some(mut languages) = languages(&list) else { return false };
    languages.sort_unstable_by(|(a, a_weight), (b, b_weight)| {
        b_weight.cmp(a_weight).then_with(|| a.cmp(b))
    });
    languages.dedup();
    for (at, (language, weight)) in languages.iter().enumerate() {
        text.push_str(if at > 0 { "," } else { "" });
        text.push_str(language);
        if *weight < 1000 {
            _ = write!(text, ";q=0.{weight:03}");
        }
    }
    true
}

/// Appends the field's lines combined into one list without whitespace around commas. Empty members stay, because
/// origins count them. Fields that are not lists are appended unchanged.
fn push_list(text: &mut String, headers: &HeaderMap, name: &HeaderName) {
    let is_singleton = [&USER_AGENT, &COOKIE, &AUTHORIZATION, &REFERER].contains(&name);
    for (at, line) in headers.get_all(name).iter().map(HeaderValue::as_bytes).enumerate() {
        if at > 0 {
            text.push(',');
        }
        if is_singleton {
            push_bytes(text, line.trim_ascii());
            continue;
        }
        for (at, member) in MemberTexts::of(line, b',').enumerate() {
            if at > 0 {
                text.push(',');
            }
            push_bytes(text, member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::stored::tests::stored;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    fn values(fields: &[&str], request: &[(&str, &str)]) -> String {
        let fields: Vec<HeaderName> =
            fields.iter().map(|name| name.parse().expect("a name")).collect();
        let key = CacheKey::new("http://e/");
        variant_key(&key, &fields, &headers(request), &["br", "gzip"]).1.into()
    }

    #[test]
    fn vary_star_in_any_place_matches_nothing() {
        let check = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
            assert_eq!(Vary::of(&headers(&lines)), Vary::Star, "{lines:?}");
        };
        check(&["*"]);
        check(&["*, *"]);
        check(&["*", "*"]);
        check(&[", *"]);
        check(&["", "*"]);
        check(&["*, Foo"]);
        check(&["Foo, *"]);
        check(&["Foo Bar"]);
    }

    #[test]
    fn selecting_fields_are_sorted_and_single() {
        let Vary::Fields(fields) = Vary::of(&headers(&[("vary", "Foo, bar"), ("vary", "foo")]))
        else {
            panic!("fields")
        };
        assert_eq!(*fields, ["bar", "foo"]);
        assert_eq!(Vary::of(&headers(&[("vary", " , ")])), Vary::Nothing);
        let of_codings = "Accept-Encoding, Available-Dictionary, dictionary-id";
        assert_eq!(Vary::of(&headers(&[("vary", of_codings)])), Vary::Nothing);
    }

    #[test]
    fn repeated_fields_are_combined_and_white_space_does_not_count() {
        let one = values(&["foo"], &[("foo", "1, 2")]);
        assert_eq!(one, values(&["foo"], &[("foo", "1"), ("foo", "2")]));
        assert_eq!(one, values(&["foo"], &[("foo", "1,2 ")]));
        assert_ne!(one, values(&["foo"], &[("foo", "2, 1")]));
        assert_ne!(one, values(&["foo"], &[("foo", "12")]));
        let agent = values(&["user-agent"], &[("user-agent", "a, b")]);
        assert_ne!(agent, values(&["user-agent"], &[("user-agent", "a,b")]));
    }

    #[test]
    fn an_absent_field_matches_an_absent_one_only() {
        assert_eq!(values(&["foo"], &[]), values(&["foo"], &[("bar", "1")]));
        assert_ne!(values(&["foo"], &[]), values(&["foo"], &[("foo", "")]));
        assert_ne!(
            values(&["foo", "bar"], &[("foo", "1")]),
            values(&["foo", "bar"], &[("bar", "1")])
        );
    }

    #[test]
    fn variants_of_different_selecting_fields_have_different_texts() {
        let request = [("foo", "1")];
        assert_ne!(values(&["foo"], &request), values(&["bar", "foo"], &request));
        assert_ne!(values(&["foo"], &[]), values(&["bar"], &[]));
        assert_eq!(values(&["bar", "foo"], &request), "bar\nfoo: 1");
    }

    #[test]
    fn languages_are_compared_without_order_case_and_white_space() {
        let check = |a: &str, b: &str, same: bool| {
            let of = |v| values(&["accept-language"], &[("accept-language", v)]);
            assert_eq!(of(a) == of(b), same, "{a} / {b}");
        };
        check("en, de", "de, en", true);
        check("en, de", "eN, De", true);
        check("en, de", " en ,   de", true);
        check("en;q=0.5, de", "de;q=1.0,en; Q=0.500", true);
        check("en;q=0.5, de", "de;q=0.5, en", false);
        check("en", "en-GB", false);
    }

    #[test]
    fn a_list_that_origins_may_read_in_different_ways_is_compared_as_it_is() {
        let check = |name: &'static str, a: &str, b: &str, same: bool| {
            let of = |value| values(&[name], &[(name, value)]);
            assert_eq!(of(a) == of(b), same, "{name}: {a} / {b}");
        };
        for (odd, plain) in [
            (",en", "en"),
            ("en,,de", "en,de"),
            ("en,", "en"),
            ("en;q=abc", "en"),
            ("en;q=2", "en"),
            ("en;q=-1", "en"),
            ("en;q=0.5000", "en;q=0.5"),
            ("en;q=500", "en;q=0.5"),
            ("en;q=.5", "en;q=0.5"),
            ("en;q=", "en"),
            ("en;q=0.5;q=1", "en;q=0.5"),
            ("en;x=1", "en"),
            ("e n", "en"),
            ("de;q=9, en", "en, de;q=9"),
            ("EN;q=9", "en;q=9"),
        ] {
            check("accept-language", odd, plain, false);
        }
        check("accept-language", "en;q=9 ,de", "en;q=9, de", true);
        for name in ["accept", "accept-charset", "foo"] {
            check(name, "a/b, c/d", "a/b ,c/d", true);
            check(name, "a/b, c/d", "c/d, a/b", false);
            check(name, "a/b;q=0.5, c/d", "c/d, a/b;q=0.5", false);
            check(name, "a/b;x=A", "a/b;x=a", false);
            check(name, "a/b;q=2", "a/b", false);
            check(name, ", a/b", "a/b", false);
            check(name, "a/b,", "a/b", false);
        }
    }

    #[test]
    fn encodings_are_folded_to_what_can_be_produced() {
        let check = |value: &str, expected: &str| {
            let request = headers(&[("accept-encoding", value)]);
            let key = CacheKey::new("https://e.org/");
            let folded = variant_key(&key, &[ACCEPT_ENCODING], &request, &["br", "gzip"]).1;
            assert_eq!(folded.strip_prefix("accept-encoding: "), Some(expected), "{value}");
        };
        check("gzip, deflate, br", "br,gzip");
        check("BR;q=0.1,x-gzip", "br,gzip");
        check("gzip;q=0, *", "br");
        check("*;q=0", "identity;q=0");
        check("identity;q=0, gzip", "gzip,identity;q=0");
        check("zstd", "");
        check("*", "br,gzip");
        let absent = values(&["accept-encoding"], &[]);
        assert_eq!(absent, values(&["accept-encoding"], &[("accept-encoding", "zstd")]));
    }

    fn list_with(variants: usize, variants_max: usize) -> (VaryList, Vec<KeyHash>) {
        let fields = [HeaderName::from_static("foo")];
        let mut list = VaryList::default();
        let mut dropped = Vec::new();
        for n in 0..variants {
            let variant = Variant { hash: KeyHash(n as u128), language: None, others: 0 };
            dropped.extend(list.add(&fields, variant, variants_max));
        }
        (list, dropped)
    }

    #[test]
    fn the_oldest_variant_is_dropped_at_the_limit() {
        let (list, dropped) = list_with(5, 3);
        assert_eq!(dropped, [KeyHash(0), KeyHash(1)]);
        let kept: Vec<_> = list.sets[0].variants.iter().map(|v| v.hash.0).collect();
        assert_eq!(kept, [4, 3, 2]);
    }

    #[test]
    fn sets_of_fields_are_tried_newest_first() {
        let (mut list, _) = list_with(2, 9);
        let bar = [HeaderName::from_static("bar")];
        list.add(&bar, Variant { hash: KeyHash(9), language: None, others: 0 }, 9);
        let key = CacheKey::new("http://e/");
        let request = headers(&[("foo", "1"), ("bar", "2")]);
        let candidates = list.candidates(&key, &request, &[], true);
        let hash = |name| variant_key(&key, &[HeaderName::from_static(name)], &request, &[]).0;
        let hashes: Vec<_> = candidates.iter().map(|c| c.hash).collect();
        assert_eq!(hashes, [hash("bar"), hash("foo")]);
    }

    #[test]
    fn a_variant_in_the_language_has_the_other_values_of_the_request_too() {
        let fields = ["accept-language", "cookie", "x-a"].map(HeaderName::from_static);
        let response = headers(&[("cache-control", "max-age=60"), ("content-language", "de")]);
        let key = CacheKey::new("http://e/");
        let of = |cookie: &str, language: &str| {
            headers(&[("accept-language", language), ("cookie", cookie)])
        };
        let check = |cookie: &str, expected: bool| {
            let (hash, values) = variant_key(&key, &fields, &of("a=1", "de, en;q=0.5"), &[]);
            let mut variant =
                Variant::new(hash, &fields, &of("a=1", "de, en;q=0.5"), &response, &[]);
            // As if the values had the same hash.
            variant.others = others_hash(&other_values(&fields, &of(cookie, "de"), &[]));
            let mut list = VaryList::default();
            list.add(&fields, variant, 9);
            let mut stored = stored(&[("cache-control", "max-age=60"), ("content-language", "de")]);
            (stored.key, stored.variant) = (key.text.clone(), (*values).into());
            let candidates = list.candidates(&key, &of(cookie, "de"), &[], true);
            assert!(candidates.iter().any(|candidate| candidate.hash == hash), "{cookie}");
            let fits = |candidate: &Candidate| candidate.fits(&key, &stored);
            assert_eq!(candidates.iter().any(fits), expected, "{cookie}");
        };
        check("a=1", true);
        check("a=2", false);
    }

    #[test]
    fn the_preferred_language_selects_a_variant_in_it() {
        let fields = [ACCEPT_LANGUAGE];
        let request = headers(&[("accept-language", "en, de")]);
        let response = headers(&[("content-language", "DE")]);
        let mut list = VaryList::default();
        list.add(&fields, Variant::new(KeyHash(7), &fields, &request, &response, &[]), 9);
        let found = |value: &str, select: bool| {
            let request = headers(&[("accept-language", value)]);
            let key = CacheKey::new("http://e/");
            list.candidates(&key, &request, &[], select).iter().any(|c| c.hash == KeyHash(7))
        };
        assert!(found("fr;q=0.5, de;q=1.0", true));
        assert!(!found("fr;q=0.5, de;q=1.0", false));
        assert!(!found("fr, de", true));
        assert!(!found("fr, de;q=0.9", true));
        assert!(!found("de-AT", true));
    }
}
