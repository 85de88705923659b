//! Where a visitor is served: the group, the origin and the region, and the copies of its requests.

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
    /// Where a request to a sticky pool goes.
    pub(crate) StickyOutcome;
    /// To the origin that its cookie names.
    Kept "kept";
    /// To another one: that origin is gone, or may not be used.
    Moved "moved";
    /// To any origin: the request has no cookie.
    New "new";
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
    /// The outcome of the copy of a request that is mirrored.
    pub(crate) MirrorOutcome;
    /// The response to the copy was complete.
    Answered "answered";
    /// The copy got no response, or not all of it.
    Failed "failed";
    /// Not sent: `mirror.in_flight_max` copies were in flight.
    Limit "limit";
    /// Not sent: the content is longer than `mirror.body_max`.
    TooLong "too_long";
    /// Not sent: the client or the origin broke off before the content was complete.
    Incomplete "incomplete";
}
