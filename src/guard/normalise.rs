//! Request normalisation ([`Gate`]): a request has exactly one interpretation, or it is refused
//! (RFC 9110 §7, RFC 9112 §3, §6).
//!
//! The HTTP parsers accept requests with two `Host` fields, with `Transfer-Encoding: gzip, chunked`, or
//! with an authority that differs from `Host`. Forwarding such a request enables request smuggling and
//! cache poisoning. An ordinary request costs one pass over its field names and one over its path;
//! nothing is copied.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};

use super::fields::{Watch, Watched};
use super::{Authority, ClientField, Refusal, Settings, forwarded, path};
use crate::context::{Connection, RequestHead, Requester};
use crate::fields::TARGET_BYTES_MAX;

/// Checks and normalises requests by its [`Settings`].
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    settings: Settings,
    /// The fields that must be checked or removed.
    watched: Watched,
    /// This node's member of `CDN-Loop` (RFC 8586 §2).
    cdn_id: HeaderValue,
}

/// A normalised request: equivalent requests have equal values. Cheap to clone, because it shares the
/// bytes of the request.
#[derive(Clone, Debug)]
pub(crate) struct Normalised {
    /// `http` or `https`: the scheme of the connection, or the one that a trusted proxy or a peer states.
    pub scheme: &'static str,
    /// Host and port.
    pub authority: Authority,
    /// Path and query. `*` only for OPTIONS.
    pub target: PathAndQuery,
    /// The client's address: the connection's peer, or the address that a trusted proxy states.
    pub client: IpAddr,
    /// The protocols that the client asks to switch to: the lines of `Upgrade`, joined with `, `.
    pub upgrade: Option<HeaderValue>,
    /// Whether the client accepts trailers: its `TE` has the member `trailers`.
    pub takes_trailers: bool,
}

impl Normalised {
    /// The path, normalised.
    pub(crate) fn path(&self) -> &str {
        self.target.path()
    }

    /// The query without `?`, as the client wrote it.
    pub(crate) fn query(&self) -> Option<&str> {
        self.target.query()
    }
}

impl Gate {
    /// A gate with these settings.
    pub(crate) fn new(settings: Settings) -> Self {
        let watched = Watched::new(&settings.strip_fields);
        let cdn_id = HeaderValue::from_str(&settings.cdn_id)
            .expect("the configuration accepts only a valid cdn_id");
        Self { settings, watched, cdn_id }
    }

    /// Whether the request has the key of debug requests. To be asked before [`Gate::normalise`], which removes it.
    pub(crate) fn is_debug(&self, headers: &HeaderMap) -> bool {
        self.settings.debug_key.as_ref().is_some_and(|key| key.is_in(headers))
    }

    /// Normalises a request. Removes hop-by-hop fields, fields that `Connection` names, the configured
    /// `strip_fields`, and forwarding fields, except the `client_field` of a trusted proxy. Those of a peer stay: it has
    /// added them for the origin. `client` of the result is
    /// then the peer; [`crate::peers::Hop`] has the client.
    ///
    /// # Errors
    /// The first check that fails; `headers` may then be partly changed.
    pub(crate) fn normalise(
        &self,
        request: &RequestHead,
        headers: &mut HeaderMap,
        connection: &Connection,
    ) -> Result<Normalised, Refusal> {
        check_method(&request.method, &self.settings)?;
        let present = self.scan(headers);
        if present.framing {
            check_framing(headers, request.version)?;
        }
        if present.expect {
            check_expect(headers, request.version)?;
        }

        let peer = connection.peer.ip().to_canonical();
        let is_peer = connection.requester == Requester::Peer;
        let trusted = !is_peer && forwarded::is_trusted(&self.settings.trusted_proxies, peer);
        let (client, forwarded_scheme) = if trusted && present.forwarding {
            forwarded::client_and_scheme(&self.settings, peer, headers)
        } else {
            (peer, None)
        };
        let scheme = match is_peer {
            true => scheme_of_target(request)?,
            false => forwarded_scheme.unwrap_or(connection.scheme()),
        };
        if let Some(target_scheme) = request.target.scheme_str()
            && !(trusted || is_peer)
            && target_scheme != connection.scheme()
        {
            return Err(Refusal::SchemeDisagrees);
        }

        let authority = authority(request, headers, scheme, connection)?;
        if !(trusted || is_peer) && connection.is_misdirected(authority.host()) {
            return Err(Refusal::Misdirected);
        }
        let target = target(request, self.settings.merge_slashes)?;
        // A peer has checked the request of its client, and counts its hops in `Skerry-Hop`.
        if present.cdn_loop
            && !is_peer
            && forwarded::loop_hops(headers, &self.settings.cdn_id) >= self.settings.loop_hops_max
        {
            return Err(Refusal::Loop);
        }
        let upgrade =
            if present.connection { requested_protocols(request.version, headers) } else { None };
        let takes_trailers = present.te && takes_trailers(headers);
        self.remove_fields(headers, present, self.kept_forwarding(trusted, is_peer));
        Ok(Normalised { scheme, authority, target, client, upgrade, takes_trailers })
    }

    /// Normalises a URL that is not part of a request, for purges and explanations, by the same rules.
    ///
    /// # Errors
    /// A request for this URL would be refused.
    pub(crate) fn normalise_url(&self, url: &Uri) -> Result<Normalised, Refusal> {
        let scheme = match url.scheme_str() {
            Some("http") => "http",
            Some("https") => "https",
            _ => return Err(Refusal::SchemeDisagrees),
        };
        let authority = url.authority().ok_or(Refusal::HostMissing)?;
        let authority = Authority::from_target(authority, scheme)?;
        let target = url.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let target = normalise_target(&target, self.settings.merge_slashes)?;
        // No client has sent the URL.
        let client = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (upgrade, takes_trailers) = (None, false);
        Ok(Normalised { scheme, authority, target, client, upgrade, takes_trailers })
    }

    /// Removes the fields that [`Gate::normalise`] removes from the request of a client that is no
    /// trusted proxy.
    pub(crate) fn normalise_fields(&self, headers: &mut HeaderMap) {
        let present = self.scan(headers);
        self.remove_fields(headers, present, KeptForwarding::default());
    }

    /// Adds `X-Forwarded-*` or `Forwarded`, and `CDN-Loop`, to a request for an origin or a peer. Called only
    /// when a request is forwarded, because a hit does not need the fields. A request of a peer has them already: the
    /// origin sees the same fields whichever node of the fleet asks it.
    pub(crate) fn add_forwarding_fields(
        &self,
        request: &Normalised,
        connection: &Connection,
        headers: &mut HeaderMap,
    ) {
        if connection.requester != Requester::Peer {
            forwarded::add_fields(&self.settings, request, connection, headers);
            headers.append(forwarded::CDN_LOOP, self.cdn_id.clone());
        }
    }

    /// Whether [`Gate::add_forwarding_fields`] adds this field.
    pub(crate) fn adds(&self, name: &HeaderName) -> bool {
        forwarded::adds(&self.settings, name)
    }

    /// The settings passed to [`Gate::new`].
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Finds out which watched fields are present, in one pass.
    fn scan(&self, headers: &HeaderMap) -> WatchedPresent {
        let mut present = WatchedPresent::default();
        for name in headers.keys() {
            match self.watched.look(name) {
                None | Some(Watch::Host) => {}
                Some(Watch::Connection) => present.connection = true,
                Some(Watch::TransferEncoding | Watch::ContentLength) => present.framing = true,
                Some(Watch::Te) => {
                    present.te = true;
                    present.to_remove.push(name.clone());
                }
                Some(Watch::Upgrade | Watch::Drop) => present.to_remove.push(name.clone()),
                Some(Watch::Forwarding) => present.forwarding = true,
                Some(Watch::CdnLoop) => present.cdn_loop = true,
                Some(Watch::Expect) => present.expect = true,
            }
        }
        present
    }

    fn kept_forwarding(&self, trusted: bool, is_peer: bool) -> KeptForwarding {
        let keeps = |field| is_peer || trusted && self.settings.client_field == field;
        KeptForwarding {
            x_forwarded_for: keeps(ClientField::XForwardedFor),
            all: is_peer,
            forwarded: keeps(ClientField::Forwarded),
        }
    }

    fn remove_fields(
        &self,
        headers: &mut HeaderMap,
        present: WatchedPresent,
        kept: KeptForwarding,
    ) {
        if present.connection {
            drop_named_by_connection(headers);
            headers.remove(CONNECTION);
        }
        if present.framing {
            // The listener has decoded the transfer coding; the upstream connection frames anew.
            headers.remove(TRANSFER_ENCODING);
            remove_leading_zeros(headers);
        }
        for name in present.to_remove {
            headers.remove(name);
        }
        if present.forwarding {
            if !kept.x_forwarded_for {
                headers.remove(forwarded::X_FORWARDED_FOR);
            }
            if !kept.all {
                headers.remove(forwarded::X_FORWARDED_PROTO);
                headers.remove(forwarded::X_FORWARDED_HOST);
            }
            match kept.forwarded {
                false => drop(headers.remove(FORWARDED)),
                true if !kept.all => forwarded::remove_hosts(headers),
                true => {}
            }
        }
    }
}

/// The forwarding fields of a request that stay.
#[derive(Clone, Copy, Default)]
struct KeptForwarding {
    x_forwarded_for: bool,
    forwarded: bool,
    /// All of them, as they are. Otherwise the origin gets no scheme and no host but those of the key: trusted proxies pass
    /// on what clients state.
    all: bool,
}

/// The scheme that a peer states: that of its client's request.
fn scheme_of_target(request: &RequestHead) -> Result<&'static str, Refusal> {
    match request.target.scheme_str() {
        Some("http") => Ok("http"),
        Some("https") => Ok("https"),
        _ => Err(Refusal::TargetInvalid),
    }
}

/// The watched fields that a request has.
#[derive(Default)]
struct WatchedPresent {
    connection: bool,
    framing: bool,
    forwarding: bool,
    cdn_loop: bool,
    expect: bool,
    te: bool,
    /// The fields to remove.
    to_remove: Vec<HeaderName>,
}

fn check_method(method: &Method, settings: &Settings) -> Result<(), Refusal> {
    match *method {
        Method::CONNECT => Err(Refusal::MethodConnect),
        Method::TRACE if !settings.trace => Err(Refusal::MethodTrace),
        _ => Ok(()),
    }
}

/// Refuses ambiguous framing (RFC 9112 §6.1, §6.3): a `Transfer-Encoding` other than a single `chunked`,
/// `Transfer-Encoding` together with `Content-Length`, and a repeated or non-numeric `Content-Length`.
fn check_framing(headers: &HeaderMap, version: Version) -> Result<(), Refusal> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(coding) = codings.next() {
        if lengths.next().is_some() {
            return Err(Refusal::FramingDouble);
        }
        let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !is_chunked || codings.next().is_some() || version != Version::HTTP_11 {
            return Err(Refusal::TransferCoding);
        }
    }
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes();
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        if !is_number || digits.len() > LENGTH_DIGITS_MAX || lengths.next().is_some() {
            return Err(Refusal::LengthInvalid);
        }
    }
    Ok(())
}

/// Removes leading zeros from `Content-Length`.
fn remove_leading_zeros(headers: &mut HeaderMap) {
    let Some(length) = headers.get(CONTENT_LENGTH).map(HeaderValue::as_bytes) else { return };
    let zeros = length.iter().take_while(|digit| **digit == b'0').count();
    let zeros = zeros.min(length.len() - 1);
    if zeros > 0 {
        let short = HeaderValue::from_bytes(&length[zeros..]).expect("digits are a value");
        headers.insert(CONTENT_LENGTH, short);
    }
}

/// Refuses any `Expect` but `100-continue`, which alone is defined (RFC 9110 §10.1.1). Removes the field
/// from HTTP/1.0 requests, because HTTP/1.0 has no interim responses.
fn check_expect(headers: &mut HeaderMap, version: Version) -> Result<(), Refusal> {
    if version < Version::HTTP_11 {
        headers.remove(EXPECT);
        return Ok(());
    }
    let mut members = headers
        .get_all(EXPECT)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    let is_known =
        |member: &[u8]| member.is_empty() || member.eq_ignore_ascii_case(b"100-continue");
    if members.all(is_known) { Ok(()) } else { Err(Refusal::ExpectationUnknown) }
}

/// The authority on which target and `Host` agree (RFC 9112 §3.2, RFC 9113 §8.3.1).
fn authority(
    request: &RequestHead,
    headers: &HeaderMap,
    scheme: &'static str,
    connection: &Connection,
) -> Result<Authority, Refusal> {
    let mut hosts = headers.get_all(http::header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::HostRepeated);
    }
    if request.target.authority().is_some() && request.target.scheme().is_none() {
        // Authority-form is for CONNECT only (RFC 9112 §3.2.3).
        return Err(Refusal::TargetInvalid);
    }
    let by_field = host.map(|host| Authority::from_field(host, scheme)).transpose()?;
    let by_target =
        request.target.authority().map(|it| Authority::from_target(it, scheme)).transpose()?;
    match (by_field, by_target) {
        (Some(host), Some(target)) if host != target => Err(Refusal::HostDisagrees),
        (None, Some(_)) if request.version == Version::HTTP_11 => Err(Refusal::HostMissing),
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
        (None, None) if request.version < Version::HTTP_11 => {
            Ok(Authority::from_address(connection.local, scheme))
        }
        (None, None) => Err(Refusal::HostMissing),
    }
}

/// The normalised target of a request.
fn target(request: &RequestHead, merge_slashes: bool) -> Result<PathAndQuery, Refusal> {
    let target = request.target.path_and_query().ok_or(Refusal::TargetInvalid)?;
    if target.as_str() == "*" {
        return if request.method == Method::OPTIONS {
            Ok(target.clone())
        } else {
            Err(Refusal::TargetInvalid)
        };
    }
    if !target.path().starts_with('/') {
        return Err(Refusal::TargetInvalid);
    }
    normalise_target(target, merge_slashes)
}

fn normalise_target(target: &PathAndQuery, merge_slashes: bool) -> Result<PathAndQuery, Refusal> {
    let path = path::normalise(target.path(), merge_slashes)?;
    let query = target.query().map(path::normalise_query);
    if matches!((&path, &query), (Cow::Borrowed(_), None | Some(Cow::Borrowed(_)))) {
        return Ok(target.clone());
    }
    let mut spelled = path.into_owned();
    if let Some(query) = query {
        spelled.push('?');
        spelled.push_str(&query);
    }
    // An encoded byte is three. Other targets have the length that the listener let in.
    if spelled.len() > TARGET_BYTES_MAX {
        return Err(Refusal::TargetInvalid);
    }
    PathAndQuery::from_maybe_shared(spelled).map_err(|_| Refusal::TargetInvalid)
}

/// The value of `Upgrade` if `Connection` has the option `upgrade` (RFC 9110 §7.8). Only HTTP/1.1 has
/// this mechanism.
fn requested_protocols(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let is_requested = connection_options(headers).any(|o| o.eq_ignore_ascii_case("upgrade"));
    if version != Version::HTTP_11 || !is_requested {
        return None;
    }
    let mut lines = headers.get_all(UPGRADE).iter();
    let first = lines.next()?;
    if lines.next().is_none() {
        return Some(first.clone());
    }
    let lines: Vec<&[u8]> = headers.get_all(UPGRADE).iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&lines.join(&b", "[..])).ok()
}

/// Whether `TE` has the member `trailers` (RFC 9110 §10.1.4). Transfer codings in `TE` concern this hop
/// only.
fn takes_trailers(headers: &HeaderMap) -> bool {
    members(headers, TE).any(|member| member.eq_ignore_ascii_case("trailers"))
}

fn drop_named_by_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_options(headers)
        .filter(|option| !["keep-alive", "close", "upgrade"].contains(option))
        .filter_map(|option| option.parse().ok())
        // Content-Length and Host are end-to-end: a client must not be able to remove them by naming
        // them in Connection.
        .filter(|name| *name != CONTENT_LENGTH && *name != http::header::HOST)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    members(headers, CONNECTION)
}

/// The members of a field that is a list of tokens.
fn members(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).iter();
    lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',').map(str::trim))
}

/// Every number of 19 digits fits into a `u64`; longer values are refused.
const LENGTH_DIGITS_MAX: usize = 19;

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn connection(tls: bool) -> Connection {
        let tls = tls.then_some(crate::context::TlsFacts { server_name: None, certificates: None });
        let address = |text: &str| text.parse().unwrap();
        let plain = Connection::new(address("192.0.2.7:4711"), address("198.51.100.1:8080"));
        Connection { tls, ..plain }
    }

    /// `head` is a request: method, target and version, then its fields.
    fn read(head: &str) -> (RequestHead, HeaderMap) {
        let mut lines = head.lines().map(str::trim);
        let mut words = lines.next().unwrap().split(' ');
        let mut request = Request::builder().method(words.next().unwrap());
        request = request.uri(words.next().unwrap());
        request = request.version(match words.next() {
            Some("1.0") => Version::HTTP_10,
            Some("2") => Version::HTTP_2,
            _ => Version::HTTP_11,
        });
        for line in lines {
            let (name, value) = line.split_once(':').unwrap();
            request = request.header(name, value.trim());
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        (RequestHead::new(parts.method, parts.uri, parts.version), parts.headers)
    }

    fn pass(settings: Settings, head: &str) -> (Result<Normalised, Refusal>, HeaderMap) {
        let (request, mut headers) = read(head);
        (Gate::new(settings).normalise(&request, &mut headers, &connection(false)), headers)
    }

    #[track_caller]
    fn check(head: &str, expected: &str) {
        let (normalised, _) = pass(Settings::default(), head);
        let found = normalised.unwrap();
        assert_eq!(format!("{}{}", found.authority, found.target), expected, "{head}");
    }

    #[track_caller]
    fn refuse(head: &str, expected: Refusal) {
        let (found, _) = pass(Settings::default(), head);
        assert_eq!(found.err(), Some(expected), "{head}");
    }

    #[track_caller]
    fn fields_left(settings: Settings, head: &str, expected: &[&str]) {
        let (normalised, headers) = pass(settings, head);
        normalised.unwrap();
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, expected, "{head}");
    }

    #[test]
    fn a_request_has_one_reading() {
        check("GET /a?b=%41/../ 1.1\nhost: Example.org:80", "example.org/a?b=%41/../");
        check("GET /%61/../b?x 1.1\nhost: example.org", "example.org/b?x");
        check("GET http://EXAMPLE.org/a 1.1\nhost: example.org:80", "example.org/a");
        check("GET http://example.org 1.1\nhost: example.org", "example.org/");
        check("GET http://example.org/a 2", "example.org/a");
        check("GET http://example.org/a 2\nhost: example.org", "example.org/a");
        check("GET /a 1.0", "198.51.100.1:8080/a");
        check("GET /a 1.0\nhost: example.org", "example.org/a");
        check("GET /é?q=é 1.1\nhost: example.org", "example.org/%C3%A9?q=%C3%A9");
        check("OPTIONS http://example.org/ 1.1\nhost: example.org", "example.org/");
        check("OPTIONS * 1.1\nhost: example.org", "example.org*");
        check("POST /a 1.1\nhost: example.org\ncontent-length: 5", "example.org/a");
        check("POST /a 1.1\nhost: example.org\ntransfer-encoding: Chunked", "example.org/a");
    }

    #[test]
    fn two_hosts_or_none_are_refused() {
        refuse("GET / 1.1", Refusal::HostMissing);
        refuse("GET http://a.example/ 1.1", Refusal::HostMissing);
        refuse("GET / 2", Refusal::HostMissing);
        refuse("GET / 1.1\nhost: a.example\nhost: a.example", Refusal::HostRepeated);
        refuse("GET / 1.0\nhost: a.example\nhost: b.example", Refusal::HostRepeated);
        refuse("GET / 1.1\nhost: a.example, b.example", Refusal::HostInvalid);
        refuse("GET / 1.1\nhost: user@a.example", Refusal::HostInvalid);
        refuse("GET / 1.1\nhost:", Refusal::HostInvalid);
        refuse("GET http://a.example/ 1.1\nhost: b.example", Refusal::HostDisagrees);
        refuse("GET http://a.example/ 2\nhost: b.example", Refusal::HostDisagrees);
        refuse("GET http://u@a.example/ 2", Refusal::HostInvalid);
        refuse("GET https://a.example/ 2", Refusal::SchemeDisagrees);
    }

    #[test]
    fn doubtful_framing_is_refused_and_closes() {
        let post = "POST / 1.1\nhost: a.example";
        for (fields, refusal) in [
            ("transfer-encoding: chunked\ncontent-length: 5", Refusal::FramingDouble),
            ("content-length: 5\ntransfer-encoding: chunked", Refusal::FramingDouble),
            ("content-length: 5\ntransfer-encoding: identity", Refusal::FramingDouble),
            ("transfer-encoding: gzip, chunked", Refusal::TransferCoding),
            ("transfer-encoding: chunked, chunked", Refusal::TransferCoding),
            ("transfer-encoding: chunked\ntransfer-encoding: chunked", Refusal::TransferCoding),
            ("transfer-encoding: chunked\ntransfer-encoding: identity", Refusal::TransferCoding),
            ("transfer-encoding: xchunked", Refusal::TransferCoding),
            ("transfer-encoding: \"chunked\"", Refusal::TransferCoding),
            ("transfer-encoding:", Refusal::TransferCoding),
            ("content-length: 5\ncontent-length: 5", Refusal::LengthInvalid),
            ("content-length: 5, 5", Refusal::LengthInvalid),
            ("content-length: +5", Refusal::LengthInvalid),
            ("content-length: -5", Refusal::LengthInvalid),
            ("content-length: 0x5", Refusal::LengthInvalid),
            ("content-length:", Refusal::LengthInvalid),
            ("content-length: 99999999999999999999", Refusal::LengthInvalid),
        ] {
            refuse(&format!("{post}\n{fields}"), refusal);
            assert!(refusal.closes());
        }
        let chunked = "host: a.example\ntransfer-encoding: chunked";
        refuse(&format!("POST / 1.0\n{chunked}"), Refusal::TransferCoding);
        refuse(&format!("POST http://a.example/ 2\n{chunked}"), Refusal::TransferCoding);
    }

    #[test]
    fn a_length_has_one_spelling() {
        for (length, expected) in [("0200", "200"), ("000", "0"), ("0", "0"), ("10", "10")] {
            let head = format!("POST / 1.1\nhost: a\ncontent-length: {length}");
            let (found, headers) = pass(Settings::default(), &head);
            assert!(found.is_ok());
            assert_eq!(headers[CONTENT_LENGTH], expected);
        }
    }

    #[test]
    fn an_expectation_is_known_or_refused_and_from_http_1_0_ignored() {
        let post = "POST / 1.1\nhost: a\ncontent-length: 3\nexpect: ";
        for known in ["100-continue", "100-Continue", "100-continue, 100-continue", ""] {
            let (found, headers) = pass(Settings::default(), &format!("{post}{known}"));
            assert!(found.is_ok() && headers.contains_key(EXPECT), "{known}");
        }
        for unknown in ["200-ok", "100-continue, x", "100-continue\nexpect: x", "100-continue;a"] {
            refuse(&format!("{post}{unknown}"), Refusal::ExpectationUnknown);
        }
        for any in ["100-continue", "x"] {
            let old = format!("{post}{any}").replace("1.1", "1.0");
            fields_left(Settings::default(), &old, &["content-length", "host"]);
        }
    }

    /// A rule may add a prefix to what is let in.
    #[test]
    fn a_target_that_encoding_makes_too_long_is_refused() {
        let get = |braces: usize| format!("GET /{} 1.1\nhost: a.example", "{".repeat(braces));
        assert!(pass(Settings::default(), &get(TARGET_BYTES_MAX / 3 - 1)).0.is_ok());
        refuse(&get(TARGET_BYTES_MAX / 3), Refusal::TargetInvalid);
    }

    #[test]
    fn methods_for_other_proxies_are_refused() {
        refuse("CONNECT a.example:443 1.1\nhost: a.example:443", Refusal::MethodConnect);
        refuse("TRACE / 1.1\nhost: a.example", Refusal::MethodTrace);
        refuse("GET * 1.1\nhost: a.example", Refusal::TargetInvalid);
        let settings = Settings { trace: true, ..Settings::default() };
        assert!(pass(settings, "TRACE / 1.1\nhost: a.example").0.is_ok());
    }

    #[test]
    fn hop_by_hop_fields_stay_behind() {
        fields_left(
            Settings::default(),
            "GET / 1.1\nhost: a\nconnection: keep-alive, X-Mine, host\nkeep-alive: 5\nx-mine: 1
             te: trailers\nproxy-authorization: x\nupgrade: websocket\naccept: */*",
            &["accept", "host"],
        );
        fields_left(
            Settings::default(),
            "POST / 1.1\nhost: a\ntransfer-encoding: chunked\ntrailer: x",
            &["host"],
        );
        fields_left(
            Settings::default(),
            "POST / 1.1\nhost: a\nconnection: content-length\ncontent-length: 3",
            &["content-length", "host"],
        );
    }

    #[test]
    fn fields_that_select_another_resource_are_dropped() {
        fields_left(
            Settings::default(),
            "GET / 1.1\nhost: a\nx-original-url: /admin\nX-HTTP-Method-Override: DELETE\nproxy: x
             x-forwarded-host: evil\nx-forwarded-for: 10.0.0.1\nforwarded: for=10.0.0.1
             x_forwarded_for: 10.0.0.1\nx-forwarded-proto: https\nx-custom: kept",
            &["host", "x-custom"],
        );
    }

    #[test]
    fn every_field_that_is_to_be_stripped_is() {
        for name in super::super::STRIP_FIELDS {
            let head = format!("GET / 1.1\nhost: a\n{name}: 1\n{}: 1", name.replace('-', "_"));
            fields_left(Settings::default(), &head, &["host"]);
        }
    }

    #[test]
    fn an_upgrade_is_kept_aside() {
        let websocket = "GET / 1.1\nhost: a\nconnection: Upgrade\nupgrade: websocket";
        let (found, _) = pass(Settings::default(), websocket);
        assert_eq!(found.unwrap().upgrade.unwrap(), "websocket");
        let (found, _) = pass(Settings::default(), "GET / 1.1\nhost: a\nupgrade: websocket");
        assert_eq!(found.unwrap().upgrade, None);
        let (found, _) = pass(Settings::default(), &websocket.replace("1.1", "1.0"));
        assert_eq!(found.unwrap().upgrade, None);
        let several = format!("{websocket}, a\nupgrade: b");
        let (found, headers) = pass(Settings::default(), &several);
        assert_eq!(found.unwrap().upgrade.unwrap(), "websocket, a, b");
        assert!(!headers.contains_key("upgrade"));
    }

    /// A forwarded HTTP2-Settings field could make the origin switch the connection to HTTP/2.
    #[test]
    fn the_settings_of_an_h2c_upgrade_stay_behind_whether_named_or_not() {
        let h2c = "GET / 1.1\nhost: a\nhttp2-settings: AAMAAABk\nHTTP2_Settings: AAMAAABk";
        for more in ["", "\nconnection: Upgrade, HTTP2-Settings\nupgrade: h2c"] {
            fields_left(Settings::default(), &format!("{h2c}{more}"), &["host"]);
        }
    }

    #[test]
    fn of_te_only_the_word_on_trailers_is_kept_aside() {
        let check = |te: &str, expected| {
            let (found, headers) =
                pass(Settings::default(), &format!("GET / 1.1\nhost: a\nte: {te}"));
            assert_eq!(found.unwrap().takes_trailers, expected, "{te}");
            assert!(!headers.contains_key("te"), "{te}");
        };
        check("trailers", true);
        check("deflate;q=0.5, Trailers", true);
        check("deflate\nte: trailers", true);
        check("deflate", false);
        check("trailers;q=0.5", false);
        check("xtrailers", false);
        check("", false);
    }

    #[track_caller]
    fn client(settings: &Settings, fields: &str, expected: &str) {
        let head = format!("GET / 1.1\nhost: a{fields}");
        let found = pass(settings.clone(), &head).0.unwrap();
        assert_eq!(format!("{} {}", found.client, found.scheme), expected, "{fields}");
    }

    #[test]
    fn a_stranger_is_not_believed_about_the_client() {
        let settings = Settings::default();
        client(
            &settings,
            "\nx-forwarded-for: 203.0.113.9\nx-forwarded-proto: https",
            "192.0.2.7 http",
        );
        client(&settings, "\nforwarded: for=203.0.113.9;proto=https", "192.0.2.7 http");
    }

    #[test]
    fn the_right_most_untrusted_address_is_the_client() {
        let trusted_proxies =
            vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let settings = Settings { trusted_proxies, ..Settings::default() };
        client(&settings, "", "192.0.2.7 http");
        client(&settings, "\nx-forwarded-for: 203.0.113.9", "203.0.113.9 http");
        client(&settings, "\nx-forwarded-for: 1.1.1.1, 203.0.113.9", "203.0.113.9 http");
        client(&settings, "\nx-forwarded-for: 203.0.113.9, 192.0.2.1", "203.0.113.9 http");
        client(
            &settings,
            "\nx-forwarded-for: 203.0.113.9\nx-forwarded-for: [2001:db8::5]:99",
            "203.0.113.9 http",
        );
        client(&settings, "\nx-forwarded-for: 203.0.113.9, junk", "192.0.2.7 http");
        client(&settings, "\nx-forwarded-for: 203.0.113.9, junk, 192.0.2.1", "192.0.2.1 http");
        client(&settings, "\nx-forwarded-for: ::ffff:203.0.113.9", "203.0.113.9 http");
        client(&settings, "\nx-forwarded-proto: http, HTTPS", "192.0.2.7 https");
        // Traefik states the scheme of a WebSocket in this way.
        client(&settings, "\nx-forwarded-proto: wss", "192.0.2.7 https");
        client(&settings, "\nx-forwarded-proto: ws", "192.0.2.7 http");
        client(&settings, "\nforwarded: for=203.0.113.9", "192.0.2.7 http");

        let settings = Settings { client_field: ClientField::Forwarded, ..settings };
        client(&settings, "\nx-forwarded-for: 203.0.113.9", "192.0.2.7 http");
        client(
            &settings,
            "\nforwarded: for=1.1.1.1, For=\"[2001:db9::1]:80\";proto=https",
            "2001:db9::1 https",
        );
        client(&settings, "\nforwarded: for=203.0.113.9, for=192.0.2.1;by=x", "203.0.113.9 http");
        client(&settings, "\nforwarded: for=203.0.113.9, for=_hidden", "192.0.2.7 http");
    }

    #[track_caller]
    fn announced(settings: Settings, fields: &str, expected: &str) {
        let (request, mut headers) = read(&format!("GET / 1.1\nhost: a.example{fields}"));
        let gate = Gate::new(settings);
        let normalised = gate.normalise(&request, &mut headers, &connection(false)).unwrap();
        headers.remove("host");
        gate.add_forwarding_fields(&normalised, &connection(false), &mut headers);
        let mut lines: Vec<String> = Vec::new();
        for (name, value) in &headers {
            lines.push(format!("{name}: {}", value.to_str().unwrap()));
        }
        lines.sort();
        assert_eq!(lines.join(" | "), expected);
    }

    #[test]
    fn origins_are_told_of_the_client_and_of_this_hop() {
        announced(
            Settings::default(),
            "\nx-forwarded-for: 10.1.1.1",
            "cdn-loop: skerry | x-forwarded-for: 192.0.2.7 | x-forwarded-host: a.example | x-forwarded-proto: http",
        );
        let proxied = Settings {
            trusted_proxies: vec!["192.0.2.7/32".parse().unwrap()],
            ..Settings::default()
        };
        announced(
            proxied.clone(),
            "\nx-forwarded-for: 10.1.1.1\nx-forwarded-for: 10.2.2.2\nx-forwarded-proto: https
             cdn-loop: other; v=1",
            "cdn-loop: other; v=1 | cdn-loop: skerry | x-forwarded-for: 10.1.1.1, 10.2.2.2, 192.0.2.7 | x-forwarded-host: a.example | x-forwarded-proto: https",
        );
        // A load balancer passes on a client's X-Forwarded-Host, and appends to its X-Forwarded-Proto.
        announced(
            proxied,
            "\nx-forwarded-host: evil.example\nx-forwarded-proto: evil, https",
            "cdn-loop: skerry | x-forwarded-for: 192.0.2.7 | x-forwarded-host: a.example | x-forwarded-proto: https",
        );
        announced(
            Settings {
                client_field: ClientField::Forwarded,
                send_forwarded: true,
                send_x_forwarded: false,
                trusted_proxies: vec!["192.0.2.7/32".parse().unwrap()],
                ..Settings::default()
            },
            "\nforwarded: for=10.1.1.1;Host=evil.example, for=\"a;host=evil.example\", host=\"evil\"
             forwarded: for=\"[2001:db8::1]:80\" ; host=b.example;proto=https",
            "cdn-loop: skerry | forwarded: for=10.1.1.1, for=\"[2001:db8::1]:80\";proto=https, for=192.0.2.7;host=\"a.example\";proto=https",
        );
        let rfc7239 =
            Settings { send_forwarded: true, send_x_forwarded: false, ..Settings::default() };
        announced(
            rfc7239,
            "\nforwarded: for=evil",
            "cdn-loop: skerry | forwarded: for=192.0.2.7;host=\"a.example\";proto=http",
        );
    }

    #[test]
    fn a_loop_is_cut() {
        let round = |times: usize| {
            format!("GET / 1.1\nhost: a\ncdn-loop: {}", "x, Skerry;h=1, ".repeat(times))
        };
        assert!(pass(Settings::default(), &round(3)).0.is_ok());
        refuse(&round(4), Refusal::Loop);
        refuse(&format!("{}\ncdn-loop: skerry", round(3)), Refusal::Loop);
    }

    #[test]
    fn every_refusal_has_a_name_of_its_own() {
        assert_eq!(Refusal::Misdirected.index() + 1, Refusal::WORDS.len());
        assert_eq!(
            Refusal::RateLimited { retry_after: Default::default() }.as_str(),
            "rate-limited"
        );
        assert_eq!(Refusal::Loop.as_str(), "loop");
        assert_eq!(Refusal::HostMissing.as_str(), "host-missing");
    }
}
