//! `Cache-Control` of requests and of responses (RFC 9111 §5.2), and `Pragma` (§5.4).
//!
//! Names are compared without case; arguments are tokens or quoted strings. A directive that forbids
//! reuse counts in any form, one that allows it only if it is well formed.

use std::borrow::Cow;

use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName};

use super::settings::Honoured;
use crate::fields::members;

/// The largest delta-seconds: RFC 9111 §1.2.2 requires that larger values count as 2^31.
pub(crate) const DELTA_SECONDS_MAX: u32 = 1 << 31;

/// The directives of a request, parsed once. Those that the rule does not honour are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestDirectives {
    /// `no-store`.
    pub no_store: bool,
    /// `no-cache`, or `Pragma: no-cache` without `Cache-Control`.
    pub no_cache: bool,
    /// `only-if-cached`.
    pub only_if_cached: bool,
    /// `no-transform`. It cannot be ignored by configuration.
    pub no_transform: bool,
    /// `max-age` in seconds; an invalid one is 0.
    pub max_age: Option<u32>,
    /// `min-fresh` in seconds; an invalid one is ignored.
    pub min_fresh: Option<u32>,
    /// `max-stale` in seconds; without an argument the largest number.
    pub max_stale: Option<u32>,
    /// `stale-if-error` in seconds.
    pub stale_if_error: Option<u32>,
}

impl RequestDirectives {
    /// The directives of a request that `honoured` allows. A request without them costs one pass over
    /// its field names.
    pub(crate) fn of(headers: &HeaderMap, honoured: Honoured) -> Self {
        if !headers.keys().any(|name| matches!(*name, CACHE_CONTROL | PRAGMA)) {
            Self::default()
        } else if headers.contains_key(CACHE_CONTROL) {
            Self::parse(headers, honoured)
        } else {
            Self { no_cache: honoured.no_cache && pragma_no_cache(headers), ..Self::default() }
        }
    }

    fn parse(headers: &HeaderMap, honoured: Honoured) -> Self {
        let mut found = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            for Member { name, argument, .. } in Members::of(line.as_bytes()) {
                let seconds = || argument.and_then(delta_seconds);
                match_name(name, |name| match name {
                    b"no-store" => found.no_store |= honoured.no_store,
                    b"no-cache" => found.no_cache |= honoured.no_cache,
                    b"only-if-cached" => found.only_if_cached |= honoured.only_if_cached,
                    b"no-transform" => found.no_transform = true,
                    b"max-age" if honoured.max_age => {
                        found.max_age = lower(found.max_age, seconds().unwrap_or(0));
                    }
                    b"min-fresh" if honoured.min_fresh => {
                        found.min_fresh = found.min_fresh.max(seconds());
                    }
                    b"max-stale" if honoured.max_stale => {
                        let stale = if argument.is_none() { Some(u32::MAX) } else { seconds() };
                        found.max_stale = lower(found.max_stale, stale.unwrap_or(0));
                    }
                    b"stale-if-error" if honoured.stale_if_error => {
                        found.stale_if_error = lower(found.stale_if_error, seconds().unwrap_or(0));
                    }
                    _ => {}
                });
            }
        }
        found
    }
}

fn lower(before: Option<u32>, now: u32) -> Option<u32> {
    Some(before.map_or(now, |before| before.min(now)))
}

fn pragma_no_cache(headers: &HeaderMap) -> bool {
    headers
        .get_all(PRAGMA)
        .iter()
        .flat_map(|line| Members::of(line.as_bytes()))
        .any(|member| member.name.eq_ignore_ascii_case(b"no-cache"))
}

/// The directives of a response, from the field that applies to this cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseDirectives {
    /// `no-store`.
    pub no_store: bool,
    /// `no-cache` without field names.
    pub no_cache: bool,
    /// `private` without field names.
    pub private: bool,
    /// `public`.
    pub public: bool,
    /// `must-revalidate`.
    pub must_revalidate: bool,
    /// `proxy-revalidate`.
    pub proxy_revalidate: bool,
    /// `must-understand`.
    pub must_understand: bool,
    /// `no-transform`: the body's coding stays as it is.
    pub no_transform: bool,
    /// `immutable` (RFC 8246).
    pub immutable: bool,
    /// `max-age`.
    pub max_age: Seconds,
    /// `s-maxage`.
    pub s_maxage: Seconds,
    /// `stale-while-revalidate` (RFC 5861 §3).
    pub stale_while_revalidate: Seconds,
    /// `stale-if-error` (RFC 5861 §4).
    pub stale_if_error: Seconds,
    /// The fields that `no-cache="…"` and `private="…"` name: not stored.
    pub unstored_fields: Vec<HeaderName>,
}

/// A delta-seconds argument. Repeated with different values it is invalid (RFC 9111 §4.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Seconds {
    /// The directive is absent.
    #[default]
    Absent,
    /// The directive is present and invalid. As a lifetime: zero.
    Invalid,
    /// At most [`DELTA_SECONDS_MAX`].
    Valid(u32),
}

impl Seconds {
    /// The value, 0 for an invalid one.
    pub(crate) fn or_zero(self) -> Option<u32> {
        match self {
            Self::Absent => None,
            Self::Invalid => Some(0),
            Self::Valid(seconds) => Some(seconds),
        }
    }

    pub(super) fn add(&mut self, value: Option<u32>) {
        *self = match (*self, value) {
            (Self::Absent, Some(seconds)) => Self::Valid(seconds),
            (Self::Valid(before), Some(seconds)) if before == seconds => Self::Valid(before),
            _ => Self::Invalid,
        };
    }
}

impl ResponseDirectives {
    /// From the lines of `name`, in the grammar of `Cache-Control`.
    pub(crate) fn of(headers: &HeaderMap, name: &HeaderName) -> Self {
        let mut found = Self::default();
        for line in headers.get_all(name) {
            for Member { name, argument, .. } in Members::of(line.as_bytes()) {
                match_name(name, |name| found.add(name, argument));
            }
        }
        found
    }

    /// `name` in lower case.
    fn add(&mut self, name: &[u8], argument: Option<Argument<'_>>) {
        let seconds = argument.and_then(delta_seconds);
        match name {
            b"max-age" => self.max_age.add(seconds),
            b"s-maxage" => self.s_maxage.add(seconds),
            b"stale-while-revalidate" => self.stale_while_revalidate.add(seconds),
            b"stale-if-error" => self.stale_if_error.add(seconds),
            b"no-cache" => match argument.and_then(field_names) {
                Some(names) => self.unstored_fields.extend(names),
                None => self.no_cache = true,
            },
            b"private" => match argument.and_then(field_names) {
                Some(names) => self.unstored_fields.extend(names),
                None => self.private = true,
            },
            _ => self.set_flag(name),
        }
    }

    pub(super) fn set_flag(&mut self, name: &[u8]) {
        match name {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache = true,
            b"private" => self.private = true,
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"no-transform" => self.no_transform = true,
            b"immutable" => self.immutable = true,
            _ => {}
        }
    }
}

/// The field names in a quoted list. `None` if the argument is not quoted: then the directive applies to the whole response.
fn field_names(argument: Argument<'_>) -> Option<Vec<HeaderName>> {
    if argument.0.starts_with(b"\"") { listed_names(&argument.text()) } else { None }
}

/// The field names in a list. `None` if it is empty or has an invalid name: then the directive applies to the whole
/// response.
pub(super) fn listed_names(list: &[u8]) -> Option<Vec<HeaderName>> {
    let names: Vec<_> =
        members(list).map(|name| HeaderName::from_bytes(name).ok()).collect::<Option<_>>()?;
    (!names.is_empty()).then_some(names)
}

/// A number of digits only; a larger one than 2^31 is 2^31 (RFC 9111 §1.2.2).
pub(super) fn digits(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u32, digit: &u8| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    Some(text.iter().fold(0, add).min(DELTA_SECONDS_MAX))
}

fn delta_seconds(argument: Argument<'_>) -> Option<u32> {
    digits(&argument.text())
}

/// Calls `then` with the name in lower case, unless it is longer than every known directive.
fn match_name(name: &[u8], then: impl FnOnce(&[u8])) {
    let mut lower = [0; 32];
    if let Some(lower) = lower.get_mut(..name.len()) {
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        then(lower);
    }
}

/// The lines of a field as one list, `None` without the field or when it is not text.
pub(super) fn combined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut lines = headers.get_all(name).iter();
    let mut joined = Cow::Borrowed(lines.next()?.to_str().ok()?);
    for line in lines {
        let joined = joined.to_mut();
        joined.push_str(", ");
        joined.push_str(line.to_str().ok()?);
    }
    Some(joined)
}

/// One member of a comma list: `name`, `name=token` or `name="quoted"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member<'a> {
    pub written: &'a [u8],
    pub name: &'a [u8],
    pub argument: Option<Argument<'a>>,
}

/// The text after `=`, as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Argument<'a>(&'a [u8]);

impl<'a> Argument<'a> {
    /// Without its quotes and escapes. Not trimmed: `max-age= 1` is not valid.
    pub(super) fn text(self) -> Cow<'a, [u8]> {
        let Some(inner) = self.0.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""))
        else {
            return Cow::Borrowed(self.0);
        };
        if !inner.contains(&b'\\') {
            return Cow::Borrowed(inner);
        }
        let mut text = Vec::with_capacity(inner.len());
        let mut bytes = inner.iter();
        while let Some(byte) = bytes.next() {
            text.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
        }
        Cow::Owned(text)
    }
}

/// The members of one line, without empty ones.
pub(super) struct Members<'a>(MemberTexts<'a>);

impl<'a> Members<'a> {
    pub(super) fn of(line: &'a [u8]) -> Self {
        Self(MemberTexts::of(line, b','))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Member<'a>;

    fn next(&mut self) -> Option<Member<'a>> {
        self.0.find(|text| !text.is_empty()).map(split_member)
    }
}

/// The members of one line as they are written, without whitespace around them; at least one, which may be empty. Separators
/// in quoted strings do not count; a quote that is never closed is an ordinary character, so that it hides no directive.
/// The line is read once, however it is written.
pub(super) struct MemberTexts<'a> {
    rest: Option<&'a [u8]>,
    separator: u8,
    /// Whether a quote has been found that is never closed. No later quote is closed either, because its closing quote
    /// would also close the first one.
    has_open_quote: bool,
}

impl<'a> MemberTexts<'a> {
    pub(super) fn of(line: &'a [u8], separator: u8) -> Self {
        Self { rest: Some(line), separator, has_open_quote: false }
    }

    /// The position of the first separator in `text` outside of quoted strings.
    fn separator_in(&mut self, text: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < text.len() {
            at = match text[at] {
                byte if byte == self.separator => return Some(at),
                b'"' if !self.has_open_quote => {
                    let closing = closing_quote(text, at + 1);
                    self.has_open_quote = closing.is_none();
                    closing.unwrap_or(at) + 1
                }
                _ => at + 1,
            };
        }
        None
    }
}

impl<'a> Iterator for MemberTexts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let text = self.rest?;
        let end = self.separator_in(text);
        self.rest = end.map(|end| &text[end + 1..]);
        Some(text[..end.unwrap_or(text.len())].trim_ascii())
    }
}

fn split_member(member: &[u8]) -> Member<'_> {
    match member.iter().position(|byte| *byte == b'=') {
        None => Member { written: member, name: member, argument: None },
        Some(at) => {
            // `max-age =1` is not valid, but what it names is clear, and `no-store =x` must count:
            // the space goes to the argument, which makes it invalid.
            let name = member[..at].trim_ascii_end();
            let spaced = name.len() != at;
            let argument = if spaced { &member[name.len()..] } else { &member[at + 1..] };
            Member { written: member, name, argument: Some(Argument(argument)) }
        }
    }
}

fn closing_quote(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while at < text.len() {
        match text[at] {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().expect("a value"));
        }
        headers
    }

    fn response(lines: &[&str]) -> ResponseDirectives {
        ResponseDirectives::of(&headers(lines), &CACHE_CONTROL)
    }

    fn request(lines: &[&str]) -> RequestDirectives {
        RequestDirectives::of(&headers(lines), Honoured::ALL)
    }

    #[test]
    fn lifetimes_are_digits_and_nothing_else() {
        let check =
            |line: &str, expected| assert_eq!(response(&[line]).max_age, expected, "{line}");
        check("max-age=3600", Seconds::Valid(3600));
        check("foobar, MaX-aGe=3600", Seconds::Valid(3600));
        check("max-age=\"3600\"", Seconds::Valid(3600));
        check("max-age=003600", Seconds::Valid(3600));
        check("max-age=2147483649", Seconds::Valid(1 << 31));
        check("max-age=99999999999999999999999", Seconds::Valid(1 << 31));
        let invalid = ["'3600'", "-3600", "3600.0", "a3600", "3600a", "", " 3600", "\"36"];
        invalid.iter().for_each(|v| check(&format!("max-age={v}"), Seconds::Invalid));
        check("max-age =3600", Seconds::Invalid);
        check("max-age", Seconds::Invalid);
        check("s-maxage=5", Seconds::Absent);
    }

    #[test]
    fn a_lifetime_said_twice_with_two_values_is_invalid() {
        assert_eq!(response(&["max-age=1, max-age=1800"]).max_age, Seconds::Invalid);
        assert_eq!(response(&["max-age=1800", "max-age=1"]).max_age, Seconds::Invalid);
        assert_eq!(response(&["max-age=5", "max-age=5"]).max_age, Seconds::Valid(5));
    }

    #[test]
    fn quoted_arguments_are_opaque() {
        let check =
            |line: &str, expected| assert_eq!(response(&[line]).max_age, expected, "{line}");
        check("ext=\"x, max-age=1000\", max-age=1", Seconds::Valid(1));
        check("max-age=1, ext=\"max-age=3600\"", Seconds::Valid(1));
        check("ext=\"a\\\", max-age=9\", max-age=1", Seconds::Valid(1));
        assert!(!response(&["ext=\"no-store, private\""]).no_store);
    }

    #[test]
    fn an_open_quote_hides_nothing() {
        assert!(response(&["ext=\"a, no-store"]).no_store);
        assert!(response(&["ext=\"a, private"]).private);
    }

    #[test]
    fn directives_that_forbid_count_in_any_form() {
        assert!(response(&["No-StOrE"]).no_store);
        assert!(response(&["no-store=1"]).no_store);
        assert!(response(&["no-store =x"]).no_store);
        assert!(response(&["private=\"\""]).private);
        assert!(response(&["private=1"]).private);
        assert!(response(&["no-cache=0"]).no_cache);
        assert!(response(&["private=\"b@d\""]).private);
        assert!(response(&["no-cache=\"a b\""]).no_cache);
        assert!(response(&["max-age=5 no-store, private"]).private);
    }

    #[test]
    fn fields_named_by_no_cache_and_private_are_not_stored() {
        let found = response(&["no-cache=\"A, b\", private=\"set-cookie\", max-age=9"]);
        let names: Vec<_> = found.unstored_fields.iter().map(HeaderName::as_str).collect();
        assert_eq!(names, ["a", "b", "set-cookie"]);
        assert!(!found.no_cache && !found.private);
    }

    #[test]
    fn request_directives_are_read_as_the_rule_honours_them() {
        let found = request(&["max-age=5, min-fresh=7", "max-stale, only-if-cached"]);
        assert_eq!(found.max_age, Some(5));
        assert_eq!(found.min_fresh, Some(7));
        assert_eq!(found.max_stale, Some(u32::MAX));
        assert!(found.only_if_cached);
        assert_eq!(request(&["max-age=x"]).max_age, Some(0));
        assert_eq!(request(&["max-stale=x"]).max_stale, Some(0));
        let deaf = RequestDirectives::of(&headers(&["no-cache, no-store"]), Honoured::NONE);
        assert_eq!(deaf, RequestDirectives::default());
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        let mut headers = HeaderMap::new();
        headers.insert(PRAGMA, "foo, No-Cache".parse().expect("a value"));
        assert!(RequestDirectives::of(&headers, Honoured::ALL).no_cache);
        headers.insert(CACHE_CONTROL, "max-age=100".parse().expect("a value"));
        assert!(!RequestDirectives::of(&headers, Honoured::ALL).no_cache);
    }
}
