//! Why an origin gave no complete response, why a request is sent again or waits, and how the origins of a pool change.

labels! {
    /// Why an origin gave no complete response: those error types of RFC 9209 §2.3 that an exchange can
    /// have. They are values of `error` in `Proxy-Status`.
    pub ProxyError;
    /// The name servers did not answer in time.
    DnsTimeout "dns_timeout";
    /// The name has no address, or the name servers failed.
    DnsError "dns_error";
    /// All origins of the pool are marked down.
    DestinationUnavailable "destination_unavailable";
    /// There is no route to the origin's address.
    DestinationIpUnroutable "destination_ip_unroutable";
    /// The origin's address refused the connection.
    ConnectionRefused "connection_refused";
    /// The connection was closed before a response began, or within its content.
    ConnectionTerminated "connection_terminated";
    /// The connection or the TLS handshake was not completed in time.
    ConnectionTimeout "connection_timeout";
    /// No content arrived for too long.
    ConnectionReadTimeout "connection_read_timeout";
    /// As many connections to the origin are open as the pool allows.
    ConnectionLimitReached "connection_limit_reached";
    /// The TLS handshake failed, or did not negotiate a protocol that the pool requires.
    TlsProtocolError "tls_protocol_error";
    /// The origin's certificate is not valid for it.
    TlsCertificateError "tls_certificate_error";
    /// The origin refused the handshake with a TLS alert.
    TlsAlertReceived "tls_alert_received";
    /// The client's request is incomplete or malformed; the origin is not at fault.
    HttpRequestError "http_request_error";
    /// The response is incomplete.
    HttpResponseIncomplete "http_response_incomplete";
    /// The header section of the response exceeds a limit.
    HttpResponseHeaderSectionSize "http_response_header_section_size";
    /// No header section of a response arrived in time.
    HttpResponseTimeout "http_response_timeout";
    /// The response has a transfer coding other than chunked.
    HttpResponseTransferCoding "http_response_transfer_coding";
    /// The origin switched to a protocol that the request did not ask for.
    HttpUpgradeFailed "http_upgrade_failed";
    /// The response is not valid HTTP, or contradicts itself.
    HttpProtocolError "http_protocol_error";
}

labels! {
    /// Why a request is sent to an origin again. The words of `retry.on` are those of failures.
    pub(crate) RetryReason;
    /// An idle connection turned out to be closed.
    Closed "closed";
    /// The origin refused the request without processing it (RFC 9113 §8.7).
    Refused "refused";
    /// No connection: name resolution, TCP or TLS.
    Connect "connect";
    /// The connection ended before the end of the response's header section.
    Reset "reset";
    /// The response was late.
    Timeout "timeout";
    /// The connection ended before the end of a response that was not passed on yet.
    Truncated "truncated";
    /// The response is not valid HTTP, or over a limit.
    Invalid "invalid";
    /// The response has one of the statuses in `retry.on`.
    Status "status";
    /// The response has one of the statuses in `retry.failover_on`: the next tier is asked.
    Failover "failover";
    /// The first origin is slower than usual (`hedge.after`).
    Hedge "hedge";
    /// The first origin is on trial and has not answered at once.
    Trial "trial";
}

labels! {
    /// Why a request whose exchange failed was not sent again.
    pub(crate) Unretried;
    /// `retry.on` does not list the failure.
    Unlisted "unlisted";
    /// The origin may have processed it, and its method is not idempotent (RFC 9110 §9.2.2).
    Method "method";
    /// The request's body was not kept.
    Body "body";
    /// `deadlines.total` has passed.
    Deadline "deadline";
    /// `retry.attempts_max` is reached.
    Attempts "attempts";
    /// The retry budget is used up.
    Budget "budget";
    /// No other origin may be tried.
    Members "members";
}

labels! {
    /// Why a request was sent to no origin.
    pub(crate) Unsent;
    /// Each origin is down.
    AllDown "all_down";
    /// Each origin has as many requests or connections as it may have, and the request could not wait.
    Busy "busy";
    /// The pool has no origins.
    NoOrigins "no_origins";
}

labels! {
    /// Why a request did not wait for an origin, or not longer.
    pub(crate) QueueRefusal;
    /// The queue has its maximum length.
    Full "full";
    /// No origin was free in time.
    Late "late";
}

labels! {
    /// The outcome of a reply of a source of origins.
    pub(crate) DiscoveryOutcome;
    /// Other origins than before.
    Changed "changed";
    /// The same origins as before.
    Unchanged "unchanged";
    /// No origin; the last ones stay in use.
    Empty "empty";
    /// The source gave nothing that can be used; the last origins stay in use.
    Failed "failed";
}

labels! {
    /// How the origins of a pool have changed.
    pub(crate) MemberChange;
    /// An origin is new in its pool.
    Joined "joined";
    /// An origin is no longer in its pool.
    Left "left";
}

labels! {
    /// Why a pool does not use an origin of a source.
    pub(crate) LeftOut;
    /// The pool has the maximum number of origins.
    Limit "limit";
    /// The name of the origin cannot be used, such as in TLS.
    Unusable "unusable";
}
