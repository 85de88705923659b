//! The facts of one connection, of one request, and of its response. Facts only, never services.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use geo::Place;
use http::{HeaderValue, Method, StatusCode, Uri, Version};

use crate::address_text::push_address;
use crate::cache::CacheStatus;
use crate::labels::{Unretried, UpstreamKind};
use crate::peers::{Hop, PeerNames};

/// The facts of one open connection, shared by its requests.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// The remote address, or the one from the PROXY protocol if the listener expects it.
    pub peer: SocketAddr,
    /// `peer`'s IP address as text, IPv4-mapped addresses as IPv4. Kept because every log line and
    /// every forwarded request contains it.
    pub peer_text: HeaderValue,
    /// The address of this node's end.
    pub local: SocketAddr,
    /// Present if the client uses TLS.
    pub tls: Option<TlsFacts>,
    /// The sender of the connection's requests. Decides which access control applies, see
    /// [`crate::guard::admit`].
    pub requester: Requester,
    /// The names in the certificate of a peer. Present if the requester is a peer.
    pub peer_names: Option<PeerNames>,
}

/// The sender of a connection's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requester {
    /// A client, over a listener.
    Client,
    /// This node itself: prefetches and refreshes after a purge. There is no socket.
    Node {
        /// `http` or `https`.
        scheme: &'static str,
    },
    /// Another node of the fleet, over the peer listener, for one of its clients. Its claims about the client are
    /// in [`RequestContext::hop`].
    Peer,
}

/// The result of a TLS handshake.
#[derive(Clone, Debug)]
pub(crate) struct TlsFacts {
    /// The server name that the client sent (SNI), in lower case.
    pub server_name: Option<Arc<str>>,
    /// The names of all certificates. Present if a request for a host that only another certificate
    /// covers must be refused with 421.
    pub certificates: Option<Arc<CertificateNames>>,
}

/// The host names that each of a node's certificates covers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CertificateNames {
    /// For each name the certificates that cover it, as positions in ascending order.
    /// `*.example.org` is stored as `.example.org`.
    by_name: HashMap<Box<str>, Vec<usize>>,
    default: usize,
}

impl CertificateNames {
    /// An empty table. `default` is the position of the certificate for clients without SNI.
    pub(crate) fn new(default: usize) -> Self {
        Self { by_name: HashMap::new(), default }
    }

    /// Adds a name of the certificate at position `certificate`: exact or `*.example.org`, in any
    /// case.
    pub(crate) fn add(&mut self, name: &str, certificate: usize) {
        let name = name.to_ascii_lowercase();
        let name = name.strip_prefix('*').map_or(&*name, |suffix| suffix);
        let certificates = self.by_name.entry(name.into()).or_default();
        if !certificates.contains(&certificate) {
            certificates.push(certificate);
        }
    }

    /// The position of the certificate that a client with this server name (lower case) gets. Exact
    /// names take precedence over wildcards, earlier certificates over later ones. Certificates that do not
    /// fit the client are skipped, unless none fits.
    pub(crate) fn shown(&self, server_name: Option<&str>, fits: impl Fn(usize) -> bool) -> usize {
        let covering = || server_name.into_iter().flat_map(|name| self.covering(name));
        let fitting = covering().find(|certificate| fits(*certificate));
        fitting.or_else(|| covering().next()).unwrap_or(self.default)
    }

    /// Whether the certificate for `server_name` does not cover `host` and another one does. Both
    /// names in lower case.
    pub(crate) fn is_misdirected(&self, server_name: &str, host: &str) -> bool {
        if server_name == host {
            return false;
        }
        let shown = self.shown(Some(server_name), |_| true);
        let mut covering = self.covering(host).peekable();
        covering.peek().is_some() && !covering.any(|certificate| certificate == shown)
    }

    /// The certificates that cover `name`. A wildcard covers exactly one label (RFC 9525 §6.3), so it
    /// is looked up by what follows the first label.
    fn covering(&self, name: &str) -> impl Iterator<Item = usize> {
        let exact = self.by_name.get(name);
        let wildcard = name.find('.').and_then(|dot| self.by_name.get(&name[dot..]));
        exact.into_iter().chain(wildcard).flatten().copied()
    }
}

impl Connection {
    /// A client's connection without TLS between these two addresses.
    pub(crate) fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let mut text = Vec::with_capacity(40);
        push_address(&mut text, peer.ip().to_canonical());
        let peer_text = HeaderValue::try_from(text).expect("an address is visible ASCII");
        Self { peer, peer_text, local, tls: None, requester: Requester::Client, peer_names: None }
    }

    /// The virtual connection for the node's own requests with this scheme.
    pub(crate) fn of_node(scheme: &'static str) -> Self {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { requester: Requester::Node { scheme }, ..Self::new(here, here) }
    }

    /// Whether the connection's certificate does not cover `host` and another one of the node does.
    /// Always false for a client without SNI.
    pub(crate) fn is_misdirected(&self, host: &str) -> bool {
        let Some(TlsFacts { server_name: Some(asked), certificates: Some(names), .. }) = &self.tls
        else {
            return false;
        };
        names.is_misdirected(asked, host)
    }

    /// `http` or `https`: that of the connection. The client of a peer may have used another.
    pub(crate) fn scheme(&self) -> &'static str {
        match self.requester {
            Requester::Node { scheme } => scheme,
            Requester::Client | Requester::Peer if self.tls.is_some() => "https",
            Requester::Client | Requester::Peer => "http",
        }
    }
}

/// The facts of one request. Complete once guard has admitted it; what becomes of the request is in
/// [`ResponseFacts`].
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    /// Unique on the node that the client asked. Sent to the origin, logged, and shown in error responses.
    pub id: RequestId,
    /// The connection that the request arrived on.
    pub connection: Rc<Connection>,
    /// Wall-clock time at which the request's header section was complete.
    pub received_at: SystemTime,
    /// The same moment on the monotonic clock, for durations.
    pub started: Instant,
    /// The request line and the fields that the log shows.
    pub request: RequestHead,
    /// The client's address: the connection's peer, or the address that a trusted proxy or a peer states.
    pub client: IpAddr,
    /// The facts that a peer tells about its request. `None`: the request is not of a peer.
    pub hop: Option<Rc<Hop>>,
    /// The purges that this node must have applied before it answers that peer from its cache, as received.
    pub hop_purges: Option<HeaderValue>,
    /// The location of `client`.
    pub place: Place,
    /// The name of the site that answers. `None` until the request is routed.
    pub site: Option<Arc<str>>,
    /// The site's number in the metrics. Meaningless without `site`.
    pub site_number: u32,
    /// The request is logged if the lower half of its id is not above this.
    pub log_share: u32,
    /// The name of the site's rule that applies. `None` for the site's own settings, and until the
    /// request is routed.
    pub rule: Option<Arc<str>>,
    /// The group of the visitor, if the rule splits its visitors.
    pub group: Option<VisitorGroup>,
    /// Present if the response states where its time went.
    pub timing: Option<Box<Timing>>,
}

/// Moments of a request for `Server-Timing`, as times since it began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timing {
    /// The lookup was complete, in memory or on disk.
    pub looked_up: Option<Duration>,
    /// The content was to be recoded.
    pub recoding: Option<Duration>,
}

impl RequestContext {
    /// Whether the request belongs to the share that the access log has. Ids are spread evenly.
    pub(crate) fn is_in_sample(&self) -> bool {
        self.id.0 as u32 <= self.log_share
    }

    /// `http` or `https`: how the client has sent the request to the first node.
    pub(crate) fn scheme(&self) -> &str {
        let of_peer = self.request.target.scheme_str().filter(|_| self.hop.is_some());
        of_peer.unwrap_or(self.connection.scheme())
    }

    /// The name of the visitor's group, if the rule splits its visitors.
    pub(crate) fn group_name(&self) -> Option<&str> {
        self.group.as_ref().map(|group| &*group.name)
    }
}

/// The group of a visitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VisitorGroup {
    /// The name, which is that of its pool.
    pub name: Arc<str>,
    /// Whether the visitor is new, so that its response must tell it the group.
    pub is_new: bool,
}

/// How a request was answered, for `Cache-Status`, the access log and the metrics.
#[derive(Debug)]
pub(crate) struct ResponseFacts {
    /// How the cache handled the request.
    pub cache_status: CacheStatus,
    /// The upstream exchange that the request waited for, if any. Boxed because a hit has none.
    pub upstream: Option<Box<UpstreamFacts>>,
    /// Why the request failed: a word from the closed lists of guard, upstream and serve.
    pub failure: Option<&'static str>,
    /// The text of the cause, for the access log, where it says more than the word.
    pub failure_detail: Option<Box<str>>,
    /// Whether a purge covers the response, which is served stale.
    pub is_purged: bool,
}

/// The request line as received, and the fields that the log shows.
#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    /// Any method.
    pub method: Method,
    /// The target as received.
    pub target: Uri,
    /// The normalised host. `None` until the gate has accepted the request.
    pub host: Option<HeaderValue>,
    /// HTTP/1.0, HTTP/1.1 or HTTP/2.
    pub version: Version,
    /// `User-Agent`.
    pub user_agent: Option<HeaderValue>,
    /// `Referer`.
    pub referer: Option<HeaderValue>,
}

impl RequestHead {
    /// A request line without any fields.
    pub(crate) fn new(method: Method, target: Uri, version: Version) -> Self {
        Self { method, target, version, host: None, user_agent: None, referer: None }
    }
}

/// The upstream exchange that a request waited for.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamFacts {
    /// The kind of server that was tried last.
    pub kind: UpstreamKind,
    /// The pool's name.
    pub pool: Arc<str>,
    /// `host:port` of the last origin tried, as configured, or the name of a peer. `None` if no origin was
    /// up.
    pub origin: Option<Arc<str>>,
    /// The address of that server that was tried last.
    pub address: Option<SocketAddr>,
    /// The number of tries.
    pub attempts: u32,
    /// Why it was not sent again, if no origin gave a good response.
    pub unretried: Option<Unretried>,
    /// The response's status, and the time to its header section. `None` if there was no response.
    pub answered: Option<(StatusCode, Duration)>,
    /// Whether the response has an `Age`: a cache answered, such as a peer's (RFC 9111 §5.1).
    pub has_age: bool,
    /// The time in the queue of the pool.
    pub queued: Duration,
    /// The time in which the connection of the response was opened, name resolution and TLS included. `None`: it
    /// was open already.
    pub connected: Option<Duration>,
}

/// A request's id: 64 bits, printed as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(pub u64);

impl RequestId {
    /// The 16 hexadecimal digits as ASCII.
    pub(crate) fn digits(self) -> [u8; 16] {
        std::array::from_fn(|at| b"0123456789abcdef"[(self.0 >> (60 - 4 * at)) as usize & 15])
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits()).expect("hexadecimal digits are ASCII"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            // The wildcard covers the host too, although another certificate takes precedence for it.
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
