//! Sources of a pool's members, besides the origins that the configuration lists.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use geo::Coordinates;

use super::members::{Origin, Scheme};

/// A source of members, and what its members have in common.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MemberSource {
    /// Where the members come from.
    pub kind: SourceKind,
    /// For members about which the source does not say it.
    pub defaults: MemberDefaults,
}

/// Where members come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SourceKind {
    /// One member for each address of a name (A and AAAA).
    Addresses {
        /// Whether to speak TLS.
        scheme: Scheme,
        /// The name to resolve. It is also the name in `Host` and TLS.
        host: Arc<str>,
        /// The TCP port of each member.
        port: u16,
    },
    /// One member for each SRV record of a name (RFC 2782).
    Srv {
        /// Whether to speak TLS.
        scheme: Scheme,
        /// The name of the records, such as `_http._tcp.app.internal`.
        name: Arc<str>,
    },
    /// A file that is read again when it changes.
    File {
        /// JSON or TOML.
        path: PathBuf,
    },
    /// An HTTP endpoint that returns what a file has.
    Http {
        /// Scheme, host and port.
        server: Origin,
        /// Path and query.
        path: http::uri::PathAndQuery,
        /// Time between two requests.
        interval: Duration,
        /// The file with the token of `Authorization: Bearer`.
        token_file: Option<PathBuf>,
    },
}

/// Properties of members that their source may leave out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MemberDefaults {
    /// See [`Origin::weight`].
    pub weight: u16,
    /// See [`Origin::priority`].
    pub priority: u16,
    /// See [`Origin::coordinates`].
    pub coordinates: Option<Coordinates>,
}

impl Default for MemberDefaults {
    fn default() -> Self {
        Self { weight: 1, priority: 0, coordinates: None }
    }
}

impl MemberDefaults {
    /// An origin with these properties.
    pub(crate) fn origin(&self, scheme: Scheme, host: Arc<str>, port: u16) -> Origin {
        let Self { weight, priority, coordinates } = *self;
        Origin { weight, priority, coordinates, ..Origin::new(scheme, host, port) }
    }
}

impl fmt::Display for MemberSource {
    /// As in the configuration, such as `srv http://_http._tcp.app.internal`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            SourceKind::Addresses { scheme, host, port } => {
                write!(f, "each_address_of {}://{host}:{port}", scheme.as_str())
            }
            SourceKind::Srv { scheme, name } => write!(f, "srv {}://{name}", scheme.as_str()),
            SourceKind::File { path } => write!(f, "file {}", path.display()),
            SourceKind::Http { server, path, .. } => {
                write!(f, "http {}://{}{path}", server.scheme.as_str(), server.authority())
            }
        }
    }
}
