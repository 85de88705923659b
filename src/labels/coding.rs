//! The content codings, and how coding ends.

labels! {
    /// A content coding that the node can produce and undo.
    pub(crate) Coding;
    /// RFC 8878, with a window of at most 8 MiB (RFC 9659).
    Zstd "zstd";
    /// RFC 7932.
    Brotli "br";
    /// RFC 1952.
    Gzip "gzip";
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
