//! The key of debug requests: `Skerry-Debug: KEY` asks for `Server-Timing` in the response.
//!
//! The debug key is no token of the admin API, because it passes browsers and proxies: its reader learns where the time of
//! requests goes, and can change nothing.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::{HeaderMap, HeaderName};

/// A secret that is compared in constant time and never printed. A clone shares it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct DebugKey(Arc<[u8]>);

impl DebugKey {
    /// Reads the key from a file (blocking): one line of 16 to 256 visible ASCII characters.
    ///
    /// # Errors
    /// The file cannot be read, or has no such line. The message does not quote it.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text =
            fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let key = text.trim_ascii();
        let is_visible = key.iter().all(u8::is_ascii_graphic);
        if is_visible && (BYTES_MIN..=BYTES_MAX).contains(&key.len()) {
            return Ok(Self(key.into()));
        }
        let path = path.display();
        Err(format!(
            "{path}: expected one line of {BYTES_MIN} to {BYTES_MAX} visible characters, such as that of \
             \"openssl rand -hex 32\""
        ))
    }

    /// Whether the request has the key, once.
    pub(super) fn is_in(&self, fields: &HeaderMap) -> bool {
        let mut lines = fields.get_all(SKERRY_DEBUG).iter();
        match (lines.next(), lines.next()) {
            (Some(given), None) => verify_slices_are_equal(given.as_bytes(), &self.0).is_ok(),
            _ => false,
        }
    }
}

impl fmt::Debug for DebugKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The request field with the key. The gate removes it from every request.
const SKERRY_DEBUG: HeaderName = HeaderName::from_static("skerry-debug");
const BYTES_MIN: usize = 16;
const BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<DebugKey, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("debug.key");
        fs::write(&path, text).expect("a file");
        DebugKey::read(&path)
    }

    #[test]
    fn a_key_is_one_line_of_sixteen_characters_or_more() {
        assert!(written("0123456789abcdef\n").is_ok());
        for wrong in ["", "short\n", "0123456789abcdef 0123456789abcdef", &"x".repeat(257)] {
            let message = written(wrong).expect_err(wrong);
            assert!(message.contains("expected one line of 16 to 256 visible characters"));
            assert!(wrong.is_empty() || !message.contains(wrong), "{message}");
        }
        assert!(DebugKey::read(Path::new("/nowhere")).expect_err("a reason").contains("/nowhere"));
    }

    #[test]
    fn only_the_whole_key_given_once_is_accepted() {
        let key = written("0123456789abcdef").expect("a key");
        let check = |lines: &[&str], expected: bool| {
            let mut fields = HeaderMap::new();
            for line in lines {
                fields.append(SKERRY_DEBUG, line.parse().expect("a value"));
            }
            assert_eq!(key.is_in(&fields), expected, "{lines:?}");
        };
        check(&[], false);
        check(&["0123456789abcdef"], true);
        check(&["0123456789abcde"], false);
        check(&["0123456789abcdeF"], false);
        check(&["0123456789abcdef", "0123456789abcdef"], false);
        assert_eq!(format!("{key:?}"), "***");
    }
}
