//! Why the node refuses a request.

use std::time::Duration;

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
    /// A `..` segment that only some servers see: beside an encoded slash or backslash, or before `;`.
    #[error("the path has a dot segment that servers read differently")]
    PathDots "path-dots";
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

labels! {
    /// Why the listener refuses a request whose head it cannot read.
    #[derive(thiserror::Error)]
    pub HeadError;
    /// The bytes are not HTTP.
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
