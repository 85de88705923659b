//! Other nodes of the fleet: what is asked of them, and why they do not answer.

labels! {
    /// The kind of server that a request was sent to.
    pub(crate) UpstreamKind;
    /// An origin of a pool.
    Origin "origin";
    /// Another node of the region.
    Peer "peer";
    /// A node of the shield region.
    Shield "shield";
}

labels! {
    /// Why a request that the store cannot answer goes to the origin and not to a peer.
    pub(crate) WhyOrigin;
    /// This node owns the key.
    Own "own";
    /// No node of the region is ready, or it has no connection yet.
    NoOwner "no-owner";
    /// The owner has no peer link, or speaks another version of its protocol.
    Protocol "protocol";
    /// The configuration of the owner is another one.
    Digest "digest";
    /// The owner has failed a moment ago.
    Skipped "skipped";
    /// A purge covers the key, or may cover it, that other nodes may not have applied yet.
    Purges "purges";
    /// The rule has a shield, and no node of its regions can be asked.
    ShieldGone "shield-gone";
}

labels! {
    /// Why a connection or a request is refused that claims to be of a node of the fleet.
    #[derive(thiserror::Error)]
    pub(crate) PeerRefusal;
    /// No certificate.
    #[error("it has no certificate")]
    NoCertificate "no-certificate";
    /// The certificate is not signed by an authority of `peers.ca`.
    #[error("its certificate is of another authority than those in peers.ca")]
    Authority "authority";
    /// The certificate has expired, or is not valid yet.
    #[error("its certificate has expired or is not valid yet")]
    Expired "expired";
    /// Any other fault of its certificate, such as none for clients, or without a name.
    #[error("its certificate is not that of a node")]
    Certificate "certificate";
    /// Any other fault of the handshake: not TLS, no TLS 1.3, no HTTP/2.
    #[error("the TLS handshake failed")]
    Handshake "handshake";
    /// The field `Skerry-Hop` is missing or not valid.
    #[error("the request has no valid Skerry-Hop field")]
    Field "field";
    /// The request names a node that the certificate is not for.
    #[error("the request names a node that the certificate is not for")]
    Name "name";
    /// The fleet has no such node.
    #[error("the node is not, or not yet, a member of the fleet")]
    Member "member";
    /// A method other than GET and HEAD.
    #[error("peers may send GET and HEAD only")]
    Method "method";
    /// `requests_max`.
    #[error("peers.requests_max is reached")]
    Overload "overload";
}

labels! {
    /// Whether this node has applied the purges that another node's request requires.
    pub(crate) RequirementOutcome;
    /// This node has applied them.
    Met "met";
    /// Only a response will do that the origin is asked for after the request.
    OriginOnly "origin-only";
    /// This node has not read so far in the purge stream.
    Behind "behind";
    /// The stream was renamed, and one of the two nodes has not noticed it yet.
    OtherHistory "other-history";
    /// The stream had another entry with that number: Redis has lost one of them.
    OtherEntry "other-entry";
    /// The entry is too long ago to be remembered.
    Forgotten "forgotten";
    /// This node has no position in the stream.
    NoPosition "no-position";
}

labels! {
    /// Why a node does not answer another one that asks it. The list is closed, except that a later
    /// version may have words that this one does not know.
    pub(crate) HopRefusal;
    /// The two nodes speak different versions of the peer protocol.
    Version "version";
    /// The two nodes have different configurations.
    Digest "digest";
    /// The two nodes compute different cache keys for the request.
    Key "key";
    /// The request has come through as many nodes as it may.
    Hops "hops";
    /// The node has not applied the purges that the asker knows of.
    Purges "purges";
    /// The node answers as many requests of other nodes as it may.
    Overload "overload";
    /// The node got no response from the origin.
    Upstream "upstream";
    /// A reason that this version does not know.
    Other "other";
}

impl HopRefusal {
    /// The refusal with this word. `None`: this version has none.
    pub(crate) fn of_word(word: &str) -> Option<Self> {
        use HopRefusal::{Digest, Hops, Key, Other, Overload, Purges, Upstream, Version};
        let all = [Version, Digest, Key, Hops, Purges, Overload, Upstream, Other];
        all.into_iter().find(|refusal| refusal.as_str() == word)
    }
}

labels! {
    /// Why a request to a peer had no usable response, or not a whole one.
    pub(crate) HopFailure;
    /// Neither a response nor a 102 (Processing) came in time, or the peer fell silent later.
    Deadline "deadline";
    /// Neither came in time, although other signs of life of the peer did.
    Slow "slow";
    /// No connection was open, or the connection ended.
    Connection "connection";
    /// The response does not say how the peer has answered.
    Verdict "verdict";
    /// The body ended early.
    Body "body";
    /// The peer speaks another version of the protocol.
    Version "version";
    /// The peer has another configuration.
    Digest "digest";
    /// The peer computes another cache key.
    Key "key";
    /// The peer has not applied the purges that this node knows of.
    Purges "purges";
    /// The peer answers as many requests as it may.
    Overload "overload";
    /// The peer got no response from the origin.
    Upstream "upstream";
    /// The peer has refused the request for another reason.
    Refused "refused";
}

impl HopFailure {
    /// The failure that a refusal is.
    pub(crate) const fn of_refusal(refusal: HopRefusal) -> Self {
        match refusal {
            HopRefusal::Version => Self::Version,
            HopRefusal::Digest => Self::Digest,
            HopRefusal::Key => Self::Key,
            HopRefusal::Purges => Self::Purges,
            HopRefusal::Overload => Self::Overload,
            HopRefusal::Upstream => Self::Upstream,
            HopRefusal::Hops | HopRefusal::Other => Self::Refused,
        }
    }

    /// Whether the peer lives, although it cannot answer this request.
    pub(crate) const fn is_alive(self) -> bool {
        matches!(self, Self::Version | Self::Digest | Self::Key | Self::Purges | Self::Refused)
    }

    /// Whether the peer should get no request for a while, unless it has shown other signs of life.
    pub(crate) const fn is_silence(self) -> bool {
        matches!(self, Self::Deadline | Self::Connection | Self::Verdict | Self::Overload)
    }
}

labels! {
    /// Whether the response of the owner of a hot key was copied into memory.
    pub(crate) CopyOutcome;
    /// The response was copied.
    Copied "copied";
    /// The response is longer than a slice, or of unknown length: each request for it goes to the owner.
    TooLong "too-long";
}
