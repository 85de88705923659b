//! Path normalisation (RFC 3986 §6.2.2): `%41` becomes `A`, `%2f` becomes `%2F` and stays encoded,
//! `/a/../b` becomes `/b`, and characters that a URI must not contain are encoded. Of the query, which
//! only the application can interpret, nothing but non-ASCII text is changed: it is encoded as in the
//! path.
//!
//! A URI must not contain non-ASCII text (RFC 3986 §2), but old browsers, scripts and hand-written links
//! send it, and nginx, Varnish and Apache accept it. As UTF-8 it has one meaning (RFC 3987 §3.1), so it is
//! forwarded and stored percent-encoded. Bytes that are not UTF-8 are refused by the listener: with 400
//! over HTTP/1, with a reset of the stream over HTTP/2.

use std::borrow::Cow;

use super::Refusal;

/// The normal form of `path`, which must start with `/`. A path with [hidden dot segments](has_hidden_dots) is refused. Borrowed if `path` is in normal form.
pub(super) fn normalise(path: &str, merge_slashes: bool) -> Result<Cow<'_, str>, Refusal> {
    if is_plain(path.as_bytes(), merge_slashes) {
        return Ok(Cow::Borrowed(path));
    }
    let recoded = recode(path.as_bytes())?;
    let walked = remove_dot_segments(&recoded, merge_slashes);
    if has_hidden_dots(&walked) {
        return Err(Refusal::PathDots);
    }
    if walked == path { Ok(Cow::Borrowed(path)) } else { Ok(Cow::Owned(walked)) }
}

/// The query with non-ASCII text encoded. Borrowed if there is none.
pub(super) fn normalise_query(query: &str) -> Cow<'_, str> {
    if query.is_ascii() {
        return Cow::Borrowed(query);
    }
    let mut out = String::with_capacity(query.len() + 16);
    for byte in query.bytes() {
        if byte.is_ascii() { out.push(char::from(byte)) } else { push_encoded(&mut out, byte) }
    }
    Cow::Owned(out)
}

/// Whether `path` is certainly in normal form. One pass, which is enough for most requests.
fn is_plain(path: &[u8], merge_slashes: bool) -> bool {
    let mut previous = 0;
    for &byte in path {
        if !PLAIN[byte as usize] {
            return false;
        }
        let suspicious = byte == b'.' || (merge_slashes && byte == b'/');
        if suspicious && previous == b'/' {
            return false;
        }
        previous = byte;
    }
    true
}

/// Decodes characters that need no encoding, encodes those that do, and writes hexadecimal digits in upper
/// case.
fn recode(path: &[u8]) -> Result<String, Refusal> {
    let mut out = String::with_capacity(path.len() + 16);
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        let (value, after) = match (byte, after) {
            (b'%', [high, low, after @ ..]) => (decode(*high, *low)?, after),
            (b'%', _) => return Err(Refusal::PercentInvalid),
            _ => (*byte, after),
        };
        // Encoded delimiters keep their encoding: `%2F` is not a separator.
        let stays_raw = if *byte == b'%' { is_unreserved(value) } else { PLAIN[value as usize] };
        match value {
            0..0x20 | 0x7F => return Err(Refusal::PathControl),
            _ if stays_raw => out.push(char::from(value)),
            _ => push_encoded(&mut out, value),
        }
        rest = after;
    }
    Ok(out)
}

fn push_encoded(out: &mut String, byte: u8) {
    out.push('%');
    out.push(char::from(HEX[usize::from(byte >> 4)]));
    out.push(char::from(HEX[usize::from(byte & 15)]));
}

/// Removes dot segments (RFC 3986 §5.2.4). `..` at the root stays at the root.
pub(super) fn remove_dot_segments(path: &str, merge_slashes: bool) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            "" if merge_slashes && !is_last => {}
            _ => {
                kept.push(segment);
                continue;
            }
        }
        // `/a/.` and `/a/b/..` name directories, so the result ends with a slash.
        if is_last {
            kept.push("");
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() { "/".to_owned() } else { out }
}

/// Whether some servers see a `..` segment in a path without dot segments: nginx decodes `%2F` before it removes dot
/// segments, servers on Windows take `%5C` for a slash, servers for Java drop `;…`. Such a request would leave the prefix
/// that its rule demands or adds.
fn has_hidden_dots(path: &str) -> bool {
    // Most paths end here.
    path.contains("..")
        && path.split('/').any(|segment| {
            let mut parts = segment.split("%2F").flat_map(|part| part.split("%5C"));
            parts.any(|part| part.split(';').next() == Some(".."))
        })
}

fn decode(high: u8, low: u8) -> Result<u8, Refusal> {
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(Refusal::PercentInvalid);
    Ok((digit(high)? << 4 | digit(low)?) as u8)
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `pchar` without `%`, and `/` (RFC 3986 §3.3).
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_unreserved(byte as u8)
            || matches!(
                byte as u8,
                b'!' | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b','
                    | b';'
                    | b'='
                    | b':'
                    | b'@'
                    | b'/'
            );
        byte += 1;
    }
    table
};

const HEX: &[u8; 16] = b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(path: &str, expected: &str) {
        assert_eq!(normalise(path, false).as_deref(), Ok(expected), "{path}");
    }

    #[track_caller]
    fn refuse(path: &str, expected: Refusal) {
        assert_eq!(normalise(path, false), Err(expected), "{path}");
    }

    #[test]
    fn a_path_has_one_spelling() {
        check("/", "/");
        check("/a/b.css", "/a/b.css");
        check("/.well-known/x", "/.well-known/x");
        check("/a..b/...", "/a..b/...");
        check("/a/./b", "/a/b");
        check("/a/b/..", "/a/");
        check("/a/b/.", "/a/b/");
        check("/a/../../../b", "/b");
        check("/..", "/");
        check("/a//../b", "/a/b");
        check("//a", "//a");
        check("/%61%2D%2d", "/a--");
        check("/a%2fb", "/a%2Fb");
        check("/%2e%2e/%2E/b", "/b");
        check("/%2541", "/%2541");
        check("/%c3%a9", "/%C3%A9");
        check("/é", "/%C3%A9");
        check("/a\\b", "/a%5Cb");
        check("/{a}|\"", "/%7Ba%7D%7C%22");
        check("/a;v=1/@b:c", "/a;v=1/@b:c");
        check("/%3B%3b", "/%3B%3B");
    }

    #[test]
    fn a_query_stays_but_for_what_is_not_ascii() {
        assert!(matches!(normalise_query("a=%zz&b=/../%c3"), Cow::Borrowed("a=%zz&b=/../%c3")));
        assert_eq!(normalise_query("q=é&p=%41"), "q=%C3%A9&p=%41");
    }

    #[test]
    fn slashes_are_merged_only_when_asked() {
        assert_eq!(normalise("//a///b//", true).as_deref(), Ok("/a/b/"));
        assert_eq!(normalise("/a//../b", true).as_deref(), Ok("/b"));
        check("//a///b//", "//a///b//");
    }

    #[test]
    fn broken_encodings_and_control_characters_are_refused() {
        refuse("/%", Refusal::PercentInvalid);
        refuse("/%4", Refusal::PercentInvalid);
        refuse("/%zz", Refusal::PercentInvalid);
        refuse("/%+1", Refusal::PercentInvalid);
        refuse("/%00", Refusal::PathControl);
        refuse("/a%0d%0ab", Refusal::PathControl);
        refuse("/%7f", Refusal::PathControl);
        refuse("/a\tb", Refusal::PathControl);
    }

    #[test]
    fn dot_segments_that_only_some_servers_see_are_refused() {
        for path in [
            "/a/%2e%2e%2fb",
            "/a/..%2Fb",
            "/a%2f..%2fb",
            "/a%2f%2E%2e",
            "/..%2f",
            "/a/..;/b",
            "/a/..;x=y",
            "/a%5c..%5cb",
            "/a\\..\\b",
            "/a%2F..;/b",
        ] {
            refuse(path, Refusal::PathDots);
        }
        for path in
            ["/a..%2Fb", "/a/...%2Fb", "/a%2F..b", "/a;..", "/..a;x", "/a%2F.%2Fb", "/%252F..x"]
        {
            check(path, path);
        }
    }

    #[test]
    fn a_normal_path_is_not_copied() {
        for path in ["/", "/a/b/c.css", "/%C3%A9", "/.well-known/"] {
            assert!(matches!(normalise(path, false), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    proptest! {
        #[test]
        fn normalising_twice_is_normalising_once(
            path in "/([a.]|\\.\\.|/|%2[eEfF5]|%[46][0-9a-fA-F]|[ -~é]){0,24}",
            merge in any::<bool>(),
        ) {
            if let Ok(once) = normalise(&path, merge) {
                prop_assert!(once.starts_with('/'));
                let twice = normalise(&once, merge);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
                prop_assert!(!once.split('/').any(|segment| segment == ".." || segment == "."));
            }
        }
    }
}
