//! Content coding of responses to clients (RFC 9110 §8.4, §12.5.3).
//!
//! The cache stores a body as the origin sent it. This room compresses it for a client that accepts a
//! coding, or decompresses it for one that does not accept the stored coding; both as a stream.
//! [`plan()`] decides from header fields alone, so that HEAD and GET agree; [`transform`] changes the fields
//! and [`recode`] the body. Where a recoded body is stored is decided by serve/. Ranges, conditional requests and caching are handled elsewhere.

mod codec;
mod coded_body;
mod decoder;
mod encoder;
mod hot_encoder;
mod kept_brotli;
mod kept_encoders;
mod negotiability;
mod negotiate;
mod plan;
mod rounds;
mod short_encoder;

use std::fmt;
use std::str::FromStr;

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, HeaderName, HeaderValue, VARY,
};
use http::{HeaderMap, Method, StatusCode};

pub(crate) use coded_body::{WHOLE_BODY_BYTES_MAX, recode};
pub(crate) use encoder::prepare_thread;
pub(crate) use hot_encoder::encode_hot;
pub(crate) use negotiability::{Negotiability, SettingsId};
pub(crate) use negotiate::{Accepted, AcceptedMemo, Choice};
pub(crate) use plan::{
    CodingAction, ContentFields, Recoding, RequestFields, has_listed_type, plan,
};

use plan::has_no_transform;

use crate::body::BodySource;
use crate::fields::entity_tag::coded_tag;
use crate::fields::{FieldLines, Fields, FieldsMut, is_grpc, members};
pub(crate) use crate::labels::Coding;
use crate::reply::Reply;

/// A coding and its compression level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    coding: Coding,
    level: i32,
}

/// The responses that are coded, and how.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// The node's order of preference among the codings to which the client gives the same weight. Empty:
    /// nothing is compressed.
    pub codings: Vec<Level>,
    /// The levels at which the forms of often requested responses are coded again. A coding that is missing here
    /// is not coded again.
    pub hot_codings: Vec<Level>,
    /// After about this many hits of a stored response on one worker its forms are coded again.
    pub hot_requests: u32,
    /// The media types that are compressed.
    pub content_types: Vec<MediaRange>,
    /// Shorter responses are not compressed. One of unknown length is.
    pub bytes_min: u64,
    /// Whether coded responses are decompressed for clients that do not accept their coding.
    pub decode: bool,
    /// Whether responses for one client are compressed: with `private`, `no-store` or `Set-Cookie`, or to requests with
    /// `Authorization`. They are decompressed in any case.
    pub private: bool,
    /// Limits of decompression. A response that reaches one breaks off.
    pub decode_limit: DecodeLimit,
    /// Whether coded request content is decompressed for origins that cannot do so, within `decode_limit`.
    pub decode_requests: bool,
    /// With which coding request content of the listed types is compressed for origins that accept it.
    pub encode_requests: Option<Level>,
    /// The codings that origins are asked for. Empty: none, their content is compressed here alone.
    pub origin_codings: Vec<Coding>,
}

impl Settings {
    /// `Accept-Encoding` of requests to origins. Names no coding if coded responses are not decoded: each
    /// client must be able to use the one response that is stored.
    pub(crate) fn accept_encoding_for_origin(&self) -> HeaderValue {
        if !self.decode || self.origin_codings.is_empty() {
            return HeaderValue::from_static("identity");
        }
        let words: Vec<_> = self.origin_codings.iter().map(|coding| coding.as_str()).collect();
        HeaderValue::try_from(words.join(", ")).expect("words make a field value")
    }
}

/// Bounds what a small coded body can expand to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DecodeLimit {
    /// Decoded bytes of one response.
    pub bytes_max: u64,
    /// Decoded bytes per coded byte. Applies beyond 1 MiB of decoded bytes.
    pub ratio_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let level = |coding, level| Level { coding, level };
        Self {
            // Measured on 100 kB of text, one core: zstd level 3 274 MB/s to a quarter of the size, brotli
            // level 4 58 MB/s, gzip level 4 123 MB/s; the next level halves the speed for 3 % less size.
            codings: vec![
                level(Coding::Zstd, ZSTD_LEVEL),
                level(Coding::Brotli, 4),
                level(Coding::Gzip, 4),
            ],
            // The encoders of hot_encoder.rs, with the gain of each.
            hot_codings: vec![
                level(Coding::Zstd, 19),
                level(Coding::Brotli, 11),
                level(Coding::Gzip, 12),
            ],
            hot_requests: 100,
            content_types: CONTENT_TYPES
                .iter()
                .map(|text| text.parse().expect("the shipped list is well formed"))
                .collect(),
            bytes_min: 256,
            decode: true,
            private: true,
            decode_limit: DecodeLimit { bytes_max: 1 << 30, ratio_max: 1000 },
            decode_requests: false,
            encode_requests: None,
            origin_codings: vec![Coding::Zstd, Coding::Brotli, Coding::Gzip],
        }
    }
}

/// A response after [`transform`].
pub(crate) enum Transformed {
    /// The response to send.
    Ready(Reply),
    /// Its fields are those of the recoded content, and its body is to be recoded.
    Recode(Reply, RecodePlan),
    /// See [`CodingAction::AskAgain`]: the response that is to be replaced.
    AskAgain(Reply),
}

/// How a body is to be recoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecodePlan {
    /// The codings.
    pub recoding: Recoding,
    /// The length of the body before, if known.
    pub length: Option<u64>,
    /// Limits of decompression.
    pub limit: DecodeLimit,
}

/// Decides how the content of the response to a request with this method and these fields is coded, and
/// updates its fields. Must be called with the selected response (200, 206, 304, …), before hop-by-hop fields
/// are added.
pub(crate) fn transform(
    method: &Method,
    request: &RequestFields<'_>,
    mut response: Reply,
    settings: &Settings,
) -> Transformed {
    // A response to HEAD has no body, whatever the length of the representation.
    let is_head = *method == Method::HEAD;
    let length = if is_head { None } else { response.body.exact_length() };
    let content = ContentFields::of(&response.fields);
    let plan = plan(request, response.status, &content, length, settings);
    // The response to GET may be too short to be coded, which its HEAD does not tell.
    let (length, is_unsure) = (content.length.or(length), is_head && content.length.is_none());
    if plan.needs_vary && !content.varies {
        response.fields.append(&VARY, &HeaderValue::from_static("Accept-Encoding"));
    }
    let recoding = match plan.action {
        CodingAction::Leave(_) => return Transformed::Ready(response),
        CodingAction::AskAgain if response.status == StatusCode::NOT_MODIFIED => {
            return Transformed::Ready(response);
        }
        CodingAction::AskAgain => return Transformed::AskAgain(response),
        CodingAction::Recode(recoding) => recoding,
    };
    recode_fields(&mut response.fields, recoding.coding(), None);
    if is_unsure && recoding.to.is_some() {
        // A response to HEAD may omit it (RFC 9110 §9.3.2).
        response.fields.remove(&CONTENT_ENCODING);
    }
    match is_head {
        true => Transformed::Ready(response),
        false => {
            let plan = RecodePlan { recoding, length, limit: settings.decode_limit };
            Transformed::Recode(response, plan)
        }
    }
}

/// Turns the fields of a response into those of its recoded content: names the coding, removes the fields that
/// describe the bytes before (length, ranges and digests), and gives the entity tag its suffix. `number` is of
/// the recoded bytes if they are stored, see [`coded_tag`].
pub(crate) fn recode_fields(fields: &mut FieldLines, coding: Option<Coding>, number: Option<u32>) {
    fields.remove_all(&OF_THE_BYTES);
    match coding {
        Some(coding) => {
            fields.set(&CONTENT_ENCODING, &HeaderValue::from_static(coding.as_str()));
        }
        None => fields.remove(&CONTENT_ENCODING),
    }
    let tag = fields.get(&ETAG).and_then(|tag| coded_tag(tag, coding, number));
    if let Some(tag) = tag {
        let tag = HeaderValue::try_from(tag).expect("a field value with a suffix is one");
        fields.set(&ETAG, &tag);
    }
}

/// How the content of a request with these fields is recoded for its origin. `length` is that of its content.
/// `None`: it is not. A part (RFC 9110 §14.5) is not: `Content-Range` counts its bytes as they are.
pub(crate) fn plan_request(
    headers: &HeaderMap,
    length: Option<u64>,
    settings: &Settings,
) -> Option<RecodePlan> {
    let content_type = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let is_part = headers.contains_key(CONTENT_RANGE);
    if is_part || is_grpc(content_type) || headers.lines(&CACHE_CONTROL).any(has_no_transform) {
        return None;
    }
    let mut coded = headers.lines(&CONTENT_ENCODING).flat_map(members);
    let recoding = match (coded.next(), coded.next()) {
        (None, _) => {
            let is_listed =
                settings.content_types.iter().any(|it| it.matches(media_type(content_type)));
            let is_short = length.is_some_and(|length| length < settings.bytes_min);
            let to = settings.encode_requests.filter(|_| is_listed && !is_short);
            Recoding { from: None, to: Some(to?) }
        }
        (Some(coding), None) if settings.decode_requests => {
            let from = std::str::from_utf8(coding).ok()?.parse().ok()?;
            Recoding { from: Some(from), to: None }
        }
        (Some(_), _) => return None,
    };
    Some(RecodePlan { recoding, length, limit: settings.decode_limit })
}

/// Adds `Vary: Accept-Encoding`, unless the fields have it.
pub(crate) fn add_vary(fields: &mut FieldLines) {
    if !ContentFields::of(fields).varies {
        fields.append(&VARY, &HeaderValue::from_static("Accept-Encoding"));
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

    /// The levels of [`encode_hot`].
    fn hot_levels(self) -> std::ops::RangeInclusive<i32> {
        match self {
            Self::Gzip => 1..=12,
            Self::Zstd | Self::Brotli => self.levels(),
        }
    }
}

/// A coding that is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a known coding: expected zstd, br or gzip")]
pub(crate) struct UnknownCoding(Box<str>);

impl FromStr for Coding {
    type Err = UnknownCoding;

    /// Parses the name in `Content-Encoding`, in any case; `x-gzip` is gzip (RFC 9110 §8.4.1.3).
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

/// A level that the coding does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{coding} has no level {level}: expected {} to {}", .levels.start(), .levels.end())]
pub(crate) struct UnknownLevel {
    coding: Coding,
    level: i32,
    levels: std::ops::RangeInclusive<i32>,
}

impl Level {
    /// A level: 1 to 19 for zstd, 0 to 11 for br, 1 to 9 for gzip.
    pub(crate) fn new(coding: Coding, level: i32) -> Result<Self, UnknownLevel> {
        Self::within(coding, level, coding.levels())
    }

    /// A level of the forms of often requested responses: as [`Level::new`], but 1 to 12 for gzip.
    pub(crate) fn hot(coding: Coding, level: i32) -> Result<Self, UnknownLevel> {
        Self::within(coding, level, coding.hot_levels())
    }

    fn within(
        coding: Coding,
        level: i32,
        levels: std::ops::RangeInclusive<i32>,
    ) -> Result<Self, UnknownLevel> {
        match levels.contains(&level) {
            true => Ok(Self { coding, level }),
            false => Err(UnknownLevel { coding, level, levels }),
        }
    }

    /// The coding.
    pub(crate) fn coding(self) -> Coding {
        self.coding
    }
}

/// A set of media types: one (`application/json`), a type with all subtypes (`text/*`), or all with a
/// structured syntax suffix (`*/*+json`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MediaRange {
    /// This media type, in lower case.
    Type(Box<str>),
    /// All media types that start with this, which includes the slash, in lower case.
    Kind(Box<str>),
    /// All media types that end with this, which includes the plus, in lower case.
    Syntax(Box<str>),
}

/// A text that is not a media range.
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
    /// Whether the set has this media type, given without parameters.
    #[inline]
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

/// Fields that describe the bytes of the representation: RFC 9110 §8.6 and §14.3, RFC 9530 and its predecessors.
pub(crate) const OF_THE_BYTES: [HeaderName; 6] = [
    CONTENT_LENGTH,
    ACCEPT_RANGES,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// The default level of zstd.
const ZSTD_LEVEL: i32 = 3;
/// The default media types: text formats, and binary formats without compression of their own.
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
    use http::Response;

    use super::*;
    use crate::body::Body;
    use crate::metrics::Metrics;

    fn transformed(method: &Method, accept: &str, response: Reply) -> Reply {
        let mut request = HeaderMap::new();
        request.insert(http::header::ACCEPT_ENCODING, accept.parse().unwrap());
        let recorder = Metrics::new(1).worker(0);
        let settings = Settings::default();
        match transform(method, &RequestFields::of(&request), response, &settings) {
            Transformed::Ready(reply) | Transformed::AskAgain(reply) => reply,
            Transformed::Recode(mut reply, plan) => {
                reply.body = recode(reply.body, plan, &recorder);
                reply
            }
        }
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
        assert_eq!(field(&small, "etag"), Some("W/\"v1~br\""));
        assert_eq!(field(&small, "accept-ranges"), None);
        assert_eq!(field(&small, "repr-digest"), None);
        let vary: Vec<_> = small.fields.lines(&VARY).collect();
        assert_eq!(vary, [b"accept-language", b"Accept-Encoding"]);
        assert_eq!(field(&small, "content-length"), None);
        assert!(small.body.exact_length().is_some_and(|length| length < 100));
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
    fn the_content_of_a_request_is_recoded_unless_it_is_a_part_or_must_stay() {
        let gzip = Level::new(Coding::Gzip, 4).unwrap();
        let settings =
            Settings { decode_requests: true, encode_requests: Some(gzip), ..Settings::default() };
        let check = |fields: &[(&'static str, &str)], expected: Option<(bool, bool)>| {
            let line = |(name, value): &(&'static str, &str)| {
                (HeaderName::from_static(name), value.parse().unwrap())
            };
            let headers: HeaderMap = fields.iter().map(line).collect();
            let plan = plan_request(&headers, Some(5000), &settings);
            let found = plan.map(|it| (it.recoding.from.is_some(), it.recoding.to.is_some()));
            assert_eq!(found, expected, "{fields:?}");
        };
        let (text, coded) = (("content-type", "text/plain"), ("content-encoding", "br"));
        let part = ("content-range", "bytes 0-4999/9000");
        check(&[text], Some((false, true)));
        check(&[text, coded], Some((true, false)));
        check(&[text, part], None);
        check(&[coded, part], None);
        check(&[text, ("cache-control", "no-transform")], None);
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
        let produced: Vec<_> =
            Settings::default().codings.iter().map(|level| level.coding.as_str()).collect();
        assert_eq!(produced, ["zstd", "br", "gzip"]);
    }
}
