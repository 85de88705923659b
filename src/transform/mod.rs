//! Content coding on the way to the client (RFC 9110 §8.4, §12.5.3).
//!
//! What the cache holds is what the origin sent. Here a response is compressed for a client that
//! takes a coding, or decompressed for one that lacks the coding that is stored, as a stream in
//! both directions. [`plan`] decides by fields alone, and so the same for HEAD and GET;
//! [`transform`] carries it out. Ranges, validators of requests and caching are left to others.

mod coder;
mod negotiate;
mod plan;

use std::fmt;
use std::str::FromStr;

use http::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderName, HeaderValue, VARY,
};
use http::{HeaderMap, Method};

pub(crate) use coder::{decode, encode};
pub(crate) use negotiate::Accepted;
pub(crate) use plan::{CodingAction, Said, plan};

use crate::body::BodySource;
use crate::fields::{FieldLines, Fields, FieldsMut};
pub(crate) use crate::labels::Coding;
use crate::metrics::Recorder;
use crate::reply::Reply;

/// A coding and how hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    coding: Coding,
    level: i32,
}

/// What is coded, and how.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// In order of preference among those that the client likes equally. Empty: nothing is
    /// compressed.
    pub codings: Vec<Level>,
    /// What is worth compressing.
    pub content_types: Vec<MediaRange>,
    /// Shorter responses are left alone. Those of unknown length count as long.
    pub bytes_min: u64,
    /// Whether stored codings are undone for clients that lack them.
    pub decode: bool,
    /// How far decoding may go; beyond, the response breaks off.
    pub decode_limit: DecodeLimit,
}

/// Keeps a small coded body from becoming a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DecodeLimit {
    /// Decoded bytes of one response.
    pub bytes_max: u64,
    /// Decoded bytes per coded byte, once a response is over 1 MiB.
    pub ratio_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let level = |coding, level| Level { coding, level };
        Self {
            // Measured on text of 100 kB, one core: zstd 3 274 MB/s to a quarter, brotli 4 58 MB/s,
            // gzip 4 123 MB/s; the next level costs half the speed for 3 % of the size.
            codings: vec![level(Coding::Zstd, 3), level(Coding::Brotli, 4), level(Coding::Gzip, 4)],
            content_types: CONTENT_TYPES
                .iter()
                .map(|text| text.parse().expect("the shipped list is well formed"))
                .collect(),
            bytes_min: 256,
            decode: true,
            decode_limit: DecodeLimit { bytes_max: 1 << 30, ratio_max: 1000 },
        }
    }
}

impl Settings {
    /// The codings that may be chosen: what a cache key distinguishes in `Accept-Encoding`.
    pub(crate) fn codings_we_produce(&self) -> impl Iterator<Item = &'static str> {
        self.codings.iter().map(|level| level.coding.as_str())
    }
}

/// Codes, decodes or leaves the response to a request with this method and these fields, and
/// makes its fields say so. The body is only touched when it is read. To be called with the
/// response that was selected (200, 206, 304, …), before hop-by-hop fields are added.
pub(crate) fn transform(
    method: &Method,
    request: &HeaderMap,
    response: Reply,
    settings: &Settings,
    recorder: &Recorder,
) -> Reply {
    let Reply { status, received, mut fields, body } = response;
    // The answer to HEAD has no body, which says nothing of the length.
    let is_head = *method == Method::HEAD;
    let length = if is_head { None } else { body.exact_length() };
    let said = Said::by(&fields);
    let plan = plan(request, status, &said, length, settings);
    let length = said.length.or(length);
    if plan.varies && !said.varies {
        fields.append(&VARY, &HeaderValue::from_static("Accept-Encoding"));
    }
    match plan.action {
        CodingAction::Leave(_) => return Reply { status, received, fields, body },
        CodingAction::Weaken => {
            weaken_etag(&mut fields);
            return Reply { status, received, fields, body };
        }
        // Of an answer to HEAD that does not say how long the content is nobody knows whether it
        // would be worth it. The coding may be left out (RFC 9110 §9.3.2), and what holds for
        // one form alone is.
        CodingAction::Encode(_) if is_head && length.is_none() => {}
        CodingAction::Encode(level) => {
            let coding = HeaderValue::from_static(level.coding.as_str());
            fields.set(&CONTENT_ENCODING, &coding);
        }
        CodingAction::Decode(_) => fields.remove(&CONTENT_ENCODING),
    }
    change_representation(&mut fields);
    if is_head {
        return Reply { status, received, fields, body };
    }
    let body = match plan.action {
        CodingAction::Encode(level) => encode(body, level, length, recorder),
        CodingAction::Decode(coding) => decode(body, coding, settings.decode_limit, recorder),
        CodingAction::Leave(_) | CodingAction::Weaken => body,
    };
    if let Some(length) = body.exact_length() {
        fields.append_number(&CONTENT_LENGTH, length);
    }
    Reply { status, received, fields, body }
}

/// Takes out what is no longer true of the bytes: their number, ranges of them, digests, and the
/// strong validator (RFC 9110 §8.8.1).
fn change_representation(fields: &mut FieldLines) {
    fields.remove_all(&OF_THE_BYTES);
    weaken_etag(fields);
}

fn weaken_etag(fields: &mut FieldLines) {
    let weak = fields.get(&ETAG).filter(|etag| etag.starts_with(b"\"")).map(|etag| {
        HeaderValue::from_bytes(&[b"W/", etag].concat())
            .expect("a field value with two letters before it is one")
    });
    if let Some(weak) = weak {
        fields.set(&ETAG, &weak);
    }
}

impl Coding {
    fn levels(self) -> std::ops::RangeInclusive<i32> {
        match self {
            Self::Zstd => 1..=19,
            Self::Brotli => 0..=11,
            Self::Gzip => 1..=9,
        }
    }
}

/// Not a coding that we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a known coding: expected zstd, br or gzip")]
pub(crate) struct UnknownCoding(Box<str>);

impl FromStr for Coding {
    type Err = UnknownCoding;

    /// The name in `Content-Encoding`, in either case, or `x-gzip` (RFC 9110 §8.4.1.3).
    fn from_str(name: &str) -> Result<Self, UnknownCoding> {
        [Self::Zstd, Self::Brotli, Self::Gzip]
            .into_iter()
            .find(|coding| name.eq_ignore_ascii_case(coding.as_str()))
            .or_else(|| name.eq_ignore_ascii_case("x-gzip").then_some(Self::Gzip))
            .ok_or_else(|| UnknownCoding(name.into()))
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A level that the coding doesn't have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{coding} has no level {level}: expected {} to {}", .coding.levels().start(), .coding.levels().end())]
pub(crate) struct UnknownLevel {
    coding: Coding,
    level: i32,
}

impl Level {
    /// zstd: 1 to 19; br: 0 to 11; gzip: 1 to 9.
    pub(crate) fn new(coding: Coding, level: i32) -> Result<Self, UnknownLevel> {
        if coding.levels().contains(&level) {
            Ok(Self { coding, level })
        } else {
            Err(UnknownLevel { coding, level })
        }
    }

    /// The coding.
    pub(crate) fn coding(self) -> Coding {
        self.coding
    }

    /// How hard to try.
    pub(crate) fn level(self) -> i32 {
        self.level
    }
}

/// Media types: one (`application/json`), all of a kind (`text/*`), or all of a syntax
/// (`*/*+json`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MediaRange {
    /// Exactly this type, lower case.
    Type(Box<str>),
    /// What begins with this, slash included, lower case.
    Kind(Box<str>),
    /// What ends with this, plus included, lower case.
    Syntax(Box<str>),
}

/// Not a media range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a media range: expected `application/json`, `text/*` or `*/*+json`")]
pub(crate) struct BadMediaRange(Box<str>);

impl FromStr for MediaRange {
    type Err = BadMediaRange;

    fn from_str(text: &str) -> Result<Self, BadMediaRange> {
        let bad = || BadMediaRange(text.into());
        let lower = text.trim().to_ascii_lowercase();
        let (kind, rest) = lower.split_once('/').ok_or_else(bad)?;
        match (kind, rest) {
            ("*", rest) => match rest.strip_prefix("*+") {
                Some(syntax) if is_token(syntax) => Ok(Self::Syntax(rest[1..].into())),
                _ => Err(bad()),
            },
            (kind, "*") if is_token(kind) => Ok(Self::Kind(format!("{kind}/").into())),
            (kind, rest) if is_token(kind) && is_token(rest) => Ok(Self::Type(lower.into())),
            _ => Err(bad()),
        }
    }
}

fn is_token(text: &str) -> bool {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
    !text.is_empty() && text.bytes().all(ok)
}

/// The media type of a `Content-Type`, without its parameters.
fn media_type(content_type: &[u8]) -> &[u8] {
    let end = memchr::memchr(b';', content_type);
    content_type[..end.unwrap_or(content_type.len())].trim_ascii()
}

impl MediaRange {
    /// Whether a media type without its parameters is one of them.
    pub(crate) fn matches(&self, media_type: &[u8]) -> bool {
        let length = media_type.len();
        match self {
            Self::Type(exact) => media_type.eq_ignore_ascii_case(exact.as_bytes()),
            Self::Kind(start) => {
                length > start.len()
                    && media_type[..start.len()].eq_ignore_ascii_case(start.as_bytes())
            }
            Self::Syntax(end) => {
                length > end.len()
                    && media_type[length - end.len()..].eq_ignore_ascii_case(end.as_bytes())
            }
        }
    }
}

/// Fields that speak of the bytes as they were: RFC 9110 §8.6 and §14.3, RFC 9530 and its elders.
const OF_THE_BYTES: [HeaderName; 6] = [
    CONTENT_LENGTH,
    ACCEPT_RANGES,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// As shipped: text in its many names, and the binary formats that are not compressed inside.
const CONTENT_TYPES: [&str; 17] = [
    "text/*",
    "*/*+json",
    "*/*+xml",
    "*/*+text",
    "application/json",
    "application/javascript",
    "application/x-javascript",
    "application/xml",
    "application/wasm",
    "application/x-ndjson",
    "application/graphql",
    "application/rtf",
    "application/vnd.ms-fontobject",
    "font/ttf",
    "font/otf",
    "image/bmp",
    "image/vnd.microsoft.icon",
];

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;

    use super::*;
    use crate::body::{Body, pieces};
    use crate::metrics::Metrics;

    fn transformed(method: &Method, accept: &str, response: Reply) -> Reply {
        let mut request = HeaderMap::new();
        request.insert(http::header::ACCEPT_ENCODING, accept.parse().unwrap());
        let recorder = Metrics::new(1).worker(0);
        transform(method, &request, response, &Settings::default(), &recorder)
    }

    fn page(body: impl Into<Body>) -> Reply {
        let response = Response::builder()
            .header("content-type", "text/html")
            .header("content-length", "5000")
            .header("etag", "\"v1\"")
            .header("accept-ranges", "bytes")
            .header("repr-digest", "sha-256=:AAAA:")
            .header("vary", "accept-language")
            .body(body.into())
            .unwrap();
        response.into()
    }

    fn field<'a>(response: &'a Reply, name: &'static str) -> Option<&'a str> {
        let value = response.fields.get(&HeaderName::from_static(name));
        value.map(|value| std::str::from_utf8(value).unwrap())
    }

    #[test]
    fn a_coded_response_says_nothing_of_the_bytes_that_it_was() {
        let small = transformed(&Method::GET, "br", page("a".repeat(5000)));
        assert_eq!(field(&small, "content-encoding"), Some("br"));
        assert_eq!(field(&small, "etag"), Some("W/\"v1\""));
        assert_eq!(field(&small, "accept-ranges"), None);
        assert_eq!(field(&small, "repr-digest"), None);
        let vary: Vec<_> = small.fields.lines(&VARY).collect();
        assert_eq!(vary, [b"accept-language", b"Accept-Encoding"]);
        let length: u64 = field(&small, "content-length").unwrap().parse().unwrap();
        assert!(length < 100);
        assert_eq!(small.body.exact_length(), Some(length));

        let two = pieces([Bytes::from(vec![b'a'; 2500]), Bytes::from(vec![b'b'; 2500])]);
        let streamed = transformed(&Method::GET, "br", page(two));
        assert_eq!(field(&streamed, "content-length"), None);
    }

    #[test]
    fn head_claims_no_coding_when_the_content_may_be_too_short_for_it() {
        let mut unsaid = page(Body::Empty);
        unsaid.fields.remove(&CONTENT_LENGTH);
        let head = transformed(&Method::HEAD, "br", unsaid);
        assert_eq!(field(&head, "content-encoding"), None);
        assert!(field(&head, "etag").is_some_and(|etag| etag.starts_with("W/")));
        assert!(head.fields.contains(&VARY));
    }

    #[test]
    fn head_says_what_get_says_but_for_the_length() {
        for accept in ["br", "identity"] {
            let get = transformed(&Method::GET, accept, page("a".repeat(5000)));
            let head = transformed(&Method::HEAD, accept, page(Body::Empty));
            let mut fields = get.fields.to_map();
            if accept == "br" {
                fields.remove(CONTENT_LENGTH);
            }
            assert_eq!(head.fields.to_map(), fields);
        }
    }

    #[test]
    fn the_plain_variant_keeps_everything_and_varies() {
        let plain = transformed(&Method::GET, "identity", page("a".repeat(5000)));
        assert_eq!(field(&plain, "etag"), Some("\"v1\""));
        assert_eq!(field(&plain, "content-length"), Some("5000"));
        assert_eq!(field(&plain, "repr-digest"), Some("sha-256=:AAAA:"));
        assert_eq!(plain.fields.lines(&VARY).count(), 2);
    }

    #[test]
    fn vary_is_not_said_twice() {
        for line in ["*", "Accept-encoding", "origin, Accept-Encoding"] {
            let mut response = page("a".repeat(5000));
            response.fields.set(&VARY, &line.parse().unwrap());
            let coded = transformed(&Method::GET, "gzip", response);
            let lines: Vec<_> = coded.fields.lines(&VARY).collect();
            assert_eq!(lines, [line.as_bytes()]);
        }
    }

    #[test]
    fn a_media_range_is_a_type_a_kind_or_a_syntax() {
        let check = |range: &str, content_type: &str, expected| {
            let range: MediaRange = range.parse().unwrap();
            assert_eq!(
                range.matches(media_type(content_type.as_bytes())),
                expected,
                "{range:?} {content_type}"
            );
        };
        check("text/*", "Text/HTML; charset=utf-8", true);
        check("text/*", "text/", false);
        check("text/*", "textual/html", false);
        check("Application/JSON", "application/json ;v=1", true);
        check("application/json", "application/json5", false);
        check("*/*+json", "application/ld+json", true);
        check("*/*+json", "application/json", false);
        check("*/*+json", "é+json", true);
        for bad in ["", "text", "*/*", "/html", "text/", "te xt/html", "*/*+", "*/html"] {
            let error = bad.parse::<MediaRange>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{bad}` is not a media range")), "{error}");
        }
    }

    #[test]
    fn names_and_levels_are_checked() {
        assert_eq!("BR".parse(), Ok(Coding::Brotli));
        let unknown = "deflate".parse::<Coding>().unwrap_err().to_string();
        assert_eq!(unknown, "`deflate` is not a known coding: expected zstd, br or gzip");
        assert!(Level::new(Coding::Brotli, 11).is_ok());
        let high = Level::new(Coding::Gzip, 10).unwrap_err().to_string();
        assert_eq!(high, "gzip has no level 10: expected 1 to 9");
        let produced: Vec<_> = Settings::default().codings_we_produce().collect();
        assert_eq!(produced, ["zstd", "br", "gzip"]);
    }
}
