//! The host and port of a request, normalised: lower case, without the scheme's default port, without
//! the trailing dot of the root, without user information.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use http::HeaderValue;

use super::Refusal;

/// A normalised authority. Shares the bytes of the request if they were in normal form. A clone copies
/// nothing.
#[derive(Clone)]
pub(crate) struct Authority {
    source: Source,
    /// The length of the host, after which `:port` begins.
    host_length: u16,
}

#[derive(Clone)]
enum Source {
    Field(HeaderValue),
    Target(http::uri::Authority),
}

impl Authority {
    /// Parses a `Host` field.
    pub(super) fn from_field(value: &HeaderValue, scheme: &str) -> Result<Self, Refusal> {
        let text = value.to_str().map_err(|_| Refusal::HostInvalid)?;
        let (normal, host_length) = normalise(text, scheme)?;
        let source = match normal {
            Cow::Borrowed(_) => value.clone(),
            Cow::Owned(normal) => field(&normal),
        };
        Ok(Self { source: Source::Field(source), host_length })
    }

    /// Normalises `:authority`, or that of a target in absolute form.
    pub(super) fn from_target(
        authority: &http::uri::Authority,
        scheme: &str,
    ) -> Result<Self, Refusal> {
        let (normal, host_length) = normalise(authority.as_str(), scheme)?;
        let source = match normal {
            Cow::Borrowed(_) => Source::Target(authority.clone()),
            Cow::Owned(normal) => Source::Field(field(&normal)),
        };
        Ok(Self { source, host_length })
    }

    /// The authority of an HTTP/1.0 request without `Host`: the address that received it, without the scope of a link-local
    /// one, which no authority has (RFC 3986 §3.2.2).
    pub(super) fn from_address(address: SocketAddr, scheme: &str) -> Self {
        let address = SocketAddr::new(address.ip(), address.port());
        let (normal, host_length) = normalise(&address.to_string(), scheme)
            .map(|(text, at)| (text.into_owned(), at))
            .expect("an IP address with a port is an authority");
        Self { source: Source::Field(field(&normal)), host_length }
    }

    /// As text, such as `example.org`, `example.org:8080` or `[2001:db8::1]:8080`.
    #[expect(unsafe_code, reason = "each request asks for it several times")]
    pub(crate) fn as_str(&self) -> &str {
        match &self.source {
            // SAFETY: all values come from `normalise`, which returns only ASCII.
            Source::Field(value) => unsafe { std::str::from_utf8_unchecked(value.as_bytes()) },
            Source::Target(authority) => authority.as_str(),
        }
    }

    /// The host without the port.
    pub(crate) fn host(&self) -> &str {
        &self.as_str()[..usize::from(self.host_length)]
    }

    /// The value of a `Host` field.
    pub(crate) fn to_field(&self) -> HeaderValue {
        match &self.source {
            Source::Field(value) => value.clone(),
            Source::Target(authority) => field(authority.as_str()),
        }
    }
}

impl PartialEq for Authority {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn field(normal: &str) -> HeaderValue {
    HeaderValue::from_str(normal).expect("a normalised authority is ASCII without controls")
}

/// The normal form, and the length of its host.
fn normalise<'a>(text: &'a str, scheme: &str) -> Result<(Cow<'a, str>, u16), Refusal> {
    if text.len() > AUTHORITY_BYTES_MAX {
        return Err(Refusal::HostInvalid);
    }
    let (host, port) = split(text)?;
    let trimmed = host.strip_suffix('.').unwrap_or(host);
    if trimmed.is_empty() {
        return Err(Refusal::HostInvalid);
    }
    let port = port.filter(|port| Some(*port) != default_port(scheme));
    let lower = !host.bytes().any(|byte| byte.is_ascii_uppercase());
    let written = trimmed.len() + port.map_or(0, |port| port.len() + 1);
    let host_length = trimmed.len() as u16;
    if lower && written == text.len() {
        return Ok((Cow::Borrowed(text), host_length));
    }
    let mut normal = trimmed.to_ascii_lowercase();
    if let Some(port) = port {
        normal.push(':');
        normal.push_str(port);
    }
    Ok((Cow::Owned(normal), host_length))
}

/// Splits into host and port, and checks both. The port has no leading zeros.
fn split(text: &str) -> Result<(&str, Option<&str>), Refusal> {
    let (host, port) = if text.starts_with('[') {
        let end = text.find(']').ok_or(Refusal::HostInvalid)?;
        text[1..end].parse::<Ipv6Addr>().map_err(|_| Refusal::HostInvalid)?;
        let (host, after) = text.split_at(end + 1);
        let port = if after.is_empty() { None } else { after.strip_prefix(':') };
        if port.is_none() && !after.is_empty() {
            return Err(Refusal::HostInvalid);
        }
        (host, port)
    } else {
        let end = end_of_name(text.as_bytes()).ok_or(Refusal::HostInvalid)?;
        let (host, port) = text.split_at(end);
        (host, port.strip_prefix(':'))
    };
    // `example.org:` means the default port (RFC 3986 §6.2.3).
    let port = port.filter(|port| !port.is_empty());
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0)
    };
    match port {
        Some(port) if !is_port(port) => Err(Refusal::HostInvalid),
        Some(port) => Ok((host, Some(port.trim_start_matches('0')))),
        None => Ok((host, None)),
    }
}

/// The end of the host name: a colon or the end of the text. `None` if it is not a valid name. One pass,
/// because every request has a host.
fn end_of_name(text: &[u8]) -> Option<usize> {
    let mut before = b'.';
    for (place, &byte) in text.iter().enumerate() {
        match byte {
            b'.' if before == b'.' => return None,
            b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => before = byte,
            b':' => return Some(place),
            _ => return None,
        }
    }
    Some(text.len())
}

fn default_port(scheme: &str) -> Option<&'static str> {
    match scheme {
        "http" => Some("80"),
        "https" => Some("443"),
        _ => None,
    }
}

/// A name has at most 253 bytes (RFC 1035 §3.1); the others are for dot and port.
const AUTHORITY_BYTES_MAX: usize = 260;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let value = HeaderValue::from_str(text).unwrap();
        let found = Authority::from_field(&value, "https").ok();
        assert_eq!(found.as_ref().map(Authority::as_str), expected, "{text}");
    }

    #[test]
    fn an_authority_has_one_spelling() {
        check("example.org", Some("example.org"));
        check("EXAMPLE.org.", Some("example.org"));
        check("example.org:443", Some("example.org"));
        check("example.org:", Some("example.org"));
        check("example.org:0443", Some("example.org"));
        check("example.org:08080", Some("example.org:8080"));
        check("Example.org.:80", Some("example.org:80"));
        check("192.0.2.1:8443", Some("192.0.2.1:8443"));
        check("[2001:DB8::1]:443", Some("[2001:db8::1]"));
        check("a_b.example", Some("a_b.example"));
    }

    #[test]
    fn text_that_is_no_host_is_refused() {
        for text in [
            "",
            ".",
            ":80",
            "a b",
            "user@example.org",
            "example.org:80:80",
            "example.org:0",
            "example.org:65536",
            "example.org:+80",
            "a/b",
            "a..b",
            ".a",
            "[::1",
            "[::1]x",
            "[zz]",
            "a%20b",
            "a,b",
            "::1",
            "a\"b",
        ] {
            check(text, None);
        }
        check(&"a".repeat(300), None);
    }

    #[test]
    fn the_address_of_a_listener_is_an_authority() {
        for (address, expected) in [
            ("192.0.2.1:8080", "192.0.2.1:8080"),
            ("[2001:db8::1]:80", "[2001:db8::1]"),
            ("[fe80::1%4]:8080", "[fe80::1]:8080"),
        ] {
            let found = Authority::from_address(address.parse().unwrap(), "http");
            assert_eq!(found.as_str(), expected, "{address}");
        }
    }

    #[test]
    fn the_host_is_the_authority_without_its_port() {
        let value = HeaderValue::from_static("[::1]:8080");
        let authority = Authority::from_field(&value, "http").unwrap();
        assert_eq!(authority.host(), "[::1]");
        let value = HeaderValue::from_static("Example.org.:8080");
        assert_eq!(Authority::from_field(&value, "http").unwrap().host(), "example.org");
    }
}
