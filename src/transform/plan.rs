//! Decides whether a response is compressed, decompressed or left unchanged: a pure function of status, header
//! fields and body length.

use http::header::{AUTHORIZATION, CACHE_CONTROL, SET_COOKIE};
use http::{HeaderMap, StatusCode};

use super::negotiate::Choice;
use super::{Accepted, Coding, Level, MediaRange, Settings, media_type};
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

/// The steps for the content of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodingAction {
    /// Leave it unchanged, for this reason.
    Leave(LeaveReason),
    /// Change its coding.
    Recode(Recoding),
    /// Its origin coded it and forbids changes (`no-transform`), but the client does not accept the coding: ask the
    /// origin for content that this client accepts.
    AskAgain,
}

/// A change of coding: compress, decompress, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recoding {
    /// The coding to remove first.
    pub from: Option<Coding>,
    /// The coding to apply then. At least one of both is present.
    pub to: Option<Level>,
}

impl Recoding {
    /// The coding of the result. `None`: none.
    pub(crate) fn coding(self) -> Option<Coding> {
        self.to.map(Level::coding)
    }
}

/// Why a response is left unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaveReason {
    /// No coding is configured.
    Off,
    /// `no-transform` (RFC 9111 §5.2.2.6).
    NoTransform,
    /// The status is of a response without content, or of an interim response.
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
    /// The response is for one client, has no coding, and the site does not compress such ones.
    Private,
}

/// The fields of a request, and the codings that they accept, which are read once a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestFields<'a> {
    /// All fields.
    pub fields: &'a HeaderMap,
    /// `Accept-Encoding`.
    pub accepted: Accepted,
}

impl<'a> RequestFields<'a> {
    /// Reads `Accept-Encoding`.
    #[cfg(test)]
    pub(super) fn of(fields: &'a HeaderMap) -> Self {
        Self { fields, accepted: Accepted::from_headers(fields) }
    }
}

/// The facts about content in the fields of a response, read in one pass.
#[derive(Debug)]
pub(crate) struct ContentFields<'a> {
    /// `Content-Length`, if it is valid.
    pub length: Option<u64>,
    /// Whether `Vary` has `Accept-Encoding` or `*`.
    pub varies: bool,
    content_type: Option<&'a [u8]>,
    coding: ContentCoding,
    is_part: bool,
    no_transform: bool,
    fields: &'a FieldLines,
}

#[derive(Clone, Copy, Debug)]
enum ContentCoding {
    Identity,
    Known(Coding),
    Other,
}

impl<'a> ContentFields<'a> {
    /// Reads the fields.
    pub(crate) fn of(fields: &'a FieldLines) -> Self {
        let mut content = Self {
            length: None,
            varies: false,
            content_type: None,
            coding: ContentCoding::Identity,
            is_part: false,
            no_transform: false,
            fields,
        };
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
                Known::CacheControl => content.no_transform |= has_no_transform(value),
                Known::Vary => content.varies |= members(value).any(is_accept_encoding_or_star),
                _ => {}
            }
        }
        content
    }
}

impl ContentFields<'_> {
    /// Whether the response is for one client. Read only for sites that do not compress such responses.
    fn is_private(&self) -> bool {
        self.fields.walk().any(|line| match line.known() {
            Known::CacheControl => members(line.value()).any(is_private),
            Known::Other => line.name().is(&SET_COOKIE),
            _ => false,
        })
    }

    /// The coding of the content; within, `None` is identity. `None` if it is not supported.
    pub(crate) fn known_coding(&self) -> Option<Option<Coding>> {
        match self.coding {
            ContentCoding::Identity => Some(None),
            ContentCoding::Known(coding) => Some(Some(coding)),
            ContentCoding::Other => None,
        }
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
    request: &RequestFields<'_>,
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
        let action = CodingAction::Leave(LeaveReason::NoTransform);
        return match content.coding {
            // Other clients may get it without the coding.
            ContentCoding::Known(coding) if settings.decode => CodingPlan {
                action: if request.accepted.allows(coding) {
                    action
                } else {
                    CodingAction::AskAgain
                },
                needs_vary: true,
            },
            _ => leave(LeaveReason::NoTransform),
        };
    }
    let RequestFields { fields: request, accepted } = *request;
    let stored = match content.coding {
        ContentCoding::Other => return leave(LeaveReason::Coded),
        ContentCoding::Known(_) if !settings.decode => return leave(LeaveReason::Coded),
        ContentCoding::Known(coding) => Some(coding),
        ContentCoding::Identity if settings.codings.is_empty() => return leave(LeaveReason::Off),
        ContentCoding::Identity if !has_listed_type(status, content, settings) => {
            return leave(LeaveReason::ContentType);
        }
        ContentCoding::Identity
            if is_small(status, content, body_length, settings) && !accepted.refuses_identity() =>
        {
            return leave(LeaveReason::Small);
        }
        ContentCoding::Identity => None,
    };
    let is_excluded =
        !settings.private && (content.is_private() || request.contains_key(AUTHORIZATION));
    if is_excluded && stored.is_none() {
        return leave(LeaveReason::Private);
    }
    let codings = match stored {
        // Decoded only: the origin was asked for codings that this client may not accept. Compressing it is for other
        // responses, and for the listed types.
        Some(_) if is_excluded || !has_listed_type(status, content, settings) => &[][..],
        _ => &settings.codings,
    };
    let recoding = match accepted.choose(stored, codings) {
        Choice::Stored if stored.is_none() => Err(LeaveReason::NotAccepted),
        Choice::Stored => Err(LeaveReason::Coded),
        Choice::Coded(level) => Ok(Recoding { from: stored, to: Some(level) }),
        Choice::Decoded => Ok(Recoding { from: stored, to: None }),
    };
    let recoding = recoding.and_then(|recoding| match reason_to_keep(request, status, content) {
        Some(reason) => Err(reason),
        None => Ok(recoding),
    });
    let action = recoding.map_or_else(CodingAction::Leave, CodingAction::Recode);
    CodingPlan { action, needs_vary: true }
}

/// Why the response must not be coded or decoded, although another coding is chosen: it is a 304, a part, or
/// the response to a request with `no-transform`.
fn reason_to_keep(
    request: &HeaderMap,
    status: StatusCode,
    content: &ContentFields<'_>,
) -> Option<LeaveReason> {
    if status == StatusCode::NOT_MODIFIED {
        Some(LeaveReason::Status)
    } else if status == StatusCode::PARTIAL_CONTENT || content.is_part {
        Some(LeaveReason::Partial)
    } else if request.lines(&CACHE_CONTROL).any(has_no_transform) {
        Some(LeaveReason::NoTransform)
    } else {
        None
    }
}

/// Whether content of this type is compressed.
pub(crate) fn has_listed_type(
    status: StatusCode,
    content: &ContentFields<'_>,
    settings: &Settings,
) -> bool {
    match content.content_type {
        // A 304 may omit `Content-Type`; assume that the 200 has a listed type.
        None => status == StatusCode::NOT_MODIFIED,
        Some(value) => {
            let media_type = media_type(value);
            // A reader of events waits for each; only a site that names the type wants it coded.
            let must_be_named = media_type.eq_ignore_ascii_case(EVENTS);
            let is_listed = |range: &MediaRange| {
                range.matches(media_type)
                    && (!must_be_named || matches!(range, MediaRange::Type(_)))
            };
            // gRPC compresses each message itself, and its client reads messages as they arrive.
            !is_grpc(value) && settings.content_types.iter().any(is_listed)
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

fn is_accept_encoding_or_star(member: &[u8]) -> bool {
    member == b"*" || member.eq_ignore_ascii_case(b"accept-encoding")
}

/// Directives of responses that are for one client.
fn is_private(directive: &[u8]) -> bool {
    let name = directive.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
    name.eq_ignore_ascii_case(b"private") || name.eq_ignore_ascii_case(b"no-store")
}

/// Whether a line of `Cache-Control` has `no-transform`.
pub(super) fn has_no_transform(line: &[u8]) -> bool {
    members(line).any(|one| one.eq_ignore_ascii_case(b"no-transform"))
}

/// Server-sent events.
const EVENTS: &[u8] = b"text/event-stream";

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
        let request = fields(request);
        let request = RequestFields::of(&request);
        plan(&request, status, &ContentFields::of(&response), None, &Settings::default())
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
            LeaveReason::Private => "private",
        }
    }

    /// Checks the plan for a client that accepts gzip.
    fn check(status: u16, response: &[&str], expected: &str, varies: bool) {
        let plan = planned(&["accept-encoding: gzip"], status, response);
        let word = match plan.action {
            CodingAction::Leave(reason) => word(reason),
            CodingAction::Recode(Recoding { from: None, .. }) => "encode",
            CodingAction::Recode(Recoding { to: None, .. }) => "decode",
            CodingAction::Recode(_) => "recode",
            CodingAction::AskAgain => "ask again",
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
        check(200, &["content-type: text/event-stream"], "content-type", false);
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
    fn an_encoded_response_is_recoded_only_if_the_client_does_not_accept_its_coding() {
        check(200, &[HTML, "content-encoding: gzip"], "coded", true);
        check(200, &[HTML, "content-encoding: x-gzip"], "coded", true);
        check(200, &[HTML, "content-encoding: br"], "recode", true);
        check(200, &["content-type: image/png", "content-encoding: zstd"], "decode", true);
        check(206, &[HTML, "content-encoding: br", "content-range: bytes 0-9/99"], "partial", true);
        check(200, &[HTML, "content-encoding: deflate"], "coded", false);
        check(200, &[HTML, "content-encoding: br, gzip"], "coded", false);
    }

    #[test]
    fn a_coded_response_with_no_transform_is_for_clients_that_accept_its_coding() {
        let check_coding = |coding, expected, varies| {
            check(200, &[HTML, coding, "cache-control: no-transform"], expected, varies);
        };
        check_coding("content-encoding: br", "ask again", true);
        check_coding("content-encoding: gzip", "no-transform", true);
        check_coding("content-encoding: deflate", "no-transform", false);
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
    fn a_304_varies_as_its_200_and_is_not_coded() {
        let check = |response: &[&str], reason, varies| {
            let plan = planned(&["accept-encoding: gzip"], 304, response);
            assert_eq!(
                plan,
                CodingPlan { action: CodingAction::Leave(reason), needs_vary: varies }
            );
        };
        check(&["etag: \"a\"", HTML], LeaveReason::Status, true);
        check(&["etag: \"a\"", "content-type: image/png"], LeaveReason::ContentType, false);
        // The content type of the 200 is not known.
        check(&["etag: \"a\""], LeaveReason::Status, true);
        check(&["etag: \"a\"", HTML, "content-length: 255"], LeaveReason::Small, false);
        check(&["etag: \"a\"", "content-encoding: gzip"], LeaveReason::Coded, true);
        check(&["etag: \"a\"", "content-encoding: br"], LeaveReason::Status, true);
    }

    #[test]
    fn events_are_coded_only_where_their_type_is_named() {
        let settings = Settings {
            content_types: vec!["text/event-stream".parse().unwrap()],
            ..Settings::default()
        };
        let fields = FieldLines::from(&fields(&["content-type: Text/Event-Stream; charset=utf-8"]));
        let content = ContentFields::of(&fields);
        assert!(has_listed_type(StatusCode::OK, &content, &settings));
        assert!(!has_listed_type(StatusCode::OK, &content, &Settings::default()));
    }

    #[test]
    fn a_client_that_refuses_identity_gets_short_content_coded() {
        let short = [HTML, "content-length: 10"];
        let plan = planned(&["accept-encoding: gzip, identity;q=0"], 200, &short);
        assert!(matches!(plan.action, CodingAction::Recode(_)));
        let plan = planned(&["accept-encoding: gzip, *;q=0"], 200, &short);
        assert!(matches!(plan.action, CodingAction::Recode(_)));
    }

    #[test]
    fn responses_for_one_client_are_left_where_the_site_says_so() {
        let off = Settings { private: false, ..Settings::default() };
        let check = |request: &[&str], response: &[&str], expected| {
            let request = fields(&[&["accept-encoding: gzip"], request].concat());
            let response = FieldLines::from(&fields(&[&[HTML], response].concat()));
            let content = ContentFields::of(&response);
            let is_left = |settings| {
                let request = RequestFields::of(&request);
                let plan = plan(&request, StatusCode::OK, &content, None, settings);
                plan.action == CodingAction::Leave(LeaveReason::Private)
            };
            assert_eq!((is_left(&off), is_left(&Settings::default())), (expected, false));
        };
        check(&[], &[], false);
        check(&[], &["cache-control: max-age=5, Private"], true);
        check(&[], &["cache-control: private=\"x\""], true);
        check(&[], &["cache-control: no-store"], true);
        check(&[], &["set-cookie: a=b"], true);
        check(&["authorization: x"], &[], true);
        check(&["cookie: a=b"], &[], false);
    }

    #[test]
    fn a_coded_response_for_one_client_is_decoded_but_never_coded_again() {
        let off = Settings { private: false, ..Settings::default() };
        let check = |request: &[&str], response: &[&str], expected: CodingAction| {
            let request = fields(request);
            let response = [&[HTML, "content-encoding: gzip"], response].concat();
            let response = FieldLines::from(&fields(&response));
            let (request, content) = (RequestFields::of(&request), ContentFields::of(&response));
            let found = plan(&request, StatusCode::OK, &content, None, &off);
            assert_eq!((found.action, found.needs_vary), (expected, true), "{request:?}");
        };
        let decode = CodingAction::Recode(Recoding { from: Some(Coding::Gzip), to: None });
        let leave = CodingAction::Leave(LeaveReason::Coded);
        check(&["accept-encoding: br"], &["set-cookie: a=b"], decode);
        check(&[], &["cache-control: private"], decode);
        check(&["authorization: x"], &[], decode);
        check(&["authorization: x", "accept-encoding: gzip, br"], &[], leave);
    }
}
