//! The canonical form of a request's target: decoded, and encoded again as AWS's `UriEncode` does.
//! Every character but `A-Z a-z 0-9 - . _ ~` is encoded, in upper case, once. Dot segments and
//! repeated slashes stay: they are part of the name of an object.
//!
//! Two readings are chosen here because stores share them. An encoded slash in the path is a slash,
//! and a plus sign in the query is a space.

use std::fmt;

use http::uri::PathAndQuery;

/// A target in canonical form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CanonicalTarget {
    /// The encoded path.
    pub(super) path: String,
    /// Encoded names and values in the order of the request. `None`: a name without `=`.
    parameters: Vec<(String, Option<String>)>,
}

impl CanonicalTarget {
    /// `None` for the asterisk form, which names no object.
    ///
    /// Parameters that override fields of S3's response are left out: signed, they would let a client
    /// choose the content type of an object for everyone who gets it from the cache.
    pub(super) fn new(target: &PathAndQuery) -> Option<Self> {
        if !target.path().starts_with('/') {
            return None;
        }
        let written = target.query().unwrap_or_default().split('&').filter(|one| !one.is_empty());
        let parameters = written.map(|one| match one.split_once('=') {
            Some((name, value)) => (recode_text(name), Some(recode_text(value))),
            None => (recode_text(one), None),
        });
        let overrides = |name: &str| RESPONSE_OVERRIDES.contains(&name);
        Some(Self {
            path: recode(target.path(), is_path_byte),
            parameters: parameters.filter(|(name, _)| !overrides(name)).collect(),
        })
    }

    /// The query as it is signed: sorted by name, then value, and with a `=` after each name.
    pub(super) fn sorted_query(&self) -> String {
        let mut sorted: Vec<(&str, &str)> = (self.parameters.iter())
            .map(|(name, value)| (name.as_str(), value.as_deref().unwrap_or_default()))
            .collect();
        sorted.sort_unstable();
        let parts: Vec<String> =
            sorted.iter().map(|(name, value)| format!("{name}={value}")).collect();
        parts.join("&")
    }
}

impl fmt::Display for CanonicalTarget {
    /// The target as it is sent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        for (index, (name, value)) in self.parameters.iter().enumerate() {
            f.write_str(if index == 0 { "?" } else { "&" })?;
            f.write_str(name)?;
            if let Some(value) = value {
                write!(f, "={value}")?;
            }
        }
        Ok(())
    }
}

fn recode_text(text: &str) -> String {
    recode(&text.replace('+', " "), is_unreserved)
}

/// Decodes the text and encodes all bytes that do not stay. A `%` without two digits is a percent sign.
fn recode(text: &str, stays: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (b'%', &rest[1..]),
            },
            _ => (*first, after),
        };
        rest = after;
        if stays(byte) {
            out.push(char::from(byte));
        } else {
            let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    out
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn is_path_byte(byte: u8) -> bool {
    byte == b'/' || is_unreserved(byte)
}

const DIGITS: &[u8; 16] = b"0123456789ABCDEF";

/// Parameters of S3's GetObject that set fields of the response.
const RESPONSE_OVERRIDES: [&str; 6] = [
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_decoded_and_encoded_once() {
        let check = |target: &str, sent: &str, signed: &str| {
            let target = CanonicalTarget::new(&target.parse().unwrap()).unwrap();
            let query = target.sorted_query();
            assert_eq!((target.to_string().as_str(), query.as_str()), (sent, signed), "{sent}");
        };
        check("/", "/", "");
        check("/a/b.txt", "/a/b.txt", "");
        check("/a%20b/%c3%a9", "/a%20b/%C3%A9", "");
        check("/a+b(c)!'*:@$,;=", "/a%2Bb%28c%29%21%27%2A%3A%40%24%2C%3B%3D", "");
        check("//a//b/../c/.", "//a//b/../c/.", "");
        check("/a%2Fb", "/a/b", "");
        check("/100%", "/100%25", "");
        check("/?b=2&a=1&a=0&c", "/?b=2&a=1&a=0&c", "a=0&a=1&b=2&c=");
        check("/?acl", "/?acl", "acl=");
        check("/?a=b=c&&=x&", "/?a=b%3Dc&=x", "=x&a=b%3Dc");
        check("/?q=a+b%2Bc%2f/", "/?q=a%20b%2Bc%2F%2F", "q=a%20b%2Bc%2F%2F");
        check("/?response-content-type=text/html&v=1", "/?v=1", "v=1");
        check("/?response%2Dcontent%2Dtype=a", "/", "");
    }

    #[test]
    fn the_asterisk_form_names_no_object() {
        assert_eq!(CanonicalTarget::new(&PathAndQuery::from_static("*")), None);
    }
}
