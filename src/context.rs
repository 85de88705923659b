//! The facts of one connection and of one request. Facts only, never services.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use geo::Place;
use http::{HeaderValue, Method, StatusCode, Uri, Version};

use crate::cache::CacheStatus;

/// What is known of a client connection once it is open; shared by its requests.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// The other end; what the PROXY protocol said where a listener expects it.
    pub peer: SocketAddr,
    /// Its address as text, an IPv4 one never as IPv6: each request is logged and passed on with it.
    pub peer_text: HeaderValue,
    /// Our end.
    pub local: SocketAddr,
    /// Present when the client speaks TLS to us.
    pub tls: Option<TlsFacts>,
    /// Present when there is no other end, and the node asks itself: the scheme it asks with.
    pub own: Option<&'static str>,
}

/// What the handshake agreed on.
#[derive(Clone, Debug)]
pub(crate) struct TlsFacts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite's IANA name.
    pub cipher: &'static str,
    /// The name that the client asked for (SNI), lower case.
    pub server_name: Option<Arc<str>>,
    /// Whether the session was resumed.
    pub resumed: bool,
    /// Present when a request must not ask for a host that only another certificate is for.
    pub certificates: Option<Arc<CertificateNames>>,
}

/// Which host names the certificates of a node are for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CertificateNames {
    /// The positions of the certificates that have a name, in order; `*.example.org` under
    /// `.example.org`.
    by_name: HashMap<Box<str>, Vec<usize>>,
    default: usize,
}

impl CertificateNames {
    /// Of no certificates; a client that asks for no name is shown the one at `default`.
    pub(crate) fn new(default: usize) -> Self {
        Self { by_name: HashMap::new(), default }
    }

    /// Adds a name of the certificate at this position: exact or `*.example.org`, in any case.
    pub(crate) fn add(&mut self, name: &str, certificate: usize) {
        let name = name.to_ascii_lowercase();
        let name = name.strip_prefix('*').map_or(&*name, |suffix| suffix);
        let certificates = self.by_name.entry(name.into()).or_default();
        if !certificates.contains(&certificate) {
            certificates.push(certificate);
        }
    }

    /// The position of the certificate for a client that asks for this name, in lower case. Exact
    /// names win over wildcards, and the first certificate over others.
    pub(crate) fn shown(&self, server_name: Option<&str>) -> usize {
        let first = server_name.and_then(|name| self.covering(name).next());
        first.unwrap_or(self.default)
    }

    /// Whether the certificate for `server_name` is not for `host`, and another one is. Both in
    /// lower case.
    pub(crate) fn is_misdirected(&self, server_name: &str, host: &str) -> bool {
        if server_name == host {
            return false;
        }
        let shown = self.shown(Some(server_name));
        let mut covering = self.covering(host).peekable();
        covering.peek().is_some() && !covering.any(|certificate| certificate == shown)
    }

    /// A wildcard covers one label (RFC 9525 §6.3): its name here is what follows the first one.
    fn covering(&self, name: &str) -> impl Iterator<Item = usize> {
        let exact = self.by_name.get(name);
        let wildcard = name.find('.').and_then(|dot| self.by_name.get(&name[dot..]));
        exact.into_iter().chain(wildcard).flatten().copied()
    }
}

impl Connection {
    /// Plaintext between these two.
    pub(crate) fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let mut text = Vec::with_capacity(40);
        push_address(&mut text, peer.ip().to_canonical());
        let peer_text = HeaderValue::try_from(text).expect("an address is visible ASCII");
        Self { peer, peer_text, local, tls: None, own: None }
    }

    /// The node asking itself with this scheme.
    pub(crate) fn own(scheme: &'static str) -> Self {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { own: Some(scheme), ..Self::new(here, here) }
    }

    /// Whether the client was shown a certificate that is not for this host, while the node has
    /// one that is. Never for a client that asked for no name.
    pub(crate) fn is_misdirected(&self, host: &str) -> bool {
        let Some(TlsFacts { server_name: Some(asked), certificates: Some(names), .. }) = &self.tls
        else {
            return false;
        };
        names.is_misdirected(asked, host)
    }

    /// `http` or `https`, as the client spoke to us.
    pub(crate) fn scheme(&self) -> &'static str {
        self.own.unwrap_or(if self.tls.is_some() { "https" } else { "http" })
    }
}

/// What is known of one request, filled in along the path.
#[derive(Debug)]
pub(crate) struct RequestContext {
    /// Unique on this node, told to client, origin and log.
    pub id: RequestId,
    /// The connection it came on.
    pub connection: Rc<Connection>,
    /// Wall time when its head was complete.
    pub received_at: SystemTime,
    /// The same moment, for durations.
    pub started: Instant,
    /// The request line and the fields that the log shows.
    pub asked: Asked,
    /// The client: the connection's peer, or what a trusted proxy says.
    pub client: IpAddr,
    /// Where the client is.
    pub place: Place,
    /// The site's name, once routed.
    pub site: Option<Arc<str>>,
    /// How the cache handled it, for `Cache-Status` and the log.
    pub cache_status: CacheStatus,
    /// The exchange with upstream that it waited for, if any. Apart: a hit has none.
    pub upstream: Option<Box<UpstreamFacts>>,
    /// Why it failed, from the closed lists of guard and fetch.
    pub failure: Option<&'static str>,
}

/// The request as the client asked it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Any method.
    pub method: Method,
    /// The target as received.
    pub target: Uri,
    /// The host, normalised, once the gate has let it in.
    pub host: Option<HeaderValue>,
    /// HTTP/1.0, HTTP/1.1 or HTTP/2.
    pub version: Version,
    /// `User-Agent`.
    pub user_agent: Option<HeaderValue>,
    /// `Referer`.
    pub referer: Option<HeaderValue>,
}

impl Asked {
    /// A request line, with nothing known of the fields.
    pub(crate) fn of(method: Method, target: Uri, version: Version) -> Self {
        Self { method, target, version, host: None, user_agent: None, referer: None }
    }
}

/// The upstream exchange that this request waited for.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamFacts {
    /// The pool's name.
    pub pool: Arc<str>,
    /// `host:port` of the origin that was asked last, as configured. `None`: none was up.
    pub origin: Option<Arc<str>>,
    /// The address that it was reached at, or would have been.
    pub address: Option<SocketAddr>,
    /// How many tries were made.
    pub attempts: u32,
    /// Its status, and how long its head took. `None`: there was no response.
    pub answered: Option<(StatusCode, Duration)>,
}

/// A request's id: 64 bits, printed as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(pub u64);

impl RequestId {
    /// The sixteen digits, as ASCII.
    pub(crate) fn digits(self) -> [u8; 16] {
        std::array::from_fn(|at| b"0123456789abcdef"[(self.0 >> (60 - 4 * at)) as usize & 15])
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits()).expect("hexadecimal digits are ASCII"))
    }
}

/// Puts an address behind what is there, as text. IPv4 by hand: formatting it costs as much as the
/// rest of a log line.
pub(crate) fn push_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    bytes.push(b'.');
                }
                bytes.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        // Writing to a Vec does not fail.
        IpAddr::V6(address) => drop(write!(bytes, "{address}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_shown() {
        for text in ["0.0.0.0", "192.0.2.1", "255.10.9.100", "::1", "2001:db8::1:0"] {
            let mut bytes = Vec::new();
            push_address(&mut bytes, text.parse().unwrap());
            assert_eq!(bytes, text.as_bytes());
        }
    }

    #[test]
    fn a_host_is_misdirected_when_only_another_certificate_is_for_it() {
        let mut names = CertificateNames::new(0);
        for (name, certificate) in
            [("a.test", 0), ("Both.test", 0), ("both.test", 1), ("b.test", 1), ("*.w.test", 2)]
        {
            names.add(name, certificate);
        }
        names.add("x.w.test", 1);
        for (server_name, host, expected) in [
            ("a.test", "a.test", false),
            ("a.test", "b.test", true),
            ("a.test", "both.test", false),
            ("b.test", "both.test", false),
            ("b.test", "a.test", true),
            ("y.w.test", "z.w.test", false),
            // The wildcard is for it as well, though it is not what is shown for it.
            ("y.w.test", "x.w.test", false),
            ("x.w.test", "y.w.test", true),
            ("a.test", "x.y.w.test", false),
            ("nobody.test", "a.test", false),
            ("nobody.test", "b.test", true),
            ("a.test", "nobody.test", false),
            ("a.test", "[::1]", false),
        ] {
            let found = names.is_misdirected(server_name, host);
            assert_eq!(found, expected, "{host} on a connection to {server_name}");
        }
    }

    #[test]
    fn an_id_is_sixteen_digits() {
        assert_eq!(RequestId(0x0123_4567_89ab_cdef).to_string(), "0123456789abcdef");
    }
}
