//! The closed lists of labels in logs, metrics and header fields: why a request was refused, how the cache
//! handled it, why an origin gave no response, the content codings.
//!
//! Each list is one enum, so that a label, its index in a metric and its meaning cannot differ. This module
//! is below [`crate::metrics`], because the labels of metrics come from it. The rooms that produce a label
//! decide what follows from it.

use std::time::Duration;

/// Declares an enum with a label (a word) for each variant.
macro_rules! labels {
    ($(#[$meta:meta])* $seen:vis $name:ident;
     $($(#[$about:meta])* $variant:ident $({ $($field:tt)* })? $word:literal;)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $seen enum $name {
            $($(#[$about])* $variant $({ $($field)* })?,)*
        }

        impl $name {
            /// The labels, in the order of the variants.
            $seen const WORDS: &'static [&'static str] = &[$($word,)*];

            /// The index in [`Self::WORDS`], which is the index of the series in a metric.
            #[inline]
            $seen const fn index(self) -> usize {
                enum Index {
                    $($variant,)*
                }
                match self {
                    $(Self::$variant { .. } => Index::$variant as usize,)*
                }
            }

            /// The label in logs, metrics and header fields.
            #[allow(dead_code, reason = "some lists are labels of metrics only")]
            $seen const fn as_str(self) -> &'static str {
                Self::WORDS[self.index()]
            }
        }
    };
}

labels! {
    /// Why the gate or a rule refuses a request. The first refusal found applies.
    #[derive(thiserror::Error)]
    pub Refusal;
    /// No `Host` and no authority in the target.
    #[error("the request has no host")]
    HostMissing "host-missing";
    /// More than one `Host` field (RFC 9112 §3.2).
    #[error("the request has more than one Host field")]
    HostRepeated "host-repeated";
    /// Not a host and port; user information counts as such.
    #[error("the request's host is not a valid host name")]
    HostInvalid "host-invalid";
    /// `Host` and the request target have different hosts.
    #[error("the Host field and the request target name different hosts")]
    HostDisagrees "host-disagrees";
    /// The target has the scheme `http` on a TLS connection, or `https` on another (RFC 9110 §7.4).
    #[error("the scheme of the request target does not match the connection")]
    SchemeDisagrees "scheme-disagrees";
    /// Neither a path, a URL nor `OPTIONS *`.
    #[error("the request target has no path")]
    TargetInvalid "target-invalid";
    /// `%` without two hexadecimal digits in the path.
    #[error("the path has an invalid percent-encoding")]
    PercentInvalid "percent-invalid";
    /// A control character in the path, encoded or not.
    #[error("the path contains a control character")]
    PathControl "path-control";
    /// Both `Transfer-Encoding` and `Content-Length` (RFC 9112 §6.1).
    #[error("the request has both Transfer-Encoding and Content-Length")]
    FramingDouble "framing-double";
    /// `Transfer-Encoding` other than exactly `chunked`, or not in HTTP/1.1.
    #[error("the request's Transfer-Encoding is not exactly chunked")]
    TransferCoding "transfer-coding";
    /// `Content-Length` is repeated or not a number.
    #[error("the request's Content-Length is not a single number")]
    LengthInvalid "length-invalid";
    /// CONNECT: Skerry is no forward proxy.
    #[error("CONNECT is not supported")]
    MethodConnect "method-connect";
    /// TRACE, unless it is allowed.
    #[error("TRACE is not allowed")]
    MethodTrace "method-trace";
    /// A method that the rule does not allow.
    #[error("the method is not allowed here")]
    MethodDenied "method-denied";
    /// `CDN-Loop` has this node's CDN id too often (RFC 8586).
    #[error("the request is looping between CDN nodes")]
    Loop "loop";
    /// The client's address is on the rule's deny list, or not on its allow list.
    #[error("the client's address is not allowed")]
    AddressDenied "address-denied";
    /// The client's country is on the rule's deny list, or not on its allow list.
    #[error("the client's country is not allowed")]
    CountryDenied "country-denied";
    /// Too many requests from this client.
    #[error("the client sent too many requests")]
    RateLimited {
        /// When the next request is allowed, for `Retry-After`.
        retry_after: Duration,
    } "rate-limited";
    /// The request's content is longer than the rule allows.
    #[error("the request's content is too long")]
    ContentTooLong "content-too-long";
    /// The request's content did not arrive in time.
    #[error("the request's content did not arrive in time")]
    TimedOut "timed-out";
    /// An `Expect` other than `100-continue` (RFC 9110 §10.1.1).
    #[error("the request's Expect field is not supported")]
    ExpectationUnknown "expectation-unknown";
    /// The connection uses a certificate for other hosts, although there is one for this host.
    #[error("the certificate of this connection is not valid for the request's host")]
    Misdirected "misdirected";
}

macro_rules! reasons {
    (@fwd -) => { None };
    (@fwd $fwd:ident) => { Some(Fwd::$fwd) };
    ($($name:ident $text:literal $fwd:tt $doc:literal;)*) => {
        labels! {
            /// Why a request was forwarded, why its response was not stored or was served stale, or why the
            /// node generated the response. The list is closed.
            #[derive(PartialOrd, Ord, Hash)]
            pub Reason;
            $(#[doc = $doc] $name $text;)*
        }

        impl Reason {
            /// All reasons, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// One sentence for the documentation and for `skerry explain`.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }

            /// The value of `fwd` (RFC 9211 §2.2) for a request forwarded for this reason. `None`: no
            /// request is forwarded for this reason.
            pub const fn fwd(self) -> Option<Fwd> {
                match self { $(Self::$name => reasons!(@fwd $fwd),)* }
            }
        }

        /// How the cache handled a request: `hit`, then [`Reason::WORDS`].
        pub(crate) const CACHE_RESULTS: &[&str] = &["hit", $($text,)*];
    };
}

/// Results of requests that were hits, fresh or stale (`hit` in `Cache-Status`).
pub(crate) const HIT_RESULTS: [&str; 6] = [
    "hit",
    Reason::WhileRevalidate.as_str(),
    Reason::IfError.as_str(),
    Reason::WhenSlow.as_str(),
    Reason::MaxStale.as_str(),
    Reason::BusSilent.as_str(),
];

/// Results of requests that the node answered without the cache and without an origin.
pub(crate) const GENERATED_RESULTS: [&str; 4] = [
    Reason::Refused.as_str(),
    Reason::Denied.as_str(),
    Reason::RateLimited.as_str(),
    Reason::AnsweredHere.as_str(),
];

reasons! {
    // Why neither the cache nor an origin was used.
    Refused "refused" - "The request is invalid, or no site has its host.";
    Denied "denied" - "The rule's access control does not allow the request.";
    RateLimited "rate-limited" - "The client sent more requests than the rule's rate limit allows.";
    AnsweredHere "answered-here" - "The node generated the response: a redirect, a fixed response, or the result of a PURGE request.";
    // Why the cache was not used.
    CachingOff "caching-off" Bypass "The rule turns caching off.";
    BypassCookie "bypass-cookie" Bypass "The request has a cookie for which the rule bypasses the cache.";
    BypassHeader "bypass-header" Bypass "The request has a header field for which the rule bypasses the cache.";
    Method "method" Method "Requests with this method are not served from the cache.";
    // Why no stored response was found.
    Absent "absent" UriMiss "Nothing is stored under the key.";
    VariantAbsent "variant-absent" VaryMiss "No stored variant matches the request's header fields (Vary).";
    KeyCollision "key-collision" UriMiss "The response stored under the key's hash belongs to another key.";
    HardPurged "purged" UriMiss "The stored response was purged.";
    Invalidated "invalidated" UriMiss "The stored response was invalidated by an unsafe request such as POST (RFC 9111 §4.4).";
    TooOld "too-old" UriMiss "The stored response is older than the site allows.";
    RememberedPass "remembered-pass" Miss "The last response for the key could not be stored, so requests for it are not collapsed.";
    PurgesUnapplied "purges-unapplied" Miss "Another node asks that has applied purges which this node has not, or may not have, so nothing stored is used.";
    StoreFailed "store-failed" Miss "The store could not be read.";
    BytesMissing "bytes-missing" Partial "Not all requested bytes are stored.";
    // Why a stored response could not be used without validation.
    RequestNoStore "request-no-store" Request "The request has no-store.";
    RequestNoCache "request-no-cache" Request "The request has no-cache.";
    RequestMaxAge "request-max-age" Request "The stored response is older than the request's max-age.";
    RequestMinFresh "request-min-fresh" Request "The stored response does not stay fresh for the request's min-fresh.";
    OnlyIfCached "only-if-cached" - "The request has only-if-cached, and no stored response can be used.";
    Stale "stale" Stale "The stored response is stale.";
    NoCache "no-cache" Stale "The stored response has no-cache, so it is validated before each use.";
    SoftPurged "soft-purged" Stale "The stored response was soft-purged, so it is validated before use.";
    PurgesMissed "purges-missed" Stale "Purges of the stored response may have been missed, because the purge bus was silent or the purge log is new, so it is validated before use.";
    // Why a stale response was served.
    WhileRevalidate "stale-while-revalidate" Stale "Served stale while it is validated in the background.";
    IfError "stale-if-error" Stale "Served stale because the upstream failed.";
    WhenSlow "stale-when-slow" Stale "Served stale because the upstream did not respond within the soft deadline.";
    MaxStale "max-stale" Stale "Served stale because the request's max-stale allows it.";
    Validated "validated" Stale "Served after the upstream confirmed that it has not changed (304).";
    BusSilent "bus-silent" Stale "Served as fresh, but the purge bus is silent: purges of other nodes may be missing.";
    // Why a response was not stored.
    ResponseNoStore "no-store" Miss "Not stored: the response has no-store.";
    Private "private" Miss "Not stored: the response is private.";
    Authorized "authorization" Miss "Not stored: the request has Authorization, and the response does not allow sharing (RFC 9111 §3.5).";
    SetsCookie "set-cookie" Miss "Not stored: the response sets a cookie.";
    VaryStar "vary-star" Miss "Not stored: Vary: * matches no other request.";
    StatusUncacheable "status" Miss "Not stored: responses with this status are never stored, or only with explicit freshness information, which is missing.";
    MustUnderstand "must-understand" Miss "Not stored: the response has must-understand and a status that this cache does not understand.";
    NoLifetime "no-lifetime" Miss "Not stored: the response is never fresh, has no validator, and may not be served stale.";
    RangeInvalid "content-range" Miss "Not stored: the Content-Range of the partial response is missing, has several parts, or contradicts its length.";
    Deceptive "deceptive" Miss "Not stored: the content type does not match the extension of the path (web cache deception).";
    MethodUnstorable "method-unstorable" Miss "Not stored: a response to this method cannot be reused.";
    TooLarge "too-large" Miss "Not stored: the body is larger than the store accepts.";
    FillLimit "fill-limit" Miss "Not stored: as many fills are in flight as the node allows (`[fills] fills_max`).";
}

labels! {
    /// Why a request was forwarded: the values of `fwd` (RFC 9211 §2.2).
    pub Fwd;
    /// The configuration bypasses the cache.
    Bypass "bypass";
    /// The semantics of the method require it.
    Method "method";
    /// No response is stored for this URL.
    UriMiss "uri-miss";
    /// Responses are stored for this URL, but none matches the request's header fields.
    VaryMiss "vary-miss";
    /// No stored response could be used.
    Miss "miss";
    /// The request's cache directives require it.
    Request "request";
    /// The stored response is stale.
    Stale "stale";
    /// Not all requested bytes are stored.
    Partial "partial";
}

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
    /// Its body was not kept.
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
    /// Why the listener refuses a request whose head it cannot read.
    #[derive(thiserror::Error)]
    pub HeadError;
    /// It is not HTTP.
    #[error("the request is not valid HTTP")]
    Malformed "malformed";
    /// `head_bytes_max`, `headers_max`.
    #[error("the request's header section is too large (limits.header_bytes_max, limits.headers_max)")]
    HeadTooLarge "head-too-large";
    /// `uri_bytes_max`.
    #[error("the request target is too long (limits.uri_bytes_max)")]
    TargetTooLong "target-too-long";
    /// A bare LF, or a second field that says how the body is framed: where it ends is in doubt.
    #[error("the end of the request is ambiguous: a bare line feed, or conflicting Content-Length and Transfer-Encoding fields")]
    Framing "framing";
    /// `header_timeout`.
    #[error("the request's header section did not arrive in time (limits.header_timeout)")]
    TimedOut "timed-out";
    /// Plain HTTP on a listener with TLS.
    #[error("this port serves HTTPS: use an https URL")]
    PlainHttp "plain-http";
}

labels! {
    /// A content coding that we can produce and undo.
    pub(crate) Coding;
    /// RFC 8878, with a window of at most 8 MiB (RFC 9659).
    Zstd "zstd";
    /// RFC 7932.
    Brotli "br";
    /// RFC 1952.
    Gzip "gzip";
}

labels! {
    /// Why a connection was closed as soon as it was accepted.
    pub(crate) ConnectionRefusal;
    /// `connections_max`.
    Total "total";
    /// `connections_per_address_max`.
    Address "address";
    /// `handshakes_max`.
    Handshakes "handshakes";
    /// A missing or invalid PROXY protocol header, where the listener requires one.
    ProxyHeader "proxy_header";
    /// `peers.connections_max`.
    Peers "peers";
}

labels! {
    /// The time limit that a client connection reached.
    pub(crate) ConnectionTimeout;
    /// `handshake_timeout`: PROXY protocol header and TLS handshake.
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

labels! {
    /// Why coding or decoding a body failed.
    pub(crate) CoderFailure;
    /// The coded data are malformed or incomplete.
    Malformed "malformed";
    /// The decoded body is longer than the limit.
    DecodeLimit "decode_limit";
}

labels! {
    /// The outcome of coding the form of an often requested response again at a higher level.
    pub(crate) HotFormOutcome;
    /// The new form is shorter and has replaced the old one.
    Smaller "smaller";
    /// The new form would not be shorter; the old one stays.
    Kept "kept";
    /// The response was replaced or purged, or its form evicted, in the meantime.
    Outdated "outdated";
    /// The content is longer than `hot_forms.content_max` when it is decoded.
    TooLong "too-long";
    /// The content could not be read or coded.
    Failed "failed";
    /// The form was not queued because the queue had `hot_forms.queue_max` entries.
    QueueFull "queue-full";
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
    /// Nothing that can be used; the last origins stay in use.
    Failed "failed";
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
    /// Its name cannot be used, such as in TLS.
    Unusable "unusable";
}

labels! {
    /// How a fill ended.
    pub(crate) FillEnd;
    /// The complete response is stored.
    Stored "stored";
    /// The response is complete, but not stored, or not completely.
    Unstored "unstored";
    /// The body ended early. Nothing of it is stored.
    Broken "broken";
    /// All readers had left, and too little of it had arrived to continue.
    Abandoned "abandoned";
}

labels! {
    /// How the group of a visitor was found, where a rule splits its visitors.
    pub(crate) SplitChoice;
    /// The request has a field or a cookie that names the group.
    Forced "forced";
    /// The visitor's cookie names it.
    Cookie "cookie";
    /// The client's address gives it.
    Client "client";
    /// The visitor has no cookie and was drawn by lot.
    Lot "lot";
    /// The node's own request: the group with the largest weight.
    Node "node";
    /// The request of a peer, which names the group.
    Peer "peer";
}

labels! {
    /// The outcome of the copy of a request that is mirrored.
    pub(crate) MirrorOutcome;
    /// Its response was complete.
    Answered "answered";
    /// There was no response, or not all of it.
    Failed "failed";
    /// Not sent: `mirror.in_flight_max` copies were in flight.
    Limit "limit";
    /// Not sent: the content is longer than `mirror.body_max`.
    TooLong "too_long";
    /// Not sent: the client or the origin broke off before the content was complete.
    Incomplete "incomplete";
}

labels! {
    /// Where a client is served under a rule that redirects to the nearest region.
    pub(crate) GeoRedirectOutcome;
    /// In the nearest region, to which it was redirected.
    Redirected "redirected";
    /// Here: this is the nearest region.
    OwnRegion "own_region";
    /// Here: the request is for the name of a region.
    RegionName "region_name";
    /// Here: the place of the client is not known.
    UnknownPlace "unknown_place";
    /// Here: no region with a name has a ready node whose place is known.
    NoRegion "no_region";
}

labels! {
    /// Where a request to a sticky pool goes.
    pub(crate) StickyOutcome;
    /// To the origin that its cookie names.
    Kept "kept";
    /// To another one: that origin is gone, or may not be used.
    Moved "moved";
    /// It has no cookie.
    New "new";
}

labels! {
    /// Whether this node has applied the purges that another node's request requires.
    pub(crate) RequirementOutcome;
    /// It has.
    Met "met";
    /// Only a response will do that the origin is asked for after the request.
    OriginOnly "origin-only";
    /// It has not read so far in the purge stream.
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
    /// Why a request is not collapsed.
    pub(crate) Uncollapsed;
    /// The key's last response could not be stored (hit-for-miss).
    Uncacheable "uncacheable";
    /// `fills_max` is reached.
    Fills "fills_max";
    /// `followers_max` is reached.
    Followers "followers_max";
}

labels! {
    /// Why a connection or a request is refused that claims to be of a node of the fleet.
    #[derive(thiserror::Error)]
    pub(crate) PeerRefusal;
    /// No certificate.
    #[error("it has no certificate")]
    NoCertificate "no-certificate";
    /// Its certificate is not signed by an authority of `peers.ca`.
    #[error("its certificate is of another authority than those in peers.ca")]
    Authority "authority";
    /// Its certificate has expired, or is not valid yet.
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
    /// It speaks in a name that its certificate does not carry.
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
    /// Why a node does not answer another one that asks it. The list is closed, except that a later
    /// version may have words that this one does not know.
    pub(crate) HopRefusal;
    /// It speaks another version of the peer protocol.
    Version "version";
    /// Its configuration is another one.
    Digest "digest";
    /// It computes another cache key for the request.
    Key "key";
    /// The request has come through as many nodes as it may.
    Hops "hops";
    /// It has not applied the purges that the asker knows of.
    Purges "purges";
    /// It answers as many requests of other nodes as it may.
    Overload "overload";
    /// It got no response from the origin.
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
    /// Neither a response nor a 102 (Processing) came in time.
    Deadline "deadline";
    /// Neither came in time, although other signs of life of the peer did.
    Slow "slow";
    /// There was no connection, or it ended.
    Connection "connection";
    /// The response does not say how the peer has answered.
    Verdict "verdict";
    /// The body ended early.
    Body "body";
    /// The peer speaks another version of the protocol.
    Version "version";
    /// Its configuration is another one.
    Digest "digest";
    /// It computes another cache key.
    Key "key";
    /// It has not applied the purges that this node knows of.
    Purges "purges";
    /// It answers as many requests as it may.
    Overload "overload";
    /// It got no response from the origin.
    Upstream "upstream";
    /// It has refused the request for another reason.
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
    /// It was.
    Copied "copied";
    /// It is longer than a slice, or of unknown length: each request for it goes to the owner.
    TooLong "too-long";
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
    /// The kind of server that a request was sent to.
    pub(crate) UpstreamKind;
    /// An origin of a pool.
    Origin "origin";
    /// Another node of the region.
    Peer "peer";
    /// A node of the shield region.
    Shield "shield";
}
