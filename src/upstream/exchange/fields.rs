//! Changes to messages on the hop to an origin: `Host` and target of requests, hop-by-hop fields of
//! responses. Does no I/O.

use std::time::Duration;

use http::header::{
    ACCEPT_RANGES, AGE, ALT_SVC, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING,
    CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, EXPECT, EXPIRES,
    HOST, LAST_MODIFIED, LOCATION, RETRY_AFTER, SERVER, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE, VARY,
};
use http::uri::PathAndQuery;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};

use super::super::connection::HttpVersion;
use super::super::pool::members::Member;
use crate::body::{Body, BodySource};
use crate::fields::{members, number};
use crate::interim::Interims;
use crate::metrics::{Metric, Recorder};
use crate::peers::is_peer_field;

/// The fields of a request on which its way to the origin depends.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::upstream) struct Present {
    pub(in crate::upstream) host: bool,
    pub(in crate::upstream) length: bool,
    pub(in crate::upstream) expect: bool,
}

impl Present {
    /// Looks at each field once: comparing names costs less than hashing three.
    pub(in crate::upstream) fn among(headers: &HeaderMap) -> Self {
        let mut present = Self::default();
        for name in headers.keys() {
            match *name {
                HOST => present.host = true,
                CONTENT_LENGTH => present.length = true,
                EXPECT => present.expect = true,
                _ => {}
            }
        }
        present
    }
}

/// Sets `Host`, URI and version as the protocol and the pool require.
pub(in crate::upstream) fn direct(
    request: &mut Request<Body>,
    present: Present,
    origin: &Member,
    version: HttpVersion,
) {
    if let Some(host) = &origin.host {
        request.headers_mut().insert(HOST, host.clone());
    } else if !present.host {
        let authority = request.uri().authority().unwrap_or(&origin.authority).as_str();
        let host = HeaderValue::from_str(authority).expect("an authority is a field value");
        request.headers_mut().insert(HOST, host);
    }
    if version == HttpVersion::Http2 {
        let host = request.headers_mut().remove(HOST);
        let authority = host.and_then(|host| host.as_bytes().try_into().ok());
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        // A peer is told the scheme by which the client came.
        parts.scheme.get_or_insert_with(|| origin.scheme.as_str().parse().expect("http or https"));
        parts.authority = Some(authority.unwrap_or_else(|| origin.authority.clone()));
        parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from_parts(parts).expect("all three parts are there");
        *request.version_mut() = Version::HTTP_2;
    } else {
        if request.uri().authority().is_some() {
            let path = std::mem::take(request.uri_mut()).into_parts().path_and_query;
            *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        }
        *request.version_mut() = Version::HTTP_11;
    }
}

/// Adds the framing of content to an HTTP/1.1 request that has none. hyper would drop content of
/// unknown length on GET and HEAD.
pub(in crate::upstream) fn frame_content(request: &mut Request<Body>, present: Present) {
    if present.length {
        return;
    }
    if request.body().exact_length().is_none() {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if request.body().is_end_stream()
        && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH)
    {
        // RFC 9110 §8.6: a method that defines content announces that there is none.
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
}

/// Leaves one line of each repeated field that may occur only once (RFC 9110 §5.3), because
/// recipients could read either line. Different lines of a field about the content or its place are
/// an error.
///
/// # Errors
/// Names the field whose lines differ.
pub(in crate::upstream) fn keep_one_line(headers: &mut HeaderMap) -> Result<(), HeaderName> {
    // Most responses repeat no field.
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    for (name, difference) in SINGLE {
        let mut lines = headers.get_all(&name).iter();
        let Some(first) = lines.next().cloned() else { continue };
        let (mut is_repeated, mut agree) = (false, true);
        for line in lines {
            is_repeated = true;
            agree &= *line == first;
        }
        match (agree, difference) {
            (false, Difference::Refused) => return Err(name),
            (true, _) | (false, Difference::FirstCounts) if is_repeated => {
                headers.insert(name, first);
            }
            _ => {}
        }
    }
    Ok(())
}

/// How to treat different lines of a field that may occur only once.
#[derive(Clone, Copy)]
enum Difference {
    /// The response is refused.
    Refused,
    /// The first line is kept.
    FirstCounts,
    /// All are kept: the field is a list, or the cache treats the response as stale (RFC 9111 §4.2.1).
    Kept,
}

const SINGLE: [(HeaderName, Difference); 14] = [
    (CONTENT_LENGTH, Difference::Refused),
    (CONTENT_RANGE, Difference::Refused),
    (CONTENT_TYPE, Difference::Refused),
    (LOCATION, Difference::Refused),
    (AGE, Difference::FirstCounts),
    (ACCEPT_RANGES, Difference::Kept),
    (CONTENT_LOCATION, Difference::FirstCounts),
    (DATE, Difference::FirstCounts),
    (ETAG, Difference::FirstCounts),
    (EXPIRES, Difference::Kept),
    (LAST_MODIFIED, Difference::Kept),
    (RETRY_AFTER, Difference::FirstCounts),
    (SERVER, Difference::FirstCounts),
    (VARY, Difference::Kept),
];

/// The information of a response's hop-by-hop fields.
#[derive(Default)]
pub(in crate::upstream) struct HopByHop {
    /// How long the origin keeps the connection open: `Keep-Alive: timeout=5`. The field is no longer
    /// standard, but Apache and Node.js send it and close the connection then.
    pub(in crate::upstream) kept_for: Option<Duration>,
    lengths: u32,
    codings: u32,
    is_chunked: bool,
}

/// Whether `Upgrade` is removed with the other hop-by-hop fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Upgrade {
    /// The usual case: the protocols that the origin offers do not concern the client's connection.
    Dropped,
    /// For a 101, and for a 426, which requires it (RFC 9110 §15.5.22).
    Kept,
}

impl Upgrade {
    pub(in crate::upstream) fn of(status: StatusCode) -> Self {
        if status == StatusCode::UPGRADE_REQUIRED { Self::Kept } else { Self::Dropped }
    }
}

/// Whether a 101 with these fields switches only to protocols that were requested. One that names no
/// protocol (RFC 9110 §15.2.2) does not.
pub(in crate::upstream) fn is_asked_for(asked: &HeaderValue, headers: &HeaderMap) -> bool {
    let mut switched = headers.get_all(UPGRADE).iter().flat_map(|line| members(line.as_bytes()));
    let is_asked =
        |protocol: &[u8]| members(asked.as_bytes()).any(|one| one.eq_ignore_ascii_case(protocol));
    switched.next().is_some_and(is_asked) && switched.all(is_asked)
}

/// Removes the hop-by-hop fields (RFC 9110 §7.6.1), which hyper has processed, and returns their
/// information. Removes the fields of the peer protocol too, and `Alt-Svc` (RFC 7838): clients connect to this node, which
/// serves none of the protocols and ports that the origin names. Looks at each field once.
pub(in crate::upstream) fn take_hop_by_hop(headers: &mut HeaderMap, upgrade: Upgrade) -> HopByHop {
    let mut hop_by_hop = HopByHop::default();
    let mut has_connection = false;
    // Most responses have only `Connection`: the list stays empty and allocates nothing.
    let mut gone: Vec<HeaderName> = Vec::new();
    let mut listed_length = None;
    for (name, value) in &*headers {
        match *name {
            CONTENT_LENGTH => {
                hop_by_hop.lengths += 1;
                if number(value.as_bytes()).is_none() {
                    listed_length = Some(one_length(value));
                }
                continue;
            }
            CONNECTION => {
                has_connection = true;
                gone.extend(named_by(value));
                continue;
            }
            TRANSFER_ENCODING => {
                hop_by_hop.codings += 1;
                hop_by_hop.is_chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
            }
            TE | UPGRADE | ALT_SVC => {}
            _ if *name == KEEP_ALIVE => {
                hop_by_hop.kept_for = hop_by_hop.kept_for.or_else(|| timeout(value))
            }
            _ if *name == PROXY_CONNECTION => {}
            // An origin is no peer.
            _ if is_peer_field(name) => {}
            _ => continue,
        }
        gone.push(name.clone());
    }
    if has_connection {
        headers.remove(CONNECTION);
    }
    for name in gone {
        if name != UPGRADE || upgrade == Upgrade::Dropped {
            headers.remove(name);
        }
    }
    match listed_length {
        None => {}
        Some(Some(length)) => drop(headers.insert(CONTENT_LENGTH, length)),
        Some(None) => hop_by_hop.lengths += 1,
    }
    hop_by_hop
}

/// The length of a `Content-Length` that lists several, if they are equal (RFC 9110 §8.6).
fn one_length(value: &HeaderValue) -> Option<HeaderValue> {
    let mut lengths = members(value.as_bytes()).map(number);
    let first = lengths.next()??;
    lengths.all(|length| length == Some(first)).then(|| first.into())
}

/// The fields that `Connection` names; its options `close` and `keep-alive` are no fields.
fn named_by(connection: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    let fields = members(connection.as_bytes()).filter(|option| {
        !option.eq_ignore_ascii_case(b"close") && !option.eq_ignore_ascii_case(b"keep-alive")
    });
    fields.filter_map(|option| HeaderName::from_bytes(option).ok())
}

fn timeout(keep_alive: &HeaderValue) -> Option<Duration> {
    let parameters = keep_alive.to_str().ok()?.split(',');
    let mut named = parameters.filter_map(|parameter| parameter.trim().split_once('='));
    let (_, seconds) = named.find(|(name, _)| name.eq_ignore_ascii_case("timeout"))?;
    Some(Duration::from_secs(seconds.parse::<u32>().ok()?.into()))
}

/// Trailers without what may not stand in them (RFC 9110 §6.5.1): fields about framing,
/// routing, the connection or how the content is to be read came too late to be heeded, and
/// HTTP/2 would have to end the stream for some of them.
pub(in crate::upstream) fn forwardable(mut trailers: HeaderMap) -> HeaderMap {
    for name in [
        AUTHORIZATION,
        CACHE_CONTROL,
        CONNECTION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        HOST,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        trailers.remove(name);
    }
    trailers
}

/// A mistake in how an origin frames its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Misframed {
    /// By a coding other than `chunked`. hyper takes `chunked` off and leaves others on, whose
    /// name we may not forward (RFC 9112 §7).
    Coding,
    /// By a length and by chunks, or by several lengths: somebody may have put one response
    /// into another (RFC 9112 §6.3, §11.1).
    Twice,
}

impl HopByHop {
    /// Whether the body is framed by `chunked` alone, by one length, or by neither.
    pub(in crate::upstream) fn check_framing(&self) -> Result<(), Misframed> {
        match (self.lengths, self.codings) {
            (0 | 1, 0) => Ok(()),
            (0, 1) if self.is_chunked => Ok(()),
            (0, _) => Err(Misframed::Coding),
            _ => Err(Misframed::Twice),
        }
    }
}

/// Passes an origin's interim response on to the client. Not 100, which is between the origin and
/// us, and says nothing to our client (RFC 9110 §10.1.1).
pub(in crate::upstream) fn pass_on(
    interims: &Interims,
    recorder: &Recorder,
    status: StatusCode,
    headers: &HeaderMap,
) {
    if status == StatusCode::CONTINUE {
        return;
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers.clone();
    take_hop_by_hop(response.headers_mut(), Upgrade::Dropped);
    // An interim response has no content; a recipient could take a length for that of the next
    // message.
    response.headers_mut().remove(CONTENT_LENGTH);
    let outcome = if interims.push(response) { 0 } else { 1 };
    recorder.count_labelled(Metric::InterimResponses, outcome);
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origins_word_on_keeping_is_understood() {
        let check = |field: &'static str, expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(KEEP_ALIVE, HeaderValue::from_static(field));
            let kept_for = take_hop_by_hop(&mut headers, Upgrade::Dropped).kept_for;
            assert_eq!(kept_for, expected.map(Duration::from_secs), "{field}");
        };
        check("timeout=5", Some(5));
        check("max=100, Timeout=15", Some(15));
        check("max=100", None);
        check("timeout=-1", None);
        check("timeout=99999999999", None);
        assert_eq!(take_hop_by_hop(&mut HeaderMap::new(), Upgrade::Dropped).kept_for, None);
    }

    #[test]
    fn content_is_framed_once() {
        let check = |method: Method, length: Option<&'static str>, body: Body, expected| {
            let mut request = Request::new(body);
            *request.method_mut() = method.clone();
            if let Some(length) = length {
                request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static(length));
            }
            let present = Present::among(request.headers());
            frame_content(&mut request, present);
            let of = |name| request.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!((of(CONTENT_LENGTH), of(TRANSFER_ENCODING)), expected, "{method}");
        };
        let unknown = || crate::upstream::tests::channel().1;
        for method in [Method::GET, Method::HEAD, Method::DELETE, Method::POST] {
            check(method.clone(), None, unknown(), (None, Some("chunked")));
            check(method.clone(), Some("5"), unknown(), (Some("5"), None));
            check(method, Some("0"), Body::Empty, (Some("0"), None));
        }
        check(Method::GET, None, Body::Empty, (None, None));
        check(Method::DELETE, None, Body::Empty, (None, None));
        for method in [Method::POST, Method::PUT, Method::PATCH] {
            check(method, None, Body::Empty, (Some("0"), None));
        }
    }

    #[test]
    fn fields_that_connection_names_are_dropped_and_upgrade_stays_in_a_101_and_a_426() {
        let received = || {
            let mut headers = HeaderMap::new();
            headers.append(CONNECTION, HeaderValue::from_static("Upgrade, x-hop"));
            headers.append(CONNECTION, HeaderValue::from_static("x-other-hop,keep-alive"));
            headers.append(KEEP_ALIVE, HeaderValue::from_static("timeout=5"));
            headers.append("x-other-hop", HeaderValue::from_static("1"));
            headers.append(UPGRADE, HeaderValue::from_static("chat"));
            headers.append("x-hop", HeaderValue::from_static("1"));
            headers.append("x-end", HeaderValue::from_static("1"));
            headers.append(ALT_SVC, HeaderValue::from_static("h3=\":443\""));
            headers
        };
        let names = |upgrade| -> Vec<String> {
            let mut headers = received();
            take_hop_by_hop(&mut headers, upgrade);
            headers.keys().map(ToString::to_string).collect()
        };
        assert_eq!(names(Upgrade::of(StatusCode::OK)), ["x-end"]);
        assert_eq!(Upgrade::of(StatusCode::UPGRADE_REQUIRED), Upgrade::Kept);
        let mut left = names(Upgrade::Kept);
        left.sort();
        assert_eq!(left, ["upgrade", "x-end"]);
    }

    #[test]
    fn a_101_switches_to_what_was_asked_for_alone() {
        let check = |asked: &'static str, switched: &[&'static str], expected| {
            let mut headers = HeaderMap::new();
            for line in switched {
                headers.append(UPGRADE, HeaderValue::from_static(line));
            }
            let found = is_asked_for(&HeaderValue::from_static(asked), &headers);
            assert_eq!(found, expected, "{asked:?} {switched:?}");
        };
        check("websocket", &["WebSocket"], true);
        check("a, b", &["b"], true);
        check("a, b", &["b", "a"], true);
        check("websocket", &["h2c"], false);
        check("websocket", &["websocket, h2c"], false);
        check("websocket", &["websocket", "h2c"], false);
        check("websocket", &[""], false);
        check("websocket", &[], false);
    }

    #[test]
    fn a_response_is_framed_in_one_way() {
        let check = |fields: &[(HeaderName, &'static str)], expected| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(name, HeaderValue::from_static(value));
            }
            let hop_by_hop = take_hop_by_hop(&mut headers, Upgrade::Dropped);
            assert_eq!(hop_by_hop.check_framing(), expected, "{fields:?}");
        };
        let (length, coding) = (CONTENT_LENGTH, TRANSFER_ENCODING);
        check(&[], Ok(()));
        check(&[(length.clone(), "5")], Ok(()));
        check(&[(coding.clone(), "Chunked")], Ok(()));
        check(&[(coding.clone(), "gzip, chunked")], Err(Misframed::Coding));
        check(&[(coding.clone(), "identity")], Err(Misframed::Coding));
        let twice = (coding.clone(), "chunked");
        check(&[twice.clone(), twice.clone()], Err(Misframed::Coding));
        check(&[twice, (length.clone(), "5")], Err(Misframed::Twice));
        check(&[(length.clone(), "5"), (length.clone(), "6")], Err(Misframed::Twice));
        check(&[(length.clone(), "5, 5")], Ok(()));
        for bad in ["5, 6", "5,", ",", "+5", "5 5", "18446744073709551616"] {
            let expected = if bad == "5," { Ok(()) } else { Err(Misframed::Twice) };
            check(&[(length.clone(), bad)], expected);
        }
    }

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn a_field_that_may_stand_once_is_left_once() {
        let check = |name: &'static str, values: &[&'static str], expected: Option<&[&str]>| {
            let lines: Vec<_> = values.iter().map(|value| (name, *value)).collect();
            let mut headers = map(&lines);
            let kept = keep_one_line(&mut headers);
            assert_eq!(kept.is_ok(), expected.is_some(), "{name} {values:?}");
            if let Some(expected) = expected {
                let left: Vec<_> = headers.get_all(name).iter().collect();
                assert_eq!(left, expected, "{name}");
            }
        };
        for (name, _) in SINGLE {
            let name: &'static str = name.to_string().leak();
            check(name, &["1"], Some(&["1"]));
            check(name, &["1", "1", "1"], Some(&["1"]));
        }
        for name in ["content-length", "content-range", "content-type", "location"] {
            check(name, &["1", "2"], None);
            check(name, &["1", "1", "2"], None);
        }
        for name in ["age", "content-location", "date", "etag", "retry-after", "server"] {
            check(name, &["1", "2"], Some(&["1"]));
        }
        for list in ["set-cookie", "link", "vary", "content-encoding", "expires"] {
            check(list, &["1", "2"], Some(&["1", "2"]));
        }
        check("content-encoding", &["gzip", "gzip"], Some(&["gzip", "gzip"]));
    }

    #[test]
    fn a_length_of_members_that_agree_is_one_length() {
        let mut headers = map(&[("content-length", "5, 5")]);
        take_hop_by_hop(&mut headers, Upgrade::Dropped);
        assert_eq!(headers[CONTENT_LENGTH], "5");
    }
}
