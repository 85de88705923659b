//! The origins of a pool.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use geo::Coordinates;

/// One upstream server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Origin {
    /// Whether to speak TLS.
    pub scheme: Scheme,
    /// A name, or an address (IPv6 without brackets).
    pub host: Arc<str>,
    /// The TCP port.
    pub port: u16,
    /// Connections go to this address, and `host` is only the name in `Host` and TLS. `None`: they
    /// go to the addresses of `host`.
    pub address: Option<IpAddr>,
    /// Connections go to this Unix socket. Then `host` is `localhost`, and there is no `address`.
    pub socket: Option<Arc<Path>>,
    /// Its share of requests relative to the others. An origin of weight 0 is used only when no other
    /// in its tier is available.
    pub weight: u16,
    /// Origins of a lower number are tried first.
    pub priority: u16,
    /// Where it is, for the policies by distance.
    pub coordinates: Option<Coordinates>,
}

/// The identity of an origin: whatever else changes about it, it is the same server.
pub(crate) type OriginKey = (Scheme, Arc<str>, u16, Option<IpAddr>, Option<Arc<Path>>);

impl Origin {
    /// `http://HOST:PORT` with weight 1.
    #[cfg(test)]
    pub(crate) fn http(host: impl Into<Arc<str>>, port: u16) -> Self {
        Self::new(Scheme::Http, host.into(), port)
    }

    /// `https://HOST:PORT` with weight 1.
    #[cfg(test)]
    pub(crate) fn https(host: impl Into<Arc<str>>, port: u16) -> Self {
        Self::new(Scheme::Https, host.into(), port)
    }

    /// An origin with weight 1 and priority 0.
    pub(crate) fn new(scheme: Scheme, host: Arc<str>, port: u16) -> Self {
        let (address, socket, coordinates) = (None, None, None);
        Self { scheme, host, port, address, socket, weight: 1, priority: 0, coordinates }
    }

    /// The form of [`Origin::parse`], in words for an error message.
    pub(crate) const EXPECTED: &str =
        "an origin's URL without path, such as \"https://origin.example:8443\"";

    /// An origin from its URL, such as `https://origin.example:8443` or `unix:/run/app.sock`. `None`: another
    /// form, another scheme, user information, or a path behind a host.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        if let Some(path) = url.strip_prefix(UNIX) {
            return Self::of_socket(path);
        }
        let uri: http::Uri = url.parse().ok()?;
        let authority = uri.authority()?;
        let has_path = uri.path_and_query().is_some_and(|path| path != "/");
        if has_path || authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase().into();
        let port = match authority.as_str().strip_prefix(authority.host())? {
            "" => None,
            port => Some(port.strip_prefix(':')?.parse().ok().filter(|port| *port > 0)?),
        };
        let scheme = match uri.scheme_str()? {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        Some(Self::new(scheme, host, port.unwrap_or(scheme.port())))
    }

    /// An origin behind a Unix socket, over plain text. `None`: the path is not absolute, or too long.
    fn of_socket(path: &str) -> Option<Self> {
        // `unix:///run/app.sock`, with an empty authority (RFC 3986 §3.2).
        let path = path.strip_prefix("//").unwrap_or(path);
        let is_path = path.starts_with('/') && path.len() <= SOCKET_PATH_BYTES_MAX;
        let has_controls = path.contains(char::is_control);
        (is_path && !has_controls).then(|| {
            let origin = Self::new(Scheme::Http, "localhost".into(), Scheme::Http.port());
            Self { socket: Some(Path::new(path).into()), ..origin }
        })
    }

    /// Whether the other one is the same server. Their weights may differ.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        self.key() == other.key()
    }

    /// The identity among the members of a pool.
    pub(crate) fn key(&self) -> OriginKey {
        let Self { scheme, host, port, address, socket, .. } = self;
        (*scheme, host.clone(), *port, *address, socket.clone())
    }

    /// `http://HOST:PORT` or `unix:PATH`: the name of the origin in logs and in the admin API. With
    /// [`Origin::address`], that is in the place of the host.
    pub(crate) fn url(&self) -> String {
        match self.socket {
            Some(_) => self.place(),
            None => format!("{}://{}", self.scheme.as_str(), self.place()),
        }
    }

    /// `HOST:PORT`, `ADDRESS:PORT` or `unix:PATH`.
    pub(crate) fn place(&self) -> String {
        match (&self.socket, self.address) {
            (Some(path), _) => format!("{UNIX}{}", path.display()),
            (None, Some(address)) => SocketAddr::new(address, self.port).to_string(),
            (None, None) => format!("{}:{}", bracketed(&self.host), self.port),
        }
    }

    /// `HOST`, or `HOST:PORT` when the port is not the scheme's, as in a `Host` field.
    pub(crate) fn authority(&self) -> String {
        let host = bracketed(&self.host);
        if self.port == self.scheme.port() { host } else { format!("{host}:{}", self.port) }
    }
}

/// The start of the URL of a Unix socket.
const UNIX: &str = "unix:";
/// Maximum length of the path of a Unix socket: `sun_path` has 108 bytes, one of them for its end (unix(7)).
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Plain text or TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    /// HTTP over TCP.
    Http,
    /// HTTP over TLS over TCP.
    Https,
}

impl Scheme {
    /// As in a URL.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The default port.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_a_socket_has_an_absolute_path_of_at_most_107_bytes() {
        for url in ["unix:/run/app.sock", "unix:///run/app.sock"] {
            let origin = Origin::parse(url).expect(url);
            assert_eq!(origin.url(), "unix:/run/app.sock");
            assert_eq!(
                (origin.place(), origin.authority()),
                (origin.url(), "localhost".to_owned())
            );
            assert_eq!(Origin::parse(&origin.url()), Some(origin));
        }
        let of_length = |length: usize| format!("unix:/{}", "x".repeat(length - 1));
        assert!(Origin::parse(&of_length(SOCKET_PATH_BYTES_MAX)).is_some());
        assert_eq!(Origin::parse(&of_length(SOCKET_PATH_BYTES_MAX + 1)), None);
        for url in ["unix:", "unix:run/app.sock", "unix://host/app.sock", "unix:/a\0b"] {
            assert_eq!(Origin::parse(url), None, "{url:?}");
        }
    }

    #[test]
    fn two_sockets_are_two_servers() {
        let [one, two] = ["unix:/a", "unix:/b"].map(|url| Origin::parse(url).expect(url));
        assert!(!one.is_same_server(&two) && one.is_same_server(&one.clone()));
    }
}
