//! The scopes of purges, and the facts of a stored response that they are compared with.

/// A position in this node's purge log. Grows with each applied purge and never falls, also across
/// restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PurgeSequence(pub u64);

/// The effect of a purge on the responses that it covers, and its cause. A later variant overrides an
/// earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PurgeKind {
    /// As `Soft`, because purges of them may have been missed: the bus was silent, or the log is new.
    Missed,
    /// The responses become stale: they may be validated, and served where a stale response is allowed.
    Soft,
    /// As `Hard`, because of a request with an unsafe method (RFC 9111 §4.4).
    Invalidated,
    /// The responses must not be used any more.
    Hard,
}

impl PurgeKind {
    /// Whether the responses must not be used any more.
    pub(crate) fn is_hard(self) -> bool {
        self >= Self::Invalidated
    }

    /// The word in the answers of the admin API and in the audit log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::Soft => "soft",
            Self::Invalidated => "invalidated",
            Self::Hard => "hard",
        }
    }
}

/// The responses that a purge covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PurgeScope {
    /// Everything.
    All,
    /// All of one site, by its name in the configuration.
    Site(Box<str>),
    /// One URL with all its variants: `https://host/path?query`, normalised.
    Url(Box<str>),
    /// All whose normalised URL starts with this.
    Prefix(Box<str>),
    /// All that carry this tag (`Surrogate-Key`, `Cache-Tag`, `Cache-Groups`).
    Tag(Box<str>),
}

/// The mark, among the tags of a record, of a response with `No-Vary-Search`: it answers other URLs of its path, too, so
/// that a purge of any URL of the path covers it. A response with a tag of this hash, one in 10^19, is purged too often.
pub(crate) const ALIASED: u64 = u64::MAX;

/// The facts of a stored response that purges are matched against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PurgeTarget<'a> {
    /// The site's name.
    pub site: &'a str,
    /// The URL part of the key: `https://host/path?query`.
    pub url: &'a str,
    /// [`tag_hash`] of each tag.
    pub tags: &'a [u64],
}

impl<'a> PurgeTarget<'a> {
    /// The URL without its query, if purges of other URLs with that path cover it too.
    pub(crate) fn aliased_path(&self) -> Option<&'a str> {
        self.tags.contains(&ALIASED).then(|| path_of(self.url))
    }
}

/// A URL without its query.
pub(crate) fn path_of(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// A tag as it is kept in records and in the purge table. Two tags with one hash are purged
/// together: harmless, and one in 10^19.
pub(crate) fn tag_hash(tag: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(tag.as_bytes())
}
