//! Client connections: their protocols, and why they are refused or closed.

labels! {
    /// Why a connection was closed as soon as it was accepted.
    pub(crate) ConnectionRefusal;
    /// `connections_max`.
    Total "total";
    /// `connections_per_address_max`.
    Address "address";
    /// A missing or invalid PROXY protocol header, where the listener requires one.
    ProxyHeader "proxy_header";
    /// `peers.connections_max`.
    Peers "peers";
}

labels! {
    /// The time limit that a client connection reached.
    pub(crate) ConnectionTimeout;
    /// `handshake_timeout`: PROXY protocol header and TLS handshake; or a new connection took the place of the handshake at
    /// `handshakes_max`.
    Handshake "handshake";
    /// `header_timeout`: the head of a request.
    Header "header";
    /// `idle_timeout`: the next request.
    Idle "idle";
    /// `body_rate_min`: the client reads the response too slowly.
    Send "send";
    /// The end of a drain's grace period.
    Drain "drain";
}

labels! {
    /// How a TLS handshake ended.
    pub(crate) HandshakeOutcome;
    /// A new session.
    Full "full";
    /// A session resumed by a ticket.
    Resumed "resumed";
    /// No common protocol version, cipher suite or application protocol.
    NothingInCommon "nothing_in_common";
    /// The client sent an alert.
    Alert "alert";
    /// The client's bytes are not TLS.
    NotTls "not_tls";
    /// Any other error of TLS.
    Other "other";
    /// The connection ended.
    BrokenOff "broken_off";
}

labels! {
    /// The protocol of a request.
    pub(crate) RequestProtocol;
    /// HTTP/1.0.
    Http10 "http/1.0";
    /// HTTP/1.1.
    Http11 "http/1.1";
    /// HTTP/2.
    Http2 "h2";
}

labels! {
    /// Why the node closed an HTTP/2 connection.
    pub(crate) Http2End;
    /// The client violated the protocol.
    Protocol "protocol";
    /// Too many frames that carry nothing, or one of the h2 crate's own limits.
    Flood "flood";
    /// `resets_per_10s_max`.
    Resets "resets";
    /// `requests_per_second_max`.
    Requests "requests";
}
