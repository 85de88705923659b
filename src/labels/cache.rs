//! How the cache handled a request: the reasons of `Cache-Status`, of logs and of metrics, and how fills end.

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
    Unkeyed "unkeyed" Miss "Not stored: it may depend on what the request has beyond the key: a field that some servers take for a selecting one (X_Device for X-Device), or a query that is too long (414) and not all in the key.";
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
    /// Why a request is not collapsed.
    pub(crate) Uncollapsed;
    /// The key's last response could not be stored (hit-for-miss).
    Uncacheable "uncacheable";
    /// `fills_max` is reached.
    Fills "fills_max";
    /// `followers_max` is reached.
    Followers "followers_max";
}
