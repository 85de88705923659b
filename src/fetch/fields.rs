//! What changes on a message between here and an origin: `Host` and target of the request,
//! the hop-by-hop fields of the response. Pure.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version};

use super::pool::PoolOrigin;
use crate::body::Body;

/// Sets `Host` and the URI as the protocol and the pool want them, and the version.
pub(super) fn direct(request: &mut Request<Body>, origin: &PoolOrigin, http2: bool) {
    if let Some(host) = &origin.host {
        request.headers_mut().insert(HOST, host.clone());
    } else if !request.headers().contains_key(HOST) {
        let authority = request.uri().authority().unwrap_or(&origin.authority).as_str();
        let host = HeaderValue::from_str(authority).expect("an authority is a field value");
        request.headers_mut().insert(HOST, host);
    }
    if http2 {
        let host = request.headers_mut().remove(HOST);
        let authority = host.and_then(|host| host.as_bytes().try_into().ok());
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(origin.origin.scheme.as_str().parse().expect("http or https"));
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

/// A copy to send again, if the request is idempotent (RFC 9110 §9.2.2), its body in memory,
/// and the connection stays HTTP.
pub(super) fn copy_if_replayable(request: &Request<Body>) -> Option<Request<Body>> {
    let body = match request.body() {
        Body::Empty => Body::Empty,
        Body::Full(bytes) => Body::Full(bytes.clone()),
        _ => return None,
    };
    if !request.method().is_idempotent() || request.headers().contains_key(UPGRADE) {
        return None;
    }
    let mut copy = Request::new(body);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// RFC 9110 §7.6.1. hyper has acted on them.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap, upgraded: bool) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(TRANSFER_ENCODING);
        // RFC 9112 §6.3: it was overridden, and forwarded it would be a second opinion.
        headers.remove(CONTENT_LENGTH);
    }
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !(upgraded && name == UPGRADE))
            .collect();
        headers.remove(CONNECTION);
        named.into_iter().for_each(|name| drop(headers.remove(name)));
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TE);
    if !upgraded {
        headers.remove(UPGRADE);
    }
}

/// Whether the body was framed by `chunked` alone, or by a length. hyper takes `chunked` off
/// and leaves other codings on, whose name we may not forward (RFC 9112 §7).
pub(super) fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    }
}

/// How long the origin says it keeps the connection: `Keep-Alive: timeout=5`. Not a standard
/// any more, but Apache and Node.js send it, and mean it.
pub(super) fn kept_for(headers: &HeaderMap) -> Option<Duration> {
    let parameters = headers.get(KEEP_ALIVE)?.to_str().ok()?.split(',');
    let mut named = parameters.filter_map(|parameter| parameter.trim().split_once('='));
    let (_, seconds) = named.find(|(name, _)| name.eq_ignore_ascii_case("timeout"))?;
    Some(Duration::from_secs(seconds.parse::<u32>().ok()?.into()))
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
            assert_eq!(kept_for(&headers), expected.map(Duration::from_secs), "{field}");
        };
        check("timeout=5", Some(5));
        check("max=100, Timeout=15", Some(15));
        check("max=100", None);
        check("timeout=-1", None);
        check("timeout=99999999999", None);
        assert_eq!(kept_for(&HeaderMap::new()), None);
    }

    #[test]
    fn what_connection_names_is_dropped_and_of_a_101_upgrade_stays() {
        let received = || {
            let mut headers = HeaderMap::new();
            headers.append(CONNECTION, HeaderValue::from_static("Upgrade, x-hop"));
            headers.append(UPGRADE, HeaderValue::from_static("chat"));
            headers.append("x-hop", HeaderValue::from_static("1"));
            headers.append("x-end", HeaderValue::from_static("1"));
            headers
        };
        let names = |upgraded| -> Vec<String> {
            let mut headers = received();
            strip_hop_by_hop(&mut headers, upgraded);
            headers.keys().map(ToString::to_string).collect()
        };
        assert_eq!(names(false), ["x-end"]);
        let mut left = names(true);
        left.sort();
        assert_eq!(left, ["upgrade", "x-end"]);
    }

    #[test]
    fn a_length_beside_chunked_is_dropped() {
        let mut headers = HeaderMap::new();
        headers.append(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        headers.append(CONTENT_LENGTH, HeaderValue::from_static("5"));
        assert!(is_plainly_framed(&headers));
        strip_hop_by_hop(&mut headers, false);
        assert!(headers.is_empty());
    }
}
