//! Cache keys: what makes two requests ask for the same thing (RFC 9111 §2).

use std::fmt;

/// The 128-bit XXH3 of a key's text: where the store looks. Stable across builds, since it
/// is on disk. Two texts with one hash are told apart by the text in the record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u128);

impl KeyHash {
    /// The hash of `text`.
    pub fn of(text: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(text))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A key in full, with its hash.
///
/// ```text
/// https://www.example.org/a/b?q=1            the URL part: scheme, authority, path, query
/// https://www.example.org/a/b?q=1\nfield: v  and the configured parts, one a line
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey {
    /// Never without scheme and authority.
    pub text: Box<str>,
    /// `KeyHash::of(text)`.
    pub hash: KeyHash,
}

impl CacheKey {
    /// The key with this text.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        let text = text.into();
        Self { hash: KeyHash::of(text.as_bytes()), text }
    }
}
