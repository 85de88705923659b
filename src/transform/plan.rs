//! Decides whether a response is compressed, decompressed or left unchanged: a pure function of status, header
//! fields and body length.

use http::header::{CACHE_CONTROL, IF_NONE_MATCH};
use http::{HeaderMap, StatusCode};

use super::{Accepted, Coding, Level, Settings, media_type};
use crate::fields::{FieldLines, Fields, Known, is_grpc, members, number};

/// The action for a response, and whether the response needs `Vary: Accept-Encoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodingPlan {
    /// The action.
    pub action: CodingAction,
    /// Whether another `Accept-Encoding` could lead to another response. `Vary` must then name it, also
    /// when the response is left unchanged (RFC 9110 §12.5.5).
    pub needs_vary: bool,
}

/// What to do with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodingAction {
    /// Leave it unchanged, for this reason.
    Leave(LeaveReason),
    /// Weaken the entity tag of a 304, because the client holds an encoded response with the weak tag.
    WeakenEtag,
    /// Compress it.
    Encode(Level),
    /// Decompress it.
    Decode(Coding),
}

/// Why a response is left unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaveReason {
    /// No coding is configured.
    Off,
    /// `no-transform` (RFC 9111 §5.2.2.6).
    NoTransform,
    /// The status is of a response without content, of an interim response, or of a 304 whose entity tag
    /// needs no change.
    Status,
    /// The response is a part of a representation.
    Partial,
    /// The response is coded, with a coding that the client accepts or that is not supported.
    Coded,
    /// The content type is not on the list.
    ContentType,
    /// The content is shorter than [`Settings::bytes_min`].
    Small,
    /// The client accepts none of the configured codings, or prefers identity.
    NotAccepted,
}

/// What the fields of a response say about its content, read in one pass.
#[derive(Debug, Default)]
pub(crate) struct ContentFields<'a> {
    /// `Content-Length`, if it is valid.
    pub length: Option<u64>,
    /// Whether `Vary` has `Accept-Encoding` or `*`.
    pub varies: bool,
    content_type: Option<&'a [u8]>,
    coding: ContentCoding,
    etag: Option<&'a [u8]>,
    is_part: bool,
    no_transform: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum ContentCoding {
    #[default]
    Identity,
    Known(Coding),
    Other,
}

impl<'a> ContentFields<'a> {
    /// Reads the fields.
    pub(crate) fn of(fields: &'a FieldLines) -> Self {
        let mut content = Self::default();
        for line in fields.walk() {
            let value = line.value();
            match line.known() {
                Known::ContentType => content.content_type = content.content_type.or(Some(value)),
                Known::ContentLength => content.length = number(value.trim_ascii()),
                Known::ContentEncoding => {
                    content.coding =
                        members(value).fold(content.coding, ContentCoding::with_member);
                }
                Known::ContentRange => content.is_part = true,
                Known::Etag => content.etag = Some(value),
                Known::CacheControl => content.no_transform |= has_no_transform(value),
                Known::Vary => content.varies |= members(value).any(is_accept_encoding_or_star),
                _ => {}
            }
        }
        content
    }
}

impl ContentCoding {
    /// Adds the next member of `Content-Encoding`.
    fn with_member(self, name: &[u8]) -> Self {
        let name = std::str::from_utf8(name).unwrap_or_default();
        match self {
            before if name.eq_ignore_ascii_case("identity") => before,
            Self::Identity => name.parse().map_or(Self::Other, Self::Known),
            Self::Known(_) | Self::Other => Self::Other,
        }
    }
}

/// Decides for a response with this content to a request with these fields. `body_length` is used only
/// if the response has no `Content-Length`.
pub(crate) fn plan(
    request: &HeaderMap,
    status: StatusCode,
    content: &ContentFields<'_>,
    body_length: Option<u64>,
    settings: &Settings,
) -> CodingPlan {
    let leave = |reason| CodingPlan { action: CodingAction::Leave(reason), needs_vary: false };
    if status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
    {
        return leave(LeaveReason::Status);
    }
    if content.no_transform {
        return leave(LeaveReason::NoTransform);
    }
    match content.coding {
        ContentCoding::Other => leave(LeaveReason::Coded),
        ContentCoding::Known(_) if !settings.decode => leave(LeaveReason::Coded),
        ContentCoding::Known(coding) => CodingPlan {
            action: action_for_encoded(request, status, content, coding),
            needs_vary: true,
        },
        ContentCoding::Identity if settings.codings.is_empty() => leave(LeaveReason::Off),
        ContentCoding::Identity if !has_listed_type(status, content, settings) => {
            leave(LeaveReason::ContentType)
        }
        ContentCoding::Identity if is_small(status, content, body_length, settings) => {
            leave(LeaveReason::Small)
        }
        ContentCoding::Identity => CodingPlan {
            action: action_for_identity(request, status, content, settings),
            needs_vary: true,
        },
    }
}

fn action_for_encoded(
    request: &HeaderMap,
    status: StatusCode,
    content: &ContentFields<'_>,
    coding: Coding,
) -> CodingAction {
    if Accepted::from_headers(request).allows(coding) {
        CodingAction::Leave(LeaveReason::Coded)
    } else {
        action_if_not_transformable(request, status, content)
            .unwrap_or(CodingAction::Decode(coding))
    }
}

fn action_for_identity(
    request: &HeaderMap,
    status: StatusCode,
    content: &ContentFields<'_>,
    settings: &Settings,
) -> CodingAction {
    match Accepted::from_headers(request).choose(&settings.codings) {
        None => CodingAction::Leave(LeaveReason::NotAccepted),
        Some(level) => action_if_not_transformable(request, status, content)
            .unwrap_or(CodingAction::Encode(level)),
    }
}

/// The action for a response that must not be coded or decoded: a 304, a part, or one to a request with
/// `no-transform`. `None` for any other.
fn action_if_not_transformable(
    request: &HeaderMap,
    status: StatusCode,
    content: &ContentFields<'_>,
) -> Option<CodingAction> {
    if status == StatusCode::NOT_MODIFIED {
        let weak = holds_weak_etag(request, content);
        Some(if weak { CodingAction::WeakenEtag } else { CodingAction::Leave(LeaveReason::Status) })
    } else if status == StatusCode::PARTIAL_CONTENT || content.is_part {
        Some(CodingAction::Leave(LeaveReason::Partial))
    } else if request.lines(&CACHE_CONTROL).any(has_no_transform) {
        Some(CodingAction::Leave(LeaveReason::NoTransform))
    } else {
        None
    }
}

fn has_listed_type(status: StatusCode, content: &ContentFields<'_>, settings: &Settings) -> bool {
    match content.content_type {
        // A 304 may omit `Content-Type`; assume that the 200 has a listed type.
        None => status == StatusCode::NOT_MODIFIED,
        Some(value) => {
            let media_type = media_type(value);
            // gRPC compresses each message itself, and its client reads messages as they arrive.
            !is_grpc(value) && settings.content_types.iter().any(|range| range.matches(media_type))
        }
    }
}

fn is_small(
    status: StatusCode,
    content: &ContentFields<'_>,
    body_length: Option<u64>,
    settings: &Settings,
) -> bool {
    let length = match status {
        // `Content-Length` of a 206 is the length of the part.
        StatusCode::PARTIAL_CONTENT => None,
        // A 304 has no body; its `Content-Length` is that of the 200 (RFC 9110 §8.6).
        StatusCode::NOT_MODIFIED => content.length,
        _ => content.length.or(body_length),
    };
    length.is_some_and(|length| length < settings.bytes_min)
}

/// Whether the client sent the weak form of this response's strong entity tag: it holds a response that this
/// node coded, which a strong tag does not select (RFC 9111 §4.3.4).
fn holds_weak_etag(request: &HeaderMap, content: &ContentFields<'_>) -> bool {
    let Some(etag) = content.etag.and_then(|etag| std::str::from_utf8(etag).ok()) else {
        return false;
    };
    let weak = format!("W/{etag}");
    let mut lines = request.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    etag.starts_with('"') && lines.any(|line| line.contains(&weak))
}

fn is_accept_encoding_or_star(member: &[u8]) -> bool {
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
        plan(&fields(request), status, &ContentFields::of(&response), None, &Settings::default())
    }

    fn word(reason: LeaveReason) -> &'static str {
        match reason {
            LeaveReason::Off => "off",
            LeaveReason::NoTransform => "no-transform",
            LeaveReason::Status => "status",
            LeaveReason::Partial => "partial",
            LeaveReason::Coded => "coded",
            LeaveReason::ContentType => "content-type",
            LeaveReason::Small => "small",
            LeaveReason::NotAccepted => "not-accepted",
        }
    }

    /// Checks the plan for a client that accepts gzip.
    fn check(status: u16, response: &[&str], expected: &str, varies: bool) {
        let plan = planned(&["accept-encoding: gzip"], status, response);
        let word = match plan.action {
            CodingAction::Leave(reason) => word(reason),
            CodingAction::WeakenEtag => "weaken",
            CodingAction::Encode(_) => "encode",
            CodingAction::Decode(_) => "decode",
        };
        assert_eq!((word, plan.needs_vary), (expected, varies), "{status} {response:?}");
    }

    #[test]
    fn text_of_at_least_bytes_min_is_compressed_for_any_final_status() {
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
    fn compressed_formats_and_responses_without_content_type_are_unchanged() {
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
            let content = ContentFields::of(&fields);
            let found = has_listed_type(StatusCode::OK, &content, &settings);
            assert_eq!(found, expected, "{content_type}");
        };
        check("application/json", true);
        check("application/grpc-web", true);
        check("application/grpc", false);
        check("application/GRPC+proto", false);
        check("application/grpc;charset=x", false);
    }

    #[test]
    fn parts_and_responses_without_content_are_unchanged() {
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
            CodingPlan { action: CodingAction::Leave(LeaveReason::NoTransform), needs_vary: true }
        );
    }

    #[test]
    fn an_encoded_response_is_decoded_only_if_the_client_does_not_accept_its_coding() {
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
    fn an_uncompressed_variant_has_vary() {
        let plan = planned(&[], 200, &[HTML]);
        assert_eq!(
            plan,
            CodingPlan { action: CodingAction::Leave(LeaveReason::NotAccepted), needs_vary: true }
        );
    }

    #[test]
    fn a_304_has_the_entity_tag_of_the_clients_variant() {
        let check = |if_none_match: &str, response: &[&str], expected, varies| {
            let request = ["accept-encoding: gzip", if_none_match];
            assert_eq!(
                planned(&request, 304, response),
                CodingPlan { action: expected, needs_vary: varies }
            );
        };
        let left = CodingAction::Leave(LeaveReason::Status);
        check(
            "if-none-match: \"x\", W/\"a,b\"",
            &["etag: \"a,b\"", HTML],
            CodingAction::WeakenEtag,
            true,
        );
        check("if-none-match: W/\"a\"", &["etag: \"a\""], CodingAction::WeakenEtag, true);
        check("if-none-match: \"a\"", &["etag: \"a\"", HTML], left, true);
        check("if-none-match: W/\"a\"", &["etag: W/\"a\"", HTML], left, true);
        let image = [("etag: \"a\""), "content-type: image/png"];
        check(
            "if-none-match: W/\"a\"",
            &image,
            CodingAction::Leave(LeaveReason::ContentType),
            false,
        );
        // The content type of the 200 is not known.
        check("if-none-match: \"a\"", &["etag: \"a\""], left, true);
        let small = ["etag: \"a\"", HTML, "content-length: 255"];
        check("if-none-match: \"a\"", &small, CodingAction::Leave(LeaveReason::Small), false);
        let gzip = ["etag: \"a\"", "content-encoding: gzip"];
        check("if-none-match: \"a\"", &gzip, CodingAction::Leave(LeaveReason::Coded), true);
    }
}
