//! Whether a response is coded, decoded or left alone. Pure, and by fields alone.

use http::header::{CACHE_CONTROL, IF_NONE_MATCH};
use http::{HeaderMap, StatusCode};

use super::{Accepted, Coding, Level, Settings, media_type};
use crate::fields::{FieldLines, Fields, Known, is_grpc, members, number};

/// What to do with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodingPlan {
    /// What to do.
    pub action: CodingAction,
    /// Whether another `Accept-Encoding` would have led to another response: `Vary` names it,
    /// on this variant too (RFC 9110 §12.5.5).
    pub varies: bool,
}

/// What to do with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodingAction {
    /// Nothing, and why.
    Leave(Reason),
    /// Make the entity tag of a 304 the weak one that the client holds from a coded response.
    Weaken,
    /// Compress it.
    Encode(Level),
    /// Decompress it.
    Decode(Coding),
}

/// Why a response is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No coding is configured.
    Off,
    /// `no-transform` (RFC 9111 §5.2.2.6).
    NoTransform,
    /// It has no content, or is not final.
    Status,
    /// It is a part of a representation.
    Partial,
    /// It is coded already, in a way that the client takes or that we don't know.
    Coded,
    /// The content type is not on the list.
    ContentType,
    /// It is shorter than is worth it.
    Small,
    /// The client takes no coding that we have, or prefers none.
    NotAccepted,
}

impl Reason {
    /// The word for logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NoTransform => "no-transform",
            Self::Status => "status",
            Self::Partial => "partial",
            Self::Coded => "coded",
            Self::ContentType => "content-type",
            Self::Small => "small",
            Self::NotAccepted => "not-accepted",
        }
    }
}

/// What the fields of a response say of its content: every answer is looked at, so once.
#[derive(Debug, Default)]
pub(crate) struct Said<'a> {
    /// `Content-Length`, if it is one.
    pub length: Option<u64>,
    /// Whether `Vary` names `Accept-Encoding`, or all.
    pub varies: bool,
    content_type: Option<&'a [u8]>,
    coding: StoredCoding,
    etag: Option<&'a [u8]>,
    is_part: bool,
    no_transform: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum StoredCoding {
    #[default]
    Identity,
    Known(Coding),
    Other,
}

impl<'a> Said<'a> {
    /// By these fields.
    pub(crate) fn by(fields: &'a FieldLines) -> Self {
        let mut said = Self::default();
        for line in fields.walk() {
            let value = line.value();
            match line.known() {
                Known::ContentType => said.content_type = said.content_type.or(Some(value)),
                Known::ContentLength => said.length = number(value.trim_ascii()),
                Known::ContentEncoding => {
                    said.coding = members(value).fold(said.coding, StoredCoding::and);
                }
                Known::ContentRange => said.is_part = true,
                Known::Etag => said.etag = Some(value),
                Known::CacheControl => said.no_transform |= has_no_transform(value),
                Known::Vary => said.varies |= members(value).any(names_the_coding),
                _ => {}
            }
        }
        said
    }
}

impl StoredCoding {
    /// With this one on top.
    fn and(self, name: &[u8]) -> Self {
        let name = std::str::from_utf8(name).unwrap_or_default();
        match self {
            before if name.eq_ignore_ascii_case("identity") => before,
            Self::Identity => name.parse().map_or(Self::Other, Self::Known),
            Self::Known(_) | Self::Other => Self::Other,
        }
    }
}

/// Decides for the response that says this to the request with these fields. `body_length` is
/// asked only when `Content-Length` doesn't say how long the representation is.
pub(crate) fn plan(
    request: &HeaderMap,
    status: StatusCode,
    said: &Said<'_>,
    body_length: Option<u64>,
    settings: &Settings,
) -> CodingPlan {
    let leave = |reason| CodingPlan { action: CodingAction::Leave(reason), varies: false };
    if status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
    {
        return leave(Reason::Status);
    }
    if said.no_transform {
        return leave(Reason::NoTransform);
    }
    match said.coding {
        StoredCoding::Other => leave(Reason::Coded),
        StoredCoding::Known(_) if !settings.decode => leave(Reason::Coded),
        StoredCoding::Known(coding) => {
            CodingPlan { action: action_for_coded(request, status, said, coding), varies: true }
        }
        StoredCoding::Identity if settings.codings.is_empty() => leave(Reason::Off),
        StoredCoding::Identity if !is_listed(status, said, settings) => leave(Reason::ContentType),
        StoredCoding::Identity if is_small(status, said, body_length, settings) => {
            leave(Reason::Small)
        }
        StoredCoding::Identity => {
            CodingPlan { action: action_for_plain(request, status, said, settings), varies: true }
        }
    }
}

fn action_for_coded(
    request: &HeaderMap,
    status: StatusCode,
    said: &Said<'_>,
    coding: Coding,
) -> CodingAction {
    if Accepted::from_headers(request).allows(coding) {
        CodingAction::Leave(Reason::Coded)
    } else {
        whole(request, status, said).unwrap_or(CodingAction::Decode(coding))
    }
}

fn action_for_plain(
    request: &HeaderMap,
    status: StatusCode,
    said: &Said<'_>,
    settings: &Settings,
) -> CodingAction {
    match Accepted::from_headers(request).choose(&settings.codings) {
        None => CodingAction::Leave(Reason::NotAccepted),
        Some(level) => whole(request, status, said).unwrap_or(CodingAction::Encode(level)),
    }
}

/// What is done instead with a response that is not a whole representation, or may not be touched.
fn whole(request: &HeaderMap, status: StatusCode, said: &Said<'_>) -> Option<CodingAction> {
    if status == StatusCode::NOT_MODIFIED {
        let weak = holds_weak_etag(request, said);
        Some(if weak { CodingAction::Weaken } else { CodingAction::Leave(Reason::Status) })
    } else if status == StatusCode::PARTIAL_CONTENT || said.is_part {
        Some(CodingAction::Leave(Reason::Partial))
    } else if request.lines(&CACHE_CONTROL).any(has_no_transform) {
        Some(CodingAction::Leave(Reason::NoTransform))
    } else {
        None
    }
}

fn is_listed(status: StatusCode, said: &Said<'_>, settings: &Settings) -> bool {
    match said.content_type {
        // An origin's 304 needn't name its type: the 200 may be one that is coded.
        None => status == StatusCode::NOT_MODIFIED,
        Some(value) => {
            let media_type = media_type(value);
            // Each message is coded by itself, and read as it comes.
            !is_grpc(value) && settings.content_types.iter().any(|range| range.matches(media_type))
        }
    }
}

fn is_small(
    status: StatusCode,
    said: &Said<'_>,
    body_length: Option<u64>,
    settings: &Settings,
) -> bool {
    let length = match status {
        // That of the part, not of the representation.
        StatusCode::PARTIAL_CONTENT => None,
        // It has no body. What it says is the length of the 200 (RFC 9110 §8.6).
        StatusCode::NOT_MODIFIED => said.length,
        _ => said.length.or(body_length),
    };
    length.is_some_and(|length| length < settings.bytes_min)
}

/// Whether the client asked about the weak form of this response's strong entity tag: then what
/// it holds is a response that we coded, and a strong tag would not select it (RFC 9111 §4.3.4).
fn holds_weak_etag(request: &HeaderMap, said: &Said<'_>) -> bool {
    let Some(etag) = said.etag.and_then(|etag| std::str::from_utf8(etag).ok()) else {
        return false;
    };
    let weak = format!("W/{etag}");
    let mut lines = request.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    etag.starts_with('"') && lines.any(|line| line.contains(&weak))
}

fn names_the_coding(member: &[u8]) -> bool {
    member == b"*" || member.eq_ignore_ascii_case(b"accept-encoding")
}

fn has_no_transform(line: &[u8]) -> bool {
    members(line).any(|one| one.eq_ignore_ascii_case(b"no-transform"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    const HTML: &str = "content-type: text/html; charset=utf-8";

    fn planned(request: &[&str], status: u16, response: &[&str]) -> CodingPlan {
        let status = StatusCode::from_u16(status).unwrap();
        let response = FieldLines::from(&fields(response));
        plan(&fields(request), status, &Said::by(&response), None, &Settings::default())
    }

    /// For a client that takes gzip.
    fn check(status: u16, response: &[&str], expected: &str, varies: bool) {
        let plan = planned(&["accept-encoding: gzip"], status, response);
        let word = match plan.action {
            CodingAction::Leave(reason) => reason.as_str(),
            CodingAction::Weaken => "weaken",
            CodingAction::Encode(_) => "encode",
            CodingAction::Decode(_) => "decode",
        };
        assert_eq!((word, plan.varies), (expected, varies), "{status} {response:?}");
    }

    #[test]
    fn text_of_some_length_is_encoded_whatever_the_status_says_of_success() {
        check(200, &[HTML], "encode", true);
        check(404, &[HTML], "encode", true);
        check(200, &[HTML, "content-length: 256"], "encode", true);
        check(200, &[HTML, "content-length: 255"], "small", false);
        check(404, &[HTML, "content-length: 9"], "small", false);
        check(200, &["content-type: image/svg+xml"], "encode", true);
        check(200, &["content-type: text/event-stream"], "encode", true);
        check(200, &[HTML, "content-encoding: identity"], "encode", true);
    }

    #[test]
    fn what_is_compressed_inside_or_unnamed_is_left() {
        check(200, &["content-type: image/jpeg"], "content-type", false);
        check(200, &["content-type: font/woff2"], "content-type", false);
        check(200, &["content-type: application/zip"], "content-type", false);
        check(200, &[], "content-type", false);
    }

    #[test]
    fn a_grpc_call_is_left_whatever_the_list_says() {
        let range = "application/*".parse().expect("a media range");
        let settings = Settings { content_types: vec![range], ..Settings::default() };
        let check = |content_type: &str, expected: bool| {
            let fields = FieldLines::from(&fields(&[&format!("content-type: {content_type}")]));
            let said = Said::by(&fields);
            let found = is_listed(StatusCode::OK, &said, &settings);
            assert_eq!(found, expected, "{content_type}");
        };
        check("application/json", true);
        check("application/grpc-web", true);
        check("application/grpc", false);
        check("application/GRPC+proto", false);
        check("application/grpc;charset=x", false);
    }

    #[test]
    fn parts_and_empty_answers_are_left() {
        let range = "content-range: bytes 0-9/1000";
        check(206, &[HTML, range, "content-length: 10"], "partial", true);
        check(206, &["content-type: image/png", range], "content-type", false);
        check(416, &[HTML, "content-range: bytes */1000"], "partial", true);
        check(204, &[HTML], "status", false);
        check(205, &[HTML], "status", false);
        check(101, &[HTML], "status", false);
    }

    #[test]
    fn no_transform_forbids_it_from_either_side() {
        check(200, &[HTML, "cache-control: max-age=1, No-Transform"], "no-transform", false);
        check(
            200,
            &[HTML, "cache-control: a", "cache-control: no-transform"],
            "no-transform",
            false,
        );
        let request = ["accept-encoding: gzip", "cache-control: no-transform"];
        let plan = planned(&request, 200, &[HTML]);
        assert_eq!(
            plan,
            CodingPlan { action: CodingAction::Leave(Reason::NoTransform), varies: true }
        );
    }

    #[test]
    fn what_is_coded_is_left_to_who_takes_it_and_decoded_for_who_does_not() {
        check(200, &[HTML, "content-encoding: gzip"], "coded", true);
        check(200, &[HTML, "content-encoding: x-gzip"], "coded", true);
        check(200, &[HTML, "content-encoding: br"], "decode", true);
        check(200, &["content-type: image/png", "content-encoding: zstd"], "decode", true);
        check(206, &[HTML, "content-encoding: br", "content-range: bytes 0-9/99"], "partial", true);
        check(200, &[HTML, "content-encoding: deflate"], "coded", false);
        check(200, &[HTML, "content-encoding: br, gzip"], "coded", false);
        check(
            200,
            &[HTML, "content-encoding: br", "cache-control: no-transform"],
            "no-transform",
            false,
        );
    }

    #[test]
    fn the_plain_variant_varies_too() {
        let plan = planned(&[], 200, &[HTML]);
        assert_eq!(
            plan,
            CodingPlan { action: CodingAction::Leave(Reason::NotAccepted), varies: true }
        );
    }

    #[test]
    fn a_304_speaks_of_the_variant_that_the_client_holds() {
        let check = |if_none_match: &str, response: &[&str], expected, varies| {
            let request = ["accept-encoding: gzip", if_none_match];
            assert_eq!(planned(&request, 304, response), CodingPlan { action: expected, varies });
        };
        let left = CodingAction::Leave(Reason::Status);
        check(
            "if-none-match: \"x\", W/\"a,b\"",
            &["etag: \"a,b\"", HTML],
            CodingAction::Weaken,
            true,
        );
        check("if-none-match: W/\"a\"", &["etag: \"a\""], CodingAction::Weaken, true);
        check("if-none-match: \"a\"", &["etag: \"a\"", HTML], left, true);
        check("if-none-match: W/\"a\"", &["etag: W/\"a\"", HTML], left, true);
        let image = [("etag: \"a\""), "content-type: image/png"];
        check("if-none-match: W/\"a\"", &image, CodingAction::Leave(Reason::ContentType), false);
        // Of the 200's type nothing is known.
        check("if-none-match: \"a\"", &["etag: \"a\""], left, true);
        let small = ["etag: \"a\"", HTML, "content-length: 255"];
        check("if-none-match: \"a\"", &small, CodingAction::Leave(Reason::Small), false);
        let gzip = ["etag: \"a\"", "content-encoding: gzip"];
        check("if-none-match: \"a\"", &gzip, CodingAction::Leave(Reason::Coded), true);
    }
}
