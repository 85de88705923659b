//! The names in a configuration: of nodes, regions, pools, sites and rules, of hosts, of cookies and of query parameters. A name that
//! cannot be used where it appears later is refused here.

use std::fmt;
use std::net::Ipv4Addr;

use http::header::HeaderName;
use toml::Spanned;
use toml::de::DeValue;

use super::reader::{Reader, Section};
use super::remedy;
use super::values::{Value, text, text_or};

/// Whether a name needs no quotes wherever it appears: in header fields and cookies, labels of metrics, URLs of the admin API,
/// and in lists such as the permission `purge:www,shop`.
pub(super) fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

/// Notes a mistake at option `option` if `name` is no plain name; with an empty `option`, at the table.
pub(super) fn check_plain_name(section: &Section<'_>, option: &str, name: &str) {
    if !is_plain_name(name) {
        section.mistake(option, format!("expected {PLAIN_NAME}, found {name:?}"));
    }
}

/// See [`is_plain_name`].
pub(super) const PLAIN_NAME: &str = "a name of 1 to 64 letters, digits, \"-\", \".\" and \"_\"";

/// As long as a host name on Linux may be, and as NSID responses of the name server carry.
const NAME_BYTES_MAX: usize = 64;

/// Whether this is the name of a host that clients can ask for, or an IPv4 address. A name whose last label is a number is
/// read as an address (URL Standard §3.5), so that `256.1.1.1` is neither.
pub(super) fn is_host_name(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
    let is_right = if is_number { text.parse::<Ipv4Addr>().is_ok() } else { text.len() <= 253 };
    is_right && text.split('.').all(is_label)
}

/// A label of a host name. Underscores are not allowed in host names (RFC 1123 §2.1), and some hosts have them.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// The name of a cookie: a token, as a field's name is (RFC 6265 §4.1.1).
pub(super) struct CookieName(pub Box<str>);

impl Value for CookieName {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let parse = |name: &str| is_token(name).then(|| Self(name.into()));
        text_or(value, reader, "the name of a cookie", parse, remedy::cookie)
    }
}

/// The name of a cookie, or the beginning of names, as in `"session_*"`.
pub(super) struct CookiePattern(pub Box<str>);

impl Value for CookiePattern {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let is_pattern = |name: &str| {
            let name = name.strip_suffix('*').unwrap_or(name);
            !name.contains('*') && (name.is_empty() || is_token(name))
        };
        let parse = |name: &str| (!name.is_empty() && is_pattern(name)).then(|| Self(name.into()));
        let expected = "the name of a cookie, which may end in \"*\"";
        text_or(value, reader, expected, parse, remedy::cookies)
    }
}

/// Whether the text can be the name of a field or a cookie (RFC 9110 §5.6.2).
pub(super) fn is_token(text: &str) -> bool {
    HeaderName::try_from(text).is_ok()
}

/// The name of a query parameter as it stands in URLs, or the beginning of names, as in `"utm_*"`.
pub(super) struct ParameterPattern(pub Box<str>);

impl Value for ParameterPattern {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let is_name = |name: &str| {
            let inner = name.strip_suffix('*').unwrap_or(name);
            let is_part = |byte: u8| byte.is_ascii_graphic() && !b"=&#?*".contains(&byte);
            !name.is_empty() && inner.bytes().all(is_part)
        };
        let expected = "the name of a query parameter, which may end in \"*\"";
        text(value, reader, expected, |name| is_name(name).then(|| Self(name.into())))
    }
}

macro_rules! shown_as_text {
    ($($type:ty),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}

shown_as_text!(CookieName, CookiePattern, ParameterPattern);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_can_be_asked_for() {
        for name in ["a", "a.test", "a-b.test", "a_b.test", "1.2.3.4", "xn--mnchen-3ya.de", "1a"] {
            assert!(is_host_name(name), "{name}");
        }
        let long = format!("{}.test", "x".repeat(64));
        for name in
            ["", "a..b", "-a.test", "a-.test", "-bad-", "256.1.1.1", "1.2.3.4.5", "80", &long]
        {
            assert!(!is_host_name(name), "{name}");
        }
    }
}
