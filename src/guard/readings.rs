//! The paths that an origin may read in the path of a request, beside the one that is written.
//!
//! Origins go beyond RFC 3986 in different ways: nginx decodes `%2F` and merges slashes, servers for Java drop `;…` from
//! each segment. The limits of a rule would be worth nothing if one of these ways led past them. Hidden `..` segments
//! have been refused by the gate.

use std::borrow::Cow;

use super::path::remove_dot_segments;

/// The other readings of a normalised path, each once. Empty for most paths. At most [`READINGS_MAX`], each no longer than
/// `path`.
pub(crate) fn other_readings(path: &str) -> Vec<String> {
    let mut readings = Vec::new();
    let decoded = with_decoded_slashes(path);
    if matches!(decoded, Cow::Borrowed(_)) && !path.contains(';') && !path.contains("//") {
        return readings;
    }
    let bare = without_parameters(path);
    let bare_decoded = with_decoded_slashes(&bare);
    let decoded_bare = without_parameters(&decoded);
    for text in [path, &decoded, &bare, &bare_decoded, &decoded_bare] {
        for merges_slashes in [false, true] {
            let reading = remove_dot_segments(text, merges_slashes);
            if reading != path && !readings.contains(&reading) {
                readings.push(reading);
            }
        }
    }
    debug_assert!(readings.len() <= READINGS_MAX, "{readings:?}");
    readings
}

/// The path with `/` for each encoded slash and backslash. The digits of a normalised path are in upper case.
fn with_decoded_slashes(path: &str) -> Cow<'_, str> {
    match path.contains("%2F") || path.contains("%5C") {
        true => path.replace("%2F", "/").replace("%5C", "/").into(),
        false => path.into(),
    }
}

/// The path with what is before the first `;` of each segment.
fn without_parameters(path: &str) -> String {
    let names = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
    names.collect::<Vec<_>>().join("/")
}

/// Five texts, each with and without merged slashes.
const READINGS_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: &[&str]) {
        assert_eq!(other_readings(path), expected, "{path}");
    }

    #[test]
    fn most_paths_have_one_reading() {
        for path in ["/", "/a", "/a/", "/a/b.css", "/a%20b", "/a/..b"] {
            check(path, &[]);
        }
    }

    #[test]
    fn origins_read_other_paths() {
        check("//a", &["/a"]);
        check("/a%2Fb", &["/a/b"]);
        check("/a%5Cb", &["/a/b"]);
        check("/a;v=1", &["/a"]);
        check("/%2F./a", &["//a", "/a"]);
        check("/x//a%2Fb", &["/x/a%2Fb", "/x//a/b", "/x/a/b"]);
        // One server drops the parameters first, another one decodes first.
        check("/a;x%2Fb", &["/a;x/b", "/a", "/a/b"]);
    }
}
