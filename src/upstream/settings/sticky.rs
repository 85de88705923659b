//! How a pool keeps visitors at its origins.

use std::path::PathBuf;
use std::time::Duration;

/// How a pool keeps visitors at its origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StickySettings {
    /// The name of the cookie, a token.
    pub cookie: Box<str>,
    /// A file with one secret a line, each of at least [`StickySettings::SECRET_BYTES_MIN`] bytes. The first
    /// makes cookies, all are accepted.
    pub key_file: PathBuf,
    /// How long browsers keep the cookie; zero: until they are closed.
    pub max_age: Duration,
}

impl StickySettings {
    /// Minimum length of a secret.
    pub(crate) const SECRET_BYTES_MIN: usize = 32;
}
