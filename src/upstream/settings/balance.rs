//! The order in which origins are tried, and how one of equally good ones is chosen.

use http::HeaderName;

/// The order in which origins are tried: divides them into tiers.
/// A request goes to the first tier that has a usable origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// By [`super::Origin::priority`].
    #[default]
    Failover,
    /// By the great-circle distance from the client. Clients of unknown location are taken to be
    /// where the node is.
    Nearest,
    /// By the great-circle distance from the node.
    NearestToNode,
}

impl Policy {
    /// As in the configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Failover => "failover",
            Self::Nearest => "nearest",
            Self::NearestToNode => "nearest-to-node",
        }
    }
}

/// How one of equally good origins is chosen for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest exchanges in flight for its weight, over all cores.
    LeastConnections,
    /// The better of two random ones by expected latency times exchanges in flight.
    PeakEwma,
    /// By the request's hash ([`crate::upstream::Affinity::hash`]), weighted rendezvous: when an origin
    /// leaves, only its own share moves.
    Hash,
}

/// The part of a request that is hashed, for [`Balance::Hash`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum HashBy {
    /// The cache key.
    #[default]
    Url,
    /// The client's address.
    Client,
    /// The first line of this request field; without it, the client's address.
    Header(HeaderName),
    /// This cookie; without it, the client's address.
    Cookie(Box<str>),
}
